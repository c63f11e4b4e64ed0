"""Sorting along a dim, and what follows from order: the k largest, distinct values, searching, counting.

Every sort is stable. NaN counts as larger than any number, and -0.0 equals 0.0. Rows (all other dims) are shared out to
threads. Integers of any dtype and bool sort as well; nothing is rounded. Gradients of what is ordered go to where each
element came from; what only counts or compares has none.

>>> import tensorlib
>>> x = tensorlib.tensor([3.0, 1.0, 2.0])
>>> sort(x).values, argsort(x, descending=True), topk(x, 2).indices
(tensor([1., 2., 3.]), tensor([0, 2, 1]), tensor([0, 2]))
"""

import math
from collections import namedtuple

from tensorlib import backend
from tensorlib import dtype as _dtype
from tensorlib.device import Array
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.layout import axis
from tensorlib.ops import create, elementwise, index, movement, reduce
from tensorlib.ops import sort_rows as _rows
from tensorlib.ops._launch import cast, number
from tensorlib.ops.exchange import item
from tensorlib.ops.scan import rows, to_places, unrows
from tensorlib.registry import FLOAT_ONLY, SAME, Rule, define

ORDER = Rule("ORDER", "buif", "i64", result=lambda d: _dtype.i64)
COUNT = Rule("COUNT", "ui", "i64; integers only", result=lambda d: _dtype.i64)
TABLES = 256 * 8  # kernels_numba/sort.py: bytes of counters per thread
SPARE = 512  # elements that are gathered beyond 2 k before the k smallest of them are chosen

Sorted = namedtuple("Sorted", "values indices")  # what sorting along one dim gives


def _sorted(op, x, dim, flip, k=None, values=True):
    """The first k (all for None) of the rows along `dim` in order: Sorted, with values None if they are not wanted."""
    moved, dim = rows(op, x, dim)
    count, n = math.prod(moved.shape[:-1]), moved.shape[-1]
    k = n if k is None else k
    shape = (*moved.shape[:-1], k)
    indices = type(x).empty(shape, _dtype.i64, x.device)
    out = type(x).empty(shape, x.dtype, x.device) if values else None
    if indices.numel():
        size = 1 if x.dtype.itemsize <= 4 and n < 1 << 31 else 2
        work = 16 * moved.numel() if count > 1 else 0  # one row is one thread's
        threads = min(count, backend.threads(x.device.type)) if work >= backend.PARALLEL_WORK else 1
        room = n if k == n else min(n, 2 * k + SPARE)
        nbytes = threads * (TABLES + 16 * size * room) if x.device.type == "cpu" else 1  # a GPU's plan has its own
        scratch = Array.empty((nbytes,), _dtype.u8, x.device)
        words = [moved.ptr, out.ptr if values else 0, indices.ptr, count, n, k, -1 if flip else 0, room, scratch.ptr]
        kernel = backend.kernel("sort", "sort", x.dtype.name, size, device=x.device.type)
        writes = (indices, scratch, *([out] if values else []))
        backend.launch(kernel, words, work=work, reads=(moved,), writes=writes)
    return Sorted(unrows(out, x, dim) if values else None, unrows(indices, x, dim))


def _sorted_vjp(g, x_shape, dim, out):
    return to_places(g[0], x_shape, dim, out[1])


def _kth_vjp(g, x_shape, dim, keepdim, out):
    g, where = g[0], out[1]
    if x_shape and not keepdim:
        d = axis("kthvalue", dim, len(x_shape))
        g, where = movement.unsqueeze(g, d), movement.unsqueeze(where, d)
    return to_places(g, x_shape, dim, where)


@define("index", SAME, _rows.sort_ref, domain=_rows.sort_domain, vjp={"x": _sorted_vjp})
def sort(x, dim=-1, descending=False, stable=False):
    """(values, indices) in order along a dim: x's shape and dtype, and i64. Always stable; NaN sorts above all numbers.

    ShapeError for a dim that x does not have.

    >>> import tensorlib
    >>> sort(tensorlib.tensor([[2, 9, 2], [0, -1, 5]]), dim=1, descending=True)
    Sorted(values=tensor([[ 9,  2,  2],
            [ 5,  0, -1]]), indices=tensor([[1, 0, 2],
            [2, 0, 1]]))
    """
    return _sorted("sort", x, dim, descending)


@define("index", ORDER, _rows.argsort_ref, domain=_rows.sort_domain, vjp={})
def argsort(x, dim=-1, descending=False, stable=False):
    """The indices that `sort` gives, as i64; always stable. ShapeError for a dim that x does not have.

    >>> import tensorlib
    >>> argsort(tensorlib.tensor([2.0, float("nan"), -1.0]))
    tensor([2, 0, 1])
    """
    return _sorted("argsort", x, dim, descending, values=False).indices


@define(
    "index",
    SAME,
    lambda np, x: np.sort(x, 0, kind="stable"),
    domain=lambda s, dtype: ((s.array(s.shape(min_dims=1)),), {}),
    vjp={"x": lambda g, x: to_places(g, x.shape, 0, argsort(x, 0))},
)
def msort(x):
    """x sorted along its first dim: x's shape and dtype.

    >>> import tensorlib
    >>> msort(tensorlib.tensor([[2, 1], [1, 3]]))
    tensor([[1, 1],
            [2, 3]])
    """
    return _sorted("msort", x, 0, False).values


@define("index", SAME, _rows.topk_ref, domain=_rows.topk_domain, vjp={"x": _sorted_vjp})
def topk(x, k, dim=-1, largest=True, sorted=True):
    """(values, indices) of the k largest (or smallest) elements along a dim, best first; of equal ones the first.

    x's dtype and i64, of x's shape with k elements in `dim`. NaN counts as the largest. They are selected in O(n) and
    always sorted. ShapeError for a dim that x does not have, or fewer than k elements in it.

    >>> import tensorlib
    >>> topk(tensorlib.tensor([1.0, 7.0, 7.0, 3.0]), 2)
    Sorted(values=tensor([7., 7.]), indices=tensor([1, 2]))
    """
    _k("topk", x, k, dim, 0)
    return _sorted("topk", x, dim, largest, k)


@define("index", SAME, _rows.kthvalue_ref, domain=_rows.kthvalue_domain, vjp={"x": _kth_vjp})
def kthvalue(x, k, dim=-1, keepdim=False):
    """(values, indices) of the k-th smallest element along a dim, counted from 1; of equal ones as `sort` orders them.

    x's dtype and i64, of x's shape without `dim` (1 in it for keepdim). ShapeError for a dim that x does not have, or k
    outside it.

    >>> import tensorlib
    >>> kthvalue(tensorlib.tensor([[5, 1, 3], [2, 2, 0]]), 2)
    Sorted(values=tensor([3, 2]), indices=tensor([2, 0]))
    """
    d = _k("kthvalue", x, k, dim, 1)
    found = _sorted("kthvalue", x, dim, False, k)
    if not x.ndim:
        return found
    last = [movement.clone(movement.narrow(part, d, k - 1, 1)) for part in found]
    return Sorted(*(part if keepdim else movement.squeeze(part, d) for part in last))


def _k(op, x, k, dim, least):
    d = axis(op, dim, x.ndim)
    n = x.shape[d] if x.ndim else 1
    if isinstance(k, bool) or not hasattr(k, "__index__"):
        raise DTypeError(op, f"k of type {type(k).__name__}", "an integer", "convert it with int(k)")
    if not least <= k <= n:
        raise ShapeError(op, f"k = {k} for a dim of size {n}", f"k in [{least}, {n}]", "choose another k")
    return d


# ---- distinct values -------------------------------------------------------------------------------------------------


@define("index", SAME, _rows.unique_ref, domain=_rows.unique_domain, vjp={})
def unique(x, sorted=True, return_inverse=False, return_counts=False):
    """The distinct elements of x, flattened, in ascending order: one row of x's dtype. Every NaN is distinct.

    With return_inverse, also where in them each element of x is (i64, x's shape); with return_counts, how often each
    occurs (i64): a tuple in that order. Always sorted.

    >>> import tensorlib
    >>> unique(tensorlib.tensor([[3, 1], [3, 2]]), return_inverse=True, return_counts=True)
    (tensor([1, 2, 3]), tensor([[2, 0],
            [2, 1]]), tensor([1, 1, 2]))
    """
    values, order = _sorted("unique", movement.reshape(x, -1), 0, False)
    return _runs(x, values, order, return_inverse, return_counts)


@define("index", SAME, _rows.consecutive_ref, domain=_rows.consecutive_domain, vjp={})
def unique_consecutive(x, return_inverse=False, return_counts=False):
    """x, flattened, without elements equal to the one before: one row of x's dtype. Otherwise as `unique`.

    >>> import tensorlib
    >>> unique_consecutive(tensorlib.tensor([1, 1, 2, 1]), return_counts=True)
    (tensor([1, 2, 1]), tensor([2, 1, 1]))
    """
    return _runs(x, movement.contiguous(movement.reshape(x, -1)), None, return_inverse, return_counts)


def _runs(x, row, order, return_inverse, return_counts):
    n = row.numel()
    values = type(x).empty((n,), x.dtype, x.device)
    starts, runs, total = (type(x).empty((size,), _dtype.i64, x.device) for size in (n + 1, n, 1))
    words = [row.ptr, order.ptr if order is not None else 0, values.ptr, starts.ptr, runs.ptr, total.ptr, n]
    kernel = backend.kernel("sort", "unique", x.dtype.name, device=x.device.type)
    reads = (row, *([order] if order is not None else []))
    backend.launch(kernel, words, reads=reads, writes=(values, starts, runs, total))
    found = item(total)
    out = [movement.clone(movement.narrow(values, 0, 0, found))]
    if return_inverse:
        out.append(movement.reshape(runs, x.shape))
    if return_counts:
        out.append(elementwise.sub(movement.narrow(starts, 0, 1, found), movement.narrow(starts, 0, 0, found)))
    return out[0] if len(out) == 1 else tuple(out)


# ---- searching -------------------------------------------------------------------------------------------------------


@define("index", ORDER, _rows.searchsorted_ref, arity=2, domain=_rows.searchsorted_domain, vjp={})
def searchsorted(sorted_sequence, input, *, out_int32=False, right=False, side=None, sorter=None):
    """Where to insert each value so that sorted rows stay sorted: before equal elements, behind them for `right`.

    `sorted_sequence` ascends along its last dim; it has one dim, or its other dims are those of `input`. `input` is a
    tensor of its dtype, or a number for one dim. `side` ("left" or "right") is NumPy's name for `right`; `sorter` holds
    the indices that sort an unsorted sequence. i64 (i32 for out_int32) of input's shape; NaN goes behind all numbers.
    ShapeError, DTypeError.

    >>> import tensorlib
    >>> edges = tensorlib.tensor([1, 3, 5])
    >>> searchsorted(edges, tensorlib.tensor([0, 3, 9])), searchsorted(edges, 3, right=True)
    (tensor([0, 1, 3]), tensor(2))
    """
    if side not in (None, "left", "right") or (side == "left" and right):
        fix = "give one of them"
        raise ShapeError("searchsorted", f"side {side!r} with right={right}", "'left' or 'right' that agree", fix)
    if sorter is not None:
        if sorter.shape != sorted_sequence.shape:
            got = f"a sorter of shape {sorter.shape} for {sorted_sequence.shape}"
            raise ShapeError("searchsorted", got, "equal shapes", "make it with argsort(sorted_sequence)")
        sorted_sequence = index.gather(sorted_sequence, -1, sorter)
    return _search("searchsorted", sorted_sequence, input, out_int32, right or side == "right")


@define("index", ORDER, _rows.bucketize_ref, arity=2, domain=_rows.bucketize_domain, vjp={})
def bucketize(input, boundaries, *, out_int32=False, right=False):
    """Index of the bucket that each value is in: boundaries[i - 1] < value <= boundaries[i] (for `right`: <= and <).

    `boundaries` has one dim and ascends; `input` is a tensor of its dtype, or a number. i64 (i32 for out_int32) of
    input's shape. ShapeError, DTypeError.

    >>> import tensorlib
    >>> bucketize(tensorlib.tensor([[3, 6], [9, 0]]), tensorlib.tensor([1, 3, 6]))
    tensor([[1, 2],
            [3, 0]])
    """
    if boundaries.ndim != 1:
        raise ShapeError("bucketize", f"{boundaries.ndim}-d boundaries", "one dim", "flatten them")
    return _search("bucketize", boundaries, input, out_int32, right)


def _search(op, edges, x, out_int32, right):
    if not isinstance(x, Array):
        x = number(op, x)
        common = _dtype.result_type([edges.dtype], [], [x])
        edges, x = cast(edges, common), create.full(type(edges), (), x, dtype=common, device=edges.device)
    if x.dtype is not edges.dtype:
        raise DTypeError(op, f"values of {x.dtype} in a sequence of {edges.dtype}", "one dtype", "convert with .to()")
    if edges.ndim != 1 and (not edges.ndim or edges.shape[:-1] != x.shape[:-1] or not x.ndim):
        got = f"a sequence of shape {edges.shape} and values of {x.shape}"
        raise ShapeError(op, got, "one dim, or equal shapes but for the last dim", "expand one of them")
    out = type(x).empty(x.shape, _dtype.i32 if out_int32 else _dtype.i64, x.device)
    if out.numel():
        dense, sequence, n = movement.contiguous(x), movement.contiguous(edges), edges.shape[-1]
        words = [dense.ptr, out.ptr, x.numel(), n, x.numel() if edges.ndim == 1 else x.shape[-1], int(right)]
        kernel = backend.kernel("sort", "searchsorted", x.dtype.name, out.dtype.name, device=x.device.type)
        work = 4 * x.numel() * n.bit_length()
        backend.launch(kernel, [sequence.ptr, *words], work=work, reads=(sequence, dense), writes=(out,))
    return out


# ---- counting --------------------------------------------------------------------------------------------------------


@define(
    "index",
    COUNT,
    lambda np, input, weights=None, minlength=0: np.bincount(input, weights, minlength),
    arity=2,
    domain=_rows.bincount_domain,
    vjp={"weights": lambda g, input: index.index_select(g, 0, input)},
)
def bincount(input, weights=None, minlength=0):
    """How often each of 0, 1, ... max(input) occurs, or the sums of their weights; at least `minlength` elements.

    `input` is one row of integers from 0 on; `weights` a row of its length. i64; with weights f32 if they are f32, else
    f64 (added up in f64, in order). DTypeError for floats, ShapeError for other shapes and negative elements.

    >>> import tensorlib
    >>> bincount(tensorlib.tensor([1, 3, 1])), bincount(tensorlib.tensor([0, 1]), tensorlib.tensor([0.5, 2.0]), 3)
    (tensor([0, 2, 0, 1]), tensor([0.5000, 2.0000, 0.0000]))
    """
    x = input
    COUNT.apply("bincount", x.dtype)
    if x.ndim != 1 or (weights is not None and weights.shape != x.shape):
        got = f"shape {x.shape}" + ("" if weights is None else f" and weights of {weights.shape}")
        raise ShapeError("bincount", got, "one dim, and weights of its size", "flatten them")
    low, size = (item(reduce.amin(x)), int(item(reduce.amax(x))) + 1) if x.numel() else (0, 0)
    if low < 0:
        raise ShapeError("bincount", f"element {low}", "elements of 0 or more", "subtract the smallest one first")
    if minlength < 0:
        raise ShapeError("bincount", f"minlength {minlength}", "0 or more", "leave it out")
    kind = _dtype.i64 if weights is None else _dtype.f64
    out = create.zeros(type(x), max(size, minlength), dtype=kind, device=x.device)
    if x.numel():
        arrays = [movement.contiguous(v) for v in (x, weights) if v is not None]
        kernel = backend.kernel("sort", "bincount", *(v.dtype.name for v in arrays), device=x.device.type)
        words = [arrays[0].ptr, 0 if weights is None else arrays[1].ptr, out.ptr, x.numel()]
        backend.launch(kernel, words, reads=arrays, writes=(out,))
    return cast(out, _dtype.f32) if weights is not None and weights.dtype is _dtype.f32 else out


@define("index", FLOAT_ONLY, _rows.histc_ref, domain=_rows.histc_domain, vjp={})
def histc(input, bins=100, min=0, max=0):
    """How many elements fall into each of `bins` equal intervals from min to max (x's own range if they are equal 0).

    The last interval contains max; NaN and elements outside are not counted. One row of x's float dtype. DTypeError for
    integers; ShapeError for no bins, min > max, or a range that is not finite.

    >>> import tensorlib
    >>> histc(tensorlib.tensor([1.0, 2.0, 1.0, 4.0]), bins=4, min=0, max=4)
    tensor([0., 2., 1., 1.])
    """
    x, low, high = input, float(min), float(max)
    FLOAT_ONLY.apply("histc", x.dtype)
    if bins < 1 or low > high:
        got = f"{bins} bins from {low} to {high}"
        raise ShapeError("histc", got, "at least one bin, min <= max", "choose another range")
    if low == high == 0 and x.numel():
        low, high = float(item(reduce.amin(x))), float(item(reduce.amax(x)))
    if low == high:
        low, high = low - 1, high + 1
    if not math.isfinite(low) or not math.isfinite(high):
        raise ShapeError("histc", f"a range from {low} to {high}", "finite ends", "give min and max")
    counts = create.zeros(type(x), bins, dtype="i64", device=x.device)
    if x.numel():
        dense = movement.contiguous(x)
        kernel = backend.kernel("sort", "histc", x.dtype.name, device=x.device.type)
        backend.launch(kernel, [dense.ptr, counts.ptr, x.numel(), bins, low, high], reads=(dense,), writes=(counts,))
    return cast(counts, x.dtype)
