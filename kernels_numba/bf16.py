"""C[M, N] = A[M, K] @ W[K, N] of bf16 by VDPBF16PS, which adds two products to each of 16 sums in f32: `matmul.py` with
words of two elements, one after the other along K, where that has one; an odd K ends with a 0.

The instruction takes subnormal elements for 0, so that their products with large ones would be lost and those with
infinity NaN. The packers look for them, and tiles that meet any are computed with multiply-adds of f32: the same chain
of roundings. Sums below 2**-126 become 0.
"""

from llvmlite import ir

from . import levels, matmul, simd
from .matmul import SIZES, TILES, compiled
from .simd import _I16, _call, _const, _make
from .transpose import store_transposed

FEATURES = ",+avx512bf16"  # besides those of the level
MARK = 16  # bytes from a packed tile's end to the word that says whether it holds subnormals


def _lower_dot2(b, t, sums, x, y):
    return _call(b, "llvm.x86.avx512bf16.dpbf16ps.512", sums.type, [sums, x, y])


def _lower_dot2_plain(b, t, sums, x, y):
    for half in (
        lambda v: b.and_(v, _const(v.type, -65536)),
        lambda v: b.shl(v, _const(v.type, 16)),
    ):
        factors = [b.bitcast(half(v), sums.type) for v in (x, y)]
        sums = _call(b, "llvm.fma.v16f32", sums.type, [*factors, sums])
    return sums


dot2 = _make("dot2", lambda s, x, y: s, _lower_dot2, 3, "sums plus the two products of every word")
dot2_plain = _make("dot2_plain", lambda s, x, y: s, _lower_dot2_plain, 3, "the same of any elements, from f32's FMA")


def _lower_opaque(b, t, x):
    """x, of which the optimiser forgets how it came about: it would keep a pointer per row of a tile"""
    return b.asm(ir.FunctionType(x.type, [x.type]), "", "=r,0", [x], False)


opaque = _make("opaque", lambda a: a, _lower_opaque, 1)


def _lower_least(b, t, least, x):
    """the lesser of what is known and |bits| - 1 of each element: below 127 for subnormals only"""
    bits = b.sub(b.and_(x, _const(x.type, 0x7FFF)), _const(x.type, 1))
    return _call(b, "llvm.umin.v32i16", x.type, [least, bits])


def _lower_any(b, t, least):
    found = _call(b, "llvm.vector.reduce.umin.v32i16", _I16, [least])
    return b.zext(b.icmp_unsigned("<", found, _const(_I16, 0x7F)), simd._I64)


least_of = _make("least_of", lambda a, x: a, _lower_least, 2)
any_subnormal = _make("any_subnormal", lambda a: simd.types.int64, _lower_any, 1, "1 or 0")
pairs = simd.shuffle([k for i in range(16) for k in (i, 16 + i)])
SCOPE = {"least_of": least_of, "any_subnormal": any_subnormal, "pairs": pairs, "store_transposed": store_transposed}
SCOPE |= {"as_i16": simd.bitcast("i16", 32), "none": simd.constant("i16", 32, -1)}

_PACK_LANES = """
def pack_lanes(src, lane_stride, k_stride, exist, width, k, dst, step):
    # As in matmul.py: element i and i + 1 of `width` lanes go to dst + i / 2 * step. Returns whether any is subnormal.
    i, least = 0, none()
    if k_stride == 1 and exist > 0:
        while i + 32 <= k:
            p = src + 2 * i
            {loads}
            store_transposed(dst + step * (i // 2), step, {rows})
            i += 32
    elif lane_stride == 1 and exist >= 16:
        while i + 2 <= k:
            p = src + 2 * k_stride * i
            x = pairs(ld_i16x16(p), ld_i16x16(p + 2 * k_stride))
            least = least_of(least, x)
            st_i16x32(dst + step * (i // 2), x)
            i += 2
    odd = any_subnormal(least)
    for lane in range(width):
        for s in range(i, k, 2):
            word = 0
            if lane < exist:
                for half in range(min(2, k - s)):
                    x = int64(ldi_u16(src, lane * lane_stride + (s + half) * k_stride))
                    word |= x << 16 * half
                    if 0 < x & 0x7FFF < 0x80:
                        odd = 1
            sti_u32(dst + s // 2 * step, lane, word)
    return odd
"""
_PACK_ROWS = """
def pack_rows(src, step, k, panels, dst, panel):
    # As in matmul.py, two rows at a time. Returns a bit per panel, whether it holds subnormals.
    odd = 0
    for j in range(panels):
        least = none()
        p, to = src + {width} * j, dst + j * panel
        for i in range(0, k, 2):
            q = p + i * step
            for v in range({vectors}):
                x = ld_i16x16(q + 32 * v)
                y = x ^ x
                if i + 1 < k:
                    y = ld_i16x16(q + step + 32 * v)
                prefetch(q + {ahead} * step + 32 * v)
                word = pairs(x, y)
                least = least_of(least, word)
                st_i16x32(to + 64 * (i // 2 * {vectors} + v), word)
        odd |= any_subnormal(least) << j
    return odd
"""


def _packer():
    loads = [f"r{j} = ld_i32x16(p + 2 * lane_stride * min({j}, exist - 1))" for j in range(16)]
    loads += [f"least = least_of(least, as_i16(r{j}))" for j in range(16)]
    loads += [f"prefetch(p + 2 * lane_stride * min({j}, exist - 1) + 512)" for j in range(16)]
    rows = ", ".join(f"r{j}" for j in range(16))
    source = _PACK_LANES.format(loads="\n            ".join(loads), rows=rows)
    return compiled(source, "pack_lanes", **SCOPE, int64=simd.types.int64)


def _tile(rows, vectors, dot):
    """As `matmul._tile`, of words of two elements."""
    cells = [(i, j, 64 * (i * vectors + j)) for i in range(rows) for j in range(vectors)]
    lines = [f"s{i}_{j} = zero_f32x16()" for i, j, _ in cells]
    lines += ["a = opaque(a); w = opaque(w); next = opaque(next)", "for _ in range((k + 1) // 2):"]
    lines += [f"    w{j} = ld_i32x16(w + {64 * j})" for j in range(vectors)]
    for i in range(rows):
        lines.append(f"    x = splat_i32x16(ld_i32(a + {4 * i}))")
        lines += [f"    s{i}_{j} = dot(s{i}_{j}, w{j}, x)" for j in range(vectors)]
    lines += [f"    prefetch(a + next + {at})" for at in range(0, 4 * rows, 64)]
    lines += [f"    a += {4 * rows}; w += {64 * vectors}", "if add:"]
    lines += [f"    s{i}_{j} = s{i}_{j} + ld_f32x16(p + {at})" for i, j, at in cells]
    lines += [f"st_f32x16(p + {at}, s{i}_{j})" for i, j, at in cells]
    return compiled("def tile(k, a, w, p, add, next):\n    " + "\n    ".join(lines), "tile", dot=dot, opaque=opaque)


def _tiles():
    """Function f(height, k, a, w, p, add, next, odd): the tile of that height, `odd` if there may be subnormals."""
    scope, lines = {}, ["def tiles(h, k, a, w, p, add, next, odd):"]
    for h in matmul.heights():
        for name, dot in (("plain", dot2_plain), ("fast", dot2)):
            scope[f"{name}{h}"] = _tile(h, TILES[levels.TARGET][1], dot)
        lines += [f"    if h == {h} and odd:\n        plain{h}(k, a, w, p, add, next)"]
        lines += [f"    elif h == {h}:\n        fast{h}(k, a, w, p, add, next)"]
    return compiled("\n".join(lines), "tiles", **scope)


WORDS = {"size": 2, "word": 4, "lanes": 16, "pair": 2}


def _pack():
    mark = f"st_i64(dst + nbytes - {MARK}, odd)"
    return matmul.pack_of(_packer(), 0, src_size=2, mark=mark, **WORDS)


def _gemm(c):
    vectors = TILES[levels.TARGET][1]
    words = {"w_size": 2, "c_size": SIZES[c], "nr": 16 * vectors, "by_rows": True, **WORDS}
    words["odd"] = f", odd >> j & 1 | ld_i64(pa + (t + 1) * tile - {MARK})"
    rows = _PACK_ROWS.format(width=32 * vectors, vectors=vectors, ahead=matmul.AHEAD)
    parts = {"pack_lanes": _packer(), "pack_rows": compiled(rows, "pack_rows", **SCOPE), "tiles": _tiles()}
    return matmul.gemm_of(matmul._store(c, "f32"), parts, **words)


def build(name, *params, source=None):
    """pack, gemm (dtype of C); None for others, and for levels without the instruction."""
    if levels.TARGET != "avx512vnni":
        return None
    if name == "pack" and not params:
        return _pack()
    return _gemm(*params) if name == "gemm" and params in (("f32",), ("bf16",)) else None
