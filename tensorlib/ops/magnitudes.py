"""Numbers that say something about a matrix, and its powers; see `tensorlib.ops.lapack`."""

from collections import namedtuple

from tensorlib.device import CPU
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.ops import create, dense, elementwise, linalg, movement, reduce
from tensorlib.ops import lapack_rows as rows
from tensorlib.ops._numpy import array, back, call, check, check_dtype, matrices, tolerance
from tensorlib.ops.decompositions import svdvals
from tensorlib.ops.systems import inv
from tensorlib.registry import FLOAT_ONLY, INDEX, define

Slogdet = namedtuple("Slogdet", "sign logabsdet")


@define("linalg", INDEX, **rows.MATRIX_RANK)
def matrix_rank(A, *, atol=None, rtol=None, hermitian=False):
    """How many singular values of A (..., m, n) are above max(atol, rtol * the largest): (...) i64. atol is 0 unless
    given; rtol is max(m, n) times the dtype's epsilon, or 0 if atol > 0 is given. ShapeError, DTypeError, LinAlgError.
    """
    check("matrix_rank", A, square=hermitian)
    if A.device is not CPU:
        return dense.matrix_rank(A, atol, rtol, hermitian)
    import numpy as np

    (a,) = matrices("matrix_rank", A, square=hermitian)
    s = call("matrix_rank", np.linalg.svd, a, compute_uv=False, hermitian=hermitian)
    return back(A, np.sum(s > tolerance(a, s, atol, rtol)[..., None], -1, dtype=np.int64))


@define("linalg", FLOAT_ONLY, **rows.DET)
def det(A):
    """The determinant of A (..., n, n): (...). ShapeError, DTypeError."""
    check("det", A, square=True)
    if A.device is not CPU:
        return dense.det(A)
    import numpy as np

    (a,) = matrices("det", A, square=True)
    return back(A, np.linalg.det(a))


@define("linalg", FLOAT_ONLY, **rows.SLOGDET)
def slogdet(A):
    """(sign, logabsdet) of the determinant of A (..., n, n), (...) each; (0, -inf) if singular. ShapeError, DTypeError.

    >>> import tensorlib
    >>> slogdet(tensorlib.eye(300) * -0.5)
    Slogdet(sign=tensor(1.), logabsdet=tensor(-207.9442))
    """
    check("slogdet", A, square=True)
    if A.device is not CPU:
        return Slogdet(*dense.slogdet(A))
    import numpy as np

    (a,) = matrices("slogdet", A, square=True)
    return Slogdet(*(back(A, x) for x in np.linalg.slogdet(a)))


@define("composite", FLOAT_ONLY, **rows.MATRIX_NORM)
def matrix_norm(A, ord="fro", dim=(-2, -1), keepdim=False):
    """Norms of the matrices that dims `dim` of A make. ord: "fro", "nuc" (sum of the singular values), 2 and -2 (the
    largest, the smallest), 1 and -1 (of the columns' sums of |a|), inf and -inf (of the rows').
    ShapeError (also for another ord), DTypeError.
    """
    check("matrix_norm", A)
    if ord not in ("fro", "nuc", 1, -1, 2, -2, float("inf"), -float("inf")):
        raise ShapeError("matrix_norm", f"ord {ord!r}", "fro, nuc, 1, -1, 2, -2, inf or -inf", "see vector_norm")
    dims = [d + A.ndim if d < 0 else d for d in dim]
    if len(set(dims)) != 2 or not all(0 <= d < A.ndim for d in dims):
        raise ShapeError("matrix_norm", f"dim {dim} for {A.ndim} dims", "two different dims", "name rows and columns")
    empty = 0 in (A.shape[dims[0]], A.shape[dims[1]])
    nothing = {-1: A.shape[dims[1]] == 0, -2: empty, -float("inf"): A.shape[dims[0]] == 0}  # to take the smallest of
    if nothing.get(ord):
        raise ShapeError("matrix_norm", f"shape {A.shape}, ord {ord}", "matrices with elements", "use a positive ord")
    if ord == "fro" or empty:
        return vector_norm(A, 2, tuple(dims), keepdim)
    a = movement.movedim(A, dims, (-2, -1))
    if ord in (2, -2, "nuc"):
        sizes = svdvals(a)
    else:
        sizes = reduce.sum(elementwise.abs(a), -2 if abs(ord) == 1 else -1)
    found = reduce.sum(sizes, -1) if ord == "nuc" else (reduce.amax if ord > 0 else reduce.amin)(sizes, -1)
    for d in sorted(dims) if keepdim else ():
        found = movement.unsqueeze(found, d)
    return found


@define("linalg", FLOAT_ONLY, **rows.VECTOR_NORM)
def vector_norm(x, ord=2, dim=None, keepdim=False):
    """(sum |x|**ord)**(1 / ord) over `dim` (None: all elements); inf and -inf are the largest and smallest |x|, 0
    counts what is not 0. ShapeError, DTypeError.
    """
    check_dtype("vector_norm", x)
    dims = None if dim is None else tuple(dim) if isinstance(dim, (tuple, list)) else (dim,)
    if dims is not None and not all(-x.ndim <= d < x.ndim for d in dims):
        raise ShapeError("vector_norm", f"dim {dim} for {x.ndim} dims", "dims of the tensor", "use a smaller dim")
    sizes = x.shape if dims is None else [x.shape[d] for d in dims]
    if 0 in sizes and abs(ord) == float("inf"):
        raise ShapeError("vector_norm", f"shape {x.shape} over {dim}, ord {ord}", "elements", "check the sizes")
    if x.device is not CPU:
        return dense.vector_norm(x, ord, dims, keepdim)
    import numpy as np

    a = array("vector_norm", x)
    with np.errstate(all="ignore"):
        found = np.linalg.vector_norm(a, ord=ord, axis=dims, keepdims=keepdim)
    return back(x, np.asarray(found, a.dtype))


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


@define("composite", FLOAT_ONLY, **rows.MATRIX_POWER)
def matrix_power(A, n):
    """A (..., n, n) times itself n times; the identity for 0, powers of the inverse below. By squaring.
    ShapeError, DTypeError, LinAlgError (singular, n < 0).

    >>> import tensorlib
    >>> matrix_power(tensorlib.tensor([[1.0, 1.0], [1.0, 0.0]]), 10)
    tensor([[89., 55.],
            [55., 34.]])
    """
    check("matrix_power", A, square=True)
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
