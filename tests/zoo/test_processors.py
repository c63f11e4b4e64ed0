"""What changes scores before a token is chosen: against transformers, the papers, and real text."""

import json

import numpy as np
import pytest

from tensorlib.errors import ShapeError
from tests.zoo.conftest import tiny_llama  # noqa: F401
from zoo import processors
from zoo.completion import Completion, Cut
from zoo.generate import SamplerConfig, TextModel, load
from zoo.load import load_gguf

IDS = [3, 200, 17, 17, 99, 4]
rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model(default_model):
    return load(str(default_model), context=512)


@pytest.fixture
def tiny(tiny_llama):  # noqa: F811
    return TextModel(*load_gguf(tiny_llama("f32")))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.95])
def test_typical_is_that_of_transformers(p):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    for _ in range(20):
        scores = (4 * rng.standard_normal(300)).astype(np.float32)
        want = transformers.TypicalLogitsWarper(mass=p)(None, torch.from_numpy(scores[None] / 0.7))[0]
        found = scores.copy()
        processors.Typical(p, temperature=0.7)([], found)
        assert (np.isinf(found) == np.isinf(want.numpy())).all()
        assert (found[~np.isinf(found)] == scores[~np.isinf(found)]).all()


def test_mirostat_holds_the_surprise():
    """Of tokens with the probabilities of Zipf's law the mean surprise becomes tau; unbounded it is 8.9 bits."""
    shares = 1 / np.arange(1, 5001)
    scores, ids, tau = np.log(shares / shares.sum()).astype(np.float32), [0], 4.0
    mirostat, bits = processors.Mirostat(tau, eta=0.1), []
    for _ in range(1500):
        now = scores.copy()
        mirostat(ids, now)
        chances = np.exp(now - now.max(), dtype=np.float64)
        ids.append(int(rng.choice(5000, p=chances / chances.sum())))
        bits.append(-np.log2(chances[ids[-1]] / chances.sum()))
    # mu moves by eta times the sum of (surprise - tau), and stays within 2 tau: |mean - tau| <= 2 tau / (eta n) + ...
    assert abs(np.mean(bits) - tau) <= 2 * 2 * tau / (0.1 * 1500)


def test_biases_and_penalties():
    scores = np.zeros(10, np.float32)
    processors.LogitBias({2: 1.5, 3: -100.0})([], scores)
    processors.Penalties(presence=0.5, frequency=0.25, prompt=2)([7, 7, 1, 1, 2], scores)
    assert scores.tolist() == [0, -1.0, 0.75, -100, 0, 0, 0, 0, 0, 0]
    with pytest.raises(ShapeError, match="ids"):
        processors.LogitBias({10: 1.0})([], scores)


def test_scores_without_processors_are_the_same(tiny):
    """Tokens chosen one call after another are those of the recorded choice, greedy and drawn; a bias forces one."""
    for sampler in (SamplerConfig(), SamplerConfig(0.9, top_k=40, seed=5)):
        plain = list(tiny.generate(IDS, 8, sampler))
        assert list(tiny.generate(IDS, 8, sampler, processors=[lambda ids, scores: None])) == plain
    assert list(tiny.generate(IDS, 3, processors=[processors.LogitBias({7: 1e4})])) == [7, 7, 7]


def test_logprobs(tiny):
    kept = processors.LogProbs(top=3)
    ids = list(tiny.generate(IDS, 5, processors=[kept]))
    kept.finish(IDS + ids)
    logits = tiny.logits(IDS + ids[:-1])[len(IDS) - 1 :].astype(np.float64)
    want = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert [row.top[0][0] for row in kept.rows] == ids  # greedy
    np.testing.assert_allclose([row.logprob for row in kept.rows], want[np.arange(5), ids], atol=1e-4)
    assert [len(row.top) for row in kept.rows] == [3] * 5


def test_grammars(model):
    pytest.importorskip("llguidance")
    tokenizer, schema = model.tokenizer, {"type": "object", "properties": {"age": {"enum": [7, 8]}},
                                          "required": ["age"], "additionalProperties": False}  # fmt: skip
    sampler, ids = SamplerConfig(1.5, seed=1), tokenizer.encode("Once")
    grammar = processors.Grammar(tokenizer, json_schema=schema)
    assert json.loads("".join(Completion(model, ids, 60, sampler, processors=[grammar])))["age"] in (7, 8)
    grammar = processors.Grammar(tokenizer, regex="[ab]{3}-[0-9]{2}")
    text = "".join(Completion(model, ids, 20, sampler, processors=[grammar]))
    assert len(text) == 6 and set(text[:3]) <= set("ab") and text[3] == "-" and text[4:].isdigit()
    with pytest.raises(ValueError, match=r"(?s)grammar.*got.*expected"):
        processors.Grammar(tokenizer, grammar="start: (")


def test_a_prefix_that_the_cache_holds_is_not_computed_again(tiny):
    prompt, calls = list(range(1, 40)), []
    first = list(tiny.generate(prompt, 4))
    run = tiny.model.forward
    tiny.model.forward = lambda ids, cache, *rest: calls.append(ids.shape[0]) or run(ids, cache, *rest)
    longer = prompt + first + [9, 9]
    found = list(tiny.generate(longer, 4, reuse=True))
    assert calls[0] == 3  # the last token chosen was not computed yet
    del tiny.model.forward
    logits, held = tiny.logits(longer)[-1], found
    assert list(tiny.generate(longer, 4)) == held and held[0] == int(logits.argmax())
    list(tiny.generate([5, *prompt], 2, reuse=True))  # nothing in common
    assert tiny.cache.length == len(prompt) + 2


def test_an_interrupted_prompt_is_forgotten(tiny):
    def broken(*_):
        raise KeyboardInterrupt

    list(tiny.generate(IDS, 4))
    run, tiny.model.forward = tiny.model.forward, broken
    with pytest.raises(KeyboardInterrupt):
        list(tiny.generate([*IDS, 1, 2], 4, reuse=True))
    tiny.model.forward = run
    assert tiny._held == []
    assert list(tiny.generate(IDS, 4, reuse=True)) == list(tiny.generate(IDS, 4))


@pytest.mark.parametrize("pieces", [["one st", "op two"], ["one stop two"], [*"one stop two"], ["one s", "stop two"]])
def test_stop_strings(pieces):
    cut = Cut(["stop", "never"])
    given = [cut.push(piece) for piece in pieces]
    assert "".join(given) == ("one s" if pieces[0] == "one s" else "one ") and cut.found == "stop"
    cut = Cut(["stop"])
    assert cut.push("a sto") + cut.flush() == "a sto" and cut.found is None


def test_completions_say_why_they_ended(model):
    ids = model.tokenizer.encode("The capital of France is")
    answer = Completion(model, ids, 20, stop=["."])
    assert "".join(answer) == answer.text == " Paris" and answer.finish_reason == "stop"
    answer = Completion(model, ids, 2, stop=["."])
    assert "".join(answer).startswith(" Paris") and len(answer.ids) == 2
    short = Completion(model, ids, 1)
    assert "".join(short) == " Paris" and short.finish_reason == "length"
