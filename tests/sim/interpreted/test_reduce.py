"""Reductions and softmax on the GPU backend, interpreted: long rows, few rows, parts, values that rows never draw."""

import numpy as np
import pytest

import tensorlib
from kernels_triton import reduce

EPS = 2.0**-24
RNG = np.random.default_rng(0)


def on_gpu(x):
    return tensorlib.from_numpy(x).to("cuda:0")


def read(x):
    return x.to("cpu").numpy()


def within_sum(found, x, dims, chain=150):
    """The promise of kernels_triton/reduce.py: (CHAIN + 24) eps sum |x|, and the last rounding."""
    x = x.astype(np.float64)
    bound = chain * EPS * np.abs(x).sum(dims)
    assert (np.abs(read(found).astype(np.float64) - x.sum(dims)) <= bound).all()


@pytest.mark.parametrize(
    "shape, dims, launches",
    [((300_001,), None, 1), ((3, 70_000), 1, 1), ((20_000, 3), 0, 1), ((2, 9000, 5), 1, 1), ((64, 700), 1, 1),
     ((700, 64), 0, 1), ((5, 6, 7, 8), (0, 2), 1), ((5, 6, 7, 8), (1, 3), 1)],
)  # fmt: skip
def test_sums_and_extremes_of_any_dims(shape, dims, launches, device):
    x = RNG.normal(size=shape).astype(np.float32)
    given, before = on_gpu(x), device.launches
    within_sum(tensorlib.sum(given, dims), x, dims)
    assert device.launches - before == launches or device.units > 4  # more of them share a row out
    assert np.array_equal(read(tensorlib.amax(given, dims)), x.max(dims))
    assert np.array_equal(read(tensorlib.amin(given, dims)), x.min(dims))
    device.check()


def test_results_do_not_change_from_run_to_run():
    x = on_gpu(RNG.normal(size=200_000).astype(np.float32))
    assert read(tensorlib.sum(x)).tobytes() == read(tensorlib.sum(x)).tobytes()


def test_calls_that_need_the_workspace_are_repeated(device, monkeypatch):
    """Without the op's own Python; on another stream, in that one's workspace."""
    if not device.interpreted:
        pytest.skip("streams of a real GPU: tests/gpu/test_driver.py")
    n = 55_007
    x, y = (RNG.normal(size=n).astype(np.float32) for _ in range(2))
    for function in (tensorlib.sum, tensorlib.argmax):
        function(on_gpu(x))
    monkeypatch.setattr(reduce, "arg_kernel", None)
    monkeypatch.setattr(reduce, "cut", None)
    first, own = device.stream(), device.workspace()
    for stream in (first, 7):
        monkeypatch.setattr(device, "stream", lambda stream=stream: stream)
        before = device.launches
        within_sum(tensorlib.sum(on_gpu(y)), y, None)
        assert read(tensorlib.argmax(on_gpu(y))) == y.argmax()
        assert device.launches - before == 2
    assert device.workspace() != own and not (device.within(0) or device.within(own - 1))


def test_many_small_errors_do_not_add_up():
    """A sum of 2^22 elements whose chain would be 1024 tiles long for one program: each part has its own bound."""
    x = np.full(1 << 22, 0.1, np.float32)
    within_sum(tensorlib.sum(on_gpu(x)), x, None)


def test_products_leave_f32_on_their_way():
    x = np.tile(np.array([1e30, 1e30, 1e-30, 1e-30], np.float32), 4)
    assert read(tensorlib.prod(on_gpu(x))) == pytest.approx(1, rel=1e-5)
    assert read(tensorlib.prod(on_gpu(x.reshape(16, 1) * np.ones((1, 5), np.float32)), 0)) == pytest.approx(1, rel=1e-5)


def test_means_of_equal_elements_are_exact():
    for n in (3, 49, 700):
        x = np.full((5, n), 3.0, np.float32)
        assert (read(tensorlib.mean(on_gpu(x), 1)) == 3).all()
        assert (read(tensorlib.var(on_gpu(x), 1)) == 0).all()


def test_nan_wins_wherever_it_is():
    for n, at in ((100, 99), (20_000, 11_111), (300_000, 0)):
        x = RNG.normal(size=n).astype(np.float32)
        x[at] = np.nan
        given = on_gpu(x)
        assert np.isnan(read(tensorlib.amax(given))) and np.isnan(read(tensorlib.amin(given)))
        assert read(tensorlib.argmax(given)) == read(tensorlib.argmin(given)) == at


@pytest.mark.parametrize("n", [50, 5000, 100_000])
def test_the_first_of_equal_extremes(n):
    x = np.zeros((2, n), np.float32)
    x[:, n // 3] = x[:, n // 2] = x[:, n - 1] = 7
    assert read(tensorlib.argmax(on_gpu(x), 1)).tolist() == [n // 3] * 2
    low = np.full((2, n), -np.inf, np.float32)
    assert read(tensorlib.argmax(on_gpu(low), 1)).tolist() == [0, 0]
    assert read(tensorlib.argmin(on_gpu(np.full((2, n), 255, np.uint8)), 1)).tolist() == [0, 0]


class Far:
    """A GPU that is told of launches, and runs none."""

    arch, units, interpreted, trace = 80, 4, True, None

    def __init__(self):
        self.ready, self.kernels = {}, []

    def workspace(self):
        return 1 << 40

    def load(self, kernel, hints):
        return lambda *_: self.kernels.append(kernel)


@pytest.mark.parametrize(
    "rows, n, bits", [(1, 1 << 20, 32), (3, 1 << 20, 32), (1, (1 << 31) + 17, 64), (3, 1 << 30, 64)]
)
def test_places_have_as_many_bits_as_they_need(rows, n, bits):
    """Of whole rows and of parts alike; the few have no more than they need."""
    gpu = Far()
    for name in ("argmax", "argmin"):
        reduce.build(name, "u8", "i64", "u8")(gpu, [1 << 41, 1 << 42, rows, n, 0.0, 1, rows, n])
    assert len(gpu.kernels) >= 2
    for kernel in gpu.kernels:
        assert str(kernel.consts["INDEX"]) == f"int{bits}" and kernel.consts["LAST"] > n
        assert kernel.types["length"] == f"i{bits}"


def test_integers_and_bools():
    x = RNG.integers(-(2**62), 2**62, (40, 300))
    given = on_gpu(x)
    assert np.array_equal(read(tensorlib.sum(given, 1)), x.sum(1))
    assert np.array_equal(read(tensorlib.amax(given, 0)), x.max(0))
    small = RNG.integers(-128, 128, 10_000).astype(np.int8)
    assert read(tensorlib.sum(on_gpu(small))) == small.sum(dtype=np.int64)
    assert read(tensorlib.amin(on_gpu(small))) == small.min()
    wide = np.array([2**64 - 1, 5], np.uint64)
    assert read(tensorlib.amin(on_gpu(wide))) == 5 and read(tensorlib.amax(on_gpu(wide))) == 2**64 - 1
    tiny = np.zeros(9000)
    assert not read(tensorlib.any(on_gpu(tiny)))
    tiny[8000] = 1e-300
    assert read(tensorlib.any(on_gpu(tiny))) and not read(tensorlib.all(on_gpu(tiny)))


def test_more_dims_than_a_table_has():
    x = RNG.normal(size=(2,) * 9).astype(np.float32)
    given = on_gpu(x)
    for dims in ((0, 2, 4, 6, 8), (1, 3, 5, 7)):
        within_sum(tensorlib.sum(given, dims), x, dims)
    turned = tensorlib.permute(given, (8, 6, 4, 2, 0, 1, 3, 5, 7))
    found = read(tensorlib.argmax(turned, -1))
    assert np.array_equal(found, x.transpose(8, 6, 4, 2, 0, 1, 3, 5, 7).argmax(-1))


# ---- softmax, variance -----------------------------------------------------------------------------------------------


def softmax(x, dim):
    e = np.exp(x - x.max(dim, keepdims=True))
    return e / e.sum(dim, keepdims=True)


@pytest.mark.parametrize(
    "shape, dim", [((2, 40_000), 1), ((8, 33_000), 1), ((1, 1500, 3), 1), ((2, 200, 70), 1), ((300, 7), 1)]
)
def test_softmax_of_rows_of_any_length(shape, dim):
    x = (RNG.normal(size=shape) * 9).astype(np.float32)
    given, want = on_gpu(x), softmax(x.astype(np.float64), dim)
    # a difference of up to 80 is rounded, an exponential, the sum of n of them in at most n / 2048 + 24 steps
    rounded = (80 + shape[dim] / 2048 + 30) * EPS
    assert (np.abs(read(tensorlib.softmax(given, dim)) - want) <= rounded * want + 1e-37).all()
    logs = read(tensorlib.log_softmax(given, dim))
    assert np.abs(logs - np.log(want)).max() <= (3 * 80 + 60) * EPS
    total = read(tensorlib.logsumexp(given, dim))
    assert np.abs(total - np.log(np.exp(x.astype(np.float64)).sum(dim))).max() <= (3 * 80 + 60) * EPS


@pytest.mark.parametrize("n", [10, 40_000])
def test_infinities(n):
    x = np.full((4, n), -np.inf, np.float32)
    x[1, 3], x[2, n - 1], x[3, 0] = 2, np.inf, np.nan
    given = on_gpu(x)
    soft, total = read(tensorlib.softmax(given, 1)), read(tensorlib.logsumexp(given, 1))
    assert np.isnan(soft[0]).all() and np.isnan(soft[2:]).any(1).all()
    assert soft[1, 3] == 1 and soft[1].sum() == 1
    assert total[0] == -np.inf and total[1] == 2 and total[2] == np.inf and np.isnan(total[3])


@pytest.mark.parametrize("shape, dim", [((60, 500), 1), ((2, 50_000), 1), ((150_000,), None)])
def test_variance_far_from_zero(shape, dim):
    x = (RNG.normal(size=shape) + 100).astype(np.float32)
    want = x.astype(np.float64).var(dim, ddof=1)
    # Welford's mean is off by a few eps of 100, squared; the squares by eps per step
    assert np.abs(read(tensorlib.var(on_gpu(x), dim)) - want).max() <= 200 * EPS * want.max()
