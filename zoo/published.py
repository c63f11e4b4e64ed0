"""What files of other programs, or of other times, call what is here: fields of a config.json, names of weights."""

import re

from zoo import config

# model_type of a model of text and images -> what its text's config, below `text_config`, has where it says nothing
NESTED = {
    "gemma3": {
        "model_type": "gemma3_text", "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "max_position_embeddings": 131072, "sliding_window": 4096,
    },
}  # fmt: skip
BESIDE = "language_model.", "model.language_model."  # where such a model's file has what is of text
# what a name ends with in files of other programs, or of other times -> parts of paths, and what stands there
OLD = {
    ".LayerNorm.gamma": {".LayerNorm.weight": ".LayerNorm.gamma", ".LayerNorm.bias": ".LayerNorm.beta"},
    ".ln1.weight": {".input_layernorm.": ".ln1.", ".post_attention_layernorm.": ".ln2."},
    "backbone.embedding.weight": {"backbone.embeddings.": "backbone.embedding."},
    "gte.embeddings.word_embeddings.weight": {"new.": "gte."},
}


def read(folder):
    """The fields of a folder's config.json (zoo/config.py); of the text's part, where there are others. FormatError."""
    fields = config.read(folder)
    if "model_type" not in fields and "ssm_cfg" in fields:
        return _of_mamba(fields)
    defaults = NESTED.get(fields("model_type", str))
    if defaults is None:
        return fields
    text = fields.sub("text_config")
    return config.Fields(defaults | {name: x for name, x in text.values.items() if x is not None}, text.path)


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
    }
    if second:
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
