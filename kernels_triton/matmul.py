"""Matrix products of any strides: C = activation(A @ B + bias) + residual, for each matrix of a batch.

Words of "product" (tensorlib/ops/products.py): addresses of A (M, K), B (K, N), C, bias, residual; M, N, K; strides of
A along m and k, of B along k and n, of C along m and n, of the bias along n, of the residual along m and n; the number
of batch dims, and per dim, innermost last: its size, strides of A, B, C, residual. Strides are in elements; 0 where an
operand is absent. Parameters: dtypes of A, B, C, bias and residual ("none"), activation, precision of f32.

One program computes one tile (Triton's tutorial on matrix multiplication; grouped as there for the L2). A row or column
beyond the edge reads the last one, so that the loop over K has no mask along a dim that is not in order in memory. K
that no step divides is masked in all steps: a last step of its own costs thousands of bytes of spilled registers, the
masks 2 to 10 % of the instructions. Where there are few tiles K is cut into parts, whose sums in full precision a
second kernel adds in order: every launch gives the same bits. A product with few columns is computed transposed, so
that "few" always means rows; very few are left to matvec.py, large aligned matrices on sm_90 to persistent.py, after
turned.py has put the operands of tf32 in order.
"""

import functools

import triton
import triton.language as tl

from . import matmul_configs as configs
from . import matvec, persistent, turned
from .epilogue import finish, finish_tile, halves
from .float8 import KINDS, widened
from .launch import Kernel, pick
from .product import (
    INTEGERS,
    SUMS,
    Names,
    Product,
    by_16,
    eight,
    memory,
    numbers,
    reads,
    residual,
    scratch_then,
    summing,
)

FEW = 64  # columns up to which a product with more rows is computed transposed


@triton.jit
def tile_of(pid, rows, columns, GROUP: tl.constexpr):
    """(row, column) of tile `pid`: down GROUP rows before the next column."""
    first = pid // (GROUP * columns) * GROUP
    high = tl.minimum(rows - first, GROUP)
    return first + pid % (GROUP * columns) % high, pid % (GROUP * columns) // high


@triton.jit
def fetch(at, inside, MASK: tl.constexpr, DOT: tl.constexpr, EIGHT: tl.constexpr):
    """Part of an operand in the dtype that is multiplied, 0 where it is not inside."""
    if MASK:
        x = tl.load(at, mask=inside, other=0.0)
    else:
        x = tl.load(at)
    x = widened(x, EIGHT)
    if x.dtype == tl.uint8 and DOT == tl.int8:
        x = x.to(tl.int8, bitcast=True)
    return x.to(DOT)


@triton.jit
def product(
    a_ptr, b_ptr, c_ptr, bias_ptr, r_ptr, M, N, K, a_m, a_k, b_k, b_n, c_m, c_n, bias_step, r_m, r_n,
    inner, a_0, a_1, b_0, b_1, c_0, c_1, r_0, r_1, depth, part,
    A_UNIT: tl.constexpr, B_UNIT: tl.constexpr, C_UNIT: tl.constexpr, A_EIGHT: tl.constexpr, B_EIGHT: tl.constexpr,
    C_EIGHT: tl.constexpr, DOT: tl.constexpr, SUM: tl.constexpr, PRECISION: tl.constexpr, BIAS: tl.constexpr,
    ACT: tl.constexpr, RESIDUAL: tl.constexpr, TAIL: tl.constexpr, HALVES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One tile of one matrix of one part (`depth` elements of K); UNIT: which dim is in order in memory."""
    if A_UNIT == "k":
        a_k = 1
    if A_UNIT == "m":
        a_m = 1
    if B_UNIT == "k":
        b_k = 1
    if B_UNIT == "n":
        b_n = 1
    if C_UNIT == "n":
        c_n = 1
    if C_UNIT == "m":
        c_m = 1
    rows, columns = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    z = tl.program_id(0) // (rows * columns)
    tile_m, tile_n = tile_of(tl.program_id(0) % (rows * columns), rows, columns, GROUP)
    outer, z = (z // inner).to(tl.int64), (z % inner).to(tl.int64)
    start = tl.program_id(1) * depth
    steps = tl.minimum(depth, K - start)

    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    m_left, n_left = M - tile_m * BLOCK_M, N - tile_n * BLOCK_N
    m_in, n_in = (m < m_left)[:, None], (n < n_left)[None, :]
    m_at = m if A_UNIT == "m" else tl.minimum(m, m_left - 1)
    n_at = n if B_UNIT == "n" else tl.minimum(n, n_left - 1)
    a = a_ptr + outer * a_0 + z * a_1 + start.to(tl.int64) * a_k + (tile_m * BLOCK_M).to(tl.int64) * a_m
    b = b_ptr + outer * b_0 + z * b_1 + start.to(tl.int64) * b_k + (tile_n * BLOCK_N).to(tl.int64) * b_n
    a = a + m_at[:, None] * a_m + k[None, :] * a_k
    b = b + k[:, None] * b_k + n_at[None, :] * b_n
    total = tl.zeros((BLOCK_M, BLOCK_N), SUM)
    for i in range(tl.cdiv(steps, BLOCK_K)):
        k_in = k < K - (start + i * BLOCK_K)
        if TAIL:
            x = fetch(a, m_in & k_in[None, :] if A_UNIT == "m" else k_in[None, :], True, DOT, A_EIGHT)
            y = fetch(b, n_in & k_in[:, None] if B_UNIT == "n" else k_in[:, None], True, DOT, B_EIGHT)
        else:
            x = fetch(a, m_in, A_UNIT == "m", DOT, A_EIGHT)
            y = fetch(b, n_in, B_UNIT == "n", DOT, B_EIGHT)
        if DOT.is_fp8():  # tensor cores of sm_90 add such products in 14 bits: not for long. (What Triton 3.7.1 has for
            total += tl.dot(x, y, out_dtype=SUM)  # this, max_num_imprecise_acc, reads the sums before they are there)
        else:
            total = tl.dot(x, y, total, input_precision=PRECISION, out_dtype=SUM)
        a += BLOCK_K * a_k
        b += BLOCK_K * b_k
    c, r = c_ptr + tl.program_id(1).to(tl.int64) * part + outer * c_0 + z * c_1, r_ptr + outer * r_0 + z * r_1
    finish_tile(
        total, c, bias_ptr, r, tile_m * BLOCK_M, tile_n * BLOCK_N, M, N, c_m, c_n, bias_step, r_m, r_n,
        C_EIGHT, BIAS, ACT, RESIDUAL, HALVES, BLOCK_M, BLOCK_N,
    )  # fmt: skip


@triton.jit
def whole(
    a_ptr, b_ptr, c_ptr, bias_ptr, r_ptr, M, N, K, a_m, a_k, b_k, b_n, c_m, c_n, bias_step, r_m, r_n,
    inner, a_0, a_1, b_0, b_1, c_0, c_1, r_0, r_1, depth, part,
    SUM: tl.constexpr, RESIDUAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """One tile of one matrix of integers, modulo 2 ** bits of C: an outer product per element of K."""
    rows, columns = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    z = tl.program_id(0) // (rows * columns)
    tile_m, tile_n = tile_of(tl.program_id(0) % (rows * columns), rows, columns, GROUP)
    outer, z = (z // inner).to(tl.int64), (z % inner).to(tl.int64)
    m, n = tile_m * BLOCK_M + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    start = tl.program_id(1) * depth
    a = a_ptr + outer * a_0 + z * a_1 + start.to(tl.int64) * a_k + tl.minimum(m, M - 1)[:, None].to(tl.int64) * a_m
    b = b_ptr + outer * b_0 + z * b_1 + start.to(tl.int64) * b_k + tl.minimum(n, N - 1)[None, :].to(tl.int64) * b_n
    total = tl.zeros((BLOCK_M, BLOCK_N), SUM)
    for _ in range(tl.minimum(depth, K - start)):
        total += tl.load(a).to(SUM) * tl.load(b).to(SUM)
        a += a_k
        b += b_k
    to = tl.program_id(1).to(tl.int64) * part + outer * c_0 + z * c_1
    finish(
        total, c_ptr + to, bias_ptr, r_ptr + outer * r_0 + z * r_1, m, n, M, N, c_m, c_n, bias_step, r_m, r_n,
        0, "", "none", RESIDUAL,
    )  # fmt: skip


# ---- plans -----------------------------------------------------------------------------------------------------------


@functools.cache
def _kernel(names, found, tile, units, tail, divisible, bias, lies, arch, interpreted=False):
    """The Kernel of a tile: `found` are the Numbers, `lies` how the residual does."""
    (a_eight, a_type), (b_eight, b_type) = reads(names, found.dot, arch, interpreted)
    types = (a_type, b_type, *(memory(d) for d in names[2:5]), *INTEGERS)
    consts = {"RESIDUAL": lies, "BLOCK_M": tile.m, "BLOCK_N": tile.n, "GROUP": configs.GROUP, "SUM": found.sum}
    options = {"divisible": divisible, "warps": tile.warps, "stages": tile.stages}
    if found.family == "whole":
        return Kernel(whole, types, **options, **consts)
    consts |= {"A_UNIT": units[0], "B_UNIT": units[1], "C_UNIT": units[2], "BLOCK_K": tile.k, "TAIL": tail}
    consts |= {"A_EIGHT": a_eight, "B_EIGHT": b_eight, "C_EIGHT": eight(names.c), "DOT": found.dot, "BIAS": bias}
    consts |= {"PRECISION": found.precision, "ACT": names.act}
    return Kernel(product, types, **options, **consts, HALVES=halves(names.act, lies, tile))


def _needed(units):
    """Names of the arguments that 16 must divide, for A, B and C, so that their accesses are wide."""
    a, b, c = units
    first = {"k": ("a_m",), "m": ("a_k", "M")}.get(a, ())
    second = {"k": ("b_n",), "n": ("b_k", "N")}.get(b, ())
    third = {"n": ("c_m", "N"), "m": ("c_n", "M")}.get(c, ())
    return (*first, "a_0", "a_1"), (*second, "b_0", "b_1"), (*third, "c_0", "c_1"), ("part",), ("depth",)


def _tiled(p, names, gpu):
    """What launches a product in tiles: a function (gpu, a, b, c, bias, residual)."""
    arch, units = gpu.arch, gpu.units
    found, order = numbers(names, arch), p.units()
    free = p.arguments(16, 16, 1)
    wide = found.family == "whole" or all(by_16([n], free) and dim for n, dim in zip(_needed(order), order[:2]))
    tile = wide and configs.tuned(gpu, found.family, p)
    tile = tile or configs.choose(found.family, arch, wide, p.m, p.n, p.k, p.count, units)
    parts = configs.parts(tile, p.m, p.n, p.k, p.count, units)
    depth = max(1, -(-p.k // (parts * tile.k))) * tile.k
    parts = max(1, -(-p.k // depth))
    part = p.count * p.m * p.n if parts > 1 else 0
    args, grid = p.arguments(depth, part, parts), (configs.count(tile, p.m, p.n) * p.count, parts, 1)
    tail = p.k % tile.k > 0
    own = p.own_names(names)
    if parts == 1:
        divisible = by_16([*_needed(order), ("r_m", "r_0", "r_1"), *([("K",)] if tail else [])], args)
        kernel = _kernel(
            own, found, tile, order, tail, divisible, p.along(names), residual(p, names), arch, gpu.interpreted
        )
        return lambda gpu, *pointers: kernel(gpu, grid, *pointers, *args)
    order, bare = (*order[:2], "n"), own._replace(c=SUMS[found.sum.name], bias="none", residual="none", act="none")
    divisible = by_16([*_needed(order), *([("K",)] if tail else [])], args)
    kernel = _kernel(bare, found, tile, order, tail, divisible, "", "", arch, gpu.interpreted)
    return scratch_then(
        lambda gpu, *pointers: kernel(gpu, grid, *pointers, *args), summing(p, own, found, parts),
        parts * p.count * p.m * p.n * found.sum.primitive_bitwidth // 8,
    )  # fmt: skip


def _steps(names, gpu, words):
    """[(launch, offsets of the addresses in bytes)] of a product of those sizes and strides."""
    p = Product(words)
    if p.n < p.m and p.n <= FEW:
        p.flip()
    run = matvec.plan(p, names, gpu)
    if run is None:

        def run_of(p):
            run = _tiled(p, names, gpu)
            return persistent.plan(p, names, gpu, run) or run

        run = turned.plan(p, names, gpu, run_of) or run_of(p)
    if p.flipped:
        launch = lambda gpu, a, b, c, bias, r: run(gpu, b, a, c, bias, r)  # noqa: E731
    else:
        launch = run
    return [(launch, offsets) for offsets in p.offsets(names)]


def build(name, *params, source=None):
    """product: see the words above."""
    names = Names(*params) if name == "product" else None
    if names is None or names.residual in KINDS:
        return None
    steps_of = functools.lru_cache(4096)(lambda gpu, words: _steps(names, gpu, words))

    def plan(gpu, words):
        a, b, c, bias, r = words[:5]
        for launch, (a_at, b_at, c_at, r_at) in steps_of(gpu, tuple(words[5:])):
            launch(gpu, a + a_at, b + b_at, c + c_at, bias, r + r_at)

    return plan


# ---- what the report compiles ----------------------------------------------------------------------------------------

_ROWS, _COLUMNS = ("k", "k", "n"), ("k", "n", "n")  # B as Linear keeps its weights, or row-major
_VARIANTS = (  # label, dtypes of A and B, of C, precision, how the operands lie
    ("f16", "f16", "f16", "highest", _ROWS), ("bf16 row-major", "bf16", "bf16", "highest", _COLUMNS),
    ("f32", "f32", "f32", "highest", _COLUMNS), ("tf32", "f32", "f32", "medium", _ROWS),
    ("tf32x3", "f32", "f32", "high", _ROWS), ("i8", "i8", "i8", "highest", _ROWS),
    ("f8", "f8e4m3", "f8e4m3", "highest", _ROWS), ("f64", "f64", "f64", "highest", _COLUMNS),
    ("i32", "i32", "i32", "highest", _COLUMNS),
)  # fmt: skip


def _variant(arch, tile, operands, result, precision, order, tail=False, bias="none", act="none", residual="none"):
    names = Names(operands, operands, result, bias, residual, act, precision)
    divisible = tuple(n for group in (*_needed(order), ("K",)) for n in group)
    divisible += ("r_m", "r_0", "r_1") if residual != "none" else ()
    along, lies = "" if bias == "none" else "n", "" if residual == "none" else "rows"
    return _kernel(names, numbers(names, arch), tile, order, tail, divisible, along, lies, arch)


def variants(arch):
    """{label: Kernel}: every tile of every family; a K that no tile divides; bias and activation; few rows."""
    found = {}
    for label, operands, result, precision, order in _VARIANTS:
        names = Names(operands, operands, result, "none", "none", "none", precision)
        tiles = pick(configs.TABLES[numbers(names, arch).family], arch)
        for tile in tiles:
            size = "x".join(map(str, tile[:3]))
            found[f"{label} {size}"] = _variant(arch, tile, operands, result, precision, order)
    first = pick(configs.HALF, arch)[0]
    found["f16 any K"] = _variant(arch, first, "f16", "f16", "highest", _ROWS, tail=True)
    found["f16 residual silu"] = _variant(arch, first, "f16", "f16", "highest", _ROWS, act="silu", residual="f16")
    found["f16 bias gelu"] = _variant(arch, first, "f16", "f16", "highest", _ROWS, bias="f16", act="gelu")
    found["bf16 A transposed"] = _variant(arch, first, "bf16", "bf16", "highest", ("m", "n", "n"))
    for family, tile in configs.PERSISTENT.get(arch, {}).items():
        dtype, precision = ("f16", "highest") if family == "half" else ("f32", "medium")
        for order in (_ROWS, _COLUMNS) if family == "half" else (_ROWS,):
            for act in ("none", "silu"):
                names = Names(dtype, dtype, dtype, "none", "none", act, precision)
                label = f"{dtype} persistent {order[1]} {act}"
                found[label] = persistent.kernel(names, numbers(names, arch), tile, order, ("c_m", "N"), "", "")
        if family == "half":
            names = names._replace(c="f32", bias="f32", act="scaled")
            found["f16 persistent scaled"] = persistent.kernel(
                names, numbers(names, arch), tile, _ROWS, ("c_m", "N"), "m", ""
            )
    return found | matvec.variants(arch)
