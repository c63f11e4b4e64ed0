"""SwiGLU and GEGLU and their gradients, part of room norm: one read of every operand, one write.

Rows that lie one behind the other in every operand are taken as one.
"""

import functools
from itertools import chain

import triton
import triton.language as tl
from triton.language.extra import libdevice

from .dims import LIMIT, WIDTH, offset_of
from .launch import Kernel, blocks, power_of_2
from .tiles import byte_table, cells, exponential, largest, reach, smallest

TILE = 1024  # elements of a program, 4 warps


@triton.jit
def sigmoid(x, ACCURATE: tl.constexpr):
    """1 / (1 + e ** -x)"""
    y = 1.0 + exponential(-x, ACCURATE)
    return 1.0 / y if ACCURATE else libdevice.fast_dividef(1.0, y)


@triton.jit
def activated(x, KIND: tl.constexpr, ACCURATE: tl.constexpr):
    """silu(x), or GELU's tanh form as x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)): no cancellation."""
    if KIND == "swiglu":
        y = x * sigmoid(x, ACCURATE)
    else:
        y = x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x), ACCURATE)
    return y


@triton.jit
def slope_of(x, KIND: tl.constexpr, ACCURATE: tl.constexpr):
    """The activation's derivative: beyond 100 it is 0 or 1 (to 1e-41)."""
    near = smallest(largest(x, -100.0), 100.0)
    if KIND == "swiglu":
        s = sigmoid(near, ACCURATE)
        y = s * (near * (1.0 - s) + 1.0)
    else:
        square = near * near
        s = sigmoid(1.5957691216057308 * (near + 0.044715 * square * near), ACCURATE)
        y = s * (near * (1.0 - s) * (1.5957691216057308 * (0.134145 * square + 1.0)) + 1.0)
    return y


@triton.jit
def gated_tiles(
    gate, up, g, out, other, rows, n, pieces, n0, n1, n2,
    as0, as1, as2, as3, bs0, bs1, bs2, bs3, gs0, gs1, gs2, gs3, os0, os1, os2, os3,
    KIND: tl.constexpr, BACK: tl.constexpr, ACCURATE: tl.constexpr, ND: tl.constexpr, M: tl.constexpr,
    R: tl.constexpr,
):  # fmt: skip
    """out = activate(gate) up; or BACKwards: out = g up activate'(gate), other = g activate(gate). ND 0: one row."""
    pid = tl.program_id(0).to(rows.dtype)
    p = pid // pieces * M + tl.arange(0, M)
    first = pid % pieces * R
    c = first + tl.arange(0, R)
    if ND == 0:
        a, b, d, to = c[None, :], c[None, :], c[None, :], c[None, :]
        known = (c < n)[None, :]
    else:
        a = offset_of(p, n0, n1, n2, 1, as0, as1, as2, as3, ND)[:, None] + c[None, :]
        b = offset_of(p, n0, n1, n2, 1, bs0, bs1, bs2, bs3, ND)[:, None] + c[None, :]
        d = offset_of(p, n0, n1, n2, 1, gs0, gs1, gs2, gs3, ND)[:, None] + c[None, :]
        to = offset_of(p, n0, n1, n2, 1, os0, os1, os2, os3, ND)[:, None] + c[None, :]
        known = (p < rows)[:, None] & (c < n)[None, :]
    if ND == 0:
        if first + R <= n:  # a whole piece, also where 16 does not divide n
            _tile(gate, up, g, out, other, a, b, d, to, known, True, KIND, BACK, ACCURATE)
        else:
            _tile(gate, up, g, out, other, a, b, d, to, known, False, KIND, BACK, ACCURATE)
    else:
        _tile(gate, up, g, out, other, a, b, d, to, known, False, KIND, BACK, ACCURATE)


@triton.jit
def _tile(
    gate, up, g, out, other, a, b, d, to, known, WHOLE: tl.constexpr, KIND: tl.constexpr, BACK: tl.constexpr,
    ACCURATE: tl.constexpr,
):  # fmt: skip
    kind: tl.constexpr = out.dtype.element_ty
    if WHOLE:
        x, y = tl.load(gate + a).to(tl.float32), tl.load(up + b).to(tl.float32)
    else:
        x = tl.load(gate + a, mask=known, other=0.0).to(tl.float32)
        y = tl.load(up + b, mask=known, other=0.0).to(tl.float32)
    if BACK:
        slope = tl.load(g + d).to(tl.float32) if WHOLE else tl.load(g + d, mask=known, other=0.0).to(tl.float32)
        first = (slope * y * slope_of(x, KIND, ACCURATE)).to(kind)
        second = (slope * activated(x, KIND, ACCURATE)).to(kind)
        if WHOLE:
            tl.store(out + to, first)
            tl.store(other + to, second)
        else:
            tl.store(out + to, first, mask=known)
            tl.store(other + to, second, mask=known)
    else:
        first = (activated(x, KIND, ACCURATE) * y).to(kind)
        if WHOLE:
            tl.store(out + to, first)
        else:
            tl.store(out + to, first, mask=known)


@functools.cache
def gated_kernel(kind, back, dtype, nd, shape, wide):
    """The Kernel of `gated_tiles`."""
    integer = "i64" if wide else "i32"
    strides = [f"{o}s{d}" for o in "abgo" for d in range(4)]
    types = (*(cells(dtype),) * 5, *(integer,) * 22)
    made = Kernel(
        gated_tiles, types, ("n", *strides), KIND=kind, BACK=back, ACCURATE=dtype == "f32", ND=nd, M=shape[0],
        R=shape[1],
    )  # fmt: skip
    made.items = shape[0] * shape[1]
    return made


def _plan(kind, back, dtype):
    size, heads = WIDTH[dtype], 6 if back else 4

    def plan(gpu, words):
        *pointers, n = words[:heads]
        rows, counts, strides = byte_table(words, heads, (size,) * (4 if back else 3))
        gate, up, g, out, other = pointers if back else (*pointers[:2], pointers[0], pointers[2], pointers[2])
        if not back:
            strides.insert(2, strides[0])
        nd, counts = len(counts), counts + [1] * (4 - len(counts))
        wide = max(reach(counts, s) for s in strides) + n >= LIMIT
        if rows == 1 or (nd == 1 and all(s[0] == n for s in strides)):
            nd, rows, n, strides = 0, 1, rows * n, [[0] * 4] * 4
        r = min(power_of_2(n), TILE)
        shape = min(power_of_2(rows), TILE // r), r
        pieces = blocks(n, r)
        found = gated_kernel(kind, back, dtype, nd, shape, wide)
        grid = (blocks(rows, shape[0]) * pieces, 1, 1)
        found(gpu, grid, gate, up, g, out, other, rows, n, pieces, *counts[:3], *chain(*strides))

    return plan


def build(name, *params):
    """A plan for swiglu, geglu and their vjp of one dtype; None for other names."""
    kind, back = name.removesuffix("_vjp"), name.endswith("_vjp")
    return _plan(kind, back, *params) if kind in ("swiglu", "geglu") else None


def variants(arch):
    """Representative kernels."""
    found = {}
    for dtype in ("f32", "bf16"):
        for kind in ("swiglu", "geglu"):
            for back in (False, True):
                label = f"{kind}{'_vjp' if back else ''}"
                found[f"{label} {dtype}"] = gated_kernel(kind, back, dtype, 0, (1, TILE), False)
        found[f"swiglu of halves {dtype}"] = gated_kernel("swiglu", False, dtype, 1, (1, TILE), False)
    return found
