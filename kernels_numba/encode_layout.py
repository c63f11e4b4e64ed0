"""Where the bits of encoded blocks go: the mirror image of `tensorlib.quant.formats`, a row per format.

A row is elements and bytes per block, groups per block, lines of the header, and moves: (offset in the block, width,
parts), a part being (offset in the codes, shift right, mask, shift left). Codes are bytes, one per element, as the
decoder has them before it subtracts anything. Header lines see p (the block), c (its codes) and `out`, the searched
numbers of its groups: f32 vectors s, b, d, dm, ls, lm, 64 bytes each.
"""

from llvmlite import ir
from numba import types

from . import simd
from .encode_search import half
from .lanes import inline
from .simd import _I32, _I64, I8x32, _const, _make, constant, vand, vlshr, vor, vshl

D, PAIR = ["st_f16(p, ld_f32(out))"], ["st_f16(p, ld_f32(out))", "st_f16(p + 2, ld_f32(out + 64))"]
NIBBLES = [(0, 0, 15, 0), (16, 0, 15, 4)]
SUM = [
    "total = 0",
    "for j in range(32):",
    "    total += ld_i8(c + j)",
    "st_f16(p + 2, ld_f32(out) * np.float32(total))",
]
SUMS = [
    "st_f32(p, ld_f32(out))",
    "for g in range(16):",
    "    total = 0",
    "    for j in range(16):",
    "        total += ld_i8(c + 16 * g + j)",
    "    st_i16(p + 260 + 2 * g, total)",
]
Q2_K = [
    "for g in range(16):",
    "    st_u8(p + g, number(out + 256, g) | number(out + 320, g) << 4)",
    "st_f16(p + 80, ld_f32(out + 128))",
    "st_f16(p + 82, ld_f32(out + 192))",
]
Q3_K = [
    "for g in range(8):",
    "    st_u8(p + 96 + g, number(out + 256, g) + 32 & 15 | (number(out + 256, g + 8) + 32 & 15) << 4)",
    "for g in range(4):",
    "    high = 0",
    "    for k in range(4):",
    "        high |= number(out + 256, g + 4 * k) + 32 >> 4 << 2 * k",
    "    st_u8(p + 104 + g, high)",
    "st_f16(p + 108, ld_f32(out + 128))",
]
PAIRS_OF_6 = [
    "st_f16(p, ld_f32(out + 128))",
    "st_f16(p + 2, ld_f32(out + 192))",
    "for g in range(4):",
    "    s, m, s4, m4 = (",
    "        number(out + 256, g), number(out + 320, g), number(out + 256, g + 4), number(out + 320, g + 4)",
    "    )",
    "    st_u8(p + 4 + g, s | s4 >> 4 << 6)",
    "    st_u8(p + 8 + g, m | m4 >> 4 << 6)",
    "    st_u8(p + 12 + g, s4 & 15 | (m4 & 15) << 4)",
]
Q6_K = [
    "for g in range(16):",
    "    st_u8(p + 192 + g, number(out + 256, g))",
    "st_f16(p + 208, ld_f32(out + 128))",
]
IQ4_XS = [
    "high = 0",
    "for g in range(8):",
    "    high |= number(out + 256, g) + 32 >> 4 << 2 * g",
    "st_f16(p, ld_f32(out + 128))",
    "st_i16(p + 2, high)",
    "for g in range(4):",
    "    st_u8(p + 4 + g, number(out + 256, 2 * g) + 32 & 15 | (number(out + 256, 2 * g + 1) + 32 & 15) << 4)",
]
NVFP4 = [
    "for g in range(4):",
    "    st_u8(p + g, number(out + 256, g))",
    "    for j in range(8):",
    "        st_u8(p + 4 + 8 * g + j, ld_u8(c + 16 * g + j) | ld_u8(c + 16 * g + j + 8) << 4)",
]
TQ1_0 = [
    "for i in range(52):",
    "    first = i if i < 32 else (128 + i if i < 48 else 192 + i)",  # its first element; the next is `gap` further
    "    gap = 32 if i < 32 else (16 if i < 48 else 4)",
    "    digits = 0",
    "    for k in range(5 if i < 48 else 4):",
    "        digits = digits * 3 + ld_u8(c + first + gap * k)",
    "    if i >= 48:",
    "        digits *= 3",
    "    st_u8(p + i, (digits * 256 + 242) // 243)",
    "st_f16(p + 52, ld_f32(out))",
]
Q1_0 = [
    *D,
    "for i in range(16):",
    "    bits = 0",
    "    for k in range(8):",
    "        bits |= ld_u8(c + 8 * i + k) << k",
    "    st_u8(p + 2 + i, bits)",
]
Q2_0 = [
    *D,
    "for i in range(16):",
    "    bits = 0",
    "    for k in range(4):",
    "        bits |= ld_u8(c + 4 * i + k) << 2 * k",
    "    st_u8(p + 2 + i, bits)",
]


def _crumbs(at, shift=0):
    """Moves of 2-bit numbers, see `formats.crumb`."""
    return [(at + 32 * h, 32, [(128 * h + 32 * k, shift, 3, 2 * k) for k in range(4)]) for h in (0, 1)]


def _halves(at):
    """Moves of nibbles, 32 of a group to the low ones, 32 of the next to the high ones."""
    return [(at + 32 * i, 32, [(64 * i, 0, 15, 0), (64 * i + 32, 0, 15, 4)]) for i in range(4)]


def _quarters(at):
    return [
        (at + 64 * h + 32 * i, 32, [(128 * h + 32 * i, 0, 15, 0), (128 * h + 64 + 32 * i, 0, 15, 4)])
        for h in (0, 1)
        for i in (0, 1)
    ]


def _whole(at, n):
    return [(at + i, 32, [(i, 0, 255, 0)]) for i in range(0, n, 32)]


LAYOUTS = {
    "q4_0": (32, 18, 1, D, [(2, 16, NIBBLES)]),
    "q4_1": (32, 20, 1, PAIR, [(4, 16, NIBBLES)]),
    "q5_0": (32, 22, 1, [*D, "st_i32(p + 2, fifth(c))"], [(6, 16, NIBBLES)]),
    "q5_1": (32, 24, 1, [*PAIR, "st_i32(p + 4, fifth(c))"], [(8, 16, NIBBLES)]),
    "q8_0": (32, 34, 1, D, _whole(2, 32)),
    "q8_1": (32, 36, 1, [*D, *SUM], _whole(4, 32)),
    "q2_k": (256, 84, 16, Q2_K, _crumbs(16)),
    "q3_k": (256, 110, 16, Q3_K, [*_crumbs(32), (0, 32, [(32 * k, 2, 1, k) for k in range(8)])]),
    "q4_k": (256, 144, 8, PAIRS_OF_6, _halves(16)),
    "q5_k": (256, 176, 8, PAIRS_OF_6, [*_halves(48), (16, 32, [(32 * g, 4, 1, g) for g in range(8)])]),
    "q6_k": (256, 210, 16, Q6_K, [*_quarters(0), *_crumbs(128, 4)]),
    "q8_k": (256, 292, 1, SUMS, _whole(4, 256)),
    "iq4_nl": (32, 18, 1, D, [(2, 16, NIBBLES)]),
    "iq4_xs": (256, 136, 8, IQ4_XS, [(8 + i // 2, 16, [(i, 0, 15, 0), (i + 16, 0, 15, 4)]) for i in range(0, 256, 32)]),
    "mxfp4": (32, 17, 1, ["st_u8(p, number(out + 256, 0))"], [(1, 16, NIBBLES)]),
    "nvfp4": (64, 36, 4, NVFP4, []),
    "tq1_0": (256, 54, 1, TQ1_0, []),
    "tq2_0": (256, 66, 1, ["st_f16(p + 64, ld_f32(out))"], _crumbs(0)),
    "q1_0": (128, 18, 1, Q1_0, []),
    "q2_0": (64, 18, 1, Q2_0, []),
}


def _fifth(b, t, c):
    """bit 4 of 32 bytes, as an i32"""
    bytes_ = simd._load(b, c, I8x32.ll)
    bits = b.icmp_unsigned("!=", b.and_(bytes_, _const(I8x32.ll, 16)), _const(I8x32.ll, 0))
    return b.sext(b.bitcast(bits, _I32), _I64)


def _number(b, t, address, i):
    """element i of floats at an address, as an integer"""
    value = b.load(b.gep(b.inttoptr(address, ir.FloatType().as_pointer()), [i]))
    value.align = 4
    return b.fptosi(value, _I64)


fifth = _make("fifth", lambda c: types.int64, _fifth, 1)
number = _make("number", lambda a, i: types.int64, _number, 2)


def packer(name):
    """Function (p, c, out): writes the block at p from its codes at c and the numbers at `out`."""
    import numpy as np

    *_, header, moves = LAYOUTS[name]
    names = ("st_f16", "st_f32", "st_u8", "st_i16", "st_i32", "ld_f32", "ld_i8", "ld_u8")
    scope = {n: getattr(simd, n) for n in names} | {"fifth": fifth, "number": number, "half": half, "np": np}
    scope |= {"vand": vand, "vor": vor, "vshl": vshl, "vlshr": vlshr}
    lines = list(header)
    for at, width, parts in moves:
        key = f"i8x{width}"
        scope |= {f"{w}_{key}": getattr(simd, f"{w}_{key}") for w in ("ld", "st")}
        whole = None
        for offset, right, mask, left in parts:
            v = f"ld_{key}(c + {offset})"
            for op, k in (("vlshr", right), ("vand", mask if mask < 255 else 0), ("vshl", left)):
                if k:
                    scope[f"k{k}_{width}"] = constant("i8", width, k)
                    v = f"{op}({v}, k{k}_{width}())"
            whole = v if whole is None else f"vor({whole}, {v})"
        lines.append(f"st_{key}(p + {at}, {whole})")
    exec("def pack(p, c, out):\n    " + "\n    ".join(lines), scope)
    return inline(scope["pack"])
