"""JinaBERT against its definition in torch, with the published files' names: hidden states, one training step."""

import json

import numpy as np
import pytest

import tensorlib
from tensorlib import nn
from tests.zoo.test_encoders import LENGTHS, batch, close
from tests.zoo.test_trunks import TEXTS, describe, normal, vectors
from zoo import auto, embed
from zoo.jina_bert import TINY, JinaBertModel

torch = pytest.importorskip("torch")
functional = torch.nn.functional

D, F, LAYERS = 32, 48, 2
SIZES = {"vocab_size": 99, "hidden_size": D, "intermediate_size": F, "num_hidden_layers": LAYERS}
SIZES |= {"max_position_embeddings": 64, "type_vocab_size": 2, "layer_norm_eps": 1e-12}
SIZES |= {"model_type": "bert", "position_embedding_type": "alibi", "architectures": ["JinaBertForMaskedLM"]}
CODE = {"auto_map": {"AutoModel": "jinaai/jina-bert-v2-qk-post-norm--modeling_bert.JinaBertModel"}}
CASES = {
    "text": {"num_attention_heads": 4, "feed_forward_type": "geglu"},
    "relu": {"num_attention_heads": 2, "feed_forward_type": "reglu"},
    "code": {"num_attention_heads": 4, "feed_forward_type": "geglu", **CODE},
}


def shapes(code):
    """{name: shape} of a file."""
    found = {"embeddings.word_embeddings.weight": (99, D), "embeddings.token_type_embeddings.weight": (2, D)}
    norms, linears = ["embeddings.LayerNorm"], {}
    for i in range(LAYERS):
        at = f"encoder.layer.{i}"
        norms.append(f"{at}.attention.output.LayerNorm")
        own = [f"{at}.{name}" for name in ("layer_norm_1", "layer_norm_2")]
        own += [f"{at}.attention.self.layer_norm_{name}" for name in "qk"]
        norms += own if code else [f"{at}.mlp.layernorm"]
        linears |= {f"{at}.attention.{name}": (D, D) for name in ("self.query", "self.key", "self.value")}
        linears |= {f"{at}.attention.output.dense": (D, D), f"{at}.mlp.{'down_layer' if code else 'wo'}": (D, F)}
        found[f"{at}.mlp.{'up_gated_layer' if code else 'gated_layers'}.weight"] = (2 * F, D)
    for name in norms:
        found |= {f"{name}.weight": (D,), f"{name}.bias": (D,)}
    for name, shape in linears.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return found


class Reference(torch.nn.Module):
    """arXiv:2310.19923, section 3.1, in plain operations."""

    def __init__(self, config, state):
        super().__init__()
        self.config, self.state = config, {name: torch.nn.Parameter(x) for name, x in state.items()}
        self.code = "auto_map" in config

    def linear(self, name, x):
        return functional.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def norm(self, name, x):
        return functional.layer_norm(x, (D,), self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-12)

    def attention(self, at, x, seen):
        H, (B, T, _) = self.config["num_attention_heads"], x.shape
        q, k, v = (self.linear(f"{at}.self.{name}", x) for name in ("query", "key", "value"))
        if self.code:
            q, k = self.norm(f"{at}.self.layer_norm_q", q), self.norm(f"{at}.self.layer_norm_k", k)
        q, k, v = (y.reshape(B, T, H, -1).transpose(1, 2) for y in (q, k, v))
        slopes = torch.tensor([2.0 ** (-8 * (h + 1) / H) for h in range(H)])[:, None, None]
        distance = (torch.arange(T)[:, None] - torch.arange(T)).abs()
        scores = q @ k.transpose(-1, -2) / (D // H) ** 0.5 - slopes * distance
        scores = scores.masked_fill(~seen[:, None, None, :], -torch.inf).softmax(-1)
        return self.norm(
            f"{at}.output.LayerNorm",
            x + self.linear(f"{at}.output.dense", (scores @ v).transpose(1, 2).reshape(B, T, D)),
        )

    def dense(self, at, x):
        act = functional.relu if self.config["feed_forward_type"] == "reglu" else functional.gelu
        if self.code:
            up, gate = self.linear(f"{at}.up_gated_layer", x).split(F, -1)
            return self.linear(f"{at}.down_layer", up * act(gate))
        gate, up = self.linear(f"{at}.gated_layers", x).split(F, -1)
        return self.norm(f"{at}.layernorm", x + self.linear(f"{at}.wo", act(gate) * up))

    def forward(self, ids, mask):
        seen, e = torch.tensor(mask).bool(), "embeddings"
        types = self.state[f"{e}.token_type_embeddings.weight"]
        x = self.norm(f"{e}.LayerNorm", self.state[f"{e}.word_embeddings.weight"][torch.tensor(ids)] + types[0])
        for i in range(LAYERS):
            at = f"encoder.layer.{i}"
            y = self.attention(f"{at}.attention", x, seen)
            if self.code:
                y = self.norm(f"{at}.layer_norm_1", x + y)
                x = self.norm(f"{at}.layer_norm_2", y + self.dense(f"{at}.mlp", y))
            else:
                x = self.dense(f"{at}.mlp", y)
        return x * seen[..., None]


def made(name, folder):
    """The Reference of a case, saved to a folder."""
    config, generator = {**SIZES, **CASES[name]}, torch.Generator().manual_seed(0)
    state = {}
    for key, shape in shapes("auto_map" in config).items():
        noise = torch.randn(shape, generator=generator)
        whole = 1.0 if "orm" in key and key.endswith("weight") else 0.0
        state[key] = whole + noise / (4 if len(shape) == 1 else 1 if "embeddings" in key else D**0.5)
    weights = {key: tensorlib.from_numpy(x.numpy()) for key, x in state.items()}
    tensorlib.save(folder / "model.safetensors", weights)
    (folder / "config.json").write_text(json.dumps(config))
    return Reference(config, state)


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("jina")
    theirs = made(request.param, folder)
    return theirs, auto.load(folder)[1]


def test_hidden_states(pair):
    """A batch with padding, the same as lists, and one sequence alone."""
    theirs, ours = pair
    ids, mask = batch()
    with torch.no_grad():
        want = theirs(ids, mask).numpy()
    with tensorlib.no_grad():
        close(ours(tensorlib.tensor(ids), tensorlib.tensor(mask)).numpy(), want)
        rows = [row[:n].tolist() for row, n in zip(ids, LENGTHS)]
        close(ours(nn.Sequences(rows)).numpy(), np.concatenate([w[:n] for w, n in zip(want, LENGTHS)]))
        close(ours(tensorlib.tensor(rows[0])).numpy(), want[0, : LENGTHS[0]])


def test_training_step(pair):
    """Loss and gradients of all weights after one backward pass."""
    theirs, ours = pair
    ids, mask = batch()
    want = theirs(ids, mask).square().mean()
    want.backward()
    ours.requires_grad_()
    found = ours(tensorlib.tensor(ids), tensorlib.tensor(mask)).square().mean()
    assert abs(found.item() - want.item()) < 1e-5 * abs(want.item())
    found.backward()
    grads = {name: p.grad for name, p in ours.named_parameters()}
    assert grads.keys() == theirs.state.keys()
    for name, weight in theirs.state.items():
        difference = np.abs(grads[name].numpy() - weight.grad.numpy()).max()
        assert difference < 1e-3 * max(weight.grad.abs().max().item(), 1e-4), name
    ours.requires_grad_(False)


def test_tiny():
    ours = JinaBertModel(TINY).requires_grad_(False)
    assert ours(tensorlib.tensor([3, 4, 5])).shape == (3, TINY.hidden_size)


def test_pipeline(tmp_path):
    """Means of tokens through a recording, whose penalties are made in it, and its replay with other texts."""
    theirs = made("text", tmp_path)
    describe(tmp_path, "mean_tokens")
    want = normal(np.stack([x.mean(0) for x in vectors(lambda *given: theirs(*given).detach())]))
    model = embed.load(tmp_path)
    for texts, rows in ((TEXTS, want), (TEXTS[::-1], want[::-1]), (TEXTS, want), (TEXTS[::-1], want[::-1])):
        close(model.encode(texts).numpy(), rows, 1e-5)
    assert model._graphs
