"""Mixtral (arXiv:2401.04088): Mistral whose MLP is a mixture of experts (section 2.1): each token goes through the 2 of
8 that a router gives the largest softmax, weighed by that.
"""

from tensorlib import nn
from zoo import llama


class MixtralConfig(llama.LlamaConfig.plus(num_local_experts=8, num_experts_per_tok=2, experts_joined=True)):
    """`experts_joined`: gate and up are one matrix; they are two in GGUF."""

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        c.only("hidden_act", str, "silu")
        many = {name: c(name, int) for name in ("num_local_experts", "num_experts_per_tok")}
        return super().from_hf(c)._replace(windows=c.windows(), **many)

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        many, chosen = get("expert_count", int), get("expert_used_count", int)
        return self._replace(num_local_experts=many, num_experts_per_tok=chosen, experts_joined=False)


TINY = MixtralConfig(*llama.TINY, 4, 2)._replace(windows=(8, 8))


class MixtralMoE(nn.MoE):
    down_proj = nn.Identity()  # it is in the experts

    def __init__(self, config):
        super().__init__(
            config.hidden_size,
            config.intermediate_size,
            config.num_local_experts,
            config.num_experts_per_tok,
            joined=config.experts_joined,
            expert_names=("w1", "w3", "w2"),
        )


class MixtralDecoderLayer(llama.LlamaDecoderLayer):
    MLP, mlp = MixtralMoE, property(lambda self: self.block_sparse_moe)

    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.block_sparse_moe = vars(self).pop("mlp")


class MixtralModel(llama.LlamaModel):
    Layer = MixtralDecoderLayer


class MixtralForCausalLM(llama.LlamaForCausalLM):
    Model = MixtralModel
