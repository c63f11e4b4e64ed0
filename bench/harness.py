"""What the bench programs share: options, the machine, running a worker, quantiles, tables and CSV files."""

import argparse
import csv
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

from bench import peers

SIMD = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "sve")
ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
COLUMNS = (
    "date commit machine cores python load measure peer version threads format amount unit samples p20 p50 p80".split()
)


def parser(doc):
    """An argument parser with the options that all programs take."""
    out = argparse.ArgumentParser(description=doc.split("\n\n")[0])
    out.add_argument("--peers", default="llama.cpp,mistral.rs", help="comma-separated, or empty for tensorlib alone")
    out.add_argument("--without-tensorlib", action="store_true", help="measure the peers only")
    out.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="a peer's Python, overriding")
    out.add_argument("--model", help="a GGUF file or reference; default: tensorlib's embedded default model")
    out.add_argument("--threads", default="1,2", help="comma-separated")
    out.add_argument("--formats", default="q4_1,q8_0", help="comma-separated; made from --model by llama.cpp")
    out.add_argument("--repeats", type=int, default=5, help="rounds; every round runs each peer once, in turn")
    out.add_argument("--csv", help="where to write the rows; default: bench/results/<program>.csv; '-' for nowhere")
    return out


def contestants(options):
    """The rows to measure: tensorlib first, then the peers asked for."""
    rows = [] if options.without_tensorlib else [peers.TENSORLIB]
    return rows + [peers.PEERS[name] for name in options.peers.split(",") if name]


def overrides(options):
    """`--python NAME=PATH` as a dict."""
    return dict(text.split("=", 1) for text in options.python)


def numbers(text):
    """Comma-separated integers: "1,2" -> [1, 2]."""
    return [int(part) for part in text.split(",")]


def run(command, environment=None, timeout=3600):
    """Run a command in the checkout; its standard output, or SystemExit with the end of its standard error."""
    env = {**os.environ, **(environment or {})}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)[:300]}\nfailed with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def work(peer, job, python_overrides=()):
    """Run one task in the peer's own Python and process; the worker's answer."""
    python = peers.find(peer.name, python_overrides)
    environment = {key: value.format(**job) for key, value in peer.environment.items()}
    text = run([python, str(peers.WORKERS / peer.worker), json.dumps(job)], environment)
    return json.loads(next(line for line in reversed(text.splitlines()) if line.startswith("RESULT "))[7:])


def quantiles(samples):
    """(p20, p50, p80) with linear interpolation; the sample itself when there is one."""
    if len(samples) == 1:
        return (samples[0],) * 3
    cuts = statistics.quantiles(samples, n=10, method="inclusive")
    return cuts[1], cuts[4], cuts[7]


def cpu():
    """The CPU's name and those of its SIMD features that decide which kernels run."""
    fields = {}
    if os.path.exists("/proc/cpuinfo"):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields:
        name += f" family {fields['cpu family']} model {fields['model']}"
    has = set((fields.get("flags") or fields.get("Features") or "").split())
    return " ".join([name, *(feature for feature in SIMD if feature in has)])


def machine():
    """Columns that describe this run. Prints a warning when the machine is not quiet."""
    load = os.getloadavg()[0]
    if load > 0.5:
        print(
            f"warning: load average {load:.2f}: if something else runs here, these figures are noise", file=sys.stderr
        )
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "commit": git.stdout.strip() or "unknown",
        "machine": cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "load": f"{load:.2f}",
    }


def headline(host):
    """The line that stands above every table."""
    print("{machine}, {cores} cores, Python {python}, load {load}, {date}, commit {commit}\n".format(**host))


def row(host, measure, peer, version, samples, unit, **where):
    """One CSV row: quantiles of `samples`."""
    p20, p50, p80 = quantiles(samples)
    figures = {"samples": len(samples), "p20": f"{p20:.4g}", "p50": f"{p50:.4g}", "p80": f"{p80:.4g}"}
    return {**host, "measure": measure, "peer": peer, "version": version, "unit": unit, **where, **figures}


def write(rows, program, options):
    """Write the rows to the CSV file and say where."""
    if options.csv == "-" or not rows:
        return
    path = pathlib.Path(options.csv) if options.csv else RESULTS / f"{program}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, restval="")
        table.writeheader()
        table.writerows(rows)
    print(f"\nrows written to {path}", file=sys.stderr)


def show(header, lines):
    """Print a Markdown table; columns are padded so that it reads in a terminal too."""
    cells = [[str(cell) for cell in line] for line in [header, *lines]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    cells.insert(1, ["-" * width for width in widths])
    for line in cells:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")
