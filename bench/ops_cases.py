"""What `bench.ops` measures: families of cases, each one expression per library over the same inputs.

In an expression `t` is the library (tensorlib, torch or numpy), `F` torch.nn.functional, the other names the inputs.
An empty expression: the library has no such function, it sits the case out.
"""

from typing import NamedTuple


class Case(NamedTuple):
    """One measurement. `inputs`: name -> (kind, *shape), a kind of `bench.workers.ops_worker`."""

    family: str
    name: str
    size: str
    inputs: dict
    tensorlib: str
    torch: str
    numpy: str


NORMAL, BOOL, HALF = "normal", "bool", "bf16"


def case(family, name, inputs, tensorlib, torch=None, numpy=None, size=None):
    """A row; torch and numpy are spelled as tensorlib is unless they differ."""
    size = size or " ".join("x".join(map(str, shape)) for _, *shape in inputs.values())
    other = (tensorlib if spelled is None else spelled for spelled in (torch, numpy))
    return Case(family, name, size, inputs, tensorlib, *other)


# ---- bound by memory ------------------------------------------------------------------------------------------------

ELEMENTWISE = (
    ("add", "x + y"),
    ("mul", "x * y"),
    ("add scalar", "x + 1.5"),
    ("maximum", "t.maximum(x, y)"),
    ("greater", "x > y"),
    ("where", "t.where(m, x, y)"),
    ("exp", "t.exp(x)"),
    ("tanh", "t.tanh(x)"),
    ("sigmoid", "t.sigmoid(x)", None, ""),
    ("silu", "t.silu(x)", "F.silu(x)", ""),
    ("gelu", "t.gelu(x)", "F.gelu(x)", ""),
    ("to f16", "x.to('f16')", "x.to(t.float16)", "x.astype('f2')"),
    ("to i32", "x.to('i32')", "x.to(t.int32)", "x.astype('i4')"),
)
DIMS = {"all": "", "last": "-1", "first": "0"}
REDUCTIONS = (
    ("sum", "t.sum(x, {})", None, None),
    ("mean", "t.mean(x, {})", None, None),
    ("amax", "t.amax(x, {})", None, None),
    ("argmax", "t.argmax(x, {})", None, None),
    ("var", "t.var(x, {})", None, "t.var(x, {}, ddof=1)"),
)
WEIGHTED = "x, (x.shape[1],), w, b"
SOFTMAX = (
    ("softmax", "t.softmax(x, -1)", None),
    ("log_softmax", "t.log_softmax(x, -1)", None),
    ("softmax dim 0", "t.softmax(x, 0)", None),
    ("layer_norm", "t.layer_norm(x, w, b)", f"F.layer_norm({WEIGHTED})"),
    ("rms_norm", "t.rms_norm(x, w, 1e-5)", "F.rms_norm(x, (x.shape[1],), w, 1e-5)"),
)
TRANSPOSED = (
    ("x.T + y", "x.T + y", None, None),
    ("copy of x.T", "x.T.contiguous()", None, "t.ascontiguousarray(x.T)"),
    ("exp of x.T", "t.exp(x.T)", None, None),
    ("sum of x.T rows", "t.sum(x.T, 1)", None, None),
)


def elementwise():
    for n in (10**k for k in range(3, 9)):
        for name, *codes in ELEMENTWISE:
            kinds = {"x": NORMAL, "y": NORMAL, "m": BOOL}
            used = {k: (kind, n) for k, kind in kinds.items() if k in codes[0].replace("t.exp", "").replace("max", "")}
            yield case("elementwise", name, used, *codes, size=f"{n:.0e}".replace("+0", ""))


def reductions():
    for shape in ((64, 64), (1000, 1000), (100_000, 64), (64, 100_000), (4096, 4096)):
        for name, *codes in REDUCTIONS:
            for where, dim in DIMS.items():
                spelled = [None if c is None else c.format(dim).replace(", )", ")").replace(", ,", ",") for c in codes]
                yield case("reductions", f"{name} {where}", {"x": (NORMAL, *shape)}, *spelled)


def softmax():
    for rows, n in ((32, 1000), (512, 2048), (2048, 4096), (100_000, 64)):
        inputs = {"x": (NORMAL, rows, n), "w": (NORMAL, n), "b": (NORMAL, n)}
        for name, ours, theirs in SOFTMAX:
            yield case("softmax", name, inputs, ours, theirs, "", size=f"{rows}x{n}")


def transposed():
    for m, n in ((256, 256), (1024, 1024), (2048, 4096), (4096, 4096)):
        for name, *codes in TRANSPOSED:
            yield case("transposed", name, {"x": (NORMAL, m, n), "y": (NORMAL, n, m)}, *codes, size=f"{m}x{n}")
    for t, h, d in ((512, 12, 64), (2048, 32, 128)):
        codes = "x.transpose(0, 1).contiguous()", None, "t.ascontiguousarray(x.swapaxes(0, 1))"
        yield case("transposed", "heads first", {"x": (NORMAL, t, h, d)}, *codes)


def gathers():
    for vocabulary, width, n in ((1000, 16, 1000), (32_000, 64, 100_000), (32_000, 768, 2048), (128_000, 4096, 512)):
        inputs = {"x": (NORMAL, vocabulary, width), "i": (f"index {vocabulary}", n)}
        yield case("gathers", "index_select dim 0", inputs, "t.index_select(x, 0, i)", None, "t.take(x, i, 0)")
        yield case("gathers", "embedding", inputs, "t.embedding(i, x)", "F.embedding(i, x)", "x[i]")
    for rows, n, k in ((64, 64, 64), (1000, 1000, 1000), (4096, 1024, 4096)):
        inputs = {"x": (NORMAL, rows, n), "i": (f"index {n}", k)}
        yield case("gathers", "index_select dim 1", inputs, "t.index_select(x, 1, i)", None, "t.take(x, i, 1)")
        inputs = {"x": (NORMAL, rows, n), "i": (f"index {n}", rows, k)}
        yield case("gathers", "gather dim 1", inputs, "t.gather(x, 1, i)", None, "t.take_along_axis(x, i, 1)")
        inputs = {"x": (NORMAL, rows, n), "i": (f"index {rows}", rows, n)}
        yield case("gathers", "gather dim 0", inputs, "t.gather(x, 0, i)", None, "t.take_along_axis(x, i, 0)")
        inputs |= {"y": (NORMAL, rows, n)}
        yield case("gathers", "scatter_add dim 0", inputs, "t.scatter_add(x, 0, i, y)", None, "")


def sort():
    for shape in ((1000,), (10_000,), (100_000,), (10**6,), (10**7,), (1000, 1000), (100_000, 50)):
        inputs = {"x": (NORMAL, *shape)}
        yield case("sort", "sort", inputs, "t.sort(x)", None, "t.sort(x)")
        yield case("sort", "argsort", inputs, "t.argsort(x)")
        yield case("sort", "topk 10", inputs, "t.topk(x, 10)", None, "")


# ---- bound by arithmetic --------------------------------------------------------------------------------------------


def sgemm():
    for n in (512, 1024, 2048):
        yield case("sgemm", "x @ y", {"x": (NORMAL, n, n), "y": (NORMAL, n, n)}, "x @ y", size=f"{n}")
        yield case("sgemm", "x @ y.T", {"x": (NORMAL, n, n), "y": (NORMAL, n, n)}, "x @ y.T", size=f"{n}")


# (M, N, K): a token, a few, prompts, a training batch, through the matrices of models of 135M to 7B
BF16 = [(m, n, k) for n, k in ((1536, 576), (2048, 2048), (4096, 4096)) for m in (1, 4, 16, 64, 512)]
BF16 += [(512, 576, 1536), (512, 4096, 1536)]


def bf16():
    for m, n, k in BF16:
        inputs = {"x": (HALF, m, k), "w": (HALF, n, k)}
        yield case("bf16", "x @ w.T", inputs, "x @ w.T", None, "", size=f"{m}x{n}x{k}")


SDPA = "scaled_dot_product_attention(q, k, v, is_causal={}, enable_gqa={})"


def attention():
    for heads, d in ((16, 64), (8, 128)):
        for n in (512, 1024, 2048, 4096):
            inputs = dict.fromkeys("qkv", (NORMAL, 1, heads, n, d))
            for causal in (True, False):
                name = f"prefill {'causal' if causal else 'full'}"
                code = SDPA.format(causal, False)
                yield case("attention", name, inputs, f"t.{code}", f"F.{code}", "", size=f"{heads} heads {n}x{d}")
    for d in (64, 128):
        for n in (512, 2048, 8192):
            inputs = {"q": (NORMAL, 1, 32, 1, d), "k": (NORMAL, 1, 8, n, d), "v": (NORMAL, 1, 8, n, d)}
            code = SDPA.format(False, True)
            yield case("attention", "decode", inputs, f"t.{code}", f"F.{code}", "", size=f"32/8 heads {n}x{d}")


# (network, input channels, height and width, output channels, window, stride)
CONVOLUTIONS = (
    ("ResNet-50", 3, 224, 64, 7, 2),
    ("ResNet-50", 64, 56, 64, 1, 1),
    ("ResNet-50", 64, 56, 64, 3, 1),
    ("ResNet-50", 64, 56, 256, 1, 1),
    ("ResNet-50", 256, 56, 128, 1, 1),
    ("ResNet-50", 128, 56, 128, 3, 2),
    ("ResNet-50", 256, 56, 512, 1, 2),
    ("ResNet-50", 128, 28, 128, 3, 1),
    ("ResNet-50", 512, 28, 256, 1, 1),
    ("ResNet-50", 256, 14, 256, 3, 1),
    ("ResNet-50", 256, 14, 1024, 1, 1),
    ("ResNet-50", 512, 7, 512, 3, 1),
    ("ResNet-50", 2048, 7, 512, 1, 1),
    ("MobileNet-v2", 3, 224, 32, 3, 2),
    ("MobileNet-v2", 32, 112, 16, 1, 1),
    ("MobileNet-v2", 16, 112, 96, 1, 1),
    ("MobileNet-v2", 144, 56, 24, 1, 1),
    ("MobileNet-v2", 192, 28, 32, 1, 1),
    ("MobileNet-v2", 64, 14, 384, 1, 1),
    ("MobileNet-v2", 960, 7, 160, 1, 1),
    ("MobileNet-v2", 320, 7, 1280, 1, 1),
    ("YOLOv8n", 3, 640, 16, 3, 2),
    ("YOLOv8n", 16, 320, 32, 3, 2),
    ("YOLOv8n", 16, 160, 16, 3, 1),
    ("YOLOv8n", 32, 160, 64, 3, 2),
    ("YOLOv8n", 32, 80, 32, 3, 1),
    ("YOLOv8n", 64, 40, 64, 3, 1),
    ("YOLOv8n", 128, 20, 128, 3, 1),
    ("YOLOv8n", 384, 40, 128, 1, 1),
)
# MobileNet-v2: channels, height and width, stride
DEPTHWISE = (
    (32, 112, 1),
    (96, 112, 2),
    (144, 56, 1),
    (144, 56, 2),
    (192, 28, 1),
    (384, 14, 1),
    (576, 14, 2),
    (960, 7, 1),
)


def _conv(family, name, c, n, o, k, stride, groups, batch=1):
    inputs = {"x": (NORMAL, batch, c, n, n), "w": (NORMAL, o, c // groups, k, k), "b": (NORMAL, o)}
    code = f"conv2d(x, w, b, {stride}, {k // 2}, 1, {groups})"
    size = f"{batch}x{c}x{n}x{n} -> {o}, {k}x{k}/{stride}"
    return case(family, name, inputs, f"t.{code}", f"F.{code}", "", size=size)


def conv2d():
    for name, c, n, o, k, stride in CONVOLUTIONS:
        yield _conv("conv2d", name, c, n, o, k, stride, 1)
    for name, c, n, o, k, stride in CONVOLUTIONS[2:13:4]:
        yield _conv("conv2d", name, c, n, o, k, stride, 1, batch=8)


def depthwise():
    for c, n, stride in DEPTHWISE:
        yield _conv("depthwise", "MobileNet-v2", c, n, c, 3, stride, c)
    yield _conv("depthwise", "ConvNeXt-T", 96, 56, 96, 7, 1, 96)
    yield _conv("depthwise", "ConvNeXt-T", 384, 14, 384, 7, 1, 384)
    yield _conv("depthwise", "MobileNet-v2", 144, 56, 144, 3, 1, 144, batch=8)


# ---- bound by Python ------------------------------------------------------------------------------------------------


def overhead():
    vector = {"x": (NORMAL, 10), "y": (NORMAL, 10)}
    for name, *codes in (
        ("add", "x + y"),
        ("add scalar", "x + 1.5"),
        ("exp", "t.exp(x)"),
        ("sum", "x.sum()"),
        ("view", "x.view(2, 5)", None, "x.reshape(2, 5)"),
        ("getitem", "x[3]"),
        ("slice", "x[2:5]"),
        ("softmax", "t.softmax(x, 0)", None, ""),
    ):
        yield case("overhead", name, vector, *codes, size="10")
    yield case("overhead", "matmul", {"x": (NORMAL, 2, 5), "y": (NORMAL, 5, 2)}, "x @ y")


FAMILIES = {
    make.__name__: make
    for make in (
        elementwise,
        reductions,
        softmax,
        transposed,
        gathers,
        sort,
        sgemm,
        bf16,
        attention,
        conv2d,
        depthwise,
        overhead,
    )
}
