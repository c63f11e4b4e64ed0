"""Products with weights of floats of 4 or 8 bits on the CPU (kernels_numba/quant_float.py): activations stay f32.

Nothing is rounded but by the sums, whose order depends on K alone.
"""

from tensorlib import backend
from tensorlib.device import Array
from tensorlib.ops import movement
from tensorlib.quant import source

# stride -> up to so many rows of activations meet weights as they are unpacked, by narrow and by wide vectors (Zen 5)
MATVEC_ROWS = {8: (7, 24), 2: (12, 16)}
ROWS = 512  # of activations that meet weights while these are unpacked
DEPTH = 768  # weights of a row unpacked at a time at most, as of dense weights; GROUP: columns of those
GROUP = 128


def _kernel(name, weight):
    text, key = (lambda: source.source(weight.format)), source.key(weight.format)
    return backend.kernel("quant_float", name, weight.format.name, source=text, source_key=key)


def arranged(weight, x, rows, k):
    """Contiguous activations as the kernels of few rows take them, kept with x."""
    plan = backend.backend().quant
    stride = plan.STRIDES[weight.format.name]

    def arrange():
        made = Array.empty((rows * -(-k // plan.GROUP) * plan.ARRANGED_BYTES,), "u8", x.device)
        kernel = backend.kernel("quant_float", "arrange", stride)
        backend.launch(kernel, (x.ptr, 4 * k, k, rows, made.ptr), rows * k, (x,), (made,))
        return made

    return x.derived(("arranged", stride), arrange)


def linear(weight, x, out, residual, rows, n, k):
    """Contiguous x [rows, K] times a weight [N, K], transposed, plus residual, written to out."""
    cpu = backend.backend()
    if rows <= MATVEC_ROWS[cpu.quant.STRIDES[weight.format.name]][cpu.level == "avx512vnni"]:
        y, more = arranged(weight, x, rows, k), [] if residual is None else [residual]
        args = (weight.ptr, y.ptr, out.ptr, n, k, residual.ptr if more else 0, rows)
        backend.launch(_kernel("matvec", weight), args, 2 * rows * n * k, (weight, y, *more), (out,))
        return
    x, out, *more = (movement.reshape(a, (rows, -1)) for a in (x, out, residual) if a is not None)
    for start in range(0, rows, ROWS):
        some = min(ROWS, rows - start)
        _product(weight, *(movement.narrow(a, 0, start, some) for a in (x, out, *more)))


def _product(weight, x, out, residual=None):
    """The same of many rows."""
    (rows, k), n, threads = x.shape, weight.shape[0], backend.threads()
    blocks = -(-k // DEPTH)
    deep = -(-k // (128 * blocks)) * 128
    # tiles of x have up to 16 rows, and up to 8 bytes per row behind them; see kernels_numba/matmul.py
    size = 8192 + 4 * GROUP * (deep + 16 + (rows if blocks > 1 else 0))
    scratch = Array.empty((threads * size + 4 * (rows + 16) * (k + 8),), "u8", x.device)
    packed = scratch.ptr + threads * size
    kernel = backend.kernel("matmul", "pack", "f32", "f32")
    backend.launch(kernel, (x.ptr, packed, rows, k, k, 1, 0), rows * k, (x,), (scratch,))
    more = [] if residual is None else [residual]
    args = (weight.ptr, packed, out.ptr, n, k, residual.ptr if more else 0, rows, deep, GROUP)
    args += (scratch.ptr, size)
    backend.launch(_kernel("matmul", weight), args, 2 * rows * n * k, (weight, scratch, *more), (out, scratch))


def by_choice(weight, x, up):
    """`QTensor.by_choice` of one of these weights [E, N, K]."""
    return _kernel("experts", weight), arranged(weight, x, *x.shape), weight, up
