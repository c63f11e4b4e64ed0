"""Nomic Embed (arXiv:2402.01613): a BERT of 2,048 and more tokens, for vectors of texts.

Section 3.1: rotary positions, SwiGLU, no biases; norms stay behind each half of a layer. Shapes: see zoo/bert.py.
"""

from typing import NamedTuple

from tensorlib import nn

NEVER = "qkv_proj_bias mlp_fc1_bias mlp_fc2_bias prenorm parallel_block use_rms_norm rotary_emb_interleaved causal"


class NomicBertConfig(NamedTuple):
    """Hugging Face's names; published files call them as GPT-2 does."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    layer_norm_eps: float = 1e-12
    rope_theta: float = 1000.0
    max_position_embeddings: int = 2048
    type_vocab_size: int = 2

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        names = {"hidden_size": "n_embd", "intermediate_size": "n_inner", "num_hidden_layers": "n_layer"}
        names |= {"num_attention_heads": "n_head"}
        c.unscaled()
        c.only("hidden_act", str, "silu")
        c.only("activation_function", str, "swiglu")
        for name in NEVER.split():
            c.only(name, bool, False)
        for name, value in {"rotary_emb_fraction": 1.0, "rotary_scaling_factor": None}.items():
            c.only(name, float, value)
        return cls(
            c("vocab_size", int),
            *(c(old if old in c and name not in c else name, int) for name, old in names.items()),
            layer_norm_eps=c("layer_norm_eps", float, c("layer_norm_epsilon", float, 1e-12)),
            rope_theta=c.rope_theta(c("rotary_emb_base", float, 1000.0)),
            max_position_embeddings=c("max_position_embeddings", int, c("n_positions", int, 2048)),
            type_vocab_size=c("type_vocab_size", int, 2),
        )

    @classmethod
    def from_gguf(cls, c):
        """Out of the metadata of a GGUF file (zoo/gguf_encoders.py)."""
        return cls(
            *c.sizes(),
            layer_norm_eps=c("attention.layer_norm_epsilon", float),
            rope_theta=c("rope.freq_base", float, 1000.0),
            max_position_embeddings=c("context_length", int),
            type_vocab_size=c.rows("token_types.weight"),
        )


TINY = NomicBertConfig(99, 32, 64, 2, 4, max_position_embeddings=64)


class NomicBertEmbeddings(nn.Module):
    def __init__(self, config):
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)

    def forward(self, tokens):
        return self.word_embeddings(tokens.ids) + self.token_type_embeddings.weight[0]


class NomicBertAttention(nn.Module):
    def __init__(self, config):
        D, self._heads = config.hidden_size, config.num_attention_heads
        self.Wqkv, self.out_proj = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)

    def forward(self, x_ND, tokens, rotary):
        return self.out_proj(tokens.attend(*self.Wqkv(x_ND).chunk(3, -1), self._heads, rotary))


class NomicBertMLP(nn.Module):
    """W_2 (W_11 x * silu(W_12 x)) (arXiv:2002.05202)."""

    def __init__(self, config):
        D, F = config.hidden_size, config.intermediate_size
        self.fc11, self.fc12 = nn.Linear(D, F, bias=False), nn.Linear(D, F, bias=False)
        self.fc2 = nn.Linear(F, D, bias=False)

    def forward(self, x_ND):
        return self.fc2(nn.swiglu_linear(x_ND, self.fc12, self.fc11))


class NomicBertLayer(nn.Module):
    def __init__(self, config):
        self.attn = NomicBertAttention(config)
        self.norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = NomicBertMLP(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x_ND, tokens, rotary):
        x_ND = self.norm1(x_ND + self.attn(x_ND, tokens, rotary))
        return self.norm2(x_ND + self.mlp(x_ND))


class NomicBertModel(nn.Module):
    """`forward(ids, attention_mask)`: ids i64 [T] or [B, T], or `nn.Sequences` -> last hidden state, as BertModel's."""

    prefix = "bert"

    def __init__(self, config):
        self.config, self.max_length = config, config.max_position_embeddings
        self.embeddings = NomicBertEmbeddings(config)
        self.emb_ln = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        layers = nn.ModuleList([NomicBertLayer(config) for _ in range(config.num_hidden_layers)])
        self.encoder = nn.ModuleDict({"layers": layers})
        h, most = config.hidden_size // config.num_attention_heads, config.max_position_embeddings
        self._rotary = nn.RotaryEmbedding(h, most, config.rope_theta)

    def forward(self, ids, attention_mask=None):
        tokens = nn.Sequences.of(ids, attention_mask)
        x_ND = self.emb_ln(self.embeddings(tokens))
        for layer in self.encoder["layers"]:
            x_ND = layer(x_ND, tokens, self._rotary)
        return tokens.unpack(x_ND)
