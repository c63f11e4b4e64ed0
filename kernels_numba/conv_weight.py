"""Gradients of a convolution's weights as a matrix product: of the result's gradient, packed by `matmul.pack` image
after image, with the input, channels last.

`last` writes the input once so that 16 channels of a pixel are a vector, with zeros around: then a tap's operand is
the same memory from another pixel on, and nothing is unfolded. `weight` gives a thread pairs of vectors (tap, 16
channels), each of which meets all tiles of output channels; the sums over a chunk of positions are kept per tile and
vector, in an order that does not depend on the number of threads.
"""

from . import levels, matmul, scalar, simd
from .lanes import MEMORY
from .matmul import PAD, TILES, compiled, kernel
from .transpose import store_transposed

_LAST = """
def last(a, tid, nth):
    # Words: x, out (f32), N, groups, channels per group, strides of x (n, c, h, w), its height and width, padding
    # before (h, w), height and width of out. out: [n][group][channels by 16][y][x][16].
    n, groups, channels = arg(a, 2), arg(a, 3), arg(a, 4)
    s_n, s_c, s_h, s_w = arg(a, 5), arg(a, 6), arg(a, 7), arg(a, 8)
    height, width, up, left, rows, columns = arg(a, 9), arg(a, 10), arg(a, 11), arg(a, 12), arg(a, 13), arg(a, 14)
    blocks = (channels + 15) // 16
    for u in range(n * groups * rows * tid // nth, n * groups * rows * (tid + 1) // nth):
        y, rest = u % rows - up, u // rows
        x = arg(a, 0) + {size} * (rest // groups * s_n + rest % groups * channels * s_c + y * s_h)
        first, end = min(left, columns), min(left + width, columns)
        if y < 0 or y >= height:
            first, end = columns, columns
        for c in range(0, channels, 16):
            exist = min(16, channels - c)
            to = arg(a, 1) + 64 * columns * ((rest * blocks + c // 16) * rows + u % rows)
            for i in range(first):
                st_f32x16(to + 64 * i, zero_f32x16())
            for i in range(end, columns):
                st_f32x16(to + 64 * i, zero_f32x16())
            p, q, i = x + {size} * c * s_c, to + 64 * first, 0
            if s_w == 1:
                while i + 16 <= end - first:
                    r = p + {size} * i
                    store_transposed(q + 64 * i, 64, {rows})
                    i += 16
            while i < end - first:
                for lane in range(16):
                    st_f32(q + 64 * i + 4 * lane, f32(load(p, i * s_w + lane * s_c)) if lane < exist else f32(0))
                i += 1
"""


def _last(dtype):
    size = MEMORY[dtype].size
    rows = ", ".join(f"vector(r, {j}, exist, {size} * s_c)" for j in range(16))
    vector = compiled(
        "def vector(r, j, exist, step):\n    return ld(r + j * step) if j < exist else zero_f32x16()",
        "vector", ld=MEMORY[dtype].ld,
    )  # fmt: skip
    scope = {"load": scalar.loader(dtype), "f32": scalar.caster("f32"), "st_f32": simd.st_f32, "vector": vector}
    return kernel(_LAST.format(size=size, rows=rows), "last", store_transposed=store_transposed, **scope)


def _tile(rows, vectors):
    """Function f(images, lines, columns, a, image, b0, b1, b_image, b_line, step, p, add): rows x vectors sums."""
    cells = [(i, j, 64 * (i * vectors + j)) for i in range(rows) for j in range(vectors)]
    names = ("b0", "b1")[:vectors]
    text = [f"s{i}_{j} = zero_f32x16()" for i, j, _ in cells]
    text += ["for i in range(images):", "    w = a + i * image", "    for y in range(lines):"]
    text += [f"        c{j} = {b} + i * b_image + y * b_line" for j, b in enumerate(names)]
    text.append("        for _ in range(columns):")
    text += [f"            w{j} = ld_f32x16(c{j})" for j in range(vectors)]
    for i in range(rows):
        text.append(f"            x = splat_f32x16(ld_f32(w + {4 * i}))")
        text += [f"            s{i}_{j} = fma(x, w{j}, s{i}_{j})" for j in range(vectors)]
    text += [f"            w += {4 * rows}", *(f"            c{j} += step" for j in range(vectors)), "if add:"]
    text += [f"    s{i}_{j} = s{i}_{j} + ld_f32x16(p + {at})" for i, j, at in cells]
    text += [f"st_f32x16(p + {at}, s{i}_{j})" for i, j, at in cells]
    head = "def tile(images, lines, columns, a, image, b0, b1, b_image, b_line, step, p, add):\n    "
    return compiled(head + "\n    ".join(text), "tile")


def _tiles():
    most, vectors, smaller = TILES[levels.TARGET]
    scope = {f"tile{h}": _tile(h, vectors) for h in (most, *smaller)}
    call = "(images, lines, columns, a, image, b0, b1, b_image, b_line, step, p, add)"
    lines = [f"    if h == {h}:\n        tile{h}{call}\n        return" for h in smaller]
    source = "\n".join([f"def tiles(h, {call[1:]}:", *lines, f"    tile{most}{call}"])
    return compiled(source, "tiles", **scope)


_STORE = """
def store(p, rows, to, per, step, exist, vector, vectors):
    # vector number `vector` of a tile: `exist` channels, `step` elements apart, of `rows` outputs, `per` elements apart
    for i in range(rows):
        for c in range(exist):
            st_f32(to + 4 * (i * per + c * step), ld_f32(p + 64 * (i * vectors + vector) + 4 * c))
"""
_PANELS = """
def panels(a, group, panel, count, p):
    # `count` panels, of {vectors} vectors each, of a group from number `panel` on, all tiles; p: the sums
    n, groups, m, channels, lines, columns = arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 6), arg(a, 7), arg(a, 8)
    kw, down, right, d_h, d_w = arg(a, 10), arg(a, 11), arg(a, 12), arg(a, 13), arg(a, 14)
    rows, width, chunk, images = arg(a, 15), arg(a, 16), arg(a, 17), arg(a, 18)
    blocks, taps = (channels + 15) // 16, arg(a, 9) * kw
    vectors, tiles = blocks * taps, (m + {mr} - 1) // {mr}
    matrix, plane, sums = (lines * columns * {mr} + {pad}) * 4, 64 * rows * width, tiles * {mr} * {vectors} * 64
    line, image = 64 * down * width, groups * blocks * plane
    for i in range(0, n, images):
        some = min(images, n - i)
        for y in range(0, lines, chunk):
            high = min(chunk, lines - y)
            b = arg(a, 1) + group * blocks * plane + i * image + y * line
            for j in range(count):
                first = (panel + j) * {vectors}
                last = min(first + {vectors}, vectors) - 1
                b0 = b + offset(first, blocks, kw, plane, d_h * width, d_w)
                b1 = b + offset(last, blocks, kw, plane, d_h * width, d_w)
                for t in range(tiles):
                    h = height(min({mr}, m - t * {mr}))
                    w = arg(a, 0) + ((i * groups + group) * tiles + t) * matrix + 4 * y * columns * h
                    to = p + j * sums + t * {mr} * {vectors} * 64
                    tiles_of(h, some, high, columns, w, groups * tiles * matrix, b0, b1, image, line, 64 * right, to,
                             i + y > 0)
    for v in range(panel * {vectors}, min((panel + count) * {vectors}, vectors)):
        tap, c, j = v // blocks, v % blocks * 16, v // {vectors} - panel
        for t in range(tiles):
            out = arg(a, 2) + 4 * (((group * m + t * {mr}) * channels + c) * taps + tap)
            q = p + j * sums + t * {mr} * {vectors} * 64
            exist = min(16, channels - c)
            store(q, min({mr}, m - t * {mr}), out, channels * taps, taps, exist, v % {vectors}, {vectors})
"""
_OFFSET = """
def offset(vector, blocks, kw, plane, line, step):
    # bytes from a group's first pixel to those of a vector's tap and channels
    tap = vector // blocks
    return vector % blocks * plane + 64 * (tap // kw * line + tap % kw * step)
"""
_WEIGHT = """
def weight(a, tid, nth):
    # Words: packed gradient, input (channels last), out (f32: outputs, channels per group, kh, kw), N, groups, outputs
    # per group, channels per group, height and width of the gradient, kh, kw, strides (h, w), dilations (h, w), height
    # and width of the input with its zeros, lines per chunk, images per chunk, scratch, its bytes per thread, threads,
    # panels at a time.
    nth = min(nth, arg(a, 21))
    if tid >= nth:
        return
    vectors = (arg(a, 6) + 15) // 16 * arg(a, 9) * arg(a, 10)
    each = (vectors + {vectors} - 1) // {vectors}
    units = each * arg(a, 4)
    u = units * tid // nth
    end = units * (tid + 1) // nth
    while u < end:
        count = min(end - u, each - u % each, arg(a, 22))
        panels(a, u // each, u % each, count, arg(a, 19) + tid * arg(a, 20))
        u += count
"""


def _weight():
    mr, vectors, _ = TILES[levels.TARGET]
    words = {"mr": mr, "vectors": vectors, "pad": PAD}
    parts = {"height": matmul.height_of(), "tiles_of": _tiles(), "offset": compiled(_OFFSET, "offset")}
    parts["store"] = compiled(_STORE, "store")
    return kernel(_WEIGHT.format(**words), "weight", panels=compiled(_PANELS.format(**words), "panels", **parts))


def build(name, *params, source=None):
    """last (dtype), weight."""
    if name == "last" and len(params) == 1 and params[0] in MEMORY:
        return _last(*params)
    return _weight() if name == "weight" and not params else None
