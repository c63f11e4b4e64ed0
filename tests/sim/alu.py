"""Arithmetic, logic, comparison and selection: one table row an instruction, one numpy expression each."""

import numpy as np

from tests.sim.decode import BOOL, F32, F64, FORMATS, I32, SIGNED, TYPES, U64, UNSIGNED, op

TINY = np.finfo(F32).tiny
INTEGERS = ("b", "u", "s")
CARRY = "%carry"


def flush(value):
    """Subnormal numbers to zero of their sign, as .ftz wants."""
    return np.where(np.abs(value) >= TINY, value, value * np.float32(0))


def unsigned_kind(kind):
    """The type that addition, multiplication and logic may take in place of a signed integer's."""
    return "u" + kind[1:] if kind[0] in "bs" and kind[1:].isdigit() else kind


def tuned(function, instruction, kind):
    """`function` with the flushing and saturation that the instruction's modifiers ask for."""
    if instruction.has("ftz") and kind in ("f32", "f32x2"):
        inner = function
        function = lambda *args: flush(inner(*map(flush, args)))  # noqa: E731
    if instruction.has("sat") and kind[0] in "fb":
        unsaturated = function
        function = lambda *args: np.nan_to_num(np.clip(unsaturated(*args), 0, 1), nan=0.0)  # noqa: E731
    if instruction.has("relu"):
        unclipped = function
        function = lambda *args: np.maximum(unclipped(*args), 0)  # noqa: E731
    return function


def simple(function, instruction, decoder, kind, count, first=1):
    """A step that applies a NumPy function to operands of one type."""
    function = tuned(function, instruction, kind)
    args = instruction.args
    write = decoder.result(args[0], kind)
    reads = [decoder.value(text, kind) for text in args[first : first + count]]
    if count == 1:
        (a,) = reads
        return lambda machine, act: write(machine.registers, function(a(machine.registers)), act)
    if count == 2:
        a, b = reads

        def step(machine, act):
            registers = machine.registers
            write(registers, function(a(registers), b(registers)), act)

        return step
    return lambda machine, act: write(machine.registers, function(*[r(machine.registers) for r in reads]), act)


def least(instruction, kind, ordinary, quiet):
    """min and max: `quiet` takes the number where one operand is NaN, `ordinary` with .NaN and for integers."""
    if kind[0] in "us":
        return ordinary
    chosen = ordinary if instruction.has("NaN") else quiet
    if instruction.has("xorsign"):
        return lambda a, b: np.copysign(chosen(np.abs(a), np.abs(b)), np.copysign(1, a) * np.copysign(1, b)).astype(F32)
    return zeros_in_order(chosen, quiet is np.fmin)


def zeros_in_order(function, least):
    """min or max for which -0.0 is less than +0.0."""

    def ordered(a, b):
        found = function(a, b)
        zero = (a == 0) & (b == 0)
        if zero.any():
            found = np.where(zero, np.where(np.signbit(a) == least, a, b), found)
        return found

    return ordered


def mixed(decoder, ins):
    """add, sub and fma with half operands and a float32 result (sm_100 and later): add.rn.f32.f16."""
    args, (wide, half) = ins.args, ins.parts[-2:]
    count = len(args) - 2
    narrow = [decoder.value(text, half) for text in args[1 : 1 + count]]
    last, write = decoder.value(args[-1], wide), decoder.result(args[0], wide)
    sign = -1 if ins.parts[0] == "sub" else 1

    def step(machine, act):
        registers = machine.registers
        product = np.prod([read(registers).astype(F64) for read in narrow], axis=0)
        write(registers, (product + sign * last(registers).astype(F64)).astype(F32), act)

    return step


def float_pair(ins):
    """Whether the opcode ends in two float types."""
    return ins.parts[-2] in ("f32", "f64") and ins.parts[-1] in FORMATS


@op("add", "sub")
def add(decoder, ins):
    if ins.has("cc"):
        return carrying(decoder, ins)
    if float_pair(ins):
        return mixed(decoder, ins)
    kind = unsigned_kind(ins.parts[-1])
    function = np.add if ins.parts[0] == "add" else np.subtract
    if ins.has("sat") and kind == "u32":
        return saturated(decoder, ins, function)
    if directed(ins, kind):
        exact = function
        function = lambda a, b: toward(ins, exact(a.astype(F64), b), exact(a, b))  # noqa: E731
    return simple(function, ins, decoder, kind, 2)


def directed(ins, kind):
    return kind == "f32" and ins.has("rz", "rm", "rp")


def toward(ins, exact, nearest):
    """A float32 result in the rounding direction of the instruction, from its float64 value."""
    if ins.has("rz"):
        return np.where(np.abs(nearest) > np.abs(exact), np.nextafter(nearest, np.float32(0)), nearest).astype(F32)
    if ins.has("rm"):
        return np.where(nearest > exact, np.nextafter(nearest, np.float32(-np.inf)), nearest).astype(F32)
    return np.where(nearest < exact, np.nextafter(nearest, np.float32(np.inf)), nearest).astype(F32)


def saturated(decoder, ins, function):
    limits = np.iinfo(I32)
    exact = lambda a, b: np.clip(function(a.astype(np.int64), b), limits.min, limits.max).astype(I32)  # noqa: E731
    return simple(exact, ins, decoder, "s32", 2)


@op("addc", "subc", "madc")
def carried(decoder, ins):
    return carrying(decoder, ins)


def carrying(decoder, ins):
    """Integer chains over the carry flag: add.cc, addc, sub.cc, subc, mad.lo.cc, madc.hi."""
    name, args, kind = ins.parts[0], ins.args, "u" + ins.parts[-1][1:]
    size = TYPES[kind].itemsize
    bits = 8 * size
    flag = decoder.slot(CARRY, U64)
    reads = [decoder.value(text, kind) for text in args[1:]]
    write = decoder.result(args[0], kind)
    uses, sets, high = name.endswith("c"), ins.has("cc"), ins.has("hi")

    def step(machine, act):
        registers = machine.registers
        values = [read(registers).astype(object) if size == 8 else read(registers).astype(np.uint64) for read in reads]
        if name.startswith("mad"):
            product = values[0] * values[1]
            values = [product >> bits if high else product & ((1 << bits) - 1), values[2]]
        carry = registers[flag].astype(values[0].dtype) if uses else 0
        total = values[0] + values[1] + carry if name[0] != "s" else values[0] - values[1] - carry + (1 << bits)
        write(registers, (total & ((1 << bits) - 1)).astype(TYPES[kind]), act)
        if sets:
            over = (total >> bits).astype(U64)
            over = over if name[0] != "s" else np.uint64(1) - over
            machine.registers[flag] = over if act is None else np.where(act, over, machine.registers[flag])

    return step


def high_product(a, b):
    """Upper half of a product of 64-bit integers."""
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    x, y = a.view(U64), b.view(U64)
    x0, x1, y0, y1 = x & low, x >> half, y & low, y >> half
    middle = x1 * y0 + (x0 * y0 >> half)
    other = x0 * y1 + (middle & low)
    high = x1 * y1 + (middle >> half) + (other >> half)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return high.view(a.dtype)


def wider(dtype):
    return (SIGNED if dtype.kind == "i" else UNSIGNED)[2 * dtype.itemsize]


def product(ins, dtype):
    """The function of an integer multiplication, by its part: lo, hi, wide or 24 bits."""
    if ins.has("hi"):
        if dtype.itemsize == 8:
            return high_product
        wide, shift = wider(dtype), 8 * dtype.itemsize
        return lambda a, b: (a.astype(wide) * b.astype(wide) >> wide.type(shift)).astype(dtype)
    if ins.has("wide"):
        wide = wider(dtype)
        return lambda a, b: a.astype(wide) * b.astype(wide)
    return np.multiply


@op("mul")
def mul(decoder, ins):
    kind = ins.parts[-1]
    if kind[0] not in "us" or kind in FORMATS:
        function = np.multiply
        if directed(ins, kind):
            function = lambda a, b: toward(ins, a.astype(F64) * b, a * b)  # noqa: E731
        return simple(function, ins, decoder, kind, 2)
    dtype = TYPES[kind if ins.has("hi", "wide") else unsigned_kind(kind)]
    function = product(ins, dtype)
    a, b = (decoder.source(text, dtype) for text in ins.args[1:3])
    write = decoder.target(ins.args[0], wider(dtype) if ins.has("wide") else dtype)

    def step(machine, act):
        registers = machine.registers
        write(registers, function(a(registers), b(registers)), act)

    return step


@op("mad")
def mad(decoder, ins):
    if ins.has("cc"):
        return carrying(decoder, ins)
    kind = ins.parts[-1]
    if kind[0] == "f":
        return fma(decoder, ins)
    dtype = TYPES[kind if ins.has("hi", "wide") else unsigned_kind(kind)]
    whole = wider(dtype) if ins.has("wide") else dtype
    function = product(ins, dtype)
    a, b = (decoder.source(text, dtype) for text in ins.args[1:3])
    c, write = decoder.source(ins.args[3], whole), decoder.target(ins.args[0], whole)

    def step(machine, act):
        registers = machine.registers
        write(registers, function(a(registers), b(registers)) + c(registers), act)

    return step


def two_sum(a, b):
    total = a + b
    rest = total - a
    return total, (a - (total - rest)) + (b - rest)


def split(value):
    big = value * 134217729.0
    high = big - (big - value)
    return high, value - high


def fma64(a, b, c):
    """a * b + c in float64, rounded once but for rare ties (double-double arithmetic)."""
    p = a * b
    a_high, a_low = split(a)
    b_high, b_low = split(b)
    error = ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low
    total, rest = two_sum(p, c)
    exact = total + (rest + error)
    return np.where(np.isfinite(exact), exact, p + c)


def fma32(a, b, c):
    """a * b + c in float32, rounded once: a float64 sum between two float32 goes to the exact one's side."""
    p = a.astype(F64) * b
    total = p + c
    bits = total.view(U64)
    tie = (bits & np.uint64(0x1FFFFFFF)) == np.uint64(0x10000000)
    if tie.any():
        rest = two_sum(p, c.astype(F64))[1]
        away = tie & (rest != 0) & ((rest > 0) == (total > 0))
        nearer = tie & (rest != 0) & ~away
        total = (bits + away.astype(U64) - nearer.astype(U64)).view(F64)
    return total.astype(F32)


def fma_half(a, b, c):
    """In float64, which holds the sum of half floats exactly unless they lie 2**29 apart."""
    return a.astype(F64) * b + c


@op("fma")
def fma(decoder, ins):
    if float_pair(ins):
        return mixed(decoder, ins)
    kind = ins.parts[-1]
    function = {"f32": fma32, "f32x2": fma32, "f64": fma64}.get(kind, fma_half)
    if directed(ins, kind):
        function = lambda a, b, c: toward(ins, a.astype(F64) * b + c, fma32(a, b, c))  # noqa: E731
    return simple(function, ins, decoder, kind, 3)


@op("min")
def minimum(decoder, ins):
    kind = ins.parts[-1]
    function = least(ins, kind, np.minimum, np.fmin)
    return simple(
        function if len(ins.args) == 3 else (lambda a, b, c: function(function(a, b), c)),
        ins,
        decoder,
        kind,
        len(ins.args) - 1,
    )


@op("max")
def maximum(decoder, ins):
    kind = ins.parts[-1]
    function = least(ins, kind, np.maximum, np.fmax)
    return simple(
        function if len(ins.args) == 3 else (lambda a, b, c: function(function(a, b), c)),
        ins,
        decoder,
        kind,
        len(ins.args) - 1,
    )


def quotient(a, b):
    """Integer division toward zero; by zero all bits are set, as the hardware does."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    found = a // safe
    if a.dtype.kind == "i":
        found = found + ((found * safe != a) & ((a < 0) != (safe < 0)))
    return np.where(b == 0, ~np.zeros_like(a), found).astype(a.dtype)


def remainder(a, b):
    safe = np.where(b == 0, b.dtype.type(1), b)
    return np.where(b == 0, a, np.fmod(a, safe)).astype(a.dtype)


@op("div")
def div(decoder, ins):
    kind = ins.parts[-1]
    return simple(np.divide if kind[0] == "f" else quotient, ins, decoder, kind, 2)


@op("rem")
def rem(decoder, ins):
    return simple(remainder, ins, decoder, ins.parts[-1], 2)


def lg2(x):
    return np.log2(x)


UNARY = {
    "neg": np.negative, "abs": np.abs, "sqrt": np.sqrt, "sin": np.sin, "cos": np.cos, "ex2": np.exp2, "lg2": lg2,
    "tanh": np.tanh, "rcp": lambda x: x.dtype.type(1) / x, "rsqrt": lambda x: x.dtype.type(1) / np.sqrt(x),
}  # fmt: skip


def coarse(function):
    """The upper 32 bits of a float64 result only: rcp.approx.ftz.f64."""
    return lambda x: (function(x).view(U64) & np.uint64(0xFFFFFFFF00000000)).view(F64)


def of_float(decoder, ins):
    name, kind = ins.parts[0], ins.parts[-1]
    function = UNARY[name]
    if kind == "f64" and ins.has("approx") and ins.has("ftz"):
        function = coarse(function)
    if kind in ("bf16", "bf16x2") and name in ("neg", "abs"):
        return sign_bits(decoder, ins, name, kind)
    return simple(function, ins, decoder, kind, 1)


def sign_bits(decoder, ins, name, kind):
    """neg and abs of bfloat16, which keep the payload of NaNs."""
    bits = np.uint16(0x8000)
    function = (lambda v: v ^ bits) if name == "neg" else (lambda v: v & ~bits)
    return simple(function, ins, decoder, "u16x2" if kind.endswith("x2") else "u16", 1)


for _name in UNARY:
    op(_name)(of_float)


@op("copysign")
def copysign(decoder, ins):
    return simple(lambda sign, value: np.copysign(value, sign), ins, decoder, ins.parts[-1], 2)


LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


@op("and", "or", "xor")
def logic(decoder, ins):
    return simple(LOGIC[ins.parts[0]], ins, decoder, ins.parts[-1], 2)


@op("not")
def invert(decoder, ins):
    return simple(np.invert, ins, decoder, ins.parts[-1], 1)


@op("cnot")
def cnot(decoder, ins):
    return simple(lambda v: (v == 0).astype(v.dtype), ins, decoder, ins.parts[-1], 1)


COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip


def comparison(name, is_float):
    """The function of a comparison; the ones with a u are true of NaN."""
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if len(name) == 3:
        ordered = COMPARE[name[:2]]
        return lambda a, b: ordered(a, b) | np.isnan(a) | np.isnan(b)
    if name == "ne" and is_float:
        return lambda a, b: (a < b) | (a > b)
    return COMPARE[name]


@op("setp", "set")
def setp(decoder, ins):
    kind = ins.parts[-1]
    is_float = kind[0] == "f" or kind.startswith("bf")
    function = tuned_comparison(comparison(ins.parts[1], is_float), ins)
    a, b = (decoder.value(text, kind) for text in ins.args[1:3])
    if ins.parts[0] == "set":
        return set_value(decoder, ins, function, a, b)
    names = [name.strip() for name in ins.args[0].split("|")]
    writes = [decoder.target(name, BOOL) for name in names]
    packed, count = kind.endswith("x2"), len(names)
    join = next((LOGIC[part] for part in ins.parts[2:-1] if part in LOGIC), None)
    third = decoder.source(ins.args[3], BOOL) if join else None

    def step(machine, act):
        registers = machine.registers
        found = function(a(registers), b(registers))
        found = [found[0::2], found[1::2]] if packed else [found, ~found][:count]
        for write, one in zip(writes, found):
            write(registers, one if join is None else join(one, third(registers)), act)

    return step


def tuned_comparison(function, ins):
    if ins.has("ftz") and ins.parts[-1] == "f32":
        return lambda a, b: function(flush(a), flush(b))
    return function


def set_value(decoder, ins, function, a, b):
    """set: all bits, or 1.0, where the comparison holds."""
    kind = ins.parts[-2]
    if kind not in ("f32", "u32", "s32", "f16x2", "bf16x2", "u16", "s16"):
        raise ValueError(kind)
    write = decoder.result(ins.args[0], kind)
    true = 1.0 if "f" in kind else -1
    dtype = F32 if "f" in kind else TYPES[kind]
    return lambda m, act: write(
        m.registers, (function(a(m.registers), b(m.registers)) * np.array(true)).astype(dtype), act
    )


@op("selp")
def selp(decoder, ins):
    kind = "b" + ins.parts[-1][1:] if ins.parts[-1][1:].isdigit() else ins.parts[-1]
    kind = {"f16x2": "b32", "bf16": "b16", "bf16x2": "b32"}.get(kind, kind)
    a, b = (decoder.source(text, TYPES[kind]) for text in ins.args[1:3])
    choose, write = decoder.source(ins.args[3], BOOL), decoder.target(ins.args[0], TYPES[kind])

    def step(machine, act):
        registers = machine.registers
        write(registers, np.where(choose(registers), a(registers), b(registers)), act)

    return step


@op("slct")
def slct(decoder, ins):
    kind, by = ins.parts[-2:]
    a, b, c = decoder.value(ins.args[1], kind), decoder.value(ins.args[2], kind), decoder.value(ins.args[3], by)
    write = decoder.result(ins.args[0], kind)
    return lambda m, act: write(m.registers, np.where(c(m.registers) >= 0, a(m.registers), b(m.registers)), act)
