"""One small set of weights in a file of every format, written by the libraries of these formats or by ours."""

import json

import numpy as np
import safetensors.torch
import torch

import tensorlib
from tensorlib.io import gguf

KINDS = ("safetensors", "index", "gguf", "split", "npz", "deflated", "big", "pth", "legacy")
SHAPES = {"layers.0.weight": (8, 64), "layers.1.weight": (8, 64), "count": (4,)}


def tensors():
    """Weights of a module, as NumPy arrays: two of floats, one of integers."""
    values = np.random.default_rng(0)
    return {
        name: values.integers(0, 9, shape).astype("i8" if name == "count" else "f4") for name, shape in SHAPES.items()
    }


def sharded(folder):
    """A folder of two shards and their index, as the Hub has models."""
    found = {name: torch.from_numpy(x) for name, x in tensors().items()}
    names = {"a.safetensors": ["layers.0.weight"], "b.safetensors": ["layers.1.weight", "count"]}
    for shard, inside in names.items():
        safetensors.torch.save_file({name: found[name] for name in inside}, folder / shard)
    index = {"weight_map": {name: shard for shard, inside in names.items() for name in inside}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "model.safetensors.index.json"


def written(folder, kind):
    """A file of that kind with `tensors()`; its path."""
    path, found = folder / f"x.{kind}", tensors()
    if kind == "index":
        return sharded(folder)
    if kind in ("pth", "legacy"):
        path, zipped = path.with_suffix(".pth"), kind == "pth"
        torch.save({k: torch.from_numpy(x) for k, x in found.items()}, path, _use_new_zipfile_serialization=zipped)
    elif kind == "deflated":
        path = path.with_suffix(".npz")
        np.savez_compressed(path, **found)
    elif kind == "big":
        path = path.with_suffix(".npz")
        np.savez(path, **{name: x.astype(x.dtype.newbyteorder(">")) for name, x in found.items()})
    elif kind == "split":
        tensorlib.save(folder / "whole.gguf", found)
        return gguf.split(folder / "whole.gguf", folder / "x", max_tensors=1)[0]
    else:
        tensorlib.save(path, found)
    return path


UNPRIVILEGED = """
import ctypes, os, struct, sys
if os.geteuid() == 0:  # even root may not write then: without CAP_DAC_OVERRIDE
    libc, head = ctypes.CDLL(None), struct.pack("Ii", 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    assert libc.capget(head, data) == 0
    fields = list(struct.unpack("6I", data.raw))
    fields[0] &= ~2
    assert libc.capset(head, struct.pack("6I", *fields)) == 0
"""
