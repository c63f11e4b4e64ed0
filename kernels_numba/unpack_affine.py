"""Rows of `unpack.py`, continued: blocks of 32 made of other libraries' checkpoints (tensorlib/quant/private.py).

Affine blocks, "a4_32" and so on: a scale, a zero, both f16 (in "a4_32w" f32), then codes of 8, 4, 3, 2 or 1 bits; a
weight is (code - zero) * scale: scale * code + m here, m = -scale * zero, which f32 holds exactly for f16. "bnb8":
an f32 s, then i8; a weight is s / 127 * code.
"""

from llvmlite import ir

from . import simd
from .simd import I8x32, I8x64, _const, _load, _make, _shuffle
from .unpack import Unpack

_I16, _I32, _F32, _I64 = ir.IntType(16), ir.IntType(32), ir.FloatType(), ir.IntType(64)


def _joined(name, each, vector):
    """Intrinsic f(four addresses): what is there, of LLVM type `each`, as one vector."""

    def lower(b, t, *addresses):
        v = ir.Constant(ir.VectorType(each, 4), ir.Undefined)
        for j, a in enumerate(addresses):
            v = b.insert_element(v, _load(b, a, each), _const(_I32, j))
        return b.bitcast(v, vector.ll)

    return _make(name, lambda a, b, c, d: vector, lower, 4)


def _wide_scales(b, t, *addresses):
    """f32 at four addresses -> vector, each in four lanes"""
    v = ir.Constant(ir.VectorType(_F32, 4), ir.Undefined)
    for j, a in enumerate(addresses):
        v = b.insert_element(v, _load(b, a, _F32), _const(_I32, j))
    return _shuffle(b, v, v, [j for j in range(4) for _ in range(4)])


wide_scales4 = _make("wide_scales4", lambda a, b, c, d: simd.F32x16, _wide_scales, 4)
ld4x8 = _joined("ld4x8", _I64, I8x32)
ld4x4 = _joined("ld4x4", _I32, simd.I8x16)


def _crumbs(half):
    """Intrinsic f(i8x32): 8 bytes of four blocks, each with element j % 8 of its four quarters, to u8 `lo` or `hi`."""
    words = ir.VectorType(_I16, 32)
    shifts = [4 * half + (i % 8 > 3) * 2 for i in range(32)]

    def lower(b, t, x):
        v = b.bitcast(_shuffle(b, x, x, [8 * q + i % 8 for q in range(4) for i in range(16)]), words)
        return b.and_(b.bitcast(b.lshr(v, _const(words, shifts)), I8x64.ll), _const(I8x64.ll, 3))

    return _make("crumbs", lambda x: I8x64, lower, 1)


def _flags(half, value):
    """Intrinsic f(i8x16): 32 bits of four blocks, in order, to u8 `lo` or `hi`: `value` where a bit is set."""
    index = [4 * q + 2 * half + i // 8 for q in range(4) for i in range(16)]

    def lower(b, t, x):
        v = b.and_(_shuffle(b, x, x, index), _const(I8x64.ll, [1 << i % 8 for i in range(64)]))
        found = b.icmp_unsigned("!=", v, _const(I8x64.ll, 0))
        return b.select(found, _const(I8x64.ll, value), _const(I8x64.ll, 0))

    return _make("flags", lambda x: I8x64, lower, 1)


affine_lo2, affine_hi2 = (_crumbs(half) for half in (0, 1))
affine_lo1, affine_hi1, third_lo, third_hi = (_flags(half, value) for value in (1, 4) for half in (0, 1))


def _four(load, at):
    """A call of `load` with four addresses, `at` bytes into each block."""
    return f"{load}({', '.join(f'{{b{j}}} + {at}' for j in range(4))})"


def _codes(bits, at):
    """Lines for lo and hi of codes that begin `at` bytes into the blocks."""
    if bits == 8:
        return f"lo = {_four('ld4x16', at)}", f"hi = {_four('ld4x16', at + 16)}"
    if bits == 4:
        return f"v = {_four('ld4x16', at)}", "lo = low4(v)", "hi = high4(v)"
    if bits == 1:
        return f"v = {_four('ld4x4', at)}", "lo = affine_lo1(v)", "hi = affine_hi1(v)"
    lines = (f"v = {_four('ld4x8', at)}", "lo = affine_lo2(v)", "hi = affine_hi2(v)")
    if bits == 3:
        lines += (f"bits = {_four('ld4x4', at + 8)}", "lo = lo | third_lo(bits)", "hi = hi | third_hi(bits)")
    return lines


def _affine(bits, size):
    """A row whose scale and zero take `size` bytes each."""
    if size == 2 and bits > 2:  # four blocks are at least 64 bytes, which scales are loaded from at once
        return Unpack(32, 4 + 4 * bits, 0, _codes(bits, 4), minimum=True, small=bits < 8, zero=True)
    load = "scales4" if size == 2 else "wide_scales4"
    scales = (f"d = {_four(load, 0)}", f"m = zero_f32x16() - d * {_four(load, size)}")
    lines = _codes(bits, 2 * size) + scales
    return Unpack(32, 2 * size + 4 * bits, 0, lines, minimum=True, small=bits < 8, f16=False)


UNPACK = {f"a{bits}_32{'w' * (size == 4)}": _affine(bits, size) for size in (2, 4) for bits in (8, 4, 3, 2, 1)}
UNPACK["bnb8"] = Unpack(
    32,
    36,
    128,
    (
        f"lo = flip({_four('ld4x16', 4)})",
        f"hi = flip({_four('ld4x16', 20)})",
        f"d = {_four('wide_scales4', 0)} * splat_f32x16(0.007874015718698502)",
    ),
    small=False,
    f16=False,
)
