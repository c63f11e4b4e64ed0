"""GTE's own files, and transformers', of models with heads; contexts stretched as the authors' code does."""

import json

import numpy as np
import pytest

import tensorlib
from tensorlib import nn
from tests.zoo.test_encoders import TASKS, batch, close, logits, made
from zoo import auto
from zoo.gte import GteModel

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")


def own(folder, **fields):
    """The authors' names, in place of transformers'; more fields of the config."""
    path = folder / "model.safetensors"
    tensors = {f"new.{name[4:]}" if name.startswith("gte.") else name: x
               for name, x in safetensors.load_file(path).items()}  # fmt: skip
    safetensors.save_file(tensors, path)
    config = json.loads((folder / "config.json").read_text())
    config.pop("rope_parameters")
    config |= {
        "model_type": "new",
        "rope_theta": 160000.0,
        "position_embedding_type": "rope",
        "pack_qkv": True,
        **fields,
    }
    config["architectures"] = [name.replace("Gte", "New") for name in config["architectures"]]
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("names", ["gte", "new"])
@pytest.mark.parametrize("task", TASKS)
def test_heads(task, names, tmp_path):
    """Logits, and the encoder alone out of the same file; the second of two sentences has a vector of its own."""
    theirs = made("gte", tmp_path, f"Gte{task}", type_vocab_size=2, num_labels=3)
    if names == "new":
        own(tmp_path)
    ids, mask = batch()
    given = {"ids": ids, "attention_mask": mask, "token_type_ids": (np.arange(16) > 3).astype(np.int64) * mask}
    with torch.no_grad():
        want = logits(theirs, **given).numpy()
        rest = {name: torch.tensor(x) for name, x in given.items() if name != "ids"}
        hidden = theirs.gte(torch.tensor(ids), **rest).last_hidden_state.numpy() * mask[..., None]
    given = {name: tensorlib.tensor(x) for name, x in given.items()}
    with tensorlib.no_grad():
        close(auto.load(tmp_path)[1](**given).numpy(), want)
        close(auto.load(tmp_path, head="GteModel")[1](**given).numpy(), hidden)


def test_a_training_step(tmp_path):
    """Loss and the gradients of weights that have the same names."""
    theirs = made("gte", tmp_path, "GteForSequenceClassification")
    ids, mask = batch()
    ours = auto.load(tmp_path)[1].requires_grad_()
    want, found = logits(theirs, ids, attention_mask=mask), ours(tensorlib.tensor(ids), tensorlib.tensor(mask))
    want.square().mean().backward()
    loss = found.square().mean()
    loss.backward()
    assert abs(loss.item() - want.square().mean().item()) < 1e-5 * abs(loss.item())
    grads, compared = {name.replace("new.", "gte."): p.grad for name, p in ours.named_parameters()}, 0
    assert all(grad is not None for grad in grads.values())
    for name, weight in theirs.named_parameters():
        if name in grads:
            compared += 1
            assert np.abs(grads[name].numpy() - weight.grad.numpy()).max() < 1e-3 * weight.grad.abs().max().item(), name
    assert compared > 5


def test_stretched_contexts(tmp_path):
    """NTK scaling as the authors have it: theta times a factor s, and frequencies less by s^(2 / h)."""
    theirs = made("gte", tmp_path)
    own(tmp_path, rope_scaling={"type": "ntk", "factor": 8.0})
    rope, s, h = theirs.rotary_emb, 8.0, 8
    rope.inv_freq = torch.tensor([(160000.0 * s) ** (-i / h) / s ** (2 / h) for i in range(0, h, 2)])
    ids, mask = batch()
    with torch.no_grad():
        want = theirs(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
    ours = auto.load(tmp_path)[1]
    assert type(ours) is GteModel
    with tensorlib.no_grad():
        close(ours(tensorlib.tensor(ids), tensorlib.tensor(mask)).numpy(), want * mask[..., None])
        rows = [row[:n].tolist() for row, n in zip(ids, mask.sum(1))]
        close(ours(nn.Sequences(rows)).numpy(), np.concatenate([w[:n] for w, n in zip(want, mask.sum(1))]))
