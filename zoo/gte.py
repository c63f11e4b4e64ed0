"""GTE of 2024 (mGTE, arXiv:2407.19669), under the names of its own files, and Stella 400M (arXiv:2412.19048): a BERT of
8,192 tokens for vectors of texts and for rankings.

Section 3.1: rotary positions, GeGLU; norms stay behind each half of a layer. Contexts grew by NTK scaling: a larger
theta, and all frequencies a little lower. Shapes: see zoo/bert.py.
"""

from typing import NamedTuple

from tensorlib import nn


class GteConfig(NamedTuple):
    """Hugging Face's names. `factor`: of NTK scaling, 1 for none."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    max_position_embeddings: int = 8192
    type_vocab_size: int = 0
    rope_theta: float = 160000.0
    factor: float = 1.0

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        c.only("layer_norm_type", str, "layer_norm")
        c.only("position_embedding_type", str, "rope")
        for name, value in {"pack_qkv": True, "logn_attention_scale": False, "logn_attention_clip1": False}.items():
            c.only(name, bool, value)
        c.sub("rope_parameters").only("rope_type", str, "default")
        scaling = c.sub("rope_scaling")
        if scaling.values:
            scaling.one_of("rope_type" if "rope_type" in scaling else "type", {"ntk": 1})
        return cls(
            *(c(name, int) for name in cls._fields[:5]), hidden_act=c.act("hidden_act", "gelu"),
            layer_norm_eps=c("layer_norm_eps", float, 1e-12),
            max_position_embeddings=c("max_position_embeddings", int, 8192),
            type_vocab_size=c("type_vocab_size", int, 0),
            rope_theta=c.rope_theta(160000.0),
            factor=scaling("factor", float, 1.0),
        )  # fmt: skip


TINY = GteConfig(99, 32, 64, 2, 4, max_position_embeddings=64, type_vocab_size=2, factor=2.0)


class GteEmbeddings(nn.Module):
    def __init__(self, config):
        D, types = config.hidden_size, config.type_vocab_size
        self.word_embeddings = nn.Embedding(config.vocab_size, D)
        self.token_type_embeddings = nn.Embedding(types, D) if types else None
        self.LayerNorm = nn.LayerNorm(D, config.layer_norm_eps)

    def forward(self, tokens, types_N=None):
        x_ND, types = self.word_embeddings(tokens.ids), self.token_type_embeddings
        if types is not None:
            x_ND = x_ND + (types.weight[0] if types_N is None else types(types_N))
        return self.LayerNorm(x_ND)


class GteAttention(nn.Module):
    def __init__(self, config):
        D, self._heads = config.hidden_size, config.num_attention_heads
        self.qkv_proj, self.o_proj = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x_ND, tokens, rotary):
        return self.o_proj(tokens.attend(*self.qkv_proj(x_ND).chunk(3, -1), self._heads, rotary))


class GteMLP(nn.Module):
    """W_o (a * act(b)), a and b the halves of W x (arXiv:2002.05202)."""

    def __init__(self, config):
        D, F, self._act = config.hidden_size, config.intermediate_size, config.hidden_act
        self.up_gate_proj, self.down_proj = nn.Linear(D, 2 * F, bias=False), nn.Linear(F, D)

    def forward(self, x_ND):
        a_NF, b_NF = self.up_gate_proj(x_ND).chunk(2, -1)
        return self.down_proj(a_NF * nn.activation(self._act)(b_NF))


class GteLayer(nn.Module):
    def __init__(self, config):
        self.attention, self.mlp = GteAttention(config), GteMLP(config)
        self.attn_ln, self.mlp_ln = (nn.LayerNorm(config.hidden_size, config.layer_norm_eps) for _ in range(2))

    def forward(self, x_ND, tokens, rotary):
        x_ND = self.attn_ln(x_ND + self.attention(x_ND, tokens, rotary))
        return self.mlp_ln(x_ND + self.mlp(x_ND))


class GteModel(nn.Module):
    """`forward(ids, attention_mask)`: ids i64 [T] or [B, T], or `nn.Sequences` -> last hidden state, as BertModel's."""

    prefix = "new", "gte"

    def __init__(self, config):
        self.config, self.max_length = config, config.max_position_embeddings
        self.embeddings = GteEmbeddings(config)
        layers = nn.ModuleList([GteLayer(config) for _ in range(config.num_hidden_layers)])
        self.encoder = nn.ModuleDict({"layer": layers})
        h, s = config.hidden_size // config.num_attention_heads, config.factor
        turns = [(config.rope_theta * s) ** (-i / h) * s ** (-2 / h) for i in range(0, h, 2)]
        self._rotary = nn.RotaryEmbedding(h, config.max_position_embeddings, scaling=(turns, 1.0))

    def forward(self, ids, attention_mask=None, token_type_ids=None):
        tokens = nn.Sequences.of(ids, attention_mask)
        types_N = None if token_type_ids is None else tokens.pack(token_type_ids)
        x_ND = self.embeddings(tokens, types_N)
        for layer in self.encoder["layer"]:
            x_ND = layer(x_ND, tokens, self._rotary)
        return tokens.unpack(x_ND)
