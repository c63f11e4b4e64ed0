"""Products with weights that are floats of 4 or 8 bits: NF4, FP4 and float8 e4m3 blocks (tensorlib/quant/private.py).

Their values are no whole numbers, so that products are of f32: weights are unpacked to f32 without a rounding, and
activations stay f32. A *group* of 128 weights of a row is unpacked to eight vectors by the few instructions that its
codes need where they lie: with a stride of S, the vector r of a run of 16 S weights has the weights S l + r in its
lanes l. Activations of matvec are put in the same order by `arrange`, zeros behind a row's end; matmul transposes 16
rows at a time into panels of columns, in their own order, for the register tiles of `matmul.py`.

A row of `FLOATS`: lines that load a group's codes, per run the f32 vector that its sums are multiplied by, and the
vectors. Lines use the addresses {b0}, {b1} ... of the group's blocks; past a row's end that is again the last one's.
"""

import re
import struct
from typing import NamedTuple

from llvmlite import ir

from . import levels, matmul, moe, simd, unpack, unpack_affine, unpack_low
from .quant import _MATVEC
from .quant_layout import ARRANGED_BYTES, GROUP, STRIDES
from .simd import F32x16, I16x32, _call, _const, _join_halves, _make, _shuffle, _splat, shuffle
from .transpose import store_transposed

_I8, _I32, _F32 = ir.IntType(8), ir.IntType(32), ir.FloatType()


# rows of weights, and of activations, that share what is loaded and unpacked: as many as registers hold
SHARED = {"avx512vnni": (4, 2), "avx2": (2, 2), "neon": (4, 2), "portable": (1, 1)}


class Floats(NamedTuple):
    """A format's row: blocks of `elements` weights in `nbytes`; `runs`: (scale, vectors), their expressions."""

    elements: int
    nbytes: int
    lines: tuple
    runs: tuple
    factor: float = 1.0  # of all sums, beside the scale


# ---- 16 floats by 4 bits -------------------------------------------------------------------------------------------


def _permuted(b, name, table, x):
    v = ir.VectorType(_F32, len(table))
    return _call(b, name, v, [_const(v, list(table)), x])


def _entries_avx512(b, table, x):
    return _permuted(b, "llvm.x86.avx512.permvar.sf.512", table, x)


def _entries_avx2(b, table, x):
    out = []
    for at in (0, 8):
        part = _shuffle(b, x, x, range(at, at + 8))
        low, high = (_permuted(b, "llvm.x86.avx2.permps", table[i : i + 8], part) for i in (0, 8))
        top = b.icmp_signed("<", b.shl(part, _const(part.type, 28)), _const(part.type, 0))
        out.append(b.select(top, high, low))
    return _join_halves(b, out)


def _entries_neon(b, table, x):
    bytes16, out = ir.VectorType(_I8, 16), []
    data = struct.pack("<16f", *table)
    parts = [_const(bytes16, list(data[i : i + 16])) for i in range(0, 64, 16)]
    for at in range(0, 16, 4):
        part = b.and_(_shuffle(b, x, x, range(at, at + 4)), _const(ir.VectorType(_I32, 4), 15))
        part = b.add(b.mul(part, _const(part.type, 0x04040404)), _const(part.type, 0x03020100))
        found = _call(b, "llvm.aarch64.neon.tbl4.v16i8", bytes16, [*parts, b.bitcast(part, bytes16)])
        out.append(b.bitcast(found, ir.VectorType(_F32, 4)))
    return _join_halves(b, out)


def _entries_plain(b, table, x):
    """halves of the table, chosen by one bit of the index after the other"""
    values = [_const(F32x16.ll, v) for v in table]
    for bit in range(4):
        odd = b.icmp_unsigned("!=", b.and_(x, _const(x.type, 1 << bit)), _const(x.type, 0))
        values = [b.select(odd, values[i + 1], values[i]) for i in range(0, len(values), 2)]
    return values[0]


ENTRIES = {"avx512vnni": _entries_avx512, "avx2": _entries_avx2, "neon": _entries_neon, "portable": _entries_plain}


def _entries(table, r):
    """Intrinsic f(64 bytes of codes, high nibbles first): entries of codes r, 8 + r, 16 + r, ..."""

    def lower(b, t, x):
        words = ir.VectorType(_I32, 16)
        return ENTRIES[levels.TARGET](b, table, b.lshr(b.bitcast(x, words), _const(words, 4 * (r ^ 1))))

    return _make("entries", lambda x: F32x16, lower, 1)


def _of_two(b, t, *addresses):
    """f32 at two addresses -> vector, each in eight lanes"""
    first, second = (_splat(b, simd._load(b, a, _F32), 16) for a in addresses)
    return _shuffle(b, first, second, [*range(8), *range(16, 24)])


wide_scales2 = _make("wide_scales2", lambda a, b: F32x16, _of_two, 2)

# ---- float8 ---------------------------------------------------------------------------------------------------------


def _e4m3(odd):
    """Intrinsic f(i8x64): the even or odd bytes, e4m3, as bits of f16, which lack a factor of 2**8 (denormals too)."""

    def lower(b, t, x):
        v = b.bitcast(x, I16x32.ll)
        v = v if odd else b.shl(v, _const(v.type, 8))
        return b.and_(b.ashr(v, _const(v.type, 1)), _const(v.type, 0xBF80 - 0x10000))

    return _make("e4m3", lambda x: I16x32, lower, 1)


def _poisoned(b, t, scale, *codes):
    """a vector of that scale; NaN if any of the bytes is e4m3's NaN"""
    i64, some = ir.IntType(64), None
    for x in codes:
        mask = b.bitcast(b.icmp_signed("==", b.or_(x, _const(x.type, -128)), _const(x.type, -1)), i64)
        some = mask if some is None else b.or_(some, mask)
    nan = ir.Constant(_F32, float("nan"))
    return _splat(b, b.select(b.icmp_unsigned("!=", some, _const(i64, 0)), nan, scale), 16)


even_e4m3, odd_e4m3 = _e4m3(False), _e4m3(True)
poisoned = _make("poisoned", lambda d, x: F32x16, _poisoned, 2)
poisoned2 = _make("poisoned2", lambda d, x, y: F32x16, _poisoned, 3)
half0, half1 = (shuffle(range(at, at + 16)) for at in (0, 16))

_E4M3 = tuple(f"{half}{n} = {half}_e4m3(x{n})" for n in (0, 1) for half in ("even", "odd"))
_RUNS = tuple(
    (n, h, tuple(f"h2f(half{h}({half}{n}, {half}{n}))" for half in ("even", "odd"))) for n in (0, 1) for h in (0, 1)
)


def _four_bits(nbytes, load, scales):
    lines = (f"v = {load}", f"d = {scales}")
    return Floats(GROUP // load.count("{b"), nbytes, lines, (("d", tuple(f"entries{r}(v)" for r in range(8))),))


_OF_64 = _four_bits(36, "ld2x32({b0} + 4, {b1} + 4)", "wide_scales2({b0}, {b1})")
_OF_32 = _four_bits(20, "ld4x16({b0} + 4, {b1} + 4, {b2} + 4, {b3} + 4)", "wide_scales4({b0}, {b1}, {b2}, {b3})")
FLOATS = {
    "nf4_64": _OF_64,
    "nf4_32": _OF_32,
    "fp4_64": _OF_64,
    "fp4_32": _OF_32,
    "f8_128": Floats(
        128,
        132,
        ("x0 = ld_i8x64({b0} + 4)", "x1 = ld_i8x64({b0} + 68)", *_E4M3, "d = poisoned2(ld_f32({b0}), x0, x1)"),
        (("d", tuple(v for _, _, run in _RUNS for v in run)),),
        256.0,
    ),
    "f8_32": Floats(
        32,
        36,
        ("x0 = ld2x32({b0} + 4, {b1} + 4)", "x1 = ld2x32({b2} + 4, {b3} + 4)", *_E4M3),
        tuple((f"poisoned(ld_f32({{b{2 * n + h}}}), x{n})", run) for n, h, run in _RUNS),
        256.0,
    ),
}

evens, odds = (shuffle(range(at, 32, 2)) for at in (0, 1))


def _scope(fmt, source):
    """What the lines of a format use; `source` is the text of its decode function, with its table."""
    scope = {**vars(simd), **vars(unpack), **vars(unpack_low), **vars(unpack_affine), **globals()}
    if STRIDES[fmt] == 8:
        made = {}
        exec(source, made)
        table = struct.unpack("<16f", made["TABLE"])
        scope |= {f"entries{r}": _entries(table, r) for r in range(8)}
    return scope


def _places(row):
    """Lines: where a group's blocks are, a0, a1 ... bytes into a row, which has `left` blocks from a0 on."""
    return [f"a{j} = a0 + min({j}, left - 1) * {row.nbytes}" for j in range(1, GROUP // row.elements)]


def _group(row, p):
    """(lines, vectors, scales) of that group of the row at p."""
    names = {f"b{j}": f"({p} + a{j})" for j in range(GROUP // row.elements)}
    text = ["; ".join(row.lines), *(v for _, run in row.runs for v in run), *(scale for scale, _ in row.runs)]
    lines, *found = (re.sub(r"\b(v|d|x\d|even\d|odd\d)\b", rf"\1_{p}", part).format(**names) for part in text)
    return lines.split("; "), found[:8], found[8:]


# ---- few rows -------------------------------------------------------------------------------------------------------


def _strided(names, stride):
    """(lines, vectors): of vectors in order, elements r, `stride` + r, 2 `stride` + r, ... for each r in turn."""
    if stride == 1:
        return [], names
    pairs = list(zip(names[::2], names[1::2]))
    halves = [[f"{x}{kind[0]}" for x, _ in pairs] for kind in ("evens", "odds")]
    lines = [f"{x}{kind[0]} = {kind}({x}, {y})" for kind in ("evens", "odds") for x, y in pairs]
    (first, even), (second, odd) = (_strided(half, stride // 2) for half in halves)
    return lines + first + second, [v for pair in zip(even, odd) for v in pair]


_ARRANGE = '''
def arrange(a, tid, nth):
    """Rows of f32 to groups in the order of a stride of {stride}. Words: x, row stride in bytes, K, rows, out."""
    x, stride, k, rows, out = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4)
    groups = (k + 127) // 128
    for t in range(rows * groups * tid // nth, rows * groups * (tid + 1) // nth):
        row = t // groups
        g = t - row * groups
        p, q, n = x + row * stride + 512 * g, out + {nbytes} * t, k - 128 * g
        {lines}
'''


def _arrange(stride):
    lines = [f"x{i} = ldn_f32x16(p + {64 * i}, n - {16 * i})" for i in range(8)]
    for i in range(0, 8, stride):
        more, found = _strided([f"x{i + j}" for j in range(stride)], stride)
        lines += more + [f"st_f32x16(q + {64 * (i + j)}, {v})" for j, v in enumerate(found)]
    text = _ARRANGE.format(stride=stride, nbytes=ARRANGED_BYTES, lines="\n        ".join(lines))
    return matmul.kernel(text, "arrange", evens=evens, odds=odds)


def _sums(row, rows, tokens):
    """Lines that add a group of weight rows at p0, p1 ... to the sums of tokens, which are at q0, q1 ..."""
    groups, each = [_group(row, f"p{j}") for j in range(rows)], 8 // len(row.runs)
    factor = "" if row.factor == 1.0 else f" * splat_f32x16({row.factor})"
    for lines, _, _ in groups:
        yield from lines
    for k in range(8):
        yield from (f"x{t} = ld_f32x16(q{t} + at + {64 * k})" for t in range(tokens))
        for j, (_, vectors, scales) in enumerate(groups):
            yield f"u = {vectors[k]}"
            for t in range(tokens):
                yield f"s{j}_{t} = fma(u, x{t}, s{j}_{t})" if k % each else f"s{j}_{t} = u * x{t}"
            if k % each == each - 1:
                yield f"d = {scales[k // each]}"
                yield from (f"sum{j}_{t} = fma(s{j}_{t}{factor}, d, sum{j}_{t})" for t in range(tokens))


_ROWS = """
def rows(w, y, out, residual, n, blocks, stride, size, r0, r1, live):
    # As in quant.py: weight rows r0 to r1 times `tokens` tokens, of which `live` count. Several rows share the loads of
    # activations, which may not fit into the L1; those beyond the last repeat it. (One offset for all: LLVM makes a
    # vector of several addresses that move alike.)
    for r in range(r0, r1, {rows}):
        last = r1 - r - 1
        {start}
        a0, at, left = 0, 0, blocks * 32 // {elements}
        while left > 0:
            {group}
            a0 += {nbytes}; at += {arranged}; left -= {each}
        {end}
"""


def _rows(row, scope, count, tokens):
    many, rows, nbytes = range(tokens), range(count), GROUP // row.elements * row.nbytes
    pairs, end = [(j, t) for j in rows for t in many], []
    for j, t in pairs:
        end += [f"if {j} <= last and {t} < live:", f"    s = hsum(sum{j}_{t})", f"    at = 4 * (n * {t} + r + {j})"]
        end += ["    if residual != 0:", "        s += ld_f32(residual + at)", "    st_f32(out + at, s)"]
    start = [f"p{j} = w + (r + min({j}, last)) * stride" for j in rows]
    start += [f"q{t} = y + min({t}, live - 1) * size" for t in many]
    ahead = [f"prefetch(p{j} + {count} * stride + a0 + {at})" for j in rows for at in range(0, nbytes, 64)]
    lines = {
        "start": (8, start + [f"sum{j}_{t} = zero_f32x16()" for j, t in pairs]),
        "group": (12, [*ahead, *_places(row), *_sums(row, count, tokens)]),
        "end": (8, end),
    }
    words = {"rows": count, "nbytes": nbytes, "arranged": ARRANGED_BYTES, "each": GROUP // row.elements}
    words["elements"] = row.elements
    text = _ROWS.format(**words, **{k: ("\n" + " " * n).join(v) for k, (n, v) in lines.items()})
    return matmul.compiled(text, "rows", **scope)


def _few(name):
    def made(fmt, source):
        row, scope, (rows, tokens) = FLOATS[fmt], _scope(fmt, source), SHARED[levels.TARGET]
        parts = {"one_token": _rows(row, scope, rows, 1), "many_tokens": _rows(row, scope, rows, tokens)}
        size = f"(blocks + 3) // 4 * {ARRANGED_BYTES}"
        words = {"elements": row.elements, "nbytes": row.nbytes, "size": size, "tokens": tokens}
        if name == "experts":
            return moe.experts(**parts, **words)
        return matmul.kernel(_MATVEC.format(**words), name, **parts)

    return made


# ---- many rows ------------------------------------------------------------------------------------------------------

_UNPACK = """
def unpack(src, stride, exist, k, dst, step, tmp):
    # `k` weights each of 16 rows, of which `exist` are in memory, to dst + i * step: 16 lanes per weight
    for g in range((k + 127) // 128):
        a0, left = g * {nbytes}, (k - 128 * g) // {elements}
        {places}
        for j in range(16):
            p = src + min(j, exist - 1) * stride
            {group}
        for i in range(8):
            t = tmp + 1024 * i
            to = dst + step * (128 * g + i // {run} * {run16} + i % {run})
            store_transposed(to, {run} * step, {rows})
"""


def _unpack(fmt, source):
    row, run = FLOATS[fmt], STRIDES[fmt]
    group, vectors, scales = _group(row, "p")
    factor, each = "" if row.factor == 1.0 else f" * splat_f32x16({row.factor})", 8 // len(scales)
    group += [f"e{i} = {scale}" for i, scale in enumerate(scales)]
    group += [f"st_f32x16(tmp + {1024 * k} + 64 * j, {v}{factor} * e{k // each})" for k, v in enumerate(vectors)]
    words = {"elements": row.elements, "nbytes": GROUP // row.elements * row.nbytes, "run": run, "run16": 16 * run}
    words |= {"group": "\n            ".join(group), "places": "\n        ".join(_places(row))}
    words["rows"] = ", ".join(f"ld_f32x16(t + {64 * j})" for j in range(16))
    scope = _scope(fmt, source) | {"store_transposed": store_transposed}
    return matmul.compiled(_UNPACK.format(**words), "unpack", **scope)


_STORE = """
def store(p, rows, columns, c, stride, residual):
    # a finished tile to C, plus what is at `residual`, if that is not 0
    for i in range(rows):
        for j in range({vectors}):
            many, at = min(16, columns - 16 * j), 4 * (i * stride + 16 * j)
            if many > 0:
                x = ld_f32x16(p + 64 * (i * {vectors} + j))
                if residual != 0:
                    x = x + ldn_f32x16(residual + at, many)
                stn_f32x16(c + at, x, many)
"""
_MULTIPLY = """
def multiply(a, x, w, t0, t1, k0, kk, panel, p, step):
    # tiles t0 ... t1 - 1 of x times `kk` weights, from k0 on, of each row of a panel; sums are kept at p meanwhile
    out, n, k, residual, m = arg(a, 2), arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 6)
    tile, p = 4 * (k * {mr} + {pad}), p + t0 * step
    for t in range(t0, t1):
        rows = min({mr}, m - t * {mr})
        h, to = height(rows), 4 * (t * {mr} * n + panel * {nr})
        if k0 + kk == k:
            for i in range(rows):
                for v in range(0, {width}, 64):
                    prefetch(out + to + 4 * i * n + v)
        run_tiles(h, kk, x + 4 * k0 * h, w, p, k0 > 0, tile)
        if k0 + kk == k:
            store(p, rows, n - panel * {nr}, out + to, n, residual + to if residual != 0 else 0)
        x += tile
        p += step
"""
_MATMUL = '''
def matmul(a, tid, nth):
    """out[m, n] = x[m] . weights[n] (+ residual). Words: weights, x as `pack` of matmul.py has it, out, N, K, residual
    or 0, M, weights of K per block, columns per group, scratch, its bytes per thread. Threads share the panels.
    """
    w, x, out, n, k, residual, m = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 6)
    deep, group, tmp = arg(a, 7), arg(a, 8) // {nr}, arg(a, 9) + arg(a, 10) * tid
    packed = tmp + 8192
    parts = packed + {width} * group * deep
    stride, tile = k // {elements} * {nbytes}, 4 * (k * {mr} + {pad})
    panels, tiles, blocks = (n + {nr} - 1) // {nr}, (m + {mr} - 1) // {mr}, (k + deep - 1) // deep
    end = panels * (tid + 1) // nth
    for first in range(panels * tid // nth, end, group):
        many = min(group, end - first)
        step = many * {mr} * {width} * (blocks > 1)
        for b in range(blocks):
            k0 = b * deep
            kk = min(deep, k - k0)
            for v in range(0, {nr} * many, 16):
                row = first * {nr} + v
                if row < n:
                    to = packed + v // {nr} * {width} * deep + 4 * (v % {nr})
                    unpack(w + row * stride + k0 // {elements} * {nbytes}, stride, n - row, kk, to, {width}, tmp)
            for t0 in range(0, tiles, {block}):
                t1 = min(tiles, t0 + {block})
                for j in range(many):
                    panel, p = packed + j * {width} * deep, parts + j * {mr} * {width}
                    multiply(a, x + t0 * tile, panel, t0, t1, k0, kk, first + j, p, step)
'''


def _matmul(fmt, source):
    (mr, vectors, _), row = matmul.TILES[levels.TARGET], FLOATS[fmt]
    words = {"mr": mr, "vectors": vectors, "nr": 16 * vectors, "width": 64 * vectors, "pad": matmul.PAD}
    words |= {"block": matmul.BLOCK_ROWS // mr, "elements": row.elements, "nbytes": row.nbytes}
    parts = {"run_tiles": matmul._tiles("f32"), "height": matmul.height_of()}
    parts["store"] = matmul.compiled(_STORE.format(**words), "store")
    multiply = matmul.compiled(_MULTIPLY.format(**words), "multiply", **parts)
    return matmul.kernel(_MATMUL.format(**words), "matmul", unpack=_unpack(fmt, source), multiply=multiply)


KERNELS = {"matvec": _few("matvec"), "experts": _few("experts"), "matmul": _matmul}


def build(name, *params, source=None):
    """ "arrange" stride; "matvec", "experts" and "matmul" fmt; None for others."""
    if name == "arrange":
        return _arrange(*params)
    return KERNELS[name](*params, source) if name in KERNELS and params[0] in FLOATS else None
