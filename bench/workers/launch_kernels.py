"""Triton kernels of few and of many arguments, for `bench.launches`: what they compute does not matter."""

import triton
import triton.language as tl


@triton.jit
def add(x_ptr, y_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """out = x + y."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x, y = tl.load(x_ptr + at, mask=at < n), tl.load(y_ptr + at, mask=at < n)
    tl.store(out_ptr + at, x + y, mask=at < n)


@triton.jit
def product(x_ptr, y_ptr, out_ptr, m, n, k, xm, xk, yk, yn, om, on, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    """A tile of x @ y, its K of one block."""
    i, j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i[:, None] * xm + j[None, :] * xk, mask=(i[:, None] < m) & (j[None, :] < k))
    y = tl.load(y_ptr + i[:, None] * yk + j[None, :] * yn, mask=(i[:, None] < k) & (j[None, :] < n))
    tl.store(out_ptr + i[:, None] * om + j[None, :] * on, tl.dot(x, y), mask=(i[:, None] < m) & (j[None, :] < n))
