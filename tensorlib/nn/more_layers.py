"""Layers of few models: PReLU, Bilinear, EmbeddingBag, LinearCrossEntropyLoss.

>>> import tensorlib
>>> from tensorlib import nn
>>> nn.PReLU()(tensorlib.tensor([-4.0, 2.0])).tolist()
[-1.0, 2.0]
"""

from tensorlib.nn import init
from tensorlib.nn.layers import Linear
from tensorlib.nn.module import Module, Parameter
from tensorlib.ops import contract, lookup, loss, special


class PReLU(Module):
    """x, or weight * x below 0 (arXiv:1502.01852); one weight, or one per channel (dim 1)."""

    def __init__(self, num_parameters=1, init=0.25, dtype="f32"):
        self.num_parameters = num_parameters
        self.weight = Parameter(num_parameters, init=_Constant(init), dtype=dtype)

    def forward(self, x):
        return special.prelu(x, self.weight)

    def extra_repr(self):
        return f"num_parameters={self.num_parameters}"


class _Constant:
    def __init__(self, value):
        self.value = value

    def __call__(self, tensor, generator=None):
        return init.constant_(tensor, self.value)


class Bilinear(Module):
    """x1 [..., I] and x2 [..., J] -> [..., O]: x1 W_o x2 + b_o, weight [O, I, J]. ShapeError."""

    def __init__(self, in1_features, in2_features, out_features, bias=True, dtype="f32"):
        self.in1_features, self.in2_features, self.out_features = in1_features, in2_features, out_features
        within = init.fan_uniform(in1_features)
        self.weight = Parameter(out_features, in1_features, in2_features, init=within, dtype=dtype)
        self.bias = Parameter(out_features, init=within, dtype=dtype) if bias else None

    def forward(self, x1, x2):
        return contract.bilinear(x1, x2, self.weight, self.bias)

    def extra_repr(self):
        return f"{self.in1_features}, {self.in2_features}, {self.out_features}"


class EmbeddingBag(Module):
    """Sums, means or maxima of rows of weight [V, D] by bags of ids: see `tensorlib.embedding_bag`."""

    def __init__(self, num_embeddings, embedding_dim, mode="mean", padding_idx=None, dtype="f32"):
        self.mode, self.padding_idx = mode, padding_idx
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.weight = Parameter(num_embeddings, embedding_dim, init=self._begin, dtype=dtype)

    def _begin(self, weight, generator=None):
        init.normal_(weight, generator=generator)
        if self.padding_idx is not None:
            weight[self.padding_idx] = 0.0

    def forward(self, ids, offsets=None, per_sample_weights=None):
        options = {"mode": self.mode, "per_sample_weights": per_sample_weights, "padding_idx": self.padding_idx}
        return lookup.embedding_bag(ids, self.weight, offsets, **options)

    def extra_repr(self):
        return f"{self.num_embeddings}, {self.embedding_dim}, mode={self.mode!r}"


class LinearCrossEntropyLoss(Module):
    """`tensorlib.linear_cross_entropy` with a Linear of its own: input (N, D) or (..., D), target (N) or (...).

    The logits of all rows never exist at once. Names of weights are torch's: linear.weight, linear.bias.
    """

    def __init__(
        self, in_features, num_classes, *, bias=False, dtype="f32", reduction="mean", weight=None, ignore_index=-100,
        label_smoothing=0.0,
    ):  # fmt: skip
        self.linear = Linear(in_features, num_classes, bias, dtype)
        self.options = {"reduction": reduction, "weight": weight, "label_smoothing": label_smoothing}
        self.options["ignore_index"] = -100 if ignore_index is None else ignore_index

    def forward(self, input, target):
        rows, classes = input.reshape((-1, input.shape[-1])), target.reshape((-1,))
        found = loss.linear_cross_entropy(rows, self.linear.weight, classes, self.linear.bias, **self.options)
        return found.reshape(target.shape) if found.ndim else found

    def extra_repr(self):
        return f"reduction={self.options['reduction']!r}"
