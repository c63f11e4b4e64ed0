"""Dot products and look-ups of bytes, for which LLVM needs to be told the instruction: a lowering per level.

`dot4(acc, u, s)`: every i32 lane of acc gains the four products of its four unsigned bytes u and signed bytes s,
exactly. `dot4_small` is the same for u <= 127, which lets AVX2 use vpmaddubsw without saturation (2 * 127 * 127 <
2**15). x86: VPDPBUSD, or VPMADDUBSW/VPMADDWD. NEON: SDOT (u <= 127), USDOT through a correction. Portable: plain LLVM
integers.

`mulhi16(x, y)`: high halves of the products of unsigned words. (LLVM makes shifts and additions of 32 bits of a
product with 3, which take four times as long as PMULHUW.)

`look_up(table)` makes an intrinsic f(indices): entries of a table of 16 bytes. x86: PSHUFB (every level has it); NEON:
TBL.
"""

import llvmlite.binding as llvm
from llvmlite import ir

from . import levels, simd
from .simd import _I8, _I16, _I32, I8x64, _call, _const, _join_halves, _make, _shuffle


def _parts(b, x, count):
    """Vector x cut into pieces of `count` elements."""
    n = x.type.count
    return [_shuffle(b, x, x, range(i, i + count)) for i in range(0, n, count)]


def _vnni(b, acc, u, s):
    if llvm.llvm_version_info[0] < 22:  # the operands were <16 x i32> before LLVM 22
        v = ir.VectorType(_I32, u.type.count // 4)
        u, s = b.bitcast(u, v), b.bitcast(s, v)
    return _call(b, "llvm.x86.avx512.vpdpbusd.512", acc.type, [acc, u, s])


def _portable(b, acc, u, s):
    n = u.type.count
    i16 = ir.VectorType(_I16, n)
    i32 = ir.VectorType(_I32, n)
    product = b.mul(b.sext(b.zext(u, i16), i32), b.sext(b.sext(s, i16), i32))
    for k in range(4):
        acc = b.add(acc, _shuffle(b, product, product, range(k, n, 4)))
    return acc


def _avx2_madd(b, x, y):
    return _call(b, "llvm.x86.avx2.pmadd.wd", ir.VectorType(_I32, 8), [x, y])


def _avx2_small(b, acc, u, s):
    i16 = ir.VectorType(_I16, 16)
    ones = _const(i16, 1)
    pairs = [_call(b, "llvm.x86.avx2.pmadd.ub.sw", i16, [x, y]) for x, y in zip(_parts(b, u, 32), _parts(b, s, 32))]
    return b.add(acc, _join_halves(b, [_avx2_madd(b, p, ones) for p in pairs]))


def _avx2(b, acc, u, s):
    """any u: even and odd bytes widened to 16 bits in place"""
    i16, out = ir.VectorType(_I16, 16), []
    eight = _const(i16, 8)
    for x, y in zip(_parts(b, u, 32), _parts(b, s, 32)):
        x, y = b.bitcast(x, i16), b.bitcast(y, i16)
        even = _avx2_madd(b, b.and_(x, _const(i16, 255)), b.ashr(b.shl(y, eight), eight))
        out.append(b.add(even, _avx2_madd(b, b.lshr(x, eight), b.ashr(y, eight))))
    return b.add(acc, _join_halves(b, out))


def _neon_sdot(b, acc, x, y):
    v4 = ir.VectorType(_I32, 4)
    name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
    triples = zip(_parts(b, acc, 4), _parts(b, x, 16), _parts(b, y, 16))
    return _join_halves(b, [_call(b, name, v4, [a, p, q]) for a, p, q in triples])


def _neon(b, acc, u, s):
    """any u: (u - 128) . s + 128 * (1 . s), both by SDOT"""
    flipped = b.xor(u, _const(u.type, -128))
    total = _neon_sdot(b, _const(acc.type, 0), _const(u.type, 1), s)
    return _neon_sdot(b, b.add(acc, b.shl(total, _const(acc.type, 7))), flipped, s)


DOT = {"avx512vnni": _vnni, "avx2": _avx2, "neon": _neon, "portable": _portable}
DOT_SMALL = {"avx512vnni": _vnni, "avx2": _avx2_small, "neon": _neon_sdot, "portable": _portable}

dot4 = _make("dot4", lambda acc, u, s: acc, lambda b, t, *v: DOT[levels.TARGET](b, *v), 3)
dot4_small = _make("dot4_small", lambda acc, u, s: acc, lambda b, t, *v: DOT_SMALL[levels.TARGET](b, *v), 3)


def _broadcast4(b, t, address):
    """the four bytes at address in every i32 lane (folds into the memory operand of vpdpbusd)"""
    word = simd._load(b, address, _I32)
    return b.bitcast(simd._splat(b, word, 16), ir.VectorType(_I8, 64))


broadcast4 = _make("broadcast4", lambda a: I8x64, _broadcast4, 1)


# instruction and its width in words
MULHI16 = {
    "avx512vnni": ("llvm.x86.avx512.pmulhu.w.512", 32),
    "avx2": ("llvm.x86.avx2.pmulhu.w", 16),
    "portable": ("llvm.x86.sse2.pmulhu.w", 8),
}


def mulhi16(b, x, y):
    """High halves of the products of two vectors of unsigned words; IR, not an intrinsic."""
    if levels.TARGET in MULHI16:
        name, width = MULHI16[levels.TARGET]
        pairs = zip(_parts(b, x, width), _parts(b, y, width))
        return _join_halves(b, [_call(b, name, p.type, [p, q]) for p, q in pairs])
    wide = ir.VectorType(_I32, x.type.count)
    product = b.mul(b.zext(x, wide), b.zext(y, wide))
    return b.trunc(b.lshr(product, _const(wide, 16)), x.type)


# instruction and its width in bytes
LOOK_UP = {
    "avx512vnni": ("llvm.x86.avx512.pshuf.b.512", 64),
    "avx2": ("llvm.x86.avx2.pshuf.b", 32),
    "neon": ("llvm.aarch64.neon.tbl1.v16i8", 16),
    "portable": ("llvm.x86.ssse3.pshuf.b.128", 16),
}


def _look_up(b, table, x):
    name, width = LOOK_UP[levels.TARGET]
    vector = ir.VectorType(_I8, width)
    entries = _const(vector, list(table) * (width // 16))
    return _join_halves(b, [_call(b, name, vector, [entries, part]) for part in _parts(b, x, width)])


def look_up(table):
    """Intrinsic f(i8 vector): for each byte, below 16, that entry of `table`."""
    return _make("look_up", lambda x: x, lambda b, t, x: _look_up(b, table, x), 1)
