"""Tiles of the matrix products by architecture: what fits its shared memory and registers without spilling.

From published winners (Triton's tutorials and gluon examples, gemlite's tuned tables) and from what the compiler makes
of them: `variants` of `matmul.py` compiles every row. From the largest tile to the smallest; the last is for decoding.
"""

from collections import namedtuple

from .launch import pick

Tile = namedtuple("Tile", "m n k warps stages")
GROUP = 8  # tiles of rows that share their columns of B in the L2
MIN_DEPTH = 512  # elements of K per part of a split product, at least
MAX_PARTS = 32

_AMPERE = (Tile(64, 128, 32, 4, 4), Tile(64, 64, 64, 4, 4), Tile(32, 64, 64, 4, 4), Tile(16, 64, 128, 4, 4))
HALF = {
    75: (Tile(128, 64, 16, 8, 1), Tile(64, 64, 16, 4, 1), Tile(32, 64, 16, 4, 1), Tile(16, 32, 32, 4, 1)),
    80: (Tile(128, 256, 64, 8, 3), Tile(128, 128, 64, 8, 3), *_AMPERE),
    86: (Tile(128, 128, 32, 4, 3), *_AMPERE),
    89: (Tile(128, 128, 64, 8, 3), *_AMPERE),
    90: (Tile(128, 256, 64, 8, 3), Tile(128, 128, 64, 4, 4), Tile(64, 128, 64, 4, 4), *_AMPERE[1:]),
    100: (Tile(128, 256, 64, 8, 3), Tile(128, 128, 64, 4, 4), Tile(64, 128, 64, 4, 4), *_AMPERE[1:]),
    120: (Tile(128, 128, 64, 8, 3), *_AMPERE),
    "gfx942": (Tile(128, 128, 64, 4, 2), Tile(64, 64, 64, 4, 2), Tile(32, 64, 64, 4, 2), Tile(16, 64, 128, 4, 2)),
}
FULL = 4  # quarters of the multiprocessors that persistent programs must keep busy, at least
PERSISTENT = {
    90: {"half": Tile(128, 256, 64, 8, 3), "tf32": Tile(128, 256, 32, 8, 3)},
    100: {"half": Tile(128, 256, 64, 8, 3)},
}
_BYTE = (Tile(64, 128, 64, 4, 4), Tile(64, 64, 64, 4, 4), Tile(16, 64, 128, 4, 4))
BYTE = {
    75: HALF[75],
    80: (Tile(128, 128, 64, 8, 3), *_BYTE),
    90: (Tile(128, 256, 128, 8, 3), Tile(128, 128, 128, 4, 4), *_BYTE),
    120: (Tile(128, 128, 64, 8, 3), *_BYTE),
    "gfx942": HALF["gfx942"],
}
NARROW = Tile(64, 64, 32, 4, 2)
FLOAT8 = {  # half the size: on sm_90 a second set of sums takes over every BLOCK_K products, which are added in 14 bits
    89: BYTE[80],
    90: (Tile(128, 128, 128, 8, 3), Tile(64, 128, 128, 4, 3), Tile(64, 64, 128, 4, 4), Tile(16, 64, 128, 4, 4)),
    120: BYTE[120],
}
FMA = {  # f32 without tensor cores
    75: HALF[75],
    80: (Tile(128, 64, 16, 8, 3), Tile(64, 64, 16, 4, 3), Tile(32, 64, 16, 4, 3), Tile(16, 32, 32, 4, 3)),
    120: (Tile(128, 64, 16, 8, 3), Tile(64, 64, 32, 4, 2), Tile(32, 64, 16, 4, 3), Tile(16, 32, 32, 4, 3)),
    "gfx942": (Tile(64, 64, 16, 4, 2), Tile(32, 64, 16, 4, 2), Tile(16, 32, 32, 4, 2)),
}
TF32 = {
    80: (Tile(128, 128, 32, 8, 3), Tile(64, 64, 32, 4, 4), Tile(16, 64, 64, 4, 4)),
    90: (Tile(128, 128, 32, 8, 3), Tile(64, 128, 32, 4, 4), Tile(64, 64, 32, 4, 4), Tile(16, 64, 64, 4, 4)),
    "gfx942": FMA["gfx942"],
}
TF32X3 = {
    80: (Tile(128, 64, 32, 8, 3), Tile(64, 64, 32, 4, 3), Tile(16, 64, 32, 4, 4)),
    90: (Tile(128, 128, 32, 8, 3), Tile(64, 64, 32, 4, 3), Tile(16, 64, 32, 4, 4)),
    120: (Tile(128, 64, 32, 8, 3), Tile(64, 64, 32, 4, 3), Tile(16, 64, 32, 4, 4)),
    "gfx942": FMA["gfx942"],
}
DOUBLE = {
    75: (Tile(32, 32, 16, 4, 1), Tile(16, 16, 16, 4, 1)),
    80: (Tile(64, 64, 16, 4, 3), Tile(32, 32, 16, 4, 3), Tile(16, 32, 16, 4, 3)),
}
_WHOLE = (Tile(64, 64, 1, 4, 1), Tile(16, 32, 1, 4, 1))
WHOLE = {75: _WHOLE, 80: _WHOLE}
TABLES = {
    "half": HALF, "byte": BYTE, "float8": FLOAT8, "ieee": FMA, "tf32": TF32, "tf32x3": TF32X3,
    "double": DOUBLE, "whole": WHOLE,
}  # fmt: skip


def count(tile, m, n):
    """How many tiles cover m rows and n columns."""
    return -(-m // tile.m) * -(-n // tile.n)


def parts(tile, m, n, k, batch, units):
    """In how many parts K is cut, so that there are about two blocks per multiprocessor."""
    here = count(tile, m, n) * batch
    return 1 if 4 * here >= 3 * units else max(1, min(MAX_PARTS, k // MIN_DEPTH, -(-2 * units // here)))


def choose(family, arch, wide, m, n, k, batch, units):
    """The largest tile that is not much larger than the matrix and, with K in parts, leaves no multiprocessor idle.

    Operands that are not `wide` are read element by element, through registers: their tile is a small one.
    """
    tiles = pick(TABLES[family], arch)
    if not wide and m > tiles[-1].m and arch != 75:
        return NARROW
    fitting = [t for t in tiles[:-1] if t.m // 2 < m and t.n // 2 < max(n, 32)]
    for most in (1, max(1, min(MAX_PARTS, k // MIN_DEPTH))):
        for tile in fitting:
            if 4 * count(tile, m, n) * batch * most >= 3 * units and (most > 1 or tile.m >= 64):
                return tile
    return next((t for t in tiles[::-1] if m <= t.m), tiles[0]) if m <= 32 else tiles[-2]


def tuned(gpu, family, p):
    """The Tile that `bench.tune` found on this GPU for a Product, or None."""
    found = gpu.tuned.get("matmul")
    row = found.get(f"{family} {'-'.join(p.units())} {p.m}x{p.n}x{p.k}") if found and p.count == 1 else None
    return row and Tile(*row)


# ---- products of groups of rows, each with the weights of its expert ------------------------------------------------

ROWS = (16, 64, 128)  # of a block; tensorlib/ops/moe.py chooses
_GROUPED = {16: Tile(16, 64, 128, 4, 3), 64: Tile(64, 64, 64, 4, 3), 128: Tile(128, 64, 64, 8, 3)}
_WIDER = {16: Tile(16, 64, 128, 4, 3), 64: Tile(64, 128, 64, 4, 3), 128: Tile(128, 128, 64, 8, 3)}
_PLAIN = {16: Tile(16, 32, 32, 4, 2), 64: Tile(64, 32, 16, 4, 3), 128: Tile(128, 32, 16, 8, 2)}
_LITTLE = {rows: tile._replace(stages=2) for rows, tile in _GROUPED.items()}
EXPERTS = {75: _PLAIN, 80: _GROUPED, 90: _WIDER, 120: _GROUPED, "gfx942": _LITTLE}


def grouped(family, arch, rows):
    """The tile of a block of so many rows."""
    return (pick(EXPERTS, arch) if family == "half" else _PLAIN)[rows]
