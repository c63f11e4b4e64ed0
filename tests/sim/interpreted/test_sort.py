"""Sorting, searching and counting on a GPU: the CPU's bits for every dtype, order and length."""

import numpy as np
import pytest

from kernels_triton import ordering
from tensorlib.ops import sort
from tests.sim.interpreted.devices import check

rng = np.random.default_rng(5)
DTYPES = ["f4", "f2", "f8", "i8", "i4", "i2", "i1", "u1", "u4", "u8", "?"]


def some(shape, dtype):
    """Many equal elements; NaN and zeros of both signs among floats, and the ends of what integers hold."""
    x = rng.integers(0, 2 if dtype == "?" else 40, shape).astype(dtype)
    if x.dtype.kind == "f":
        x -= 20
        x.flat[:: max(1, x.size // 7)] = np.nan
        x.flat[1 :: max(2, x.size // 5)] = -0.0
        x.flat[2 :: max(3, x.size // 9)] = -np.inf
    elif dtype != "?":
        x.flat[0], x.flat[-1] = np.iinfo(x.dtype).max, np.iinfo(x.dtype).min
    return x


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_short_rows(dtype, descending, device):
    for shape in ((3, 1), (70, 5), (3, 100)):
        check(lambda x: tuple(sort.sort(x, -1, descending)), some(shape, dtype))


def test_places_need_not_be_turned(device, monkeypatch):
    monkeypatch.setattr(ordering, "turns", lambda arch: False)
    for shape in ((70, 5), (3, 100), (1, 4600)):
        check(lambda x: tuple(sort.sort(x, -1)), some(shape, "f4"))


@pytest.mark.parametrize("dtype", ["f4", "f8", "u1"])
def test_long_rows(dtype, device):
    x = some((2, 4600), dtype)
    check(lambda x: tuple(sort.sort(x, -1)), x)
    check(lambda x: tuple(sort.topk(x, 20)), x)
    check(lambda x: tuple(sort.topk(x, 200, largest=False)), x)
    check(lambda x: sort.argsort(x, 0, True), x[:, :30])


@pytest.mark.parametrize("dtype", ["f4", "f2", "u1", "i4"])
def test_the_first_of_a_row(dtype, device):
    for shape, k in (((3, 300), 9), ((9, 257), 5), ((1, 1500), 32), ((2, 9000), 3)):
        for largest in (False, True):
            check(lambda x, k=k, largest=largest: tuple(sort.topk(x, k, largest=largest)), some(shape, dtype))


@pytest.mark.parametrize("n", [2048, 2049, 4097, 6144, 12_001])
def test_runs_are_merged(n, device):
    x = rng.standard_normal((2, n)).astype("f4")
    check(lambda x: tuple(sort.sort(x, -1)), x)
    check(lambda x: sort.argsort(x, -1, True), np.sort(x) // 1)


def test_the_best_of_many_are_chosen_in_several_rounds(device):
    check(lambda x: tuple(sort.topk(x, 100)), some((1, 50_000), "f4"))


def test_distinct_values(device):
    for x in (some(10, "f4"), some(3000, "f4"), some(2100, "i8"), some((3, 5), "u1"), np.zeros(0, "f4")):
        check(lambda x: sort.unique(x, return_inverse=True, return_counts=True), x)
        check(lambda x: sort.unique_consecutive(x, return_inverse=True), x)


@pytest.mark.parametrize("dtype", ["f4", "f2", "u8", "i4"])
def test_search(dtype, device):
    edges, x = np.sort(some((2, 37), dtype), -1), some((2, 50), dtype)
    for right in (False, True):
        check(lambda e, x, r=right: sort.searchsorted(e, x, right=r), edges, x)
        check(lambda e, x, r=right: sort.searchsorted(e, x, right=r, out_int32=True), edges[0], x)


def test_counts(device):
    x = rng.integers(0, 9, 1500)
    check(lambda x: sort.bincount(x, minlength=12), x)
    check(lambda x, w: sort.bincount(x, w), x.astype("u1"), rng.integers(-5, 5, 1500).astype("f4"))
    check(lambda x, w: sort.bincount(x, w), x, rng.integers(-5, 5, 1500).astype("i4"))
    for dtype in ("f4", "f8", "f2"):
        check(lambda x: sort.histc(x, 7, -2.0, 2.5), rng.standard_normal(1500).astype(dtype))
