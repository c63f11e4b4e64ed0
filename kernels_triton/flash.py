"""Flash attention, the functions of a GPU: many queries, few (split-KV), sequences of several lengths, paged KV.

A program takes BM rows, each a query of a head (`pack` heads of a KV head stand beside one another, so that few queries
fill a tile), and a segment of the keys. Its blocks of BN keys are of two kinds: those that all of its rows see whole,
visited by a loop that compares nothing, and those at the edges, visited by a second one. The softmax is online, in base
2, its scale folded into one multiplication (Dao, arXiv:2307.08691). Causal blocks begin with the longest.

f16 and bf16 queries are multiplied as they are. f32 queries of narrow caches, and the weights, become two terms of the
cache's dtype each, 17 to 22 bits at the speed of narrow products; rows of queries are scaled by a power of 2 before.
f32 caches are multiplied in PRECISION. float8 caches are widened in registers, from their bits.
Each of several segments stores a record (values relative to the segment's maximum; maximum and sum). Of few rows it
then counts with an atomic that releases what it stored; the last one, which has acquired all of them, joins the records
in the order of the segments.
A key that a query does not see has weight 0, and those behind all that a tile sees are not read; but NaN or infinity in
a value that another query of the tile sees, or that lies before a window in its first block, spreads.
"""

from collections import namedtuple

import triton
import triton.language as tl

from .attention_decode import LOWEST, inside, lined, record
from .float8 import widened

LOG2E = tl.constexpr(1.4426950408889634)


# What a kernel is compiled for. BM, BN: tile of rows and keys; D: dims of a tile, EVEN: all of them are there. STEP:
# what strides and width are counted in, so that the compiler knows what divides them. SAME: V has K's strides of rows.
# PACKED: several heads stand beside one another. LEFT, RIGHT: whether what a query sees is bounded. PLACE & 1: start is
# an address, & 2: length is. PARTS: terms of a product's operands, 0 if they are f32, in PRECISION. EIGHT: see
# float8.py. PAGE: rows of a page or 0. SPLIT: 0, or there are segments: so many rows of a tile (a power of 2) the last
# one joins, -1: another kernel. LOADS: q, k, v are descriptors of (heads, rows, dims), for the copy engine; 2: one loop
# visits all blocks, and compares in those at the edges. The rest: whether there is such.
Config = namedtuple(
    "Config",
    "BM BN D EVEN STEP SAME PACKED LEFT RIGHT PLACE CAP MASK SLOPES PARTS PRECISION EIGHT PAGE VARLEN SPLIT LSE LOADS",
    defaults=(False,),
)

# ---- who sees what --------------------------------------------------------------------------------------------------


@triton.jit
def place(start_ptr, length_ptr, start, length, t, rows, PLACE: tl.constexpr):
    """(position of the first query, keys)"""
    if PLACE & 1:
        start = tl.load(start_ptr)
    if PLACE & 2:
        length = tl.load(length_ptr)
    else:
        length = tl.where(length < 0, start + t, length)
    return start.to(tl.int32), tl.maximum(0, tl.minimum(length, rows)).to(tl.int32)


@triton.jit
def edges(first, last, keys, left, right, C: tl.constexpr):
    """Queries at positions first to last: (first key seen by any, first and end of those seen by all, end of any)"""
    lo = keys * 0
    inner = lo
    hi = keys
    outer = keys
    if C.LEFT:
        lo = tl.minimum(tl.maximum(first - left, 0), keys)
        inner = tl.minimum(tl.maximum(last - left, 0), keys)
    if C.RIGHT:
        hi = tl.maximum(lo, tl.minimum(keys, last + right + 1))
        outer = tl.maximum(0, tl.minimum(keys, first + right + 1))
    return lo, inner, outer, hi


@triton.jit
def span(lo, inner, outer, hi, segment, segments, BN: tl.constexpr):
    """The blocks of a segment: (first, first and end of the whole ones, end)"""
    begin, end = lo // BN, tl.cdiv(hi, BN)
    per = tl.cdiv(end - begin, segments)
    b0 = tl.minimum(begin + segment * per, end)
    b1 = tl.minimum(b0 + per, end)
    f0 = tl.minimum(tl.maximum(tl.cdiv(inner, BN), b0), b1)
    f1 = tl.minimum(tl.maximum(outer // BN, f0), b1)
    return b0, f0, f1, b1


@triton.jit
def seen(at, n, keys, left, right, C: tl.constexpr):
    """Whether queries at positions `at` see keys n, of shapes that broadcast"""
    found = (n < keys) & (at == at)
    if C.LEFT:
        found &= n >= at - left
    if C.RIGHT:
        found &= n <= at + right
    return found


@triton.jit
def sequence_of(starts, sequences, block, BQ: tl.constexpr):
    """Which sequence a block of BQ queries belongs to: sequence i has those from starts[i] // BQ + i on"""
    low, high = sequences * 0, sequences
    while high - low > 1:
        middle = (low + high) // 2
        before = tl.load(starts + middle) // BQ + middle <= block
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    return low


# ---- a block of keys ------------------------------------------------------------------------------------------------


@triton.jit
def capped(x, cap):
    """cap * log2(e) * tanh(x)"""
    return (cap * LOG2E) * (1.0 - 2.0 / (1.0 + tl.exp2(x * (2.0 * LOG2E))))


@triton.jit
def parts(x, TYPE: tl.constexpr):
    """f32 as the sum of two numbers of a narrow dtype"""
    high = x.to(TYPE)
    return high, (x - high.to(tl.float32)).to(TYPE)


@triton.jit
def rows_of(ptr, stride, page_stride, table, n0, keys, width, C: tl.constexpr, EDGE: tl.constexpr):
    """Rows n0 to n0 + BN - 1 of K or V; 0 where there are none"""
    n, d = n0 + tl.arange(0, C.BN), tl.arange(0, C.D)
    if C.PAGE:
        page = tl.load(table + n // C.PAGE, mask=n < keys, other=0)
        at = ptr + (page.to(tl.int64) * page_stride + (n % C.PAGE) * stride)[:, None] + d[None, :]
    else:
        at = ptr + n0.to(tl.int64) * stride + (tl.arange(0, C.BN) * stride)[:, None] + d[None, :]
    if EDGE and C.EVEN:
        x = tl.load(at, mask=(n < keys)[:, None], other=0.0)
    elif EDGE:
        x = tl.load(at, mask=(n < keys)[:, None] & (d < width)[None, :], other=0.0)
    elif C.EVEN:
        x = tl.load(at)
    else:
        x = tl.load(at, mask=(d < width)[None, :], other=0.0)
    x = widened(x, C.EIGHT)
    return x if C.PARTS else x.to(tl.float32)


@triton.jit
def fetched(ptr, stride, page_stride, table, n0, keys, width, C: tl.constexpr, EDGE: tl.constexpr):
    """`rows_of`, or what the copy engine brings; `stride` is the head then"""
    if C.LOADS:
        return ptr.load([stride, n0, 0]).reshape((C.BN, C.D))
    else:
        return rows_of(ptr, stride, page_stride, table, n0, keys, width, C, EDGE)


@triton.jit
def products(high, low, k, C: tl.constexpr):
    """q k^T"""
    if C.PARTS == 2:
        return tl.dot(high, k.T, tl.dot(low, k.T))
    else:
        return tl.dot(high, k.T, input_precision=C.PRECISION)


@triton.jit
def adjusted(s, factor, cap, at, n, keys, mask_rows, slope, C: tl.constexpr, EDGE: tl.constexpr):
    """Products as scores in base 2: scaled, capped, with the terms of a mask and of ALiBi"""
    s = s * factor
    if C.CAP:
        s = capped(s, cap)
    if C.MASK:
        if EDGE:
            s += tl.load(mask_rows[:, None] + n[None, :], mask=(n < keys)[None, :], other=0.0) * LOG2E
        else:
            s += tl.load(mask_rows[:, None] + n[None, :]) * LOG2E
    if C.SLOPES:
        s -= slope[:, None] * tl.abs(n[None, :] - at[:, None]).to(tl.float32)
    return s


@triton.jit
def visit(block, acc, total, top, query, k_rows, v_rows, row, bounds, C: tl.constexpr, EDGE: tl.constexpr):
    """(weighted values, their weights' sum, maximum) with one more block of keys"""
    high, low, factor, cap = query
    at, mask_rows, slope = row
    table, keys, width, left, right, f0, f1 = bounds
    n0 = block * C.BN
    n = n0 + tl.arange(0, C.BN)
    s = products(high, low, fetched(*k_rows, table, n0, keys, width, C, EDGE), C)
    if C.CAP or C.MASK or C.SLOPES:
        s = adjusted(s, factor, cap, at, n, keys, mask_rows, slope, C, EDGE)
        if EDGE:
            s = tl.where(seen(at[:, None], n[None, :], keys, left, right, C), s, float("-inf"))
        new = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new[:, None])
    elif EDGE:  # scaled before it is masked: the scale may be 0
        s = tl.where(seen(at[:, None], n[None, :], keys, left, right, C), s * factor, float("-inf"))
        new = tl.maximum(top, tl.max(s, 1))
        p = tl.exp2(s - new[:, None])
    else:
        if C.LOADS == 2:  # noqa: SIM102 - the compiler knows the one, not the other
            if (block < f0) | (block >= f1):
                s = tl.where(seen(at[:, None], n[None, :], keys, left, right, C), s, float("-inf"))
        most = tl.max(s * factor, 1) if C.PARTS == 2 else tl.max(s, 1) * factor
        new = tl.maximum(top, most)
        p = tl.exp2(s * factor - new[:, None])
    alpha = tl.exp2(top - new)
    total = total * alpha + tl.sum(p, 1)
    acc = acc * alpha[:, None]
    v = fetched(*v_rows, table, n0, keys, width, C, EDGE)
    if C.PARTS == 2:
        p_high, p_low = parts(p, v.dtype)
        acc = tl.dot(p_high, v, tl.dot(p_low, v, acc))
    else:
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=C.PRECISION)
    return acc, total, new


@triton.jit
def query_of(q_ptr, where, more, C: tl.constexpr):
    """`terms_of` the rows of Q in memory"""
    begin, q1, head, steps, mine, qt, qh = where
    k_ptr, width, scale, cap = more
    if C.LOADS:
        x = q_ptr.load([head, q1, 0]).reshape((C.BM, C.D))
        return x, x, scale * LOG2E, cap
    else:
        d = tl.arange(0, C.D)[None, :]
        TYPE: tl.constexpr = tl.float32 if C.PARTS == 0 else tl.float16 if C.EIGHT else k_ptr.dtype.element_ty
        x = tl.load(q_ptr + begin * qt + head * qh + steps[:, None] + d, mask=mine[:, None] & (d < width), other=0.0)
        return terms_of(x, scale, cap, TYPE, C)


@triton.jit
def start_of(ptr, g, head_step, step, page_step, C: tl.constexpr):
    """What `fetched` begins with, for a KV head"""
    if C.LOADS:
        return ptr, g, page_step
    else:
        return ptr + g.to(tl.int64) * head_step, step, page_step


@triton.jit
def terms_of(x, scale, cap, TYPE: tl.constexpr, C: tl.constexpr):
    """(rows of Q, their second terms, what products are multiplied by, cap)"""
    factor = tl.abs(scale) / cap if C.CAP else tl.abs(scale) * LOG2E
    x = tl.where(scale < 0, -x, x)
    if C.PARTS == 2:
        # a power of 2 near the row's largest, so that the terms keep their bits
        largest = tl.max(tl.abs(x), 1).to(tl.int32, bitcast=True)
        power = tl.minimum(tl.maximum(largest >> 23, 1), 253)
        x = x * ((254 - power) << 23).to(tl.float32, bitcast=True)[:, None]
        high, low = parts(x, TYPE)
        return high, low, factor * (power << 23).to(tl.float32, bitcast=True)[:, None], cap
    else:
        x = x.to(TYPE)
        return x, x, factor, cap


@triton.jit
def attend(query, k_rows, v_rows, row, bounds, blocks, C: tl.constexpr):
    """(weighted values, their weights' sum, maximum) of the blocks of a segment"""
    BM: tl.constexpr = C.BM
    D: tl.constexpr = C.D
    acc, total = tl.zeros((BM, D), tl.float32), tl.zeros((BM,), tl.float32)
    top = tl.full((BM,), LOWEST, tl.float32)
    b0, f0, f1, b1 = blocks
    bounds += (f0, f1)
    if C.LOADS == 2:
        for block in range(b0, b1):
            acc, total, top = visit(block, acc, total, top, query, k_rows, v_rows, row, bounds, C, False)
    else:
        for block in range(f0, f1):
            acc, total, top = visit(block, acc, total, top, query, k_rows, v_rows, row, bounds, C, False)
        for i in range(f0 - b0 + b1 - f1):
            block = tl.where(b0 + i < f0, b0 + i, f1 + b0 + i - f0)
            acc, total, top = visit(block, acc, total, top, query, k_rows, v_rows, row, bounds, C, True)
    return acc, total, top


@triton.jit
def row_of(r, head, q1, t, first, pack, mask, slopes_ptr, C: tl.constexpr):
    """(positions, addresses in the mask, slopes in base 2) of a tile's rows"""
    i, slope = q1 + lined(r, pack, 1, 0, C), r.to(tl.float32)
    mask_ptr, mb, mh, mt, batch = mask
    heads = head + lined(r, pack, 0, 1, C)
    at = heads // batch * mb + heads % batch * mh + tl.minimum(i, t - 1).to(tl.int64) * mt
    mask_rows = mask_ptr + at
    if C.SLOPES:
        slope = tl.load(slopes_ptr + heads) * LOG2E
    return first + i, mask_rows, slope


@triton.jit
def result(pointers, acc, total, top, where, steps, C: tl.constexpr):
    """Stores the quotient and, if asked for, log2 of the sum."""
    out_ptr, more_ptr = pointers
    r, mine, begin, head, pack, width = where
    ot, oh, _, t, _, _ = steps
    d = tl.arange(0, C.D)[None, :]
    acc = acc / tl.where(total == 0, 1.0, total)[:, None]
    at = out_ptr + begin * ot + head * oh + lined(r, pack, ot, oh, C)[:, None] + d
    tl.store(at, acc.to(out_ptr.dtype.element_ty), mask=mine[:, None] & (d < width))
    if C.LSE:
        sums = tl.where(total == 0, float("inf"), top + tl.log2(total))
        tl.store(more_ptr + head.to(tl.int64) * t + begin + r, sums, mask=mine)


@triton.jit
def turn(blocks, together, count):
    """(block, pack of heads) of a program: blocks of `together` packs, out of `count`, in turns"""
    before, number = tl.program_id(0) // (blocks * together) * together, tl.program_id(0) % (blocks * together)
    turns = tl.minimum(together, count - before)
    return number // turns, before + number % turns


# ---- the kernel -----------------------------------------------------------------------------------------------------


# fmt: off
@triton.jit
def attention(q_ptr, k_ptr, v_ptr, out_ptr, more_ptr, stats_ptr, counter_ptr, starts_ptr, key_starts_ptr, table_ptr,
              start_ptr, length_ptr, mask_ptr, slopes_ptr, start, length, t, rows, width, heads, pack, group, q_blocks,
              together, segments, sequences, qt, qh, kh, kr, kp, vh, vr, vp, ot, oh, mb, mh, mt, batch, table_step,
              left, right, scale, cap, C: tl.constexpr):
    """See the docstring of the file; strides in elements. Programs: (blocks of rows of `together` packs of heads in
    turns, other packs; segment).
    """
    # fmt: on
    if C.STEP > 1:
        width, qt, qh, kh, kr, kp = width * C.STEP, qt * C.STEP, qh * C.STEP, kh * C.STEP, kr * C.STEP, kp * C.STEP
        vh, vr, vp, ot, oh = vh * C.STEP, vr * C.STEP, vp * C.STEP, ot * C.STEP, oh * C.STEP
    block, head = turn(q_blocks, together, heads // pack)
    head *= pack
    r = tl.arange(0, C.BM)
    per = C.BM // pack if C.PACKED else C.BM
    q0, table = t * 0, table_ptr
    if C.VARLEN:
        sequence = sequence_of(starts_ptr, sequences, block, per)
        q0 = tl.load(starts_ptr + sequence).to(tl.int32)
        block -= q0 // per + sequence
        t = tl.minimum(tl.load(starts_ptr + sequence + 1).to(tl.int32), t) - q0
        k0 = tl.load(key_starts_ptr + sequence)
        if C.PAGE:
            keys = tl.maximum(0, tl.minimum(k0, rows)).to(tl.int32)
            table += sequence.to(tl.int64) * table_step
        else:
            keys = (tl.minimum(tl.load(key_starts_ptr + sequence + 1), rows) - k0).to(tl.int32)
            k_ptr += k0 * kr
            v_ptr += k0 * vr
        first = keys - t
    else:
        if C.RIGHT:
            block = q_blocks - 1 - block
        first, keys = place(start_ptr, length_ptr, start, length, t, rows, C.PLACE)
    q1 = block * per  # the first query, within its sequence
    if q1 < t:
        begin = (q0 + q1).to(tl.int64)
        mine = inside(r, t - q1, pack, C)
        at_q = (begin, q1, head, lined(r, pack, qt, qh, C), mine, qt, qh)
        query = query_of(q_ptr, at_q, (k_ptr, width, scale, cap), C)
        k_rows = start_of(k_ptr, head // group, kh, kr, kp, C)
        v_rows = start_of(v_ptr, head // group, vh, kr if C.SAME else vr, kp if C.SAME else vp, C)
        row = row_of(r, head, q1, t, first, pack, (mask_ptr, mb, mh, mt, batch), slopes_ptr, C)
        last = first + tl.minimum(q1 + per, t) - 1
        lo, inner, outer, hi = edges(first + q1, last, keys, left, right, C)
        visited = span(lo, inner, outer, hi, tl.program_id(1), segments, C.BN)
        acc, total, top = attend(query, k_rows, v_rows, row, (table, hi, width, left, right), visited, C)
        where, steps = (r, mine, begin, head, pack, width), (ot, oh, heads, t, t - q1, segments)
        if C.SPLIT:
            record((out_ptr, more_ptr, stats_ptr, counter_ptr), acc, total, top, where, steps, C)
        else:
            result((out_ptr, more_ptr), acc, total, top, where, steps, C)
