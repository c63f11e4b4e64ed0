"""Products with weights in GGML blocks against llama.cpp on the CPU: every format, one token and 512, medians.

    python -m bench.matvec [--library FOLDER] [--formats q4_0,iq4_xs] [--threads 1,2] [--cases memory,cache,prefill]

The peer is llama.cpp's own ggml, one `ggml_mul_mat` a graph, from the folder with libggml-cpu: that of the installed
peer (`python -m bench.peers install llama.cpp`, built for this very CPU) unless another is given. It runs twice: on
blocks as in the file, and repacked at load where it has a layout for that; the faster counts. tensorlib runs on the
file's blocks. Both quantise the activations in every product.

Cases: "memory" streams matrices of 11008 x 4096 one after the other, 96 MiB or more of them; "cache" has one of
4096 x 4096, "prefill" one of 2048 x 4096 with 512 tokens. Each library has a process of its own per number of threads;
they take turns, the others being stopped meanwhile. Results are compared. A ratio above 1 is tensorlib being faster.

`--formats nf4_64,f8_128 --csv bench/results/matvec_floats.csv`: formats of other libraries' checkpoints. Their peers
are the same weights as bf16 and as f32, tensorlib's own products, since llama.cpp has no such formats.
"""

import argparse
import glob
import math
import sys
import time

from bench import harness, ops, peers
from tensorlib.quant import formats

OURS, PLAIN, REPACKED = "tensorlib", "llama.cpp", "llama.cpp repacked"
DENSE = {f"tensorlib {dtype}": dtype for dtype in ("bf16", "f32")}
CASES = {"memory": (11008, 4096, 1, 96 << 20), "cache": (4096, 4096, 1, 0), "prefill": (2048, 4096, 512, 0)}
NAMES = [f.name for f in formats.BY_ID.values() if f.quantized]
OTHERS = ("nf4_64", "fp4_64", "f8_128")
HALVES = dict.fromkeys(NAMES, (0,)) | dict.fromkeys(OTHERS, ())  # where a block has its f16 scales
HALVES |= dict.fromkeys(("q4_1", "q5_1", "q8_1", "q4_k", "q5_k"), (0, 2))
HALVES |= {"q2_k": (80, 82), "q3_k": (108,), "q6_k": (208,), "tq1_0": (52,), "tq2_0": (64,)}
HALVES |= dict.fromkeys(("mxfp4", "nvfp4", "q8_k", "iq1_m"), ())
TARGETS = 1.4, 1.0  # geometric mean and least ratio of one token
TOLERANCE = 0.03  # between results: llama.cpp rounds activations by 256, we by 32


def case_of(name, row):
    """A case as the worker takes it."""
    n, k, m, least = CASES[name]
    out = {"format": row.name, "ggml_id": row.ggml_id, "elements": row.elements, "nbytes": row.nbytes}
    copies = max(1, -(-least // (n * row.row_bytes(k))))
    return out | {"scales": HALVES[row.name], "n": n, "k": k, "m": m, "copies": copies}


def find_library():
    """Folder of llama.cpp's libggml-cpu in the peer's environment, or None."""
    found = glob.glob(str(peers.CACHE / "peers" / "llama.cpp" / "lib*" / "*" / "site-packages" / "**" / "libggml-cpu*"))
    return min(found, key=len).rpartition("/")[0] if found else None


def sides(options, library):
    """Whom to ask: of the peers those that have any of the formats."""
    others = [name in OTHERS for name in options.formats.split(",")]
    return (OURS, *((PLAIN, REPACKED) if library and not all(others) else ()), *(DENSE if any(others) else ()))


def differ(values, other):
    """Relative distance of two lists of results."""
    top = math.sqrt(sum(v * v for v in other))
    return math.sqrt(sum((v - w) ** 2 for v, w in zip(values, other, strict=True))) / top


def measure(case, workers, rounds, seconds):
    """{peer: [seconds per product, ...]} of those that have the format."""
    times, values = {}, {}
    for worker in workers:
        found = worker.ask(prepare=case)
        if "values" in found:
            times[worker.peer], values[worker.peer] = [], found["values"]
    for peer, found in values.items():
        if (far := differ(found, values.get(OURS, found))) > TOLERANCE:
            raise SystemExit(f"{case['format']}: {peer} is off tensorlib by {far:.3f} of the result")
    ready = [worker for worker in workers if worker.peer in times]
    for turn in range(rounds):
        for worker in ready[turn % len(ready) :] + ready[: turn % len(ready)]:
            time.sleep(ops.REST)
            times[worker.peer] += worker.ask(turn=seconds)["times"]
    for worker in ready:
        worker.ask(end=True)
    return times


def table(results, name, peers=(PLAIN, REPACKED)):
    """Rows (format, then per number of threads our speed, the peers', the ratio), and the ratios."""
    lines, ratios = [], {}
    for row in dict.fromkeys(row for _, which, row, _ in results if which == name):
        line = [row]
        for threads, _, _, times in (r for r in results if r[1] == name and r[2] == row):
            n, k, m, _ = CASES[name]
            middle = ops.medians(times)
            line += [f"{n * k * m / middle[p] / 1e9:.1f}" if p in middle else "-" for p in (OURS, *peers)]
            ratio = ops.ratio(times, peers)
            line.append("-" if ratio is None else f"{ratio:.2f}")
            if ratio is not None:
                ratios[row, threads] = ratio
        lines.append(line)
    return lines, ratios


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--library", help="folder with libggml-base, libggml-cpu and libggml; default: looked for")
    parser.add_argument("--formats", default=",".join(NAMES), help="comma-separated; default: all")
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated; default: all")
    parser.add_argument("--threads", default="1,2", help="comma-separated")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns: a first look")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--csv", help="where to write the rows; default: bench/results/matvec.csv; '-' for nowhere")
    return parser.parse_args()


def run(options, library):
    """[(threads, case, format, times)]"""
    results, chosen = [], sides(options, library)
    rounds, seconds = (3, 0.03) if options.quick else (5, 0.05)
    for threads in harness.numbers(options.threads):
        workers = [ops.Worker(peer, threads, "matvec_worker.py", {"library": library}) for peer in chosen]
        for name in options.cases.split(","):
            for row in map(formats.get, options.formats.split(",")):
                ops.progress(f"{threads} threads, {name}, {row.name}")
                results.append((threads, name, row.name, measure(case_of(name, row), workers, rounds, seconds)))
        ops.progress("")
        for worker in workers:
            worker.close()
    return results


def main():
    """Command line of `python -m bench.matvec`."""
    options, host, written, every = arguments(), harness.machine(), [], {}
    library = options.library or find_library()
    results = run(options, library)
    harness.headline(host)
    print(f"peer: {library}; speeds in billion weights a second (times tokens)\n")
    against = sides(options, library)[1:] or (PLAIN, REPACKED)
    columns = ["ours", *(peer.removeprefix("llama.cpp ").removeprefix("tensorlib ") for peer in against), "ratio"]
    header = ["format", *(f"{c}, {t} thr" for t in harness.numbers(options.threads) for c in columns)]
    for name in options.cases.split(","):
        lines, ratios = table(results, name, against)
        print(f"{name}: {CASES[name][0]} x {CASES[name][1]}, {CASES[name][2]} tokens\n")
        harness.show(header, lines)
        if ratios:
            least = min(ratios, key=ratios.get)
            print(f"\ngeometric mean {ops.geomean(ratios.values()):.2f}, least {ratios[least]:.2f} ({least[0]})\n")
        every |= {(name, *key): ratio for key, ratio in ratios.items() if CASES[name][2] == 1}
    for threads, name, row, times in results:
        for peer, samples in times.items():
            version = "libggml" if peer in (PLAIN, REPACKED) else "checkout"
            where = {"threads": threads, "format": row, "amount": "x".join(map(str, CASES[name][:3]))}
            written.append(harness.row(host, name, peer, version, [1e6 * s for s in samples], "us", **where))
    if not options.quick:
        harness.write(written, "matvec", options)
    if every:
        mean, least = ops.geomean(every.values()), min(every, key=every.get)
        met = mean >= TARGETS[0] and every[least] >= TARGETS[1]
        text = f"one token: geometric mean {mean:.2f}, least {every[least]:.2f} ({' '.join(map(str, least))})"
        print(f"{'met' if met else 'MISSED'}: {text}; wanted {TARGETS[0]}, none below {TARGETS[1]}", file=sys.stderr)
        sys.exit(1 if options.check and not met else 0)


if __name__ == "__main__":
    main()
