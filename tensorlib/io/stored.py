"""What the writers of tensor files share: a tensor as bytes that are made when its turn comes, in parts.

A writer never holds more than it was given: a Tensor is written from its own memory, and a Raw makes its bytes while it
is written, so that a file of any size is converted in the memory of one part.

>>> raw = Raw("f32", (2, 3), lambda: iter([bytes(12), bytes(12)]))
>>> [len(part) for part in pieces(raw, 24, ValueError)]
[12, 12]
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tensorlib import dtype as _dtype
from tensorlib.errors import DTypeError
from tensorlib.io.source import short

CHUNK = 1 << 24  # bytes of one write


class Raw(NamedTuple):
    """A tensor as bytes, row-major and little-endian. `format`: a dtype, for GGUF a row (name, id) of quant.formats, or
    the written format's own name of a dtype that is not here; `shape`: outermost first; `data`: an object with the
    buffer protocol, or a function that returns one, or an iterator of several. It is called when it is this tensor's
    turn.
    """

    format: object
    shape: tuple
    data: object | Callable[[], object]

    @property
    def dtype(self):
        """The row of tensorlib.dtype, or the name of the format where there is none."""
        name = getattr(self.format, "name", self.format)
        return _dtype.DTYPES.get(name, name)


def memory(x):
    """The elements of a Tensor in row-major order as a memoryview; copied only if it is strided or on a GPU."""
    x = x.detach().to("cpu").contiguous()
    view = (ctypes.c_char * x.nbytes).from_address(x.ptr) if x.numel() else bytearray()
    if x.numel():
        view.owner = x  # kept alive by the view
    return memoryview(view).cast("B")


def pieces(x, nbytes: int, wrong, progress=None):
    """The bytes of a Tensor or Raw as memoryviews of at most CHUNK. Raises `wrong(got)` unless there are `nbytes`.

    `progress` is told the number of bytes of each, once the next is asked for.
    """
    data = x.data if isinstance(x, Raw) else memory(x)
    data = data() if callable(data) else data
    total = 0
    for part in data if isinstance(data, Iterator) else (data,):
        view = memoryview(part)
        total += view.nbytes
        if total > nbytes or not view.c_contiguous:
            raise wrong(f"{total} bytes" if view.c_contiguous else "strided bytes")
        view = view.cast("B") if view.nbytes else view
        for start in range(0, view.nbytes, CHUNK):
            piece = view[start : start + CHUNK]
            yield piece
            if progress is not None:
                progress(piece.nbytes)
    if total != nbytes:
        raise wrong(f"{total} bytes")


def named(op: str, tensors) -> dict:
    """The tensors to save: a mapping of names to Tensors, Raws or NumPy arrays, or a Module. DTypeError for anything
    else.
    """
    from tensorlib.tensor import Tensor, as_tensor

    if hasattr(tensors, "named_parameters"):
        tensors = dict(tensors.named_parameters())
    if not hasattr(tensors, "items"):
        raise DTypeError(op, f"a {type(tensors).__name__}", "a mapping of names to tensors", 'save {"name": tensor}')
    found = {}
    for name, value in tensors.items():
        if type(name) is not str:
            raise DTypeError(op, f"the name {short(name)}", "names that are text")
        if not isinstance(value, (Tensor, Raw)) and not hasattr(value, "__array_interface__"):
            fix = "call .dequantize() first" if hasattr(value, "dequantize") else ""
            raise DTypeError(op, f"a {type(value).__name__} as {short(name)}", "a Tensor or NumPy array", fix)
        found[name] = value if isinstance(value, Raw) else as_tensor(value)
    return found


def written(file, op: str, name: str, x, nbytes: int, progress=None):
    """Writes the bytes of a Tensor or Raw to a binary stream. DTypeError unless there are `nbytes` of them."""

    def wrong(got):
        return DTypeError(op, f"{got} as {short(name)}", f"{nbytes} for shape {x.shape} of {x.dtype}")

    for piece in pieces(x, nbytes, wrong, progress):
        file.write(piece)
