"""Joins what the segments of a split-KV attention found (flash.py, Config.SPLIT).

A record is D weighted values, relative to the segment's maximum; behind all records stand (maximum, sum) of each.
Launched by the plans of attention.py, with words of its own.
"""

import functools

import triton
import triton.language as tl

from .flash import LOWEST
from .launch import Kernel, pointer

TOGETHER = tl.constexpr(16)  # records that are read at a time


@triton.jit
def joined(out_ptr, records_ptr, stats_ptr, segments, heads, width, ot, oh, D: tl.constexpr):
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
    return Kernel(joined, types, ("width", "ot", "oh"), warps=4 if dims > 64 else 2, D=dims)


def merge(gpu, out, dims, segments, records, stats, to, t, heads, width, ot, oh):
    """Launches it: `to` [t, heads, width] of dtype `out`, strides in elements."""
    compiled(out, dims)(gpu, (t * heads, 1, 1), to, records, stats, segments, heads, width, ot, oh)


def variants(arch):
    """The kernel for results of heads of 64, 128, 256 dims."""
    return {f"{out} {dims}": compiled(out, dims) for out in ("f32", "f16") for dims in (64, 128, 256)}


def build(name, *params, source=None):
    """Nothing: on GPUs `forward` of attention.py decodes as well."""
    return None
