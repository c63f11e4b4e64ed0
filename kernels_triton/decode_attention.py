"""One query: its k and v to the caches, q and k turned, attention over all keys, in one launch; part of it is flash.py.

"step" (layout of the tables: halves or pairs; dtype of the caches). Words: q, k, v (f32, contiguous heads); keys, its
strides of heads and rows, values, likewise (bytes); cos, sin, positions in them, half; address of the position; rows of
the caches; heads, KV heads, D; scale; out f32 [heads, D], its values i8, scales f32, sums i32 (quant.py) or three 0;
a counter per KV head (i32, 0 before and after).

A program has the query heads of a KV head, and a segment of the keys. The one whose segment holds the newest key turns
and stores it, and passes a barrier, before it reads. Where there are several segments each stores a record (values
relative to the segment's maximum; maximum and sum), passes a barrier, and counts with an atomic that releases what it
stored; the last one, which has acquired all of them, joins the records in the order of the segments.
"""

import functools

import triton
import triton.language as tl

from .attention import MOST, SIZES, arithmetic, tiles
from .attention_decode import joined
from .decode_matvec import store_groups
from .flash import Config, attend, span, terms_of
from .float8 import KINDS, reading
from .launch import Kernel, blocks, pointer, power_of_2
from .rope import put

JOINED = 4096  # elements of records that are read at a time


@triton.jit
def turned(x_ptr, d, tables, position, half, mask, PAIRS: tl.constexpr):
    """Dims d of heads at x_ptr, those of the pairs (i, i + half) or (2 i, 2 i + 1) below 2 half turned."""
    cos_ptr, sin_ptr, limit = tables
    turns, known = d < 2 * half, d < tl.where((position >= 0) & (position < limit), 2 * half, 0)
    if PAIRS:
        pair, first, partner = d // 2, d % 2 == 0, d ^ 1
    else:
        first = d < half
        pair, partner = tl.where(first, d, d - half), tl.where(first, d + half, d - half)
    c = tl.load(cos_ptr + (position * half + pair), mask=known, other=float("nan"))
    s = tl.load(sin_ptr + (position * half + pair), mask=known, other=float("nan"))
    x = tl.load(x_ptr + d, mask=mask, other=0.0)
    y = tl.load(x_ptr + partner, mask=mask & turns, other=0.0)
    return tl.where(turns, x * c + y * tl.where(first, -s, s), x)


@triton.jit
def bytes_at(at):
    """The same addresses, of bytes"""
    return at.to(tl.pointer_type(tl.uint8), bitcast=True)


@triton.jit
def write(y, row, mine, width, out_ptr, q_ptr, d_ptr, sum_ptr, R: tl.constexpr, D: tl.constexpr, GROUPED: tl.constexpr):
    """Rows [R, D] of the result, and their groups of 32"""
    d = tl.arange(0, D)
    inside = mine[:, None] & (d < width)[None, :]
    tl.store(out_ptr + (row * width)[:, None] + d[None, :], y, mask=inside)
    if GROUPED:
        g = tl.arange(0, D // 32)
        group = tl.reshape((row * (width // 32))[:, None] + g[None, :], (R * (D // 32),))
        there = tl.reshape(mine[:, None] & (g < width // 32)[None, :], (R * (D // 32),))
        store_groups(tl.reshape(y, (R * (D // 32), 32)), q_ptr, d_ptr, sum_ptr, group, there)


@triton.jit
def step(q_ptr, k_ptr, v_ptr, keys_ptr, values_ptr, cos_ptr, sin_ptr, start_ptr, out_ptr, oq_ptr, od_ptr, os_ptr,
         records_ptr, stats_ptr, counter_ptr, limit, half, rows, width, group, segments, kh, kr, vh, vr, scale,
         C: tl.constexpr, PAIRS: tl.constexpr, KIND: tl.constexpr, GROUPED: tl.constexpr, R: tl.constexpr,
         TOGETHER: tl.constexpr, SEM: tl.constexpr):  # fmt: skip
    """See the docstring of the file; strides in elements. Programs: (KV head, segment)."""
    head, segment = tl.program_id(0), tl.program_id(1)
    r, d = tl.arange(0, C.BM), tl.arange(0, C.D)
    start = tl.load(start_ptr)
    keys = tl.maximum(0, tl.minimum(start + 1, rows)).to(tl.int32)
    visited = span(keys * 0, keys * 0, keys, keys, segment, segments, C.BN)
    tables, there, whole = (cos_ptr, sin_ptr, limit), (start >= 0) & (start < rows), d < width
    keys_ptr += head.to(tl.int64) * kh
    values_ptr += head.to(tl.int64) * vh
    if there & (start // C.BN >= visited[0]) & (start // C.BN < visited[3]):
        at_k, at_v = keys_ptr + start * kr + d, values_ptr + start * vr + d
        if KIND:
            at_k, at_v = bytes_at(at_k), bytes_at(at_v)
        new = turned(k_ptr + head * width, d, tables, start, half, whole, PAIRS)
        put(at_k, new, whole, KIND)
        put(at_v, tl.load(v_ptr + head * width + d, mask=whole, other=0.0), whole, KIND)
    tl.debug_barrier()
    row, mine = head * group + r, r < group
    at_q = q_ptr + (row * width)[:, None]
    x = turned(at_q, d[None, :], tables, start, half, mine[:, None] & whole[None, :], PAIRS)
    TYPE: tl.constexpr = tl.float32 if C.PARTS == 0 else tl.float16 if C.EIGHT else keys_ptr.dtype.element_ty
    query = terms_of(x, scale, 0.0, TYPE, C)
    bounds = (0, keys, width, 0, 0)
    v_rows = (values_ptr, kr if C.SAME else vr, 0)
    acc, total, top = attend(query, (keys_ptr, kr, 0), v_rows, (r, r, r), bounds, visited, C)
    if C.SPLIT:
        at = row * segments + segment
        tl.store(records_ptr + at[:, None] * C.D + d[None, :], acc, mask=(mine & (total != 0))[:, None])
        tl.store(stats_ptr + at * 2, top, mask=mine)
        tl.store(stats_ptr + at * 2 + 1, total, mask=mine)
        tl.debug_barrier()
        if tl.atomic_add(counter_ptr + head, 1, sem=SEM) == segments - 1:
            i = tl.arange(0, R)
            y = joined(records_ptr, stats_ptr, (head * group + i) * segments, i < group, segments, R, C.D, TOGETHER)
            write(y, head * group + i, i < group, width, out_ptr, oq_ptr, od_ptr, os_ptr, R, C.D, GROUPED)
            tl.atomic_xchg(counter_ptr + head, 0, sem="relaxed")
    else:
        y = acc / tl.where(total == 0, 1.0, total)[:, None]
        write(y, row, mine, width, out_ptr, oq_ptr, od_ptr, os_ptr, C.BM, C.D, GROUPED)


@functools.cache
def compiled(cache, memory, config, warps, stages, pairs, grouped, group, sem="acq_rel"):
    """The Kernel of a Config for the dtype of the caches and of their memory, and so many heads of a KV head."""
    kv, rows = pointer(memory), power_of_2(group)
    types = ("*fp32", "*fp32", "*fp32", kv, kv, "*fp32", "*fp32", "*i64", "*fp32", "*i8", "*fp32", "*i32", "*fp32")
    types += ("*fp32", "*i32", *("i32",) * 6, *("i64",) * 4, "fp32")
    facts = {"C": config, "PAIRS": pairs, "KIND": KINDS.get(cache, 0), "GROUPED": grouped, "R": rows}
    facts |= {"TOGETHER": max(1, JOINED // (rows * config.D)), "SEM": sem}
    loose = ("start_ptr", "counter_ptr")
    return Kernel(step, types, ("half", "width", "kh", "kr", "vh", "vr"), warps, stages, loose=loose, **facts)


def config(arch, kv, group, width, same, interpreted=False):
    """(dtype of the caches' memory, Config, warps, stages), of a single segment."""
    eight, memory = reading(kv, arch, interpreted)
    bm, bn, warps, stages = tiles(arch, "f32", kv, width, group)
    warps = 8 if arch == 75 else warps  # products in f32 without tensor cores take many registers
    dims = max(16, power_of_2(width))
    facts = (False, False, 0, False, False, False, *arithmetic(arch, "f32", kv), eight, 0, False, False, False)
    return memory, Config(bm, bn, dims, dims == width, 1, same, True, *facts), warps, stages


def _step(layout, kv, gpu, words):
    q, k, v, keys, kh, kr, values, vh, vr, cos, sin, limit, half, start, rows, heads, groups, width, scale = words[:19]
    out, counter, group, size = words[19:23], words[23], heads // groups, SIZES[kv]
    memory, made, warps, stages = config(gpu.arch, kv, group, width, kr == vr, gpu.interpreted)
    segments = max(1, min(blocks(gpu.units, groups), blocks(rows, made.BN), MOST))  # more would take longer to join
    made, records, owner = made._replace(SPLIT=segments > 1), 0, None
    if segments > 1:
        records, owner = gpu.allocate(4 * heads * segments * (made.D + 2))
    kernel = compiled(kv, memory, made, warps, stages, layout == "pairs", out[1] != 0, group)
    pointers = (q, k, v, keys, values, cos, sin, start, *out, records, records + 4 * heads * segments * made.D, counter)
    strides = (kh // size, kr // size, vh // size, vr // size)
    kernel(gpu, (groups, segments, 1), *pointers, limit, half, rows, width, group, segments, *strides, scale)
    del owner


def build(name, *params, source=None):
    """See kernels_triton/__init__.py."""
    if name != "step" or len(params) != 2 or params[0] not in ("halves", "pairs") or params[1] not in SIZES:
        return None
    return functools.partial(_step, *params)


def variants(arch):
    """Heads of 64 and 128 dims, alone and four to a KV head."""
    found = {}
    for kv, width, group in (("f16", 128, 1), ("f16", 128, 4), ("f16", 64, 4), ("f8e4m3", 128, 4), ("bf16", 128, 8)):
        memory, made, warps, stages = config(arch, kv, group, width, True)
        made = made._replace(SPLIT=True)
        found[f"step {kv} {width} {group}"] = compiled(kv, memory, made, warps, stages, True, True, group)
    return found
