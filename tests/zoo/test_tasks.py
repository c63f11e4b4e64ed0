"""Rerankers, labels, names and masks against transformers' own pipelines, on tiny models."""

import io
import json

import numpy as np
import pytest

from tensorlib.errors import FormatError, ShapeError
from zoo import cli, tasks

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
tokenizers = pytest.importorskip("tokenizers")

SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
SPECIAL["mask_token"] = "[MASK]"
WORDS = [*SPECIAL.values(), *"the cat sat on a mat and dog ran far away anna bert ##s".split()]
SIZES = {"vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "max_position_embeddings": 24, "type_vocab_size": 2}
TEXTS = [
    "the cat sat",
    "a dog",
    "the dog ran far away and the cat sat on a mat with anna and berts dog and a cat",
    "cats",
]
LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "PLACE"}


@pytest.fixture(scope="module")
def tokenizer():
    library = tokenizers.Tokenizer(tokenizers.models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    library.add_special_tokens(list(SPECIAL.values()))
    library.normalizer = tokenizers.normalizers.BertNormalizer()
    library.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    library.decoder = tokenizers.decoders.WordPiece()
    library.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=library, model_max_length=24, model_input_names=names, **SPECIAL
    )


def made(folder, cls, tokenizer, said=None, **more):
    """(transformers' model, a Reader of its folder)."""
    torch.manual_seed(0)
    theirs = getattr(transformers, cls)(transformers.BertConfig(**SIZES, **more)).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight += torch.randn_like(weight) / (4 if weight.ndim == 1 else weight.shape[-1] ** 0.5)
    theirs.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    fields = json.loads((folder / "config.json").read_text()) | (said or {})
    (folder / "config.json").write_text(json.dumps(fields))
    return theirs, tasks.load(folder)


IDENTITY = "torch.nn.modules.linear.Identity"
SAID = ({}, {"sentence_transformers": {"activation_fn": IDENTITY}}, {"sbert_ce_default_activation_function": IDENTITY})


@pytest.mark.parametrize("said", SAID, ids=("sigmoid", "as they are", "old"))
def test_rank(said, tokenizer, tmp_path):
    """Pairs with which of the two a token is of, cut to the model's length; as sentence-transformers scores them."""
    theirs, ours = made(tmp_path, "BertForSequenceClassification", tokenizer, said, num_labels=1)
    given = tokenizer([TEXTS[0]] * 4, TEXTS, padding=True, truncation=True, return_tensors="pt")
    assert given["input_ids"].shape[1] == 24 and given["token_type_ids"].max() == 1
    with torch.no_grad():
        want = theirs(**given).logits[:, 0]
    want = (want if said else want.sigmoid()).numpy()
    found = ours.rank(TEXTS[0], TEXTS)
    assert [one.index for one in found] == np.argsort(-want).tolist()
    np.testing.assert_allclose([one.score for one in found], np.sort(want)[::-1], rtol=1e-4, atol=1e-6)
    many = ours.rank(TEXTS[0], TEXTS * 70)  # more than one batch
    assert len({one.index for one in many}) == 280
    np.testing.assert_allclose([one.score for one in many], np.repeat(np.sort(want)[::-1], 70), rtol=1e-4, atol=1e-6)
    assert ours.rank(TEXTS[0], []) == []


def test_rank_with_a_list_of_words_alone(tokenizer, tmp_path):
    """A folder as of old, without a tokenizer.json."""
    _, ours = made(tmp_path, "BertForSequenceClassification", tokenizer, num_labels=1)
    want = ours.rank(TEXTS[0], TEXTS)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FormatError, match="no such file"):
        tasks.load(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    assert tasks.load(tmp_path).rank(TEXTS[0], TEXTS) == want


def test_rerank_command(tokenizer, tmp_path, capsys, monkeypatch):
    _, ours = made(tmp_path, "BertForSequenceClassification", tokenizer, num_labels=1)
    want = ours.rank(TEXTS[0], TEXTS)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(TEXTS).encode())))
    for texts in (TEXTS, ["-"]):
        assert cli.main(["rerank", "-m", str(tmp_path), TEXTS[0], *texts]) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [(row["index"], row["text"]) for row in found] == [(one.index, TEXTS[one.index]) for one in want]
        np.testing.assert_allclose([row["score"] for row in found], [one.score for one in want], rtol=1e-5)


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification"])
def test_classify(kind, tokenizer, tmp_path):
    options = {"id2label": {0: "no", 1: "maybe", 2: "yes"}, "problem_type": kind}
    theirs, ours = made(tmp_path, "BertForSequenceClassification", tokenizer, **options)
    pipe = transformers.pipeline("text-classification", model=theirs, tokenizer=tokenizer, top_k=None)
    for text in TEXTS[:2]:
        found, want = ours.classify(text), {one["label"]: one["score"] for one in pipe([text])[0]}
        assert list(found) == list(want)
        np.testing.assert_allclose(list(found.values()), list(want.values()), rtol=1e-4)
    want = pipe({"text": TEXTS[0], "text_pair": TEXTS[1]})
    assert list(ours.classify(TEXTS[0], TEXTS[1])) == [one["label"] for one in want]


def test_entities(tokenizer, tmp_path):
    theirs, ours = made(tmp_path, "BertForTokenClassification", tokenizer, id2label=LABELS)
    pipe = transformers.pipeline("ner", model=theirs, tokenizer=tokenizer, aggregation_strategy="simple")
    seen = set()
    for text in (*TEXTS[:2], "Anna and  Berts dog sat", "the mat, far away; anna and a cat", "berts bert anna anna"):
        found, want = ours.entities(text), pipe(text)
        assert [(e.label, e.start, e.end) for e in found] == [(w["entity_group"], w["start"], w["end"]) for w in want]
        assert [e.text for e in found] == [text[w["start"] : w["end"]] for w in want]
        np.testing.assert_allclose([e.score for e in found], [w["score"] for w in want], rtol=1e-4)
        seen |= {(e.label, len(e.text.split())) for e in found}
    assert len(seen) > 2, "one word and several, of several labels"


def test_fill(tokenizer, tmp_path):
    theirs, ours = made(tmp_path, "BertForMaskedLM", tokenizer)
    pipe = transformers.pipeline("fill-mask", model=theirs, tokenizer=tokenizer, top_k=3)
    (found,) = ours.fill("the [MASK] sat", 3)
    want = pipe("the [MASK] sat")
    assert [one.text for one in found] == [one["token_str"] for one in want]
    np.testing.assert_allclose([one.score for one in found], [one["score"] for one in want], rtol=1e-4)
    assert [len(row) for row in ours.fill("[MASK] cat [MASK]")] == [5, 5]


def test_what_a_model_is_not_for(tokenizer, tmp_path):
    _, ours = made(tmp_path, "BertForMaskedLM", tokenizer)
    for call in (lambda: ours.rank("a", ["b"]), lambda: ours.classify("a"), lambda: ours.entities("a")):
        with pytest.raises(ShapeError, match="a model ForMaskedLM of 2 labels"):
            call()
    with pytest.raises(ShapeError, match="without a mask"):
        ours.fill("the cat")
    _, ours = made(tmp_path, "BertForSequenceClassification", tokenizer)
    with pytest.raises(ShapeError, match="one label, as rerankers have"):
        ours.rank("a", ["b"])
    with pytest.raises(FormatError, match="BertModel"):
        made(tmp_path, "BertModel", tokenizer)
