"""Copies that run beside the threads: cp.async with its groups, the mbarriers and the tensor maps of TMA."""

import dataclasses
import itertools

import numpy as np

from tests.sim.decode import BOOL, I64, U32, U64, op
from tests.sim.errors import Deadlock, SimTrap, Unsupported
from tests.sim.memory import WORDS
from tests.sim.shared import ARRIVED, SETTLED, all_of

OPEN = 2**62  # the group number of work that is not committed yet
SPINS = 100_000  # failing tests of mbarriers in one batch until they count as a deadlock
HANDLES = itertools.count(0x7000_0000_0000_0000, 256)


@dataclasses.dataclass
class TensorMap:
    """A CUtensorMap of the host: outermost dimension first; swizzle 0 none, 1 to 3: 32, 64, 128 bytes."""

    base: int
    shape: tuple
    strides: tuple  # bytes
    box: tuple
    swizzle: int
    itemsize: int
    kind: str = ""  # of the elements, as PTX writes it: what a reduction needs
    address: int = dataclasses.field(default_factory=lambda: next(HANDLES))


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
