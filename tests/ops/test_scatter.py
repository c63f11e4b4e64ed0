"""Writing by index, and lookups, against PyTorch over drawn shapes, strides and dtypes; gradients too."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.ops import lookup, scatter
from tensorlib.registry import OPS
from tests.ops.cases import few
from tests.ops.parity import agree, agree_gradients, draw

REDUCES = ["sum", "prod", "mean", "amax", "amin"]


def ids_of(data, shape, size, distinct=False):
    """Random indices of a dim of `size`."""
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    return rng.permutation(size)[: shape[0]] if distinct else rng.integers(0, size, shape)


@pytest.mark.parametrize("dtype", ["f32", "i64"])
@pytest.mark.parametrize("reduce", REDUCES)
@given(st.data())
@few(5)
def test_scatter_reduce(reduce, dtype, data):
    domain = (-3, 3) if dtype == "f32" else (-4, 9)
    x, dim = draw(data, (3, 4), dtype, domain), data.draw(st.integers(-2, 1))
    # other values than x's: PyTorch lets ties with x share the gradient even where x does not count
    src, ids = draw(data, (3, 4), dtype, (domain[0] + 1, domain[1])), ids_of(data, (3, 4), x.shape[dim])
    keep = data.draw(st.booleans())
    run = [lambda a, b, c, f=f: f(a, dim, b, c, reduce, include_self=keep)
           for f in (scatter.scatter_reduce, torch.scatter_reduce)]  # fmt: skip
    # six terms of at most 3: sums to 18, products to 3 ** 5 with 5 roundings
    agree(*run, x, ids, src, roundings=8, scale=18 if reduce in ("sum", "mean") else 0)
    if dtype == "f32":
        agree_gradients(lambda a, c: run[0](a, tensorlib.from_numpy(ids), c),
                        lambda a, c: run[1](a, torch.from_numpy(ids), c), x, src)  # fmt: skip
    y = tensorlib.from_numpy(np.array(x))
    out = scatter.scatter_reduce_(y, dim, *map(tensorlib.from_numpy, (ids, src)), reduce, include_self=keep)
    assert out is y and np.array_equal(y.numpy(), run[0](*map(tensorlib.from_numpy, (x, ids, src))).numpy())


def test_scatter_reduce_of_ties_zeros_and_larger_sources():
    x = np.array([2.0, 0.0, 0.0, 5.0])
    ids, src = np.array([0, 0, 1, 1, 2, 2, 3]), np.array([2.0, 2.0, 0.0, 3.0, 0.0, 4.0, 5.0])
    for reduce in ("prod", "amax", "amin"):
        agree_gradients(
            lambda a, c, r=reduce: scatter.scatter_reduce(a, 0, tensorlib.from_numpy(ids), c, r),
            lambda a, c, r=reduce: torch.scatter_reduce(a, 0, torch.from_numpy(ids), c, r), x, src,
        )  # fmt: skip
    small = np.array([[1, 0]])
    for reduce in REDUCES:
        agree(scatter.scatter_reduce, torch.scatter_reduce, np.ones((2, 3)), 0, small, np.full((2, 4), 3.0), reduce)
    for name in ("scatter_prod", "scatter_amax", "scatter_amin"):
        want = OPS[name].ref(np, x, 0, ids, src)
        assert getattr(scatter, name)(*(tensorlib.from_numpy(v) if v is not None else 0 for v in (x, None, ids, src))
                                      ).tolist() == want.tolist()  # fmt: skip


SLICED = {"index_copy": True, "index_add": False, "index_fill": True, "index_reduce": False}


@pytest.mark.filterwarnings("ignore:index_reduce.*is in beta:UserWarning")  # PyTorch's
@pytest.mark.parametrize("name", SLICED)
@given(st.data())
@few(5)
def test_slices_along_a_dim(name, data):
    x, dim = draw(data, data.draw(st.sampled_from([(4, 3), (5,), (2, 4, 3)]))), 0
    dim = data.draw(st.integers(-x.ndim, x.ndim - 1))
    ids = ids_of(data, (2,), x.shape[dim], SLICED[name])
    shape = list(x.shape)
    shape[dim] = len(ids)
    source = [draw(data, tuple(shape))] if name != "index_fill" else [7.5]
    options = {"reduce": "amax"} if name == "index_reduce" else {}
    ours = getattr(scatter, name)
    agree(ours, getattr(torch, name), x, dim, ids, *source, scale=9, **options)
    if name != "index_reduce":
        agree_gradients(ours, getattr(torch, name), x, dim, ids, *source)
    y = tensorlib.from_numpy(np.array(x))
    given = [tensorlib.from_numpy(s) if isinstance(s, np.ndarray) else s for s in source]
    assert getattr(y, name + "_")(dim, tensorlib.from_numpy(ids), *given, **options) is y
    assert np.array_equal(y.numpy(), ours(tensorlib.from_numpy(x), dim, tensorlib.from_numpy(ids), *given, **options))


@given(st.data())
@few(10)
def test_index_put(data):
    x = draw(data, (4, 5, 2))
    i, j = ids_of(data, (3, 1), 4), ids_of(data, (2,), 5)
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).random((4, 5)) < 0.3
    for key, shape in (((i, j), (3, 2, 2)), ((i,), (5, 2)), ((mask,), (2,)), ((mask,), ())):
        values = draw(data, shape)
        agree(scatter.index_put, torch.index_put, x, key, values, True, roundings=20, scale=9)
        agree_gradients(
            lambda a, v, k=key: scatter.index_put(a, tuple(map(tensorlib.from_numpy, k)), v, True),
            lambda a, v, k=key: torch.index_put(a, tuple(map(torch.from_numpy, k)), v, True), x, values,
        )  # fmt: skip
    distinct = (np.array([0, 3, 1]), np.array([4, 0, 0]))
    values = draw(data, (3, 2))
    agree(scatter.index_put, torch.index_put, x, distinct, values)
    agree_gradients(
        lambda a, v: scatter.index_put(a, tuple(map(tensorlib.from_numpy, distinct)), v),
        lambda a, v: torch.index_put(a, tuple(map(torch.from_numpy, distinct)), v), x, values,
    )  # fmt: skip
    for accumulate in (False, True):
        y, want = tensorlib.from_numpy(np.array(x)), torch.from_numpy(np.array(x))
        y.index_put_((None, tensorlib.tensor([1])), tensorlib.tensor(5.0), accumulate)
        want[:, 1] = want[:, 1] + 5 if accumulate else 5
        assert np.array_equal(y.numpy(), want.numpy())


@given(st.data())
@few(6)
def test_flat_and_masked_writes(data):
    x, source = draw(data, (3, 4)), draw(data, (13,))
    ids = ids_of(data, (5,), 12, True).reshape(5, 1)
    for accumulate in (False, True):
        y = tensorlib.from_numpy(np.array(x)).put_(*map(tensorlib.from_numpy, (ids, source[:5])), accumulate)
        agree(lambda a, b, c, acc=accumulate, y=y: y, lambda a, b, c, acc=accumulate: a.put(b, c, acc), x, ids,
              source[:5], scale=6)  # fmt: skip
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).random((4,)) < 0.5
    agree(scatter.masked_scatter, lambda a, m, s: a.masked_scatter(m, s), x, mask, source)
    agree_gradients(
        lambda a, s: scatter.masked_scatter(a, tensorlib.from_numpy(mask), s),
        lambda a, s: a.masked_scatter(torch.from_numpy(mask), s), x, source,
    )  # fmt: skip


@given(st.data())
@few(8)
def test_writes_into_views(data):
    x = draw(data, (4, 5, 3))
    dim, at = data.draw(st.integers(-3, 2)), data.draw(st.integers(-3, 2))
    row = draw(data, x.shape[: dim % 3] + x.shape[dim % 3 + 1 :])
    agree(scatter.select_scatter, torch.select_scatter, x, row, dim, at)
    agree_gradients(lambda a, b: scatter.select_scatter(a, b, dim, at),
                    lambda a, b: torch.select_scatter(a, b, dim, at), x, row)  # fmt: skip
    step = data.draw(st.integers(1, 3))
    part = draw(data, x[:, 1:5:step].shape)
    agree(scatter.slice_scatter, torch.slice_scatter, x, part, 1, 1, 5, step)
    agree_gradients(lambda a, b: scatter.slice_scatter(a, b, 1, 1, 5, step),
                    lambda a, b: torch.slice_scatter(a, b, 1, 1, 5, step), x, part)  # fmt: skip
    k = data.draw(st.integers(-2, 2))
    line = draw(data, np.diagonal(x, k, 2, 0).shape)
    agree(scatter.diagonal_scatter, torch.diagonal_scatter, x, line, k, 2, 0)
    agree_gradients(lambda a, b: scatter.diagonal_scatter(a, b, k, 2, 0),
                    lambda a, b: torch.diagonal_scatter(a, b, k, 2, 0), x, line)  # fmt: skip


@given(st.data())
@few(8)
def test_lookups(data):
    x = draw(data, (3, 4))
    ids = ids_of(data, (2, 5), 12)
    agree(lookup.take, torch.take, x, ids)
    agree(lookup.take_along_dim, lambda a, i: torch.take_along_dim(a.contiguous(), i), x, ids)
    agree(lookup.take_along_dim, torch.take_along_dim, x, ids_of(data, (1, 6), 4), 1)
    agree(lookup.argwhere, torch.argwhere, np.where(x > 0, x, 0))
    agree_gradients(
        lambda a: lookup.take(a, tensorlib.from_numpy(ids)), lambda a: torch.take(a, torch.from_numpy(ids)), x
    )
    counts = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 3, 4)
    agree(tensorlib.repeat_interleave, torch.repeat_interleave, x, counts, 1)
    agree(tensorlib.repeat_interleave, torch.repeat_interleave, x, np.array([2]))
    agree_gradients(lambda a: a.repeat_interleave(tensorlib.from_numpy(counts), 1),
                    lambda a: a.repeat_interleave(torch.from_numpy(counts), 1), x)  # fmt: skip


def test_one_hot():
    ids = np.array([[0, 2], [1, 1]])
    agree(lookup.one_hot, F.one_hot, ids)
    agree(lookup.one_hot, F.one_hot, ids, 5)
    assert np.array_equal(OPS["one_hot"].ref(np, ids, 5), lookup.one_hot(tensorlib.from_numpy(ids), 5).numpy())
    assert lookup.one_hot(tensorlib.zeros(0, dtype="i64"), 3).shape == (0, 3)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@given(st.data())
@few(5)
def test_embedding_bag(mode, data):
    weight = draw(data, (6, 3))
    ids, square = ids_of(data, (7,), 6), ids_of(data, (3, 4), 6)
    offsets = np.array([0, 2, 2, 5])

    def theirs(i, w, o=None, **kw):
        return F.embedding_bag(i, w, o, mode=mode, **kw)

    for padding in (None, 2):
        agree(lookup.embedding_bag, lambda i, w, o, p=padding, **kw: theirs(i, w, o, padding_idx=p), ids, weight,
              offsets, mode=mode, padding_idx=padding, scale=21)  # fmt: skip
    agree(lookup.embedding_bag, lambda i, w, **kw: theirs(i, w), square, weight, mode=mode, scale=21)
    if mode == "sum":
        scale = draw(data, (7,))
        agree(lookup.embedding_bag, lambda i, w, o, **kw: F.embedding_bag(i, w, o, **kw), ids, weight, offsets,
              mode="sum", per_sample_weights=scale, scale=63, roundings=9)  # fmt: skip
    if mode != "max":
        agree_gradients(lambda w: lookup.embedding_bag(*map(tensorlib.from_numpy, (ids,)), w,
                                                       tensorlib.from_numpy(offsets), mode=mode),
                        lambda w: theirs(torch.from_numpy(ids), w, torch.from_numpy(offsets)), weight)  # fmt: skip


def test_errors():
    x, at = tensorlib.zeros(3, 4), tensorlib.tensor([0, 1])
    with pytest.raises(ShapeError, match="scatter_reduce: got reduce 'max'"):
        scatter.scatter_reduce(x, 0, tensorlib.zeros(3, 4, dtype="i64"), x, "max")
    with pytest.raises(DTypeError, match="scatter_reduce: got src of f64"):
        scatter.scatter_reduce(x, 0, tensorlib.zeros(3, 4, dtype="i64"), x.to("f64"), "sum")
    with pytest.raises(ShapeError, match="index 3 in a dim of size 3"):
        scatter.scatter_reduce(x, 0, tensorlib.full((3, 4), 3), x, "amax")
    with pytest.raises(ShapeError, match="index_copy: got source of shape"):
        scatter.index_copy(x, 0, at, tensorlib.zeros(3, 4))
    with pytest.raises(ShapeError, match="index_fill: got a value of shape"):
        scatter.index_fill(x, 0, at, tensorlib.zeros(2))
    with pytest.raises(ShapeError, match="put: got 3 elements for 2 indices"):
        scatter.put(x, at, tensorlib.zeros(3))
    with pytest.raises(ShapeError, match="masked_scatter: got 1 elements for 12 places"):
        scatter.masked_scatter(x, x == 0, tensorlib.zeros(1))
    with pytest.raises(ShapeError, match="select_scatter: got src of shape"):
        scatter.select_scatter(x, x, 0, 0)
    with pytest.raises(DTypeError, match="take: got an index of dtype f32"):
        lookup.take(x, x)
    with pytest.raises(ShapeError, match="take_along_dim: got shapes"):
        lookup.take_along_dim(x, at, 0)
    with pytest.raises(ShapeError, match="one_hot: got classes from 0 to 1"):
        lookup.one_hot(at, 1)
    with pytest.raises(ShapeError, match="embedding_bag: got input of shape"):
        lookup.embedding_bag(at, x)
    with pytest.raises(ShapeError, match="embedding_bag: got mode 'min'"):
        lookup.embedding_bag(at, x, at, mode="min")
    with pytest.raises(ShapeError, match="repeat_interleave: got repeats of shape"):
        x.repeat_interleave(tensorlib.tensor([1, 2]), 1)
