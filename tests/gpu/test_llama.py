"""A Llama on the GPU: logits of the CPU, generation, one graph per step. No file but the last needs a model."""

import pytest

from bench.reference import Reference
from tests.sim.test_llama import IDS, STEPS, logits, worst
from tests.zoo.conftest import tiny_llama  # noqa: F401
from tests.zoo.test_llama import Rounding
from zoo.generate import SamplerConfig, TextModel, load
from zoo.load import load_gguf

DRAWN = SamplerConfig(temperature=0.9, top_k=20, top_p=0.9, seed=3)


# Bounds as in tests/sim/test_llama.py, where their reasons stand.
@pytest.mark.parametrize("fmt", ["f32", "f16"])
def test_logits_are_those_of_the_cpu(fmt, device, tiny_llama):  # noqa: F811
    path = tiny_llama(fmt)
    assert worst(logits(path, "cuda:0"), logits(path, "cpu")) < 1e-5


@pytest.mark.parametrize("fmt", ["q4_0", "q8_0", "q5_0"])
def test_quantised_weights(fmt, device, tiny_llama):  # noqa: F811
    path, reference = tiny_llama(fmt), Reference(tiny_llama(fmt))
    assert worst(logits(path, "cuda:0")[: len(IDS)], reference.logits(IDS)) < 10 * 2**-11
    reference.weights = {k: Rounding(w) if w.ndim == 2 else w for k, w in reference.weights.items()}
    assert worst(logits(path, "cuda:0", chunk=7), reference.logits(IDS + STEPS)) < 1e-3


def test_generation_is_that_of_the_cpu(device, tiny_llama):  # noqa: F811
    path, found = tiny_llama("f16"), []
    for where in ("cpu", "cuda:0"):
        model = TextModel(*load_gguf(path, device=where), device=where)
        found.append([list(model.generate(IDS, 6)), list(model.generate(IDS, 6, DRAWN))])
    assert found[0] == found[1]


def test_a_step_is_one_graph(device, tiny_llama):  # noqa: F811
    """However many tokens are asked for, the launches are those of the prompt and of one recording."""
    model = TextModel(*load_gguf(tiny_llama("q4_0"), device="cuda:0"), device="cuda:0")
    list(model.generate(IDS, 3))
    steps = []
    for tokens in (3, 9):
        graph, replays = model._step[0]._graph, []
        replay = graph.replay
        graph.replay = lambda replay=replay, replays=replays: (replays.append(1), replay())
        before = device.launches
        assert len(list(model.generate(IDS, tokens))) == tokens
        del graph.replay
        steps.append((device.launches - before, len(replays)))
    assert [n for _, n in steps] == [2, 8]
    recorded = len(getattr(model._step[0]._graph, "launches", ()))  # a stand-in counts what its replays launch, too
    assert steps[1][0] - steps[0][0] == 6 * recorded


def test_the_default_model_says_paris(real, default_model):
    model = load(str(default_model), context=128, device="cuda:0")
    ids = list(model.generate(model.tokenizer.encode("The capital of France is"), 8))
    assert "Paris" in model.tokenizer.decode(ids)
