"""Memory-mapped GGUF files (versions 1 to 3, both byte orders): metadata and tensors, with nothing trusted.

The layout is ggml's `docs/gguf.md`: header, key-value pairs, tensor infos, padding to `general.alignment`, tensor data.
Opening a file checks its structure to the last tensor and touches no tensor data; long arrays are stepped over and
decoded when they are asked for. Whatever is wrong with a file is one FormatError with the key, tensor or offset.

Several files that are parts of one model (`-00001-of-00003.gguf`) are opened as one, through any of them. `write` and
`edit` are in gguf_write.py, `split` and `merge` in gguf_split.py.

>>> from tensorlib.io import gguf
>>> file = gguf.open("model.gguf")  # doctest: +SKIP
>>> file.metadata["general.architecture"], file.tensor("token_embd.weight")  # doctest: +SKIP
('llama', QTensor(shape=(49152, 576), format=q8_0, 30081024 bytes))
"""

from __future__ import annotations

import mmap

from tensorlib import dtype
from tensorlib.io.cursor import check_unchanged, over
from tensorlib.io.gguf_values import GGUFCursor, Metadata, Typed
from tensorlib.io.source import LIMIT, Source, elements, map_private, opened
from tensorlib.quant.formats import BY_ID

__all__ = ["GGUFFile", "TensorInfo", "Typed", "open"]

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (1, 2, 3), 32
MAX_DIMS = 4
SMALLEST_PAIR, SMALLEST_INFO = 10, 21  # bytes in version 1: one-letter key and value; one-letter name and one dim
ELSEWHERE = {"write": "gguf_write", "edit": "gguf_write", "split": "gguf_split", "merge": "gguf_split"}


def __getattr__(name):
    if name not in ELSEWHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # readers need not wait for the writers

    return getattr(import_module(f"tensorlib.io.{ELSEWHERE[name]}"), name)


def open(path, parts: bool = True, mapped: bool = True) -> GGUFFile:
    """Map the file at `path` and read its structure. Raises FormatError for anything that is not a sound GGUF file.

    If it is one of several parts of a model, the result is all of them as one file; `parts=False`: this part alone.
    `mapped=False`: it is read into memory instead, all at once.
    """
    name, data = map_private(path, 16, "a GGUF file", mapped)
    file = opened(GGUFFile, name, data)
    if not parts or file.metadata.get("split.count", 1) == 1:
        return file
    from tensorlib.io.gguf_split import SplitFile

    file.close()
    return SplitFile(name, mapped)


class TensorInfo:
    """Where a tensor lies: `name`, `shape` (outermost first), `format` (a row of quant.formats), `offset`, `nbytes`."""

    __slots__ = ("format", "name", "nbytes", "offset", "shape")

    def __init__(self, name, shape, format, offset, nbytes):
        self.name, self.shape, self.format, self.offset, self.nbytes = name, shape, format, offset, nbytes

    def __repr__(self):
        return f"TensorInfo({self.name!r}, {self.shape}, {self.format}, offset={self.offset}, nbytes={self.nbytes})"

    @property
    def dtype(self):
        """A row of tensorlib.dtype, or None for blocks."""
        return None if self.format.quantized else dtype.get(self.format.name)


class Mapped(Source):
    """What GGUF and legacy GGML files, mapped, have in common; see `Source`. Tensors keep the mapping alive.

    The file must not be written to while it is open (`cursor.py` says what happens then).
    """

    order = "<"

    def require(self, key: str, kind: type, default=None):
        """`metadata[key]`, which must be of Python type `kind` (int, float, str, bool, list).

        Raises FormatError where it is of another type, or where it is missing and no default is given.
        """
        value = self.metadata.get(key, default)
        if value is None:
            raise self.error(key, "no such key", f"{kind.__name__} metadata")
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise self.error(key, f"{type(value).__name__} metadata", f"{kind.__name__} metadata")
        return value

    def bytes(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        """Bytes `start` to `stop` of a tensor's data as the file has them, uncopied. FormatError if there are fewer."""
        info = self.info(name)
        stop = info.nbytes if stop is None else stop
        if not 0 <= start <= stop <= info.nbytes:
            raise self.error(name, f"bytes {start} to {stop}", f"a part of its {info.nbytes} bytes")
        check_unchanged(self.path, self._data)
        return memoryview(self._data)[info.offset + start : info.offset + stop].toreadonly()

    def tensor(self, name: str):
        """The tensor of that name: a QTensor if its format has blocks, else a Tensor.

        It lies over the mapping, uncopied; that of a big-endian file is a copy in this machine's byte order.
        """
        info = self.info(name)
        return self._tensor(info, 0, info.nbytes, info.shape)

    def rows(self, name: str, start: int, stop: int):
        """Rows `start` to `stop` (along the first dim) of a tensor, as `tensor` gives it: a shard. FormatError."""
        info = self.info(name)
        if not info.shape or not 0 <= start <= stop <= info.shape[0]:
            raise self.error(name, f"rows {start} to {stop}", f"a part of the shape {info.shape}")
        each = info.nbytes // max(info.shape[0], 1)
        if each % info.format.nbytes:
            raise self.error(name, "one row", f"rows of whole blocks of {info.format}")
        return self._tensor(info, start * each, stop * each, (stop - start, *info.shape[1:]))

    def slice(self, name: str, *index):
        """`tensor(name)[index]`; of blocks only rows, `slice(name, slice(start, stop))`, can be had. FormatError."""
        info = self.info(name)
        if not info.format.quantized:
            return super().slice(name, *index)
        part = index[0] if len(index) == 1 and type(index[0]) is slice and info.shape else slice(None, None, 0)
        if part.step not in (None, 1):
            raise self.error(name, f"{index} of blocks of {info.format}", "a slice of rows", "dequantize() it first")
        start, stop, _ = part.indices(info.shape[0])
        return self.rows(name, start, max(start, stop))

    def _tensor(self, info, start, stop, shape):
        check_unchanged(self.path, self._data)
        if self.order == "<":
            return over(self.buffer, info.offset + start, shape, info.format, stop - start)
        from tensorlib.device import Buffer

        return over(Buffer.of(self.little(info, start, stop)), 0, shape, info.format, stop - start)

    def little(self, info, start=0, stop=None):
        """Bytes of a tensor of a big-endian file in little-endian order: a new NumPy array. FormatError for iq2_xxs."""
        from tensorlib.io.gguf_swap import UNDEFINED, swapped

        if info.format.name in UNDEFINED:
            fix = "quantise the model on a little-endian machine"
            raise self.error(info.name, f"{info.format} in a big-endian file", "another format", fix)
        return swapped(self.bytes(info.name, start, stop), info.format)

    def stored(self, name: str):
        """The tensor as `gguf.write` takes it (a Raw), to be copied from file to file."""
        from tensorlib.io.gguf_write import Raw

        info = self.info(name)
        get = (lambda: self.bytes(name)) if self.order == "<" else (lambda: self.little(info))
        return Raw(info.format, info.shape, get)


class GGUFFile(Mapped):
    """An open file: `metadata`, `tensors` (name to TensorInfo), `tensor(name)`; also `version`, `alignment`, `order`
    (struct's name of the byte order) and `data_start` (offset of the tensor data).
    """

    def __init__(self, path: str, data: mmap.mmap):
        super().__init__(path, data)
        cursor = GGUFCursor(path, data)
        cursor, self.version, n_tensors, n_pairs = _header(cursor)
        self.order = cursor.order
        self.metadata = Metadata(cursor, n_pairs)
        self.alignment = _alignment(self.metadata, cursor)
        infos = [_tensor_info(cursor) for _ in range(n_tensors)]
        self.data_start = -(-cursor.at // self.alignment) * self.alignment
        self.tensors = _placed(cursor, infos, self.data_start, self.alignment)


def _header(cursor: GGUFCursor):
    """A cursor behind the header for this byte order and version; the version; how many tensors and pairs there are."""
    magic = cursor.data[:4]
    if magic != MAGIC:
        raise cursor.error("offset 0", f"magic {magic!r}", f"{MAGIC!r}", "is this a GGUF file?")
    cursor.at = 4
    version = cursor.number("I", "version")
    swapped = int.from_bytes(version.to_bytes(4, "big"), "little")
    big = swapped in VERSIONS
    if version not in VERSIONS and not (big and swapped == 3):
        got = f"version {swapped} in big-endian order, which began with version 3" if big else f"version {version}"
        raise cursor.error("offset 4", got, "version 1, 2 or 3", "convert the model again with a current llama.cpp")
    code = "I" if version == 1 else "Q"
    cursor = GGUFCursor(cursor.path, cursor.data, 8, ">" if big else "<", code)
    n_tensors, n_pairs = cursor.length("tensor count"), cursor.length("key-value count")
    for what, count, least in (("tensors", n_tensors, SMALLEST_INFO), ("key-value pairs", n_pairs, SMALLEST_PAIR)):
        if count * least > cursor.end:
            raise cursor.error("header", f"{count} {what} in {cursor.end} bytes", f"at least {least} bytes for each")
    if big and not n_tensors and not n_pairs:
        raise cursor.error("header", "a big-endian version and nothing else", "keys or tensors in that order too")
    return cursor, 3 if big else version, n_tensors, n_pairs


def _alignment(metadata: Metadata, cursor: GGUFCursor) -> int:
    key = "general.alignment"
    alignment = metadata.get(key, ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise cursor.error(key, f"{alignment!r:.80}", "a power of two")
    return alignment


def _placed(cursor: GGUFCursor, infos, start: int, alignment: int) -> dict[str, TensorInfo]:
    """The infos by name, their offsets from the start of the file, once they are inside it and apart."""
    tensors = {}
    for info in infos:
        where = f"tensor {info.name!r}"
        if info.name in tensors:
            raise cursor.error(where, "it a second time", "names that differ")
        if info.offset % alignment:
            raise cursor.error(where, f"offset {info.offset}", f"a multiple of the alignment {alignment}")
        info.offset += start
        if info.offset + info.nbytes > cursor.end:
            got = f"{info.nbytes} bytes at offset {info.offset} in a file of {cursor.end}"
            raise cursor.error(where, got, "data inside the file", "the file is cut short or damaged: fetch it again")
        tensors[info.name] = info
    reached, last = start, None
    for info in sorted((i for i in infos if i.nbytes), key=lambda i: i.offset):
        if info.offset < reached:
            got = f"offset {info.offset} inside {last.name!r}, which ends at {reached}"
            raise cursor.error(f"tensor {info.name!r}", got, "tensors that do not overlap")
        reached, last = info.offset + info.nbytes, info
    return tensors


def _tensor_info(cursor: GGUFCursor) -> TensorInfo:
    name = cursor.named("a tensor name")
    where = f"tensor {name!r}"
    n_dims = cursor.number("I", f"dims of {where}")
    if n_dims > MAX_DIMS:
        raise cursor.error(where, f"{n_dims} dims", f"at most {MAX_DIMS}")
    *dims, type, offset = cursor.numbers(f"{n_dims}{cursor.code}IQ", where)
    format = BY_ID.get(type)
    if format is None:
        raise cursor.error(where, f"GGML type {type}", "a type that ggml has today", "quantise the model again")
    return TensorInfo(name, tuple(reversed(dims)), format, offset, size_of(cursor, where, dims, format))


def size_of(cursor, where, dims, format) -> int:
    """Bytes of a tensor of these dims (innermost first); FormatError for sizes that no file can have."""
    row = dims[0] if dims else 1
    if row % format.elements:
        raise cursor.error(where, f"rows of {row} elements", f"a multiple of {format}'s block of {format.elements}")
    nbytes = row // format.elements * format.nbytes
    for dim in dims[1:]:
        nbytes *= dim
    if nbytes >= LIMIT or elements(dims) == LIMIT:
        raise cursor.error(where, f"dims {dims}", "sizes below 2**63")
    return nbytes
