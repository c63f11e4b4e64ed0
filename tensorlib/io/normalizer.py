"""What SentencePiece does to a text before it is cut into pieces."""

from __future__ import annotations

import re
import struct

from tensorlib.errors import FormatError

KEY = "tokenizer.ggml."  # what the keys of vocabularies begin with in GGUF files
CHARSMAP = KEY + "precompiled_charsmap"


class Normalizer:
    """Text as SentencePiece sees it: characters replaced by a map, "▁" for spaces and, if wanted, before the text."""

    def __init__(self, file, prefix: bool):
        self.prefix = file.require(KEY + "add_space_prefix", bool, prefix)
        self._merges = file.require(KEY + "remove_extra_whitespaces", bool, False)
        values = file.require(CHARSMAP, list, [])
        self._map = CharacterMap(file.path, values) if values else None

    def __call__(self, text: str) -> str:
        text = self._map(text) if self._map else text
        text = re.sub(" +", " ", text).strip(" ") if self._merges else text
        return f"{' ' * (self.prefix and text != '')}{text}".replace(" ", "▁")


class CharacterMap:
    """The longest sequence of bytes that goes on and is in the map gives way to what the map has for it, again and
    again; all other characters stay.

    The map is a trie in one array (darts-clone's): a node holds the byte that leads to it, the offset from which its
    children lie, each at the offset xor its byte, and whether the child of byte 0 holds a value. A value is where its
    text begins in the bytes behind the array. The tokenizers library has such a map as well, but takes grapheme by
    grapheme, and leaves out accents behind what is replaced.
    """

    def __init__(self, path: str, values: list):
        self.path = path
        if not all(type(x) is int for x in values):
            raise self._error("what is no array of bytes")
        raw = bytes(x & 255 for x in values)
        size = int.from_bytes(raw[:4], "little")
        if size % 4 or not 0 < size < len(raw) - 4 or raw[-1]:
            raise self._error(f"an array of {size} bytes in {len(raw)}")
        self._nodes, self._texts = struct.unpack_from(f"<{size // 4}I", raw, 4), raw[4 + size :]

    def __call__(self, text: str) -> str:
        raw, out, at = text.encode(), bytearray(), 0
        while at < len(raw):
            end, found = self._longest(raw, at)
            if end:
                out += found
            else:
                end = at + (1 if raw[at] < 0x80 else 2 if raw[at] < 0xE0 else 3 if raw[at] < 0xF0 else 4)
                out += raw[at:end]
            at = end
        return out.decode("utf-8", "replace")

    def _longest(self, raw, at):
        """(end, text) of the longest entry of the map that `raw` has at `at`; end is 0 if there is none."""
        nodes, end, value = self._nodes, 0, 0
        try:
            place = _offset(nodes[0])
            for i in range(at, len(raw)):
                place ^= raw[i]
                node = nodes[place]
                if node & 0x800000FF != raw[i] or not raw[i]:
                    break
                place ^= _offset(node)
                if node >> 8 & 1:
                    end, value = i + 1, nodes[place] & 0x7FFFFFFF
            return end, self._texts[value : self._texts.index(0, value)] if end else b""
        except (IndexError, ValueError):
            raise self._error("a reference to what is behind its end") from None

    def _error(self, got):
        return FormatError(self.path, CHARSMAP, got, "SentencePiece's map of characters", "convert the model again")


def _offset(node: int) -> int:
    return node >> 10 << ((node & 0x200) >> 6)
