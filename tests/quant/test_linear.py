"""Products with quantised weights, on every CPU level that this machine has, against float64 and derived bounds."""

import ctypes
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlib import backend
from tensorlib.device import Array
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.quant import decode, formats
from tensorlib.quant.tensor import MATVEC_ROWS, QTensor, from_bytes
from tests.quant.conftest import FLOATS, HALVES

# format -> byte offsets of f16 in a block, and where its integers begin and end
FORMATS = {
    "q4_0": ((0,), 2, 18),
    "q4_1": ((0, 2), 4, 20),
    "q5_0": ((0,), 2, 22),
    "q5_1": ((0, 2), 4, 24),
    "q8_0": ((0,), 2, 34),
    "q8_1": ((0,), 4, 36),
    "q1_0": ((0,), 2, 18),
    "q2_0": ((0,), 2, 18),
    "q2_k": ((80, 82), 16, 80),
    "q3_k": ((108,), 0, 96),
    "q4_k": ((0, 2), 16, 144),
    "q5_k": ((0, 2), 16, 176),
    "q6_k": ((208,), 0, 192),
    "q8_k": ((), 4, 260),
    "iq4_nl": ((0,), 2, 18),
    "iq4_xs": ((0,), 8, 136),
    "tq1_0": ((52,), 0, 52),
    "tq2_0": ((64,), 0, 64),
    "mxfp4": ((), 1, 17),
    "nvfp4": ((), 4, 36),
}
# bytes of integers that make the least and the greatest weights
EXTREMES = {"mxfp4": (0x77, 0xFF), "nvfp4": (0x77, 0xFF), **dict.fromkeys(("q8_0", "q8_1", "q8_k"), (0x80, 0x7F))}
EPS = 2.0**-24


def decoded(fmt, data, n, k):
    """Their values as float64; test_dequant.py holds this reference to the gguf package and to llama.cpp."""
    with np.errstate(all="ignore"):
        return decode.dequantize(data.reshape(-1), formats.get(fmt)).reshape(n, k).astype(np.float64)


def blocks(fmt, n, k, rng):
    """Random blocks of an [n, k] weight, and their values."""
    row = formats.get(fmt)
    data = rng.integers(0, 256, (n * k // row.elements, row.nbytes), dtype=np.uint8)
    for at in FORMATS[fmt][0]:
        data[:, at : at + 2] = rng.uniform(-0.01, 0.01, len(data)).astype(np.float16).view(np.uint8).reshape(-1, 2)
    if fmt == "mxfp4":
        data[:, 0] = rng.integers(110, 128, len(data))
    if fmt == "q8_k":
        data[:, :4] = rng.uniform(-0.01, 0.01, len(data)).astype(np.float32).view(np.uint8).reshape(-1, 4)
    data = data.reshape(n, -1)
    return data, decoded(fmt, data, n, k)


def magnitudes(fmt, data, n, k):
    """No less than |d| (u + bias) + |m| of each weight, the numbers that its product is summed from: with the greatest
    and the least u a weight is d u - d bias + m, and the bias is at most the greatest u.
    """
    _, start, stop = FORMATS[fmt]
    total = 0
    for byte in EXTREMES.get(fmt, (0, 255)):
        some = data.reshape(-1, formats.get(fmt).nbytes).copy()
        some[:, start:stop] = byte
        total = total + np.abs(decoded(fmt, some, n, k))
    return 2 * total


def array(x):
    out = Array.empty(x.shape, x.dtype.name.replace("float", "f").replace("int", "i"))
    ctypes.memmove(out.ptr, np.ascontiguousarray(x).ctypes.data, x.nbytes)
    return out


def values(x):
    return np.ctypeslib.as_array((ctypes.c_float * x.numel()).from_address(x.ptr)).reshape(x.shape).copy()


def rounded(x):
    """x as the kernels round it: int8 per 32, scale amax / 127 in f32."""
    v = x.reshape(-1, 32)
    top = np.abs(v).max(1, keepdims=True)
    scale = np.where(top > 0, np.float32(127) / np.where(top > 0, top, 1), 0).astype(np.float32)
    return (np.rint(v * scale).astype(np.float64) * (top * np.float32(1 / 127)).astype(np.float64)).reshape(x.shape)


def check(fmt, n, k, m, seed, prepacked=False):
    rng = np.random.default_rng(seed)
    data, w = blocks(fmt, n, k, rng)
    x = (rng.standard_normal((m, k)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
    weight = from_bytes(data, (n, k), fmt)
    got = values((weight.prepacked() if prepacked else weight).linear(array(x)))
    # Integer sums are exact; what rounds are the f32 scales (5 per block) and the sum over k / 32 terms per lane, then
    # 16 lanes.
    bound = (k / 32 + 24) * EPS * (np.abs(rounded(x)) @ magnitudes(fmt, data, n, k).T) + 1e-30
    np.testing.assert_array_less(np.abs(got - rounded(x) @ w.T), bound)
    # against unrounded activations: each is off by at most half a step of its block, amax / 254 (and f32's rounding of
    # it)
    step = np.abs(x).reshape(m, -1, 32).max(2).repeat(32, 1) / 254 * (1 + 1e-5)
    np.testing.assert_array_less(np.abs(got - x.astype(np.float64) @ w.T), step @ np.abs(w).T + bound)


@pytest.mark.parametrize("fmt", FORMATS)
@given(st.data())
def test_linear(fmt, data):
    unit = max(32, formats.get(fmt).elements)
    k = unit * data.draw(st.integers(1, 6 if unit == 256 else 20), label="blocks")
    n = data.draw(st.integers(1, 17) | st.just(40), label="n")
    m = data.draw(st.sampled_from([1, MATVEC_ROWS, MATVEC_ROWS + 1, 12, 13, 30]), label="m")
    check(fmt, n, k, m, data.draw(st.integers(0, 99), label="seed"))


@pytest.mark.parametrize("m", [1, MATVEC_ROWS + 1])
@pytest.mark.parametrize("fmt", FORMATS)
def test_special_scales(fmt, m):
    """NaN, infinities, zeros, denormals, the largest: each in a row of its own, where all blocks have it."""
    row, k, special = formats.get(fmt), 512, HALVES.view(np.uint8).reshape(-1, 2)
    if fmt == "q8_k":
        special = np.delete(FLOATS, 5).view(np.uint8).reshape(-1, 4)  # without the largest: its weights are infinite
    if fmt in ("mxfp4", "nvfp4"):  # exponents: denormal scales, and as large as sums of 512 allow; 127 is NVFP4's zero
        special = np.array([[0], [1], [2], [100], [127], [128], [230 if fmt == "mxfp4" else 255]], np.uint8)
    n, rng = len(special), np.random.default_rng(6)
    data, _ = blocks(fmt, n, k, rng)
    at = {"mxfp4": (0,), "q8_k": (0,), "nvfp4": range(4)}.get(fmt, FORMATS[fmt][0][:1])
    for offset in at:
        places = data.reshape(n, -1, row.nbytes)[:, :, offset : offset + special.shape[1]]
        places[:] = special[:, None]
    x = rng.uniform(0.5e-6, 1e-6, (m, k)).astype(np.float32)  # of one sign: nothing is 0 * inf but zero weights
    got, w = values(from_bytes(data, (n, k), fmt).linear(array(x))), decoded(fmt, data, n, k)
    finite = np.isfinite(w).all(1) & (magnitudes(fmt, data, n, k).max(1) < 1e38)
    assert not np.isfinite(got[:, ~np.isfinite(w).all(1)]).any()
    bound = (k / 32 + 24) * EPS * (np.abs(rounded(x)) @ magnitudes(fmt, data, n, k)[finite].T) + 1e-38
    np.testing.assert_array_less(np.abs(got[:, finite] - rounded(x) @ w[finite].T), bound)
    assert finite.sum() >= 5


@pytest.mark.parametrize("fmt", ["q4_1", "q6_k", "q2_k", "q2_0", "q1_0"])
def test_longer_than_a_panel(fmt):
    check(fmt, 20, 4096 + 512, 5, 0)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("m", [1, 5])
def test_same_bits_for_any_number_of_threads(fmt, m):
    rng = np.random.default_rng(1)
    data, _ = blocks(fmt, 67, 512, rng)
    x, w, seen = rng.standard_normal((m, 512)).astype(np.float32), from_bytes(data, (67, 512), fmt), set()
    before = backend.PARALLEL_WORK
    try:
        backend.PARALLEL_WORK = 0
        for threads in (1, 2, 3):
            backend.set_num_threads(threads)
            seen.add(values(w.linear(array(x))).tobytes())
    finally:
        backend.PARALLEL_WORK = before
        backend.set_num_threads(None)
    assert len(seen) == 1


@pytest.mark.parametrize("m", [1, 5])
def test_residual_leading_dims_and_nothing_beyond_the_output(m):
    rng = np.random.default_rng(2)
    data, w = blocks("q4_1", 19, 96, rng)
    x, residual = rng.standard_normal((2, m, 96)).astype(np.float32), rng.standard_normal((2, m, 19)).astype(np.float32)
    out = from_bytes(data, (19, 96), "q4_1").linear(array(x), array(residual))
    assert out.shape == (2, m, 19)
    np.testing.assert_allclose(values(out), rounded(x) @ w.T + residual, rtol=1e-4, atol=1e-4)
    # the same kernel again, into memory with a guard behind it
    guarded = np.full(out.numel() + 64, 7, np.float32)
    spy = []
    real = Array.empty.__func__

    def empty(cls, shape, *rest):
        made = real(cls, shape, *rest)
        if shape == out.shape:
            made.buffer.ptr = guarded.ctypes.data
            spy.append(made)
        return made

    Array.empty = classmethod(empty)
    try:
        from_bytes(data, (19, 96), "q4_1").linear(array(x))
    finally:
        Array.empty = classmethod(real)
    assert spy and (guarded[out.numel() :] == 7).all() and not (guarded[: out.numel()] == 7).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("m", [1, 5])
def test_what_cannot_be_quantised_becomes_nan_in_its_own_row(bad, m):
    data, _ = blocks("q8_0", 8, 64, np.random.default_rng(3))
    x = np.ones((m, 64), np.float32)
    x[0, 40] = bad
    got = values(from_bytes(data, (8, 64), "q8_0").linear(array(x)))
    assert np.isnan(got[0]).all() and np.isfinite(got[1:]).all()


def test_packed_activations_are_shared_until_the_input_changes():
    data, _ = blocks("q4_0", 4, 64, np.random.default_rng(4))
    weight, x = from_bytes(data, (4, 64), "q4_0"), array(np.ones((1, 64), np.float32))
    first = values(weight.linear(x))
    packed = x.memo[1]["groups"]
    weight.linear(x)
    assert x.memo[1]["groups"] is packed
    zero = backend.kernel("counter", "store")
    backend.launch(zero, (x.ptr, 0), writes=(x,))
    assert not np.array_equal(values(weight.linear(x)), first)


def test_a_format_without_a_kernel_is_dequantised_and_says_so_once(capsys):
    from tensorlib.tensor import from_numpy

    rng = np.random.default_rng(5)
    bits = rng.integers(0x3C00, 0x4000, (3, 256), dtype=np.uint16)  # BF16: no format of blocks lacks a kernel
    x = rng.standard_normal((2, 256)).astype(np.float32)
    weight = from_bytes(bits, (3, 256), "bf16")
    for _ in range(2):
        got = weight.linear(from_numpy(x)).numpy()
    want = x.astype(np.float64) @ (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64).T
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert capsys.readouterr().err.count("bf16") == 1


def test_errors():
    weight = from_bytes(bytes(34 * 4), (2, 64), "q8_0")
    with pytest.raises(ShapeError, match=r"linear: got x \(3, 32\)"):
        weight.linear(Array.empty((3, 32)))
    with pytest.raises(DTypeError, match="f32 with a quantised weight"):
        weight.linear(Array.empty((3, 64), "f16"))
    with pytest.raises(ShapeError, match="QTensor: got 136 bytes"):
        QTensor(weight.buffer, 0, (3, 64), "q8_0")
    with pytest.raises(ShapeError, match="row of q8_0"):
        QTensor(weight.buffer, 0, (2, 33), "q8_0")
    assert weight.linear(Array.empty((0, 64))).shape == (0, 2)


LEVEL = """
import sys
sys.path.insert(0, {root!r})
from tests.quant import test_linear
from tensorlib import backend
assert backend.backend().level == {level!r}
for fmt in test_linear.FORMATS:
    for m in (1, test_linear.MATVEC_ROWS + 1):
        test_linear.check(fmt, 5, 768, m, m)
"""


@pytest.mark.parametrize("level", ["avx2", "portable"])
def test_lower_levels_give_the_same(level, run_python):
    root = str(pathlib.Path(__file__).parents[2])
    run_python(LEVEL.format(root=root, level=level), TENSORLIB_CPU_LEVEL=level)


# a bias alone, minima, scales per 16, and those with minima; tiles of 1, 2, 4, 8 rows, two of 8, and the largest
@pytest.mark.parametrize("fmt", ["q8_0", "q4_1", "q6_k", "q2_k"])
def test_prepacked(fmt):
    sizes = [(33, 3), (16, 1), (5, 2), (40, 8), (16, 11), (7, 27)]
    for seed, (n, m) in enumerate(sizes if fmt in ("q8_0", "q2_k") else sizes[:1]):
        k = 512 if fmt.endswith("k") else 32 * (4 + seed)
        check(fmt, n, k, m, seed, prepacked=True)


def test_prepacked_adds_and_is_told_apart():
    """The same product again, which is remembered by layouts, is another weight's; a residual is added."""
    rng = np.random.default_rng(0)
    made = [blocks("q8_0", 20, 64, rng)[0] for _ in range(2)]
    weights = [from_bytes(data, (20, 64), "q8_0") for data in made]
    packed = [weight.prepacked() for weight in weights]
    x, more = (array(rng.standard_normal(shape).astype(np.float32)) for shape in ((8, 64), (8, 20)))
    for _ in range(3):
        for plain, panels in zip(weights, packed):
            want, found = (values(weight.linear(x, more)) for weight in (plain, panels))
            np.testing.assert_allclose(found, want, rtol=0, atol=64 * EPS * np.abs(want).max())
    assert packed[0].prepacked() is packed[0] and packed[0].rows(0, 3).panels is None


def test_formats_with_minima_are_the_layouts():
    from kernels_numba.unpack_all import UNPACK

    assert {name for name, row in UNPACK.items() if row.minimum} == backend.backend().quant.MINIMA
