"""Softmax and its relatives, one dim at a time, without overflow.

>>> import tensorlib
>>> x = tensorlib.tensor([[0.0, 0.0], [1000.0, 1000.0]])
>>> softmax(x), logsumexp(x, dim=1)
(tensor([[0.5000, 0.5000],
        [0.5000, 0.5000]]), tensor([6.9315e-01, 1.0007e+03]))
"""

from math import prod

from tensorlib import backend
from tensorlib import dtype as _dtype
from tensorlib.layout import axes, axis
from tensorlib.memo import memoised
from tensorlib.ops import elementwise, movement, reduce
from tensorlib.ops._launch import cast
from tensorlib.registry import FLOAT, define


def _softmax_vjp(g, out, dim):
    weighted = g * out
    return weighted - out * reduce.sum(weighted, dim, keepdim=True)


def _softmax(op, x, dim, dtype):
    x = x if dtype is None else cast(x, dtype)
    FLOAT.apply(op, x.dtype)
    x = x if x.dtype.kind == "f" else cast(x, _dtype.f32)
    dim = axis(op, dim, x.ndim)
    if dim < x.ndim - 1 and x.is_contiguous() and x.numel():
        return _columns(op, x, dim)
    out = reduce.each(op, x, dim, lambda kept, n: (*kept, n), x.dtype, x.dtype.compute)
    return movement.movedim(out, -1, dim) if x.ndim else movement.reshape(out, ())


def _columns(op, x, dim):
    out = type(x).empty(x.shape, x.dtype, x.device)
    words = [x.ptr, out.ptr, prod(x.shape[:dim]), prod(x.shape[dim + 1 :]), x.shape[dim]]
    names = (x.dtype.compute.name, x.dtype.name, x.dtype.name)
    kernel = backend.kernel("reduce", f"{op}_columns", *names, device=x.device.type)
    backend.launch(kernel, words, 8 * x.numel(), (x,), (out,))
    return out


def _softmax_ref(np, x, dim):
    e = np.exp(x - np.max(x, dim, keepdims=True, initial=-np.inf))
    return e / np.sum(e, dim, keepdims=True)


def _logsumexp_ref(np, x, dim, keepdim):
    top = np.max(x, dim, keepdims=True, initial=-np.inf)
    shift = np.where(np.isinf(top), 0, top)
    out = np.log(np.sum(np.exp(x - shift), dim, keepdims=True)) + shift
    return out if keepdim else np.squeeze(out, dim)


@define("scan", FLOAT, _softmax_ref, vjp={"x": _softmax_vjp}, wrap=memoised)
def softmax(x, dim=-1, dtype=None):
    """e ** x / sum of e ** x along a dim, without overflow; `dtype` converts x first.

    >>> import tensorlib
    >>> softmax(tensorlib.tensor([1000.0, 1000.0]), 0)
    tensor([0.5000, 0.5000])
    """
    return _softmax("softmax", x, dim, dtype)


@define(
    "scan",
    FLOAT,
    lambda np, x, dim: x - _logsumexp_ref(np, x, dim, True),
    vjp={"x": lambda g, out, dim: g - elementwise.exp(out) * reduce.sum(g, dim, keepdim=True)},
    wrap=memoised,
)
def log_softmax(x, dim=-1, dtype=None):
    """log(softmax(x)) along a dim, accurate where softmax underflows."""
    return _softmax("log_softmax", x, dim, dtype)


@define(
    "reduce",
    FLOAT,
    _logsumexp_ref,
    vjp={"x": lambda g, x, dim, keepdim: reduce.spread(g, x.shape, dim, keepdim) * softmax(x, dim)},
    wrap=memoised,
)
def _logsumexp(x, dim, keepdim=False):
    """log of the sum of e ** x along one dim, without overflow."""
    x = x if x.dtype.kind == "f" else cast(x, _dtype.f32)
    d = axis("logsumexp", dim, x.ndim)
    return reduce.kept_dim(
        reduce.each("logsumexp", x, d, lambda kept, n: kept, x.dtype, x.dtype.compute), x, dim, keepdim
    )


def logsumexp(x, dim, keepdim=False):
    """log of the sum of e ** x along a dim, or along several in a tuple, without overflow. FLOAT dtypes."""
    if isinstance(dim, int):
        return _logsumexp(x, dim, keepdim)
    dims = axes("logsumexp", dim, x.ndim)
    if not dims:
        return _logsumexp(movement.unsqueeze(x, -1), -1)
    rows = movement.movedim(x, dims, tuple(range(-len(dims), 0)))
    out = _logsumexp(movement.flatten(rows, -len(dims), -1), -1)
    return movement.reshape(out, tuple(1 if d in dims else n for d, n in enumerate(x.shape))) if keepdim else out
