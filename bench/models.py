"""The model files and the English text that the programs measure with."""

import os
import pathlib
from pydoc_data import topics

from bench import harness, peers


def text(characters=60_000):
    """English prose that ships with CPython: the language reference's topics, in the order of their names."""
    return "\n\n".join(topics.topics[name] for name in sorted(topics.topics))[:characters]


def base(reference=None):
    """Path of the model file: the reference, or tensorlib's embedded default model (98 MB, fetched once)."""
    if reference and os.path.exists(reference):
        return str(pathlib.Path(reference).resolve())
    from tensorlib.io import hub

    return str(hub.resolve(reference or hub.DEFAULT_MODEL))


def formatted(path, kind, python_overrides=()):
    """The model as `kind`: the file itself where it has that format, else llama.cpp's requantisation of it, cached.

    A requantised file serves for speed and agreement, not for quality.
    """
    if kind == file_format(path):
        return path
    target = peers.CACHE / "models" / f"{pathlib.Path(path).stem}.{kind}.gguf"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = str(target) + ".part"
        job = {"task": "quantize", "model": path, "target": partial, "format": kind, "threads": 2}
        harness.work(peers.LLAMA, job, python_overrides)
        os.replace(partial, target)
    return str(target)


def file_format(path):
    """The format of most of the file's bytes, in lower case."""
    from gguf import GGUFReader

    sizes = {}
    for tensor in GGUFReader(path).tensors:
        sizes[tensor.tensor_type.name.lower()] = sizes.get(tensor.tensor_type.name.lower(), 0) + int(tensor.n_bytes)
    return max(sizes, key=sizes.get)
