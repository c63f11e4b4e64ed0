"""Indexing with [].

`x[...]` takes integers, slices (steps may be negative), None, Ellipsis, bool masks, and integer tensors or lists, mixed
as in NumPy and PyTorch. Basic keys give views; masks and integer tensors copy.

>>> import tensorlib
>>> x = tensorlib.arange(12).reshape(3, 4)
>>> x[1, ::-2], x[:, [0, -1]].shape, x[x % 5 == 0]
(tensor([7, 5]), (3, 2), tensor([ 0,  5, 10]))
"""

from math import prod

from tensorlib import dtype as _dtype
from tensorlib.device import Array
from tensorlib.errors import DTypeError, GradError, ShapeError
from tensorlib.layout import broadcast_shapes
from tensorlib.memo import getitem_memoised
from tensorlib.ops import create, elementwise, index, movement, reduce
from tensorlib.ops._launch import cast, copy_into, fill, number, separate, writable
from tensorlib.ops.exchange import item
from tensorlib.registry import FUNCTIONS, SAME, define


def _getitem_vjp(g, x_shape, key):
    """Adds g up where the key looks."""
    whole = create.zeros(type(g), x_shape, dtype=g.dtype, device=g.device)
    if not _parse(whole, key)[1]:
        movement.copy_(getitem(whole, key), g)
        return whole
    places = _flat_places(g, x_shape, key)
    return movement.reshape(index.scatter_add(movement.reshape(whole, -1), 0, places, movement.reshape(g, -1)), x_shape)


def _flat_places(x, shape, key):
    """The places in a row-major tensor of `shape` that a key selects, as one i64 row."""
    numbers = create.arange(type(x), prod(shape), device=x.device)
    return movement.reshape(getitem(movement.reshape(numbers, shape), key), -1)


def _without(g, key):
    g = movement.clone(g)
    setitem(g, key, 0)
    return g


def _written(g, x_shape, key):
    """What of g belongs to the values that were written: where a key names a place twice, to the last one."""
    found = getitem(g, key)
    _, arrays = _parse(g.handle(), key)
    if not arrays:
        return found
    won = index.winners(_flat_places(g, x_shape, key), prod(x_shape))
    return elementwise.where(movement.reshape(won, found.shape), found, 0.0)


def _parse(x, key):
    """(view by the basic parts of the key, {dim of the view: integer Array} for the rest)"""
    key = list(key) if isinstance(key, tuple) else [key]
    key = [create.tensor(type(x), k, "i64" if k == [] else None, x.device) if isinstance(k, list) else k for k in key]
    key = [_foreign(x, k) for k in key]
    taken = sum(k.ndim if _is_mask(k) else 1 for k in key if k is not None and k is not Ellipsis)
    if taken > x.ndim:
        raise ShapeError("index", f"{taken} indices", f"at most {x.ndim} for shape {x.shape}", "remove some")
    dots = [i for i, k in enumerate(key) if k is Ellipsis]
    if len(dots) > 1:
        raise ShapeError("index", "two ellipses", "at most one", "write the slices out")
    at = dots[0] if dots else len(key)
    key = key[:at] + [slice(None)] * (x.ndim - taken) + key[at + 1 :]
    layout, dim, arrays = x.layout, 0, {}
    for k in key:
        if k is None:
            layout, dim = layout.unsqueeze(dim), dim + 1
        elif isinstance(k, slice):
            layout, dim = layout.slice(dim, _plain(k)), dim + 1
        elif isinstance(k, Array) and (k.ndim or k.dtype.kind not in "ui"):
            for ids in _index_arrays(layout, dim, k):
                arrays[dim] = ids
                dim += 1
        else:
            layout = layout.select(dim, _integer(item(k) if isinstance(k, Array) else k))
    return Array.view(x, layout), arrays


def _foreign(x, k):
    """NumPy arrays (and others that have elements) as Arrays of ours."""
    if isinstance(k, Array) or getattr(k, "ndim", 0) == 0 or not hasattr(k, "tolist"):
        return k
    return create.tensor(type(x), k, "bool" if str(k.dtype) == "bool" else "i64", x.device)


def _is_mask(k):
    return isinstance(k, Array) and k.dtype.kind == "b"


def _plain(s):
    return slice(*(None if v is None else _integer(v) for v in (s.start, s.stop, s.step)))


def _integer(k):
    if isinstance(k, bool) or not hasattr(k, "__index__"):
        expected = "an integer, a slice, None, ..., a list or a tensor of integers or bools"
        raise DTypeError("index", f"a {type(k).__name__}", expected, "convert it first")
    return k.__index__()


def _index_arrays(layout, dim, k):
    if k.dtype.kind == "f" or not k.ndim:
        got = f"an index of dtype {k.dtype} and shape {k.shape}"
        raise DTypeError("index", got, "integers, or bools of at least one dim", "convert it with .to('i64')")
    if k.dtype.kind != "b":
        return [k]
    shape = layout.shape[dim : dim + k.ndim]
    if k.shape != shape:
        raise ShapeError(
            "index", f"a mask of shape {k.shape} for dims {shape}", "a mask of their shape", "reshape the mask"
        )
    return index.coordinates(index.places(k), shape) if k.ndim != 1 else [index.places(k)]


def _gathered(view, arrays):
    """(view with the indexed dims in front, flat indices into those, of their broadcast shape;
    where they go afterwards)
    """
    dims = sorted(arrays)
    shape = broadcast_shapes("index", *(arrays[d].shape for d in dims))
    flat, left = None, len(dims) == 1 and view.device.gpu is not None  # left to the kernel, so that nobody waits
    for d in dims:
        size = view.shape[d]
        ids = cast(arrays[d], _dtype.i64)
        ids = ids if left else _inside(ids, size)
        flat = ids if flat is None else elementwise.add(elementwise.mul(flat, size), ids)
    permuted = movement.permute(view, [*dims, *(d for d in range(view.ndim) if d not in arrays)])
    place = dims[0] if dims[-1] - dims[0] == len(dims) - 1 else 0
    return permuted, movement.contiguous(movement.broadcast_to(flat, shape)), place


def _inside(ids, size):
    """Indices of a dim, negative ones counted from the end. ShapeError if one is outside."""
    if ids.numel():
        low, high = item(reduce.amin(ids)), item(reduce.amax(ids))
        if low < -size or high >= size:
            got = f"index {low if low < -size else high} in a dim of size {size}"
            raise ShapeError("index", got, f"indices in [{-size}, {size - 1}]", "use indices inside the dim")
        if low < 0:
            ids = elementwise.where(elementwise.lt(ids, 0), elementwise.add(ids, size), ids)
    return ids


@define("movement", SAME, lambda np, x, key: x[key], vjp={"x": _getitem_vjp}, wrap=getitem_memoised)
def getitem(x, key):
    """x[key]. Basic keys (integers, slices, None, ...) give a view, masks and integer tensors a copy.
    ShapeError, DTypeError.
    """
    view, arrays = _parse(x, key)
    if not arrays:
        return view
    if len(arrays) == 1:
        ((dim, ids),) = arrays.items()
        return index.taken(view, dim, movement.contiguous(ids))
    permuted, flat, place = _gathered(view, arrays)
    out = index.taken(_merged(permuted, len(arrays)), 0, flat)
    dims = range(flat.ndim)
    return movement.movedim(out, tuple(dims), tuple(d + place for d in dims)) if place else out


def _merged(permuted, n):
    """The first n dims as one."""
    return movement.reshape(permuted, (prod(permuted.shape[:n]), *permuted.shape[n:]))


def _zero_view(g, origin):
    """g with zeros where a view of it looks (used by the tape)."""
    whole = movement.clone(g)
    view = origin.replay(whole)
    if view.buffer is not whole.buffer:
        raise GradError("write to a view", "a view that is a copy for its gradient", "contiguous memory", "clone first")
    setitem(view, Ellipsis, 0)
    return whole


FUNCTIONS["zero_view"] = _zero_view


def _setitem_ref(np, x, key, value):
    out = x.copy()
    out[key] = value
    return out


@define("index", SAME, _setitem_ref, writes=True, vjp={"x": _without, "value": _written})
def setitem(x, key, value):
    """x[key] = value: a number, or a tensor or lists that broadcast to x[key]; cast to x's dtype.
    ShapeError, DTypeError.
    """
    view, arrays = _parse(x, key)
    writable("index", view)
    if not isinstance(value, Array) and (isinstance(value, (list, tuple)) or getattr(value, "ndim", 0)):
        value = create.tensor(type(x), value, None, x.device)
    if arrays:
        value = value if isinstance(value, Array) else create.tensor(type(x), number("index", value), x.dtype, x.device)
        _put(view, arrays, cast(separate(value, x), x.dtype))
    elif isinstance(value, Array):
        copy_into(view, separate(movement.broadcast_to(_trimmed(value, view.ndim), view.shape), view))
    else:
        fill(view, number("index", value))


def _trimmed(value, ndim):
    """Without leading dims of size 1 beyond `ndim`."""
    while value.ndim > ndim and value.shape[0] == 1:
        value = movement.select(value, 0, 0)
    return value


def _put(view, arrays, value):
    """Writes value, broadcast to what the indices select, into the view."""
    permuted, flat, place = _gathered(view, arrays)
    n, rest = flat.ndim, permuted.shape[len(arrays) :]
    target = rest[:place] + flat.shape + rest[place:]
    value = movement.broadcast_to(_trimmed(value, len(target)), target)
    value = movement.contiguous(movement.movedim(value, tuple(range(place, place + n)), tuple(range(n))))
    if not value.numel():
        return
    whole = permuted if permuted.is_contiguous() else movement.clone(permuted)
    size, inner = prod(permuted.shape[: len(arrays)]), prod(rest)
    words = [value.ptr, size, flat.numel(), inner, inner]
    index.launch("index", "put", whole, flat, words, value.numel(), (value,), (whole,))
    if whole is not permuted:
        copy_into(permuted, whole)
