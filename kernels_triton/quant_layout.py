"""Quantised weights on a GPU: each format's bits sorted into planes, which replace the file's blocks.

GGML's blocks of 18, 34, 110, 210 bytes allow no load wider than 16 bits. Here a matrix [N, K] of a format in `ROWS`
is up to four planes, row after row, each of whole bytes per 32 weights (or per super-block of 256), so that every
load is aligned and neighbours are read by neighbours. Nothing is rounded and no bit is added to the codes:

- low: the code's low 4 bits (16 bytes per 32 weights; byte t holds weight t, and weight 16 + t in its high nibble),
  its low 2 (8 bytes: byte t % 4 of either half, bits 2 (t // 4)), or all 8 (32 bytes, in order);
- high: 1 or 2 more bits of the code (4 bytes: weight t at bit t // 4 of byte t % 4, weight 16 + t four bits higher; or
  8 bytes, as the low 2), so that a shift and a mask of a 32-bit word give four weights' bits at once;
- scale: 1, 2 or 4 bytes per 32 weights, of the kind `scale`; base: what a super-block's scales are multiples of.

A weight is d * (code - bias), plus m or minus m, in the order of operations of
tensorlib/quant/formats.py. That a block is a permutation of its planes' bits makes both ways one kernel, `permute`, led
by a table that is made here.

The part above the kernels is read by tensorlib/quant: it needs no Triton's compiler.
"""

import functools
import struct
from typing import NamedTuple

import triton
import triton.language as tl

from .launch import Kernel, blocks

ALIGN = 256  # bytes: where a plane begins
KVALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


class Row(NamedTuple):
    """A format: weights and bytes per block; bits of the low and high plane; `scale` kind and what is subtracted.

    `code(j)` and `scales(g)` say where the bits of weight j's code, and the bytes of group g's scale, lie in a block:
    pieces (byte, shift, bits), the lowest first. `base`: first byte and size of what goes to the base plane.
    """

    elements: int
    nbytes: int
    low: int
    high: int
    code: object
    scale: str
    scales: object
    base: tuple = (0, 0)
    bias: int = 0
    table: tuple = ()  # what a code stands for, instead of itself less `bias`

    @property
    def minimum(self):
        """Whether weights have an m: 1 where it is added, -1 where it is taken off, else 0."""
        return {"dm": 1, "k4": -1, "k2": -1}.get(self.scale, 0)

    @property
    def halves(self):
        """Whether either 16 of 32 weights have a scale of their own."""
        return self.scale in ("k6", "k3", "k2")


def _nibble(at, fifth=None):
    """Codes of blocks of 32 as ggml has them: low nibbles first; `fifth`: where a fifth bit lies."""
    more = lambda j: [] if fifth is None else [(fifth + j // 8, j % 8, 1)]  # noqa: E731
    return lambda j: [(at + j % 16, j // 16 * 4, 4), *more(j)]


def _runs(at, fifth=None):
    """Codes of q4_k and q5_k: low nibbles of 32 bytes are one group, high nibbles the next."""
    more = lambda j: [] if fifth is None else [(fifth + j % 32, j // 32, 1)]  # noqa: E731
    return lambda j: [(at + j // 64 * 32 + j % 32, j // 32 % 2 * 4, 4), *more(j)]


def _crumb(at, j):
    return at + j // 128 * 32 + j % 32, j // 32 % 4 * 2, 2


def _k_scales(g):
    if g < 4:
        return [[(4 + g, 0, 6)], [(8 + g, 0, 6)]]
    return [[(8 + g, 0, 4), (g % 4 + 4, 6, 2)], [(8 + g, 4, 4), (g % 4 + 8, 6, 2)]]


def _q3_scales(g):
    return [[(96 + i % 8, i // 8 * 4, 4), (104 + i % 4, i // 4 * 2, 2)] for i in (2 * g, 2 * g + 1)]


def _bytes(at, n):
    """n whole bytes per group of 32."""
    return lambda g: [[(at + n * g + i, 0, 8)] for i in range(n)]


_Q6 = lambda j: [(j // 128 * 64 + j % 64, j // 64 % 2 * 4, 4), _crumb(128, j)]  # noqa: E731
_XS = lambda j: [(8 + j // 32 * 16 + j % 16, j // 16 % 2 * 4, 4)]  # noqa: E731
_XS_SCALES = lambda g: [[(4 + g // 2, g % 2 * 4, 4), (2 + g // 4, g % 4 * 2, 2)]]  # noqa: E731

ROWS = {
    "q4_0": Row(32, 18, 4, 0, _nibble(2), "d", _bytes(0, 2), bias=8),
    "q4_1": Row(32, 20, 4, 0, _nibble(4), "dm", _bytes(0, 4)),
    "q5_0": Row(32, 22, 4, 1, _nibble(6, 2), "d", _bytes(0, 2), bias=16),
    "q5_1": Row(32, 24, 4, 1, _nibble(8, 4), "dm", _bytes(0, 4)),
    "q8_0": Row(32, 34, 8, 0, lambda j: [(2 + j, 0, 8)], "d", _bytes(0, 2)),
    "q2_k": Row(256, 84, 2, 0, lambda j: [_crumb(16, j)], "k2", _bytes(0, 2), (80, 4)),
    "q3_k": Row(256, 110, 2, 1, lambda j: [_crumb(32, j), (j % 32, j // 32, 1)], "k3", _q3_scales, (108, 2), 4),
    "q4_k": Row(256, 144, 4, 0, _runs(16), "k4", _k_scales, (0, 4)),
    "q5_k": Row(256, 176, 4, 1, _runs(48, 16), "k4", _k_scales, (0, 4)),
    "q6_k": Row(256, 210, 4, 2, _Q6, "k6", _bytes(192, 2), (208, 2), 32),
    "iq4_nl": Row(32, 18, 4, 0, _nibble(2), "d", _bytes(0, 2), table=KVALUES),
    "iq4_xs": Row(256, 136, 4, 0, _XS, "x", _XS_SCALES, (0, 2), table=KVALUES),
    "mxfp4": Row(32, 17, 4, 0, _nibble(1), "e", _bytes(0, 1), table=E2M1),
}
_SCALE_BYTES = {"d": 2, "dm": 4, "k4": 2, "k6": 2, "k3": 2, "k2": 2, "x": 1, "e": 1}


def widths(name):
    """Bytes per block of the planes low, high, scale, base."""
    row = ROWS[name]
    groups = row.elements // 32
    return row.low * 4 * groups, row.high * 4 * groups, _SCALE_BYTES[row.scale] * groups, row.base[1]


def places(name, count):
    """Where the planes of `count` blocks begin, and behind the last one the size of all."""
    found = [0]
    for width in widths(name):
        found.append(-(-(found[-1] + width * count) // ALIGN) * ALIGN)
    return tuple(found)


def _at(bits, half, t):
    """(byte, bit) in 32 weights' plane of that many bits: the first bit of weight 16 * half + t."""
    if bits == 8:
        return 16 * half + t, 0
    if bits == 4:
        return t, 4 * half
    return (4 * half + t % 4, 2 * (t // 4)) if bits == 2 else (t % 4, 4 * half + t // 4)


def codebook(row):
    """The 16 bytes of a format's table as two 64-bit integers, or None: a constant of kernels."""
    return struct.unpack("<2q", bytes(v & 255 for v in row.table)) if row.table else None


@functools.cache
def _bits(name):
    """{(plane, byte of a block's part of it, bit): (byte of the block, bit)}."""
    row, found = ROWS[name], {}
    low, high, scale, _ = (w // (row.elements // 32) for w in widths(name))
    for j in range(row.elements):
        bits = [(byte, shift + i) for byte, shift, n in row.code(j) for i in range(n)]
        for plane, width, first, n in ((0, low, 0, row.low), (1, high, row.low, row.high)):
            if n:
                byte, bit = _at(n, j % 32 // 16, j % 16)
                for i in range(n):
                    found[plane, j // 32 * width + byte, bit + i] = bits[first + i]
    for g in range(row.elements // 32):
        for byte, pieces in enumerate(row.scales(g)):
            bits = [(at, shift + i) for at, shift, n in pieces for i in range(n)]
            found |= {(2, g * scale + byte, i): at for i, at in enumerate(bits)}
    first, size = row.base
    return found | {(3, byte, bit): (first + byte, bit) for byte in range(size) for bit in range(8)}


def _pieces(bits):
    """A byte's 8 bits as the fewest pieces, runs of bits that stay neighbours: (source, step, right, left, mask) each.
    A bit is (address, step, place in that byte), or None for 0.
    """
    found = []
    for left, bit in enumerate(bits):
        if bit is None:
            continue
        address, step, place = bit
        if found and found[-1][:2] == (address, step) and found[-1][2] - found[-1][3] == place - left:
            first, wide = found[-1][3], left - found[-1][3] + 1
            if found[-1][4] == (1 << wide - 1) - 1:
                found[-1] = (*found[-1][:3], first, (1 << wide) - 1)
                continue
        found.append((address, step, place, left, 1))
    return found


@functools.cache
def _moves(name, back):
    """(which byte, [its bits]) of a block's output: the byte and what it comes from are (plane, byte); None is 0."""
    row, wide = ROWS[name], widths(name)
    if back:
        source = {at: (p, byte, bit) for (p, byte, bit), at in _bits(name).items()}
        return [((None, byte), [source.get((byte, i)) for i in range(8)]) for byte in range(row.nbytes)]
    source = {at: (None, byte, bit) for at, (byte, bit) in _bits(name).items()}
    outs = [(plane, byte) for plane in range(4) for byte in range(wide[plane])]
    return [(out, [source.get((*out, i)) for i in range(8)]) for out in outs]


def table(name, starts, back=False):
    """The words (i64) that lead `permute`, as bytes, how many bytes a block of its output has, and of how many pieces
    one is made at most; planes at `starts`.

    Per byte of output: its address in the first block and the distance to the next block's; then of each piece the
    address of the byte it comes from, and step << 16 | shift right << 12 | shift left << 8 | mask (0: no piece).
    `back`: from planes to blocks.
    """
    row, wide = ROWS[name], widths(name)
    place = lambda plane, byte: (byte, row.nbytes) if plane is None else (starts[plane] + byte, wide[plane])  # noqa: E731
    lines = [
        (place(*out), _pieces([bit and (*place(*bit[:2]), bit[2]) for bit in bits])) for out, bits in _moves(name, back)
    ]
    most = max(len(pieces) for _, pieces in lines)
    words = []
    for out, pieces in lines:
        moved = [(at, step << 16 | right << 12 | left << 8 | mask) for at, step, right, left, mask in pieces]
        words += [*out, *(word for piece in moved for word in piece), *(0, 0) * (most - len(pieces))]
    return struct.pack(f"<{len(words)}q", *words), len(lines), most


# ---- kernels ---------------------------------------------------------------------------------------------------------


@triton.jit
def permute(src_ptr, dst_ptr, table_ptr, count, width, PIECES: tl.constexpr, BLOCKS: tl.constexpr, WIDTH: tl.constexpr):
    """The bits of `count` blocks at the places that the table names."""
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)[:, None]
    byte = tl.arange(0, WIDTH)[None, :]
    known, line = byte < width, table_ptr + byte * (2 + 2 * PIECES)
    inside = known & (block < count)
    out = tl.zeros((BLOCKS, WIDTH), tl.int32)
    for piece in tl.static_range(PIECES):
        start = tl.load(line + 2 + 2 * piece, mask=known, other=0)
        how = tl.load(line + 3 + 2 * piece, mask=known, other=0).to(tl.int32)
        mask = how & 255
        value = tl.load(src_ptr + start + block * (how >> 16), mask=inside & (mask != 0), other=0).to(tl.int32)
        out |= (value >> (how >> 12 & 7) & mask) << (how >> 8 & 7)
    start = tl.load(line, mask=known, other=0)
    step = tl.load(line + 1, mask=known, other=0)
    tl.store(dst_ptr + start + block * step, out.to(tl.uint8), mask=inside)


@triton.jit
def half_bits(x):
    """The low 16 bits of integers as f16, widened to f32."""
    return x.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def scale_bits(s_ptr, b_ptr, at, super_at, inside, KIND: tl.constexpr):
    """What the planes scale and base hold of the groups `at`; 0 where not inside."""
    s = tl.load(s_ptr + at, mask=inside, other=0).to(tl.int32)
    if KIND == "d" or KIND == "dm" or KIND == "e":
        base = s
    else:
        base = tl.load(b_ptr + super_at, mask=inside, other=0).to(tl.int32)
    return s, base


@triton.jit
def scales_of(s, base, inside, KIND: tl.constexpr):
    """(d, m) of the first and of the second 16 weights of groups, in f32; 0 where not inside, or without m."""
    if KIND == "d":
        d = half_bits(s)
        first, second, low, high = d, d, d, d
    elif KIND == "dm":
        d, m = half_bits(s & 0xFFFF), half_bits(s >> 16 & 0xFFFF)
        first, second, low, high = d, d, m, m
    elif KIND == "e":
        bits = tl.where(s < 2, 0x200000 << (s & 1), (s - 1) << 23)
        d = tl.where(inside, bits.to(tl.float32, bitcast=True), 0.0)
        first, second, low, high = d, d, d, d
    else:
        d, one, two = half_bits(base & 0xFFFF), s & 0xFF, s >> 8
        if KIND == "x":
            first = d * (s - 32).to(tl.float32)
            second, low, high = first, first, first
        elif KIND == "k6":
            first, second = d * one.to(tl.int8).to(tl.float32), d * two.to(tl.int8).to(tl.float32)
            low, high = first, second
        elif KIND == "k3":
            first, second = d * (one - 32).to(tl.float32), d * (two - 32).to(tl.float32)
            low, high = first, second
        else:
            low = half_bits(base >> 16 & 0xFFFF)
            if KIND == "k4":
                first, low = d * one.to(tl.float32), low * two.to(tl.float32)
                second, high = first, low
            else:
                first, second = d * (one & 15).to(tl.float32), d * (two & 15).to(tl.float32)
                low, high = low * (one >> 4).to(tl.float32), low * (two >> 4).to(tl.float32)
    return first, second, low, high


@triton.jit
def scales(s_ptr, b_ptr, at, super_at, inside, KIND: tl.constexpr):
    """`scales_of` the groups `at`, read now."""
    s, base = scale_bits(s_ptr, b_ptr, at, super_at, inside, KIND)
    return scales_of(s, base, inside, KIND)


@triton.jit
def look_up(code, TABLE: tl.constexpr):
    """What codes of 4 bits stand for in a codebook."""
    LOW: tl.constexpr = TABLE[0]
    HIGH: tl.constexpr = TABLE[1]
    word = tl.where(code < 8, tl.full((), LOW, tl.int64), tl.full((), HIGH, tl.int64))
    return (word >> ((code & 7) * 8).to(tl.int64)).to(tl.int8).to(tl.int32)


# pointers to the planes scale and base, by the kind of scale
SCALE_TYPES = {
    "d": ("*u16", "*u8"), "dm": ("*u32", "*u8"), "k4": ("*u16", "*u32"), "k6": ("*u16", "*u16"), "k3": ("*u16", "*u16"),
    "k2": ("*u16", "*u32"), "x": ("*u8", "*u16"), "e": ("*u8", "*u8"),
}  # fmt: skip


@functools.cache
def _permute(width, pieces):
    many = max(1, 2048 // width)
    kernel = Kernel(permute, ("*u8", "*u8", "*i64", "i32", "i32"), PIECES=pieces, BLOCKS=many, WIDTH=width)
    kernel.items = many * width
    return kernel


def _plan(gpu, words):
    src, dst, lines, count, width, pieces = words
    kernel = _permute(triton.next_power_of_2(width), pieces)
    kernel(gpu, (blocks(count, kernel.consts["BLOCKS"]), 1, 1), src, dst, lines, count, width)


def build(name, *params, source=None):
    """ "permute": words are addresses of source, destination and table, the number of blocks, bytes per block of the
    output, and pieces per byte.
    """
    return _plan if name == "permute" and not params else None


def variants(arch):
    """See kernels_triton/__init__.py."""
    return {f"permute {width} {pieces}": _permute(width, pieces) for width, pieces in ((32, 2), (256, 4))}
