"""Biases of attention as dims of queries and keys, against the formula in float64, also far from the beginning."""

import numpy as np
import pytest

import tensorlib
from tensorlib import nn

random = np.random.default_rng(2)


def expected(q, k, v, slopes, scale, rows):
    """The last rows of the result."""
    t, heads, width = q.shape[0], len(slopes), q.shape[1] // len(slopes)
    q, k, v = (x.reshape(t, heads, width).astype("f8").swapaxes(0, 1) for x in (q, k, v))
    distance = np.arange(t)[-rows:, None] - np.arange(t)
    scores = q[:, -rows:] @ k.swapaxes(1, 2) * scale - np.array(slopes)[:, None, None] * distance
    scores = np.where(distance >= 0, scores, -np.inf)
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(rows, -1)


@pytest.mark.parametrize("heads, slopes", [(2, [2**-4, 2**-8]), (3, [2**-4, 2**-8, 2**-2]), (4, None)])
def test_slopes(heads, slopes):
    assert nn.alibi_slopes(heads) == (slopes or [2**-2, 2**-4, 2**-6, 2**-8])


def test_whole_sequences_and_caches():
    """A prompt of 2,998 tokens and steps after it, also in f16, in which not every position is a number."""
    t, heads, width, scale, rows = 3000, 3, 8, 0.4, 50
    alibi = nn.Alibi(heads, width, 8, scale)
    q, k, v = (random.standard_normal((t, heads * width)).astype("f4") for _ in range(3))
    want = expected(q, k, v, nn.alibi_slopes(heads), scale, rows)
    tensors = [tensorlib.from_numpy(x) for x in (q, k, v)]

    def found(cache, part):
        some = [x[part] for x in tensors]
        cache.reserve(some[0].shape[0])
        y = cache.attend(0, *alibi(*some, cache.positions(some[0][:, 0])), None, scale=scale)
        cache.advance(some[0].shape[0])
        return alibi.values(y).numpy()

    # scores are sums of up to slope * position, 2^-2 * 3,000, in f32; f16 rounds keys and values by 2^-11, and scores
    # of up to some 2 sqrt(8) * 4 by as much of themselves
    for dtype, tolerance in (("f32", 750 * 2.0**-22), ("f16", 30 * 2.0**-11)):
        cache = nn.KVCache(1, heads, t, alibi.wide, dtype)
        got = [found(cache, slice(0, t - 2)), found(cache, slice(t - 2, t - 1)), found(cache, slice(t - 1, t))]
        assert np.abs(np.concatenate(got)[-rows:] - want).max() <= tolerance * np.abs(want).max()
    whole = found(nn.FullAttention(alibi.wide), slice(0, t))
    assert np.abs(whole[-rows:] - want).max() <= 750 * 2.0**-22 * np.abs(want).max()
