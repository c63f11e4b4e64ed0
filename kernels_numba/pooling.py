"""Pools and interpolation: outputs that combine a few input elements per dim, listed in one table per dim.

An output row first combines whole input rows (those that its z and y list) into a row of scratch memory, which runs in
vectors; then each output combines the elements that its x lists. Nothing outside the input is listed, so nothing
outside is read. Sums are in f32 (f64 for f64), in an order that depends on the tables only.

A table has one row per output index: how many elements, the divisor, `T` indices; for `weighted`, T weights as f64.
Words: x, out; N, C; strides of x (n, c, d, h, w); input height and width; output sizes; tables; their T; indices out
(`indices` only), scratch, its bytes per thread, the threads it is for, a divisor that replaces the tables' (0: none).
"""

from . import functions, simd
from .scalar import FLOATS, caster, loader, storer

ROW = """
def row(x, at, step, n, buffer, scale, first):
    # combines n elements of an input row, `step` apart, with the buffer's
    if step == 1:
        if first:
            for i in range(n):
                put(buffer, i, {scaled}load(x, at + i))
        else:
            for i in range(n):
                put(buffer, i, combine(get(buffer, i), {scaled}load(x, at + i)))
    elif first:
        for i in range(n):
            put(buffer, i, {scaled}load(x, at + i * step))
    else:
        for i in range(n):
            put(buffer, i, combine(get(buffer, i), {scaled}load(x, at + i * step)))
"""
KERNEL = """
def kernel(a, tid, nth):
    x, out, channels, width = arg(a, 0), arg(a, 1), arg(a, 3), arg(a, 10)
    od, oh, ow = arg(a, 11), arg(a, 12), arg(a, 13)
    tz, ty, tx = arg(a, 17), arg(a, 18), arg(a, 19)
    nth = min(nth, arg(a, 23))
    if tid >= nth:
        return
    buffer = arg(a, 21) + tid * arg(a, 22)
    rows = arg(a, 2) * channels * od * oh
    for u in range(rows * tid // nth, rows * (tid + 1) // nth):
        rz = arg(a, 14) + 8 * (2 + {lists} * tz) * (u // oh % od)
        ry = arg(a, 15) + 8 * (2 + {lists} * ty) * (u % oh)
        plane = u // oh // od
        base = plane // channels * arg(a, 4) + plane % channels * arg(a, 5)
        first = True
        for i in range(ldi_i64(rz, 0)):
            for j in range(ldi_i64(ry, 0)):
                at = base + ldi_i64(rz, 2 + i) * arg(a, 6) + ldi_i64(ry, 2 + j) * arg(a, 7)
                row(x, at, arg(a, 8), width, buffer, cast({row_scale}), first)
                first = False
        if first:
            for i in range(width):
                put(buffer, i, start())
        per = argf(a, 24)
        if per == 0:
            per = 1.0 * ldi_i64(rz, 1) * ldi_i64(ry, 1)
        for p in range(ow):
            q = arg(a, 16) + 8 * (2 + {lists} * tx) * p
            total = start()
            for t in range(ldi_i64(q, 0)):
                total = combine(total, {tap_scale}get(buffer, ldi_i64(q, 2 + t)))
            store(out, u * ow + p, {finish})
"""
INDICES = """
def kernel(a, tid, nth):
    x, out, channels, od, oh, ow = arg(a, 0), arg(a, 1), arg(a, 3), arg(a, 11), arg(a, 12), arg(a, 13)
    rows = arg(a, 2) * channels * od * oh
    for u in range(rows * tid // nth, rows * (tid + 1) // nth):
        rz = arg(a, 14) + 8 * (2 + arg(a, 17)) * (u // oh % od)
        ry = arg(a, 15) + 8 * (2 + arg(a, 18)) * (u % oh)
        plane = u // oh // od
        base = plane // channels * arg(a, 4) + plane % channels * arg(a, 5)
        for p in range(ow):
            rx = arg(a, 16) + 8 * (2 + arg(a, 19)) * p
            best = start()
            where = (ldi_i64(rz, 2) * arg(a, 9) + ldi_i64(ry, 2)) * arg(a, 10) + ldi_i64(rx, 2)
            for i in range(ldi_i64(rz, 0)):
                for j in range(ldi_i64(ry, 0)):
                    z, y = ldi_i64(rz, 2 + i), ldi_i64(ry, 2 + j)
                    at = base + z * arg(a, 6) + y * arg(a, 7)
                    for t in range(ldi_i64(rx, 0)):
                        v = load(x, at + ldi_i64(rx, 2 + t) * arg(a, 8))
                        if v > best or v != v:
                            best = v
                            where = (z * arg(a, 9) + y) * arg(a, 10) + ldi_i64(rx, 2 + t)
            store(out, u * ow + p, best)
            sti_i64(arg(a, 20), u * ow + p, where)
"""
WORDS = {
    "max": {"lists": 1, "scaled": "", "row_scale": "1.0", "tap_scale": "", "finish": "total"},
    "avg": {
        "lists": 1,
        "scaled": "",
        "row_scale": "1.0",
        "tap_scale": "",
        "finish": "total / cast(per if argf(a, 24) != 0 else per * ldi_i64(q, 1))",
    },
    "weighted": {
        "lists": 2,
        "scaled": "scale * ",
        "row_scale": "ldi_f64(rz, 2 + tz + i) * ldi_f64(ry, 2 + ty + j)",
        "tap_scale": "cast(ldi_f64(q, 2 + tx + t)) * ",
        "finish": "total",
    },
}


def build(name, *params, source=None):
    """max, indices (the same with positions; NaN wins, the last of them), avg or weighted, of one float dtype."""
    if name not in (*WORDS, "indices") or len(params) != 1 or params[0] not in ("f32", "f64", "f16", "bf16"):
        return None
    (dtype,) = params
    compute, largest = FLOATS[dtype], name in ("max", "indices")
    scope = {k: v for k, v in vars(simd).items() if k.startswith(("ldi_", "sti_", "arg"))}
    scope |= {"load": loader(dtype), "store": storer(dtype), "cast": caster(compute)}
    scope |= {"get": loader(compute, written=True), "put": storer(compute)}
    step, start = ("fmax(a, b)", "-INF") if largest else ("a + b", "0")
    scope["combine"] = functions.inline(f"def combine(a, b):\n    return {step}", compute)
    scope["start"] = functions.inline(f"def start():\n    return {start}", compute)
    text = INDICES if name == "indices" else KERNEL.format(**WORDS[name])
    if name != "indices":
        exec(compile(ROW.format(**WORDS[name]), f"<pooling {name}>", "exec"), scope)
        scope["row"] = functions.jitted(scope["row"])
    exec(compile(text, f"<pooling {name}>", "exec"), scope)
    return scope["kernel"]
