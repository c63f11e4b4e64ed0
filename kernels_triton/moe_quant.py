"""Mixtures of experts whose weights are in planes: each group of rows with its expert's, dequantised as they are read.

`moe.py` sorts the choices by expert (ids, experts of blocks) and adds up what comes. In between, of n choices:

* "product" (format). Words: planes of (experts, N, K); values f16 (n / per, K) and powers f32 (n / per) as "halves" of
  `quant_matmul.py` gives them; ids, experts of blocks; routing weights f32 or 0; result f32, n, per, spread, experts,
  N, row length of the result, K, rows per block, blocks. Choice i meets row i // per; it becomes the result's row
  (i % spread) * (n / spread) + i // spread, times its routing weight where there are those.
* "gated" (). Words: h f32 (n, 2, I), gate before up; values, powers, I, n: silu(gate) * up as "halves" gives them.
"""

import functools

import triton
import triton.language as tl

from . import matmul_configs as configs
from .launch import Kernel, blocks
from .quant import assembly, begun
from .quant_layout import ROWS, SCALE_TYPES, codebook
from .quant_matmul import _config, sums


@triton.jit
def product(
    low_ptr, high_ptr, scale_ptr, base_ptr, x_ptr, power_ptr, ids_ptr, blocks_ptr, weights_ptr, out_ptr, choices, per,
    spread, experts, n, lead, groups, tiles, CUT: tl.constexpr, WEIGHTED: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, MANY: tl.constexpr, GROUPS: tl.constexpr, ASM: tl.constexpr, LOW: tl.constexpr,
    HIGH: tl.constexpr, KIND: tl.constexpr, BIAS: tl.constexpr, TABLE: tl.constexpr, MINIMUM: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """A tile of ROWS rows of an expert's weights by MANY of its choices; a block of those has CUT tiles."""
    across = tl.cdiv(n, ROWS)
    first = tl.program_id(0) // (GROUP * across) * GROUP
    side = tl.minimum(tiles - first, GROUP)
    tile = first + tl.program_id(0) % (GROUP * across) % side
    first_row = tl.program_id(0) % (GROUP * across) // side * ROWS
    expert = tl.load(blocks_ptr + tile // CUT)
    if expert >= experts:
        return
    ids = tl.load(ids_ptr + tile * MANY + tl.arange(0, MANY))
    valid = ids < choices
    ids = tl.where(valid, ids, 0)
    source = (ids // per).to(tl.int64)
    row, i = tl.minimum(tl.arange(0, ROWS), n - 1 - first_row), tl.arange(0, 16 * GROUPS)
    x_at = x_ptr + (i // 16 * 32 + i % 16)[:, None] + source[None, :] * (groups * 32)
    planes = (low_ptr, high_ptr, scale_ptr, base_ptr)
    low, high, scale, base = begun(planes, expert.to(tl.int64) * n + first_row, groups, LOW, HIGH)
    acc = sums(
        low, high, scale, base, x_at, row, groups, 0, groups, ROWS, MANY, GROUPS, ASM, LOW, HIGH, KIND, BIAS, TABLE,
        MINIMUM, AHEAD,
    )  # fmt: skip
    times = tl.load(power_ptr + source)
    if WEIGHTED:
        times *= tl.load(weights_ptr + ids)
    row = first_row + tl.arange(0, ROWS)
    to = (ids % spread).to(tl.int64) * (choices // spread) + ids // spread
    out = out_ptr + to[None, :] * lead + row[:, None]
    tl.store(out, acc * times[None, :], mask=(row < n)[:, None] & valid[None, :])


@triton.jit
def gated(h_ptr, y_ptr, power_ptr, k, BLOCK: tl.constexpr):
    """silu(gate) * up of a row as f16, less the power of 2 that its largest value begins with."""
    row = tl.program_id(0).to(tl.int64)
    h_ptr += row * 2 * k
    top = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, k, BLOCK):
        at = first + tl.arange(0, BLOCK)
        gate, up = tl.load(h_ptr + at, mask=at < k, other=0.0), tl.load(h_ptr + k + at, mask=at < k, other=0.0)
        top = tl.maximum(top, tl.abs(gate / (1.0 + tl.exp(-gate)) * up))
    bits = tl.max(top, 0).to(tl.int32, bitcast=True) & 0x7F800000
    bits = tl.minimum(tl.maximum(bits, 0x00800000), 0x7E800000)
    tl.store(power_ptr + row, bits.to(tl.float32, bitcast=True))
    inverse = (0x7F000000 - bits).to(tl.float32, bitcast=True)
    for first in range(0, k, BLOCK):
        at = first + tl.arange(0, BLOCK)
        gate, up = tl.load(h_ptr + at, mask=at < k, other=0.0), tl.load(h_ptr + k + at, mask=at < k, other=0.0)
        value = gate / (1.0 + tl.exp(-gate)) * up * inverse
        tl.store(y_ptr + row * k + at, value.to(tl.float16), mask=at < k)


@functools.cache
def _product(format, weighted, asm, block, config):
    row, (rows, many, groups, warps, stages, ahead) = ROWS[format], config
    pointers = ("*i32", "*i32", *SCALE_TYPES[row.scale], "*fp16", "*fp32", "*i32", "*i32", "*fp32", "*fp32")
    kernel = Kernel(
        product, (*pointers, *("i32",) * 8), (), warps, stages, CUT=block // many, WEIGHTED=weighted,
        GROUP=configs.GROUP, ROWS=rows, MANY=many, GROUPS=groups, ASM=asm, LOW=row.low, HIGH=row.high, KIND=row.scale,
        BIAS=row.bias, TABLE=codebook(row), MINIMUM=row.minimum, AHEAD=ahead,
    )  # fmt: skip
    kernel.items = 32 * rows * groups
    return kernel


def _plan(format, gpu, words):
    *pointers, n, per, spread, experts, rows, lead, k, block, many = words
    config = _config(gpu.arch, block)
    kernel = _product(format, pointers[8] != 0, assembly(gpu), block, config)
    tiles = many * (block // config[1])
    grid = (tiles * blocks(rows, config[0]), 1, 1)
    kernel(gpu, grid, *pointers, n, per, spread, experts, rows, lead, k // 32, tiles)


@functools.cache
def _gated():
    kernel = Kernel(gated, ("*fp32", "*fp16", "*fp32", "i32"), ("k",), BLOCK=1024)
    kernel.items = 1024
    return kernel


def build(name, *params, source=None):
    """See the words above."""
    if name == "gated" and not params:
        return lambda gpu, words: _gated()(gpu, (words[4], 1, 1), *words[:4])
    return functools.partial(_plan, *params) if name == "product" and len(params) == 1 and params[0] in ROWS else None


def variants(arch):
    """See kernels_triton/__init__.py."""
    asm, found = assembly(type("Gpu", (), {"interpreted": False, "arch": arch})), {"gated": _gated()}
    for block in configs.ROWS:
        for format in ("q4_0", "q4_k", "q6_k", "q8_0") if block == 64 else ("q4_k",):
            found[f"{format} {block} rows"] = _product(format, block == 64, asm, block, _config(arch, block))
    return found
