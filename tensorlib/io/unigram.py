"""GGUF's "t5" vocabulary, of T5 and XLM-RoBERTa: of all ways to cut a text into pieces, that whose scores have the
largest sum (arXiv:1804.10959, section 3.2).

The search is the tokenizers library's.
"""

from __future__ import annotations

from tensorlib.errors import FormatError
from tensorlib.io.normalizer import Normalizer
from tensorlib.io.vocabulary import KEY, NORMAL, SPACE, USER_DEFINED, Vocabulary, numbers


class Unigram(Vocabulary):
    """Pieces with the logarithms of their probabilities; what none of them has is one unknown token."""

    def __init__(self, file):
        super().__init__(file)
        self._scores = numbers(file, "scores", len(self.tokens), (float, int))
        if not self._scores:
            raise FormatError(file.path, KEY + "scores", "no such key", f"one for each of {len(self.tokens)} tokens")
        self._normal = Normalizer(file, prefix=False)
        self.space_prefix, self._model = self._normal.prefix, None
        self.ends_with_eos = file.require(KEY + "add_eos_token", bool, True)
        self.marks = {
            name: file.require(f"{KEY}{key}_token_id", int, default)
            for name, key, default in (("eos", "eos", 1), ("unk", "unknown", 2))
        }
        for name, id in self.marks.items():
            if not 0 <= id < len(self.tokens):
                raise FormatError(file.path, f"{KEY}{name}", f"token {id}", f"an id from 0 to {len(self.tokens) - 1}")

    def _encode_part(self, text, out):
        out.extend(id for id, _ in self.cut(text))

    def cut(self, text: str) -> list[tuple[int, str]]:
        """(id, spelling) of the pieces of a text without special tokens; that of an unknown one is the text's own."""
        if self._model is None:
            self._model = self._built()
        text = self._normal(text)
        return [(token.id, token.value) for token in self._model.tokenize(text)] if text else []

    def _built(self):
        """The library's model. Tokens that are no text get spellings that no text has, for "▁" stands for spaces; those
        that somebody defined are certain.
        """
        from tokenizers.models import Unigram as Model

        least = min((s for id, s in enumerate(self._scores) if id not in self.kinds), default=0.0)
        pieces = []
        for id, (token, score) in enumerate(zip(self.tokens, self._scores)):
            kind = self.kinds.get(id, NORMAL) if token else None
            scores = {NORMAL: float(score), USER_DEFINED: 0.0}
            pieces.append((token.decode(), scores[kind]) if kind in scores else (f" {id}", least))
        return Model(pieces, self.marks["unk"])

    def _decode_token(self, token):
        return token.replace(SPACE, b" ")
