"""Normalisation over batches, groups and channels, with PyTorch's names. x is (N, C, ...).

>>> import tensorlib
>>> x = tensorlib.tensor([[1.0, 5.0], [3.0, 9.0]])
>>> batch_norm(x, training=True, eps=0.0), group_norm(x, 1, eps=0.0)
(tensor([[-1., -1.],
        [ 1.,  1.]]), tensor([[-1.,  1.],
        [-1.,  1.]]))
"""

from math import prod

from tensorlib.errors import ShapeError
from tensorlib.ops import create, fused, movement, reduce
from tensorlib.ops.channels import channel_norm
from tensorlib.ops.elementwise import add, div, lerp, mul, pow, rsqrt, square, sub
from tensorlib.ops.getitem import setitem
from tensorlib.registry import FLOAT_ONLY, define


def _composite():
    return define("composite", FLOAT_ONLY, None)


def _per_channel(op, name, v, x):
    """A parameter of C elements, to broadcast against x; None stays."""
    if v is None:
        return None
    if v.shape != (x.shape[1],):
        raise ShapeError(op, f"{name} of shape {v.shape}", f"({x.shape[1]},)", "one element per channel")
    return movement.reshape(v, (-1, *(1,) * (x.ndim - 2)))


def _check(op, x, least=2):
    FLOAT_ONLY.apply(op, x.dtype)
    if x.ndim < least:
        raise ShapeError(op, f"shape {x.shape}", f"(N, C, ...): at least {least} dims", "add dims with unsqueeze")


def _affine(op, x, weight, bias):
    weight, bias = _per_channel(op, "weight", weight, x), _per_channel(op, "bias", bias, x)
    x = x if weight is None else mul(x, weight)
    return x if bias is None else add(x, bias)


def _blend(running, found, momentum):
    """running = running + momentum * (found - running), in place."""
    setitem(running, Ellipsis, lerp(running, found, momentum))


@_composite()
def batch_norm(x, running_mean=None, running_var=None, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    """(x - mean) / sqrt(var + eps) * weight + bias per channel, over batch and positions (arXiv:1502.03167).

    training: statistics of x, which are also blended into running_mean and running_var in place (the variance with
    divisor n - 1); else those given. ShapeError, DTypeError.
    """
    _check("batch_norm", x)
    dims = (0, *range(2, x.ndim))
    if not training:
        if running_mean is None or running_var is None:
            raise ShapeError("batch_norm", "no running statistics", "both, unless training", "set training=True")
        mean = _per_channel("batch_norm", "running_mean", running_mean, x)
        var = _per_channel("batch_norm", "running_var", running_var, x)
        return _affine("batch_norm", mul(sub(x, mean), rsqrt(add(var, eps))), weight, bias)
    count = prod(x.shape[d] for d in dims)
    if count <= 1:
        raise ShapeError("batch_norm", f"shape {x.shape}", "more than 1 value per channel", "use a larger batch")
    for name, v in (("weight", weight), ("bias", bias)):
        _per_channel("batch_norm", name, v, x)
    out, mean, var = channel_norm(x, weight, bias, eps)
    if running_mean is not None:
        _blend(running_mean, mean.handle(), momentum)
    if running_var is not None:
        _blend(running_var, mul(var.handle(), count / (count - 1)), momentum)
    return out


def _normalised(x, eps):
    """Rows (the last dim) with mean 0 and variance 1."""
    if x.dtype.name in fused.FLOATS:
        return fused.layer_norm(movement.contiguous(x), None, None, eps)
    centred = sub(x, reduce.mean(x, -1, True))
    return mul(centred, rsqrt(add(reduce.mean(square(centred), -1, True), eps)))


@_composite()
def group_norm(x, num_groups, weight=None, bias=None, eps=1e-5):
    """Mean 0 and variance 1 over each group of channels and all positions, then scaled per channel (arXiv:1803.08494).

    ShapeError, DTypeError.
    """
    _check("group_norm", x)
    n, c = x.shape[:2]
    if num_groups < 1 or c % num_groups:
        got = f"{num_groups} groups of {c} channels"
        raise ShapeError("group_norm", got, "a number of groups that divides the channels", "change num_groups")
    rows = movement.reshape(x, n, num_groups, prod(x.shape[1:]) // num_groups)
    return _affine("group_norm", movement.reshape(_normalised(rows, eps), x.shape), weight, bias)


@_composite()
def instance_norm(
    x, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5
):
    """Mean 0 and variance 1 over the positions of each channel of each sample (arXiv:1607.08022).

    use_input_stats=False takes the running statistics instead; otherwise they are blended, in place, with the means
    over the batch. ShapeError, DTypeError.
    """
    _check("instance_norm", x, 3)
    if not use_input_stats:
        return batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    count = prod(x.shape[2:])
    if count <= 1:
        raise ShapeError("instance_norm", f"shape {x.shape}", "more than 1 position", "use a larger image")
    rows = movement.reshape(x, *x.shape[:2], count)
    if running_mean is not None:
        _blend(running_mean, reduce.mean(reduce.mean(rows.handle(), 2), 0), momentum)
    if running_var is not None:
        _blend(running_var, reduce.mean(reduce.var(rows.handle(), 2), 0), momentum)
    return _affine("instance_norm", movement.reshape(_normalised(rows, eps), x.shape), weight, bias)


@_composite()
def local_response_norm(x, size, alpha=1e-4, beta=0.75, k=1.0):
    """x / (k + alpha * mean of squares over `size` neighbouring channels) ** beta; beyond the ends they count as 0.

    ShapeError, DTypeError.
    """
    _check("local_response_norm", x, 3)
    if size < 1:
        raise ShapeError("local_response_norm", f"size {size}", "at least 1", "use a positive size")
    squares, c = square(x), x.shape[1]
    sides = [
        create.zeros(type(x), x.shape[0], n, *x.shape[2:], dtype=x.dtype, device=x.device)
        for n in (size // 2, (size - 1) // 2)
    ]
    wide = movement.cat([sides[0], squares, sides[1]], 1)
    total = movement.narrow(wide, 1, 0, c)
    for i in range(1, size):
        total = add(total, movement.narrow(wide, 1, i, c))
    return div(x, pow(add(mul(total, alpha / size), k), beta))
