"""f32 to GGML blocks: scales by search (`encode_search.py`), then rounding and packing in the elements' own order.

A row of FORMATS says how a format is searched, a row of `encode_layout.LAYOUTS` where its bits go. Groups of elements
with a scale of their own are searched 16 at a time, a vector per element with a group in each lane; a block's bytes are
made from its elements where they stand.

Kernel encode, params (format, "plain" or "weighted"); words: elements f32, blocks out, number of blocks, importances
f32 (one per column), columns, state. state[tid] becomes the largest absolute value, NaN where an element is NaN or
infinite: such blocks mean nothing.
"""

from numba import types

from . import encode_grid, encode_search
from .encode_layout import LAYOUTS, packer
from .encode_search import clamp, half, inverse, less, mad, nearest, over, signed_top, uniform
from .lanes import inline
from .parts import memory
from .quant_layout import ENCODED
from .simd import (
    _I64,
    F32x16,
    _const,
    _load,
    _make,
    arg,
    as_f32x16,
    as_i32x16,
    constant,
    f2i,
    hmax,
    hsum,
    i2f,
    ld_f32,
    ld_f32x16,
    narrow_i8,
    splat_f32x16,
    st_f32,
    st_f32x16,
    st_i8x16,
    vabs,
    vlshr,
    vmax,
    vmin,
    vround,
    vshl,
    zero_f32x16,
)
from .transpose import transpose16

SAME_ON_ALL_LEVELS = True  # read by build.py
KVALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1 = (0, 1, 2, 3, 4, 6, 8, 12)


def steps(first, last, count):
    """`count` numbers from first to last."""
    return [first + (last - first) * i / (count - 1) for i in range(count)]


# ---- elements to lanes -----------------------------------------------------------------------------------------------


def _gather(n, groups, wrapped):
    """Intrinsic (dst, src, at, last, wrap): element j of 16 groups of n to vector j of dst.

    Group 0 begins at element `at` of src, blocks of `groups` groups after the block `last` are read as that. wrapped:
    indices count modulo `wrap`.
    """

    def row(b, lane, src, at, last, wrap):
        block = _const(_I64, lane // groups)
        block = b.select(b.icmp_signed("<", block, last), block, last)
        place = b.add(b.mul(block, _const(_I64, groups * n)), b.add(at, _const(_I64, lane % groups * n)))
        return b.add(src, b.shl(b.srem(place, wrap) if wrapped else place, _const(_I64, 2)))

    def lower(b, t, dst, src, at, last, wrap):
        rows = [row(b, lane, src, at, last, wrap) for lane in range(16)]
        for j in range(0, n, 16):
            tile = [_load(b, b.add(r, _const(_I64, 4 * j)), F32x16.ll) for r in rows]
            for i, column in enumerate(transpose16(b, tile)):
                address = b.add(dst, _const(_I64, 64 * (j + i)))
                b.store(column, b.inttoptr(address, F32x16.ll.as_pointer())).align = 4

    return _make("gather", lambda *_: types.void, lower, 5)


k20, k23 = constant("i32", 16, 20), constant("i32", 16, 23)


# ---- what each family searches: functions (x, w, out) that leave their numbers at `out` ------------------------------


def _symmetric(n, weighted, level, grid, rounds):
    find = encode_search.symmetric(n, weighted, level, grid, rounds)

    @inline
    def run(x, w, out):
        st_f32x16(out, half(find(x, w)))

    return run


@inline
def _normalise(x, n):
    """Multiplies the elements by 2**(127 - e), e the exponent of the largest, 1 to 253, so that squares stay in range;
    returns that power and e.
    """
    e = clamp(i2f(vlshr(as_i32x16(vabs(signed_top(x, n))), k23())), 1.0, 253.0)
    unit = as_f32x16(vshl(f2i(splat_f32x16(254.0) - e), k23()))
    for j in range(n):
        st_f32x16(x + 64 * j, ld_f32x16(x + 64 * j) * unit)
    return unit, e


def _symmetric_wide(n, weighted, level, grid, rounds):
    find = encode_search.symmetric(n, weighted, level, grid, rounds)

    @inline
    def run(x, w, out):
        _, e = _normalise(x, n)
        st_f32x16(out, find(x, w) * as_f32x16(vshl(f2i(e), k23())))

    return run


def _affine(n, weighted, level, high, grid, rounds):
    find = encode_search.affine(n, weighted, high, grid, rounds, False)

    @inline
    def run(x, w, out):
        s, b = find(x, w)
        st_f32x16(out, half(s))
        st_f32x16(out + 64, half(b))

    return run


def _signs(n, weighted, level):
    """d = <1, |x|> / <1, 1>, the best there is."""
    weigh = encode_search.weigher(weighted)

    @inline
    def run(x, w, out):
        total, ones = zero_f32x16(), zero_f32x16()
        for j in range(n):
            total = total + weigh(w, j, vabs(ld_f32x16(x + 64 * j)))
            ones = ones + weigh(w, j, splat_f32x16(1.0))
        st_f32x16(out, half(over(total, ones)))

    return run


def _block_symmetric(n, weighted, level, grid, rounds, groups, span, starts, turns, reach):
    find = encode_search.symmetric(n, weighted, level, grid, rounds)
    share = encode_search.block_symmetric(n, weighted, level, groups, span, starts, turns, reach)

    @inline
    def run(x, w, out):
        d, ls = share(x, w, find(x, w))
        st_f32x16(out, d * ls)
        st_f32x16(out + 128, d)
        st_f32x16(out + 256, ls)

    return run


def _block_affine(n, weighted, level, high, grid, rounds, groups, span, starts, turns):
    find = encode_search.affine(n, weighted, high, grid, rounds, True)
    share = encode_search.block_affine(n, weighted, high, groups, span, starts, turns)

    @inline
    def run(x, w, out):
        s, b = find(x, w)
        d, dm, ls, lm = share(x, w, s, b)
        st_f32x16(out, d * ls)
        st_f32x16(out + 64, zero_f32x16() - dm * lm)
        st_f32x16(out + 128, d)
        st_f32x16(out + 192, dm)
        st_f32x16(out + 256, ls)
        st_f32x16(out + 320, lm)

    return run


def _powers(n, weighted, level):
    """Scales 2**(e - 128), e from 2 to 254: about the largest element's, one below and one above."""
    miss = encode_search.error(n, weighted, level)

    @inline
    def scale(e):
        return as_f32x16(vshl(f2i(e - splat_f32x16(1.0)), k23()))

    @inline
    def run(x, w, out):
        unit, exponent = _normalise(x, n)
        best, kept = splat_f32x16(3e38), splat_f32x16(2.0)
        for k in range(3):
            e = clamp(exponent + splat_f32x16(k - 3.0), 2.0, 254.0)
            missed = miss(x, w, scale(e) * unit)
            kept, best = less(missed, best, e, kept), vmin(missed, best)
        st_f32x16(out, scale(kept))
        st_f32x16(out + 256, kept)

    return run


def _small_floats(n, weighted, level):
    """Scales of UE4M3 (halved, see `formats.nvfp4`), by number, 0 to 126: those about what the largest asks for."""
    miss = encode_search.error(n, weighted, level)
    bias = constant("i32", 16, 119 << 3)

    @inline
    def scale(c):
        normal = as_f32x16(vshl(f2i(c) + bias(), k20()))
        return less(c, splat_f32x16(8.0), c * splat_f32x16(2.0**-10), normal)

    @inline
    def run(x, w, out):
        top = vabs(signed_top(x, n)) * splat_f32x16(1 / 12)
        number = i2f(vlshr(as_i32x16(top), k20()) - bias())
        number = less(number, splat_f32x16(8.0), vround(top * splat_f32x16(2.0**10)), number)
        best, kept = splat_f32x16(3e38), zero_f32x16()
        for k in range(-2, 7):
            c = clamp(number + splat_f32x16(float(k)), 0.0, 126.0)
            missed = miss(x, w, scale(c))
            kept, best = less(missed, best, c, kept), vmin(missed, best)
        st_f32x16(out, scale(kept))
        st_f32x16(out + 256, kept)

    return run


# ---- formats ---------------------------------------------------------------------------------------------------------


def _levels(spec):
    """(level, code) of a row's third column: (low, high), or a table's levels and whether it has their negatives."""
    if spec == "signs":
        return None, inline(lambda y: less(y, zero_f32x16(), zero_f32x16(), splat_f32x16(1.0)))
    if spec == "e2m1":
        plain = nearest(E2M1, True)
        index = nearest(E2M1, False, range(8))
        return plain, inline(lambda y: less(y, zero_f32x16(), index(vabs(y)) + splat_f32x16(8.0), index(y)))
    if spec == "kvalues":
        return nearest(KVALUES, False), nearest(KVALUES, False, range(16))
    level, low = uniform(*map(float, spec)), 0.0 if spec[1] == 127 else float(spec[0])
    return level, inline(lambda y: level(y) - splat_f32x16(low))


def ranges(high, outside, inside, count):
    """Pairs for `affine`: from `outside` beyond the numbers 0 to high to `inside` within them, count**2 of them."""
    return [(a, high - b) for a in steps(-outside, inside, count) for b in steps(-outside, inside, count)]


_TERNARY = [1.0, *steps(1.4, 3.4, 6)]
_KVALUES = steps(-150, -100, 16) + steps(95, 140, 12)
# format: (elements per group, what is stored, family, its other arguments)
FORMATS = {
    "q4_0": (32, (-8, 7), _symmetric, ([-8.9, -8.4, -8.0, -7.5, 7.2, 7.8], 1)),
    "q4_1": (32, (0, 15), _affine, (15.0, [(0.0, 15.0), (-0.3, 15.3)], 1)),
    "q5_0": (32, (-16, 15), _symmetric, ([-16.4, -16.0, -15.5, 15.4], 1)),
    "q5_1": (32, (0, 31), _affine, (31.0, [(0.0, 31.0), (-0.3, 31.3)], 1)),
    "q8_0": (32, (-127, 127), _symmetric, ([-127.0], 1)),
    "q8_1": (32, (-127, 127), _symmetric, ([-127.0], 1)),
    "q8_k": (256, (-127, 127), _symmetric_wide, ([-127.0], 1)),
    "q2_k": (16, (0, 3), _block_affine, (3.0, [(0.0, 2.0), (1.0, 3.0), *ranges(3.0, 0.5, 0.4, 4)], 2, 16, 15,
             [(15.4, 15.4), (14.5, 14.5), (13.5, 14.5), (15.0, 12.0), (12.0, 13.0)], 2)),
    "q3_k": (16, (-4, 3), _block_symmetric, ([-4.6, -4.2, -3.8, -3.4, 3.0, 3.4, 3.8], 2, 16, 32, [-32.0, -29.0], 1, 1)),
    "q4_k": (32, (0, 15), _block_affine, (15.0, ranges(15.0, 0.7, 0.5, 4), 2, 8, 63, [(63.0, 63.0), (60.0, 62.0)], 2)),
    "q5_k": (32, (0, 31), _block_affine, (31.0, ranges(31.0, 0.7, 0.5, 4), 2, 8, 63, [(63.0, 63.0), (60.0, 62.0)], 2)),
    "q6_k": (16, (-32, 31), _block_symmetric, ([-32.5, -32.0, -31.4, 31.2, 30.6], 2, 16, 128, [-128.0, -120.0], 1, 1)),
    "iq4_nl": (32, "kvalues", _symmetric, (_KVALUES, 2)),
    "iq4_xs": (32, "kvalues", _block_symmetric, (_KVALUES, 2, 8, 32, [-32.0, -29.0], 1, 1)),
    "mxfp4": (32, "e2m1", _powers, ()),
    "nvfp4": (16, "e2m1", _small_floats, ()),
    "tq1_0": (256, (-1, 1), _symmetric, (_TERNARY, 2)),
    "tq2_0": (256, (-1, 1), _symmetric, (_TERNARY, 2)),
    "q1_0": (128, "signs", _signs, ()),
    "q2_0": (64, (-1, 2), _symmetric, (steps(0.9, 3, 6) + steps(-2.2, -0.9, 4), 2)),
}  # fmt: skip
# with importances the best range may leave out more, and more tries are worth their time
WEIGHTED = {
    "q4_0": (steps(-10.5, -6.5, 12) + steps(5.5, 9.5, 12), 2),
    "q4_1": (15.0, ranges(15.0, 2.0, 0.5, 6), 2),
    "q5_0": (steps(-19.0, -14.5, 12) + steps(13.5, 18.0, 12), 2),
    "q5_1": (31.0, ranges(31.0, 2.5, 0.5, 7), 2),
}


def _coder(n, code):
    """Function (x, s, b, c): the codes of n elements."""

    @inline
    def codes(x, s, b, c):
        inv, base = inverse(splat_f32x16(s)), splat_f32x16(b)
        for j in range(0, n, 16):
            st_i8x16(c + j, narrow_i8(f2i(code((ld_f32x16(x + 4 * j) - base) * inv))))

    return codes


def _parts(name, weighted, source):
    """(elements, bytes, groups, elements per group, search, codes, pack)"""
    if name in encode_grid.GRIDS:
        scope = {}
        exec(compile(source, "<decode>", "exec"), scope)
        table = [b - 256 * (b > 127) for b in scope["TABLE"]]
        n, none = encode_grid.GRIDS[name][0], inline(lambda x, s, b, c: None)
        find, pack = encode_grid.searcher(name, table), encode_grid.packer(name)
        return 256, scope["BYTES"], 256 // n, n, find, none, pack
    elements, nbytes, groups, *_ = LAYOUTS[name]
    n, stored, family, rest = FORMATS[name]
    rest = WEIGHTED.get(name, rest) if weighted else rest
    level, code = _levels(stored)
    return elements, nbytes, groups, n, family(n, weighted, level, *rest), _coder(n, code), packer(name)


def _encoder(name, weighted, source):
    elements, nbytes, groups, n, find, codes, pack = _parts(name, weighted, source)
    gather, gather_weights = _gather(n, groups, False), _gather(n, groups, True)
    room, batch = memory(2 * 64 * n + 2048), 16 // groups

    def encode(a, tid, nth):
        src, dst, blocks, importance, columns, state = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4), arg(a, 5)
        x = room()
        w, out, c = x + 64 * n, x + 128 * n, x + 128 * n + 1280
        batches = (blocks + batch - 1) // batch
        st_f32x16(out + 64, zero_f32x16())  # b, where a format has none
        top, bad = zero_f32x16(), zero_f32x16()
        for t in range(batches * tid // nth, batches * (tid + 1) // nth):
            first = t * batch
            live = min(batch, blocks - first)
            gather(x, src, first * elements, live - 1, 0)
            for j in range(n):
                v = ld_f32x16(x + 64 * j)
                top, bad = vmax(top, vabs(v)), mad(v, zero_f32x16(), bad)
            if weighted:
                gather_weights(w, importance, first * elements, live - 1, columns)
            find(x, w, out)
            for k in range(live):
                block, numbers = src + 4 * elements * (first + k), out + 4 * groups * k
                for g in range(groups):
                    codes(block + 4 * n * g, ld_f32(numbers + 4 * g), ld_f32(numbers + 64 + 4 * g), c + n * g)
                pack(dst + nbytes * (first + k), c, numbers)
        st_f32(state + 4 * tid, hmax(top) + hsum(bad))

    return encode


def build(name, *params, source=None):
    """encode for params (format, "plain" or "weighted"). None where there is no such kernel."""
    if name != "encode" or len(params) != 2 or params[0] not in ENCODED:
        return None
    if params[1] not in ("weighted", "plain")[: 1 + ENCODED[params[0]]]:
        return None
    return _encoder(params[0], params[1] == "weighted", source)
