"""Gradients of activations, each one kernel: what is to be multiplied by a slope, and where the slope is taken.

They are ops like others, and can be differentiated themselves.

>>> import tensorlib
>>> relu_backward(tensorlib.tensor([1.0, 2.0]), tensorlib.tensor([0.0, 3.0]))
tensor([0., 2.])
"""

from math import pi, sqrt

from tensorlib.ops.elementwise import _binary, _zero, exp, mul, sigmoid, square
from tensorlib.registry import FLOAT, OPS


def _density(x):
    return exp(square(x) * -0.5) * (2 * pi) ** -0.5


def _silu_curve(x):
    s = sigmoid(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s))


def _gelu_tanh_curve(x):
    s, first = sigmoid(x * (_A + _B * square(x))), _A + 3 * _B * square(x)
    return s * (1 - s) * (2 * first + x * ((1 - 2 * s) * square(first) + 6 * _B * x))


def _slope(name, slope, curve, bounds):
    """The row "NAME_backward"; `slope(np, x)` is the derivative of NAME, `curve(x)` the second one."""
    own = f"{name}_backward"
    vjp = {"x": lambda g, y: globals()[own](g, y), "y": lambda g, x, y: mul(g, mul(x, curve(y)))}
    ref = lambda np, x, y: x * slope(np, np.clip(y, -800, 800))  # noqa: E731 (beyond, slopes are 0 or 1)
    doc = f"x times the derivative of {name} at y"
    return _binary(own, FLOAT, doc, ref, ((-50, 50), bounds), vjp)


def _silu_slope(np, x):
    s = OPS["sigmoid"].ref(np, x)
    return s * (1 + x * (1 - s))


def _gelu_slope(np, x):
    return 0.5 * OPS["erfc"].ref(np, x * -sqrt(0.5)) + x * np.exp(x * x * -0.5) / sqrt(2 * pi)


def _gelu_tanh_slope(np, x):
    s = OPS["sigmoid"].ref(np, x * (_A + _B * x * x))
    return s * (1 + x * (1 - s) * (_A + 3 * _B * x * x))


_A = 2 * sqrt(2 / pi)
_B = 0.044715 * _A

relu_backward = _binary(
    "relu_backward",
    FLOAT,
    "x where y, the result of relu, is not 0",
    lambda np, x, y: np.where(y <= 0, 0, x),
    None,
    {"x": lambda g, y: relu_backward(g, y), "y": _zero},
)
silu_backward = _slope("silu", _silu_slope, _silu_curve, (-50, 50))
gelu_backward = _slope("gelu", _gelu_slope, lambda x: mul(_density(x), 2 - square(x)), (-8, 12))
gelu_tanh_backward = _slope("gelu_tanh", _gelu_tanh_slope, _gelu_tanh_curve, (-8, 12))
