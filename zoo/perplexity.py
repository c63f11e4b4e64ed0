"""`tensorlib perplexity`: how well a model predicts a text: e to the mean of -log p(token | those before it).

As llama.cpp's program counts it, so that figures compare: the text's tokens are cut into windows of `--context` tokens,
one behind the other (the rest that fills none is left out), each is computed on its own, with BOS for its first token
if the model wants one, and only the tokens behind its first half count, which all have half a window before them at
least. `--stride N` lets a window begin every N tokens and counts the last N of it, at most those behind its half: more
context for each, and more work. The error is the standard error of the mean, as a share of the perplexity.
"""

import math
import sys
from typing import NamedTuple

from zoo.options import at_least, model_options
from zoo.stream import add_parser

WINDOW = 512  # tokens, as llama.cpp's program
LOGITS = 1 << 24  # that are in memory at once: 64 MB


class Perplexity(NamedTuple):
    """What `measure` gives: the perplexity, its standard error, and how many tokens of how many windows count."""

    value: float
    error: float
    tokens: int
    windows: int


def windows(ids, context, stride=None, bos=None):
    """The windows of `context` ids that begin every `stride` (None: one behind the other); `bos`: their first id.

    >>> windows([5, 6, 7, 8, 9], 2), windows([5, 6, 7, 8, 9], 2, bos=1), windows([5, 6, 7], 2, stride=1)
    ([[5, 6], [7, 8]], [[1, 6], [1, 8]], [[5, 6], [6, 7]])
    """
    starts = range(0, len(ids) - context + 1, stride or context)
    return [[*([ids[i]] if bos is None else [bos]), *ids[i + 1 : i + context]] for i in starts]


def first_counted(context, stride=None):
    """The place in a window of the first token that counts.

    >>> first_counted(512), first_counted(512, 128)
    (257, 384)
    """
    return max(context // 2 + 1, context - (stride or context))


def losses(model, ids, first=1):
    """-log p of each of `ids[first:]` (floats), for a TextModel, whose cache starts anew. `first`: at least 1."""
    import tensorlib
    from zoo.generate import CHUNK

    found, size = [], max(1, min(CHUNK, LOGITS // model.config.vocab_size))
    model.rewind()
    if first > 1:
        model.prefill(ids[: first - 1])
    for i in range(first, len(ids), size):
        after, told = ids[i - 1 : i - 1 + size], ids[i : i + size]
        after = after[: len(told)]
        read = tensorlib.tensor(after, dtype="i64", device=model.device)
        logits = model.model(read, model.cache, last_only=False)
        target = tensorlib.tensor(told, dtype="i64", device=model.device)
        found += tensorlib.cross_entropy(logits, target, reduction="none").tolist()
    return found


def measure(model, parts, first=1, told=None):
    """The Perplexity of lists of ids, of each of which the tokens from place `first` on count.

    `told`: called with the Perplexity so far after each of them.
    """
    total, squares, count, so_far = 0.0, 0.0, 0, None
    for number, ids in enumerate(parts, 1):
        for loss in losses(model, ids, first):
            total, squares, count = total + loss, squares + loss * loss, count + 1
        mean = total / count
        spread = max(squares / count - mean * mean, 0.0) / (count - 1) if count > 1 else math.inf
        value = math.exp(mean) if mean < 700 else math.inf
        so_far = Perplexity(value, value * math.sqrt(spread), count, number)
        if told is not None:
            told(so_far)
    return so_far


# ---- the command -----------------------------------------------------------------------------------------------------


def add_commands(commands):
    """Add this command's parser to the command line's."""
    more = (
        f" Windows of --context tokens ({WINDOW}), of each of which the second half counts, as in llama.cpp; "
        "printed with its standard error."
    )
    parser = add_parser(commands, "perplexity", "how well a model predicts a text", more)
    parser.add_argument("file", help="the text, UTF-8; '-': standard input")
    model_options(parser)
    text = "begin a window every N tokens, and count its last N (the context)"
    parser.add_argument("--stride", type=at_least(1), metavar="N", help=text)
    parser.add_argument("--chunks", type=at_least(1), metavar="N", help="read the first N windows alone")
    parser.set_defaults(run=run_perplexity)


def run_perplexity(arguments):
    """Print a text's perplexity."""
    text = _text(arguments.file)
    from tensorlib.bar import Bar
    from tensorlib.errors import ContextError
    from zoo.generate import load

    context, stride = arguments.context, arguments.stride
    model = load(arguments.model, arguments.threads, context or WINDOW, arguments.device)
    _check(model, arguments)
    context = context or min(WINDOW, model.context_length)
    tokenizer = model.tokenizer
    ids = tokenizer.encode(text, add_special=False, parse_special=False)
    bos = tokenizer.bos_id if tokenizer.add_bos else None
    parts = windows(ids if bos is None else [bos, *ids], context, stride, bos)[: arguments.chunks]
    if not parts:
        got, fix = f"a text of {len(ids)} tokens", "give a longer text, or lower --context"
        raise ContextError("perplexity", got, f"at least one window of {context}", fix)
    with Bar("perplexity", len(parts), unit="window") as bar:

        def told(so_far):
            bar.add(1)
            bar.note(f"{so_far.value:.4f} +- {so_far.error:.4f}")

        found = measure(model, parts, first_counted(context, stride), told)
    plural = "s" * (found.windows != 1)
    print(
        f"perplexity {found.value:.4f} +- {found.error:.4f} ({found.tokens} tokens in {found.windows} "
        f"window{plural} of {context})"
    )


def _text(path):
    """The text of a file. FormatError unless it is one, in UTF-8."""
    from tensorlib.errors import FormatError

    try:
        if path == "-":
            data = sys.stdin.buffer.read() if sys.stdin is not None else b""
        else:
            with open(path, "rb") as file:
                data = file.read()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise FormatError(path, "file", error.strerror or str(error), "a file that can be read") from error
    except UnicodeDecodeError as error:
        got = f"byte {error.object[error.start]:#04x} at {error.start}"
        raise FormatError(path, "text", got, "UTF-8", "convert it, as with iconv") from error
    if not text.strip():
        raise FormatError(path, "text", "nothing", "a text of at least one window")
    return text


def _check(model, arguments):
    """ContextError for windows that are none, FormatError for a model that predicts no next token."""
    from tensorlib.errors import ContextError, FormatError

    if not hasattr(model, "cache"):
        raise FormatError(str(arguments.model), "model", type(model.model).__name__, "a model that continues a text")
    context, most = arguments.context or WINDOW, model.context_length
    if context < 3 or (arguments.context and context > most):
        expected = "at least 3" if context < 3 else f"at most {most}, the model's"
        raise ContextError("perplexity", f"windows of {context} tokens", expected, "mend --context")
    if arguments.stride and arguments.stride > min(context, most):
        raise ContextError("perplexity", f"a stride of {arguments.stride}", f"at most a window, {min(context, most)}")
