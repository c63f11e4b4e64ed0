"""Random draws of every distribution; words as in kernels_numba/distributions.py (scratch means nothing here).

Every program makes the words of BLOCK blocks of Philox and turns them into elements in registers; an element depends on
its own words only. Integers, uniform numbers and choices by comparison are the CPU's bits; logarithms, sines and
cosines are computed by the CPU's own formulas, so that those bits differ only where the CPU has no fused multiply-add.
Sums of weights are scanned a chunk at a time: the last bits of a sum may be others than those of the CPU's.
"""

import functools
import math
import struct

import triton
import triton.language as tl

from .convert import FLOATS, memory
from .dims import converted, kind, loaded
from .launch import Kernel, blocks, pointer
from .ordering import order
from .philox import exponential, interleaved, normal_pair, philox_block, unit, wide_words

BLOCK = 256  # blocks of four words per program
SCANNED = 1024  # weights that are summed at a time
DIGITS = {"f64": 53, "f32": 24, "f16": 11, "bf16": 8, "f8e4m3": 4, "f8e5m2": 3}  # of a uniform number: its precision
WIDE = ("randint", "multinomial", "race")  # two words per element whatever the dtype


@triton.jit
def f64_of(bits):
    """A number that was given as bits"""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def pairs(seed, draw, EACH: tl.constexpr, BLOCK: tl.constexpr):
    """(words at even places, at odd ones) of a program; words of 64 bits where an element takes two"""
    low = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c0, c1, c2, c3 = philox_block(low, draw, seed)
    if EACH == 2:
        return wide_words(c0, c1), wide_words(c2, c3)
    else:
        return interleaved(c0, c2, 2 * BLOCK), interleaved(c1, c3, 2 * BLOCK)


@triton.jit
def floats(
    out_ptr, n, seed, draw, a, b, c, NAME: tl.constexpr, EACH: tl.constexpr, DIGITS: tl.constexpr, KIND: tl.constexpr,
    DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """uniform (low, span, the largest number below high), normal (mean, std), exponential (rate): bits of f64"""
    PER: tl.constexpr = 4 * BLOCK // EACH
    i = tl.program_id(0).to(tl.int64) * PER + tl.arange(0, PER)
    a, b, c = f64_of(a).to(DTYPE), f64_of(b).to(DTYPE), f64_of(c).to(DTYPE)
    w, v = pairs(seed, draw, EACH, BLOCK)
    if NAME == "normal":
        x, y = normal_pair(w, v, a, b)
        value = interleaved(x, y, PER)
    elif NAME == "uniform":
        u = unit(interleaved(w, v, PER), DIGITS).to(DTYPE)
        value = a + b * u
        value = tl.where(value < c, value, c)
    else:
        e = exponential(interleaved(w, v, PER))
        value = tl.div_rn(e, a) if DTYPE == tl.float32 else e / a
    tl.store(out_ptr + i, converted(value, out_ptr.dtype.element_ty, KIND), mask=i < n)


@triton.jit
def integers(out_ptr, n, seed, draw, low, span, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """low + floor(w * span / 2**64); span 0 stands for 2**64"""
    i = tl.program_id(0).to(tl.int64) * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
    w, v = pairs(seed, draw, 2, BLOCK)
    word, span = interleaved(w, v, 2 * BLOCK), span.to(tl.int64).to(tl.uint64, bitcast=True)
    scaled = tl.where(span == 0, word, tl.umulhi(word, span + 0 * word))
    value = low.to(tl.int64) + scaled.to(tl.int64, bitcast=True)
    tl.store(out_ptr + i, converted(value, out_ptr.dtype.element_ty, KIND), mask=i < n)


@triton.jit
def bernoulli(
    out_ptr, p_ptr, flag_ptr, n, seed, draw, step, KIND: tl.constexpr, P_KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """1 where w / 2**32 < p[i * step]; the flag becomes 1 for a p outside [0, 1]"""
    i = tl.program_id(0).to(tl.int64) * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
    w, v = pairs(seed, draw, 1, BLOCK)
    p = loaded(tl.load(p_ptr + i * step, mask=i < n, other=0.0), tl.float64, P_KIND)
    u = interleaved(w, v, 4 * BLOCK).to(tl.float64) * (2.0**-32)
    fine = (p >= 0.0) & (p <= 1.0)
    tl.store(flag_ptr + 0 * i, tl.full([4 * BLOCK], 1, tl.int64), mask=(i < n) & (fine == 0))
    tl.store(out_ptr + i, converted((u < p).to(tl.int32), out_ptr.dtype.element_ty, KIND), mask=i < n)


@triton.jit
def dropout(
    out_ptr, x_ptr, n, seed, draw, keep, scale, KIND: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x * scale where w < keep, an integer of up to 2**32, else 0"""
    i = tl.program_id(0).to(tl.int64) * (4 * BLOCK) + tl.arange(0, 4 * BLOCK)
    w, v = pairs(seed, draw, 1, BLOCK)
    x = loaded(tl.load(x_ptr + i, mask=i < n, other=0.0), DTYPE, KIND) * f64_of(scale).to(DTYPE)
    value = tl.where(interleaved(w, v, 4 * BLOCK).to(tl.int64) < keep, x, 0.0)
    tl.store(out_ptr + i, converted(value, out_ptr.dtype.element_ty, KIND), mask=i < n)


@triton.jit
def multinomial(out_ptr, sums_ptr, n, seed, draw, categories, samples, steps, BLOCK: tl.constexpr):
    """The first category whose cumulative weight exceeds u times the sum of the weights"""
    i = tl.program_id(0).to(tl.int64) * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
    w, v = pairs(seed, draw, 2, BLOCK)
    inside, base = i < n, i // samples * categories
    total = tl.load(sums_ptr + base + categories - 1, mask=inside, other=0.0)
    aim = unit(interleaved(w, v, 2 * BLOCK), 53) * total
    low, high = 0 * i, 0 * i + categories - 1
    for _ in range(steps):
        at = (low + high) >> 1
        open_ = inside & (low < high)
        above = tl.load(sums_ptr + base + at, mask=open_, other=0.0) > aim
        high = tl.where(open_ & above, at, high)
        low = tl.where(open_ & (above == 0), at + 1, low)
    tl.store(out_ptr + i, low, mask=inside)


@triton.jit
def race(out_ptr, weights_ptr, n, seed, draw, BLOCK: tl.constexpr):
    """exponential / weight"""
    i = tl.program_id(0).to(tl.int64) * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
    w, v = pairs(seed, draw, 2, BLOCK)
    weight = tl.load(weights_ptr + i, mask=i < n, other=1.0)
    tl.store(out_ptr + i, exponential(interleaved(w, v, 2 * BLOCK)) / weight, mask=i < n)


@triton.jit
def cumulate(weights_ptr, sums_ptr, counts_ptr, n, BLOCK: tl.constexpr):
    """Running sums of a row; how many weights are above 0, or -1 if one is negative, infinite or NaN"""
    row = tl.program_id(0).to(tl.int64)
    total, count, bad = tl.zeros([], tl.float64), tl.zeros([], tl.int64), tl.zeros([], tl.int32)
    for start in range(0, n, BLOCK):
        i = start + tl.arange(0, BLOCK)
        w = tl.load(weights_ptr + row * n + i, mask=i < n, other=0.0)
        tl.store(sums_ptr + row * n + i, total + tl.cumsum(w, 0), mask=i < n)
        total += tl.sum(w, 0)
        count += tl.sum((w > 0.0).to(tl.int32), 0)
        bad |= tl.max(((w >= 0.0) & (w < float("inf"))).to(tl.int32) ^ 1, 0)
    fine = (bad == 0) & (total < float("inf"))
    tl.store(counts_ptr + row, tl.where(fine, count, -1))


@triton.jit
def copied(out_ptr, ids_ptr, n, BLOCK: tl.constexpr):
    """i64 as another integer dtype"""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(ids_ptr + i, mask=i < n).to(out_ptr.dtype.element_ty), mask=i < n)


# ---- plans -----------------------------------------------------------------------------------------------------------


def _bits(value):
    return int.from_bytes(struct.pack("<d", value), "little", signed=True)


@functools.cache
def _floats_kernel(name, dtype):
    wide = dtype == "f64"
    consts = {"NAME": name, "EACH": 1 + wide, "DIGITS": DIGITS[dtype], "KIND": kind(dtype), "BLOCK": BLOCK}
    compute = tl.float64 if wide else tl.float32
    made = Kernel(floats, (memory(dtype), *("i64",) * 6), ("n",), fuse=False, DTYPE=compute, **consts)
    made.items = 4 * BLOCK // consts["EACH"]
    return made


def _floats(name, dtype):
    kernel = _floats_kernel(name, dtype)

    def plan(gpu, words):
        out, n, seed, draw, _, *numbers = words
        numbers = [_bits(v) for v in numbers] + [0] * (3 - len(numbers))
        kernel(gpu, (blocks(n, kernel.items), 1, 1), out, n, seed, draw, *numbers)

    return plan


def _randint(dtype):
    kernel = Kernel(integers, (memory(dtype), *("i64",) * 5), ("n",), KIND=kind(dtype), BLOCK=BLOCK)

    def plan(gpu, words):
        out, n, seed, draw, _, low, span = words
        kernel(gpu, (blocks(n, 2 * BLOCK), 1, 1), out, n, seed, draw, low, span)

    return plan


def _bernoulli(dtype, source):
    types = (memory(dtype), memory(source), "*i64", *("i64",) * 4)
    kernel = Kernel(bernoulli, types, ("n",), KIND=kind(dtype), P_KIND=kind(source), BLOCK=BLOCK)

    def plan(gpu, words):
        out, n, seed, draw, _, p, step, flag = words
        kernel(gpu, (blocks(n, 4 * BLOCK), 1, 1), out, p, flag, n, seed, draw, step)

    return plan


@functools.cache
def _dropout_kernel(dtype):
    compute = tl.float64 if dtype == "f64" else tl.float32
    types = (memory(dtype), memory(dtype), *("i64",) * 5)
    made = Kernel(dropout, types, ("n",), KIND=kind(dtype), DTYPE=compute, BLOCK=BLOCK)
    made.items = 4 * BLOCK
    return made


def _dropout(dtype, _):
    kernel = _dropout_kernel(dtype)

    def plan(gpu, words):
        out, n, seed, draw, _, x, keep, scale = words
        threshold = math.ceil(keep * 2.0**32)  # w / 2**32 < keep, in integers
        kernel(gpu, (blocks(n, 4 * BLOCK), 1, 1), out, x, n, seed, draw, threshold, _bits(scale))

    return plan


def _multinomial(dtype):
    kernel = Kernel(multinomial, ("*i64", "*fp64", *("i64",) * 5, "i32"), BLOCK=BLOCK)

    def plan(gpu, words):
        out, n, seed, draw, _, sums, categories, samples = words
        steps = categories.bit_length()
        kernel(gpu, (blocks(n, 2 * BLOCK), 1, 1), out, sums, n, seed, draw, categories, samples, steps)

    return plan


def _race(dtype):
    kernel = Kernel(race, ("*fp64", "*fp64", *("i64",) * 3), fuse=False, BLOCK=BLOCK)

    def plan(gpu, words):
        out, n, seed, draw, _, weights = words
        kernel(gpu, (blocks(n, 2 * BLOCK), 1, 1), out, weights, n, seed, draw)

    return plan


def _cumulate():
    kernel = Kernel(cumulate, ("*fp64", "*fp64", "*i64", "i64"), BLOCK=SCANNED)

    def plan(gpu, words):
        weights, rows, n, sums, counts = words
        kernel(gpu, (rows, 1, 1), weights, sums, counts, n)

    return plan


def _first():
    def plan(gpu, words):
        keys, rows, n, count, out = words
        order(gpu, "f64", keys, rows, n, count, 0, out)

    return plan


def _permutation(dtype):
    kernel = Kernel(copied, (pointer(dtype), "*i64", "i64"), ("n",), BLOCK=1024)

    def plan(gpu, words):
        out, n, keys, *_, ids = words
        order(gpu, "u64", keys, 1, n, n, 0, ids)
        kernel(gpu, (blocks(n, 1024), 1, 1), out, ids, n)

    return plan


def build(name, *params, source=None):
    """See kernels_triton/__init__.py; names and parameters as in kernels_numba/distributions.py."""
    found = {
        "randint": _randint, "bernoulli": _bernoulli, "dropout": _dropout, "multinomial": _multinomial, "race": _race,
        "cumulate": _cumulate, "first": _first, "permutation": _permutation,
    }  # fmt: skip
    if name in ("uniform", "normal", "exponential") and params[0] in FLOATS:
        return _floats(name, *params)
    return found[name](*params) if name in found else None


def variants(arch):
    """Kernels of every kind, for the committed table of what the compiler makes of them."""
    names = [(n, d) for n in ("uniform", "normal", "exponential") for d in ("f32", "bf16", "f64")]
    found = {f"{n} {d}": _floats_kernel(n, d) for n, d in names}
    return found | {f"dropout {d}": _dropout_kernel(d) for d in ("f32", "bf16")}
