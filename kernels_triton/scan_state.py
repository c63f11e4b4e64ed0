"""Recurrences along tokens, one token after the other: matrices of state, diagonal ones, short convolutions. Words and
what they mean are those of kernels_numba/scan_state.py; of `state_scan`, scratch is unused.

A program has the rows of a head and some of its columns in registers. Gradients are in scan_state_vjp.py.
"""

import functools

import triton
import triton.language as tl

from .launch import Kernel, blocks, pointer, power_of_2
from .tiles import exponential, warps_for

FLOATS = ("f32", "f64")
KINDS = ("head", "row", "outer")
TOKENS, CHANNELS, LANES = 8, 128, 128


def shape(rows, width):
    """(rows, columns) of a program's tile; tensorlib/ops/scan_state.py counts columns in the same way."""
    down = power_of_2(rows)
    return down, min(64, max(16, 1024 // down))


@triton.jit
def decay_of(w, i, j, known_i, known_j, table, KIND: tl.constexpr):
    """W_t of a token whose log_w is at w."""
    if KIND == "head":
        found = exponential(tl.load(w), True)
    elif KIND == "row":
        found = exponential(tl.load(w + i, mask=known_i, other=0.0), True)[:, None]
    else:
        found = exponential(tl.load(w + j, mask=known_j, other=0.0)[None, :] * table, True)
    return found


@triton.jit
def next_state(state, k, v, decay, a, b, i, j, known_i, known_j, DELTA: tl.constexpr):
    """S after a token."""
    key, value = tl.load(k + i, mask=known_i, other=0.0), tl.load(v + j, mask=known_j, other=0.0)
    new = state * decay + key[:, None] * value[None, :]
    if DELTA:
        moved = tl.sum(tl.load(a + i, mask=known_i, other=0.0)[:, None] * state, 0)
        new += tl.load(b + i, mask=known_i, other=0.0)[:, None] * moved[None, :]
    return new


@triton.jit
def state_scan(
    y, last, past, q, k, v, w, a, b, rates, qn, qt, kn, kt, vn, vt, wn, wt, an, at, bn, bt, length, heads, groups, rows,
    width, rh, rk, rv, KIND: tl.constexpr, BEFORE: tl.constexpr, DELTA: tl.constexpr, PAST: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """All tokens of one head (program axis 0: of one sequence), for some columns (axis 1)."""
    place = tl.program_id(0).to(tl.int64)
    n = place // heads
    h = place - n * heads
    group = h // (heads // groups)
    i, j = tl.arange(0, ROWS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    known_i, known_j = i < rows, j < width
    known = known_i[:, None] & known_j[None, :]
    here = (place * rows + i)[:, None] * width + j[None, :]
    state, table = tl.zeros([ROWS, COLUMNS], y.dtype.element_ty), 0.0
    if PAST:
        state = tl.load(past + here, mask=known, other=0.0)
    if KIND == "outer":
        table = tl.load(rates + (h * rh + (i * rk)[:, None] + (j * rv)[None, :]), mask=known, other=0.0)
    step: tl.constexpr = 1 if KIND == "head" else 2
    q += n * qn + group * rows
    k += n * kn + group * rows
    v += n * vn + h * width
    w += n * wn + (h if step == 1 else h * (rows if KIND == "row" else width))
    if DELTA:
        a += n * an + h * rows
        b += n * bn + h * rows
    y += (n * length * heads + h) * width
    for _ in range(length):
        query = tl.load(q + i, mask=known_i, other=0.0)[:, None]
        decay = decay_of(w, i, j, known_i, known_j, table, KIND)
        new = next_state(state, k, v, decay, a, b, i, j, known_i, known_j, DELTA)
        out = tl.sum(query * (state if BEFORE else new), 0)
        tl.store(y + j, out, mask=known_j)
        state = new
        q += qt
        k += kt
        v += vt
        w += wt
        y += heads * width
        if DELTA:
            a += at
            b += bt
    tl.store(last + here, state, mask=known)


@triton.jit
def linear_scan(a, b, out, past, lanes, n, inner, step, PAST: tl.constexpr, BLOCK: tl.constexpr):
    """Recurrences of a block of lanes; one of them is a place in [outer, inner]."""
    p = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    known = p < lanes
    row = p // inner
    at = row * n * inner + (p - row * inner)
    if step < 0:
        at += (n - 1) * inner
    h = tl.zeros([BLOCK], out.dtype.element_ty)
    if PAST:
        h = tl.load(past + p, mask=known, other=0.0)
    for t in range(n):
        x = tl.load(b + at, mask=known, other=0.0)
        factor = tl.load(a + at, mask=known, other=0.0)
        if PAST:
            h = factor * h + x
        else:
            h = tl.where(t == 0, x, factor * h + x)
        tl.store(out + at, h, mask=known)
        at += step * inner


@triton.jit
def causal_conv(
    y, last, past, x, xn, xt, weight, wc, wk, bias, length, width, BIAS: tl.constexpr, TAPS: tl.constexpr,
    TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A tile of tokens (program axis 0, sequence after sequence) and channels (axis 1)."""
    before: tl.constexpr = TAPS - 1
    tiles, pid = tl.cdiv(length + before, TOKENS), tl.program_id(0).to(tl.int64)
    n = pid // tiles
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    t = (pid - n * tiles) * TOKENS + tl.arange(0, TOKENS)
    inside = c < width
    total = tl.zeros([TOKENS, CHANNELS], y.dtype.element_ty)
    if BIAS:
        total += tl.load(bias + c, mask=inside, other=0.0)[None, :]
    row = t - before
    for i in tl.static_range(TAPS):
        row = t + i - before
        found = tl.load(
            x + n * xn + (row * xt)[:, None] + c[None, :],
            mask=((row >= 0) & (row < length))[:, None] & inside[None, :], other=0.0,
        )  # fmt: skip
        if before > 0:
            found += tl.load(
                past + ((n * before + row + before) * width)[:, None] + c[None, :],
                mask=((row < 0) & (row < length))[:, None] & inside[None, :], other=0.0,
            )  # fmt: skip
        if i == 0 and before > 0:
            to = last + ((n * before + t - length) * width)[:, None] + c[None, :]
            tl.store(to, found, mask=((t >= length) & (t < length + before))[:, None] & inside[None, :])
        total += found * tl.load(weight + c * wc + i * wk, mask=inside, other=0.0)[None, :]
    to = y + ((n * length + t) * width)[:, None] + c[None, :]
    tl.store(to, total, mask=(t < length)[:, None] & inside[None, :])


@functools.cache
def state_kernel(dtype, kind, before, delta, past, tile):
    """The Kernel of `state_scan`."""
    types = (*(pointer(dtype),) * 10, *("i64",) * 20)
    return Kernel(
        state_scan, types, (), warps_for(tile[0] * tile[1], 16 if delta else 32), 1, KIND=kind, BEFORE=before,
        DELTA=delta, PAST=past, ROWS=tile[0], COLUMNS=tile[1],
    )  # fmt: skip


@functools.cache
def linear_kernel(dtype, past):
    """The Kernel of `linear_scan`."""
    return Kernel(linear_scan, (*(pointer(dtype),) * 4, *("i64",) * 4), (), 1, 3, PAST=past, BLOCK=LANES)


@functools.cache
def conv_kernel(dtype, bias, taps):
    """The Kernel of `causal_conv`."""
    cell = pointer(dtype)
    types = (cell, cell, cell, cell, "i64", "i64", cell, "i64", "i64", cell, "i64", "i64")
    return Kernel(causal_conv, types, (), 4, 1, BIAS=bias, TAPS=taps, TOKENS=TOKENS, CHANNELS=CHANNELS)


def operands(words):
    """(addresses of q, k, v, w, a, b and A; their strides; N, T, H, G, K, V; strides of A) of words[3:31]."""
    addresses, strides, sizes = words[3:9], words[9:21], words[21:27]
    return [*addresses, words[27]], strides, sizes, words[28:31]


def _state(dtype, kind, *features):
    def plan(gpu, words):
        addresses, strides, (n, *sizes), steps = operands(words)
        tile = shape(sizes[3], sizes[4])
        kernel = state_kernel(dtype, kind, "before" in features, "delta" in features, words[2] != 0, tile)
        addresses = [x or words[0] for x in addresses]
        grid = (n * sizes[1], blocks(sizes[4], tile[1]), 1)
        kernel(gpu, grid, words[0], words[1], words[2] or words[0], *addresses, *strides, *sizes, *steps)

    return plan


def _linear(dtype):
    def plan(gpu, words):
        a, b, out, past, outer, n, inner, step = words
        kernel = linear_kernel(dtype, past != 0)
        kernel(gpu, (blocks(outer * inner, LANES), 1, 1), a, b, out, past or out, outer * inner, n, inner, step)

    return plan


def _conv(dtype):
    def plan(gpu, words):
        y, last, past, x, xn, xt, weight, wc, wk, bias, n, length, width, taps = words[:14]
        kernel = conv_kernel(dtype, bias != 0, taps)
        grid = (n * blocks(length + taps - 1, TOKENS), blocks(width, CHANNELS), 1)
        kernel(gpu, grid, y, last, past, x, xn, xt, weight, wc, wk, bias or weight, length, width)

    return plan


def build(name, *params, source=None):
    """See kernels_triton/__init__.py; names and params as in kernels_numba/scan_state.py."""
    if params[0] not in FLOATS:
        return None
    return {"state_scan": _state, "linear_scan": _linear, "causal_conv": _conv}[name](*params)


def variants(arch):
    """Mamba 1's and 2's, RWKV 6's and 7's shapes, and the others."""
    found = {
        "mamba f32": state_kernel("f32", "outer", False, False, True, shape(16, 1536)),
        "mamba2 f32": state_kernel("f32", "head", False, False, True, shape(128, 64)),
        "rwkv6 f32": state_kernel("f32", "row", True, False, True, shape(64, 64)),
        "rwkv7 f32": state_kernel("f32", "row", False, True, True, shape(64, 64)),
    }
    return found | {"linear_scan f32": linear_kernel("f32", True), "causal_conv f32": conv_kernel("f32", True, 4)}
