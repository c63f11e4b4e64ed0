"""Phi-3, 3.5 and 4 (arXiv:2404.14219, 2412.08905): Mistral whose q, k, v are one product, and so are gate and up.

Long contexts come of frequencies divided one by one (LongRoPE, arXiv:2402.13753): one set of factors up to the context
of training, another beyond; which, the number of prepared positions decides. Phi-4-mini turns a part of each head.
"""

from tensorlib import nn
from zoo import llama


class Phi3Config(llama.LlamaConfig):
    rotary_part = 1.0

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        c.only("hidden_act", str, "silu")
        return super().from_hf(c)._replace(windows=c.windows())

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        return self._replace(windows=(get("attention.sliding_window", int, 0),) * self.num_hidden_layers)


TINY = Phi3Config(*llama.TINY)._replace(windows=(8, 8))


class Phi3Attention(llama.LlamaAttention):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        self._sizes = [vars(self).pop(name).out_features for name in ("q_proj", "k_proj", "v_proj")]
        self.qkv_proj = nn.Linear(config.hidden_size, sum(self._sizes), bias=False)

    def forward(self, x_TD, cache, rotary):
        q_TQ, k_TG, v_TG = self.qkv_proj(x_TD).split(self._sizes, -1)
        return cache.attend(self._layer, q_TQ, k_TG, v_TG, rotary, **self._options)


class Phi3MLP(nn.Module):
    def __init__(self, config):
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_TD):
        return nn.swiglu(*self.gate_up_proj(x_TD).chunk(2, -1))


class Phi3DecoderLayer(llama.LlamaDecoderLayer):
    Attention, MLP = Phi3Attention, Phi3MLP


class Phi3Model(llama.LlamaModel):
    Layer = Phi3DecoderLayer


class Phi3ForCausalLM(llama.LlamaForCausalLM):
    Model = Phi3Model
