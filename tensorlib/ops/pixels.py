"""Padding, patches of images as columns and back, and channels traded for pixels.

>>> import tensorlib
>>> x = tensorlib.arange(3, dtype="f32").reshape(1, 3)
>>> pad(x, (1, 2)), pad(x, (1, 2), mode="reflect")
(tensor([[0., 0., 1., 2., 0., 0.]]), tensor([[1., 0., 1., 2., 1., 0.]]))
"""

from math import prod

from tensorlib.errors import ShapeError
from tensorlib.ops import create, movement
from tensorlib.ops.conv import per_dim
from tensorlib.ops.elementwise import add, mul
from tensorlib.ops.getitem import getitem
from tensorlib.ops.index import index_add
from tensorlib.ops.windows import sliding_windows
from tensorlib.registry import SAME, define


def _composite(ref=None):
    return define("composite", SAME, ref)


# ---- padding ---------------------------------------------------------------------------------------------------------


def _blank(x, dim, n, value):
    shape = (*x.shape[:dim], n, *x.shape[dim + 1 :])
    return create.full(type(x), shape, value, dtype=x.dtype, device=x.device)


def _reflected(x, dim, before, after):
    n = x.shape[dim]
    left, right = movement.narrow(x, dim, 1, before), movement.narrow(x, dim, n - 1 - after, after)
    return movement.flip(left, dim), movement.flip(right, dim)


def _replicated(x, dim, before, after):
    def spread(place, n):
        edge = movement.narrow(x, dim, place, 1)
        return movement.broadcast_to(edge, (*x.shape[:dim], n, *x.shape[dim + 1 :]))

    return spread(0, before), spread(x.shape[dim] - 1, after)


def _circular(x, dim, before, after):
    return movement.narrow(x, dim, x.shape[dim] - before, before), movement.narrow(x, dim, 0, after)


# how many elements of padding a dim of n has at most, and the two parts to join
_MODES = {
    "reflect": (lambda n: n - 1, _reflected),
    "replicate": (lambda n: float("inf") if n else 0, _replicated),
    "circular": (lambda n: n, _circular),
}


@_composite(lambda np, x, pad: np.pad(x, [(0, 0)] * (x.ndim - len(pad) // 2) + [*zip(pad[::2], pad[1::2])][::-1]))
def pad(input, pad, mode="constant", value=None):
    """input with elements added at both ends of dims; `pad` is (left, right) of the last dim, then of the one before...

    mode "constant" adds `value` (0), and cuts where a number is negative; "reflect" mirrors without the edge,
    "replicate" repeats the edge, "circular" goes on at the other end. Any number of dims. ShapeError.
    """
    x, amounts = input, list(pad)
    if len(amounts) % 2 or len(amounts) // 2 > x.ndim:
        raise ShapeError("pad", f"{len(amounts)} amounts for {x.ndim} dims", "two per dim, last dim first", "add them")
    if mode not in ("constant", *_MODES) or (value is not None and mode != "constant"):
        got = f"mode {mode!r}, value {value}"
        raise ShapeError("pad", got, f"constant, {', '.join(_MODES)}; a value for constant only", "change them")
    for i in range(len(amounts) // 2):
        dim, before, after = x.ndim - 1 - i, amounts[2 * i], amounts[2 * i + 1]
        if before or after:
            x = _padded(x, dim, before, after, mode, 0 if value is None else value)
    return x


def _padded(x, dim, before, after, mode, value):
    n = x.shape[dim]
    if mode == "constant":
        if n + min(before, 0) + min(after, 0) < 0 or n + before + after < 0:
            got = f"{before} and {after} for a dim of {n}"
            raise ShapeError("pad", got, "a result of size 0 or more", "cut off less")
        x = movement.narrow(x, dim, max(0, -before), n + min(before, 0) + min(after, 0))
        sides = [_blank(x, dim, p, value) for p in (max(0, before), max(0, after))]
    else:
        most, make = _MODES[mode]
        if min(before, after) < 0 or max(before, after) > most(n):
            got = f"{before} and {after} in mode {mode!r} for a dim of {n}"
            raise ShapeError("pad", got, f"0 to {most(n)}", "pad less, or with a constant")
        sides = make(x, dim, before, after)
    parts = [p for p in (sides[0], x, sides[1]) if p.shape[dim]]
    return movement.cat(parts, dim) if len(parts) > 1 else parts[0] if parts else x


# ---- patches as columns ----------------------------------------------------------------------------------------------


def _patches(op, size, kernel_size, dilation, padding, stride):
    """(kernel, dilation, padding, stride, patches per dim) for an image of `size`."""
    kernel, dilation, stride = (
        per_dim(op, name, v, 2, 1)
        for name, v in (("kernel_size", kernel_size), ("dilation", dilation), ("stride", stride))
    )
    padding = per_dim(op, "padding", padding, 2, 0)
    count = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in zip(size, padding, dilation, kernel, stride)
    )
    if min(count) < 1:
        raise ShapeError(op, f"an image of {tuple(size)} for a kernel of {kernel}", "at least one patch", "pad more")
    return kernel, dilation, padding, stride, count


@_composite()
def unfold(input, kernel_size, dilation=1, padding=0, stride=1):
    """Patches of images as columns: (N, C, H, W) -> (N, C * kernel, patches), or without N. (im2col)

    `Tensor.unfold(dim, size, step)` is another op: windows of one dim. ShapeError.

    >>> import tensorlib
    >>> unfold(tensorlib.ones(1, 3, 5, 5), (3, 3)).shape
    (1, 27, 9)
    """
    if input.ndim not in (3, 4):
        raise ShapeError("unfold", f"shape {input.shape}", "(N, C, H, W) or (C, H, W)", "reshape it")
    x = input if input.ndim == 4 else movement.unsqueeze(input, 0)
    found = _patches("unfold", x.shape[2:], kernel_size, dilation, padding, stride)
    kernel, dilation, padding, stride, _ = found
    x = pad(x, (padding[1], padding[1], padding[0], padding[0]))
    for d in range(2):
        x = sliding_windows(x, 2 + d, (kernel[d] - 1) * dilation[d] + 1, stride[d])
    x = getitem(x, (..., slice(None, None, dilation[0]), slice(None, None, dilation[1])))
    n, c, *count = x.shape[:4]
    x = movement.reshape(movement.permute(x, 0, 1, 4, 5, 2, 3), n, c * prod(kernel), prod(count))
    return x if input.ndim == 4 else movement.squeeze(x, 0)


@_composite()
def fold(input, output_size, kernel_size, dilation=1, padding=0, stride=1):
    """Columns as patches of images, added up where they overlap: (N, C * kernel, patches) -> (N, C, H, W). (col2im)

    The adjoint of `unfold` with the same parameters; input may lack N. ShapeError.

    >>> import tensorlib
    >>> fold(tensorlib.ones(1, 4, 4), (3, 3), 2)[0, 0]
    tensor([[1., 2., 1.],
            [2., 4., 2.],
            [1., 2., 1.]])
    """
    size = per_dim("fold", "output_size", output_size, 2, 1)
    kernel, dilation, padding, stride, count = _patches("fold", size, kernel_size, dilation, padding, stride)
    if input.ndim not in (2, 3) or input.shape[-2] % prod(kernel) or input.shape[-1] != prod(count):
        expected = f"(N, C * {prod(kernel)}, {prod(count)})"
        raise ShapeError("fold", f"shape {input.shape}", expected, "use the parameters that unfold had")
    x = input if input.ndim == 3 else movement.unsqueeze(input, 0)
    channels, wide = x.shape[1] // prod(kernel), tuple(n + 2 * p for n, p in zip(size, padding))
    ids = None
    for d in range(2):
        offsets = mul(create.arange(type(x), kernel[d], device=x.device), dilation[d])
        starts = mul(create.arange(type(x), count[d], device=x.device), stride[d])
        own = add(movement.unsqueeze(offsets, 1), starts)
        own = movement.reshape(own, (kernel[0], 1, count[0], 1) if d == 0 else (1, kernel[1], 1, count[1]))
        ids = own if ids is None else add(mul(ids, wide[1]), own)
    rows = movement.reshape(x, x.shape[0], channels, prod(kernel) * prod(count))
    blank = create.zeros(type(x), x.shape[0], channels, prod(wide), dtype=x.dtype, device=x.device)
    out = movement.reshape(index_add(blank, 2, movement.reshape(ids, -1), rows), x.shape[0], channels, *wide)
    for d in range(2):
        out = movement.narrow(out, 2 + d, padding[d], size[d])
    return out if input.ndim == 3 else movement.squeeze(out, 0)


# ---- channels and pixels ---------------------------------------------------------------------------------------------


def _image(op, x, factor, fits, expected):
    if x.ndim < 3 or factor < 1 or not fits(*x.shape[-3:]):
        raise ShapeError(op, f"shape {x.shape} for a factor of {factor}", expected, "change the factor")
    return x.shape[:-3], *x.shape[-3:]


@_composite()
def pixel_shuffle(input, upscale_factor):
    """(..., C * r * r, H, W) -> (..., C, H * r, W * r): channels become pixels. ShapeError. (arXiv:1609.05158)"""
    r = upscale_factor
    batch, c, h, w = _image("pixel_shuffle", input, r, lambda c, h, w: c % (r * r) == 0, "(..., C * r * r, H, W)")
    x = movement.reshape(input, prod(batch), c // (r * r), r, r, h, w)
    return movement.reshape(movement.permute(x, 0, 1, 4, 2, 5, 3), *batch, c // (r * r), h * r, w * r)


@_composite()
def pixel_unshuffle(input, downscale_factor):
    """(..., C, H * r, W * r) -> (..., C * r * r, H, W): the inverse of `pixel_shuffle`. ShapeError."""
    r = downscale_factor
    batch, c, h, w = _image("pixel_unshuffle", input, r, lambda c, h, w: h % r == w % r == 0, "(..., C, H * r, W * r)")
    x = movement.reshape(input, prod(batch), c, h // r, r, w // r, r)
    return movement.reshape(movement.permute(x, 0, 1, 3, 5, 2, 4), *batch, c * r * r, h // r, w // r)


@_composite()
def channel_shuffle(input, groups):
    """(N, C, ...) with the channels of `groups` groups interleaved. ShapeError. (arXiv:1707.01083)"""
    if input.ndim < 3 or groups < 1 or input.shape[1] % groups:
        got = f"shape {input.shape} for {groups} groups"
        raise ShapeError("channel_shuffle", got, "(N, C, ...) with C a multiple of groups", "change groups")
    n, c, *rest = input.shape
    x = movement.reshape(input, n, groups, c // groups, *rest)
    return movement.reshape(movement.transpose(x, 1, 2), n, c, *rest)
