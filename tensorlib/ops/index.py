"""Indexing with [] and the ops that read or write by index.

`x[...]` takes integers, slices (steps may be negative), None, Ellipsis, bool masks, and integer tensors or lists, mixed
as in NumPy and PyTorch. Basic keys give views; masks and integer tensors copy.

>>> import tensorlib
>>> x = tensorlib.arange(12).reshape(3, 4)
>>> x[1, ::-2], x[:, [0, -1]].shape, x[x % 5 == 0]
(tensor([7, 5]), (3, 2), tensor([ 0,  5, 10]))
"""

from math import prod

from tensorlib import backend
from tensorlib import dtype as _dtype
from tensorlib.device import Array
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.layout import axis, broadcast_shapes
from tensorlib.ops import create, elementwise, movement
from tensorlib.ops._launch import _RAW, cast, copy_into, number, separate, writable
from tensorlib.ops.exchange import item
from tensorlib.registry import INDEX, SAME, define

# ---- kernels ---------------------------------------------------------------------------------------------------------


def _launch(op, name, x, ids, words, work, reads, writes, dtype=None):
    """Runs an index kernel: address of x, ids, (words[0]), flag, the rest;
    ShapeError if an index was outside its dim.
    """
    flag = create.tensor(Array, [0], "i64", x.device)
    dtype = dtype or _RAW[x.dtype.itemsize]
    kernel = backend.kernel("index", name, dtype, ids.dtype.name, device=x.device.type)
    words = [x.ptr, ids.ptr, words[0], flag.ptr, *words[1:]]
    backend.launch(kernel, words, work=work, reads=(ids, *reads), writes=(flag, *writes))
    place, size = item(flag), words[4]
    if place:
        value = _element(ids, place - 1)
        fix = "use indices inside the dim"
        raise ShapeError(op, f"index {value} in a dim of size {size}", f"indices in [{-size}, {size - 1}]", fix)


def _element(x, i):
    return item(Array.view(x, x.layout.reshape((-1,)).select(0, i)))


def _ids(op, x, ids):
    """Indices as a contiguous integer Array."""
    if not isinstance(ids, Array):
        ids = create.tensor(type(x), ids, dtype="i64" if not ids else None, device=x.device)
    if ids.dtype.kind not in "ui":
        raise DTypeError(op, f"an index of dtype {ids.dtype}", "integers", "convert it with .to('i64')")
    return movement.contiguous(ids)


@define("index", SAME, lambda np, x, dim, ids: np.take(x, ids, dim), arity=2)
def index_select(x, dim, index):
    """Elements `index` (1-d or 0-d integers, negative ones from the end) of one dim, in that order; a copy.

    >>> import tensorlib
    >>> index_select(tensorlib.tensor([[1, 2, 3], [4, 5, 6]]), 1, [2, 0])
    tensor([[3, 1],
            [6, 4]])
    """
    ids = _ids("index_select", x, index)
    if ids.ndim > 1:
        raise ShapeError("index_select", f"an index of shape {ids.shape}", "at most 1 dim", "use x[index]")
    return _take(x, axis("index_select", dim, x.ndim), movement.reshape(ids, -1))


def _take(x, dim, ids):
    """x with `dim` replaced by the dims of `ids`."""
    x = movement.contiguous(x)
    outer, size, inner = prod(x.shape[:dim]), x.shape[dim], prod(x.shape[dim + 1 :])
    out = type(x).empty(x.shape[:dim] + ids.shape + x.shape[dim + 1 :], x.dtype, x.device)
    if ids.numel() and not size:
        raise ShapeError("index", "an index into a dim of size 0", "a dim with elements", "use an empty index")
    if out.numel():
        words = [out.ptr, size, ids.numel(), inner, outer]
        _launch("index", "take", x, ids, words, out.numel(), (x,), (out,))
    return out


@define("index", SAME, lambda np, x, dim, ids: np.take_along_axis(x, ids, dim), arity=2)
def gather(x, dim, index):
    """out[i, j] = x[index[i, j], j] for dim 0, and so on:
    `index` has x's number of dims, and no larger sizes but in dim.
    """
    dim, ids = _along("gather", x, dim, index)
    out = type(x).empty(ids.shape, x.dtype, x.device)
    if out.numel():
        _launch("gather", "gather", x, ids, _along_words(x, dim, ids, out), out.numel(), (x,), (out,))
    return out


def scatter(x, dim, index, src):
    """A copy of x with x[index[i, j], j] = src[i, j] (for dim 0); src is a tensor or a number.
    Of equal indices the last wins.
    """
    return scatter_(movement.clone(x), dim, index, src)


def scatter_(x, dim, index, src):
    """`scatter` in place."""
    return _scatter("scatter", x, dim, index, src)


def scatter_add(x, dim, index, src):
    """A copy of x with src[i, j] added to x[index[i, j], j] (for dim 0)."""
    return scatter_add_(movement.clone(x), dim, index, src)


def scatter_add_(x, dim, index, src):
    """`scatter_add` in place."""
    return _scatter("scatter_add", x, dim, index, src, x.dtype.name)


def index_add(x, dim, index, src):
    """A copy of x with the slices of src added at `index` (1-d) along dim."""
    dim, ids = axis("index_add", dim, x.ndim), _ids("index_add", x, index)
    shape = [1] * x.ndim
    shape[dim] = ids.numel()
    return scatter_add(x, dim, movement.contiguous(movement.expand(movement.reshape(ids, shape), src.shape)), src)


def _scatter(op, x, dim, index, src, dtype=None):
    writable(op, x)
    dim, ids = _along(op, x, dim, index)
    if not isinstance(src, Array):
        src = create.full(type(x), ids.shape, number(op, src), dtype=x.dtype, device=x.device)
    if src.ndim != ids.ndim or any(s < i for s, i in zip(src.shape, ids.shape, strict=True)):
        raise ShapeError(
            op, f"src of shape {src.shape} for an index of {ids.shape}", "src at least as large", "expand it"
        )
    for d, n in enumerate(ids.shape):
        src = movement.narrow(src, d, 0, n)
    src = movement.contiguous(cast(separate(src, x), x.dtype))
    if ids.numel():
        _launch(op, op, x, ids, _along_words(x, dim, ids, src), 0, (x, src), (x,), dtype)
    return x


def _along(op, x, dim, index):
    dim, ids = axis(op, dim, x.ndim), _ids(op, x, index)
    fits = len(ids.shape) == x.ndim and all(
        i <= n for d, (i, n) in enumerate(zip(ids.shape, x.shape, strict=True)) if d != dim
    )
    if not fits:
        expected = f"{x.ndim} dims, none larger than {x.shape} but dim {dim}"
        raise ShapeError(op, f"an index of shape {ids.shape}", expected, "reshape or narrow the index")
    return dim, ids


def _along_words(x, dim, ids, y):
    if not x.shape:
        return [y.ptr, 1, 0, 1, 0, 1, 0]
    steps = [0 if d == dim else s for d, s in enumerate(x.strides)]
    words = [y.ptr, x.shape[dim], x.strides[dim], ids.shape[-1], steps[-1], prod(ids.shape[:-1]), ids.ndim - 1]
    for d in reversed(range(ids.ndim - 1)):
        words += [ids.shape[d], steps[d]]
    return words


@define("index", INDEX, lambda np, x: np.argwhere(x))
def nonzero(x):
    """Indices of the elements that are not 0, in order: i64 of shape (count, dims of x).

    >>> import tensorlib
    >>> nonzero(tensorlib.tensor([[0, 3], [5, 0]]))
    tensor([[0, 1],
            [1, 0]])
    """
    flat = _places(x)
    out = type(x).empty((flat.shape[0], x.ndim), _dtype.i64, x.device)
    for d, ids in enumerate(_coordinates(flat, x.shape)):
        copy_into(movement.select(out, 1, d), ids)
    return out


def _places(mask):
    """Places of what is not 0 in row-major order, as one i64 row."""
    from tensorlib.ops.reduce import sum

    mask = movement.contiguous(cast(mask, _dtype.bool_))
    out = type(mask).empty((item(sum(mask)) if mask.numel() else 0,), _dtype.i64, mask.device)
    if out.numel():
        kernel = backend.kernel("index", "nonzero", device=mask.device.type)
        backend.launch(kernel, [mask.ptr, out.ptr, mask.numel()], reads=(mask,), writes=(out,))
    return out


def _coordinates(flat, shape):
    found = []
    for size in reversed(shape):
        found.append(elementwise.remainder(flat, max(size, 1)))
        flat = elementwise.floor_divide(flat, max(size, 1))
    return found[::-1]


@define("index", SAME, lambda np, x, mask: x[mask], arity=2)
def masked_select(x, mask):
    """The elements where `mask` (bool) is true, as one row; the two broadcast."""
    shape = broadcast_shapes("masked_select", x.shape, mask.shape)
    return _take(movement.flatten(movement.broadcast_to(x, shape)), 0, _places(movement.broadcast_to(mask, shape)))


def tril(x, diagonal=0):
    """The last two dims below (and on) a diagonal; 0 above it."""
    return _triangle("tril", x, diagonal, elementwise.ge)


def triu(x, diagonal=0):
    """The last two dims above (and on) a diagonal; 0 below it."""
    return _triangle("triu", x, diagonal, elementwise.le)


def _triangle(op, x, diagonal, compare):
    if x.ndim < 2:
        raise ShapeError(op, f"a {x.ndim}-d tensor", "at least 2 dims", "add dims with unsqueeze")
    rows, cols = (create.arange(type(x), n, device=x.device) for n in x.shape[-2:])
    keep = compare(elementwise.add(movement.unsqueeze(rows, 1), diagonal), cols)
    return elementwise.where(keep, x, create.zeros(type(x), (), dtype=x.dtype, device=x.device))


# ---- [] --------------------------------------------------------------------------------------------------------------


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
    return _coordinates(_places(k), shape) if k.ndim != 1 else [_places(k)]


def _gathered(view, arrays):
    """(view with the indexed dims in front, flat indices into those, of their broadcast shape;
    where they go afterwards)
    """
    dims = sorted(arrays)
    shape = broadcast_shapes("index", *(arrays[d].shape for d in dims))
    flat = None
    for d in dims:
        size = view.shape[d]
        ids = _inside(cast(arrays[d], _dtype.i64), size)
        flat = ids if flat is None else elementwise.add(elementwise.mul(flat, size), ids)
    permuted = movement.permute(view, [*dims, *(d for d in range(view.ndim) if d not in arrays)])
    place = dims[0] if dims[-1] - dims[0] == len(dims) - 1 else 0
    return permuted, movement.contiguous(movement.broadcast_to(flat, shape)), place


def _inside(ids, size):
    """Indices of a dim, negative ones counted from the end. ShapeError if one is outside."""
    from tensorlib.ops.reduce import amax, amin

    if ids.numel():
        low, high = item(amin(ids)), item(amax(ids))
        if low < -size or high >= size:
            got = f"index {low if low < -size else high} in a dim of size {size}"
            raise ShapeError("index", got, f"indices in [{-size}, {size - 1}]", "use indices inside the dim")
        if low < 0:
            ids = elementwise.where(elementwise.lt(ids, 0), elementwise.add(ids, size), ids)
    return ids


def getitem(x, key):
    """x[key]. Basic keys (integers, slices, None, ...) give a view, masks and integer tensors a copy.
    ShapeError, DTypeError.
    """
    view, arrays = _parse(x, key)
    if not arrays:
        return view
    if len(arrays) == 1:
        ((dim, ids),) = arrays.items()
        return _take(view, dim, movement.contiguous(ids))
    permuted, flat, place = _gathered(view, arrays)
    out = _take(_merged(permuted, len(arrays)), 0, flat)
    dims = range(flat.ndim)
    return movement.movedim(out, tuple(dims), tuple(d + place for d in dims)) if place else out


def _merged(permuted, n):
    """The first n dims as one."""
    return movement.reshape(permuted, (prod(permuted.shape[:n]), *permuted.shape[n:]))


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
        elementwise.fill(view, number("index", value))


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
    _launch("index", "put", whole, flat, words, value.numel(), (value,), (whole,))
    if whole is not permuted:
        copy_into(permuted, whole)
