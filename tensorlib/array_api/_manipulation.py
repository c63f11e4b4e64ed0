"""Functions that change an array's shape, join arrays, or take elements out by index."""

from tensorlib import device as _device
from tensorlib import dtype as D
from tensorlib.array_api import _dtypes
from tensorlib.array_api._array import NDArray, OutOfBounds, array
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.layout import axes as _axes
from tensorlib.layout import broadcast_shapes
from tensorlib.ops import create, elementwise, index, movement, reduce, scan, sort


def one_axis(op, axis, ndim):
    """`axis` from 0 on. OutOfBounds if the array has no such axis; a 0-d array has none."""
    if not -ndim <= axis < ndim:
        got, expected = f"axis {axis} of {ndim} dims", f"an axis in [{-ndim}, {ndim - 1}]"
        raise OutOfBounds(op, got, expected, "count axes from 0, or backwards from -1")
    return axis % ndim


def own(found, x):
    """A result that is to have memory of its own: copied if it is a view of x."""
    return movement.clone(found) if found.buffer is x.buffer else found


def broadcast_arrays(*arrays):
    """Arrays expanded to the shape that they broadcast to, each in its own dtype: a list of views. ShapeError."""
    arrays = [array("broadcast_arrays", x) for x in arrays]
    shape = broadcast_shapes("broadcast_arrays", *(x.shape for x in arrays)) if arrays else ()
    return [movement.broadcast_to(x, shape) for x in arrays]


def broadcast_to(x, /, shape):
    """x expanded to `shape`: a view. ShapeError."""
    shape = movement.sizes((tuple(shape),))
    if any(n < 0 for n in shape):
        raise ShapeError("broadcast_to", f"shape {shape}", "sizes of 0 or more", "name every size")
    return movement.broadcast_to(array("broadcast_to", x), shape)


def _promoted(op, arrays):
    arrays = [array(op, x) for x in arrays]
    if not arrays:
        raise ShapeError(op, "no arrays", "at least one", "pass a list of arrays")
    dtype = _dtypes.result_type(*arrays)
    return [elementwise.cast(x, dtype) for x in arrays]


def concat(arrays, /, *, axis=0):
    """Arrays joined along an axis that they have (flattened for None), in the promoted dtype. ShapeError, DTypeError.

    >>> from tensorlib import array_api as xp
    >>> xp.concat([xp.asarray([[1]]), xp.asarray([[2, 3]])], axis=1)
    tensor([[1, 2, 3]])
    """
    arrays = _promoted("concat", arrays)
    if axis is None:
        arrays, axis = [movement.reshape(x, -1) for x in arrays], 0
    return movement.cat(arrays, one_axis("concat", axis, arrays[0].ndim))


def stack(arrays, /, *, axis=0):
    """Arrays of one shape joined along a new axis, in the promoted dtype. ShapeError, DTypeError."""
    arrays = _promoted("stack", arrays)
    return movement.stack(arrays, one_axis("stack", axis, arrays[0].ndim + 1))


def expand_dims(x, /, axis):
    """A new axis of size 1 at `axis`: a view. OutOfBounds (an IndexError)."""
    x = array("expand_dims", x)
    return movement.unsqueeze(x, one_axis("expand_dims", axis, x.ndim + 1))


def squeeze(x, /, axis):
    """Without the axis or axes named, whose size must be 1: a view. ShapeError (a ValueError).

    >>> from tensorlib import array_api as xp
    >>> xp.squeeze(xp.ones((1, 3, 1)), axis=(0, -1)).shape
    (3,)
    """
    x = array("squeeze", x)
    dims = [one_axis("squeeze", d, x.ndim) for d in (axis if isinstance(axis, (tuple, list)) else (axis,))]
    if any(x.shape[d] != 1 for d in dims):
        raise ShapeError("squeeze", f"axis {axis} of shape {x.shape}", "axes of size 1", "name others")
    return movement.squeeze(x, tuple(dims)) if dims else x


def flip(x, /, *, axis=None):
    """Axes (all for None) in reverse order: a view. ShapeError."""
    x = array("flip", x)
    return movement.flip(x, _axes("flip", axis, x.ndim))


def moveaxis(x, source, destination, /):
    """Axes moved to other places, the rest in order: a view. ShapeError."""
    return movement.movedim(array("moveaxis", x), source, destination)


def permute_dims(x, /, axes):
    """Axes in another order: a view. ShapeError unless each is named once."""
    return movement.permute(array("permute_dims", x), tuple(axes))


def matrix_transpose(x, /):
    """The last two axes swapped: a view. ShapeError for fewer than 2."""
    return array("matrix_transpose", x).mT


def reshape(x, /, shape, *, copy=None):
    """The same elements in row-major order in another shape; one size may be -1. A view where possible; copy=True
    always copies, copy=False never does: ShapeError (a ValueError) where a copy is needed.
    """
    x, shape = array("reshape", x), (shape,) if isinstance(shape, int) else tuple(shape)
    if copy is False:
        return movement.view(x, *shape) if shape else movement.view(x, ())
    found = movement.reshape(x, *shape) if shape else movement.reshape(x, ())
    return own(found, x) if copy else found


def roll(x, /, shift, *, axis=None):
    """Elements moved along axes (through the flattened array for None), those that fall off coming in at the other end;
    one shift may serve several axes. ShapeError.

    >>> from tensorlib import array_api as xp
    >>> xp.roll(xp.arange(4), 1)
    tensor([3, 0, 1, 2])
    """
    x = array("roll", x)
    if isinstance(axis, (tuple, list)) and isinstance(shift, int):
        shift = (shift,) * len(axis)
    if axis is None and isinstance(shift, (tuple, list)):
        raise ShapeError("roll", f"shifts {shift} without axes", "an axis for each shift", "name the axes")
    return own(movement.roll(x, shift, axis), x)


def repeat(x, repeats, /, *, axis=None):
    """Each element of an axis (of the flattened array for None) `repeats` times in a row; an integer, or a 1-d array of
    them with one for each element. ShapeError, DTypeError.

    >>> from tensorlib import array_api as xp
    >>> xp.repeat(xp.asarray([1, 2]), xp.asarray([3, 1]))
    tensor([1, 1, 1, 2])
    """
    x = array("repeat", x)
    x, axis = (movement.reshape(x, -1), 0) if axis is None else (x, one_axis("repeat", axis, x.ndim))
    if not isinstance(repeats, _device.Array):
        repeats = create.full(NDArray, (1,), repeats)
    if repeats.dtype.kind not in "ui":
        raise DTypeError("repeat", f"repeats of dtype {repeats.dtype}", "integers", "convert with astype")
    counts = movement.broadcast_to(elementwise.cast(repeats, D.i64), (x.shape[axis],))
    if counts.numel() and reduce.amin(counts).item() < 0:
        raise ShapeError("repeat", "repeats below 0", "0 or more", "clip them")
    ends = scan.cumsum(counts, 0)
    total = ends[-1].item() if counts.numel() else 0
    places = sort.searchsorted(ends, create.arange(type(x), total), right=True)
    return index.index_select(x, axis, places)


def tile(x, repetitions, /):
    """Copies of x along each axis; missing counts and missing axes are 1, on the left. ShapeError."""
    x, counts = array("tile", x), tuple(repetitions)
    return own(movement.repeat(x, (1,) * (x.ndim - len(counts)) + counts), x)


def unstack(x, /, *, axis=0):
    """The elements of an axis as a tuple of views without it. OutOfBounds (a ShapeError)."""
    x = array("unstack", x)
    return movement.unbind(x, one_axis("unstack", axis, x.ndim))


# ---- by index --------------------------------------------------------------------------------------------------------


def take(x, indices, /, *, axis=None):
    """Elements `indices` (1-d integers) of an axis, which may be left out for a 1-d x: a copy. ShapeError, DTypeError.

    >>> from tensorlib import array_api as xp
    >>> xp.take(xp.asarray([5, 6, 7]), xp.asarray([2, 0]))
    tensor([7, 5])
    """
    x = array("take", x)
    if axis is None and x.ndim != 1:
        raise ShapeError("take", f"no axis for {x.ndim} dims", "an axis", "say which: axis=0")
    return index.index_select(x, one_axis("take", axis or 0, x.ndim), array("take", indices))


def take_along_axis(x, indices, /, *, axis=-1):
    """out[i, j] = x[indices[i, j], j] for axis 0, and so on; the other axes broadcast. ShapeError, DTypeError.

    >>> from tensorlib import array_api as xp
    >>> xp.take_along_axis(xp.asarray([[5, 6], [7, 8]]), xp.asarray([[1], [0]]), axis=1)
    tensor([[6],
            [7]])
    """
    x, ids = array("take_along_axis", x), array("take_along_axis", indices)
    axis = one_axis("take_along_axis", axis, x.ndim)
    if ids.ndim != x.ndim:
        raise ShapeError("take_along_axis", f"{ids.ndim} and {x.ndim} dims", "equal numbers of dims", "add some")
    rest = [s[:axis] + (1,) + s[axis + 1 :] for s in (x.shape, ids.shape)]
    shape = broadcast_shapes("take_along_axis", *rest)
    x, ids = (movement.broadcast_to(a, shape[:axis] + (a.shape[axis],) + shape[axis + 1 :]) for a in (x, ids))
    return index.gather(x, axis, ids)


def nonzero(x, /):
    """Where the elements are that are not 0, in row-major order: a tuple of int64 rows, one for each axis. ShapeError
    for a 0-d x.
    """
    x = array("nonzero", x)
    if not x.ndim:
        raise ShapeError("nonzero", "a 0-d array", "at least one dim", "compare its value instead")
    return movement.unbind(index.nonzero(x), 1)
