"""Attention of few queries (decoding): the caches are read once, as they lie, at the memory's speed.

The keys are cut into ranges of a fixed size; a thread takes (KV head, range) pairs and leaves, per query, the maximum,
the sum and the weighted values of that range. `merge` joins the ranges. The ranges do not depend on the number of
threads, so neither do the results. The heads of a group share every load of K and V.
The argument block's first 13 words are those of `attention.py`.
"""

from . import lanes, levels
from .attention import cap_of, end_key, factor, first_key, keys_of, lowest, start_of, take_query, tiny
from .lanes import MEMORY, between, exp2, fma, greater, inline, shared, tanh
from .simd import (
    arg,
    ld_f32,
    ld_f32x16,
    splat_f32x16,
    st_f32,
    st_f32x16,
    vadd,
    vdiv,
    vmul,
    vsub,
    zero_f32x16,
)

_put = MEMORY["f32"].put
_FOLDS = [getattr(lanes, f"fold{bit}") for bit in (1, 2, 4, 8)]
_swap1, _swap2, _swap4, _swap8 = lanes.swap1, lanes.swap2, lanes.swap4, lanes.swap8


def _scores(width, rows, memory):
    """f(q, k, step, s): dot products of `rows` queries with 16 keys, to s as [key][lane], 1, 2 or 4 lanes per key.

    Every K vector is loaded once; the sums over lanes are folded, rows first, as soon as two are there, so that few are
    alive at a time. A fourth lane without a row repeats the third.
    """
    vectors, count = (width + 15) // 16, _lanes_per_key(rows)
    lines = ["def scores(q, k, step, s):"]
    lines += [f"    q{g}_{d} = ld_f32x16(q + {(g * vectors + d) * 64})" for g in range(rows) for d in range(vectors)]
    for j in range(16):
        for d in range(vectors):
            rest, address = width - 16 * d, f"k + {16 * d * memory.size}"
            lines.append(f"    x = ld({address})" if rest >= 16 else f"    x = part({address}, {rest})")
            lines += [f"    z{g} = " + (f"fma(q{g}_{d}, x, z{g})" if d else f"vmul(q{g}_{d}, x)") for g in range(rows)]
        lines.append("    k += step")
        for g in range(count):
            lines += _pile(j * count + g, f"z{min(g, rows - 1)}")
    scope = dict(globals(), ld=memory.ld, part=memory.part, **{f"fold{i}": f for i, f in enumerate(_FOLDS)})
    exec("\n".join(lines), scope)
    return shared(scope["scores"])


def _pile(i, name):
    """Lines that add vector number i to a binary counter of folds; every sixteenth completes a vector of sums."""
    lines = [f"    y = {name}"]
    for level in range(4):
        if not i >> level & 1:
            return [*lines, f"    y{level} = y"]
        lines.append(f"    y = fold{level}(y{level}, y)")
    return [*lines, f"    st_f32x16(s + {64 * (i // 16)}, y)"]


def _lanes_per_key(rows):
    return 4 if rows == 3 else rows


def _values(width, first, vectors, rows, memory):
    """f(p, v, step, n, o, so): o = P V for `rows` queries, dims 16 * first on; n keys; P as `_scores` lays it out."""
    copies = 2 if rows * vectors < 8 else 1  # enough independent sums to hide the latency of FMA
    cells = [(c, g, d) for c in range(copies) for g in range(rows) for d in range(vectors)]
    lines = ["def values(p, v, step, n, o, so):"]
    lines += [f"    o{c}_{g}_{d} = zero_f32x16()" for c, g, d in cells]

    def body(c, indent):
        for d in range(vectors):
            rest, address = width - 16 * (first + d), f"v + {16 * (first + d) * memory.size}"
            lines.append(f"{indent}x{d} = ld({address})" if rest >= 16 else f"{indent}x{d} = part({address}, {rest})")
        for g in range(rows):
            lines.append(f"{indent}y = splat_f32x16(ld_f32(p + {4 * g}))")
            lines.extend(f"{indent}o{c}_{g}_{d} = fma(x{d}, y, o{c}_{g}_{d})" for d in range(vectors))
        lines.append(f"{indent}v += step")
        lines.append(f"{indent}p += {4 * _lanes_per_key(rows)}")
        lines.append(f"{indent}k += 1")

    lines += ["    k = 0", f"    while k <= n - {copies}:"]
    for c in range(copies):
        body(c, "        ")
    if copies == 2:
        lines.append("    if k < n:")
        body(0, "        ")
    for g in range(rows):
        for d in range(vectors):
            total = f"vadd(o0_{g}_{d}, o1_{g}_{d})" if copies == 2 else f"o0_{g}_{d}"
            lines.append(f"    st_f32x16(o + {g} * so + {64 * (first + d)}, {total})")
    scope = dict(globals(), ld=memory.ld, part=memory.part)
    exec("\n".join(lines), scope)
    return shared(scope["values"])


def _all_values(width, rows, memory):
    """The same for all dims, in as many passes as the registers ask for."""
    most = 4 if levels.TARGET == "avx512vnni" else 2
    vectors = (width + 15) // 16
    scope = {f"f{c}": _values(width, c, min(most, vectors - c), rows, memory) for c in range(0, vectors, most)}
    calls = "\n".join(f"    {f}(p, v, step, n, o, so)" for f in scope)
    exec(f"def values(p, v, step, n, o, so):\n{calls}", scope)
    return inline(scope["values"])


def _softener(count):
    """f(s, low, high, cap, to): scores of keys low to high (from s on, whole vectors) become exp2(score - maximum).

    `count` lanes per key. Maxima and sums of the lanes 0 to count - 1 go to the vectors at `to` and `to` + 64.
    """

    @inline
    def most(x):
        x = greater(x, _swap8(x, x))
        x = greater(x, _swap4(x, x))
        x = greater(x, _swap2(x, x)) if count < 4 else x
        return greater(x, _swap1(x, x)) if count < 2 else x

    @inline
    def total(x):
        x = vadd(x, _swap8(x, x))
        x = vadd(x, _swap4(x, x))
        x = vadd(x, _swap2(x, x)) if count < 4 else x
        return vadd(x, _swap1(x, x)) if count < 2 else x

    @shared
    def soften(s, low, high, cap, to):
        m, sum_, low, high = lowest(), zero_f32x16(), low * count, high * count
        for j in range(low & -16, high, 16):
            x = ld_f32x16(s + 4 * j)
            if cap != 0:
                x = vmul(tanh(x), splat_f32x16(cap))
            x = between(x, low - j, high - j)
            st_f32x16(s + 4 * j, x)
            m = greater(m, x)
        m = most(m)
        for j in range(low & -16, high, 16):
            x = exp2(vsub(ld_f32x16(s + 4 * j), m))
            st_f32x16(s + 4 * j, x)
            sum_ = vadd(sum_, x)
        st_f32x16(to, m)
        st_f32x16(to + 64, total(sum_))

    return soften


def grouped(dtype, width, rows):
    """f(a, t, h, base, low, high, k, v, to, scratch): the records of the heads of KV head h, and of keys low to high of
    the range that begins with key `base` and at k and v; `to`: the first head's. See `_decode`.
    """
    memory, vectors = MEMORY[dtype], (width + 15) // 16
    # queries stay in registers: 16 of the 32 (or of the 16 pairs)
    rows = min(rows, max(1, (16 if levels.TARGET == "avx512vnni" else 8) // vectors))
    row, count = vectors * 64, _lanes_per_key(rows)
    scores, soften, values = _scores(width, rows, memory), _softener(count), _all_values(width, rows, memory)

    @shared
    def some(a, t, h, base, low, high, k, v, record, scratch):
        """`rows` heads from h on."""
        s, records = scratch + rows * row + 256, arg(a, 24) * (row + 64)
        for g in range(rows):
            q = arg(a, 13) + t * arg(a, 14) + (h + g) * arg(a, 15)
            take_query(q, width, factor(a), scratch + g * row)
        for j in range(low & -16, high, 16):
            # the last 16 rows may have to begin earlier: scores computed twice are the same, those behind stay unused
            begin = min(j, arg(a, 8) - 16 - base)
            scores(scratch, k + begin * arg(a, 18), arg(a, 18), s + 4 * count * begin)
        results = s + 4 * count * (arg(a, 23) + 16)
        soften(s, low, high, cap_of(a), results)
        values(s + 4 * count * low, v + low * arg(a, 21), arg(a, 21), high - low, record + 64, records)
        for g in range(rows):
            st_f32(record + g * records, ld_f32(results + 4 * g))
            st_f32(record + g * records + 4, ld_f32(results + 64 + 4 * g))

    @inline
    def every(a, t, h, base, low, high, k, v, to, scratch):
        group = arg(a, 1) // arg(a, 2)
        for g in range(0, group, rows):
            g = min(g, group - rows)
            some(a, t, h * group + g, base, low, high, k, v, to + g * arg(a, 24) * (row + 64), scratch)

    return every


def _decode(dtype, width, rows):
    """Per (query, head, range of keys): maximum (f32 at byte 0), sum (at 4) and sum of weighted values (from 64 on).

    args: 13 Q (f32), 14 its stride of t, 15 of heads, 16 K, 17 its stride of heads, 18 of rows, 19 V, 20, 21 likewise,
    22 records, laid out [T][heads][ranges] of row + 64 bytes with row = 4 * D padded to 16, 23 keys per range (a
    multiple of 16), 24 ranges, 25 scratch, 26 its bytes per thread: rows * row + 16 * keys per range + 1024,
    27 how many threads have scratch. The caches have at least 16 rows.
    """
    heads_of_group, size = grouped(dtype, width, rows), ((width + 15) // 16 + 1) * 64

    @shared
    def task(a, h, r, scratch):
        group, keys, base = arg(a, 1) // arg(a, 2), keys_of(a), r * arg(a, 23)
        k, v = arg(a, 16) + h * arg(a, 17) + base * arg(a, 18), arg(a, 19) + h * arg(a, 20) + base * arg(a, 21)
        for t in range(arg(a, 0)):
            position = start_of(a) + t
            low = max(first_key(a, position) - base, 0)
            high = min(end_key(a, position, keys) - base, arg(a, 23))
            if low < high:
                record = arg(a, 22) + ((t * arg(a, 1) + h * group) * arg(a, 24) + r) * size
                heads_of_group(a, t, h, base, low, high, k, v, record, scratch)

    def decode(a, tid, nth):
        team, per, start = min(nth, arg(a, 27)), arg(a, 23), start_of(a)
        first = first_key(a, start) // per
        ranges = max(0, (end_key(a, start + arg(a, 0) - 1, keys_of(a)) + per - 1) // per - first)
        n = arg(a, 2) * ranges
        if tid < team:
            for i in range(n * tid // team, n * (tid + 1) // team):
                task(a, i // ranges, first + i % ranges, arg(a, 25) + tid * arg(a, 26))

    return decode


@shared
def join(record, step, first, end, width, to):
    """The result of a (query, head) from its records `first` to `end`; overwrites their heads."""
    m, total = lowest(), zero_f32x16()
    for r in range(first, end):
        m = greater(m, splat_f32x16(ld_f32(record + r * step)))
    for r in range(first, end):
        weight = exp2(vsub(splat_f32x16(ld_f32(record + r * step)), m))
        total = fma(splat_f32x16(ld_f32(record + r * step + 4)), weight, total)
        st_f32x16(record + r * step, weight)
    for d in range(0, width, 16):
        o = zero_f32x16()
        for r in range(first, end):
            o = fma(ld_f32x16(record + r * step + 64 + 4 * d), ld_f32x16(record + r * step), o)
        _put(to + 4 * d, vdiv(o, greater(tiny(), total)), width - d)


def _merge():
    """Joins the ranges of every (query, head).

    args: 13 records, 14 keys per range, 15 ranges, 16 out (f32), 17 its stride of t, 18 of heads
    """

    def merge(a, tid, nth):
        heads, width, per, keys = arg(a, 1), arg(a, 3), arg(a, 14), keys_of(a)
        step, n = (width + 15 & -16) * 4 + 64, arg(a, 0) * heads
        for i in range(n * tid // nth, n * (tid + 1) // nth):
            position = start_of(a) + i // heads
            first, end = first_key(a, position), end_key(a, position, keys)
            end = (end + per - 1) // per if first < end else 0
            to = arg(a, 16) + i // heads * arg(a, 17) + i % heads * arg(a, 18)
            join(arg(a, 13) + i * arg(a, 15) * step, step, first // per, end, width, to)

    return merge


def build(name, *params, source=None):
    """decode (dtype of the caches, D, heads taken together), merge."""
    if name == "merge" and not params:
        return _merge()
    if name != "decode" or len(params) != 3 or params[0] not in MEMORY:
        return None
    return _decode(*params) if 0 < params[1] <= 256 and 0 < params[2] <= 4 else None
