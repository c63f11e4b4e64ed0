"""Elementwise operations: one line each, put into one strided template."""

import triton
import triton.language as tl

from .launch import Kernel, blocks, pointer


@triton.jit
def copy_rows(out_ptr, x_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < n)
    tl.store(out_ptr + at, x.to(out_ptr.dtype.element_ty), mask=at < n)


def build(name, *params, source=None):
    """See kernels_triton/__init__.py; words as in kernels_numba/elementwise.py."""
    if name != "copy":
        return None
    _, result, operand = params
    kernel = Kernel(copy_rows, (pointer(result), pointer(operand), "i32"), ("n",), BLOCK=1024)

    def plan(gpu, words):
        n = words[0]
        kernel(gpu, (blocks(n, 1024), 1, 1), words[4], words[9], n)

    return plan
