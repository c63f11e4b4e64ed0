"""GLM-4 and GLM-4-0414 (arXiv:2406.12793): Llama of which half of each head turns, in neighbouring pairs, with biases
of q, k, v; gate and up are one product.
"""

from tensorlib import nn
from zoo import llama


class GlmConfig(llama.LlamaConfig):
    rotary_part = 0.5

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        c.only("hidden_act", str, "silu")
        return super().from_hf(c)._replace(rope_interleaved=True)


TINY = GlmConfig(*llama.TINY)._replace(
    rope_scaling={"partial_rotary_factor": 0.5}, rope_interleaved=True, attention_bias=True
)


class GlmAttention(llama.LlamaAttention):
    out_bias = False


class GlmMLP(nn.Module):
    """silu(W_gate x) * W_up x; W_down is applied by the layer."""

    def __init__(self, config):
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_TD):
        return nn.swiglu(*self.gate_up_proj(x_TD).chunk(2, -1))


class GlmDecoderLayer(llama.LlamaDecoderLayer):
    Attention, MLP = GlmAttention, GlmMLP


class GlmModel(llama.LlamaModel):
    Layer = GlmDecoderLayer


class GlmForCausalLM(llama.LlamaForCausalLM):
    Model = GlmModel


# ---- GLM-4-0414: norms behind sub-layers as well as before them ------------------------------------------------------


class Glm4DecoderLayer(GlmDecoderLayer):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.post_self_attn_layernorm = self.norm(config)
        self.post_mlp_layernorm = self.norm(config)

    def forward(self, x_TD, h_TD, cache, rotary, next_norm):
        """h is the norm of x, as of what is returned."""
        o_TQ = self.self_attn(h_TD, cache, rotary)
        x_TD = x_TD + self.post_self_attn_layernorm(self.self_attn.o_proj(o_TQ))
        h_TF = self.mlp(self.post_attention_layernorm(x_TD))
        x_TD = x_TD + self.post_mlp_layernorm(self.mlp.down_proj(h_TF))
        return x_TD, next_norm(x_TD)


class Glm4Model(GlmModel):
    Layer = Glm4DecoderLayer


class Glm4ForCausalLM(GlmForCausalLM):
    Model = Glm4Model
