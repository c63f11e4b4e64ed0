"""Streams of an engine give what each gives alone, whoever comes and goes."""

import numpy as np
import pytest

from tests.zoo.conftest import tiny_llama  # noqa: F401
from zoo.engine import Engine
from zoo.generate import SamplerConfig, TextModel
from zoo.load import load_gguf

DRAWN = SamplerConfig(0.9, top_k=30, repetition_penalty=1.2, seed=4)


@pytest.fixture(scope="module")
def model(tiny_llama):  # noqa: F811
    return TextModel(*load_gguf(tiny_llama("f32")), cache_dtype="f32")


def prompts(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, rng.integers(1, 30)).tolist() for _ in range(count)]


def run(engine):
    """All tokens by handle."""
    given = {}
    while engine.busy:
        for handle, token in engine.step():
            if token is not None:
                given.setdefault(handle, []).append(token)
            else:
                assert given.get(handle, []) == handle.ids and handle.finish_reason
    return given


@pytest.mark.parametrize("sampler", [SamplerConfig(), DRAWN])
def test_streams_are_what_they_are_alone(model, sampler):
    some = prompts(7)
    engine = Engine(model, 3, cache_dtype="f32")
    handles = [engine.submit(ids, 12 + i, sampler) for i, ids in enumerate(some)]
    run(engine)
    for i, (ids, handle) in enumerate(zip(some, handles)):
        assert handle.ids == list(model.generate(ids, 12 + i, sampler))
        assert handle.finish_reason == "length"
