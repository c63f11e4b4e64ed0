"""Caches, attention, experts and LoRA on a GPU: what they give on the CPU."""

import copy

import numpy as np
import pytest

import tensorlib
from tensorlib import nn

D = 16


def close(gpu, cpu, scale=1.0):
    # sums of up to 64 products of numbers below 4, and weights of a softmax: some 200 roundings
    np.testing.assert_allclose(gpu.detach().cpu().numpy(), cpu.detach().numpy(), atol=scale * 4 * 200 * 2.0**-24)


def moved(*tensors):
    return [x.to("cuda:0") for x in tensors]


@pytest.mark.parametrize("make", [
    lambda: nn.AppendCache(rows=2), lambda: nn.AppendCache(dtype="f16"), nn.ConcatCache, lambda: nn.RotatingCache(3),
    lambda: nn.ScatteredCache(2, 3),
], ids=["append", "f16", "concat", "rotating", "scattered"])  # fmt: skip
def test_caches(make):
    tensorlib.manual_seed(0)
    here, there = make(), make()
    for t in (2, 1, 1, 3, 1):
        q, k, v = (tensorlib.randn(2, heads, t, D) for heads in (2, 1, 1))
        close(there.attend(0, *moved(q, k, v)), here.attend(0, q, k, v))


@pytest.mark.parametrize("dtype", ["f8e4m3", "f8e5m2"])
def test_float8_of_a_cache(dtype):
    tensorlib.manual_seed(0)
    k = tensorlib.randn(1, 1, 3, D)
    cache = nn.AppendCache(dtype=dtype)
    keys, _ = cache.append(0, *moved(k, k))
    assert keys.dtype.name == dtype
    close(keys.to("f32"), k.to(dtype).to("f32"), 0)


def test_pages():
    tensorlib.manual_seed(0)
    here, there = (nn.PagedCache(5, 4, 1, D, device=device) for device in ("cpu", "cuda:0"))
    for step in range(3):
        if not step:
            names = [[cache.new(), cache.new()] for cache in (here, there)]
        counts = (5, 2) if not step else (1, 1)
        for cache, own in zip((here, there), names):
            cache.step(own, counts)
        q, k, v = (tensorlib.randn(sum(counts), heads, D) for heads in (2, 1, 1))
        close(there.attend(0, *moved(q, k, v)), here.attend(0, q, k, v))


@pytest.mark.parametrize("make", [
    lambda: nn.MultiheadAttention(D, 2), lambda: nn.MoE(D, 8, 4, 2, scoring="sigmoid", shared_size=8),
    lambda: nn.lora.LoRALinear(nn.Linear(D, 8), 2, 4, dora=True),
    lambda: nn.utils.spectral_norm(nn.Linear(D, 8)),
], ids=["attention", "experts", "dora", "spectral"])  # fmt: skip
def test_layers_and_their_gradients(make):
    tensorlib.manual_seed(0)
    here, given, outs = make(), tensorlib.randn(5, D), []
    assert here.parameters()  # made now, so that the copy has the same
    there = copy.deepcopy(here).to("cuda:0")
    for layer, x in ((here, given), (there, *moved(given))):
        outs.append(layer(x, x, x)[0] if isinstance(layer, nn.MultiheadAttention) else layer(x))
        outs[-1].square().sum().backward()
    close(outs[1], outs[0])
    for (name, p), (_, q) in zip(here.named_parameters(), there.named_parameters()):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            close(q.grad, p.grad, 10)


def test_rotation_at_positions():
    tensorlib.manual_seed(0)
    rotary = nn.RotaryEmbedding(D, 32, scaling=([2.0**-i for i in range(8)], 1.25), sections=(4, 2, 2))
    x, places = tensorlib.randn(4, 2, D), tensorlib.randint(0, 32, (3, 4))
    close(rotary(x.to("cuda:0"), positions=places.to("cuda:0")), rotary(x, positions=places))
