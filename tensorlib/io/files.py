"""`tensorlib.load` and `tensorlib.save`: files of tensors in any format, told apart by extension and first bytes."""

from __future__ import annotations

import importlib
import os
import re

from tensorlib.errors import FormatError
from tensorlib.io.source import Source

BY_EXTENSION = {  # for reading; what is not here is told by its first bytes
    ".safetensors": "safetensors",
    ".index.json": "safetensors",
    ".gguf": "gguf",
    ".npy": "npz",
    ".npz": "npz",
    ".pth": "pth",
    ".pt": "pth",
    ".ckpt": "pth",
}
BY_MAGIC = {
    b"GGUF": "gguf",
    b"lmgg": "ggml",
    b"fmgg": "ggml",
    b"tjgg": "ggml",
    b"algg": "ggml",  # which says that it is an adapter
    b"\x93NUM": "npz",
    b"\x80": "pth",  # a pickle
}
ZIP = b"PK\3\4"
LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")
IN_FOLDER = (  # what a folder is opened by, the first that is there
    ".safetensors.index.json",
    ".safetensors",
    ".gguf",
    ".bin.index.json",
    "pytorch_model.bin",
    ".bin",
    ".pth",
    ".pt",
    ".npz",
)
WRITTEN = {
    ".safetensors": "safetensors",
    ".npy": "npz",
    ".npz": "npz",
    ".gguf": "gguf",
    ".pth": "pth_write",
    ".pt": "pth_write",
}


def load(path, mapped: bool = True) -> Source:
    """Opens a file of tensors, mapped: safetensors (also a sharded `.index.json`), GGUF, legacy GGML, .npy, .npz,
    PyTorch's .pth, .pt, .bin, .ckpt; or a folder, as the Hub has models: its index, or the one file of weights in it.
    No tensor is read before it is asked for, and no code in a file is ever run. In a folder whose `config.json` says
    that its safetensors are quantised (GPTQ, AWQ, bitsandbytes, HQQ, float8), `x.weight` is a QTensor of its parts.

    The result has `tensors` (name to shape, dtype, format), `metadata`, `tensor(name)`, `slice(name, ...)`, `close()`;
    `tensorlib.nn.load_state_dict` and `VarBuilder` take it. FormatError for what is not sound.

    `mapped=False`: all of it is read into memory now, for files that change while they are used, or are slow to reach.

    >>> import os, tempfile, tensorlib
    >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
    >>> tensorlib.save(path, {"w": tensorlib.arange(4)})
    >>> with tensorlib.load(path) as file:
    ...     file.tensors["w"].shape, file.tensor("w")
    ((4,), tensor([0, 1, 2, 3]))
    """
    path = os.fspath(path)
    folder = path if os.path.isdir(path) else None
    if folder is not None:
        path = os.path.join(folder, _within(folder))
    reader = _reader(path)
    file = importlib.import_module(f"tensorlib.io.{reader}").open(path, mapped=mapped)
    if folder is None or reader != "safetensors":
        return file
    from tensorlib.io.checkpoint import logical

    try:
        return logical(file, folder)
    except BaseException:
        file.close()
        raise


def _within(folder):
    """The name of the file that a folder is opened by. FormatError where there is none, or a choice."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise FormatError(folder, "path", error.strerror, "a folder that can be read") from None
    for extension in IN_FOLDER:
        found = [name for name in names if name.endswith(extension) and not LATER_PART.search(name)]
        if len(found) == 1:
            return found[0]
        if found:
            some = ", ".join(found[:10])
            raise FormatError(folder, "path", f"{len(found)} files of weights: {some}", "one", "name one of them")
    raise FormatError(folder, "path", "a folder without weights", "a file that ends in " + ", ".join(IN_FOLDER))


def _reader(path):
    for extension, reader in BY_EXTENSION.items():
        if path.lower().endswith(extension):
            return reader
    try:
        with open(path, "rb", opener=_regular) as file:
            head = file.read(9)
            if head[:4] == ZIP:
                return _zipped(file)
    except (OSError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        got = getattr(error, "strerror", None) or str(error)
        raise FormatError(path, "path", got, "a readable file of tensors", "check the path") from None
    for magic, reader in BY_MAGIC.items():
        if head.startswith(magic):
            return reader
    if head[8:9] in (b"{", b" "):
        return "safetensors"
    fix = "name it by its format: " + ", ".join(BY_EXTENSION)
    raise FormatError(path, "offset 0", f"the bytes {head!r}", "a format known here", fix)


def _regular(path, flags):
    """Opens without waiting for a writer, should this be a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _zipped(file):
    """Which reader a zip file is for: the first member of an .npz is an array."""
    file.seek(26)
    length = int.from_bytes(file.read(2), "little")
    file.seek(30)
    return "npz" if file.read(length).endswith(b".npy") else "pth"


def save(path, tensors, metadata=None):
    """Writes tensors to a file, whole or not at all, in the format of its extension: .safetensors, .npz, .npy, .gguf,
    .pth, .pt.

    `tensors`: names to Tensors or NumPy arrays, or a Module; for .npy a Tensor. `metadata`: for safetensors text to
    text, for GGUF any of its values, for PyTorch's files plain values beside the tensors; NumPy's formats have none.
    DTypeError for a dtype that the format has not, WriteError where the file cannot be written.
    """
    writer = written_as(path)
    if writer == "gguf":
        from tensorlib.io import gguf_write

        gguf_write.write(path, metadata or {}, tensors)
    else:
        importlib.import_module(f"tensorlib.io.{writer}").save(path, tensors, metadata)


def written_as(path) -> str:
    """The module that writes files of this extension. FormatError where there is none.

    >>> written_as("model.pt")
    'pth_write'
    """
    name = os.fspath(path)
    writer = next((module for extension, module in WRITTEN.items() if name.lower().endswith(extension)), None)
    if writer is None:
        raise FormatError(name, "path", "its extension", f"one of {', '.join(WRITTEN)}", "choose a format by extension")
    return writer
