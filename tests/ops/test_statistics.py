"""Medians, quantiles, sums without NaN, covariances, differences: against PyTorch and NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.ops import statistics
from tensorlib.registry import OPS
from tests.ops.cases import few
from tests.ops.parity import agree, agree_gradients, close, draw, flat

SHAPES = st.sampled_from([(5,), (3, 4), (2, 3, 4), (1, 1), (2, 33)])


def drawn(data, nan=True):
    """An array with ties, and NaN among its elements."""
    x = np.round(draw(data, data.draw(SHAPES)) * 2) / 2
    if nan and data.draw(st.booleans()):
        x = np.where(np.random.default_rng(data.draw(st.integers(0, 99))).random(x.shape) < 0.3, np.float32(np.nan), x)
    return x


@pytest.mark.parametrize("name", ["median", "nanmedian"])
@given(st.data())
@few(10)
def test_medians(name, data):
    x = drawn(data)
    ours, theirs = getattr(statistics, name), getattr(torch, name)
    agree(ours, theirs, x)
    dim, keepdim = data.draw(st.integers(-x.ndim, x.ndim - 1)), data.draw(st.booleans())
    agree(lambda v: ours(v, dim, keepdim)[0], lambda v: theirs(v, dim, keepdim)[0], x)
    found = ours(tensorlib.from_numpy(x), dim, True)
    at = np.take_along_axis(x, found.indices.numpy(), dim)
    assert np.array_equal(at, found.values.numpy(), equal_nan=True)
    if not np.isnan(x).any():
        close(ours(tensorlib.from_numpy(x), dim).values, OPS[name].ref(np, x, dim))


@pytest.mark.parametrize("dtype", ["i64", "bf16", "u8"])
def test_medians_of_other_dtypes(dtype):
    x = tensorlib.tensor([[4, 1, 3, 2], [9, 9, 0, 7]], dtype=dtype)
    assert statistics.median(x, 1).values.tolist() == statistics.nanmedian(x, 1).values.tolist() == [2, 7]
    assert statistics.median(x).item() == 3 and statistics.median(x).dtype is x.dtype
    assert statistics.median(tensorlib.tensor(3.0), 0).indices.item() == 0


@given(st.data())
@few(10)
def test_mode(data):
    x = drawn(data, nan=False)
    dim = data.draw(st.integers(-x.ndim, x.ndim - 1))
    agree(lambda v: statistics.mode(v, dim).values, lambda v: torch.mode(v, dim).values, x)
    found = statistics.mode(tensorlib.from_numpy(x), dim, True)
    assert np.array_equal(np.take_along_axis(x, found.indices.numpy(), dim), found.values.numpy())
    assert statistics.mode(tensorlib.tensor([3, 1, 3, 1, 2])).values.item() == 1


@pytest.mark.parametrize("interpolation", statistics.INTERPOLATIONS)
@pytest.mark.parametrize("name", ["quantile", "nanquantile"])
@given(st.data())
@few(5)
def test_quantiles(name, interpolation, data):
    x = drawn(data).astype(np.float64)
    q = data.draw(st.sampled_from([0.0, 0.3, 0.5, 1.0, np.array([0.25, 0.9, 0.4]), np.array([0.5])]))
    dim, keepdim = data.draw(st.sampled_from([None, *range(-x.ndim, x.ndim)])), data.draw(st.booleans())
    ours, theirs = getattr(statistics, name), getattr(torch, name)
    agree(ours, theirs, x, q, dim, keepdim, interpolation=interpolation, scale=3)
    with np.errstate(all="ignore"):
        found = ours(*(tensorlib.from_numpy(np.asarray(v)) for v in (x, q)), dim, keepdim, interpolation=interpolation)
        if not np.isnan(x).any():
            close(found, OPS[name].ref(np, x, q, dim, keepdim, interpolation), scale=3)


def test_quantiles_of_narrow_floats_and_their_gradients():
    x = np.array([[3.0, 1.0, 2.5, 0.5], [1.25, -1.0, 7.0, 2.0]])
    found = statistics.quantile(tensorlib.from_numpy(x.astype(np.float16)), 0.5, 1)
    assert found.dtype is tensorlib.f16 and found.tolist() == [1.75, 1.625]
    for name in ("quantile", "nanquantile"):
        agree_gradients(lambda v, n=name: getattr(statistics, n)(v, 0.3, 1), lambda v: torch.quantile(v, 0.3, 1), x)
    agree_gradients(lambda v: statistics.median(v, 1).values, lambda v: torch.median(v, 1).values, x)
    agree_gradients(statistics.median, torch.median, x)
    agree_gradients(lambda v: statistics.mode(v, 1).values, lambda v: torch.mode(v, 1).values, x)


@given(st.data())
@few(10)
def test_sums_without_nan(data):
    x = drawn(data)
    dim, keepdim = data.draw(st.sampled_from([None, *range(-x.ndim, x.ndim)])), data.draw(st.booleans())
    agree(lambda v: statistics.nansum(v, dim, keepdim), lambda v: torch.nansum(v, dim, keepdim), x, scale=3 * x.size)
    agree(lambda v: statistics.nanmean(v, dim, keepdim), lambda v: torch.nanmean(v, dim, keepdim), x, scale=3 * x.size)
    y = np.where(np.isnan(x), np.float32(1), x)
    agree(
        lambda v: statistics.aminmax(v, dim=dim, keepdim=keepdim),
        lambda v: tuple(torch.aminmax(v, dim=dim, keepdim=keepdim)),
        y,
    )
    if y.size > 1 and dim is None:
        for name in ("var_mean", "std_mean"):
            agree(getattr(statistics, name), getattr(torch, name), y, roundings=9, scale=9)
    assert statistics.nansum(tensorlib.tensor([2, 3])).item() == 5


def test_gradients_of_sums_without_nan():
    x = np.array([[1.0, np.nan, 3.0], [4.0, 5.0, np.nan]])
    for name in ("nansum", "nanmean"):
        agree_gradients(lambda v, n=name: getattr(statistics, n)(v, 1), lambda v, n=name: getattr(torch, n)(v, 1), x)


@given(st.data())
@few(10)
def test_diff(data):
    x = draw(data, data.draw(SHAPES))
    dim, n = data.draw(st.integers(-x.ndim, x.ndim - 1)), data.draw(st.integers(0, 3))
    agree(lambda v: statistics.diff(v, n, dim), lambda v: torch.diff(v, n, dim), x, scale=3 * 2**n)
    agree(statistics.diff, torch.diff, x, prepend=x, append=x[..., :1], scale=6)
    agree_gradients(lambda v: statistics.diff(v, 1, dim), lambda v: torch.diff(v, 1, dim), x)
    assert statistics.diff(tensorlib.tensor([True, False, False])).tolist() == [True, False]


@given(st.data())
@few(8)
def test_covariances(data):
    x = draw(data, data.draw(st.sampled_from([(3, 7), (2, 4), (5,)])))
    n = x.shape[-1]
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    counts, weights = rng.integers(1, 4, n), rng.uniform(0.5, 2, n).astype(np.float32)
    agree(statistics.cov, torch.cov, x, scale=9 * n)
    agree(statistics.cov, torch.cov, x, correction=0, fweights=counts, scale=9 * n)
    agree(statistics.cov, torch.cov, x, aweights=weights, roundings=9, scale=9 * n)
    agree(statistics.cov, torch.cov, x, fweights=counts, aweights=weights, roundings=9, scale=9 * n)
    close(statistics.cov(tensorlib.from_numpy(x), fweights=tensorlib.from_numpy(counts)),
          OPS["cov"].ref(np, x.astype(np.float64), fweights=counts), scale=9 * n)  # fmt: skip
    wide = rng.normal(size=(3, 8)).astype(np.float32)
    agree(statistics.corrcoef, torch.corrcoef, wide, roundings=16, scale=1)
    agree_gradients(statistics.cov, torch.cov, wide)
    agree_gradients(lambda v: statistics.corrcoef(v)[0, 1], lambda v: torch.corrcoef(v)[0, 1], wide)


def test_errors():
    x = tensorlib.tensor([1.0, 2.0])
    with pytest.raises(ShapeError, match="median: got shape"):
        statistics.median(tensorlib.zeros(0))
    with pytest.raises(ShapeError, match="median: got dim 1 of a 1-d tensor"):
        statistics.median(x, 1)
    with pytest.raises(DTypeError, match="quantile: got dtype i64"):
        statistics.quantile(tensorlib.tensor([1, 2]), 0.5)
    for q in (1.5, [0.5, -1.0], [[0.5]]):
        with pytest.raises(ShapeError, match="quantile: got q of shape"):
            statistics.quantile(x, q)
    with pytest.raises(ShapeError, match="interpolation 'cubic'"):
        statistics.quantile(x, 0.5, interpolation="cubic")
    with pytest.raises(ShapeError, match="cov: got shape"):
        statistics.cov(tensorlib.zeros(1, 1, 1))
    with pytest.raises(ShapeError, match="cov: got weights of shape"):
        statistics.cov(x, aweights=tensorlib.zeros(3))
    with pytest.raises(DTypeError, match="cov: got fweights of f32"):
        statistics.cov(x, fweights=x)
    with pytest.raises(ShapeError, match="diff: got a 0-d tensor"):
        statistics.diff(tensorlib.tensor(1.0))


def test_methods():
    x = tensorlib.tensor([[3.0, 1.0], [2.0, 5.0]])
    assert x.median().item() == 2 and x.quantile(0.5).item() == 2.5 and x.mode(0).values.tolist() == [2, 1]
    assert [v.item() for v in flat(tensorlib.aminmax(x))] == [1, 5] and x.diff().tolist() == [[-2], [3]]


def test_pytorchs_older_spelling_of_the_correction():
    x = np.random.default_rng(0).standard_normal((3, 4))
    for name in ("var_mean", "std_mean"):
        for args, kwargs in (((True,), {}), ((False,), {}), ((), {"dim": 1, "unbiased": False, "keepdim": True})):
            found = getattr(statistics, name)(tensorlib.from_numpy(x), *args, **kwargs)
            want = getattr(torch, name)(torch.from_numpy(x), *args, **kwargs)
            assert all(np.allclose(f.numpy(), w.numpy(), rtol=1e-13) for f, w in zip(found, want, strict=True))
