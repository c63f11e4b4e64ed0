"""Writing GGUF files, version 3, little-endian; changing the metadata of one.

Tensors are written one after the other, each straight from its own memory, and the file gets its name when all of it is
on the disk (`atomic.py`). What is written is what the `gguf` package's writer makes of the same, bit for bit.

>>> import tensorlib
>>> from tensorlib.io import gguf
>>> path = "/tmp/doctest-of-gguf.gguf"
>>> gguf.write(path, {"general.architecture": "llama", "llama.rope.scale": 0.5}, {"w": tensorlib.ones(2, 3)})
>>> file = gguf.open(path)
>>> dict(file.metadata), file.tensor("w").shape
({'general.architecture': 'llama', 'llama.rope.scale': 0.5}, (2, 3))
"""

from __future__ import annotations

import errno
import os
import struct
from math import prod

from tensorlib.errors import DTypeError, FormatError, ShapeError, WriteError
from tensorlib.io import atomic
from tensorlib.io.gguf import ALIGNMENT, MAGIC, MAX_DIMS
from tensorlib.io.gguf_values import MAX_NAME, Encoded, Metadata, encode, string, typed
from tensorlib.io.stored import Raw, memory, pieces
from tensorlib.quant import formats
from tensorlib.tensor import as_tensor

MAX_TENSOR_NAME = 63  # ggml's own limit: it does not open files with longer ones


def write(path, metadata, tensors, alignment: int | None = None, progress=None, replace: bool = True):
    """Write a GGUF file: `metadata` (name to value) and `tensors` (name to Tensor, QTensor, NumPy array or Raw; or a
    Module), in their order.

    Values are Python's, with the types that `gguf_values.typed` gives them, or `gguf.Typed(type, value)`; the metadata
    of an open file is copied as it is. `alignment`: a power of two; None: that of the metadata, else 32.
    `progress` is called with numbers of bytes. DTypeError for values and dtypes that GGUF has not; FormatError for
    names, shapes and data that break the format; WriteError for a file that cannot be written, or is there although
    `replace` is False. After any of them `path` is as it was.
    """
    path = os.fspath(path)
    with atomic.writing(path, replace) as file:
        into(file, path, metadata, tensors, alignment, progress)


def into(file, path, metadata, tensors, alignment=None, progress=None):
    """`write`, to a binary stream; errors name `path`."""
    pairs, alignment = _pairs(path, metadata, alignment)
    if hasattr(tensors, "named_parameters"):
        tensors = dict(tensors.named_parameters())
    plans = {name: _plan(path, name, value) for name, value in tensors.items()}
    head, offset = [MAGIC, struct.pack("<IQQ", 3, len(plans), len(pairs))], 0
    for key, value in pairs.items():
        head += [string(_named(path, "key", key, MAX_NAME)), value]
    for name, raw in plans.items():
        dims = tuple(reversed(raw.shape))
        head.append(string(_named(path, "tensor name", name, MAX_TENSOR_NAME)))
        head.append(struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, raw.format.ggml_id, offset))
        offset += -(-_nbytes(raw) // alignment) * alignment
    head = b"".join(head)
    file.write(head + bytes(-len(head) % alignment if plans else 0))
    for name, raw in plans.items():
        _copy(file, path, name, raw, progress)
        file.write(bytes(-_nbytes(raw) % alignment))


def _pairs(path, metadata, alignment):
    """Encoded values by key, and the alignment, which they name where it is not 32."""
    get = metadata.encoded if isinstance(metadata, Metadata) else metadata.__getitem__
    pairs = {key: _encoded(key, get(key)) for key in metadata}
    key = "general.alignment"
    if alignment is None and key in metadata:
        value = metadata[key]
        alignment = struct.unpack("<II", value)[1] if isinstance(value, Encoded) else getattr(value, "value", value)
    alignment = ALIGNMENT if alignment is None else alignment
    if type(alignment) is not int or not 0 < alignment < 1 << 32 or alignment & (alignment - 1):
        raise FormatError(path, key, f"{alignment!r:.80}", "a power of two")
    if key in pairs or alignment != ALIGNMENT:
        pairs[key] = encode("u32", alignment)
    return pairs, alignment


def _encoded(key, value):
    if isinstance(value, Encoded):
        return value
    try:
        return encode(*typed(value))
    except DTypeError as error:
        raise DTypeError(f"metadata {key!r}", error.got, error.expected, error.fix) from None


def _named(path, what, name, most):
    raw = name.encode("utf-8", "replace") if isinstance(name, str) else b""
    if not 0 < len(raw) <= most or b"\0" in raw:
        raise FormatError(path, what, f"{name!r:.80}", f"text of 1 to {most} bytes without NUL")
    return name


def _nbytes(raw):
    return prod(raw.shape[:-1]) * raw.format.row_bytes(raw.shape[-1] if raw.shape else 1)


def _plan(path, name, value) -> Raw:
    """Any tensor as a Raw whose data is read when it is written."""
    where = f"tensor {name!r}"
    if hasattr(value, "__array_interface__"):
        value = as_tensor(value)
    if isinstance(value, Raw):
        try:
            raw = Raw(formats.get(getattr(value.format, "name", value.format)), tuple(value.shape), value.data)
        except DTypeError as error:
            raise DTypeError(f"write {where}", error.got, error.expected, error.fix) from None
    else:
        format = getattr(value, "format", None) or formats.FORMATS.get(getattr(getattr(value, "dtype", 0), "name", ""))
        if not isinstance(format, formats.Format):
            got = f"{getattr(value, 'dtype', type(value).__name__)}"
            fix = "convert it with .to(dtype)"
            raise DTypeError(f"write {where}", got, f"a QTensor, or a Tensor of {_dtypes()}", fix)
        raw = Raw(format, tuple(value.shape), lambda: _memory(value))
    if raw.format.ggml_id is None:
        fix = "dequantize() it, or quantize it to one of GGML's formats"
        raise DTypeError(f"write {where}", f"blocks of {raw.format}", "a format that GGUF has", fix)
    if len(raw.shape) > MAX_DIMS or any(type(size) is not int or not 0 <= size < 1 << 63 for size in raw.shape):
        raise FormatError(path, where, f"shape {raw.shape}", f"at most {MAX_DIMS} sizes")
    try:
        _nbytes(raw)
    except ShapeError as error:
        raise FormatError(path, where, error.got, error.expected, error.fix) from None
    return raw


def _dtypes():
    return ", ".join(name for name, row in formats.FORMATS.items() if not row.quantized)


def _memory(value):
    """The bytes of a Tensor or QTensor; copied only if it is strided or on a GPU."""
    if not hasattr(value, "format"):
        return memory(value.handle())
    import ctypes

    value = value.to("cpu")
    view = (ctypes.c_char * value.nbytes).from_address(value.ptr)
    view.owner = value.buffer
    return view


def _copy(file, path, name, raw, progress):
    expected = _nbytes(raw)

    def wrong(got):
        return FormatError(path, f"tensor {name!r}", got, f"{expected} bytes of {raw.format}, contiguous")

    for piece in pieces(raw, expected, wrong, progress):
        file.write(piece)


def edit(path, changes=None, remove=(), out=None, in_place: bool = False, progress=None):
    """Change the metadata of a GGUF file: set what `changes` maps, drop the keys of `remove`.

    The result replaces `path` (or is `out`) once it is whole, tensor data copied as it is. With `in_place` nothing is
    copied: each new value must take as many bytes as the old one, and is written over it in one call; then an
    interrupted edit of several keys may leave some of them changed.
    FormatError where a key to remove is missing or a value has another size; DTypeError, WriteError as of `write`.
    """
    from tensorlib.io import gguf

    path, changes = os.fspath(path), dict(changes or {})
    file = gguf.open(path, parts=False)
    try:
        for key in remove:
            if key not in file.metadata:
                raise FormatError(path, key, "no such key", "one to remove")
        if in_place:
            return _overwrite(file, {key: _typed_as(file, key, value) for key, value in changes.items()}, remove, out)
        pairs = {key: file.metadata.encoded(key) for key in file.metadata if key not in set(remove)}
        pairs |= {key: _typed_as(file, key, value) for key, value in changes.items()}
        tensors = {name: file.stored(name) for name in file.tensors}
        alignment = changes.get("general.alignment", file.alignment)
        write(out or path, pairs, tensors, getattr(alignment, "value", alignment), progress)
    finally:
        file.close()


def _typed_as(file, key, value):
    """A new value, encoded: with the type of the old one where it fits, so that an edit does not change types."""
    if key in file.metadata and not isinstance(value, tuple):
        old, count = file.metadata.kind(key)
        kind = old if count is not None else file.metadata.typed(key).type
        if kind != "array" and isinstance(value, list) == (count is not None):
            try:
                return Encoded(encode(kind, value))
            except DTypeError:
                pass
    return Encoded(_encoded(key, value))


def _overwrite(file, changes, remove, out):
    same = file.order == "<" and file.version > 1 and not remove and out is None
    spans = {key: file.metadata.span(key) for key in changes if key in file.metadata}
    for key, value in changes.items():
        start, end = spans.get(key, (0, 0))
        if not same or end - start != len(value) or key == "general.alignment":
            fix = "leave in_place out: the file is then written anew"
            raise FormatError(
                file.path, key, f"{len(value)} bytes instead of {end - start}", "a value to write over", fix
            )
    try:
        with open(file.path, "r+b", buffering=0) as stream:
            for key, value in changes.items():
                stream.seek(spans[key][0])
                if stream.write(value) != len(value):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(stream.fileno())
    except OSError as error:
        raise WriteError(file.path, error.strerror, "a file that can be written") from error
