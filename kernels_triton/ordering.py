"""Sorting rows of any length, stably: in registers, or in chunks that are merged.

Elements become signed integers of the same order (as in kernels_numba/sort.py): -0.0 as 0.0, every NaN above infinity;
descending order complements them. A key of 32 bits and its index share an i64, one of 16 an i32, so that no two words
are equal and any network sorts them stably (Batcher's bitonic one, as in `tl.sort`); keys of 64 bits are sorted by
their lower halves, then by their upper ones. Longer rows: chunks are sorted, and every element of a run finds its place
by its rank in the neighbouring run, which it looks up by bisection (Satish, Harris, Garland, "Designing efficient
sorting algorithms for manycore GPUs", 2009, section 4). Of the k smallest, k <= 128, only k of every chunk go on.
"""

import functools

import triton
import triton.language as tl

from .dims import offset_type
from .launch import Kernel, blocks, power_of_2

SHORT, CHUNK = 4096, 2048  # elements that are sorted at once: of a row, of a part of a long one
FEW = 128  # the most that are selected chunk by chunk
BLOCK = 1024
# largest bits of a float that are not NaN's
INFINITY = {"f8e4m3": 0x7E, "f8e5m2": 0x7C, "f16": 0x7C00, "bf16": 0x7F80, "f32": 0x7F800000, "f64": 0x7FF << 52}


@triton.jit
def key_of(bits, KIND: tl.constexpr, BITS: tl.constexpr, INFINITY: tl.constexpr):
    """Integers of the same order as the elements whose bits are given, i64 for 64 bits, else i32"""
    key = bits.to(tl.int64) if BITS == 64 else bits.to(tl.int32)
    if KIND == "f":
        size, sign = key & ((1 << BITS - 1) - 1), key >> (63 if BITS == 64 else 31)
        return tl.where(size > INFINITY, (1 << BITS - 1) - 1, (size ^ sign) - sign)
    elif KIND == "i":
        return key
    elif BITS == 64:
        return key ^ -0x8000000000000000
    elif BITS == 32:
        return key ^ -0x80000000
    else:
        return key - (1 << BITS - 1)


@triton.jit
def is_nan(bits, KIND: tl.constexpr, BITS: tl.constexpr, INFINITY: tl.constexpr):
    """Whether bits are those of a NaN"""
    if KIND == "f":
        return (bits & ((1 << BITS - 1) - 1)) > INFINITY
    else:
        return bits != bits


@triton.jit
def low_half(x):
    """The lower 32 bits of an i64, as an i64 from 0 on"""
    return x & tl.full([], 0xFFFFFFFF, tl.int64)


@triton.jit
def wide_places(key, lane):
    """Places of i64 keys [rows, n] in stable order; `lane` is arange(n) in every row"""
    low = (low_half(key) - 0x80000000) << 32
    first = low_half(tl.sort(low | lane.to(tl.int64), 1)).to(tl.int32)
    high = (tl.gather(key, first, 1) >> 32) << 32
    second = low_half(tl.sort(high | lane.to(tl.int64), 1)).to(tl.int32)
    return tl.gather(first, second, 1)


@triton.jit
def sort_short(
    x_ptr, values_ptr, indices_ptr, rows, n, k, flip, VALUES: tl.constexpr, KIND: tl.constexpr, BITS: tl.constexpr,
    INFINITY: tl.constexpr, R: tl.constexpr, N: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """The first k of R whole rows in order: their indices and values"""
    r = tl.program_id(0).to(OFFSET) * R + tl.arange(0, R)[:, None]
    lane = tl.arange(0, N)[None, :]
    mask = (r < rows) & (lane < n)
    key = key_of(tl.load(x_ptr + r * n + lane, mask=mask, other=0), KIND, BITS, INFINITY)
    lane = tl.broadcast_to(lane, [R, N])
    if BITS == 64:
        key = tl.where(mask, key ^ flip.to(tl.int64), 0x7FFFFFFFFFFFFFFF)
        at = wide_places(key, lane)
    elif BITS == 32:
        key = tl.where(mask, key ^ flip, 0x7FFFFFFF).to(tl.int64)
        at = low_half(tl.sort((key << 32) | lane.to(tl.int64), 1)).to(tl.int32)
    else:
        key = tl.where(mask, key ^ flip, 0x7FFF)
        at = tl.sort((key << 16) | lane, 1) & 0xFFFF
    kept = (r < rows) & (lane < k)
    tl.store(indices_ptr + r * k + lane, at.to(tl.int64), mask=kept)
    if VALUES:
        tl.store(values_ptr + r * k + lane, tl.load(x_ptr + r * n + at, mask=kept), mask=kept)


@triton.jit
def sort_chunks(
    x_ptr, places_ptr, keys_ptr, ids_ptr, n, chunks, kept, out_n, flip, FIRST: tl.constexpr, WIDE: tl.constexpr,
    KIND: tl.constexpr, BITS: tl.constexpr, INFINITY: tl.constexpr, N: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """The first `kept` of every chunk of N elements in order: keys with indices in them, or (WIDE) both by themselves.
    They come from rows of n elements (FIRST), or from what an earlier launch kept.
    """
    pid = tl.program_id(0).to(OFFSET)
    row, chunk = pid // chunks, pid % chunks
    lane = tl.arange(0, N)[None, :]
    i = chunk * N + lane
    mask, aim = i < n, row * out_n + chunk * kept + lane
    write = (lane < kept) & (chunk * kept + lane < out_n)
    bits = tl.load(x_ptr + row * n + i, mask=mask, other=0)
    if WIDE:
        key = bits
        if FIRST:
            key = key_of(bits, KIND, BITS, INFINITY).to(tl.int64) ^ flip.to(tl.int64)
        key = tl.where(mask, key, 0x7FFFFFFFFFFFFFFF)
        at = wide_places(key, lane)
        tl.store(keys_ptr + aim, tl.gather(key, at, 1), mask=write)
        place = i.to(tl.int64) if FIRST else tl.load(places_ptr + row * n + i, mask=mask, other=0)
        tl.store(ids_ptr + aim, tl.gather(place, at, 1), mask=write)
    else:
        if FIRST:
            key = tl.where(mask, key_of(bits, KIND, BITS, INFINITY) ^ flip, 0x7FFFFFFF).to(tl.int64)
            word = (key << 32) | i.to(tl.int64)
        else:
            word = tl.where(mask, bits, 0x7FFFFFFFFFFFFFFF)
        tl.store(keys_ptr + aim, tl.sort(word, 1), mask=write)


@triton.jit
def merge_runs(
    keys_ptr, ids_ptr, out_ptr, out_ids_ptr, n, total, run, steps, WIDE: tl.constexpr, BLOCK: tl.constexpr,
    OFFSET: tl.constexpr,
):  # fmt: skip
    """Pairs of sorted runs in rows of n elements become one"""
    i = tl.program_id(0).to(OFFSET) * BLOCK + tl.arange(0, BLOCK)
    inside, row = i < total, i // n
    j = i - row * n
    key = tl.load(keys_ptr + i, mask=inside)
    start = j // (2 * run) * (2 * run)
    middle = tl.minimum(start + run, n)
    left = j < middle
    low = tl.where(left, middle, start)
    high = tl.where(left, tl.minimum(start + 2 * run, n), middle)
    place = j - tl.where(left, start, middle) - low
    for _ in range(steps):
        at = (low + high) >> 1
        open_ = low < high
        other = tl.load(keys_ptr + row * n + at, mask=inside & open_)
        below = (other < key) | ((other == key) & (left == 0))
        low = tl.where(open_ & below, at + 1, low)
        high = tl.where(open_ & (below == 0), at, high)
    aim = row * n + start + place + low
    tl.store(out_ptr + aim, key, mask=inside)
    if WIDE:
        tl.store(out_ids_ptr + aim, tl.load(ids_ptr + i, mask=inside), mask=inside)


@triton.jit
def finish(
    x_ptr, keys_ptr, ids_ptr, values_ptr, indices_ptr, n, out_n, k, total, VALUES: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Indices and values of the first k of sorted rows of out_n"""
    i = tl.program_id(0).to(OFFSET) * BLOCK + tl.arange(0, BLOCK)
    inside, row = i < total, i // k
    at = row * out_n + i - row * k
    place = tl.load(ids_ptr + at, mask=inside) if WIDE else low_half(tl.load(keys_ptr + at, mask=inside))
    tl.store(indices_ptr + i, place, mask=inside)
    if VALUES:
        tl.store(values_ptr + i, tl.load(x_ptr + row * n + place, mask=inside), mask=inside)


# ---- plans -----------------------------------------------------------------------------------------------------------


def form(dtype):
    """The constants of `key_of` for a dtype, and the type of pointers to its bits."""
    kind = "f" if dtype in INFINITY else "i" if dtype[0] == "i" else "u"
    bits = {"bool": 8, "f8e4m3": 8, "f8e5m2": 8, "bf16": 16}.get(dtype) or int(dtype[1:])
    consts = {"KIND": kind, "BITS": bits, "INFINITY": INFINITY.get(dtype, 0)}
    return consts, f"*{'u' if kind == 'u' and bits < 32 else 'i'}{bits}"


@functools.cache
def _short(dtype, n, values, offset):
    consts, raw = form(dtype)
    rows = max(1, 1024 // n)
    warps = 4 if rows * n < CHUNK else 8
    types = (raw, raw, "*i64", *(offset[0],) * 3, "i32")
    made = Kernel(sort_short, types, warps=warps, VALUES=values, R=rows, N=n, OFFSET=offset[1], **consts)
    made.items = rows * n
    return made


@functools.cache
def _chunks(dtype, first, wide, offset):
    consts, raw = form(dtype if first else "i64")
    types = (raw, "*i64", "*i64", "*i64", *(offset[0],) * 4, "i32")
    made = Kernel(sort_chunks, types, warps=8, FIRST=first, WIDE=wide, N=CHUNK, OFFSET=offset[1], **consts)
    made.items = CHUNK
    return made


@functools.cache
def _merge(wide, offset):
    types = ("*i64",) * 4 + (offset[0],) * 3 + ("i32",)
    return Kernel(merge_runs, types, WIDE=wide, BLOCK=BLOCK, OFFSET=offset[1])


@functools.cache
def _finish(dtype, values, wide, offset):
    raw = form(dtype)[1]
    types = (raw, "*i64", "*i64", raw, "*i64", *(offset[0],) * 4)
    return Kernel(finish, types, VALUES=values, WIDE=wide, BLOCK=BLOCK, OFFSET=offset[1])


def order(gpu, dtype, x, rows, n, k, flip, indices, values=0):
    """Indices (i64) of the first k of dense rows of n elements in stable order, and their values unless that address is
    0; flip is -1 for descending order.
    """
    offset = offset_type(rows * max(n, 2 * CHUNK))
    if n <= SHORT:
        size = max(16, power_of_2(n))
        kernel = _short(dtype, size, values != 0, offset)
        grid = (blocks(rows, kernel.consts["R"]), 1, 1)
        kernel(gpu, grid, x, values or x, indices, rows, n, k, flip)
        return
    wide = form(dtype)[0]["BITS"] == 64 or n >= 1 << 31
    chosen = _selected if k <= FEW else _merged
    keys, ids, out_n, owners = chosen(gpu, dtype, x, rows, n, k, flip, wide, offset)
    kernel = _finish(dtype, values != 0, wide, offset)
    total = rows * k
    kernel(gpu, (blocks(total, BLOCK), 1, 1), x, keys, ids, values or x, indices, n, out_n, k, total)
    del owners


def _memory(gpu, count, wide):
    """(keys, ids, owner) for `count` elements; no ids unless wide"""
    keys, owner = gpu.allocate(8 * count * (1 + wide))
    return keys, keys + 8 * count if wide else keys, owner


def _selected(gpu, dtype, x, rows, n, k, flip, wide, offset):
    keys = ids = x
    owners, first = [], True
    while True:
        chunks = blocks(n, CHUNK)
        out_n = chunks * k
        new_keys, new_ids, owner = _memory(gpu, rows * out_n, wide)
        kernel = _chunks(dtype if first else "i64", first, wide, offset)
        kernel(gpu, (rows * chunks, 1, 1), keys, ids, new_keys, new_ids, n, chunks, k, out_n, flip)
        keys, ids, n, first = new_keys, new_ids, out_n, False
        owners.append(owner)
        if chunks == 1:
            return keys, ids, out_n, owners


def _merged(gpu, dtype, x, rows, n, k, flip, wide, offset):
    chunks, total = blocks(n, CHUNK), rows * n
    front, back = (_memory(gpu, total, wide) for _ in range(2))
    kernel = _chunks(dtype, True, wide, offset)
    kernel(gpu, (rows * chunks, 1, 1), x, x, *front[:2], n, chunks, CHUNK, n, flip)
    run = CHUNK
    while run < n:
        kernel = _merge(wide, offset)
        kernel(gpu, (blocks(total, BLOCK), 1, 1), *front[:2], *back[:2], n, total, run, run.bit_length())
        front, back, run = back, front, 2 * run
    return *front[:2], n, [front[2], back[2]]


def variants_of_order():
    """Kernels of every size and width, for the room sort."""
    from .dims import NARROW

    found = {f"{d} {n}": _short(d, n, True, NARROW) for d in ("f16", "f32") for n in (32, 1024, 4096)}
    found |= {"i64 1024": _short("i64", 1024, True, NARROW), "i64 4096": _short("i64", 4096, True, NARROW)}
    found |= {"chunks f32": _chunks("f32", True, False, NARROW), "chunks i64": _chunks("i64", True, True, NARROW)}
    found |= {"merge": _merge(False, NARROW), "merge wide": _merge(True, NARROW)}
    return found | {"finish f32": _finish("f32", True, False, NARROW)}
