"""What encoders with a head are for: texts that answer a query, labels, names in a text, words that are masked.

>>> from zoo.tasks import load
>>> load("BAAI/bge-reranker-base").rank("what is a panda?", ["a car", "a bear from China"])  # doctest: +SKIP
[Ranked(index=1, score=0.98), Ranked(index=0, score=0.01)]
"""

import os
from typing import NamedTuple

import tensorlib
from tensorlib import backend, nn
from tensorlib.device import Device
from tensorlib.errors import FormatError, ShapeError
from tensorlib.io import folders
from tensorlib.io.tokenizer import Tokenizer
from zoo import auto, heads, pipeline, published
from zoo.pooling import ACTS, read_json

BATCH = 4096  # tokens at once: activations stay near the CPU
MASKS = "[MASK]", "<mask>"
CONFIG = "config_sentence_transformers.json"


class Ranked(NamedTuple):
    """A text by its place in what was given, and how well it answers."""

    index: int
    score: float


class Word(NamedTuple):
    """What may stand at a mask, and how likely."""

    text: str
    score: float


class Entity(NamedTuple):
    """A part of a text, text[start:end], with its label."""

    label: str
    text: str
    start: int
    end: int
    score: float


def load(ref, threads=None, device="cpu"):
    """A Reader from a folder, or what else `folders.resolve` takes. FormatError for a model without a head."""
    if threads is not None:
        backend.set_num_threads(threads)
    folder = folders.resolve(ref)
    fields, (_, model) = published.read(folder), auto.load(folder, device=device)
    if not isinstance(model, heads.Head):
        got, expected = fields.values.get("architectures"), f"a name that ends with {', '.join(heads.TASKS)}"
        raise FormatError(fields.path, "architectures", repr(got)[:80], expected, "tensorlib embed takes the others")
    tokenizer = Tokenizer.from_folder(folder)
    if not hasattr(tokenizer, "encoding"):
        tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))  # there is none: says so
    if isinstance(model, heads.ForSequenceClassification):
        _alone(folder)
    return Reader(model, tokenizer, _scores(fields, folder), device, pipeline.longest(folder))


def _alone(folder):
    """FormatError where sentence-transformers has more than the model, or something before texts."""
    there = os.path.exists(os.path.join(folder, "modules.json"))
    kinds = [kind for _, kind in pipeline.modules(folder)] if there else ["Transformer"]
    prompt = (read_json(folder, CONFIG) or {}).get("default_prompt_name")
    if kinds != ["Transformer"] or prompt:
        got, expected = f"{', '.join(kinds)}; prompt {prompt!r}", "a Transformer alone, no prompt"
        raise FormatError(folder, "modules", got, expected, "this is not here yet")


def _scores(fields, folder):
    """f(logits [B, L]) that makes scores of them, as sentence-transformers and transformers do. FormatError."""
    said = (read_json(folder, CONFIG) or {}).get("activation_fn")
    said = said or fields.sub("sentence_transformers").values.get("activation_fn")
    said = said or fields.values.get("sbert_ce_default_activation_function")
    if said:
        name, known = str(said).rpartition(".")[2], f"one of {', '.join(ACTS)}"
        if name not in ACTS:
            raise FormatError(folder, "activation_fn", repr(said)[:80], known, "this is not here yet")
        return ACTS[name]
    if fields.values.get("problem_type") == "regression":
        return ACTS["Identity"]
    several = fields.values.get("problem_type") == "multi_label_classification"
    return lambda x: x.sigmoid() if several or x.shape[1] == 1 else tensorlib.softmax(x, -1)


class Reader:
    """A model with a head (zoo/heads.py), and its tokenizer. ShapeError for what that head is not for."""

    def __init__(self, model, tokenizer, scores, device="cpu", longest=None):
        self.model, self.tokenizer, self.device, self._scores = model, tokenizer, Device(device), scores
        self._types = (getattr(model.config, "type_vocab_size", 0) or 0) > 1
        tokenizer.limit(min(longest or model.max_length, model.max_length))

    def rank(self, query, texts):
        """Ranked of every text, the best answer first: those whose scores are equal in their order."""
        self._for("rank", heads.ForSequenceClassification, len(self.model.labels) == 1, "one label, as rerankers have")
        rows = [self.tokenizer.encoding(query, text) for text in texts]
        found = [Ranked(i, score) for i, (score,) in enumerate(self._labels(rows))]
        return sorted(found, key=lambda one: -one.score)

    def classify(self, text, pair=None):
        """{label: score} of a text, or of two that belong together, the likeliest first."""
        self._for("classify", heads.ForSequenceClassification)
        (scores,) = self._labels([self.tokenizer.encoding(text, pair)])
        return dict(sorted(zip(self.model.labels, scores), key=lambda one: -one[1]))

    def entities(self, text):
        """Entities of a text in their order: neighbours of one label are one, unless the second begins with "B-"."""
        self._for("entities", heads.ForTokenClassification)
        row, found = self.tokenizer.encoding(text), []
        (x,) = self._logits([row])
        scores, best = tensorlib.softmax(x, -1).max(-1)
        last = None
        for i, (score, label) in enumerate(zip(scores.tolist(), best.tolist())):
            begins, name = _tag(self.model.labels[label])
            if not row.special[i]:
                if name != last or begins:
                    found.append((name, [], []))
                found[-1][1].append(score)
                found[-1][2].extend(row.spans[i])
                last = name
        whole = [(name, min(places), max(places), sum(each) / len(each)) for name, each, places in found]
        return [Entity(name, text[a:b], a, b, score) for name, a, b, score in whole if name != "O"]

    def fill(self, text, count=5):
        """For each mask in a text ("[MASK]" or "<mask>") the `count` likeliest Words."""
        self._for("fill", heads.ForMaskedLM)
        row = self.tokenizer.encoding(text)
        masks = [ids[0] for mask in MASKS if len(ids := self.tokenizer.encode(mask, add_special=False)) == 1]
        (x,) = self._logits([row])
        places = [i for i, id in enumerate(row.ids) if id in masks and id != self.tokenizer.unk_id]
        if not places:
            raise ShapeError("fill", "a text without a mask", f"one of {' or '.join(MASKS)} in it", "write it there")
        best = tensorlib.softmax(x[tensorlib.tensor(places, device=x.device)], -1).topk(count, -1)
        decoded = [[self.tokenizer.decode([id], skip_special=False).strip() for id in ids] for ids in best[1].tolist()]
        return [list(map(Word, words, scores)) for words, scores in zip(decoded, best[0].tolist())]

    def _for(self, op, kind, fits=True, expected=""):
        if not isinstance(self.model, kind) or not fits:
            got = f"a model {type(self.model).__name__} of {len(self.model.labels)} labels"
            raise ShapeError(op, got, expected or f"one {kind.__name__}", "load another model")

    def _labels(self, rows):
        return [self._scores(x.reshape(1, -1))[0].tolist() for x in self._logits(rows)]

    def _logits(self, rows):
        """Logits of each Encoding, [L] or [T, ...]; those of a length side by side, as many as memory allows."""
        found, order, batch = [None] * len(rows), sorted(range(len(rows)), key=lambda i: len(rows[i].ids)), []
        for at, i in enumerate(order):
            batch.append(i)
            last = at + 1 == len(order)
            if last or sum(len(rows[j].ids) for j in (*batch, order[at + 1])) > BATCH:
                for j, x in zip(batch, self._batch([rows[j] for j in batch]), strict=True):
                    found[j] = x
                batch = []
        return found

    def _batch(self, rows):
        tokens, types = nn.Sequences([row.ids for row in rows], device=self.device), {}
        if self._types:
            flat = [kind for row in rows for kind in row.types]
            types["token_type_ids"] = tensorlib.tensor(flat, dtype="i64", device=self.device)
        with tensorlib.no_grad():
            x = self.model(tokens, **types)
        return list(x) if isinstance(self.model, heads.ForSequenceClassification) else tokens.split(x)


def _tag(label):
    """(whether an entity begins here, its label).

    >>> _tag("B-PER"), _tag("I-PER"), _tag("O")
    ((True, 'PER'), (False, 'PER'), (False, 'O'))
    """
    return (label.startswith("B-"), label[2:]) if label[:2] in ("B-", "I-") else (False, label)
