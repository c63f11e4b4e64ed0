"""Eigenvalues of symmetric matrices and singular values on GPUs, by Jacobi's rotations from one side.

kernels_triton/jacobi.py makes the rows of a matrix W^T orthogonal, A V = W: the singular values are their lengths, the
rows that rode along are V^T. U is the Q of W's QR factors, so that it is orthogonal where values are 0 as well. A tall
matrix is first made square by QR (Z. Drmac, K. Veselic, New fast and accurate Jacobi SVD algorithm, 2008).

A symmetric matrix is shifted by a bound of its eigenvalues, so that none is negative and two of opposite sign are told
apart; its singular vectors are then its eigenvectors, and its eigenvalues are their Rayleigh quotients: the errors of
both are some n epsilon times the norm, as LAPACK's. Matrices are scaled by powers of 2: no square leaves the range.
"""

from tensorlib import backend
from tensorlib import dtype as _dtype
from tensorlib.ops import create, elementwise, factor, index, movement, reduce, sort
from tensorlib.ops._launch import clone

LIMIT = 40  # sweeps, as in kernels_triton/jacobi.py
EPSILON = {"f32": 2.0**-23, "f64": 2.0**-52}
EXPONENTS = {"f32": ("i32", 0x7F800000), "f64": ("i64", 0x7FF << 52)}
SMALLEST = {"f32": 2.0**-126, "f64": 2.0**-1022}  # of what is not denormal
FAILED = "Jacobi's rotations did not converge"


def _scaled(a):
    """(a / s, s): s (batch, 1, 1) the power of 2 below the largest |a|; 1 where all are 0. NaN stays."""
    integer, mask = EXPONENTS[a.dtype.name]
    largest = reduce.amax(elementwise.abs(a), (-2, -1), keepdim=True)
    bits = elementwise.bitwise_and(largest.view(largest.layout, _dtype.get(integer)), mask)
    scale = bits.view(bits.layout, a.dtype)
    scale = elementwise.where(elementwise.eq(largest, 0), 1.0, elementwise.maximum(scale, SMALLEST[a.dtype.name]))
    return elementwise.div(a, scale), scale


def _rotated(op, z, depth):
    """Rotates the rows of z (batch, n, length) in place until their first `depth` elements are orthogonal; their
    lengths (batch, n). LinAlgError.
    """
    (batch, n, length), name = z.shape, z.dtype.name
    state = create.zeros(type(z), (batch, LIMIT), dtype="i32", device=z.device)
    words = [z.ptr, state.ptr, batch, n, depth, length, EPSILON[name] * depth**0.5]
    kernel = backend.kernel("jacobi", "rotate", name, device=z.device.type)
    backend.launch(kernel, words, n * z.numel(), (z, state), (z, state))
    sizes = _lengths(movement.narrow(z, -1, 0, depth))
    endless = elementwise.ne(movement.select(state, -1, LIMIT - 1), 0)
    lost = reduce.any(elementwise.logical_not(elementwise.isfinite(sizes)), -1)
    factor.succeeded(op, elementwise.logical_or(endless, lost), FAILED, "check the matrices for NaN and infinities")
    return sizes


def _lengths(rows):
    return elementwise.sqrt(reduce.sum(elementwise.square(rows), -1))


def _with_identity(rows):
    batch, n, _ = rows.shape
    return movement.cat([rows, movement.expand(factor.identity(rows, n), (batch, n, n))], -1)


def _in_order(order, x):
    """Rows of x (batch, n, m) in the order (batch, n)."""
    return index.gather(x, 1, movement.expand(movement.unsqueeze(order, -1), x.shape))


def _columns(v):
    return movement.unsqueeze(v, -2)


def svdvals(op, a):
    """Singular values (batch, min(m, n)) of a copy `factor.flat`, descending."""
    m, n = a.shape[-2:]
    a, scale = _scaled(factor.t(a) if m < n else a)
    rows = factor.qr(a, "r")[1] if m != n else a
    z = clone(factor.t(rows))
    sizes = _rotated(op, z, z.shape[-1])
    return sort.sort(elementwise.mul(sizes, movement.squeeze(scale, -1)), -1, True)[0]


def svd(op, a, full):
    """(U, S, Vh) of a copy `factor.flat`, as ops/decompositions.py says; min(m, n) > 0."""
    m, n = a.shape[-2:]
    k = min(m, n)
    if m < n:
        v, s, uh = svd(op, clone(factor.t(a)), full)
        return factor.t(uh), s, factor.t(v)
    a, scale = _scaled(a)
    outer = None
    if m > n:
        outer, a = factor.qr(a, "complete" if full else "reduced")
        a = movement.narrow(a, -2, 0, k)
    z = _with_identity(factor.t(a))
    sizes = _rotated(op, z, k)
    s, order = sort.sort(elementwise.div(sizes, _lengths(movement.narrow(z, -1, k, k))), -1, True)
    z = _in_order(order, z)
    w, vh = clone(factor.t(movement.narrow(z, -1, 0, k))), movement.narrow(z, -1, k, k)
    vh = elementwise.div(vh, movement.unsqueeze(_lengths(vh), -1))
    u, r = factor.qr(w)
    signs = elementwise.where(elementwise.lt(movement.diagonal(r, 0, -2, -1), 0), -1.0, 1.0)
    u = elementwise.mul(u, _columns(elementwise.cast(signs, a.dtype)))
    if outer is not None:
        rest = movement.narrow(outer, -1, k, outer.shape[-1] - k)
        u = movement.cat([factor.times(movement.narrow(outer, -1, 0, k), u), rest], -1)
    return u, elementwise.mul(s, movement.squeeze(scale, -1)), vh


def eigh(op, a, lower):
    """(eigenvalues (batch, n), eigenvectors as rows (batch, n, n)) of a copy `factor.flat`, ascending; n > 0."""
    n = a.shape[-1]
    low = index.tril(a if lower else factor.t(a))
    a, scale = _scaled(elementwise.add(low, factor.t(index.tril(low, -1))))
    sizes = elementwise.abs(a)
    by_rows = reduce.amax(reduce.sum(sizes, -1), -1)
    by_all = elementwise.sqrt(reduce.sum(elementwise.square(a), (-2, -1)))
    shift = movement.reshape(elementwise.minimum(by_rows, by_all), (-1, 1, 1))
    z = _with_identity(elementwise.add(a, elementwise.mul(factor.identity(a, n), shift)))
    _rotated(op, z, n)
    v = movement.narrow(z, -1, n, n)
    v = elementwise.div(v, movement.unsqueeze(_lengths(v), -1))
    values, order = sort.sort(reduce.sum(elementwise.mul(factor.times(v, a), v), -1), -1)
    return elementwise.mul(values, movement.squeeze(scale, -1)), _in_order(order, v)
