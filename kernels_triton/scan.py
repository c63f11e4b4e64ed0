"""Running sums, products, extremes and log-sums along rows, in one pass: a tile is scanned, and what came before it is
carried along.

Where rows are few and long they are cut in parts: one launch finds what each part adds up to, and in a second one each
part begins with the combination of those before it. Words as in kernels_numba/scan.py; running sums and products (room
reduce) as in kernels_numba/reduce.py. Float sums, products and log-sums are f64.
"""

import functools

import triton
import triton.language as tl
from triton.language.extra import libdevice

from .dims import LIMIT, WIDTH, offset_of
from .launch import Kernel, blocks, power_of_2
from .tiles import (
    FLOATS,
    WIDE,
    accumulated,
    cells,
    narrow,
    over,
    packed,
    product,
    reach,
    start_of,
    step,
    strides_of,
    table,
    widen,
)

TILE = 2048  # elements of a tile, 4 warps
PARTS = 512  # of a row at most


def cut(gpu, rows, length, tile=TILE):
    """((rows, elements) of a tile, programs, elements of a part, parts) for a scan of rows."""
    r = min(power_of_2(length), tile)
    m = min(power_of_2(rows), tile // r)
    programs = blocks(rows, m)
    parts = min(blocks(4 * gpu.units, programs), blocks(length, 2 * r), PARTS) if programs < 2 * gpu.units else 1
    per = blocks(blocks(length, parts), r) * r
    return (m, r), programs, per, blocks(length, per)


# ---- sums and products -----------------------------------------------------------------------------------------------


@triton.jit
def sum_scan(
    x, out, before, rows, length, per, kn0, ks0, kn1, ks1, kn2, ks2, ks3,
    OP: tl.constexpr, GIVEN: tl.constexpr, OUT: tl.constexpr, ACC: tl.constexpr, START: tl.constexpr,
    NK: tl.constexpr, M: tl.constexpr, R: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Running sums or products of one part (program axis 1) of rows; `before`[part, row]: of the P parts."""
    pid = tl.program_id(0).to(rows.dtype)
    p = pid * M + tl.arange(0, M)
    inside = p < rows
    base = offset_of(p, kn0, kn1, kn2, 1, ks0, ks1, ks2, ks3, NK)
    part = tl.program_id(1).to(rows.dtype)
    first = part * per
    end = tl.minimum(first + per, length)
    r = tl.arange(0, R)
    carry = tl.full([M], START, ACC)
    if P > 1:
        q = tl.arange(0, P)
        earlier = inside[:, None] & (q < part)[None, :]
        carry = over(tl.load(before + (q[None, :] * rows + p[:, None]), mask=earlier, other=START), 1, OP)
    for at in tl.range(first, end, R):
        known = inside[:, None] & (at + r < end)[None, :]
        v = widen(tl.load(x + (base[:, None] + (at + r)[None, :]), mask=known, other=0), GIVEN, ACC)
        v = tl.where(known, v, START).to(ACC)
        y = tl.cumsum(v, 1) if OP == "sum" else tl.associative_scan(v, 1, product)
        y = step(y, carry[:, None], OP)
        tl.store(out + ((p * length)[:, None] + (at + r)[None, :]), narrow(y, OUT, out.dtype.element_ty), mask=known)
        carry = step(carry, over(v, 1, OP), OP)


@functools.cache
def sum_kernel(op, compute, given, out, shape, nk, parts, wide):
    """The Kernel of `sum_scan`."""
    acc, integer = "f64" if compute in FLOATS else "i64", "i64" if wide else "i32"
    types = (cells(given), cells(out), cells(acc), *(integer,) * 10)
    made = Kernel(
        sum_scan, types, ("length", "per", *strides_of("k")), OP=op, GIVEN=given, OUT=out, ACC=WIDE[acc],
        START=int(op == "prod"), NK=max(nk, 1), M=shape[0], R=shape[1], P=parts,
    )  # fmt: skip
    made.items = shape[0] * shape[1]
    return made


def sums(name, compute, out, given, reduction):
    """The plan of cumsum or cumprod; `reduction` gives the Kernel of kernels_triton.reduce that sums up parts."""
    op, acc = ("sum" if name == "cumsum" else "prod"), "f64" if compute in FLOATS else "i64"
    if compute not in ("f32", "f64", "i64"):
        return None

    def plan(gpu, words):
        x, to, rows, length, _, nk = words[:6]
        keep = table(words, 6, nk)
        shape, programs, per, parts = cut(gpu, rows, length)
        wide = max(reach(*keep) + length, rows * length) >= LIMIT
        before = owner = None
        if parts > 1:
            before, owner = gpu.allocate(rows * parts * 8)
            found = reduction(op, acc, given, acc, shape, False, nk, 0, per > shape[1], False, wide)
            rest = packed([length, 1, 1, 1], [1, 0, 0, 0])
            found(gpu, (programs, parts, 1), x, before, x, x, rows, 1, length, per, 1.0, *packed(*keep), *rest)
        found = sum_kernel(op, compute, given, out, shape, nk, power_of_2(parts), wide)
        found(gpu, (programs, parts, 1), x, to, before or to, rows, length, per, *packed(*keep))
        del owner

    return plan


# ---- extremes --------------------------------------------------------------------------------------------------------


@triton.jit
def later_largest(v, i, w, j):
    """Of two runs' (largest, its index), the second unless the first is larger or NaN."""
    second = (w >= v) | (w != w)
    return tl.where(second, w, v), tl.where(second, j, i)


@triton.jit
def later_smallest(v, i, w, j):
    """Of two runs' (smallest, its index), the second unless the first is smaller or NaN."""
    second = (w <= v) | (w != w)
    return tl.where(second, w, v), tl.where(second, j, i)


@triton.jit
def last_of(v, i, known, OP: tl.constexpr):
    """(extreme, its last index) of each row of a tile."""
    best = over(v, 1, OP)
    same = known & ((v == best[:, None]) | ((v != v) & (best != best)[:, None]))
    return best, tl.max(tl.where(same, i, 0), 1)


@triton.jit
def extreme_scan(
    x, values, indices, parts, places, rows, length, per,
    OP: tl.constexpr, GIVEN: tl.constexpr, ACC: tl.constexpr, START: tl.constexpr, INDEX: tl.constexpr,
    WRITE: tl.constexpr, M: tl.constexpr, R: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Running extremes of one part (program axis 1) of dense rows, with indices; or, if not WRITE, what each of the
    parts[part, row] ends with.
    """
    pid = tl.program_id(0).to(rows.dtype)
    p = pid * M + tl.arange(0, M)
    inside = p < rows
    part = tl.program_id(1).to(rows.dtype)
    first = part * per
    end = tl.minimum(first + per, length)
    r = tl.arange(0, R)
    carry = tl.full([M], START, ACC)
    where = tl.zeros([M], INDEX)
    if WRITE and P > 1:
        q = tl.arange(0, P)
        earlier = inside[:, None] & (q < part)[None, :]
        known_best = tl.load(parts + (q[None, :] * rows + p[:, None]), mask=earlier, other=START).to(ACC)
        known_place = tl.load(places + (q[None, :] * rows + p[:, None]), mask=earlier, other=0).to(INDEX)
        carry, where = last_of(known_best, known_place, earlier, OP)
    for at in tl.range(first, end, R):
        known = inside[:, None] & (at + r < end)[None, :]
        to = (p * length)[:, None] + (at + r)[None, :]
        v = tl.where(known, widen(tl.load(x + to, mask=known, other=0), GIVEN, ACC), START).to(ACC)
        i = tl.zeros([M, R], INDEX) + (at + r).to(INDEX)[None, :]
        if WRITE:
            if OP == "amax":
                y, j = tl.associative_scan((v, i), 1, later_largest)
                y, j = later_largest(carry[:, None], where[:, None], y, j)
            else:
                y, j = tl.associative_scan((v, i), 1, later_smallest)
                y, j = later_smallest(carry[:, None], where[:, None], y, j)
            tl.store(values + to, narrow(y, GIVEN, values.dtype.element_ty), mask=known)
            tl.store(indices + to, j.to(tl.int64), mask=known)
        best, last = last_of(v, i, known, OP)
        if OP == "amax":
            carry, where = later_largest(carry, where, best, last)
        else:
            carry, where = later_smallest(carry, where, best, last)
    if not WRITE:
        tl.store(parts + (part * rows + p), carry, mask=inside)
        tl.store(places + (part * rows + p), where.to(tl.int64), mask=inside)


@functools.cache
def extreme_kernel(op, given, shape, parts, write, wide):
    """The Kernel of `extreme_scan`."""
    compute = "f32" if given in FLOATS and given != "f64" else given
    acc, integer = accumulated(compute), "i64" if wide else "i32"
    types = (cells(given), cells(given), "*i64", cells(acc), "*i64", *(integer,) * 3)
    made = Kernel(
        extreme_scan, types, ("length", "per"), OP=op, GIVEN=given, ACC=WIDE[acc], START=start_of(op, compute),
        INDEX=tl.int64 if wide else tl.int32, WRITE=write, M=shape[0], R=shape[1], P=parts,
    )  # fmt: skip
    made.items = shape[0] * shape[1]
    return made


def _extreme(name, given):
    op = "amax" if name == "cummax" else "amin"

    def plan(gpu, words):
        x, values, indices, rows, length = words
        shape, programs, per, parts = cut(gpu, rows, length, TILE // 2)
        wide = rows * length >= LIMIT
        best, place, owner = indices, indices, None
        if parts > 1:
            place, owner = gpu.allocate(rows * parts * 16)
            best = place + rows * parts * 8
            found = extreme_kernel(op, given, shape, 1, False, wide)
            found(gpu, (programs, parts, 1), x, values, indices, best, place, rows, length, per)
        found = extreme_kernel(op, given, shape, power_of_2(parts), True, wide)
        found(gpu, (programs, parts, 1), x, values, indices, best, place, rows, length, per)
        del owner

    return plan


# ---- log-sums --------------------------------------------------------------------------------------------------------


@triton.jit
def log_sum(m, s, n, t):
    """Of two runs' (top, sum of e ** (x - top)), that of both. Equal infinities never meet in a difference."""
    e = libdevice.exp(tl.where(m == n, 0.0, -tl.abs(m - n)))
    both = tl.maximum(m, n, propagate_nan=tl.PropagateNan.ALL)
    return both, tl.where(m >= n, s + t * e, s * e + t)


@triton.jit
def log_all(m, s):
    """(top, sum) of each row of a tile of such pairs."""
    top = over(m, 1, "amax")
    e = libdevice.exp(tl.where(m == top[:, None], 0.0, m - top[:, None]))
    return top, tl.sum(s * e, 1)


@triton.jit
def log_scan(
    x, out, tops, totals, rows, length, per,
    GIVEN: tl.constexpr, WRITE: tl.constexpr, M: tl.constexpr, R: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """log of running sums of e ** x of one part of dense rows; or, if not WRITE, what each part adds up to."""
    pid = tl.program_id(0).to(rows.dtype)
    p = pid * M + tl.arange(0, M)
    inside = p < rows
    part = tl.program_id(1).to(rows.dtype)
    first = part * per
    end = tl.minimum(first + per, length)
    r = tl.arange(0, R)
    top = tl.full([M], float("-inf"), tl.float64)
    total = tl.zeros([M], tl.float64)
    if WRITE and P > 1:
        q = tl.arange(0, P)
        earlier = inside[:, None] & (q < part)[None, :]
        known_tops = tl.load(tops + (q[None, :] * rows + p[:, None]), mask=earlier, other=float("-inf"))
        top, total = log_all(known_tops, tl.load(totals + (q[None, :] * rows + p[:, None]), mask=earlier, other=0.0))
    for at in tl.range(first, end, R):
        known = inside[:, None] & (at + r < end)[None, :]
        to = (p * length)[:, None] + (at + r)[None, :]
        v = widen(tl.load(x + to, mask=known, other=0), GIVEN, tl.float64)
        m = tl.where(known, v, float("-inf"))
        s = tl.where(known, 1.0, 0.0).to(tl.float64)
        if WRITE:
            y, t = tl.associative_scan((m, s), 1, log_sum)
            y, t = log_sum(top[:, None], total[:, None], y, t)
            tl.store(out + to, narrow(y + libdevice.log(t), GIVEN, out.dtype.element_ty), mask=known)
        m, s = log_all(m, s)
        top, total = log_sum(top, total, m, s)
    if not WRITE:
        tl.store(tops + (part * rows + p), top, mask=inside)
        tl.store(totals + (part * rows + p), total, mask=inside)


@functools.cache
def log_kernel(given, shape, parts, write, wide):
    """The Kernel of `log_scan`."""
    types = (cells(given), cells(given), "*fp64", "*fp64", *("i64" if wide else "i32",) * 3)
    made = Kernel(log_scan, types, ("length", "per"), GIVEN=given, WRITE=write, M=shape[0], R=shape[1], P=parts)
    made.items = shape[0] * shape[1]
    return made


def _log_sum(given):
    def plan(gpu, words):
        x, to, rows, length = words
        shape, programs, per, parts = cut(gpu, rows, length, TILE // 2)
        wide = rows * length >= LIMIT
        tops, totals, owner = to, to, None
        if parts > 1:
            tops, owner = gpu.allocate(rows * parts * 16)
            totals = tops + rows * parts * 8
            found = log_kernel(given, shape, 1, False, wide)
            found(gpu, (programs, parts, 1), x, to, tops, totals, rows, length, per)
        found = log_kernel(given, shape, power_of_2(parts), True, wide)
        found(gpu, (programs, parts, 1), x, to, tops, totals, rows, length, per)
        del owner

    return plan


def build(name, *params, source=None):
    """See kernels_triton/__init__.py; names and params as in kernels_numba/scan.py."""
    (dtype,) = params
    if name in ("cummax", "cummin") and dtype in WIDTH:
        return _extreme(name, dtype)
    return _log_sum(dtype) if name == "logcumsumexp" and dtype in FLOATS else None


def variants(arch):
    """Representative kernels."""
    found = {}
    for dtype in ("f32", "bf16"):
        found[f"cumsum {dtype}"] = sum_kernel("sum", "f32", dtype, dtype, (1, TILE), 1, 1, False)
        found[f"cumsum of parts {dtype}"] = sum_kernel("sum", "f32", dtype, dtype, (1, TILE), 1, 128, False)
        found[f"cummax {dtype}"] = extreme_kernel("amax", dtype, (1, TILE // 2), 1, True, False)
        found[f"logcumsumexp {dtype}"] = log_kernel(dtype, (1, TILE // 2), 1, True, False)
    found["cumsum i64"] = sum_kernel("sum", "i64", "i64", "i64", (1, TILE), 1, 1, False)
    found["cumprod f32"] = sum_kernel("prod", "f32", "f32", "f32", (1, TILE), 1, 1, False)
    found["cumsum short rows f32"] = sum_kernel("sum", "f32", "f32", "f32", (32, 64), 1, 1, False)
    found["cummax parts f32"] = extreme_kernel("amax", "f32", (1, TILE // 2), 1, False, False)
    return found
