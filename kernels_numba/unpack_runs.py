"""Super-blocks of 256 weights unpacked with a run of 16 weights in each i32 lane, for the matvec.

`v0` to `v3` are u8 vectors of 64: lane l of `vj` holds weights 16 l + 4 j to 16 l + 4 j + 3, so that the four products
of a super-block add up to one vector with a run's sum in each lane; `d` and `m` are f32 vectors with a run's scale and
minimum in each lane, where `unpack.py` has one value in four lanes. Where scales are few and integers many this is a
third less work. A row here repeats `unpack.py`'s with other lines; {j} is 0 to 3 in lines that run four times.
"""

from typing import NamedTuple

from llvmlite import ir

from . import simd
from .simd import I8x64, _const, _make, _shuffle, shuffle
from .unpack_low import _shifted, trit_digits

_I32 = ir.IntType(32)
_LANES = range(16)


class Runs(NamedTuple):
    """Lines for a super-block: `once`, then `each` with j of 0 to 3."""

    once: tuple
    each: tuple


def _picked(pick, shift, mask):
    """Four intrinsics f(x) or f(x, y), one per j: in lane l the dword `pick(l, j)` of x followed by y, rotated right by
    `shift(l)`, and of each byte the bits of `mask` (bits of a neighbour come in elsewhere).
    """

    def made(j):
        def lower(b, t, *vectors):
            words = [b.bitcast(v, ir.VectorType(_I32, v.type.count // 4)) for v in vectors]
            v = _shuffle(b, words[0], words[-1], [pick(lane, j) for lane in _LANES])
            counts = [shift(lane) for lane in _LANES]
            if min(counts) < 0:
                fixed = _const(v.type, [c % 32 for c in counts])
                v = simd._call(b, "llvm.fshr.v16i32", v.type, [v, v, fixed])
            elif max(counts):
                v = b.lshr(v, _const(v.type, counts))
            return b.and_(b.bitcast(v, I8x64.ll), _const(I8x64.ll, mask))

        return lower

    def returns(*vectors):
        return I8x64

    arity = 2 if max(pick(lane, 3) for lane in _LANES) > 15 else 1
    return [_make("picked", returns, made(j), arity) for j in range(4)]


def _of(lane):
    """Half of the super-block, run of 32 in it, half of that."""
    return lane // 8, lane // 2 % 4, lane % 2


def _half(lane, j):
    """Dword of 2-bit numbers: 32 bytes hold 128."""
    g, _, h = _of(lane)
    return 8 * g + 4 * h + j


crumb0, crumb1, crumb2, crumb3 = _picked(_half, lambda lane: 2 * (lane // 2 % 4), 3)
third0, third1, third2, third3 = _picked(lambda lane, j: 4 * (lane % 2) + j, lambda lane: lane // 2 - 2, 4)
nibble0, nibble1, nibble2, nibble3 = _picked(
    lambda lane, j: 8 * (lane // 4) + 4 * (lane % 2) + j, lambda lane: 4 * (lane // 2 % 2), 15
)
fifth0, fifth1, fifth2, fifth3 = _picked(lambda lane, j: 4 * (lane % 2) + j, lambda lane: lane // 2 - 4, 16)
q6_low0, q6_low1, q6_low2, q6_low3 = _picked(
    lambda lane, j: 16 * (lane // 8) + 8 * (lane // 2 % 2) + 4 * (lane % 2) + j, lambda lane: 4 * (lane // 4 % 2), 15
)
q6_high0, q6_high1, q6_high2, q6_high3 = _picked(_half, lambda lane: 2 * (lane // 2 % 4) - 4, 0x30)
block_nibble0, block_nibble1, block_nibble2, block_nibble3 = _picked(
    lambda lane, j: 4 * (lane // 2) + j, lambda lane: 4 * (lane % 2), 15
)
trit0, trit1, trit2, trit3 = (
    trit_digits(
        [4 * (4 * (lane % 2) + j if lane < 10 else 8 + 4 * (lane == 15) + j) + i for lane in _LANES for i in range(4)],
        [lane // 2 if lane < 10 else (lane - 10) % 5 for lane in _LANES for _ in range(2)],
    )
    for j in range(4)
)
pairs_first, pairs_second = (shuffle([at + i // 2 for i in _LANES]) for at in (0, 8))
nibble_pairs = _shifted([4 * (i // 2) for i in _LANES], 15)
crumb_pairs = _shifted([2 * (i // 2) for i in _LANES], 3)

_K_SCALES = (
    "s = k_scales({p} + 4)",
    "d = u2f(zext_i32(pairs_first(s, s))) * splat_f32x16(ld_f16({p}))",
    "m = u2f(zext_i32(pairs_second(s, s))) * splat_f32x16(-ld_f16({p} + 2))",
)

RUNS = {
    "q2_k": Runs(
        (
            "x = ld_i8x64({p} + 16)",
            "s = zext_i32(ld_i8x16({p}))",
            "d = i2f(s & low_bits()) * splat_f32x16(ld_f16({p} + 80))",
            "m = i2f(vlshr(s, high_bits())) * splat_f32x16(-ld_f16({p} + 82))",
        ),
        ("v{j} = crumb{j}(x)",),
    ),
    "q3_k": Runs(
        (
            "x = ld_i8x64({p} + 32)",
            "bits = ld_i8x32({p})",
            "d = i2f(zext_i32(q3_scales({p} + 96)) + minus32()) * splat_f32x16(ld_f16({p} + 108))",
        ),
        ("v{j} = crumb{j}(x) | third{j}(bits)",),
    ),
    "q4_k": Runs(
        ("x = ld_i8x64({p} + 16)", "x2 = ld_i8x64({p} + 80)", *_K_SCALES),
        ("v{j} = nibble{j}(x, x2)",),
    ),
    "q5_k": Runs(
        ("x = ld_i8x64({p} + 48)", "x2 = ld_i8x64({p} + 112)", "bits = ld_i8x32({p} + 16)", *_K_SCALES),
        ("v{j} = nibble{j}(x, x2) | fifth{j}(bits)",),
    ),
    "q6_k": Runs(
        (
            "x = ld_i8x64({p})",
            "x2 = ld_i8x64({p} + 64)",
            "bits = ld_i8x64({p} + 128)",
            "d = i2f(sext_i32(ld_i8x16({p} + 192))) * splat_f32x16(ld_f16({p} + 208))",
        ),
        ("v{j} = q6_low{j}(x, x2) | q6_high{j}(bits)",),
    ),
    "iq4_xs": Runs(
        (
            "x = ld_i8x64({p} + 8)",
            "x2 = ld_i8x64({p} + 72)",
            "s = nibble_pairs(wide_u32({p} + 4)) | vshl(crumb_pairs(wide_u16({p} + 2)), high_bits())",
            "d = i2f(s + minus32()) * splat_f32x16(ld_f16({p}))",
        ),
        ("v{j} = kvalues(block_nibble{j}(x, x2))",),
    ),
    "tq1_0": Runs(("x = trit_bytes({p})", "d = splat_f32x16(ld_f16({p} + 52))"), ("v{j} = trit{j}(x)",)),
    "tq2_0": Runs(("x = ld_i8x64({p})", "d = splat_f32x16(ld_f16({p} + 64))"), ("v{j} = crumb{j}(x)",)),
}
