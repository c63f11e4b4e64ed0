"""Moves, shifts and what works on single bits and bytes."""

import numpy as np

from tests.sim.alu import simple
from tests.sim.decode import BOOL, I32, I64, TYPES, U8, U32, U64, UNSIGNED, op


@op("mov")
def mov(decoder, ins):
    kind, (to, given) = ins.parts[-1], ins.args[:2]
    if kind == "pred":
        read, write = decoder.source(given, BOOL), decoder.target(to, BOOL)
        return lambda machine, act: write(machine.registers, read(machine.registers), act)
    dtype = UNSIGNED[TYPES[kind].itemsize] if kind in TYPES else {"f16": TYPES["b16"], "f16x2": U32}[kind]
    if given[0] == "{":
        return pack(decoder, to, decoder.vector(given), dtype)
    if to[0] == "{":
        return unpack(decoder, decoder.vector(to), given, dtype)
    read, write = decoder.source(given, dtype), decoder.target(to, dtype)
    return lambda machine, act: write(machine.registers, read(machine.registers), act)


def pack(decoder, to, parts, dtype):
    piece = UNSIGNED[dtype.itemsize // len(parts)]
    reads, write = [decoder.source(part, piece) for part in parts], decoder.target(to, dtype)

    def step(machine, act):
        both = np.empty((machine.lanes, len(reads)), piece)
        for column, read in enumerate(reads):
            both[:, column] = read(machine.registers)
        write(machine.registers, both.view(dtype)[:, 0], act)

    return step


def unpack(decoder, names, given, dtype):
    piece, count = UNSIGNED[dtype.itemsize // len(names)], len(names)
    read = decoder.source(given, dtype)
    writes = [(column, decoder.target(name, piece)) for column, name in enumerate(names) if name != "_"]

    def step(machine, act):
        parts = read(machine.registers).view(piece)
        for column, write in writes:
            write(machine.registers, parts[column::count].copy(), act)

    return step


@op("cvta")
def cvta(decoder, ins):
    """Generic addresses: shared and local ones lie in windows of their own, global ones are what they are."""
    window = {"local": decoder.symbols["%local_window"], "shared": decoder.symbols["%shared_window"]}
    shift = next((window[part.split("::")[0]] for part in ins.parts if part.split("::")[0] in window), 0)
    dtype = TYPES["b" + ins.parts[-1][1:]]
    read, write = decoder.source(ins.args[1], dtype), decoder.target(ins.args[0], dtype)
    by = np.uint64(shift)
    if ins.has("to"):
        return lambda machine, act: write(machine.registers, read(machine.registers) - by, act)
    return lambda machine, act: write(machine.registers, read(machine.registers) + by, act)


def clamped_shift(function, filled):
    """Shifts by the width or more give zero, or the sign with arithmetic ones."""

    def shift(value, count):
        bits = 8 * value.dtype.itemsize
        small = np.minimum(count, np.uint32(bits - 1)).astype(value.dtype)
        moved = function(value, small)
        return moved if filled else np.where(count < bits, moved, value.dtype.type(0))

    return shift


@op("shl", "shr")
def shift(decoder, ins):
    kind = ins.parts[-1]
    signed = ins.parts[0] == "shr" and kind[0] == "s"
    dtype = TYPES[kind] if signed else UNSIGNED[TYPES[kind].itemsize]
    function = clamped_shift(np.left_shift if ins.parts[0] == "shl" else np.right_shift, signed)
    if ins.args[2].lstrip("-").isdigit() and int(ins.args[2]) < 8 * dtype.itemsize:
        return shift_by(decoder, ins, dtype, np.left_shift if ins.parts[0] == "shl" else np.right_shift)
    a, n, write = (
        decoder.source(ins.args[1], dtype),
        decoder.source(ins.args[2], U32),
        decoder.target(ins.args[0], dtype),
    )

    def step(machine, act):
        registers = machine.registers
        write(registers, function(a(registers), n(registers)), act)

    return step


def shift_by(decoder, ins, dtype, function):
    """A shift by a small constant."""
    count = dtype.type(int(ins.args[2]))
    read, write = decoder.source(ins.args[1], dtype), decoder.target(ins.args[0], dtype)
    return lambda machine, act: write(machine.registers, function(read(machine.registers), count), act)


@op("shf")
def funnel(decoder, ins):
    """A 64-bit value (high, low) shifted left or right; its upper or lower half."""
    low, high, count = (decoder.source(text, U32) for text in ins.args[1:4])
    write = decoder.target(ins.args[0], U32)
    left, wrap = ins.parts[1] == "l", ins.has("wrap")

    def step(machine, act):
        registers = machine.registers
        n = count(registers)
        n = (n & np.uint32(31) if wrap else np.minimum(n, np.uint32(32))).astype(U64)
        value = low(registers).astype(U64) | high(registers).astype(U64) << np.uint64(32)
        found = (value << n) >> np.uint64(32) if left else value >> n
        write(registers, found.astype(U32), act)

    return step


@op("bfe")
def bfe(decoder, ins):
    kind = ins.parts[-1]
    dtype = TYPES[kind]
    width = 8 * dtype.itemsize
    bits = UNSIGNED[dtype.itemsize]
    a, start, count = decoder.source(ins.args[1], bits), *(decoder.source(t, U32) for t in ins.args[2:4])
    write = decoder.target(ins.args[0], bits)

    def step(machine, act):
        registers = machine.registers
        value = a(registers)
        at = np.minimum(start(registers) & np.uint32(255), np.uint32(width)).astype(U64)
        n = np.minimum(count(registers) & np.uint32(255), np.uint32(width)).astype(U64)
        if dtype.kind == "i":  # the field's sign bit, or the value's own where the field reaches beyond it
            wide = value.view(dtype).astype(I64)
            up = np.uint64(64) - np.minimum(at + n, np.uint64(width))
            moved = (wide.view(U64) << np.minimum(up, np.uint64(63))).view(I64)
            found = moved >> np.minimum(up + np.minimum(at, np.uint64(width - 1)), np.uint64(63)).astype(I64)
            found = np.where(n == 0, 0, found)
        else:
            mask = np.where(n >= 64, ~np.uint64(0), (np.uint64(1) << np.minimum(n, np.uint64(63))) - np.uint64(1))
            found = np.where(at < 64, value.astype(U64) >> np.minimum(at, np.uint64(63)), np.uint64(0)) & mask
        write(registers, found.astype(bits), act)

    return step


@op("bfi")
def bfi(decoder, ins):
    dtype = TYPES[ins.parts[-1]]
    new, old = (decoder.source(t, dtype) for t in ins.args[1:3])
    start, count = (decoder.source(t, U32) for t in ins.args[3:5])
    write = decoder.target(ins.args[0], dtype)

    def step(machine, act):
        registers = machine.registers
        at, n = (read(registers).astype(U64) & np.uint64(63) for read in (start, count))
        mask = ((np.uint64(1) << n) - np.uint64(1)) << at
        found = (new(registers).astype(U64) << at & mask) | (old(registers).astype(U64) & ~mask)
        write(registers, found.astype(dtype), act)

    return step


@op("prmt")
def prmt(decoder, ins):
    """Bytes of two words in the order that the nibbles of a selector say; bit 3 of one copies the sign."""
    if len(ins.parts) > 2:
        raise ValueError(ins.parts[2])
    a, b, selector = (decoder.source(text, U32) for text in ins.args[1:4])
    write = decoder.target(ins.args[0], U32)

    def step(machine, act):
        registers = machine.registers
        value = a(registers).astype(U64) | b(registers).astype(U64) << np.uint64(32)
        chosen, found = selector(registers).astype(U64), np.uint64(0)
        for i in range(4):
            nibble = chosen >> np.uint64(4 * i) & np.uint64(15)
            byte = value >> ((nibble & np.uint64(7)) << np.uint64(3)) & np.uint64(255)
            byte = np.where(nibble > 7, (byte >> np.uint64(7)) * np.uint64(255), byte)
            found = found | byte << np.uint64(8 * i)
        write(registers, found.astype(U32), act)

    return step


@op("lop3")
def lop3(decoder, ins):
    """Any function of three bits, by its table of eight results."""
    table = int(ins.args[4], 0)
    reads, write = [decoder.source(text, U32) for text in ins.args[1:4]], decoder.target(ins.args[0], U32)

    def step(machine, act):
        a, b, c = (read(machine.registers) for read in reads)
        found = np.zeros(machine.lanes, U32)
        for i in range(8):
            if table >> i & 1:
                found |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        write(machine.registers, found, act)

    return step


def bytes_of(value):
    return np.ascontiguousarray(value).view(U8).reshape(len(value), -1)


def leading_zeros(value):
    bits = np.unpackbits(bytes_of(value)[:, ::-1], axis=1)
    return np.where(bits.any(1), bits.argmax(1), bits.shape[1]).astype(U32)


def to_word(function):
    """A handler of one unsigned operand and a 32-bit result."""

    def handler(decoder, ins):
        read = decoder.source(ins.args[1], UNSIGNED[TYPES[ins.parts[-1]].itemsize])
        write = decoder.target(ins.args[0], U32)
        return lambda machine, act: write(machine.registers, function(read(machine.registers)), act)

    return handler


op("clz")(to_word(leading_zeros))
op("popc")(to_word(lambda v: np.bitwise_count(v).astype(U32)))


@op("bfind")
def bfind(decoder, ins):
    """The highest bit that is set (of signed numbers: that is not the sign); all ones where there is none."""
    dtype = TYPES[ins.parts[-1]]
    read, write = decoder.source(ins.args[1], dtype), decoder.target(ins.args[0], U32)
    amount, width = ins.has("shiftamt"), 8 * dtype.itemsize

    def step(machine, act):
        value = read(machine.registers)
        value = np.where(value < 0, ~value, value) if dtype.kind == "i" else value
        zeros = leading_zeros(value)
        found = np.where(zeros == width, ~np.uint32(0), zeros if amount else np.uint32(width - 1) - zeros)
        write(machine.registers, found.astype(U32), act)

    return step


@op("brev")
def brev(decoder, ins):
    dtype = TYPES[ins.parts[-1]]

    def reverse(value):
        bits = np.unpackbits(bytes_of(value)[:, ::-1], axis=1)[:, ::-1]
        return np.packbits(bits, axis=1)[:, ::-1].copy().view(dtype)[:, 0]

    return simple(reverse, ins, decoder, ins.parts[-1], 1)


@op("dp4a", "dp2a")
def dot_of_bytes(decoder, ins):
    if ins.parts[0] == "dp2a":
        raise ValueError("dp2a")
    kinds = [np.dtype(np.int8) if part == "s32" else U8 for part in ins.parts[1:3]]
    signed = "s32" in ins.parts[1:3]
    a, b = (decoder.source(text, U32) for text in ins.args[1:3])
    c, write = decoder.source(ins.args[3], I32 if signed else U32), decoder.target(ins.args[0], I32 if signed else U32)

    def step(machine, act):
        registers = machine.registers
        x = a(registers).view(kinds[0]).reshape(-1, 4).astype(I32)
        y = b(registers).view(kinds[1]).reshape(-1, 4).astype(I32)
        total = (x * y).sum(1, dtype=I32)
        write(registers, c(registers) + (total if signed else total.view(U32)), act)

    return step
