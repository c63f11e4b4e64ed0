"""What the rows of `tensorlib.ops.lapack` say beside LAPACK: NumPy references, samplers and gradients.

Gradients are those of M. Giles (Collected matrix derivative results, 2008), of J. Townsend (Differentiating the
singular value decomposition, 2016) for svd, of Roberts and Roberts (QR and LQ decomposition matrix backpropagation,
arXiv:2009.10071) for qr, and of G. Golub and V. Pereyra (SIAM J. Numer. Anal. 10, 1973) for pinv. They are batched
and written in ops that have gradients themselves.

As in PyTorch: a symmetric A has a symmetric gradient, whichever triangle is read. Gradients of eigenvectors and
singular vectors are infinite or NaN where values are equal, unless none arrives there; those of values always exist.
pinv and lstsq have one where the rank does not change. A singular matrix has a gradient of det, none of inv, solve and
slogdet (LinAlgError). Of svd with full_matrices, the vectors beyond min(m, n) have none.
"""

from tensorlib.errors import GradError
from tensorlib.ops import create, elementwise, index, movement, reduce
from tensorlib.ops.linalg import matmul
from tensorlib.registry import FUNCTIONS


def _t(x):
    return movement.transpose(x, -2, -1)


def _columns(v):
    """(..., n) that scales columns."""
    return movement.unsqueeze(v, -2)


def _ratio(x, y):
    """x / y, and 0 for 0 / 0."""
    none = elementwise.logical_and(elementwise.eq(x, 0), elementwise.eq(y, 0))
    return x / elementwise.where(none, 1.0, y)


def _skew(x):
    return x - _t(x)


def _eye(x, n):
    return create.eye(type(x), n, dtype=x.dtype, device=x.device)


# ---- decompositions --------------------------------------------------------------------------------------------------


def _cholesky(g, out, upper):
    lower, g = (_t(out), _t(g)) if upper else (out, g)
    low = index.tril(matmul(_t(lower), g)) * (1 - 0.5 * _eye(g, g.shape[-1]))
    solve = FUNCTIONS["solve_triangular"]
    half = solve(_t(lower), (low + _t(low)) * 0.5, upper=True)
    return solve(lower, half, upper=False, left=False)


def _tall_qr(g_q, g_r, q, r):
    m = matmul(r, _t(g_r)) - matmul(_t(g_q), q)
    lower = index.tril(m, -1)
    both = lower + _t(lower) + m * _eye(m, m.shape[-1])
    return FUNCTIONS["solve_triangular"](_t(r), g_q + matmul(q, both), upper=False, left=False)


def _qr(g, A, mode, out):
    (m, n), (q, r), (g_q, g_r) = A.shape[-2:], out, g
    if mode == "r" or (mode == "complete" and m > n):
        raise GradError("qr", f"a gradient with mode {mode!r} of {m} x {n}", "mode 'reduced'", "use it")
    if m >= n:
        return _tall_qr(g_q, g_r, q, r)
    rest = movement.narrow(g_r, -1, m, n - m)
    g_q = g_q + matmul(movement.narrow(A, -1, m, n - m), _t(rest))
    first = _tall_qr(g_q, movement.narrow(g_r, -1, 0, m), q, movement.narrow(r, -1, 0, m))
    return movement.cat([first, matmul(q, rest)], -1)


def _svd(g, out):
    u, s, vh = out
    k = s.shape[-1]
    g_u, g_v = movement.narrow(g[0], -1, 0, k), _t(movement.narrow(g[2], -2, 0, k))
    u, v = movement.narrow(u, -1, 0, k), _t(movement.narrow(vh, -2, 0, k))
    squares = elementwise.square(s)
    gaps = _columns(squares) - movement.unsqueeze(squares, -1)
    turns = _skew(matmul(_t(u), g_u)) * _columns(s) + movement.unsqueeze(s, -1) * _skew(matmul(_t(v), g_v))
    found = matmul(matmul(u, _ratio(turns, gaps) + _columns(g[1]) * _eye(s, k)), _t(v))
    if u.shape[-2] > k:
        outside = _ratio(g_u - matmul(u, matmul(_t(u), g_u)), _columns(s))
        found = found + matmul(outside, _t(v))
    if v.shape[-2] > k:
        outside = _ratio(g_v - matmul(v, matmul(_t(v), g_v)), _columns(s))
        found = found + matmul(u, _t(outside))
    return found


def _svdvals(g, A):
    u, _, vh = FUNCTIONS["svd"](A, full_matrices=False)
    return matmul(u * _columns(g), vh)


def _eigh(g, out):
    values, v = out
    gaps = _columns(values) - movement.unsqueeze(values, -1)
    inner = _ratio(_skew(matmul(_t(v), g[1])) * 0.5, gaps) + _columns(g[0]) * _eye(v, values.shape[-1])
    return matmul(matmul(v, inner), _t(v))


def _eigvalsh(g, A, UPLO):
    v = FUNCTIONS["eigh"](A, UPLO)[1]
    return matmul(v * _columns(g), _t(v))


# ---- systems of equations --------------------------------------------------------------------------------------------


def _vectors(A, B_shape):
    """Whether the right side is vectors: 1-d, or (..., n) for A (..., n, n)."""
    return len(B_shape) == 1 or (len(B_shape) == A.ndim - 1 and tuple(B_shape) == A.shape[:-1])


def _solve(g, A, B_shape, out, left):
    vectors = _vectors(A, B_shape)
    g, x = (movement.unsqueeze(v, -1) if vectors else v for v in (g, out))
    to_b = FUNCTIONS["solve"](_t(A), g, left=left)
    to_a = elementwise.neg(matmul(to_b, _t(x)) if left else matmul(_t(x), to_b))
    return to_a, movement.squeeze(to_b, -1) if vectors else to_b


def _solve_triangular(g, A, out, upper, left, unitriangular):
    options = {"upper": not upper, "left": left, "unitriangular": unitriangular}
    to_b = FUNCTIONS["solve_triangular"](_t(A), g, **options)
    to_a = elementwise.neg(matmul(to_b, _t(out)) if left else matmul(_t(out), to_b))
    return (index.triu(to_a, int(unitriangular)) if upper else index.tril(to_a, -int(unitriangular))), to_b


def _inv(g, out):
    return elementwise.neg(matmul(_t(out), matmul(g, _t(out))))


def _pinv(g, A, out):
    p, g = out, _t(g)
    if A.shape[-2] <= A.shape[-1]:
        k = matmul(g, p)
        kp = matmul(k, _t(p))
        found = kp - _t(matmul(p, k)) - matmul(matmul(A, p), kp)
        return found + matmul(matmul(_t(p), p), g - matmul(k, A))
    k = matmul(p, g)
    pk = matmul(_t(p), k)
    found = pk - _t(matmul(k, p)) - matmul(matmul(pk, p), A)
    return found + matmul(matmul(g - matmul(A, k), p), _t(p))


def _lstsq(g, A, B, rcond, out):
    vectors = _vectors(A, B.shape)
    b, x, g_x = (movement.unsqueeze(v, -1) if vectors else v for v in (B, out[0], g[0]))
    p = FUNCTIONS["pinv"](A, rtol=rcond)
    to_b = matmul(_t(p), g_x)
    to_a = _pinv(matmul(g_x, _t(b)), A, p) + _svdvals(g[3], A)
    if out[1].numel():
        rest = (matmul(A, x) - b) * 2 * _columns(movement.unsqueeze(g[1], -1) if vectors else g[1])
        to_a, to_b = to_a + matmul(rest, _t(x)), to_b - rest
    return to_a, movement.squeeze(to_b, -1) if vectors else to_b


# ---- numbers that say something about a matrix -----------------------------------------------------------------------


def _matrix(v):
    """(...) as (..., 1, 1)."""
    return movement.reshape(v, (*v.shape, 1, 1))


def _det(g, A, out):
    """g det A^-T; where A is singular, by its cofactors, from the singular values without one of them at a time."""
    if not elementwise.eq(out, 0).any():
        return _matrix(g * out) * _t(FUNCTIONS["inv"](A))
    u, s, vh = FUNCTIONS["svd"](A)
    n = s.shape[-1]
    itself = create.eye(type(s), n, dtype="bool", device=s.device)
    others = reduce.prod(elementwise.where(itself, 1.0, _columns(s)), -1)
    sign = FUNCTIONS["det"](u) * FUNCTIONS["det"](vh)
    return _matrix(g * sign) * matmul(u * _columns(others), vh)


def _slogdet(g, A):
    return _matrix(g[1]) * _t(FUNCTIONS["inv"](A))


def _vector_norm(g, x, out, ord, dim, keepdim):
    dims = tuple(range(x.ndim)) if dim is None else dim
    g, whole = (reduce.spread(v, x.shape, dims, keepdim) for v in (g, out))
    sign = elementwise.sign(x)
    if ord == 0:
        return g * 0
    if ord == 1:
        return g * sign
    if abs(ord) == float("inf"):
        same = elementwise.cast(elementwise.eq(elementwise.abs(x), whole), x.dtype)
        return g * sign * same / reduce.sum(same, dims, keepdim=True)
    if ord == 2:
        return x * _ratio(g * elementwise.cast(elementwise.ne(whole, 0), g.dtype), whole)
    none = elementwise.logical_or(elementwise.eq(x, 0), elementwise.eq(whole, 0))
    size = elementwise.abs(elementwise.where(none, 1.0, x))
    whole = elementwise.where(none, 1.0, whole)
    return elementwise.where(none, 0.0, g * sign * (size / whole) ** (ord - 1))


# ---- samplers --------------------------------------------------------------------------------------------------------


def _batch(s):
    return s.pick(((), (), (2,), (1, 2)))


def _general(s, m=None, n=None):
    """Matrices of full rank whose singular values are apart: 4, 8, 12 ... on the diagonal, noise elsewhere."""
    import numpy as np

    most = 3 if s.smooth else 6
    m = s.integer(1, most) if m is None else m
    n = s.integer(1, most) if n is None else n
    x = s.array((*_batch(s), m, n), low=-1, high=1)
    return (x + 4 * np.eye(m, n) * np.arange(1, n + 1)).astype(x.dtype)


def _square(s):
    n = s.integer(1, 3 if s.smooth else 6)
    return _general(s, n, n)


def _one(draw, **options):
    return lambda s, dtype: ((draw(s),), {k: s.pick(v) for k, v in options.items()})


def _symmetric(s):
    x = _square(s)
    return (x + x.swapaxes(-1, -2)) / 2


def _solve_domain(s, dtype):
    A, left = _square(s), s.boolean()
    n, k = A.shape[-1], s.integer(1, 3)
    if left and s.boolean():
        return (A, s.array(A.shape[:-1] if s.boolean() else (n,), low=-2, high=2)), {}
    shape = (n, k) if left else (*A.shape[:-2], k, n)  # a B that is no batch might be taken for vectors
    return (A, s.array(shape, low=-2, high=2)), {"left": left}


def _triangular_domain(s, dtype):
    A, left = _square(s), s.boolean()
    n, k = A.shape[-1], s.integer(1, 3)
    B = s.array((n, k) if left else (k, n), low=-2, high=2)
    return (A, B), {"upper": s.boolean(), "left": left, "unitriangular": s.boolean()}


def _lstsq_domain(s, dtype):
    A = _general(s)
    shape = s.pick((A.shape[:-1], (*A.shape[:-1], s.integer(1, 3))))
    return (A, s.array(shape, low=-2, high=2)), {}


def _norm_domain(s, dtype):
    x = s.array(s.shape(min_dims=1, empty=False), low=-9, high=9)
    fields = {"ord": s.pick((2, 2, 1, 3, 0.5, float("inf"), -float("inf"))), "dim": s.dims(x.ndim)}
    return (x,), fields | {"keepdim": s.boolean()}


# ---- references ------------------------------------------------------------------------------------------------------


def _solve_ref(np, A, B, left=True):
    if _vectors(A, B.shape):
        return np.linalg.solve(A, B[..., None])[..., 0]
    return np.linalg.solve(A, B) if left else np.linalg.solve(A.mT, B.mT).mT


def _triangular_ref(np, A, B, upper, left=True, unitriangular=False):
    a = np.triu(A) if upper else np.tril(A)
    if unitriangular:
        a = np.where(np.eye(A.shape[-1], dtype=bool), 1.0, a)
    return np.linalg.solve(a, B) if left else np.linalg.solve(a.mT, B.mT).mT


def _lstsq_ref(np, A, B, rcond=None):
    vectors = _vectors(A, B.shape)
    b = B[..., None] if vectors else B
    x = np.matmul(np.linalg.pinv(A), b)
    s = np.linalg.svd(A, compute_uv=False)
    residuals = np.square(np.matmul(A, x) - b).sum(-2) if A.shape[-2] > A.shape[-1] else np.zeros(0)
    rank = np.full(A.shape[:-2], s.shape[-1])
    return (x[..., 0], residuals[..., 0] if residuals.size else residuals, rank, s) if vectors else (
        x, residuals, rank, s
    )  # fmt: skip


def _matrix_norm_ref(np, A, ord="fro", dim=(-2, -1), keepdim=False):
    return np.linalg.norm(A, ord, dim, keepdim)


def _vector_norm_ref(np, x, ord=2, dim=None, keepdim=False):
    return np.linalg.vector_norm(x, axis=dim, ord=ord, keepdims=keepdim)


def _linalg(name, **fields):
    """What `define` takes for a function of NumPy's that means the same."""

    def ref(np, A, *args, **kwargs):
        return getattr(np.linalg, name)(A, *args, **kwargs)

    return {"ref": ref, **fields}


def _positive(s):
    import numpy as np

    x = _square(s)
    return (np.matmul(x, x.swapaxes(-1, -2)) / 4 + np.eye(x.shape[-1])).astype(x.dtype)


CHOLESKY = _linalg("cholesky", domain=_one(_positive, upper=(False, True)), vjp={"A": _cholesky})
QR = _linalg("qr", domain=_one(_general, mode=("reduced",)), vjp={"A": _qr})
SVD = _linalg("svd", domain=_one(_general, full_matrices=(False,)), vjp={"A": _svd})
SVDVALS = _linalg("svdvals", domain=_one(_general), vjp={"A": _svdvals})
EIGH = _linalg("eigh", domain=_one(_symmetric, UPLO=("L", "U")), vjp={"A": _eigh})
EIGVALSH = _linalg("eigvalsh", domain=_one(_symmetric, UPLO=("L", "U")), vjp={"A": _eigvalsh})
SOLVE = {"ref": _solve_ref, "arity": 2, "domain": _solve_domain, "vjp": {("A", "B"): _solve}}
SOLVE_TRIANGULAR = {"ref": _triangular_ref, "arity": 2, "domain": _triangular_domain}
SOLVE_TRIANGULAR |= {"vjp": {("A", "B"): _solve_triangular}}
INV = _linalg("inv", domain=_one(_square), vjp={"A": _inv})
PINV = _linalg("pinv", domain=_one(_general), vjp={"A": _pinv})
LSTSQ = {"ref": _lstsq_ref, "arity": 2, "domain": _lstsq_domain, "vjp": {("A", "B"): _lstsq}}
DET = _linalg("det", domain=_one(_square), vjp={"A": _det})
SLOGDET = _linalg("slogdet", domain=_one(_square), vjp={"A": _slogdet})
MATRIX_RANK = _linalg("matrix_rank", domain=_one(_general), vjp={})
ORDERS = ("fro", "nuc", 1, -1, 2, -2, float("inf"), -float("inf"))
MATRIX_NORM = {"ref": _matrix_norm_ref, "domain": _one(_general, ord=ORDERS, keepdim=(False, True))}
VECTOR_NORM = {"ref": _vector_norm_ref, "domain": _norm_domain, "vjp": {"x": _vector_norm}}
MATRIX_POWER = _linalg("matrix_power", domain=_one(_square, n=(0, 1, 2, 5, -1, -2)))
