"""Mixtures of experts on GPUs, interpreted: against one expert after the other on the CPU."""

import numpy as np
import pytest

import tensorlib
from tensorlib.dtype import get
from tests.sim.quant_cases import check_experts

random = np.random.default_rng(3)


def draw(tokens, experts, inner, d, dtype):
    shapes = (tokens, d), (tokens, experts), (experts, 2 * inner, d), (experts, d, inner)
    scales = 1, 1, d**-0.5, inner**-0.5
    return [
        tensorlib.from_numpy((random.standard_normal(s) * f).astype(get(dtype).numpy_dtype()))
        for s, f in zip(shapes, scales)
    ]


@pytest.mark.parametrize("dtype, bound", [("f32", 1e-5), ("bf16", 0.05)])
@pytest.mark.parametrize(
    "tokens, experts, inner, d, top_k", [(1, 8, 20, 33, 2), (70, 4, 16, 64, 3), (300, 2, 70, 32, 1), (9, 3, 64, 48, 3)]
)
def test_against_one_expert_after_the_other(device, dtype, bound, tokens, experts, inner, d, top_k):
    operands = draw(tokens, experts, inner, d, dtype)
    expected = tensorlib.moe(*operands, top_k).to("f32").numpy()
    before = device.launches
    found = tensorlib.moe(*(a.to("cuda:0") for a in operands), top_k)
    assert device.launches > before and found.dtype.name == dtype
    assert np.abs(found.to("cpu").to("f32").numpy() - expected).max() <= bound * max(1, np.abs(expected).max())


def test_all_tokens_choose_one_expert(device):
    x, _, gate_up, down = draw(40, 5, 16, 32, "f32")
    logits = tensorlib.from_numpy(np.tile(np.float32([0, 9, 0, 0, -9]), (40, 1)))
    expected = tensorlib.moe(x, logits, gate_up, down, 1, normalize=False).numpy()
    found = tensorlib.moe(*(a.to("cuda:0") for a in (x, logits, gate_up, down)), 1, normalize=False)
    assert np.allclose(found.to("cpu").numpy(), expected, rtol=1e-5, atol=1e-5)


def test_many_tokens_are_grouped_by_several_programs(device):
    operands = [a.to("cuda:0") for a in draw(700, 3, 2, 4, "f32")]
    expected = tensorlib.moe(*(a.to("cpu") for a in operands), 2).numpy()
    assert np.allclose(tensorlib.moe(*operands, 2).to("cpu").numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "case", [("q4_0", 1, 8, 2), ("q8_0", 70, 2, 2, "bf16"), ("q2_k", 3, 2, 2), ("iq4_nl", 9, 2, 1, "f16")], ids=str
)
def test_experts_in_blocks(device, case):
    check_experts(device, *case)


def test_gradients_are_the_cpus(device):
    """Of all operands; an expert that nobody chose has a gradient of zeros."""
    x, logits, gate_up, down = draw(30, 5, 8, 12, "f32")
    logits = logits + tensorlib.tensor([0.0, 0.0, -99.0, 0.0, 0.0])
    found = []
    for where in ("cpu", "cuda:0"):
        operands = [a.to(where).clone().requires_grad_() for a in (x, logits, gate_up, down)]
        tensorlib.moe(*operands, 2).square().sum().backward()
        found.append([a.grad.to("cpu").numpy() for a in operands])
    assert not found[0][2][2].any() and not found[0][3][2].any()
    for want, got in zip(*found, strict=True):
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
