"""Matrix products on GPUs, interpreted: edges of tiles, parts of K, few rows, batches, dtypes, epilogues."""

import math

import numpy as np
import pytest

import tensorlib
from kernels_triton import turned
from tensorlib.dtype import get
from tensorlib.errors import DTypeError
from tensorlib.ops import linalg, precision, products

U = {"f16": 2.0**-11, "bf16": 2.0**-8, "f32": 2.0**-24, "f64": 2.0**-53}
TF32 = 2.0**-9  # of a product of two numbers that lose 13 bits each
random = np.random.default_rng(4)


def draw(shape, dtype):
    kind = get(dtype).numpy_dtype()
    if kind.kind in "iu":
        info = np.iinfo(kind)
        return random.integers(info.min, info.max, shape, kind, endpoint=True)
    return random.standard_normal(shape).astype(kind) if dtype != "bool" else random.random(shape) < 0.5


def on_gpu(x):
    return tensorlib.from_numpy(x).to("cuda:0")


def bound(x, y, dtype, lost=0.0):
    """How far a product may be from the exact one: of the sums, of one rounding to `dtype`, and what its terms lose."""
    x, y = np.abs(x.astype(np.float64)), np.abs(y.astype(np.float64))
    whole = np.matmul(x, y)
    return whole * (x.shape[-1] * U["f64" if dtype == "f64" else "f32"] + U[dtype] + lost) + 2.0**-24


def agrees(x, y, dtype, out=None, lost=0.0):
    """The product of two NumPy arrays on the GPU is within the bound."""
    out = on_gpu(x) @ on_gpu(y) if out is None else out
    assert out.dtype.name == dtype
    found = out.to("cpu").to("f64").numpy()
    exact = np.matmul(x.astype(np.float64), y.astype(np.float64))
    assert (np.abs(found - exact) <= bound(x, y, dtype, lost)).all(), np.abs(found - exact).max()


@pytest.mark.parametrize("dtype", ["f16", "f32", "f64"])
@pytest.mark.parametrize("turned", ["", "a", "b", "ab"])
@pytest.mark.parametrize("m, n, k", [(37, 70, 45), (130, 67, 64), (20, 300, 96)])
def test_edges_and_transposed_operands(device, dtype, turned, m, n, k):
    x, y = (draw(s, dtype) for s in ((m, k), (k, n)))
    a = on_gpu(np.ascontiguousarray(x.T)).T if "a" in turned else on_gpu(x)
    b = on_gpu(np.ascontiguousarray(y.T)).T if "b" in turned else on_gpu(y)
    agrees(x, y, dtype, a @ b)


def test_operands_in_no_order(device):
    x, y = draw((66, 90), "f32"), draw((90, 134), "f32")
    agrees(x[::2, ::3], y[::3, ::2], "f32", on_gpu(x)[::2, ::3] @ on_gpu(y)[::3, ::2])


@pytest.mark.parametrize("arch", [75, 80, 90])
def test_large_tiles(device, monkeypatch, arch):
    monkeypatch.setattr(device, "arch", arch)
    x, y = draw((257 + arch, 128), "bf16"), draw((128, 528), "bf16")
    agrees(x, y, "bf16")


@pytest.mark.parametrize("order", ["", "a", "b", "ab"])
def test_persistent_programs(device, monkeypatch, order):
    monkeypatch.setattr(device, "arch", 90)
    x, y = draw((264, 200), "f16"), draw((200, 520), "f16")
    a = on_gpu(np.ascontiguousarray(x.T)).T if "a" in order else on_gpu(x)
    b = on_gpu(np.ascontiguousarray(y.T)).T if "b" in order else on_gpu(y)
    kernels = len([k for k, _ in device.ready if k.fn.__name__ == "persistent"])
    for _ in range(2):  # the second call is one seen before
        agrees(x, y, "f16", a @ b)
    a, b = a * 2, b * 2
    agrees(x * 2, y * 2, "f16", a @ b)
    assert len([k for k, _ in device.ready if k.fn.__name__ == "persistent"]) == kernels + 1
    agrees(x[1:], y, "f16", on_gpu(x).reshape(-1)[200:].reshape(263, 200) @ b / 2)  # an address 16 bytes divide
    odd = on_gpu(np.concatenate([[np.float16(0)], x.reshape(-1)]))[1:].reshape(264, 200)
    agrees(x, y, "f16", odd @ on_gpu(y))  # one they do not


@pytest.fixture
def tf32(device, monkeypatch):
    """Products of f32 on tensor cores of sm_90, operands turned whatever the size."""
    monkeypatch.setattr(device, "arch", 90)
    monkeypatch.setattr(turned, "LEAST", 1)
    monkeypatch.setattr(turned, "WORTH", 0)
    precision.set_float32_matmul_precision("medium")
    yield device
    precision.set_float32_matmul_precision("highest")


def ran(device):
    """How many persistent kernels there are."""
    return len([k for k, _ in device.ready if k.fn.__name__ == "persistent"])


@pytest.mark.parametrize("order", ["", "a", "ab", "b"])
def test_tf32_puts_operands_in_order(tf32, order):
    """K of any length: rows of a copy are such that the copy engine may read them; those of an operand may not be."""
    x, y = draw((262, 90), "f32"), draw((90, 520), "f32")
    a = on_gpu(np.ascontiguousarray(x.T)).T if "a" in order else on_gpu(x)
    b = on_gpu(np.ascontiguousarray(y.T)).T if "b" in order else on_gpu(y)
    before, kernels = tf32.launches, ran(tf32)
    out = a @ b
    assert tf32.launches == before + 1 + {"": 1, "a": 2, "ab": 1, "b": 0}[order]
    assert ran(tf32) == kernels + (order == "a")
    agrees(x, y, "f32", out, TF32)


def test_tf32_of_batches(tf32):
    """What is the same for all matrices of a batch is turned once."""
    x, y = draw((2, 3, 40, 36), "f32"), draw((36, 70), "f32")
    agrees(x, y, "f32", lost=TF32)
    agrees(x, np.broadcast_to(y, (3, 36, 70)), "f32", on_gpu(x) @ on_gpu(y).expand((3, 36, 70)), TF32)
    agrees(x, draw((2, 1, 36, 65), "f32"), "f32", lost=TF32)
    y = draw((3, 2, 36, 33), "f32")
    agrees(x, y.transpose(1, 0, 2, 3), "f32", on_gpu(x) @ on_gpu(y).permute(1, 0, 2, 3), TF32)


@pytest.mark.parametrize("m, n, k", [(20, 24, 2100), (40, 50, 1600)])
def test_k_in_parts_gives_the_same_bits(device, m, n, k):
    x, y = draw((m, k), "f16"), draw((k, n), "f16")
    a, b = on_gpu(x), on_gpu(y)
    before = device.launches
    out = a @ b
    assert device.launches == before + 2
    agrees(x, y, "f16", out)
    again = [(a @ b).to("cpu").numpy().tobytes() for _ in range(2)]
    assert again[0] == again[1] == out.to("cpu").numpy().tobytes()


@pytest.mark.parametrize("dtype, m", [("f16", 1), ("bf16", 3), ("f32", 1), ("f32", 7), ("f64", 2)])
@pytest.mark.parametrize("n, k", [(9, 1026), (40, 2200)])
def test_few_rows(device, dtype, m, n, k):
    x, w = draw((m, k), dtype), draw((n, k), dtype)
    agrees(x, w.T, dtype, tensorlib.linear(on_gpu(x), on_gpu(w)))
    agrees(w, x.T, dtype, on_gpu(w) @ on_gpu(x).T)
    agrees(x, np.ascontiguousarray(w.T), dtype)


def test_batches(device):
    x, y = draw((3, 1, 5, 20), "f32"), draw((4, 20, 17), "f32")
    agrees(x, y, "f32")
    x, y = draw((2, 3, 2, 18, 16), "f32"), draw((2, 2, 3, 16, 17), "f32")
    agrees(x, y.transpose(1, 2, 0, 3, 4), "f32", on_gpu(x) @ on_gpu(y).permute(1, 2, 0, 3, 4))
    x, y = draw((2, 1, 3, 3, 4), "f32"), draw((3, 2, 2, 4, 3), "f32")  # three dims that do not merge
    before = device.launches
    agrees(x, y.transpose(2, 1, 0, 3, 4), "f32", on_gpu(x) @ on_gpu(y).permute(2, 1, 0, 3, 4))
    assert device.launches == before + 2


def test_nothing_to_sum(device):
    out = on_gpu(np.zeros((3, 0), "f4")) @ on_gpu(np.zeros((0, 70), "f4"))
    assert out.shape == (3, 70) and not out.to("cpu").numpy().any()


@pytest.mark.parametrize(
    "a, b", [("i8", "i8"), ("u8", "u8"), ("u8", "i8"), ("i32", "bool"), ("i64", "u8"), ("u16", "u16")]
)
def test_integers_wrap(device, a, b):
    x, y = draw((33, 50), a), draw((50, 70), b)
    out = on_gpu(x) @ on_gpu(y)
    exact = np.matmul(x.astype(np.int64), y.astype(np.int64))
    found = out.to("cpu").numpy()
    assert (found == exact.astype(found.dtype)).all()


@pytest.mark.parametrize(
    "a, b, dtype", [("f16", "bf16", "f32"), ("i32", "f16", "f16"), ("u8", "bf16", "bf16"), ("f32", "f64", "f64")]
)
def test_mixed_operands(device, a, b, dtype):
    x, y = draw((18, 33), a), draw((33, 70), b)
    x = x % 100 if a == "i32" else x
    agrees(x, y, dtype)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("kind", ["f8e4m3", "f8e5m2"])
def test_float8(device, monkeypatch, arch, kind):
    monkeypatch.setattr(device, "arch", arch)
    x, y = draw((33 + arch, 64), kind), draw((64, 70), kind)
    found = (on_gpu(x) @ on_gpu(y)).to("cpu").to("f32").numpy()
    exact = np.matmul(x.astype(np.float32), y.astype(np.float32))
    assert (
        found == exact.astype(get(kind).numpy_dtype()).astype(np.float32)
    ).mean() > 0.98  # sums next to a tie may differ
    assert np.allclose(found, exact, rtol=0.13 if kind == "f8e4m3" else 0.26, atol=0.02)
    agrees(x, y.astype("f2"), "f16")


ACTS = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / 2**0.5)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("m, n, k", [(1, 20, 40), (50, 20, 40), (20, 24, 2048), (140, 528, 64)])
def test_what_follows_the_sums(device, act, m, n, k):
    x, w, bias, residual = (draw(s, "f32") for s in ((m, k), (n, k), (n,), (m, n)))
    out = tensorlib.empty((m, n), device="cuda:0")
    a, b = on_gpu(x / k**0.5), on_gpu(w).T
    products.launch(out, a, b, on_gpu(bias), act=act, residual=on_gpu(residual))
    exact = ACTS[act]((x / k**0.5).astype("f8") @ w.T.astype("f8") + bias) + residual
    assert np.allclose(out.to("cpu").numpy(), exact, rtol=2e-6 * k**0.5, atol=2e-5)


def test_adding_to_what_is_there(device):
    x, w, bias = draw((9, 40), "f32"), draw((20, 40), "f32"), draw((40,), "f32")[::2]
    out = on_gpu(np.ones((9, 20), "f4"))
    linalg._linear_into(out, on_gpu(x), on_gpu(w), on_gpu(bias), accumulate=True)
    assert np.allclose(out.to("cpu").numpy(), 1 + x @ w.T + bias, rtol=1e-5, atol=1e-4)


def test_precision_of_f32(device):
    x, y = draw((40, 64), "f32"), draw((64, 96), "f32")
    exact, worst = x.astype("f8") @ y.astype("f8"), {}
    try:
        for name in precision.PRECISIONS:
            tensorlib.set_float32_matmul_precision(name)
            assert tensorlib.get_float32_matmul_precision() == name
            worst[name] = np.abs((on_gpu(x) @ on_gpu(y)).to("cpu").numpy() - exact).max()
    finally:
        tensorlib.set_float32_matmul_precision("highest")
    assert worst["highest"] < 1e-5 and worst["high"] < 1e-4 and 1e-4 < worst["medium"] < 0.1, worst
    with pytest.raises(DTypeError, match="highest, high, medium"):
        tensorlib.set_float32_matmul_precision("low")
