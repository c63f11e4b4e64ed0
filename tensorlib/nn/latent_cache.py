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
from tensorlib.ops import elementwise, fused, linalg, movement, softmax
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
        kept, (t, heads, width), tables = self.layers[layer], q.shape, rotary.tables(q.device)
        turned = 2 * tables[0].shape[1]
        fused.rope_append(kept, movement.unsqueeze(latents, 1), *tables, self.start, interleaved=rotary.interleaved)
        q = fused.rope(movement.contiguous(q), *tables, self.start, interleaved=rotary.interleaved)
        n = self.max_len if t == 1 else self.length + t
        keys = movement.narrow(movement.select(kept, 0, 0), 0, 0, n)
        values, places = movement.narrow(keys, 1, turned, width - turned), arange(n, device=q.device)
        found, some = [], max(1, SCORES // (heads * n))
        for first in range(0, t, some):
            rows = movement.narrow(q, 0, first, min(some, t - first))
            scores = movement.reshape(linalg.linear(movement.reshape(rows, (-1, width)), keys), (-1, heads, n))
            at = elementwise.add(arange(first, first + rows.shape[0], device=q.device), self.start)
            seen = movement.unsqueeze(elementwise.le(places, movement.unsqueeze(at, 1)), 1)
            scores = elementwise.where(seen, elementwise.mul(scores, scale), float("-inf"))
            shares = movement.reshape(softmax.softmax(scores, -1), (-1, n))
            found.append(movement.reshape(linalg.matmul(shares, values), (-1, heads, width - turned)))
        return found[0] if len(found) == 1 else movement.cat(found, 0)
