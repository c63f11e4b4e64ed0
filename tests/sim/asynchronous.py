"""Copies that run beside the threads: cp.async with its groups, mbarriers, tensor maps and TMA."""

import dataclasses
import itertools

import numpy as np

from tests.sim.decode import BOOL, I32, I64, U32, U64, op
from tests.sim.errors import Deadlock, Misaligned, OutOfBounds, SimTrap, Unsupported
from tests.sim.memory import WORDS, pattern
from tests.sim.shared import ARRIVED, SETTLED, all_of

OPEN = 2**62  # the group number of work that is not committed yet
SPINS = 100_000  # failing tests of mbarriers in one batch until they count as a deadlock
HANDLES = itertools.count(0x7000_0000_0000_0000, 256)


class Groups:
    """Work in commit groups; each row (a lane, or a warp group) commits and waits for its own."""

    def __init__(self, rows):
        self.committed, self.entries = np.zeros(rows, np.int64), []

    def unfinished(self):
        """Number of the earliest group that has not been waited for, of any row."""
        return min((int(np.minimum(g, self.committed[rows]).min()) for rows, g, _ in self.entries), default=OPEN)

    def add(self, rows, *payload):
        """Work of `rows` (numbers); each array of the payload has a row for each."""
        self.entries.append((rows, np.full(len(rows), OPEN), payload))

    def commit(self, act):
        """The open work of the active rows (bool, None for all) becomes a group."""
        act = np.ones(len(self.committed), bool) if act is None else act
        for rows, group, _ in self.entries:
            mine = act[rows] & (group == OPEN)
            group[mine] = self.committed[rows[mine]]
        self.committed[act] += 1

    def wait(self, act, keep):
        """Ends all but the last `keep` groups of the active rows (None: also what is open); yields their payloads."""
        act = np.ones(len(self.committed), bool) if act is None else act
        done, left = [], []
        for rows, group, payload in self.entries:
            finished = act[rows] & (True if keep is None else group < self.committed[rows] - keep)
            if finished.any():
                done.append((rows[finished], *(array[finished] for array in payload)))
            if not finished.all():
                rest = ~finished
                left.append((rows[rest], group[rest], tuple(array[rest] for array in payload)))
        self.entries = left
        return done


@op("cp")
def cp(decoder, ins):
    if ins.parts[1] != "async":
        raise ValueError(ins.parts[1])
    if ins.parts[2] == "bulk":
        return bulk(decoder, ins)
    if ins.parts[2] == "commit_group":
        return lambda machine, act: machine.copies.commit(act)
    if ins.parts[2] in ("wait_group", "wait_all"):
        keep = int(ins.args[0], 0) if ins.parts[2] == "wait_group" else None

        def wait(machine, act):
            for lanes, flat, words in machine.copies.wait(act, keep):
                n = words.dtype.itemsize
                machine.shared.finish_copy(flat, words, n, machine.shared.patterns[n][lanes])
                machine.shared.note_store(flat)

        return wait
    if ins.parts[2] not in ("ca", "cg"):
        raise ValueError(ins.parts[2])
    return copy(decoder, ins)


def copy(decoder, ins):
    """cp.async of 4, 8 or 16 bytes a lane; a source size of zero fills with zeros."""
    n = int(ins.args[2], 0)
    to, given = decoder.address(ins.args[0], U32), decoder.address(ins.args[1], U64)
    size = decoder.source(ins.args[3], U32) if len(ins.args) > 3 and not ins.has("L2::cache_hint") else None

    def step(machine, act):
        registers, shared, where = machine.registers, machine.shared, machine.reporter(act)
        flat = shared.locate(to(registers), n, act, where)
        lanes = machine.index if act is None else np.flatnonzero(act)
        words = np.zeros(len(lanes), WORDS[n])
        full = np.ones(len(lanes), bool)
        if size is not None:
            wanted = size(registers)[lanes]
            full = wanted != 0
            if (full & (wanted != n)).any():
                raise Unsupported("unsupported cp.async of a part of its bytes")
        if full.any():
            source = given(registers).view(I64)[lanes[full]]
            mine = machine.codes[lanes[full]]
            words[full] = machine.grid.load(source, n, mine, lambda i: machine.where(lanes[full][i]))
        shared.start_copy(flat, n, shared.patterns[n][lanes], where)
        machine.copies.add(lanes, flat, words)

    return step


class MBarrier:
    """Arrivals and bytes that a phase still waits for, and what has landed in it."""

    def __init__(self, count):
        self.count = self.pending = count
        self.bytes, self.phase, self.landing, self.landed = 0, 0, [], []

    def update(self, machine):
        if self.pending == 0 and self.bytes == 0:
            self.phase += 1
            self.pending = self.count
            for flat, words in self.landing:
                machine.shared.finish_copy(flat, words, 16, all_of(ARRIVED, 16))
            self.landed += self.landing
            self.landing = []

    def seen(self, machine):
        """A wait has succeeded: what landed may be read."""
        for flat, _ in self.landed:
            machine.shared.writer[16][flat >> 4] = all_of(SETTLED, 16)
        self.landed = []


def barrier_at(machine, flat):
    found = machine.barriers.get(int(flat))
    if found is None:
        raise SimTrap(f"use of an mbarrier at {int(flat) % machine.shared.stride} that was not initialised")
    return found


@op("mbarrier")
def mbarrier(decoder, ins):
    name = ins.parts[1]
    if name in ("try_wait", "test_wait"):
        return try_wait(decoder, ins)
    if name not in ("init", "inval", "arrive", "expect_tx"):
        raise ValueError(name)
    args = [text for text in ins.args if text != "_"] if name == "arrive" else ins.args
    if name == "arrive" and not args[0].startswith("["):
        raise ValueError("state of an arrival")
    address = decoder.address(args[0], U32)
    amount = decoder.source(args[1], U32) if len(args) > 1 else None
    expects = ins.has("expect_tx")

    def step(machine, act):
        shared, where = machine.shared, machine.reporter(act)
        places = shared.locate(address(machine.registers), 8, act, where)
        if name in ("init", "inval"):
            shared.write(places, np.zeros(len(places), U64), 8, shared.lanes(8, act), where)
        else:
            shared.read(places, 8, shared.lanes(8, act), where)
        values = np.ones(machine.lanes, U32) if amount is None else amount(machine.registers)
        for flat, value in zip(places.tolist(), (values if act is None else values[act]).tolist()):
            if name == "init":
                machine.barriers[flat] = MBarrier(value)
            elif name == "inval":
                machine.barriers.pop(flat, None)
            else:
                barrier = barrier_at(machine, flat)
                barrier.bytes += value if expects else 0
                if name == "arrive":
                    barrier.pending -= 1 if expects else value
                barrier.update(machine)

    return step


def try_wait(decoder, ins):
    write, address = decoder.target(ins.args[0], BOOL), decoder.address(ins.args[1], U32)
    if not ins.has("parity"):
        raise ValueError("wait without parity")
    parity = decoder.source(ins.args[2], U32)

    def step(machine, act):
        shared, where = machine.shared, machine.reporter(act)
        flat = shared.locate(address(machine.registers), 8, act, where)
        shared.read(flat, 8, shared.lanes(8, act), where)
        wanted = parity(machine.registers)
        wanted = (wanted if act is None else wanted[act]) & np.uint32(1)
        keys, back = np.unique(flat * 2 + wanted, return_inverse=True)
        complete = np.zeros(len(keys), bool)
        for i, key in enumerate(keys.tolist()):
            barrier = barrier_at(machine, key >> 1)
            complete[i] = barrier.phase % 2 != key % 2
            if complete[i]:
                barrier.seen(machine)
        if not complete.any():
            machine.spins += 1
            if not machine.groups or machine.spins > SPINS:
                raise Deadlock(f"wait on an mbarrier that nobody completes, by {where(0)}")
        found = np.ones(machine.lanes, bool)
        found[slice(None) if act is None else act] = complete[back]
        write(machine.registers, found, act)

    return step


@dataclasses.dataclass
class TensorMap:
    """A CUtensorMap of the host: outermost dimension first; swizzle 0 none, 1 to 3: 32, 64, 128 bytes."""

    base: int
    shape: tuple
    strides: tuple  # bytes
    box: tuple
    swizzle: int
    itemsize: int
    address: int = dataclasses.field(default_factory=lambda: next(HANDLES))


ITEM_SIZES = {0: 1, 1: 2, 2: 4, 3: 4, 4: 8, 5: 8, 6: 2, 7: 4, 8: 8, 9: 2, 10: 4, 11: 4, 12: 4}


def map_of_fields(fields):
    """A TensorMap from what tensormap.replace wrote."""
    rank, size = fields["rank"] + 1, ITEM_SIZES[fields["elemtype"]]
    if fields.get("fill_mode") or fields.get("interleave_layout"):
        raise Unsupported("unsupported tensor map: filled with NaN or interleaved")
    order = range(rank - 1, -1, -1)
    strides = (*(fields["global_stride", i] for i in range(rank - 2, -1, -1)), size)
    shape = tuple(fields["global_dim", i] for i in order)
    box = tuple(fields["box_dim", i] for i in order)
    return TensorMap(fields["global_address"], shape, strides, box, fields["swizzle_mode"], size)


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

    def store(self):
        shared, lane = self.machine.shared, self.lane
        shared.check_fence(self.flat, f"TMA store of {self.machine.where(lane)}")
        mine = pattern(np.full(len(self.flat), shared.warp[lane]), 16)
        words = shared.read(self.flat, 16, mine, self.where)
        values = np.ascontiguousarray(words).view(WORDS[self.tensor.itemsize])[self.inside]
        if len(values):
            places = self.place[self.inside]
            self.machine.grid.store(places, values, self.tensor.itemsize, self.codes(), self.where)


def tile_operands(decoder, text):
    """Readers of "[map, {x, y}]"."""
    handle, _, corner = text.strip("[] ").partition(",")
    return decoder.source(handle.strip(), U64), [decoder.source(name, I32) for name in decoder.vector(corner)]


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
    handle, corner = tile_operands(decoder, ins.args[1] if loads else ins.args[0])
    shared_address = decoder.address(ins.args[0] if loads else ins.args[1], U32)
    barrier = decoder.address(ins.args[2], U32) if loads else None

    def step(machine, act):
        registers = machine.registers
        handles, places = handle(registers), shared_address(registers)
        corners = [read(registers) for read in reversed(corner)]
        barriers = barrier(registers) if loads else None
        for lane in machine.index if act is None else np.flatnonzero(act):
            tile = Tile(machine, lane, int(handles[lane]), [int(c[lane]) for c in corners], int(places[lane]))
            if loads:
                start_load(machine, tile, barrier_at(machine, machine.shared.base[lane] + int(barriers[lane])))
            else:
                tile.store()
                machine.stores.add(np.array([lane]), tile.flat[None, :])

    return step


def start_load(machine, tile, barrier):
    shared = machine.shared
    mine = pattern(np.full(len(tile.flat), shared.warp[tile.lane]), 16)
    shared.check_fence(tile.flat, f"TMA load of {machine.where(tile.lane)}")
    shared.start_copy(tile.flat, 16, mine, tile.where)
    barrier.bytes -= 16 * len(tile.flat)
    barrier.landing.append((tile.flat, tile.load()))
    barrier.update(machine)
