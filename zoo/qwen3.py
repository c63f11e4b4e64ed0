"""Qwen 3 (arXiv:2505.09388): Llama with q and k of every head normed (section 2) before they are turned."""

from tensorlib import nn
from zoo import llama


class Qwen3Config(llama.LlamaConfig):
    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        below = c("max_window_layers", int, 28)
        return super().from_hf(c)._replace(windows=c.windows(lambda i: i >= below, switched=True))


TINY = Qwen3Config(*llama.TINY)


class Qwen3Attention(llama.LlamaAttention):
    def __init__(self, config, layer, **options):
        super().__init__(config, layer, **options)
        self.q_norm = nn.RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(config.head_dim, config.rms_norm_eps)

    def prepared(self, q_TQ, k_TG, v_TG):
        """Norms over the channels of a head."""
        return self.per_head(self.q_norm, q_TQ), self.per_head(self.k_norm, k_TG), v_TG


class Qwen3DecoderLayer(llama.LlamaDecoderLayer):
    Attention = Qwen3Attention


class Qwen3Model(llama.LlamaModel):
    Layer = Qwen3DecoderLayer


class Qwen3ForCausalLM(llama.LlamaForCausalLM):
    Model = Qwen3Model


# ---- Qwen 3 MoE (section 2): many small experts, whose shares may be made to sum to 1 --------------------------------


class Qwen3MoeConfig(
    Qwen3Config.plus(
        num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768, norm_topk_prob=False, sparse=(),
        experts_joined=True,
    )
):  # fmt: skip
    """`sparse`: the layers with experts. `experts_joined`: gate and up are one matrix; they are two in GGUF."""

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        made, dense, step = super().from_hf(c), c("mlp_only_layers", list, []), c("decoder_sparse_step", int, 1)
        c.only("hidden_act", str, "silu")
        return made._replace(
            attention_bias=c("attention_bias", bool, False),
            windows=c.windows(switched=True),
            num_experts=c("num_experts" if "num_experts" in c else "num_local_experts", int),
            num_experts_per_tok=c("num_experts_per_tok", int),
            moe_intermediate_size=c("moe_intermediate_size", int),
            norm_topk_prob=c("norm_topk_prob", bool, False),
            sparse=tuple(i for i in range(made.num_hidden_layers) if i not in dense and (i + 1) % step == 0),
        )

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        return self._replace(
            num_experts=get("expert_count", int),
            num_experts_per_tok=get("expert_used_count", int),
            moe_intermediate_size=get("expert_feed_forward_length", int),
            norm_topk_prob=True,
            sparse=tuple(range(self.num_hidden_layers)),
            experts_joined=False,
        )


TINY_MOE = Qwen3MoeConfig(*TINY, 4, 2, 32, True, (1,))


class Qwen3MoE(nn.MoE):
    down_proj = nn.Identity()  # it is in the experts

    def __init__(self, config):
        super().__init__(
            config.hidden_size, config.moe_intermediate_size, config.num_experts, config.num_experts_per_tok,
            normalize=config.norm_topk_prob, joined=config.experts_joined,
        )  # fmt: skip


class Qwen3MoeDecoderLayer(Qwen3DecoderLayer):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        if layer in config.sparse:
            self.mlp = Qwen3MoE(config)


class Qwen3MoeModel(Qwen3Model):
    Layer = Qwen3MoeDecoderLayer


class Qwen3MoeForCausalLM(Qwen3ForCausalLM):
    Model = Qwen3MoeModel
