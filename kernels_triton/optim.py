"""Optimisers' steps, one launch per parameter: each element read and written once. Words: kernels_numba/optim.py.

The formulas are those of `STEPS` there, in the same order.
"""

import functools

import triton
import triton.language as tl

from .launch import Kernel, blocks, pointer

NUMBERS = 9
BLOCK = 1024  # elements of a program, 4 warps: eight a thread, 128-bit loads of f32
STATES = {"sgd": 0, "momentum": 1, "nesterov": 1, "adam": 2, "amsgrad": 3, "adagrad": 1, "rmsprop": 2}
STATES |= {"rmsprop_centred": 3, "lion": 1}


@triton.jit
def updated(p, g, a, b, c, n0, n1, n2, n3, n4, n5, KIND: tl.constexpr):
    """(p, states) after the step KIND; n0 is the rate, the others what the row says."""
    if KIND == "sgd":
        p = p - n0 * g
    elif KIND == "momentum":
        a = n1 * a + n2 * g
        p = p - n0 * a
    elif KIND == "nesterov":
        a = n1 * a + n2 * g
        p = p - n0 * (n1 * a + g)
    elif KIND == "adam" or KIND == "amsgrad":
        a = (g - a) * n1 + a
        b = (g * n3) * g + n2 * b
        if KIND == "amsgrad":
            c = tl.where((b > c) | (b != b), b, c)
            p = p - n0 * (a / (tl.sqrt(c) * n4 + n5))
        else:
            p = p - n0 * (a / (tl.sqrt(b) * n4 + n5))
    elif KIND == "adagrad":
        a = g * g + a
        p = p - n0 * (g / (tl.sqrt(a) + n1))
    elif KIND == "lion":
        mixed = (g - a) * n1 + a
        signed = tl.where(mixed > 0.0, 1.0, tl.where(mixed < 0.0, -1.0, mixed))
        p = p - n0 * signed
        a = (g - a) * n2 + a
    else:
        a = (g * n2) * g + n1 * a
        if KIND == "rmsprop_centred":
            c = (g - c) * n2 + c
            b = n4 * b + g / (tl.sqrt(a - c * c) + n3)
        else:
            b = n4 * b + g / (tl.sqrt(a) + n3)
        p = p - n0 * b
    return p, a, b, c


@triton.jit
def step_block(
    p_ptr, g_ptr, a_ptr, b_ptr, c_ptr, at, known, scale, l2, decay, n0, n1, n2, n3, n4, n5, WHOLE: tl.constexpr,
    KIND: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """One block of elements `at`; of them those `known`, unless WHOLE."""
    kind: tl.constexpr = a_ptr.dtype.element_ty
    mask = None if WHOLE else known
    p = tl.load(p_ptr + at, mask=mask).to(kind)
    g = tl.load(g_ptr + at, mask=mask).to(kind)
    a = tl.load(a_ptr + at, mask=mask) if STATES > 0 else p
    b = tl.load(b_ptr + at, mask=mask) if STATES > 1 else p
    c = tl.load(c_ptr + at, mask=mask) if STATES > 2 else p
    g = l2 * p + scale * g
    p, a, b, c = updated(decay * p, g, a, b, c, n0, n1, n2, n3, n4, n5, KIND)
    tl.store(p_ptr + at, p.to(p_ptr.dtype.element_ty), mask=mask)
    if STATES > 0:
        tl.store(a_ptr + at, a, mask=mask)
    if STATES > 1:
        tl.store(b_ptr + at, b, mask=mask)
    if STATES > 2:
        tl.store(c_ptr + at, c, mask=mask)


@triton.jit
def step(
    p_ptr, g_ptr, a_ptr, b_ptr, c_ptr, n, scale, l2, decay, n0, n1, n2, n3, n4, n5, KIND: tl.constexpr,
    STATES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One parameter of n elements."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    at = first + tl.arange(0, BLOCK)
    if first + BLOCK <= n:
        step_block(p_ptr, g_ptr, a_ptr, b_ptr, c_ptr, at, at < n, scale, l2, decay, n0, n1, n2, n3, n4, n5, True, KIND,
                   STATES)  # fmt: skip
    else:
        step_block(p_ptr, g_ptr, a_ptr, b_ptr, c_ptr, at, at < n, scale, l2, decay, n0, n1, n2, n3, n4, n5, False, KIND,
                   STATES)  # fmt: skip


@functools.cache
def step_kernel(kind, dtype):
    """The Kernel of `step`."""
    number = "fp64" if dtype == "f64" else "fp32"
    state = pointer("f64" if dtype == "f64" else "f32")
    types = (pointer(dtype), pointer(dtype), state, state, state, "i64", *(number,) * NUMBERS)
    made = Kernel(step, types, ("n",), KIND=kind, STATES=STATES[kind], BLOCK=BLOCK)
    made.items = BLOCK
    return made


def build(name, *params, source=None):
    """STEP dtype: the plan of a row for f32, f64, f16 or bf16; None for others."""
    if name not in STATES or len(params) != 1 or params[0] not in ("f32", "f64", "f16", "bf16"):
        return None
    kernel, width = step_kernel(name, params[0]), 3 + STATES[name]

    def plan(gpu, words):
        numbers = words[2 : 2 + NUMBERS]
        for i in range(2 + NUMBERS, 2 + NUMBERS + words[0] * width, width):
            n, *addresses = words[i : i + width]
            addresses += addresses[:1] * (5 - len(addresses))
            if n:
                kernel(gpu, (blocks(n, BLOCK), 1, 1), *addresses, n, *numbers)

    return plan


def variants(arch):
    """Every row in f32, AdamW's in the other dtypes too."""
    found = {f"{name} f32": step_kernel(name, "f32") for name in STATES}
    return found | {f"adam {dtype}": step_kernel("adam", dtype) for dtype in ("f16", "bf16", "f64")}
