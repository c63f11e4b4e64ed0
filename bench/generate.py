"""Prompt and generation speed in tokens per second: peers x threads x formats, medians, and tensorlib's ratio to each.

    python -m bench.generate --peers llama.cpp,mistral.rs --threads 1,2 --formats q4_1,q8_0 --prompt 512 --tokens 128

Every peer runs in its own process and alone, on as many cores as it has threads; a round runs each peer once, in an
order that rotates, so that a slow minute of the machine hits them all. Each process loads the model, warms up with a
prompt of 32 tokens and 4 more, and is then measured once. How each peer is timed stands in its worker's docstring.
All get the same tokens: the program stops if their tokenizers disagree. `--check` fails when a target is missed.
"""

import sys

from bench import harness, models, peers

# (measure, peer, format or "" for any, least ratio of tensorlib's median to the peer's)
TARGETS = (
    ("prompt", "llama.cpp", "q4_1", 4.0),
    ("prompt", "llama.cpp", "q8_0", 2.5),
    ("generate", "llama.cpp", "", 1.4),
    ("prompt", "mistral.rs", "", 1.0),
    ("generate", "mistral.rs", "", 1.0),
)
MEASURES = ("prompt", "generate")


def measure(options, rows, kind, threads):
    """{peer: {measure: [tokens/s, ...]}} of one format and number of threads; also the greedy tokens of each peer."""
    own = harness.overrides(options)
    path = models.formatted(models.base(options.model), kind, own)
    job = {"task": "generate", "model": path, "text": models.text(8 * options.prompt), "threads": threads}
    job |= {"prompt": options.prompt, "tokens": options.tokens, "repeats": 1}
    speed = {peer.name: {name: [] for name in MEASURES} for peer in rows}
    out, ids = {}, {}
    for turn in range(options.repeats):
        for peer in rows[turn % len(rows) :] + rows[: turn % len(rows)]:
            answer = harness.work(peer, job, own)
            for name in MEASURES:
                speed[peer.name][name] += [count / seconds for count, seconds in answer[name]]
            out[peer.name], ids[peer.name] = answer["out"], answer["ids"]
    if len({tuple(each) for each in ids.values()}) > 1:
        raise SystemExit("the peers' tokenizers disagree about the prompt; the figures would not compare")
    return speed, out


def agreement(out):
    """How many greedy tokens each peer has in common with the first one, as text."""
    first, *others = out
    shared = []
    for name in others:
        same = next((i for i, (a, b) in enumerate(zip(out[first], out[name], strict=False)) if a != b), None)
        shared.append(f"{name} {'all' if same is None else same}")
    return f"greedy tokens shared with {first}: " + ", ".join(shared) if shared else ""


def misses(speed, kind, threads):
    """Lines that name the targets missed by this combination."""
    mine = speed.get(peers.TENSORLIB.name)
    for name, peer, only, least in TARGETS:
        if mine and peer in speed and only in ("", kind):
            ratio = harness.quantiles(mine[name])[1] / harness.quantiles(speed[peer][name])[1]
            if ratio < least:
                yield f"{name} {kind} {threads} threads: {ratio:.2f}x {peer}, target {least}x"


def lines(speed, amounts):
    """Table lines of one combination: measure, peer, median, spread, and the first peer's median over this one's."""
    first = next(iter(speed))
    for name, amount in zip(MEASURES, amounts, strict=True):
        base = harness.quantiles(speed[first][name])[1]
        for peer, samples in speed.items():
            low, middle, high = harness.quantiles(samples[name])
            spread = f"{low:.1f} to {high:.1f}"
            yield f"{name} {amount}", peer, f"{middle:.1f}", spread, f"{base / middle:.2f}x"


def records(host, speed, amounts, versions, **where):
    """CSV rows of one combination."""
    for name, amount in zip(MEASURES, amounts, strict=True):
        for peer, samples in speed.items():
            yield harness.row(host, name, peer, versions[peer], samples[name], "tokens/s", amount=amount, **where)


def main():
    """Command line of `python -m bench.generate`."""
    parser = harness.parser(__doc__)
    parser.add_argument("--prompt", type=int, default=512, help="tokens in the prompt, at most 512")
    parser.add_argument("--tokens", type=int, default=128, help="tokens to generate")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    options = parser.parse_args()
    host, rows, table, written, missed = harness.machine(), harness.contestants(options), [], [], []
    own, amounts = harness.overrides(options), (options.prompt, options.tokens)
    versions = {peer.name: peers.version(peer.name, peers.find(peer.name, own)) for peer in rows}
    for kind in options.formats.split(","):
        for threads in harness.numbers(options.threads):
            speed, out = measure(options, rows, kind, threads)
            table += [(kind, threads, *line) for line in lines(speed, amounts)]
            written += records(host, speed, amounts, versions, threads=threads, format=kind)
            missed += misses(speed, kind, threads)
            print(f"{kind}, {threads} threads: {agreement(out) or 'done'}", file=sys.stderr)
    harness.headline(host)
    harness.show(["format", "threads", "tokens/s", "peer", "p50", "p20 to p80", f"{rows[0].name} / peer"], table)
    harness.write(written, "generate", options)
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    sys.exit(1 if options.check and missed else 0)


if __name__ == "__main__":
    main()
