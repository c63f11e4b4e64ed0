"""cvt: between integers and floats of every width, with the rounding and saturation that the opcode names."""

import ml_dtypes
import numpy as np

from tests.sim.alu import flush, toward
from tests.sim.decode import F16, F32, F64, TYPES, U8, U16, U32, f32_to_bf16, op

FP8 = {"e4m3x2": (ml_dtypes.float8_e4m3fn, 448.0), "e5m2x2": (ml_dtypes.float8_e5m2, 57344.0)}
HALF = ("f16", "bf16")
INTEGRAL = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def half_bits(value, kind, down=False):
    """float32 or float64 to the bits of a half float, to nearest even or (`down`) toward zero."""
    if kind == "bf16":
        if down:
            return (np.ascontiguousarray(value, F32).view(U32) >> np.uint32(16)).astype(U16)
        return f32_to_bf16(value)
    found = value.astype(F16)
    if down:
        back = found.astype(value.dtype)
        found = np.where(np.abs(back) > np.abs(value), np.nextafter(found, np.float16(0)), found)
    return found.view(U16)


def fp8_bits(value, kind):
    """float32 to the bits of an 8-bit float, to nearest even, finite values saturated."""
    dtype, limit = FP8[kind]
    return np.clip(value, -limit, limit).astype(dtype).view(U8)


def to_integer(value, dtype):
    """Integral floats to integers, saturated; NaN to zero (the most negative one of 64 bits)."""
    limits = np.iinfo(dtype)
    low, high = float(limits.min), float(limits.max)
    inside = (value > low) & (value < high)
    found = np.where(inside, value, 0).astype(dtype)
    found = np.where(value >= high, dtype.type(limits.max), np.where(value <= low, dtype.type(limits.min), found))
    nothing = dtype.type(limits.min if dtype.itemsize == 8 and dtype.kind == "i" else 0)
    return np.where(np.isnan(value), nothing, found).astype(dtype)


def saturate_integer(value, dtype):
    limits = np.iinfo(dtype)
    return np.clip(value, limits.min, limits.max).astype(dtype)


def function_of(ins, to, given):
    """The conversion of one element, from arrays to compute with to such arrays."""
    whole = next((INTEGRAL[part] for part in ins.parts if part in INTEGRAL), None)
    floats = (*HALF, "f32", "f64")
    if given in floats and to not in floats:
        dtype = TYPES[to]
        return lambda v: to_integer(whole(v).astype(F64), dtype)
    if given in floats:
        return between_floats(ins, to, whole)
    if to in floats:
        dtype = F64 if to == "f64" or TYPES[given].itemsize == 8 else F32
        return from_integer(ins, to, dtype)
    dtype = TYPES[to]
    if ins.has("sat"):
        return lambda v: saturate_integer(v, dtype)
    return lambda v: v.astype(dtype)


def from_integer(ins, to, dtype):
    if to == "f32":
        if ins.has("rz", "rm", "rp"):
            return lambda v: toward(ins, v.astype(F64), v.astype(F32))
        return lambda v: v.astype(F32)
    if to in HALF:
        return lambda v: v.astype(F64)
    return lambda v: v.astype(dtype)


def between_floats(ins, to, whole):
    def convert(value):
        if whole is not None:
            value = whole(value)
        if to == "f64":
            value = value.astype(F64)
        elif to == "f32":
            near = value.astype(F32)
            value = toward(ins, value, near) if ins.has("rz", "rm", "rp") and value.dtype is F64 else near
        if ins.has("sat"):
            value = np.nan_to_num(np.clip(value, 0, 1), nan=0.0)
        if ins.has("relu"):
            value = np.maximum(value, 0)
        return value

    if ins.has("ftz"):
        return lambda v: flush(convert(flush(v) if v.dtype is F32 else v))
    return convert


@op("cvt")
def cvt(decoder, ins):
    to, given = ins.parts[-2:]
    if to in FP8 or given in FP8:
        return convert_fp8(decoder, ins, to, given)
    if to in ("f16x2", "bf16x2"):
        return convert_pair(decoder, ins, to, given)
    if to == "tf32":
        return convert_tf32(decoder, ins)
    if to not in TYPES and to not in HALF:
        raise ValueError(to)
    function = function_of(ins, to, given)
    read = decoder.value(ins.args[1], given)
    if to in HALF:
        down = ins.has("rz")
        write = decoder.target(ins.args[0], U16)
        inner = function
        function = lambda v: half_bits(inner(v), to, down)  # noqa: E731
    elif TYPES[to].kind in "iu":
        write = decoder.target(ins.args[0], TYPES[to])
    else:
        write = decoder.result(ins.args[0], to)

    def step(machine, act):
        write(machine.registers, function(read(machine.registers)), act)

    return step


def convert_pair(decoder, ins, to, given):
    """Two float32 to a packed pair; the first operand becomes the upper half."""
    kind, down = to[:-2], ins.has("rz")
    if given != "f32":
        raise ValueError(given)
    high, low = (decoder.value(text, given) for text in ins.args[1:3])
    write = decoder.target(ins.args[0], U32)
    shape = (lambda v: np.maximum(v, 0)) if ins.has("relu") else (lambda v: v)

    def step(machine, act):
        registers = machine.registers
        both = np.empty((machine.lanes, 2), U16)
        both[:, 0] = half_bits(shape(low(registers)), kind, down)
        both[:, 1] = half_bits(shape(high(registers)), kind, down)
        write(registers, both.view(U32)[:, 0], act)

    return step


def convert_tf32(decoder, ins):
    """float32 to the nearest of 10 mantissa bits: ties away from zero (rna) or to even (rn)."""
    read, write = decoder.source(ins.args[1], U32), decoder.target(ins.args[0], U32)
    even = ins.has("rn")

    def step(machine, act):
        bits = read(machine.registers)
        half = np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1)) if even else np.uint32(0x1000)
        rounded = (bits + half) & np.uint32(0xFFFFE000)
        finite = (bits & np.uint32(0x7F800000)) != np.uint32(0x7F800000)
        write(machine.registers, np.where(finite, rounded, bits), act)

    return step


def convert_fp8(decoder, ins, to, given):
    """Pairs of 8-bit floats from two float32 or a packed pair of half floats, and back to one."""
    if given in FP8:
        dtype, _ = FP8[given]
        read, write = decoder.source(ins.args[1], U16), decoder.result(ins.args[0], to)
        return lambda machine, act: write(machine.registers, read(machine.registers).view(dtype).astype(F32), act)
    write = decoder.target(ins.args[0], U16)
    if given == "f32":
        high, low = (decoder.value(text, given) for text in ins.args[1:3])
        pair = lambda registers: (low(registers), high(registers))  # noqa: E731
    else:
        packed = decoder.value(ins.args[1], given)
        pair = lambda registers: packed(registers).reshape(-1, 2).T  # noqa: E731

    def step(machine, act):
        both = np.empty((machine.lanes, 2), U8)
        for column, value in enumerate(pair(machine.registers)):
            both[:, column] = fp8_bits(value, to)
        write(machine.registers, both.view(U16)[:, 0], act)

    return step
