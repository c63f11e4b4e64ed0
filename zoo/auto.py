"""Models by what their files call themselves: `model_type` of a config.json, `general.architecture` of a GGUF file."""

import importlib

import tensorlib
from tensorlib.errors import FormatError
from tensorlib.nn import VarBuilder
from zoo import heads, published

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


# class of a row -> what the name of another class of its module ends with
MORE = {"T5EncoderModel": "ForConditionalGeneration"}


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
    to, with `dequantize` those in blocks, too; `changes`: of the config's fields. `head`: a class, "BertModel" or
    "BertForMaskedLM", in place of that which `architectures` says, which is the encoder alone where it is none of those
    here. FormatError for a damaged file, an unknown architecture, or weights that are not the model's.
    """
    fields = published.read(folder)
    kind, made = classes(type_of(fields), fields.path, "model_type")
    values = made.from_hf(fields)
    values = values._replace(**changes) if changes else values
    if context is not None and hasattr(values, "max_position_embeddings"):
        values = values._replace(max_position_embeddings=min(context, values.max_position_embeddings))
    file, model = tensorlib.load(folder), chosen(kind, fields, head)(values)
    source = VarBuilder(file, *published.names(file.tensors, model), device, dtype, dequantize)
    published.no_bias_left(source, model, file.path)
    return file, source.load(model)
