"""Jacobi's rotations from one side: the rows of matrices become orthogonal (M. Hestenes 1958).

Words of "rotate" (dtype): z, state (i32, LIMIT each), batch, n, depth, length, tolerance. Z is (batch, n, length),
contiguous. Pairs of rows are rotated by the angle that makes their first `depth` elements orthogonal, all `length`
elements alike: behind them may be the identity, which becomes the product of all rotations. Rows are orthogonal if
|x y| <= tolerance |x| |y|, where what is shorter than epsilon**2 counts as so long: largest elements are to be between
1 and 2 in size. NaN is orthogonal to all.

A sweep takes every pair once, in rounds of n / 2 disjoint ones (the order of a round-robin tournament). At most LIMIT
sweeps are made; state[s] of a matrix is 1 if sweep s rotated anything. Up to SMALL rows a program does all sweeps of a
matrix; for more, a launch is a round, its programs are pairs, and the state is read after every sweep.
"""

import ctypes
import functools

import triton
import triton.language as tl

from .functions import div, sqrt
from .launch import Kernel, pointer

LIMIT = 40  # sweeps; some 5 to 12 are needed
SMALL = 64
TILES = {"sweeps": (16, 64), "round_of_pairs": (1, 1024)}  # pairs, elements
FLOOR = {"f32": 2.0**-92, "f64": 2.0**-208}  # epsilon**4


@triton.jit
def partners(k, turn, players):
    """The two players of pair k in a round: one stays, the others go round"""
    rest = players - 1
    first = tl.where(k == 0, rest, (turn + k) % rest)
    second = tl.where(k == 0, turn, (turn + rest - k) % rest)
    return tl.minimum(first, second), tl.maximum(first, second)


@triton.jit
def rotate(z_ptr, p, q, use, depth, length, tolerance, FLOOR: tl.constexpr, R: tl.constexpr):
    """Rotates rows p and q; whether that was needed"""
    lane = tl.arange(0, R)[None, :]
    at_p, at_q = z_ptr + p[:, None].to(tl.int64) * length + lane, z_ptr + q[:, None].to(tl.int64) * length + lane
    squares = tl.zeros([p.shape[0], R], z_ptr.dtype.element_ty)
    others, products = squares, squares
    for start in range(0, depth, R):
        inside = use[:, None] & (start + lane < depth)
        x, y = tl.load(at_p + start, mask=inside, other=0.0), tl.load(at_q + start, mask=inside, other=0.0)
        squares += x * x
        others += y * y
        products += x * y
    a, b, g = tl.sum(squares, 1), tl.sum(others, 1), tl.sum(products, 1)
    sizes = sqrt(tl.maximum(a, FLOOR)) * sqrt(tl.maximum(b, FLOOR))
    turned = use & (tl.abs(g) > tolerance * sizes)
    cotangent = div(b - a, tl.where(turned, 2 * g, 1.0))
    size = tl.abs(cotangent)  # whose square may be infinite
    tangent = div(tl.full(g.shape, 1.0, g.dtype), size + tl.where(size > 2.0**30, size, sqrt(1 + size * size)))
    tangent = tl.where(cotangent < 0, -tangent, tangent)
    c = div(tl.full(g.shape, 1.0, g.dtype), sqrt(1 + tangent * tangent))
    s = c * tangent
    half = div(s, 1 + c)[:, None]  # of the angle, its tangent: what small angles round are the changes alone
    s = s[:, None]
    for start in range(0, length, R):
        inside = turned[:, None] & (start + lane < length)
        x, y = tl.load(at_p + start, mask=inside, other=0.0), tl.load(at_q + start, mask=inside, other=0.0)
        tl.store(at_p + start, x - s * (y + half * x), mask=inside)
        tl.store(at_q + start, y + s * (x - half * y), mask=inside)
    return turned


@triton.jit
def sweeps(
    z_ptr, state_ptr, n, depth, length, tolerance, LIMIT: tl.constexpr, FLOOR: tl.constexpr, P: tl.constexpr,
    R: tl.constexpr,
):  # fmt: skip
    """All sweeps of one matrix"""
    batch = tl.program_id(0).to(tl.int64)
    z_ptr += batch * n * length
    players = (n + 1) // 2 * 2
    done = tl.full([], 0, tl.int32)
    again = tl.full([], 1, tl.int32)
    tolerance = tolerance.to(z_ptr.dtype.element_ty)
    while (again != 0) & (done < LIMIT):
        again = again * 0
        for turn in range(players - 1):
            for start in range(0, players // 2, P):
                k = start + tl.arange(0, P)
                p, q = partners(k, turn, players)
                use = (k < players // 2) & (q < n)
                turned = rotate(z_ptr, p, q, use, depth, length, tolerance, FLOOR, R)
                again = tl.maximum(again, tl.max(turned.to(tl.int32), 0))
            tl.debug_barrier()
        tl.store(state_ptr + batch * LIMIT + done, again)
        done += 1


@triton.jit
def round_of_pairs(
    z_ptr, state_ptr, n, depth, length, turn, sweep, tolerance, LIMIT: tl.constexpr, FLOOR: tl.constexpr,
    P: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """One pair of a round"""
    players = (n + 1) // 2 * 2
    batch = (tl.program_id(0) // (players // 2)).to(tl.int64)
    k = tl.program_id(0) % (players // 2) + tl.arange(0, P)
    p, q = partners(k, turn, players)
    z_ptr += batch * n * length
    turned = rotate(z_ptr, p, q, q < n, depth, length, tolerance.to(z_ptr.dtype.element_ty), FLOOR, R)
    if tl.max(turned.to(tl.int32), 0) != 0:
        tl.atomic_max(state_ptr + batch * LIMIT + sweep, 1, sem="relaxed")


# ---- plans -----------------------------------------------------------------------------------------------------------


@functools.cache
def _kernel(fn, dtype):
    (pairs, block), integers = TILES[fn.__name__], 3 if fn is sweeps else 5
    types = (pointer(dtype), "*i32", *("i32",) * integers, "fp32")
    return Kernel(
        fn, types, ("depth", "length"), loose=("state_ptr",), LIMIT=LIMIT, FLOOR=FLOOR[dtype], P=pairs, R=block
    )


def _rotated(gpu, state, batch, sweep):
    """Whether a sweep changed any matrix, once it is done."""
    host = (ctypes.c_int32 * (batch * LIMIT))()
    gpu.download(ctypes.addressof(host), state, ctypes.sizeof(host))
    return any(host[sweep::LIMIT])


def build(name, dtype, source=None):
    """See kernels_triton/__init__.py; words as above."""
    if name != "rotate":
        return None
    small, large = _kernel(sweeps, dtype), _kernel(round_of_pairs, dtype)

    def plan(gpu, words):
        z, state, batch, n, depth, length, tolerance = words
        if n <= SMALL:
            small(gpu, (batch, 1, 1), z, state, n, depth, length, tolerance)
            return
        players = (n + 1) // 2 * 2
        for sweep in range(LIMIT):
            for turn in range(players - 1):
                large(gpu, (batch * players // 2, 1, 1), z, state, n, depth, length, turn, sweep, tolerance)
            if not _rotated(gpu, state, batch, sweep):
                return

    return plan


def variants(arch):
    """All kernels, for the committed table of what the compiler makes of them."""
    names = {sweeps: "sweeps", round_of_pairs: "round"}
    return {f"{name} {dtype}": _kernel(fn, dtype) for fn, name in names.items() for dtype in ("f32", "f64")}
