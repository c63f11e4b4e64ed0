"""Writing by index, and the last of the ops that read by it. All but the in-place ones leave x as it is.

>>> import tensorlib
>>> x = tensorlib.zeros(5)
>>> at = tensorlib.tensor([1, 3, 1])
>>> index_put(x, (at,), tensorlib.tensor([1.0, 2.0, 3.0]), accumulate=True)
tensor([0., 4., 0., 2., 0.])
>>> scatter_reduce(x, 0, at, tensorlib.tensor([5.0, 6.0, 7.0]), "mean", include_self=False)
tensor([0., 6., 0., 6., 0.])
"""

from tensorlib import dtype as _dtype
from tensorlib.device import Array
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.layout import axis
from tensorlib.ops import create, elementwise, getitem, movement
from tensorlib.ops._launch import number
from tensorlib.ops.elementwise import cast, div, eq, mul, where
from tensorlib.ops.index import _in_corner, gather, index_add, nonzero, scatter, scatter_add
from tensorlib.ops.index import _scatter as _kernel
from tensorlib.registry import SAME, define


def _composite(ref=None, arity=3):
    return define("composite", SAME, ref, arity)


def _assign(x, value):
    """Writes `value` to x in place; returns x."""
    getitem.setitem(x, Ellipsis, value)
    return x


def _ids(op, ids):
    """An integer Array; DTypeError for other dtypes."""
    if ids.dtype.kind not in "ui":
        raise DTypeError(op, f"an index of dtype {ids.dtype}", "integers", "convert it with .to('i64')")
    return ids


def _along(op, x, dim, ids):
    """(dim from 0, a 1-d index as one of x's number of dims, a shape that it expands to) for ops along one dim."""
    dim = axis(op, dim, x.ndim)
    if ids.ndim > 1:
        raise ShapeError(op, f"an index of shape {ids.shape}", "at most 1 dim", "flatten it")
    shape = x.shape[:dim] + (ids.numel(),) + x.shape[dim + 1 :] if x.ndim else (ids.numel(),)
    own = [1] * len(shape)
    own[dim] = ids.numel()
    return dim, movement.broadcast_to(movement.reshape(_ids(op, ids), own), shape), shape


def _at_least_1d(x):
    return movement.reshape(x, 1) if not x.ndim else x


# ---- along one dim ---------------------------------------------------------------------------------------------------


@_composite()
def index_copy(x, dim, index, source):
    """A copy of x with the slices `index` (1-d) of a dim replaced by those of source, which has x's dtype. ShapeError.

    >>> import tensorlib
    >>> index_copy(tensorlib.zeros(2, 3), 1, tensorlib.tensor([2, 0]), tensorlib.tensor([[1.0, 2.0], [3.0, 4.0]]))
    tensor([[2., 0., 1.],
            [4., 0., 3.]])
    """
    return _sliced("index_copy", x, dim, index, source, scatter)


@_composite()
def index_reduce(x, dim, index, source, reduce, *, include_self=True):
    """A copy of x whose slices `index` (1-d) of a dim are reduced with those of source: see `scatter_reduce`."""

    def combine(x, dim, ids, source):
        return scatter_reduce(x, dim, ids, source, reduce, include_self=include_self)

    return _sliced("index_reduce", x, dim, index, source, combine)


def _sliced(op, x, dim, ids, source, combine):
    """combine(x, dim, the index of each element of source, source) with checks; a 0-d x counts as 1-d."""
    dim, wide, shape = _along(op, x, dim, ids)
    if source.dtype is not x.dtype:
        raise DTypeError(op, f"source of {source.dtype} for x of {x.dtype}", "one dtype", "convert it with .to(dtype)")
    if _at_least_1d(source).shape != shape:
        raise ShapeError(op, f"source of shape {source.shape}", f"{shape}", "one slice per index")
    return movement.reshape(combine(_at_least_1d(x), dim, wide, _at_least_1d(source)), x.shape)


@_composite()
def index_fill(x, dim, index, value):
    """A copy of x with the slices `index` (1-d) of a dim filled with a number or a 0-d tensor. ShapeError."""
    dim, wide, shape = _along("index_fill", x, dim, index)
    if not isinstance(value, Array):
        value = create.full(type(x), (), number("index_fill", value), x.dtype, x.device)
    if value.ndim:
        raise ShapeError("index_fill", f"a value of shape {value.shape}", "a number or a 0-d tensor", "use index_copy")
    value = movement.broadcast_to(cast(value, x.dtype), shape)
    return movement.reshape(scatter(_at_least_1d(x), dim, wide, value), x.shape)


def index_copy_(x, dim, index, source):
    """`index_copy` in place."""
    return _assign(x, index_copy(x, dim, index, source))


def index_fill_(x, dim, index, value):
    """`index_fill` in place."""
    return _assign(x, index_fill(x, dim, index, value))


def index_reduce_(x, dim, index, source, reduce, *, include_self=True):
    """`index_reduce` in place."""
    return _assign(x, index_reduce(x, dim, index, source, reduce, include_self=include_self))


def index_add_(x, dim, index, source):
    """`index_add` in place."""
    return _assign(x, index_add(x, dim, index, source))


# ---- reductions ------------------------------------------------------------------------------------------------------


def _named(src, index):
    """The part of src that the index has places for."""
    for d, n in enumerate(index.shape):
        src = movement.narrow(src, d, 0, n)
    return src


def _extreme_vjp(g, x, dim, index, src, out):
    """Ties share the gradient, as in PyTorch."""
    whole, src = src.shape, _named(src, index)
    mine = cast(eq(src, gather(out, dim, index)), g.dtype)
    own = cast(eq(x, out), g.dtype)
    share = div(g, elementwise.clamp(scatter_add(own, dim, index, mine), 1))
    return mul(share, own), _in_corner(mul(gather(share, dim, index), mine), whole)


def _prod_vjp(g, x, dim, index, src):
    """The product of the others: where there is one zero, of what is not 0, and for that zero only."""
    whole, src = src.shape, _named(src, index)
    zero, source_zero = eq(x, 0), eq(src, 0)
    rest = scatter_prod(where(zero, 1.0, x), dim, index, where(source_zero, 1.0, src))
    zeros = scatter_add(cast(zero, g.dtype), dim, index, cast(source_zero, g.dtype))

    def others(v, is_zero, rest, zeros, g):
        usual = where(eq(zeros, 0), div(rest, where(is_zero, 1.0, v)), 0.0)
        return mul(g, where(is_zero, where(eq(zeros, 1), rest, 0.0), usual))

    at = [gather(v, dim, index) for v in (rest, zeros, g)]
    return others(x, zero, rest, zeros, g), _in_corner(others(src, source_zero, *at), whole)


def _combined_ref(name):
    def ref(np, x, dim, index, src):
        out, places = x.copy(), list(np.indices(index.shape))
        places[dim] = index
        getattr(np, name).at(out, tuple(places), src[tuple(slice(n) for n in index.shape)])
        return out

    return ref


def _combining(name, vjp):
    return define("index", SAME, _combined_ref(name), arity=2, vjp={("x", "src"): vjp})


@_combining("multiply", _prod_vjp)
def scatter_prod(x, dim, index, src):
    """A copy of x with x[index[i, j], j] multiplied by src[i, j] (for dim 0). See `scatter_reduce`."""
    return _kernel("scatter_prod", movement.clone(x), dim, index, src, x.dtype.name)


@_combining("maximum", _extreme_vjp)
def scatter_amax(x, dim, index, src):
    """A copy of x with the larger of x[index[i, j], j] and src[i, j] (for dim 0). See `scatter_reduce`."""
    return _kernel("scatter_amax", movement.clone(x), dim, index, src, x.dtype.name)


@_combining("minimum", _extreme_vjp)
def scatter_amin(x, dim, index, src):
    """A copy of x with the smaller of x[index[i, j], j] and src[i, j] (for dim 0). See `scatter_reduce`."""
    return _kernel("scatter_amin", movement.clone(x), dim, index, src, x.dtype.name)


_COMBINE = {"sum": scatter_add, "mean": scatter_add, "prod": scatter_prod, "amax": scatter_amax, "amin": scatter_amin}


def _identity(reduce, dtype):
    """What changes nothing when it is reduced with a number of this dtype."""
    if reduce in ("sum", "mean", "prod"):
        return 1 if reduce == "prod" else 0
    if dtype.kind == "f":
        return float("-inf" if reduce == "amax" else "inf")
    return (0, 1)[reduce == "amin"] if dtype.kind == "b" else _dtype.info(dtype)[reduce == "amin"]


@_composite()
def scatter_reduce(x, dim, index, src, reduce, *, include_self=True):
    """A copy of x in which x[index[i, j], j] is reduced with every src[i, j] that names it (for dim 0).

    reduce: "sum", "prod", "mean", "amax" or "amin"; for include_self=False the element of x itself does not count where
    something is written. src has x's dtype. Means of integers are rounded down. ShapeError, DTypeError.

    >>> import tensorlib
    >>> at, src = tensorlib.tensor([0, 0, 1]), tensorlib.tensor([3.0, 4.0, 5.0])
    >>> scatter_reduce(tensorlib.tensor([2.0, 7.0, 9.0]), 0, at, src, "amax")
    tensor([4., 7., 9.])
    """
    if reduce not in _COMBINE:
        raise ShapeError("scatter_reduce", f"reduce {reduce!r}", ", ".join(_COMBINE), "use one of these")
    if src.dtype is not x.dtype:
        got = f"src of {src.dtype} for x of {x.dtype}"
        raise DTypeError("scatter_reduce", got, "one dtype", "convert it with .to(dtype)")
    for d, n in enumerate(index.shape if src.ndim == index.ndim else ()):
        src = movement.narrow(src, d, 0, n) if src.shape[d] > n else src
    start = x if include_self else scatter(x, dim, index, _identity(reduce, x.dtype))
    out = _COMBINE[reduce](start, dim, index, src)
    if reduce != "mean":
        return out
    ones = create.ones(type(x), index.shape, dtype="i64", device=x.device)
    count = create.full(type(x), x.shape, 1 if include_self else 0, dtype="i64", device=x.device)
    count = elementwise.clamp(scatter_add(count, dim, index, ones), 1)
    return div(out, cast(count, x.dtype), rounding_mode=None if x.dtype.kind == "f" else "floor")


def scatter_reduce_(x, dim, index, src, reduce, *, include_self=True):
    """`scatter_reduce` in place."""
    return _assign(x, scatter_reduce(x, dim, index, src, reduce, include_self=include_self))


# ---- anywhere --------------------------------------------------------------------------------------------------------


def _key(indices):
    return tuple(slice(None) if i is None else i for i in indices)


@define("composite", SAME, None, 3)
def index_put(x, indices, values, accumulate=False):
    """A copy of x with x[indices] = values, or += for accumulate, which adds up what is written to one place.

    indices: a tuple of integer or bool tensors (None: all of a dim) that broadcast; values broadcast to x[indices].
    ShapeError, DTypeError.
    """
    if not accumulate:
        return index_put_(movement.clone(x), indices, values)
    if values.dtype is not x.dtype:
        got = f"values of {values.dtype} for x of {x.dtype}"
        raise DTypeError("index_put", got, "one dtype", "convert them with .to(dtype)")
    numbers = movement.reshape(create.arange(type(x), x.numel(), device=x.device), x.shape)
    places = getitem.getitem(numbers, _key(indices))
    values = movement.reshape(movement.broadcast_to(values, places.shape), -1)
    return movement.reshape(scatter_add(movement.reshape(x, -1), 0, movement.reshape(places, -1), values), x.shape)


def index_put_(x, indices, values, accumulate=False):
    """`index_put` in place."""
    if accumulate:
        return _assign(x, index_put(x, indices, values, True))
    getitem.setitem(x, _key(indices), values)
    return x


@_composite()
def put(x, index, source, accumulate=False):
    """A copy of x whose elements at `index` (in x flattened) are those of source, or have them added. ShapeError."""
    if source.numel() != index.numel():
        got = f"{source.numel()} elements for {index.numel()} indices"
        raise ShapeError("put", got, "one element per index", "narrow one of them")
    flat, ids, source = (movement.reshape(v, -1) for v in (x, _ids("put", index), source))
    return movement.reshape((scatter_add if accumulate else scatter)(flat, 0, ids, source), x.shape)


def put_(x, index, source, accumulate=False):
    """`put` in place."""
    return _assign(x, put(x, index, source, accumulate))


@_composite()
def masked_scatter(x, mask, source):
    """A copy of x with the elements where `mask` (bool, broadcast to x) is true replaced by those of source in order.

    source has at least as many elements; ShapeError otherwise, DTypeError for another dtype than x's.
    """
    if source.dtype is not x.dtype or mask.dtype.kind != "b":
        got = f"source of {source.dtype}, mask of {mask.dtype}"
        raise DTypeError("masked_scatter", got, f"{x.dtype} and bool", "convert them with .to(dtype)")
    mask = movement.reshape(movement.broadcast_to(mask, x.shape), -1)
    places = movement.reshape(nonzero(mask), -1)
    if source.numel() < places.numel():
        got = f"{source.numel()} elements for {places.numel()} places"
        raise ShapeError("masked_scatter", got, "enough elements", "check the mask")
    source = movement.narrow(movement.reshape(source, -1), 0, 0, places.numel())
    return movement.reshape(scatter(movement.reshape(x, -1), 0, places, source), x.shape)


def masked_scatter_(x, mask, source):
    """`masked_scatter` in place."""
    return _assign(x, masked_scatter(x, mask, source))


# ---- into views ------------------------------------------------------------------------------------------------------


def _embedded(op, x, src, look):
    """A copy of x with src written to the view look(x)."""
    out = movement.clone(x)
    view = look(out)
    if view.shape != src.shape:
        raise ShapeError(op, f"src of shape {src.shape}", f"{view.shape}", "give what the view of x has")
    movement.copy_(view, src)
    return out


@define("composite", SAME, None, 2)
def select_scatter(x, src, dim, index):
    """A copy of x with element `index` of a dim replaced by src. ShapeError."""
    return _embedded("select_scatter", x, src, lambda v: movement.select(v, dim, index))


@define("composite", SAME, None, 2)
def slice_scatter(x, src, dim=0, start=None, end=None, step=1):
    """A copy of x with x[start:end:step] along a dim replaced by src. ShapeError.

    >>> import tensorlib
    >>> slice_scatter(tensorlib.zeros(5), tensorlib.ones(2), 0, 1, 4, 2)
    tensor([0., 1., 0., 1., 0.])
    """
    dim = axis("slice_scatter", dim, x.ndim)
    key = (*(slice(None),) * dim, slice(start, end, step))
    return _embedded("slice_scatter", x, src, lambda v: getitem.getitem(v, key))


@define("composite", SAME, None, 2)
def diagonal_scatter(x, src, offset=0, dim1=0, dim2=1):
    """A copy of x with the diagonal of two dims replaced by src. ShapeError."""
    return _embedded("diagonal_scatter", x, src, lambda v: movement.diagonal(v, offset, dim1, dim2))
