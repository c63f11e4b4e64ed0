"""Convolutions over NCDHW: an implicit matrix product, and sums over windows where a group has one input channel.

`conv` multiplies packed weights (`matmul.pack`: tiles of output channels, [tile][k][row], k = input channel and tap) by
panels of output positions, [k][position]. A panel is filled per thread from the input itself, for one block of k at a
time: runs of positions in one output row become masked vector loads, so that padding is never read and no patch matrix
of the input exists. `depthwise` copies the rows that a chunk of output rows meets, zeros around them, and sums taps for
four vectors of positions at a time. Every output is one chain of multiply-adds per block of k, whatever the number of
threads. A dilation may be negative: a transposed convolution is a convolution per remainder of the output position
modulo the stride (see tensorlib/ops/conv.py).

Both kernels' words: weights, x, out, bias (0: none) and its stride; N, groups, output channels per group, input
channels per group; strides of x (n, c, d, h, w); sizes of x, of out, of the window, strides, padding before, dilations
(d, h, w each); parts of M (`depthwise`: output rows per chunk), columns per group, elements of k per block, scratch,
its bytes per thread, the threads it is for. Sizes and strides are in elements. `out` is contiguous.
"""

from llvmlite import ir

from . import levels, matmul, scalar, simd
from .half import bf16_to_f32, f16_to_f32
from .lanes import MEMORY, inline
from .matmul import PAD, SIZES, TILES, compiled, kernel
from .simd import _I64, _call, _const, _load, _make, _pointer, _shuffle, _splat, vec

RUN_BYTES = 56  # what describes a run: its lane, length, z, y, x and offset in the input; and a word of padding


# ---- runs of the input ----------------------------------------------------------------------------------------------


def _run_loads(dtype):
    """Intrinsics that read lanes low ... high - 1 of a run as the vector computed in, the others 0: at a step of one
    element (`near`), of two (`second`), of any (`far`); f(address, low, high[, step in bytes]).
    """
    v = vec("f64", 8) if dtype == "f64" else vec("f32", 16)
    half = dtype in ("f16", "bf16")
    stored, name = (vec("i16", 16), "i16") if half else (v, v.e)
    widen = {"f16": f16_to_f32, "bf16": bf16_to_f32}.get(dtype, lambda b, x: x)
    size = SIZES[dtype]

    def lanes(b, low, high):
        numbers = _const(ir.VectorType(_I64, v.n), list(range(v.n)))
        above = b.icmp_signed(">=", numbers, _splat(b, low, v.n))
        return b.and_(above, b.icmp_signed("<", numbers, _splat(b, high, v.n)))

    def masked(b, address, low, high):
        mask = lanes(b, low, high)
        args = [_pointer(b, address, stored.ll), _const(ir.IntType(32), 1), mask, _const(stored.ll, 0)]
        return _call(b, f"llvm.masked.load.v{v.n}{name}.p0", stored.ll, args)

    def near(b, t, address, low, high):
        return widen(b, masked(b, address, low, high))

    def second(b, t, address, low, high):
        # what lies between two elements of the run may be read
        first, last = b.shl(low, _const(_I64, 1)), b.sub(b.shl(high, _const(_I64, 1)), _const(_I64, 1))
        count = _const(_I64, v.n)
        x = masked(b, address, first, last)
        behind = b.add(address, _const(_I64, v.n * size))
        y = masked(b, behind, b.sub(first, count), b.sub(last, count))
        return widen(b, _shuffle(b, x, y, range(0, 2 * v.n, 2)))

    def far(b, t, address, low, high, step):
        # lanes outside read the nearest one inside (low < high), and become 0
        last, out = b.sub(high, _const(_I64, 1)), _const(stored.ll, 0)
        for i in range(v.n):
            lane = _const(_I64, i)
            at = b.select(b.icmp_signed("<", lane, low), low, lane)
            at = b.select(b.icmp_signed(">", at, last), last, at)
            value = _load(b, b.add(address, b.mul(at, step)), stored.ll.element)
            out = b.insert_element(out, value, _const(ir.IntType(32), i))
        return widen(b, b.select(lanes(b, low, high), out, _const(stored.ll, 0)))

    names = {"near": (near, 3), "second": (second, 3), "far": (far, 4)}
    return {k: _make(k, lambda *a: v, f, arity) for k, (f, arity) in names.items()}


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


def _words(dtype):
    compute = "f64" if dtype == "f64" else "f32"
    lanes = 64 // SIZES[compute]
    return {"dtype": dtype, "compute": compute, "lanes": lanes, "v": f"{compute}x{lanes}", "size": SIZES[dtype]}


def _run(dtype):
    return compiled(_RUN.format(**_words(dtype)), "run", **_run_loads(dtype))


@inline
def _put_f64(a, x, n):
    if n >= 8:
        simd.st_f64x8(a, x)
    else:
        simd.stn_f64x8(a, x, n)


def _put(dtype):
    """Function f(address, vector, n): stores the first n lanes, in `dtype`."""
    return _put_f64 if dtype == "f64" else MEMORY[dtype].put


def _bias(dtype):
    """Function f(address, i): element i of a bias, 0 for address 0."""
    source = "def bias_at(bias, i):\n    if bias == 0:\n        return cast(0)\n    return cast(load(bias, i))"
    compute = "f64" if dtype == "f64" else "f32"
    return compiled(source, "bias_at", load=scalar.loader(dtype), cast=scalar.caster(compute))


# ---- the implicit matrix product ------------------------------------------------------------------------------------

_RUNS = """
def runs(a, column, columns, to):
    # describes output positions column ... of one panel as runs, at address `to`; returns how many
    oh, ow = arg(a, 18), arg(a, 19)
    p, count = column, 0
    end = min(column + {nr}, columns)
    while p < end:
        row = p // ow
        x = p - row * ow
        many = min(ow - x, end - p, {lanes})
        y = row % oh * arg(a, 24) - arg(a, 27)
        z = row // oh * arg(a, 23) - arg(a, 26)
        sti_i64(to, 0, p - column)
        sti_i64(to, 1, many)
        sti_i64(to, 2, z)
        sti_i64(to, 3, y)
        x = x * arg(a, 25) - arg(a, 28)
        sti_i64(to, 4, x)
        sti_i64(to, 5, z * arg(a, 11) + y * arg(a, 12) + x * arg(a, 13))
        to += {run_bytes}
        p += many
        count += 1
    return count
"""
_PATCHES = """
def patches(a, x, table, count, k0, kk, to):
    # steps k0 ... of a panel. A whole vector is written per run: what is beyond it is overwritten by the next one.
    depth, height, width = arg(a, 14), arg(a, 15), arg(a, 16)
    kd, kh, kw, dd, dh, dw = arg(a, 20), arg(a, 21), arg(a, 22), arg(a, 29), arg(a, 30), arg(a, 31)
    s_c, s_d, s_h, s_w, stride = arg(a, 10), arg(a, 11), arg(a, 12), arg(a, 13), arg(a, 25)
    kx, rest = k0 % kw, k0 // kw
    ky = rest % kh
    kz = rest // kh % kd
    c = rest // kh // kd
    for _ in range(kk):
        tap = x + {size} * (c * s_c + kz * dd * s_d + ky * dh * s_h + kx * dw * s_w)
        for r in range(count):
            q = table + {run_bytes} * r
            place = to + {c_size} * ldi_i64(q, 0)
            z = ldi_i64(q, 2) + kz * dd
            y = ldi_i64(q, 3) + ky * dh
            if 0 <= z < depth and 0 <= y < height:
                address = tap + {size} * ldi_i64(q, 5)
                st_{v}(place, run(address, ldi_i64(q, 4) + kx * dw, ldi_i64(q, 1), width, stride, stride * s_w))
            else:
                st_{v}(place, zero_{v}())
        to += {c_size} * {nr}
        kx += 1
        if kx == kw:
            kx, ky = 0, ky + 1
            if ky == kh:
                ky, kz = 0, kz + 1
                if kz == kd:
                    kz, c = 0, c + 1
"""
_STORE = """
def store(p, rows, columns, to, stride, bias, bias_step, channel):
    # a finished tile, plus the bias of its channels
    for i in range(rows):
        b = splat_{v}(bias_at(bias, (channel + i) * bias_step))
        for j in range({vectors}):
            if columns > j * {lanes}:
                x = ld_{v}(p + 64 * (i * {vectors} + j)) + b
                put(to + {size} * (i * stride + j * {lanes}), x, columns - j * {lanes})
"""
_BLOCK = """
def block(a, pa, x, out, channel, first, last, column, many, packed):
    # tiles first ... last - 1 of a group times `many` panels from `column` on
    m, k, deep, panels = arg(a, 7), arg(a, 8) * arg(a, 20) * arg(a, 21) * arg(a, 22), arg(a, 34), arg(a, 33) // {nr}
    columns = arg(a, 17) * arg(a, 18) * arg(a, 19)
    table = packed + {nr} * {c_size} * (panels * deep + 1)
    parts = table + {run_bytes} * {nr} * panels + 64 * panels
    for j in range(many):
        count = runs(a, column + j * {nr}, columns, table + {run_bytes} * {nr} * j)
        sti_i64(table + {run_bytes} * {nr} * panels, j, count)
    blocks = (k + deep - 1) // deep
    for b in range(blocks):
        k0 = b * deep
        kk = min(deep, k - k0)
        for j in range(many):
            count = ldi_i64(table + {run_bytes} * {nr} * panels, j)
            patches(a, x, table + {run_bytes} * {nr} * j, count, k0, kk, packed + j * deep * {nr} * {c_size})
        for t0 in range(first, last, {block}):
            for j in range(many):
                for t in range(t0, min(last, t0 + {block})):
                    rows = min({mr}, m - t * {mr})
                    h = height(rows)
                    p = parts
                    if blocks > 1:
                        p += ((t - first) * many + j) * {mr} * {nr} * {c_size}
                    w = pa + {c_size} * (t * (k * {mr} + {pad}) + k0 * h)
                    tiles(h, kk, w, packed + j * deep * {nr} * {c_size}, p, b > 0)
                    if b == blocks - 1:
                        at = column + j * {nr}
                        to = out + {size} * (t * {mr} * columns + at)
                        store(p, rows, columns - at, to, columns, arg(a, 3), arg(a, 4), channel + t * {mr})
"""
_CONV = """
def conv(a, tid, nth):
    # threads share the panels of all parts of all groups of all examples
    groups, m, k = arg(a, 6), arg(a, 7), arg(a, 8) * arg(a, 20) * arg(a, 21) * arg(a, 22)
    positions, parts, panels = arg(a, 17) * arg(a, 18) * arg(a, 19), arg(a, 32), arg(a, 33) // {nr}
    nth = min(nth, arg(a, 37))
    if tid >= nth:
        return
    columns = (positions + {nr} - 1) // {nr}
    tiles = (m + {mr} - 1) // {mr}
    units = columns * parts * groups * arg(a, 5)
    u = units * tid // nth
    end = units * (tid + 1) // nth
    while u < end:
        first = u % columns
        many = min(end - u, columns - first, panels)
        part = u // columns % parts
        rest = u // columns // parts
        g = rest % groups
        n = rest // groups
        pa = arg(a, 0) + g * tiles * (k * {mr} + {pad}) * {c_size}
        x = arg(a, 1) + {size} * (n * arg(a, 9) + g * arg(a, 8) * arg(a, 10))
        out = arg(a, 2) + {size} * (n * groups + g) * m * positions
        t0 = tiles * part // parts
        t1 = tiles * (part + 1) // parts
        block(a, pa, x, out, g * m, t0, t1, first * {nr}, many, arg(a, 35) + tid * arg(a, 36))
        u += many
"""


def _conv(dtype):
    words = _words(dtype)
    mr, vectors, _ = TILES[levels.TARGET]
    compute = words["compute"]
    words |= {"mr": mr, "vectors": vectors, "nr": vectors * words["lanes"], "block": matmul.BLOCK_ROWS // mr}
    words |= {"pad": PAD, "c_size": SIZES[compute], "run_bytes": RUN_BYTES}
    parts = {
        "runs": compiled(_RUNS.format(**words), "runs"),
        "patches": compiled(_PATCHES.format(**words), "patches", run=_run(dtype)),
        "store": compiled(_STORE.format(**words), "store", put=_put(dtype), bias_at=_bias(dtype)),
        "tiles": matmul._tiles(compute),
        "height": matmul._height(),
    }
    return kernel(_CONV.format(**words), "conv", block=compiled(_BLOCK.format(**words), "block", **parts))


# ---- one input channel per group ------------------------------------------------------------------------------------

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
    words = _words(dtype)
    words |= {"c_size": SIZES[words["compute"]], "four": 4 * words["lanes"]}
    parts = {
        "unfold": compiled(_UNFOLD.format(**words), "unfold", run=_run(dtype)),
        "offsets": compiled(_OFFSETS.format(**words), "offsets"),
        "sum_taps": compiled(_SUM.format(**words), "sum_taps"),
    }
    parts |= {"put": _put(dtype), "bias_at": _bias(dtype), "load": scalar.loader(dtype)}
    return kernel(_DEPTHWISE.format(**words), "depthwise", **parts)


KERNELS = {"conv": _conv, "depthwise": _depthwise}


def build(name, *params, source=None):
    """conv or depthwise, of one dtype: f32, f16, bf16 (computing in f32) or f64."""
    if name not in KERNELS or len(params) != 1 or params[0] not in SIZES:
        return None
    return KERNELS[name](*params)
