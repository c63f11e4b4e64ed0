"""T5 (arXiv:1910.10683), 1.1 and Flan-T5 (arXiv:2210.11416): every task as text to text, an encoder and a decoder.

Section 2.1: pre-norm without biases, RMSNorm, scores that are not scaled, and positions only as a number per head that
is added to them, learned for each bucket of distances (shared by all layers). 1.1: GeGLU, an output layer of its own.

Shapes: N tokens of all sequences, M of the encoder's, D hidden, H heads, h head dim, V vocabulary; Q = H h.
"""

import math
from typing import NamedTuple

import tensorlib
from tensorlib import nn
from zoo import seq2seq


class T5Config(NamedTuple):
    """Hugging Face's names. `gated`: GeGLU; `tie_word_embeddings`: logits are products with the table of words.
    `start`, `ends`: ids of zoo/seq2seq.py.
    """

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    num_decoder_layers: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    act: str = "relu"
    gated: bool = False
    layer_norm_epsilon: float = 1e-6
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool = True
    start: int = 0
    ends: tuple = (1,)
    never = ()

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        tied, projection = c("tie_word_embeddings", bool, True), c("feed_forward_proj", str, "relu")
        return cls(
            *(c(name, int) for name in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")),
            num_decoder_layers=c("num_decoder_layers", int, c("num_layers", int)),
            relative_attention_num_buckets=c("relative_attention_num_buckets", int, 32),
            relative_attention_max_distance=c("relative_attention_max_distance", int, 128),
            act=c.act("dense_act_fn", "gelu_new" if projection == "gated-gelu" else projection.removeprefix("gated-")),
            gated=c("is_gated_act", bool, projection.startswith("gated-")),
            layer_norm_epsilon=c("layer_norm_epsilon", float, 1e-6),
            tie_word_embeddings=tied,
            scale_decoder_outputs=c("scale_decoder_outputs", bool, tied and c("model_type", str, "") != "mt5"),
            start=c("decoder_start_token_id", int, c("pad_token_id", int, 0)),
            ends=c.ids("eos_token_id", 1),
        )

    @classmethod
    def from_gguf(cls, c):
        """Out of the metadata of a GGUF file (zoo/gguf_encoders.py); without GeGLU it is of ReLU."""
        (words, hidden, wide, layers, heads), gated = c.sizes(), "enc.blk.0.ffn_gate.weight" in c
        tied = "output.weight" not in c
        return cls(
            words, hidden, c("attention.key_length", int), wide, layers, heads, c("decoder_block_count", int, layers),
            relative_attention_num_buckets=c("attention.relative_buckets_count", int, 32),
            act="gelu_new" if gated else "relu", gated=gated,
            layer_norm_epsilon=c("attention.layer_norm_rms_epsilon", float, 1e-6),
            tie_word_embeddings=tied, scale_decoder_outputs=tied,
            start=c("decoder_start_token_id", int, 0),
            ends=(c.file.require("tokenizer.ggml.eos_token_id", int, 1),),
        )  # fmt: skip


TINY = T5Config(99, 32, 8, 64, 2, 4, 2)


def buckets(distance, count, most, both):
    """Bucket of each distance j - i (i64): exact ones up to half, then logarithmic; `both` directions, or back only."""
    half = count // 2 if both else count
    first, exact = (distance > 0).to("i64") * half if both else 0, half // 2
    distance = distance.abs() if both else (-distance).clamp(min=0)
    # some distances lie at the edge of a bucket: the small number puts them above it, where exact logarithms do
    grown = (distance.clamp(min=1).float() / exact).log() / math.log(most / exact) * (half - exact) + 1e-6
    far = (grown.clamp(min=0.0).to("i64") + exact).clamp(max=half - 1)
    return tensorlib.where(distance < exact, distance, far) + first


class T5Attention(nn.Module):
    def __init__(self, config, relative=False):
        D, Q, self._heads = config.d_model, config.num_heads * config.d_kv, config.num_heads
        self.q, self.k, self.v = (nn.Linear(D, Q, bias=False) for _ in range(3))
        self.o = nn.Linear(Q, D, bias=False)
        if relative:
            self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)

    def forward(self, x_ND, tokens, bias, cache=None):
        """`cache`: f(k, v) gives all keys and values of one sequence."""
        q_NQ, k_NQ, v_NQ = nn.linears(x_ND, self.q, self.k, self.v)
        if cache is not None:
            k_NQ, v_NQ = cache(k_NQ, v_NQ)
        memory = tokens if cache is None else nn.Sequences([[0] * k_NQ.shape[0]])
        return self.o(tokens.attend(q_NQ, k_NQ, v_NQ, self._heads, bias=bias, memory=memory, scale=1.0))

    def memory(self, x_MD):
        """Keys and values of the encoder's result."""
        return nn.linears(x_MD, self.k, self.v)

    def cross(self, x_ND, tokens, k_MQ, v_MQ, memory):
        """Attention to the encoder's tokens."""
        return self.o(tokens.attend(self.q(x_ND), k_MQ, v_MQ, self._heads, memory=memory, scale=1.0))


class T5Dense(nn.Module):
    def __init__(self, config):
        D, F, self._act = config.d_model, config.d_ff, config.act
        for name in ("wi_0", "wi_1") if config.gated else ("wi",):
            setattr(self, name, nn.Linear(D, F, bias=False))
        self.wo, self._gated = nn.Linear(F, D, bias=False), config.gated

    def forward(self, x_ND):
        act = nn.activation(self._act)
        return self.wo(act(self.wi_0(x_ND)) * self.wi_1(x_ND) if self._gated else act(self.wi(x_ND)))


class T5Block(nn.Module):
    def __init__(self, config, first, decoder):
        cross = {"EncDecAttention": T5Attention(config)} if decoder else {}
        parts = {"SelfAttention": T5Attention(config, first), **cross, "DenseReluDense": T5Dense(config)}
        norms = [nn.RMSNorm(config.d_model, config.layer_norm_epsilon) for _ in parts]
        pairs = zip(parts.items(), norms)
        self.layer = nn.ModuleList([nn.ModuleDict({name: part, "layer_norm": norm}) for (name, part), norm in pairs])

    def forward(self, x_ND, tokens, bias, cache=None, memory=None):
        own, *others, dense = self.layer
        x_ND = x_ND + own.SelfAttention(own.layer_norm(x_ND), tokens, bias, cache)
        for other in others:
            x_ND = x_ND + other.EncDecAttention.cross(other.layer_norm(x_ND), tokens, *memory)
        return x_ND + dense.DenseReluDense(dense.layer_norm(x_ND))


class T5Stack(nn.Module):
    def __init__(self, config, decoder):
        self._config, self._decoder = config, decoder
        count = config.num_decoder_layers if decoder else config.num_layers
        self.block = nn.ModuleList([T5Block(config, i == 0, decoder) for i in range(count)])
        self.final_layer_norm = nn.RMSNorm(config.d_model, config.layer_norm_epsilon)

    def bias(self, q, k):
        """What is added to the scores of queries that end with the last key: [H, queries, keys]."""
        (n, m), c = (q.shape[0], k.shape[0]), self._config
        distance = tensorlib.arange(m, device=q.device) - tensorlib.arange(m - n, m, device=q.device).unsqueeze(1)
        sizes = c.relative_attention_num_buckets, c.relative_attention_max_distance
        table = self.block[0].layer[0].SelfAttention.relative_attention_bias
        found = table(buckets(distance, *sizes, not self._decoder)).permute(2, 0, 1)
        return found.masked_fill(distance > 0, -float("inf")) if self._decoder else found

    def forward(self, x_ND, tokens, cache=None, memories=None):
        for i, block in enumerate(self.block):
            append = None if cache is None else lambda k, v, i=i: cache.append(i, k, v)
            x_ND = block(x_ND, tokens, self.bias, append, memories and memories[i])
        return self.final_layer_norm(x_ND)


class T5EncoderModel(nn.Module):
    """`forward(ids, attention_mask)`: ids i64 [T] or [B, T], or `nn.Sequences` -> last hidden state, as BertModel's."""

    prefix, max_length = None, 512
    spare = {"shared.weight": [f"{half}.embed_tokens.weight" for half in ("decoder", "encoder")]}  # as MADLAD has it

    def __init__(self, config):
        self.config, self.shared = config, nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = T5Stack(config, decoder=False)

    def forward(self, ids, attention_mask=None):
        tokens = nn.Sequences.of(ids, attention_mask)
        return tokens.unpack(self.encoder(self.shared(tokens.ids), tokens))


class T5ForConditionalGeneration(seq2seq.Seq2Seq, T5EncoderModel):
    """`forward(ids, decoder_ids)`: see Seq2Seq."""

    def __init__(self, config):
        super().__init__(config)
        self.decoder = T5Stack(config, decoder=True)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)

    def encode(self, tokens):
        return self.encoder(self.shared(tokens.ids), tokens)

    def crossings(self):
        return [block.layer[1].EncDecAttention for block in self.decoder.block]

    def decode(self, tokens, cache, memories):
        return self.logits(self.decoder(self.shared(tokens.ids), tokens, cache, memories))

    def logits(self, x_ND):
        """Scores [N, V] of what follows."""
        x_ND = x_ND * self.config.d_model**-0.5 if self.config.scale_decoder_outputs else x_ND
        return self.shared.as_linear(x_ND) if self.config.tie_word_embeddings else self.lm_head(x_ND)
