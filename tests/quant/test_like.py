"""Weights in blocks where Tensors are: rows by index, embedding, matmul with gradients, experts."""

import numpy as np
import pytest

import tensorlib
from tensorlib.errors import ShapeError
from tensorlib.quant.tensor import from_bytes
from tests.quant.test_linear import blocks, rounded

FORMATS = ("iq4_xs", "q2_k", "nvfp4", "q1_0")
RNG = np.random.default_rng(0)


def weight(fmt, *shape):
    """A QTensor and its values."""
    data, values = blocks(fmt, int(np.prod(shape[:-1])), shape[-1], RNG)
    return from_bytes(data.reshape(-1), shape, fmt), values.reshape(shape)


def normal(*shape):
    """A NumPy array, and the same as a Tensor."""
    x = RNG.standard_normal(shape).astype(np.float32)
    return x, tensorlib.from_numpy(x)


def close(got, want):
    """Equal but for sums of f32."""
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("fmt", FORMATS)
def test_rows_by_index(fmt):
    w, values = weight(fmt, 40, 256)
    ids = np.array([[3, 39], [-1, 0]])
    for got in (w[tensorlib.from_numpy(ids)], w[tensorlib.from_numpy(ids.astype(np.int32))]):
        np.testing.assert_array_equal(got.numpy(), values[ids].astype(np.float32))
    ids = tensorlib.from_numpy(np.array([5, 0, 39]))
    for got in (tensorlib.index_select(w, 0, ids), tensorlib.embedding(ids, w)):
        np.testing.assert_array_equal(got.numpy(), values[[5, 0, 39]].astype(np.float32))
    assert np.isnan(w[tensorlib.tensor([40])].numpy()).all()
    part = w[7:30]
    assert part.shape == (23, 256) and part.ptr - w.ptr == 7 * w.format.row_bytes(256)
    np.testing.assert_array_equal(part.dequantize().numpy(), values[7:30].astype(np.float32))


def test_what_stays_in_blocks():
    w, values = weight("q2_k", 3, 5, 256)
    np.testing.assert_array_equal(w[-1].dequantize().numpy(), values[2].astype(np.float32))
    np.testing.assert_array_equal(w[1:].dequantize().numpy(), values[1:].astype(np.float32))
    assert w[2:1].shape == (0, 5, 256)
    for bad in (3, slice(0, 3, 2), "x", tensorlib.tensor([0])):
        with pytest.raises(ShapeError, match="index of a weight in blocks"):
            w[bad]
    with pytest.raises(ShapeError, match="2 dims"):
        _ = w.T


@pytest.mark.parametrize("shape", [(256,), (3, 256), (2, 3, 256)])
def test_matmul(shape):
    w, values = weight("iq4_xs", 40, 256)
    x, ours = normal(*shape)
    for got in (ours @ w.T, tensorlib.matmul(ours, w.T), tensorlib.linear(ours, w)):
        assert got.shape == (*shape[:-1], 40)
        close(got, rounded(x) @ values.T)
    y, ours = normal(*shape[:-1], 40)
    for got in (ours @ w, tensorlib.matmul(ours, w)):
        close(got, y @ values)
    assert w.T.shape == (256, 40) and w.T.T is w


def test_gradients_of_matmul():
    w, values = weight("q2_k", 40, 256)
    for right, k, n, matrix in ((w.T, 256, 40, values.T), (w, 40, 256, values)):
        for product in (lambda x, w: x @ w, tensorlib.matmul):
            _, x = normal(3, k)
            g, ours = normal(3, n)
            x.requires_grad_()
            (product(x, right) * ours).sum().backward()
            want = (g if right is not w else rounded(g)) @ matrix.T
            close(x.grad, want)


@pytest.mark.parametrize("tokens", [1, 40])
def test_experts(tokens):
    """With exact activations the sum of the experts is what it is with their dense weights; rounding them by 1/254
    of a block's largest changes it little.
    """
    experts, d, inner = 3, 256, 512
    up, dense_up = weight("iq4_xs", experts, 2 * inner, d)
    down, dense_down = weight("q2_0", experts, d, inner)
    _, x = normal(tokens, d)
    _, logits = normal(tokens, experts)
    got = tensorlib.moe(x, logits, up, down, 2).numpy()
    dense = [tensorlib.from_numpy(v.astype(np.float32)) for v in (dense_up, dense_down)]
    want = tensorlib.moe(x, logits, *dense, 2).numpy()
    assert got.shape == want.shape and np.linalg.norm(got - want) < 0.02 * np.linalg.norm(want)


def test_rows_of_more_dims():
    dense = np.random.default_rng(3).standard_normal((4, 3, 64)).astype(np.float32)
    w = tensorlib.quantize(tensorlib.from_numpy(dense), "q4_0")
    whole = w.dequantize(cls=tensorlib.Tensor).numpy()
    for start, count in ((0, 4), (1, 2), (3, 1), (4, 0)):
        some = w.rows(start, count)
        assert some.shape == (count, 3, 64)
        np.testing.assert_array_equal(some.dequantize(cls=tensorlib.Tensor).numpy(), whole[start : start + count])
