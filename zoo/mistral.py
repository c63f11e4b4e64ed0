"""Mistral (arXiv:2310.06825): Llama with attention to the last W tokens only (section 2, sliding window attention).

What a token knows of older ones comes through the layers below: after k layers, of k W.
"""

from zoo import llama


class MistralConfig(llama.LlamaConfig.plus(sliding_window=0)):
    """`sliding_window`: W, 0 for all tokens."""

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        return super().from_hf(c)._replace(sliding_window=c("sliding_window", int, 0))


TINY = MistralConfig(*llama.TINY, sliding_window=8)


class MistralAttention(llama.LlamaAttention):
    def __init__(self, config, layer):
        super().__init__(config, layer, **({"window": config.sliding_window} if config.sliding_window else {}))


class MistralDecoderLayer(llama.LlamaDecoderLayer):
    Attention = MistralAttention


class MistralModel(llama.LlamaModel):
    Layer = MistralDecoderLayer


class MistralForCausalLM(llama.LlamaForCausalLM):
    Model = MistralModel
