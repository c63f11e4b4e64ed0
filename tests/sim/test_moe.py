"""Mixtures of experts as compiled for GPUs, in the simulator: against one expert after the other on the CPU."""

import numpy as np
import pytest

import tensorlib
from tensorlib.ops import moe
from tests.sim.host import install
from tests.sim.quant_cases import check_experts, experts_in
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


@pytest.mark.parametrize("case", [("q4_0", 1, 8, 2), ("q8_0", 70, 3, 2), ("q4_k", 20, 2, 2)], ids=str)
def test_experts_in_blocks(device, case):
    check_experts(device, *case)


def test_gate_and_up_apart(device):
    """As GGUF has them: the same numbers as of joined ones, in blocks and in floats."""
    tokens, experts, inner, d = 40, 3, 64, 64
    quantised, dense = experts_in("q8_0", experts, inner, d)
    x, logits = (tensorlib.from_numpy(random.standard_normal(s).astype("f4")) for s in ((tokens, d), (tokens, experts)))
    shares, chosen = logits.softmax(-1).topk(2)
    x, shares, chosen = (a.to("cuda:0") for a in (x, shares, chosen))
    for gate_up, down in (quantised, dense):
        halves = [gate_up.dequantize() if hasattr(gate_up, "format") else gate_up]
        halves = [halves[0][:, :inner].contiguous(), halves[0][:, inner:].contiguous()]
        if hasattr(gate_up, "format"):
            halves = [tensorlib.quantize(w, "q8_0") for w in halves]
        ups, down = tuple(w.to("cuda:0") for w in halves), down.to("cuda:0")
        whole, apart = (moe.mix(x, shares, chosen, w, down).cpu().numpy() for w in (gate_up.to("cuda:0"), ups))
        assert np.array_equal(whole, apart)
