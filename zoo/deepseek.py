"""DeepSeek-V2 and V3 (arXiv:2405.04434, 2412.19437): Llama whose keys and values are made of one small vector per token
(multi-head latent attention, section 2.1 of the first), which alone is cached, and whose MLPs above the first layers
are mixtures of many small experts and of some for all tokens (section 2.2). V3 judges experts by sigmoids and a bias
that balances their load (section 2.1.2 of the second).

Shapes as in zoo/llama.py, and: R latent, S its dims that turn, N dims of a head's q and k that do not, U of its v.
"""

from math import log

import tensorlib
from tensorlib import nn
from zoo import llama


class DeepseekConfig(
    llama.LlamaConfig.plus(
        q_lora_rank=None, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
        first_k_dense_replace=0, n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6,
        moe_intermediate_size=1408, routed_scaling_factor=1.0, norm_topk_prob=False, sigmoid=False, groups=None,
        split=False, kv_split=False,
    )
):  # fmt: skip
    """`sigmoid`: V3's scoring. `groups`: what nn.MoE takes. `split`: gate and up of experts are apart; `kv_split`: so
    are what makes k and v of latents: as GGUF has them (the second not in old files).
    """

    @classmethod
    def from_hf(cls, c, sigmoid=False):
        """Out of the fields of a config.json (zoo/config.py)."""
        c.only("hidden_act", str, "silu")
        c.only("moe_layer_freq", int, 1)
        c.only("mlp_bias", bool, False)
        c.only("scoring_func", str, "sigmoid" if sigmoid else "softmax")
        names = "kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim n_routed_experts n_shared_experts"
        sizes = {name: c(name, int) for name in (*names.split(), "num_experts_per_tok", "moe_intermediate_size")}
        if not sigmoid:
            c.only("norm_topk_prob", bool, False)
        methods = {"noaux_tc": True} if sigmoid else {"greedy": False, "gready": False, "group_limited_greedy": True}
        grouped = c.one_of("topk_method", methods, next(iter(methods)))
        if (
            grouped
            and c("topk_group", int) * sizes["n_routed_experts"] < c("n_group", int) * sizes["num_experts_per_tok"]
        ):
            c.refuse("topk_group", "groups of as many experts as are chosen")
        return (
            super()
            .from_hf(c)
            ._replace(
                **sizes,
                head_dim=sizes["qk_rope_head_dim"],
                q_lora_rank=c("q_lora_rank", int, None),
                first_k_dense_replace=c("first_k_dense_replace", int, 0),
                routed_scaling_factor=c("routed_scaling_factor", float, 1.0),
                norm_topk_prob=sigmoid and c("norm_topk_prob", bool, True),
                rope_interleaved=c("rope_interleave", bool, True),
                groups=(c("n_group", int), c("topk_group", int), 1 + sigmoid) if grouped else None,
                sigmoid=sigmoid,
            )
        )

    def with_gguf(self, get, file):
        """What a GGUF file has beside Llama's fields."""
        turned, groups = get("rope.dimension_count", int), get("expert_group_count", int, 0)
        biased = any("exp_probs_b" in name for name in file.tensors)  # files that do not say it are of sigmoids then
        sigmoid, scaling = (get("expert_gating_func", int, 0) or 1 + biased) == 2, dict(self.rope_scaling or {})
        kv_split = "blk.0.attn_k_b.weight" in file.tensors
        of = "_mla" if kv_split else ""  # what has no such end is the length of latents in these files
        scaling.pop("partial_rotary_factor", None)  # it is of the latents
        if scaling:
            all_dims = get("rope.scaling.yarn_log_multiplier", float, 0.0) / 0.1
            scaling |= {"mscale": all_dims, "mscale_all_dim": all_dims}
        return self._replace(
            rope_scaling=scaling or None,
            rope_interleaved=True,
            q_lora_rank=get("attention.q_lora_rank", int, 0) or None,
            kv_lora_rank=get("attention.kv_lora_rank", int),
            qk_nope_head_dim=get(f"attention.key_length{of}", int) - turned,
            qk_rope_head_dim=turned,
            v_head_dim=get(f"attention.value_length{of}", int),
            first_k_dense_replace=get("leading_dense_block_count", int, 0),
            n_routed_experts=get("expert_count", int),
            n_shared_experts=get("expert_shared_count", int),
            num_experts_per_tok=get("expert_used_count", int),
            moe_intermediate_size=get("expert_feed_forward_length", int),
            routed_scaling_factor=get("expert_weights_scale", float, 1.0),
            norm_topk_prob=get("expert_weights_norm", bool, False),
            sigmoid=sigmoid,
            groups=(groups, get("expert_group_used_count", int), 1 + sigmoid) if groups > 1 else None,
            split=True,
            kv_split=kv_split,
        )


class DeepseekV3Config(DeepseekConfig):
    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        return super().from_hf(c, sigmoid=True)


TINY = DeepseekConfig(*llama.TINY, 24, 32, 16, 8, 12, 1, 4, 2, 2, 16)._replace(rope_interleaved=True)
TINY_V3 = DeepseekV3Config(*TINY)._replace(norm_topk_prob=True, sigmoid=True, groups=(2, 1, 2))


class DeepseekAttention(nn.Module):
    """Queries meet latents: what makes keys of these is applied to queries, what makes values to results. Without a
    cache, as in training, keys and values are made, since they are smaller.
    """

    def __init__(self, config, layer):
        c, D, H, self._layer = config, config.hidden_size, config.num_attention_heads, layer
        self._heads, R, S, N, U = H, c.kv_lora_rank, c.qk_rope_head_dim, c.qk_nope_head_dim, c.v_head_dim
        self._q, self._kv, self._latent, self._split, bias = (N, S), (N, U), (R, S), c.kv_split, c.attention_bias
        if c.q_lora_rank is None:
            self.q_proj = nn.Linear(D, H * (N + S), bias=False)
        else:
            self.q_a_proj = nn.Linear(D, c.q_lora_rank, bias)
            self.q_a_layernorm = nn.RMSNorm(c.q_lora_rank, 1e-6)
            self.q_b_proj = nn.Linear(c.q_lora_rank, H * (N + S), bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(D, R + S, bias)
        self.kv_a_layernorm = nn.RMSNorm(R, 1e-6)
        made = {"init": nn.init.fan_uniform(R), "dense": True}
        if c.kv_split:
            self.k_b_proj, self.v_b_proj = nn.Parameter(H, R, N, **made), nn.Parameter(H, U, R, **made)
        else:
            self.kv_b_proj = nn.Linear(R, H * (N + U), bias=False)
            self.kv_b_proj.weight = nn.Parameter(H * (N + U), R, **made)
        self.o_proj = nn.Linear(H * U, D, bias)
        self._scale = (N + S) ** -0.5
        scaling = c.rope_scaling or {}
        if scaling.get("mscale_all_dim") and scaling["factor"] > 1:
            self._scale *= (0.1 * scaling["mscale_all_dim"] * log(scaling["factor"]) + 1) ** 2

    def up(self):
        """What makes keys [H, N, R] and values [H, U, R] of latents."""
        if self._split:
            return self.k_b_proj.transpose(1, 2), self.v_b_proj
        return self.kv_b_proj.weight.unflatten(0, (self._heads, -1)).split(self._kv, 1)

    def forward(self, x_TD, cache, rotary):
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_TD))) if hasattr(self, "q_a_proj") else self.q_proj(x_TD)
        q_THN, q_THS = q.unflatten(-1, (self._heads, -1)).split(self._q, -1)
        c_TR, k_TS = self.kv_a_proj_with_mqa(x_TD).split(self._latent, -1)
        c_TR, (k_HNR, v_HUR) = self.kv_a_layernorm(c_TR), self.up()
        if isinstance(cache, (nn.LatentCache, nn.BatchLatentCache)):
            q_THR = (q_THN.transpose(0, 1) @ k_HNR).transpose(0, 1)
            q, latents = tensorlib.cat([q_THS, q_THR], -1), tensorlib.cat([k_TS, c_TR], -1)
            o_THR = cache.attend(self._layer, q, latents, rotary, self._scale)
            return (o_THR.transpose(0, 1) @ v_HUR.transpose(1, 2)).transpose(0, 1).flatten(-2)
        k_THN, v_THU = ((c_TR.unsqueeze(-3) @ w.transpose(1, 2)).transpose(-3, -2) for w in (k_HNR, v_HUR))
        k_THS, width = k_TS.unsqueeze(-2).expand(*q_THS.shape), sum(self._q)
        q, k = (tensorlib.cat(pair, -1).flatten(-2) for pair in ((q_THS, q_THN), (k_THS, k_THN)))
        v = tensorlib.pad(v_THU, (0, width - v_THU.shape[-1])).flatten(-2)
        o = cache.attend(self._layer, q, k, v, rotary, scale=self._scale).unflatten(-1, (self._heads, width))
        return o.narrow(-1, 0, v_THU.shape[-1]).flatten(-2)


class DeepseekMoE(nn.MoE):
    down_proj, least = nn.Identity(), 1e-20
    shared_expert = property(lambda self: self.shared_experts)
    correction_bias = property(lambda self: getattr(self.gate, "e_score_correction_bias", None))

    def __init__(self, config):
        super().__init__(
            config.hidden_size, config.moe_intermediate_size, config.n_routed_experts, config.num_experts_per_tok,
            scoring="sigmoid" if config.sigmoid else "softmax", normalize=config.norm_topk_prob,
            scale=config.routed_scaling_factor, groups=config.groups, joined=not config.split,
            shared_size=config.moe_intermediate_size * config.n_shared_experts,
        )  # fmt: skip
        self.shared_experts = vars(self).pop("shared_expert")
        if config.sigmoid:
            self.gate.e_score_correction_bias = nn.Buffer(config.n_routed_experts)


class DeepseekDecoderLayer(llama.LlamaDecoderLayer):
    Attention = DeepseekAttention

    def __init__(self, config, layer):
        super().__init__(config, layer)
        if layer >= config.first_k_dense_replace:
            self.mlp = DeepseekMoE(config)


class DeepseekModel(llama.LlamaModel):
    Layer = DeepseekDecoderLayer


class DeepseekForCausalLM(llama.LlamaForCausalLM):
    Model = DeepseekModel

    def __init__(self, config):
        super().__init__(config._replace(head_dim=config.qk_rope_head_dim))  # what turns
        self.config = config._replace(head_dim=config.qk_nope_head_dim + config.qk_rope_head_dim)

    def new_cache(self, max_len, dtype="f16", **options):
        """An empty cache for `max_len` tokens."""
        c = self.config
        return nn.LatentCache(c.num_hidden_layers, max_len, c.kv_lora_rank + c.qk_rope_head_dim, dtype, **options)
