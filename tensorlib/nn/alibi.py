"""Attention with linear biases (arXiv:2108.12409): in place of positions, a penalty per head that grows with distance.

>>> from tensorlib import nn
>>> nn.alibi_slopes(4)
[0.25, 0.0625, 0.015625, 0.00390625]
"""

from math import ceil, log2

from tensorlib.nn.module import Module
from tensorlib.ops import elementwise, movement
from tensorlib.tensor import tensor, zeros

FINE = 64  # positions are told in multiples of this and the rest: both are whole numbers that f16 has, up to 131,072


def alibi_slopes(heads, bias_max=8):
    """The penalty of every head per token of distance: 2^(-bias_max / n), 2^(-2 bias_max / n), ... for n heads, and for
    a number that is no power of two those of the next one, every other first.
    """
    n = 2 ** ceil(log2(heads))
    slopes = [2.0 ** (-bias_max * (i + 1) / n) for i in range(n)]
    return slopes if n == heads else (slopes[1::2] + slopes[::2])[:heads]


class Alibi(Module):
    """The biases as two dims more of every query and key, whose product they are; softmax takes no notice of what all
    keys of a query have in common, so that a key's own position is enough. Any attention and any cache does the rest.

    `wide`: how wide heads are then, in a cache, too. `scaled`: biases are times `scale`, as scores are. In f32 a bias
    is off by 2^-24 of slope * position.

    >>> import tensorlib
    >>> from tensorlib import nn
    >>> alibi, cache = nn.Alibi(heads=4, head_dim=8), nn.FullAttention(10)
    >>> x = tensorlib.randn(3, 32)
    >>> q, k, v = alibi(x, x, x, cache.positions(x[:, 0]))
    >>> alibi.values(cache.attend(0, q, k, v, None, scale=alibi.scale)).shape
    (3, 32)
    """

    def __init__(self, heads, head_dim, bias_max=8, scale=None, scaled=False):
        self._heads, self._head_dim, self.wide = heads, head_dim, head_dim + 2
        self.scale = head_dim**-0.5 if scale is None else scale
        less = 1.0 if scaled else self.scale
        self._slopes, self._made = [slope / less for slope in alibi_slopes(heads, bias_max)], {}

    def forward(self, q, k, v, positions):
        """q, k, v [..., T, heads * head_dim], k and v of fewer heads where groups of q's share them, of tokens at
        `positions` (i64 [T]): [..., T, heads * wide], each.
        """
        *batch, t, _ = q.shape
        if q.device not in self._made:
            pairs = [[FINE * slope, slope] for slope in self._slopes]
            self._made[q.device] = tensor(pairs, device=q.device), zeros(2, device=q.device)
        slopes, none = self._made[q.device]
        coarse, fine = elementwise.floor_divide(positions, FINE), elementwise.remainder(positions, FINE)
        places = elementwise.cast(movement.stack([coarse, fine], -1), "f32")

        def widened(x, more):
            heads = x.shape[-1] // self._head_dim
            more = movement.broadcast_to(more, (*batch, t, heads, 2))
            x = movement.reshape(x, (*batch, t, heads, self._head_dim))
            return movement.reshape(movement.cat([x, more], -1), (*batch, t, heads * self.wide))

        return widened(q, slopes), widened(k, movement.unsqueeze(places, 1)), widened(v, none)

    def values(self, x):
        """What attention gave [..., heads * wide] without the dims that are no values: [..., heads * head_dim]."""
        x = movement.reshape(x, (*x.shape[:-1], self._heads, self.wide))
        x = movement.narrow(x, x.ndim - 1, 0, self._head_dim)
        return movement.reshape(x, (*x.shape[:-2], self._heads * self._head_dim))
