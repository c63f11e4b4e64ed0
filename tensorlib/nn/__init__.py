"""Layers, attention with caches, weights by name: what models are written with.

What generation needs is imported at once, every other layer when it is first used.

>>> from tensorlib import nn
>>> nn.Linear(576, 192)
Linear(in_features=576, out_features=192, bias=True)
"""

import importlib

from tensorlib.nn import init
from tensorlib.nn.attention import FullAttention, KVCache, RotaryEmbedding, attention
from tensorlib.nn.containers import ModuleDict, ModuleList, Sequential
from tensorlib.nn.fused import act_linear, add_linear, add_norm, linears, swiglu_linear
from tensorlib.nn.layers import Embedding, Flatten, Identity, Linear, Unflatten, prepack, swiglu
from tensorlib.nn.module import Buffer, Module, Parameter
from tensorlib.nn.norm import LayerNorm, RMSNorm
from tensorlib.nn.sampling import Sampler
from tensorlib.nn.state_dict import load_state_dict
from tensorlib.nn.var_builder import VarBuilder

__all__ = [
    "Buffer", "Embedding", "Flatten", "FullAttention", "Identity", "KVCache", "LayerNorm", "Linear", "Module",
    "ModuleDict", "ModuleList", "Parameter", "RMSNorm", "RotaryEmbedding", "Sampler", "Sequential", "Unflatten",
    "VarBuilder", "act_linear", "add_linear", "add_norm", "attention", "init", "linears", "load_state_dict",
    "prepack", "swiglu", "swiglu_linear",
]  # fmt: skip

# file -> the layers in it, found when first used
LATER = {
    "conv": "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d "
    + " ".join(f"{kind}Pad{n}d" for kind in "Zero Constant Reflection Replication Circular".split() for n in (1, 2, 3)),
    "caches": "AppendCache ConcatCache RotatingCache ScatteredCache",
    "alibi": "Alibi alibi_slopes",
    "latent_cache": "BatchLatentCache LatentCache",
    "paged_cache": "PagedCache",
    "state_cache": "BatchStateCache StateCache",
    "ssm": "GatedRMSNorm Mamba2Mixer ShortConv causal_conv linear_scan selective_scan ssd token_shift wkv wkv7",
    "batch_cache": "BatchCache",
    "activations": "activation",
    "sequences": "PackedAttention Padding Sequences",
    "dropout": "AlphaDropout Dropout Dropout1d Dropout2d Dropout3d",
    "more_layers": "Bilinear EmbeddingBag LinearCrossEntropyLoss PReLU",
    "moe": "MoE StackedMoE",
    "multihead": "MultiheadAttention",
    "transformer": "Transformer TransformerDecoder TransformerDecoderLayer TransformerEncoder TransformerEncoderLayer",
    "rope": "rope_frequencies",
    "rnn": "GRU GRUCell LSTM LSTMCell RNN RNNCell",
    "channel_norm": "BatchNorm1d BatchNorm2d BatchNorm3d GroupNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d",
}
_FILES = {name: file for file, names in LATER.items() for name in names.split()}


def __getattr__(name):
    if name in _FILES:
        found = getattr(importlib.import_module(f"tensorlib.nn.{_FILES[name]}"), name)
    elif name in ("functional", "lora", "utils"):
        return importlib.import_module(f"tensorlib.nn.{name}")
    elif name[:1].isupper():
        found = getattr(importlib.import_module("tensorlib.nn.functions"), name, None)
    else:
        found = None
    if found is None:
        raise AttributeError(f"module 'tensorlib.nn' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__():
    functions = importlib.import_module("tensorlib.nn.functions")
    return sorted({*globals(), *_FILES, *functions.ROWS})
