"""DeBERTa v2 and v3 (arXiv:2006.03654, arXiv:2111.09543): attention in which words and distances stand apart.

A score is the sum of three products (section 3.1, equation 2): of the words, of a query with the embedding of the
distance to the key, and of a key with that to the query; each pair of projections, or the words' own (`share_att_key`).
Distances beyond half the buckets share logarithmic ones. v2's largest models add a convolution after the first layer.

Shapes: N tokens of all sequences, T of one, D hidden, H heads, h head dim, S distances to one side.
"""

import math
from typing import NamedTuple

import tensorlib
from tensorlib import nn
from zoo import bert


class DebertaV2Config(NamedTuple):
    """Hugging Face's names. `distances`: the largest one; `buckets`: how many share them, 0 for one each."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-7
    max_position_embeddings: int = 512
    type_vocab_size: int = 0
    distances: int = 512
    buckets: int = 256
    pos_att_type: tuple = ("p2c", "c2p")
    share_att_key: bool = True
    position_biased_input: bool = False
    norm_rel_ebd: bool = True
    conv_kernel_size: int = 0
    conv_act: str = "tanh"

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        places, kinds = c("max_position_embeddings", int, 512), c.values.get("pos_att_type") or []
        kinds = [kind.strip().lower() for kind in (kinds.split("|") if isinstance(kinds, str) else kinds)]
        most, hidden, heads = c("max_relative_positions", int, -1), c("hidden_size", int), c("num_attention_heads", int)
        for name, value in {"conv_groups": 1, "attention_head_size": hidden // heads, "embedding_size": hidden}.items():
            c.only(name, int, value)
        if 0 < most <= c("position_buckets", int, -1) // 2 + 1:
            c.refuse("max_relative_positions", "more than half of the position_buckets")
        if kinds:
            c.only("relative_attention", bool, True)
        return cls(
            *(c(name, int) for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")),
            num_attention_heads=c("num_attention_heads", int),
            hidden_act=c.act("hidden_act", "gelu"),
            layer_norm_eps=c("layer_norm_eps", float, 1e-7),
            max_position_embeddings=places,
            type_vocab_size=c("type_vocab_size", int, 0),
            distances=most if most > 0 else places,
            buckets=max(0, c("position_buckets", int, -1)),
            pos_att_type=tuple(kind for kind in ("p2c", "c2p") if kind in kinds),
            share_att_key=c("share_att_key", bool, False),
            position_biased_input=c("position_biased_input", bool, True),
            norm_rel_ebd="layer_norm" in c("norm_rel_ebd", str, "none"),
            conv_kernel_size=c("conv_kernel_size", int, 0),
            conv_act=c.act("conv_act", "tanh"),
        )

    @property
    def span(self):
        """S."""
        return self.buckets or self.distances


TINY = DebertaV2Config(99, 32, 64, 2, 4, max_position_embeddings=64, distances=16, buckets=4)


def buckets(distance, config):
    """Rows of the embedding of distances for i - j (i64, any shape): exact ones up to half, then logarithmic."""
    found, mid = distance, config.buckets // 2
    if config.buckets:
        size = distance.abs().maximum(mid - 1).float()
        scale = (mid - 1) / math.log((config.distances - 1) / mid)
        far = (size / mid).log().mul(scale).sub(1e-5).ceil().add(mid).to("i64") * distance.sign()
        found = tensorlib.where(size <= mid, distance, far)
    return (found + config.span).clamp(0, 2 * config.span - 1)


class DebertaV2Embeddings(nn.Module):
    def __init__(self, config):
        D, places, types = config.hidden_size, config.max_position_embeddings, config.type_vocab_size
        self.word_embeddings = nn.Embedding(config.vocab_size, D)
        self.position_embeddings = nn.Embedding(places, D) if config.position_biased_input else None
        self.token_type_embeddings = nn.Embedding(types, D) if types else None
        self.LayerNorm = nn.LayerNorm(D, config.layer_norm_eps)

    def forward(self, tokens, types_N=None):
        x_ND, types = self.word_embeddings(tokens.ids), self.token_type_embeddings
        if self.position_embeddings is not None:
            x_ND = x_ND + self.position_embeddings(tokens.positions)
        if types is not None:
            x_ND = x_ND + (types.weight[0] if types_N is None else types(types_N))
        return self.LayerNorm(x_ND)


class DisentangledSelfAttention(nn.Module):
    def __init__(self, config):
        D, self._config = config.hidden_size, config
        self.query_proj, self.key_proj, self.value_proj = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        own = [] if config.share_att_key else config.pos_att_type
        self.pos_key_proj = nn.Linear(D, D) if "c2p" in own else None
        self.pos_query_proj = nn.Linear(D, D) if "p2c" in own else None

    def forward(self, x_ND, tokens, distances_SD):
        c, H = self._config, self._config.num_attention_heads
        scale = (c.hidden_size // H * (1 + len(c.pos_att_type))) ** -0.5

        def bias(q_THh, k_THh):
            places = tensorlib.arange(q_THh.shape[0], device=q_THh.device)
            rows = buckets(places.unsqueeze(1) - places, c).expand(H, -1, -1)
            found = 0.0
            if "c2p" in c.pos_att_type:
                found = self._far(q_THh, self.pos_key_proj or self.key_proj, distances_SD).gather(-1, rows)
            if "p2c" in c.pos_att_type:
                back = self._far(k_THh, self.pos_query_proj or self.query_proj, distances_SD)
                found = found + back.gather(-1, rows.transpose(1, 2)).transpose(1, 2)
            return found * scale

        qkv = nn.linears(x_ND, self.query_proj, self.key_proj, self.value_proj)
        return tokens.attend(*qkv, H, bias=bias if c.pos_att_type else None, scale=scale)

    def _far(self, x_THh, projection, distances_SD):
        """x times the projection of every distance: [H, T, 2 S]."""
        p_SHh = projection(distances_SD).reshape(distances_SD.shape[0], *x_THh.shape[1:])
        return x_THh.transpose(0, 1) @ p_SHh.permute(1, 2, 0)


class DebertaV2Attention(nn.Module):
    def __init__(self, config):
        self.self = DisentangledSelfAttention(config)
        self.output = bert.BertOutput(config.hidden_size, config)

    def forward(self, x_ND, tokens, distances_SD):
        return self.output(x_ND, self.self(x_ND, tokens, distances_SD))


class DebertaV2Layer(bert.BertLayer):
    Attention = DebertaV2Attention

    def forward(self, x_ND, tokens, distances_SD):
        x_ND = self.attention(x_ND, tokens, distances_SD)
        return self.output(x_ND, self.intermediate(x_ND))


class ConvLayer(nn.Module):
    """LayerNorm(y + act(conv x)) of a first layer's input x and output y."""

    def __init__(self, config):
        D, size, self._act = config.hidden_size, config.conv_kernel_size, config.conv_act
        self.conv = nn.Conv1d(D, D, size, padding=(size - 1) // 2)
        self.LayerNorm = nn.LayerNorm(D, config.layer_norm_eps)

    def forward(self, x_ND, y_ND, tokens):
        parts = [self.conv(x_TD.T.unsqueeze(0))[0].T for x_TD in tokens.split(x_ND)]
        return self.LayerNorm(y_ND + nn.activation(self._act)(tensorlib.cat(parts, 0)))


class DebertaV2Encoder(nn.Module):
    def __init__(self, config):
        self.layer = nn.ModuleList([DebertaV2Layer(config) for _ in range(config.num_hidden_layers)])
        self.rel_embeddings = nn.Embedding(2 * config.span, config.hidden_size) if config.pos_att_type else None
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps) if config.norm_rel_ebd else None
        self.conv = ConvLayer(config) if config.conv_kernel_size else None

    def forward(self, x_ND, tokens):
        distances_SD = self.rel_embeddings.weight if self.rel_embeddings is not None else None
        if self.LayerNorm is not None and distances_SD is not None:
            distances_SD = self.LayerNorm(distances_SD)
        for i, layer in enumerate(self.layer):
            y_ND = layer(x_ND, tokens, distances_SD)
            x_ND = self.conv(x_ND, y_ND, tokens) if self.conv is not None and i == 0 else y_ND
        return x_ND


class DebertaV2Model(nn.Module):
    """`forward(ids, attention_mask)`: ids i64 [T] or [B, T], or `nn.Sequences` -> last hidden state, as BertModel's."""

    prefix = "deberta"

    def __init__(self, config):
        self.config, self.max_length = config, config.max_position_embeddings
        self.embeddings = DebertaV2Embeddings(config)
        self.encoder = DebertaV2Encoder(config)

    def forward(self, ids, attention_mask=None, token_type_ids=None):
        tokens = nn.Sequences.of(ids, attention_mask)
        types_N = None if token_type_ids is None else tokens.pack(token_type_ids)
        return tokens.unpack(self.encoder(self.embeddings(tokens, types_N), tokens))
