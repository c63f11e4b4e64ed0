"""Layers of "Attention is all you need" (arXiv:1706.03762), as torch.nn has them: encoder, decoder, both together.

Masks and options are torch's; `activation` is "relu", "gelu" or a function. Padding gets values of its own in `eval`,
too, where torch's fast path gives zeros.

>>> import tensorlib
>>> from tensorlib import nn
>>> model = nn.Transformer(8, 2, num_encoder_layers=1, num_decoder_layers=1, dim_feedforward=16)
>>> model(tensorlib.zeros(5, 1, 8), tensorlib.zeros(3, 1, 8)).shape
(3, 1, 8)
"""

import copy

from tensorlib.errors import ShapeError
from tensorlib.nn import init
from tensorlib.nn.containers import ModuleList
from tensorlib.nn.dropout import Dropout
from tensorlib.nn.layers import Linear
from tensorlib.nn.module import Module, Parameter
from tensorlib.nn.multihead import MultiheadAttention
from tensorlib.nn.norm import LayerNorm
from tensorlib.ops import elementwise
from tensorlib.tensor import full

ACTIVATIONS = {"relu": elementwise.relu, "gelu": elementwise.gelu}


def _activation(given):
    if callable(given):
        return given
    if given not in ACTIVATIONS:
        raise ValueError(f"Transformer: got activation {given!r}; expected {' or '.join(ACTIVATIONS)}, or a function")
    return ACTIVATIONS[given]


class _Layer(Module):
    """What both layers have: a block is added to its input, which is normalised before (norm_first) or after it."""

    def __init__(
        self, d_model, nhead, dim_feedforward=2048, dropout=0.1, activation="relu", layer_norm_eps=1e-5,
        batch_first=False, norm_first=False, bias=True, dtype="f32",
    ):  # fmt: skip
        for name in self.attentions:
            setattr(self, name, MultiheadAttention(d_model, nhead, dropout, bias, batch_first=batch_first, dtype=dtype))
        self.linear1 = Linear(d_model, dim_feedforward, bias, dtype)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias, dtype)
        self.norm_first, self.activation = norm_first, _activation(activation)
        blocks = range(1, len(self.attentions) + 2)
        for i in blocks:
            setattr(self, f"norm{i}", LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype))
        for i in blocks:
            setattr(self, f"dropout{i}", Dropout(dropout))

    def _block(self, i, x, function):
        norm, drop = getattr(self, f"norm{i}"), getattr(self, f"dropout{i}")
        return x + drop(function(norm(x))) if self.norm_first else norm(x + drop(function(x)))

    def _feed(self, x):
        return self.linear2(self.dropout(self.activation(self.linear1(x))))


def _attended(layer, x, keys, mask, padding, causal):
    return layer(x, keys, keys, padding, need_weights=False, attn_mask=mask, is_causal=causal)[0]


class TransformerEncoderLayer(_Layer):
    """Self-attention, then linear, activation, linear: src like `MultiheadAttention`'s query."""

    attentions = ("self_attn",)

    def forward(self, src, src_mask=None, src_key_padding_mask=None, is_causal=False):
        masks = (src_mask, src_key_padding_mask, is_causal)
        x = self._block(1, src, lambda x: _attended(self.self_attn, x, x, *masks))
        return self._block(2, x, self._feed)


class TransformerDecoderLayer(_Layer):
    """Self-attention, attention to `memory`, then linear, activation, linear."""

    attentions = ("self_attn", "multihead_attn")

    def forward(
        self, tgt, memory, tgt_mask=None, memory_mask=None, tgt_key_padding_mask=None, memory_key_padding_mask=None,
        tgt_is_causal=False, memory_is_causal=False,
    ):  # fmt: skip
        own = (tgt_mask, tgt_key_padding_mask, tgt_is_causal)
        other = (memory_mask, memory_key_padding_mask, memory_is_causal)
        x = self._block(1, tgt, lambda x: _attended(self.self_attn, x, x, *own))
        x = self._block(2, x, lambda x: _attended(self.multihead_attn, x, memory, *other))
        return self._block(3, x, self._feed)


class _Stack(Module):
    def _copies(self, layer, num_layers, norm):
        self.layers = ModuleList(copy.deepcopy(layer) for _ in range(num_layers))
        self.num_layers, self.norm = num_layers, norm

    def _through(self, x, *args):
        for layer in self.layers:
            x = layer(x, *args)
        return x if self.norm is None else self.norm(x)


class TransformerEncoder(_Stack):
    """num_layers copies of a layer, which begin alike, and a norm. torch's hints of speed are taken and not heeded."""

    def __init__(self, encoder_layer, num_layers, norm=None, enable_nested_tensor=True, mask_check=True):
        self._copies(encoder_layer, num_layers, norm)

    def forward(self, src, mask=None, src_key_padding_mask=None, is_causal=None):
        return self._through(src, mask, src_key_padding_mask, bool(is_causal))


class TransformerDecoder(_Stack):
    """num_layers copies of a layer, which begin alike, and a norm."""

    def __init__(self, decoder_layer, num_layers, norm=None):
        self._copies(decoder_layer, num_layers, norm)

    def forward(
        self, tgt, memory, tgt_mask=None, memory_mask=None, tgt_key_padding_mask=None, memory_key_padding_mask=None,
        tgt_is_causal=None, memory_is_causal=False,
    ):  # fmt: skip
        masks = (tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)
        return self._through(tgt, memory, *masks, bool(tgt_is_causal), memory_is_causal)


class Transformer(Module):
    """Encoder and decoder: src (S, N, E) and tgt (T, N, E), or with batch_first (N, S, E), (N, T, E) -> like tgt.

    Matrices begin by xavier_uniform_. ShapeError.
    """

    def __init__(
        self, d_model=512, nhead=8, num_encoder_layers=6, num_decoder_layers=6, dim_feedforward=2048, dropout=0.1,
        activation="relu", custom_encoder=None, custom_decoder=None, layer_norm_eps=1e-5, batch_first=False,
        norm_first=False, bias=True, dtype="f32",
    ):  # fmt: skip
        options = (d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first)
        norms = [LayerNorm(d_model, layer_norm_eps, bias=bias, dtype=dtype) for _ in range(2)]
        if custom_encoder is None:
            layer = TransformerEncoderLayer(*options, bias=bias, dtype=dtype)
            custom_encoder = TransformerEncoder(layer, num_encoder_layers, norms[0])
        if custom_decoder is None:
            layer = TransformerDecoderLayer(*options, bias=bias, dtype=dtype)
            custom_decoder = TransformerDecoder(layer, num_decoder_layers, norms[1])
        self.encoder, self.decoder = custom_encoder, custom_decoder
        self.d_model, self.nhead, self.batch_first = d_model, nhead, batch_first
        for _, module, name, declared in list(self.named_weights()):
            if declared.trainable and len(declared.shape) > 1:
                setattr(module, name, Parameter(*declared.shape, init=init.xavier_uniform_, dtype=declared.dtype))

    def forward(
        self, src, tgt, src_mask=None, tgt_mask=None, memory_mask=None, src_key_padding_mask=None,
        tgt_key_padding_mask=None, memory_key_padding_mask=None, src_is_causal=None, tgt_is_causal=None,
        memory_is_causal=False,
    ):  # fmt: skip
        batch = 0 if self.batch_first else 1
        if (
            src.ndim != tgt.ndim
            or src.shape[-1] != self.d_model
            or (src.ndim == 3 and len({src.shape[batch], tgt.shape[batch]}) > 1)
        ):
            got = f"src {src.shape}, tgt {tgt.shape}"
            raise ShapeError("Transformer", got, f"one batch, width {self.d_model}", "see batch_first")
        memory = self.encoder(src, src_mask, src_key_padding_mask, src_is_causal)
        masks = (tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)
        return self.decoder(tgt, memory, *masks, tgt_is_causal, memory_is_causal)

    @staticmethod
    def generate_square_subsequent_mask(sz, device=None, dtype="f32"):
        """(sz, sz) to add to scores: -inf above the diagonal, else 0.

        >>> Transformer.generate_square_subsequent_mask(2).tolist()
        [[0.0, -inf], [0.0, 0.0]]
        """
        return full((sz, sz), float("-inf"), dtype=dtype, device=device or "cpu").triu(1)
