"""New tensors: of one value, of a range, from Python numbers. `cls` is the class to make: an Array or Tensor.

No NumPy: values are packed by `dtype.pack`.
"""

import math

from tensorlib import backend
from tensorlib import dtype as _dtype
from tensorlib.device import CPU, Array, Device
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.ops._launch import fill
from tensorlib.ops.movement import diagonal, sizes
from tensorlib.registry import FUNCTIONS

made = Array  # what ops without an operand make; tensor.py sets it to Tensor


def _device(device):
    return CPU if device is None else Device(device)


def empty(cls, *shape, dtype=None, device=None):
    """Uninitialised; f32 unless dtype says otherwise."""
    shape = sizes(shape)
    if any(s < 0 for s in shape):
        raise ShapeError("empty", f"shape {shape}", "sizes of 0 or more", "remove the negative size")
    return cls.empty(shape, _dtype.get(dtype or _dtype.f32), _device(device))


def full(cls, shape, value, dtype=None, device=None):
    """Every element `value`; its dtype is the value's (bool, i64 or f32) unless given.

    >>> import tensorlib
    >>> tensorlib.full((2, 2), 7)
    tensor([[7, 7],
            [7, 7]])
    """
    shape = (shape,) if isinstance(shape, int) else shape
    return fill(empty(cls, shape, dtype=dtype or _dtype.of_scalar(value), device=device), value)


def zeros(cls, *shape, dtype=None, device=None):
    """Every element 0."""
    return fill(empty(cls, *shape, dtype=dtype, device=device), 0)


FUNCTIONS["zeros_of"] = lambda cls, shape, dtype, device: zeros(cls, shape, dtype=dtype, device=device)


def ones(cls, *shape, dtype=None, device=None):
    """Every element 1."""
    return fill(empty(cls, *shape, dtype=dtype, device=device), 1)


def arange(cls, start, end=None, step=1, dtype=None, device=None):
    """start, start + step, ... below `end` (above it, for a negative step); arange(n) starts at 0. i64, or f32 for
    floats.

    >>> import tensorlib
    >>> tensorlib.arange(5), tensorlib.arange(1, 0, -0.25)
    (tensor([0, 1, 2, 3, 4]), tensor([1.0000, 0.7500, 0.5000, 0.2500]))
    """
    start, end = (0, start) if end is None else (start, end)
    whole = all(isinstance(v, int) for v in (start, end, step))
    if step == 0:
        raise ShapeError("arange", "step 0", "a step other than 0", "give a step")
    n = len(range(start, end, step)) if whole else max(0, math.ceil((end - start) / step))
    out = empty(cls, (n,), dtype=dtype or (_dtype.i64 if whole else _dtype.f32), device=device)
    return _ramp(out, start, step)


def linspace(cls, start, end, steps, dtype=None, device=None):
    """`steps` numbers evenly spaced from start to end, both included."""
    out = empty(cls, (steps,), dtype=dtype, device=device)
    return _ramp(out, float(start), (end - start) / (steps - 1) if steps > 1 else 0.0)


def _ramp(out, start, step):
    if out.numel():
        whole = out.dtype.kind in "bui"
        kernel = backend.kernel("index", "arange", "i64" if whole else "f64", out.dtype.name, device=out.device.type)
        words = [out.ptr, out.numel(), *((int(start), int(step)) if whole else (float(start), float(step)))]
        backend.launch(kernel, words, work=out.numel(), writes=(out,))
    return out


def eye(cls, n, m=None, dtype=None, device=None):
    """n x m (n x n) with ones on the diagonal."""
    out = zeros(cls, n, n if m is None else m, dtype=dtype, device=device)
    fill(diagonal(out), 1)
    return out


def tensor(cls, data, dtype=None, device=None):
    """A new tensor from a number, nested lists of numbers, or anything that gives its elements with `tolist()`; a copy.

    bool, i64 or f32 by the elements, unless dtype is given. Raises ShapeError for ragged lists, DTypeError for what are
    not numbers or do not fit.

    >>> import tensorlib
    >>> tensorlib.tensor([[1, 2.5], [3, 4]])
    tensor([[1.0000, 2.5000],
            [3.0000, 4.0000]])
    """
    shape, flat = _flatten(data)
    if dtype is None:
        kinds = {type(v) for v in flat}
        dtype = next((_dtype.of_scalar(k()) for k in (float, int, bool) if k in kinds), _dtype.f32)
    dtype = _dtype.get(dtype)
    out = empty(cls, shape, dtype=dtype, device=device)
    if flat:
        data = _dtype.pack(_in_kind(flat, dtype), dtype)
        out.buffer.write(out.ptr, data)
    return out


def _in_kind(values, dtype):
    if dtype.kind == "b":
        return [bool(v) for v in values]
    return values if dtype.kind == "f" else [int(v) for v in values]


def _flatten(data):
    """(shape, flat list of Python numbers)"""
    if not isinstance(data, (list, tuple)):
        data = data.tolist() if hasattr(data, "tolist") else data
        if not isinstance(data, list):
            if not isinstance(data, (bool, int, float)):
                raise DTypeError(
                    "tensor", f"a {type(data).__name__}", "numbers or nested lists of them", "convert it first"
                )
            return (), [data]
    parts = [_flatten(v) for v in data]
    shapes = {shape for shape, _ in parts}
    if len(shapes) > 1:
        fix = "make all lists of one level equally long"
        raise ShapeError("tensor", f"lists of shapes {sorted(shapes)}", "one shape", fix)
    return (len(data), *(shapes.pop() if shapes else ())), [v for _, values in parts for v in values]
