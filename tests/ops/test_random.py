"""Random tensors: known words, independence of threads and strides, exact resuming, and distributions.

Bounds: a mean of n draws deviates by its standard error; 5 of them are exceeded once in 2 million. Kolmogorov's
statistic times sqrt(n) exceeds 2.5 once in 130,000 (2 exp(-2 * 2.5**2)). A chi-square of k categories has mean k - 1
and variance 2 (k - 1); 6 standard deviations above are reached once in 2,000 for 4 categories, and more rarely for
more. Seeds are fixed, so a test that passed once passes always.
"""

import math

import numpy as np
import pytest

import tensorlib
from tensorlib import backend, random
from tensorlib import dtype as D
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.random import Generator
from tensorlib.tensor import Tensor

N = 200_000
WEIGHTS = [0.1, 0.0, 2.0, 0.4, 1.5]

DRAWS = {
    "rand": lambda n, g: tensorlib.rand(n, generator=g),
    "rand f64": lambda n, g: tensorlib.rand(n, dtype="f64", generator=g),
    "randn": lambda n, g: tensorlib.randn(n, generator=g),
    "randn f64": lambda n, g: tensorlib.randn(n, dtype="f64", generator=g),
    "exponential": lambda n, g: random.exponential(Tensor, 2.0, n, generator=g),
    "randint": lambda n, g: tensorlib.randint(-3, 4, (n,), generator=g),
    "bernoulli": lambda n, g: random.bernoulli(tensorlib.full((n,), 0.25), generator=g),
    "dropout": lambda n, g: random.dropout(tensorlib.ones(n), 0.5, generator=g),
    "multinomial": lambda n, g: random.multinomial(tensorlib.tensor(WEIGHTS), n, True, generator=g),
}


def drawn(name, n, seed):
    return DRAWS[name](n, Generator(seed)).numpy()


def wide(x):
    return x.numpy().astype(np.float64)


def kolmogorov(x, cdf):
    """The largest distance of the empirical from the expected distribution, times sqrt(n)."""
    n, expected = len(x), cdf(np.sort(x))
    steps = np.arange(n + 1) / n
    return np.sqrt(n) * max((expected - steps[:-1]).max(), (steps[1:] - expected).max())


def chi_square_fits(counts, probabilities):
    """Whether counts are what chance allows, and nothing of probability 0 was counted."""
    counts, expected = np.asarray(counts), np.asarray(probabilities) * np.sum(counts)
    some = expected > 0
    degrees = some.sum() - 1
    statistic = ((counts - expected)[some] ** 2 / expected[some]).sum()
    return not counts[~some].any() and statistic <= degrees + 6 * np.sqrt(2 * degrees)


def normal_cdf(x):
    return 0.5 * np.array([math.erfc(v) for v in -x / math.sqrt(2)])


# ---- what a number depends on ----------------------------------------------------------------------------------------


def test_philox_known_answers():
    # Random123's kat_vectors: philox4x32-10, key 0 and counter 0
    words = Generator(0).words(Tensor, 4).tolist()
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_mapping_from_words():
    w = Generator(5).words(Tensor, 4096).numpy().astype(np.uint64)
    w64 = w[::2] | (w[1::2] << np.uint64(32))
    assert (drawn("rand", 4096, 5) == (w >> np.uint64(8)) * 2.0**-24).all()
    assert (drawn("rand f64", 2048, 5) == (w64 >> np.uint64(11)) * 2.0**-53).all()
    assert (drawn("randint", 2048, 5) == [(int(v) * 7 >> 64) - 3 for v in w64]).all()
    assert (drawn("bernoulli", 4096, 5) == (w * 2.0**-32 < 0.25)).all()
    assert (drawn("dropout", 4096, 5) == 2.0 * (w * 2.0**-32 < 0.5)).all()
    # logarithms, sines and cosines of f32 have errors of some 1e-7 of their values, which are at most 7
    e = -np.log1p(-(w + 0.5) * 2.0**-32)
    assert np.abs(drawn("exponential", 4096, 5) * 2 - e).max() < 2e-6
    r, t = np.sqrt(2 * e[::2]), w[1::2] * (2.0**-31 * np.pi)
    normal = np.stack([r * np.cos(t), r * np.sin(t)], 1).reshape(-1)
    assert np.abs(drawn("randn", 4096, 5) - normal).max() < 2e-6
    e, t = -np.log1p(-(w64[::2] + 0.5) * 2.0**-64), w64[1::2] * (2.0**-63 * np.pi)
    normal = np.stack([np.sqrt(2 * e) * np.cos(t), np.sqrt(2 * e) * np.sin(t)], 1).reshape(-1)
    assert np.abs(drawn("randn f64", 2048, 5) - normal).max() < 1e-14
    assert (random.randperm(Tensor, 2048, generator=Generator(5)).numpy() == np.argsort(w64, kind="stable")).all()


@pytest.mark.parametrize("name", DRAWS)
def test_same_for_any_threads_and_length(name):
    full = drawn(name, 70_001, 11)
    try:
        for threads in (1, 3):
            backend.set_num_threads(threads)
            assert (drawn(name, 70_001, 11) == full).all()
    finally:
        backend.set_num_threads(None)
    for n in (1, 2, 1025, 4097):
        assert (drawn(name, n, 11) == full[:n]).all()  # element i does not know how many follow
    assert (drawn(name, 70_001, 12) != full).any()


def test_strides_do_not_matter():
    base = tensorlib.zeros(6, 10)
    view = base[:, ::2].T
    plain = tensorlib.randn(5, 6, generator=Generator(3))
    assert (random.normal_(view, generator=Generator(3)) == plain).all() and (base[:, 1::2] == 0).all()
    p = tensorlib.rand(40, 30, generator=Generator(4))
    for x in (p.T, p[::2, ::3], p[3].expand(4, 30)):
        for op in (random.bernoulli, random.dropout):
            assert (op(x, generator=Generator(1)) == op(x.clone(), generator=Generator(1))).all()
        if x.is_contiguous() or 0 not in x.strides:
            a = random.multinomial(x, 3, generator=Generator(1))
            assert (a == random.multinomial(x.clone(), 3, generator=Generator(1))).all()


def test_resuming_is_exact():
    g = Generator(9)
    tensorlib.rand(5, generator=g)
    random.randperm(Tensor, 7, generator=g)
    state = g.get_state()
    assert state == (9, 2)
    draws = [f(1000, g) for f in DRAWS.values()]
    again = Generator().set_state(state)
    assert all((f(1000, again) == x).all() for f, x in zip(DRAWS.values(), draws))
    assert again.get_state() == g.get_state() == (9, 2 + len(DRAWS))


def test_the_default_generator():
    before = random.get_rng_state()
    try:
        tensorlib.manual_seed(7)
        a, state, b = tensorlib.randn(3), random.get_rng_state(), tensorlib.randn(3)
        random.set_rng_state(state)
        assert (tensorlib.randn(3) == b).all() and (a != b).any() and random.initial_seed() == 7
        tensorlib.manual_seed(-1)
        assert random.initial_seed() == 2**64 - 1 and tensorlib.rand(3).shape == (3,)
        assert random.seed() == random.initial_seed() != random.seed()
    finally:
        random.set_rng_state(before)
    for state in ((1, 2.5), (1,), "ab", None):
        with pytest.raises(DTypeError, match="set_state"):
            Generator(0).set_state(state)
    with pytest.raises(DTypeError, match="manual_seed: got a seed of type float"):
        Generator(1.5)


# ---- floats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, digits", [("f32", 24), ("f64", 53), ("f16", 11), ("bf16", 8)])
def test_uniform(dtype, digits):
    x = wide(tensorlib.rand(N, dtype=dtype, generator=Generator(1)))
    step = 2.0**-digits
    assert x.min() >= 0 and x.max() <= 1 - step and (x / step == np.floor(x / step)).all()
    mean = 0.5 - step / 2
    assert abs(x.mean() - mean) < 5 / np.sqrt(12 * N) and abs(x.var() - 1 / 12) < 5 / np.sqrt(180 * N)
    assert abs(np.corrcoef(x[1:], x[:-1])[0, 1]) < 5 / np.sqrt(N)
    if digits > 20:
        assert kolmogorov(x, lambda v: v) < 2.5
    assert chi_square_fits(np.bincount((x * 64).astype(int), minlength=64), np.full(64, 1 / 64))


def test_uniform_bounds():
    # 1 to its successor: half of all sums round up to the bound, which is never given
    high = 1 + 2.0**-23
    assert (random.uniform(Tensor, 1.0, high, N, generator=Generator(1)) == 1).all()
    for low, high in ((-3.0, 5.0), (-2.0, 0.0), (1e30, 3e30), (7.0, 7.0)):
        x = wide(random.uniform(Tensor, low, high, N, generator=Generator(2)))
        low, high = float(np.float32(low)), float(np.float32(high))
        assert x.min() >= low and (x.max() < high or low == high)
        assert abs(x.mean() - (low + high) / 2) <= 5 * (high - low) / np.sqrt(12 * N)
    assert random.uniform(Tensor, size=(2, 3)).shape == (2, 3) and random.uniform(Tensor).shape == ()
    with pytest.raises(ShapeError, match=r"uniform: got low 2\.0, high 1\.0"):
        random.uniform(Tensor, 2, 1)
    with pytest.raises(ShapeError, match="uniform_"):
        random.uniform_(tensorlib.zeros(3), -3e38, 3e38)
    with pytest.raises(DTypeError, match="uniform_: got a tensor of i64"):
        random.uniform_(tensorlib.arange(3))
    with pytest.raises(ShapeError, match="share memory"):
        random.uniform_(tensorlib.zeros(1).expand(3))


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_normal(dtype):
    x = wide(tensorlib.randn(N + 1, dtype=dtype, generator=Generator(2)))
    assert abs(x.mean()) < 5 / np.sqrt(N) and abs(x.var() - 1) < 5 * np.sqrt(2 / N)
    assert abs((x**3).mean()) < 5 * np.sqrt(15 / N) and abs((x**4).mean() - 3) < 5 * np.sqrt(96 / N)
    pairs = x[:N].reshape(-1, 2)  # a cosine and a sine of one angle
    for a, b in ((pairs[:, 0], pairs[:, 1]), (pairs[:, 0] ** 2, pairs[:, 1] ** 2), (x[1:], x[:-1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(N / 2)
    assert kolmogorov(x, normal_cdf) < 2.5


def test_normal_of_tensors():
    mean, std = tensorlib.tensor([[0.0], [10.0]]), tensorlib.tensor([1.0, 0.0, 3.0])
    x = random.normal(Tensor, mean.expand(2, 3), std, generator=Generator(1))
    z = tensorlib.randn(2, 3, generator=Generator(1))
    assert (x == mean + std * z).all() and x[1, 1].item() == 10
    assert random.normal(Tensor, mean.to("f64"), 2.0).dtype is D.f64
    y = wide(random.normal(Tensor, 3.0, 0.5, (N,), generator=Generator(2)))
    assert abs(y.mean() - 3) < 2.5 / np.sqrt(N) and abs(y.std() - 0.5) < 2.5 / np.sqrt(2 * N)
    for bad in (-1.0, tensorlib.tensor([1.0, -1.0])):
        with pytest.raises(ShapeError, match="std -1"):
            random.normal(Tensor, 0.0, bad)


def test_exponential():
    x = wide(random.exponential(Tensor, 2.0, N, generator=Generator(1)))
    assert x.min() > 0 and abs(x.mean() - 0.5) < 2.5 / np.sqrt(N)
    assert kolmogorov(x, lambda v: 1 - np.exp(-2 * v)) < 2.5
    y = random.exponential_(tensorlib.zeros(3), 2.0, generator=Generator(1))
    assert (y.numpy() == x[:3]).all()
    with pytest.raises(ShapeError, match="a rate of 0"):
        random.exponential(Tensor, 0)


# ---- integers and choices --------------------------------------------------------------------------------------------


def test_integers():
    x = tensorlib.randint(-3, 4, (N,), generator=Generator(4)).numpy()
    assert x.min() == -3 and x.max() == 3 and chi_square_fits(np.bincount(x + 3), np.full(7, 1 / 7))
    small = tensorlib.randint(256, size=(N,), dtype="u8", generator=Generator(4)).numpy()
    assert small.dtype == np.uint8 and chi_square_fits(np.bincount(small), np.full(256, 1 / 256))
    assert tensorlib.randint(1, size=2).tolist() == [0, 0]
    full = tensorlib.randint(-(2**63), 2**63, (N,), generator=Generator(6)).numpy()
    assert chi_square_fits(np.bincount((full >> 60) + 8), np.full(16, 1 / 16))
    assert (full & 1).mean() == pytest.approx(0.5, abs=2.5 / np.sqrt(N))
    floats = tensorlib.randint(-2, 3, (100,), dtype="f32").numpy()
    assert set(floats) == {-2, -1, 0, 1, 2}
    for arguments, match in (((3, 3), "low 3, high 3"), ((5, 1), "low 5, high 1")):
        with pytest.raises(ShapeError, match=match):
            tensorlib.randint(*arguments)
    for dtype, high in (("u8", 300), ("f16", 5000)):
        with pytest.raises(ShapeError, match=f"within {dtype}"):
            tensorlib.randint(0, high, dtype=dtype)
    with pytest.raises(DTypeError, match="a bound of type float"):
        tensorlib.randint(1.5)


def test_permutations():
    for n in (0, 1, 2, 9, 1000, 50_000):
        x = random.randperm(Tensor, n, generator=Generator(n)).numpy()
        assert (np.sort(x) == np.arange(n)).all()
    assert random.randperm(Tensor, 5, dtype="i32").dtype is D.i32
    g, counts = Generator(1), {}
    for _ in range(2400):
        order = tuple(random.randperm(Tensor, 4, generator=g).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24 and chi_square_fits(list(counts.values()), np.full(24, 1 / 24))
    for n, dtype, error in ((-1, "i64", ShapeError), (3, "f32", DTypeError), (200, "i8", ShapeError)):
        with pytest.raises(error, match="randperm"):
            random.randperm(Tensor, n, dtype=dtype)


def test_bernoulli_and_dropout():
    p = tensorlib.full((N,), 0.25)
    x = random.bernoulli(p, generator=Generator(5))
    assert x.dtype is D.f32 and abs(x.mean().item() - 0.25) < 5 * np.sqrt(0.1875 / N)
    assert (random.bernoulli(p, 0.25, generator=Generator(5)) == x).all()
    filled = random.bernoulli_(tensorlib.zeros(N, dtype="bool"), p, generator=Generator(5))
    assert filled.dtype is D.bool_ and (filled.to("f32") == x).all()
    for bad in (1.5, -0.1, float("nan")):
        with pytest.raises(ShapeError, match="bernoulli: got a probability outside"):
            random.bernoulli(tensorlib.tensor([0.5, bad]))
    with pytest.raises(DTypeError, match="probabilities of i64"):
        random.bernoulli(tensorlib.arange(2))
    ones = tensorlib.ones(N)
    y = wide(random.dropout(ones, 0.2, generator=Generator(1)))
    assert set(y) == {0, 1.25} and abs((y == 0).mean() - 0.2) < 5 * np.sqrt(0.16 / N)
    assert random.dropout(ones, 0.2, training=False) is ones
    odd = tensorlib.tensor([float("inf"), float("nan"), 1.0])
    assert random.dropout(odd, 1.0).tolist() == [0, 0, 0]
    with pytest.raises(ShapeError, match=r"p = 1\.5"):
        random.dropout(ones, 1.5)


def test_multinomial_with_replacement():
    w = np.array(WEIGHTS)
    x = random.multinomial(tensorlib.tensor(WEIGHTS), N, True, generator=Generator(1))
    assert x.dtype is D.i64 and chi_square_fits(np.bincount(x.numpy(), minlength=5), w / w.sum())
    rows = tensorlib.tensor([WEIGHTS, [0, 0, 0, 0, 3.0], [1, 1, 1, 1, 0]], dtype="f16")
    y = random.multinomial(rows, 20_000, True, generator=Generator(2)).numpy()
    for found, weights in zip(y, rows.numpy().astype(np.float64)):
        assert chi_square_fits(np.bincount(found, minlength=5), weights / weights.sum())


def test_multinomial_without_replacement():
    w = np.array(WEIGHTS) / sum(WEIGHTS)
    x = random.multinomial(tensorlib.tensor([WEIGHTS] * 20_000), 4, generator=Generator(3)).numpy()
    assert x.shape == (20_000, 4) and (np.sort(x, 1) == [0, 2, 3, 4]).all()
    assert chi_square_fits(np.bincount(x[:, 0], minlength=5), w)
    # the second, given the first: its weight among those that are left
    pairs = np.bincount(x[:, 0] * 5 + x[:, 1], minlength=25)
    assert chi_square_fits(pairs, [w[i] * w[j] / (1 - w[i]) if i != j else 0 for i in range(5) for j in range(5)])
    many = random.multinomial(tensorlib.rand(2, 1000, generator=Generator(4)), 900, generator=Generator(5)).numpy()
    assert all(len(set(row)) == 900 for row in many)


@pytest.mark.parametrize(
    "weights, count, replacement, match",
    [
        ([1.0, -1.0], 1, True, "negative, infinite or NaN"),
        ([1.0, float("nan")], 1, True, "negative, infinite or NaN"),
        ([1.0, float("inf")], 1, False, "negative, infinite or NaN"),
        ([0.0, 0.0], 1, True, "0 weights above 0"),
        ([1.0, 0.0], 2, False, "1 weights above 0"),
        ([1.0], 0, True, "num_samples 0"),
        ([[[1.0]]], 1, True, "shape"),
    ],
)
def test_multinomial_refuses(weights, count, replacement, match):
    with pytest.raises(ShapeError, match=f"multinomial: got .*{match}"):
        random.multinomial(tensorlib.tensor(weights), count, replacement)


def test_shapes_and_dtypes():
    assert tensorlib.rand(2, 3).shape == (2, 3) and tensorlib.randn(()).shape == () and tensorlib.rand(0).shape == (0,)
    assert tensorlib.randn(4, dtype="bf16").dtype is D.bf16
    assert tensorlib.rand_like(tensorlib.zeros(2, dtype="f16")).dtype is D.f16
    assert random.multinomial(tensorlib.zeros(0, 3), 2).shape == (0, 2)
    with pytest.raises(DTypeError, match="rand: got dtype i64"):
        tensorlib.rand(3, dtype="i64")
    with pytest.raises(ShapeError, match="randn: got shape"):
        tensorlib.randn(-1)
