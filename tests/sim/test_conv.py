"""Convolutions of f16 as Triton compiles them, in the simulator: tensor cores of sm_90 and sm_80."""

import numpy as np
import pytest

from kernels_triton import implicit
from tensorlib.ops.conv import conv2d
from tests.sim.host import install
from tests.sim.interpreted.devices import results
from tests.sim.simulated import Simulated

CASES = {
    "channels adjacent": ((1, 64, 8, 8), (64, 64, 3, 3), {"padding": 1}),
    "positions adjacent, ragged channels": ((2, 72, 4, 4), (64, 72, 1, 1), {}),
    "few channels": ((1, 3, 11, 12), (64, 3, 7, 7), {"stride": 2, "padding": 3}),
    "largest tile": ((1, 128, 6, 2), (128, 128, 3, 3), {"padding": 1}),
}


@pytest.fixture(scope="module", params=[90, 80])
def device(request):
    """A device "cuda:0" of the architecture."""
    gpu = Simulated(request.param)
    install(gpu)
    yield gpu
    gpu.check()
    install(None)


@pytest.mark.parametrize("case", CASES)
def test_against_cpu(case, device, monkeypatch):
    x, w, options = CASES[case]
    if case == "largest tile":
        monkeypatch.setattr(implicit, "choose", lambda arch, *_: implicit.TILES[arch][0])
    rng = np.random.default_rng(1)
    arrays = rng.standard_normal(x), rng.standard_normal(w) / np.sqrt(np.prod(w[1:])), rng.standard_normal(w[0])
    before = device.launches
    (cpu,), (gpu,) = results(lambda x, w, b: conv2d(x, w, b, **options), *(a.astype("f2") for a in arrays))
    assert device.launches > before
    np.testing.assert_allclose(gpu.astype("f4"), cpu.astype("f4"), rtol=2**-9, atol=2**-9)
