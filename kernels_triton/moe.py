"""Mixtures of experts: the rows of every expert side by side, and products of each group with its expert's weights.

Words, n = tokens * top_k choices, choice i being of token i // top_k; all arrays contiguous, ids and experts i32:
* "sort" (): experts of the choices (i64), ids, experts of blocks, scratch, n, experts, rows per block, blocks
* "gate_up" (dtype, precision): x, gate and up (I, D) of the first expert, result (n, I), ids, experts of blocks, n,
  top_k, experts, I, D, elements from an expert's weights to the next one's, rows per block, blocks
* "down" (dtype, precision): h (n, I), weights (experts, D, I), routing weights (f32), result (top_k, tokens, D) f32,
  then as before with D and I changed places
* "sum" (dtype): (top_k, tokens, D) f32, result, tokens, D, top_k

`ids` holds the choices by expert, each group filled up with n to a multiple of a block; every block has one expert, or
none if it is not needed. How many blocks there are at most the host knows, so that nothing waits for the GPU (as in
vLLM's fused MoE kernels). Sums over a token's experts are in the order of its choices.
"""

import functools

import triton
import triton.language as tl

from . import matmul_configs as configs
from .epilogue import sum_parts
from .launch import Kernel, blocks, power_of_2
from .product import Names, memory, numbers

CHUNK, STEP = 64, 32  # choices per program; chunks that are added at a time


# ---- choices by expert -----------------------------------------------------------------------------------------------


@triton.jit
def choices(experts_ptr, n, CHUNK: tl.constexpr, EXPERTS: tl.constexpr):
    """(places, one row each: 1 at its expert) of a program's choices."""
    at = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    expert = tl.load(experts_ptr + at, mask=at < n, other=EXPERTS).to(tl.int32)
    return at, (expert[:, None] == tl.arange(0, EXPERTS)[None, :]).to(tl.int32)


@triton.jit
def count(experts_ptr, counts_ptr, ids_ptr, n, slots, CHUNK: tl.constexpr, EXPERTS: tl.constexpr):
    """How many choices of a chunk are each expert's; fills ids with n."""
    _, hot = choices(experts_ptr, n, CHUNK, EXPERTS)
    tl.store(counts_ptr + tl.program_id(0) * EXPERTS + tl.arange(0, EXPERTS), tl.sum(hot, 0))
    for first in range(tl.program_id(0) * CHUNK, slots, tl.num_programs(0) * CHUNK):
        slot = first + tl.arange(0, CHUNK)
        tl.store(ids_ptr + slot, tl.full((CHUNK,), 0, tl.int32) + n, mask=slot < slots)


@triton.jit
def offsets(
    counts_ptr, blocks_ptr, chunks, rows, blocks, CHUNK: tl.constexpr, EXPERTS: tl.constexpr, STEP: tl.constexpr
):
    """Counts become places of each chunk's first choices; the expert of every block. One program."""
    columns = tl.arange(0, EXPERTS)
    total = tl.zeros((EXPERTS,), tl.int32)
    for first in range(0, chunks, STEP):
        chunk = first + tl.arange(0, STEP)
        total += tl.sum(
            tl.load(counts_ptr + chunk[:, None] * EXPERTS + columns[None, :], mask=(chunk < chunks)[:, None], other=0),
            0,
        )
    padded = (total + rows - 1) // rows * rows
    ends = tl.cumsum(padded, 0)
    before = ends - padded
    for first in range(0, chunks, STEP):
        chunk = first + tl.arange(0, STEP)
        at = counts_ptr + chunk[:, None] * EXPERTS + columns[None, :]
        counts = tl.load(at, mask=(chunk < chunks)[:, None], other=0)
        tl.store(at, before[None, :] + tl.cumsum(counts, 0) - counts, mask=(chunk < chunks)[:, None])
        before += tl.sum(counts, 0)
    for first in range(0, blocks, STEP):
        block = first + tl.arange(0, STEP)
        expert = tl.sum((ends[None, :] <= (block * rows)[:, None]).to(tl.int32), 1)
        tl.store(blocks_ptr + block, expert, mask=block < blocks)


@triton.jit
def place(experts_ptr, counts_ptr, ids_ptr, n, CHUNK: tl.constexpr, EXPERTS: tl.constexpr):
    """Puts the choices of a chunk in their places."""
    at, hot = choices(experts_ptr, n, CHUNK, EXPERTS)
    first = tl.load(counts_ptr + tl.program_id(0) * EXPERTS + tl.arange(0, EXPERTS))
    to = tl.sum(hot * (first[None, :] + tl.cumsum(hot, 0) - hot), 1)
    tl.store(ids_ptr + to, at, mask=at < n)


# ---- products --------------------------------------------------------------------------------------------------------


@triton.jit
def grouped(
    a_ptr, w_ptr, up_ptr, c_ptr, ids_ptr, blocks_ptr, n, top_k, experts, N, K, stride, blocks,
    GATED: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, TAIL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """GATED: silu(x @ gate) * (x @ up) of a block of tokens; else that @ down, times the routing weights at `up`."""
    columns = tl.cdiv(N, BLOCK_N)
    first = tl.program_id(0) // (GROUP * columns) * GROUP
    high = tl.minimum(blocks - first, GROUP)
    block = first + tl.program_id(0) % (GROUP * columns) % high
    n_first = tl.program_id(0) % (GROUP * columns) // high * BLOCK_N
    expert = tl.load(blocks_ptr + block)
    if expert >= experts:
        return
    ids = tl.load(ids_ptr + block * BLOCK_M + tl.arange(0, BLOCK_M))
    valid = ids < n
    ids = tl.where(valid, ids, 0)
    column = n_first + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    row = ids // top_k if GATED else ids
    a = a_ptr + row.to(tl.int64)[:, None] * K + k[None, :]
    at = expert * stride + (tl.minimum(column, N - 1).to(tl.int64) * K)[None, :] + k[:, None]
    w, up = w_ptr + at, up_ptr + at
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    other = tl.zeros((BLOCK_M, BLOCK_N), tl.float32) if GATED else total
    for start in range(0, K, BLOCK_K):
        inside = k < K - start
        x = tl.load(a, mask=inside[None, :], other=0.0) if TAIL else tl.load(a)
        y = tl.load(w, mask=inside[:, None], other=0.0) if TAIL else tl.load(w)
        total = tl.dot(x, y, total, input_precision=PRECISION)
        if GATED:
            y = tl.load(up, mask=inside[:, None], other=0.0) if TAIL else tl.load(up)
            other = tl.dot(x, y, other, input_precision=PRECISION)
            up += BLOCK_K
        a += BLOCK_K
        w += BLOCK_K
    if GATED:
        total = total / (1.0 + tl.exp(-total)) * other
        to = ids
    else:
        total *= tl.load(up_ptr + ids)[:, None]
        to = ids % top_k * (n // top_k) + ids // top_k
    c = c_ptr + to.to(tl.int64)[:, None] * N + column[None, :]
    tl.store(c, total.to(c_ptr.dtype.element_ty), mask=valid[:, None] & (column < N)[None, :])


# ---- plans -----------------------------------------------------------------------------------------------------------


@functools.cache
def _sorting(experts):
    consts = {"CHUNK": CHUNK, "EXPERTS": max(16, power_of_2(experts))}
    return (
        Kernel(count, ("*i64", "*i32", "*i32", "i32", "i32"), warps=8, **consts),
        Kernel(offsets, ("*i32", "*i32", "i32", "i32", "i32"), warps=8, **consts, STEP=STEP),
        Kernel(place, ("*i64", "*i32", "*i32", "i32"), warps=8, **consts),
    )


def _sort(gpu, words):
    chosen, ids, of_blocks, scratch, n, experts, rows, many = words
    counting, adding, placing = _sorting(experts)
    chunks = blocks(n, CHUNK)
    counting(gpu, (chunks, 1, 1), chosen, scratch, ids, n, rows * many)
    adding(gpu, (1, 1, 1), scratch, of_blocks, chunks, rows, many)
    placing(gpu, (chunks, 1, 1), chosen, scratch, ids, n)


@functools.cache
def _grouped(gated, dtype, precision, arch, rows, tail):
    names = Names(dtype, dtype, dtype, "none", "none", "none", precision)
    found = numbers(names, arch)
    tile = configs.grouped(found.family, arch, rows)
    result = memory(dtype) if gated else "*fp32"
    up = memory(dtype) if gated else "*fp32"
    types = (memory(dtype), memory(dtype), up, result, "*i32", "*i32", *("i32",) * 5, "i64", "i32")
    return tile, Kernel(
        grouped, types, ("N", "K", "stride"), warps=tile.warps, stages=tile.stages, GATED=gated, DOT=found.dot,
        PRECISION=found.precision, TAIL=tail, BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k, GROUP=configs.GROUP,
    )  # fmt: skip


def _product(gated, dtype, precision, gpu, words):
    *given, rows, many = words
    columns, depth = given[9:11]
    tile, _ = _grouped(gated, dtype, precision, gpu.arch, rows, False)
    tile, kernel = _grouped(gated, dtype, precision, gpu.arch, rows, depth % tile.k > 0)
    kernel(gpu, (many * blocks(columns, tile.n), 1, 1), *given, many)


@functools.cache
def _sum_kernel(dtype):
    types = ("*fp32", memory(dtype), "*fp32", "*fp32", "i32", "i64", "i32", "i32", *("i64",) * 5, "i32", *("i64",) * 4)
    consts = {"C_UNIT": "n", "C_EIGHT": 0, "BIAS": "", "ACT": "none", "RESIDUAL": "", "BLOCK": 1024}
    return Kernel(sum_parts, types, ("N", "c_m", "c_0", "c_1", "size"), **consts)


def _sum(dtype, gpu, words):
    parts, out, tokens, columns, top_k = words
    grid = (tokens * blocks(columns, 1024), 1, 1)
    fixed = (top_k, tokens * columns, tokens, columns, columns, 1, 0, 0, 0, 1, 0, 0, 0, 0)
    _sum_kernel(dtype)(gpu, grid, parts, out, 0, 0, *fixed)


def build(name, *params, source=None):
    """See the words above."""
    if name == "sort":
        return _sort
    if name in ("gate_up", "down"):
        return functools.partial(_product, name == "gate_up", *params)
    return functools.partial(_sum, *params) if name == "sum" else None


def variants(arch):
    """{label: Kernel}: sorting by 128 experts, and both products for blocks of every height."""
    found = dict(zip(("count", "offsets", "place"), _sorting(128), strict=True)) | {"sum f16": _sum_kernel("f16")}
    for rows in configs.ROWS:
        for dtype in ("f16", "f32") if rows == 64 else ("bf16",):
            for gated in (True, False):
                label = f"{'gate_up' if gated else 'down'} {dtype} {rows} rows"
                found[label] = _grouped(gated, dtype, "highest", arch, rows, False)[1]
    return found
