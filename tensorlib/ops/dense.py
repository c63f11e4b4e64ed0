"""Linear algebra on GPUs: the rows of decompositions.py, systems.py and magnitudes.py, for operands that those have
checked, out of the factors of factor.py and spectrum.py.

Every matrix of a batch has a program or more of its own. What says whether a result exists is read back once: such rows
wait for the GPU.
"""

from math import prod

from tensorlib.layout import broadcast_shapes
from tensorlib.ops import create, elementwise, factor, index, movement, reduce, spectrum
from tensorlib.ops.exchange import item
from tensorlib.ops.factor import flat, t

EPSILON = spectrum.EPSILON


def _shaped(x, batch):
    """A contiguous result of matrices or vectors (count, ...) with the batch dims."""
    return movement.contiguous(movement.reshape(x, (*batch, *x.shape[1:])))


def _columns(v):
    return movement.unsqueeze(v, -2)


def _rows(v):
    return movement.unsqueeze(v, -1)


def _zeros(x, *shape):
    return create.zeros(type(x), shape, dtype=x.dtype, device=x.device)


def _identities(x, n, *batch):
    return movement.contiguous(movement.expand(factor.identity(x, n), (*batch, n, n)))


def _of_batch(x, old, batch):
    """(count, ...) of batch dims `old` as that of batch dims they broadcast to."""
    rest = x.shape[1:]
    x = movement.expand(movement.reshape(x, (*old, *rest)), (*batch, *rest))
    return movement.reshape(x, (prod(batch), *rest))


def product(a, b):
    """a @ b of matrices whose batch dims broadcast, in full precision."""
    batch = broadcast_shapes("matmul", a.shape[:-2], b.shape[:-2])
    return _shaped(factor.times(flat(a, batch), flat(b, batch)), batch)


# ---- decompositions --------------------------------------------------------------------------------------------------


def cholesky(A, upper):
    """See decompositions.py."""
    a = flat(A)
    info = factor.info_of(a)
    if 0 not in a.shape:
        factor.cholesky_(t(a) if upper else a, info)
    what, fix = "Matrix is not positive definite", "add a small multiple of the identity, or use eigh"
    factor.succeeded("cholesky", info, what, fix)
    return movement.reshape(index.triu(a) if upper else index.tril(a), A.shape)


def qr(A, mode):
    """See decompositions.py."""
    q, r = factor.qr(flat(A), mode)
    return _zeros(A, 0) if q is None else _shaped(q, A.shape[:-2]), _shaped(r, A.shape[:-2])


def svd(A, full, op="svd"):
    """See decompositions.py."""
    *batch, m, n = A.shape
    k = min(m, n)
    if 0 in A.shape:
        sides = [_identities(A, s, *batch) if full else _zeros(A, *batch, s, k) for s in (m, n)]
        return sides[0], _zeros(A, *batch, k), sides[1] if full else _zeros(A, *batch, k, n)
    return tuple(_shaped(x, batch) for x in spectrum.svd(op, flat(A), full))


def svdvals(A, op="svdvals"):
    """See decompositions.py."""
    *batch, m, n = A.shape
    if 0 in A.shape:
        return _zeros(A, *batch, min(m, n))
    return _shaped(spectrum.svdvals(op, flat(A)), batch)


def eigh(A, UPLO, op="eigh"):
    """See decompositions.py."""
    batch = A.shape[:-2]
    if 0 in A.shape:
        return _zeros(A, *A.shape[:-1]), _zeros(A, *A.shape)
    values, vectors = spectrum.eigh(op, flat(A), UPLO == "L")
    return _shaped(values, batch), _shaped(t(vectors), batch)


# ---- systems of equations --------------------------------------------------------------------------------------------


def solve(A, B, left):
    """See systems.py; B holds matrices."""
    batch = broadcast_shapes("solve", A.shape[:-2], B.shape[:-2])
    a, x = (flat(A), flat(B, batch)) if left else (flat(t(A)), flat(t(B), batch))
    lu, pivots, info = factor.lu(a)
    factor.succeeded("solve", info, "Singular matrix", "use lstsq or pinv")
    _solve_factored(*(_of_batch(v, A.shape[:-2], batch) for v in (lu, pivots)), x)
    return _shaped(x if left else t(x), batch)


def _solve_factored(lu, pivots, x):
    factor.exchange(x, pivots)
    factor.substitute(lu, x, unit=True)
    factor.substitute(lu, x, upper=True)


def solve_triangular(A, B, upper, left, unit):
    """See systems.py."""
    batch = broadcast_shapes("solve_triangular", A.shape[:-2], B.shape[:-2])
    if not left:
        A, B, upper = t(A), t(B), not upper
    a = movement.reshape(movement.expand(A, (*batch, *A.shape[-2:])), (prod(batch), *A.shape[-2:]))
    x = flat(B, batch)
    factor.substitute(a, x, upper, unit)
    return _shaped(x if left else t(x), batch)


def inv(A):
    """See systems.py."""
    lu, pivots, info = factor.lu(flat(A))
    factor.succeeded("inv", info, "Singular matrix", "use pinv; to solve equations, solve or lstsq")
    x = _identities(A, A.shape[-1], lu.shape[0])
    _solve_factored(lu, pivots, x)
    return movement.reshape(x, A.shape)


def tolerance(shape, s, atol, rtol):
    """(...): what singular values s (..., k) of matrices of that shape must exceed to count."""
    default = max(shape[-2:]) * EPSILON[s.dtype.name]
    if rtol is None and hasattr(atol, "buffer"):
        rtol = elementwise.where(elementwise.gt(atol, 0), 0.0, default)
    elif rtol is None:
        rtol = 0.0 if atol is not None and atol > 0 else default
    largest = reduce.amax(s, -1) if s.shape[-1] else _zeros(s, *s.shape[:-1])
    found = elementwise.mul(largest, rtol)
    return found if atol is None else elementwise.maximum(found, atol)


def _inverted(s, kept):
    return elementwise.where(kept, elementwise.div(1.0, elementwise.where(kept, s, 1.0)), 0.0)


def pinv(A, atol, rtol, hermitian):
    """See systems.py."""
    if hermitian:
        values, u = eigh(A, "L", "pinv")
        s, v = elementwise.abs(values), u
    else:
        u, s, vh = svd(A, False, "pinv")
        values, v = s, t(vh)
    kept = elementwise.gt(s, _rows(tolerance(A.shape, s, atol, rtol)))
    return product(elementwise.mul(v, _columns(_inverted(values, kept))), t(u))


def lstsq(A, B, rcond):
    """(solution, residuals or None, rank, singular values) of systems.py; B holds matrices."""
    m, n = A.shape[-2:]
    u, s, vh = svd(A, False, "lstsq")
    kept = elementwise.gt(s, _rows(tolerance(A.shape, s, None, rcond)))
    x = product(t(vh), elementwise.mul(_rows(_inverted(s, kept)), product(t(u), B)))
    rank = reduce.sum(elementwise.cast(kept, "i64"), -1)
    residuals = None
    if m > n and item(reduce.all(elementwise.eq(rank, n))):
        residuals = reduce.sum(elementwise.square(elementwise.sub(product(A, x), B)), -2)
    return x, residuals, rank, s


# ---- numbers ---------------------------------------------------------------------------------------------------------


def matrix_rank(A, atol, rtol, hermitian):
    """See magnitudes.py."""
    s = elementwise.abs(eigh(A, "L", "matrix_rank")[0]) if hermitian else svdvals(A, "matrix_rank")
    kept = elementwise.gt(s, _rows(tolerance(A.shape, s, atol, rtol)))
    return reduce.sum(elementwise.cast(kept, "i64"), -1)


def _diagonal(A):
    """(diagonal of U, -1 or 1 for the exchanges, info) of LU."""
    lu, pivots, info = factor.lu(flat(A))
    order = create.arange(type(A), lu.shape[-1], dtype="i32", device=A.device)
    moved = reduce.sum(elementwise.cast(elementwise.ne(pivots, order), "i32"), -1)
    sign = elementwise.sub(1, elementwise.mul(elementwise.bitwise_and(moved, 1), 2))
    return movement.diagonal(lu, 0, -2, -1), elementwise.cast(sign, A.dtype), elementwise.ne(info, 0)


def det(A):
    """See magnitudes.py."""
    d, sign, singular = _diagonal(A)
    return _shaped(elementwise.where(singular, 0.0, elementwise.mul(reduce.prod(d, -1), sign)), A.shape[:-2])


def slogdet(A):
    """See magnitudes.py."""
    d, sign, singular = _diagonal(A)
    below = elementwise.where(elementwise.lt(d, 0), -1.0, 1.0)
    sign = elementwise.mul(reduce.prod(elementwise.cast(below, A.dtype), -1), sign)
    log = reduce.sum(elementwise.log(elementwise.abs(d)), -1)
    found = elementwise.where(singular, 0.0, sign), elementwise.where(singular, -float("inf"), log)
    return tuple(_shaped(x, A.shape[:-2]) for x in found)


def vector_norm(x, ord, dims, keepdim):
    """See magnitudes.py."""
    size = elementwise.abs(x)
    if abs(ord) == float("inf"):
        return (reduce.amax if ord > 0 else reduce.amin)(size, dims, keepdim)
    if ord == 0:
        return elementwise.cast(reduce.sum(elementwise.cast(elementwise.ne(x, 0), x.dtype), dims, keepdim), x.dtype)
    if ord == 1:
        return reduce.sum(size, dims, keepdim)
    if ord == 2:
        return elementwise.sqrt(reduce.sum(elementwise.square(x), dims, keepdim))
    return elementwise.pow(reduce.sum(elementwise.pow(size, ord), dims, keepdim), 1 / ord)
