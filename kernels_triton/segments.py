"""Elements combined by destination in one fixed order, and running sums of counts.

Destinations are sorted, stably (sort.py); a block of the sorted row combines its runs of equal ones by a segmented
scan, writes the runs that it holds whole, and leaves the parts of others to a second launch, which adds them up from
left to right. So the result does not depend on the order in which programs run. Sums of small floats are kept in f32
and rounded once. Whole rows are combined likewise, a program walking over a few sorted destinations and some columns.

Segmented scan: Blelloch, "Prefix sums and their applications" (1990), section 1.5.
"""

import functools

import triton
import triton.language as tl

from .convert import memory, width
from .dims import LIMIT, checked, converted, kind, loaded
from .launch import Kernel, blocks, pointer, power_of_2
from .ordering import order

BLOCK = 512  # elements of a program
SCANNED = 2048  # counts that are scanned at a time
COLUMNS = 1024  # of a row, that a program treats
PROGRAMS = 2048  # as many keep every GPU busy, and programs that walk over more rows leave fewer parts
COMPUTE = {"f64": tl.float64, "u32": tl.uint32, "u64": tl.uint64, "i64": tl.int64}

COMPUTE |= dict.fromkeys(("f32", "f16", "bf16", "f8e4m3", "f8e5m2"), tl.float32)
OPENS, CLOSES = 1, 2  # a run begins in this block and goes on; the run that came in ends in it


@triton.jit
def joined(a, b, OP: tl.constexpr):
    """add, mul, max or min; NaN wins"""
    if OP == "add":
        return a + b
    elif OP == "mul":
        return a * b
    elif OP == "max":
        return tl.where((a > b) | (a != a), a, b)
    else:
        return tl.where((a < b) | (a != a), a, b)


@triton.jit
def _add(head, x, next_head, y):
    return head | next_head, tl.where(next_head != 0, y, joined(x, y, "add"))


@triton.jit
def _mul(head, x, next_head, y):
    return head | next_head, tl.where(next_head != 0, y, joined(x, y, "mul"))


@triton.jit
def _max(head, x, next_head, y):
    return head | next_head, tl.where(next_head != 0, y, joined(x, y, "max"))


@triton.jit
def _min(head, x, next_head, y):
    return head | next_head, tl.where(next_head != 0, y, joined(x, y, "min"))


@triton.jit
def scanned(head, y, OP: tl.constexpr):
    """Segmented inclusive scan: (whether a head is at or before each, what its run is so far)"""
    if OP == "add":
        return tl.associative_scan((head, y), 0, _add)
    elif OP == "mul":
        return tl.associative_scan((head, y), 0, _mul)
    elif OP == "max":
        return tl.associative_scan((head, y), 0, _max)
    else:
        return tl.associative_scan((head, y), 0, _min)


@triton.jit
def stored(x_ptr, at, value, mask, OP: tl.constexpr, DTYPE: tl.constexpr, KIND: tl.constexpr):
    """x[at] combined with value"""
    before = loaded(tl.load(x_ptr + at, mask=mask), DTYPE, KIND)
    tl.store(x_ptr + at, converted(joined(before, value, OP), x_ptr.dtype.element_ty, KIND), mask=mask)


@triton.jit
def combine_blocks(
    x_ptr, keys_ptr, order_ptr, y_ptr, parts_ptr, ends_ptr, states_ptr, n, OP: tl.constexpr, DTYPE: tl.constexpr,
    KIND: tl.constexpr, Y_KIND: tl.constexpr, OUTSIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Runs of equal keys inside a block go to x[key]; parts[block], ends[block]: of what came in, of what goes on"""
    block = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    i = block * BLOCK + lane
    inside, last = i < n, (lane == BLOCK - 1) & (i < n)
    key = tl.load(keys_ptr + i, mask=inside, other=0)
    before = tl.load(keys_ptr + i - 1, mask=inside & (i > 0), other=0)
    after = tl.load(keys_ptr + i + 1, mask=i + 1 < n, other=0)
    head = ((i == 0) | (key != before)).to(tl.int32)
    tail = inside & ((i == n - 1) | (key != after))
    y = tl.load(y_ptr + tl.load(order_ptr + i, mask=inside, other=0), mask=inside, other=0.0)
    begun, value = scanned(head, loaded(y, DTYPE, Y_KIND), OP)
    begun = begun != 0
    stored(x_ptr, key, value, tail & begun & (key != OUTSIDE) if OUTSIDE else tail & begun, OP, DTYPE, KIND)
    incoming, onward = (tail | last) & (begun == 0), last & (tail == 0)
    tl.store(parts_ptr + block + 0 * lane, value, mask=incoming)
    tl.store(ends_ptr + block + 0 * lane, value, mask=onward & begun)
    opens, closes = tl.max((onward & begun).to(tl.int32), 0), tl.max((tail & (begun == 0)).to(tl.int32), 0)
    tl.store(states_ptr + block, opens + 2 * closes)


@triton.jit
def combine_ends(
    x_ptr, keys_ptr, parts_ptr, ends_ptr, states_ptr, OP: tl.constexpr, DTYPE: tl.constexpr, KIND: tl.constexpr,
    OUTSIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A run that begins in this block and goes on: its parts, from left to right, to x[key]"""
    block = tl.program_id(0).to(tl.int64)
    opens = tl.load(states_ptr + block) & 1
    value = tl.load(ends_ptr + block, mask=opens != 0, other=0)
    at, going = block + 1, opens != 0
    while going:
        value = joined(value, tl.load(parts_ptr + at), OP)
        going = tl.load(states_ptr + at) < 2
        at += 1
    if opens != 0:
        key = tl.load(keys_ptr + block * BLOCK + BLOCK - 1)
        stored(x_ptr, key, value, key != OUTSIDE if OUTSIDE else True, OP, DTYPE, KIND)


# ---- whole rows ------------------------------------------------------------------------------------------------------


@triton.jit
def row_keys(ids_ptr, keys_ptr, flag_ptr, size, n, BLOCK: tl.constexpr):
    """keys[i]: the row that index i names, `size` for one outside"""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    key, fine = checked(ids_ptr, i, i < n, size, flag_ptr, True)
    key = tl.where(fine, key, size)
    tl.store(keys_ptr + i, key.to(keys_ptr.dtype.element_ty), mask=i < n)


@triton.jit
def row_stored(x_ptr, key, size, inner, c, value, OP: tl.constexpr, DTYPE: tl.constexpr, KIND: tl.constexpr):
    """Row `key` of x, if there is one, combined with value"""
    if (key >= 0) & (key < size):
        stored(x_ptr, key.to(tl.int64) * inner + c, value, c < inner, OP, DTYPE, KIND)


@triton.jit
def combine_rows(
    x_ptr, keys_ptr, order_ptr, y_ptr, parts_ptr, ends_ptr, states_ptr, size, n, inner, pieces, chunks, per,
    OP: tl.constexpr, DTYPE: tl.constexpr, KIND: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """combine_blocks of rows of y: a program has `per` sorted keys and a piece of the columns"""
    pid = tl.program_id(0)
    outer, chunk = (pid // pieces // chunks).to(tl.int64), pid // pieces % chunks
    c = pid % pieces * COLUMNS + tl.arange(0, COLUMNS)
    x_ptr += outer * size * inner
    y_ptr += outer * n * inner
    part = (outer * chunks + chunk) * inner + c
    i = chunk.to(tl.int64) * per
    end = tl.minimum(i + per, n)
    key = tl.load(keys_ptr + i)
    begun = ((i == 0) | (tl.load(keys_ptr + i - 1, mask=i > 0, other=0) != key)).to(tl.int32)
    state = begun * 0
    value = loaded(tl.load(y_ptr + tl.load(order_ptr + i) * inner + c, mask=c < inner, other=0), DTYPE, KIND)
    for at in range(i + 1, end):
        following = tl.load(keys_ptr + at)
        row = loaded(tl.load(y_ptr + tl.load(order_ptr + at) * inner + c, mask=c < inner, other=0), DTYPE, KIND)
        if following == key:
            value = joined(value, row, OP)
        else:
            if begun != 0:
                row_stored(x_ptr, key, size, inner, c, value, OP, DTYPE, KIND)
            else:
                tl.store(parts_ptr + part, value, mask=c < inner)
                state = 2
            value, key, begun = row, following, 1
    onward = (end < n) & (tl.load(keys_ptr + end, mask=end < n, other=0) == key)
    if begun == 0:
        tl.store(parts_ptr + part, value, mask=c < inner)
        state = tl.where(onward, 0, 2)
    elif onward:
        tl.store(ends_ptr + part, value, mask=c < inner)
        state |= 1
    else:
        row_stored(x_ptr, key, size, inner, c, value, OP, DTYPE, KIND)
    if (pid % pieces == 0) & (outer == 0):
        tl.store(states_ptr + chunk, state)


@triton.jit
def combine_row_ends(
    x_ptr, keys_ptr, parts_ptr, ends_ptr, states_ptr, size, inner, pieces, chunks, per, OP: tl.constexpr,
    DTYPE: tl.constexpr, KIND: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """combine_ends of rows"""
    pid = tl.program_id(0)
    outer, chunk = (pid // pieces // chunks).to(tl.int64), pid // pieces % chunks
    c = pid % pieces * COLUMNS + tl.arange(0, COLUMNS)
    if (tl.load(states_ptr + chunk) & 1) != 0:
        part = (outer * chunks + chunk) * inner + c
        value = tl.load(ends_ptr + part, mask=c < inner, other=0)
        at, going = chunk + 1, chunk >= 0
        while going:
            part += inner
            value = joined(value, tl.load(parts_ptr + part, mask=c < inner, other=0), OP)
            going = tl.load(states_ptr + at) < 2
            at += 1
        key = tl.load(keys_ptr + chunk.to(tl.int64) * per + per - 1)
        row_stored(x_ptr + outer * size * inner, key, size, inner, c, value, OP, DTYPE, KIND)


# ---- sums of counts --------------------------------------------------------------------------------------------------


@triton.jit
def running_sums(counts_ptr, total_ptr, n, TOTAL: tl.constexpr, BLOCK: tl.constexpr):
    """Counts become the sums of those before them; one program"""
    total = tl.zeros([], tl.int64)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        count = tl.load(counts_ptr + at, mask=at < n, other=0)
        tl.store(counts_ptr + at, total + tl.cumsum(count, 0) - count, mask=at < n)
        total += tl.sum(count, 0)
    if TOTAL:
        tl.store(total_ptr, total)


@triton.jit
def clear(x_ptr, n, BLOCK: tl.constexpr):
    """n words of 0"""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + at, tl.zeros([BLOCK], x_ptr.dtype.element_ty), mask=at < n)


# ---- plans -----------------------------------------------------------------------------------------------------------


def cleared(gpu, count, dtype="i64"):
    """(address, owner) of `count` integers of 0."""
    ptr, owner = gpu.allocate(width(dtype) * count)
    _clear(dtype)(gpu, (blocks(count, BLOCK), 1, 1), ptr, count)
    return ptr, owner


@functools.cache
def _clear(dtype):
    return Kernel(clear, (pointer(dtype), "i64"), ("n",), BLOCK=BLOCK)


def _computed(op, dtype):
    """(op, what it computes in, that dtype's name)"""
    compute = COMPUTE.get(dtype, tl.int32)
    if op == "mul" and compute == tl.float32:
        compute = tl.float64  # factors in another order may leave f32 on their way
    if dtype == "bool":
        op = {"add": "max", "mul": "min"}.get(op, op)
    wide = {tl.float32: "f32", tl.float64: "f64", tl.uint32: "u32", tl.uint64: "u64", tl.int64: "i64"}
    return op, compute, wide.get(compute, "i32")


@functools.cache
def _kernels(op, dtype, source, key, outside=0):
    op, compute, wide = _computed(op, dtype)
    consts = {"OP": op, "DTYPE": compute, "KIND": kind(dtype), "OUTSIDE": outside, "BLOCK": BLOCK}
    x, keys, wide = memory(dtype), pointer(key), pointer(wide)
    types = (x, keys, "*i64", memory(source), wide, wide, "*i32", "i64")
    first = Kernel(combine_blocks, types, warps=8, Y_KIND=kind(source), **consts)
    return first, Kernel(combine_ends, (x, keys, wide, wide, "*i32"), **consts)


def combine(gpu, op, dtype, source, x, key, keys, y, n, outside=0):
    """x[keys[i]] = op(x[keys[i]], y[i]) for i from 0 to n; keys of dtype `key` (i32, i64, or any integer), elements of
    x and y of `dtype` and `source`. Keys equal to `outside`, if it is not 0, are skipped.
    """
    inner, outer = _kernels(op, dtype, source, key, outside)
    many, nbytes = blocks(n, BLOCK), width(key)
    scratch, owner = gpu.allocate((8 + nbytes) * n + 24 * many)
    indices, parts = scratch, scratch + 8 * n
    ends, states, ordered = parts + 8 * many, parts + 16 * many, parts + 24 * many
    order(gpu, key, keys, 1, n, n, 0, indices, ordered)
    inner(gpu, (many, 1, 1), x, ordered, indices, y, parts, ends, states, n)
    if many > 1:
        outer(gpu, (many, 1, 1), x, ordered, parts, ends, states)
    del owner


@functools.cache
def _row_kernels(op, dtype, key, columns):
    op, compute, wide = _computed(op, dtype)
    consts = {"OP": op, "DTYPE": compute, "KIND": kind(dtype), "COLUMNS": columns, "warps": max(1, columns // 256)}
    x, keys, wide = memory(dtype), pointer(key), pointer(wide)
    types = (x, keys, "*i64", x, wide, wide, "*i32", "i64", "i64", "i64", "i32", "i32", "i32")
    first = Kernel(combine_rows, types, ("inner",), **consts)
    first.items = columns
    types = (x, keys, wide, wide, "*i32", "i64", "i64", "i32", "i32", "i32")
    return first, Kernel(combine_row_ends, types, ("inner",), **consts)


@functools.cache
def _keys_kernel(ids, key):
    return Kernel(row_keys, (pointer(ids), pointer(key), "*i64", "i64", "i64"), BLOCK=BLOCK)


def combine_whole(gpu, op, dtype, x, key, keys, y, size, n, inner, outer=1):
    """x[o, keys[i]] = op(x[o, keys[i]], y[o, i]) of rows of `inner` elements, i from 0 to n; keys of none of the `size`
    rows are skipped. keys of dtype `key` (i32 or i64), x (outer, size, inner) and y (outer, n, inner) of `dtype`.
    """
    columns = min(power_of_2(inner), COLUMNS)
    pieces = blocks(inner, columns)
    per = min(64, max(8, power_of_2(outer * pieces * n // PROGRAMS)))
    chunks, nbytes = blocks(n, per), width(_computed(op, dtype)[2])
    found, owner = gpu.allocate((8 + width(key)) * n + 4 * chunks)
    ordered, states = found + 8 * n, found + (8 + width(key)) * n
    many = outer * chunks * inner * nbytes if chunks > 1 else 0
    parts, kept = gpu.allocate(max(16, 2 * many))
    order(gpu, key, keys, 1, n, n, 0, found, ordered)
    first, second = _row_kernels(op, dtype, key, columns)
    grid = (outer * chunks * pieces, 1, 1)
    first(gpu, grid, x, ordered, found, y, parts, parts + many, states, size, n, inner, pieces, chunks, per)
    if chunks > 1:
        second(gpu, grid, x, ordered, parts, parts + many, states, size, inner, pieces, chunks, per)
    del owner, kept


def rows_plan(op, dtype, ids):
    """The plan of scatter_add_rows ...: see index.py."""

    def plan(gpu, words):
        x, places, y, flag, size, count, inner, outer = words
        key = "i32" if size < LIMIT else "i64"
        keys, owner = gpu.allocate(width(key) * count)
        _keys_kernel(ids, key)(gpu, (blocks(count, BLOCK), 1, 1), places, keys, flag, size, count)
        combine_whole(gpu, op, dtype, x, key, keys, y, size, count, inner, outer)
        del owner

    return plan


@functools.cache
def _running(with_total):
    return Kernel(running_sums, ("*i64", "*i64", "i64"), TOTAL=with_total, BLOCK=SCANNED)


def running(gpu, counts, n, total):
    """Exclusive sums of n i64 in place; their sum to the address `total` unless it is 0."""
    _running(total != 0)(gpu, (1, 1, 1), counts, total or counts, n)


def variants(arch):
    """Kernels of every kind, for the committed table of what the compiler makes of them."""
    found = {}
    for op, dtype in (("add", "f32"), ("add", "f16"), ("max", "bf16"), ("mul", "f64")):
        first, second = _kernels(op, dtype, dtype, "i32")
        found |= {f"{op} {dtype} blocks": first, f"{op} {dtype} ends": second}
    for op, dtype in (("add", "f32"), ("add", "bf16"), ("max", "f16")):
        first, second = _row_kernels(op, dtype, "i32", COLUMNS)
        found |= {f"{op} {dtype} rows": first, f"{op} {dtype} ends of rows": second}
    return found | {"running sums": _running(True)}
