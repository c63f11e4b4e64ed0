"""The tokenizers library's tokenizer of a folder without a `tokenizer.json`, as models were published before there was
one: `vocab.json` with `merges.txt` (byte pairs: GPT-2, RoBERTa, Qwen2), or BERT's `vocab.txt`.

Ids equal those of transformers' class that the folder names; so do the tokens that files beside them add.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from tensorlib.errors import FormatError
from tensorlib.io import pretokenize, tokenizer_json

PAIRS, LIST = ("vocab.json", "merges.txt"), ("vocab.txt",)
MARKS = "bos eos unk sep pad cls mask".split()  # in the order in which transformers adds them
END = "<|endoftext|>"
GPT2 = {"bos": END, "eos": END, "unk": END}
ROBERTA = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"}
BERT_MARKS = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}


class Kind(NamedTuple):
    """A class of transformers: its files, the types of models that have it, its special tokens, what is around texts,
    whether Unicode is composed first (NFC), and how texts are cut (a name of pretokenize.py).
    """

    files: tuple
    types: tuple
    marks: dict
    frame: str = ""
    composed: bool = False
    words: str = "gpt-2"


KINDS = {
    "GPT2Tokenizer": Kind(PAIRS, ("gpt2", "gpt_bigcode", "starcoder2", "phi"), GPT2),
    "CodeGenTokenizer": Kind(PAIRS, (), GPT2),
    "GPTNeoXTokenizer": Kind(PAIRS, ("gpt_neox", "mpt", "olmo", "mamba"), GPT2 | {"pad": "<|padding|>"}, "", True),
    "Qwen2Tokenizer": Kind(PAIRS, ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), {"eos": END, "unk": END, "pad": END},
                           "", True, "qwen2"),
    "RobertaTokenizer": Kind(PAIRS, ("roberta",), ROBERTA, "roberta"),
    "BertTokenizer": Kind(LIST, ("bert", "nomic_bert"), BERT_MARKS, "bert"),
    "DistilBertTokenizer": Kind(LIST, ("distilbert",), BERT_MARKS, "bert"),
}  # fmt: skip


def load(cls, folder: str):
    """A `Tokenizer` (given as `cls`), or None where the folder has neither set of files. FormatError."""
    there = [files for files in (PAIRS, LIST) if all(os.path.isfile(os.path.join(folder, name)) for name in files)]
    if not there:
        return None
    path = os.path.join(folder, there[0][0])
    told = tokenizer_json.config(folder, "tokenizer_config.json")
    kind = _kind(folder, path, told, there[0])
    if not isinstance(told.get("added_tokens_decoder"), dict):
        told |= tokenizer_json.config(folder, "special_tokens_map.json")
    told = {**{f"{mark}_token": token for mark, token in kind.marks.items()}, **told}
    with tokenizer_json.refused(path, f"{' and '.join(kind.files)} that fit each other"):
        library = (_pieces if kind.files == LIST else _pairs)(folder, kind, told)
        missing = [spelt for mark in ("cls", "sep", "unk") if (spelt := tokenizer_json.spelling(told, f"{mark}_token"))
                   and kind.frame and library.token_to_id(spelt) is None]  # fmt: skip
        if missing:
            raise ValueError(f"no {', '.join(missing)} among its tokens")
        _add(library, _added(folder, told))
        _frame(library, kind, told)
    return tokenizer_json.load(cls, path, library, told)


def _kind(folder, path, told, files):
    """The row of what `tokenizer_class` says, or of the type of the model."""
    config = tokenizer_json.config(folder, "config.json")
    name, type = told.get("tokenizer_class") or config.get("tokenizer_class"), config.get("model_type")
    found = KINDS.get(str(name).removesuffix("Fast"))
    if name is None:
        found = next((kind for kind in KINDS.values() if type in kind.types), None)
        if found is None and files == LIST and type is None:
            found = KINDS["BertTokenizer"]  # nothing else has such a file
    if found is None or found.files != files:
        known = ", ".join(name for name, kind in KINDS.items() if kind.files == files)
        got = f"{name!r:.60}, of a model {type!r:.60}"
        raise FormatError(path, "tokenizer_class", got, f"one of {known}", "fetch a tokenizer.json: ids go otherwise")
    return found


def _pairs(folder, kind, told):
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    library = Tokenizer(BPE.from_file(*(os.path.join(folder, name) for name in PAIRS)))
    space = told.get("add_prefix_space") or False
    if kind.composed:
        library.normalizer = normalizers.NFC()
    words = pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=kind.words == "gpt-2")
    if kind.words != "gpt-2":
        cuts = [pre_tokenizers.Split(Regex(e), "isolated") for e in pretokenize.pieces(kind.words)]
        words = pre_tokenizers.Sequence([*cuts, words])
    library.pre_tokenizer, library.decoder = words, decoders.ByteLevel()
    return library


def _pieces(folder, kind, told):
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import WordPiece

    unknown = tokenizer_json.spelling(told, "unk_token")
    library = Tokenizer(WordPiece.from_file(os.path.join(folder, LIST[0]), unk_token=unknown))
    library.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=told.get("tokenize_chinese_chars", True),
        strip_accents=told.get("strip_accents"),
        lowercase=told.get("do_lower_case", True),
    )
    library.pre_tokenizer, library.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return library


def _added(folder, told):
    """[(id or None, the library's AddedToken)] of what files add: by their ids, then what has a name, then others."""
    rows = told.get("added_tokens_decoder")
    extra = told.get("extra_special_tokens") or told.get("additional_special_tokens") or []
    extra = list(extra.values() if isinstance(extra, dict) else extra)
    names = [f"{mark}_token" for mark in MARKS]
    names += [name for name in told if name.endswith("_token") and name not in names]
    named = [told[name] for name in names if isinstance(told.get(name), (str, dict))] + extra
    special = {_spelt(row) for row in named}
    if isinstance(rows, dict):
        found = sorted((int(id), _token(row, _spelt(row) in special)) for id, row in rows.items())
    else:
        ids = tokenizer_json.config(folder, "added_tokens.json")
        plain = {"normalized": True}
        found = [(id, _token({"content": token, **({} if token in special else plain)}, token in special))
                 for token, id in sorted(ids.items(), key=lambda row: row[1])]  # fmt: skip
    there = {token.content for _, token in found}
    for row in named:
        if _spelt(row) not in there:
            found.append((None, _token(row, True)))
            there.add(_spelt(row))
    return found


def _spelt(row):
    return row.get("content") if isinstance(row, dict) else row


def _token(row, special):
    """The library's token for a text, or for what tokenizer_config.json and its neighbours say of one."""
    from tokenizers import AddedToken

    said = dict(row) if isinstance(row, dict) else {"content": row}
    flags = {name: said[name] for name in ("single_word", "lstrip", "rstrip", "normalized") if name in said}
    return AddedToken(said["content"], special=special or said.get("special") is True, **flags)


def _add(library, tokens):
    for id, token in tokens:
        library.add_tokens([token])
        got = library.token_to_id(token.content)
        if id not in (None, got):
            raise ValueError(f"{token.content!r} is said to be {id}, but is the token {got}")


def _frame(library, kind, told):
    """What goes before and behind texts."""
    from tokenizers import processors

    spelt = {mark: tokenizer_json.spelling(told, f"{mark}_token") for mark in MARKS}
    ids = {mark: (token, library.token_to_id(token)) for mark, token in spelt.items() if token}
    if kind.frame == "roberta":
        space = told.get("add_prefix_space") or False
        made = processors.RobertaProcessing(ids["sep"], ids["cls"], told.get("trim_offsets", True), space)
    elif kind.frame == "bert":
        one, two = "{cls} $A {sep}", "{cls} $A {sep} $B:1 {sep}:1"
        made = processors.TemplateProcessing(one.format(**spelt), two.format(**spelt), [ids["cls"], ids["sep"]])
    else:
        first, last = (
            [spelt[mark]] if told.get(f"add_{mark}_token") and spelt[mark] else [] for mark in ("bos", "eos")
        )
        one = [*first, "$A", *last]
        two = [*one, *(f"{token}:1" for token in first), "$B:1", *(f"{token}:1" for token in last)]
        made = processors.TemplateProcessing(one, two, [ids[mark] for mark in ("bos", "eos") if mark in ids])
    library.post_processor = made
