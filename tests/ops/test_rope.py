"""Rotary embedding: tables in float64 accuracy far out, both layouts, partial rotation, writing into caches."""

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

U = 2.0**-24
NUMPY = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16", "int64": "i64"}


def array(values, dtype=None):
    values = np.ascontiguousarray(values, None if dtype is None else get(dtype).numpy_dtype())
    out = Array.empty(values.shape, NUMPY[values.dtype.name])
    ctypes.memmove(out.ptr, values.ctypes.data, values.nbytes)
    return out


def read(x):
    assert x.is_contiguous()
    nbytes = x.numel() * x.dtype.itemsize
    return np.frombuffer(ctypes.string_at(x.ptr, nbytes), x.dtype.numpy_dtype()).reshape(x.shape)


def frequencies(half, theta=10000.0):
    return [theta ** (-i / half) for i in range(half)]


def turned(x, cos, sin, start, interleaved):
    """Reference in float64 from the f32 tables, and its bound: two products and a sum, each rounded once."""
    (t, _, d), half = x.shape, cos.shape[1]
    c, s = (np.asarray(a, np.float64)[start : start + t, None] for a in (cos, sin))
    first, second = (
        (np.arange(half) * 2, np.arange(half) * 2 + 1) if interleaved else (np.arange(half), np.arange(half) + half)
    )
    out, bound, x = x.astype(np.float64), np.zeros((t, x.shape[1], d)), x.astype(np.float64)
    u, v = x[..., first], x[..., second]
    out[..., first], out[..., second] = u * c - v * s, v * c + u * s
    bound[..., first], bound[..., second] = abs(u * c) + abs(v * s), abs(v * c) + abs(u * s)
    return out, 2.01 * U * bound


@pytest.mark.parametrize("dtype", ["f32", "f64", "list"])
def test_reference_of_tables(dtype):
    inverse = np.array([1.0, 0.31622776, 0.0123, 1e-4, 2.5], np.float32 if dtype == "f32" else np.float64)
    n = 1_000_001
    cos, sin = fused.rope_tables(list(inverse) if dtype == "list" else array(inverse), n)
    angle = np.arange(n, dtype=np.longdouble)[:, None] * inverse.astype(np.longdouble)
    for got, want in ((cos, np.cos(angle)), (sin, np.sin(angle))):
        # f32's rounding is 2^-25 at most below 1; the angle's own rounding in float64 at 2.5e6 is 2.5e6 * 2^-53
        assert abs(read(got) - want).max() <= 2.0**-25 + 2.5e6 * 2.0**-52 < 1e-7


@given(st.data())
def test_reference_of_rope(data):
    t, heads, width = (
        data.draw(st.integers(1, 9)),
        data.draw(st.integers(1, 3)),
        data.draw(st.sampled_from([4, 64, 80, 128])),
    )
    half = data.draw(st.sampled_from([width // 2, width // 4, 1]))
    start, interleaved = data.draw(st.integers(0, 50)), data.draw(st.booleans())
    rng = np.random.default_rng(t)
    wide = rng.standard_normal((t, heads + 2, width + 4)).astype(np.float32)
    source = array(wide)
    x = source.view(Layout((t, heads, width), source.strides, width + 4 + 3))
    cos, sin = fused.rope_tables(frequencies(half), start + t)
    position = data.draw(st.sampled_from([start, array(np.array([start]))]))
    got = read(fused.rope(x, cos, sin, position, interleaved))
    want, bound = turned(wide[:, 1 : 1 + heads, 3 : 3 + width], read(cos), read(sin), start, interleaved)
    assert (abs(got - want) <= bound).all()


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("width", [64, 40])
def test_reference_of_caches(dtype, interleaved, width):
    x = np.random.default_rng(0).standard_normal((5, 3, width)).astype(np.float32)
    cos, sin = fused.rope_tables(frequencies(width // 2), 50)
    start = array(np.array([7]))
    plain = read(fused.rope(array(x), cos, sin, start, interleaved))
    for want, write in (
        (plain, lambda c: fused.rope_append(c, array(x), cos, sin, start, interleaved)),
        (x, lambda c: fused.append(c, array(x), start)),
    ):
        cache = array(np.full((3, 20, width), 7.0), dtype)
        assert write(cache) is cache
        got = read(cache)
        np.testing.assert_array_equal(got[:, 7:12], want.transpose(1, 0, 2).astype(got.dtype))
        assert (np.delete(got, range(7, 12), 1) == 7).all()


@pytest.mark.parametrize("start", [-2, 3, 1 << 60, -(1 << 60)])
def test_rows_outside_the_cache_are_not_written(start):
    x = array(np.ones((4, 2, 32), np.float32))
    cos, sin = fused.rope_tables(frequencies(16), 9)
    for write in (lambda c: fused.append(c, x, start), lambda c: fused.rope_append(c, x, cos, sin, start)):
        whole = array(np.full((2, 7, 32), 7.0, np.float32))
        write(whole.view(whole.layout.narrow(1, 1, 5)))
        rows = read(whole)[0]
        written = {i + start + 1 for i in range(4) if 0 <= i + start < 5}
        assert {i for i in range(7) if (rows[i] != 7).any()} == written


def test_a_position_without_a_table_row_gives_nan():
    cos, sin = fused.rope_tables(frequencies(16), 5)
    got = read(fused.rope(array(np.ones((4, 2, 40), np.float32)), cos, sin, 3))
    assert np.isfinite(got[:2]).all() and np.isnan(got[2:, :, :32]).all() and (got[..., 32:] == 1).all()


@pytest.mark.parametrize("interleaved", [False, True])
def test_threads_change_no_bit_and_in_place_is_the_same(interleaved):
    x = np.random.default_rng(0).standard_normal((300, 9, 64)).astype(np.float32)
    cos, sin = fused.rope_tables(frequencies(32), 300)
    want = read(fused.rope(array(x), cos, sin, 0, interleaved))
    try:
        for threads in (1, 2, 3):
            backend.set_num_threads(threads)
            again = array(x)
            fused.rope(again, cos, sin, 0, interleaved, out=again)
            np.testing.assert_array_equal(read(again), want)
            tables = fused.rope_tables(frequencies(32), 300)
            assert all((read(a) == read(b)).all() for a, b in zip(tables, (cos, sin), strict=True))
    finally:
        backend.set_num_threads(None)


def test_errors_say_what_is_wrong():
    x, (cos, sin) = Array.empty((2, 3, 16)), fused.rope_tables(frequencies(8), 4)
    with pytest.raises(ShapeError, match="R <= D"):
        fused.rope(Array.empty((2, 3, 14)), cos, sin)
    with pytest.raises(DTypeError, match="expected f32"):
        fused.rope(Array.empty((2, 3, 16), "f16"), cos, sin)
    with pytest.raises(ShapeError, match=r"a cache \[H, rows, D\]"):
        fused.append(Array.empty((2, 9, 16)), x, 0)
    with pytest.raises(DTypeError, match="one i64 element"):
        fused.append(Array.empty((3, 9, 16)), x, Array.empty((2,), "i64"))
    with pytest.raises(DTypeError, match="f32 or f64"):
        fused.rope_tables(Array.empty((4,), "f16"), 3)
