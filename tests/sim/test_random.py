"""Random numbers and tokens by the code that Triton compiled, in the simulator: the CPU's bits, f64 included."""

import numpy as np
import pytest

import tensorlib.random as R
from tensorlib.nn import Sampler
from tensorlib.ops.generator import Generator
from tensorlib.tensor import Tensor, from_numpy
from tests.sim.host import install
from tests.sim.simulated import Simulated

rng = np.random.default_rng(8)
STATE = ((1 << 63) + 5, (1 << 40) + 3)
WEIGHTS = rng.random((2, 600))
DRAWS = {
    "uniform": lambda d, g: R.uniform(Tensor, -1.5, 2.25, (1001,), device=d, generator=g),
    "normal": lambda d, g: R.normal(Tensor, 0.5, 2.0, (1001,), device=d, generator=g),
    "normal f64": lambda d, g: R.normal(Tensor, 0.5, 2.0, (501,), dtype="f64", device=d, generator=g),
    "exponential": lambda d, g: R.exponential(Tensor, 2.0, (1001,), dtype="f16", device=d, generator=g),
    "randint": lambda d, g: R.randint(Tensor, 3, 1 << 40, (1001,), device=d, generator=g),
    "randperm": lambda d, g: R.randperm(Tensor, 700, device=d, generator=g),
    "bernoulli": lambda d, g: R.bernoulli(from_numpy(WEIGHTS).to(d), generator=g),
    "multinomial": lambda d, g: R.multinomial(from_numpy(WEIGHTS).to(d), 10, generator=g),
}


@pytest.fixture(scope="module", params=[80, 90])
def device(request):
    """A device "cuda:0" of the architecture."""
    gpu = Simulated(request.param)
    install(gpu)
    yield gpu
    gpu.check()
    install(None)


@pytest.mark.parametrize("name", DRAWS)
def test_draws(name, device):
    cpu, gpu = (DRAWS[name](d, Generator(0).set_state(STATE)).to("cpu").numpy() for d in ("cpu", "cuda:0"))
    assert cpu.tobytes() == gpu.tobytes()


@pytest.mark.parametrize("full", [False, True])
def test_tokens(full, device):
    settings = {"top_k": 50, "top_p": 0.9, "min_p": 0.01} if full else {}
    logits, chosen = (rng.standard_normal((1, 5000)) * 3).astype(np.float32), []
    for where in ("cpu", "cuda:0"):
        sampler = Sampler(5000, 20, where)
        sampler.reset([1, 2, 4999], temperature=1.2 if full else 0.0, repetition_penalty=1.5, seed=3, **settings)
        tokens = []
        for _ in range(2):
            sampler(from_numpy(logits).to(where))
            tokens.append(sampler.token_id())
        chosen.append((tokens, sampler._history.tolist()[:5], sampler._state.tolist()))
    assert chosen[0] == chosen[1]
