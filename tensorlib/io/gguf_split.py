"""GGUF models in several files, `NAME-00001-of-00003.gguf`: opened as one, made, and joined again.

As llama.cpp's gguf-split does it: the first part has the model's metadata, every part has `split.no` (from 0),
`split.count` and `split.tensors.count` (of all parts together), and tensors stay whole.

>>> part_names("/models/llama", 2)
['/models/llama-00001-of-00002.gguf', '/models/llama-00002-of-00002.gguf']
"""

from __future__ import annotations

import os
import re

from tensorlib.errors import FormatError
from tensorlib.io import atomic, gguf
from tensorlib.io.gguf_values import Typed
from tensorlib.io.gguf_write import into, write

PART = re.compile(r"(?s)(.+)-(\d{5})-of-(\d{5})\.gguf")
MAX_PARTS = 65535  # split.count is a u16


def part_names(prefix: str, count: int) -> list[str]:
    """Paths of the parts of a model, in order."""
    return [f"{prefix}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


class SplitFile(gguf.Mapped):
    """All parts as one file: `metadata` is the first one's, `tensors` those of all; `parts` are the GGUFFiles.

    FormatError unless every part is there, says the right numbers, and no tensor is in two of them.
    """

    def __init__(self, path: str, mapped: bool = True):
        self.path, self.parts, self.tensors, self._owner = path, [], {}, {}
        try:
            self._open(mapped)
        except BaseException:
            self.close()
            raise
        first = self.parts[0]
        self.metadata, self.version, self.alignment, self.order = (
            first.metadata,
            first.version,
            first.alignment,
            first.order,
        )
        self.nbytes = sum(part.nbytes for part in self.parts)

    def _open(self, mapped):
        found = PART.fullmatch(self.path)
        if not found:
            fix = "give it back the name it had"
            raise FormatError(self.path, "split.count", "a part of a model", "a name like X-00001-of-00003.gguf", fix)
        prefix, count = found[1], int(found[3])
        for index, name in enumerate(part_names(prefix, count)):
            part = gguf.open(name, False, mapped)
            self.parts.append(part)
            for key, expected in (("split.no", index), ("split.count", count)):
                if part.require(key, int) != expected:
                    raise FormatError(name, key, part.metadata[key], f"{expected}, as its name says")
            for tensor, info in part.tensors.items():
                if tensor in self._owner:
                    raise FormatError(name, f"tensor {tensor!r}", f"it in {self._owner[tensor].path} too", "one of it")
                self._owner[tensor], self.tensors[tensor] = part, info
        if not self.parts:
            raise FormatError(self.path, "path", "a name of 0 parts", "a name like X-00001-of-00003.gguf")
        total = self.parts[0].require("split.tensors.count", int)
        if total != len(self.tensors):
            raise FormatError(self.path, "split.tensors.count", total, f"the {len(self.tensors)} tensors of the parts")

    def close(self):
        for part in self.parts:
            part.close()

    def _part(self, name):
        self.info(name)
        return self._owner[name]

    def bytes(self, name, start=0, stop=None):
        return self._part(name).bytes(name, start, stop)

    def tensor(self, name):
        return self._part(name).tensor(name)

    def rows(self, name, start, stop):
        return self._part(name).rows(name, start, stop)

    def raw(self, name):
        return self._part(name).raw(name)

    def stored(self, name):
        return self._part(name).stored(name)

    bytes.__doc__, tensor.__doc__, rows.__doc__, stored.__doc__ = (
        getattr(gguf.Mapped, name).__doc__ for name in ("bytes", "tensor", "rows", "stored")
    )


def split(path, prefix=None, max_bytes=None, max_tensors=None, progress=None, replace: bool = True) -> list[str]:
    """Write a GGUF file as parts of at most `max_bytes` of tensor data or `max_tensors` tensors each; their paths.

    `prefix`: what the names of the parts begin with; None: the file's own without `.gguf`. A tensor that is larger than
    `max_bytes` has a part to itself. No part gets its name before all are written. FormatError, WriteError (also
    for a part that is there, if `replace` is False).
    """
    path = os.fspath(path)
    file = gguf.open(path)
    try:
        groups = _groups(file, max_bytes, max_tensors)
        if len(groups) > MAX_PARTS:
            raise FormatError(path, "parts", f"{len(groups)}", f"at most {MAX_PARTS}", "make them larger")
        names = part_names(path.removesuffix(".gguf") if prefix is None else os.fspath(prefix), len(groups))
        with atomic.writing_all(names, replace) as streams:
            for number, (name, group, stream) in enumerate(zip(names, groups, streams)):
                pairs = _own(file) if number == 0 else {}
                pairs |= {"split.no": Typed("u16", number), "split.count": Typed("u16", len(groups))}
                pairs["split.tensors.count"] = Typed("i32", len(file.tensors))
                into(stream, name, pairs, {each: file.stored(each) for each in group}, file.alignment, progress)
    finally:
        file.close()
    return names


def _own(file):
    return {key: file.metadata.encoded(key) for key in file.metadata if not key.startswith("split.")}


def _groups(file, max_bytes, max_tensors):
    """Names of the tensors of each part."""
    for what, limit in (("max_bytes", max_bytes), ("max_tensors", max_tensors)):
        if limit is not None and limit < 1:
            raise FormatError(file.path, what, limit, "at least 1")
    groups, size = [[]], 0
    for name, info in file.tensors.items():
        nbytes = -(-info.nbytes // file.alignment) * file.alignment
        full = max_tensors is not None and len(groups[-1]) >= max_tensors
        if groups[-1] and (full or (max_bytes is not None and size + nbytes > max_bytes)):
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += nbytes
    return groups


def merge(path, out, progress=None, replace: bool = True):
    """Write all parts of a split model, named by any of them, as one file `out`. FormatError, WriteError."""
    file = gguf.open(path)
    try:
        if not isinstance(file, SplitFile):
            raise FormatError(file.path, "split.count", "a model in one file", "a part of a split one")
        write(out, _own(file), {name: file.stored(name) for name in file.tensors}, file.alignment, progress, replace)
    finally:
        file.close()
