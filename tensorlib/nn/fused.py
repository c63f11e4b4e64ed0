"""Layers taken together: what they give one by one, in fewer launches where kernels for it exist.

Those are for quantised weights on a GPU and activations of up to 8 rows, as a decode step has them, and for weights in
panels (`prepack`) on the CPU. In all other cases each function is the composition that its first line says.
"""

from tensorlib.nn.activations import activation
from tensorlib.nn.layers import Linear, swiglu
from tensorlib.nn.norm import RMSNorm
from tensorlib.ops import decode
from tensorlib.quant import fused


def linears(x, *layers):
    """tuple(layer(x) for layer in layers): x [..., K] through several `Linear`s. Raises as those do.

    Quantised weights on a GPU: one launch per three of one format. Results differ by no bit.

    >>> import tensorlib
    >>> q, k = Linear(4, 6, bias=False), Linear(4, 2, bias=False)
    >>> q.weight, k.weight = tensorlib.ones(6, 4), tensorlib.ones(2, 4)
    >>> [y.shape for y in linears(tensorlib.ones(1, 4), q, k)]
    [(1, 6), (1, 2)]
    """
    if not all(type(layer) is Linear for layer in layers) or not fused.fits(x, *(layer.weight for layer in layers)):
        return tuple(layer(x) for layer in layers)
    found = fused.linears(x, [layer.weight for layer in layers])
    return tuple(y if layer.bias is None else y + layer.bias for y, layer in zip(found, layers))


# activation -> what the kernels that end with one call it: kernels_numba/activate.py
_ENDS = {"relu": "relu", "silu": "silu", "swish": "silu", "gelu": "gelu"}
_ENDS |= dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), "gelu_tanh")


def act_linear(x, linear, act):
    """activation(act)(linear(x)): x [..., K] through a `Linear`. Raises as those do.

    A weight in panels: one launch after x is packed, where `act` is of ReLU, GELU (within |x| + 1 of 2**-22) or SiLU.

    >>> import tensorlib
    >>> layer = Linear(4, 2)
    >>> act_linear(tensorlib.zeros(3, 4), layer, "gelu").shape
    (3, 2)
    """
    if act in _ENDS and _closes(linear, x):
        return linear.weight.closed(x, linear.bias, _ENDS[act])
    return activation(act)(linear(x))


def add_linear(x, linear, input):
    """x + linear(input): x [..., N], input [..., K]. Raises as those do.

    A weight in panels: one launch after input is packed.

    >>> import tensorlib
    >>> linear = Linear(4, 2, bias=False)
    >>> linear.weight = tensorlib.ones(2, 4)
    >>> add_linear(tensorlib.ones(1, 2), linear, tensorlib.ones(1, 4)).tolist()
    [[5.0, 5.0]]
    """
    if _closes(linear, input, x) and x.shape == (*input.shape[:-1], linear.weight.shape[0]):
        return linear.weight.closed(input, linear.bias, "none", x)
    return x + linear(input)


def _closes(linear, x, *more):
    """Whether the product and what follows it are one launch: of f32, side by side, on the CPU."""
    if type(linear) is not Linear or not hasattr(linear.weight, "closes"):
        return False
    plain = [a for a in (linear.bias, *more) if a is not None]
    fine = all(a.device is x.device and a.dtype.name == "f32" and a.is_contiguous() for a in plain)
    return fine and linear.weight.closes(x, *plain)


def swiglu_linear(x, gate, up):
    """swiglu(gate(x), up(x)): x [..., K] through two `Linear`s of N rows -> [..., N]. Raises as those do.

    Quantised weights of one format on a GPU: one launch, if 32 divides N.

    >>> import tensorlib
    >>> gate, up = Linear(4, 6, bias=False), Linear(4, 6, bias=False)
    >>> gate.weight, up.weight = tensorlib.zeros(6, 4), tensorlib.ones(6, 4)
    >>> swiglu_linear(tensorlib.ones(1, 4), gate, up).tolist()
    [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    """
    if not (_bare(gate) and _bare(up) and fused.fits(x, gate.weight, up.weight)):
        return swiglu(*linears(x, gate, up))
    (n, _), (m, _) = gate.weight.shape, up.weight.shape
    if n != m or n % 32 or gate.weight.format is not up.weight.format:
        return swiglu(*linears(x, gate, up))
    return fused.gated(x, gate.weight, up.weight)


def add_norm(x, linear, input, norm):
    """(y, norm(y)) of y = x + linear(input): x [..., N], input [..., K]. Raises as those do.

    A quantised weight on a GPU and an `RMSNorm`: one launch, if 32 divides N.

    >>> import tensorlib
    >>> linear, norm = Linear(4, 2, bias=False), RMSNorm(2, eps=0.0)
    >>> linear.weight, norm.weight = tensorlib.ones(2, 4), tensorlib.ones(2)
    >>> y, normed = add_norm(tensorlib.ones(1, 2), linear, tensorlib.ones(1, 4), norm)
    >>> y.tolist(), normed.tolist()
    ([[5.0, 5.0]], [[1.0, 1.0]])
    """
    if not (_bare(linear) and fused.fits(input, linear.weight) and _norms(norm, x, input, linear.weight.shape[0])):
        y = add_linear(x, linear, input)
        return y, norm(y)
    return fused.closing(x, linear.weight, input, norm.weight, norm.eps)


def _bare(layer):
    return type(layer) is Linear and layer.bias is None


def _norms(norm, x, input, n):
    """Whether norm is an RMSNorm of rows of n, where x and input are, and x has rows as input has."""
    return (
        type(norm) is RMSNorm
        and n % 32 == 0
        and x.device is input.device is norm.weight.device
        and decode.plain(x)
        and x.shape == (*input.shape[:-1], n)
        and norm.weight.shape == (n,)
        and norm.weight.is_contiguous()
        and norm.weight.dtype.name in ("f32", "f16", "bf16")
    )
