"""Malformed files, ours and the reference loaders: who rejects, who accepts, who crashes.

Every case of tests/io/cases.py is loaded by tensorlib and by the format's own library, each in a forked process of its
own that may take 1 s of processor time and 200 MB more than before. What goes over that, raises MemoryError or
RecursionError, or dies of a signal has crashed; for tensorlib, so has any error that is no FormatError. A marker file
tells whether code in a file ran.

    python -m bench.malformed [--kinds npy,pth] [--cases] [--csv PATH]
"""

import argparse
import collections
import csv
import faulthandler
import importlib.metadata
import io
import os
import pathlib
import resource
import select
import signal
import sys
import tempfile
import time

from bench import harness
from tests.io import build_pth, build_template, cases, targets
from tests.io.hardened import made

SECONDS, BYTES = 1, 200_000_000
WALL = 10  # seconds after which a process that waits for something is given up
COLUMNS = "date commit kind number case verdict loader version outcome error seconds megabytes".split()


# ---- loaders ---------------------------------------------------------------------------------------------------------


def _ours(kind):
    return targets.TARGETS[kind].use


def _safetensors(path):
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        for name in list(file.keys())[:1000]:
            file.get_slice(name).get_shape()  # NumPy has no bf16
        file.metadata()


def _gguf(path):
    from gguf import GGUFReader

    reader = GGUFReader(path)
    for field in reader.fields.values():
        field.contents()
    for tensor in reader.tensors:
        tensor.data.tobytes()


def _numpy(path):
    import numpy as np

    found = np.load(path, allow_pickle=False)
    for name in getattr(found, "files", ()):
        found[name].tobytes()


def _torch(path):
    import torch

    def use(value):
        if isinstance(value, torch.Tensor):
            value.contiguous().clone()
        elif isinstance(value, dict):
            list(map(use, value.values()))

    use(torch.load(path, weights_only=True))


def _jinja(path):
    """As chat templates are rendered: the sandbox of the transformers library, its settings and functions."""
    from jinja2.exceptions import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message):
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals["raise_exception"] = raise_exception
    text = pathlib.Path(path).read_text(encoding="utf-8")
    environment.from_string(text).render(messages=build_template.MESSAGES, add_generation_prompt=True, bos_token="<s>")


PEERS = {  # name of the package, and what loads a file of each kind with it
    "safetensors": ("safetensors", {"safetensors": _safetensors}),
    "gguf": ("gguf", {"gguf": _gguf}),
    "numpy": ("numpy", {"npy": _numpy, "npz": _numpy}),
    "torch weights_only": ("torch", {"pth": _torch}),
    "jinja2 sandbox": ("jinja2", {"template": _jinja}),
}


def loaders(kind):
    """(name, version, function) of all that load files of a kind, tensorlib first."""
    yield "tensorlib", "checkout", _ours(kind)
    for name, (package, kinds) in PEERS.items():
        if kind in kinds:
            yield name, importlib.metadata.version(package), kinds[kind]


# ---- one case in one process -----------------------------------------------------------------------------------------


def _child(load, path, pipe):
    """Runs in the forked process: limits, load, answer."""
    sys.stderr = sys.stdout = io.StringIO()  # what a library prints
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    faulthandler.disable()
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    before = resource.getrusage(resource.RUSAGE_SELF)
    try:
        load(path)
        error = ""
    except BaseException as caught:
        text = str(caught).replace(os.path.dirname(path) + os.sep, "")
        error = f"{type(caught).__name__}\n{' '.join(text.split())[:100]}"
        if isinstance(caught, MemoryError):
            error = "MemoryError\n"
    after = resource.getrusage(resource.RUSAGE_SELF)
    taken = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    grown = (after.ru_maxrss - before.ru_maxrss) * 1024
    os.write(pipe, f"{taken:.4f} {grown} {error}".encode("utf-8", "replace"))
    os._exit(0)


def attempt(load, path):
    """(error, seconds, bytes) of a load in a process of its own; the error is "" or type and text in two lines."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            _child(load, path, write)
        finally:
            os._exit(1)
    os.close(write)
    answer, stop = b"", time.monotonic() + WALL
    while (left := stop - time.monotonic()) > 0 and select.select([read], [], [], left)[0]:
        piece = os.read(read, 4096)
        if not piece:
            break
        answer += piece
    else:
        os.kill(child, signal.SIGKILL)
    os.close(read)
    _, status, usage = os.wait4(child, 0)
    if answer:
        taken, grown, error = answer.decode().split(" ", 2)
        return error, float(taken), int(grown)
    code = os.waitstatus_to_exitcode(status)
    died = {-signal.SIGXCPU: "timeout", -signal.SIGKILL: "timeout"}.get(code, f"signal {-code}" if code < 0 else "exit")
    return f"{died}\n", usage.ru_utime + usage.ru_stime, 0


def outcome(loader, error, seconds, grown):
    """accepted, rejected, or crashed with its reason."""
    kind = error.partition("\n")[0]
    if os.path.exists(build_pth.MARKER):
        os.remove(build_pth.MARKER)
        return "crashed: code ran"
    if kind in ("timeout", "exit", "MemoryError", "RecursionError") or kind.startswith("signal"):
        return f"crashed: {kind}"
    if seconds > SECONDS or grown > BYTES:
        return "crashed: over the limits"
    if error and loader == "tensorlib" and kind != "FormatError":
        return f"crashed: {kind}"
    return "rejected" if error else "accepted"


# ---- the table -------------------------------------------------------------------------------------------------------


def measure(table):
    """A row for each case and loader. Libraries are imported, and used once, before processes are forked."""
    host = harness.machine()
    with tempfile.TemporaryDirectory() as folder:
        warm = set()
        for i, case in enumerate(table):
            here = pathlib.Path(folder, str(i))
            here.mkdir()
            for name, data in {**case.beside, cases.SUFFIX[case.kind]: made(case.data)}.items():
                (here / name).write_bytes(data)
            path = str(here / cases.SUFFIX[case.kind])
            for loader, version, load in loaders(case.kind):
                if (case.kind, loader) not in warm:
                    warm.add((case.kind, loader))
                    sound = next(c for c in table if c.kind == case.kind and c.verdict == "accept")
                    assert sound is case, "the first case of a kind is a sound one"
                    load(path)
                error, seconds, grown = attempt(load, path)
                yield {
                    "date": host["date"], "commit": host["commit"], "kind": case.kind, "number": case.number,
                    "case": case.name, "verdict": case.verdict, "loader": loader, "version": version,
                    "outcome": outcome(loader, error, seconds, grown), "error": error.replace("\n", ": ").strip(": "),
                    "seconds": f"{seconds:.3f}", "megabytes": f"{grown / 1e6:.0f}",
                }  # fmt: skip
            for name in here.iterdir():
                name.unlink()


def summary(rows):
    """Lines of the table: one for each kind and loader."""
    counts = collections.Counter()
    for row in rows:
        word = row["outcome"].partition(":")[0]
        counts[row["kind"], row["loader"], row["verdict"], word] += 1
    for kind, loader in dict.fromkeys((row["kind"], row["loader"]) for row in rows):
        cells = [
            " / ".join(str(counts[kind, loader, verdict, word]) for word in ("rejected", "accepted", "crashed"))
            for verdict in ("reject", "accept", "either")
        ]
        yield [kind, loader, *cells]


def main():
    """Command line of `python -m bench.malformed`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kinds", help="comma-separated; default: all")
    parser.add_argument("--cases", action="store_true", help="also print each case that a loader gets wrong")
    parser.add_argument("--csv", default=str(harness.RESULTS / "malformed.csv"), help="'-' for nowhere")
    options = parser.parse_args()
    kinds = options.kinds.split(",") if options.kinds else list(cases.SUFFIX)
    rows = list(measure([case for case in cases.table() if case.kind in kinds]))
    if options.csv != "-":
        with open(options.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    header = ["kind", "loader", "must reject: rejected / accepted / crashed", "must accept", "either"]
    for title, some in (("Cases of the list", [r for r in rows if r["number"]]), ("All cases", rows)):
        print(f"\n{title}: {len({(r['kind'], r['case']) for r in some})}\n")
        harness.show(header, summary(some))
    wanted = {"reject": "rejected", "accept": "accepted"}
    wrong = [r for r in rows if r["outcome"] != wanted.get(r["verdict"], r["outcome"])]
    if options.cases:
        print()
        harness.show(["kind", "case", "loader", "outcome", "error"],
                     [[r["kind"], r["case"], r["loader"], r["outcome"], r["error"][:60]] for r in wrong])  # fmt: skip
    ours = [r for r in rows if r["loader"] == "tensorlib" and (r in wrong or r["outcome"].startswith("crashed"))]
    sys.exit(f"tensorlib gets {len(ours)} cases wrong" if ours else 0)


if __name__ == "__main__":
    main()
