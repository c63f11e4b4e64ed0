"""Random numbers on a GPU are the CPU's; so are tokens. Logarithms, sines and cosines come of the same formulas: one in
some thousands may differ in its last bits, since the interpreter rounds a fused multiply-add of f64 twice.
"""

import numpy as np
import pytest

import tensorlib.random as R
from tensorlib.nn import Sampler
from tensorlib.ops.generator import Generator
from tensorlib.tensor import Tensor, from_numpy

rng = np.random.default_rng(6)
FLOATS = ["f32", "f64", "f16", "bf16", "f8e4m3", "f8e5m2"]
STATE = ((1 << 63) + 12345, (1 << 40) + 7)  # words above 32 bits of seed and counter


def draws(function):
    """What function(device, generator) gives on both devices, in float64 if it is a float."""
    found = [function(d, Generator(0).set_state(STATE)).to("cpu") for d in ("cpu", "cuda:0")]
    return [v.to("f64").numpy() if v.dtype.kind == "f" else v.numpy() for v in found]


def same(function):
    cpu, gpu = draws(function)
    np.testing.assert_array_equal(cpu, gpu)


@pytest.mark.parametrize("dtype", FLOATS)
def test_floats(dtype, device):
    same(lambda d, g: R.uniform(Tensor, -1.5, 2.25, (1001,), dtype=dtype, device=d, generator=g))
    same(lambda d, g: R.rand(Tensor, 7, dtype=dtype, device=d, generator=g))
    for draw in (R.normal, R.exponential):
        numbers = (0.5, 2.0) if draw is R.normal else (1.7,)
        cpu, gpu = draws(lambda d, g, f=draw, v=numbers: f(Tensor, *v, (1031,), dtype=dtype, device=d, generator=g))
        if dtype != "f64":
            np.testing.assert_array_equal(cpu, gpu)
        else:  # 4 roundings of the radius, 3 of the angle, one of the sum: 8 ulp of the largest, 10
            np.testing.assert_allclose(cpu, gpu, rtol=0, atol=8 * 10 * 2.0**-53)
            assert (cpu == gpu).mean() > 0.9


@pytest.mark.parametrize("dtype", ["i64", "u8", "i16", "f32", "bf16"])
def test_integers(dtype, device):
    same(lambda d, g: R.randint(Tensor, 3, 100, (1001,), dtype=dtype, device=d, generator=g))
    if dtype == "i64":
        same(lambda d, g: R.randint(Tensor, -(2**63), 2**63, (99,), device=d, generator=g))
    if dtype in ("i64", "i16"):
        same(lambda d, g: R.randperm(Tensor, 777, dtype=dtype, device=d, generator=g))


def test_choices(device):
    p = rng.random((2, 900))
    weights = np.where(p < 0.3, 0.0, p)
    for dtype in ("f4", "f8"):
        same(lambda d, g, dtype=dtype: R.bernoulli(from_numpy(p.astype(dtype)).to(d), generator=g))
    same(lambda d, g: R.bernoulli(from_numpy(p).to(d), 0.25, generator=g))
    for dtype in ("f4", "f2"):
        same(lambda d, g, dtype=dtype: R.dropout(from_numpy(p.astype(dtype)).to(d), 0.3, generator=g))
    same(lambda d, g: R.multinomial(from_numpy(weights).to(d), 200, True, generator=g))
    same(lambda d, g: R.multinomial(from_numpy(weights[:, :60].copy()).to(d), 20, generator=g))


SETTINGS = [
    {"temperature": 0.0}, {"temperature": 0.0, "repetition_penalty": 1.5}, {"temperature": 1.3},
    {"temperature": 0.7, "top_k": 5}, {"temperature": 1.0, "top_p": 0.6}, {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 1.2, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2},
    {"temperature": 1e-40}, {"temperature": 1.0, "top_p": 0.0},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_tokens(settings, device):
    for n, scale in ((7, 3.0), (300, 1.0), (5000, 4.0)):
        logits = (rng.standard_normal((1, n)) * scale).astype(np.float32)
        logits[0, rng.integers(0, n, n // 4)] = rng.choice([0.0, -0.0, np.nan, -np.inf, 1.0])
        chosen = []
        for where in ("cpu", "cuda:0"):
            sampler = Sampler(n, 20, where)
            sampler.reset(history=[1, 3, n - 1], seed=n, **settings)
            tokens = []
            for _ in range(3):
                sampler(from_numpy(logits).to(where))
                tokens.append(sampler.token_id())
            chosen.append((tokens, sampler._state.tolist(), sampler._history.tolist()[:6]))
        assert chosen[0] == chosen[1]
