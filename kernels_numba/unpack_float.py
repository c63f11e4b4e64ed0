"""Weights that are floats of 4 or 8 bits as vectors of f32: for each format, the lines of source that unpack a group of
128 weights of a row (`quant_float.py`).

A group is eight vectors, by the few instructions that its codes need where they lie: with a stride of S, the vector r
of a run of 16 S weights has the weights S l + r in its lanes l. Lines use the addresses {b0}, {b1} ... of the group's
blocks; past a row's end that is again the last one's.
"""

import struct
from typing import NamedTuple

from llvmlite import ir

from . import levels, simd, unpack, unpack_affine, unpack_low
from .quant_layout import GROUP, STRIDES
from .simd import F32x16, I16x32, _call, _const, _join_halves, _make, _shuffle, _splat, shuffle

_I8, _I32, _F32 = ir.IntType(8), ir.IntType(32), ir.FloatType()


class Floats(NamedTuple):
    """A format's row: blocks of `elements` weights in `nbytes`; `runs`: (scale, vectors), their expressions."""

    elements: int
    nbytes: int
    lines: tuple
    runs: tuple
    factor: float = 1.0  # of all sums, beside the scale


# ---- 16 floats by 4 bits -------------------------------------------------------------------------------------------


def _permuted(b, name, table, x):
    v = ir.VectorType(_F32, len(table))
    return _call(b, name, v, [_const(v, list(table)), x])


def _entries_avx512(b, table, x):
    return _permuted(b, "llvm.x86.avx512.permvar.sf.512", table, x)


def _entries_avx2(b, table, x):
    out = []
    for at in (0, 8):
        part = _shuffle(b, x, x, range(at, at + 8))
        low, high = (_permuted(b, "llvm.x86.avx2.permps", table[i : i + 8], part) for i in (0, 8))
        top = b.icmp_signed("<", b.shl(part, _const(part.type, 28)), _const(part.type, 0))
        out.append(b.select(top, high, low))
    return _join_halves(b, out)


def _entries_neon(b, table, x):
    bytes16, out = ir.VectorType(_I8, 16), []
    data = struct.pack("<16f", *table)
    parts = [_const(bytes16, list(data[i : i + 16])) for i in range(0, 64, 16)]
    for at in range(0, 16, 4):
        part = b.and_(_shuffle(b, x, x, range(at, at + 4)), _const(ir.VectorType(_I32, 4), 15))
        part = b.add(b.mul(part, _const(part.type, 0x04040404)), _const(part.type, 0x03020100))
        found = _call(b, "llvm.aarch64.neon.tbl4.v16i8", bytes16, [*parts, b.bitcast(part, bytes16)])
        out.append(b.bitcast(found, ir.VectorType(_F32, 4)))
    return _join_halves(b, out)


def _entries_plain(b, table, x):
    """halves of the table, chosen by one bit of the index after the other"""
    values = [_const(F32x16.ll, v) for v in table]
    for bit in range(4):
        odd = b.icmp_unsigned("!=", b.and_(x, _const(x.type, 1 << bit)), _const(x.type, 0))
        values = [b.select(odd, values[i + 1], values[i]) for i in range(0, len(values), 2)]
    return values[0]


ENTRIES = {"avx512vnni": _entries_avx512, "avx2": _entries_avx2, "neon": _entries_neon, "portable": _entries_plain}


def _entries(table, r):
    """Intrinsic f(64 bytes of codes, high nibbles first): entries of codes r, 8 + r, 16 + r, ..."""

    def lower(b, t, x):
        words = ir.VectorType(_I32, 16)
        return ENTRIES[levels.TARGET](b, table, b.lshr(b.bitcast(x, words), _const(words, 4 * (r ^ 1))))

    return _make("entries", lambda x: F32x16, lower, 1)


def _of_two(b, t, *addresses):
    """f32 at two addresses -> vector, each in eight lanes"""
    first, second = (_splat(b, simd._load(b, a, _F32), 16) for a in addresses)
    return _shuffle(b, first, second, [*range(8), *range(16, 24)])


wide_scales2 = _make("wide_scales2", lambda a, b: F32x16, _of_two, 2)

# ---- float8 ---------------------------------------------------------------------------------------------------------


def _e4m3(odd):
    """Intrinsic f(i8x64): the even or odd bytes, e4m3, as bits of f16, which lack a factor of 2**8 (denormals too)."""

    def lower(b, t, x):
        v = b.bitcast(x, I16x32.ll)
        v = v if odd else b.shl(v, _const(v.type, 8))
        return b.and_(b.ashr(v, _const(v.type, 1)), _const(v.type, 0xBF80 - 0x10000))

    return _make("e4m3", lambda x: I16x32, lower, 1)


def _poisoned(b, t, scale, *codes):
    """a vector of that scale; NaN if any of the bytes is e4m3's NaN"""
    i64, some = ir.IntType(64), None
    for x in codes:
        mask = b.bitcast(b.icmp_signed("==", b.or_(x, _const(x.type, -128)), _const(x.type, -1)), i64)
        some = mask if some is None else b.or_(some, mask)
    nan = ir.Constant(_F32, float("nan"))
    return _splat(b, b.select(b.icmp_unsigned("!=", some, _const(i64, 0)), nan, scale), 16)


even_e4m3, odd_e4m3 = _e4m3(False), _e4m3(True)
poisoned = _make("poisoned", lambda d, x: F32x16, _poisoned, 2)
poisoned2 = _make("poisoned2", lambda d, x, y: F32x16, _poisoned, 3)
half0, half1 = (shuffle(range(at, at + 16)) for at in (0, 16))

_E4M3 = tuple(f"{half}{n} = {half}_e4m3(x{n})" for n in (0, 1) for half in ("even", "odd"))
_RUNS = tuple(
    (n, h, tuple(f"h2f(half{h}({half}{n}, {half}{n}))" for half in ("even", "odd"))) for n in (0, 1) for h in (0, 1)
)


def _four_bits(nbytes, load, scales):
    lines = (f"v = {load}", f"d = {scales}")
    return Floats(GROUP // load.count("{b"), nbytes, lines, (("d", tuple(f"entries{r}(v)" for r in range(8))),))


_OF_64 = _four_bits(36, "ld2x32({b0} + 4, {b1} + 4)", "wide_scales2({b0}, {b1})")
_OF_32 = _four_bits(20, "ld4x16({b0} + 4, {b1} + 4, {b2} + 4, {b3} + 4)", "wide_scales4({b0}, {b1}, {b2}, {b3})")
FLOATS = {
    "nf4_64": _OF_64,
    "nf4_32": _OF_32,
    "fp4_64": _OF_64,
    "fp4_32": _OF_32,
    "f8_128": Floats(
        128,
        132,
        ("x0 = ld_i8x64({b0} + 4)", "x1 = ld_i8x64({b0} + 68)", *_E4M3, "d = poisoned2(ld_f32({b0}), x0, x1)"),
        (("d", tuple(v for _, _, run in _RUNS for v in run)),),
        256.0,
    ),
    "f8_32": Floats(
        32,
        36,
        ("x0 = ld2x32({b0} + 4, {b1} + 4)", "x1 = ld2x32({b2} + 4, {b3} + 4)", *_E4M3),
        tuple((f"poisoned(ld_f32({{b{2 * n + h}}}), x{n})", run) for n, h, run in _RUNS),
        256.0,
    ),
}


def scope_of(fmt, source):
    """What the lines of a format use; `source` is the text of its decode function, with its table."""
    scope = {**vars(simd), **vars(unpack), **vars(unpack_low), **vars(unpack_affine), **globals()}
    if STRIDES[fmt] == 8:
        made = {}
        exec(source, made)
        table = struct.unpack("<16f", made["TABLE"])
        scope |= {f"entries{r}": _entries(table, r) for r in range(8)}
    return scope
