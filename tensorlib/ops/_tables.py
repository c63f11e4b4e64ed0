"""Outputs that combine, per dim, a list of input indices: what pools and interpolation are made of.

`pool`, `adaptive`, `nearest`, `linear` and `cubic` give the lists of one dim; one kernel (kernels_numba/pooling.py)
does the rest, on any strides, in f32, f16, bf16 (computing in f32), f64. Means and interpolation are linear: their
gradient is the same kernel with the transposed lists. That of a maximum goes to where it is; of equal ones to the
first.
"""

import struct
from array import array
from functools import lru_cache
from math import floor, prod

from tensorlib import backend, tape
from tensorlib.device import Array, Buffer
from tensorlib.dtype import i64
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.layout import contiguous
from tensorlib.ops import create, index, movement, pooling_rows, transfer
from tensorlib.ops.conv import FLOATS
from tensorlib.registry import FLOAT_ONLY, Op, define

# ---- the lists of one dim: per output index (divisor, indices, weights) ---------------------------------------------


def pool(size, out, kernel, stride, padding, dilation, include_pad):
    for o in range(out):
        start = o * stride - padding
        inside = [i for i in range(start, start + kernel * dilation, dilation) if 0 <= i < size]
        padded = min(start + kernel, size + padding) - start
        yield 1 if include_pad is None else padded if include_pad else len(inside), inside, ()


def adaptive(size, out):
    for o in range(out):
        inside = range(o * size // out, -(-(o + 1) * size // out))
        yield len(inside), inside, ()


def _f32(x):
    return struct.unpack("f", struct.pack("f", x))[0]


def nearest(size, out, scale, exact):
    for o in range(out):
        # in f32, as torch computes it: where the product is near an integer, that decides
        at = _f32(_f32(o + 0.5) * _f32(scale)) if exact else _f32(o * _f32(scale))
        yield 1, [min(floor(at), size - 1)], ()


def _source(o, size, out, scale, align_corners):
    """Where output o lies in the input."""
    if align_corners:
        return o * (size - 1) / (out - 1) if out > 1 else 0.0
    return scale * (o + 0.5) - 0.5


def linear(size, out, scale, align_corners):
    for o in range(out):
        at = max(_source(o, size, out, scale, align_corners), 0.0)
        i = min(floor(at), size - 1)
        part = min(at - i, 1.0)
        yield 1, [i, min(i + 1, size - 1)], (1 - part, part)


def cubic(size, out, scale, align_corners):
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


def _transposed(size, lists, *args):
    """Of one dim of `size`, for each of its elements the outputs that other lists send it to, and with what weights."""
    found = [([], []) for _ in range(size)]
    for o, (divisor, indices, weights) in enumerate(lists(*args)):
        for i, w in zip(indices, weights or [1 / divisor] * len(indices)):
            found[i][0].append(o)
            found[i][1].append(w)
    for outputs, weights in found:
        yield 1, outputs, weights


@lru_cache(512)
def _table(device, weighted, lists, *args):
    """(the table of one dim for the kernel, how many indices its rows have room for)"""
    rows = list(lists(*args))
    most, words = max((len(r[1]) for r in rows), default=1) or 1, array("q")
    for divisor, indices, weights in rows:
        spare = most - len(indices)
        words.extend([len(indices), divisor, *indices, *[0] * spare])
        if weighted:
            words.frombytes(struct.pack(f"{most}d", *weights, *[0.0] * spare))
    return transfer.to_device(Array(Buffer.of(words), contiguous((len(words),)), i64), device), most


def _launch(kernel, x, axes, size, divisor, indices=False):
    """A kernel over the last dims of x with the lists that `axes` gives per dim: (out, where maxima are or None)."""
    lead, layout = x.shape[: x.ndim - len(axes)], x.layout
    out = type(x).empty((*lead, *size), x.dtype, x.device)
    where = type(x).empty(out.shape, "i64", x.device) if indices else None
    if 0 in out.shape:
        return out, where
    while layout.ndim < len(axes) + 2:
        layout = layout.unsqueeze(0)
    while layout.ndim < 5:
        layout, axes, size = layout.unsqueeze(2), ((_single,), *axes), (1, *size)
    tables = [_table(x.device, kernel == "weighted", *a) for a in axes]
    threads, per_thread = backend.threads(x.device.type), -(-layout.shape[4] // 16) * 128
    scratch = Array.empty((threads * per_thread,), "u8", x.device)
    words = [x.ptr, out.ptr, *layout.shape[:2], *layout.strides, *layout.shape[3:], *size]
    words += [*(t.ptr for t, _ in tables), *(most for _, most in tables), where.ptr if indices else 0]
    words += [scratch.ptr, per_thread, threads, float(divisor)]
    found = backend.kernel("pooling", kernel, x.dtype.name, device=x.device.type)
    reads, writes = (x, *(t for t, _ in tables)), (out, scratch, *([where] if indices else []))
    backend.launch(found, words, out.numel() * 2 * max(most for _, most in tables), reads, writes)
    return out, where


def _combined_vjp(g, x_shape, axes, divisor):
    size = x_shape[-len(axes) :]
    back = tuple((_transposed, n, *axis) for n, axis in zip(size, axes))
    return _combine(g / divisor if divisor else g, "weighted", back, size)


def _combine(x, kernel, axes, size, divisor=0):
    """The linear map of the last dims of x that `axes` describe; kernel: "avg", "weighted" or, for lists of one, "max".

    divisor: of what the lists add up to, where they say 1 and it is not 0.
    """
    return _launch(kernel, x, axes, size, divisor)[0]


def _largest_vjp(g, x_shape, axes, out):
    lead, plane = x_shape[: -len(axes)], prod(x_shape[-len(axes) :])
    where, g = (movement.reshape(v, (*lead, prod(v.shape[len(lead) :]))) for v in (out[1], g[0]))
    whole = create.zeros(type(g), (*lead, plane), dtype=g.dtype, device=g.device)
    return movement.reshape(index.scatter_add(whole, -1, where, g), x_shape)


def _largest(x, axes, size):
    """(the largest element per output, where it is in its plane)"""
    return _launch("indices", x, axes, size, 0, True)


def _recorded(function, vjp):
    return tape.recorded(Op(function.__name__[1:], "conv", 1, FLOAT_ONLY, None, function.__doc__, None, vjp), function)


_combine, _largest = _recorded(_combine, {"x": _combined_vjp}), _recorded(_largest, {"x": _largest_vjp})


def apply(op, dims, plan, x, *arguments):
    """What (kernel, axes, size, divisor) = plan(op, dims, x.shape, *arguments) says."""
    _check(op, x, dims)
    kernel, axes, size, divisor = plan(op, dims, x.shape, *arguments)
    if kernel == "indices":
        return _largest(x, axes, size)
    if kernel == "largest":
        recorded = tape.mode.recording and tape.node_of(x) is not None
        return _largest(x, axes, size)[0] if recorded else _launch("max", x, axes, size, 0)[0]
    return _combine(x, "max" if kernel == "nearest" else kernel, axes, size, divisor)


def row(plan, dims, domain):
    """Decorator: the row of a function that does `apply` with this plan."""
    return define("composite", FLOAT_ONLY, pooling_rows.reference(plan, dims), domain=domain)


def _check(op, x, dims, lead=(1, 2)):
    if x.dtype.name not in FLOATS:
        raise DTypeError(op, x.dtype, f"one of {', '.join(FLOATS)}", "convert it with .to('f32')")
    if x.ndim - dims not in lead or 0 in x.shape[-dims:]:
        names = " or ".join(("(C, ...)", "(N, C, ...)")[n - 1] for n in lead)
        expected = f"{names} with {dims} dims of at least 1 behind"
        raise ShapeError(op, f"shape {x.shape}", expected, "reshape, or use the function for another number of dims")
    return x.shape[x.ndim - dims :]
