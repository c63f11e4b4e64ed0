"""What follows an encoder, as sentence-transformers' `modules.json` says: pools over tokens, projections, norms."""

import json
import os

import tensorlib
from tensorlib import nn
from tensorlib.errors import FormatError
from zoo import config

# what a pool's config calls them, in the order in which they are concatenated
POOLS = {
    "cls_token": lambda tokens, x: tokens.at(x, 0),
    "max_tokens": lambda tokens, x: tokens.max(x),
    "mean_tokens": lambda tokens, x: tokens.mean(x),
    "mean_sqrt_len_tokens": lambda tokens, x: tokens.mean(x) * _lengths(tokens).sqrt(),
    "lasttoken": lambda tokens, x: tokens.at(x, -1),
}
SHORT = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens"}


def _lengths(tokens):
    return tensorlib.tensor([[float(n)] for n in tokens.lengths], device=tokens.ids.device)


def _json(folder, name):
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise FormatError(path, "file", str(error)[:200], "JSON") from None


def modules(folder):
    """(kinds of modules, steps after the model, most tokens or None): steps are f(tokens, x)."""
    path = os.path.join(folder, "modules.json")
    rows, kinds, steps = _json(folder, "modules.json"), [], []
    if rows is None:  # a bare encoder: what sentence-transformers does with one
        rows = [{"type": "Transformer"}, {"type": "Pooling"}]
    for row in rows:
        kind = str(row.get("type") if isinstance(row, dict) else row).rsplit(".", 1)[-1]
        if kind not in STEPS:
            raise FormatError(path, "type", repr(kind), f"one of {', '.join(STEPS)}", "this is not here yet")
        kinds.append(kind)
        step = STEPS[kind](os.path.join(folder, str(row.get("path", ""))))
        steps += [step] if step else []
    return kinds, steps, (_json(folder, "sentence_bert_config.json") or {}).get("max_seq_length")


class Prompts:
    """What is put before texts, by name, as sentence-transformers has it; `default`: before those without a name.

    `pooled`: whether a pool takes a prompt's tokens in.
    """

    def __init__(self, texts=None, default="", pooled=True):
        self.texts, self.default, self.pooled = texts or {}, default, pooled

    @classmethod
    def of(cls, folder):
        """Those of a folder."""
        values = _json(folder, "config_sentence_transformers.json") or {}
        rows = [row for row in _json(folder, "modules.json") or [] if isinstance(row, dict)]
        pools = [
            _json(os.path.join(folder, str(row.get("path", ""))), "config.json") for row in rows if row.get("path")
        ]
        pooled = all(pool.get("include_prompt", True) is not False for pool in pools if pool)
        texts = values.get("prompts") or {}
        return cls(texts, texts.get(values.get("default_prompt_name")) or "", pooled)

    def text(self, prompt):
        """The text of a prompt: of that name, or itself; the default for None."""
        return self.default if prompt is None else self.texts.get(prompt, prompt)

    def skipped(self, prompt, tokenizer):
        """How many tokens of a text with the prompt `prompt` before it are in no pool."""
        if self.pooled or not prompt.strip():
            return 0
        ids, bare = tokenizer.encode(prompt), tokenizer.encode(prompt, add_special=False)
        return next(n for n in range(len(ids), 0, -1) if ids[n - len(bare) : n] == bare)


def without(tokens, x, skip):
    """(tokens, x) without the first `skip` of each sequence. ShapeError for a text that has no more."""
    rest = nn.Sequences([[0] * max(0, n - skip) for n in tokens.lengths], device=tokens.ids.device)
    return rest, tensorlib.cat([rows[skip:] for rows in tokens.split(x)], 0)


def _pooling(folder):
    values = _json(folder, "config.json") if os.path.basename(folder) else None
    values = values or {"pooling_mode_mean_tokens": True}
    names = [name for name in POOLS if values.get(f"pooling_mode_{name}")]
    names = names or [SHORT.get(str(values.get("pooling_mode")), "")]
    known = {f"pooling_mode_{name}" for name in POOLS}
    others = [k for k, v in values.items() if k.startswith("pooling_mode_") and v is True and k not in known]
    if others or not set(names) <= set(POOLS):
        raise FormatError(folder, "pooling", f"{others or values}", f"among {', '.join(POOLS)}", "this is not here yet")
    pools = [POOLS[name] for name in names]
    return lambda tokens, x: pools[0](tokens, x) if len(pools) == 1 else tensorlib.cat([p(tokens, x) for p in pools], 1)


def _dense(folder):
    fields = config.read(folder)
    sizes = (fields(name, int) for name in ("in_features", "out_features"))
    layer = nn.Linear(*sizes, bias=fields("bias", bool, True))
    nn.VarBuilder(tensorlib.load(folder), prefix="linear.").load(layer)
    act = fields("activation_function", str, "Tanh").rsplit(".", 1)[-1]
    if act not in ("Identity", "Tanh"):
        raise FormatError(fields.path, "activation_function", repr(act), "Identity or Tanh", "this is not here yet")
    return lambda tokens, x: layer(x).tanh() if act == "Tanh" else layer(x)


def _splade(folder):
    """SPLADE (arXiv:2109.10086, equations 1 and 6): the largest log(1 + relu(logit)) of each word, [B, V]."""
    strategy = (_json(folder, "config.json") or {}).get("pooling_strategy", "max")
    if strategy not in ("max", "sum"):
        raise FormatError(folder, "pooling_strategy", repr(strategy), "max or sum")

    def pooled(tokens, x):
        x = (x.relu() + 1.0).log()
        return tokens.max(x) if strategy == "max" else tokens.mean(x) * _lengths(tokens)

    return pooled


STEPS = {
    "Transformer": lambda folder: None,
    "MLMTransformer": lambda folder: None,
    "SpladePooling": _splade,
    "Pooling": _pooling,
    "Dense": _dense,
    "Normalize": lambda folder: lambda tokens, x: nn.functional.normalize(x),
}


MEAN, GGUF_POOLS = 1, {1: "mean_tokens", 2: "cls_token", 3: "lasttoken"}  # llama.cpp's numbers


def of_gguf(kind, path):
    """The steps after the model for a GGUF file's `pooling_type`, vectors of length 1 at the end. FormatError."""
    if kind not in GGUF_POOLS:
        known = ", ".join(f"{number} ({name})" for number, name in GGUF_POOLS.items())
        raise FormatError(path, "pooling_type", kind, f"one of {known}", "this is not here yet")
    return [POOLS[GGUF_POOLS[kind]], STEPS["Normalize"](None)]
