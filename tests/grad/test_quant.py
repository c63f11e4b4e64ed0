"""Gradients through products with quantised weights, and through the layers of `tensorlib.nn`."""

import numpy as np
import pytest
import torch

import tensorlib
from tensorlib import nn
from tensorlib.autograd import grad
from tensorlib.errors import GradError
from tensorlib.ops import linalg
from tensorlib.quant import tensor as quant
from tests.grad.cases import against_torch, randn, tensor


def weight(fmt, n, k):
    """A QTensor of random blocks and its values."""
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, n * k // 32 * {"q8_0": 34, "q4_0": 18, "iq4_nl": 18}[fmt], dtype=np.uint8)
    blocks = data.reshape(n * k // 32, -1)
    blocks[:, :2] = rng.uniform(-0.01, 0.01, len(blocks)).astype(np.float16).view(np.uint8).reshape(-1, 2)
    made = quant.from_bytes(data.tobytes(), (n, k), fmt)
    return made, made.dequantize(cls=tensorlib.Tensor)


@pytest.mark.parametrize("lead", [(), (3,), (2, 20)])
@pytest.mark.parametrize("fmt", ["q8_0", "q4_0", "iq4_nl"])
def test_the_gradient_is_that_of_the_dense_weight(fmt, lead):
    """iq4_nl has no kernel for products: it is dequantised."""
    w, dense = weight(fmt, 40, 64)
    x = tensor(randn(np.random.default_rng(1), *lead, 64), "f32").requires_grad_()
    g = tensor(randn(np.random.default_rng(2), *lead, 40), "f32")
    out = linalg.linear(x, w, tensorlib.ones(40, requires_grad=True))
    out.backward(g)
    want = linalg.matmul(g, dense)
    np.testing.assert_allclose(x.grad.numpy(), want.numpy(), rtol=0, atol=1e-5 * abs(want.numpy()).max())


def test_weights_are_dequantised_piece_by_piece(monkeypatch):
    w, dense = weight("q8_0", 100, 64)
    monkeypatch.setattr(quant, "DENSE_BYTES", 4 * 64 * 33)
    g = tensor(randn(np.random.default_rng(2), 5, 100), "f32")
    want = linalg.matmul(g, dense).numpy()
    np.testing.assert_allclose(quant.quantized_product(g, w).numpy(), want, rtol=0, atol=1e-5 * abs(want).max())


def test_second_gradients_and_residuals():
    w, _ = weight("q8_0", 40, 64)
    x = tensor(randn(np.random.default_rng(1), 3, 64), "f32").requires_grad_()
    residual = tensorlib.ones(3, 40, requires_grad=True)
    out = w.linear(x, residual)
    slope, other = grad(out.square().sum(), [x, residual], create_graph=True)
    np.testing.assert_allclose(other.detach().numpy(), 2 * out.detach().numpy(), rtol=1e-6)
    (found,) = grad((slope * slope).sum(), [x])  # d |2 W^T W x|^2 / dx = 8 (W^T W)^2 x
    dense = w.dequantize(cls=tensorlib.Tensor).to("f64").numpy()
    twice = dense.T @ dense
    want = 8 * (x.detach().to("f64").numpy() @ twice + np.ones((3, 40)) @ dense) @ twice
    step = 4 / 254  # of the activations that the products round, one after the other
    np.testing.assert_allclose(found.numpy(), want, rtol=0, atol=step * abs(want).max())


def test_blocks_have_no_gradient():
    w, _ = weight("q8_0", 40, 64)
    x = tensorlib.ones(1, 64, requires_grad=True)
    with pytest.raises(GradError, match="blocks of q8_0"):
        w.requires_grad_()
    assert w.requires_grad_(False) is w
    with pytest.raises(GradError, match="requires no gradient"):
        grad(w.linear(x).sum(), [w])


def test_rows_of_a_quantised_table_while_others_are_recorded():
    w, dense = weight("q8_0", 5, 64)
    scale = tensorlib.ones(64, requires_grad=True)
    (w.embedding(tensorlib.tensor([1, 3])) * scale).sum().backward()
    np.testing.assert_allclose(scale.grad.numpy(), dense[[1, 3]].sum(0).numpy(), rtol=1e-6)


@pytest.mark.parametrize("quantised", [False, True])
def test_layers(quantised):
    """A small model of every layer: gradients of its input's table and of all its weights."""
    q, dense = weight("q8_0", 32, 32)
    rng, ids = np.random.default_rng(0), tensorlib.tensor([[0, 2, 2], [3, 0, 2]])
    arrays = [randn(rng, 4, 32), randn(rng, 32), randn(rng, 32), randn(rng, 32), randn(rng, 32)]
    rotary = nn.RotaryEmbedding(8, 9)
    start = tensorlib.tensor([1])

    def ours(table, a, b, c, d):
        embedding, norm, other = nn.Embedding(4, 32), nn.LayerNorm(32), nn.RMSNorm(32)
        linear = nn.Linear(32, 32, bias=True)
        embedding.weight, norm.weight, norm.bias, other.weight, linear.bias = table, a, b, c, d
        linear.weight = q if quantised else dense
        x = other(nn.swiglu(linear(norm(embedding(ids))), embedding(ids)))
        return embedding.as_linear(rotary(x.reshape(6, 4, 8), start).reshape(2, 3, 32))

    def theirs(table, a, b, c, d):
        functions = torch.nn.functional
        x = table[torch.tensor(ids.numpy())]
        y = functions.layer_norm(x, (32,), a, b) @ torch.tensor(dense.to("f64").numpy()).T + d
        y = functions.rms_norm(functions.silu(y) * x, (32,), c, 1e-6).reshape(6, 4, 2, 4)
        tables = (tensorlib.Tensor(t.buffer, t.layout, t.dtype).to("f64").numpy() for t in rotary.tables())
        cos, sin = (torch.tensor(t)[1:7, None] for t in tables)
        y = torch.stack([y[:, :, 0] * cos - y[:, :, 1] * sin, y[:, :, 1] * cos + y[:, :, 0] * sin], 2)
        return y.reshape(2, 3, 32) @ table.T

    against_torch(ours, theirs, arrays, tolerance=2e-2 if quantised else 2e-5)
