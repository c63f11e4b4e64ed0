"""Perplexity and greedy text against an independent float64 Llama (`reference.py`) on the same weights and ids.

    python -m bench.perplexity --peers llama.cpp --formats q4_1,q8_0 --windows 5 --window 512

*perplexity*: windows of 512 tokens of English (CPython's language reference, `pydoc_data.topics`), every token but each
window's first is predicted: 5 x 511 = 2,555 by default. llama.cpp's figure on the same ids stands beside it to show
what its own rounding of activations costs. *greedy*: ten prompts continued by tensorlib for 32 tokens; the reference
reads the result, and where its choice differs, the gap between the two logits is printed.
`--check` fails when tensorlib's perplexity is more than 0.5% off, or a flip's gap is more than `--gap`.
"""

import sys
import time

from bench import harness, models, peers
from bench.reference import Reference, flips, perplexity

TARGET = 0.5  # percent
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


def tokenize(path, options):
    """The ids of the English text, by tensorlib's tokenizer, or by llama.cpp's when tensorlib is left out."""
    if not options.without_tensorlib:
        from tensorlib.io import gguf
        from tensorlib.io.tokenizer import Tokenizer

        return list(Tokenizer.from_gguf(gguf.open(path)).encode(models.text(), add_special=False))
    job = {"task": "tokenize", "model": path, "text": models.text(), "threads": 1}
    return harness.work(peers.LLAMA, job, harness.overrides(options))["ids"]


def continuations(model):
    """[(prompt ids, 32 greedy ids)] of the ten prompts."""
    from zoo.generate import SamplerConfig

    prompts = [list(model.tokenizer.encode(text)) for text in PROMPTS]
    return [(ids, list(model.generate(ids, 32, SamplerConfig(temperature=0.0), frozenset()))) for ids in prompts]


def measure(kind, path, options):
    """{who: perplexity} on one file, and the flips of the ten prompts as [(prompt, flips)] (None without tensorlib)."""
    windows = cut(tokenize(path, options), options.window, options.windows)
    reference, begun = Reference(path), time.perf_counter()
    found, flipped = {"reference": perplexity(reference.logits, windows)}, None
    print(f"{kind}: reference took {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    threads = harness.numbers(options.threads)[-1]
    if "llama.cpp" in options.peers:
        job = {"task": "nll", "model": path, "windows": windows, "threads": threads}
        answer = harness.work(peers.LLAMA, job, harness.overrides(options))
        found["llama.cpp"] = 2.718281828459045 ** (answer["nll"] / answer["count"])
    if not options.without_tensorlib:
        from zoo.generate import load

        model = load(path, threads=threads)
        found["tensorlib"] = perplexity(model.logits, windows)
        flipped = [
            (text, flips(reference.logits, *pair)) for text, pair in zip(PROMPTS, continuations(model), strict=True)
        ]
    return found, flipped


def tell(kind, flipped):
    """Print what became of the ten prompts; the largest gap at a first flip."""
    largest = 0.0
    same = sum(not each for _, each in flipped)
    print(f"{kind}: {same} of {len(flipped)} greedy continuations of 32 tokens are the reference's, token for token")
    for text, each in flipped:
        for step, chosen, best, gap in each[:1]:
            largest = max(largest, gap)
            print(f"  {text!r} flips at token {step}: {chosen} for {best}, {gap:.4f} apart in the reference")
    return largest


def main():
    """Command line of `python -m bench.perplexity`."""
    parser = harness.parser(__doc__)
    parser.set_defaults(peers="llama.cpp", threads="2")
    parser.add_argument("--window", type=int, default=512, help="tokens in a window, at most 512")
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--gap", type=float, default=0.25, help="largest gap of logits that passes for a tie")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    options = parser.parse_args()
    host, table, written, missed = harness.machine(), [], [], False
    own = harness.overrides(options)
    for kind in options.formats.split(","):
        path = models.formatted(models.base(options.model), kind, own)
        found, flipped = measure(kind, path, options)
        for name, value in found.items():
            off = 100 * (value / found["reference"] - 1)
            missed |= name == "tensorlib" and abs(off) > TARGET
            table.append((kind, name, f"{value:.4f}", f"{off:+.3f}%"))
            version = "float64" if name == "reference" else peers.version(name, peers.find(name, own))
            where = {"format": kind, "amount": options.windows * (options.window - 1)}
            written.append(harness.row(host, "perplexity", name, version, [value], "", **where))
        if flipped:
            missed |= tell(kind, flipped) > options.gap
    harness.headline(host)
    harness.show(["format", "by", "perplexity", "off the reference"], table)
    harness.write(written, "perplexity", options)
    sys.exit(1 if options.check and missed else 0)


if __name__ == "__main__":
    main()
