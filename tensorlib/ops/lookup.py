"""Reading by index in other ways: flat, broadcast, in bags of rows; classes as rows of zeros and ones.

>>> import tensorlib
>>> x = tensorlib.tensor([[4, 5, 6], [7, 8, 9]])
>>> take(x, tensorlib.tensor([0, 5])), one_hot(tensorlib.tensor([1, 0]), 3)
(tensor([4, 9]), tensor([[0, 1, 0],
        [1, 0, 0]]))
"""

from tensorlib import dtype as _dtype
from tensorlib.device import Array
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.layout import axis, broadcast_shapes
from tensorlib.ops import create, elementwise, movement, reduce
from tensorlib.ops.elementwise import cast, div, mul, where
from tensorlib.ops.exchange import item
from tensorlib.ops.index import gather, index_add, index_select, nonzero
from tensorlib.ops.scatter import index_reduce
from tensorlib.registry import INDEX, SAME, define


def _integers(op, ids):
    if ids.dtype.kind not in "ui":
        raise DTypeError(op, f"an index of dtype {ids.dtype}", "integers", "convert it with .to('i64')")
    return ids


@define("composite", SAME, lambda np, x, index: np.take(x, index), 2)
def take(x, index):
    """The elements of x, flattened, at integer places: the index's shape. ShapeError for places outside, DTypeError."""
    ids = movement.reshape(_integers("take", index), -1)
    return movement.reshape(gather(movement.reshape(x, -1), 0, ids), index.shape)


@define("composite", SAME, None, 2)
def take_along_dim(x, indices, dim=None):
    """`gather` whose other dims broadcast; of x and indices flattened, for dim None. ShapeError, DTypeError.

    >>> import tensorlib
    >>> x = tensorlib.tensor([[3, 1, 2], [9, 7, 8]])
    >>> take_along_dim(x, x.argmax(1, keepdim=True), 1)
    tensor([[3],
            [9]])
    """
    if dim is None:
        x, indices, dim = movement.reshape(x, -1), movement.reshape(indices, -1), 0
    dim = axis("take_along_dim", dim, x.ndim)
    if x.ndim != indices.ndim:
        got = f"shapes {x.shape} and {indices.shape}"
        raise ShapeError("take_along_dim", got, "equal numbers of dims", "add dims with unsqueeze")
    a, b = ([*s[:dim], 1, *s[dim + 1 :]] for s in (x.shape, indices.shape))
    shape = list(broadcast_shapes("take_along_dim", tuple(a), tuple(b)))
    wide = [movement.broadcast_to(v, [*shape[:dim], v.shape[dim], *shape[dim + 1 :]]) for v in (x, indices)]
    return gather(wide[0], dim, _integers("take_along_dim", wide[1]))


@define("composite", INDEX, lambda np, x: np.argwhere(x))
def argwhere(x):
    """Indices of the elements that are not 0: i64 of shape (count, dims of x). The same as `nonzero`."""
    return nonzero(x)


def repeated(x, repeats, dim=None):
    """`repeat_interleave` for a tensor of repeats: as many for each element of the dim, or one for all. ShapeError."""
    from tensorlib.ops import scan, sort

    x, dim = (movement.reshape(x, -1), 0) if dim is None else (x, axis("repeat_interleave", dim, x.ndim))
    n = x.shape[dim]
    repeats = movement.reshape(cast(_integers("repeat_interleave", repeats), _dtype.i64), -1)
    if repeats.numel() not in (1, n) or (repeats.numel() and item(reduce.amin(repeats)) < 0):
        got = f"repeats of shape {repeats.shape}"
        raise ShapeError("repeat_interleave", got, f"{n} counts of 0 or more, or one", "count each element")
    ends = scan.cumsum(movement.broadcast_to(repeats, (n,)), 0)
    total = item(movement.select(ends, 0, n - 1)) if n else 0
    ids = sort.searchsorted(ends, create.arange(type(x), total, device=x.device), right=True)
    return index_select(x, dim, ids)


@define("composite", INDEX, lambda np, x, n: np.eye(n, dtype=np.int64)[x])
def one_hot(x, num_classes=-1):
    """1 at place x of a new last dim of num_classes (largest of x + 1, by default), 0 elsewhere: i64.

    ShapeError for classes outside, DTypeError for other dtypes than integers.
    """
    _integers("one_hot", x)
    low, high = (item(reduce.amin(x)), item(reduce.amax(x))) if x.numel() else (0, num_classes - 1)
    classes = high + 1 if num_classes == -1 else num_classes
    if low < 0 or high >= classes or classes < 1:
        got = f"classes from {low} to {high} for num_classes {num_classes}"
        raise ShapeError("one_hot", got, "classes in [0, num_classes)", "choose num_classes")
    every = create.arange(type(x), classes, device=x.device)
    return cast(elementwise.eq(movement.unsqueeze(cast(x, _dtype.i64), -1), every), _dtype.i64)


@define("composite", SAME, None, 2)
def embedding_bag(input, weight, offsets=None, *, mode="mean", per_sample_weights=None, padding_idx=None):
    """Rows of weight (V, D) by ids, summed, averaged or maximised in bags: (B, D); an empty bag gives 0.

    input (B, L): a bag per row; or (N,) with offsets (B,), where each bag starts. per_sample_weights (input's shape)
    scale rows, for mode "sum" only; ids equal to padding_idx do not count. mode: "sum", "mean" or "max".
    ShapeError, DTypeError.

    >>> import tensorlib
    >>> ids, weight = tensorlib.tensor([0, 1, 1]), tensorlib.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> embedding_bag(ids, weight, tensorlib.tensor([0, 2]), mode="sum")
    tensor([[4., 6.],
            [3., 4.]])
    """
    if mode not in ("sum", "mean", "max"):
        raise ShapeError("embedding_bag", f"mode {mode!r}", "sum, mean or max", "use one of these")
    if per_sample_weights is not None and (mode != "sum" or per_sample_weights.shape != input.shape):
        got = f"per_sample_weights of shape {per_sample_weights.shape} for mode {mode!r}"
        raise ShapeError("embedding_bag", got, "input's shape, mode 'sum'", "leave them out")
    bags, count = _bags(input, offsets)
    ids = movement.reshape(_integers("embedding_bag", input), -1)
    rows = index_select(weight, 0, ids)
    if per_sample_weights is not None:
        rows = mul(rows, movement.reshape(per_sample_weights, (-1, 1)))
    kept = create.ones(type(weight), ids.numel(), dtype=weight.dtype, device=weight.device)
    if padding_idx is not None:
        used = elementwise.ne(ids, padding_idx % weight.shape[0])
        kept = cast(used, weight.dtype)
        blank = float("-inf") if mode == "max" else 0.0
        rows = where(movement.unsqueeze(used, 1), rows, blank)
    blank = create.zeros(type(weight), (count, weight.shape[1]), dtype=weight.dtype, device=weight.device)
    none = create.zeros(type(weight), count, dtype=weight.dtype, device=weight.device)
    sizes = movement.unsqueeze(index_add(none, 0, bags, kept), 1)
    if mode == "max":
        found = index_reduce(blank, 0, bags, rows, "amax", include_self=False)
        return where(elementwise.eq(sizes, 0), 0.0, found)
    total = index_add(blank, 0, bags, rows)
    return total if mode == "sum" else div(total, elementwise.clamp(sizes, 1))


def _bags(input, offsets):
    """(the bag of each id, how many bags)"""
    from tensorlib.ops import sort

    if (input.ndim == 1) != isinstance(offsets, Array) or input.ndim not in (1, 2):
        got = f"input of shape {input.shape} and {'no ' if offsets is None else ''}offsets"
        raise ShapeError("embedding_bag", got, "2 dims, or 1 dim and offsets", "give offsets for 1-d input only")
    if input.ndim == 2:
        count = input.shape[0]
        rows = create.arange(type(input), count, device=input.device)
        return movement.repeat_interleave(rows, input.shape[1]), count
    if offsets.numel() and item(movement.select(offsets, 0, 0)) != 0:
        got = f"offsets from {item(movement.select(offsets, 0, 0))} on"
        raise ShapeError("embedding_bag", got, "a first offset of 0", "start the first bag at 0")
    places = create.arange(type(input), input.numel(), device=input.device)
    found = sort.searchsorted(cast(offsets, _dtype.i64), places, right=True)
    return elementwise.sub(found, 1), offsets.numel()
