"""From a file to a model: metadata to config, config to architecture, weights by name."""

import importlib
import re

from tensorlib.errors import FormatError
from tensorlib.io import gguf
from tensorlib.nn import VarBuilder

# general.architecture of GGUF -> (module of this package, class of the model, class of its config)
ARCHITECTURES = {"llama": ("llama", "LlamaForCausalLM", "LlamaConfig")}

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
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def gguf_name(path):
    """GGUF's name of a parameter, or None if it has none.

    >>> gguf_name("model.layers.3.self_attn.q_proj.weight"), gguf_name("lm_head.weight")
    ('blk.3.attn_q.weight', 'output.weight')
    """
    stem, _, kind = path.rpartition(".")
    layer = _LAYER.fullmatch(stem)
    name = GGUF_NAMES.get(layer[2] if layer else stem)
    return name and (f"blk.{layer[1]}.{name}.{kind}" if layer else f"{name}.{kind}")


def gguf_config(file, config):
    """A `config` (class) from a GGUF file's metadata. FormatError for a missing key or one of the wrong type."""
    arch = file.require("general.architecture", str)

    def get(key, kind, default=None):
        return file.require(f"{arch}.{key}", kind, default)

    heads, hidden = get("attention.head_count", int), get("embedding_length", int)
    if heads <= 0 or hidden % heads:
        raise FormatError(file.path, f"{arch}.attention.head_count", heads, f"a divisor of the {hidden} channels")
    scaling = file.metadata.get(f"{arch}.rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        fix = "use a model without it for now"
        raise FormatError(file.path, f"{arch}.rope.scaling.type", repr(scaling), "none or linear", fix)
    head_dim = get("attention.key_length", int, hidden // heads)
    return config(
        vocab_size=file.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in file.tensors else 0,
        hidden_size=hidden,
        intermediate_size=get("feed_forward_length", int),
        num_hidden_layers=get("block_count", int),
        num_attention_heads=heads,
        num_key_value_heads=get("attention.head_count_kv", int, heads),
        head_dim=head_dim,
        rms_norm_eps=get("attention.layer_norm_rms_epsilon", float, 1e-5),
        rope_theta=get("rope.freq_base", float, 10000.0),
        rope_factors=_rope_factors(
            file, head_dim, get("rope.scaling.factor", float, 1.0) if scaling == "linear" else 1.0
        ),
        max_position_embeddings=get("context_length", int),
        tie_word_embeddings="output.weight" not in file.tensors,
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        rope_interleaved=True,
    )


def _rope_factors(file, head_dim, factor):
    """What every frequency is divided by: `rope_freqs.weight` (Llama 3.1) or one factor for all; None for nothing."""
    if "rope_freqs.weight" in file.tensors:
        return tuple(file.tensor("rope_freqs.weight").tolist())
    return (factor,) * (head_dim // 2) if factor != 1.0 else None


def load_gguf(path, context=None, device="cpu"):
    """(file, model) for a GGUF file; `context`, at most the model's own, is how many positions it is prepared for.

    FormatError for a damaged file or an architecture that is not here; the message lists those that are.
    """
    file = gguf.open(path)
    arch = file.require("general.architecture", str)
    if arch not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise FormatError(
            path, "general.architecture", repr(arch), f"one of {known}", "this architecture is not here yet"
        )
    module, model, config = ARCHITECTURES[arch]
    module = importlib.import_module(f"zoo.{module}")
    config = gguf_config(file, getattr(module, config))
    if context is not None:
        config = config._replace(max_position_embeddings=min(context, config.max_position_embeddings))
    return file, VarBuilder(file, gguf_name, device=device).load(getattr(module, model)(config))
