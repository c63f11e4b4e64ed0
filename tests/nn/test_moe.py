"""The layer of experts against its formulas in torch, in float64; experts in blocks against those dequantised."""

import numpy as np
import pytest

import tensorlib
from tensorlib import nn
from tensorlib.errors import FormatError, ShapeError, WeightsError
from tensorlib.nn.moe import load_balancing_loss
from tests.nn.test_layers import close

torch = pytest.importorskip("torch")

D, WIDTH, E, K = 8, 6, 6, 2
OPTIONS = [
    {},
    {"normalize": False, "shared_size": 7},
    {"scoring": "sigmoid", "scale": 2.5, "shared_size": 7, "shared_gate": True},
    {"scoring": "sigmoid", "correction_bias": True},
    {"scoring": "sigmoid", "correction_bias": True, "groups": (3, 2, 2)},
    {"normalize": False, "groups": (3, 1, 1)},
]


def theirs(
    w, x, scoring="softmax", normalize=True, scale=1.0, shared_size=0, shared_gate=False, correction_bias=False,
    groups=None,
):  # fmt: skip
    """(output, loss of balance), token by token."""
    logits = x @ w["gate.weight"].T
    scores = logits.softmax(-1) if scoring == "softmax" else logits.sigmoid()
    ranks = scores + w["correction_bias"] if correction_bias else scores
    if groups is not None:
        many, used, best = groups
        judged = ranks.reshape(len(x), many, -1).topk(best, -1).values.sum(-1).topk(used, -1).indices
        seen = torch.stack([(judged == e // (E // many)).any(-1) for e in range(E)], -1)
        ranks = ranks.masked_fill(~seen, float("-inf"))
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
        layer.correction_bias = tensorlib.tensor([0.0, 0.3, -0.2, 0.1, 0.5, 0.2], dtype="f64")
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


@pytest.mark.parametrize("joined", [True, False])
def test_experts_of_a_file_that_has_them_one_by_one(joined):
    """As tensors and as blocks; what lacks, what does not fit, and what is of several formats is told."""
    names = ("w1", "w3", "w2")
    layer = nn.MoE(32, 64, E, K, joined=joined, expert_names=names)
    shapes = {"w1": (64, 32), "w3": (64, 32), "w2": (32, 64)}
    parts = {
        f"moe.experts.{e}.{name}.weight": tensorlib.randn(*shape) for e in range(E) for name, shape in shapes.items()
    }
    gate = {"moe.gate.weight": tensorlib.randn(E, 32)}
    assert nn.load_state_dict(layer, {**gate, **parts}, prefix="moe.") == ([], [])
    for e in range(E):
        w1, w3, w2 = (parts[f"moe.experts.{e}.{name}.weight"] for name in names)
        found = layer.experts
        ups = found.gate_up_proj[e].chunk(2) if joined else (found.gate_proj[e], found.up_proj[e])
        assert all((a == b).all() for a, b in zip([*ups, found.down_proj[e]], (w1, w3, w2), strict=True))
    blocks = {name: tensorlib.quantize(x, "q8_0") for name, x in parts.items()}
    nn.load_state_dict(layer, {**gate, **blocks}, prefix="moe.")
    whole = layer.experts.down_proj
    assert whole.format.name == "q8_0" and whole.shape == (E, 32, 64)
    assert (whole.dequantize()[3] == blocks["moe.experts.3.w2.weight"].dequantize()).all()
    some = {name: x for name, x in parts.items() if "experts.2.w3" not in name}
    with pytest.raises(WeightsError, match=r"missing: moe\.experts\.2\.w3\.weight; expected"):
        nn.load_state_dict(layer, {**gate, **some}, prefix="moe.")
    wrong = {**parts, "moe.experts.1.w2.weight": tensorlib.randn(32, 32)}
    with pytest.raises(WeightsError, match=r"down_proj \(\(32, 32\),\) for \(6, 32, 64\)"):
        nn.load_state_dict(layer, {**gate, **wrong}, prefix="moe.")
    with pytest.raises(FormatError, match="got parts of f32, q8_0; expected one format"):
        nn.load_state_dict(
            layer, {**gate, **parts, "moe.experts.1.w2.weight": blocks["moe.experts.1.w2.weight"]}, prefix="moe."
        )
