"""Softmax, log_softmax, logsumexp and variance along rows, or along a middle dim of dense memory: part of room reduce.

Rows that fit are held in registers by one program: one read, one write. Longer ones are read once for what they add up
to (running top and total of exponentials per lane; Welford's mean and squares) and once more, from their end on, which
the cache still has, for what is written; where they are few, in parts. Words as in kernels_numba/reduce.py.

Online softmax: Milakov and Gimelshein, arXiv:1805.02867; variance in parts: Chan, Golub, LeVeque (1983).
"""

import functools

import triton
import triton.language as tl
from triton.language.extra import libdevice

from .dims import LIMIT, WIDTH, offset_of
from .launch import Kernel, blocks, pick, power_of_2, scratch
from .tiles import WIDE, cells, decay, divide, largest, narrow, packed, reach, real, strides_of, table, warps_for, widen

# elements of a row held in registers at most, f64 half as many: 32 warps with 32 of 64 registers, unless that spills
ROW = {75: 16384, 80: 32768, 89: 16384, 90: 32768, 100: 16384}
COLUMN = 1024  # the same of a middle dim, with 8 columns at least
SHORT, WARP = 1024, 128  # elements of a tile of several rows, which are at most so long
FEW = 1024  # the same of longer ones, and if those are not enough for all multiprocessors
TILE = 2048  # of longer ones
LONG = 32768, 32  # of rows in one program each, one at a time per multiprocessor, and warps
PARTS = 256  # of a row at most
EACH = 32  # elements of 4 bytes that a thread holds
REGISTERS = 64  # that half of a unit's threads can have; masks and f64 may need more
NAMES = ("softmax", "log_softmax", "logsumexp", "var")


@triton.jit
def finite(top):
    """top, or 0 for -inf: what is subtracted where nothing was seen yet."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def load_or(pointers, known, other, GIVEN: tl.constexpr, ACC: tl.constexpr, ASM: tl.constexpr):
    """Elements of dtype GIVEN as numbers of ACC, `other` where they are not known."""
    if GIVEN == "f8e4m3" or GIVEN == "f8e5m2":
        v = tl.where(known, widen(tl.load(pointers, mask=known, other=0), GIVEN, ACC), other)
    else:
        v = real(tl.load(pointers, mask=known, other=other), ASM).to(ACC)
    return v


@triton.jit
def place(pid, n, length, rows, kn0, ks0, kn1, ks1, kn2, ks2, ks3, COLUMNS: tl.constexpr, NK: tl.constexpr, M: tl.constexpr):  # noqa: E501  # fmt: skip
    """(row, whether it is one, where it begins in x, in the output, step of its elements) of a tile of M rows; of one
    row there are as many tiles as rows.
    """
    if COLUMNS:
        tiles = tl.cdiv(n, M)
        outer = pid // tiles
        column = (pid - outer * tiles) * M + tl.arange(0, M)
        inside, p = column < n, outer * n + column
        base = outer * length * n + column
        to, stride = base, n
    else:
        p = pid * M + tl.arange(0, M)
        inside = (p < rows) if M > 1 else tl.full([M], True, tl.int1)
        base = offset_of(p, kn0, kn1, kn2, 1, ks0, ks1, ks2, ks3, NK)
        to, stride = p * length, 1
    return p, inside, base, to, stride


@triton.jit
def row_tiles(
    x, out, rows, n, length, extra, kn0, ks0, kn1, ks1, kn2, ks2, ks3,
    KIND: tl.constexpr, GIVEN: tl.constexpr, OUT: tl.constexpr, ACC: tl.constexpr, ACCURATE: tl.constexpr,
    ASM: tl.constexpr, COLUMNS: tl.constexpr, NK: tl.constexpr, M: tl.constexpr, R: tl.constexpr, FULL: tl.constexpr,
):  # fmt: skip
    """Whole rows in registers; `FULL`: they have R elements."""
    pid = tl.program_id(0).to(rows.dtype)
    p, inside, base, to, stride = place(pid, n, length, rows, kn0, ks0, kn1, ks1, kn2, ks2, ks3, COLUMNS, NK, M)
    r = tl.arange(0, R)
    known = inside[:, None] & (tl.full([R], True, tl.int1) if FULL else r < length)[None, :]
    pointers = x + (base[:, None] + (r * stride)[None, :])
    v = load_or(pointers, known, 0.0 if KIND == "var" else float("-inf"), GIVEN, ACC, ASM)
    kind: tl.constexpr = out.dtype.element_ty
    if KIND == "var":
        mean = divide(tl.sum(v, 1), length)
        d = tl.where(known, v - mean[:, None], 0.0)
        rest = tl.sum(d, 1)
        squares = tl.sum(d * d, 1) - rest * rest / length
        free = tl.maximum(tl.full([M], length, ACC) - extra, 0.0)
        tl.store(out + p, narrow(squares / free, OUT, kind), mask=inside)
    else:
        top = tl.reduce(v, 1, largest)
        v = v - top[:, None]
        e = decay(v, ACCURATE, ASM)
        total = tl.sum(e, 1)  # where all are -inf, NaN is right
        if KIND == "logsumexp":
            y = tl.where(tl.abs(top) == float("inf"), top, top + libdevice.log(total))
            tl.store(out + p, narrow(y, OUT, kind), mask=inside)
        else:
            if KIND == "softmax":
                y = e * (1.0 / total)[:, None]
            else:
                y = v - libdevice.log(total)[:, None]
            tl.store(out + (to[:, None] + (r * stride)[None, :]), narrow(y, OUT, kind), mask=known)


@triton.jit
def part_tiles(
    x, tops, totals, rows, n, length, per, kn0, ks0, kn1, ks1, kn2, ks2, ks3,
    KIND: tl.constexpr, GIVEN: tl.constexpr, ACC: tl.constexpr, ACCURATE: tl.constexpr,
    ASM: tl.constexpr, COLUMNS: tl.constexpr, NK: tl.constexpr, M: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """tops[part, row], totals[part, row]: top and sum of exponentials of a part of a row; or mean, sum of squares."""
    pid = tl.program_id(0).to(rows.dtype)
    p, inside, base, _, stride = place(pid, n, length, rows, kn0, ks0, kn1, ks1, kn2, ks2, ks3, COLUMNS, NK, M)
    part = tl.program_id(1).to(rows.dtype)
    first = part * per
    end = tl.minimum(first + per, length)
    r = tl.arange(0, R)
    top = tl.full([M, R], 0.0 if KIND == "var" else float("-inf"), ACC)
    total = tl.zeros([M, R], ACC)
    seen = tl.zeros([M, R], ACC)
    for at in tl.range(first, end, R):
        known = inside[:, None] & (at + r < end)[None, :]
        pointers = x + (base[:, None] + ((at + r) * stride)[None, :])
        v = load_or(pointers, known, 0.0 if KIND == "var" else float("-inf"), GIVEN, ACC, ASM)
        if KIND == "var":
            seen += tl.where(known, 1.0, 0.0)
            d = tl.where(known, v - top, 0.0)
            top += d / tl.maximum(seen, 1.0)
            total += d * tl.where(known, v - top, 0.0)
        else:
            new = largest(top, v)
            shift = finite(new)
            total = total * decay(top - shift, ACCURATE, ASM) + decay(v - shift, ACCURATE, ASM)
            top = new
    if KIND == "var":
        mean = divide(tl.sum(seen * top, 1), tl.maximum(tl.sum(seen, 1), 1.0))
        d = top - mean[:, None]
        sums = tl.sum(total + seen * d * d, 1)
    else:
        mean = tl.reduce(top, 1, largest)
        sums = tl.sum(total * decay(top - finite(mean)[:, None], ACCURATE, ASM), 1)
    count = tl.num_programs(1)
    tl.store(tops + (p * count + part), mean, mask=inside)
    tl.store(totals + (p * count + part), sums, mask=inside)


@triton.jit
def finish_tiles(
    x, tops, totals, out, rows, n, length, per, parts, extra, kn0, ks0, kn1, ks1, kn2, ks2, ks3,
    KIND: tl.constexpr, GIVEN: tl.constexpr, OUT: tl.constexpr, ACC: tl.constexpr, ACCURATE: tl.constexpr,
    ASM: tl.constexpr, COLUMNS: tl.constexpr, NK: tl.constexpr, M: tl.constexpr, R: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """What parts of rows add up to; and for softmax the elements of one part."""
    pid = tl.program_id(0).to(rows.dtype)
    p, inside, base, to, stride = place(pid, n, length, rows, kn0, ks0, kn1, ks1, kn2, ks2, ks3, COLUMNS, NK, M)
    q = tl.arange(0, P)
    given = inside[:, None] & (q < parts)[None, :]
    m = tl.load(tops + (p[:, None] * parts + q[None, :]), mask=given, other=0.0 if KIND == "var" else float("-inf"))
    s = tl.load(totals + (p[:, None] * parts + q[None, :]), mask=given, other=0.0)
    kind: tl.constexpr = out.dtype.element_ty
    if KIND == "var":
        seen = tl.minimum(tl.maximum(length - q * per, 0), per).to(ACC)[None, :]
        mean = divide(tl.sum(m * seen, 1), length)
        d = m - mean[:, None]
        squares = tl.sum(s + seen * d * d, 1)
        free = tl.maximum(tl.full([M], length, ACC) - extra, 0.0)
        tl.store(out + p, narrow(squares / free, OUT, kind), mask=inside)
    else:
        top = tl.reduce(m, 1, largest)
        total = tl.sum(s * decay(m - finite(top)[:, None], ACCURATE, ASM), 1)
        if KIND == "logsumexp":
            y = tl.where(tl.abs(top) == float("inf"), top, top + libdevice.log(total))
            tl.store(out + p, narrow(y, OUT, kind), mask=inside)
        else:
            last = 1.0 / total if KIND == "softmax" else libdevice.log(total)
            first = tl.program_id(1).to(rows.dtype) * per
            end = tl.minimum(first + per, length)
            r = tl.arange(0, R)
            for at in tl.range(first, end, R):
                known = inside[:, None] & (at + r < end)[None, :]
                step = ((at + r) * stride)[None, :]
                v = widen(tl.load(x + (base[:, None] + step), mask=known, other=0), GIVEN, ACC) - top[:, None]
                y = decay(v, ACCURATE, ASM) * last[:, None] if KIND == "softmax" else v - last[:, None]
                tl.store(out + (to[:, None] + step), narrow(y, OUT, kind), mask=known)


@triton.jit
def long_rows(
    x, out, rows, n, length, extra, kn0, ks0, kn1, ks1, kn2, ks2, ks3,
    KIND: tl.constexpr, GIVEN: tl.constexpr, OUT: tl.constexpr, ACC: tl.constexpr, ACCURATE: tl.constexpr,
    ASM: tl.constexpr, COLUMNS: tl.constexpr, NK: tl.constexpr, M: tl.constexpr, R: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """softmax, log_softmax or logsumexp of a long row (M is 1); lanes have G adjacent elements."""
    p = tl.program_id(0).to(rows.dtype)
    x += offset_of(p, kn0, kn1, kn2, 1, ks0, ks1, ks2, ks3, NK)
    r = tl.arange(0, R)
    top = tl.full([R // G], float("-inf"), ACC)
    total = tl.zeros([R // G], ACC)
    for at in tl.range(0, length, R):
        v = tl.reshape(load_or(x + (at + r), at + r < length, float("-inf"), GIVEN, ACC, ASM), [R // G, G])
        new = largest(top, tl.reduce(v, 1, largest))
        shift = finite(new)
        total = total * decay(top - shift, ACCURATE, ASM) + tl.sum(decay(v - shift[:, None], ACCURATE, ASM), 1)
        top = new
    most = tl.reduce(top, 0, largest)
    whole = tl.sum(total * decay(top - finite(most), ACCURATE, ASM), 0)
    kind: tl.constexpr = out.dtype.element_ty
    if KIND == "logsumexp":
        y = tl.where(tl.abs(most) == float("inf"), most, most + libdevice.log(whole))
        tl.store(out + p, narrow(y, OUT, kind))
    else:
        last = 1.0 / whole if KIND == "softmax" else libdevice.log(whole)
        out += p * length
        end = tl.cdiv(length, R) * R - R
        for back in tl.range(0, length, R):
            c = end - back + r
            v = load_or(x + c, c < length, float("-inf"), GIVEN, ACC, ASM) - most
            y = decay(v, ACCURATE, ASM) * last if KIND == "softmax" else v - last
            tl.store(out + c, narrow(y, OUT, kind), mask=c < length, eviction_policy="evict_first")


def _names(columns):
    return ("n",) if columns else ("length", *strides_of("k"))


def _options(kind, compute, given, out, columns, nk, shape, asm):
    accurate = out in ("f32", "f64")
    return {
        "KIND": kind, "GIVEN": given, "OUT": out, "ACC": WIDE[compute], "ACCURATE": accurate, "ASM": asm,
        "COLUMNS": columns, "NK": max(nk, 1), "M": shape[0], "R": shape[1],
    }  # fmt: skip


@functools.cache
def row_kernel(kind, compute, given, out, columns, nk, shape, full, warps, wide, asm):
    """The Kernel of `row_tiles`."""
    integer, real = "i64" if wide else "i32", "fp64" if compute == "f64" else "fp32"
    types = (cells(given), cells(out), *(integer,) * 3, real, *(integer,) * 7)
    options = _options(kind, compute, given, out, columns, nk, shape, asm)
    registers = REGISTERS if full and compute == "f32" else None
    made = Kernel(row_tiles, types, _names(columns), warps, registers=registers, **options, FULL=full)
    made.items = shape[0] * shape[1]
    return made


@functools.cache
def long_kernel(kind, compute, given, out, nk, wide, asm):
    """The Kernel of `long_rows`."""
    integer, real, share = "i64" if wide else "i32", "fp64" if compute == "f64" else "fp32", 1 + (compute == "f64")
    types = (cells(given), cells(out), *(integer,) * 3, real, *(integer,) * 7)
    options = _options(kind, compute, given, out, False, nk, (1, LONG[0] // share), asm)
    made = Kernel(long_rows, types, _names(False), LONG[1], **options, G=16 // WIDTH[given])
    made.items = LONG[0]
    return made


@functools.cache
def part_kernels(kind, compute, given, out, columns, nk, shape, parts, warps, wide, asm):
    """The Kernels of `part_tiles` and `finish_tiles`."""
    integer, real, acc = "i64" if wide else "i32", "fp64" if compute == "f64" else "fp32", cells(compute)
    options = _options(kind, compute, given, out, columns, nk, shape, asm)
    types = (cells(given), acc, acc, cells(out), *(integer,) * 5, real, *(integer,) * 7)
    finish = Kernel(finish_tiles, types, (*_names(columns), "per"), warps, **options, P=parts)
    options.pop("OUT")
    types = (cells(given), acc, acc, *(integer,) * 11)
    part = Kernel(part_tiles, types, (*_names(columns), "per"), warps, **options)
    part.items = finish.items = shape[0] * shape[1]
    return part, finish


def warps_of(elements, few, each):
    """Warps so that a thread holds `each` elements of 4 bytes: with 32, what 64 registers allow, adding up between
    threads costs least; half as many if programs are so few that all that counts is when the last is done.
    """
    return warps_for(elements, each // 2 if few else each)


def tile_rows(rows, r, units):
    """Rows of a tile of short ones, of r elements of 4 bytes each: SHORT elements if a warp has whole rows, so that
    programs are few, but enough.

    >>> tile_rows(1 << 18, 128, 132), tile_rows(4096, 128, 132), tile_rows(3, 128, 132), tile_rows(8192, 512, 132)
    (32, 8, 4, 2)
    """
    many = SHORT // r if r <= WARP else 1
    return many if blocks(rows, many) >= 2 * units and many > 1 else min(power_of_2(rows), max(1, FEW // r))


def _whole(arch, units, columns, compute, rows, n, length):
    """((M, R), programs, warps) of tiles of whole rows in registers, or None if they are too long."""
    r, share = power_of_2(length), 2 if compute == "f64" else 1
    if r > (COLUMN if columns else pick(ROW, arch)) // share:
        return None
    if columns:
        m = min(power_of_2(n), max(8 // share, min(64, 8192 // share // r)))
        programs = rows // max(n, 1) * blocks(n, m)
    else:
        m = tile_rows(rows, r * share, units)
        programs = blocks(rows, m)
    return (m, r), programs, warps_of(m * r * share, programs <= units, EACH)


def _plan(kind, compute, given, out, columns):
    share = 2 if compute == "f64" else 1

    def plan(gpu, words):
        if columns:
            (x, to, outer, n, length), extra, nk = words[:5], 0.0, 1
            rows, keep = outer * n, ([1] * 4, [0] * 4)
            wide = rows * length >= LIMIT
        else:
            (x, to, rows, length, extra, nk), n = words[:6], 1
            keep = table(words, 6, nk)
            wide = max(reach(*keep) + length, rows * length) >= LIMIT
        asm = not gpu.interpreted and isinstance(gpu.arch, int)
        whole = _whole(gpu.arch, gpu.units, columns, compute, rows, n, length)
        if whole is not None:
            (m, r), programs, warps = whole
            found = row_kernel(kind, compute, given, out, columns, nk, (m, r), r == length, warps, wide, asm)
            found(gpu, (programs, 1, 1), x, to, rows, n, length, extra, *packed(*keep))
            return
        if rows >= gpu.units and not columns and kind != "var":
            found = long_kernel(kind, compute, given, out, nk, wide, asm)
            found(gpu, (rows, 1, 1), x, to, rows, n, length, extra, *packed(*keep))
            return
        m = min(power_of_2(n), 64) if columns else 1
        r = TILE // share // m
        programs = outer * blocks(n, m) if columns else rows
        parts = min(blocks(4 * gpu.units, programs), blocks(length, 4 * r), PARTS) if programs < 2 * gpu.units else 1
        per = blocks(blocks(length, parts), r) * r
        parts = blocks(length, per)
        part, finish = part_kernels(kind, compute, given, out, columns, nk, (m, r), power_of_2(parts), 4, wide, asm)
        size = 4 * share
        tops, owner = scratch(gpu, 2 * rows * parts * size)
        totals = tops + rows * parts * size
        part(gpu, (programs, parts, 1), x, tops, totals, rows, n, length, per, *packed(*keep))
        grid = (programs, parts if kind in ("softmax", "log_softmax") else 1, 1)
        finish(gpu, grid, x, tops, totals, to, rows, n, length, per, parts, extra, *packed(*keep))
        del owner

    return plan


def build(name, compute, out, given):
    """A plan for softmax, log_softmax (both with "_columns" too), logsumexp, var; None for other names."""
    columns = name.endswith("_columns")
    kind = name.removesuffix("_columns")
    if kind not in NAMES or compute not in ("f32", "f64") or (columns and kind not in NAMES[:2]):
        return None
    return _plan(kind, compute, given, out, columns)


def variants(arch):
    """Representative kernels."""
    asm, found = isinstance(arch, int), {}

    def rows_of(kind, dtype, length, columns=False):
        n = 4096 if columns else 1
        shape, _, warps = _whole(arch, 128, columns, "f32", 4096 * n, n, length)
        full = shape[1] == length
        return row_kernel(kind, "f32", dtype, dtype, columns, 1, shape, full, warps, False, asm)

    for dtype in ("f32", "bf16"):
        for length in (1024, 4096, 8192, pick(ROW, arch), 5000):
            found[f"softmax rows of {length} {dtype}"] = rows_of("softmax", dtype, length)
        found[f"softmax columns {dtype}"] = rows_of("softmax", dtype, 256, True)
        part, finish = part_kernels("softmax", "f32", dtype, dtype, False, 1, (1, TILE), 1, 4, False, asm)
        found |= {f"softmax part {dtype}": part, f"softmax finish {dtype}": finish}
        found[f"softmax long {dtype}"] = long_kernel("softmax", "f32", dtype, dtype, 1, False, asm)
    for kind in ("log_softmax", "logsumexp", "var"):
        found[f"{kind} rows of 4096 f32"] = rows_of(kind, "f32", 4096)
    return found
