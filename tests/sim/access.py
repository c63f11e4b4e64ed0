"""ld, st, atom and red in the parameter, global, shared, local and generic spaces."""

import ctypes

import numpy as np

from tests.sim.decode import FORMATS, I64, TYPES, U32, U64, UNSIGNED, op
from tests.sim.errors import DeviceAssert, OutOfBounds, Unsupported
from tests.sim.memory import HOST, WORDS

VECTORS = {"v2": 2, "v4": 4, "v8": 8}


def space_of(ins):
    """The state space that an opcode names: param, global, shared, local or generic."""
    for part in ins.parts[1:]:
        name = part.split("::")[0]
        if name in ("param", "global", "shared", "local", "const"):
            return "global" if name == "const" else name
    return "generic"


def chosen(array, act):
    return array if act is None else array[act]


def spread(words, act, lanes):
    """Values of the active lanes among those of all lanes."""
    if act is None:
        return words
    out = np.zeros(lanes, words.dtype)
    out[act] = words
    return out


class GlobalSpace:
    width = U64

    def load(self, machine, address, n, act):
        where, at = machine.reporter(act), chosen(address, act).view(I64)
        if machine.warps is not None:
            machine.warps.note(machine.grid.memory, at, n, act, where)
        return machine.grid.load(at, n, chosen(machine.codes, act), where)

    def store(self, machine, address, words, n, act):
        where, at = machine.reporter(act), chosen(address, act).view(I64)
        if machine.warps is not None:
            machine.warps.note(machine.grid.memory, at, n, act, where, chosen(words, act))
        machine.grid.store(at, chosen(words, act), n, chosen(machine.codes, act), where)


class SharedSpace:
    width = U32

    def load(self, machine, address, n, act):
        shared, where = machine.shared, machine.reporter(act)
        return shared.read(shared.locate(address, n, act, where), n, shared.lanes(n, act), where)

    def store(self, machine, address, words, n, act):
        shared, where = machine.shared, machine.reporter(act)
        shared.write(shared.locate(address, n, act, where), chosen(words, act), n, shared.lanes(n, act), where)


class LocalSpace:
    """Memory of each thread: an address is an offset into a row of its own."""

    width = U32

    def at(self, machine, address, n, act):
        offset = address.astype(np.int64)
        if (
            int(chosen(offset, act).max()) + n > machine.local_bytes
            or int(np.bitwise_or.reduce(chosen(offset, act))) % n
        ):
            raise OutOfBounds(f"local access of {n} bytes outside {machine.local_bytes} or misaligned")
        return chosen((machine.index * machine.local_bytes + offset) // n, act)

    def load(self, machine, address, n, act):
        return machine.local.view(WORDS[n])[self.at(machine, address, n, act)]

    def store(self, machine, address, words, n, act):
        machine.local.view(WORDS[n])[self.at(machine, address, n, act)] = chosen(words, act)


class GenericSpace:
    """Addresses in the window of the local or shared space go there, all others are global."""

    width = U64

    def __init__(self, symbols):
        self.windows = [(symbols["%local_window"], LocalSpace()), (symbols["%shared_window"], SharedSpace())]

    def behind(self, address, act):
        """The space that all active addresses lie in, and the addresses there."""
        lanes = chosen(address, act)
        for start, space in self.windows:
            inside = (lanes >= start) & (lanes < start + 2**32)
            if inside.all():
                return space, (address - np.uint64(start)).astype(U32)
            if inside.any():
                raise Unsupported("unsupported generic access to several spaces at once")
        return GlobalSpace(), address

    def load(self, machine, address, n, act):
        space, address = self.behind(address, act)
        return space.load(machine, address, n, act)

    def store(self, machine, address, words, n, act):
        space, address = self.behind(address, act)
        space.store(machine, address, words, n, act)


def space_named(name, decoder):
    table = {"global": GlobalSpace, "shared": SharedSpace, "local": LocalSpace}
    return table[name]() if name in table else GenericSpace(decoder.symbols)


def shape_of(ins):
    """(bits of one element, how many, its dtype in a register) of a load or store."""
    kind = ins.parts[-1]
    dtype = TYPES[kind] if kind in TYPES else FORMATS[kind].register
    return dtype, next((VECTORS[part] for part in ins.parts if part in VECTORS), 1)


@op("ld", "ldu")
def load(decoder, ins):
    space = space_of(ins)
    if space == "param":
        return load_parameter(decoder, ins)
    dtype, count = shape_of(ins)
    memory, n = space_named(space, decoder), dtype.itemsize * count
    address = decoder.address(ins.args[1], memory.width)
    writes = [decoder.target(name, dtype) for name in decoder.vector(ins.args[0])]
    if len(writes) != count:
        raise ValueError(ins.args[0])
    if n > 16:
        return load_long(memory, address, writes, dtype, n)

    def step(machine, act):
        words = memory.load(machine, address(machine.registers), n, act)
        parts = words.view(dtype)
        for column, write in enumerate(writes):
            one = parts if count == 1 else parts[column::count].copy()
            write(machine.registers, spread(one, act, machine.lanes), act)

    return step


def load_long(memory, address, writes, dtype, n):
    """32 bytes at once, as two halves."""
    half = len(writes) // (n // 16)

    def step(machine, act):
        start = address(machine.registers)
        for piece in range(n // 16):
            at = start + start.dtype.type(16 * piece)
            parts = memory.load(machine, at, 16, act).view(dtype)
            for column, write in enumerate(writes[piece * half : piece * half + half]):
                write(machine.registers, spread(parts[column::half].copy(), act, machine.lanes), act)

    return step


def load_parameter(decoder, ins):
    dtype, name = TYPES[ins.parts[-1]], ins.args[1].strip("[] ")
    base, _, offset = name.partition("+")
    write = decoder.target(ins.args[0], dtype)
    if base.startswith("%"):  # one of several parameters: what stands for a parameter's address is what is in it
        if offset:
            raise ValueError(name)
        read = decoder.source(base.strip(), UNSIGNED[dtype.itemsize])
    elif base.strip() in decoder.parameters:
        read = decoder.source(decoder.parameter(base.strip(), int(offset or 0), dtype), UNSIGNED[dtype.itemsize])
    else:  # an argument or a result of an inlined call
        read = decoder.source(decoder.passed(base.strip(), dtype), dtype)
    return lambda machine, act: write(machine.registers, read(machine.registers).view(dtype), act)


@op("st")
def store(decoder, ins):
    space = space_of(ins)
    dtype, count = shape_of(ins)
    bits = UNSIGNED[dtype.itemsize]
    if space == "param":
        name = decoder.passed(ins.args[0].strip("[] "), dtype)
        read, write = decoder.source(ins.args[1], bits), decoder.target(name, bits)
        return lambda machine, act: write(machine.registers, read(machine.registers), act)
    memory, n = space_named(space, decoder), dtype.itemsize * count
    address = decoder.address(ins.args[0], memory.width)
    reads = [decoder.source(text, bits) for text in decoder.vector(ins.args[1])]
    if len(reads) != count:
        raise ValueError(ins.args[1])
    size = min(n, 16)
    part = count * size // n

    def step(machine, act):
        registers = machine.registers
        start = address(registers)
        for piece in range(n // size):
            if part == 1:
                words = reads[piece](registers)
            else:
                both = np.empty((machine.lanes, part), bits)
                for column in range(part):
                    both[:, column] = reads[piece * part + column](registers)
                words = both.view(WORDS[size])[:, 0]
            at = start if piece == 0 else start + start.dtype.type(16 * piece)
            memory.store(machine, at, words, size, act)

    return step


def added(kind):
    """Addition of values given as bits, in the arithmetic of the type."""
    form = FORMATS.get(kind)
    if form is None:
        dtype = TYPES[kind]
        return lambda old, new: (old.view(dtype) + new.view(dtype)).view(old.dtype)
    return lambda old, new: form.store(form.load(old) + form.load(new))


def typed(function, kind):
    dtype = TYPES[kind]
    return lambda old, new: function(old.view(dtype), new.view(dtype)).view(old.dtype)


def arithmetic(name, kind):
    """(old bits, operand bits) -> new bits of an atomic; compare-and-swap is apart."""
    if name == "add":
        return added(kind)
    if name == "exch":
        return lambda old, new: new
    if name == "inc":
        return lambda old, new: np.where(old >= new, 0, old + 1).astype(old.dtype)
    if name == "dec":
        return lambda old, new: np.where((old == 0) | (old > new), new, old - 1).astype(old.dtype)
    functions = {
        "min": np.minimum,
        "max": np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }
    return typed(functions[name], kind)


def one_after_another(index, words, update):
    """Applies `update(old, rows)` at places that may repeat, in the order of the lanes; the old values."""
    old = np.empty(len(index), words.dtype)
    rest = np.arange(len(index))
    while len(rest):
        first = rest[np.unique(index[rest], return_index=True)[1]]
        old[first] = words[index[first]]
        words[index[first]] = update(old[first], first)
        rest = rest[~np.isin(rest, first)]
    return old


def atomic_places(machine, space, address, n, act, strong):
    """(words, index) of the places of an atomic, checked."""
    where = machine.reporter(act)
    if space == "shared":
        shared = machine.shared
        flat = shared.locate(address, n, act, where)
        shared.atomic(flat, n, shared.lanes(n, act), where)
        return shared.data[n], flat // n
    at = chosen(address, act).view(I64)
    machine.grid.atomic(at, n, chosen(machine.codes, act), where, strong)
    return HOST.words[n], HOST.at(at, n)


@op("atom", "red")
def atom(decoder, ins):
    names = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")
    name, kind = next(part for part in ins.parts if part in names), ins.parts[-1]
    space = space_of(ins)
    space = "global" if space == "generic" else space
    args = ins.args if ins.parts[0] == "atom" else ("_", *ins.args)
    bits = UNSIGNED[TYPES[kind].itemsize] if kind in TYPES else FORMATS[kind].register
    if any(part in VECTORS for part in ins.parts):
        raise ValueError("vector")
    address = decoder.address(args[1], U32 if space == "shared" else U64)
    operands = [decoder.source(text, bits) for text in args[2:4]]
    write, n = decoder.target(args[0], bits), bits.itemsize
    strong = ins.has("acq_rel", "acquire", "release") or (not ins.has("relaxed") and space == "global")
    function = None if name == "cas" else arithmetic(name, kind)

    def step(machine, act):
        registers = machine.registers
        values = [chosen(read(registers), act) for read in operands]
        words, index = atomic_places(machine, space, address(registers), n, act, strong)

        def update(old, rows):
            if function is None:
                return np.where(old == values[0][rows], values[1][rows], old)
            return function(old, values[0][rows])

        old = one_after_another(index, words, update)
        write(registers, spread(old, act, machine.lanes), act)

    return step


@op("fence")
def fence(decoder, ins):
    """Each access is seen by all at once; only the fence between stores and wgmma or TMA is told apart."""
    if ins.has("proxy") and ins.has("async"):
        return lambda machine, act: machine.shared.fence(act)
    return lambda machine, act: None


@op("bar", "membar", "prefetch", "prefetchu", "griddepcontrol", "setmaxnreg", "nanosleep", "discard", "applypriority")
def nothing(decoder, ins):
    """Orders or hints: each simulated access is done at once and seen by all."""
    return lambda machine, act: None


@op("assertfail")
def assertfail(decoder, ins):
    """The call that device_assert makes where its condition is false; its first argument points to the message."""
    message = decoder.source(decoder.passed(decoder.vector(ins.args[1].strip("()"))[0], U64), U64)

    def step(machine, act):
        lane = 0 if act is None else np.flatnonzero(act)[0]
        text = ctypes.string_at(int(message(machine.registers)[lane])).decode()
        raise DeviceAssert(f"device_assert failed: {text}; {machine.where(lane)}")

    return step


@op("trap", "brkpt")
def trap(decoder, ins):
    def step(machine, act):
        raise DeviceAssert(f"the kernel traps: {machine.where(0 if act is None else np.flatnonzero(act)[0])}")

    return step


@op("createpolicy")
def createpolicy(decoder, ins):
    write = decoder.target(ins.args[0], U64)
    return lambda machine, act: write(machine.registers, np.zeros(machine.lanes, U64), act)
