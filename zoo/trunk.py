"""Decoders as encoders of texts: E5 (arXiv:2401.00368), GTE-Qwen2 (arXiv:2308.03281), Stella (arXiv:2412.19048).

Their layers up to the last norm give the vectors of tokens, of which zoo/pooling.py makes one, often of the last token.
Some were trained on so that every token sees the whole text, as in an encoder; a config says so.
"""

from tensorlib import nn
from zoo import auto
from zoo import load as files
from zoo.generate import CONTEXT

DECODERS = "llama", "mistral", "qwen2", "qwen3"  # those whose trunks a test shows


def causal(fields):
    """Whether tokens see only what is before them, by a config: transformers' `is_causal`, or what code of their own
    GTE-Qwen2 and Stella are published with, whose attention goes both ways.
    """
    own = str(fields.sub("auto_map").values.get("AutoModel")).endswith("modeling_qwen.Qwen2Model")
    return fields("is_causal", bool, not (own or fields("use_bidirectional_attention", bool, False)))


def load(folder, fields, context=None, device="cpu"):
    """The Trunk of a folder with `fields` as its config, for texts of at most `context` tokens. Raises as auto.load."""
    _, decoder = auto.load(folder, context or CONTEXT, device, tie_word_embeddings=True)  # no head is missed
    return Trunk(decoder, causal(fields))


def load_gguf(path, device="cpu", context=None):
    """(file, Trunk) of a GGUF file. Raises as load.load_gguf."""
    file, decoder = files.load_gguf(path, context or CONTEXT, device)
    return file, Trunk(
        decoder, file.require(f"{file.require('general.architecture', str)}.attention.causal", bool, True)
    )


class Trunk(nn.Module):
    """`forward(ids, attention_mask)`: ids i64 [T] or [B, T], or `nn.Sequences` -> last hidden state, as BertModel's."""

    def __init__(self, decoder, causal=True):
        self.decoder, self.causal, self.max_length = decoder, causal, decoder.config.max_position_embeddings

    def forward(self, ids, attention_mask=None):
        tokens = nn.Sequences.of(ids, attention_mask)
        attention = nn.PackedAttention(tokens, self.decoder.config.head_dim, self.causal)
        return tokens.unpack(self.decoder.model(tokens.ids, attention, self.decoder.rotary))
