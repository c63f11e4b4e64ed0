"""Scales of GGML blocks: searches that run for 16 groups of elements at a time, one group in each lane of a vector.

A group's elements stand in memory as n vectors (`encode.py` transposes them), its importances likewise. All functions
take their addresses x and w. `level(y)` is the value that a format stores for y, the nearest of those it has.

symmetric    x = s level(x / s): for trial scales, round, then take the s that is best for what was rounded
             (s = <x, q> / <q, q> leaves <x, x> - <x, q>**2 / <q, q>), and round again
affine       x = s q + b likewise, by the normal equations of two unknowns
of blocks    the groups of a block share d (and dm), and s = d ls, b = -dm lm with small integers: neighbours of ls and
             lm are tried with the exact error, d and dm solved for by least squares over the block, and kept if better

So the weighted error only falls with every step after the first.
"""

from itertools import pairwise

from . import simd
from .lanes import inline, shared
from .scalar import table
from .simd import (
    F32x16,
    _const,
    _make,
    ld_f32x16,
    shuffle,
    splat_f32x16,
    vabs,
    vmax,
    vmin,
    vround,
    zero_f32x16,
)

TOP_HALF = 65504.0


def _less(b, t, x, y, then, other):
    """then in the lanes where x < y, else other"""
    return b.select(b.fcmp_ordered("<", x, y), then, other)


def _half(b, t, x):
    """x rounded to half precision, at most its largest number"""
    top = _const(F32x16.ll, TOP_HALF)
    x = simd._call(b, "llvm.minnum.v16f32", F32x16.ll, [x, top])
    x = simd._call(b, "llvm.maxnum.v16f32", F32x16.ll, [x, _const(F32x16.ll, -TOP_HALF)])
    return simd.f16_to_f32(b, simd.f32_to_f16(b, x))


less = _make("less", lambda x, y, then, other: then, _less, 4)
half = _make("half", lambda x: x, _half, 1)


@inline
def mad(x, y, z):
    """x y + z, rounded twice: blocks must be the same on a CPU without FMA"""
    return x * y + z


@inline
def over(x, y):
    """x / y, 0 where y is not above 0"""
    return less(zero_f32x16(), y, x / y, zero_f32x16())


@inline
def inverse(s):
    """1 / s, 0 where that would be infinite"""
    return less(vabs(s), splat_f32x16(3e-39), zero_f32x16(), splat_f32x16(1.0) / s)


@inline
def clamp(q, low, high):
    return vmin(vmax(q, splat_f32x16(low)), splat_f32x16(high))


def uniform(low, high):
    """level(y): the nearest integer from low to high"""

    @inline
    def level(y):
        return clamp(vround(y), low, high)

    return level


def nearest(levels, symmetric, values=None):
    """level(y): the nearest of ascending levels (or the value that stands for it); symmetric: or of their negatives"""
    values = levels if values is None else values
    middles = [(a + b) / 2 for a, b in pairwise(levels)]
    rises = zip(middles, list(values)[1:], strict=True)
    steps = [f"v = less(splat_f32x16({m}), y, splat_f32x16({float(v)}), v)" for m, v in rises]
    body = "\n    ".join([f"v = splat_f32x16({float(values[0])})", *steps])
    scope = {"less": less, "splat_f32x16": splat_f32x16}
    exec(f"def level(y):\n    {body}\n    return v", scope)
    plain = inline(scope["level"])

    @inline
    def mirrored(y):
        v = plain(vabs(y))
        return less(y, zero_f32x16(), zero_f32x16() - v, v)

    return mirrored if symmetric else plain


@inline
def signed_top(x, n):
    """The element of largest absolute value."""
    top = ld_f32x16(x)
    for j in range(1, n):
        v = ld_f32x16(x + 64 * j)
        top = less(vabs(top), vabs(v), v, top)
    return top


def weigher(weighted):
    """Function (w, j, v): v times the importance of element j."""

    @inline
    def plain(w, j, v):
        return v

    @inline
    def times(w, j, v):
        return v * ld_f32x16(w + 64 * j)

    return times if weighted else plain


# ---- symmetric -------------------------------------------------------------------------------------------------------


def error(n, weighted, level):
    """Function (x, w, s): the weighted squared error of x = s level(x / s)."""
    weigh = weigher(weighted)

    @shared
    def error(x, w, s):
        total, inv, minus = zero_f32x16(), inverse(s), zero_f32x16() - s
        for j in range(n):
            v = ld_f32x16(x + 64 * j)
            e = mad(level(v * inv), minus, v)
            total = mad(e, weigh(w, j, e), total)
        return total

    return error


def products(n, weighted, level):
    """Function (x, w, inv): (<x, q>, <q, q>) with q = level(x inv)."""
    weigh = weigher(weighted)

    @shared
    def products(x, w, inv):
        xq, qq = zero_f32x16(), zero_f32x16()
        for j in range(n):
            v = ld_f32x16(x + 64 * j)
            q = level(v * inv)
            wq = weigh(w, j, q)
            xq, qq = mad(v, wq, xq), mad(q, wq, qq)
        return xq, qq

    return products


def symmetric(n, weighted, level, grid, rounds):
    """Function (x, w): scales s. `grid`: what the element of largest absolute value becomes before it is rounded."""
    dots, tries = products(n, weighted, level), len(grid)
    trial = table("grid", grid, "f64")

    @inline
    def scales(x, w):
        inv = inverse(signed_top(x, n))
        best, s = zero_f32x16(), zero_f32x16()
        for k in range(tries):
            xq, qq = dots(x, w, inv * splat_f32x16(trial(k)))
            t = over(xq, qq)
            gain = xq * t
            s, best = less(best, gain, t, s), vmax(best, gain)
        for _ in range(rounds):
            xq, qq = dots(x, w, inverse(s))
            t = over(xq, qq)
            gain = xq * t
            s, best = less(best, gain, t, s), vmax(best, gain)
        return s

    return scales


# ---- affine ----------------------------------------------------------------------------------------------------------


def affine_error(n, weighted, high):
    """Function (x, w, s, b): the weighted squared error of x = s q + b, q from 0 to high."""
    weigh = weigher(weighted)

    @shared
    def error(x, w, s, b):
        total, inv, minus = zero_f32x16(), inverse(s), zero_f32x16() - s
        for j in range(n):
            v = ld_f32x16(x + 64 * j) - b
            e = mad(clamp(vround(v * inv), 0.0, high), minus, v)
            total = mad(e, weigh(w, j, e), total)
        return total

    return error


def affine_products(n, weighted, high):
    """Function (x, w, inv, b): (<x, q>, <q, q>, <1, q>) with q = (x - b) inv, rounded."""
    weigh = weigher(weighted)

    @shared
    def products(x, w, inv, b):
        xq, qq, q1, c = zero_f32x16(), zero_f32x16(), zero_f32x16(), zero_f32x16() - b * inv
        for j in range(n):
            v = ld_f32x16(x + 64 * j)
            q = clamp(vround(mad(v, inv, c)), 0.0, high)
            wq = weigh(w, j, q)
            xq, qq, q1 = mad(v, wq, xq), mad(q, wq, qq), q1 + wq
        return xq, qq, q1

    return products


def ones(n, weighted):
    """Function (x, w): (<1, 1>, <x, 1>, smallest x, largest x)."""
    weigh = weigher(weighted)

    @shared
    def ones(x, w):
        low = high = ld_f32x16(x)
        w1, x1 = zero_f32x16(), zero_f32x16()
        for j in range(n):
            v = ld_f32x16(x + 64 * j)
            low, high = vmin(low, v), vmax(high, v)
            w1, x1 = w1 + weigh(w, j, splat_f32x16(1.0)), x1 + weigh(w, j, v)
        return w1, x1, low, high

    return ones


@inline
def _solve(w1, x1, xq, qq, q1, below):
    """(what is explained, s, b) of the normal equations; below: b must not be above 0"""
    det, none = w1 * qq - q1 * q1, zero_f32x16()
    s, b, mean = over(w1 * xq - x1 * q1, det), over(qq * x1 - q1 * xq, det), over(x1, w1)
    alike = w1 * qq * splat_f32x16(1e-6)  # det of rounded values that are all one: rounding errors only
    s0, b0 = none, mean
    if below:
        s0, b0 = less(none, mean, over(xq, qq), none), vmin(mean, none)
        s, b = less(none, b, over(xq, qq), s), vmin(b, none)
    good = less(alike, det, s, none)
    s, b = less(none, good, s, s0), less(none, good, b, b0)
    return s * xq + b * x1 - b * (w1 * b + s * q1 - x1) - s * (b * q1 + s * qq - xq), s, b


def affine(n, weighted, high, grid, rounds, below):
    """Function (x, w): (s, b). `grid`: pairs of values that the smallest and largest element become before rounding.

    below: b must not be above 0, and the smallest element counts as 0 if it is above.
    """
    dots, sums, tries = affine_products(n, weighted, high), ones(n, weighted), len(grid)
    first = table("first", [float(a) for a, _ in grid], "f64")
    last = table("last", [float(b) for _, b in grid], "f64")

    @inline
    def scales(x, w):
        w1, x1, low, top = sums(x, w)
        if below:
            low = vmin(low, zero_f32x16())
        inv, unit = over(splat_f32x16(1.0), top - low), top - low
        best, s, b = splat_f32x16(-1e30), zero_f32x16(), zero_f32x16()
        for k in range(tries + rounds):
            if k < tries:
                steps = splat_f32x16(last(k) - first(k))
                base, per = low - unit * splat_f32x16(first(k)) / steps, inv * steps
            else:
                base, per = b, inverse(s)
            xq, qq, q1 = dots(x, w, per, base)
            gain, s1, b1 = _solve(w1, x1, xq, qq, q1, below)
            s, b, best = less(best, gain, s1, s), less(best, gain, b1, b), vmax(best, gain)
        return s, b

    return scales


# ---- blocks of several groups ----------------------------------------------------------------------------------------


def spread(groups, combine):
    """Function (v): `combine` over the lanes of each block of `groups` lanes, in all of them."""
    swaps = [shuffle([i ^ k for i in range(16)]) for k in (1, 2, 4, 8) if k < groups]
    scope = {f"swap{i}": swap for i, swap in enumerate(swaps)} | {"combine": inline(combine)}
    lines = [f"v = combine(v, swap{i}(v, v))" for i in range(len(swaps))]
    exec("def all_of(v):\n    " + "\n    ".join([*lines, "return v"]), scope)
    return inline(scope["all_of"])


def block_symmetric(n, weighted, level, groups, span, starts, rounds, reach):
    """Function (x, w, s): (d, ls) with s about d ls, ls from -span to span - 1.

    `starts`: what the largest s becomes, in turn.
    """
    miss, dots, tries = error(n, weighted, level), products(n, weighted, level), len(starts)
    total = spread(groups, lambda x, y: x + y)
    top_of = spread(groups, lambda x, y: less(vabs(x), vabs(y), y, x))
    start, low, high = table("starts", starts, "f64"), -float(span), span - 1.0

    @inline
    def scales(x, w, s):
        top = top_of(s)
        best, kept, keep = splat_f32x16(3e38), zero_f32x16(), zero_f32x16()
        for k in range(tries):
            d = half(top / splat_f32x16(start(k)))
            ls = clamp(vround(s * inverse(d)), low, high)
            e = miss(x, w, d * ls)
            for _ in range(rounds):
                middle = ls
                for r in range(2 * reach + 1):
                    if r == reach:
                        continue
                    other = clamp(middle + splat_f32x16(float(r - reach)), low, high)
                    f = miss(x, w, d * other)
                    ls, e = less(f, e, other, ls), vmin(e, f)
                xq, qq = dots(x, w, inverse(d * ls))
                d1 = half(over(total(ls * xq), total(ls * ls * qq)))
                f = miss(x, w, d1 * ls)
                now, then = total(e), total(f)
                d, e = less(then, now, d1, d), less(then, now, f, e)
            now = total(e)
            kept, keep, best = less(now, best, d, kept), less(now, best, ls, keep), vmin(now, best)
        return kept, keep

    return scales


def block_affine(n, weighted, high, groups, span, starts, rounds):
    """Function (x, w, s, b): (d, dm, ls, lm) with s about d ls and b about -dm lm, ls and lm from 0 to span."""
    miss, dots, sums = affine_error(n, weighted, high), affine_products(n, weighted, high), ones(n, weighted)
    total, top_of = spread(groups, lambda x, y: x + y), spread(groups, lambda x, y: vmax(x, y))
    tries, top = len(starts), float(span)
    start, start_m = (table(f"starts{i}", [float(s[i]) for s in starts], "f64") for i in (0, 1))

    @inline
    def solve(x, w, d, dm, ls, lm):
        """d and dm that are best for what is rounded now"""
        w1, x1, _, _ = sums(x, w)
        xq, qq, q1 = dots(x, w, inverse(d * ls), zero_f32x16() - dm * lm)
        a, ab, bb = total(ls * ls * qq), total(ls * lm * q1), total(lm * lm * w1)
        xa, xb = total(ls * xq), zero_f32x16() - total(lm * x1)
        det = a * bb - ab * ab
        alone = over(xa, a)
        d1 = less(zero_f32x16(), det, over(xa * bb + ab * xb, det), alone)
        return half(d1), half(over(a * xb + ab * xa, det))

    @inline
    def neighbours(x, w, d, dm, ls, lm, e):
        ls0, lm0 = ls, lm
        for r in range(9):
            if r == 4:
                continue
            ls1 = clamp(ls0 + splat_f32x16(float(r // 3 - 1)), 0.0, top)
            lm1 = clamp(lm0 + splat_f32x16(float(r % 3 - 1)), 0.0, top)
            f = miss(x, w, d * ls1, zero_f32x16() - dm * lm1)
            ls, lm, e = less(f, e, ls1, ls), less(f, e, lm1, lm), vmin(e, f)
        return ls, lm, e

    @inline
    def scales(x, w, s, b):
        m = zero_f32x16() - b
        top_s, top_m = top_of(s), top_of(m)
        best = splat_f32x16(3e38)
        kept = kept_m = keep = keep_m = zero_f32x16()
        for k in range(tries):
            d, dm = half(top_s / splat_f32x16(start(k))), half(top_m / splat_f32x16(start_m(k)))
            ls = clamp(vround(s * inverse(d)), 0.0, top)
            lm = clamp(vround(m * inverse(dm)), 0.0, top)
            e = miss(x, w, d * ls, zero_f32x16() - dm * lm)
            for _ in range(rounds):
                ls, lm, e = neighbours(x, w, d, dm, ls, lm, e)
                d1, dm1 = solve(x, w, d, dm, ls, lm)
                f = miss(x, w, d1 * ls, zero_f32x16() - dm1 * lm)
                now, then = total(e), total(f)
                d, dm, e = less(then, now, d1, d), less(then, now, dm1, dm), less(then, now, f, e)
            now = total(e)
            kept, kept_m = less(now, best, d, kept), less(now, best, dm, kept_m)
            keep, keep_m = less(now, best, ls, keep), less(now, best, lm, keep_m)
            best = vmin(now, best)
        return kept, kept_m, keep, keep_m

    return scales
