"""The private rows: every kernel against the decode functions, which the definitions of the formats give here again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlib import backend
from tensorlib.quant import formats
from tensorlib.quant.decode import dequantize
from tensorlib.quant.private import FP4, NF4, PRIVATE
from tensorlib.quant.tensor import MATVEC_ROWS, from_bytes
from tests.quant import checkpoints
from tests.quant.test_dequant import check_dequantize
from tests.quant.test_linear import EPS, array, rounded, values

BITS = {name: int(name[1]) for name in PRIVATE if name[0] == "a"}


def blocks(name, count, rng):
    """(random blocks, their codes as floats, scales, zeros): a weight is (code - zero) * scale."""
    row = formats.get(name)
    data = rng.integers(0, 256, (count, row.nbytes), dtype=np.uint8)
    kind = "<f4" if name not in BITS or name.endswith("w") else "<f2"
    size = np.dtype(kind).itemsize
    scale = rng.uniform(-0.01, 0.01, (count, 1)).astype(kind)
    data[:, :size] = scale.view(np.uint8)
    scale, zero = scale.astype(np.float32), np.zeros((count, 1), np.float32)
    if name in BITS:
        nought = rng.uniform(-1, 1 << BITS[name], (count, 1)).astype(kind)
        data[:, size : 2 * size], zero = nought.view(np.uint8), nought.astype(np.float32)
        codes = affine_codes(data[:, 2 * size :], BITS[name])
    elif name == "bnb8":
        codes = data[:, 4:].view(np.int8)
    elif name.startswith("f8"):
        data[:, 4:] ^= data[:, 4:] & 127 == 127  # no NaN
        codes = checkpoints.e4m3(data[:, 4:])
    else:
        table = np.array({"nf4": NF4, "fp4": FP4}[name[:3]], np.float32)
        codes = table[np.stack([data[:, 4:] >> 4, data[:, 4:] & 15], -1)]
    return data, codes.reshape(count, row.elements).astype(np.float32), scale, zero


def affine_codes(data, bits):
    """Codes of blocks [count, 4 * bits], bit by bit."""
    if bits == 8:
        return data
    planes = [np.unpackbits(data[:, 8:] if bits == 3 else data, axis=1, bitorder="little")] if bits in (1, 3) else []
    if bits == 1:
        return planes[0]
    if bits == 4:
        return np.concatenate([data & 15, data >> 4], 1)
    low = np.concatenate([data[:, :8] >> 2 * i & 3 for i in range(4)], 1)
    return low | planes[0] << 2 if bits == 3 else low


@pytest.mark.parametrize("name", PRIVATE)
def test_decoding_and_its_kernel(name, samples_of, assert_same):
    data, codes, scale, zero = blocks(name, 301, np.random.default_rng(1))
    want = (codes - zero) * scale
    if name == "bnb8":
        want = want * np.float32(7.874015718698502e-3)
    assert_same(dequantize(data, name), want)
    check_dequantize(formats.get(name), "f32", 301, samples_of, assert_same)


def test_float8_that_is_no_number():
    data = np.zeros((1, 36), np.uint8)
    data[:, :4], data[0, 4:] = np.array([1], "<f4").view(np.uint8), [127, 255] * 16
    assert np.isnan(dequantize(data, "f8_32")).all()


@pytest.fixture
def samples_of():
    return lambda row, n: blocks(row.name, n, np.random.default_rng(n))[0]


@pytest.mark.parametrize("name", ["a8_32", "a4_32", "a3_32", "a1_32", "a2_32w", "bnb8"])
@given(st.data())
def test_products(name, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    k, n = 32 * data.draw(st.integers(1, 20)), data.draw(st.sampled_from([1, 3, 16, 17, 40]))
    m = data.draw(st.sampled_from([1, MATVEC_ROWS, MATVEC_ROWS + 1, 30]))
    held, codes, scale, zero = blocks(name, n * k // 32, rng)
    w = dequantize(held, name).reshape(n, k).astype(np.float64)
    # what is added up: scale * code and scale * zero, each with as many roundings as in test_linear.py
    size = ((np.abs(codes) + np.abs(zero)) * np.abs(scale) / (127 if name == "bnb8" else 1)).reshape(n, k)
    x = (rng.standard_normal((m, k)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
    bound = (k / 32 + 24) * EPS * np.abs(rounded(x)) @ size.T.astype(np.float64) + 1e-30
    got = values(from_bytes(held.reshape(n, -1), (n, k), name).linear(array(x)))
    np.testing.assert_array_less(np.abs(got - rounded(x) @ w.T), bound)


def test_rows_with_products_are_those_of_the_layout():
    from kernels_numba.unpack_all import UNPACK

    assert {name: row.bias for name, row in UNPACK.items()} == backend.backend().quant.BIAS
    for name in PRIVATE:
        if name in UNPACK:
            assert (UNPACK[name].elements, UNPACK[name].nbytes) == (32, formats.get(name).nbytes)
