"""Helium 1 (Kyutai's model card, 2025): Llama that turns neighbouring pairs."""

from zoo import llama


class HeliumConfig(llama.LlamaConfig):
    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        return super().from_hf(c)._replace(rope_interleaved=True, rms_norm_eps=c("rms_norm_eps", float, 1e-8))


TINY = HeliumConfig(*llama.TINY)._replace(rope_interleaved=True)


class HeliumAttention(llama.LlamaAttention):
    out_bias = False


class HeliumDecoderLayer(llama.LlamaDecoderLayer):
    Attention = HeliumAttention


class HeliumModel(llama.LlamaModel):
    Layer = HeliumDecoderLayer


class HeliumForCausalLM(llama.LlamaForCausalLM):
    Model = HeliumModel
