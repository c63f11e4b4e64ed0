"""Activations by the names that configs of Hugging Face have for them (`hidden_act` and its like)."""

from tensorlib.errors import ShapeError
from tensorlib.ops import elementwise


def _gelu_tanh(x):
    return elementwise.gelu(x, approximate="tanh")


ACTIVATIONS = {
    "silu": elementwise.silu,
    "swish": elementwise.silu,
    "gelu": elementwise.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_python": elementwise.gelu,
    "gelu_accurate": _gelu_tanh,
    "quick_gelu": lambda x: elementwise.mul(x, elementwise.sigmoid(elementwise.mul(x, 1.702))),
    "relu": elementwise.relu,
    "relu2": lambda x: elementwise.square(elementwise.relu(x)),
    "sigmoid": elementwise.sigmoid,
    "tanh": elementwise.tanh,
}


def activation(name):
    """The function of an activation's name. ShapeError for an unknown one.

    >>> import tensorlib
    >>> activation("relu2")(tensorlib.tensor([-1.0, 3.0])).tolist()
    [0.0, 9.0]
    """
    if name not in ACTIVATIONS:
        raise ShapeError("activation", repr(name), f"one of {', '.join(ACTIVATIONS)}", "this is not here yet")
    return ACTIVATIONS[name]
