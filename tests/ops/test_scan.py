"""Running sums, extremes and log-sums against NumPy, over drawn shapes, strides and dims."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib import backend
from tensorlib import dtype as D
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.ops import scan
from tensorlib.registry import OPS
from tests.ops.cases import assert_close, few, operands, tensors, values, wide

BETTER = {"cummax": np.greater_equal, "cummin": np.less_equal}


def extremes(name, array, dim):
    """(values, indices) by the definition, one element after the other."""
    rows = np.moveaxis(array, dim, -1)
    found, places = rows.copy(), np.zeros(rows.shape, np.int64)
    for row in np.ndindex(rows.shape[:-1]):
        best = 0
        for i, v in enumerate(rows[row]):
            if v != v or (rows[row][best] == rows[row][best] and BETTER[name](v, rows[row][best])):
                best = i
            found[row][i], places[row][i] = rows[row][best], best
    return np.moveaxis(found, -1, dim), np.moveaxis(places, -1, dim)


@pytest.mark.parametrize("dtype", ["f32", "i64", "f16"])
@pytest.mark.parametrize("name", ["cummax", "cummin"])
@given(st.data())
@few(12)
def test_extremes(name, dtype, data):
    (array,) = data.draw(operands([dtype]))
    if not array.ndim:
        return
    if dtype == "f32":
        array = np.round(array)  # ties
    dim = data.draw(st.integers(-array.ndim, array.ndim - 1))
    found = getattr(scan, name)(tensors([array])[0], dim)
    want_values, want_indices = extremes(name, array, dim)
    assert found.values.dtype is D.get(dtype) and found.indices.dtype is D.i64
    assert np.array_equal(found.values.numpy(), want_values, equal_nan=dtype != "i64")
    assert np.array_equal(found.indices.numpy(), want_indices)
    if array.size:
        assert all(
            np.array_equal(a, b, equal_nan=True) for a, b in zip(OPS[name].ref(np, array, dim), found_numpy(found))
        )


def found_numpy(found):
    return found.values.numpy(), found.indices.numpy()


@pytest.mark.parametrize("dtype", ["bool", "u8", "u64", "bf16", "f8e4m3", "f64"])
def test_extremes_of_other_dtypes(dtype):
    array = np.array([[0, 1, 1, 0, 2], [3, 3, 1, 4, 0]]).astype(D.get(dtype).numpy_dtype())
    found = scan.cummax(tensorlib.from_numpy(array), 1)
    want_values, want_indices = extremes("cummax", array, 1)
    assert np.array_equal(found.values.numpy(), want_values) and np.array_equal(found.indices.numpy(), want_indices)


@pytest.mark.parametrize("name", ["cumsum", "cumprod"])
@given(st.data())
@few(8)
def test_sums_and_products(name, data):
    (array,) = data.draw(operands(["f32"], (0.5, 1.5), special=False))
    if not array.ndim:
        return
    dim = data.draw(st.integers(-array.ndim, array.ndim - 1))
    # runs in f64, rounds once
    assert_close(getattr(scan, name)(tensors([array])[0], dim), getattr(np, name)(wide(array), axis=dim), "f32", 1)


def test_sums_of_small_dtypes():
    assert scan.cumsum(tensorlib.tensor([200, 100], dtype="u8"), 0).tolist() == [200, 300]
    assert scan.cumsum(tensorlib.tensor([True, True]), 0).dtype is D.i64
    # 2048 + 1 would stay 2048 in f16; 1 + 256 times 2^-8 would stay 1 in bf16
    assert scan.cumsum(tensorlib.tensor([2048.0, 1.0, 1.0], dtype="f16"), 0).tolist() == [2048, 2048, 2050]
    assert scan.cumsum(tensorlib.tensor([1.0] + [2.0**-8] * 256, dtype="bf16"), 0)[-1].item() == 2


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@given(st.data())
@few(12)
def test_logcumsumexp(dtype, data):
    (array,) = data.draw(operands([dtype], (-300, 300), special=False))
    if not array.ndim:
        return
    dim = data.draw(st.integers(-array.ndim, array.ndim - 1))
    want = np.logaddexp.accumulate(array.astype(np.longdouble), dim) if array.shape[dim] else array
    # the sum is relative to e ** top: every step may round three times (2^-53 each), and exp and log add their few
    steps = array.shape[dim] + 2
    assert_close(scan.logcumsumexp(tensors([array])[0], dim), want, dtype, 2, (3 * steps + 8) * 2.0**-53)


def test_logcumsumexp_of_special_values():
    inf, nan = float("inf"), float("nan")
    call = lambda *v: scan.logcumsumexp(tensorlib.tensor(v), 0).tolist()  # noqa: E731
    assert call(-inf, -inf, 0.0, -inf) == [-inf, -inf, 0, 0]
    assert call(0.0, inf, inf, -inf, 1.0) == [0, inf, inf, inf, inf]
    found = call(1.0, nan, inf, 2.0)
    assert found[0] == 1 and np.isnan(found[1:]).all()
    assert np.isnan(call(nan, -inf)).all() and np.isnan(call(-inf, nan, 3.0)[1:]).all()
    assert call(0.0, -2000.0, 2000.0) == [0, 0, 2000]


def test_scalars_and_empty():
    x = tensorlib.tensor(3.0)
    for name in ("cummax", "cummin"):
        found = getattr(scan, name)(x, -1)
        assert found.values.item() == 3 and found.indices.item() == 0 and found.values.shape == ()
        assert getattr(scan, name)(tensorlib.zeros(2, 0), 1).indices.shape == (2, 0)
    assert scan.logcumsumexp(x, 0).item() == 3 and scan.logcumsumexp(tensorlib.zeros(0, 3), 0).shape == (0, 3)
    assert scan.cumsum(x, 0).shape == ()


def test_errors():
    x = tensorlib.tensor([[1.0, 2.0]])
    for name in ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"):
        with pytest.raises(ShapeError, match=f"{name}: got dim 2 of a 2-d tensor"):
            getattr(scan, name)(x, 2)
    with pytest.raises(DTypeError, match="logcumsumexp: got dtype i64"):
        scan.logcumsumexp(tensorlib.tensor([1, 2]), 0)


@given(st.data())
@few(3)
def test_results_do_not_depend_on_threads(data):
    x = tensorlib.from_numpy(values(data.draw, "f32", 120_000, special=False)).reshape(40, 3000)
    before, found = backend.threads(), []
    try:
        for n in (1, 2, 3):
            backend.set_num_threads(n)
            results = [scan.logcumsumexp(x, 1), *scan.cummax(x, 1), *scan.cummin(x, 0), scan.cumsum(x, 1)]
            found.append([r.numpy().tobytes() for r in results])
    finally:
        backend.set_num_threads(before)
    assert found[0] == found[1] == found[2]
