"""C[M, N] = A[M, K] @ W[K, N]: panels of both operands in the computing dtype, multiplied in register tiles (BLIS).

`pack` writes A once as tiles of up to MR rows, [tile][k][row], in f32 (f64 for f64 results); `gemm` packs, per thread,
panels of NR columns of W for one block of K, and multiplies all tiles with them. Both packers take 16 "lanes" (rows of
A, columns of W) at a time, from any strides: 16 x 16 transposes where k is the unit stride, plain vectors where the
lanes lie side by side, scalars for tails and for anything else. Every element of C is one chain of multiply-adds per
block of K, whatever its tile and the number of threads. Nothing outside the tensors is read or written. The same texts
make the kernels of `bf16.py`, whose packers say which panels hold what its instruction takes for 0.

Strides are in elements. Batch dims are groups of words behind the fixed ones, innermost dim last.
"""

from numba import njit

from . import levels, scalar, simd
from .transpose import store_transposed

# Register tile per level: rows, 512-bit vectors of columns, and the heights that a last tile may have instead.
# 14 * 2 sums + 2 + 1 of 32 zmm; 6 * 2 + 2 + 1 of 16 ymm; NEON has 32 registers of 128 bits, SSE 16.
TILES = {
    "avx512vnni": (14, 2, (8, 4)),
    "avx2": (6, 1, (4, 2)),
    "neon": (6, 1, (4, 2)),
    "portable": (2, 1, ()),
}
BLOCK_ROWS = 168  # rows of A that meet one panel before the next panel: with 512 of K they fill a third of a 1 MB L2
PAD = 16  # elements behind every packed tile: the packer's last vector reaches into them
SIZES = {"f32": 4, "f16": 2, "bf16": 2, "f64": 8}
BIAS = ("f32", "f16", "bf16", "f64")  # the codes 1, 2, ... of a bias's dtype (0: no bias)


def compiled(source, name, **scope):
    """Function `name` of `source`, to be called from kernels; it sees the names of `simd` and of `scope`."""
    return njit(error_model="numpy")(kernel(source, name, **scope))


def kernel(source, name, **scope):
    """The same for a kernel itself, which `build.py` compiles."""
    scope = {**vars(simd), **scope}
    exec(compile(source, f"<matmul {name}>", "exec"), scope)
    return scope[name]


# ---- packing ------------------------------------------------------------------------------------------------------


_PACK_LANES = """
def pack_lanes(src, lane_stride, k_stride, exist, width, k, dst, step):
    # `k` steps of `width` lanes, of which `exist` are in memory; step i goes to dst + i * step (bytes). A whole vector
    # is written per step: what is beyond `width` is overwritten by the next step or lies in the padding.
    i = 0
    {vectors}
    for lane in range(width):
        if lane < exist:
            for s in range(i, k):
                store(dst + s * step, lane, load(src, lane * lane_stride + s * k_stride))
        else:
            for s in range(i, k):
                store(dst + s * step, lane, 0)
    return 0
"""
_PACK_VECTORS = """if k_stride == 1 and exist > 0:
        while i + 16 <= k:
            p = src + {size} * i
            store_transposed(dst + step * i, step, {rows})
            i += 16
    elif lane_stride == 1 and exist >= 16:
        while i < k:
            st_f32x16(dst + step * i, ld_{dtype}x16(src + {size} * k_stride * i))
            i += 1"""


def _packer(dtype, compute):
    """pack_lanes from elements of `dtype` to f32 or f64."""
    vectors, size = "", scalar.BITS[dtype] // 8
    if compute == "f32" and dtype in ("f32", "f16", "bf16"):
        rows = ", ".join(f"ld_{dtype}x16(p + {size} * lane_stride * min({j}, exist - 1))" for j in range(16))
        vectors = _PACK_VECTORS.format(size=size, dtype=dtype, rows=rows)
    scope = {"load": scalar.loader(dtype), "store": scalar.storer(compute), "store_transposed": store_transposed}
    return compiled(_PACK_LANES.format(vectors=vectors), "pack_lanes", **scope)


def heights(most=0):
    """The heights of tiles of up to `most` rows (0: the level's), the largest first."""
    tallest, _, smaller = TILES[levels.TARGET]
    return most or tallest, *(h for h in smaller if h < (most or tallest))


def height_of(rows=0):
    """Function f(rows): how high the tile of so many rows is."""
    most, *smaller = heights(rows)
    lines = [f"    if rows <= {h}:\n        return {h}" for h in sorted(smaller)]
    return compiled("\n".join(["def height(rows):", *lines, f"    return {most}"]), "height")


_PACK = """
def pack(a, tid, nth):
    # Rows of A into tiles, matrix after matrix. Words: A, packed, M, K, row stride, k stride, batch dims; per dim: its
    # size, its stride. Threads share the tiles of all matrices.
    src, out, m, k, row, step, dims = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 6)
    tiles = (m + {mr} - 1) // {mr}
    nbytes = ((k + k % {pair}) * {mr} + {pad}) * {size}
    units = tiles
    for d in range(dims):
        units *= arg(a, 7 + 2 * d)
    for u in range(units * tid // nth, units * (tid + 1) // nth):
        tile = u % tiles
        rest = u // tiles
        at = tile * {mr} * row
        for d in range(dims - 1, -1, -1):
            size = arg(a, 7 + 2 * d)
            at += rest % size * arg(a, 8 + 2 * d)
            rest //= size
        rows = m - tile * {mr}
        h = height(min(rows, {mr}))
        dst, odd = out + u * nbytes, 0
        for lane in range(0, h, {lanes}):
            p, to = src + {src_size} * (at + lane * row), dst + {word} * lane
            odd |= pack_lanes(p, row, step, rows - lane, min({lanes}, h - lane), k, to, {word} * h)
        {mark}
"""


def _pack(dtype, compute, rows=0):
    if dtype not in scalar.BITS or compute not in ("f32", "f64"):
        return None
    size = SIZES[compute]
    words = {"size": size, "src_size": scalar.BITS[dtype] // 8, "word": size, "lanes": 64 // size}
    return pack_of(_packer(dtype, compute), rows, pair=1, mark="", **words)


def pack_of(pack_lanes, rows, **words):
    """The kernel `pack` with this packer. words: bytes of a packed element, of one of A, of a word; elements per word,
    words per vector; what is done with what the packer returned.
    """
    source = _PACK.format(mr=heights(rows)[0], pad=PAD, **words)
    return kernel(source, "pack", pack_lanes=pack_lanes, height=height_of(rows))


# ---- the register tile ----------------------------------------------------------------------------------------------


def _tile(rows, vectors, compute):
    """Function f(k, a, w, p, add, next): rows x vectors sums over k steps, plus the tile at p if `add`, stored at p.

    The tile `next` bytes behind a is fetched meanwhile: it comes from the L3 or memory, and without hints arrives late.
    """
    size, v = SIZES[compute], f"{compute}x{64 // SIZES[compute]}"
    cells = [(i, j, 64 * (i * vectors + j)) for i in range(rows) for j in range(vectors)]
    lines = [f"s{i}_{j} = zero_{v}()" for i, j, _ in cells]
    lines.append("for _ in range(k):")
    lines += [f"    w{j} = ld_{v}(w + {64 * j})" for j in range(vectors)]
    for i in range(rows):
        lines.append(f"    x = splat_{v}(ld_{compute}(a + {size * i}))")
        lines += [f"    s{i}_{j} = fma(x, w{j}, s{i}_{j})" for j in range(vectors)]
    lines += [f"    prefetch(a + next + {at})" for at in range(0, size * rows, 64)]
    lines += [f"    a += {size * rows}; w += {64 * vectors}", "if add:"]
    lines += [f"    s{i}_{j} = s{i}_{j} + ld_{v}(p + {at})" for i, j, at in cells]
    lines += [f"st_{v}(p + {at}, s{i}_{j})" for i, j, at in cells]
    return compiled("def tile(k, a, w, p, add, next):\n    " + "\n    ".join(lines), "tile")


def _tiles(compute):
    """Function f(height, k, a, w, p, add, next): the tile of that height."""
    most, vectors, smaller = TILES[levels.TARGET]
    scope = {f"tile{h}": _tile(h, vectors, compute) for h in (most, *smaller)}
    lines = [f"    if h == {h}:\n        tile{h}(k, a, w, p, add, next)\n        return" for h in smaller]
    source = "\n".join(["def tiles(h, k, a, w, p, add, next):", *lines, f"    tile{most}(k, a, w, p, add, next)"])
    return compiled(source, "tiles", **scope)


_STORE = """
def store(p, rows, columns, c, stride, code, bias, step, add):
    # a finished tile to C: plus bias, plus what C holds if `add`; columns beyond the last are left alone
    for i in range(rows):
        for j in range({vectors}):
            q = p + 64 * (i * {vectors} + j)
            d = c + {c_size} * (i * stride + j * {lanes})
            many = columns - j * {lanes}
            if many >= {lanes} and step == bias_bytes(code):
                x = ld_{v}(q)
                {bias}
                if add:
                    x = x + ld_{cv}(d)
                st_{cv}(d, x)
            else:
                for s in range(min(many, {lanes})):
                    y = ld_{f}(q + {size} * s) + bias_at(code, bias + (j * {lanes} + s) * step)
                    if add:
                        y += ld_{c}(d + {c_size} * s)
                    st_{c}(d + {c_size} * s, y)
"""


def bias_at(compute):
    """Function f(code, address): a value of dtype BIAS[code - 1], 0 for code 0."""
    lines = ["def bias_at(code, address):"]
    lines += [f"    if code == {k}:\n        return cast(load_{d}(address, 0))" for k, d in enumerate(BIAS, 1)]
    scope = {f"load_{d}": scalar.loader(d) for d in BIAS} | {"cast": scalar.caster(compute)}
    return compiled("\n".join([*lines, "    return cast(0)"]), "bias_at", **scope)


def _by_vector(dtype, compute):
    return (dtype == "f64") == (compute == "f64")


def _bias_bytes(compute):
    """Function f(code): the stride in bytes of a bias that vectors can load."""
    found = {k: SIZES[d] if _by_vector(d, compute) else -1 for k, d in enumerate(BIAS, 1)}
    lines = [f"    if code == {k}:\n        return {n}" for k, n in found.items()]
    return compiled("\n".join(["def bias_bytes(code):", *lines, "    return 0"]), "bias_bytes")


def _store(c, compute):
    lanes = 64 // SIZES[compute]
    words = {"vectors": TILES[levels.TARGET][1], "lanes": lanes, "v": f"{compute}x{lanes}", "cv": f"{c}x{lanes}"}
    words |= {"size": SIZES[compute], "c_size": SIZES[c], "f": compute, "c": c}
    lines = []
    for code, dtype in enumerate(BIAS, 1):
        if _by_vector(dtype, compute):
            lines += [f"if code == {code}:", f"    x = x + ld_{dtype}x{lanes}(bias + {SIZES[dtype] * lanes} * j)"]
    source = _STORE.format(bias="\n                ".join(lines), **words)
    return compiled(source, "store", bias_at=bias_at(compute), bias_bytes=_bias_bytes(compute))


# ---- the product ----------------------------------------------------------------------------------------------------

_BLOCK = """
def block(pa, w, c, m, n, k, w_k, w_n, c_row, code, bias, step, add, first, last, column, many, deep, panels, packed):
    # tiles first ... last - 1 of A times `many` panels from `column` on
    parts = packed + {nr} * {size} * panels * deep
    tile = ((k + k % {pair}) * {mr} + {pad}) * {size}
    blocks = max(1, (k + deep - 1) // deep)
    for b in range(blocks):
        k0, odd = b * deep, 0
        kk = min(deep, k - k0)
        if {by_rows} and w_n == 1 and column + many * {nr} <= n:
            odd = pack_rows(w + {w_size} * (column + k0 * w_k), w_k * {w_size}, kk, many, packed, deep * {nr} * {size})
        else:
            for j in range(many):
                for v in range(0, {nr}, {lanes}):
                    at = column + j * {nr} + v
                    src, to = w + {w_size} * (at * w_n + k0 * w_k), packed + {size} * j * deep * {nr} + {word} * v
                    odd |= pack_lanes(src, w_n, w_k, n - at, {lanes}, kk, to, {nr} * {word}) << j
        for t0 in range(first, last, {block}):
            for j in range(many):
                for t in range(t0, min(last, t0 + {block})):
                    rows = min({mr}, m - t * {mr})
                    h = height(rows)
                    p = parts
                    if blocks > 1:
                        p += ((t - first) * many + j) * {mr} * {nr} * {word}
                    x = pa + t * tile + {size} * k0 * h
                    at = column + j * {nr}
                    to = c + {c_size} * (t * {mr} * c_row + at)
                    if b == blocks - 1:
                        for i in range(rows):
                            for v in range(0, {nr} * {c_size}, 64):
                                prefetch(to + {c_size} * i * c_row + v)
                    tiles(h, kk, x, packed + j * deep * {nr} * {size}, p, b > 0, tile{odd})
                    if b == blocks - 1:
                        store(p, rows, n - at, to, c_row, code, bias + at * step, step, add)
"""
_GEMM = """
def gemm(a, tid, nth):
    # C = A @ W (+ bias) (+ C). Words: packed A, W, C, M, N, K, strides of W along k and n, row stride of C, code of the
    # bias's dtype, bias, its stride in bytes, whether to add to C, parts of M, columns per group, elements of K per
    # block, scratch, its bytes per thread, the threads it is for, batch dims; per dim: its size, strides of packed A
    # (in matrices), W, C. Threads share the panels of all parts of all matrices.
    m, n, k, w_k, w_n, c_row = arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 6), arg(a, 7), arg(a, 8)
    parts, panels, deep, dims = arg(a, 13), arg(a, 14) // {nr}, arg(a, 15), arg(a, 19)
    nth = min(nth, arg(a, 18))
    if tid >= nth:
        return
    scratch = arg(a, 16) + tid * arg(a, 17)
    columns = (n + {nr} - 1) // {nr}
    tiles = (m + {mr} - 1) // {mr}
    matrix = tiles * ((k + k % {pair}) * {mr} + {pad}) * {size}
    units = columns * parts
    for d in range(dims):
        units *= arg(a, 20 + 4 * d)
    u = units * tid // nth
    end = units * (tid + 1) // nth
    while u < end:
        first = u % columns
        many = min(end - u, columns - first, panels)
        part = u // columns % parts
        rest = u // columns // parts
        pa, w, c = arg(a, 0), arg(a, 1), arg(a, 2)
        for d in range(dims - 1, -1, -1):
            size = arg(a, 20 + 4 * d)
            i = rest % size
            rest //= size
            pa += i * arg(a, 21 + 4 * d) * matrix
            w += i * arg(a, 22 + 4 * d) * {w_size}
            c += i * arg(a, 23 + 4 * d) * {c_size}
        t0 = tiles * part // parts
        t1 = tiles * (part + 1) // parts
        block(pa, w, c, m, n, k, w_k, w_n, c_row, arg(a, 9), arg(a, 10), arg(a, 11), arg(a, 12), t0, t1, first * {nr},
              many, deep, panels, scratch)
        u += many
"""


_PACK_ROWS = """
def pack_rows(src, step, k, panels, dst, panel):
    # `k` rows of `panels` panels that lie side by side, `step` bytes apart
    for i in range(k):
        p = src + i * step
        for j in range(panels):
            for v in range({vectors}):
                prefetch(p + {ahead} * step + {w_size} * {lanes} * v)
                st_{v}(dst + j * panel + 64 * (i * {vectors} + v), ld_{w}x{lanes}(p + {w_size} * {lanes} * v))
            p += {w_size} * {nr}
    return 0
"""
AHEAD = 8  # rows


def _pack_rows(w, words):
    """pack_rows where vectors of w can be loaded as what is computed in; else never to be called."""
    lanes, compute = words["lanes"], "f32" if words["size"] == 4 else "f64"
    if not _by_vector(w, compute) or w not in SIZES:
        return compiled("def pack_rows(src, step, k, panels, dst, panel):\n    return 0", "pack_rows")
    scope = {**words, "w": w, "v": f"{compute}x{lanes}", "vectors": words["nr"] // lanes, "ahead": AHEAD}
    return compiled(_PACK_ROWS.format(**scope), "pack_rows")


def _gemm(w, c, compute):
    if w not in scalar.BITS or c not in (("f32", "f16", "bf16") if compute == "f32" else ("f64",)):
        return None
    size = SIZES[compute]
    words = {"size": size, "word": size, "w_size": scalar.BITS[w] // 8, "lanes": 64 // size, "pair": 1, "odd": ""}
    words |= {"nr": TILES[levels.TARGET][1] * words["lanes"], "by_rows": _by_vector(w, compute) and w in SIZES}
    parts = {"pack_lanes": _packer(w, compute), "tiles": _tiles(compute), "pack_rows": _pack_rows(w, words)}
    return gemm_of(_store(c, compute), parts, c_size=SIZES[c], **words)


def gemm_of(store, parts, **words):
    """The kernel `gemm` of these packers and tiles. words: as of `pack_of`; `odd`: what `tiles` gets of what the
    packers returned.
    """
    words |= {"mr": TILES[levels.TARGET][0], "pad": PAD}
    words["block"] = BLOCK_ROWS // words["mr"]
    block = compiled(_BLOCK.format(**words), "block", store=store, height=height_of(), **parts)
    return kernel(_GEMM.format(**words), "gemm", block=block)


# ---- integers, and what is too small to be packed -------------------------------------------------------------------

_PLAIN = """
def plain(a, tid, nth):
    # C = A @ W, one sum after the other; integers modulo 2 ** bits. Words: A, W, C, M, N, K, strides of A along m and
    # k, of W along k and n, of C along m and n, batch dims; per dim: its size, strides of A, W, C. Threads share the
    # rows of all matrices.
    m, n, k, dims = arg(a, 3), arg(a, 4), arg(a, 5), arg(a, 12)
    a_m, a_k, w_k, w_n, c_m, c_n = arg(a, 6), arg(a, 7), arg(a, 8), arg(a, 9), arg(a, 10), arg(a, 11)
    units = m
    for d in range(dims):
        units *= arg(a, 13 + 4 * d)
    for u in range(units * tid // nth, units * (tid + 1) // nth):
        rest = u // m
        at_a, at_w, at_c = u % m * a_m, 0, u % m * c_m
        for d in range(dims - 1, -1, -1):
            size = arg(a, 13 + 4 * d)
            i = rest % size
            rest //= size
            at_a += i * arg(a, 14 + 4 * d)
            at_w += i * arg(a, 15 + 4 * d)
            at_c += i * arg(a, 16 + 4 * d)
        for j in range(n):
            total = cast(0)
            for i in range(k):
                total += cast(load_a(arg(a, 0), at_a + i * a_k)) * cast(load_w(arg(a, 1), at_w + i * w_k + j * w_n))
            store(arg(a, 2), at_c + j * c_n, total)
"""


def _plain(a, w, c):
    whole = {a, w, c} <= {"bool", *scalar.INTS} and c != "bool"
    if not whole and not {a, w, c} <= {"f64", "f32", "f16", "bf16"}:
        return None
    compute = "i64" if whole else "f64" if c == "f64" else "f32"
    loads = {"load_a": scalar.loader(a), "load_w": scalar.loader(w)}
    return kernel(_PLAIN, "plain", cast=scalar.caster(compute), store=scalar.storer(c), **loads)


KERNELS = {"pack": (_pack, (2, 3)), "gemm": (_gemm, (3,)), "plain": (_plain, (3,))}


def build(name, *params, source=None):
    """pack (dtype of A, computing one, rows of a tile if not the level's), gemm (dtypes of W, C, computing one), plain
    (dtypes of A, W, C).
    """
    make, counts = KERNELS.get(name, (None, ()))
    return make(*params) if len(params) in counts else None
