"""The table of what Triton's compiler makes of every GPU kernel, for every architecture: no GPU is needed.

    python -m bench.compiled            compiles what has changed since the table was written, and writes it
    python -m bench.compiled --all      compiles everything (some 20 minutes on two cores)

`bench/results/compiled.csv` holds, per kernel, configuration and architecture, what `kernels_triton/report.py` reads
off the machine code. A test holds the table to the kernels (by a hash of what is compiled) and to its limits.
"""

import argparse
import csv
import importlib.metadata
import json
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed

from bench import harness

TABLE = harness.ROOT / "bench" / "results" / "compiled.csv"


def read(path=TABLE):
    """{(room, kernel, arch): row of strings} of the committed table."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {(row["room"], row["kernel"], row["arch"]): row for row in csv.DictReader(file)}


def wanted(rooms=None, architectures=None):
    """{(room, kernel, arch): hash} of all kernels there are."""
    from kernels_triton import report

    found = {}
    for arch in architectures or report.ARCHITECTURES:
        for room in rooms or report.rooms():
            for label, kernel in report.variants(room, arch).items():
                found[room, label, str(arch)] = report.digest(kernel, arch)
    return found


def wanted_anew():
    """`wanted()` of a new process: Triton's hash of a function depends on which functions it has hashed before."""
    code = "import json; from bench import compiled; print(json.dumps([[*k, v] for k, v in compiled.wanted().items()]))"
    found = subprocess.run([sys.executable, "-c", code], cwd=harness.ROOT, capture_output=True, text=True, check=True)
    return {tuple(key): digest for *key, digest in json.loads(found.stdout)}


def measured(key):
    """The facts of one kernel; compiles it."""
    from kernels_triton import report

    room, label, arch = key
    arch = int(arch) if arch.isdigit() else arch
    return report.facts(report.variants(room, arch)[label], arch)


def write(rows, path=TABLE):
    """Writes the table, sorted."""
    from kernels_triton.report import COLUMNS

    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[key] for key in sorted(rows))


def main():
    from tqdm import tqdm

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="compile what has not changed, too")
    parser.add_argument("--jobs", type=int, default=2, help="processes that compile")
    given = parser.parse_args()
    known, hashes = read(), wanted_anew()
    stale = [key for key, digest in hashes.items() if given.all or known.get(key, {}).get("hash") != digest]
    rows = {key: known[key] for key in hashes if key in known}
    with ProcessPoolExecutor(given.jobs) as pool:
        running = {pool.submit(measured, key): key for key in stale}
        for i, done in enumerate(tqdm(as_completed(running), total=len(stale), unit="kernel"), 1):
            room, label, arch = key = running[done]
            rows[key] = {"room": room, "kernel": label, "arch": arch, "hash": hashes[key], **done.result()}
            if i % 100 == 0:  # an interrupted run has not been for nothing
                write(rows)
    write(rows)
    print(f"{len(rows)} kernels, {len(stale)} compiled with triton {importlib.metadata.version('triton')}: {TABLE}")


if __name__ == "__main__":
    main()
