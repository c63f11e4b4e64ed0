"""From a file to a model: metadata to config, config to architecture, weights by name."""

import importlib

from tensorlib.errors import FormatError
from tensorlib.io import gguf
from tensorlib.nn import VarBuilder
from zoo import published
from zoo.gguf_names import gguf_name

# general.architecture of GGUF -> (module of this package, class of the model, class of its config)
ARCHITECTURES = {
    "chatglm": ("chatglm", "ChatGlmForConditionalGeneration", "ChatGlmConfig"),
    "deepseek2": ("deepseek", "DeepseekForCausalLM", "DeepseekConfig"),
    "falcon": ("falcon", "FalconForCausalLM", "FalconConfig"),
    "gemma": ("gemma", "GemmaForCausalLM", "GemmaConfig"),
    "gemma2": ("gemma", "Gemma2ForCausalLM", "Gemma2Config"),
    "gemma3": ("gemma", "Gemma3ForCausalLM", "Gemma3Config"),
    "glm4": ("glm", "Glm4ForCausalLM", "GlmConfig"),
    "gpt2": ("gpt2", "Gpt2LMHeadModel", "Gpt2Config"),
    "gptneox": ("gpt_neox", "GptNeoxForCausalLM", "GptNeoxConfig"),
    "granite": ("granite", "GraniteForCausalLM", "GraniteConfig"),
    "granitehybrid": ("granite_hybrid", "GraniteHybridForCausalLM", "GraniteHybridConfig"),
    "granitemoe": ("granite", "GraniteMoeForCausalLM", "GraniteMoeConfig"),
    "llama": ("llama", "LlamaForCausalLM", "LlamaConfig"),
    "lfm2": ("lfm2", "Lfm2ForCausalLM", "Lfm2Config"),
    "mamba": ("mamba", "MambaForCausalLM", "MambaConfig"),
    "mamba2": ("mamba", "Mamba2ForCausalLM", "Mamba2Config"),
    "mpt": ("mpt", "MptForCausalLM", "MptConfig"),
    "olmo": ("olmo", "OlmoForCausalLM", "OlmoConfig"),
    "olmo2": ("olmo2", "Olmo2ForCausalLM", "Olmo2Config"),
    "phi2": ("phi", "PhiForCausalLM", "PhiConfig"),
    "phi3": ("phi3", "Phi3ForCausalLM", "Phi3Config"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM", "Qwen2Config"),
    "qwen2moe": ("qwen2", "Qwen2MoeForCausalLM", "Qwen2MoeConfig"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", "Qwen3Config"),
    "qwen3moe": ("qwen3", "Qwen3MoeForCausalLM", "Qwen3MoeConfig"),
    "rwkv6": ("rwkv", "RwkvForCausalLM", "Rwkv6Config"),
    "rwkv7": ("rwkv7", "Rwkv7ForCausalLM", "Rwkv7Config"),
    "smollm3": ("smollm3", "SmolLM3ForCausalLM", "SmolLM3Config"),
    "stablelm": ("stablelm", "StableLmForCausalLM", "StableLmConfig"),
    "starcoder": ("gpt2", "GptBigCodeForCausalLM", "GptBigCodeConfig"),
    "starcoder2": ("starcoder2", "Starcoder2ForCausalLM", "Starcoder2Config"),
}
OTHERS = {
    "chatglm": ("blk.0.attn_q.weight", ("glm", "GlmForCausalLM", "GlmConfig")),
    "llama": ("blk.0.ffn_gate_inp.weight", ("mixtral", "MixtralForCausalLM", "MixtralConfig")),
}  # what a file is instead that has a tensor: q, k and v apart; experts
INTERLEAVED = (
    "chatglm",
    "glm4",
    "granite",
    "granitehybrid",
    "granitemoe",
    "llama",
    "olmo",
    "smollm3",
)  # q and k turn in neighbouring pairs; of all others in halves
# what changes a model and is not here -> what it is where it does not change it; "" is every architecture
REFUSED = {
    "": {"rope.scaling.yarn_ext_factor": 1.0, "attention.temperature_scale": 0.0},
    "granite": {"rope.scaling.finetuned": True, "expert_shared_feed_forward_length": 0},
    "granitemoe": {"rope.scaling.finetuned": True, "expert_shared_feed_forward_length": 0},
    "lfm2": {"attention.sliding_window": 0},
    "olmo2": {"attention.sliding_window": 0},  # OLMo 3
}
WITHOUT_HEADS = ("mamba", "mamba2", "rwkv6", "rwkv7")  # whose files say 0 of them


def gguf_config(file, config):
    """A `config` (class) from a GGUF file's metadata. FormatError for a missing key or one of the wrong type.

    A config that has more than Llama's fields finds them in `with_gguf(get, file)`, which gives it with them.
    """
    arch = file.require("general.architecture", str)

    def get(key, kind, default=None):
        return file.require(f"{arch}.{key}", kind, default)

    for key, value in (REFUSED[""] | REFUSED.get(arch, {})).items():
        _only(file, f"{arch}.{key}", value)
    heads = 1 if arch in WITHOUT_HEADS else get("attention.head_count", int)
    hidden = get("embedding_length", int)
    if heads <= 0 or hidden % heads:
        raise FormatError(file.path, f"{arch}.attention.head_count", heads, f"a divisor of the {hidden} channels")
    head_dim = get("attention.key_length", int, hidden // heads)
    eps = "rms_epsilon" if f"{arch}.attention.layer_norm_rms_epsilon" in file.metadata else "epsilon"
    found = config(
        vocab_size=file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else 0,
        hidden_size=hidden,
        intermediate_size=get("feed_forward_length", int),
        num_hidden_layers=get("block_count", int) - get("nextn_predict_layers", int, 0),
        num_attention_heads=heads,
        num_key_value_heads=_most(file, arch, get, heads),
        head_dim=head_dim,
        rms_norm_eps=get(f"attention.layer_norm_{eps}", float, 1e-5),
        rope_theta=get("rope.freq_base", float, 10000.0),
        rope_factors=tuple(file.tensor(FREQS).tolist()) if FREQS in file.tensors else None,
        rope_scaling=_rope_scaling(file, arch, get, head_dim),
        max_position_embeddings=get("context_length", int),
        tie_word_embeddings="output.weight" not in file.tensors,
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        rope_interleaved=arch in INTERLEAVED,
    )
    return found.with_gguf(get, file) if hasattr(found, "with_gguf") else found


def _only(file, key, value):
    """FormatError for any other value of a key."""
    found = file.require(key, type(value), value)
    if found != value:
        raise FormatError(file.path, key, found, value, "this is not here yet")


def _most(file, arch, get, heads):
    """Heads of keys and values: one number, or one per layer, 0 where a layer has no attention."""
    key = "attention.head_count_kv"
    each = file.metadata.get(f"{arch}.{key}")
    return max(each, default=0) if isinstance(each, list) else get(key, int, heads)


FREQS = "rope_freqs.weight"  # what every frequency is divided by (Llama 3.1)
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


def _rope_scaling(file, arch, get, head_dim):
    """What `nn.rope_frequencies` takes, or None for nothing special."""
    kind = "longrope" if LONG in file.tensors else get("rope.scaling.type", str, "linear")
    part, scaling = get("rope.dimension_count", int, head_dim) / head_dim, {}
    factor = get("rope.scaling.factor", float, get("rope.scale_linear", float, 0.0)) or 1.0
    if kind != "longrope":
        _only(file, f"{arch}.rope.scaling.attn_factor", 1.0)
    if kind == "yarn":
        keys = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow", "yarn_attn_factor": "attention_factor"}
        keys = {key: name for key, name in keys.items() if f"{arch}.rope.scaling.{key}" in file.metadata}
        scaling = {name: get(f"rope.scaling.{key}", float) for key, name in keys.items()}
    if kind == "yarn" or (kind == "linear" and factor != 1.0):
        scaling |= {"rope_type": kind, "factor": factor}
    elif kind == "longrope":
        factors = {"long_factor": file.tensor(LONG).tolist(), "short_factor": file.tensor(SHORT).tolist()}
        scaling = {"rope_type": kind, "attention_factor": get("rope.scaling.attn_factor", float, 1.0), **factors}
    elif kind not in ("none", "linear"):
        expected = "none, linear, yarn or longrope"
        raise FormatError(
            file.path, f"{arch}.rope.scaling.type", repr(kind), expected, "use a model without it for now"
        )
    if kind in ("yarn", "longrope"):
        original = get("rope.scaling.original_context_length", int, get("context_length", int))
        scaling |= {"original_max_position_embeddings": original, "max_position_embeddings": get("context_length", int)}
    return scaling | {"partial_rotary_factor": part} if scaling or part != 1.0 else None


def load_gguf(path, context=None, device="cpu"):
    """(file, model) for a GGUF file; `context`, at most the model's own, is how many positions it is prepared for.

    FormatError for a damaged file or an architecture that is not here; the message lists those that are.
    """
    file = gguf.open(path)
    arch = file.require("general.architecture", str)
    if arch == "t5":
        from zoo import gguf_encoders

        file.close()
        return gguf_encoders.load(path, device)
    if arch not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise FormatError(
            path, "general.architecture", repr(arch), f"one of {known}", "this architecture is not here yet"
        )
    tensor, other = OTHERS.get(arch, (None, None))
    module, model, config = other if tensor in file.tensors else ARCHITECTURES[arch]
    module = importlib.import_module(f"zoo.{module}")
    config = gguf_config(file, getattr(module, config))
    if context is not None:
        config = config._replace(max_position_embeddings=min(context, config.max_position_embeddings))
    made = getattr(module, model)(config)
    source = VarBuilder(file, lambda path: gguf_name(path, arch), device=device)
    published.no_bias_left(source, made, file.path)
    return file, source.load(made)
