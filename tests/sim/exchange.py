"""What lanes of a warp tell each other: shuffles, votes, reductions, elections."""

import numpy as np

from tests.sim.decode import BOOL, TYPES, U32, op
from tests.sim.errors import Divergence


def whole_warps(machine, act, what):
    """Traps where only a part of a warp is active."""
    if act is None:
        return
    count = act.reshape(-1, 32).sum(1)
    torn = (count != 0) & (count != 32)
    if torn.any():
        lane = np.flatnonzero(torn)[0] * 32
        raise Divergence(f"{what} reached by {count[lane // 32]} lanes of the warp of {machine.where(lane)}")


def source_lane(mode, lane, by, clamp):
    """The lane to read from, within segments and clamped as shfl says, and whether it is in range."""
    segment = (clamp >> np.uint32(8)) & np.uint32(31)
    limit = clamp & np.uint32(31)
    low = lane & segment
    high = low | (limit & ~segment & np.uint32(31))
    if mode == "up":
        wanted = lane.astype(np.int64) - by
        inside = wanted >= high
    else:
        wanted = {"bfly": lane ^ by, "idx": low | (by & ~segment & np.uint32(31)), "down": lane + by}[mode]
        inside = wanted <= high
    return np.where(inside, wanted, lane).astype(np.int64), inside


@op("shfl")
def shfl(decoder, ins):
    mode = ins.parts[2]
    to, _, predicate = (part.strip() for part in ins.args[0].partition("|"))
    read, by, clamp = (decoder.source(text, U32) for text in ins.args[1:4])
    write = decoder.target(to, U32)
    mark = decoder.target(predicate, BOOL) if predicate else None
    fixed = not any(text.startswith("%") for text in ins.args[2:4])
    cache = {}

    def step(machine, act):
        whole_warps(machine, act, "shfl.sync")
        registers, found = machine.registers, cache.get(machine.lanes)
        if found is None:
            lane, inside = source_lane(mode, machine.lane, by(registers), clamp(registers))
            found = machine.warp_start + lane, inside
            if fixed:
                cache[machine.lanes] = found
        write(registers, read(registers)[found[0]], act)
        if mark is not None:
            mark(registers, found[1], act)

    return step


REDUCTIONS = {
    "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor
}  # fmt: skip


@op("redux")
def redux(decoder, ins):
    kind = ins.parts[-1]
    function = REDUCTIONS[ins.parts[2]]
    if kind == "f32":  # sm_100: NaN only where .NaN says so
        function = {"min": np.minimum, "max": np.maximum} if ins.has("NaN") else {"min": np.fmin, "max": np.fmax}
        function = function[ins.parts[2]]
    read, write = decoder.value(ins.args[1], kind), decoder.result(ins.args[0], kind)

    def step(machine, act):
        whole_warps(machine, act, "redux.sync")
        value = read(machine.registers)
        write(machine.registers, np.repeat(function.reduce(value.reshape(-1, 32), axis=1).astype(value.dtype), 32), act)

    return step


@op("vote", "activemask")
def vote(decoder, ins):
    if ins.parts[0] == "activemask":
        raise ValueError("activemask")
    mode = ins.parts[2]
    read = decoder.source(ins.args[1], BOOL)
    write = decoder.target(ins.args[0], U32 if mode == "ballot" else BOOL)

    def step(machine, act):
        yes = read(machine.registers)
        if act is not None:
            yes = yes & act
        warps = yes.reshape(-1, 32)
        if mode == "ballot":
            found = np.packbits(warps, axis=1, bitorder="little").view(U32)[:, 0]
        elif mode == "any":
            found = warps.any(1)
        else:
            idle = ~act.reshape(-1, 32) if act is not None else False
            alike = (warps | idle).all(1)
            found = alike if mode == "all" else alike | ~warps.any(1)
        write(machine.registers, np.repeat(found, 32), act)

    return step


@op("elect")
def elect(decoder, ins):
    """The first active lane of each warp is elected."""
    to, _, predicate = (part.strip() for part in ins.args[0].partition("|"))
    number = decoder.target(to or "_", U32)
    mark = decoder.target(predicate, BOOL)

    def step(machine, act):
        warps = np.ones((machine.lanes // 32, 32), bool) if act is None else act.reshape(-1, 32)
        leader = warps.argmax(1)
        chosen = machine.lane == np.repeat(leader, 32)
        mark(machine.registers, chosen if act is None else chosen & act, act)
        number(machine.registers, np.repeat(leader, 32).astype(U32), act)

    return step


@op("match")
def match(decoder, ins):
    dtype = TYPES[ins.parts[-1]]
    if ins.parts[1] != "any":
        raise ValueError(ins.parts[1])
    read, write = decoder.source(ins.args[1], dtype), decoder.target(ins.args[0], U32)

    def step(machine, act):
        warps = read(machine.registers).reshape(-1, 32)
        equal = warps[:, :, None] == warps[:, None, :]
        if act is not None:
            equal = equal & act.reshape(-1, 1, 32)
        found = np.packbits(equal, axis=2, bitorder="little").view(U32).ravel()
        write(machine.registers, found, act)

    return step
