"""TMA: tensor maps of the host or made in shared memory, and the copies of tiles that go through them."""

import numpy as np

from tests.sim.access import arithmetic, one_after_another
from tests.sim.asynchronous import TensorMap, barrier_at
from tests.sim.decode import I32, I64, U32, U64, UNSIGNED, op
from tests.sim.errors import Misaligned, OutOfBounds, SimTrap, Unsupported
from tests.sim.memory import HOST, WORDS, pattern

# Codes of element types in tensormap.replace; those of cuTensorMapEncode differ from 8 on.
ITEMS = ("u8", "u16", "u32", "s32", "u64", "s64", "f16", "f32", "f32", "f64", "bf16", "f32", "f32")


def map_of_fields(fields):
    """A TensorMap from what tensormap.replace wrote."""
    rank, kind = fields["rank"] + 1, ITEMS[fields["elemtype"]]
    size = int(kind.lstrip("usbf")) // 8
    if fields.get("fill_mode") or fields.get("interleave_layout"):
        raise Unsupported("unsupported tensor map: filled with NaN or interleaved")
    order = range(rank - 1, -1, -1)
    strides = (*(fields["global_stride", i] for i in range(rank - 2, -1, -1)), size)
    shape = tuple(fields["global_dim", i] for i in order)
    box = tuple(fields["box_dim", i] for i in order)
    return TensorMap(fields["global_address"], shape, strides, box, fields["swizzle_mode"], size, kind)


@op("tensormap")
def tensormap(decoder, ins):
    if ins.parts[1] == "cp_fenceproxy":
        return publish(decoder, ins)
    field = ins.parts[3]
    address = decoder.address(ins.args[0], U64)
    position = int(ins.args[1], 0) if len(ins.args) == 3 else None
    value = decoder.source(ins.args[-1], U64 if ins.parts[-1] == "b64" else U32)

    def step(machine, act):
        places = machine.shared.locate(address(machine.registers).astype(U32), 128, act, machine.reporter(act))
        values = value(machine.registers)
        for flat, one in zip(places.tolist(), (values if act is None else values[act]).tolist()):
            fields = machine.fields.setdefault(flat, {})
            fields[field if position is None else (field, position)] = one

    return step


def publish(decoder, ins):
    """Copies a tensor map from shared to global memory, once a warp."""
    to, given = decoder.address(ins.args[0], U64), decoder.address(ins.args[1], U64)

    def step(machine, act):
        lanes = np.flatnonzero(machine.lane == 0 if act is None else act & (machine.lane == 0))
        target = to(machine.registers).view(I64)[lanes]
        source = given(machine.registers).astype(np.int64)[lanes] + machine.shared.base[lanes]
        if (target % 64).any():
            raise Misaligned("tensor map at an address that is no multiple of 64")
        for lane, place, flat in zip(lanes, target.tolist(), source.tolist()):
            machine.tensormaps[place] = map_of_fields(machine.fields[flat])
            addresses = place + 16 * np.arange(8)
            codes = np.full(8, machine.codes[lane])
            machine.grid.store(addresses, np.zeros(8, WORDS[16]), 16, codes, lambda _, lane=lane: machine.where(lane))

    return step


class Tile:
    """One box of a tensor map: which elements exist, where they lie in global and in shared memory."""

    def __init__(self, machine, lane, handle, corner, shared_address):
        tensor = machine.maps.get(handle) or machine.tensormaps.get(handle)
        if tensor is None:
            raise SimTrap(f"TMA through {handle:#x}, which holds no tensor map, by {machine.where(lane)}")
        if tensor.base % 16 or any(stride % 16 for stride in tensor.strides[:-1]):
            raise Misaligned("tensor map: its base and strides must be multiples of 16 bytes")
        if tensor.box[-1] * tensor.itemsize % 16:
            raise Misaligned("tensor map: the rows of its box must be multiples of 16 bytes")
        self.tensor, self.machine, self.lane = tensor, machine, lane
        inside, place = np.ones(tensor.box, bool), np.full(tensor.box, tensor.base, np.int64)
        for axis, (start, count) in enumerate(zip(corner, tensor.box)):
            at = (start + np.arange(count)).reshape([-1 if i == axis else 1 for i in range(len(tensor.box))])
            inside &= (at >= 0) & (at < tensor.shape[axis])
            place += at * tensor.strides[axis]
        self.inside, self.place = inside.ravel(), place.ravel()
        self.flat = self.chunks(shared_address)

    def chunks(self, start):
        """Flat addresses of the 16-byte chunks of the tile."""
        shared, tensor = self.machine.shared, self.tensor
        width = {0: 0, 1: 32, 2: 64, 3: 128}[tensor.swizzle]
        if start % 128:
            raise Misaligned(f"TMA at shared address {start}, which is no multiple of 128")
        size = len(self.inside) * tensor.itemsize
        if start + size > shared.size:
            raise OutOfBounds(f"TMA tile of {size} bytes at {start} outside {shared.size} bytes of shared memory")
        at = start + 16 * np.arange(size // 16)
        if width:
            at ^= (at >> 7 & (width // 16 - 1)) << 4
        return at + shared.base[self.lane]

    def where(self, _):
        return self.machine.where(self.lane)

    def codes(self):
        return np.full(np.count_nonzero(self.inside), self.machine.codes[self.lane])

    def load(self):
        """The tile's chunks out of global memory, zeros outside the tensor."""
        values = np.zeros(len(self.inside), WORDS[self.tensor.itemsize])
        if self.inside.any():
            places = self.place[self.inside]
            values[self.inside] = self.machine.grid.load(places, self.tensor.itemsize, self.codes(), self.where)
        return values.view(WORDS[16])

    def values(self):
        """Of the tile in shared memory the elements inside of the tensor, and their places in global memory."""
        shared, lane = self.machine.shared, self.lane
        shared.check_fence(self.flat, f"TMA store of {self.machine.where(lane)}")
        mine = pattern(np.full(len(self.flat), shared.warp[lane]), 16)
        words = shared.read(self.flat, 16, mine, self.where)
        values = np.ascontiguousarray(words).view(WORDS[self.tensor.itemsize])[self.inside]
        return values, self.place[self.inside]

    def store(self):
        values, places = self.values()
        if len(values):
            self.machine.grid.store(places, values, self.tensor.itemsize, self.codes(), self.where)

    def reduce(self, name):
        """Adds (or the like) to global memory, each element atomically."""
        values, places = self.values()
        if not self.tensor.kind:
            raise Unsupported("unsupported reduction through a tensor map whose element type is not known")
        function, n = arithmetic(name, self.tensor.kind), self.tensor.itemsize
        self.machine.grid.atomic(places, n, self.codes(), self.where, False)
        words = HOST.words[n].view(UNSIGNED[n])
        one_after_another(HOST.at(places, n), words, lambda old, rows: function(old, values[rows]))


def tile_operands(decoder, text):
    """Readers of "[map, {x, y}]"."""
    handle, _, corner = text.strip("[] ").partition(",")
    return decoder.source(handle.strip(), U64), [decoder.source(name, I32) for name in decoder.vector(corner)]


@op("cp.reduce.async")
def reduce(decoder, ins):
    if ins.parts[4:8] != ("tensor", ins.parts[5], "global", "shared::cta") or ins.has("im2col"):
        raise ValueError("kind of bulk reduction")
    return leaving(decoder, ins, lambda tile: tile.reduce(ins.parts[8]))


def leaving(decoder, ins, act_on):
    """A step that takes a tile from shared to global memory."""
    handle, corner = tile_operands(decoder, ins.args[0])
    shared_address = decoder.address(ins.args[1], U32)

    def step(machine, act):
        registers = machine.registers
        handles, places = handle(registers), shared_address(registers)
        corners = [read(registers) for read in reversed(corner)]
        for lane in machine.index if act is None else np.flatnonzero(act):
            tile = Tile(machine, lane, int(handles[lane]), [int(c[lane]) for c in corners], int(places[lane]))
            act_on(tile)
            machine.stores.add(np.array([lane]), tile.flat[None, :])

    return step


@op("cp.async.bulk")
def bulk(decoder, ins):
    if ins.parts[3] == "commit_group":
        return lambda machine, act: machine.stores.commit(act)
    if ins.parts[3] == "wait_group":
        keep = int(ins.args[0], 0)

        def wait(machine, act):
            machine.stores.wait(act, keep)

        return wait
    to, given = ins.parts[5:7] if ins.parts[3] == "tensor" else (None, None)
    loads = (to, given) in (("shared::cta", "global"), ("shared::cluster", "global"))
    if (not loads and (to, given) != ("global", "shared::cta")) or ins.has(
        "multicast::cluster", "im2col", "cta_group::2"
    ):
        raise ValueError("kind of bulk copy")
    return arriving(decoder, ins) if loads else leaving(decoder, ins, Tile.store)


def arriving(decoder, ins):
    """A step that takes a tile from global to shared memory, where an mbarrier counts its bytes."""
    handle, corner = tile_operands(decoder, ins.args[1])
    shared_address, barrier = decoder.address(ins.args[0], U32), decoder.address(ins.args[2], U32)

    def step(machine, act):
        registers = machine.registers
        handles, places, barriers = handle(registers), shared_address(registers), barrier(registers)
        corners = [read(registers) for read in reversed(corner)]
        for lane in machine.index if act is None else np.flatnonzero(act):
            tile = Tile(machine, lane, int(handles[lane]), [int(c[lane]) for c in corners], int(places[lane]))
            start_load(machine, tile, barrier_at(machine, machine.shared.base[lane] + int(barriers[lane])))

    return step


def start_load(machine, tile, barrier):
    shared = machine.shared
    mine = pattern(np.full(len(tile.flat), shared.warp[tile.lane]), 16)
    shared.check_fence(tile.flat, f"TMA load of {machine.where(tile.lane)}")
    shared.start_copy(tile.flat, 16, mine, tile.where)
    barrier.bytes -= 16 * len(tile.flat)
    barrier.landing.append((tile.flat, tile.load()))
    barrier.update(machine)
