"""Running extremes and running log-sums along dense rows; rows are shared out, so threads change nothing.

Running sums and products are in `reduce.py`.
"""

from . import functions
from .scalar import FLOATS, caster, loader, storer, to_f64
from .simd import arg, sti_i64

# a NaN is never replaced but by a later NaN; of equal elements the last counts
EXTREME = """
def kernel(a, tid, nth):
    x, values, indices, rows, n = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4)
    for start in range(rows * tid // nth * n, rows * (tid + 1) // nth * n, n):
        best, where = cast(load(x, start)), 0
        for i in range(n):
            v = cast(load(x, start + i))
            if v != v or v {better} best:
                best, where = v, i
            store(values, start + i, best)
            sti_i64(indices, start + i, where)
"""

# top + log(total) is the result so far; equal infinities never meet in a difference
LOG_SUM = """
def kernel(a, tid, nth):
    x, out, rows, n = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3)
    for start in range(rows * tid // nth * n, rows * (tid + 1) // nth * n, n):
        top, total = -INF, 0.0
        for i in range(start, start + n):
            v = to_f64(load(x, i))
            if v > top:
                top, total = v, total * exp(top - v) + 1.0
            elif v == top:
                total += 1.0
            else:
                total += exp(v - top)
            store(out, i, top + log(total))
"""

KERNELS = {
    "cummax": EXTREME.replace("{better}", ">="),
    "cummin": EXTREME.replace("{better}", "<="),
    "logcumsumexp": LOG_SUM,
}


def build(name, *params, source=None):
    """The kernel of that name for elements of one dtype, or None."""
    (dtype,) = params
    if name not in KERNELS or (name == "logcumsumexp" and dtype not in FLOATS):
        return None
    scope = {"arg": arg, "sti_i64": sti_i64, "load": loader(dtype), "store": storer(dtype)}
    if name == "logcumsumexp":
        wide = functions.scope("f64")
        scope |= {"to_f64": to_f64, "exp": wide["exp"], "log": wide["log"], "INF": wide["INF"]}
    else:
        scope["cast"] = caster(FLOATS.get(dtype, dtype))
    exec(KERNELS[name], scope)
    return scope["kernel"]
