"""Rotary position embedding, its tables, and writing rows into KV caches. Words as in kernels_numba/rope.py.

Also "layer" (layout, dtype of q's result, of the caches): all that a layer does to its q, k and v before attention, in
one launch. Words: 0 T   1 D   2 cos   3 sin   4 positions in them   5 half   6 address of start or 0   7 start
  8 q, strides of t, of heads   11 its result, likewise   14 heads   15 k, strides   18 keys: address, strides of rows,
  of heads   21 v, strides   24 values, likewise   27 KV heads   28 rows of the caches. Strides in bytes.
"""

import functools

import triton
import triton.language as tl

from .float8 import KINDS, narrowed
from .launch import Kernel, blocks, pointer, power_of_2

SIZES = {"f32": 4, "f16": 2, "bf16": 2, "f8e4m3": 1, "f8e5m2": 1}
TILE = 512  # pairs of elements of a program, of 2 warps: 8 a thread, 128 bits of 16-bit caches

# pi/2 in two parts: multiples of the first up to 2**20 are exact in float64
HALF_PI_HIGH, HALF_PI_LOW = tl.constexpr(1.57079632673412561417), tl.constexpr(6.07710050650619224932e-11)
TWO_OVER_PI, MAGIC = tl.constexpr(0.63661977236758134308), tl.constexpr(6755399441055744.0)  # MAGIC: 1.5 * 2**52

# ---- tables ---------------------------------------------------------------------------------------------------------


@triton.jit
def tables(source_ptr, cos_ptr, sin_ptr, n, half, BLOCK: tl.constexpr):
    """cos and sin of position * inverse frequency: Taylor series within pi/4, in float64"""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    known = i < n.to(tl.int64) * half
    angle = (i // half).to(tl.float64) * tl.load(source_ptr + i % half, mask=known, other=0.0).to(tl.float64)
    k = (angle * TWO_OVER_PI + MAGIC) - MAGIC
    r = (angle - k * HALF_PI_HIGH) - k * HALF_PI_LOW
    z = r * r
    p = 1 / 362880 + z * (-1 / 39916800 + z * (1 / 6227020800))
    s = r + r * z * (-1 / 6 + z * (1 / 120 + z * (-1 / 5040 + z * p)))
    p = -1 / 3628800 + z * (1 / 479001600)
    c = 1 + z * (-0.5 + z * (1 / 24 + z * (-1 / 720 + z * (1 / 40320 + z * p))))
    quarter = k.to(tl.int64) & 3
    x, y = tl.where((quarter & 1) != 0, s, c), tl.where((quarter & 1) != 0, c, s)
    x = tl.where(((quarter + 1) & 2) != 0, -x, x)
    y = tl.where((quarter & 2) != 0, -y, y)
    tl.store(cos_ptr + i, x.to(tl.float32), mask=known)
    tl.store(sin_ptr + i, y.to(tl.float32), mask=known)


def _tables(dtype):
    kernel = Kernel(tables, (pointer(dtype), "*fp32", "*fp32", "i32", "i32"), ("half",), BLOCK=256)

    def plan(gpu, words):
        if words[3] and words[4]:
            kernel(gpu, (blocks(words[3] * words[4], 256), 1, 1), *words)

    return plan


# ---- rows -----------------------------------------------------------------------------------------------------------


@triton.jit
def put(at, x, mask, EIGHT: tl.constexpr):
    """Stores f32 as what is there."""
    tl.store(at, narrowed(x, EIGHT) if EIGHT else x.to(at.dtype.element_ty), mask=mask)


@triton.jit
def copied(x_ptr, out_ptr, seen, begin, width, EIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Dims `begin` to width of rows."""
    d = tl.arange(0, WIDTH)[None, :]
    mask = seen & (begin + d < width)
    put(out_ptr + begin + d, tl.load(x_ptr + begin + d, mask=mask, other=0.0), mask, EIGHT)


@triton.jit
def turned(x_ptr, out_ptr, cos_ptr, sin_ptr, seen, known, angles, half, HALF: tl.constexpr, PAIRS: tl.constexpr,
           EIGHT: tl.constexpr):  # fmt: skip
    """Rows of pairs, (i, i + half) or (2 i, 2 i + 1), turned by their position's angles."""
    j = tl.arange(0, HALF)[None, :]
    mask = seen & (j < half)
    c = tl.load(cos_ptr + angles + j, mask=mask & known, other=float("nan"))
    s = tl.load(sin_ptr + angles + j, mask=mask & known, other=float("nan"))
    if PAIRS:
        e = tl.arange(0, 2 * HALF)[None, :]
        both = seen & (e < 2 * half)
        x = tl.load(x_ptr + e, mask=both, other=0.0)
        u, v = tl.split(tl.reshape(x, (x.shape[0], HALF, 2)))
        x = tl.reshape(tl.join(u * c - v * s, v * c + u * s), (x.shape[0], 2 * HALF))
        put(out_ptr + e, x, both, EIGHT)
    else:
        u = tl.load(x_ptr + j, mask=mask, other=0.0)
        v = tl.load(x_ptr + half + j, mask=mask, other=0.0)
        put(out_ptr + j, u * c - v * s, mask, EIGHT)
        put(out_ptr + half + j, v * c + u * s, mask, EIGHT)


@triton.jit
def begun(start_ptr, start, ADDRESS: tl.constexpr):
    """A position: the value, or what is at the address"""
    return tl.load(start_ptr) if ADDRESS else start.to(tl.int64)


@triton.jit
def moved(x_ptr, out_ptr, steps, tables, start, t, heads, out_rows, half, width, HALF: tl.constexpr, REST: tl.constexpr,
          PAIRS: tl.constexpr, SHIFT: tl.constexpr, EIGHT: tl.constexpr, R: tl.constexpr):  # fmt: skip
    """R rows (t, head): turned (HALF), the other dims copied (REST); SHIFT: to row start + t of the output"""
    xt, xh, ot, oh = steps
    cos_ptr, sin_ptr, limit = tables
    i = tl.program_id(0) * R + tl.arange(0, R)
    position = start + i // heads
    row = position if SHIFT else (i // heads).to(tl.int64)
    seen = ((i < t * heads) & (row >= 0) & (row < out_rows))[:, None]
    x = x_ptr + ((i // heads).to(tl.int64) * xt + i % heads * xh)[:, None]
    out = out_ptr + (row * ot + i % heads * oh)[:, None]
    if HALF:
        known = ((position >= 0) & (position < limit))[:, None]
        turned(x, out, cos_ptr, sin_ptr, seen, known, (position * half)[:, None], half, HALF, PAIRS, EIGHT)
    if REST:
        copied(x, out, seen, 2 * half if HALF else 0, width, EIGHT, REST)


@triton.jit
def rows(x_ptr, out_ptr, cos_ptr, sin_ptr, start_ptr, start, limit, half, out_rows, t, heads, width, xt, xh, ot, oh,
         HALF: tl.constexpr, REST: tl.constexpr, PAIRS: tl.constexpr, SHIFT: tl.constexpr, ADDRESS: tl.constexpr,
         EIGHT: tl.constexpr, R: tl.constexpr):  # fmt: skip
    """rope, append, and both"""
    tables = (cos_ptr, sin_ptr, limit)
    start = begun(start_ptr, start, ADDRESS)
    moved(x_ptr, out_ptr, (xt, xh, ot, oh), tables, start, t, heads, out_rows, half, width, HALF, REST, PAIRS, SHIFT,
          EIGHT, R)  # fmt: skip


@triton.jit
def layer(q_ptr, out_ptr, k_ptr, keys_ptr, v_ptr, values_ptr, cos_ptr, sin_ptr, start_ptr, start, limit, half,
          cache_rows, t, heads, groups, width, qt, qh, ot, oh, kt, kh, kct, kch, vt, vh, vct, vch, HALF: tl.constexpr,
          REST: tl.constexpr, WIDTH: tl.constexpr, PAIRS: tl.constexpr, ADDRESS: tl.constexpr, EIGHT: tl.constexpr,
          R: tl.constexpr):  # fmt: skip
    """q turned, k turned to its cache, v to its own: by the second program id"""
    tables = (cos_ptr, sin_ptr, limit)
    start = begun(start_ptr, start, ADDRESS)
    if tl.program_id(1) == 0:
        moved(q_ptr, out_ptr, (qt, qh, ot, oh), tables, start, t, heads, t, half, width, HALF, REST, PAIRS, False, 0, R)
    elif tl.program_id(1) == 1:
        moved(k_ptr, keys_ptr, (kt, kh, kct, kch), tables, start, t, groups, cache_rows, half, width, HALF, REST,
              PAIRS, True, EIGHT, R)  # fmt: skip
    else:
        moved(v_ptr, values_ptr, (vt, vh, vct, vch), tables, start, t, groups, cache_rows, half, width, 0, WIDTH,
              PAIRS, True, EIGHT, R)  # fmt: skip


# ---- plans ----------------------------------------------------------------------------------------------------------


def _tile(half, rest):
    return max(1, TILE // max(half, rest // 2))


def _memory(dtype):
    return pointer("u8" if dtype in KINDS else dtype)


@functools.cache
def _rows(out, half, rest, pairs, shift, address):
    types = ("*fp32", _memory(out), "*fp32", "*fp32", "*i64", "i64", *("i32",) * 6, *("i64",) * 4)
    even = ("half", "width", "xt", "xh", "ot", "oh")
    facts = {"HALF": half, "REST": rest, "PAIRS": pairs, "SHIFT": shift, "ADDRESS": address, "EIGHT": KINDS.get(out, 0)}
    return Kernel(rows, types, even, 2, 1, loose=("start_ptr",), **facts, R=_tile(half, rest))


@functools.cache
def _layer(out, cache, half, rest, width, pairs, address):
    types = ("*fp32", _memory(out), "*fp32", _memory(cache), "*fp32", _memory(cache), "*fp32", "*fp32", "*i64", "i64")
    even = ("half", "width", *"qt qh ot oh kt kh kct kch vt vh vct vch".split())
    facts = {"HALF": half, "REST": rest, "WIDTH": width, "PAIRS": pairs, "ADDRESS": address}
    facts |= {"EIGHT": KINDS.get(cache, 0), "R": _tile(half, width)}
    return Kernel(layer, (*types, *("i32",) * 7, *("i64",) * 12), even, 2, 1, loose=("start_ptr",), **facts)


def _padded(n):
    return power_of_2(n) if n else 0


def _move(gpu, out, words, pairs, shift):
    x, xt, xh, cos, sin, limit, half, to, ot, oh, out_rows, t, heads, width, address, start = words
    if not t * heads:
        return
    kernel = _rows(out, _padded(half), _padded(width - 2 * half), pairs, shift, address != 0)
    steps = (xt // 4, xh // 4, ot // SIZES[out], oh // SIZES[out])
    grid = (blocks(t * heads, kernel.consts["R"]), 1, 1)
    kernel(gpu, grid, x, to, cos, sin, address, start, limit, half, out_rows, t, heads, width, *steps)


def _rope(layout, out):
    return lambda gpu, words: _move(gpu, out, words[:16], layout == "pairs", words[16] != 0)


def _append(out):
    return lambda gpu, words: _move(gpu, out, (*words[:3], words[0], words[0], 0, 0, *words[3:]), False, True)


def _whole(layout, out, cache):
    def plan(gpu, words):
        t, width, cos, sin, limit, half, address, start = words[:8]
        heads, groups = words[14], words[27]
        if not t:
            return
        tiles = (_padded(half), _padded(width - 2 * half), _padded(width))
        kernel = _layer(out, cache, *tiles, layout == "pairs", address != 0)
        steps = []
        for at, size in ((9, 4), (12, SIZES[out]), (16, 4), (19, SIZES[cache]), (22, 4), (25, SIZES[cache])):
            steps += [words[at] // size, words[at + 1] // size]
        pointers = [words[at] for at in (8, 11, 15, 18, 21, 24)]
        grid = (blocks(t * max(heads, groups), kernel.consts["R"]), 3, 1)
        rest = (address, start, limit, half, words[28], t, heads, groups, width)
        kernel(gpu, grid, *pointers, cos, sin, *rest, *steps)

    return plan


def build(name, *params, source=None):
    """tables (f32 or f64), rope (halves or pairs, dtype of out), append (dtype of out), layer (see above)."""
    if name == "tables" and params in (("f32",), ("f64",)):
        return _tables(*params)
    if name == "append" and len(params) == 1 and params[0] in SIZES:
        return _append(*params)
    if name not in ("rope", "layer") or params[0] not in ("halves", "pairs") or any(p not in SIZES for p in params[1:]):
        return None
    return {("rope", 2): _rope, ("layer", 3): _whole}[name, len(params)](*params)


def variants(arch):
    """Kernels of heads of 64 and 128 dims, by what they do."""
    found = {}
    for d, out in ((64, "f16"), (128, "f16"), (128, "bf16"), (128, "f32"), (128, "f8e4m3")):
        for pairs in (False, True):
            found[f"rope {out} {d} {'pairs' if pairs else 'halves'}"] = _rows(out, d // 2, 0, pairs, True, True)
        found[f"append {out} {d}"] = _rows(out, 0, d, False, True, True)
    for cache in ("f16", "f8e4m3"):
        found[f"layer {cache} 128"] = _layer("f32", cache, 64, 0, 128, False, True)
    found["tables f64"] = Kernel(tables, ("*fp64", "*fp32", "*fp32", "i32", "i32"), ("half",), BLOCK=256)
    return found
