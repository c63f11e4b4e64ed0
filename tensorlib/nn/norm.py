"""Norms with weights: torch.nn's names and arguments. Weights begin as 1, biases as 0."""

from tensorlib.nn import init
from tensorlib.nn.module import Module, Parameter
from tensorlib.ops import fused


class RMSNorm(Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dim (arXiv:1910.07467).

    >>> import tensorlib
    >>> RMSNorm(2, eps=0.0)(tensorlib.tensor([[1.0, -1.0]])).tolist()
    [[1.0, -1.0]]
    """

    def __init__(self, dim, eps=1e-6):
        self.dim, self.eps = dim, eps
        self.weight = Parameter(dim, init=init.ones_)

    def forward(self, x):
        return fused.rms_norm(x, self.weight, self.eps)

    def extra_repr(self):
        return f"{self.dim}, eps={self.eps:g}"


class LayerNorm(Module):
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dim (arXiv:1607.06450)."""

    def __init__(self, dim, eps=1e-5, bias=True):
        self.dim, self.eps = dim, eps
        self.weight = Parameter(dim, init=init.ones_)
        self.bias = Parameter(dim) if bias else None

    def forward(self, x):
        return fused.layer_norm(x, self.weight, self.bias, self.eps)

    def extra_repr(self):
        return f"{self.dim}, eps={self.eps:g}"
