"""Encoders of IQ1, IQ2 and IQ3: every 4 or 8 values become an entry of a grid, found by trying them all.

In a lane of 16 at a time is a group of elements that share a scale, as in `encode_search.py`. An entry g of the grid
costs s**2 <w, g g> - 2 s <w y, g> for a scale s and values y (less what no entry changes): `encode_halves.py` finds the
least for entries of 8, `_costs` here for those of 4. y are absolute values in IQ2 and IQ3. Where a format has seven
signs for eight elements, the eighth making their number even, the element whose sign matters least gives way: its y is
negative. In IQ1 all of an eight (iq1_m) or a group (iq1_s) is shifted up or down by an eighth.
"""

from llvmlite import ir
from numba import types

from . import encode_halves
from .encode_layout import number
from .encode_search import clamp, half, inverse, less, mad, over, spread
from .lanes import inline, shared
from .simd import (
    _I64,
    F32x16,
    _const,
    _make,
    _splat,
    f32_to_f16,
    ld_f32,
    ld_f32x16,
    splat_f32x16,
    st_f16,
    st_f32x16,
    st_i16,
    st_i32,
    st_u8,
    vabs,
    vmax,
    vmin,
    vround,
    zero_f32x16,
)

# format: (elements per group, per entry, seven signs, the scale of a group: d (2 ls + 1) / this, largest ls)
GRIDS = {
    "iq1_s": (32, 8, None, 1.0, 7.0),
    "iq1_m": (16, 8, None, 1.0, 7.0),
    "iq2_xxs": (32, 8, True, 8.0, 15.0),
    "iq2_xs": (16, 8, True, 8.0, 15.0),
    "iq2_s": (16, 8, False, 8.0, 15.0),
    "iq3_xxs": (32, 4, True, 4.0, 15.0),
    "iq3_s": (32, 4, False, 1.0, 15.0),
}
SHIFTS = {"iq1_s": (0.125, -0.125), "iq1_m": (0.125, -0.125)}
# first trials of a scale: between the mean and the largest value, or parts of what the largest value asks for
BETWEEN = (0.12, 0.27, 0.45, 0.7)
PARTS = tuple(0.62 + 0.07 * k for k in range(8))
INDICES, SIGNS = 384, 384 + 8 * 64  # vectors at `out`: what was found for each entry, and the signs of eight


def _constants(name, values):
    """Intrinsic f(i): number i of a table in all lanes."""
    array = ir.ArrayType(ir.FloatType(), len(values))

    def lower(b, t, i):
        found = b.module.globals.get(name)
        if found is None:
            found = ir.GlobalVariable(b.module, array, name)
            found.global_constant, found.linkage = True, "internal"
            found.initializer = ir.Constant(array, [float(v) for v in values])
        value = b.load(b.gep(found, [_const(_I64, 0), i]))
        value.align = 4
        return _splat(b, value, 16)

    return _make(name, lambda i: F32x16, lower, 1)


def _products(size):
    """Lines: p and r of entry e."""
    return [
        "p, r = y0 * g(e), w0 * gg(e)",
        *(f"p, r = mad(y{i}, g(e + {i}), p), mad(w{i}, gg(e + {i}), r)" for i in range(1, size)),
    ]


def _load(size):
    lines = [f"y{i}, w{i} = ld_f32x16(y + {64 * i}), ld_f32x16(w + {64 * i})" for i in range(size)]
    return [*lines, f"y, w = y + {64 * size}, w + {64 * size}"]


def _function(head, lines, scope):
    exec(head + "\n    " + "\n    ".join(lines), scope)
    return shared(scope[head[4 : head.index("(")]])


def _costs(n, size, entries, scales, scope):
    """Function (y, w, s0, s1, ...): the least costs of a group with each of the scales."""
    many = range(scales)
    lines = [f"t{k}, a{k}, b{k} = zero_f32x16(), s{k} * s{k}, s{k} * splat_f32x16(-2.0)" for k in many]
    inner = (
        _load(size) + [f"c{k} = splat_f32x16(3e38)" for k in many] + [f"for e in range(0, {entries * size}, {size}):"]
    )
    inner += ["    " + line for line in _products(size)]
    inner += [f"    c{k} = vmin(c{k}, mad(a{k}, r, b{k} * p))" for k in many]
    inner += [f"t{k} = t{k} + c{k}" for k in many]
    lines += [f"for _ in range({n // size}):", *("    " + line for line in inner)]
    lines += ["return " + ", ".join(f"t{k}" for k in many)]
    return _function(f"def costs(y, w, {', '.join(f's{k}' for k in many)}):", lines, scope)


def _picks(n, size, entries, scope):
    """Function (y, w, s, out, down): (<w y, g>, <w, g g>) with the best entries, whose numbers go to `out`."""
    inner = [*_load(size), "best, at, pp, rr = splat_f32x16(3e38), zero_f32x16(), zero_f32x16(), zero_f32x16()"]
    inner += [f"for e in range(0, {entries * size}, {size}):", *("    " + line for line in _products(size))]
    inner += [
        "    c = mad(a, r, b * p)",
        f"    at = less(c, best, splat_f32x16(float(e // {size})), at)",
        "    pp, rr, best = less(c, best, p, pp), less(c, best, r, rr), vmin(c, best)",
        "st_f32x16(out, at)",
        "out, xq, qq = out + 64, xq + pp, qq + rr",
    ]
    lines = ["xq, qq, a, b = zero_f32x16(), zero_f32x16(), s * s, s * splat_f32x16(-2.0)"]
    lines += [f"for _ in range({n // size}):", *("    " + line for line in inner), "return xq, qq"]
    return _function("def picks(y, w, s, out, down):", lines, scope)


def _signs(n, even):
    """Function (x, w, signs): x becomes w |x|, with one of eight negative where their signs must be even in number."""
    names = ("less", "vmin", "vabs", "ld_f32x16", "st_f32x16", "splat_f32x16", "zero_f32x16")
    scope = {name: globals()[name] for name in names}
    lines = [
        "none, one = zero_f32x16(), splat_f32x16(1.0)",
        "odd, bits, turn, who, least = none, none, none, none, none",
    ]
    for i in range(8):
        lines += [
            f"v, u = ld_f32x16(x + {64 * i}), ld_f32x16(w + {64 * i})",
            f"y{i}, p = u * vabs(v), splat_f32x16({float(1 << i)})",
            f"loss, change = y{i} * vabs(v), less(v, none, none - p, p)",
            "odd, bits = less(v, none, one - odd, odd), less(v, none, bits + p, bits)",
        ]
        if i == 0:
            lines += ["turn, least = change, loss"]
        else:
            lines += [f"turn, who = less(loss, least, change, turn), less(loss, least, splat_f32x16({float(i)}), who)"]
            lines += ["least = vmin(loss, least)"]
    if even:
        lines += ["bits, factor = bits + turn * odd, one - odd - odd"]
        lines += [
            f"y{i} = y{i} * less(vabs(who - splat_f32x16({float(i)})), splat_f32x16(0.5), factor, one)"
            for i in range(8)
        ]
    lines += [f"st_f32x16(x + {64 * i}, y{i})" for i in range(8)] + ["st_f32x16(signs, bits)"]
    eight = _function("def eight(x, w, signs):", lines, scope)

    @inline
    def run(x, w, signs):
        for k in range(n // 8):
            eight(x + 512 * k, w + 512 * k, signs + 64 * k)

    return run


@inline
def _weigh(x, w, n):
    """x becomes w x"""
    for j in range(n):
        st_f32x16(x + 64 * j, ld_f32x16(x + 64 * j) * ld_f32x16(w + 64 * j))


def _lowest(costs, many, names):
    """Function (y, w, s0, s1, ...): (the best of these scales, its cost, its number), `many` tried at a time."""
    scope = {"costs": costs, "splat_f32x16": splat_f32x16, "less": less, "vmin": vmin}
    lines = ["s = at = s0", "best = splat_f32x16(3e38)"]
    for first in range(0, len(names), many):
        some = names[first : first + many]
        some += [some[-1]] * (many - len(some))
        lines += [f"{', '.join(f't{k}' for k in range(many))}{',' * (many == 1)} = costs(y, w, {', '.join(some)})"]
        for k, name in enumerate(dict.fromkeys(some)):
            lines += [f"s, at = less(t{k}, best, {name}, s), less(t{k}, best, splat_f32x16({float(first + k)}), at)"]
            lines += [f"best = vmin(t{k}, best)"]
    return _function(f"def lowest(y, w, {', '.join(names)}):", [*lines, "return s, best, at"], scope)


def _first(name, n, lowest, table):
    """Function (x, y, w): scales to begin with, `lowest` of eight trials; y: what `_signs` or `_weigh` makes of x."""
    high, between = max(table), name in SHIFTS
    scope = {"lowest": lowest, "splat_f32x16": splat_f32x16, "over": over}
    texts = [f"mean + (top - mean) * splat_f32x16({f})" for f in BETWEEN]
    if not between:
        texts = [f"top * splat_f32x16({f / high})" for f in PARTS]
    lines = [f"s, _, _ = lowest(y, w, {', '.join(texts)})", "return s"]
    return _function("def trials(y, w, top, mean):", lines, scope)


@inline
def _size(x, w, n):
    """(largest absolute value, weighted mean of absolute values)"""
    top, sums, ones = zero_f32x16(), zero_f32x16(), zero_f32x16()
    for j in range(n):
        v, u = vabs(ld_f32x16(x + 64 * j)), ld_f32x16(w + 64 * j)
        top, sums, ones = vmax(top, v), sums + u * v, ones + u
    return top, over(sums, ones)


def _tools(name, table):
    """(`lowest` of eight scales, of four, `picks`, what makes numbers of what it finds)"""
    n, size, *_ = GRIDS[name]
    eight, four = ([f"s{k}" for k in range(count)] for count in (len(BETWEEN if name in SHIFTS else PARTS), 4))
    if size == 8:
        grid, shifts = encode_halves.Grid(table), SHIFTS.get(name, (0.0,))
        costs = encode_halves.costs(n, grid, shifts, n == 16)
        many = encode_halves.SLOTS // len(shifts)
        picks = encode_halves.picks(n, grid, shifts, n == 16)
        return _lowest(costs, many, eight), _lowest(costs, many, four), picks, encode_halves.renumber(n, grid)
    entries = len(table) // size
    scope = {"g": _constants("grid", table), "gg": _constants("squares", [v * v for v in table]), "less": less}
    scope |= {"mad": mad, "ld_f32x16": ld_f32x16, "st_f32x16": st_f32x16, "splat_f32x16": splat_f32x16}
    scope |= {"zero_f32x16": zero_f32x16, "vmin": vmin}
    of_8, of_4 = (_costs(n, size, entries, count, dict(scope)) for count in (8, 4))
    return _lowest(of_8, 8, eight), _lowest(of_4, 4, four), _picks(n, size, entries, scope), inline(lambda out: None)


def searcher(name, table):
    """Function (x, w, out): see `encode.py`; `table` holds the grid."""
    n, _, even, unit, most = GRIDS[name]
    of_eight, of_four, picks, renumber = _tools(name, table)
    first, groups = _first(name, n, of_eight, table), 256 // n
    signs = _signs(n, even) if even is not None else inline(lambda x, w, signs: _weigh(x, w, n))
    total, top_of = spread(groups, lambda x, y: x + y), spread(groups, lambda x, y: vmax(x, y))

    @inline
    def value(ls):
        return (ls + ls + splat_f32x16(1.0)) * splat_f32x16(1.0 / unit)

    @inline
    def near(y, w, d, ls):
        """(ls or a neighbour, its cost)"""
        below, above = clamp(ls - splat_f32x16(1.0), 0.0, most), clamp(ls + splat_f32x16(1.0), 0.0, most)
        more = clamp(ls + splat_f32x16(2.0), 0.0, most)
        _, t, at = of_four(y, w, d * value(below), d * value(ls), d * value(above), d * value(more))
        return clamp(ls + at - splat_f32x16(1.0), 0.0, most), t

    @inline
    def run(x, w, out):
        top, mean = _size(x, w, n)
        signs(x, w, out + SIGNS)
        s = first(x, w, top, mean)
        if even is not None:
            xq, qq = picks(x, w, s, out + INDICES, out + SIGNS)
            s = over(xq, qq)
        d = half(top_of(s) * splat_f32x16(unit / (2 * most + 1)))
        ls = vround((s * splat_f32x16(unit) * inverse(d) - splat_f32x16(1.0)) * splat_f32x16(0.5))
        ls, e = near(x, w, d, clamp(ls, 0.0, most))
        m = value(ls)
        xq, qq = picks(x, w, d * m, out + INDICES, out + SIGNS)
        d1 = half(over(total(m * xq), total(m * m * qq)))
        if even is None:
            d = d1
        else:
            ls1, f = near(x, w, d1, ls)
            now, then = total(e), total(f)
            d, ls = less(then, now, d1, d), less(then, now, ls1, ls)
        picks(x, w, d * value(ls), out + INDICES, out + SIGNS)
        renumber(out + INDICES)
        st_f32x16(out + 128, d)
        st_f32x16(out + 256, ls)

    return run


# ---- where the bits go -----------------------------------------------------------------------------------------------


f16_bits = _make(
    "f16_bits", lambda x: types.int64, lambda b, t, x: b.zext(f32_to_f16(b, x), _I64), 1, "f32 -> the bits of a half"
)


@inline
def _index(out, k, g):
    return number(out + INDICES + 64 * k, g)


@inline
def _sign(out, k, g):
    return number(out + SIGNS + 64 * k, g)


@inline
def _pairs(p, out, count):
    """Scales of 4 bits, two in a byte."""
    for i in range(count):
        st_u8(p + i, number(out + 256, 2 * i) | number(out + 256, 2 * i + 1) << 4)


@inline
def _signs_and_scale(p, out, g):
    bits = number(out + 256, g) << 28
    for k in range(4):
        bits |= (_sign(out, k, g) & 127) << 7 * k
    st_i32(p, bits)


def _iq2_xxs(p, c, out):
    for g in range(8):
        for k in range(4):
            st_u8(p + 2 + 8 * g + k, _index(out, k, g))
        _signs_and_scale(p + 6 + 8 * g, out, g)


def _iq2_xs(p, c, out):
    for g in range(16):
        for k in range(2):
            st_i16(p + 2 + 4 * g + 2 * k, _index(out, k, g) | (_sign(out, k, g) & 127) << 9)
    _pairs(p + 66, out, 8)


def _iq2_s(p, c, out):
    for i in range(8):
        high = 0
        for k in range(4):
            g = 2 * i + k // 2
            index = _index(out, k % 2, g)
            st_u8(p + 2 + 4 * i + k, index)
            st_u8(p + 34 + 4 * i + k, _sign(out, k % 2, g))
            high |= index >> 8 << 2 * k
        st_u8(p + 66 + i, high)
    _pairs(p + 74, out, 8)


def _iq3_xxs(p, c, out):
    for g in range(8):
        for k in range(8):
            st_u8(p + 2 + 8 * g + k, _index(out, k, g))
        _signs_and_scale(p + 66 + 4 * g, out, g)


def _iq3_s(p, c, out):
    for g in range(8):
        high = 0
        for k in range(8):
            index = _index(out, k, g)
            st_u8(p + 2 + 8 * g + k, index)
            high |= index >> 8 << k
        st_u8(p + 66 + g, high)
        for k in range(4):
            st_u8(p + 74 + 4 * g + k, _sign(out, k, g))
    _pairs(p + 106, out, 4)


def _iq1_s(p, c, out):
    for g in range(8):
        high = number(out + 256, g) << 12 | _sign(out, 0, g) << 15
        for k in range(4):
            index = _index(out, k, g)
            st_u8(p + 2 + 4 * g + k, index)
            high |= index >> 8 << 3 * k
        st_i16(p + 34 + 2 * g, high)


def _iq1_m(p, c, out):
    d = f16_bits(ld_f32(out + 128))
    for g in range(16):
        high = 0
        for k in range(2):
            index = _index(out, k, g)
            st_u8(p + 2 * g + k, index)
            high |= (index >> 8 | _sign(out, k, g) << 3) << 4 * k
        st_u8(p + 32 + g, high)
    for i in range(4):
        scales = (d >> 4 * i & 15) << 12
        for k in range(4):
            scales |= number(out + 256, 4 * i + k) << 3 * k
        st_i16(p + 48 + 2 * i, scales)


def packer(name):
    """Function (p, c, out), as `encode_layout.packer` makes."""
    rest = inline({f.__name__[1:]: f for f in (_iq1_s, _iq1_m, _iq2_xxs, _iq2_xs, _iq2_s, _iq3_xxs, _iq3_s)}[name])

    @inline
    def pack(p, c, out):
        if name != "iq1_m":
            st_f16(p, ld_f32(out + 128))
        rest(p, c, out)

    return pack
