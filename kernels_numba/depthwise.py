"""Convolutions with one input channel per group: sums over the taps of a window, without packing weights.

`planes`, for square windows of up to 7 x 7 at stride 1 or 2 without dilation: a vector of outputs in each of 7 rows at
a time, straight from the input, whose edges are masked loads. `depthwise` does the rest: the rows that a chunk of
output rows meets are copied, zeros around them, so that every tap is one offset from a position; then four vectors of
positions sum their taps at a time. The words are those of conv.py; every output is one chain of multiply-adds over the
taps in order.
"""

from llvmlite import ir

from . import scalar, simd
from .conv import bias_of, put_of, run_loads, words_of
from .half import bf16_to_f32, f16_to_f32
from .matmul import SIZES, compiled, kernel
from .simd import _I32, _call, _const, _make, _pointer, _splat, vec

_RUN = """
def run(address, x, many, width, stride, step):
    # elements x, x + stride, ... (`many`, at most a vector) of an input row of `width`, 0 outside; step: in elements
    low, high = 0, many
    if x < 0:
        low = (stride - 1 - x) // stride
    if x + (many - 1) * stride >= width:
        high = (width - x + stride - 1) // stride
    if step == 1:
        if low == 0 and high == {lanes}:
            return ld_{dtype}x{lanes}(address)
        return near(address, low, high)
    if low >= high:
        return zero_{v}()
    if step == 2:
        return second(address, low, high)
    return far(address, low, high, step * {size})
"""


def _run(dtype):
    return compiled(_RUN.format(**words_of(dtype)), "run", **run_loads(dtype))


_UNFOLD = """
def unfold(a, x, oz, oy, rows, pitch, to):
    # copies what `rows` output rows from (oz, oy) on meet, in the computing dtype and 0 outside: [tap of depth][phase
    # of y][phase of x][row][pitch], where a phase is the remainder modulo the stride. Returns the end.
    depth, height, width, stride, s_w = arg(a, 14), arg(a, 15), arg(a, 16), arg(a, 25), arg(a, 13)
    kd, kh, kw, dd, dh, dw = arg(a, 20), arg(a, 21), arg(a, 22), arg(a, 29), arg(a, 30), arg(a, 31)
    y0 = oy * arg(a, 24) - arg(a, 27) + min(0, (kh - 1) * dh)
    x0 = -arg(a, 28) + min(0, (kw - 1) * dw)
    for kz in range(kd):
        z = oz * arg(a, 23) - arg(a, 26) + kz * dd
        for py in range(min(arg(a, 24), (kh - 1) * abs(dh) + 1)):
            for px in range(min(stride, (kw - 1) * abs(dw) + 1)):
                for r in range(rows + (kh - 1) * abs(dh) // arg(a, 24)):
                    y = y0 + r * arg(a, 24) + py
                    row = x + {size} * (z * arg(a, 11) + y * arg(a, 12))
                    inside = 0 <= z < depth and 0 <= y < height
                    for c in range(0, pitch, {lanes}):
                        at = x0 + c * stride + px
                        v = zero_{v}()
                        if inside:
                            v = run(row + {size} * at * s_w, at, min({lanes}, pitch - c), width, stride, stride * s_w)
                        st_{v}(to + {c_size} * c, v)
                    to += {c_size} * pitch
    return to
"""
_OFFSETS = """
def offsets(a, rows, pitch, to):
    # where each tap of the window begins in what `unfold` wrote, in bytes
    kd, kh, kw, dh, dw, sh, sw = arg(a, 20), arg(a, 21), arg(a, 22), arg(a, 30), arg(a, 31), arg(a, 24), arg(a, 25)
    plane = (rows + (kh - 1) * abs(dh) // sh) * pitch
    ny, nx = min(sh, (kh - 1) * abs(dh) + 1), min(sw, (kw - 1) * abs(dw) + 1)
    for t in range(kd * kh * kw):
        y = t // kw % kh * dh - min(0, (kh - 1) * dh)
        x = t % kw * dw - min(0, (kw - 1) * dw)
        phase = (t // kw // kh * ny + y % sh) * nx + x % sw
        sti_i64(to, t, {c_size} * (phase * plane + y // sh * pitch + x // sw))
"""
_SUM = """
def sum_taps(count, w, table, packed, start):
    # four vectors of positions, written over the first of what they read
    s0 = s1 = s2 = s3 = start
    for t in range(count):
        tap = splat_{v}(ldi_{compute}(w, t))
        p = packed + ldi_i64(table, t)
        s0 = fma(tap, ld_{v}(p), s0)
        s1 = fma(tap, ld_{v}(p + 64), s1)
        s2 = fma(tap, ld_{v}(p + 128), s2)
        s3 = fma(tap, ld_{v}(p + 192), s3)
    st_{v}(packed, s0)
    st_{v}(packed + 64, s1)
    st_{v}(packed + 128, s2)
    st_{v}(packed + 192, s3)
"""
_DEPTHWISE = """
def depthwise(a, tid, nth):
    # threads share chunks of output rows. A chunk's positions are taken as one long row with the input's padding inside
    # it, so that every tap is one offset; sums overwrite what no later position reads (the first tap is at offset 0).
    outputs, m, od, oh, ow = arg(a, 6) * arg(a, 7), arg(a, 7), arg(a, 17), arg(a, 18), arg(a, 19)
    kw, count = arg(a, 22), arg(a, 20) * arg(a, 21) * arg(a, 22)
    pitch = ow + (kw - 1) * abs(arg(a, 31)) // arg(a, 25)
    nth = min(nth, arg(a, 37))
    if tid >= nth:
        return
    table = arg(a, 35) + tid * arg(a, 36)
    taps = table + 8 * count
    packed = taps + 8 * count
    chunks = (oh + arg(a, 32) - 1) // arg(a, 32)
    units = arg(a, 5) * outputs * od * chunks
    for u in range(units * tid // nth, units * (tid + 1) // nth):
        oy = u % chunks * arg(a, 32)
        rows = min(arg(a, 32), oh - oy)
        oz, plane = u // chunks % od, u // chunks // od
        o = plane % outputs
        x = arg(a, 1) + {size} * (plane // outputs * arg(a, 9) + o // m * arg(a, 10))
        unfold(a, x, oz, oy, rows, pitch, packed)
        offsets(a, rows, pitch, table)
        for t in range(count):
            sti_{compute}(taps, t, load(arg(a, 0), o * count + t))
        start = splat_{v}(bias_at(arg(a, 3), o * arg(a, 4)))
        for p in range(0, (rows - 1) * pitch + ow, {four}):
            sum_taps(count, taps, table, packed + {c_size} * p, start)
        to = arg(a, 2) + {size} * ((plane * od + oz) * oh + oy) * ow
        for r in range(rows):
            for p in range(0, ow, {lanes}):
                put(to + {size} * (r * ow + p), ld_{v}(packed + {c_size} * (r * pitch + p)), ow - p)
"""


def _depthwise(dtype):
    words = words_of(dtype)
    words |= {"c_size": SIZES[words["compute"]], "four": 4 * words["lanes"]}
    parts = {
        "unfold": compiled(_UNFOLD.format(**words), "unfold", run=_run(dtype)),
        "offsets": compiled(_OFFSETS.format(**words), "offsets"),
        "sum_taps": compiled(_SUM.format(**words), "sum_taps"),
    }
    parts |= {"put": put_of(dtype), "bias_at": bias_of(dtype), "load": scalar.loader(dtype)}
    return kernel(_DEPTHWISE.format(**words), "depthwise", **parts)


# ---- small windows --------------------------------------------------------------------------------------------------

ROWS = 7  # of outputs at a time: divides what 224 pixels are halved to, and their sums and a row of taps fit registers
WIDEST = 7


def _reads(dtype):
    """span(low, high): the lanes low ... high - 1; take(address, lanes): those elements, as computed in, others 0."""
    v = vec("f64", 8) if dtype == "f64" else vec("f32", 16)
    half = dtype in ("f16", "bf16")
    stored, name = (vec("i16", 16), "i16") if half else (v, v.e)
    widen = {"f16": f16_to_f32, "bf16": bf16_to_f32}.get(dtype, lambda b, x: x)
    mask = vec("i1", v.n)

    def span(b, t, low, high):
        numbers = _const(ir.VectorType(_I32, v.n), list(range(v.n)))
        low, high = (_splat(b, b.trunc(x, _I32), v.n) for x in (low, high))
        return b.and_(b.icmp_signed(">=", numbers, low), b.icmp_signed("<", numbers, high))

    def take(b, t, address, lanes):
        args = [_pointer(b, address, stored.ll), _const(_I32, 1), lanes, _const(stored.ll, 0)]
        return widen(b, _call(b, f"llvm.masked.load.v{v.n}{name}.p0", stored.ll, args))

    return {"span": _make("span", lambda *a: mask, span, 2), "take": _make("take", lambda *a: v, take, 2)}


def _loads(kw, stride, edge, lanes, size, ld):
    """Lines that set v0 ... to what the taps of a row meet, at address p; and those that set the masks for `edge`."""
    starts = range(kw) if stride == 1 else [o + part for o in range(0, kw, 2) for part in (0, lanes)]
    masks = [f"m{o} = span(-x0 - {o}, width - x0 - {o})" for o in starts] if edge else []
    read = {o: f"take(p + {size * o}, m{o})" if edge else f"{ld}(p + {size * o})" for o in starts}
    if stride == 1:
        return [f"v{o} = {read[o]}" for o in starts], masks
    lines = []
    for o in range(0, kw, 2):
        lines += [f"e = {read[o]}", f"f = {read[o + lanes]}", f"v{o} = even(e, f)"]
        lines += [f"v{o + 1} = odd(e, f)"] if o + 1 < kw else []
    return lines, masks


def _rows(n, stride, rows, edge, words):
    """f(...): one vector of outputs in each of `rows` rows. (x0, y) is the input element of the first tap, of the first
    output; `edge`: whether some may lie outside, or outputs beyond `room`.
    """
    loads, masks = _loads(n, stride, edge, words["lanes"], words["size"], "ld_{dtype}x{lanes}".format(**words))
    lines = [*masks, *(f"s{r} = start" for r in range(rows))]
    for i in range(stride * (rows - 1) + n):
        lines.append(f"if 0 <= y + {i} < height:" if edge else "if True:")
        lines.append(f"    p = x + (y + {i}) * row + {words['size']} * x0")
        lines += ["    " + line for line in loads]
        for k in range(n):
            for r in range(rows):
                if 0 <= i - stride * r < n:
                    tap = f"splat_{words['v']}(load(w, {(i - stride * r) * n + k}))"
                    lines.append(f"    s{r} = fma(v{k}, {tap}, s{r})")
    lines += [f"put(out + {r} * out_row, s{r}, {'room' if edge else words['lanes']})" for r in range(rows)]
    return "def rows(x, row, y, height, x0, width, w, out, out_row, start, room):\n    " + "\n    ".join(lines)


_PLANES = """
def planes(a, tid, nth):
    # threads share blocks of output rows; the last of a plane overlaps the one before
    outputs, m, oh, ow = arg(a, 6) * arg(a, 7), arg(a, 7), arg(a, 18), arg(a, 19)
    height, width, row, out_row = arg(a, 15), arg(a, 16), {size} * arg(a, 12), {size} * ow
    many = {rows} if oh >= {rows} else 1
    blocks = (oh + many - 1) // many
    units = arg(a, 5) * outputs * blocks
    for u in range(units * tid // nth, units * (tid + 1) // nth):
        oy, plane = min(u % blocks * many, oh - many), u // blocks
        o = plane % outputs
        x = arg(a, 1) + {size} * (plane // outputs * arg(a, 9) + o // m * arg(a, 10))
        w = arg(a, 0) + {size} * o * {taps}
        start = splat_{v}(bias_at(arg(a, 3), o * arg(a, 4)))
        y = oy * arg(a, 24) - arg(a, 27)
        inside = many == {rows} and y >= 0 and y + {deep} <= height
        for ox in range(0, ow, {lanes}):
            x0 = ox * {stride} - arg(a, 28)
            out = arg(a, 2) + {size} * ((plane * oh + oy) * ow + ox)
            if inside and x0 >= 0 and x0 + {reach} <= width and ox + {lanes} <= ow:
                inner(x, row, y, height, x0, width, w, out, out_row, start, 0)
            elif many == {rows}:
                edge(x, row, y, height, x0, width, w, out, out_row, start, ow - ox)
            else:
                single(x, row, y, height, x0, width, w, out, out_row, start, ow - ox)
"""


def _planes(dtype, k, stride):
    words = words_of(dtype)
    cast = scalar.caster(words["compute"])
    load = compiled("def tap(w, i):\n    return cast(load(w, i))", "tap", load=scalar.loader(dtype), cast=cast)
    twice = range(0, 2 * words["lanes"], 2)
    scope = {"even": simd.shuffle(twice), "odd": simd.shuffle([i + 1 for i in twice]), "put": put_of(dtype)}
    scope |= {"load": load, **_reads(dtype)}
    made = {
        name: compiled(_rows(k, stride, rows, edge, words), "rows", **scope)
        for name, rows, edge in (("inner", ROWS, False), ("edge", ROWS, True), ("single", 1, True))
    }
    reach = words["lanes"] + k - 1 if stride == 1 else 2 * words["lanes"] + (k - 1) // 2 * 2
    words |= {"rows": ROWS, "taps": k * k, "stride": stride, "reach": reach, "deep": stride * (ROWS - 1) + k}
    return kernel(_PLANES.format(**words), "planes", bias_at=bias_of(dtype), **made)


def build(name, *params, source=None):
    """depthwise (dtype), planes (dtype, width of the square window, stride). f16 and bf16 are computed in f32."""
    if name == "depthwise" and len(params) == 1 and params[0] in SIZES:
        return _depthwise(*params)
    fits = name == "planes" and len(params) == 3 and params[0] in SIZES
    return _planes(*params) if fits and 0 < params[1] <= WIDEST and params[2] in (1, 2) else None
