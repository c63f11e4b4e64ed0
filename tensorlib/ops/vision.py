"""Images sampled at any places: grids of an affine map, and interpolation at them, with PyTorch's conventions.

>>> import tensorlib
>>> x = tensorlib.arange(4, dtype="f32").reshape(1, 1, 2, 2)
>>> turn = affine_grid(tensorlib.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]]), (1, 1, 2, 2), align_corners=False)
>>> grid_sample(x, turn, align_corners=False)[0, 0]
tensor([[1., 3.],
        [0., 2.]])
"""

from math import prod

from tensorlib.errors import DTypeError, ShapeError
from tensorlib.ops import create, movement
from tensorlib.ops.elementwise import (
    abs,
    add,
    cast,
    clamp,
    floor,
    floor_divide,
    ge,
    isnan,
    le,
    logical_and,
    mul,
    ne,
    remainder,
    round,
    sub,
    where,
)
from tensorlib.ops.index import gather
from tensorlib.ops.linalg import matmul
from tensorlib.registry import FLOAT_ONLY, define

MODES, PADDINGS = ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection")


def _steps(theta, n, align_corners):
    """n places from -1 to 1: at the ends, or at the middles of n pixels."""
    start, step = (-1.0, 2 / max(1, n - 1)) if align_corners else (1 / n - 1, 2 / n)
    if align_corners and n == 1:
        start = 0.0
    ramp = create.arange(type(theta), n, dtype=theta.dtype, device=theta.device)
    return add(mul(ramp, step), start)


@define("composite", FLOAT_ONLY, None)
def affine_grid(theta, size, align_corners=False):
    """Where an affine map sends the pixels of an image: theta (N, 2, 3) and size (N, C, H, W) -> (N, H, W, 2).

    Or theta (N, 3, 4) and size (N, C, D, H, W) -> (N, D, H, W, 3). Places are (x, y, ...) in [-1, 1]: the middles of
    the corner pixels for align_corners, else the image's edges. ShapeError, DTypeError.
    """
    FLOAT_ONLY.apply("affine_grid", theta.dtype)
    size, dims = tuple(size), len(size) - 2
    if dims not in (2, 3) or theta.shape != (size[0], dims, dims + 1):
        got = f"theta of shape {theta.shape} for size {size}"
        raise ShapeError("affine_grid", got, "(N, 2, 3) for (N, C, H, W), (N, 3, 4) for (N, C, D, H, W)", "")
    axes = []
    for d, n in enumerate(size[2:]):
        places = movement.reshape(_steps(theta, n, align_corners), [-1 if i == d else 1 for i in range(dims)])
        axes.append(movement.broadcast_to(places, size[2:]))
    ones = create.ones(type(theta), size[2:], dtype=theta.dtype, device=theta.device)
    base = movement.reshape(movement.stack([*axes[::-1], ones], -1), (1, prod(size[2:]), dims + 1))
    grid = matmul(movement.broadcast_to(base, (size[0], *base.shape[1:])), movement.transpose(theta, 1, 2))
    return movement.reshape(grid, (size[0], *size[2:], dims))


@define("composite", FLOAT_ONLY, None, 2)
def grid_sample(input, grid, mode="bilinear", padding_mode="zeros", align_corners=False):
    """input (N, C, H, W) at the places of grid (N, Ho, Wo, 2): (N, C, Ho, Wo). (N, C, D, H, W) at (N, ..., 3) likewise.

    Places are (x, y[, z]) with -1 and 1 at the edges (see `affine_grid`). mode: "bilinear", "nearest" or, for images,
    "bicubic" (a = -0.75). padding_mode: outside is 0 ("zeros"), the nearest pixel ("border"), or mirrored
    ("reflection"). NaN in the grid gives what is at -1. ShapeError, DTypeError.
    """
    _check(input, grid, mode, padding_mode)
    dims, sizes = input.ndim - 2, input.shape[2:]
    places = []
    for d, n in enumerate(sizes):
        own = movement.reshape(movement.select(grid, -1, dims - 1 - d), (input.shape[0], -1))
        own = where(isnan(own), -1.0, own)
        own = mul(add(own, 1), (n - 1) / 2) if align_corners else sub(mul(add(own, 1), n / 2), 0.5)
        places.append(own if mode == "bicubic" else _inside(own, n, padding_mode, align_corners))
    taps = [{"bilinear": _linear, "nearest": _nearest, "bicubic": _cubic}[mode](p) for p in places]
    flat = movement.reshape(input, (*input.shape[:2], prod(sizes)))
    out = None
    for choice in _products(taps):
        weight, ids, valid = None, None, None
        for (whole, own), n in zip(choice, sizes):
            if mode == "bicubic":
                whole = _inside(whole, n, padding_mode, align_corners)
            if padding_mode == "zeros":
                here = logical_and(ge(whole, 0), le(whole, n - 1))
                valid = here if valid is None else logical_and(valid, here)
            step = cast(clamp(whole, 0, n - 1), "i64")
            ids = step if ids is None else add(mul(ids, n), step)
            if own is not None:
                weight = own if weight is None else mul(weight, own)
        found = _picked(flat, ids, weight, valid)
        out = found if out is None else add(out, found)
    return movement.reshape(out, (*input.shape[:2], *grid.shape[1:-1]))


def _check(input, grid, mode, padding_mode):
    FLOAT_ONLY.apply("grid_sample", input.dtype)
    if grid.dtype is not input.dtype:
        got = f"input of {input.dtype}, grid of {grid.dtype}"
        raise DTypeError("grid_sample", got, "one dtype", "convert one with .to(dtype)")
    dims = input.ndim - 2
    if dims not in (2, 3) or grid.ndim != input.ndim or grid.shape[0] != input.shape[0] or grid.shape[-1] != dims:
        got = f"input of shape {input.shape}, grid of {grid.shape}"
        raise ShapeError("grid_sample", got, "(N, C, H, W) and (N, Ho, Wo, 2), or one dim more", "reshape them")
    if mode not in MODES or padding_mode not in PADDINGS or (mode == "bicubic" and dims == 3) or 0 in input.shape:
        got = f"mode {mode!r}, padding_mode {padding_mode!r}, shape {input.shape}"
        raise ShapeError("grid_sample", got, f"{MODES} (bicubic for images), {PADDINGS}, pixels", "use one of these")


def _products(taps):
    """Every choice of one (place, weight) per dim."""
    if not taps:
        return [()]
    return [(tap, *rest) for tap in taps[0] for rest in _products(taps[1:])]


def _picked(flat, ids, weight, valid):
    """The pixels at `ids` (N, M) in every channel, weighted, 0 where not valid: (N, C, M)."""
    shape = (*flat.shape[:2], ids.shape[1])
    found = gather(flat, 2, movement.broadcast_to(movement.unsqueeze(ids, 1), shape))
    if weight is not None:
        found = mul(found, movement.unsqueeze(weight, 1))
    return found if valid is None else where(movement.unsqueeze(valid, 1), found, 0.0)


def _inside(x, n, padding_mode, align_corners):
    """Places in pixels, brought into the image as padding_mode says ("zeros": left where they are)."""
    if padding_mode == "zeros":
        return x
    if padding_mode == "reflection":
        low, span = (0.0, float(n - 1)) if align_corners else (-0.5, float(n))
        if span == 0:
            return mul(x, 0)
        distance = abs(sub(x, low))
        rest, flips = remainder(distance, span), floor_divide(distance, span)
        x = add(where(ne(remainder(flips, 2), 0), sub(span, rest), rest), low)
    return clamp(x, 0, n - 1)


def _nearest(x):
    return [(round(x), None)]


def _linear(x):
    low = floor(x)
    share = sub(x, low)
    return [(low, sub(1, share)), (add(low, 1), share)]


def _cubic(x):
    """Four pixels with the weights of cubic convolution (Keys 1981, a = -0.75)."""
    low, a = floor(x), -0.75
    t = sub(x, low)

    def near(d):  # (a + 2) d^3 - (a + 3) d^2 + 1
        return add(mul(mul(sub(mul(d, a + 2), a + 3), d), d), 1)

    def far(d):  # a d^3 - 5 a d^2 + 8 a d - 4 a
        return sub(mul(add(mul(sub(mul(d, a), 5 * a), d), 8 * a), d), 4 * a)

    u = sub(1, t)
    return [(sub(low, 1), far(add(t, 1))), (low, near(t)), (add(low, 1), near(u)), (add(low, 2), far(add(u, 1)))]
