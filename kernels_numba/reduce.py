"""Reductions, softmax and scans over rows.

Elements are combined in an order that depends on shapes only, never on the number of threads. Float sums run over
blocks of 512 elements in the computing dtype, in at least 4 partial sums (128 for f32 and smaller floats, `parts.py`),
and the blocks add up in f64: for any length, |error| <= (512 / 4 + 8) eps sum |x|. Maxima and minima are NaN if any
element is.

All strides are in elements; dims are listed innermost first, each its size and x's stride.
"""

import ast

from . import functions, simd
from .parts import memory, parts
from .scalar import BITS, FLOATS, caster, loader, storer, to_f64

BLOCK = 512
# (start, step) for floats, integers and bools; sums and products continue in f64 from block to block
STEPS = {
    "sum": {"f": ("0.0", "radd(acc, x)"), "i": ("0", "iadd(acc, x)")},
    "prod": {"f": ("1.0", "rmul(acc, x)"), "i": ("1", "imul(acc, x)")},
    "amax": {"f": ("-INF", "fmax(acc, x)"), "i": ("{low}", "imax(acc, x)"), "b": ("False", "acc | x")},
    "amin": {"f": ("INF", "fmin(acc, x)"), "i": ("{high}", "imin(acc, x)"), "b": ("True", "acc & x")},
}
WIDE = ("sum", "prod")

DECODE = """
        base, left, w = 0, {index}, {word}
        for d in range(nk):
            up = left // arg(a, w)
            base += (left - up * arg(a, w)) * arg(a, w + 1)
            left = up
            w += 2
"""

# out[o * splits + s]: part s of the reduced elements of output o. The reduced dims follow the kept ones.
ROWS = """
def kernel(a, tid, nth):
    x, out, outputs, splits, per, length = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4), arg(a, 5)
    count, nk, nr = argf(a, 6), arg(a, 7), arg(a, 8)
    n0, step = arg(a, 9 + 2 * nk), arg(a, 10 + 2 * nk)
    if splits == 1 and nk == 1 and nr == 1 and step == 1:
        for p in range(outputs * tid // nth, outputs * (tid + 1) // nth):
            total = wide_start()
            for b in range(0, length, {block}):
                total = wide_step(total, part(x, p * arg(a, 10) + b, min({block}, length - b)))
            store(out, p, end_of(total, count))
        return
    for p in range(outputs * splits * tid // nth, outputs * splits * (tid + 1) // nth):
        o = p // splits{decode}
        pos = (p - o * splits) * per
        end = min(pos + per, length)
        total = wide_start()
        while pos < end:
            row = pos // n0
            j = pos - row * n0
            m = min(n0 - j, end - pos)
            at, left, w = base + j * step, row, 11 + 2 * nk
            for d in range(1, nr):
                up = left // arg(a, w)
                at += (left - up * arg(a, w)) * arg(a, w + 1)
                left = up
                w += 2
            pos += m
            for b in range(0, m, {block}):
                total = wide_step(total, part_of(x, at + b * step, min({block}, m - b), step))
        store(out, p, end_of(total, count))
"""

# The innermost kept dim is adjacent in memory: tiles of columns, summed up on the stack, eight rows at a time (in
# the computing dtype: three more roundings). out[o, s, column]: part s of the rows.
COLUMNS = """
def kernel(a, tid, nth):
    x, out, outer, n, length = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4)
    count, nk, nr, splits, per, tile = argf(a, 5), arg(a, 6), arg(a, 7), arg(a, 8), arg(a, 9), arg(a, 10)
    n0, step = arg(a, 11 + 2 * nk), arg(a, 12 + 2 * nk)
    tiles = (n + tile - 1) // tile
    acc = stack()
    for p in range(outer * splits * tiles * tid // nth, outer * splits * tiles * (tid + 1) // nth):
        q = p // tiles
        o = q // splits{decode}
        first = (p - q * tiles) * tile
        m = min(tile, n - first)
        for t in range(m):
            keep(acc, t, wide_start())
        pos = (q - o * splits) * per
        end = min(pos + per, length)
        while pos < end:
            row = pos // n0
            j = pos - row * n0
            rows = min(n0 - j, end - pos)
            at, left, w = base + first + j * step, row, 13 + 2 * nk
            for d in range(1, nr):
                up = left // arg(a, w)
                at += (left - up * arg(a, w)) * arg(a, w + 1)
                left = up
                w += 2
            pos += rows
            for i in range(0, rows & -8, 8):
                eight(x, at, step, acc, m)
                at += 8 * step
            for i in range(rows & 7):
                for t in range(m):
                    keep(acc, t, wide_step(kept(acc, t), cast(load(x, at + t))))
                at += step
        for t in range(m):
            store(out, q * n + first + t, end_of(kept(acc, t), count))
"""
EIGHT = """
def eight(x, at, step, acc, m):
    at2 = at + 4 * step
    for t in range(m):
        x0, x1 = cast(load(x, at + t)), cast(load(x, at + step + t))
        x2, x3 = cast(load(x, at + 2 * step + t)), cast(load(x, at + 3 * step + t))
        x4, x5 = cast(load(x, at2 + t)), cast(load(x, at2 + step + t))
        x6, x7 = cast(load(x, at2 + 2 * step + t)), cast(load(x, at2 + 3 * step + t))
        low, high = pair(pair(x0, x1), pair(x2, x3)), pair(pair(x4, x5), pair(x6, x7))
        keep(acc, t, wide_step(kept(acc, t), pair(low, high)))
"""
TILE = 512  # columns at a time, at most
SOFTMAX_TILE = 128  # columns of a softmax at a time

# one row of n adjacent elements per output or output row
EACH = """
def kernel(a, tid, nth):
    x, out, rows, n, extra, nk = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), argf(a, 4), arg(a, 5)
    for p in range(rows * tid // nth, rows * (tid + 1) // nth):{decode}
        row(x, base, n, out, p, extra)
"""

PART = """
def part(x, at, n):
    acc = start()
    for t in range(n):
        acc = step_of(acc, cast(load(x, at + t)))
    return acc
"""

# strided elements do not become vectors: short runs keep the error bound
PART_OF = (
    PART
    + """

def part_of(x, at, n, step):
    if step == 1:
        return part(x, at, n)
    acc = start()
    for b in range(0, n, 64):
        run = start()
        for t in range(b, min(b + 64, n)):
            run = step_of(run, cast(load(x, at + t * step)))
        acc = step_of(acc, run)
    return acc
"""
)

ARG = """
def row(x, at, n, out, p, extra):
    best, where = part(x, at, min(n, {block})), 0
    for b in range({block}, n, {block}):
        found = part(x, at + b, min({block}, n - b))
        if found {better} best or (found != found and best == best):
            best, where = found, b
    store(out, p, where + find(x, at + where, min({block}, n - where), best))
"""

# the first of n elements that is `best` (NaN for NaN); one of them is
FIND = """
def find(x, at, n, best):
    for t in range(n):
        v = cast(load(x, at + t))
        if v == best or (v != v and best != best):
            return t
    return n - 1
"""

VAR = """
def deviations(x, at, n, mean):
    s = r = zero()
    for t in range(n):
        d = cast(load(x, at + t)) - mean
        s = radd(s, d * d)
        r = radd(r, d)
    return s, r


def row(x, at, n, out, p, correction):
    total = 0.0
    for b in range(0, n, {block}):
        total += part(x, at + b, min({block}, n - b))
    mean = cast(total / n)
    squares = rest = 0.0
    for b in range(0, n, {block}):
        s, r = deviations(x, at + b, min({block}, n - b), mean)
        squares += s
        rest += r
    store(out, p, (squares - rest * rest / n) / max(n - correction, 0.0))
"""

EXPONENTIALS = """
def exponentials(x, at, n, top):
    s = zero()
    for t in range(n):
        s = radd(s, exp(cast(load(x, at + t)) - top))
    return s


def row(x, at, n, out, p, extra):
    top = start()
    for b in range(0, n, {block}):
        top = step_of(top, part(x, at + b, min({block}, n - b)))
    total = 0.0
    for b in range(0, n, {block}):
        total += exponentials(x, at + b, min({block}, n - b), top)
    {finish}
"""
FINISH = {
    "softmax": "each(x, at, n, out, p * n, top, cast(1 / total))",
    "log_softmax": "each(x, at, n, out, p * n, top, cast(wide_log(total)))",
    "logsumexp": "store(out, p, select(fabs(top) == INF, to_f64(top), top + wide_log(total)))",
}
EACH_ELEMENT = """
def each(x, at, n, out, to, top, last):
    for t in range(n):
        v = cast(load(x, at + t)) - top
        store(out, to + t, {value})
"""
VALUES = {"softmax": "exp(v) * last", "log_softmax": "v - last"}

# where the output holds what is computed, the exponentials are written there first
SOFTMAX = """
def exponentials(x, at, n, out, to, top):
    s = zero()
    for t in range(n):
        e = exp(cast(load(x, at + t)) - top)
        store(out, to + t, e)
        s = radd(s, e)
    return s


def scale(out, to, n, factor):
    for t in range(n):
        store(out, to + t, written(out, to + t) * factor)


def row(x, at, n, out, p, extra):
    top = start()
    for b in range(0, n, {block}):
        top = step_of(top, part(x, at + b, min({block}, n - b)))
    total = 0.0
    for b in range(0, n, {block}):
        total += exponentials(x, at + b, min({block}, n - b), out, p * n + b, top)
    scale(out, p * n, n, cast(1 / total))
"""

# The same over a middle dim: x[o, row, column] and the output are dense. Tiles of columns, so that what is read three
# times stays in the cache.
SOFTMAX_COLUMNS = """
def kernel(a, tid, nth):
    x, out, outer, n, length = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4)
    tiles = (n + {columns} - 1) // {columns}
    top, total = stack(), stack()
    for p in range(outer * tiles * tid // nth, outer * tiles * (tid + 1) // nth):
        o = p // tiles
        first = (p - o * tiles) * {columns}
        m, begin = min({columns}, n - first), o * length * n + first
        end = begin + length * n
        for t in range(m):
            keep(top, t, start())
            keep_wide(total, t, 0)
        for at in range(begin, end, n):
            for t in range(m):
                keep(top, t, step_of(kept(top, t), cast(load(x, at + t))))
        for at in range(begin, end, n):
            for t in range(m):
                e = exp(cast(load(x, at + t)) - kept(top, t))
                keep_wide(total, t, kept_wide(total, t) + to_f64(e))
                {early}
        for t in range(m):
            keep_wide(total, t, {last})
        for at in range(begin, end, n):
            for t in range(m):
                last = cast(kept_wide(total, t))
                {late}
"""
_DIFFERENCE = "v = cast(load(x, at + t)) - kept(top, t); "
LAST = {"softmax": "1 / kept_wide(total, t)", "log_softmax": "wide_log(kept_wide(total, t))"}

SCAN = """
def row(x, at, n, out, p, extra):
    total = wide_start()
    for t in range(n):
        total = wide_step(total, cast(load(x, at + t)))
        store(out, p * n + t, total)
"""


def _steps(name, compute):
    """Scope with start(), step_of(acc, x), and the same from block to block; None if there is no such row."""
    kind = "f" if compute in ("f32", "f64") else "b" if compute == "bool" else "i"
    if kind not in STEPS.get(name, {}):
        return None
    bits, signed = BITS[compute], compute[0] == "i"
    limits = {"low": -(1 << bits - 1) if signed else 0, "high": (1 << bits - signed) - 1}
    start, step = (text.format(**limits) for text in STEPS[name][kind])
    wide = "f64" if kind == "f" and name in WIDE else compute
    exact = step.replace("radd(acc, x)", "acc + x").replace("rmul(acc, x)", "acc * x")
    end = "acc / count" if kind == "f" and name == "sum" else "acc"
    return {
        "zero": functions.inline("def zero():\n    return 0", compute),
        "start": functions.inline(f"def start():\n    return {start}", compute),
        "step_of": functions.inline(f"def step_of(acc, x):\n    return {step}", compute),
        "wide_start": functions.inline(f"def wide_start():\n    return {start}", wide),
        "wide_step": functions.inline(f"def wide_step(acc, part):\n    x = widen(part)\n    return {exact}", wide),
        "end_of": functions.inline(f"def end_of(acc, count):\n    return {end}", wide),
        "cast": caster(compute),
        "widen": caster(wide),
        "pair": functions.inline(f"def pair(acc, x):\n    return {exact}", compute),
        "keep": storer(wide),
        "kept": loader(wide, written=True),
        "wide_log": functions.scope("f64")["log"],
    }


def _sources(name, compute, out):
    """(row of STEPS that a kernel is made from, its template, the texts of its helpers)"""
    if name.removesuffix("_columns") in VALUES and name not in VALUES:
        name = name.removesuffix("_columns")
        kept = name == "softmax" and out == compute
        early = "store(out, at + t, e)" if kept else ""
        late = "written(out, at + t) * last)" if kept else VALUES[name] + ")"
        late = ("" if kept else _DIFFERENCE) + "store(out, at + t, " + late
        text = SOFTMAX_COLUMNS.replace("{early}", early).replace("{late}", late).replace("{last}", LAST[name])
        return "amax", text, []
    if name.endswith("_columns"):
        return name.removesuffix("_columns"), COLUMNS, [EIGHT]
    if name in ("argmax", "argmin"):
        return "a" + name[3:], EACH, [PART, FIND, ARG.replace("{better}", ">" if name == "argmax" else "<")]
    if name == "var":
        return "sum", EACH, [PART, VAR]
    if name in ("cumsum", "cumprod"):
        return {"cumsum": "sum", "cumprod": "prod"}[name], EACH, [SCAN]
    if name == "softmax" and out == compute:
        return "amax", EACH, [PART, SOFTMAX]
    if name in FINISH:
        write = [EACH_ELEMENT.replace("{value}", VALUES[name])] if name in VALUES else []
        return "amax", EACH, [PART, EXPONENTIALS.replace("{finish}", FINISH[name]), *write]
    return name, ROWS, [PART_OF]


def build(name, *params, source=None):
    """Kernel of that name for (computing dtype, output's, input's), or None.

    Names: those of STEPS, with "_columns" behind for columns; argmax, argmin, var, softmax, log_softmax (both with
    "_columns", too), logsumexp, cumsum, cumprod.
    """
    compute, out, given = params
    row, kernel, helpers = _sources(name, compute, out)
    steps = _steps(row, compute)
    if steps is None:
        return None
    scope = {k: v for k, v in vars(simd).items() if k.startswith(("ldi_", "sti_", "arg"))}
    scope |= functions.scope(compute) | steps | {"load": loader(given), "store": storer(out)}
    scope |= {"written": loader(out, written=True), "stack": memory(8 * TILE)}
    scope |= {"keep_wide": storer("f64"), "kept_wide": loader("f64", written=True), "to_f64": to_f64}
    vectors = parts(row, given) if compute == FLOATS.get(given) == "f32" else {}
    if row == "prod" and kernel is COLUMNS:  # what overflows in f32 need not in f64
        compute = "f64" if compute == "f32" else compute
        scope |= {k: v for k, v in _steps(row, compute).items() if k in ("cast", "pair")}
    decode = DECODE.format(index="p" if kernel is EACH else "o", word={ROWS: 9, COLUMNS: 11}.get(kernel, 6)).rstrip()
    for text in (*helpers, kernel):
        text = text.replace("{decode}", decode).replace("{block}", str(BLOCK)).replace("{columns}", str(SOFTMAX_TILE))
        for node in ast.parse(text).body:
            exec(compile(ast.Module([node], []), f"<reduce {name}>", "exec"), scope)
            if node.name != "kernel":
                scope[node.name] = vectors.get(node.name) or functions.jitted(scope[node.name])
    return scope["kernel"]
