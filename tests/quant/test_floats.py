"""Products with weights of floats of 4 or 8 bits, on every CPU level that this machine has, against float64."""

import ctypes
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib import backend, nn
from tensorlib.ops import moe
from tensorlib.quant import formats
from tensorlib.quant.decode import dequantize
from tensorlib.quant.floats import MATVEC_ROWS, ROWS
from tensorlib.quant.tensor import QTensor, from_bytes, quantized_linear
from tests.quant.conftest import FLOATS
from tests.quant.test_private import blocks

# many rows are tried with three: a kernel takes seconds to compile, and the lines of the others are those of few rows
MANY = "nf4_64", "f8_128", "f8_32"
NAMES = "nf4_64", "nf4_32", "fp4_64", "f8_128", "f8_32"  # fp4_32: the table of fp4_64 and the rest of nf4_32
MOST = max(map(max, MATVEC_ROWS.values()))
EPS = 2.0**-24


def weight(name, n, k, rng):
    """(a QTensor [n, k], its values as float64)"""
    data = blocks(name, n * k // formats.get(name).elements, rng)[0]
    return from_bytes(data.reshape(n, -1), (n, k), name), dequantize(data, name).reshape(n, k).astype(np.float64)


def blocks_of(held):
    """Its blocks, to be changed."""
    memory = (ctypes.c_uint8 * held.nbytes).from_address(held.ptr)
    return np.ctypeslib.as_array(memory).reshape(held.shape[0], -1, held.format.nbytes)


def within(got, x, w, more=0):
    """got = x . w (+ more): each of K terms is rounded by at most K sums, its scale, and the reference's own scale."""
    bound = (x.shape[-1] + 3) * EPS * (np.abs(x.astype(np.float64)) @ np.abs(w).T + np.abs(more)) + 1e-37
    np.testing.assert_array_less(np.abs(got - (x.astype(np.float64) @ w.T + more)), bound)


def check(name, n, k, m, seed):
    rng = np.random.default_rng(seed)
    held, w = weight(name, n, k, rng)
    x = (rng.standard_normal((m, k)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
    within(held.linear(tensorlib.tensor(x)).numpy(), x, w)
    assert held._dense is None


@pytest.mark.parametrize("name", NAMES)
@given(st.data())
def test_linear(name, data):
    unit = formats.get(name).elements
    k = unit * data.draw(st.integers(1, 768 // unit) | st.just(1024 // unit), label="blocks")
    n = data.draw(st.integers(1, 5) | st.sampled_from([16, 17, 40]), label="n")
    m = data.draw(st.integers(1, 5) | st.sampled_from([MOST + 1, MOST + 16] if name in MANY else [MOST]), label="m")
    check(name, n, k, m, data.draw(st.integers(0, 99), label="seed"))


def test_more_rows_and_columns_than_a_pass_takes():
    check("nf4_64", 150, 1664, ROWS + 3, 0)


@pytest.mark.parametrize("name,m", [*((name, 1) for name in NAMES), *((name, MOST + 1) for name in MANY)])
def test_special_scales(name, m):
    """NaN, infinities, zeros, denormals, the largest: each in a row of its own, where all blocks have it."""
    k, rng = 256, np.random.default_rng(1)
    special = np.delete(FLOATS, 5) if name.startswith("f8") else FLOATS  # without the largest: its weights are infinite
    held, _ = weight(name, len(special), k, rng)
    data = blocks_of(held)
    data[:, :, :4] = special.view(np.uint8).reshape(-1, 1, 4)
    x = rng.uniform(0.5e-6, 1e-6, (m, k)).astype(np.float32)
    got, w = held.linear(tensorlib.tensor(x)).numpy(), dequantize(data, name).reshape(-1, k).astype(np.float64)
    finite = np.isfinite(w).all(1)
    assert not np.isfinite(got[:, ~finite]).any() and finite.sum() >= 5
    within(got[:, finite], x, w[finite])


@pytest.mark.parametrize("m", [1, 2, MOST + 1])
@pytest.mark.parametrize("name", ["f8_128", "f8_32"])
def test_a_weight_that_is_no_number(name, m):
    held, w = weight(name, 6, 256, np.random.default_rng(2))
    data = blocks_of(held)
    data[1, 0, 4], data[4, -1, -1] = 127, 255
    x = np.random.default_rng(3).standard_normal((m, 256)).astype(np.float32)
    got = held.linear(tensorlib.tensor(x)).numpy()
    assert np.isnan(got[:, [1, 4]]).all()
    within(got[:, [0, 2, 3, 5]], x, w[[0, 2, 3, 5]])


@pytest.mark.parametrize("m", [2, MOST + 1])
def test_activations_that_are_no_numbers_stay_in_their_row(m):
    held, w = weight("nf4_64", 5, 192, np.random.default_rng(4))
    x = np.random.default_rng(5).standard_normal((m, 192)).astype(np.float32)
    x[0, 190] = np.nan
    got = held.linear(tensorlib.tensor(x)).numpy()
    assert np.isnan(got[0]).all()
    within(got[1:], x[1:], w)


@pytest.mark.parametrize("m", [3, MOST + 1])
@pytest.mark.parametrize("name", ["nf4_64", "f8_32"])
def test_same_bits_for_any_number_of_threads(name, m):
    held, _ = weight(name, 67, 896, np.random.default_rng(6))
    x, seen, before = tensorlib.randn(m, 896), set(), backend.PARALLEL_WORK
    try:
        backend.PARALLEL_WORK = 0
        for threads in (1, 2, 3):
            backend.set_num_threads(threads)
            seen.add(held.linear(x).numpy().tobytes())
    finally:
        backend.PARALLEL_WORK = before
        backend.set_num_threads(None)
    assert len(seen) == 1


@pytest.mark.parametrize("m", [1, MOST])
def test_residual_and_leading_dims(m):
    rng = np.random.default_rng(7)
    held, w = weight("nf4_64", 19, 128, rng)
    x, more = rng.standard_normal((2, m, 128)).astype(np.float32), rng.standard_normal((2, m, 19)).astype(np.float32)
    within(held.linear(tensorlib.tensor(x), tensorlib.tensor(more)).numpy(), x, w, more)


@pytest.mark.parametrize("name", ["nf4_64"])
def test_experts(name):
    """Products of stacked matrices, NaN for an id that is none; rows of the same expert share what is unpacked."""
    rng = np.random.default_rng(8)
    held, w = weight(name, 4 * 9, 256, rng)
    held, w = QTensor(held.buffer, 0, (4, 9, 256), name), w.reshape(4, 9, 256)
    for per, ids in ((3, [1, 3, 4]), (1, [2, 2, 2, 0, -1, 0])):
        x = rng.standard_normal((len(ids) // per, 256)).astype(np.float32)
        got = moe.chosen(tensorlib.tensor(x), tensorlib.tensor(ids), held, per).numpy()
        for i, e in enumerate(ids):
            if 0 <= e < 4:
                within(got[i], x[i // per], w[e])
            else:
                assert np.isnan(got[i]).all()
    assert held._dense is None


@pytest.mark.parametrize("name", ["nf4_64", "f8_128"])
def test_gradients(name):
    """Of LoRA over such a weight: those of the dense weight, which a product with its transpose gives."""
    rng = np.random.default_rng(9)
    held, w = weight(name, 24, 256, rng)
    layer = nn.Linear(256, 24, bias=False)
    layer.weight = held
    x, g = (tensorlib.tensor(rng.standard_normal((5, size)).astype(np.float32)) for size in (256, 24))
    x.requires_grad_()
    layer(x).backward(g)
    within(x.grad.numpy(), g.numpy(), w.T)
    assert held._dense is None and quantized_linear(x.detach(), held).shape == (5, 24)


LEVEL = """
import sys
sys.path.insert(0, {root!r})
from tensorlib import backend
from tests.quant import test_floats
assert backend.backend().level == {level!r}
for name, m in (("nf4_64", 1), ("nf4_64", 3), ("nf4_64", test_floats.MOST + 1), ("f8_32", 3)):
    test_floats.check(name, 5, 896, m, m)
"""


@pytest.mark.parametrize("level", ["avx2", "portable"])
def test_lower_levels(level, run_python):
    root = str(pathlib.Path(__file__).parents[2])
    run_python(LEVEL.format(root=root, level=level), TENSORLIB_CPU_LEVEL=level)
