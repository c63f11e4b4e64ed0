"""Encoding, decoding and streaming: against slow encoders, and against llama.cpp's ids for real vocabularies."""

import functools
import json
import pathlib
import re
import struct
import time

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tensorlib.errors import FormatError, ShapeError
from tensorlib.io import gguf, hub, pretokenize, vocabulary
from tensorlib.io.tokenizer import Tokenizer
from tests.io import build, targets, vocab

GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden_tokens.json").read_text(encoding="utf-8"))
TEXTS = st.text(st.sampled_from("thea cat, 123Käse日本語\n\t'sT.é😀\u0301\x00"), max_size=40) | st.text(max_size=20)


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Function: a Tokenizer from the bytes of a GGUF file."""

    def make(data):
        path = tmp_path_factory.mktemp("vocabulary") / "vocab.gguf"  # mapped as long as the tokenizer lives
        path.write_bytes(data)
        return Tokenizer.from_gguf(gguf.open(path))

    return make


@pytest.fixture(scope="module")
def bpe(make):
    return make(vocab.byte_pairs())


@pytest.fixture(scope="module")
def spm(make):
    return make(vocab.sentence_pieces())


def words(text):
    """GPT-2's words with the standard library's re, where they agree: no digits or letters outside ASCII."""
    return re.findall(r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", text)


@given(text=st.text(st.sampled_from("the catson. !,'sd 123\n"), max_size=60))
def test_byte_pairs_like_the_slow_encoder(bpe, text):
    assert bpe.encode(text) == vocab.slow_byte_pairs(words(text))


@given(text=st.text(st.sampled_from("the catson. ä日本語é!,'sd 123\n"), min_size=1, max_size=60))
def test_pieces_like_the_slow_encoder(spm, text):
    assert spm.encode(text, add_special=False) == vocab.slow_pieces(text)


@given(text=TEXTS)
@example(text="<|im_start|><tool>s<tool><|im_")
@example(text=" leading and trailing ")
def test_round_trip_and_stream(bpe, spm, text):
    # SentencePiece puts a space after a special token, and does not take it back.
    for tokenizer in (bpe,) if "<tool>" in text else (bpe, spm):
        ids = tokenizer.encode(text, add_special=False)
        assert tokenizer.decode(ids, skip_special=False) == text
        assert tokenizer.decode(tokenizer.encode(text, parse_special=False)) == text
        stream = tokenizer.stream(skip_special=False)
        pieces = [stream.push(id) for id in ids]
        assert "".join(pieces) + stream.flush() == (" " + text if tokenizer is spm and text else text)
        assert "�" in text or not any("�" in piece for piece in pieces)


@given(ids=st.lists(st.integers(0, len(vocab.BYTE_TOKENS) - 1), max_size=30))
def test_stream_says_what_decode_says(bpe, ids):
    stream = bpe.stream()
    assert "".join(map(stream.push, ids)) + stream.flush() == bpe.decode(ids)


def test_no_half_characters(bpe):
    stream, ids = bpe.stream(), bpe.encode("é😀", parse_special=False)
    assert len(ids) == 6
    assert [stream.push(id) for id in ids] == ["", "é", "", "", "", "😀"]
    assert [stream.push(id) for id in ids[2:5]] == ["", "", ""] and stream.flush() == "�"


def test_special_tokens(bpe, spm):
    assert bpe.encode("<|im_start|>the<tool>s") == [1, *bpe.encode("the"), 4]
    plain = bpe.encode("<|im_start|><tool>", parse_special=False)
    assert 1 not in plain and plain[-1] == 3  # what the user defined is always taken as it is
    assert bpe.decode([1, *bpe.encode("the"), 2]) == "the" and bpe.piece(1) == b"<|im_start|>"
    assert bpe.eos_ids == {0, 2} and spm.eos_ids == {2} and bpe.bos_id == 1 and spm.unk_id == 0
    assert spm.encode("the</s>") == [1, *vocab.slow_pieces("the"), 2] and spm.add_bos and not bpe.add_bos
    assert spm.encode("a<tool>b")[1:] == [
        *vocab.slow_pieces("a"),
        vocab.PIECES.index("<tool>"),
        *vocab.slow_pieces("b"),
    ]


def test_flags(make):
    both = make(vocab.byte_pairs(add_bos_token=True, add_eos_token=True))
    assert both.encode("") == [1, 2] and both.encode("", add_special=False) == []
    assert make(vocab.byte_pairs(pre="llama-bpe")).add_bos  # where the file says nothing
    assert not make(vocab.sentence_pieces(add_bos_token=False)).add_bos
    bare = make(vocab.sentence_pieces(add_space_prefix=False))
    assert bare.decode(bare.encode(" x")) == " x" and bare.encode("the", add_special=False) != vocab.slow_pieces("the")
    assert make(vocab.byte_pairs(eot_token_id=9, eos_token_id=10**6)).eos_ids == {0, 2, 9}


def test_undecodable_input(bpe, spm):
    for tokenizer in (bpe, spm):
        assert tokenizer.decode(tokenizer.encode("a\udc80b")) == "a�b"
        for id in (-1, tokenizer.n_vocab):
            with pytest.raises(ShapeError, match="token id"):
                tokenizer.decode([id])


TOKENS = vocab.BYTE_TOKENS
BROKEN = {
    "no model": vocab.byte_pairs(model=None),
    "model of tomorrow": vocab.byte_pairs(model="of-tomorrow"),
    "model is a number": vocab.byte_pairs(model=3),
    "unknown pre-tokenizer": vocab.byte_pairs(pre="of-tomorrow"),
    "no tokens": vocab.byte_pairs(tokens=None),
    "empty vocabulary": vocab.byte_pairs(tokens=(build.STRING, []), merges=(build.STRING, [])),
    "tokens are numbers": vocab.byte_pairs(tokens=(build.I32, [1, 2])),
    "token twice": vocab.byte_pairs(tokens=(build.STRING, [*TOKENS[:-1], TOKENS[10]])),
    "token no UTF-8": vocab.byte_pairs(tokens=(build.STRING, [*TOKENS[:-1], b"\xff"])),
    "no merges": vocab.byte_pairs(merges=None),
    "merge of one": vocab.byte_pairs(merges=(build.STRING, ["ab"])),
    "merge of three": vocab.byte_pairs(merges=(build.STRING, ["a b c"])),
    "merge no UTF-8": vocab.byte_pairs(merges=(build.STRING, [b"a \xff"])),
    "merges are numbers": vocab.byte_pairs(merges=(build.U8, [1])),
    "too few types": vocab.byte_pairs(token_type=(build.I32, [1])),
    "types are texts": vocab.byte_pairs(token_type=(build.STRING, ["x"] * len(TOKENS))),
    "bos missing": vocab.byte_pairs(add_bos_token=True, bos_token_id=None),
    "bos past the end": vocab.byte_pairs(add_bos_token=True, bos_token_id=10**6),
    "add_bos is a number": vocab.byte_pairs(add_bos_token=1),
    "no scores": vocab.sentence_pieces(scores=None),
    "too few scores": vocab.sentence_pieces(scores=(build.F32, [0.0])),
    "byte token misspelt": vocab.sentence_pieces(tokens=(build.STRING, ["<0x-1>" if t == "<0x07>" else t for t in
                                                                        [*vocab.PIECES, *vocab.SCORED]])),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_vocabulary(make, name):
    with pytest.raises(FormatError) as caught:
        make(BROKEN[name])
    assert caught.value.where.startswith("tokenizer.ggml.") or "tokenizer.ggml." in caught.value.where


def test_a_tokenizer_that_fails_when_it_is_used(tmp_path):
    """The library loads it, and raises a plain Exception for the first letter that is no token."""
    config = json.loads(targets.tokenizer_json())
    config["model"]["unk_token"] = "none"
    (tmp_path / "tokenizer.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")
    with pytest.raises(FormatError, match=r"tokenizer\.json.*none"):
        tokenizer.encode("x")


def test_more_types_and_scores_than_tokens(make):
    few = make(vocab.byte_pairs(tokens=(build.STRING, ["a"]), merges=(build.STRING, [])))  # types for many
    assert few.n_vocab == 1 and few.decode([0], skip_special=False) == "a"


def test_merges_of_strangers(make):
    """They never apply, and the library would refuse them: told where it is needed."""
    tokenizer = make(vocab.byte_pairs(merges=(build.STRING, ["qz z", "t h", "th e"])))
    assert tokenizer.decode(tokenizer.encode("qzz the")) == "qzz the"
    with pytest.raises(FormatError, match="merges"):
        tokenizer.encode("ſ")


@pytest.mark.parametrize("name", pretokenize.FAMILIES)
@given(data=st.data())
def test_short_texts_are_cut_as_the_library_cuts(name, data):
    alphabet = st.sampled_from("aZ 09'sStTlLdD.,!-_/<|$`(\n\r\t\x1c\x00") | st.characters(max_codepoint=127)
    if pretokenize.plain(name):
        alphabet |= st.sampled_from("é“”’—½٣一Ⅷ\u0301\xa0\u2003\u3000\u200bß🙂") | st.characters(
            exclude_categories=["Cs"]
        )
    text = data.draw(st.text(alphabet, max_size=40))
    assume(bare(name)._cuttable(text))
    tokenizer = bare(name)
    ours = [vocab.spell(word) for word in tokenizer._split(text)]
    assert ours == [word for word, _ in pretokenize.build(name).pre_tokenize_str(text)]


@functools.cache
def bare(name):
    """A codec that only cuts."""
    codec = vocabulary.BytePairs.__new__(vocabulary.BytePairs)
    codec._name, codec._patterns = name, None
    return codec


def test_long_and_uncertain_texts_go_through_the_library(make):
    for text in ("the cat's 123 <|im_end|> rat! " * 1000, "the cat ſ " + "the ratatat " * 10, "<|im_end|>\u0378 the"):
        first, second = make(vocab.byte_pairs()), make(vocab.byte_pairs())
        second._codec._library = second._codec._build_library()
        assert first.encode(text) == second.encode(text) and first.decode(first.encode(text), False) == text
        assert first._codec._library is not None
        for part in ("the cat", "the"):
            assert first.encode(part) == make(vocab.byte_pairs()).encode(part)


def test_no_library_for_short_texts(run_python, default_model):
    source = """
import sys
from tensorlib.io import gguf
from tensorlib.io.tokenizer import Tokenizer
tokenizer = Tokenizer.from_gguf(gguf.open(sys.argv[1]))
text = "<|im_start|>The capital of “L’Été” is"
print(tokenizer.decode(tokenizer.encode(text)))
print(*[name for name in ("tokenizers", "numpy", "jinja2") if name in sys.modules])
"""
    assert run_python(source, str(default_model), PYTHONUTF8="1") == "The capital of “L’Été” is\n\n"


def test_repetitive_text_takes_no_longer(bpe, spm):
    """n log n: one word of 20,000 letters."""
    for tokenizer in (bpe, spm):
        start = time.process_time()
        ids = tokenizer.encode("the" * 6000)
        assert tokenizer.decode(ids) == "the" * 6000 and time.process_time() - start < 2


def same(tokenizer, expected, **options):
    rows = zip(GOLDEN["texts"], expected, strict=True)
    for text, ids in sorted(rows, key=lambda row: not row[0].isascii()):  # those without the library first
        assert tokenizer.encode(text, add_special=False, **options) == ids, repr(text)


@pytest.mark.parametrize("name", GOLDEN["byte pairs"])
def test_llama_cpp_byte_pairs(default_model, name):
    """SmolLM2's vocabulary behind every pre-tokenizer."""
    file = gguf.open(default_model)
    if name != "-":
        file.metadata._entries["tokenizer.ggml.pre"] = name
    tokenizer = Tokenizer.from_gguf(file)
    same(tokenizer, GOLDEN["byte pairs"][name])
    if name == "-":
        same(tokenizer, GOLDEN["byte pairs, plain"], parse_special=False)
        assert tokenizer.eos_ids == {0, 2, 4} and not tokenizer.add_bos
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])
        assert prompt.endswith("<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_llama_cpp_sentence_pieces(make):
    """Mistral 7B's vocabulary, out of a package: the `pypi:` source with something other than a GGUF file."""
    path = hub.resolve(
        "pypi:mistral-common==1.13.1/mistral_common/data/tokenizer.model.v1"
        "#sha256=dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055"
    )
    rows = [dict(fields(row)) for key, row in fields(pathlib.Path(path).read_bytes()) if key == 1]
    scores = [struct.unpack("<f", row.get(2, bytes(4)))[0] for row in rows]
    tokens, types = [row[1] for row in rows], [row.get(3, 1) for row in rows]
    tokenizer = make(
        vocab.sentence_pieces(tokens=(build.STRING, tokens), scores=(build.F32, scores), token_type=(build.I32, types))
    )
    same(tokenizer, GOLDEN["pieces"])


def fields(raw):
    """(number, value) of the fields of a protocol buffer."""
    at = 0
    while at < len(raw):
        key, at = varint(raw, at)
        if key & 7 == 0:
            value, at = varint(raw, at)
        else:
            size, at = varint(raw, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
            value, at = raw[at : at + size], at + size
        yield key >> 3, value


def varint(raw, at):
    value = shift = 0
    while True:
        value |= (raw[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if raw[at - 1] < 128:
            return value, at


def test_names_of_pre_tokenizers():
    assert all(pretokenize.FAMILY_OF[alias] in pretokenize.FAMILIES for alias in pretokenize.FAMILY_OF)
    assert not set(pretokenize.FAMILY_OF) & set(pretokenize.FAMILIES)
    for name in pretokenize.FAMILIES:
        pretokenize.build(name)


def from_json(tmp_path, library, **beside):
    library.save(str(tmp_path / "tokenizer.json"))
    for name, content in beside.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_tokenizer_json_byte_level(tmp_path, bpe):
    config = {"eos_token": {"content": "<|im_end|>"}, "bos_token": "<|im_start|>", "chat_template": "{{ bos_token }}x"}
    library = as_library(bpe)
    ours = from_json(tmp_path, library, tokenizer_config__json=config, generation_config__json={"eos_token_id": [2, 5]})
    for text in ("the cat é😀 <|im_start|>x", ""):
        assert ours.encode(text) == bpe.encode(text)
        assert ours.decode(bpe.encode(text), skip_special=False) == text
    stream = ours.stream()
    assert [stream.push(id) for id in bpe.encode("é")] == ["", "é"] and ours.eos_ids == {0, 2, 5}
    assert ours.bos_id == 1 and ours.apply_chat_template([]) == "<|im_start|>x"
    assert from_json(tmp_path, library, chat_template__jinja="beside").apply_chat_template([]) == "beside"


def test_tokenizer_json_with_a_decoder_of_its_own(tmp_path):
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, normalizers, processors

    tokens = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a"]
    model = models.BPE({t: i for i, t in enumerate(tokens)}, [("▁", "a")], unk_token="<unk>", byte_fallback=True)
    library = Library(model)
    library.normalizer = normalizers.Replace(" ", "▁")
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    library.add_special_tokens(["<s>"])
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    ours = from_json(tmp_path, library)
    ids = ours.encode("b a é")
    assert ids[0] == 1 and ours.encode("b a é", add_special=False) == ids[1:] and ours.decode(ids) == "b a é"
    stream = ours.stream()
    assert "".join(map(stream.push, ids)) + stream.flush() == "b a é"
    for id in ids[:-1]:
        stream.push(id)
    assert "�" in stream.flush()


def as_library(tokenizer):
    """The library's own tokenizer with the same vocabulary."""
    from tokenizers import decoders

    library = tokenizer._codec._build_library()
    library.decoder = decoders.ByteLevel()
    hidden = tokenizer._codec.hidden
    library.add_special_tokens([token for token, id in tokenizer._codec.specials.items() if id in hidden])
    library.add_tokens([token for token, id in tokenizer._codec.specials.items() if id not in hidden])
    return library


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"model": 3}', "\x00"])
def test_tokenizer_json_malformed(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(FormatError):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("content", ["", "[]", '{"a":', "[" * 100_000, '{"chat_template": 3}'])
def test_tokenizer_config_malformed(tmp_path, bpe, content):
    try:
        assert from_json(tmp_path, as_library(bpe), tokenizer_config__json=content).chat_template is None
    except FormatError as error:
        assert "tokenizer_config.json" in str(error)


def test_missing_file(tmp_path):
    with pytest.raises(FormatError):
        Tokenizer.from_file(tmp_path / "missing.json")
