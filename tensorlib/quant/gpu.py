"""Quantised weights on a GPU: blocks sorted into planes when they arrive there, and products with planes.

`layout` is kernels_triton/quant_layout.py: which formats have planes, and how packed activations are laid out. Formats
without planes stay blocks; their products dequantise some rows at a time.
"""

from math import prod

from tensorlib import backend
from tensorlib.device import Array, Device, transfer
from tensorlib.ops import decode, elementwise, movement, products
from tensorlib.ops._launch import cast, fill

MATVEC_ROWS = 8  # of activations: up to so many are quantised, and each weight meets them one by one
FUSED_ROWS = 128  # up to so many meet weights that are dequantised as they are read; beyond, once into memory
# scales may lie beyond what f16 holds: such weights are multiplied as f32
WIDE = ("mxfp4", "q8_k", "nf4_64", "nf4_32", "fp4_64", "fp4_32", "bnb8", "f8_128", "f8_32")
WIDE += ("a8_32w", "a4_32w", "a3_32w", "a2_32w", "a1_32w")
DENSE_BYTES = 256 << 20  # of weights that are dequantised at a time, at most
TILE = 256  # their rows at a time divide by this


def moved(weight, device):
    """A QTensor on another device; itself if it is there. GPUs hold planes where the format has them."""
    device = Device(device)
    if device is weight.device:
        return weight
    if weight.device.gpu is not None:
        there = _download(weight)
        return there if device.gpu is None else moved(there, device)
    blocks = Array.empty((weight.nbytes,), "u8", device)
    if weight.nbytes:
        device.gpu.upload(blocks.ptr, weight.ptr, weight.nbytes)
    layout = backend.backend(device.type).quant
    if weight.format.name not in layout.ROWS:
        made = type(weight)(blocks.buffer, 0, weight.shape, weight.format)
        if weight.nbytes and weight.format.table:  # its table goes there now: not while a graph records
            type(weight)(blocks.buffer, 0, (weight.format.elements,), weight.format).dequantize()
        return made
    decode.counters(device)  # now, since not while a graph records
    *planes, size = layout.places(weight.format.name, weight.blocks)
    out = Array.empty((size,), "u8", device)
    _permute(layout, weight, tuple(planes), blocks, out, False)
    return type(weight)(out.buffer, 0, weight.shape, weight.format, tuple(planes))


def rows_of(weight, start):
    """Where the planes of the rows from `start` on begin."""
    wide = backend.backend(weight.device.type).quant.widths(weight.format.name)
    first = start * (prod(weight.shape[1:]) // weight.format.elements)
    return tuple(plane + first * width for plane, width in zip(weight.planes, wide, strict=True))


def _download(weight):
    """The file's blocks of a QTensor on a GPU, on the CPU."""
    blocks, there = Array.empty((weight.nbytes,), "u8", weight.device), Array.empty((weight.nbytes,), "u8")
    if weight.planes is None:
        if weight.nbytes:
            weight.device.gpu.download(there.ptr, weight.ptr, weight.nbytes)
    else:
        _permute(backend.backend(weight.device.type).quant, weight, weight.planes, weight, blocks, True)
        transfer(there, blocks)
    return type(weight)(there.buffer, 0, weight.shape, weight.format)


def _permute(layout, weight, planes, x, out, back):
    """Blocks at x to planes at out, or back."""
    content, *width = layout.table(weight.format.name, planes, back)
    lines = Array.empty((len(content),), "u8", out.device)
    lines.buffer.write(lines.ptr, content)
    kernel = backend.kernel("quant_layout", "permute", device=out.device.type)
    args = (x.buffer.ptr, out.ptr, lines.ptr, weight.blocks, *width)
    backend.launch(kernel, args, 8 * weight.nbytes, (x, lines), (out,))


def linear(weight, x, residual):
    """x [..., K] times a weight [N, K] on a GPU, transposed, plus residual: [..., N] in x's dtype."""
    n, k = weight.shape
    x = movement.contiguous(x)
    rows = x.numel() // k if k else 0
    out = type(x).empty((*x.shape[:-1], n), x.dtype, x.device)
    if not out.numel():
        return out
    if not rows:
        return fill(out, 0) if residual is None else elementwise.add(residual, 0)
    if weight.planes is None or rows > FUSED_ROWS or (rows > MATVEC_ROWS and weight.format.name in WIDE):
        return _dense(weight, x, residual, out, rows)
    room, name, pack = ("quant", "matvec", _groups) if rows <= MATVEC_ROWS else ("quant_matmul", "matmul", _halves)
    y = x.derived(name, lambda: pack(x, rows, k))
    args = (*weight.where, *(a.ptr for a in y), out.ptr, n, k, residual.ptr if residual is not None else 0, rows)
    reads = (weight, *y) if residual is None else (weight, *y, residual)
    found = backend.kernel(room, name, weight.format.name, x.dtype.name, device=x.device.type)
    backend.launch(found, args, 2 * rows * n * k, reads, (out,))
    return out


def packed(x):
    """Up to 8 rows of contiguous activations in 8 bits: as somebody wrote them along with x, or by a launch."""
    return x.derived("matvec", lambda: _groups(x, x.numel() // x.shape[-1], x.shape[-1]))


def _groups(x, rows, k):
    """Activations in 8 bits: values, scales per 32, sums per 16."""
    y = [Array.empty((rows, k // step), dtype, x.device) for step, dtype in ((1, "i8"), (32, "f32"), (16, "i32"))]
    return _packed(x, rows, k, "quant", "quantize", y)


def _halves(x, rows, k):
    """Activations as f16, less a power of 2 per row."""
    y = [Array.empty((rows, k), "f16", x.device), Array.empty((rows, 1), "f32", x.device)]
    return _packed(x, rows, k, "quant_matmul", "halves", y)


def _packed(x, rows, k, room, name, y):
    kernel = backend.kernel(room, name, x.dtype.name, device=x.device.type)
    backend.launch(kernel, (x.ptr, *(a.ptr for a in y), k, rows), 4 * rows * k, (x,), y)
    return y


def _dense(weight, x, residual, out, rows):
    """The product with weights dequantised to what is multiplied, some of them at a time; sums are f32."""
    n, k = weight.shape
    if weight.format.name in WIDE:
        values, powers = cast(x, "f32"), None
    elif x.dtype.name == "f16":
        values, powers = x, None
    else:
        values, powers = x.derived("matmul", lambda: _halves(x, rows, k))
    values, flat = movement.reshape(values, (rows, k)), movement.reshape(out, (rows, n))
    act, powers = ("none", None) if powers is None else ("scaled", movement.reshape(powers, (rows,)))
    more = None if residual is None else movement.reshape(movement.contiguous(residual), (rows, n))
    slabs = -(-n * k * values.dtype.itemsize // DENSE_BYTES)
    step = -(-n // (slabs * TILE)) * TILE
    for start in range(0, n, step):
        some = weight.rows(start, min(step, n - start))
        dense = some.dequantize(values.dtype)
        dense = dense.view(dense.layout.transpose(0, 1))
        to, added = (None if y is None else movement.narrow(y, 1, start, some.shape[0]) for y in (flat, more))
        products.launch(to, values, dense, powers, act=act, residual=added)
    return out
