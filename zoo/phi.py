"""Phi-1, 1.5 and 2 (arXiv:2306.11644, 2309.05463): attention and a plain MLP side by side behind one LayerNorm, biases
everywhere, half of each head turned.
"""

from tensorlib import nn
from zoo import llama


class PhiConfig(llama.LlamaConfig.plus(qk_layernorm=False)):
    rotary_part = 0.5

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        c.only("tie_word_embeddings", bool, False)
        return (
            super()
            .from_hf(c)
            ._replace(
                rms_norm_eps=c("layer_norm_eps", float, 1e-5),
                attention_bias=True,
                hidden_act=c.act("hidden_act", "gelu_new"),
                qk_layernorm=c("qk_layernorm", bool, False),
            )
        )

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        return self._replace(hidden_act="gelu_new")


TINY = PhiConfig(*llama.TINY)._replace(
    hidden_act="gelu_new", rope_scaling={"partial_rotary_factor": 0.5}, attention_bias=True
)


class PhiAttention(llama.LlamaAttention):
    o_proj = property(lambda self: self.dense)

    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.dense, self._normed = vars(self).pop("o_proj"), config.qk_layernorm
        if config.qk_layernorm:
            self.q_layernorm = nn.LayerNorm(config.head_dim, config.rms_norm_eps)
            self.k_layernorm = nn.LayerNorm(config.head_dim, config.rms_norm_eps)

    def prepared(self, q_TQ, k_TG, v_TG):
        """Norms over the channels of a head."""
        if not self._normed:
            return q_TQ, k_TG, v_TG
        return self.per_head(self.q_layernorm, q_TQ), self.per_head(self.k_layernorm, k_TG), v_TG


class PhiMLP(nn.Module):
    """gelu(W_1 x); W_2 is applied by the layer."""

    down_proj = property(lambda self: self.fc2)

    def __init__(self, config):
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self._act = nn.activation(config.hidden_act)

    def forward(self, x_TD):
        return self._act(self.fc1(x_TD))


class PhiDecoderLayer(llama.LlamaDecoderLayer):
    Attention, MLP = PhiAttention, PhiMLP

    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.post_attention_layernorm = None

    @staticmethod
    def norm(config):
        """A norm of the residual stream."""
        return nn.LayerNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x_TD, h_TD, cache, rotary, next_norm):
        """h is the norm of x, as of what is returned; both sub-layers see it."""
        x_TD = x_TD + self.self_attn.o_proj(self.self_attn(h_TD, cache, rotary))
        return nn.add_norm(x_TD, self.mlp.down_proj, self.mlp(h_TD), next_norm)


class PhiModel(llama.LlamaModel):
    Layer, norm = PhiDecoderLayer, property(lambda self: self.final_layernorm)

    def __init__(self, config):
        super().__init__(config)
        self.final_layernorm = vars(self).pop("norm")


class PhiForCausalLM(llama.LlamaForCausalLM):
    Model = PhiModel

    def __init__(self, config):
        super().__init__(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)


# ---- the files of Phi-1, 1.5 and 2 as they were first: q, k, v in one product, blocks one behind the other -----------


class MixformerConfig(PhiConfig):
    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        hidden, heads, words = c("n_embd", int), c("n_head", int), c("vocab_size", int)
        c.only("n_head_kv", int, heads)
        return cls(
            vocab_size=words + -words % c("pad_vocab_size_multiple", int, 64),
            hidden_size=hidden,
            intermediate_size=c("n_inner", int, 4 * hidden),
            num_hidden_layers=c("n_layer", int),
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=hidden // heads,
            rms_norm_eps=c("layer_norm_epsilon", float, 1e-5),
            max_position_embeddings=c("n_positions", int, 2048),
            attention_bias=True,
            hidden_act=c.act("activation_function", "gelu_new"),
            rope_scaling={"partial_rotary_factor": c("rotary_dim", int, 32) / (hidden // heads)},
        )


TINY_MIXFORMER = MixformerConfig(*TINY)._replace(num_key_value_heads=4)
MIXED = {".self_attn.dense.": ".mixer.out_proj.", ".self_attn.": ".mixer.", ".input_layernorm.": ".ln."}


class MixformerAttention(PhiAttention):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        for name in ("q_proj", "k_proj", "v_proj"):
            delattr(self, name)

    def forward(self, x_TD, cache, rotary):
        return cache.attend(self._layer, *self.Wqkv(x_TD).chunk(3, -1), rotary)


class MixformerDecoderLayer(PhiDecoderLayer):
    Attention = MixformerAttention


class MixformerModel(PhiModel):
    Layer = MixformerDecoderLayer


class MixformerForCausalLM(PhiForCausalLM):
    Model = MixformerModel

    def names(self, tensors):
        """{path: name in a file} with those tensors: all that is one behind the other has a number, or blocks do."""
        numbers = "layers.0.wte.weight" in tensors
        n = self.config.num_hidden_layers + 1
        first, last = ("layers.0", f"layers.{n}") if numbers else ("transformer.embd", "lm_head")
        parts = {"model.embed_tokens.": f"{first}.wte.", "model.final_layernorm.": f"{last}.ln."}
        parts |= {"lm_head.": f"{last}.linear."}
        for i in range(n - 1):
            parts[f"model.layers.{i}."] = f"layers.{i + 1}." if numbers else f"transformer.h.{i}."
        found = {}
        for path, _ in self.named_parameters():
            part = next(part for part in parts if path.startswith(part))
            found[path] = parts[part] + path.removeprefix(part)
            for ours, theirs in MIXED.items():
                found[path] = found[path].replace(ours, theirs)
        return found
