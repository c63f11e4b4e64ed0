"""Products with GGML-quantised weights: activations quantised to 8 bits per 32, matvec on native blocks, matmul on
panels.

Every kernel is generated from the format's row in `unpack.py`; none knows a layout itself. The weights stay as the file
maps them. Integer dot products are exact; scales are applied in f32, so the only error is the rounding of activations.

Packed activations of matvec, per group of 128 of a row, 320 bytes: lo i8x64, hi i8x64, d f32x16, -8 * sum i32x16,
d * sum f32x16 (`unpack.py` says what lo and hi are; a lane's d is that of its run of 32; of a run's four sums two are
those of eight weights of lo each, two of hi). A row is padded with zero groups. Formats of `unpack_runs.py` have them
per super-block of 256, 384 bytes: four i8x64, d f32x16, d * sum f32x16, a run of 16 in each lane. Packed activations of
matmul are described in `quant_matmul.py`.
"""

from numba.extending import register_jitable

from . import moe, quant_matmul
from .dot import dot4_small
from .quant_layout import GROUP, GROUP_BYTES, RUNS_BYTES
from .quant_matmul import word0, word1, word2, word3
from .simd import (
    arg,
    constant,
    f2i,
    hmax,
    hsum,
    i2f,
    ld_f32x16,
    ld_i8x64,
    ldn_f32x16,
    narrow_i8,
    shuffle,
    splat_f32x4,
    splat_f32x16,
    st_f32,
    st_f32x4,
    st_f32x16,
    st_i8x16,
    st_i32,
    st_i32x16,
    vabs,
    vmax,
    vround,
    vshl,
    zero_f32x16,
    zero_i32x16,
)
from .unpack import scales_of_group
from .unpack_all import SCOPE, UNPACK, of_source
from .unpack_runs import RUNS

ones_u8 = constant("i8", 64, 1)
shift1, shift2, shift3, shift4 = (constant("i32", 16, k) for k in (1, 2, 3, 4))
_SHIFT = {8: "ns", **{8 << k: f"vshl(ns, shift{k}())" for k in (1, 2, 3, 4)}}  # -bias * sum out of -8 * sum
even_lanes = shuffle([at + 4 * j for j in range(4) for at in (0, 2, 16, 18)])
odd_lanes = shuffle([at + 4 * j for j in range(4) for at in (1, 3, 17, 19)])
mix = shuffle([at + 4 * j for j in range(4) for at in (0, 1, 18, 19)])  # a run's lo in two lanes, its hi in two


@register_jitable
def rounded_block(x, n):
    """32 floats at x (n of them real) in 8 bits: 16, 16, and the scale; NaN and inf make that NaN."""
    a = ldn_f32x16(x, n)
    b = ldn_f32x16(x + 64, n - 16)
    top = hmax(vmax(vabs(a), vabs(b)))
    scale = 0.0
    if top > 0.0:
        scale = 127.0 / top
    s = splat_f32x16(scale)
    # 0 * x is NaN for inf and NaN, else 0: what cannot be quantised must not look like a number
    d = top * (1.0 / 127.0) + hsum((a + b) * zero_f32x16())
    return narrow_i8(f2i(vround(a * s))), narrow_i8(f2i(vround(b * s))), d


@register_jitable
def quantize_block(x, n, lo, hi, dst):
    """The same with 16 to lo, 16 to hi, the scale to four lanes at dst."""
    first, second, d = rounded_block(x, n)
    st_i8x16(lo, first)
    st_i8x16(hi, second)
    st_f32x4(dst, splat_f32x4(d))


@register_jitable
def store_run(q, x):
    """16 bytes: four to each of four vectors."""
    for j, word in enumerate((word0(x), word1(x), word2(x), word3(x))):
        st_i32(q + 64 * j, word)


def quantize_runs(a, tid, nth):
    """Rows of f32 to packed super-blocks. Words: x, row stride in bytes, K, rows, out."""
    x, stride, k, rows, out = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4)
    supers = k // 256
    total = rows * supers
    for t in range(total * tid // nth, total * (tid + 1) // nth):
        row = t // supers
        p = x + row * stride + 1024 * (t - row * supers)
        q = out + RUNS_BYTES * t
        for i in range(8):
            first, second, d = rounded_block(p + 128 * i, 32)
            store_run(q + 8 * i, first)
            store_run(q + 8 * i + 4, second)
            st_f32(q + 256 + 8 * i, d)
            st_f32(q + 260 + 8 * i, d)
        total_i = zero_i32x16()
        for j in range(4):
            total_i = dot4_small(total_i, ones_u8(), ld_i8x64(q + 64 * j))
        st_f32x16(q + 320, i2f(total_i) * ld_f32x16(q + 256))


def quantize(a, tid, nth):
    """Rows of f32 to packed groups. Words: x, row stride in bytes, K, rows, out."""
    x, stride, k, rows, out = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4)
    groups = (k + 127) // 128
    total = rows * groups
    for t in range(total * tid // nth, total * (tid + 1) // nth):
        row = t // groups
        g = t - row * groups
        q = out + GROUP_BYTES * t
        for j in range(4):
            at = 128 * g + 32 * j
            quantize_block(
                x + row * stride + 4 * at, max(0, min(k - at, 32)), q + 16 * j, q + 64 + 16 * j, q + 128 + 16 * j
            )
        sum_lo = dot4_small(zero_i32x16(), ones_u8(), ld_i8x64(q))
        sum_hi = dot4_small(zero_i32x16(), ones_u8(), ld_i8x64(q + 64))
        total_i = even_lanes(sum_lo, sum_hi) + odd_lanes(sum_lo, sum_hi)
        st_i32x16(q + 192, zero_i32x16() - vshl(total_i, shift3()))
        st_f32x16(q + 256, i2f(total_i) * ld_f32x16(q + 128))


def _low(row):
    """What is summed times fs beside the products: minima, scales whose bias waits for the end, or nothing (None)."""
    if row.minimum:
        return "m"
    if row.halves:
        return "mix(d, dh)" if row.bias else None
    return "d" if row.bias and row.bias not in _SHIFT else None


def _dots(row, acc, low):
    """Lines that add one unpacked group to accumulators; y0, y1, dy, ns, fs are the group's activations."""
    dot = "dot4_small" if row.small else "dot4"
    if row.halves:
        of_lo, of_hi = f"i2f({dot}(zero_i32x16(), lo, y0))", f"i2f({dot}(zero_i32x16(), hi, y1))"
        lines = [f"{acc} = fma(fma({of_lo}, d, {of_hi} * dh), dy, {acc})"]
    else:
        start = _SHIFT.get(row.bias, "zero_i32x16()")
        lines = [f"{acc} = fma(i2f({dot}({dot}({start}, lo, y0), hi, y1)), d * dy, {acc})"]
    return lines + ([f"{low} = fma({_low(row)}, fs, {low})"] if _low(row) else [])


def _activations(q):
    """Lines that load a group's activations."""
    names = ("y0 = ld_i8x64", "y1 = ld_i8x64", "dy = ld_f32x16", "ns = ld_i32x16", "fs = ld_f32x16")
    return [f"{name}({q} + {64 * i})" for i, name in enumerate(names)]


def _scales(row, names, tail):
    """Lines that load the scales, and minima, of four blocks of 32: at once, or one by one where they are the last."""
    if row.elements != 32 or not row.f16:
        return []
    four = "{b0}{at}, {b1}{at}, {b2}{at}, {b3}{at}" if tail else "{b0}"
    lines = [f"d = {'scales4' if tail else 'group_scales'}({four.format(at='', **names)})"]
    if row.minimum:
        lines.append(f"m = {'scales4' if tail else 'group_minima'}({four.format(at=' + 2', **names)})")
    return lines + ["m = zero_f32x16() - d * m"] * row.zero


def _step(fmt, tokens, tail=False):
    """Lines for one group (a super-block's two) of the weight row at p, times `tokens` tokens."""
    row = UNPACK[fmt]
    names = {"p": "p"}
    if row.elements < GROUP:
        # blocks past the end are read again from the last one: their activations are zero
        last = f"min({{}}, tail // {row.elements // 32} - 1) * {row.nbytes}" if tail else f"{{}} * {row.nbytes}"
        names |= {f"b{j}": f"(p + {last.format(j)})" for j in range(GROUP // row.elements)}
    out = [line.format(**names) for line in row.once]
    for g in range(row.elements // GROUP or 1):
        out += [line.format(g=g, g2=g + 2, **names) for line in row.lines]
        out += _scales(row, names, tail)
        for t in range(tokens):
            out += _activations(f"q{t} + {GROUP_BYTES * g}") + _dots(row, f"acc{t}", f"low{t}")
    return out


def _super_block(fmt, tokens):
    """Lines for a super-block of a format of `unpack_runs.py` at p, times `tokens` tokens."""
    row, runs, dot = UNPACK[fmt], RUNS[fmt], "dot4_small" if UNPACK[fmt].small else "dot4"
    out = [line.format(p="p") for line in runs.once] + [line.format(p="p", j=j) for j in range(4) for line in runs.each]
    for t in range(tokens):
        total = "zero_i32x16()"
        for j in range(4):
            total = f"{dot}({total}, v{j}, ld_i8x64(q{t} + {64 * j}))"
        out.append(f"acc{t} = fma(i2f({total}), d * ld_f32x16(q{t} + 256), acc{t})")
        out.append(f"low{t} = fma({'m' if row.minimum else 'd'}, ld_f32x16(q{t} + 320), low{t})")
    return out


def _loop(fmt, tokens):
    """Lines: a whole row of weights at p."""
    row, runs = UNPACK[fmt], fmt in RUNS
    blocks = max(4, row.elements // 32)
    nbytes = blocks * 32 // row.elements * row.nbytes
    ahead = RUNS_BYTES if runs else GROUP_BYTES * (row.elements // GROUP or 1)
    body = [f"prefetch(p + {AHEAD + at})" for at in range(0, nbytes, 64)]
    body += _super_block(fmt, tokens) if runs else _step(fmt, tokens)
    body += [f"p += {nbytes}", *(f"q{t} += {ahead}" for t in range(tokens))]
    lines = [f"for i in range(blocks // {blocks}):", *("    " + line for line in body)]
    if row.elements < GROUP:
        lines += ["tail = blocks % 4", "if tail > 0:", *("    " + line for line in _step(fmt, tokens, tail=True))]
    return lines


def _matvec_source(fmt, tokens):
    """Function: weight rows r0 to r1 times `tokens` tokens, of which `live` count.

    One row after the other: the weights are one stream, read ahead by 8 KiB, every line of it. (Four rows at a time
    share the loads of activations, and ran at 26 GB/s instead of 40.)
    """
    row, many, low = UNPACK[fmt], range(tokens), fmt in RUNS or _low(UNPACK[fmt])
    start = ["p = w + r * stride", *(f"q{t} = y + min({t}, live - 1) * size" for t in many)]
    start += [f"acc{t} = zero_f32x16()" for t in many]
    start += [f"low{t} = zero_f32x16()" for t in many] if low else []
    end, total = [], "hsum(acc{t})"
    if row.minimum:
        total = "hsum(acc{t} + low{t})"
    elif low:
        total = f"hsum(fma(low{{t}}, splat_f32x16(-{row.bias}.0), acc{{t}}))"
    for t in many:
        end += [f"if {t} < live:", f"    s = {total.format(t=t)}", "    if residual != 0:"]
        end += [f"        s += ld_f32(residual + 4 * (n * {t} + r))", f"    st_f32(out + 4 * (n * {t} + r), s)"]
    body = "\n        ".join([*start, *_loop(fmt, tokens), *end])
    return f"""
def rows(w, y, out, residual, n, blocks, stride, size, r0, r1, live):
    for r in range(r0, r1):
        {body}
"""


_MATVEC = '''
def matvec(a, tid, nth):
    """out[m, n] = activations[m] . weights[n] (+ residual).

    Words: weights, packed activations, out, N, K, residual or 0, M.
    """
    w, y, out, n, k, residual, many = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 6)
    blocks = k // 32
    size = {size}
    stride = k // {elements} * {nbytes}
    r0 = n * tid // nth
    r1 = n * (tid + 1) // nth
    for m in range(0, many, {tokens}):
        live = min({tokens}, many - m)
        if live == 1:
            one_token(w, y, out, residual, n, blocks, stride, size, r0, r1, live)
        else:
            many_tokens(w, y, out, residual, n, blocks, stride, size, r0, r1, live)
        y += {tokens} * size
        out += {tokens} * 4 * n
        if residual != 0:
            residual += {tokens} * 4 * n
'''
TOKENS = 4  # that share a weight row while it is unpacked
AHEAD = 8192  # bytes


def _compile(source, name, scope):
    exec(compile(source, f"<quant {name}>", "exec"), scope)
    return scope[name]


def _matvec(fmt, source=None, name="matvec"):
    row = UNPACK.get(fmt)
    if row is None:
        return None
    scope = {**SCOPE, **globals(), **of_source(fmt, source)}
    scope |= {name: scales_of_group(row.nbytes, at) for name, at in (("group_scales", 0), ("group_minima", 2))}
    made = {
        name: register_jitable(_compile(_matvec_source(fmt, tokens), "rows", dict(scope)))
        for name, tokens in (("one_token", 1), ("many_tokens", TOKENS))
    }
    size = f"blocks // 8 * {RUNS_BYTES}" if fmt in RUNS else f"(blocks + 3) // 4 * {GROUP_BYTES}"
    if name == "experts":
        return moe.experts(**made, elements=row.elements, nbytes=row.nbytes, size=size, tokens=TOKENS)
    text = _MATVEC.format(elements=row.elements, nbytes=row.nbytes, size=size, tokens=TOKENS)
    return _compile(text, name, scope | made)


def build(name, *params, source=None):
    """ "quantize", "quantize_runs", "matvec" and "experts" fmt, and those of `quant_matmul.py`: kernel functions; None
    for a format without.
    """
    if name in ("quantize", "quantize_runs"):
        return quantize if name == "quantize" else quantize_runs
    if name in ("matvec", "experts"):
        return _matvec(*params, source, name)
    return quant_matmul.build(name, *params, source=source)
