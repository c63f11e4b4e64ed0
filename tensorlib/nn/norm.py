"""Norms of the last dims: torch.nn's names and arguments. Weights begin as 1, biases as 0."""

from tensorlib.errors import ShapeError
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
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dim, or the last dims (arXiv:1607.06450)."""

    def __init__(self, normalized_shape, eps=1e-5, elementwise_affine=True, bias=True, dtype="f32"):
        self.normalized_shape = tuple(normalized_shape) if hasattr(normalized_shape, "__len__") else (normalized_shape,)
        self.eps = eps
        affine = elementwise_affine
        self.weight = Parameter(*self.normalized_shape, init=init.ones_, dtype=dtype) if affine else None
        self.bias = Parameter(*self.normalized_shape, dtype=dtype) if affine and bias else None

    def forward(self, x):
        weight, bias = self.weight, self.bias
        dims = len(self.normalized_shape)
        if dims == 1:
            return fused.layer_norm(x, weight, bias, self.eps)
        if x.shape[-dims:] != self.normalized_shape:
            raise ShapeError("LayerNorm", f"shape {x.shape}", f"(..., {self.normalized_shape})", "reshape the input")
        weight, bias = (None if w is None else w.flatten() for w in (weight, bias))
        return fused.layer_norm(x.flatten(-dims), weight, bias, self.eps).reshape(x.shape)

    def extra_repr(self):
        return f"{', '.join(map(str, self.normalized_shape))}, eps={self.eps:g}"
