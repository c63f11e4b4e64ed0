"""Products of few rows: every element of the matrix B is read once, 16 bytes at a time, and multiplied on the way.

`by_rows`: B has unit stride along k (weights as Linear keeps them). A warp's lanes lie along k, and so do all warps of
a block, so that x is spread over threads as B is. `by_columns`: unit stride along n; lanes lie along n, warps along k.
Sizes after gemlite's tuned matvecs. Sums are kept per thread until the end; where there are few blocks K is cut into
parts, as in matmul.py.
"""

import functools

import triton
import triton.language as tl

from .epilogue import finish
from .float8 import widened
from .launch import Kernel, blocks, power_of_2
from .product import INTEGERS, SIZES, SUMS, Names, by_16, eight, memory, numbers, reads, residual, scratch_then, summing

SUMS_PER_THREAD = 64  # registers
MIN_DEPTH, MAX_PARTS = 1024, 32


@triton.jit
def by_rows(
    x_ptr, w_ptr, c_ptr, bias_ptr, r_ptr, M, N, K, x_m, x_k, w_k, w_n, c_m, c_n, bias_step, r_m, r_n,
    inner, x_0, x_1, w_0, w_1, c_0, c_1, r_0, r_1, depth, part,
    X_UNIT: tl.constexpr, X_EIGHT: tl.constexpr, W_EIGHT: tl.constexpr, C_EIGHT: tl.constexpr, SUM: tl.constexpr,
    BIAS: tl.constexpr, ACT: tl.constexpr, RESIDUAL: tl.constexpr, TAIL: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """ROWS rows of x with BLOCK_N columns of W, for `depth` elements of K."""
    if X_UNIT:
        x_k = 1
    columns = tl.cdiv(N, BLOCK_N)
    z = tl.program_id(0) // columns
    outer, z = (z // inner).to(tl.int64), (z % inner).to(tl.int64)
    n = tl.program_id(0) % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    start = tl.program_id(1) * depth
    steps = tl.minimum(depth, K - start)
    x = x_ptr + outer * x_0 + z * x_1 + start.to(tl.int64) * x_k + k * x_k
    w = w_ptr + outer * w_0 + z * w_1 + start + tl.minimum(n, N - 1).to(tl.int64)[:, None] * w_n + k[None, :]
    sums = (tl.zeros((BLOCK_N, BLOCK_K), SUM),) * ROWS
    for i in range(tl.cdiv(steps, BLOCK_K)):
        if TAIL:
            inside = k < K - (start + i * BLOCK_K)
            y = widened(tl.load(w, mask=inside[None, :], other=0.0), W_EIGHT).to(SUM)
        else:
            y = widened(tl.load(w), W_EIGHT).to(SUM)
        new = ()
        for row in tl.static_range(ROWS):
            at = x + tl.minimum(row, M - 1).to(tl.int64) * x_m
            one = tl.load(at, mask=inside, other=0.0) if TAIL else tl.load(at)
            new = new + (sums[row] + widened(one, X_EIGHT).to(SUM)[None, :] * y,)
        sums = new
        x += BLOCK_K * x_k
        w += BLOCK_K
    c = c_ptr + tl.program_id(1).to(tl.int64) * part + outer * c_0 + z * c_1
    r = r_ptr + outer * r_0 + z * r_1
    for row in tl.static_range(ROWS):
        finish(
            tl.sum(sums[row], 1)[None, :], c, bias_ptr, r, row + tl.arange(0, 1), n, M, N, c_m, c_n, bias_step,
            r_m, r_n, C_EIGHT, BIAS, ACT, RESIDUAL,
        )  # fmt: skip


@triton.jit
def by_columns(
    x_ptr, w_ptr, c_ptr, bias_ptr, r_ptr, M, N, K, x_m, x_k, w_k, w_n, c_m, c_n, bias_step, r_m, r_n,
    inner, x_0, x_1, w_0, w_1, c_0, c_1, r_0, r_1, depth, part,
    X_UNIT: tl.constexpr, X_EIGHT: tl.constexpr, W_EIGHT: tl.constexpr, C_EIGHT: tl.constexpr, SUM: tl.constexpr,
    BIAS: tl.constexpr, ACT: tl.constexpr, RESIDUAL: tl.constexpr, TAIL: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """ROWS rows of x with BLOCK_N columns of W, for `depth` elements of K."""
    columns = tl.cdiv(N, BLOCK_N)
    z = tl.program_id(0) // columns
    outer, z = (z // inner).to(tl.int64), (z % inner).to(tl.int64)
    n = tl.program_id(0) % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    start = tl.program_id(1) * depth
    steps = tl.minimum(depth, K - start)
    x = x_ptr + outer * x_0 + z * x_1 + start.to(tl.int64) * x_k + k * x_k
    w = w_ptr + outer * w_0 + z * w_1 + (start + k).to(tl.int64)[:, None] * w_k + n[None, :]
    sums = (tl.zeros((BLOCK_K, BLOCK_N), SUM),) * ROWS
    for i in range(tl.cdiv(steps, BLOCK_K)):
        inside = k < K - (start + i * BLOCK_K)
        y = widened(tl.load(w, mask=inside[:, None] & (n < N)[None, :], other=0.0), W_EIGHT).to(SUM)
        new = ()
        for row in tl.static_range(ROWS):
            one = tl.load(x + tl.minimum(row, M - 1).to(tl.int64) * x_m, mask=inside, other=0.0)
            new = new + (sums[row] + widened(one, X_EIGHT).to(SUM)[:, None] * y,)
        sums = new
        x += BLOCK_K * x_k
        w += BLOCK_K * w_k
    c = c_ptr + tl.program_id(1).to(tl.int64) * part + outer * c_0 + z * c_1
    r = r_ptr + outer * r_0 + z * r_1
    for row in tl.static_range(ROWS):
        finish(
            tl.sum(sums[row], 0)[None, :], c, bias_ptr, r, row + tl.arange(0, 1), n, M, N, c_m, c_n, bias_step,
            r_m, r_n, C_EIGHT, BIAS, ACT, RESIDUAL,
        )  # fmt: skip


# ---- plans -----------------------------------------------------------------------------------------------------------


def most_rows(family, unit):
    """Up to how many rows these kernels are the quickest: beyond them tensor cores are, where they multiply exactly."""
    return (
        0
        if family in ("byte", "whole")
        else 2
        if unit == "n"
        else 4
        if family in ("half", "float8", "tf32", "tf32x3")
        else 8
    )


def shape(unit, rows, size, k, n):
    """(BLOCK_N, BLOCK_K, warps): every thread reads 16 bytes of W in order, and keeps up to 64 sums."""
    vector = 16 // size
    if unit == "k":
        warps = min(4, power_of_2(max(1, k // (32 * vector))))
        return max(1, min(4, SUMS_PER_THREAD // (rows * vector), power_of_2(n))), 32 * vector * warps, warps
    warps = min(8, power_of_2(max(1, k // 4)))
    return 32 * vector, warps * max(1, min(4, SUMS_PER_THREAD // (rows * vector))), warps


@functools.cache
def _kernel(names, found, unit, x_unit, rows, blocks_, tail, divisible, bias, lies, arch, interpreted=False):
    block_n, block_k, warps = blocks_
    (x_eight, x_type), (w_eight, w_type) = reads(names, None, arch, interpreted)
    types = (x_type, w_type, *(memory(d) for d in names[2:5]))
    return Kernel(
        by_rows if unit == "k" else by_columns, (*types, *INTEGERS), divisible, warps=warps, stages=2,
        X_UNIT=x_unit, X_EIGHT=x_eight, W_EIGHT=w_eight, C_EIGHT=eight(names.c), SUM=found.sum,
        BIAS=bias, ACT=names.act, RESIDUAL=lies, TAIL=tail, ROWS=rows, BLOCK_N=block_n, BLOCK_K=block_k,
    )  # fmt: skip


def plan(p, names, gpu):
    """What launches a product of few rows: a function (gpu, a, b, c, bias, residual), or None."""
    units, machine = gpu.units, (gpu.arch, gpu.interpreted)
    found, unit = numbers(names, gpu.arch), p.units()[1]
    own = p.own_names(names)
    if not unit or p.m > most_rows(found.family, unit):
        return None
    rows, x_unit = power_of_2(p.m), p.a[1] == 1
    block = shape(unit, rows, SIZES[own.b], p.k, p.n)
    here = blocks(p.n, block[0]) * p.count
    parts = 1 if here >= 2 * units else max(1, min(MAX_PARTS, p.k // MIN_DEPTH, blocks(4 * units, here)))
    depth = max(1, blocks(p.k, parts * block[1])) * block[1]
    parts = max(1, blocks(p.k, depth))
    args, grid = p.arguments(depth, p.count * p.m * p.n if parts > 1 else 0, parts), (here, parts, 1)
    tail = p.k % block[1] > 0
    groups = [("b_n", "b_0", "b_1"), ("a_m", "a_0", "a_1")] if unit == "k" else [("b_k", "b_0", "b_1", "N")]
    groups += [("depth",), ("part",), ("c_m", "N", "c_0", "c_1"), *([("K",)] if tail else [])]
    divisible = tuple(n.replace("a_", "x_").replace("b_", "w_") for n in by_16(groups, args))
    if parts == 1:
        kernel = _kernel(
            own, found, unit, x_unit, rows, block, tail, divisible, p.along(names), residual(p, names), *machine
        )
        return lambda gpu, *pointers: kernel(gpu, grid, *pointers, *args)
    bare = own._replace(c=SUMS[found.sum.name], bias="none", residual="none", act="none")
    kernel = _kernel(bare, found, unit, x_unit, rows, block, tail, divisible, "", "", *machine)
    return scratch_then(
        lambda gpu, *pointers: kernel(gpu, grid, *pointers, *args), summing(p, own, found, parts),
        parts * p.count * p.m * p.n * found.sum.primitive_bitwidth // 8,
    )  # fmt: skip


_ALWAYS = ("w_0", "w_1", "x_m", "x_0", "x_1", "N", "c_m", "c_0", "c_1", "depth")


def variants(arch):
    """{label: Kernel} of one to eight rows."""
    found = {}
    for unit, operands, rows in (
        ("k", "f16", 1), ("k", "bf16", 4), ("k", "f32", 1), ("k", "f32", 8), ("n", "f16", 1), ("n", "f32", 2),
    ):  # fmt: skip
        names = Names(operands, operands, operands, "none", "none", "none", "highest")
        block = shape(unit, rows, SIZES[operands], 4096, 4096)
        divisible = ("w_n" if unit == "k" else "w_k", *_ALWAYS)
        label = f"{operands} {rows} rows, W by {'rows' if unit == 'k' else 'columns'}"
        kernel = found[label] = _kernel(
            names, numbers(names, arch), unit, True, rows, block, False, divisible, "", "", arch
        )
        kernel.items = block[0] * block[1]
    return found
