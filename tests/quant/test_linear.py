"""Products with quantised weights, on every CPU level that this machine has, against float64 and derived bounds."""

import ctypes

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st

from tensorlib import backend
from tensorlib.device import Array
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.quant.tensor import MATVEC_ROWS, QTensor, from_bytes

FORMATS = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k")
SCALES = {"q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,), "q4_1": (0, 2), "q5_1": (0, 2)}  # where a block's halves lie
EPS = 2.0**-24


def blocks(fmt, n, k, rng):
    """Random blocks of an [n, k] weight, and their float32 values by the gguf package."""
    kind = GGMLQuantizationType[fmt.upper()]
    elements, nbytes = GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (n * k // elements, nbytes), dtype=np.uint8)
    for at in SCALES.get(fmt, (0,)):
        data[:, at : at + 2] = rng.uniform(-0.01, 0.01, len(data)).astype(np.float16).view(np.uint8).reshape(-1, 2)
    return data.reshape(n, -1), dequantize(data, kind).reshape(n, k).astype(np.float64)


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


def check(fmt, n, k, m, seed):
    rng = np.random.default_rng(seed)
    data, w = blocks(fmt, n, k, rng)
    x = (rng.standard_normal((m, k)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
    got = values(from_bytes(data, (n, k), fmt).linear(array(x)))
    # Integer sums are exact; what rounds are the f32 scales (4 per block) and the sum over k / 32 terms per lane, then
    # 16 lanes. Minima cancel against scales, so magnitudes are those of their own sums: at most 2 |w| + |w - d u| <= 64
    # |d|.
    spread = np.abs(w).reshape(n, -1, 32).max(2).repeat(32, 1) * 4
    bound = (k / 32 + 24) * EPS * (np.abs(rounded(x)) @ spread.T) + 1e-30
    np.testing.assert_array_less(np.abs(got - rounded(x) @ w.T), bound)
    # against unrounded activations: each is off by at most half a step of its block, amax / 254 (and f32's rounding of
    # it)
    step = np.abs(x).reshape(m, -1, 32).max(2).repeat(32, 1) / 254 * (1 + 1e-5)
    np.testing.assert_array_less(np.abs(got - x.astype(np.float64) @ w.T), step @ np.abs(w).T + bound)


@pytest.mark.parametrize("fmt", FORMATS)
@given(st.data())
def test_linear(fmt, data):
    unit = 256 if fmt.endswith("k") else 32
    k = unit * data.draw(st.integers(1, 6 if unit == 256 else 20), label="blocks")
    n = data.draw(st.sampled_from([1, 3, 4, 15, 16, 17, 40]), label="n")
    m = data.draw(st.sampled_from([1, MATVEC_ROWS, MATVEC_ROWS + 1, 12, 13, 30]), label="m")
    check(fmt, n, k, m, data.draw(st.integers(0, 99), label="seed"))


@pytest.mark.parametrize("fmt", ["q4_1", "q6_k"])
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
sys.path.insert(0, {tests!r})
import test_linear
from tensorlib import backend
assert backend.backend().level == {level!r}
for fmt in ("q4_1", "q5_0", "q8_0", "q4_k", "q6_k"):
    for m in (1, 5):
        test_linear.check(fmt, 5, 512, m, m)
"""


@pytest.mark.parametrize("level", ["avx2", "portable"])
def test_lower_levels_give_the_same(level, run_python):
    import pathlib

    run_python(LEVEL.format(tests=str(pathlib.Path(__file__).parent), level=level), TENSORLIB_CPU_LEVEL=level)
