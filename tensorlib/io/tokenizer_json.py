"""A Tokenizer from Hugging Face's `tokenizer.json`, with what `tokenizer_config.json` and its neighbours add to it."""

from __future__ import annotations

import json
import os
from typing import NamedTuple

from tensorlib.errors import FormatError
from tensorlib.io import tokenizer as tk
from tensorlib.io.vocabulary import BYTE_OF_LETTER, ends

MAX_CONFIG = 1 << 24  # bytes; tokenizer_config.json repeats the added tokens, which makes it a few megabytes at most

DECODES = "a tokenizer that can decode its own tokens"


class Encoding(NamedTuple):
    """Of each token its id, the text (0 or 1) that it is of, its first letter in there and the one behind its last, and
    whether it is of no text.
    """

    ids: list[int]
    types: list[int]
    spans: list[tuple[int, int]]
    special: list[bool]


class refused:
    """Turns what the library raises, plain Exceptions and panics, into a FormatError of this file."""

    def __init__(self, path: str, expected: str):
        self.path, self.expected = path, expected

    def __enter__(self):
        pass

    def __exit__(self, kind, error, trace):
        if kind is not None and (issubclass(kind, Exception) or kind.__name__ == "PanicException"):
            fix = "check the path, or fetch the file again"
            raise FormatError(self.path, "file", str(error)[:300], self.expected, fix) from None


class Codec:
    """The library's own tokenizer. Byte-level ones decode by bytes, others by the library's incremental decoder."""

    def __init__(self, path: str, library=None):
        from tokenizers import Tokenizer as Library
        from tokenizers import decoders

        self._path = path
        with refused(path, "a tokenizer.json"):  # for a missing file too
            self._library = library or Library.from_file(path)
        self._library.no_padding()  # files of sentence-transformers pad to a length of their own, and cut
        self._library.no_truncation()
        self.n_vocab = 1 + max(self._library.get_vocab().values(), default=0)
        added = self._library.get_added_tokens_decoder()
        self.literal, self.hidden = set(added), {id for id, token in added.items() if token.special}
        self._bytes = BYTE_OF_LETTER if isinstance(self._library.decoder, decoders.ByteLevel) else None

    def encode(self, text, parse_special, add_special=False):
        self._library.encode_special_tokens = not parse_special
        with refused(self._path, "a tokenizer that can encode any text"):
            return self._library.encode(text, add_special_tokens=add_special).ids

    def encoding(self, text, pair):
        self._library.encode_special_tokens = False  # a mask is spelled in the text
        with refused(self._path, "a tokenizer that can encode any text"):
            found = self._library.encode(text, pair)
        return Encoding(found.ids, found.type_ids, found.offsets, list(map(bool, found.special_tokens_mask)))

    def limit(self, length):
        with refused(self._path, f"a tokenizer that can cut texts to {length} tokens"):
            self._library.enable_truncation(length)

    def lowercase(self):
        from tokenizers import normalizers

        own = self._library.normalizer
        self._library.normalizer = normalizers.Sequence([normalizers.Lowercase(), *([own] if own else [])])

    def special(self, spelling):
        from tokenizers import AddedToken

        self._library.add_special_tokens([AddedToken(spelling, normalized=False)])
        self.literal.add(id := self.id_of(spelling))
        self.hidden.add(id)

    def id_of(self, token):
        return self._library.token_to_id(token)

    def piece(self, id, skip_special):
        text = self._library.id_to_token(id)
        if text is None or (id in self.hidden and skip_special):
            return b""
        if id not in self.literal and self._bytes is not None:
            return b"".join(bytes([self._bytes[c]]) if c in self._bytes else c.encode() for c in text)
        return text.encode()

    def decode(self, ids, skip_special):
        with refused(self._path, DECODES):
            return self._library.decode(ids, skip_special_tokens=skip_special)

    def stream(self, tokenizer, skip_special):
        if self._bytes is not None:
            return tk.Stream(tokenizer, skip_special)
        return LibraryStream(tokenizer, self._library, skip_special)


class LibraryStream:
    """Incremental decoding where tokens change with their neighbours (WordPiece, byte fallback, clean-up)."""

    def __init__(self, tokenizer, library, skip_special):
        from tokenizers.decoders import DecodeStream

        self._tokenizer, self._library, self._skip = tokenizer, library, skip_special
        self._stream, self._ids, self._given = DecodeStream(skip_special_tokens=skip_special), [], 0

    def push(self, id: int) -> str:
        """Text that became certain with this token."""
        self._ids.append(self._tokenizer._check(id))
        with refused(self._tokenizer.file, DECODES):
            text = self._stream.step(self._library, id) or ""
        self._given += len(text)
        return text

    def flush(self) -> str:
        """The rest, with U+FFFD for a character that was begun."""
        with refused(self._tokenizer.file, DECODES):
            return self._library.decode(self._ids, skip_special_tokens=self._skip)[self._given :]


def load(cls, path: str, library=None, told: dict | None = None):
    """Build a `Tokenizer` (given as `cls`) from the file at `path`, or from the `library`'s tokenizer made of it.

    `told`: what `tokenizer_config.json` says, where more is known than what stands there.
    """
    codec, folder = Codec(path, library), os.path.dirname(os.path.abspath(path))
    self = cls(codec, path, codec.n_vocab)
    told = config(folder, "tokenizer_config.json") if told is None else told
    for name in ("bos", "eos", "unk"):
        token = spelling(told, f"{name}_token")
        setattr(self, f"{name}_id", None if token is None else codec.id_of(token))
    self.eos_ids = (ends(codec.id_of) | {self.eos_id}) - {None}
    beside(self, folder, told)
    self.encode, self.encoding = _encoder(self), _pairs(self)
    return self


def spelling(told: dict, name: str) -> str | None:
    """A token's spelling by its name in `tokenizer_config.json`: a text, or a row with one."""
    found = told.get(name)
    found = found.get("content") if isinstance(found, dict) else found
    return found if isinstance(found, str) else None


def beside(tokenizer, folder: str, told: dict):
    """Adds what other files of a folder say: the ids that end texts, and the chat template."""
    tokenizer.eos_ids |= _end_ids(folder, tokenizer.n_vocab)
    template = told.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {row.get("name"): row.get("template") for row in template if isinstance(row, dict)}
        template = named.get("default")
    own = _text(os.path.join(folder, "chat_template.jinja"))
    tokenizer.chat_template = own or (template if isinstance(template, str) else None)


def _encoder(tokenizer):
    """`Tokenizer.encode`, but BOS and EOS come from the library's own post-processor."""

    def encode(text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        return tokenizer._codec.encode(tk.well_formed(text), parse_special, add_special)

    return encode


def _pairs(tokenizer):
    """The Encoding of a text, or of two one behind the other, with what the model wants around them."""

    def encoding(text: str, pair: str | None = None) -> Encoding:
        return tokenizer._codec.encoding(tk.well_formed(text), None if pair is None else tk.well_formed(pair))

    return encoding


def _end_ids(folder, n_vocab):
    found = config(folder, "generation_config.json").get("eos_token_id")
    ids = found if isinstance(found, list) else [found]
    return {id for id in ids if type(id) is int and 0 <= id < n_vocab}


def config(folder: str, name: str) -> dict:
    """A file of JSON, or {} where there is none. FormatError for one that is damaged or no object."""
    path = os.path.join(folder, name)
    text = _text(path)
    if not text:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(path, "file", str(error)[:200], "JSON") from None
    if not isinstance(found, dict):
        raise FormatError(path, "file", f"a JSON {type(found).__name__}", "a JSON object")
    return found


def _text(path) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_CONFIG + 1)
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(path, "file", str(error)[:200], "readable UTF-8 text") from None
    if len(text) > MAX_CONFIG:
        raise FormatError(path, "file", f"over {MAX_CONFIG} characters", "a file of a few megabytes at most")
    return text
