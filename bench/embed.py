"""Sentences per second of a text encoder, against ONNX Runtime and torch, and how near the vectors are.

    python -m bench.peers install onnxruntime
    python -m bench.embed --threads 2 --repeats 3

all-MiniLM-L6-v2: one sentence of 16 tokens, and 32 of 128. Each round runs every contestant once, in turn, each in a
process of its own. The ratio is to the better peer. *first result* is a whole process of `tensorlib embed`, to the
first byte of its answer. `--check` fails when a target is missed. On a machine that others use, `--clock process_time
--threads 1` compares the time that the CPU worked for each.
"""

import sys

import numpy as np

from bench import harness, peers
from bench.start import first_output
from tensorlib.io import folders
from zoo.embed import DEFAULT_MODEL

SHAPES = ((1, 16), (32, 128))
OURS = {"tensorlib f32": None, "tensorlib q8_0": "q8_0"}
# shape, who -> the least ratio to the better peer, the least cosine to torch's vectors
TARGETS = {
    ("1x16", "tensorlib f32"): (1.5, 0.99999),
    ("32x128", "tensorlib f32"): (1.15, 0.99999),
    ("32x128", "tensorlib q8_0"): (2.0, 0.999),
}
FIRST = 400.0  # milliseconds


def measure(name, folder, threads, options, own):
    """The worker's answer."""
    peer = name.split()[0]
    row = peers.PEERS.get(peer, peers.TENSORLIB)._replace(worker="embed_worker.py")
    row = row._replace(name=peer if peer in peers.PEERS else peers.TENSORLIB.name)
    job = {"task": "embed", "peer": peer, "model": folder, "threads": threads, "shapes": SHAPES}
    job |= {"seconds": options.seconds, "clock": options.clock}
    found = harness.work(row, {**job, "quantize": OURS.get(name)}, own)
    return {f"{batch}x{length}": found[f"{batch}x{length}"] for batch, length in SHAPES}


def compared(times, vectors):
    """Lines of the table, and the targets missed: times {(shape, name): [seconds]}, vectors likewise."""
    lines, bad = [], []
    for batch, length in SHAPES:
        shape = f"{batch}x{length}"
        middle = {name: harness.quantiles(t)[1] for (at, name), t in times.items() if at == shape}
        best = min((t for name, t in middle.items() if name not in OURS), default=float("nan"))
        for name, taken in middle.items():
            cosine = float(np.dot(vectors[shape, name], vectors.get((shape, "torch"), vectors[shape, name])))
            lines.append((shape, name, f"{batch / taken:.1f}", f"{best / taken:.2f}", f"{cosine:.7f}"))
            least, near = TARGETS.get((shape, name), (0, 0))
            if best / taken < least or cosine < near:
                bad.append(f"{name}, {shape}: {best / taken:.2f} times the better peer, cosine {cosine:.7f}")
    return lines, bad


def main():
    """Command line of `python -m bench.embed`."""
    parser = harness.parser(__doc__)
    parser.set_defaults(repeats=3, threads="2", peers="onnxruntime,torch")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each shape, in each round")
    parser.add_argument("--clock", choices=("perf_counter", "process_time"), default="perf_counter")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    options = parser.parse_args()
    host, own, threads = harness.machine(), harness.overrides(options), harness.numbers(options.threads)[-1]
    folder, times, vectors = folders.resolve(options.model or DEFAULT_MODEL), {}, {}
    names = [*(() if options.without_tensorlib else OURS), *filter(None, options.peers.split(","))]
    firsts = []
    for _ in range(options.repeats):
        for name in names:
            for shape, (taken, vector) in measure(name, folder, threads, options, own).items():
                times.setdefault((shape, name), []).append(taken)
                vectors[shape, name] = vector
        firsts.append(first_output([sys.executable, "-m", "zoo.cli", "embed", f"-t{threads}", "-m", folder, "Hello."]))
    harness.headline(host)
    lines, bad = compared(times, vectors)
    harness.show(["shape", "of", "sentences/s", "to the better peer", "cosine to torch"], lines)
    first = harness.quantiles(firsts)[1]
    print(f"\nfirst result of a process: {first:.0f} ms")
    bad += [f"first result: {first:.0f} ms, target {FIRST:.0f} ms"] if first > FIRST else []
    rows = []
    for (shape, name), samples in times.items():
        speeds = [int(shape.split("x")[0]) / t for t in samples]
        peer, _, kind = name.partition(" ")
        version = peers.version(peer, peers.find(peer, own))
        rows.append(harness.row(host, shape, peer, version, speeds, "sentences/s", threads=threads, format=kind))
    harness.write(rows, "embed", options)
    for line in bad:
        print(f"missed: {line}", file=sys.stderr)
    sys.exit(1 if options.check and bad else 0)


if __name__ == "__main__":
    main()
