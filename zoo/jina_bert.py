"""Jina Embeddings 2 (arXiv:2310.19923): a BERT for texts of 8,192 tokens, and longer ones than it was trained on.

Section 3.1: in place of positions a penalty per head on scores that grows with distance, to both sides (ALiBi,
arXiv:2108.12409), and gated linear units between the norms. The models for code (`qk_norm`) norm q and k, and add a
layer's input again before its dense half. Shapes: see zoo/bert.py; T tokens of one sequence, H heads.
"""

from typing import NamedTuple

import tensorlib
from tensorlib import nn
from zoo import bert


class JinaBertConfig(NamedTuple):
    """Hugging Face's names. `gate`: the activation of the gated units; `split`: gate and rest are two matrices, as in
    GGUF.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    layer_norm_eps: float = 1e-12
    max_position_embeddings: int = 8192
    type_vocab_size: int = 2
    gate: str = "gelu"
    qk_norm: bool = False
    split: bool = False

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        names = "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"
        return cls(
            *(c(name, int) for name in names),
            layer_norm_eps=c("layer_norm_eps", float, 1e-12),
            max_position_embeddings=c("max_position_embeddings", int, 512),
            type_vocab_size=c("type_vocab_size", int, 2),
            gate=c.one_of("feed_forward_type", {"geglu": "gelu", "reglu": "relu"}, "geglu"),
            qk_norm="qk-post-norm" in str(c("auto_map", dict, {})),
        )

    @classmethod
    def from_gguf(cls, c):
        """Out of the metadata of a GGUF file (zoo/gguf_encoders.py), which is always of GeGLU."""
        return cls(
            *c.sizes(),
            layer_norm_eps=c("attention.layer_norm_epsilon", float),
            max_position_embeddings=c("context_length", int),
            type_vocab_size=c.rows("token_types.weight"),
            qk_norm="blk.0.attn_q_norm.weight" in c,
            split=True,
        )


TINY = JinaBertConfig(99, 32, 64, 2, 4, max_position_embeddings=64)


class JinaBertEmbeddings(nn.Module):
    def __init__(self, config):
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, tokens):
        return self.LayerNorm(self.word_embeddings(tokens.ids) + self.token_type_embeddings.weight[0])


class JinaBertSelfAttention(bert.BertSelfAttention):
    def __init__(self, config):
        super().__init__(config)
        if config.qk_norm:
            self.layer_norm_q = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
            self.layer_norm_k = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self._normed = config.qk_norm

    def forward(self, x_ND, tokens, bias):
        q_ND, k_ND, v_ND = nn.linears(x_ND, self.query, self.key, self.value)
        if self._normed:
            q_ND, k_ND = self.layer_norm_q(q_ND), self.layer_norm_k(k_ND)
        return tokens.attend(q_ND, k_ND, v_ND, self._heads, bias=bias)


class JinaBertAttention(nn.Module):
    def __init__(self, config):
        self.self, self.output = JinaBertSelfAttention(config), bert.BertOutput(config.hidden_size, config)

    def forward(self, x_ND, tokens, bias):
        return self.output(x_ND, self.self(x_ND, tokens, bias))


class JinaBertMLP(nn.Module):
    """W_o (act(a) * b) of the halves a and b of W x (arXiv:2002.05202), which models for code have the other way round;
    without them, the norm that follows is in here, too.
    """

    def __init__(self, config):
        D, F = config.hidden_size, config.intermediate_size
        self._act, self._code, self._split = config.gate, config.qk_norm, config.split
        if config.split:
            self.gate, self.up = nn.Linear(D, F, bias=False), nn.Linear(D, F, bias=False)
        else:
            setattr(self, "up_gated_layer" if config.qk_norm else "gated_layers", nn.Linear(D, 2 * F, bias=False))
        setattr(self, "down_layer" if config.qk_norm else "wo", nn.Linear(F, D))
        if not config.qk_norm:
            self.layernorm = nn.LayerNorm(D, config.layer_norm_eps)

    def halves(self, x_ND):
        """(what is gated by, what is gated)."""
        if self._split:
            return nn.linears(x_ND, self.gate, self.up)
        if self._code:
            up_NF, gate_NF = self.up_gated_layer(x_ND).chunk(2, -1)
            return gate_NF, up_NF
        return self.gated_layers(x_ND).chunk(2, -1)

    def forward(self, x_ND):
        gate_NF, up_NF = self.halves(x_ND)
        h_NF = nn.activation(self._act)(gate_NF) * up_NF
        return self.down_layer(h_NF) if self._code else self.layernorm(x_ND + self.wo(h_NF))


class JinaBertLayer(nn.Module):
    def __init__(self, config):
        self.attention, self.mlp = JinaBertAttention(config), JinaBertMLP(config)
        if config.qk_norm:
            self.layer_norm_1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
            self.layer_norm_2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self._code = config.qk_norm

    def forward(self, x_ND, tokens, bias):
        y_ND = self.attention(x_ND, tokens, bias)
        if not self._code:
            return self.mlp(y_ND)
        y_ND = self.layer_norm_1(x_ND + y_ND)
        return self.layer_norm_2(y_ND + self.mlp(y_ND))


class JinaBertModel(nn.Module):
    """`forward(ids, attention_mask)`: ids i64 [T] or [B, T], or `nn.Sequences` -> last hidden state, as BertModel's."""

    prefix = "bert"

    def __init__(self, config):
        self.config, self.max_length = config, config.max_position_embeddings
        self.embeddings = JinaBertEmbeddings(config)
        layers = nn.ModuleList([JinaBertLayer(config) for _ in range(config.num_hidden_layers)])
        self.encoder, self._slopes = nn.ModuleDict({"layer": layers}), {}

    def penalties(self, tokens):
        """{T: what is added to the scores of a sequence of T tokens, [H, T, T]}."""
        device, found = tokens.ids.device, {}
        if device not in self._slopes:
            slopes = nn.alibi_slopes(self.config.num_attention_heads)
            self._slopes[device] = tensorlib.tensor(slopes, device=device).reshape(-1, 1, 1)
        for n in {*tokens.lengths}:
            places = tensorlib.arange(n, device=device)
            found[n] = -((places.unsqueeze(1) - places).abs().float() * self._slopes[device])
        return found

    def forward(self, ids, attention_mask=None):
        tokens = nn.Sequences.of(ids, attention_mask)
        found, x_ND = self.penalties(tokens), self.embeddings(tokens)
        for layer in self.encoder["layer"]:
            x_ND = layer(x_ND, tokens, lambda q, k: found[q.shape[0]])
        return tokens.unpack(x_ND)
