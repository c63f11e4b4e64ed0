"""Indexing, and ops that read or write by index, against NumPy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.ops import index
from tests.ops.cases import few, operands, tensors


def slices(draw, n):
    bound = st.none() | st.integers(-n - 2, n + 2)
    return slice(draw(bound), draw(bound), draw(st.sampled_from([None, 1, 2, 3, -1, -2])))


@st.composite
def keys(draw, shape, advanced=True):
    """A key for NumPy, PyTorch and us alike: at most one array (what two of them mean is tested by hand)."""
    out, used, left = [], False, list(shape)
    while left and draw(st.integers(0, 9)):
        n = left[0]
        kind = draw(st.sampled_from(["slice", "slice", "int", "none", "array", "mask"]))
        if kind == "none":
            out.append(None)
            continue
        if kind == "int" and n:
            out.append(draw(st.integers(-n, n - 1)))
        elif kind == "array" and n and advanced and not used:
            some = draw(st.lists(st.integers(-n, n - 1), max_size=4))
            out.append(np.array(some, np.int64).reshape(draw(st.sampled_from([(-1,), (1, -1)]))))
            used = True
        elif kind == "mask" and advanced and not used:
            out.append(np.random.default_rng(draw(st.integers(0, 99))).random(n) < 0.5)
            used = True
        else:
            out.append(slices(draw, n))
        left.pop(0)
    if draw(st.booleans()) and not any(k is Ellipsis for k in out):
        out.insert(draw(st.integers(0, len(out))) if not left else len(out), Ellipsis)
    return tuple(out)


def ours(key):
    return tuple(tensorlib.from_numpy(k) if isinstance(k, np.ndarray) else k for k in key)


def numpys(array, key):
    """NumPy moves an array's dims to the front when an integer stands apart from it;
    PyTorch and we take integers first.
    """
    dims, full, i = [], [], 0
    spare = array.ndim - sum(k is not None and k is not Ellipsis for k in key)
    for k in key:
        if k is Ellipsis:
            full += [slice(None)] * spare
        else:
            full.append(k)
    for k in full:
        if isinstance(k, int):
            dims.append((i, k))
        i += k is not None
    for d, k in reversed(dims):
        array = np.take(array, k, d) if array.shape[d] else array
    return array, tuple(k for k in full if not isinstance(k, int))


@given(st.data())
@few(150)
def test_getitem(data):
    (array,) = data.draw(operands(["f32"], special=False))
    key = data.draw(keys(array.shape))
    base, rest = numpys(array, key)
    found = tensors([array])[0][ours(key)]
    assert np.array_equal(found.numpy(), base[rest]), key
    if not any(isinstance(k, np.ndarray) for k in key) and found.numel():
        assert found.buffer.ptr == tensors([array])[0].buffer.ptr or np.shares_memory(found.numpy(), array)  # a view


@given(st.data())
@few(100)
def test_setitem(data):
    (array,) = data.draw(operands(["f32"], special=False))
    array = array.copy(order="C") if data.draw(st.booleans()) else array.T.copy(order="C").T
    key = data.draw(keys(array.shape))
    base, rest = numpys(np.arange(array.size).reshape(array.shape), key)
    places = base[rest].ravel()
    want, x = array.copy(), tensorlib.from_numpy(array)
    if len(set(places.tolist())) < places.size or data.draw(st.booleans()):
        value = -3.5
        want.flat[places] = value
    else:
        value = np.arange(places.size, dtype=np.float32).reshape(base[rest].shape)
        want.flat[places] = value.ravel()
        value = tensorlib.from_numpy(value)
    x[ours(key)] = value
    assert np.array_equal(array, want), key


def test_two_index_arrays():
    a = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    x = tensorlib.from_numpy(a)
    i, j = np.array([0, 1, -1]), np.array([[2], [0]])
    assert np.array_equal(x[i.tolist(), j.tolist()].numpy(), a[i, j])
    assert np.array_equal(x[:, j.tolist(), i.tolist()].numpy(), a[:, j, i])
    assert np.array_equal(x[i.tolist(), :, j.tolist()].numpy(), a[i, :, j])  # apart: to the front
    assert x[i.tolist(), 0, j.tolist()].shape == (2, 3, 5)  # integers go first, as in PyTorch
    mask = a.sum((2, 3)) % 2 == 0
    assert np.array_equal(x[tensorlib.from_numpy(mask)].numpy(), a[mask])
    assert np.array_equal(x[:, tensorlib.from_numpy(a[0, :, :, 0] > 30)].numpy(), a[:, a[0, :, :, 0] > 30])
    assert np.array_equal(x[x > 100].numpy(), a[a > 100])
    b = a.copy()
    b[:, j, i] = -1
    x = tensorlib.from_numpy(a.copy())
    x[:, j, i] = -1
    assert np.array_equal(x.numpy(), b)
    x[x < 0] = tensorlib.arange(int((b < 0).sum()))
    b[b < 0] = np.arange((b < 0).sum())
    assert np.array_equal(x.numpy(), b)


def test_assignment_broadcasts_and_casts():
    x = tensorlib.zeros(2, 3, dtype="i32")
    x[0] = [1, 2, 3]
    x[:, 1] = tensorlib.tensor([7.9, -7.9])
    x[1, ::2] = 5
    assert x.tolist() == [[1, 7, 3], [5, -7, 5]]
    x[[0, 0], [0, 0]] = tensorlib.tensor([8, 9])  # of equal indices the last wins
    assert x[0, 0].item() == 9
    with pytest.raises(ShapeError, match="broadcast_to"):
        x[0] = tensorlib.zeros(2)


@pytest.mark.parametrize(
    "key, error, words",
    [
        ((0, 0, 0), ShapeError, "3 indices"),
        (5, ShapeError, "index 5 at dim 0 of size 2"),
        ([5], ShapeError, "index 5"),
        ([-3], ShapeError, "index -3 in a dim of size 2"),
        (([0], [9]), ShapeError, "index 9"),
        ((..., ...), ShapeError, "ellipses"),
        (slice(None, None, 0), ShapeError, "step 0"),
        ([True], ShapeError, "a mask of shape"),
        (1.5, DTypeError, "a float"),
        ([0.5], DTypeError, "dtype f32"),
        ("a", DTypeError, "a str"),
        (True, DTypeError, "a bool"),
    ],
)
def test_bad_keys(key, error, words):
    x = tensorlib.zeros(2, 3)
    with pytest.raises(error, match=words):
        x[key]
    with pytest.raises(error, match=words):
        x[key] = 1.0


@given(st.data())
@few(30)
def test_index_select_and_gather(data):
    (array,) = data.draw(operands(["f32"], special=False))
    if not array.ndim or not array.size:
        return
    dim = data.draw(st.integers(-array.ndim, array.ndim - 1))
    n = array.shape[dim]
    ids = np.random.default_rng(data.draw(st.integers(0, 99))).integers(-n, n, data.draw(st.integers(0, 7)))
    x = tensors([array])[0]
    assert np.array_equal(x.index_select(dim, tensorlib.from_numpy(ids)).numpy(), np.take(array, ids, dim))
    shape = list(array.shape)
    shape[dim] = 3
    ids = np.random.default_rng(1).integers(0, n, shape)
    found = x.gather(dim, tensorlib.from_numpy(ids))
    assert np.array_equal(found.numpy(), np.take_along_axis(array, ids, dim))
    assert np.array_equal(x.gather(dim, found.to("i64") * 0 + tensorlib.from_numpy(ids)).numpy(), found.numpy())


def test_scatter_and_index_add():
    x = tensorlib.zeros(3, 4)
    ids = tensorlib.tensor([[0, 1, 2, 0], [2, 0, 0, 1]])
    src = tensorlib.arange(8, dtype="f32").reshape(2, 4) + 1
    want = np.zeros((3, 4), np.float32)
    np.put_along_axis(want, np.array(ids), np.array(src), 0)
    assert np.array_equal(x.scatter(0, ids, src).numpy(), want)
    added = np.zeros((3, 4), np.float32)
    np.add.at(added, (np.array(ids), np.arange(4)[None]), np.array(src))
    assert np.array_equal(x.scatter_add(0, ids, src).numpy(), added) and x.sum().item() == 0
    assert x.scatter(1, tensorlib.tensor([[3], [0], [1]]), 7).tolist() == [[0, 0, 0, 7], [7, 0, 0, 0], [0, 7, 0, 0]]
    assert x.index_add(0, [2, 2], src).tolist() == [[0] * 4, [0] * 4, [6, 8, 10, 12]]
    h = tensorlib.zeros(2, dtype="bf16").scatter_add(
        0, tensorlib.tensor([1, 1]), tensorlib.tensor([1.5, 2.0], dtype="bf16")
    )
    assert h.tolist() == [0, 3.5]
    many = tensorlib.arange(10_000) % 3
    assert tensorlib.zeros(3).scatter_add(0, many, tensorlib.ones(10_000)).tolist() == [3334, 3333, 3333]
    assert tensorlib.zeros(3, dtype="i64").scatter(0, many, tensorlib.arange(10_000)).tolist() == [9999, 9997, 9998]
    x.T.scatter_(0, tensorlib.tensor([[1, 2, 3]]), 9.0)
    assert x.tolist() == [[0, 9, 0, 0], [0, 0, 9, 0], [0, 0, 0, 9]]
    with pytest.raises(ShapeError, match="index 3 in a dim of size 3"):
        x.scatter(0, tensorlib.tensor([[3]]), 1.0)
    with pytest.raises(ShapeError, match="an index of shape"):
        x.gather(0, tensorlib.tensor([1]))


def test_nonzero_and_masked_select():
    array = np.random.default_rng(3).integers(-1, 1, 60, endpoint=True).reshape(3, 4, 5)
    x = tensorlib.from_numpy(array)
    assert np.array_equal(x.nonzero().numpy(), np.argwhere(array))
    assert np.array_equal(x.T.masked_select(x.T > 0).numpy(), array.T[array.T > 0])
    assert x.masked_select(tensorlib.tensor([True, False, False, False, True])).shape == (24,)
    assert index.nonzero(tensorlib.zeros(2, 2)).shape == (0, 2)


def test_triangles():
    array = np.arange(24).reshape(2, 3, 4)
    x = tensorlib.from_numpy(array)
    for k in (-1, 0, 2):
        assert np.array_equal(x.tril(k).numpy(), np.tril(array, k)) and np.array_equal(
            x.triu(k).numpy(), np.triu(array, k)
        )


def test_gather_by_every_index_dtype():
    x = tensorlib.tensor([10, 20, 30])
    for dtype in ("u8", "i32", "i64"):
        assert x.index_select(0, tensorlib.tensor([2, 0], dtype=dtype)).tolist() == [30, 10]
