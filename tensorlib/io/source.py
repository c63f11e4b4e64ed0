"""What the readers of tensor files share: mapping a file, the interface, tensors over the mapping, bytes of tensors.

A source has `path`, `metadata`, `tensors` (name to TensorInfo), `tensor(name)`, `slice(name, *index)`, `raw(name)` and
`close()`; a VarBuilder takes any of them. Whatever is wrong with a file is one FormatError.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import mmap
import os
import stat
import sys

from tensorlib.errors import FormatError
from tensorlib.io.cursor import FileMap, check_unchanged

LIMIT = 1 << 63  # sizes, offsets and products are held below it
SHORT = 80  # characters of a file's text that a message repeats


def short(value) -> str:
    """What a message says of a value from a file: its repr, cut; of a container, only its type and length."""
    if type(value) is str and len(value) > SHORT:
        return f"{value[:SHORT]!r}... of {len(value)} characters"
    if value is None or type(value) in (str, bool, int, float):
        return repr(value) if type(value) is not int or abs(value) < 1 << 256 else "an integer of more than 256 bits"
    return f"a {type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else f"a {type(value).__name__}"


def map_private(path, least: int, what: str, mapped: bool = True) -> tuple[str, FileMap]:
    """A file's name and its bytes, mapped privately: in-place operations change this process's copy, never the file.
    `mapped=False`: read into memory of this process instead, by several threads.

    FormatError for what is no readable plain file of at least `least` bytes; `what` names the format in it.
    """
    name = os.fspath(path)
    try:
        if not stat.S_ISREG(os.stat(name).st_mode):
            raise FormatError(short(name), "path", "something that is no plain file", what)
        fd = os.open(name, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise FormatError(short(name), "path", error.strerror, f"a readable file: {what}", "check the path") from None
    except ValueError:
        raise FormatError(short(name), "path", "a NUL in it", "a path", "check the path") from None
    try:
        status = os.fstat(fd)
        size = status.st_size
        if size < max(least, 1):
            raise FormatError(name, "offset 0", f"a file of {size} bytes", f"{what}, at least {max(least, 1)} bytes")
        if not mapped:
            from tensorlib.io.memory import read_all

            return name, read_all(name, fd, size)
        if not sys.platform.startswith("linux"):
            found = FileMap(fd, size, access=mmap.ACCESS_COPY)
        else:
            no_reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)  # the name is there since Python 3.12; for huge files
            found = FileMap(fd, size, flags=mmap.MAP_PRIVATE | no_reserve, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        found.stamp = FileMap.stamp_of(status)
        return name, found
    except OSError as error:
        raise FormatError(name, "path", error.strerror, "a file that can be mapped") from None
    finally:
        os.close(fd)


@contextlib.contextmanager
def uncollected():
    """No garbage collection while a reader makes many objects: it would go through all of them again and again, for
    half of the time.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


class TensorInfo:
    """What a file says of a tensor: `name`, `shape`, `format` (the file's own name of the dtype), `dtype` (a row of
    tensorlib.dtype, or None: cannot be computed with), `offset` of its bytes in the file, `nbytes`.
    """

    __slots__ = ("dtype", "format", "name", "nbytes", "offset", "shape")

    def __init__(self, name, shape, format, dtype, offset, nbytes):
        self.name, self.shape, self.format, self.dtype = name, shape, format, dtype
        self.offset, self.nbytes = offset, nbytes

    def __repr__(self):
        return f"TensorInfo({self.name!r}, {self.shape}, {self.format}, offset={self.offset}, nbytes={self.nbytes})"


class Source:
    """Base of the readers: an open, mapped file. Use it in a `with` block or call `close()`.

    Tensors keep the mapping alive by themselves. The file must not be written to while it is open; replacing it by
    `save` is safe.
    """

    metadata = {}

    def __init__(self, path: str, data: mmap.mmap):
        self.path, self.nbytes, self._data, self._buffer = path, len(data), data, None
        self.tensors: dict[str, TensorInfo] = {}

    def __repr__(self):
        from tensorlib.io import text  # when somebody looks

        return text.source(self)

    def _repr_html_(self):
        from tensorlib.io import text

        return text.source_html(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Unmap the file, unless tensors of it are still in use: then the last of them does."""
        self._buffer = None
        with contextlib.suppress(BufferError):
            self._data.close()

    def error(self, where, got, expected, fix=""):
        return FormatError(self.path, where, got, expected, fix)

    def info(self, name: str) -> TensorInfo:
        """`tensors[name]`; FormatError where there is none."""
        found = self.tensors.get(name)
        if found is None:
            raise self.error(short(name), "no such tensor", f"one of its {len(self.tensors)} tensors")
        return found

    def computable(self, name: str) -> TensorInfo:
        """`info(name)`; FormatError where its dtype cannot be computed with yet."""
        found = self.info(name)
        if found.dtype is None:
            got, fix = f"dtype {found.format}", "this dtype cannot be computed with yet; .raw(name) gives its bytes"
            raise self.error(f"tensor {short(name)}", got, "a dtype of tensorlib", fix)
        return found

    @property
    def buffer(self):
        """The whole file as a Buffer on the CPU. FormatError if that was changed since it was opened."""
        from tensorlib.device import Buffer

        check_unchanged(self.path, self._data)  # a page beyond the end of the file would kill the process
        if self._buffer is None:
            self._buffer = Buffer.of(self._data)
        return self._buffer

    def tensor(self, name: str = ""):
        """The tensor of that name, over the mapping where alignment and byte order allow, else copied. FormatError."""
        info = self.computable(name)
        from tensorlib.layout import contiguous

        return tensor_over(self.buffer, info.offset, info.nbytes, contiguous(info.shape), info.dtype)

    def rows(self, name: str, start: int, stop: int):
        """Rows `start` to `stop` (along the first dim) of a tensor: nothing else of it is read. FormatError."""
        info = self.computable(name)
        at, nbytes, shape = self.span(info, start, stop)
        from tensorlib.layout import contiguous

        return tensor_over(self.buffer, info.offset + at, nbytes, contiguous(shape), info.dtype)

    def span(self, info, start: int, stop: int):
        """Where rows lie in the bytes of a tensor: the first byte, their number, and the shape of the rows."""
        if not info.shape or not 0 <= start <= stop <= info.shape[0]:
            raise self.error(short(info.name), f"rows {start} to {stop}", f"a part of the shape {info.shape}")
        each = info.nbytes // max(info.shape[0], 1)
        return start * each, (stop - start) * each, (stop - start, *info.shape[1:])

    def slice(self, name: str, *index):
        """`tensor(name)[index]` for integers, slices and Ellipsis: of a mapped tensor only its own pages are read.

        `file.slice("w", slice(0, 512))` is a row shard, `file.slice("w", ..., slice(0, 512))` a column shard.
        """
        first, shape = index[0] if index else ..., self.info(name).shape
        if shape and type(first) is slice and first.step in (None, 1):
            start, stop, _ = first.indices(shape[0])
            return self.rows(name, start, max(start, stop))[(slice(None), *index[1:])]
        if shape and type(first) is int and -shape[0] <= first < shape[0]:
            return self.rows(name, first % shape[0], first % shape[0] + 1)[(0, *index[1:])]
        return self.tensor(name)[index]

    def raw(self, name: str = ""):
        """The bytes of a tensor as the file has them: u8, one dim."""
        info = self.info(name)
        from tensorlib import dtype
        from tensorlib.layout import contiguous

        return tensor_over(self.buffer, info.offset, info.nbytes, contiguous((info.nbytes,)), dtype.u8)

    def stored(self, name: str = ""):
        """The tensor as the writers take it (a Raw), to be copied from file to file."""
        from tensorlib.io.stored import Raw, memory

        info = self.info(name)
        if info.dtype is None:
            return Raw(info.format, info.shape, lambda: memory(self.raw(name)))
        return Raw(info.dtype, info.shape, lambda: memory(self.tensor(name)))


def opened(kind, name: str, data: mmap.mmap, *arguments):
    """`kind(name, data, ...)`; where that raises, the mapping is closed."""
    try:
        return kind(name, data, *arguments)
    except BaseException:
        data.close()
        raise


def part_of(buffer, at: int, nbytes: int, itemsize: int, swapped: bool = False):
    """`nbytes` of a Buffer from `at` on, as a Buffer: copied only where misaligned or in the other byte order."""
    from tensorlib.device import Buffer

    # A buffer of its own per tensor: an offset inside a shared one counts elements, and files may align to less.
    part = Buffer(buffer.ptr + at, nbytes, buffer)
    swapped = swapped and itemsize > 1
    if not nbytes or (not swapped and part.ptr % itemsize == 0):
        return part
    copy = array.array({1: "B", 2: "H", 4: "I", 8: "Q"}[itemsize])
    copy.frombytes((ctypes.c_char * nbytes).from_address(part.ptr))
    if swapped:
        copy.byteswap()
    owner = Buffer.of(copy)
    return Buffer(owner.ptr, nbytes, owner)


def tensor_over(buffer, at: int, nbytes: int, layout, dtype, swapped: bool = False):
    """A Tensor of `layout` over `nbytes` bytes of a Buffer from `at` on."""
    from tensorlib.tensor import Tensor

    return Tensor(part_of(buffer, at, nbytes, dtype.itemsize, swapped), layout, dtype)


def elements(shape) -> int:
    """The product of the sizes; `LIMIT` where that of the non-zero ones, of 16 bytes each, reaches it: NumPy has no
    such shape, be it empty or not.
    """
    count, bound = 1, 1
    for size in shape:
        count, bound = count * size, bound * (size or 1)
        if bound >= LIMIT // 16:
            return LIMIT
    return count
