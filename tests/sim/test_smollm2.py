"""SmolLM2-135M's real weights, all 30 layers unless a name says otherwise, in compiled kernels on the simulated GPU."""

import numpy as np
import pytest

import tensorlib
from bench.reference import Reference
from tensorlib import nn
from tests.sim.host import install
from tests.sim.simulated import Simulated
from tests.zoo.test_llama import Rounding
from zoo.generate import TextModel
from zoo.load import load_gguf

PROMPT = "Water boils at one hundred degrees; the capital of France is"
PRODUCTS = 30 * 7 + 1  # with weights, behind one another or side by side


@pytest.fixture(scope="module")
def device():
    """A device "cuda:0" of one architecture."""
    gpu = Simulated(80)
    install(gpu)
    yield gpu
    gpu.check()
    install(None)


@pytest.fixture(scope="module")
def model(default_model, device):
    return TextModel(*load_gguf(str(default_model), context=64, device="cuda:0"), cache_dtype="f32", device="cuda:0")


@pytest.fixture(scope="module")
def reference(default_model):
    return Reference(default_model, np.float32)


def logits(model, ids):
    """Of all tokens, in one chunk."""
    cache = model.model.new_cache(64, "f32", device="cuda:0")
    return model.model(tensorlib.tensor(ids, dtype="i64", device="cuda:0"), cache, last_only=False).cpu().numpy()


def test_logits_of_a_prompt(model, reference):
    """More than 8 tokens: every product rounds its activations to f16, 2^-11 of themselves, up or down."""
    ids = model.tokenizer.encode(PROMPT)
    got, want = logits(model, ids), reference.logits(ids)
    assert len(ids) > 8
    assert np.abs(got - want).max() < PRODUCTS**0.5 * 2**-11 * np.abs(want).max()
    assert (got.argmax(1) == want.argmax(1)).all()


def test_logits_of_few_tokens_after_four_layers(model, reference, monkeypatch):
    """Up to 8 tokens: activations are rounded to 8 bits per 32. That of the f32 sums differs, by 2^-24 of some hundred
    terms; where it tips a half, in a token's row and those behind it, as much as two that are rounded independently.
    """
    ids = model.tokenizer.encode(PROMPT)[-5:]
    monkeypatch.setattr(reference, "layers", 4)
    monkeypatch.setattr(model.model.model, "layers", nn.ModuleList(list(model.model.model.layers)[:4]))
    got, exact = logits(model, ids), reference.logits(ids)
    rounding = {k: Rounding(w) if w.ndim == 2 else w for k, w in reference.weights.items()}
    monkeypatch.setattr(reference, "weights", rounding)
    want = reference.logits(ids)
    assert (np.abs(got - want).max(1) < 1e-5 * np.abs(want).max()).sum() >= 3
    assert ((got - want) ** 2).sum() < 2 * ((exact - want) ** 2).sum()


def test_text(model, default_model):
    """What the CPU says, by replays of a graph."""
    ids = model.tokenizer.encode(PROMPT)
    found = list(model.generate(ids, 3))
    assert found == list(TextModel(*load_gguf(str(default_model), context=64)).generate(ids, 3))
    assert model.tokenizer.decode(found).startswith(" Paris")
