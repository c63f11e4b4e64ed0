"""Rows of `unpack.py`, continued: K-quants of 2 and 3 bits, tables of 16 values, ternary, one and two bits, Q8_1, Q8_K.

Block layouts: ggml-common.h of llama.cpp.
"""

from llvmlite import ir
from numba.extending import register_jitable

from . import simd
from .dot import look_up, mulhi16
from .simd import I8x16, I8x32, I8x64, _const, _join_halves, _load, _make, _shuffle, constant, shuffle
from .unpack import Unpack, _lanes, bytes_of, wide_u32

_I8, _I16, _I32 = (ir.IntType(n) for n in (8, 16, 32))
_LOW4 = 0x0F0F0F0F0F0F0F0F
_LOW2 = 0x0303030303030303

ld2x32 = _make("ld2x32", lambda a, b: I8x64, lambda b, t, *a: _join_halves(b, [_load(b, x, I8x32.ll) for x in a]), 2)
ld2x16 = _make("ld2x16", lambda a, b: I8x32, lambda b, t, *a: _join_halves(b, [_load(b, x, I8x16.ll) for x in a]), 2)
wide_u64 = simd.ld_i64
even_pieces = shuffle([32 * q + i for q in range(4) for i in range(16)])  # of 128 bytes in order: lo
odd_pieces = shuffle([32 * q + 16 + i for q in range(4) for i in range(16)])  # and hi


# ---- scales -----------------------------------------------------------------------------------------------------


def _shifted(counts, mask):
    """Intrinsic f(x): i32 vector of 16: x (an integer of up to 32 bits) shifted right by each count, and masked."""

    def lower(b, t, x):
        v = simd._splat(b, b.trunc(x, _I32), 16)
        return b.and_(b.lshr(v, _const(v.type, counts)), _const(v.type, mask))

    return _make("shifted", lambda x: simd.I32x16, lower, 1)


nibbles8 = _shifted([4 * i for i in range(8)] * 2, 15)
crumbs8 = _shifted([2 * i for i in range(8)] * 2, 3)
low_bits, high_bits = constant("i32", 16, 15), constant("i32", 16, 4)
# the scales of 16 weights each of a super-block, in order: those of group g as unpack.py has d, dh and both mixed
halves_of = [shuffle([8 * g + 2 * q + h for q in range(4) for _ in range(4)]) for g in (0, 1) for h in (0, 1)]
half00, half01, half10, half11 = halves_of
mixed0, mixed1 = (shuffle([8 * g + 2 * q + h for q in range(4) for h in (0, 0, 1, 1)]) for g in (0, 1))


@register_jitable
def q3_scales(at):
    """The 12 bytes of Q3_K: 16 numbers of 6 bits as bytes."""
    low, high = wide_u64(at), wide_u32(at + 8)
    first = (low & _LOW4) | (((high | high << 30) & _LOW2) << 4)
    high = high >> 4
    return bytes_of(first, ((low >> 4) & _LOW4) | (((high | high << 30) & _LOW2) << 4))


def _e8m0(b, t, *addresses):
    """the bytes at four addresses as exponents: 2 ** (e - 128) in four lanes each"""
    v = _const(ir.VectorType(_I8, 4), 0)
    for j, a in enumerate(addresses):
        v = b.insert_element(v, _load(b, a, _I8), _const(_I32, j))
    e = b.zext(_shuffle(b, v, v, [j for j in range(4) for _ in range(4)]), simd.I32x16.ll)
    normal = b.shl(b.sub(e, _const(e.type, 1)), _const(e.type, 23))
    tiny = b.icmp_unsigned("<", e, _const(e.type, 2))
    bits = b.select(tiny, b.shl(_const(e.type, 0x200000), b.and_(e, _const(e.type, 1))), normal)
    return b.bitcast(bits, simd.F32x16.ll)


e8m0 = _make("e8m0", lambda a, b, c, d: simd.F32x16, _e8m0, 4)


def _ue4m3(half):
    """Intrinsic f(i8x16): of eight bytes of UE4M3, in order, the even or odd ones as `d`, halved.

    As bits of an f16 a byte lacks a factor of 2**8 and is right for denormals too; 127 is 0.
    """

    def lower(b, t, x):
        wide = ir.VectorType(_I16, 16)
        s = b.zext(_shuffle(b, x, x, [2 * q + half for q in range(4) for _ in range(4)]), wide)
        bits = b.shl(b.and_(s, _const(wide, 127)), _const(wide, 7))
        bits = b.select(b.icmp_unsigned("==", s, _const(wide, 127)), _const(wide, 0), bits)
        return b.fmul(simd.f16_to_f32(b, bits), _const(simd.F32x16.ll, 128.0))

    return _make("ue4m3", lambda x: simd.F32x16, lower, 1)


ue4m3_lo, ue4m3_hi = _ue4m3(0), _ue4m3(1)


def _scales2(b, t, *addresses):
    """f16 at two addresses -> f32 vector, each in eight lanes"""
    v = ir.Constant(ir.VectorType(_I16, 2), ir.Undefined)
    for j, a in enumerate(addresses):
        v = b.insert_element(v, _load(b, a, _I16), _const(_I32, j))
    wide = simd.f16_to_f32(b, v)
    return _shuffle(b, wide, wide, [j for j in range(2) for _ in range(8)])


scales2 = _make("scales2", lambda a, b: simd.F32x16, _scales2, 2)


# ---- values -----------------------------------------------------------------------------------------------------

KVALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
kvalues, e2m1 = look_up([v + 128 for v in KVALUES]), look_up([v + 16 for v in E2M1])
crumbs_lo, crumbs_hi = (_lanes((p,) * 4, right=(0, 2, 4, 6), mask=3) for p in (0, 1))
# bit 4 g + q of 32 bytes as the third bit of run q
q3_bits = [
    [_lanes((h,) * 4, right=(0, 0, 0, 1), left=(2, 1, 0, 0), mask=4) for h in (0, 1)],
    [_lanes((h,) * 4, right=(2, 3, 4, 5), mask=4) for h in (0, 1)],
]
q3_lo0, q3_hi0, q3_lo1, q3_hi1 = (f for half in q3_bits for f in half)
# of two vectors, the first or the second 8 bytes of each 16, by turns
firsts = shuffle([64 * v + 16 * q + i for q in range(4) for v in (0, 1) for i in range(8)])
seconds = shuffle([64 * v + 16 * q + 8 + i for q in range(4) for v in (0, 1) for i in range(8)])


def _ones(half):
    """Intrinsic f(i8x16): 128 bits to u8 vector `lo` or `hi`: 2 where a bit is set."""
    index = [4 * q + 2 * half + i // 8 for q in range(4) for i in range(16)]
    bits = [1 << i % 8 for i in range(64)]

    def lower(b, t, x):
        v = b.and_(_shuffle(b, x, x, index), _const(I8x64.ll, bits))
        return b.select(b.icmp_unsigned("!=", v, _const(I8x64.ll, 0)), _const(I8x64.ll, 2), _const(I8x64.ll, 0))

    return _make("ones", lambda x: I8x64, lower, 1)


ones_lo, ones_hi = _ones(0), _ones(1)


def _quads(half):
    """Intrinsic f(i8x32): 128 numbers of 2 bits, four a byte in order, to u8 vector `lo` or `hi`."""
    index = [8 * q + 4 * half + i for q in range(4) for i in range(4)]

    def lower(b, t, x):
        v = b.zext(_shuffle(b, x, x, index), simd.I32x16.ll)
        v = b.or_(v, b.shl(v, _const(v.type, 6)))
        v = b.or_(v, b.shl(v, _const(v.type, 12)))
        return b.and_(b.bitcast(v, I8x64.ll), _const(I8x64.ll, 3))

    return _make("quads", lambda x: I8x64, lower, 1)


quads_lo, quads_hi = _quads(0), _quads(1)


def trit_digits(index, digits):
    """Intrinsic f(x): bytes `index` of x, of each a digit in base 3 (one per word): (byte * 3 ** digit mod 256) * 3 >>
    8.

    In words: a byte shifted to the top loses what exceeds 256 by itself, and the high half of a product is the digit.
    """
    words = ir.VectorType(_I16, 32)
    powers = _const(words, [3**digit for digit in digits])
    top = _const(words, 0xFF00 - 0x10000)

    def lower(b, t, x):
        v = b.bitcast(_shuffle(b, x, x, index), words)
        even = mulhi16(b, b.mul(b.shl(v, _const(words, 8)), powers), _const(words, 3))
        odd = mulhi16(b, b.mul(b.and_(v, top), powers), _const(words, 3 << 8))
        return b.bitcast(b.or_(even, b.and_(odd, top)), I8x64.ll)

    return _make("trits", lambda x: I8x64, lower, 1)


def _trits(pieces, digits):
    """The same of 16-byte pieces of x, a digit for each."""
    return trit_digits([16 * p + i for p in pieces for i in range(16)], [d for d in digits for _ in range(8)])


trits_lo0, trits_hi0 = (_trits((p,) * 4, (0, 1, 2, 3)) for p in (0, 1))
trits_lo1, trits_hi1 = _trits((0, 2, 2, 2), (4, 0, 2, 4)), _trits((1, 2, 2, 3), (4, 1, 3, 0))


def _trit_bytes(b, t, address):
    """The 52 bytes of digits of TQ1_0 as 64: byte i of the last four, which hold four digits each, times 3 ** n as
    4 n + i, so that its digit n is the first one there.
    """
    at = [b.add(address, _const(ir.IntType(64), offset)) for offset in (0, 16, 32, 48)]
    last = _load(b, at.pop(), ir.VectorType(_I8, 4))
    last = b.zext(_shuffle(b, last, last, [i % 4 for i in range(16)]), ir.VectorType(_I16, 16))
    last = b.trunc(b.mul(last, _const(last.type, [3 ** (i // 4) for i in range(16)])), I8x16.ll)
    return _join_halves(b, [*(_load(b, a, I8x16.ll) for a in at), last])


trit_bytes = _make("trit_bytes", lambda a: I8x64, _trit_bytes, 1)

# ---- rows -------------------------------------------------------------------------------------------------------

_QS = "v = ld4x16({{b0}} + {0}, {{b1}} + {0}, {{b2}} + {0}, {{b3}} + {0})"
_HALVES = ("d = half{g}0(dm, dm)", "dh = half{g}1(dm, dm)")

UNPACK = {
    "q2_k": Unpack(
        256,
        84,
        0,
        (
            "v = ld_i8x32({p} + 16 + 32 * {g})",
            "lo = crumbs_lo(v)",
            "hi = crumbs_hi(v)",
            *_HALVES,
            "m = mixed{g}(mm, mm)",
        ),
        (
            "s = zext_i32(ld_i8x16({p}))",
            "dm = i2f(s & low_bits()) * splat_f32x16(ld_f16({p} + 80))",
            "mm = i2f(vlshr(s, high_bits())) * splat_f32x16(-ld_f16({p} + 82))",
        ),
        minimum=True,
        halves=True,
    ),
    "q3_k": Unpack(
        256,
        110,
        4,
        (
            "v = ld_i8x32({p} + 32 + 32 * {g})",
            "lo = crumbs_lo(v) | q3_lo{g}(bits)",
            "hi = crumbs_hi(v) | q3_hi{g}(bits)",
            *_HALVES,
        ),
        (
            "bits = ld_i8x32({p})",
            "dm = i2f(zext_i32(q3_scales({p} + 96)) + minus32()) * splat_f32x16(ld_f16({p} + 108))",
        ),
        halves=True,
    ),
    "iq4_nl": Unpack(32, 18, 128, (_QS.format(2), "lo = kvalues(low4(v))", "hi = kvalues(high4(v))"), small=False),
    "iq4_xs": Unpack(
        256,
        136,
        128,
        (
            "v = ld_i8x64({p} + 8 + 64 * {g})",
            "lo = kvalues(low4(v))",
            "hi = kvalues(high4(v))",
            "d = spread{g}(dm, dm)",
        ),
        (
            "s = nibbles8(wide_u32({p} + 4)) | vshl(crumbs8(wide_u16({p} + 2)), high_bits())",
            "dm = i2f(s + minus32()) * splat_f32x16(ld_f16({p}))",
        ),
        small=False,
    ),
    "mxfp4": Unpack(
        32,
        17,
        16,
        (_QS.format(1), "lo = e2m1(low4(v))", "hi = e2m1(high4(v))", "d = e8m0({b0}, {b1}, {b2}, {b3})"),
        f16=False,
    ),
    "nvfp4": Unpack(
        64,
        36,
        16,
        (
            "v = ld2x32({b0} + 4, {b1} + 4)",
            "low = e2m1(low4(v))",
            "high = e2m1(high4(v))",
            "lo = firsts(low, high)",
            "hi = seconds(low, high)",
            "s = bytes_of(wide_u32({b0}) | wide_u32({b1}) << 32, 0)",
            "d = ue4m3_lo(s)",
            "dh = ue4m3_hi(s)",
        ),
        halves=True,
    ),
    "tq1_0": Unpack(
        256,
        54,
        1,
        ("lo = trits_lo{g}(v)", "hi = trits_hi{g}(v)"),
        ("v = trit_bytes({p})", "d = splat_f32x16(ld_f16({p} + 52))"),
    ),
    "tq2_0": Unpack(
        256,
        66,
        1,
        ("v = ld_i8x32({p} + 32 * {g})", "lo = crumbs_lo(v)", "hi = crumbs_hi(v)"),
        ("d = splat_f32x16(ld_f16({p} + 64))",),
    ),
    "q1_0": Unpack(
        128,
        18,
        1,
        ("v = ld_i8x16({p} + 2)", "lo = ones_lo(v)", "hi = ones_hi(v)", "d = splat_f32x16(ld_f16({p}))"),
    ),
    "q2_0": Unpack(
        64,
        18,
        1,
        (
            "v = ld2x16({b0} + 2, {b1} + 2)",
            "lo = quads_lo(v)",
            "hi = quads_hi(v)",
            "d = scales2({b0}, {b1})",
        ),
    ),
    "q8_1": Unpack(
        32,
        36,
        128,
        (f"lo = flip({_QS.format(4)[4:]})", f"hi = flip({_QS.format(20)[4:]})"),
        small=False,
    ),
    "q8_k": Unpack(
        256,
        292,
        128,
        (
            "v = flip(ld_i8x64({p} + 4 + 128 * {g}))",
            "v2 = flip(ld_i8x64({p} + 68 + 128 * {g}))",
            "lo = even_pieces(v, v2)",
            "hi = odd_pieces(v, v2)",
        ),
        ("d = splat_f32x16(ld_f32({p}))",),
        small=False,
    ),
}
