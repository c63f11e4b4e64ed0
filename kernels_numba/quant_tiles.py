"""Activations as matmul with quantised weights takes them: 8 bits per element and a scale per 32, in tiles of rows.

Two blocks of 32 of a row are 64 bytes; those of a tile's rows are transposed as words, so that four elements of all
rows lie side by side. See `quant_matmul.py` for what stands in a block.
"""

from llvmlite import ir
from numba import types
from numba.extending import register_jitable

from . import dot, simd
from .quant_layout import block_bytes
from .simd import _I32, I32x16, _const, _join_halves, _make, constant
from .transpose import transpose16

ones_u8 = constant("i8", 64, 1)


def _largest(b, t, x, y):
    """the largest magnitude of two vectors: as integers, so that NaN and infinities are the largest"""
    x, y = (b.and_(b.bitcast(v, I32x16.ll), _const(I32x16.ll, 0x7FFFFFFF)) for v in (x, y))
    top = b.select(b.icmp_signed(">", x, y), x, y)
    return b.bitcast(simd._call(b, "llvm.vector.reduce.smax.v16i32", _I32, [top]), ir.FloatType())


largest = _make("largest", lambda x, y: types.float32, _largest, 2)
joined = _make("joined", lambda *x: I32x16, lambda b, t, *x: b.bitcast(_join_halves(b, list(x)), I32x16.ll), 4)


def _transposed(count):
    """Intrinsic f(tuple of `count` vectors of 16 words): the tuple of the 16 columns, zeros for the rows beyond."""
    result = types.UniTuple(I32x16, 16)

    @simd.intrinsic
    def columns(typingctx, rows):
        def codegen(context, b, signature, values):
            found = [b.extract_value(values[0], i) for i in range(count)]
            found += [_const(I32x16.ll, 0)] * (16 - count)
            return context.make_tuple(b, result, transpose16(b, found))

        return result(rows), codegen

    return columns


_ROW = """
def half(p, scale):
    # 32 floats in 8 bits, 16 and 16; their scale is NaN where there is what no number of 8 bits stands for
    u, v = ld_f32x16(p), ld_f32x16(p + 64)
    top = largest(u, v)
    st_f32(scale, top * (1.0 / 127.0) + top * 0.0)
    by = 0.0
    if top > 0.0:
        by = 127.0 / top
    s = splat_f32x16(by)
    return narrow_i8(f2i(vround(u * s))), narrow_i8(f2i(vround(v * s)))
"""
_TILES = '''
def quantize_tiles(a, tid, nth):
    """f32 rows to tiles of {tokens}. Words: x, row stride in bytes, K, rows, out, bias."""
    x, stride, k, rows, out, bias = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4), arg(a, 5)
    blocks = k // 32
    pairs, tiles = (blocks + 1) // 2, (rows + {tokens} - 1) // {tokens}
    for t in range(tiles * pairs * tid // nth, tiles * pairs * (tid + 1) // nth):
        tile = t // pairs
        first = 2 * (t - tile * pairs)
        e = out + (tile * blocks + first) * {block}
        two = first + 1 < blocks
        # a second half that does not exist is the first once more, and is not stored
        ahead, gap = (128, {block}) if two else (0, 0)
        p, last = x + 128 * first, rows - 1 - tile * {tokens}
        {rows}
        c = transposed(({names}))
        {first}
        if two:
            e += {block}
            {second}
'''


def _rows(tokens, scales):
    for j in range(tokens):
        yield f"q = p + (tile * {tokens} + min({j}, last)) * stride"
        yield f"u, v = half(q, e + {scales + 4 * j})"
        yield f"w, z = half(q + ahead, e + gap + {scales + 4 * j})"
        yield f"r{j} = joined(u, v, w, z)"


def _block(tokens, halves, at):
    """Lines that store a block: words `at` to `at` + 7 of every row, and what is beside them."""
    n = 4 * tokens
    for k in range(8):
        yield f"stn_i32x16(e + {n * k}, c[{at + k}], {tokens})"
    for name, start in (("su", at), ("sv", at + 4)):
        total = "zero_i32x16()"
        for k in range(start, start + 4):
            total = f"dot4_small({total}, ones_u8(), as_i8x64(c[{k}]))"
        yield f"{name} = {total}"
    if halves == 2:
        yield f"d = ldn_f32x16(e + {10 * n}, {tokens})"
        yield from (f"stn_f32x16(e + {m * n}, d * i2f({s}), {tokens})" for m, s in ((8, "su"), (9, "sv")))
    elif halves:
        yield from (f"stn_i32x16(e + {m * n}, splat_i32x16(-bias) * {s}, {tokens})" for m, s in ((8, "su"), (9, "sv")))
    else:
        yield f"stn_i32x16(e + {8 * n}, splat_i32x16(-bias) * (su + sv), {tokens})"
        yield f"stn_f32x16(e + {10 * n}, ldn_f32x16(e + {9 * n}, {tokens}) * i2f(su + sv), {tokens})"


def build(tokens, halves):
    """The kernel for tiles of `tokens` rows, of formats with `halves`."""
    scales = 4 * tokens * (10 if halves else 9)
    lines = {"rows": "\n        ".join(_rows(tokens, scales)), "names": ", ".join(f"r{j}" for j in range(tokens)) + ","}
    lines |= {"first": "\n        ".join(_block(tokens, halves, 0))}
    lines |= {"second": "\n            ".join(_block(tokens, halves, 8))}
    scope = {**vars(simd), **globals(), "dot4_small": dot.dot4_small, "transposed": _transposed(tokens)}
    exec(compile(_ROW, "<quant half>", "exec"), scope)
    scope["half"] = register_jitable(scope["half"])
    text = _TILES.format(tokens=tokens, block=block_bytes(tokens, halves), **lines)
    exec(compile(text, "<quant quantize_tiles>", "exec"), scope)
    return scope["quantize_tiles"]
