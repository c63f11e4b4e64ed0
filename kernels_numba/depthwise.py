"""Convolutions with one input channel per group: sums over the taps of a window, without packing weights.

The rows that a chunk of output rows meets are copied, zeros around them, so that every tap is one offset from a
position; then four vectors of positions sum their taps at a time. The words are those of conv.py; every output is one
chain of multiply-adds over the taps in order.
"""

from . import scalar
from .conv import bias_of, put_of, run_loads, words_of
from .matmul import SIZES, compiled, kernel

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


def build(name, *params, source=None):
    """depthwise, of one dtype: f32, f16, bf16 (computing in f32) or f64."""
    if name != "depthwise" or len(params) != 1 or params[0] not in SIZES:
        return None
    return _depthwise(*params)
