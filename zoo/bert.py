"""BERT (arXiv:1810.04805): the encoder of a Transformer, reading in both directions; MiniLM and E5 share its shape.

Post-norm layers (section 3, as in arXiv:1706.03762), learned positions, a second embedding that says which sentence a
token is of. What stands on it (section 3.1, task 1) is in zoo/heads.py. Other encoders are what they change of
these classes: a class names the classes of its parts (`Embeddings`, `Layer`, `Attention`).

Shapes: N tokens of all sequences, one after the other without padding, D hidden, F feed-forward.
"""

from typing import NamedTuple

from tensorlib import nn


class BertConfig(NamedTuple):
    """Hugging Face's names. `add_pooling_layer`: whether the file has a pooler; a model of masked words has none."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    pad_token_id: int = 0
    add_pooling_layer: bool = True

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        c.only("position_embedding_type", str, "absolute")
        c.only("is_decoder", bool, False)
        return cls(
            *(c(name, int) for name in cls._fields[:5]), hidden_act=c.act("hidden_act", "gelu"),
            layer_norm_eps=c("layer_norm_eps", float, 1e-12),
            max_position_embeddings=c("max_position_embeddings", int, 512),
            type_vocab_size=c("type_vocab_size", int, 2),
            pad_token_id=c("pad_token_id", int, 0),
            add_pooling_layer=any(name.endswith("Model") for name in c("architectures", list, ["Model"])),
        )  # fmt: skip

    @classmethod
    def from_gguf(cls, c):
        """Out of the metadata of a GGUF file (zoo/gguf_encoders.py), which has no pooler."""
        return cls(
            *c.sizes(),
            layer_norm_eps=c("attention.layer_norm_epsilon", float),
            max_position_embeddings=c.rows("position_embd.weight"),
            type_vocab_size=c.rows("token_types.weight"),
            add_pooling_layer=False,
        )


TINY = BertConfig(99, 32, 64, 2, 4, max_position_embeddings=64)


class BertEmbeddings(nn.Module):
    """The sum of a word's, its position's and its sentence's embedding, normalised (figure 2)."""

    def __init__(self, config):
        D = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, D)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, D)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, D)
        self.LayerNorm = nn.LayerNorm(D, config.layer_norm_eps)

    def forward(self, tokens, types_N=None):
        x_ND, types = self.word_embeddings(tokens.ids), self.token_type_embeddings
        x_ND = x_ND + self.position_embeddings(self.places(tokens))
        return self.LayerNorm(x_ND + (types.weight[0] if types_N is None else types(types_N)))

    def places(self, tokens):
        """The row of each token's position, [N]."""
        return tokens.positions


class BertSelfAttention(nn.Module):
    """softmax(q k^T / sqrt(h)) v over the whole sequence."""

    def __init__(self, config):
        D, self._heads = config.hidden_size, config.num_attention_heads
        self.query, self.key, self.value = (nn.Linear(D, D) for _ in range(3))

    def forward(self, x_ND, tokens):
        return tokens.attend(*nn.linears(x_ND, self.query, self.key, self.value), self._heads)


class BertOutput(nn.Module):
    """LayerNorm(x + W h): what closes both halves of a layer."""

    def __init__(self, inputs, config):
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x_ND, h):
        return self.LayerNorm(nn.add_linear(x_ND, self.dense, h))


class BertAttention(nn.Module):
    def __init__(self, config):
        self.self = BertSelfAttention(config)
        self.output = BertOutput(config.hidden_size, config)

    def forward(self, x_ND, tokens):
        return self.output(x_ND, self.self(x_ND, tokens))


class BertIntermediate(nn.Module):
    def __init__(self, config):
        self.dense, self._act = nn.Linear(config.hidden_size, config.intermediate_size), config.hidden_act

    def forward(self, x_ND):
        return nn.act_linear(x_ND, self.dense, self._act)


class BertLayer(nn.Module):
    Attention = BertAttention

    def __init__(self, config):
        self.attention = self.Attention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config.intermediate_size, config)

    def forward(self, x_ND, tokens):
        x_ND = self.attention(x_ND, tokens)
        return self.output(x_ND, self.intermediate(x_ND))


class BertEncoder(nn.Module):
    def __init__(self, config, layer):
        self.layer = nn.ModuleList([layer(config) for _ in range(config.num_hidden_layers)])

    def forward(self, x_ND, tokens):
        for layer in self.layer:
            x_ND = layer(x_ND, tokens)
        return x_ND


class BertPooler(nn.Module):
    """tanh(W x) of the first token, [CLS]: what pre-training told whether one sentence follows another (task 2)."""

    def __init__(self, config):
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_ND, tokens):
        return self.dense(tokens.at(x_ND, 0)).tanh()


class BertModel(nn.Module):
    """`forward(ids, attention_mask)`: ids i64 [T] or [B, T] -> last hidden state, ids' shape + (D,), 0 for padding.

    ids may be `nn.Sequences`: then [N, D]. `token_type_ids`: as ids, which sentence each token is of.
    """

    Embeddings, Layer, prefix = BertEmbeddings, BertLayer, "bert"

    def __init__(self, config):
        self.config, self.max_length = config, config.max_position_embeddings
        self.embeddings = self.Embeddings(config)
        self.encoder = BertEncoder(config, self.Layer)
        if config.add_pooling_layer:
            self.pooler = BertPooler(config)

    def forward(self, ids, attention_mask=None, token_type_ids=None):
        tokens = nn.Sequences.of(ids, attention_mask)
        types_N = None if token_type_ids is None else tokens.pack(token_type_ids)
        return tokens.unpack(self.encoder(self.embeddings(tokens, types_N), tokens))
