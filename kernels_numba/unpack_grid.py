"""Rows of `unpack.py`, continued: IQ1, IQ2 and IQ3, whose weights are entries of a grid, 8 or 4 at a time, and signs.

The grid comes with the format's decode source (TABLE). Its entries, bias added, are loaded one by one: 8 bytes each, so
that 16 loads make the weights of a group, which measured as fast as gathers and as look-ups in registers. Where entries
have 4 bytes, with AVX-512, the grid lies in registers, as words of four numbers, and 32 entries are looked up at once:
twice as fast.

Block layouts: ggml-common.h of llama.cpp.
"""

from llvmlite import ir
from numba import types

from . import levels, simd
from .dot import _look_up
from .quant_layout import BIAS
from .simd import F32x16, I8x64, _call, _const, _load, _make, _shuffle, intrinsic
from .unpack import Unpack

_I1, _I8, _I16, _I32, _I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))


def _v(n, ty):
    return ir.VectorType(ty, n)


def _at(b, p, offset, ty):
    return _load(b, b.add(p, _const(_I64, offset)), ty)


def _with(op):
    """f(b, x, number): x op number, in every lane."""
    return lambda b, x, n: getattr(b, op)(x, _const(x.type, n))


_shr, _shl, _and = map(_with, ("lshr", "shl", "and_"))


# ---- which entries -------------------------------------------------------------------------------------------------


def _low(b, p, offset, n):
    """n bytes as words"""
    return b.zext(_at(b, p, offset, _v(n, _I8)), _v(n, _I16))


def _high(b, p, offset, ty, left, n, mask):
    """Fields of the bytes or words at `offset`: from each as many as `left` has numbers, one more than the left shift
    that puts it under `mask`.
    """
    each = len(left)
    x = _at(b, p, offset, _v(n // each, ty))
    x = _shuffle(b, x, x, [i // each for i in range(n)])
    x = x if ty is _I16 else b.zext(x, _v(n, _I16))
    return _and(b, _shr(b, _shl(b, x, [*left] * (n // each)), 1), mask)


def _pairs(b, p, k):
    """Of eight pairs of 32-bit words at p + 2 the first (k = 0) or second ones."""
    x = _at(b, p, 2, _v(16, _I32))
    return _shuffle(b, x, x, range(k, 16, 2))


def _iq1_s_high(b, p):
    """Three bits more, and the top bit of the word that they come from, which shifts all entries there down."""
    shift = _at(b, p, 34, _v(8, _I16))
    shift = _and(b, _shr(b, _shuffle(b, shift, shift, [i // 4 for i in range(32)]), 4), 0x800)
    return b.or_(_high(b, p, 34, _I16, (9, 6, 3, 0), 32, 0x700), shift)


# format: f(b, p): the numbers of the entries of a block, in order, as words
NUMBERS = {
    "iq2_xxs": lambda b, p: b.zext(b.bitcast(_pairs(b, p, 0), _v(32, _I8)), _v(32, _I16)),
    "iq2_xs": lambda b, p: _and(b, _at(b, p, 2, _v(32, _I16)), 511),
    "iq2_s": lambda b, p: b.or_(_low(b, p, 2, 32), _high(b, p, 66, _I8, (9, 7, 5, 3), 32, 0x300)),
    "iq3_xxs": lambda b, p: _low(b, p, 2, 64),
    "iq3_s": lambda b, p: b.or_(_low(b, p, 2, 64), _high(b, p, 66, _I8, (9, 8, 7, 6, 5, 4, 3, 2), 64, 0x100)),
    "iq1_s": lambda b, p: b.or_(_low(b, p, 2, 32), _iq1_s_high(b, p)),
    "iq1_m": lambda b, p: b.or_(_low(b, p, 0, 32), _high(b, p, 32, _I8, (9, 5), 32, 0xF00)),
}
# where the numbers are bytes of the block: the offset of number i
BYTES = {"iq2_xxs": lambda i: 2 + i // 4 * 8 + i % 4, "iq3_xxs": lambda i: 2 + i}


def _scalars(b, fmt, p, n):
    """The numbers of the entries, each as an i64."""
    if fmt in BYTES:
        return [b.zext(_at(b, p, BYTES[fmt](i), _I8), _I64) for i in range(n)]
    # four at a time: LLVM would take words out of a vector one by one, which is slower
    fours = b.bitcast(NUMBERS[fmt](b, p), _v(n // 4, _I64))
    words = [b.extract_element(fours, _const(_I32, i)) for i in range(n // 4)]
    return [_and(b, _shr(b, word, 16 * k), 0xFFFF) for word in words for k in range(4)]


# ---- what is in them -----------------------------------------------------------------------------------------------


def _loaded(b, entries, numbers):
    """Vectors of 64 bytes: entries (lists of bytes) by number, one after the other."""
    size = len(entries[0])
    integer, element = ir.IntType(8 * size), ir.DoubleType() if size == 8 else ir.FloatType()
    table = b.module.globals.get("grid")
    if table is None:
        array = ir.ArrayType(integer, len(entries))
        table = ir.GlobalVariable(b.module, array, "grid")
        table.global_constant, table.linkage, table.align = True, "internal", 64
        table.initializer = ir.Constant(array, [int.from_bytes(e, "little") for e in entries])
    out, per = [], 64 // size
    for start in range(0, len(numbers), per):
        v = ir.Constant(_v(per, element), ir.Undefined)
        for j, number in enumerate(numbers[start : start + per]):
            address = b.bitcast(b.gep(table, [_const(_I64, 0), number]), element.as_pointer())
            v = b.insert_element(v, b.load(address), _const(_I32, j))
        out.append(b.bitcast(v, I8x64.ll))
    return out


def _looked_up(b, words, numbers):
    """Entries of a list of words, for a vector of 32 numbers."""
    name, v = "llvm.x86.avx512.vpermi2var.hi.512", _v(32, _I16)
    tables = [_const(v, words[i : i + 32]) for i in range(0, len(words), 32)]
    found = [_call(b, name, v, [tables[i], numbers, tables[i + 1]]) for i in range(0, len(tables), 2)]
    bit = 64
    while len(found) > 1:
        odd = b.icmp_unsigned("!=", _and(b, numbers, bit), _const(v, 0))
        found = [b.select(odd, found[i + 1], found[i]) for i in range(0, len(found), 2)]
        bit *= 2
    return found[0]


def _from_registers(b, fmt, p, entries):
    """The weights of a block, four vectors in order, of a grid with entries of four: their codes are looked up."""
    values = sorted({v for e in entries for v in e})
    codes = [sum(values.index(v) << 4 * i for i, v in enumerate(e)) for e in entries]
    words = [w - (w >> 15 << 16) for w in codes]
    numbers, out = NUMBERS[fmt](b, p), []
    for g in (0, 1):
        x = _looked_up(b, words, _shuffle(b, numbers, numbers, range(32 * g, 32 * g + 32)))
        nibbles = (_and(b, b.bitcast(_shr(b, x, k), I8x64.ll), 15) for k in (0, 4))
        even, odd = (_look_up(b, values + [0] * (16 - len(values)), n) for n in nibbles)
        for first in (0, 8):  # the low or high 8 of each 16 bytes, even and odd ones in turns
            index = [16 * j + first + i + 64 * v for j in range(4) for i in range(8) for v in (0, 1)]
            out.append(_shuffle(b, even, odd, index))
    return out


def _order(x, size):
    """A list, one item per entry of a block, in the order lo, hi, lo, hi of its groups."""
    n = 16 // size
    starts = [8 * g + 2 * j + half for g in (0, 1) for half in (0, 1) for j in range(4)]
    return [x[n * start + i] for start in starts for i in range(n)]


def _entries(fmt, table):
    """The grid as lists of bytes, all of them from 0 to 127."""
    table, size = [v - (v >> 7 << 8) for v in table], 8
    if fmt.startswith("iq1"):  # in eighths; after all entries shifted up all those shifted down
        values = [8 * v + BIAS[fmt] + shift for shift in (1, -1) for v in table]
    else:
        values, size = [v + BIAS[fmt] for v in table], 4 if fmt.startswith("iq3") else 8
    return [bytes(values[i : i + size]) for i in range(0, len(values), size)]


def grid(fmt, table):
    """Intrinsic f(p): lo and hi of the first group of the block at p, then of the second, without signs."""
    entries = _entries(fmt, table)
    size = len(entries[0])
    result = types.UniTuple(I8x64, 4)

    def lower(b, p):
        if levels.TARGET == "avx512vnni" and size == 4:
            return _from_registers(b, fmt, p, entries)
        return _loaded(b, entries, _order(_scalars(b, fmt, p, 256 // size), size))

    @intrinsic
    def unpacked(typingctx, p):
        return result(p), lambda context, b, signature, values: context.make_tuple(b, result, lower(b, values[0]))

    return unpacked


def scope(fmt, source):
    """The names that a format's lines use: `grid`, out of its decode source."""
    found = {}
    exec(compile(source, "<decode>", "exec"), found)
    return {"grid": grid(fmt, found["TABLE"])}


# ---- signs ---------------------------------------------------------------------------------------------------------


def _eighth(b, x):
    """Seven bits in each byte, or word, and an eighth that makes the number of ones even."""
    p, ones = x, {_I16: 1, _I32: 0x01010101}[x.type.element]
    for n in (4, 2, 1):
        p = b.xor(p, _shr(b, p, n))
    return b.or_(x, _shl(b, _and(b, p, ones), 7))


def _sevens(b, x):
    """Four times seven bits in words of 32, as bytes with their eighth."""
    out = _and(b, x, 0x7F)
    for k in (1, 2, 3):
        out = b.or_(out, _and(b, _shl(b, x, k), 0x7F << 8 * k))
    return _eighth(b, out)


# format: f(b, p): the signs of a block, a bit each, as 32 bytes
SIGNS = {
    "iq2_xxs": lambda b, p: _sevens(b, _pairs(b, p, 1)),
    "iq2_xs": lambda b, p: b.trunc(_eighth(b, _shr(b, _at(b, p, 2, _v(32, _I16)), 9)), _v(32, _I8)),
    "iq2_s": lambda b, p: _at(b, p, 34, _v(32, _I8)),
    "iq3_xxs": lambda b, p: _sevens(b, _at(b, p, 66, _v(8, _I32))),
    "iq3_s": lambda b, p: _at(b, p, 74, _v(32, _I8)),
}


def _signs(fmt):
    """Intrinsic f(p): the signs of the block at p, a bit per weight, as 64 bytes: in each 16 those of a run of either
    group.
    """

    def lower(b, t, p):
        x = b.bitcast(SIGNS[fmt](b, p), _v(8, _I32))
        x = _shuffle(b, x, x, [j + 4 * g for j in range(4) for g in (0, 1, 0, 1)])
        return b.bitcast(x, I8x64.ll)

    return _make(f"signs_{fmt}", lambda p: I8x64, lower, 1)


def _signed(k):
    """Intrinsic f(x, signs, twice): twice the bias less u, instead of u, where the weight has a sign; k counts lo, hi,
    lo, hi.
    """

    def lower(b, t, x, signs, twice):
        bits = _shuffle(b, signs, signs, [16 * j + 2 * k + i for j in range(4) for i in (0, 1) for _ in range(8)])
        bits = b.and_(bits, _const(x.type, [1 << i % 8 for i in range(64)]))
        negative = b.icmp_unsigned("!=", bits, _const(x.type, 0))
        return b.select(negative, b.sub(simd._splat(b, b.trunc(twice, _I8), 64), x), x)

    return _make("signed", lambda x, signs, twice: x, lower, 3)


signed0, signed1, signed2, signed3 = map(_signed, range(4))
_globals = globals()
for _fmt in SIGNS:
    _globals[f"signs_{_fmt}"] = _signs(_fmt)


# ---- scales --------------------------------------------------------------------------------------------------------


def _nibbles(b, p, offset, n):
    """Nibbles of n bytes, low ones first."""
    x = _at(b, p, offset, _v(n, _I8))
    return _shuffle(b, _and(b, x, 15), _shr(b, x, 4), [i // 2 + n * (i % 2) for i in range(2 * n)])


def _d(b, p):
    return _at(b, p, 0, _I16)


def _iq1_m_d(b, p):
    """The f16 that is the top four bits of four words."""
    x = _at(b, p, 48, _I64)
    parts = [_and(b, _shr(b, x, 12 + 12 * k), 15 << 4 * k) for k in range(4)]
    return b.trunc(b.or_(b.or_(*parts[:2]), b.or_(*parts[2:])), _I16)


def _iq1_m_scales(b, p):
    x = _at(b, p, 48, _v(4, _I16))
    x = _shuffle(b, x, x, [i // 4 for i in range(16)])
    return _and(b, b.lshr(x, _const(x.type, [0, 3, 6, 9] * 4)), 7)


# format: codes of the scales of a block, what they are multiplied with, what is added, d as f16
SCALES = {
    "iq2_xxs": (lambda b, p: _shr(b, _pairs(b, p, 1), 28), 0.25, 0.125, _d),
    "iq2_xs": (lambda b, p: _nibbles(b, p, 66, 8), 0.25, 0.125, _d),
    "iq2_s": (lambda b, p: _nibbles(b, p, 74, 8), 0.25, 0.125, _d),
    "iq3_xxs": (lambda b, p: _shr(b, _at(b, p, 66, _v(8, _I32)), 28), 0.5, 0.25, _d),
    "iq3_s": (lambda b, p: _nibbles(b, p, 106, 4), 2.0, 1.0, _d),
    "iq1_s": (lambda b, p: _and(b, _shr(b, _at(b, p, 34, _v(8, _I16)), 12), 7), 0.25, 0.125, _d),
    "iq1_m": (_iq1_m_scales, 0.25, 0.125, _iq1_m_d),
}


def _scales(fmt):
    """Intrinsic f(p): the scales of a block: one for every 16 weights, or for every 32 and then those again."""
    codes, times, plus, d = SCALES[fmt]

    def lower(b, t, p):
        x = codes(b, p)
        x = b.uitofp(_shuffle(b, x, x, [i % x.type.count for i in range(16)]), F32x16.ll)
        x = b.fadd(b.fmul(x, _const(x.type, times)), _const(x.type, plus))
        return b.fmul(x, simd._splat(b, simd.f16_to_f32(b, d(b, p)), 16))

    return _make(f"scales_{fmt}", lambda p: F32x16, lower, 1)


for _fmt in SCALES:
    _globals[f"scales_{_fmt}"] = _scales(_fmt)


# ---- rows ----------------------------------------------------------------------------------------------------------

_GRID = "v0, v1, v2, v3 = grid({p})"
_VALUES = ("lo = (v0, v2)[{g}]", "hi = (v1, v3)[{g}]")
_WHOLE, _HALVES = ("d = spread{g}(dm, dm)",), ("d = half{g}0(dm, dm)", "dh = half{g}1(dm, dm)")


def _row(fmt, nbytes, halves=False):
    """Of a format with signs."""
    once = [_GRID, f"s = signs_{fmt}({{p}})", f"dm = scales_{fmt}({{p}})"]
    once += [f"v{k} = signed{k}(v{k}, s, {2 * BIAS[fmt]})" for k in range(4)]
    scales = _HALVES if halves else _WHOLE
    return Unpack(256, nbytes, BIAS[fmt], (*_VALUES, *scales), tuple(once), halves=halves)


UNPACK = {
    "iq2_xxs": _row("iq2_xxs", 66),
    "iq2_xs": _row("iq2_xs", 74, halves=True),
    "iq2_s": _row("iq2_s", 82, halves=True),
    "iq3_xxs": _row("iq3_xxs", 98),
    "iq3_s": _row("iq3_s", 110),
    "iq1_s": Unpack(256, 50, BIAS["iq1_s"], (*_VALUES, *_WHOLE), (_GRID, "dm = scales_iq1_s({p})")),
    "iq1_m": Unpack(256, 56, BIAS["iq1_m"], (*_VALUES, *_HALVES), (_GRID, "dm = scales_iq1_m({p})"), halves=True),
}
