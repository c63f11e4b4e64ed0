"""GPT-NeoX-20B (arXiv:2204.06745) and Pythia (arXiv:2304.01373): attention and a plain MLP side by side, each with a
LayerNorm of its own (section 2.1 of the first); a quarter of each head turns. q, k, v are one product, head by head.
"""

from tensorlib import nn
from zoo import llama


class GptNeoxConfig(llama.LlamaConfig.plus(parallel=True, together=True)):
    """`together`: q, k, v of a head stand together; else all heads' q, then k, then v, as in GGUF."""

    rotary_part = 0.25

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        made, part = super().from_hf(c), c("rotary_pct", float, cls.rotary_part)
        return made._replace(
            num_key_value_heads=made.num_attention_heads,
            rms_norm_eps=c("layer_norm_eps", float, 1e-5),
            rope_theta=c.rope_theta(c("rotary_emb_base", float, 10000.0)),
            rope_scaling=c.rope_scaling(part),
            attention_bias=c("attention_bias", bool, True),
            hidden_act=c.act("hidden_act", "gelu"),
            parallel=c("use_parallel_residual", bool, True),
        )

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        bias = "blk.0.attn_qkv.bias" in file.tensors
        parallel = get("use_parallel_residual", bool, True)
        return self._replace(attention_bias=bias, hidden_act="gelu", parallel=parallel, together=False)


TINY = GptNeoxConfig(*llama.TINY)._replace(
    num_key_value_heads=4, attention_bias=True, hidden_act="gelu", rope_scaling={"partial_rotary_factor": 0.25}
)


class GptNeoxAttention(nn.Module):
    def __init__(self, config, layer):
        D, self._layer, self._heads, self._together = (
            config.hidden_size,
            layer,
            config.num_attention_heads,
            config.together,
        )
        self.query_key_value = nn.Linear(D, 3 * D, config.attention_bias)
        self.dense = nn.Linear(D, D, config.attention_bias)

    def forward(self, x_TD, cache, rotary):
        qkv = self.query_key_value(x_TD)
        if self._together:
            q, k, v = (x.flatten(-2) for x in qkv.unflatten(-1, (self._heads, -1)).chunk(3, -1))
        else:
            q, k, v = qkv.chunk(3, -1)
        return self.dense(cache.attend(self._layer, q, k, v, rotary))


class GptNeoxMLP(nn.Module):
    def __init__(self, config):
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.intermediate_size)
        self.dense_4h_to_h = nn.Linear(config.intermediate_size, config.hidden_size)
        self._act = nn.activation(config.hidden_act)

    def forward(self, x_TD):
        return self.dense_4h_to_h(self._act(self.dense_h_to_4h(x_TD)))


class GptNeoxLayer(nn.Module):
    def __init__(self, config, layer):
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, config.rms_norm_eps)
        self.attention, self.mlp, self._parallel = GptNeoxAttention(config, layer), GptNeoxMLP(config), config.parallel

    def forward(self, x_TD, cache, rotary):
        o_TD = x_TD + self.attention(self.input_layernorm(x_TD), cache, rotary)
        return o_TD + self.mlp(self.post_attention_layernorm(x_TD if self._parallel else o_TD))


class GptNeoxModel(nn.Module):
    embed_tokens = property(lambda self: self.embed_in)

    def __init__(self, config):
        self.embed_in = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([GptNeoxLayer(config, i) for i in range(config.num_hidden_layers)])
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, ids_T, cache, rotary):
        x_TD = self.embed_in(ids_T)
        for layer in self.layers:
            x_TD = layer(x_TD, cache, rotary)
        return self.final_layer_norm(x_TD)


class GptNeoxForCausalLM(llama.LlamaForCausalLM):
    Model, model, lm_head = GptNeoxModel, property(lambda self: self.gpt_neox), property(lambda self: self.embed_out)

    def __init__(self, config):
        super().__init__(config)
        self.gpt_neox = vars(self).pop("model")
        if not config.tie_word_embeddings:
            self.embed_out = vars(self).pop("lm_head")
