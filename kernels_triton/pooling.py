"""Pools and interpolation: outputs that combine a few input elements per dim, listed in one table per dim.

A lane is an output element; it walks through the lists of its z, y and x. Tables lie in device memory. Sums are in f32
(f64 for f64), in the order of the lists. For the words and the tables see kernels_numba/pooling.py; scratch is unused.
"""

import functools

import triton
import triton.language as tl

from .launch import Kernel, blocks, pointer

BLOCK = 256
FLOATS = ("f16", "bf16", "f32", "f64")
KINDS = ("max", "indices", "avg", "weighted")


@triton.jit
def pooled(
    x_ptr, out_ptr, where_ptr, tz_ptr, ty_ptr, tx_ptr, outputs, channels, xn, xc, xd, xh, xw, in_h, in_w,
    out_d, out_h, out_w, most_z, most_y, most_x, divisor, KIND: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each output: the largest, the mean or the weighted sum of the elements that three lists name."""
    lists: tl.constexpr = 2 if KIND == "weighted" else 1
    largest: tl.constexpr = KIND == "max" or KIND == "indices"
    u = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    seen = u < outputs
    row = u // out_w
    slab = row // out_h
    plane = slab // out_d
    rz = tz_ptr + (slab - plane * out_d) * (2 + lists * most_z)
    ry = ty_ptr + (row - slab * out_h) * (2 + lists * most_y)
    rx = tx_ptr + (u - row * out_w) * (2 + lists * most_x)
    nz, ny, nx = tl.load(rz, mask=seen, other=0), tl.load(ry, mask=seen, other=0), tl.load(rx, mask=seen, other=0)
    image = plane // channels
    x_ptr += image * xn + (plane - image * channels) * xc
    total = tl.full([BLOCK], float("-inf") if largest else 0.0, ACC)
    place = tl.zeros([BLOCK], tl.int64)
    if KIND == "indices":
        first = tl.load(rz + 2, mask=seen, other=0) * in_h + tl.load(ry + 2, mask=seen, other=0)
        place = first * in_w + tl.load(rx + 2, mask=seen, other=0)
    for i in range(most_z):
        z = tl.load(rz + 2 + i, mask=seen, other=0)
        for j in range(most_y):
            y = tl.load(ry + 2 + j, mask=seen, other=0)
            some = seen & (i < nz) & (j < ny)
            for t in range(most_x):
                on = some & (t < nx)
                x = tl.load(rx + 2 + t, mask=seen, other=0)
                value = tl.load(x_ptr + z * xd + y * xh + x * xw, mask=on, other=0.0).to(ACC)
                if largest:
                    better = on & ((value > total) | (value != value))
                    total = tl.where(better, value, total)
                    if KIND == "indices":
                        place = tl.where(better, (z * in_h + y) * in_w + x, place)
                elif KIND == "avg":
                    total += value
                else:
                    wz = tl.load(rz + 2 + most_z + i, mask=on, other=0).to(tl.float64, bitcast=True)
                    wy = tl.load(ry + 2 + most_y + j, mask=on, other=0).to(tl.float64, bitcast=True)
                    wx = tl.load(rx + 2 + most_x + t, mask=on, other=0).to(tl.float64, bitcast=True)
                    total += tl.where(on, (wz * wy * wx).to(ACC) * value, 0.0)
    if KIND == "avg":
        own = tl.load(rz + 1, mask=seen, other=1) * tl.load(ry + 1, mask=seen, other=1)
        own = (own * tl.load(rx + 1, mask=seen, other=1)).to(ACC)
        total = total / tl.where(divisor != 0, divisor.to(ACC), own)
    tl.store(out_ptr + u, total.to(out_ptr.dtype.element_ty), mask=seen)
    if KIND == "indices":
        tl.store(where_ptr + u, place, mask=seen)


@functools.cache
def _kernel(kind, dtype):
    types = [pointer(dtype)] * 2 + ["*i64"] * 4 + ["i64", "i32", *["i64"] * 5, *["i32"] * 8, "fp32"]
    accumulator = tl.float64 if dtype == "f64" else tl.float32
    return Kernel(pooled, types, (), 4, 1, KIND=kind, ACC=accumulator, BLOCK=BLOCK)


def build(name, *params, source=None):
    """max, indices (the same with positions; NaN wins, the last of them), avg or weighted, of one float dtype."""
    if name not in KINDS or len(params) != 1 or params[0] not in FLOATS:
        return None
    kernel = _kernel(name, params[0])

    def plan(gpu, words):
        x, out, images, channels, *strides = words[:9]
        in_h, in_w, out_d, out_h, out_w, tz, ty, tx, most_z, most_y, most_x, where = words[9:21]
        outputs, divisor = images * channels * out_d * out_h * out_w, words[24]
        sizes = (in_h, in_w, out_d, out_h, out_w, most_z, most_y, most_x)
        args = (x, out, where, tz, ty, tx, outputs, channels, *strides, *sizes, divisor)
        kernel(gpu, (blocks(outputs, BLOCK), 1, 1), *args)

    return plan


def variants(arch):
    """One of each kind."""
    return {f"{kind} {dtype}": _kernel(kind, dtype) for kind in KINDS for dtype in ("f16", "f32")}
