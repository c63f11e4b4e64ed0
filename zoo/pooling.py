"""What stands behind an encoder in sentence-transformers' pipelines: pools over tokens, projections, norms."""

import json
import os

import tensorlib
from tensorlib import nn
from tensorlib.errors import FormatError
from zoo import config

# in the order in which several are concatenated
POOLS = {
    "cls": lambda tokens, x: tokens.at(x, 0),
    "max": lambda tokens, x: tokens.max(x),
    "mean": lambda tokens, x: tokens.mean(x),
    "mean_sqrt_len_tokens": lambda tokens, x: tokens.mean(x) * _lengths(tokens).sqrt(),
    "weightedmean": lambda tokens, x: _later(tokens, x),
    "lasttoken": lambda tokens, x: tokens.at(x, -1),
}
# the flags that name them in files of old
FLAGS = ["cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]
ACTS = {
    "Identity": lambda x: x,
    "Tanh": lambda x: x.tanh(),
    "Sigmoid": lambda x: x.sigmoid(),
    "ReLU": lambda x: x.relu(),
    "GELU": nn.functional.gelu,
    "SiLU": nn.functional.silu,
}
LOGS = {"relu": 1, "log1p_relu": 2}  # how often SPLADE takes a logarithm


def read_json(folder, name, kind=dict):
    """What a file of JSON holds, something of that kind, or None where there is none. FormatError."""
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (ValueError, RecursionError) as error:
        raise FormatError(path, "file", str(error)[:200], "JSON") from None
    if not isinstance(found, kind):
        raise FormatError(path, "file", f"a JSON {type(found).__name__}", f"a {kind.__name__}")
    return found


def _lengths(tokens):
    return tensorlib.tensor([[float(n)] for n in tokens.lengths], device=tokens.ids.device)


def _later(tokens, x):
    """SGPT (arXiv:2202.08904, equation 2): each token by its place, for later ones have seen more of the text."""
    return tokens.mean(x * (tokens.positions.reshape(-1, 1) + 1)) * 2.0 / (_lengths(tokens) + 1.0)


def without(tokens, x, skip):
    """(tokens, x) without the first `skip` of each sequence. ShapeError for a text that has no more."""
    rest = nn.Sequences([[0] * max(0, n - skip) for n in tokens.lengths], device=tokens.ids.device)
    return rest, tensorlib.cat([rows[skip:] for rows in tokens.split(x)], 0)


def pools(names, where):
    """The step that pools in each of some ways. FormatError for one that is not here."""
    if not set(map(str, names)) <= set(POOLS) or not names:
        raise FormatError(where, "pooling_mode", f"{names}", f"among {', '.join(POOLS)}", "this is not here yet")

    def pooled(tokens, x):
        found = [POOLS[name](tokens, x) for name in names]
        return found[0] if len(found) == 1 else tensorlib.cat(found, 1)

    pooled.__name__ = " ".join(names)  # what a TextEncoder shows
    return pooled


def normalize(tokens, x):
    """Vectors of length 1."""
    return nn.functional.normalize(x)


def _pooling(folder, device):
    values = (read_json(folder, "config.json") if os.path.basename(folder) else None) or {}
    names = values.get("pooling_mode")
    if names is None:
        flags = [k[13:] for k, wanted in values.items() if k.startswith("pooling_mode_") and wanted is True]
        names = [name for flag, name in zip(FLAGS, POOLS) if flag in flags] or ["mean"]
        names += [flag for flag in flags if flag not in FLAGS]
    names = names if isinstance(names, list) else [names]
    if "weightedmean" in names and values.get("include_prompt") is False:
        raise FormatError(folder, "include_prompt", "false for a weightedmean", "true", "this is not here yet")
    return pools(names, folder)


def _dense(folder, device):
    fields, source = config.read(folder), tensorlib.load(folder)
    sizes = [fields(name, int) for name in ("in_features", "out_features")]
    layer, beside = nn.Linear(*sizes, bias=fields("bias", bool, True)), None
    nn.VarBuilder(source, prefix="linear.", device=device).load(layer)
    name = fields("activation_function", str, "Tanh").rsplit(".", 1)[-1]
    if name not in ACTS:
        raise FormatError(fields.path, "activation_function", repr(name), f"one of {', '.join(ACTS)}", "not here yet")
    if fields("use_residual", bool, False):
        beside = ACTS["Identity"]
        if sizes[0] != sizes[1]:
            beside = nn.VarBuilder(source, prefix="residual.", device=device).load(nn.Linear(*sizes, bias=False))

    def dense(tokens, x):
        return ACTS[name](layer(x)) + (beside(x) if beside else 0.0)

    return dense


def _layer_norm(folder, device):
    layer = nn.LayerNorm(config.read(folder)("dimension", int))
    nn.VarBuilder(tensorlib.load(folder), prefix="norm.", device=device).load(layer)

    def layer_norm(tokens, x):
        return layer(x)

    return layer_norm


def _splade(folder, device):
    """SPLADE (arXiv:2109.10086, equations 1 and 6): the largest log(1 + relu(logit)) of each word, [B, V]."""
    values = read_json(folder, "config.json") or {}
    strategy, act = values.get("pooling_strategy", "max"), values.get("activation_function", "relu")
    if strategy not in ("max", "sum"):
        raise FormatError(folder, "pooling_strategy", repr(strategy), "max or sum")
    if act not in LOGS:
        raise FormatError(folder, "activation_function", repr(act), f"one of {', '.join(LOGS)}")

    def splade(tokens, x):
        x = x.relu()
        for _ in range(LOGS[act]):
            x = (x + 1.0).log()
        return tokens.max(x) if strategy == "max" else tokens.mean(x) * _lengths(tokens)

    return splade


STEPS = {  # a module's class -> f(its folder, device), which gives a step f(tokens, x) or None
    "Transformer": lambda folder, device: None,
    "MLMTransformer": lambda folder, device: None,
    "SpladePooling": _splade,
    "Pooling": _pooling,
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Normalize": lambda folder, device: normalize,
    "Dropout": lambda folder, device: None,
    "MultiVectorMask": lambda folder, device: None,  # see zoo/late.py
}
POOLING = {"Pooling", "SpladePooling"}


MEAN, GGUF_POOLS = 1, {1: "mean", 2: "cls", 3: "lasttoken"}  # llama.cpp's numbers


def of_gguf(kind, path):
    """The steps after the model for a GGUF file's `pooling_type`, vectors of length 1 at the end. FormatError."""
    if kind not in GGUF_POOLS:
        known = ", ".join(f"{number} ({name})" for number, name in GGUF_POOLS.items())
        raise FormatError(path, "pooling_type", kind, f"one of {known}", "this is not here yet")
    return [pools([GGUF_POOLS[kind]], path), normalize]
