"""Sizes at which kernels work in pieces, tiles and several threads, against NumPy, with one thread and with two."""

import numpy as np
import pytest

import tensorlib
from tensorlib import backend
from tensorlib.errors import ShapeError

RNG = np.random.default_rng(0)
# columns enough for several tiles, few columns (rows are split), short rows, rows of several blocks
SHAPES = ((1000, 1000), (9000, 64), (70_000, 5), (64, 9000), (3, 700, 130))


@pytest.fixture(params=[1, 2])
def threads(request):
    before = backend.backend().pool.threads
    backend.set_num_threads(request.param)
    yield request.param
    backend.set_num_threads(before)


@pytest.mark.parametrize("shape", SHAPES)
def test_reductions(threads, shape):
    array = RNG.standard_normal(shape, np.float32)
    holed = array.copy()
    holed[tuple(n // 2 for n in shape)] = np.nan
    for dim in (None, *range(len(shape))):
        found = tensorlib.sum(tensorlib.from_numpy(array), dim).numpy()
        # kernels_numba/reduce.py; 1 more for the result's own rounding
        bound = 137 * 2.0**-24 * np.abs(array).sum(dim, dtype=np.float64)
        assert np.all(np.abs(found - array.sum(dim, dtype=np.float64)) <= bound)
        for values in (array, holed):
            x = tensorlib.from_numpy(values)
            for name in ("max", "min"):
                expected = getattr(np, name)(values, dim)
                assert np.array_equal(getattr(tensorlib, f"a{name}")(x, dim).numpy(), expected, equal_nan=True)
                expected = getattr(np, f"arg{name}")(values, dim)
                assert np.array_equal(getattr(tensorlib, f"arg{name}")(x, dim).numpy(), expected)


def test_sums_are_the_same_for_any_number_of_threads():
    arrays = [tensorlib.from_numpy(RNG.standard_normal(shape, np.float32)) for shape in SHAPES]
    found = []
    before = backend.backend().pool.threads
    for count in (1, 2):
        backend.set_num_threads(count)
        found.append([tensorlib.sum(x, dim).numpy() for x in arrays for dim in (None, 0, -1)])
    backend.set_num_threads(before)
    assert all(map(np.array_equal, *found))


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_gather_and_scatter_add(threads, dim):
    array = RNG.standard_normal((30, 41, 83), np.float32)
    ids = RNG.integers(-array.shape[dim], array.shape[dim], array.shape)
    x, index = tensorlib.from_numpy(array), tensorlib.from_numpy(ids)
    expected = np.take_along_axis(array, ids, dim)
    assert np.array_equal(tensorlib.gather(x, dim, index).numpy(), expected)
    places = list(np.indices(ids.shape))
    places[dim] = ids
    added = np.zeros_like(array)
    np.add.at(added, tuple(places), array)  # in the same order for every place
    zeros = tensorlib.zeros(*array.shape)
    assert np.array_equal(tensorlib.scatter_add(zeros, dim, index, x).numpy(), added)
    row = ids.reshape(-1)[:1300]
    found = tensorlib.index_select(x, dim, tensorlib.from_numpy(row)).numpy()
    assert np.array_equal(found, np.take(array, row, dim))


@pytest.mark.parametrize("place", [0, 511, 512, 99_999])
def test_an_index_outside_is_found_in_any_piece(threads, place):
    x, ids = tensorlib.ones(7), np.zeros(100_000, np.int64)
    ids[place] = -8
    for read in (lambda i: tensorlib.index_select(x, 0, i), lambda i: tensorlib.gather(x, 0, i)):
        with pytest.raises(ShapeError, match="index -8 in a dim of size 7"):
            read(tensorlib.from_numpy(ids))


@pytest.mark.parametrize("n", [1, 63, 64, 65, 100_001])
def test_nonzero(threads, n):
    for part in (0.0, 0.01, 0.5, 1.0):
        mask = RNG.random(n) < part
        assert np.array_equal(tensorlib.nonzero(tensorlib.from_numpy(mask)).numpy(), np.argwhere(mask))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1"])
@pytest.mark.parametrize("shape", [(100, 77), (33, 130), (3, 50, 70)])
def test_transposed_operands(threads, dtype, shape):
    array = (RNG.standard_normal(shape) * 50).astype(dtype)
    turned = array.swapaxes(-1, -2)
    other = np.ascontiguousarray(turned[..., ::-1])
    x, y = tensorlib.from_numpy(array).transpose(-1, -2), tensorlib.from_numpy(other)
    assert np.array_equal(x.contiguous().numpy(), turned)
    assert np.array_equal((x + y).numpy(), turned + other)
    assert np.array_equal((y - x).numpy(), other - turned)
    assert np.array_equal((x > x[..., :1]).numpy(), turned > turned[..., :1])


def test_transposed_operands_in_place(threads):
    array, other = RNG.standard_normal((2, 300, 300), np.float32)
    x = tensorlib.from_numpy(array.copy())
    assert np.array_equal(x.add_(x.T).numpy(), array + array.T)
    x.T.add_(tensorlib.from_numpy(other))
    assert np.array_equal(x.numpy(), array + array.T + other.T)
    x.T[:, 5:].copy_(tensorlib.from_numpy(other)[:, 5:])
    assert np.array_equal(x[5:].numpy(), other.T[5:])


@pytest.mark.parametrize("k", [1, 40])
@pytest.mark.parametrize("largest", [True, False])
def test_topk_passes_over_nothing(largest, k):
    array = RNG.integers(0, 5000, 20_000).astype(np.float32)
    order = np.argsort(-array if largest else array, kind="stable")[:k]
    found = tensorlib.topk(tensorlib.from_numpy(array), k, largest=largest)
    assert np.array_equal(found.indices.numpy(), order) and np.array_equal(found.values.numpy(), array[order])


@pytest.mark.parametrize("dtype", ["i8", "u16", "i32", "u32", "i64", "u64"])
@pytest.mark.parametrize("source", ["f4", "f8"])
def test_floats_saturate(source, dtype):
    edges = [
        s * (2.0**b + d) for b in (0, 7, 8, 15, 16, 31, 32, 63, 64, 100) for d in (-1, -0.5, 0, 0.5, 1) for s in (-1, 1)
    ]
    array = np.array([*edges, 0.5, -0.5, np.inf, -np.inf, np.nan] * 3, source)
    info = np.iinfo({"i": "int", "u": "uint"}[dtype[0]] + dtype[1:])
    expected = [0 if v != v else min(max(v, info.min), info.max) for v in array.tolist()]
    assert tensorlib.from_numpy(array).to(dtype).tolist() == [int(v) for v in expected]
