"""Based, which transformers does not have, against the paper's formulas in float64, features written out one by one."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import tensorlib
from tensorlib.io import safetensors
from tests.zoo import test_decoders as whole
from zoo import auto
from zoo.based import BasedConfig, BasedForCausalLM
from zoo.config import Fields

torch = pytest.importorskip("torch")
F = torch.nn.functional

# run here with the pairs of this file
test_prefill, test_cached_steps, test_recorded_steps = (
    whole.test_prefill,
    whole.test_cached_steps,
    whole.test_recorded_steps,
)
test_batch, test_training_step = whole.test_batch, whole.test_training_step

CONFIG = {
    "model_type": "gpt2", "activation_function": "swiglu", "vocab_size": 99, "n_embd": 32, "n_head": 4, "n_layer": 4,
    "n_inner": 40, "layer_norm_epsilon": 1e-5, "rms_norm": True, "mlp_fc1_bias": False, "mlp_fc2_bias": False,
    "qkv_proj_bias": False, "out_proj_bias": False, "rotary_emb_fraction": 1, "n_positions": 64,
    "alt_mixer_layers": [1], "alt_mixer_2_layers": [2],
    "mixer": {"_target_": "based.models.mixers.convolution.BaseConv", "expand_proj": 4, "kernel_size": 3},
    "alt_mixer": {
        "_target_": "based.models.mixers.linear_attention.LinearAttention", "feature_dim": 6, "num_heads": 2,
        "feature_map": {"_target_": "based.models.mixers.linear_attention.TaylorExp", "input_dim": 6},
    },
    "alt_mixer_2": {"_target_": "based.models.mixers.slide_attention.SlidingAttention", "window_size": 12},
}  # fmt: skip
SOME = {**CONFIG, "alt_mixer_layers": [0, 3], "alt_mixer_2_layers": [1], "rotary_emb_fraction": 0.5}
CASES = {"each": CONFIG, "half": SOME}
TABLES = "lm_head.weight", "transformer.embeddings.word_embeddings.weight"


class Reference:
    """Weights by name, as leaves of float64; a call gives logits of whole sequences, as transformers' models do."""

    def __init__(self, weights, config):
        self.w = {name: torch.tensor(x, dtype=torch.float64, requires_grad=True) for name, x in weights.items()}
        self.w[TABLES[1]], self.c = self.w[TABLES[0]], config

    def named_parameters(self):
        return self.w.items()

    def zero_grad(self):
        for weight in self.w.values():
            weight.grad = None

    def __call__(self, ids, use_cache=False):
        return SimpleNamespace(logits=torch.stack([self.sequence(row) for row in ids]))

    def norm(self, x, name):
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * self.w[name]

    def sequence(self, ids):
        x = self.w[TABLES[0]][ids]
        for i in range(self.c["n_layer"]):
            at = f"transformer.layers.{i}"
            kind = self.linear if i in self.c["alt_mixer_layers"] else self.conv
            kind = self.window if i in self.c["alt_mixer_2_layers"] else kind
            x = x + kind(self.norm(x, f"{at}.norm1.weight"), f"{at}.mixer")
            a, b = (self.norm(x, f"{at}.norm2.weight") @ self.w[f"{at}.mlp.fc1.weight"].T).chunk(2, -1)
            x = x + (a * F.silu(b)) @ self.w[f"{at}.mlp.fc2.weight"].T
        return self.norm(x, "transformer.ln_f.weight") @ self.w[TABLES[0]].T

    def linear(self, x, at):
        """A state per head, updated token by token."""
        heads, found = self.c["alt_mixer"]["num_heads"], []
        q, k, v = (x @ self.w[f"{at}.proj_{name}.weight"].T for name in "qkv")
        q, k, v = (y.reshape(len(x), heads, -1) for y in (q, k, v))
        for h in range(heads):
            state, total = 0.0, 0.0
            rows = []
            for t in range(len(x)):
                f_q, f_k = self.features(q[t, h]), self.features(k[t, h])
                state, total = state + torch.outer(f_k, v[t, h]), total + f_k
                rows.append(f_q @ state / (f_q @ total))
            found.append(torch.stack(rows))
        return torch.cat(found, 1) @ self.w[f"{at}.out_proj.weight"].T

    @staticmethod
    def features(x):
        n = len(x)
        return torch.cat([x.new_ones(1), x / n**0.25, torch.outer(x, x).flatten() / (2 * n) ** 0.5])

    def window(self, x, at):
        heads, before = self.c["n_head"], self.c["alt_mixer_2"]["window_size"] // 2
        qkv = (x @ self.w[f"{at}.Wqkv.weight"].T).reshape(len(x), 3, heads, -1)
        q, k, v = (qkv[:, i].transpose(0, 1) for i in range(3))
        q, k = self.turned(q), self.turned(k)
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        distance = torch.arange(len(x))[:, None] - torch.arange(len(x))
        scores = scores.masked_fill((distance < 0) | (distance > before), -torch.inf)
        return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1) @ self.w[f"{at}.out_proj.weight"].T

    def turned(self, x):
        size = int(x.shape[-1] * self.c["rotary_emb_fraction"])
        rates = 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        angles = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * rates
        a, b = x[..., :size].chunk(2, -1)
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin(), x[..., size:]], -1)

    def conv(self, x, at):
        a, b = (x @ self.w[f"{at}.in_proj.weight"].T + self.w[f"{at}.in_proj.bias"]).chunk(2, -1)
        taps = self.w[f"{at}.conv.conv.weight"]
        padded = F.pad(a.T, (taps.shape[-1] - 1, 0))
        y = F.conv1d(padded[None], taps, groups=len(taps))[0].T
        return (F.silu(y) * b) @ self.w[f"{at}.out_proj.weight"].T + self.w[f"{at}.out_proj.bias"]


def saved(config, folder, table=TABLES[0]):
    """The reference of random weights, which a folder has, with the table of words under one name."""
    generator, weights = np.random.default_rng(0), {}
    for name, p in BasedForCausalLM(BasedConfig.from_hf(Fields(config, "config.json"))).named_parameters():
        noise = generator.standard_normal(tuple(p.shape)).astype(np.float32)
        if name == TABLES[1]:
            continue
        if noise.ndim == 1:
            weights[name] = ("norm" in name or "ln_f" in name) + 0.3 * noise
        else:
            weights[name] = noise if name == TABLES[0] else noise / noise.shape[-1] ** 0.5
    (folder / "config.json").write_text(json.dumps(config))
    named = {table if name == TABLES[0] else name: tensorlib.from_numpy(x) for name, x in weights.items()}
    safetensors.save(folder / "model.safetensors", named)
    return Reference(weights, config)


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """(the reference, ours, what the tests of decoders need of a case), from one folder."""
    config, folder = CASES[request.param], tmp_path_factory.mktemp("based")
    theirs = saved(config, folder, TABLES[request.param == "half"])
    ours = auto.load(folder)[1]
    assert ours.config.vocab_size == 104 and ours.config.kinds.count("conv") == (2 if config is CONFIG else 1)
    return theirs, ours, SimpleNamespace(name=lambda theirs: theirs)
