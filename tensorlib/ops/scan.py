"""Running results along one dim, in one pass: sums, products, extremes with their indices, log-sums of exponentials.

>>> import tensorlib
>>> x = tensorlib.tensor([1.0, 3.0, 2.0, 3.0])
>>> cumsum(x, 0), cumprod(x, 0)
(tensor([1., 4., 6., 9.]), tensor([ 1.,  3.,  6., 18.]))
>>> cummax(x, 0)
Extreme(values=tensor([1., 3., 3., 3.]), indices=tensor([0, 1, 1, 3]))
"""

from math import prod

from tensorlib import backend
from tensorlib import dtype as _dtype
from tensorlib.layout import axis
from tensorlib.ops import create, elementwise, index, movement, reduce
from tensorlib.ops.reduce import Extreme
from tensorlib.registry import ACC, FLOAT_ONLY, SAME, define

INF = float("inf")

__all__ = ["cummax", "cummin", "cumprod", "cumsum", "logcumsumexp"]


def _cumprod_vjp(g, x, out, dim):
    if not elementwise.eq(x, 0).any():
        return _reversed_cumsum(g * out, dim) / x
    x, g = movement.movedim(x, dim, -1), movement.movedim(g, dim, -1)
    n = x.shape[-1]
    diagonal = create.eye(type(x), n, dtype=_dtype.bool_, device=x.device)
    without = cumprod(elementwise.where(diagonal, 1.0, movement.unsqueeze(x, -2)), -1)  # [..., i, j]: x_i left out
    i = create.arange(type(x), n, device=x.device)
    reached = elementwise.le(movement.unsqueeze(i, 1), i)
    found = reduce.sum(elementwise.where(reached, without * movement.unsqueeze(g, -2), 0.0), -1)
    return movement.movedim(found, -1, dim)


def _reversed_cumsum(g, dim):
    return movement.flip(cumsum(movement.flip(g, dim), dim), dim) if g.ndim else g


def _scan(op, x, dim, dtype):
    compute, result = reduce.sum_dtype(op, x, dtype)
    dim = axis(op, dim, x.ndim)
    out = reduce.each(op, x, dim, lambda kept, n: (*kept, n), result, compute)
    return movement.movedim(out, -1, dim) if x.ndim else movement.reshape(out, ())


@define("scan", ACC, lambda np, x, dim: np.cumsum(x, dim), vjp={"x": _reversed_cumsum})
def cumsum(x, dim, dtype=None):
    """Running sums along a dim; integers and bool give i64. Float sums run in f64."""
    return _scan("cumsum", x, dim, dtype)


@define("scan", ACC, lambda np, x, dim: np.cumprod(x, dim), vjp={"x": _cumprod_vjp})
def cumprod(x, dim, dtype=None):
    """Running products along a dim; integers and bool give i64. Float products run in f64."""
    return _scan("cumprod", x, dim, dtype)


def rows(op, x, dim):
    """x with `dim` moved to the end, contiguous (a 0-d x as one row of one element), and `dim` from 0. ShapeError."""
    dim = axis(op, dim, x.ndim)
    if dim < x.ndim - 1:
        x = movement.movedim(x, dim, -1)
    return movement.contiguous(x if x.ndim else movement.reshape(x, 1)), dim


def unrows(out, x, dim):
    """A result whose last dim stands for dim `dim` of x, with its dims in x's order: a view."""
    if not x.ndim:
        return movement.reshape(out, ())
    return out if dim == x.ndim - 1 else movement.movedim(out, -1, dim)


def to_places(g, x_shape, dim, where):
    """Zeros of `x_shape`, with the elements of g added along `dim` at the indices `where`, of g's shape."""
    return index.scatter_add(create.zeros(type(g), x_shape, dtype=g.dtype, device=g.device), dim, where, g)


def _extreme_ref(name):
    def ref(np, x, dim):
        values = getattr(np, name).accumulate(x, dim)
        sizes = [-1 if d == dim % x.ndim else 1 for d in range(x.ndim)]
        place = np.broadcast_to(np.arange(x.shape[dim]).reshape(sizes), x.shape)
        return values, np.maximum.accumulate(np.where((x == values) | (x != x), place, 0), dim)

    return ref


def _extreme(op, x, dim):
    moved, dim = rows(op, x, dim)
    values = type(x).empty(moved.shape, x.dtype, x.device)
    indices = type(x).empty(moved.shape, _dtype.i64, x.device)
    if moved.numel():
        name = "u8" if x.dtype.kind == "b" else x.dtype.name
        words = [moved.ptr, values.ptr, indices.ptr, prod(moved.shape[:-1]), moved.shape[-1]]
        kernel = backend.kernel("scan", op, name, device=x.device.type)
        backend.launch(kernel, words, work=4 * x.numel(), reads=(moved,), writes=(values, indices))
    return Extreme(unrows(values, x, dim), unrows(indices, x, dim))


def _extreme_vjp(g, x_shape, dim, out):
    return to_places(g[0], x_shape, dim, out[1])


@define("scan", SAME, _extreme_ref("maximum"), vjp={"x": _extreme_vjp})
def cummax(x, dim):
    """(largest element so far, its index as i64) along a dim; of equal ones the last. From a NaN on, NaN.

    ShapeError for a dim that x does not have.

    >>> import tensorlib
    >>> cummax(tensorlib.tensor([[1, 5], [3, 2]]), dim=0).values
    tensor([[1, 5],
            [3, 5]])
    """
    return _extreme("cummax", x, dim)


@define("scan", SAME, _extreme_ref("minimum"), vjp={"x": _extreme_vjp})
def cummin(x, dim):
    """(smallest element so far, its index as i64) along a dim; of equal ones the last. From a NaN on, NaN.

    ShapeError for a dim that x does not have.

    >>> import tensorlib
    >>> cummin(tensorlib.tensor([2, 3, 1, 1]), dim=0).indices
    tensor([0, 0, 2, 3])
    """
    return _extreme("cummin", x, dim)


def _log_part(g, x, out, dim):
    """sum over i >= j of g_i e^(x_j - out_i) where g is positive, by logarithms: nothing overflows."""
    positive = elementwise.gt(g, 0)
    logs = elementwise.log(elementwise.where(positive, g, 1.0)) - out
    logs = elementwise.where(elementwise.logical_and(positive, elementwise.ne(out, -INF)), logs, -INF)
    sums = movement.flip(logcumsumexp(movement.flip(logs, dim), dim), dim) if g.ndim else logs
    return elementwise.exp(sums + x)


def _log_vjp(g, x, out, dim):
    return _log_part(g, x, out, dim) - _log_part(elementwise.neg(g), x, out, dim)


@define("scan", FLOAT_ONLY, lambda np, x, dim: np.logaddexp.accumulate(x, dim), vjp={"x": _log_vjp})
def logcumsumexp(x, dim):
    """log of the running sums of e ** x along a dim, without overflow; floats only. Computed in f64, rounded once.

    ShapeError for a dim that x does not have, DTypeError for integers and bool.

    >>> import tensorlib
    >>> logcumsumexp(tensorlib.tensor([0.0, 0.0, -1000.0]), dim=0)
    tensor([0.0000, 0.6931, 0.6931])
    """
    FLOAT_ONLY.apply("logcumsumexp", x.dtype)
    moved, dim = rows("logcumsumexp", x, dim)
    out = type(x).empty(moved.shape, x.dtype, x.device)
    if moved.numel():
        words = [moved.ptr, out.ptr, prod(moved.shape[:-1]), moved.shape[-1]]
        kernel = backend.kernel("scan", "logcumsumexp", x.dtype.name, device=x.device.type)
        backend.launch(kernel, words, work=16 * x.numel(), reads=(moved,), writes=(out,))
    return unrows(out, x, dim)
