"""Convolutions over NCDHW as implicit matrix products: no patch matrix of the input exists.

Packed weights (`matmul.pack`: tiles of output channels, [tile][k][row], k = tap and input channel) are multiplied by
panels of output positions, [k][position]. A panel is filled per thread from the input itself, for one block of k at a
time: runs of positions in one output row become masked vector loads, so that padding is never read. Every output is one
chain of multiply-adds per block of k, whatever the number of threads. A dilation may be negative: a transposed
convolution is a convolution per remainder of the output position modulo the stride (see tensorlib/ops/conv.py).

Words, here and in depthwise.py: weights, x, out, bias (0: none) and its stride; N, groups, output channels per group,
input channels per group; strides of x (n, c, d, h, w); sizes of x, of out, of the window, strides, padding before,
dilations (d, h, w each); parts of M (`depthwise`: output rows per chunk), columns per group, elements of k per block,
scratch, its bytes per thread, the threads it is for. Sizes and strides are in elements. `out` is contiguous.
"""

from llvmlite import ir

from . import levels, matmul, scalar, simd
from .half import bf16_to_f32, f16_to_f32
from .lanes import F64, MEMORY
from .matmul import PAD, SIZES, TILES, compiled, kernel
from .simd import _I64, _call, _const, _load, _make, _pointer, _shuffle, _splat, vec

RUN_BYTES = 56  # what describes a run: its lane, length, z, y, x and offset in the input; and a word of padding


# ---- runs of the input ----------------------------------------------------------------------------------------------


def run_loads(dtype):
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


def words_of(dtype):
    """What the sources of these kernels are formatted with."""
    compute = "f64" if dtype == "f64" else "f32"
    lanes = 64 // SIZES[compute]
    return {"dtype": dtype, "compute": compute, "lanes": lanes, "v": f"{compute}x{lanes}", "size": SIZES[dtype]}


def put_of(dtype):
    """Function f(address, vector, n): stores the first n lanes, in `dtype`."""
    return (F64 if dtype == "f64" else MEMORY[dtype]).put


def bias_of(dtype):
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
_COPY = """
def copy(address, x, many, width, stride, step, channel, count, to, room):
    # for `count` channels, `channel` bytes apart: elements x, x + stride, ... (`many`) of an input row of `width`, 0
    # outside, as a vector of which `room` lanes are written
    low, high = 0, many
    if x < 0:
        low = (stride - 1 - x) // stride
    if x + (many - 1) * stride >= width:
        high = (width - x + stride - 1) // stride
    if low >= high:
        for i in range(count):
            stn_{v}(to + {row} * i, zero_{v}(), room)
    elif step == 1 and low == 0 and high == {lanes}:
        for i in range(count):
            st_{v}(to + {row} * i, ld_{dtype}x{lanes}(address + channel * i))
    elif step == 1:
        for i in range(count):
            stn_{v}(to + {row} * i, near(address + channel * i, low, high), room)
    elif step == 2:
        for i in range(count):
            stn_{v}(to + {row} * i, second(address + channel * i, low, high), room)
    else:
        for i in range(count):
            stn_{v}(to + {row} * i, far(address + channel * i, low, high, step * {size}), room)
"""
_PATCHES = """
def patches(a, x, table, count, k0, kk, to):
    # steps k0 ... of a panel, run after run, tap after tap. A run's vector may reach into the next run, which comes
    # later, but not into the next step.
    depth, height, width, channels = arg(a, 14), arg(a, 15), arg(a, 16), arg(a, 8)
    kd, kh, kw, dd, dh, dw = arg(a, 20), arg(a, 21), arg(a, 22), arg(a, 29), arg(a, 30), arg(a, 31)
    s_c, s_d, s_h, s_w, stride = arg(a, 10), arg(a, 11), arg(a, 12), arg(a, 13), arg(a, 25)
    for r in range(count):
        q = table + {run_bytes} * r
        lane, n, z, y, at = ldi_i64(q, 0), ldi_i64(q, 1), ldi_i64(q, 2), ldi_i64(q, 3), ldi_i64(q, 4)
        place, room, base = to + {c_size} * lane, min({lanes}, {nr} - lane), x + {size} * ldi_i64(q, 5)
        easy = n == {lanes} and s_w == 1 and stride <= 2 and within(at, kw, dw, stride * {lanes}, width)
        easy = easy and within(y, kh, dh, 1, height) and within(z, kd, dd, 1, depth)
        tap, c, left = k0 // channels, k0 % channels, kk
        kx, ky, kz = tap % kw, tap // kw % kh, tap // kw // kh
        while left > 0:
            many = min(left, channels - c)
            address = base + {size} * (c * s_c + kz * dd * s_d + ky * dh * s_h + kx * dw * s_w)
            if easy and stride == 1:
                for i in range(many):
                    st_{v}(place + {row} * i, ld_{dtype}x{lanes}(address + {size} * s_c * i))
            elif easy:
                for i in range(many):
                    p = address + {size} * s_c * i
                    st_{v}(place + {row} * i, even(ld_{dtype}x{lanes}(p), ld_{dtype}x{lanes}(p + {size} * {lanes})))
            else:
                inside = 0 <= z + kz * dd < depth and 0 <= y + ky * dh < height
                many_x = n if inside else 0
                copy(address, at + kx * dw, many_x, width, stride, stride * s_w, {size} * s_c, many, place, room)
            place += {row} * many
            left -= many
            c = 0
            kx += 1
            if kx == kw:
                kx = 0
                ky += 1
                if ky == kh:
                    ky = 0
                    kz += 1
"""
_WITHIN = """
def within(at, taps, dilation, reach, size):
    # whether `reach` elements from each of the taps on exist
    end = (taps - 1) * dilation
    return at + min(0, end) >= 0 and at + max(0, end) + reach <= size
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
    columns, tile = arg(a, 17) * arg(a, 18) * arg(a, 19), (k * {mr} + {pad}) * {c_size}
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
                    w = pa + t * tile + {c_size} * k0 * h
                    tiles(h, kk, w, packed + j * deep * {nr} * {c_size}, p, b > 0, tile)
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
    words = words_of(dtype)
    mr, vectors, _ = TILES[levels.TARGET]
    compute = words["compute"]
    words |= {"mr": mr, "vectors": vectors, "nr": vectors * words["lanes"], "block": matmul.BLOCK_ROWS // mr}
    words |= {"pad": PAD, "c_size": SIZES[compute], "run_bytes": RUN_BYTES}
    words["row"] = words["nr"] * words["c_size"]
    copy = compiled(_COPY.format(**words), "copy", **run_loads(dtype))
    even, within = simd.shuffle(range(0, 2 * words["lanes"], 2)), compiled(_WITHIN, "within")
    parts = {
        "runs": compiled(_RUNS.format(**words), "runs"),
        "patches": compiled(_PATCHES.format(**words), "patches", copy=copy, even=even, within=within),
        "store": compiled(_STORE.format(**words), "store", put=put_of(dtype), bias_at=bias_of(dtype)),
        "tiles": matmul._tiles(compute),
        "height": matmul.height_of(),
    }
    return kernel(_CONV.format(**words), "conv", block=compiled(_BLOCK.format(**words), "block", **parts))


def build(name, *params, source=None):
    """conv, of one dtype: f32, f16, bf16 (computing in f32) or f64."""
    if name != "conv" or len(params) != 1 or params[0] not in SIZES:
        return None
    return _conv(*params)
