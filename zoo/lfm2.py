"""LFM2 (Liquid AI, arXiv:2511.23404): Llama most of whose layers have a gated short convolution in place of attention,
y = C * conv(B * x) with B, C, x linear in the input (section 2.1); in the others q and k have norms per head.

Shapes: T tokens, D hidden; Q, G, F: as in llama.py.
"""

from tensorlib import nn
from zoo import llama


class Lfm2Config(llama.LlamaConfig.plus(conv_L_cache=3, conv_bias=False, attends=(), converted=False)):
    """`conv_L_cache`: tokens of a convolution. `attends`: whether a layer has attention. `converted`: weights of
    convolutions are [D, K], as llama.cpp has them.
    """

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        layers, F = c("num_hidden_layers", int), c("intermediate_size", int, 0) or c("block_ff_dim", int)
        if c("block_auto_adjust_ff_dim", bool, True):
            some = c("block_multiple_of", int, 256)
            F = -(-int(c("block_ffn_dim_multiplier", float, 1.0) * int(2 * F / 3)) // some) * some
        where = c("full_attn_idxs", list, list(range(layers)))
        kinds = c("layer_types", list, ["full_attention" if i in where else "conv" for i in range(layers)])
        return (
            super()
            .from_hf(c)
            ._replace(
                intermediate_size=F,
                rms_norm_eps=c("norm_eps", float, 1e-5),
                rope_theta=c.rope_theta(1e6),
                max_position_embeddings=c("max_position_embeddings", int, 128_000),
                tie_word_embeddings=c("tie_word_embeddings", bool, c("tie_embedding", bool, True)),
                conv_L_cache=c("conv_L_cache", int, 3),
                conv_bias=c("conv_bias", bool, False),
                attends=tuple(kind != "conv" for kind in kinds),
            )
        )

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        heads = get("attention.head_count_kv", list)
        return self._replace(
            conv_L_cache=get("shortconv.l_cache", int),
            conv_bias=f"blk.{heads.index(0)}.shortconv.in_proj.bias" in file.tensors if 0 in heads else False,
            attends=tuple(n > 0 for n in heads),
            converted=True,
        )


TINY = Lfm2Config(*llama.TINY)._replace(tie_word_embeddings=True, attends=(False, True))


class Lfm2ShortConv(nn.Module):
    def __init__(self, config, layer):
        D, K, bias = config.hidden_size, config.conv_L_cache, config.conv_bias
        self.in_proj, self.out_proj = nn.Linear(D, 3 * D, bias), nn.Linear(D, D, bias)
        self.conv = nn.ShortConv(D, K, bias, config.converted)
        self._layer, self.state_shapes = layer, ((K - 1, D),)

    def forward(self, x_TD, cache, rotary):
        B_TD, C_TD, x_TD = self.in_proj(x_TD).chunk(3, -1)
        y_TD, last = self.conv(B_TD * x_TD, cache.past(self._layer, 0))
        cache.keep(self._layer, 0, last)
        return self.out_proj(C_TD * y_TD)


class Lfm2Attention(llama.LlamaAttention):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.out_proj = vars(self).pop("o_proj")
        self.q_layernorm, self.k_layernorm = (nn.RMSNorm(config.head_dim, config.rms_norm_eps) for _ in range(2))

    def prepared(self, q_TQ, k_TG, v_TG):
        """Norms over the channels of a head."""
        return self.per_head(self.q_layernorm, q_TQ), self.per_head(self.k_layernorm, k_TG), v_TG

    def forward(self, x_TD, cache, rotary):
        return self.out_proj(super().forward(x_TD, cache, rotary))


class Lfm2MLP(nn.Module):
    def __init__(self, config):
        D, F = config.hidden_size, config.intermediate_size
        self.w1, self.w3, self.w2 = (nn.Linear(*n, bias=False) for n in ((D, F), (D, F), (F, D)))

    def forward(self, x_TD):
        return self.w2(nn.swiglu_linear(x_TD, self.w1, self.w3))


class Lfm2DecoderLayer(nn.Module):
    def __init__(self, config, layer):
        attends, kind = config.attends[layer], (Lfm2ShortConv, Lfm2Attention)
        self._name = "self_attn" if attends else "conv"
        setattr(self, self._name, kind[attends](config, layer))
        self.feed_forward = Lfm2MLP(config)
        self.operator_norm, self.ffn_norm = (nn.RMSNorm(config.hidden_size, config.rms_norm_eps) for _ in range(2))

    @property
    def operator(self):
        """The short convolution or the attention."""
        return getattr(self, self._name)

    def forward(self, x_TD, cache, rotary):
        x_TD = x_TD + self.operator(self.operator_norm(x_TD), cache, rotary)
        return x_TD + self.feed_forward(self.ffn_norm(x_TD))


class Lfm2Model(nn.Module):
    def __init__(self, config):
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Lfm2DecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.embedding_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, ids_T, cache, rotary):
        x_TD = self.embed_tokens(ids_T)
        for layer in self.layers:
            x_TD = layer(x_TD, cache, rotary)
        return self.embedding_norm(x_TD)


class Lfm2ForCausalLM(llama.LlamaForCausalLM):
    Model = Lfm2Model

    def new_cache(self, max_len, dtype="f16", device=None):
        """An empty cache for `max_len` tokens; states are f32 whatever `dtype` is."""
        c = self.config
        states = {i: layer.operator.state_shapes for i, layer in enumerate(self.model.layers) if not c.attends[i]}
        attention = [i for i in range(c.num_hidden_layers) if c.attends[i]]
        return nn.StateCache(states, max_len, attention, c.num_key_value_heads, c.head_dim, dtype, device)
