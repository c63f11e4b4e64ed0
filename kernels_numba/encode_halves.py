"""Grids of eights of three levels, scanned by their halves: what `encode_grid.py` searches IQ1 and IQ2 with.

The cost of an entry is a sum over its elements, so a table of the costs of all 3**4 quadruples of the first four and
one of the last four are made first. An entry then costs one addition, and since entries with the same first half stand
together, even that falls to one minimum per entry. SLOTS costs, of several scales or shifts of the levels, are found in
one pass. In a lane is a group of elements, as in `encode_search.py`.
"""

from itertools import product

from llvmlite import ir
from numba import types

from .encode_layout import number
from .encode_search import less
from .lanes import inline, shared
from .parts import memory
from .simd import (
    _I32,
    _I64,
    I32x16,
    _const,
    _make,
    constant,
    i2f,
    ld_f32,
    ld_f32x16,
    splat_f32x16,
    st_f32,
    st_f32x16,
    vand,
    vlshr,
    vmin,
    zero_f32x16,
)

SLOTS = 4
QUADS = 81
_NAMES = {
    "i2f": i2f, "ld_f32x16": ld_f32x16, "less": less, "splat_f32x16": splat_f32x16, "st_f32x16": st_f32x16,
    "vand": vand, "vlshr": vlshr, "vmin": vmin, "zero_f32x16": zero_f32x16, "byte": constant("i32", 16, 255),
    **{f"by{k}": constant("i32", 16, 8 * k) for k in range(1, 4)},
}  # fmt: skip


class Grid:
    """A table of entries of 8 of three levels: entries in order of their halves, and where each is in the table.

    `starts`: where the entries of each first half begin; `seconds`: the second half of each; `numbers`: its number.
    """

    def __init__(self, table):
        self.levels = sorted(set(table))
        quads = {quad: i for i, quad in enumerate(product(self.levels, repeat=4))}
        entries = [(tuple(table[i : i + 4]), tuple(table[i + 4 : i + 8]), i // 8) for i in range(0, len(table), 8)]
        entries = sorted((quads[first], quads[second], number) for first, second, number in entries)
        self.starts = [sum(first < i for first, _, _ in entries) for i in range(QUADS + 1)]
        self.seconds, self.numbers = [e[1] for e in entries], [e[2] for e in entries]
        by_number = {number: 8 * number for number in self.numbers}
        elements = [table[by_number[n] : by_number[n] + 8] for n in self.numbers]
        self.bytes = [self._packed(e[4 * h : 4 * h + 4]) for h in (0, 1) for e in elements]

    def _packed(self, four):
        return sum(v - self.levels[0] << 8 * k for k, v in enumerate(four))


def _global(b, name, array, values):
    found = b.module.globals.get(name)
    if found is None:
        found = ir.GlobalVariable(b.module, array, name)
        found.global_constant, found.linkage = True, "internal"
        found.initializer = ir.Constant(array, list(values))
    return found


def integers(name, values):
    """Intrinsic f(i): number i of a table of numbers of 15 bits."""
    array = ir.ArrayType(ir.IntType(16), len(values))

    def lower(b, t, i):
        value = b.load(b.gep(_global(b, name, array, values), [_const(_I64, 0), i]))
        value.align = 2
        return b.zext(value, _I64)

    return _make(name, lambda i: types.int64, lower, 1)


def _words(name, values, gap):
    """Intrinsic f(at): the words of a table, and those `gap` later, whose numbers a vector of f32 holds."""
    array = ir.ArrayType(_I32, len(values))

    def lower(b, t, at):
        table, places = _global(b, name, array, values), b.fptosi(at, I32x16.ll)
        found = ir.Constant(I32x16.ll, ir.Undefined)
        for lane in range(16):
            place = b.add(b.zext(b.extract_element(places, _const(_I32, lane)), _I64), _const(_I64, gap))
            value = b.load(b.gep(table, [_const(_I64, 0), place]))
            value.align = 4
            found = b.insert_element(found, value, _const(_I32, lane))
        return found

    return _make(name, lambda at: I32x16, lower, 1)


def _compiled(head, lines, scope):
    exec(head + "\n    " + "\n    ".join(lines), scope)
    return shared(scope[head[4 : head.index("(")]])


def _filler(levels):
    """Function (y, w, out, step, s, shift): the costs s**2 w v**2 - 2 s y v of all quadruples of levels v + shift.

    They go to every `step` bytes from `out` on, those of the next four elements behind them.
    """
    lines = ["a, b, room = s * s, s * splat_f32x16(-2.0), memory()"]
    lines += [f"v{i} = splat_f32x16({float(level)}) + shift" for i, level in enumerate(levels)]
    inner = []
    for j in range(4):
        inner += [f"c, d = a * ld_f32x16(w + {64 * j}), b * ld_f32x16(y + {64 * j})"]
        inner += [f"e{j}{i} = v{i} * (c * v{i} + d)" for i in range(3)]
    inner += [f"st_f32x16(room + {64 * (3 * i + k)}, e0{i} + e1{k})" for i in range(3) for k in range(3)]
    inner += [f"p{i}{k} = e2{i} + e3{k}" for i in range(3) for k in range(3)]
    inner += ["for i in range(9):", "    pair = ld_f32x16(room + 64 * i)"]
    inner += [f"    st_f32x16(out + step * {3 * i + k}, pair + p{i}{k})" for i in range(3) for k in range(3)]
    inner += ["    out = out + 9 * step"]
    lines += ["for _ in range(2):", *("    " + line for line in inner), "    y, w = y + 256, w + 256"]
    return _compiled("def fill(y, w, out, step, s, shift):", lines, dict(_NAMES) | {"memory": memory(9 * 64)})


def _scanner(grid, slots, picks):
    """Function (first): the least cost of each slot; where `picks` the first half and the rest of the cost as well."""
    many, step = range(slots), 64 * slots
    scope = dict(_NAMES) | {
        "start": integers("start", grid.starts),
        "place": integers("place", [step * (QUADS + second) for second in grid.seconds]),
    }
    lines = [f"t{q} = splat_f32x16(3e38)" for q in many]
    lines += [f"rest{q} = own{q} = zero_f32x16()" for q in many if picks] + ["at = first"]
    lines += [f"for i in range({QUADS}):"] + [f"    c{q} = splat_f32x16(3e38)" for q in many]
    lines += ["    for k in range(start(i), start(i + 1)):", "        p = first + place(k)"]
    lines += [f"        c{q} = vmin(c{q}, ld_f32x16(p + {64 * q}))" for q in many]
    for q in many:
        lines += [f"    v = c{q} + ld_f32x16(at + {64 * q})"]
        if picks:
            lines += [f"    rest{q}, own{q} = less(v, t{q}, c{q}, rest{q}), less(v, t{q}, splat_f32x16(i), own{q})"]
        lines += [f"    t{q} = vmin(t{q}, v)"]
    found = [f"{name}{q}" for name in ("t", "own", "rest")[: 3 if picks else 1] for q in many]
    return _compiled("def scan(first):", [*lines, f"    at = at + {step}", f"return {', '.join(found)}"], scope)


def costs(n, grid, shifts, each):
    """Function (y, w, s0, s1, ...): the least costs of a group of n with SLOTS // len(shifts) scales.

    y: products of importances w and values. each: whether every eight has a shift of its own, else a group has one.
    """
    ways = len(shifts)
    scales, many = range(SLOTS // ways), range(SLOTS)
    scope = dict(_NAMES) | {"fill": _filler(grid.levels), "scan": _scanner(grid, SLOTS, False)}
    scope |= {"memory": memory(2 * 64 * QUADS * SLOTS), "small": memory(2 * 64 * SLOTS)}
    lines = ["room, words = memory(), small()"]
    for q in many:
        lines += [f"st_f32x16(words + {128 * q}, s{q // ways})"]
        lines += [f"st_f32x16(words + {128 * q + 64}, splat_f32x16({float(shifts[q % ways])}))"]
    lines += [f"t{q} = zero_f32x16()" for q in many] + [f"for _ in range({n // 8}):", f"    for q in range({SLOTS}):"]
    lines += ["        slot = words + 128 * q"]
    lines += [f"        fill(y, w, room + 64 * q, {64 * SLOTS}, ld_f32x16(slot), ld_f32x16(slot + 64))"]
    lines += [f"    {', '.join(f'c{q}' for q in many)} = scan(room)"]
    if each and ways == 2:
        lines += [f"    c{q} = c{q + 1} = vmin(c{q}, c{q + 1})" for q in many[::2]]
    lines += [f"    t{q} = t{q} + c{q}" for q in many] + ["    y, w = y + 512, w + 512"]
    found = [f"vmin(t{ways * k}, t{ways * k + ways - 1})" for k in scales]
    head = f"def costs(y, w, {', '.join(f's{k}' for k in scales)}):"
    return _compiled(head, [*lines, f"return {', '.join(found)}"], scope)


def _finder(grid, slots):
    """Function (second, own, rest, out): the places of the entries of which `_scanner` told halves and costs."""
    start, place = integers("start", grid.starts), integers("seconds", [64 * slots * j for j in grid.seconds])

    @shared
    def find(second, own, rest, out):
        for lane in range(16):
            i, cost, at = number(own, lane), ld_f32(rest + 4 * lane), second + 4 * lane
            k, last = start(i), start(i + 1) - 1
            while k < last and ld_f32(at + place(k)) != cost:
                k += 1
            st_f32(out + 4 * lane, k)

    return find


def _chosen(n, shifts, each):
    """Lines: for every eight the place of the one of its slots, or of the group's, that costs least."""
    if len(shifts) == 1:
        return []
    lines = [] if each else ["turn = less(total1, total0, splat_f32x16(1.0), none)"]
    lines += [f"for k in range({n // 8}):"]
    if each:
        lines += ["    turn = ld_f32x16(down + 64 * k)"]
    lines += ["    at = less(none, turn, ld_f32x16(more + 64 * k), ld_f32x16(out + 64 * k))"]
    return [*lines, "    st_f32x16(out + 64 * k, at)", "    st_f32x16(down + 64 * k, turn)"]


def picks(n, grid, shifts, each):
    """Function (y, w, s, out, down): (<w y, g>, <w, g g>) with the best entries g.

    The places of the entries go to `out`, 0 or 1 for the first or second of the shifts to `down`, a vector per eight.
    """
    ways, many, entries = len(shifts), range(len(shifts)), len(grid.numbers)
    scope = dict(_NAMES) | {"fill": _filler(grid.levels), "scan": _scanner(grid, ways, True)}
    scope |= {"low": _words("low", grid.bytes, 0), "high": _words("high", grid.bytes, entries)}
    scope |= {"find": _finder(grid, ways), "small": memory(128 + 64 * n // 8)}
    scope["memory"] = memory(2 * 64 * QUADS * ways)
    lines = ["room, words, none = memory(), small(), zero_f32x16()", "more = words + 128", "xq = qq = shift = none"]
    lines += [f"total{q} = none" for q in many] + [f"for k in range({n // 8}):"]
    lines += ["    y8, w8 = y + 512 * k, w + 512 * k"]
    for q, by in enumerate(shifts):
        lines += [f"    fill(y8, w8, room + {64 * q}, {64 * ways}, s, splat_f32x16({float(by)}))"]
    lines += [f"    {', '.join(f'{name}{q}' for name in ('t', 'own', 'rest') for q in many)} = scan(room)"]
    for q in many:
        lines += [f"    st_f32x16(words, own{q})", f"    st_f32x16(words + 64, rest{q})"]
        lines += [f"    find(room + {64 * (QUADS * ways + q)}, words, words + 64, {('out', 'more')[q]} + 64 * k)"]
        lines += [f"    total{q} = total{q} + t{q}"]
    if each and ways == 2:
        lines += ["    st_f32x16(down + 64 * k, less(t1, t0, splat_f32x16(1.0), none))"]
    lines += [*_chosen(n, shifts, each), f"for k in range({n // 8}):", "    y8, w8 = y + 512 * k, w + 512 * k"]
    if ways == 2:
        first, second = (f"splat_f32x16({float(shift)})" for shift in shifts)
        lines += [f"    shift = less(none, ld_f32x16(down + 64 * k), {second}, {first})"]
    lines += [f"    base, at = shift + splat_f32x16({float(grid.levels[0])}), ld_f32x16(out + 64 * k)"]
    lines += ["    halves0, halves1 = low(at), high(at)"]
    for j in range(8):
        word = f"halves{j // 4}"
        moved = f"vlshr({word}, by{j % 4}())" if j % 4 else word
        lines += [f"    v = i2f(vand({moved}, byte())) + base"]
        lines += [f"    xq, qq = xq + ld_f32x16(y8 + {64 * j}) * v, qq + ld_f32x16(w8 + {64 * j}) * v * v"]
    return _compiled("def picks(y, w, s, out, down):", [*lines, "return xq, qq"], scope)


def renumber(n, grid):
    """Function (out): places that `picks` left become the numbers of the entries."""
    found = _words("numbers", grid.numbers, 0)

    @inline
    def run(out):
        for k in range(n // 8):
            st_f32x16(out + 64 * k, i2f(found(ld_f32x16(out + 64 * k))))

    return run
