"""Sorting, distinct values, searching and counting; words as in kernels_numba/sort.py (`room` and `scratch` of sort
mean nothing here).

How rows are sorted is told in ordering.py. Distinct values: heads of runs are counted per block, the counts scanned,
the runs written. Searching is bisection over keys of the same order. Counts are integer atomics; weights are added up
in f64, in a fixed order, by segments.py.
"""

import functools
import struct

import triton
import triton.language as tl

from . import segments
from .convert import memory
from .dims import kind, loaded
from .launch import Kernel, blocks, pointer
from .ordering import form, is_nan, key_of, order, variants_of_order

BLOCK = 1024


@triton.jit
def heads(x_ptr, i, n, KIND: tl.constexpr, BITS: tl.constexpr, INFINITY: tl.constexpr):
    """Whether element i differs from the one before it (NaN does from all)"""
    bits = tl.load(x_ptr + i, mask=i < n, other=0)
    before = tl.load(x_ptr + i - 1, mask=(i < n) & (i > 0), other=0)
    same = key_of(bits, KIND, BITS, INFINITY) == key_of(before, KIND, BITS, INFINITY)
    return ((i == 0) | (same == 0) | is_nan(bits, KIND, BITS, INFINITY)) & (i < n), bits


@triton.jit
def count_heads(
    x_ptr, counts_ptr, n, KIND: tl.constexpr, BITS: tl.constexpr, INFINITY: tl.constexpr, BLOCK: tl.constexpr
):
    """How many runs begin in a block"""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    head, _ = heads(x_ptr, i, n, KIND, BITS, INFINITY)
    tl.store(counts_ptr + tl.program_id(0), tl.sum(head.to(tl.int32), 0).to(tl.int64))


@triton.jit
def write_runs(
    x_ptr, order_ptr, counts_ptr, values_ptr, starts_ptr, runs_ptr, n, ORDERED: tl.constexpr, KIND: tl.constexpr,
    BITS: tl.constexpr, INFINITY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Values and starts of runs (and n behind them); the run that each element, order[i] or i, is in"""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    head, bits = heads(x_ptr, i, n, KIND, BITS, INFINITY)
    run = tl.load(counts_ptr + tl.program_id(0)) + tl.cumsum(head.to(tl.int32), 0) - 1
    tl.store(values_ptr + run, bits, mask=head)
    tl.store(starts_ptr + run, i, mask=head)
    tl.store(starts_ptr + run + 1, i + 1, mask=i == n - 1)
    place = tl.load(order_ptr + i, mask=i < n, other=0) if ORDERED else i
    tl.store(runs_ptr + place, run, mask=i < n)


@triton.jit
def search(
    edges_ptr, x_ptr, out_ptr, count, n, per, right, steps, KIND: tl.constexpr, BITS: tl.constexpr,
    INFINITY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How many elements of a sorted row are below (right: not above) each value"""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside, base = i < count, i // per * n
    value = key_of(tl.load(x_ptr + i, mask=inside, other=0), KIND, BITS, INFINITY)
    low, high = tl.zeros([BLOCK], tl.int64), tl.zeros([BLOCK], tl.int64) + n
    for _ in range(steps):
        at = (low + high) >> 1
        open_ = inside & (low < high)
        edge = key_of(tl.load(edges_ptr + base + at, mask=open_, other=0), KIND, BITS, INFINITY)
        below = (edge < value) | ((edge == value) & (right != 0))
        low = tl.where(open_ & below, at + 1, low)
        high = tl.where(open_ & (below == 0), at, high)
    tl.store(out_ptr + i, low.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def count_values(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """out[x[i]] += 1"""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at = tl.load(x_ptr + i, mask=i < n, other=0).to(tl.int64)
    tl.atomic_add(out_ptr + at, tl.full([BLOCK], 1, tl.int64), mask=i < n)


@triton.jit
def histogram(x_ptr, out_ptr, n, bins, low, high, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """out[bin] += 1 for x in [low, high], whose ends are given as bits of f64"""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    low, high = low.to(tl.int64).to(tl.float64, bitcast=True), high.to(tl.int64).to(tl.float64, bitcast=True)
    v = loaded(tl.load(x_ptr + i, mask=i < n, other=0.0), tl.float64, KIND)
    counted = (i < n) & (v >= low) & (v <= high)
    at = tl.where(counted, (v - low) * bins.to(tl.float64) / (high - low), 0.0).to(tl.int64)
    tl.atomic_add(out_ptr + tl.minimum(at, bins - 1), tl.full([BLOCK], 1, tl.int64), mask=counted)


# ---- plans -----------------------------------------------------------------------------------------------------------


def _sort(dtype, _):
    def plan(gpu, words):
        x, values, indices, rows, n, k, flip = words[:7]
        order(gpu, dtype, x, rows, n, k, flip, indices, values)

    return plan


@functools.cache
def _unique_kernels(dtype, ordered):
    consts, raw = form(dtype)
    count = Kernel(count_heads, (raw, "*i64", "i64"), BLOCK=BLOCK, **consts)
    types = (raw, "*i64", "*i64", raw, "*i64", "*i64", "i64")
    return count, Kernel(write_runs, types, ORDERED=ordered, BLOCK=BLOCK, **consts)


def _unique(dtype):
    def plan(gpu, words):
        x, places, values, starts, runs, total, n = words
        count, write = _unique_kernels(dtype, places != 0)
        many = blocks(n, BLOCK)
        counts, owner = gpu.allocate(8 * max(many, 1))
        if many:
            count(gpu, (many, 1, 1), x, counts, n)
        segments.running(gpu, counts, many, total)
        if many:
            write(gpu, (many, 1, 1), x, places or counts, counts, values, starts, runs, n)
        del owner

    return plan


@functools.cache
def _search_kernel(dtype, out):
    consts, raw = form(dtype)
    return Kernel(search, (raw, raw, pointer(out), *("i64",) * 3, "i32", "i32"), BLOCK=BLOCK, **consts)


def _searchsorted(dtype, out):
    kernel = _search_kernel(dtype, out)

    def plan(gpu, words):
        n = words[4]
        kernel(gpu, (blocks(words[3], BLOCK), 1, 1), *words, n.bit_length())

    return plan


def _bincount(dtype, weights=None):
    kernel = Kernel(count_values, (pointer(dtype), "*i64", "i64"), BLOCK=BLOCK)

    def plan(gpu, words):
        x, y, out, n = words
        if weights:
            segments.combine(gpu, "add", "f64", weights, out, dtype, x, y, n)
        else:
            kernel(gpu, (blocks(n, BLOCK), 1, 1), x, out, n)

    return plan


def _histc(dtype):
    kernel = Kernel(histogram, (memory(dtype), "*i64", *("i64",) * 4), KIND=kind(dtype), BLOCK=BLOCK)

    def plan(gpu, words):
        ends = (int.from_bytes(struct.pack("<d", v), "little", signed=True) for v in words[4:])
        kernel(gpu, (blocks(words[2], BLOCK), 1, 1), *words[:4], *ends)

    return plan


def build(name, *params, source=None):
    """See kernels_triton/__init__.py; names and parameters as in kernels_numba/sort.py."""
    found = {"sort": _sort, "unique": _unique, "searchsorted": _searchsorted, "bincount": _bincount, "histc": _histc}
    return found[name](*params) if name in found else None


def variants(arch):
    """Kernels of every kind, for the committed table of what the compiler makes of them."""
    count, write = _unique_kernels("f32", True)
    return variants_of_order(arch) | {
        "unique f32, first": count, "unique f32, second": write, "searchsorted f32": _search_kernel("f32", "i64"),
    }  # fmt: skip
