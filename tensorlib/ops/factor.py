"""Factors of matrices on GPUs: Cholesky's, LU with pivots, QR, and triangular systems.

All in place, of a working copy (batch, m, n): the columns are halved until they are as few as one kernel takes
(kernels_triton/lapack.py and householder.py); what is between them are products of matrices, in the full precision of
f32 whatever is set for other products (Golub and Van Loan, Matrix Computations, 4th edition, sections 3.2, 4.2, 5.2).
"""

from math import prod

from tensorlib import backend
from tensorlib.errors import LinAlgError
from tensorlib.ops import create, elementwise, index, movement, products, reduce
from tensorlib.ops._launch import clone
from tensorlib.ops.exchange import item

WIDTH, PANEL = 32, 16  # columns that a kernel takes, as in kernels_triton


def flat(x, batch=None):
    """A contiguous copy (batch, m, n), the batch dims, expanded to `batch`, as one."""
    batch = x.shape[:-2] if batch is None else batch
    x = clone(movement.expand(x, (*batch, *x.shape[-2:])))
    return movement.reshape(x, (prod(batch), *x.shape[-2:]))


def t(x):
    """Matrices transposed: a view."""
    return movement.transpose(x, -2, -1)


def identity(x, n, m=None):
    """(n, m) of x's dtype and device."""
    return create.eye(type(x), n, n if m is None else m, dtype=x.dtype, device=x.device)


def times(a, b):
    """a @ b of (batch, m, k) and (batch, k, n), in full precision."""
    out = type(a).empty((*a.shape[:-1], b.shape[-1]), a.dtype, a.device)
    if 0 in out.shape:
        return out
    products.launch(out, a, b, precision="highest")
    return out


def add_product(out, a, b):
    """out += a @ b."""
    if 0 not in out.shape and a.shape[-1]:
        products.launch(out, a, b, accumulate=True, precision="highest")


def block(x, rows, columns):
    """A view of the rows and columns [start, stop) of matrices."""
    x = movement.narrow(x, -2, rows[0], rows[1] - rows[0])
    return movement.narrow(x, -1, columns[0], columns[1] - columns[0])


def _half(n, least):
    """About half of n, of whole kernels."""
    return -(-n // (2 * least)) * least


def _quarters(a, h):
    m, n = a.shape[-2:]
    return [block(a, rows, columns) for rows in ((0, h), (h, m)) for columns in ((0, h), (h, n))]


def _run(room, name, x, *params):
    return backend.kernel(room, name, x.dtype.name, *params, device=x.device.type)


def info_of(x):
    """Room for a kernel's word on every matrix of x (batch, m, n): 0 so far."""
    return create.zeros(type(x), x.shape[0], dtype="i32", device=x.device)


# ---- triangular systems ----------------------------------------------------------------------------------------------


def substitute(a, x, upper=False, unit=False):
    """Solves A X = X in place: a (batch, n, n) triangular, x (batch, n, k); any strides."""
    n = a.shape[-1]
    if 0 in x.shape:
        return
    if n > WIDTH:
        h = _half(n, WIDTH)
        a11, a12, a21, a22 = _quarters(a, h)
        x1, x2 = movement.narrow(x, -2, 0, h), movement.narrow(x, -2, h, n - h)
        first, second = ((a22, x2), (a11, x1)) if upper else ((a11, x1), (a22, x2))
        substitute(*first, upper, unit)
        add_product(second[1], elementwise.neg(a12 if upper else a21), first[1])
        substitute(*second, upper, unit)
        return
    size, (a_0, a_i, a_j), (x_0, x_i, x_k) = a.dtype.itemsize, a.strides, x.strides
    a_ptr, x_ptr = a.ptr, x.ptr
    if upper:  # reversed, rows and columns, it is lower
        a_ptr, x_ptr = a_ptr + size * (n - 1) * (a_i + a_j), x_ptr + size * (n - 1) * x_i
        a_i, a_j, x_i = -a_i, -a_j, -x_i
    words = [a_ptr, x_ptr, x.shape[0], n, x.shape[-1], a_0, a_i, a_j, x_0, x_i, x_k]
    kernel = _run("lapack", "substitute", x, int(unit))
    backend.launch(kernel, words, n * x.numel(), (a, x), (x,))


# ---- Cholesky --------------------------------------------------------------------------------------------------------


def cholesky_(a, info, first=0):
    """L in place of the lower triangles of a (batch, n, n); info: see kernels_triton/lapack.py."""
    n = a.shape[-1]
    if n > WIDTH:
        h = _half(n, WIDTH)
        a11, _, a21, a22 = _quarters(a, h)
        cholesky_(a11, info, first)
        substitute(a11, t(a21))
        add_product(a22, elementwise.neg(a21), t(a21))
        cholesky_(a22, info, first + h)
        return
    words = [a.ptr, info.ptr, a.shape[0], n, first, *a.strides]
    backend.launch(_run("lapack", "cholesky", a), words, a.numel(), (a, info), (a, info))


# ---- LU --------------------------------------------------------------------------------------------------------------


def lu_(a, pivots, info, first=0):
    """L and U in place of contiguous rows a (batch, m, n), m >= n; pivots (batch, n) are counted from `first` rows
    above.
    """
    m, n = a.shape[-2:]
    if n > PANEL:
        h = _half(n, PANEL)
        left, right = block(a, (0, m), (0, h)), block(a, (0, m), (h, n))
        lu_(left, movement.narrow(pivots, 1, 0, h), info, first)
        exchange(right, movement.narrow(pivots, 1, 0, h), first)
        a11, a12, a21, a22 = _quarters(a, h)
        substitute(a11, a12, unit=True)
        add_product(a22, elementwise.neg(a21), a12)
        lu_(a22, movement.narrow(pivots, 1, h, n - h), info, first + h)
        exchange(a21, movement.narrow(pivots, 1, h, n - h), first + h)
        return
    words = [a.ptr, pivots.ptr, info.ptr, a.shape[0], m, n, first, *a.strides[:2], pivots.strides[0]]
    writes = (a, pivots, info)
    backend.launch(_run("lapack", "lu", a), words, a.numel(), (a, info), writes)


def exchange(a, pivots, first=0):
    """Exchanges rows of a (batch, m, k) as pivots (batch, n), which count from `first` rows above a, say."""
    if 0 in a.shape:
        return
    a_0, a_i, a_j = a.strides
    top = a.ptr - first * a_i * a.dtype.itemsize
    at = pivots.ptr - first * 4
    words = [top, at, a.shape[0], a.shape[-1], first, first + pivots.shape[1], a_0, a_i, a_j, pivots.strides[0]]
    backend.launch(_run("lapack", "swap", a), words, a.numel(), (a, pivots), (a,))


def lu(a):
    """(factors (batch, n, n), pivots (batch, n), info (batch,)) of a copy `flat` of square matrices."""
    pivots = type(a).empty(a.shape[:2], "i32", a.device)
    info = info_of(a)
    if 0 not in a.shape:
        lu_(a, pivots, info)
    return a, pivots, info


# ---- QR --------------------------------------------------------------------------------------------------------------


def _vectors(a):
    """V of what `qr_` left: 1 on the diagonal, 0 above."""
    return elementwise.add(index.tril(a, -1), identity(a, *a.shape[-2:]))


def qr_(a, factor):
    """R, and below it the vectors V, in place of contiguous rows a (batch, m, n), m >= n; T in place of `factor`
    (batch, n, n), which holds zeros: Q = I - V T V^T.
    """
    m, n = a.shape[-2:]
    if n > PANEL:
        h = _half(n, PANEL)
        left, right = block(a, (0, m), (0, h)), block(a, (0, m), (h, n))
        t1, t12, _, t2 = _quarters(factor, h)
        qr_(left, t1)
        v1 = _vectors(left)
        reflect(right, v1, t(t1))
        below = block(right, (h, m), (0, n - h))
        qr_(below, t2)
        inner = times(t(block(v1, (h, m), (0, h))), _vectors(below))
        add_product(t12, elementwise.neg(times(t1, inner)), t2)
        return
    words = [a.ptr, factor.ptr, a.shape[0], m, n, *a.strides[:2], *factor.strides[:2]]
    backend.launch(_run("householder", "qr", a), words, n * a.numel(), (a,), (a, factor))


def reflect(x, v, factor):
    """x -= V F V^T x, in place: Q x for F = T, Q^T x for its transpose."""
    add_product(x, elementwise.neg(v), times(factor, times(t(v), x)))


def qr(a, mode="reduced"):
    """(Q or None, R) of a copy `flat`, as ops/decompositions.py says."""
    (count, m, n), k = a.shape, min(a.shape[-2:])
    rows = m if mode == "complete" else k
    q = None if mode == "r" else clone(movement.expand(identity(a, m, rows), (count, m, rows)))
    if k and count:
        factor = create.zeros(type(a), (count, k, k), dtype=a.dtype, device=a.device)
        left = block(a, (0, m), (0, k))
        qr_(left, factor)
        v = _vectors(left)
        reflect(block(a, (0, m), (k, n)), v, t(factor))
        if q is not None:
            reflect(q, v, factor)
    return q, index.triu(block(a, (0, rows), (0, n)))


# ---- what became of it -----------------------------------------------------------------------------------------------


def succeeded(op, words, what, fix):
    """LinAlgError unless all words on the matrices (batch,) are 0; waits for them."""
    if words.numel() and item(reduce.any(elementwise.ne(words, 0))):
        raise LinAlgError(op, f"a matrix with this: {what}", "one that has a result", fix)
