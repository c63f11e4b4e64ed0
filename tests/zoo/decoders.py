"""The decoders of the zoo: a row per architecture with a tiny config, from which tests and the table are made."""

from typing import NamedTuple

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3["original_max_position_embeddings"] = 16
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def longrope(original):
    """LongRoPE of half of each head: short factors up to the original context, long ones beyond."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "factor": 4.0}
    rope |= {"short_factor": [1.0, 1.25], "long_factor": [1.5, 4.0], "original_max_position_embeddings": original}
    return {"rope_parameters": rope, "original_max_position_embeddings": original}


HALF = {"partial_rotary_factor": 0.5}
PARTIAL = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e3, "partial_rotary_factor": 0.5}}
GEMMA3 = {"layer_types": ["sliding_attention", "full_attention"]}
GEMMA3["rope_parameters"] = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
SIX = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 6}
SIX["rope_parameters"] = GEMMA3["rope_parameters"]
GRANITE = {"embedding_multiplier": 3.0, "attention_multiplier": 0.4, "residual_multiplier": 0.7, "logits_scaling": 5.0}


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
QWEN2_MOE = {**EXPERTS, "shared_expert_intermediate_size": 64, "use_sliding_window": False}
MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
BLOCK = {".mlp.": ".block_sparse_moe."}
GRANITE_BLOCK = {"router.": "router.layer.", "experts.gate_up_proj": "input_linear.weight"}
GRANITE_BLOCK["experts.down_proj"] = "output_linear.weight"


MLA = {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 10}
MLA |= {"n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 3, "moe_intermediate_size": 16}
MLA |= {"num_key_value_heads": 4, "first_k_dense_replace": 1, "routed_scaling_factor": 1.5}
GROUPS = {"n_group": 4, "topk_group": 2}
MSCALE = {"rope_parameters": {**YARN, "rope_theta": 1e4, "mscale": 0.707, "mscale_all_dim": 0.707}}


FALCON = {"ffn_hidden_size": 128, "intermediate_size": 128}  # llama.cpp's files have no other
GPT = {"n_inner": 48, "num_key_value_heads": 4}
WIDE = {"intermediate_size": 128, "num_key_value_heads": 4}  # MPT's own: four times the hidden size


def mpt(**fields):
    """MPT's tiny config; `fields` are those of its attention."""
    return {**WIDE, "attn_config": {"alibi": True, **fields}}


HEADS = {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 2, "chunk_size": 8, "layer_norm_epsilon": 1e-5}

LFM2 = {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3, "norm_eps": 1e-5}
LFM2 |= {"block_auto_adjust_ff_dim": False}
GRIFFIN = {"num_hidden_layers": 3, "num_key_value_heads": 1, "attention_window_size": 8}

HYBRID = {"layer_types": ["linear_attention", "full_attention", "linear_attention"], "num_hidden_layers": 3, **GRANITE}
HYBRID |= {"mamba_n_heads": 4, "mamba_d_state": 8, "mamba_n_groups": 2, "shared_intermediate_size": 40}
DENSE = {
    **HYBRID,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "position_embedding_type": "rope",
}
ALL = {**HYBRID, **MIXTRAL, "attention_bias": True, "position_embedding_type": "rope"}  # else no bias of k matters
ALL |= {"time_step_limit": [0.3, 0.9], "mamba_proj_bias": True, "tie_word_embeddings": True}


class Case(NamedTuple):
    """`model_type` of Hugging Face; what its config has beside SIZES; `variant` tells rows of one type apart.

    `context`: positions prepared for. `gguf`: the file's architecture, None where llama.cpp has none or it is not here.
    `live`: what names of transformers' parameters have, and what the files' and ours have there. `old_file`, a field:
    of llama.cpp's converter at first.
    """

    model_type: str
    fields: dict = {}
    variant: str = ""
    context: int | None = None
    gguf: str | None = None
    live: dict = {}

    def name(self, theirs):
        """Our name of a parameter of transformers'."""
        for old, new in self.live.items():
            theirs = theirs.replace(old, new)
        return theirs

    @property
    def id(self):
        return f"{self.model_type}-{self.variant}" if self.variant else self.model_type


CASES = [
    Case("llama", gguf="llama"),
    Case("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}, "biases"),
    Case(
        "llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}, "linear", gguf="llama"
    ),
    Case("llama", {"rope_parameters": {**LLAMA3, "rope_theta": 5e4}}, "llama3"),
    Case("llama", {"rope_parameters": {**YARN, "rope_theta": 1e4}, "head_dim": 16}, "yarn", gguf="llama"),
    Case("mistral", {"sliding_window": 8}),
    Case("mistral", {"sliding_window": None}, "everywhere", gguf="llama"),
    Case("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    Case("qwen2", {}, "everywhere", gguf="qwen2"),
    Case("qwen3", {"head_dim": 16}, gguf="qwen3"),
    Case("phi3", {"sliding_window": 8}, gguf="phi3"),
    Case("phi3", longrope(8), "longrope", gguf="phi3"),
    Case("phi3", longrope(32), "longrope-short", context=32),
    Case("gemma", {"head_dim": 16, "hidden_act": "gelu_pytorch_tanh"}, gguf="gemma"),
    Case("gemma2", {"head_dim": 16, "query_pre_attn_scalar": 12, "sliding_window": 8}),
    Case("gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}, "file", gguf="gemma2"),
    Case("gemma3_text", {"head_dim": 16, "query_pre_attn_scalar": 12, "sliding_window": 8, **GEMMA3}),
    Case("gemma3_text", SIX, "file", gguf="gemma3"),
    Case("granite", GRANITE, gguf="granite"),
    Case("smollm3", {"no_rope_layers": [1, 0], "use_sliding_window": True, "sliding_window": 8}),
    Case("smollm3", {"num_hidden_layers": 4}, "four", gguf="smollm3"),
    Case("olmo", {"clip_qkv": 1.0}, gguf="olmo"),
    Case("olmo2", gguf="olmo2"),
    Case("starcoder2", {"sliding_window": 8}, gguf="starcoder2"),
    Case("stablelm", {"use_qkv_bias": True, "qk_layernorm": True, "use_parallel_residual": True, **HALF}),
    Case("stablelm", {"hidden_size": 64}, "plain", gguf="stablelm"),
    Case("phi", {"num_key_value_heads": 4, **HALF}, gguf="phi2"),
    Case("phi", {"qk_layernorm": True}, "norms"),
    Case("persimmon", {"hidden_act": "relu2"}),
    Case("glm", {"attention_bias": True}),
    Case("glm", {"attention_bias": True, "head_dim": 8}, "file", gguf="chatglm"),
    Case("glm4", {"attention_bias": True}, gguf="glm4"),
    Case("helium", {"head_dim": 8}),
    Case("falcon", {"ffn_hidden_size": 48}),
    Case("falcon", FALCON, "7b", gguf="falcon"),
    Case("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}, "40b", gguf="falcon"),
    Case("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}, "groups"),
    Case("falcon", {"multi_query": False, "parallel_attn": False}, "sequential"),
    Case("falcon", {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}, "alibi"),
    Case("falcon", {"alibi": True, "new_decoder_architecture": True, "num_kv_heads": 2}, "alibi-groups"),
    Case("mixtral", {**MIXTRAL, "sliding_window": 8}, live=BLOCK),
    Case("mixtral", MIXTRAL, "everywhere", gguf="llama", live=BLOCK),
    Case("mixtral", {**MIXTRAL, "old_file": True}, "old-file", gguf="llama", live=BLOCK),
    Case("qwen2_moe", {**QWEN2_MOE, "mlp_only_layers": [0], "norm_topk_prob": True}),
    Case("qwen2_moe", QWEN2_MOE, "everywhere", gguf="qwen2moe"),
    Case("qwen3_moe", {**EXPERTS, "head_dim": 16, "decoder_sparse_step": 2}),
    Case("qwen3_moe", {**EXPERTS, "head_dim": 16, "norm_topk_prob": True}, "everywhere", gguf="qwen3moe"),
    Case("granitemoe", {**MIXTRAL, **GRANITE}, gguf="granitemoe", live=GRANITE_BLOCK),
    Case("deepseek_v2", {**MLA, "q_lora_rank": None, "topk_method": "greedy", "attention_bias": True}),
    Case("deepseek_v2", {**MLA, **GROUPS, **MSCALE, "topk_method": "group_limited_greedy"}, "groups", gguf="deepseek2"),
    Case("deepseek_v3", {**MLA, **GROUPS, "norm_topk_prob": True}, gguf="deepseek2"),
    Case("deepseek_v2", {**MLA, "topk_method": "greedy", "old_file": True}, "old-file", gguf="deepseek2"),
    Case("deepseek_v3", {**MLA, "n_group": 1, "topk_group": 1, "rope_interleave": False, **MSCALE}, "halves"),
    Case("gpt2", GPT, gguf="gpt2"),
    Case("gpt_bigcode", {**GPT, "num_key_value_heads": 1}, gguf="starcoder"),
    Case("gpt_bigcode", {**GPT, "multi_query": False}, "heads"),
    Case("gpt_neox", {"num_key_value_heads": 4}, gguf="gptneox", live={"lm_head": "embed_out"}),
    Case(
        "gpt_neox",
        {"num_key_value_heads": 4, "use_parallel_residual": False, **PARTIAL},
        "sequential",
        live={"lm_head": "embed_out"},
    ),
    Case("mpt", mpt(), gguf="mpt"),
    Case("mpt", {**mpt(clip_qkv=1.0, softmax_scale=0.3), "n_heads": 2, "num_attention_heads": 2}, "clipped"),
    Case("mpt", {**mpt(), "d_model": 48, "hidden_size": 48, "num_attention_heads": 6, "n_heads": 6}, "six-heads"),
    Case("mamba", {"state_size": 8, "intermediate_size": 64}, gguf="mamba"),
    Case("mamba", {"use_bias": True, "use_conv_bias": False, "time_step_rank": 3, "conv_kernel": 3}, "biases"),
    Case("falcon_mamba", {"state_size": 8, "intermediate_size": 64, "tie_word_embeddings": False}, gguf="mamba"),
    Case("mamba2", HEADS, gguf="mamba2"),
    Case("mamba2", {**HEADS, "n_groups": 1, "time_step_limit": [0.3, 0.9], "use_bias": True}, "limits"),
    Case("lfm2", LFM2, gguf="lfm2"),
    Case(
        "lfm2",
        {"full_attn_idxs": [0], "conv_bias": True, "block_multiple_of": 20, "conv_L_cache": 4, "norm_eps": 1e-6},
        "biases",
    ),
    Case("recurrent_gemma", GRIFFIN),
    Case("recurrent_gemma", {**GRIFFIN, "lru_width": 48, "block_types": ["attention", "recurrent"]}, "wide"),
    Case("granitemoehybrid", {**HYBRID, **MIXTRAL}, gguf="granitehybrid", live=GRANITE_BLOCK),
    Case("granitemoehybrid", DENSE, "dense", gguf="granitehybrid", live=GRANITE_BLOCK),
    Case("granitemoehybrid", ALL, "limits", live=GRANITE_BLOCK),
]
