"""Mixtures of experts as compiled for GPUs, in the simulator: against one expert after the other on the CPU."""

import numpy as np
import pytest

import tensorlib
from tests.sim.host import install
from tests.sim.simulated import Simulated

random = np.random.default_rng(3)


@pytest.fixture(scope="module", params=[80, 90])
def device(request):
    """A device "cuda:0" of the architecture."""
    gpu = Simulated(request.param)
    install(gpu)
    yield gpu
    gpu.check()
    install(None)


@pytest.mark.parametrize("tokens, experts, top_k", [(1, 8, 2), (70, 3, 2), (150, 2, 2)])
def test_against_one_expert_after_the_other(device, tokens, experts, top_k):
    inner, d = 40, 64
    shapes = (tokens, d), (tokens, experts), (experts, 2 * inner, d), (experts, d, inner)
    scales = 1, 1, d**-0.5, inner**-0.5
    x, logits, *weights = [
        tensorlib.from_numpy((random.standard_normal(s) * f).astype("f2")) for s, f in zip(shapes, scales, strict=True)
    ]
    expected = tensorlib.moe(x, logits, *weights, top_k).to("f32").numpy()
    found = tensorlib.moe(*(a.to("cuda:0") for a in (x, logits, *weights)), top_k)
    # the hidden layer is rounded to f16 by both, from sums of another order
    assert np.abs(found.to("cpu").to("f32").numpy() - expected).max() <= 4e-3 * max(1, np.abs(expected).max())
