"""Granite 3 and its mixtures of experts (Granite 3.0 Language Models, 2024, section 2): Llama with four multipliers, of
embeddings, scores, what sub-layers add, and logits (muP, arXiv:2203.03466).
"""

from tensorlib import nn
from zoo import llama


class GraniteConfig(
    llama.LlamaConfig.plus(
        embedding_multiplier=1.0, attention_multiplier=1.0, residual_multiplier=1.0, logits_scaling=1.0
    )
):
    """`attention_multiplier` is in place of 1 / sqrt(h); logits are divided by `logits_scaling`."""

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        names = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
        return super().from_hf(c)._replace(**{name: c(name, float, 1.0) for name in names})

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        return self._replace(
            embedding_multiplier=get("embedding_scale", float, 1.0),
            attention_multiplier=get("attention.scale", float, self.head_dim**-0.5),
            residual_multiplier=get("residual_scale", float, 1.0),
            logits_scaling=get("logit_scale", float, 1.0),
        )


TINY = GraniteConfig(*llama.TINY, 12.0, 0.25, 0.22, 8.0)


class GraniteAttention(llama.LlamaAttention):
    def __init__(self, config, layer):
        super().__init__(config, layer, scale=config.attention_multiplier)


class GraniteDecoderLayer(llama.LlamaDecoderLayer):
    Attention = GraniteAttention

    def __init__(self, config, layer):
        super().__init__(config, layer)
        self._times = config.residual_multiplier

    def forward(self, x_TD, h_TD, cache, rotary, next_norm):
        """h is the norm of x, as of what is returned."""
        o_TQ = self.self_attn(h_TD, cache, rotary)
        x_TD = x_TD + self.self_attn.o_proj(o_TQ) * self._times
        h_TF = self.mlp(self.post_attention_layernorm(x_TD))
        x_TD = x_TD + self.mlp.down_proj(h_TF) * self._times
        return x_TD, next_norm(x_TD)


class GraniteModel(llama.LlamaModel):
    Layer = GraniteDecoderLayer

    def __init__(self, config):
        super().__init__(config)
        self._times = config.embedding_multiplier

    def embed(self, ids_T):
        """Embeddings times their multiplier."""
        return self.embed_tokens(ids_T) * self._times


class GraniteForCausalLM(llama.LlamaForCausalLM):
    Model = GraniteModel

    def logits(self, h_TD):
        """Scores [..., V] of what follows."""
        return super().logits(h_TD) / self.config.logits_scaling


# ---- GraniteMoe: each token goes through the experts of the largest logits, weighed by their softmax -----------------


class GraniteMoeConfig(GraniteConfig.plus(num_local_experts=8, num_experts_per_tok=2, experts_joined=True)):
    """`experts_joined`: gate and up are one matrix; they are two in GGUF."""

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        c.only("hidden_act", str, "silu")
        many = {name: c(name, int) for name in ("num_local_experts", "num_experts_per_tok")}
        return super().from_hf(c)._replace(**many)

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        many, chosen = get("expert_count", int), get("expert_used_count", int)
        made = super().with_gguf(get, file)
        return made._replace(num_local_experts=many, num_experts_per_tok=chosen, experts_joined=False)


TINY_MOE = GraniteMoeConfig(*TINY, 4, 2)


class GraniteMoE(nn.StackedMoE):
    down_proj = nn.Identity()  # it is in the experts

    def __init__(self, config):
        D, F, E = config.hidden_size, config.intermediate_size, config.num_local_experts
        super().__init__(D, F, E, config.num_experts_per_tok, config.experts_joined)


class GraniteMoeDecoderLayer(GraniteDecoderLayer):
    MLP, mlp = GraniteMoE, property(lambda self: self.block_sparse_moe)

    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.block_sparse_moe = vars(self).pop("mlp")


class GraniteMoeModel(GraniteModel):
    Layer = GraniteMoeDecoderLayer


class GraniteMoeForCausalLM(GraniteForCausalLM):
    Model = GraniteMoeModel
