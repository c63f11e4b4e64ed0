"""Caches against attention over all that they were ever given, from its definition in float64."""

import numpy as np
import pytest

import tensorlib
from tensorlib import nn
from tensorlib.errors import ContextError, GradError, ShapeError

B, H, G, D = 2, 4, 2, 8
STEPS = (3, 1, 1, 4, 2, 1, 1, 1, 9, 1)


def tokens(rng, t, *batch):
    """q, k, v of t tokens in float64."""
    return [rng.uniform(-2, 2, (*batch, heads, t, D)) for heads in (H, G, G)]


def definition(q, k, v, window=0):
    """Causal attention of the last queries [H, t, D] over all keys [G, S, D]."""
    k, v = (np.repeat(x, H // G, 0) for x in (k, v))
    at, keys = np.arange(k.shape[1] - q.shape[1], k.shape[1])[:, None], np.arange(k.shape[1])
    seen = (keys <= at) & (keys > at - (window or 10**9))
    scores = np.where(seen, q @ k.swapaxes(1, 2) / D**0.5, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def agree(found, want, eps=2.0**-24):
    # scores of at most 12, so that weights have 100 roundings at most, and values of 2
    np.testing.assert_allclose(found.numpy().astype(np.float64), want, atol=2 * 100 * eps)


def ours(x, dtype="f32"):
    return tensorlib.tensor(x.astype(np.float32)).to(dtype)


def rounded(x, dtype):
    return ours(x, dtype).float().numpy().astype(np.float64)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("kind", ["append", "concat", "rotating"])
def test_batches_that_are_of_one_length(kind, dtype):
    rng, window = np.random.default_rng(0), 5 if kind == "rotating" else 0
    made = {"append": nn.AppendCache, "concat": nn.ConcatCache, "rotating": nn.RotatingCache}[kind]
    cache = made(
        **{"append": {"rows": 2, "dtype": dtype}, "concat": {}, "rotating": {"window": 5, "dtype": dtype}}[kind]
    )
    for _ in range(2):  # the second time over memory that has old tokens
        ks, vs, n = [], [], 0
        for t in STEPS:
            n += t
            q, k, v = tokens(rng, t, B)
            ks.append(rounded(k, dtype)), vs.append(rounded(v, dtype))
            k, v = (ours(x) if kind != "concat" else ours(x, dtype).float() for x in (k, v))
            found = cache.attend("only", ours(q), k, v)
            want = [
                definition(rounded(q[b], "f32"), *(np.concatenate(x, 2)[b] for x in (ks, vs)), window) for b in range(B)
            ]
            agree(found, np.stack(want))
            assert cache.length == n
        cache.reset()
        assert cache.length == 0


def test_layers_and_their_length():
    rng, cache = np.random.default_rng(0), nn.AppendCache()
    _, k, v = map(ours, tokens(rng, 3))
    for layer in (0, 1):
        keys, values = cache.append(layer, k, v)
        assert (keys == k).all() and (values == v).all()
    cache.append(0, k, v)
    assert cache.length == 3 and cache.mask(0, 1) is None
    assert cache.mask(0, 2).tolist() == [[True] * 5 + [False], [True] * 6]
    cache.append(1, k, v)
    cache.reset(4)
    keys, _ = cache.append(1, k[:, :1], v[:, :1])
    assert keys.shape[1] == 5 and (keys[:, :3] == k).all() and (keys[:, 3] == k[:, 0]).all()
    with pytest.raises(ContextError, match="reset to 9"):
        cache.reset(9)


def test_a_rings_positions():
    cache, x = nn.RotatingCache(4), tensorlib.zeros(G, 1, D)
    for n in range(6):
        cache.append(0, x, x)
        seen = sorted(cache.positions(0).tolist())
        assert seen == list(range(max(0, n - 3), n + 1))
    keys, _ = cache.append(0, x + tensorlib.arange(6).reshape(1, 6, 1), x.expand((G, 6, D)))
    assert cache.positions(0).tolist() == [3, 4, 5, *range(6, 12)] and keys[0, :, 0].tolist() == [0, 0, 0, *range(6)]
    keys, _ = cache.append(0, x + 7, x)
    assert dict(zip(cache.positions(0).tolist(), keys[0, :, 0].tolist())) == {9: 3, 10: 4, 11: 5, 12: 7}


def test_streams_at_positions_of_their_own():
    rng, window = np.random.default_rng(0), 5
    cache = nn.ScatteredCache(3, window)
    past = [[np.zeros((G, 0, D)), np.zeros((G, 0, D))] for _ in range(3)]
    for step in range(14):
        t = int(rng.choice([1, 1, 3, 7]))
        counts = [int(rng.integers(0, t + 1)) for _ in range(3)] if step % 3 else None
        if step == 8:
            cache.reset(1)
            past[1] = [x[:, :0] for x in past[1]]
        assert cache.positions(2).tolist() == [[x[0].shape[1], x[0].shape[1] + 1] for x in past]
        q, k, v = (rounded(x, "f32") for x in tokens(rng, t, 3))
        cache.step(counts)
        found = cache.attend(0, *(ours(x) for x in (q, k, v)))
        for b, n in enumerate(counts or [t] * 3):
            past[b] = [np.concatenate([x, new[b, :, :n]], 1) for x, new in zip(past[b], (k, v))]
            agree(found[b, :, :n], definition(q[b, :, :n], *past[b], window))
    assert cache.lengths == [x[0].shape[1] for x in past] and cache.length == max(cache.lengths)
    cache.step([True, False, True])
    cache.append(0, ours(k), ours(v))
    assert cache.lengths[1] == past[1][0].shape[1]


def test_pages_are_shared_and_copied_when_written_to():
    rng, cache = np.random.default_rng(0), nn.PagedCache(12, 4, G, D)
    past, used = {}, {}

    def run(sequences, counts):
        q, k, v = (rounded(x, "f32") for x in tokens(rng, sum(counts)))
        cache.step(sequences, counts)
        for layer in (0, 1):
            sign = 1 - 2 * layer
            found = cache.attend(layer, *(ours(sign * x).transpose(0, 1) for x in (q, k, v)))
            at = 0
            for name, n in zip(sequences, counts):
                old = past.get((layer, name), [np.zeros((G, 0, D))] * 2)
                new = (sign * x[:, at : at + n] for x in (k, v))
                both = past[layer, name] = [np.concatenate(x, 1) for x in zip(old, new)]
                agree(found[at : at + n].transpose(0, 1), definition(sign * q[:, at : at + n], *both))
                at += n

    a, b = cache.new(), cache.new()
    run([a, b], [6, 1])
    assert cache.free_pages == 12 - 2 - 1
    c = cache.fork(a)
    used = {layer: past[layer, a] for layer in (0, 1)}
    past.update({(layer, c): used[layer] for layer in (0, 1)})
    assert cache.free_pages == 9
    run([c, b], [1, 5])  # c gets a last page of its own, b a second one
    assert cache.free_pages == 7
    run([a, c], [3, 1])  # a's last page is its own now; a needs a third
    assert cache.free_pages == 6
    for name in (a, b, c):
        keys, values = cache.keys_values(1, name)
        agree(keys, past[1, name][0], 0), agree(values, past[1, name][1], 0)
    cache.free(a)
    assert cache.free_pages == 6 + 2  # the first one is c's as well
    cache.reset(c, 5)
    past.update({(layer, c): [x[:, :5] for x in past[layer, c]] for layer in (0, 1)})
    run([c], [4])
    with pytest.raises(ContextError, match="which are free"):
        cache.step([c], [99])
    run([c], [1])
    cache.reset()
    assert cache.free_pages == 12


def test_what_does_not_fit_is_told():
    x = tensorlib.zeros(G, 3, D)
    cache = nn.AppendCache(max_len=4)
    cache.append(0, x, x)
    with pytest.raises(ContextError, match="AppendCache: got 3 tokens and 3 more"):
        cache.append(0, x, x)
    with pytest.raises(ShapeError, match="as many tokens"):
        cache.append(0, x, x[:, :2])
    with pytest.raises(ShapeError, match="make a new cache"):
        cache.append(0, x[:1, :1], x[:1, :1])
    with pytest.raises(ShapeError, match="window 0"):
        nn.RotatingCache(0)
    scattered = nn.ScatteredCache(2, 4)
    with pytest.raises(ShapeError, match="one per stream"):
        scattered.step([1])
    with pytest.raises(ShapeError, match="put the streams first"):
        scattered.append(0, x, x)
    paged = nn.PagedCache(2, 4, G, D)
    with pytest.raises(ShapeError, match="before a step"):
        paged.append(0, x, x)
    name = paged.new()
    with pytest.raises(ShapeError, match="at least 1 token"):
        paged.step([name], [0])
    paged.step([name], [3])
    with pytest.raises(ShapeError, match="see step"):
        paged.append(0, x, x)


def test_gradients_are_refused_and_flow_through_concatenation():
    k = tensorlib.ones(1, G, 2, D, requires_grad=True)
    for cache in (nn.AppendCache(), nn.RotatingCache(4), nn.ScatteredCache(1, 4)):
        with pytest.raises(GradError, match="require a gradient"):
            cache.append(0, k, k)
        with tensorlib.no_grad():
            cache.append(0, k, k)
    cache = nn.PagedCache(1, 4, G, D)
    cache.step([cache.new()], [2])
    with pytest.raises(GradError, match="PagedCache"):
        cache.append(0, k[0].transpose(0, 1), k[0].transpose(0, 1))
    cache = nn.ConcatCache()
    cache.append(0, k, k)
    cache.append(0, k, k)[0].sum().backward()
    assert (k.grad == 2).all()
