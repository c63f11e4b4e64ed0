"""The layer of experts against its formulas in torch, in float64; experts in blocks against those dequantised."""

import numpy as np
import pytest

import tensorlib
from tensorlib import nn
from tensorlib.errors import ShapeError
from tensorlib.nn.moe import load_balancing_loss
from tests.nn.test_layers import close

torch = pytest.importorskip("torch")

D, WIDTH, E, K = 8, 6, 5, 2
OPTIONS = [
    {},
    {"normalize": False, "shared_size": 7},
    {"scoring": "sigmoid", "scale": 2.5, "shared_size": 7, "shared_gate": True},
    {"scoring": "sigmoid", "correction_bias": True},
]


def theirs(w, x, scoring="softmax", normalize=True, scale=1.0, shared_size=0, shared_gate=False, correction_bias=False):
    """(output, loss of balance), token by token."""
    logits = x @ w["gate.weight"].T
    scores = logits.softmax(-1) if scoring == "softmax" else logits.sigmoid()
    ranks = scores + w["correction_bias"] if correction_bias else scores
    chosen, out = ranks.topk(K, -1).indices, []
    for token, row, experts in zip(x, scores, chosen):
        shares = row[experts] / (row[experts].sum() if normalize else 1) * scale
        total = 0
        for e, share in zip(experts.tolist(), shares):
            gate, up = (w["experts.gate_up_proj"][e] @ token).chunk(2)
            total = total + share * (w["experts.down_proj"][e] @ (torch.nn.functional.silu(gate) * up))
        if shared_size:
            gate, up, down = (w[f"shared_expert.{name}_proj.weight"] for name in ("gate", "up", "down"))
            shared = down @ (torch.nn.functional.silu(gate @ token) * (up @ token))
            total = total + shared * ((w["shared_expert_gate.weight"] @ token).sigmoid() if shared_gate else 1)
        out.append(total)
    counts = torch.bincount(chosen.flatten(), minlength=E).double() / len(x)
    return torch.stack(out), E * (counts * (scores / scores.sum(-1, keepdim=True)).mean(0)).sum()


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
def test_results_and_gradients(options):
    tensorlib.manual_seed(0)
    layer = nn.MoE(D, WIDTH, E, K, **options).double().requires_grad_()
    if options.get("correction_bias"):
        layer.correction_bias = tensorlib.tensor([0.0, 0.3, -0.2, 0.1, 0.5], dtype="f64")
    x = tensorlib.randn(2, 6, D, dtype="f64").requires_grad_()
    w = {k: torch.tensor(v.numpy(), requires_grad=True) for k, v in layer.state_dict().items()}
    t = torch.tensor(x.detach().numpy(), requires_grad=True)
    z, (y, loss) = layer(x), theirs(w, t.reshape(-1, D), **options)
    close(z.reshape(-1, D), y)
    close(layer.aux_loss, loss)
    (z.square().sum() + layer.aux_loss).backward()
    (y.square().sum() + loss).backward()
    close(x.grad, t.grad, 100)
    for name, p in layer.named_parameters():
        close(p.grad, w[name].grad, 100)
    assert "aux_loss" not in layer.state_dict() and len(layer.state_dict()) == len(w)


@pytest.mark.parametrize("formats", [("q8_0", "q8_0"), ("q4_0", None)])
def test_experts_in_blocks(formats):
    tensorlib.manual_seed(0)
    layer = nn.MoE(32, 64, 3, 2).eval().requires_grad_(False)
    x = tensorlib.randn(7, 32)
    for name, format in zip(("gate_up_proj", "down_proj"), formats):
        if format:
            setattr(layer.experts, name, tensorlib.quantize(getattr(layer.experts, name), format))
    found, want = layer(x).numpy(), np.zeros((7, 32))
    _, weights, experts = (a.numpy() for a in layer.route(x))
    for e in range(3):
        rows, places = np.nonzero(experts == e)
        up, down = layer.experts.gate_up_proj[e], layer.experts.down_proj[e]
        hidden = nn.swiglu(*up.linear(x[rows.tolist()]).chunk(2, dim=-1))
        y = tensorlib.nn.functional.linear(hidden.contiguous(), down)
        want[rows] += weights[rows, places, None] * y.numpy()
    np.testing.assert_allclose(found, want, atol=8 * 2.0**-24 * np.abs(want).max())  # two products, a sum
    assert layer.aux_loss is None


def test_what_does_not_fit_is_told():
    with pytest.raises(ShapeError, match="top_k 4"):
        nn.MoE(D, WIDTH, 3, 4)
    with pytest.raises(ValueError, match="softmax or sigmoid"):
        nn.MoE(D, WIDTH, 3, 2, scoring="relu")


def test_the_loss_is_least_where_all_are_alike():
    scores, experts = np.full((4, 2), 0.5, np.float32), np.array([[0], [0], [0], [1]])
    assert load_balancing_loss(tensorlib.from_numpy(scores), tensorlib.from_numpy(experts)).item() == 1
    scores[:, 0], scores[:, 1] = 0.75, 0.25
    assert load_balancing_loss(tensorlib.from_numpy(scores), tensorlib.from_numpy(experts)).item() == 1.25
