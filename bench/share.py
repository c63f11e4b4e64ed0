"""The share of a 128-token decode that is spent outside native code.

    python -m bench.share

The thread pool's native entry points (the ctypes functions that `kernels_numba.driver.Pool` calls) are wrapped with a
clock; what is left of the wall time of the decode is Python: the generator, the sampler's Python part, the arguments.
The two clock calls of each wrapper are counted as Python, so the figure errs on the high side. Also printed: native
calls per token, and the decode's speed with and without the wrapper. `--check` fails at 5% and above.
"""

import sys

from bench import harness, models, peers

TARGET = 5.0  # percent


def main():
    """Command line of `python -m bench.share`."""
    parser = harness.parser(__doc__)
    parser.set_defaults(formats="q4_1")
    parser.add_argument("--check", action="store_true", help="exit with 1 if the target is missed")
    options = parser.parse_args()
    host, table, written, worst = harness.machine(), [], [], 0.0
    version = peers.version("tensorlib", sys.executable)
    for kind in options.formats.split(","):
        path = models.formatted(models.base(options.model), kind, harness.overrides(options))
        for threads in harness.numbers(options.threads):
            job = {"task": "share", "model": path, "text": models.text(1024), "threads": threads, "prompt": 16}
            answer = harness.work(peers.TENSORLIB, {**job, "tokens": 128, "repeats": options.repeats})
            shares = [100 * (1 - native / total) for native, total, _ in answer["runs"]]
            middle = harness.quantiles(shares)[1]
            worst = max(worst, middle)
            calls = answer["runs"][-1][2] / 128
            speeds = (
                128 / harness.quantiles(answer["plain"])[1],
                128 / harness.quantiles([r[1] for r in answer["runs"]])[1],
            )
            table.append((kind, threads, f"{middle:.2f}%", f"{calls:.2f}", *(f"{speed:.0f}" for speed in speeds)))
            where = {"threads": threads, "format": kind, "amount": 128}
            written.append(harness.row(host, "python share", "tensorlib", version, shares, "%", **where))
    harness.headline(host)
    harness.show(["format", "threads", "outside native", "native calls/token", "tokens/s", "with the clock"], table)
    harness.write(written, "share", options)
    sys.exit(1 if options.check and worst >= TARGET else 0)


if __name__ == "__main__":
    main()
