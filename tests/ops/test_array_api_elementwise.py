"""Elementwise functions of the standard: special cases, every dtype, numbers as operands, clip and where."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlib import array_api as xp
from tensorlib.errors import DTypeError, ShapeError
from tests.ops.cases import FLOAT_ROUNDING, few

INF, NAN = math.inf, math.nan
FLOATS = ["float32", "float64"]
SPECIAL = [0.0, 1.0, 0.5, 1.5, 2.0, 2.5, 3.0, 4.0, 7.0, 100.0, 1e-30, 1e30, 3e38, math.pi, INF]
SPECIAL = [*SPECIAL, *(-v for v in SPECIAL), NAN]

UNARY = {
    "acos": "arccos", "acosh": "arccosh", "asin": "arcsin", "asinh": "arcsinh", "atan": "arctan", "atanh": "arctanh",
    "round": "rint", **{n: n for n in "cos cosh exp expm1 log log10 log1p log2 reciprocal sin sinh sqrt tan tanh"
                        " abs ceil floor trunc sign square negative positive conj real imag".split()},
    **{n: n for n in "isfinite isinf isnan signbit".split()},
}  # fmt: skip
BINARY = {
    "add": "add", "subtract": "subtract", "multiply": "multiply", "divide": "divide", "pow": "power",
    "atan2": "arctan2", "copysign": "copysign", "hypot": "hypot", "logaddexp": "logaddexp", "remainder": "remainder",
    "nextafter": "nextafter", "maximum": "maximum", "minimum": "minimum",
    **{n: n for n in "equal not_equal less less_equal greater greater_equal".split()},
}  # fmt: skip
ROUNDED = (
    "add subtract multiply divide remainder copysign nextafter maximum minimum abs ceil floor trunc sign square".split()
)
INEXACT = 8  # units in the last place that a mathematical function may be off; what NumPy gives is off by up to 4


def same(name, found, want, dtype):
    """Equal but for rounding; NaN where NaN is, zeros of the same sign."""
    assert type(found) is xp.NDArray
    found = found.numpy()
    assert (found.dtype, found.shape) == (want.dtype, want.shape)
    if want.dtype.kind != "f" or name in ROUNDED:
        np.testing.assert_array_equal(found, want)
    else:
        u = 2 * FLOAT_ROUNDING["f" + dtype[5:]]
        np.testing.assert_allclose(found, want, rtol=INEXACT * u, atol=0)
    if want.dtype.kind == "f" and name not in ("maximum", "minimum"):  # of zeros either may be taken
        zero = want == 0
        np.testing.assert_array_equal(np.signbit(found[zero]), np.signbit(want[zero]))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", UNARY)
def test_special_values_of_one_operand(name, dtype):
    x = np.asarray(SPECIAL, dtype)
    with np.errstate(all="ignore"):
        same(name, getattr(xp, name)(xp.asarray(x)), np.asarray(getattr(np, UNARY[name])(x)), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", BINARY)
def test_special_values_of_two_operands(name, dtype):
    x, y = (v.ravel() for v in np.meshgrid(np.asarray(SPECIAL, dtype), np.asarray(SPECIAL, dtype)))
    with np.errstate(all="ignore"):
        same(name, getattr(xp, name)(xp.asarray(x), xp.asarray(y)), getattr(np, BINARY[name])(x, y), dtype)


# (x1, x2, result) of floor_divide, where the standard has other results than NumPy and Python: floor(divide(x1, x2))
FLOOR_DIVIDE = [
    (NAN, 1, NAN), (1, NAN, NAN), (INF, INF, NAN), (-INF, INF, NAN), (0.0, 0.0, NAN), (-0.0, 0.0, NAN),
    (0.0, 3, 0.0), (-0.0, 3, -0.0), (0.0, -3, -0.0), (-0.0, -3, 0.0), (2, 0.0, INF), (2, -0.0, -INF), (-2, 0.0, -INF),
    (-2, -0.0, INF), (INF, 2, INF), (INF, -2, -INF), (-INF, 2, -INF), (-INF, -2, INF), (2, INF, 0.0), (-2, -INF, 0.0),
    (7, 2, 3), (-7, 2, -4), (7, -2, -4), (-7, -2, 3),
]  # fmt: skip
REMAINDER = [
    (0.0, 3, 0.0), (-0.0, 3, 0.0), (0.0, -3, -0.0), (-0.0, -3, -0.0), (2, 0.0, NAN), (INF, 2, NAN), (2, INF, 2),
    (2, -INF, -INF), (-2, INF, INF), (-2, -INF, -2), (7, 3, 1), (-7, 3, 2), (7, -3, -2), (-7, -3, -1), (6, -3, -0.0),
]  # fmt: skip
SIGNED = [(NAN, -1, 1), (NAN, 1, 0), (1, -0.0, 1), (-1, 0.0, 0), (-2, 3, 0)]  # signbit(copysign(x1, x2))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name, table", [("floor_divide", FLOOR_DIVIDE), ("remainder", REMAINDER)])
def test_tables_of_the_standard(name, table, dtype):
    x, y, want = (np.asarray(column, dtype) for column in zip(*table, strict=True))
    same(name, getattr(xp, name)(xp.asarray(x), xp.asarray(y)), want, dtype)
    in_place = xp.asarray(x, copy=True)
    if name == "floor_divide":
        in_place //= xp.asarray(y)
        same(name, in_place, want, dtype)
        same(name, xp.asarray(x) // xp.asarray(y), want, dtype)


def test_signs():
    x, y, want = (np.asarray(column, np.float32) for column in zip(*SIGNED, strict=True))
    assert xp.signbit(xp.copysign(xp.asarray(x), xp.asarray(y))).tolist() == want.astype(bool).tolist()


@pytest.mark.parametrize("dtype", FLOATS)
def test_hypot_and_logaddexp_stay_in_range(dtype):
    big = 0.9 * float(np.finfo(dtype).max)
    x, y = (
        xp.asarray([big / 2, 3e-30, big / 4], dtype=getattr(xp, dtype)),
        xp.asarray([big / 2, 4e-30, 1.0], dtype=getattr(xp, dtype)),
    )
    want = [math.hypot(a, b) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    assert xp.hypot(x, y).tolist() == pytest.approx(want, rel=8 * FLOAT_ROUNDING["f" + dtype[5:]])
    assert xp.logaddexp(x, y)[0] == x[0] and xp.logaddexp(-x, -x)[2] == -x[2]


@pytest.mark.parametrize("dtype", FLOATS)
def test_nextafter_walks_over_zero(dtype):
    tiny = float(np.nextafter(np.zeros((), dtype), np.ones((), dtype)))
    x = xp.asarray([-tiny, 0.0, -0.0, tiny, 1.0], dtype=getattr(xp, dtype))
    up, down = xp.nextafter(x, xp.inf), xp.nextafter(x, -xp.inf)
    assert up.tolist()[:4] == [0.0, tiny, tiny, 2 * tiny] and up[4] == 1 + xp.finfo(x.dtype).eps
    assert down.tolist()[:4] == [-2 * tiny, -tiny, -tiny, 0.0] and up[4] > 1 > down[4]


# ---- every dtype -----------------------------------------------------------------------------------------------------

ARITHMETIC = {**{n: n for n in "add subtract multiply maximum minimum remainder floor_divide".split()}, "pow": "power"}
COMPARISONS = "equal not_equal less less_equal greater greater_equal".split()
BITS = {f"bitwise_{n}": f"bitwise_{n}" for n in ("and", "or", "xor", "left_shift", "right_shift")}


def integers(dtype, n=40):
    info, rng = np.iinfo(dtype), np.random.default_rng(n)
    x = rng.integers(max(info.min, -9), 9, n).astype(dtype)
    x[:4] = info.min, info.max, 0, 1
    return x


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "uint64"])
def test_integers(dtype):
    x, y = integers(dtype), integers(dtype, 41)[1:][::-1]
    y = np.where(y == 0, np.asarray(1, dtype), y)
    shifts, powers = y & np.asarray(7, dtype), y & np.asarray(3, dtype)
    with np.errstate(all="ignore"):
        for name, ref in {**ARITHMETIC, **BITS, **{n: n for n in COMPARISONS}}.items():
            second = shifts if "shift" in name else powers if name == "pow" else y
            want = getattr(np, ref)(x, second)
            np.testing.assert_array_equal(getattr(xp, name)(xp.asarray(x), xp.asarray(second)).numpy(), want, name)
        for name in "abs negative square sign isnan isinf isfinite".split():
            want = getattr(np, name)(x)
            np.testing.assert_array_equal(getattr(xp, name)(xp.asarray(x)).numpy(), want, name, strict=True)
        for name in "floor ceil trunc round positive conj real".split():
            np.testing.assert_array_equal(getattr(xp, name)(xp.asarray(x)).numpy(), x, name, strict=True)
        np.testing.assert_array_equal((~xp.asarray(x)).numpy(), ~x, strict=True)
        assert xp.bitwise_right_shift(xp.asarray(x), 100 - 50 * (dtype[-1] == "8")).tolist() == [
            -(v < 0) for v in x.tolist()
        ]
    assert xp.sqrt(xp.asarray(x)).dtype is xp.divide(xp.asarray(x), 2).dtype is xp.float32


def test_bools():
    x, y = np.asarray([0, 0, 1, 1], bool), np.asarray([0, 1, 0, 1], bool)
    for name in "logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor equal not_equal".split():
        want = getattr(np, name)(x, y)
        np.testing.assert_array_equal(getattr(xp, name)(xp.asarray(x), xp.asarray(y)).numpy(), want, strict=True)
    for name in ("logical_not", "bitwise_invert"):
        assert getattr(xp, name)(xp.asarray(x)).tolist() == [True, True, False, False]
    with pytest.raises(DTypeError):
        xp.logical_and(xp.asarray(x), xp.asarray([1, 0, 1, 0]))
    for name in ("negative", "abs", "sign", "square"):
        with pytest.raises(DTypeError):
            getattr(xp, name)(xp.asarray(x))


def test_what_is_refused():
    x = xp.ones(2)
    for call in (
        lambda: xp.bitwise_and(x, x),
        lambda: xp.signbit(xp.ones(2, dtype=xp.int8)),
        lambda: xp.add(x, "a"),
        lambda: xp.add([1], x),
        lambda: xp.sin(1.0),
        lambda: xp.ones(1, dtype=xp.uint64) + xp.ones(1, dtype=xp.int8),
    ):
        with pytest.raises(DTypeError):
            call()
    with pytest.raises(OverflowError):
        xp.ones(2, dtype=xp.int8) + 128
    with pytest.raises(ShapeError):
        xp.ones(2) + xp.ones(3)


# ---- clip and where --------------------------------------------------------------------------------------------------


@given(st.data())
@few(40)
def test_clip(data):
    x = np.asarray(data.draw(st.lists(st.sampled_from(SPECIAL), min_size=3, max_size=3)), np.float32)
    bounds = [
        data.draw(st.none() | st.floats(-5, 5, width=32) | st.just(np.asarray([[NAN], [1.0]], np.float32)))
        for _ in "ab"
    ]
    low, high = bounds
    if isinstance(low, float) and isinstance(high, float) and low > high:
        low, high = high, low
    want = x
    for bound, limit in ((low, np.maximum), (high, np.minimum)):
        want = want if bound is None else limit(want, np.float32(bound))
    found = xp.clip(xp.asarray(x), *(xp.asarray(b) if isinstance(b, np.ndarray) else b for b in (low, high)))
    np.testing.assert_array_equal(found.numpy(), want, strict=True)


def test_clip_keeps_integers():
    x = xp.asarray([-128, 3, 127], dtype=xp.int8)
    assert xp.clip(x, -5, 100).tolist() == [-5, 3, 100] and xp.clip(x, min=0).dtype is xp.int8
    copy = xp.clip(x)
    copy[0] = 0
    assert x[0] == -128
    with pytest.raises(DTypeError):
        xp.clip(xp.asarray([True]), 0, 1)


def test_where():
    condition = xp.asarray([[True], [False]])
    found = xp.where(condition, xp.asarray([1, 2], dtype=xp.int8), xp.asarray(7, dtype=xp.uint8))
    assert (found.tolist(), found.dtype) == ([[1, 2], [7, 7]], xp.int16)
    assert xp.where(condition, 1.5, xp.zeros(2)).tolist() == [[1.5, 1.5], [0, 0]]
    for arguments in ((xp.ones(2), xp.ones(2), xp.ones(2)), (condition, 1, 2)):
        with pytest.raises(DTypeError):
            xp.where(*arguments)
