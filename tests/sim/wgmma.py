"""Matrix products of four warps on Hopper: operands in shared memory behind descriptors, or in registers."""

import numpy as np

from tests.sim.decode import BOOL, F16, TYPES, U32, U64, op
from tests.sim.errors import Divergence, NotWaited, OutOfBounds, SharedRace, UnwrittenRead
from tests.sim.matrix import ELEMENTS, accumulate, fragment_a, gather, shape_of
from tests.sim.memory import SHIFTS
from tests.sim.shared import ATOMIC, SETTLED, SEVERAL, all_of

SWIZZLES = {0: 16, 1: 128, 2: 64, 3: 32}  # code in a descriptor: bytes of a row of the swizzle
MASKS = {0: 0, 1: 7, 2: 3, 3: 1}


def chunk_offsets(rows, k, size, lead, stride, swizzle, major_is_k):
    """Byte offsets of the 16-byte chunks of an operand, as (rows, chunks of K) or (K, chunks of rows)."""
    width = SWIZZLES[swizzle]
    per = 16 // size
    if major_is_k:
        row, byte = np.arange(rows)[:, None], 16 * np.arange(k // per)[None, :]
        along = byte if swizzle else byte // 16 * lead
        return row // 8 * stride + row % 8 * width + along
    step, byte = np.arange(k)[:, None], 16 * np.arange(rows // per)[None, :]
    return byte // width * lead + byte % width + step // 8 * stride + step % 8 * width


def operand_chunks(machine, descriptors, rows, k, size, major_is_k):
    """Flat addresses (warp groups, chunks) of the operand that each warp group's descriptor points to."""
    first = int(descriptors[0])
    if ((descriptors ^ descriptors[0]) >> np.uint64(16)).any():
        raise Divergence("wgmma with descriptors that differ in more than the address")
    lead, stride = (first >> 16 & 0x3FFF) << 4, (first >> 32 & 0x3FFF) << 4
    swizzle = first >> 62
    offsets = chunk_offsets(rows, k, size, lead, stride, swizzle, major_is_k)
    start = (descriptors & np.uint64(0x3FFF)).astype(np.int64) << 4
    flat = start[:, None] + offsets.ravel()
    flat ^= (flat >> 7 & MASKS[swizzle]) << 4
    if int(flat.max()) + 16 > machine.shared.size:
        raise OutOfBounds(f"wgmma operand at {int(flat.max())} outside {machine.shared.size} bytes of shared memory")
    return flat, offsets.shape


def check_operand(machine, flat, groups):
    """Traps on what the tensor cores may not read yet."""
    found = machine.shared.writer[1].reshape(-1, 16)[flat >> 4]
    if (found == SETTLED).all():
        return
    group, chunk, byte = (int(i[0]) for i in np.nonzero(found != SETTLED))
    code, where = found[group, chunk, byte], machine.where(groups[group] * 128)
    if code == 0:
        raise UnwrittenRead(f"wgmma of {where} reads shared memory that nobody wrote")
    if code <= ATOMIC:
        raise SharedRace(f"wgmma of {where} reads what was written since the last barrier")
    raise NotWaited(f"wgmma of {where} reads the target of an asynchronous copy that was not waited for")


def read_operand(machine, descriptors, groups, rows, k, kind, major_is_k):
    """The operand as (warp groups, rows, K), and the addresses that stay in use."""
    size, load = ELEMENTS[kind]
    relative, shape = operand_chunks(machine, descriptors, rows, k, size, major_is_k)
    flat = relative + machine.shared.base[groups * 128][:, None]
    check_operand(machine, flat, groups)
    machine.shared.check_fence(flat, f"wgmma of {machine.where(groups[0] * 128)}")
    words = machine.shared.data[16][flat >> SHIFTS[16]]
    values = load(np.ascontiguousarray(words).view(np.uint8).reshape(len(groups), -1))
    values = values.reshape(len(groups), shape[0], -1)
    return (values if major_is_k else values.swapaxes(1, 2)), flat


def warp_groups(machine, act):
    """Numbers of the active warp groups; traps where one is torn."""
    if act is None:
        return np.arange(machine.lanes // 128)
    count = act.reshape(-1, 128).sum(1)
    if ((count != 0) & (count != 128)).any():
        raise Divergence("wgmma reached by a part of a warp group")
    return np.flatnonzero(count)


class Operands:
    """What the opcode and the operands of one wgmma say."""

    def __init__(self, decoder, ins):
        self.m, self.n, self.k = shape_of(ins)
        kind_d, self.kind_a, self.kind_b = ins.parts[-3:]
        kind_d = kind_d.replace("satfinite", "s32")
        self.half = kind_d == "f16"  # two accumulators in a register
        self.dtype = U32 if self.half else TYPES[kind_d]
        names = decoder.vector(ins.args[0])
        self.reads = [decoder.source(name, self.dtype) for name in names]
        self.writes = [decoder.target(name, self.dtype) for name in names]
        self.slots = [decoder.slot(name) for name in names]
        self.in_registers = ins.args[1].startswith("{")
        if self.in_registers:
            self.a = [decoder.source(name, U32) for name in decoder.vector(ins.args[1])]
        else:
            self.a = decoder.source(ins.args[1], U64)
        self.b = decoder.source(ins.args[2], U64)
        scale = ins.args[3]
        predicate = scale.startswith("%") and decoder.types[decoder.slot(scale)] is BOOL
        self.scale = decoder.source(scale, BOOL if predicate else U32)
        numbers = [int(text, 0) for text in ins.args[4:]]
        if any(number not in (1,) for number in numbers[:2]):
            raise ValueError("scale of an operand")
        transposed = numbers[2:]
        self.b_is_k = not (transposed and transposed[-1])
        self.a_is_k = not (len(transposed) > 1 and transposed[0])


@op("wgmma")
def wgmma(decoder, ins):
    if ins.parts[1] == "fence":
        return lambda machine, act: None
    if ins.parts[1] == "commit_group":
        return lambda machine, act: machine.products.commit(rows_of(machine, act))
    if ins.parts[1] == "wait_group":
        keep = int(ins.args[-1], 0)

        def wait(machine, act):
            for _, chunks in machine.products.wait(rows_of(machine, act), keep):
                machine.shared.reader[16][chunks >> 4] = all_of(SEVERAL, 16)  # other warps may not have waited yet
                machine.shared.touched = True
            machine.deliver(machine.products)

        return wait
    operands = Operands(decoder, ins)

    def step(machine, act):
        groups = warp_groups(machine, act)
        product(machine, act, groups, operands)

    return step


def rows_of(machine, act):
    chosen = np.zeros(machine.lanes // 128, bool)
    chosen[warp_groups(machine, act)] = True
    return chosen


def product(machine, act, groups, o):
    registers = machine.registers
    first = groups * 128
    if o.in_registers:
        rows = gather(machine, o.a)
        a = fragment_a(rows, o.kind_a, 16, o.k).reshape(-1, 64, o.k)[groups]
        used = []
    else:
        a, flat = read_operand(machine, o.a(registers)[first], groups, o.m, o.k, o.kind_a, o.a_is_k)
        used = [flat]
    b, flat = read_operand(machine, o.b(registers)[first], groups, o.n, o.k, o.kind_b, o.b_is_k)
    machine.products.add(groups, np.concatenate([*used, flat], axis=1))
    machine.collect(o.slots)
    rows = gather(machine, o.reads)  # registers: column pairs fastest, then row halves, then blocks of 8 columns
    if o.half:
        old = rows.view(F16).reshape(o.n // 8, 2, -1, 4, 8, 4, 2).transpose(2, 3, 1, 4, 0, 5, 6).reshape(-1, 64, o.n)
    else:
        old = rows.reshape(o.n // 8, 2, 2, -1, 4, 8, 4).transpose(3, 4, 1, 5, 0, 6, 2).reshape(-1, 64, o.n)
    keep = o.scale(registers)[first].astype(bool)
    old = np.where(keep[:, None, None], old[groups], old.dtype.type(0))
    new = np.zeros((machine.lanes // 128, 64, o.n), old.dtype)
    new[groups] = accumulate(a, b.swapaxes(1, 2), old)
    new = new.reshape(-1, 4, 2, 8, o.n // 8, 4, 2).transpose(4, 2, *((0, 1, 3, 5, 6) if o.half else (6, 0, 1, 3, 5)))
    for write, row in zip(o.writes, np.ascontiguousarray(new).view(o.dtype).reshape(len(o.writes), -1)):
        write(registers, row, act)
    if act is None:
        machine.withhold(o.slots)
