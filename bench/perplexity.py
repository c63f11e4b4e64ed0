"""Perplexity and greedy text against an independent float64 Llama (`reference.py`) on the same weights and ids.

    python -m bench.perplexity --peers llama.cpp --formats q4_1,q8_0 --windows 5 --window 512

*perplexity*: windows of 512 tokens of English (CPython's language reference, `pydoc_data.topics`), every token but each
window's first is predicted: 5 x 511 = 2,555 by default. *logit deviation*: standard deviation of the error of the first
window's logits. *greedy*: ten prompts continued for 32 tokens; the reference reads the result, and where its choice
differs, the gap between the two logits is printed. Both round activations to 8 bits before a product with quantised
weights, so that two words whose logits are a few deviations apart may change places; llama.cpp, measured the same way
on the same ids, shows how often that is.
`--check` fails when tensorlib's perplexity is more than 0.5% off, or a flip's gap is more than `--gap`.
"""

import functools
import math
import sys
import tempfile
import time

import numpy

from bench import harness, models, peers
from bench.reference import Reference, flips, perplexity

TARGET = 0.5  # percent
TIE = 0.45  # 3 x sqrt(2) x 0.107: llama.cpp's deviation here; two logits' difference deviates sqrt(2) times as much
PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time there was a little girl who",
    "def fibonacci(n):\n",
    "The three primary colours are",
    "In 1969, the first human being to walk on the Moon was",
    "To make a cup of tea, first",
    "The opposite of hot is",
    "Python is a programming language that",
    "Dear Sir or Madam,\n\nI am writing to",
)


def cut(ids, width, count):
    """`count` windows of `width` ids, one after the other."""
    windows = [ids[i * width : (i + 1) * width] for i in range(count)]
    if len(windows[-1]) < width:
        raise SystemExit(f"the text has only {len(ids)} tokens")
    return windows


def tokenize(path, options, text):
    """The ids of a text, by tensorlib's tokenizer, or by llama.cpp's when tensorlib is left out."""
    if not options.without_tensorlib:
        from tensorlib.io import gguf
        from tensorlib.io.tokenizer import Tokenizer

        return list(Tokenizer.from_gguf(gguf.open(path)).encode(text, add_special=False))
    job = {"task": "tokenize", "model": path, "text": text, "threads": 1}
    return harness.work(peers.LLAMA, job, harness.overrides(options))["ids"]


class Ours:
    """tensorlib on one file: `perplexity`, `logits` of the first window, `greedy` continuations, `version`."""

    name = "tensorlib"

    def __init__(self, path, windows, options):
        from zoo.generate import load
        from zoo.perplexity import measure

        self.model = load(path, threads=harness.numbers(options.threads)[-1])
        self.perplexity, self.logits = measure(self.model, windows).value, self.model.logits(windows[0])

    def greedy(self, prompts):
        """32 greedy ids after each prompt, past any end of text."""
        from zoo.generate import SamplerConfig

        return [list(self.model.generate(ids, 32, SamplerConfig(temperature=0.0), frozenset())) for ids in prompts]


class Theirs:
    """The same of llama.cpp."""

    name = "llama.cpp"

    def __init__(self, path, windows, options):
        self.own = harness.overrides(options)
        self.job = {"model": path, "threads": harness.numbers(options.threads)[-1]}
        with tempfile.TemporaryDirectory() as folder:
            job = {**self.job, "task": "nll", "windows": windows, "save": f"{folder}/logits.npy"}
            answer = harness.work(peers.LLAMA, job, self.own)
            self.logits = numpy.load(job["save"])
        self.perplexity = math.exp(answer["nll"] / answer["count"])

    def greedy(self, prompts):
        """32 greedy ids after each prompt, past any end of text."""
        return harness.work(peers.LLAMA, {**self.job, "task": "greedy", "prompts": prompts, "tokens": 32}, self.own)[
            "out"
        ]


def spread(logits, true):
    """Standard deviation of the logits' error, each row's mean (which changes no probability) taken off."""
    error = logits - true
    return float((error - error.mean(-1, keepdims=True)).std())


def measure(kind, path, options):
    """[(who, perplexity, deviation of logits, flips by prompt)] on one file; the reference's own line first."""
    tokens = functools.partial(tokenize, path, options)
    windows = cut(tokens(models.text()), options.window, options.windows)
    prompts = [tokens(text) for text in PROMPTS]
    begun, reference = time.perf_counter(), Reference(path)
    true, found = reference.logits(windows[0]), [("reference", perplexity(reference.logits, windows), 0.0, None)]
    print(f"{kind}: reference took {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    others = [] if options.without_tensorlib else [Ours]
    for make in others + [Theirs] * ("llama.cpp" in options.peers):
        run = make(path, windows, options)
        pairs = zip(prompts, run.greedy(prompts), strict=True)
        flipped = [flips(reference.logits, *pair) for pair in pairs]
        found.append((run.name, run.perplexity, spread(run.logits, true), flipped))
    return found


def tell(kind, name, flipped):
    """Print what became of the ten prompts; the largest gap at a first flip."""
    firsts = [(text, *each[0]) for text, each in zip(PROMPTS, flipped, strict=True) if each]
    count, same = len(PROMPTS), len(PROMPTS) - len(firsts)
    print(f"{kind}, {name}: {same} of {count} greedy continuations of 32 tokens are the reference's, token for token")
    for text, step, chosen, best, gap in firsts:
        print(f"  {text!r} flips at token {step}: {chosen} for {best}, {gap:.4f} apart in the reference")
    return max((first[-1] for first in firsts), default=0.0)


def main():
    """Command line of `python -m bench.perplexity`."""
    parser = harness.parser(__doc__)
    parser.set_defaults(peers="llama.cpp", threads="2")
    parser.add_argument("--window", type=int, default=512, help="tokens in a window, at most 512")
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--gap", type=float, default=TIE, help="largest gap of logits that passes for a tie")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    options = parser.parse_args()
    host, table, written, missed = harness.machine(), [], [], False
    own = harness.overrides(options)
    for kind in options.formats.split(","):
        found = measure(kind, models.formatted(models.base(options.model), kind, own), options)
        for name, value, deviation, flipped in found:
            off = 100 * (value / found[0][1] - 1)
            gap = tell(kind, name, flipped) if flipped else 0.0
            missed |= name == "tensorlib" and (abs(off) > TARGET or gap > options.gap)
            table.append((kind, name, f"{value:.4f}", f"{off:+.3f}%", f"{deviation:.4f}", f"{gap:.4f}"))
            version = "float64" if name == "reference" else peers.version(name, peers.find(name, own))
            where = {"format": kind, "amount": options.windows * (options.window - 1)}
            written.append(harness.row(host, "perplexity", name, version, [value], "", **where))
            written.append(harness.row(host, "logit deviation", name, version, [deviation], "", **where))
    harness.headline(host)
    harness.show(["format", "by", "perplexity", "off the reference", "logit deviation", "largest gap"], table)
    harness.write(written, "perplexity", options)
    sys.exit(1 if options.check and missed else 0)


if __name__ == "__main__":
    main()
