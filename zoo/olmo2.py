"""OLMo 2 (arXiv:2501.00656): Llama with norms behind the sub-layers, not before them, and norms of all of q and of all
of k before they are turned (section 3.2).
"""

from tensorlib import nn
from zoo import llama

Olmo2Config, TINY = llama.LlamaConfig, llama.TINY


class Olmo2Attention(llama.LlamaAttention):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.q_norm = nn.RMSNorm(self.q_proj.out_features, config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(self.k_proj.out_features, config.rms_norm_eps)

    def prepared(self, q_TQ, k_TG, v_TG):
        """Norms over the channels of all heads together."""
        return self.q_norm(q_TQ), self.k_norm(k_TG), v_TG


class Olmo2DecoderLayer(llama.LlamaDecoderLayer):
    Attention = Olmo2Attention

    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.input_layernorm, self.post_feedforward_layernorm = nn.Identity(), self.norm(config)

    def forward(self, x_TD, h_TD, cache, rotary, next_norm):
        """h is x, or what the model's last norm makes of it."""
        o_TQ = self.self_attn(h_TD, cache, rotary)
        x_TD = x_TD + self.post_attention_layernorm(self.self_attn.o_proj(o_TQ))
        x_TD = x_TD + self.post_feedforward_layernorm(self.mlp.down_proj(self.mlp(x_TD)))
        return x_TD, next_norm(x_TD)


class Olmo2Model(llama.LlamaModel):
    Layer = Olmo2DecoderLayer


class Olmo2ForCausalLM(llama.LlamaForCausalLM):
    Model = Olmo2Model
