"""Products of a few rows with quantised weights in planes: activations in 8 bits, four products an instruction.

"quantize" (dtype of x). Words: x, values i8 [M, K], scales f32 [M, K / 32], sums of 16 i32 [M, K / 16], K, M. The
arithmetic is that of kernels_numba/quant.py, bit for bit: scale 127 / largest, round to even, d = largest / 127.

"matvec" (format, dtype of out). Words: planes low, high, scale, base (quant_layout.py); values, scales, sums; out
[M, N], N, K, residual or 0, M <= 8. A thread holds one group of 32 weights of a few rows: 128 bits of codes in one
load, unpacked to bytes by masks of whole words, eight dp4a into one integer that is exact; so a group costs one
conversion to float, whatever the format. What a code is less (8, 16, 32, 4) is taken off with the activations' sums.
(After llama.cpp's MMVQ; planes and word order are ours.)
"""

import functools

import triton
import triton.language as tl

from .launch import Kernel, blocks, pick, pointer
from .quant_layout import ROWS, SCALE_TYPES, codebook, look_up, scales

PLAIN, PTX, AMD = 0, 1, 2  # how four products are asked for
FLOATS = ("f32", "f16", "bf16")
QUANTIZE_GROUPS = 32  # groups of 32 per program
# by rows of activations up to which they hold: (rows of weights, groups of 32, warps), for rows of so many groups
CONFIGS = {
    75: {1: ((4, 128, 4), (4, 64, 2), (4, 32, 1)), 4: ((4, 128, 4), (4, 32, 1)), 8: ((2, 128, 4), (2, 32, 1))},
    80: {1: ((4, 128, 4), (4, 64, 2), (4, 32, 1)), 4: ((4, 128, 4), (4, 32, 1)), 8: ((2, 128, 4), (2, 32, 1))},
    90: {1: ((1, 128, 1), (4, 64, 2), (4, 32, 1)), 4: ((4, 128, 4), (4, 32, 1)), 8: ((2, 128, 4), (2, 32, 1))},
    "gfx942": {1: ((4, 256, 4), (4, 64, 1)), 4: ((4, 256, 4), (4, 64, 1)), 8: ((2, 256, 4), (2, 64, 1))},
}


@triton.jit
def quantize(x_ptr, q_ptr, d_ptr, sum_ptr, groups, GROUPS: tl.constexpr):
    """Floats to 8 bits per group of 32, with scales and sums; NaN and inf make the scale a NaN."""
    group, i = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS), tl.arange(0, 32)
    at = group.to(tl.int64)[:, None] * 32 + i[None, :]
    x = tl.load(x_ptr + at, mask=(group < groups)[:, None], other=0).to(tl.float32)
    top = tl.max(tl.abs(x), 1)
    scale = tl.where(top > 0, tl.div_rn(tl.full((GROUPS,), 127.0, tl.float32), top), 0.0)
    # 2**23 * 1.5 leaves a sum no bits behind the point: it is rounded to even
    q = (x * scale[:, None] + 12582912.0 - 12582912.0).to(tl.int32)
    d = (top.to(tl.float64) * 0.007874015748031496).to(tl.float32) + tl.sum(x * 0.0, 1)
    tl.store(q_ptr + at, q.to(tl.int8), mask=(group < groups)[:, None])
    tl.store(d_ptr + group, d, mask=group < groups)
    sums = tl.sum(tl.reshape(q, (GROUPS, 2, 16)), 2)
    half = group[:, None] * 2 + tl.arange(0, 2)[None, :]
    tl.store(sum_ptr + half, sums, mask=(group < groups)[:, None])


@triton.jit
def dot4(a, b, c, ASM: tl.constexpr, SIGNED: tl.constexpr):
    """c + four products of the bytes of a (SIGNED or not) and the signed bytes of b."""
    if ASM == 1 and SIGNED:
        c = tl.inline_asm_elementwise("dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, c], tl.int32, True, 1)
    elif ASM == 1:
        c = tl.inline_asm_elementwise("dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, c], tl.int32, True, 1)
    elif ASM == 2:  # unsigned codes are below 128
        c = tl.inline_asm_elementwise("v_dot4_i32_i8 $0, $1, $2, $3", "=v,v,v,v", [a, b, c], tl.int32, True, 1)
    else:
        for i in tl.static_range(4):
            c += ((a << (24 - 8 * i)) >> 24) * ((b << (24 - 8 * i)) >> 24)
    return c


@triton.jit
def byte_table(words, ASM: tl.constexpr, TABLE: tl.constexpr):
    """What the low and the high nibbles of words stand for in a codebook, as four bytes each."""
    if ASM == 1:
        # prmt picks bytes of 8 by three bits; the fourth then picks between the table's halves (llama.cpp's way)
        A: tl.constexpr = TABLE[0] & 0xFFFFFFFF
        B: tl.constexpr = TABLE[0] >> 32 & 0xFFFFFFFF
        C: tl.constexpr = TABLE[1] & 0xFFFFFFFF
        D: tl.constexpr = TABLE[1] >> 32 & 0xFFFFFFFF
        first, second = tl.inline_asm_elementwise(
            """{
            .reg .b32 s, t, a, b, c, d;
            and.b32 t, $2, 0x77777777;
            shr.u32 s, $2, 1;
            lop3.b32 s, s, 0x44444444, 0x32103210, 0xEA;
            prmt.b32 a, $3, $4, t;
            prmt.b32 b, $5, $6, t;
            prmt.b32 a, a, b, s;
            shr.u32 t, t, 16;
            shr.u32 s, s, 16;
            prmt.b32 c, $3, $4, t;
            prmt.b32 d, $5, $6, t;
            prmt.b32 c, c, d, s;
            prmt.b32 $0, a, c, 0x6420;
            prmt.b32 $1, a, c, 0x7531;
            }""",
            "=&r,=&r,r,r,r,r,r",
            [words, tl.full((), A, tl.uint32), tl.full((), B, tl.uint32), tl.full((), C, tl.uint32),
             tl.full((), D, tl.uint32)],
            (tl.int32, tl.int32), True, 1,
        )  # fmt: skip
    else:
        first, second = words * 0, words * 0
        for i in tl.static_range(4):
            first |= (look_up(words >> 8 * i & 15, TABLE) & 255) << 8 * i
            second |= (look_up(words >> 8 * i + 4 & 15, TABLE) & 255) << 8 * i
    return first, second


@triton.jit
def pair(ptr, group, inside):
    """Two words per group, read at once."""
    at, i = group * 2, tl.arange(0, 2)
    return tl.split(tl.load(ptr + at[:, :, None] + i[None, None, :], mask=inside[:, :, None], other=0))


@triton.jit
def codes(
    low_ptr, high_ptr, group, inside, ASM: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, TABLE: tl.constexpr
):
    """Codes of groups of 32 as bytes, four a word: words [.., .., 4] of the first 16 and of the second."""
    word = tl.arange(0, 4)[None, None, :]
    if LOW == 8:
        at = low_ptr + (group * 8)[:, :, None] + word
        first = tl.load(at, mask=inside[:, :, None], other=0)
        second = tl.load(at + 4, mask=inside[:, :, None], other=0)
    elif LOW == 4:
        both = tl.load(low_ptr + (group * 4)[:, :, None] + word, mask=inside[:, :, None], other=0)
        if TABLE is not None:
            first, second = byte_table(both, ASM, TABLE)
        else:
            first, second = both & 0x0F0F0F0F, both >> 4 & 0x0F0F0F0F
    else:
        one, two = pair(low_ptr, group, inside)
        first, second = one[:, :, None] >> 2 * word & 0x03030303, two[:, :, None] >> 2 * word & 0x03030303
    if HIGH == 1:
        bits = tl.load(high_ptr + tl.max_contiguous(group, [1, 1]), mask=inside, other=0)[:, :, None]
        if LOW == 4:
            first |= bits << (4 - word) & 0x10101010
            second |= bits >> word & 0x10101010
        else:
            first |= bits >> word << 2 & 0x04040404
            second |= bits >> (word + 2) & 0x04040404
    elif HIGH == 2:
        one, two = pair(high_ptr, group, inside)
        up, down = tl.maximum(4 - 2 * word, 0), tl.maximum(2 * word - 4, 0)  # known when compiled: one shift
        first |= one[:, :, None] << up >> down & 0x30303030
        second |= two[:, :, None] << up >> down & 0x30303030
    return first, second


@triton.jit
def add_row(
    acc, first, second, d, e, m, n, x_ptr, xd_ptr, sum_ptr, group, inside, ASM: tl.constexpr, SIGNED: tl.constexpr,
    BIAS: tl.constexpr, MINIMUM: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """acc plus the products of groups of weights with those of one row of activations."""
    at = x_ptr + (group * 8)[None, :, None] + tl.arange(0, 4)[None, None, :]
    x = tl.load(at, mask=inside[None, :, None], other=0)
    y = tl.load(at + 4, mask=inside[None, :, None], other=0)
    scale = tl.load(xd_ptr + group, mask=inside, other=0.0)[None, :]
    zero = first * 0
    x, y = tl.broadcast_to(x, first.shape), tl.broadcast_to(y, first.shape)
    if BIAS != 0 or MINIMUM != 0:
        low = tl.load(sum_ptr + 2 * group, mask=inside, other=0)[None, :]
        high = tl.load(sum_ptr + 2 * group + 1, mask=inside, other=0)[None, :]
    if HALVES:
        a = tl.sum(dot4(first, x, zero, ASM, SIGNED), 2)
        b = tl.sum(dot4(second, y, zero, ASM, SIGNED), 2)
        if BIAS != 0:
            a, b = a - BIAS * low, b - BIAS * high
        acc += scale * (d * a.to(tl.float32) + e * b.to(tl.float32))
        if MINIMUM != 0:
            acc += MINIMUM * scale * (m * low.to(tl.float32) + n * high.to(tl.float32))
    else:
        a = tl.sum(dot4(second, y, dot4(first, x, zero, ASM, SIGNED), ASM, SIGNED), 2)
        if BIAS != 0:
            a -= BIAS * (low + high)
        acc += d * scale * a.to(tl.float32)
        if MINIMUM != 0:
            acc += m * (MINIMUM * scale * (low + high).to(tl.float32))
    return acc


@triton.jit
def with_groups(
    acc, low_ptr, high_ptr, scale_ptr, base_ptr, x_ptr, xd_ptr, sum_ptr, row, first, groups, MANY: tl.constexpr,
    GROUPS: tl.constexpr, ASM: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, KIND: tl.constexpr,
    BIAS: tl.constexpr, TABLE: tl.constexpr, MINIMUM: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """MANY sums [ROWS, GROUPS] plus the products of the groups from `first` on of weights' rows `row`."""
    group = first + tl.arange(0, GROUPS)
    inside = group < groups
    at = (row * groups)[:, None] + group[None, :]
    there = tl.broadcast_to(inside[None, :], at.shape)
    one, two = codes(low_ptr, high_ptr, at, there, ASM, LOW, HIGH, TABLE)
    super_at = (row * (groups // 8))[:, None] + (group // 8)[None, :]
    d, e, m, k = scales(scale_ptr, base_ptr, tl.max_contiguous(at, [1, 1]), super_at, there, KIND)
    more = ()
    for i in tl.static_range(MANY):
        more += (
            add_row(
                acc[i], one, two, d, e, m, k, x_ptr + i * groups * 8, xd_ptr + i * groups, sum_ptr + i * groups * 2,
                group, inside, ASM, LOW == 8 or TABLE is not None, BIAS, MINIMUM, HALVES,
            ),
        )  # fmt: skip
    return more


@triton.jit
def begun(planes, first_row, groups, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Where the planes of the rows from `first_row` on begin."""
    start = first_row.to(tl.int64) * groups
    return planes[0] + start * LOW, planes[1] + start * HIGH, planes[2] + start, planes[3] + start // 8


@triton.jit
def sums_of_rows(
    low_ptr, high_ptr, scale_ptr, base_ptr, x_ptr, xd_ptr, sum_ptr, first_row, n, groups, MANY: tl.constexpr,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, ASM: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    KIND: tl.constexpr, BIAS: tl.constexpr, TABLE: tl.constexpr, MINIMUM: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """MANY sums [ROWS, GROUPS]: rows of weights from `first_row` on times rows of activations, still to be added up."""
    row = tl.minimum(tl.arange(0, ROWS), n - 1 - first_row)
    low, high, scale, base = begun((low_ptr, high_ptr, scale_ptr, base_ptr), first_row, groups, LOW, HIGH)
    acc = (tl.zeros((ROWS, GROUPS), tl.float32),) * MANY
    for first in range(0, groups, GROUPS):
        acc = with_groups(
            acc, low, high, scale, base, x_ptr, xd_ptr, sum_ptr, row, first, groups, MANY, GROUPS, ASM, LOW, HIGH, KIND,
            BIAS, TABLE, MINIMUM, HALVES,
        )  # fmt: skip
    return acc


@triton.jit
def matvec(
    low_ptr, high_ptr, scale_ptr, base_ptr, x_ptr, xd_ptr, sum_ptr, out_ptr, residual_ptr, n, groups,
    MANY: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, RESIDUAL: tl.constexpr, ASM: tl.constexpr,
    LOW: tl.constexpr, HIGH: tl.constexpr, KIND: tl.constexpr, BIAS: tl.constexpr, TABLE: tl.constexpr,
    MINIMUM: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """MANY rows of activations times ROWS rows of weights."""
    first_row = tl.program_id(0) * ROWS
    acc = sums_of_rows(
        low_ptr, high_ptr, scale_ptr, base_ptr, x_ptr, xd_ptr, sum_ptr, first_row, n, groups, MANY, ROWS, GROUPS, ASM,
        LOW, HIGH, KIND, BIAS, TABLE, MINIMUM, HALVES,
    )  # fmt: skip
    row = first_row + tl.arange(0, ROWS)
    for i in tl.static_range(MANY):
        found = tl.sum(acc[i], 1)
        to = i * n.to(tl.int64) + row
        if RESIDUAL:
            found += tl.load(residual_ptr + to, mask=row < n, other=0).to(tl.float32)
        tl.store(out_ptr + to, found.to(out_ptr.dtype.element_ty), mask=row < n)


@functools.cache
def _quantize(dtype):
    kernel = Kernel(quantize, (pointer(dtype), "*i8", "*fp32", "*i32", "i32"), fuse=False, GROUPS=QUANTIZE_GROUPS)
    kernel.items = 32 * QUANTIZE_GROUPS
    return kernel


def assembly(gpu):
    """How kernels of a GPU may ask for what Triton has no name for."""
    return PLAIN if gpu.interpreted else AMD if isinstance(gpu.arch, str) else PTX


@functools.cache
def _matvec(format, out, many, residual, asm, rows, groups, warps):
    row = ROWS[format]
    types = ("*i32", "*i32", *SCALE_TYPES[row.scale], "*i32", "*fp32", "*i32", pointer(out), pointer(out), "i32", "i32")
    kernel = Kernel(
        matvec, types, ("groups",), warps, MANY=many, ROWS=rows, GROUPS=groups, RESIDUAL=residual, ASM=asm, LOW=row.low,
        HIGH=row.high, KIND=row.scale, BIAS=row.bias, TABLE=codebook(row), MINIMUM=row.minimum, HALVES=row.halves,
    )  # fmt: skip
    kernel.items = 32 * rows * groups
    return kernel


def _config(arch, many, groups):
    table = pick(CONFIGS, arch)
    choices = table[min(rows for rows in table if rows >= many)]
    return next((c for c in choices if groups >= c[1] * 3 // 4), choices[-1])


def build(name, *params, source=None):
    """See kernels_triton/__init__.py."""
    if name == "quantize" and len(params) == 1 and params[0] in FLOATS:

        def quantize(gpu, words):
            x, values, d, sums, k, rows = words
            count = rows * (k // 32)
            _quantize(params[0])(gpu, (blocks(count, QUANTIZE_GROUPS), 1, 1), x, values, d, sums, count)

        return quantize
    if name != "matvec" or len(params) != 2 or params[0] not in ROWS or params[1] not in FLOATS:
        return None

    def plan(gpu, words):
        *where, out, n, k, residual, many = words
        rows, groups, warps = _config(gpu.arch, many, k // 32)
        kernel = _matvec(*params, many, bool(residual), assembly(gpu), rows, groups, warps)
        kernel(gpu, (blocks(n, rows), 1, 1), *where, out, residual, n, k // 32)

    return plan


def variants(arch):
    """See kernels_triton/__init__.py."""
    asm, found = AMD if isinstance(arch, str) else PTX, {"quantize f32": _quantize("f32")}
    for format in ROWS:
        found[f"matvec {format}"] = _matvec(format, "f32", 1, False, asm, *_config(arch, 1, 128))
    for format in ("q4_0", "q4_k", "q6_k"):
        found[f"matvec {format} short"] = _matvec(format, "f32", 1, False, asm, *_config(arch, 1, 18))
        for many in (4, 8):
            found[f"matvec {format} x{many}"] = _matvec(format, "f16", many, True, asm, *_config(arch, many, 128))
    return found
