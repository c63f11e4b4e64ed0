"""Speculative decoding gives the model's own tokens, in fewer steps where guesses hold."""

import numpy as np
import pytest

from tensorlib.errors import ContextError, DTypeError, ShapeError
from tests.zoo.conftest import tiny_llama, write_llama  # noqa: F401
from zoo.generate import SamplerConfig, TextModel
from zoo.llama import TINY
from zoo.load import load_gguf
from zoo.speculative import Draft, NGram, Speculation

IDS = [3, 200, 17, 17, 99, 4, 3, 200]


@pytest.fixture
def model(tiny_llama):  # noqa: F811
    return TextModel(*load_gguf(tiny_llama("f32")), cache_dtype="f32")


class Told:
    """Guesses what it was told will come, every third token wrong."""

    count = 3

    def __init__(self, ids):
        self.ids = ids

    def __call__(self, ids):
        right = self.ids[len(ids) : len(ids) + self.count]
        return [(token + (at % 3 == 0)) % 256 for at, token in enumerate(right, len(ids))]


@pytest.mark.parametrize("sampler", [SamplerConfig(), SamplerConfig(0.9, top_k=30, repetition_penalty=1.2, seed=4)])
def test_tokens_are_those_of_the_model(model, sampler):
    """Right, wrong and no guesses: f32 keys and weights leave 1e-6 between scores, far less than between tokens."""
    want = list(model.generate(IDS, 20, sampler))
    for draft in (Told(IDS + want), Told(IDS), NGram(2, 4)):
        found = Speculation(model, draft)
        assert list(found.generate(IDS, 20, sampler)) == want
        assert found.tokens in (19, 20) and found.steps <= found.tokens
    told = Speculation(model, Told(IDS + want))
    list(told.generate(IDS, 20, sampler))
    assert told.steps <= 9  # two of three guesses hold: 19 tokens in rounds of up to 3
    assert list(told.generate(IDS, 1, sampler)) == want[:1] and list(told.generate(IDS, 0, sampler)) == []


def test_a_model_guesses(model, tiny_llama):  # noqa: F811
    other = TextModel(*load_gguf(tiny_llama("f32")), cache_dtype="f32")
    found = Speculation(model, Draft(other, 3))
    want = list(model.generate(IDS, 16))
    assert list(found.generate(IDS, 16)) == want
    assert found.steps == 4  # the same model: every guess holds, 15 tokens in rounds of 4


def test_stops_and_the_end_of_the_context(model):
    want = list(model.generate(IDS))
    assert len(want) == model.context_length - len(IDS)
    found = Speculation(model, Told(IDS + want))
    assert list(found.generate(IDS)) == want
    stop = want[5]
    assert list(found.generate(IDS, stop_ids=[stop])) == want[: want.index(stop)]


def test_processors_see_every_token_once(model):
    """Guesses that hold and do not: the same calls as without them, and the same text."""
    seen = []

    def forbid(ids, scores):
        seen.append(list(ids))
        scores[[ids[-1], 7]] = -np.inf  # no token twice in a row

    sampler = SamplerConfig(0.9, seed=4)
    want = list(model.generate(IDS, 20, sampler, processors=[forbid]))
    calls, seen[:] = list(seen), []
    found = Speculation(model, Told(IDS + want))
    assert list(found.generate(IDS, 20, sampler, processors=[forbid])) == want and seen == calls
    assert found.steps <= 9 and len(calls) == 20
    seen[:] = []
    assert list(Speculation(model, NGram(2, 4)).generate(IDS, 20, sampler, processors=[forbid])) == want
    assert seen == calls


def test_what_the_cache_has_is_not_computed_again(model):
    want = list(model.generate(IDS, 12))
    found = Speculation(model, Told(IDS + want))
    assert list(found.generate(IDS, 6)) == want[:6]
    held = len(model._held)
    assert held >= len(IDS) + 5
    assert list(found.generate(IDS + want[:6], 6, reuse=True)) == want[6:]


def test_a_draft_of_less_context_and_other_padding(model, tmp_path, tiny_llama):  # noqa: F811
    """A table of words filled up further, and texts past what the draft was made for: fewer guesses, the same text."""
    write_llama(tmp_path / "padded.gguf", "f32", TINY._replace(vocab_size=320, max_position_embeddings=16), seed=1)
    short = TextModel(*load_gguf(tmp_path / "padded.gguf"), cache_dtype="f32")
    want = list(model.generate(IDS, 20))
    assert list(Speculation(model, Draft(short, 3)).generate(IDS, 20)) == want
    assert Draft(short)([3] * 20) == [] and Draft(short)([319, 320]) == []
    with pytest.raises(ContextError):
        list(Speculation(model, NGram()).generate(IDS, 10**6))


def test_a_state_that_cannot_go_back_is_refused(tmp_path):
    from zoo.mamba import TINY as MAMBA
    from zoo.mamba import MambaForCausalLM

    with pytest.raises(DTypeError, match="a StateCache"):
        Speculation(TextModel(None, MambaForCausalLM(MAMBA)), NGram())


def test_another_vocabulary_is_refused(model, tmp_path):
    write_llama(tmp_path / "other.gguf", "f32", TINY._replace(vocab_size=100))
    other = TextModel(*load_gguf(tmp_path / "other.gguf"))
    with pytest.raises(ShapeError, match="a draft of 100 tokens"):
        Speculation(model, Draft(other))
