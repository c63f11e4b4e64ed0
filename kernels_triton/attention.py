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

from triton.tools.tensor_descriptor import TensorDescriptor

from .attention_decode import merge
from .flash import Config, attention
from .float8 import reading
from .launch import COUNTERS, TYPES, Kernel, blocks, pick, pointer, power_of_2, scratch
from .persistent import Element, Memory

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
    90: ((16, 64, 4, 2), (16, 64, 4, 3), (16, 32, 8, 2)),
    "gfx942": ((16, 64, 4, 1), (16, 32, 4, 1), (16, 32, 4, 1)),
}
DECODE_WIDE = {
    75: ((16, 32, 4, 1), (16, 32, 4, 1), (16, 16, 4, 1)),
    80: ((16, 32, 4, 2), (16, 16, 4, 3), (16, 16, 8, 1)),
    "gfx942": ((16, 32, 4, 1), (16, 32, 4, 1), (16, 16, 4, 1)),
}
FEW = 32  # rows (queries times heads of a KV head) up to which tiles are those of decoding; beyond 16, of 8 warps
MOST = 128  # segments of the keys
LOADED = {  # tiles of the copy engine by head dim, Config.LOADS: of many queries; where there are few programs
    90: {64: ((128, 64, 4, 3, 2), (64, 64, 4, 3, 2)), 128: ((128, 128, 8, 3, 2), (64, 64, 4, 3, 2))},
}
LARGE = 1 << 27  # queries times keys times heads for which descriptors pay
NEAR = 16 << 20  # bytes of keys and values that stay in the cache
LOOSE = (
    "counter_ptr",
    "starts_ptr",
    "key_starts_ptr",
    "table_ptr",
    "start_ptr",
    "length_ptr",
    "mask_ptr",
    "slopes_ptr",
)


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
    operands = (pointer(q), pointer(kv), pointer(kv))
    if config.LOADS:
        rows = (config.BM, config.BN, config.BN)
        operands = tuple(f"tensordesc<{p[1:]}[1,{n},{config.D}]>" for p, n in zip(operands, rows))
    types = (*operands, pointer(out), "*fp32", "*fp32", "*i32", "*i64", "*i64", pointer(index), "*i64", "*i64")
    types += ("*fp32", "*fp32", "i64", "i64", *("i32",) * 10)
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


def _steps(q, kv, out, words):
    """Strides in elements: of q, k, v with their pages, out."""
    steps = [s // SIZES[q] for s in words[14:16]]
    for first, page in ((17, 38), (20, 39)):
        steps += [words[first] // SIZES[kv], words[first + 1] // SIZES[kv], words[page] // SIZES[kv]]
    return [*steps, *(s // SIZES[out] for s in words[23:25])]


def _loads(arch, units, q, kv, words, steps, few):
    """The tile of a kernel for the copy engine, or None: many queries, whose blocks of keys end with what they see."""
    (t, heads, _, width), keys = words[:4], min(words[8], words[7] if words[7] >= 0 else words[0])
    rows, whole = LOADED.get(arch), words[10] < 0 or (words[10] == 0 and t == keys)
    if rows is None or q != kv or SIZES[q] != 2 or width not in rows or few or not whole or t * keys * heads < LARGE:
        return None
    if any(words[4:7]) or not words[11] > 0 or words[32] or words[37] or any(s % 8 for s in steps):
        return None
    if words[12] or words[25] or words[30]:  # a cap, a mask, slopes: scores are more than scaled products
        return None
    if (words[13] | words[16] | words[19]) & 15:
        return None
    many, less = rows[width]
    return many if blocks(t, many[0]) * heads >= 2 * units else less


def _descriptors(q, made, words, steps):
    """Of q, k, v as (heads, rows, dims)."""
    (t, heads, groups, width), keys = words[:4], min(words[8], words[7] if words[7] >= 0 else words[0])
    given = ((words[13], heads, t, steps[1], steps[0], made.BM), (words[16], groups, keys, *steps[2:4], made.BN))
    given += ((words[19], groups, keys, *steps[5:7], made.BN),)
    return [
        TensorDescriptor(Memory(ptr, Element(TYPES[q])), [n, rows, width], [a, b, 1], [1, block, width])
        for ptr, n, rows, a, b, block in given
    ]


def _segments(gpu, programs, few, keys, bn):
    """How many segments of the keys: few rows fill the GPU once or, with many programs, twice; a segment has a block
    at least.
    """
    wanted = gpu.units // programs if not few else blocks(gpu.units * (1 if 4 * programs <= gpu.units else 2), programs)
    return max(1, min(wanted, blocks(keys, bn), MOST))


def _forward(q, kv, out, index):
    size_kv = SIZES[kv]

    def plan(gpu, words):
        t, heads, groups, width = words[:4]
        sequences, group = max(words[34], 1), heads // groups
        queries = blocks(t, sequences) if words[32] else t
        pack = _packed(group, FEW) if queries * group <= FEW or queries == 1 else 1
        few = 0 if words[31] or (pack == 1 and queries > 16) else queries * pack
        pack = pack if few else 1
        eight, memory = reading(kv, gpu.arch, gpu.interpreted)
        made, warps, stages = config(gpu.arch, q, kv, words, few, pack, eight)
        steps = _steps(q, kv, out, words)
        loads = _loads(gpu.arch, gpu.units, q, kv, words, steps, few)
        if loads:
            bm, bn, warps, stages, loads = loads
            made = made._replace(BM=bm, BN=bn, LOADS=loads)
        per = made.BM // pack
        count = t // per + sequences if words[32] else blocks(t, per)
        programs = count * (heads // pack)
        segments = 1 if words[31] or loads else _segments(gpu, programs, few, words[8], made.BN)
        inside = few if programs <= COUNTERS else 0
        records, stats, counters, owner = words[31], 0, 0, None
        if segments > 1:
            made = made._replace(SPLIT=-1 if not inside else made.BM if words[32] else power_of_2(inside))
            some = t * heads * segments
            records, owner = scratch(gpu, 4 * some * (made.D + 2))
            stats, counters = records + 4 * some * made.D, gpu.workspace()
        together = 1
        if words[10] >= 0 and not words[32]:  # the longest first, of heads whose keys fit into the cache
            together = max(1, min(heads, NEAR // (2 * words[8] * width * size_kv) * group) // pack)
        unit = 1 if loads else counted_in((width, *steps))
        made = made._replace(STEP=unit)
        arguments = _descriptors(q, made, words, steps) if loads else [words[13], words[16], words[19]]
        arguments += [words[22], records, stats, counters, words[32], words[33], words[35]]
        arguments += [words[4], words[6], words[25], words[30], words[5], words[7], t, words[8], width // unit, heads]
        arguments += [pack, group, count, together, segments, sequences, *(s // unit for s in steps)]
        arguments += [*(s // 4 for s in words[26:29]), words[29], words[36], *words[9:13]]
        compiled((q, memory, out, index), made, warps, stages)(gpu, (programs, segments, 1), *arguments)
        if made.SPLIT < 0:
            merge(gpu, out, made.D, segments, records, stats, words[22], t, heads, width, *steps[8:10])
        del owner

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
        made = made._replace(SPLIT=few, **more)
        found[label] = compiled((q, memory, q, "i32"), made, warps, stages)

    for width in DIMS:
        for q, kv in (("f16", "f16"), ("f32", "f16"), ("f32", "f32")):
            add(f"{q} {kv} {width}", q, kv, width)
            add(f"decode {q} {kv} {width}", q, kv, width, 16)
    for width, bm, bn, warps, stages, loads in (
        (w, *tile) for w, some in LOADED.get(arch, {}).items() for tile in some
    ):
        words[3], words[4] = width, 0
        made = config(arch, "f16", "f16", words, 0, 1)[0]._replace(BM=bm, BN=bn, LOADS=loads)
        found[f"copy engine f16 {width}, {bm} rows"] = compiled(("f16", "f16", "f16", "i32"), made, warps, stages)
        words[4] = 1
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
