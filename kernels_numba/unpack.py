"""GGML blocks as vectors of bytes: for each format, the lines of source that unpack a *group* of 128 weights of a row.

A group is four runs of 32 weights, whatever the format's blocks are: four blocks of 32, two of 64, half a super-block
of 256. Unpacked it is two u8 vectors of 64: `lo`, the first 16 weights of each of the four runs, and `hi`, the other
16; f32 vectors of 16 with a run's value in four lanes each: `d` (scale), and where the format has them `m` (minimum, to
be added) and `dh` (the scale of `hi`, when halves differ; then `m` has the minimum of `lo` in the first two of the four
lanes, that of `hi` in the others). A weight is d * (u - bias) + m. Activations are packed in the same order, so nothing
else needs to know a format's layout.

Lines may use {g}, the group in its super-block, {g2}, that plus 2, and the address {p} of the super-block; in formats
with blocks of 32 or 64 {b0} to {b3} or {b1}, the blocks' addresses (past a row's end: again the last one's). They read
nothing outside the blocks.

Block layouts: ggml-common.h of llama.cpp.
"""

from typing import NamedTuple

from llvmlite import ir
from numba.extending import register_jitable

from . import simd
from .simd import (
    F32x16,
    I8x16,
    I8x64,
    _const,
    _join_halves,
    _load,
    _make,
    _shuffle,
    constant,
    shuffle,
)


class Unpack(NamedTuple):
    """A format's row: blocks of `elements` weights in `nbytes`, unsigned values less `bias`; `once` runs per
    super-block.
    """

    elements: int
    nbytes: int
    bias: int  # 0 in a format with minima
    lines: tuple
    once: tuple = ()
    minimum: bool = False
    halves: bool = False
    small: bool = True  # unpacked values are at most 127
    f16: bool = True  # blocks of 32 begin with d, and m, as f16: no line need make them
    zero: bool = False  # what stands for m there is a zero: m = -zero * d


def _pieces(b, addresses):
    """four times 16 bytes -> one vector of 64"""
    return _join_halves(b, [_load(b, a, I8x16.ll) for a in addresses])


ld4x16 = _make("ld4x16", lambda a, b, c, d: I8x64, lambda b, t, *a: _pieces(b, a), 4)


def _scales4(b, t, *addresses):
    """f16 at four addresses -> f32 vector, each in four lanes"""
    v = ir.Constant(ir.VectorType(ir.IntType(16), 4), ir.Undefined)
    for j, a in enumerate(addresses):
        v = b.insert_element(v, _load(b, a, ir.IntType(16)), _const(ir.IntType(32), j))
    wide = simd.f16_to_f32(b, v)
    return _shuffle(b, wide, wide, [j for j in range(4) for _ in range(4)])


scales4 = _make("scales4", lambda a, b, c, d: F32x16, _scales4, 4)


def scales_of_group(nbytes, field):
    """Intrinsic f(address): the f16 at `field` of four consecutive blocks as `scales4`, by one or two loads of 64
    bytes.
    """
    at = [field + j * nbytes for j in range(4)]
    beyond = [a for a in at if a + 2 > 64]
    second = min(4 * nbytes - 64, beyond[0] if beyond else 0)
    index = [a // 2 if a + 2 <= 64 else 32 + (a - second) // 2 for a in at]

    def lower(b, t, address):
        words = ir.VectorType(ir.IntType(16), 32)
        x = _load(b, address, words)
        y = _load(b, b.add(address, _const(ir.IntType(64), second)), words) if beyond else x
        return simd.f16_to_f32(b, _shuffle(b, x, y, [i for i in index for _ in range(4)]))

    return _make("scales_of_group", lambda a: F32x16, lower, 1)


def _bits_of(b, t, mask, value):
    """i64 mask -> u8 vector of 64 with `value` in byte i where bit i is set"""
    bits = b.bitcast(mask, ir.VectorType(ir.IntType(1), 64))
    return b.select(bits, simd._splat(b, b.trunc(value, ir.IntType(8)), 64), _const(I8x64.ll, 0))


bits_of = _make("bits_of", lambda m, v: I8x64, _bits_of, 2)


def _bytes_of(b, t, low, high):
    """two i64 -> i8 vector of 16"""
    v = ir.Constant(ir.VectorType(ir.IntType(64), 2), ir.Undefined)
    for j, x in enumerate((low, high)):
        v = b.insert_element(v, x, _const(ir.IntType(32), j))
    return b.bitcast(v, I8x16.ll)


bytes_of = _make("bytes_of", lambda x, y: I8x16, _bytes_of, 2)


def _lanes(pieces, right=(0, 0, 0, 0), left=(0, 0, 0, 0), mask=15):
    """Intrinsic f(x): 16-byte pieces of x picked, each shifted right or left by its own count, and masked.

    Shifts are of 16-bit lanes: what crosses into the other byte is masked away (counts and masks here keep clear of
    it).
    """
    index = [16 * p + i for p in pieces for i in range(16)]
    words = ir.VectorType(ir.IntType(16), 32)

    def lower(b, t, x):
        v = b.bitcast(_shuffle(b, x, x, index), words)
        if any(right):
            v = b.lshr(v, _const(words, [r for r in right for _ in range(8)]))
        if any(left):
            v = b.shl(v, _const(words, [s for s in left for _ in range(8)]))
        return b.and_(b.bitcast(v, I8x64.ll), _const(I8x64.ll, mask))

    return _make("lanes", lambda x: I8x64, lower, 1)


low4, high4 = _lanes((0, 1, 2, 3)), _lanes((0, 1, 2, 3), right=(4, 4, 4, 4))
flip = _make("flip", lambda x: x, lambda b, t, x: b.xor(x, _const(I8x64.ll, -128)), 1, "i8 as u8 with bias 128")
# K-quants: 32 bytes hold two sub-blocks of 32 (low and high nibbles), so a group is two such runs: pieces A0 A1 B0 B1
k_lo, k_hi = _lanes((0, 0, 2, 2), right=(0, 4, 0, 4)), _lanes((1, 1, 3, 3), right=(0, 4, 0, 4))
k5_bits = [
    [_lanes((h,) * 4, left=(4, 3, 2, 1), mask=16) for h in (0, 1)],
    [_lanes((h,) * 4, right=(0, 1, 2, 3), mask=16) for h in (0, 1)],
]
k5_lo0, k5_hi0, k5_lo1, k5_hi1 = (f for half in k5_bits for f in half)
k6_lo, k6_hi = _lanes((0, 2, 0, 2), right=(0, 0, 4, 4)), _lanes((1, 3, 1, 3), right=(0, 0, 4, 4))
k6_lo_bits = _lanes((0,) * 4, right=(0, 0, 0, 2), left=(4, 2, 0, 0), mask=0x30)
k6_hi_bits = _lanes((1,) * 4, right=(0, 0, 0, 2), left=(4, 2, 0, 0), mask=0x30)
spread = [shuffle([4 * g + j for j in range(4) for _ in range(4)]) for g in range(4)]
spread0, spread1, spread2, spread3 = spread
k6_spread = [shuffle([8 * g + 2 * j + h for j in range(4) for _ in range(4)]) for g in (0, 1) for h in (0, 1)]
k6_spread00, k6_spread01, k6_spread10, k6_spread11 = k6_spread
first8_second8 = shuffle([*range(8), *range(24, 32)])
minus8, minus32 = constant("i32", 16, -8), constant("i32", 16, -32)


def _load_wide(bits):
    """Intrinsic f(address): an unsigned integer as an i64."""

    def lower(b, t, address):
        return b.zext(_load(b, address, ir.IntType(bits)), ir.IntType(64))

    return _make("load_wide", lambda a: simd.types.int64, lower, 1)


wide_u16, wide_u32 = _load_wide(16), _load_wide(32)


@register_jitable
def fifth_bits(a, b, c, d):
    """16 bits from each of four addresses as one i64."""
    return (wide_u16(a) | wide_u16(b) << 16) | (wide_u16(c) << 32 | wide_u16(d) << 48)


@register_jitable
def k_scales(at):
    """The 12 bytes of 6-bit scales and minima of Q4_K and Q5_K as bytes: 8 scales, then 8 minima."""
    a = wide_u32(at)
    b = wide_u32(at + 4)
    c = wide_u32(at + 8)
    scales = (a & 0x3F3F3F3F) | (((c & 0x0F0F0F0F) | ((a >> 2) & 0x30303030)) << 32)
    minima = (b & 0x3F3F3F3F) | ((((c >> 4) & 0x0F0F0F0F) | ((b >> 2) & 0x30303030)) << 32)
    return bytes_of(scales, minima)


_K_ONCE = (
    "dm = u2f(zext_i32(k_scales({p} + 4))) * first8_second8(splat_f32x16(ld_f16({p})), splat_f32x16(-ld_f16({p} + 2)))",
)
_K_SCALES = ("d = spread{g}(dm, dm)", "m = spread{g2}(dm, dm)")

UNPACK = {
    "q4_0": Unpack(32, 18, 8, ("v = ld4x16({b0} + 2, {b1} + 2, {b2} + 2, {b3} + 2)", "lo = low4(v)", "hi = high4(v)")),
    "q4_1": Unpack(
        32, 20, 0, ("v = ld4x16({b0} + 4, {b1} + 4, {b2} + 4, {b3} + 4)", "lo = low4(v)", "hi = high4(v)"), minimum=True
    ),
    "q5_0": Unpack(
        32,
        22,
        16,
        (
            "v = ld4x16({b0} + 6, {b1} + 6, {b2} + 6, {b3} + 6)",
            "lo = low4(v) | bits_of(fifth_bits({b0} + 2, {b1} + 2, {b2} + 2, {b3} + 2), 16)",
            "hi = high4(v) | bits_of(fifth_bits({b0} + 4, {b1} + 4, {b2} + 4, {b3} + 4), 16)",
        ),
    ),
    "q5_1": Unpack(
        32,
        24,
        0,
        (
            "v = ld4x16({b0} + 8, {b1} + 8, {b2} + 8, {b3} + 8)",
            "lo = low4(v) | bits_of(fifth_bits({b0} + 4, {b1} + 4, {b2} + 4, {b3} + 4), 16)",
            "hi = high4(v) | bits_of(fifth_bits({b0} + 6, {b1} + 6, {b2} + 6, {b3} + 6), 16)",
        ),
        minimum=True,
    ),
    "q8_0": Unpack(
        32,
        34,
        128,
        (
            "lo = flip(ld4x16({b0} + 2, {b1} + 2, {b2} + 2, {b3} + 2))",
            "hi = flip(ld4x16({b0} + 18, {b1} + 18, {b2} + 18, {b3} + 18))",
        ),
        small=False,
    ),
    "q4_k": Unpack(
        256,
        144,
        0,
        ("v = ld_i8x64({p} + 16 + 64 * {g})", "lo = k_lo(v)", "hi = k_hi(v)", *_K_SCALES),
        _K_ONCE,
        minimum=True,
    ),
    "q5_k": Unpack(
        256,
        176,
        0,
        (
            "v = ld_i8x64({p} + 48 + 64 * {g})",
            "lo = k_lo(v) | k5_lo{g}(bits)",
            "hi = k_hi(v) | k5_hi{g}(bits)",
            *_K_SCALES,
        ),
        (*_K_ONCE, "bits = ld_i8x32({p} + 16)"),
        minimum=True,
    ),
    "q6_k": Unpack(
        256,
        210,
        32,
        (
            "v = ld_i8x64({p} + 64 * {g})",
            "bits = ld_i8x32({p} + 128 + 32 * {g})",
            "lo = k6_lo(v) | k6_lo_bits(bits)",
            "hi = k6_hi(v) | k6_hi_bits(bits)",
            "d = k6_spread{g}0(dm, dm)",
            "dh = k6_spread{g}1(dm, dm)",
        ),
        ("dm = i2f(sext_i32(ld_i8x16({p} + 192))) * splat_f32x16(ld_f16({p} + 208))",),
        halves=True,
    ),
}
