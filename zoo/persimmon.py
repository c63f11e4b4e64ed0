"""Persimmon (the Persimmon-8B report, 2023): squared ReLU, LayerNorm also of every head's q and k, half of each head
turned; q, k, v are one product, head by head.
"""

from tensorlib import nn
from zoo import llama


class PersimmonConfig(llama.LlamaConfig.plus(qk_layernorm=True)):
    rotary_part = 0.5

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        return (
            super()
            .from_hf(c)
            ._replace(
                rms_norm_eps=c("layer_norm_eps", float, 1e-5),
                num_key_value_heads=c("num_attention_heads", int),
                hidden_act=c.act("hidden_act", "relu2"),
                qk_layernorm=c("qk_layernorm", bool, True),
            )
        )


TINY = PersimmonConfig(*llama.TINY)._replace(
    num_key_value_heads=4, hidden_act="relu2", rope_scaling={"partial_rotary_factor": 0.5}
)


class PersimmonAttention(nn.Module):
    o_proj = property(lambda self: self.dense)

    def __init__(self, config, layer):
        D, h, self._layer, self._normed = config.hidden_size, config.head_dim, layer, config.qk_layernorm
        self._shape = config.num_attention_heads, 3, h
        self.query_key_value = nn.Linear(D, 3 * config.num_attention_heads * h)
        self.dense = nn.Linear(config.num_attention_heads * h, D)
        if config.qk_layernorm:
            self.q_layernorm = nn.LayerNorm(h, config.rms_norm_eps)
            self.k_layernorm = nn.LayerNorm(h, config.rms_norm_eps)

    def forward(self, x_TD, cache, rotary):
        q_THh, k_THh, v_THh = self.query_key_value(x_TD).unflatten(-1, self._shape).unbind(-2)
        if self._normed:
            q_THh, k_THh = self.q_layernorm(q_THh), self.k_layernorm(k_THh)
        return cache.attend(self._layer, *(x.flatten(-2) for x in (q_THh, k_THh, v_THh)), rotary)


class PersimmonMLP(nn.Module):
    """relu(W x)^2; what leads back is applied by the layer."""

    down_proj = property(lambda self: self.dense_4h_to_h)

    def __init__(self, config):
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.intermediate_size)
        self.dense_4h_to_h = nn.Linear(config.intermediate_size, config.hidden_size)
        self._act = nn.activation(config.hidden_act)

    def forward(self, x_TD):
        return self._act(self.dense_h_to_4h(x_TD))


class PersimmonDecoderLayer(llama.LlamaDecoderLayer):
    Attention, MLP = PersimmonAttention, PersimmonMLP

    @staticmethod
    def norm(config):
        """A norm of the residual stream."""
        return nn.LayerNorm(config.hidden_size, config.rms_norm_eps)


class PersimmonModel(llama.LlamaModel):
    Layer, norm = PersimmonDecoderLayer, property(lambda self: self.final_layernorm)

    def __init__(self, config):
        super().__init__(config)
        self.final_layernorm = vars(self).pop("norm")


class PersimmonForCausalLM(llama.LlamaForCausalLM):
    Model = PersimmonModel
