"""NumPy's .npy and .npz files: read over a mapping, and written, without pickled objects and without `eval`.

Formats 1.0 to 3.0 of `numpy.lib.format`. Stored members of an .npz are used where they lie; deflated ones are inflated
when they are asked for. A member's CRC is checked when its whole tensor is asked for; `rows` and `slice` of a
stored one read their own pages only, and check nothing.

>>> import os, tempfile, tensorlib
>>> path = os.path.join(tempfile.mkdtemp(), "x.npz")
>>> save(path, {"w": tensorlib.arange(6).reshape(2, 3)})
>>> open(path).tensor("w")
tensor([[0, 1, 2],
        [3, 4, 5]])
"""

from __future__ import annotations

import os
import re
import struct
import zipfile

from tensorlib import dtype as _dtype
from tensorlib.errors import DTypeError
from tensorlib.io.archive import DEFLATED, Archive, plain
from tensorlib.io.atomic import writing
from tensorlib.io.source import (
    LIMIT,
    Source,
    TensorInfo,
    elements,
    map_private,
    opened,
    part_of,
    short,
    tensor_over,
)
from tensorlib.io.stored import named, written
from tensorlib.layout import Layout, contiguous, strides_of

MAGIC, ZIP = b"\x93NUMPY", (b"PK\3\4", b"PK\5\6")
MAX_HEADER = 1 << 16
MAX_DIMS = 64
ALIGNMENT = 64
DTYPES = {f"{d.kind}{d.itemsize}": d for d in _dtype.ALL if d.name not in ("bf16", "f8e4m3", "f8e5m2")}
CODES = {d: code for code, d in DTYPES.items()}
FOREIGN = re.compile(
    r"(c8|c16|c32|f12|f16|[SUV]\d{1,6}|[mM]8)(\[\w{1,8}\])?"
)  # NumPy's, with nothing here to hold them

_ITEM = re.compile(
    r"""\s*(?P<q>['"])(?P<key>\w{1,32})(?P=q)\s*:\s*
    (?:(?P<r>['"])(?P<text>[^'"\\]*)(?P=r) | (?P<bool>True|False) | \((?P<shape>[\d\sL,]*)\))\s*(?P<end>,|(?=\}))""",
    re.VERBOSE,
)
_SIZE = re.compile(r"\s*(\d{1,20})L?\s*$")


class ArrayInfo(TensorInfo):
    """A TensorInfo with `fortran` (the first dim is innermost), `swapped` (big-endian), `member` of the archive."""

    __slots__ = ("fortran", "member", "swapped")

    @property
    def layout(self):
        if not self.fortran:
            return contiguous(self.shape)
        return Layout(self.shape, tuple(reversed(strides_of(tuple(reversed(self.shape))))), 0)


def open(path, limit=None, mapped=True) -> Source:
    """Maps a .npy file (one tensor, named "") or an .npz file. Raises FormatError, for object arrays as well.

    `limit`: bytes that compressed members may come to together; by default 64 MiB and 100 times the file's size.
    `mapped=False`: the file is read into memory instead, all at once.
    """
    name, data = map_private(path, 10, "a .npy or .npz file", mapped)
    if data[:4] in ZIP:
        return opened(NpzFile, name, data, limit)
    return opened(NpyFile, name, data)


def header(name, head: bytes, size: int, error) -> ArrayInfo:
    """The header of a .npy file of `size` bytes, of which `head` holds the first; the offset counts from its start."""
    where = f"array {short(name)}"
    if head[:6] != MAGIC or len(head) < 10:
        raise error(where, f"magic {head[:6]!r}", f"{MAGIC!r}", "is this a .npy file?")
    if head[6] not in (1, 2, 3) or head[7]:
        raise error(where, f"version {head[6]}.{head[7]}", "version 1.0, 2.0 or 3.0")
    start = 10 if head[6] == 1 else 12
    length = int.from_bytes(head[8:start], "little")
    if length > MAX_HEADER or start + length > len(head):
        raise error(where, f"a header of {length} bytes", f"one inside the file, at most {MAX_HEADER} bytes")
    text = head[start : start + length].decode("utf-8" if head[6] == 3 else "latin-1", "replace")
    fields = _fields(text, where, error)
    dtype, format, itemsize, swapped = _descr(fields["descr"], where, error)
    sizes = [_SIZE.match(part) for part in fields["shape"].split(",")]
    if (sizes and fields["shape"].rstrip().endswith(",")) or not fields["shape"].strip():
        sizes.pop()
    if None in sizes or len(sizes) > MAX_DIMS or (len(sizes) == 1 and "," not in fields["shape"]):
        raise error(where, f"shape ({short(fields['shape'])})", f"a tuple of at most {MAX_DIMS} sizes")
    shape = tuple(int(match[1]) for match in sizes)
    nbytes = elements(shape) * itemsize
    if max(shape, default=0) >= LIMIT or nbytes != size - start - length:
        got = f"{size - start - length} bytes of data"
        raise error(where, got, f"{nbytes} for shape {shape[:16]} of {format}", "the file may be cut short")
    info = ArrayInfo(name, shape, format, dtype, start + length, nbytes)
    info.fortran, info.swapped, info.member = fields["fortran_order"] == "True", swapped, None
    return info


def _fields(text, where, error):
    """The three entries of the header's dict, as text."""
    inside, found, at = text.strip(), {}, 1
    kinds = {"descr": "text", "fortran_order": "bool", "shape": "shape"}
    while match := _ITEM.match(inside, at):
        key, value = match["key"], match[kinds.get(match["key"], "q")]
        if key not in kinds or value is None or key in found:
            raise error(where, f"the header entry {short(match[0])}", f"one each of {', '.join(kinds)}")
        found[key], at = value, match.end()
    if inside[:1] != "{" or inside[at:].strip() != "}" or found.keys() != kinds.keys():
        raise error(where, f"the header {short(text)}", f"a dict of {', '.join(kinds)}")
    return found


def _descr(descr, where, error):
    """A dtype's text: our row or None, its name, its bytes, whether it is big-endian."""
    order, code = (descr[0], descr[1:]) if descr[:1] in tuple("<>|=") else ("<", descr)
    if code == "?":
        code = "b1"
    if code[:1] == "O":
        raise error(where, "an object array, which is a pickle", "numbers", "save numbers only, each in its own array")
    dtype = DTYPES.get(code)
    if dtype is not None:
        return dtype, descr, dtype.itemsize, order == ">"
    match = FOREIGN.fullmatch(code)
    if match is None:
        raise error(where, f"dtype {short(descr)}", "a dtype of NumPy", "structured dtypes are not read")
    return None, descr, int(match[1][1:]) * (4 if code[0] == "U" else 1), order == ">"


class NpyFile(Source):
    """An open .npy file; see `Source`. Its one tensor is named ""."""

    def __init__(self, path, data):
        super().__init__(path, data)
        self.tensors[""] = header("", data[: MAX_HEADER + 12], len(data), self.error)

    def tensor(self, name=""):
        info = self.computable(name)
        return _tensor(self.buffer, info)

    def rows(self, name, start, stop):
        info = self.computable(name)
        at, nbytes, shape = self.span(info, start, stop)
        return _rows(self.buffer, info, at, nbytes, shape, start, stop)


class NpzFile(Source):
    """An open .npz file; see `Source`."""

    def __init__(self, path, data, limit=None):
        super().__init__(path, data)
        self._archive = archive = Archive(data, self.error, limit)
        for member in archive.members.values():
            name = member.name.removesuffix(".npy")
            if name == member.name:
                raise self.error(f"member {short(name)}", "a name without .npy", "arrays alone")
            info = header(name, archive.head(member, MAX_HEADER + 12), member.size, self.error)
            info.member, info.offset = member, info.offset + (0 if member.method == DEFLATED else member.start)
            self.tensors[name] = info

    def tensor(self, name=""):
        info = self.computable(name)
        buffer = self._bytes_of(info)
        if info.member.method != DEFLATED:
            self._archive.check(info.member)
        return _tensor(buffer, info)

    def rows(self, name, start, stop):
        info = self.computable(name)
        at, nbytes, shape = self.span(info, start, stop)
        return _rows(self._bytes_of(info), info, at, nbytes, shape, start, stop)

    def raw(self, name=""):
        info = self.info(name)
        part = part_of(self._bytes_of(info), info.offset, info.nbytes, 1)
        from tensorlib.tensor import Tensor

        return Tensor(part, contiguous((info.nbytes,)), _dtype.u8)

    def _bytes_of(self, info):
        """What `info.offset` counts in: the mapping, or what a deflated member gives."""
        mapped = self.buffer  # which was not cut short since
        if info.member.method != DEFLATED:
            return mapped
        from tensorlib.device import Buffer

        return Buffer.of(bytearray(self._archive.read(info.member)))


def _tensor(buffer, info):
    part = part_of(buffer, info.offset, info.nbytes, info.dtype.itemsize, info.swapped)
    from tensorlib.tensor import Tensor

    return Tensor(part, info.layout, info.dtype)


def _rows(buffer, info, at, nbytes, shape, start, stop):
    if info.fortran:
        return _tensor(buffer, info)[start:stop]
    return tensor_over(buffer, info.offset + at, nbytes, contiguous(shape), info.dtype, info.swapped)


# ---- writing ---------------------------------------------------------------------------------------------------------


def save(path, tensors, metadata=None, progress=None, replace=True):
    """Writes an .npz file of stored members, or where `path` ends in .npy the one tensor: whole, or not at all.

    NumPy has no bf16 and no float8, and its files no metadata: DTypeError for them. `numpy.load` reads what this wrote,
    and `open` uses it where it lies. `progress` is called with numbers of bytes.
    """
    if metadata:
        raise DTypeError("npz.save", "metadata", "none", "use safetensors, which has a place for it")
    single = os.fspath(path).endswith(".npy")
    tensors = named("npz.save", {"": tensors} if hasattr(tensors, "shape") else tensors)
    if single and len(tensors) != 1:
        raise DTypeError("npz.save", f"{len(tensors)} tensors", "one for a .npy file", "use .npz")
    for name, x in tensors.items():
        if not plain(name + ".npy"):
            raise DTypeError("npz.save", f"the name {short(name)}", "one without .., backslashes and NUL")
        if x.dtype not in CODES:
            fix = 'use safetensors, or x.to("f32")'
            raise DTypeError("npz.save", f"{x.dtype} as {short(name)}", "a dtype of NumPy", fix)
    with writing(path, replace) as file:
        if single:
            for x in tensors.values():
                _array(file, "", x, 0, progress)
            return
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, x in tensors.items():
                info = zipfile.ZipInfo(name + ".npy")
                with archive.open(info, "w", force_zip64=True) as member:
                    _array(member, name, x, file.tell(), progress)


def _array(file, name, x, at, progress):
    """Header and data of an array, at offset `at` of a file: the header's padding aligns the data, so that it can be
    mapped.
    """
    file.write(_header(x, at))
    written(file, "npz.save", name, x, elements(x.shape) * x.dtype.itemsize, progress)


def _header(x, at):
    """The bytes before the data of a .npy file that starts at offset `at`."""
    code = CODES[x.dtype]
    order = "|" if x.dtype.itemsize == 1 else "<"
    text = f"{{'descr': '{order}{code}', 'fortran_order': False, 'shape': {x.shape!r}, }}"
    text += " " * (-(at + 10 + len(text) + 1) % ALIGNMENT) + "\n"
    return MAGIC + b"\1\0" + struct.pack("<H", len(text)) + text.encode()
