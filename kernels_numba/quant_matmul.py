"""Matmul with GGML-quantised weights: 16 weight rows at a time become a panel of u8, multiplied with tiles of tokens.

A panel holds, per block of 32 weights, 8 vectors (one per four weights) of 16 rows x 4 bytes, 512 bytes; and the f32
scale of every row, 64 bytes (two such for formats whose half-blocks differ), and the minima likewise. Panels live in
per-thread scratch, at most 128 blocks long; the packing is a few per cent of the work from 64 tokens on.

Packed activations: tiles of `tokens` rows of x; per block of 32: [8][tokens] x 4 bytes, then per token an i32 start
value (-bias * sum; two for formats with halves), the f32 scale d, and d * sum (absent with halves, or, for formats with
minima too, in the place of the start values).
"""

from llvmlite import ir
from numba import types
from numba.extending import register_jitable

from . import activate, quant_tiles, simd
from .quant_layout import GROUP, PANEL_BLOCKS, block_bytes
from .simd import (
    F32x16,
    I32x16,
    _const,
    _load,
    _make,
)
from .transpose import transpose16
from .unpack_all import SCOPE, UNPACK, of_source

CHUNK_BYTES = 400 << 10  # packed activations that one pass over the weights uses: they stay in a 1 MB L2


def _transposed(vector, picks):
    """Intrinsic f(address): 16 rows of 64 bytes, transposed as 16 x 16 words; a tuple of the columns `picks`."""
    result = types.UniTuple(vector, len(picks))

    @simd.intrinsic
    def load(typingctx, address):
        def codegen(context, b, signature, values):
            rows = [_load(b, b.add(values[0], _const(ir.IntType(64), 64 * j)), vector.ll) for j in range(16)]
            columns = transpose16(b, rows)
            return context.make_tuple(b, result, [columns[i] for i in picks])

        return result(address), codegen

    return load


words16 = _transposed(I32x16, range(16))
blocks4 = _transposed(F32x16, (0, 4, 8, 12))
halves8 = _transposed(F32x16, range(0, 16, 2))


def _broadcast(vector, scalar):
    return _make("broadcast", lambda a: vector, lambda b, t, a: simd._splat(b, _load(b, a, scalar), 16), 1)


broadcast_f32, broadcast_i32 = _broadcast(F32x16, ir.FloatType()), _broadcast(I32x16, ir.IntType(32))


def _word(k):
    """Intrinsic f(i8x16): bytes 4k to 4k + 3 as an i32."""

    def lower(b, t, x):
        return b.extract_element(b.bitcast(x, ir.VectorType(ir.IntType(32), 4)), _const(ir.IntType(32), k))

    return _make("word", lambda x: types.int32, lower, 1)


word0, word1, word2, word3 = (_word(k) for k in range(4))


def _scope(**more):
    return {**SCOPE, **globals(), **more}


def _compile(source, name, scope):
    exec(compile(source, f"<quant {name}>", "exec"), scope)
    return scope[name]


# ---- weights ----------------------------------------------------------------------------------------------------


def _pack_rows(fmt, group):
    """Lines that unpack group `group` (of a super-block; 0 for blocks of 32) of row j at p to scratch rows of 64
    bytes.
    """
    row = UNPACK[fmt]
    names = {"p": "p", "g": group, "g2": group + 2}
    if row.elements < GROUP:
        addresses = [f"(p + min({j}, real // {row.elements // 32} - 1) * {row.nbytes})" for j in range(4)]
        names |= {f"b{j}": a for j, a in enumerate(addresses)}
    lines = [line.format(**names) for line in row.once + row.lines]
    if row.elements == 32 and row.f16:
        lines.append("d = scales4({}, {}, {}, {})".format(*addresses))
        if row.minimum:
            lines.append("m = scales4({} + 2, {} + 2, {} + 2, {} + 2)".format(*addresses))
        lines += ["m = zero_f32x16() - d * m"] * row.zero
    lines += ["st_i8x64(tmp + 64 * j, lo)", "st_i8x64(tmp + 1024 + 64 * j, hi)"]
    return lines + [f"st_f32x16(tmp + {2048 + 1024 * i} + 64 * j, {name})" for i, name in enumerate(_per_row(row))]


def _per_row(row):
    """The f32 vectors beside lo and hi."""
    return ["d"] + ["dh"] * row.halves + ["m"] * row.minimum


def _pack_group(fmt, group):
    """Lines that pack one group of 16 rows: unpack row by row, then transpose into the panel."""
    row = UNPACK[fmt]
    lines = ["for j in range(16):", "    p = src + min(j, rows - 1) * stride"]
    lines += ["    " + line for line in _pack_rows(fmt, group)]
    lines += ["t = words16(tmp)", "u = words16(tmp + 1024)"]
    both = row.halves and row.minimum
    for i, name in enumerate(_per_row(row)):
        lines.append(f"{name}4 = {'halves8' if both and name == 'm' else 'blocks4'}(tmp + {2048 + 1024 * i})")
    size = 128 if row.halves else 64
    for block in range(4):
        body = [f"st_i32x16(dp + {512 * block + 64 * q}, t[{4 * block + q}])" for q in range(4)]
        body += [f"st_i32x16(dp + {512 * block + 256 + 64 * q}, u[{4 * block + q}])" for q in range(4)]
        body.append(f"st_f32x16(ds + {size * block}, d4[{block}])")
        if row.halves:
            body.append(f"st_f32x16(ds + {size * block + 64}, dh4[{block}])")
        if both:
            body += [f"st_f32x16(dn + {128 * block + 64 * h}, m4[{2 * block + h}])" for h in (0, 1)]
        elif row.minimum:
            body.append(f"st_f32x16(dn + {64 * block}, m4[{block}])")
        if row.elements < GROUP and block:
            lines.append(f"if real > {block}:")
            body = ["    " + line for line in body]
        lines += body
    lines += ["dp += 2048", f"ds += {4 * size}", f"dn += {4 * size}"]
    return lines


def _pack_panel(fmt, source):
    """Function: blocks `first` to `first + count` of up to 16 rows at src into panel dp, scales ds, minima dn; tmp 5
    KiB.
    """
    row = UNPACK[fmt]
    unit = row.elements // 32
    head = f"src += first // {unit} * {row.nbytes}"
    if row.elements < GROUP:
        loop = "while count > 0:"
        body = ["real = min(count, 4)", *_pack_group(fmt, 0), f"src += {4 // unit * row.nbytes}", "count -= 4"]
    else:
        loop = f"for i in range(count // {unit}):"
        body = [line for g in range(row.elements // GROUP) for line in _pack_group(fmt, g)]
        body.append(f"src += {row.nbytes}")
    text = "\n        ".join(body)
    function = f"def pack(src, stride, rows, first, count, dp, ds, dn, tmp):\n    {head}\n    {loop}\n        {text}\n"
    return register_jitable(_compile(function, "pack", _scope(**of_source(fmt, source))))


# ---- the product ------------------------------------------------------------------------------------------------


def _segment(row, tokens, first, last, start, scale):
    """Lines: quads first..last of a block into the accumulators f0.., with start values and scales at those offsets."""
    n, out = 4 * tokens, []
    dot4 = "dot4_small" if row.small else "dot4"
    for j in range(tokens):
        out.append(f"s{j} = broadcast_i32(y + {start * n + 4 * j})" if row.bias else f"s{j} = zero_i32x16()")
    for q in range(first, last):
        out.append(f"w = ld_i8x64(wp + {64 * q})")
        out += [f"s{j} = {dot4}(s{j}, w, broadcast4(y + {n * q + 4 * j}))" for j in range(tokens)]
    out.append(f"d = ld_f32x16(ws + {scale})")
    at = 10 if row.halves else 9
    out += [f"f{j} = fma(i2f(s{j}), d * broadcast_f32(y + {at * n + 4 * j}), f{j})" for j in range(tokens)]
    if row.minimum:
        out.append(f"m = ld_f32x16(wm + {scale})")
        at = start if row.halves else 10
        out += [f"f{j} = fma(m, broadcast_f32(y + {at * n + 4 * j}), f{j})" for j in range(tokens)]
    return out


def _tile(fmt, tokens, ahead=0, act=None):
    """Function: `nb` blocks of a panel times one tile, added to the 16 x tokens values at `add` (if any), stored at
    c. The panel is asked for `ahead` bytes before it is needed. With `act`, the sums are whole: the bias of the rows
    comes to them, if there is one, and the activation, before they are added.
    """
    row = UNPACK[fmt]
    lines = [f"f{j} = zero_f32x16()" for j in range(tokens)]
    body = _segment(row, tokens, 0, 4 if row.halves else 8, 8, 0)
    if row.halves:
        body += _segment(row, tokens, 4, 8, 9, 64)
    size = 128 if row.halves else 64
    body += [f"prefetch(wp + {ahead + at})" for at in range(0, 512 if ahead else 0, 64)]
    body.append(f"wp += 512; ws += {size}; wm += {size}; y += {block_bytes(tokens, row.halves)}")
    lines += ["for i in range(nb):", *("    " + line for line in body)]
    if act:
        lines += ["if bias != 0:", "    v = ldn_f32x16(bias, rows)"]
        lines += [f"    f{j} = f{j} + v" for j in range(tokens)]
        lines += [f"f{j} = act(f{j})" for j in range(tokens)] if act != "none" else []
    lines += ["if add != 0:"]
    for j in range(tokens):
        lines += [f"    if {j} < many:", f"        f{j} = f{j} + ldn_f32x16(add + {j} * ldc, rows)"]
    for j in range(tokens):
        lines += [f"if {j} < many:", f"    stn_f32x16(c + {j} * ldc, f{j}, rows)"]
    names = "nb, wp, ws, wm, y, c, add, ldc, rows, many" + (", bias" if act else "")
    source = f"def tile({names}):\n    " + "\n    ".join(lines) + "\n"
    return register_jitable(_compile(source, "tile", _scope(act=activate.ACTIVATIONS.get(act))))


_MATMUL = '''
def matmul(a, tid, nth):
    """out[m, n] = x[m] . weights[n] (+ residual), f32, row-major.

    Words: weights, packed activations, out, N, K, residual or 0, M, scratch, scratch bytes per thread.
    """
    w, y, out, n, k, residual, m = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 6)
    dp = arg(a, 7) + arg(a, 8) * tid
    ds = dp + {panel} * 512
    dm = ds + {panel} * 128
    tmp = dm + {panel} * 128
    blocks = k // 32
    stride = k // {elements} * {nbytes}
    tile_bytes = blocks * {block}
    tiles = (m + {tokens} - 1) // {tokens}
    step = max(1, {chunk} // tile_bytes)
    panels = (n + 15) // 16
    for first in range(0, tiles, step):
        for g in range(panels * tid // nth, panels * (tid + 1) // nth):
            rows = min(16, n - 16 * g)
            for b in range(0, blocks, {panel}):
                count = min({panel}, blocks - b)
                pack(w + 16 * g * stride, stride, rows, b, count, dp, ds, dm, tmp)
                source = residual if b == 0 else out
                for t in range(first, min(tiles, first + step)):
                    at = 4 * (t * {tokens} * n + 16 * g)
                    add = source + at if source != 0 else 0
                    tile(count, dp, ds, dm, y + t * tile_bytes + b * {block}, out + at, add, 4 * n, rows, m - t *
                    {tokens}) '''


def _matmul(fmt, tokens, source=None):
    row = UNPACK.get(fmt)
    if row is None:
        return None
    words = {"elements": row.elements, "nbytes": row.nbytes, "tokens": tokens, "panel": PANEL_BLOCKS}
    words |= {"chunk": CHUNK_BYTES, "block": block_bytes(tokens, row.halves)}
    return _compile(_MATMUL.format(**words), "matmul", _scope(pack=_pack_panel(fmt, source), tile=_tile(fmt, tokens)))


# ---- panels that are kept -----------------------------------------------------------------------------------------

_PANELS = '''
def panels(a, tid, nth):
    """All weights as panels of 16 rows. Words: weights, out, N, K, scratch, scratch bytes per thread (5 KiB)."""
    w, out, n, k, tmp = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4) + arg(a, 5) * tid
    blocks, stride, panels = k // 32, k // {elements} * {nbytes}, (n + 15) // 16
    for g in range(panels * tid // nth, panels * (tid + 1) // nth):
        dp = out + g * blocks * {panel}
        ds = dp + blocks * 512
        pack(w + 16 * g * stride, stride, min(16, n - 16 * g), 0, blocks, dp, ds, ds + blocks * {scales}, tmp)
'''
_KEPT = '''
def kept(a, tid, nth):
    """out[m, n] = act(x[m] . weights[n] + bias[n]) (+ residual), out of panels. Words: panels, packed activations, out,
    N, K, residual or 0, M, bias or 0."""
    w, y, out, n, k, residual, m = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 6)
    blocks, panels, tiles = k // 32, (n + 15) // 16, (m + {tokens} - 1) // {tokens}
    tile_bytes = blocks * {block}
    step = max(1, {chunk} // tile_bytes)
    for first in range(0, tiles, step):
        for g in range(panels * tid // nth, panels * (tid + 1) // nth):
            dp = w + g * blocks * {panel}
            ds = dp + blocks * 512
            dm = ds + blocks * {scales}
            for t in range(first, min(tiles, first + step)):
                at = 4 * (t * {tokens} * n + 16 * g)
                add = residual + at if residual != 0 else 0
                rows, many = min(16, n - 16 * g), m - t * {tokens}
                bias = arg(a, 7) + 64 * g if arg(a, 7) != 0 else 0
                tile(blocks, dp, ds, dm, y + t * tile_bytes, out + at, add, 4 * n, rows, many, bias)
'''
AHEAD = 4096  # bytes


def _kept(fmt, tokens=0, act="none", source=None):
    """The kernel that makes panels, or, for tiles of `tokens`, the one that uses them, and ends with `act`."""
    row = UNPACK.get(fmt)
    if row is None or act not in activate.ACTIVATIONS:
        return None
    scales, minima = 64 << bool(row.halves), (64 << bool(row.halves)) * bool(row.minimum)
    words = {"elements": row.elements, "nbytes": row.nbytes, "scales": scales, "panel": 512 + scales + minima}
    if not tokens:
        return _compile(_PANELS.format(**words), "panels", _scope(pack=_pack_panel(fmt, source)))
    words |= {"tokens": tokens, "block": block_bytes(tokens, row.halves), "chunk": CHUNK_BYTES}
    return _compile(_KEPT.format(**words), "kept", _scope(tile=_tile(fmt, tokens, AHEAD, act)))


def build(name, *params, source=None):
    """ "quantize_tiles" tokens halves, "matmul" and "kept" fmt tokens act, "panels" fmt; None for others."""
    if name == "quantize_tiles":
        return quant_tiles.build(*params)
    if name in ("panels", "kept"):
        return _kept(*params, source=source)
    return _matmul(*params, source) if name == "matmul" else None
