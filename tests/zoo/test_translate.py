"""Text from encoder-decoders: T5 out of a folder and a GGUF file, Marian out of a folder, as transformers has it."""

import pytest

import tensorlib
from tensorlib.errors import ContextError, FormatError, ShapeError
from tests.io import build_pieces
from zoo import cli
from zoo.generate import load
from zoo.translate import Translator

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8}
T5 |= {"vocab_size": len(build_pieces.PIECES), "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
MARIAN = {"vocab_size": 7, "d_model": 32, "pad_token_id": 6, "decoder_start_token_id": 6, "eos_token_id": 0}
MARIAN |= {"encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64, "max_position_embeddings": 24}
MARIAN |= {"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "forced_eos_token_id": None}
CASES = {
    "t5": (transformers.T5ForConditionalGeneration, transformers.T5Config, T5, {"spiece.model": build_pieces.model()}),
    "marian": (
        transformers.MarianMTModel, transformers.MarianConfig, MARIAN,
        {"source.spm": build_pieces.model(), "target.spm": build_pieces.model(), "vocab.json": build_pieces.WORDS},
    ),
}  # fmt: skip
SEEDS = {"t5": 1, "marian": 3}  # of models that do not say the same of every text
TEXT = "the cat s the t"


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """(transformers' model, a folder with its weights and a tokenizer)."""
    model, config, fields, files = CASES[request.param]
    torch.manual_seed(SEEDS[request.param])
    theirs = model(config(**fields)).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "embed_positions" not in name:
                weight += torch.randn_like(weight) * (0.25 if weight.ndim == 1 else 1.5 * weight.shape[-1] ** -0.5)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return theirs, str(folder)


def greedy(theirs, ids, count):
    """transformers' ids, up to the end token."""
    bad = [[theirs.config.pad_token_id]] if theirs.config.model_type == "marian" else None
    with torch.no_grad():
        found = theirs.generate(
            torch.tensor([ids]), max_new_tokens=count, num_beams=1, do_sample=False, bad_words_ids=bad
        )[0, 1:].tolist()
    end = theirs.config.eos_token_id
    return found[: found.index(end)] if end in found else found


def test_one_command_translates(pair, capsys):
    """What the tokenizer makes of transformers' ids, without the space that words begin with."""
    theirs, folder = pair
    model = load(folder)
    assert isinstance(model, Translator)
    said = set()
    for text in (TEXT, "cat", "s s t"):
        want = greedy(theirs, model.tokenizer.encode(text), 8)
        assert cli.main(["generate", "-m", folder, text, "-n", "8"]) == 0
        said.add(capsys.readouterr().out)
        pieces = [model.tokenizer.piece(id).decode() for id in want if id not in (0, 6 if "marian" in folder else 0)]
        assert "".join(pieces).replace("\u2581", " ").lstrip(" ") + "\n" in said
    assert len(said) > 1


def test_what_a_text_model_has(pair):
    """Sampling by seed, processors that see text and answer, stop strings, ends, texts from Python."""
    theirs, folder = pair
    model, seen = load(folder), []
    ids = model.tokenizer.encode(TEXT)
    want = greedy(theirs, ids, 8)
    assert list(model.generate(ids, 8, stop_ids=model.tokenizer.eos_ids)) == want

    def note(before, scores):
        seen.append((list(before), scores.shape))

    assert list(model.generate(ids, 3, processors=[note])) == (want + list(model.config.ends))[:3] or len(want) < 3
    words = seen[0][1]
    assert seen[0][0] == ids and seen[1][0][: len(ids)] == ids and len(seen[1][0]) == len(ids) + 1 and len(words) == 1
    drawn = [list(model.generate(ids, 12, (1.5, 0, 1.0, 0.0, 1.0, seed))) for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len({tuple(row) for row in drawn}) > 1
    done = model.complete(TEXT, 8)
    assert str(done) == str(model.complete(ids, 8)) and done.finish_reason == ("stop" if len(want) < 8 else "length")
    assert "Translator(" in repr(model) and "parameters" in model._repr_html_()


def test_gradients_are_the_caller_s_between_steps(pair):
    """The model's steps record nothing; what the caller does between two of them does."""
    _, folder = pair
    model = load(folder)
    for _ in model.generate(model.tokenizer.encode(TEXT), 2):
        assert (tensorlib.ones(1, requires_grad=True) * 2).requires_grad


def test_too_much_is_refused(pair, capsys):
    theirs, folder = pair
    model = load(folder)
    with pytest.raises(ShapeError, match="an empty text"):
        model.generate([])
    assert cli.main(["generate", "-m", folder, TEXT, "--beams", "2"]) == 2
    assert cli.main(["perplexity", "-m", folder, __file__]) == 2 and cli.main(["bench", "-m", folder]) == 2
    assert cli.main(["generate", "-m", folder, TEXT, "--ngram", "2"]) == 2
    assert cli.main(["chat", "-m", folder]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("tensorlib: error: ") == 5 and err.count("\n") - err.count("load average") == 5
    if theirs.config.model_type == "marian":
        for ids, count in (([2] * 25, 1), ([2], 25)):
            with pytest.raises(ContextError, match="at most 24 of each"):
                model.generate(ids, count)


def test_models_of_vectors_give_no_text(tmp_path, capsys):
    config = transformers.BertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(FormatError, match="a model that gives text"):
        load(str(tmp_path))
    assert cli.main(["generate", "-m", str(tmp_path), "x"]) == 2
    assert "see tensorlib embed" in capsys.readouterr().err
