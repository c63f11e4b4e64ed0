"""Encoder-decoders (arXiv:1706.03762, section 3): what T5 and Marian have in common around their layers.

An encoder reads a text once; every layer of a decoder attends to its own tokens so far, and to keys and values made of
the encoder's result. A model says how it does so:

    encode(tokens)                    the encoder's result [M, D]
    crossings()                       the decoder's attentions to it, with `memory(x) -> (keys, values)`, layer by layer
    decode(tokens, cache, memories)   logits [N, V] of what follows each of the decoder's tokens
    start, ends, never                of the config: the id that texts begin with, those that end them, those never said

Shapes: N tokens of all sequences, M of the encoder's, D hidden, V vocabulary.
"""

import tensorlib
from tensorlib import nn


class DecoderCache:
    """What a decoder keeps of one sequence: its own keys and values; the encoder's, `memories`, are made once."""

    def __init__(self, memories):
        self.memories, self.length, self._layers = memories, 0, {}

    def append(self, layer, k, v):
        """All keys and values of a layer, with k and v [T, Q] behind them."""
        if layer in self._layers:
            k, v = (tensorlib.cat([old, new], 0) for old, new in zip(self._layers[layer], (k, v)))
        self._layers[layer] = k, v
        return k, v


class Seq2Seq(nn.Module):
    """`forward(ids, decoder_ids)`: logits [..., V] of what follows each of the decoder's tokens; both [T] or [B, T].

    `new_cache(ids)` and `step(ids, cache)`: the same for one sequence, token by token.
    """

    def memories(self, tokens):
        """(keys, values, tokens) of the encoder's result, for each layer of the decoder."""
        x_MD = self.encode(tokens)
        return [(*part.memory(x_MD), tokens) for part in self.crossings()]

    def new_cache(self, ids):
        """What `step` takes, for the text `ids` [T]."""
        return DecoderCache(self.memories(nn.Sequences.of(ids)))

    def step(self, ids, cache):
        """Logits [T, V] after each of the tokens `ids` [T], which come behind those that the cache has."""
        logits = self.decode(nn.Sequences.of(ids), cache, cache.memories)
        cache.length += ids.shape[0]
        return logits

    def forward(self, ids, decoder_ids, attention_mask=None, decoder_attention_mask=None):
        tokens = nn.Sequences.of(decoder_ids, decoder_attention_mask)
        memories = self.memories(nn.Sequences.of(ids, attention_mask))
        return tokens.unpack(self.decode(tokens, None, memories))

    def answer(self, ids, max_tokens, choose=None, stop_ids=None):
        """Yields the next id again and again, for the text `ids` [T] (i64): at most `max_tokens`, up to one of
        `stop_ids` (None: those that end texts), which is not among them. `choose`: f(logits [1, V]) that gives it; the
        likeliest if None.
        """
        c, cache = self.config, None
        token, stop_ids = c.start, c.ends if stop_ids is None else stop_ids
        for _ in range(max_tokens):
            with tensorlib.no_grad():  # not around the yield: it would be the caller's
                cache = self.new_cache(ids) if cache is None else cache
                scores = self.step(tensorlib.tensor([token], dtype="i64", device=ids.device), cache)
                for never in c.never:
                    scores[:, never] = -float("inf")
                token = scores[0].argmax().item() if choose is None else choose(scores)
            if token in stop_ids:
                return
            yield token
