"""Gradients of a convolution's weights by a kernel of their own (kernels_numba/conv_weight.py), on CPUs."""

from math import prod

from tensorlib import backend, tape
from tensorlib.device import Array
from tensorlib.ops import movement

FLOATS = ("f32", "f16", "bf16")
FEW = 8  # channels per group below which vectors of 16 are too empty
SUMS = 1 << 18  # bytes of unfinished sums per thread: a quarter of an L2
CHUNK = 256  # positions at a time: 32 columns of them fill two thirds of a core's L1


def fits(x, g, shape):
    """Whether the kernel takes them, and nobody wants to differentiate the result again."""
    return (
        not tape.mode.recording
        and x.device.type == "cpu"
        and x.dtype is g.dtype
        and x.dtype.name in FLOATS
        and len(shape) < 5
        and shape[1] >= FEW
        and 0 not in shape
    )


def _flat(values, fill):
    """One value per dim of two."""
    return (fill,) * (2 - len(values)) + tuple(values)


def weight_gradient(x, g, shape, stride, padding, dilation, groups):
    """dw (f32) of `shape` (O, C / groups, ...) from x (N, C, ...) and g (N, O, ...), see conv_rows.py."""
    (kh, kw), (down, right), before, (d_h, d_w) = (
        _flat(v, fill) for v, fill in ((shape[2:], 1), (stride, 1), (padding, 0), (dilation, 1))
    )
    if x.ndim == 3:
        x, g = movement.unsqueeze(x, 2), movement.unsqueeze(g, 2)
    g = movement.contiguous(g)
    (n, _, height, width), (lines, columns) = x.shape, g.shape[2:]
    outputs, channels = shape[0] // groups, shape[1]
    rows, wide = (lines - 1) * down + (kh - 1) * d_h + 1, (columns - 1) * right + (kw - 1) * d_w + 1
    last = Array.empty((n, groups, -(-channels // 16), rows, wide, 16), "f32", x.device)
    words = [x.ptr, last.ptr, n, groups, channels, *x.strides, height, width, *before, rows, wide]
    kernel = backend.kernel("conv_weight", "last", x.dtype.name, device=x.device.type)
    backend.launch(kernel, words, last.numel(), (x,), (last,))
    matrix = lines * columns
    packed = Array.empty((n * groups * (outputs + 16) * (matrix + 8),), "f32", x.device)
    kernel = backend.kernel("matmul", "pack", g.dtype.name, "f32", device=g.device.type)
    words = [g.ptr, packed.ptr, outputs, matrix, matrix, 1, 1, n * groups, outputs * matrix]
    backend.launch(kernel, words, g.numel(), (g,), (packed,))
    out, threads = type(x).empty(shape, "f32", x.device), backend.threads(x.device.type)
    panel = (outputs + 16) * 32 * 4
    together = max(1, SUMS // panel)
    per_thread = together * panel
    scratch = Array.empty((threads * per_thread,), "u8", x.device)
    chunk = max(1, min(lines, CHUNK // columns))
    images = max(1, CHUNK // matrix) if chunk == lines else 1
    words = [packed.ptr, last.ptr, out.ptr, n, groups, outputs, channels, lines, columns, kh, kw, down, right, d_h, d_w]
    words += [rows, wide, chunk, images, scratch.ptr, per_thread, threads, together]
    kernel = backend.kernel("conv_weight", "weight", device=x.device.type)
    backend.launch(kernel, words, g.numel() * prod(shape[1:]) // 8, (packed, last), (out, scratch))
    return out
