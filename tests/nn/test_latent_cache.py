"""Attention over latents, against the formula in float64: prompts at once and in parts, steps, recorded steps."""

import numpy as np
import pytest

import tensorlib
from tensorlib import nn
from tensorlib.capture import Capture
from tensorlib.errors import ContextError
from tensorlib.nn import latent_cache

HEADS, TURNED, WIDE, SCALE = 3, 4, 12, 0.3
random = np.random.default_rng(4)


def turned(x):
    """Neighbouring pairs of the first dims, by the row's position."""
    angles = np.arange(len(x))[:, None] * 10000.0 ** (-np.arange(0, TURNED, 2) / TURNED)
    z = x[..., 0:TURNED:2] + 1j * x[..., 1:TURNED:2]
    z = z * np.exp(1j * angles.reshape(len(x), *[1] * (x.ndim - 2), -1))
    return np.concatenate([np.stack([z.real, z.imag], -1).reshape(*x.shape[:-1], TURNED), x[..., TURNED:]], -1)


def expected(q, latents):
    q, k = turned(q.astype("f8")), turned(latents.astype("f8"))
    scores = np.einsum("thd,sd->hts", q, k) * SCALE
    e = np.where(np.tri(len(q), dtype=bool), np.exp(scores), 0)
    return np.einsum("hts,sd->thd", e / e.sum(-1, keepdims=True), latents[:, TURNED:].astype("f8"))


@pytest.mark.parametrize("some", [1 << 24, 100])
def test_prompts_and_steps(monkeypatch, some):
    monkeypatch.setattr(latent_cache, "SCORES", some)  # 100: queries are taken one or two at a time
    t, n = 20, 32
    q, latents = (random.standard_normal((t, *shape)).astype("f4") for shape in ((HEADS, WIDE), (WIDE,)))
    want, rotary = expected(q, latents), nn.RotaryEmbedding(TURNED, n, interleaved=True)
    cache = nn.LatentCache(1, n, WIDE, "f32")
    assert sum(x.numel() for x in cache.layers) == n * WIDE, "one vector per token"

    def step(rows):
        found = cache.attend(0, tensorlib.from_numpy(q[rows]), tensorlib.from_numpy(latents[rows]), rotary, SCALE)
        cache.advance(len(q[rows]))
        return found.numpy()

    got = [step(slice(0, 7)), step(slice(7, 16)), *(step(slice(i, i + 1)) for i in range(16, t))]
    assert np.abs(np.concatenate(got) - want).max() <= 1e-5
    with pytest.raises(ContextError, match="20 tokens in the cache and 13 more"):
        cache.reserve(13)
    cache.reset(7)
    assert np.abs(step(slice(7, 16)) - want[7:16]).max() <= 1e-5


def test_recorded_steps():
    t, n = 9, 16
    q, latents = (random.standard_normal((t, *shape)).astype("f4") for shape in ((HEADS, WIDE), (WIDE,)))
    cache, rotary = nn.LatentCache(1, n, WIDE, "f32"), nn.RotaryEmbedding(TURNED, n, interleaved=True)
    one = tensorlib.from_numpy(q[:1].copy()), tensorlib.from_numpy(latents[:1].copy())
    record, found = Capture("cpu"), []
    with record:
        out = cache.attend(0, *one, rotary, SCALE)
        cache.advance(1)
    for i in range(t):
        if i:
            for x, values in zip(one, (q, latents), strict=True):
                x.copy_(tensorlib.from_numpy(values[i : i + 1].copy()))
            record.replay()
        found.append(out.numpy().copy())
    assert np.abs(np.concatenate(found) - expected(q, latents)).max() <= 1e-5
