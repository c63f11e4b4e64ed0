"""ChatGLM 2, 3, GLM-4-9B and CodeGeeX4 (arXiv:2406.12793) under the names of their own files: Llama of which half of
each head turns, in neighbouring pairs, with biases of q, k, v. These are one product, and so are gate and up.

What `rope_ratio` is a factor of is theta, as in ChatGLM3 and after it.
"""

from tensorlib import nn
from zoo import llama


class ChatGlmConfig(llama.LlamaConfig):
    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        for name, value in {
            "rmsnorm": True,
            "original_rope": True,
            "post_layer_norm": True,
            "add_bias_linear": False,
        }.items():
            c.only(name, bool, value)
        c.only("apply_residual_connection_post_layernorm", bool, False)
        hidden, heads = c("hidden_size", int), c("num_attention_heads", int)
        grouped = c("multi_query_attention", bool, False)
        return cls(
            vocab_size=c("padded_vocab_size", int),
            hidden_size=hidden,
            intermediate_size=c("ffn_hidden_size", int),
            num_hidden_layers=c("num_layers", int),
            num_attention_heads=heads,
            num_key_value_heads=c("multi_query_group_num", int) if grouped else heads,
            head_dim=c("kv_channels", int, hidden // heads),
            rms_norm_eps=c("layernorm_epsilon", float, 1e-5),
            rope_theta=10000.0 * c("rope_ratio", float, 1.0),
            max_position_embeddings=c("seq_length", int, 2048),
            attention_bias=c("add_qkv_bias", bool, True),
            rope_interleaved=True,
            rope_scaling={"partial_rotary_factor": 0.5},
        )

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        return self._replace(attention_bias="blk.0.attn_qkv.bias" in file.tensors)


TINY = ChatGlmConfig(*llama.TINY)._replace(
    rope_scaling={"partial_rotary_factor": 0.5}, rope_interleaved=True, attention_bias=True
)


class ChatGlmAttention(nn.Module):
    o_proj = property(lambda self: self.dense)

    def __init__(self, config, layer):
        H, K, h, self._layer = *config[4:7], layer
        self._sizes = H * h, K * h, K * h
        self.query_key_value = nn.Linear(config.hidden_size, sum(self._sizes), bias=config.attention_bias)
        self.dense = nn.Linear(H * h, config.hidden_size, bias=False)

    def forward(self, x_TD, cache, rotary):
        return cache.attend(self._layer, *self.query_key_value(x_TD).split(self._sizes, -1), rotary)


class ChatGlmMLP(nn.Module):
    """silu(W_gate x) * W_up x; W_down is applied by the layer."""

    down_proj = property(lambda self: self.dense_4h_to_h)

    def __init__(self, config):
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.dense_4h_to_h = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_TD):
        return nn.swiglu(*self.dense_h_to_4h(x_TD).chunk(2, -1))


class ChatGlmLayer(llama.LlamaDecoderLayer):
    Attention, MLP, self_attn = ChatGlmAttention, ChatGlmMLP, property(lambda self: self.self_attention)

    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.self_attention = vars(self).pop("self_attn")


class ChatGlmEmbedding(nn.Module):
    def __init__(self, table):
        self.word_embeddings = table


class ChatGlmEncoder(nn.Module):
    def __init__(self, layers, norm):
        self.layers, self.final_layernorm = layers, norm


class ChatGlmModel(llama.LlamaModel):
    Layer, embed_tokens = ChatGlmLayer, property(lambda self: self.embedding.word_embeddings)
    layers, norm = property(lambda self: self.encoder.layers), property(lambda self: self.encoder.final_layernorm)

    def __init__(self, config):
        super().__init__(config)
        table, layers, norm = (vars(self).pop(name) for name in ("embed_tokens", "layers", "norm"))
        self.embedding, self.encoder = ChatGlmEmbedding(table), ChatGlmEncoder(layers, norm)
        self.output_layer = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


class ChatGlmForConditionalGeneration(llama.LlamaForCausalLM):
    Model, model = ChatGlmModel, property(lambda self: self.transformer)
    lm_head = property(lambda self: self.transformer.output_layer)

    def __init__(self, config):
        super().__init__(config)
        self.transformer = vars(self).pop("model")
        vars(self).pop("lm_head", None)
