"""Linear algebra on a GPU: what defines each result, errors, batches, and matrices that are hard.

Bounds are those of tests/ops/test_lapack.py, 20 n u of the norm: Householder's reflections and elimination are backward
stable within n u (Higham 2002, theorems 9.3 times the growth of pivots, 10.3 and 19.4), and a sweep of rotations, of
which some ten are made, errs by n u as well (J. Demmel, K. Veselic, Jacobi's method is more accurate than QR, 1992).
"""

import numpy as np
import pytest

import tensorlib
from tensorlib.errors import DeviceError, LinAlgError
from tensorlib.ops import lapack

UNIT = {"f4": 2.0**-24, "f8": 2.0**-53}
DTYPES = pytest.mark.parametrize("dtype", UNIT)
# of one panel or block, of several, ragged
SIZES = pytest.mark.parametrize("n, dtype", [(1, "f4"), (5, "f8"), (19, "f8"), (33, "f4")])
GPU = "cuda:0"


def matrix(*shape, dtype="f4", seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def positive(n, dtype):
    x = matrix(2, n, n, dtype="f8")
    return (x @ x.swapaxes(-1, -2) + np.eye(n)).astype(dtype)


def on(x):
    """On the GPU, every other row and column of something larger."""
    big = np.zeros((*x.shape[:-2], 2 * x.shape[-2], 2 * x.shape[-1]), x.dtype)
    big[..., ::2, 1::2] = x
    return tensorlib.from_numpy(big).to(GPU)[..., ::2, 1::2] if x.size else tensorlib.from_numpy(x).to(GPU)


def off(*results):
    """On the CPU in f64; results are contiguous."""
    assert all(x.is_contiguous() and str(x.device) == GPU for x in results)
    found = [x.to("cpu").numpy().astype("f8") for x in results]
    return found if len(found) > 1 else found[0]


def close(found, want, dtype, scale=None):
    want = np.broadcast_to(want, found.shape)
    n, scale = max(found.shape[-2:]), np.abs(want).max() if scale is None else scale
    assert np.abs(found - want).max(initial=0) <= 20 * max(n, 8) * UNIT[dtype] * scale


def orthogonal(q, dtype):
    close(q.swapaxes(-1, -2) @ q, np.eye(q.shape[-1]), dtype)


@SIZES
def test_cholesky(n, dtype):
    a = positive(n, dtype)
    low = off(lapack.cholesky(on(np.tril(a))))
    close(low @ low.swapaxes(-1, -2), a, dtype)
    assert (low == np.tril(low)).all()
    up = off(lapack.cholesky(on(np.triu(a)), upper=True))
    close(up.swapaxes(-1, -2) @ up, a, dtype)
    assert (up == np.triu(up)).all()


@SIZES
def test_equations(n, dtype):
    """The residual of elimination with pivots: n u |L| |U| |x|, and |L||U| is some n times |A| at most in practice."""
    a, b = matrix(2, n, n, dtype=dtype), matrix(3, 1, n, 2, dtype=dtype, seed=1)
    x = off(lapack.solve(on(a), on(b)))
    assert x.shape == (3, 2, n, 2)
    close(a @ x, b, dtype, n * np.abs(a).max() * np.abs(x).max())
    inverse = off(lapack.inv(on(a)))
    close(a @ inverse, np.eye(n), dtype, n * np.abs(a).max() * np.abs(inverse).max())
    y = off(lapack.solve(on(a), on(b.swapaxes(-1, -2)), left=False))
    close(y @ a, b.swapaxes(-1, -2), dtype, n * np.abs(a).max() * np.abs(y).max())
    sign, log = np.linalg.slogdet(a.astype("f8"))
    bound = 20 * max(n, 8) * UNIT[dtype] * np.linalg.cond(a.astype("f8"))
    assert (np.abs(off(lapack.det(on(a))) / (sign * np.exp(log)) - 1) <= bound).all()
    found = off(*lapack.slogdet(on(a)))
    assert (found[0] == sign).all() and (np.abs(found[1] - log) <= bound).all()


@DTYPES
@pytest.mark.parametrize("n", [5, 70])
def test_triangular_systems(n, dtype):
    """Componentwise: n u |T| |x| (Higham 2002, theorem 8.5). What is not to be read is NaN."""
    full = matrix(2, n, n, dtype=dtype) * 0.1 + 2 * np.eye(n, dtype=dtype)
    for upper, left, unit in ((0, 1, 0), (1, 1, 1), (0, 0, 1), (1, 0, 0)):
        half, k = np.triu if upper else np.tril, 0 if not unit else 1 if upper else -1
        given = np.where(half(np.ones((n, n)), k), full, np.nan).astype(dtype)
        t = half(full, k) + (np.eye(n) if unit else 0)
        b = matrix(n, 3, dtype=dtype, seed=1) if left else matrix(3, n, dtype=dtype, seed=1)
        options = {"upper": bool(upper), "left": bool(left), "unitriangular": bool(unit)}
        x = off(lapack.solve_triangular(on(given), on(b), **options))
        sizes = np.abs(t) @ np.abs(x) if left else np.abs(x) @ np.abs(t)
        assert (np.abs((t @ x if left else x @ t) - b) <= 4 * (n + 2) * UNIT[dtype] * (sizes + np.abs(b))).all()


@DTYPES
@pytest.mark.parametrize("m, n", [(1, 1), (7, 4), (4, 7), (40, 33), (20, 40), (300, 3)])
def test_qr(m, n, dtype):
    a = matrix(2, m, n, dtype=dtype)
    for mode, k in (("reduced", min(m, n)), ("complete", m)):
        q, r = off(*lapack.qr(on(a), mode))
        assert q.shape == (2, m, k) and (r == np.triu(r)).all()
        close(q @ r, a, dtype, np.linalg.norm(a[0], 2) + np.linalg.norm(a[1], 2))
        orthogonal(q, dtype)
    want = np.linalg.qr(a.astype("f8"))[1]
    inside = np.abs(want[..., range(min(m, n)), range(min(m, n))]).min() > 0.1  # whose signs rounding cannot change
    assert not inside or (np.sign(r[..., 0, 0]) == np.sign(want[..., 0, 0])).all()


@DTYPES
def test_panels_of_many_warps(dtype, monkeypatch):
    from kernels_triton import householder
    from kernels_triton import lapack as room

    monkeypatch.setattr(room, "TALL", 0)
    monkeypatch.setattr(householder, "TALL", 0)
    test_equations(19, dtype)
    test_qr(19, 18, dtype)


HARD = {
    "ones": lambda n: np.ones((n, n)),
    "zero": lambda n: np.zeros((n, n)),
    "graded": lambda n: matrix(n, n) * np.logspace(0, -35, n),
    "pairs": lambda n: np.kron(np.eye(n // 2), [[0, 3], [3, 0]]),
    "huge": lambda n: matrix(n, n) * 1e37,
    "tiny": lambda n: matrix(n, n) * 1e-37,
    "rank 2": lambda n: matrix(n, 2) @ matrix(2, n),
}


def check_svd(a, full=False):
    dtype, (m, n) = a.dtype.str[1:], a.shape[-2:]
    k, s_want = min(m, n), np.linalg.svd(a.astype("f8"), compute_uv=False)
    u, s, vh = off(*lapack.svd(on(a), full_matrices=full))
    assert u.shape[-1] == (m if full else k) and vh.shape[-2] == (n if full else k)
    largest = s_want.max()
    close(u[..., :k] * s[..., None, :] @ vh[..., :k, :], a, dtype, largest)
    close(s, s_want, dtype, largest)
    orthogonal(u, dtype)
    orthogonal(vh.swapaxes(-1, -2), dtype)
    assert (s >= 0).all() and (np.diff(s) <= 0).all()
    close(off(lapack.svdvals(on(a))), s_want, dtype, largest)


@DTYPES
@pytest.mark.parametrize("m, n, full", [(1, 1, False), (9, 9, False), (7, 4, True), (4, 7, True), (20, 3, False)])
def test_svd(m, n, full, dtype):
    check_svd(matrix(2, m, n, dtype=dtype), full)


@pytest.mark.parametrize("kind", HARD)
def test_svd_of_what_is_hard(kind):
    with np.errstate(under="ignore"):
        check_svd(HARD[kind](8).astype("f4"))


def check_eigh(a, UPLO="L"):
    dtype, want = a.dtype.str[1:], np.linalg.eigvalsh(a.astype("f8"))
    other = np.where((np.tril if UPLO == "L" else np.triu)(np.ones(a.shape[-2:])), a, np.nan).astype(a.dtype)
    values, v = off(*lapack.eigh(on(other), UPLO))
    close(values, want, dtype, np.abs(want).max())
    close(a @ v, v * values[..., None, :], dtype, np.abs(want).max())
    orthogonal(v, dtype)
    assert (np.diff(values) >= 0).all()
    close(off(lapack.eigvalsh(on(other), UPLO)), want, dtype, np.abs(want).max())


@DTYPES
@pytest.mark.parametrize("n", [1, 2, 9])
def test_eigh(n, dtype):
    a = matrix(2, n, n, dtype=dtype)
    check_eigh(a + a.swapaxes(-1, -2))
    check_eigh(positive(n, dtype), "U")


@pytest.mark.parametrize("kind", HARD)
def test_eigh_of_what_is_hard(kind):
    with np.errstate(under="ignore"):
        a = HARD[kind](8).astype("f4") / 2
    check_eigh(a + a.T)


@DTYPES
def test_larger_matrices_take_a_launch_for_each_round(dtype, monkeypatch, device):
    from kernels_triton import jacobi

    monkeypatch.setattr(jacobi, "SMALL", 0)
    before = device.launches
    check_svd(matrix(2, 5, 4, dtype=dtype))
    check_eigh(positive(3, dtype))
    assert device.launches - before > 50


def test_what_follows_from_singular_values():
    a = matrix(2, 7, 3, dtype="f8") @ matrix(2, 3, 5, dtype="f8", seed=1)
    close(off(lapack.pinv(on(a))), np.linalg.pinv(a, rcond=1e-12), "f8", 1e3)
    assert lapack.matrix_rank(on(a)).to("cpu").tolist() == [3, 3]
    b, d = matrix(2, 7, 2, dtype="f8"), np.diag([4.0, 1.0, -0.25]).astype("f4")
    found, want = lapack.lstsq(on(a[..., :3]), on(b)), lapack.lstsq(*map(tensorlib.from_numpy, (a[..., :3].copy(), b)))
    for x, y in zip(found, want):
        assert x.dtype is y.dtype
        close(np.atleast_2d(off(x)), np.atleast_2d(y.numpy()), "f8", 1e3)
    assert lapack.matrix_rank(on(d), atol=0.1, rtol=0.2, hermitian=True).item() == 2
    assert lapack.matrix_rank(on(d), atol=tensorlib.tensor([0.5, 2.0]).to(GPU)).to("cpu").tolist() == [2, 1]
    close(off(lapack.pinv(on(d), hermitian=True)), np.diag([0.25, 1, -4]), "f4")
    assert lapack.lstsq(on(np.ones((4, 2), "f4")), on(np.ones((4, 1), "f4"))).residuals.shape == (0,)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (0, 2, 2), (2, 0, 0)])
def test_nothing(shape):
    names = "qr svd svdvals pinv matrix_rank".split()
    names += "cholesky eigh eigvalsh inv det slogdet".split() if shape[-1] == shape[-2] else []
    for name in names:
        x = np.zeros(shape, "f4")
        found, want = (getattr(lapack, name)(tensorlib.from_numpy(x).to(d)) for d in (GPU, "cpu"))
        for f, w in zip(*((y,) if hasattr(y, "buffer") else y for y in (found, want)), strict=True):
            assert f.shape == w.shape and f.dtype is w.dtype
            assert np.array_equal(f.to("cpu").numpy(), w.numpy())


def test_what_has_no_result():
    bad = np.stack([np.eye(20), np.diag([1.0] * 17 + [0, 1, 1]), np.eye(20)]).astype("f4")
    for name in ("inv", "cholesky"):
        with pytest.raises(LinAlgError, match=f"{name}: got a matrix with this: (Singular|Matrix is not positive)"):
            getattr(lapack, name)(on(bad))
    with pytest.raises(LinAlgError, match=r"solve: got .*Singular.*lstsq"):
        lapack.solve(on(bad), on(np.ones((20, 1), "f4")))
    assert off(lapack.det(on(bad))).tolist() == [1, 0, 1]
    sign, log = off(*lapack.slogdet(on(bad)))
    assert sign.tolist() == [1, 0, 1] and log.tolist() == [0, -np.inf, 0]
    x = lapack.solve_triangular(on(np.zeros((2, 2), "f4")), on(np.ones((2, 1), "f4")), upper=False)
    assert off(x)[0, 0] == np.inf


def test_operands_of_two_devices_are_refused():
    with pytest.raises(DeviceError, match="solve: got operands on cuda:0 and cpu"):
        lapack.solve(on(np.eye(3, dtype="f4")), tensorlib.ones(3))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinities_end(value):
    a = np.eye(3, dtype="f4")
    a[2, 1] = a[1, 2] = value
    for name in ("svd", "svdvals", "eigh", "eigvalsh", "pinv", "matrix_rank"):
        with pytest.raises(LinAlgError, match=rf"{name}: got .*did not converge.*NaN and infinities"):
            getattr(lapack, name)(on(a))
    with pytest.raises(LinAlgError, match="positive definite"):
        lapack.cholesky(on(a))
    assert np.isnan(off(*lapack.qr(on(a)))[1]).any()
    np.testing.assert_array_equal(off(lapack.det(on(a))), -value)


@pytest.mark.parametrize("ord", [2, 1, 3, 0.5, 0, float("inf"), -float("inf")])
def test_norms_of_vectors(ord):
    x = matrix(3, 40)
    x[1, 1], x[2, 2] = 0, np.nan
    for dim in (1, None):
        both = (lapack.vector_norm(tensorlib.from_numpy(x).to(d), ord, dim) for d in (GPU, "cpu"))
        found, want = (v.to("cpu").numpy() for v in both)
        np.testing.assert_allclose(found, want, rtol=50 * UNIT["f4"])


def test_products_inside_are_in_full_precision():
    """Whatever precision is set for others: tf32 would be off by 2**-11."""
    tensorlib.set_float32_matmul_precision("medium")
    try:
        a = positive(40, "f4")
        low = off(lapack.cholesky(on(a)))
        close(low @ low.swapaxes(-1, -2), a, "f4")
    finally:
        tensorlib.set_float32_matmul_precision("highest")
