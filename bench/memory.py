"""Peak resident memory of a run (512-token prompt, 128 tokens) against the size of the model file.

    python -m bench.memory --peers llama.cpp,mistral.rs --formats q4_1

The peak is the kernel's own mark (`VmHWM`), which counts mapped pages of the file too. `--check` fails when tensorlib's
peak is more than the file's size + 80 MB.
"""

import os
import sys

from bench import harness, models, peers

TARGET = 80.0  # MB over the file's size


def main():
    """Command line of `python -m bench.memory`."""
    parser = harness.parser(__doc__)
    parser.set_defaults(repeats=3, threads="2", formats="q4_1")
    parser.add_argument("--check", action="store_true", help="exit with 1 if the target is missed")
    options = parser.parse_args()
    host, rows, own = harness.machine(), harness.contestants(options), harness.overrides(options)
    threads, table, written, missed = harness.numbers(options.threads)[-1], [], [], False
    for kind in options.formats.split(","):
        path = models.formatted(models.base(options.model), kind, own)
        job = {"task": "generate", "model": path, "text": models.text(4096), "threads": threads, "repeats": 1}
        job |= {"prompt": 512, "tokens": 128}
        size = os.path.getsize(path) / 1e6
        for peer in rows:
            peaks = [harness.work(peer, job, own)["peak_kb"] * 1024 / 1e6 for _ in range(options.repeats)]
            middle = harness.quantiles(peaks)[1]
            missed |= peer is peers.TENSORLIB and kind == "q4_1" and middle > size + TARGET
            table.append((kind, peer.name, f"{size:.0f}", f"{middle:.0f}", f"{middle - size:+.0f}"))
            version = peers.version(peer.name, peers.find(peer.name, own))
            written.append(harness.row(host, "peak", peer.name, version, peaks, "MB", threads=threads, format=kind))
    harness.headline(host)
    harness.show(["format", "peer", "file MB", "peak MB", "over the file"], table)
    harness.write(written, "memory", options)
    sys.exit(1 if options.check and missed else 0)


if __name__ == "__main__":
    main()
