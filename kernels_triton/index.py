"""Kernels that move elements by index, and those that make indices; along one dim of a strided tensor: along.py.

Words as in kernels_numba/index.py, but for the flag: the address of two words that stay as they are, unless an index is
outside its dim: then they hold such an index, and 1 + the dim's size. What it would read is 0, and it writes nothing.
Elements are moved as raw words (u8 to u64), but where they are added up.

Rows are gathered by tiles of (rows, columns) with 16-byte loads along the columns; offsets are 32-bit wherever all of
them fit. Of equal indices the last wins in `put`, whatever order programs run in: an atomic maximum over a scratch word
per destination finds it first. `nonzero` counts per block, scans the counts and writes.

scatter_add_rows ... (scatter_prod, scatter_amax, scatter_amin), of GPUs alone, take whole rows: x (outer, size, inner)
and y (outer, count, inner) are dense, words x, ids, y, flag, size, count, inner, outer.
"""

import functools
import struct

import triton
import triton.language as tl

from . import along, segments
from .convert import memory, width
from .dims import LIMIT, NARROW, checked, converted, kind, offset_type
from .launch import Kernel, blocks, pointer, power_of_2
from .segments import cleared

BLOCK = 512  # elements of a program that treats them one by one
BYTES = 8192  # of a tile of rows: 4 vectors of 16 bytes per thread
COUNTED = 4096  # elements per program of `nonzero`


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
    at, fine = checked(ids_ptr, r - o * count, inside, size, flag_ptr, step == 0)
    at, known = (o * size + at.to(OFFSET)) * inner, (columns < inner)[None, :]
    x = tl.load(x_ptr + (at[:, None] + columns[None, :]), mask=fine[:, None] & known, other=0)
    mask = inside[:, None] & known
    tl.store(out_ptr + ((r * inner)[:, None] + columns[None, :]), x, mask=mask)


@triton.jit
def take_elements(
    x_ptr, ids_ptr, out_ptr, flag_ptr, size, count, rows, BLOCK: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """take_rows for rows of one element"""
    r = tl.program_id(0).to(OFFSET) * BLOCK + tl.arange(0, BLOCK)
    inside, o = r < rows, r // count
    at, fine = checked(ids_ptr, r - o * count, inside, size, flag_ptr, True)
    tl.store(out_ptr + r, tl.load(x_ptr + o * size + at.to(OFFSET), mask=fine, other=0), mask=inside)


@triton.jit
def last_rows(ids_ptr, flag_ptr, last_ptr, size, count, BLOCK: tl.constexpr):
    """last[at]: 1 + the last k with index[k] == at"""
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at, fine = checked(ids_ptr, k, k < count, size, flag_ptr, True)
    tl.atomic_max(last_ptr + at, (k + 1).to(last_ptr.dtype.element_ty), mask=fine)


@triton.jit
def put_rows(
    x_ptr, ids_ptr, values_ptr, flag_ptr, last_ptr, size, inner, step, rows, steps, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """x[index[k], i] = values[k * step + i] where k is the last that names its row"""
    pid = tl.program_id(0).to(OFFSET)
    block, part = pid // steps, pid % steps
    k, columns = block * ROWS + tl.arange(0, ROWS), part * COLUMNS + tl.arange(0, COLUMNS)
    at, fine = checked(ids_ptr, k, k < rows, size, flag_ptr, False)
    at = at.to(OFFSET)
    won = fine & (tl.load(last_ptr + at, mask=fine, other=0).to(OFFSET) == k + 1)
    mask = won[:, None] & (columns < inner)[None, :]
    values = tl.load(values_ptr + ((k * step)[:, None] + columns[None, :]), mask=mask)
    tl.store(x_ptr + ((at * inner)[:, None] + columns[None, :]), values, mask=mask)


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
    if name.endswith("_rows"):
        return segments.rows_plan(along.COMBINES[name.removesuffix("_rows")], *params)
    found = {"take": _take, "put": _put, "arange": _arange, "nonzero": _nonzero}
    if name not in found:
        return along.plan_of(name, *params)
    return found[name](*params)


def variants(arch):
    """Kernels of every kind, for the committed table of what the compiler makes of them."""
    shapes = [(d, _tile(n, width(d))) for d, n in (("u16", 4096), ("u16", 128), ("u32", 4096), ("u8", 4096))]
    found = {f"take {d} {t[0]}x{t[1]}": _take_kernel(d, "i64", *t, NARROW) for d, t in shapes}
    found |= {"take u32 elements": _take_kernel("u32", "i64", 1, 1, NARROW)}
    found |= {"put u16": _put_kernels("u16", "i64", "i32", *_tile(4096, 2), NARROW)[1]}
    return found | {"arange i64": _ramp("i64", False, NARROW), "arange f32": _ramp("f32", True, NARROW)}
