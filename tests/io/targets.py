"""The readers by name, for tests that damage files, for `tests.fuzz` and for `bench.malformed`: how each one opens and
uses a file, and sound files to start from.
"""

import json
import os
from importlib import import_module
from typing import NamedTuple

from tests.io import (
    build,
    build_ggml,
    build_imatrix,
    build_npz,
    build_pieces,
    build_pth,
    build_safetensors,
    build_template,
    vocab,
)
from tests.io.hardened import read_all


class Target(NamedTuple):
    """`name`: of a file; `use(path)`: opens it and uses all of it; `seeds`: small sound files; `header`: bytes at the
    start that flipped bits go over; `cuts(data)`: lengths to which a file may be cut and stay sound, None: any;
    `wrap`: makes a file of fuzzed bytes; `beside`: other files in the folder.
    """

    name: str
    use: object
    seeds: list
    header: int = 1200
    cuts: object = lambda data: ()
    wrap: object = lambda data: data
    beside: dict = {}


def _source(module):
    def use(path):
        with import_module(f"tensorlib.io.{module}").open(path) as file:
            read_all(file)
            if module == "gguf":
                for key in file.metadata:
                    file.metadata.typed(key)

    return use


def _imatrix(path):
    import_module("tensorlib.io.imatrix").read(path)


def _speak(tokenizer):
    """Encodes and decodes, whole and streamed."""
    for text in ("the cat sat", " größe 日本\n\n12345<|im_end|><tool>s", ""):
        for special in (True, False):
            tokenizer.decode(tokenizer.encode(text, parse_special=special), skip_special=special)
    stream = tokenizer.stream()
    for id in range(0, tokenizer.n_vocab, 1 + tokenizer.n_vocab // 300):
        stream.push(id)
        tokenizer.piece(id)
    stream.flush()


def _vocabulary(path):
    from tensorlib.io.tokenizer import Tokenizer

    with import_module("tensorlib.io.gguf").open(path) as file:
        tokenizer = Tokenizer.from_gguf(file)
        _speak(tokenizer)
        if tokenizer.chat_template:
            tokenizer.apply_chat_template(build_template.MESSAGES)


def _tokenizer_json(path):
    from tensorlib.io.tokenizer import Tokenizer

    _speak(Tokenizer.from_file(path))


VOCAB = ["<s>", "<pad>", "</s>", "<unk>", *vocab.LETTER_OF_BYTE, *("".join(pair) for pair in vocab.MERGES), "<mask>"]
VOCAB = json.dumps({token: id for id, token in enumerate(VOCAB)}).encode()
MERGES = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in vocab.MERGES)]).encode()
ROBERTA = b'{"model_type": "roberta"}'
ADDED = {"add_prefix_space": True, "trim_offsets": False, "mask_token": {"__type": "AddedToken", "content": "<mask>"}}
ADDED |= {"additional_special_tokens": ["<s>", {"content": "<new>", "lstrip": True}], "extra_token": "<more>"}
ADDED |= {"added_tokens_decoder": {"0": {"content": "<s>", "special": True}, "1": {"content": "<pad>"}}}
ADDED = json.dumps(ADDED).encode()


def _folder(path):
    from tensorlib.io.tokenizer import Tokenizer

    _speak(Tokenizer.from_folder(os.path.dirname(path)))


def _template(path):
    from tensorlib.errors import FormatError
    from tensorlib.io.template import ChatTemplate

    with open(path, "rb") as file:
        raw = file.read()
    try:
        source = raw.decode()  # what Tokenizer gives it is text
    except UnicodeDecodeError as error:
        raise FormatError(path, "file", f"byte 0x{raw[error.start]:02x}", "UTF-8 text") from None
    ChatTemplate(source, path, {"bos_token": "<s>"}).render(build_template.MESSAGES)


def _gguf():
    """Small files of every version and byte order."""
    found = []
    for version, order, code in ((1, "<", "I"), (2, "<", "Q"), (3, "<", "Q"), (3, ">", "Q")):
        with build.form(order, code):
            pairs = [
                build.pair("general.architecture", build.STRING, "llama"),
                build.pair("a", build.ARRAY, (build.STRING, ["x", "größe"])),
                build.pair("b", build.ARRAY, (build.ARRAY, [(build.BOOL, [True])])),
            ]
            infos = build.info("t", [4]), build.info("u", [32], 8, 32)
            found.append(build.file(pairs, infos, bytes(66), version=version))
    return found


def tokenizer_json():
    """A small tokenizer.json."""
    ids = {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "<s>": 4}
    added = {"content": "<s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": 4, "special": True, **added}],
        "normalizer": {"type": "NFC"}, "pre_tokenizer": level, "post_processor": level, "decoder": level,
        "model": {**model, "vocab": ids, "merges": [["a", "b"]]},
    }, ensure_ascii=False).encode()  # fmt: skip


_SHARD = {"a.safetensors": build_safetensors.SOUND["valid"]}
_LEGACY_GGML = [build_ggml.file(kind, build_ggml.TWO) for kind in build_ggml.KINDS]
TARGETS = {
    "safetensors": Target(
        "file.safetensors", _source("safetensors"),
        [data for data in build_safetensors.SOUND.values() if not callable(data)],
    ),
    "index": Target(
        "model.safetensors.index.json", _source("safetensors"),
        [build_safetensors.index({"t": "a.safetensors"}, metadata={"total_size": 32})], beside=_SHARD,
    ),
    "npy": Target("file.npy", _source("npz"), [*build_npz.SOUND.values()], header=128),
    "npz": Target("file.npz", _source("npz"), [build_npz.TWO, build_npz.DEFLATED]),
    "pth": Target("file.pth", _source("pth"), [build_pth.archive(), build_pth.SOUND["deflated"]]),
    "pth_legacy": Target(
        "file.pth", _source("pth"), [build_pth.legacy(), build_pth.SOUND["view of a storage, legacy"]]
    ),
    "pickle": Target(
        "file.pth", _source("pth"), [build_pth.state(), *build_pth.BYPASSES.values()], wrap=build_pth.archive
    ),
    "gguf": Target("file.gguf", _source("gguf"), _gguf()),
    "ggml": Target("model.bin", _source("ggml"), _LEGACY_GGML, cuts=build_ggml.ends),
    "imatrix": Target(
        "imatrix.dat", _imatrix, [build_imatrix.binary(build_imatrix.A, build_imatrix.B)],
        cuts=lambda data: (len(data) - len(build_imatrix.TAIL),),  # files of before 2024 end there
    ),
    "vocabulary": Target(
        "file.gguf", _vocabulary,
        [vocab.byte_pairs("{{ messages }}"), vocab.sentence_pieces(), vocab.unigram(), vocab.world()],
    ),
    "tokenizer_json": Target("tokenizer.json", _tokenizer_json, [tokenizer_json()]),
    "pieces": Target("spiece.model", _folder, [build_pieces.model(), build_pieces.byte_pairs()], cuts=None),
    "words": Target("vocab.json", _folder, [build_pieces.WORDS], beside={"source.spm": build_pieces.model()}),
    "pairs": Target("vocab.json", _folder, [VOCAB], header=64, beside={"merges.txt": MERGES, "config.json": ROBERTA}),
    "merges": Target("merges.txt", _folder, [MERGES], beside={"vocab.json": VOCAB, "config.json": ROBERTA}, cuts=None),
    "added": Target("tokenizer_config.json", _folder, [ADDED],
                    cuts=lambda data: [0], beside={"vocab.json": VOCAB, "merges.txt": MERGES, "config.json": ROBERTA}),
    "list": Target("vocab.txt", _folder, [b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\n##s\ncat\n"], cuts=None),
    "world": Target("rwkv_vocab_v20230424.txt", _folder, [build_pieces.world()], cuts=None),
    "template": Target("chat_template.jinja", _template, [s.encode() for s in build_template.WORKS], cuts=None),
}  # fmt: skip


def put(target: Target, folder, data: bytes) -> str:
    """A file for this target in a folder; its path."""
    for name, content in {**target.beside, target.name: data}.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)
    return os.path.join(folder, target.name)


def is_sound(target: Target, path: str) -> bool:
    """Uses a file; whatever is wrong with it must be a FormatError."""
    from tensorlib.errors import FormatError

    try:
        target.use(path)
    except FormatError as error:
        assert error.file and error.where and str(error)
        return False
    return True
