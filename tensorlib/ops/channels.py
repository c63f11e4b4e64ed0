"""Normalisation of channels by their own statistics: what `batch_norm` is in training, and its gradient.

On CPUs a kernel each (kernels_numba/channels.py) for f32, f16 and bf16; otherwise, and to be differentiated again,
composed of other ops.
"""

from math import prod

from tensorlib import backend, tape
from tensorlib.ops import movement, reduce
from tensorlib.ops.elementwise import add, cast, mul, rsqrt, square, sub
from tensorlib.registry import FLOAT_ONLY, define

FLOATS = ("f32", "f16", "bf16")
SHORT = 8  # positions per channel and sample below which rows are too short for the kernels


def _dims(x):
    return 0, *range(2, x.ndim)


def _sides(x):
    """(N, C, positions)"""
    return x.shape[0], x.shape[1], prod(x.shape[2:])


def _wide(x):
    return x if x.dtype.name == "f64" else cast(x, "f32")


def _against(v, x):
    """C elements, to broadcast against x."""
    return movement.reshape(v, (-1, *(1,) * (x.ndim - 2)))


def _by_kernel(x):
    return x.device.type == "cpu" and x.dtype.name in FLOATS and _sides(x)[2] >= SHORT and 0 not in x.shape


def _pointers(*arrays):
    return [0 if a is None else a.ptr for a in arrays]


def _statistics(x):
    """(x - mean, var), over the batch and positions."""
    centred = sub(x, reduce.mean(x, _dims(x), keepdim=True))
    return centred, reduce.mean(square(centred), _dims(x), keepdim=True)


def _vjp(g, x, weight, eps):
    """Gradients of x, weight and bias."""
    if _by_kernel(x) and not tape.mode.recording:
        return _vjp_kernel(g, x, weight, eps)
    of_out, of_mean, of_var = (_wide(part) for part in g)
    x = _wide(x)
    centred, var = _statistics(x)
    k, dims = rsqrt(add(var, eps)), _dims(x)
    unit = mul(centred, k)
    h = of_out if weight is None else mul(of_out, _against(_wide(weight), x))
    mixed = sub(sub(h, reduce.mean(h, dims, keepdim=True)), mul(unit, reduce.mean(mul(h, unit), dims, keepdim=True)))
    rest = add(_against(of_mean, x), mul(mul(centred, _against(of_var, x)), 2.0))
    dx = add(mul(mixed, k), mul(rest, x.shape[1] / x.numel()))
    return dx, reduce.sum(mul(of_out, unit), dims), reduce.sum(of_out, dims)


def _vjp_kernel(g, x, weight, eps):
    of_out, *rest = g
    x, of_out = movement.contiguous(x), movement.contiguous(cast(of_out, x.dtype))
    weight = None if weight is None else movement.contiguous(cast(weight, "f32"))
    rest = [movement.contiguous(r) for r in rest]
    dx, sums = type(x).empty(x.shape, x.dtype, x.device), [x.empty(r.shape, "f32", x.device) for r in rest]
    reads = [a for a in (x, of_out, weight, *rest) if a is not None]
    words = [*_pointers(x, of_out, dx, weight, *rest, *sums), float(eps), *_sides(x)]
    kernel = backend.kernel("channels", "vjp", x.dtype.name, device=x.device.type)
    backend.launch(kernel, words, 6 * x.numel(), reads, [dx, *sums])
    return dx, *sums


def _ref(np, x, weight=None, bias=None, eps=1e-5):
    dims = 0, *range(2, x.ndim)
    mean, var = np.mean(x, dims, keepdims=True), np.var(x, dims, keepdims=True)
    out, shape = (x - mean) / np.sqrt(var + eps), (-1, *(1,) * (x.ndim - 2))
    out = out if weight is None else out * weight.reshape(shape)
    return out if bias is None else out + bias.reshape(shape), mean.reshape(-1), var.reshape(-1)


def _domain(s, dtype):
    shape = (s.integer(2, 3), s.integer(1, 3), *s.pick([(), (3,), (2, 5), (9,), (5, 30)]))
    given = [s.array((shape[1],), dtype, low=-10, high=10).copy() if s.boolean() else None for _ in range(2)]
    return (s.array(shape, dtype, low=-100, high=100), *given), {"eps": s.pick([1e-5, 0.1])}


@define("fused", FLOAT_ONLY, _ref, arity=3, domain=_domain, vjp={("x", "weight", "bias"): _vjp})
def channel_norm(x, weight=None, bias=None, eps=1e-5):
    """(out, mean, var) of x (N, C, ...): (x - mean) / sqrt(var + eps) * weight + bias per channel (arXiv:1502.03167).

    weight and bias: C elements or None; mean and var (of divisor n): C elements, f32 (f64 for f64). Floats.
    """
    if not _by_kernel(x):
        wide = _wide(x)
        centred, var = _statistics(wide)
        found = mul(centred, rsqrt(add(var, eps)))
        found = found if weight is None else mul(found, _against(_wide(weight), x))
        found = found if bias is None else add(found, _against(_wide(bias), x))
        mean = reduce.mean(wide, _dims(x))
        return cast(found, x.dtype), mean, movement.reshape(var, -1)
    x = movement.contiguous(x)
    weight, bias = (None if w is None else movement.contiguous(cast(w, "f32")) for w in (weight, bias))
    out, *found = (type(x).empty(s, d, x.device) for s, d in ((x.shape, x.dtype), *[(x.shape[1:2], "f32")] * 2))
    kernel = backend.kernel("channels", "forward", x.dtype.name, device=x.device.type)
    words = [*_pointers(x, out, weight, bias, *found), float(eps), *_sides(x)]
    reads = [a for a in (x, weight, bias) if a is not None]
    backend.launch(kernel, words, 8 * x.numel(), reads, (out, *found))
    return out, *found
