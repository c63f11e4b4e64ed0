"""Streams of an engine give what each gives alone, whoever comes and goes."""

import gc
import sys
import threading
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tensorlib import nn
from tensorlib.errors import ContextError, DTypeError, ShapeError
from tensorlib.layout import contiguous
from tests.zoo.conftest import tiny_llama  # noqa: F401
from zoo.engine import Engine
from zoo.generate import GREEDY, SamplerConfig, TextModel
from zoo.load import load_gguf
from zoo.t5 import TINY, T5EncoderModel

DRAWN = SamplerConfig(0.9, top_k=30, repetition_penalty=1.2, seed=4)


@pytest.fixture(scope="module")
def model(tiny_llama):  # noqa: F811
    return TextModel(*load_gguf(tiny_llama("f32")), cache_dtype="f32")


def prompts(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, rng.integers(1, 30)).tolist() for _ in range(count)]


def run(engine):
    """Steps until all have ended; what was given is what the handles say."""
    given = {}
    while engine.busy:
        for handle, token in engine.step():
            if token is not None:
                given.setdefault(handle, []).append(token)
            else:
                assert given.get(handle, []) == handle.ids and handle.finish_reason


class Scores:
    """A processor that keeps what it sees."""

    def __init__(self):
        self.rows = []

    def __call__(self, ids, scores):
        self.rows.append(scores.copy())


@pytest.mark.parametrize("sampler", [GREEDY, DRAWN])
def test_streams_are_what_they_are_alone(model, sampler):
    """The tokens; scores to 16 roundings of the largest, since products of several rows sum in another order."""
    some, seen, alone = prompts(7), [Scores() for _ in range(7)], [Scores() for _ in range(7)]
    engine = Engine(model, 3, cache_dtype="f32")
    handles = [engine.submit(ids, 12 + i, sampler, processors=[seen[i]]) for i, ids in enumerate(some)]
    assert engine.queued == 7
    run(engine)
    for i, (ids, handle) in enumerate(zip(some, handles)):
        assert handle.ids == list(model.generate(ids, 12 + i, sampler, processors=[alone[i]]))
        assert handle.finish_reason == "length" and handle.all_ids == ids + handle.ids
        a, b = np.stack(seen[i].rows), np.stack(alone[i].rows)
        np.testing.assert_allclose(a, b, rtol=0, atol=16 * 2**-23 * np.abs(b).max())


def test_too_few_pages(model):
    """Three streams of 60 tokens on pages for 70: the youngest wait again, and go on where they were."""
    some = prompts(3, 1)
    engine = Engine(model, 3, cache_dtype="f32", tokens=70, page_size=16)
    handles = [engine.submit(ids, 60 - len(ids), DRAWN) for ids in some]
    left = []
    leave = engine._leave
    engine._leave = lambda handle: (left.append(handle), leave(handle))
    run(engine)
    assert [h.ids for h in handles] == [list(model.generate(h.prompt, 60 - len(h.prompt), DRAWN)) for h in handles]
    assert len(left) > 3  # each leaves when it ends


def test_a_beginning_is_shared(tiny_llama):  # noqa: F811
    """The pages of a prompt are found again while they are there, and its tokens are not computed again."""
    file, net = load_gguf(tiny_llama("f32"), 64)
    model, engine = TextModel(file, net, cache_dtype="f32"), None
    engine = Engine(model, 2, cache_dtype="f32", page_size=16)
    counts = []
    compute = engine._batch.prompts
    engine._batch.prompts = lambda sequences, parts: (counts.append(list(map(len, parts))), compute(sequences, parts))[
        1
    ]
    ids = prompts(1, 2)[0][:20] * 2
    first = engine.submit(ids[:40], 20)
    run(engine)
    second, third = engine.submit([*ids[:33], 5, 6], 4), engine.submit(first.all_ids, 2)
    run(engine)
    assert counts == [[len(ids[:40])], [len(ids[:33]) + 2 - 32, len(first.all_ids) - 48]]
    assert second.ids == list(model.generate(second.prompt, 4)) and third.ids == list(model.generate(third.prompt, 2))


def test_stop_cancel_and_errors(model):
    ids = prompts(1, 3)[0]
    want, engine = list(model.generate(ids, 12)), Engine(model, 2, cache_dtype="f32")

    def broken(seen, scores):
        if len(seen) > len(ids) + 2:
            raise ValueError("no")

    stop = next(i for i, token in enumerate(want) if i and token not in want[:i])
    handles = [
        engine.submit(ids, 12, stop_ids=[want[stop]]),
        engine.submit(ids, 12, processors=[broken]),
        engine.submit(ids, 12),
        engine.submit(ids, 12),
        engine.submit(ids, 0),
    ]
    engine.cancel(handles[2])
    run(engine)
    assert [h.finish_reason for h in handles] == ["stop", "error", "cancelled", "length", "length"]
    assert [h.ids for h in handles] == [want[:stop], want[:3], [], want, []]
    assert str(handles[1].error) == "no" and handles[0].error is None
    engine.cancel(handles[0])
    assert engine.wait(0) is False and engine.step() == []


def test_what_prompts_leave(model):
    """A pass over several prompts keeps something of how many tokens they have together, of which there are at most
    CHUNK, and nothing of where one ends and the next begins: less than a Layout for each way to share 40 tokens.
    """
    batch = Engine(model, 3, cache_dtype="f32")._batch

    def compute(parts):
        sequences = [batch.cache.new() for _ in parts]
        batch.prompts(sequences, [[1] * count for count in parts])
        for sequence in sequences:
            batch.cache.free(sequence)

    def left():
        compute((13, 13, 14))  # the last step's memory stays until the next one
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    ways = [(a, b, 40 - a - b) for a in range(1, 39) for b in range(1, 40 - a)]
    for parts in ways[::20]:
        compute(parts)
    tracemalloc.start()
    try:
        before, some = left(), ways[1::5]
        for parts in some:
            compute(parts)
        assert left() - before < sys.getsizeof(contiguous((1, 1, 1))) * len(some)
    finally:
        tracemalloc.stop()


def test_refused_at_once(model):
    engine = Engine(model, 2, context=32)
    with pytest.raises(ContextError, match="a prompt of 30 tokens and 3 to generate; expected at most 32"):
        engine.submit([1] * 30, 3)
    with pytest.raises(ContextError):
        engine.submit([1] * 32)
    with pytest.raises(ShapeError, match="empty prompt"):
        engine.submit([])
    assert not engine.busy
    other = TextModel(model.file, model.model, "f32")
    other.cache = type("OwnCache", (nn.KVCache,), {})(1, 1, 8, 16)
    with pytest.raises(DTypeError, match="got a LlamaForCausalLM with a OwnCache; expected a model with a KVCache or"):
        Engine(other)
    with pytest.raises(DTypeError, match="got a T5EncoderModel; expected a model with"):
        Engine(SimpleNamespace(model=T5EncoderModel(TINY), context_length=64))


def test_other_threads_submit(model):
    engine, handles = Engine(model, 4, cache_dtype="f32"), []

    def submit(seed):
        handles.extend(engine.submit(ids, 5) for ids in prompts(5, seed))

    threads = [threading.Thread(target=submit, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or engine.wait(0):
        engine.step()
    assert len(handles) == 20
    assert all(h.ids == list(model.generate(h.prompt, 5)) for h in handles)


class Comings(RuleBasedStateMachine):
    """Streams come, go and are called off between steps; pages are few."""

    model = None

    @initialize(streams=st.integers(1, 5), tokens=st.integers(64, 200))
    def start(self, streams, tokens):
        self.engine, self.handles = Engine(self.model, streams, cache_dtype="f32", tokens=tokens, page_size=16), []

    @rule(seed=st.integers(0, 5), width=st.integers(1, 40), count=st.integers(0, 24))
    def come(self, seed, width, count):
        ids = np.random.default_rng(seed).integers(0, 256, width).tolist()
        self.handles.append(self.engine.submit(ids, count))

    @rule(at=st.integers(0, 99))
    def call_off(self, at):
        if self.handles:
            self.engine.cancel(self.handles[at % len(self.handles)])

    @rule(rounds=st.integers(1, 12))
    def go_on(self, rounds):
        for _ in range(rounds):
            self.engine.step()

    @invariant()
    def pages_are_counted(self):
        if hasattr(self, "engine"):
            cache = self.engine._cache
            users = [sum(page in table for table in cache._tables.values()) for page in range(len(cache._users))]
            assert cache._users == users and set(cache._free) == {i for i, n in enumerate(users) if not n and i}

    def teardown(self):
        while self.engine.busy:
            self.engine.step()
        for handle in self.handles:
            want = list(self.model.generate(handle.prompt, handle.max_tokens))
            assert handle.ids == (want[: len(handle.ids)] if handle.finish_reason == "cancelled" else want)
        assert self.engine._cache.free_pages == len(self.engine._cache._users) - 1


def test_whoever_comes_and_goes(model):
    machine = type("Machine", (Comings,), {"model": model})
    run_state_machine_as_test(machine, settings=settings(max_examples=50, stateful_step_count=20, deadline=None))
