"""Files as they are published, where those differ from what `transformers` writes today: logits are its own."""

import json

import numpy as np
import pytest

import tensorlib
from tests.quant import checkpoints
from tests.zoo.decoders import CASES, SIZES
from tests.zoo.test_decoders import IDS, close, logits, randomise, tensor
from zoo import auto
from zoo.published import read

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")


def saved(folder, model_type, fields, cls=transformers.AutoModelForCausalLM):
    """transformers' model in a folder: (its config.json, its tensors)."""
    config = transformers.AutoConfig.for_model(model_type, **{**SIZES, **fields})
    theirs = cls.from_config(config, attn_implementation="eager").float().eval()
    randomise(theirs)
    theirs.save_pretrained(folder)
    return theirs, json.loads((folder / "config.json").read_text()), safetensors.load_file(folder / "model.safetensors")


def published(folder, fields, tensors, shards=1):
    """A folder with these fields and tensors; with several shards, an index of them."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    names, files = list(tensors), {}
    for i in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{i + 1:05}-of-{shards:05}.safetensors"
        files |= dict.fromkeys(names[i::shards], file)
        safetensors.save_file({name: tensors[name].contiguous() for name in names[i::shards]}, folder / file)
    if shards > 1:
        index = {"metadata": {"total_size": 0}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def same(theirs, ours):
    """Logits of a prompt, and of steps behind it."""
    cache = ours.new_cache(32, "f32")
    found = [ours(tensor(IDS[:9]), cache, last_only=False).numpy().copy()]
    found += [ours(tensor([i]), cache).numpy().copy() for i in IDS[9:]]
    close(np.concatenate(found), logits(theirs, [IDS])[0])


def masked(theirs, ours):
    """Logits of an encoder's words."""
    with torch.no_grad():
        want = theirs(torch.tensor([IDS])).logits.numpy()
    with tensorlib.no_grad():
        close(ours(tensor([IDS])).numpy(), want)


# ---- float8 ----------------------------------------------------------------------------------------------------------


def float8(tensors, kept, side=128):
    """(with every matrix but `kept` as float8 and scales of its tiles, the same as what those are)."""
    made, dense = {}, {}
    for name, x in tensors.items():
        made[name] = dense[name] = x
        if x.ndim != 2 or any(part in name for part in kept):
            continue
        n, k = x.shape
        tiles = -(-n // side), -(-k // side)
        scale = np.zeros(tiles, np.float32)
        for i in range(tiles[0]):
            for j in range(tiles[1]):
                scale[i, j] = x[i * side : (i + 1) * side, j * side : (j + 1) * side].abs().max().item() / 448
        each = np.repeat(np.repeat(scale, side, 0)[:n], side, 1)[:, :k]
        codes = checkpoints.to_e4m3(x.numpy() / each)
        made[name] = torch.tensor(codes).view(torch.float8_e4m3fn)
        made[f"{name}_scale_inv"] = torch.tensor(scale)
        dense[name] = torch.tensor(checkpoints.e4m3(codes) * each)
    return made, dense


V3 = {"hidden_size": 160, "q_lora_rank": 64, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 24}
V3 |= {"v_head_dim": 16, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 3, "n_group": 4}
V3 |= {"topk_group": 2, "moe_intermediate_size": 32, "intermediate_size": 96, "first_k_dense_replace": 1}
V3 |= {"num_key_value_heads": 4, "routed_scaling_factor": 2.5, "norm_topk_prob": True}
YARN = {"type": "yarn", "factor": 4, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}
YARN["original_max_position_embeddings"] = 16
V3_FIELDS = {
    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1, "num_nextn_predict_layers": 1,
    "ep_size": 1, "aux_loss_alpha": 0.001, "seq_aux": True, "rope_theta": 10000, "rope_scaling": YARN,
    "quantization_config": {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]
    },
}  # fmt: skip


def test_deepseek_v3(tmp_path):
    """Float8 in tiles of 128 x 128, shards, a layer that predicts one token more, which is left out."""
    rope = {"rope_parameters": {**YARN, "rope_type": "yarn", "rope_theta": 1e4}}
    _, fields, tensors = saved(tmp_path / "a", "deepseek_v3", {**V3, **rope})
    fields.pop("rope_parameters")
    made, dense = float8(tensors, ("embed_tokens", "lm_head", "norm", "gate.weight"))
    assert "model.layers.1.mlp.experts.7.down_proj.weight_scale_inv" in made
    theirs = transformers.AutoModelForCausalLM.from_pretrained(published(tmp_path / "b", fields | rope, dense))
    names = [name for name in made if name.startswith("model.layers.1.")]
    made |= {name.replace("layers.1.", "layers.2."): made[name] for name in names}
    made |= {f"model.layers.2.{name}.weight": torch.ones(160) for name in ("enorm", "hnorm", "shared_head.norm")}
    made["model.layers.2.eh_proj.weight"] = torch.ones(160, 320)
    folder = published(tmp_path / "c", {**fields, **V3_FIELDS}, made, shards=3)
    ours = auto.load(folder)[1]
    assert ours.model.layers[1].self_attn.o_proj.weight.format.name == "f8_32"
    same(theirs.eval(), ours)
    dense = auto.load(folder, dequantize=True, dtype="f32")[1]
    assert dense.model.layers[1].self_attn.o_proj.weight.dtype.name == "f32"
    same(theirs, dense)


@pytest.mark.parametrize("method", ["fp8", "compressed-tensors"])
def test_float8_by_rows(method, tmp_path):
    """vLLM's: a scale for each row of a matrix, or one for it all and one for what it is multiplied by."""
    _, fields, tensors = saved(tmp_path / "a", "llama", {"intermediate_size": 64})
    made, dense = dict(tensors), dict(tensors)
    for name, x in tensors.items():
        if not name.endswith("proj.weight"):
            continue
        peak = x.abs().amax(1, keepdim=True) if method == "compressed-tensors" else x.abs().max()
        scale = (peak / 448).to(torch.bfloat16).float()
        codes = checkpoints.to_e4m3((x / scale).numpy())
        made[name], made[f"{name}_scale"] = torch.tensor(codes).view(torch.float8_e4m3fn), scale.to(torch.bfloat16)
        dense[name] = torch.tensor(checkpoints.e4m3(codes)) * scale
        if method == "fp8":
            made[name.replace("weight", "input_scale")] = torch.tensor(1.0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(published(tmp_path / "b", fields, dense))
    fields["quantization_config"] = {"quant_method": method, "format": "float-quantized", "ignore": ["lm_head"]}
    same(theirs.eval(), auto.load(published(tmp_path / "c", fields, made))[1])


# ---- configs ---------------------------------------------------------------------------------------------------------

ROPES = ("llama-linear", "llama-llama3", "llama-yarn", "phi3-longrope", "phi-norms", "glm", "qwen2-everywhere")
ROPES += ("gemma3_text-file", "persimmon", "stablelm", "deepseek_v2-groups")


@pytest.mark.parametrize("case", [case for case in CASES if case.id in ROPES], ids=lambda case: case.id)
def test_rotary_positions_as_configs_had_them(case, tmp_path):
    """Before transformers 5: `rope_theta`, `rope_scaling` with a `type`, and what else stood beside them."""
    theirs, fields, tensors = saved(tmp_path / "a", case.model_type, case.fields)
    rope = fields.pop("rope_parameters")
    if "full_attention" in rope:
        fields["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    kind = rope.pop("rope_type")
    for name in ("rope_theta", "partial_rotary_factor"):
        fields |= {name: rope.pop(name)} if name in rope else {}
    fields["rope_scaling"] = {"type": "su" if kind == "longrope" else kind, **rope} if kind != "default" else None
    assert fields["rope_theta"]
    same(theirs, auto.load(published(tmp_path / "b", fields, tensors))[1])


def test_modernbert_as_it_was_published(tmp_path):
    """Which layers see everything, and the two bases of rotary positions, in fields of their own."""
    options = {"num_hidden_layers": 4, "local_attention": 8, "global_attn_every_n_layers": 3}
    theirs, fields, tensors = saved(tmp_path / "a", "modernbert", options, transformers.AutoModelForMaskedLM)
    rope, kinds = fields.pop("rope_parameters"), fields.pop("layer_types")
    assert kinds == ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    thetas = {
        name: rope[f"{kind}_attention"]["rope_theta"] for name, kind in (("global", "full"), ("local", "sliding"))
    }
    assert thetas["global"] != thetas["local"]
    fields |= {"global_attn_every_n_layers": 3} | {f"{name}_rope_theta": theta for name, theta in thetas.items()}
    masked(theirs, auto.load(published(tmp_path / "b", fields, tensors))[1])


# ---- names -----------------------------------------------------------------------------------------------------------

# model_type -> (what files of it have beside its weights, a shape for each)
BUFFERS = {
    "llama": {"model.layers.0.self_attn.rotary_emb.inv_freq": (4,)},
    "gpt2": {"h.0.attn.bias": (1, 1, 64, 64), "h.0.attn.masked_bias": ()},
    "gpt_neox": {
        "gpt_neox.layers.0.attention.bias": (1, 1, 64, 64),
        "gpt_neox.layers.0.attention.masked_bias": (),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": (4,),
    },
}


@pytest.mark.parametrize("model_type", BUFFERS)
def test_buffers_of_old_files(model_type, tmp_path):
    theirs, fields, tensors = saved(tmp_path / "a", model_type, {"num_key_value_heads": 4})
    if model_type == "gpt2":
        tensors = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    tensors |= {name: torch.ones(shape) for name, shape in BUFFERS[model_type].items()}
    same(theirs, auto.load(published(tmp_path / "b", fields, tensors, shards=2))[1])


@pytest.mark.parametrize("there", [True, False])
def test_tied_tables(there, tmp_path):
    """An output layer that is the table of words may stand in the file again."""
    theirs, fields, tensors = saved(tmp_path / "a", "qwen2", {"tie_word_embeddings": True})
    assert "lm_head.weight" not in tensors
    tensors |= {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()} if there else {}
    same(theirs, auto.load(published(tmp_path / "b", fields, tensors))[1])


PHI = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_inner": 48, "n_positions": 64, "rotary_dim": 4, "vocab_size": 60}
PHI |= {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "pad_vocab_size_multiple": 99}
# model_type -> names of the table of words, of a block's number, of what is behind the blocks
FIRST = {
    "mixformer-sequential": ("layers.0.wte", lambda i: f"layers.{i + 1}", "layers.3"),
    "phi-msft": ("transformer.embd.wte", lambda i: f"transformer.h.{i}", "lm_head"),
}


@pytest.mark.parametrize("model_type", FIRST)
def test_first_files_of_phi(model_type, tmp_path):
    """q, k, v are one matrix; there are more words than the config says."""
    fields = {"num_key_value_heads": 4, "layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5}
    theirs, _, tensors = saved(tmp_path / "a", "phi", fields)
    words, block, last = FIRST[model_type]
    made = {f"{words}.weight": tensors.pop("model.embed_tokens.weight")}
    for kind in ("weight", "bias"):
        made[f"{last}.ln.{kind}"] = tensors.pop(f"model.final_layernorm.{kind}")
        made[f"{last}.linear.{kind}"] = tensors.pop(f"lm_head.{kind}")
        for i in range(2):
            at = f"model.layers.{i}"
            parts = [tensors.pop(f"{at}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            made[f"{block(i)}.mixer.Wqkv.{kind}"] = torch.cat(parts)
            made[f"{block(i)}.mixer.out_proj.{kind}"] = tensors.pop(f"{at}.self_attn.dense.{kind}")
            made[f"{block(i)}.ln.{kind}"] = tensors.pop(f"{at}.input_layernorm.{kind}")
            for part in ("fc1", "fc2"):
                made[f"{block(i)}.mlp.{part}.{kind}"] = tensors.pop(f"{at}.mlp.{part}.{kind}")
    assert not tensors
    same(theirs, auto.load(published(tmp_path / "b", {**PHI, "model_type": model_type}, made))[1])


# transformers' config and what state-spaces' own says of the same
OWN = {
    "mamba": ({"state_size": 16, "intermediate_size": 64}, {"ssm_cfg": {}}),
    "mamba biases": (
        {"state_size": 16, "intermediate_size": 64, "time_step_rank": 3, "use_bias": True, "use_conv_bias": False},
        {"ssm_cfg": {"dt_rank": 3, "bias": True, "conv_bias": False}},
    ),
    "mamba2": (
        {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1, "tie_word_embeddings": True},
        {"ssm_cfg": {"layer": "Mamba2", "d_state": 8, "headdim": 16}, "attn_layer_idx": [], "attn_cfg": {}},
    ),
    "mamba2 limits": (
        {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 2, "tie_word_embeddings": True}
        | {"time_step_limit": [0.3, 0.9]},
        {"ssm_cfg": {"layer": "Mamba2", "d_state": 8, "headdim": 16, "ngroups": 2, "dt_limit": [0.3, 0.9]}},
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_mamba_of_its_own_program(name, tmp_path):
    """No model_type, fields of other names, a table of words padded to a multiple of 8."""
    fields, own = OWN[name]
    theirs, _, tensors = saved(
        tmp_path / "a", name.split()[0], {"vocab_size": 104, "layer_norm_epsilon": 1e-5, **fields}
    )
    made = {name.replace("backbone.embeddings", "backbone.embedding"): x for name, x in tensors.items()}
    made["lm_head.weight"] = made["backbone.embedding.weight"].clone()
    config = {"d_model": 32, "n_layer": 2, "vocab_size": 99, "rms_norm": True, "residual_in_fp32": True, **own}
    same(theirs, auto.load(published(tmp_path / "b", config, made))[1])


def test_first_files_of_yi(tmp_path):
    theirs, fields, tensors = saved(tmp_path / "a", "llama", {})
    names = {"input_layernorm": "ln1", "post_attention_layernorm": "ln2"}
    for name, old in names.items():
        tensors = {key.replace(name, old): x for key, x in tensors.items()}
    same(theirs, auto.load(published(tmp_path / "b", fields | {"model_type": "Yi"}, tensors))[1])


TEXT = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 6}
# what published files of Gemma 3 say of the text, all else being the defaults; transformers' names of the same
SAID = {"hidden_size": 32, "intermediate_size": 48, "model_type": "gemma3_text", "num_hidden_layers": 6}
SAID |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 8}
ELSE = ("vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim", "query_pre_attn_scalar")


@pytest.mark.parametrize("before", ["language_model.", "model.language_model."])
def test_gemma3_with_images(before, tmp_path):
    """The text's part of a model that sees, too, under either of the names that files have it."""
    theirs, fields, tensors = saved(tmp_path / "a", "gemma3_text", TEXT | {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        }
    })  # fmt: skip
    text = SAID | {name: fields[name] for name in ELSE} | {"max_position_embeddings": 64}
    config = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    config |= {"vision_config": {"model_type": "siglip_vision_model", "hidden_size": 16}, "mm_tokens_per_image": 4}
    if before == "language_model.":
        made = {before + name: x for name, x in tensors.items()}
    else:
        made = {before + name.removeprefix("model."): x for name, x in tensors.items()}
    made["vision_tower.vision_model.embeddings.position_embedding.weight"] = torch.ones(4, 16)
    made["multi_modal_projector.mm_soft_emb_norm.weight"] = torch.ones(16)
    same(theirs, auto.load(published(tmp_path / "b", config, made))[1])


def test_what_gemma3_leaves_unsaid(tmp_path):
    """The 4B model's config as it is published."""
    text = {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34}
    text |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}))
    fields = read(tmp_path)
    found = auto.classes(auto.type_of(fields), "", "")[1].from_hf(fields)
    want = transformers.Gemma3Config(text_config=text).text_config
    for name in found._fields:
        if name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                    "num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings",
                    "query_pre_attn_scalar", "tie_word_embeddings"):  # fmt: skip
            assert getattr(found, name) == getattr(want, name), name
    assert found.windows == tuple(1024 * (kind == "sliding_attention") for kind in want.layer_types)
    assert found.rope_theta == want.rope_parameters["full_attention"]["rope_theta"] == 1e6
    assert found.rope_scaling["factor"] == 8.0 and found.rope_local_base_freq == 1e4


def test_bert_of_gamma_and_beta(tmp_path):
    """The first files of BERT, under TensorFlow's names of norms."""
    fields = {"intermediate_size": 48, "type_vocab_size": 2}
    theirs, config, tensors = saved(tmp_path / "a", "bert", fields, transformers.AutoModelForMaskedLM)
    old = {".LayerNorm.weight": ".LayerNorm.gamma", ".LayerNorm.bias": ".LayerNorm.beta"}
    for new, name in old.items():
        tensors = {key.replace(new, name): x for key, x in tensors.items()}
    assert sum(key.endswith("gamma") for key in tensors) == 6
    tensors["bert.embeddings.position_ids"] = torch.arange(64)[None]
    masked(theirs, auto.load(published(tmp_path / "b", config, tensors))[1])
