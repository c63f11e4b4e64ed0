# ruff: noqa: F821 - the names a decode function calls are bound by the runtime that runs it
"""Rows of formats that no file has: what `repack.py` makes of other libraries' quantised checkpoints.

Decode functions as in `formats.py`; blocks of `_32`, `_64` or `_128` elements, which carry their scale, and zero,
without a loss: 32 where a row's size or the file's own blocks leave no more. These rows have no GGML id, and a GGUF
file cannot hold them.

    a8_32 ... a1_32     (q - zero) * scale in whole numbers of 8, 4, 3, 2 or 1 bits; scale and zero are f16
    a8_32w ... a1_32w   the same, where scale or zero are no f16: they are f32
    nf4_64 fp4_64       bitsandbytes' tables of 16 floats times an absmax in f32; codes as its files have them
    nf4_32 fp4_32       the same
    bnb8                LLM.int8's q * scb / 127 (times the f32 nearest to 1 / 127, as bitsandbytes does), scb in f32
    f8_128 f8_32        float8 e4m3 times a scale in f32

>>> from tensorlib.quant import formats
>>> formats.get("a4_32"), formats.get("nf4_64").row_bytes(64), formats.get("a4_32").ggml_id
(a4_32, 36, None)
"""

from struct import pack

from tensorlib.quant.formats import Format

PRIVATE = {}
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FP4 = tuple(s * x / 12 for s in (1, -1) for x in (0, 0.0625, 8, 12, 4, 6, 2, 3))


def row(nbytes, floats=(), elements=32):
    """Decorator: as `formats.row`; the look-up table holds the bytes of `floats`."""

    def add(decode):
        name = decode.__name__
        PRIVATE[name] = Format(name, None, elements, nbytes, decode, tuple(pack(f"<{len(floats)}f", *floats)) or None)
        return decode

    return add


# ---- where the bits of element j of a block are, behind `at` bytes ---------------------------------------------------


def code1(b, at, j):
    return u8(b, at + j // 8) >> j % 8 & 1


def code2(b, at, j):
    return u8(b, at + j % 8) >> j // 8 * 2 & 3


def code3(b, at, j):
    return code2(b, at, j) | code1(b, at + 8, j) << 2


def code4(b, at, j):
    return u8(b, at + j % 16) >> j // 16 * 4 & 15


# ---- affine: scale and zero in f16, then in f32 ----------------------------------------------------------------------


@row(36)
def a8_32(b, j):
    return (float32(u8(b, 4 + j)) - f16(b, 2)) * f16(b, 0)


@row(20)
def a4_32(b, j):
    return (float32(code4(b, 4, j)) - f16(b, 2)) * f16(b, 0)


@row(16)
def a3_32(b, j):
    return (float32(code3(b, 4, j)) - f16(b, 2)) * f16(b, 0)


@row(12)
def a2_32(b, j):
    return (float32(code2(b, 4, j)) - f16(b, 2)) * f16(b, 0)


@row(8)
def a1_32(b, j):
    return (float32(code1(b, 4, j)) - f16(b, 2)) * f16(b, 0)


@row(40)
def a8_32w(b, j):
    return (float32(u8(b, 8 + j)) - f32(b, 4)) * f32(b, 0)


@row(24)
def a4_32w(b, j):
    return (float32(code4(b, 8, j)) - f32(b, 4)) * f32(b, 0)


@row(20)
def a3_32w(b, j):
    return (float32(code3(b, 8, j)) - f32(b, 4)) * f32(b, 0)


@row(16)
def a2_32w(b, j):
    return (float32(code2(b, 8, j)) - f32(b, 4)) * f32(b, 0)


@row(12)
def a1_32w(b, j):
    return (float32(code1(b, 8, j)) - f32(b, 4)) * f32(b, 0)


# ---- bitsandbytes ----------------------------------------------------------------------------------------------------


def entry(b, i):
    """Entry i of a table of f32."""
    low = table(b, 4 * i) & 255 | (table(b, 4 * i + 1) & 255) << 8
    return as_f32(low | (table(b, 4 * i + 2) & 255) << 16 | table(b, 4 * i + 3) << 24)


def nibble(b, j):
    """Element j behind a scale in f32, high nibbles first."""
    return u8(b, 4 + j // 2) >> 4 - j % 2 * 4 & 15


@row(36, NF4, 64)
def nf4_64(b, j):
    return entry(b, nibble(b, j)) * f32(b, 0)


@row(20, NF4)
def nf4_32(b, j):
    return entry(b, nibble(b, j)) * f32(b, 0)


@row(36, FP4, 64)
def fp4_64(b, j):
    return entry(b, nibble(b, j)) * f32(b, 0)


@row(20, FP4)
def fp4_32(b, j):
    return entry(b, nibble(b, j)) * f32(b, 0)


@row(36)
def bnb8(b, j):
    """scb: f32, qs: i8[32]."""
    return float32(i8(b, 4 + j)) * f32(b, 0) * float32(0.007874015718698502)


# ---- float8 ----------------------------------------------------------------------------------------------------------


def e4m3(q):
    e, m = q >> 3 & 15, q & 7
    normal = as_f32(where(q & 127 == 127, 0x7FC00000, e + 120 << 23 | m << 20))
    size = where(e == 0, float32(m) * float32(0.001953125), normal)
    return float32(1 - (q >> 7) * 2) * size


@row(132, (), 128)
def f8_128(b, j):
    """scale: f32, qs: e4m3[128]."""
    return e4m3(u8(b, 4 + j)) * f32(b, 0)


@row(36)
def f8_32(b, j):
    """scale: f32, qs: e4m3[32]."""
    return e4m3(u8(b, 4 + j)) * f32(b, 0)
