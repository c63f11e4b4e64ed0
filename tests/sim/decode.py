"""From operands as text to closures: where a register lives, how its bits are read as a type and written back."""

import re
import struct

import numpy as np

from tests.sim.errors import SimTrap, Unsupported

BOOL = np.dtype(bool)
U8, U16, U32, U64 = (np.dtype(f"u{n}") for n in (1, 2, 4, 8))
I8, I16, I32, I64 = (np.dtype(f"i{n}") for n in (1, 2, 4, 8))
F16, F32, F64 = (np.dtype(f"f{n}") for n in (2, 4, 8))

TYPES = {
    "pred": BOOL, "b8": U8, "u8": U8, "s8": I8, "b16": U16, "u16": U16, "s16": I16, "b32": U32, "u32": U32, "s32": I32,
    "b64": U64, "u64": U64, "s64": I64, "f32": F32, "f64": F64, "tf32": U32,
}  # fmt: skip
UNSIGNED = {1: U8, 2: U16, 4: U32, 8: U64}
SIGNED = {1: I8, 2: I16, 4: I32, 8: I64}
UNWRITTEN = {1: 0xD1, 2: 0x7DDD, 4: 0xFFBADBAD, 8: 0xFFFBADBADBADBADB}  # a NaN as float: nothing right comes of it
SPECIAL = re.compile(r"%(?:n?tid|n?ctaid|n?clusterid|cluster_n?ctaid)\.[xyz]$|%(?:laneid|warpid|cluster_n?ctarank)$")

OPS = {}  # first part (or first three) of the opcode: handler(decoder, instruction) -> step(machine, active lanes)


def op(*names):
    """Registers a handler of instructions."""

    def register(handler):
        for name in names:
            OPS[name] = handler
        return handler

    return register


def bf16_to_f32(bits):
    return (bits.astype(U32) << np.uint32(16)).view(F32)


def odd_f32(value):
    """float64 to float32 so that a rounding to fewer bits may follow: what is lost sets the last bit."""
    near = value.astype(F32)
    back = near.astype(F64)
    bits, lost = near.view(U32), (back != value) & np.isfinite(back)
    below = bits - (np.abs(back) > np.abs(value))
    return np.where(lost, below | np.uint32(1), bits).astype(U32).view(F32)


def f32_to_bf16(value):
    """Round to nearest, ties to even; every NaN becomes the canonical one. Of float64 as well, rounded once."""
    value = odd_f32(value) if value.dtype is F64 else np.ascontiguousarray(value, F32)
    bits = value.view(U32)
    up = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    return np.where(np.isnan(value), np.uint16(0x7FFF), (up >> np.uint32(16)).astype(U16))


class Format:
    """How the bits of a register become an array to compute with, and back."""

    def __init__(self, register, load, store):
        self.register, self.load, self.store = register, load, store


FORMATS = {
    "f16": Format(U16, lambda v: v.view(F16).astype(F32), lambda v: v.astype(F16).view(U16)),
    "bf16": Format(U16, bf16_to_f32, f32_to_bf16),
    "f16x2": Format(U32, lambda v: v.view(F16).astype(F32), lambda v: v.astype(F16).view(U32)),
    "bf16x2": Format(U32, lambda v: bf16_to_f32(v.view(U16)), lambda v: f32_to_bf16(v).view(U32)),
    "f32x2": Format(U64, lambda v: v.view(F32), lambda v: v.view(U64)),
    "s16x2": Format(U32, lambda v: v.view(I16), lambda v: v.view(U32)),
    "u16x2": Format(U32, lambda v: v.view(U16), lambda v: v.view(U32)),
}


def put(registers, slot, value, act):
    """Writes the active lanes of a register."""
    if act is not None:
        old = registers[slot]
        if old.dtype is not value.dtype:
            old = old.view(value.dtype)
        value = np.where(act, value, old)
    registers[slot] = value


def constant_bits(text, dtype):
    """The bits of an immediate operand as an unsigned integer of the type's width."""
    size = dtype.itemsize
    if text in ("true", "false"):
        return int(text == "true")
    if text[:2] in ("0f", "0F"):
        bits = int(text[2:], 16)
        return (
            bits
            if size <= 4
            else struct.unpack("<Q", struct.pack("<d", struct.unpack("<f", struct.pack("<I", bits))[0]))[0]
        )
    if text[:2] in ("0d", "0D"):
        return int(text[2:], 16)
    if "." in text:
        return int.from_bytes(struct.pack("<f" if size == 4 else "<d", float(text)), "little")
    return int(text.rstrip("U"), 0) & ((1 << 8 * size) - 1)


class Decoder:
    """Slots of registers and constants of one kernel, and the closures of its instructions."""

    def __init__(self, listing, symbols):
        self.listing, self.symbols = listing, symbols
        self.slots, self.types, self.constants, self.specials = {}, [], {}, {}
        self.parameters = {name for name, _, _ in listing.params}
        self.arguments = {}  # slot: (parameter, offset, bytes)

    def register_type(self, name):
        known = self.listing.types
        kind = known.get(name) or known.get(re.sub(r"\d+$", "", name))
        if kind is None:
            raise Unsupported(f"unsupported operand {name}")
        return TYPES[kind] if kind in TYPES else UNSIGNED[{"f16": 2, "f16x2": 4, "b1024": 8}[kind]]

    def slot(self, name, dtype=None):
        """Index of a register in the machine's list."""
        if name not in self.slots:
            if SPECIAL.match(name):
                dtype = U32
                self.specials[name] = len(self.types)
            dtype = dtype or self.register_type(name)
            self.slots[name] = len(self.types)
            self.types.append(dtype if dtype.kind == "b" else UNSIGNED[dtype.itemsize])
        return self.slots[name]

    def fixed(self, bits, dtype):
        """Slot of a constant."""
        key = f"#{bits}:{dtype.itemsize}"
        slot = self.slot(key, dtype)
        self.constants[slot] = bits
        return slot

    def operand(self, text, dtype):
        """Slot of a register, an immediate or an address."""
        if text[0] in "%" or text in self.slots or text in self.listing.types:
            return self.slot(text)
        if text in self.parameters:  # its address: that of a tensor map
            return self.slot(self.parameter(text, 0, U64))
        symbol, _, offset = text.partition("+")
        if symbol in self.symbols:
            address = self.symbols[symbol] + int(offset or "0", 0)
            return self.fixed(address & ((1 << 8 * dtype.itemsize) - 1), dtype)
        try:
            return self.fixed(constant_bits(text, dtype), dtype)
        except ValueError:
            raise Unsupported(f"unsupported operand {text}") from None

    def parameter(self, name, offset, dtype):
        """Name of the register that holds a part of a kernel parameter."""
        register = f"%param.{name}.{offset}.{dtype.itemsize}"
        self.arguments[self.slot(register, UNSIGNED[dtype.itemsize])] = (name, offset, dtype.itemsize)
        return register

    def passed(self, name, dtype):
        """Name of the register that stands for an argument or a result of an inlined call."""
        register = f"%passed.{name}.{dtype.itemsize}"
        self.slot(register, UNSIGNED[dtype.itemsize])
        return register

    def source(self, text, dtype):
        """Reader of an operand as an array of a NumPy dtype: registers -> array of all lanes."""
        if dtype is BOOL and text[0] == "!":
            inner = self.source(text[1:], dtype)
            return lambda registers: ~inner(registers)
        slot = self.operand(text, dtype)
        width = self.types[slot].itemsize

        def same(registers):
            value = registers[slot]
            return value if value.dtype is dtype else value.view(dtype)

        def other(registers):
            value = registers[slot].view(UNSIGNED[width]).astype(UNSIGNED[dtype.itemsize])
            return value if value.dtype is dtype else value.view(dtype)

        if (dtype is BOOL) != (self.types[slot] is BOOL):
            raise Unsupported(f"unsupported mix of predicate and value in operand {text}")
        return same if width == dtype.itemsize else other

    def value(self, text, kind):
        """Reader of an operand of a PTX type, packed ones and half floats as arrays to compute with."""
        form = FORMATS.get(kind)
        if form is None:
            return self.source(text, TYPES[kind])
        bits, load = self.source(text, form.register), form.load
        return lambda registers: load(bits(registers))

    def target(self, text, dtype):
        """Writer of a register: (registers, array of `dtype`, active lanes); widens to the register's width."""
        if text == "_":
            return lambda registers, value, act: None
        slot = self.slot(text)
        width = self.types[slot].itemsize
        if (dtype is BOOL) != (self.types[slot] is BOOL) or width < dtype.itemsize:
            raise Unsupported(f"unsupported register {text} for a result of {dtype}")
        if width == dtype.itemsize:

            def same(registers, value, act):
                put(registers, slot, value, act)

            return same
        wide = (SIGNED if dtype.kind == "i" else UNSIGNED)[width]
        return lambda registers, value, act: put(registers, slot, value.astype(wide), act)

    def result(self, text, kind):
        """Writer of a register of a PTX type, packed ones and half floats from arrays to compute with."""
        form = FORMATS.get(kind)
        if form is None:
            return self.target(text, TYPES[kind])
        write, store = self.target(text, form.register), form.store
        return lambda registers, value, act: write(registers, store(value), act)

    def vector(self, text):
        """The operands in braces, or the one that stands alone."""
        return [part.strip() for part in text.strip("{} \t").split(",")]

    def address(self, text, dtype):
        """Reader of "[%r1+16]": an address of every lane."""
        base, sign, offset = re.match(r"\[\s*([^\s+\-\]]+)\s*(?:([+-])\s*([-\w]+))?\s*\]$", text).groups()
        read = self.source(base, dtype)
        by = int(offset, 0) * (-1 if sign == "-" else 1) if offset else 0
        if by == 0:
            return read
        by = dtype.type(by % (1 << 8 * dtype.itemsize))
        return lambda registers: read(registers) + by

    def decode(self, instruction):
        """The step of one instruction; a guard's predicate narrows the active lanes."""
        handler = OPS.get(".".join(instruction.parts[:3])) or OPS.get(instruction.parts[0])
        if handler is None:
            raise Unsupported(f"unsupported instruction {instruction.parts[0]}").at(
                self.where(instruction), instruction.text
            )
        try:
            step = handler(self, instruction)
            return (
                guarded(self.source(instruction.guard, BOOL), instruction.negated, step) if instruction.guard else step
            )
        except (KeyError, AttributeError, IndexError, ValueError, TypeError) as error:
            message = f"unsupported form of instruction {'.'.join(instruction.parts)} ({error!r})"
            raise Unsupported(message).at(self.where(instruction), instruction.text) from error
        except SimTrap as trap:
            raise trap.at(self.where(instruction), instruction.text) from None

    def where(self, instruction):
        return f"{self.listing.name}, line {instruction.line} of the PTX"


def guarded(predicate, negated, step):
    def run(machine, act):
        chosen = predicate(machine.registers)
        if negated:
            chosen = ~chosen
        if act is not None:
            chosen = chosen & act
        count = np.count_nonzero(chosen)
        if count:
            step(machine, None if count == machine.lanes else chosen)

    return run
