"""SmolLM3 (the SmolLM3 report, 2025): Llama of which every fourth layer has no positions (NoPE, arXiv:2501.18795)."""

from zoo import llama


class SmolLM3Config(llama.LlamaConfig.plus(no_rope_layers=())):
    """`no_rope_layers`: whether a layer turns q and k, despite the name."""

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        layers, every = c("num_hidden_layers", int), c("no_rope_layer_interval", int, 4)
        turns = tuple(map(bool, c("no_rope_layers", list, [(i + 1) % every for i in range(layers)])))
        slides = c("use_sliding_window", bool, False)
        windows = c.windows(lambda i: slides and not turns[i])
        found = super().from_hf(c)
        return found._replace(no_rope_layers=turns, windows=windows, rope_theta=c.rope_theta(2000000.0))

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields: nothing, every fourth layer has no positions."""
        return self._replace(no_rope_layers=tuple((i + 1) % 4 > 0 for i in range(self.num_hidden_layers)))


TINY = SmolLM3Config(*llama.TINY, no_rope_layers=(True, False))


class SmolLM3Attention(llama.LlamaAttention):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        self._turns = config.no_rope_layers[layer]

    def forward(self, x_TD, cache, rotary):
        return super().forward(x_TD, cache, rotary if self._turns else None)


class SmolLM3DecoderLayer(llama.LlamaDecoderLayer):
    Attention = SmolLM3Attention


class SmolLM3Model(llama.LlamaModel):
    Layer = SmolLM3DecoderLayer


class SmolLM3ForCausalLM(llama.LlamaForCausalLM):
    Model = SmolLM3Model
