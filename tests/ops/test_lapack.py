"""Linear algebra: the identities that define each result, NumPy's results, batches, errors.

Bounds: a backward-stable algorithm on n x n matrices errs by a modest multiple of n u times the norm (Golub and Van
Loan, section 2.7; Higham, chapters 9, 10 and 19): 20 n u is allowed, times the condition number where results are
compared.
"""

import numpy as np
import pytest

import tensorlib
from tensorlib import dtype as D
from tensorlib.capture import Capture
from tensorlib.errors import DTypeError, NoKernel, ShapeError
from tensorlib.ops import lapack

ROUNDING = {"f32": 2.0**-24, "f64": 2.0**-53}
DTYPES = pytest.mark.parametrize("dtype", ROUNDING)


def matrices(*shape, dtype="f64", seed=0):
    return tensorlib.from_numpy(np.random.default_rng(seed).normal(size=shape)).to(dtype)


def symmetric(*shape, dtype="f64", shift=0.0):
    a = matrices(*shape, shape[-1], dtype="f64")
    return (a @ a.mT + shift * tensorlib.eye(shape[-1], dtype="f64")).to(dtype)


def wide(x):
    return x.numpy().astype(np.float64)


def close(found, want, dtype, scale=None, condition=1.0):
    found, want = np.asarray(found), np.asarray(want)
    assert found.shape == want.shape
    n = max(found.shape[-2:], default=1) if found.ndim else 1
    scale = np.abs(want).max(initial=1e-300) if scale is None else scale
    assert np.abs(found - want).max(initial=0) <= 20 * max(n, 8) * ROUNDING[dtype] * scale * condition


def same(found, want, dtype, condition=1.0):
    """Of the dtype, contiguous, and NumPy's float64 result up to rounding."""
    assert found.dtype is D.get(dtype) and found.is_contiguous() and not found.buffer.shared
    close(wide(found), want, dtype, condition=condition)


# ---- decompositions --------------------------------------------------------------------------------------------------


@DTYPES
def test_cholesky(dtype):
    a = symmetric(3, 12, dtype=dtype, shift=1.0)
    low = lapack.cholesky(a)
    close(wide(low) @ wide(low).swapaxes(-1, -2), wide(a), dtype)
    assert (np.triu(wide(low), 1) == 0).all() and low.dtype is D.get(dtype)
    up = lapack.cholesky(a, upper=True)
    close(wide(up).swapaxes(-1, -2) @ wide(up), wide(a), dtype)
    with pytest.raises(lapack.LinAlgError, match=r"cholesky: got .*positive definite.*identity"):
        lapack.cholesky(-a)


@DTYPES
@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (2, 3, 5, 5), (0, 3)])
def test_qr(dtype, shape):
    a = matrices(*shape, dtype=dtype)
    for mode, k in (("reduced", min(shape[-2:])), ("complete", shape[-2])):
        q, r = lapack.qr(a, mode)
        assert q.shape == (*shape[:-1], k) and r.shape == (*shape[:-2], k, shape[-1])
        close(wide(q) @ wide(r), wide(a), dtype)
        close(wide(q).swapaxes(-1, -2) @ wide(q), np.broadcast_to(np.eye(k), (*shape[:-2], k, k)), dtype)
        assert (np.tril(wide(r), -1) == 0).all()
    found = lapack.qr(a, mode="r")
    assert found.Q.shape == (0,) and (np.abs(wide(found.R) - wide(lapack.qr(a).R)) < 1e-4).all()


@DTYPES
@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (2, 3, 5, 5)])
def test_svd(dtype, shape):
    a, k = matrices(*shape, dtype=dtype), min(shape[-2:])
    u, s, vh = (wide(x) for x in lapack.svd(a, full_matrices=False))
    close(u * s[..., None, :] @ vh, wide(a), dtype)
    assert (np.diff(s) <= 0).all() and (s >= 0).all()
    full = lapack.svd(a)
    assert full.U.shape[-1] == shape[-2] and full.Vh.shape[-2] == shape[-1]
    close(wide(full.U)[..., :k] * s[..., None, :] @ wide(full.Vh)[..., :k, :], wide(a), dtype)
    same(lapack.svdvals(a), np.linalg.svd(wide(a), compute_uv=False), dtype)
    with pytest.raises(lapack.LinAlgError, match="svd"):
        lapack.svd(a * float("nan"))


@DTYPES
def test_eigh(dtype):
    a = symmetric(4, 9, dtype=dtype)
    values, vectors = (wide(x) for x in lapack.eigh(a))
    close(wide(a) @ vectors, vectors * values[..., None, :], dtype, np.abs(values).max())
    close(vectors.swapaxes(-1, -2) @ vectors, np.broadcast_to(np.eye(9), (4, 9, 9)), dtype)
    half = tensorlib.triu(a)  # only the triangle named is read
    same(lapack.eigvalsh(half, "U"), np.linalg.eigvalsh(wide(a)), dtype)
    close(wide(lapack.eigh(half, UPLO="U").eigenvalues), values, dtype)
    with pytest.raises(ShapeError, match="UPLO"):
        lapack.eigh(a, "X")


# ---- equations -------------------------------------------------------------------------------------------------------


@DTYPES
def test_solve_and_inverse(dtype):
    a = matrices(2, 1, 8, 8, dtype=dtype)
    condition = np.linalg.cond(wide(a)).max()
    b = matrices(3, 8, 2, dtype=dtype, seed=1)
    same(lapack.solve(a, b), np.linalg.solve(wide(a), wide(b)), dtype, condition)
    left = lapack.solve(a, b.mT, left=False)
    same(left, np.linalg.solve(wide(a).swapaxes(-1, -2), wide(b)).swapaxes(-1, -2), dtype, condition)
    single = lapack.solve(a[0, 0], b[0, :, 0])
    close(wide(single), np.linalg.solve(wide(a[0, 0]), wide(b[0, :, 0])), dtype, condition=condition)
    rows = lapack.solve(a[:, 0], b[:2, :, 0])  # (2, 8): a vector for each matrix
    want = np.linalg.solve(wide(a[:, 0]), wide(b[:2, :, 0])[..., None])[..., 0]
    close(wide(rows), want, dtype, condition=condition)
    inverse = lapack.inv(a)
    close(wide(inverse) @ wide(a), np.broadcast_to(np.eye(8), a.shape), dtype, 1, condition)
    with pytest.raises(lapack.LinAlgError, match=r"inv: got .*Singular.*pinv"):
        lapack.inv(tensorlib.zeros(3, 3, dtype=dtype))
    with pytest.raises(lapack.LinAlgError, match=r"solve: got .*Singular.*lstsq"):
        lapack.solve(tensorlib.ones(3, 3, dtype=dtype), tensorlib.ones(3, dtype=dtype))


@DTYPES
@pytest.mark.parametrize("n", [1, 5, 100])
@pytest.mark.parametrize("upper", [True, False])
@pytest.mark.parametrize("left", [True, False])
def test_solve_triangular(dtype, n, upper, left):
    full = matrices(2, n, n, dtype=dtype) * 0.1 + tensorlib.eye(n, dtype=dtype) * 2
    b = matrices(n, 3, dtype=dtype, seed=1) if left else matrices(3, n, dtype=dtype, seed=1)
    for unit in (False, True):
        # the residual of substitution is at most n u |T| |x|, componentwise (Higham, theorem 8.5)
        t = (np.triu if upper else np.tril)(wide(full))
        if unit:
            t[:, range(n), range(n)] = 1
        x = wide(lapack.solve_triangular(full, b, upper=upper, left=left, unitriangular=unit))
        residual = (t @ x if left else x @ t) - wide(b)
        bound = (np.abs(t) @ np.abs(x) if left else np.abs(x) @ np.abs(t)) + np.abs(wide(b))
        assert x.shape == (2, *b.shape) and (np.abs(residual) <= 4 * (n + 2) * ROUNDING[dtype] * bound).all()


def test_solve_triangular_is_not_stopped_by_zeros():
    x = lapack.solve_triangular(tensorlib.zeros(2, 2), tensorlib.ones(2, 1), upper=False)
    assert x[0, 0].item() == float("inf")


@DTYPES
@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_lstsq(dtype, shape):
    a, b = matrices(3, *shape, dtype=dtype), matrices(3, shape[0], 2, dtype=dtype, seed=1)
    found = lapack.lstsq(a, b)
    for i in range(3):
        want = np.linalg.lstsq(wide(a[i]), wide(b[i]), rcond=None)
        condition = np.linalg.cond(wide(a[i])) ** 2  # of least squares, where the residual is large
        close(wide(found.solution[i]), want[0], dtype, condition=condition)
        close(wide(found.singular_values[i]), want[3], dtype)
        assert found.rank[i].item() == want[2] == 4
        if shape[0] > shape[1]:
            close(wide(found.residuals[i]), want[1], dtype, condition=condition)
    assert found.residuals.shape == ((3, 2) if shape[0] > shape[1] else (0,))
    single = lapack.lstsq(a[0], b[0, :, 0])
    close(wide(single.solution), wide(found.solution[0, :, 0]), dtype, condition=condition)
    deficient = lapack.lstsq(tensorlib.ones(4, 2, dtype=dtype), tensorlib.ones(4, dtype=dtype))
    close(wide(deficient.solution), [0.5, 0.5], dtype)
    assert deficient.rank.item() == 1 and deficient.residuals.shape == (0,)


@DTYPES
def test_pinv_and_rank(dtype):
    a = matrices(2, 7, 3, dtype=dtype) @ matrices(2, 3, 5, dtype=dtype, seed=1)  # of rank 3
    p, m = wide(lapack.pinv(a)), wide(a)
    norm = np.linalg.norm(m, 2, (-2, -1)).max() * np.linalg.norm(p, 2, (-2, -1)).max()
    close(m @ p @ m, m, dtype, condition=norm)
    close(p @ m @ p, p, dtype, condition=norm)
    assert lapack.matrix_rank(a).tolist() == [3, 3] and lapack.matrix_rank(a).dtype is D.i64
    diagonal = tensorlib.tensor([[4.0, 0, 0], [0, 1.0, 0], [0, 0, 0.25]], dtype=dtype)
    assert lapack.matrix_rank(diagonal).item() == 3 and lapack.matrix_rank(diagonal, atol=0.5).item() == 2
    assert lapack.matrix_rank(diagonal, rtol=0.5).item() == 1
    assert lapack.matrix_rank(diagonal, atol=0.1, rtol=0.2, hermitian=True).item() == 2
    assert lapack.pinv(diagonal, atol=2.0)[0].tolist() == [0.25, 0, 0]
    assert lapack.matrix_rank(diagonal, atol=tensorlib.tensor([0.5, 2.0], dtype=dtype)).tolist() == [2, 1]


# ---- numbers ---------------------------------------------------------------------------------------------------------


@DTYPES
def test_determinants(dtype):
    a = matrices(2, 3, 6, 6, dtype=dtype)
    want, condition = np.linalg.det(wide(a)), np.linalg.cond(wide(a)).max()
    same(lapack.det(a), want, dtype, condition)
    sign, log = lapack.slogdet(a)
    assert (sign.numpy() == np.sign(want)).all()
    close(wide(log), np.log(np.abs(want)), dtype, condition=condition)
    singular = lapack.slogdet(tensorlib.zeros(3, 3, dtype=dtype))
    assert (singular.sign.item(), singular.logabsdet.item()) == (0, -float("inf"))
    assert lapack.det(tensorlib.eye(3, dtype=dtype)).shape == () and lapack.det(a[:0]).shape == (0, 3)


@DTYPES
@pytest.mark.parametrize("ord", ["fro", "nuc", 1, -1, 2, -2, float("inf"), -float("inf")])
def test_matrix_norm(dtype, ord):
    a = matrices(4, 3, 5, dtype=dtype)
    same(lapack.matrix_norm(a, ord), np.linalg.norm(wide(a), ord, (1, 2)), dtype)
    same(lapack.matrix_norm(a, ord, (0, -1), keepdim=True), np.linalg.norm(wide(a), ord, (0, 2), True), dtype)
    same(lapack.norm(a[0], ord), np.linalg.norm(wide(a[0]), ord), dtype)


@DTYPES
def test_vector_norm(dtype):
    a = matrices(4, 3, 5, dtype=dtype)
    for ord in (2, 1, 3, 0.5, 0, float("inf"), -float("inf")):
        same(lapack.vector_norm(a, ord, 1), np.linalg.vector_norm(wide(a), axis=1, ord=ord), dtype)
        want = np.linalg.vector_norm(wide(a), axis=-1, keepdims=True, ord=ord)
        same(lapack.norm(a, ord, dim=-1, keepdim=True), want, dtype)
        same(lapack.vector_norm(a, ord), np.linalg.vector_norm(wide(a), ord=ord), dtype)
    same(lapack.norm(a), np.sqrt((wide(a) ** 2).sum()), dtype)
    same(lapack.norm(a, dim=(0, 2)), np.sqrt((wide(a) ** 2).sum((0, 2))), dtype)


@DTYPES
def test_matrix_power(dtype):
    a = matrices(2, 4, 4, dtype=dtype)
    for n in (0, 1, 2, 7, -1, -3):
        condition = np.linalg.cond(wide(a)).max() ** abs(n)
        same(lapack.matrix_power(a, n), np.linalg.matrix_power(wide(a), n), dtype, condition)
    power = lapack.matrix_power(a, 1)
    power[...] = 0
    assert (a != 0).all()  # a copy, not a view
    with pytest.raises(DTypeError, match="matrix_power"):
        lapack.matrix_power(a, 0.5)


# ---- what all have in common -----------------------------------------------------------------------------------------

MATRIX_OPS = "cholesky qr svd svdvals eigh eigvalsh inv pinv matrix_rank det slogdet matrix_norm".split()
SQUARE_OPS = "cholesky eigh eigvalsh inv det slogdet".split()


@pytest.mark.parametrize("name", MATRIX_OPS)
def test_refusals(name):
    op = getattr(lapack, name)
    for dtype in ("f16", "bf16", "i64"):
        with pytest.raises(DTypeError, match=rf"{name}: got dtype {dtype}; expected f32 or f64"):
            op(tensorlib.eye(3, dtype=dtype))
    with pytest.raises(ShapeError, match=rf"{name}: got shape \(3,\)"):
        op(tensorlib.ones(3))
    if name in SQUARE_OPS:
        with pytest.raises(ShapeError, match=rf"{name}: got shape \(2, 3\); expected square"):
            op(tensorlib.ones(2, 3))
    with Capture(), pytest.raises(NoKernel, match=f"{name}: got a capture"):
        op(tensorlib.eye(3))


def test_refusals_of_pairs():
    eye = tensorlib.eye(3)
    for op in (lapack.solve, lapack.lstsq):
        with pytest.raises(DTypeError, match="f32 and f64"):
            op(eye, tensorlib.ones(3, dtype="f64"))
        with pytest.raises(ShapeError, match="3 rows of B"):
            op(eye, tensorlib.ones(4))
        with pytest.raises(ShapeError, match="broadcast"):
            op(eye.expand(2, 3, 3), tensorlib.ones(3, 3, 1))
    with pytest.raises(ShapeError, match="left=False"):
        lapack.solve(eye, tensorlib.ones(3), left=False)
    with pytest.raises(ShapeError, match="solve_triangular"):
        lapack.solve_triangular(eye, tensorlib.ones(3), upper=True)
    for arguments in ({"ord": 3}, {"dim": (0, 0)}, {"dim": (0, 5)}):
        with pytest.raises(ShapeError, match="matrix_norm"):
            lapack.matrix_norm(eye, **arguments)
    with pytest.raises(ShapeError, match="matrix_norm"):
        lapack.matrix_norm(tensorlib.ones(0, 3), -2)
    for ord in ("fro", "nuc", 1, 2, float("inf")):
        assert lapack.matrix_norm(tensorlib.ones(2, 0, 3), ord).tolist() == [0, 0]
    with pytest.raises(ShapeError, match="qr: got mode"):
        lapack.qr(eye, "full")


def test_strides_and_sharing():
    a = symmetric(5, 6, shift=1.0)
    view = tensorlib.zeros(5, 12, 12, dtype="f64")[:, ::2, 1::2].mT
    view[...] = a
    for name in MATRIX_OPS:
        plain, strided = (getattr(lapack, name)(x) for x in (a, view))
        for p, s in zip(*((x,) if hasattr(x, "buffer") else x for x in (plain, strided))):
            assert (abs(p - s) <= 1e-9).all()
    assert not view.buffer.shared  # NumPy has let go of it
