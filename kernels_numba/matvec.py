"""Products with few rows: C[m, n] = x[m] . w[n], bound by reading W, so W is read once, in order, and not packed.

`matvec` takes W as rows along k (a Linear's weight), four rows at once; `vecmat` takes one x and W as rows along n, and
adds up eight rows at a time. f32, f16 and bf16, computed in f32. Every result is a chain of sums that depends on K
alone, not on the number of threads.
"""

from . import scalar
from .matmul import SIZES, bias_at, compiled, kernel

FLOATS = ("f32", "f16", "bf16")
COLUMNS = 512  # that vecmat takes at a time: their sums stay in the L1

_DOT4 = """
def dot4(w, step, last, x, k):
    # x . w for rows 0, 1, 2, 3 of w, `step` bytes apart (those beyond `last` repeat it)
    p0, p1, p2, p3 = w, w + min(1, last) * step, w + min(2, last) * step, w + min(3, last) * step
    {zero}
    i = 0
    while i + 32 <= k:
        x0 = ld_{x_type}x16(x + {x} * i)
        x1 = ld_{x_type}x16(x + {x} * (i + 16))
        {two}
        i += 32
    if i + 16 <= k:
        x0 = ld_{x_type}x16(x + {x} * i)
        {one}
        i += 16
    {sums}
    while i < k:
        y = ld_{x_type}(x + {x} * i)
        {tail}
        i += 1
    return s0, s1, s2, s3
"""
_MATVEC = """
def matvec(a, tid, nth):
    # C[m, n] = x[m] . w[n] (+ bias) (+ C). Words: x, W, C, M, N, K, row strides of x and W, strides of C along m and n,
    # code of the bias's dtype (matmul.BIAS), bias, its strides in bytes along m and n, whether to add to C, batch dims;
    # per dim: its size, strides of x, W, C. x and W have unit stride along k. Threads share the groups of four rows.
    m, n, k, x_m, w_n, c_m, c_n = arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 6), arg(a, 7), arg(a, 8), arg(a, 9)
    code, bias, bias_m, bias_n, add, dims = arg(a, 10), arg(a, 11), arg(a, 12), arg(a, 13), arg(a, 14), arg(a, 15)
    groups = (n + 3) // 4
    units = groups
    for d in range(dims):
        units *= arg(a, 16 + 4 * d)
    for u in range(units * tid // nth, units * (tid + 1) // nth):
        rest = u // groups
        x, w, c = arg(a, 0), arg(a, 1), arg(a, 2)
        for d in range(dims - 1, -1, -1):
            size = arg(a, 16 + 4 * d)
            i = rest % size
            rest //= size
            x += i * arg(a, 17 + 4 * d) * {x}
            w += i * arg(a, 18 + 4 * d) * {w}
            c += i * arg(a, 19 + 4 * d) * {c}
        row = u % groups * 4
        for r in range(m):
            sums = dot4(w + row * w_n * {w}, w_n * {w}, n - row - 1, x + r * x_m * {x}, k)
            for j in range(min(4, n - row)):
                y = sums[j] + bias_at(code, bias + r * bias_m + (row + j) * bias_n)
                to = c + {c} * (r * c_m + (row + j) * c_n)
                if add:
                    y += ld_{c_type}(to)
                st_{c_type}(to, y)
"""


def sizes(x, w, c):
    """What the texts of kernels for operands of these dtypes are filled in with."""
    return {"x": SIZES[x], "w": SIZES[w], "c": SIZES[c], "x_type": x, "w_type": w, "c_type": c}


def dot4(words):
    """The function of `_DOT4` for operands as `sizes` says."""
    w, size, four = words["w_type"], words["w"], range(4)
    first = [f"a{r} = fma(ld_{w}x16(p{r} + {size} * i), x0, a{r})" for r in four]
    second = [f"b{r} = fma(ld_{w}x16(p{r} + {size} * (i + 16)), x1, b{r})" for r in four]
    # from memory (4096 x 4096, Zen 5) 1.2 times faster for 16-bit weights, 0.9 times for f32
    ahead = [f"prefetch(p{r} + {size} * i + 2048)" for r in four] if size == 2 else []
    lines = {
        "zero": [f"a{r} = zero_f32x16(); b{r} = zero_f32x16()" for r in four],
        "one": first,
        "two": first + second + ahead,
        "sums": [f"s{r} = hsum(a{r} + b{r})" for r in four],
        "tail": [f"s{r} += y * ld_{w}(p{r} + {size} * i)" for r in four],
    }
    return compiled(_DOT4.format(**words, **{k: "; ".join(v) for k, v in lines.items()}), "dot4")


def _matvec(x, w, c):
    words = sizes(x, w, c)
    return kernel(_MATVEC.format(**words), "matvec", dot4=dot4(words), bias_at=bias_at("f32"))


_ROWS = """
def rows(w, step, x, x_step, n, sums, add):
    # {count} rows of w, n columns, times as many of x: stored at sums, or added to them
    {values}
    j = 0
    while j + 16 <= n:
        s = zero_f32x16()
        if add:
            s = ld_f32x16(sums + 4 * j)
        p = w + {w} * j
        {vectors}
        st_f32x16(sums + 4 * j, s)
        j += 16
    while j < n:
        t = to_f32(0)
        if add:
            t = ld_f32(sums + 4 * j)
        p = w + {w} * j
        {scalars}
        st_f32(sums + 4 * j, t)
        j += 1
"""
_VECMAT = """
def vecmat(a, tid, nth):
    # C[n] = sum of x[k] W[k, n]. Words: x, W, C, N, K >= 1, stride of x, stride of W along k, memory for N sums in f32
    # per product (C itself if that is f32), batch dims; per dim: its size, strides of x, W, C. W and C have unit stride
    # along n. Threads share the blocks of {block} columns of all products.
    n, k, x_k, w_k, dims = arg(a, 3), arg(a, 4), arg(a, 5) * {x}, arg(a, 6) * {w}, arg(a, 8)
    blocks = (n + {block} - 1) // {block}
    units = blocks
    for d in range(dims):
        units *= arg(a, 9 + 4 * d)
    for u in range(units * tid // nth, units * (tid + 1) // nth):
        rest = u // blocks
        at = u % blocks * {block}
        many = min({block}, n - at)
        x, w, c, sums = arg(a, 0), arg(a, 1) + {w} * at, arg(a, 2) + {c} * at, arg(a, 7) + 4 * (rest * n + at)
        for d in range(dims - 1, -1, -1):
            size = arg(a, 9 + 4 * d)
            i = rest % size
            rest //= size
            x += i * arg(a, 10 + 4 * d) * {x}
            w += i * arg(a, 11 + 4 * d) * {w}
            c += i * arg(a, 12 + 4 * d) * {c}
        if arg(a, 7) == arg(a, 2):
            sums = c
        i = 0
        while i + 8 <= k:
            rows8(w + i * w_k, w_k, x + i * x_k, x_k, many, sums, i > 0)
            i += 8
        while i < k:
            rows1(w + i * w_k, w_k, x + i * x_k, x_k, many, sums, i > 0)
            i += 1
        if sums != c:
            for j in range(many):
                st_{c_type}(c + {c} * j, ld_f32(sums + 4 * j))
"""


def _rows(count, words):
    x, w = words["x_type"], words["w_type"]
    lines = {
        "values": [f"x{r} = ld_{x}(x + {r} * x_step)" for r in range(count)],
        "vectors": [f"s = fma(ld_{w}x16(p + {r} * step), splat_f32x16(x{r}), s)" for r in range(count)],
        "scalars": [f"t += x{r} * ld_{w}(p + {r} * step)" for r in range(count)],
    }
    source = _ROWS.format(count=count, w=words["w"], **{k: "; ".join(v) for k, v in lines.items()})
    return compiled(source, "rows", to_f32=scalar.to_f32)


def _vecmat(x, w, c):
    words = sizes(x, w, c) | {"block": COLUMNS}
    return kernel(_VECMAT.format(**words), "vecmat", rows8=_rows(8, words), rows1=_rows(1, words))


KERNELS = {"matvec": _matvec, "vecmat": _vecmat}


def build(name, *params, source=None):
    """matvec, vecmat: params are the dtypes of x, W and C. None for others."""
    known = name in KERNELS and len(params) == 3 and set(params) <= set(FLOATS)
    return KERNELS[name](*params) if known else None
