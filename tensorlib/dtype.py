"""The dtype table and the promotion lattice.

A row per dtype; everything else asks the row. Promotion is PyTorch's (`torch.result_type`), extended where PyTorch
refuses: u16 and u32 mix with signed integers as in NumPy, and float8 widens to the float it meets.

>>> from tensorlib import dtype
>>> dtype.promote(dtype.i64, dtype.f16), dtype.promote(dtype.f16, dtype.bf16), dtype.promote(dtype.u8, 2.5)
(f16, f32, f32)
"""

from __future__ import annotations

import math
import struct

from tensorlib.errors import DTypeError


class DType:
    """One element type: `name`, `itemsize` in bytes, `kind` ('b', 'u', 'i' or 'f'), and its names in NumPy and PyTorch.

    The rows are singletons: compare them with `is` or `==`. NumPy spells bfloat16 and float8 through `ml_dtypes`.
    """

    __slots__ = ("name", "itemsize", "kind", "numpy", "torch", "_numpy_dtype")

    def __init__(self, name: str, itemsize: int, kind: str, numpy: str, torch: str):
        for field, value in zip(self.__slots__, (name, itemsize, kind, numpy, torch, None), strict=True):
            object.__setattr__(self, field, value)

    def __setattr__(self, field, value):
        raise AttributeError(f"DType rows are constants: cannot set {field!r} of {self.name}")

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self):
        return get, (self.name,)

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def is_signed(self) -> bool:
        return self.kind in "if"

    @property
    def bits(self) -> int:
        """Width in bits of one stored element."""
        return self.itemsize * 8

    @property
    def compute(self) -> DType:
        """The dtype its arithmetic runs in: f32 for the floats below 32 bits, itself otherwise."""
        return f32 if self.kind == "f" and self.itemsize < 4 else self

    def numpy_dtype(self):
        """The `numpy.dtype` of this row (imports NumPy, and ml_dtypes for bf16 and float8)."""
        if self._numpy_dtype is None:
            import numpy

            if hasattr(numpy, self.numpy) and self.name != "bool":
                found = numpy.dtype(self.numpy)
            elif self.name == "bool":
                found = numpy.dtype(numpy.bool_)
            else:
                import ml_dtypes

                found = numpy.dtype(getattr(ml_dtypes, self.numpy))
            object.__setattr__(self, "_numpy_dtype", found)
        return self._numpy_dtype


bool_ = DType("bool", 1, "b", "bool", "bool")
u8 = DType("u8", 1, "u", "uint8", "uint8")
i8 = DType("i8", 1, "i", "int8", "int8")
u16 = DType("u16", 2, "u", "uint16", "uint16")
i16 = DType("i16", 2, "i", "int16", "int16")
u32 = DType("u32", 4, "u", "uint32", "uint32")
i32 = DType("i32", 4, "i", "int32", "int32")
u64 = DType("u64", 8, "u", "uint64", "uint64")
i64 = DType("i64", 8, "i", "int64", "int64")
f16 = DType("f16", 2, "f", "float16", "float16")
bf16 = DType("bf16", 2, "f", "bfloat16", "bfloat16")
f32 = DType("f32", 4, "f", "float32", "float32")
f64 = DType("f64", 8, "f", "float64", "float64")
f8e4m3 = DType("f8e4m3", 1, "f", "float8_e4m3fn", "float8_e4m3fn")
f8e5m2 = DType("f8e5m2", 1, "f", "float8_e5m2", "float8_e5m2")

ALL = (bool_, u8, i8, u16, i16, u32, i32, u64, i64, f16, bf16, f32, f64, f8e4m3, f8e5m2)
_ALIASES = {"half": f16, "float": f32, "double": f64, "int": i32, "long": i64, "short": i16, "bool_": bool_}
DTYPES: dict[str, DType] = {**{d.numpy: d for d in ALL}, **_ALIASES, **{d.name: d for d in ALL}}
_PYTHON = {bool: bool_, int: i64, float: f32}


def get(spec) -> DType:
    """The row for a DType, a name (`"f32"`, `"float32"`), a NumPy or PyTorch dtype, or Python's `bool`, `int`, `float`.

    Raises DTypeError for anything else.
    """
    if type(spec) is DType:
        return spec
    if isinstance(spec, type) and spec in _PYTHON:
        return _PYTHON[spec]
    name = (
        spec if isinstance(spec, str) else getattr(spec, "name", None) or getattr(spec, "__name__", None) or str(spec)
    )
    found = DTYPES.get(name.removeprefix("torch."))
    if found is None:
        names = ", ".join(d.name for d in ALL)
        raise DTypeError("dtype", repr(spec), f"one of {names}", "use one of these, or its NumPy or PyTorch name")
    return found


def of_scalar(value) -> DType:
    """The dtype a bare Python number gets: bool, i64 or f32. Raises DTypeError for anything else."""
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return _PYTHON[kind]
    raise DTypeError("dtype", f"a {type(value).__name__}", "a bool, int or float", "convert the value first")


_RANK = {"b": 0, "u": 1, "i": 1, "f": 2}
_INT_BY_SIZE = {1: i8, 2: i16, 4: i32, 8: i64}


def category(d: DType) -> int:
    """0 for bool, 1 for integers, 2 for floats: promotion first compares these."""
    return _RANK[d.kind]


def _join(a: DType, b: DType) -> DType:
    if a is b:
        return a
    if _RANK[a.kind] != _RANK[b.kind]:
        return a if _RANK[a.kind] > _RANK[b.kind] else b
    if a.kind == b.kind:
        if a.itemsize != b.itemsize:
            return a if a.itemsize > b.itemsize else b
        return f32 if a.itemsize == 2 else f16
    unsigned, signed = (a, b) if a.kind == "u" else (b, a)
    if unsigned is u64:
        raise DTypeError(
            "promote", f"{a} and {b}", "integers that a common dtype holds", "cast one of them with .to(dtype)"
        )
    return _INT_BY_SIZE[max(signed.itemsize, unsigned.itemsize * 2)]


PROMOTE: dict[tuple[DType, DType], DType] = {
    (a, b): _join(a, b) for a in ALL for b in ALL if not (u64 in (a, b) and "i" in a.kind + b.kind)
}


def promote(a, b) -> DType:
    """The dtype of a result of operands of dtypes `a` and `b`.

    Either may be a Python number, which is weak: it changes the other's dtype only to reach a higher category
    (bool < integer < float), and then to i64 or f32. Raises DTypeError for u64 with a signed integer.

    >>> promote(u8, 300), promote(bool_, 1), promote(i32, i16), promote(u8, i8)
    (u8, i64, i32, i16)
    """
    if type(a) is DType and type(b) is DType:
        return PROMOTE.get((a, b)) or _join(a, b)
    if type(a) is not DType and type(b) is not DType:
        return _join(of_scalar(a), of_scalar(b))
    strong, weak = (a, of_scalar(b)) if type(a) is DType else (b, of_scalar(a))
    return weak if _RANK[weak.kind] > _RANK[strong.kind] else strong


def result_type(dimmed: list[DType], zero_dim: list[DType] = (), scalars: list = ()) -> DType:
    """PyTorch's rule for mixed operands: tensors with dims decide, 0-d tensors and then Python numbers only raise the
    category.

    >>> result_type([f16], [f32]), result_type([i32], [f16]), result_type([i32], [], [1.5])
    (f16, f16, f32)
    """
    result = None
    for group in (dimmed, zero_dim, [of_scalar(s) for s in scalars]):
        joined = None
        for d in group:
            joined = d if joined is None else promote(joined, d)
        if joined is not None and (result is None or _RANK[joined.kind] > _RANK[result.kind]):
            result = joined
    return result


def info(d: DType) -> tuple[float, float]:
    """Smallest and largest finite value of `d`.

    >>> info(i8), info(f8e4m3)
    ((-128, 127), (-448.0, 448.0))
    """
    if d.kind == "f":
        top = {
            "f16": 65504.0,
            "bf16": (2 - 2**-7) * 2.0**127,
            "f32": (2 - 2**-23) * 2.0**127,
            "f64": (2 - 2**-52) * 2.0**1023,
        }
        top |= {"f8e4m3": 448.0, "f8e5m2": 57344.0}
        return -top[d.name], top[d.name]
    if d.kind == "i":
        return -(1 << d.bits - 1), (1 << d.bits - 1) - 1
    return 0, (1 if d.kind == "b" else (1 << d.bits) - 1)


# ---- values as bytes, without NumPy ----------------------------------------------------------------------------------

_CODES = dict(zip((d.name for d in ALL if d not in (bf16, f8e4m3, f8e5m2)), "?BbHhIiQqefd"))  # of struct
_SMALL = {"bf16": (8, 7), "f8e4m3": (4, 3), "f8e5m2": (5, 2)}  # exponent and mantissa bits


def pack(values: list, d: DType) -> bytes:
    """Python numbers as the bytes of `d`: floats round to nearest even, integers must fit. Raises DTypeError.

    >>> pack([1.0, -2.5], bf16).hex(), unpack(pack([0.1], f16), f16)
    ('803f20c0', [0.0999755859375])
    """
    if d.name in _SMALL:
        code = "H" if d.itemsize == 2 else "B"
        return struct.pack(f"<{len(values)}{code}", *(_small_bits(float(v), d) for v in values))
    try:
        return struct.pack(f"<{len(values)}{_CODES[d.name]}", *values)
    except OverflowError:  # a float beyond the largest one
        top = info(d)[1]
        limit = top * (1 + 2.0 ** (-12 if d is f16 else -25))  # from halfway to the next power of two on
        return pack([v if abs(v) < limit or v != v else math.copysign(math.inf, v) for v in map(float, values)], d)
    except struct.error:
        if d.kind == "f" or all(isinstance(v, int) for v in values):
            limits = "{} to {}".format(*info(d))
            raise DTypeError("tensor", f"numbers that {d} cannot hold", limits, "use a wider dtype") from None
        return pack([int(v) for v in values], d)


def unpack(data: bytes, d: DType) -> list:
    """The inverse of `pack`: a list of bools, ints or floats."""
    n = len(data) // d.itemsize
    if d.name in _CODES:
        return list(struct.unpack(f"<{n}{_CODES[d.name]}", data))
    return [_small_value(b, d) for b in struct.unpack(f"<{n}{'H' if d.itemsize == 2 else 'B'}", data)]


def _small_bits(v: float, d: DType) -> int:
    exponent_bits, mantissa_bits = _SMALL[d.name]
    bias, sign = (1 << exponent_bits - 1) - 1, (math.copysign(1.0, v) < 0) << d.bits - 1
    ones = (1 << exponent_bits) - 1 << mantissa_bits  # infinity, where there is one
    if v != v:
        return sign | ones | (1 << mantissa_bits) - 1 if d is not bf16 else sign | 0x7FC0
    if math.isinf(v):
        return sign | (ones if d is not f8e4m3 else 0x7F)
    exponent = max(math.frexp(v)[1] - 1, 1 - bias) if v else 1 - bias
    code = (exponent + bias - 1 << mantissa_bits) + round(math.ldexp(abs(v), mantissa_bits - exponent))
    return sign | min(code, ones if d is not f8e4m3 else 0x7F)


def _small_value(bits: int, d: DType) -> float:
    exponent_bits, mantissa_bits = _SMALL[d.name]
    bias, mag = (1 << exponent_bits - 1) - 1, bits & (1 << d.bits - 1) - 1
    exponent, mantissa = mag >> mantissa_bits, mag & (1 << mantissa_bits) - 1
    if d is f8e4m3 and mag == 0x7F:
        value = math.nan
    elif d is not f8e4m3 and exponent == (1 << exponent_bits) - 1:
        value = math.nan if mantissa else math.inf
    else:
        mantissa += bool(exponent) << mantissa_bits
        value = math.ldexp(mantissa, max(exponent, 1) - bias - mantissa_bits)
    return -value if bits >> d.bits - 1 else value
