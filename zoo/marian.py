"""Marian (Junczys-Dowmunt et al., 2018, arXiv:1804.00344) as the OPUS-MT models have it: translation, a model for each
pair of languages.

The Transformer of arXiv:1706.03762 as it was: post-norm layers with biases, positions as sines and cosines (section
3.5; all sines first), and beside the logits a bias of each word.

Shapes: N tokens of all sequences, M of the encoder's, D hidden, F feed-forward, V vocabulary.
"""

from typing import NamedTuple

import tensorlib
from tensorlib import nn
from zoo import seq2seq


class MarianConfig(NamedTuple):
    """Hugging Face's names. `layers`, `heads`, `ffn_dims`: of the encoder and of the decoder; `shared`: whether one
    table of words serves both languages. `start`, `ends`, `never`: ids of zoo/seq2seq.py.
    """

    vocab_size: int
    decoder_vocab_size: int
    d_model: int
    layers: tuple
    heads: tuple
    ffn_dims: tuple
    activation_function: str = "swish"
    max_position_embeddings: int = 512
    scale_embedding: bool = True
    shared: bool = True
    start: int = 0
    ends: tuple = (0,)
    never: tuple = ()

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        for name in ("normalize_before", "normalize_embedding", "add_final_layer_norm"):
            c.only(name, bool, False)
        for name in ("static_position_embeddings", "tie_word_embeddings"):
            c.only(name, bool, True)
        pad = c("pad_token_id", int, 58100)
        return cls(
            vocab_size=c("vocab_size", int),
            decoder_vocab_size=c("decoder_vocab_size", int, c("vocab_size", int)),
            d_model=c("d_model", int),
            layers=tuple(c(f"{half}_layers", int) for half in HALVES),
            heads=tuple(c(f"{half}_attention_heads", int) for half in HALVES),
            ffn_dims=tuple(c(f"{half}_ffn_dim", int) for half in HALVES),
            activation_function=c.act("activation_function", "gelu"),
            max_position_embeddings=c("max_position_embeddings", int, 1024),
            scale_embedding=c("scale_embedding", bool, False),
            shared=c("share_encoder_decoder_embeddings", bool, True),
            start=c("decoder_start_token_id", int, pad),
            ends=c.ids("eos_token_id", 0),
            never=(pad,),
        )


HALVES = "encoder", "decoder"
TINY = MarianConfig(99, 99, 32, (2, 2), (4, 4), (64, 64), max_position_embeddings=64, start=98, never=(98,))


def sinusoids(count, size):
    """[count, size] f32: sin and cos of position / 10000^(2 i / size), the halves of a row."""
    places = tensorlib.arange(count, dtype="f64").unsqueeze(1)
    rates = [10000.0 ** (-2 * i / size) for i in range(size // 2)]
    angles = places * tensorlib.tensor(rates, dtype="f64")
    return tensorlib.cat([angles.sin(), angles.cos()], 1).float()


class MarianAttention(nn.Module):
    def __init__(self, config, heads):
        D, self._heads = config.d_model, heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(D, D) for _ in range(4))

    def forward(self, x_ND, tokens, causal, cache=None):
        """`cache`: f(k, v) gives all keys and values of one sequence."""
        q_ND, k_ND, v_ND = nn.linears(x_ND, self.q_proj, self.k_proj, self.v_proj)
        if cache is None:
            return self.out_proj(tokens.attend(q_ND, k_ND, v_ND, self._heads, causal=causal))
        k_MD, v_MD = cache(k_ND, v_ND)
        memory = nn.Sequences([[0] * k_MD.shape[0]])
        return self.out_proj(tokens.attend(q_ND, k_MD, v_MD, self._heads, memory=memory, causal=causal))

    def memory(self, x_MD):
        """Keys and values of the encoder's result."""
        return nn.linears(x_MD, self.k_proj, self.v_proj)

    def cross(self, x_ND, tokens, k_MD, v_MD, memory):
        """Attention to the encoder's tokens."""
        return self.out_proj(tokens.attend(self.q_proj(x_ND), k_MD, v_MD, self._heads, memory=memory))


class MarianLayer(nn.Module):
    """`which`: 0 of the encoder, 1 of the decoder."""

    def __init__(self, config, which):
        D, F, heads = config.d_model, config.ffn_dims[which], config.heads[which]
        self._decoder, self._act = bool(which), config.activation_function
        self.self_attn, self.self_attn_layer_norm = MarianAttention(config, heads), nn.LayerNorm(D)
        if which:
            self.encoder_attn, self.encoder_attn_layer_norm = MarianAttention(config, heads), nn.LayerNorm(D)
        self.fc1, self.fc2, self.final_layer_norm = nn.Linear(D, F), nn.Linear(F, D), nn.LayerNorm(D)

    def forward(self, x_ND, tokens, cache, memory):
        x_ND = self.self_attn_layer_norm(x_ND + self.self_attn(x_ND, tokens, self._decoder, cache))
        if self._decoder:
            x_ND = self.encoder_attn_layer_norm(x_ND + self.encoder_attn.cross(x_ND, tokens, *memory))
        return self.final_layer_norm(x_ND + self.fc2(nn.activation(self._act)(self.fc1(x_ND))))


class MarianStack(nn.Module):
    def __init__(self, config, which):
        c, words = config, (config.vocab_size, config.decoder_vocab_size)[which]
        self._config, self._places = c, {}
        if not c.shared:
            self.embed_tokens = nn.Embedding(words, c.d_model)
        self.layers = nn.ModuleList([MarianLayer(c, which) for _ in range(c.layers[which])])

    def places(self, positions):
        """What is added at each position."""
        if positions.device not in self._places:
            made = sinusoids(self._config.max_position_embeddings, self._config.d_model)
            self._places[positions.device] = made.to(positions.device)
        return self._places[positions.device][positions]

    def forward(self, tokens, words, cache=None, memories=None):
        x_ND = words(tokens.ids) * (self._config.d_model**0.5 if self._config.scale_embedding else 1.0)
        x_ND = x_ND + self.places(tokens.positions + (0 if cache is None else cache.length))
        for i, layer in enumerate(self.layers):
            append = None if cache is None else lambda k, v, i=i: cache.append(i, k, v)
            x_ND = layer(x_ND, tokens, append, memories and memories[i])
        return x_ND


class MarianMTModel(seq2seq.Seq2Seq):
    """`forward(ids, decoder_ids)`: see Seq2Seq."""

    def __init__(self, config):
        self.config, self.max_length = config, config.max_position_embeddings
        shared = {"shared": nn.Embedding(config.vocab_size, config.d_model)} if config.shared else {}
        self.model = nn.ModuleDict({**shared, **{half: MarianStack(config, i) for i, half in enumerate(HALVES)}})
        words = config.vocab_size if config.shared else config.decoder_vocab_size
        self.final_logits_bias = nn.Buffer(1, words, optional=True)

    def words(self, half):
        """The table of words of one half."""
        return self.model["shared"] if self.config.shared else self.model[half].embed_tokens

    def encode(self, tokens):
        return self.model["encoder"](tokens, self.words("encoder"))

    def crossings(self):
        return [layer.encoder_attn for layer in self.model["decoder"].layers]

    def decode(self, tokens, cache, memories):
        x_ND = self.model["decoder"](tokens, self.words("decoder"), cache, memories)
        return self.words("decoder").as_linear(x_ND) + self.final_logits_bias
