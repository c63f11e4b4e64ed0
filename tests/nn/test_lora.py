"""LoRA and DoRA against their formulas in torch, in float64; over blocks; their files against PEFT's."""

import json

import numpy as np
import pytest

import tensorlib
from tensorlib import nn
from tensorlib.errors import DTypeError, FormatError, ShapeError, WeightsError
from tensorlib.io import adapters
from tensorlib.nn import lora
from tests.nn.test_layers import close

torch = pytest.importorskip("torch")


def started(layer):
    """The layer with random adapters, and its state as torch's leaves."""
    for name in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "lora_embedding_A", "lora_embedding_B"):
        owner, _, attribute = name.rpartition(".")
        owner = getattr(layer, owner, None) if owner else layer
        weight = getattr(owner, attribute, None)
        if weight is not None:
            with tensorlib.no_grad():
                weight.add_(0.3 * tensorlib.randn(*weight.shape, dtype=weight.dtype))
    return layer, {k: torch.tensor(v.numpy(), requires_grad="lora" in k) for k, v in layer.state_dict().items()}


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_linear(dora, bias):
    tensorlib.manual_seed(0)
    base = nn.Linear(6, 5, bias=bias).double()
    layer = lora.LoRALinear(base, 3, 4, dora=dora)
    x = tensorlib.randn(2, 7, 6, dtype="f64").requires_grad_()
    close(layer(x), torch.tensor(base(x).detach().numpy()))  # nothing is added yet
    layer, w = started(layer)
    t = torch.tensor(x.detach().numpy(), requires_grad=True)
    both = w["weight"] + 4 / 3 * w["lora_B.weight"] @ w["lora_A.weight"]
    if dora:
        both = both * (w["lora_magnitude_vector"] / both.detach().norm(dim=1)).unsqueeze(1)
    y = t @ both.T + (w["bias"] if bias else 0)
    z = layer(x)
    close(z, y)
    y.square().sum().backward()
    z.square().sum().backward()
    close(x.grad, t.grad, 10)
    for name, p in layer.named_parameters():
        if "lora" in name:
            close(p.grad, w[name].grad, 100)
        else:
            assert not p.requires_grad and p.grad is None
    before = layer.weight
    layer.merge()
    close(layer(x), y, 10)
    assert layer.unmerge().weight is before
    close(layer(x), y)


def test_embedding():
    tensorlib.manual_seed(0)
    base, ids = nn.Embedding(9, 4, padding_idx=2).double(), tensorlib.tensor([[1, 2, 8], [1, 0, 0]])
    layer = lora.LoRAEmbedding(base, 3, 6)
    close(layer(ids), torch.tensor(base(ids).detach().numpy()))
    layer, w = started(layer)
    table = w["weight"] + 2 * (w["lora_embedding_B"] @ w["lora_embedding_A"]).T
    y, z = table[torch.tensor(ids.tolist())], layer(ids)
    close(z, y)
    y.square().sum().backward()
    z.square().sum().backward()
    for name in ("lora_embedding_A", "lora_embedding_B"):
        close(getattr(layer, name).grad, w[name].grad, 10)
    close(layer.merge()(ids), y)


def test_dropout_is_before_the_adapter_and_only_when_training():
    tensorlib.manual_seed(0)
    layer = started(lora.LoRALinear(nn.Linear(6, 5), 3, 4, dropout=0.5))[0]
    x = tensorlib.randn(400, 6)
    plain = layer.eval()(x)
    assert (plain == layer(x)).all()
    found = layer.train()(x) - plain
    assert found.abs().max().item() > 0.1 and (layer(x) != layer(x)).any()
    zero = lora.LoRALinear(nn.Linear(6, 5), 3, 4, dropout=0.5, dora=True)
    close(zero(x).double(), torch.tensor(linear(x, zero).numpy()).double(), 1e6)  # dora: ratios of 1 in f32


def linear(x, layer):
    return tensorlib.nn.functional.linear(x, layer.weight, layer.bias).detach()


@pytest.mark.parametrize("dora", [False, True])
def test_over_blocks(dora):
    tensorlib.manual_seed(0)
    base = nn.Linear(64, 32).requires_grad_(False)
    base.weight = tensorlib.quantize(base.weight, "q8_0")
    layer = lora.LoRALinear(base, 4, 8, dora=dora)
    with tensorlib.no_grad():
        layer.lora_B.weight.add_(0.3 * tensorlib.randn(32, 4))
    x = tensorlib.randn(3, 64).requires_grad_()
    z = layer(x)
    z.square().sum().backward()
    assert layer.lora_A.weight.grad.any() and layer.lora_B.weight.grad.any() and x.grad.any()
    assert f"{64 * 32 + 32 + 4 * 96 + 32 * dora:,} parameters" in repr(layer)
    with pytest.raises(DTypeError, match="blocks of q8_0"):
        layer.merge()
    dense = lora.LoRALinear(base, 4, 8, dora=dora)
    dense.weight = base.weight.dequantize()
    dense.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "weight"} | {"weight": dense.weight})
    # activations of up to 4 are rounded to 4/254 at most, in 64 terms with weights of 1/8
    np.testing.assert_allclose(z.detach().numpy(), dense(x).detach().numpy(), atol=64 / 8 * 4 / 254)
    if dora:
        norms = dense.row_norms().numpy()
        np.testing.assert_allclose(layer.row_norms().numpy(), norms, rtol=0.02)
        full = dense.weight.numpy() + 2 * dense.lora_B.weight.detach().numpy() @ dense.lora_A.weight.detach().numpy()
        np.testing.assert_allclose(norms, np.linalg.norm(full, axis=1), rtol=1e-5)


class Model(nn.Module):
    def __init__(self):
        self.embed = nn.Embedding(11, 8)
        self.q_proj, self.k_proj = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 3)])

    def forward(self, ids):
        x = self.embed(ids)
        x = self.q_proj(x) + self.k_proj(x).relu()
        for layer in self.layers:
            x = layer(x).tanh()
        return x


IDS = tensorlib.tensor([[1, 2, 10], [0, 4, 4]])


def test_a_model_learns_only_what_was_added():
    tensorlib.manual_seed(0)
    model = Model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    out = model(IDS).detach()
    assert lora.add_lora(model, 2, targets="q_proj|layers\\.1") == ["q_proj", "layers.1"]
    assert (model(IDS) == out).all() and model.num_parameters(trainable=True) == 2 * 16 + 2 * 11
    assert len(lora.lora_parameters(model)) == 4
    optimiser = tensorlib.optim.AdamW(lora.lora_parameters(model), lr=0.1)
    for _ in range(3):
        model(IDS).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    state = model.state_dict()
    assert all((state[name] == value).all() for name, value in before.items())
    assert not (model(IDS) == out).all()
    trained = model(IDS).detach()
    other = Model()
    other.load_state_dict(before)
    lora.add_lora(other, 2, targets=["q_proj", "1"])
    other.load_state_dict(before)  # a file of the base still fits
    other.load_state_dict(lora.lora_state_dict(model, ""), strict=False)
    assert (other(IDS) == trained).all()
    lora.merge_lora(other)
    assert list(other.state_dict()) == list(before) and type(other.q_proj) is nn.Linear
    np.testing.assert_allclose(other(IDS).numpy(), trained.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"dora": True, "targets": "q_proj|k_proj"}, {"rslora": True, "targets": "embed"}]
)
def test_folders(tmp_path, options):
    tensorlib.manual_seed(0)
    model, other = Model(), Model()
    other.load_state_dict(model.state_dict())
    paths = lora.add_lora(model, 3, 5, dropout=0.1, **options)
    started_model(model)
    adapters.save(tmp_path, model.eval(), base="somebody/model")
    assert adapters.load(other, tmp_path) == paths
    assert (other.eval()(IDS) == model(IDS)).all()
    assert other.num_parameters(trainable=True) == model.num_parameters(trainable=True)
    assert all(layer.dropout == 0.1 for layer in lora.adapters(other).values())


def started_model(model):
    with tensorlib.no_grad():
        for p in lora.lora_parameters(model):
            p.add_(0.3 * tensorlib.randn(*p.shape))


@pytest.mark.parametrize("dora", [False, True])
def test_peft_reads_and_writes_the_same(tmp_path, dora):
    peft = pytest.importorskip("peft")

    class Theirs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(11, 8)
            self.q_proj, self.k_proj = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8, bias=False)
            self.layers = torch.nn.ModuleList([torch.nn.Linear(8, 8), torch.nn.Linear(8, 3)])

        forward = Model.forward

    targets = ["q_proj", "layers.1"] + ([] if dora else ["embed"])
    base, model = Theirs(), Model()
    model.load_state_dict({k: tensorlib.from_torch(v.detach().clone()) for k, v in base.state_dict().items()})
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=targets, use_dora=dora, rank_pattern={"q_proj": 3})
    theirs = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "lora" in name:
                p.add_(0.3 * torch.randn_like(p))
    theirs.save_pretrained(tmp_path / "theirs")
    adapters.load(model, tmp_path / "theirs")
    want = theirs(torch.tensor(IDS.tolist())).detach().numpy()
    np.testing.assert_allclose(model.eval()(IDS).detach().numpy(), want, atol=1e-5)
    started_model(model)
    adapters.save(tmp_path / "ours", model)
    again = Theirs()
    again.load_state_dict(
        {k.replace(".base_layer", ""): v for k, v in theirs.get_base_model().state_dict().items() if "lora" not in k}
    )
    read = peft.PeftModel.from_pretrained(again, tmp_path / "ours").eval()
    found = read(torch.tensor(IDS.tolist())).detach().numpy()
    np.testing.assert_allclose(model(IDS).detach().numpy(), found, atol=1e-5)


def test_what_does_not_fit_is_told(tmp_path):
    with pytest.raises(ShapeError, match="rank 0"):
        lora.LoRALinear(nn.Linear(2, 2), 0)
    with pytest.raises(ShapeError, match="paths of layers"):
        lora.add_lora(Model(), targets="v_proj")
    with pytest.raises(ShapeError, match="embed, a Embedding, with dora"):
        lora.add_lora(Model(), targets="embed", dora=True)
    with pytest.raises(FormatError, match="adapter_config"):
        adapters.load(Model(), tmp_path)
    model = Model()
    with pytest.raises(FormatError, match="no adapters"):
        adapters.save(tmp_path, model)
    lora.add_lora(model, 2, targets="q_proj")
    adapters.save(tmp_path, model)
    small = nn.Sequential({"q_proj": nn.Linear(8, 4), "k_proj": nn.Linear(4, 4)})
    with pytest.raises(WeightsError, match=r"lora_B.weight \(8, 2\) for \(4, 2\)"):
        adapters.load(small, tmp_path)
    with pytest.raises(WeightsError, match="no plain layer at q_proj"):
        adapters.load(model, tmp_path)
    assert type(small.q_proj) is nn.Linear and small.q_proj.weight.requires_grad
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    for change in ({"peft_type": "IA3"}, {"bias": "all"}, {"lora_bias": True}, {"lora_alpha": None}):
        path.write_text(json.dumps(config | change))
        with pytest.raises(FormatError, match=next(iter(change))):
            adapters.load(Model(), tmp_path)
    path.write_text("[")
    with pytest.raises(FormatError, match="JSON"):
        adapters.load(Model(), tmp_path)
    path.write_text(json.dumps(config))
    tensorlib.save(
        tmp_path / "adapter_model.safetensors", {"base_model.model.q_proj.lora_A.weight": tensorlib.ones(2, 8)}
    )
    with pytest.raises(FormatError, match="both lora_A and lora_B"):
        adapters.load(Model(), tmp_path)
