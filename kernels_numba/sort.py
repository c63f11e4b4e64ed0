"""Sorting, selecting and searching dense rows; every result is stable and the same for any number of threads.

Elements become signed integers of the same order: floats by their bits, -0.0 as 0.0, every NaN above infinity;
descending order complements them. (key, index) pairs of short rows are merged, those of long ones sorted by one byte
after the other, least significant first; bytes that all keys share cost nothing. Where k < n, a row is read once:
elements below the largest of the k smallest so far are gathered, and when there is no more room the k smallest chosen.

A pair takes 1 word where the key has at most 32 bits and n < 2**31 (key above 31 bits of index), else 2.
"""

from . import functions, simd
from .scalar import BITS, FLOATS, caster, loader, select, storer

MEMORY = {k: v for k, v in vars(simd).items() if k in ("arg", "argf") or k.startswith(("ldi_", "sti_"))}
# largest bits of a float that are not NaN's
INFINITY = {"f8e4m3": 0x7E, "f8e5m2": 0x7C, "f16": 0x7C00, "bf16": 0x7F80, "f32": 0x7F800000, "f64": 0x7FF << 52}
TABLES = 256 * 8  # bytes of counters in front of a thread's pairs
SHORT = 64  # rows up to this length (up to 2 SHORT where keys differ in more than 4 bytes) are merged
LOOK = 64  # elements that are passed over together where none is among the k smallest so far
RUN = 6  # from runs of this length, sorted by insertion

KEY_FLOAT = """
def key_of(x, i):
    bits = cast(ldi_i{bits}(x, i))
    size, sign = bits & {top}, bits >> 63
    return select(size > {infinity}, cast({top}), (size ^ sign) - sign)
"""
KEY_SIGNED = """
def key_of(x, i):
    return cast(ldi_i{bits}(x, i))
"""
KEY_UNSIGNED = """
def key_of(x, i):
    return cast(ldi_u{bits}(x, i)) - {top} - 1
"""
KEY_U64 = """
def key_of(x, i):
    return ldi_i64(x, i) ^ (-{top} - 1)
"""

PAIR = {
    1: """
def put(pairs, i, key, index):
    sti_i64(pairs, i, (key << 31) | index)


def key_at(pairs, i):
    return ldi_i64(pairs, i) >> 31


def index_at(pairs, i):
    return ldi_i64(pairs, i) & 0x7FFFFFFF
""",
    2: """
def put(pairs, i, key, index):
    sti_i64(pairs, 2 * i, key)
    sti_i64(pairs, 2 * i + 1, index)


def key_at(pairs, i):
    return ldi_i64(pairs, 2 * i)


def index_at(pairs, i):
    return ldi_i64(pairs, 2 * i + 1)
""",
}

# keys less the smallest one are unsigned: few bytes tell them apart where the range is small
DIGITS = """
def least(pairs, n):
    low = key_at(pairs, 0)
    for i in range(1, n):
        low = min(low, key_at(pairs, i))
    return low


def digits(pairs, n, low):
    high, count = low, 0
    for i in range(n):
        high = max(high, key_at(pairs, i))
    span = high - low
    if span < 0:
        return 8
    while span > 0:
        span >>= 8
        count += 1
    return count


def digit(key, low, d):
    return ((key - low) >> (8 * d)) & 255


def count_digits(pairs, counts, n, low, d):
    for b in range(256):
        sti_i64(counts, b, 0)
    for i in range(n):
        s = digit(key_at(pairs, i), low, d)
        sti_i64(counts, s, ldi_i64(counts, s) + 1)
"""

# the k smallest of n pairs, to `back`; of equal keys the first ones, in their order
CHOOSE = """
def choose(front, back, counts, n, k):
    low = least(front, n)
    d, taken, left = digits(front, n, low) - 1, 0, n
    while d >= 0 and taken + left > k:
        count_digits(front, counts, left, low, d)
        edge, need = 0, k - taken
        while ldi_i64(counts, edge) < need:
            need -= ldi_i64(counts, edge)
            edge += 1
        same = 0
        for i in range(left):
            key, index = key_at(front, i), index_at(front, i)
            s = digit(key, low, d)
            if s < edge:
                put(back, taken, key, index)
                taken += 1
            elif s == edge:
                put(front, same, key, index)
                same += 1
        left = same
        d -= 1
    for i in range(k - taken):
        put(back, taken + i, key_at(front, i), index_at(front, i))


def lowest(x, first, flip):
    low = key_of(x, first) ^ flip
    for i in range(first + 1, first + {look}):
        low = min(low, key_of(x, i) ^ flip)
    return low


def smallest(x, front, back, counts, n, k, flip, room):
    full, limit, count, i = False, 0, 0, 0
    while i < n:
        last = min(i + {look}, n)
        if full and last == i + {look} and lowest(x, i, flip) >= limit:
            i = last
        while i < last:
            key = key_of(x, i) ^ flip
            if key < limit or not full:
                put(front, count, key, i)
                count += 1
                if count == room:
                    choose(front, back, counts, count, k)
                    front, back = back, front
                    full, limit, count = True, key_at(front, 0), k
                    for j in range(1, k):
                        limit = max(limit, key_at(front, j))
            i += 1
    if count > k:
        choose(front, back, counts, count, k)
        return back
    return front
"""

# where the sorted pairs are: in one of the two buffers
ORDER = """
def insert(pairs, first, last):
    for i in range(first + 1, last):
        key, index, j = key_at(pairs, i), index_at(pairs, i), i
        while j > first and key_at(pairs, j - 1) > key:
            put(pairs, j, key_at(pairs, j - 1), index_at(pairs, j - 1))
            j -= 1
        put(pairs, j, key, index)


def merge(front, back, n):
    for first in range(0, n, {run}):
        insert(front, first, min(first + {run}, n))
    width = {run}
    while width < n:
        for first in range(0, n, 2 * width):
            i, middle = first, min(first + width, n)
            j, last = middle, min(first + 2 * width, n)
            while i < middle and j < last:
                x, y = key_at(front, i), key_at(front, j)
                later = cast(y < x)
                source = select(y < x, j, i)
                put(back, i + j - middle, select(y < x, y, x), index_at(front, source))
                i += 1 - later
                j += later
            for at in range(i, middle):
                put(back, at + j - middle, key_at(front, at), index_at(front, at))
            for at in range(j, last):
                put(back, at, key_at(front, at), index_at(front, at))
        front, back = back, front
        width *= 2
    return front


def order(front, back, counts, n):
    if n <= {short}:
        return merge(front, back, n)
    low = least(front, n)
    bytes_apart = digits(front, n, low)
    if n < {short} // 4 * bytes_apart:
        return merge(front, back, n)
    for d in range(bytes_apart):
        count_digits(front, counts, n, low, d)
        if ldi_i64(counts, digit(key_at(front, 0), low, d)) == n:
            continue
        total = 0
        for b in range(256):
            count = ldi_i64(counts, b)
            sti_i64(counts, b, total)
            total += count
        for i in range(n):
            key = key_at(front, i)
            s = digit(key, low, d)
            at = ldi_i64(counts, s)
            sti_i64(counts, s, at + 1)
            put(back, at, key, index_at(front, i))
        front, back = back, front
    return front
"""

# the first k of every sorted row: their indices, and their values unless that address is 0. Scratch for `room` pairs
# twice is per thread that has rows, for at most `rows` threads: the first row names the slot where they are fewer.
SORT = """
def kernel(a, tid, nth):
    x, values, indices, rows, n, k, flip, room = (
        arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 6), arg(a, 7))
    first, last = rows * tid // nth, rows * (tid + 1) // nth
    counts = arg(a, 8) + min(tid, first) * ({tables} + 16 * {words} * room)
    front, back = counts + {tables}, counts + {tables} + 8 * {words} * room
    for row in range(first, last):
        base, out = x + row * n * {bytes}, row * k
        if k < n:
            found = smallest(base, front, back, counts, n, k, flip, room)
            found = order(found, front + back - found, counts, k)
        else:
            for i in range(n):
                put(front, i, key_of(base, i) ^ flip, i)
            found = order(front, back, counts, n)
        for i in range(k):
            at = index_at(found, i)
            sti_i64(indices, out + i, at)
            if values:
                store(values, out + i, load(base, at))
"""

# runs of equal neighbours: their values, starts (and n behind them), and the run that each element `order[i]` is in
UNIQUE = """
def kernel(a, tid, nth):
    x, order, values, starts, runs, total, n = (
        arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 6))
    if tid == 0:
        found = -1
        for i in range(n):
            if i == 0 or load(x, i) != load(x, i - 1):
                found += 1
                store(values, found, load(x, i))
                sti_i64(starts, found, i)
            sti_i64(runs, ldi_i64(order, i) if order else i, found)
        sti_i64(starts, found + 1, n)
        sti_i64(total, 0, found + 1)
"""

# how many elements of a sorted row are below (right: not above) each value; NaN is above all numbers
SEARCH = """
def kernel(a, tid, nth):
    edges, x, out, count, n, per, right = (
        arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 6))
    for i in range(count * tid // nth, count * (tid + 1) // nth):
        base, v, low, high = i // per * n, load(x, i), 0, n
        while low < high:
            middle = (low + high) >> 1
            e = load(edges, base + middle)
            if right:
                below = not (v < e or (e != e and v == v))
            else:
                below = e < v or (v != v and e == e)
            if below:
                low = middle + 1
            else:
                high = middle
        store(out, i, low)
"""

COUNT = """
def kernel(a, tid, nth):
    x, weights, out, n = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3)
    if tid == 0:
        for i in range(n):
            at = cast(load(x, i))
            {add}
"""
ADD = {
    False: "sti_i64(out, at, ldi_i64(out, at) + 1)",
    True: "sti_f64(out, at, ldi_f64(out, at) + widen(load_weight(weights, i)))",
}

HISTOGRAM = """
def kernel(a, tid, nth):
    x, out, n, bins, low, high = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), argf(a, 4), argf(a, 5)
    if tid == 0:
        for i in range(n):
            v = widen(load(x, i))
            if v >= low and v <= high:
                at = min(cast((v - low) * bins / (high - low)), bins - 1)
                sti_i64(out, at, ldi_i64(out, at) + 1)
"""


def _define(scope, text, jit):
    """Defines the functions of a source text, in order; those that kernels call are compiled."""
    for part in text.strip().split("\n\n\n"):
        exec(part, scope)
        name = part[4 : part.index("(")]
        if jit:
            scope[name] = functions.jitted(scope[name])
    return scope


def _sort(dtype, words):
    bits = BITS[dtype]
    top = (1 << bits - 1) - 1
    if dtype in FLOATS:
        key = KEY_FLOAT.format(bits=bits, top=top, infinity=INFINITY[dtype])
    elif dtype[0] == "i":
        key = KEY_SIGNED.format(bits=bits)
    else:
        key = (KEY_U64 if bits == 64 else KEY_UNSIGNED).format(bits=bits, top=top)
    raw = f"u{bits}"
    scope = {**MEMORY, "cast": caster("i64"), "select": select, "load": loader(raw), "store": storer(raw)}
    for text in (key, PAIR[words], DIGITS, CHOOSE, ORDER):
        _define(
            scope, text.replace("{run}", str(RUN)).replace("{short}", str(SHORT)).replace("{look}", str(LOOK)), True
        )
    return _define(scope, SORT.format(tables=TABLES, words=words, bytes=bits // 8), False)["kernel"]


def build(name, *params, source=None):
    """The kernel of that name, or None.

    Parameters: sort: dtype, words of a pair; unique and histc: dtype; searchsorted: dtype, output's; bincount: dtype,
    the weights' if there are any.
    """
    if name == "sort":
        return _sort(*params)
    scope = {**MEMORY, "cast": caster("i64"), "widen": caster("f64"), "load": loader(params[0])}
    if name == "unique":
        return _define(scope | {"store": storer(params[0])}, UNIQUE, False)["kernel"]
    if name == "searchsorted":
        return _define(scope | {"store": storer(params[1])}, SEARCH, False)["kernel"]
    if name == "bincount":
        weighted = len(params) > 1
        if weighted:
            scope["load_weight"] = loader(params[1])
        return _define(scope, COUNT.replace("{add}", ADD[weighted]), False)["kernel"]
    return _define(scope, HISTOGRAM, False)["kernel"] if name == "histc" else None
