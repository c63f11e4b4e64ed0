"""Attention over many queries: flash attention on register tiles of 6 queries by 64 keys.

Two kernels. `pack` widens a cache to f32 once: per KV head and block of 64 keys, K transposed (dim, key) and V
(key, dim padded to 16). `prefill` lets a thread take 48 queries of a head at a time; every packed block is used for all
of them while it is in the nearest cache, with an online softmax in base 2. Blocks that no query sees are skipped.

What lies outside a query's range never touches its result, not even as 0 * NaN: scores there are replaced, and V is
multiplied where all rows of a tile see the key, else row by row.

All kernels of attention (`attention_decode.py` too) begin their argument block with the same words:
  0 T   1 heads   2 KV heads   3 D   4 address of start or 0   5 start   6 address of length or 0
  7 length (-1: start + T)   8 rows of the caches   9 causal (0, 1)   10 window (0: none)   11 scale (f64)
  12 softcap (f64; 0: none)
Strides are in bytes. What a kernel adds from word 13 on stands in its docstring.
"""

from . import levels, simd
from .lanes import MEMORY, all_max, all_sum, between, exp2, fma, greater, inline, shared, tanh
from .simd import (
    arg,
    argf,
    constant,
    ld_f32,
    ld_f32x16,
    ld_i64,
    splat_f32x16,
    st_f32,
    st_f32x16,
    vadd,
    vdiv,
    vmul,
    vsub,
    zero_f32x16,
)
from .transpose import store_transposed

ROWS, KEYS, QUERIES = 6, 64, 48  # a register tile; queries that a thread takes at a time
LOG2E = 1.4426950408889634
lowest = constant("f32", 16, -3.0e38)  # the maximum of nothing
log2e = constant("f32", 16, LOG2E)
tiny = constant("f32", 16, 1e-30)  # the least sum that is divided by: nothing visible gives 0

# ---- who sees what --------------------------------------------------------------------------------------------------


@inline
def start_of(a):
    """Position of the first query."""
    return ld_i64(arg(a, 4)) if arg(a, 4) != 0 else arg(a, 5)


@inline
def keys_of(a):
    """How many keys there are; never more than the caches' rows."""
    n = arg(a, 7)
    if arg(a, 6) != 0:
        n = ld_i64(arg(a, 6))
    elif n < 0:
        n = start_of(a) + arg(a, 0)
    return max(0, min(n, arg(a, 8)))


@inline
def first_key(a, position):
    """First key that a query at this position sees."""
    return max(0, position - arg(a, 10) + 1) if arg(a, 10) > 0 else 0


@inline
def end_key(a, position, keys):
    """One past the last key that a query at this position sees."""
    if arg(a, 9) != 0:
        return max(0, min(keys, position + 1))
    return max(0, min(keys, position + arg(a, 10))) if arg(a, 10) > 0 else keys


@inline
def factor(a):
    """What queries are multiplied by: scores come out in base 2, or ready for tanh."""
    return argf(a, 11) / argf(a, 12) if argf(a, 12) != 0 else argf(a, 11) * LOG2E


@inline
def cap_of(a):
    """What tanh is multiplied by for scores in base 2; 0 without a softcap."""
    return argf(a, 12) * LOG2E


@shared
def take_query(q, width, scale, to):
    """One query to a row of f32 padded with zeros to a multiple of 16 dims, times scale."""
    for d in range(0, width, 16):
        st_f32x16(to + 4 * d, vmul(_part(q + 4 * d, width - d), splat_f32x16(scale)))


_part, _put, _lane0 = MEMORY["f32"].part, MEMORY["f32"].put, simd.extract(0)

# ---- packing --------------------------------------------------------------------------------------------------------


def _transposer(ld):
    """f(k, step, last, to): rows 0 to 15 of k (none beyond `last`) to lanes, dims to rows of 256 bytes."""
    rows = ", ".join(f"ld(k + min({i}, last) * step)" for i in range(16))
    scope = {"ld": ld, "store_transposed": store_transposed}
    exec(f"def transpose(k, step, last, to):\n    store_transposed(to, 256, {rows})", scope)
    return shared(scope["transpose"])


def _pack(dtype):
    """The caches of some KV heads as f32 blocks of 64 keys.

    args: 13 K, 14 its stride of heads, 15 of rows, 16 V, 17, 18 likewise, 19 packed K, 20 packed V, 21 first KV head,
    22 how many
    """
    size, part, transpose = MEMORY[dtype].size, MEMORY[dtype].part, _transposer(MEMORY[dtype].ld)
    element = getattr(simd, f"ld_{dtype}")

    @inline
    def pack_k(k, step, keys, width, to):
        for g in range(0, keys, 16):
            for d in range(0, width - 15, 16):
                transpose(k + g * step + d * size, step, keys - 1 - g, to + 256 * d + 4 * g)
        for j in range(keys):
            for d in range(width & -16, width):
                st_f32(to + 256 * d + 4 * j, element(k + j * step + d * size))

    @inline
    def pack_v(v, step, keys, width, to):
        row = (width + 15 & -16) * 4
        for j in range(keys):
            for d in range(0, width, 16):
                st_f32x16(to + j * row + 4 * d, part(v + j * step + d * size, width - d))

    def pack(a, tid, nth):
        width, keys, first = arg(a, 3), keys_of(a), first_key(a, start_of(a)) // KEYS
        block = KEYS * (width + 15 & -16) * 4
        head = (arg(a, 8) + KEYS - 1) // KEYS * block
        blocks = max(0, (keys + KEYS - 1) // KEYS - first)
        n = arg(a, 22) * blocks
        for i in range(n * tid // nth, n * (tid + 1) // nth):
            h, b = i // blocks, first + i % blocks
            count, to = min(KEYS, keys - b * KEYS), h * head + b * block
            k = arg(a, 13) + (arg(a, 21) + h) * arg(a, 14) + b * KEYS * arg(a, 15)
            v = arg(a, 16) + (arg(a, 21) + h) * arg(a, 17) + b * KEYS * arg(a, 18)
            pack_k(k, arg(a, 15), count, width, arg(a, 19) + to)
            pack_v(v, arg(a, 18), count, width, arg(a, 20) + to)

    return pack


# ---- a register tile ------------------------------------------------------------------------------------------------


def _tile(vectors, fresh):
    """f(a, sa, b, sb, n, c, sc): C += A B for 6 rows and 16 * `vectors` columns, n steps; everything f32 in memory.

    A's rows are sa bytes apart, B's sb, C's sc. `fresh`: C = A B; else every row of C is first multiplied by alpha, the
    vector at `state` + 192 * row + 128.
    """
    cells = [(i, j) for i in range(ROWS) for j in range(vectors)]
    lines = ["def tile(a, sa, b, sb, n, c, sc, state):"]
    lines += [f"    a{i} = a + {i} * sa" for i in range(ROWS)]
    for i, j in cells:
        old = f"vmul(ld_f32x16(c + {i} * sc + {64 * j}), ld_f32x16(state + {192 * i + 128}))"
        lines.append(f"    c{i}_{j} = {'zero_f32x16()' if fresh else old}")
    lines.append("    for k in range(n):")
    lines += [f"        b{j} = ld_f32x16(b + {64 * j})" for j in range(vectors)]
    for i in range(ROWS):
        lines.append(f"        x = splat_f32x16(ld_f32(a{i} + 4 * k))")
        lines += [f"        c{i}_{j} = fma(b{j}, x, c{i}_{j})" for j in range(vectors)]
    lines.append("        b += sb")
    lines += [f"    st_f32x16(c + {i} * sc + {64 * j}, c{i}_{j})" for i, j in cells]
    scope = dict(globals())
    exec("\n".join(lines), scope)
    return shared(scope["tile"])


@inline
def _capped(x, cap):
    return vmul(tanh(x), splat_f32x16(cap))


@inline
def _masked(x, mask, left):
    return fma(_part(mask, left), log2e(), x) if left > 0 else x


@shared
def soften(p, state, low, high, cap, mask, left):
    """One row of 64 scores at p becomes exp2(score - maximum); keys outside [low, high) count for nothing.

    mask: address of what is added to the scores (0: nothing), of which `left` elements exist.
    state: the running maximum and sum, and alpha, what everything summed before is to be multiplied by (3 vectors).
    """
    x0, x1, x2, x3 = ld_f32x16(p), ld_f32x16(p + 64), ld_f32x16(p + 128), ld_f32x16(p + 192)
    if cap != 0:
        x0, x1, x2, x3 = _capped(x0, cap), _capped(x1, cap), _capped(x2, cap), _capped(x3, cap)
    if mask != 0:
        x0, x1 = _masked(x0, mask, left), _masked(x1, mask + 64, left - 16)
        x2, x3 = _masked(x2, mask + 128, left - 32), _masked(x3, mask + 192, left - 48)
    if low > 0 or high < KEYS:
        low, high = min(max(low, 0), KEYS), min(max(high, 0), KEYS)
        x0, x1 = between(x0, low, high), between(x1, low - 16, high - 16)
        x2, x3 = between(x2, low - 32, high - 32), between(x3, low - 48, high - 48)
    before = ld_f32x16(state)
    m = greater(before, all_max(greater(greater(x0, x1), greater(x2, x3))))
    alpha = exp2(vsub(before, m))
    x0, x1, x2, x3 = exp2(vsub(x0, m)), exp2(vsub(x1, m)), exp2(vsub(x2, m)), exp2(vsub(x3, m))
    st_f32x16(p, x0)
    st_f32x16(p + 64, x1)
    st_f32x16(p + 128, x2)
    st_f32x16(p + 192, x3)
    st_f32x16(state, m)
    st_f32x16(state + 64, fma(ld_f32x16(state + 64), alpha, vadd(vadd(x0, x1), vadd(x2, x3))))
    st_f32x16(state + 128, alpha)


@shared
def _one_row(p, v, row, begin, end, o):
    """o += p[begin:end] V[begin:end] for one query"""
    for k in range(begin, end):
        x = splat_f32x16(ld_f32(p + 4 * k))
        for d in range(0, row, 64):
            st_f32x16(o + d, fma(ld_f32x16(v + k * row + d), x, ld_f32x16(o + d)))


# ---- prefill --------------------------------------------------------------------------------------------------------


def _stepper():
    """f(...): 6 queries meet one block of keys."""
    per = 4 if levels.TARGET == "avx512vnni" else 1  # 24 accumulators of 512 bits need 32 registers of as many
    scores, wide, narrow = _tile(per, True), _tile(per, False), _tile(1, False)
    half = _tile(2, True) if per == 4 else scores

    @shared
    def step(a, position, keys, base, kt, v, width, row, q, o, state, p, mask):
        last, cap = position + ROWS - 1, cap_of(a)
        if first_key(a, position) >= base + KEYS or end_key(a, last, keys) <= base:
            return
        needed = min(end_key(a, last, keys) - base, KEYS)
        for c in range(0, 4 * needed, 64 * per):
            if needed <= 32:
                half(q, row, kt + c, 256, width, p + c, 256, 0)
            else:
                scores(q, row, kt + c, 256, width, p + c, 256, 0)
        for i in range(ROWS):
            low, high = first_key(a, position + i) - base, end_key(a, position + i, keys) - base
            more = mask + i * arg(a, 29) if mask != 0 else 0
            soften(p + 256 * i, state + 192 * i, low, high, cap, more, keys - base)
        # keys begin to end are seen by all six
        begin = min(max(first_key(a, last) - base, 0), KEYS)
        end = max(begin, min(end_key(a, position, keys) - base, KEYS))
        whole = row // (64 * per) * (64 * per)
        for c in range(0, whole, 64 * per):
            wide(p + 4 * begin, 256, v + begin * row + c, row, end - begin, o + c, row, state)
        for c in range(whole, row, 64):
            narrow(p + 4 * begin, 256, v + begin * row + c, row, end - begin, o + c, row, state)
        for i in range(ROWS):
            low, high = first_key(a, position + i) - base, min(end_key(a, position + i, keys) - base, KEYS)
            _one_row(p + 256 * i, v, row, max(low, 0), min(begin, high), o + i * row)
            _one_row(p + 256 * i, v, row, max(end, low), high, o + i * row)

    return step


def _prefill():
    """Attention of all queries with packed caches.

    args: 13 Q (f32), 14 its stride of t, 15 of heads, 16 packed K, 17 packed V, 18 out (f32), 19 first KV
    head, 20 how many, 21 scratch, 22 its bytes per thread: 48 * (2 row + 192) + 1536 with row = 4 * D padded to 16,
    23 how many threads have scratch, 24 stride of out's t, 25 of its heads, 26 mask (f32, adjacent along the keys; 0:
    none), 27 its stride of batches, 28 of heads, 29 of t, 30 how many heads a batch has
    """
    step = _stepper()

    @shared
    def task(a, h, r0, scratch):
        width, keys, start, heads = arg(a, 3), keys_of(a), start_of(a), arg(a, 1)
        row, rows = (width + 15 & -16) * 4, min(QUERIES, arg(a, 0) - r0)
        q, o, state = scratch, scratch + QUERIES * row, scratch + 2 * QUERIES * row
        p = state + QUERIES * 192
        for i in range((rows + ROWS - 1) // ROWS * ROWS):
            t = r0 + min(i, rows - 1)
            take_query(arg(a, 13) + t * arg(a, 14) + h * arg(a, 15), width, factor(a), q + i * row)
            st_f32x16(state + 192 * i, lowest())
            st_f32x16(state + 192 * i + 64, zero_f32x16())
            for d in range(0, row, 64):
                st_f32x16(o + i * row + d, zero_f32x16())
        blocks = (arg(a, 8) + KEYS - 1) // KEYS
        packed = (h // (heads // arg(a, 2)) - arg(a, 19)) * blocks * KEYS * row
        end, mask = (end_key(a, start + r0 + rows - 1, keys) + KEYS - 1) // KEYS, arg(a, 26)
        if mask != 0:
            mask += h // arg(a, 30) * arg(a, 27) + h % arg(a, 30) * arg(a, 28) + r0 * arg(a, 29)
        for b in range(first_key(a, start + r0) // KEYS, end):
            at = packed + b * KEYS * row
            kt, v = arg(a, 16) + at, arg(a, 17) + at
            for i in range(0, rows, ROWS):
                at, more = i * row, mask + i * arg(a, 29) + b * 256 if mask != 0 else 0
                step(a, start + r0 + i, keys, b * KEYS, kt, v, width, row, q + at, o + at, state + 192 * i, p, more)
        for i in range(rows):
            to, k = arg(a, 18) + (r0 + i) * arg(a, 24) + h * arg(a, 25), all_sum(ld_f32x16(state + 192 * i + 64))
            for d in range(0, width, 16):
                x = vdiv(ld_f32x16(o + i * row + 4 * d), greater(tiny(), k))
                # a mask may hide every key: a visible one of the largest score adds 1 to the sum
                _put(to + 4 * d, zero_f32x16() if _lane0(k) < 0.5 else x, width - d)

    def prefill(a, tid, nth):
        team, blocks, group = min(nth, arg(a, 23)), (arg(a, 0) + QUERIES - 1) // QUERIES, arg(a, 1) // arg(a, 2)
        for i in range(arg(a, 20) * group * blocks):
            # there and back again: under a causal mask the later of a head's blocks cost more
            place = i % team if i // team % 2 == 0 else team - 1 - i % team
            if place == tid:
                task(a, arg(a, 19) * group + i // blocks, i % blocks * QUERIES, arg(a, 21) + tid * arg(a, 22))

    return prefill


def build(name, *params, source=None):
    """pack (dtype of the caches), prefill."""
    if name == "pack" and len(params) == 1 and params[0] in MEMORY:
        return _pack(*params)
    return _prefill() if name == "prefill" and not params else None
