"""Between Arrays on the CPU and NumPy's LAPACK: what the functions of `tensorlib.ops.lapack` have in common."""

from tensorlib import backend
from tensorlib import dtype as _dtype
from tensorlib.errors import DTypeError, LinAlgError, NoKernel, ShapeError
from tensorlib.ops import exchange


def check(op, *operands, square=False):
    """Refuses operands that are not matrices, at least 2-d, of one of f32 and f64; the first square if asked for."""
    for x in operands:
        if x.ndim < 2:
            raise ShapeError(op, f"shape {x.shape}", "a matrix or a batch of them", "add dims with unsqueeze")
        if x.dtype is not operands[0].dtype:
            got = f"{operands[0].dtype} and {x.dtype}"
            raise DTypeError(op, got, "one dtype", "convert one operand with .to(dtype)")
        check_dtype(op, x)
    if square and operands[0].shape[-1] != operands[0].shape[-2]:
        raise ShapeError(op, f"shape {operands[0].shape}", "square matrices", "see lstsq, pinv and svd for others")


def check_dtype(op, x):
    """Refuses what is not f32 or f64, and captures: on the CPU none of this is a kernel, and on GPUs the host waits."""
    if x.dtype not in (_dtype.f32, _dtype.f64):
        raise DTypeError(op, f"dtype {x.dtype}", "f32 or f64", "convert with .to('f32') or .to('f64')")
    if backend.recorder() is not None:
        raise NoKernel(op, "a capture that records", "kernels of ours", "call it outside of the capture")


def array(op, x):
    """x, on the CPU, as a NumPy array over the same memory, to read."""
    check_dtype(op, x)
    shared = x.buffer.shared
    try:
        return exchange.numpy(x)
    finally:
        x.buffer.shared = shared  # the array is only read, and gone when the op returns


def matrices(op, *operands, square=False):
    """Operands as NumPy arrays, after `check`."""
    check(op, *operands, square=square)
    return [array(op, x) for x in operands]


def back(x, array):
    """A NumPy result that nobody else holds, as an Array of x's class."""
    import numpy as np

    out = exchange.from_numpy(type(x), np.asarray(array, order="C"))
    out.buffer.shared = False
    return out


def call(op, function, *arguments, fix="check the matrices for zeros, NaN and infinities", **keywords):
    """`function(...)`, with NumPy's LinAlgError as ours."""
    from numpy.linalg import LinAlgError as Failed

    try:
        return function(*arguments, **keywords)
    except Failed as e:
        raise LinAlgError(op, f"a matrix with this: {e}", "one that has a result", fix) from e


def tolerance(a, s, atol, rtol):
    """(...) from numbers, or Arrays of a shape that broadcasts with the batch."""
    import numpy as np

    atol, rtol = (exchange.numpy(v) if hasattr(v, "buffer") else v for v in (atol, rtol))
    default = max(a.shape[-2:]) * np.finfo(a.dtype).eps
    if rtol is None:
        rtol = default if atol is None else np.where(np.asarray(atol) > 0, 0.0, default)
    largest = s.max(-1, initial=0)
    return np.maximum(0.0 if atol is None else atol, rtol * largest)
