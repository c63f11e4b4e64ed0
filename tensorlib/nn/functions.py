"""Layers that are functions with their options kept: activations, losses, pools, dropout, what moves pixels.

A class is made of its row when it is first used: `nn.ELU(alpha=0.5)(x)` is `tensorlib.elu(x, alpha=0.5)`. Arguments and
defaults are the function's, and so are errors. Activations and dropout take PyTorch's `inplace` and do not heed it.

>>> import tensorlib
>>> from tensorlib import nn
>>> nn.ELU(0.5), nn.MSELoss()(tensorlib.ones(2), tensorlib.zeros(2))
(ELU(alpha=0.5), tensor(1.))
>>> nn.MaxPool2d(2)
MaxPool2d(kernel_size=2)
"""

import inspect

from tensorlib.nn.module import Module
from tensorlib.ops.search import find

ACTIVATIONS = """
ReLU relu | ReLU6 relu6 | LeakyReLU leaky_relu | ELU elu | SELU selu | CELU celu | GELU gelu | SiLU silu | Mish mish
Sigmoid sigmoid | LogSigmoid logsigmoid | Hardsigmoid hardsigmoid | Hardswish hardswish | Hardtanh hardtanh
Tanh tanh | Tanhshrink tanhshrink | Softplus softplus | Softsign softsign | Softshrink softshrink
Hardshrink hardshrink | Threshold threshold | GLU glu | Softmax softmax | LogSoftmax log_softmax | Softmin softmin
"""
POOLS = """
MaxPool1d max_pool1d | MaxPool2d max_pool2d | MaxPool3d max_pool3d | AvgPool1d avg_pool1d | AvgPool2d avg_pool2d
AvgPool3d avg_pool3d | AdaptiveAvgPool1d adaptive_avg_pool1d | AdaptiveAvgPool2d adaptive_avg_pool2d
AdaptiveAvgPool3d adaptive_avg_pool3d | AdaptiveMaxPool1d adaptive_max_pool1d | AdaptiveMaxPool2d adaptive_max_pool2d
AdaptiveMaxPool3d adaptive_max_pool3d
"""
PIXELS = """
Upsample interpolate | PixelShuffle pixel_shuffle | PixelUnshuffle pixel_unshuffle | ChannelShuffle channel_shuffle
Fold fold | Unfold unfold | LocalResponseNorm local_response_norm
"""
OF_TWO = """
CosineSimilarity cosine_similarity | PairwiseDistance pairwise_distance | MSELoss mse_loss | L1Loss l1_loss
SmoothL1Loss smooth_l1_loss | HuberLoss huber_loss | CrossEntropyLoss cross_entropy | NLLLoss nll_loss
KLDivLoss kl_div | BCELoss binary_cross_entropy | BCEWithLogitsLoss binary_cross_entropy_with_logits
PoissonNLLLoss poisson_nll_loss | InfoNCELoss info_nce
HingeEmbeddingLoss hinge_embedding_loss
"""
OF_THREE = """
GaussianNLLLoss gaussian_nll_loss | MarginRankingLoss margin_ranking_loss | CosineEmbeddingLoss cosine_embedding_loss
TripletMarginLoss triplet_margin_loss
"""
ROWS = {}  # class -> (function, number of inputs, whether `inplace` is taken)
for _inputs, _text, _inplace in (
    (1, ACTIVATIONS, True),
    (1, POOLS + PIXELS, False),
    (2, OF_TWO, False),
    (3, OF_THREE, False),
):
    for _row in filter(None, _text.replace("\n", "|").split("|")):
        if _row.strip():
            _name, _function = _row.split()
            ROWS[_name] = (_function, _inputs, _inplace)
ROWS["CTCLoss"] = ("ctc_loss", 4, False)


class FunctionLayer(Module):
    """Base of them: `function`, `inputs` (how many tensors it takes), `options` (names and defaults of the rest)."""

    function, inputs, options, takes_inplace = None, 1, {}, False

    def __init__(self, *args, **kwargs):
        name = type(self).__name__
        if self.takes_inplace:
            kwargs.pop("inplace", None)
        if len(args) > len(self.options) or not kwargs.keys() <= self.options.keys():
            expected = ", ".join(self.options) or "nothing"
            raise TypeError(f"{name}: got {(*args, *kwargs)}; expected {expected}")
        self._given = dict(zip(self.options, args)) | kwargs
        self.__dict__.update(self.options | self._given)
        missing = [option for option in self.options if vars(self)[option] is inspect.Parameter.empty]
        if missing:
            raise TypeError(f"{name}: got no {', '.join(missing)}; expected it as an argument")

    def forward(self, *inputs):
        return type(self).function(*inputs, **{option: vars(self)[option] for option in self.options})

    def extra_repr(self):
        return ", ".join(f"{name}={value!r}" for name, value in self._given.items())


def layer(name):
    """The class of a row; KeyError for none."""
    function, inputs, inplace = ROWS[name]
    function = find(function)
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "out"]
    options = {p.name: p.default for p in parameters[inputs:]}
    doc = f"`tensorlib.{function.__name__}` with its options kept. {inspect.getdoc(function) or ''}".partition(">>>")[0]
    fields = {"function": staticmethod(function), "inputs": inputs, "options": options, "takes_inplace": inplace}
    return type(name, (FunctionLayer,), {"__doc__": doc, "__module__": __name__, **fields})


def __getattr__(name):
    """Classes, made at first use, so that copies and pickles find them here."""
    if name not in ROWS:
        raise AttributeError(f"module 'tensorlib.nn.functions' has no attribute {name!r}")
    made = globals()[name] = layer(name)
    return made
