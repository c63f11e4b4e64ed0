"""GGUF's "bert" vocabulary: the longest pieces that words begin with, one after the other (arXiv:1609.08144, section 4;
BERT's, where pieces inside words are marked, in GGUF those that begin one, with "▁").
"""

from tensorlib.errors import FormatError
from tensorlib.io.vocabulary import KEY, SPACE, Vocabulary

LONGEST = 1 << 30  # characters of a word that is looked at; llama.cpp has no limit


class WordPieces(Vocabulary):
    """Ids equal llama.cpp's, texts with [CLS] before and [SEP] behind them."""

    space_prefix = starts_with_bos = ends_with_eos = True

    def __init__(self, file):
        super().__init__(file)
        last = len(self.tokens) - 1
        bos, unknown = file.require(KEY + "bos_token_id", int, 101), file.require(KEY + "unknown_token_id", int, 100)
        eos = file.require(KEY + "seperator_token_id", int, file.require(KEY + "eos_token_id", int, 102))
        self.marks = {"bos": bos, "eos": eos, "unk": unknown}
        for name, id in self.marks.items():
            if not 0 <= id <= last:
                raise FormatError(file.path, f"{KEY}{name}", f"token {id}", f"an id from 0 to {last}")
        self._library = None

    def _encode_part(self, text, out):
        if self._library is None:
            self._library = self._built()
        out.extend(self._library.encode(text, add_special_tokens=False).ids)

    def _built(self):
        """The library's tokenizer for the text between special tokens."""
        from tokenizers import Tokenizer, normalizers, pre_tokenizers
        from tokenizers.models import WordPiece

        words, kept = {}, self._literal | {self.marks["unk"]}
        for id, token in enumerate(self.tokens):
            begins = token.startswith(SPACE)
            token = (
                token
                if id in kept or token[:1] + token[-1:] == b"[]"
                else token.removeprefix(SPACE)
                if begins
                else b"##" + token
            )
            words.setdefault(token.decode(), id)
        unknown = self.tokens[self.marks["unk"]].decode()
        library = Tokenizer(WordPiece(words, unk_token=unknown, max_input_chars_per_word=LONGEST))
        lower = self.file.require(KEY + "normalizer.lowercase", bool, True)
        accents = self.file.require(KEY + "normalizer.strip_accents", bool, lower)
        library.normalizer = normalizers.BertNormalizer(lowercase=lower, strip_accents=accents)
        library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return library

    def _decode_token(self, token):
        return token.replace(SPACE, b" ")
