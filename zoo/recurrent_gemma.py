"""RecurrentGemma (arXiv:2404.07839), which is Griffin (arXiv:2402.19427): two layers with a real-gated linear recurrent
unit for one with attention to a window of tokens, in a frame as Gemma's.

Section 2.4: h_t = a_t h_(t-1) + sqrt(1 - a_t^2) (i_t x_t), a_t = exp(-8 softplus(c) r_t), with the gates r and i
sigmoids of products within blocks of x. The first token has no square root: nothing is forgotten for it.

Shapes: T tokens, D hidden, R recurrent width, H heads, which are R's blocks, too; Q, G: as in llama.py.
"""

from math import frexp, ldexp

import tensorlib
from tensorlib import nn
from zoo import llama


class RecurrentGemmaConfig(
    llama.LlamaConfig.plus(lru_width=64, conv1d_width=4, block_types=("recurrent",), logits_soft_cap=30.0)
):
    """`block_types`: "recurrent" or "attention", of every layer."""

    rotary_part = 0.5

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        layers, hidden = c("num_hidden_layers", int), c("hidden_size", int)
        kinds = c("block_types", list, ["recurrent", "recurrent", "attention"])
        return (
            super()
            .from_hf(c)
            ._replace(
                intermediate_size=c("intermediate_size", int) // 2,
                tie_word_embeddings=c("tie_word_embeddings", bool, True),
                hidden_act=c.act("hidden_activation", "gelu_pytorch_tanh"),
                max_position_embeddings=c("max_position_embeddings", int, 8192),
                windows=(c("attention_window_size", int, 2048),) * layers,
                lru_width=c("lru_width", int, hidden),
                conv1d_width=c("conv1d_width", int, 4),
                block_types=tuple(kinds[i % len(kinds)] for i in range(layers)),
                logits_soft_cap=c("logits_soft_cap", float, 30.0),
            )
        )


TINY = RecurrentGemmaConfig(*llama.TINY)._replace(
    hidden_act="gelu_pytorch_tanh", tie_word_embeddings=True, windows=(8, 8), block_types=("recurrent", "attention")
)


class RecurrentGemmaRMSNorm(nn.RMSNorm):
    """Weights are stored less 1."""

    def forward(self, x):
        return tensorlib.rms_norm(x, self.weight, self.eps, offset=1.0)


class RgLru(nn.Module):
    """The real-gated linear recurrent unit."""

    def __init__(self, config):
        H, R = config.num_attention_heads, config.lru_width
        block, self._heads = R // H, H
        self.recurrent_param = nn.Parameter(R)
        for gate in ("input_gate", "recurrent_gate"):
            setattr(self, f"{gate}_weight", nn.Parameter(H, block, block, init=nn.init.fan_uniform(block)))
            setattr(self, f"{gate}_bias", nn.Parameter(H, block))

    def gate(self, x_TR, weight, bias):
        """A sigmoid of x times a matrix per block."""
        x_HT = x_TR.unflatten(-1, (self._heads, -1)).transpose(-3, -2)
        return (tensorlib.matmul(x_HT, weight) + bias.unsqueeze(1)).transpose(-3, -2).flatten(-2).sigmoid()

    def forward(self, x_TR, first_T, past):
        """h at every token."""
        i_TR = self.gate(x_TR, self.input_gate_weight, self.input_gate_bias)
        r_TR = self.gate(x_TR, self.recurrent_gate_weight, self.recurrent_gate_bias)
        log_a_TR = -8.0 * tensorlib.softplus(self.recurrent_param) * r_TR
        kept = (-tensorlib.expm1(2.0 * log_a_TR)).clamp(min=1e-12).sqrt()  # at 0 it would have no gradient
        kept = tensorlib.where(first_T.unsqueeze(-1), 1.0, kept)
        return nn.linear_scan(log_a_TR.exp(), i_TR * x_TR * kept, -2, past)


class RecurrentBlock(nn.Module):
    """Section 2.3: a branch with convolution and recurrence times one with GELU."""

    def __init__(self, config, layer):
        D, R, K = config.hidden_size, config.lru_width, config.conv1d_width
        self.linear_y, self.linear_x, self.linear_out = nn.Linear(D, R), nn.Linear(D, R), nn.Linear(R, D)
        self.conv_1d, self.rg_lru = nn.ShortConv(R, K), RgLru(config)
        self._layer, self._act, self.state_shapes = layer, nn.activation(config.hidden_act), ((K - 1, R), (R,))

    def forward(self, x_TD, cache, rotary, positions_T):
        x_TR, last = self.conv_1d(self.linear_x(x_TD), cache.past(self._layer, 0))
        cache.keep(self._layer, 0, last)
        h_TR = self.rg_lru(x_TR, positions_T == 0, cache.past(self._layer, 1))
        cache.keep(self._layer, 1, h_TR.select(-2, -1))
        return self.linear_out(h_TR * self._act(self.linear_y(x_TD)))


class LocalAttention(llama.LlamaAttention):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size)

    def forward(self, x_TD, cache, rotary, positions_T):
        return self.o_proj(super().forward(x_TD, cache, rotary))


class RecurrentGemmaLayer(nn.Module):
    Temporal = {"recurrent": RecurrentBlock, "attention": LocalAttention}

    def __init__(self, config, layer):
        D, eps = config.hidden_size, config.rms_norm_eps
        self.temporal_pre_norm, self.channel_pre_norm = (RecurrentGemmaRMSNorm(D, eps) for _ in range(2))
        self.temporal_block = self.Temporal[config.block_types[layer]](config, layer)
        self.mlp_block = llama.LlamaMLP(config._replace(mlp_bias=True))

    def forward(self, x_TD, *where):
        x_TD = x_TD + self.temporal_block(self.temporal_pre_norm(x_TD), *where)
        return x_TD + self.mlp_block.down_proj(self.mlp_block(self.channel_pre_norm(x_TD)))


class RecurrentGemmaModel(nn.Module):
    def __init__(self, config):
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([RecurrentGemmaLayer(config, i) for i in range(config.num_hidden_layers)])
        self.final_norm = RecurrentGemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        part, exponent = frexp(config.hidden_size**0.5)
        self._times = ldexp(round(ldexp(part, 8)), exponent - 8)  # in 8 bits, as bf16 has them: so it was trained

    def forward(self, ids_T, cache, rotary):
        x_TD, positions_T = self.embed_tokens(ids_T) * self._times, cache.positions(ids_T)
        for layer in self.layers:
            x_TD = layer(x_TD, cache, rotary, positions_T)
        return self.final_norm(x_TD)


class RecurrentGemmaForCausalLM(llama.LlamaForCausalLM):
    Model = RecurrentGemmaModel

    def new_cache(self, max_len, dtype="f16", device=None):
        """An empty cache for `max_len` tokens; states are f32 whatever `dtype` is."""
        c, blocks = self.config, [layer.temporal_block for layer in self.model.layers]
        states = {i: block.state_shapes for i, block in enumerate(blocks) if isinstance(block, RecurrentBlock)}
        attention = [i for i in range(len(blocks)) if i not in states]
        return nn.StateCache(states, max_len, attention, c.num_key_value_heads, c.head_dim, dtype, device)

    def logits(self, h_TD):
        """Scores [..., V] of what follows, less than the cap."""
        cap = self.config.logits_soft_cap
        return (super().logits(h_TD) / cap).tanh() * cap
