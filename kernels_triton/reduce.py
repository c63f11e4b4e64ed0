"""Reductions over any dims, and index of the extreme of a row. Words as in kernels_numba/reduce.py, with one part.

One kernel for both kinds of a reduction: a tile of M outputs by R reduced elements, whose adjacent axis is whichever
is adjacent in memory; tiles are combined element by element, and across at the end. Where outputs are too few to fill
the GPU, or so many tiles follow each other that rounding errors would add up, the reduced elements are cut in parts,
whose results (outputs fastest) lie in the workspace, and which the program that is the last to end combines; if they
are too many for that, a second launch: the same order every time. f32 and smaller floats are summed up in f32: at most
CHAIN tiles one after the other, then across: |error| <= (CHAIN + 24) eps sum |x|.
Products are f64. What belongs to whole rows is in `softmax.py` and `scan.py`.
"""

import functools

import triton
import triton.language as tl

from . import scan, softmax
from .dims import LIMIT, offset_of
from .launch import COUNTERS, SCRATCH, Kernel, blocks, power_of_2
from .tiles import (
    FLOATS,
    MAX,
    WIDE,
    accumulated,
    cells,
    divide,
    narrow,
    over,
    packed,
    reach,
    start_of,
    step,
    strides_of,
    table,
    truth,
    warps_for,
    widen,
)

CHAIN = 120  # kernels_numba/reduce.py promises 512 / 4 + 8
TILE = 8192  # elements of a tile: 8 warps, 8 loads of 128 bits of f32 in flight per thread
ARG = 2048  # the same where places are kept, too
WAVE = 4  # programs per multiprocessor, of a reduction that is cut in parts
COLUMNS = 64  # adjacent outputs of a tile at most: 256 bytes of f32
OPS = ("sum", "prod", "amax", "amin")


@triton.jit
def is_last(counter, programs):
    """Whether this program is the last of so many to get here: it sees what the others stored before."""
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1, sem="acq_rel") == programs - 1
    if last:
        tl.atomic_xchg(counter, 0, sem="relaxed")
    return last


@triton.jit
def tiles_at(x, base, at, r, inside, rn0, rn1, rn2, rs0, rs1, rs2, rs3, NR: tl.constexpr, EVEN: tl.constexpr):
    """The tile of whole rows `r` behind `at`; EVEN: of all outputs."""
    step_ = at + r if NR == 0 else offset_of(at + r, rn0, rn1, rn2, 1, rs0, rs1, rs2, rs3, NR)
    if EVEN:
        return tl.load(x + (base[:, None] + step_[None, :]))
    else:
        return tl.load(x + (base[:, None] + step_[None, :]), mask=inside[:, None], other=0)


@triton.jit
def reduce_tiles(
    x, out, partial, counter, outputs, n, length, per, count,
    kn0, ks0, kn1, ks1, kn2, ks2, ks3, rn0, rs0, rn1, rs1, rn2, rs2, rs3,
    OP: tl.constexpr, GIVEN: tl.constexpr, OUT: tl.constexpr, ACC: tl.constexpr, START: tl.constexpr,
    TRUTH: tl.constexpr, MEAN: tl.constexpr, ADJACENT: tl.constexpr, NK: tl.constexpr, NR: tl.constexpr,
    LOOP: tl.constexpr, FINISH: tl.constexpr, EVEN: tl.constexpr, M: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """out[part, p]: part (program axis 1) of output p; with FINISH, `partial` has these, and the last program combines
    as many at a time. ADJACENT: n outputs in a row; NR 0: adjacent elements; EVEN: no tile reaches beyond the outputs.
    """
    pid = tl.program_id(0).to(outputs.dtype)
    if ADJACENT:
        tiles = tl.cdiv(n, M)
        outer = pid // tiles
        column = (pid - outer * tiles) * M + tl.arange(0, M)
        inside, p = column < n, outer * n + column
        base = offset_of(outer, kn0, kn1, kn2, 1, ks0, ks1, ks2, ks3, NK) + column
    else:
        p = pid * M + tl.arange(0, M)
        inside = p < outputs
        base = offset_of(p, kn0, kn1, kn2, 1, ks0, ks1, ks2, ks3, NK)
    part = tl.program_id(1).to(outputs.dtype)
    first = part * per
    end = tl.minimum(first + per, length)
    r = tl.arange(0, R)
    acc, full = tl.full([M, R], START, ACC), first
    if LOOP:
        full += (end - first) // R * R
        some = inside & (tl.zeros([M], first.dtype) + first < full)
        v = tiles_at(x, base, first, r, some, rn0, rn1, rn2, rs0, rs1, rs2, rs3, NR, False)
        for at in tl.range(first + R, full, R):  # a tile is on its way while one is added: alone, a third of the speed
            ahead = tiles_at(x, base, at, r, inside, rn0, rn1, rn2, rs0, rs1, rs2, rs3, NR, EVEN)
            acc = step(acc, truth(v, GIVEN) if TRUTH else widen(v, GIVEN, ACC), OP)
            v = ahead
        if first < full:
            acc = step(acc, truth(v, GIVEN) if TRUTH else widen(v, GIVEN, ACC), OP)
    if full < end:
        step_ = full + r if NR == 0 else offset_of(full + r, rn0, rn1, rn2, 1, rs0, rs1, rs2, rs3, NR)
        known = inside[:, None] & (full + r < end)[None, :]
        v = tl.load(x + (base[:, None] + step_[None, :]), mask=known, other=0)
        acc = tl.where(known, step(acc, truth(v, GIVEN) if TRUTH else widen(v, GIVEN, ACC), OP), acc)
    total = over(acc, 1, OP)
    if FINISH > 0:
        tl.store(partial + (part * outputs + p), total, mask=inside)
        parts = tl.num_programs(1)
        if is_last(counter + tl.program_id(0), parts):
            q = tl.arange(0, FINISH)
            rest = tl.full([M, FINISH], START, ACC)
            for begin in tl.range(0, parts, FINISH):
                known = inside[:, None] & (begin + q < parts)[None, :]
                place = (begin + q).to(outputs.dtype)[None, :] * outputs + p[:, None]
                rest = tl.where(known, step(rest, tl.load(partial + place, mask=known, other=0), OP), rest)
            whole = over(rest, 1, OP)
            if MEAN:
                whole = divide(whole, count)
            tl.store(out + p, narrow(whole, OUT, out.dtype.element_ty), mask=inside)
    else:
        if MEAN:
            total = divide(total, count)
        tl.store(out + (part * outputs + p), narrow(total, OUT, out.dtype.element_ty), mask=inside)


@functools.cache
def kernel(op, compute, given, out, shape, adjacent, nk, nr, loop, mean, wide, finish=0, even=False):
    """The Kernel of `reduce_tiles` for some dtypes, a tile, numbers of dims, and i64 as integers if `wide`."""
    acc = "f64" if op == "prod" and compute in FLOATS else accumulated(compute)
    integer = "i64" if wide else "i32"
    each = 32 if adjacent or nr == 0 else 16
    names = *(("n", "outputs") if adjacent else ("length", "per")), *strides_of("k"), *strides_of("r")
    pointers, real = (cells(given), cells(out), cells(acc), "*i32"), "fp64" if acc == "f64" else "fp32"
    made = Kernel(
        reduce_tiles, (*pointers, *(integer,) * 4, real, *(integer,) * 14), names,
        warps_for(shape[0] * shape[1], each), OP=op, GIVEN=given, OUT=out, ACC=WIDE[acc],
        START=start_of(op, "f64" if acc == "f64" else compute), TRUTH=compute == "bool" and given != acc, MEAN=mean,
        ADJACENT=adjacent, NK=max(nk, 1), NR=nr, LOOP=loop, FINISH=finish, EVEN=even, M=shape[0], R=shape[1],
    )  # fmt: skip
    made.items = shape[0] * shape[1]
    return made


def cut(gpu, op, compute, adjacent, dense, outputs, n, length):
    """((M, R), programs, elements of a part, parts) for a reduction."""
    few = outputs * length < 4 * TILE * gpu.units
    elements = (TILE // 4 if few else TILE) // (2 if accumulated(compute) in ("f64", "i64", "u64") else 1)
    if adjacent:
        m = min(power_of_2(n), COLUMNS)
        r = min(power_of_2(length), elements // m)
        programs = outputs // n * blocks(n, m)
    else:
        elements //= 1 if dense else 2  # addresses take registers, too
        r = min(power_of_2(length), elements)
        m = min(power_of_2(outputs), elements // r)
        programs = blocks(outputs, m)
    parts = max(1, min(WAVE * gpu.units // programs, blocks(length, 4 * r))) if programs < 2 * gpu.units else 1
    if op == "sum" and compute == "f32":
        parts = max(parts, blocks(length, CHAIN * r))
    per = blocks(blocks(length, parts), r) * r if parts > 1 else length
    return (m, r), programs, per, blocks(length, per)


def _launch(gpu, what, pointers, numbers, kept, reduced):
    """Reduces (op, compute, given, out, adjacent) with the tables of dims (sizes, strides) `kept` and `reduced`."""
    op, compute, given, out, adjacent = what
    x, to = pointers
    outputs, n, length, count = numbers
    (keep, nk), (rest, nr) = kept, reduced
    nr = 0 if nr == 1 and rest[1][0] == 1 else nr
    shape, programs, per, parts = cut(gpu, op, compute, adjacent, nr == 0, outputs, n, length)
    wide = max(outputs * parts, length, reach(*keep) + reach(*rest) + n) >= LIMIT
    mean, to_many = op == "sum" and count != 1.0, None
    acc = "f64" if op == "prod" and compute in FLOATS else accumulated(compute)
    size, finish, space = outputs * parts * (8 if "64" in acc else 4), 0, (x, x)
    if parts > 1 and size <= SCRATCH and programs <= COUNTERS:
        base = gpu.workspace()
        finish, space = (
            min(shape[1], next(n for n in (16, 128, 1024) if n >= min(parts, 1024))),
            (base + 4 * COUNTERS, base),
        )
    elif parts > 1:
        to_many = gpu.allocate(size)
        to, out, mean = to_many[0], acc, False
    loop, even = per > shape[1], (n if adjacent else outputs) % shape[0] == 0
    found = kernel(op, compute, given, out, shape, adjacent, nk, nr, loop, mean, wide, finish, loop and even)
    found(gpu, (programs, parts, 1), x, to, *space, outputs, n, length, per, count, *packed(*keep), *packed(*rest))
    if to_many:
        none, dense = ([1] * MAX, [0] * MAX), ([parts] + [1] * (MAX - 1), [outputs] + [0] * (MAX - 1))
        what = op, compute, acc, what[3], outputs > 1
        _launch(gpu, what, (to, pointers[1]), (outputs, outputs, parts, count), (none, 1), (dense, 1))


def _rows(op, compute, out, given):
    def plan(gpu, words):
        x, to, outputs, _, _, length, count, nk, nr = words[:9]
        keep, rest = table(words, 9, nk), table(words, 9 + 2 * nk, nr)
        _launch(gpu, (op, compute, given, out, False), (x, to), (outputs, 1, length, count), (keep, nk), (rest, nr))

    return plan


def _columns(op, compute, out, given):
    def plan(gpu, words):
        x, to, outer, n, length, count, nk, nr = words[:8]
        keep, rest = table(words, 11, nk), table(words, 11 + 2 * nk, nr)
        _launch(gpu, (op, compute, given, out, True), (x, to), (outer * n, n, length, count), (keep, nk), (rest, nr))

    return plan


# ---- index of the extreme --------------------------------------------------------------------------------------------


@triton.jit
def arg_tiles(
    x, found, values, places, counter, rows, length, per, kn0, ks0, kn1, ks1, kn2, ks2, ks3,
    LARGEST: tl.constexpr, GIVEN: tl.constexpr, ACC: tl.constexpr, START: tl.constexpr, NK: tl.constexpr,
    INDEX: tl.constexpr, LAST: tl.constexpr, PARTS: tl.constexpr, M: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """Index of the first largest (smallest) element of rows, NaN first of all. Of up to PARTS > 1 parts of a row (M is
    1) the last program takes the first of `values` and `places`.
    """
    pid = tl.program_id(0).to(rows.dtype)
    p = pid * M + tl.arange(0, M)
    inside = p < rows
    base = offset_of(p, kn0, kn1, kn2, 1, ks0, ks1, ks2, ks3, NK)
    part = tl.program_id(1).to(rows.dtype)
    first = part * per
    end = tl.minimum(first + per, length)
    r = tl.arange(0, R)
    best = tl.full([M, R], START, ACC)
    where = tl.zeros([M, R], INDEX) + (first + r).to(INDEX)[None, :]  # right as long as a lane has seen START alone
    for at in tl.range(first, end, R):
        known = inside[:, None] & (at + r < end)[None, :]
        v = widen(tl.load(x + (base[:, None] + (at + r)[None, :]), mask=known, other=0), GIVEN, ACC)
        better = known & ((v > best if LARGEST else v < best) | ((v != v) & (best == best)))
        where = tl.where(better, (at + r).to(INDEX)[None, :], where)
        best = tl.where(better, v, best)
    value = over(best, 1, "amax" if LARGEST else "amin")
    same = (best == value[:, None]) | ((best != best) & (value != value)[:, None])
    index = tl.min(tl.where(same, where, tl.full([], LAST, INDEX)), 1)
    if PARTS > 1:
        parts = tl.num_programs(1)
        tl.store(values + (p * parts + part), value, mask=inside)
        tl.store(places + (p * parts + part), index.to(tl.int64), mask=inside)
        if is_last(counter + tl.program_id(0), parts):
            q = tl.arange(0, PARTS)[None, :]
            there = inside[:, None] & (q < parts)
            w = tl.load(values + (p[:, None] * parts + q), mask=there, other=START).to(ACC)
            i = tl.load(places + (p[:, None] * parts + q), mask=there, other=0)
            top = over(w, 1, "amax" if LARGEST else "amin")
            first_of = there & ((w == top[:, None]) | ((w != w) & (top != top)[:, None]))
            tl.store(found + p, tl.min(tl.where(first_of, i, tl.full([], 1 << 62, tl.int64)), 1), mask=inside)
    else:
        tl.store(found + p, index.to(tl.int64), mask=inside)


@functools.cache
def arg_kernel(largest, compute, given, shape, nk, parts, wide):
    """The Kernel of `arg_tiles`: `parts`, a power of 2, at most; `wide`: offsets and indices have 64 bits."""
    acc, integer = accumulated(compute), "i64" if wide else "i32"
    made = Kernel(
        arg_tiles, (cells(given), "*i64", cells(acc), "*i64", "*i32", *(integer,) * 10),
        ("length", "per", *strides_of("k")), warps_for(shape[0] * shape[1], 16), LARGEST=largest, GIVEN=given,
        ACC=WIDE[acc], START=start_of("amax" if largest else "amin", compute), NK=max(nk, 1),
        INDEX=tl.int64 if wide else tl.int32, LAST=(1 << (62 if wide else 30)), PARTS=parts, M=shape[0], R=shape[1],
    )  # fmt: skip
    made.items = shape[0] * shape[1]
    return made


def _arg(name, compute, given):
    largest = name == "argmax"

    def plan(gpu, words):
        x, to, rows, length, _, nk = words[:6]
        keep = table(words, 6, nk)
        tile = ARG // 4 if rows * length < 4 * ARG * gpu.units else ARG
        r = min(power_of_2(length), tile)
        m = min(power_of_2(rows), tile // r)
        programs = blocks(rows, m)
        parts = max(1, min(WAVE * gpu.units // programs, blocks(length, 2 * r))) if programs < 2 * gpu.units else 1
        per = blocks(blocks(length, parts), r) * r
        parts = blocks(length, per)  # more than one: of long rows, m is 1
        wide = reach(*keep) + length >= LIMIT
        values, places, counter = x, x, x
        if parts > 1:
            counter = gpu.workspace()
            values = counter + 4 * COUNTERS
            places = values + 8 * rows * parts
        found = arg_kernel(largest, compute, given, (m, r), nk, power_of_2(parts), wide)
        found(gpu, (programs, parts, 1), x, to, values, places, counter, rows, length, per, *packed(*keep))

    return plan


def build(name, *params, source=None):
    """See kernels_triton/__init__.py; names and params as in kernels_numba/reduce.py."""
    compute, out, given = params
    if name in OPS:
        return _rows(name, compute, out, given)
    if name.removesuffix("_columns") in OPS:
        return _columns(name.removesuffix("_columns"), compute, out, given)
    if name in ("argmax", "argmin"):
        return _arg(name, compute, given)
    if name in ("cumsum", "cumprod"):
        return scan.sums(name, compute, out, given, kernel)
    return softmax.build(name, compute, out, given)


def variants(arch):
    """Representative kernels."""
    found = {}
    for dtype in ("f32", "bf16", "f16"):
        found[f"sum rows {dtype}"] = kernel("sum", "f32", dtype, dtype, (1, TILE), False, 1, 0, True, False, False)
        found[f"sum short rows {dtype}"] = kernel("sum", "f32", dtype, dtype, (64, 64), False, 1, 0, False, True, False)
        shape = (COLUMNS, TILE // COLUMNS)
        found[f"sum columns {dtype}"] = kernel(
            "sum", "f32", dtype, dtype, shape, True, 1, 1, True, False, False, 16, True
        )
        shape = 1, TILE
        found[f"sum wide {dtype}"] = kernel(
            "sum", "f32", dtype, dtype, shape, False, 1, 0, True, False, True, 1024, True
        )
        found[f"sum all {dtype}"] = kernel(
            "sum", "f32", dtype, dtype, shape, False, 1, 0, True, False, False, 1024, True
        )
    found["amax rows f32"] = kernel("amax", "f32", "f32", "f32", (1, TILE), False, 1, 0, True, False, False)
    found["sum rows i32"] = kernel("sum", "i64", "i32", "i64", (1, TILE // 2), False, 1, 0, True, False, False)
    found["sum strided f32"] = kernel("sum", "f32", "f32", "f32", (1, TILE // 2), False, 2, 2, True, False, False)
    found["argmax of parts f32"] = arg_kernel(True, "f32", "f32", (1, ARG), 1, 16, False)
    found["argmax rows f32"] = arg_kernel(True, "f32", "f32", (1, ARG), 1, 1, False)
    return found
