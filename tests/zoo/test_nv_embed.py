"""NV-Embed: Mistral's layers of transformers, attention both ways, and latent attention by the paper."""

import json

import numpy as np
import pytest

import tensorlib
from tests.zoo.test_encoders import batch, close
from tests.zoo.test_trunks import SIZES, TEXTS, WORDS, check_step, describe, normal, randomised, vectors
from zoo import auto, embed, nv_embed

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LATENT = {"num_latents_value": 5, "num_cross_heads": 2, "cross_dim_head": 264, "latent_dim": 32, "hidden_dim": 32}


class Latent(torch.nn.Module):
    """Section 3.2 in torch, with the published file's names."""

    def __init__(self):
        super().__init__()
        D, Q = 32, LATENT["num_cross_heads"] * LATENT["cross_dim_head"]
        self.latents = torch.nn.Parameter(torch.zeros(LATENT["num_latents_value"], D))
        linear, tree = torch.nn.Linear, torch.nn.ModuleDict
        attention = {"to_q": linear(D, Q, False), "to_kv": linear(D, 2 * Q, False), "to_out": linear(Q, D, False)}
        norms = [torch.nn.LayerNorm(D) for _ in range(3)]
        first = tree({"fn": tree(attention), "norm": norms[0], "norm_context": norms[1]})
        net = tree({"0": linear(D, 8 * D), "2": linear(4 * D, D)})
        self.cross_attend_blocks = torch.nn.ModuleList([first, tree({"fn": tree({"net": net}), "norm": norms[2]})])

    def forward(self, x):
        (first, second), heads = self.cross_attend_blocks, LATENT["num_cross_heads"]
        fn, context = first["fn"], first["norm_context"](self.latents)
        q = fn["to_q"](first["norm"](x)).unflatten(-1, (heads, -1)).transpose(-3, -2)
        k, v = (y.unflatten(-1, (heads, -1)).transpose(0, 1) for y in fn["to_kv"](context).chunk(2, -1))
        weights = (q @ k.transpose(-2, -1) * LATENT["cross_dim_head"] ** -0.5).softmax(-1)
        x = x + fn["to_out"]((weights @ v).transpose(-3, -2).flatten(-2))
        net = second["fn"]["net"]
        a, b = net["0"](second["norm"](x)).chunk(2, -1)
        return x + net["2"](a * torch.nn.functional.gelu(b))


class NVEmbed(torch.nn.Module):
    def __init__(self, text):
        super().__init__()
        self.embedding_model, self.latent_attention_model = transformers.MistralModel(text), Latent()

    def forward(self, ids, mask):
        x = self.embedding_model(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state
        return self.latent_attention_model(x) * torch.tensor(mask)[..., None]


def save_nv_embed(folder, **sizes):
    text = transformers.MistralConfig(**{**SIZES, **sizes}, is_causal=False, sliding_window=None)
    text._attn_implementation = "eager"
    theirs = randomised(NVEmbed(text))
    weights = {name: tensorlib.from_numpy(x.numpy()) for name, x in theirs.state_dict().items()}
    tensorlib.save(folder / "model.safetensors", weights)
    fields = {"model_type": "nvembed", "text_config": text.to_dict(), "latent_attention_config": LATENT}
    (folder / "config.json").write_text(json.dumps(fields))
    return theirs


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nv")
    theirs = save_nv_embed(folder)
    return theirs, auto.load(folder)[1]


def test_hidden_states(pair):
    theirs, ours = pair
    ids, mask = batch()
    with torch.no_grad():
        want = theirs(ids, mask).numpy()
    with tensorlib.no_grad():
        close(ours(tensorlib.tensor(ids), tensorlib.tensor(mask)).numpy(), want)


def test_training_step(pair):
    theirs, ours = pair
    check_step(theirs, theirs, ours, "")


def test_tiny():
    ours = nv_embed.NVEmbedModel(nv_embed.TINY).requires_grad_(False)
    assert ours(tensorlib.tensor([3, 4, 5])).shape == (3, nv_embed.TINY.hidden_size)


def test_pipeline(tmp_path):
    theirs = save_nv_embed(tmp_path, vocab_size=len(WORDS))
    describe(tmp_path, "mean_tokens")
    want = normal(np.stack([x.mean(0) for x in vectors(theirs)]))
    close(embed.load(tmp_path).encode(TEXTS).numpy(), want, 1e-5)
