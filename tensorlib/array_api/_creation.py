"""Arrays from Python values, from other arrays, from a size.

The default dtypes are int64, float32 (the library's own) and bool.
"""

from math import ceil

from tensorlib import device as _device
from tensorlib import dtype as D
from tensorlib.array_api import _dtypes
from tensorlib.array_api._array import NDArray, array, on, wrap
from tensorlib.errors import DeviceError, DTypeError, ShapeError
from tensorlib.ops import create, elementwise, exchange, index, movement


def _shape(shape):
    return movement.sizes(shape if isinstance(shape, (tuple, list)) and not shape else (shape,))


def _number(op, value):
    """A Python number; a complex one without imaginary part is the float that it equals. DTypeError for others."""
    if isinstance(value, complex):
        if value.imag:
            got = f"the complex number {value}"
            raise DTypeError(op, got, "a real number: complex numbers are not implemented", "use its .real and .imag")
        return value.real
    if isinstance(value, (bool, int, float)):
        return value
    raise DTypeError(op, f"a {type(value).__name__}", "a Python bool, int or float", "convert it first")


def _fitting(op, values, dtype):
    """Refuses integers that `dtype` cannot hold: OverflowError, as Python raises it."""
    low, high = D.info(dtype)
    if dtype.kind in "ui":
        for v in values:
            if isinstance(v, int) and not low <= v <= high:
                raise OverflowError(f"{op}: got the integer {v}; expected {low} to {high} for {dtype}")


def _numbers(obj):
    """Nested sequences with complex numbers turned into what they equal; whether there is an array in them."""
    if isinstance(obj, (list, tuple)):
        found = [_numbers(v) for v in obj]
        return [v for v, _ in found], any(has for _, has in found)
    if isinstance(obj, _device.Array):
        return obj, True
    return (obj if hasattr(obj, "tolist") else _number("asarray", obj)), False


def _joined(obj):
    """Nested sequences of arrays (and numbers) as one array."""
    parts = [_joined(v) if isinstance(v, list) else asarray(v) for v in obj]
    dtype = _dtypes.result_type(*[x.dtype for x in parts])
    return movement.stack([elementwise.cast(x, dtype) for x in parts])


def _from_python(obj, dtype, device):
    obj, has_arrays = _numbers(obj)
    if has_arrays:
        x = _joined(obj)
        return x if dtype is None else elementwise.cast(x, dtype)
    _, flat = create._flatten(obj)
    if dtype is None:
        dtype = next((D.of_scalar(k()) for k in (float, int, bool) if any(type(v) is k for v in flat)), D.f32)
    _fitting("asarray", flat, dtype)
    return create.tensor(NDArray, obj, dtype, device)


def asarray(obj, /, *, dtype=None, device=None, copy=None):
    """An array of a number, nested sequences of them, or another array (anything with DLPack or the buffer protocol).

    Memory is shared where possible, unless copy=True; with copy=False it must be (ShapeError otherwise, a ValueError).
    Numbers give bool, int64 or float32 unless dtype says otherwise. DTypeError, OverflowError.

    >>> from tensorlib import array_api as xp
    >>> xp.asarray([[1, 2], [3, 4]], dtype=xp.float64)
    tensor([[1., 2.],
            [3., 4.]], dtype=f64)
    """
    dtype, device = dtype if dtype is None else _dtypes.real("asarray", dtype), on(device)
    shared = True
    if isinstance(obj, _device.Array):
        x = wrap(obj)
    elif hasattr(obj, "__dlpack__") and not hasattr(obj, "__array_interface__"):
        x = exchange.from_dlpack(NDArray, obj)
    elif hasattr(obj, "__array_interface__") or isinstance(obj, (bytes, bytearray, memoryview)):
        x = exchange.from_numpy(NDArray, obj if hasattr(obj, "shape") else memoryview(obj))
    elif _has_buffer(obj):
        x = exchange.from_numpy(NDArray, memoryview(obj))
    else:
        x, shared = _from_python(obj, dtype, device), False
    dtype = _dtypes.real("asarray", x.dtype) if dtype is None else dtype
    if copy is False and (not shared or x.dtype is not dtype):
        raise ShapeError("asarray", f"copy=False of a {type(obj).__name__}", "memory to share", "leave copy out")
    return elementwise.cast(x, dtype, bool(copy) and shared)


def _has_buffer(obj):
    try:
        memoryview(obj).release()
    except TypeError:
        return False
    return True


def from_dlpack(x, /, *, device=None, copy=None):
    """An array over the memory of anything with `__dlpack__` on the CPU, or a copy for copy=True. BufferError.

    >>> from tensorlib import array_api as xp
    >>> xp.from_dlpack(xp.asarray([1, 2]), copy=True)
    tensor([1, 2])
    """
    try:
        on(device)
        found = exchange.from_dlpack(NDArray, x)
    except (DeviceError, DTypeError) as e:
        raise BufferError(str(e)) from e
    return movement.clone(found) if copy else found


# ---- from a size -----------------------------------------------------------------------------------------------------


def empty(shape, *, dtype=None, device=None):
    """Uninitialised; float32 unless dtype says otherwise. ShapeError, DTypeError."""
    dtype = D.f32 if dtype is None else _dtypes.real("empty", dtype)
    return create.empty(NDArray, _shape(shape), dtype=dtype, device=on(device))


def full(shape, fill_value, *, dtype=None, device=None):
    """Every element `fill_value`; its dtype is the value's (bool, int64 or float32) unless given. OverflowError.

    >>> from tensorlib import array_api as xp
    >>> xp.full(2, True)
    tensor([True, True])
    """
    value = _number("full", fill_value.item() if isinstance(fill_value, _device.Array) else fill_value)
    dtype = D.of_scalar(value) if dtype is None else _dtypes.real("full", dtype)
    _fitting("full", [value], dtype)
    return create.fill(empty(shape, dtype=dtype, device=device), value)


def zeros(shape, *, dtype=None, device=None):
    """Every element 0; float32 unless dtype says otherwise."""
    return create.fill(empty(shape, dtype=dtype, device=device), 0)


def ones(shape, *, dtype=None, device=None):
    """Every element 1; float32 unless dtype says otherwise."""
    return create.fill(empty(shape, dtype=dtype, device=device), 1)


def empty_like(x, /, *, dtype=None, device=None):
    """`empty` of x's shape, and its dtype unless given."""
    return empty(x.shape, dtype=x.dtype if dtype is None else dtype, device=device)


def full_like(x, /, fill_value, *, dtype=None, device=None):
    """`full` of x's shape, and its dtype unless given."""
    return full(x.shape, fill_value, dtype=x.dtype if dtype is None else dtype, device=device)


def zeros_like(x, /, *, dtype=None, device=None):
    """`zeros` of x's shape, and its dtype unless given."""
    return zeros(x.shape, dtype=x.dtype if dtype is None else dtype, device=device)


def ones_like(x, /, *, dtype=None, device=None):
    """`ones` of x's shape, and its dtype unless given."""
    return ones(x.shape, dtype=x.dtype if dtype is None else dtype, device=device)


def arange(start, /, stop=None, step=1, *, dtype=None, device=None):
    """start, start + step, ... below `stop` (above it for a negative step); arange(n) starts at 0. int64, or float32 if
    a number is a float. ShapeError for step 0.

    >>> from tensorlib import array_api as xp
    >>> xp.arange(3), xp.arange(1, 0, -0.5)
    (tensor([0, 1, 2]), tensor([1.0000, 0.5000]))
    """
    start, stop = (0, start) if stop is None else (start, stop)
    start, stop, step = (_number("arange", v) for v in (start, stop, step))
    if step == 0:
        raise ShapeError("arange", "step 0", "a step other than 0", "give a step")
    whole = not any(isinstance(v, float) for v in (start, stop, step))
    n = len(range(start, stop, step)) if whole else max(0, ceil((stop - start) / step))
    dtype = (D.i64 if whole else D.f32) if dtype is None else _dtypes.real("arange", dtype)
    if whole and n:
        _fitting("arange", [start, start + (n - 1) * step], dtype)
    if whole and dtype.kind in "ui":
        start, step = ((v + (1 << 63)) % (1 << 64) - (1 << 63) for v in (start, step))
    return create._ramp(empty(n, dtype=dtype, device=device), start, step)


def linspace(start, stop, /, num, *, dtype=None, device=None, endpoint=True):
    """`num` numbers evenly spaced from start to stop, which is the last one unless endpoint=False. float32 unless dtype
    says otherwise; computed in f64. ShapeError for a negative `num`.

    >>> from tensorlib import array_api as xp
    >>> xp.linspace(0, 1, 5), xp.linspace(0, 1, 2, endpoint=False)
    (tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000]), tensor([0.0000, 0.5000]))
    """
    dtype = D.f32 if dtype is None else _dtypes.real("linspace", dtype)
    start, stop = (_number("linspace", v) for v in (start, stop))
    out = empty(num, dtype=D.f64, device=device)
    intervals, part = max(num - 1 if endpoint else num, 1), 1
    if abs(stop - start) == float("inf"):  # beyond the largest float: in quarters
        part = 4
    create._ramp(out, start / part, (stop / part - start / part) / intervals)
    out = elementwise.cast(elementwise.mul(out, part) if part > 1 else out, dtype)
    if num > 1 and endpoint:
        create.fill(movement.select(out, 0, -1), stop)
    return out


def eye(n_rows, n_cols=None, /, *, k=0, dtype=None, device=None):
    """n_rows x n_cols (x n_rows) with ones on diagonal k: above the main one for k > 0, below it for k < 0.

    >>> from tensorlib import array_api as xp
    >>> xp.eye(2, 3, k=1)
    tensor([[0., 1., 0.],
            [0., 0., 1.]])
    """
    n_cols = n_rows if n_cols is None else n_cols
    out = zeros((n_rows, n_cols), dtype=dtype, device=device)
    if -n_rows < k < n_cols:
        create.fill(movement.diagonal(out, k), 1)
    return out


# ---- from arrays -----------------------------------------------------------------------------------------------------


def meshgrid(*arrays, indexing="xy"):
    """Coordinates of a grid from 1-d arrays, one array each: a list. "xy" puts the second array's dim first, "ij" keeps
    the order. ShapeError for another `indexing` and for arrays that are not 1-d; DTypeError for different dtypes.

    >>> from tensorlib import array_api as xp
    >>> xp.meshgrid(xp.arange(2), xp.arange(3), indexing="ij")[1]
    tensor([[0, 1, 2],
            [0, 1, 2]])
    """
    if indexing not in ("xy", "ij"):
        raise ShapeError("meshgrid", f"indexing {indexing!r}", "'xy' or 'ij'", "use one of these")
    arrays = [array("meshgrid", x) for x in arrays]
    if any(x.ndim != 1 for x in arrays):
        raise ShapeError("meshgrid", f"shapes {[x.shape for x in arrays]}", "1-d arrays", "flatten them")
    if len({x.dtype for x in arrays}) > 1:
        raise DTypeError("meshgrid", f"dtypes {[x.dtype for x in arrays]}", "one dtype", "convert with astype")
    order = list(range(len(arrays)))
    if indexing == "xy" and len(arrays) > 1:
        order[:2] = [1, 0]
    shape = [0] * len(arrays)
    for x, d in zip(arrays, order, strict=True):
        shape[d] = x.shape[0]
    found = []
    for x, d in zip(arrays, order, strict=True):
        row = movement.reshape(x, [x.shape[0] if i == d else 1 for i in range(len(arrays))])
        found.append(movement.clone(movement.expand(row, shape)))
    return found


def tril(x, /, *, k=0):
    """The last two dims on and below diagonal k; 0 above it. ShapeError for fewer than 2 dims."""
    return index.tril(array("tril", x), k)


def triu(x, /, *, k=0):
    """The last two dims on and above diagonal k; 0 below it. ShapeError for fewer than 2 dims."""
    return index.triu(array("triu", x), k)
