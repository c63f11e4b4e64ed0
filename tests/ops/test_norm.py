"""Norms, gated activations and row lookup against float64, with derived bounds, on any width and any row strides."""

import ctypes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlib import backend
from tensorlib.device import Array
from tensorlib.dtype import get
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.layout import Layout
from tensorlib.ops import fused

U = 2.0**-24  # half an ulp of 1 in f32
ROUND = {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8}  # of the result, relative; below f16's 2^-14 absolute 2^-25
NUMPY = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int64": "i64"}
WIDTHS = st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 576, 1024, 1030, 3000]))


def array(values, dtype=None):
    values = np.ascontiguousarray(values, None if dtype is None else get(dtype).numpy_dtype())
    out = Array.empty(values.shape, NUMPY[values.dtype.name])
    ctypes.memmove(out.ptr, values.ctypes.data, values.nbytes)
    return out


def read(x):
    nbytes = x.numel() * x.dtype.itemsize
    return np.frombuffer(ctypes.string_at(x.ptr, nbytes), x.dtype.numpy_dtype()).reshape(x.shape).astype(np.float64)


def strided(rng, shape, dtype, scale=1.0):
    """(Array view, its values) whose rows stand apart, in an order of their own, between rows of NaN."""
    order = rng.permutation(len(shape) - 1)
    sizes = [2 * shape[i] for i in order]
    values = np.full((*sizes, shape[-1] + 5), np.nan)
    inside = (rng.standard_normal([shape[i] for i in order] + [shape[-1]]) * scale).astype(get(dtype).numpy_dtype())
    values[(*(slice(0, None, 2) for _ in sizes), slice(3, 3 + shape[-1]))] = inside
    whole = array(values, dtype)
    back = [int(i) for i in np.argsort(order)]
    strides = tuple(whole.strides[i] * 2 for i in back) + (1,)
    return whole.view(Layout(shape, strides, 3)), inside.astype(np.float64).transpose(*back, len(shape) - 1)


def close(got, want, bound, dtype):
    bound = bound + ROUND[dtype] * (abs(want) + bound) + (2.0**-25 if dtype == "f16" else 2.0**-126)
    assert (abs(got - want) <= bound).all(), np.nanmax(abs(got - want) / bound)


KINDS = st.sampled_from(
    [("f32", "f32", "f32"), ("f16", "f32", "f32"), ("bf16", "bf16", "bf16"), ("f32", "none", "f16")]
)
SHAPES = st.sampled_from([(), (1,), (5,), (2, 3), (3, 2, 2), (2, 1, 3, 2)])


@given(KINDS, SHAPES, WIDTHS, st.sampled_from([0.0, 1.0]), st.integers(0, 9))
def test_reference_of_rms_norm(kinds, lead, width, offset, seed):
    x_dtype, w_dtype, out_dtype = kinds
    rng = np.random.default_rng(seed)
    x, values = strided(rng, (*lead, width), x_dtype, 3.0)
    w = None if w_dtype == "none" else array(rng.standard_normal(width), w_dtype)
    weight = (1.0 if w is None else read(w)) + offset
    got = fused.rms_norm(x, w, 1e-5, out_dtype, offset)
    want = values / np.sqrt((values**2).mean(-1, keepdims=True) + 1e-5) * weight
    # 64 partial sums of squares (width / 64 + 8 roundings), halved by the root; root, division, two products, the sum
    # with the offset, which rounds the weight (|w| + offset at most)
    bound = ((width / 64 + 8) / 2 + 8) * U * abs(values) / np.sqrt((values**2).mean(-1, keepdims=True) + 1e-5)
    close(read(got), want, bound * (abs(weight) + 2 * offset), out_dtype)


@given(st.sampled_from([("f32", True), ("f32", False), ("f16", True)]), SHAPES, WIDTHS, st.integers(0, 9))
def test_reference_of_layer_norm(kind, lead, width, seed):
    dtype, weighted = kind
    rng = np.random.default_rng(seed)
    x, values = strided(rng, (*lead, width), dtype, 3.0)
    values = values + 0.0
    w, b = (array(rng.standard_normal(width), "f32") if weighted else None for _ in range(2))
    got = fused.layer_norm(x, w, b, 1e-5)
    mean = values.mean(-1, keepdims=True)
    k = 1 / np.sqrt(values.var(-1, keepdims=True) + 1e-5)
    weight, bias = (read(w), read(b)) if weighted else (1.0, 0.0)
    want = (values - mean) * k * weight + bias
    # off: the mean by e, its square enters the variance; the difference by u; then as above
    n = width / 64 + 8
    e = n * U * abs(values).mean(-1, keepdims=True)
    bound = (
        abs(weight) * k * (e + U * (abs(values) + abs(mean)) + abs(values - mean) * ((n / 2 + 8) * U + (e * k) ** 2))
    )
    close(read(got), want, bound + U * (abs(want) + abs(bias)), dtype)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@given(name=st.sampled_from(["swiglu", "geglu"]), lead=SHAPES, width=WIDTHS, seed=st.integers(0, 9))
def test_reference_of_gated(dtype, name, lead, width, seed):
    rng = np.random.default_rng(seed)
    gate, g = strided(rng, (*lead, width), dtype, 6.0)
    up, u = strided(rng, (*lead, width), dtype)
    if name == "swiglu":
        activated, slope = g / (1 + np.exp(-g)), abs(g)
    else:
        y = 2 * np.sqrt(2 / np.pi) * (g + 0.044715 * g**3)
        activated, slope = g / (1 + np.exp(np.minimum(-y, 700))), 6 * abs(y)
    # exp is off by 4 u, and by u of its argument for each of that argument's roundings; then 1 + e, division, products
    bound = (slope + 10) * U * abs(activated * u)
    bound += 2.0**-126 * abs(g * u)  # exp ends at 2^-126 and 2^128
    close(read(getattr(fused, name)(gate, up)), activated * u, bound, dtype)


def test_reference_of_halves_of_one_projection():
    both = array(np.arange(-40, 40, dtype=np.float32).reshape(2, 40) / 8)
    gate, up = (both.view(both.layout.narrow(1, i, 20)) for i in (0, 20))
    g, u = read(both)[:, :20], read(both)[:, 20:]
    assert abs(read(fused.swiglu(gate, up)) - g / (1 + np.exp(-g)) * u).max() < 1e-5


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_reference_of_embedding(dtype):
    table = np.random.default_rng(0).standard_normal((10, 37)).astype(np.float32)
    ids = np.array([[3, 9, 0], [3, -1, 10]])
    weight = array(table, dtype)
    got, want = read(fused.embedding(array(ids), weight)), read(weight)[np.clip(ids, 0, 9)]
    want[1, 1:] = np.nan
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm", "swiglu", "geglu"])
def test_not_a_number_reaches_exactly_its_row(name):
    x = np.random.default_rng(0).standard_normal((4, 100)).astype(np.float32)
    x[1, 99] = x[2, 5] = np.nan
    call = getattr(fused, name)
    got = read(call(array(x), *([array(x)] if name.endswith("glu") else [None])))
    want = np.isnan(x) if name.endswith("glu") else np.isnan(x).any(1, keepdims=True) | np.zeros_like(x, bool)
    np.testing.assert_array_equal(np.isnan(got), want)


def test_threads_change_no_bit_and_nothing_else_is_written():
    x = array(np.random.default_rng(0).standard_normal((301, 700)).astype(np.float32))
    inner = x.view(x.layout.narrow(1, 1, 690))
    calls = (lambda: fused.rms_norm(inner, None), lambda: fused.layer_norm(inner), lambda: fused.swiglu(inner, inner))
    before = [read(call()) for call in calls]
    try:
        for threads in (1, 2, 3):
            backend.set_num_threads(threads)
            for call, want in zip(calls, before, strict=True):
                np.testing.assert_array_equal(read(call()), want)
    finally:
        backend.set_num_threads(None)


@pytest.mark.parametrize("out", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("width", [1, 15, 33, 64])
def test_nothing_else_is_written(width, out):
    x, made = array(np.ones((3, width), np.float32)), []

    class Guarded(Array):
        __slots__ = ()

        @classmethod
        def empty(cls, shape, dtype="f32", device=None):
            whole = array(np.full((5, width), 7.0), dtype)
            made.append(whole)
            return whole.view(whole.layout.narrow(0, 1, 3))

    guarded = Guarded(x.buffer, x.layout, x.dtype)
    fused.rms_norm(guarded, None, out_dtype=out)
    values = read(made[0])
    assert (values[[0, 4]] == 7).all() and (abs(values[1:4] - 1) < 1e-2).all()


def test_errors_say_what_is_wrong():
    x = Array.empty((2, 8))
    with pytest.raises(ShapeError, match=r"a weight of shape \(7,\)"):
        fused.rms_norm(x, Array.empty((7,)))
    with pytest.raises(DTypeError, match="i32"):
        fused.layer_norm(Array.empty((2, 8), "i32"))
    with pytest.raises(ShapeError, match="stride 1"):
        fused.rms_norm(x.view(x.layout.transpose(0, 1)), None)
    with pytest.raises(ShapeError, match="two equal shapes"):
        fused.swiglu(x, Array.empty((2, 9)))
    with pytest.raises(DTypeError, match="one dtype"):
        fused.swiglu(x, Array.empty((2, 8), "f16"))
    with pytest.raises(DTypeError, match="i64"):
        fused.embedding(Array.empty((2,), "i32"), x)
    assert fused.rms_norm(Array.empty((0, 8)), None).shape == (0, 8)


def test_swiglu_far_out():
    """Where e**-x overflows or vanishes: silu is x or 0, and NaN stays."""
    x = np.array([1e38, 100, 90, 88.8, 88, -87, -88.8, -90, -1e4, -1e38, np.nan, np.inf], np.float32)
    got = read(fused.swiglu(array(x), array(np.ones(12, np.float32))))
    with np.errstate(over="ignore"):
        want = x / (1 + np.exp(-x.astype(np.float64)))
    assert np.isnan(got[10]) and got[11] == np.inf
    np.testing.assert_allclose(got[:10], want[:10], rtol=8 * U, atol=1e-34)  # 1e4 times the least that e**x gives
