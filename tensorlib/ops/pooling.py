"""Pools and interpolation in one, two and three dims, with torch.nn.functional's arguments.

All combine, per output, a list of input indices per dim (`_pool`, `_adaptive`, `_nearest`, `_linear`, `_cubic` give the
lists); one kernel (kernels_numba/pooling.py) does the rest, on any strides, in f32, f16, bf16 (computing in f32), f64.
"""

import struct
from array import array
from functools import lru_cache
from math import floor

from tensorlib import backend
from tensorlib.device import Array, Buffer
from tensorlib.dtype import i64
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.layout import contiguous
from tensorlib.ops.conv import FLOATS, per_dim

# ---- the lists of one dim: per output index (divisor, indices, weights) ---------------------------------------------


def _pool(size, out, kernel, stride, padding, dilation, include_pad):
    for o in range(out):
        start = o * stride - padding
        inside = [i for i in range(start, start + kernel * dilation, dilation) if 0 <= i < size]
        yield min(start + kernel, size + padding) - start if include_pad else len(inside), inside, ()


def _adaptive(size, out):
    for o in range(out):
        inside = range(o * size // out, -(-(o + 1) * size // out))
        yield len(inside), inside, ()


def _f32(x):
    return struct.unpack("f", struct.pack("f", x))[0]


def _nearest(size, out, scale, exact):
    for o in range(out):
        # in f32, as torch computes it: where the product is near an integer, that decides
        at = _f32(_f32(o + 0.5) * _f32(scale)) if exact else _f32(o * _f32(scale))
        yield 1, [min(floor(at), size - 1)], ()


def _source(o, size, out, scale, align_corners):
    """Where output o lies in the input."""
    if align_corners:
        return o * (size - 1) / (out - 1) if out > 1 else 0.0
    return scale * (o + 0.5) - 0.5


def _linear(size, out, scale, align_corners):
    for o in range(out):
        at = max(_source(o, size, out, scale, align_corners), 0.0)
        i = min(floor(at), size - 1)
        part = min(at - i, 1.0)
        yield 1, [i, min(i + 1, size - 1)], (1 - part, part)


def _cubic(size, out, scale, align_corners):
    """Keys' kernel with a = -0.75; indices are clipped to the input."""
    a = -0.75
    for o in range(out):
        at = _source(o, size, out, scale, align_corners)
        i, t = floor(at), at - floor(at)
        near = [((a + 2) * u - (a + 3)) * u * u + 1 for u in (t, 1 - t)]
        far = [((a * u - 5 * a) * u + 8 * a) * u - 4 * a for u in (1 + t, 2 - t)]
        yield 1, [max(0, min(i + d, size - 1)) for d in (-1, 0, 1, 2)], (far[0], *near, far[1])


def _single():
    """Of a dim that is missing."""
    yield 1, [0], (1.0,)


@lru_cache(512)
def _table(lists, *args):
    """(the table of one dim for the kernel, how many indices its rows have room for)"""
    rows = list(lists(*args))
    most, words = max((len(r[1]) for r in rows), default=1) or 1, array("q")
    for divisor, indices, weights in rows:
        spare = most - len(indices)
        words.extend([len(indices), divisor, *indices, *[0] * spare])
        if weights:
            words.frombytes(struct.pack(f"{most}d", *weights))
    return Array(Buffer.of(words), contiguous((len(words),)), i64), most


def _combine(op, kernel, x, dims, axes, size, divisor=0, indices=False):
    """Launches a kernel over the last `dims` dims of x with the lists `axes` gives per dim; (out, indices or None)."""
    lead, layout = x.shape[: x.ndim - dims], x.layout
    out = type(x).empty((*lead, *size), x.dtype, x.device)
    where = type(x).empty(out.shape, "i64", x.device) if indices else None
    if 0 in out.shape:
        return out, where
    while layout.ndim < dims + 2:
        layout = layout.unsqueeze(0)
    while layout.ndim < 5:
        layout, axes, size = layout.unsqueeze(2), ((_single,), *axes), (1, *size)
    tables = [_table(*a) for a in axes]
    threads, per_thread = backend.threads(x.device.type), -(-layout.shape[4] // 16) * 128
    scratch = Array.empty((threads * per_thread,), "u8", x.device)
    words = [x.ptr, out.ptr, *layout.shape[:2], *layout.strides, *layout.shape[3:], *size]
    words += [*(t.ptr for t, _ in tables), *(most for _, most in tables), where.ptr if indices else 0]
    words += [scratch.ptr, per_thread, threads, float(divisor)]
    found = backend.kernel("pooling", "indices" if indices else kernel, x.dtype.name, device=x.device.type)
    reads, writes = (x, *(t for t, _ in tables)), (out, scratch, *([where] if indices else []))
    backend.launch(found, words, out.numel() * 2 * max(most for _, most in tables), reads, writes)
    return out, where


def _check(op, x, dims, lead=(1, 2)):
    if x.dtype.name not in FLOATS:
        raise DTypeError(op, x.dtype, f"one of {', '.join(FLOATS)}", "convert it with .to('f32')")
    if x.ndim - dims not in lead or 0 in x.shape[-dims:]:
        names = " or ".join(("(C, ...)", "(N, C, ...)")[n - 1] for n in lead)
        expected = f"{names} with {dims} dims of at least 1 behind"
        raise ShapeError(op, f"shape {x.shape}", expected, "reshape, or use the function for another number of dims")
    return x.shape[x.ndim - dims :]


# ---- pools with a window --------------------------------------------------------------------------------------------


def _windows(op, x, dims, kernel, stride, padding, dilation, ceil_mode):
    """(kernel, stride, padding, dilation) per dim and the output size."""
    size, kernel = _check(op, x, dims), per_dim(op, "kernel_size", kernel, dims, 1)
    stride = kernel if stride is None or stride == () else per_dim(op, "stride", stride, dims, 1)
    padding, dilation = per_dim(op, "padding", padding, dims, 0), per_dim(op, "dilation", dilation, dims, 1)
    out = []
    for n, k, s, p, d in zip(size, kernel, stride, padding, dilation):
        reach = d * (k - 1) + 1
        if p > reach // 2:
            raise ShapeError(op, f"padding {p} for a kernel of {reach}", "at most half of it", "use a smaller padding")
        count = (n + 2 * p - reach + (s - 1 if ceil_mode else 0)) // s + 1
        out.append(count - 1 if ceil_mode and (count - 1) * s >= n + p else count)
        if out[-1] < 1:
            got = f"shape {x.shape} and a kernel of {kernel}, which give a size of {out[-1]}"
            raise ShapeError(op, got, "a positive output size", "use a smaller kernel, or pad")
    return list(zip(kernel, stride, padding, dilation)), tuple(out)


def _max_pool(op, dims, x, kernel, stride, padding, dilation, ceil_mode, return_indices):
    windows, out = _windows(op, x, dims, kernel, stride, padding, dilation, ceil_mode)
    size = x.shape[x.ndim - dims :]
    axes = tuple((_pool, n, o, *w, False) for n, o, w in zip(size, out, windows))
    found = _combine(op, "max", x, dims, axes, out, indices=return_indices)
    return found if return_indices else found[0]


def _avg_pool(op, dims, x, kernel, stride, padding, ceil_mode, include_pad, divisor):
    if divisor == 0:
        raise ShapeError(op, "divisor_override=0", "a number other than 0", "leave it out for the window's size")
    windows, out = _windows(op, x, dims, kernel, stride, padding, 1, ceil_mode)
    size = x.shape[x.ndim - dims :]
    axes = tuple((_pool, n, o, *w, bool(include_pad)) for n, o, w in zip(size, out, windows))
    return _combine(op, "avg", x, dims, axes, out, divisor or 0)[0]


def max_pool1d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """Largest of each window: (N, C, L) or (C, L) -> (..., L'). See `max_pool2d`."""
    return _max_pool("max_pool1d", 1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool2d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """Largest of each window: (N, C, H, W) or (C, H, W) -> (..., H', W'); NaN if the window has one.

    stride is the kernel's size unless given; padding counts as -inf. ceil_mode lets the last window reach over the end.
    return_indices also gives where each maximum is in its H x W plane (i64). ShapeError, DTypeError.

    >>> from tensorlib.device import Array
    >>> max_pool2d(Array.empty((2, 3, 7, 7)), 3, 2, padding=1).shape
    (2, 3, 4, 4)
    """
    return _max_pool("max_pool2d", 2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool3d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """Largest of each window: (N, C, D, H, W) or (C, D, H, W) -> (..., D', H', W'). See `max_pool2d`."""
    return _max_pool("max_pool3d", 3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def avg_pool1d(input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
    """Mean of each window: (N, C, L) or (C, L) -> (..., L'). See `avg_pool2d`."""
    return _avg_pool("avg_pool1d", 1, input, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


def avg_pool2d(
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    """Mean of each window: (N, C, H, W) or (C, H, W) -> (..., H', W').

    The divisor is the window's size with its padding (count_include_pad) or without, or divisor_override.
    ShapeError, DTypeError.

    >>> from tensorlib.device import Array
    >>> avg_pool2d(Array.empty((3, 7, 7)), 2, ceil_mode=True).shape
    (3, 4, 4)
    """
    arguments = input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    return _avg_pool("avg_pool2d", 2, *arguments)


def avg_pool3d(
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    """Mean of each window: (N, C, D, H, W) or (C, D, H, W) -> (..., D', H', W'). See `avg_pool2d`."""
    arguments = input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    return _avg_pool("avg_pool3d", 3, *arguments)


# ---- adaptive pools -------------------------------------------------------------------------------------------------


def _adaptive_pool(op, kernel, dims, x, output_size, indices=False):
    size = _check(op, x, dims)
    wanted = (output_size,) * dims if isinstance(output_size, int) or output_size is None else tuple(output_size)
    if len(wanted) == dims:
        wanted = tuple(n if w is None else w for n, w in zip(size, wanted))
    out = per_dim(op, "output_size", wanted, dims, 0)
    return _combine(op, kernel, x, dims, tuple((_adaptive, n, o) for n, o in zip(size, out)), out, indices=indices)


def _adaptive_max(op, dims, x, output_size, return_indices):
    found = _adaptive_pool(op, "max", dims, x, output_size, return_indices)
    return found if return_indices else found[0]


def adaptive_avg_pool1d(input, output_size):
    """Means of `output_size` even parts of the last dim: (N, C, L) or (C, L). See `adaptive_avg_pool2d`."""
    return _adaptive_pool("adaptive_avg_pool1d", "avg", 1, input, output_size)[0]


def adaptive_avg_pool2d(input, output_size):
    """Means of even parts: (N, C, H, W) or (C, H, W) -> (..., *output_size); a None keeps a dim's size.

    Part i of n of a dim of size s is i s // n ... ceil((i + 1) s / n). ShapeError, DTypeError.

    >>> from tensorlib.device import Array
    >>> adaptive_avg_pool2d(Array.empty((2, 3, 7, 5)), (1, None)).shape
    (2, 3, 1, 5)
    """
    return _adaptive_pool("adaptive_avg_pool2d", "avg", 2, input, output_size)[0]


def adaptive_avg_pool3d(input, output_size):
    """Means of even parts of the last three dims. See `adaptive_avg_pool2d`."""
    return _adaptive_pool("adaptive_avg_pool3d", "avg", 3, input, output_size)[0]


def adaptive_max_pool1d(input, output_size, return_indices=False):
    """Maxima of even parts of the last dim, and where they are. See `adaptive_avg_pool2d`, `max_pool2d`."""
    return _adaptive_max("adaptive_max_pool1d", 1, input, output_size, return_indices)


def adaptive_max_pool2d(input, output_size, return_indices=False):
    """Maxima of even parts of the last two dims, and where they are. See `adaptive_avg_pool2d`, `max_pool2d`."""
    return _adaptive_max("adaptive_max_pool2d", 2, input, output_size, return_indices)


def adaptive_max_pool3d(input, output_size, return_indices=False):
    """Maxima of even parts of the last three dims, and where they are. See `adaptive_avg_pool2d`, `max_pool2d`."""
    return _adaptive_max("adaptive_max_pool3d", 3, input, output_size, return_indices)


# ---- interpolation --------------------------------------------------------------------------------------------------

MODES = {"nearest": (1, 2, 3), "nearest-exact": (1, 2, 3), "area": (1, 2, 3)}
MODES |= {"linear": (1,), "bilinear": (2,), "trilinear": (3,), "bicubic": (2,)}


def interpolate(input, size=None, scale_factor=None, mode="nearest", align_corners=None, recompute_scale_factor=None):
    """Resizes the dims behind (N, C): to `size`, or by `scale_factor` (each one number, or one per dim).

    Modes: nearest, nearest-exact, area (adaptive mean); linear (one dim), bilinear and bicubic (two), trilinear
    (three), where align_corners makes the corners' centres meet. Without recompute_scale_factor a scale_factor is used
    as given, not as the ratio of the sizes. ShapeError, DTypeError.

    >>> from tensorlib.device import Array
    >>> interpolate(Array.empty((1, 3, 4, 5)), scale_factor=2, mode="bilinear").shape
    (1, 3, 8, 10)
    """
    op, dims = "interpolate", input.ndim - 2
    if dims not in MODES.get(mode, ()):
        got = f"mode={mode!r} and shape {input.shape}"
        raise ShapeError(op, got, f"(N, C, ...) and one of {', '.join(MODES)}", "linear modes go by the number of dims")
    if align_corners is not None and "linear" not in mode and mode != "bicubic":
        raise ShapeError(op, f"align_corners with mode {mode!r}", "a linear or cubic mode", "leave align_corners out")
    given, out, scales = _check(op, input, dims, (2,)), None, None
    if (size is None) == (scale_factor is None):
        raise ShapeError(op, f"size={size}, scale_factor={scale_factor}", "one of the two", "give size or scale_factor")
    if size is not None:
        out = per_dim(op, "size", size, dims, 1)
    else:
        factors = (scale_factor,) * dims if isinstance(scale_factor, (int, float)) else tuple(scale_factor)
        if len(factors) != dims:
            expected = f"a number, or {dims} of them"
            raise ShapeError(op, f"scale_factor={scale_factor}", expected, "give one number for all dims")
        out = tuple(floor(n * f) for n, f in zip(given, factors))
        out = per_dim(op, f"size (by scale_factor={scale_factor})", out, dims, 1)
        scales = None if recompute_scale_factor else [1 / f for f in factors]
    if mode == "area":
        return _adaptive_pool(op, "avg", dims, input, out)[0]
    scales = scales or [n / o for n, o in zip(given, out)]
    lists, last = (_cubic if mode == "bicubic" else _linear), bool(align_corners)
    if mode.startswith("nearest"):
        lists, last = _nearest, mode == "nearest-exact"
    axes = tuple((lists, n, o, s, last) for n, o, s in zip(given, out, scales))
    return _combine(op, "max" if lists is _nearest else "weighted", input, dims, axes, out)[0]
