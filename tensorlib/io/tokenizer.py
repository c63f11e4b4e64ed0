"""Text to token ids and back: from the vocabulary inside a GGUF file, or from the files of a model's folder.

Ids equal llama.cpp's for the same file. Decoding goes through bytes, so that a stream of tokens never yields half a
character.

>>> from tensorlib.io import gguf
>>> tokenizer = Tokenizer.from_gguf(gguf.open("model.gguf"))  # doctest: +SKIP
>>> tokenizer.decode(tokenizer.encode("Hello"))  # doctest: +SKIP
'Hello'
"""

from __future__ import annotations

import codecs
import gc
import os

from tensorlib.errors import FormatError, ShapeError
from tensorlib.io.unigram import Unigram
from tensorlib.io.vocabulary import KEY, BytePairs, SentencePieces, ends
from tensorlib.io.wordpiece import WordPieces
from tensorlib.io.world import World

KINDS = {"gpt2": BytePairs, "llama": SentencePieces, "bert": WordPieces, "t5": Unigram, "rwkv": World}


class Tokenizer:
    """Attributes: `bos_id`, `eos_id`, `unk_id` (None if there is none), `eos_ids`, `add_bos`, `add_eos`, `n_vocab`.

    `eos_ids` are all ids after which generation stops: eos, eot, eom and their like. `chat_template` is the source of
    the template, or None.
    """

    def __init__(self, codec, file: str, n_vocab: int):
        self._codec, self.file, self.n_vocab = codec, file, n_vocab
        self.bos_id = self.eos_id = self.unk_id = None
        self.eos_ids: frozenset[int] = frozenset()
        self.add_bos = self.add_eos = False
        self._limit = None
        self.chat_template, self._template = None, None

    def __repr__(self):
        from tensorlib.io import text

        return text.tokenizer(self)

    def _repr_html_(self):
        from tensorlib.io import text

        return text.tokenizer_html(self)

    @classmethod
    def from_gguf(cls, file) -> Tokenizer:
        """Build it from `tensorlib.io.gguf.open(...)`. Raises FormatError for vocabularies of a kind not known here."""
        kind = file.require(KEY + "model", str)
        if kind not in KINDS:
            fix = "give ids instead of text, or a model with a vocabulary of a kind known here"
            raise FormatError(file.path, KEY + "model", repr(kind), " or ".join(map(repr, KINDS)), fix)
        collecting = gc.isenabled()
        gc.disable()  # a vocabulary is 100,000 objects and no garbage: looking through them again and again takes time
        try:
            codec = KINDS[kind](file)
        finally:
            if collecting:
                gc.enable()
        self = cls(codec, file.path, len(codec.tokens))
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown")):
            setattr(self, f"{name}_id", codec.marks.get(name, self._id(file, key)))
        named = {self._id(file, key) for key in ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")}
        self.eos_ids = (ends(codec.id_of) | named) - {None}
        self.add_bos = file.require(KEY + "add_bos_token", bool, codec.starts_with_bos)
        self.add_eos = codec.ends_with_eos or file.require(KEY + "add_eos_token", bool, False)
        for flag, found, key in ((self.add_bos, self.bos_id, "bos"), (self.add_eos, self.eos_id, "eos")):
            if flag and found is None:
                expected = f"the token that add_{key}_token asks for"
                raise FormatError(file.path, f"{KEY}{key}_token_id", "no such token", expected)
        self.chat_template = file.require("tokenizer.chat_template", str, "") or None
        return self

    @classmethod
    def from_file(cls, path) -> Tokenizer:
        """Build it from a `tokenizer.json`; special tokens and chat template come from the files beside it."""
        from tensorlib.io import tokenizer_json

        return tokenizer_json.load(cls, os.fspath(path))

    @classmethod
    def from_folder(cls, folder, target: bool = False) -> Tokenizer:
        """Build it from a model's folder: a `tokenizer.json`, or what else models have (tokenizer_folder.py).

        `target`: of the language that a Marian translates to. FormatError where there is none of them.
        """
        from tensorlib.io import tokenizer_folder

        return tokenizer_folder.load(cls, os.fspath(folder), target)

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Ids of `text`. `add_special`: with BOS and EOS where the model wants them.

        `parse_special`: spellings of control tokens in the text become those tokens; else they are plain text.
        """
        ids = self._codec.encode(well_formed(text), parse_special)
        if self._limit is not None:
            ids = ids[: max(0, self._limit - (self.add_bos + self.add_eos if add_special else 0))]
        if add_special:
            ids = [*([self.bos_id] if self.add_bos else []), *ids, *([self.eos_id] if self.add_eos else [])]
        return ids

    def limit(self, length: int):
        """From now on `encode` cuts texts so that there are at most `length` ids, special ones included. FormatError
        where a `tokenizer.json` does not let itself be cut so.
        """
        if hasattr(self._codec, "limit"):
            self._codec.limit(length)
        else:
            self._limit = length

    def lowercase(self):
        """From now on `encode` takes texts in lower case. FormatError where there is no `tokenizer.json`, say."""
        self._library_only("do_lower_case").lowercase()

    def id_of(self, spelling: str) -> int | None:
        """The id of a token by its spelling, or None."""
        return self._codec.id_of(spelling)

    def special(self, spelling: str):
        """From now on texts in which a token is spelled have it there, as one. Raises as `lowercase`."""
        self._library_only("special tokens").special(spelling)

    def decode(self, ids, skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD. Control tokens are left out unless told otherwise."""
        return self._codec.decode(list(map(self._check, ids)), skip_special)

    def piece(self, id: int) -> bytes:
        """The bytes that one token stands for, control tokens by their spelling."""
        return self._codec.piece(self._check(id), False)

    def stream(self, skip_special: bool = True):
        """A detokeniser for tokens as they come: `push(id)` gives the text that is now certain, `flush()` the rest."""
        make = getattr(self._codec, "stream", Stream)
        return make(self, skip_special)

    def apply_chat_template(self, messages: list[dict], add_generation_prompt: bool = True, **variables) -> str:
        """The text of a conversation, a list of {"role": ..., "content": ...}, as the model was trained to see it.

        It holds BOS where the template writes it: encode it with `add_special=False`.
        """
        if self._template is None:
            from tensorlib.io.template import ChatTemplate

            if self.chat_template is None:
                fix = "use plain generation, or an instruction-tuned model"
                raise FormatError(self.file, "tokenizer.chat_template", "no chat template", "one in the file", fix)
            names = {"bos_token": self._spelling(self.bos_id), "eos_token": self._spelling(self.eos_id)}
            self._template = ChatTemplate(self.chat_template, self.file, names)
        return self._template.render(messages, add_generation_prompt, **variables)

    def _library_only(self, what):
        if not hasattr(self._codec, "lowercase"):
            raise FormatError(self.file, what, "other files", "a tokenizer.json", "this is not here yet")
        return self._codec

    def _spelling(self, id):
        return "" if id is None else self._codec.piece(id, False).decode("utf-8", "replace")

    def _id(self, file, name):
        """The id that `tokenizer.ggml.NAME_token_id` gives, or None; an id past the vocabulary counts as none."""
        found = file.require(f"{KEY}{name}_token_id", int, -1)
        return found if 0 <= found < self.n_vocab else None

    def _check(self, id):
        if not 0 <= id < self.n_vocab:
            raise ShapeError("decode", f"token id {id}", f"ids from 0 to {self.n_vocab - 1}")
        return id


class Stream:
    """Incremental decoding by bytes: an incomplete character waits for its rest."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool):
        self._tokenizer, self._codec, self._skip = tokenizer, tokenizer._codec, skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """Text that became certain with this token. A leading space is kept: what is generated continues a text."""
        return self._decoder.decode(self._codec.piece(self._tokenizer._check(id), self._skip))

    def flush(self) -> str:
        """The rest: U+FFFD for a character that was begun, or nothing."""
        return self._decoder.decode(b"", True)


def well_formed(text: str) -> str:
    """`text` with U+FFFD for lone surrogates: undecodable bytes of an argument or of standard input have no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in text)
    return text
