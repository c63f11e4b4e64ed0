"""All formats that have products on native blocks: the rows of the `unpack` files, and the names their lines use."""

from . import dot, simd, unpack, unpack_affine, unpack_grid, unpack_low, unpack_runs

ROOMS = (unpack, unpack_low, unpack_affine, unpack_grid)
UNPACK = {name: row for room in ROOMS for name, row in room.UNPACK.items()}
SCOPE = {**vars(simd), **vars(dot)}
for room in (*ROOMS, unpack_runs):
    SCOPE |= vars(room)


def of_source(fmt, source):
    """Further names that a format's lines use, made from its decode source."""
    return unpack_grid.scope(fmt, source) if fmt in unpack_grid.UNPACK else {}
