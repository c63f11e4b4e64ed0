"""DistilBERT (arXiv:1910.01108): BERT taught to half as many layers by a larger one (section 3).

No embedding of sentences, no pooler; otherwise BERT's layers under other names. Shapes: see zoo/bert.py.
"""

from typing import NamedTuple

from tensorlib import nn


class DistilBertConfig(NamedTuple):
    """Hugging Face's names."""

    vocab_size: int
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    activation: str = "gelu"
    max_position_embeddings: int = 512

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        sizes = (c(name, int) for name in ("vocab_size", "dim", "hidden_dim", "n_layers", "n_heads"))
        return cls(*sizes, c.act("activation", "gelu"), c("max_position_embeddings", int, 512))

    @classmethod
    def from_gguf(cls, c):
        """Out of the metadata of a GGUF file (zoo/gguf_encoders.py)."""
        return cls(*c.sizes(), max_position_embeddings=c.rows("position_embd.weight"))


TINY = DistilBertConfig(99, 32, 64, 2, 4, max_position_embeddings=64)
EPS = 1e-12  # of every norm


class DistilBertEmbeddings(nn.Module):
    def __init__(self, config):
        self.word_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.dim)
        self.LayerNorm = nn.LayerNorm(config.dim, EPS)

    def forward(self, tokens):
        return self.LayerNorm(self.word_embeddings(tokens.ids) + self.position_embeddings(tokens.positions))


class DistilBertAttention(nn.Module):
    def __init__(self, config):
        D, self._heads = config.dim, config.n_heads
        self.q_lin, self.k_lin, self.v_lin = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.out_lin = nn.Linear(D, D)

    def forward(self, x_ND, tokens):
        qkv = nn.linears(x_ND, self.q_lin, self.k_lin, self.v_lin)
        return self.out_lin(tokens.attend(*qkv, self._heads))


class DistilBertFFN(nn.Module):
    def __init__(self, config):
        self.lin1, self.lin2 = nn.Linear(config.dim, config.hidden_dim), nn.Linear(config.hidden_dim, config.dim)
        self._act = config.activation

    def forward(self, x_ND):
        return self.lin2(nn.activation(self._act)(self.lin1(x_ND)))


class DistilBertLayer(nn.Module):
    def __init__(self, config):
        self.attention = DistilBertAttention(config)
        self.sa_layer_norm = nn.LayerNorm(config.dim, EPS)
        self.ffn = DistilBertFFN(config)
        self.output_layer_norm = nn.LayerNorm(config.dim, EPS)

    def forward(self, x_ND, tokens):
        x_ND = self.sa_layer_norm(x_ND + self.attention(x_ND, tokens))
        return self.output_layer_norm(x_ND + self.ffn(x_ND))


class DistilBertModel(nn.Module):
    """`forward(ids, attention_mask)`: ids i64 [T] or [B, T], or `nn.Sequences` -> last hidden state, as BertModel's."""

    prefix = "distilbert"

    def __init__(self, config):
        self.config, self.max_length = config, config.max_position_embeddings
        self.embeddings = DistilBertEmbeddings(config)
        layers = nn.ModuleList([DistilBertLayer(config) for _ in range(config.n_layers)])
        self.transformer = nn.ModuleDict({"layer": layers})

    def forward(self, ids, attention_mask=None):
        tokens = nn.Sequences.of(ids, attention_mask)
        x_ND = self.embeddings(tokens)
        for layer in self.transformer["layer"]:
            x_ND = layer(x_ND, tokens)
        return tokens.unpack(x_ND)
