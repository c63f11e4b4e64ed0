"""LoRA (arXiv:2106.09685) and DoRA (arXiv:2402.09353): small weights that are trained beside frozen ones.

The frozen ones may be floats, or blocks (QTensor): gradients pass through them to what is before. Names and numbers are
those of PEFT, whose adapters `tensorlib.io.adapters` reads and writes.

>>> import tensorlib
>>> from tensorlib import nn
>>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
>>> nn.lora.add_lora(model, r=2, alpha=4, targets="2")
['2']
>>> [p.shape for p in model.parameters() if p.requires_grad]
[(2, 8), (2, 2)]
>>> sorted(nn.lora.lora_state_dict(model))
['base_model.model.2.lora_A.weight', 'base_model.model.2.lora_B.weight']
"""

import re

from tensorlib.autograd import no_grad
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.nn import init
from tensorlib.nn.layers import Embedding, Linear
from tensorlib.nn.module import Parameter
from tensorlib.ops import index, linalg, movement
from tensorlib.quant.tensor import QTensor
from tensorlib.random import dropout as drop

PREFIX = "base_model.model."  # what PEFT puts before the paths of a model
ROWS = 1 << 22  # weights that are dequantised at a time for their norms


class _Adapter:
    """What both layers have: `weight` stays where it was, frozen; `lora_` weights may be missing in a file."""

    def _freeze(self, base, r, alpha, dropout, rslora):
        if r < 1:
            raise ShapeError(type(self).__name__, f"rank {r}", "at least 1", "leave the layer as it is instead")
        if not 0 <= dropout < 1:
            raise ShapeError(type(self).__name__, f"dropout {dropout}", "0 <= dropout < 1", "give a probability")
        weight, self.training = base.weight, base.training
        self.weight = Parameter(*weight.shape)
        self.weight = weight if isinstance(weight, QTensor) else weight.detach()
        self.r, self.alpha, self.dropout, self.rslora = r, r if alpha is None else alpha, dropout, rslora
        self.scaling, self.merged = self.alpha / (r**0.5 if rslora else r), False

    @no_grad()
    def merge(self):
        """Adds what is trained to the weight, once: then the layer costs what it did before. DTypeError for blocks."""
        if self.merged:
            return self
        if isinstance(self.weight, QTensor):
            fix = "dequantise it: layer.weight = layer.weight.dequantize()"
            raise DTypeError("merge", f"a weight in blocks of {self.weight.format.name}", "a float tensor", fix)
        self._frozen, self.merged = self.weight, True
        self.weight = self._merged().detach().to(self._frozen.dtype)
        return self

    def unmerge(self):
        """The weight as it was before `merge`, bit for bit."""
        if self.merged:
            self.weight, self.merged = self._frozen, False
            del self._frozen
        return self

    def extra_repr(self):
        return f"{super().extra_repr()}, r={self.r}, alpha={self.alpha:g}{', merged' if self.merged else ''}"


class LoRALinear(_Adapter, Linear):
    """base(x) + alpha / r * lora_B(lora_A(dropout(x))), base's weight and bias frozen. rslora: alpha / sqrt(r).

    A [r, in] begins uniform as Linear's, B [out, r] as 0. `dora`: the rows of the sum of both weights get the lengths
    of `lora_magnitude_vector` (lengths before that are no part of the gradient, section 4.3). ShapeError.

    >>> import tensorlib
    >>> layer = LoRALinear(Linear(4, 3), r=2, alpha=4, dropout=0.1)
    >>> layer(tensorlib.ones(5, 4)).shape
    (5, 3)
    """

    def __init__(self, base, r, alpha=None, dropout=0.0, dora=False, rslora=False):
        self._freeze(base, r, alpha, dropout, rslora)
        self.in_features, self.out_features = base.in_features, base.out_features
        bias = base.bias
        self.bias = None if bias is None else Parameter(*bias.shape, dtype=bias.dtype)
        if bias is not None:
            self.bias = bias.detach()
        wide = "f64" if not isinstance(self.weight, QTensor) and self.weight.dtype.name == "f64" else "f32"
        device, within = self.weight.device, init.fan_uniform(self.in_features)
        self.lora_A = Linear(self.in_features, r, bias=False)
        self.lora_A.weight = Parameter(r, self.in_features, init=within, dtype=wide, optional=True)
        self.lora_B = Linear(r, self.out_features, bias=False)
        self.lora_B.weight = Parameter(self.out_features, r, dtype=wide, optional=True)
        begin = {"init": self._lengths, "dtype": wide, "optional": True}
        self.lora_magnitude_vector = Parameter(self.out_features, **begin) if dora else None
        self._squares = None
        if device.type != "cpu":
            self.to(device)

    def forward(self, x):
        if self.merged:
            return super().forward(x)
        dropping = self.training and self.dropout
        own = drop(x, self.dropout) if dropping else x
        delta = self.lora_B(self.lora_A(own.to(self.lora_A.weight.dtype))) * self.scaling
        if self.lora_magnitude_vector is None:
            out = super().forward(x)
            return out + delta.to(out.dtype)
        out = linalg.linear(x, self.weight)
        ratio = self.lora_magnitude_vector / self.row_norms()
        again = linalg.linear(own, self.weight) if dropping else out
        out = out + (again * (ratio - 1) + delta * ratio).to(out.dtype)
        return out if self.bias is None else out + self.bias

    @no_grad()
    def row_norms(self):
        """The lengths of the rows of weight + scaling * B A, which never exists: |w|^2 + 2 s w.(BA) + s^2 |BA|^2.

        Over blocks w.(BA) has the rounding of their products, 1/254 of the largest in A's rows.
        """
        a, b, s = self.lora_A.weight.detach(), self.lora_B.weight.detach(), self.scaling
        if self._squares is None or self._squares[0] is not self.weight:
            self._squares = (self.weight, _squares(self.weight, a.dtype))
        cross = (b * linalg.linear(a, self.weight).T).sum(1)
        own = ((b @ (a @ a.T)) * b).sum(1)
        return (self._squares[1] + cross * (2 * s) + own * s**2).clamp(min=0.0).sqrt()

    def _lengths(self, magnitude, generator=None):
        with no_grad():
            magnitude.copy_(_squares(self.weight, magnitude.dtype).sqrt())

    def _merged(self):
        a, b = self.lora_A.weight, self.lora_B.weight
        both = self.weight.to(a.dtype) + (b @ a) * self.scaling
        if self.lora_magnitude_vector is None:
            return both
        return both * (self.lora_magnitude_vector / both.norm(2, 1)).unsqueeze(1)


def _squares(weight, dtype):
    """The sums of the squares of the rows of a weight [out, in]."""
    if not isinstance(weight, QTensor):
        return weight.to(dtype).square().sum(1)
    size = max(1, ROWS // max(1, weight.shape[1]))
    parts = [weight.rows(at, min(size, weight.shape[0] - at)) for at in range(0, weight.shape[0], size)]
    return movement.cat([part.dequantize().square().sum(1) for part in parts])


class LoRAEmbedding(_Adapter, Embedding):
    """Rows of base's weight + alpha / r * (lora_embedding_B lora_embedding_A)^T: A [r, V] begins as 0, B [D, r] normal.

    A tied output layer (`as_linear`) has base's rows, as in PEFT. ShapeError.
    """

    def __init__(self, base, r, alpha=None, dropout=0.0, rslora=False):
        self._freeze(base, r, alpha, dropout, rslora)
        self.num_embeddings, self.embedding_dim = base.num_embeddings, base.embedding_dim
        self.padding_idx = base.padding_idx
        wide = "f64" if not isinstance(self.weight, QTensor) and self.weight.dtype.name == "f64" else "f32"
        self.lora_embedding_A = Parameter(r, self.num_embeddings, dtype=wide, optional=True)
        self.lora_embedding_B = Parameter(self.embedding_dim, r, init=init.normal_, dtype=wide, optional=True)
        if self.weight.device.type != "cpu":
            self.to(self.weight.device)

    def forward(self, ids):
        out = super().forward(ids)
        if self.merged:
            return out
        rows = index.index_select(self.lora_embedding_A, 1, ids.reshape(-1))
        delta = linalg.linear(rows.T, self.lora_embedding_B) * self.scaling
        return out + delta.reshape(out.shape).to(out.dtype)

    def _merged(self):
        delta = (self.lora_embedding_B @ self.lora_embedding_A).T
        return self.weight.to(delta.dtype) + delta * self.scaling


# ---- a whole model ---------------------------------------------------------------------------------------------------


def add_lora(model, r=8, alpha=None, targets=None, dropout=0.0, dora=False, rslora=False):
    """Freezes a model, and puts a LoRALinear or LoRAEmbedding in the place of its layers; their paths.

    targets: a regular expression for whole paths or their last parts ("q_proj|v_proj"), or a list of such parts; None:
    every Linear. alpha is r by default. ShapeError if no layer is meant, or with `dora` an Embedding.
    """
    if targets is not None and not isinstance(targets, str):
        targets = "|".join(map(re.escape, targets))
    pattern = targets and re.compile(rf"(?:.*\.)?(?:{targets})")
    found = []
    for path, layer in model.named_modules():
        if (
            path
            and type(layer) in (Linear, Embedding)
            and (pattern.fullmatch(path) if pattern else type(layer) is Linear)
        ):
            found.append(path)
    if not found:
        got = f"targets {targets!r}, which no Linear or Embedding has"
        raise ShapeError("add_lora", got, "paths of layers", "see model.named_modules()")
    model.requires_grad_(False)
    wrap(model, found, dict.fromkeys(found, (r, alpha)), dropout, dora, rslora)
    return found


def wrap(model, paths, ranks, dropout=0.0, dora=False, rslora=False):
    """Puts adapters in the place of the layers at `paths`: ranks[path] is (r, alpha). ShapeError."""
    made = {}
    for path in paths:
        layer = model.get_submodule(path)
        if id(layer) not in made:
            if type(layer) is Linear:
                made[id(layer)] = LoRALinear(layer, *ranks[path], dropout, dora, rslora)
            elif type(layer) is Embedding and not dora:
                made[id(layer)] = LoRAEmbedding(layer, *ranks[path], dropout, rslora)
            else:
                got = f"{path}, a {type(layer).__name__}{', with dora' if dora else ''}"
                raise ShapeError("add_lora", got, "a Linear, or without dora an Embedding", "choose other targets")
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, made[id(layer)])


def adapters(model):
    """{path: LoRALinear or LoRAEmbedding} of a model."""
    return {path: module for path, module in model.named_modules() if isinstance(module, _Adapter)}


def lora_parameters(model):
    """The weights that are trained, as optimisers take them."""
    return [getattr(m, name) for path, m, name, _ in model.named_weights() if "lora_" in path]


def lora_state_dict(model, prefix=PREFIX):
    """{name: tensor} of the adapters' weights alone, in PEFT's names: base_model.model.PATH.lora_A.weight."""
    chosen = [(path, getattr(m, name)) for path, m, name, _ in model.named_weights() if "lora_" in path]
    return {prefix + path: value.detach() for path, value in chosen}


def merge_lora(model):
    """The model with plain layers again, what was trained added to their weights. DTypeError for weights in blocks."""
    for path, layer in adapters(model).items():
        layer.merge()
        if isinstance(layer, LoRALinear):
            plain = Linear(layer.in_features, layer.out_features, layer.bias is not None)
            plain.bias = layer.bias
        else:
            plain = Embedding(layer.num_embeddings, layer.embedding_dim, layer.padding_idx)
        plain.weight, plain.training = layer.weight, layer.training
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, plain)
    return model
