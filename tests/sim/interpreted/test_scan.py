"""Scans on the GPU backend, interpreted: rows of many tiles, and few rows that are cut in parts."""

import numpy as np
import pytest

import tensorlib

RNG = np.random.default_rng(0)
SHAPES = [((3, 50), 1), ((70, 33), 1), ((17, 3000), 1), ((1, 20_000), 2)]  # and launches


def on_gpu(x):
    return tensorlib.from_numpy(x).to("cuda:0")


def read(x):
    return x.to("cpu").numpy()


@pytest.mark.parametrize("shape, launches", SHAPES)
def test_running_sums(shape, launches, device):
    x = RNG.normal(size=shape).astype(np.float32)
    given, before = on_gpu(x), device.launches
    found = read(tensorlib.cumsum(given, 1))
    assert device.launches - before == launches or device.units > 4  # more of them share a row out
    want = np.cumsum(x.astype(np.float64), 1)
    assert (np.abs(found - want) <= 2.0**-24 * np.abs(want) + 1e-9).all()  # rounded once, from f64
    ones = RNG.integers(-5, 5, shape)
    assert np.array_equal(read(tensorlib.cumsum(on_gpu(ones), 1)), np.cumsum(ones, 1))
    device.check()


@pytest.mark.parametrize("shape, launches", SHAPES)
def test_running_products(shape, launches):
    x = np.exp(RNG.normal(size=shape) / 100).astype(np.float32) * RNG.choice([-1, 1], shape).astype(np.float32)
    want = np.cumprod(x.astype(np.float64), 1)
    np.testing.assert_allclose(read(tensorlib.cumprod(on_gpu(x), 1)), want, rtol=2.0**-23)


@pytest.mark.parametrize("shape, launches", SHAPES)
@pytest.mark.parametrize("name", ["cummax", "cummin"])
def test_running_extremes(name, shape, launches, device):
    x = np.round(RNG.normal(size=shape) * 4).astype(np.float32)  # many are equal: the last counts
    x[-1, shape[1] // 2], x[-1, shape[1] // 2 + 3] = np.nan, np.nan
    before, given = device.launches, on_gpu(x)
    values, places = map(read, getattr(tensorlib, name)(given, 1))
    assert device.launches - before == launches or device.units > 4  # more of them share a row out
    cpu = getattr(tensorlib, name)(tensorlib.from_numpy(x), 1)
    np.testing.assert_array_equal(values, cpu.values.numpy())
    np.testing.assert_array_equal(places, cpu.indices.numpy())
    for dtype in (np.int8, np.uint64):
        whole = RNG.integers(0, 100, shape).astype(dtype)
        found, cpu = (
            getattr(tensorlib, name)(on_gpu(whole), 1),
            getattr(tensorlib, name)(tensorlib.from_numpy(whole), 1),
        )
        np.testing.assert_array_equal(read(found.indices), cpu.indices.numpy())
        np.testing.assert_array_equal(read(found.values), cpu.values.numpy())


@pytest.mark.parametrize("shape, launches", SHAPES)
def test_running_log_sums(shape, launches):
    x = (RNG.normal(size=shape) * 30).astype(np.float32)
    x[0, :5] = -np.inf
    want = np.logaddexp.accumulate(x.astype(np.float64), 1)
    np.testing.assert_allclose(read(tensorlib.logcumsumexp(on_gpu(x), 1)), want, rtol=2.0**-23)
    x[0, 20], x[0, 30] = np.inf, np.nan
    found = read(tensorlib.logcumsumexp(on_gpu(x), 1))[0]
    assert (found[20:30] == np.inf).all() and np.isnan(found[30:]).all()
