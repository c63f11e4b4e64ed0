"""Phi-3, 3.5 and 4 (arXiv:2404.14219, 2412.08905): Mistral whose q, k, v are one product, and so are gate and up.

Long contexts come of frequencies divided one by one (LongRoPE, arXiv:2402.13753): one set of factors up to the context
of training, another beyond; which, the number of prepared positions decides. Phi-4-mini turns a part of each head.
"""

from tensorlib import nn
from zoo import mistral

Phi3Config, TINY = mistral.MistralConfig, mistral.TINY


class Phi3Attention(nn.Module):
    def __init__(self, config, layer):
        D, h, window = config.hidden_size, config.head_dim, config.windows[layer]
        self._layer, self._options = layer, {"window": window} if window else {}
        self._sizes = [config.num_attention_heads * h, *[config.num_key_value_heads * h] * 2]
        self.qkv_proj = nn.Linear(D, sum(self._sizes), bias=False)
        self.o_proj = nn.Linear(self._sizes[0], D, bias=False)

    def forward(self, x_TD, cache, rotary):
        q_TQ, k_TG, v_TG = self.qkv_proj(x_TD).split(self._sizes, -1)
        return cache.attend(self._layer, q_TQ, k_TG, v_TG, rotary, **self._options)


class Phi3MLP(nn.Module):
    def __init__(self, config):
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_TD):
        return nn.swiglu(*self.gate_up_proj(x_TD).chunk(2, -1))


class Phi3DecoderLayer(mistral.MistralDecoderLayer):
    Attention, MLP = Phi3Attention, Phi3MLP


class Phi3Model(mistral.MistralModel):
    Layer = Phi3DecoderLayer


class Phi3ForCausalLM(mistral.MistralForCausalLM):
    Model = Phi3Model
