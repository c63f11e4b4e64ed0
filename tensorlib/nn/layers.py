"""Linear, Embedding and what moves dims: torch.nn's names and arguments. A weight may be a Tensor or a QTensor."""

from tensorlib.backend import recorder
from tensorlib.device import Array
from tensorlib.nn import init
from tensorlib.nn.module import Module, Parameter
from tensorlib.ops import fused, linalg
from tensorlib.ops.panels import Panels
from tensorlib.quant.tensor import QTensor

swiglu = fused.swiglu


class Linear(Module):
    """x [..., in] times weight [out, in] transposed, plus bias [out]: [..., out]. ShapeError where sizes differ.

    Both begin uniform within 1 / sqrt(in), as in PyTorch.

    >>> import tensorlib
    >>> Linear(4, 2)(tensorlib.zeros(3, 4)).shape
    (3, 2)
    """

    def __init__(self, in_features, out_features, bias=True, dtype="f32"):
        self.in_features, self.out_features = in_features, out_features
        within = init.fan_uniform(in_features)
        self.weight = Parameter(out_features, in_features, init=within, dtype=dtype)
        self.bias = Parameter(out_features, init=within, dtype=dtype) if bias else None

    def forward(self, x):
        weight, bias = self.weight, self.bias
        if isinstance(weight, QTensor):
            if bias is not None and bias.dtype.name == "f32" and bias.is_contiguous() and weight.closes(x, bias):
                return weight.closed(x, bias)
            out = weight.linear(x)
            return out if bias is None else out + bias
        if isinstance(weight, Panels):
            return weight.linear(x, bias)
        return linalg.linear(x, weight, bias)

    def extra_repr(self):
        bias = vars(self).get("bias", True) is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}"


def prepack(module):
    """Orders the weights of all `Linear`s below a module, on the CPU, as products read them; returns the module.

    For inference with few rows at a time, where ordering them anew costs as much as the product. In f32 they take no
    more memory, but such weights have no gradients, and are not saved. Blocks stay, beside what is made of them: see
    `QTensor.prepacked`; an `Embedding` does the same when it is first used `as_linear`.

    >>> import tensorlib
    >>> layer = prepack(Linear(3, 2))
    >>> layer.weight, layer(tensorlib.zeros(1, 3)).shape
    (Panels(shape=(2, 3)), (1, 2))
    """
    for layer in module.modules():
        if type(layer) is Linear and isinstance(layer.weight, Array) and Panels.fits(layer.weight):
            layer.weight = Panels(layer.weight)
            layer.requires_grad_(False)
        elif type(layer) is Linear and isinstance(layer.weight, QTensor):
            layer.weight = layer.weight.prepacked()
        elif type(layer) is Embedding:
            layer._prepack = True
    return module


class Embedding(Module):
    """Rows of weight [V, D] by ids (i64, any shape): ids.shape + (D,), f32. `as_linear` projects onto the same rows.

    The weight begins normal; the row `padding_idx` as 0, and no gradient reaches it.

    >>> import tensorlib
    >>> Embedding(10, 4, padding_idx=0)(tensorlib.tensor([[0, 0]])).tolist()
    [[[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]
    """

    def __init__(self, num_embeddings, embedding_dim, padding_idx=None, dtype="f32"):
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx, self._prepack = padding_idx, False
        self.weight = Parameter(num_embeddings, embedding_dim, init=self._begin, dtype=dtype)

    def _begin(self, weight, generator=None):
        init.normal_(weight, generator=generator)
        if self.padding_idx is not None:
            weight[self.padding_idx] = 0.0

    def forward(self, ids):
        ids = ids if ids.is_contiguous() else ids.contiguous()
        if isinstance(self.weight, QTensor):
            return self.weight.embedding(ids)
        out = fused.embedding(ids, self.weight)
        if self.padding_idx is None or not out.requires_grad:
            return out
        padding = (ids == self.padding_idx % self.num_embeddings).unsqueeze(-1)
        return out.where(~padding, out.detach())

    def as_linear(self, x):
        """x [..., D] times the table transposed: [..., V] (a tied output layer)."""
        if not isinstance(self.weight, QTensor):
            return linalg.linear(x, self.weight)
        if self._prepack and recorder() is None:
            self.weight, self._prepack = self.weight.prepacked(), False
        return self.weight.linear(x)

    def extra_repr(self):
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


class Identity(Module):
    """x itself."""

    def __init__(self, *args, **kwargs):
        pass

    def forward(self, x):
        return x


class Flatten(Module):
    """Dims start_dim to end_dim of x as one: a view where memory allows."""

    def __init__(self, start_dim=1, end_dim=-1):
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, x):
        return x.flatten(self.start_dim, self.end_dim)

    def extra_repr(self):
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """Dim `dim` of x as several of sizes `unflattened_size`."""

    def __init__(self, dim, unflattened_size):
        self.dim, self.unflattened_size = dim, tuple(unflattened_size)

    def forward(self, x):
        return x.unflatten(self.dim, self.unflattened_size)

    def extra_repr(self):
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"
