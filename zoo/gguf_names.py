"""Names of weights: Hugging Face's, which the models have, and GGUF's."""

import re

# Hugging Face's parameter paths -> GGUF's (equal to the gguf package's own name map, which takes 150 ms to import: a
# test)
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_up_proj": "ffn_up",
    "self_attn.dense": "attn_output",
    "model.final_layernorm": "output_norm",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "post_self_attn_layernorm": "post_attention_norm",
    "post_mlp_layernorm": "post_ffw_norm",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "block_sparse_moe.router.layer": "ffn_gate_inp",
    "block_sparse_moe.gate_linear": "ffn_gate_exps",
    "block_sparse_moe.up_linear": "ffn_up_exps",
    "block_sparse_moe.output_linear": "ffn_down_exps",
    "mlp.gate": "ffn_gate_inp",
    "mlp.gate.e_score_correction_bias": "exp_probs_b",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.k_b_proj": "attn_k_b",
    "self_attn.kv_b_proj": "attn_kv_b",
    "self_attn.v_b_proj": "attn_v_b",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "gpt_neox.embed_in": "token_embd",
    "gpt_neox.final_layer_norm": "output_norm",
    "embed_out": "output",
    "transformer.wte": "token_embd",
    "transformer.word_embeddings": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "transformer.norm_f": "output_norm",
    "transformer.embedding.word_embeddings": "token_embd",
    "transformer.encoder.final_layernorm": "output_norm",
    "transformer.output_layer": "output",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "attention.query_key_value": "attn_qkv",
    "attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
    "ln_mlp": "attn_norm",
    "ln_attn": "attn_norm_2",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "norm_1": "attn_norm",
    "norm_2": "ffn_norm",
    "attn.Wqkv": "attn_qkv",
    "attn.out_proj": "attn_output",
    "ffn.up_proj": "ffn_up",
    "ffn.down_proj": "ffn_down",
    "backbone.embeddings": "token_embd",
    "backbone.norm_f": "output_norm",
    "norm": "attn_norm",
    "model.embedding_norm": "token_embd_norm",
    "conv.conv": "shortconv.conv",
    "conv.in_proj": "shortconv.in_proj",
    "conv.out_proj": "shortconv.out_proj",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
    "operator_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "self_attn.out_proj": "attn_output",
    "self_attn.q_layernorm": "attn_q_norm",
    "self_attn.k_layernorm": "attn_k_norm",
}
RWKV = """
rwkv.embeddings:token_embd rwkv.ln_out:output_norm head:output pre_ln:token_embd_norm ln1:attn_norm ln2:attn_norm_2
attention.time_maa_x:time_mix_lerp_x attention.time_maa_wkvrg:time_mix_lerp_fused attention.time_maa_w1:time_mix_w1
attention.time_maa_w2:time_mix_w2 attention.time_faaaa:time_mix_first attention.time_decay:time_mix_decay
attention.time_decay_w1:time_mix_decay_w1 attention.time_decay_w2:time_mix_decay_w2 attention.ln_x:time_mix_ln
attention.key:time_mix_key attention.value:time_mix_value attention.receptance:time_mix_receptance
attention.gate:time_mix_gate attention.output:time_mix_output feed_forward.time_maa_k:channel_mix_lerp_k
feed_forward.time_maa_r:channel_mix_lerp_r feed_forward.key:channel_mix_key feed_forward.value:channel_mix_value
feed_forward.receptance:channel_mix_receptance
model.embeddings:token_embd pre_norm:token_embd_norm attn_norm:attn_norm attn.x_x:time_mix_lerp_fused
attn.k_k:time_mix_k_k attn.k_a:time_mix_k_a attn.r_k:time_mix_r_k attn.r_proj:time_mix_receptance
attn.k_proj:time_mix_key attn.v_proj:time_mix_value attn.o_proj:time_mix_output attn.g_norm:time_mix_ln
ffn.x_k:channel_mix_lerp_k ffn.key:channel_mix_key ffn.value:channel_mix_value
"""
GGUF_NAMES |= dict(pair.split(":") for pair in RWKV.split())
GGUF_NAMES |= {f"attn.{x}_lora.lora.{i}": f"time_mix_{x}{i // 2 + 1}" for x in "wavg" for i in (0, 2)}
LOW_RANK = re.compile(r"attn\.([wav])_lora\.lora\.2\.bias")  # a weight of its own: time_mix_w0
MIXER = "in_proj:in conv1d:conv1d x_proj:x dt_proj:dt dt_bias:dt A:a D:d norm:norm out_proj:out"
GGUF_NAMES |= {
    f"{block}.{ours}": f"ssm_{theirs}"
    for block in ("mixer", "mamba")
    for ours, theirs in (pair.split(":") for pair in MIXER.split())
}
GGUF_NAMES |= {f"shared_mlp.{part}_proj": f"ffn_{part}_shexp" for part in ("gate", "up", "down")}
GGUF_NAMES |= {
    f"{block}.{experts}.{part}_proj": f"ffn_{part}_{name}"
    for block in ("mlp", "block_sparse_moe")
    for experts, name in (("experts", "exps"), ("shared_expert", "shexp"), ("shared_experts", "shexp"))
    for part in ("gate", "up", "down")
}
BEHIND = ("gemma2", "gemma3", "olmo2")  # whose post_attention_layernorm stands behind attention, as its name says
_EXPERT = re.compile(r"block_sparse_moe\.experts\.(\d+)\.(w[123])")  # Mixtral's first files had them one by one
_PARTS = {"w1": "gate", "w2": "down", "w3": "up"}
OUTSIDE = ("token_embd_norm",)  # of the first layer, and in none of GGUF's
BARE = ("ssm_a", "ssm_d")  # without ".weight"
_LAYER = re.compile(
    r"(?:model|backbone|rwkv|gpt_neox|transformer|transformer\.encoder)\.(?:layers|h|blocks)\.(\d+)\.(.+)"
)


def gguf_name(path, arch="llama"):
    """GGUF's name of a parameter, or None if it has none.

    >>> gguf_name("model.layers.3.self_attn.q_proj.weight"), gguf_name("lm_head.weight")
    ('blk.3.attn_q.weight', 'output.weight')
    """
    stem, _, kind = path.rpartition(".")
    if kind not in ("weight", "bias"):
        stem, kind = path, "bias" if kind.endswith("_bias") else "weight"
    layer = _LAYER.fullmatch(stem)
    name, expert = GGUF_NAMES.get(layer[2] if layer else stem), layer and _EXPERT.fullmatch(layer[2])
    if expert:
        name = f"ffn_{_PARTS[expert[2]]}.{expert[1]}"
    if name == "ffn_norm" and arch in BEHIND and layer[2] == "post_attention_layernorm":
        name = "post_attention_norm"
    if name == "ffn_norm" and arch == "rwkv7":
        name = "attn_norm_2"
    if name in BARE:
        return f"blk.{layer[1]}.{name}"
    if layer and (low := LOW_RANK.fullmatch(f"{layer[2]}.{kind}")):
        return f"blk.{layer[1]}.time_mix_{low[1]}0.weight"
    layer = None if name in OUTSIDE else layer
    return name and (f"blk.{layer[1]}.{name}.{kind}" if layer else f"{name}.{kind}")
