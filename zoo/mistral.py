"""Mistral (arXiv:2310.06825): Llama with attention to the last W tokens only (section 2, sliding window attention).

What a token knows of older ones comes through the layers below: after k layers, of k W.
"""

from zoo import llama


class MistralConfig(llama.LlamaConfig):
    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        return super().from_hf(c)._replace(windows=c.windows())


TINY = MistralConfig(*llama.TINY)._replace(windows=(8, 8))


class MistralForCausalLM(llama.LlamaForCausalLM):
    """Its classes are Llama's: the config says what is new."""
