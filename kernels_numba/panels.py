"""C = act(A @ W + bias) + more, f32, of a weight that is in panels already: [panel][k][column], whole panels.

A is in the tiles of `pack` in `matmul.py`; sums are in the order of `gemm` there. The panel that comes next is fetched
while the first tiles of A meet this one: with few rows the weights come from memory, and would arrive late.
"""

from . import activate, levels, matmul
from .matmul import PAD, TILES, compiled, kernel

_STORE = """
def store(p, rows, columns, c, stride, bias, more):
    # a finished tile to C; `more`: how far from C what is added lies, 0 for nothing
    for j in range({vectors}):
        many = min(16, columns - 16 * j)
        if many > 0:
            v = zero_f32x16()
            if bias != 0:
                v = ldn_f32x16(bias + 64 * j, many)
            for i in range(rows):
                d = c + 4 * (i * stride + 16 * j)
                x = act(ld_f32x16(p + 64 * (i * {vectors} + j)) + v)
                if more != 0:
                    x = x + ldn_f32x16(d + more, many)
                stn_f32x16(d, x, many)
"""
_PANELS = """
def panels(a, tid, nth):
    # Words: packed A, W, C, M, N, K, bias or 0, more or 0 (as C), parts of M, panels per group, elements of K per
    # block, scratch, its bytes per thread, the threads it is for. Threads share the panels of all parts.
    w, m, n, k, more = arg(a, 1), arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 7)
    parts, group, deep = arg(a, 8), arg(a, 9), arg(a, 10)
    nth = min(nth, arg(a, 13))
    if tid >= nth:
        return
    if more != 0:
        more -= arg(a, 2)
    columns, tiles, blocks = (n + {nr} - 1) // {nr}, (m + {mr} - 1) // {mr}, max(1, (k + deep - 1) // deep)
    u = columns * parts * tid // nth
    end = columns * parts * (tid + 1) // nth
    while u < end:
        first = u % columns
        part = u // columns
        many = min(end - u, columns - first, group)
        u += many
        t0 = tiles * part // parts
        t1 = tiles * (part + 1) // parts
        for b in range(blocks):
            k0 = b * deep
            for s0 in range(t0, t1, {block}):
                for j in range(many):
                    at = first + j
                    this = w + {width} * (at * k + k0)
                    # the next one: beside it, else the first of the next block or group
                    next = this + {width} * k
                    if j == many - 1 and b < blocks - 1:
                        next = w + {width} * (first * k + k0 + deep)
                    multiply(a, this, next, s0, min(t1, s0 + {block}), at, b, blocks, t0, many, j, more, tid)
"""
_MULTIPLY = """
def multiply(a, this, next, s0, s1, at, b, blocks, t0, many, j, more, tid):
    # tiles s0 ... s1 - 1 times one block of one panel
    m, n, k, bias, deep = arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 6), arg(a, 10)
    scratch, k0, tile = arg(a, 11) + tid * arg(a, 12), b * deep, 4 * (k * {mr} + {pad})
    kk = min(deep, k - k0)
    for t in range(s0, s1):
        rows = min({mr}, m - t * {mr})
        h = height(rows)
        p = scratch
        if blocks > 1:
            p += ((t - t0) * many + j) * {mr} * {width}
        fetch, step, gap = next + 64 * kk * (t - s0), 64, 0
        if s1 - s0 < {vectors}:
            fetch, step, gap = next, {width}, {width} - 64
        elif t - s0 >= {vectors}:
            fetch, step = this, 0
        tiles(h, kk, arg(a, 0) + t * tile + 4 * k0 * h, this, p, b > 0, tile, fetch, step, gap)
        if b == blocks - 1:
            c = arg(a, 2) + 4 * (t * {mr} * n + at * {nr})
            store(p, rows, n - at * {nr}, c, n, bias + 4 * at * {nr} if bias != 0 else 0, more)
"""


def _tile(rows, vectors):
    """As `matmul._tile`; of the panel that comes next two lines a step are fetched, `gap` apart."""
    cells = [(i, j, 64 * (i * vectors + j)) for i in range(rows) for j in range(vectors)]
    lines = [f"s{i}_{j} = zero_f32x16()" for i, j, _ in cells]
    lines.append("for _ in range(k):")
    lines += [f"    w{j} = ld_f32x16(w + {64 * j})" for j in range(vectors)]
    for i in range(rows):
        lines.append(f"    x = splat_f32x16(ld_f32(a + {4 * i}))")
        lines += [f"    s{i}_{j} = fma(x, w{j}, s{i}_{j})" for j in range(vectors)]
    lines += ["    prefetch(a + next)", "    prefetch(fetch)", "    prefetch(fetch + gap)"]
    lines += [f"    a += {4 * rows}; w += {64 * vectors}; fetch += step", "if add:"]
    lines += [f"    s{i}_{j} = s{i}_{j} + ld_f32x16(p + {at})" for i, j, at in cells]
    lines += [f"st_f32x16(p + {at}, s{i}_{j})" for i, j, at in cells]
    return compiled("def tile(k, a, w, p, add, next, fetch, step, gap):\n    " + "\n    ".join(lines), "tile")


def _tiles(heights, vectors):
    names = "k, a, w, p, add, next, fetch, step, gap"
    scope = {f"tile{h}": _tile(h, vectors) for h in heights}
    lines = [f"    if h == {h}:\n        tile{h}({names})\n        return" for h in heights[1:]]
    return compiled("\n".join([f"def tiles(h, {names}):", *lines, f"    tile{heights[0]}({names})"]), "tiles", **scope)


def build(name, *params, source=None):
    """panels (rows of a tile, 0: the level's; an activation)."""
    if name != "panels" or len(params) != 2 or params[1] not in activate.ACTIVATIONS:
        return None
    vectors, heights = TILES[levels.TARGET][1], matmul.heights(params[0])
    words = {"mr": heights[0], "vectors": vectors, "nr": 16 * vectors, "width": 64 * vectors, "pad": PAD}
    words["block"] = matmul.BLOCK_ROWS // heights[0]
    store = compiled(_STORE.format(**words), "store", act=activate.ACTIVATIONS[params[1]])
    parts = {"store": store, "tiles": _tiles(heights, vectors), "height": matmul.height_of(params[0])}
    return kernel(_PANELS.format(**words), "panels", multiply=compiled(_MULTIPLY.format(**words), "multiply", **parts))
