"""Folders without a `tokenizer.json` against transformers' own classes: the same ids, texts and pairs of texts."""

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tensorlib.errors import FormatError
from tensorlib.io.tokenizer import Tokenizer
from tests.io import vocab

transformers = pytest.importorskip("transformers")

LETTERS = "thea cat, 123Käse日本\n\t'sT.é😀\u0301\xa0\u3000ﬁ①Åﾊﾟ２\u200bΣİß\x00\ufffd"
MARKED = st.sampled_from(
    ["<|endoftext|>", "<s>", "</s>", "<mask>", " <mask> ", "<tool>", "<Tool>", "[MASK]", "[SEP]", "##s"]
)
TEXTS = st.text(st.sampled_from(LETTERS), max_size=40) | st.text(max_size=20)
TEXTS |= st.lists(MARKED | st.text(st.sampled_from(LETTERS), max_size=6), max_size=6).map("".join)

PLAIN = [*vocab.LETTER_OF_BYTE, *("".join(pair) for pair in vocab.MERGES)]
END, MASK = "<|endoftext|>", {"content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False}
ADDED = {"__type": "AddedToken", "content": END, "lstrip": False, "normalized": True, "rstrip": False}
FAIRSEQ = ["<s>", "<pad>", "</s>", "<unk>", *PLAIN, "<mask>"]
COUNT = len(PLAIN) + 1
DECODER = {
    str(COUNT - 1): {"content": END, "special": True},
    str(COUNT): {"content": "<tool>", "special": False, "normalized": True, "rstrip": True},
    str(COUNT + 1): {"content": "the end", "special": False, "single_word": True},
}
# class, tokens, tokenizer_config.json, its neighbours
PAIRS = {
    "gpt2": ("GPT2Tokenizer", [*PLAIN, END], {"model_max_length": 1024}, {}),
    "gpt2 as of old": ("GPT2Tokenizer", [*PLAIN, END], {"bos_token": ADDED, "unk_token": None, "add_bos_token": True}, {
        "special_tokens_map.json": {"bos_token": END, "eos_token": END, "pad_token": "<pad>"},
        "added_tokens.json": {"<tool>": COUNT, "<pad>": COUNT + 1}}),
    "spaces": ("GPT2Tokenizer", [*PLAIN, END], {"add_prefix_space": True, "add_eos_token": True}, {}),
    "starcoder": ("GPT2Tokenizer", [END, "<fim_prefix>", *PLAIN], {}, {
        "special_tokens_map.json": {"additional_special_tokens": [END, "<fim_prefix>", "<tool>"]}}),
    "phi": ("CodeGenTokenizer", PLAIN, {"added_tokens_decoder": DECODER, "image_token": "<image>"}, {}),
    "neox": ("GPTNeoXTokenizer", [*PLAIN, END], {}, {}),
    "qwen2": ("Qwen2Tokenizer", PLAIN, {"added_tokens_decoder": DECODER, "bos_token": None,
                                        "extra_special_tokens": ["<|im_end|>"]}, {}),
    "roberta": ("RobertaTokenizer", FAIRSEQ, {"model_max_length": 512}, {}),
    "roberta's mask": ("RobertaTokenizer", FAIRSEQ, {"add_prefix_space": True, "trim_offsets": False},
                       {"special_tokens_map.json": {"mask_token": MASK, "cls_token": "<s>"}}),
}  # fmt: skip


def written(folder, name, tokens, config, beside):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: id for id, token in enumerate(tokens)}))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in vocab.MERGES)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    told = {**config, "tokenizer_class": name}
    for file, values in {"tokenizer_config.json": told, **beside}.items():
        (folder / file).write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module", params=PAIRS)
def pairs(request, tmp_path_factory):
    """(transformers' tokenizer of a folder, ours)."""
    name, *rest = PAIRS[request.param]
    folder = written(tmp_path_factory.mktemp("pairs") / "m", name, *rest)
    return getattr(transformers, name).from_pretrained(folder), Tokenizer.from_folder(folder)


def same(theirs, ours, text):
    """Ids with and without what goes around texts, and the text that they say."""
    ids = ours.encode(text)
    assert ids == theirs(text).input_ids
    assert ours.encode(text, add_special=False) == theirs(text, add_special_tokens=False).input_ids
    for skip in (True, False):
        assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
    stream = ours.stream()
    assert "".join(map(stream.push, ids)) + stream.flush() == ours.decode(ids)


@given(text=TEXTS)
@example(text="")
@example(text=" the end of the  cat's 12345 tale\r\n\r\n <mask>s<mask> <tool> x<|endoftext|>")
def test_byte_pairs(pairs, text):
    same(*pairs, text)


@pytest.mark.parametrize("name", ["roberta", "roberta's mask", "gpt2", "gpt2 as of old"])
def test_two_texts(name, tmp_path):
    cls, *rest = PAIRS[name]
    theirs, ours = (
        getattr(transformers, cls).from_pretrained(written(tmp_path, cls, *rest)),
        Tokenizer.from_folder(tmp_path),
    )
    want = theirs("the cat's <mask>", " sat 12", return_token_type_ids=True, return_offsets_mapping=True,
                  return_special_tokens_mask=True)  # fmt: skip
    found = ours.encoding("the cat's <mask>", " sat 12")
    assert (found.ids, found.types) == (want.input_ids, want.token_type_ids)
    assert found.spans == want.offset_mapping and list(map(int, found.special)) == want.special_tokens_mask
    ours.limit(7)
    assert (
        ours.encode("the cat sat on the mat")
        == theirs("the cat sat on the mat", truncation=True, max_length=7).input_ids
    )


WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] the cat sat on a mat ##s ##ing , . é e 日 本 Käse kase ##e ' ##t i ß ss σ".split()
)
LISTS = {
    "uncased": ("BertTokenizer", WORDS, {"do_lower_case": True, "model_max_length": 512}, {}),
    "cased": ("BertTokenizer", WORDS, {"do_lower_case": False, "tokenize_chinese_chars": False}, {}),
    "accents stay": ("DistilBertTokenizer", WORDS, {"strip_accents": False}, {}),
    "accents go": ("BertTokenizer", WORDS, {"do_lower_case": False, "strip_accents": True,
                                     "additional_special_tokens": ["[Q]"]}, {
        "special_tokens_map.json": {"unk_token": "[UNK]"},
        "added_tokens.json": {"[Q]": len(WORDS), "the Mat": len(WORDS) + 1}}),
    "other marks": ("BertTokenizer", ["<s>", "</s>", "<unk>", "<pad>", *WORDS[5:]],
                    {f"{name}_token": spelt for name, spelt in
                     (("cls", "<s>"), ("sep", "</s>"), ("unk", "<unk>"), ("pad", "<pad>"), ("mask", None))}, {}),
}  # fmt: skip


@pytest.fixture(scope="module", params=LISTS)
def lists(request, tmp_path_factory):
    """(transformers' tokenizer of a folder with a list of words, ours)."""
    name, words, config, beside = LISTS[request.param]
    folder = tmp_path_factory.mktemp("lists")
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    for file, values in {"tokenizer_config.json": {**config, "tokenizer_class": f"{name}Fast"}, **beside}.items():
        (folder / file).write_text(json.dumps(values))
    return getattr(transformers, name).from_pretrained(folder), Tokenizer.from_folder(folder)


@given(text=TEXTS)
@example(text="the cats [MASK] sat, Käse 日本 on A MAT[SEP] the Mat [Q]the ÉE\u0301. " + "a" * 120)
@example(text="the" + "s" * 97 + " it's")  # as long as a word may be
@example(text="the" + "s" * 98)
def test_word_pieces(lists, text):
    same(*lists, text)


def test_word_pieces_of_two_texts(lists):
    theirs, ours = lists
    want = theirs("the cats", "sat on", return_token_type_ids=True)
    found = ours.encoding("the cats", "sat on")
    assert (found.ids, found.types) == (want.input_ids, want.token_type_ids)


VOCAB = json.dumps({token: id for id, token in enumerate(PLAIN)})
MERGES = "#version: 0.2\n" + " ".join(vocab.MERGES[0])
BROKEN = {
    "no class": ({"vocab.json": VOCAB, "merges.txt": MERGES}, "None, of a model None; expected one of GPT2Tokenizer"),
    "another class": ({"vocab.json": VOCAB, "merges.txt": MERGES, "tokenizer_config.json":
                       '{"tokenizer_class": "CLIPTokenizer"}'}, "'CLIPTokenizer', of a model None; expected one of"),
    "another model": ({"vocab.txt": "[UNK]\n", "config.json": '{"model_type": "mpnet"}'},
                      "of a model 'mpnet'; expected one of BertTokenizer, DistilBertTokenizer"),
    "a class of lists": ({"vocab.json": VOCAB, "merges.txt": MERGES, "tokenizer_config.json":
                          '{"tokenizer_class": "BertTokenizer"}'}, "'BertTokenizer'"),
    "merges of strangers": ({"vocab.json": VOCAB, "merges.txt": "qz q\n", "config.json": '{"model_type": "gpt2"}'},
                            "vocab.json and merges.txt that fit"),
    "a merge of three": ({"vocab.json": VOCAB, "merges.txt": "t h e\n", "config.json": '{"model_type": "gpt2"}'},
                         "vocab.json and merges.txt that fit"),
    "no object": ({"vocab.json": "[]", "merges.txt": MERGES, "config.json": '{"model_type": "gpt2"}'}, "vocab.json"),
    "no beginning": ({"vocab.json": VOCAB, "merges.txt": MERGES, "config.json": '{"model_type": "roberta"}'},
                     "no <s>, </s>, <unk> among its tokens"),
    "no words": ({"vocab.txt": "[UNK]\n[CLS]\n"}, "no [SEP] among its tokens"),
    "no text": ({"vocab.txt": b"\xff\xfe"}, "vocab.txt"),
    "a gap": ({"vocab.json": VOCAB, "merges.txt": MERGES, "config.json": '{"model_type": "gpt2"}',
               "added_tokens.json": '{"x y": 999}'}, f"'x y' is said to be 999, but is the token {len(PLAIN)}"),
    "a token of nothing": ({"vocab.json": VOCAB, "merges.txt": MERGES, "config.json": '{"model_type": "gpt2"}',
                            "tokenizer_config.json": '{"added_tokens_decoder": {"x": []}}'}, "vocab.json"),
    "accents of a text": ({"vocab.txt": "[UNK]\n[CLS]\n[SEP]", "tokenizer_config.json": '{"strip_accents": "no"}'},
                          "vocab.txt"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_folders(name, tmp_path):
    files, message = BROKEN[name]
    for file, raw in files.items():
        (tmp_path / file).write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    with pytest.raises(FormatError, match=re.escape(message)):
        Tokenizer.from_folder(tmp_path)


def test_what_a_config_says_of_the_kind(tmp_path):
    """Published folders name no class in tokenizer_config.json: the type of the model does."""
    written(tmp_path, "RobertaTokenizer", FAIRSEQ, {}, {"config.json": {"model_type": "roberta"}})
    want = Tokenizer.from_folder(tmp_path).encode("the cat")
    (tmp_path / "tokenizer_config.json").unlink()
    assert Tokenizer.from_folder(tmp_path).encode("the cat") == want and want[0] == 0 and want[-1] == 2
