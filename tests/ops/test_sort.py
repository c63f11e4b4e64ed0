"""Sorting and what follows from it against NumPy's stable sort, over drawn shapes, strides, dims and special values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib import backend
from tensorlib import dtype as D
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.ops import sort
from tensorlib.registry import OPS
from tests.ops.cases import few, operands, tensors, values


def stable(array, dim, descending):
    """Indices by NumPy; descending: NaN first, equal elements in their order all the same."""
    array = array.astype(np.float64) if array.dtype.kind not in "biu" else array
    if not descending:
        return np.argsort(array, dim, kind="stable")
    backwards = np.flip(np.argsort(np.flip(array, dim), dim, kind="stable"), dim)
    return array.shape[dim] - 1 - backwards


def same(found, want):
    """Bits, so that -0.0 and 0.0 are told apart."""
    found, want = np.ascontiguousarray(found.numpy()), np.ascontiguousarray(want)
    assert found.dtype == want.dtype and found.shape == want.shape
    assert found.tobytes() == want.tobytes()


def check_sort(array, dim, descending):
    x = tensors([array])[0]
    order = stable(array, dim, descending)
    found = sort.sort(x, dim, descending, stable=True)
    same(found.indices, order)
    same(found.values, np.take_along_axis(array, order, dim))
    same(sort.argsort(x, dim, descending), order)


@pytest.mark.parametrize("dtype", ["f32", "i64", "u8", "f16"])
@given(st.data())
@few(25)
def test_sort(dtype, data):
    (array,) = data.draw(operands([dtype]))
    if array.ndim:
        check_sort(array, data.draw(st.integers(-array.ndim, array.ndim - 1)), data.draw(st.booleans()))


@pytest.mark.parametrize("dtype", [d.name for d in D.ALL])
@given(st.data())
@few(4)
def test_every_dtype_and_length(dtype, data):
    n = data.draw(st.sampled_from([1, 7, 40, 100, 300, 5000]))
    check_sort(values(data.draw, dtype, n), 0, data.draw(st.booleans()))


@pytest.mark.parametrize("dtype", ["f32", "f64", "bf16", "f8e5m2"])
@pytest.mark.parametrize("length", [24, 120, 600])
def test_special_values(dtype, length):
    nan, inf = float("nan"), float("inf")
    odd = [nan, 0.0, -0.0, inf, -inf, 1.0, -nan, -1.0, -0.0, 0.0, 1e-45, -1e-45]
    array = np.resize(np.array(odd).astype(D.get(dtype).numpy_dtype()), length)
    for descending in (False, True):
        check_sort(array, 0, descending)
    count = int(np.isnan(array.astype(np.float32)).sum())
    assert np.isnan(sort.sort(tensors([array])[0]).values.numpy()[-count:].astype(np.float32)).all()


def test_pairs_of_two_words_agree_with_those_of_one():
    """Rows of 2**31 elements and more take the wide form: it is run here by hand."""
    array = np.random.default_rng(0).integers(-50, 50, (4, 700)).astype(np.float32)
    x, kernel = tensorlib.from_numpy(array), backend.kernel
    scratch = tensorlib.empty(sort.TABLES + 32 * 700, dtype="u8")
    out, indices = tensorlib.empty(4, 9), tensorlib.empty(4, 9, dtype="i64")
    words = [x.ptr, out.ptr, indices.ptr, 4, 700, 9, -1, 700, scratch.ptr]
    backend.launch(kernel("sort", "sort", "f32", 2), words)
    want = sort.topk(x, 9)
    same(out, want.values.numpy())
    same(indices, want.indices.numpy())


@given(st.data())
@few(25)
def test_topk(data):
    dtype = data.draw(st.sampled_from(["f32", "i64", "u8"]))
    (array,) = data.draw(operands([dtype]))
    if not array.ndim:
        return
    dim, largest = data.draw(st.integers(-array.ndim, array.ndim - 1)), data.draw(st.booleans())
    k = data.draw(st.integers(0, array.shape[dim]))
    order = np.take(stable(array, dim, largest), np.arange(k), dim)
    found = sort.topk(tensors([array])[0], k, dim, largest)
    same(found.indices, order)
    same(found.values, np.take_along_axis(array, order, dim))


@pytest.mark.parametrize("k", [1, 2, 40, 99, 999, 2400, 4999, 5000])
def test_topk_of_long_rows_with_ties(k):
    rng = np.random.default_rng(k)
    for array in (rng.integers(-20, 20, (3, 5000)), rng.integers(-(2**62), 2**62, (3, 5000)), np.zeros((3, 5000), int)):
        for kind in (np.float32, np.int64):
            for largest in (True, False):
                some = array.astype(kind)
                same(sort.topk(tensors([some])[0], k, -1, largest).indices, stable(some, 1, largest)[:, :k])


def test_kthvalue_and_msort():
    array = np.random.default_rng(1).integers(0, 9, (5, 60, 3)).astype(np.float32)
    x = tensorlib.from_numpy(array)
    for k in (1, 30, 60):
        found = sort.kthvalue(x, k, 1)
        same(found.values, np.sort(array, 1)[:, k - 1])
        same(found.indices, np.argsort(array, 1, kind="stable")[:, k - 1])
        assert sort.kthvalue(x, k, 1, keepdim=True).values.shape == (5, 1, 3)
    same(sort.msort(x), np.sort(array, 0))


def test_scalars_and_empty():
    x = tensorlib.tensor(3.0)
    assert sort.sort(x).values.tolist() == 3.0 and sort.argsort(x).tolist() == 0 and sort.msort(x).shape == ()
    assert sort.topk(x, 1).indices.shape == () and sort.kthvalue(x, 1).values.item() == 3
    empty = tensorlib.zeros(2, 0, 3)
    assert sort.sort(empty, 1).indices.shape == (2, 0, 3) and sort.topk(empty, 2).values.shape == (2, 0, 2)
    assert sort.topk(tensorlib.zeros(4, 2), 0).values.shape == (4, 0)
    assert sort.unique(empty).shape == (0,) and sort.unique_consecutive(empty, True)[1].shape == (2, 0, 3)
    assert sort.bincount(tensorlib.zeros(0, dtype="i64")).shape == (0,)
    assert sort.searchsorted(tensorlib.zeros(0), tensorlib.ones(2)).tolist() == [0, 0]


@given(st.data())
@few(20)
def test_unique(data):
    dtype = data.draw(st.sampled_from(["f32", "i64", "bool"]))
    (array,) = data.draw(operands([dtype]))
    array = np.round(array) if dtype == "f32" else array
    want, inverse, counts = np.unique(array, return_inverse=True, return_counts=True, equal_nan=False)
    found = sort.unique(tensors([array])[0], return_inverse=True, return_counts=True)
    assert np.array_equal(found[0].numpy(), want, equal_nan=dtype == "f32")
    same(found[2], counts)
    assert found[1].shape == array.shape
    if not np.isnan(array.astype(np.float64)).any():
        same(found[1], inverse.reshape(array.shape))
    changes = np.flatnonzero(np.append(True, array.ravel()[1:] != array.ravel()[:-1])[: array.size])
    same(sort.unique_consecutive(tensors([array])[0]), array.ravel()[changes])


def test_unique_keeps_every_nan():
    found, counts = sort.unique(tensorlib.tensor([float("nan"), 1.0, float("nan"), -0.0, 0.0]), return_counts=True)
    assert found.shape == (4,) and counts.tolist() == [2, 1, 1, 1] and np.isnan(found[2:].numpy()).all()


@given(st.data())
@few(20)
def test_searchsorted(data):
    dtype, right = data.draw(st.sampled_from(["f32", "i64"])), data.draw(st.booleans())
    (array,) = data.draw(operands([dtype], (-20, 20)))
    edges = np.sort(np.round(values(data.draw, dtype, data.draw(st.sampled_from([1, 2, 30, 400])), (-20, 20))))
    array, edges = np.round(array).astype(edges.dtype), edges
    want = np.searchsorted(edges, array, "right" if right else "left")
    x, e = tensors([array, edges])
    same(sort.searchsorted(e, x, right=right), want)
    same(sort.bucketize(x, e, right=right, out_int32=True), want.astype(np.int32))


@pytest.mark.parametrize("side", ["left", "right"])
def test_searchsorted_puts_nan_behind_all_numbers(side):
    nan, inf = float("nan"), float("inf")
    x = np.array([nan, -inf, 2.0, inf, 0.0], np.float32)
    for edges in ([1.0, 2.0, inf], [-inf, -0.0, nan, nan], [nan]):
        some = np.array(edges, np.float32)
        found = sort.searchsorted(*tensors([some, x]), side=side)
        same(found, np.searchsorted(some, x, side))


def test_searchsorted_in_rows():
    rng = np.random.default_rng(0)
    edges, array = rng.integers(0, 30, (3, 4, 20)), rng.integers(-2, 32, (3, 4, 7))
    want = [[np.searchsorted(np.sort(e), v, "right") for e, v in zip(*rows)] for rows in zip(edges, array)]
    e, x = tensors([edges, array])
    same(sort.searchsorted(sort.sort(e).values, x, side="right"), np.array(want))
    same(sort.searchsorted(e, x, right=True, sorter=sort.argsort(e)), np.array(want))
    found = sort.searchsorted(tensorlib.tensor([1, 2]), 1.5)
    assert found.shape == () and found.item() == 1


@given(st.data())
@few(10)
def test_bincount(data):
    n = data.draw(st.sampled_from([1, 2, 50, 3000]))
    array = values(data.draw, "i64", 2 * n, (0, 70))[::2]
    weights = values(data.draw, "f32", n, special=False)
    x, w = tensors([array, weights])
    least = data.draw(st.integers(0, 100))
    same(sort.bincount(x, minlength=least), np.bincount(array, minlength=least))
    found = sort.bincount(x, w, least)
    same(found, np.bincount(array, weights.astype(np.float64), least).astype(np.float32))
    assert sort.bincount(x, x).dtype is D.f64


@given(st.data())
@few(10)
def test_histc(data):
    array = values(data.draw, "f32", data.draw(st.sampled_from([1, 30, 4000])), (-8, 8))
    array[np.abs(array) < 1e-30] = 0  # below the edge at 0 by less than f32 sees
    bins = data.draw(st.sampled_from([1, 4, 32]))
    # edges are powers of two apart: both divide without rounding
    want, _ = np.histogram(array[np.isfinite(array)].astype(np.float64), bins, (-8, 8))
    same(sort.histc(tensorlib.from_numpy(array), bins, -8, 8), want.astype(np.float32))
    plain = np.arange(9, dtype=np.float32)
    same(sort.histc(tensorlib.from_numpy(plain), 4), np.histogram(plain, 4)[0].astype(np.float32))
    assert sort.histc(tensorlib.ones(3), 4).tolist() == [0, 0, 3, 0]


@pytest.mark.parametrize("name", ["sort", "argsort", "topk"])
def test_rows_of_the_registry_mean_the_same(name):
    array = np.random.default_rng(0).integers(0, 5, (4, 30)).astype(np.float64)
    arguments = (7, 1) if name == "topk" else (1,)
    found = getattr(sort, name)(tensorlib.from_numpy(array), *arguments)
    want = OPS[name].ref(np, array, *arguments)
    for ours, theirs in zip(found, want) if isinstance(found, tuple) else [(found, want)]:
        same(ours, theirs)


def test_errors():
    x = tensorlib.tensor([[1.0, 2.0]])
    with pytest.raises(ShapeError, match="sort: got dim 2 of a 2-d tensor"):
        sort.sort(x, 2)
    with pytest.raises(ShapeError, match=r"topk: got k = 3 for a dim of size 2; expected k in \[0, 2\]"):
        sort.topk(x, 3)
    with pytest.raises(ShapeError, match=r"kthvalue: got k = 0 for a dim of size 2; expected k in \[1, 2\]"):
        sort.kthvalue(x, 0)
    with pytest.raises(DTypeError, match="topk: got k of type float"):
        sort.topk(x, 1.0)
    with pytest.raises(DTypeError, match="searchsorted: got values of i64 in a sequence of f32"):
        sort.searchsorted(x[0], tensorlib.tensor([1]))
    with pytest.raises(ShapeError, match="searchsorted: got a sequence of shape"):
        sort.searchsorted(x, tensorlib.tensor([1.0]))
    with pytest.raises(ShapeError, match="side 'left' with right=True"):
        sort.searchsorted(x[0], 1.0, side="left", right=True)
    with pytest.raises(ShapeError, match="bucketize: got 2-d boundaries"):
        sort.bucketize(1.0, x)
    with pytest.raises(DTypeError, match="bincount: got dtype f32"):
        sort.bincount(x[0])
    with pytest.raises(ShapeError, match="bincount: got element -1"):
        sort.bincount(tensorlib.tensor([1, -1]))
    with pytest.raises(DTypeError, match="histc: got dtype i64"):
        sort.histc(tensorlib.tensor([1]))
    with pytest.raises(ShapeError, match="finite ends"):
        sort.histc(tensorlib.tensor([float("nan")]))


def test_results_do_not_depend_on_threads():
    array = np.random.default_rng(0).integers(0, 900, (60, 2000)).astype(np.float32)
    x, before, found = tensorlib.from_numpy(array), backend.threads(), []
    try:
        for n in (1, 2, 3):
            backend.set_num_threads(n)
            results = [
                *sort.sort(x, 0),
                *sort.topk(x, 5),
                sort.argsort(x.reshape(2, -1)),
                sort.searchsorted(sort.msort(x[:, 0]), x),
            ]
            found.append([r.numpy().tobytes() for r in results])
    finally:
        backend.set_num_threads(before)
    assert found[0] == found[1] == found[2]
    same(sort.argsort(x, 0), stable(array, 0, False))
