"""Text to token ids and back: from the vocabulary inside a GGUF file, or from a `tokenizer.json`.

The tokenizers library does the byte-pair merging; it is imported when a tokenizer is built, not before. Ids equal
llama.cpp's for the same file. Decoding goes through bytes, so that a stream of tokens never yields half a character.

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
from tensorlib.io import pretokenize, spm

UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 2, 3, 4, 5, 6  # GGUF's token types; 1 is normal

# Tokens that end what a model generates, by their spelling, as llama.cpp has them: files seldom name them all.
END_OF_TEXT = (
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|> "
    "<EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> <｜end▁of▁sentence｜> "
    "[e~[ <|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD] <|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> "
    "<|file_sep|>"
).split()
ALWAYS_SHOWN = frozenset("<|channel|> <|message|> <|start|> <|constrain|>".split())  # the frame of gpt-oss's answers


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
        self.chat_template, self._template = None, None

    @classmethod
    def from_gguf(cls, file) -> Tokenizer:
        """Build it from `tensorlib.io.gguf.open(...)`. Raises FormatError for vocabularies of a kind not known here."""
        model = file.require("tokenizer.ggml.model", str)
        if model not in ("gpt2", "llama"):
            fix = "use a model with a byte-pair or SentencePiece vocabulary"
            raise FormatError(file.path, "tokenizer.ggml.model", repr(model), "'gpt2' or 'llama'", fix)
        name = file.require("tokenizer.ggml.pre", str, "default")
        collecting = gc.isenabled()
        gc.disable()  # a vocabulary is 100,000 strings and tuples, none of them garbage: a fifth of the time
        try:
            tokens, types = _vocabulary(file)
            codec = (_BytePairs if model == "gpt2" else _SentencePieces)(file, tokens, types, name)
        finally:
            if collecting:
                gc.enable()
        self = cls(codec, file.path, len(tokens))
        for attribute, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown")):
            setattr(self, f"{attribute}_id", _id_of(file, key, len(tokens)))
        ends = {_id_of(file, key, len(tokens)) for key in ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")}
        self.eos_ids = (_ends(codec.id_of) | ends) - {None}
        self.add_bos = file.require("tokenizer.ggml.add_bos_token", bool, codec.starts_with_bos)
        self.add_eos = file.require("tokenizer.ggml.add_eos_token", bool, False)
        for flag, found, key in ((self.add_bos, self.bos_id, "bos"), (self.add_eos, self.eos_id, "eos")):
            if flag and found is None:
                where = f"tokenizer.ggml.{key}_token_id"
                raise FormatError(file.path, where, "no such key", f"the token that add_{key}_token asks for")
        self.chat_template = file.require("tokenizer.chat_template", str, "") or None
        return self

    @classmethod
    def from_file(cls, path) -> Tokenizer:
        """Build it from a `tokenizer.json`; special tokens and chat template come from the files beside it."""
        from tensorlib.io import tokenizer_json

        return tokenizer_json.load(cls, os.fspath(path))

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Ids of `text`. `add_special`: with BOS and EOS where the model wants them.

        `parse_special`: spellings of control tokens in the text become those tokens; else they are plain text.
        """
        ids = self._codec.encode(well_formed(text), parse_special)
        if add_special:
            ids = [*([self.bos_id] if self.add_bos else []), *ids, *([self.eos_id] if self.add_eos else [])]
        return ids

    def decode(self, ids, skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD. Control tokens are left out unless told otherwise."""
        return self._codec.decode(list(map(self._check, ids)), skip_special)

    def piece(self, id: int) -> bytes:
        """The bytes that one token stands for, control tokens by their spelling."""
        return self._codec.piece(self._check(id), False)

    def stream(self, skip_special: bool = True):
        """A detokeniser for tokens as they come: `push(id)` gives the text that is now certain, `flush()` the rest."""
        return self._codec.stream(self, skip_special)

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

    def _spelling(self, id):
        return "" if id is None else self._codec.piece(id, False).decode("utf-8", "replace")

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


class _Codec:
    """What both kinds of GGUF vocabulary share. Subclasses: `encode`, `id_of`, `piece`."""

    stream, space_prefix, starts_with_bos = Stream, False, False

    def decode(self, ids, skip_special):
        text = b"".join([self.piece(id, skip_special) for id in ids])
        return (text.removeprefix(b" ") if self.space_prefix else text).decode("utf-8", "replace")

    def _add_specials(self, library, file, tokens, types, id_of) -> list[int]:
        """Tell the library which tokens are taken from a text as they are spelt; return their ids in its order."""
        from tokenizers import AddedToken

        kinds = {id: kind for id, kind in enumerate(types) if kind in (UNKNOWN, CONTROL, USER_DEFINED)}
        ends = _ends(id_of)
        kinds |= dict.fromkeys(ends, CONTROL)
        shown = ALWAYS_SHOWN | {"<|end|>"} if id_of("<|end|>") not in ends else ALWAYS_SHOWN
        kinds |= {id: USER_DEFINED for token in shown if (id := id_of(token)) is not None}
        strips = any(name in file.require("general.name", str, "").lower() for name in ("phi-3", "phi3"))
        special, plain = [], []
        for id in sorted(kinds):
            text, controls = tokens[id], kinds[id] != USER_DEFINED
            bare = strips and text not in ("<unk>", "<s>", "<|endoftext|>")
            added = AddedToken(text, normalized=False, special=controls, rstrip=bare)
            (special if controls else plain).append((id, added))
        self.literal, self.hidden = set(kinds), {id for id, _ in special}
        library.add_special_tokens([added for _, added in special])
        library.add_tokens([added for _, added in plain])
        return [id for id, _ in special + plain]


class _BytePairs(_Codec):
    """GGUF's "gpt2": merges over bytes spelt as letters."""

    def __init__(self, file, tokens, types, name):
        from tokenizers import Tokenizer as Library
        from tokenizers.models import BPE

        if pretokenize.pieces(name) is None:
            fix = f"one of {', '.join(pretokenize.FAMILIES)} or their aliases"
            raise FormatError(file.path, "tokenizer.ggml.pre", repr(name), "a pre-tokenizer known here", fix)
        merges = file.require("tokenizer.ggml.merges", list)
        if merges and not isinstance(merges[0], str):
            raise FormatError(file.path, "tokenizer.ggml.merges", f"{merges[:1]}", "a list of strings")
        merges = [tuple(merge.split(" ")) for merge in merges]
        try:
            model = BPE(_ids(file, tokens), merges, ignore_merges=name in pretokenize.IGNORE_MERGES)
        except (
            Exception
        ) as error:  # the library's errors are plain Exceptions, or ValueErrors for tuples of another size
            raise FormatError(file.path, "tokenizer.ggml.merges", error, "pairs of tokens of the vocabulary") from None
        del merges
        self.starts_with_bos = name in pretokenize.STARTS_WITH_BOS
        self._library = Library(model)
        self._library.pre_tokenizer = pretokenize.build(name)
        self._add_specials(self._library, file, tokens, types, self._library.token_to_id)
        self._bytes = byte_of_letter()

    def encode(self, text, parse_special):
        self._library.encode_special_tokens = not parse_special
        return self._library.encode(text, add_special_tokens=False).ids

    def id_of(self, token):
        return self._library.token_to_id(token)

    def piece(self, id, skip_special):
        if id in self.hidden and skip_special:
            return b""
        text = self._library.id_to_token(id)
        if id in self.literal:
            return text.encode()
        table = self._bytes
        try:
            return bytes([table[letter] for letter in text])
        except KeyError:  # not spelt in GPT-2's letters: a token that somebody added without saying so
            return text.encode()


class _SentencePieces(_Codec):
    """GGUF's "llama": pieces with scores, "▁" for a space, bytes as a last resort."""

    starts_with_bos = True

    def __init__(self, file, tokens, types, name):
        from tokenizers import Tokenizer as Library
        from tokenizers.models import BPE

        self._tokens, self._types, self._ids = tokens, types, _ids(file, tokens)
        self._scores = file.require("tokenizer.ggml.scores", list)
        if len(self._scores) < len(tokens):
            got = f"{len(self._scores)} scores"
            raise FormatError(file.path, "tokenizer.ggml.scores", got, f"one for each of {len(tokens)} tokens")
        unknown = _id_of(file, "unknown", len(tokens))
        missing = -1 if unknown is None else unknown
        self._byte_ids = [self._ids.get(f"<0x{byte:02X}>", missing) for byte in range(256)]
        self.space_prefix = file.require("tokenizer.ggml.add_space_prefix", bool, True)
        # A library tokenizer without merges finds the special tokens in a text, and leaves what lies between to spm.
        self._finder = Library(BPE())
        self._found = self._add_specials(self._finder, file, tokens, types, self._ids.get)

    def encode(self, text, parse_special):
        self._finder.encode_special_tokens = not parse_special
        found = self._finder.encode(text, add_special_tokens=False)
        ids, at = [], 0
        for token, (start, end) in zip(found.ids, found.offsets):
            self._encode_part(text[at:start], ids)
            ids.append(self._found[token])
            at = max(at, end)
        self._encode_part(text[at:], ids)
        return ids

    def _encode_part(self, text, ids):
        if text:
            text = (" " + text if self.space_prefix else text).replace(" ", spm.SPACE)
            spm.encode(text, self._ids, self._scores, self._byte_ids, ids)

    def id_of(self, token):
        return self._ids.get(token)

    def piece(self, id, skip_special):
        if id in self.hidden and skip_special:
            return b""
        text = self._tokens[id]
        if id in self.literal:
            return text.encode()
        if self._types[id] == BYTE:
            return bytes([int(text[3:5], 16)])
        return text.replace(spm.SPACE, " ").encode()


def well_formed(text: str) -> str:
    """`text` with U+FFFD for lone surrogates: undecodable bytes of an argument or of standard input have no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in text)
    return text


def byte_of_letter() -> dict[str, int]:
    """GPT-2's alphabet: bytes that print stand for themselves, the others for the letters from U+0100 on."""
    table, spare = {}, 256
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte:
            table[chr(byte)] = byte
        else:
            table[chr(spare)] = byte
            spare += 1
    return table


def _vocabulary(file) -> tuple[list[str], list[int]]:
    tokens = file.require("tokenizer.ggml.tokens", list)
    key = "tokenizer.ggml.token_type"
    types = file.require(key, list, [])
    if types and len(types) < len(tokens):
        raise FormatError(file.path, key, f"{len(types)} types", f"one for each of {len(tokens)} tokens")
    if not tokens or not isinstance(tokens[0], str):
        raise FormatError(file.path, "tokenizer.ggml.tokens", f"{tokens[:1]}", "a list of strings")
    if types and not all(isinstance(kind, int) for kind in types[:1]):
        raise FormatError(file.path, key, f"{types[:1]}", "a list of integers")
    for id, kind in enumerate(types):
        if kind == BYTE:
            text = tokens[id]
            if len(text) != 6 or not text.startswith("<0x") or text[5] != ">" or not _is_hex(text[3:5]):
                raise FormatError(file.path, f"tokenizer.ggml.tokens[{id}]", repr(text), "a byte token like <0x0A>")
    return tokens, types or [1] * len(tokens)


def _is_hex(text):
    return all(letter in "0123456789abcdefABCDEF" for letter in text)


def _ids(file, tokens):
    ids = dict(zip(tokens, range(len(tokens))))
    if len(ids) != len(tokens):
        seen = set()
        id, token = next((i, t) for i, t in enumerate(tokens) if t in seen or seen.add(t))
        where = f"tokenizer.ggml.tokens[{id}]"
        raise FormatError(file.path, where, f"{token!r} a second time", "tokens that differ", "convert the model again")
    return ids


def _id_of(file, name, n_vocab):
    """The id that `tokenizer.ggml.NAME_token_id` gives, or None; an id past the vocabulary counts as none."""
    key = f"tokenizer.ggml.{name}_token_id"
    found = file.require(key, int, -1)
    return found if 0 <= found < n_vocab else None


def _ends(id_of) -> frozenset[int]:
    ends = {token: id for token in END_OF_TEXT if (id := id_of(token)) is not None}
    if "<|end|>" in ends and (ends.keys() >= {"<|return|>", "<|call|>"} or ends.keys() >= {"<|calls|>", "<|flush|>"}):
        del ends["<|end|>"]  # gpt-oss and Solar end a part of an answer with it, not the answer
    if "<|tool_response>" in ends:
        ends.pop("</s>", None)  # Gemma 4 has it as plain text
    return frozenset(ends.values())
