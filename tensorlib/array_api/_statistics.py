"""Statistics over axes, running sums, and the tests of whole arrays.

Sums and products of integers are int64, of unsigned ones uint64, and wrap; floats keep their dtype.
"""

from tensorlib import dtype as D
from tensorlib.array_api import _dtypes
from tensorlib.array_api._array import array
from tensorlib.array_api._elementwise import floats
from tensorlib.array_api._manipulation import _promoted, one_axis
from tensorlib.errors import ShapeError
from tensorlib.ops import create, elementwise, movement, reduce, scan


def _accumulator(op, x, dtype):
    """The dtype of sums and products of x."""
    if dtype is not None:
        return _dtypes.real(op, dtype)
    return {"u": D.u64, "i": D.i64, "b": D.i64}.get(x.dtype.kind, x.dtype)


def _accumulated(op, function, x, axis, dtype, keepdims):
    x = array(op, x)
    dtype = _accumulator(op, x, dtype)
    return function(elementwise.cast(x, dtype), axis, keepdims, dtype=dtype)


def sum(x, /, *, axis=None, dtype=None, keepdims=False):
    """Sum over axes (all for None), of elements converted to `dtype`; 0 for none. ShapeError, DTypeError.

    >>> from tensorlib import array_api as xp
    >>> xp.sum(xp.asarray([200, 100], dtype=xp.uint8))
    tensor(300, dtype=u64)
    """
    return _accumulated("sum", reduce.sum, x, axis, dtype, keepdims)


def prod(x, /, *, axis=None, dtype=None, keepdims=False):
    """Product over axes (all for None), of elements converted to `dtype`; 1 for none. ShapeError, DTypeError."""
    return _accumulated("prod", reduce.prod, x, axis, dtype, keepdims)


def _running(op, function, x, axis, dtype, include_initial, initial):
    x = array(op, x)
    if axis is None and x.ndim != 1:
        raise ShapeError(op, f"no axis for {x.ndim} dims", "an axis", "say which: axis=0")
    axis, dtype = one_axis(op, axis or 0, x.ndim), _accumulator(op, x, dtype)
    found = function(elementwise.cast(x, dtype), axis, dtype=dtype)
    if include_initial:
        shape = x.shape[:axis] + (1,) + x.shape[axis + 1 :]
        found = movement.cat([create.full(type(x), shape, initial, dtype=dtype), found], axis)
    return found


def cumulative_sum(x, /, *, axis=None, dtype=None, include_initial=False):
    """Running sums along an axis, which may be left out for a 1-d x; include_initial puts a 0 in front. ShapeError.

    >>> from tensorlib import array_api as xp
    >>> xp.cumulative_sum(xp.asarray([1, 2, 3]), include_initial=True)
    tensor([0, 1, 3, 6])
    """
    return _running("cumulative_sum", scan.cumsum, x, axis, dtype, include_initial, 0)


def cumulative_prod(x, /, *, axis=None, dtype=None, include_initial=False):
    """Running products along an axis, which may be left out for a 1-d x; include_initial puts a 1 in front."""
    return _running("cumulative_prod", scan.cumprod, x, axis, dtype, include_initial, 1)


def max(x, /, *, axis=None, keepdims=False):
    """Largest element over axes (all for None); NaN if there is one. ShapeError for no elements."""
    return reduce.amax(array("max", x), axis, keepdims)


def min(x, /, *, axis=None, keepdims=False):
    """Smallest element over axes (all for None); NaN if there is one. ShapeError for no elements."""
    return reduce.amin(array("min", x), axis, keepdims)


def mean(x, /, *, axis=None, keepdims=False):
    """Arithmetic mean over axes (all for None), in x's float dtype (float32 for integers); NaN for no elements."""
    return reduce.mean(floats(array("mean", x)), axis, keepdims)


def var(x, /, *, axis=None, correction=0.0, keepdims=False):
    """Variance over axes (all for None): sum (x - mean)^2 / (n - correction), in x's float dtype."""
    return reduce.var(floats(array("var", x)), axis, correction, keepdims)


def std(x, /, *, axis=None, correction=0.0, keepdims=False):
    """Square root of `var`."""
    return reduce.std(floats(array("std", x)), axis, correction, keepdims)


def all(x, /, *, axis=None, keepdims=False):
    """Whether no element over axes (all for None) is 0; true for none. NaN counts as true."""
    return reduce.all(array("all", x), axis, keepdims)


def any(x, /, *, axis=None, keepdims=False):
    """Whether an element over axes (all for None) is not 0; false for none. NaN counts as true."""
    return reduce.any(array("any", x), axis, keepdims)


def diff(x, /, *, axis=-1, n=1, prepend=None, append=None):
    """Differences of neighbours along an axis, n times over, after joining `prepend` and `append` to it. ShapeError.

    >>> from tensorlib import array_api as xp
    >>> xp.diff(xp.asarray([1, 4, 9]), prepend=xp.asarray([0]))
    tensor([1, 3, 5])
    """
    x = array("diff", x)
    axis = one_axis("diff", axis, x.ndim)
    parts = [part for part in (prepend, x, append) if part is not None]
    x = movement.cat(_promoted("diff", parts), axis) if len(parts) > 1 else x
    if n < 0:
        raise ShapeError("diff", f"n = {n}", "0 or more", "use cumulative_sum for the inverse")
    step = elementwise.logical_xor if x.dtype.kind == "b" else elementwise.sub
    for _ in range(n):
        m = x.shape[axis]
        if not m:
            break
        x = step(movement.narrow(x, axis, 1, m - 1), movement.narrow(x, axis, 0, m - 1))
    return x
