"""Joining, cutting, turning and repeating tensors: what `movement` has no view of its own for.

>>> import tensorlib
>>> x = tensorlib.tensor([[1, 2], [3, 4]])
>>> rot90(x), hstack([x, x]).shape, block_diag(x, tensorlib.tensor([5])).shape
(tensor([[2, 4],
        [1, 3]]), (2, 4), (3, 3))
"""

import itertools

from tensorlib.errors import ShapeError
from tensorlib.layout import axes, axis
from tensorlib.ops import create, movement
from tensorlib.ops.index import index_select
from tensorlib.registry import SAME, define


def _composite(ref=None, arity=1):
    return define("composite", SAME, ref, arity)


def _list(op, tensors):
    tensors = list(tensors[0]) if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)) else list(tensors)
    if not tensors:
        raise ShapeError(op, "no tensors", "at least one", "pass a list of tensors")
    return tensors


def _mapped(function):
    """`function` that takes several tensors, or a list of them, as well."""

    def mapped(*tensors):
        one = len(tensors) == 1 and not isinstance(tensors[0], (list, tuple))
        return function(tensors[0]) if one else tuple(map(function, _list(function.__name__, tensors)))

    mapped.__name__, mapped.__doc__, mapped.__module__ = function.__name__, function.__doc__, __name__
    return mapped


# ---- dims ------------------------------------------------------------------------------------------------------------


@_mapped
def atleast_1d(x):
    """With one dim, if x is 0-d; a tuple for several tensors."""
    return movement.reshape(x, 1) if not x.ndim else x


@_mapped
def atleast_2d(x):
    """With at least two dims, new ones in front; a tuple for several tensors."""
    return movement.reshape(x, (1,) * (2 - x.ndim) + x.shape) if x.ndim < 2 else x


@_mapped
def atleast_3d(x):
    """With at least three dims: (n,) becomes (1, n, 1), (m, n) becomes (m, n, 1); a tuple for several tensors."""
    return movement.unsqueeze(atleast_2d(x), 2) if x.ndim < 3 else x


def swapdims(x, dim0, dim1):
    """`transpose`: two dims swapped, a view."""
    return movement.transpose(x, dim0, dim1)


def moveaxis(x, source, destination):
    """`movedim`: dims moved to other places, a view."""
    return movement.movedim(x, source, destination)


@_composite(lambda np, x, reps: np.tile(x, reps))
def tile(x, *dims):
    """`repeat` for fewer counts than dims, too: the missing ones are 1."""
    counts = movement.sizes(dims)
    return movement.repeat(x, (1,) * (x.ndim - len(counts)) + counts)


@_composite(lambda np, x: np.flipud(x))
def flipud(x):
    """The first dim reversed: a view. ShapeError for 0-d."""
    return movement.flip(x, 0)


@_composite(lambda np, x: np.fliplr(x))
def fliplr(x):
    """The second dim reversed: a view. ShapeError for fewer dims."""
    return movement.flip(x, 1)


@_composite(lambda np, x, k=1, dims=(0, 1): np.rot90(x, k, dims))
def rot90(x, k=1, dims=(0, 1)):
    """Turned k times by 90 degrees from the first of two dims towards the second: a view. ShapeError."""
    found = axes("rot90", tuple(dims), x.ndim)
    if len(found) != 2:
        raise ShapeError("rot90", f"dims {tuple(dims)}", "two dims", "name two")
    a, b = found
    if k % 4 == 2:
        return movement.flip(x, a, b)
    if k % 4 == 1:
        return movement.transpose(movement.flip(x, b), a, b)
    return movement.flip(movement.transpose(x, a, b), b) if k % 4 == 3 else x


# ---- joining ---------------------------------------------------------------------------------------------------------


@_composite(lambda np, *xs: np.hstack(xs), 2)
def hstack(*tensors):
    """Joined along the second dim; 1-d tensors along the first. Takes a list, or several tensors."""
    tensors = [atleast_1d(x) for x in _list("hstack", tensors)]
    return movement.cat(tensors, 0 if tensors[0].ndim == 1 else 1)


@_composite(lambda np, *xs: np.vstack(xs), 2)
def vstack(*tensors):
    """Joined along the first dim, 1-d tensors as rows."""
    return movement.cat([atleast_2d(x) for x in _list("vstack", tensors)], 0)


@_composite(lambda np, *xs: np.dstack(xs), 2)
def dstack(*tensors):
    """Joined along the third dim: see `atleast_3d`."""
    return movement.cat([atleast_3d(x) for x in _list("dstack", tensors)], 2)


@_composite(lambda np, *xs: np.column_stack(xs), 2)
def column_stack(*tensors):
    """Joined along the second dim, 0-d and 1-d tensors as columns."""
    columns = [movement.reshape(x, (-1, 1)) if x.ndim < 2 else x for x in _list("column_stack", tensors)]
    return movement.cat(columns, 1)


@_composite(None, 2)
def block_diag(*tensors):
    """Matrices (0-d and 1-d tensors as rows) on the diagonal of one, zeros elsewhere. ShapeError for more dims."""
    blocks = [atleast_2d(x) for x in _list("block_diag", tensors)]
    if any(x.ndim != 2 for x in blocks):
        raise ShapeError("block_diag", f"shapes {[x.shape for x in blocks]}", "at most 2 dims", "reshape them")
    width, start, rows = sum(x.shape[1] for x in blocks), 0, []
    for x in blocks:
        sides = (start, width - start - x.shape[1])
        left, right = (create.zeros(type(x), x.shape[0], n, dtype=x.dtype, device=x.device) for n in sides)
        rows.append(movement.cat([left, x, right], 1))
        start += x.shape[1]
    return movement.cat(rows, 0)


# ---- cutting ---------------------------------------------------------------------------------------------------------


def tensor_split(x, indices_or_sections, dim=0):
    """Views of a dim cut into n parts whose sizes differ by at most 1, or at the places in a list. ShapeError.

    >>> import tensorlib
    >>> [part.tolist() for part in tensor_split(tensorlib.arange(5), 2)]
    [[0, 1, 2], [3, 4]]
    """
    dim = axis("tensor_split", dim, x.ndim)
    n = x.shape[dim] if x.ndim else 1
    if hasattr(indices_or_sections, "tolist"):
        indices_or_sections = indices_or_sections.tolist()
    if isinstance(indices_or_sections, int):
        parts = indices_or_sections
        if parts < 1:
            raise ShapeError("tensor_split", f"{parts} parts", "at least 1", "use a positive number")
        ends = [i * (n // parts) + min(i, n % parts) for i in range(1, parts)]
    else:
        ends = [slice(None, e).indices(n)[1] for e in indices_or_sections]
    starts = [0, *ends]
    return tuple(movement.narrow(x, dim, a, max(0, b - a)) for a, b in zip(starts, [*ends, n], strict=True))


def _halves(op, x, indices_or_sections, dim, least):
    if x.ndim < least:
        raise ShapeError(op, f"a {x.ndim}-d tensor", f"at least {least} dims", "add dims with unsqueeze")
    if isinstance(indices_or_sections, int) and x.shape[dim] % max(1, indices_or_sections):
        got = f"a dim of {x.shape[dim]} in {indices_or_sections} parts"
        raise ShapeError(op, got, "equal parts", "use tensor_split, whose parts may differ by 1")
    return tensor_split(x, indices_or_sections, dim)


def hsplit(x, indices_or_sections):
    """The second dim (the first of a 1-d x) cut into n equal parts or at places: views. ShapeError."""
    return _halves("hsplit", x, indices_or_sections, 0 if x.ndim == 1 else 1, 1)


def vsplit(x, indices_or_sections):
    """The first of at least 2 dims cut into n equal parts or at places: views. ShapeError."""
    return _halves("vsplit", x, indices_or_sections, 0, 2)


def dsplit(x, indices_or_sections):
    """The third dim cut into n equal parts or at places: views. ShapeError."""
    return _halves("dsplit", x, indices_or_sections, 2, 3)


# ---- grids -----------------------------------------------------------------------------------------------------------


@_composite(lambda np, *xs, indexing="ij": tuple(np.meshgrid(*xs, indexing=indexing)), 2)
def meshgrid(*tensors, indexing="ij"):
    """For 1-d (or 0-d) tensors, as many views of one grid: "ij": x[i] at [i, j], "xy": x[j] (the first two swapped).

    >>> import tensorlib
    >>> meshgrid(tensorlib.arange(2), tensorlib.arange(3))[1]
    tensor([[0, 1, 2],
            [0, 1, 2]])
    """
    tensors = [atleast_1d(x) for x in _list("meshgrid", tensors)]
    if indexing not in ("ij", "xy") or any(x.ndim > 1 for x in tensors):
        got = f"indexing {indexing!r}, shapes {[x.shape for x in tensors]}"
        raise ShapeError("meshgrid", got, "'ij' or 'xy', at most 1 dim each", "flatten them")
    swap = indexing == "xy" and len(tensors) > 1
    tensors = [tensors[1], tensors[0], *tensors[2:]] if swap else tensors
    shape, n = tuple(x.numel() for x in tensors), len(tensors)
    grids = [
        movement.broadcast_to(movement.reshape(x, [-1 if d == i else 1 for d in range(n)]), shape)
        for i, x in enumerate(tensors)
    ]
    return (grids[1], grids[0], *grids[2:]) if swap else tuple(grids)


@_composite(None, 2)
def cartesian_prod(*tensors):
    """All combinations of one element of each 1-d tensor, the last changing fastest: (count, tensors); x for one x."""
    grids = meshgrid(*_list("cartesian_prod", tensors))
    return grids[0] if len(grids) == 1 else movement.stack([movement.reshape(x, -1) for x in grids], 1)


@_composite()
def combinations(x, r=2, with_replacement=False):
    """All sets of r elements of a 1-d x, in order: (count, r). ShapeError for other dims or a negative r."""
    if x.ndim != 1 or r < 0:
        raise ShapeError("combinations", f"shape {x.shape}, r {r}", "1 dim, r of 0 or more", "flatten x")
    choose = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    places = list(choose(range(x.numel()), r)) if r else []
    ids = create.tensor(type(x), [i for place in places for i in place], dtype="i64", device=x.device)
    return movement.reshape(index_select(x, 0, ids), (len(places), r))
