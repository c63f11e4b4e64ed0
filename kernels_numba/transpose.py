"""16 vectors of 16 words, transposed by unpacks within 128 bits and moves of 128-bit lanes: the shuffles that cost one
cycle.
"""

import functools

from numba import njit, types

from . import simd
from .simd import _I64, _const, _make, _pointer, _shuffle, ld_i32x16


def quads(*inside):
    """Shuffle index: the same picks (0 to 3: first vector, 4 to 7: second) within every four words."""
    return [4 * q + i if i < 4 else 16 + 4 * q + i - 4 for q in range(4) for i in inside]


def lanes(*fours):
    """Shuffle index: groups of four words (0 to 3 of the first vector, 4 to 7 of the second)."""
    return [4 * q + i for q in fours for i in range(4)]


UNPACK_WORDS = quads(0, 4, 1, 5), quads(2, 6, 3, 7)
UNPACK_PAIRS = quads(0, 1, 4, 5), quads(2, 3, 6, 7)
EVEN_ODD_FOURS = lanes(0, 2, 4, 6), lanes(1, 3, 5, 7)
_STEPS = ((UNPACK_WORDS, 1), (UNPACK_PAIRS, 2), (EVEN_ODD_FOURS, 4), (EVEN_ODD_FOURS, 8))


def transpose16(b, rows):
    """The columns, in order, of 16 rows (LLVM vectors of 16)."""
    x = list(rows)
    for (low, high), gap in _STEPS:
        y = [None] * 16
        for i in range(16):
            if not i & gap:
                y[i], y[i | gap] = _shuffle(b, x[i], x[i | gap], low), _shuffle(b, x[i], x[i | gap], high)
        x = y
    return [x[(c & 12) | ((c & 1) << 1) | ((c >> 1) & 1)] for c in range(16)]


def _store_transposed(b, t, address, step, *rows):
    """column i of the 16 rows goes to address + i * step, in ascending order"""
    for i, column in enumerate(transpose16(b, rows)):
        place = b.add(address, b.mul(step, _const(_I64, i)))
        b.store(column, _pointer(b, place, column.type)).align = 1


store_transposed = _make("store_transposed", lambda *a: types.void, _store_transposed, 18)


# target[i, j] = source[j, i] for i < ni, j < nj; steps are in bytes, elements adjacent along i in source, j in target
TURN = """
def turn(source, step, target, row, ni, nj):
    for i in range(ni):
        for j in range(nj):
            sti(target + i * row, j, ldi(source + j * step, i))
"""
TURN_WORDS = """
def turn_words(source, step, target, row, ni, nj):
    whole_i, whole_j = ni & -16, nj & -16
    for j in range(0, whole_j, 16):
        for i in range(0, whole_i, 16):
            x = source + j * step + 4 * i
            store_transposed(target + i * row + 4 * j, row, {rows})
        turn(source + j * step + 4 * whole_i, step, target + whole_i * row + 4 * j, row, ni - whole_i, 16)
    turn(source + whole_j * step, step, target + 4 * whole_j, row, ni, nj - whole_j)
""".format(rows=", ".join(f"ld_i32x16(x + {k} * step)" for k in range(16)))


@functools.cache
def turner(width):
    """f(source, step, target, row, ni, nj): a matrix of elements of `width` bytes transposed (TURN)."""
    scope = {"sti": getattr(simd, f"sti_u{8 * width}"), "ldi": getattr(simd, f"ldi_u{8 * width}")}
    plain = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    exec(TURN, scope)
    scope["turn"] = njit(**plain)(scope["turn"])
    if width != 4:
        return scope["turn"]
    scope |= {"ld_i32x16": ld_i32x16, "store_transposed": store_transposed}
    exec(TURN_WORDS, scope)
    return njit(**plain)(scope["turn_words"])
