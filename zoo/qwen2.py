"""Qwen 1.5, 2 and 2.5 (arXiv:2309.16609, 2407.10671, 2412.15115): Llama with biases of q, k and v (section 2.2 of the
first), and, if the config says so, a window in the upper layers.
"""

from tensorlib import nn
from zoo import mistral


class Qwen2Config(mistral.MistralConfig):
    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        below = c("max_window_layers", int, 28)
        found = super().from_hf(c)
        windows = c.windows(lambda i: i >= below) if c("use_sliding_window", bool, False) else (0,) * len(found.windows)
        return found._replace(windows=windows)


TINY = Qwen2Config(*mistral.TINY[:-1], windows=(0, 8))


class Qwen2Attention(mistral.MistralAttention):
    def __init__(self, config, layer):
        super().__init__(config._replace(attention_bias=True), layer)
        self.o_proj = nn.Linear(self.o_proj.in_features, config.hidden_size, bias=False)


class Qwen2DecoderLayer(mistral.MistralDecoderLayer):
    Attention = Qwen2Attention


class Qwen2Model(mistral.MistralModel):
    Layer = Qwen2DecoderLayer


class Qwen2ForCausalLM(mistral.MistralForCausalLM):
    Model = Qwen2Model
