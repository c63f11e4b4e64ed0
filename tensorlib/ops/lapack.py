"""Linear algebra by NumPy's LAPACK, with the names and meanings of `torch.linalg`; batch dims lead.

f32 and f64 only: f16 and bf16 would be too coarse for what is computed here, and are refused. Matrices on the CPU are
read where they are; NumPy is imported by the first call. A command list records kernels only, so none of this may be
captured. Matrices that have no result (singular, not positive definite) raise LinAlgError.

>>> import tensorlib
>>> A = tensorlib.tensor([[2.0, 1.0], [1.0, 3.0]])
>>> solve(A, tensorlib.tensor([3.0, 4.0]))
tensor([1., 1.])
>>> det(A), cholesky(A)[0, 1], eigh(tensorlib.eye(2)).eigenvalues
(tensor(5.), tensor(0.), tensor([1., 1.]))
"""

from collections import namedtuple

from tensorlib import backend
from tensorlib import dtype as _dtype
from tensorlib.errors import DTypeError, LinAlgError, NoKernel, ShapeError
from tensorlib.layout import broadcast_shapes
from tensorlib.ops import create, exchange, linalg, movement

QR = namedtuple("QR", "Q R")
SVD = namedtuple("SVD", "U S Vh")
Eigh = namedtuple("Eigh", "eigenvalues eigenvectors")
Slogdet = namedtuple("Slogdet", "sign logabsdet")
Lstsq = namedtuple("Lstsq", "solution residuals rank singular_values")
BLOCK = 32  # rows of a triangular system that are solved one by one


# ---- in and out ------------------------------------------------------------------------------------------------------


def _array(op, x):
    """x as a NumPy array over the same memory, to read."""
    if x.dtype not in (_dtype.f32, _dtype.f64):
        raise DTypeError(op, f"dtype {x.dtype}", "f32 or f64", "convert with .to('f32') or .to('f64')")
    if backend.recorder() is not None:
        raise NoKernel(op, "a capture that records", "kernels of ours", "call it outside of the capture")
    shared = x.buffer.shared
    try:
        return exchange.numpy(x)
    finally:
        x.buffer.shared = shared  # the array is only read, and gone when the op returns


def _matrices(op, *operands, square=False):
    """Operands as NumPy arrays, at least 2-d, of one dtype and device, the first square if asked for."""
    for x in operands:
        if x.ndim < 2:
            raise ShapeError(op, f"shape {x.shape}", "a matrix or a batch of them", "add dims with unsqueeze")
        if x.dtype is not operands[0].dtype:
            got = f"{operands[0].dtype} and {x.dtype}"
            raise DTypeError(op, got, "one dtype", "convert one operand with .to(dtype)")
    if square and operands[0].shape[-1] != operands[0].shape[-2]:
        raise ShapeError(op, f"shape {operands[0].shape}", "square matrices", "see lstsq, pinv and svd for others")
    return [_array(op, x) for x in operands]


def _back(x, array):
    """A NumPy result that nobody else holds, as an Array of x's class."""
    import numpy as np

    out = exchange.from_numpy(type(x), np.asarray(array, order="C"))
    out.buffer.shared = False
    return out


def _call(op, function, *arguments, fix="check the matrices for zeros, NaN and infinities", **keywords):
    """`function(...)`, with NumPy's LinAlgError as ours."""
    from numpy.linalg import LinAlgError as Failed

    try:
        return function(*arguments, **keywords)
    except Failed as e:
        raise LinAlgError(op, f"a matrix with this: {e}", "one that has a result", fix) from e


# ---- decompositions --------------------------------------------------------------------------------------------------


def cholesky(A, *, upper=False):
    """L with L @ L.mT = A for symmetric positive-definite A (..., n, n), of which the lower triangle is read;
    upper: the transpose of L (the upper triangle is read). ShapeError, DTypeError, LinAlgError (not positive-definite).
    """
    import numpy as np

    (a,) = _matrices("cholesky", A, square=True)
    fix = "add a small multiple of the identity, or use eigh"
    return _back(A, _call("cholesky", np.linalg.cholesky, a, fix=fix, upper=upper))


def qr(A, mode="reduced"):
    """(Q, R) with Q @ R = A (..., m, n), Q with orthonormal columns, R upper triangular; k = min(m, n).

    mode "reduced": Q (..., m, k), R (..., k, n); "complete": (..., m, m), (..., m, n); "r": Q is empty.
    ShapeError (also for another mode), DTypeError.
    """
    import numpy as np

    (a,) = _matrices("qr", A)
    if mode not in ("reduced", "complete", "r"):
        raise ShapeError("qr", f"mode {mode!r}", "reduced, complete or r", "use one of these")
    found = _call("qr", np.linalg.qr, a, mode=mode)
    q, r = (np.empty(0, a.dtype), found) if mode == "r" else found
    return QR(_back(A, q), _back(A, r))


def svd(A, full_matrices=True):
    """(U, S, Vh) with U @ diag(S) @ Vh = A (..., m, n); S (..., min(m, n)) descending. U is (..., m, m) and Vh
    (..., n, n), or of min(m, n) columns and rows if not full_matrices. ShapeError, DTypeError, LinAlgError (NaN).
    """
    import numpy as np

    (a,) = _matrices("svd", A)
    return SVD(*(_back(A, x) for x in _call("svd", np.linalg.svd, a, full_matrices=full_matrices)))


def svdvals(A):
    """The singular values of A (..., m, n), descending: (..., min(m, n)). ShapeError, DTypeError, LinAlgError."""
    import numpy as np

    (a,) = _matrices("svdvals", A)
    return _back(A, _call("svdvals", np.linalg.svd, a, compute_uv=False))


def eigh(A, UPLO="L"):
    """(eigenvalues, eigenvectors) of symmetric A (..., n, n), of which one triangle is read: (..., n) ascending and
    (..., n, n), a column each. ShapeError (also for a UPLO other than "L" and "U"), DTypeError, LinAlgError.
    """
    import numpy as np

    (a,) = _matrices("eigh", A, square=True)
    return Eigh(*(_back(A, x) for x in _call("eigh", np.linalg.eigh, a, _triangle("eigh", UPLO))))


def eigvalsh(A, UPLO="L"):
    """The eigenvalues of symmetric A (..., n, n), ascending: (..., n). ShapeError, DTypeError, LinAlgError."""
    import numpy as np

    (a,) = _matrices("eigvalsh", A, square=True)
    return _back(A, _call("eigvalsh", np.linalg.eigvalsh, a, _triangle("eigvalsh", UPLO)))


def _triangle(op, name):
    if name not in ("L", "U"):
        raise ShapeError(op, f"UPLO {name!r}", "'L' or 'U'", "say which triangle is to be read")
    return name


# ---- systems of equations --------------------------------------------------------------------------------------------


def _right_side(op, A, B, left=True, matrices=False):
    """(A's and B's arrays, B as matrices; whether B was vectors, unless it may not be: 1-d, or (..., n) for A
    (..., n, n))
    """
    vectors = not matrices and (B.ndim == 1 or (B.ndim == A.ndim - 1 and B.shape == A.shape[:-1]))
    if vectors and not left:
        raise ShapeError(op, f"vectors {B.shape} with left=False", "matrices", "add a dim with unsqueeze(-2)")
    a, b = _matrices(op, A, movement.unsqueeze(B, -1) if vectors else B)
    if a.shape[-2] != b.shape[-2 if left else -1]:
        got = f"shapes {A.shape} and {B.shape}"
        raise ShapeError(op, got, f"{a.shape[-2]} {'rows' if left else 'columns'} of B", "transpose or reshape B")
    broadcast_shapes(op, a.shape[:-2], b.shape[:-2])
    return a, b, vectors


def solve(A, B, *, left=True):
    """X with A @ X = B (X @ A = B if not left): A (..., n, n), B (..., n, k) or vectors (n,) or (..., n).

    Batch dims broadcast. ShapeError, DTypeError, LinAlgError (singular).
    """
    import numpy as np

    _matrices("solve", A, square=True)
    a, b, vectors = _right_side("solve", A, B, left)
    a, b = (a, b) if left else (a.mT, b.mT)
    x = _call("solve", np.linalg.solve, a, b, fix="use lstsq or pinv")
    return _back(A, x[..., 0] if vectors else x if left else x.mT)


def solve_triangular(A, B, *, upper, left=True, unitriangular=False):
    """X with A @ X = B (X @ A = B if not left) for triangular A (..., n, n), B (..., n, k); the other triangle is not
    read, nor the diagonal if unitriangular (it counts as 1). A zero on the diagonal gives infinities or NaN.

    Batch dims broadcast. ShapeError, DTypeError.
    """
    import numpy as np

    _matrices("solve_triangular", A, square=True)
    a, b, _ = _right_side("solve_triangular", A, B, left, matrices=True)
    if not left:
        a, b, upper = a.mT, b.mT, not upper
    if upper:  # reversed, rows and columns, it is lower
        a, b = a[..., ::-1, ::-1], b[..., ::-1, :]
    x = np.array(np.broadcast_to(b, (*broadcast_shapes("", a.shape[:-2], b.shape[:-2]), *b.shape[-2:])))
    with np.errstate(all="ignore"):
        _forward(a, x, unitriangular)
    x = x[..., ::-1, :] if upper else x
    return _back(A, x if left else x.mT)


def _forward(a, x, unit):
    """Solves lower triangular systems in place: halves, and rows one by one in the smallest."""
    n = a.shape[-1]
    if n > BLOCK:
        h = n // 2
        _forward(a[..., :h, :h], x[..., :h, :], unit)
        x[..., h:, :] -= a[..., h:, :h] @ x[..., :h, :]
        _forward(a[..., h:, h:], x[..., h:, :], unit)
        return
    for i in range(n):
        x[..., i, :] -= (a[..., i : i + 1, :i] @ x[..., :i, :])[..., 0, :]
        if not unit:
            x[..., i, :] /= a[..., i, i, None]


def inv(A):
    """The inverse of A (..., n, n). ShapeError, DTypeError, LinAlgError (singular)."""
    import numpy as np

    (a,) = _matrices("inv", A, square=True)
    return _back(A, _call("inv", np.linalg.inv, a, fix="use pinv; to solve equations, solve or lstsq"))


def pinv(A, *, atol=None, rtol=None, hermitian=False):
    """The Moore-Penrose inverse (..., n, m) of A (..., m, n): singular values up to max(atol, rtol * the largest) count
    as 0 (see matrix_rank). hermitian: A is symmetric. ShapeError, DTypeError, LinAlgError.
    """
    import numpy as np

    (a,) = _matrices("pinv", A, square=hermitian)
    u, s, vh = _call("pinv", np.linalg.svd, a, full_matrices=False, hermitian=hermitian)
    kept = s > _tolerance(a, s, atol, rtol)[..., None]
    inverse = np.divide(1, s, out=np.zeros_like(s), where=kept)
    return _back(A, vh.mT @ (inverse[..., None] * u.mT))


def matrix_rank(A, *, atol=None, rtol=None, hermitian=False):
    """How many singular values of A (..., m, n) are above max(atol, rtol * the largest): (...) i64. atol is 0 unless
    given; rtol is max(m, n) times the dtype's epsilon, or 0 if atol > 0 is given. ShapeError, DTypeError, LinAlgError.
    """
    import numpy as np

    (a,) = _matrices("matrix_rank", A, square=hermitian)
    s = _call("matrix_rank", np.linalg.svd, a, compute_uv=False, hermitian=hermitian)
    return _back(A, np.sum(s > _tolerance(a, s, atol, rtol)[..., None], -1, dtype=np.int64))


def _tolerance(a, s, atol, rtol):
    """(...) from numbers, or Arrays of a shape that broadcasts with the batch."""
    import numpy as np

    atol, rtol = (exchange.numpy(v) if hasattr(v, "buffer") else v for v in (atol, rtol))
    default = max(a.shape[-2:]) * np.finfo(a.dtype).eps
    if rtol is None:
        rtol = default if atol is None else np.where(np.asarray(atol) > 0, 0.0, default)
    largest = s.max(-1, initial=0)
    return np.maximum(0.0 if atol is None else atol, rtol * largest)


def lstsq(A, B, rcond=None):
    """X of the smallest sum of squares of A @ X - B, and of those with the smallest norm: A (..., m, n), B (..., m, k)
    or vectors (m,) or (..., m); batch dims broadcast.

    Gives (solution, residuals, rank, singular_values). Residuals (..., k) are the sums of squares; empty unless m > n
    and every A has full rank. Singular values up to rcond (default: max(m, n) epsilon) times the largest count as 0.
    ShapeError, DTypeError, LinAlgError.
    """
    import numpy as np

    a, b, vectors = _right_side("lstsq", A, B)
    batch = broadcast_shapes("lstsq", a.shape[:-2], b.shape[:-2])
    m, n = a.shape[-2:]
    u, s, vh = _call("lstsq", np.linalg.svd, a, full_matrices=False)
    kept = s > _tolerance(a, s, None, rcond)[..., None]
    inverse = np.divide(1, s, out=np.zeros_like(s), where=kept)
    x = vh.mT @ (inverse[..., None] * (u.mT @ b))
    rank = kept.sum(-1, dtype=np.int64)
    residuals = np.empty(0, a.dtype)
    if m > n and (rank == n).all():
        residuals = np.square(a @ x - b).sum(-2).reshape(*batch, -1)
    x, residuals = (x[..., 0], residuals.reshape(batch) if residuals.size else residuals) if vectors else (x, residuals)
    return Lstsq(_back(A, x), _back(A, residuals), _back(A, rank), _back(A, s))


# ---- numbers that say something about a matrix -----------------------------------------------------------------------


def det(A):
    """The determinant of A (..., n, n): (...). ShapeError, DTypeError."""
    import numpy as np

    (a,) = _matrices("det", A, square=True)
    return _back(A, np.linalg.det(a))


def slogdet(A):
    """(sign, logabsdet) of the determinant of A (..., n, n), (...) each; (0, -inf) if singular. ShapeError, DTypeError.

    >>> import tensorlib
    >>> slogdet(tensorlib.eye(300) * -0.5)
    Slogdet(sign=tensor(1.), logabsdet=tensor(-207.9442))
    """
    import numpy as np

    (a,) = _matrices("slogdet", A, square=True)
    return Slogdet(*(_back(A, x) for x in np.linalg.slogdet(a)))


def matrix_norm(A, ord="fro", dim=(-2, -1), keepdim=False):
    """Norms of the matrices that dims `dim` of A make. ord: "fro", "nuc" (sum of the singular values), 2 and -2 (the
    largest, the smallest), 1 and -1 (of the columns' sums of |a|), inf and -inf (of the rows').
    ShapeError (also for another ord), DTypeError.
    """
    import numpy as np

    (a,) = _matrices("matrix_norm", A)
    if ord not in ("fro", "nuc", 1, -1, 2, -2, float("inf"), -float("inf")):
        raise ShapeError("matrix_norm", f"ord {ord!r}", "fro, nuc, 1, -1, 2, -2, inf or -inf", "see vector_norm")
    dims = [d + A.ndim if d < 0 else d for d in dim]
    if len(set(dims)) != 2 or not all(0 <= d < A.ndim for d in dims):
        raise ShapeError("matrix_norm", f"dim {dim} for {A.ndim} dims", "two different dims", "name rows and columns")
    if ord not in ("fro", "nuc") and 0 in (A.shape[dims[0]], A.shape[dims[1]]):
        raise ShapeError("matrix_norm", f"shape {A.shape}, ord {ord}", "matrices with elements", "use fro or nuc")
    return _back(A, np.asarray(_call("matrix_norm", np.linalg.norm, a, ord, tuple(dims), keepdim)))


def vector_norm(x, ord=2, dim=None, keepdim=False):
    """(sum |x|**ord)**(1 / ord) over `dim` (None: all elements); inf and -inf are the largest and smallest |x|, 0
    counts what is not 0. ShapeError, DTypeError.
    """
    import numpy as np

    a = _array("vector_norm", x)
    dims = None if dim is None else tuple(dim) if isinstance(dim, (tuple, list)) else (dim,)
    if dims is not None and not all(-x.ndim <= d < x.ndim for d in dims):
        raise ShapeError("vector_norm", f"dim {dim} for {x.ndim} dims", "dims of the tensor", "use a smaller dim")
    try:
        with np.errstate(all="ignore"):
            found = np.linalg.vector_norm(a, ord=ord, axis=dims, keepdims=keepdim)
    except ValueError as e:
        raise ShapeError("vector_norm", f"shape {x.shape} over {dim}, ord {ord}", "elements", "check the sizes") from e
    return _back(x, np.asarray(found, a.dtype))


def norm(A, ord=None, dim=None, keepdim=False):
    """`vector_norm` if ord or two dims are not given, else `matrix_norm`: with an ord and two dims, or a 2-d A.

    Without ord it is the 2-norm of the elements over `dim`. ShapeError, DTypeError.
    """
    if dim is None and ord is not None and A.ndim not in (1, 2):
        raise ShapeError("norm", f"ord {ord} for {A.ndim} dims", "1 or 2 dims", "name them: dim=(-2, -1)")
    pair = len(dim) == 2 if isinstance(dim, (tuple, list)) else dim is None and A.ndim == 2
    if ord is None or (not pair and not isinstance(ord, str)):
        return vector_norm(A, 2 if ord is None else ord, dim, keepdim)
    return matrix_norm(A, ord, (-2, -1) if dim is None else dim, keepdim)


def matrix_power(A, n):
    """A (..., n, n) times itself n times; the identity for 0, powers of the inverse below. By squaring.
    ShapeError, DTypeError, LinAlgError (singular, n < 0).

    >>> import tensorlib
    >>> matrix_power(tensorlib.tensor([[1.0, 1.0], [1.0, 0.0]]), 10)
    tensor([[89., 55.],
            [55., 34.]])
    """
    _matrices("matrix_power", A, square=True)
    if isinstance(n, bool) or not isinstance(n, int):
        raise DTypeError("matrix_power", f"a power of type {type(n).__name__}", "an integer", "see eigh for others")
    base, left, result = inv(A) if n < 0 else A, abs(n), None
    while left:
        if left & 1:
            result = base if result is None else linalg.matmul(result, base)
        left >>= 1
        base = linalg.matmul(base, base) if left else base
    if result is None:
        one = create.eye(type(A), A.shape[-1], dtype=A.dtype, device=A.device)
        result = movement.expand(one, A.shape)
    return movement.clone(result)
