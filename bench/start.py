"""Import time, process start to first generated token for each peer, and the first start ever, without a kernel cache.

    python -m bench.start --peers llama.cpp,mistral.rs --repeats 9

*import*: wall time of a whole `python -c "import tensorlib"` less that of `python -c pass`, run alternately. Whether
NumPy is counted in is printed, as it is read from `sys.modules`.
*first token*: from just before the process is made to the arrival of its first token on our end of the pipe; each peer
runs its own shortest program (`peers.py`, `*_START`) in its own Python, in turn; the model file is in the page cache.
*tensorlib generate* is the same through the command line, to the first byte of the answer.
*first start*: the same program of tensorlib with an empty kernel cache; how long it compiles depends on the machine.
`--check` fails when a target is missed.
"""

import os
import subprocess
import sys
import tempfile
import time

from bench import harness, models, peers

PROMPT = "The capital of France is"
HEAVY = "numpy numba llvmlite torch triton transformers tokenizers jinja2".split()
FORBIDDEN = "numba llvmlite torch triton".split()
IMPORTS = {"python -c pass": "pass", "import tensorlib": "import tensorlib", "import numpy": "import numpy"}
TARGETS = {"import": 40.0, "first token": 350.0, "first start": 60_000.0}  # milliseconds


def wall(code):
    """Milliseconds of a whole `python -c code` in the checkout."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=harness.ROOT, check=True)
    return (time.perf_counter() - start) * 1e3


def first_output(command):
    """Milliseconds from before the process is made until its first byte on standard output."""
    start = time.perf_counter()
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=harness.ROOT, stdout=subprocess.PIPE, stderr=quiet, bufsize=0) as process:
        byte = process.stdout.read(1)
        taken = (time.perf_counter() - start) * 1e3
        process.stdout.read()
    if not byte or process.returncode:
        raise SystemExit(f"{' '.join(command)[:300]} printed nothing or failed")
    return taken


def first_token(command, environment=None):
    """Milliseconds from before the process is made until it prints a line that starts with FIRST; and that line."""
    env = {**os.environ, **(environment or {})}
    start = time.perf_counter()
    with subprocess.Popen(
        command, cwd=harness.ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        for line in process.stdout:
            if line.startswith(b"FIRST"):
                taken = (time.perf_counter() - start) * 1e3
                process.stdout.read()
                return taken, line.decode()[6:].strip("\n")
        raise SystemExit(f"{command[0]} printed no token:\n{process.stderr.read().decode()[-2000:]}")


def loaded_modules(code, names):
    """Those of `names` that are in `sys.modules` at the end of a program."""
    code += f"\nimport sys\nprint('MODULES', *[name for name in {names} if name in sys.modules])"
    return harness.run([sys.executable, "-c", code]).rsplit("MODULES", 1)[1].split()


def import_times(repeats):
    """{label: [milliseconds over `python -c pass`]}; every round runs all programs, the bare one among them."""
    wall("import tensorlib, numpy")  # byte code is compiled and in the page cache
    rounds = [{label: wall(code) for label, code in IMPORTS.items()} for _ in range(repeats)]
    bare = harness.quantiles([each["python -c pass"] for each in rounds])[1]
    return {label: [each[label] - bare for each in rounds] for label in list(IMPORTS)[1:]}


def start_times(rows, options, path, threads):
    """{peer: [milliseconds to the first token]}, and the tokens that they printed."""
    own, times, tokens = harness.overrides(options), {}, {}
    for turn in range(options.repeats + 1):
        for peer in rows:
            code = peer.start.format(model=path, prompt=PROMPT, threads=threads)
            environment = {key: value.format(threads=threads) for key, value in peer.environment.items()}
            taken, tokens[peer.name] = first_token([peers.find(peer.name, own), "-c", code], environment)
            if turn:  # the first round fills caches and is not counted
                times.setdefault(peer.name, []).append(taken)
            if turn and peer is peers.TENSORLIB:
                command = [sys.executable, "-m", "zoo.cli", "generate", "-n1", f"-t{threads}", "-m", path, PROMPT]
                times.setdefault("tensorlib generate", []).append(first_output(command))
    return times, tokens


def first_start(path, threads):
    """Milliseconds of tensorlib's first start, with an empty folder as its kernel cache."""
    code = peers.TENSORLIB.start.format(model=path, prompt=PROMPT, threads=threads)
    with tempfile.TemporaryDirectory() as folder:
        return first_token([sys.executable, "-c", code], {"TENSORLIB_CACHE": folder})[0]


def misses(found):
    """Lines that name the targets missed; `found` is {(measure, label): samples}."""
    for (measure, label), samples in found.items():
        middle = harness.quantiles(samples)[1]
        if "tensorlib" in label and middle > TARGETS[measure]:
            yield f"{measure} {middle:.0f} ms, target {TARGETS[measure]:.0f} ms"
    mine, llama = found.get(("first token", "tensorlib")), found.get(("first token", "llama.cpp"))
    if mine and llama and harness.quantiles(mine)[1] >= harness.quantiles(llama)[1]:
        yield "first token: not below llama.cpp"


def main():
    """Command line of `python -m bench.start`."""
    parser = harness.parser(__doc__)
    parser.set_defaults(repeats=9, threads="2")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    options = parser.parse_args()
    host, rows, found, bad = harness.machine(), harness.contestants(options), {}, []
    path, threads = models.base(options.model), harness.numbers(options.threads)[-1]
    own = harness.overrides(options)
    times, tokens = start_times(rows, options, path, threads)
    if not options.without_tensorlib:
        found |= {("import", label): samples for label, samples in import_times(options.repeats).items()}
        found["first start", "tensorlib"] = [first_start(path, threads)]
        light = loaded_modules("import tensorlib", HEAVY)
        code = peers.TENSORLIB.start.format(model=path, prompt=PROMPT, threads=threads)
        full = loaded_modules(code, HEAVY)
        bad = [f"{name} is imported" for name in FORBIDDEN if name in light + full]
        print(f"sys.modules after import tensorlib: {light or 'none'} of {HEAVY}; after a token: {full or 'none'}")
    found |= {("first token", name): samples for name, samples in times.items()}
    print(f"first tokens: {tokens}")
    harness.headline(host)
    table = [(*key, *(f"{value:.0f}" for value in harness.quantiles(samples))) for key, samples in found.items()]
    harness.show(["milliseconds", "of", "p20", "p50", "p80"], table)
    written = []
    for (measure, label), samples in found.items():
        name = label if label in peers.PEERS else "tensorlib"
        version = peers.version(name, peers.find(name, own))
        written.append(harness.row(host, measure, label, version, samples, "ms", threads=threads))
    harness.write(written, "start", options)
    bad += misses(found)
    for line in bad:
        print(f"missed: {line}", file=sys.stderr)
    sys.exit(1 if options.check and bad else 0)


if __name__ == "__main__":
    main()
