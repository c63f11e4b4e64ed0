"""Two Python threads decoding two models at once against one alone: does the decode loop release the GIL?

    python -m bench.pair

Each model computes with one thread; the process may use two cores. Perfect scaling is 2.00; a loop that holds the GIL
gives 1.00. `--check` fails below 1.6.
"""

import sys

from bench import harness, models, peers

TARGET = 1.6  # two cores share caches and memory bandwidth, so 2.0 is out of reach


def main():
    """Command line of `python -m bench.pair`."""
    parser = harness.parser(__doc__)
    parser.set_defaults(formats="q4_1")
    parser.add_argument("--check", action="store_true", help="exit with 1 if the target is missed")
    options = parser.parse_args()
    host, table, written, worst = harness.machine(), [], [], 2.0
    version = peers.version("tensorlib", sys.executable)
    for kind in options.formats.split(","):
        path = models.formatted(models.base(options.model), kind, harness.overrides(options))
        job = {"task": "pair", "model": path, "text": models.text(1024), "threads": 2, "prompt": 16, "tokens": 128}
        answer = harness.work(peers.TENSORLIB, {**job, "repeats": options.repeats})
        alone, together = (harness.quantiles(answer[name])[1] for name in ("alone", "together"))
        worst = min(worst, 2 * alone / together)
        table.append((kind, f"{128 / alone:.0f}", f"{256 / together:.0f}", f"{2 * alone / together:.2f}"))
        scaling = [2 * one / two for one, two in zip(answer["alone"], answer["together"], strict=True)]
        written.append(harness.row(host, "pair", "tensorlib", version, scaling, "times", threads=2, format=kind))
    harness.headline(host)
    harness.show(["format", "one model, tokens/s", "two at once, tokens/s", "scaling"], table)
    harness.write(written, "pair", options)
    sys.exit(1 if options.check and worst < TARGET else 0)


if __name__ == "__main__":
    main()
