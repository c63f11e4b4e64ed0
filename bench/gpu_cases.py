"""What `bench.gpu` measures: families of cases, each an expression of ours and one of PyTorch's over the same inputs.

In an expression `t` is the library (tensorlib or torch), `F` torch.nn.functional, the other names the inputs. Inputs
are (kind, *shape): a dtype, "bool", "index N", or a format of quantised weights, which PyTorch gets as f16.
"""

from typing import NamedTuple

from bench.ops_cases import CONVOLUTIONS

BYTES = {"f32": 4, "f16": 2, "bf16": 2, "f64": 8, "bool": 1}
BLOCKS = {"q4_0": (32, 18), "q8_0": (32, 34), "q4_k": (256, 144), "q6_k": (256, 210)}  # weights and bytes
TORCH = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64"}


class Case(NamedTuple):
    """One measurement. `amount`: bytes, floating-point operations or elements of a call, in units of `unit` * s.

    `reference`: what `unit` is a share of: "copy", or the dtype of the products whose peak it is. `precision`: of f32
    products, as tensorlib names it.
    """

    family: str
    name: str
    size: str
    inputs: dict
    tensorlib: str
    torch: str
    amount: float
    unit: str
    reference: str = ""
    precision: str = "highest"


def nbytes(kind, *shape):
    """Bytes of an input.

    >>> nbytes("q4_0", 32, 64), nbytes("f16", 3)
    (1152, 6)
    """
    count = 1
    for n in shape:
        count *= n
    if kind in BLOCKS:
        elements, size = BLOCKS[kind]
        return count // elements * size
    return count * (8 if kind.startswith("index") else BYTES[kind])


def moved(family, name, inputs, ours, theirs=None, out=0.0):
    """A case bound by memory: bytes of all inputs, read once, and `out` more."""
    size = " ".join("x".join(map(str, shape)) for _, *shape in list(inputs.values())[:1])
    total = sum(nbytes(*x) for x in inputs.values()) + out
    return Case(family, name, size, inputs, ours, ours if theirs is None else theirs, total / 1e9, "GB/s", "copy")


# ---- bound by memory -------------------------------------------------------------------------------------------------


def elementwise(quick):
    n = 1 << (24 if quick else 26)
    side = 4096 if quick else 8192
    yield moved("elementwise", "add f32", {"x": ("f32", n), "y": ("f32", n)}, "x + y", out=4 * n)
    yield moved("elementwise", "add bf16", {"x": ("bf16", n), "y": ("bf16", n)}, "x + y", out=2 * n)
    yield moved("elementwise", "exp f32", {"x": ("f32", n)}, "t.exp(x)", out=4 * n)
    yield moved("elementwise", "silu f16", {"x": ("f16", n)}, "t.silu(x)", "F.silu(x)", out=2 * n)
    yield moved("elementwise", "f32 to f16", {"x": ("f32", n)}, "x.to('f16')", "x.to(t.float16)", out=2 * n)
    inputs = {"m": ("bool", n), "x": ("f32", n), "y": ("f32", n)}
    yield moved("elementwise", "where f32", inputs, "t.where(m, x, y)", out=4 * n)
    inputs = {"x": ("f32", side, side), "y": ("f32", side)}
    yield moved("elementwise", "add a row", inputs, "x + y", out=4 * side * side)
    inputs = {"x": ("f32", side, side), "y": ("f32", side, side)}
    yield moved("transposed", "add x.T", inputs, "x.T + y", out=4 * side * side)
    yield moved("transposed", "copy x.T f16", {"x": ("f16", side, side)}, "x.T.contiguous()", out=2 * side * side)


def reductions(quick):
    shapes = ((4096, 4096),) if quick else ((8192, 8192), (1 << 20, 64), (64, 1 << 20))
    for shape in shapes:
        for dtype in ("f32", "f16"):
            for name, code in (("sum all", "t.sum(x)"), ("sum last", "t.sum(x, -1)"), ("sum first", "t.sum(x, 0)"),
                               ("amax last", "t.amax(x, -1)")):  # fmt: skip
                yield moved("reductions", f"{name} {dtype}", {"x": (dtype, *shape)}, code)
        yield moved("reductions", "argmax last f32", {"x": ("f32", *shape)}, "t.argmax(x, -1)")


def softmax(quick):
    shapes = ((4096, 4096),) if quick else ((8192, 8192), (512, 128_256), (1 << 18, 128))
    for rows, n in shapes:
        for dtype in ("f32", "f16"):
            inputs = {"x": (dtype, rows, n), "w": (dtype, n), "b": (dtype, n)}
            out = rows * n * BYTES[dtype]
            one = {"x": inputs["x"]}
            yield moved("softmax", f"softmax {dtype}", one, "t.softmax(x, -1)", out=out)
            yield moved("softmax", f"log_softmax {dtype}", one, "t.log_softmax(x, -1)", out=out)
            two = {k: inputs[k] for k in "xw"}
            theirs = "F.rms_norm(x, (x.shape[1],), w, 1e-5)"
            yield moved("norms", f"rms_norm {dtype}", two, "t.rms_norm(x, w, 1e-5)", theirs, out)
            theirs = "F.layer_norm(x, (x.shape[1],), w, b)"
            yield moved("norms", f"layer_norm {dtype}", inputs, "t.layer_norm(x, w, b)", theirs, out)


def gathers(quick):
    rows, n = (32_000, 4096) if quick else (128_000, 16_384)
    picked = nbytes("f16", n, 4096)
    inputs = {"i": (f"index {rows}", n), "x": ("f16", rows, 4096)}
    case = moved("gathers", "index_select rows f16", inputs, "t.index_select(x, 0, i)")
    yield case._replace(amount=2 * picked / 1e9, size=f"{n} of {rows}x4096")
    inputs = {"x": ("f32", 4096, 4096), "i": ("index 4096", 4096, 4096)}
    yield moved("gathers", "gather dim 1 f32", inputs, "t.gather(x, 1, i)", out=4 * 4096 * 4096)
    inputs["y"] = ("f32", 4096, 4096)
    yield moved("scatters", "scatter_add dim 0 f32", inputs, "t.scatter_add(x, 0, i, y)", out=4 * 4096 * 4096)


def sorts(quick):
    for shape in ((1 << 20,), (4096, 4096)) if quick else ((1 << 24,), (4096, 4096), (1 << 16, 256)):
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        size, inputs = "x".join(map(str, shape)), {"x": ("f32", *shape)}
        for name, code in (("sort", "t.sort(x)"), ("topk 8", "t.topk(x, 8)")):
            yield Case("sorts", f"{name} f32", size, inputs, code, code, count / 1e9, "G elements/s")


# ---- bound by arithmetic ---------------------------------------------------------------------------------------------


def matmul(quick):
    sizes = (1024, 4096) if quick else (512, 1024, 2048, 4096, 8192)
    for label, dtype, precision in (("f16", "f16", "highest"), ("bf16", "bf16", "highest"), ("tf32", "f32", "medium"),
                                    ("f32", "f32", "highest")):  # fmt: skip
        for n in sizes:
            inputs = {"x": (dtype, n, n), "y": (dtype, n, n)}
            for name, code in (("x @ y", "x @ y"), ("x @ y.T", "x @ y.T")):
                if name == "x @ y" or dtype != "f32":
                    work = 2 * n**3 / 1e12
                    yield Case(
                        "matmul", f"{name} {label}", str(n), inputs, code, code, work, "TFLOP/s", label, precision
                    )


def conv2d(quick):
    shapes = [shape[1:] for shape in CONVOLUTIONS if shape[0] == "ResNet-50"]
    batch = 32
    for c, n, o, k, stride in shapes[1:11:4] if quick else shapes:
        side = (n + 2 * (k // 2) - k) // stride + 1
        inputs = {"x": ("f16", batch, c, n, n), "w": ("f16", o, c, k, k)}
        code = f"conv2d(x, w, None, {stride}, {k // 2})"
        work = 2 * batch * o * side * side * c * k * k / 1e12
        size = f"{batch}x{c}x{n}x{n} -> {o}, {k}x{k}/{stride}"
        yield Case("conv2d", "ResNet-50 f16", size, inputs, f"t.{code}", f"F.{code}", work, "TFLOP/s", "f16")


SDPA = "scaled_dot_product_attention(q, k, v, is_causal={}, enable_gqa={})"


def attention(quick):
    for d in (64, 128):
        for n in (2048,) if quick else (1024, 4096, 16_384):
            heads = 2048 // d
            inputs = dict.fromkeys("qkv", ("f16", 1, heads, n, d))
            for causal in (True, False):
                code, work = SDPA.format(causal, False), 4 * heads * n * n * d / (1 + causal) / 1e12
                name, size = f"{'causal' if causal else 'full'} f16", f"{heads} heads {n}x{d}"
                yield Case("prefill", name, size, inputs, f"t.{code}", f"F.{code}", work, "TFLOP/s", "f16")
    for batch, n in ((1, 4096),) if quick else ((1, 1024), (1, 16_384), (16, 4096)):
        inputs = {"q": ("f16", batch, 32, 1, 128), "k": ("f16", batch, 8, n, 128), "v": ("f16", batch, 8, n, 128)}
        code = SDPA.format(False, True)
        case = moved("decode", "attention f16", inputs, f"t.{code}", f"F.{code}")
        yield case._replace(size=f"{batch}x32/8 heads {n}x128")


def quantised(quick):
    """Products of one row, and of a prompt's; PyTorch has the weights in f16, and moves three to four times as much."""
    for format in BLOCKS:
        for n, k in ((4096, 4096),) if quick else ((4096, 4096), (14_336, 4096), (4096, 14_336), (128_256, 4096)):
            inputs = {"x": ("f16", 1, k), "w": (format, n, k)}
            case = moved("matvec", format, inputs, "w.linear(x)", "F.linear(x, w)")
            yield case._replace(size=f"{n}x{k}", amount=nbytes(format, n, k) / 1e9)
        inputs = {"x": ("f16", 512, 4096), "w": (format, 14_336, 4096)}
        work = 2 * 512 * 14_336 * 4096 / 1e12
        size = "512 rows, 14336x4096"
        yield Case("prompt", format, size, inputs, "w.linear(x)", "F.linear(x, w)", work, "TFLOP/s", "f16")


# ---- bound by Python -------------------------------------------------------------------------------------------------


def launches(quick):
    vector = {"x": ("f32", 1000), "y": ("f32", 1000)}
    square = {"x": ("f16", 64, 64), "y": ("f16", 64, 64)}
    for name, inputs, code in (("add", vector, "x + y"), ("sum", {"x": ("f32", 1000)}, "t.sum(x)"),
                               ("matmul", square, "x @ y")):  # fmt: skip
        yield Case("launches", name, "small", inputs, code, code, 1e-6, "calls/us")


FAMILIES = {
    make.__name__: make
    for make in (elementwise, reductions, softmax, gathers, sorts, matmul, conv2d, attention, quantised, launches)
}
