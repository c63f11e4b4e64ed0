"""Marian against transformers': whole sequences, padding, cached steps, greedy texts, one training step."""

import numpy as np
import pytest

import tensorlib
from tensorlib.io.tokenizer import Tokenizer
from tests.io import test_pieces
from zoo import auto
from zoo.marian import TINY, MarianMTModel, sinusoids

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

SIZES = {"vocab_size": 99, "d_model": 32, "pad_token_id": 98, "eos_token_id": 0}
SIZES |= {"encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "max_position_embeddings": 64}
SIZES |= {"decoder_layers": 3, "decoder_attention_heads": 2, "decoder_ffn_dim": 48, "forced_eos_token_id": None}
# opus-mt's own; all that a config may say otherwise
CASES = {
    "opus": {"scale_embedding": True, "activation_function": "swish"},
    "apart": {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 80, "pad_token_id": 79},
}


def made(name, folder):
    """transformers' model of a case, saved to a folder."""
    torch.manual_seed(0)
    fields = {**SIZES, **CASES[name]}
    config = transformers.MarianConfig(**fields, decoder_start_token_id=fields["pad_token_id"])
    theirs = transformers.MarianMTModel(config).eval()
    with torch.no_grad():
        for name, weight in [*theirs.named_parameters(), ("", theirs.final_logits_bias)]:
            if "embed_positions" not in name:
                weight += torch.randn_like(weight) * (0.25 if weight.ndim == 1 else 1.5 * weight.shape[-1] ** -0.5)
    theirs.save_pretrained(folder)
    return theirs


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """(transformers' model, ours out of its file, ids of a text and of an answer with the text's mask)."""
    folder = tmp_path_factory.mktemp("marian")
    theirs = made(request.param, folder)
    rng = np.random.default_rng(0)
    ids, answer = rng.integers(3, 80, (2, 14)), rng.integers(3, 80, (2, 15))
    mask = (np.arange(14) < np.array([[14], [9]])).astype(np.int64)
    return theirs, auto.load(folder)[1], ids, mask, answer


def logits(theirs, ids, mask, answer):
    return theirs(torch.tensor(ids), attention_mask=torch.tensor(mask), decoder_input_ids=torch.tensor(answer)).logits


def close(got, want):
    assert got.shape == want.shape and np.abs(got - want).max() < 1e-4 * np.abs(want).max()


def test_logits(pair):
    theirs, ours, ids, mask, answer = pair
    with torch.no_grad():
        want = logits(theirs, ids, mask, answer).numpy()
    with tensorlib.no_grad():
        close(ours(*map(tensorlib.tensor, (ids, answer, mask))).numpy(), want)
        cache, ends = ours.new_cache(tensorlib.tensor(ids[0])), ((0, 4), *zip(range(4, 15), range(5, 16)))
        parts = [ours.step(tensorlib.tensor(answer[0, a:b]), cache) for a, b in ends]
        close(tensorlib.cat(parts, 0).numpy(), want[0])


def test_padding_on_the_left(pair):
    """What transformers gives for each text alone, since with a mask it moves its positions."""
    theirs, ours, ids, mask, answer = pair
    left = np.ascontiguousarray(mask[:, ::-1])
    texts = [(ids[i : i + 1, n:], mask[i : i + 1, : 14 - n], answer[i : i + 1]) for i, n in enumerate((0, 5))]
    with torch.no_grad():
        want = np.concatenate([logits(theirs, *alone).numpy() for alone in texts])
    with tensorlib.no_grad():
        close(ours(*map(tensorlib.tensor, (ids, answer, left))).numpy(), want)


def test_greedy_texts(pair):
    """What `generate` gives, for a dozen texts; padding is never said, as generation configs have it."""
    theirs, ours, *_ = pair
    options = {"max_new_tokens": 8, "num_beams": 1, "do_sample": False}
    options["bad_words_ids"] = [[theirs.config.pad_token_id]]
    rng, said = np.random.default_rng(1), set()
    for length in range(3, 15):
        ids = rng.integers(3, 80, length)
        with torch.no_grad():
            want = theirs.generate(torch.tensor(ids[None]), **options)[0, 1:].tolist()
        want = want[: want.index(0)] if 0 in want else want
        assert list(ours.answer(tensorlib.tensor(ids), 8)) == want
        said |= {tuple(want)}
    assert len(said) > 1


@pytest.mark.parametrize("name", CASES)
def test_from_text_to_text(name, tmp_path, monkeypatch):
    """A folder as it is published: two models of pieces, ids of words for both languages or for each."""
    pytest.importorskip("sentencepiece")
    words, answers = test_pieces.marian(tmp_path, apart=name == "apart")
    sizes = {"vocab_size": words, "decoder_vocab_size": answers, "pad_token_id": answers - 1}
    monkeypatch.setitem(CASES, name, {**CASES[name], **sizes})
    theirs = made(name, tmp_path)
    texts = "the cat sat", "then the rat", ">>deu<< the tale ate", "日本 größer"
    with pytest.warns(UserWarning, match="sacremoses"):
        tokenizer = transformers.MarianTokenizer.from_pretrained(tmp_path)
    model, ours, said = auto.load(tmp_path)[1], Tokenizer.from_folder(tmp_path), set()
    options = {"max_new_tokens": 8, "num_beams": 1, "do_sample": False, "bad_words_ids": [[answers - 1]]}
    for text in texts:
        with torch.no_grad():
            ids = theirs.generate(torch.tensor([tokenizer(text).input_ids]), **options)[0, 1:]
        found = ours.decode(list(model.answer(tensorlib.tensor(ours.encode(text)), 8)))
        assert found == tokenizer.decode(ids, skip_special_tokens=True)
        said |= {found}
    assert "" not in said and (name == "apart" or len(said) > 1)  # that one says the same of everything


def test_training_step(pair):
    theirs, ours, ids, mask, answer = pair
    want = logits(theirs, ids, mask, answer)[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(want, torch.tensor(answer[:, 1:].flatten()))
    theirs.zero_grad()
    loss.backward()
    ours.requires_grad_()
    found = ours(*map(tensorlib.tensor, (ids, answer, mask)))[:, :-1].flatten(0, 1)
    found = tensorlib.nn.functional.cross_entropy(found, tensorlib.tensor(answer[:, 1:].flatten()))
    assert abs(found.item() - loss.item()) < 1e-5 * loss.item()
    found.backward()
    grads = {name: p.grad for name, p in ours.named_parameters()}
    assert all(grad is not None for grad in grads.values())
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert expected.keys() == grads.keys()
    for name, grad in expected.items():
        difference = np.abs(grads[name].numpy() - grad.numpy()).max()
        assert difference < 1e-3 * max(grad.abs().max().item(), 1e-4), name
    ours.requires_grad_(False)


def test_positions():
    module = transformers.models.marian.modeling_marian.MarianSinusoidalPositionalEmbedding
    assert np.array_equal(sinusoids(600, 32).numpy(), module(600, 32).create_weight().numpy())


def test_tiny():
    ours = MarianMTModel(TINY).requires_grad_(False)
    ids = tensorlib.tensor([3, 4, 5])
    assert ours(ids, ids).shape == (3, TINY.vocab_size) and len(list(ours.answer(ids, 4))) <= 4
