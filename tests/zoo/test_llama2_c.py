"""Files of llama2.c: weights of transformers' Llama as they stand there, a tokenizer against that program's steps."""

import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlib.errors import FormatError
from tensorlib.io.tokenizer import Tokenizer
from tests.zoo.decoders import Case
from tests.zoo.test_decoders import IDS, close, logits, tensor, torch_model
from zoo import cli, llama2_c
from zoo.generate import load

SIZES = (32, 48, 2, 4, 2, 99, 64)
PARTS = {
    "table": "model.embed_tokens", "norm": "model.norm", "head": "lm_head", "before": "model.layers.{}.input_layernorm",
    "behind": "model.layers.{}.post_attention_layernorm", "w1": "model.layers.{}.mlp.gate_proj",
    "w2": "model.layers.{}.mlp.down_proj", "w3": "model.layers.{}.mlp.up_proj",
    **{f"w{name}": f"model.layers.{{}}.self_attn.{name}_proj" for name in "qkvo"},
}  # fmt: skip


def theirs(tied):
    return torch_model(Case("llama", {"rms_norm_eps": 1e-5, "tie_word_embeddings": tied}))


def bytes_of(model, name):
    """A weight as Meta's files have it: rows of q and k that turn together are neighbours."""
    x = model.state_dict()[name].numpy()
    if "q_proj" in name or "k_proj" in name:
        x = x.reshape(-1, 2, 4, 32).swapaxes(1, 2).reshape(x.shape)
    return np.ascontiguousarray(x, "<f4").tobytes()


def each(model, *parts):
    """The bytes of parts, each of all layers."""
    found = b""
    for part in parts:
        name = PARTS[part]
        for i in range(2 if "{}" in name else 1):
            found += bytes_of(model, f"{name.format(i)}.weight")
    return found


def version_0(model, tied):
    numbers = list(SIZES)
    numbers[5] *= 1 if tied else -1
    body = each(model, "table", "before", "wq", "wk", "wv", "wo", "behind", "w1", "w2", "w3", "norm")
    return struct.pack("<7i", *numbers) + body + bytes(4 * 64 * 8) + (b"" if tied else each(model, "head"))


def version_1(model, tied):
    start = struct.pack("<Ii7iB", 0x616B3432, 1, *SIZES, tied)
    body = each(model, "before", "behind", "norm", "table", "wq", "wk", "wv", "wo", "w1", "w2", "w3")
    return start + bytes(256 - len(start)) + body + (b"" if tied else each(model, "head"))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("write", [version_0, version_1])
def test_logits(write, tied, tmp_path):
    model, path = theirs(tied), str(tmp_path / "stories.bin")
    (tmp_path / "stories.bin").write_bytes(write(model, tied))
    assert llama2_c.is_file(path)
    file, ours = llama2_c.load(path, context=40)
    assert ours.config.max_position_embeddings == 40 and file.metadata["seq_len"] == 64
    assert file.metadata["version"] == (write is version_1)
    cache = ours.new_cache(32, "f32")
    close(ours(tensor(IDS), cache, last_only=False).numpy(), logits(model, [IDS])[0])


def changed(at, number, code="<i"):
    return lambda data: data[:at] + struct.pack(code, number) + data[at + 4 :]


DAMAGE = {
    "cut": (version_0, lambda data: data[:-3], "lm_head.weight at offset"),
    "cut early": (version_0, lambda data: data[:1000], "model.embed_tokens.weight at offset 28"),
    "more": (version_0, lambda data: data + b"1234", "4 bytes behind the last weight"),
    "no layers": (version_0, changed(8, 0), "n_layers: got 0"),
    "sizes below 0": (version_0, changed(0, -32), "dim: got -32"),
    "many layers": (version_0, changed(8, 1 << 23), "to the end of the file"),
    "odd heads": (version_0, changed(12, 5), "32 channels, 5 heads"),
    "groups": (version_0, changed(16, 3), "4 heads, 3 of keys"),
    "version 2": (version_1, changed(4, 2), "version 2; expected 0 or 1"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage(what, tmp_path):
    write, change, message = DAMAGE[what]
    (tmp_path / "stories.bin").write_bytes(change(write(theirs(False), False)))
    with pytest.raises(FormatError, match=message) as caught:
        llama2_c.load(str(tmp_path / "stories.bin"))
    assert caught.value.file == str(tmp_path / "stories.bin")


def test_what_is_no_such_file(tmp_path):
    path = tmp_path / "x.bin"
    for data in (b"", b"PK\3\4" + bytes(60), b"\x80\2}" + bytes(60), b"tjgg" + struct.pack("<7I", 3, *SIZES[1:])):
        path.write_bytes(data)
        assert not llama2_c.is_file(str(path))
    path.write_bytes(version_0(theirs(True), True))
    (tmp_path / "config.json").write_text("{}")
    assert not llama2_c.is_file(str(path)), "a model's folder"
    assert not llama2_c.is_file(str(tmp_path / "none.bin"))


# ---- tokenizer.bin ---------------------------------------------------------------------------------------------------

WORDS = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{i:02X}>" for i in range(256)), *" abcdefé", "ab", " a", "cd", " ab",
         "abc", " abcd", "dé", "  ", "cde", "ef"]  # fmt: skip
SCORES = [0.0] * 259 + [-1000.0 - i for i in range(8)] + [-3.0, -1.0, -2.0, -9.0, -4.0, -5.0, -6.0, -7.0, -8.0, -10.0]


def write_tokenizer(folder):
    data = struct.pack("<I", max(len(word.encode()) for word in WORDS))
    for word, score in zip(WORDS, SCORES, strict=True):
        data += struct.pack("<fI", score, len(word.encode())) + word.encode()
    (folder / "tokenizer.bin").write_bytes(data)
    return data


def encoded(text):
    """run.c's encode: a space before, letters or their bytes, then the best pair again and again."""
    ids, found = {word: i for i, word in enumerate(WORDS)}, [1]
    for letter in " " * bool(text) + text:
        found += [ids[letter]] if letter in ids else [byte + 3 for byte in letter.encode()]
    while True:
        pairs = [(SCORES[ids[both]], -i, ids[both]) for i, pair in enumerate(pairwise(found))
                 if (both := WORDS[pair[0]] + WORDS[pair[1]]) in ids]  # fmt: skip
        if not pairs:
            return found
        _, at, best = max(pairs)
        found[-at : -at + 2] = [best]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens")
    write_tokenizer(folder)
    return Tokenizer.from_folder(folder)


@given(st.text("abcdefé xÿ€", max_size=12))
def test_tokens(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids == encoded(text)
    assert tokenizer.decode(ids).removeprefix(" ") == text.removeprefix(" ")


def test_marks(tokenizer):
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.n_vocab) == (1, 2, 0, len(WORDS))
    assert 2 in tokenizer.eos_ids and tokenizer.decode([1, 259 + 1, 2]) == "a"


@pytest.mark.parametrize("size", [0, 3, 7, 101, -1])
def test_damaged_tokenizer(size, tmp_path):
    data = write_tokenizer(tmp_path)
    (tmp_path / "tokenizer.bin").write_bytes(data[:size])
    with pytest.raises(FormatError, match=r"tokenizer\.bin"):
        Tokenizer.from_folder(tmp_path)


def test_a_long_piece(tmp_path):
    data = write_tokenizer(tmp_path)
    (tmp_path / "tokenizer.bin").write_bytes(struct.pack("<I", 2) + data[4:])
    with pytest.raises(FormatError, match="at most 2"):
        Tokenizer.from_folder(tmp_path)


def test_generation(tmp_path, capsys):
    """A file with a tokenizer beside it is all that is needed, by the command, too."""
    config = {"vocab_size": len(WORDS), "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
    model = torch_model(Case("llama", config))
    numbers = list(SIZES)
    numbers[5] = len(WORDS)
    data = struct.pack("<7i", *numbers) + version_0(model, True)[28:]
    (tmp_path / "stories.bin").write_bytes(data)
    write_tokenizer(tmp_path)
    ours = load(str(tmp_path / "stories.bin"))
    prompt = ours.tokenizer.encode("abc")
    ids = list(ours.generate(prompt, 8))
    rows = logits(model, [[*prompt, *ids]])[0]
    assert [int(row.argmax()) for row in rows[len(prompt) - 1 : -1]] == ids
    assert cli.main(["generate", "-m", str(tmp_path / "stories.bin"), "-n", "8", "abc"]) == 0
    assert ours.tokenizer.decode(ids).strip() in capsys.readouterr().out
