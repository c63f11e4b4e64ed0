"""The cache of multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1): one vector per token, which is
key and value of all heads.

>>> import tensorlib
>>> from tensorlib import nn
>>> cache, rotary = nn.LatentCache(1, 16, 4 + 8), nn.RotaryEmbedding(4, 16)
>>> q, latents = tensorlib.randn(3, 2, 12), tensorlib.randn(3, 12)
>>> cache.attend(0, q, latents, rotary, scale=0.5).shape
(3, 2, 8)
"""

from tensorlib.nn.attention import KVCache
from tensorlib.nn.batch_cache import BatchCache
from tensorlib.ops import elementwise, fused, index, linalg, movement, softmax
from tensorlib.tensor import arange, zeros

SCORES = 1 << 24  # at a time


class LatentCache(KVCache):
    """Of all layers, [max_len, width] each. See KVCache: `start`, `length`, `reserve`, `advance`, `reset`."""

    def _memory(self, layers, heads, max_len, width, dtype, device):
        # what a query does not see counts 0 times itself: it has to be a number
        return [zeros((1, max_len, width), dtype=dtype, device=device) for _ in range(layers)]

    def __init__(self, layers, max_len, width, dtype="f16", device=None):
        super().__init__(layers, 1, max_len, width, dtype, device)

    def attend(self, layer, q, latents, rotary, scale):
        """Causal attention of q [T, H, width] over the latents of a layer, with `latents` [T, width] behind them.

        The first dims of both, as many as `rotary` has, turn, and are no values: [T, H, width - turned]. With one query
        all rows are read, whatever their number, so that a step can be replayed.
        """
        kept, t = self.layers[layer], q.shape[0]
        tables = rotary.tables(q.device, self.length + t)
        fused.rope_append(kept, movement.unsqueeze(latents, 1), *tables, self.start, interleaved=rotary.interleaved)
        q = fused.rope(movement.contiguous(q), *tables, self.start, interleaved=rotary.interleaved)
        n = self.max_len if t == 1 else self.length + t
        keys = movement.narrow(movement.select(kept, 0, 0), 0, 0, n)
        return _attention(q, keys, 2 * tables[0].shape[1], self.start, scale)


def _attention(q, keys, turned, start, scale):
    """Of q [T, H, width], the first at `start`, over keys [n, width], of which the dims behind `turned` are values."""
    (t, heads, width), n = q.shape, keys.shape[0]
    values, places = movement.narrow(keys, 1, turned, width - turned), arange(n, device=q.device)
    found, some = [], max(1, SCORES // (heads * n))
    for first in range(0, t, some):
        rows = movement.narrow(q, 0, first, min(some, t - first))
        scores = movement.reshape(linalg.linear(movement.reshape(rows, (-1, width)), keys), (-1, heads, n))
        at = elementwise.add(arange(first, first + rows.shape[0], device=q.device), start)
        seen = movement.unsqueeze(elementwise.le(places, movement.unsqueeze(at, 1)), 1)
        scores = elementwise.where(seen, elementwise.mul(scores, scale), float("-inf"))
        shares = movement.reshape(softmax.softmax(scores, -1), (-1, n))
        found.append(movement.reshape(linalg.matmul(shares, values), (-1, heads, width - turned)))
    return found[0] if len(found) == 1 else movement.cat(found, 0)


class BatchLatentCache(BatchCache):
    """Latents of several sequences in pages, [pages, 1, page_size, width]. See BatchCache.

    A step reads all pages that its memory has room for, so that it can be replayed: room is made in powers of two.
    """

    def __init__(self, layers, width, tokens, dtype="f16", device=None, page_size=64):
        super().__init__(layers, 1, width, tokens, dtype, device, page_size)

    @classmethod
    def like(cls, cache, streams, context, tokens, page_size=64):
        """What a model gets in place of a LatentCache: see `BatchCache.like`."""
        first = cache.layers[0]
        return cls(len(cache.layers), first.shape[-1], tokens, first.dtype, cache.start.device, page_size)

    def _pages(self, layer):
        if layer not in self._layers:
            self._layers[layer] = (zeros(self._shape, dtype=self._dtype, device=self._device),)
        return self._layers[layer]

    def width(self, sequences, most):
        """How many pages a step's memory should have: a power of two."""
        need = max(self._pages_of(self._lengths[name] + 1) for name in sequences)
        return min(1 << (need - 1).bit_length(), most)

    def attend(self, layer, q, latents, rotary, scale):
        """`LatentCache.attend` for the rows of the step: q [T, H, width], latents [T, width]."""
        rows, ((pages,), size, width) = self._step, (self._pages(layer), self.page_size, self._shape[-1])
        q, latents = self._turned(rotary, movement.contiguous(q), movement.unsqueeze(latents, 1))
        pages.reshape(-1, width)[rows.places] = movement.reshape(latents, (-1, width)).to(self._dtype)
        turned, found = 2 * rotary.tables(q.device)[0].shape[1], []
        starts = rows.starts or range(q.shape[0] + 1)
        for i, first in enumerate(starts[:-1]):
            some, table = movement.narrow(q, 0, first, starts[i + 1] - first), movement.select(rows.table, 0, i)
            n = table.shape[0] * size if rows.ends is None else rows.ends[i]
            keys = movement.reshape(
                index.index_select(pages, 0, movement.narrow(table, 0, 0, -(-n // size))), (-1, width)
            )
            start = movement.narrow(rows.positions, 0, first, 1)
            found.append(_attention(some, movement.narrow(keys, 0, 0, n), turned, start, scale))
        return found[0] if len(found) == 1 else movement.cat(found, 0)
