"""Elementwise functions of the standard, and the operators of its array.

Both operands are brought to the promoted dtype; a Python number takes the array's. Integers where floats are meant are
computed in float32, the default dtype. Where an op here has PyTorch's special cases, the standard's replace them.
"""

from tensorlib import device as _device
from tensorlib import dtype as D
from tensorlib.array_api import _dtypes
from tensorlib.array_api._array import NDArray, array, wrap
from tensorlib.array_api._creation import _fitting
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.ops import create, elementwise, movement, special

# ---- operands --------------------------------------------------------------------------------------------------------


def scalar(op, x, dtype):
    """A Python number as a 0-d array. DTypeError, OverflowError."""
    _fitting(op, [x], dtype)
    return create.full(NDArray, (), x, dtype=dtype)


def pair(op, x1, x2):
    """Two operands, of which one may be a number, as arrays of the dtype that they promote to. DTypeError."""
    arrays = [x for x in (x1, x2) if isinstance(x, _device.Array)]
    if not arrays:
        raise DTypeError(op, f"{type(x1).__name__} and {type(x2).__name__}", "at least one array", "use asarray")
    if len(arrays) == 2:
        dtype = _dtypes.promote(op, x1.dtype, x2.dtype)
    else:
        dtype = _dtypes.with_scalar(op, arrays[0].dtype, x2 if arrays[0] is x1 else x1)
    return [
        elementwise.cast(wrap(x), dtype) if isinstance(x, _device.Array) else scalar(op, x, dtype) for x in (x1, x2)
    ]


def floats(x):
    """x, integers and bool as float32."""
    return x if x.dtype.kind == "f" else elementwise.cast(x, D.f32)


def _unary(name, function, doc, only="buif"):
    def apply(x, /):
        x = array(name, x)
        if x.dtype.kind not in only:
            raise DTypeError(name, f"dtype {x.dtype}", f"a dtype of the kinds {', '.join(only)}", "convert with astype")
        return wrap(function(x))

    apply.__name__ = apply.__qualname__ = name
    apply.__doc__ = f"{doc}, element by element. DTypeError."
    return apply


def _binary(name, function, doc):
    def apply(x1, x2, /):
        return wrap(function(*pair(name, x1, x2)))

    apply.__name__ = apply.__qualname__ = name
    apply.__doc__ = f"{doc}, element by element; either may be a Python number. ShapeError, DTypeError."
    return apply


# ---- what differs from the ops, or is not among them -----------------------------------------------------------------


def _sign(x):
    found = elementwise.sign(x)
    return elementwise.where(elementwise.isnan(x), x, found) if x.dtype.kind == "f" else found


def _floor_divide(x, y):
    if x.dtype.kind != "f":
        return elementwise.floor_divide(x, y)
    return elementwise.floor(elementwise.div(x, y))  # so that infinities are divided too, as the standard prefers


def _remainder(x, y):
    found = elementwise.remainder(x, y)
    if x.dtype.kind != "f":
        return found
    return elementwise.where(elementwise.eq(found, 0), elementwise.copysign(found, y), found)  # 0 has the sign of y


def _rounding(function):
    return lambda x: function(x) if x.dtype.kind == "f" else movement.clone(x)


def _class(function, answer):
    """A question about floats, whose answer for integers is known."""
    return lambda x: function(x) if x.dtype.kind == "f" else create.full(NDArray, x.shape, answer)


def _float_op(function):
    return lambda *xs: function(*map(floats, xs))


def _bool_op(function):
    def checked(*xs):
        for x in xs:
            if x.dtype.kind != "b":
                raise DTypeError(function.__name__, f"dtype {x.dtype}", "bool", "compare with 0 first")
        return function(*xs)

    return checked


# ---- tables ----------------------------------------------------------------------------------------------------------

_FLOATS = {
    "acos": "Inverse cosine", "acosh": "Inverse hyperbolic cosine", "asin": "Inverse sine",
    "asinh": "Inverse hyperbolic sine", "atan": "Inverse tangent", "atanh": "Inverse hyperbolic tangent",
    "cos": "Cosine", "cosh": "Hyperbolic cosine", "exp": "e ** x", "expm1": "e ** x - 1, accurate near 0",
    "log": "Natural logarithm", "log10": "Logarithm to base 10", "log1p": "log(1 + x), accurate near 0",
    "log2": "Logarithm to base 2", "reciprocal": "1 / x", "sin": "Sine", "sinh": "Hyperbolic sine",
    "sqrt": "Square root", "tan": "Tangent", "tanh": "Hyperbolic tangent",
}  # fmt: skip
_UNARY = {
    "abs": (elementwise.abs, "|x|", "uif"),
    "bitwise_invert": (elementwise.bitwise_not, "Every bit flipped; not x for bool", "bui"),
    "ceil": (_rounding(elementwise.ceil), "Smallest integer not below x", "uif"),
    "conj": (lambda x: x, "The complex conjugate: x itself, being real", "uif"),
    "floor": (_rounding(elementwise.floor), "Largest integer not above x", "uif"),
    "imag": (lambda x: create.zeros(NDArray, x.shape, dtype=x.dtype), "The imaginary part: 0, x being real", "uif"),
    "isfinite": (_class(elementwise.isfinite, True), "Whether x is neither NaN nor an infinity", "uif"),
    "isinf": (_class(elementwise.isinf, False), "Whether x is an infinity", "uif"),
    "isnan": (_class(elementwise.isnan, False), "Whether x is NaN", "uif"),
    "logical_not": (_bool_op(elementwise.logical_not), "Not x", "b"),
    "negative": (elementwise.neg, "-x", "uif"),
    "positive": (movement.clone, "+x: a copy", "uif"),
    "real": (lambda x: x, "The real part: x itself", "uif"),
    "round": (_rounding(elementwise.round), "Nearest integer, halves to even", "uif"),
    "sign": (_sign, "-1, 0 or 1; NaN stays", "uif"),
    "signbit": (special.signbit, "Whether the sign bit is set, of -0.0 and NaN as well", "f"),
    "square": (elementwise.square, "x * x", "uif"),
    "trunc": (_rounding(elementwise.trunc), "x without its fraction", "uif"),
}
_BINARY = {
    "add": (elementwise.add, "x1 + x2"),
    "atan2": (_float_op(elementwise.atan2), "Angle of the point (x2, x1)"),
    "bitwise_and": (elementwise.bitwise_and, "Bits of both"),
    "bitwise_left_shift": (elementwise.bitwise_left_shift, "x1 * 2 ** x2"),
    "bitwise_or": (elementwise.bitwise_or, "Bits of either"),
    "bitwise_right_shift": (elementwise.bitwise_right_shift, "x1 / 2 ** x2 rounded down"),
    "bitwise_xor": (elementwise.bitwise_xor, "Bits that differ"),
    "copysign": (_float_op(elementwise.copysign), "|x1| with the sign of x2"),
    "divide": (_float_op(elementwise.div), "x1 / x2"),
    "equal": (elementwise.eq, "x1 == x2"),
    "floor_divide": (_floor_divide, "x1 / x2 rounded down"),
    "greater": (elementwise.gt, "x1 > x2"),
    "greater_equal": (elementwise.ge, "x1 >= x2"),
    "hypot": (_float_op(special.hypot), "sqrt(x1 ** 2 + x2 ** 2), without overflow"),
    "less": (elementwise.lt, "x1 < x2"),
    "less_equal": (elementwise.le, "x1 <= x2"),
    "logaddexp": (_float_op(special.logaddexp), "log(e ** x1 + e ** x2), without overflow"),
    "logical_and": (_bool_op(elementwise.logical_and), "x1 and x2"),
    "logical_or": (_bool_op(elementwise.logical_or), "x1 or x2"),
    "logical_xor": (_bool_op(elementwise.logical_xor), "Either but not both"),
    "maximum": (elementwise.maximum, "The larger; NaN if either is"),
    "minimum": (elementwise.minimum, "The smaller; NaN if either is"),
    "multiply": (elementwise.mul, "x1 * x2"),
    "nextafter": (_float_op(special.nextafter), "The next float after x1 towards x2"),
    "not_equal": (elementwise.ne, "x1 != x2"),
    "pow": (elementwise.pow, "x1 ** x2"),
    "remainder": (_remainder, "x1 - x2 * floor(x1 / x2), Python's %"),
    "subtract": (elementwise.sub, "x1 - x2"),
}
FUNCTIONS = {
    **{name: _unary(name, _float_op(getattr(elementwise, name)), doc) for name, doc in _FLOATS.items()},
    **{name: _unary(name, *row) for name, row in _UNARY.items()},
    **{name: _binary(name, *row) for name, row in _BINARY.items()},
}


# ---- more than two operands ------------------------------------------------------------------------------------------


def clip(x, /, min=None, max=None):
    """x limited to [min, max], which may be None, numbers or arrays that broadcast with it; x's dtype. NaN in any of
    them gives NaN. ShapeError, DTypeError.

    >>> from tensorlib import array_api as xp
    >>> xp.clip(xp.asarray([1, 5, 9]), 2, 6)
    tensor([2, 5, 6])
    """
    x = array("clip", x)
    if x.dtype.kind == "b":
        raise DTypeError("clip", "dtype bool", "numbers", "convert with astype")
    for bound, limit in ((min, elementwise.maximum), (max, elementwise.minimum)):
        if bound is not None:
            bound = bound if isinstance(bound, _device.Array) else scalar("clip", bound, x.dtype)
            x = limit(x, elementwise.cast(wrap(bound), x.dtype))
    return x if min is not None or max is not None else movement.clone(x)


def where(condition, x1, x2, /):
    """x1 where `condition` (bool) is true, else x2: any shapes that broadcast, the promoted dtype of x1 and x2, either
    of which may be a Python number. ShapeError, DTypeError.

    >>> from tensorlib import array_api as xp
    >>> xp.where(xp.asarray([True, False]), xp.asarray([1, 2]), 0)
    tensor([1, 0])
    """
    return elementwise.where(array("where", condition), *pair("where", x1, x2))


# ---- operators -------------------------------------------------------------------------------------------------------

_OPERATORS = {
    "add": "add", "and": "bitwise_and", "floordiv": "floor_divide", "lshift": "bitwise_left_shift", "mod": "remainder",
    "mul": "multiply", "or": "bitwise_or", "pow": "pow", "rshift": "bitwise_right_shift", "sub": "subtract",
    "truediv": "divide", "xor": "bitwise_xor",
}  # fmt: skip
_COMPARISONS = {
    "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal",
}  # fmt: skip
_UNARY_OPERATORS = {"abs": "abs", "invert": "bitwise_invert", "neg": "negative", "pos": "positive"}


def operator(function, reflected=False):
    """A method `self op other` (other op self) that leaves operands it does not know to the other's class."""

    def method(self, other, /):
        if not isinstance(other, (_device.Array, bool, int, float)):
            return NotImplemented
        return function(other, self) if reflected else function(self, other)

    return method


def in_place(function):
    """A method `self op= other`, which keeps self's dtype and shape. DTypeError, ShapeError."""

    def method(self, other, /):
        if not isinstance(other, (_device.Array, bool, int, float)):
            return NotImplemented
        found = function(self, other)
        if found.dtype is not self.dtype or found.shape != self.shape:
            got, expected = f"a result {found.dtype} {found.shape}", f"{self.dtype} {self.shape}"
            error = DTypeError if found.dtype is not self.dtype else ShapeError
            raise error(function.__name__, got, expected, "use the operator that makes a new array")
        self[...] = found
        return self

    return method


def _unary_operator(function):
    return lambda self, /: function(self)


def _attach():
    for name, function in _OPERATORS.items():
        setattr(NDArray, f"__{name}__", operator(FUNCTIONS[function]))
        setattr(NDArray, f"__r{name}__", operator(FUNCTIONS[function], reflected=True))
        setattr(NDArray, f"__i{name}__", in_place(FUNCTIONS[function]))
    for name, function in _COMPARISONS.items():
        setattr(NDArray, f"__{name}__", operator(FUNCTIONS[function]))
    for name, function in _UNARY_OPERATORS.items():
        setattr(NDArray, f"__{name}__", _unary_operator(FUNCTIONS[function]))


_attach()
