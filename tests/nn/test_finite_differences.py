"""Gradients of inputs and weights of layers against central differences, in float64."""

import numpy as np
import pytest

import tensorlib
from tensorlib import nn
from tensorlib.testing import gradcheck

X = (3, 4)
LAYERS = [  # how a layer is made, shapes of its inputs
    ("Linear", lambda: nn.Linear(4, 2), [X]),
    ("Bilinear", lambda: nn.Bilinear(4, 3, 2), [X, (3, 3)]),
    ("Conv2d", lambda: nn.Conv2d(2, 2, 2, padding=1), [(1, 2, 3, 3)]),
    ("ConvTranspose1d", lambda: nn.ConvTranspose1d(2, 2, 2, stride=2), [(1, 2, 3)]),
    ("BatchNorm1d", lambda: nn.BatchNorm1d(4), [X]),
    ("GroupNorm", lambda: nn.GroupNorm(2, 4), [X]),
    ("InstanceNorm1d", lambda: nn.InstanceNorm1d(2, affine=True), [(2, 2, 3)]),
    ("LayerNorm", lambda: nn.LayerNorm(4), [X]),
    ("RMSNorm", lambda: nn.RMSNorm(4), [X]),
    ("PReLU", lambda: nn.PReLU(), [X]),
    ("LSTM", lambda: nn.LSTM(4, 2, bidirectional=True), [(2, 3, 4)]),
    ("GRU", lambda: nn.GRU(4, 2), [X]),
    ("RNN", lambda: nn.RNN(4, 2), [X]),
    ("MultiheadAttention", lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True), [X, (2, 4), (2, 4)]),
    ("TransformerDecoderLayer", lambda: nn.TransformerDecoderLayer(4, 2, 3, dropout=0.0, activation="gelu"), [X, X]),
    ("MoE", lambda: nn.MoE(4, 3, 3, 2, shared_size=2, shared_gate=True), [X]),
    ("LoRALinear", lambda: nn.lora.LoRALinear(nn.Linear(4, 2).double(), 2), [X]),
    ("weight_norm", lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)), [X]),
    ("spectral_norm", lambda: nn.utils.spectral_norm(nn.Linear(4, 2)).eval(), [X]),
]


@pytest.mark.parametrize(("make", "shapes"), [row[1:] for row in LAYERS], ids=[row[0] for row in LAYERS])
def test_gradients(make, shapes):
    tensorlib.manual_seed(0)
    layer = make().double()
    rng = np.random.default_rng(0)
    places = [(module, name) for _, module, name, declared in layer.named_weights() if declared.trainable]
    weights = [rng.uniform(-1, 1, getattr(module, name).shape) for module, name in places]
    inputs = [rng.uniform(-2, 2, shape) for shape in shapes]

    def function(*arrays):
        for (module, name), value in zip(places, arrays[len(shapes) :]):
            vars(module)[name] = value
        out = layer(*arrays[: len(shapes)])
        return out[0] if isinstance(out, tuple) else out

    assert gradcheck(function, inputs + weights, most=6) > 6
