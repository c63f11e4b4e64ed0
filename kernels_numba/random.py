"""Random numbers from a counter (Philox 4x32-10), and the choice of the next token.

Philox: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011). A block of four u32 is a
function of a 128-bit counter and a 64-bit key alone, so any number of threads and any backend give the same numbers.

`sample` follows Hugging Face's order: repetition penalty, temperature, top-k, top-p, min-p, then one draw. Nothing is
sorted: a threshold is found by bisection over the bit patterns of floats, each step one pass of vectors that counts or
sums what lies above it. Ties with the k-th logit stay, as there; of ties at the edge of top-p only as many as are
needed stay, lowest token first. NaN logits are never chosen; if no logit is finite, token 0 is.
"""

import numpy as np
from llvmlite import ir
from numba import njit, types

from .simd import (
    _I32,
    _const,
    _make,
    _splat,
    _to,
    arg,
    argf,
    hmax,
    hsum,
    ld_f32,
    ld_f32x16,
    ld_i32,
    ld_i64,
    splat_f32x16,
    st_f32,
    st_f32x16,
    st_i32,
    st_i64,
    st_u32,
    vmax,
    zero_f32x16,
)
from .vmath import vexp

jit = njit(error_model="numpy")

# ---- Philox ---------------------------------------------------------------------------------------------------------

_M0, _M1, _W0, _W1 = (np.uint64(v) for v in (0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85))
_LOW, _HALF, _ELEVEN = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(11)


@jit
def philox_block(low, high, key):
    """Four u32 (as u64) for the 128-bit counter (low, high) and the key; int64 arguments, taken as bits."""
    low, high, key = np.uint64(low), np.uint64(high), np.uint64(key)
    c0, c1, c2, c3 = low & _LOW, low >> _HALF, high & _LOW, high >> _HALF
    k0, k1 = key & _LOW, key >> _HALF
    for _ in range(10):
        x, y = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (y >> _HALF) ^ c1 ^ k0, y & _LOW, (x >> _HALF) ^ c3 ^ k1, x & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@jit
def uniform53(counter, seed):
    """A float64 in [0, 1): the upper 53 bits of the first two words of a block."""
    c0, c1, _, _ = philox_block(counter, 0, seed)
    return np.float64(np.int64(((c0 << _HALF) | c1) >> _ELEVEN)) * 2.0**-53


def philox(a, tid, nth):
    """Words: out (u32), blocks, key, low and high half of the first counter. Block i is that of (low + i, high)."""
    out, n, key, low, high = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4)
    for i in range(n * tid // nth, n * (tid + 1) // nth):
        c0, c1, c2, c3 = philox_block(low + i, high, key)
        st_u32(out + 16 * i, c0)
        st_u32(out + 16 * i + 4, c1)
        st_u32(out + 16 * i + 8, c2)
        st_u32(out + 16 * i + 12, c3)


# ---- what the selection is made of ----------------------------------------------------------------------------------

BLOCK = 64  # logits per maximum
LOWEST = -3.4028234663852886e38  # of the finite f32
TINY_LOG = -87.0  # below it e**x counts as 0: vexp would give some 1e-38 to tokens that are masked with -inf
NEVER = float("-inf")


def _order(bits):
    """Float bits as an integer of the same order, and back: the magnitude of a negative number counts down."""
    return bits if bits >= 0 else bits ^ 0x7FFFFFFF


order = jit(_order)


def _clean(b, t, x):
    """NaN becomes -inf"""
    return b.select(b.fcmp_ordered("ord", x, x), x, _const(x.type, NEVER))


def _where_at_least(b, t, x, threshold, value):
    """value in the lanes where x >= threshold (a scalar), else 0"""
    test = b.fcmp_ordered(">=", x, _splat(b, _to(b, threshold, t[1], "f32"), 16))
    return b.select(test, value, _const(x.type, 0.0))


clean = _make("clean", lambda x: x, _clean, 1)
where_at_least = _make("where_at_least", lambda x, threshold, value: x, _where_at_least, 3)
bits_of = _make("bits_of", lambda x: types.int32, lambda b, t, x: b.bitcast(_to(b, x, t[0], "f32"), _I32), 1)
f32_of = _make("f32_of", lambda i: types.float32, lambda b, t, i: b.bitcast(b.trunc(i, _I32), ir.FloatType()), 1)


@jit
def best_of(x, n):
    """(maximum, first index of it) of n floats that may hold NaN; (-inf, 0) if none is above -inf."""
    top, at, i = NEVER, 0, 0
    while i + BLOCK <= n:
        u = vmax(clean(ld_f32x16(x + 4 * i)), clean(ld_f32x16(x + 4 * i + 64)))
        v = vmax(clean(ld_f32x16(x + 4 * i + 128)), clean(ld_f32x16(x + 4 * i + 192)))
        here = hmax(vmax(u, v))
        if here > top:
            top, at = here, i
        i += BLOCK
    while i < n:
        here = ld_f32(x + 4 * i)
        if here > top:
            top, at = here, i
        i += 1
    while top > NEVER and ld_f32(x + 4 * at) != top:
        at += 1
    return top, at


@jit
def scaled(logits, n, temperature, y):
    """logits / temperature to y, NaN as -inf, and -inf up to a multiple of BLOCK."""
    t = splat_f32x16(temperature)
    i = 0
    while i + 16 <= n:
        st_f32x16(y + 4 * i, clean(ld_f32x16(logits + 4 * i) / t))
        i += 16
    while i < n:
        x = ld_f32(logits + 4 * i) / np.float32(temperature)
        st_f32(y + 4 * i, x if x == x else NEVER)
        i += 1
    while i % BLOCK:
        st_f32(y + 4 * i, NEVER)
        i += 1


@jit
def penalised(logits, n, temperature, y, penalty, history, first, last):
    """Makes the tokens of history[first:last] less likely: logits above 0 divided by the penalty, others multiplied."""
    for i in range(first, last):
        token = ld_i64(history + 8 * i)
        if 0 <= token < n:
            x = ld_f32(logits + 4 * token)
            # from the logit itself, so that a token that occurs twice is penalised once
            x = x / np.float32(penalty) if x > 0 else x * np.float32(penalty)
            if x == x:
                st_f32(y + 4 * token, x / np.float32(temperature))


@jit
def count_from(x, n, threshold):
    """How many of n floats, a multiple of 16, are at least the threshold."""
    one, total = splat_f32x16(1.0), zero_f32x16()
    for i in range(0, n, 16):
        total = total + where_at_least(ld_f32x16(x + 4 * i), threshold, one)
    return hsum(total)


@jit
def mass_from(p, n, threshold):
    """Sum of those of n floats, a multiple of 16, that are at least the threshold: never grows with the threshold."""
    mass, i = 0.0, 0
    while i < n:
        end = min(n, i + 1024)
        total = zero_f32x16()
        while i < end:
            x = ld_f32x16(p + 4 * i)
            total = total + where_at_least(x, threshold, x)
            i += 16
        mass += hsum(total)
    return mass


@jit
def kth_largest(x, n, k, top):
    """The k-th largest of n floats, a multiple of 16, of which `top` is the largest; LOWEST if fewer are finite."""
    low, high = order(np.int64(bits_of(LOWEST))), order(np.int64(bits_of(top)))
    while low < high:
        middle = (low + high + 1) >> 1
        if count_from(x, n, f32_of(order(middle))) >= k:
            low = middle
        else:
            high = middle - 1
    return f32_of(order(low))


@jit
def mass_threshold(p, n, mass):
    """The largest threshold above which (and at which) lies at least that mass; p in [0, 1]."""
    low, high = 0, np.int64(bits_of(1.0))
    while low < high:
        middle = (low + high + 1) >> 1
        if mass_from(p, n, f32_of(middle)) >= mass:
            low = middle
        else:
            high = middle - 1
    return f32_of(low)


# ---- top-k, probabilities, the draw ---------------------------------------------------------------------------------


@jit
def keep_top(y, n, k, top, maxima, ids, out):
    """Tokens of at least the k-th largest value, in order: ids (i32) and values, -inf up to a multiple of 16; count."""
    blocks = (n + BLOCK - 1) // BLOCK
    padded = (blocks + 15) // 16 * 16
    for b in range(padded):
        at = y + 4 * BLOCK * b
        here = NEVER
        if b < blocks:
            pair = vmax(ld_f32x16(at), ld_f32x16(at + 64))
            here = hmax(vmax(pair, vmax(ld_f32x16(at + 128), ld_f32x16(at + 192))))
        st_f32(maxima + 4 * b, here)
    # k blocks have a maximum of at least this, so k values are: the others need no look
    bound = kth_largest(maxima, padded, k, top) if k <= blocks else LOWEST
    count = 0
    for b in range(blocks):
        if ld_f32(maxima + 4 * b) >= bound:
            for i in range(BLOCK * b, min(n, BLOCK * b + BLOCK)):
                x = ld_f32(y + 4 * i)
                st_i32(ids + 4 * count, i)
                st_f32(out + 4 * count, x)
                count += x >= bound
    limit = kth_largest(out, padded_with(out, count, NEVER), k, top)
    few = 0
    for i in range(count):
        x = ld_f32(out + 4 * i)
        st_i32(ids + 4 * few, ld_i32(ids + 4 * i))
        st_f32(out + 4 * few, x)
        few += x >= limit
    padded_with(out, few, NEVER)
    return few


@jit
def padded_with(x, n, value):
    """Fills x up to a multiple of 16 with value; returns that multiple."""
    while n % 16:
        st_f32(x + 4 * n, value)
        n += 1
    return n


@jit
def drawn(p, n, top_p, min_p, u):
    """Position that u in [0, 1) draws from what top-p and min-p leave of n weights p, the largest of which is 1."""
    end = (n + 15) // 16 * 16
    threshold, ties, mass = np.float32(0.0), n, mass_from(p, end, 0.0)
    if top_p < 1.0:
        target = max(top_p, 1e-9) * mass
        threshold = mass_threshold(p, end, target)
        above = mass_from(p, end, f32_of(np.int64(bits_of(threshold)) + 1))
        ties = max(1, np.int64(np.ceil((target - above) / threshold)))
        mass = above + min(ties, count_from(p, end, threshold)) * threshold
    if min(min_p, 1.0) > threshold:
        threshold, ties = np.float32(min(min_p, 1.0)), n
        mass = mass_from(p, end, threshold)
    total, last = 0.0, 0
    for b in range(0, end, 16):
        if hmax(ld_f32x16(p + 4 * b)) < threshold:
            continue
        for i in range(b, min(n, b + 16)):
            x = ld_f32(p + 4 * i)
            if x < threshold or x == 0.0:
                continue
            if x == threshold:
                ties -= 1
                if ties < 0:
                    continue
            total += x
            last = i
            if total > u * mass:
                return i
    return last


@jit
def to_probabilities(x, n, top, p):
    """e**(x - top) for n floats, a multiple of 16."""
    high = splat_f32x16(top)
    for i in range(0, n, 16):
        d = ld_f32x16(x + 4 * i) - high
        st_f32x16(p + 4 * i, where_at_least(d, TINY_LOG, vexp(d)))


@jit
def choose(logits, n, params, history, length, state, scratch):
    """The next token."""
    temperature, top_k = argf(params, 0), ld_i64(params + 8)
    penalty, window = argf(params, 4), ld_i64(params + 40)
    first = max(0, length - window) if window > 0 else 0
    if penalty == 1.0:
        first = length
    size = (n + BLOCK - 1) // BLOCK * BLOCK
    y, ids, p, maxima = scratch, scratch + 8 * size, scratch + 12 * size, scratch + 16 * size
    if temperature > 0.0:
        scaled(logits, n, temperature, y)
        penalised(logits, n, temperature, y, penalty, history, first, length)
        top, at = best_of(y, n)
        if LOWEST <= top <= -LOWEST:
            values, count = y, n
            if 0 < top_k < n:
                values = scratch + 4 * size
                count = keep_top(y, n, top_k, top, maxima, ids, values)
            to_probabilities(values, (count + 15) // 16 * 16, top, p)
            u = uniform53(ld_i64(state + 8), ld_i64(state))
            st_i64(state + 8, ld_i64(state + 8) + 1)
            at = drawn(p, count, argf(params, 2), argf(params, 3), u)
            return np.int64(ld_i32(ids + 4 * at)) if values != y else at
    # greedy, or a temperature so low that the logits overflow
    if first == length:
        return best_of(logits, n)[1]
    scaled(logits, n, 1.0, y)
    penalised(logits, n, 1.0, y, penalty, history, first, length)
    return best_of(y, n)[1]


def sample(a, tid, nth):
    """Chooses a token, writes it to `out` and appends it to the history if that has room. One thread works.

    Words: logits (f32), how many (V >= 1), params, history (i64), its length (i64), state, scratch (17 * V + 2048
    bytes, aligned to 64), out (i64). State: i64 seed, i64 counter; a draw adds 1 to the counter.
    Params, eight bytes each: temperature (f64; 0: greedy, the lowest of equals), top_k (i64; 0: off), top_p (f64; 1:
    off), min_p (f64; 0: off), repetition penalty (f64; 1: off), how many of the last tokens it looks at (i64; 0: all),
    capacity of the history (i64).
    """
    if tid > 0:
        return
    params, history, length = arg(a, 2), arg(a, 3), arg(a, 4)
    count = ld_i64(length)
    token = choose(arg(a, 0), arg(a, 1), params, history, count, arg(a, 5), arg(a, 6))
    st_i64(arg(a, 7), token)
    if count < ld_i64(params + 48):
        st_i64(history + 8 * count, token)
        st_i64(length, count + 1)


def build(name, *params, source=None):
    """philox, sample: no parameters."""
    return {"philox": philox, "sample": sample}.get(name) if not params else None
