"""Kernels that move elements by index, and those that make indices.

An index outside its dim never reaches memory: it is read as 0, and 1 + its place is written to the kernel's flag word.
Elements are moved as raw words (u8 to u64), but where they are added.
"""

from numba import types

from . import functions
from .elementwise import expression
from .scalar import BITS, FLOATS, caster, loader, storer
from .simd import _I1, _I64, _call, _const, _make, arg, argf, ld_i8x64, ldn_i8x64, sti_i64
from .transpose import turner

CHECK = """
def inside(ids, place, size):
    at = cast(load_index(ids, place))
    at += select(at < 0, size, cast(0))
    return select((at < 0) | (at >= size), cast(0), at)


def check(ids, first, last, size, flag):
    wrong = False
    for i in range(first, last):
        at = cast(load_index(ids, i))
        wrong |= (at < -size) | (at >= size)
    if wrong:
        for i in range(first, last):
            at = cast(load_index(ids, i))
            if (at < -size) | (at >= size):
                sti_i64(flag, 0, i + 1)
"""
PIECE = 512  # indices that are checked, then used, while they are in the L1 cache

# out[o, k, i] = x[o, index[k], i]; the rows (o, k) are shared out
TAKE = """
def kernel(a, tid, nth):
    x, ids, out, flag, size, count, inner, outer = (
        arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 6), arg(a, 7))
    rows = outer * count
    row, end = rows * tid // nth, rows * (tid + 1) // nth
    while row < end:
        o = row // count
        k = row - o * count
        m = min(min(count - k, end - row), {piece})
        check(ids, k, k + m, size, flag)
        source = x + o * size * inner * {width}
        target = out + row * inner * {width}
        if inner == 1:
            for j in range(m):
                store(target, j, load(source, inside(ids, k + j, size)))
        else:
            for j in range(m):
                start = source + inside(ids, k + j, size) * inner * {width}
                for i in range(inner):
                    store(target, i, load(start, i))
                target += inner * {width}
        row += m
"""

# x[index[k], i] = values[k, i] in order, so that the last of equal indices wins; the columns i are shared out
PUT = """
def kernel(a, tid, nth):
    x, ids, values, flag, size, count, inner, step = (
        arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 6), arg(a, 7))
    first, last = inner * tid // nth, inner * (tid + 1) // nth
    for k in range(count):
        check(ids, k, k + 1, size, flag)
        target = x + inside(ids, k, size) * inner * {width}
        source = values + k * step * {width}
        for i in range(first, last):
            store(target, i, load(source, i))
"""

# An index of any shape, contiguous, picks along one dim of a strided x; y is contiguous and of the index's shape.
# Rows are the index's dims but the last; per row dim, innermost first: its size, x's stride (0 for the picked dim).
# What is written is shared out so that no element has two threads: by rows if the last dim is picked (step is 0), else
# by columns.
ALONG = """
def kernel(a, tid, nth):
    x, ids, y, flag, size, picked, n, step, rows, nd = (
        arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 6), arg(a, 7), arg(a, 8), arg(a, 9))
    begin, end, left_end, right_end = 0, rows, 0, n
    if {by_rows}:
        begin, end = rows * tid // nth, rows * (tid + 1) // nth
    else:
        left_end, right_end = n * tid // nth, n * (tid + 1) // nth
    for row in range(begin, end):
        base, left, w = 0, row, 10
        for d in range(nd):
            up = left // arg(a, w)
            base += (left - up * arg(a, w)) * arg(a, w + 1)
            left = up
            w += 2
        for first in range(left_end, right_end, {piece}):
            last = min(first + {piece}, right_end)
            check(ids, row * n + first, row * n + last, size, flag)
            row_ids, row_y = ids + row * n * {index_width}, y + row * n * {width}
            if step == 0 and picked == 1:
                row_x = x + base * {width}
                for j in range(first, last):
                    at = inside(row_ids, j, size)
                    {along}
            else:
                for j in range(first, last):
                    at = base + j * step + inside(row_ids, j, size) * picked
                    {across}
"""


def _along(by_rows, body):
    across = body.replace("row_x", "x")
    return ALONG.replace("{by_rows}", by_rows).replace("{along}", body).replace("{across}", across)


# out[i] = start + i * step
ARANGE = """
def kernel(a, tid, nth):
    out, n, start, step = arg(a, 0), arg(a, 1), {read}(a, 2), {read}(a, 3)
    for i in range(n * tid // nth, n * (tid + 1) // nth):
        store(out, i, start + i * step)
"""

# out[o, i, j] = x[o, i, j] where j is adjacent in out and i is adjacent in x: tiles of 32 x 64 stay in the L1 cache
TRANSPOSE = """
def kernel(a, tid, nth):
    x, out, ni, nj, step_out, step_x, outer, nd = (
        arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 6), arg(a, 7))
    strips = (ni + 31) // 32
    for p in range(outer * strips * tid // nth, outer * strips * (tid + 1) // nth):
        left, w, source, target = p // strips, 8, x, out
        for d in range(nd):
            up = left // arg(a, w)
            at = left - up * arg(a, w)
            left = up
            source += at * arg(a, w + 1) * {width}
            target += at * arg(a, w + 2) * {width}
            w += 3
        first = (p - p // strips * strips) * 32
        last = min(first + 32, ni)
        for j in range(0, nj, 64):
            turn(source + (first + j * step_x) * {width}, step_x * {width}, target + (first * step_out + j) * {width},
                 step_out * {width}, last - first, min(64, nj - j))
"""

# places of what is true, in order; `out` has room for all of them. A thread counts what is before its part
NONZERO = """
def kernel(a, tid, nth):
    x, out, n, found = arg(a, 0), arg(a, 1), arg(a, 2), 0
    blocks = (n + 63) // 64
    first = blocks * tid // nth
    for b in range(first):
        found += ones(true_bits(x + 64 * b, 64))
    for b in range(first, blocks * (tid + 1) // nth):
        bits = true_bits(x + 64 * b, n - 64 * b)
        while bits != 0:
            sti_i64(out, found, 64 * b + trailing_zeros(bits))
            bits &= bits - 1
            found += 1
"""


def _true_bits(b, t, x):
    """bit i of an i64: whether byte i of 64 is not 0"""
    return b.bitcast(b.icmp_signed("!=", x, _const(x.type, 0)), _I64)


def _count_bits(name, *more):
    return lambda b, t, x: _call(b, f"llvm.{name}.i64", _I64, [x, *(_const(_I1, m) for m in more)])


_bits = _make("bits", lambda x: types.int64, _true_bits, 1)
_BITS = {
    "ones": _make("ones", lambda x: types.int64, _count_bits("ctpop"), 1),
    "trailing_zeros": _make("trailing_zeros", lambda x: types.int64, _count_bits("cttz", 1), 1),
    "true_bits": functions.jitted(lambda x, n: _bits(ld_i8x64(x) if n >= 64 else ldn_i8x64(x, n))),
}

BY_INDEX = {
    "take": TAKE,
    "put": PUT,
    "gather": _along("True", "store(row_y, j, load(row_x, at))"),
    "scatter": _along("step == 0", "store(row_x, at, load(row_y, j))"),
}
COMBINES = {"scatter_add": "add", "scatter_prod": "mul", "scatter_amax": "maximum", "scatter_amin": "minimum"}
BY_INDEX |= dict.fromkeys(
    COMBINES,
    _along("step == 0", "store(row_x, at, function(load(row_x, at), load(row_y, j)))"),
)


def build(name, *params, source=None):
    """The kernel of that name, or None.
    Parameters: the elements' dtype and the index's; arange: what it computes in and out.
    """
    scope = dict(functions.intrinsics()) | {"arg": arg, "argf": argf, "sti_i64": sti_i64, "cast": caster("i64")}
    if name == "arange":
        scope["store"] = storer(params[1])
        text = ARANGE.format(read="argf" if params[0] == "f64" else "arg")
    elif name == "nonzero":
        scope, text = scope | _BITS, NONZERO
    elif name == "transpose":
        scope["turn"] = turner(BITS[params[0]] // 8)
        text = TRANSPOSE.replace("{width}", str(BITS[params[0]] // 8))
    elif name in BY_INDEX:
        dtype, ids = params
        scope |= {"load": loader(dtype), "store": storer(dtype), "load_index": loader(ids)}
        exec(CHECK, scope)
        scope |= {name: functions.jitted(scope[name]) for name in ("inside", "check")}
        text = BY_INDEX[name].replace("{width}", str(BITS[dtype] // 8)).replace("{piece}", str(PIECE))
        text = text.replace("{index_width}", str(BITS[ids] // 8))
        if name in COMBINES:
            scope["load"] = loader(dtype, written=True)
            compute = FLOATS.get(dtype, dtype)
            text_of = expression(COMBINES[name], compute)
            scope["function"] = functions.inline(f"def function(x, y):\n    return {text_of}", compute)
    else:
        return None
    exec(compile(text, f"<index {name}>", "exec"), scope)
    return scope["kernel"]
