"""One i64 in memory, set or advanced by the device itself. Words as in kernels_numba/counter.py: address, value."""

import triton
import triton.language as tl

from .launch import Kernel


@triton.jit
def counted(ptr, value, ADD: tl.constexpr):
    """value, or what is there plus value"""
    tl.store(ptr, tl.load(ptr) + value if ADD else value.to(tl.int64))


KERNELS = {name: Kernel(counted, ("*i64", "i64"), warps=1, ADD=name == "add") for name in ("store", "add")}


def build(name, *params, source=None):
    """store, add"""
    kernel = KERNELS.get(name)
    return None if kernel is None else lambda gpu, words: kernel(gpu, (1, 1, 1), *words)


def variants(arch):
    """Kernels of this room, by name."""
    return dict(KERNELS)
