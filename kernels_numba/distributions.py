"""Random draws of every distribution, from Philox's counter alone (see `tensorlib/random.py` for the mapping).

Words are made a tile at a time: each thread writes 1024 u32 to scratch of its own, then turns them into elements. Both
loops are vectorised, and what an element becomes depends on its own words only, so threads and tiles leave no trace.
"""

import numpy as np
from llvmlite import ir
from numba import types

from . import functions
from .random import philox_block
from .scalar import FLOATS, INTS, caster, loader, storer
from .simd import _LL, _make, arg, argf, ld_f64, ld_i64, ld_u64, st_f64, st_i64, st_u64, sti_u32

TILE = 1024  # words
DIGITS = {"f64": 53, "f32": 24, "f16": 11, "bf16": 8, "f8e4m3": 4, "f8e5m2": 3}  # of a uniform number: its precision
_I1, _I64, _I128 = ir.IntType(1), ir.IntType(64), ir.IntType(128)


# ---- from the bits of a word to floats -------------------------------------------------------------------------------


def _k(x, value):
    return ir.Constant(x.type, value)


def _float_of(b, x, scale, half=0.0):
    """(x + half) * scale for a signed x, in the float type of its width"""
    ty = _LL["f32" if x.type.width == 32 else "f64"]
    value = b.sitofp(x, ty)
    value = b.fadd(value, ir.Constant(ty, half)) if half else value
    return b.fmul(value, ir.Constant(ty, scale))


def _float_type(w):
    return types.float32 if w.bitwidth == 32 else types.float64


def unit(digits):
    """Intrinsic f(w): the upper `digits` bits of a word as a number in [0, 1)."""

    def lower(b, t, w):
        return _float_of(b, b.lshr(w, _k(w, w.type.width - digits)), 2.0**-digits)

    return _make("unit", _float_type, lower, 1)


def _end_distance(b, t, w):
    """Distance of u = (w + 1/2) / 2**bits from the nearer end of (0, 1): nothing is lost in either tail"""
    other = b.xor(w, _k(w, -1))
    return _float_of(b, b.select(b.icmp_signed("<", w, _k(w, 0)), other, w), 2.0**-w.type.width, 0.5)


def _quadrant(b, w):
    """The quarter turn nearest to a word's angle, w / 2**bits turns"""
    return b.lshr(b.add(w, _k(w, 1 << w.type.width - 3)), _k(w, w.type.width - 2))


def _quadrant_bit(name, add, shift):
    def lower(b, t, w):
        return b.trunc(b.lshr(b.add(_quadrant(b, w), _k(w, add)), _k(w, shift)), _I1)

    return _make(name, lambda w: types.boolean, lower, 1)


def _rest(b, t, w):
    """What is left of the angle, in quarter turns: [-1/2, 1/2)"""
    return _float_of(b, b.shl(w, _k(w, 2)), 2.0**-w.type.width)


def _bounded(b, t, w, low, span):
    """low + floor(w * span / 2**64), span = 0 standing for 2**64: no division, and a bias of span / 2**64 at most"""
    product = b.mul(b.zext(w, _I128), b.zext(span, _I128))
    value = b.trunc(b.lshr(product, ir.Constant(_I128, 64)), _I64)
    return b.add(low, b.select(b.icmp_signed("==", span, _k(span, 0)), w, value))


end_distance = _make("end_distance", _float_type, _end_distance, 1)
upper = _make("upper", lambda w: types.boolean, lambda b, t, w: b.icmp_signed("<", w, _k(w, 0)), 1, "u >= 1/2")
rest = _make("rest", _float_type, _rest, 1)
odd, cos_minus, sin_minus = (_quadrant_bit(*v) for v in (("odd", 0, 0), ("cos_minus", 1, 1), ("sin_minus", 0, 1)))
bounded = _make("bounded", lambda w, low, span: types.int64, _bounded, 3)


# ---- functions of them, compiled in f32 or f64 -----------------------------------------------------------------------

EXPONENTIAL = """
def exponential(h, upper):
    y = select(upper, h, 1 - h)
    lost = select(upper, 0, (-h - (y - 1)) / y)
    return -(log(y) + lost)
"""
SINE = {
    "f32": """
def sine(f):
    r = f * 1.5707963267948966
    z = r * r
    p = poly(z, -0.16666666663622831882, 0.0083333317852176954016, -0.00019840038872556747687, 2.724378140946122915e-6)
    return fma(r * z, p, r)
""",
    "f64": "def sine(f):\n    return sine_part(f * 1.5707963267948966, 0)",
}
COSINE = {
    "f32": """
def cosine(f):
    r = f * 1.5707963267948966
    z = r * r
    p = poly(z, 0.041666666664127211898, -0.001388888759732781124, 0.000024800560429914503467, -2.729583082761461564e-7)
    return fma(z * z, p, fma(z, -0.5, 1))
""",
    "f64": "def cosine(f):\n    return cosine_part(f * 1.5707963267948966, 0)",
}

# ---- the template: words of a tile, then its elements ----------------------------------------------------------------


@functions.jitted
def words(out, first, blocks, key, draw):
    """Blocks first, first + 1, ... of a draw, as u32 in a row."""
    for i in range(blocks):
        c0, c1, c2, c3 = philox_block(first + i, draw, key)
        sti_u32(out, 4 * i, c0)
        sti_u32(out, 4 * i + 1, c1)
        sti_u32(out, 4 * i + 2, c2)
        sti_u32(out, 4 * i + 3, c3)


# arguments: output, elements, key (the seed), draw, scratch (4096 bytes per thread), then those of the distribution
KERNEL = """
def kernel(a, tid, nth):
    out, n, key, draw, mine = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4) + {bytes} * tid
    {setup}
    tiles = (n + {per} - 1) // {per}
    for tile in range(tiles * tid // nth, tiles * (tid + 1) // nth):
        first = tile * {per}
        m = min({per}, n - first)
        words(mine, tile * {blocks}, ((m + m % 2) * {each} + 3) // 4, key, draw)
        {body}
"""
ELEMENTS = """for i in range(m):
            w = load(mine, i)
            store(out, first + i, {value})"""
# pair j takes two words: a radius and an angle
NORMAL = """for j in range(m // 2):
            x, y = pair(load(mine, 2 * j), load(mine, 2 * j + 1), mean, std)
            store(out, first + 2 * j, x)
            store(out, first + 2 * j + 1, y)
        if m % 2 == 1:
            store(out, first + m - 1, pair(load(mine, m - 1), load(mine, m), mean, std)[0])"""
PAIR = """
def pair(w, v, mean, std):
    r = sqrt(twice(exponential(end_distance(w), upper(w)))) * std
    s, c = sine(rest(v)), cosine(rest(v))
    x, y = select(odd(v), s, c), select(odd(v), c, s)
    return mean + r * select(cos_minus(v), -x, x), mean + r * select(sin_minus(v), -y, y)
"""
BERNOULLI = """bad = False
        for i in range(m):
            p = to_f64(load_p(source, (first + i) * step))
            bad |= (not p >= 0.0) | (not p <= 1.0)
            store(out, first + i, u32_unit(load(mine, i)) < p)
        if bad:
            st_i64(flag, 1)"""
# the cumulative weights of a row that exceed u times their sum start at the category drawn
PICK = """for i in range(m):
            row = (first + i) // samples
            sums = cumulative + 8 * row * categories
            target = unit(load(mine, i)) * ld_f64(sums + 8 * (categories - 1))
            low, high = 0, categories - 1
            while low < high:
                middle = (low + high) // 2
                if ld_f64(sums + 8 * middle) > target:
                    high = middle
                else:
                    low = middle + 1
            store(out, first + i, low)"""

SCALAR = "to_compute(argf(a, {0}))"
SETUPS = {
    "uniform": "low, span, top = " + ", ".join(SCALAR.format(i) for i in (5, 6, 7)),
    "normal": "mean, std = " + ", ".join(SCALAR.format(i) for i in (5, 6)),
    "exponential": "rate = " + SCALAR.format(5),
    "randint": "low, span = arg(a, 5), arg(a, 6)",
    "bernoulli": "source, step, flag = arg(a, 5), arg(a, 6), arg(a, 7)",
    "dropout": "source, keep, scale = arg(a, 5), argf(a, 6), " + SCALAR.format(7),
    "multinomial": "cumulative, categories, samples = arg(a, 5), arg(a, 6), arg(a, 7)",
    "race": "weights = arg(a, 5)",
}
BODIES = {
    "uniform": ELEMENTS.format(value="below(low + span * unit(w), top)"),
    "normal": NORMAL,
    "exponential": ELEMENTS.format(value="exponential(end_distance(w), upper(w)) / rate"),
    "randint": ELEMENTS.format(value="bounded(w, low, span)"),
    "bernoulli": BERNOULLI,
    "dropout": ELEMENTS.format(value="kept(u32_unit(w) < keep, load_x(source, first + i) * scale)"),
    "multinomial": PICK,
    "race": ELEMENTS.format(value="exponential(end_distance(w), upper(w)) / ld_f64(weights + 8 * (first + i))"),
}
WIDE = ("randint", "multinomial", "race")  # two words per element whatever the dtype


def _u32_unit(b, t, w):
    """w / 2**32, exact in f64"""
    return b.fmul(b.uitofp(w, _LL["f64"]), ir.Constant(_LL["f64"], 2.0**-32))


u32_unit = _make("u32_unit", lambda w: types.float64, _u32_unit, 1)


def _template(name, out, compute, source_dtype):
    """The kernel of a distribution whose output is `out`, computing in `compute`."""
    wide = name in WIDE or (compute == "f64" and name not in ("bernoulli", "dropout"))
    each = 2 if wide else 1
    scope = dict(functions.intrinsics()) | {"arg": arg, "argf": argf, "ld_f64": ld_f64, "st_i64": st_i64}
    scope |= {n: globals()[n] for n in "words end_distance upper rest odd cos_minus sin_minus bounded u32_unit".split()}
    scope |= {"load": loader("u64" if wide else "u32"), "store": storer(out), "to_compute": caster(compute)}
    scope["unit"] = unit(DIGITS.get(out, 53))
    scope["load_p"] = scope["load_x"] = loader(source_dtype)
    inline = {
        "below": "def below(x, top):\n    return select(x < top, x, top)",
        "kept": "def kept(c, x):\n    return select(c, x, 0)",
        "twice": "def twice(x):\n    return x * 2",
        "exponential": EXPONENTIAL,
        "sine": SINE[compute],
        "cosine": COSINE[compute],
    }
    scope |= {n: functions.inline(text, compute) for n, text in inline.items()}
    exec(PAIR, scope)
    scope["pair"] = functions.jitted(scope["pair"])
    sizes = {"bytes": 4 * TILE, "per": TILE // each, "blocks": TILE // 4, "each": each}
    text = KERNEL.format(setup=SETUPS[name], body=BODIES[name], **sizes)
    exec(compile(text, f"<distributions {name}>", "exec"), scope)
    return scope["kernel"]


# ---- what is drawn without replacement -------------------------------------------------------------------------------


def cumulate(a, tid, nth):
    """Words: weights (f64, rows x n), rows, n, sums of them up to each (the same shape), counts (i64): how many of a
    row are above 0, or -1 if one is negative, infinite or NaN.
    """
    weights, rows, n, sums, counts = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4)
    for row in range(rows * tid // nth, rows * (tid + 1) // nth):
        total, count, bad = 0.0, 0, False
        for i in range(row * n, row * n + n):
            w = ld_f64(weights + 8 * i)
            total += w
            count += w > 0.0
            bad |= not (0.0 <= w < np.inf)
            st_f64(sums + 8 * i, total)
        st_i64(counts + 8 * row, -1 if bad or not total < np.inf else count)


@functions.jitted
def later(keys, i, j):
    """Whether element i comes after element j in the order of (key, index)."""
    x, y = ld_f64(keys + 8 * i), ld_f64(keys + 8 * j)
    return x > y or (x == y and i > j)


@functions.jitted
def sink(keys, heap, size, at):
    """Puts the element at place `at` of a heap, the latest of which is on top, where it belongs."""
    item = ld_i64(heap + 8 * at)
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and later(keys, ld_i64(heap + 8 * child + 8), ld_i64(heap + 8 * child)):
            child += 1
        if not later(keys, ld_i64(heap + 8 * child), item):
            break
        st_i64(heap + 8 * at, ld_i64(heap + 8 * child))
        at = child
    st_i64(heap + 8 * at, item)


def first(a, tid, nth):
    """Words: keys (f64, rows x n), rows, n, count, out (i64, rows x count): indices of the smallest keys, in order."""
    rows, n, count = arg(a, 1), arg(a, 2), arg(a, 3)
    for row in range(rows * tid // nth, rows * (tid + 1) // nth):
        keys, heap = arg(a, 0) + 8 * row * n, arg(a, 4) + 8 * row * count
        for i in range(count):
            st_i64(heap + 8 * i, i)
        for i in range(count // 2):
            sink(keys, heap, count, count // 2 - 1 - i)
        for i in range(count, n):
            if later(keys, ld_i64(heap), i):
                st_i64(heap, i)
                sink(keys, heap, count, 0)
        for i in range(count - 1):
            end = count - 1 - i
            last, top = ld_i64(heap + 8 * end), ld_i64(heap)
            st_i64(heap, last)
            st_i64(heap + 8 * end, top)
            sink(keys, heap, end, 0)


PERMUTATION = """
def kernel(a, tid, nth):
    out, n, keys, bits, starts, sorted_keys, ids = (
        arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 6))
    if tid > 0:
        return
    scatter(n, keys, np.uint64(64 - bits), 1 << bits, starts, sorted_keys, ids)
    for i in range(n):
        store(out, i, ld_i64(ids + 8 * i))
"""


@functions.jitted
def scatter(n, keys, shift, buckets, starts, sorted_keys, ids):
    """Sorts random u64 keys, stably: by their upper bits into buckets of some eight, then each by insertion."""
    for i in range(buckets + 1):
        st_i64(starts + 8 * i, 0)
    for i in range(n):
        at = starts + 8 * np.int64(ld_u64(keys + 8 * i) >> shift) + 8
        st_i64(at, ld_i64(at) + 1)
    for i in range(buckets):
        st_i64(starts + 8 * i + 8, ld_i64(starts + 8 * i + 8) + ld_i64(starts + 8 * i))
    for i in range(n):
        key = ld_u64(keys + 8 * i)
        at = starts + 8 * np.int64(key >> shift)
        place = ld_i64(at)
        st_i64(at, place + 1)
        st_u64(sorted_keys + 8 * place, key)
        st_i64(ids + 8 * place, i)
    for i in range(1, n):
        key, item, j = ld_u64(sorted_keys + 8 * i), ld_i64(ids + 8 * i), i
        while j > 0 and ld_u64(sorted_keys + 8 * j - 8) > key:  # ends at the bucket's start: earlier ones are smaller
            st_u64(sorted_keys + 8 * j, ld_u64(sorted_keys + 8 * j - 8))
            st_i64(ids + 8 * j, ld_i64(ids + 8 * j - 8))
            j -= 1
        st_u64(sorted_keys + 8 * j, key)
        st_i64(ids + 8 * j, item)


def build(name, *params, source=None):
    """The kernel of that name, or None. A distribution's parameters: the output's dtype; for bernoulli and dropout also
    that of the probabilities or of x.
    """
    if name in ("cumulate", "first") and not params:
        return {"cumulate": cumulate, "first": first}[name]
    if name == "permutation" and params[0] in INTS:
        scope = {"arg": arg, "np": np, "scatter": scatter, "ld_i64": ld_i64, "store": storer(params[0])}
        exec(compile(PERMUTATION, "<distributions permutation>", "exec"), scope)
        return scope["kernel"]
    if name not in BODIES or (name in ("uniform", "normal", "exponential", "dropout") and params[0] not in FLOATS):
        return None
    compute = "f64" if name in ("multinomial", "race", "randint") else FLOATS.get(params[0], "f32")
    return _template(name, params[0], compute, params[-1])
