"""Kernels that move elements by index, and those that make indices.

Words as in kernels_numba/index.py. An index outside its dim never reaches memory: it is read as 0, and the largest
1 + place of such an index is what the flag word holds afterwards. Elements are moved as raw words (u8 to u64), but
where they are added up.

Rows are gathered by tiles of (rows, columns) with 16-byte loads along the columns; offsets are 32-bit wherever all of
them fit. Of equal indices the last wins in `scatter` and `put`, whatever order programs run in: an atomic maximum over
a scratch word per destination finds it first. What is combined (scatter_add ...) uses integer atomics for 32- and
64-bit integers; everything else goes through segments.py, which adds up in one fixed order. `nonzero` counts per block,
scans the counts and writes.

scatter_add_rows ... (scatter_prod, scatter_amax, scatter_amin), of GPUs alone, take whole rows: x (outer, size, inner)
and y (outer, count, inner) are dense, words x, ids, y, flag, size, count, inner, outer.
"""

import functools
import struct

import triton
import triton.language as tl

from . import segments
from .convert import memory, width
from .dims import LIMIT, NARROW, checked, converted, kind, launches, offset_of, offset_type
from .launch import Kernel, blocks, pointer, power_of_2

BLOCK = 512  # elements of a program that treats them one by one
BYTES = 8192  # of a tile of rows: 4 vectors of 16 bytes per thread
COUNTED = 4096  # elements per program of `nonzero`
COMBINES = {"scatter_add": "add", "scatter_prod": "mul", "scatter_amax": "max", "scatter_amin": "min"}


@triton.jit
def clear(x_ptr, n, BLOCK: tl.constexpr):
    """n words of 0"""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + at, tl.zeros([BLOCK], x_ptr.dtype.element_ty), mask=at < n)


# ---- rows ------------------------------------------------------------------------------------------------------------


@triton.jit
def take_rows(
    x_ptr, ids_ptr, out_ptr, flag_ptr, size, count, inner, rows, steps, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    OFFSET: tl.constexpr,
):  # fmt: skip
    """out[o, k, i] = x[o, index[k], i] for a tile of rows (o, k) and columns i; `steps` tiles make a row"""
    pid = tl.program_id(0).to(OFFSET)
    block, step = pid // steps, pid % steps
    r, columns = block * ROWS + tl.arange(0, ROWS), step * COLUMNS + tl.arange(0, COLUMNS)
    inside = r < rows
    o = r // count
    at = checked(ids_ptr, r - o * count, inside, size, flag_ptr, 0, step == 0).to(OFFSET)
    mask = inside[:, None] & (columns < inner)[None, :]
    x = tl.load(x_ptr + (((o * size + at) * inner)[:, None] + columns[None, :]), mask=mask)
    tl.store(out_ptr + ((r * inner)[:, None] + columns[None, :]), x, mask=mask)


@triton.jit
def take_elements(
    x_ptr, ids_ptr, out_ptr, flag_ptr, size, count, rows, BLOCK: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """take_rows for rows of one element"""
    r = tl.program_id(0).to(OFFSET) * BLOCK + tl.arange(0, BLOCK)
    inside, o = r < rows, r // count
    at = checked(ids_ptr, r - o * count, inside, size, flag_ptr, 0, True).to(OFFSET)
    tl.store(out_ptr + r, tl.load(x_ptr + o * size + at, mask=inside), mask=inside)


@triton.jit
def last_rows(ids_ptr, flag_ptr, last_ptr, size, count, BLOCK: tl.constexpr):
    """last[at]: 1 + the last k with index[k] == at"""
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at = checked(ids_ptr, k, k < count, size, flag_ptr, 0, True)
    tl.atomic_max(last_ptr + at, (k + 1).to(last_ptr.dtype.element_ty), mask=k < count)


@triton.jit
def put_rows(
    x_ptr, ids_ptr, values_ptr, flag_ptr, last_ptr, size, inner, step, rows, steps, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """x[index[k], i] = values[k * step + i] where k is the last that names its row"""
    pid = tl.program_id(0).to(OFFSET)
    block, part = pid // steps, pid % steps
    k, columns = block * ROWS + tl.arange(0, ROWS), part * COLUMNS + tl.arange(0, COLUMNS)
    at = checked(ids_ptr, k, k < rows, size, flag_ptr, 0, False).to(OFFSET)
    won = tl.load(last_ptr + at, mask=k < rows, other=0).to(OFFSET) == k + 1
    mask = won[:, None] & (columns < inner)[None, :]
    values = tl.load(values_ptr + ((k * step)[:, None] + columns[None, :]), mask=mask)
    tl.store(x_ptr + ((at * inner)[:, None] + columns[None, :]), values, mask=mask)


# ---- elements along one dim: `offset_of` (dims.py) turns the place of an index into where it looks -------------------


@triton.jit
def gather_elements(
    x_ptr, ids_ptr, y_ptr, flag_ptr, size, picked, n, first, n0, n1, n2, n3, s0, s1, s2, s3, d0, d1, d2, d3,
    ND: tl.constexpr, BLOCK: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """y[e] = x[where index e looks]"""
    e = tl.program_id(0).to(OFFSET) * BLOCK + tl.arange(0, BLOCK)
    at = checked(ids_ptr, e, e < n, size, flag_ptr, first, True).to(OFFSET)
    base = offset_of(e, n0, n1, n2, n3, s0, s1, s2, s3, ND)
    tl.store(y_ptr + e, tl.load(x_ptr + base + at * picked, mask=e < n), mask=e < n)


@triton.jit
def last_elements(
    ids_ptr, flag_ptr, last_ptr, size, n, first, n0, n1, n2, n3, d0, d1, d2, d3, ND: tl.constexpr, BLOCK: tl.constexpr,
    OFFSET: tl.constexpr,
):  # fmt: skip
    """last[destination]: 1 + the last e that is written there; destinations are numbered densely"""
    e = tl.program_id(0).to(OFFSET) * BLOCK + tl.arange(0, BLOCK)
    at = checked(ids_ptr, e, e < n, size, flag_ptr, first, True).to(OFFSET)
    dense = offset_of(e, n0, n1, n2, n3, d0, d1, d2, d3, ND) + at
    tl.atomic_max(last_ptr + dense, (e + 1).to(last_ptr.dtype.element_ty), mask=e < n)


@triton.jit
def scatter_elements(
    x_ptr, ids_ptr, y_ptr, flag_ptr, last_ptr, size, picked, n, first, n0, n1, n2, n3, s0, s1, s2, s3, d0, d1, d2, d3,
    ND: tl.constexpr, BLOCK: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """x[where index e looks] = y[e] where e is the last that looks there"""
    e = tl.program_id(0).to(OFFSET) * BLOCK + tl.arange(0, BLOCK)
    at = checked(ids_ptr, e, e < n, size, flag_ptr, first, False).to(OFFSET)
    dense = offset_of(e, n0, n1, n2, n3, d0, d1, d2, d3, ND) + at
    won = (tl.load(last_ptr + dense, mask=e < n, other=0).to(OFFSET) == e + 1) & (e < n)
    base = offset_of(e, n0, n1, n2, n3, s0, s1, s2, s3, ND)
    tl.store(x_ptr + base + at * picked, tl.load(y_ptr + e, mask=won), mask=won)


@triton.jit
def atomic_elements(
    x_ptr, ids_ptr, y_ptr, flag_ptr, size, picked, n, first, n0, n1, n2, n3, s0, s1, s2, s3, d0, d1, d2, d3,
    OP: tl.constexpr, ND: tl.constexpr, BLOCK: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """x[where index e looks] combined with y[e], integers, whose order does not matter"""
    e = tl.program_id(0).to(OFFSET) * BLOCK + tl.arange(0, BLOCK)
    at = checked(ids_ptr, e, e < n, size, flag_ptr, first, True).to(OFFSET)
    aim = x_ptr + offset_of(e, n0, n1, n2, n3, s0, s1, s2, s3, ND) + at * picked
    y = tl.load(y_ptr + e, mask=e < n)
    if OP == "add":
        tl.atomic_add(aim, y, mask=e < n)
    elif OP == "max":
        tl.atomic_max(aim, y, mask=e < n)
    else:
        tl.atomic_min(aim, y, mask=e < n)


@triton.jit
def destinations(
    ids_ptr, keys_ptr, flag_ptr, size, picked, n, first, n0, n1, n2, n3, s0, s1, s2, s3, d0, d1, d2, d3,
    ND: tl.constexpr, BLOCK: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """keys[e]: the offset in x where index e looks"""
    e = tl.program_id(0).to(OFFSET) * BLOCK + tl.arange(0, BLOCK)
    at = checked(ids_ptr, e, e < n, size, flag_ptr, first, True).to(OFFSET)
    base = offset_of(e, n0, n1, n2, n3, s0, s1, s2, s3, ND)
    tl.store(keys_ptr + e, base + at * picked, mask=e < n)


# ---- what makes indices ----------------------------------------------------------------------------------------------


@triton.jit
def ramp(out_ptr, n, start, step, FLOAT: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr, OFFSET: tl.constexpr):
    """out[i] = start + i * step, computed in i64 or f64 (given as bits)"""
    i = tl.program_id(0).to(OFFSET) * BLOCK + tl.arange(0, BLOCK)
    if FLOAT:
        a, b = start.to(tl.int64).to(tl.float64, bitcast=True), step.to(tl.int64).to(tl.float64, bitcast=True)
        value = a + i.to(tl.float64) * b
    else:
        value = start.to(tl.int64) + i.to(tl.int64) * step
    tl.store(out_ptr + i, converted(value, out_ptr.dtype.element_ty, KIND), mask=i < n)


@triton.jit
def count_true(x_ptr, counts_ptr, n, BLOCK: tl.constexpr):
    """How many bytes of a block are not 0"""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    found = tl.load(x_ptr + at, mask=at < n, other=0) != 0
    tl.store(counts_ptr + tl.program_id(0), tl.sum(found.to(tl.int32), 0).to(tl.int64))


@triton.jit
def write_true(x_ptr, starts_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """Places of the bytes that are not 0, behind those of the blocks before"""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    found = tl.load(x_ptr + at, mask=at < n, other=0) != 0
    rank = tl.cumsum(found.to(tl.int32), 0) - 1
    tl.store(out_ptr + tl.load(starts_ptr + tl.program_id(0)) + rank, at, mask=found)


# ---- plans -----------------------------------------------------------------------------------------------------------


@functools.cache
def _take_kernel(dtype, ids, rows, columns, offset):
    types = (pointer(dtype), pointer(ids), pointer(dtype), "*i64", *(offset[0],) * (4 if columns == 1 else 5))
    if columns == 1:
        return Kernel(take_elements, types[:-1], ("rows",), BLOCK=BLOCK, OFFSET=offset[1])
    made = Kernel(take_rows, types, ("inner",), ROWS=rows, COLUMNS=columns, OFFSET=offset[1])
    made.items = rows * columns
    return made


def _tile(inner, nbytes):
    columns = min(power_of_2(inner), BYTES // nbytes)
    return max(1, BYTES // nbytes // columns), columns


def _take(dtype, ids):
    def plan(gpu, words):
        x, places, out, flag, size, count, inner, outer = words
        rows, offset = outer * count, offset_type(outer * max(size, count) * inner)
        if inner == 1:
            kernel = _take_kernel(dtype, ids, 1, 1, offset)
            kernel(gpu, (blocks(rows, BLOCK), 1, 1), x, places, out, flag, size, count, rows)
            return
        tile = _tile(inner, width(dtype))
        steps = blocks(inner, tile[1])
        grid = (blocks(rows, tile[0]) * steps, 1, 1)
        kernel = _take_kernel(dtype, ids, *tile, offset)
        kernel(gpu, grid, x, places, out, flag, size, count, inner, rows, steps)

    return plan


def cleared(gpu, count, dtype="i64"):
    """(address, owner) of `count` integers of 0."""
    ptr, owner = gpu.allocate(width(dtype) * count)
    _clear(dtype)(gpu, (blocks(count, BLOCK), 1, 1), ptr, count)
    return ptr, owner


@functools.cache
def _clear(dtype):
    return Kernel(clear, (pointer(dtype), "i64"), ("n",), BLOCK=BLOCK)


@functools.cache
def _put_kernels(dtype, ids, word, rows, columns, offset):
    first = Kernel(last_rows, (pointer(ids), "*i64", pointer(word), "i64", "i64"), BLOCK=BLOCK)
    types = (pointer(dtype), pointer(ids), pointer(dtype), "*i64", pointer(word), *(offset[0],) * 5)
    return first, Kernel(put_rows, types, ("inner", "step"), ROWS=rows, COLUMNS=columns, OFFSET=offset[1])


def _put(dtype, ids):
    def plan(gpu, words):
        x, places, values, flag, size, count, inner, step = words
        word = "i32" if count < LIMIT else "i64"
        last, owner = cleared(gpu, size, word)
        offset = offset_type(max(size * inner, count * max(step, 1)))
        tile = _tile(inner, width(dtype))
        steps = blocks(inner, tile[1])
        find, write = _put_kernels(dtype, ids, word, *tile, offset)
        find(gpu, (blocks(count, BLOCK), 1, 1), places, flag, last, size, count)
        grid = (blocks(count, tile[0]) * steps, 1, 1)
        write(gpu, grid, x, places, values, flag, last, size, inner, step, count, steps)
        del owner

    return plan


@functools.cache
def _along_kernel(fn, pointers, offset, nd, numbers, **consts):
    types = (*pointers, *(offset[0],) * numbers, "i64", *(offset[0],) * 12)
    return Kernel(fn, types, ("n",), ND=nd, BLOCK=BLOCK, OFFSET=offset[1], **consts)


def _gather(dtype, ids):
    pointers = (pointer(dtype), pointer(ids), pointer(dtype), "*i64")

    def plan(gpu, words):
        for at in launches(words, width(dtype), width(ids)):
            kernel = _along_kernel(gather_elements, pointers, at.offset, at.nd, 3)
            kernel(gpu, (blocks(at.n, BLOCK), 1, 1), at.x, at.ids, at.y, at.flag, at.size, at.picked, at.n, at.first,
                   *at.dims)  # fmt: skip

    return plan


@functools.cache
def _scatter_kernels(dtype, ids, word, offset, nd):
    sizes = {"ND": nd, "BLOCK": BLOCK, "OFFSET": offset[1]}
    types = (pointer(ids), "*i64", pointer(word), *(offset[0],) * 2, "i64", *(offset[0],) * 8)
    find = Kernel(last_elements, types, ("n",), **sizes)
    types = (pointer(dtype), pointer(ids), pointer(dtype), "*i64", pointer(word), *(offset[0],) * 3, "i64")
    return find, Kernel(scatter_elements, (*types, *(offset[0],) * 12), ("n",), **sizes)


def _scatter(dtype, ids):
    def plan(gpu, words):
        for at in launches(words, width(dtype), width(ids)):
            word = "i32" if at.n < LIMIT else "i64"
            last, owner = cleared(gpu, at.places, word)
            find, write = _scatter_kernels(dtype, ids, word, at.offset, at.nd)
            grid = (blocks(at.n, BLOCK), 1, 1)
            find(gpu, grid, at.ids, at.flag, last, at.size, at.n, at.first, *at.dims[:4], *at.dims[8:])
            write(gpu, grid, at.x, at.ids, at.y, at.flag, last, at.size, at.picked, at.n, at.first, *at.dims)
            del owner

    return plan


def _combine(op, dtype, ids):
    atomic = dtype in ("u32", "i32", "u64", "i64") and op != "mul"
    own = dtype.replace("u", "i") if op == "add" else dtype
    pointers = (pointer(own), pointer(ids), pointer(own), "*i64") if atomic else (pointer(ids), "*i64", "*i64")

    def plan(gpu, words):
        for at in launches(words, width(dtype), width(ids)):
            grid, numbers = (blocks(at.n, BLOCK), 1, 1), (at.size, at.picked, at.n, at.first, *at.dims)
            if atomic:
                kernel = _along_kernel(atomic_elements, pointers, at.offset, at.nd, 3, OP=op)
                kernel(gpu, grid, at.x, at.ids, at.y, at.flag, *numbers)
                continue
            key = at.offset[0]
            keys, owner = gpu.allocate(at.n * width(key))
            kernel = _along_kernel(destinations, (pointer(ids), pointer(key), "*i64"), at.offset, at.nd, 3)
            kernel(gpu, grid, at.ids, keys, at.flag, *numbers)
            segments.combine(gpu, op, dtype, dtype, at.x, key, keys, at.y, at.n)
            del owner

    return plan


def _arange(compute, dtype):
    is_float = compute == "f64"

    def plan(gpu, words):
        out, n, start, step = words
        if is_float:
            start, step = (int.from_bytes(struct.pack("<d", v), "little", signed=True) for v in (start, step))
        _ramp(dtype, is_float, offset_type(n))(gpu, (blocks(n, BLOCK), 1, 1), out, n, start, step)

    return plan


@functools.cache
def _ramp(dtype, is_float, offset):
    types = (memory(dtype), offset[0], "i64", "i64")
    return Kernel(ramp, types, ("n",), fuse=False, FLOAT=is_float, KIND=kind(dtype), BLOCK=BLOCK, OFFSET=offset[1])


def _nonzero():
    count = Kernel(count_true, ("*u8", "*i64", "i64"), ("n",), BLOCK=COUNTED)
    write = Kernel(write_true, ("*u8", "*i64", "*i64", "i64"), ("n",), BLOCK=COUNTED)

    def plan(gpu, words):
        x, out, n = words
        many = blocks(n, COUNTED)
        counts, owner = gpu.allocate(8 * many)
        count(gpu, (many, 1, 1), x, counts, n)
        segments.running(gpu, counts, many, 0)
        write(gpu, (many, 1, 1), x, counts, out, n)
        del owner

    return plan


def build(name, *params, source=None):
    """See kernels_triton/__init__.py; names and parameters as in kernels_numba/index.py."""
    if name == "transpose":
        from .transpose import build_transpose

        return build_transpose(*params)
    if name.removesuffix("_rows") in COMBINES and name.endswith("_rows"):
        return segments.rows_plan(COMBINES[name.removesuffix("_rows")], *params)
    if name in COMBINES:
        return _combine(COMBINES[name], *params)
    found = {"take": _take, "put": _put, "gather": _gather, "scatter": _scatter, "arange": _arange, "nonzero": _nonzero}
    return found[name](*params) if name in found else None


def variants(arch):
    """Kernels of every kind, for the committed table of what the compiler makes of them."""
    shapes = [(d, _tile(n, width(d))) for d, n in (("u16", 4096), ("u16", 128), ("u32", 4096), ("u8", 4096))]
    found = {f"take {d} {t[0]}x{t[1]}": _take_kernel(d, "i64", *t, NARROW) for d, t in shapes}
    found |= {"take u32 elements": _take_kernel("u32", "i64", 1, 1, NARROW)}
    found |= {"put u16": _put_kernels("u16", "i64", "i32", *_tile(4096, 2), NARROW)[1]}
    find, write = _scatter_kernels("u32", "i64", "i32", NARROW, 2)
    found |= {"scatter u32, first": find, "scatter u32, second": write}
    types = ("*u32", "*i64", "*u32", "*i64")
    found["gather u32, 2 dims"] = _along_kernel(gather_elements, types, NARROW, 2, 3)
    found["scatter_add u32, 2 dims"] = _along_kernel(atomic_elements, types, NARROW, 2, 3, OP="add")
    return found | {"arange i64": _ramp("i64", False, NARROW), "arange f32": _ramp("f32", True, NARROW)}
