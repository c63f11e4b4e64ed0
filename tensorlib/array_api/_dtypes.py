"""Data types of the standard: names, promotion, what is known of them, conversion.

Real dtypes are rows of `tensorlib.dtype`. Complex numbers are not implemented: `complex64` and `complex128` are names
that can be compared and asked about, and whatever should hold such numbers raises a DTypeError.
"""

from collections import namedtuple

from tensorlib import device as _device
from tensorlib import dtype as D
from tensorlib.array_api._array import array, on
from tensorlib.dtype import DType
from tensorlib.errors import DTypeError
from tensorlib.ops import elementwise

KINDS = {
    "bool": ("bool",),
    "signed integer": ("int8", "int16", "int32", "int64"),
    "unsigned integer": ("uint8", "uint16", "uint32", "uint64"),
    "real floating": ("float32", "float64"),
    "complex floating": ("complex64", "complex128"),
}
KINDS["integral"] = KINDS["signed integer"] + KINDS["unsigned integer"]
KINDS["numeric"] = KINDS["integral"] + KINDS["real floating"] + KINDS["complex floating"]
DTYPES = {name: D.get(name) for kind in ("bool", "integral", "real floating") for name in KINDS[kind]}
_NAMES = {d: name for name, d in DTYPES.items()}


class ComplexDType:
    """The name of a dtype that is not implemented. Comparing it is all that it is good for."""

    __slots__ = ("name",)

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"{self.name} (not implemented)"


complex64, complex128 = ComplexDType("complex64"), ComplexDType("complex128")

finfo_object = namedtuple("finfo_object", "bits eps max min smallest_normal dtype")
iinfo_object = namedtuple("iinfo_object", "bits max min dtype")


def name_of(dtype):
    """A dtype's name in the standard. DTypeError for what it does not have (f16, bf16, ...)."""
    if isinstance(dtype, ComplexDType):
        return dtype.name
    if not isinstance(dtype, DType) or dtype not in _NAMES:
        raise DTypeError("dtype", repr(dtype), "a dtype of the standard", f"use one of {', '.join(DTYPES)}")
    return _NAMES[dtype]


def real(op, dtype):
    """`dtype`, which must be one that is implemented. DTypeError."""
    if isinstance(dtype, ComplexDType):
        raise DTypeError(op, f"dtype {dtype.name}", "a real dtype: complex numbers are not implemented", "use float64")
    name_of(dtype)
    return dtype


def promote(op, a, b):
    """The dtype of results of operands of dtypes a and b. DTypeError for uint64 with a signed integer, for example."""
    a, b = real(op, a), real(op, b)
    try:
        return D.promote(a, b)
    except DTypeError as e:
        raise DTypeError(op, e.got, e.expected, "convert one of them with astype") from e


def with_scalar(op, dtype, value):
    """The dtype of a result of an array of `dtype` and a Python number, which is weak. DTypeError."""
    if not isinstance(value, (bool, int, float)):
        raise DTypeError(op, f"a {type(value).__name__}", "an array or a Python bool, int or float", "use asarray")
    return D.promote(real(op, dtype), value)


def result_type(*arrays_and_dtypes):
    """The dtype that arrays, dtypes and Python numbers promote to; at least one of them is not a number. DTypeError.

    >>> from tensorlib import array_api as xp
    >>> xp.result_type(xp.int8, xp.uint8, 3), xp.result_type(xp.asarray([1.0]), xp.float64)
    (i16, f64)
    """
    found, scalars = None, []
    for x in arrays_and_dtypes:
        if isinstance(x, (bool, int, float)):
            scalars.append(x)
        else:
            d = x.dtype if isinstance(x, _device.Array) else x
            found = real("result_type", d) if found is None else promote("result_type", found, d)
    if found is None:
        raise DTypeError("result_type", "no array and no dtype", "at least one", "add a dtype")
    for x in scalars:
        found = with_scalar("result_type", found, x)
    return found


def can_cast(from_, to, /):
    """Whether promotion takes `from_` (a dtype or an array) to `to`. DTypeError.

    >>> from tensorlib import array_api as xp
    >>> xp.can_cast(xp.int8, xp.int16), xp.can_cast(xp.int16, xp.uint16)
    (True, False)
    """
    source = from_.dtype if isinstance(from_, _device.Array) else from_
    try:
        return promote("can_cast", source, to) is to
    except DTypeError:
        for d in (source, to):
            real("can_cast", d)
        return False


def isdtype(dtype, kind):
    """Whether `dtype` is of a kind: a dtype, a kind's name ("bool", "signed integer", "unsigned integer", "integral",
    "real floating", "complex floating", "numeric"), or a tuple of these, any of which will do. DTypeError.

    >>> from tensorlib import array_api as xp
    >>> xp.isdtype(xp.uint8, "integral"), xp.isdtype(xp.bool, ("numeric", xp.float32))
    (True, False)
    """
    if isinstance(kind, tuple):
        return any(isdtype(dtype, k) for k in kind)
    if not isinstance(kind, str):
        return name_of(dtype) == name_of(kind)
    if kind not in KINDS:
        raise DTypeError("isdtype", f"kind {kind!r}", "a kind of the standard", f"use one of {', '.join(KINDS)}")
    return name_of(dtype) in KINDS[kind]


def _asked(op, type, kind):
    dtype = real(op, type.dtype if isinstance(type, _device.Array) else type)
    if not isdtype(dtype, kind):
        raise DTypeError(op, f"dtype {dtype}", f"a dtype of kind {kind}", "see finfo for floats, iinfo for integers")
    return dtype


def finfo(type, /):
    """What a float dtype (or an array's) is able to hold: bits, eps, max, min, smallest_normal, dtype. DTypeError.

    >>> from tensorlib import array_api as xp
    >>> xp.finfo(xp.float32).eps
    1.1920928955078125e-07
    """
    dtype = _asked("finfo", type, "real floating")
    low, high = D.info(dtype)
    digits, exponent = {"f32": (23, -126), "f64": (52, -1022)}[dtype.name]
    return finfo_object(dtype.bits, 2.0**-digits, high, low, 2.0**exponent, dtype)


def iinfo(type, /):
    """What an integer dtype (or an array's) is able to hold: bits, max, min, dtype. DTypeError.

    >>> from tensorlib import array_api as xp
    >>> xp.iinfo(xp.int8).min
    -128
    """
    dtype = _asked("iinfo", type, "integral")
    low, high = D.info(dtype)
    return iinfo_object(dtype.bits, high, low, dtype)


def astype(x, dtype, /, *, copy=True, device=None):
    """x in another dtype: floats to integers truncate and saturate, to bool all but 0 is true. With copy=False x itself
    if it has the dtype. DTypeError, DeviceError.

    >>> from tensorlib import array_api as xp
    >>> xp.astype(xp.asarray([1.5, -2.5]), xp.int8)
    tensor([ 1, -2], dtype=i8)
    """
    x, dtype = array("astype", x), real("astype", dtype)
    on(device)
    return elementwise.cast(x, dtype, copy)
