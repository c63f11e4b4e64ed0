"""Files and tokenizers as text, and in notebooks as tables that unfold."""

from html import escape
from math import prod

from tensorlib.errors import FormatError
from tensorlib.rich import details, sized, table


def source(file):
    """What `repr` shows of an open file: its path, how much is in it."""
    tensors = file.tensors.values()
    count, parameters = len(file.tensors), sum(prod(info.shape) for info in tensors)
    size = sized(sum(info.nbytes for info in tensors))
    return f"{type(file).__name__}({str(file.path)!r}, {count:,} tensors, {parameters:,} parameters, {size})"


def source_html(file):
    """The same, and below it what unfolds: metadata, formats, tensors."""
    pairs, kinds = [(key, _value(file.metadata, key)) for key in file.metadata], {}
    for info in file.tensors.values():
        count, nbytes = kinds.get(str(info.format), (0, 0))
        kinds[str(info.format)] = count + 1, nbytes + info.nbytes
    kinds = [(name, count, sized(nbytes)) for name, (count, nbytes) in kinds.items()]
    rows = [(x.name, x.format, " \u00d7 ".join(map(str, x.shape)), sized(x.nbytes)) for x in file.tensors.values()]
    body = details(f"{len(pairs)} keys of metadata", table(("key", "value"), pairs)) if pairs else ""
    body += table(("format", "tensors", ""), kinds)
    body += details(f"{len(rows):,} tensors", table(("tensor", "format", "shape", ""), rows))
    return details(source(file), body, open=True)


def _value(metadata, key):
    try:
        kind, count = metadata.kind(key) if hasattr(metadata, "kind") else ("", None)
        return f"{count:,} \u00d7 {kind}" if count is not None and count > 8 else repr(metadata[key])
    except FormatError as error:  # arrays are decoded, and found to be damaged, when they are looked at
        return str(error)


def tokenizer(made):
    """What `repr` shows of a tokenizer: of what kind, how many tokens, which begin and end texts."""
    return f"Tokenizer({', '.join(_facts(made))})"


def tokenizer_html(made):
    """The same, and the chat template below it."""
    if made.chat_template is None:
        return f"<div>{escape(tokenizer(made))}</div>"
    return details(tokenizer(made), f"<pre>{escape(made.chat_template)}</pre>")


def _facts(made):
    yield type(made._codec).__name__
    yield f"{made.n_vocab:,} tokens"
    for name, added in (("bos", made.add_bos), ("eos", made.add_eos)):
        id = getattr(made, f"{name}_id")
        if id is not None:
            yield f"{name} {_spelling(made, id)}{' added' * bool(added)}"
    if made.eos_ids - {made.eos_id}:
        yield f"ends {' '.join(_spelling(made, id) for id in sorted(made.eos_ids))}"
    if made.chat_template is not None:
        yield "a chat template"


def _spelling(made, id):
    return repr(made.piece(id).decode("utf-8", "replace")) if 0 <= id < made.n_vocab else str(id)
