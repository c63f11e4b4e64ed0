"""Layers taken together, on the CPU: the bits of the parts, for dense and quantised weights; errors and gradients."""

import numpy as np
import pytest

import tensorlib
from tensorlib import nn
from tensorlib.errors import ShapeError
from tensorlib.ops import decode
from tensorlib.ops import fused as ops
from tests.sim.quant_cases import weight


def layer(kind, n, k, seed=0):
    made = nn.Linear(k, n, bias=False)
    rng = np.random.default_rng(seed)
    dense = tensorlib.from_numpy(rng.standard_normal((n, k)).astype(np.float32))
    made.weight = dense if kind == "f32" else weight(kind, n, k, seed)
    return made


def draw(*shape, seed=5):
    return tensorlib.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def same(got, want):
    assert got.shape == want.shape and got.dtype is want.dtype
    np.testing.assert_array_equal(got.numpy().view(np.uint32), want.numpy().view(np.uint32))


@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize("kinds", [("f32", "f32"), ("q4_0", "q4_0"), ("q4_0", "q8_0"), ("f32", "q4_0")])
def test_they_are_the_parts(kinds, rows):
    a, b = (layer(kind, 32, 64, i) for i, kind in enumerate(kinds))
    x, y, norm = draw(rows, 64), draw(rows, 32, seed=6), nn.RMSNorm(32)
    norm.weight = draw(32, seed=7)
    for got, one in zip(nn.linears(x, a, b), (a, b), strict=True):
        same(got, one(x))
    same(nn.swiglu_linear(x, a, b), nn.swiglu(a(x), b(x)))
    total, normed = nn.add_norm(y, a, x, norm)
    same(total, y + a(x))
    same(normed, norm(y + a(x)))


def test_biases_and_other_norms():
    a, x = layer("q4_0", 32, 64), draw(2, 64)
    a.bias, norm = draw(32, seed=8), nn.LayerNorm(32)
    norm.weight, norm.bias = draw(32), draw(32, seed=9)
    same(nn.linears(x, a)[0], a.weight.linear(x) + a.bias)
    total, normed = nn.add_norm(draw(2, 32), a, x, norm)
    same(normed, norm(total))


def test_gradients():
    """Of x, through all three."""
    a, b, norm = layer("q4_0", 32, 64), layer("q4_0", 32, 64, 1), nn.RMSNorm(32)
    norm.weight = draw(32)
    x, other = draw(2, 64).requires_grad_(), draw(2, 64).requires_grad_()
    nn.add_norm(nn.swiglu_linear(x, a, b), a, x, norm)[1].sum().backward()
    norm(nn.swiglu(a(other), b(other)) + a(other)).sum().backward()
    same(x.grad, other.grad)


def test_sizes_that_do_not_fit():
    a, b = layer("q4_0", 32, 64), layer("q4_0", 64, 64)
    with pytest.raises(ShapeError):
        nn.linears(draw(1, 32), a, b)
    with pytest.raises(ShapeError):
        nn.swiglu_linear(draw(1, 64), a, b)


@pytest.mark.parametrize("t", [1, 5])
def test_attention_is_its_parts(t):
    """The caches as well."""
    found = []
    rotary = nn.RotaryEmbedding(16, 20)
    q, k, v = draw(t, 4 * 16), draw(t, 2 * 16, seed=6), draw(t, 2 * 16, seed=7)
    for together in (True, False):
        cache = nn.KVCache(1, 2, 20, 16)
        first = draw(3, 2, 16, seed=8)
        cache.append(0, first, first, rotary)
        cache.advance(3)
        if together:
            out = cache.attend(0, q, k, v, rotary)
        else:
            keys, values = cache.append(0, k.reshape(t, 2, 16), v.reshape(t, 2, 16), rotary)
            turned = rotary(q.reshape(t, 4, 16), cache.start)
            out = nn.attention(turned, keys, values, start=cache.start).reshape(t, 64)
        found.append([out, *(x[:, : 3 + t].to("f32") for x in cache.layers[0])])
    for got, want in zip(*found, strict=True):
        same(got.contiguous(), want.contiguous())


def test_attention_refuses_what_its_parts_refuse():
    q, cache, table = draw(1, 2, 16), tensorlib.zeros(1, 9, 16), tensorlib.ones(9, 8)
    with pytest.raises(ShapeError, match="a cache"):
        decode.attend(q, q, q, cache, cache, table, table, 0)
    with pytest.raises(ShapeError, match="rope"):
        decode.attend(q, q[:, :1], q[:, :1], cache, cache, tensorlib.ones(9, 9), table, 0)
    assert ops.attention(q, cache, cache, start=0).shape == (1, 2, 16)
