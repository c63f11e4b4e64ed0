"""Batches of prompts: what transformers generates with padding, and what each prompt gives alone."""

import functools

import numpy as np
import pytest

import tensorlib
from tensorlib.errors import ContextError, ShapeError
from tests.zoo import test_decoders as whole
from tests.zoo.decoders import CASES
from tests.zoo.serving import write_tiny
from zoo import auto
from zoo import generate_batch as batches
from zoo.completion import Completion
from zoo.generate import GREEDY, SamplerConfig, TextModel
from zoo.load import load_gguf

torch, transformers = whole.torch, whole.transformers

generate_batch = functools.partial(batches.generate_batch, cache_dtype="f32")
ROWS = [whole.OTHER[:11], whole.IDS, whole.IDS[2:], [4]]
SHOWN = "llama", "gpt2", "gemma2", "mpt", "deepseek_v3", "mamba", "lfm2", "granitemoehybrid"
DRAWN = SamplerConfig(0.9, top_k=30, seed=4)


@pytest.mark.parametrize("case", [case for case in CASES if case.id in SHOWN], ids=lambda case: case.id)
def test_what_transformers_generates(case, tmp_path):
    """Greedy, from rows padded at either side, and from lists; up to where its two best scores are within rounding."""
    theirs, width, count = whole.torch_model(case), len(whole.IDS), 12
    theirs.save_pretrained(tmp_path)
    model = TextModel(*auto.load(tmp_path, context=case.context), cache_dtype="f32")
    left = np.array([[0] * (width - len(row)) + row for row in ROWS])
    mask = np.array([[0] * (width - len(row)) + [1] * len(row) for row in ROWS])
    want = theirs.generate(
        torch.tensor(left), attention_mask=torch.tensor(mask), max_new_tokens=count, do_sample=False, pad_token_id=0,
        eos_token_id=None, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    found = generate_batch(model, left, count, attention_mask=mask)
    scores, compared = np.stack([step.numpy() for step in want.scores], 1), 0
    for row, ids, steps in zip(found, want.sequences[:, width:].tolist(), scores):
        best = np.sort(steps, -1)
        certain = best[:, -1] - best[:, -2] > 2 * whole.TOLERANCE * np.abs(steps).max()
        some = count if certain.all() else int(certain.argmin())
        assert row[:some] == ids[:some]
        compared += some
    assert compared > 2 * count
    right, behind = [row + [0] * (width - len(row)) for row in ROWS], tensorlib.tensor(np.sort(mask)[:, ::-1].copy())
    assert generate_batch(model, whole.tensor(right), count, attention_mask=behind) == found
    assert generate_batch(model, ROWS, count) == found


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model with a tokenizer."""
    return TextModel(*load_gguf(write_tiny(tmp_path_factory.mktemp("batch") / "tiny.gguf")), cache_dtype="f32")


def test_texts(model):
    texts = ["Hello", "the other one", "a"]
    samplers = [GREEDY, DRAWN, DRAWN._replace(seed=5)]

    def alone(stop=()):
        return ["".join(Completion(model, model.tokenizer.encode(t), 20, s, stop)) for t, s in zip(texts, samplers)]

    want = alone()
    assert generate_batch(model, texts, 20, samplers, streams=2) == want
    stop = [want[0][5:7], want[1][3]]
    assert alone(stop) != want and generate_batch(model, texts, 20, samplers, stop=stop) == alone(stop)
    ids = [model.tokenizer.encode(text) for text in texts]
    drawn = generate_batch(model, ids, 20, DRAWN)
    assert drawn == [list(model.generate(each, 20, DRAWN)) for each in ids]
    ends = {drawn[0][4], drawn[1][9]}
    assert generate_batch(model, ids, 20, DRAWN, stop_ids=ends) == [
        list(model.generate(each, 20, DRAWN, ends)) for each in ids
    ]
    assert generate_batch(model, [], 9) == []


def test_refused(model):
    with pytest.raises(ShapeError, match="one text"):
        generate_batch(model, "Hello")
    with pytest.raises(ShapeError, match=r"ids of shape \(3,\)"):
        generate_batch(model, np.array([1, 2, 3]))
    with pytest.raises(ShapeError, match=r"rows of \[2, 2\] ids, a mask of \[2, 1\]"):
        generate_batch(model, [[1, 2], [3, 4]], attention_mask=[[1, 1], [1]])
    with pytest.raises(ShapeError, match="2 prompts of ids, 1 samplers"):
        generate_batch(model, [[1, 2], [3, 4]], 4, [GREEDY])
    with pytest.raises(ShapeError, match="1 strings to stop at"):
        generate_batch(model, [[1, 2]], 4, stop=["x"])
    with pytest.raises(ShapeError, match="empty prompt"):
        generate_batch(model, [[1, 2]], 4, attention_mask=[[0, 0]])
    with pytest.raises(ContextError):
        generate_batch(model, [[1] * 250], 40)
