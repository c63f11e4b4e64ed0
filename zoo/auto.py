"""Models by what their files call themselves: `model_type` of a config.json, `general.architecture` of a GGUF file."""

import importlib
import os
import re

import tensorlib
from tensorlib.errors import FormatError
from tensorlib.nn import VarBuilder
from zoo import config, heads

# Hugging Face's model_type -> (module of this package, class of the model, class of its config)
MODELS = {
    "based": ("based", "BasedForCausalLM", "BasedConfig"),
    "bert": ("bert", "BertModel", "BertConfig"),
    "deberta-v2": ("deberta_v2", "DebertaV2Model", "DebertaV2Config"),
    "distilbert": ("distilbert", "DistilBertModel", "DistilBertConfig"),
    "gte": ("gte", "GteModel", "GteConfig"),
    "new": ("gte", "GteModel", "GteConfig"),
    "jina_bert": ("jina_bert", "JinaBertModel", "JinaBertConfig"),
    "mt5": ("t5", "T5EncoderModel", "T5Config"),
    "marian": ("marian", "MarianMTModel", "MarianConfig"),
    "modernbert": ("modernbert", "ModernBertModel", "ModernBertConfig"),
    "nomic_bert": ("nomic_bert", "NomicBertModel", "NomicBertConfig"),
    "nvembed": ("nv_embed", "NVEmbedModel", "NVEmbedConfig"),
    "roberta": ("roberta", "RobertaModel", "RobertaConfig"),
    "t5": ("t5", "T5EncoderModel", "T5Config"),
    "xlm-roberta": ("roberta", "RobertaModel", "RobertaConfig"),
    "Yi": ("llama", "LlamaForCausalLM", "LlamaConfig"),
    "llama": ("llama", "LlamaForCausalLM", "LlamaConfig"),
    "mistral": ("mistral", "MistralForCausalLM", "MistralConfig"),
    "mixtral": ("mixtral", "MixtralForCausalLM", "MixtralConfig"),
    "qwen2_moe": ("qwen2", "Qwen2MoeForCausalLM", "Qwen2MoeConfig"),
    "qwen3_moe": ("qwen3", "Qwen3MoeForCausalLM", "Qwen3MoeConfig"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM", "Qwen2Config"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", "Qwen3Config"),
    "phi3": ("phi3", "Phi3ForCausalLM", "Phi3Config"),
    "chatglm": ("chatglm", "ChatGlmForConditionalGeneration", "ChatGlmConfig"),
    "deepseek_v2": ("deepseek", "DeepseekForCausalLM", "DeepseekConfig"),
    "deepseek_v3": ("deepseek", "DeepseekForCausalLM", "DeepseekV3Config"),
    "gemma": ("gemma", "GemmaForCausalLM", "GemmaConfig"),
    "gemma2": ("gemma", "Gemma2ForCausalLM", "Gemma2Config"),
    "gemma3_text": ("gemma", "Gemma3ForCausalLM", "Gemma3Config"),
    "gpt2": ("gpt2", "Gpt2LMHeadModel", "Gpt2Config"),
    "gpt_bigcode": ("gpt2", "GptBigCodeForCausalLM", "GptBigCodeConfig"),
    "gpt_neox": ("gpt_neox", "GptNeoxForCausalLM", "GptNeoxConfig"),
    "lfm2": ("lfm2", "Lfm2ForCausalLM", "Lfm2Config"),
    "recurrent_gemma": ("recurrent_gemma", "RecurrentGemmaForCausalLM", "RecurrentGemmaConfig"),
    "mamba": ("mamba", "MambaForCausalLM", "MambaConfig"),
    "mamba2": ("mamba", "Mamba2ForCausalLM", "Mamba2Config"),
    "mpt": ("mpt", "MptForCausalLM", "MptConfig"),
    "granite": ("granite", "GraniteForCausalLM", "GraniteConfig"),
    "granitemoe": ("granite", "GraniteMoeForCausalLM", "GraniteMoeConfig"),
    "granitemoehybrid": ("granite_hybrid", "GraniteHybridForCausalLM", "GraniteHybridConfig"),
    "rwkv5": ("rwkv", "RwkvForCausalLM", "Rwkv5Config"),
    "rwkv6": ("rwkv", "RwkvForCausalLM", "Rwkv6Config"),
    "rwkv7": ("rwkv7", "Rwkv7ForCausalLM", "Rwkv7Config"),
    "smollm3": ("smollm3", "SmolLM3ForCausalLM", "SmolLM3Config"),
    "olmo": ("olmo", "OlmoForCausalLM", "OlmoConfig"),
    "olmo2": ("olmo2", "Olmo2ForCausalLM", "Olmo2Config"),
    "starcoder2": ("starcoder2", "Starcoder2ForCausalLM", "Starcoder2Config"),
    "stablelm": ("stablelm", "StableLmForCausalLM", "StableLmConfig"),
    "phi": ("phi", "PhiForCausalLM", "PhiConfig"),
    "phi-msft": ("phi", "MixformerForCausalLM", "MixformerConfig"),
    "mixformer-sequential": ("phi", "MixformerForCausalLM", "MixformerConfig"),
    "persimmon": ("persimmon", "PersimmonForCausalLM", "PersimmonConfig"),
    "glm": ("glm", "GlmForCausalLM", "GlmConfig"),
    "glm4": ("glm", "Glm4ForCausalLM", "GlmConfig"),
    "helium": ("helium", "HeliumForCausalLM", "HeliumConfig"),
    "falcon": ("falcon", "FalconForCausalLM", "FalconConfig"),
    "falcon_mamba": ("mamba", "MambaForCausalLM", "MambaConfig"),
}


# model_type of a model of text and images -> what its text's config, below `text_config`, has where it says nothing
NESTED = {
    "gemma3": {
        "model_type": "gemma3_text", "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "max_position_embeddings": 131072, "sliding_window": 4096,
    },
}  # fmt: skip
# class of a row -> what the name of another class of its module ends with
MORE = {"T5EncoderModel": "ForConditionalGeneration"}
BESIDE = "language_model.", "model.language_model."  # where such a model's file has what is of text
# what a name ends with in files of other programs, or of other times -> parts of paths, and what stands there
OLD = {
    ".LayerNorm.gamma": {".LayerNorm.weight": ".LayerNorm.gamma", ".LayerNorm.bias": ".LayerNorm.beta"},
    ".ln1.weight": {".input_layernorm.": ".ln1.", ".post_attention_layernorm.": ".ln2."},
    "backbone.embedding.weight": {"backbone.embeddings.": "backbone.embedding."},
    "gte.embeddings.word_embeddings.weight": {"new.": "gte."},
}


def type_of(fields):
    """The row of MODELS for a config: its `model_type`, unless that is another model's name."""
    found = fields("model_type", str)
    if found == "gpt2" and "alt_mixer" in fields:
        return "based"
    alibi = found == "bert" and fields("position_embedding_type", str, "absolute") == "alibi"
    return "jina_bert" if alibi else found


def classes(model_type, path, where):
    """(class of the model, class of its config) of a row. FormatError that lists the known, for none."""
    if model_type not in MODELS:
        known = ", ".join(sorted(MODELS))
        raise FormatError(path, where, repr(model_type), f"one of {known}", "this architecture is not here yet")
    module, model, made = MODELS[model_type]
    module = importlib.import_module(f"zoo.{module}")
    return getattr(module, model), getattr(module, made)


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


def chosen(model, fields, head=None):
    """f(values of the config) that makes what a folder is of: `model`, the class of its row, or what has it as a part.

    `head` names it, or else the config's `architectures` do.
    """
    name = head or next(iter(fields("architectures", list, [])), None)
    more = MORE.get(model.__name__)
    if more is not None and str(name).endswith(more):
        return getattr(importlib.import_module(model.__module__), model.__name__.replace("EncoderModel", more))
    found = heads.named(model, name)
    return model if found is None else lambda values: heads.made(*found, model, values, fields)


def load(folder, context=None, device="cpu", dtype=None, head=None, dequantize=False, **changes):
    """(file of weights, model) of a folder as Hugging Face has them: config.json and safetensors, or PyTorch's files.

    `context`: how many positions the model is prepared for, at most its own; `dtype`: what weights of floats are cast
    to, with `dequantize` those in blocks, too (float8 takes less memory on CPUs in bf16 than as it is); `changes`: of
    the config's fields. `head`: a class, "BertModel" or "BertForMaskedLM", in place of that which `architectures` says,
    which is the encoder alone where it is none of those here. FormatError for a damaged file, an unknown architecture,
    or weights that are not the model's.
    """
    fields = read(folder)
    kind, made = classes(type_of(fields), fields.path, "model_type")
    values = made.from_hf(fields)
    values = values._replace(**changes) if changes else values
    if context is not None and hasattr(values, "max_position_embeddings"):
        values = values._replace(max_position_embeddings=min(context, values.max_position_embeddings))
    file, model = tensorlib.load(folder), chosen(kind, fields, head)(values)
    return file, VarBuilder(file, *_names(file.tensors, model), device, dtype, dequantize).load(model)


def _names(tensors, model):
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


def is_folder(path):
    """Whether a path is a model's folder."""
    return os.path.isdir(path)
