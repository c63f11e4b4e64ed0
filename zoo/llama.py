"""Llama (arXiv:2302.13971; 2: arXiv:2307.09288; 3: arXiv:2407.21783), and what shares its shape: SmolLM2, TinyLlama.

A pre-norm decoder (section 2.2): RMSNorm before each sub-layer, SwiGLU instead of ReLU, rotary positions instead of
absolute ones; from Llama 2 on, groups of query heads share a key-value head (arXiv:2305.13245). Other models are what
they change of these classes: a class names the classes of its parts (`Model`, `Layer`, `Attention`, `MLP`).

Shapes: T tokens, D hidden, H query heads, K key-value heads, h head dim, F feed-forward, V vocabulary; Q = H h,
G = K h.
"""

from collections import namedtuple
from typing import NamedTuple

from tensorlib import nn


class LlamaConfig(NamedTuple):
    """Hugging Face's names. `rope_interleaved` is a property of the file: GGUF's rows are permuted, safetensors' not.
    `rope_scaling`: what `nn.rope_frequencies` takes. `max_position_embeddings`: so many positions are prepared.
    `windows`: of how many tokens the attention of a layer sees the last, 0 for all."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_factors: tuple | None = None
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    rope_interleaved: bool = False
    mlp_bias: bool = False
    hidden_act: str = "silu"
    rope_scaling: dict | None = None
    windows: tuple = ()
    rotary_part = None  # what part of each head turns where a config does not say so; None: all, whatever it says

    @classmethod
    def plus(cls, **defaults):
        """A class of these fields and of more, for the config of a model that begins with this one's."""
        fields, values = (*cls._fields, *defaults), (*cls._field_defaults.values(), *defaults.values())
        made = namedtuple(cls.__name__, fields, defaults=values)  # has to live while its dict is read
        return type(cls.__name__, (cls,), dict(vars(made)))

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        heads, hidden = c("num_attention_heads", int), c("hidden_size", int)
        return cls(
            *(c(name, int) for name in cls._fields[:5]),
            num_key_value_heads=c("num_key_value_heads", int, heads),
            head_dim=c("head_dim", int, hidden // heads),
            rms_norm_eps=c("rms_norm_eps", float, 1e-6),
            rope_theta=c.rope_theta(),
            max_position_embeddings=c("max_position_embeddings", int, 2048),
            tie_word_embeddings=c("tie_word_embeddings", bool, False),
            attention_bias=c("attention_bias", bool, False),
            mlp_bias=c("mlp_bias", bool, False),
            hidden_act=c.act("hidden_activation" if "hidden_activation" in c else "hidden_act", "silu"),
            rope_scaling=c.rope_scaling(cls.rotary_part),
        )


TINY = LlamaConfig(256, 64, 128, 2, 4, 2, 16, max_position_embeddings=64)


class LlamaAttention(nn.Module):
    """softmax(q k^T / sqrt(h)) v, causal, over all tokens in the cache; W_o is applied by the layer.

    `options`: what is not so: `nn.attention`'s scale, window, softcap. `out_bias`: whether W_o has one as q, k, v have.
    """

    out_bias = True

    def __init__(self, config, layer, **options):
        D, self._layer, self._head_dim = config.hidden_size, layer, config.head_dim
        bias, window = config.attention_bias, config.windows[layer] if config.windows else 0
        self._options = options | {"window": window} if window else options
        q, kv = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(D, n, bias) for n in (q, kv, kv))
        self.o_proj = nn.Linear(q, D, bias=bias and self.out_bias)

    def forward(self, x_TD, cache, rotary):
        q_TQ, k_TG, v_TG = self.prepared(*nn.linears(x_TD, self.q_proj, self.k_proj, self.v_proj))
        return cache.attend(self._layer, q_TQ, k_TG, v_TG, rotary, **self._options)

    def prepared(self, q_TQ, k_TG, v_TG):
        """What is done to them before they are turned: nothing."""
        return q_TQ, k_TG, v_TG

    def per_head(self, norm, x):
        """A norm over the channels of each head of x [..., H h]."""
        return norm(x.unflatten(-1, (-1, self._head_dim))).flatten(-2)


class LlamaMLP(nn.Module):
    """silu(W_gate x) * W_up x (arXiv:2002.05202), or another activation's; W_down is applied by the layer."""

    def __init__(self, config):
        D, F, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(*n, bias) for n in ((D, F), (D, F), (F, D)))
        self._act = None if config.hidden_act == "silu" else nn.activation(config.hidden_act)

    def forward(self, x_TD):
        if self._act is None:
            return nn.swiglu_linear(x_TD, self.gate_proj, self.up_proj)
        return self._act(self.gate_proj(x_TD)) * self.up_proj(x_TD)


class LlamaDecoderLayer(nn.Module):
    Attention, MLP = LlamaAttention, LlamaMLP

    def __init__(self, config, layer):
        self.input_layernorm = self.norm(config)
        self.self_attn = self.Attention(config, layer)
        self.post_attention_layernorm = self.norm(config)
        self.mlp = self.MLP(config)

    @staticmethod
    def norm(config):
        """A norm of the residual stream."""
        return nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x_TD, h_TD, cache, rotary, next_norm):
        """h is the norm of x, as of what is returned: sums and norms are taken together."""
        o_TQ = self.self_attn(h_TD, cache, rotary)
        x_TD, h_TD = nn.add_norm(x_TD, self.self_attn.o_proj, o_TQ, self.post_attention_layernorm)
        h_TF = self.mlp(h_TD)
        return nn.add_norm(x_TD, self.mlp.down_proj, h_TF, next_norm)


class LlamaModel(nn.Module):
    Layer = LlamaDecoderLayer

    def __init__(self, config):
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([self.Layer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = self.Layer.norm(config)

    def embed(self, ids_T):
        """What the layers begin with."""
        return self.embed_tokens(ids_T)

    def forward(self, ids_T, cache, rotary):
        layers = list(self.layers)
        norms = [*(layer.input_layernorm for layer in layers), self.norm]
        x_TD = self.embed(ids_T)
        h_TD = norms[0](x_TD)
        for layer, next_norm in zip(layers, norms[1:]):
            x_TD, h_TD = layer(x_TD, h_TD, cache, rotary, next_norm)
        return h_TD


class LlamaForCausalLM(nn.Module):
    """`forward(ids, cache)`: logits of what follows each of the T tokens `ids` (i64), which are added to the cache.
    `forward(ids, attention_mask=None)`, for training: ids [T] or [B, T] -> logits [..., T, V], with gradients. Where
    the mask (as ids) is 0 stands padding, at either side: positions begin behind it, no token sees it, and it gets 0.
    """

    Model, body = LlamaModel, "model"

    def __init__(self, config):
        self.config = config
        self.model = self.Model(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.rotary = self.new_rotary(config.rope_theta, config.rope_scaling)

    def new_rotary(self, theta, scaling=None):
        """Rotary positions of all that are prepared; these decide which of two sets of factors a model takes."""
        c, n = self.config, self.config.max_position_embeddings
        if scaling is not None:
            scaling = nn.rope_frequencies(scaling, c.head_dim, theta, scaling.get("max_position_embeddings"), n)
        return nn.RotaryEmbedding(c.head_dim, n, theta, c.rope_interleaved, c.rope_factors, scaling)

    def new_cache(self, max_len, dtype="f16", **options):
        """An empty cache for `max_len` tokens."""
        c = self.config
        return nn.KVCache(c.num_hidden_layers, c.num_key_value_heads, max_len, c.head_dim, dtype, **options)

    def logits(self, h_TD):
        """Scores [..., V] of what follows."""
        return self.model.embed_tokens.as_linear(h_TD) if self.config.tie_word_embeddings else self.lm_head(h_TD)

    def forward(self, ids_T, cache=None, last_only=True, attention_mask=None):
        """Logits [1, V] after the last token, or [T, V] after each. ContextError, before any work, for too many."""
        if attention_mask is not None:
            padding = nn.Padding(attention_mask, cache)
            return padding.back(self.forward(padding.behind(ids_T)))
        if cache is None:
            cache, last_only = nn.FullAttention(self.config.head_dim), False
        T = ids_T.shape[-1]
        cache.reserve(T)
        h_TD = self.model(ids_T, cache, self.rotary)
        cache.advance(T)
        return self.logits(cache.last(h_TD) if last_only else h_TD)
