"""Linear algebra with the names and meanings of `torch.linalg`, by NumPy's LAPACK and, on GPUs, by kernels of ours
(dense.py); batch dims lead.

f32 and f64 only: f16 and bf16 would be too coarse for what is computed here, and are refused. Matrices on the CPU are
read where they are; NumPy is imported by the first call. A command list records kernels only, so none of this may be
captured. Matrices that have no result (singular, not positive definite) raise LinAlgError; NaN and infinities give NaN
or LinAlgError. Signs of eigenvectors and singular vectors are any.

>>> import tensorlib
>>> A = tensorlib.tensor([[2.0, 1.0], [1.0, 3.0]])
>>> solve(A, tensorlib.tensor([3.0, 4.0]))
tensor([1., 1.])
>>> det(A), cholesky(A)[0, 1], eigh(tensorlib.eye(2)).eigenvalues
(tensor(5.), tensor(0.), tensor([1., 1.]))
"""

from tensorlib.errors import LinAlgError
from tensorlib.ops import contract
from tensorlib.ops.contract import vecdot
from tensorlib.ops.decompositions import QR, SVD, Eigh, cholesky, eigh, eigvalsh, qr, svd, svdvals
from tensorlib.ops.linalg import matmul
from tensorlib.ops.magnitudes import (
    Slogdet,
    det,
    matrix_norm,
    matrix_power,
    matrix_rank,
    norm,
    slogdet,
    vector_norm,
)
from tensorlib.ops.movement import diagonal as _diagonal
from tensorlib.ops.systems import Lstsq, inv, lstsq, pinv, solve, solve_triangular

__all__ = [
    "QR", "SVD", "Eigh", "LinAlgError", "Lstsq", "Slogdet", "cholesky", "det", "eigh", "eigvalsh", "inv", "lstsq",
    "matrix_norm", "matrix_power", "matrix_rank", "norm", "pinv", "qr", "slogdet", "solve", "solve_triangular", "svd",
    "svdvals", "vector_norm", "cross", "diagonal", "matmul", "vecdot",
]  # fmt: skip


def cross(A, B, *, dim=-1):
    """Cross product of vectors of 3 along a dim; the others broadcast. ShapeError."""
    return contract.cross(A, B, dim)


def diagonal(A, *, offset=0, dim1=-2, dim2=-1):
    """The diagonals of matrices as a new last dim: a view. ShapeError."""
    return _diagonal(A, offset, dim1, dim2)
