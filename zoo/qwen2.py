"""Qwen 1.5, 2 and 2.5 (arXiv:2309.16609, 2407.10671, 2412.15115): Llama with biases of q, k and v (section 2.2 of the
first), and, if the config says so, a window in the upper layers.
"""

from tensorlib import nn
from zoo import llama


class Qwen2Config(llama.LlamaConfig):
    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        below = c("max_window_layers", int, 28)
        return super().from_hf(c)._replace(windows=c.windows(lambda i: i >= below, switched=True), attention_bias=True)


TINY = Qwen2Config(*llama.TINY)._replace(attention_bias=True, windows=(0, 8))


class Qwen2Attention(llama.LlamaAttention):
    out_bias = False


class Qwen2DecoderLayer(llama.LlamaDecoderLayer):
    Attention = Qwen2Attention


class Qwen2Model(llama.LlamaModel):
    Layer = Qwen2DecoderLayer


class Qwen2ForCausalLM(llama.LlamaForCausalLM):
    Model = Qwen2Model


# ---- Qwen 1.5 and 2 MoE (arXiv:2407.10671, section 2.2.2): many small experts, and a gated one for all tokens --------


class Qwen2MoeConfig(
    Qwen2Config.plus(
        num_experts=60, num_experts_per_tok=4, moe_intermediate_size=1408, shared_expert_intermediate_size=5632,
        norm_topk_prob=False, sparse=(), experts_joined=True, gate_row=False,
    )
):  # fmt: skip
    """`sparse`: the layers with experts. `experts_joined`: gate and up are one matrix; they are two in GGUF, where the
    shared expert's gate may be no matrix (`gate_row`).
    """

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        made, dense, step = super().from_hf(c), c("mlp_only_layers", list, []), c("decoder_sparse_step", int, 1)
        below = c("max_window_layers", int, 28)
        sizes = "num_experts_per_tok", "moe_intermediate_size", "shared_expert_intermediate_size"
        c.only("hidden_act", str, "silu")
        return made._replace(
            **{name: c(name, int) for name in sizes},
            attention_bias=c("qkv_bias", bool, True),
            windows=c.windows(lambda i: i < below and i % 2 == 0, switched=True),
            num_experts=c("num_experts" if "num_experts" in c else "num_local_experts", int),
            norm_topk_prob=c("norm_topk_prob", bool, False),
            sparse=tuple(i for i in range(made.num_hidden_layers) if i not in dense and (i + 1) % step == 0),
        )

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        wide, gate = get("expert_feed_forward_length", int), file.tensors.get("blk.0.ffn_gate_inp_shexp.weight")
        return self._replace(
            num_experts=get("expert_count", int),
            num_experts_per_tok=get("expert_used_count", int),
            moe_intermediate_size=wide,
            shared_expert_intermediate_size=get("expert_shared_feed_forward_length", int, 4 * wide),
            sparse=tuple(range(self.num_hidden_layers)),
            experts_joined=False,
            gate_row=gate is not None and len(gate.shape) == 1,
        )


TINY_MOE = Qwen2MoeConfig(*TINY, 4, 2, 32, 48, False, (1,))


class Row(nn.Module):
    """A product with one vector, [..., D] to [..., 1]."""

    def __init__(self, size):
        self.weight = nn.Parameter(size)

    def forward(self, x):
        return (x * self.weight).sum(-1, keepdim=True)


class Qwen2MoE(nn.MoE):
    down_proj = nn.Identity()  # it is in the experts

    def __init__(self, config):
        super().__init__(
            config.hidden_size, config.moe_intermediate_size, config.num_experts, config.num_experts_per_tok,
            normalize=config.norm_topk_prob, shared_size=config.shared_expert_intermediate_size, shared_gate=True,
            joined=config.experts_joined,
        )  # fmt: skip
        if config.gate_row:
            self.shared_expert_gate = Row(config.hidden_size)


class Qwen2MoeDecoderLayer(Qwen2DecoderLayer):
    def __init__(self, config, layer):
        super().__init__(config, layer)
        if layer in config.sparse:
            self.mlp = Qwen2MoE(config)


class Qwen2MoeModel(Qwen2Model):
    Layer = Qwen2MoeDecoderLayer


class Qwen2MoeForCausalLM(Qwen2ForCausalLM):
    Model = Qwen2MoeModel
