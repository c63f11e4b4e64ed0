"""Products with GGML-quantised weights: activations quantised to 8 bits per 32, matvec on native blocks, matmul on
panels.

Every kernel is generated from the format's row in `unpack.py`; none knows a layout itself. The weights stay as the file
maps them. Integer dot products are exact; scales are applied in f32, so the only error is the rounding of activations.

Packed activations of matvec, per group of 128 of a row, 320 bytes: lo i8x64, hi i8x64, d f32x16, -8 * sum i32x16,
d * sum f32x16 (`unpack.py` says what lo and hi are; a lane's d is that of its block, its sum that of its eight
weights). A row is padded with zero groups. Packed activations of matmul are described in `quant_matmul.py`.
"""

from numba.extending import register_jitable

from . import dot, quant_matmul, simd, unpack
from .dot import dot4_small
from .quant_layout import GROUP_BYTES
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
    splat_f32x4,
    splat_f32x16,
    st_f32x4,
    st_f32x16,
    st_i8x16,
    st_i32x16,
    vabs,
    vmax,
    vround,
    vshl,
    zero_f32x16,
    zero_i32x16,
)
from .unpack import UNPACK

ones_u8 = constant("i8", 64, 1)
shift1, shift2, shift3, shift4 = (constant("i32", 16, k) for k in (1, 2, 3, 4))
_SHIFT = {8: "{s}", 16: "vshl({s}, shift1())", 128: "vshl({s}, shift4())"}  # -bias * sum out of -8 * sum


@register_jitable
def quantize_block(x, n, lo, hi, dst):
    """32 floats at x (n of them real) to 8 bits: 16 to lo, 16 to hi, the scale to four lanes at dst; NaN and inf keep
    a NaN.
    """
    a = ldn_f32x16(x, n)
    b = ldn_f32x16(x + 64, n - 16)
    top = hmax(vmax(vabs(a), vabs(b)))
    scale = 0.0
    if top > 0.0:
        scale = 127.0 / top
    s = splat_f32x16(scale)
    st_i8x16(lo, narrow_i8(f2i(vround(a * s))))
    st_i8x16(hi, narrow_i8(f2i(vround(b * s))))
    # 0 * x is NaN for inf and NaN, else 0: what cannot be quantised must not look like a number
    d = top * (1.0 / 127.0) + hsum((a + b) * zero_f32x16())
    st_f32x4(dst, splat_f32x4(d))


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
        total_i = dot4_small(dot4_small(zero_i32x16(), ones_u8(), ld_i8x64(q)), ones_u8(), ld_i8x64(q + 64))
        st_i32x16(q + 192, zero_i32x16() - vshl(total_i, shift3()))
        st_f32x16(q + 256, i2f(total_i) * ld_f32x16(q + 128))


def _dots(row, r):
    """Lines that add one unpacked group of row `r` to its accumulators; y0, y1, dy, ns, fs are the group's
    activations.
    """
    dot = "dot4_small" if row.small else "dot4"
    if row.halves:
        # -32 * sum of either half: its own product, since the halves' scales differ
        return [
            "tl = dot4_small(dot_start(y0), lo, y0)",
            "th = dot4_small(dot_start(y1), hi, y1)",
            f"acc{r} = fma(i2f(tl), d * dy, acc{r})",
            f"acc{r} = fma(i2f(th), dh * dy, acc{r})",
        ]
    start = _SHIFT[row.bias].format(s="ns") if row.bias else "zero_i32x16()"
    lines = [f"acc{r} = fma(i2f({dot}({dot}({start}, lo, y0), hi, y1)), d * dy, acc{r})"]
    if row.minimum:
        lines.append(f"low{r} = fma(m, fs, low{r})")
    return lines


@register_jitable
def dot_start(y):
    """-32 * (sum of each four signed bytes): 32 as the unsigned operand, negated."""
    return zero_i32x16() - vshl(dot4_small(zero_i32x16(), ones_u8(), y), shift5())


shift5 = constant("i32", 16, 5)


def _group(fmt, r, addresses, scales):
    """Source lines for one group of 32-element blocks of row r: unpack, scales, dots."""
    row = UNPACK[fmt]
    names = {f"b{j}": a for j, a in enumerate(addresses)}
    lines = [line.format(**names) for line in row.lines]
    if scales == "fast":
        lines.append(f"d = group_scales({addresses[0]})")
        lines += [f"m = group_minima({addresses[0]})"] if row.minimum else []
    else:
        lines.append("d = scales4({}, {}, {}, {})".format(*addresses))
        lines += ["m = scales4({} + 2, {} + 2, {} + 2, {} + 2)".format(*addresses)] if row.minimum else []
    return lines + _dots(row, r)


_ACTIVATIONS = (
    "y0 = ld_i8x64(q); y1 = ld_i8x64(q + 64); dy = ld_f32x16(q + 128); ns = ld_i32x16(q + 192); fs = ld_f32x16(q + 256)"
)


def _matvec_body(fmt, rows):
    """The loop over the groups of `rows` weight rows at once, sharing the activations' loads."""
    row, out = UNPACK[fmt], []
    many = range(rows)
    if row.elements == 32:
        out.append("for i in range(groups):")
        out.append("    " + _ACTIVATIONS)
        for r in many:
            out.append(f"    prefetch(p{r} + 2048)")
            blocks = [f"(p{r} + {j * row.nbytes})" for j in range(4)]
            out += ["    " + line for line in _group(fmt, r, blocks, "fast")]
            out.append(f"    p{r} += {4 * row.nbytes}")
        out += [f"    q += {GROUP_BYTES}", "if tail > 0:", "    " + _ACTIVATIONS]
        for r in many:
            # blocks past the end are read again from the last one: their activations are zero
            blocks = [f"(p{r} + min({j}, tail - 1) * {row.nbytes})" for j in range(4)]
            out += ["    " + line for line in _group(fmt, r, blocks, "tail")]
        return out
    out.append("for i in range(groups // 2):")
    for g in (0, 1):
        out.append("    " + _ACTIVATIONS)
        for r in many:
            names = {"p": f"p{r}", "g": g, "g2": g + 2}
            renamed = [line.replace("dm", f"dm{r}").replace("bits", f"bits{r}") for line in row.once] if g == 0 else []
            if g == 0:
                out.append(f"    prefetch(p{r} + 2048)")
            lines = [line.replace("(dm, dm)", f"(dm{r}, dm{r})") for line in row.lines]
            if fmt == "q5_k":
                lines = [line.replace("(bits)", f"(bits{r})") for line in lines]
            out += ["    " + line.format(**names) for line in renamed + lines]
            out += ["    " + line for line in _dots(row, r)]
        out.append(f"    q += {GROUP_BYTES}")
    out += [f"    p{r} += {row.nbytes}" for r in many]
    return out


def _matvec_source(fmt, rows):
    row = UNPACK[fmt]
    start = [f"p{r} = w + (r0 + {r}) * stride; acc{r} = zero_f32x16()" for r in range(rows)]
    start += [f"low{r} = zero_f32x16()" for r in range(rows)] if row.minimum else []
    end = []
    for r in range(rows):
        total = f"hsum(acc{r} + low{r})" if row.minimum else f"hsum(acc{r})"
        end += [f"s = {total}", "if residual != 0:", f"    s += ld_f32(residual + 4 * (r0 + {r}))"]
        end.append(f"st_f32(out + 4 * (r0 + {r}), s)")
    pad = "\n" + " " * 8
    body = pad.join(["q = y", *start, *_matvec_body(fmt, rows), *end])
    return f"""
def rows_at_once(w, y, out, residual, groups, tail, stride, r0, r1):
    while r0 + {rows} <= r1:
        {body}
        r0 += {rows}
    return r0
"""


_MATVEC = '''
def matvec(a, tid, nth):
    """out[m, n] = activations[m] . weights[n] (+ residual). Words: weights, packed activations, out, N, K, residual or
    0, M.
    """
    w, y, out, n, k, residual, many = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 6)
    blocks = k // 32
    groups = blocks // 4
    tail = blocks - 4 * groups
    stride = k // {elements} * {nbytes}
    r0 = n * tid // nth
    r1 = n * (tid + 1) // nth
    for m in range(many):
        at = rows_many(w, y, out, residual, groups, tail, stride, r0, r1)
        rows_one(w, y, out, residual, groups, tail, stride, at, r1)
        y += {group_bytes} * (groups + (1 if tail > 0 else 0))
        out += 4 * n
        if residual != 0:
            residual += 4 * n
'''


def _compile(source, name, scope):
    exec(compile(source, f"<quant {name}>", "exec"), scope)
    return scope[name]


def _matvec(fmt):
    row = UNPACK.get(fmt)
    if row is None:
        return None
    scope = {**vars(simd), **vars(unpack), **vars(dot), **globals()}
    scope |= {"group_scales": unpack.GROUP_SCALES.get(fmt), "group_minima": unpack.GROUP_MINIMA.get(fmt)}
    one = register_jitable(_compile(_matvec_source(fmt, 1), "rows_at_once", dict(scope)))
    many = register_jitable(_compile(_matvec_source(fmt, 4), "rows_at_once", dict(scope)))
    source = _MATVEC.format(elements=row.elements, nbytes=row.nbytes, group_bytes=GROUP_BYTES)
    return _compile(source, "matvec", scope | {"rows_one": one, "rows_many": many})


def build(name, *params, source=None):
    """ "quantize", "matvec" fmt, "quantize_tiles" tokens, "matmul" fmt tokens: kernel functions; None for a format
    without.
    """
    if name == "quantize":
        return quantize
    if name == "matvec":
        return _matvec(*params)
    return quant_matmul.build(name, *params)
