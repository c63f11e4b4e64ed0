"""Training steps (forward, backward, AdamW) against PyTorch on the CPU: medians, ratios, peak memory.

    python -m bench.train [CASE ...] [--threads 2] [--steps 6] [--rounds 3] [--check]

Cases: the MNIST CNN, batch 64; a ResNet-18 for 32 x 32 images, batch 32; a GPT of 10 million weights, 256 wide, 12
layers, 8 heads, 8 x 256 tokens; in float32, and with --autocast in bf16 as the libraries' autocast does it. Both start
from the same weights and batch, and their losses are compared. Each library has a process of its own with so many
threads, alone while it has its turn; the first two steps of a process do not count. Memory: the process's peak over its
size before the first step, and the peak itself. A ratio above 1 is tensorlib being faster, or smaller.
"""

import argparse
import importlib.metadata
import math
import sys

from bench import harness, peers
from bench.ops import OURS, Worker
from bench.workers.train_models import CASES


def measure(case, threads, rounds, steps, autocast):
    """{peer: {"times": seconds per step, "losses": ..., "peak": MiB, "grown": MiB}}"""
    found = {}
    workers = [
        Worker(peer, threads, "train_worker.py", {"case": case, "autocast": autocast}) for peer in (OURS, "torch")
    ]
    for _ in range(rounds):
        for worker in workers:
            answer = worker.ask(steps=steps)
            answer["times"] = found.get(worker.peer, {"times": []})["times"] + answer["times"]
            found[worker.peer] = {**answer, "losses": found.get(worker.peer, answer)["losses"]}
    for worker in workers:
        worker.close()
    return found


def ratios(found):
    """(torch's time over ours, torch's memory over ours)"""
    ours, torch = found[OURS], found["torch"]
    times = [harness.quantiles(x["times"])[1] for x in (torch, ours)]
    return times[0] / times[1], torch["grown"] / ours["grown"]


def same(found, autocast):
    """Whether the losses of the first steps agree."""
    ours, torch = (found[peer]["losses"][0] for peer in (OURS, "torch"))
    return math.isclose(ours, torch, rel_tol=2e-2 if autocast else 1e-4)


def records(host, case, found, threads, autocast):
    """CSV rows."""
    where = {"threads": threads, "format": "bf16 autocast" if autocast else "f32", "amount": CASES[case][2]}
    for peer, x in found.items():
        version = peers.version(OURS, sys.executable) if peer == OURS else importlib.metadata.version(peer)
        yield harness.row(host, f"{case} step", peer, version, [1e3 * t for t in x["times"]], "ms", **where)
        yield harness.row(host, f"{case} memory of steps", peer, version, [x["grown"]], "MiB", **where)
        yield harness.row(host, f"{case} peak memory", peer, version, [x["peak"]], "MiB", **where)


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(CASES)}; default: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6, help="steps per turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns per library")
    parser.add_argument("--autocast", action="store_true", help="products in bf16")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a ratio is below 1")
    parser.add_argument("--csv", help="where to write the rows; default: bench/results/train.csv; '-' for nowhere")
    return parser.parse_args()


def main():
    """Command line of `python -m bench.train`."""
    options = arguments()
    unknown = set(options.cases) - set(CASES)
    if unknown:
        raise SystemExit(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    host, lines, rows, met = harness.machine(), [], [], True
    for case in options.cases or CASES:
        found = measure(case, options.threads, options.rounds, options.steps, options.autocast)
        if not same(found, options.autocast):
            raise SystemExit(f"{case}: losses {found[OURS]['losses'][:3]} but torch: {found['torch']['losses'][:3]}")
        faster, smaller = ratios(found)
        met &= faster >= 1 and smaller >= 1
        cells = [f"{1e3 * harness.quantiles(found[peer]['times'])[1]:.4g}" for peer in (OURS, "torch")]
        cells += [f"{faster:.2f}", *(f"{found[peer]['grown']:.0f}" for peer in (OURS, "torch")), f"{smaller:.2f}"]
        lines.append((case, *cells, *(f"{found[peer]['peak']:.0f}" for peer in (OURS, "torch"))))
        rows += records(host, case, found, options.threads, options.autocast)
    harness.headline(host)
    names = ["case", "tensorlib ms", "torch ms", "torch / ours", "tensorlib MiB", "torch MiB", "torch / ours"]
    harness.show([*names, "tensorlib peak", "torch peak"], lines)
    harness.write(rows, "train", options)
    sys.exit(1 if options.check and not met else 0)


if __name__ == "__main__":
    main()
