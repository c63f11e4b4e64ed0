"""Layers, attention with caches, weights by name: what models are written with.

>>> from tensorlib import nn
>>> nn.Linear(576, 192)
Linear(in_features=576, out_features=192, bias=False)
"""

from tensorlib.nn.attention import KVCache, RotaryEmbedding, attention
from tensorlib.nn.fused import add_norm, linears, swiglu_linear
from tensorlib.nn.layers import Embedding, LayerNorm, Linear, RMSNorm, swiglu
from tensorlib.nn.module import Module, ModuleList, Parameter
from tensorlib.nn.sampling import Sampler
from tensorlib.nn.state_dict import load_state_dict
from tensorlib.nn.var_builder import VarBuilder

__all__ = [
    "Embedding",
    "KVCache",
    "LayerNorm",
    "Linear",
    "Module",
    "ModuleList",
    "Parameter",
    "RMSNorm",
    "RotaryEmbedding",
    "Sampler",
    "VarBuilder",
    "add_norm",
    "attention",
    "linears",
    "load_state_dict",
    "swiglu",
    "swiglu_linear",
]
