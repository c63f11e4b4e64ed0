"""Beginnings of weights: `torch.nn.init`'s functions. Each fills a tensor in place, unrecorded, and returns it.

Fan-in and fan-out of a weight [out, in, *kernel]: in, or out, times the kernel's elements. Random ones take
`generator=`, a Generator or what its `take()` gave; None: the default one.

>>> import tensorlib
>>> w = xavier_uniform_(tensorlib.empty(50, 70))
>>> w.abs().max().item() <= (6 / 120) ** 0.5
True
"""

from functools import cache
from math import erf, prod, sqrt

from tensorlib.autograd import no_grad
from tensorlib.errors import ShapeError

GAINS = {"linear": 1.0, "conv1d": 1.0, "conv2d": 1.0, "conv3d": 1.0, "conv_transpose1d": 1.0, "conv_transpose2d": 1.0}
GAINS |= {"conv_transpose3d": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": sqrt(2.0), "selu": 0.75}


def calculate_gain(nonlinearity, param=None):
    """What a standard deviation is multiplied by before a non-linearity; `param` is leaky_relu's slope (0.01).

    >>> calculate_gain("tanh")
    1.6666666666666667
    """
    if nonlinearity == "leaky_relu":
        return sqrt(2.0 / (1 + (0.01 if param is None else param) ** 2))
    if nonlinearity not in GAINS:
        raise ValueError(f"calculate_gain: got {nonlinearity!r}; expected one of leaky_relu, {', '.join(GAINS)}")
    return GAINS[nonlinearity]


def fans(tensor):
    """(fan-in, fan-out). ShapeError for fewer than two dims."""
    if tensor.ndim < 2:
        raise ShapeError("init", f"shape {tensor.shape}", "at least 2 dims", "use normal_ or uniform_ for vectors")
    receptive = prod(tensor.shape[2:])
    return tensor.shape[1] * receptive, tensor.shape[0] * receptive


def _fan(tensor, mode):
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"init: got mode {mode!r}; expected fan_in or fan_out")
    return fans(tensor)[mode == "fan_out"]


@no_grad()
def uniform_(tensor, a=0.0, b=1.0, generator=None):
    """Uniform in [a, b)."""
    return tensor.uniform_(a, b, generator=generator)


@no_grad()
def normal_(tensor, mean=0.0, std=1.0, generator=None):
    """Normal."""
    return tensor.normal_(mean, std, generator=generator)


@no_grad()
def trunc_normal_(tensor, mean=0.0, std=1.0, a=-2.0, b=2.0, generator=None):
    """Normal, cut to [a, b]: by the inverse of the distribution's function, so that nothing piles up at the ends."""
    low, high = (erf((x - mean) / std / sqrt(2.0)) for x in (a, b))
    tensor.uniform_(low, high, generator=generator)
    return tensor.copy_((tensor.erfinv() * (std * sqrt(2.0)) + mean).clamp(a, b))


@no_grad()
def constant_(tensor, val, generator=None):
    """All `val`."""
    return tensor.fill_(val)


def zeros_(tensor, generator=None):
    """All 0."""
    return constant_(tensor, 0.0)


def ones_(tensor, generator=None):
    """All 1."""
    return constant_(tensor, 1.0)


@no_grad()
def eye_(tensor, generator=None):
    """A matrix with ones on its diagonal."""
    tensor.fill_(0.0)
    tensor.diagonal().fill_(1.0)
    return tensor


@no_grad()
def dirac_(tensor, groups=1, generator=None):
    """A convolution [out, in, *kernel] that hands its input on: 1 in the middle of a channel's kernel for itself."""
    tensor.fill_(0.0)
    out, channels, *kernel = tensor.shape
    middle = tuple(k // 2 for k in kernel)
    for group in range(groups):
        for d in range(min(out // groups, channels)):
            tensor[(group * (out // groups) + d, d, *middle)] = 1.0
    return tensor


def xavier_uniform_(tensor, gain=1.0, generator=None):
    """Uniform, with a variance of gain^2 * 2 / (fan_in + fan_out) (Glorot and Bengio, 2010)."""
    bound = gain * sqrt(6.0 / sum(fans(tensor)))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor, gain=1.0, generator=None):
    """Normal, with a variance of gain^2 * 2 / (fan_in + fan_out) (Glorot and Bengio, 2010)."""
    return normal_(tensor, 0.0, gain * sqrt(2.0 / sum(fans(tensor))), generator)


def kaiming_uniform_(tensor, a=0.0, mode="fan_in", nonlinearity="leaky_relu", generator=None):
    """Uniform, with a variance of gain^2 / fan (He et al., arXiv:1502.01852); `a` is leaky_relu's slope."""
    bound = calculate_gain(nonlinearity, a) * sqrt(3.0 / _fan(tensor, mode))
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(tensor, a=0.0, mode="fan_in", nonlinearity="leaky_relu", generator=None):
    """Normal, with a variance of gain^2 / fan (He et al., arXiv:1502.01852); `a` is leaky_relu's slope."""
    return normal_(tensor, 0.0, calculate_gain(nonlinearity, a) / sqrt(_fan(tensor, mode)), generator)


@no_grad()
def orthogonal_(tensor, gain=1.0, generator=None):
    """Orthonormal rows or columns, whichever are fewer, all matrices equally likely (Saxe et al., arXiv:1312.6120)."""
    if tensor.ndim < 2:
        raise ShapeError("orthogonal_", f"shape {tensor.shape}", "at least 2 dims", "use normal_ for vectors")
    rows, columns = tensor.shape[0], tensor.numel() // tensor.shape[0]
    flat = normal_(type(tensor).empty((rows, columns), "f32"), 0.0, 1.0, generator)
    q, r = (flat.T if rows < columns else flat).qr()
    q = q * r.diagonal().sign()
    return tensor.copy_(((q.T if rows < columns else q) * gain).reshape(*tensor.shape))


@cache  # one for all layers of a size
def fan_uniform(fan_in):
    """Init function: uniform within 1 / sqrt(fan_in), what torch's Linear, convolutions and their biases begin with."""
    return Uniform(1 / sqrt(fan_in) if fan_in else 0.0)


class Uniform:
    """Init function: uniform within `bound`."""

    __slots__ = ("bound",)

    def __init__(self, bound):
        self.bound = bound

    def __call__(self, tensor, generator=None):
        return uniform_(tensor, -self.bound, self.bound, generator)


def is_random(function):
    """Whether an init function draws numbers."""
    return function not in (zeros_, ones_, eye_)
