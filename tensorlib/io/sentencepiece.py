"""SentencePiece's own files (`tokenizer.model`, `spiece.model`, `source.spm`): what they say under GGUF's keys, as
llama.cpp's converter writes them, so that one reader serves both.

A file is a protocol buffer, sentencepiece_model.proto of the library: here are the fields that matter.
"""

from __future__ import annotations

import re
import struct

from tensorlib.errors import FormatError
from tensorlib.io.cursor import Cursor
from tensorlib.io.gguf import GGUFFile
from tensorlib.io.normalizer import CHARSMAP, KEY
from tensorlib.io.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED

MODEL = KEY + "model"
PIECES, TRAINER, NORMALIZER = 1, 2, 3  # of the whole
KINDS = {1: "t5", 2: "llama"}  # the trainer's model_type: Unigram, byte pairs
IDS = {"unknown": (40, 0), "bos": (41, 1), "eos": (42, 2), "padding": (43, -1)}  # the trainer's fields, with defaults
MOST = 1 << 28  # bytes
MARKS = {"\n<s>\n": "<s>", "\n</s>\n": "</s>"}  # as llama2.c spells them
BYTES = re.compile(rb"<0x[0-9A-F]{2}>")


class Keys:
    """What `Tokenizer.from_gguf` asks of a file, for `values` by GGUF's keys that come from elsewhere."""

    require = GGUFFile.require

    def __init__(self, path: str, values: dict):
        self.path, self.metadata = path, Values(values)

    def error(self, *what):
        return FormatError(self.path, *what)


class Values(dict):
    """Values by key; texts are bytes."""

    def strings(self, key: str):
        """A list of texts, or None."""
        return self.get(key)


def read(path: str) -> dict:
    """GGUF's keys and values for a file. FormatError for a damaged one, or one of neither Unigram nor byte pairs."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MOST + 1)
    except OSError as error:
        raise FormatError(path, "file", str(error)[:200], "a SentencePiece model") from None
    pieces, parts = [], {TRAINER: b"", NORMALIZER: b""}
    for field, value in _fields(path, raw):
        if field == PIECES:
            pieces.append(dict(_fields(path, value)))
        elif field in parts:
            parts[field] = value
    trainer, normal = (dict(_fields(path, part)) for part in parts.values())
    kind = trainer.get(3, 1)
    if kind not in KINDS or trainer.get(24) or not pieces:
        got = f"{len(pieces)} pieces of kind {kind}" + " with spaces behind words" * bool(trainer.get(24))
        raise FormatError(path, "model_type", got, "pieces of Unigram (1) or byte pairs (2), with spaces before words")
    tokens = [_of(path, bytes, piece.get(1, b"")) for piece in pieces]
    try:
        b"\n".join(tokens).decode()
    except UnicodeDecodeError as error:
        raise FormatError(path, "pieces", str(error), "UTF-8 text") from None
    return {
        MODEL: KINDS[kind],
        KEY + "tokens": tokens,
        KEY + "scores": [struct.unpack("<f", _of(path, bytes, piece.get(2, bytes(4)), 4))[0] for piece in pieces],
        KEY + "token_type": [_of(path, int, piece.get(3, NORMAL)) for piece in pieces],
        KEY + "add_space_prefix": bool(normal.get(3, 1)),
        KEY + "remove_extra_whitespaces": bool(normal.get(4, 1)),
        **({CHARSMAP: charsmap} if (charsmap := list(_of(path, bytes, normal.get(2, b"")))) else {}),
        **{f"{KEY}{name}_token_id": id for name, (field, default) in IDS.items()
           if 0 <= (id := _signed(_of(path, int, trainer.get(field, default))))},
    }  # fmt: skip


def read_bin(path: str) -> dict:
    """GGUF's keys and values for a `tokenizer.bin` of llama2.c: how long a piece is at most, then a score, a length and
    the bytes of each, with spaces as they are. FormatError for a damaged one.
    """
    try:
        with open(path, "rb") as file:
            cursor = Cursor(path, file.read(MOST + 1))
    except OSError as error:
        raise FormatError(path, "file", str(error)[:200], "a tokenizer.bin of llama2.c") from None
    longest, tokens, scores = cursor.number("I", "the longest length"), [], []
    while cursor.at < cursor.end:
        score, length = cursor.numbers("fI", f"piece {len(tokens)}")
        if length > longest:
            raise cursor.error(f"piece {len(tokens)}", f"{length} bytes", f"at most {longest}")
        text = cursor.text(length, f"piece {len(tokens)}")
        tokens.append(MARKS.get(text, text.replace(" ", "▁")).encode())
        scores.append(score)
    kinds = [BYTE if BYTES.fullmatch(token) else NORMAL for token in tokens]
    kinds[:3] = (UNKNOWN, CONTROL, CONTROL)[: len(kinds)]
    ids = {f"{KEY}{name}_token_id": IDS[name][1] for name in ("unknown", "bos", "eos")}
    return {MODEL: "llama", KEY + "tokens": tokens, KEY + "scores": scores, KEY + "token_type": kinds, **ids}


def add(values: dict, added: dict):
    """Tokens beside a model: `added` is id to (spelling, type); ids between them that nobody names are unused."""
    tokens, scores, types = (values[KEY + name] for name in ("tokens", "scores", "token_type"))
    count = max(added, default=-1) + 1 - len(tokens)
    tokens += [f"[PAD{len(tokens) + i}]".encode() for i in range(count)]
    scores += [0.0] * count
    types += [UNUSED] * count
    for id, (spelling, kind) in added.items():
        tokens[id], types[id] = spelling.encode(), kind


def _of(path, kind, value, size=None):
    if type(value) is not kind or (size is not None and len(value) != size):
        raise FormatError(path, "file", f"{value!r:.60} in a field", "a SentencePiece model")
    return value


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _fields(path, raw):
    """(number, value) of the fields of a protocol buffer: integers, or bytes."""
    raw = _of(path, bytes, raw)
    at = 0
    while at < len(raw):
        key, at = _varint(path, raw, at)
        if key & 7 == 0:
            value, at = _varint(path, raw, at)
        else:
            size, at = _varint(path, raw, at) if key & 7 == 2 else ({1: 8, 5: 4}.get(key & 7, MOST), at)
            value, at = raw[at : at + size], at + size
        if at > len(raw):
            raise FormatError(path, "file", f"a field that ends at {at} of {len(raw)} bytes", "a SentencePiece model")
        yield key >> 3, value


def _varint(path, raw, at):
    value = shift = 0
    for byte in raw[at : at + 10]:
        value |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
        if byte < 128:
            return value, at
    raise FormatError(path, "file", f"no number at {at}", "a SentencePiece model")
