"""Conversions between dtypes, as the CPU does them: one rounding to nearest even, saturation, no trap.

Bools and float8 are bytes in memory. A value
in registers is an int1, an integer, an f32 or an f64. `loaded` and `converted` give source text for kernels that are
generated, from the names of dtypes; the functions below are what that text calls, and what other kernels may.
"""

import numpy as np
import triton
import triton.language as tl

from .float8 import KINDS, writing
from .launch import TYPES

FLOATS = ("f16", "bf16", "f8e4m3", "f8e5m2", "f32", "f64")
_TL = {d: f"tl.{'u' if t[0] == 'u' else ''}int{t.lstrip('uint')}" for d, t in TYPES.items() if t[0] in "ui"}
_TL |= {"bool": "tl.int1", "f16": "tl.float16", "bf16": "tl.bfloat16", "f32": "tl.float32", "f64": "tl.float64"}


def memory(dtype):
    """The type of a pointer to a dtype's elements: bytes for bool and float8.

    >>> memory("f8e5m2"), memory("f16")
    ('*u8', '*fp16')
    """
    return "*u8" if dtype in KINDS or dtype == "bool" else "*" + TYPES[dtype]


def width(dtype):
    """Bytes of an element."""
    return 1 if dtype in KINDS or dtype == "bool" else 2 if dtype == "bf16" else int(dtype[1:]) // 8


def register(dtype):
    """The name in Triton of what a dtype's values are in registers.

    >>> register("f16"), register("u8"), register("bool")
    ('tl.float32', 'tl.uint8', 'tl.int1')
    """
    return "tl.float32" if dtype in FLOATS[:5] else _TL[dtype]


def loaded(value, dtype):
    """Text of a value in registers, from that of what a load of `dtype` gave."""
    if dtype == "bool":
        return f"({value} != 0)"
    if dtype in KINDS:
        value = f"widened({value}, 4)" if dtype == "f8e4m3" else f"upper_f16({value})"
        return f"{value}.to(tl.float32)"
    return f"{value}.to(tl.float32)" if dtype in ("f16", "bf16") else value


def converted(value, dtype, arch=80):
    """Text of a value in registers converted to what is computed in, or stored, as `dtype`, on an architecture."""
    if dtype == "bool":
        return f"to_bool({value})"
    if dtype in FLOATS:
        if dtype in KINDS:
            return f"narrowed(narrow_f32({value}), {writing(dtype, arch)})"
        return f"to_float({value}, {_TL[dtype]})"
    bits, signed = int(dtype[1:]), dtype[0] == "i"
    low, limit = -(1 << bits - 1) if signed else 0, 1 << bits - signed
    wide = _TL[dtype] if bits >= 32 else "tl.int32"
    below = [float(np.nextafter(t(limit), t(0))) for t in (np.float32, np.float64)]
    return f"to_integer({value}, {low}, {limit}, {below[0]!r}, {below[1]!r}, {wide}, {_TL[dtype]})"


@triton.jit
def to_bool(x):
    """What is not 0, NaN included."""
    if x.dtype == tl.int1:
        return x
    else:
        return x != 0


@triton.jit
def to_integer(
    x,
    LOW: tl.constexpr,
    LIMIT: tl.constexpr,
    BELOW32: tl.constexpr,
    BELOW64: tl.constexpr,
    WIDE: tl.constexpr,
    TYPE: tl.constexpr,
):
    """Integers wrap; floats truncate and saturate, NaN gives 0."""
    if x.dtype == tl.float32 or x.dtype == tl.float64:
        below: tl.constexpr = BELOW32 if x.dtype == tl.float32 else BELOW64
        low: tl.constexpr = LOW * 1.0
        limit: tl.constexpr = LIMIT * 1.0
        y = tl.where(x > low, x, low)
        y = tl.where(y < below, y, below)
        value = y.to(WIDE).to(TYPE)
        value = tl.where(x >= limit, tl.full((), LIMIT - 1, TYPE), value)
        return tl.where(x != x, tl.full((), 0, TYPE), value)
    else:
        return x.to(TYPE)


@triton.jit
def upper_f16(x):
    """f8e5m2 as f16: its upper byte."""
    return (x.to(tl.uint16) << 8).to(tl.float16, bitcast=True)


@triton.jit
def odd_f32(x):
    """f64 -> f32 rounded to odd, so that a second rounding to fewer bits gives what one rounding would."""
    near = x.to(tl.float32)
    back = near.to(tl.float64)
    bits = near.to(tl.int32, bitcast=True)
    bits = bits - (tl.abs(back) > tl.abs(x)).to(tl.int32)
    lost = ((back > x) | (back < x)).to(tl.int32)
    return (bits | lost).to(tl.float32, bitcast=True)


@triton.jit
def narrow_f32(x):
    """f32 that rounds on to a narrow float as x itself would: 24 bits do not hold wide integers."""
    if x.dtype == tl.float64:
        return odd_f32(x)
    else:
        if x.dtype.is_int() and x.dtype.primitive_bitwidth > 16:
            return odd_f32(x.to(tl.float64))
        else:
            return x.to(tl.float32)


@triton.jit
def to_float(x, TYPE: tl.constexpr):
    """Any value as f16, bf16, f32 or f64."""
    if TYPE.primitive_bitwidth == 16:
        return narrow_f32(x).to(TYPE)
    else:
        return x.to(TYPE)
