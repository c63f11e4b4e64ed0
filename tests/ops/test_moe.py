"""Mixtures of experts: gradients of all operands, and what is refused."""

import numpy as np
import pytest

import tensorlib
from tensorlib.errors import DTypeError, ShapeError

torch = pytest.importorskip("torch")
random = np.random.default_rng(5)


def draw(*shape):
    return tensorlib.from_numpy(random.standard_normal(shape).astype("f4"))


@pytest.mark.parametrize("normalize", [True, False])
def test_gradients_are_torchs(normalize):
    operands = draw(2, 3, 4), draw(2, 3, 5), draw(5, 6, 4), draw(5, 4, 3)
    x, logits, gate_up, down = (torch.from_numpy(a.numpy()).requires_grad_() for a in operands)
    for a in operands:
        a.requires_grad = True
    out = tensorlib.moe(*operands, 2, normalize=normalize)
    share, chosen = logits.softmax(-1).topk(2)
    share = share / share.sum(-1, keepdim=True) if normalize else share
    gate, up = torch.einsum("btd,eid->btei", x, gate_up).chunk(2, -1)
    every = torch.einsum("btei,edi->bted", torch.nn.functional.silu(gate) * up, down)
    expected = (every.gather(2, chosen[..., None].expand(-1, -1, -1, 4)) * share[..., None]).sum(2)
    assert np.allclose(out.detach().numpy(), expected.detach().numpy(), rtol=1e-5, atol=1e-5)
    (out * out).sum().backward()
    (expected * expected).sum().backward()
    for ours, theirs in zip(operands, (x, logits, gate_up, down), strict=True):
        assert np.allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_refusals():
    x, logits, gate_up, down = draw(3, 4), draw(3, 5), draw(5, 6, 4), draw(5, 4, 3)
    with pytest.raises(ShapeError, match="top_k 6; expected 1 to 5"):
        tensorlib.moe(x, logits, gate_up, down, 6)
    with pytest.raises(ShapeError, match="w_gate_up"):
        tensorlib.moe(x, logits, gate_up[:4], down, 2)
    with pytest.raises(ShapeError, match="reshape"):
        tensorlib.moe(x, logits, gate_up[0], down, 2)
    with pytest.raises(DTypeError, match="floats"):
        tensorlib.moe(x.to("i64"), logits, gate_up, down, 2)
    assert tensorlib.moe(x[:0], logits[:0], gate_up, down, 2).shape == (0, 4)
