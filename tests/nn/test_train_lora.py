"""Adapters on a model in blocks: the blocks stay, the loss falls, the adapter goes to a file and back."""

import pytest

import tensorlib
from tensorlib import data, nn
from tensorlib.io import adapters
from tensorlib.quant.tensor import QTensor
from tests.zoo.conftest import write_llama
from zoo.load import load_gguf
from zoo.train_lora import evaluate, fit, prepared


@pytest.mark.parametrize("dora", [False, True])
def test_loss_falls_and_blocks_stay(dora, tmp_path):
    tensorlib.manual_seed(0)
    path = write_llama(tmp_path / "tiny.gguf", "q4_0")
    model = load_gguf(path)[1]
    windows = data.Tokens([i * i % 97 for i in range(200)], 16)
    weights = prepared(model, rank=4, alpha=8, dora=dora)
    assert all(p.requires_grad for p in weights) and len(model.parameters()) > len(weights)
    before = evaluate(model, windows)
    losses = fit(model, windows, steps=25, lr=2e-2)
    after = evaluate(model, windows)
    assert len(losses) == 25 and after < 0.8 * before
    fresh = load_gguf(path)[1]
    trained = dict(model.named_parameters())
    for name, own in fresh.named_parameters():
        a, b = (w.dequantize() if isinstance(w, QTensor) else w.detach() for w in (own, trained[name]))
        assert (a == b).all(), name
    adapters.save(tmp_path / "adapter", model)
    adapters.load(fresh, tmp_path / "adapter")
    assert evaluate(fresh, windows) == pytest.approx(after, rel=1e-5)
    assert nn.lora.lora_state_dict(fresh).keys() == nn.lora.lora_state_dict(model).keys()
