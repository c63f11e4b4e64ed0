"""Products of large matrices on sm_90 and sm_100: as many programs as multiprocessors, each of which computes one tile
after the other, its operands fetched by the copy engine (TMA) through descriptors that the host makes.

The loop over tiles and the loop over K are one loop, so that the first operands of a tile are on their way while the
last one is stored (Triton's tutorial on persistent products). Descriptors of the host cost no instructions in the
kernel, those of the device 400 and memory to keep them in.
"""

import functools

import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from . import matmul_configs as configs
from .epilogue import finish_tile, halves
from .launch import Kernel
from .product import SIZES, by_16, eight, memory, numbers, residual


@triton.jit
def persistent(
    a, b, c_ptr, bias_ptr, r_ptr, M, N, K, c_m, bias_step, r_m,
    A_UNIT: tl.constexpr, B_UNIT: tl.constexpr, C_EIGHT: tl.constexpr, BIAS: tl.constexpr, ACT: tl.constexpr,
    RESIDUAL: tl.constexpr, HALVES: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Tiles of C = A @ B; a, b: descriptors of the operands, the dim that is in order in memory last."""
    rows, columns = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), rows * columns, tl.num_programs(0), flatten=True):
        first = tile // (GROUP * columns) * GROUP
        high = tl.minimum(rows - first, GROUP)
        m = (first + tile % (GROUP * columns) % high) * BLOCK_M
        n = (tile % (GROUP * columns) // high) * BLOCK_N
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for i in range(tl.cdiv(K, BLOCK_K)):
            k = i * BLOCK_K
            x = a.load([m, k]) if A_UNIT == "k" else a.load([k, m]).T
            y = b.load([k, n]) if B_UNIT == "n" else b.load([n, k]).T
            total = tl.dot(x, y, total, input_precision=PRECISION)
        finish_tile(
            total, c_ptr, bias_ptr, r_ptr, m, n, M, N, c_m, 1, bias_step, r_m, 1,
            C_EIGHT, BIAS, ACT, RESIDUAL, HALVES, BLOCK_M, BLOCK_N,
        )  # fmt: skip


class Element(str):
    """The name of a dtype, with its size, as descriptors ask for it."""

    def __init__(self, name):
        self.itemsize = int(name[-2:]) // 8


class Memory:
    """An address as a descriptor takes it."""

    def __init__(self, address, dtype):
        self.address, self.dtype = address, dtype

    def data_ptr(self):
        """The address."""
        return self.address


@functools.cache
def kernel(names, found, tile, units, divisible, bias, lies):
    """The Kernel of a tile: `found` are the Numbers, whose `dot` is the dtype of both operands."""
    a = (tile.m, tile.k) if units[0] == "k" else (tile.k, tile.m)
    b = (tile.k, tile.n) if units[1] == "n" else (tile.n, tile.k)
    # sums in f32 take all the shared memory that the operands leave on their way to rows, and more
    half = names.c == "f32" or halves(names.act, lies, tile)
    types = [f"tensordesc<{found.dot.name}[{x},{y}]>" for x, y in (a, b)] + [memory(d) for d in names[2:5]]
    return Kernel(
        persistent, (*types, "i32", "i32", "i32", "i64", "i64", "i64"), divisible, warps=tile.warps, stages=tile.stages,
        A_UNIT=units[0], B_UNIT=units[1], C_EIGHT=eight(names.c), BIAS=bias, ACT=names.act, RESIDUAL=lies,
        HALVES=half, PRECISION=found.precision, BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_K=tile.k, GROUP=configs.GROUP,
    )  # fmt: skip


def plan(p, names, gpu, otherwise):
    """What launches a large product: a function (gpu, a, b, c, bias, residual), or None if it is not one.

    `otherwise`: what does where an address is no multiple of 16.
    """
    arch, units = gpu.arch, gpu.units
    found, order = numbers(names, arch), p.units()
    lies, own = residual(p, names), p.own_names(names)
    tile = configs.PERSISTENT.get(arch, {}).get(found.family)
    if tile is None or own.a != own.b or p.count > 1 or p.flipped:
        return None
    if found.family == "tf32" and order[:2] != ("k", "k"):  # what tensor cores read from shared memory
        return None
    if configs.tuned(gpu, found.family, p):
        return None
    if not order[0] or not order[1] or order[2] != "n" or lies == "any":
        return None
    if 4 * configs.count(tile, p.m, p.n) < configs.FULL * units:
        return None
    a = [p.m, p.k, p.a[0]] if order[0] == "k" else [p.k, p.m, p.a[1]]
    b = [p.k, p.n, p.b[1]] if order[1] == "n" else [p.n, p.k, p.b[0]]
    if a[2] * SIZES[own.a] % 16 or b[2] * SIZES[own.b] % 16 or p.k < tile.k:
        return None
    args = (p.m, p.n, p.k, p.c[0], p.bias, p.r[0])
    divisible = tuple(n for n in by_16([("c_m", "N"), ("r_m",)], p.arguments(0, 0, 1)))
    made = kernel(own, found, tile, order, divisible, p.along(names), lies)
    a_block = [tile.m, tile.k] if order[0] == "k" else [tile.k, tile.m]
    b_block = [tile.k, tile.n] if order[1] == "n" else [tile.n, tile.k]
    dtype, grid = Element(found.dot.name), (min(units, configs.count(tile, p.m, p.n)), 1, 1)

    def run(gpu, x, y, *pointers):
        if (x | y) & 15:
            otherwise(gpu, x, y, *pointers)
            return
        first = TensorDescriptor(Memory(x, dtype), a[:2], [a[2], 1], a_block)
        second = TensorDescriptor(Memory(y, dtype), b[:2], [b[2], 1], b_block)
        made(gpu, grid, first, second, *pointers, *args)

    return run
