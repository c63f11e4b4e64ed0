"""Searching, sorting, sets."""

from collections import namedtuple

from tensorlib.array_api import _dtypes
from tensorlib.array_api._array import array
from tensorlib.array_api._manipulation import one_axis
from tensorlib.errors import ShapeError
from tensorlib.ops import elementwise, index, movement, reduce, scan
from tensorlib.ops import sort as _sort

unique_all_result = namedtuple("unique_all_result", "values indices inverse_indices counts")
unique_counts_result = namedtuple("unique_counts_result", "values counts")
unique_inverse_result = namedtuple("unique_inverse_result", "values inverse_indices")


def argmax(x, /, *, axis=None, keepdims=False):
    """Index of the first largest element along an axis (in the flattened array for None), of the first NaN if there is
    one: int64. ShapeError, DTypeError.

    >>> from tensorlib import array_api as xp
    >>> xp.argmax(xp.asarray([[1, 5], [7, 2]]), axis=1)
    tensor([1, 0])
    """
    return reduce.argmax(array("argmax", x), axis, keepdims)


def argmin(x, /, *, axis=None, keepdims=False):
    """Index of the first smallest element along an axis (in the flattened array for None), of the first NaN if there is
    one: int64. ShapeError, DTypeError.
    """
    return reduce.argmin(array("argmin", x), axis, keepdims)


def count_nonzero(x, /, *, axis=None, keepdims=False):
    """How many elements along axes (all for None) are not 0: int64. ShapeError."""
    x = array("count_nonzero", x)
    return reduce.sum(elementwise.cast(x, "bool"), axis, keepdims)


def searchsorted(x1, x2, /, *, side="left", sorter=None):
    """Where to insert each element of x2 so that the sorted row x1 stays sorted: before equal elements, behind them for
    side="right". int64 of x2's shape; `sorter` holds the indices that sort x1. ShapeError, DTypeError.

    >>> from tensorlib import array_api as xp
    >>> xp.searchsorted(xp.asarray([1, 3, 5]), xp.asarray([3, 9]))
    tensor([1, 3])
    """
    x1, x2 = array("searchsorted", x1), array("searchsorted", x2)
    if x1.ndim != 1:
        raise ShapeError("searchsorted", f"{x1.ndim} dims", "a 1-d array to search in", "flatten it")
    dtype = _dtypes.promote("searchsorted", x1.dtype, x2.dtype)
    x1, x2 = elementwise.cast(x1, dtype), elementwise.cast(x2, dtype)
    return _sort.searchsorted(x1, x2, side=side, sorter=sorter)


# ---- sorting ---------------------------------------------------------------------------------------------------------


def sort(x, /, *, axis=-1, descending=False, stable=True):
    """x in order along an axis; NaN sorts above all numbers. Always stable. ShapeError."""
    x = array("sort", x)
    return _sort.sort(x, one_axis("sort", axis, x.ndim), descending, stable).values


def argsort(x, /, *, axis=-1, descending=False, stable=True):
    """The indices that sort x along an axis: int64. Always stable. ShapeError."""
    x = array("argsort", x)
    return _sort.argsort(x, one_axis("argsort", axis, x.ndim), descending, stable)


# ---- sets ------------------------------------------------------------------------------------------------------------


def unique_all(x, /):
    """(values, indices, inverse_indices, counts): the distinct elements in ascending order, where each occurs first in
    the flattened x, where in `values` each element of x is (x's shape), how often each occurs. Every NaN is distinct.

    >>> from tensorlib import array_api as xp
    >>> xp.unique_all(xp.asarray([3, 1, 3])).indices
    tensor([1, 0])
    """
    x = array("unique_all", x)
    values, inverse, counts = _sort.unique(x, return_inverse=True, return_counts=True)
    order = _sort.argsort(movement.reshape(x, -1))
    starts = elementwise.sub(scan.cumsum(counts, 0), counts)
    return unique_all_result(values, index.index_select(order, 0, starts), inverse, counts)


def unique_counts(x, /):
    """(values, counts): the distinct elements in ascending order, and how often each occurs. Every NaN is distinct."""
    return unique_counts_result(*_sort.unique(array("unique_counts", x), return_counts=True))


def unique_inverse(x, /):
    """(values, inverse_indices): the distinct elements in ascending order, and where in them each element of x is."""
    return unique_inverse_result(*_sort.unique(array("unique_inverse", x), return_inverse=True))


def unique_values(x, /):
    """The distinct elements in ascending order. Every NaN is distinct."""
    return _sort.unique(array("unique_values", x))
