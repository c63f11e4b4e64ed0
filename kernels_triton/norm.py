"""RMSNorm, LayerNorm, the gated activations, rows picked from a table; their gradients.

Words as in kernels_numba/norm.py. A norm's row is in registers: one read, one write; rows longer than ROW are read once
for their moments and once more, from their end on, which the cache still has. A gradient's program takes rows that
follow each other (as many programs as `ops/norm.py` gives rows to the tables of sums), and keeps its sums for weight
and bias in registers; rows longer than BACK keep them in the table itself. A table's gradient adds up rows in the order
of sorted ids: no atomics.

Designs after Liger-Kernel (Hsu et al., arXiv:2410.10989).
"""

import functools

import triton
import triton.language as tl

from . import gated, norm_vjp
from .dims import LIMIT, WIDTH, offset_of
from .launch import Kernel, blocks, pick, power_of_2
from .segments import combine_whole
from .softmax import REGISTERS, ROW, tile_rows, warps_of
from .tiles import byte_table, cells, mean_of, reach, real

EACH = 16  # elements that a thread holds; twice as many where there is a mean to find
LONG = 16384, 32  # elements of a piece of a long row, warps: one program per multiprocessor
PIECE = 1024  # elements of a row of a table that a program copies


@triton.jit
def norm_rows(
    x, w, b, out, rows, n, eps, offset, share, n0, n1, n2, xs0, xs1, xs2, xs3, os0, os1, os2, os3,
    CENTRED: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, OFFSET: tl.constexpr, ND: tl.constexpr,
    M: tl.constexpr, R: tl.constexpr, FULL: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Whole rows in registers: (x - mean) / root of the variance, or x / root of the mean square, weighted. `FULL`:
    they have R elements. Of one row there are as many tiles as rows.
    """
    p = tl.program_id(0).to(rows.dtype) * M + tl.arange(0, M)
    base = offset_of(p, n0, n1, n2, 1, xs0, xs1, xs2, xs3, ND)
    to = offset_of(p, n0, n1, n2, 1, os0, os1, os2, os3, ND)
    c = tl.arange(0, R)[None, :]
    inside = tl.full([1, R], True, tl.int1) if FULL else c < n
    known = inside & ((p < rows) if M > 1 else tl.full([M], True, tl.int1))[:, None]
    v = real(tl.load(x + (base[:, None] + c), mask=known, other=0.0), ASM).to(tl.float32)
    if CENTRED:
        mean = mean_of(tl.sum(v, 1), n, share)
        v = tl.where(known, v - mean[:, None], 0.0)
    y = v * tl.rsqrt(tl.sum(v * v, 1) * share + eps)[:, None]
    if WEIGHT:
        scale = real(tl.load(w + c, mask=inside, other=0.0), ASM).to(tl.float32)
        y *= scale + offset if OFFSET else scale
    elif OFFSET:
        y *= 1.0 + offset
    if BIAS:
        y += real(tl.load(b + c, mask=inside, other=0.0), ASM).to(tl.float32)
    tl.store(out + (to[:, None] + c), y.to(out.dtype.element_ty), mask=known)


@triton.jit
def long_moments(row, n, share, CENTRED: tl.constexpr, R: tl.constexpr, G: tl.constexpr):
    """(mean, or 0 if not CENTRED; mean square around it) of a long row; lanes have G adjacent elements."""
    c = tl.arange(0, R)
    mean = tl.zeros([R // G], tl.float32)
    squares = tl.zeros([R // G], tl.float32)
    seen = 0.0  # of a lane
    for at in tl.range(0, n // R * R, R):
        v = tl.reshape(tl.load(row + (at + c)).to(tl.float32), [R // G, G])
        if CENTRED:
            own = tl.sum(v, 1) * (1.0 / G)
            d = v - own[:, None]
            squares += tl.sum(d * d, 1)
            d = own - mean
            more = 1.0 / (seen + 1.0)
            mean += d * more
            squares += d * d * (seen * more * G)
            seen += 1.0
        else:
            squares += tl.sum(v * v, 1)
    at = n // R * R
    if at < n:
        inside = tl.reshape(at + c < n, [R // G, G])
        v = tl.reshape(tl.load(row + (at + c), mask=at + c < n, other=0.0).to(tl.float32), [R // G, G])
        if CENTRED:
            count = tl.sum(inside.to(tl.float32), 1)
            own = tl.sum(v, 1) / tl.maximum(count, 1.0)
            d = tl.where(inside, v - own[:, None], 0.0)
            squares += tl.sum(d * d, 1)
            d = own - mean
            more = count / tl.maximum(seen * G + count, 1.0)
            mean += d * more
            squares += d * d * (seen * G * more)
            first = tl.sum(mean * (seen * G + count), 0) * share
            d = mean - first
            return first, (tl.sum(squares, 0) + tl.sum(d * d * (seen * G + count), 0)) * share
        else:
            squares += tl.sum(v * v, 1)
    whole = tl.sum(mean, 0) * (G / R)
    d = mean - whole
    return whole, (tl.sum(squares, 0) + tl.sum(d * d, 0) * (seen * G)) * share


@triton.jit
def norm_long(
    x, w, b, out, rows, n, eps, offset, share, n0, n1, n2, xs0, xs1, xs2, xs3, os0, os1, os2, os3,
    CENTRED: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, OFFSET: tl.constexpr, ND: tl.constexpr,
    M: tl.constexpr, R: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """The same of one long row."""
    p = tl.program_id(0).to(rows.dtype)
    x += offset_of(p, n0, n1, n2, 1, xs0, xs1, xs2, xs3, ND)
    out += offset_of(p, n0, n1, n2, 1, os0, os1, os2, os3, ND)
    mean, square = long_moments(x, n, share, CENTRED, R, G)
    root = tl.rsqrt(square + eps)
    PART: tl.constexpr = R // 2
    end = tl.cdiv(n, PART) * PART - PART
    for back in tl.range(0, n, PART):
        c = end - back + tl.arange(0, PART)
        inside = c < n
        y = (tl.load(x + c, mask=inside, other=0.0).to(tl.float32) - mean) * root
        if WEIGHT:
            scale = tl.load(w + c, mask=inside, other=0.0).to(tl.float32)
            y *= scale + offset if OFFSET else scale
        elif OFFSET:
            y *= 1.0 + offset
        if BIAS:
            y += tl.load(b + c, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + c, y.to(out.dtype.element_ty), mask=inside, eviction_policy="evict_first")


@functools.cache
def norm_kernel(centred, dtypes, offset, nd, shape, full, warps, long, wide, asm):
    """The Kernel of `norm_rows` or `norm_long`; dtypes of x, weight, bias ("none" without), output."""
    integer = "i64" if wide else "i32"
    given, w, b, _ = dtypes
    pointers = [cells(given if d == "none" else d) for d in dtypes]
    strides = [f"{o}s{d}" for o in "xo" for d in range(4)]
    types = (*pointers, integer, integer, "fp32", "fp32", "fp32", *(integer,) * 11)
    flags = {"G": 16 // WIDTH[given]} if long else {"FULL": full, "ASM": asm}
    made = Kernel(
        norm_long if long else norm_rows, types, ("n", *strides), warps, registers=REGISTERS if full else None,
        CENTRED=centred, WEIGHT=w != "none", BIAS=b != "none", OFFSET=offset, ND=nd, M=shape[0], R=shape[1], **flags,
    )  # fmt: skip
    made.items = shape[0] * shape[1]
    return made


def shape_of(rows, n, limit, units, centred):
    """((rows, elements) of a tile, warps, whether rows are longer than `limit`)."""
    r = power_of_2(n)
    if r > limit:
        return (1, LONG[0]), LONG[1], True
    m = tile_rows(rows, r, units)
    return (m, r), warps_of(m * r, blocks(rows, m) <= units, 2 * EACH if centred else EACH), False


def _norm(centred, dtypes):
    sizes = WIDTH[dtypes[0]], WIDTH[dtypes[-1]]

    def plan(gpu, words):
        x, w, out, n, eps, offset = words[:6]
        bias, offset = (offset, 0.0) if centred else (0, offset)
        rows, counts, (xs, os) = byte_table(words, 6, sizes)
        nd, shape_n = len(counts), counts + [1] * (4 - len(counts))
        shape, warps, long = shape_of(rows, n, pick(ROW, gpu.arch), gpu.units, centred)
        wide = max(reach(shape_n, xs), reach(shape_n, os)) + n >= LIMIT
        asm = not gpu.interpreted and isinstance(gpu.arch, int)
        found = norm_kernel(centred, dtypes, offset != 0, nd, shape, n == shape[1], warps, long, wide, asm)
        grid = (blocks(rows, shape[0]), 1, 1)
        found(gpu, grid, x, w or x, bias or x, out, rows, n, eps, offset, 1 / n, *shape_n[:3], *xs, *os)

    return plan


# ---- rows of a table -------------------------------------------------------------------------------------------------


@triton.jit
def pick_rows(ids, table, out, count, n, step, rows, pieces, M: tl.constexpr, R: tl.constexpr):
    """Rows of a table by ids, as f32; NaN for ids outside of it."""
    pid = tl.program_id(0)
    p = (pid // pieces).to(tl.int64) * M + tl.arange(0, M)
    c = (pid % pieces) * R + tl.arange(0, R)
    known = (p < count)[:, None] & (c < n)[None, :]
    row = tl.load(ids + p, mask=p < count, other=0)
    there = ((row >= 0) & (row < rows))[:, None]
    v = tl.load(table + ((row * step)[:, None] + c[None, :]), mask=known & there, other=0.0).to(tl.float32)
    tl.store(out + ((p * n)[:, None] + c[None, :]), tl.where(there, v, float("nan")), mask=known)


@triton.jit
def clear(out, n, R: tl.constexpr):
    """Zeros."""
    at = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    tl.store(out + at, tl.zeros([R], tl.float32), mask=at < n)


@functools.cache
def _pick_kernel(dtype, shape):
    made = Kernel(
        pick_rows, ("*i64", cells(dtype), "*fp32", "i32", "i32", "i64", "i64", "i32"), ("n", "step"), M=shape[0],
        R=shape[1],
    )  # fmt: skip
    made.items = shape[0] * shape[1]
    return made


def _embedding(dtype):
    size = WIDTH[dtype]

    def plan(gpu, words):
        ids, table, step, rows, out, n, count = words
        r = min(power_of_2(n), PIECE)
        shape = min(power_of_2(count), max(1, PIECE // r)), r
        pieces = blocks(n, r)
        grid = (blocks(count, shape[0]) * pieces, 1, 1)
        _pick_kernel(dtype, shape)(gpu, grid, ids, table, out, count, n, step // size, rows, pieces)

    return plan


@functools.cache
def _clear_kernel():
    made = Kernel(clear, ("*fp32", "i64"), ("n",), R=4 * PIECE)
    made.items = 4 * PIECE
    return made


def _embedding_vjp():
    def plan(gpu, words):
        ids, g, out, rows, n, count = words
        _clear_kernel()(gpu, (blocks(rows * n, 4 * PIECE), 1, 1), out, rows * n)
        if count and n:
            combine_whole(gpu, "add", "f32", out, "i64", ids, g, rows, count, n)

    return plan


def build(name, *params, source=None):
    """See kernels_triton/__init__.py; names and params as in kernels_numba/norm.py."""
    if not all(p in ("f32", "f16", "bf16", "none") for p in params):
        return None
    if name == "rms_norm":
        return _norm(False, (params[0], params[1], "none", params[2]))
    if name == "layer_norm":
        return _norm(True, params)
    if name in ("rms_norm_vjp", "layer_norm_vjp"):
        return norm_vjp.plan_of(name == "layer_norm_vjp", *params)
    if name == "embedding":
        return _embedding(*params)
    return _embedding_vjp() if name == "embedding_vjp" else gated.build(name, *params)


def variants(arch):
    """Representative kernels."""
    found = {}

    def of(centred, dtype, n, limit=1 << 15):
        shape, warps, long = shape_of(4096, n, limit, 128, centred)
        dtypes = dtype, dtype, dtype if centred else "none", dtype
        asm = isinstance(arch, int)
        return norm_kernel(centred, dtypes, False, 1, shape, n == shape[1], warps, long, False, asm)

    for dtype in ("f32", "bf16"):
        for n in (128, 1024, 4096, 8192, pick(ROW, arch), 5000):
            found[f"rms_norm of {n} {dtype}"] = of(False, dtype, n)
        for n in (4096, 5000):
            found[f"layer_norm of {n} {dtype}"] = of(True, dtype, n)
        found[f"layer_norm long {dtype}"] = of(True, dtype, 1 << 17, 1)
        found[f"embedding {dtype}"] = _pick_kernel(dtype, (1, PIECE))
    return found | {"clear": _clear_kernel()}
