"""StableLM 3B and 2 (arXiv:2402.17834): Llama with LayerNorm, of which a quarter of each head turns (section 2.1), and
in some sizes biases of q, k, v, norms of every head's q and k, attention and MLP side by side.
"""

import tensorlib
from tensorlib import nn
from zoo import llama


class StableLmConfig(llama.LlamaConfig.plus(qk_layernorm=False, use_parallel_residual=False)):
    rotary_part = 0.25

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        return (
            super()
            .from_hf(c)
            ._replace(
                rms_norm_eps=c("layer_norm_eps", float, 1e-5),
                attention_bias=c("use_qkv_bias", bool, False),
                qk_layernorm=c("qk_layernorm", bool, False),
                use_parallel_residual=c("use_parallel_residual", bool, False),
            )
        )

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        return self._replace(
            qk_layernorm="blk.0.attn_q_norm.weight" in file.tensors,
            use_parallel_residual=get("use_parallel_residual", bool, True),
        )


TINY = StableLmConfig(*llama.TINY, True, True)._replace(rope_scaling={"partial_rotary_factor": 0.25})


class PerHead(nn.Module):
    """x [..., H h] -> the same, normed by a LayerNorm of each head's own, without bias."""

    def __init__(self, heads, head_dim, eps):
        self.norms = nn.ModuleList([nn.LayerNorm(head_dim, eps, bias=False) for _ in range(heads)])

    def forward(self, x):
        weights, (h,) = tensorlib.stack([norm.weight for norm in self.norms]), self.norms[0].normalized_shape
        x = nn.functional.layer_norm(x.unflatten(-1, (-1, h)), None, None, self.norms[0].eps)
        return (x * weights).flatten(-2)


class StableLmAttention(llama.LlamaAttention):
    out_bias = False

    def __init__(self, config, layer):
        super().__init__(config, layer)
        if config.qk_layernorm:
            self.q_layernorm = PerHead(config.num_attention_heads, config.head_dim, config.rms_norm_eps)
            self.k_layernorm = PerHead(config.num_key_value_heads, config.head_dim, config.rms_norm_eps)
        self._normed = config.qk_layernorm

    def prepared(self, q_TQ, k_TG, v_TG):
        """Norms over the channels of a head."""
        return (self.q_layernorm(q_TQ), self.k_layernorm(k_TG), v_TG) if self._normed else (q_TQ, k_TG, v_TG)


class StableLmDecoderLayer(llama.LlamaDecoderLayer):
    Attention = StableLmAttention

    def __init__(self, config, layer):
        super().__init__(config, layer)
        if config.use_parallel_residual:
            self.post_attention_layernorm = None

    @staticmethod
    def norm(config):
        """A norm of the residual stream."""
        return nn.LayerNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x_TD, h_TD, cache, rotary, next_norm):
        """h is the norm of x, as of what is returned."""
        if self.post_attention_layernorm is not None:
            return super().forward(x_TD, h_TD, cache, rotary, next_norm)
        x_TD = x_TD + self.self_attn.o_proj(self.self_attn(h_TD, cache, rotary))
        return nn.add_norm(x_TD, self.mlp.down_proj, self.mlp(h_TD), next_norm)


class StableLmModel(llama.LlamaModel):
    Layer = StableLmDecoderLayer


class StableLmForCausalLM(llama.LlamaForCausalLM):
    Model = StableLmModel
