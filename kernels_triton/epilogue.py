"""What follows the sums of a product: bias, activation, residual, one rounding; and the sum of a product in parts.

The activation "scaled" makes of the bias a factor of each row: the powers of 2 that halves of quant_matmul.py lack.
"""

import triton
import triton.language as tl

from .float8 import narrowed

_LONG = ("gelu", "gelu_tanh", "silu")
ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")


@triton.jit
def activate(x, ACT: tl.constexpr):
    """The activation of that name."""
    if ACT == "relu":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACT == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACT == "gelu_tanh":
        x = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    elif ACT == "silu":
        x = x / (1.0 + tl.exp(-x))
    else:
        tl.static_assert(ACT == "none" or ACT == "scaled")
    return x


@triton.jit
def finish(
    total, c_ptr, bias_ptr, r_ptr, m, n, M, N, c_m, c_n, bias_step, r_m, r_n,
    C_EIGHT: tl.constexpr, BIAS: tl.constexpr, ACT: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """c[m, n] = activation(total + bias) + residual, m < M and n < N. BIAS: "", or its dim ("n any": of any stride)."""
    m, n = m.to(tl.int64), n.to(tl.int64)
    inside = (m < M)[:, None] & (n < N)[None, :]
    if BIAS == "n" or BIAS == "m":
        bias_step = 1
    if BIAS == "n" or BIAS == "n any":
        bias = tl.load(bias_ptr + n * bias_step, mask=n < N, other=0.0).to(total.dtype)[None, :]
        total = total * bias if ACT == "scaled" else total + bias
    elif BIAS == "m" or BIAS == "m any":
        bias = tl.load(bias_ptr + m * bias_step, mask=m < M, other=0.0).to(total.dtype)[:, None]
        total = total * bias if ACT == "scaled" else total + bias
    total = activate(total, ACT)
    if RESIDUAL == "rows":
        r_n = 1
    if RESIDUAL != "":
        at = r_ptr + m[:, None] * r_m + n[None, :] * r_n
        total += tl.load(at, mask=inside, other=0.0).to(total.dtype)
    at = c_ptr + m[:, None] * c_m + n[None, :] * c_n
    if C_EIGHT > 0:
        total = narrowed(total, C_EIGHT)
    tl.store(at, total.to(c_ptr.dtype.element_ty), mask=inside)


@triton.jit
def finish_tile(
    total, c_ptr, bias_ptr, r_ptr, first_m, first_n, M, N, c_m, c_n, bias_step, r_m, r_n,
    C_EIGHT: tl.constexpr, BIAS: tl.constexpr, ACT: tl.constexpr, RESIDUAL: tl.constexpr, HALVES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """`finish` of the tile that begins there; HALVES: its columns in two halves, which need half the registers."""
    m = first_m + tl.arange(0, BLOCK_M)
    if HALVES:
        left, right = tl.split(tl.permute(tl.reshape(total, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))
        n = first_n + tl.arange(0, BLOCK_N // 2)
        finish(left, c_ptr, bias_ptr, r_ptr, m, n, M, N, c_m, c_n, bias_step, r_m, r_n, C_EIGHT, BIAS, ACT, RESIDUAL)
        n += BLOCK_N // 2
        finish(right, c_ptr, bias_ptr, r_ptr, m, n, M, N, c_m, c_n, bias_step, r_m, r_n, C_EIGHT, BIAS, ACT, RESIDUAL)
    else:
        n = first_n + tl.arange(0, BLOCK_N)
        finish(total, c_ptr, bias_ptr, r_ptr, m, n, M, N, c_m, c_n, bias_step, r_m, r_n, C_EIGHT, BIAS, ACT, RESIDUAL)


@triton.jit
def sum_parts(
    p_ptr, c_ptr, bias_ptr, r_ptr, parts, size, M, N, c_m, c_n, bias_step, r_m, r_n, inner, c_0, c_1, r_0, r_1,
    C_UNIT: tl.constexpr, C_EIGHT: tl.constexpr, BIAS: tl.constexpr, ACT: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """c = finish(the sum of the parts in order): p is (parts, batch, M, N), `size` elements in each part."""
    if C_UNIT == "n":
        c_n = 1
    columns = tl.cdiv(N, BLOCK)
    row, first = tl.program_id(0) // columns, tl.program_id(0) % columns * BLOCK
    outer, z = (row // M // inner).to(tl.int64), (row // M % inner).to(tl.int64)
    m = row % M + tl.arange(0, 1)
    n = first + tl.arange(0, BLOCK)
    at = p_ptr + row.to(tl.int64) * N + n
    total = tl.load(at, mask=n < N, other=0.0)
    for _ in range(1, parts):
        at += size
        total += tl.load(at, mask=n < N, other=0.0)
    finish(
        total[None, :], c_ptr + outer * c_0 + z * c_1, bias_ptr, r_ptr + outer * r_0 + z * r_1, m, n, M, N,
        c_m, c_n, bias_step, r_m, r_n, C_EIGHT, BIAS, ACT, RESIDUAL,
    )  # fmt: skip


def halves(act, lies, tile):
    """Whether a tile is finished in halves: one of more than 64 sums a thread, with more to do than rounding them."""
    return (act in _LONG or lies != "") and tile.m * tile.n > 64 * 32 * tile.warps
