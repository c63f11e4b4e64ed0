"""Ops that read or write by index; `[]` is in getitem.py.

An index outside its dim is a ShapeError. On a GPU it is raised by whoever next reads values from there, with the op's
name; until then what is read outside is 0, and nothing is written outside.

>>> import tensorlib
>>> x = tensorlib.tensor([[1, 2, 3], [4, 5, 6]])
>>> index_select(x, 1, [2, 0]), masked_select(x, x > 4)
(tensor([[3, 1],
        [6, 4]]), tensor([5, 6]))
"""

import functools
from math import prod

from tensorlib import backend
from tensorlib import dtype as _dtype
from tensorlib.device import Array
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.layout import axis, broadcast_shapes
from tensorlib.memo import memoised
from tensorlib.ops import create, elementwise, movement, reduce
from tensorlib.ops._launch import _RAW, cast, copy_into, number, separate, writable
from tensorlib.ops.exchange import item
from tensorlib.registry import INDEX, SAME, define

# ---- kernels ---------------------------------------------------------------------------------------------------------


def launch(op, name, x, ids, words, work, reads, writes, dtype=None):
    """Runs an index kernel: address of x, ids, (words[0]), flag, the rest; ShapeError if an index was outside its dim:
    on a GPU, where nobody waits for that, it is raised when values are next read from there.
    """
    if x.device.gpu is not None:
        kernel = backend.kernel("index", name, dtype or _RAW[x.dtype.itemsize], ids.dtype.name, device=x.device.type)
        words = [x.ptr, ids.ptr, words[0], x.device.faults.words(op), *words[1:]]
        backend.launch(kernel, words, work=work, reads=(ids, *reads), writes=writes)
        return
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


def _selected(g, x_shape, dim, index):
    whole = create.zeros(type(g), x_shape, dtype=g.dtype, device=g.device)
    return index_add(whole, dim, index, g if g.ndim else movement.reshape(g, 1) if whole.ndim else g)


_quick = functools.partial(memoised, operands=(0, 2), gpu=True)  # of x, dim, index


@define("index", SAME, lambda np, x, dim, ids: np.take(x, ids, dim), arity=2, vjp={"x": _selected}, wrap=_quick)
def index_select(x, dim, index):
    """Elements `index` (1-d or 0-d integers, negative ones from the end) of one dim, in that order; a copy.

    >>> import tensorlib
    >>> index_select(tensorlib.tensor([[1, 2, 3], [4, 5, 6]]), 1, [2, 0])
    tensor([[3, 1],
            [6, 4]])
    """
    if hasattr(x, "format") and dim in (0, -x.ndim):
        return x[index]
    ids = _ids("index_select", x, index)
    if ids.ndim > 1:
        raise ShapeError("index_select", f"an index of shape {ids.shape}", "at most 1 dim", "use x[index]")
    dim, ids = axis("index_select", dim, x.ndim), movement.reshape(ids, -1)
    if not x.ndim:
        return movement.reshape(taken(movement.reshape(x, 1), dim, ids, "index_select"), ())
    return taken(x, dim, ids, "index_select")


def taken(x, dim, ids, op="index"):
    """x with `dim` replaced by the dims of `ids`."""
    x = movement.contiguous(x)
    outer, size, inner = prod(x.shape[:dim]), x.shape[dim], prod(x.shape[dim + 1 :])
    out = type(x).empty(x.shape[:dim] + ids.shape + x.shape[dim + 1 :], x.dtype, x.device)
    if ids.numel() and not size:
        raise ShapeError(op, "an index into a dim of size 0", "a dim with elements", "use an empty index")
    if out.numel():
        words = [out.ptr, size, ids.numel(), inner, outer]
        launch(op, "take", x, ids, words, out.numel(), (x,), (out,))
    return out


def _places(np, x, dim, index):
    """What `gather` and `scatter` read and write, as an index of NumPy's."""
    places = list(np.indices(index.shape))
    places[dim] = index
    return tuple(places)


def _gather_ref(np, x, dim, index):
    return x[_places(np, x, dim, index)]


def _gathered(g, x_shape, dim, index):
    return scatter_add(create.zeros(type(g), x_shape, dtype=g.dtype, device=g.device), dim, index, g)


@define("index", SAME, _gather_ref, arity=2, vjp={"x": _gathered}, wrap=_quick)
def gather(x, dim, index):
    """out[i, j] = x[index[i, j], j] for dim 0, and so on:
    `index` has x's number of dims, and no larger sizes but in dim.
    """
    dim, ids = _along("gather", x, dim, index)
    out = type(x).empty(ids.shape, x.dtype, x.device)
    if out.numel():
        launch("gather", "gather", x, ids, _along_words(x, dim, ids, out), out.numel(), (x,), (out,))
    return out


def winners(places, n):
    """Of a row of places in [0, n), whether each is the last that names its place."""
    order = create.arange(type(places), places.numel(), device=places.device)
    last = scatter(create.zeros(type(places), n, dtype=_dtype.i64, device=places.device), 0, places, order)
    return elementwise.eq(gather(last, 0, places), order)


def _scattered(g, x_shape, dim, index, src_shape):
    """g where src was written, if nothing later was written to the same place."""
    dim, ids = axis("scatter", dim, len(x_shape)), _ids("scatter", g, index)
    numbers = movement.reshape(create.arange(type(g), ids.numel(), device=g.device), ids.shape)
    last = scatter(create.zeros(type(g), x_shape, dtype=_dtype.i64, device=g.device), dim, ids, numbers)
    won = elementwise.eq(gather(last, dim, ids), numbers)
    return _in_corner(elementwise.where(won, gather(g, dim, ids), 0.0), src_shape)


def _in_corner(g, shape):
    """g at the start of zeros of `shape`."""
    if g.shape == shape:
        return g
    whole = create.zeros(type(g), shape, dtype=g.dtype, device=g.device)
    corner = whole
    for d, n in enumerate(g.shape):
        corner = movement.narrow(corner, d, 0, n)
    movement.copy_(corner, g)
    return whole


_SCATTER_VJP = {"x": lambda g, dim, index: scatter(g, dim, index, 0), "src": _scattered}
_SCATTER_ADD_VJP = {
    "x": lambda g: g,
    "src": lambda g, dim, index, src_shape: _in_corner(gather(g, dim, index), src_shape),
}


def _scatter_ref(np, x, dim, index, src):
    out = x.copy()
    out[_places(np, x, dim, index)] = src if np.ndim(src) == 0 else src[tuple(slice(n) for n in index.shape)]
    return out


def _scatter_add_ref(np, x, dim, index, src):
    out = x.copy()
    np.add.at(out, _places(np, x, dim, index), src[tuple(slice(n) for n in index.shape)])
    return out


@define("index", SAME, _scatter_ref, arity=2, vjp=_SCATTER_VJP)
def scatter(x, dim, index, src):
    """A copy of x with x[index[i, j], j] = src[i, j] (for dim 0); src is a tensor or a number.
    Of equal indices the last wins.
    """
    return _scatter("scatter", movement.clone(x), dim, index, src)


@define("index", SAME, _scatter_ref, arity=2, vjp=_SCATTER_VJP, writes=True)
def scatter_(x, dim, index, src):
    """`scatter` in place."""
    return _scatter("scatter", x, dim, index, src)


@define("index", SAME, _scatter_add_ref, arity=2, vjp=_SCATTER_ADD_VJP)
def scatter_add(x, dim, index, src):
    """A copy of x with src[i, j] added to x[index[i, j], j] (for dim 0)."""
    return _scatter("scatter_add", movement.clone(x), dim, index, src, x.dtype.name)


@define("index", SAME, _scatter_add_ref, arity=2, vjp=_SCATTER_ADD_VJP, writes=True)
def scatter_add_(x, dim, index, src):
    """`scatter_add` in place."""
    return _scatter("scatter_add", x, dim, index, src, x.dtype.name)


def index_add(x, dim, index, src):
    """A copy of x with the slices of src added at `index` (1-d) along dim."""
    dim, ids = axis("index_add", dim, x.ndim), _ids("index_add", x, index)
    shape = [1] * x.ndim
    shape[dim] = ids.numel()
    ids = movement.expand(movement.reshape(ids, shape), src.shape)
    return scatter_add(x, dim, movement.contiguous(ids) if x.device.type == "cpu" else ids, src)


def _scatter(op, x, dim, index, src, dtype=None):
    writable(op, x)
    if dtype and x.device.type != "cpu" and _names_rows(op, x, dim, index, src):
        return _scatter_rows(op, x, axis(op, dim, x.ndim), index, src)
    dim, ids = _along(op, x, dim, index)
    if not isinstance(src, Array):
        src = create.full(type(x), ids.shape, number(op, src), dtype=x.dtype, device=x.device)
    if src.ndim != ids.ndim or any(s < i for s, i in zip(src.shape, ids.shape, strict=True)):
        raise ShapeError(
            op, f"src of shape {src.shape} for an index of {ids.shape}", "src at least as large", "expand it"
        )
    src = _source(x, ids, src)
    if ids.numel():
        work = 4 * ids.numel() if x.ndim > 1 else 0  # one row is one thread's
        launch(op, op, x, ids, _along_words(x, dim, ids, src), work, (x, src), (x,), dtype)
    return x


def _source(x, ids, src):
    """The part of src that the index has places for, dense, in x's dtype and not in its memory."""
    for d, n in enumerate(ids.shape):
        src = movement.narrow(src, d, 0, n)
    return movement.contiguous(cast(separate(src, x), x.dtype))


def _names_rows(op, x, dim, index, src):
    """Whether an index, expanded over all other dims, names whole rows of more than an element of a dense x."""
    if not (isinstance(index, Array) and isinstance(src, Array) and index.numel() and index.dtype.kind in "ui"):
        return False
    if not x.ndim == index.ndim == src.ndim:
        return False
    dim = axis(op, dim, x.ndim)
    others = [d for d in range(x.ndim) if d != dim]
    return (
        all(index.shape[d] == x.shape[d] and (index.strides[d] == 0 or index.shape[d] == 1) for d in others)
        and all(n <= m for n, m in zip(index.shape, src.shape, strict=True))
        and prod(x.shape[dim + 1 :]) > 1
        and x.layout.is_contiguous()
    )


def _scatter_rows(op, x, dim, index, src):
    """`_scatter` of whole rows on a GPU, which sorts one index a row."""
    src = _source(x, index, src)
    for d in reversed([d for d in range(x.ndim) if d != dim]):
        index = movement.select(index, d, 0)
    outer, inner = prod(x.shape[:dim]), prod(x.shape[dim + 1 :])
    ids = movement.contiguous(index)
    words = [src.ptr, x.shape[dim], ids.numel(), inner, outer]
    launch(op, f"{op}_rows", x, ids, words, src.numel(), (x, src), (x,), x.dtype.name)
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
    # to a kernel that writes, 0 is the picked dim: another one of step 0 has size 1
    steps = [0 if d == dim else s or int(x.shape[d] == 1) for d, s in enumerate(x.strides)]
    words = [y.ptr, x.shape[dim], x.strides[dim], ids.shape[-1], steps[-1], prod(ids.shape[:-1]), ids.ndim - 1]
    for d in reversed(range(ids.ndim - 1)):
        words += [ids.shape[d], steps[d]]
    return words


@define("index", INDEX, lambda np, x: np.argwhere(x))
def _nonzero(x):
    """Indices of the elements that are not 0, in order: i64 of shape (count, dims of x)."""
    flat = places(x)
    out = type(x).empty((flat.shape[0], x.ndim), _dtype.i64, x.device)
    if x.ndim == 1:
        return movement.reshape(flat, out.shape)
    for d, ids in enumerate(coordinates(flat, x.shape)):
        copy_into(movement.select(out, 1, d), ids)
    return out


def nonzero(x, as_tuple=False):
    """Indices of the elements that are not 0, in order: i64 of shape (count, dims of x), or as_tuple a row per dim.

    >>> import tensorlib
    >>> nonzero(tensorlib.tensor([[0, 3], [5, 0]]), as_tuple=True)
    (tensor([0, 1]), tensor([1, 0]))
    """
    if not as_tuple:
        return _nonzero(x)
    return movement.unbind(_nonzero(x if x.ndim else movement.reshape(x, 1)), 1)


def places(mask):
    """Places of what is not 0 in row-major order, as one i64 row."""
    mask = movement.contiguous(cast(mask, _dtype.bool_))
    out = type(mask).empty((item(reduce.sum(mask)) if mask.numel() else 0,), _dtype.i64, mask.device)
    if out.numel():
        kernel = backend.kernel("index", "nonzero", device=mask.device.type)
        backend.launch(kernel, [mask.ptr, out.ptr, mask.numel()], mask.numel(), (mask,), (out,))
    return out


def coordinates(flat, shape):
    found = []
    for size in reversed(shape):
        found.append(elementwise.remainder(flat, max(size, 1)))
        flat = elementwise.floor_divide(flat, max(size, 1))
    return found[::-1]


def _unselected(g, x_shape, mask):
    shape = broadcast_shapes("masked_select", x_shape, mask.shape)
    whole = create.zeros(type(g), shape, dtype=g.dtype, device=g.device)
    movement.reshape(whole, -1)[movement.reshape(movement.broadcast_to(mask, shape), -1)] = g
    return whole


def _masked_ref(np, x, mask):
    x, mask = np.broadcast_arrays(x, mask, subok=True)
    return x[mask]


@define("index", SAME, _masked_ref, arity=2, vjp={"x": _unselected})
def masked_select(x, mask):
    """The elements where `mask` (bool) is true, as one row; the two broadcast."""
    shape = broadcast_shapes("masked_select", x.shape, mask.shape)
    return taken(movement.flatten(movement.broadcast_to(x, shape)), 0, places(movement.broadcast_to(mask, shape)))


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
