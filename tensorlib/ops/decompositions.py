"""Decompositions of matrices by NumPy's LAPACK, on GPUs by dense.py; see `tensorlib.ops.lapack`."""

from collections import namedtuple

from tensorlib.device import CPU
from tensorlib.errors import ShapeError
from tensorlib.ops import dense
from tensorlib.ops import lapack_rows as rows
from tensorlib.ops._numpy import back, call, check, matrices
from tensorlib.registry import FLOAT_ONLY, define

QR = namedtuple("QR", "Q R")
SVD = namedtuple("SVD", "U S Vh")
Eigh = namedtuple("Eigh", "eigenvalues eigenvectors")


@define("linalg", FLOAT_ONLY, **rows.CHOLESKY)
def cholesky(A, *, upper=False):
    """L with L @ L.mT = A for symmetric positive-definite A (..., n, n), of which the lower triangle is read;
    upper: the transpose of L (the upper triangle is read). ShapeError, DTypeError, LinAlgError (not positive-definite).
    """
    check("cholesky", A, square=True)
    if A.device is not CPU:
        return dense.cholesky(A, upper)
    import numpy as np

    (a,) = matrices("cholesky", A, square=True)
    fix = "add a small multiple of the identity, or use eigh"
    return back(A, call("cholesky", np.linalg.cholesky, a, fix=fix, upper=upper))


@define("linalg", FLOAT_ONLY, **rows.QR)
def qr(A, mode="reduced"):
    """(Q, R) with Q @ R = A (..., m, n), Q with orthonormal columns, R upper triangular; k = min(m, n).

    mode "reduced": Q (..., m, k), R (..., k, n); "complete": (..., m, m), (..., m, n); "r": Q is empty.
    ShapeError (also for another mode), DTypeError.
    """
    check("qr", A)
    if mode not in ("reduced", "complete", "r"):
        raise ShapeError("qr", f"mode {mode!r}", "reduced, complete or r", "use one of these")
    if A.device is not CPU:
        return QR(*dense.qr(A, mode))
    import numpy as np

    (a,) = matrices("qr", A)
    found = call("qr", np.linalg.qr, a, mode=mode)
    q, r = (np.empty(0, a.dtype), found) if mode == "r" else found
    return QR(back(A, q), back(A, r))


@define("linalg", FLOAT_ONLY, **rows.SVD)
def svd(A, full_matrices=True):
    """(U, S, Vh) with U @ diag(S) @ Vh = A (..., m, n); S (..., min(m, n)) descending. U is (..., m, m) and Vh
    (..., n, n), or of min(m, n) columns and rows if not full_matrices. ShapeError, DTypeError, LinAlgError (NaN).
    """
    check("svd", A)
    if A.device is not CPU:
        return SVD(*dense.svd(A, full_matrices))
    import numpy as np

    (a,) = matrices("svd", A)
    return SVD(*(back(A, x) for x in call("svd", np.linalg.svd, a, full_matrices=full_matrices)))


@define("linalg", FLOAT_ONLY, **rows.SVDVALS)
def svdvals(A):
    """The singular values of A (..., m, n), descending: (..., min(m, n)). ShapeError, DTypeError, LinAlgError."""
    check("svdvals", A)
    if A.device is not CPU:
        return dense.svdvals(A)
    import numpy as np

    (a,) = matrices("svdvals", A)
    return back(A, call("svdvals", np.linalg.svd, a, compute_uv=False))


@define("linalg", FLOAT_ONLY, **rows.EIGH)
def eigh(A, UPLO="L"):
    """(eigenvalues, eigenvectors) of symmetric A (..., n, n), of which one triangle is read: (..., n) ascending and
    (..., n, n), a column each. ShapeError (also for a UPLO other than "L" and "U"), DTypeError, LinAlgError.
    """
    check("eigh", A, square=True)
    _triangle("eigh", UPLO)
    if A.device is not CPU:
        return Eigh(*dense.eigh(A, UPLO))
    import numpy as np

    (a,) = matrices("eigh", A, square=True)
    return Eigh(*(back(A, x) for x in call("eigh", np.linalg.eigh, a, UPLO)))


@define("linalg", FLOAT_ONLY, **rows.EIGVALSH)
def eigvalsh(A, UPLO="L"):
    """The eigenvalues of symmetric A (..., n, n), ascending: (..., n). ShapeError, DTypeError, LinAlgError."""
    check("eigvalsh", A, square=True)
    _triangle("eigvalsh", UPLO)
    if A.device is not CPU:
        return dense.eigh(A, UPLO, "eigvalsh")[0]
    import numpy as np

    (a,) = matrices("eigvalsh", A, square=True)
    return back(A, call("eigvalsh", np.linalg.eigvalsh, a, UPLO))


def _triangle(op, name):
    if name not in ("L", "U"):
        raise ShapeError(op, f"UPLO {name!r}", "'L' or 'U'", "say which triangle is to be read")
