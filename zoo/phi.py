"""Phi-1, 1.5 and 2 (arXiv:2306.11644, 2309.05463): attention and a plain MLP side by side behind one LayerNorm, biases
everywhere, half of each head turned.
"""

from tensorlib import nn
from zoo import llama


class PhiConfig(llama.LlamaConfig.plus(qk_layernorm=False)):
    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        return (
            super()
            .from_hf(c)
            ._replace(
                rms_norm_eps=c("layer_norm_eps", float, 1e-5),
                attention_bias=True,
                hidden_act=c("hidden_act", str, "gelu_new"),
                rope_scaling=c.rope_scaling(0.5),
                qk_layernorm=c("qk_layernorm", bool, False),
            )
        )

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        return self._replace(hidden_act="gelu_new")


TINY = PhiConfig(*llama.TINY)._replace(
    hidden_act="gelu_new", rope_scaling={"partial_rotary_factor": 0.5}, attention_bias=True
)


class PhiAttention(llama.LlamaAttention):
    o_proj = property(lambda self: self.dense)

    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.dense, self._normed = vars(self).pop("o_proj"), config.qk_layernorm
        if config.qk_layernorm:
            self.q_layernorm = nn.LayerNorm(config.head_dim, config.rms_norm_eps)
            self.k_layernorm = nn.LayerNorm(config.head_dim, config.rms_norm_eps)

    def prepared(self, q_TQ, k_TG, v_TG):
        """Norms over the channels of a head."""
        if not self._normed:
            return q_TQ, k_TG, v_TG
        return self.per_head(self.q_layernorm, q_TQ), self.per_head(self.k_layernorm, k_TG), v_TG


class PhiMLP(nn.Module):
    """gelu(W_1 x); W_2 is applied by the layer."""

    down_proj = property(lambda self: self.fc2)

    def __init__(self, config):
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self._act = nn.activation(config.hidden_act)

    def forward(self, x_TD):
        return self._act(self.fc1(x_TD))


class PhiDecoderLayer(llama.LlamaDecoderLayer):
    Attention, MLP = PhiAttention, PhiMLP

    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.post_attention_layernorm = None

    @staticmethod
    def norm(config):
        """A norm of the residual stream."""
        return nn.LayerNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x_TD, h_TD, cache, rotary, next_norm):
        """h is the norm of x, as of what is returned; both sub-layers see it."""
        x_TD = x_TD + self.self_attn.o_proj(self.self_attn(h_TD, cache, rotary))
        return nn.add_norm(x_TD, self.mlp.down_proj, self.mlp(h_TD), next_norm)


class PhiModel(llama.LlamaModel):
    Layer, norm = PhiDecoderLayer, property(lambda self: self.final_layernorm)

    def __init__(self, config):
        super().__init__(config)
        self.final_layernorm = vars(self).pop("norm")


class PhiForCausalLM(llama.LlamaForCausalLM):
    Model = PhiModel

    def __init__(self, config):
        super().__init__(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
