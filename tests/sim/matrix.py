"""Matrix products of a warp (mma.sync) and the loads and stores of their fragments (ldmatrix, stmatrix)."""

import re

import ml_dtypes
import numpy as np

from tests.sim.decode import F16, F32, F64, I32, I64, TYPES, U16, U32, U64, bf16_to_f32, op
from tests.sim.exchange import whole_warps

FP8_VALUES = {
    "e4m3": np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(F32),
    "e5m2": np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e5m2).astype(F32),
}
ELEMENTS = {  # bytes of an element, and words to float32 that holds every product exactly (f64: float64)
    "f16": (2, lambda v: v.view(F16).astype(F32)),
    "bf16": (2, lambda v: bf16_to_f32(v.view(U16))),
    "tf32": (4, lambda v: (v.view(U32) & np.uint32(0xFFFFE000)).view(F32)),
    "e4m3": (1, lambda v: FP8_VALUES["e4m3"][v.view(np.uint8)]),
    "e5m2": (1, lambda v: FP8_VALUES["e5m2"][v.view(np.uint8)]),
    "s8": (1, lambda v: v.view(np.int8).astype(F32)),
    "u8": (1, lambda v: v.view(np.uint8).astype(F32)),
    "f64": (8, lambda v: v.view(F64)),
}


def shape_of(ins):
    """(M, N, K) out of the opcode."""
    return next(
        tuple(map(int, found.groups())) for part in ins.parts if (found := re.match(r"m(\d+)n(\d+)k(\d+)$", part))
    )


def gather(machine, reads):
    """Registers of all lanes, stacked: one row a register."""
    first = reads[0](machine.registers)
    rows = np.empty((len(reads), machine.lanes), first.dtype)
    rows[0] = first
    for i, read in enumerate(reads[1:], 1):
        rows[i] = read(machine.registers)
    return rows


def fragment_a(rows, kind, m, k):
    """The left operand (warps, M, K) from its registers: row halves fastest, then halves of K."""
    size, load = ELEMENTS[kind]
    word = rows.dtype.itemsize // size
    halves, depth = m // 8, k // (4 * word)
    parts = load(rows).reshape(depth, halves, -1, 8, 4, word)
    return np.ascontiguousarray(parts.transpose(2, 1, 3, 0, 4, 5)).reshape(-1, m, k)


def fragment_b(rows, kind, k):
    """The right operand (warps, K, 8)."""
    size, load = ELEMENTS[kind]
    word = rows.dtype.itemsize // size
    parts = load(rows).reshape(k // (4 * word), -1, 8, 4, word)
    return np.ascontiguousarray(parts.transpose(1, 0, 3, 4, 2)).reshape(-1, k, 8)


def accumulate(a, b, c, saturate=False):
    """a @ b + c in the accumulator's type."""
    exact = np.matmul(a, b)
    if c.dtype.kind == "f":
        return (exact + c.astype(exact.dtype)).astype(c.dtype)
    total = exact.astype(I64) + c
    return np.clip(total, -(2**31), 2**31 - 1).astype(I32) if saturate else total.astype(I32)


def scales(decoder, args, rows, spread):
    """Reader of the powers of two that scale the rows (or columns) of an operand: (warps, rows).

    A register of each lane holds four exponents; the operands in braces choose the byte and the lanes that give it.
    """
    read = decoder.source(args[0], U32)
    byte, thread = (int(text) for text in decoder.vector(args[1]))

    def powers(registers):
        exponents = (read(registers) >> np.uint32(8 * byte) & np.uint32(255)).reshape(-1, 8, 4)
        chosen = exponents[:, :, thread * spread : (thread + 1) * spread]
        return np.exp2(chosen.transpose(0, 2, 1).reshape(-1, rows).astype(F64) - 127)

    return powers


@op("mma")
def mma(decoder, ins):
    m, n, k = shape_of(ins)
    types = ins.parts[:-1] if ins.has("block_scale") else ins.parts
    kind_d, kind_a, kind_b, kind_c = types[-4:]
    if n != 8 or kind_c != kind_d or kind_a not in ELEMENTS or kind_b not in ELEMENTS or ins.has("sp"):
        raise ValueError("mma")
    scaled = None
    if ins.has("block_scale"):
        if not ins.has("scale_vec::1X") or ins.parts[-1] != "ue8m0":
            raise ValueError("block scale")
        scaled = scales(decoder, ins.args[4:6], m, 2), scales(decoder, ins.args[6:8], n, 1)
    word = U64 if kind_a == "f64" else U32
    a, b = ([decoder.source(r, word) for r in decoder.vector(ins.args[i])] for i in (1, 2))
    half = kind_c == "f16"
    c = [decoder.source(r, U32 if half else TYPES[kind_c]) for r in decoder.vector(ins.args[3])]
    writes = [decoder.target(r, U32 if half else TYPES[kind_c]) for r in decoder.vector(ins.args[0])]
    saturate = ins.has("satfinite")

    def step(machine, act):
        whole_warps(machine, act, "mma.sync")
        rows = gather(machine, c)
        if half:
            old = rows.view(F16).astype(F32).reshape(m // 8, -1, 8, 4, 2).transpose(1, 0, 2, 3, 4)
        else:
            old = rows.reshape(m // 8, 2, -1, 8, 4).transpose(2, 0, 3, 4, 1)
        left, right = fragment_a(gather(machine, a), kind_a, m, k), fragment_b(gather(machine, b), kind_b, k)
        if scaled:
            left = left * scaled[0](machine.registers)[:, :, None]
            right = right * scaled[1](machine.registers)[:, None, :]
        new = accumulate(left, right, old.reshape(-1, m, 8), saturate).reshape(-1, m // 8, 8, 4, 2)
        if half:
            out = np.ascontiguousarray(new.transpose(1, 0, 2, 3, 4)).astype(F16).reshape(m // 8, -1).view(U32)
        else:
            out = np.ascontiguousarray(new.transpose(1, 4, 0, 2, 3)).reshape(m // 4, -1)
        for write, row in zip(writes, out):
            write(machine.registers, row, act)

    return step


def rows_given(machine, count, act):
    """The lanes that give the addresses of `count` 8x8 matrices, or None for all."""
    if count == 4:
        return act
    lanes = machine.lane < 8 * count
    return lanes if act is None else lanes & act


def matrices_of(ins):
    count = next(int(part[1]) for part in ins.parts if part in ("x1", "x2", "x4"))
    if not ins.has("m8n8") or ins.parts[-1] != "b16":
        raise ValueError("shape")
    return count, ins.has("trans")


@op("ldmatrix")
def ldmatrix(decoder, ins):
    count, transposed = matrices_of(ins)
    address = decoder.address(ins.args[1], U32)
    writes = [decoder.target(name, U32) for name in decoder.vector(ins.args[0])]

    def step(machine, act):
        whole_warps(machine, act, "ldmatrix")
        shared, lanes = machine.shared, rows_given(machine, count, act)
        where = machine.reporter(lanes)
        flat = shared.locate(address(machine.registers), 16, lanes, where)
        words = shared.read(flat, 16, shared.lanes(16, lanes), where).view(U16).reshape(-1, count, 8, 8)
        if transposed:
            words = words.swapaxes(2, 3)
        pairs = np.ascontiguousarray(words.swapaxes(0, 1)).view(U32).reshape(count, -1)
        for write, row in zip(writes, pairs):
            if act is not None:
                whole = np.zeros(machine.lanes, U32)
                whole[act] = row
                row = whole
            write(machine.registers, row, act)

    return step


@op("stmatrix")
def stmatrix(decoder, ins):
    count, transposed = matrices_of(ins)
    address = decoder.address(ins.args[0], U32)
    reads = [decoder.source(name, U32) for name in decoder.vector(ins.args[1])]

    def step(machine, act):
        whole_warps(machine, act, "stmatrix")
        shared, lanes = machine.shared, rows_given(machine, count, act)
        where = machine.reporter(lanes)
        flat = shared.locate(address(machine.registers), 16, lanes, where)
        pairs = gather(machine, reads)
        if act is not None:
            pairs = pairs[:, act]
        words = np.ascontiguousarray(pairs).view(U16).reshape(count, -1, 8, 8).swapaxes(0, 1)
        if transposed:
            words = words.swapaxes(2, 3)
        words = np.ascontiguousarray(words).reshape(-1, 8).view(np.complex128)[:, 0]
        shared.write(flat, words, 16, shared.lanes(16, lanes), where)

    return step


@op("movmatrix")
def movmatrix(decoder, ins):
    """Transposes an 8x8 matrix that lies in the registers of a warp."""
    read, write = decoder.source(ins.args[1], U32), decoder.target(ins.args[0], U32)

    def step(machine, act):
        matrices = read(machine.registers).copy().view(U16).reshape(-1, 8, 8).swapaxes(1, 2)
        write(machine.registers, np.ascontiguousarray(matrices).reshape(-1, 64).view(U32).ravel(), act)

    return step
