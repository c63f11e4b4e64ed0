"""Elementwise ops that fewer programs need: more activations, gamma functions, comparisons with a tolerance.

Rows have kernels of their own; what is built of other ops is a composite. Shapes broadcast; f16, bf16 and float8
compute in f32 and are rounded once per op.

>>> import tensorlib
>>> x = tensorlib.tensor([-2.0, 0.0, 3.0])
>>> relu6(x * 3), hypot(x, 4.0), nan_to_num(x / 0)
(tensor([0., 0., 6.]), tensor([4.4721, 4.0000, 5.0000]), tensor([-3.4028e+38,  0.0000e+00,  3.4028e+38]))
"""

from tensorlib import dtype as _dtype
from tensorlib.device import Array
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.ops import movement
from tensorlib.ops.elementwise import (
    _binary,
    _special,
    _unary,
    abs,
    add,
    cast,
    clamp,
    cos,
    div,
    eq,
    exp,
    gt,
    isfinite,
    isnan,
    le,
    log,
    logical_and,
    logical_or,
    lt,
    mul,
    relu,
    sigmoid,
    sin,
    square,
    sub,
    tanh,
    trunc,
    where,
)
from tensorlib.ops.exchange import item
from tensorlib.ops.reduce import all as _all
from tensorlib.registry import BOOL, FLOAT, FLOAT_ONLY, NUMBER, SAME, SHIFT, Rule, define

_ALPHA, _SCALE = 1.6732632423543772, 1.0507009873554805
INTEGER_ONLY = Rule("INTEGER_ONLY", "ui", SHIFT.text)
WIDE = Rule("WIDE", "f", "the operands' dtype; f32 and f64 only")


# ---- rows ------------------------------------------------------------------------------------------------------------


def _zero(g):
    return mul(g, 0)


def _share(x, y, out, g):
    """The gradient of x where x is the extreme of both; half of it for ties, all where y is NaN."""
    tie = eq(x, y)
    return where(tie, mul(g, 0.5), where(eq(out, x), g, 0.0))


def _sinc_vjp(g, x, out):
    slope = div(sub(cos(mul(x, 3.141592653589793)), out), x)
    return mul(g, where(eq(x, 0), 0.0, slope))


def _trigamma(x):
    """d digamma / dx: by its recurrence to 8 or more, then the asymptotic series; below 0 by reflection."""
    below = lt(x, 0)
    a = where(below, sub(1, x), x)
    total = mul(a, 0)
    for _ in range(8):
        total = add(total, div(1, square(a)))
        a = add(a, 1)
    w = div(1, square(a))
    tail = mul(w, 7 / 6)
    for bernoulli in (-691 / 2730, 5 / 66, -1 / 30, 1 / 42, -1 / 30):
        tail = mul(w, add(tail, bernoulli))
    tail = add(tail, 1 / 6)
    value = add(total, add(div(1, a), add(mul(w, 0.5), mul(mul(w, tail), div(1, a)))))
    return where(below, sub(square(div(3.141592653589793, sin(mul(x, 3.141592653589793)))), value), value)


def _sinc_ref(np, x):
    """np.sinc, but exact at integers: reduced before the product with pi, as the kernel does."""
    whole = np.rint(x)
    wave = np.sin(np.pi * (x - whole)) * np.where(np.mod(whole, 2) == 1, -1, 1)
    return np.where(x == 0, 1, np.where(np.isinf(x), 0, wave / (np.pi * np.where(x == 0, 1, x))))


_lgamma_ref = _special("lgamma")
sinc = _unary("sinc", FLOAT, "sin(pi x) / (pi x); 1 at 0, 0 at infinities", _sinc_ref, (-30, 30), vjp=_sinc_vjp)
selu = _unary(
    "selu",
    FLOAT,
    "1.0507 x, or 1.7581 (e ** x - 1) below 0 (arXiv:1706.02515)",
    lambda np, x: _SCALE * np.where(x > 0, x, _ALPHA * np.expm1(x)),
    (-20, 20),
    vjp=lambda g, x, out: mul(g, where(gt(x, 0), _SCALE, add(out, _ALPHA * _SCALE))),
)
lgamma = _unary("lgamma", FLOAT, "log |Gamma(x)|", _lgamma_ref, (0.01, 50), vjp=lambda g, x: mul(g, digamma(x)))
digamma = _unary(
    "digamma", FLOAT, "the derivative of lgamma; NaN at negative integers", None, vjp=lambda g, x: mul(g, _trigamma(x))
)
erfinv = _unary(
    "erfinv",
    FLOAT,
    "inverse of erf; NaN outside of [-1, 1]",
    None,
    (-1, 1),
    vjp=lambda g, out: mul(g, mul(exp(square(out)), 0.886226925452758)),
)
signbit = _unary("signbit", BOOL, "whether x is negative, -0.0 included", lambda np, x: np.signbit(x))

celu = _binary(
    "celu",
    FLOAT,
    "x, or y * (e ** (x / y) - 1) below 0 (arXiv:1704.07483)",
    lambda np, x, y: np.where(x > 0, x, y * np.expm1(x / y)),
    ((-20, 20), (0.1, 4)),
    vjp={"x": lambda g, x, y: where(gt(x, 0), g, mul(g, exp(div(x, y))))},
)
_celu = celu
hypot = _binary(
    "hypot",
    FLOAT,
    "sqrt(x ** 2 + y ** 2) without overflow",
    lambda np, x, y: np.hypot(x, y),
    vjp={"x": lambda g, x, out: mul(g, div(x, out)), "y": lambda g, y, out: mul(g, div(y, out))},
)
logaddexp = _binary(
    "logaddexp",
    FLOAT,
    "log(e ** x + e ** y) without overflow",
    lambda np, x, y: np.logaddexp(x, y),
    vjp={"x": lambda g, x, y: mul(g, sigmoid(sub(x, y))), "y": lambda g, x, y: mul(g, sigmoid(sub(y, x)))},
)
logaddexp2 = _binary(
    "logaddexp2",
    FLOAT,
    "log2(2 ** x + 2 ** y) without overflow",
    lambda np, x, y: np.logaddexp2(x, y),
    vjp={
        "x": lambda g, x, y: mul(g, sigmoid(mul(sub(x, y), 0.6931471805599453))),
        "y": lambda g, x, y: mul(g, sigmoid(mul(sub(y, x), 0.6931471805599453))),
    },
)
xlogy = _binary(
    "xlogy",
    FLOAT,
    "x * log(y); 0 for x = 0 unless y is NaN",
    lambda np, x, y: np.where((x == 0) & ~np.isnan(y), 0.0, x * np.log(y)),
    ((-9, 9), (0, 100)),
    vjp={
        "x": lambda g, x, y: mul(g, where(logical_and(eq(x, 0), le(y, 0)), 0.0, log(y))),
        "y": lambda g, x, y: mul(g, div(x, y)),
    },
)
heaviside = _binary(
    "heaviside",
    NUMBER,
    "0 below 0, y at 0, 1 above; 0 for NaN",
    lambda np, x, y: np.where(x == 0, y, (x > 0).astype(y.dtype)),
    vjp={"x": _zero, "y": lambda g, x: where(eq(x, 0), g, 0.0)},
)
fmax = _binary(
    "fmax",
    SAME,
    "the larger; the other if one is NaN",
    lambda np, x, y: np.fmax(x, y),
    vjp={"x": lambda g, x, y, out: _share(x, y, out, g), "y": lambda g, x, y, out: _share(y, x, out, g)},
)
fmin = _binary(
    "fmin",
    SAME,
    "the smaller; the other if one is NaN",
    lambda np, x, y: np.fmin(x, y),
    vjp={"x": lambda g, x, y, out: _share(x, y, out, g), "y": lambda g, x, y, out: _share(y, x, out, g)},
)
gcd = _binary(
    "gcd", INTEGER_ONLY, "greatest common divisor, not negative", lambda np, x, y: np.gcd(x, y), (-(2**31), 2**31)
)
lcm = _binary(
    "lcm", INTEGER_ONLY, "least common multiple, not negative; wraps", lambda np, x, y: np.lcm(x, y), (-(2**31), 2**31)
)
_nextafter = _binary("nextafter", WIDE, "the next number after x towards y", lambda np, x, y: np.nextafter(x, y))


def nextafter(x, y, out=None):
    """The next representable number after x in the direction of y; f32 and f64. DTypeError for other dtypes.

    >>> import tensorlib
    >>> nextafter(tensorlib.tensor(1.0), 2.0).item() - 1.0 == 2.0**-23
    True
    """
    for v in (x, y):
        if isinstance(v, Array) and v.dtype not in (_dtype.f32, _dtype.f64):
            raise DTypeError("nextafter", f"dtype {v.dtype}", "f32 or f64", "convert with .to('f32')")
    return _nextafter(x, y, out=out)


def celu(x, alpha=1.0):
    """x above 0, else alpha * (e ** (x / alpha) - 1). FLOAT dtypes."""
    return _celu(x, alpha)


# ---- composites ------------------------------------------------------------------------------------------------------


def _composite(ref, rule=NUMBER, domain=None, arity=1):
    return define("composite", rule, ref, arity, domain)


@_composite(lambda np, x: np.clip(x, 0, 6))
def relu6(x):
    """min(max(x, 0), 6)."""
    return clamp(x, 0, 6)


@_composite(lambda np, x: np.square(np.maximum(x, 0)), domain=(-100, 100))
def relu2(x):
    """max(x, 0) squared."""
    return square(relu(x))


@_composite(lambda np, x, low=-1.0, high=1.0: np.clip(x, low, high))
def hardtanh(x, min_val=-1.0, max_val=1.0):
    """x limited to [min_val, max_val], in x's dtype."""
    return clamp(x, min_val, max_val) if x.dtype.kind == "f" else clamp(x, int(min_val), int(max_val))


@_composite(lambda np, x: x / (1 + np.abs(x)), FLOAT)
def softsign(x):
    """x / (1 + |x|)."""
    return div(x, add(abs(x), 1))


@_composite(lambda np, x: x - np.tanh(x), FLOAT, (-9, 9))
def tanhshrink(x):
    """x - tanh(x)."""
    return sub(x, tanh(x))


@_composite(lambda np, x, lambd=0.5: np.where(np.abs(x) <= lambd, 0, x), FLOAT_ONLY)
def hardshrink(x, lambd=0.5):
    """x where |x| > lambd, else 0; NaN stays."""
    return where(le(abs(x), lambd), 0.0, x)


@_composite(lambda np, x, lambd=0.5: np.sign(x) * np.maximum(np.abs(x) - lambd, 0), FLOAT_ONLY)
def softshrink(x, lambd=0.5):
    """x moved by lambd towards 0, 0 within it. ShapeError for a negative lambd."""
    if lambd < 0:
        raise ShapeError("softshrink", f"lambd {lambd}", "0 or more", "use its absolute value")
    return sub(x, clamp(x, -lambd, lambd))


@_composite(lambda np, x, threshold, value: np.where(x <= threshold, value, x))
def threshold(x, threshold, value):
    """x where x > threshold, else the number `value`; NaN stays."""
    return _like(where(le(x, threshold), value, x), x)


def _like(result, x):
    return result if result.dtype is x.dtype else cast(result, x.dtype)


@_composite(None, FLOAT_ONLY, arity=2)
def prelu(x, weight):
    """x, or weight * x below 0: one weight, or one for each element of dim 1 of x. ShapeError for another number."""
    channels = x.shape[1] if x.ndim > 1 else 1
    if weight.ndim > 1 or weight.numel() not in (1, channels):
        raise ShapeError("prelu", f"weight of shape {weight.shape} for x {x.shape}", f"1 or {channels} weights", "")
    if weight.numel() > 1 or weight.ndim:
        weight = movement.reshape(weight, (weight.numel(), *(1,) * (x.ndim - 2)) if x.ndim > 1 else ())
    return where(gt(x, 0), x, mul(x, weight))


@_composite(lambda np, x: np.log(x / (1 - x)), FLOAT, (0, 1))
def logit(x, eps=None):
    """log(x / (1 - x)); eps limits x to [eps, 1 - eps] first."""
    x = x if eps is None else clamp(x, eps, 1 - eps)
    return log(div(x, sub(1, x)))


@_composite(lambda np, x: np.deg2rad(x), FLOAT)
def deg2rad(x):
    """Degrees in radians."""
    return mul(x, 0.017453292519943295)


@_composite(lambda np, x: np.rad2deg(x), FLOAT)
def rad2deg(x):
    """Radians in degrees."""
    return mul(x, 57.29577951308232)


@_composite(lambda np, x: x - np.trunc(x), FLOAT_ONLY)
def frac(x):
    """x - trunc(x): the fraction, with the sign of x."""
    FLOAT_ONLY.apply("frac", x.dtype)
    return sub(x, trunc(x))


@_composite(None, SAME)
def nan_to_num(x, nan=0.0, posinf=None, neginf=None):
    """NaN and infinities replaced by numbers: by default 0 and the dtype's largest and smallest. Integers stay."""
    if x.dtype.kind != "f":
        return movement.clone(x)
    low, high = _dtype.info(x.dtype)
    x = where(isnan(x), float(nan), x)
    x = where(eq(x, float("inf")), float(high if posinf is None else posinf), x)
    return where(eq(x, -float("inf")), float(low if neginf is None else neginf), x)


# ---- comparisons of tensors ------------------------------------------------------------------------------------------


@_composite(lambda np, x, y, **kw: np.isclose(x, y, **kw), BOOL, arity=2)
def isclose(x, y, rtol=1e-5, atol=1e-8, equal_nan=False):
    """|x - y| <= atol + rtol * |y|, elementwise; equal infinities are close, NaN only if equal_nan. DTypeError for two
    dtypes.
    """
    if x.dtype is not y.dtype:
        raise DTypeError("isclose", f"{x.dtype} and {y.dtype}", "one dtype", "convert one with .to(dtype)")
    same = eq(x, y)
    if equal_nan:
        same = logical_or(same, logical_and(isnan(x), isnan(y)))
    if x.dtype.kind != "f":
        x, y = cast(x, _dtype.f64), cast(y, _dtype.f64)
    distance = abs(sub(x, y))
    close = logical_and(le(distance, add(mul(abs(y), rtol), atol)), isfinite(distance))
    return logical_or(same, close)


def allclose(x, y, rtol=1e-5, atol=1e-8, equal_nan=False):
    """Whether all elements are close: a Python bool. See `isclose`."""
    return bool(item(_all(isclose(x, y, rtol, atol, equal_nan))))


def equal(x, y):
    """Whether two tensors have one shape and equal elements (NaN equals nothing): a Python bool.

    >>> import tensorlib
    >>> equal(tensorlib.tensor([1, 2]), tensorlib.tensor([1, 2])), equal(tensorlib.zeros(2), tensorlib.zeros(1, 2))
    (True, False)
    """
    return x.shape == y.shape and bool(item(_all(eq(x, y))))
