"""Falcon (arXiv:2311.16867): attention with few key-value heads and a plain MLP side by side (section 3), rotary
positions. 7B: one key-value head, one norm for both; 40B and 180B: groups of heads, a norm for each.

q, k, v are one product: for every key-value head its query heads, then itself; in GGUF files all query heads first. The
models of the web's text alone (falcon-rw) have ALiBi (arXiv:2108.12409) in place of rotary positions.
"""

from tensorlib import nn
from zoo import llama


class FalconConfig(llama.LlamaConfig.plus(parallel_attn=True, norms=1, grouped=True, alibi=False)):
    """`norms`: of sub-layers that stand side by side, 1 for both or 2. `grouped`: rows of q, k and v go by groups."""

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        hidden, heads, new = (
            c("hidden_size", int),
            c("num_attention_heads", int),
            c("new_decoder_architecture", bool, False),
        )
        groups = c("num_kv_heads", int, heads) if new or not c("multi_query", bool, True) else 1
        return cls(
            vocab_size=c("vocab_size", int),
            hidden_size=hidden,
            intermediate_size=c("ffn_hidden_size", int, 4 * hidden),
            num_hidden_layers=c("num_hidden_layers", int),
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=hidden // heads,
            rms_norm_eps=c("layer_norm_epsilon", float, 1e-5),
            rope_theta=c.rope_theta(),
            max_position_embeddings=c("max_position_embeddings", int, 2048),
            tie_word_embeddings=c("tie_word_embeddings", bool, True),
            attention_bias=c("bias", bool, False),
            mlp_bias=c("bias", bool, False),
            hidden_act=c.act("activation", "gelu"),
            rope_scaling=c.rope_scaling(),
            parallel_attn=new or c("parallel_attn", bool, True),
            norms=c("num_ln_in_parallel_attn", int, 2) if new else 1,
            alibi=c("alibi", bool, False),
        )

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        norms = 2 if "blk.0.attn_norm_2.weight" in file.tensors else 1
        return self._replace(hidden_act="gelu", norms=norms, grouped=False)


TINY = FalconConfig(*llama.TINY, norms=2)._replace(hidden_act="gelu", tie_word_embeddings=True)


class FalconAttention(nn.Module):
    def __init__(self, config, layer):
        H, K, h, self._layer = config.num_attention_heads, config.num_key_value_heads, config.head_dim, layer
        G = K if config.grouped else 1
        self._shape, self._sizes = (G, (H + 2 * K) // G, h), (H // G, K // G, K // G)
        self.query_key_value = nn.Linear(config.hidden_size, (H + 2 * K) * h, bias=config.attention_bias)
        self.dense = nn.Linear(H * h, config.hidden_size, bias=config.attention_bias)
        self.alibi = nn.Alibi(H, h, scaled=True) if config.alibi else None

    def forward(self, x_TD, cache, where):
        """`where`: rotary positions; with ALiBi the positions of tokens."""
        qkv = self.query_key_value(x_TD).unflatten(-1, self._shape).split(self._sizes, -2)
        qkv = [x.flatten(-3) for x in qkv]
        if self.alibi is None:
            return self.dense(cache.attend(self._layer, *qkv, where))
        o_TQ = cache.attend(self._layer, *self.alibi(*qkv, where), None, scale=self.alibi.scale)
        return self.dense(self.alibi.values(o_TQ))


class FalconMLP(nn.Module):
    def __init__(self, config):
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.dense_4h_to_h = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self._act = nn.activation(config.hidden_act)

    def forward(self, x_TD):
        return self.dense_4h_to_h(self._act(self.dense_h_to_4h(x_TD)))


class FalconDecoderLayer(nn.Module):
    def __init__(self, config, layer):
        self.self_attention, self.mlp = FalconAttention(config, layer), FalconMLP(config)
        self._parallel, self._names = config.parallel_attn, ["input_layernorm", "post_attention_layernorm"]
        if config.parallel_attn:
            self._names = ["ln_attn", "ln_mlp"] if config.norms == 2 else ["input_layernorm"]
        for name in self._names:
            setattr(self, name, nn.LayerNorm(config.hidden_size, config.rms_norm_eps))

    def forward(self, x_TD, cache, where):
        before, behind = (getattr(self, self._names[i]) for i in (0, -1))
        h_TD = before(x_TD)
        o_TD = x_TD + self.self_attention(h_TD, cache, where)
        if self._parallel:
            return o_TD + self.mlp(h_TD if before is behind else behind(x_TD))
        return o_TD + self.mlp(behind(o_TD))


class FalconModel(nn.Module):
    embed_tokens = property(lambda self: self.word_embeddings)

    def __init__(self, config):
        self._alibi = config.alibi
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList([FalconDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.ln_f = nn.LayerNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, ids_T, cache, rotary):
        x_TD, where = self.word_embeddings(ids_T), cache.positions(ids_T) if self._alibi else rotary
        for layer in self.h:
            x_TD = layer(x_TD, cache, where)
        return self.ln_f(x_TD)


class FalconForCausalLM(llama.LlamaForCausalLM):
    Model, model = FalconModel, property(lambda self: self.transformer)

    def __init__(self, config):
        super().__init__(config)
        self.transformer = vars(self).pop("model")
        if config.alibi:
            self.rotary, self.config = None, config._replace(head_dim=self.transformer.h[0].self_attention.alibi.wide)
