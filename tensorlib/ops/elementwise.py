"""Elementwise ops: rows, and one `apply` that promotes, broadcasts, collapses dims and launches the strided template.

Functions are made from the rows: `exp(x)`, `add(x, y)`, `where(c, x, y)`. Operands are Arrays or Python numbers; a
number is weak (it changes the dtype only to reach a higher category). All shapes broadcast; f16, bf16 and float8
compute in f32 and are rounded once.

>>> import tensorlib
>>> x = tensorlib.tensor([1, 2, 3], dtype="u8")
>>> add(x, 1), div(x, 2), add(x, 0.5).dtype
(tensor([2, 3, 4], dtype=u8), tensor([0.5000, 1.0000, 1.5000]), f32)
"""

from tensorlib import tape
from tensorlib.errors import DTypeError
from tensorlib.memo import memoised
from tensorlib.ops import create
from tensorlib.ops._launch import apply, cast, copy_into, fill, function_of
from tensorlib.registry import BOOL, FLOAT, FLOAT_ONLY, FUNCTIONS, INTEGER, NUMBER, OPS, SAME, SHIFT, Op, register

__all__ = ["apply", "cast", "clamp", "copy_into", "div", "fill", "gelu", "masked_fill", "pow", "round", "where"]


def _function(kind, arity):
    def define(name, rule, doc, ref, domain=None, vjp=None):
        """Registers a row and gives its function; `vjp` by default the row of `VJP`."""
        vjp = VJP.get(name, {}) if vjp is None else vjp
        op = register(Op(name, kind, arity, rule, ref, doc, domain, {"x": vjp} if callable(vjp) else vjp))
        function = function_of(op, name, __name__)
        function.__doc__ = (
            f"{doc}.\n\nOperands: Arrays whose shapes broadcast, or numbers. Result: {rule.text}.\n"
            "It is written to `out`, of the broadcast shape, if that is given. Raises ShapeError, DTypeError, NoKernel."
        )
        FUNCTIONS[name] = memoised(op, function, arity)
        return FUNCTIONS[name]

    return define


# ---- gradients of the rows below: of x, or by operand (see tensorlib.tape) -------------------------------------------


def _zero(g):
    return create.zeros(type(g), g.shape, dtype=g.dtype, device=g.device)


def _backward(name):
    """The vjp by a row of slopes.py, which needs the rows of this file."""

    def vjp(g, x):
        from tensorlib.ops import slopes

        return getattr(slopes, name)(g, x)

    return vjp


def _mish_vjp(g, x):
    t = tanh(softplus(x))
    return g * (t + x * (1 - square(t)) * sigmoid(x))


def _hardswish_vjp(g, x):
    return where(le(x, -3), 0.0, where(ge(x, 3), g, g * (x / 3 + 0.5)))


def _pow_vjp_x(g, x, y):
    if not tape.is_array(y):
        return g * pow(x, y - 1) * y if y else _zero(g)
    return where(eq(y, 0), 0.0, g * y * pow(x, sub(y, 1)))


def _pow_vjp_y(g, x, y, out):
    x = x if tape.is_array(x) else create.full(type(g), (), float(x), dtype=g.dtype, device=g.device)
    return g * where(logical_and(eq(x, 0), ge(y, 0)), 0.0, out * log(x))


def _larger_vjp(smaller):
    """Ties share the gradient, as in PyTorch."""
    return {
        "x": lambda g, x, y: where(eq(x, y), g * 0.5, where(smaller(x, y), 0.0, g)),
        "y": lambda g, x, y: where(eq(x, y), g * 0.5, where(smaller(y, x), 0.0, g)),
    }


VJP = {
    "neg": lambda g: neg(g),
    "abs": lambda g, x: g * sign(x),
    "sign": _zero, "floor": _zero, "ceil": _zero, "trunc": _zero, "round": _zero,
    "square": lambda g, x: g * x * 2,
    "relu": lambda g, out: _backward("relu_backward")(g, out),
    "sqrt": lambda g, out: g / (out * 2),
    "rsqrt": lambda g, out: g * (out * square(out)) * -0.5,
    "reciprocal": lambda g, out: neg(g * square(out)),
    "exp": lambda g, out: g * out,
    "exp2": lambda g, out: g * out * 0.6931471805599453,
    "expm1": lambda g, out: g * (out + 1),
    "log": lambda g, x: g / x,
    "log2": lambda g, x: g / (x * 0.6931471805599453),
    "log10": lambda g, x: g / (x * 2.302585092994046),
    "log1p": lambda g, x: g / (x + 1),
    "sin": lambda g, x: g * cos(x),
    "cos": lambda g, x: neg(g * sin(x)),
    "tan": lambda g, out: g * (1 + square(out)),
    "asin": lambda g, x: g * rsqrt((1 - x) * (1 + x)),
    "acos": lambda g, x: neg(g * rsqrt((1 - x) * (1 + x))),
    "atan": lambda g, x: g / (1 + square(x)),
    "sinh": lambda g, x: g * cosh(x),
    "cosh": lambda g, x: g * sinh(x),
    "tanh": lambda g, out: g * (1 - square(out)),
    "asinh": lambda g, x: g * rsqrt(square(x) + 1),
    "acosh": lambda g, x: g * (rsqrt(x - 1) * rsqrt(x + 1)),
    "atanh": lambda g, x: g / ((1 - x) * (1 + x)),
    "erf": lambda g, x: g * exp(neg(square(x))) * 1.1283791670955126,
    "erfc": lambda g, x: g * exp(neg(square(x))) * -1.1283791670955126,
    "sigmoid": lambda g, out: g * out * (1 - out),
    "logsigmoid": lambda g, x: g * sigmoid(neg(x)),
    "softplus": lambda g, x: g * sigmoid(x),
    "silu": _backward("silu_backward"), "gelu": _backward("gelu_backward"),
    "gelu_tanh": _backward("gelu_tanh_backward"), "mish": _mish_vjp, "hardswish": _hardswish_vjp,
    "hardsigmoid": lambda g, x: where(logical_and(gt(x, -3), lt(x, 3)), g / 6, 0.0),
    "add": {"x": lambda g: g, "y": lambda g: g},
    "sub": {"x": lambda g: g, "y": lambda g: neg(g)},
    "mul": {"x": lambda g, y: g * y, "y": lambda g, x: g * x},
    "div": {"x": lambda g, y: g / y, "y": lambda g, y, out: neg(g / y * out)},
    "floor_divide": {"x": _zero, "y": _zero},
    "remainder": {"x": lambda g: g, "y": lambda g, x, y: neg(g * floor_divide(x, y))},
    "fmod": {"x": lambda g: g, "y": lambda g, x, y: neg(g * trunc(div(x, y)))},
    "pow": {"x": _pow_vjp_x, "y": _pow_vjp_y},
    "maximum": _larger_vjp(lambda x, y: lt(x, y)),
    "minimum": _larger_vjp(lambda x, y: gt(x, y)),
    "atan2": {
        "x": lambda g, x, y: g * (y / (x * x + y * y)),
        "y": lambda g, x, y: neg(g * (x / (x * x + y * y))),
    },
    "copysign": {"x": lambda g, x, out: where(eq(x, 0), 0.0, g * (out / x)), "y": _zero},
    "leaky_relu": {"x": lambda g, x, y: where(gt(x, 0), g, g * y), "y": lambda g, x: where(gt(x, 0), 0.0, g * x)},
    "elu": {
        "x": lambda g, x, y, out: where(gt(x, 0), g, g * (out + y)),
        "y": lambda g, x: where(gt(x, 0), 0.0, g * expm1(x)),
    },
    "where": {"y": lambda g, x: where(x, g, 0.0), "z": lambda g, x: where(x, 0.0, g)},
    "clamp": {
        "x": lambda g, x, y, z: where(logical_and(ge(x, y), le(x, z)), g, 0.0),
        "y": lambda g, x, y, z: where(logical_and(lt(x, y), lt(y, z)), g, 0.0),
        "z": lambda g, x, y, z: where(logical_or(gt(x, z), lt(z, y)), g, 0.0),
    },
    "lerp": {"x": lambda g, z: g * (1 - z), "y": lambda g, z: g * z, "z": lambda g, x, y: g * (y - x)},
    "addcmul": {"x": lambda g: g, "y": lambda g, z: g * z, "z": lambda g, y: g * y},
}  # fmt: skip


_unary, _binary, _ternary = _function("unary", 1), _function("binary", 2), _function("ternary", 3)


def _special(name, *more):
    """A reference from the math module, for what NumPy lacks."""

    def ref(np, x):
        import math

        def value(v):
            try:
                return getattr(math, name)(float(v))
            except (ValueError, OverflowError):  # a pole
                return math.inf

        return np.vectorize(value, otypes=[np.float64])(x)

    return ref


def _erf(np, x):
    return _special("erf")(np, x)


def _phi(np, x):
    return 0.5 * _special("erfc")(np, -x / np.sqrt(2))


def _softplus(np, x):
    return np.logaddexp(0, x)


def _sigmoid(np, x):
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


def _sign(np, x):
    return np.where(np.isnan(x), 0, np.sign(x)) if x.dtype.kind == "f" else np.sign(x)


def _gelu_tanh(np, x):
    return x * _sigmoid(np, 2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))


neg = _unary("neg", NUMBER, "-x", lambda np, x: -x)
abs = _unary("abs", SAME, "|x|", lambda np, x: np.abs(x))
sign = _unary("sign", SAME, "-1, 0 or 1; 0 for NaN", _sign)
square = _unary("square", NUMBER, "x * x", lambda np, x: x * x, (-1e3, 1e3))
relu = _unary("relu", NUMBER, "max(x, 0); NaN stays", lambda np, x: np.maximum(x, 0))
floor = _unary("floor", NUMBER, "largest integer not above x", lambda np, x: np.floor(x))
ceil = _unary("ceil", NUMBER, "smallest integer not below x", lambda np, x: np.ceil(x))
trunc = _unary("trunc", NUMBER, "x without its fraction", lambda np, x: np.trunc(x))
sqrt = _unary("sqrt", FLOAT, "square root; NaN below 0", lambda np, x: np.sqrt(x), (0, 1e4))
rsqrt = _unary("rsqrt", FLOAT, "1 / sqrt(x)", lambda np, x: 1 / np.sqrt(x), (1e-4, 1e4))
reciprocal = _unary("reciprocal", FLOAT, "1 / x", lambda np, x: 1 / x)
exp = _unary("exp", FLOAT, "e ** x", lambda np, x: np.exp(x), (-90, 90))
exp2 = _unary("exp2", FLOAT, "2 ** x", lambda np, x: np.exp2(x), (-140, 130))
expm1 = _unary("expm1", FLOAT, "e ** x - 1, accurate near 0", lambda np, x: np.expm1(x), (-90, 90))
log = _unary("log", FLOAT, "natural logarithm", lambda np, x: np.log(x), (0, 1e4))
log2 = _unary("log2", FLOAT, "logarithm to base 2", lambda np, x: np.log2(x), (0, 1e4))
log10 = _unary("log10", FLOAT, "logarithm to base 10", lambda np, x: np.log10(x), (0, 1e4))
log1p = _unary("log1p", FLOAT, "log(1 + x), accurate near 0", lambda np, x: np.log1p(x), (-1, 1e3))
sin = _unary("sin", FLOAT, "sine, exact reduction for any x", lambda np, x: np.sin(x), (-1e5, 1e5))
cos = _unary("cos", FLOAT, "cosine, exact reduction for any x", lambda np, x: np.cos(x), (-1e5, 1e5))
tan = _unary("tan", FLOAT, "tangent, exact reduction for any x", lambda np, x: np.tan(x), (-1e5, 1e5))
asin = _unary("asin", FLOAT, "inverse sine", lambda np, x: np.arcsin(x), (-1, 1))
acos = _unary("acos", FLOAT, "inverse cosine", lambda np, x: np.arccos(x), (-1, 1))
atan = _unary("atan", FLOAT, "inverse tangent", lambda np, x: np.arctan(x))
sinh = _unary("sinh", FLOAT, "hyperbolic sine", lambda np, x: np.sinh(x), (-90, 90))
cosh = _unary("cosh", FLOAT, "hyperbolic cosine", lambda np, x: np.cosh(x), (-90, 90))
tanh = _unary("tanh", FLOAT, "hyperbolic tangent", lambda np, x: np.tanh(x), (-12, 12))
asinh = _unary("asinh", FLOAT, "inverse hyperbolic sine", lambda np, x: np.arcsinh(x))
acosh = _unary("acosh", FLOAT, "inverse hyperbolic cosine", lambda np, x: np.arccosh(x), (1, 1e4))
atanh = _unary("atanh", FLOAT, "inverse hyperbolic tangent", lambda np, x: np.arctanh(x), (-1, 1))
erf = _unary("erf", FLOAT, "error function", _erf, (-5, 5))
erfc = _unary("erfc", FLOAT, "1 - erf(x), accurate where erf is near 1", _special("erfc"), (-5, 10))
sigmoid = _unary("sigmoid", FLOAT, "1 / (1 + e ** -x)", _sigmoid, (-90, 90))
logsigmoid = _unary("logsigmoid", FLOAT, "log(sigmoid(x))", lambda np, x: -_softplus(np, -x), (-90, 90))
_softplus_row = _unary("softplus", FLOAT, "log(1 + e ** x)", _softplus, (-90, 90))
silu = _unary("silu", FLOAT, "x * sigmoid(x)", lambda np, x: x * _sigmoid(np, x), (-80, 80))
gelu_erf = _unary("gelu", FLOAT, "x times the normal distribution's P(X < x)", lambda np, x: x * _phi(np, x), (-12, 12))
gelu_tanh = _unary("gelu_tanh", FLOAT, "GELU's tanh approximation", _gelu_tanh, (-8, 12))
mish = _unary("mish", FLOAT, "x * tanh(softplus(x))", lambda np, x: x * np.tanh(_softplus(np, x)), (-80, 80))
hardsigmoid = _unary(
    "hardsigmoid", FLOAT_ONLY, "clamp(x + 3, 0, 6) / 6", lambda np, x: np.clip(x + 3, 0, 6) / 6, (-9, 9)
)
hardswish = _unary("hardswish", FLOAT_ONLY, "x * hardsigmoid(x)", lambda np, x: x * np.clip(x + 3, 0, 6) / 6, (-9, 9))
isnan = _unary("isnan", BOOL, "whether x is NaN", lambda np, x: np.isnan(x))
isinf = _unary("isinf", BOOL, "whether x is an infinity", lambda np, x: np.isinf(x))
isfinite = _unary("isfinite", BOOL, "whether x is neither NaN nor an infinity", lambda np, x: np.isfinite(x))
logical_not = _unary("logical_not", BOOL, "x == 0", lambda np, x: np.logical_not(x))
bitwise_not = _unary("bitwise_not", INTEGER, "every bit flipped; not x for bool", lambda np, x: np.invert(x))
_round = _unary("round", NUMBER, "nearest integer, halves to even", lambda np, x: np.round(x))

add = _binary("add", SAME, "x + y; or for bool", lambda np, x, y: np.add(x, y))
sub = _binary("sub", NUMBER, "x - y", lambda np, x, y: np.subtract(x, y))
mul = _binary("mul", SAME, "x * y; and for bool", lambda np, x, y: np.multiply(x, y))
_div = _binary("div", FLOAT, "x / y", lambda np, x, y: np.true_divide(x, y))
floor_divide = _binary(
    "floor_divide", NUMBER, "x / y rounded down; integers divided by 0 give 0", lambda np, x, y: np.floor_divide(x, y)
)
remainder = _binary(
    "remainder",
    NUMBER,
    "x - y * floor(x / y), Python's %; integers modulo 0 give 0",
    lambda np, x, y: np.remainder(x, y),
)
fmod = _binary(
    "fmod", NUMBER, "x - y * trunc(x / y), C's fmod; integers modulo 0 give 0", lambda np, x, y: np.fmod(x, y)
)
_pow = _binary("pow", NUMBER, "x ** y", lambda np, x, y: np.power(x, y), ((0, 50), (-20, 20)))
maximum = _binary("maximum", SAME, "the larger; NaN if either is", lambda np, x, y: np.maximum(x, y))
minimum = _binary("minimum", SAME, "the smaller; NaN if either is", lambda np, x, y: np.minimum(x, y))
atan2 = _binary(
    "atan2", FLOAT, "angle of the point (y, x): arctan(x / y) in its quadrant", lambda np, x, y: np.arctan2(x, y)
)
copysign = _binary("copysign", FLOAT, "|x| with the sign of y", lambda np, x, y: np.copysign(x, y))
eq = _binary("eq", BOOL, "x == y", lambda np, x, y: np.equal(x, y))
ne = _binary("ne", BOOL, "x != y", lambda np, x, y: np.not_equal(x, y))
lt = _binary("lt", BOOL, "x < y", lambda np, x, y: np.less(x, y))
le = _binary("le", BOOL, "x <= y", lambda np, x, y: np.less_equal(x, y))
gt = _binary("gt", BOOL, "x > y", lambda np, x, y: np.greater(x, y))
ge = _binary("ge", BOOL, "x >= y", lambda np, x, y: np.greater_equal(x, y))
logical_and = _binary("logical_and", BOOL, "x != 0 and y != 0", lambda np, x, y: np.logical_and(x, y))
logical_or = _binary("logical_or", BOOL, "x != 0 or y != 0", lambda np, x, y: np.logical_or(x, y))
logical_xor = _binary("logical_xor", BOOL, "(x != 0) != (y != 0)", lambda np, x, y: np.logical_xor(x, y))
bitwise_and = _binary("bitwise_and", INTEGER, "bits of both", lambda np, x, y: np.bitwise_and(x, y))
bitwise_or = _binary("bitwise_or", INTEGER, "bits of either", lambda np, x, y: np.bitwise_or(x, y))
bitwise_xor = _binary("bitwise_xor", INTEGER, "bits that differ", lambda np, x, y: np.bitwise_xor(x, y))
bitwise_left_shift = _binary(
    "bitwise_left_shift",
    SHIFT,
    "x * 2 ** y, wrapping; 0 for y of the width or more",
    lambda np, x, y: np.left_shift(x, y),
)
bitwise_right_shift = _binary(
    "bitwise_right_shift", SHIFT, "x / 2 ** y rounded down", lambda np, x, y: np.right_shift(x, y)
)
_leaky_relu = _binary("leaky_relu", FLOAT, "x, or x * y below 0", lambda np, x, y: np.where(x > 0, x, x * y))
_elu = _binary("elu", FLOAT, "x, or y * (e ** x - 1) below 0", lambda np, x, y: np.where(x > 0, x, y * np.expm1(x)))

_where = _ternary("where", SAME, "y where x is true, else z", lambda np, c, x, y: np.where(c, x, y))
_clamp = _ternary("clamp", NUMBER, "min(max(x, y), z)", lambda np, x, lo, hi: np.minimum(np.maximum(x, lo), hi))
lerp = _ternary("lerp", FLOAT_ONLY, "x + z * (y - x)", lambda np, x, y, w: x + w * (y - x))
addcmul = _ternary("addcmul", NUMBER, "x + y * z", lambda np, x, y, z: x + y * z)


def where(condition, x=None, y=None, out=None):
    """x where `condition` (bool) is true, else y: any shapes that broadcast, promoted dtype of x and y. DTypeError.

    Without x and y: the indices of what is not 0 in `condition`, a tensor for each of its dims.

    >>> import tensorlib
    >>> where(tensorlib.tensor([True, False]), 1.5, tensorlib.tensor([7, 8]))
    tensor([1.5000, 8.0000])
    """
    if x is None and y is None:
        from tensorlib.ops import index, movement

        return movement.unbind(index.nonzero(condition if condition.ndim else movement.reshape(condition, 1)), 1)
    if getattr(condition, "dtype", None) is None or condition.dtype.kind != "b":
        got = f"a condition of dtype {getattr(condition, 'dtype', type(condition).__name__)}"
        raise DTypeError("where", got, "a bool tensor", "compare first, as in where(x > 0, ...)")
    return _where(condition, x, y, out=out)


def masked_fill(x, mask, value):
    """x with `value` (a number or 0-d Array, cast to x's dtype) where `mask` (bool, broadcast to x) is true."""
    result = where(mask, value, x)
    return result if result.dtype is x.dtype else cast(result, x.dtype)


def clamp(x, min=None, max=None, out=None):
    """x limited to [min, max]; either may be None, a number or an Array. NaN stays; where min > max, max wins."""
    if min is None and max is None:
        raise DTypeError("clamp", "neither min nor max", "at least one", "give min=, max= or both")
    if min is None:
        return minimum(x, max, out=out)
    return maximum(x, min, out=out) if max is None else _clamp(x, min, max, out=out)


def div(x, y, rounding_mode=None, out=None):
    """x / y in floats (integers give f32); rounding_mode "trunc" or "floor" rounds and keeps integers.

    >>> import tensorlib
    >>> div(tensorlib.tensor([7, -7]), 2, rounding_mode="floor")
    tensor([ 3, -4])
    """
    if rounding_mode is None:
        return _div(x, y, out=out)
    if rounding_mode == "floor":
        return floor_divide(x, y, out=out)
    if rounding_mode != "trunc":
        raise DTypeError("div", f"rounding_mode {rounding_mode!r}", "None, 'trunc' or 'floor'", "use one of these")
    rest = fmod(x, y)
    return floor_divide(sub(x, rest), y, out=out) if rest.dtype.kind != "f" else trunc(_div(x, y), out=out)


def pow(x, y, out=None):
    """x ** y. Integers wrap; an integer tensor to a negative Python integer is a DTypeError (convert to floats)."""
    kind = getattr(getattr(x, "dtype", None), "kind", "f")
    if isinstance(y, int) and y < 0 and kind in "bui":
        raise DTypeError("pow", f"integers to the power {y}", "a power of 0 or more", "convert with .to('f32') first")
    if type(y) in (int, float) and y == 2 and kind == "f":
        return square(x, out=out)
    return _pow(x, y, out=out)


def leaky_relu(x, negative_slope=0.01, out=None):
    """x, or x * negative_slope below 0 (a number or an Array). FLOAT dtypes."""
    return _leaky_relu(x, negative_slope, out=out)


def elu(x, alpha=1.0, out=None):
    """x, or alpha * (e ** x - 1) below 0 (arXiv:1511.07289). FLOAT dtypes."""
    return _elu(x, alpha, out=out)


def softplus(x, beta=1.0, threshold=None, out=None):
    """log(1 + e ** (beta x)) / beta; x where beta x is above `threshold`, if one is given: the function needs none."""
    found = _softplus_row(x, out=out) if beta == 1 else div(_softplus_row(mul(x, beta)), beta, out=out)
    return found if threshold is None else where(gt(mul(x, beta), threshold), x, found)


def round(x, decimals=0, out=None):
    """Nearest multiple of 10 ** -decimals, halves to even."""
    if decimals == 0 or x.dtype.kind != "f":
        return _round(x, out=out)
    scale = 10.0**decimals
    return _div(_round(mul(x, scale)), scale, out=out)


def gelu(x, approximate="none"):
    """Gaussian error linear unit (arXiv:1606.08415); approximate="tanh" for the tanh form. FLOAT dtypes."""
    if approximate not in ("none", "tanh"):
        raise DTypeError("gelu", f"approximate={approximate!r}", "'none' or 'tanh'", "use one of these")
    return gelu_tanh(x) if approximate == "tanh" else gelu_erf(x)


NAMES = (*(n for n, op in OPS.items() if op.kind in ("unary", "binary", "ternary")), "masked_fill")
