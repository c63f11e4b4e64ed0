"""Gradients of `state_scan`, back through the tokens. Words and what they mean: kernels_numba/scan_state_vjp.py.

States before each CHUNK of tokens, and those within the chunk whose turn it is, lie in device memory of the program's
own: what a thread wrote there others may read behind a barrier.
"""

import functools

import triton
import triton.language as tl

from .launch import Kernel, blocks, pointer
from .scan_state import FLOATS, decay_of, next_state, operands, shape
from .tiles import warps_for

CHUNK = 16


@triton.jit
def at_token(q, k, v, w, a, b, t, qt, kt, vt, wt, at, bt, DELTA: tl.constexpr):
    """The operands of token t."""
    if DELTA:
        a += t * at
        b += t * bt
    return q + t * qt, k + t * kt, v + t * vt, w + t * wt, a, b


@triton.jit
def kept(
    state, to, first, end, q, k, v, w, a, b, qt, kt, vt, wt, at, bt, i, j, known_i, known_j, table, cells,
    EVERY: tl.constexpr, SIZE: tl.constexpr, KIND: tl.constexpr, DELTA: tl.constexpr,
):  # fmt: skip
    """The state after tokens first to end - 1; that before each EVERYth of them is stored."""
    for u in range(end - first):
        if u % EVERY == 0:
            tl.store(to + (u // EVERY) * SIZE + cells, state)
        _, kk, vv, ww, aa, bb = at_token(q, k, v, w, a, b, first + u, qt, kt, vt, wt, at, bt, DELTA)
        decay = decay_of(ww, i, j, known_i, known_j, table, KIND)
        state = next_state(state, kk, vv, decay, aa, bb, i, j, known_i, known_j, DELTA)
    return state


@triton.jit
def token_back(
    grad, grates, earlier, later, gout, q, k, v, w, a, b, i, j, known_i, known_j, table, column, row, rows, width,
    dq, dk, dv, dw, da, db, KIND: tl.constexpr, BEFORE: tl.constexpr, DELTA: tl.constexpr,
):  # fmt: skip
    """(G, gradient of A) behind a token, whose own gradients are stored. `column`, `row`: its place in dv, in dq."""
    query = tl.load(q + i, mask=known_i, other=0.0)[:, None]
    key = tl.load(k + i, mask=known_i, other=0.0)[:, None]
    value = tl.load(v + j, mask=known_j, other=0.0)[None, :]
    if not BEFORE:
        grad += query * gout
    tl.store(dq + row * rows + i, tl.sum(later * gout, 1), mask=known_i)
    tl.store(dk + row * rows + i, tl.sum(grad * value, 1), mask=known_i)
    tl.store(dv + column * width + j, tl.sum(grad * key, 0), mask=known_j)
    scaled = grad * decay_of(w, i, j, known_i, known_j, table, KIND)
    product = scaled * earlier
    if KIND == "head":
        tl.store(dw + row, tl.sum(tl.sum(product, 1), 0))
    elif KIND == "row":
        tl.store(dw + row * rows + i, tl.sum(product, 1), mask=known_i)
    else:
        tl.store(dw + column * width + j, tl.sum(product * table, 0), mask=known_j)
        grates += product * tl.load(w + j, mask=known_j, other=0.0)[None, :]
    if DELTA:
        read = tl.load(a + i, mask=known_i, other=0.0)[:, None]
        moved = tl.sum(read * earlier, 0)[None, :]
        gmoved = tl.sum(tl.load(b + i, mask=known_i, other=0.0)[:, None] * grad, 0)[None, :]
        tl.store(da + row * rows + i, tl.sum(earlier * gmoved, 1), mask=known_i)
        tl.store(db + row * rows + i, tl.sum(grad * moved, 1), mask=known_i)
        scaled += read * gmoved
    if BEFORE:
        scaled += query * gout
    return scaled, grates


@triton.jit
def back(
    gy, gs, past, q, k, v, w, a, b, rates, qn, qt, kn, kt, vn, vt, wn, wt, an, at, bn, bt, count, length, heads, groups,
    rows, width, rh, rk, rv, dq, dk, dv, dw, drates, da, db, dpast, memory, chunks, KIND: tl.constexpr,
    BEFORE: tl.constexpr, DELTA: tl.constexpr, PAST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """All tokens of one head (program axis 0: of one sequence), for some columns (axis 1)."""
    place, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    n = place // heads
    h = place - n * heads
    group = h // (heads // groups)
    i, j = tl.arange(0, ROWS), block * COLUMNS + tl.arange(0, COLUMNS)
    known_i, known_j = i < rows, j < width
    known = known_i[:, None] & known_j[None, :]
    here = (place * rows + i)[:, None] * width + j[None, :]
    cells = i[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    zeros = tl.zeros([ROWS, COLUMNS], gy.dtype.element_ty)
    state, table, grates = zeros, zeros, zeros
    if PAST:
        state = tl.load(past + here, mask=known, other=0.0)
    if KIND == "outer":
        table = tl.load(rates + (h * rh + (i * rk)[:, None] + (j * rv)[None, :]), mask=known, other=0.0)
    q, k, v = q + n * qn + group * rows, k + n * kn + group * rows, v + n * vn + h * width
    w += n * wn + (h if KIND == "head" else h * (rows if KIND == "row" else width))
    if DELTA:
        a, b = a + n * an + h * rows, b + n * bn + h * rows
    size: tl.constexpr = ROWS * COLUMNS
    memory += (place * tl.num_programs(1) + block) * (chunks + CHUNK + 1) * size
    marks = memory + (CHUNK + 1) * size
    kept(
        state, marks, 0, length, q, k, v, w, a, b, qt, kt, vt, wt, at, bt, i, j, known_i, known_j, table, cells, CHUNK,
        size, KIND, DELTA,
    )  # fmt: skip
    tl.debug_barrier()
    grad = tl.load(gs + here, mask=known, other=0.0)
    for c in range(chunks):
        start = (chunks - 1 - c) * CHUNK
        some = tl.minimum(CHUNK, length - start)
        state = kept(
            tl.load(marks + (chunks - 1 - c) * size + cells), memory, start, start + some, q, k, v, w, a, b, qt, kt, vt,
            wt, at, bt, i, j, known_i, known_j, table, cells, 1, size, KIND, DELTA,
        )  # fmt: skip
        tl.store(memory + some * size + cells, state)
        tl.debug_barrier()
        for u in range(some):
            t = start + some - 1 - u
            earlier = tl.load(memory + (some - 1 - u) * size + cells)
            later = earlier if BEFORE else tl.load(memory + (some - u) * size + cells)
            qq, kk, vv, ww, aa, bb = at_token(q, k, v, w, a, b, t, qt, kt, vt, wt, at, bt, DELTA)
            column, row = (n * length + t) * heads + h, ((block * count + n) * length + t) * heads + h
            gout = tl.load(gy + column * width + j, mask=known_j, other=0.0)[None, :]
            grad, grates = token_back(
                grad, grates, earlier, later, gout, qq, kk, vv, ww, aa, bb, i, j, known_i, known_j, table, column, row,
                rows, width, dq, dk, dv, dw, da, db, KIND, BEFORE, DELTA,
            )  # fmt: skip
        tl.debug_barrier()
    if PAST:
        tl.store(dpast + here, grad, mask=known)
    if KIND == "outer":
        tl.store(drates + here, grates, mask=known)


@functools.cache
def kernel_of(dtype, kind, before, delta, past, tile):
    """The Kernel of `back`."""
    types = (*(pointer(dtype),) * 10, *("i64",) * 21, *(pointer(dtype),) * 9, "i64")
    return Kernel(
        back, types, (), warps_for(tile[0] * tile[1], 16), 1, KIND=kind, BEFORE=before, DELTA=delta, PAST=past,
        ROWS=tile[0], COLUMNS=tile[1], CHUNK=CHUNK,
    )  # fmt: skip


def build(name, *params, source=None):
    """See kernels_triton/__init__.py; params as in kernels_numba/scan_state_vjp.py."""
    dtype, kind, *features = params
    if name != "state_scan" or dtype not in FLOATS:
        return None

    def plan(gpu, words):
        addresses, strides, sizes, steps = operands(words)
        tile, chunks = shape(sizes[4], sizes[5]), blocks(sizes[1], CHUNK)
        kernel = kernel_of(dtype, kind, "before" in features, "delta" in features, words[2] != 0, tile)
        grid = (sizes[0] * sizes[2], blocks(sizes[5], tile[1]), 1)
        each = (chunks + CHUNK + 1) * tile[0] * tile[1] * (8 if dtype == "f64" else 4)
        memory, owner = gpu.allocate(grid[0] * grid[1] * each)
        given = [x or words[0] for x in (*words[:3], *addresses)]
        results = [x or memory for x in words[34:42]]
        kernel(gpu, grid, *given, *strides, *sizes, *steps, *results, memory, chunks)
        del owner

    return plan


def variants(arch):
    """Mamba 1's and 2's, RWKV 6's and 7's shapes."""
    return {
        "mamba f32": kernel_of("f32", "outer", False, False, True, shape(16, 1536)),
        "mamba2 f32": kernel_of("f32", "head", False, False, True, shape(128, 64)),
        "rwkv6 f32": kernel_of("f32", "row", True, False, True, shape(64, 64)),
        "rwkv7 f32": kernel_of("f32", "row", False, True, True, shape(64, 64)),
    }
