"""Products with weights that are floats of 4 or 8 bits: NF4, FP4 and float8 e4m3 blocks (tensorlib/quant/private.py).

Their values are no whole numbers, so that products are of f32: weights are unpacked to f32 without a rounding, in the
order of `unpack_float.py`, and activations stay f32. Those of matvec are put in the same order by `arrange`, zeros
behind a row's end; matmul transposes 16 rows of weights at a time into panels of columns, in their own order, for the
register tiles of `matmul.py`.
"""

import re

from . import levels, matmul, moe
from .quant import _MATVEC
from .quant_layout import ARRANGED_BYTES, GROUP, STRIDES
from .simd import shuffle
from .transpose import store_transposed
from .unpack_float import FLOATS, scope_of

# rows of weights, and of activations, that share what is loaded and unpacked: as many as registers hold
SHARED = {"avx512vnni": (4, 2), "avx2": (2, 2), "neon": (4, 2), "portable": (1, 1)}
evens, odds = (shuffle(range(at, 32, 2)) for at in (0, 1))


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
        row, scope, (rows, tokens) = FLOATS[fmt], scope_of(fmt, source), SHARED[levels.TARGET]
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
    scope = scope_of(fmt, source) | {"store_transposed": store_transposed}
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
