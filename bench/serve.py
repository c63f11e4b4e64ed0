"""Streams served at once against llama.cpp: total tokens per second, medians, alternately. And a server under load.

    python -m bench.serve engine [--streams 1,8] [--threads 2] [--formats q8_0] [--tokens 128] [--repeats 5] [--check]
    python -m bench.serve http                         (see bench/serve_http.py)
    python -m bench.serve load --requests 10000        (see bench/serve_load.py)

Prompts of 32 to 64 tokens come at once, and each stream generates `--tokens` tokens, greedy, end of text ignored; what
counts is all streams' tokens by the seconds until the last one. Ours is zoo.engine.Engine with f16 pages, of which a
prompt fills none, so that nothing is found again; llama.cpp's is a context of as many sequences, driven through
llama-cpp-python's ctypes API as its server does (see bench/workers/llama_worker.py). HTTP is left out on both sides.
A round runs each peer once, in an order that rotates. `--check` fails when a target is missed.
"""

import importlib
import sys
from itertools import takewhile

from bench import harness, models, peers

TARGETS = {8: 1.5}  # streams -> least ratio of tensorlib's median to llama.cpp's
CONTEXT = 256  # of each stream


def prompts(ids, count):
    """`count` pieces of 32 to 64 ids, one behind the other."""
    found, at = [], 0
    for i in range(count):
        width = 32 + (i * 37 + 11) % 33
        found.append(ids[at : at + width])
        at += width
    return found


def measure(options, rows, kind, threads, count):
    """{peer: [tokens/s, ...]}, and each peer's tokens."""
    own = harness.overrides(options)
    path = models.formatted(models.base(options.model), kind, own)
    job = {"task": "tokenize", "model": path, "text": models.text(6000), "threads": threads}
    ids = harness.work(peers.TENSORLIB, job, own)["ids"]
    job |= {"task": "streams", "prompts": prompts(ids, count), "tokens": options.tokens, "context": CONTEXT}
    job["repeats"] = 1
    speed, out = {peer.name: [] for peer in rows}, {}
    for turn in range(options.repeats):
        for peer in rows[turn % len(rows) :] + rows[: turn % len(rows)]:
            answer = harness.work(peer, job, own)
            speed[peer.name] += [count * options.tokens / seconds for seconds in answer["seconds"]]
            out[peer.name] = answer["out"]
    return speed, out


def shared(out):
    """How many greedy tokens each stream has in common with the first peer's, as text."""
    first, *others = out
    found = []
    for name in others:
        pairs = [zip(a, b, strict=True) for a, b in zip(out[first], out[name], strict=True)]
        found.append(f"{name} {[sum(1 for _ in takewhile(lambda p: p[0] == p[1], pair)) for pair in pairs]}")
    return "; ".join(found)


def engine():
    """Command line of `python -m bench.serve engine`."""
    parser = harness.parser(__doc__)
    parser.set_defaults(threads="2", formats="q8_0", peers="llama.cpp")
    parser.add_argument("--streams", default="1,8", help="comma-separated")
    parser.add_argument("--tokens", type=int, default=128, help="tokens to generate, at most 192")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    options = parser.parse_args()
    host, rows, table, written, missed = harness.machine(), harness.contestants(options), [], [], []
    own = harness.overrides(options)
    versions = {peer.name: peers.version(peer.name, peers.find(peer.name, own)) for peer in rows}
    for kind in options.formats.split(","):
        for threads in harness.numbers(options.threads):
            for count in harness.numbers(options.streams):
                speed, out = measure(options, rows, kind, threads, count)
                print(f"{kind}, {count} streams: greedy tokens shared: {shared(out)}", file=sys.stderr)
                where = {"threads": threads, "format": kind, "amount": count}
                base = harness.quantiles(speed[rows[0].name])[1]
                for name, samples in speed.items():
                    low, middle, high = harness.quantiles(samples)
                    spread, ratio = f"{low:.0f} to {high:.0f}", base / middle
                    table.append((kind, threads, count, name, f"{middle:.0f}", spread, f"{ratio:.2f}x"))
                    written.append(harness.row(host, "streams", name, versions[name], samples, "tokens/s", **where))
                    if name == peers.LLAMA.name and ratio < TARGETS.get(count, 0):
                        missed.append(f"{kind}, {count} streams: {ratio:.2f}x, target {TARGETS[count]}x")
    harness.headline(host)
    harness.show(["format", "threads", "streams", "peer", "tokens/s", "p20 to p80", f"{rows[0].name} / peer"], table)
    harness.write(written, "serve", options)
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    sys.exit(1 if options.check and missed else 0)


PARTS = {
    "engine": engine,
    "http": lambda: importlib.import_module("bench.serve_http").main(),
    "load": lambda: importlib.import_module("bench.serve_load").main(),
}


def main():
    """Runs the part that the first argument names; the others are its own."""
    if len(sys.argv) < 2 or sys.argv[1] not in PARTS:
        raise SystemExit(__doc__)
    part = sys.argv.pop(1)
    PARTS[part]()


if __name__ == "__main__":
    main()
