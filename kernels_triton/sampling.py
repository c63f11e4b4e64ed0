"""Choosing the next token: repetition penalty, temperature, top-k, top-p, min-p, one draw, as kernels_numba/random.py.

One program does it all, over logits that stay in the L2 cache, and all it depends on is in memory: a graph replays it.
Nothing is sorted: the k-th logit and the edge of top-p are found by bisection over the bit patterns of floats, three
bits in each pass, and tokens that do not stay have the weight 0. Weights are the CPU's bits; sums of them are rounded
in another order, so that a draw within 1e-7 of an edge between two tokens may be the neighbour.
"""

import triton
import triton.language as tl

from .launch import Kernel
from .philox import constant, philox_block, step

BLOCK, TILE = 4096, 1024  # elements of a plain pass; of one that compares with 8 thresholds
NEVER = tl.constexpr(float("-inf"))
LOWEST = tl.constexpr(-3.4028234663852886e38)
TINY_LOG = tl.constexpr(-87.0)  # below it e**x counts as 0
LOG2E, LN2_HIGH, LN2_LOW = tl.constexpr(1.4426950408889634), tl.constexpr(-0.693359375), tl.constexpr(2.12194440e-4)
P0, P1, P2 = tl.constexpr(5.0000001201e-1), tl.constexpr(1.6666665459e-1), tl.constexpr(4.1665795894e-2)
P3, P4, P5 = tl.constexpr(8.3334519073e-3), tl.constexpr(1.3981999507e-3), tl.constexpr(1.9875691500e-4)


@triton.jit
def real(params_ptr, i):
    """An f64 among the parameters"""
    return tl.load(params_ptr + i).to(tl.float64, bitcast=True)


@triton.jit
def clean(x):
    """NaN becomes -inf"""
    return tl.where(x == x, x, NEVER)


@triton.jit
def exp_of(x):
    """e**x for x in [-87, 0], as kernels_numba/vmath.py computes it"""
    n = x * LOG2E
    n = (n + 12582912.0) - 12582912.0
    r = tl.fma(n, constant(n, LN2_LOW), tl.fma(n, constant(n, LN2_HIGH), x))
    p = step(step(constant(r, P5), r, P4), r, P3)
    p = step(step(step(p, r, P2), r, P1), r, P0)
    power = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return (tl.fma(p, r * r, r) + 1.0) * power


@triton.jit
def scaled(logits_ptr, n, temperature, y_ptr, penalty, history_ptr, first, last, BLOCK: tl.constexpr):
    """(largest, first place of it) of logits / temperature, which go to y; those of the history are penalised"""
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + i, mask=i < n, other=0.0)
        tl.store(y_ptr + i, clean(tl.div_rn(x, temperature)), mask=i < n)
    tl.debug_barrier()
    for start in range(first, last, 1024):
        i = start + tl.arange(0, 1024)
        token = tl.load(history_ptr + i, mask=i < last, other=-1)
        inside = (token >= 0) & (token < n)
        x = tl.load(logits_ptr + token, mask=inside, other=0.0)
        x = tl.where(x > 0, tl.div_rn(x, penalty), x * penalty)
        tl.store(y_ptr + token, tl.div_rn(x, temperature), mask=inside & (x == x))
    tl.debug_barrier()
    top, at = tl.full([], NEVER, tl.float32), tl.full([], 0, tl.int64)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(y_ptr + i, mask=i < n, other=NEVER)
        here = tl.max(x, 0)
        place = tl.min(tl.where((x == here) & (i < n), i.to(tl.int64), n), 0)
        at = tl.where(here > top, place, at)
        top = tl.maximum(here, top)
    return top, at


@triton.jit
def rank_of(x):
    """f32 as u32 of the same order"""
    bits = x.to(tl.uint32, bitcast=True)
    return tl.where((bits >> 31) != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def kth_largest(y_ptr, n, k, TILE: tl.constexpr):
    """The k-th largest of y; the lowest finite number if fewer are finite"""
    found = tl.full([], 0, tl.uint32)
    for round_ in range(11):
        shift = 30 - 3 * round_
        bounds = found + (tl.arange(0, 8).to(tl.uint32) << shift)
        counts = tl.zeros([8], tl.int64)
        for start in range(0, n, TILE):
            i = start + tl.arange(0, TILE)
            rank = rank_of(tl.load(y_ptr + i, mask=i < n, other=NEVER))
            above = (rank[None, :] >= bounds[:, None]) & (i < n)[None, :]
            counts += tl.sum(above.to(tl.int32), 1)
        reached = (counts >= k) & ((tl.arange(0, 8) < 4) | (round_ > 0)) & (tl.arange(0, 8) > 0)  # 2 bits at first
        found += tl.sum(reached.to(tl.int32), 0).to(tl.uint32) << shift
    bits = tl.where((found >> 31) != 0, found ^ 0x80000000, found ^ 0xFFFFFFFF)
    return tl.maximum(bits.to(tl.float32, bitcast=True), LOWEST)


@triton.jit
def weights(y_ptr, p_ptr, n, top, limit, BLOCK: tl.constexpr):
    """p = e**(y - top) of what is at least `limit`, else 0; their sum"""
    mass = tl.zeros([], tl.float64)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        y = tl.load(y_ptr + i, mask=i < n, other=NEVER)
        d = y - top
        kept = (y >= limit) & (d >= TINY_LOG)
        p = tl.where(kept, exp_of(tl.where(kept, d, 0.0)), 0.0)
        tl.store(p_ptr + i, p, mask=i < n)
        mass += tl.sum(p, 0)
    tl.debug_barrier()
    return mass


@triton.jit
def edge_of(p_ptr, n, target, TILE: tl.constexpr):
    """The largest number so that weights of at least it have the sum `target`, or more"""
    found = tl.full([], 0, tl.int32)
    for round_ in range(10):
        shift = 27 - 3 * round_
        bounds = (found + (tl.arange(0, 8) << shift)).to(tl.float32, bitcast=True)
        masses = tl.zeros([8], tl.float64)
        for start in range(0, n, TILE):
            i = start + tl.arange(0, TILE)
            p = tl.load(p_ptr + i, mask=i < n, other=0.0)[None, :]
            masses += tl.sum(tl.where(p >= bounds[:, None], p, 0.0), 1)
        reached = (masses >= target) & (tl.arange(0, 8) > 0)
        found += tl.sum(reached.to(tl.int32), 0) << shift
    return found.to(tl.float32, bitcast=True)


@triton.jit
def above(p_ptr, n, threshold, BLOCK: tl.constexpr):
    """(sum of weights above the threshold, sum of those of at least it, how many these are)"""
    more, mass, count = tl.zeros([], tl.float64), tl.zeros([], tl.float64), tl.zeros([], tl.int64)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        p = tl.load(p_ptr + i, mask=i < n, other=0.0)
        more += tl.sum(tl.where(p > threshold, p, 0.0), 0)
        mass += tl.sum(tl.where(p >= threshold, p, 0.0), 0)
        count += tl.sum(((p >= threshold) & (i < n)).to(tl.int32), 0)
    return more, mass, count


@triton.jit
def drawn(p_ptr, n, threshold, ties, target, BLOCK: tl.constexpr):
    """The first token at which the sum of what stays exceeds `target`; the last that stays if none does. Weights above
    the threshold stay, and the first `ties` that equal it
    """
    total, equal = tl.zeros([], tl.float64), tl.zeros([], tl.int64)
    found, last = tl.full([], -1, tl.int64), tl.full([], 0, tl.int64)
    start = tl.full([], 0, tl.int64)
    while (start < n) & (found < 0):
        i = start + tl.arange(0, BLOCK)
        p = tl.load(p_ptr + i, mask=i < n, other=0.0)
        same = ((p == threshold) & (i < n)).to(tl.int32)
        stays = (p > threshold) | ((same != 0) & (equal + tl.cumsum(same, 0) <= ties))
        stays = stays & (p > 0.0)
        p = tl.where(stays, p, 0.0)
        sums = total + tl.cumsum(p.to(tl.float64), 0)
        place = tl.min(tl.where(stays & (sums > target), i, n), 0)
        found = tl.where(place < n, place, found)
        last = tl.maximum(last, tl.max(tl.where(stays, i, 0), 0))
        total += tl.sum(p.to(tl.float64), 0)
        equal += tl.sum(same, 0)
        start += BLOCK
    return tl.where(found >= 0, found, last)


@triton.jit
def choice(y_ptr, p_ptr, n, top, params_ptr, state_ptr, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """The token that one number draws, by the weights of y"""
    top_k, top_p, min_p = tl.load(params_ptr + 1), real(params_ptr, 2), real(params_ptr, 3)
    limit = tl.full([], NEVER, tl.float32)
    if (top_k > 0) & (top_k < n):
        limit = kth_largest(y_ptr, n, top_k, TILE)
    mass = weights(y_ptr, p_ptr, n, top, limit, BLOCK)
    seed, counter = tl.load(state_ptr), tl.load(state_ptr + 1)
    c0, c1, _c2, _c3 = philox_block(counter, tl.full([], 0, tl.int64), seed)
    u = (((c0.to(tl.uint64) << 32) | c1.to(tl.uint64)) >> 11).to(tl.int64).to(tl.float64) * (2.0**-53)
    threshold, ties = tl.full([], 0.0, tl.float32), n
    if top_p < 1.0:
        target = tl.maximum(top_p, 1e-9) * mass
        threshold = edge_of(p_ptr, n, target, TILE)
        more, _most, count = above(p_ptr, n, threshold, BLOCK)
        wanted = tl.ceil((target - more) / threshold.to(tl.float64)).to(tl.int64)
        ties = tl.maximum(wanted, 1)
        mass = more + tl.minimum(ties, count).to(tl.float64) * threshold.to(tl.float64)
    least = tl.minimum(min_p, 1.0)
    if least > threshold.to(tl.float64):
        threshold, ties = least.to(tl.float32), n
        _over, mass, _many = above(p_ptr, n, threshold, BLOCK)
    return drawn(p_ptr, n, threshold, ties, u * mass, BLOCK)


@triton.jit
def choose(
    logits_ptr, params_ptr, history_ptr, length_ptr, state_ptr, y_ptr, p_ptr, token_ptr, n, BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Chooses a token, writes it, appends it to the history if that has room; a draw adds 1 to the counter"""
    n = n.to(tl.int64)
    temperature, penalty = real(params_ptr, 0), real(params_ptr, 4)
    window, capacity, length = tl.load(params_ptr + 5), tl.load(params_ptr + 6), tl.load(length_ptr)
    first = tl.where(window > 0, tl.maximum(length - window, 0), 0)
    first = tl.where(penalty == 1.0, length, first)
    t, penalty = temperature.to(tl.float32), penalty.to(tl.float32)
    token = tl.full([], -1, tl.int64)
    if temperature > 0.0:
        top, _at = scaled(logits_ptr, n, t, y_ptr, penalty, history_ptr, first, length, BLOCK)
        if (top >= LOWEST) & (top <= -LOWEST):
            token = choice(y_ptr, p_ptr, n, top, params_ptr, state_ptr, BLOCK, TILE)
            tl.store(state_ptr + 1, tl.load(state_ptr + 1) + 1)
    if token < 0:  # greedy, or a temperature so low that the logits overflow
        _best, token = scaled(
            logits_ptr, n, tl.full([], 1.0, tl.float32), y_ptr, penalty, history_ptr, first, length, BLOCK
        )
    tl.store(token_ptr, token)
    if length < capacity:
        tl.store(history_ptr + length, token)
        tl.store(length_ptr, length + 1)


KERNEL = Kernel(choose, ("*fp32", *("*i64",) * 4, "*fp32", "*fp32", "*i64", "i64"), ("n",), warps=16, fuse=False,
                BLOCK=BLOCK, TILE=TILE)  # fmt: skip


def sample(gpu, words):
    """Words: logits (f32), how many, params, history, its length, state, scratch (8 bytes per logit), token."""
    logits, n, params, history, length, state, scratch, token = words
    weights_at = scratch + (4 * n + 15) // 16 * 16
    KERNEL(gpu, (1, 1, 1), logits, params, history, length, state, scratch, weights_at, token, n)
