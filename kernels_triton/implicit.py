"""Convolutions of halves as implicit matrix products whose operands are read 8 or 16 bytes at a time.

Channels adjacent ("c"): `channels_last` first writes what the windows meet as (N, D, H, W, C), zeros around it, so that
no tap is masked: what a window meets of a row is then one run of KW * C elements (one of C per tap, where dilation or
groups part them). Positions adjacent ("p"): windows of one tap that meet every position read the input where it lies,
if positions of an image divide by 4. Sums are [outputs, positions], so that rows are stored as they lie in `out`.

Words as conv.py's; the weights are (groups, outputs, taps, channels), their channels filled up with zeros to what
a multiple of 4 or 8, which is one word more at the end. What is known of strides is told to the compiler by their unit:
VEC elements of an operand, OUT of `out`, RUN of a run.
"""

import functools
from math import gcd, prod

import triton
import triton.language as tl

from .launch import Kernel, blocks, pick, pointer, power_of_2

BIG = 1 << 31
SHORT = 12  # steps
# (BM, BN, BK, warps, stages) from the largest; the last is for few outputs
TILES = {
    75: ((64, 64, 16, 4, 1), (16, 64, 16, 4, 1)),
    80: ((128, 128, 32, 8, 3), (64, 128, 32, 4, 3), (16, 128, 32, 4, 3)),
    90: ((128, 256, 64, 8, 3), (128, 128, 64, 8, 3), (64, 128, 64, 4, 3), (64, 64, 64, 4, 4), (16, 128, 64, 4, 3)),
    120: ((128, 128, 32, 8, 3), (64, 128, 32, 4, 3), (16, 128, 32, 4, 3)),
    "gfx942": ((128, 128, 32, 8, 2), (64, 128, 32, 4, 2), (16, 128, 32, 4, 2)),
}
COPY = (32, 64, 4)  # positions, channels, warps of a tile that is copied
_COPY = """channels wide xn xc xd xh xw in_d in_h in_w low_d low_h low_w take_d take_h take_w plane y_h y_w""".split()
_SUMS = """bias_step count outputs run pitch plane xn xc xg out_h out_w step_d step_h step_w win_d win_h win_w
tap_d tap_h tap_w""".split()


@triton.jit
def channels_last(
    x_ptr, y_ptr, channels, wide, xn, xc, xd, xh, xw, in_d, in_h, in_w, low_d, low_h, low_w, take_d, take_h, take_w,
    plane, y_h, y_w, BP: tl.constexpr, BC: tl.constexpr, VEC: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """y[n, z, y, x, c] = x[n, c, z take + low, ...], 0 outside of x. TAIL: BC does not divide the channels."""
    wide = wide * VEC
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    image = tl.program_id(2).to(tl.int64)
    row = p // y_w
    level = row // y_h
    x = (p - row * y_w) * take_w + low_w
    y = (row - level * y_h) * take_h + low_h
    z = level * take_d + low_d
    inside = (x >= 0) & (x < in_w) & (y >= 0) & (y < in_h) & (z >= 0) & (z < in_d) & (p < plane)
    at = x_ptr + image * xn + (z * xd + y * xh + x * xw)[None, :] + (c * xc)[:, None]
    known, kept = inside[None, :], (p < plane)[:, None]
    if TAIL:
        known, kept = known & (c < channels)[:, None], kept & (c < wide)[None, :]
    values = tl.load(at, mask=known, other=0.0)
    to = y_ptr + image * plane * wide + p[:, None] * wide + c[None, :]
    tl.store(to, tl.trans(values), mask=kept)


@triton.jit
def _met(
    x_ptr, p, k, count, plane, xn, out_h, out_w, step_d, step_h, step_w, VEC: tl.constexpr
):  # fmt: skip
    """Where the windows of positions begin, [positions, k]."""
    known = tl.minimum(p, count - 1)
    row = known // out_w
    level = row // out_h
    image = known // plane
    z = level - image * (plane // (out_h * out_w))
    at = z * step_d + (row - level * out_h) * step_h + (known - row * out_w) * step_w
    return x_ptr + (image.to(tl.int64) * (xn * VEC) + at * VEC)[:, None] + k[None, :]


@triton.jit
def _finish(
    total, out_ptr, bias_ptr, bias_step, group, m, p, outputs, plane, count, BIAS: tl.constexpr
):  # fmt: skip
    """out[n, m, p] = total (+ bias[m])"""
    channel = group * outputs + m
    if BIAS:
        total += tl.load(bias_ptr + channel * bias_step, mask=m < outputs, other=0.0).to(tl.float32)[:, None]
    to = (p // plane).to(tl.int64) * tl.num_programs(1) * outputs * plane + p % plane
    to = out_ptr + to[None, :] + (channel.to(tl.int64) * plane)[:, None]
    tl.store(to, total.to(out_ptr.dtype.element_ty), mask=(m < outputs)[:, None] & (p < count)[None, :])


@triton.jit
def implicit(
    w_ptr, x_ptr, out_ptr, bias_ptr, bias_step, count, outputs, run, pitch, plane, xn, xc, xg, out_h, out_w,
    step_d, step_h, step_w, win_d, win_h, win_w, tap_d, tap_h, tap_w,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, UNIT: tl.constexpr, VEC: tl.constexpr, OUT: tl.constexpr,
    RUN: tl.constexpr, TAIL: tl.constexpr, BIAS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """out[n, m, p] = sum over windows' runs of w[m, k] x[p at k] (+ bias[m]): a tile of outputs by positions."""
    group, tiles = tl.program_id(1), tl.cdiv(outputs, BM)
    m = tl.program_id(0) % tiles * BM + tl.arange(0, BM)
    p = tl.program_id(0) // tiles * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    plane, count, run, pitch = plane * OUT, count * OUT, run * RUN, pitch * RUN
    taps, inside = win_d * win_h * win_w, (p < count)[None, :]
    x = x_ptr + group.to(tl.int64) * (xg * VEC)
    if UNIT == "p":
        xc = xc * VEC
        x = x + ((p // plane).to(tl.int64) * (xn * VEC) + p % plane)[None, :] + (k * xc)[:, None]
    else:
        x = _met(x, p, k, count, plane, xn, out_h, out_w, step_d, step_h, step_w, VEC)
    steps = tl.cdiv(run, BK)
    rows = tl.minimum(m, outputs - 1)[:, None].to(tl.int64)
    a = w_ptr + (group.to(tl.int64) * outputs + rows) * pitch + k[None, :]
    total = tl.zeros([BM, BN], tl.float32)
    first, line, slab = 0, 0, 0
    for _ in range(taps * steps):
        left = run - first
        if UNIT == "p":
            v = tl.load(x, mask=inside & (k < left)[:, None] if TAIL else inside, other=0.0)
            x += BK * xc
        elif TAIL:
            v = tl.load(x, mask=(k < left)[None, :], other=0.0).T
        else:
            v = tl.load(x).T
        w = tl.load(a, mask=(k < left)[None, :], other=0.0) if TAIL else tl.load(a)
        if UPCAST:
            w, v = w.to(tl.float32), v.to(tl.float32)
        total = tl.dot(w, v, total, input_precision="ieee")
        if UNIT == "p":
            a += BK
            first += BK
        else:
            ends = left <= BK
            a += tl.where(ends, left, BK) if TAIL else BK
            line += ends.to(tl.int32)
            turn = line == win_w
            slab += turn.to(tl.int32)
            over = slab == win_h
            x += tl.where(ends, tap_w * VEC - first, BK)
            x += tl.where(turn, tap_h * VEC, 0) + tl.where(over, tap_d * VEC, 0)
            first = tl.where(ends, 0, first + BK)
            line = tl.where(turn, 0, line)
            slab = tl.where(over, 0, slab)
    _finish(total, out_ptr, bias_ptr, bias_step, group, m, p, outputs, plane, count, BIAS)


# ---- plans -----------------------------------------------------------------------------------------------------------


@functools.cache
def copy_kernel(dtype, shape, vec, tail, wide=False):
    """The Kernel that lays out tiles of a shape (BP positions, BC channels, warps)."""
    types = [pointer(dtype)] * 2 + ["i64" if wide and n[0] == "x" else "i32" for n in _COPY]
    bp, bc, warps = shape
    return Kernel(channels_last, types, (), warps, BP=bp, BC=bc, VEC=vec, TAIL=tail)


@functools.cache
def kernel(dtype, tile, unit, vec, out, run, tail, bias, upcast, wide=False):
    """The Kernel of a tile (BM, BN, BK, warps, stages)."""
    bm, bn, bk, warps, stages = tile
    types = [pointer(dtype)] * 4 + ["i64" if wide and n[0] in "xst" else "i32" for n in _SUMS]
    consts = {"BM": bm, "BN": bn, "BK": bk, "UNIT": unit, "VEC": vec, "OUT": out, "RUN": run, "TAIL": tail}
    return Kernel(implicit, types, (), warps, stages, **consts, BIAS=bias, UPCAST=upcast)


def narrow(tile, run, taps):
    """The tile with BK no larger than a run needs, and no more stages than there are steps."""
    bm, bn, bk, warps, stages = tile
    bk = min(bk, max(16, power_of_2(run)))
    return bm, bn, bk, warps, min(stages, max(2, taps * blocks(run, bk)))


def choose(arch, s, units):
    """The largest tile that the outputs fill, and of which there are enough for the multiprocessors; of few steps none
    that leaves no room for another block, whose loads hide that it waits.
    """
    *tiles, last = pick(TILES, arch)
    if s.outputs <= 32:
        return last
    short = s.filled * prod(s.win) < SHORT * tiles[0][2]
    fitting = [t for t in tiles if t[0] < 2 * s.outputs and not (short and t[0] * t[1] > 128 * 128)]
    enough = lambda t: blocks(s.outputs, t[0]) * blocks(s.count, t[1]) * s.groups >= units  # noqa: E731
    return next(filter(enough, fitting), fitting[-1])


class Shape:
    """The words but the addresses, by name; dims are (d, h, w)."""

    def __init__(self, words):
        self.bias_step, self.images, self.groups, self.outputs, self.channels = words[:5]
        self.xn, self.xc, *self.x = words[5:10]
        self.size, self.out, self.win, self.step, self.pad, self.dil = (words[i : i + 3] for i in range(10, 28, 3))
        self.plane = prod(self.out)
        self.count = self.plane * self.images
        self.filled = words[28]

    def wide(self):
        """Whether offsets need 64 bits."""
        counts = self.images, self.channels * self.groups, *self.size
        return sum(abs(s) * n for s, n in zip((self.xn, self.xc, *self.x), counts, strict=True)) >= BIG

    def adjacent(self):
        """Whether windows of one tap meet every position, which lie in order, at multiples of four elements."""
        if prod(self.win) > 1 or set(self.step) != {1} or set(self.pad) != {0} or self.size != self.out:
            return False
        row, pitch = [], 1
        for n, s in zip(self.size[::-1], self.x[::-1], strict=True):
            row.append(n == 1 or s == pitch)
            pitch *= n
        return all(row) and all(n % 4 == 0 for n in (self.plane, self.xn, self.xc))


def _vector(*numbers):
    """The largest of 8, 4, 2, 1 that divides all."""
    return gcd(8, *numbers)


def by_positions(s, dtype, tile, bias, upcast):
    """What launches windows of one tap on the input as it lies."""
    vec, run, out = _vector(s.xn, s.xc), _vector(s.channels), _vector(s.plane)
    tile = narrow(tile, s.channels, 1)
    made = kernel(dtype, tile, "p", vec, out, run, s.channels % tile[2] > 0, bias, upcast, s.wide())
    grid = blocks(s.outputs, tile[0]) * blocks(s.count, tile[1]), s.groups, 1
    args = (s.bias_step, s.count // out, s.outputs, s.channels // run, s.filled // run, s.plane // out)
    args += (s.xn // vec, s.xc // vec, s.channels * s.xc // vec, *s.out[1:], 0, 0, 0, 1, 1, 1, 0, 0, 0)
    return lambda gpu, w, x, to, b: made(gpu, grid, w, x, to, b, *args)


class Met:
    """What the windows meet, with channels adjacent: a copy with zeros around it, or the input as it lies."""

    def __init__(self, s):
        several = [n > 1 for n in s.win]
        low = [min(0, (n - 1) * d) for n, d in zip(s.win, s.dil, strict=True)]
        self.low = [m - p for m, p in zip(low, s.pad, strict=True)]
        self.take = [1 if more else t for more, t in zip(several, s.step, strict=True)]
        reach = zip(s.out, s.step, s.win, s.dil, several, strict=True)
        self.size = [(o - 1) * t + (n - 1) * abs(d) + 1 if more else o for o, t, n, d, more in reach]
        self.step = [t if more else 1 for more, t in zip(several, s.step, strict=True)]
        self.wide = s.groups * s.filled
        self.merged = s.win[2] > 1 and s.dil[2] == 1 and s.groups == 1
        height, width = self.size[1:]
        self.strides = [height * width * self.wide, width * self.wide, self.wide]
        self.image = prod(self.size) * self.wide
        self.copied = not self._lies(s)
        if not self.copied:
            self.step, self.strides, self.image = s.step, s.x, s.xn
        self.origin = sum(-m * stride for m, stride in zip(low, self.strides, strict=True))

    def _lies(self, s):
        inside = all(
            m >= 0 and m + t * (n - 1) < have
            for m, t, n, have in zip(self.low, self.take, self.size, s.size, strict=True)
        )
        near = s.xc == 1 and s.filled == s.channels and (not self.merged or s.x[2] == s.channels)
        return inside and near and set(s.pad) == {0} and all(n % 8 == 0 for n in (s.xn, *s.x))


def copying(s, met, dtype, shape=None):
    """What writes the copy: a function (gpu, input, copy)."""
    vec, plane = _vector(s.filled), prod(met.size)
    channels = s.channels * s.groups
    least = power_of_2(met.wide)
    shape = shape or (COPY if least >= COPY[1] else (COPY[0] * COPY[1] // least, least, COPY[2]))
    made = copy_kernel(dtype, shape, vec, channels % shape[1] > 0, s.wide())
    grid = blocks(plane, shape[0]), blocks(met.wide, shape[1]), s.images
    args = (channels, met.wide // vec, s.xn, s.xc, *s.x, *s.size, *met.low, *met.take, plane, *met.size[1:])
    return lambda gpu, x, y: made(gpu, grid, x, y, *args)


def by_channels(s, dtype, tile, bias, upcast):
    """What launches sums over a layout with channels adjacent."""
    met = Met(s)
    vec, out = _vector(s.filled), _vector(s.plane)
    (td, th, tw), (wd, wh, ww) = (d * n for d, n in zip(s.dil, met.strides, strict=True)), s.win
    run, ww, tw = (ww * s.filled, 1, 0) if met.merged else (s.filled, ww, tw)
    tile = narrow(tile, run, wd * wh * ww)
    made = kernel(dtype, tile, "c", vec, out, vec, run % tile[2] > 0, bias, upcast, s.wide() or met.image >= BIG)
    grid = blocks(s.outputs, tile[0]) * blocks(s.count, tile[1]), s.groups, 1
    args = (s.bias_step, s.count // out, s.outputs, run // vec, prod(s.win) * s.filled // vec, s.plane // out)
    args += (met.image // vec, 0, s.filled // vec, *s.out[1:])
    args += tuple(t * n // vec for t, n in zip(met.step, met.strides, strict=True))
    args += (wd, wh, ww, (td - wh * th) // vec, (th - ww * tw) // vec, tw // vec)
    if not met.copied:
        return lambda gpu, w, x, to, b: made(gpu, grid, w, x, to, b, *args)
    copy, nbytes, origin = copying(s, met, dtype), 2 * met.image * s.images, 2 * met.origin

    def run(gpu, w, x, to, b):
        y, owner = gpu.allocate(nbytes)
        copy(gpu, x, y)
        made(gpu, grid, w, y + origin, to, b, *args)
        del owner  # what is launched next waits for these launches, as they are in one stream

    return run


def steps(dtype, gpu, words, bias, tile=None):
    """What launches a convolution of those words (without the addresses): a function (gpu, weights, x, out, bias)."""
    s, upcast = Shape(words), gpu.arch == 75
    tile = tile or choose(gpu.arch, s, gpu.units)
    return (by_positions if s.adjacent() else by_channels)(s, dtype, tile, bias, upcast)


def build(dtype):
    """The plan of one dtype: a function (gpu, words)."""
    known = functools.lru_cache(4096)(lambda gpu, words, bias: steps(dtype, gpu, words, bias))

    def plan(gpu, words):
        w, x, out, bias = words[:4]
        known(gpu, tuple(words[4:]), bias != 0)(gpu, w, x, out, bias)

    return plan


def variants(arch):
    """{label: Kernel}: every tile in both orders of the input, one with ragged runs, the copies."""
    found, upcast = {}, arch == 75
    for tile in pick(TILES, arch):
        size = "x".join(map(str, tile[:3]))
        found[f"channels f16 {size}"] = kernel("f16", tile, "c", 8, 8, 8, False, False, upcast)
        found[f"positions f16 {size}"] = kernel("f16", tile, "p", 8, 8, 8, False, False, upcast)
    tile = pick(TILES, arch)[-2]
    found["channels bf16 bias, ragged"] = kernel("bf16", tile, "c", 8, 4, 8, True, True, upcast)
    found["channels f16 few"] = kernel("f16", narrow(tile, 28, 7), "c", 4, 8, 4, True, True, upcast)
    found["positions f16 by 4"] = kernel("f16", tile, "p", 4, 4, 8, False, True, upcast)
    found["copy f16"] = copy_kernel("f16", COPY, 8, False)
    found["copy f16 few"] = copy_kernel("f16", (1024, 4, 4), 4, True)
    return found
