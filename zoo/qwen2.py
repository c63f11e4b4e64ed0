"""Qwen 1.5, 2 and 2.5 (arXiv:2309.16609, 2407.10671, 2412.15115): Llama with biases of q, k and v (section 2.2 of the
first), and, if the config says so, a window in the upper layers.
"""

from zoo import llama


class Qwen2Config(llama.LlamaConfig):
    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        below = c("max_window_layers", int, 28)
        return super().from_hf(c)._replace(windows=c.windows(lambda i: i >= below, used=False), attention_bias=True)


TINY = Qwen2Config(*llama.TINY)._replace(attention_bias=True, windows=(0, 8))


class Qwen2Attention(llama.LlamaAttention):
    out_bias = False


class Qwen2DecoderLayer(llama.LlamaDecoderLayer):
    Attention = Qwen2Attention


class Qwen2Model(llama.LlamaModel):
    Layer = Qwen2DecoderLayer


class Qwen2ForCausalLM(llama.LlamaForCausalLM):
    Model = Qwen2Model
