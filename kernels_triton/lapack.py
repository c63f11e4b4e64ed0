"""Factors of matrices, L L^T and L U with pivots, and triangular systems: what of them one program does.

Each is for few columns, in place, for every matrix of a batch; `tensorlib/ops/factor.py` splits larger ones in halves,
whose updates are matrix products (recursive algorithms: F. Gustavson 1997; S. Toledo 1997). Words, strides in elements:

* "cholesky" (dtype): a, info (i32 each), batch, n <= WIDTH, number of rows before these, strides of a: of the batch,
  rows, columns. Only the lower triangle is read and written. info: of the first pivot that is not positive its number
  from 1 on, if it was 0.
* "substitute" (dtype, unit): a, x, batch, n <= WIDTH, columns of x, strides of a: batch, rows, columns, of x: batch,
  rows, columns. A X = X for lower triangular A; unit: 1 on its diagonal. A may have negative strides: it is then upper.
* "lu" (dtype): a, pivots (i32), info, batch, m, n <= PANEL, number of rows before these, strides of a: batch, rows
  (columns: 1), of the pivots. Row k was exchanged with row pivots[k], the first of the largest, counted from the top of
  the whole matrix. info: the number, from 1 on, of the first pivot that is 0.
* "swap" (dtype): a, pivots, batch, columns, first, last, strides of a: batch, rows, columns, of the pivots. Exchanges
  rows k and pivots[k] for first <= k < last.

A block that is small enough stays in registers. A panel of any height is read and written in steps of some rows,
once per column; the column after the one that is eliminated is searched for its pivot on the way.
"""

import functools

import triton
import triton.language as tl

from .functions import div, sqrt
from .launch import Kernel, blocks, pointer

WIDTH, PANEL = 32, 16
TALL = 256  # rows of a panel above which many warps share it
# rows at once and warps, of a short panel and of a tall one: as many as registers take
TILES = {"f32": ((128, 4), (512, 16)), "f64": ((64, 4), (256, 16))}
BLOCK = {"substitute": 32, "swap": 128}  # columns of a program


@triton.jit
def note(info_ptr, code):
    """Keeps the first code that is not 0"""
    before = tl.load(info_ptr)
    tl.debug_barrier()
    tl.store(info_ptr, tl.where(before == 0, code, before))


@triton.jit
def cholesky(a_ptr, info_ptr, n, first, a_0, a_i, a_j, N: tl.constexpr):
    """L of A = L L^T in place of A's lower triangle, column by column"""
    batch = tl.program_id(0).to(tl.int64)
    r, c = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    at = a_ptr + batch * a_0 + r * a_i + c * a_j
    inside = (r < n) & (c <= r)
    x = tl.load(at, mask=inside, other=0.0)
    bad = tl.full([], 0, tl.int32)
    row = tl.arange(0, N)
    for k in range(n):
        column = tl.sum(tl.where(c == k, x, 0.0), 1)
        pivot = tl.sum(tl.where(row == k, column, 0.0), 0)
        bad = tl.where((bad == 0) & ((pivot > 0) == 0), first + k + 1, bad)
        root = sqrt(pivot)
        column = tl.where(row == k, root, div(column, tl.zeros([N], x.dtype) + root))
        rest = x - column[:, None] * column[None, :]
        x = tl.where(inside & (c > k), rest, tl.where(c == k, column[:, None], x))
    tl.store(at, x, mask=inside)
    note(info_ptr + batch, bad)


@triton.jit
def substitute(
    a_ptr, x_ptr, n, columns, tiles, a_0, a_i, a_j, x_0, x_i, x_k, UNIT: tl.constexpr, ALONG: tl.constexpr,
    N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Forward substitution for BLOCK columns; ALONG: the dim of x that is in order in memory, "i", "k" or neither"""
    if ALONG == "i":
        x_i = 1
    if ALONG == "k":
        x_k = 1
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    k = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)[None, :]
    row = tl.arange(0, N)
    i = row[:, None]
    at = x_ptr + batch * x_0 + i * x_i + k * x_k
    a_ptr += batch * a_0
    inside = (i < n) & (k < columns)
    x = tl.load(at, mask=inside, other=0.0)
    for j in range(n):
        found = tl.sum(tl.where(i == j, x, 0.0), 0)
        below = tl.load(a_ptr + row * a_i + j * a_j, mask=(row > j) & (row < n), other=0.0)
        if not UNIT:
            found = div(found, tl.zeros([BLOCK], x.dtype) + tl.load(a_ptr + j * a_i + j * a_j))
        rest = x - below[:, None] * found[None, :]
        x = tl.where(i > j, rest, tl.where(i == j, found[None, :], x))
    tl.store(at, x, mask=inside)


@triton.jit
def larger(best, at, x, i, inside):
    """The larger of the best and |x|, and where: the first of equals, NaN above all"""
    size = tl.where(x != x, float("inf"), tl.abs(x))
    better = inside & (size > best)
    return tl.where(better, size, best), tl.where(better, i, at)


@triton.jit
def lu(a_ptr, pivots_ptr, info_ptr, m, n, first, a_0, a_i, p_0, N: tl.constexpr, R: tl.constexpr):
    """L and U in place of A, with partial pivoting, by columns"""
    batch = tl.program_id(0).to(tl.int64)
    a_ptr += batch * a_0
    c, r = tl.arange(0, N), tl.arange(0, R)
    zero = tl.zeros([R], a_ptr.dtype.element_ty)
    bad = tl.full([], 0, tl.int32)
    best, at = zero - 1, r * 0
    for start in range(0, m, R):
        i = start + r
        best, at = larger(best, at, tl.load(a_ptr + i * a_i, mask=i < m, other=0.0), i, i < m)
    for k in range(tl.minimum(m, n)):
        p = tl.min(tl.where(best == tl.max(best, 0), at, m), 0)
        high = tl.load(a_ptr + p * a_i + c, mask=c < n, other=0.0)
        low = tl.load(a_ptr + k * a_i + c, mask=c < n, other=0.0)
        tl.debug_barrier()
        tl.store(a_ptr + k * a_i + c, high, mask=c < n)
        tl.store(a_ptr + p * a_i + c, low, mask=c < n)
        tl.store(pivots_ptr + batch * p_0 + k, first + p)
        tl.debug_barrier()
        pivot = tl.sum(tl.where(c == k, high, 0.0), 0)
        bad = tl.where((bad == 0) & (pivot == 0), first + k + 1, bad)
        best, at = zero - 1, r * 0
        for start in range(k + 1, m, R):
            i = start + r
            inside, place = i < m, a_ptr + i[:, None] * a_i + c[None, :]
            x = tl.load(place, mask=inside[:, None] & (c < n)[None, :], other=0.0)
            factor = tl.sum(tl.where(c[None, :] == k, x, 0.0), 1)
            factor = tl.where(pivot == 0, factor, div(factor, zero + pivot))
            rest = x - factor[:, None] * high[None, :]
            x = tl.where(c[None, :] > k, rest, tl.where(c[None, :] == k, factor[:, None], x))
            tl.store(place, x, mask=inside[:, None] & ((c >= k) & (c < n))[None, :])
            best, at = larger(best, at, tl.sum(tl.where(c[None, :] == k + 1, x, 0.0), 1), i, inside)
        tl.debug_barrier()
    note(info_ptr + batch, bad)


@triton.jit
def swap(a_ptr, pivots_ptr, columns, tiles, first, last, a_0, a_i, a_j, p_0, UNIT: tl.constexpr, BLOCK: tl.constexpr):
    """Exchanges rows of BLOCK columns one after the other; every thread stays in its columns"""
    if UNIT:
        a_j = 1
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    j = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    at, inside = a_ptr + batch * a_0 + j * a_j, j < columns
    for k in range(first, last):
        p = tl.load(pivots_ptr + batch * p_0 + k)
        x, y = tl.load(at + k * a_i, mask=inside), tl.load(at + p * a_i, mask=inside)
        tl.store(at + k * a_i, y, mask=inside)
        tl.store(at + p * a_i, x, mask=inside)


# ---- plans -----------------------------------------------------------------------------------------------------------


@functools.cache
def _cholesky_kernel(dtype):
    return Kernel(cholesky, (pointer(dtype), "*i32", "i32", "i32", *("i64",) * 3), loose=("info_ptr",), N=WIDTH)


def _cholesky(dtype):
    kernel = _cholesky_kernel(dtype)

    def plan(gpu, words):
        a, info, batch, *rest = words
        kernel(gpu, (batch, 1, 1), a, info, *rest)

    return plan


@functools.cache
def _substitute_kernel(dtype, unit, along):
    types = (pointer(dtype), pointer(dtype), *("i32",) * 3, *("i64",) * 6)
    block = BLOCK["substitute"]
    return Kernel(substitute, types, loose=("a_ptr",), UNIT=unit, ALONG=along, N=WIDTH, BLOCK=block)


def _substitute(dtype, unit):
    def plan(gpu, words):
        a, x, batch, n, columns, *strides = words
        tiles = blocks(columns, BLOCK["substitute"])
        along = "k" if strides[5] == 1 else "i" if strides[4] == 1 else ""
        kernel = _substitute_kernel(dtype, bool(unit), along)
        kernel(gpu, (batch * tiles, 1, 1), a, x, n, columns, tiles, *strides)

    return plan


@functools.cache
def _lu_kernel(dtype, tall):
    types = (pointer(dtype), "*i32", "*i32", *("i32",) * 3, *("i64",) * 3)
    rows, warps = TILES[dtype][tall]
    return Kernel(lu, types, ("a_0", "a_i"), warps, loose=("pivots_ptr", "info_ptr"), N=PANEL, R=rows)


def _lu(dtype):
    def plan(gpu, words):
        a, pivots, info, batch, m, *rest = words
        _lu_kernel(dtype, m > TALL)(gpu, (batch, 1, 1), a, pivots, info, m, *rest)

    return plan


@functools.cache
def _swap_kernel(dtype, unit):
    types = (pointer(dtype), "*i32", *("i32",) * 4, *("i64",) * 4)
    return Kernel(swap, types, loose=("pivots_ptr",), warps=1, UNIT=unit, BLOCK=BLOCK["swap"])


def _swap(dtype):
    def plan(gpu, words):
        a, pivots, batch, columns, *rest = words
        tiles = blocks(columns, BLOCK["swap"])
        kernel = _swap_kernel(dtype, rest[4] == 1)
        kernel(gpu, (batch * tiles, 1, 1), a, pivots, columns, tiles, *rest)

    return plan


def build(name, *params, source=None):
    """See kernels_triton/__init__.py; names and words as above."""
    found = {"cholesky": _cholesky, "substitute": _substitute, "lu": _lu, "swap": _swap}
    return found[name](*params) if name in found else None


def variants(arch):
    """Kernels of every kind, for the committed table of what the compiler makes of them."""
    found = {}
    for dtype in ("f32", "f64"):
        found |= {f"lu {dtype}": _lu_kernel(dtype, False), f"lu {dtype}, tall": _lu_kernel(dtype, True)}
        found[f"cholesky {dtype}"] = _cholesky_kernel(dtype)
        found[f"substitute {dtype}"] = _substitute_kernel(dtype, False, "k")
    found |= {"substitute f32, unit, transposed": _substitute_kernel("f32", True, "i")}
    return found | {"swap f32": _swap_kernel("f32", True)}
