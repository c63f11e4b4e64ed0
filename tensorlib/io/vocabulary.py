"""The vocabularies of GGUF files: text to ids and ids to bytes. `tokenizer.py` is the face of this.

Ids equal llama.cpp's for the same file. Vocabularies work on the file's bytes, so that building one costs little more
than two dicts (20 ms); the tokenizers library (70 ms) is only imported where its Unicode expressions are needed.
"""

from __future__ import annotations

import contextlib
import ctypes
import re

from tensorlib.errors import FormatError
from tensorlib.io import pretokenize
from tensorlib.io.merge import merge
from tensorlib.io.normalizer import KEY, Normalizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # GGUF's token types
SPACE = "▁".encode()
LONG = 20_000  # characters from which building the library (60 ms) is faster than doing without (3 us a character)
CACHED_WORDS = 10_000

# Tokens that end what a model generates, by their spelling, as llama.cpp has them: files seldom name them all.
END_OF_TEXT = (
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|> "
    "<EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> <｜end▁of▁sentence｜> "
    "[e~[ <|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD] <|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> "
    "<|file_sep|>"
).split()
ALWAYS_SHOWN = frozenset("<|channel|> <|message|> <|start|> <|constrain|>".split())  # the frame of gpt-oss's answers


def ends(id_of) -> frozenset[int]:
    """Ids of the end-of-text tokens of a vocabulary, given a function from spelling to id (or None)."""
    found = {token: id for token in END_OF_TEXT if (id := id_of(token)) is not None}
    if "<|end|>" in found and (
        found.keys() >= {"<|return|>", "<|call|>"} or found.keys() >= {"<|calls|>", "<|flush|>"}
    ):
        del found["<|end|>"]  # gpt-oss and Solar end a part of an answer with it, not the answer
    if "<|tool_response>" in found:
        found.pop("</s>", None)  # Gemma 4 has it as plain text
    return frozenset(found.values())


class Vocabulary:
    """What all kinds share. `tokens`: the bytes of each id as the file spells it; `ids`: the reverse.

    `specials`: spelling to id of what is taken from a text as it is; `hidden`: ids that decoding leaves out; `kinds`:
    id to GGUF's token type, where that is not NORMAL.
    Subclasses: `_encode_part`, `_decode_token`.
    """

    space_prefix, starts_with_bos, ends_with_eos = False, False, False
    marks = {}  # ids of bos, eos and unk where they are not those that the file names

    def __init__(self, file):
        self.file, self.tokens = file, texts(file, "tokens")
        self.ids = dict(zip(self.tokens, range(len(self.tokens))))
        if not self.tokens or len(self.ids) != len(self.tokens):
            raise _double(file, self.tokens)
        types = numbers(file, "token_type", len(self.tokens), int) or [NORMAL] * len(self.tokens)
        kinds = {id: types[id] for id in [i for i, kind in enumerate(types) if kind != NORMAL]}
        finish = ends(self.id_of)
        shown = ALWAYS_SHOWN | {"<|end|>"} if self.id_of("<|end|>") not in finish else ALWAYS_SHOWN
        kinds |= dict.fromkeys(finish, CONTROL)
        kinds |= {id: USER_DEFINED for token in shown if (id := self.id_of(token)) is not None}
        self.kinds = kinds
        self.hidden = {id for id, kind in kinds.items() if kind in (CONTROL, UNKNOWN)}
        self._literal = self.hidden | {id for id, kind in kinds.items() if kind == USER_DEFINED}
        self.specials = {self.tokens[id].decode(): id for id in sorted(self._literal) if self.tokens[id]}
        self._bytes = {id: _byte(file, id, self.tokens[id]) for id, kind in kinds.items() if kind == BYTE}
        # Phi 3's control tokens swallow the white space after them; files do not say so, and go by their name.
        strips = any(name in file.require("general.name", str, "").lower() for name in ("phi-3", "phi3"))
        self._stripping = set(self.specials) - {"<unk>", "<s>", "<|endoftext|>"} if strips else ()

    def id_of(self, spelling: str) -> int | None:
        return self.ids.get(spelling.encode())

    def encode(self, text: str, parse_special: bool) -> list[int]:
        wanted = [s for s, id in self.specials.items() if s in text and (parse_special or id not in self.hidden)]
        out = []
        if not wanted:
            self._encode_part(text, out)
            return out
        wanted = sorted(map(re.escape, wanted), key=len, reverse=True)
        strip = False
        for i, part in enumerate(re.split(f"({'|'.join(wanted)})", text)):
            if i % 2:
                out.append(self.specials[part])
                strip = part in self._stripping
            else:
                self._encode_part(part.lstrip(" \t\n\r\f\v") if strip else part, out)
        return out

    def piece(self, id: int, skip_special: bool) -> bytes:
        """The bytes that a token stands for."""
        if id in self._literal:
            return b"" if skip_special and id in self.hidden else self.tokens[id]
        if id in self._bytes:
            return self._bytes[id]
        return self._decode_token(self.tokens[id])

    def decode(self, ids, skip_special: bool) -> str:
        text = b"".join([self.piece(id, skip_special) for id in ids])
        return (text.removeprefix(b" ") if self.space_prefix else text).decode("utf-8", "replace")


class BytePairs(Vocabulary):
    """GGUF's "gpt2": ranked merges over bytes spelt as letters, inside words cut by a pre-tokenizer.

    Short texts are cut with Python's `re` and merged here, where it can; for others the library is built, at first use.
    """

    def __init__(self, file):
        super().__init__(file)
        self._name = name = file.require(KEY + "pre", str, "default")
        if pretokenize.pieces(name) is None:
            fix = f"one of {', '.join(pretokenize.FAMILIES)} or their aliases"
            raise FormatError(file.path, KEY + "pre", repr(name), "a pre-tokenizer known here", fix)
        merges = texts(file, "merges")
        if b"\n".join(merges).count(b" ") != len(merges):
            odd = next((i for i, pair in enumerate(merges) if pair.count(b" ") != 1), 0)
            raise FormatError(file.path, f"{KEY}merges[{odd}]", repr(merges[odd]), "two tokens with a space between")
        self._ranks = dict(zip(merges, range(len(merges))))
        self.starts_with_bos = name in pretokenize.STARTS_WITH_BOS
        self._whole = name in pretokenize.IGNORE_MERGES
        self._library, self._patterns, self._words = None, None, {}
        self._letters = [letter.encode() for letter in LETTER_OF_BYTE]

    def encode(self, text, parse_special):
        if self._library is None and (len(text) > LONG or not self._cuttable(text)):
            self._library = self._build_library()
            self._ranks, self._words = None, {}  # not needed again
            with contextlib.suppress(AttributeError, OSError):
                ctypes.CDLL(None).malloc_trim(0)  # glibc keeps 11 MB that the build has freed
        return super().encode(text, parse_special)

    def _cuttable(self, text):
        return text.isascii() or (pretokenize.plain(self._name) and pretokenize.stand_in(text).isascii())

    def _encode_part(self, text, out):
        if self._library is not None:
            out.extend(self._library.encode(text, add_special_tokens=False).ids)
            return
        words = self._words
        for word in self._split(text):
            found = words.get(word)
            if found is None:
                found = self._encode_word(word)
                if len(words) < CACHED_WORDS:
                    words[word] = found
            out.extend(found)

    def _split(self, text):
        """The text's words: places to cut are found in its stand-in, expression by expression."""
        if self._patterns is None:
            self._patterns = [re.compile(pretokenize.for_ascii(e), re.ASCII) for e in pretokenize.pieces(self._name)]
        spans, shown = [(0, len(text))], pretokenize.stand_in(text)
        for pattern in self._patterns:
            cut = []
            for first, last in spans:
                # an expression sees a piece as if it were all there is: `(?!\S)` is true at its end
                piece, at = shown[first:last], 0
                for match in pattern.finditer(piece):
                    start, end = match.span()
                    if start > at:
                        cut.append((first + at, first + start))
                    if end > start:
                        cut.append((first + start, first + end))
                    at = end
                if at < len(piece):
                    cut.append((first + at, last))
            spans = cut
        return [text[first:last] for first, last in spans]

    def _encode_word(self, word):
        letters, ids, ranks = [self._letters[byte] for byte in word.encode()], self.ids, self._ranks
        if self._whole and (id := ids.get(b"".join(letters))) is not None:
            return [id]
        out = []
        for part in merge(letters, lambda a, b: ranks.get(a + b" " + b)):
            found = ids.get(part)
            if found is not None:
                out.append(found)
            else:  # a merge whose result is no token: its letters, those that are tokens
                out += [id for letter in part.decode() if (id := ids.get(letter.encode())) is not None]
        return out

    def _build_library(self):
        """The library's tokenizer for the text between special tokens."""
        from tokenizers import Tokenizer
        from tokenizers.models import BPE

        vocabulary = {token.decode(): id for token, id in self.ids.items()}
        merges = [tuple(pair.decode().split(" ")) for pair in self._ranks or texts(self.file, "merges")]
        try:
            model = BPE(vocabulary, merges, ignore_merges=self._whole)
        except Exception as error:  # the library raises plain Exceptions
            raise FormatError(self.file.path, KEY + "merges", error, "pairs of tokens of the vocabulary") from None
        library = Tokenizer(model)
        library.pre_tokenizer = pretokenize.build(self._name)
        return library

    def _decode_token(self, token):
        try:
            return bytes([BYTE_OF_LETTER[letter] for letter in token.decode()])
        except KeyError:  # not spelt in GPT-2's letters: a token that somebody added without saying so
            return token


class SentencePieces(Vocabulary):
    """GGUF's "llama": pieces with scores, "▁" for a space, UTF-8 bytes for what is no piece."""

    starts_with_bos = True

    def __init__(self, file):
        super().__init__(file)
        scores = numbers(file, "scores", len(self.tokens), (float, int))
        if not scores:
            raise FormatError(file.path, KEY + "scores", "no such key", f"one for each of {len(self.tokens)} tokens")
        self._scores = scores
        self._normal = Normalizer(file, prefix=True)
        self.space_prefix, unknown = self._normal.prefix, file.require(KEY + "unknown_token_id", int, -1)
        self._byte_ids = [self.ids.get(b"<0x%02X>" % byte, unknown) for byte in range(256)]

    def _encode_part(self, text, out):
        ids, scores, text = self.ids, self._scores, self._normal(text)
        if not text:
            return

        def rank(a, b):
            found = ids.get(a + b)
            return None if found is None else -scores[found]

        for part in merge([letter.encode() for letter in text], rank):
            found = ids.get(part)
            if found is not None:
                out.append(found)
            elif self._bytes:
                out += [id for byte in part if (id := self._byte_ids[byte]) >= 0]
            elif self._byte_ids[0] not in (-1, *out[-1:]):  # no bytes: one unknown token for all in a row
                out.append(self._byte_ids[0])

    def _decode_token(self, token):
        return token.replace(SPACE, b" ")


def _alphabet():
    """GPT-2's alphabet, by byte: those that print stand for themselves, the others for the letters from U+0100 on."""
    letters, spare = [], 256
    for byte in range(256):
        prints = 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte
        letters.append(chr(byte if prints else spare))
        spare += not prints
    return letters


LETTER_OF_BYTE = _alphabet()
BYTE_OF_LETTER = {letter: byte for byte, letter in enumerate(LETTER_OF_BYTE)}


def texts(file, name) -> list[bytes]:
    """An array of strings as bytes, known to be UTF-8."""
    found = file.metadata.strings(KEY + name)
    if found is None:
        raise FormatError(file.path, KEY + name, "no array of strings", "one")
    try:
        b"\n".join(found).decode()
    except UnicodeDecodeError:
        file.metadata[KEY + name]  # decodes one by one, and says which
    return found


def numbers(file, name, count, kind) -> list:
    """An array of numbers, one per token (what it has more is dropped), or [] where there is none."""
    found = file.require(KEY + name, list, [])
    if found and (len(found) < count or not isinstance(found[0], kind)):
        got = f"{len(found)} of type {type(found[0]).__name__}"
        raise FormatError(file.path, KEY + name, got, f"a number for each of {count} tokens")
    return found[:count]


def _byte(file, id, token) -> bytes:
    try:
        if len(token) == 6 and token.startswith(b"<0x") and token.endswith(b">"):
            return bytes.fromhex(token[3:5].decode())
    except ValueError:
        pass
    raise FormatError(file.path, f"{KEY}tokens[{id}]", repr(token), "a byte token like <0x0A>")


def _double(file, tokens):
    seen = set()
    for id, token in enumerate(tokens):
        if token in seen:
            where, got = f"{KEY}tokens[{id}]", f"{token.decode()!r} a second time"
            return FormatError(file.path, where, got, "tokens that differ", "convert the model again")
        seen.add(token)
    return FormatError(file.path, KEY + "tokens", "no tokens", "at least one")
