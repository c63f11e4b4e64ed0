"""A Tokenizer from a model's folder, by the files that are there: `tokenizer.json`, SentencePiece's files, Marian's two
with a list of words, `vocab.json` with `merges.txt`, the lists of BERT, RWKV and llama2.c.
"""

from __future__ import annotations

import ast
import os

from tensorlib.errors import FormatError
from tensorlib.io import sentencepiece, tokenizer_json, translation, vocab_files
from tensorlib.io.vocabulary import CONTROL, KEY, NORMAL, UNKNOWN, USER_DEFINED

# SentencePiece's file -> the tokens that begin and end texts, where the folder says nothing else
PIECES = {
    "tokenizer.model": ("<s>", None),  # Llama's, Mistral's
    "spiece.model": (None, "</s>"),  # T5's
    "spm.model": ("[CLS]", "[SEP]"),  # DeBERTa's
    "sentencepiece.bpe.model": ("<s>", "</s>"),  # XLM-RoBERTa's
}
WORLD, LLAMA2_C = "rwkv_vocab_v20230424.txt", "tokenizer.bin"
MORE = 1 << 17  # ids that a folder may add to a model's


def load(cls, folder: str, target: bool = False):
    """Build a `Tokenizer` (given as `cls`) from a folder; `target`: of the language that Marian translates to."""
    path = os.path.join(folder, "tokenizer.json")
    if os.path.isfile(path):
        return tokenizer_json.load(cls, path)
    if os.path.isfile(os.path.join(folder, translation.SOURCE)):
        return translation.load(cls, folder, target)
    for name in PIECES:
        if os.path.isfile(os.path.join(folder, name)):
            return _pieces(cls, folder, name)
    for name, reader in LISTS.items():
        if os.path.isfile(other := os.path.join(folder, name)):
            self = cls.from_gguf(sentencepiece.Keys(other, reader(other)))
            tokenizer_json.beside(self, folder, tokenizer_json.config(folder, "tokenizer_config.json"))
            return self
    if (found := vocab_files.load(cls, folder)) is not None:
        return found
    pairs = " with ".join(vocab_files.PAIRS)
    known = ", ".join(["tokenizer.json", translation.SOURCE, *PIECES, *LISTS, pairs, *vocab_files.LIST])
    raise FormatError(path, "file", "no such file", f"one of {known}", "fetch the tokenizer's files, too")


def _pieces(cls, folder, name):
    path, config = os.path.join(folder, name), tokenizer_json.config(folder, "tokenizer_config.json")
    values = sentencepiece.read(path)
    if name == "sentencepiece.bpe.model":
        _as_fairseq(folder, values)
    sentencepiece.add(values, _added(folder, config, values))
    ids = {token: id for id, token in enumerate(values[KEY + "tokens"])}
    for mark, key, default in zip(("bos", "eos", "unk"), ("bos", "eos", "unknown"), (*PIECES[name], None)):
        spelling = tokenizer_json.spelling(config, f"{mark}_token") or default
        if spelling and (id := ids.get(spelling.encode())) is not None:
            values[f"{KEY}{key}_token_id"] = id
        if mark != "unk":
            said = config.get(f"add_{mark}_token")
            values[f"{KEY}add_{mark}_token"] = said if type(said) is bool else default is not None
    self = cls.from_gguf(sentencepiece.Keys(path, values))
    tokenizer_json.beside(self, folder, config)
    return self


def _added(folder, config, values):
    """Id to (spelling, type) of what the files beside a model add to it."""
    known, found = values[KEY + "tokens"], {}
    rows = _implied(folder, config, known)
    rows |= {id: (token, False) for token, id in tokenizer_json.config(folder, "added_tokens.json").items()}
    decoder = config.get("added_tokens_decoder")
    for id, row in decoder.items() if isinstance(decoder, dict) else ():
        row = row if isinstance(row, dict) else {}
        rows[int(id) if id.isdecimal() else -1] = row.get("content"), row.get("special") is True
    for id, (token, special) in rows.items():
        if type(id) is not int or not 0 <= id < len(known) + MORE or type(token) is not str:
            got = f"{token!r:.60} with the id {id!r:.60}"
            raise FormatError(folder, "added tokens", got, f"texts with ids below {len(known) + MORE}")
        if id >= len(known) or values[KEY + "token_type"][id] == NORMAL:
            found[id] = token, CONTROL if special else USER_DEFINED
    return found


def _implied(folder, config, known):
    """Id to (spelling, whether special) of what transformers' classes add to a model though no file says so: DeBERTa's
    mask, and T5's marks of gaps, the first the last.
    """
    if os.path.isfile(os.path.join(folder, "spm.model")):
        for name in ("do_lower_case", "split_by_punct"):
            if config.get(name) is True:
                raise FormatError(folder, name, "true", "false", "fetch a tokenizer.json: this is not here yet")
        return {} if b"[MASK]" in known else {len(known): ("[MASK]", True)}
    model = tokenizer_json.config(folder, "config.json").get("model_type")
    t5 = (config.get("tokenizer_class") or model) in ("T5Tokenizer", "T5TokenizerFast", "t5")
    count = config.get("extra_ids", 100 if t5 else 0)
    count = count if type(count) is int and 0 <= count < MORE and b"<extra_id_0>" not in known else 0
    return {len(known) + count - 1 - i: (f"<extra_id_{i}>", True) for i in range(count)}


def _as_fairseq(folder, values):
    """XLM-RoBERTa's ids: four tokens of its own, the pieces without three of theirs, a mask at the end."""
    kind = tokenizer_json.config(folder, "config.json").get("model_type", "xlm-roberta")
    if kind not in ("xlm-roberta", "xlm-roberta-xl"):
        raise FormatError(folder, "model_type", repr(kind), "xlm-roberta", "fetch a tokenizer.json: ids go otherwise")
    own = [(b"<s>", 0.0, CONTROL), (b"<pad>", 0.0, CONTROL), (b"</s>", 0.0, CONTROL), (b"<unk>", 0.0, UNKNOWN)]
    names = [KEY + name for name in ("tokens", "scores", "token_type")]
    rows = [*own, *list(zip(*(values[name] for name in names)))[3:], (b"<mask>", 0.0, CONTROL)]
    values |= {name: list(column) for name, column in zip(names, zip(*rows))}
    values |= {f"{KEY}{mark}_token_id": id for mark, id in zip(("bos", "padding", "eos", "unknown"), range(4))}


def _world(path):
    """GGUF's keys for RWKV's list: a line for each id from 1 on, with Python's spelling of a text or of bytes."""
    tokens = [b"<s>"]
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                number, _, rest = line.partition(" ")
                word = ast.literal_eval(rest.rpartition(" ")[0])
                word = word.encode() if isinstance(word, str) else word
                if int(number) != len(tokens):
                    raise ValueError(f"the id {number} for {len(tokens)}")
                tokens.append(repr(word)[2:-1].encode())
    except (OSError, ValueError, SyntaxError, AttributeError, RecursionError, MemoryError) as error:
        where, got = f"line {len(tokens)}", f"{type(error).__name__}: {str(error)[:200]}"
        raise FormatError(path, where, got, "an id, a token and its length") from None
    types = [CONTROL] + [NORMAL] * (len(tokens) - 1)
    return {KEY + "model": "rwkv", KEY + "tokens": tokens, KEY + "token_type": types, KEY + "eos_token_id": 0}


LISTS = {WORLD: _world, LLAMA2_C: sentencepiece.read_bin}  # file -> what gives GGUF's keys for it
