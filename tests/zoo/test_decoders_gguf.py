"""Decoders through GGUF: transformers' weights under llama.cpp's names and metadata, read back by zoo.load."""

import numpy as np
import pytest

import tensorlib
from tensorlib.io import gguf
from tests.zoo import test_decoders as whole
from tests.zoo.decoders import CASES, SIZES
from zoo.engine import Engine
from zoo.generate import TextModel
from zoo.load import load_gguf

names = pytest.importorskip("gguf")

PERMUTED = (
    "llama",
    "granite",
    "granitehybrid",
    "granitemoe",
    "olmo",
    "smollm3",
)  # whose rows of q and k llama.cpp's converter moves next to their pairs
EPSILONS = {
    "starcoder2": "norm_epsilon",
    "phi2": "layer_norm_eps",
    "stablelm": "layer_norm_eps",
    "olmo": "none: it is fixed",
    "gpt2": "layer_norm_epsilon",
    "starcoder": "layer_norm_epsilon",
    "gptneox": "layer_norm_eps",
    "mpt": "layer_norm_epsilon",
    "falcon": "layer_norm_epsilon",
}  # of LayerNorm
RMS_EPSILONS = {"mamba": "layer_norm_epsilon", "mamba2": "layer_norm_epsilon", "lfm2": "norm_eps"}


def metadata(arch, config, head_dim):
    """llama.cpp's keys, as its converter writes them of a config."""
    c, rope = config, getattr(config, "rope_parameters", {"rope_type": "default", "rope_theta": 1e4})
    rope = rope.get("full_attention", rope)
    found = {
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "block_count": c.num_hidden_layers,
        "feed_forward_length": c.intermediate_size,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": c.num_key_value_heads,
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "rope.dimension_count": int(head_dim * rope.get("partial_rotary_factor", 1.0)),
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if arch in EPSILONS:
        found["attention.layer_norm_epsilon"] = getattr(c, EPSILONS[arch], 1e-5)
    elif arch in RMS_EPSILONS:
        found["attention.layer_norm_rms_epsilon"] = getattr(c, RMS_EPSILONS[arch])
    else:
        found["attention.layer_norm_rms_epsilon"] = c.rms_norm_eps
    if rope["rope_type"] in ("linear", "yarn"):
        found |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope["factor"]}
    if rope["rope_type"] in ("yarn", "longrope"):
        found["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if rope["rope_type"] == "longrope":
        original = rope["original_max_position_embeddings"]
        found["rope.scaling.attn_factor"] = float(np.sqrt(1 + np.log(rope["factor"]) / np.log(original)))
    same = {"sliding_window": "attention.sliding_window", "embedding_multiplier": "embedding_scale"}
    same |= {"attention_multiplier": "attention.scale", "residual_multiplier": "residual_scale"}
    same |= {"logits_scaling": "logit_scale", "attn_logit_softcapping": "attn_logit_softcapping"}
    same |= {"final_logit_softcapping": "final_logit_softcapping", "clip_qkv": "attention.clamp_kqv"}
    same |= {"use_parallel_residual": "use_parallel_residual", "num_experts_per_tok": "expert_used_count"}
    same |= {"num_local_experts": "expert_count", "num_experts": "expert_count"}
    same |= {"moe_intermediate_size": "expert_feed_forward_length"}
    same |= {"shared_expert_intermediate_size": "expert_shared_feed_forward_length"}
    found |= {key: getattr(c, name) for name, key in same.items() if getattr(c, name, None) is not None}
    if arch == "falcon":
        found["attention.head_count_kv"] = c.num_kv_heads if c.new_decoder_architecture else 1
    if arch == "mpt":
        found |= {"attention.max_alibi_bias": float(c.attn_config.alibi_bias_max)}
    if arch == "deepseek2":
        found |= latent_metadata(c, rope)
    if arch.startswith("mamba"):
        found |= {"feed_forward_length": 0, "attention.head_count": 0, **state_metadata(c)}
    if arch == "lfm2":
        heads = [0 if kind == "conv" else c.num_key_value_heads for kind in c.layer_types]
        found |= {"attention.head_count_kv": heads, "shortconv.l_cache": c.conv_L_cache}
    if arch == "granitehybrid":
        heads = [0 if kind == "linear_attention" else c.num_key_value_heads for kind in c.layer_types]
        found |= {"attention.head_count_kv": heads, "rope.scaling.finetuned": c.position_embedding_type == "rope"}
        found |= {"expert_shared_feed_forward_length": c.shared_intermediate_size, **state_metadata(c)}
        found["feed_forward_length"] = c.intermediate_size if c.num_local_experts else c.shared_intermediate_size
    return {"general.architecture": arch} | {f"{arch}.{key}": value for key, value in found.items()}


def latent_metadata(c, rope):
    """What DeepSeek's files have beside."""
    same = {"q_lora_rank": "attention.q_lora_rank", "kv_lora_rank": "attention.kv_lora_rank"}
    same |= {"first_k_dense_replace": "leading_dense_block_count", "v_head_dim": "attention.value_length_mla"}
    same |= {
        "n_shared_experts": "expert_shared_count",
        "n_routed_experts": "expert_count",
        "n_group": "expert_group_count",
    }
    same |= {"topk_group": "expert_group_used_count", "routed_scaling_factor": "expert_weights_scale"}
    found = {key: getattr(c, name) for name, key in same.items() if getattr(c, name) is not None}
    found |= {"attention.head_count_kv": 1, "rope.dimension_count": c.qk_rope_head_dim}
    found |= {"attention.key_length": c.kv_lora_rank + c.qk_rope_head_dim, "attention.value_length": c.kv_lora_rank}
    found["attention.key_length_mla"] = c.qk_nope_head_dim + c.qk_rope_head_dim
    if getattr(c, "old_file", False):
        found |= {"attention.key_length": found.pop("attention.key_length_mla")}
        found |= {"attention.value_length": found.pop("attention.value_length_mla")}
        found["attention.head_count_kv"] = c.num_attention_heads
    found["expert_weights_norm"] = bool(c.norm_topk_prob)
    found["expert_gating_func"] = 2 if c.model_type == "deepseek_v3" else 1
    if rope["rope_type"] == "yarn":
        found["rope.scaling.yarn_log_multiplier"] = 0.1 * rope["mscale_all_dim"]
    return found


def state_metadata(c):
    """What files of state spaces have beside."""
    if c.model_type in ("mamba", "falcon_mamba"):
        found = {"inner_size": c.intermediate_size, "time_step_rank": c.time_step_rank}
        found["dt_b_c_rms"] = c.model_type == "falcon_mamba"
    elif c.model_type == "granitemoehybrid":
        found = {"inner_size": c.mamba_expand * c.hidden_size, "time_step_rank": c.mamba_n_heads}
        found |= {"group_count": c.mamba_n_groups, "state_size": c.mamba_d_state, "conv_kernel": c.mamba_d_conv}
    else:
        found = {"inner_size": c.num_heads * c.head_dim, "time_step_rank": c.num_heads, "group_count": c.n_groups}
    if c.model_type != "granitemoehybrid":
        found |= {"state_size": c.state_size, "conv_kernel": c.conv_kernel}
    return {f"ssm.{key}": value for key, value in found.items()}


def state_part(name, weight, config):
    """A itself, weights of heads as columns and norms by groups, but in Mamba 1."""
    weight, groups = (
        -np.exp(weight) if name.endswith("A_log") else weight,
        getattr(config, "n_groups", getattr(config, "mamba_n_groups", None)),
    )
    if groups is None:
        return name, weight
    if name.endswith("norm.weight"):
        return name, weight.reshape(groups, -1)
    return name.replace("dt_bias", "dt_proj.bias"), weight[:, None] if name.endswith(("A_log", ".D")) else weight


def permuted(weight, heads):
    """Rows of every head from halves to neighbouring pairs."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def parts(name, weight, config):
    """The tensors that llama.cpp's converter makes of one: it takes gate from up and k from v, and turns GPT-2's."""
    if name.endswith("gate_up_proj") and "experts" in name:
        for part, value in zip(("gate_proj", "up_proj"), np.split(weight, 2, axis=1)):
            yield name.replace("gate_up_proj", part), value
    elif "kv_b_proj" in name and not getattr(config, "old_file", False):
        weight = weight.reshape(config.num_attention_heads, -1, weight.shape[1])
        k, v = np.split(weight, [config.qk_nope_head_dim], axis=1)
        yield name.replace("kv_b_proj", "k_b_proj"), k.swapaxes(1, 2)
        yield name.replace("kv_b_proj", "v_b_proj"), v
    elif ".shared_mlp." in name:
        block = name.replace("shared_mlp", "mlp.shared_expert" if config.num_local_experts else "mlp").rpartition(".")[
            0
        ]
        halves = np.split(weight, 2) if "input" in name else [weight]
        for part, value in zip(("gate", "up") if "input" in name else ("down",), halves):
            yield f"{block.rpartition('.')[0]}.{part}_proj", value
    elif config.model_type == "falcon" and "query_key_value" in name:
        groups = config.num_kv_heads if config.new_decoder_architecture else 1
        by_group = weight.reshape(groups, -1, config.head_dim, config.hidden_size)
        yield name, np.concatenate([x.reshape(-1, config.hidden_size) for x in np.split(by_group, [-2, -1], axis=1)])
    elif ".mixer." in name or ".mamba." in name:
        yield state_part(name, weight, config)
    elif config.model_type == "gpt2" and weight.ndim == 2 and ".h." in name:
        yield name, weight.T
    elif config.model_type == "gpt_neox" and "query_key_value" in name:
        yield (
            name,
            weight.reshape(config.num_attention_heads, 3, -1, *weight.shape[1:]).swapaxes(0, 1).reshape(weight.shape),
        )
    else:
        yield name, weight


def named(table, case, name):
    """llama.cpp's name. Stacks of experts have what its converter calls them."""
    name = f"{name.replace('block_sparse_moe', 'mlp')}.weight" if name.endswith("_proj") else case.name(name)
    name = name.replace("correction_bias", "correction.bias")
    return table.get_name(name, try_suffixes=(".weight", ".bias"))


def write(path, case, theirs):
    """The file that llama.cpp's converter would make."""
    arch, config = case.gguf, theirs.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kind = {name: key for key, name in names.MODEL_ARCH_NAMES.items()}[arch]
    table, tensors = names.get_tensor_name_map(kind, config.num_hidden_layers), {}
    for name, weight in theirs.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weight = weight.numpy()
        if arch in PERMUTED and ("q_proj" in name or "k_proj" in name):
            weight = permuted(weight, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        weight = weight + 1 if arch.startswith("gemma") and "norm" in name else weight
        for part, value in parts(name, weight.squeeze(), config):
            part = named(table, case, part)
            if "_exps" in part and case.model_type == "mixtral" and getattr(config, "old_file", False):
                tensors |= {part.replace("_exps", f".{e}"): x for e, x in enumerate(value)}
                continue
            tensors[part] = np.ascontiguousarray(value)
    rope = getattr(config, "rope_parameters", {})
    for which in ("long", "short"):
        if f"{which}_factor" in rope:
            tensors[f"rope_factors_{which}.weight"] = np.array(rope[f"{which}_factor"], np.float32)
    gguf.write(path, metadata(arch, config, head_dim), tensors)


@pytest.mark.parametrize("case", [case for case in CASES if case.gguf], ids=lambda case: case.id)
def test_gguf(case, tmp_path):
    """Logits are transformers': all tokens at once, then a step after them."""
    theirs = whole.torch_model(case)
    write(tmp_path / "model.gguf", case, theirs)
    _, ours = load_gguf(tmp_path / "model.gguf", case.context)
    cache, want = ours.new_cache(32, "f32"), whole.logits(theirs, [whole.IDS])[0]
    whole.close(ours(whole.tensor(whole.IDS[:12]), cache, last_only=False).numpy(), want[:12])
    whole.close(ours(whole.tensor(whole.IDS[12:]), cache, last_only=False).numpy(), want[12:])


@pytest.mark.parametrize("case", [case for case in CASES if case.gguf in ("qwen2moe", "deepseek2")], ids=lambda c: c.id)
def test_experts_in_blocks(case, tmp_path):
    """Logits are those of the same weights as floats, as far as activations in 8 bits allow, for all tokens but those
    that these send to other experts; recorded steps give what whole prompts do.
    """
    sizes = {"hidden_size": 64, "moe_intermediate_size": 64, "intermediate_size": 64, "kv_lora_rank": 32}
    case = case._replace(fields={**case.fields, **{k: v for k, v in sizes.items() if k in {*SIZES, *case.fields}}})
    theirs = whole.torch_model(case)
    paths = [tmp_path / f"{kind}.gguf" for kind in ("floats", "blocks")]
    write(paths[0], case, theirs)
    with gguf.open(paths[0]) as file:
        tensors = {name: file.tensor(name) for name in file.tensors}
        wide = {name for name, x in tensors.items() if x.ndim > 1 and x.shape[-1] % 32 == 0 and "gate_inp" not in name}
        assert {f"blk.1.ffn_{part}_exps.weight" for part in ("gate", "up", "down")} <= wide
        blocks = {name: tensorlib.quantize(x, "q8_0") if name in wide else x for name, x in tensors.items()}
        gguf.write(paths[1], dict(file.metadata), blocks)
        floats = {name: x.dequantize() if name in wide else x for name, x in blocks.items()}
        gguf.write(tmp_path / "same.gguf", dict(file.metadata), floats)
    exact, model = (TextModel(*load_gguf(path), cache_dtype="f32") for path in (tmp_path / "same.gguf", paths[1]))
    want, ids = exact.logits(whole.IDS), list(whole.IDS)
    errors = np.abs(model.logits(whole.IDS) - want).max(1) / np.abs(want).max()
    assert np.quantile(errors, 0.75) <= 0.05
    got = list(model.generate(whole.IDS, 8))
    one = model.model.new_cache(64, "f32")
    for _ in range(8):
        one.reset()
        ids.append(int(model.model(whole.tensor(ids), one).numpy()[-1].argmax()))
    assert got == ids[len(whole.IDS) :]


@pytest.mark.parametrize("name", ["qwen2_moe-everywhere", "deepseek_v3"])
def test_experts_as_other_converters_have_them(name, tmp_path):
    """A gate of the shared expert that is still a matrix; no word of the scores, but biases that only sigmoids have."""
    case = next(case for case in CASES if case.id == name)
    theirs = whole.torch_model(case)
    write(tmp_path / "a.gguf", case, theirs)
    with gguf.open(tmp_path / "a.gguf") as file:
        tensors = {name: file.tensor(name) for name in file.tensors}
        tensors |= {name: x.unsqueeze(0) for name, x in tensors.items() if "ffn_gate_inp_shexp" in name}
        rest = {key: value for key, value in dict(file.metadata).items() if not key.endswith("gating_func")}
        assert len(rest) < len(file.metadata) or any(x.shape[0] == 1 for x in tensors.values())
        gguf.write(tmp_path / "b.gguf", rest, tensors)
    ours = load_gguf(tmp_path / "b.gguf")[1]
    whole.close(ours(whole.tensor(whole.IDS)).numpy(), whole.logits(theirs, [whole.IDS])[0])


@pytest.mark.parametrize("name", ["gpt2", "mpt", "mixtral-everywhere", "qwen3_moe-everywhere"])
def test_streams_of_an_engine(name, tmp_path):
    """Positions that are learned or told to heads, and experts, are those of every stream in a batch."""
    case = next(case for case in CASES if case.id == name)
    write(tmp_path / "model.gguf", case, whole.torch_model(case))
    model = TextModel(*load_gguf(tmp_path / "model.gguf"), cache_dtype="f32")
    engine = Engine(model, 3, cache_dtype="f32")
    handles = [engine.submit(whole.IDS[: i + 3], 8) for i in range(4)]
    while engine.busy:
        engine.step()
    for i, handle in enumerate(handles):
        assert handle.ids == list(model.generate(whole.IDS[: i + 3], 8))
