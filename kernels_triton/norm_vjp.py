"""Gradients of RMSNorm and LayerNorm, part of room norm: with h = g (weight + offset) and u = (x - mean) / root,
dx = (h - mean(h) - u mean(h u)) / root (without mean(h) for RMSNorm); the sums of g u and of g over the rows of a
program are its rows of two tables.
"""

import functools
from itertools import chain

import triton
import triton.language as tl

from .dims import LIMIT, WIDTH, offset_of
from .launch import Kernel, blocks, power_of_2
from .tiles import byte_table, cells, mean_of, reach

BACK = 8192  # elements of a row held in registers at most: 16 warps
TILE = 2048


@triton.jit
def norm_vjp_rows(
    x, w, g, dx, sums, plain, rows, per, n, eps, offset, share,
    n0, n1, n2, xs0, xs1, xs2, xs3, gs0, gs1, gs2, gs3, ds0, ds1, ds2, ds3,
    CENTRED: tl.constexpr, WEIGHT: tl.constexpr, SUMS: tl.constexpr, PLAIN: tl.constexpr, ND: tl.constexpr,
    M: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """dx of `per` rows, M at a time, and their sums."""
    block = tl.program_id(0).to(rows.dtype)
    c = tl.arange(0, R)
    r = tl.arange(0, M)
    end = tl.minimum((block + 1) * per, rows)
    total = tl.zeros([M, R], tl.float32)
    other = tl.zeros([M, R], tl.float32)
    scale = tl.zeros([R], tl.float32) + (1.0 + offset)
    if WEIGHT:
        scale = tl.load(w + c, mask=c < n, other=0.0).to(tl.float32) + offset
    for first in tl.range(block * per, end, M):
        p = first + r
        known = (p < end)[:, None] & (c < n)[None, :]
        base = offset_of(p, n0, n1, n2, 1, xs0, xs1, xs2, xs3, ND)
        from_ = offset_of(p, n0, n1, n2, 1, gs0, gs1, gs2, gs3, ND)
        to = offset_of(p, n0, n1, n2, 1, ds0, ds1, ds2, ds3, ND)
        u = tl.load(x + (base[:, None] + c[None, :]), mask=known, other=0.0).to(tl.float32)
        slope = tl.load(g + (from_[:, None] + c[None, :]), mask=known, other=0.0).to(tl.float32)
        if CENTRED:
            u = tl.where(known, u - mean_of(tl.sum(u, 1), n, share)[:, None], 0.0)
        root = tl.rsqrt(tl.sum(u * u, 1) * share + eps)
        u *= root[:, None]
        h = slope * scale[None, :]
        y = h - u * (tl.sum(h * u, 1) * share)[:, None]
        if CENTRED:
            y -= (tl.sum(h, 1) * share)[:, None]
        tl.store(dx + (to[:, None] + c[None, :]), (y * root[:, None]).to(dx.dtype.element_ty), mask=known)
        if SUMS:
            total += slope * u
        if PLAIN:
            other += slope
    if SUMS:
        tl.store(sums + (block * n + c), tl.sum(total, 0), mask=c < n)
    if PLAIN:
        tl.store(plain + (block * n + c), tl.sum(other, 0), mask=c < n)


@triton.jit
def row_moments(row, n, eps, share, CENTRED: tl.constexpr, R: tl.constexpr):
    """(mean, or 0 if not CENTRED; 1 / root of the mean square around it + eps) of a long row."""
    c = tl.arange(0, R)
    mean = 0.0
    if CENTRED:
        sums = tl.zeros([R], tl.float32)
        for at in tl.range(0, n, R):
            sums += tl.load(row + at + c, mask=at + c < n, other=0.0).to(tl.float32)
        mean = mean_of(tl.sum(sums, 0), n, share)
    squares = tl.zeros([R], tl.float32)
    for at in tl.range(0, n, R):
        v = tl.load(row + at + c, mask=at + c < n, other=0.0).to(tl.float32)
        v = tl.where(at + c < n, v - mean, 0.0)
        squares += v * v
    return mean, tl.rsqrt(tl.sum(squares, 0) * share + eps)


@triton.jit
def piece(row, slopes, w, mean, root, offset, n, at, WEIGHT: tl.constexpr, R: tl.constexpr):
    """(whether inside, u, g, h) of a piece of a long row."""
    c = at + tl.arange(0, R)
    inside = c < n
    u = (tl.load(row + c, mask=inside, other=0.0).to(tl.float32) - mean) * root
    g = tl.load(slopes + c, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 + offset
    if WEIGHT:
        scale = tl.load(w + c, mask=inside, other=0.0).to(tl.float32) + offset
    return inside, u, g, g * scale


@triton.jit
def norm_vjp_long(
    x, w, g, dx, sums, plain, rows, per, n, eps, offset, share,
    n0, n1, n2, xs0, xs1, xs2, xs3, gs0, gs1, gs2, gs3, ds0, ds1, ds2, ds3,
    CENTRED: tl.constexpr, WEIGHT: tl.constexpr, SUMS: tl.constexpr, PLAIN: tl.constexpr, ND: tl.constexpr,
    M: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """The same of long rows: every pass reads them anew, and sums are kept in the tables."""
    block = tl.program_id(0).to(rows.dtype)
    start = block * per
    end = tl.minimum(start + per, rows)
    sums += block * n + tl.arange(0, R)
    plain += block * n + tl.arange(0, R)
    for p in tl.range(start, end, 1):
        row = x + offset_of(p, n0, n1, n2, 1, xs0, xs1, xs2, xs3, ND)
        slopes = g + offset_of(p, n0, n1, n2, 1, gs0, gs1, gs2, gs3, ND)
        to = dx + offset_of(p, n0, n1, n2, 1, ds0, ds1, ds2, ds3, ND) + tl.arange(0, R)
        mean, root = row_moments(row, n, eps, share, CENTRED, R)
        of_h = tl.zeros([R], tl.float32)
        of_hu = tl.zeros([R], tl.float32)
        for at in tl.range(0, n, R):
            _, u, _, h = piece(row, slopes, w, mean, root, offset, n, at, WEIGHT, R)
            of_h += h
            of_hu += tl.where(at + tl.arange(0, R) < n, h * u, 0.0)
        mean_h = tl.sum(of_h, 0) * share if CENTRED else 0.0
        mean_hu = tl.sum(of_hu, 0) * share
        for at in tl.range(0, n, R):
            inside, u, slope, h = piece(row, slopes, w, mean, root, offset, n, at, WEIGHT, R)
            tl.store(to + at, ((h - mean_h - u * mean_hu) * root).to(dx.dtype.element_ty), mask=inside)
            later = inside & (p > start)
            if SUMS:
                tl.store(sums + at, tl.load(sums + at, mask=later, other=0.0) + slope * u, mask=inside)
            if PLAIN:
                tl.store(plain + at, tl.load(plain + at, mask=later, other=0.0) + slope, mask=inside)


@functools.cache
def norm_vjp_kernel(centred, dtypes, sums, plain, nd, shape, warps, long, wide):
    """The Kernel of `norm_vjp_rows` or `norm_vjp_long`; dtypes of x, weight, g."""
    integer = "i64" if wide else "i32"
    given, w, g = dtypes
    pointers = [cells(d) for d in (given, given if w == "none" else w, g, given, "f32", "f32")]
    strides = [f"{o}s{d}" for o in "xgd" for d in range(4)]
    types = (*pointers, *(integer,) * 3, "fp32", "fp32", "fp32", *(integer,) * 15)
    made = Kernel(
        norm_vjp_long if long else norm_vjp_rows, types, ("n", *strides), warps, CENTRED=centred, WEIGHT=w != "none",
        SUMS=sums, PLAIN=plain, ND=nd, M=shape[0], R=shape[1],
    )  # fmt: skip
    made.items = shape[0] * shape[1]
    return made


def shape_of(per, n):
    """((rows, elements) of a tile, warps, whether rows are longer than what registers hold)."""
    r = power_of_2(n)
    if r > BACK:
        return (1, TILE), 8, True
    m = min(power_of_2(per), max(1, TILE // r))
    return (m, r), max(4, m * r // 256), False


def plan_of(centred, given, weight, g_dtype):
    """The plan of rms_norm_vjp, or of layer_norm_vjp if `centred`."""
    sizes = WIDTH[given], WIDTH[g_dtype], WIDTH[given]

    def plan(gpu, words):
        x, w, g, dx, n, eps, offset, sums, plain, many = words[:10]
        rows, counts, strides = byte_table(words, 10, sizes)
        nd, counts = len(counts), counts + [1] * (4 - len(counts))
        per = blocks(rows, many)
        shape, warps, long = shape_of(per, n)
        wide = max(reach(counts, s) for s in strides) + n >= LIMIT
        dtypes = given, weight, g_dtype
        found = norm_vjp_kernel(centred, dtypes, sums != 0, plain != 0, nd, shape, warps, long, wide)
        pointers = x, w or x, g, dx, sums or x, plain or x
        found(gpu, (many, 1, 1), *pointers, rows, per, n, eps, offset, 1 / n, *counts[:3], *chain(*strides))

    return plan


def variants(arch):
    """Representative kernels."""
    found = {}
    for dtype in ("f32", "bf16"):
        for n in (1024, 4096, 8192, 1 << 15):
            shape, warps, long = shape_of(4096, n)
            for centred, name in ((False, "rms_norm"), (True, "layer_norm")):
                made = norm_vjp_kernel(centred, (dtype,) * 3, True, centred, 1, shape, warps, long, False)
                found[f"{name} of {n} {dtype}"] = made
    return found
