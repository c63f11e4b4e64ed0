"""Beam search finds what transformers' finds: texts and scores."""

import numpy as np
import pytest

from tensorlib.errors import ContextError, ShapeError
from tests.zoo.decoders import CASES
from tests.zoo.test_decoders import torch_model
from zoo import auto
from zoo.beam import Text, _Search, beam_search
from zoo.generate import TextModel

torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")

EOS = 7


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(ours, transformers'), of such large random weights that some tokens are far likelier than others."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=24, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.4, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("beam")
    theirs.save_pretrained(folder)
    return TextModel(*auto.load(str(folder), 64), cache_dtype="f32"), theirs


@pytest.mark.parametrize("stops", [(), (EOS, 3)])
@pytest.mark.parametrize(
    ("beams", "penalty", "early"),
    [
        (1, 1.0, False),
        (3, 1.0, False),
        (4, 0.0, "never"),
        (4, 2.0, "never"),
        (3, 1.0, True),
        (4, -1.0, True),
        (5, 0.6, False),
    ],
)
def test_texts_and_scores(models, stops, beams, penalty, early):
    ours, theirs = models
    for prompt in ([5, 1, 9], [2, 8, 8, 20, 1, 4] * 4):
        found = beam_search(ours, prompt, beams, 12, penalty, early, stops)
        ids = torch.tensor([prompt])
        want = theirs.generate(
            ids, max_new_tokens=12, num_beams=beams, length_penalty=penalty, early_stopping=early,
            num_return_sequences=beams, eos_token_id=list(stops) or None, pad_token_id=0, do_sample=False,
            return_dict_in_generate=True, output_scores=True, attention_mask=torch.ones_like(ids),
        )  # fmt: skip
        if beams == 1:  # greedy there: no scores
            assert found[0].ids == cut(want.sequences[0, len(prompt) :].tolist(), stops)
            continue
        texts = [cut(ids.tolist(), stops) for ids in want.sequences[:, len(prompt) :]]
        scores = want.sequences_scores.tolist()
        texts = [text for text, score in zip(texts, scores) if score > -1e8]  # what has not ended is no text
        assert [text.ids for text in found] == texts
        assert [text.score for text in found] == pytest.approx(scores[: len(texts)], rel=1e-5)


@pytest.mark.parametrize("model_type", ["mamba", "granitemoehybrid", "deepseek_v3"])
def test_states_and_latents_fork(model_type, tmp_path):
    """A text that parts takes its state along."""
    theirs = torch_model(next(case for case in CASES if case.model_type == model_type))
    theirs.save_pretrained(tmp_path)
    ours = TextModel(*auto.load(str(tmp_path), 64), cache_dtype="f32")
    prompt = [5, 1, 9, 40]
    found = beam_search(ours, prompt, 3, 10)
    ids = torch.tensor([prompt])
    want = theirs.generate(
        ids, max_new_tokens=10, num_beams=3, num_return_sequences=3, eos_token_id=None, pad_token_id=0, use_cache=False,
        do_sample=False, return_dict_in_generate=True, output_scores=True, attention_mask=torch.ones_like(ids),
    )  # fmt: skip
    assert [text.ids for text in found] == want.sequences[:, len(prompt) :].tolist()
    assert [text.score for text in found] == pytest.approx(want.sequences_scores.tolist(), rel=1e-4)


def cut(ids, stops):
    """Up to the first stop id."""
    return ids[: next((i for i, token in enumerate(ids) if token in stops), len(ids))]


def test_errors(models):
    with pytest.raises(ContextError, match="a prompt of 60 tokens and 5 to generate"):
        beam_search(models[0], [1] * 60, 2, 5)
    with pytest.raises(ShapeError, match="0 beams"):
        beam_search(models[0], [1], 0, 5)


@pytest.mark.parametrize(
    ("early", "penalty", "decided"),
    [(True, 1.0, True), (False, 1.0, True), ("never", 1.0, False), ("never", 0.0, True)],
)
def test_when_it_ends(early, penalty, decided):
    """Texts of -1 and -2 have ended; the best that goes on has -6 after 3 of 12 tokens: -2 a token, or -0.5 at best."""
    search = _Search(2, 12, penalty, early, frozenset())
    search.ended = [Text([1], -1.0), Text([2], -2.0)]
    assert search._decided(np.float32(-6.0), 3) is decided
    search.ended[1] = Text([2], -2.1 if penalty else -6.1)
    assert search._decided(np.float32(-6.0), 3) is (early is True)
    del search.ended[1]
    assert not search._decided(np.float32(-600.0), 3)
