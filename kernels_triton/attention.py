"""Attention: plans for the kernel of flash.py, and what they are given.

build("forward", q, kv, out, index): dtypes; index is that of the block table. Words (strides in bytes):
  0 T, all queries   1 heads   2 KV heads   3 D   4 address of start or 0   5 start   6 address of length or 0
  7 length (-1: start + T)   8 rows of the caches   9 keys to the left that a query sees   10 to the right (-1: all)
  11 scale   12 softcap or 0.0   13 Q, its strides of t, of heads   16 K, strides of heads, of rows   19 V, likewise
  22 out, strides of t, of heads   25 mask (f32, adjacent along keys) or 0, strides of batches, heads, t, then how many
  heads a batch has   30 slopes of ALiBi per head (f32) or 0   31 where log2 of the sums go, f32 [heads, T], or 0
  32 i64 starts of sequences in Q, or 0   33 in K, or, with pages, i64 lengths   34 sequences   35 block table or 0
  36 its stride of sequences (elements)   37 rows of a page   38 strides of pages of K   39 of V
With sequences, words 4 to 7 are not read: the queries of each end with its last key.

A table has (rows, keys, warps, stages) of a tile by head dim up to 64, 128, 256; measured without a GPU, by spills.
"""

import functools

from .attention_decode import merge
from .flash import Config, attention
from .float8 import reading
from .launch import Kernel, blocks, pick, pointer, power_of_2

SIZES = {"f32": 4, "f16": 2, "bf16": 2, "f8e4m3": 1, "f8e5m2": 1}
DIMS = (64, 128, 256)
HALF = {  # operands of 16 bits
    75: ((32, 32, 4, 1), (16, 32, 4, 1), (16, 16, 4, 1)),
    80: ((128, 64, 8, 3), (128, 64, 8, 3), (64, 32, 8, 2)),
    90: ((128, 128, 8, 3), (128, 128, 8, 2), (128, 32, 8, 3)),
    100: ((128, 128, 8, 3), (128, 128, 8, 2), (128, 64, 8, 2)),
    120: ((128, 64, 8, 3), (128, 64, 8, 2), (64, 32, 8, 2)),
    "gfx942": ((128, 64, 4, 1), (128, 32, 4, 1), (64, 32, 4, 1)),
}
SPLIT = {  # f32 queries as two terms of 16 bits
    75: ((32, 32, 4, 1), (16, 32, 4, 1), (16, 16, 4, 1)),
    80: ((64, 64, 4, 3), (64, 64, 8, 2), (32, 32, 8, 2)),
    90: ((128, 64, 8, 3), (128, 64, 8, 2), (32, 32, 8, 2)),
    120: ((64, 64, 4, 3), (64, 64, 8, 2), (32, 32, 8, 2)),
    "gfx942": ((64, 64, 4, 1), (64, 32, 4, 1), (32, 32, 4, 1)),
}
WIDE = {  # f32
    75: ((32, 32, 4, 1), (16, 32, 4, 1), (16, 16, 4, 1)),
    80: ((64, 16, 4, 2), (32, 32, 8, 2), (16, 32, 8, 1)),
    90: ((64, 32, 4, 2), (32, 32, 8, 2), (16, 32, 8, 1)),
    100: ((64, 16, 4, 2), (32, 32, 8, 2), (16, 32, 8, 1)),
    120: ((64, 16, 4, 2), (32, 32, 8, 2), (16, 32, 8, 1)),
    "gfx942": ((64, 32, 4, 1), (32, 32, 4, 1), (32, 16, 4, 1)),
}
DECODE = {  # few rows, of operands of 16 bits, split or not
    75: ((16, 32, 4, 1), (16, 32, 4, 1), (16, 16, 4, 1)),
    80: ((16, 64, 4, 3), (16, 32, 4, 3), (16, 32, 8, 2)),
    90: ((16, 64, 4, 2), (16, 32, 4, 3), (16, 32, 8, 2)),
    "gfx942": ((16, 64, 4, 1), (16, 32, 4, 1), (16, 32, 4, 1)),
}
DECODE_WIDE = {
    75: ((16, 32, 4, 1), (16, 32, 4, 1), (16, 16, 4, 1)),
    80: ((16, 32, 4, 2), (16, 16, 4, 3), (16, 16, 8, 1)),
    "gfx942": ((16, 32, 4, 1), (16, 32, 4, 1), (16, 16, 4, 1)),
}
FEW = 32  # rows (queries times heads of a KV head) up to which tiles are those of decoding; beyond 16, of 8 warps
MOST = 128  # segments of the keys
LOOSE = ("starts_ptr", "key_starts_ptr", "table_ptr", "start_ptr", "length_ptr", "mask_ptr", "slopes_ptr")


def tiles(arch, q, kv, width, few, mask=False):
    """(rows, keys, warps, stages) for a head of `width` dims; few: how many rows there are, if few, or 0.

    A mask's tiles wait in shared memory beside those of K and V.
    """
    if few:
        table = DECODE_WIDE if kv == "f32" else DECODE
    else:
        table = WIDE if kv == "f32" else SPLIT if q == "f32" else HALF
    bm, bn, warps, stages = pick(table, arch)[next(i for i, d in enumerate(DIMS) if width <= d)]
    bn, stages = (min(bn, 64), min(stages, 2)) if mask else (bn, stages)
    return (FEW, bn, 8, stages) if few > bm else (bm, bn, warps, stages)


def arithmetic(arch, q, kv):
    """(PARTS, PRECISION) of products."""
    if arch == 75 or kv == "f32":
        return 0, "ieee" if arch == 75 or isinstance(arch, str) else "tf32x3"
    return 2 if q == "f32" else 1, "ieee"


@functools.cache
def compiled(dtypes, config, warps, stages):
    """The Kernel of a Config; dtypes: of the memory of q, of the caches, of out and of a block table."""
    q, kv, out, index = dtypes
    pointers = (
        pointer(q),
        pointer(kv),
        pointer(kv),
        "*fp32" if config.SPLIT else pointer(out),
        "*fp32",
        "*i64",
        "*i64",
    )
    types = (*pointers, pointer(index), "*i64", "*i64", "*fp32", "*fp32", "i64", "i64", *("i32",) * 9)
    types += ("i32", "i64", "i64", "i32", "i64", "i64", "i32", "i64", "i32", "i64", "i64", "i64", "i32")  # strides
    types += ("i32", "i32", "i32", "i32", "fp32", "fp32")
    even = ("width", "qt", "qh", "kh", "kr", "kp", "vh", "vr", "vp", "ot", "oh")
    return Kernel(attention, types, even, warps, stages, loose=LOOSE, C=config)


def config(arch, q, kv, words, few, pack, eight=0):
    """(Config, warps, stages), of a single segment; eight: see float8.py."""
    width = words[3]
    bm, bn, warps, stages = tiles(arch, q, kv, width, few, words[25] != 0)
    place = (1 if words[4] else 0) | (2 if words[6] else 0)
    dims = max(16, power_of_2(width))
    layout = (dims == width, 1, (words[18], words[38]) == (words[21], words[39]), pack > 1)
    facts = (words[9] >= 0, words[10] >= 0, place, words[12] != 0, words[25] != 0, words[30] != 0)
    more = (words[37], words[32] != 0, False, words[31] != 0)
    terms = arithmetic(arch, q, kv)
    return Config(bm, bn, dims, *layout, *facts, *terms, eight, *more), warps, stages


def counted_in(steps):
    """Config.STEP: 8 elements where that says more than that not all steps divide by 16."""
    return 8 if any(s % 16 for s in steps) and not any(s % 8 for s in steps) else 1


def _packed(group, most):
    """How many heads of a KV head stand beside one another: a divisor of `group` up to `most`."""
    return max(n for n in range(1, min(group, most) + 1) if group % n == 0)


def _forward(q, kv, out, index):
    size_q, size_kv, size_out = SIZES[q], SIZES[kv], SIZES[out]

    def plan(gpu, words):
        t, heads, groups, width = words[:4]
        sequences, group = max(words[34], 1), heads // groups
        queries = blocks(t, sequences) if words[32] else t
        pack = _packed(group, FEW) if queries * group <= FEW or queries == 1 else 1
        few = 0 if words[31] or (pack == 1 and queries > 16) else queries * pack
        pack = pack if few else 1
        eight, memory = reading(kv, gpu.arch, gpu.interpreted)
        made, warps, stages = config(gpu.arch, q, kv, words, few, pack, eight)
        per = made.BM // pack
        count = t // per + sequences if words[32] else blocks(t, per)
        programs = count * (heads // pack)
        wanted = blocks(2 * gpu.units, programs) if few else 0 if words[31] else gpu.units // programs
        segments = max(1, min(wanted, blocks(words[8], made.BN), MOST))
        made = made._replace(SPLIT=segments > 1)
        target, stats, more = words[22], words[31], ()
        if segments > 1:
            records = t * heads * segments
            target, owner = gpu.allocate(4 * records * (made.D + 2))
            stats, more = target + 4 * records * made.D, (owner,)
        steps = [s // size_q for s in words[14:16]]
        for first, page in ((17, 38), (20, 39)):
            steps += [words[first] // size_kv, words[first + 1] // size_kv, words[page] // size_kv]
        steps += [s // size_out for s in words[23:25]]
        unit = counted_in((width, *steps))
        made = made._replace(STEP=unit)
        width, steps = width // unit, [s // unit for s in steps] + [s // 4 for s in words[26:29]]
        arguments = [words[13], words[16], words[19], target, stats, words[32], words[33], words[35]]
        arguments += [words[4], words[6], words[25], words[30], words[5], words[7]]
        arguments += [t, words[8], width, heads, pack, group, count, segments, sequences, *steps, words[29], words[36]]
        arguments += [words[9], words[10], words[11], words[12]]
        compiled((q, memory, out, index), made, warps, stages)(gpu, (programs, segments, 1), *arguments)
        if more:
            merge(
                gpu,
                out,
                made.D,
                segments,
                target,
                stats,
                words[22],
                t,
                heads,
                width * unit,
                *(s * unit for s in steps[8:10]),
            )

    return plan


def build(name, *params, source=None):
    """forward (dtypes of q, of the caches, of out; that of a block table)."""
    if name != "forward" or len(params) != 4 or any(p not in SIZES for p in params[:3]):
        return None
    return _forward(*params)


def variants(arch):
    """Every row of the tables for a causal start in memory; then what else a kernel of 128 dims can do."""
    found = {}
    words = [0] * 40
    words[4], words[9], words[10] = 1, -1, 0

    def add(label, q, kv, width, few=0, **more):
        words[3], words[25] = width, more.get("MASK", 0)
        eight, memory = reading(kv, arch)
        made, warps, stages = config(arch, q, kv, words, few, 4 if few else 1, eight)
        made = made._replace(SPLIT=few > 0, **more)
        found[label] = compiled((q, memory, q, "i32"), made, warps, stages)

    for width in DIMS:
        for q, kv in (("f16", "f16"), ("f32", "f16"), ("f32", "f32")):
            add(f"{q} {kv} {width}", q, kv, width)
            add(f"decode {q} {kv} {width}", q, kv, width, 16)
    add("bf16 bf16 128", "bf16", "bf16", 128)
    add("decode f32 bf16 128, 32 rows", "f32", "bf16", 128, 32)
    add("f32 f8e4m3 128", "f32", "f8e4m3", 128)
    add("decode f32 f8e4m3 128", "f32", "f8e4m3", 128, 16)
    add("window, softcap f16 128", "f16", "f16", 128, LEFT=True, CAP=True)
    add("mask f16 128", "f16", "f16", 128, RIGHT=False, MASK=True)
    add("sequences, ALiBi bf16 128", "bf16", "bf16", 128, VARLEN=True, SLOPES=True)
    add("pages f16 128", "f16", "f16", 128, VARLEN=True, PAGE=16)
    add("decode pages f32 f16 128", "f32", "f16", 128, 16, VARLEN=True, PAGE=16)
    return found
