"""safetensors files, mapped: one or sharded by an index; and writing them.

The format is that of the safetensors crate: 8 bytes of header length, a JSON header, tensor data without holes. It is
checked as strictly as the crate does, and an unknown field of an entry is refused as well.

>>> import os, tempfile, tensorlib
>>> path = os.path.join(tempfile.mkdtemp(), "x.safetensors")
>>> _ = save(path, {"w": tensorlib.tensor([[1.0, 2.0], [3.0, 4.0]])}, {"made by": "a test"})
>>> with open(path) as file:
...     file.metadata, file.tensors["w"].shape, file.slice("w", ..., slice(1, 2)).tolist()
({'made by': 'a test'}, (2, 2), [[2.0], [4.0]])
"""

from __future__ import annotations

import functools
import json
import os
import re
import struct
from operator import attrgetter, itemgetter

from tensorlib import dtype as _dtype
from tensorlib.errors import DTypeError, FormatError
from tensorlib.io.atomic import writing_all
from tensorlib.io.source import (
    LIMIT,
    Source,
    TensorInfo,
    elements,
    map_private,
    opened,
    short,
    uncollected,
)
from tensorlib.io.stored import named, written

MAX_HEADER = 100_000_000  # the crate's own cap
MAX_MARKS = 3_000_000  # brackets and commas in a header, of which a tensor has seven: they bound what parsing allocates
ALIGNMENT = 64  # of the tensor data that is written here, so that every tensor of it can be used where it lies

BITS = {  # the file's names, and how many bits an element takes
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
DTYPES = {name: d for name in BITS if (d := _dtype.DTYPES.get(name.lower().replace("_", "")))}
NAMES = {d: name for name, d in DTYPES.items()}
FIELDS = {"dtype", "shape", "data_offsets"}
fields_of = itemgetter("dtype", "shape", "data_offsets")
INDEX, SHARDS = ".index.json", (".safetensors", ".bin")
MAX_INDEX = 1 << 28


def open(path, mapped=True) -> Source:
    """Maps a .safetensors file, or all shards of a `model.safetensors.index.json`. Raises FormatError.

    `mapped=False`: read into memory instead, all at once.
    """
    name = os.fspath(path)
    if name.endswith(INDEX):
        return ShardedFile(name, mapped)
    name, data = map_private(name, 8, "a safetensors file", mapped)
    return opened(SafetensorsFile, name, data)


class SafetensorsFile(Source):
    """An open file; see `Source`. `metadata` is the header's `__metadata__`, text to text."""

    def __init__(self, path, data):
        super().__init__(path, data)
        length = struct.unpack_from("<Q", data)[0]
        if length > MAX_HEADER or length > len(data) - 8:
            got = f"a header of {length} bytes in a file of {len(data)}"
            fix = "is this a safetensors file? it may also be cut short"
            raise self.error("offset 0", got, f"one inside the file, at most {MAX_HEADER} bytes", fix)
        with uncollected():
            header = parse(path, "header", data[8 : 8 + length], functools.partial(self._entry, 8 + length))
            self.metadata = self._metadata(header.pop("__metadata__", {}))
            for name, info in header.items():
                if type(info) is not TensorInfo:
                    raise self.error(f"tensor {short(name)}", *_fault(info))
                info.name = name
            self.tensors = header
            self._tile(8 + length)

    def _metadata(self, found):
        if type(found) is not dict:
            raise self.error("__metadata__", short(found), "an object of text")
        for key, value in found.items():
            if type(value) is not str:
                raise self.error(f"__metadata__ {short(key)}", short(value), "text")
        return found

    def _entry(self, start, found):
        """What the parser makes of an object: where it is a tensor's and right, a TensorInfo whose name is to follow;
        where its numbers are wrong, the parts of an error. At once: no list of 200,000 tensors stays.
        """
        if len(found) != 3 or found.keys() != FIELDS:
            return _encodable(found)
        format, shape, offsets = fields_of(found)
        bits = BITS.get(format) if type(format) is str else None
        if bits is None or type(shape) is not list or type(offsets) is not list:
            return found
        for n in (*shape, *offsets):
            if type(n) is not int or not 0 <= n < LIMIT:
                return f"{short(n)} in a list", "whole numbers from 0 to 2**63 - 1"
        if len(offsets) != 2 or offsets[0] > offsets[1]:
            return f"data_offsets {_listed(offsets)}", "a begin and an end not before it"
        total, (begin, end) = elements(shape) * bits, offsets
        if total % 8:
            return f"{total} bits of {format}", "whole bytes"
        if total != (end - begin) * 8 or total >= LIMIT:
            got = f"bytes {begin} to {end} for shape {_listed(shape)} of {format}"
            return got, f"{total // 8} bytes" if total < LIMIT else "a size below 2**63 bits"
        if end > self.nbytes - start:
            got = f"bytes {begin} to {end} in {self.nbytes - start} bytes of data"
            return got, "data inside the file", "the file is cut short or damaged: fetch it again"
        return TensorInfo("", tuple(shape), format, DTYPES.get(format), start + begin, end - begin)

    def _tile(self, start):
        """The tensors must cover the data exactly: no byte twice, none in between or after."""
        reached = start
        for info in sorted(self.tensors.values(), key=attrgetter("offset", "nbytes")):
            if info.offset != reached:
                got = f"data from byte {info.offset - start} on, where {reached - start} bytes are taken"
                raise self.error(f"tensor {short(info.name)}", got, "data without overlaps or holes")
            reached += info.nbytes
        if reached != self.nbytes:
            raise self.error(f"offset {reached}", f"{self.nbytes - reached} bytes after the last tensor", "none")


def _fault(entry):
    """The parts of an error for an entry of the header that is no TensorInfo."""
    if type(entry) is tuple:
        return entry
    if type(entry) is not dict or entry.keys() != FIELDS:
        return short(entry), f"an object of {', '.join(sorted(FIELDS))} alone"
    format = entry["dtype"]
    if type(format) is not str or format not in BITS:
        return f"dtype {short(format)}", "a dtype of the specification"
    wrong = next(numbers for numbers in (entry["shape"], entry["data_offsets"]) if type(numbers) is not list)
    return short(wrong), "lists as shape and data_offsets"


def _listed(numbers):
    """A list of numbers as a message shows it."""
    if len(numbers) > 16:
        return short(numbers)
    return "[" + ", ".join(map(short, numbers)) + "]"


def parse(path, where, raw: bytes, made) -> dict:
    """A JSON object as a dict, the objects in it as `made(dict)` makes them. FormatError for what is no strict JSON,
    and for fractions, which stand nowhere in these files.
    """
    marks = sum(map(raw.count, (b"[", b"{", b",")))
    if marks > MAX_MARKS:
        raise FormatError(path, where, f"{marks} brackets and commas", f"at most {MAX_MARKS}")
    try:
        header = json.loads(raw.decode(), object_hook=made, parse_float=_refuse, parse_constant=_refuse)
        if type(header) is dict and raw.count(b'"') != 2 * _strings(header):  # a key is there twice, or \" in a string
            json.loads(raw.decode(), object_pairs_hook=_object)
    except RecursionError:
        raise FormatError(path, where, "JSON nested too deep", "a JSON object") from None
    except UnicodeDecodeError as error:
        got = f"byte 0x{raw[error.start]:02x} at {error.start}"
        raise FormatError(path, where, got, "UTF-8 text") from None
    except ValueError as error:
        raise FormatError(
            path, where, f"no JSON ({str(error)[:200]})", "a JSON object", "is the file damaged?"
        ) from None
    if type(header) is not dict:
        raise FormatError(path, where, f"JSON that is {short(header)}", "a JSON object")
    return header


def _strings(header):
    """How many strings the text of a header has: a tensor's are its name, three keys and the dtype. To count them finds
    a key that is there twice in half the time that lists of pairs take (0.25 s of 200,000 tensors).
    """
    metadata = header.get("__metadata__")
    if type(metadata) is not dict:
        return 5 * len(header)
    return 5 * (len(header) - 1) + 1 + 2 * len(metadata)


def _object(pairs):
    """A dict of them, whose keys are text, each once."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {short(twice)} twice in one object")
    return _encodable(found)


def _encodable(found):
    for key in found:
        if not key.isascii():
            try:
                key.encode()
            except UnicodeEncodeError:
                raise ValueError(f"half a surrogate pair in the key {short(key)}") from None
    return found


def _refuse(text):
    raise ValueError(f"the number {text[:40]}")


class ShardedFile(Source):
    """All shards of an index, as one source. `metadata` is the index's own, then the shards'."""

    def __init__(self, path, mapped=True):
        self.path, self._shards = os.fspath(path), {}
        index, weights = _index(self.path)
        try:
            for shard in sorted(set(weights.values())):
                self._shards[shard] = _shard(os.path.join(os.path.dirname(self.path), shard), mapped)
            self.nbytes = sum(shard.nbytes for shard in self._shards.values())
            self._place = {tensor: self._shards[shard] for tensor, shard in weights.items()}
            self.tensors = {tensor: shard.info(tensor) for tensor, shard in self._place.items()}
        except BaseException:
            self.close()
            raise
        own = index.get("metadata")
        self.metadata = own if type(own) is dict else {}
        for shard in self._shards.values():
            self.metadata = {**shard.metadata, **self.metadata}

    def close(self):
        for shard in self._shards.values():
            shard.close()

    def tensor(self, name=""):
        self.info(name)
        return self._place[name].tensor(name)

    def rows(self, name, start, stop):
        self.info(name)
        return self._place[name].rows(name, start, stop)

    def raw(self, name=""):
        self.info(name)
        return self._place[name].raw(name)

    def stored(self, name=""):
        self.info(name)
        return self._place[name].stored(name)


def _shard(path, mapped):
    if path.endswith(".bin"):  # of PyTorch's, whose indices are the same
        from tensorlib.io import pth

        return pth.open(path, mapped=mapped)
    return open(path, mapped)


def shards(path) -> list[str]:
    """Names of the files beside an index that its tensors are in. FormatError."""
    return sorted(set(_index(os.fspath(path))[1].values()))


def _index(path):
    """An index, an object like a header whose metadata may hold any number; and its tensors' shards, checked."""
    name, data = map_private(path, 2, "an index of shards")
    with data:
        if len(data) > MAX_INDEX:
            raise FormatError(name, "path", f"{len(data)} bytes", f"an index of at most {MAX_INDEX}")
        raw = data[:]
    try:
        if sum(map(raw.count, (b"[", b"{", b","))) > MAX_MARKS:
            raise ValueError(f"more than {MAX_MARKS} brackets and commas")
        found = json.loads(raw.decode(), object_pairs_hook=_object)
    except (RecursionError, ValueError) as error:
        raise FormatError(path, "index", f"no JSON ({str(error)[:200]})", "a JSON object") from None
    if type(found) is not dict:
        raise FormatError(path, "index", f"JSON that is {short(found)}", "a JSON object")
    weights = found.get("weight_map")
    if type(weights) is not dict or not weights:
        raise FormatError(path, "weight_map", short(weights), "an object of tensor names to shards")
    for tensor, shard in weights.items():
        if type(shard) is not str or not re.fullmatch(r"[^/\\:\0]{1,255}", shard) or not shard.endswith(SHARDS):
            got, expected = f"shard {short(shard)}", "the plain name of a .safetensors or .bin file beside it"
            raise FormatError(path, f"tensor {short(tensor)}", got, expected)
    return found, weights


# ---- writing ---------------------------------------------------------------------------------------------------------


def save(path, tensors, metadata=None, shard_size=None, progress=None, replace=True) -> list[str]:
    """Writes a .safetensors file: whole, or not at all; returns the paths of what was written.

    `tensors`: names to Tensors (any device, any strides), Raws or NumPy arrays, or a Module; `metadata`: text to text.
    Where they take more than `shard_size` bytes, several files `x-00001-of-00003.safetensors` of at most so many (or
    one tensor) and `x.safetensors.index.json` are written: none gets its name before all are whole.
    `progress` is called with numbers of bytes. DTypeError for a QTensor and dtypes that are not of the specification,
    WriteError where the disk is full, or a file is there although `replace` is False.
    """
    path, tensors = os.fspath(path), named("safetensors.save", tensors)
    for key, value in (metadata or {}).items():
        if type(key) is not str or type(value) is not str:
            raise DTypeError("safetensors.save", f"metadata {short(key)}: {short(value)}", "text to text", "use str()")
    if "__metadata__" in tensors:
        raise DTypeError("safetensors.save", "a tensor named __metadata__", "another name")
    sizes = {name: _nbytes(name, x) for name, x in tensors.items()}
    shards = _shards(sizes, shard_size)
    names, index = [path], None
    if len(shards) > 1:
        stem = path.removesuffix(".safetensors")
        names = [f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
        weights = {name: os.path.basename(file) for file, shard in zip(names, shards) for name in shard}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weights}
    heads = [_header({name: tensors[name] for name in shard}, sizes, metadata) for shard in shards]
    names += [f"{path.removesuffix('.safetensors')}.safetensors{INDEX}"] if index else []
    with writing_all(names, replace) as files:
        for file, (head, order) in zip(files, heads):
            file.write(head)
            for name in order:
                written(file, "safetensors.save", name, tensors[name], sizes[name], progress)
        if index:
            files[-1].write(json.dumps(index, indent=2, ensure_ascii=False).encode())
    return names


def _nbytes(name, x):
    """Bytes of a tensor; DTypeError for a dtype that the specification has not."""
    format = NAMES.get(x.dtype, x.dtype)
    bits = elements(x.shape) * BITS.get(format, 0)
    if format not in BITS or bits % 8:
        got, fix = f"{x.dtype} {tuple(x.shape)} as {short(name)}", "call .dequantize(), or .to(dtype), first"
        raise DTypeError("safetensors.save", got, f"whole bytes of one of {', '.join(BITS)}", fix)
    return bits // 8


def _shards(sizes, limit):
    """Names of the tensors of each file, in their order."""
    if limit is not None and (type(limit) is not int or limit < 1):
        raise DTypeError("safetensors.save", f"a shard_size of {limit!r:.80}", "a number of bytes")
    shards, filled = [[]], 0
    for name, nbytes in sizes.items():
        if limit is not None and shards[-1] and filled + nbytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += nbytes
    return shards


def _header(tensors, sizes, metadata):
    """What stands before the data, and the names in its order."""
    header, at = {}, 0
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    # wide elements first, so that every tensor is aligned
    kinds = {name: NAMES.get(x.dtype, x.dtype) for name, x in tensors.items()}
    order = sorted(tensors, key=lambda name: (-BITS[kinds[name]], name))
    for name in order:
        offsets = [at, at + sizes[name]]
        header[name] = {"dtype": kinds[name], "shape": list(tensors[name].shape), "data_offsets": offsets}
        at += sizes[name]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    if len(text) > MAX_HEADER:
        raise DTypeError("safetensors.save", f"a header of {len(text)} bytes", f"at most {MAX_HEADER}")
    return struct.pack("<Q", len(text)) + text, order
