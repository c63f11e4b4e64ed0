"""Granite 4 (IBM, 2025; GraniteMoeHybrid): Granite, with its four multipliers, most of whose layers have Mamba 2's
state space (arXiv:2405.21060) in place of attention, which needs no positions then; experts, if any, beside an MLP for
all.

Shapes: T tokens, D hidden, F feed-forward, V vocabulary; Q: as in llama.py.
"""

from tensorlib import nn
from zoo import llama

MULTIPLIERS = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
SIZES = {"mamba_n_heads": 128, "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_conv": 4}


class GraniteHybridConfig(
    llama.LlamaConfig.plus(
        embedding_multiplier=1.0, attention_multiplier=1.0, residual_multiplier=1.0, logits_scaling=1.0,
        num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=64, attends=(), rope=False,
        converted=False, mamba_n_heads=4, mamba_d_head=32, mamba_d_state=16, mamba_n_groups=1, mamba_d_conv=4,
        mamba_conv_bias=True, mamba_proj_bias=False, time_step_limit=(0.0, float("inf")),
    )
):  # fmt: skip
    """`attends`: whether a layer has attention. `converted`: gate and up are apart, and weights of state spaces as
    llama.cpp has them. No experts: the MLP for all is alone.
    """

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        c.only("hidden_act", str, "silu")
        layers, found = c("num_hidden_layers", int), super().from_hf(c)
        sizes = {name: c(name, int, default) for name, default in SIZES.items()}
        kinds, width = c("layer_types", list, ["mamba"] * layers), c.values.get("mamba_d_head", "auto")
        inner = c("mamba_expand", int, 2) * found.hidden_size
        return found._replace(
            **{name: c(name, float, 1.0) for name in MULTIPLIERS},
            **sizes,
            num_local_experts=c("num_local_experts", int, 8),
            num_experts_per_tok=c("num_experts_per_tok", int, 2),
            shared_intermediate_size=c("shared_intermediate_size", int, 1024),
            attends=tuple(kind not in ("mamba", "linear_attention") for kind in kinds),
            rope=c("position_embedding_type", str, "none") == "rope",
            mamba_d_head=inner // sizes["mamba_n_heads"] if width == "auto" else c("mamba_d_head", int),
            mamba_conv_bias=c("mamba_conv_bias", bool, True),
            mamba_proj_bias=c("mamba_proj_bias", bool, False),
            time_step_limit=c.floats("time_step_limit", (0.0, float("inf"))),
        )

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        experts, heads, kv_heads = (
            get("expert_count", int, 0),
            get("ssm.time_step_rank", int),
            "attention.head_count_kv",
        )
        shared = file.tensors["blk.0.ffn_gate_shexp.weight" if experts else "blk.0.ffn_gate.weight"].shape[0]
        attends = tuple(n > 0 for n in get(kv_heads, list))
        first = f"blk.{attends.index(False) if False in attends else 0}"
        return self._replace(
            embedding_multiplier=get("embedding_scale", float, 1.0),
            attention_multiplier=get("attention.scale", float, self.head_dim**-0.5),
            residual_multiplier=get("residual_scale", float, 1.0),
            logits_scaling=get("logit_scale", float, 1.0),
            num_local_experts=experts,
            num_experts_per_tok=get("expert_used_count", int, 0),
            shared_intermediate_size=shared,
            attends=attends,
            rope=get("rope.scaling.finetuned", bool, False),
            attention_bias=any(name.endswith("attn_q.bias") for name in file.tensors),
            mamba_n_heads=heads,
            mamba_d_head=get("ssm.inner_size", int) // heads,
            mamba_d_state=get("ssm.state_size", int),
            mamba_n_groups=get("ssm.group_count", int, 1),
            mamba_d_conv=get("ssm.conv_kernel", int),
            mamba_conv_bias=f"{first}.ssm_conv1d.bias" in file.tensors,
            mamba_proj_bias=f"{first}.ssm_in.bias" in file.tensors,
            converted=True,
        )


TINY = GraniteHybridConfig(*llama.TINY, 12.0, 0.25, 0.22, 8.0)._replace(attends=(False, True))


class GraniteMamba(nn.Mamba2Mixer):
    def __init__(self, config, layer):
        sizes = config.hidden_size, config.mamba_n_heads, config.mamba_d_head, config.mamba_d_state
        bias, limits, self._layer = (config.mamba_proj_bias, config.mamba_conv_bias), config.time_step_limit, layer
        super().__init__(
            *sizes, config.mamba_n_groups, config.mamba_d_conv, *bias, config.rms_norm_eps, limits, config.converted
        )

    def forward(self, x_TD, cache, rotary):
        return super().forward(x_TD, cache, self._layer)


class GraniteAttention(llama.LlamaAttention):
    def __init__(self, config, layer):
        super().__init__(config, layer, scale=config.attention_multiplier)

    def forward(self, x_TD, cache, rotary):
        return self.o_proj(super().forward(x_TD, cache, rotary))


class SharedMLP(nn.Module):
    def __init__(self, config):
        D, F, self._joined = config.hidden_size, config.shared_intermediate_size, not config.converted
        if self._joined:
            self.input_linear, self.output_linear = nn.Linear(D, 2 * F, bias=False), nn.Linear(F, D, bias=False)
        else:
            self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(*n, False) for n in ((D, F), (D, F), (F, D)))

    def forward(self, x_TD):
        if self._joined:
            return self.output_linear(nn.swiglu(*self.input_linear(x_TD).chunk(2, -1)))
        return self.down_proj(nn.swiglu_linear(x_TD, self.gate_proj, self.up_proj))


class GraniteHybridLayer(nn.Module):
    def __init__(self, config, layer):
        D, eps, experts = config.hidden_size, config.rms_norm_eps, config.num_local_experts
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(D, eps), nn.RMSNorm(D, eps)
        self._mixer, kind = [("mamba", GraniteMamba), ("self_attn", GraniteAttention)][config.attends[layer]]
        self._shared, self._times = (
            "shared_mlp" if experts or not config.converted else "mlp",
            config.residual_multiplier,
        )
        setattr(self, self._mixer, kind(config, layer))
        setattr(self, self._shared, SharedMLP(config))
        if experts:
            F, k, joined = config.intermediate_size, config.num_experts_per_tok, not config.converted
            self.block_sparse_moe = nn.StackedMoE(D, F, experts, k, joined)

    @property
    def mixer(self):
        """The state space or the attention."""
        return getattr(self, self._mixer)

    def forward(self, x_TD, cache, rotary):
        x_TD = x_TD + self.mixer(self.input_layernorm(x_TD), cache, rotary) * self._times
        h_TD = self.post_attention_layernorm(x_TD)
        y_TD = getattr(self, self._shared)(h_TD)
        if "block_sparse_moe" in vars(self):
            y_TD = y_TD + self.block_sparse_moe(h_TD)
        return x_TD + y_TD * self._times


class GraniteHybridModel(nn.Module):
    def __init__(self, config):
        self.embed_tokens, self._times = (
            nn.Embedding(config.vocab_size, config.hidden_size),
            config.embedding_multiplier,
        )
        self.layers = nn.ModuleList([GraniteHybridLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, ids_T, cache, rotary):
        x_TD = self.embed_tokens(ids_T) * self._times
        for layer in self.layers:
            x_TD = layer(x_TD, cache, rotary)
        return self.norm(x_TD)


class GraniteHybridForCausalLM(llama.LlamaForCausalLM):
    Model = GraniteHybridModel

    def new_rotary(self, theta, scaling=None):
        """None, unless there is no state space that knows the order of tokens."""
        return super().new_rotary(theta, scaling) if self.config.rope else None

    def new_cache(self, max_len, dtype="f16", device=None):
        """An empty cache for `max_len` tokens; states are f32 whatever `dtype` is."""
        c = self.config
        states = {i: layer.mixer.state_shapes for i, layer in enumerate(self.model.layers) if not c.attends[i]}
        attention = [i for i in range(c.num_hidden_layers) if c.attends[i]]
        return nn.StateCache(states, max_len, attention, c.num_key_value_heads, c.head_dim, dtype, device)

    def logits(self, h_TD):
        """Scores [..., V] of what follows."""
        return super().logits(h_TD) / self.config.logits_scaling
