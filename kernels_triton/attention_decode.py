"""Joins what the segments of a split-KV attention found (flash.py, Config.SPLIT; decode_attention.py).

A record is D weighted values, relative to the segment's maximum; (maximum, sum) of each stand in memory of their own.
The last program of few rows has them `joined`; of many, plans of attention.py launch `merged`.
"""

import functools

import triton
import triton.language as tl

from .launch import Kernel, pointer

LOWEST = tl.constexpr(-3.0e38)  # the maximum of nothing
TOGETHER = tl.constexpr(16)  # records that are read at a time
JOINED = tl.constexpr(4096)  # their elements, of several rows


@triton.jit
def joined(records_ptr, stats_ptr, first, mine, segments, R: tl.constexpr, D: tl.constexpr, SOME: tl.constexpr):
    """[R, D]: the records of rows whose first ones are `first`, weighted, SOME at a time"""
    s, d = tl.arange(0, SOME), tl.arange(0, D)
    acc, total = tl.zeros((R, D), tl.float32), tl.zeros((R,), tl.float32)
    top = tl.full((R,), LOWEST, tl.float32)
    for base in range(0, segments, SOME):
        known = mine[:, None] & (base + s < segments)[None, :]
        at = first[:, None] + base + s[None, :]
        sums = tl.load(stats_ptr + at * 2 + 1, mask=known, other=0.0)
        tops = tl.load(stats_ptr + at * 2, mask=known, other=LOWEST)
        some = tl.load(records_ptr + (at[:, :, None] * D + d[None, None, :]), mask=known[:, :, None], other=0.0)
        new = tl.maximum(top, tl.max(tops, 1))
        before, weight = tl.exp2(top - new), tl.exp2(tops - new[:, None])
        acc = acc * before[:, None] + tl.sum(tl.where((sums != 0)[:, :, None], some * weight[:, :, None], 0.0), 1)
        total = total * before + tl.sum(sums * weight, 1)
        top = new
    return acc / tl.where(total == 0, 1.0, total)[:, None]


@triton.jit
def lined(r, pack, step, head_step, C: tl.constexpr):
    """Where a tile's rows are, relative to the first: the queries `step` apart, their heads `head_step`"""
    return r // pack * step + r % pack * head_step if C.PACKED else r * step


@triton.jit
def inside(r, t, pack, C: tl.constexpr):
    """Which of a tile's rows are there, if t queries from its first on are."""
    mine = lined(r, pack, 1, 0, C) < t
    if C.PACKED:
        mine &= r < C.BM // pack * pack
    return mine


@triton.jit
def record(pointers, acc, total, top, where, steps, C: tl.constexpr):
    """Stores what a segment found; of few rows the last segment joins them."""
    out_ptr, records_ptr, stats_ptr, counter_ptr = pointers
    r, mine, begin, head, pack, width = where
    ot, oh, heads, _, left, segments = steps
    d, first = tl.arange(0, C.D)[None, :], (begin * heads + head) * segments
    at = first + tl.program_id(1) + lined(r, pack, heads * segments, segments, C)
    tl.store(records_ptr + at[:, None] * C.D + d, acc, mask=mine[:, None])
    tl.store(stats_ptr + at * 2, top, mask=mine)
    tl.store(stats_ptr + at * 2 + 1, total, mask=mine)
    if C.SPLIT > 0:
        R: tl.constexpr = C.SPLIT
        SOME: tl.constexpr = 16 if JOINED >= 16 * R * C.D else JOINED // (R * C.D)
        tl.debug_barrier()
        if tl.atomic_add(counter_ptr + tl.program_id(0), 1, sem="acq_rel") == segments - 1:
            i = tl.arange(0, R)
            some = inside(i, left, pack, C)
            ones = first + lined(i, pack, heads * segments, segments, C)
            x = joined(records_ptr, stats_ptr, ones, some, segments, R, C.D, SOME)
            to = out_ptr + begin * ot + head * oh + lined(i, pack, ot, oh, C)[:, None] + d
            tl.store(to, x.to(out_ptr.dtype.element_ty), mask=some[:, None] & (d < width))
            tl.atomic_xchg(counter_ptr + tl.program_id(0), 0, sem="relaxed")


@triton.jit
def merged(out_ptr, records_ptr, stats_ptr, segments, heads, width, ot, oh, D: tl.constexpr):
    """One row of out: the values of its segments, weighted"""
    row, d, s = tl.program_id(0).to(tl.int64), tl.arange(0, D), tl.arange(0, TOGETHER)
    first = row * segments
    top = LOWEST
    for base in range(0, segments, TOGETHER):
        known = base + s < segments
        top = tl.maximum(top, tl.max(tl.load(stats_ptr + (first + base + s) * 2, mask=known, other=LOWEST)))
    acc = tl.zeros((D,), tl.float32)
    total = 0.0
    for base in range(0, segments, TOGETHER):
        known = base + s < segments
        at = first + base + s
        sums = tl.load(stats_ptr + at * 2 + 1, mask=known, other=0.0)
        weight = tl.exp2(tl.load(stats_ptr + at * 2, mask=known, other=LOWEST) - top)
        some = tl.load(records_ptr + at[:, None] * D + d[None, :], mask=(sums != 0)[:, None], other=0.0)
        acc += tl.sum(some * weight[:, None], 0)
        total += tl.sum(sums * weight)
    x = acc / tl.where(total == 0, 1.0, total)
    at = out_ptr + row // heads * ot + row % heads * oh + d
    tl.store(at, x.to(out_ptr.dtype.element_ty), mask=d < width)


@functools.cache
def compiled(out, dims):
    """The Kernel for a dtype of out and a tile's dims."""
    types = (pointer(out), "*fp32", "*fp32", "i32", "i32", "i32", "i64", "i64")
    return Kernel(merged, types, ("width", "ot", "oh"), warps=4 if dims > 64 else 2, D=dims)


def merge(gpu, out, dims, segments, records, stats, to, t, heads, width, ot, oh):
    """Launches it: `to` [t, heads, width] of dtype `out`, strides in elements."""
    compiled(out, dims)(gpu, (t * heads, 1, 1), to, records, stats, segments, heads, width, ot, oh)


def variants(arch):
    """The kernel for results of heads of 64, 128, 256 dims."""
    return {f"{out} {dims}": compiled(out, dims) for out in ("f32", "f16") for dims in (64, 128, 256)}


def build(name, *params, source=None):
    """Nothing: on GPUs `forward` of attention.py decodes as well."""
    return None
