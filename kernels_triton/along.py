"""Kernels that read, write and combine elements by an index along one dim of a strided tensor.

Words as in kernels_numba/index.py (ALONG), the flag as index.py tells. Long dense rows are gathered from shared memory.
Of equal indices the last wins in `scatter`, whatever order programs run in: an atomic maximum over a scratch word per
destination finds it first. What is combined (scatter_add ...) uses integer atomics for 32- and 64-bit integers. Floats
are combined in the order of their indices: each lane along the dim has a thread of its own, if there are enough of
them, which walks along it, some indices at a time; else segments.py sorts the destinations.
"""

import functools
from math import prod

import triton
import triton.language as tl

from . import segments
from .convert import width
from .dims import LIMIT, NARROW, checked, converted, launches, loaded, offset_of
from .launch import Kernel, blocks, pointer, power_of_2
from .segments import cleared, joined

BLOCK = 512  # elements of a program that treats them one by one
HELD, MANY = 32768, 1024  # bytes of a row that `gather_row` holds at most; indices that it is worth it for
TOGETHER, COLUMNS = 16, 8  # indices and lanes that a program of `walk` treats at once
LANES = 256  # that keep a GPU busy enough for `walk` to be quicker than a sort
COMBINES = {"scatter_add": "add", "scatter_prod": "mul", "scatter_amax": "max", "scatter_amin": "min"}


# ---- one index at a time: `offset_of` (dims.py) turns its place into where it looks ----------------------------------


@triton.jit
def gather_elements(
    x_ptr, ids_ptr, y_ptr, flag_ptr, size, picked, n, n0, n1, n2, n3, s0, s1, s2, s3, d0, d1, d2, d3,
    ND: tl.constexpr, BLOCK: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """y[e] = x[where index e looks]"""
    e = tl.program_id(0).to(OFFSET) * BLOCK + tl.arange(0, BLOCK)
    at, fine = checked(ids_ptr, e, e < n, size, flag_ptr, True)
    at = at.to(OFFSET)
    base = offset_of(e, n0, n1, n2, n3, s0, s1, s2, s3, ND)
    tl.store(y_ptr + e, tl.load(x_ptr + base + at * picked, mask=fine, other=0), mask=e < n)


@triton.jit
def gather_row(
    x_ptr, ids_ptr, y_ptr, flag_ptr, size, step, count, N: tl.constexpr, BLOCK: tl.constexpr, OFFSET: tl.constexpr
):
    """gather_elements along dense rows, `step` elements from one to the next: a program holds one in shared memory"""
    row, lane = tl.program_id(0).to(OFFSET), tl.arange(0, N)
    x = tl.load(x_ptr + row * step + lane, mask=lane < size, other=0)
    ids_ptr += row * count
    for start in range(0, count, BLOCK):
        k = start + tl.arange(0, BLOCK)
        at, fine = checked(ids_ptr, k, k < count, size, flag_ptr, True)
        y = tl.gather(x, at.to(tl.int32), 0)
        tl.store(y_ptr + row * count + k, tl.where(fine, y, 0), mask=k < count)


@triton.jit
def last_elements(
    ids_ptr, flag_ptr, last_ptr, size, n, n0, n1, n2, n3, d0, d1, d2, d3, ND: tl.constexpr, BLOCK: tl.constexpr,
    OFFSET: tl.constexpr,
):  # fmt: skip
    """last[destination]: 1 + the last e that is written there; destinations are numbered densely"""
    e = tl.program_id(0).to(OFFSET) * BLOCK + tl.arange(0, BLOCK)
    at, fine = checked(ids_ptr, e, e < n, size, flag_ptr, True)
    at = at.to(OFFSET)
    dense = offset_of(e, n0, n1, n2, n3, d0, d1, d2, d3, ND) + at
    tl.atomic_max(last_ptr + dense, (e + 1).to(last_ptr.dtype.element_ty), mask=fine)


@triton.jit
def scatter_elements(
    x_ptr, ids_ptr, y_ptr, flag_ptr, last_ptr, size, picked, n, n0, n1, n2, n3, s0, s1, s2, s3, d0, d1, d2, d3,
    ND: tl.constexpr, BLOCK: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """x[where index e looks] = y[e] where e is the last that looks there"""
    e = tl.program_id(0).to(OFFSET) * BLOCK + tl.arange(0, BLOCK)
    at, fine = checked(ids_ptr, e, e < n, size, flag_ptr, False)
    at = at.to(OFFSET)
    dense = offset_of(e, n0, n1, n2, n3, d0, d1, d2, d3, ND) + at
    won = fine & (tl.load(last_ptr + dense, mask=fine, other=0).to(OFFSET) == e + 1)
    base = offset_of(e, n0, n1, n2, n3, s0, s1, s2, s3, ND)
    tl.store(x_ptr + base + at * picked, tl.load(y_ptr + e, mask=won), mask=won)


@triton.jit
def atomic_elements(
    x_ptr, ids_ptr, y_ptr, flag_ptr, size, picked, n, n0, n1, n2, n3, s0, s1, s2, s3, d0, d1, d2, d3,
    OP: tl.constexpr, ND: tl.constexpr, BLOCK: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """x[where index e looks] combined with y[e], integers, whose order does not matter"""
    e = tl.program_id(0).to(OFFSET) * BLOCK + tl.arange(0, BLOCK)
    at, fine = checked(ids_ptr, e, e < n, size, flag_ptr, True)
    at = at.to(OFFSET)
    aim = x_ptr + offset_of(e, n0, n1, n2, n3, s0, s1, s2, s3, ND) + at * picked
    y = tl.load(y_ptr + e, mask=fine)
    if OP == "add":
        tl.atomic_add(aim, y, mask=fine)
    elif OP == "max":
        tl.atomic_max(aim, y, mask=fine)
    else:
        tl.atomic_min(aim, y, mask=fine)


@triton.jit
def destinations(
    ids_ptr, keys_ptr, flag_ptr, size, picked, n, n0, n1, n2, n3, s0, s1, s2, s3, d0, d1, d2, d3,
    OUTSIDE: tl.constexpr, ND: tl.constexpr, BLOCK: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """keys[e]: the offset in x where index e looks, OUTSIDE for an index outside"""
    e = tl.program_id(0).to(OFFSET) * BLOCK + tl.arange(0, BLOCK)
    at, fine = checked(ids_ptr, e, e < n, size, flag_ptr, True)
    at = at.to(OFFSET)
    base = offset_of(e, n0, n1, n2, n3, s0, s1, s2, s3, ND)
    tl.store(keys_ptr + e, tl.where(fine, base + at * picked, OUTSIDE), mask=e < n)


# ---- lanes along the dim ---------------------------------------------------------------------------------------------


@triton.jit
def walk(
    x_ptr, ids_ptr, y_ptr, flag_ptr, size, picked, count, inner, lanes, n0, n1, n2, n3, s0, s1, s2, s3,
    OP: tl.constexpr, DTYPE: tl.constexpr, ND: tl.constexpr, T: tl.constexpr, C: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """x[where index e looks] combined with y[e] in the order of `count` indices, `inner` apart: a thread per lane.

    T indices at a time: what each of them finds is loaded at once, and replaced by what an earlier one of equal place
    made of it.
    """
    lane = tl.program_id(0).to(OFFSET) * C + tl.arange(0, C)
    up = lane // inner
    x_ptr += offset_of(lane, n0, n1, n2, n3, s0, s1, s2, s3, ND)
    place = up * (count * inner) + lane - up * inner
    left = tl.where(lane < lanes, count, 0)
    for k in range(0, count, T):
        at, fine, y, value = (), (), (), ()
        for t in tl.static_range(T):
            i, known = checked(ids_ptr, place + (k + t) * inner, left > k + t, size, flag_ptr, True)
            at += (tl.where(known, i.to(OFFSET), -1),)
            fine += (known,)
            y += (loaded(tl.load(y_ptr + place + (k + t) * inner, mask=known, other=0), DTYPE, 0),)
        for t in tl.static_range(T):
            found = loaded(tl.load(x_ptr + at[t] * picked, mask=fine[t], other=0), DTYPE, 0)
            value += (found,)
        done = ()
        for t in tl.static_range(T):
            now = value[t]
            for before in tl.static_range(t):
                now = tl.where(at[before] == at[t], done[before], now)
            done += (joined(now, y[t], OP),)
        for t in tl.static_range(T):
            tl.store(x_ptr + at[t] * picked, converted(done[t], x_ptr.dtype.element_ty, 0), mask=fine[t])


# ---- plans ---------------------------------------------------------------------------------------------------------


@functools.cache
def _along_kernel(fn, pointers, offset, nd, numbers, **consts):
    types = (*pointers, *(offset[0],) * (numbers + 12))
    return Kernel(fn, types, ("n",), ND=nd, BLOCK=BLOCK, OFFSET=offset[1], **consts)


@functools.cache
def _row_kernel(dtype, ids, n, block, offset, warps=8):
    types = (pointer(dtype), pointer(ids), pointer(dtype), "*i64", *("i32",) * 3)
    made = Kernel(gather_row, types, ("size", "step", "count"), warps, N=n, BLOCK=block, OFFSET=offset[1])
    made.items = block
    return made


def _row_of(at, dtype):
    """(elements, indices, step) of the rows that an index picks from, if they are dense, few and worth holding."""
    count, up = at.dims[:2]
    held = at.picked == 1 and at.nd <= 2 and at.dims[4] == 0 and up * count == at.n and at.dims[5] < LIMIT
    return (at.size, count, at.dims[5]) if held and at.size * width(dtype) <= HELD and count >= MANY else None


def _gather(dtype, ids):
    pointers = (pointer(dtype), pointer(ids), pointer(dtype), "*i64")

    def plan(gpu, words):
        for at in launches(words, width(dtype), width(ids)):
            row = _row_of(at, dtype)
            if row is not None:
                size, count, step = row
                block = min(power_of_2(count), power_of_2(HELD // 16))
                kernel = _row_kernel(dtype, ids, power_of_2(size), block, at.offset)
                kernel(gpu, (at.n // count, 1, 1), at.x, at.ids, at.y, at.flag, size, step, count)
                continue
            kernel = _along_kernel(gather_elements, pointers, at.offset, at.nd, 3)
            grid = (blocks(at.n, BLOCK), 1, 1)
            kernel(gpu, grid, at.x, at.ids, at.y, at.flag, at.size, at.picked, at.n, *at.dims)

    return plan


@functools.cache
def _scatter_kernels(dtype, ids, word, offset, nd):
    sizes = {"ND": nd, "BLOCK": BLOCK, "OFFSET": offset[1]}
    types = (pointer(ids), "*i64", pointer(word), *(offset[0],) * 10)
    find = Kernel(last_elements, types, ("n",), **sizes)
    types = (pointer(dtype), pointer(ids), pointer(dtype), "*i64", pointer(word), *(offset[0],) * 15)
    return find, Kernel(scatter_elements, types, ("n",), **sizes)


def _scatter(dtype, ids):
    def plan(gpu, words):
        for at in launches(words, width(dtype), width(ids)):
            word = "i32" if at.n < LIMIT else "i64"
            last, owner = cleared(gpu, at.places, word)
            find, write = _scatter_kernels(dtype, ids, word, at.offset, at.nd)
            grid = (blocks(at.n, BLOCK), 1, 1)
            find(gpu, grid, at.ids, at.flag, last, at.size, at.n, *at.dims[:4], *at.dims[8:])
            write(gpu, grid, at.x, at.ids, at.y, at.flag, last, at.size, at.picked, at.n, *at.dims)
            del owner

    return plan


@functools.cache
def _walk_kernel(op, dtype, ids, offset, nd, together=TOGETHER, columns=COLUMNS):
    types = (pointer(dtype), pointer(ids), pointer(dtype), "*i64", *(offset[0],) * 13)
    compute = tl.float64 if dtype == "f64" else tl.float32
    consts = {"OP": op, "DTYPE": compute, "ND": nd, "T": together, "C": columns, "OFFSET": offset[1]}
    made = Kernel(walk, types, warps=1, **consts)
    made.items = together * columns
    return made


def _lanes(at):
    """(indices along the dim, how far apart, lanes, sizes and strides of the others, how many of them count)."""
    sizes, strides = at.dims[:4], at.dims[4:8]
    along = next((d for d in range(at.nd) if strides[d] == 0 and sizes[d] > 1), None)
    count, inner = (1, at.n) if along is None else (sizes[along], prod(sizes[:along]))
    others = [(sizes[d], strides[d]) for d in range(4) if d != along and sizes[d] > 1]
    padded = [*others, *[(1, 0)] * (4 - len(others))]
    return count, inner, at.n // count, [*(n for n, _ in padded), *(s for _, s in padded)], max(1, len(others))


def _combine(op, dtype, ids):
    atomic = dtype in ("u32", "i32", "u64", "i64") and op != "mul"
    own = dtype.replace("u", "i") if op == "add" else dtype
    pointers = (pointer(own), pointer(ids), pointer(own), "*i64") if atomic else (pointer(ids), "*i64", "*i64")

    def plan(gpu, words):
        for at in launches(words, width(dtype), width(ids)):
            grid, numbers = (blocks(at.n, BLOCK), 1, 1), (at.size, at.picked, at.n, *at.dims)
            if atomic:
                kernel = _along_kernel(atomic_elements, pointers, at.offset, at.nd, 3, OP=op)
                kernel(gpu, grid, at.x, at.ids, at.y, at.flag, *numbers)
                continue
            count, inner, lanes, dims, nd = _lanes(at)
            if dtype in ("f32", "f64") and lanes >= LANES:
                kernel = _walk_kernel(op, dtype, ids, at.offset, nd)
                numbers = (at.size, at.picked, count, inner, lanes, *dims)
                kernel(gpu, (blocks(lanes, COLUMNS), 1, 1), at.x, at.ids, at.y, at.flag, *numbers)
                continue
            key = at.offset[0]
            keys, owner = gpu.allocate(at.n * width(key))
            outside = (1 << 8 * width(key) - 1) - 1  # no offset: those may be negative, and are small
            kernel = _along_kernel(
                destinations, (pointer(ids), pointer(key), "*i64"), at.offset, at.nd, 3, OUTSIDE=outside
            )
            kernel(gpu, grid, at.ids, keys, at.flag, *numbers)
            segments.combine(gpu, op, dtype, dtype, at.x, key, keys, at.y, at.n, outside)
            del owner

    return plan


def plan_of(name, *params):
    """The plan of gather, scatter, scatter_add ..., or None."""
    if name in COMBINES:
        return _combine(COMBINES[name], *params)
    found = {"gather": _gather, "scatter": _scatter}
    return found[name](*params) if name in found else None


def variants(arch):
    """Kernels of every kind, for the committed table of what the compiler makes of them."""
    find, write = _scatter_kernels("u32", "i64", "i32", NARROW, 2)
    found = {"scatter u32, first": find, "scatter u32, second": write}
    types = ("*u32", "*i64", "*u32", "*i64")
    found["gather u32, 2 dims"] = _along_kernel(gather_elements, types, NARROW, 2, 3)
    found["scatter_add u32, 2 dims"] = _along_kernel(atomic_elements, types, NARROW, 2, 3, OP="add")
    found["scatter_add f32, lanes"] = _walk_kernel("add", "f32", "i64", NARROW, 1)
    found["scatter_amax f64, lanes"] = _walk_kernel("max", "f64", "i64", NARROW, 1)
    return found | {f"gather rows of 4096 {d}": _row_kernel(d, "i64", 4096, 4096, NARROW) for d in ("u16", "u32")}
