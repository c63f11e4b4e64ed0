"""A Llama end to end on the simulated GPU: weights from a GGUF file, prompt, cached steps, a graph and its replays."""

import numpy as np
import pytest

import tensorlib
from bench.reference import Reference
from tensorlib.capture import Capture
from tests.sim.host import install
from tests.sim.simulated import Simulated
from tests.zoo.conftest import tiny_llama  # noqa: F401
from tests.zoo.test_llama import Rounding
from zoo.generate import SamplerConfig, TextModel
from zoo.load import load_gguf

IDS = [3, 200, 17, 17, 99, 4, 250, 1, 0, 77, 31, 5, 142, 8]
STEPS = [5, 9]


@pytest.fixture(scope="module", params=[80, 90])
def device(request):
    """A device "cuda:0" of the architecture."""
    gpu = Simulated(request.param)
    install(gpu)
    yield gpu
    gpu.check()
    install(None)


def logits(path, where, cache="f32", chunk=14):
    """Logits of IDS in chunks, and of single steps behind them, [T, V]."""
    _, model = load_gguf(path, device=where)
    kept = model.new_cache(64, cache, device=where)
    found = []
    for ids in (*(IDS[i : i + chunk] for i in range(0, len(IDS), chunk)), *([i] for i in STEPS)):
        out = model(tensorlib.tensor(ids, dtype="i64", device=where), kept, last_only=False)
        found.append(out.cpu().numpy().copy())
    return np.concatenate(found)


def worst(got, want):
    return np.abs(got - want).max() / np.abs(want).max()


# All that differs is the order of f32 sums: 2^-24 a step, some hundred steps, as in tests/zoo/test_llama.py.
@pytest.mark.parametrize("fmt", ["f32", "f16"])
def test_logits_are_those_of_the_cpu(fmt, device, tiny_llama):  # noqa: F811
    path = tiny_llama(fmt)
    assert worst(logits(path, "cuda:0"), logits(path, "cpu")) < 1e-5


@pytest.mark.parametrize("fmt", ["q4_0", "q8_0", "q5_0"])
def test_logits_of_a_prompt_with_quantised_weights(fmt, device, tiny_llama):  # noqa: F811
    """More than 8 tokens: activations are rounded to f16, 2^-11 each, in some ten products behind one another."""
    path = tiny_llama(fmt)
    assert worst(logits(path, "cuda:0")[: len(IDS)], Reference(path).logits(IDS)) < 10 * 2**-11


@pytest.mark.parametrize("fmt", ["q4_0", "q8_0", "q5_0"])
def test_logits_of_steps_with_quantised_weights(fmt, device, tiny_llama):  # noqa: F811
    """Up to 8 tokens: activations are rounded to 8 bits per 32, as on the CPU; see tests/zoo/test_llama.py."""
    path = tiny_llama(fmt)
    reference = Reference(path)
    reference.weights = {k: Rounding(w) if w.ndim == 2 else w for k, w in reference.weights.items()}
    assert worst(logits(path, "cuda:0", chunk=7), reference.logits(IDS + STEPS)) < 1e-3


def test_a_step_is_a_graph(device, tiny_llama):  # noqa: F811
    """Replays give what launches give: positions and ids are read from device memory."""
    _, model = load_gguf(tiny_llama("q4_0"), device="cuda:0")
    found = []
    for replayed in (False, True):
        cache = model.new_cache(64, "f16", device="cuda:0")
        model(tensorlib.tensor(IDS, dtype="i64", device="cuda:0"), cache)
        token = tensorlib.tensor([0], dtype="i64", device="cuda:0")
        step, out = Capture("cuda:0"), None
        if replayed:
            with step:
                out = model(token, cache)
        for i in STEPS:
            token.fill_(i)
            if replayed:
                step.replay()
            else:
                out = model(token, cache)
            found.append(out.cpu().numpy().copy())
    for eager, replay in zip(found[:2], found[2:]):
        np.testing.assert_array_equal(eager, replay)


def test_generation(device, tiny_llama):  # noqa: F811
    """The same ids as on the CPU, greedy and drawn, by replays of one graph."""
    path = tiny_llama("f16")
    ids = []
    for where in ("cpu", "cuda:0"):
        model = TextModel(*load_gguf(path, device=where), device=where)
        ids.append(list(model.generate(IDS, 6)))
        ids.append(list(model.generate(IDS, 6, SamplerConfig(temperature=0.9, top_k=20, top_p=0.9, seed=3))))
    assert ids[:2] == ids[2:]
