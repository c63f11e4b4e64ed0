"""Blocks made of other libraries' checkpoints on a GPU, interpreted: bit for bit as on the CPU; products."""

import numpy as np
import pytest

import tensorlib
from tensorlib.quant import formats
from tensorlib.quant.permuted import PermutedQTensor
from tensorlib.quant.tensor import from_bytes
from tensorlib.tensor import from_numpy
from tests.quant.test_private import blocks
from tests.sim.quant_cases import activations, values


def weight(name, n, k):
    data = blocks(name, n * k // formats.get(name).elements, np.random.default_rng(0))[0]
    return from_bytes(data.reshape(n, -1), (n, k), name)


@pytest.mark.parametrize("name", ["a8_32", "a4_32", "a3_32", "a2_32", "a1_32w", "nf4_64", "fp4_32", "bnb8", "f8_32"])
def test_blocks_and_products(name, device):
    w, (x, there) = weight(name, 5, 64), activations(3, 64)
    moved, dense = w.to("cuda:0"), values(w.dequantize(cls=tensorlib.Tensor))
    np.testing.assert_array_equal(values(moved.dequantize(cls=tensorlib.Tensor)), dense)
    ids = from_numpy(np.array([4, 0], np.int64))
    np.testing.assert_array_equal(values(moved.embedding(ids.to("cuda:0"))), dense[[4, 0]])
    # weights as f16, or f32; activations as f16 with the power of 2 of their row
    bound = np.abs(values(x)) @ np.abs(dense.T) * 2.0**-9
    assert (np.abs(values(moved.linear(there)) - values(x) @ dense.T) <= bound).all()
    device.check()


def test_permuted_columns():
    order = np.random.default_rng(1).permutation(64)
    w, (x, there) = PermutedQTensor.over(weight("a4_32", 6, 64), order), activations(2, 64)
    moved, dense = w.to("cuda:0"), values(w.dequantize(cls=tensorlib.Tensor))
    assert isinstance(moved, PermutedQTensor) and moved.to("cuda:0") is moved
    np.testing.assert_array_equal(values(moved.dequantize(cls=tensorlib.Tensor)), dense)
    np.testing.assert_array_equal(values(moved.to("cpu").rows(1, 2).dequantize(cls=tensorlib.Tensor)), dense[1:3])
    bound = np.abs(values(x)) @ np.abs(dense.T) * 2.0**-9
    assert (np.abs(values(moved.linear(there)) - values(x) @ dense.T) <= bound).all()
