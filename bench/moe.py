"""Mixtures of experts on the CPU against transformers (torch) and llama.cpp: medians of a layer's experts.

    python -m bench.moe [--library FOLDER] [--cases qwen3,mixtral,step] [--formats f32,q8_0,q4_0] [--threads 1,2]

Random weights; the tokens' experts and shares are given. torch runs transformers' experts by its grouped product, on
f32; llama.cpp runs the graph it builds of `ggml_mul_mat_id`, twice as in `bench.matvec`: the faster counts. Every
library has a process of its own per number of threads; they take turns. Results are compared. A ratio above 1 is
tensorlib being faster.
"""

import argparse

from bench import harness, matvec, ops
from tensorlib.quant import formats

TORCH = "torch"
# (experts, of them per token, hidden size, their width, tokens)
CASES = {
    "qwen3": (128, 8, 1024, 384, 512), "mixtral": (8, 2, 1024, 3584, 512), "batch": (128, 8, 1024, 384, 16),
    "step": (128, 8, 1024, 384, 1),
}  # fmt: skip
SIZES = ("experts", "top_k", "hidden", "width", "tokens")


def case_of(name, fmt):
    """A case as the worker takes it."""
    return dict(zip(SIZES, CASES[name], strict=True)) | {"format": fmt, "ggml_id": formats.get(fmt).ggml_id}


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--library", help="folder with libggml-base, libggml-cpu and libggml; default: looked for")
    parser.add_argument("--formats", default="f32,q8_0,q4_0", help="comma-separated")
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated; default: all")
    parser.add_argument("--threads", default="1,2", help="comma-separated")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each library")
    parser.add_argument("--csv", help="where to write the rows; default: bench/results/moe.csv; '-' for nowhere")
    return parser.parse_args()


def run(options, library):
    """[(threads, case, format, {peer: [seconds, ...]})]"""
    results = []
    chosen = (matvec.OURS, TORCH, *((matvec.PLAIN, matvec.REPACKED) if library else ()))
    for threads in harness.numbers(options.threads):
        workers = [ops.Worker(peer, threads, "moe_worker.py", {"library": library}) for peer in chosen]
        for name in options.cases.split(","):
            for fmt in options.formats.split(","):
                ops.progress(f"{threads} threads, {name}, {fmt}")
                times = matvec.measure(case_of(name, fmt), workers, options.rounds, 0.3)
                results.append((threads, name, fmt, times))
        ops.progress("")
        for worker in workers:
            worker.close()
    return results


def table(results):
    """Rows: case, format, threads, milliseconds of each, how often as fast as each peer's best we are."""
    lines = []
    for threads, name, fmt, times in results:
        middle = {peer: 1e3 * seconds for peer, seconds in ops.medians(times).items()}
        best = [min((middle[p] for p in some if p in middle), default=None)
                for some in ((matvec.OURS,), (TORCH,), (matvec.PLAIN, matvec.REPACKED))]  # fmt: skip
        cells = ["-" if ms is None else f"{ms:.3g}" for ms in best]
        ratios = ["-" if ms is None else f"{ms / best[0]:.2f}" for ms in best[1:]]
        lines.append([name, fmt, threads, *cells, *ratios])
    return lines


def main():
    """Command line of `python -m bench.moe`."""
    options, host, written = arguments(), harness.machine(), []
    results = run(options, options.library or matvec.find_library())
    harness.headline(host)
    print("milliseconds; ratios above 1: tensorlib is faster\n")
    harness.show(["case", "format", "threads", "ours", "torch", "llama.cpp", "torch / ours", "llama.cpp / ours"],
                 table(results))  # fmt: skip
    for threads, name, fmt, times in results:
        for peer, samples in times.items():
            version = {matvec.OURS: "checkout", TORCH: "transformers"}.get(peer, "libggml")
            where = {"threads": threads, "format": fmt, "amount": "x".join(map(str, CASES[name]))}
            written.append(harness.row(host, name, peer, version, [1e3 * s for s in samples], "ms", **where))
    harness.write(written, "moe", options)


if __name__ == "__main__":
    main()
