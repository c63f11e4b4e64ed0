"""Products of a few rows with the matrices that were chosen for them, whose numbers lie in memory: a step of a mixture
of experts can be recorded.
"""

from .matmul import kernel
from .matvec import FLOATS, dot4, sizes

_MATVEC = """
def matvec(a, tid, nth):
    # out[i] = W[ids[i]] . x[i // per], NaN for an id that is none. Words: x, W, out, N, K, ids (i64), how many of them,
    # per, matrices. x is f32 as out is; all are contiguous. Threads share the groups of four rows of all.
    n, k, ids, many, per, matrices = arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 6), arg(a, 7), arg(a, 8)
    groups, step = (n + 3) // 4, k * {w}
    for u in range(groups * many * tid // nth, groups * many * (tid + 1) // nth):
        i = u // groups
        row = u % groups * 4
        e = ld_i64(ids + 8 * i)
        to, rows = arg(a, 2) + 4 * (i * n + row), min(4, n - row)
        if 0 <= e < matrices:
            sums = dot4(arg(a, 1) + (e * n + row) * step, step, n - row - 1, arg(a, 0) + i // per * k * 4, k)
            for j in range(rows):
                st_f32(to + 4 * j, sums[j])
        else:
            for j in range(rows):
                st_f32(to + 4 * j, nan)
"""


def build(name, *params, source=None):
    """matvec: params is the dtype of W. None for others."""
    if name != "matvec" or len(params) != 1 or params[0] not in FLOATS:
        return None
    words = sizes("f32", params[0], "f32")
    return kernel(_MATVEC.format(**words), "matvec", dot4=dot4(words), nan=float("nan"))
