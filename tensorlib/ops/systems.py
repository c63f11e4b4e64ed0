"""Systems of equations and inverses by NumPy's LAPACK, on GPUs by dense.py; see `tensorlib.ops.lapack`."""

from collections import namedtuple

from tensorlib.device import CPU
from tensorlib.errors import DeviceError, ShapeError
from tensorlib.layout import broadcast_shapes
from tensorlib.ops import create, dense, movement
from tensorlib.ops import lapack_rows as rows
from tensorlib.ops._numpy import back, call, check, matrices, tolerance
from tensorlib.registry import FLOAT_ONLY, define

Lstsq = namedtuple("Lstsq", "solution residuals rank singular_values")
BLOCK = 32  # rows of a triangular system that are solved one by one


def _right_side(op, A, B, left=True, vectors_too=True):
    """(B as matrices; whether it was vectors, unless it may not be: 1-d, or (..., n) for A (..., n, n)), after all
    checks of the pair.
    """
    vectors = vectors_too and (B.ndim == 1 or (B.ndim == A.ndim - 1 and B.shape == A.shape[:-1]))
    if vectors and not left:
        raise ShapeError(op, f"vectors {B.shape} with left=False", "matrices", "add a dim with unsqueeze(-2)")
    X = movement.unsqueeze(B, -1) if vectors else B
    check(op, A, X)
    if A.device != B.device:
        raise DeviceError(op, f"operands on {A.device} and {B.device}", "one device", "move one with .to(device)")
    if A.shape[-2] != X.shape[-2 if left else -1]:
        got = f"shapes {A.shape} and {B.shape}"
        raise ShapeError(op, got, f"{A.shape[-2]} {'rows' if left else 'columns'} of B", "transpose or reshape B")
    broadcast_shapes(op, A.shape[:-2], X.shape[:-2])
    return X, vectors


@define("linalg", FLOAT_ONLY, **rows.SOLVE)
def solve(A, B, *, left=True):
    """X with A @ X = B (X @ A = B if not left): A (..., n, n), B (..., n, k) or vectors (n,) or (..., n).

    Batch dims broadcast. ShapeError, DTypeError, LinAlgError (singular).
    """
    check("solve", A, square=True)
    B, vectors = _right_side("solve", A, B, left)
    if A.device is not CPU:
        x = dense.solve(A, B, left)
        return movement.squeeze(x, -1) if vectors else x
    import numpy as np

    a, b = matrices("solve", A, B)
    a, b = (a, b) if left else (a.mT, b.mT)
    x = call("solve", np.linalg.solve, a, b, fix="use lstsq or pinv")
    return back(A, x[..., 0] if vectors else x if left else x.mT)


@define("linalg", FLOAT_ONLY, **rows.SOLVE_TRIANGULAR)
def solve_triangular(A, B, *, upper, left=True, unitriangular=False):
    """X with A @ X = B (X @ A = B if not left) for triangular A (..., n, n), B (..., n, k); the other triangle is not
    read, nor the diagonal if unitriangular (it counts as 1). A zero on the diagonal gives infinities or NaN.

    Batch dims broadcast. ShapeError, DTypeError.
    """
    check("solve_triangular", A, square=True)
    B, _ = _right_side("solve_triangular", A, B, left, vectors_too=False)
    if A.device is not CPU:
        return dense.solve_triangular(A, B, upper, left, unitriangular)
    import numpy as np

    a, b = matrices("solve_triangular", A, B)
    if not left:
        a, b, upper = a.mT, b.mT, not upper
    if upper:  # reversed, rows and columns, it is lower
        a, b = a[..., ::-1, ::-1], b[..., ::-1, :]
    x = np.array(np.broadcast_to(b, (*broadcast_shapes("", a.shape[:-2], b.shape[:-2]), *b.shape[-2:])))
    with np.errstate(all="ignore"):
        _forward(a, x, unitriangular)
    x = x[..., ::-1, :] if upper else x
    return back(A, x if left else x.mT)


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


@define("linalg", FLOAT_ONLY, **rows.INV)
def inv(A):
    """The inverse of A (..., n, n). ShapeError, DTypeError, LinAlgError (singular)."""
    check("inv", A, square=True)
    if A.device is not CPU:
        return dense.inv(A)
    import numpy as np

    (a,) = matrices("inv", A, square=True)
    return back(A, call("inv", np.linalg.inv, a, fix="use pinv; to solve equations, solve or lstsq"))


@define("linalg", FLOAT_ONLY, **rows.PINV)
def pinv(A, *, atol=None, rtol=None, hermitian=False):
    """The Moore-Penrose inverse (..., n, m) of A (..., m, n): singular values up to max(atol, rtol * the largest) count
    as 0 (see matrix_rank). hermitian: A is symmetric. ShapeError, DTypeError, LinAlgError.
    """
    check("pinv", A, square=hermitian)
    if A.device is not CPU:
        return dense.pinv(A, atol, rtol, hermitian)
    import numpy as np

    (a,) = matrices("pinv", A, square=hermitian)
    u, s, vh = call("pinv", np.linalg.svd, a, full_matrices=False, hermitian=hermitian)
    kept = s > tolerance(a, s, atol, rtol)[..., None]
    inverse = np.divide(1, s, out=np.zeros_like(s), where=kept)
    return back(A, vh.mT @ (inverse[..., None] * u.mT))


@define("linalg", FLOAT_ONLY, **rows.LSTSQ)
def lstsq(A, B, rcond=None):
    """X of the smallest sum of squares of A @ X - B, and of those with the smallest norm: A (..., m, n), B (..., m, k)
    or vectors (m,) or (..., m); batch dims broadcast.

    Gives (solution, residuals, rank, singular_values). Residuals (..., k) are the sums of squares; empty unless m > n
    and every A has full rank. Singular values up to rcond (default: max(m, n) epsilon) times the largest count as 0.
    ShapeError, DTypeError, LinAlgError.
    """
    B, vectors = _right_side("lstsq", A, B)
    batch = broadcast_shapes("lstsq", A.shape[:-2], B.shape[:-2])
    if A.device is not CPU:
        x, residuals, rank, s = dense.lstsq(A, B, rcond)
        x, residuals = (v if v is None or not vectors else movement.squeeze(v, -1) for v in (x, residuals))
        none = create.empty(type(A), 0, dtype=A.dtype, device=A.device)
        return Lstsq(x, none if residuals is None else residuals, rank, s)
    import numpy as np

    a, b = matrices("lstsq", A, B)
    m, n = a.shape[-2:]
    u, s, vh = call("lstsq", np.linalg.svd, a, full_matrices=False)
    kept = s > tolerance(a, s, None, rcond)[..., None]
    inverse = np.divide(1, s, out=np.zeros_like(s), where=kept)
    x = vh.mT @ (inverse[..., None] * (u.mT @ b))
    rank = kept.sum(-1, dtype=np.int64)
    residuals = np.empty(0, a.dtype)
    if m > n and (rank == n).all():
        residuals = np.square(a @ x - b).sum(-2)
    x, residuals = (x[..., 0], residuals.reshape(batch) if residuals.size else residuals) if vectors else (x, residuals)
    return Lstsq(back(A, x), back(A, residuals), back(A, rank), back(A, s))
