# ruff: noqa: F821 - the names a decode function calls are bound by the runtime that runs it
"""One row per GGML tensor type: how many elements and bytes a block has, and how an element is decoded.

A decode function `(b, j) -> value` gives element `j` of the block `b` as a float32. It is the only definition of a
format: NumPy runs it as the reference (`decode.py`), and every kernel package compiles its text (`source.py`). So it is
written in a small subset of Python that NumPy, Numba, Triton and Metal understand alike:

- arithmetic, comparisons and bit operations; plain assignments, one `return`, calls of the helpers below;
- integers are signed with at least 32 bits, `>>` is arithmetic, `//` and `%` only see values that are not negative;
- an integer becomes a float through `float32(x)` alone, literals included, so that no language computes in float64;
- `u8 i8 u16 i16 i32 f16 f32 (b, offset)` read the block at a byte offset (little-endian, any alignment); `f64` and
  `i64` too, but give the nearest float32;
- `as_f16(bits)` and `as_f32(bits)` reinterpret the low bits of an integer as a float, and widen it to float32;
- `table(b, i)` is entry `i` of the format's look-up table (int8); `where(c, x, y)` evaluates both `x` and `y`.

Every offset lies inside the block for every `j`, also in the branch of a `where` that is not taken. The order of
operations is that of ggml's `dequantize_row_*`; results are equal to its bit for bit.

>>> get("q4_1"), get(12), FORMATS["q6_k"].row_bytes(512)
(q4_1, q4_k, 420)
"""

from tensorlib.errors import DTypeError, ShapeError


class Format:
    """A row: `name`, `ggml_id`, `elements` and `nbytes` per block, `decode`, `table` (None, tuple or gguf class)."""

    __slots__ = ("decode", "elements", "ggml_id", "name", "nbytes", "table")

    def __init__(self, name, ggml_id, elements, nbytes, decode, table=None):
        self.name, self.ggml_id, self.elements, self.nbytes = name, ggml_id, elements, nbytes
        self.decode, self.table = decode, table

    def __repr__(self):
        return self.name

    def __reduce__(self):
        return get, (self.name,)

    @property
    def quantized(self):
        """False for the plain types (f32, i16, ...), whose blocks hold one element."""
        return self.elements > 1

    def row_bytes(self, n):
        """Bytes of `n` consecutive elements. Raises ShapeError unless they fill whole blocks."""
        blocks, rest = divmod(n, self.elements)
        if rest or n < 0:
            fix = "store this tensor in a format whose block divides its last dim"
            raise ShapeError(f"row of {self.name}", f"{n} elements", f"a multiple of {self.elements}", fix)
        return blocks * self.nbytes

    def table_bytes(self):
        """The look-up table as int8 bytes (b"" where there is none). The grids of the IQ formats come from `gguf`."""
        if isinstance(self.table, str):
            return _gguf_grid(self.table)
        return bytes(v & 255 for v in self.table or ())


FORMATS, BY_ID = {}, {}


def get(spec):
    """The row for a Format, a name (any case) or a GGML id. Raises DTypeError where there is none."""
    if isinstance(spec, Format):
        return spec
    found = FORMATS.get(spec.lower()) or _private(spec) if isinstance(spec, str) else BY_ID.get(spec)
    if found is None:
        names = ", ".join(f"{f.name} ({f.ggml_id})" for f in BY_ID.values())
        raise DTypeError("format", repr(spec), f"one of {names}", "convert the tensor to one of these")
    return found


def _private(name):
    from tensorlib.quant.private import PRIVATE

    return PRIVATE.get(name.lower())


def _gguf_grid(name):
    from gguf import quants

    grid = getattr(quants, name)
    grid.init_grid()
    return grid.grid.astype("int8").tobytes()


def row(ggml_id, elements, nbytes, table=None):
    """Decorator: the decode function's name, less a trailing underscore, names the format."""

    def add(decode):
        name = decode.__name__.rstrip("_")
        FORMATS[name] = BY_ID[ggml_id] = Format(name, ggml_id, elements, nbytes, decode, table)
        return decode

    return add


# ---- plain types -----------------------------------------------------------------------------------------------------


@row(0, 1, 4)
def f32_(b, j):
    return f32(b, 0)


@row(1, 1, 2)
def f16_(b, j):
    return f16(b, 0)


@row(24, 1, 1)
def i8_(b, j):
    return float32(i8(b, 0))


@row(25, 1, 2)
def i16_(b, j):
    return float32(i16(b, 0))


@row(26, 1, 4)
def i32_(b, j):
    return float32(i32(b, 0))


@row(27, 1, 8)
def i64_(b, j):
    return i64(b, 0)


@row(28, 1, 8)
def f64_(b, j):
    return f64(b, 0)


@row(30, 1, 2)
def bf16_(b, j):
    return as_f32(u16(b, 0) << 16)


# ---- blocks of 32: a scale, perhaps a minimum, and whole numbers -----------------------------------------------------


@row(2, 32, 18)
def q4_0(b, j):
    """d: f16, qs: 16 bytes, low nibbles first."""
    q = u8(b, 2 + j % 16) >> j // 16 * 4 & 15
    return f16(b, 0) * float32(q - 8)


@row(3, 32, 20)
def q4_1(b, j):
    """d: f16, m: f16, qs: 16 bytes."""
    q = u8(b, 4 + j % 16) >> j // 16 * 4 & 15
    return f16(b, 0) * float32(q) + f16(b, 2)


@row(6, 32, 22)
def q5_0(b, j):
    """d: f16, qh: 32 fifth bits, qs: 16 bytes."""
    q = u8(b, 6 + j % 16) >> j // 16 * 4 & 15 | (i32(b, 2) >> j & 1) << 4
    return f16(b, 0) * float32(q - 16)


@row(7, 32, 24)
def q5_1(b, j):
    """d: f16, m: f16, qh: 32 fifth bits, qs: 16 bytes."""
    q = u8(b, 8 + j % 16) >> j // 16 * 4 & 15 | (i32(b, 4) >> j & 1) << 4
    return f16(b, 0) * float32(q) + f16(b, 2)


@row(8, 32, 34)
def q8_0(b, j):
    """d: f16, qs: i8[32]."""
    return f16(b, 0) * float32(i8(b, 2 + j))


@row(9, 32, 36)
def q8_1(b, j):
    """d: f16, s: f16 (d times the sum of qs, for dot products), qs: i8[32]."""
    return f16(b, 0) * float32(i8(b, 4 + j))


@row(41, 128, 18)
def q1_0(b, j):
    """d: f16, qs: 128 signs."""
    return f16(b, 0) * float32((u8(b, 2 + j // 8) >> j % 8 & 1) * 2 - 1)


@row(42, 64, 18)
def q2_0(b, j):
    """d: f16, qs: 64 numbers of 2 bits."""
    return f16(b, 0) * float32((u8(b, 2 + j // 4) >> j % 4 * 2 & 3) - 1)


# ---- K quants: blocks of 256 with a quantised scale per 16 or 32 -----------------------------------------------------


def crumb(b, offset, j):
    """Element j of 2-bit numbers at `offset`: 32 bytes hold 128 of them, element j of each quarter in one byte."""
    return u8(b, offset + j // 128 * 32 + j % 32) >> j // 32 % 4 * 2 & 3


def k_scale(b, g):
    """Scale g of the eight 6-bit (scale, minimum) pairs that q4_k and q5_k pack in 12 bytes at offset 4."""
    return where(g < 4, u8(b, 4 + g) & 63, u8(b, 8 + g) & 15 | u8(b, g % 4 + 4) >> 6 << 4)


def k_minimum(b, g):
    """Minimum g of the same eight pairs."""
    return where(g < 4, u8(b, 8 + g) & 63, u8(b, 8 + g) >> 4 | u8(b, g % 4 + 8) >> 6 << 4)


@row(10, 256, 84)
def q2_k(b, j):
    """scales: 16 bytes (scale, minimum), qs: 2 bits each, d: f16, dmin: f16."""
    s = u8(b, j // 16)
    return f16(b, 80) * float32(s & 15) * float32(crumb(b, 16, j)) - f16(b, 82) * float32(s >> 4)


@row(11, 256, 110)
def q3_k(b, j):
    """hmask: 256 inverted third bits, qs: 2 bits each, scales: 16 of 6 bits, d: f16."""
    g = j // 16
    s = u8(b, 96 + g % 8) >> g // 8 * 4 & 15 | (u8(b, 104 + g % 4) >> g // 4 * 2 & 3) << 4
    q = crumb(b, 32, j) + (u8(b, j % 32) >> j // 32 & 1) * 4
    return f16(b, 108) * float32(s - 32) * float32(q - 4)


@row(12, 256, 144)
def q4_k(b, j):
    """d: f16, dmin: f16, scales: 8 pairs of 6 bits, qs: 128 bytes."""
    g = j // 32
    q = u8(b, 16 + j // 64 * 32 + j % 32) >> g % 2 * 4 & 15
    return f16(b, 0) * float32(k_scale(b, g)) * float32(q) - f16(b, 2) * float32(k_minimum(b, g))


@row(13, 256, 176)
def q5_k(b, j):
    """d: f16, dmin: f16, scales: 8 pairs of 6 bits, qh: 256 fifth bits, qs: 128 bytes."""
    g = j // 32
    q = u8(b, 48 + j // 64 * 32 + j % 32) >> g % 2 * 4 & 15 | (u8(b, 16 + j % 32) >> g & 1) << 4
    return f16(b, 0) * float32(k_scale(b, g)) * float32(q) - f16(b, 2) * float32(k_minimum(b, g))


@row(14, 256, 210)
def q6_k(b, j):
    """ql: 128 bytes of low nibbles, qh: 2 bits each, scales: i8[16], d: f16."""
    q = u8(b, j // 128 * 64 + j % 64) >> j // 64 % 2 * 4 & 15 | crumb(b, 128, j) << 4
    return f16(b, 208) * float32(i8(b, 192 + j // 16)) * float32(q - 32)


@row(15, 256, 292)
def q8_k(b, j):
    """d: f32, qs: i8[256], then sums of 16 for dot products."""
    return f32(b, 0) * float32(i8(b, 4 + j))


# ---- IQ: elements in groups of 4 or 8, looked up in a grid -----------------------------------------------------------

KVALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def sign(s, k):
    """Bit k of eight signs of which s holds seven: the last one makes the number of ones even."""
    p = s ^ s >> 4
    p = p ^ p >> 2
    return where(k == 7, p ^ p >> 1, s >> k) & 1


def signed(negative, x):
    """-x or x in two's complement. (`where` makes compilers branch, and signs cannot be predicted: 8 times slower.)"""
    return float32((x ^ -negative) + negative)


@row(16, 256, 66, "IQ2_XXS")
def iq2_xxs(b, j):
    """d: f16, then per 32: 4 grid indices, 4 x 7 signs and a scale of 4 bits."""
    s = i32(b, 6 + j // 32 * 8)
    scale = f16(b, 0) * (float32(0.5) + float32(s >> 28 & 15)) * float32(0.25)
    g = table(b, u8(b, 2 + j // 32 * 8 + j // 8 % 4) * 8 + j % 8)
    return scale * signed(sign(s >> j // 8 % 4 * 7 & 127, j % 8), g)


@row(17, 256, 74, "IQ2_XS")
def iq2_xs(b, j):
    """d: f16, per 8: grid index of 9 bits and 7 signs, scales: 16 of 4 bits."""
    q = u16(b, 2 + j // 8 * 2)
    scale = f16(b, 0) * (float32(0.5) + float32(u8(b, 66 + j // 32) >> j // 16 % 2 * 4 & 15)) * float32(0.25)
    return scale * signed(sign(q >> 9, j % 8), table(b, (q & 511) * 8 + j % 8))


@row(22, 256, 82, "IQ2_S")
def iq2_s(b, j):
    """d: f16, qs: u8[32], signs: u8[32], qh: 32 of 2 bits, scales: 16 of 4 bits."""
    q = u8(b, 2 + j // 8) | (u8(b, 66 + j // 32) >> j // 8 % 4 * 2 & 3) << 8
    scale = f16(b, 0) * (float32(0.5) + float32(u8(b, 74 + j // 32) >> j // 16 % 2 * 4 & 15)) * float32(0.25)
    return scale * signed(u8(b, 34 + j // 8) >> j % 8 & 1, table(b, q * 8 + j % 8))


@row(18, 256, 98, "IQ3_XXS")
def iq3_xxs(b, j):
    """d: f16, qs: u8[64], then per 32: 4 x 7 signs and a scale of 4 bits."""
    s = i32(b, 66 + j // 32 * 4)
    scale = f16(b, 0) * (float32(0.5) + float32(s >> 28 & 15)) * float32(0.5)
    g = table(b, u8(b, 2 + j // 4) * 4 + j % 4)
    return scale * signed(sign(s >> j // 8 % 4 * 7 & 127, j % 8), g)


@row(21, 256, 110, "IQ3_S")
def iq3_s(b, j):
    """d: f16, qs: u8[64], qh: 64 ninth bits, signs: u8[32], scales: 8 of 4 bits."""
    q = u8(b, 2 + j // 4) | (u8(b, 66 + j // 32) >> j // 4 % 8 & 1) << 8
    scale = f16(b, 0) * float32(1 + 2 * (u8(b, 106 + j // 64) >> j // 32 % 2 * 4 & 15))
    return scale * signed(u8(b, 74 + j // 8) >> j % 8 & 1, table(b, q * 4 + j % 4))


@row(19, 256, 50, "IQ1_S")
def iq1_s(b, j):
    """d: f16, qs: u8[32], per 32: 4 x 3 bits for qs, a scale of 3 bits, the sign of the shift."""
    h = u16(b, 34 + j // 32 * 2)
    q = u8(b, 2 + j // 8) | (h >> j // 8 % 4 * 3 & 7) << 8
    shift = where(h >> 15, float32(-0.125), float32(0.125))
    return f16(b, 0) * float32(2 * (h >> 12 & 7) + 1) * (float32(table(b, q * 8 + j % 8)) + shift)


@row(29, 256, 56, "IQ1_M")
def iq1_m(b, j):
    """qs: u8[32], per 8: 3 bits for qs and the sign of the shift, scales: 16 of 3 bits with d in their spare bits."""
    d = u16(b, 48) >> 12 | u16(b, 50) >> 12 << 4 | u16(b, 52) >> 12 << 8 | u16(b, 54) >> 12 << 12
    s = u16(b, 48 + j // 64 * 2) >> j // 16 % 4 * 3 & 7
    h = u8(b, 32 + j // 16) >> j // 8 % 2 * 4 & 15
    g = float32(table(b, (u8(b, j // 8) | (h & 7) << 8) * 8 + j % 8))
    return as_f16(d) * float32(2 * s + 1) * (g + where(h >> 3, float32(-0.125), float32(0.125)))


@row(20, 32, 18, KVALUES)
def iq4_nl(b, j):
    """d: f16, qs: 16 bytes of indices."""
    return f16(b, 0) * float32(table(b, u8(b, 2 + j % 16) >> j // 16 * 4 & 15))


@row(23, 256, 136, KVALUES)
def iq4_xs(b, j):
    """d: f16, scales: 8 of 6 bits (two high bits at 2, low nibbles at 4), qs: 128 bytes of indices."""
    g = j // 32
    s = u8(b, 4 + g // 2) >> g % 2 * 4 & 15 | (u16(b, 2) >> g * 2 & 3) << 4
    q = table(b, u8(b, 8 + g * 16 + j % 16) >> j // 16 % 2 * 4 & 15)
    return f16(b, 0) * float32(s - 32) * float32(q)


# ---- ternary, and the 4-bit floats -----------------------------------------------------------------------------------

E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # doubled, so that they are whole


@row(34, 256, 54, (1, 3, 9, 27, 81))
def tq1_0(b, j):
    """Bytes of 5 (the last 4 bytes: of 4) digits in base 3, as fractions of 256: 32 x 5, 16 x 5, 4 x 4; d: f16."""
    offset = where(j < 160, j % 32, where(j < 240, 32 + j % 16, 48 + j % 4))
    digit = where(j < 160, j // 32, where(j < 240, j // 16 % 5, j // 4 % 4))
    return f16(b, 52) * float32(((u8(b, offset) * table(b, digit % 5) & 255) * 3 >> 8) - 1)


@row(35, 256, 66)
def tq2_0(b, j):
    """qs: 2 bits each, d: f16."""
    return f16(b, 64) * float32(crumb(b, 0, j) - 1)


@row(39, 32, 17, E2M1)
def mxfp4(b, j):
    """e: the scale's exponent (E8M0), qs: 16 bytes of E2M1."""
    e = u8(b, 0)
    scale = as_f32(where(e < 2, 0x200000 << e % 2, e - 1 << 23))
    return scale * float32(table(b, u8(b, 1 + j % 16) >> j // 16 * 4 & 15))


@row(40, 64, 36, E2M1)
def nvfp4(b, j):
    """scales: 4 of UE4M3, qs: per 16 elements 8 bytes of E2M1."""
    s = u8(b, j // 16)
    e, m = s >> 3 & 15, s & 7
    normal = as_f32(e + 119 << 23 | m << 20)
    scale = where(s == 127, float32(0), where(e == 0, float32(m) * float32(0.0009765625), normal))
    return scale * float32(table(b, u8(b, 4 + j // 16 * 8 + j % 8) >> j // 8 % 2 * 4 & 15))
