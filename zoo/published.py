"""What files of other programs, or of other times, call what is here: fields of a config.json, names of weights."""

import re

from tensorlib.errors import FormatError
from zoo import config

# model_type of a model of text and images -> what its text's config, below `text_config`, has where it says nothing
NESTED = {
    "gemma3": {
        "model_type": "gemma3_text", "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "max_position_embeddings": 131072, "sliding_window": 4096,
    },
}  # fmt: skip
# model_type -> what transformers takes for fields that a config does not have, where that is not what is usual here
MISSING = {
    "gemma": {"head_dim": 256, "max_position_embeddings": 8192},
    "gemma2": {
        "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192, "sliding_window": 4096,
        "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
    },
    "gemma3_text": {
        "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072, "sliding_window": 4096,
    },
    "gte": {"type_vocab_size": 1},
    "new": {"type_vocab_size": 1},
    "deberta-v2": {"relative_attention": False},
    "deepseek_v2": {"q_lora_rank": 1536},
    "deepseek_v3": {
        "routed_scaling_factor": 2.5, "q_lora_rank": 1536, "first_k_dense_replace": 3, "max_position_embeddings": 4096,
    },
    "glm": {
        "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 131072, "rms_norm_eps": 1.5625e-07,
        "attention_bias": True,
    },
    "helium": {"head_dim": 128, "max_position_embeddings": 4096, "rope_theta": 1e5},
    "lfm2": {"num_key_value_heads": 8},
    "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    "mixtral": {
        "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
        "num_local_experts": 8, "num_experts_per_tok": 2,
    },
    "mt5": {"feed_forward_proj": "gated-gelu"},
    "olmo2": {"rms_norm_eps": 1e-5},
    "persimmon": {"max_position_embeddings": 16384},
    "phi3": {"original_max_position_embeddings": 4096, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    "qwen2": {"max_position_embeddings": 32768},
    "qwen2_moe": {"max_position_embeddings": 32768},
    "qwen3": {"head_dim": 128, "max_position_embeddings": 32768},
    "qwen3_moe": {"num_key_value_heads": 4, "max_position_embeddings": 32768},
    "smollm3": {"num_key_value_heads": 4, "max_position_embeddings": 32768, "tie_word_embeddings": True},
    "stablelm": {"max_position_embeddings": 4096},
    "starcoder2": {"num_key_value_heads": 2, "max_position_embeddings": 4096},
}  # fmt: skip
MISSING["glm4"] = MISSING["glm"]
BESIDE = "language_model.", "model.language_model."  # where such a model's file has what is of text
# what a name ends with in files of other programs, or of other times -> parts of paths, and what stands there
OLD = {
    ".LayerNorm.gamma": {".LayerNorm.weight": ".LayerNorm.gamma", ".LayerNorm.bias": ".LayerNorm.beta"},
    ".ln1.weight": {".input_layernorm.": ".ln1.", ".post_attention_layernorm.": ".ln2."},
    "backbone.embedding.weight": {"backbone.embeddings.": "backbone.embedding."},
    "gte.embeddings.word_embeddings.weight": {"new.": "gte."},
}


def read(folder):
    """The fields of a folder's config.json (zoo/config.py), as `whole` makes them. FormatError."""
    return whole(config.read(folder))


def whole(fields):
    """The fields of a text's part, where there are others; with those that transformers adds to them."""
    if "model_type" not in fields and "ssm_cfg" in fields:
        return _of_mamba(fields)
    kind = fields("model_type", str)
    if kind in NESTED:
        text = fields.sub("text_config")
        return config.Fields(NESTED[kind] | {name: x for name, x in text.values.items() if x is not None}, text.path)
    return config.Fields(MISSING.get(kind, {}) | fields.values, fields.path)


def _of_mamba(fields):
    """The fields of a config.json of state-spaces' own programs as transformers has them."""
    for name, kind, value in (("attn_layer_idx", list, []), ("d_intermediate", int, 0), ("rms_norm", bool, True)):
        fields.only(name, kind, value)
    inside, hidden, words = fields.sub("ssm_cfg"), fields("d_model", int), fields("vocab_size", int)
    second, inner = inside("layer", str, "Mamba1") == "Mamba2", inside("expand", int, 2) * hidden
    found = {
        "model_type": "mamba2" if second else "mamba",
        "vocab_size": words + -words % fields("pad_vocab_size_multiple", int, 8),
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": fields("n_layer", int),
        "state_size": inside("d_state", int, 128 if second else 16),
        "conv_kernel": inside("d_conv", int, 4),
        "tie_word_embeddings": fields("tie_embeddings", bool, True),
        "use_bias": inside("bias", bool, False),
        "use_conv_bias": inside("conv_bias", bool, True),
        "time_step_rank": inside.values.get("dt_rank"),
        "time_step_limit": inside.values.get("dt_limit"),
    }
    if second:
        for name, value in (("D_has_hdim", False), ("rmsnorm", True), ("norm_before_gate", False)):
            inside.only(name, bool, value)
        width = inside("headdim", int, 64)
        found |= {"head_dim": width, "num_heads": inner // width, "n_groups": inside("ngroups", int, 1)}
    return config.Fields(found, fields.path)


def names(tensors, model):
    """(rename, prefix) of a VarBuilder for a file whose names begin with more, or with less, than a model's paths, or
    are others: the model's `names` tells them all, its `spare` ({path: names}) those where a path is not there.
    """
    if hasattr(model, "names"):
        return model.names(tensors), ""
    if any(path not in tensors for path in getattr(model, "spare", ())):
        return {
            path: next((name for name in names if name in tensors), path) for path, names in model.spare.items()
        }, ""
    body, prefixes = f"{getattr(model, 'body', '')}.", getattr(model, "prefix", None) or ()
    prefixes = (prefixes,) if isinstance(prefixes, str) else prefixes

    def begins(text):
        return any(name.startswith(text) for name in tensors)

    beside = next((text for text in BESIDE if begins(text)), None)
    if beside == BESIDE[0]:
        return None, beside
    if beside is not None:
        return lambda path: beside + path.removeprefix(body) if path.startswith(body) else path, ""
    if body != "." and not begins(body):  # of a decoder whose file may have no head, and not this then
        return lambda path: path.removeprefix(body), ""
    found = next((parts for end, parts in OLD.items() if any(name.endswith(end) for name in tensors)), {})
    rename = [(re.escape(part), old) for part, old in found.items()]
    # of an encoder whose file has a head, too
    return rename or None, next((f"{name}." for name in prefixes if begins(f"{name}.")), "")


def no_bias_left(source, model, path):
    """FormatError for a bias in a file (a VarBuilder) that the model has no place for, though it has its weight."""
    paths = dict(model.named_parameters())
    for name in paths:
        bias = f"{name.removesuffix('.weight')}.bias"
        if name.endswith(".weight") and bias not in paths and bias in source:
            raise FormatError(path, bias, "a bias", "none", "does the config say that there is one?")
