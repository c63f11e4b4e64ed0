"""Mistral (arXiv:2310.06825): Llama with attention to the last W tokens only (section 2, sliding window attention).

What a token knows of older ones comes through the layers below: after k layers, of k W. The parent of all models of
which some layers have a window.
"""

from zoo import llama


class MistralConfig(llama.LlamaConfig.plus(windows=())):
    """`windows`: W of every layer, 0 for all tokens."""

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        return super().from_hf(c)._replace(windows=c.windows())


TINY = MistralConfig(*llama.TINY, windows=(8, 8))


class MistralAttention(llama.LlamaAttention):
    def __init__(self, config, layer, **options):
        window = config.windows[layer]
        super().__init__(config, layer, **options, **({"window": window} if window else {}))


class MistralDecoderLayer(llama.LlamaDecoderLayer):
    Attention = MistralAttention


class MistralModel(llama.LlamaModel):
    Layer = MistralDecoderLayer


class MistralForCausalLM(llama.LlamaForCausalLM):
    Model = MistralModel
