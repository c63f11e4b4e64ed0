"""Memory-mapped GGUF files (versions 2 and 3, little-endian): metadata and tensors, with nothing trusted.

The layout is ggml's `docs/gguf.md`: header, key-value pairs, tensor infos, padding to `general.alignment`, tensor data.
Opening a file checks its structure to the last tensor and touches no tensor data; long arrays are stepped over and
decoded when they are asked for. Whatever is wrong with a file is one FormatError with the key, tensor or offset.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import struct
import sys
from collections.abc import Mapping

from tensorlib.errors import FormatError
from tensorlib.quant.formats import BY_ID

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (2, 3), 32
MAX_NAME = 65535  # the specification's limit for keys; tensor names are held to it too
MAX_DIMS = 4
LONG_ARRAY = 1024  # longer arrays are decoded anew each time they are asked for, so that they cost no memory in between

STRING, ARRAY, BOOL, UINT32 = 8, 9, 7, 4
SCALARS = {  # value type: name, struct code
    0: ("u8", "B"),
    1: ("i8", "b"),
    2: ("u16", "H"),
    3: ("i16", "h"),
    4: ("u32", "I"),
    5: ("i32", "i"),
    6: ("f32", "f"),
    7: ("bool", "B"),
    10: ("u64", "Q"),
    11: ("i64", "q"),
    12: ("f64", "d"),
}
TYPE_NAMES = {**{i: name for i, (name, _) in SCALARS.items()}, STRING: "string", ARRAY: "array"}
PACKED = {i: struct.Struct("<" + code) for i, (_, code) in SCALARS.items()}
LENGTH = struct.Struct("<Q").unpack_from
WORD = struct.Struct("<I").unpack_from
INFO_TAIL = [struct.Struct(f"<{n}QIQ") for n in range(MAX_DIMS + 1)]  # dims, type, offset
SMALLEST_PAIR, SMALLEST_INFO = 14, 25  # bytes: one-letter key and value; one-letter name and no dims


def open(path) -> GGUFFile:
    """Map the file at `path` and read its structure. Raises FormatError for anything that is not a sound GGUF file."""
    name = os.fspath(path)
    try:
        status = os.stat(name)
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(name, "path", "something that is no plain file", "a GGUF file")
        fd = os.open(name, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise FormatError(name, "path", error.strerror, "a readable GGUF file", "check the path") from None
    except ValueError:
        raise FormatError(repr(name), "path", "a NUL in it", "a path", "check the path") from None
    try:
        size = os.fstat(fd).st_size
        if size < 24:
            raise FormatError(name, "offset 0", f"a file of {size} bytes", "a header of 24 bytes")
        data = _map(fd, size)
    except OSError as error:
        raise FormatError(name, "path", error.strerror, "a file that can be mapped") from None
    finally:
        os.close(fd)
    try:
        return GGUFFile(name, data)
    except BaseException:
        data.close()
        raise


def _map(fd: int, size: int) -> mmap.mmap:
    """A private mapping: in-place operations on its tensors change this process's copy of a page, and never the file.

    Without a reservation of memory for such copies, files larger than the machine's memory can be mapped too.
    """
    if not sys.platform.startswith("linux"):
        return mmap.mmap(fd, size, access=mmap.ACCESS_COPY)
    no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python has the name since 3.12
    return mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE | no_reserve, prot=mmap.PROT_READ | mmap.PROT_WRITE)


class TensorInfo:
    """Where a tensor lies: `name`, `shape` (outermost first), `format` (a row of quant.formats), `offset`, `nbytes`."""

    __slots__ = ("format", "name", "nbytes", "offset", "shape")

    def __init__(self, name, shape, format, offset, nbytes):
        self.name, self.shape, self.format, self.offset, self.nbytes = name, shape, format, offset, nbytes

    def __repr__(self):
        return f"TensorInfo({self.name!r}, {self.shape}, {self.format}, offset={self.offset}, nbytes={self.nbytes})"


class GGUFFile:
    """An open file: `metadata`, `tensors` (name to TensorInfo), `tensor(name)`; also `version` and `alignment`.

    Tensors keep the mapping alive by themselves. The file must not be written to while it is open.
    """

    def __init__(self, path: str, data: mmap.mmap):
        self.path, self.nbytes, self._buffer = path, len(data), None
        cursor = Cursor(path, data)
        self.version, n_tensors, n_pairs = _header(cursor)
        self.metadata = Metadata(cursor, n_pairs)
        self.alignment = _alignment(self.metadata)
        self.tensors = _tensor_infos(cursor, n_tensors, self.alignment)
        self._data = data

    def __repr__(self):
        return f"GGUFFile({self.path!r}, {len(self.metadata)} keys, {len(self.tensors)} tensors)"

    def close(self):
        """Unmap the file, unless tensors of it are still in use: then the last of them does."""
        with contextlib.suppress(BufferError):
            self._data.close()

    def require(self, key: str, kind: type, default=None):
        """`metadata[key]`, which must be of Python type `kind` (int, float, str, bool, list).

        Raises FormatError where it is of another type, or where it is missing and no default is given.
        """
        value = self.metadata.get(key, default)
        if value is None:
            raise FormatError(self.path, key, "no such key", f"{kind.__name__} metadata")
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise FormatError(self.path, key, f"{type(value).__name__} metadata", f"{kind.__name__} metadata")
        return value

    @property
    def buffer(self):
        """The whole file as a Buffer on the CPU."""
        if self._buffer is None:
            from tensorlib.device import Buffer

            self._buffer = Buffer.of(self._data)
        return self._buffer

    def tensor(self, name: str):
        """The tensor of that name over the mapping, uncopied: a QTensor if its format has blocks, else a Tensor."""
        info = self.tensors.get(name)
        if info is None:
            raise FormatError(self.path, name, "no such tensor", f"one of its {len(self.tensors)} tensors")
        if info.format.quantized:
            from tensorlib.quant.tensor import QTensor

            return QTensor(self.buffer, info.offset, info.shape, info.format)
        from tensorlib import dtype, layout
        from tensorlib.device import Buffer
        from tensorlib.tensor import Tensor

        # A buffer of its own per tensor: an offset inside a shared one counts elements, and files may align to less.
        part = Buffer(self.buffer.ptr + info.offset, info.nbytes, self.buffer)
        return Tensor(part, layout.contiguous(info.shape), dtype.get(info.format.name))


class Metadata(Mapping):
    """The key-value pairs, read-only. Arrays become lists when they are asked for; `kind(key)` tells without that."""

    def __init__(self, cursor: Cursor, count: int):
        self._cursor, self._entries, self._decoded = cursor, {}, {}
        for _ in range(count):
            at = cursor.at
            key = cursor.name("a key")
            if key in self._entries:
                raise cursor.error(f"key {key!r} at offset {at}", "it a second time", "keys that differ")
            self._entries[key] = cursor.value(cursor.u32(f"type of {key!r}"), key)

    def __getitem__(self, key):
        value = self._entries[key]
        if type(value) is not LazyArray:
            return value
        decoded = self._decoded.get(key)
        if decoded is None:
            decoded = value.decode(self._cursor, key)
            if value.count <= LONG_ARRAY:
                self._decoded[key] = decoded
        return decoded

    def __contains__(self, key):  # Mapping's own would decode
        return key in self._entries

    def __iter__(self):
        return iter(self._entries)

    def __len__(self):
        return len(self._entries)

    def strings(self, key: str) -> list[bytes] | None:
        """An array of strings undecoded, which takes half the time; None if there is no such array."""
        value = self._entries.get(key)
        return value.texts(self._cursor) if type(value) is LazyArray and value.type == STRING else None

    def kind(self, key: str) -> tuple[str, int | None]:
        """Type name of a value, and its count if it is an array: ("str", None), ("f32", 32000)."""
        value = self._entries[key]
        if type(value) is LazyArray:
            return TYPE_NAMES[value.type], value.count
        return type(value).__name__, None


class LazyArray:
    """An array still in the file: element type, count, offset of its first element."""

    __slots__ = ("at", "count", "type")

    def __init__(self, type, count, at):
        self.type, self.count, self.at = type, count, at

    def decode(self, cursor: Cursor, key: str) -> list:
        if self.type == STRING:
            return [cursor.decoded(text, f"{key!r}[{i}]") for i, text in enumerate(self.texts(cursor))]
        values = list(struct.unpack_from(f"<{self.count}{SCALARS[self.type][1]}", cursor.data, self.at))
        return [cursor.bool(v, key) for v in values] if self.type == BOOL else values

    def texts(self, cursor: Cursor) -> list[bytes]:
        """The strings as bytes; that their lengths stay inside the file was checked when they were stepped over."""
        data, at, texts = cursor.data, self.at, []
        for _ in range(self.count):
            start = at + 8
            at = start + LENGTH(data, at)[0]
            texts.append(data[start:at])
        return texts


class Cursor:
    """A place in the file, and readers that check the bounds before they move it."""

    __slots__ = ("at", "data", "end", "path")

    def __init__(self, path, data):
        self.path, self.data, self.at, self.end = path, data, 0, len(data)

    def error(self, where, got, expected, fix=""):
        return FormatError(self.path, where, got, expected, fix)

    def take(self, count: int, what: str) -> int:
        """Move over `count` bytes and return where they start."""
        at = self.at
        if count > self.end - at:
            raise self.error(
                f"{what} at offset {at}", f"{self.end - at} bytes to the end of the file", f"{count} bytes"
            )
        self.at = at + count
        return at

    def u32(self, what: str) -> int:
        return WORD(self.data, self.take(4, what))[0]

    def u64(self, what: str) -> int:
        return LENGTH(self.data, self.take(8, what))[0]

    def text(self, what: str) -> str:
        length = self.u64(f"length of {what}")
        at = self.take(length, what)
        return self.decoded(self.data[at : self.at], f"{what} at offset {at}")

    def decoded(self, raw: bytes, where: str) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            got = f"byte 0x{raw[error.start]:02x} at {error.start} of {len(raw)}"
            raise self.error(where, got, "UTF-8 text") from None

    def name(self, what: str) -> str:
        """A key or tensor name: not empty, not overlong, no NUL."""
        at = self.at
        length = self.u64(f"length of {what}")
        self.at = at
        if not 0 < length <= MAX_NAME:
            raise self.error(f"{what} at offset {at}", f"a length of {length}", f"1 to {MAX_NAME} bytes")
        name = self.text(what)
        if "\0" in name:
            raise self.error(f"{what} at offset {at}", f"a NUL in {name!r}", "a name without NUL")
        return name

    def bool(self, value: int, key: str):
        if value > 1:
            raise self.error(key, f"a bool of value {value}", "0 or 1")
        return value == 1

    def value(self, type: int, key: str):
        if type == STRING:
            return self.text(repr(key))
        if type == ARRAY:
            return self.array(key)
        packed = PACKED.get(type)
        if packed is None:
            raise self.error(key, f"value type {type}", "a value type of GGUF, 0 to 12")
        value = packed.unpack_from(self.data, self.take(packed.size, repr(key)))[0]
        return self.bool(value, key) if type == BOOL else value

    def array(self, key: str) -> LazyArray:
        type, count, at = self.u32(f"element type of {key!r}"), self.u64(f"count of {key!r}"), self.at
        if type == STRING:
            self.skip_strings(count, key)
        elif type in PACKED:
            self.take(count * PACKED[type].size, f"{count} elements of {key!r}")
        else:
            got = "arrays inside an array" if type == ARRAY else f"element type {type}"
            raise self.error(key, got, "an array of scalars or strings")
        return LazyArray(type, count, at)

    def skip_strings(self, count: int, key: str):
        """Step over strings. Vocabularies make this the whole cost of opening a file: about 50 ns a string."""
        if count > (self.end - self.at) // 8:
            got = f"{count} strings in {self.end - self.at} bytes"
            raise self.error(f"{key!r} at offset {self.at}", got, "at least 8 bytes a string")
        length, data, at = LENGTH, self.data, self.at
        try:
            for _ in range(count):
                at += length(data, at)[0] + 8
        except (struct.error, OverflowError):  # a length led past the end: report the string that has it
            at = self.end + 1
        if at > self.end:
            for index in range(count):
                self.text(f"string {index} of {key!r}")
        self.at = at


def _header(cursor: Cursor) -> tuple[int, int, int]:
    magic = cursor.data[:4]
    if magic != MAGIC:
        raise cursor.error("offset 0", f"magic {magic!r}", f"{MAGIC!r}", "is this a GGUF file?")
    cursor.at = 4
    version = cursor.u32("version")
    if version not in VERSIONS:
        got, fix = f"version {version}", "convert the model again with a current llama.cpp"
        if version == 1:
            got = "version 1, which is not supported yet"
        elif version & 0xFFFF == 0 and version:
            got, fix = "a big-endian file, which is not supported yet", "convert the model for little-endian machines"
        raise cursor.error("offset 4", got, "version 2 or 3, little-endian", fix)
    n_tensors, n_pairs = cursor.u64("tensor count"), cursor.u64("key-value count")
    for what, count, least in (("tensors", n_tensors, SMALLEST_INFO), ("key-value pairs", n_pairs, SMALLEST_PAIR)):
        if count * least > cursor.end:
            raise cursor.error("header", f"{count} {what} in {cursor.end} bytes", f"at least {least} bytes for each")
    return version, n_tensors, n_pairs


def _alignment(metadata: Metadata) -> int:
    key = "general.alignment"
    alignment = metadata.get(key, ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise metadata._cursor.error(key, repr(alignment), "a power of two")
    return alignment


def _tensor_infos(cursor: Cursor, count: int, alignment: int) -> dict[str, TensorInfo]:
    infos = [_tensor_info(cursor) for _ in range(count)]
    start = -(-cursor.at // alignment) * alignment
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


def _tensor_info(cursor: Cursor) -> TensorInfo:
    name = cursor.name("a tensor name")
    where = f"tensor {name!r}"
    n_dims = cursor.u32(f"dims of {where}")
    if n_dims > MAX_DIMS:
        raise cursor.error(where, f"{n_dims} dims", f"at most {MAX_DIMS}")
    tail = INFO_TAIL[n_dims]
    *dims, type, offset = tail.unpack_from(cursor.data, cursor.take(tail.size, where))
    format = BY_ID.get(type)
    if format is None:
        raise cursor.error(where, f"GGML type {type}", "a type that ggml has today", "quantise the model again")
    row = dims[0] if dims else 1
    if row % format.elements:
        raise cursor.error(where, f"rows of {row} elements", f"a multiple of {format}'s block of {format.elements}")
    nbytes = row // format.elements * format.nbytes
    for dim in dims[1:]:
        nbytes *= dim
    if nbytes >= 1 << 63 or max(dims, default=0) >= 1 << 63:
        raise cursor.error(where, f"dims {dims}", "sizes below 2**63")
    return TensorInfo(name, tuple(reversed(dims)), format, offset, nbytes)
