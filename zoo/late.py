"""Late interaction: a vector for every token (ColBERT, arXiv:2004.12832), as sentence-transformers 6 and PyLate say.

Queries and documents differ (section 3.2): each has a prompt and a length of its own, queries are filled up with masks,
and of documents some words, such as punctuation, have no vector.
"""

import string
from typing import NamedTuple

from tensorlib.errors import FormatError
from zoo.pipeline import modules, settings
from zoo.pooling import read_json

QUERY, DOCUMENT = "query", "document"
# PyLate's own settings, of which any says that a folder is PyLate's
PYLATE = "query_prefix document_prefix query_length document_length do_query_expansion skiplist_words".split()
PYLATE += ["attend_to_expansion_tokens"]
FILLED = 32  # tokens of a query, where PyLate's files say nothing


class Late(NamedTuple):
    """`prompts`, `lengths`: a text, the most tokens or None, by what is read; `filled`: to how many tokens queries are
    filled up, or 0, with the token `fill` (None: the mask); `exact`: whether they are cut there; `attend`: whether
    other tokens see those; `skipped`: the words without a vector in what `skips` names.
    """

    prompts: dict
    lengths: dict
    filled: int = 0
    fill: str | None = None
    exact: bool = True
    attend: bool = False
    skipped: tuple = ()
    skips: tuple = (DOCUMENT,)

    @classmethod
    def of(cls, folder, tokenizer):
        """What the files of a folder say; PyLate's prompts become tokens of the `tokenizer`. FormatError."""
        said, own = settings(folder), read_json(folder, "config_sentence_transformers.json") or {}
        if any(name in own for name in PYLATE):
            return cls._of_pylate(own, tokenizer)
        found, expansion = {}, said.get("query_expansion")
        if expansion:
            values = expansion if isinstance(expansion, dict) else {}
            strategy, length = values.get("strategy"), values.get("length")
            if strategy not in ("fixed", "min") or type(length) is not int:
                expected = "a strategy, fixed or min, and a length"
                raise FormatError(folder, "query_expansion", repr(expansion)[:80], expected, "this is not here yet")
            found = {"filled": length, "fill": values.get("token"), "exact": strategy == "fixed"}
            found["attend"] = values.get("attend") is True
        for place, kind in modules(folder):
            if kind == "MultiVectorMask":
                mask = read_json(place, "config.json") or {}
                if mask.get("keep_only_token_ids"):
                    raise FormatError(place, "keep_only_token_ids", "a list", "null", "this is not here yet")
                found["skipped"] = tuple(mask.get("skiplist_words") or ())
                found["skips"] = tuple(mask.get("skiplist_tasks") or (DOCUMENT,))
        prompts = own.get("prompts") or {}
        return cls({name: prompts.get(name) or "" for name in (QUERY, DOCUMENT)}, _lengths(said), **found)

    @classmethod
    def _of_pylate(cls, own, tokenizer):
        prompts, lengths, saved = {}, _lengths(own), own.get("prompts") or {}
        for name in (QUERY, DOCUMENT):
            first = own.get(f"{name}_prefix") or ""
            prompts[name] = first + (saved.get(name) or "").removeprefix(first)
            known = [token for token in (first, first.strip()) if token and tokenizer.id_of(token) is not None]
            if known and tokenizer.encode(known[0], add_special=False) != [tokenizer.id_of(known[0])]:
                tokenizer.special(known[0])
        words = own.get("skiplist_words")
        words = tuple(string.punctuation if words is None else words) if own.get("model_type") == "ColBERT" else ()
        filled = 0 if own.get("do_query_expansion") is False else lengths[QUERY] or FILLED
        attend = own.get("attend_to_expansion_tokens") is True
        return cls(prompts, lengths, filled, attend=attend, skipped=words)

    def ids(self, tokenizer, text, task, longest, most):
        """(ids, how many of them others see, which have a vector) of a text that is read as `task`.

        `longest`: tokens where nothing is said of the task; `most`: those that the model can take.
        """
        length = self.lengths[task]
        filled = min(self.filled, most) if task == QUERY else 0
        if filled:
            length = filled if self.exact else max(length or longest, filled)
        tokenizer.limit(min(length or longest, most))
        ids = tokenizer.encode(self.prompts[task] + text)
        tokenizer.limit(longest)
        seen = len(ids)
        ids = ids + [self._fill(tokenizer)] * (filled - seen)
        skipped = {tokenizer.id_of(word) for word in self.skipped} if task in self.skips else ()
        return ids, len(ids) if self.attend else seen, [i for i, id in enumerate(ids) if id not in skipped]

    def _fill(self, tokenizer):
        names = [self.fill] if self.fill else ["[MASK]", "<mask>"]
        return next((id for name in names if (id := tokenizer.id_of(name)) is not None), tokenizer.eos_id)


def _lengths(said):
    return {name: said.get(f"{name}_length") for name in (QUERY, DOCUMENT)}
