"""Vocabularies of SentencePiece and RWKV: against the sentencepiece library and transformers, which learn and cut the
same texts, and against a slow search.
"""

import io
import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tensorlib.errors import FormatError
from tensorlib.io import gguf, sentencepiece
from tensorlib.io.tokenizer import Tokenizer
from tensorlib.io.vocabulary import KEY
from tests.io import build, build_pieces, vocab

library = pytest.importorskip("sentencepiece")

TEXTS = st.text(st.sampled_from("thea cat, 123Käse日本\n\t'sT.é😀\u0301\xa0\u3000ﬁ①Åﾊﾟ２\u200b"), max_size=40) | st.text(
    max_size=20
)
TRICKY = [
    "",
    " ",
    "  a  b ",
    "e\u0301 Ǻ ①\u0301",
    "ﬁ ﾊﾟ \u3000x",
    "the\x00cat",
    "日本語 unknown 漢字漢 字",
    "\U000e0001",
]
NFKC = {"normalization_rule_name": "nmt_nfkc"}
KINDS = {
    "t5": {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, **NFKC},
    "kept": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False,
             "user_defined_symbols": ["<tool>"]},
    "llama": {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity",
              "remove_extra_whitespaces": False, "vocab_size": 340},
    "pairs": {"model_type": "bpe", **NFKC},
}  # fmt: skip


def train(corpus=vocab.CORPUS, **options):
    """A model's file, learned from a few sentences."""
    out = io.BytesIO()
    options = {"vocab_size": 120, "hard_vocab_limit": False, "minloglevel": 2, **options}
    library.SentencePieceTrainer.train(sentence_iterator=iter([corpus] * 3), model_writer=out, **options)
    return out.getvalue()


def converted(path):
    """The GGUF file that llama.cpp's converter would make of a model's vocabulary."""
    values = {key.removeprefix(KEY): value for key, value in sentencepiece.read(str(path)).items()}
    kinds = {"scores": build.F32, "token_type": build.I32, "precompiled_charsmap": build.U8, "tokens": build.STRING}
    return build.file(
        [
            build.ARCH,
            *vocab.settings(values | {key: (kind, values[key]) for key, kind in kinds.items() if key in values}),
        ]
    )


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """(the library's, ours out of a folder with its file, ours out of GGUF)."""
    folder, raw = tmp_path_factory.mktemp(request.param), train(**KINDS[request.param])
    name = "tokenizer.model" if "model_type" in KINDS[request.param] else "spiece.model"
    (folder / name).write_bytes(raw)
    (folder / "v.gguf").write_bytes(converted(folder / name))
    theirs = library.SentencePieceProcessor(model_proto=raw)
    return theirs, Tokenizer.from_folder(folder), Tokenizer.from_gguf(gguf.open(folder / "v.gguf"))


@given(text=TEXTS)
def test_ids_and_texts(pair, text):
    theirs, *ours = pair
    for tokenizer in ours:
        ids = tokenizer.encode(text, add_special=False, parse_special=False)
        assert ids == theirs.encode(text)
        unknown = tokenizer.unk_id in ids
        assert unknown or tokenizer.decode(ids) == theirs.decode(ids)
        stream = tokenizer.stream()
        said = "".join(map(stream.push, ids)) + stream.flush()
        assert (said.removeprefix(" ") if tokenizer._codec.space_prefix else said) == tokenizer.decode(ids)


@pytest.mark.parametrize("text", TRICKY)
def test_tricky_texts(pair, text):
    theirs, *ours = pair
    for tokenizer in ours:
        assert tokenizer.encode(text, add_special=False, parse_special=False) == theirs.encode(text)


# ---- Marian ----------------------------------------------------------------------------------------------------------

GERMAN = "die Katze saß auf der Matte, dann aß die Ratte das. Das Ende der Geschichte! 日本 12"


def marian(folder, apart=False):
    """A folder as opus-mt's: two models and the ids of all their pieces, for both languages or for each. Gives how many
    ids each language has.
    """
    models = [train(corpus, **NFKC) for corpus in (vocab.CORPUS, GERMAN)]
    words = []
    for name, raw in zip(("source.spm", "target.spm"), models):
        (folder / name).write_bytes(raw)
        pieces = library.SentencePieceProcessor(model_proto=raw)
        words.append([pieces.id_to_piece(i) for i in range(pieces.vocab_size())])
    words, counts = words if apart else [[*words[1], *words[0]]], []
    for name, found in zip(("vocab.json", "target_vocab.json"), words):
        found = dict.fromkeys(["</s>", "<unk>", ">>deu<<", ">>fra<<", *reversed(found), "<pad>"])
        counts.append(len(found))
        (folder / name).write_text(json.dumps({word: i for i, word in enumerate(found)}))
    config = {"tokenizer_class": "MarianTokenizer", "model_max_length": 512, "separate_vocabs": apart}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return counts[0], counts[-1]


@pytest.fixture(scope="module", params=[False, True], ids=["together", "apart"])
def translators(request, tmp_path_factory):
    """(transformers' tokenizer, ours of the source, ours of the target)."""
    folder = tmp_path_factory.mktemp("marian")
    marian(folder, request.param)
    transformers = pytest.importorskip("transformers")
    with pytest.warns(UserWarning, match="sacremoses"):
        theirs = transformers.MarianTokenizer.from_pretrained(folder)
    return theirs, Tokenizer.from_folder(folder), Tokenizer.from_folder(folder, target=True)


@given(text=TEXTS)
@example(text=">>fra<< the cat >>deu<<")
@example(text=">>nowhere<<the >>")
@example(text=">>the<cat")
@example(text="auf der Matte, ß 日")
@example(text="the</s>cat <unk><pad>")
def test_marian(translators, text):
    theirs, source, target = translators
    ids = source.encode(text)
    assert ids == theirs(text).input_ids
    if "<pad>" not in text:  # whose id in the other list transformers does not know
        assert target.encode(text) == theirs(text_target=text).input_ids
    unknown = target.unk_id in ids
    answer = target.encode(text)
    assert unknown or source.decode(answer) == theirs.decode(answer, skip_special_tokens=True)


def test_what_marian_says_of_itself(translators):
    theirs, source, target = translators
    assert (source.eos_id, source.unk_id, source.bos_id) == (theirs.eos_token_id, theirs.unk_token_id, None)
    assert source.eos_ids == {source.eos_id} and source.encode("", add_special=False) == []
    ids = target.encode("die <unk> Katze", add_special=False)
    assert source.decode([*ids, source.eos_id]) == source.decode(ids)
    stream = source.stream()
    assert "".join(map(stream.push, ids)).strip() == source.decode(ids)


# ---- folders, damage -------------------------------------------------------------------------------------------------


def test_a_folder_with_added_tokens(tmp_path):
    """Llama's kind: what stands beside the model is added to it, and has the last word."""
    (tmp_path / "tokenizer.model").write_bytes(build_pieces.byte_pairs())
    plain = Tokenizer.from_folder(tmp_path)
    assert plain.add_bos and not plain.add_eos and (plain.bos_id, plain.eos_id, plain.unk_id) == (1, 2, 0)
    count = plain.n_vocab
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<mark>": count + 1}))
    rows = {"1": {"content": "<s>", "special": True}, str(count): {"content": "<|end|>", "special": True}}
    config = {"added_tokens_decoder": rows, "eos_token": {"content": "<|end|>"}, "add_eos_token": True}
    config |= {"add_bos_token": False, "chat_template": "{{ eos_token }}x"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, count + 1]}))
    ours = Tokenizer.from_folder(tmp_path)
    a = plain.encode("a", add_special=False)
    assert ours.encode("a<|end|>a<mark>") == [*a, count, *a, count + 1, count] and ours.n_vocab == count + 2
    assert ours.eos_ids == {2, count, count + 1} and ours.apply_chat_template([]) == "<|end|>x"
    assert ours.decode([*a, count, count + 1]) == "a<mark>"


def deberta(folder):
    """A folder as DeBERTa's: how many pieces it has."""
    pieces = [(p, 0.0, 3) for p in ("[PAD]", "[CLS]", "[SEP]")] + [("[UNK]", 0.0, 2), *build_pieces.PIECES[3:]]
    ids = ((40, 3), (41, 1), (42, 2), (43, 0))
    (folder / "spm.model").write_bytes(build_pieces.model(pieces, trainer=ids))
    return len(pieces)


def test_deberta(tmp_path):
    count = deberta(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[MASK]": count}))
    tokenizer = Tokenizer.from_folder(tmp_path)
    the = tokenizer.encode("the", add_special=False)
    assert tokenizer.encode("the [MASK]") == [1, *the, count, 2] and tokenizer.unk_id == 3


def test_a_mask_that_no_file_names(tmp_path):
    """transformers' DebertaV2Tokenizer adds it behind the pieces; what else it can do is told."""
    count = deberta(tmp_path)
    ours = Tokenizer.from_folder(tmp_path)
    assert ours.encode("the[MASK]", add_special=False)[-1] == count == ours.n_vocab - 1
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    with pytest.raises(FormatError, match="do_lower_case: got true"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("config", [{}, {"extra_ids": 3}, {"extra_ids": 0}, {"extra_ids": -1}], ids=str)
def test_marks_of_gaps(config, tmp_path):
    """transformers' T5Tokenizer puts them behind the pieces, the first one last; mT5's configs say that it has none."""
    (tmp_path / "spiece.model").write_bytes(build_pieces.model())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", **config}))
    ours, pieces, count = (
        Tokenizer.from_folder(tmp_path),
        len(build_pieces.PIECES),
        max(0, config.get("extra_ids", 100)),
    )
    assert ours.n_vocab == pieces + count
    ids = ours.encode("the<extra_id_2>", add_special=False)
    assert ids[-1] == pieces + count - 3 if count else ours.unk_id in ids
    (tmp_path / "tokenizer_config.json").unlink()
    assert Tokenizer.from_folder(tmp_path).n_vocab == pieces


def test_t5_out_of_gguf(tmp_path):
    """Texts end where they should, and begin as the file says: T5's, XLM-RoBERTa's."""

    def made(**changed):
        (tmp_path / "v.gguf").write_bytes(vocab.unigram(**changed))
        return Tokenizer.from_gguf(gguf.open(tmp_path / "v.gguf"))

    t5 = made()
    the = t5.encode("the", add_special=False)
    assert t5.encode("the") == [*the, 1] and (t5.bos_id, t5.eos_id, t5.unk_id) == (None, 1, 2)
    assert t5.encode("A") == t5.encode("a") != t5.encode("B") and t5.encode("xyz", add_special=False)[-1] == 2
    assert t5.encode("the<tool></s>", add_special=False) == [*the, t5.n_vocab - 1, 1]
    assert made(add_eos_token=False).encode("the") == the
    roberta = made(bos_token_id=0, add_bos_token=True, add_eos_token=True)
    assert roberta.encode("the") == [0, *the, 1]
    bare = made(add_space_prefix=False, remove_extra_whitespaces=False)
    assert bare.decode(bare.encode(" the  cat", add_special=False)) == " the  cat"


BROKEN = {
    "a map that is cut": {"precompiled_charsmap": (build.U8, list(build_pieces.MAP[:9]))},
    "a map of texts": {"precompiled_charsmap": (build.STRING, ["a"])},
    "a map that is no array": {"precompiled_charsmap": 3},
    "a map that leads outside": {"precompiled_charsmap": (build.U8, [*build_pieces.MAP[:4], *[255] * 1024, 97, 0])},
    "no scores": {"scores": None},
    "no such end": {"eos_token_id": 99},
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_gguf(name, tmp_path):
    (tmp_path / "v.gguf").write_bytes(vocab.unigram(**BROKEN[name]))
    with pytest.raises(FormatError, match=r"tokenizer\.ggml"):
        Tokenizer.from_gguf(gguf.open(tmp_path / "v.gguf")).encode("the\xff")


FOLDERS = {
    "nothing": ({}, "no such file; expected one of tokenizer.json, source.spm"),
    "no SentencePiece": ({"tokenizer.model": b"YQ== 1\nYg== 2\n"}, "tokenizer.model"),
    "no pieces": ({"spiece.model": b""}, "model_type"),
    "letters": ({"spiece.model": build_pieces.model(kind=4)}, "kind 4; expected pieces of Unigram"),
    "spaces behind": ({"spiece.model": build_pieces.model(trainer=((24, 1),))}, "spaces behind words"),
    "no words": ({"source.spm": build_pieces.model()}, "vocab.json"),
    "words without an end": ({"source.spm": build_pieces.model(), "vocab.json": b'{"<unk>": 1}'}, "vocab.json"),
    "a large id": (
        {"source.spm": build_pieces.model(), "vocab.json": b'{"<unk>": 1, "</s>": 99999999999}'},
        "vocab.json",
    ),
    "pairs": (
        {"source.spm": build_pieces.byte_pairs(), "vocab.json": build_pieces.WORDS},
        "byte pairs; expected Unigram",
    ),
    "added far": ({"spiece.model": build_pieces.model(), "added_tokens.json": b'{"x": 99999999}'}, "added tokens"),
    "lines": ({"rwkv_vocab_v20230424.txt": b"1 'a' 1\n3 'b' 1\n"}, "line 2: got ValueError: the id 3"),
    "few bytes": ({"rwkv_vocab_v20230424.txt": b"1 'a' 1\n"}, "no token for byte 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_broken_folders(name, tmp_path):
    files, message = FOLDERS[name]
    for file, raw in files.items():
        (tmp_path / file).write_bytes(raw)
    with pytest.raises(FormatError, match=re.escape(message)):
        Tokenizer.from_folder(tmp_path)


# ---- RWKV ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """(tokens as bytes by id, ours out of a list of words), (the same out of GGUF)."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "rwkv_vocab_v20230424.txt").write_bytes(build_pieces.world())
    (folder / "v.gguf").write_bytes(vocab.world())
    bytes_ = [bytes([i]) for i in range(256)]
    listed = [*bytes_, b"the", b" cat", build_pieces.HALF, b"\n\n", b"it's", b'""', b"\\x", "日本".encode()]
    return (
        (listed, Tokenizer.from_folder(folder)),
        (
            [*bytes_, b"the", b" cat", b"\n\n", "日".encode()[:2], b"it's"],
            Tokenizer.from_gguf(gguf.open(folder / "v.gguf")),
        ),
    )


@given(text=TEXTS | st.text(st.sampled_from("the cat\n's日本é\"\\x[]PAD<s>")))
def test_the_longest_token_again_and_again(worlds, text):
    for tokens, ours in worlds:
        raw, want = text.encode(), []
        while raw:
            best = max((token for token in tokens if raw.startswith(token)), key=len)
            want.append(1 + tokens.index(best))
            raw = raw[len(best) :]
        assert ours.encode(text, parse_special=False) == want and ours.decode(want) == text
        stream = ours.stream()
        assert "".join(map(stream.push, want)) + stream.flush() == text
    assert ours.encode("<s>the") == [0, 257] and ours.eos_ids == {0} and not ours.add_bos


# ---- XLM-RoBERTa -----------------------------------------------------------------------------------------------------


@given(text=TEXTS)
@example(text="the<mask>cat</s>")
def test_xlm_roberta(text, tmp_path_factory):
    """Its ids are the pieces' one further on, behind four of its own."""
    folder = tmp_path_factory.getbasetemp() / "xlmr"
    folder.mkdir(exist_ok=True)
    if not (folder / "sentencepiece.bpe.model").exists():
        (folder / "sentencepiece.bpe.model").write_bytes(train(**NFKC))
    theirs = library.SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
    ours, mask = Tokenizer.from_folder(folder), theirs.vocab_size() + 1
    if "<mask>" in text:
        cut = [ours.encode(part, add_special=False) for part in ("the", "cat")]
        assert ours.encode(text) == [0, *cut[0], mask, *cut[1], 2, 2]
    else:
        want = [3 if id == 0 else id + 1 for id in theirs.encode(text)]
        assert ours.encode(text, parse_special=False) == [0, *want, 2]


def test_another_fairseq(tmp_path):
    (tmp_path / "sentencepiece.bpe.model").write_bytes(build_pieces.model())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "camembert"}))
    with pytest.raises(FormatError, match="'camembert'; expected xlm-roberta"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "sentencepiece.bpe.model").rename(tmp_path / "vocab.txt")
    with pytest.raises(FormatError, match=r"vocab\.txt"):
        Tokenizer.from_folder(tmp_path)
