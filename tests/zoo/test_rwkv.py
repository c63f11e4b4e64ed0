"""RWKV 5, 6 and 7, which transformers does not have, against the papers' recurrences token by token in float64."""

import importlib
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

import tensorlib
from tensorlib.io import gguf, safetensors
from tests.zoo import test_decoders as whole
from zoo import auto, gguf_names
from zoo.config import Fields
from zoo.load import load_gguf

torch = pytest.importorskip("torch")
F = torch.nn.functional

# run here with the pairs of this file
test_prefill, test_cached_steps, test_recorded_steps = (
    whole.test_prefill,
    whole.test_cached_steps,
    whole.test_recorded_steps,
)
test_batch, test_training_step = whole.test_batch, whole.test_training_step

V, D, H, N, LAYERS, WIDE = 99, 32, 4, 8, 3, 64
CONFIG = {"vocab_size": V, "hidden_size": D, "head_size": N, "num_hidden_layers": LAYERS, "intermediate_size": WIDE}


class Reference:
    """A model of transformers' face: `weights` by name in float64, one loop over the tokens."""

    def __init__(self, weights):
        self.weights = {name: torch.tensor(x.astype(np.float64), requires_grad=True) for name, x in weights.items()}

    def zero_grad(self):
        for weight in self.weights.values():
            weight.grad = None

    def named_parameters(self):
        return self.weights.items()

    def __call__(self, ids, use_cache):
        return SimpleNamespace(logits=torch.stack([self.sequence(row) for row in ids]))

    def norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-5)

    def heads(self, y, name, eps=64e-5):
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.group_norm(y.reshape(-1, D), H, weight, bias, eps)


class Rwkv56(Reference):
    shares = ("r", "k", "v", "g")

    def sequence(self, ids):
        w = self.weights
        x = self.norm(w["rwkv.embeddings.weight"][ids], "rwkv.blocks.0.pre_ln")
        for i in range(LAYERS):
            block = f"rwkv.blocks.{i}"
            x = x + self.time_mix(self.norm(x, f"{block}.ln1"), f"{block}.attention.")
            x = x + self.channel_mix(self.norm(x, f"{block}.ln2"), f"{block}.feed_forward.")
        return self.norm(x, "rwkv.ln_out") @ w["head.weight"].T

    def time_mix(self, x, at):
        w = {name.removeprefix(at): x for name, x in self.weights.items() if name.startswith(at)}
        r, k, v, g, decay = self.inputs(x, F.pad(x, (0, 0, 1, 0))[:-1], w)
        r, k, v = (each @ w[f"{name}.weight"].T for each, name in zip((r, k, v), ("receptance", "key", "value")))
        r, k, v, decay = (each.reshape(-1, H, N) for each in (r, k, v, decay))
        state, found = torch.zeros(H, N, N, dtype=torch.float64), []
        for t in range(len(x)):
            own = k[t][:, :, None] * v[t][:, None, :]
            found.append(((state + w["time_faaaa"][:, :, None] * own) * r[t][:, :, None]).sum(1))
            state = decay[t][:, :, None] * state + own
        y = self.heads(torch.stack(found), f"{at}ln_x") * F.silu(g @ w["gate.weight"].T)
        return y @ w["output.weight"].T

    def channel_mix(self, x, at):
        w, before = self.weights, F.pad(x, (0, 0, 1, 0))[:-1]
        k, r = (x + (before - x) * share for share in self.channel_shares(at))
        value = F.relu(k @ w[f"{at}key.weight"].T) ** 2 @ w[f"{at}value.weight"].T
        return torch.sigmoid(r @ w[f"{at}receptance.weight"].T) * value


class Rwkv5(Rwkv56):
    def channel_shares(self, at):
        return [1 - self.weights[f"{at}time_mix_{name}"].flatten() for name in ("key", "receptance")]

    def inputs(self, x, before, w):
        shares = (w[f"time_mix_{name}"].flatten() for name in ("receptance", "key", "value", "gate"))
        mixed = [x * share + before * (1 - share) for share in shares]
        return *mixed, torch.exp(-torch.exp(w["time_decay"])).flatten().expand(x.shape)


class Rwkv6(Rwkv56):
    def channel_shares(self, at):
        return [self.weights[f"{at}time_maa_{name}"].flatten() for name in "kr"]

    def inputs(self, x, before, w):
        base = {name: w[f"time_maa_{name}"].flatten() for name in "xwkvrg"}
        low = torch.tanh((x + (before - x) * base["x"]) @ w["time_maa_w1"]).reshape(-1, 5, 32)
        each = [x + (before - x) * (base[name] + low[:, i] @ w["time_maa_w2"][i]) for i, name in enumerate("wkvrg")]
        decay = w["time_decay"].flatten() + torch.tanh(each[0] @ w["time_decay_w1"]) @ w["time_decay_w2"]
        _, k, v, r, g = each
        return r, k, v, g, torch.exp(-torch.exp(decay))


class Rwkv7(Reference):
    def sequence(self, ids):
        w, first = self.weights, None
        x = self.norm(w["model.embeddings.weight"][ids], "model.layers.0.pre_norm")
        for i in range(LAYERS):
            at = f"model.layers.{i}."
            y, first = self.time_mix(self.norm(x, f"{at}attn_norm"), first, f"{at}attn.")
            x = x + y
            h = self.norm(x, f"{at}ffn_norm")
            h = h + (F.pad(h, (0, 0, 1, 0))[:-1] - h) * w[f"{at}ffn.x_k"]
            x = x + F.relu(h @ w[f"{at}ffn.key.weight"].T) ** 2 @ w[f"{at}ffn.value.weight"].T
        return self.norm(x, "model.norm") @ w["lm_head.weight"].T

    def time_mix(self, x, first, at):
        w = {name.removeprefix(at): x for name, x in self.weights.items() if name.startswith(at)}
        r, d, k, v, a, g = (x + (F.pad(x, (0, 0, 1, 0))[:-1] - x) * w[f"x_{name}"].flatten() for name in "rwkvag")

        def low(x, name, act=lambda x: x):
            return act(x @ w[f"{name}_lora.lora.0.weight"].T) @ w[f"{name}_lora.lora.2.weight"].T

        decay = torch.exp(-np.exp(-0.5) * torch.sigmoid(low(d, "w", torch.tanh) + w["w_lora.lora.2.bias"]))
        a, g = torch.sigmoid(low(a, "a") + w["a_lora.lora.2.bias"]), low(g, "g", torch.sigmoid)
        r, k, value = r @ w["r_proj.weight"].T, k @ w["k_proj.weight"].T, v @ w["v_proj.weight"].T
        if first is None:
            first = value
        else:
            value = value + (first - value) * torch.sigmoid(low(v, "v") + w["v_lora.lora.2.bias"])
        removed = F.normalize((k * w["k_k"]).reshape(-1, H, N), dim=-1)
        k = k * (1 + (a - 1) * w["k_a"])
        r, k, value, a, decay = (each.reshape(-1, H, N) for each in (r, k, value, a, decay))
        state, found = torch.zeros(H, N, N, dtype=torch.float64), []  # of values by keys, as in the paper
        for t in range(len(x)):
            change = -removed[t][:, :, None] * (removed[t] * a[t])[:, None, :]
            state = state * decay[t][:, None, :] + state @ change + value[t][:, :, None] * k[t][:, None, :]
            found.append((state @ r[t][:, :, None])[:, :, 0])
        y = self.heads(torch.stack(found), f"{at}g_norm", N * 1e-5)
        y = y + ((r * k * w["r_k"]).sum(-1, keepdim=True) * value).reshape(-1, D)
        return (y * g) @ w["o_proj.weight"].T, first


RANKS = {"decay_low_rank_dim": 6, "a_low_rank_dim": 5, "v_low_rank_dim": 3, "gate_low_rank_dim": 7}
GOOSE = {**CONFIG, **RANKS, "head_dim": N, "hidden_act": "sqrelu"}
CASES = {"rwkv5": (Rwkv5, CONFIG), "rwkv6": (Rwkv6, CONFIG), "rwkv7": (Rwkv7, GOOSE)}


def drawn(model_type, config):
    """Weights by name for a model of this config: norms near 1, biases and shares small, products keep sizes."""
    module, *names = auto.MODELS[model_type]
    kind, made = (getattr(importlib.import_module(f"zoo.{module}"), name) for name in names)
    generator, found = np.random.default_rng(0), {}
    for name, p in kind(made.from_hf(Fields(config, "config.json"))).named_parameters():
        noise = generator.standard_normal(tuple(p.shape)).astype(np.float32)
        vector = noise.ndim == 1 or noise.shape[0] == 1
        is_norm = vector and name.endswith("weight")
        found[name] = is_norm + (
            0.3 * noise if vector else noise if "embed" in name else noise / noise.shape[-1] ** 0.5
        )
    return found


def saved(model_type, folder):
    """Weights of a case, which a folder gets as published ones are."""
    config = CASES[model_type][1]
    weights = drawn(model_type, config)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **config}))
    safetensors.save(folder / "model.safetensors", {name: tensorlib.from_numpy(x) for name, x in weights.items()})
    return weights


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """(the reference, ours, what the tests of decoders need of a case), from one folder."""
    folder = tmp_path_factory.mktemp("model")
    theirs = CASES[request.param][0](saved(request.param, folder))
    return theirs, auto.load(folder)[1], SimpleNamespace(name=lambda theirs: theirs)


def converted_6(weights, rescale=2):
    """llama.cpp's tensors of RWKV 6: those of low rank turned, shares in one, two products halved with depth."""
    shares, found = {}, {}
    for name, x in weights.items():
        layer = int(name.split(".")[2]) if ".blocks." in name else 0
        if name.endswith(("time_maa_w1", "time_maa_w2", "time_decay_w1", "time_decay_w2")):
            x = np.swapaxes(x, -1, -2)
        elif name.endswith(("time_decay", *(f"time_maa_{c}" for c in "xwkvrg"))):
            x = x.flatten()
        elif name.endswith(("attention.output.weight", "feed_forward.value.weight")):
            x = x / 2 ** (layer // rescale)
        if "attention.time_maa_" in name and name[-1] in "wkvrg" and name[-2] == "_":
            shares[layer, name[-1]] = x
        else:
            found[name] = x
    fused = {f"blk.{i}.time_mix_lerp_fused.weight": np.stack([shares[i, c] for c in "wkvrg"])[:, None, None]
             for i in range(LAYERS)}  # fmt: skip
    return found, fused, {"rescale_every_n_layers": rescale, "time_mix_extra_dim": 32, "time_decay_extra_dim": 64}


def converted_7(weights):
    """llama.cpp's tensors of RWKV 7: shares in one; the first layer has values' ranks, which are not used."""
    found = {name: x.flatten() if name.endswith("r_k") else x for name, x in weights.items() if ".attn.x_" not in name}
    fused = {}
    for i in range(LAYERS):
        shares = [weights[f"model.layers.{i}.attn.x_{c}"][None] for c in "rwkvag"]
        fused[f"blk.{i}.time_mix_lerp_fused.weight"] = np.concatenate(shares)
    for i, end in enumerate(("lora.2.bias", "lora.0.weight", "lora.2.weight")):
        fused[f"blk.0.time_mix_v{i}.weight"] = weights[f"model.layers.0.attn.a_lora.{end}"]
    ranks = ("decay_lora_rank", "iclr_lora_rank", "value_residual_mix_lora_rank", "gate_lora_rank")
    return found, fused, {f"attention.{key}": rank for key, rank in zip(ranks, RANKS.values())}


def write_gguf(path, arch, weights, config):
    found, fused, fields = (converted_6 if arch == "rwkv6" else converted_7)(weights)
    for name, x in found.items():
        fused[gguf_names.gguf_name(name, arch)] = x
    fields |= {"context_length": 1 << 20, "embedding_length": config["hidden_size"], "block_count": LAYERS}
    fields |= {"feed_forward_length": WIDE, "wkv.head_size": config["head_size"], "attention.head_count": 0}
    fields |= {"attention.layer_norm_epsilon": 1e-5}
    metadata = {"general.architecture": arch} | {f"{arch}.{key}": value for key, value in fields.items()}
    gguf.write(path, metadata, {name: np.ascontiguousarray(x) for name, x in fused.items()})


IN_GGUF = ("rwkv6", "rwkv7")  # llama.cpp has no other


@pytest.mark.parametrize("arch", IN_GGUF)
def test_gguf(arch, tmp_path):
    """All tokens at once, then a step; names are those of the gguf package."""
    kind, config = CASES[arch]
    weights = drawn(arch, config)
    write_gguf(tmp_path / "model.gguf", arch, weights, config)
    _, ours = load_gguf(tmp_path / "model.gguf")
    cache, want = ours.new_cache(32, "f32"), whole.logits(kind(weights), [whole.IDS])[0]
    whole.close(ours(whole.tensor(whole.IDS[:15]), cache, last_only=False).numpy(), want[:15])
    whole.close(ours(whole.tensor(whole.IDS[15:]), cache, last_only=False).numpy(), want[15:])
    package = pytest.importorskip("gguf")
    number = {name: key for key, name in package.MODEL_ARCH_NAMES.items()}[arch]
    known = {package.TENSOR_NAMES[each].replace("{bid}", "#") for each in package.MODEL_TENSORS[number]}
    with gguf.open(tmp_path / "model.gguf") as file:
        assert {re.sub(r"\.\d+\.", ".#.", name.rpartition(".")[0]) for name in file.tensors} <= known
