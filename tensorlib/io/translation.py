"""Marian's vocabularies: SentencePiece models of two languages cut texts into pieces, and a list of words, for both or
for each, has the pieces' ids. A text may begin with the language that is wanted, as in ">>fra<< Good morning".
"""

from __future__ import annotations

import os
import re

from tensorlib.errors import FormatError
from tensorlib.io import sentencepiece, tokenizer_json
from tensorlib.io.unigram import Unigram

SOURCE, TARGET, WORDS, TARGET_WORDS = "source.spm", "target.spm", "vocab.json", "target_vocab.json"
END, UNKNOWN, SPECIALS = "</s>", "<unk>", ("</s>", "<unk>", "<pad>")
MOST = 1 << 24  # ids


class Translated:
    """Text to ids of one language, ids to text of the other. `words`, `answers`: piece to id of each."""

    def __init__(self, pieces: Unigram, words: dict, answers: dict):
        self._pieces, self._words, self._answers = pieces, words, answers
        self.tokens = [b""] * (1 + max(answers.values()))
        for word, id in answers.items():
            self.tokens[id] = word.encode()
        self.hidden = {answers[word] for word in SPECIALS if word in answers}

    def id_of(self, spelling):
        return self._answers.get(spelling)

    def encode(self, text, parse_special):
        unknown, out = self._words[UNKNOWN], []
        parts = re.split(f"({'|'.join(map(re.escape, SPECIALS))})", text) if parse_special else [text]
        for i, part in enumerate(parts):
            if i % 2:
                out.append(self._words.get(part, unknown))
                continue
            end = part.find("<<") + 2 if part.startswith(">>") else 0
            if end > 2:
                out.append(self._words.get(part[:end], unknown))
                part = part[end:]
            out += [self._words.get(piece, unknown) for _, piece in self._pieces.cut(part)]
        return out

    def piece(self, id, skip_special):
        if id in self.hidden:
            return b"" if skip_special else self.tokens[id]
        return self.tokens[id].replace("▁".encode(), b" ")

    def decode(self, ids, skip_special):
        return b"".join(self.piece(id, skip_special) for id in ids).decode("utf-8", "replace").strip()


def load(cls, folder: str, target: bool = False):
    """Build a `Tokenizer` (given as `cls`) from a folder; `target`: for texts of the language translated to."""
    path = os.path.join(folder, TARGET if target else SOURCE)
    values = sentencepiece.read(path)
    if values[sentencepiece.MODEL] != "t5":
        raise FormatError(path, "model_type", "byte pairs", "Unigram", "this is not here yet")
    apart = tokenizer_json.config(folder, "tokenizer_config.json").get("separate_vocabs") is True
    words = _words(folder, WORDS)
    answers = _words(folder, TARGET_WORDS) if apart else words
    words = answers if target else words
    self = cls(Translated(Unigram(sentencepiece.Keys(path, values)), words, answers), path, 1 + max(answers.values()))
    self.eos_id, self.unk_id, self.add_eos = words[END], words[UNKNOWN], True
    self.eos_ids = frozenset({answers[END]})
    return self


def _words(folder, name):
    words, path = tokenizer_json.config(folder, name), os.path.join(folder, name)
    if not {END, UNKNOWN} <= words.keys() or not all(type(id) is int and 0 <= id < MOST for id in words.values()):
        raise FormatError(path, "file", f"{len(words)} words", f"ids of words, {END} and {UNKNOWN} among them")
    return words
