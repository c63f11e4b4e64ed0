"""ModernBERT (arXiv:2412.13663): what decoders have learned since, in an encoder of 8,192 tokens.

Section 2.1: pre-norm without biases, rotary positions, GeGLU; only every third layer attends to all tokens, the others
to a window, with a smaller rotary base; sequences lie one after the other, so that padding costs nothing.

Shapes: N tokens of all sequences, D hidden, F feed-forward.
"""

from typing import NamedTuple

from tensorlib import nn


class ModernBertConfig(NamedTuple):
    """Hugging Face's names. `full`: whether each layer sees all; `thetas`: rotary bases of those, and of the others."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    full: tuple
    local_attention: int = 128
    thetas: tuple = (160000.0, 10000.0)
    hidden_activation: str = "gelu"
    norm_eps: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    max_position_embeddings: int = 8192

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        count, every = c("num_hidden_layers", int), c("global_attn_every_n_layers", int, 3)
        full = [i % every == 0 for i in range(count)]
        types, rope = c("layer_types", list, []), c.sub("rope_parameters")
        old = (c("global_rope_theta", float, 160000.0), c("local_rope_theta", float, 10000.0))
        kinds = ("full_attention", "sliding_attention")
        for kind in kinds:
            c.unscaled(kind)
        return cls(
            vocab_size=c("vocab_size", int),
            hidden_size=c("hidden_size", int),
            intermediate_size=c("intermediate_size", int),
            num_attention_heads=c("num_attention_heads", int),
            full=tuple(kind == kinds[0] for kind in types) or tuple(full),
            local_attention=c("local_attention", int, 128),
            thetas=tuple(rope.sub(kind)("rope_theta", float, theta) for kind, theta in zip(kinds, old)),
            hidden_activation=c.act("hidden_activation", "gelu"),
            norm_eps=c("norm_eps", float, 1e-5),
            norm_bias=c("norm_bias", bool, False),
            attention_bias=c("attention_bias", bool, False),
            mlp_bias=c("mlp_bias", bool, False),
            max_position_embeddings=c("max_position_embeddings", int, 8192),
        )

    @classmethod
    def from_gguf(cls, c):
        """Out of the metadata of a GGUF file (zoo/gguf_encoders.py)."""
        words, hidden, inner, count, heads = c.sizes()
        every, theta = c("attention.sliding_window_pattern", int, 3), c("rope.freq_base", float, 10000.0)
        return cls(
            words, hidden, inner, heads,
            full=tuple(i % every == 0 for i in range(count)),
            local_attention=c("attention.sliding_window", int),
            thetas=(theta, c("rope.freq_base_swa", float, theta)),
            hidden_activation=c("hidden_activation", str, "gelu"),
            norm_eps=c("attention.layer_norm_epsilon", float),
            max_position_embeddings=c("context_length", int),
        )  # fmt: skip


TINY = ModernBertConfig(99, 32, 48, 4, (True, False, True), local_attention=8, max_position_embeddings=64)


def norm(config):
    """A LayerNorm as the config has it."""
    return nn.LayerNorm(config.hidden_size, config.norm_eps, bias=config.norm_bias)


class ModernBertEmbeddings(nn.Module):
    def __init__(self, config):
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.norm = norm(config)

    def forward(self, tokens):
        return self.norm(self.tok_embeddings(tokens.ids))


class ModernBertAttention(nn.Module):
    def __init__(self, config, full):
        D, self._heads = config.hidden_size, config.num_attention_heads
        self._window = {} if full else {"window": config.local_attention // 2 + 1}
        self.Wqkv = nn.Linear(D, 3 * D, bias=config.attention_bias)
        self.Wo = nn.Linear(D, D, bias=config.attention_bias)

    def forward(self, x_ND, tokens, rotary):
        q_ND, k_ND, v_ND = self.Wqkv(x_ND).chunk(3, -1)
        return self.Wo(tokens.attend(q_ND, k_ND, v_ND, self._heads, rotary, **self._window))


class ModernBertMLP(nn.Module):
    """W_o(act(a) * b), a and b the halves of W_i x (arXiv:2002.05202)."""

    def __init__(self, config):
        D, F, bias, self._act = config.hidden_size, config.intermediate_size, config.mlp_bias, config.hidden_activation
        self.Wi, self.Wo = nn.Linear(D, 2 * F, bias=bias), nn.Linear(F, D, bias=bias)

    def forward(self, x_ND):
        a_NF, b_NF = self.Wi(x_ND).chunk(2, -1)
        return self.Wo(nn.activation(self._act)(a_NF) * b_NF)


class ModernBertLayer(nn.Module):
    """The embeddings' norm serves the first layer, too."""

    def __init__(self, config, layer):
        self.attn_norm = norm(config) if layer else nn.Identity()
        self.attn = ModernBertAttention(config, config.full[layer])
        self.mlp_norm = norm(config)
        self.mlp = ModernBertMLP(config)

    def forward(self, x_ND, tokens, rotary):
        x_ND = x_ND + self.attn(self.attn_norm(x_ND), tokens, rotary)
        return x_ND + self.mlp(self.mlp_norm(x_ND))


class ModernBertModel(nn.Module):
    """`forward(ids, attention_mask)`: ids i64 [T] or [B, T], or `nn.Sequences` -> last hidden state, as BertModel's."""

    prefix = "model"

    def __init__(self, config):
        self.config, self.max_length = config, config.max_position_embeddings
        self.embeddings = ModernBertEmbeddings(config)
        self.layers = nn.ModuleList([ModernBertLayer(config, i) for i in range(len(config.full))])
        self.final_norm = norm(config)
        h, most = config.hidden_size // config.num_attention_heads, config.max_position_embeddings
        self._rotary = [nn.RotaryEmbedding(h, most, theta) for theta in config.thetas]

    def forward(self, ids, attention_mask=None):
        tokens = nn.Sequences.of(ids, attention_mask)
        x_ND = self.embeddings(tokens)
        for layer, full in zip(self.layers, self.config.full):
            x_ND = layer(x_ND, tokens, self._rotary[not full])
        return tokens.unpack(self.final_norm(x_ND))
