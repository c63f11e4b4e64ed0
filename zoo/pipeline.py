"""What the files of sentence-transformers say of a folder: its modules, how much of a text is taken, prompts."""

import os
from typing import NamedTuple

from tensorlib.errors import FormatError
from zoo.pooling import POOLING, STEPS, read_json

TASKS = {"feature-extraction": None, "fill-mask": "ForMaskedLM"}  # what a model is for -> its head
SETTINGS = [f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "xlm-roberta")]
UNLIMITED = 10**9  # transformers writes 10**30 where it knows no length


class Pipeline(NamedTuple):
    """A model's head or None, steps f(tokens, x) after it, whether one pools, the most tokens of a text or None, and
    whether texts are taken in lower case.
    """

    head: str | None
    steps: list
    pooled: bool
    longest: int | None
    lower: bool

    @classmethod
    def of(cls, folder, device=None):
        """That of a folder. FormatError for what is not here."""
        said, kinds, steps = settings(folder), [], []
        for place, kind in modules(folder):
            if kind not in STEPS or (kind.endswith("Transformer") and kinds):
                path, known = os.path.join(folder, "modules.json"), ", ".join(STEPS)
                raise FormatError(path, "type", repr(kind), f"one of {known}", "this is not here yet")
            _checked(place, "sentence_embedding" if POOLING & {*kinds} else "token_embeddings", kind)
            kinds.append(kind)
            steps.append(STEPS[kind](place, device))
        task = "fill-mask" if kinds[0] == "MLMTransformer" else said.get("transformer_task", "feature-extraction")
        if task not in TASKS:
            raise FormatError(folder, "transformer_task", repr(task), f"one of {', '.join(TASKS)}", "see zoo.tasks")
        steps = [step for step in steps if step]
        pooled, lower = bool(POOLING & {*kinds}), said.get("do_lower_case") is True
        return cls(TASKS[task], steps, pooled, longest(folder, said), lower)


def modules(folder):
    """[(folder, class)] of what follows one another; those that sentence-transformers gives a bare encoder."""
    rows = read_json(folder, "modules.json", list)
    if rows is None:
        rows = [{"type": "Transformer"}, {"type": "Pooling"}]
    rows = [row if isinstance(row, dict) else {"type": row} for row in rows]
    return [(os.path.join(folder, str(row.get("path", ""))), str(row.get("type")).rpartition(".")[2]) for row in rows]


def settings(folder):
    """What is said of the model itself."""
    return next(filter(None, (read_json(folder, name) for name in SETTINGS)), {})


def longest(folder, said=()):
    """The most tokens of a text that sentence-transformers takes, or None: its own setting, or the tokenizer's."""
    told = read_json(folder, "tokenizer_config.json") or {}
    found = dict(said).get("max_seq_length") or told.get("model_max_length")
    return found if type(found) is int and 0 < found < UNLIMITED else None


def _checked(folder, name, kind):
    """FormatError where a module takes or gives something else than what is there in its place."""
    if kind not in ("Dense", "Normalize"):
        return
    values = read_json(folder, "config.json") or {}
    for key in ("module_input_name", "module_output_name"):
        if values.get(key) not in (None, name):
            raise FormatError(folder, key, repr(values[key]), name, "this is not here yet")


class Prompts:
    """What is put before texts, by name, as sentence-transformers has it; `default`: before those without a name.

    `pooled`: whether a pool takes a prompt's tokens in.
    """

    def __init__(self, texts=None, default="", pooled=True):
        self.texts, self.default, self.pooled = texts or {}, default, pooled

    @classmethod
    def of(cls, folder):
        """Those of a folder."""
        values = read_json(folder, "config_sentence_transformers.json") or {}
        found = [read_json(place, "config.json") for place, kind in modules(folder) if kind == "Pooling"]
        pooled = all(pool.get("include_prompt", True) is not False for pool in found if pool)
        texts = {name: text or "" for name, text in (values.get("prompts") or {}).items()}
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
