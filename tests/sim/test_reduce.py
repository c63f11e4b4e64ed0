"""Reductions, softmax, scans, norms and losses as they are compiled: cases of the interpreted tests, in the simulator.

In parts and in one; rows in registers and longer ones. Hopper's code of these differs little, so that it sees a few.
"""

import numpy as np
import pytest

import tensorlib
from tensorlib.ops import norm
from tests.sim.host import install
from tests.sim.interpreted import test_loss as losses
from tests.sim.interpreted import test_norm as norms
from tests.sim.interpreted import test_reduce as reductions
from tests.sim.interpreted import test_scan as scans
from tests.sim.simulated import Simulated

GPUS: dict = {}  # compiled programs are kept
RNG = np.random.default_rng(0)


@pytest.fixture(params=[80, 90])
def device(request):
    """A device "cuda:0" of the architecture."""
    gpu = GPUS.setdefault(request.param, Simulated(request.param))
    install(gpu)
    yield gpu
    gpu.check()
    install(None)


@pytest.mark.parametrize("shape, dims, launches", [((20_001,), None, 1), ((900, 8), 0, 1), ((5, 6, 7, 8), (1, 3), 1)])
def test_sums_and_extremes(shape, dims, launches, device):
    reductions.test_sums_and_extremes_of_any_dims(shape, dims, launches, device)


def test_extremes_and_their_places(device):
    reductions.test_the_first_of_equal_extremes(50)
    reductions.test_the_first_of_equal_extremes(5000)
    reductions.test_integers_and_bools()
    reductions.test_infinities(10)
    reductions.test_means_of_equal_elements_are_exact()


@pytest.mark.parametrize(
    "shape, dim", [((3, 700), 1), ((9, 256), 1), ((2, 2048), 1), ((2, 40, 20), 1), ((1, 40_000), 1)]
)
def test_softmax(shape, dim, device):
    reductions.test_softmax_of_rows_of_any_length(shape, dim)


@pytest.mark.parametrize("n", [64, 1024, 40_000])
def test_softmax_of_infinities(n, device):
    """Exponentials that saturate, of rows that fill a tile and of parts: NaN where the definition has it."""
    reductions.test_infinities(n)
    x = RNG.normal(size=(3, n)).astype(np.float32)
    x[0, 1], x[1, 2], x[2, :] = np.nan, np.inf, -np.inf
    for dtype in ("f32", "bf16"):
        given = tensorlib.tensor(x).to("cuda:0").to(dtype)
        for function in (tensorlib.softmax, tensorlib.log_softmax):
            assert np.isnan(function(given, 1).to("f32").cpu().numpy()).all(), (function, dtype)


def test_variance(device):
    reductions.test_variance_far_from_zero((4, 500), 1)
    reductions.test_variance_far_from_zero((40_000,), None)


@pytest.mark.parametrize("shape, launches", [((3, 50), 1), ((1, 9000), 2)])
def test_scans(shape, launches, device):
    scans.test_running_sums(shape, launches, device)
    scans.test_running_products(shape, launches)
    scans.test_running_extremes("cummax", shape, launches, device)
    scans.test_running_log_sums(shape, launches)


@pytest.mark.parametrize("shape", [(3, 7), (12, 1024), (2, 9000)])
def test_norms(shape, device):
    norms.test_norms_of_rows_of_any_length(shape, device)


@pytest.mark.parametrize("n", [96, 1024])
def test_norms_of_narrow_rows(n, device):
    """In f32, rounded once: half an ulp, and as much as the CPU's differs."""
    x, w, b = (RNG.normal(size=s).astype(np.float32) for s in ((6, n), n, n))
    for dtype, unit in (("f16", 2.0**-10), ("bf16", 2.0**-7)):
        given = [tensorlib.tensor(v).to(dtype) for v in (x, w, b)]
        for function in (lambda x, w, b: norm.layer_norm(x, w, b), lambda x, w, b: norm.rms_norm(x, w)):
            want = function(*given).to("f32").numpy()
            found = function(*(v.to("cuda:0") for v in given)).to("f32").cpu().numpy()
            assert (np.abs(found - want) <= unit * np.abs(want) + 1e-6).all()


def test_long_norms(device):
    x = RNG.normal(size=(1, 40_000)).astype(np.float32)
    norms.close(norms.both(lambda x: norm.layer_norm(x), x, grads=False), 900)


def test_gated_activations_and_tables(device):
    norms.test_gated_activations("swiglu", (3, 1500))
    norms.test_gated_activations("geglu", (70, 6))
    norms.test_rows_of_a_table()


@pytest.mark.parametrize("classes", [5, 5000])
def test_cross_entropy(classes, device):
    losses.test_cross_entropy_is_that_of_the_cpu(classes, device)
    losses.test_a_class_outside_is_nan_and_nothing_is_read()


def test_narrow_dtypes(device):
    x = tensorlib.from_numpy(RNG.normal(size=(6, 300)).astype(np.float32))
    for dtype, unit in (("f16", 2.0**-11), ("bf16", 2.0**-8), ("f8e4m3", 2.0**-4), ("f8e5m2", 2.0**-3)):
        y = x.to(dtype)
        for function in (lambda v: tensorlib.mean(v, 1), lambda v: tensorlib.softmax(v, 1), lambda v: v.cumsum(0)):
            found, want = (f.to("f32").to("cpu").numpy() for f in (function(y.to("cuda:0")), function(y)))
            np.testing.assert_allclose(found, want, rtol=2 * unit, atol=2.0**-9)
        assert np.array_equal(*(tensorlib.amax(v, 0).to("f32").to("cpu").numpy() for v in (y.to("cuda:0"), y)))
