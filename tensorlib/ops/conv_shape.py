"""Arguments of convolutions: sizes per dim, paddings, the phases of a transposed one. Numbers alone, no tensors."""

from math import gcd, prod
from typing import NamedTuple

from tensorlib.errors import ShapeError

LANES = 32  # output positions of a panel of the kernel for products

LEAST = 16  # output channels per group for which a GPU lays out the input of f16 and bf16 anew


class Window(NamedTuple):
    """How a convolution meets its input, per dim: output size, stride, padding before, dilation (may be negative)."""

    size: tuple
    stride: tuple
    padding: tuple
    dilation: tuple


def per_dim(op, name, value, dims, least):
    """`value` as a tuple of `dims` ints: an int stands for all. ShapeError below `least` or for another length."""
    found = (value,) * dims if isinstance(value, int) else tuple(value)
    found = found * dims if len(found) == 1 else found
    if len(found) != dims or not all(isinstance(v, int) and v >= least for v in found):
        expected = f"a number, or {dims} of them, of at least {least}"
        raise ShapeError(op, f"{name}={value!r}", expected, f"give {name} per dim, or one number for all")
    return found


def padding_of(op, padding, kernel, stride, dilation):
    """(before, in all) per dim."""
    if not isinstance(padding, str):
        before = per_dim(op, "padding", padding, len(kernel), 0)
        return before, tuple(2 * p for p in before)
    if padding not in ("same", "valid") or (padding == "same" and any(s != 1 for s in stride)):
        expected = '"valid", "same" at stride 1, or numbers'
        raise ShapeError(op, f"padding={padding!r} at stride {stride}", expected, "give the padding as numbers")
    total = tuple(d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel))
    return tuple(t // 2 for t in total), total


def deep(values, fill):
    """One value per dim of three: the dims that are missing get `fill`."""
    return (fill,) * (3 - len(values)) + tuple(values)


def phases(size, kernel, stride, padding, dilation):
    """Per phase r of one dim, what gives outputs r, r + stride, ...: (r, count, taps, padding, dilation).

    Output o sums input i times tap k where o = i stride - padding + k dilation. For o = r + stride q that is
    i = q + (r + padding - k dilation) / stride, for the taps k that divide evenly: every (stride / gcd)th.
    """
    step = stride // gcd(stride, dilation)
    for r in range(min(stride, size)):
        first = next((k for k in range(min(step, kernel)) if (r + padding - k * dilation) % stride == 0), kernel)
        before = -((r + padding - first * dilation) // stride)
        yield r, -(-(size - r) // stride), slice(first, None, step), before, -(step * dilation // stride)


def folds(batch, size):
    """Whether the positions of a batch's examples should share panels: of one example they would leave many empty."""
    positions = prod(size)
    return batch > 1 and 0 < positions < 8 * LANES and -(-positions // LANES) * LANES > 1.2 * positions


def filled_channels(channels, groups):
    """How many channels per group a GPU's kernel that reads 8 or 16 bytes at a time is given; 0: it is not for so few.

    >>> filled_channels(3, 1), filled_channels(12, 1), filled_channels(32, 2), filled_channels(12, 2)
    (4, 16, 32, 0)
    """
    if groups == 1:
        return 4 if channels <= 4 else -(-channels // 8) * 8
    return channels if channels % 8 == 0 and channels >= LEAST else 0
