"""Sorting rows of any length, stably: in registers, or in chunks that are merged.

Elements become signed integers of the same order (as in kernels_numba/sort.py): -0.0 as 0.0, every NaN above infinity;
descending order complements them. A key of 32 bits and its place share an i64, one of 16 an i32, so that no two words
are equal and any network sorts them stably (network.py). Wider keys are sorted by their lower halves, then, where
that put them, by the upper ones. Longer rows: chunks are sorted, and pairs of runs merged by tiles of the result. Of
the k smallest, k <= 128, only k of every chunk go on; few of them are picked one after the other.
"""

import functools

import triton
import triton.language as tl

from .dims import offset_type
from .launch import Kernel, blocks, power_of_2
from .network import merge_runs, sorted_words, turned

SHORT, CHUNK = 4096, 2048  # elements that are sorted at once: of a row, of a part of a long one
PROBES = 128  # places at which a cut of two runs is looked for at once
FEW = 128  # the most that are selected chunk by chunk
PICKS, PICKED = 32, 4096  # the most that are picked one after the other, and of how many
BLOCK = 1024
# largest bits of a float that are not NaN's
INFINITY = {"f8e4m3": 0x7E, "f8e5m2": 0x7C, "f16": 0x7C00, "bf16": 0x7F80, "f32": 0x7F800000, "f64": 0x7FF << 52}


@triton.jit
def key_of(bits, KIND: tl.constexpr, BITS: tl.constexpr, INFINITY: tl.constexpr):
    """Integers of the same order as the elements whose bits are given, i64 for 64 bits, else i32"""
    key = bits.to(tl.int64) if BITS == 64 else bits.to(tl.int32)
    if KIND == "f":
        size, sign = key & ((1 << BITS - 1) - 1), key >> (63 if BITS == 64 else 31)
        return tl.where(size > INFINITY, (1 << BITS - 1) - 1, (size ^ sign) - sign)
    elif KIND == "i":
        return key
    elif BITS == 64:
        return key ^ -0x8000000000000000
    elif BITS == 32:
        return key ^ -0x80000000
    else:
        return key - (1 << BITS - 1)


@triton.jit
def is_nan(bits, KIND: tl.constexpr, BITS: tl.constexpr, INFINITY: tl.constexpr):
    """Whether bits are those of a NaN"""
    if KIND == "f":
        return (bits & ((1 << BITS - 1) - 1)) > INFINITY
    else:
        return bits != bits


@triton.jit
def part_of(key, SHIFT: tl.constexpr, PART: tl.constexpr, BITS: tl.constexpr):
    """PART bits of a key from bit SHIFT on, as a signed i64 of their order"""
    if SHIFT + PART >= BITS:
        return (key >> SHIFT).to(tl.int64)
    else:
        return ((key >> SHIFT) & tl.full([], (1 << PART) - 1, key.dtype)).to(tl.int64) - (1 << PART - 1)


@triton.jit
def sort_short(
    x_ptr, ids_ptr, values_ptr, indices_ptr, rows, n, k, flip, IDS: tl.constexpr, VALUES: tl.constexpr,
    SHIFT: tl.constexpr, KIND: tl.constexpr, BITS: tl.constexpr, INFINITY: tl.constexpr, ROWS: tl.constexpr,
    LOG: tl.constexpr, ROT: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """The first k of 2 ** ROWS whole rows, permuted by ids (IDS), in order of 32 bits of keys: indices and values"""
    every = tl.arange(0, 1 << LOG + ROWS)
    first = tl.program_id(0).to(OFFSET) << ROWS
    given = turned(every, ROT, LOG + ROWS) if ROWS else every  # of one row it matters not which word is where
    r, lane = first + (given >> LOG), given & (1 << LOG) - 1
    mask = (r < rows) & (lane < n)
    place = lane
    if IDS:
        place = tl.load(ids_ptr + r * n + lane, mask=mask, other=0).to(tl.int32)
    key = key_of(tl.load(x_ptr + r * n + place, mask=mask, other=0), KIND, BITS, INFINITY) ^ flip.to(
        tl.int64 if BITS == 64 else tl.int32
    )
    if BITS <= 16:
        at = sorted_words((tl.where(mask, key, 0x7FFF) << 16) | lane, LOG, LOG + ROWS, ROT) & 0xFFFF
    else:
        word = (tl.where(mask, part_of(key, SHIFT, 32, BITS), 0x7FFFFFFF) << 32) | lane.to(tl.int64)
        at = (sorted_words(word, LOG, LOG + ROWS, ROT) & 0x7FFFFFFF).to(tl.int32)
    r, lane = first + (every >> LOG), every & (1 << LOG) - 1
    kept = (r < rows) & (lane < k)
    if IDS:
        at = tl.load(ids_ptr + r * n + at, mask=kept, other=0).to(tl.int32)
    tl.store(indices_ptr + r * k + lane, at.to(tl.int64), mask=kept)
    if VALUES:
        tl.store(values_ptr + r * k + lane, tl.load(x_ptr + r * n + at, mask=kept), mask=kept)


@triton.jit
def pick_short(
    x_ptr, values_ptr, indices_ptr, rows, n, k, flip, VALUES: tl.constexpr, KIND: tl.constexpr, BITS: tl.constexpr,
    INFINITY: tl.constexpr, ROWS: tl.constexpr, LOG: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """sort_short for the few first, of at most 32 bits: the least of what is left, again and again"""
    r, lane = (tl.program_id(0).to(OFFSET) << ROWS) + tl.arange(0, 1 << ROWS), tl.arange(0, 1 << LOG)[None, :]
    mask = (r < rows)[:, None] & (lane < n)
    key = key_of(tl.load(x_ptr + ((r * n)[:, None] + lane), mask=mask, other=0), KIND, BITS, INFINITY) ^ flip
    if BITS <= 16:
        word = (tl.where(mask, key, 0x7FFF) << 16) | lane
    else:
        word = (tl.where(mask, key, 0x7FFFFFFF).to(tl.int64) << 32) | lane.to(tl.int64)
    for j in range(k):
        best = tl.min(word, 1)
        at = (best & (0xFFFF if BITS <= 16 else 0x7FFFFFFF)).to(tl.int32)
        tl.store(indices_ptr + r * k + j, at.to(tl.int64), mask=r < rows)
        if VALUES:
            tl.store(values_ptr + r * k + j, tl.load(x_ptr + r * n + at, mask=r < rows), mask=r < rows)
        word = tl.where(word == best[:, None], 0x7FFFFFFF if BITS <= 16 else 0x7FFFFFFFFFFFFFFF, word)


@triton.jit
def words_of(
    x_ptr, ids_ptr, row, i, n, flip, FIRST: tl.constexpr, IDS: tl.constexpr, SHIFT: tl.constexpr, PART: tl.constexpr,
    KIND: tl.constexpr, BITS: tl.constexpr, INFINITY: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Words of places i of a row of n elements (FIRST), permuted by ids (IDS): PART bits of a key and the place; or
    those that an earlier launch kept.
    """
    mask, at = i < n, row * n + i
    if FIRST:
        if IDS:
            at = row * n + tl.load(ids_ptr + at, mask=mask, other=0).to(OFFSET)
        key = key_of(tl.load(x_ptr + at, mask=mask, other=0), KIND, BITS, INFINITY) ^ flip.to(
            tl.int64 if BITS == 64 else tl.int32
        )
        part = tl.where(mask, part_of(key, SHIFT, PART, BITS), (1 << PART - 1) - 1)
        return (part << 64 - PART) | i.to(tl.int64)
    else:
        word = tl.load(x_ptr + at, mask=mask, other=0)
        return tl.where(mask, word, 0x7FFFFFFF00000000 | i.to(tl.int64))


@triton.jit
def pick_chunks(
    x_ptr, words_ptr, n, chunks, kept, out_n, flip, FIRST: tl.constexpr, PART: tl.constexpr, KIND: tl.constexpr,
    BITS: tl.constexpr, INFINITY: tl.constexpr, LOG: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """sort_chunks for the few first, of at most 32 bits"""
    pid = tl.program_id(0).to(OFFSET)
    row, chunk = pid // chunks, pid % chunks
    i = (chunk << LOG) + tl.arange(0, 1 << LOG)
    word = words_of(x_ptr, x_ptr, row, i, n, flip, FIRST, False, 0, PART, KIND, BITS, INFINITY, OFFSET)
    for j in range(kept):
        best = tl.min(word, 0)
        tl.store(words_ptr + row * out_n + chunk * kept + j, best)
        word = tl.where(word == best, 0x7FFFFFFFFFFFFFFF, word)


@triton.jit
def sort_chunks(
    x_ptr, ids_ptr, words_ptr, n, chunks, kept, out_n, flip, FIRST: tl.constexpr, IDS: tl.constexpr,
    SHIFT: tl.constexpr, PART: tl.constexpr, KIND: tl.constexpr, BITS: tl.constexpr, INFINITY: tl.constexpr,
    LOG: tl.constexpr, ROT: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """The first `kept` words (`words_of`) of every chunk of 2 ** LOG elements, in order"""
    pid = tl.program_id(0).to(OFFSET)
    row, chunk = pid // chunks, pid % chunks
    lane = tl.arange(0, 1 << LOG)
    i = (chunk << LOG) + lane
    word = words_of(x_ptr, ids_ptr, row, i, n, flip, FIRST, IDS, SHIFT, PART, KIND, BITS, INFINITY, OFFSET)
    word = sorted_words(word, LOG, LOG, ROT)
    tl.store(words_ptr + row * out_n + chunk * kept + lane, word, mask=(lane < kept) & (chunk * kept + lane < out_n))


@triton.jit
def finish(
    x_ptr, ids_ptr, words_ptr, values_ptr, indices_ptr, n, out_n, k, total, IDS: tl.constexpr, VALUES: tl.constexpr,
    PART: tl.constexpr, BLOCK: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    """Indices and values of the first k of rows of out_n sorted words"""
    i = tl.program_id(0).to(OFFSET) * BLOCK + tl.arange(0, BLOCK)
    inside, row = i < total, i // k
    word = tl.load(words_ptr + row * out_n + i - row * k, mask=inside, other=0)
    place = word & tl.full([], (1 << 64 - PART) - 1, tl.int64)
    if IDS:
        place = tl.load(ids_ptr + row * n + place, mask=inside, other=0)
    tl.store(indices_ptr + i, place, mask=inside)
    if VALUES:
        tl.store(values_ptr + i, tl.load(x_ptr + row * n + place, mask=inside), mask=inside)


# ---- plans -----------------------------------------------------------------------------------------------------------


def form(dtype):
    """The constants of `key_of` for a dtype, and the type of pointers to its bits."""
    kind = "f" if dtype in INFINITY else "i" if dtype[0] == "i" else "u"
    bits = {"bool": 8, "f8e4m3": 8, "f8e5m2": 8, "bf16": 16}.get(dtype) or int(dtype[1:])
    consts = {"KIND": kind, "BITS": bits, "INFINITY": INFINITY.get(dtype, 0)}
    return consts, f"*{'u' if kind == 'u' and bits < 32 else 'i'}{bits}"


def turns(arch):
    """Whether places are turned (network.py): not for AMD's GPUs, where Triton 3.7 fails to split words of a thread."""
    return not isinstance(arch, str)


def _own(n, warps, turn=True):
    """How many bits number the words of a thread; 0 unless places are turned."""
    return (n // (32 * warps)).bit_length() - 1 if turn else 0


@functools.cache
def _short(dtype, n, ids, values, shift, offset, turn=True):
    consts, raw = form(dtype)
    rows, log = max(1, 1024 // n), n.bit_length() - 1
    types = (raw, "*i64", raw, "*i64", *(offset[0],) * 3, "i32")
    consts |= {"IDS": ids, "VALUES": values, "SHIFT": shift, "ROWS": rows.bit_length() - 1, "LOG": log}
    warps = 4 if rows * n < CHUNK else 8
    if n > CHUNK:  # of 4096: 0.8 ms where 8 warps take 1.2; halves would spill
        warps = {16: 16, 32: 4}.get(consts["BITS"], 8)
    made = Kernel(sort_short, types, warps=warps, ROT=_own(rows * n, warps, turn), OFFSET=offset[1], **consts)
    made.items = rows * n
    return made


@functools.cache
def _chunks(dtype, first, ids, shift, part, offset, turn=True):
    consts, raw = form(dtype)
    consts |= {"FIRST": first, "IDS": ids, "SHIFT": shift, "PART": part, "LOG": CHUNK.bit_length() - 1}
    consts |= {"ROT": _own(CHUNK, 8, turn), "OFFSET": offset[1]}
    made = Kernel(sort_chunks, (raw, "*i64", "*i64", *(offset[0],) * 4, "i32"), warps=8, **consts)
    made.items = CHUNK
    return made


@functools.cache
def _picks(dtype, n, values, offset, warps=8):
    consts, raw = form(dtype)
    rows = max(1, PICKED // 2 // n)
    consts |= {"VALUES": values, "ROWS": rows.bit_length() - 1, "LOG": n.bit_length() - 1, "OFFSET": offset[1]}
    made = Kernel(pick_short, (raw, raw, "*i64", *(offset[0],) * 3, "i32"), warps=warps, **consts)
    made.items = rows * n
    return made


@functools.cache
def _pick_chunks(dtype, first, offset, n=PICKED, warps=4):
    consts, raw = form(dtype)
    consts |= {"FIRST": first, "PART": 32, "LOG": n.bit_length() - 1, "OFFSET": offset[1]}
    made = Kernel(pick_chunks, (raw, "*i64", *(offset[0],) * 4, "i32"), warps=warps, **consts)
    made.items = n
    return made


@functools.cache
def _merge(offset, steps, probes=PROBES, warps=4):
    consts = {"LOG": CHUNK.bit_length() - 1, "PROBES": probes, "STEPS": steps, "OFFSET": offset[1]}
    made = Kernel(merge_runs, ("*i64", "*i64", *(offset[0],) * 3), warps=warps, **consts)
    made.items = CHUNK
    return made


@functools.cache
def _finish(dtype, ids, values, part, offset):
    raw = form(dtype)[1]
    consts = {"IDS": ids, "VALUES": values, "PART": part, "BLOCK": BLOCK, "OFFSET": offset[1]}
    return Kernel(finish, (raw, "*i64", "*i64", raw, "*i64", *(offset[0],) * 4), **consts)


def order(gpu, dtype, x, rows, n, k, flip, indices, values=0):
    """Indices (i64) of the first k of dense rows of n elements in stable order, and their values unless that address is
    0; flip is -1 for descending order.
    """
    offset, bits = offset_type(rows * (n + CHUNK)), form(dtype)[0]["BITS"]
    part = 32 if n < 1 << 31 else 16
    shifts = range(0, bits, part)
    ids, owners = x, []
    for shift in shifts:
        permuted, kept, found, copied = shift > 0, k, indices, values
        if shift != shifts[-1]:
            kept, copied = n, 0
            found, owner = gpu.allocate(8 * rows * n)
            owners.append(owner)
        if n <= SHORT and kept <= min(PICKS, n // 32) and bits <= 32:
            kernel = _picks(dtype, max(16, power_of_2(n)), copied != 0, offset)
            grid = (blocks(rows, 1 << kernel.consts["ROWS"]), 1, 1)
            kernel(gpu, grid, x, copied or x, found, rows, n, kept, flip)
        elif n <= SHORT:
            kernel = _short(dtype, max(16, power_of_2(n)), permuted, copied != 0, shift, offset, turns(gpu.arch))
            grid = (blocks(rows, 1 << kernel.consts["ROWS"]), 1, 1)
            kernel(gpu, grid, x, ids, copied or x, found, rows, n, kept, flip)
        else:
            few = kept <= FEW and len(shifts) == 1 and part == 32
            how = (permuted, shift, part)
            words, out_n, owner = (_selected if few else _merged)(gpu, dtype, x, ids, rows, n, kept, flip, how, offset)
            owners.append(owner)
            kernel = _finish(dtype, permuted, copied != 0, part, offset)
            grid = (blocks(rows * kept, BLOCK), 1, 1)
            kernel(gpu, grid, x, ids, words, copied or x, found, n, out_n, kept, rows * kept)
        ids = found
    del owners


def _selected(gpu, dtype, x, ids, rows, n, k, flip, how, offset):
    """(words, how many per row, their owner): sorted rows that begin with the k smallest"""
    words, row_n, first, owner, picks = x, n, True, None, k <= PICKS and not how[0]
    while True:
        chunks = blocks(row_n, PICKED if picks else CHUNK)
        out_n = chunks * k
        found, new = gpu.allocate(8 * rows * out_n)
        form_of, grid, numbers = (dtype if first else "i64"), (rows * chunks, 1, 1), (row_n, chunks, k, out_n, flip)
        if picks:
            _pick_chunks(form_of, first, offset)(gpu, grid, words, found, *numbers)
        else:
            _chunks(form_of, first, *how, offset, turns(gpu.arch))(gpu, grid, words, ids, found, *numbers)
        words, row_n, first, owner = found, out_n, False, new
        if chunks == 1:
            return words, out_n, owner


def _merged(gpu, dtype, x, ids, rows, n, _, flip, how, offset):
    """(words, how many per row, their owner): sorted rows"""
    chunks, total = blocks(n, CHUNK), rows * n
    memory, owner = gpu.allocate(16 * total)
    front, back = memory, memory + 8 * total
    kernel = _chunks(dtype, True, *how, offset, turns(gpu.arch))
    kernel(gpu, (rows * chunks, 1, 1), x, ids, front, n, chunks, CHUNK, n, flip)
    run = CHUNK
    while run < n:
        steps = -(-run.bit_length() // (PROBES.bit_length() - 1))
        _merge(offset, steps)(gpu, (rows * chunks, 1, 1), front, back, n, run, chunks)
        front, back, run = back, front, 2 * run
    return front, n, owner


def variants_of_order(arch):
    """Kernels of every size and width, for the room sort."""
    from .dims import NARROW

    turn = turns(arch)
    found = {f"{d} {n}": _short(d, n, False, True, 0, NARROW, turn) for d in ("f16", "f32") for n in (32, 1024, 4096)}
    found["i64 4096, upper half"] = _short("i64", 4096, True, True, 32, NARROW, turn)
    found |= {"chunks f32": _chunks("f32", True, False, 0, 32, NARROW, turn), "merge": _merge(NARROW, 3)}
    found |= {f"first of {d} {n}": _picks(d, n, True, NARROW) for d, n in (("f32", 4096), ("f16", 4096), ("f32", 256))}
    found["first of chunks f32"] = _pick_chunks("f32", True, NARROW)
    return found | {"finish f32": _finish("f32", False, True, 32, NARROW)}
