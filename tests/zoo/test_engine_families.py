"""The engine serves every decoder: streams that come and go give what each gives alone."""

import importlib

import numpy as np
import pytest

import tensorlib
from tensorlib.errors import ContextError, ShapeError
from zoo import auto
from zoo.engine import Engine
from zoo.generate import TextModel
from zoo.llama import LlamaForCausalLM


def decoders():
    """The rows of auto.MODELS that give text."""
    kinds = {row: getattr(importlib.import_module(f"zoo.{name}"), kind) for row, (name, kind, _) in auto.MODELS.items()}
    return sorted(row for row, kind in kinds.items() if issubclass(kind, LlamaForCausalLM))


def tiny(model_type):
    """A TextModel of random weights, of the family's own tiny config."""
    name, model, config = auto.MODELS[model_type]
    module = importlib.import_module(f"zoo.{name}")
    kind = getattr(module, config)
    found = next(value for key, value in vars(module).items() if key.startswith("TINY") and type(value) is kind)
    tensorlib.manual_seed(0)
    net = getattr(module, model)(found._replace(max_position_embeddings=64)).requires_grad_(False)
    return TextModel(None, net, cache_dtype="f32")


class Scores:
    """A processor that keeps what it sees."""

    def __init__(self):
        self.rows = []

    def __call__(self, ids, scores):
        self.rows.append(scores.copy())


def same(got, want, seen, alone):
    """Ids that are alike, up to where the two best are within rounding; scores to 64 roundings of the largest, since
    products of several rows sum in another order.
    """
    rounding = 64 * 2**-23 * max(np.abs(row).max() for row in alone)
    for a, b, x, y in zip(got, want, seen, alone, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=rounding)
        if a != b:
            best = np.sort(y)
            assert best[-1] - best[-2] <= 2 * rounding
            return


@pytest.mark.parametrize("model_type", decoders())
def test_streams_are_what_they_are_alone(model_type):
    """Past windows of 8, with two that wait and one that is called off, on pages of 16."""
    model, rng = tiny(model_type), np.random.default_rng(1)
    prompts = [rng.integers(0, model.config.vocab_size, n).tolist() for n in (5, 19, 1, 11, 3)]
    engine = Engine(model, 3, cache_dtype="f32", page_size=16)
    seen, alone = [Scores() for _ in prompts], [Scores() for _ in prompts]
    handles = [engine.submit(ids, 10 + i, processors=[seen[i]]) for i, ids in enumerate(prompts)]
    while engine.busy:
        engine.step()
        if len(handles[1].ids) == 4:
            engine.cancel(handles[1])
    for i, (ids, handle) in enumerate(zip(prompts, handles)):
        want = list(model.generate(ids, len(handle.ids), processors=[alone[i]]))
        same(handle.ids, want, seen[i].rows, alone[i].rows)
    assert [h.finish_reason for h in handles] == ["length", "cancelled", "length", "length", "length"]
    assert len(engine._batch._recorded) > 1  # steps of several sizes
    nothing_is_held(engine)


def nothing_is_held(engine):
    cache = engine._cache
    assert cache.free_pages == len(cache._users) - 1
    assert not cache.apart or sorted(cache._unused) == [*range(1, engine.streams + 1)]


@pytest.mark.parametrize("model_type", decoders())
def test_padding_is_as_if_not_there(model_type):
    """At either side, and amid a text."""
    net, rng = tiny(model_type).model, np.random.default_rng(3)
    ids, mask = rng.integers(0, net.config.vocab_size, (3, 12)), np.ones((3, 12), int)
    mask[0, :5], mask[1, 9:], mask[2, 3:6] = 0, 0, 0
    with tensorlib.no_grad():
        found = net(tensorlib.tensor(ids), attention_mask=tensorlib.tensor(mask)).numpy()
        for row, text, keep in zip(found, ids, mask.astype(bool)):
            alone = net(tensorlib.tensor(text[keep])).numpy()
            np.testing.assert_allclose(row[keep], alone, rtol=0, atol=1e-5 * np.abs(alone).max())
            assert not row[~keep].any()


@pytest.mark.parametrize("model_type", ["deepseek_v2", "granitemoehybrid", "lfm2", "recurrent_gemma", "mamba"])
def test_too_few_pages(model_type):
    """The youngest wait again, and are computed anew; without keys nobody waits."""
    model, rng = tiny(model_type), np.random.default_rng(2)
    prompts = [rng.integers(0, model.config.vocab_size, n).tolist() for n in (5, 19, 11)]
    engine = Engine(model, 3, cache_dtype="f32", tokens=64, page_size=16)
    left, leave = [], engine._leave
    engine._leave = lambda handle: (left.append(handle), leave(handle))
    handles = [engine.submit(ids, 40 - len(ids)) for ids in prompts]
    while engine.busy:
        engine.step()
    for ids, handle in zip(prompts, handles):
        alone = Scores()
        want = list(model.generate(ids, 40 - len(ids), processors=[alone]))
        same(handle.ids, want, alone.rows, alone.rows)
    assert (len(left) > 3) is (model_type != "mamba")  # each leaves when it ends
    nothing_is_held(engine)


def test_states_have_no_way_back():
    cache = Engine(tiny("mamba"), 1, cache_dtype="f32")._cache
    first, held = cache.begin([1, 2])
    assert held == 0
    with pytest.raises(ContextError, match="one more sequence; expected at most 1"):
        cache.new()
    with pytest.raises(ShapeError, match="2 sequences"):
        cache.step([first, first], [1, 1])
    cache.step([first], [2])
    with pytest.raises(ContextError, match="no way back"):
        cache.reset(first, 1)
    with pytest.raises(ShapeError, match="state"):
        cache.keep(0, 1, cache.past(0, 0))
    cache.keep(0, 0, cache.past(0, 0) + 1)
    cache.reset(first, 2)
    assert cache.past(0, 0).min().item() == 1
    cache.reset(first)
    assert cache.past(0, 0).abs().max().item() == 0 and cache.length(first) == 0
