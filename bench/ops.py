"""Single ops against PyTorch and NumPy on the CPU: medians, and the ratio of a peer's time to tensorlib's.

    python -m bench.ops [FAMILY ...] [--threads 1,2] [--quick] [--check] [--only TEXT]

Needs `pip install torch numpy` in this Python. Every library has a process of its own per number of threads, bound to
as many cores; for every case they take turns, the others being stopped meanwhile, and their results are compared.
tensorlib's team is pinned, torch's and OpenBLAS's threads are bound (OMP_PROC_BIND, OMP_PLACES); OpenBLAS chooses its
kernels itself. A measurement during which other processes had the cores is repeated. All work on float32 unless a case
says otherwise, with the outputs allocated as a user's would be.

A ratio above 1 is tensorlib being faster. `--check` fails when a target is missed; the targets are for the most
threads measured.
"""

import argparse
import importlib.metadata
import json
import math
import os
import signal
import subprocess
import sys
import time

from bench import harness, ops_cases, peers

OURS, PEERS = "tensorlib", ("torch", "numpy")
REST = 0.005  # seconds between turns
MEMORY_BOUND = ("elementwise", "reductions", "softmax", "transposed", "gathers", "sort")
# (families, peers: the fastest of them counts, least geometric mean of the ratios, least ratio)
TARGETS = (
    (MEMORY_BOUND, ("torch",), 1.2, 0.0),
    (("sgemm",), ("torch", "numpy"), 0.95, 0.95),
    (("bf16",), ("torch",), 1.1, 0.0),
    (("attention",), ("torch",), 1.2, 1.0),
    (("conv2d",), ("torch",), 0.9, 0.0),
    (("depthwise",), ("torch",), 1.2, 0.0),
    (("overhead",), ("torch",), 1.0, 1.0),
)


class Worker:
    """A library's process; `ask` sends one message and waits for the answer.

    Otherwise it is stopped: idle threads of OpenBLAS and OpenMP spin, at the cost of whoever has their core.
    """

    def __init__(self, peer, threads, script="ops_worker.py", more=None):
        count = str(threads)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("OPENBLAS_", "OMP_", "MKL_", "GOMP_"))}
        environment |= {"OMP_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count, "MKL_NUM_THREADS": count}
        environment |= {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores", "TENSORLIB_THREADS": count}
        job = {"peer": peer, "threads": threads, **(more or {})}
        command = [sys.executable, str(peers.WORKERS / script), json.dumps(job)]
        environment["PYTHONPATH"] = os.pathsep.join([str(harness.ROOT), environment.get("PYTHONPATH", "")])
        pipe = subprocess.PIPE
        self.peer = peer
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)
        self._read()

    def _read(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.peer}: its process ended with {self.process.wait()}; see above")
        self.process.send_signal(signal.SIGSTOP)
        return json.loads(line)

    def ask(self, **message):
        """The answer to a message; see bench/workers/ops_worker.py."""
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self):
        """Ends the process."""
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def differ(digest, other):
    """Whether two results are of other shapes or values."""
    return digest[0] != other[0] or not math.isclose(digest[1], other[1], rel_tol=1e-3, abs_tol=1e-6)


def measure(case, workers, rounds, seconds):
    """{peer: [seconds per call, ...]} of the libraries that have the op; what they don't agree about is an error."""
    times, digests = {}, {}
    for worker in workers:
        if getattr(case, worker.peer):
            found = worker.ask(prepare=case._asdict())
            if "error" in found:
                print(f"{case.family} {case.name} {case.size}: {worker.peer}: {found['error']}", file=sys.stderr)
            else:
                times[worker.peer], digests[worker.peer] = [], found["digest"]
    if OURS in digests:
        for peer, digest in digests.items():
            if differ(digest, digests[OURS]):
                raise SystemExit(f"{case.family} {case.name} {case.size}: {digests[OURS]} but {peer}: {digest}")
    ready = [worker for worker in workers if worker.peer in times]
    for turn in range(rounds):
        for worker in ready[turn % len(ready) :] + ready[: turn % len(ready)]:
            time.sleep(REST)
            times[worker.peer] += worker.ask(turn=seconds)["times"]
    for worker in ready:
        worker.ask(end=True)
    return times


def medians(times):
    """{peer: median}."""
    return {peer: harness.quantiles(samples)[1] for peer, samples in times.items()}


def ratio(times, against):
    """The fastest of the peers `against` over tensorlib; None if either side is missing."""
    found = medians(times)
    others = [found[peer] for peer in against if peer in found]
    return min(others) / found[OURS] if others and OURS in found else None


def geomean(values):
    """Geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def judge(results):
    """(text, met) per target whose families were measured; `results`: [(case, times)] of one number of threads."""
    for families, against, mean, least in TARGETS:
        here = [(case, times) for case, times in results if case.family in families]
        ratios = [r for _, times in here if (r := ratio(times, against)) is not None]
        lacking = sum(OURS not in times for _, times in here)
        if here:
            # a case that tensorlib cannot do is a miss, not a gap in the mean
            found = (geomean(ratios), min(ratios)) if ratios else (0.0, 0.0)
            met = found[0] >= mean and found[1] >= least and not lacking
            wanted = f"wanted {mean}" + (f", none below {least}" if least else "")
            text = f"{', '.join(dict.fromkeys(c.family for c, _ in here))} against {' and '.join(against)}: "
            text += f"{found[0]:.2f} (least {found[1]:.2f}), {wanted}"
            yield text + (f"; {lacking} cases fail" if lacking else ""), met


def lines(results):
    """Table rows of one number of threads."""
    for case, times in results:
        middle = medians(times)
        cells = [f"{1e6 * middle[peer]:.4g}" if peer in middle else "-" for peer in (OURS, *PEERS)]
        cells += [f"{r:.2f}" if (r := ratio(times, (peer,))) else "-" for peer in PEERS]
        yield case.family, case.name, case.size, *cells


def summary(results, threads):
    """Rows per family: cases, geometric means, least ratio."""
    for family in dict.fromkeys(case.family for case, _ in results):
        of = [times for case, times in results if case.family == family]
        torch, numpy = ([r for times in of if (r := ratio(times, (peer,)))] for peer in PEERS)
        cells = [f"{geomean(torch):.2f}", f"{min(torch):.2f}"] if torch else ["-", "-"]
        yield family, threads, len(of), *cells, f"{geomean(numpy):.2f}" if numpy else "-"


def records(host, results, threads):
    """CSV rows."""
    for case, times in results:
        for peer, samples in times.items():
            version = peers.version(OURS, sys.executable) if peer == OURS else importlib.metadata.version(peer)
            format = "bf16" if case.family == "bf16" else "f32"
            where = {"threads": threads, "format": format, "amount": case.size}
            micro = [1e6 * s for s in samples]
            yield harness.row(host, f"{case.family} {case.name}", peer, version, micro, "us", **where)


def chosen(options):
    """The cases asked for."""
    unknown = set(options.families) - set(ops_cases.FAMILIES)
    if unknown:
        raise SystemExit(f"no family {', '.join(sorted(unknown))}; there are {', '.join(ops_cases.FAMILIES)}")
    for family, make in ops_cases.FAMILIES.items():
        if not options.families or family in options.families:
            yield from (c for c in make() if options.only in f"{c.name} {c.size}")


def progress(text):
    """Where the run is, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"{', '.join(ops_cases.FAMILIES)}; default: all")
    parser.add_argument("--threads", default="1,2", help="comma-separated")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns, most threads only: a first look")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--only", default="", help="cases whose name and size contain this text")
    parser.add_argument("--without", default="", help="peers to leave out, comma-separated")
    parser.add_argument("--csv", help="where to write the rows; default: bench/results/ops.csv; '-' for nowhere")
    return parser.parse_args()


def main():
    """Command line of `python -m bench.ops`."""
    options = arguments()
    host, cases, written, results = harness.machine(), list(chosen(options)), [], []
    rounds, seconds = (3, 0.02) if options.quick else (7, 0.06)
    contestants = [peer for peer in (OURS, *PEERS) if peer not in options.without.split(",")]
    counts, sums = sorted(harness.numbers(options.threads)), []
    for threads in counts[-1:] if options.quick else counts:
        workers, results = [Worker(peer, threads) for peer in contestants], []
        for i, case in enumerate(cases):
            progress(f"{threads} threads, {i + 1} of {len(cases)}: {case.family} {case.name}")
            results.append((case, measure(case, workers, rounds, seconds)))
        progress("")
        for worker in workers:
            worker.close()
        harness.headline({**host, "date": f"{host['date']}, {threads} threads"})
        names = [f"{peer} us" for peer in (OURS, *PEERS)]
        harness.show(["family", "case", "size", *names, "torch / ours", "numpy / ours"], lines(results))
        print()
        sums += summary(results, threads)
        written += records(host, results, threads)
    harness.show(["family", "threads", "cases", "torch / ours", "least", "numpy / ours"], sums)
    if not options.quick:
        harness.write(written, "ops", options)
    verdicts = list(judge(results))
    for text, met in verdicts:
        print(f"{'met' if met else 'MISSED'}: {text}", file=sys.stderr)
    sys.exit(1 if options.check and not all(met for _, met in verdicts) else 0)


if __name__ == "__main__":
    main()
