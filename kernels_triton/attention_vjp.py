"""Gradients of attention (Dao, arXiv:2307.08691), without atomics: weights are computed again from log2 of their sums.

Three kernels: `delta`, the inner products of a result's rows with their gradients; `keys_vjp`, whose programs own a
block of keys and visit the queries of all heads of the group; `queries_vjp`, whose programs own a block of queries. As
in flash.py a loop over the blocks that are seen whole compares nothing, and a second one does the edges.

build("vjp", q, kv): dtypes. Words: 0 to 12 and 13 to 24 as in attention.py, with the result as "out", then
  25 its gradient, strides of t, of heads (bytes)   28 log2 of the sums, f32 [heads, T], inf where nothing was seen
  29 dQ [T, heads, D]   30 dK   31 dV [KV heads, rows, D], contiguous, of the dtypes of q and kv
"""

import functools

import triton
import triton.language as tl

from .attention import DIMS, SIZES, arithmetic, counted_in
from .flash import LOG2E, Config, capped, edges, place, seen, span
from .launch import Kernel, blocks, pick, pointer, power_of_2

# ---- parts ----------------------------------------------------------------------------------------------------------


@triton.jit
def tile(ptr, stride, n0, rows, width, N: tl.constexpr, C: tl.constexpr, EDGE: tl.constexpr):
    """N rows from n0 on; 0 where there are none"""
    n, d = tl.arange(0, N), tl.arange(0, C.D)
    at = ptr + n0.to(tl.int64) * stride + (n * stride)[:, None] + d[None, :]
    if EDGE and C.EVEN:
        x = tl.load(at, mask=(n0 + n < rows)[:, None], other=0.0)
    elif EDGE:
        x = tl.load(at, mask=(n0 + n < rows)[:, None] & (d < width)[None, :], other=0.0)
    elif C.EVEN:
        x = tl.load(at)
    else:
        x = tl.load(at, mask=(d < width)[None, :], other=0.0)
    return x if C.PARTS else x.to(tl.float32)


@triton.jit
def put(ptr, x, stride, n0, rows, width, N: tl.constexpr, C: tl.constexpr):
    """Stores N rows from n0 on."""
    n, d = tl.arange(0, N), tl.arange(0, C.D)
    at = ptr + n0.to(tl.int64) * stride + (n * stride)[:, None] + d[None, :]
    tl.store(at, x.to(ptr.dtype.element_ty), mask=(n0 + n < rows)[:, None] & (d < width)[None, :])


@triton.jit
def weights(products, sums, scale, cap, C: tl.constexpr):
    """(weights, what a score's gradient is multiplied with) of q k^T"""
    if C.CAP:
        s = capped(products * (scale / cap), cap)
        tanh = s / (cap * LOG2E)
        return tl.exp2(s - sums), 1.0 - tanh * tanh
    else:
        return tl.exp2(products * (scale * LOG2E) - sums), 1.0


# ---- kernels --------------------------------------------------------------------------------------------------------


@triton.jit
def delta(out_ptr, g_ptr, deltas_ptr, t, heads, width, ot, oh, gt, gh, D: tl.constexpr, R: tl.constexpr):
    """sum(out * g) of R rows (t, head), to [heads, T]"""
    i, d = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, D)
    at, head = (i // heads).to(tl.int64), i % heads
    mask = (i < t * heads)[:, None] & (d < width)[None, :]
    x = tl.load(out_ptr + (at * ot + head * oh)[:, None] + d[None, :], mask=mask, other=0.0).to(tl.float32)
    g = tl.load(g_ptr + (at * gt + head * gh)[:, None] + d[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(deltas_ptr + head.to(tl.int64) * t + at, tl.sum(x * g, 1), mask=i < t * heads)


@triton.jit
def meet_queries(block, dk, dv, k, v, n, q_rows, g_rows, more, bounds, C: tl.constexpr, EDGE: tl.constexpr):
    """(dK, dV) of a block of keys with what one more block of queries adds"""
    sums_ptr, deltas_ptr, scale, cap = more
    first, t, keys, width, left, right = bounds
    m0 = block * C.BM
    m = m0 + tl.arange(0, C.BM)
    q, g = tile(*q_rows, m0, t, width, C.BM, C, EDGE), tile(*g_rows, m0, t, width, C.BM, C, EDGE)
    if EDGE:
        sums = tl.load(sums_ptr + m, mask=m < t, other=float("inf"))
        deltas = tl.load(deltas_ptr + m, mask=m < t, other=0.0)
    else:
        sums, deltas = tl.load(sums_ptr + m), tl.load(deltas_ptr + m)
    p, slope = weights(tl.dot(k, q.T, input_precision=C.PRECISION), sums[None, :], scale, cap, C)
    if EDGE:
        p = tl.where(seen(first + m[None, :], n[:, None], keys, left, right, C), p, 0.0)
    dv = tl.dot(p.to(g.dtype), g, dv, input_precision=C.PRECISION)
    ds = p * (tl.dot(v, g.T, input_precision=C.PRECISION) - deltas[None, :]) * slope
    return tl.dot(ds.to(q.dtype), q, dk, input_precision=C.PRECISION), dv


# fmt: off
@triton.jit
def keys_vjp(q_ptr, k_ptr, v_ptr, g_ptr, sums_ptr, deltas_ptr, dk_ptr, dv_ptr, start_ptr, length_ptr, start, length,
             t, rows, width, group, key_blocks, qt, qh, kh, kr, vh, vr, gt, gh, left, right, scale, cap,
             C: tl.constexpr):
    """dK and dV of a block of keys"""
    # fmt: on
    if C.STEP > 1:
        width, qt, qh, kh, kr = width * C.STEP, qt * C.STEP, qh * C.STEP, kh * C.STEP, kr * C.STEP
        vh, vr, gt, gh = vh * C.STEP, vr * C.STEP, gt * C.STEP, gh * C.STEP
    n0, kv_head = tl.program_id(0) % key_blocks * C.BN, tl.program_id(0) // key_blocks
    BN: tl.constexpr = C.BN
    D: tl.constexpr = C.D
    first, keys = place(start_ptr, length_ptr, start, length, t, rows, C.PLACE)
    # queries that see some of these keys, and those that see all of them
    BACK: tl.constexpr = C._replace(LEFT=C.RIGHT, RIGHT=C.LEFT)
    lo, inner, outer, hi = edges(n0 - first, n0 + BN - 1 - first, t, right, left, BACK)
    hi = tl.where(n0 < keys, hi, lo)
    outer = tl.where(n0 + BN <= keys, outer, 0)
    b0, f0, f1, b1 = span(lo, inner, outer, hi, 0, 1, C.BM)
    wide = kv_head.to(tl.int64)
    k = tile(k_ptr + wide * kh, kr, n0, keys, width, BN, C, True)
    v = tile(v_ptr + wide * vh, vr, n0, keys, width, BN, C, True)
    dk, dv = tl.zeros((BN, D), tl.float32), tl.zeros((BN, D), tl.float32)
    n, bounds = n0 + tl.arange(0, BN), (first, t, keys, width, left, right)
    for i in range(group):
        at = wide * group + i  # head
        q_rows, g_rows = (q_ptr + at * qh, qt), (g_ptr + at * gh, gt)
        more = (sums_ptr + at * t, deltas_ptr + at * t, scale, cap)
        for block in range(f0, f1):
            dk, dv = meet_queries(block, dk, dv, k, v, n, q_rows, g_rows, more, bounds, C, False)
        for j in range(f0 - b0 + b1 - f1):
            block = tl.where(b0 + j < f0, b0 + j, f1 + b0 + j - f0)
            dk, dv = meet_queries(block, dk, dv, k, v, n, q_rows, g_rows, more, bounds, C, True)
    to = wide * rows * width
    put(dk_ptr + to, dk * scale, width, n0, rows, width, BN, C)
    put(dv_ptr + to, dv, width, n0, rows, width, BN, C)


@triton.jit
def meet_keys(block, dq, q, g, sums, deltas, at, k_rows, v_rows, more, bounds, C: tl.constexpr, EDGE: tl.constexpr):
    """dQ of a block of queries with what one more block of keys adds"""
    scale, cap = more
    keys, width, left, right = bounds
    n0 = block * C.BN
    k, v = tile(*k_rows, n0, keys, width, C.BN, C, EDGE), tile(*v_rows, n0, keys, width, C.BN, C, EDGE)
    p, slope = weights(tl.dot(q, k.T, input_precision=C.PRECISION), sums[:, None], scale, cap, C)
    if EDGE:
        n = n0 + tl.arange(0, C.BN)
        p = tl.where(seen(at[:, None], n[None, :], keys, left, right, C), p, 0.0)
    ds = p * (tl.dot(g, v.T, input_precision=C.PRECISION) - deltas[:, None]) * slope
    return tl.dot(ds.to(k.dtype), k, dq, input_precision=C.PRECISION)


# fmt: off
@triton.jit
def queries_vjp(q_ptr, k_ptr, v_ptr, g_ptr, sums_ptr, deltas_ptr, dq_ptr, start_ptr, length_ptr, start, length,
                t, rows, width, heads, group, q_blocks, qt, qh, kh, kr, vh, vr, gt, gh, left, right, scale, cap,
                C: tl.constexpr):
    """dQ of a block of queries"""
    # fmt: on
    if C.STEP > 1:
        width, qt, qh, kh, kr = width * C.STEP, qt * C.STEP, qh * C.STEP, kh * C.STEP, kr * C.STEP
        vh, vr, gt, gh = vh * C.STEP, vr * C.STEP, gt * C.STEP, gh * C.STEP
    block, head = tl.program_id(0) % q_blocks, (tl.program_id(0) // q_blocks).to(tl.int64)
    BM: tl.constexpr = C.BM
    D: tl.constexpr = C.D
    block = q_blocks - 1 - block if C.RIGHT else block
    m0 = block * BM
    m = m0 + tl.arange(0, BM)
    first, keys = place(start_ptr, length_ptr, start, length, t, rows, C.PLACE)
    q = tile(q_ptr + head * qh, qt, m0, t, width, BM, C, True)
    g = tile(g_ptr + head * gh, gt, m0, t, width, BM, C, True)
    sums = tl.load(sums_ptr + head * t + m, mask=m < t, other=float("inf"))
    deltas = tl.load(deltas_ptr + head * t + m, mask=m < t, other=0.0)
    last = first + tl.minimum(m0 + BM, t) - 1
    lo, inner, outer, hi = edges(first + m0, last, keys, left, right, C)
    b0, f0, f1, b1 = span(lo, inner, outer, hi, 0, 1, C.BN)
    k_rows, v_rows = (k_ptr + head // group * kh, kr), (v_ptr + head // group * vh, vr)
    dq, at, more, bounds = tl.zeros((BM, D), tl.float32), first + m, (scale, cap), (keys, width, left, right)
    for block in range(f0, f1):
        dq = meet_keys(block, dq, q, g, sums, deltas, at, k_rows, v_rows, more, bounds, C, False)
    for i in range(f0 - b0 + b1 - f1):
        block = tl.where(b0 + i < f0, b0 + i, f1 + b0 + i - f0)
        dq = meet_keys(block, dq, q, g, sums, deltas, at, k_rows, v_rows, more, bounds, C, True)
    put(dq_ptr + head * width, dq * scale, heads * width, m0, t, width, BM, C)


# ---- plans ----------------------------------------------------------------------------------------------------------

# (queries, keys, warps, stages) of a tile by head dim up to 64, 128, 256: of keys_vjp, of queries_vjp
OLD = (((32, 32, 4, 1), (16, 32, 4, 1), (16, 8, 4, 1)), ((32, 32, 4, 1), (16, 32, 4, 1), (16, 16, 4, 1)))
NARROW = {
    75: OLD,
    80: (((32, 128, 8, 2), (64, 64, 8, 2), (32, 32, 8, 1)), ((128, 64, 8, 2), (64, 64, 8, 2), (32, 32, 8, 1))),
    90: (((64, 128, 8, 2), (32, 128, 8, 2), (32, 32, 8, 1)), ((128, 64, 8, 2), (128, 64, 8, 2), (32, 32, 8, 1))),
    100: (((64, 64, 8, 2), (64, 64, 8, 1), (32, 32, 8, 1)), ((128, 64, 8, 2), (128, 64, 8, 2), (32, 32, 8, 1))),
    120: (((32, 128, 8, 2), (64, 64, 8, 2), (32, 32, 8, 1)), ((128, 64, 8, 2), (64, 64, 8, 2), (32, 32, 8, 1))),
    "gfx942": (((32, 64, 4, 1), (32, 64, 4, 1), (16, 32, 4, 1)), ((64, 32, 4, 1), (64, 32, 4, 1), (32, 16, 4, 1))),
}
WIDE = {
    75: OLD,
    80: (((32, 32, 8, 2), (32, 32, 8, 2), (16, 16, 8, 1)), ((32, 32, 4, 2), (32, 32, 8, 2), (16, 16, 8, 1))),
    100: (((32, 32, 8, 2), (32, 16, 8, 2), (16, 16, 8, 1)), ((32, 32, 8, 2), (32, 32, 8, 2), (16, 16, 8, 1))),
    "gfx942": (((32, 32, 4, 1), (16, 32, 4, 1), (16, 16, 4, 1)), ((32, 32, 4, 1), (32, 16, 4, 1), (16, 16, 4, 1))),
}
EVEN = ("width", "qt", "qh", "kh", "kr", "vh", "vr", "gt", "gh")
STRIDES = ("i32", "i64", "i64", "i32", "i64", "i32", "i32", "i64", "i32", "i32", "fp32", "fp32")


def config(arch, q, kv, width, which, facts=(False, True), place=0, cap=False, unit=1):
    """(Config, warps, stages) of keys_vjp (which 0) or queries_vjp (1)."""
    parts, precision = arithmetic(arch, q, kv) if q == kv else arithmetic(arch, "f32", "f32")
    rows = pick(NARROW if parts else WIDE, arch)[which]
    bm, bn, warps, stages = rows[next(i for i, d in enumerate(DIMS) if width <= d)]
    dims = max(16, power_of_2(width))
    more = (False, False, parts, precision, 0, 0, False, False, False)
    return Config(bm, bn, dims, dims == width, unit, True, False, *facts, place, cap, *more), warps, stages


@functools.cache
def compiled(which, q, kv, made, warps, stages):
    """keys_vjp (which 0) or queries_vjp (1)."""
    types = (pointer(q), pointer(kv), pointer(kv), pointer(q), "*fp32", "*fp32")
    types += ((pointer(kv), pointer(kv)), (pointer(q),))[which]
    types += ("*i64", "*i64", "i64", "i64", *("i32",) * (5 + which), *STRIDES)
    loose = ("sums_ptr", "deltas_ptr", "start_ptr", "length_ptr")
    return Kernel((keys_vjp, queries_vjp)[which], types, EVEN, warps, stages, loose=loose, C=made)


@functools.cache
def deltas_of(q, dims):
    """The Kernel of delta."""
    types = (pointer(q), pointer(q), "*fp32", "i32", "i32", "i32", *("i64",) * 4)
    return Kernel(delta, types, ("width", "ot", "oh", "gt", "gh"), D=dims, R=max(1, 2048 // dims))


def _vjp(q, kv):
    def plan(gpu, words):
        (t, heads, groups, width), rows, cap = words[:4], words[8], words[12]
        facts, place = (words[9] >= 0, words[10] >= 0), (1 if words[4] else 0) | (2 if words[6] else 0)
        qt, qh, ot, oh, gt, gh = (words[i] // SIZES[q] for i in (14, 15, 23, 24, 26, 27))
        kh, kr, vh, vr = (words[i] // SIZES[kv] for i in (17, 18, 20, 21))
        deltas, owner = gpu.allocate(4 * t * heads)
        first = deltas_of(q, max(16, power_of_2(width)))
        grid = (blocks(t * heads, first.consts["R"]), 1, 1)
        first(gpu, grid, words[22], words[25], deltas, t, heads, width, ot, oh, gt, gh)
        operands = (words[13], words[16], words[19], words[25], words[28], deltas)
        steps = (width, qt, qh, kh, kr, vh, vr, gt, gh)
        unit = counted_in(steps)
        positions = (words[4], words[6], words[5], words[7], t, rows, width // unit)
        rest = (*(s // unit for s in steps[1:]), words[9], words[10], words[11], cap)
        made = config(gpu.arch, q, kv, width, 0, facts, place, cap != 0, unit)
        count = blocks(rows, made[0].BN)
        grid = (count * groups, 1, 1)
        kernel = compiled(0, q, kv, *made)
        kernel(gpu, grid, *operands, words[30], words[31], *positions, heads // groups, count, *rest)
        made = config(gpu.arch, q, kv, width, 1, facts, place, cap != 0, unit)
        count = blocks(t, made[0].BM)
        grid = (count * heads, 1, 1)
        compiled(1, q, kv, *made)(gpu, grid, *operands, words[29], *positions, heads, heads // groups, count, *rest)
        del owner

    return plan


def build(name, *params, source=None):
    """vjp (dtypes of q and of the caches)."""
    fine = name == "vjp" and len(params) == 2 and all(p in ("f32", "f16", "bf16") for p in params)
    return _vjp(*params) if fine else None


def variants(arch):
    """Both kernels of every row of the tables, causal."""
    found = {}
    for q in ("f16", "bf16", "f32"):
        for width in DIMS if q != "bf16" else (128,):
            for which, name in enumerate(("keys", "queries")):
                found[f"{name} {q} {width}"] = compiled(which, q, q, *config(arch, q, q, width, which))
        found[f"delta {q} 128"] = deltas_of(q, 128)
    return found
