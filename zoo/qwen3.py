"""Qwen 3 (arXiv:2505.09388): Qwen 2 without biases, q and k of every head normed (section 2) before they are turned."""

from tensorlib import nn
from zoo import qwen2

Qwen3Config, TINY = qwen2.Qwen2Config, qwen2.TINY


class Qwen3Attention(qwen2.mistral.MistralAttention):
    def __init__(self, config, layer, **options):
        super().__init__(config, layer, **options)
        self.q_norm = nn.RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(config.head_dim, config.rms_norm_eps)

    def prepared(self, q_TQ, k_TG, v_TG):
        """Norms over the channels of a head."""
        return self.per_head(self.q_norm, q_TQ), self.per_head(self.k_norm, k_TG), v_TG


class Qwen3DecoderLayer(qwen2.Qwen2DecoderLayer):
    Attention = Qwen3Attention


class Qwen3Model(qwen2.Qwen2Model):
    Layer = Qwen3DecoderLayer


class Qwen3ForCausalLM(qwen2.Qwen2ForCausalLM):
    Model = Qwen3Model
