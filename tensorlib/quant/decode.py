"""The NumPy runtime of the decode functions: the reference that every kernel is held to.

A block is a matrix of bytes (blocks, bytes per block) with the format's table; `j` is the vector 0 ... elements - 1.
A loader gives (blocks, 1) for a fixed offset and (blocks, elements) for one that depends on `j`, so that one call of a
decode function decodes many blocks.
"""

from functools import cache
from types import FunctionType

import numpy as np

from tensorlib.errors import ShapeError
from tensorlib.quant import formats
from tensorlib.quant.source import helpers

CHUNK = 1 << 16  # elements decoded at once: keeps the temporaries in a core's L2


class _Blocks:
    __slots__ = ("data", "table")

    def __init__(self, data, table):
        self.data, self.table = data, table


def _u8(b, offset):
    return b.data[:, np.atleast_1d(offset)].astype(np.int32)


def _u16(b, offset):
    return _u8(b, offset) | _u8(b, offset + 1) << 8


def _i32(b, offset):
    return _u16(b, offset) | _u16(b, offset + 2) << 16


def _as_f16(bits):
    return bits.astype(np.uint16).view(np.float16).astype(np.float32)


def _as_f32(bits):
    return bits.astype(np.uint32).view(np.float32)


def _wide(dtype):
    return lambda b, offset: np.ascontiguousarray(b.data[:, offset : offset + 8]).view(dtype).astype(np.float32)


RUNTIME = {
    "u8": _u8,
    "i8": lambda b, offset: (_u8(b, offset) ^ 0x80) - 0x80,
    "u16": _u16,
    "i16": lambda b, offset: (_u16(b, offset) ^ 0x8000) - 0x8000,
    "i32": _i32,
    "i64": _wide("<i8"),
    "f16": lambda b, offset: _as_f16(_u16(b, offset)),
    "f32": lambda b, offset: _as_f32(_i32(b, offset)),
    "f64": _wide("<f8"),
    "as_f16": _as_f16,
    "as_f32": _as_f32,
    "float32": np.float32,
    "where": np.where,
    "table": lambda b, i: b.table[i].astype(np.int32),
}


@cache
def _bound(row):
    """The decode function with its loaders and helpers bound to this runtime, and the format's table."""
    scope = dict(RUNTIME)
    for helper in helpers(row.decode):
        scope[helper.__name__] = FunctionType(helper.__code__, scope)
    return FunctionType(row.decode.__code__, scope), np.frombuffer(table_bytes(row), np.int8)


@cache
def table_bytes(spec):
    """The look-up table of a format as bytes of int8, b"" where it has none: what `table(b, i)` reads in kernels."""
    return formats.get(spec).table_bytes()


def dequantize(data, spec):
    """Decode blocks: uint8 (..., n * nbytes) -> float32 (..., n * elements). `spec` is a format, its name or GGML id.

    Equal bit for bit to ggml's `dequantize_row_*` (a NaN's sign and payload aside). Raises ShapeError for a last axis
    that is not whole blocks. Plain integers and f64 are rounded to float32.

    >>> dequantize(np.array([0, 0x40, *range(1, 33)], np.uint8), "q8_0")[:4]
    array([2., 4., 6., 8.], dtype=float32)
    """
    row = formats.get(spec)
    data = np.asarray(data)
    if data.dtype != np.uint8 or data.ndim == 0 or data.shape[-1] % row.nbytes:
        got, expected = f"{data.dtype} {data.shape}", f"uint8 with a last axis of a multiple of {row.nbytes} bytes"
        raise ShapeError(f"dequantize {row.name}", got, expected, "pass whole rows of the file's bytes")
    blocks = data.reshape(-1, row.nbytes) if data.size else np.empty((0, row.nbytes), np.uint8)
    out = np.empty((len(blocks), row.elements), np.float32)
    decode, table = _bound(row)
    j, step = np.arange(row.elements, dtype=np.int32), max(1, CHUNK // row.elements)
    with np.errstate(all="ignore"):
        for at in range(0, len(blocks), step):
            out[at : at + step] = decode(_Blocks(blocks[at : at + step], table), j)
    return out.reshape(*data.shape[:-1], data.shape[-1] // row.nbytes * row.elements)
