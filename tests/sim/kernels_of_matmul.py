"""Triton kernels with matrix products: plain pointers, tensor descriptors, attention."""

import triton
import triton.language as tl


@triton.jit
def matmul(
    a_ptr, b_ptr, c_ptr, M, N, K, a_row, a_column, b_row, b_column,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """C = A @ B with masked edges; C is row-major."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    a = a_ptr + m[:, None] * a_row + k[None, :] * a_column
    b = b_ptr + k[:, None] * b_row + n[None, :] * b_column
    whole: tl.constexpr = tl.int32 if a_ptr.dtype.element_ty == tl.int8 else tl.float32
    dtype: tl.constexpr = tl.float64 if a_ptr.dtype.element_ty == tl.float64 else whole
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype)
    for start in range(0, K, BLOCK_K):
        inside = k < K - start
        x = tl.load(a, mask=(m < M)[:, None] & inside[None, :], other=0.0)
        y = tl.load(b, mask=inside[:, None] & (n < N)[None, :], other=0.0)
        total = tl.dot(x, y, total, input_precision=PRECISION, out_dtype=dtype)
        a += BLOCK_K * a_column
        b += BLOCK_K * b_row
    at = c_ptr + m[:, None] * N + n[None, :]
    tl.store(at, total.to(c_ptr.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def matmul_descriptors(
    a_ptr, b_ptr, c_ptr, M, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr
):
    """C = A @ B through descriptors made on the device: TMA where there is one."""
    m, n = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    a = tl.make_tensor_descriptor(a_ptr, shape=[M, K], strides=[K, 1], block_shape=[BLOCK_M, BLOCK_K])
    b = tl.make_tensor_descriptor(b_ptr, shape=[K, N], strides=[N, 1], block_shape=[BLOCK_K, BLOCK_N])
    c = tl.make_tensor_descriptor(c_ptr, shape=[M, N], strides=[N, 1], block_shape=[BLOCK_M, BLOCK_N])
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        total = tl.dot(a.load([m, k]), b.load([k, n]), total)
    c.store([m, n], total.to(c_ptr.dtype.element_ty))


@triton.jit
def matmul_host_descriptors(a, b, c, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """C = A @ B through descriptors made on the host."""
    m, n = tl.program_id(0) * BLOCK_M, tl.program_id(1) * BLOCK_N
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        total = tl.dot(a.load([m, k]), b.load([k, n]), total)
    c.store([m, n], total.to(tl.float16))


@triton.jit
def attention(
    q_ptr, k_ptr, v_ptr, o_ptr, scale, T, head,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Flash attention of (heads, T, D) row-major operands."""
    first = tl.program_id(0) * BLOCK_M
    m = first + tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, D)
    base = tl.program_id(1) * head
    q = tl.load(q_ptr + base + m[:, None] * D + d[None, :], mask=m[:, None] < T, other=0.0)
    total = tl.zeros((BLOCK_M, D), dtype=tl.float32)
    highest = tl.full((BLOCK_M,), -1e30, dtype=tl.float32)
    weight = tl.zeros((BLOCK_M,), dtype=tl.float32)
    end = tl.minimum(first + BLOCK_M, T) if CAUSAL else T
    for start in range(0, end, BLOCK_N):
        at = start + n
        k = tl.load(k_ptr + base + at[None, :] * D + d[:, None], mask=at[None, :] < T, other=0.0)
        s = tl.dot(q, k) * (scale * 1.4426950408889634)
        seen = at[None, :] < T
        if CAUSAL:
            seen = seen & (m[:, None] >= at[None, :])
        s = tl.where(seen, s, -1e30)
        higher = tl.maximum(highest, tl.max(s, 1))
        p = tl.exp2(s - higher[:, None])
        shrink = tl.exp2(highest - higher)
        weight = weight * shrink + tl.sum(p, 1)
        v = tl.load(v_ptr + base + at[:, None] * D + d[None, :], mask=at[:, None] < T, other=0.0)
        total = tl.dot(p.to(v.dtype), v, total * shrink[:, None])
        highest = higher
    at = o_ptr + base + m[:, None] * D + d[None, :]
    tl.store(at, (total / weight[:, None]).to(o_ptr.dtype.element_ty), mask=m[:, None] < T)


@triton.jit
def add_through_descriptors(x_ptr, out_ptr, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Each program adds one tile to the output, atomically."""
    x = tl.make_tensor_descriptor(x_ptr, shape=[rows, columns], strides=[columns, 1], block_shape=[ROWS, COLUMNS])
    out = tl.make_tensor_descriptor(out_ptr, shape=[rows, columns], strides=[columns, 1], block_shape=[ROWS, COLUMNS])
    out.atomic_add([0, 0], x.load([0, 0]))


@triton.jit
def scaled_product(a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, c_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """C = A @ B of e5m2 with a power of two for each 32 elements along K, as in the MX formats."""
    m, n, k, s = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K), tl.arange(0, K // 32)
    a = tl.load(a_ptr + m[:, None] * K + k[None, :])
    b = tl.load(b_ptr + k[:, None] * N + n[None, :])
    a_scale = tl.load(a_scale_ptr + m[:, None] * (K // 32) + s[None, :])
    b_scale = tl.load(b_scale_ptr + n[:, None] * (K // 32) + s[None, :])
    c = tl.dot_scaled(a, a_scale, "e5m2", b, b_scale, "e5m2")
    tl.store(c_ptr + m[:, None] * N + n[None, :], c)


@triton.jit
def half_accumulator(a_ptr, b_ptr, c_ptr, SIZE: tl.constexpr):
    """C = A @ B of transposed float16 operands, accumulated in float16."""
    at = tl.arange(0, SIZE)
    a = tl.trans(tl.load(a_ptr + at[:, None] * SIZE + at[None, :]))
    b = tl.trans(tl.load(b_ptr + at[:, None] * SIZE + at[None, :]))
    tl.store(c_ptr + at[:, None] * SIZE + at[None, :], tl.dot(a, b, out_dtype=tl.float16))
