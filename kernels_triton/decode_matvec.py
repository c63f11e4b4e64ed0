"""What a decode step does with quantised weights in planes, up to 8 rows of activations, in one launch each.

Activations are those that "quantize" of quant.py makes: values i8 [M, K], scales f32 [M, K / 32], sums i32 [M, K / 16];
kernels whose results are multiplied next write these of their results, too, bit for bit.

"several" (format): x times up to three weights [N_i, K]. Words: values, scales, sums, K, M; for each weight its planes
low, high, scale, base (quant_layout.py), out f32 [M, N_i], N_i. The program id says whose rows a program takes.

"gated" (format): silu(x times gate) * (x times up). Words: planes of gate, of up; values, scales, sums; out f32 [M, N],
its values, scales, sums; N, K, M. N divides by 32: a program has a group of 32 of both, some rows at a time.

"closing" (format, dtype of the norm's weight): sum = residual + x times a weight, and the RMSNorm of sum's rows. Words:
planes; values, scales, sums; residual f32 [M, N], sum, normed; values, scales, sums of normed; weight of the norm, a
counter (i32, 0 before and after); N, K, M, eps. The program that is the last to count does the norm: each stores its
part of the sums, passes a barrier, and counts with an atomic that releases what it stored and acquires what those did
that counted before. (After the last-block reduction of CUDA's threadFenceReduction sample.)
"""

import functools

import triton
import triton.language as tl
from triton.language.extra import libdevice

from .gated import activated
from .launch import Kernel, blocks, pick, pointer, power_of_2
from .quant import AMD, FLOATS, PTX, assembly, begun, sums_of_rows, with_groups
from .quant import _config as config_of
from .quant_layout import ROWS as FORMATS
from .quant_layout import SCALE_TYPES, codebook

# of "gated", by rows of activations up to which they hold: (rows of both weights, groups of 32, warps)
GATED = {
    75: {4: ((4, 128, 4), (4, 64, 2), (4, 32, 1)), 8: ((2, 128, 4), (2, 32, 1))},
    80: {4: ((4, 128, 4), (4, 64, 2), (4, 32, 1)), 8: ((2, 128, 4), (2, 32, 1))},
    "gfx942": {4: ((4, 256, 4), (4, 64, 1)), 8: ((2, 256, 4), (2, 64, 1))},
}
NORM = 2048  # elements of a row that the norm treats at a time: more would take registers from the product


@triton.jit
def store_groups(x, q_ptr, d_ptr, sum_ptr, group, inside):
    """Groups [G, 32] of f32 at places `group` as 8 bits with scales and sums, as `quantize` of quant.py."""
    top = tl.max(tl.abs(x), 1)
    scale = tl.where(top > 0, tl.div_rn(tl.full(top.shape, 127.0, tl.float32), top), 0.0)
    q = libdevice.rint(x * scale[:, None]).to(tl.int32)
    d = (top.to(tl.float64) * 0.007874015748031496).to(tl.float32) + tl.sum(x * 0.0, 1)
    at = group[:, None] * 32 + tl.arange(0, 32)[None, :]
    tl.store(q_ptr + at, q.to(tl.int8), mask=inside[:, None])
    tl.store(d_ptr + group, d, mask=inside)
    sums = tl.sum(tl.reshape(q, (x.shape[0], 2, 16)), 2)
    tl.store(sum_ptr + (group[:, None] * 2 + tl.arange(0, 2)[None, :]), sums, mask=inside[:, None])


@triton.jit
def several(
    a_low, a_high, a_scale, a_base, a_out, b_low, b_high, b_scale, b_base, b_out, c_low, c_high, c_scale, c_base, c_out,
    x_ptr, xd_ptr, sum_ptr, na, nb, nc, groups, MANY: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr,
    ASM: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, KIND: tl.constexpr, BIAS: tl.constexpr,
    TABLE: tl.constexpr, MINIMUM: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """MANY rows of activations times ROWS rows of one of three weights."""
    pid = tl.program_id(0)
    to_b, to_c = tl.cdiv(na, ROWS), tl.cdiv(na, ROWS) + tl.cdiv(nb, ROWS)
    first, second = pid < to_b, pid < to_c
    low = tl.where(first, a_low, tl.where(second, b_low, c_low))
    high = tl.where(first, a_high, tl.where(second, b_high, c_high))
    scale = tl.where(first, a_scale, tl.where(second, b_scale, c_scale))
    base = tl.where(first, a_base, tl.where(second, b_base, c_base))
    out = tl.where(first, a_out, tl.where(second, b_out, c_out))
    n = tl.where(first, na, tl.where(second, nb, nc))
    first_row = (pid - tl.where(first, 0, tl.where(second, to_b, to_c))) * ROWS
    acc = sums_of_rows(
        low, high, scale, base, x_ptr, xd_ptr, sum_ptr, first_row, n, groups, MANY, ROWS, GROUPS, ASM, LOW, HIGH, KIND,
        BIAS, TABLE, MINIMUM, HALVES,
    )  # fmt: skip
    row = first_row + tl.arange(0, ROWS)
    for i in tl.static_range(MANY):
        tl.store(out + i * n.to(tl.int64) + row, tl.sum(acc[i], 1), mask=row < n)


@triton.jit
def gated(
    a_low, a_high, a_scale, a_base, b_low, b_high, b_scale, b_base, x_ptr, xd_ptr, sum_ptr, out_ptr, q_ptr, d_ptr,
    more_ptr, n, groups, MANY: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, ASM: tl.constexpr,
    LOW: tl.constexpr, HIGH: tl.constexpr, KIND: tl.constexpr, BIAS: tl.constexpr, TABLE: tl.constexpr,
    MINIMUM: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """MANY rows of activations times 32 rows of two weights, ROWS at a time: silu(first) * second."""
    STEPS: tl.constexpr = 32 // ROWS
    start = tl.program_id(0) * 32
    step_of, row = tl.arange(0, STEPS)[:, None], tl.arange(0, ROWS)
    found = (tl.zeros((STEPS, ROWS), tl.float32),) * MANY
    for step in range(STEPS):
        low, high, scale, base = begun((a_low, a_high, a_scale, a_base), start + step * ROWS, groups, LOW, HIGH)
        other = begun((b_low, b_high, b_scale, b_base), start + step * ROWS, groups, LOW, HIGH)
        gate = (tl.zeros((ROWS, GROUPS), tl.float32),) * MANY
        up = gate
        for first in range(0, groups, GROUPS):
            gate = with_groups(
                gate, low, high, scale, base, x_ptr, xd_ptr, sum_ptr, row, first, groups, MANY, GROUPS, ASM, LOW, HIGH,
                KIND, BIAS, TABLE, MINIMUM, HALVES,
            )  # fmt: skip
            up = with_groups(
                up, other[0], other[1], other[2], other[3], x_ptr, xd_ptr, sum_ptr, row, first, groups, MANY, GROUPS,
                ASM, LOW, HIGH, KIND, BIAS, TABLE, MINIMUM, HALVES,
            )  # fmt: skip
        more = ()
        for i in tl.static_range(MANY):
            y = activated(tl.sum(gate[i], 1), "swiglu", True) * tl.sum(up[i], 1)
            more += (tl.where(step_of == step, y[None, :], found[i]),)
        found = more
    for i in tl.static_range(MANY):
        y = tl.reshape(found[i], (1, 32))
        at = i * n.to(tl.int64) + start
        tl.store(out_ptr + at + tl.arange(0, 32)[None, :], y)
        group = at // 32 + tl.arange(0, 1)
        store_groups(y, q_ptr, d_ptr, more_ptr, group, group >= 0)


@triton.jit
def norm_row(x_ptr, w_ptr, out_ptr, q_ptr, d_ptr, sum_ptr, first, n, eps, share, BLOCK: tl.constexpr):
    """RMSNorm of a row that begins at `first`, and its groups."""
    c, g = tl.arange(0, BLOCK), tl.arange(0, BLOCK // 32)
    total = tl.zeros((BLOCK,), tl.float32)
    for at in range(0, n, BLOCK):
        x = tl.load(x_ptr + (first + at + c), mask=at + c < n, other=0.0)
        total += x * x
    root = tl.rsqrt(tl.sum(total, 0) * share + eps)
    for at in range(0, n, BLOCK):
        inside = at + c < n
        x = tl.load(x_ptr + (first + at + c), mask=inside, other=0.0)
        y = x * root * tl.load(w_ptr + at + c, mask=inside, other=0.0).to(tl.float32)
        tl.store(out_ptr + (first + at + c), y, mask=inside)
        group = (first + at) // 32 + g
        store_groups(tl.reshape(y, (BLOCK // 32, 32)), q_ptr, d_ptr, sum_ptr, group, at // 32 + g < n // 32)


@triton.jit
def closing(
    low_ptr, high_ptr, scale_ptr, base_ptr, x_ptr, xd_ptr, sum_ptr, residual_ptr, out_ptr, normed_ptr, q_ptr, d_ptr,
    more_ptr, w_ptr, counter_ptr, n, groups, eps, share, MANY: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK: tl.constexpr, SEM: tl.constexpr, ASM: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    KIND: tl.constexpr, BIAS: tl.constexpr, TABLE: tl.constexpr, MINIMUM: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    """residual + MANY rows of activations times ROWS rows of weights; the last program to end does the norm."""
    first_row = tl.program_id(0) * ROWS
    acc = sums_of_rows(
        low_ptr, high_ptr, scale_ptr, base_ptr, x_ptr, xd_ptr, sum_ptr, first_row, n, groups, MANY, ROWS, GROUPS, ASM,
        LOW, HIGH, KIND, BIAS, TABLE, MINIMUM, HALVES,
    )  # fmt: skip
    row = first_row + tl.arange(0, ROWS)
    for i in tl.static_range(MANY):
        to = i * n + row
        found = tl.sum(acc[i], 1) + tl.load(residual_ptr + to, mask=row < n, other=0.0)
        tl.store(out_ptr + to, found, mask=row < n)
    tl.debug_barrier()
    if tl.atomic_add(counter_ptr, 1, sem=SEM) == tl.num_programs(0) - 1:
        for token in range(MANY):
            norm_row(out_ptr, w_ptr, normed_ptr, q_ptr, d_ptr, more_ptr, token * n, n, eps, share, BLOCK)
        tl.atomic_xchg(counter_ptr, 0, sem="relaxed")


# ---- plans -----------------------------------------------------------------------------------------------------------


def _facts(format, many, asm, rows, groups):
    row = FORMATS[format]
    return {
        "MANY": many, "ROWS": rows, "GROUPS": groups, "ASM": asm, "LOW": row.low, "HIGH": row.high, "KIND": row.scale,
        "BIAS": row.bias, "TABLE": codebook(row), "MINIMUM": row.minimum, "HALVES": row.halves,
    }  # fmt: skip


def _planes(format):
    return ("*i32", "*i32", *SCALE_TYPES[FORMATS[format].scale])


@functools.cache
def _several(format, many, asm, rows, groups, warps):
    types = ((*_planes(format), "*fp32") * 3, ("*i32", "*fp32", "*i32"), ("i32",) * 4)
    kernel = Kernel(several, sum(types, ()), ("groups",), warps, **_facts(format, many, asm, rows, groups))
    kernel.items = 32 * rows * groups
    return kernel


@functools.cache
def _gated(format, many, asm, rows, groups, warps):
    types = (*_planes(format) * 2, "*i32", "*fp32", "*i32", "*fp32", "*i8", "*fp32", "*i32", "i32", "i32")
    kernel = Kernel(gated, types, ("groups", "n"), warps, **_facts(format, many, asm, rows, groups))
    kernel.items = 64 * rows * groups
    return kernel


@functools.cache
def _closing(format, weight, many, block, asm, rows, groups, warps, sem="acq_rel"):
    types = (*_planes(format), "*i32", "*fp32", "*i32", "*fp32", "*fp32", "*fp32", "*i8", "*fp32", "*i32")
    types += (pointer(weight), "*i32", "i32", "i32", "fp32", "fp32")
    facts = _facts(format, many, asm, rows, groups) | {"BLOCK": block, "SEM": sem}
    return Kernel(closing, types, ("groups", "n"), warps, loose=("counter_ptr",), **facts)


def _plan_several(format, gpu, words):
    values, scales, sums, k, many, *weights = words
    config = config_of(gpu.arch, many, k // 32)
    given = [weights[i : i + 6] for i in range(0, len(weights), 6)]
    programs = sum(blocks(weight[5], config[0]) for weight in given)
    given += given[:1] * (3 - len(given))
    pointers = [p for weight in given for p in weight[:5]]
    kernel = _several(format, many, assembly(gpu), *config)
    kernel(gpu, (programs, 1, 1), *pointers, values, scales, sums, *(weight[5] for weight in given), k // 32)


def _plan_gated(format, gpu, words):
    *pointers, n, k, many = words
    table = pick(GATED, gpu.arch)
    choices = table[min(rows for rows in table if rows >= many)]
    config = next((c for c in choices if k // 32 >= c[1] * 3 // 4), choices[-1])
    _gated(format, many, assembly(gpu), *config)(gpu, (n // 32, 1, 1), *pointers, n, k // 32)


def _closed(arch, many, groups):
    """Of "closing": programs of one row, a row of `quant.CONFIGS` that suits others, all count in one place: with them
    an H200 took 12 us longer for each layer of a Llama 7B.
    """
    return config_of(arch if isinstance(arch, str) else min(arch, 89), many, groups)


def _plan_closing(format, weight, gpu, words):
    *pointers, n, k, many, eps = words
    config = _closed(gpu.arch, many, k // 32)
    kernel = _closing(format, weight, many, min(NORM, power_of_2(n)), assembly(gpu), *config)
    kernel(gpu, (blocks(n, config[0]), 1, 1), *pointers, n, k // 32, eps, 1 / n)


def build(name, *params, source=None):
    """See kernels_triton/__init__.py."""
    plans = {("several", 1): _plan_several, ("gated", 1): _plan_gated, ("closing", 2): _plan_closing}
    plan = plans.get((name, len(params)))
    if plan is None or params[0] not in FORMATS or any(p not in FLOATS for p in params[1:]):
        return None
    return functools.partial(plan, *params)


def variants(arch):
    """Every kernel for rows of 128 groups, or of 18, of some formats; then for more rows of activations."""
    asm, found = AMD if isinstance(arch, str) else PTX, {}
    for format in ("q4_0", "q8_0", "q4_k", "q6_k"):
        found[f"several {format}"] = _several(format, 1, asm, *config_of(arch, 1, 128))
        found[f"gated {format}"] = _gated(format, 1, asm, *pick(GATED, arch)[4][0])
        found[f"closing {format}"] = _closing(format, "f32", 1, NORM, asm, *_closed(arch, 1, 128))
    found["gated q4_0 short"] = _gated("q4_0", 1, asm, *pick(GATED, arch)[4][-1])
    found["closing q4_0 short"] = _closing("q4_0", "f32", 1, 1024, asm, *_closed(arch, 1, 18))
    for many in (4, 8):
        found[f"several q4_0 x{many}"] = _several("q4_0", many, asm, *config_of(arch, many, 128))
        found[f"gated q4_0 x{many}"] = _gated("q4_0", many, asm, *pick(GATED, arch)[many][0])
        found[f"closing q4_0 x{many}"] = _closing("q4_0", "f32", many, NORM, asm, *_closed(arch, many, 128))
    return found
