"""Runs compiled PTX: batches of blocks in lock step, one NumPy operation an instruction for all their threads.

    program = Program(ptx)
    program.run(memory, grid=(4,), num_warps=4, shared=0, args=[address, 17], arch=90)

Threads that branch apart run as groups, the one with the lowest program counter first, and join where they meet.
"""

import bisect
import struct

import numpy as np

from tests.sim import access, alu, asynchronous, bits, convert, exchange, matrix, tma, wgmma
from tests.sim.decode import BOOL, UNSIGNED, UNWRITTEN, Decoder
from tests.sim.errors import Divergence, EndlessLoop, NotWaited, SimTrap, Unsupported
from tests.sim.memory import PROGRAM_CODES, GridAccess
from tests.sim.parse import parse
from tests.sim.shared import Shared
from tests.sim.warps import Warps

ROOMS = (access, alu, asynchronous, bits, convert, exchange, matrix, tma, wgmma)  # each fills OPS
LANES = 8192  # threads of a batch: enough for NumPy to be quick, few enough for the caches
SHARED_BYTES = 8 << 20  # of a batch
LIMIT = 5_000_000  # instructions of a batch
PATIENCE = 1000  # turns of one loop before other groups get theirs
WINDOWS = {"%local_window": 0x7E00_0000_0000_0000, "%shared_window": 0x7D00_0000_0000_0000}


class Branch:
    def __init__(self, predicate, negated, target):
        self.predicate, self.negated, self.target = predicate, negated, target


class Exit(Branch):
    """Ends its threads."""


class Barrier:
    """Waits for all threads of a block."""


class Program:
    """A kernel, parsed and decoded once. `between_warps`: races of warps in global memory are traps (see warps.py)."""

    def __init__(self, ptx, between_warps=False):
        self.between_warps = between_warps
        self.listing = listing = parse(ptx)
        self.name = listing.name
        self.data = {name: np.frombuffer(raw, np.uint8).copy() for name, raw in listing.data.items()}
        symbols = {name: array.ctypes.data for name, array in self.data.items()}
        symbols |= {name: offset for name, (offset, _) in listing.local.items()}
        self.decoder = Decoder(listing, {"global_smem": 0, **symbols, **WINDOWS})
        self.steps, self.control = [], {}
        for at, instruction in enumerate(listing.instructions):
            self.steps.append(self.decode(at, instruction))
        self.control[len(self.steps)] = Exit(None, False, None)
        self.stops = sorted(self.control)

    def decode(self, at, instruction):
        """A step, or None with an entry of `control` for what moves the program counter."""
        name = instruction.parts[0]
        if name in ("bra", "ret", "exit"):
            predicate = self.decoder.source(instruction.guard, BOOL) if instruction.guard else None
            target = self.listing.labels[instruction.args[0]] if name == "bra" else None
            kind = Branch if name == "bra" else Exit
            self.control[at] = kind(predicate, instruction.negated, target)
        elif name in ("bar", "barrier") and instruction.parts[1] != "warp":
            self.control[at] = barrier_of(self.decoder, instruction)
        else:
            return self.decoder.decode(instruction)
        return None

    def argument_bytes(self, args):
        """The parameters as bytes; those that are not given (scratch pointers) are zero."""
        packed = {}
        for position, (name, kind, size) in enumerate(self.listing.params):
            value = args[position] if position < len(args) else 0
            packed[name] = pack_argument(value, kind, size)
        return packed

    def run(self, memory, grid, num_warps, shared, args, arch=80, clusters=1, limit=LIMIT, batch=None):
        """Launches `grid` programs on the buffers of `memory`; traps raise SimTrap.

        args: ints and floats in the order of the PTX parameters, a `TensorMap` for a descriptor made on the host.
        limit: instructions until a loop counts as endless; batch: programs that run in lock step.
        """
        if clusters != 1:
            raise SimTrap("unsupported: clusters of several blocks")
        grid = (*grid, 1, 1)[:3]
        threads = self.listing.threads or 32 * num_warps
        programs = grid[0] * grid[1] * grid[2]
        batch = batch or max(1, min(LANES // threads, SHARED_BYTES // max(shared, 1)))
        packed = self.argument_bytes(args)
        maps = {value.address: value for value in args if isinstance(value, tma.TensorMap)}
        constants = self.add_data(memory)
        access_of_grid = GridAccess(memory, programs)
        machines = {}
        try:
            with np.errstate(all="ignore"):
                for start in range(0, programs, batch):
                    blocks = min(batch, programs - start)
                    machine = machines.get(blocks) or Machine(self, grid, threads, shared, blocks, packed, maps)
                    machines[blocks] = machine
                    machine.start(access_of_grid, start, limit)
                    machine.run()
                try:
                    access_of_grid.finish()
                except SimTrap as trap:
                    raise trap.at(self.name, "after the launch") from None
        finally:
            for address in constants:
                memory.remove(address)
            for buffer in memory.buffers.values():
                buffer.settle()

    def add_data(self, memory):
        """Makes the arrays of the PTX module known for the time of a launch."""
        for name, array in self.data.items():
            memory.add(array.ctypes.data, array.nbytes, name, readonly=True)
        return [array.ctypes.data for array in self.data.values()]


def barrier_of(decoder, instruction):
    """A barrier of the whole block; those of a part of it are not modelled."""
    arguments = instruction.args
    if instruction.guard or instruction.has("red", "arrive") or len(arguments) > 1 or arguments[0] != "0":
        raise Unsupported("unsupported kind of barrier").at(decoder.where(instruction), instruction.text)
    return Barrier()


def pack_argument(value, kind, size):
    if isinstance(value, tma.TensorMap):
        return value.address.to_bytes(8, "little").ljust(size, b"\0")
    if kind in ("f32", "f64"):
        return struct.pack("<f" if kind == "f32" else "<d", value)
    if isinstance(value, float):
        return struct.pack({2: "<e", 4: "<f", 8: "<d"}[size], value)
    return (int(value) % (1 << 8 * size)).to_bytes(size, "little")


class Machine:
    """The state of a batch of blocks: registers of all their threads, shared memory, barriers."""

    def __init__(self, program, grid, threads, shared_bytes, blocks, packed, maps):
        self.program, self.dims, self.blocks, self.threads = program, grid, blocks, threads
        self.lanes = lanes = blocks * threads
        self.index = np.arange(lanes)
        self.lane = (self.index % 32).astype(np.uint32)
        self.warp_start = self.index - self.index % 32
        self.block_of = self.index // threads
        self.shared_bytes, self.local_bytes = shared_bytes, (program.listing.local_bytes + 15) & ~15
        self.maps = maps
        self.fixed = self.fixed_registers(packed)

    def fixed_registers(self, packed):
        """The registers as they are before the first instruction; all but those of the program's id."""
        decoder, lanes = self.program.decoder, self.lanes
        unwritten = {n: np.full(lanes, value, UNSIGNED[n]) for n, value in UNWRITTEN.items()}
        nothing = np.zeros(lanes, bool)
        registers = [nothing if dtype is BOOL else unwritten[dtype.itemsize] for dtype in decoder.types]
        for slot, value in decoder.constants.items():
            registers[slot] = np.full(lanes, value, decoder.types[slot])
        for slot, (name, offset, size) in decoder.arguments.items():
            value = int.from_bytes(packed[name][offset : offset + size], "little")
            registers[slot] = np.full(lanes, value, decoder.types[slot])
        return registers

    def special(self, name):
        """The value of a special register for all lanes."""
        tid = (self.index % self.threads).astype(np.uint32)
        axis = "xyz".find(name[-1])
        if name == "%laneid":
            return self.lane
        if name == "%warpid":
            return tid // np.uint32(32)
        if name.startswith("%tid"):
            return tid if axis == 0 else np.zeros_like(tid)
        if name.startswith("%ntid"):
            return np.full(self.lanes, self.threads if axis == 0 else 1, np.uint32)
        if name.startswith(("%nctaid", "%nclusterid")):
            return np.full(self.lanes, self.dims[axis], np.uint32)
        if name.startswith(("%ctaid", "%clusterid")):
            return self.place[axis][self.block_of].astype(np.uint32)
        return np.full(self.lanes, int("ncta" in name), np.uint32)  # %cluster_*: clusters of one block

    def start(self, grid, first, limit):
        """Gets ready to run the programs from number `first` on."""
        self.grid, self.left = grid, limit
        numbers = np.arange(first, first + self.blocks)
        gx, gy, _ = self.dims
        self.place = (numbers % gx, numbers // gx % gy, numbers // (gx * gy))
        self.codes = (1 + numbers % PROGRAM_CODES).astype(np.uint8)[self.block_of]
        self.registers = list(self.fixed)
        for name, slot in self.program.decoder.specials.items():
            self.registers[slot] = self.special(name)
        self.warps = Warps(self) if self.program.between_warps else None
        self.shared = Shared(self.blocks, self.shared_bytes, self.threads)
        self.local = np.full(self.lanes * self.local_bytes, 0xD1, np.uint8)
        self.copies, self.stores = asynchronous.Groups(self.lanes), asynchronous.Groups(self.lanes)
        self.products = asynchronous.Groups(max(self.lanes // 128, 1))
        self.shared.in_use = (self.stores, self.products)
        self.withheld, self.nothing = {}, np.full(self.lanes, UNWRITTEN[4], np.uint32)
        self.barriers, self.fields, self.tensormaps, self.spins = {}, {}, {}, 0
        self.groups, self.parked, self.exited = {0: None}, {}, np.zeros(self.lanes, bool)

    def withhold(self, slots):
        """The results of a wgmma are not there before its group is waited for: until then the registers hold NaN.

        Moved registers are found again by identity, since a move copies no array.
        """
        group = int(self.products.committed.min())
        for slot in slots:
            value = self.registers[slot]
            stand_in = self.nothing.view(value.dtype)
            self.registers[slot] = stand_in
            self.withheld[id(stand_in)] = (stand_in, value, group)

    def collect(self, slots):
        """Registers that one wgmma after another accumulates into."""
        for slot in slots:
            held = self.withheld.get(id(self.registers[slot]))
            if held is not None:
                self.registers[slot] = held[1]

    def deliver(self, products):
        """The results of all groups that have been waited for; with None of all, since a masked move loses its tie."""
        first = products.unfinished() if products else asynchronous.OPEN
        ready = {key: value for key, (_, value, group) in self.withheld.items() if group < first}
        if ready:
            self.registers = [ready.get(id(register), register) for register in self.registers]
            self.withheld = {key: held for key, held in self.withheld.items() if key not in ready}

    def where(self, lane):
        """A lane in words: its thread and program."""
        block = int(lane) // self.threads
        x, y, z = (int(axis[block]) for axis in self.place)
        return f"thread {int(lane) % self.threads} of program ({x}, {y}, {z})"

    def reporter(self, act):
        """`where` for positions among the active lanes."""
        return self.where if act is None else lambda position: self.where(np.flatnonzero(act)[position])

    def run(self):
        steps, control, stops = self.program.steps, self.program.control, self.program.stops
        last, turns, at = -1, 0, 0
        try:
            while self.groups:
                at = min(self.groups)
                if len(self.groups) > 1:
                    turns = turns + 1 if at == last else 0
                    last = at
                    if turns > PATIENCE:
                        at, turns = max(self.groups), 0
                act = self.groups.pop(at)
                if act is not None and np.count_nonzero(act) == self.lanes:
                    act = None
                if act is not None and self.withheld:
                    self.deliver(None)
                stop = stops[bisect.bisect_left(stops, at)]
                for other in self.groups:
                    if at < other < stop:
                        stop = other
                self.left -= stop - at + 1
                if self.left < 0:
                    raise EndlessLoop("more instructions than the limit: an endless loop?")
                while at < stop:
                    steps[at](self, act)
                    at += 1
                if stop in self.groups:
                    self.join(stop, act)
                else:
                    self.transfer(control[at], at, act)
        except SimTrap as trap:
            raise trap.at(*self.place_of(at)) from None

    def place_of(self, at):
        instructions = self.program.listing.instructions
        if at >= len(instructions):
            return self.program.name, "the end"
        return f"{self.program.name}, line {instructions[at].line} of the PTX", instructions[at].text

    def join(self, at, act):
        """Adds threads to the group that waits at a place; None stands for all of them."""
        if at in self.groups:
            old = self.groups[at]
            act = None if act is None or old is None else old | act
        self.groups[at] = act

    def transfer(self, control, at, act):
        """Moves the threads of a group on from a branch, an end or a barrier."""
        if isinstance(control, Barrier):
            self.arrive(at, act)
            return
        taken = act
        if control.predicate is not None:
            taken = control.predicate(self.registers)
            taken = ~taken if control.negated else taken
            taken = taken if act is None else taken & act
            count = np.count_nonzero(taken)
            if count == 0:
                self.join(at + 1, act)
                return
            if count == self.lanes:
                taken = None
        if taken is not None and control.predicate is not None:
            rest = ~taken if act is None else act & ~taken
            if rest.any():
                self.join(at + 1, rest)
        if isinstance(control, Exit):
            self.leave(taken)
        else:
            self.join(control.target, taken)

    def leave(self, act):
        for rows, _, _ in self.stores.entries:
            if act is None or act[rows].any():
                raise NotWaited(f"{self.where(rows[0])} ends before a TMA store has read its shared memory")
        self.exited = self.exited | (True if act is None else act)
        if self.parked:
            self.release()

    def arrive(self, at, act):
        """Threads reach a barrier; blocks that are complete pass it."""
        if act is None:
            self.settle(None)
            self.join(at + 1, None)
            return
        self.parked[at] = self.parked[at] | act if at in self.parked else act
        self.release()

    def settle(self, blocks):
        """What blocks wrote before a barrier is there for all of their threads."""
        self.shared.settle(blocks)
        if self.warps is not None:
            self.warps.passed(blocks)

    def release(self):
        alive = ~self.exited.reshape(self.blocks, -1)
        for at, waiting in list(self.parked.items()):
            rows = waiting.reshape(self.blocks, -1)
            complete = (rows == alive).all(1) & rows.any(1)
            if complete.any():
                passing = waiting & complete[self.block_of]
                self.settle(complete)
                self.join(at + 1, passing)
                rest = waiting & ~passing
                del self.parked[at]
                if rest.any():
                    self.parked[at] = rest
        if self.parked and not self.groups:
            at, waiting = next(iter(self.parked.items()))
            block = self.block_of[np.flatnonzero(waiting)[0]]
            here = waiting & (self.block_of == block)
            raise Divergence(
                f"a barrier is reached by {np.count_nonzero(here)} threads of a block only, "
                f"{self.where(np.flatnonzero(here)[0])} is one of them"
            ).at(*self.place_of(at))
