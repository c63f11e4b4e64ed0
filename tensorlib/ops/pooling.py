"""Pools and interpolation in one, two and three dims, with torch.nn.functional's arguments.

A plan turns a function's arguments into lists of input indices per dim, which `tensorlib.ops._tables` combines. Floats
only; f16 and bf16 are rounded once. All have gradients.
"""

from math import floor

from tensorlib.errors import ShapeError
from tensorlib.ops import _tables, pooling_rows
from tensorlib.ops._tables import apply, row
from tensorlib.ops.conv import per_dim

# ---- pools with a window --------------------------------------------------------------------------------------------


def _windows(op, dims, shape, kernel, stride, padding, dilation, ceil_mode, include_pad):
    """(axes, output size) of a pool with a window."""
    kernel = per_dim(op, "kernel_size", kernel, dims, 1)
    stride = kernel if stride is None or stride == () else per_dim(op, "stride", stride, dims, 1)
    padding, dilation = per_dim(op, "padding", padding, dims, 0), per_dim(op, "dilation", dilation, dims, 1)
    axes, out = [], []
    for n, k, s, p, d in zip(shape[-dims:], kernel, stride, padding, dilation):
        reach = d * (k - 1) + 1
        if p > reach // 2:
            raise ShapeError(op, f"padding {p} for a kernel of {reach}", "at most half of it", "use a smaller padding")
        count = (n + 2 * p - reach + (s - 1 if ceil_mode else 0)) // s + 1
        out.append(count - 1 if ceil_mode and (count - 1) * s >= n + p else count)
        if out[-1] < 1:
            got = f"shape {shape} and a kernel of {kernel}, which give a size of {out[-1]}"
            raise ShapeError(op, got, "a positive output size", "use a smaller kernel, or pad")
        axes.append((_tables.pool, n, out[-1], k, s, p, d, include_pad))
    return tuple(axes), tuple(out)


def _max_plan(op, dims, shape, kernel, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    axes, out = _windows(op, dims, shape, kernel, stride, padding, dilation, ceil_mode, None)
    return "indices" if return_indices else "largest", axes, out, 0


def _avg_plan(op, dims, shape, kernel, stride=None, padding=0, ceil_mode=False, include_pad=True, divisor=None):
    if divisor == 0:
        raise ShapeError(op, "divisor_override=0", "a number other than 0", "leave it out for the window's size")
    count = bool(include_pad) if divisor is None else None
    axes, out = _windows(op, dims, shape, kernel, stride, padding, 1, ceil_mode, count)
    return "avg", axes, out, divisor or 0


@row(_max_plan, 1, pooling_rows.max_domain(1))
def max_pool1d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """Largest of each window: (N, C, L) or (C, L) -> (..., L'). See `max_pool2d`."""
    arguments = kernel_size, stride, padding, dilation, ceil_mode, return_indices
    return apply("max_pool1d", 1, _max_plan, input, *arguments)


@row(_max_plan, 2, pooling_rows.max_domain(2))
def max_pool2d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """Largest of each window: (N, C, H, W) or (C, H, W) -> (..., H', W'); NaN if the window has one.

    stride is the kernel's size unless given; padding counts as -inf. ceil_mode lets the last window reach over the end.
    return_indices also gives where each maximum is in its H x W plane (i64). ShapeError, DTypeError.

    >>> from tensorlib.device import Array
    >>> max_pool2d(Array.empty((2, 3, 7, 7)), 3, 2, padding=1).shape
    (2, 3, 4, 4)
    """
    arguments = kernel_size, stride, padding, dilation, ceil_mode, return_indices
    return apply("max_pool2d", 2, _max_plan, input, *arguments)


@row(_max_plan, 3, pooling_rows.max_domain(3))
def max_pool3d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    """Largest of each window: (N, C, D, H, W) or (C, D, H, W) -> (..., D', H', W'). See `max_pool2d`."""
    arguments = kernel_size, stride, padding, dilation, ceil_mode, return_indices
    return apply("max_pool3d", 3, _max_plan, input, *arguments)


@row(_avg_plan, 1, pooling_rows.avg_domain(1))
def avg_pool1d(input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
    """Mean of each window: (N, C, L) or (C, L) -> (..., L'). See `avg_pool2d`."""
    arguments = kernel_size, stride, padding, ceil_mode, count_include_pad
    return apply("avg_pool1d", 1, _avg_plan, input, *arguments)


@row(_avg_plan, 2, pooling_rows.avg_domain(2))
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
    arguments = kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    return apply("avg_pool2d", 2, _avg_plan, input, *arguments)


@row(_avg_plan, 3, pooling_rows.avg_domain(3))
def avg_pool3d(
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):
    """Mean of each window: (N, C, D, H, W) or (C, D, H, W) -> (..., D', H', W'). See `avg_pool2d`."""
    arguments = kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
    return apply("avg_pool3d", 3, _avg_plan, input, *arguments)


# ---- adaptive pools -------------------------------------------------------------------------------------------------


def _adaptive_plan(op, dims, shape, output_size):
    size = shape[-dims:]
    wanted = (output_size,) * dims if isinstance(output_size, int) or output_size is None else tuple(output_size)
    if len(wanted) == dims:
        wanted = tuple(n if w is None else w for n, w in zip(size, wanted))
    out = per_dim(op, "output_size", wanted, dims, 0)
    return "avg", tuple((_tables.adaptive, n, o) for n, o in zip(size, out)), out, 0


def _adaptive_max_plan(op, dims, shape, output_size, return_indices=False):
    return "indices" if return_indices else "largest", *_adaptive_plan(op, dims, shape, output_size)[1:]


@row(_adaptive_plan, 1, pooling_rows.adaptive_domain(1))
def adaptive_avg_pool1d(input, output_size):
    """Means of `output_size` even parts of the last dim: (N, C, L) or (C, L). See `adaptive_avg_pool2d`."""
    return apply("adaptive_avg_pool1d", 1, _adaptive_plan, input, output_size)


@row(_adaptive_plan, 2, pooling_rows.adaptive_domain(2))
def adaptive_avg_pool2d(input, output_size):
    """Means of even parts: (N, C, H, W) or (C, H, W) -> (..., *output_size); a None keeps a dim's size.

    Part i of n of a dim of size s is i s // n ... ceil((i + 1) s / n). ShapeError, DTypeError.

    >>> from tensorlib.device import Array
    >>> adaptive_avg_pool2d(Array.empty((2, 3, 7, 5)), (1, None)).shape
    (2, 3, 1, 5)
    """
    return apply("adaptive_avg_pool2d", 2, _adaptive_plan, input, output_size)


@row(_adaptive_plan, 3, pooling_rows.adaptive_domain(3))
def adaptive_avg_pool3d(input, output_size):
    """Means of even parts of the last three dims. See `adaptive_avg_pool2d`."""
    return apply("adaptive_avg_pool3d", 3, _adaptive_plan, input, output_size)


@row(_adaptive_max_plan, 1, pooling_rows.adaptive_domain(1, True))
def adaptive_max_pool1d(input, output_size, return_indices=False):
    """Maxima of even parts of the last dim, and where they are. See `adaptive_avg_pool2d`, `max_pool2d`."""
    return apply("adaptive_max_pool1d", 1, _adaptive_max_plan, input, output_size, return_indices)


@row(_adaptive_max_plan, 2, pooling_rows.adaptive_domain(2, True))
def adaptive_max_pool2d(input, output_size, return_indices=False):
    """Maxima of even parts of the last two dims, and where they are. See `adaptive_avg_pool2d`, `max_pool2d`."""
    return apply("adaptive_max_pool2d", 2, _adaptive_max_plan, input, output_size, return_indices)


@row(_adaptive_max_plan, 3, pooling_rows.adaptive_domain(3, True))
def adaptive_max_pool3d(input, output_size, return_indices=False):
    """Maxima of even parts of the last three dims, and where they are. See `adaptive_avg_pool2d`, `max_pool2d`."""
    return apply("adaptive_max_pool3d", 3, _adaptive_max_plan, input, output_size, return_indices)


# ---- interpolation --------------------------------------------------------------------------------------------------

MODES = {"nearest": (1, 2, 3), "nearest-exact": (1, 2, 3), "area": (1, 2, 3)}
MODES |= {"linear": (1,), "bilinear": (2,), "trilinear": (3,), "bicubic": (2,)}


def _dims(shape, mode, align_corners):
    """How many dims are resized. ShapeError for a mode that does not fit."""
    op, dims = "interpolate", len(shape) - 2
    if dims not in MODES.get(mode, ()):
        got = f"mode={mode!r} and shape {shape}"
        raise ShapeError(op, got, f"(N, C, ...) and one of {', '.join(MODES)}", "linear modes go by the number of dims")
    if align_corners is not None and "linear" not in mode and mode != "bicubic":
        raise ShapeError(op, f"align_corners with mode {mode!r}", "a linear or cubic mode", "leave align_corners out")
    return dims


def _resized(op, given, size, scale_factor, recompute):
    """(output size, scale per dim)"""
    dims = len(given)
    if (size is None) == (scale_factor is None):
        raise ShapeError(op, f"size={size}, scale_factor={scale_factor}", "one of the two", "give size or scale_factor")
    if size is not None:
        out = per_dim(op, "size", size, dims, 1)
        return out, [n / o for n, o in zip(given, out)]
    factors = (scale_factor,) * dims if isinstance(scale_factor, (int, float)) else tuple(scale_factor)
    if len(factors) != dims:
        raise ShapeError(op, f"scale_factor={scale_factor}", f"a number, or {dims} of them", "give one number for all")
    out = tuple(floor(n * f) for n, f in zip(given, factors))
    out = per_dim(op, f"size (by scale_factor={scale_factor})", out, dims, 1)
    return out, [n / o for n, o in zip(given, out)] if recompute else [1 / f for f in factors]


def _interpolate_plan(op, dims, shape, size=None, scale_factor=None, mode="nearest", align=None, recompute=None):
    given = shape[2:]
    out, scales = _resized(op, given, size, scale_factor, recompute)
    if mode == "area":
        return _adaptive_plan(op, len(given), shape, out)
    kernel, lists, last = "weighted", (_tables.cubic if mode == "bicubic" else _tables.linear), bool(align)
    if mode.startswith("nearest"):
        kernel, lists, last = "nearest", _tables.nearest, mode == "nearest-exact"
    return kernel, tuple((lists, n, o, s, last) for n, o, s in zip(given, out, scales)), out, 0


@row(_interpolate_plan, None, pooling_rows.interpolate_domain)
def interpolate(input, size=None, scale_factor=None, mode="nearest", align_corners=None, recompute_scale_factor=None):
    """Resizes the dims behind (N, C): to `size`, or by `scale_factor` (each one number, or one per dim).

    Modes: nearest, nearest-exact, area (adaptive mean); linear (one dim), bilinear and bicubic (two), trilinear
    (three), where align_corners makes the corners' centres meet. Without recompute_scale_factor a scale_factor is used
    as given, not as the ratio of the sizes. ShapeError, DTypeError.

    >>> from tensorlib.device import Array
    >>> interpolate(Array.empty((1, 3, 4, 5)), scale_factor=2, mode="bilinear").shape
    (1, 3, 8, 10)
    """
    dims = _dims(input.shape, mode, align_corners)
    arguments = size, scale_factor, mode, align_corners, recompute_scale_factor
    return apply("interpolate", dims, _interpolate_plan, input, *arguments)
