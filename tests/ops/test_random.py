"""Random tensors: known words, repeatability, moments within what chance allows."""

import numpy as np
import pytest

import tensorlib
from tensorlib import dtype as D
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.random import Generator

N = 200_000


def test_philox_known_answers():
    # Random123's kat_vectors: philox4x32-10, key 0 and counter 0
    words = Generator(0).words(tensorlib.Tensor, 4).tolist()
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_a_seed_repeats_and_calls_differ():
    a = tensorlib.rand(5, generator=(g := Generator(3)))
    b = tensorlib.rand(5, generator=g)
    assert (a != b).any() and (tensorlib.rand(5, generator=Generator(3)) == a).all() and g.counter == 4
    tensorlib.manual_seed(7)
    c = tensorlib.randn(3)
    tensorlib.manual_seed(7)
    assert (tensorlib.randn(3) == c).all()


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_uniform(dtype):
    x = tensorlib.rand(N, dtype=dtype, generator=Generator(1)).numpy().astype(np.float64)
    assert x.min() >= 0 and x.max() < 1
    # the mean's deviation is 1 / sqrt(12 N); five of them are exceeded once in 10^6
    assert abs(x.mean() - 0.5) < 5 / np.sqrt(12 * N) and abs(x.var() - 1 / 12) < 5 / np.sqrt(180 * N)
    assert np.histogram(x, 16, (0, 1))[0].std() < 5 * np.sqrt(N / 16)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_normal(dtype):
    x = tensorlib.randn(N + 1, dtype=dtype, generator=Generator(2)).numpy().astype(np.float64)
    assert abs(x.mean()) < 5 / np.sqrt(N) and abs(x.var() - 1) < 5 * np.sqrt(2 / N)
    assert abs((x**3).mean()) < 5 * np.sqrt(15 / N) and abs((x**4).mean() - 3) < 5 * np.sqrt(96 / N)
    assert abs(np.corrcoef(x[: N // 2], x[N // 2 : N])[0, 1]) < 5 / np.sqrt(N / 2)  # cosines and sines of one angle


def test_integers():
    x = tensorlib.randint(-3, 4, (N,), generator=Generator(4)).numpy()
    counts = np.bincount(x + 3, minlength=7)
    assert x.min() == -3 and x.max() == 3 and np.abs(counts - N / 7).max() < 5 * np.sqrt(N / 7)
    assert tensorlib.randint(10, size=(2, 3), dtype="u8").dtype is D.u8 and tensorlib.randint(1, size=2).tolist() == [
        0,
        0,
    ]
    with pytest.raises(ShapeError, match="low 3, high 3"):
        tensorlib.randint(3, 3)
    with pytest.raises(ShapeError, match="within u8"):
        tensorlib.randint(0, 300, dtype="u8")


def test_shapes_dtypes_and_bernoulli():
    assert tensorlib.rand(2, 3).shape == (2, 3) and tensorlib.randn(()).shape == () and tensorlib.rand(0).shape == (0,)
    assert (
        tensorlib.randn(4, dtype="bf16").dtype is D.bf16
        and tensorlib.rand_like(tensorlib.zeros(2, dtype="f16")).dtype is D.f16
    )
    p = tensorlib.full((N,), 0.25)
    drawn = tensorlib.bernoulli(p, Generator(5))
    assert drawn.dtype is D.f32 and abs(drawn.mean().item() - 0.25) < 5 * np.sqrt(0.1875 / N)
    with pytest.raises(DTypeError, match="rand: got dtype i64"):
        tensorlib.rand(3, dtype="i64")
