"""GGUF's "rwkv" vocabulary: the longest token that goes on, again and again; tokens are bytes, spelt with escapes."""

from __future__ import annotations

import re

from tensorlib.errors import FormatError
from tensorlib.io.vocabulary import KEY, Vocabulary

ESCAPE = re.compile(rb"\\(x[0-9a-f]{2}|.)", re.DOTALL)
NAMED = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}


class World(Vocabulary):
    """RWKV's, of every language: each byte is a token, so that every text has one way."""

    def __init__(self, file):
        super().__init__(file)
        self._words = {unescaped(token): id for id, token in enumerate(self.tokens) if id not in self.kinds}
        missing = next((byte for byte in range(256) if bytes([byte]) not in self._words), None)
        if missing is not None:
            raise FormatError(file.path, KEY + "tokens", f"no token for byte {missing}", "one for every byte")
        lengths: dict[bytes, set] = {}
        for word in self._words:
            lengths.setdefault(word[:2], set()).add(len(word))
        self._lengths = {start: sorted(found, reverse=True) for start, found in lengths.items()}

    def _encode_part(self, text, out):
        text, at, words, lengths = text.encode(), 0, self._words, self._lengths
        while at < len(text):
            for length in lengths.get(text[at : at + 2], ()):
                if (id := words.get(text[at : at + length])) is not None:
                    break
            else:
                length, id = 1, words[text[at : at + 1]]
            out.append(id)
            at += length

    def _decode_token(self, token):
        return unescaped(token)


def unescaped(token: bytes) -> bytes:
    r"""The bytes that Python's spelling of them means.

    >>> unescaped(rb"it's\n\xff\\")
    b"it's\n\xff\\"
    """
    if b"\\" not in token:
        return token
    return ESCAPE.sub(lambda m: bytes([int(m[1][1:], 16)]) if len(m[1]) == 3 else NAMED.get(m[1], m[1]), token)
