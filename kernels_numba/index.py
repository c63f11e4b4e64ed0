"""Kernels that move elements by index, and those that make indices.

An index outside its dim never reaches memory: it is read as 0, and 1 + its place is written to the kernel's flag word.
Elements are moved as raw words (u8 to u64), but where they are added.
"""

from . import functions
from .elementwise import expression
from .scalar import BITS, FLOATS, caster, loader, storer
from .simd import arg, argf, sti_i64

CHECKED = """
def checked(ids, place, size, flag):
    at = cast(load_index(ids, place))
    if at < 0:
        at += size
    if at < 0 or at >= size:
        sti_i64(flag, 0, place + 1)
        at = 0
    return at
"""

# out[o, k, i] = x[o, index[k], i]; the rows (o, k) are shared out
TAKE = """
def kernel(a, tid, nth):
    x, ids, out, flag, size, count, inner, outer = (
        arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 6), arg(a, 7))
    rows = outer * count
    for row in range(rows * tid // nth, rows * (tid + 1) // nth):
        o = row // count
        source = x + (o * size + checked(ids, row - o * count, size, flag)) * inner * {width}
        target = out + row * inner * {width}
        for i in range(inner):
            store(target, i, load(source, i))
"""

# x[index[k], i] = values[k, i] in order, so that the last of equal indices wins; the columns i are shared out
PUT = """
def kernel(a, tid, nth):
    x, ids, values, flag, size, count, inner, step = (
        arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 6), arg(a, 7))
    first, last = inner * tid // nth, inner * (tid + 1) // nth
    for k in range(count):
        target = x + checked(ids, k, size, flag) * inner * {width}
        source = values + k * step * {width}
        for i in range(first, last):
            store(target, i, load(source, i))
"""

# An index of any shape, contiguous, picks along one dim of a strided x; y is contiguous and of the index's shape.
# Rows are the index's dims but the last; per row dim, innermost first: its size, x's stride (0 for the picked dim).
ALONG = """
def kernel(a, tid, nth):
    x, ids, y, flag, size, picked, n, step, rows, nd = (
        arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 6), arg(a, 7), arg(a, 8), arg(a, 9))
    for row in range({rows}):
        base, left, w = 0, row, 10
        for d in range(nd):
            up = left // arg(a, w)
            base += (left - up * arg(a, w)) * arg(a, w + 1)
            left = up
            w += 2
        for j in range(n):
            at = base + j * step + checked(ids, row * n + j, size, flag) * picked
            {body}
"""
SHARED, ALONE = "rows * tid // nth, rows * (tid + 1) // nth", "rows if tid == 0 else 0"

# out[i] = start + i * step
ARANGE = """
def kernel(a, tid, nth):
    out, n, start, step = arg(a, 0), arg(a, 1), {read}(a, 2), {read}(a, 3)
    for i in range(n * tid // nth, n * (tid + 1) // nth):
        store(out, i, start + i * step)
"""

# out[o, i, j] = x[o, i, j] where j is adjacent in out and i is adjacent in x: tiles of 32 x 32 stay in the L1 cache
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
        for j0 in range(0, nj, 32):
            j1 = min(j0 + 32, nj)
            for i in range(first, last):
                for j in range(j0, j1):
                    store(target, i * step_out + j, load(source, i + j * step_x))
"""

# places of what is true, in order; `out` has room for all of them
NONZERO = """
def kernel(a, tid, nth):
    x, out, n, found = arg(a, 0), arg(a, 1), arg(a, 2), 0
    if tid == 0:
        for i in range(n):
            if load(x, i):
                sti_i64(out, found, i)
                found += 1
"""

BY_INDEX = {
    "take": TAKE,
    "put": PUT,
    "gather": ALONG.replace("{rows}", SHARED).replace("{body}", "store(y, row * n + j, load(x, at))"),
    "scatter": ALONG.replace("{rows}", ALONE).replace("{body}", "store(x, at, load(y, row * n + j))"),
}
COMBINES = {"scatter_add": "add", "scatter_prod": "mul", "scatter_amax": "maximum", "scatter_amin": "minimum"}
BY_INDEX |= dict.fromkeys(
    COMBINES,
    ALONG.replace("{rows}", ALONE).replace("{body}", "store(x, at, function(load(x, at), load(y, row * n + j)))"),
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
        scope["load"], text = loader("bool"), NONZERO
    elif name == "transpose":
        scope |= {"load": loader(params[0]), "store": storer(params[0])}
        text = TRANSPOSE.replace("{width}", str(BITS[params[0]] // 8))
    elif name in BY_INDEX:
        dtype, ids = params
        scope |= {"load": loader(dtype), "store": storer(dtype), "load_index": loader(ids)}
        exec(CHECKED, scope)
        scope["checked"] = functions.jitted(scope["checked"])
        text = BY_INDEX[name].replace("{width}", str(BITS[dtype] // 8))
        if name in COMBINES:
            scope["load"] = loader(dtype, written=True)
            compute = FLOATS.get(dtype, dtype)
            text_of = expression(COMBINES[name], compute)
            scope["function"] = functions.inline(f"def function(x, y):\n    return {text_of}", compute)
    else:
        return None
    exec(compile(text, f"<index {name}>", "exec"), scope)
    return scope["kernel"]
