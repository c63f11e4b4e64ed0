"""Loading files of 500 MB: opening, and having every tensor, against a plain `read` and the formats' own libraries.

    python -m bench.loading [--megabytes 500] [--repeats 9] [--folder DIR]

*open*: until names, shapes and metadata are there; *MB more*: what the process grew by, without the pages of the file.
*mapped and touched*: every tensor over the mapping, a byte of each page read, as for a model used where it lies.
*in private memory*: every tensor in memory of the process that nothing else can change (`load(path, mapped=False)`).
*read*: the whole file by one thread into memory that is there and was touched before: what the page cache gives.
Every round runs all of them, in turn, each in a process of its own, which does it once before the clock runs: modules
are imported then, and a virtual machine has its memory from the host. The file is in the page cache.
`--check` fails when opening takes 20 ms or 10 MB, or having all tensors takes longer than `read`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

import tensorlib
from bench import harness
from tensorlib.io import gguf
from tensorlib.io.stored import Raw

TENSOR = 4 << 20  # bytes of one
OPEN_MS, OPEN_MB = 20.0, 10.0
TOUCH = "sum(int(x[::4096].sum()) for x in {})"
PRELUDE = """
import os, sys, time
import numpy as np
def grown():
    fields = dict(line.split(":") for line in open("/proc/self/status") if line.startswith("Rss"))
    return sum(int(fields[key].split()[0]) for key in ("RssAnon", "RssShmem")) / 1e3 if fields else 0.0
path = sys.argv[1]
"""
ENDING = """
import json
print("RESULT", json.dumps([(done - start) * 1e3, after - before, total]))
"""
RUN = """
def run():
    global start, done, before, after
    total, before, start = 0, grown(), time.perf_counter()
    {}
    done = time.perf_counter()
    after = grown()
    return {}
run()
total = run()
"""
ADDRESS = """
import ctypes, tensorlib
from tensorlib import backend
from tensorlib.io import files, safetensors, gguf, stored
tensorlib.zeros(4).sum()
def over(x):
    return np.ctypeslib.as_array((ctypes.c_uint8 * x.nbytes).from_address(x.ptr))
"""
OPEN = "file = tensorlib.load(path)"
OURS = "file = tensorlib.load(path{})\ntensors = [over(file.tensor(name)) for name in file.tensors]"
PROGRAMS = {
    "open": (ADDRESS, OPEN, "len(file.tensors)"),
    "mapped and touched": (ADDRESS, OURS.format("") + f"\ntotal = {TOUCH.format('tensors')}", "total"),
    "in private memory": (ADDRESS, OURS.format(", mapped=False"), TOUCH.format("tensors")),
    "read": (
        "size = os.path.getsize(path); memory = np.full(size, 1, np.uint8); view = memoryview(memory)",
        "with open(path, 'rb', buffering=0) as file:\n at = 0\n while at < size: at += file.readinto(view[at:])",
        "0",
    ),
}
PEERS = {
    "safetensors": {
        "safetensors.numpy.load_file": (
            "import safetensors.numpy as peer",
            "tensors = [x.view(np.uint8).reshape(-1) for x in peer.load_file(path).values()]",
            TOUCH.format("tensors"),
        ),
        "safetensors.torch.load_file, touched": (
            "import torch, safetensors.torch as peer",
            "tensors = [x.view(torch.uint8).reshape(-1).numpy() for x in peer.load_file(path).values()]\n"
            f"total = {TOUCH.format('tensors')}",
            "total",
        ),
    },
    "gguf": {
        "gguf.GGUFReader, touched": (
            "import gguf as peer",
            "tensors = [x.data.view(np.uint8).reshape(-1) for x in peer.GGUFReader(path).tensors]\n"
            f"total = {TOUCH.format('tensors')}",
            "total",
        ),
        "gguf.GGUFReader, copied": (
            "import gguf as peer",
            "tensors = [np.array(x.data).view(np.uint8).reshape(-1) for x in peer.GGUFReader(path).tensors]",
            TOUCH.format("tensors"),
        ),
    },
}


def make(path, megabytes):
    """A file of random bytes in tensors of 4 MiB: f16, in GGUF q8_0 as well."""
    rng, count = np.random.default_rng(0), max(1, megabytes * 10**6 // TENSOR)

    def data(nbytes):
        return lambda: rng.integers(0, 60, nbytes, np.uint8)  # no NaN

    width = 2048
    rows = {"f16": TENSOR // (2 * width), "q8_0": TENSOR // (width // 32 * 34)}
    kinds = ("f16",) if path.endswith(".safetensors") else tuple(rows)
    tensors = {}
    for i in range(count):
        kind = kinds[i % len(kinds)]
        nbytes = rows[kind] * (2 * width if kind == "f16" else width // 32 * 34)
        tensors[f"blk.{i}.weight"] = Raw(kind, (rows[kind], width), data(nbytes))
    if len(kinds) == 1:
        tensorlib.save(path, tensors, {"format": "pt"})
    else:
        gguf.write(path, {"general.architecture": "bench", "words": [str(i) for i in range(100_000)]}, tensors)


def once(path, program):
    """(milliseconds, MB that the process grew by) of a program in a process of its own."""
    before, run, total = program
    source = PRELUDE + before + RUN.format(run.replace("\n", "\n    "), total) + ENDING
    command = [sys.executable, "-c", source, path]
    done = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"failed:\n{source}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.split("RESULT", 1)[1])[:2]


def measure(path, kind, repeats):
    """{name: ([milliseconds], [MB])}."""
    programs, found = PROGRAMS | PEERS[kind], {}
    with open(path, "rb") as file:
        while file.read(1 << 24):
            pass
    for turn in range(repeats + 1):
        for name, program in programs.items():
            taken, grown = once(path, program)
            if turn:  # the first round compiles byte code
                times, sizes = found.setdefault(name, ([], []))
                times.append(taken)
                sizes.append(grown)
    return found


def misses(kind, found):
    """Lines that name the targets missed."""
    middle = {name: [harness.quantiles(each)[1] for each in pair] for name, pair in found.items()}
    if middle["open"][0] >= OPEN_MS or middle["open"][1] >= OPEN_MB:
        yield f"{kind}: open {middle['open'][0]:.1f} ms, {middle['open'][1]:.1f} MB"
    for name in ("mapped and touched", "in private memory"):
        if middle[name][0] > middle["read"][0]:
            yield f"{kind}: {name} {middle[name][0]:.0f} ms, read {middle['read'][0]:.0f} ms"


def main():
    """Command line of `python -m bench.loading`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--folder", help="where the files are made (a temporary folder)")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--csv", help="where to write the rows; default: bench/results/loading.csv; '-' for nowhere")
    options, table, written, bad = parser.parse_args(), [], [], []
    host = harness.machine()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for kind in ("safetensors", "gguf"):
            path = os.path.join(folder, f"x.{kind}")
            make(path, options.megabytes)
            size, found = os.path.getsize(path) / 1e9, measure(path, kind, options.repeats)
            read = harness.quantiles(found["read"][0])[1]
            for name, (times, sizes) in found.items():
                p20, p50, p80 = harness.quantiles(times)
                speed, ratio = ("", "") if name == "open" else (f"{size / p50 * 1e3:.1f}", f"{read / p50:.2f}x")
                grown = f"{harness.quantiles(sizes)[1]:.1f}"
                table.append([kind, name, f"{p20:.1f}", f"{p50:.1f}", f"{p80:.1f}", speed, ratio, grown])
                where = {"format": kind, "amount": int(size * 1e9)}
                written.append(harness.row(host, name, "read" if name == "read" else "", "", times, "ms", **where))
            bad += misses(kind, found)
    harness.headline(host)
    harness.show(["file", "what", "ms p20", "p50", "p80", "GB/s", "of read's speed", "MB more"], table)
    harness.write(written, "loading", options)
    for line in bad:
        print(f"missed: {line}", file=sys.stderr)
    sys.exit(1 if options.check and bad else 0)


if __name__ == "__main__":
    main()
