"""Diagonal linear recurrences and short causal convolutions along tokens, one kernel each (room scan_state).

>>> import tensorlib
>>> half = tensorlib.full((4, 1), 0.5)
>>> linear_scan(half, tensorlib.ones(4, 1), -2).tolist()
[[1.0], [1.5], [1.75], [1.875]]
"""

from math import prod

from tensorlib import backend
from tensorlib.errors import ShapeError
from tensorlib.layout import axis
from tensorlib.ops import create, movement, reduce
from tensorlib.ops.scan_state import COLUMNS, _as, _compute, _dense, _ptr, _scratch, _shape, _tokens
from tensorlib.registry import FLOAT_ONLY, define

# ---- diagonal recurrences --------------------------------------------------------------------------------------------


def _linear_vjp(g, a, b_shape, dim, past, out, reverse):
    """The gradient goes the other way, with each a one place earlier: what it is at the end multiplies nothing."""
    dim, n = axis("linear_scan", dim, out.ndim), out.shape[dim]
    a = movement.expand(a, b_shape)
    if not n:
        return None, g, create.zeros(type(g), past.shape, dtype=g.dtype, device=g.device) if past is not None else None
    whole = linear_scan(movement.roll(a, 1 if reverse else -1, dim), g, dim, reverse=not reverse)
    shape, end = list(b_shape), n - 1 if reverse else 0
    shape[dim] = 1
    first = (
        movement.unsqueeze(past, dim)
        if past is not None
        else create.zeros(type(g), shape, dtype=out.dtype, device=g.device)
    )
    first = _as(first, out.dtype.name)
    if reverse:
        earlier = movement.cat([movement.narrow(out, dim, 1, n - 1), first], dim)
    else:
        earlier = movement.cat([first, movement.narrow(out, dim, 0, n - 1)], dim)
    dpast = None if past is None else movement.select(a, dim, end) * movement.select(whole, dim, end)
    return whole * earlier, whole, dpast


def _linear_ref(np, a, b, dim, past=None, reverse=False):
    a = np.moveaxis(a + np.zeros(b.shape), dim, 0)
    b, h = np.moveaxis(b, dim, 0), None if past is None else past[None]
    found = np.zeros(b.shape)
    for i in range(len(b))[:: -1 if reverse else 1]:
        one = slice(i, i + 1)  # a number alone would be no array
        h = b[one] if h is None else a[one] * h + b[one]
        found[one] = h
    return np.moveaxis(found, 0, dim)


def _linear_domain(s, dtype):
    shape = s.shape(min_dims=1, max_dims=3)
    dim = s.integer(-len(shape), len(shape) - 1)
    a, b = s.array(shape, low=-1.0, high=1.0), s.array(shape, low=-9.0, high=9.0)
    rest = tuple(n for i, n in enumerate(shape) if i != dim % len(shape))
    return (a, b, dim), {"past": s.array(rest, low=-9.0, high=9.0) if s.boolean() else None, "reverse": s.boolean()}


@define(
    "fused", FLOAT_ONLY, _linear_ref, arity=2, domain=_linear_domain, vjp={("a", "b", "past"): _linear_vjp}
)  # fmt: skip
def linear_scan(a, b, dim, past=None, reverse=False):
    """h_t = a_t h_(t-1) + b_t along a dim, every h: of b's shape and dtype. Computed in f32, f64 for f64.

    a expands to b's shape; `past`: the h before the first, without the dim. `reverse`: from the last one on.
    ShapeError, DTypeError.

    >>> import tensorlib
    >>> linear_scan(tensorlib.tensor([2.0, 3.0]), tensorlib.tensor([1.0, 1.0]), 0, tensorlib.tensor(1.0))
    tensor([ 3., 10.])
    """
    dtype, dim = _compute(a, b, past), axis("linear_scan", dim, b.ndim)
    if not b.ndim or (past is not None and past.shape != b.shape[:dim] + b.shape[dim + 1 :]):
        got = f"b {b.shape}, past {_shape(past)}, dim {dim}"
        raise ShapeError("linear_scan", got, "b [..., T, ...] and past without T", "give the state before the first")
    x, y, first = _dense(movement.expand(a, b.shape), dtype), _dense(b, dtype), _dense(past, dtype)
    out = type(b).empty(b.shape, dtype, b.device)
    if out.numel():
        words = [x.ptr, y.ptr, out.ptr, _ptr(first), prod(b.shape[:dim]), b.shape[dim], prod(b.shape[dim + 1 :])]
        kernel = backend.kernel("scan_state", "linear_scan", dtype, device=b.device.type)
        reads = [z for z in (x, y, first) if z is not None]
        backend.launch(kernel, [*words, -1 if reverse else 1], 2 * out.numel(), reads, (out,))
    return _as(out, b.dtype.name)


# ---- short convolutions ----------------------------------------------------------------------------------------------


def _before(x, count, dtype=None):
    return create.zeros(type(x), (*x.shape[:-2], count, x.shape[-1]), dtype=dtype or x.dtype, device=x.device)


def _conv_vjp(g, x, weight, bias, past):
    gy, gs = g
    taps, (t, width) = weight.shape[-1], x.shape[-2:]
    rows = movement.cat([_before(x, taps - 1) if past is None else past, x], -2)
    turned = movement.flip(movement.reshape(weight, (width, taps)), -1)
    back = causal_conv(movement.cat([gy, _before(gy, taps - 1)], -2), turned)[0]
    back = back + movement.cat([_before(gs, t), gs], -2)
    over = tuple(range(x.ndim - 1))
    dw = [reduce.sum(movement.narrow(rows, -2, i, t) * gy, over) for i in range(taps)]
    dpast = None if past is None else movement.narrow(back, -2, 0, taps - 1)
    dw, db = movement.reshape(movement.stack(dw, -1), weight.shape), None if bias is None else reduce.sum(gy, over)
    return movement.narrow(back, -2, taps - 1, t), dw, db, dpast


def _conv_ref(np, x, weight, bias=None, past=None):
    taps, t = weight.shape[-1], x.shape[-2]
    rows = np.zeros((*x.shape[:-2], t + taps - 1, x.shape[-1]))
    rows[..., taps - 1 :, :] = x
    if past is not None:
        rows[..., : taps - 1, :] = past
    y = sum(rows[..., i : i + t, :] * weight.reshape(-1, taps)[:, i] for i in range(taps))
    return y if bias is None else y + bias, rows[..., t:, :]


def _conv_domain(s, dtype):
    batch = s.shape(max_dims=1, empty=False) if s.smooth else s.pick([(), (2,), (3, 1)])
    t, width = s.pick([1, 2, 3]) if s.smooth else s.pick([0, 1, 2, 9, 40]), s.pick([1, 2] if s.smooth else [1, 5, 70])
    taps = s.pick([1, 2, 4])
    weight = s.array(s.pick([(width, taps), (width, 1, taps)]))
    given = {"bias": s.array((width,))} if s.boolean() else {}
    given |= {"past": s.array((*batch, taps - 1, width))} if s.boolean() else {}
    return (s.array((*batch, t, width)), weight), given


@define(
    "fused", FLOAT_ONLY, _conv_ref, arity=2, domain=_conv_domain, vjp={("x", "weight", "bias", "past"): _conv_vjp}
)  # fmt: skip
def causal_conv(x, weight, bias=None, past=None):
    """(y, state): a convolution of each channel with its last K values; the state is f32, or f64.

    x and y [..., T, C]; weight [C, K] or [C, 1, K], bias [C]; past and state [..., K - 1, C]: the values before and
    after. f16, bf16, f32, f64; y has x's dtype. ShapeError, DTypeError.

    >>> import tensorlib
    >>> causal_conv(tensorlib.ones(3, 1), tensorlib.ones(1, 2))[0].tolist()
    [[1.0], [2.0], [2.0]]
    """
    *batch, t, channels = x.shape if x.ndim > 1 else (0, 0)
    taps = weight.shape[-1] if weight.ndim else 0
    shapes = [(weight, (channels, taps)), (bias, (channels,)), (past, (*batch, taps - 1, channels))]
    shapes[0] = (weight, (channels, 1, taps)) if weight.ndim == 3 else shapes[0]
    if x.ndim < 2 or not taps or any(z is not None and z.shape != shape for z, shape in shapes):
        got = f"x {x.shape}, weight {weight.shape}, bias {_shape(bias)}, past {_shape(past)}"
        expected = f"[..., T, C], ({channels}, K) or ({channels}, 1, K), ({channels},), [..., K - 1, C]"
        raise ShapeError("causal_conv", got, expected, "one kernel per channel")
    dtype, weight = _compute(x, weight, bias, past), movement.reshape(weight, (channels, taps))
    given, strides = _tokens(x, dtype, 1)
    weight, bias = _as(weight, dtype), _dense(bias, dtype)
    past = _dense(past, dtype) if past is not None else _before(x, taps - 1, dtype)
    y, last = (type(x).empty((*batch, n, channels), dtype, x.device) for n in (t, taps - 1))
    if y.numel() or last.numel():
        scratch, threads = _scratch(taps * COLUMNS[dtype] * (8 if dtype == "f64" else 4), x.device)
        words = [
            y.ptr,
            last.ptr,
            past.ptr,
            given.ptr,
            *strides,
            weight.ptr,
            *weight.strides,
            _ptr(bias),
            prod(batch),
            t,
        ]
        words += [channels, taps, scratch.ptr, scratch.numel() // threads, threads]
        kernel = backend.kernel("scan_state", "causal_conv", dtype, device=x.device.type)
        reads = [z for z in (given, weight, bias, past) if z is not None]
        backend.launch(kernel, words, 2 * taps * y.numel(), reads, (y, last, scratch))
    return _as(y, x.dtype.name), last
