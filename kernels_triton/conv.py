"""Convolutions over NCDHW as implicit matrix products: no patch matrix of the input exists, and none is padded.
(`implicit`, for f16 and bf16, is in implicit.py.)

`conv`: a tile of BM output channels times BN output positions (of all images), summed over taps and blocks of BK input
channels with tl.dot; with few input channels (FLAT) over taps and channels as one index. `direct`: groups of few input
channels (depthwise among them): a row of positions of one output channel, without a dot.

Words: weights (groups, output channels per group, taps, input channels per group), contiguous; x, out, bias (0: none)
and its stride; N, groups, output channels per group, input channels per group; strides of x (n, c, d, h, w); sizes of
x, of out, of the window, strides, padding before, dilations (d, h, w each; may be negative: phases of a transposed
convolution). `out` is contiguous. Sums are f32, f64 for f64; f32 products are exact ("ieee").
"""

import functools

import triton
import triton.language as tl

from . import implicit
from .launch import Kernel, blocks, pick, pointer, power_of_2

NARROW = 16  # input channels per group below which `conv` treats taps and channels as one index
BIG = 1 << 31
HALF = ("f16", "bf16")
# largest (BM, BN, BK, warps, stages); M is narrowed to the output channels there are
TILES = {
    75: {"half": (64, 64, 16, 4, 1), "f32": (64, 64, 16, 4, 1), "f64": (32, 32, 16, 4, 1)},
    80: {"half": (128, 128, 32, 8, 3), "f32": (64, 64, 16, 4, 2), "f64": (64, 32, 16, 4, 2)},
    86: {"half": (128, 128, 32, 8, 3), "f32": (64, 64, 16, 4, 2), "f64": (32, 32, 16, 4, 2)},
    90: {"half": (128, 128, 64, 8, 3), "f32": (64, 64, 16, 4, 2), "f64": (64, 32, 16, 4, 2)},
    120: {"half": (128, 128, 32, 8, 3), "f32": (64, 64, 16, 4, 2), "f64": (32, 32, 16, 4, 2)},
    "gfx942": {"half": (128, 128, 32, 8, 2), "f32": (64, 64, 16, 4, 2), "f64": (32, 32, 16, 4, 1)},
}
INTEGERS = """bias_step images outputs channels xn xc xd xh xw in_d in_h in_w out_d out_h out_w
win_d win_h win_w step_d step_h step_w pad_d pad_h pad_w dil_d dil_h dil_w""".split()
DIVISIBLE = {False: ("channels",), True: ("channels", "xn", "xd", "xh", "xw")}  # by whether channels are adjacent


@triton.jit
def _positions(at, out_d, out_h, out_w, step_d, step_h, step_w, pad_d, pad_h, pad_w):
    """Of output positions over all images: the image, and where the window begins in it."""
    row = at // out_w
    plane = row // out_h
    image = plane // out_d
    x = (at - row * out_w) * step_w - pad_w
    y = (row - plane * out_h) * step_h - pad_h
    z = (plane - image * out_d) * step_d - pad_d
    return image, z, y, x


@triton.jit
def _at_tap(tap, z, y, x, dil_d, dil_h, dil_w, in_d, in_h, in_w, xd, xh, xw, win_h, win_w):
    """Offsets of the elements that a tap meets, and whether they are inside the input."""
    line = tap // win_w
    slab = line // win_h
    iz, iy, ix = z + slab * dil_d, y + (line - slab * win_h) * dil_h, x + (tap - line * win_w) * dil_w
    inside = (iz >= 0) & (iz < in_d) & (iy >= 0) & (iy < in_h) & (ix >= 0) & (ix < in_w)
    return iz * xd + iy * xh + ix * xw, inside


@triton.jit
def conv(
    w_ptr, x_ptr, out_ptr, bias_ptr, bias_step, images, outputs, channels, xn, xc, xd, xh, xw, in_d, in_h, in_w,
    out_d, out_h, out_w, win_d, win_h, win_w, step_d, step_h, step_w, pad_d, pad_h, pad_w, dil_d, dil_h, dil_w,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, FLAT: tl.constexpr, BIAS: tl.constexpr, ACC: tl.constexpr,
    UPCAST: tl.constexpr, NEAR: tl.constexpr,
):  # fmt: skip
    """out[n, m, p] = sum over taps t and channels c of w[m, t, c] x[n, c, p at t] (+ bias[m])."""
    group, taps, plane = tl.program_id(2), win_d * win_h * win_w, out_d * out_h * out_w
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    p = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    image, z, y, x = _positions(p, out_d, out_h, out_w, step_d, step_h, step_w, pad_d, pad_h, pad_w)
    across = 1 if NEAR else xc  # channels last: the compiler sees that they are adjacent
    x_ptr += group.to(tl.int64) * channels * across
    w_ptr += group.to(tl.int64) * outputs * taps * channels
    base, seen = image.to(tl.int64) * xn, p < images * plane
    rows, inner = m[:, None] * (taps * channels), m < outputs
    total = tl.zeros([BM, BN], ACC)
    if FLAT:
        for first in range(0, taps * channels, BK):
            term = first + k
            tap = term // channels
            at, inside = _at_tap(
                tap[:, None], z[None, :], y[None, :], x[None, :], dil_d, dil_h, dil_w, in_d, in_h, in_w, xd, xh, xw,
                win_h, win_w,
            )  # fmt: skip
            known = term < taps * channels
            at += (term - tap * channels)[:, None] * across
            b = tl.load(x_ptr + base[None, :] + at, mask=inside & seen[None, :] & known[:, None], other=0.0)
            a = tl.load(w_ptr + rows + term[None, :], mask=inner[:, None] & known[None, :], other=0.0)
            if UPCAST:
                a, b = a.to(tl.float32), b.to(tl.float32)
            total = tl.dot(a, b, total, input_precision="ieee", out_dtype=ACC)
    else:
        for tap in range(taps):
            at, inside = _at_tap(
                tap, z, y, x, dil_d, dil_h, dil_w, in_d, in_h, in_w, xd, xh, xw, win_h, win_w
            )  # fmt: skip
            columns = x_ptr + (base + at)[None, :]
            fine = (inside & seen)[None, :]
            for first in range(0, channels, BK):
                known = first + k < channels
                b = tl.load(columns + ((first + k) * across)[:, None], mask=fine & known[:, None], other=0.0)
                term = tap * channels + first + k
                a = tl.load(w_ptr + rows + term[None, :], mask=inner[:, None] & known[None, :], other=0.0)
                if UPCAST:
                    a, b = a.to(tl.float32), b.to(tl.float32)
                total = tl.dot(a, b, total, input_precision="ieee", out_dtype=ACC)
    channel = group * outputs + m
    if BIAS:
        total += tl.load(bias_ptr + channel * bias_step, mask=inner, other=0.0).to(ACC)[:, None]
    last = image.to(tl.int64) * tl.num_programs(2) * outputs * plane + (p - image * plane)
    to = out_ptr + last[None, :] + (channel.to(tl.int64) * plane)[:, None]
    tl.store(to, total.to(out_ptr.dtype.element_ty), mask=inner[:, None] & seen[None, :])


@triton.jit
def direct(
    w_ptr, x_ptr, out_ptr, bias_ptr, bias_step, images, outputs, channels, xn, xc, xd, xh, xw, in_d, in_h, in_w,
    out_d, out_h, out_w, win_d, win_h, win_w, step_d, step_h, step_w, pad_d, pad_h, pad_w, dil_d, dil_h, dil_w,
    BN: tl.constexpr, BIAS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The same, one output channel and BN positions of one image a program: for few input channels per group."""
    channel, image, taps = tl.program_id(1), tl.program_id(2).to(tl.int64), win_d * win_h * win_w
    plane, all_channels = out_d * out_h * out_w, tl.num_programs(1)
    p = tl.program_id(0) * BN + tl.arange(0, BN)
    _, z, y, x = _positions(p, out_d, out_h, out_w, step_d, step_h, step_w, pad_d, pad_h, pad_w)
    x_ptr += image * xn + (channel // outputs).to(tl.int64) * channels * xc
    w_ptr += channel.to(tl.int64) * taps * channels
    seen, total = p < plane, tl.zeros([BN], ACC)
    for tap in range(taps):
        at, inside = _at_tap(
            tap, z, y, x, dil_d, dil_h, dil_w, in_d, in_h, in_w, xd, xh, xw, win_h, win_w
        )  # fmt: skip
        for c in range(channels):
            w = tl.load(w_ptr + tap * channels + c).to(ACC)
            total += w * tl.load(x_ptr + at + c * xc, mask=inside & seen, other=0.0).to(ACC)
    if BIAS:
        total += tl.load(bias_ptr + channel * bias_step).to(ACC)
    to = out_ptr + (image * all_channels + channel) * plane + p
    tl.store(to, total.to(out_ptr.dtype.element_ty), mask=seen)


def _types(dtype, wide):
    return [pointer(dtype)] * 4 + ["i64" if wide and n[0] == "x" else "i32" for n in INTEGERS]


@functools.cache
def conv_kernel(dtype, tile, flat, bias, upcast, near=False, wide=False):
    """The Kernel of a tile (BM, BN, BK, warps, stages)."""
    bm, bn, bk, warps, stages = tile
    accumulator = tl.float64 if dtype == "f64" else tl.float32
    consts = {
        "BM": bm,
        "BN": bn,
        "BK": bk,
        "FLAT": flat,
        "BIAS": bias,
        "ACC": accumulator,
        "UPCAST": upcast,
        "NEAR": near,
    }
    return Kernel(conv, _types(dtype, wide), DIVISIBLE[near], warps, stages, **consts)


@functools.cache
def direct_kernel(dtype, bn, bias, wide=False):
    """The Kernel for rows of `bn` positions."""
    accumulator = tl.float64 if dtype == "f64" else tl.float32
    return Kernel(direct, _types(dtype, wide), ("xc", "xn"), 4, 2, BN=bn, BIAS=bias, ACC=accumulator)


def _tile(dtype, arch, outputs):
    bm, bn, bk, warps, stages = pick(TILES, arch)["half" if dtype in HALF else dtype]
    narrow = max(16, min(bm, power_of_2(outputs)))
    return narrow, bn, bk, warps if narrow * 2 > bm else max(4, warps // 2), stages


def build(name, *params, source=None):
    """conv or direct of one float dtype; implicit of f16 or bf16."""
    if name == "implicit" and params in (("f16",), ("bf16",)):
        return implicit.build(*params)
    if name not in ("conv", "direct") or len(params) != 1 or params[0] not in ("f16", "bf16", "f32", "f64"):
        return None
    (dtype,) = params

    def plan(gpu, words):
        images, groups, outputs, channels = words[5:9]
        positions, bias = words[17] * words[18] * words[19], words[3] != 0
        args = (*words[:6], *words[7:])  # the grid knows the groups
        reach = sum(abs(s) * n for s, n in zip(words[9:14], (images, channels * groups, *words[14:17]), strict=True))
        wide = reach >= BIG
        if name == "direct":
            bn = min(1024, max(64, power_of_2(positions)))
            kernel = direct_kernel(dtype, bn, bias, wide)
            kernel(gpu, (blocks(positions, bn), groups * outputs, images), *args)
            return
        tile = _tile(dtype, gpu.arch, outputs)
        kernel = conv_kernel(
            dtype, tile, channels < NARROW, bias, gpu.arch == 75 and dtype in HALF, words[10] == 1, wide
        )
        grid = blocks(positions * images, tile[1]), blocks(outputs, tile[0]), groups
        kernel(gpu, grid, *args)

    return plan


def variants(arch):
    """The tiles of an architecture: wide, narrow and flat ones of every dtype class; the direct kernel."""
    found = {}
    for dtype in ("f16", "f32", "f64"):
        upcast = arch == 75 and dtype in HALF
        for outputs, kind in ((256, ""), (32, ""), (64, "flat"), (256, "channels last")):
            tile = _tile(dtype, arch, outputs)
            label = f"conv {dtype} {'x'.join(map(str, tile[:3]))} {kind}".rstrip()
            found[label] = conv_kernel(dtype, tile, kind == "flat", True, upcast, kind == "channels last")
        found[f"direct {dtype}"] = direct_kernel(dtype, 1024, True)
    return found | implicit.variants(arch)
