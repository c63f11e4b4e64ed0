"""OLMo (arXiv:2402.00838): Llama with norms that have no weights (section 2.1), and q, k, v clipped if the config says
so.
"""

from tensorlib import nn
from zoo import llama


class OlmoConfig(llama.LlamaConfig.plus(clip_qkv=0.0)):
    """`clip_qkv`: 0 for no limit."""

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        return super().from_hf(c)._replace(clip_qkv=c("clip_qkv", float, 0.0), rms_norm_eps=1e-5)

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        return self._replace(clip_qkv=get("attention.clamp_kqv", float, 0.0))


TINY = OlmoConfig(*llama.TINY, clip_qkv=1.0)


class OlmoAttention(llama.LlamaAttention):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        self._limit = config.clip_qkv

    def prepared(self, q_TQ, k_TG, v_TG):
        """All of them within the limit."""
        if not self._limit:
            return q_TQ, k_TG, v_TG
        return tuple(x.clamp(-self._limit, self._limit) for x in (q_TQ, k_TG, v_TG))


class OlmoDecoderLayer(llama.LlamaDecoderLayer):
    Attention = OlmoAttention

    @staticmethod
    def norm(config):
        """A norm of the residual stream."""
        return nn.LayerNorm(config.hidden_size, config.rms_norm_eps, elementwise_affine=False)


class OlmoModel(llama.LlamaModel):
    Layer = OlmoDecoderLayer


class OlmoForCausalLM(llama.LlamaForCausalLM):
    Model = OlmoModel
