"""Rotary position embedding, its tables, and writing rows into a KV cache.

The position of row t is start + t; start is read from memory when the kernel runs (word STARTP of the argument block,
the address of an i64) so that a recorded list can be replayed at another position; with address 0 it is the next word.
"""

from .lanes import MEMORY, inline
from .simd import (
    arg,
    ld_i64,
    ldi_f32,
    ldi_f64,
    shuffle,
    splat_f32x16,
    sti_f32,
    vadd,
    vmul,
    vsub,
)

_part = MEMORY["f32"].part
_even, _odd = shuffle(range(0, 32, 2)), shuffle(range(1, 32, 2))
_zip_low = shuffle([i // 2 + 16 * (i & 1) for i in range(16)])
_zip_high = shuffle([8 + i // 2 + 16 * (i & 1) for i in range(16)])


@inline
def position(a, word):
    """The i64 at the address in this word of the block, or the next word if that address is 0."""
    return ld_i64(arg(a, word)) if arg(a, word) != 0 else arg(a, word + 1)


# ---- tables ---------------------------------------------------------------------------------------------------------

# pi/2 in two parts: multiples of the first up to 2**20 are exact in float64
_HALF_PI_HIGH, _HALF_PI_LOW, _TWO_OVER_PI = 1.57079632673412561417, 6.07710050650619224932e-11, 0.63661977236758134308
_MAGIC = 6755399441055744.0  # 1.5 * 2**52: adding it rounds to an integer


@inline
def _sine(r):
    """sin r for |r| <= pi/4: Taylor, error 1e-12"""
    z = r * r
    p = 1 / 362880 + z * (-1 / 39916800 + z * (1 / 6227020800))
    return r + r * z * (-1 / 6 + z * (1 / 120 + z * (-1 / 5040 + z * p)))


@inline
def _cosine(r):
    z = r * r
    p = -1 / 3628800 + z * (1 / 479001600)
    return 1 + z * (-0.5 + z * (1 / 24 + z * (-1 / 720 + z * (1 / 40320 + z * p))))


def _tables(dtype):
    """cos and sin of position * inverse frequency, computed in float64.

    args: inverse frequencies, cos (f32), sin (f32), positions, frequencies
    """
    frequency = {"f32": ldi_f32, "f64": ldi_f64}[dtype]

    def tables(a, tid, nth):
        source, cos, sin, n, half = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4)
        for i in range(n * tid // nth, n * (tid + 1) // nth):
            to_cos, to_sin, p = cos + 4 * i * half, sin + 4 * i * half, float(i)
            for j in range(half):
                angle = p * float(frequency(source, j))
                k = (angle * _TWO_OVER_PI + _MAGIC) - _MAGIC
                r = (angle - k * _HALF_PI_HIGH) - k * _HALF_PI_LOW
                s, c, quarter = _sine(r), _cosine(r), int(k) & 3
                x, y = (s, c) if quarter & 1 else (c, s)
                sti_f32(to_cos, j, x * (1 - ((quarter + 1) & 2)))
                sti_f32(to_sin, j, y * (1 - (quarter & 2)))

    return tables


# ---- rotation -------------------------------------------------------------------------------------------------------


@inline
def _angles(cos, sin, j, n, spoil):
    return vadd(_part(cos + 4 * j, n), spoil), vadd(_part(sin + 4 * j, n), spoil)


def _halves(out):
    """A row whose elements i and i + half turn together (GPT-NeoX, Hugging Face)."""
    size, put = MEMORY[out].size, MEMORY[out].put

    def rotate(x, to, cos, sin, half, spoil):
        for j in range(0, half, 16):
            n = half - j
            c, s = _angles(cos, sin, j, n, spoil)
            u, v = _part(x + 4 * j, n), _part(x + 4 * (half + j), n)
            put(to + size * j, vsub(vmul(u, c), vmul(v, s)), n)
            put(to + size * (half + j), vadd(vmul(v, c), vmul(u, s)), n)

    return inline(rotate)


def _pairs(out):
    """A row whose elements 2 i and 2 i + 1 turn together (GPT-J, the original Llama, GGUF's normal layout)."""
    size, put = MEMORY[out].size, MEMORY[out].put

    def rotate(x, to, cos, sin, half, spoil):
        for j in range(0, half, 16):
            n = half - j
            c, s = _angles(cos, sin, j, n, spoil)
            low, high = _part(x + 8 * j, 2 * n), _part(x + 8 * j + 64, 2 * n - 16)
            u, v = _even(low, high), _odd(low, high)
            p, q = vsub(vmul(u, c), vmul(v, s)), vadd(vmul(v, c), vmul(u, s))
            put(to + 2 * size * j, _zip_low(p, q), 2 * n)
            put(to + 2 * size * (j + 8), _zip_high(p, q), 2 * n - 16)

    return inline(rotate)


def _rope(layout, out):
    """Rows (t, head) rotated by their position's angles; dims behind 2 * half are copied.

    A position outside the tables gives NaN; a row outside the output is not written.
    args: x (f32), x stride of t, of heads, cos, sin (f32), positions in them, half, out, its stride of t, of heads,
    its rows, T, heads, D, address of start or 0, start, 1 if the output's row is start + t (0: t). Strides in bytes.
    """
    size, put = MEMORY[out].size, MEMORY[out].put
    rotate = _pairs(out) if layout == "pairs" else _halves(out)

    def rope(a, tid, nth):
        limit, half, heads, width = arg(a, 5), arg(a, 6), arg(a, 12), arg(a, 13)
        start, n = position(a, 14), arg(a, 11) * heads
        for i in range(n * tid // nth, n * (tid + 1) // nth):
            t, h = i // heads, i % heads
            row = t + start if arg(a, 16) else t
            if 0 <= row < arg(a, 10):
                x = arg(a, 0) + t * arg(a, 1) + h * arg(a, 2)
                to = arg(a, 7) + row * arg(a, 8) + h * arg(a, 9)
                known = 0 <= t + start < limit
                at = 4 * half * (t + start if known else 0)
                rotate(x, to, arg(a, 3) + at, arg(a, 4) + at, half, splat_f32x16(0.0 if known else float("nan")))
                for j in range(2 * half, width, 16):
                    put(to + size * j, _part(x + 4 * j, width - j), width - j)

    return rope


def _append(out):
    """Rows (t, head) copied to row start + t of the output; a row outside it is not written.

    args: x (f32), x stride of t, of heads, out, its stride of t, of heads, its rows, T, heads, D, address of start
    or 0, start. Strides in bytes.
    """
    size, put = MEMORY[out].size, MEMORY[out].put

    def append(a, tid, nth):
        heads, width = arg(a, 8), arg(a, 9)
        start, n = position(a, 10), arg(a, 7) * heads
        for i in range(n * tid // nth, n * (tid + 1) // nth):
            t, h = i // heads, i % heads
            if 0 <= t + start < arg(a, 6):
                x = arg(a, 0) + t * arg(a, 1) + h * arg(a, 2)
                to = arg(a, 3) + (t + start) * arg(a, 4) + h * arg(a, 5)
                for j in range(0, width, 16):
                    put(to + size * j, _part(x + 4 * j, width - j), width - j)

    return append


def build(name, *params, source=None):
    """tables (f32 or f64), rope (halves or pairs, output dtype), append (output dtype)."""
    if name == "tables" and params in (("f32",), ("f64",)):
        return _tables(*params)
    if name == "rope" and len(params) == 2 and params[0] in ("halves", "pairs") and params[1] in MEMORY:
        return _rope(*params)
    if name == "append" and len(params) == 1 and params[0] in MEMORY:
        return _append(*params)
    return None
