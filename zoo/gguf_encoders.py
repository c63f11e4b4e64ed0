"""Encoders out of GGUF files: BERT and its kin, T5. A config class finds its fields with `from_gguf(c)`."""

import importlib
import re

from tensorlib.errors import FormatError
from tensorlib.io import gguf
from tensorlib.nn import VarBuilder

# general.architecture of GGUF -> (module of this package, class of the model, class of its config)
ROWS = {
    "bert": ("bert", "BertModel", "BertConfig"),  # RoBERTa's, too: their positions begin at 0 there
    "jina-bert-v2": ("jina_bert", "JinaBertModel", "JinaBertConfig"),
    "modern-bert": ("modernbert", "ModernBertModel", "ModernBertConfig"),
    "nomic-bert": ("nomic_bert", "NomicBertModel", "NomicBertConfig"),
    "t5": ("t5", "T5ForConditionalGeneration", "T5Config"),
    "t5encoder": ("t5", "T5EncoderModel", "T5Config"),
}
DISTILLED = "distilbert", "DistilBertModel", "DistilBertConfig"  # what "bert" is without embeddings of sentences
# Hugging Face's parameter paths -> GGUF's (a test has the gguf package's own name map)
NAMES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "emb_ln": "token_embd_norm",
    "embeddings.tok_embeddings": "token_embd",
    "embeddings.norm": "token_embd_norm",
    "final_norm": "output_norm",
    "shared": "token_embd",
    "lm_head": "output",
    "encoder.final_layer_norm": "enc.output_norm",
    "decoder.final_layer_norm": "dec.output_norm",
}
IN_LAYERS = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.self.layer_norm_q": "attn_q_norm",
    "attention.self.layer_norm_k": "attn_k_norm",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
    "attention.q_lin": "attn_q",
    "attention.k_lin": "attn_k",
    "attention.v_lin": "attn_v",
    "attention.out_lin": "attn_output",
    "sa_layer_norm": "attn_output_norm",
    "ffn.lin1": "ffn_up",
    "ffn.lin2": "ffn_down",
    "output_layer_norm": "layer_output_norm",
    "attn_norm": "attn_norm",
    "attn.Wo": "attn_output",
    "mlp_norm": "ffn_norm",
    "mlp.Wi": "ffn_up",
    "mlp.Wo": "ffn_down",
    "layer_norm_1": "attn_norm_2",
    "layer_norm_2": "layer_output_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.wo": "ffn_down",
    "mlp.down_layer": "ffn_down",
    "mlp.layernorm": "layer_output_norm",
    "attn.Wqkv": "attn_qkv",
    "attn.out_proj": "attn_output",
    "norm1": "attn_output_norm",
    "norm2": "layer_output_norm",
    "mlp.fc11": "ffn_up",
    "mlp.fc12": "ffn_gate",
    "mlp.fc2": "ffn_down",
}
T5_PARTS = {"SelfAttention": "attn_", "EncDecAttention": "cross_attn_"}
T5_NAMES = {"relative_attention_bias": "rel_b", "wi": "ffn_up", "wi_0": "ffn_gate", "wi_1": "ffn_up", "wo": "ffn_down"}
_LAYER = re.compile(r"(?:(?:encoder|transformer)\.)?layers?\.(\d+)\.(.+)")
_T5 = re.compile(r"(enc|dec)oder\.block\.(\d+)\.layer\.(\d)\.(.+)")


def gguf_name(path):
    """GGUF's name of a parameter, or None if it has none.

    >>> gguf_name("encoder.layer.3.attention.self.query.weight")
    'blk.3.attn_q.weight'
    >>> gguf_name("decoder.block.3.layer.1.EncDecAttention.q.weight")
    'dec.blk.3.cross_attn_q.weight'
    """
    stem, _, kind = path.rpartition(".")
    layer, t5 = _LAYER.fullmatch(stem), _T5.fullmatch(stem)
    if t5:
        return f"{t5[1]}.blk.{t5[2]}.{_in_t5(t5[1], int(t5[3]), t5[4])}.{kind}"
    if layer:
        return f"blk.{layer[1]}.{IN_LAYERS[layer[2]]}.{kind}" if layer[2] in IN_LAYERS else None
    return f"{NAMES[stem]}.{kind}" if stem in NAMES else None


def _in_t5(half, place, path):
    part, _, name = path.rpartition(".")
    if name == "layer_norm":
        return {0: "attn_norm", 1: "cross_attn_norm" if half == "dec" else "ffn_norm", 2: "ffn_norm"}[place]
    return T5_PARTS.get(part, "") + T5_NAMES.get(name, name)


class Fields:
    """A file's metadata: `c(key, kind, default)`, each error with the key's name."""

    def __init__(self, file, arch):
        self.file, self.arch = file, arch

    def __call__(self, key, kind, default=None):
        return self.file.require(f"{self.arch}.{key}", kind, default)

    def __contains__(self, name):
        return name in self.file.tensors

    def rows(self, name):
        """How many rows a matrix has, 0 if there is none."""
        return self.file.tensors[name].shape[0] if name in self.file.tensors else 0

    def sizes(self):
        """What all begin with: words, channels, feed-forward channels, layers, heads."""
        keys = "embedding_length", "feed_forward_length", "block_count", "attention.head_count"
        return self.rows("token_embd.weight"), *(self(key, int) for key in keys)


def load(path, device="cpu"):
    """(file, model) for a GGUF file. FormatError for a damaged file or an architecture that is none of ROWS."""
    file = gguf.open(path)
    arch = file.require("general.architecture", str)
    if arch not in ROWS:
        known = ", ".join(ROWS)
        raise FormatError(path, "general.architecture", repr(arch), f"one of {known}", "this encoder is not here yet")
    module, model, config = ROWS[arch] if arch != "bert" or "token_types.weight" in file.tensors else DISTILLED
    module = importlib.import_module(f"zoo.{module}")
    config = getattr(module, config).from_gguf(Fields(file, arch))
    return file, VarBuilder(file, gguf_name, device=device).load(getattr(module, model)(config))
