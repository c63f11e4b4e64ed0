"""Sums and extremes of runs of adjacent f32, f16 or bf16 elements: eight vectors of f32 at a time, however they end.

The order is the same on every CPU level: 128 partial sums, so a run of n sums up with an error of at most
(n / 128 + 14) eps sum |x|. An extreme is NaN if an element is.
"""

from llvmlite import ir
from numba import types

from . import functions, simd
from .lanes import MEMORY, first, greater, lesser
from .simd import _I16, _I32, _I64, _call, _const, _make, _splat, hmax, hsum, splat_f32x16, vadd, zero_f32x16

RUN = """
def part(x, at, n):
    a = x + at * {size}
    {sums} = start()
    bad = zero_f32x16()
    for j in range(0, n & -128, 128):
        {loads}
        {steps}
        {marks}
    for j in range(n & -128, n, 16):
        x0 = tail(a + j * {size}, n - j)
        s0 = step(s0, x0)
        {mark}
    if n >= 128:
        s0 = step(step(step(s0, s1), step(s2, s3)), step(step(s4, s5), step(s6, s7)))
    {end}
"""
_EIGHT = range(8)
_FORMAT = {
    "sums": " = ".join(f"s{k}" for k in _EIGHT),
    "steps": "; ".join(f"s{k} = step(s{k}, x{k})" for k in _EIGHT),
}
_MARK = {
    "marks": "; ".join(f"bad = mark(bad, x{k}, x{k + 1})" for k in range(0, 8, 2)),
    "mark": "bad = mark(bad, x0, x0)",
    "end": "nan = hsum(bad)\n    return nan if nan != nan else across(s0)",
}
_PLAIN = {"marks": "pass", "mark": "pass", "end": "return across(s0)"}

# the first of n elements that is `best` (NaN for NaN); one of them is
FIND = """
def find(x, at, n, best):
    b = splat_f32x16(best)
    for j in range(0, n, 16):
        bits = same(tail(x + (at + j) * {size}, n - j), b)
        if bits != 0:
            return j + lowest(bits)
    return n - 1
"""


def _mark(b, t, bad, x, y):
    """bad, NaN in the lanes where x or y is"""
    return b.select(b.fcmp_unordered("uno", x, y), _const(x.type, float("nan")), bad)


def _same(b, t, x, y):
    """a bit per lane: x == y, or both are NaN"""
    nans = b.and_(b.fcmp_unordered("uno", x, x), b.fcmp_unordered("uno", y, y))
    return b.zext(b.bitcast(b.or_(b.fcmp_ordered("==", x, y), nans), _I16), _I64)


def _fill(value):
    """lanes i < n of x, the others `value`"""

    def lower(b, t, x, n):
        lanes = _const(ir.VectorType(_I32, 16), list(range(16)))
        below = b.icmp_signed("<", lanes, _splat(b, b.trunc(n, _I32), 16))
        return b.select(below, x, _const(x.type, value))

    return _make("fill", lambda x, n: x, lower, 2)


def _lowest(b, t, bits):
    return _call(b, "llvm.cttz.i64", _I64, [bits, _const(ir.IntType(1), 1)])


mark, same = _make("mark", lambda bad, x, y: bad, _mark, 3), _make("same", lambda x, y: types.int64, _same, 2)
lowest = _make("lowest", lambda bits: types.int64, _lowest, 1)
hmin = simd._reduction("hmin", "fmin", "smin")
# (start, step of two vectors, of the lanes of one, the texts of RUN)
_ROWS = {
    "sum": (0.0, vadd, hsum, _PLAIN),
    "amax": (float("-inf"), lambda s, x: greater(x, s), hmax, _MARK),
    "amin": (float("inf"), lambda s, x: lesser(x, s), hmin, _MARK),
}


def memory(nbytes):
    """Intrinsic f(): the address of memory in the caller's frame."""

    def lower(b, t):
        with b.goto_entry_block():
            room = b.alloca(_I64, _const(_I64, nbytes // 8))
            room.align = 64
        return b.ptrtoint(room, _I64)

    return _make("memory", lambda: types.int64, lower, 0)


def parts(name, dtype):
    """{"part": f(x, at, n), "find": f(x, at, n, best)} for a row of the table and elements of dtype; {} if there is no
    such row.
    """
    if name not in _ROWS or dtype not in MEMORY:
        return {}
    value, step, across, texts = _ROWS[name]
    memory, inside = MEMORY[dtype], first if value == 0.0 else _fill(value)
    load, size = memory.part, memory.size

    def tail(a, n):
        return load(a, n) if n >= 16 else inside(load(a, n), n)

    scope = {"splat_f32x16": splat_f32x16, "zero_f32x16": zero_f32x16, "hsum": hsum, "across": across, "ld": memory.ld}
    scope |= {"mark": mark, "same": same, "lowest": lowest, "start": functions.jitted(lambda: splat_f32x16(value))}
    scope |= {"tail": functions.jitted(tail), "step": step if name == "sum" else functions.jitted(step)}
    loads = "; ".join(f"x{k} = ld(a + (j + {16 * k}) * {size})" for k in _EIGHT)
    exec(RUN.format(size=size, loads=loads, **_FORMAT, **texts), scope)
    exec(FIND.format(size=size), scope)
    return {found: functions.jitted(scope[found]) for found in ("part", "find")}
