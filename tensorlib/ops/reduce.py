"""Reductions over dims.

`dim` is None (all dims), an int or a tuple; `keepdim=True` keeps reduced dims with size 1. Float sums are exact to a
few ulp of sum |x| for any length; results do not depend on the number of threads.

>>> import tensorlib
>>> x = tensorlib.tensor([[1.0, 2.0], [3.0, 4.0]])
>>> sum(x), mean(x, 0), amax(x, dim=1, keepdim=True)
(tensor(10.), tensor([2., 3.]), tensor([[2.],
        [4.]]))
"""

from collections import namedtuple
from math import prod as _prod

from tensorlib import backend
from tensorlib import dtype as _dtype
from tensorlib.device import Array
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.layout import Layout, axes, axis, collapse, contiguous
from tensorlib.memo import memoised
from tensorlib.ops import create, elementwise, movement
from tensorlib.ops._launch import fill
from tensorlib.registry import ACC, BOOL, FLOAT_ONLY, INDEX, SAME, define

PART = 1 << 15  # elements that one thread reduces at least, where there are few outputs
GPU_DIMS = 4  # kernels_triton/tiles.py: dims of a table at most
TILE = 512  # kernels_numba/reduce.py: columns at a time at most
_START = {"sum": 0, "mean": float("nan"), "prod": 1, "any": False, "all": True}


Extreme = namedtuple("Extreme", "values indices")  # what `max` and `min` along one dim give


def _reduce(op, kernel, x, dim, keepdim, out_dtype, compute, count=1.0):
    """Runs kernel `sum`, `prod`, `amax` or `amin` over dims of x, computing in `compute`; `count` divides sums."""
    dims = axes(op, dim, x.ndim)
    kept = [d for d in range(x.ndim) if d not in dims]
    length = _prod(x.shape[d] for d in dims)
    shape = tuple(x.shape[d] for d in kept)
    out = type(x).empty(shape, out_dtype, x.device)
    if out.numel() and not length:
        if op not in _START:
            raise ShapeError(
                op, f"shape {x.shape} over dims {dims}", "at least one element", "check for empty tensors first"
            )
        fill(out, _START[op] if out_dtype.kind == "f" or _START[op] == _START[op] else 0)
    elif out.numel():
        keep = Layout(shape, tuple(x.strides[d] for d in kept))
        rest = Layout(tuple(x.shape[d] for d in dims), tuple(x.strides[d] for d in dims))
        keep_sizes, (_, keep_steps) = collapse(contiguous(shape), keep)
        for i, step in enumerate(rest.strides):
            if step < 0:  # the order does not matter: forwards is faster
                rest = rest.slice(i, slice(None, None, -1))
        x = Array.view(x, Layout(x.shape, x.strides, x.offset + rest.offset))
        rest_sizes, (rest_steps,) = collapse(rest)
        dims_words = [(keep_sizes, keep_steps), (rest_sizes, rest_steps)]
        if x.device.type != "cpu" and (len(keep_sizes) > GPU_DIMS or len(rest_sizes) > GPU_DIMS):
            return _reduce_copy(op, kernel, x, dims, kept, keepdim, (out_dtype, compute, count))
        if keep_steps[-1] == 1 and keep_sizes[-1] >= 4 and rest_steps[-1] != 1:
            _columns(kernel, x, out, compute, length, count, dims_words)
        else:
            _rows(kernel, x, out, compute, length, count, dims_words)
    if keepdim:
        out = Array.view(out, contiguous(tuple(1 if d in dims else n for d, n in enumerate(x.shape))))
    return out


def _reduce_copy(op, kernel, x, dims, kept, keepdim, rest):
    """The same of a copy whose reduced dims are one."""
    rows = movement.reshape(movement.clone(movement.permute(x, [*kept, *dims])), (*(x.shape[d] for d in kept), -1))
    out = _reduce(op, kernel, rows, -1, False, *rest)
    return movement.reshape(out, tuple(1 if d in dims else n for d, n in enumerate(x.shape))) if keepdim else out


def _table(sizes, steps):
    return [w for d in reversed(range(len(sizes))) for w in (sizes[d], steps[d])]


def _rows(kernel, x, out, compute, length, count, dims):
    (keep_sizes, keep_steps), (rest_sizes, rest_steps) = dims
    outputs = _prod(keep_sizes)
    wide = _wide(kernel, compute)
    cut = outputs < 32 and length >= 2 * PART and x.device.type == "cpu"  # GPU kernels cut rows themselves
    splits = -(-length // PART) if cut else 1
    target = out if splits == 1 else type(x).empty((outputs, splits), wide, x.device)
    words = [x.ptr, target.ptr, outputs, splits, PART if splits > 1 else length, length]
    words += [count if splits == 1 else 1.0, len(keep_sizes), len(rest_sizes)]
    words += _table(keep_sizes, keep_steps) + _table(rest_sizes, rest_steps)
    _launch(kernel, compute, target, x, words, outputs * length)
    if splits > 1:
        parts = [((outputs,), (splits,)), ((splits,), (1,))]
        _rows(kernel, target, out, wide, splits, count, parts)


def _wide(kernel, compute):
    """What partial results are kept in."""
    return _dtype.f64 if kernel in ("sum", "prod") and compute.kind == "f" else compute


def _columns(kernel, x, out, compute, length, count, dims):
    (keep_sizes, keep_steps), (rest_sizes, rest_steps) = dims
    outer, n = _prod(keep_sizes[:-1]), keep_sizes[-1]
    tile = TILE if outer * n >= 16 * TILE else TILE // 4
    # few columns: threads share the rows out as well
    few = outer * -(-n // tile) < 4 and length * n >= 16 * PART and x.device.type == "cpu"
    per = -(-length // 16) if few else length
    splits = -(-length // per)
    wide = _wide(kernel, compute)
    target = out if splits == 1 else type(x).empty((outer, splits, n), wide, x.device)
    words = [x.ptr, target.ptr, outer, n, length, count if splits == 1 else 1.0]
    words += [len(keep_sizes) - 1, len(rest_sizes), splits, per, tile]
    words += _table(keep_sizes[:-1], keep_steps[:-1]) + _table(rest_sizes, rest_steps)
    _launch(f"{kernel}_columns", compute, target, x, words, outer * n * length)
    if splits > 1:
        parts = [((outer, n), (splits * n, 1)), ((splits,), (n,))]
        _columns(kernel, target, out, wide, splits, count, parts)


def _launch(name, compute, out, x, words, work):
    kernel = backend.kernel("reduce", name, compute.name, out.dtype.name, x.dtype.name, device=x.device.type)
    backend.launch(kernel, words, work=work, reads=(x,), writes=(out,))
    return out


# ---- gradients -------------------------------------------------------------------------------------------------------


def spread(g, x_shape, dim, keepdim):
    """A reduction's result over the shape of what was reduced: a view."""
    if not keepdim:
        dims = axes("spread", dim, len(x_shape))
        g = movement.reshape(g, tuple(1 if d in dims else n for d, n in enumerate(x_shape)))
    return movement.expand(g, x_shape)


def _mean_vjp(g, x_shape, dim, keepdim):
    count = _prod(x_shape[d] for d in axes("mean", dim, len(x_shape)))
    return spread(g / count, x_shape, dim, keepdim)


def _prod_vjp(g, x, dim, keepdim):
    dims = axes("prod", dim, x.ndim)
    rows = movement.movedim(x, dims, tuple(range(-len(dims), 0))) if dims else movement.unsqueeze(x, -1)
    kept = rows.shape[: rows.ndim - len(dims)] if dims else x.shape
    rows = movement.reshape(rows, (*kept, -1) if x.numel() else (*kept, 0))
    if rows.numel() and elementwise.eq(rows, 0).any():
        n = rows.shape[-1]
        diagonal = create.eye(type(x), n, dtype=_dtype.bool_, device=x.device)
        others = prod(elementwise.where(diagonal, 1.0, movement.unsqueeze(rows, -2)), -1)
    else:
        others = prod(rows, -1, keepdim=True) / rows
    others = movement.reshape(others, (*kept, *(x.shape[d] for d in dims)) if dims else x.shape)
    others = movement.movedim(others, tuple(range(-len(dims), 0)), dims) if dims else others
    return spread(g, x.shape, dim, keepdim) * others


def _extreme_vjp(g, x, out, dim, keepdim):
    """Ties share the gradient, as in PyTorch."""
    same = elementwise.eq(x, spread(out, x.shape, dim, keepdim))
    count = sum(same, dim, keepdim)
    return elementwise.where(same, spread(g / count, x.shape, dim, keepdim), 0.0)


def _centred(x, dim):
    return x - mean(x, dim, keepdim=True)


def _degrees(x, dim, correction):
    degrees = _prod(x.shape[d] for d in axes("var", dim, x.ndim)) - correction
    return degrees if degrees > 0 else 0


def _var_vjp(g, x, dim, correction, keepdim):
    return spread(g * 2 / _degrees(x, dim, correction), x.shape, dim, keepdim) * _centred(x, dim)


def _std_vjp(g, x, out, dim, correction, keepdim):
    flat = elementwise.eq(out, 0)  # a slope of 0 there, whose own gradient must not divide by 0 either
    g = elementwise.where(flat, 0.0, g / (elementwise.where(flat, 1.0, out) * _degrees(x, dim, correction)))
    return spread(g, x.shape, dim, keepdim) * _centred(x, dim)


def _norm_vjp(g, x, out, p, dim, keepdim):
    if abs(p) == float("inf"):
        return _extreme_vjp(g, elementwise.abs(x), out, dim, keepdim) * elementwise.sign(x)
    if p == 1:
        return spread(g, x.shape, dim, keepdim) * elementwise.sign(x)
    flat = elementwise.eq(out, 0)
    g = elementwise.where(flat, 0.0, g * elementwise.pow(elementwise.where(flat, 1.0, out), 1 - p))
    size = elementwise.abs(x)
    slope = x if p == 2 else elementwise.sign(x) * elementwise.where(elementwise.eq(x, 0), 0.0, size ** (p - 1))
    return spread(g, x.shape, dim, keepdim) * slope


# ---- reductions ------------------------------------------------------------------------------------------------------


def _reduction(rule, name, vjp=None):
    """The row of a reduction that NumPy calls `name`."""

    def ref(np, x, dim=None, keepdim=False):
        return getattr(np, name)(x, dim, keepdims=keepdim)

    return define("reduce", rule, ref, vjp=vjp and {"x": vjp}, wrap=memoised)


def sum_dtype(op, x, dtype):
    """(computed in, output) of a sum or product, with an optional dtype to convert to."""
    result = ACC.apply(op, x.dtype)[1] if dtype is None else _dtype.get(dtype)
    if x.dtype.kind == "f" and result.kind != "f":
        raise DTypeError(op, f"{x.dtype} summed as {result}", "a float dtype", "convert the result with .to(dtype)")
    return (_dtype.f64 if result is _dtype.f64 else result.compute if result.kind == "f" else _dtype.i64), result


@_reduction(ACC, "sum", spread)
def sum(x, dim=None, keepdim=False, dtype=None):
    """Sum of the elements. Integers and bool give i64, which wraps; `dtype` chooses another."""
    compute, result = sum_dtype("sum", x, dtype)
    return _reduce("sum", "sum", x, dim, keepdim, result, compute)


@_reduction(FLOAT_ONLY, "mean", _mean_vjp)
def mean(x, dim=None, keepdim=False, dtype=None):
    """Arithmetic mean, of floats only unless dtype is a float. NaN for no elements."""
    if dtype is None:
        FLOAT_ONLY.apply("mean", x.dtype)
    compute, result = sum_dtype("mean", x, dtype)
    count = _prod(x.shape[d] for d in axes("mean", dim, x.ndim))
    return _reduce("mean", "sum", x, dim, keepdim, result, compute, float(count))


@_reduction(ACC, "prod", _prod_vjp)
def prod(x, dim=None, keepdim=False, dtype=None):
    """Product of the elements. Integers and bool give i64, which wraps."""
    compute, result = sum_dtype("prod", x, dtype)
    return _reduce("prod", "prod", x, dim, keepdim, result, compute)


@_reduction(SAME, "max", _extreme_vjp)
def amax(x, dim=None, keepdim=False):
    """Largest element; NaN if there is one. ShapeError for no elements."""
    return _reduce("amax", "amax", x, dim, keepdim, x.dtype, x.dtype.compute)


@_reduction(SAME, "min", _extreme_vjp)
def amin(x, dim=None, keepdim=False):
    """Smallest element; NaN if there is one. ShapeError for no elements."""
    return _reduce("amin", "amin", x, dim, keepdim, x.dtype, x.dtype.compute)


@_reduction(BOOL, "any")
def any(x, dim=None, keepdim=False):
    """Whether any element is not 0. False for no elements."""
    return _reduce("any", "amax", x, dim, keepdim, _dtype.bool_, _dtype.bool_)


@_reduction(BOOL, "all")
def all(x, dim=None, keepdim=False):
    """Whether no element is 0. True for no elements."""
    return _reduce("all", "amin", x, dim, keepdim, _dtype.bool_, _dtype.bool_)


def count_nonzero(x, dim=None):
    """How many elements are not 0, as i64."""
    return sum(elementwise.ne(x, 0), dim)


# ---- one row at a time -----------------------------------------------------------------------------------------------


def each(op, x, dim, shape, out_dtype, compute, extra=0.0):
    """Runs a row kernel along `dim`; `shape(kept, n)` gives the output's."""
    moved = movement.movedim(x, dim, -1) if x.ndim else movement.reshape(x, 1)
    if moved.strides[-1] != 1:
        moved = movement.clone(moved)
    kept, n = moved.shape[:-1], moved.shape[-1]
    out = type(x).empty(shape(kept, n), out_dtype, x.device)
    if out.numel():
        sizes, (_, steps) = collapse(contiguous(kept), Layout(kept, moved.strides[:-1]))
        if x.device.type != "cpu" and len(sizes) > GPU_DIMS:
            return each(op, movement.clone(moved), -1, shape, out_dtype, compute, extra)
        words = [moved.ptr, out.ptr, _prod(kept), n, float(extra), len(sizes)]
        _launch(op, compute, out, moved, words + _table(sizes, steps), 8 * x.numel())
    return out


def _along(op, x, dim):
    if dim is None:
        return movement.reshape(x, -1), 0
    return x, axis(op, dim, x.ndim)


def kept_dim(out, x, dim, keepdim):
    if not keepdim:
        return out
    if dim is None:
        return movement.reshape(out, (1,) * x.ndim)
    return movement.unsqueeze(out, axis("keepdim", dim, x.ndim)) if x.ndim else out


def _arg(op, x, dim, keepdim):
    INDEX.apply(op, x.dtype)
    row, d = _along(op, x, dim)
    if not (row.shape[d] if row.ndim else 1):
        raise ShapeError(
            op, f"shape {x.shape} along dim {dim}", "at least one element", "check for empty tensors first"
        )
    out = each(op, row, d, lambda kept, n: kept, _dtype.i64, x.dtype.compute)
    return kept_dim(out, x, dim, keepdim)


@_reduction(INDEX, "argmax")
def argmax(x, dim=None, keepdim=False):
    """Index of the first largest element along a dim, or in the flattened tensor, as i64;
    of the first NaN if there is one.
    """
    return _arg("argmax", x, dim, keepdim)


@_reduction(INDEX, "argmin")
def argmin(x, dim=None, keepdim=False):
    """Index of the first smallest element along a dim, or in the flattened tensor, as i64;
    of the first NaN if there is one.
    """
    return _arg("argmin", x, dim, keepdim)


def max(x, dim=None, keepdim=False):
    """Largest element; along a dim, (values, indices); with a tensor as `dim`, the larger of each pair."""
    return _extreme(x, dim, keepdim, amax, argmax, elementwise.maximum)


def min(x, dim=None, keepdim=False):
    """Smallest element; along a dim, (values, indices); with a tensor as `dim`, the smaller of each pair."""
    return _extreme(x, dim, keepdim, amin, argmin, elementwise.minimum)


def _extreme(x, dim, keepdim, values, indices, pairwise):
    if isinstance(dim, Array):
        return pairwise(x, dim)
    return values(x) if dim is None else Extreme(values(x, dim, keepdim), indices(x, dim, keepdim))


@define("reduce", FLOAT_ONLY, None, vjp={"x": _var_vjp}, wrap=memoised)
def _var(x, dim=None, correction=1, keepdim=False):
    """Variance: sum (x - mean)^2 / (n - correction), in two passes. NaN for n = correction."""
    FLOAT_ONLY.apply("var", x.dtype)
    dims = axes("var", dim, x.ndim)
    kept = [d for d in range(x.ndim) if d not in dims]
    rows = movement.permute(x, [*kept, *dims])
    rows = movement.reshape(rows, (*rows.shape[: len(kept)], _prod(x.shape[d] for d in dims)))
    out = each("var", rows, -1, lambda kept, n: kept, x.dtype, x.dtype.compute, correction)
    return movement.reshape(out, tuple(1 if d in dims else n for d, n in enumerate(x.shape))) if keepdim else out


@define("reduce", FLOAT_ONLY, None, vjp={"x": _std_vjp})
def _std(x, dim=None, correction=1, keepdim=False):
    """Square root of `var`."""
    return elementwise.sqrt(_var(x, dim, correction, keepdim))


def older(dim, correction, unbiased):
    """(dim, correction) of var(x, unbiased) and var(x, dim, unbiased=...), PyTorch's older spelling."""
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    return dim, int(unbiased) if unbiased is not None else 1 if correction is None else correction


def var(x, dim=None, correction=1, keepdim=False, unbiased=None):
    """Variance: sum (x - mean)^2 / (n - correction), in two passes; unbiased=False is correction 0. NaN for n = it."""
    return _var(x, *older(dim, correction, unbiased), keepdim)


def std(x, dim=None, correction=1, keepdim=False, unbiased=None):
    """Square root of `var`."""
    return _std(x, *older(dim, correction, unbiased), keepdim)


@define("reduce", FLOAT_ONLY, None, vjp={"x": _norm_vjp})
def _norm(x, p=2, dim=None, keepdim=False):
    """(sum |x| ** p) ** (1 / p); p may be inf and -inf."""
    size = elementwise.abs(x)
    if p in (float("inf"), float("-inf")):
        return (amax if p > 0 else amin)(size, dim, keepdim)
    if p == 2:
        return elementwise.sqrt(sum(elementwise.square(x), dim, keepdim))
    return sum(size, dim, keepdim) if p == 1 else elementwise.pow(sum(elementwise.pow(size, p), dim, keepdim), 1 / p)


def norm(x, p=2, dim=None, keepdim=False):
    """(sum |x| ** p) ** (1 / p); p may be inf and -inf, 0 (how many are not 0), and "fro", which is 2. DTypeError."""
    if p == 0:
        return sum(elementwise.ne(x, 0), dim, keepdim).to(x.dtype)
    if isinstance(p, str) and p != "fro":
        raise DTypeError("norm", f"p={p!r}", "a number or 'fro'", "use tensorlib.linalg.svdvals(x).sum() for 'nuc'")
    return _norm(x, 2 if p in ("fro", None) else p, dim, keepdim)
