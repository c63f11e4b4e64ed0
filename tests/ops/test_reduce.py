"""Reductions, softmax and scans against NumPy in float64, over drawn shapes, strides and dims."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib import dtype as D
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.ops import reduce
from tests.ops.cases import FLOAT_ROUNDING, assert_close, few, operands, tensors, values, wide

# kernels_numba/reduce.py: a block of 512 in at least 4 partial sums, then f64: (512 / 4 + 8) eps sum |x|
BLOCK_ERROR = 136


def dims_of(data, ndim):
    """None, one dim or several."""
    if ndim == 0:
        return None
    some = data.draw(st.sets(st.integers(0, ndim - 1), min_size=1))
    return data.draw(st.sampled_from([None, min(some), min(some) - ndim, tuple(some)]))


def numpy_call(name, array, dim, keepdim):
    call = {"amax": "max", "amin": "min"}.get(name, name)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mean of nothing is NaN
        return getattr(np, call)(array, axis=dim, keepdims=keepdim)


@pytest.mark.parametrize("dtype", ["f32", "f64", "f16", "bf16"])
@pytest.mark.parametrize("name", ["sum", "mean", "amax", "amin", "prod"])
@given(st.data())
@few(20)
def test_floats(name, dtype, data):
    if dtype in ("f16", "bf16") and name in ("amin", "prod"):
        pytest.skip("the dtype is seen on a handful")
    domain = (0.5, 1.5) if name == "prod" else None
    (array,) = data.draw(operands([dtype], domain, special=name in ("amax", "amin")))
    dim, keepdim = dims_of(data, array.ndim), data.draw(st.booleans())
    x = tensors([array])[0]
    if name in ("amax", "amin") and not array.size:
        return
    want = numpy_call(name, wide(array), dim, keepdim)
    found = getattr(x, name)(dim, keepdim)
    assert found.dtype is D.get(dtype)
    eps = 2.0**-53 if dtype == "f64" else 2.0**-24
    if name in ("sum", "mean"):
        size = np.abs(wide(array))
        absolute = BLOCK_ERROR * eps * numpy_call("sum", size, dim, keepdim)
        count = array.size // max(np.asarray(want).size, 1)
        assert_close(found, want, dtype, 1, absolute / max(count, 1) if name == "mean" else absolute)
    elif name == "prod":  # one rounding per factor
        assert_close(found, want, dtype, max(array.size, 1))
    else:
        assert_close(found, want, dtype, 0)


@pytest.mark.parametrize("dtype", ["i64", "u8", "i32", "bool"])
@pytest.mark.parametrize("name", ["sum", "prod", "amax", "amin", "any", "all"])
@given(st.data())
@few(8)
def test_integers(name, dtype, data):
    (array,) = data.draw(operands([dtype]))
    if name in ("amax", "amin") and not array.size:
        return
    dim, keepdim = dims_of(data, array.ndim), data.draw(st.booleans())
    found = getattr(tensors([array])[0], name)(dim, keepdim)
    want = array.astype(np.int64) if name in ("sum", "prod") else array
    want = numpy_call(name, want, dim, keepdim)
    assert found.dtype is {"sum": D.i64, "prod": D.i64, "any": D.bool_, "all": D.bool_}.get(name, D.get(dtype))
    assert np.array_equal(found.numpy(), want)


@pytest.mark.parametrize("name", ["argmax", "argmin"])
@given(st.data())
@few(25)
def test_arg(name, data):
    dtype = data.draw(st.sampled_from(["f32", "i64"]))
    (array,) = data.draw(operands([dtype]))
    array = np.asarray(np.round(array)) if dtype == "f32" else array  # ties: the first wins
    dim, keepdim = data.draw(st.sampled_from([None, *range(-array.ndim, array.ndim)])), data.draw(st.booleans())
    try:
        want = getattr(np, name)(array, axis=dim, keepdims=keepdim)
    except ValueError:
        with pytest.raises(ShapeError):
            getattr(tensors([array])[0], name)(dim, keepdim)
        return
    found = getattr(tensors([array])[0], name)(dim, keepdim)
    assert found.dtype is D.i64 and np.array_equal(found.numpy(), want)


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
@given(st.data())
@few(15)
def test_softmax(name, data):
    (array,) = data.draw(operands(["f32"], (-80, 80), special=False))
    if not array.ndim or not array.size:
        return
    dim = data.draw(st.integers(-array.ndim, array.ndim - 1))
    exact = wide(array)
    top = exact.max(dim, keepdims=True)
    total = np.exp(exact - top).sum(dim, keepdims=True)
    want = {
        "softmax": np.exp(exact - top) / total,
        "log_softmax": exact - top - np.log(total),
        "logsumexp": (top + np.log(total)).squeeze(dim),
    }[name]
    # x - max rounds: eps |x - max| in the exponent; the sum adds its own; logarithms turn relative into absolute error
    spread = float(np.abs(exact - top).max())
    relative = (spread + BLOCK_ERROR + 4) * 2.0**-24
    found = getattr(tensors([array])[0], name)(dim)
    absolute = (
        relative * np.abs(want)
        if name == "softmax"
        else (relative if name == "logsumexp" else relative + 2.0**-24 * 160)
    )
    assert_close(found, want, "f32", 4, absolute)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f64"])
def test_softmax_dtypes(dtype):
    x = tensorlib.tensor([[1.0, 2.0, 3.0], [1000.0, 0.0, -1000.0]], dtype=dtype)
    want = np.array([[0.09003057, 0.24472847, 0.66524096], [1, 0, 0]])
    assert x.softmax(1).dtype is D.get(dtype)
    assert_close(x.softmax(1), want, dtype, 1, 1e-8)
    assert np.isnan(tensorlib.tensor([-float("inf")] * 2).softmax(0).tolist()).all()
    assert tensorlib.tensor([-float("inf")] * 2).logsumexp(0).item() == -float("inf")
    assert tensorlib.tensor([1, 2]).softmax(0).dtype is D.f32


@given(st.data())
@few(12)
def test_var_and_std(data):
    (array,) = data.draw(operands(["f32"], (900, 1100), special=False))
    dim = dims_of(data, array.ndim)
    if not array.size:
        return
    exact = wide(array)
    count = array.size // max(np.asarray(exact.sum(axis=dim)).size, 1)
    if count < 2:
        return
    found = tensors([array])[0].var(dim)
    # the mean that is subtracted is rounded to f32, which the correction term takes back: what stays are the
    # squares' sums
    assert_close(found, exact.var(axis=dim, ddof=1), "f32", BLOCK_ERROR, 2.0**-48 * 1100**2)
    assert_close(tensors([array])[0].std(dim, correction=0), exact.std(axis=dim), "f32", BLOCK_ERROR, 2.0**-24 * 1100)


@pytest.mark.parametrize("name", ["cumsum", "cumprod"])
@given(st.data())
@few(10)
def test_scans(name, data):
    dtype = data.draw(st.sampled_from(["f32", "i64"]))
    (array,) = data.draw(operands([dtype], (-3, 3) if dtype == "i64" else (0.5, 1.5), special=False))
    if not array.ndim:
        return
    dim = data.draw(st.integers(-array.ndim, array.ndim - 1))
    found, want = getattr(tensors([array])[0], name)(dim), getattr(np, name)(wide(array), axis=dim)
    if dtype == "i64":
        assert np.array_equal(found.numpy(), want)
    else:  # runs in f64, rounds once
        assert_close(found, want, "f32", 1)


@pytest.mark.parametrize("n", [1023, 1024, 1025, 70_000, 1_000_003])
def test_long_sums_do_not_drift(n):
    x = np.full(n, 0.1, np.float32)
    x[::2] = 1e4
    exact = float(x.astype(np.float64).sum())
    t = tensorlib.from_numpy(x)
    bound = (BLOCK_ERROR + 1) * FLOAT_ROUNDING["f32"] * exact
    assert abs(t.sum().item() - exact) <= bound
    assert abs(t[::-1].sum().item() - exact) <= bound
    assert t.amax().item() == 1e4 and t.argmax().item() == 0 and t.argmin().item() == (1 if n > 1 else 0)
    assert t.mean().item() == pytest.approx(exact / n, rel=1e-6)


@pytest.mark.parametrize("shape", [(4000, 700), (3, 40_000, 5), (70_001, 3)])
def test_columns_and_rows_of_large_matrices(shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    t, exact = tensorlib.from_numpy(x), x.astype(np.float64)
    for dim in range(len(shape)):
        bound = BLOCK_ERROR * 2.0**-24 * np.abs(exact).sum(dim)
        assert_close(t.sum(dim), exact.sum(dim), "f32", 1, bound)
        assert np.array_equal(t.amax(dim).numpy(), x.max(dim))


def test_max_and_min_give_values_and_indices():
    x = tensorlib.tensor([[1.0, 5.0, 5.0], [float("nan"), 0.0, 2.0]])
    values_, indices = x.max(dim=1)
    assert values_[0].item() == 5 and np.isnan(values_[1].item()) and indices.tolist() == [1, 0]
    assert x[0].min().item() == 1 and x.max(tensorlib.tensor(3.0))[0].tolist() == [3, 5, 5]
    assert x.min(0, keepdim=True).values.shape == (1, 3)


def test_norm_and_count():
    x = tensorlib.tensor([[3.0, -4.0], [0.0, 0.0]])
    assert x.norm().item() == 5 and x.norm(1, 1).tolist() == [7, 0] and x.norm(float("inf")).item() == 4
    assert x.norm(3).item() == pytest.approx(91 ** (1 / 3), rel=1e-6) and x.count_nonzero(0).tolist() == [1, 1]


def test_empty_and_errors():
    x = tensorlib.zeros(0, 3)
    assert x.sum(0).tolist() == [0, 0, 0] and x.prod().item() == 1 and np.isnan(x.mean().item())
    assert not x.any().item() and x.all().item() and x.sum(1).shape == (0,)
    with pytest.raises(DTypeError, match="mean: got dtype i64"):
        tensorlib.tensor([1, 2]).mean()
    assert tensorlib.tensor([1, 2]).mean(dtype="f32").item() == 1.5
    with pytest.raises(ShapeError, match="sum: got dim 2 of a 2-d tensor"):
        x.sum(2)
    with pytest.raises(ShapeError, match="each dim once"):
        x.sum((0, -2))
    with pytest.raises(ShapeError, match="argmax"):
        x.argmax()
    with pytest.raises(DTypeError, match="f32 summed as i64"):
        x.sum(dtype="i64")


@given(st.data())
@few(4)
def test_results_do_not_depend_on_threads(data):
    from tensorlib import backend

    x = tensorlib.from_numpy(values(data.draw, "f32", 300_000, special=False))
    before = backend.threads()
    found = []
    try:
        for n in (1, 2, 3):
            backend.set_num_threads(n)
            found.append([x.sum().item(), reduce.sum(x.reshape(3, -1), 0).tolist(), x.softmax(0).sum().item()])
    finally:
        backend.set_num_threads(before)
    assert found[0] == found[1] == found[2]
