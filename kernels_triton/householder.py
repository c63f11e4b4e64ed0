"""Householder's reflections of a few columns, and what makes one product of them.

Words of "qr" (dtype): a, t, batch, m, n <= PANEL, n <= m, strides of a: of the batch, rows (columns: 1), of t: batch,
rows (columns: 1). A becomes R, and below its diagonal the vectors v (1 on the diagonal); T (n, n), upper triangular,
is that of Q = I - V T V^T (R. Schreiber, C. Van Loan 1989), whose other triangle is 0.

One program per matrix; a panel of any height is read twice per column: once for the products of v with the columns
to its right, which are reflected, and with those to its left, which T is made of; once to reflect. The norm of the next
column is found on the way, scaled as in LAPACK's lassq, as are the signs of R (larfg: the last column of a square
matrix, and one that is 0 below the diagonal, is left as it is).
"""

import functools

import triton
import triton.language as tl

from .functions import div, sqrt
from .launch import Kernel, pointer

PANEL = 16
TALL = 256  # rows of a panel above which many warps share it
# rows at once and warps, of a short panel and of a tall one: as many as registers take
TILES = {"f32": ((32, 4), (256, 16)), "f64": ((32, 4), (128, 16))}


@triton.jit
def add_square(scale, squares, x):
    """scale**2 * squares plus x**2, for each lane, with the largest |x| as scale"""
    top = tl.maximum(scale, tl.abs(x), propagate_nan=tl.PropagateNan.ALL)
    safe = tl.where(top == 0, 1.0, top)
    before, now = div(scale, safe), div(tl.abs(x), safe)
    return top, squares * before * before + now * now


@triton.jit
def reflection(alpha, scale, squares):
    """Of the vector (alpha, rest), the rest's squares given by lanes: beta, tau, and the two that the rest is divided
    by and multiplied with. All but beta is computed in parts of the largest element: denormal ones count in full.
    """
    most = tl.max(scale, 0)
    part = div(scale, tl.zeros(scale.shape, scale.dtype) + tl.where(most == 0, 1.0, most))
    rest = sqrt(tl.sum(part * part * squares, 0))
    none = (most == 0) & (rest == rest)
    top = tl.maximum(tl.abs(alpha), most)
    safe = tl.where(top == 0, 1.0, top)
    a, b = div(alpha, safe), div(most, safe) * rest
    size = sqrt(a * a + b * b)
    size = tl.where(none, 1.0, tl.where(alpha >= 0, -size, size))
    beta, tau = tl.where(none, alpha, top * size), tl.where(none, 0.0, div(size - a, size))
    return beta, tau, safe, tl.where(none, 1.0, div(tl.full([], 1.0, a.dtype), a - size))


@triton.jit
def qr(a_ptr, t_ptr, m, n, a_0, a_i, t_0, t_i, N: tl.constexpr, R: tl.constexpr):
    """R, the vectors and T of a panel"""
    batch = tl.program_id(0).to(tl.int64)
    a_ptr += batch * a_0
    c, r = tl.arange(0, N), tl.arange(0, R)
    zero = tl.zeros([R], a_ptr.dtype.element_ty)
    scale, squares = zero, zero
    for start in range(1, m, R):
        i = start + r
        scale, squares = add_square(scale, squares, tl.load(a_ptr + i * a_i, mask=i < m, other=0.0))
    t = tl.zeros([N, N], zero.dtype)
    for k in range(n):
        row = tl.load(a_ptr + k * a_i + c, mask=c < n, other=0.0)
        alpha = tl.sum(tl.where(c == k, row, 0.0), 0)
        beta, tau, divisor, factor = reflection(alpha, scale, squares)
        sums = tl.zeros([R, N], zero.dtype)
        for start in range(k + 1, m, R):
            i = start + r
            inside = (i < m)[:, None] & (c < n)[None, :]
            x = tl.load(a_ptr + i[:, None] * a_i + c[None, :], mask=inside, other=0.0)
            v = div(tl.sum(tl.where(c[None, :] == k, x, 0.0), 1), zero + divisor) * factor
            sums += v[:, None] * x
        w = tau * (row + tl.sum(sums, 0))
        left = tl.sum(tl.where(c[None, :] < k, t * w[None, :], 0.0), 1)
        t = tl.where(c[None, :] == k, tl.where(c == k, tau, tl.where(c < k, -left, 0.0))[:, None], t)
        tl.debug_barrier()
        new = tl.where(c == k, beta, tl.where(c > k, row - w, row))
        tl.store(a_ptr + k * a_i + c, new, mask=c < n)
        scale, squares = zero, zero
        for start in range(k + 1, m, R):
            i = start + r
            inside, place = (i < m)[:, None] & (c < n)[None, :], a_ptr + i[:, None] * a_i + c[None, :]
            x = tl.load(place, mask=inside, other=0.0)
            v = div(tl.sum(tl.where(c[None, :] == k, x, 0.0), 1), zero + divisor) * factor
            x = tl.where(c[None, :] > k, x - v[:, None] * w[None, :], tl.where(c[None, :] == k, v[:, None], x))
            tl.store(place, x, mask=inside & (c >= k)[None, :])
            after = tl.sum(tl.where(c[None, :] == k + 1, x, 0.0), 1)
            scale, squares = add_square(scale, squares, tl.where(i > k + 1, after, 0.0))
        tl.debug_barrier()
    t_ptr += batch * t_0
    tl.store(t_ptr + c[:, None] * t_i + c[None, :], t, mask=(c < n)[:, None] & (c < n)[None, :])


@functools.cache
def _kernel(dtype, tall):
    types = (pointer(dtype), pointer(dtype), "i32", "i32", *("i64",) * 4)
    rows, warps = TILES[dtype][tall]
    return Kernel(qr, types, ("a_0", "a_i"), warps, loose=("t_ptr",), N=PANEL, R=rows)


def build(name, dtype, source=None):
    """See kernels_triton/__init__.py; words as above."""
    if name != "qr":
        return None

    def plan(gpu, words):
        a, t, batch, m, *rest = words
        _kernel(dtype, m > TALL)(gpu, (batch, 1, 1), a, t, m, *rest)

    return plan


def variants(arch):
    """All kernels, for the committed table of what the compiler makes of them."""
    return {f"qr {dtype}{', tall' * tall}": _kernel(dtype, tall) for dtype in TILES for tall in (False, True)}
