"""Linear, Embedding, norms: torch.nn's names and arguments. A weight may be a Tensor or a QTensor."""

from tensorlib.nn.module import Module, Parameter
from tensorlib.ops import fused, linalg
from tensorlib.quant.tensor import QTensor

swiglu = fused.swiglu


class Linear(Module):
    """x [..., in] times weight [out, in] transposed, plus bias [out]: [..., out]. ShapeError where sizes differ."""

    def __init__(self, in_features, out_features, bias=False):
        self.weight = Parameter(out_features, in_features)
        if bias:
            self.bias = Parameter(out_features)

    def forward(self, x):
        bias = getattr(self, "bias", None)
        if isinstance(self.weight, QTensor):
            out = self.weight.linear(x)
            return out if bias is None else out + bias
        return linalg.linear(x, self.weight, bias)

    def extra_repr(self):
        out_features, in_features = self.weight.shape
        return f"in_features={in_features}, out_features={out_features}, bias={hasattr(self, 'bias')}"


class Embedding(Module):
    """Rows of weight [V, D] by ids (i64, any shape): ids.shape + (D,), f32. `as_linear` projects onto the same rows."""

    def __init__(self, num_embeddings, embedding_dim):
        self.weight = Parameter(num_embeddings, embedding_dim)

    def forward(self, ids):
        if isinstance(self.weight, QTensor):
            return self.weight.embedding(ids)
        return fused.embedding(ids, self.weight)

    def as_linear(self, x):
        """x [..., D] times the table transposed: [..., V] (a tied output layer)."""
        return self.weight.linear(x) if isinstance(self.weight, QTensor) else linalg.linear(x, self.weight)

    def extra_repr(self):
        return "{}, {}".format(*self.weight.shape)


class RMSNorm(Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dim (arXiv:1910.07467)."""

    def __init__(self, dim, eps=1e-6):
        self.weight, self.eps = Parameter(dim), eps

    def forward(self, x):
        return fused.rms_norm(x, self.weight, self.eps)

    def extra_repr(self):
        return f"{self.weight.shape[0]}, eps={self.eps:g}"


class LayerNorm(Module):
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dim (arXiv:1607.06450)."""

    def __init__(self, dim, eps=1e-5, bias=True):
        self.weight, self.eps = Parameter(dim), eps
        if bias:
            self.bias = Parameter(dim)

    def forward(self, x):
        return fused.layer_norm(x, self.weight, getattr(self, "bias", None), self.eps)

    def extra_repr(self):
        return f"{self.weight.shape[0]}, eps={self.eps:g}"
