"""Tries tiles of matrix products on this GPU, and keeps those that beat the tables of kernels_triton.

    python -m bench.tune matmul [--shapes 4096x4096x4096,...] [--dtypes f16,bf16] [--least 1.03]

Shapes are MxNxK of x @ w.T, as linear layers have it. Tried are the table's tiles and their neighbours, in bursts of
calls between two CUDA events. What is faster than the default by `--least` goes into one JSON per GPU's name under the
cache folder (tensorlib.backend.cache_root()), which every process reads from then on; remove it to forget.
"""

import argparse
import json
import os
import statistics
import sys

OPERANDS = {"f16": "f16", "bf16": "bf16", "f32": "f32", "tf32": "f32"}  # what --dtypes may name
PRECISION = {"tf32": "medium"}
SHAPES = "512x4096x4096,2048x4096x4096,4096x4096x4096,512x14336x4096,512x4096x14336"
SUMS = 128  # of a thread at most: all of its registers are 255
ROUNDS, SECONDS = 7, 0.02


class Forced(dict):
    """In place of `gpu.tuned["matmul"]`: one tile for every product, None: the table's; `key`: what was asked for."""

    def __init__(self, tile):
        super().__init__(any=tile)
        self.tile, self.key = tile, None

    def get(self, key, default=None):
        """The tile."""
        self.key = key
        return self.tile


def candidates(tiles, shared, itemsize):
    """The tiles of a table and their neighbours that shared memory and registers have room for."""
    found = dict.fromkeys(tiles)
    for t in tiles:
        around = [
            t._replace(**{f: v}) for f in ("m", "n", "k", "warps") for v in (getattr(t, f) * 2, getattr(t, f) // 2)
        ]
        found |= dict.fromkeys([*around, t._replace(stages=t.stages + 1), t._replace(stages=t.stages - 1)])
    fits = lambda t: (t.m + t.n) * t.k * itemsize * max(1, t.stages - 1) <= shared  # noqa: E731
    right = lambda t: min(t.m, t.n, t.k) >= 16 and 1 <= t.warps <= 16 and t.stages >= 1  # noqa: E731
    return [t for t in found if right(t) and fits(t) and t.m * t.n <= SUMS * 32 * t.warps]


def product(gpu, dtype, shape, tile):
    """(function of a number of calls of x @ w.T with that tile, what the kernel asked `gpu.tuned` for)."""
    import tensorlib
    from kernels_triton import matmul

    (m, n, k), operand = shape, OPERANDS[dtype]
    x, w = (tensorlib.randn(s, device="cuda:0").to(operand) for s in ((m, k), (n, k)))
    out = tensorlib.empty((m, n), dtype=operand, device="cuda:0")
    plan = matmul.build("product", operand, operand, operand, "none", "none", "none", PRECISION.get(dtype, "highest"))
    words = [x.ptr, w.ptr, out.ptr, 0, 0, m, n, k, k, 1, 1, k, n, 1, 0, 0, 0, 0]
    gpu.tuned, kept = {"matmul": Forced(tile)}, (x, w, out)

    def run(calls):
        for _ in range(calls):
            plan(gpu, words)
        return kept

    run(1)
    return run, gpu.tuned["matmul"].key


def seconds_of(gpu, dtype, shape, tile, clock):
    """(median of seconds per call, key); infinity for a tile that does not compile or load."""
    try:
        run, key = product(gpu, dtype, shape, tile)
        calls = max(1, min(1000, int(SECONDS / max(1e-9, clock(run, 2) / 2))))
        return statistics.median(clock(run, calls) / calls for _ in range(ROUNDS)), key
    except Exception as e:  # a tile too large for this GPU is no result
        print(f"{dtype} {shape}: {tile}: {type(e).__name__}: {str(e)[:120]}", file=sys.stderr)
        return float("inf"), None


def tune(gpu, dtype, shape, clock, least):
    """(key, tile or None, seconds of the default, of the tile): the best tile if it is that much faster."""
    from kernels_triton.launch import pick
    from kernels_triton.matmul_configs import TABLES

    base, key = seconds_of(gpu, dtype, shape, None, clock)
    if key is None:
        return None, None, base, base
    size = 2 if OPERANDS[dtype] != "f32" else 4
    tiles = candidates(pick(TABLES[key.split()[0]], gpu.arch), gpu.shared, size)
    taken, best = min((seconds_of(gpu, dtype, shape, t, clock)[0], t) for t in tiles)
    return key, best if base >= least * taken else None, base, taken


def store(path, room, found):
    """Adds {case: tile or None} to a room of the file; None removes what was there."""
    cases = {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            cases = json.load(file)
    kept = cases.get(room, {}) | found
    cases[room] = {k: list(v) for k, v in kept.items() if v}
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".part", "w", encoding="utf-8") as file:
        json.dump(cases, file, indent=1)
    os.replace(path + ".part", path)


def main():
    """Command line of `python -m bench.tune`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("room", choices=["matmul"])
    parser.add_argument("--shapes", default=SHAPES, help="MxNxK, comma-separated")
    parser.add_argument("--dtypes", default="f16", help=f"of {', '.join(OPERANDS)}; comma-separated")
    parser.add_argument("--least", type=float, default=1.03, help="how much faster than the default a tile must be")
    options = parser.parse_args()
    import kernels_triton

    lacking = kernels_triton.missing()
    if lacking:
        print(f"bench.tune measures on a GPU: {lacking}", file=sys.stderr)
        sys.exit(2)
    from bench.gpu import Clock
    from kernels_triton.launch import tuned_path
    from tensorlib.device import Device

    gpu, clock, found = Device("cuda:0").gpu, Clock(), {}
    for dtype in options.dtypes.split(","):
        for shape in (tuple(map(int, text.split("x"))) for text in options.shapes.split(",")):
            key, tile, base, taken = tune(gpu, dtype, shape, clock, options.least)
            found |= {key: tile} if key else {}
            print(f"{key}: {1e6 * base:.1f} us, best {1e6 * taken:.1f} us: {tile or 'as it is'}", flush=True)
    path = tuned_path(gpu.folder, gpu.name)
    store(path, options.room, found)
    print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
