"""Qwen 3 (arXiv:2505.09388): Llama with q and k of every head normed (section 2) before they are turned."""

from tensorlib import nn
from zoo import llama


class Qwen3Config(llama.LlamaConfig):
    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        below = c("max_window_layers", int, 28)
        return super().from_hf(c)._replace(windows=c.windows(lambda i: i >= below, used=False))


TINY = Qwen3Config(*llama.TINY)


class Qwen3Attention(llama.LlamaAttention):
    def __init__(self, config, layer, **options):
        super().__init__(config, layer, **options)
        self.q_norm = nn.RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(config.head_dim, config.rms_norm_eps)

    def prepared(self, q_TQ, k_TG, v_TG):
        """Norms over the channels of a head."""
        return self.per_head(self.q_norm, q_TQ), self.per_head(self.k_norm, k_TG), v_TG


class Qwen3DecoderLayer(llama.LlamaDecoderLayer):
    Attention = Qwen3Attention


class Qwen3Model(llama.LlamaModel):
    Layer = Qwen3DecoderLayer


class Qwen3ForCausalLM(llama.LlamaForCausalLM):
    Model = Qwen3Model
