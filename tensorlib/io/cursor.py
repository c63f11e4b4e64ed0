"""A place in a mapped file and readers that check the bounds before they move it; tensors over the mapping.

A mapping is private, and files must not be written to while they are open: a file that has another size than when it
was opened, or was modified since, is one FormatError when the next tensor is taken. What remains: a file that is cut
short after a tensor over it was taken ends the process with SIGBUS when a lost page is read, which Python cannot catch;
and what was written in place shows in pages that were not read before. Replace files (write a new one and rename it),
as the writers here do: what is open then stays whole.
"""

from __future__ import annotations

import mmap
import os
import struct

from tensorlib.errors import FormatError


class FileMap(mmap.mmap):
    """A mapping that knows which file it is of: `stamp` is that file's device, inode and time of modification."""

    stamp = None

    @staticmethod
    def stamp_of(status: os.stat_result):
        return status.st_dev, status.st_ino, status.st_mtime_ns


def check_unchanged(name: str, data: FileMap):
    """FormatError if the mapping is closed, or its file is not as it was when it was mapped. Takes 6 us.

    A file that was replaced or removed is no error: the mapping has the old one.
    """
    try:
        size = data.size()
    except ValueError:
        raise FormatError(name, "path", "a file that was closed", "an open one", "open it again") from None
    if size != len(data):
        fix = "open it again, and replace files by renaming new ones over them"
        raise FormatError(name, "size", f"{size} bytes now", f"{len(data)} bytes as when it was opened", fix)
    try:
        now = FileMap.stamp_of(os.stat(name))
    except OSError:
        return
    if data.stamp is not None and now[:2] == data.stamp[:2] and now != data.stamp:
        got, fix = "a file that was changed since it was opened", "open it again; replace files by renaming new ones"
        raise FormatError(name, "path", got, "the file that was opened", fix)


def over(buffer, offset: int, shape, format, nbytes: int):
    """What lies at byte `offset` of a Buffer, uncopied: a QTensor if `format` (a row of quant.formats) has blocks."""
    if format.quantized:
        from tensorlib.quant.tensor import QTensor

        return QTensor(buffer, offset, shape, format)
    from tensorlib import dtype, layout
    from tensorlib.device import Buffer
    from tensorlib.tensor import Tensor

    # A buffer of its own per tensor: an offset inside a shared one counts elements, and files may align to less.
    part = Buffer(buffer.ptr + offset, nbytes, buffer)
    return Tensor(part, layout.contiguous(shape), dtype.get(format.name))


class Cursor:
    """A place in a file, and readers that check the bounds before they move it. `order` is struct's: "<" or ">"."""

    __slots__ = ("at", "data", "end", "order", "path")

    def __init__(self, path, data, at=0, order="<"):
        self.path, self.data, self.at, self.end, self.order = path, data, at, len(data), order

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

    def numbers(self, codes: str, what: str) -> tuple:
        """Numbers of these struct codes."""
        codes = self.order + codes
        return struct.unpack_from(codes, self.data, self.take(struct.calcsize(codes), what))

    def number(self, code: str, what: str):
        return self.numbers(code, what)[0]

    def text(self, length: int, what: str) -> str:
        """`length` bytes of UTF-8."""
        at = self.take(length, what)
        return self.decoded(self.data[at : self.at], f"{what} at offset {at}")

    def name(self, length: int, what: str, most: int) -> str:
        """A name of `length` bytes: not empty, not longer than `most`, no NUL."""
        at = self.at
        if not 0 < length <= most:
            raise self.error(f"{what} at offset {at}", f"a length of {length}", f"1 to {most} bytes")
        name = self.text(length, what)
        if "\0" in name:
            raise self.error(f"{what} at offset {at}", f"a NUL in {name!r}", "a name without NUL")
        return name

    def decoded(self, raw: bytes, where: str) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            got = f"byte 0x{raw[error.start]:02x} at {error.start} of {len(raw)}"
            raise self.error(where, got, "UTF-8 text") from None
