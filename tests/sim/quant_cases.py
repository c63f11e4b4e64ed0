"""What products with quantised weights on a GPU are held to, whatever runs its kernels."""

import numpy as np

import tensorlib
from tensorlib.quant import formats
from tensorlib.quant.tensor import from_bytes
from tensorlib.tensor import from_numpy

U = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}
# where a block's halves lie, which are given sizes that weights have; mxfp4's exponent is a byte
SCALES = {"q4_1": (0, 2), "q5_1": (0, 2), "q2_k": (80, 82), "q3_k": (108,), "q4_k": (0, 2), "q5_k": (0, 2)}
SCALES |= {"q6_k": (208,), "mxfp4": ()}


def weight(name, n, k, seed=0):
    """A QTensor [n, k] of random blocks on the CPU."""
    row, rng = formats.get(name), np.random.default_rng(seed)
    data = rng.integers(0, 256, (n * k // row.elements, row.nbytes), dtype=np.uint8)
    for at in SCALES.get(name, (0,)):
        data[:, at : at + 2] = rng.uniform(-0.01, 0.01, len(data)).astype(np.float16)[:, None].view(np.uint8)
    if name == "mxfp4":
        data[:, 0] = rng.integers(110, 122, len(data))
    return from_bytes(data.tobytes(), (n, k), name)


def values(x):
    """A tensor's elements as float64, wherever it is."""
    return x.to("cpu").to("f64").numpy()


def activations(m, k, dtype="f32", seed=1):
    """(x on the CPU, the same on the device)."""
    rng = np.random.default_rng(seed)
    x = from_numpy((rng.standard_normal((m, k)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)).to(dtype)
    return x, x.to("cuda:0")


def quantised(x):
    """x as the kernels round it: int8 per 32."""
    v = x.astype(np.float32).reshape(-1, 32)
    top = np.abs(v).max(1, keepdims=True)
    scale = np.where(top > 0, np.float32(127) / np.where(top > 0, top, 1), 0).astype(np.float32)
    d = (top.astype(np.float64) * (1 / 127)).astype(np.float32).astype(np.float64)
    return (np.rint(v * scale).astype(np.float64) * d).reshape(x.shape)


def check_linear(name, n, k, m, dtype="f32", residual=False):
    """A product on the device against float64, within the bounds of its kind of kernel.

    Terms that cancel are bounded by S, a group's largest |w|: of 32 random codes the least is below a third of the
    largest, and their weights differ by 2 S at most, so |d code| <= 3 S and |m| <= 2 S.
    """
    w, (x, there) = weight(name, n, k), activations(m, k, dtype)
    added = activations(m, n, dtype, 2) if residual else None
    got = w.to("cuda:0").linear(there, added[1] if residual else None)
    assert got.dtype.name == dtype and got.shape == (m, n)
    dense, exact = values(w.dequantize(cls=tensorlib.Tensor)), values(x)
    plus = values(added[0]) if residual else np.zeros((m, n))
    sums = (k / 16 + 24) * U["f32"]
    spread = np.abs(dense).reshape(n, -1, 32).max(2).repeat(32, 1)
    if m <= 8:  # integers are exact: what rounds are scales and sums in f32, of terms up to (3 + 2) S
        exact, each = quantised(exact), 5 * sums
    else:  # (x) S + (w) 2 (3 S) + 2 S + S in f16, as kernels_triton/quant_matmul.py says; `low`: far below the largest
        each = 10 * U["f16"] * (1 + 2.0**-8) + 5 * k * U["f32"]
    low = 2.0**-24 * np.abs(exact).max(1, keepdims=True) * np.abs(dense).sum(1) if m > 8 else 0
    want = exact @ dense.T + plus
    bound = each * (np.abs(exact) @ spread.T) + low + U["f32"] * np.abs(plus) + 1e-30
    bound += 0 if dtype == "f32" else U[dtype] * (np.abs(want) + bound)
    np.testing.assert_array_less(np.abs(values(got) - want), bound)


def experts_in(name, experts, inner, d):
    """[gate and up, down] as QTensors, and what those stand for, of gaussian weights."""
    rng = np.random.default_rng(6)
    dense = [
        from_numpy((rng.standard_normal(shape) * shape[-1] ** -0.5).astype("f4"))
        for shape in ((experts, 2 * inner, d), (experts, d, inner))
    ]
    quantised = [tensorlib.quantize(w, name) for w in dense]
    return quantised, [w.dequantize(cls=tensorlib.Tensor) for w in quantised]


def check_experts(device, name, tokens, experts, top_k, dtype="f32"):
    """A mixture on the device against one of floats on the CPU; the same bits and launches whoever is chosen.

    Rounded to f16 are x, the hidden layer and the weights: 2^-11 each, as in a prompt's products.
    """
    inner, d = (96, 64) if formats.get(name).elements == 32 else (256, 256)
    weights, dense = experts_in(name, experts, inner, d)
    x, logits = activations(tokens, d, dtype)[0], activations(tokens, experts)[0]
    expected = values(tensorlib.moe(x.to("f32"), logits, *dense, top_k))
    weights, found, launches = [w.to("cuda:0") for w in weights], [], []
    for scores in (logits, -logits, logits):
        operands = [a.to("cuda:0") for a in (x, scores)]
        before = device.launches
        found.append(tensorlib.moe(*operands, *weights, top_k))
        launches.append(device.launches - before)
    assert launches == launches[:1] * 3 and launches[0] <= 20
    tolerance = 10 * U["f16"] + (U[dtype] if dtype != "f32" else 0)
    assert np.abs(values(found[0]) - expected).max() <= tolerance * np.abs(expected).max()
    assert found[0].dtype.name == dtype and np.array_equal(values(found[0]), values(found[2]))
