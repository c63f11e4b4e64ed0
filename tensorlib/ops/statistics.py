"""Statistics along dims: medians, quantiles, sums and means without NaN, covariances, differences.

>>> import tensorlib
>>> x = tensorlib.tensor([[3.0, 1.0, 2.0, 9.0], [0.0, 4.0, 4.0, 1.0]])
>>> median(x, 1).values, quantile(x, 0.5, 1), mode(x, 1).values
(tensor([2., 1.]), tensor([2.5000, 2.5000]), tensor([1., 4.]))
"""

from collections import namedtuple

from tensorlib import dtype as _dtype
from tensorlib.device import Array
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.layout import axis
from tensorlib.ops import create, elementwise, index, movement, reduce, scan, sort
from tensorlib.ops.elementwise import cast, div, isnan, logical_not, mul, sub, where
from tensorlib.ops.exchange import flat_values
from tensorlib.ops.linalg import matmul
from tensorlib.registry import ACC, FLOAT_ONLY, NUMBER, define

Median = namedtuple("Median", "values indices")
Mode = namedtuple("Mode", "values indices")
MinMax = namedtuple("MinMax", "min max")
INTERPOLATIONS = ("linear", "lower", "higher", "midpoint", "nearest")


def _composite(ref, rule=FLOAT_ONLY, arity=1):
    return define("composite", rule, ref, arity)


# ---- by order --------------------------------------------------------------------------------------------------------


def _rows(op, x, dim):
    """(x with `dim` last, or flattened for None; a function that gives a result without that dim x's dims again)"""
    if not x.numel():
        raise ShapeError(op, f"shape {x.shape}", "at least one element", "check for empty tensors first")
    if dim is None or not x.ndim:
        return movement.reshape(x, -1), lambda out, keepdim: movement.reshape(out, (1,) * x.ndim) if keepdim else out
    d = axis(op, dim, x.ndim)
    rows = movement.movedim(x, d, -1) if d != x.ndim - 1 else x
    return rows, lambda out, keepdim: movement.unsqueeze(out, d) if keepdim else out


def _at(rows, places):
    """The elements of the last dim at `places`, which lack that dim."""
    return movement.squeeze(index.gather(rows, -1, movement.unsqueeze(places, -1)), -1)


def _nan_first(x):
    """(whether rows hold a NaN, the place of the first)"""
    bad = cast(isnan(x), _dtype.u8)
    return reduce.any(bad, -1), reduce.argmax(bad, -1)


def _ordered(kind, x, dim, keepdim, places):
    rows, back = _rows(kind, x, dim)
    found = places(rows)
    values = back(_at(rows, found), keepdim)
    return values if dim is None else Median(values, back(found, keepdim))


def _middle(rows):
    n = rows.shape[-1]
    found = sort.kthvalue(rows, (n - 1) // 2 + 1, -1).indices
    if rows.dtype.kind != "f":
        return found
    some, first = _nan_first(rows)
    return where(some, first, found)


def _nan_middle(rows):
    order = sort.argsort(rows, -1)
    if rows.dtype.kind != "f":
        count = create.full(type(rows), rows.shape[:-1], rows.shape[-1], dtype="i64", device=rows.device)
    else:
        count = reduce.sum(logical_not(isnan(rows)), -1)
    return _at(order, elementwise.floor_divide(elementwise.clamp(sub(count, 1), 0), 2))


@_composite(lambda np, x, dim, keepdim=False: np.quantile(x, 0.5, dim, method="lower", keepdims=keepdim), NUMBER)
def median(x, dim=None, keepdim=False):
    """The middle element in order, the lower of two; along a dim (values, indices). NaN if there is one.

    x's dtype; indices are i64. ShapeError for no elements, or a dim that x does not have.

    >>> import tensorlib
    >>> median(tensorlib.tensor([4, 1, 3, 2]))
    tensor(2)
    """
    return _ordered("median", x, dim, keepdim, _middle)


@_composite(lambda np, x, dim, keepdim=False: np.nanquantile(x, 0.5, dim, method="lower", keepdims=keepdim), NUMBER)
def nanmedian(x, dim=None, keepdim=False):
    """`median` of the elements that are not NaN; NaN if there are none."""
    return _ordered("nanmedian", x, dim, keepdim, _nan_middle)


@_composite(None, NUMBER)
def mode(x, dim=-1, keepdim=False):
    """(the most frequent value, an index of it as i64) along a dim; of equally frequent ones the smallest."""
    rows, back = _rows("mode", x, dim)
    ordered = sort.sort(rows, -1)
    n, found = rows.shape[-1], ordered.values
    steps = create.arange(type(x), n, device=x.device)
    if n > 1:
        fresh = elementwise.ne(movement.narrow(found, -1, 1, n - 1), movement.narrow(found, -1, 0, n - 1))
        starts = where(fresh, movement.narrow(steps, 0, 1, n - 1), 0)
        first = create.zeros(type(x), (*found.shape[:-1], 1), dtype="i64", device=x.device)
        starts = scan.cummax(movement.cat([first, starts], -1), -1).values
        places = _at(ordered.indices, reduce.argmax(sub(steps, starts), -1))
    else:
        places = movement.select(ordered.indices, -1, 0)
    return Mode(back(_at(rows, places), keepdim), back(places, keepdim))


def _quantile(op, x, q, dim, keepdim, interpolation, ignore_nan):
    FLOAT_ONLY.apply(op, x.dtype)
    if interpolation not in INTERPOLATIONS:
        raise ShapeError(op, f"interpolation {interpolation!r}", ", ".join(INTERPOLATIONS), "use one of these")
    if not isinstance(q, Array):
        q = create.tensor(type(x), q, dtype="f64", device=x.device)
    if q.ndim > 1 or any(not 0 <= v <= 1 for v in flat_values(q)):
        raise ShapeError(op, f"q of shape {q.shape}: {flat_values(q)[:4]}", "numbers in [0, 1], at most 1 dim", "")
    rows, back = _rows(op, x, dim)
    order = sort.argsort(rows, -1)
    bad = isnan(rows)
    last = float(rows.shape[-1] - 1)
    if ignore_nan:
        last = elementwise.clamp(cast(sub(reduce.sum(logical_not(bad), -1, True), 1), _dtype.f64), 0)
    ranks = mul(movement.reshape(cast(q, _dtype.f64), -1), last)
    ranks = movement.broadcast_to(ranks, (*rows.shape[:-1], q.numel()))
    out = _between(rows, order, ranks, interpolation)
    if not ignore_nan:
        out = where(reduce.any(bad, -1, True), float("nan"), out)
    if not q.ndim:
        return back(movement.squeeze(out, -1), keepdim)
    parts = [back(part, keepdim) for part in movement.unbind(out, -1)]
    return movement.stack(parts, 0)


def _between(rows, order, ranks, interpolation):
    """The elements at fractional ranks (f64) of the ordered rows."""

    def at(places):
        return index.gather(rows, -1, index.gather(order, -1, cast(places, _dtype.i64)))

    if interpolation == "nearest":
        return at(elementwise.round(ranks))
    low, high = elementwise.floor(ranks), elementwise.ceil(ranks)
    if interpolation in ("lower", "higher"):
        return at(low if interpolation == "lower" else high)
    weight = 0.5 if interpolation == "midpoint" else cast(sub(ranks, low), rows.dtype)
    return elementwise.lerp(at(low), at(high), weight)


@_composite(
    lambda np, x, q, dim=None, keepdim=False, interpolation="linear": np.quantile(
        x, q, dim, method=interpolation, keepdims=keepdim
    )
)
def quantile(x, q, dim=None, keepdim=False, *, interpolation="linear"):
    """The values that a share q of the elements does not exceed; between two, as `interpolation` says. NaN if any is.

    q is a number, a list or a 1-d tensor in [0, 1]: then the result has a first dim for it. interpolation: "linear",
    "lower", "higher", "midpoint" or "nearest". x's float dtype. ShapeError, DTypeError.

    >>> import tensorlib
    >>> quantile(tensorlib.tensor([0.0, 1.0, 4.0]), [0.25, 1.0])
    tensor([0.5000, 4.0000])
    """
    return _quantile("quantile", x, q, dim, keepdim, interpolation, False)


@_composite(
    lambda np, x, q, dim=None, keepdim=False, interpolation="linear": np.nanquantile(
        x, q, dim, method=interpolation, keepdims=keepdim
    )
)
def nanquantile(x, q, dim=None, keepdim=False, *, interpolation="linear"):
    """`quantile` of the elements that are not NaN; NaN if there are none."""
    return _quantile("nanquantile", x, q, dim, keepdim, interpolation, True)


# ---- sums ------------------------------------------------------------------------------------------------------------


def _without_nan(x):
    return where(isnan(x), 0.0, x) if x.dtype.kind == "f" else x


@_composite(lambda np, x, dim=None, keepdim=False: np.nansum(x, dim, keepdims=keepdim), ACC)
def nansum(x, dim=None, keepdim=False, dtype=None):
    """Sum with NaN as 0."""
    return reduce.sum(_without_nan(x), dim, keepdim, dtype)


@_composite(lambda np, x, dim=None, keepdim=False: np.nanmean(x, dim, keepdims=keepdim))
def nanmean(x, dim=None, keepdim=False, dtype=None):
    """Mean of the elements that are not NaN, of floats; NaN if there are none."""
    FLOAT_ONLY.apply("nanmean", x.dtype)
    total = reduce.sum(_without_nan(x), dim, keepdim, dtype)
    return div(total, cast(reduce.sum(logical_not(isnan(x)), dim, keepdim), total.dtype))


def var_mean(x, dim=None, correction=1, keepdim=False, unbiased=None):
    """(variance, mean) over dims: see `var` and `mean`."""
    dim, correction = reduce.older(dim, correction, unbiased)
    return reduce.var(x, dim, correction, keepdim), reduce.mean(x, dim, keepdim)


def std_mean(x, dim=None, correction=1, keepdim=False, unbiased=None):
    """(standard deviation, mean) over dims: see `std` and `mean`."""
    dim, correction = reduce.older(dim, correction, unbiased)
    return reduce.std(x, dim, correction, keepdim), reduce.mean(x, dim, keepdim)


def aminmax(x, *, dim=None, keepdim=False):
    """(min, max) of all elements or along a dim; NaN if there is one. ShapeError for no elements."""
    return MinMax(reduce.amin(x, dim, keepdim), reduce.amax(x, dim, keepdim))


@_composite(lambda np, x, n=1, dim=-1: np.diff(x, n, dim), NUMBER)
def diff(x, n=1, dim=-1, prepend=None, append=None):
    """Differences of neighbours along a dim, n times; `prepend` and `append` are joined to x first.

    >>> import tensorlib
    >>> diff(tensorlib.tensor([1, 4, 9, 16]), n=2)
    tensor([2, 2])
    """
    if not x.ndim:
        raise ShapeError("diff", "a 0-d tensor", "at least one dim", "add one with unsqueeze(0)")
    dim = axis("diff", dim, x.ndim)
    if n == 0:
        return x
    parts = [v for v in (prepend, x, append) if v is not None]
    x = movement.cat(parts, dim) if len(parts) > 1 else x
    for _ in range(min(n, x.shape[dim])):
        size = x.shape[dim] - 1
        later, former = movement.narrow(x, dim, 1, size), movement.narrow(x, dim, 0, size)
        x = elementwise.logical_xor(later, former) if x.dtype.kind == "b" else sub(later, former)
    return x


# ---- covariance ------------------------------------------------------------------------------------------------------


@_composite(
    lambda np, x, correction=1, fweights=None, aweights=None: np.cov(
        x, ddof=correction, fweights=fweights, aweights=aweights
    )
)
def cov(x, *, correction=1, fweights=None, aweights=None):
    """Covariances of variables (rows of x) over observations (columns): (V, V), 0-d for a 1-d x. Floats only.

    fweights (integers) repeat observations, aweights (floats) weigh them. ShapeError, DTypeError.
    """
    FLOAT_ONLY.apply("cov", x.dtype)
    if x.ndim > 2:
        raise ShapeError("cov", f"shape {x.shape}", "at most 2 dims: variables, observations", "reshape x")
    if fweights is not None and fweights.dtype.kind not in "iu":
        raise DTypeError("cov", f"fweights of {fweights.dtype}", "integers", "use aweights")
    rows = movement.reshape(x, (1, -1)) if x.ndim < 2 else x
    n = rows.shape[1]
    weights = [cast(w, x.dtype) for w in (fweights, aweights) if w is not None]
    if any(w.shape != (n,) for w in weights):
        raise ShapeError("cov", f"weights of shape {weights[0].shape}", f"({n},)", "one weight per observation")
    if not weights:
        centred = sub(rows, reduce.mean(rows, 1, True)) if n else rows
        out = div(matmul(centred, movement.transpose(centred, 0, 1)), float(max(0, n - correction)))
        return out if x.ndim == 2 else movement.reshape(out, ())
    w = weights[0] if len(weights) == 1 else mul(*weights)
    total = reduce.sum(w)
    centred = sub(rows, div(reduce.sum(mul(rows, w), 1, True), total))
    lost = correction if aweights is None else mul(div(reduce.sum(mul(w, weights[-1])), total), correction)
    norm = elementwise.clamp(sub(total, lost), 0)
    out = div(matmul(mul(centred, w), movement.transpose(centred, 0, 1)), norm)
    return out if x.ndim == 2 else movement.reshape(out, ())


@_composite(lambda np, x: np.corrcoef(x))
def corrcoef(x):
    """Correlation coefficients of variables (rows of x): (V, V) in [-1, 1], 0-d for a 1-d x. Floats only."""
    found = cov(x)
    if x.ndim < 2:
        return div(found, found)
    spread = elementwise.sqrt(movement.diagonal(found))
    return elementwise.clamp(div(div(found, movement.unsqueeze(spread, 1)), spread), -1, 1)
