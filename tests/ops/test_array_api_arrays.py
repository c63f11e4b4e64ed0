"""Functions of the standard on whole arrays against NumPy: shapes, searching, sorting, sets, statistics, linalg."""

import math

import numpy as np
import pytest

from tensorlib import array_api as xp
from tensorlib.errors import DTypeError, ShapeError

SHAPES = [(), (0,), (3,), (2, 3), (3, 1), (2, 0, 3), (2, 3, 4)]
RNG = np.random.default_rng(7)


def draw(shape, dtype="int16"):
    return RNG.integers(-9, 9, shape).astype(dtype) if dtype != "bool" else RNG.random(shape) < 0.5


def axes(ndim):
    return range(-ndim, ndim)


def same(found, want, rtol=0.0):
    """Equal, or within rtol; tuples element by element."""
    if isinstance(want, (tuple, list)):
        assert len(found) == len(want)
        for f, w in zip(found, want, strict=True):
            same(f, w, rtol)
        return
    assert type(found) is xp.NDArray
    want = np.asarray(want)
    assert (found.numpy().dtype, found.shape) == (want.dtype, want.shape)
    if rtol:
        np.testing.assert_allclose(found.numpy(), want, rtol=rtol, atol=rtol)
    else:
        np.testing.assert_array_equal(found.numpy(), want)


# ---- manipulation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_manipulation(shape):
    a = draw(shape)
    x, nd = xp.asarray(a), len(shape)
    same(xp.flip(x), np.flip(a))
    same(xp.roll(x, 2), np.roll(a, 2))
    same(xp.concat([x, xp.asarray(a, dtype=xp.int64)], axis=None), np.concatenate([a, a.astype(int)], axis=None))
    same(xp.reshape(x, (-1,)), a.reshape(-1))
    same(xp.reshape(x, shape[::-1], copy=False), a.reshape(shape[::-1]))
    same(xp.permute_dims(x, tuple(range(nd))[::-1]), a.T)
    same(xp.broadcast_to(x, (2, *shape)), np.broadcast_to(a, (2, *shape)))
    same(xp.broadcast_arrays(x, xp.ones((2, *shape))), [np.broadcast_to(a, (2, *shape)), np.ones((2, *shape), "f4")])
    same(xp.repeat(x, 2), np.repeat(a, 2))
    for counts in ((), (2,), (2, 1, 2, 1)):
        same(xp.tile(x, counts), np.tile(a, counts))
    for d in axes(nd):
        same(xp.flip(x, axis=d), np.flip(a, d))
        same(xp.roll(x, -1, axis=d), np.roll(a, -1, d))
        same(xp.unstack(x, axis=d), list(np.moveaxis(a, d, 0)))
        same(xp.moveaxis(x, d, 0), np.moveaxis(a, d, 0))
        same(xp.concat([x, x], axis=d), np.concatenate([a, a], d))
        same(xp.repeat(x, 3, axis=d), np.repeat(a, 3, d))
        counts = np.arange(shape[d])
        same(xp.repeat(x, xp.asarray(counts), axis=d), np.repeat(a, counts, d))
        if shape[d] == 1:
            same(xp.squeeze(x, d), np.squeeze(a, d))
        else:
            with pytest.raises(ValueError):
                xp.squeeze(x, d)
        if shape[d]:
            ids = RNG.integers(0, shape[d], 5)
            same(xp.take(x, xp.asarray(ids), axis=d), np.take(a, ids, d))
            along = RNG.integers(0, shape[d], [1 if i != d % nd else 2 for i in range(nd)])
            same(xp.take_along_axis(x, xp.asarray(along), axis=d), np.take_along_axis(a, along, d))
    for d in axes(nd + 1):
        same(xp.expand_dims(x, d), np.expand_dims(a, d))
        same(xp.stack([x, x], axis=d), np.stack([a, a], d))
    for d in (nd + 1, -nd - 2):
        with pytest.raises(IndexError):
            xp.expand_dims(x, d)


def test_manipulation_of_several_axes():
    a = draw((2, 3, 4))
    x = xp.asarray(a)
    same(xp.roll(x, (1, -2), axis=(0, -1)), np.roll(a, (1, -2), (0, -1)))
    same(xp.roll(x, 1, axis=(0, 1)), np.roll(a, 1, (0, 1)))
    same(xp.flip(x, axis=(0, -1)), np.flip(a, (0, -1)))
    same(xp.moveaxis(x, (0, 1), (-1, 0)), np.moveaxis(a, (0, 1), (-1, 0)))
    same(xp.squeeze(xp.ones((1, 3, 1)), (0, 2)), np.ones(3, "f4"))
    same(xp.matrix_transpose(x), a.mT)


def test_manipulation_refuses():
    x = xp.ones((2, 3))
    for call in (
        lambda: xp.reshape(x.T, (6,), copy=False),
        lambda: xp.broadcast_to(x, (2, -1)),
        lambda: xp.concat([x, xp.ones((2, 2))]),
        lambda: xp.concat([]),
        lambda: xp.concat([xp.ones(())]),
        lambda: xp.stack([x, xp.ones(3)]),
        lambda: xp.roll(x, (1, 1)),
        lambda: xp.repeat(x, xp.asarray([1, -1]), axis=0),
        lambda: xp.take(x, xp.asarray([0])),
        lambda: xp.take_along_axis(x, xp.asarray([0]), axis=0),
        lambda: xp.unstack(x, axis=2),
        lambda: xp.permute_dims(x, (0,)),
        lambda: xp.matrix_transpose(x[0]),
    ):
        with pytest.raises(ShapeError):
            call()
    with pytest.raises(DTypeError):
        xp.repeat(x, xp.ones(2), axis=0)


# ---- searching, sorting, sets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint64"])
def test_searching_and_sorting(dtype):
    for shape in SHAPES[2:]:
        a = draw(shape).astype(dtype)
        x = xp.asarray(a)
        same(xp.nonzero(x), np.nonzero(a))
        same(xp.count_nonzero(x), np.asarray(np.count_nonzero(a)))
        for d in axes(len(shape)):
            for keep in (False, True):
                same(xp.count_nonzero(x, axis=d, keepdims=keep), np.count_nonzero(a, d, keepdims=keep))
                if shape[d]:
                    same(xp.argmax(x, axis=d, keepdims=keep), np.argmax(a, d, keepdims=keep))
                    same(xp.argmin(x, axis=d, keepdims=keep), np.argmin(a, d, keepdims=keep))
            same(xp.sort(x, axis=d), np.sort(a, d))
            same(xp.argsort(x, axis=d), np.argsort(a, d, kind="stable"))
            same(xp.sort(x, axis=d, descending=True), np.flip(np.sort(a, d), d))
            order = np.flip(a.shape[d] - 1 - np.argsort(np.flip(a, d), d, kind="stable"), d)
            same(xp.argsort(x, axis=d, descending=True, stable=True), order)
        if a.size:
            same(xp.argmax(x, keepdims=True), np.argmax(a, keepdims=True))
    for call in (lambda: xp.nonzero(xp.ones(())), lambda: xp.argmax(xp.ones((0,))), lambda: xp.sort(x, axis=3)):
        with pytest.raises(ShapeError):
            call()


def test_searchsorted():
    a, b = np.sort(draw(20)), draw((3, 4), "int64")
    mixed = RNG.permutation(20)
    for side in ("left", "right"):
        same(xp.searchsorted(xp.asarray(a), xp.asarray(b), side=side), np.searchsorted(a, b, side))
        found = xp.searchsorted(xp.asarray(a[mixed]), xp.asarray(b), side=side, sorter=xp.asarray(np.argsort(mixed)))
        same(found, np.searchsorted(a, b, side))


@pytest.mark.parametrize("dtype", ["float32", "int8", "bool"])
def test_sets(dtype):
    for shape in SHAPES:
        a = draw(shape, dtype)
        x = xp.asarray(a)
        values, indices, inverse, counts = np.unique(a, True, True, True)
        found = xp.unique_all(x)
        same(found, (values, indices, inverse.reshape(shape), counts))
        assert found._fields == ("values", "indices", "inverse_indices", "counts")
        assert found.values.tolist() == xp.unique_values(x).tolist()
        assert xp.unique_counts(x)._fields == ("values", "counts")
        assert xp.unique_inverse(x)._fields == ("values", "inverse_indices")
        same(xp.unique_counts(x), (values, counts))
        same(xp.unique_inverse(x), (values, inverse.reshape(shape)))


def test_sets_tell_nans_apart():
    found = xp.unique_all(xp.asarray([math.nan, 1.0, math.nan, -0.0, 0.0]))
    assert found.values.tolist()[:2] == [0, 1] and found.counts.tolist() == [2, 1, 1, 1]
    assert found.indices.tolist() == [3, 1, 0, 2] and found.inverse_indices.tolist() == [2, 1, 3, 0, 0]


# ---- statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint32"])
def test_sums_and_extremes(dtype):
    for shape in SHAPES:
        a = draw(shape).astype(dtype)
        x, kind = xp.asarray(a), {"i": np.int64, "u": np.uint64}.get(np.dtype(dtype).kind, dtype)
        for d in (None, *axes(len(shape)), tuple(range(len(shape))), ()):
            for keep in (False, True):
                options, ours = {"axis": d, "keepdims": keep}, {"axis": d, "keepdims": keep}
                same(xp.sum(x, **ours), np.sum(a, **options, dtype=kind))
                same(
                    xp.prod(x[:2] if shape else x, **ours), np.prod(a[:2] if shape else a, **options, dtype=kind), 1e-5
                )
                same(xp.all(x, **ours), np.all(a, **options))
                same(xp.any(x, **ours), np.any(a, **options))
                if a.size:
                    same(xp.max(x, **ours), np.max(a, **options))
                    same(xp.min(x, **ours), np.min(a, **options))
        for d in axes(len(shape)):
            same(xp.cumulative_sum(x, axis=d), np.cumsum(a, d, dtype=kind))
            found = xp.cumulative_prod(x, axis=d, include_initial=True)
            ones = np.ones_like(
                np.take(a, [], d), shape=tuple(1 if i == d % a.ndim else n for i, n in enumerate(shape))
            )
            same(found, np.cumprod(np.concatenate([ones, a], d), d, dtype=kind))
            same(xp.diff(x, axis=d, n=2), np.diff(a, 2, d))
            same(xp.diff(x, axis=d, prepend=x, append=x), np.diff(a, 1, d, a, a))
    same(xp.sum(xp.asarray([200, 100], dtype=xp.uint8), dtype=xp.uint8), np.asarray(44, np.uint8))
    same(xp.cumulative_sum(xp.asarray([1, 2]), dtype=xp.float64, include_initial=True), np.asarray([0.0, 1, 3]))


@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-5), ("float64", 1e-13)])
def test_moments(dtype, rtol):
    for shape in ((), (3,), (2, 3), (2, 3, 4)):
        a = RNG.normal(size=shape).astype(dtype)
        x = xp.asarray(a)
        for d in (None, *axes(len(shape)), tuple(range(len(shape)))):
            for keep in (False, True):
                same(xp.mean(x, axis=d, keepdims=keep), np.mean(a, d, keepdims=keep), rtol)
                same(xp.var(x, axis=d, keepdims=keep), np.var(a, d, keepdims=keep), rtol)
                same(xp.std(x, axis=d, keepdims=keep), np.std(a, d, keepdims=keep), rtol)
        if a.size > 1:
            same(xp.var(x, correction=0.5), np.var(a, ddof=0.5), rtol)
    assert xp.mean(xp.asarray([1, 2])).dtype is xp.float32


def test_nan_and_nothing():
    x, none = xp.asarray([1.0, math.nan, 3.0]), xp.ones((0,))
    for name in ("sum", "prod", "mean", "var", "std", "max", "min"):
        assert math.isnan(getattr(xp, name)(x))
    assert xp.all(x) and xp.any(x[1:2]) and xp.argmax(x) == xp.argmin(x) == 1
    assert (xp.sum(none), xp.prod(none), bool(xp.all(none)), bool(xp.any(none))) == (0, 1, True, False)
    assert math.isnan(xp.mean(none)) and math.isnan(xp.var(none)) and math.isnan(xp.std(none))
    for name in ("max", "min"):
        with pytest.raises(ValueError):
            getattr(xp, name)(none)
    for name in ("cumulative_sum", "cumulative_prod"):
        with pytest.raises(ShapeError):
            getattr(xp, name)(xp.ones((2, 2)))


# ---- linear algebra --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint64"])
def test_products(dtype):
    for one, two in (
        ((3,), (3,)),
        ((2, 3), (3,)),
        ((3,), (3, 2)),
        ((2, 3), (3, 4)),
        ((5, 2, 3), (3, 2)),
        ((0, 3), (3, 2)),
    ):
        a, b = draw(one).astype(dtype), draw(two).astype(dtype)
        x, y = xp.asarray(a), xp.asarray(b)
        same(xp.matmul(x, y), np.matmul(a, b))
        same(xp.tensordot(x, y, axes=1), np.tensordot(a, b, 1))
        same(xp.tensordot(x, y, axes=0), np.tensordot(a, b, 0))
    a, b = draw((2, 3, 4)).astype(dtype), draw((4, 3, 5)).astype(dtype)
    same(xp.tensordot(xp.asarray(a), xp.asarray(b), axes=((1, -1), (1, 0))), np.tensordot(a, b, ((1, -1), (1, 0))))
    a, b = draw((2, 1, 3)).astype(dtype), draw((4, 3)).astype(dtype)
    same(xp.vecdot(xp.asarray(a), xp.asarray(b)), np.vecdot(a, b))
    same(xp.vecdot(xp.asarray(a.mT), xp.asarray(b.T), axis=-2), np.vecdot(a, b))
    same(xp.linalg.outer(xp.asarray(a[0, 0]), xp.asarray(b[0])), np.outer(a[0, 0], b[0]))
    same(xp.linalg.cross(xp.asarray(a), xp.asarray(b)), np.cross(a, b))
    same(xp.linalg.trace(xp.asarray(b), offset=1), np.trace(b, 1, dtype=xp.sum(xp.asarray(b)).numpy().dtype))
    for offset in (-5, -1, 0, 2, 9):
        same(xp.linalg.diagonal(xp.asarray(a.mT @ a), offset=offset), np.diagonal(a.mT @ a, offset, -2, -1))


def test_products_refuse():
    x = xp.ones((2, 3))
    for call in (
        lambda: x @ x,
        lambda: xp.matmul(x, xp.ones(())),
        lambda: xp.vecdot(x, xp.ones(1)),
        lambda: xp.tensordot(x, x, axes=1),
        lambda: xp.linalg.outer(x, x[0]),
        lambda: xp.linalg.cross(x, x, axis=0),
        lambda: xp.linalg.diagonal(x[0]),
        lambda: xp.linalg.qr(x, mode="r"),
    ):
        with pytest.raises(ShapeError):
            call()
    for call in (lambda: xp.matmul(xp.asarray([True]), xp.asarray([True])), lambda: x @ 2):
        with pytest.raises(TypeError):
            call()


@pytest.mark.parametrize("batch", [(), (0,), (2, 3)])
def test_decompositions(batch):
    a = RNG.normal(size=(*batch, 3, 3))
    a = a @ a.mT + np.eye(3)
    b = RNG.normal(size=(*batch, 4, 3))
    x, y, linalg = xp.asarray(a), xp.asarray(b), xp.linalg
    for name in ("inv", "det", "eigvalsh", "cholesky"):
        same(getattr(linalg, name)(x), getattr(np.linalg, name)(a), 1e-9)
    same(linalg.cholesky(x, upper=True), np.linalg.cholesky(a).mT, 1e-9)
    same(linalg.svdvals(y), np.linalg.svdvals(b), 1e-9)
    same(linalg.pinv(y), np.linalg.pinv(b), 1e-9)
    same(linalg.matrix_rank(y, rtol=1e-9), np.full(batch, 3))
    same(linalg.slogdet(x), tuple(np.linalg.slogdet(a)), 1e-9)
    for name, fields, found in (
        ("qr", ("Q", "R"), lambda r: r.Q @ r.R),
        ("svd", ("U", "S", "Vh"), lambda r: r.U[..., :3] * r.S[..., None, :] @ r.Vh),
        ("eigh", ("eigenvalues", "eigenvectors"), None),
    ):
        result = getattr(linalg, name)(x if name == "eigh" else y)
        assert result._fields == fields
        if found:
            same(found(result), b, 1e-9)
        else:
            same(x @ result.eigenvectors, (result.eigenvectors * result.eigenvalues[..., None, :]).numpy(), 1e-9)
    assert linalg.qr(y, mode="complete").Q.shape == (*batch, 4, 4)
    assert linalg.svd(y, full_matrices=False).U.shape == (*batch, 4, 3)
    for n in (-2, 0, 3):
        same(linalg.matrix_power(x, n), np.linalg.matrix_power(a, n), 1e-7)
    for order in ("fro", "nuc", 1, -1, 2, -2, math.inf, -math.inf):
        same(linalg.matrix_norm(y, ord=order, keepdims=True), np.linalg.matrix_norm(b, ord=order, keepdims=True), 1e-9)
    for order in (2, 1, 0, -1, 2.5, math.inf, -math.inf):
        same(linalg.vector_norm(y, ord=order, axis=-1), np.linalg.vector_norm(b, ord=order, axis=-1), 1e-9)


def test_solve_takes_matrices_but_for_one_dim():
    a = RNG.normal(size=(2, 2, 2)) + 3 * np.eye(2)
    vector, matrix = RNG.normal(size=2), RNG.normal(size=(2, 2)).astype(np.float32)
    same(xp.linalg.solve(xp.asarray(a), xp.asarray(vector)), np.linalg.solve(a, vector), 1e-9)
    same(xp.linalg.solve(xp.asarray(a), xp.asarray(matrix)), np.linalg.solve(a, matrix.astype(float)), 1e-9)
