"""All formats that have products on native blocks: the rows of the `unpack` files, and the names their lines use."""

from . import dot, simd, unpack, unpack_affine, unpack_low, unpack_runs

ROOMS = (unpack, unpack_low, unpack_affine)
UNPACK = {name: row for room in ROOMS for name, row in room.UNPACK.items()}
SCOPE = {**vars(simd), **vars(dot)}
for room in (*ROOMS, unpack_runs):
    SCOPE |= vars(room)
