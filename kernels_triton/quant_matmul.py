"""Products of 9 to 128 rows with quantised weights in planes: dequantised to f16 as they are read, on tensor cores.

"halves" (dtype of x). Words: x, values f16 [M, K], powers f32 [M], K, M: x as f16 times a power of 2 per row, which
keeps a row's largest value in [1, 2): nothing overflows, and what is less than 2**-14 of it loses at most 2**-25 of it.

"matmul" (format, dtype of out). Words: planes low, high, scale, base (quant_layout.py); values, powers; out [M, N], N,
K, residual or 0, M. The weights are the left operand, W X^T, so that warps divide their rows and each weight is
dequantised once (a tile has no fewer rows of weights than of activations, else warps would divide those); the first and
the second 16 of each 32 weights are two dots, so that nibbles need not be put in order. A code becomes a float by bits:
0x6400 | code is 1024 + code in f16. Where there are few tiles K is cut in parts, whose f32 sums a second kernel adds in
order.

Rounding, u = 2**-11 (f16): x by u; d by u, d * (code - bias) by u, with an m: m by u, the sum by u. So a product is off
by at most u |x| (|w| + 2 |d (code - bias)| + |m| + |w|), and f32's sums.
"""

import functools

import triton
import triton.language as tl

from .launch import Kernel, blocks, pick, pointer, scratch
from .quant import FLOATS, assembly, begun, codes
from .quant_layout import ROWS, SCALE_TYPES, codebook, scale_bits, scales_of

# by rows of activations up to which they hold: (rows of weights, rows of activations, groups of 32, warps, stages,
# whether scales, too narrow for asynchronous copies, are read a step ahead)
_HMMA = {16: (64, 16, 4, 4, 3, False), 32: (64, 32, 4, 4, 3, False), 64: (64, 64, 2, 4, 3, False)}
_WGMMA = {rows: (*config[:5], True) for rows, config in _HMMA.items()}
CONFIGS = {
    75: {16: (32, 16, 2, 4, 1, False), 32: (32, 32, 2, 4, 1, False), 128: (64, 32, 1, 4, 1, False)},
    80: _HMMA | {128: (128, 128, 1, 8, 3, False)},
    90: _WGMMA | {128: (128, 128, 2, 8, 3, True)},
    120: _HMMA | {128: (128, 128, 1, 8, 3, False)},
    "gfx942": {16: (64, 16, 2, 4, 2, False), 64: (64, 64, 2, 4, 2, False), 128: (64, 128, 2, 8, 2, False)},
}
PARTS = 8  # of K at most


@triton.jit
def halves(x_ptr, y_ptr, power_ptr, k, BLOCK: tl.constexpr):
    """A row as f16, less the power of 2 that its largest value begins with."""
    row = tl.program_id(0).to(tl.int64)
    top = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, k, BLOCK):
        at = first + tl.arange(0, BLOCK)
        top = tl.maximum(top, tl.abs(tl.load(x_ptr + row * k + at, mask=at < k, other=0).to(tl.float32)))
    bits = tl.max(top, 0).to(tl.int32, bitcast=True) & 0x7F800000
    bits = tl.minimum(tl.maximum(bits, 0x00800000), 0x7E800000)
    tl.store(power_ptr + row, bits.to(tl.float32, bitcast=True))
    inverse = (0x7F000000 - bits).to(tl.float32, bitcast=True)
    for first in range(0, k, BLOCK):
        at = first + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * k + at, mask=at < k, other=0).to(tl.float32) * inverse
        tl.store(y_ptr + row * k + at, x.to(tl.float16), mask=at < k)


@triton.jit
def twice(x):
    """x as f16, in both halves of a word."""
    return x.to(tl.float16).to(tl.uint16, bitcast=True).to(tl.int32) * 0x10001


@triton.jit
def unpacked(words, d, m, ASM: tl.constexpr, SIGNED: tl.constexpr, BIAS: tl.constexpr, MINIMUM: tl.constexpr):
    """Weights [ROWS, 16 * GROUPS] in f16 of codes [ROWS, GROUPS, 4], four bytes a word."""
    if SIGNED:
        words = words ^ -0x7F7F7F80  # the top bit of each byte
    LESS: tl.constexpr = 1024 + (128 if SIGNED else BIAS)
    if ASM == 1:
        # two bytes into two halves 0x64xx at once, and two halves at a time from there on
        less = tl.full(words.shape, (0x6400 + LESS - 1024) * 0x10001, tl.int32)
        dd, mm = tl.broadcast_to(twice(d)[:, :, None], words.shape), less
        if MINIMUM != 0:
            mm = tl.broadcast_to(twice(MINIMUM * m)[:, :, None], words.shape)
        LAST: tl.constexpr = "fma.rn.f16x2 $0, a, $4, $5; fma.rn.f16x2 $1, b, $4, $5; }"
        ONLY: tl.constexpr = "mul.f16x2 $0, a, $4; mul.f16x2 $1, b, $4; }"
        low, high = tl.inline_asm_elementwise(
            "{ .reg .b32 a, b; prmt.b32 a, $2, 0x64646464, 0x4140; prmt.b32 b, $2, 0x64646464, 0x4342;"
            " sub.f16x2 a, a, $3; sub.f16x2 b, b, $3; " + (LAST if MINIMUM != 0 else ONLY),
            "=&r,=&r,r,r,r,r", [words, less, dd, mm], (tl.int32, tl.int32), True, 1,
        )  # fmt: skip
        both = tl.join(low, high)
        value = tl.join(both.to(tl.uint16), (both >> 16).to(tl.uint16)).to(tl.float16, bitcast=True)
    else:
        code = (words[:, :, :, None] >> 8 * tl.arange(0, 4)[None, None, None, :] & 255) | 0x6400
        value = code.to(tl.uint16).to(tl.float16, bitcast=True) - LESS
        value *= d.to(tl.float16)[:, :, None, None]
        if MINIMUM != 0:
            value += (MINIMUM * m).to(tl.float16)[:, :, None, None]
    return tl.reshape(value, (words.shape[0], words.shape[1] * 16))


@triton.jit
def bits_at(scale_ptr, base_ptr, row, group, stop, groups, KIND: tl.constexpr):
    """`scale_bits` of groups [ROWS, GROUPS], 0 from `stop` on."""
    at = (row * groups)[:, None] + group[None, :]
    super_at = (row * (groups // 8))[:, None] + (group // 8)[None, :]
    there = tl.broadcast_to((group < stop)[None, :], at.shape)
    return scale_bits(scale_ptr, base_ptr, tl.max_contiguous(at, [1, 1]), super_at, there, KIND)


@triton.jit
def sums(
    low_ptr, high_ptr, scale_ptr, base_ptr, x_at, row, groups, start, stop, ROWS: tl.constexpr, MANY: tl.constexpr,
    GROUPS: tl.constexpr, ASM: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, KIND: tl.constexpr,
    BIAS: tl.constexpr, TABLE: tl.constexpr, MINIMUM: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """[ROWS, MANY]: groups from `start` to `stop` of weights' rows `row` times activations, whose first are `x_at`."""
    i = tl.arange(0, 16 * GROUPS)
    acc = tl.zeros((ROWS, MANY), tl.float32)
    if AHEAD:
        s, base = bits_at(scale_ptr, base_ptr, row, start + tl.arange(0, GROUPS), stop, groups, KIND)
    for first in range(start, stop, GROUPS):
        group = first + tl.arange(0, GROUPS)
        at = (row * groups)[:, None] + group[None, :]
        there = tl.broadcast_to((group < stop)[None, :], at.shape)
        one, two = codes(low_ptr, high_ptr, at, there, ASM, LOW, HIGH, TABLE)
        if AHEAD:
            d, e, m, k = scales_of(s, base, there, KIND)
            s, base = bits_at(scale_ptr, base_ptr, row, group + GROUPS, stop, groups, KIND)
        else:
            now, whole = bits_at(scale_ptr, base_ptr, row, group, stop, groups, KIND)
            d, e, m, k = scales_of(now, whole, there, KIND)
        inside = (first + i // 16 < stop)[:, None]
        x = tl.load(x_at + first * 32, mask=inside, other=0.0)
        y = tl.load(x_at + first * 32 + 16, mask=inside, other=0.0)
        SIGNED: tl.constexpr = LOW == 8 or TABLE is not None
        acc = tl.dot(unpacked(one, d, m, ASM, SIGNED, BIAS, MINIMUM), x, acc)
        acc = tl.dot(unpacked(two, e, k, ASM, SIGNED, BIAS, MINIMUM), y, acc)
    return acc


@triton.jit
def matmul(
    low_ptr, high_ptr, scale_ptr, base_ptr, x_ptr, power_ptr, out_ptr, residual_ptr, n, groups, many, part,
    ROWS: tl.constexpr, MANY: tl.constexpr, GROUPS: tl.constexpr, RESIDUAL: tl.constexpr, PARTS: tl.constexpr,
    ASM: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, KIND: tl.constexpr, BIAS: tl.constexpr,
    TABLE: tl.constexpr, MINIMUM: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """A tile of ROWS rows of weights by MANY rows of activations, or the part of its sum that is over some of K."""
    first_row, first_token = tl.program_id(0) * ROWS, tl.program_id(1) * MANY
    row = tl.minimum(tl.arange(0, ROWS), n - 1 - first_row)
    token = tl.minimum(first_token + tl.arange(0, MANY), many - 1)
    low, high, scale, base = begun((low_ptr, high_ptr, scale_ptr, base_ptr), first_row, groups, LOW, HIGH)
    i = tl.arange(0, 16 * GROUPS)
    x_at = x_ptr + (i // 16 * 32 + i % 16)[:, None] + token[None, :] * (groups * 32)
    start = tl.program_id(2) * part
    acc = sums(
        low, high, scale, base, x_at, row, groups, start, tl.minimum(start + part, groups), ROWS, MANY, GROUPS, ASM,
        LOW, HIGH, KIND, BIAS, TABLE, MINIMUM, AHEAD,
    )  # fmt: skip
    row, token = first_row + tl.arange(0, ROWS)[:, None], first_token + tl.arange(0, MANY)[None, :]
    inside, to = (row < n) & (token < many), token * n.to(tl.int64) + row
    if PARTS:
        tl.store(out_ptr + tl.program_id(2) * (many * n.to(tl.int64)) + to, acc, mask=inside)
    else:
        acc *= tl.load(power_ptr + token, mask=token < many, other=0.0)
        if RESIDUAL:
            acc += tl.load(residual_ptr + to, mask=inside, other=0).to(tl.float32)
        tl.store(out_ptr + to, acc.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def add_parts(part_ptr, power_ptr, out_ptr, residual_ptr, n, many, parts, BLOCK: tl.constexpr, RESIDUAL: tl.constexpr):
    """Sums over parts of K, times the powers, plus the residual."""
    token, column = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    to, inside = token * n.to(tl.int64) + column, column < n
    acc = tl.zeros((BLOCK,), tl.float32)
    for part in range(parts):
        acc += tl.load(part_ptr + part * (many * n.to(tl.int64)) + to, mask=inside, other=0.0)
    acc *= tl.load(power_ptr + token)
    if RESIDUAL:
        acc += tl.load(residual_ptr + to, mask=inside, other=0).to(tl.float32)
    tl.store(out_ptr + to, acc.to(out_ptr.dtype.element_ty), mask=inside)


@functools.cache
def _halves(dtype):
    kernel = Kernel(halves, (pointer(dtype), "*fp16", "*fp32", "i32"), ("k",), BLOCK=1024)
    kernel.items = 1024
    return kernel


@functools.cache
def _matmul(format, out, residual, asm, parts, config):
    row, (rows, many, groups, warps, stages, ahead) = ROWS[format], config
    floats = ("*fp16", "*fp32", "*fp32" if parts else pointer(out), pointer(out))
    types = ("*i32", "*i32", *SCALE_TYPES[row.scale], *floats, "i32", "i32", "i32", "i32")
    kernel = Kernel(
        matmul, types, (), warps, stages, ROWS=rows, MANY=many, GROUPS=groups, RESIDUAL=residual and not parts,
        PARTS=parts, ASM=asm, LOW=row.low, HIGH=row.high, KIND=row.scale, BIAS=row.bias, TABLE=codebook(row),
        MINIMUM=row.minimum, AHEAD=ahead,
    )  # fmt: skip
    kernel.items = 32 * rows * groups
    return kernel


@functools.cache
def _add_parts(out, residual):
    types = ("*fp32", "*fp32", pointer(out), pointer(out), "i32", "i32", "i32")
    kernel = Kernel(add_parts, types, ("n",), BLOCK=1024, RESIDUAL=residual)
    kernel.items = 1024
    return kernel


def _config(arch, many):
    table = pick(CONFIGS, arch)
    return table[min((rows for rows in table if rows >= many), default=max(table))]


def _plan(format, out, gpu, words):
    *where, to, n, k, residual, many = words
    config = rows, tokens, groups, *_ = _config(gpu.arch, many)
    grid, steps = (blocks(n, rows), blocks(many, tokens)), blocks(k // 32, groups)
    # two programs per multiprocessor, but none with less than two steps
    parts = max(1, min(PARTS, 2 * gpu.units // (grid[0] * grid[1]), steps // 2))
    part = blocks(steps, parts) * groups
    parts = blocks(k // 32, part)
    kernel = _matmul(format, out, bool(residual), assembly(gpu), parts > 1, config)
    if parts == 1:
        kernel(gpu, (*grid, 1), *where, to, residual, n, k // 32, many, part)
        return
    sums, owner = scratch(gpu, 4 * parts * many * n)
    kernel(gpu, (*grid, parts), *where, sums, residual, n, k // 32, many, part)
    _add_parts(out, bool(residual))(gpu, (blocks(n, 1024), many, 1), sums, where[-1], to, residual, n, many, parts)
    del owner


def build(name, *params, source=None):
    """See kernels_triton/__init__.py."""
    if name == "halves" and len(params) == 1 and params[0] in FLOATS:

        def halves(gpu, words):
            x, values, powers, k, rows = words
            _halves(params[0])(gpu, (rows, 1, 1), x, values, powers, k)

        return halves
    if name == "matmul" and len(params) == 2 and params[0] in ROWS and params[1] in FLOATS:
        return functools.partial(_plan, *params)
    return None


def variants(arch):
    """See kernels_triton/__init__.py."""
    asm = assembly(type("Gpu", (), {"interpreted": False, "arch": arch}))
    found = {"halves f32": _halves("f32"), "add_parts f32": _add_parts("f32", True)}
    for many, config in pick(CONFIGS, arch).items():
        for format in ("q4_0", "q4_k", "q6_k", "q8_0") if many == 128 else ("q4_k",):
            found[f"matmul {format} {many}"] = _matmul(format, "f32", False, asm, False, config)
    return found
