"""The `linalg` extension of the standard: `array_api.linalg`, for float32 and float64; batch dims lead.

Decompositions are those of `tensorlib.linalg`, with the standard's arguments.

>>> from tensorlib import array_api as xp
>>> xp.linalg.det(xp.asarray([[2.0, 1.0], [1.0, 3.0]]))
tensor(5.)
"""

from math import prod

from tensorlib.array_api._array import NDArray, array
from tensorlib.array_api._elementwise import in_place, operator, pair
from tensorlib.array_api._manipulation import matrix_transpose, one_axis
from tensorlib.array_api._statistics import sum as _sum
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.layout import broadcast_shapes
from tensorlib.ops import elementwise, lapack, movement, reduce
from tensorlib.ops import linalg as _products

__all__ = [
    "cholesky", "cross", "det", "diagonal", "eigh", "eigvalsh", "inv", "matmul", "matrix_norm", "matrix_power",
    "matrix_rank", "matrix_transpose", "outer", "pinv", "qr", "slogdet", "solve", "svd", "svdvals", "tensordot",
    "trace", "vecdot", "vector_norm",
]  # fmt: skip


# ---- products --------------------------------------------------------------------------------------------------------


def _numbers(op, x1, x2):
    x1, x2 = pair(op, array(op, x1), array(op, x2))
    if x1.dtype.kind == "b":
        raise DTypeError(op, "dtype bool", "numbers", "convert with astype")
    return x1, x2


def matmul(x1, x2, /):
    """Matrix product (..., M, K) @ (..., K, N); batch dims broadcast, a 1-d operand is a row or a column. ShapeError,
    DTypeError (bool).

    >>> from tensorlib import array_api as xp
    >>> xp.matmul(xp.asarray([[1, 2], [3, 4]]), xp.asarray([1, 1]))
    tensor([3, 7])
    """
    return _products.matmul(*_numbers("matmul", x1, x2))


def tensordot(x1, x2, /, *, axes=2):
    """Sums of products over axes of both: the last `axes` of x1 with the first of x2, or the pairs of two sequences of
    axes. The other axes follow one another, x1's first. ShapeError, DTypeError.

    >>> from tensorlib import array_api as xp
    >>> xp.tensordot(xp.ones((2, 3, 4)), xp.ones((4, 3, 5)), axes=((1, 2), (1, 0))).shape
    (2, 5)
    """
    x1, x2 = _numbers("tensordot", x1, x2)
    if isinstance(axes, int):
        axes = (range(x1.ndim - axes, x1.ndim), range(axes)) if axes else ((), ())
    first, second = ([one_axis("tensordot", d, x.ndim) for d in dims] for x, dims in zip((x1, x2), axes, strict=True))
    if [x1.shape[d] for d in first] != [x2.shape[d] for d in second]:
        got = f"axes {first} of {x1.shape} and {second} of {x2.shape}"
        raise ShapeError("tensordot", got, "as many axes, of equal sizes", "name others")
    kept1 = [d for d in range(x1.ndim) if d not in first]
    kept2 = [d for d in range(x2.ndim) if d not in second]
    k, shape1, shape2 = prod(x1.shape[d] for d in first), [x1.shape[d] for d in kept1], [x2.shape[d] for d in kept2]
    rows = movement.reshape(movement.permute(x1, [*kept1, *first]), prod(shape1), k)
    columns = movement.reshape(movement.permute(x2, [*second, *kept2]), k, prod(shape2))
    return movement.reshape(_products.matmul(rows, columns), (*shape1, *shape2))


def vecdot(x1, x2, /, *, axis=-1):
    """Sums of products along an axis (counted from the end), of equal size in both; the other axes broadcast. The
    promoted dtype. ShapeError, DTypeError.
    """
    x1, x2 = _numbers("vecdot", x1, x2)
    n = [x.shape[one_axis("vecdot", axis, x.ndim)] for x in (x1, x2)]
    if n[0] != n[1]:
        raise ShapeError("vecdot", f"axis {axis} of sizes {n[0]} and {n[1]}", "equal sizes", "name another axis")
    return reduce.sum(elementwise.mul(x1, x2), axis, dtype=x1.dtype)


def outer(x1, x2, /):
    """Every element of the row x1 times every one of x2: (N, M). ShapeError, DTypeError."""
    x1, x2 = _numbers("outer", x1, x2)
    if x1.ndim != 1 or x2.ndim != 1:
        raise ShapeError("outer", f"shapes {x1.shape} and {x2.shape}", "1-d arrays", "flatten them")
    return elementwise.mul(movement.unsqueeze(x1, 1), x2)


def cross(x1, x2, /, *, axis=-1):
    """Cross product of vectors along an axis of size 3 in both; the other axes broadcast. ShapeError, DTypeError.

    >>> from tensorlib import array_api as xp
    >>> xp.linalg.cross(xp.asarray([1, 0, 0]), xp.asarray([0, 1, 0]))
    tensor([0, 0, 1])
    """
    x1, x2 = _numbers("cross", x1, x2)
    if any(x.shape[one_axis("cross", axis, x.ndim)] != 3 for x in (x1, x2)):
        raise ShapeError("cross", f"axis {axis} of {x1.shape} and {x2.shape}", "3 elements in both", "name another")
    shape = broadcast_shapes("cross", x1.shape, x2.shape)
    x1, x2 = (movement.broadcast_to(x, shape) for x in (x1, x2))
    a, b = ([movement.roll(x, -shift, axis) for shift in (1, 2)] for x in (x1, x2))
    return elementwise.sub(elementwise.mul(a[0], b[1]), elementwise.mul(a[1], b[0]))


# ---- parts of matrices -----------------------------------------------------------------------------------------------


def diagonal(x, /, *, offset=0):
    """Diagonal `offset` of the last two dims as a new last dim: a view. Above the main one for offset > 0."""
    x = array("diagonal", x)
    if x.ndim < 2:
        raise ShapeError("diagonal", f"{x.ndim} dims", "at least 2", "add some with expand_dims")
    return movement.diagonal(x, offset, -2, -1)


def trace(x, /, *, offset=0, dtype=None):
    """Sum of diagonal `offset` of the last two dims, with the dtype that `sum` gives. ShapeError, DTypeError."""
    return _sum(diagonal(x, offset=offset), axis=-1, dtype=dtype)


# ---- decompositions and equations ------------------------------------------------------------------------------------


def cholesky(x, /, *, upper=False):
    """L with L @ L.mT = x for symmetric positive-definite x; upper: its transpose. ShapeError, LinAlgError."""
    return lapack.cholesky(array("cholesky", x), upper=upper)


def qr(x, /, *, mode="reduced"):
    """(Q, R) with Q @ R = x, "reduced" or "complete". ShapeError, DTypeError."""
    if mode not in ("reduced", "complete"):
        raise ShapeError("qr", f"mode {mode!r}", "'reduced' or 'complete'", "use one of these")
    return lapack.qr(array("qr", x), mode)


def svd(x, /, *, full_matrices=True):
    """(U, S, Vh) with U @ diag(S) @ Vh = x, S descending. ShapeError, DTypeError, LinAlgError."""
    return lapack.svd(array("svd", x), full_matrices)


def svdvals(x, /):
    """The singular values, descending. ShapeError, DTypeError, LinAlgError."""
    return lapack.svdvals(array("svdvals", x))


def eigh(x, /):
    """(eigenvalues, eigenvectors) of symmetric x, ascending, a column each. ShapeError, DTypeError, LinAlgError."""
    return lapack.eigh(array("eigh", x))


def eigvalsh(x, /):
    """The eigenvalues of symmetric x, ascending. ShapeError, DTypeError, LinAlgError."""
    return lapack.eigvalsh(array("eigvalsh", x))


def inv(x, /):
    """The inverse. ShapeError, DTypeError, LinAlgError (singular)."""
    return lapack.inv(array("inv", x))


def pinv(x, /, *, rtol=None):
    """The Moore-Penrose inverse: singular values up to rtol (max(M, N) * eps for None) times the largest count as 0."""
    return lapack.pinv(array("pinv", x), rtol=rtol)


def matrix_rank(x, /, *, rtol=None):
    """How many singular values are above rtol (max(M, N) * eps for None) times the largest: int64."""
    return lapack.matrix_rank(array("matrix_rank", x), rtol=rtol)


def solve(x1, x2, /):
    """X with x1 @ X = x2: x1 (..., N, N), x2 (N,) or (..., N, K); batch dims broadcast. ShapeError, DTypeError,
    LinAlgError (singular).

    >>> from tensorlib import array_api as xp
    >>> xp.linalg.solve(xp.asarray([[2.0, 1.0], [1.0, 3.0]]), xp.asarray([3.0, 4.0]))
    tensor([1., 1.])
    """
    x1, x2 = pair("solve", array("solve", x1), array("solve", x2))
    if x2.ndim == 1:
        return movement.squeeze(lapack.solve(x1, movement.unsqueeze(x2, -1)), -1)
    while 1 < x2.ndim < x1.ndim:  # so that it is not taken for a batch of vectors
        x2 = movement.unsqueeze(x2, 0)
    return lapack.solve(x1, x2)


def det(x, /):
    """The determinant. ShapeError, DTypeError."""
    return lapack.det(array("det", x))


def slogdet(x, /):
    """(sign, logabsdet) of the determinant; (0, -inf) if singular. ShapeError, DTypeError."""
    return lapack.slogdet(array("slogdet", x))


def matrix_power(x, n, /):
    """x @ x @ ... n times; the identity for 0, powers of the inverse below. ShapeError, DTypeError, LinAlgError."""
    return lapack.matrix_power(array("matrix_power", x), n)


def matrix_norm(x, /, *, keepdims=False, ord="fro"):
    """Norms of matrices: "fro", "nuc", 1, -1, 2, -2, inf or -inf. ShapeError, DTypeError."""
    return lapack.matrix_norm(array("matrix_norm", x), ord, keepdim=keepdims)


def vector_norm(x, /, *, axis=None, keepdims=False, ord=2):
    """(sum |x| ** ord) ** (1 / ord) over axes (all for None); inf, -inf and 0 as in `tensorlib.linalg.vector_norm`."""
    return lapack.vector_norm(array("vector_norm", x), ord, axis, keepdims)


NDArray.__matmul__, NDArray.__rmatmul__ = operator(matmul), operator(matmul, reflected=True)
NDArray.__imatmul__ = in_place(matmul)
