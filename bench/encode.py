"""Encoders of GGML formats: error and speed against llama.cpp's, same weights, same importances, one thread each.

    python -m bench.encode [--library PATH/libggml-base.so] [--formats q4_0,q4_k] [--repeats 5]

The library is llama.cpp's own; one is looked for among the installed peers (`python -m bench.peers install llama.cpp`)
and in the site-packages of this Python (pywhispercpp's wheel brings one as well). Without it the peer is the gguf
package, which has fewer formats and runs NumPy.

An error is the root of the squared error, weighted by the importances where there are any. Ratios are medians over
kinds of weights (bell-shaped, with long tails, uniform) of ours to theirs: below 1 is better. Speeds are medians.
"""

import ctypes
import glob
import importlib.metadata
import statistics
import sys
import time

import numpy as np

from bench import harness, peers
from tensorlib import backend
from tensorlib.quant import formats
from tensorlib.quant.decode import dequantize
from tensorlib.quant.encode import _LIMITS, encode

SHAPE = (64, 4096)
REFERENCES = {"q8_1": "quantize_row_q8_1_ref", "q8_k": "quantize_row_q8_K_ref"}  # not in ggml_quantize_chunk
NEEDS_IMPORTANCES = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs")


def weights():
    """Kinds of weights, and importances of the columns."""
    rng = np.random.default_rng(0)
    kinds = {
        "bell": rng.standard_normal(SHAPE),
        "tails": rng.standard_t(4, SHAPE),
        "uniform": rng.uniform(-1, 1, SHAPE),
    }
    importances = (rng.chisquare(2, SHAPE[1]) + 0.01).astype(np.float32)
    return {name: (0.02 * x).astype(np.float32) for name, x in kinds.items()}, importances


def find_library():
    """llama.cpp's libggml-base in a peer's environment or in this one, or None."""
    folders = [str(peers.CACHE / "peers" / "*" / "lib" / "*" / "site-packages"), *sys.path]
    found = [
        path for folder in folders if folder for path in glob.glob(f"{folder}/*/**/libggml-base*.so*", recursive=True)
    ]
    return min(found, default=None, key=len)


class Ggml:
    """llama.cpp's encoders through its C interface."""

    name = "llama.cpp"

    def __init__(self, path):
        self.lib = ctypes.CDLL(path)
        self.lib.ggml_quantize_init.argtypes = [ctypes.c_int]
        for name in ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"):
            # their grids, before the clock runs
            self.lib.ggml_quantize_init(formats.get(name).ggml_id)
        self.lib.ggml_version.restype = ctypes.c_char_p
        self.lib.ggml_quantize_chunk.restype = ctypes.c_size_t
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self.lib.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
        self.version = f"libggml {self.lib.ggml_version().decode()}"

    def has(self, row, importances):
        """Whether it can encode to this format."""
        return row.name != "q2_0" and (importances is not None or row.name not in NEEDS_IMPORTANCES)

    def encode(self, row, x, importances):
        """Blocks of x."""
        out = np.empty((len(x), row.row_bytes(x.shape[1])), np.uint8)
        if row.name in REFERENCES:
            call = getattr(self.lib, REFERENCES[row.name])
            call(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(x.size))
            return out
        address = None if importances is None else importances.ctypes.data
        self.lib.ggml_quantize_chunk(row.ggml_id, x.ctypes.data, out.ctypes.data, 0, *x.shape, address)
        return out


class Gguf:
    """The gguf package."""

    name = "gguf"
    version = f"gguf {importlib.metadata.version('gguf')}"
    formats = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "tq1_0", "tq2_0", "mxfp4")

    def has(self, row, importances):
        """Whether it can encode to this format."""
        return row.name in self.formats and importances is None

    def encode(self, row, x, importances):
        """Blocks of x."""
        import gguf

        return gguf.quantize(x, gguf.GGMLQuantizationType(row.ggml_id))


def error(row, blocks, x, importances):
    """Root of the (weighted) squared error."""
    e = np.square(dequantize(blocks, row).astype(np.float64) - x)
    return float(np.sqrt((e if importances is None else e * importances).sum()))


def measure(peer, row, kinds, importances, repeats):
    """(error ratios over the kinds, our speeds, theirs in elements/s)."""
    ratios, speeds = [], ([], [])
    for x in kinds.values():
        runs = (lambda x=x: encode(row, x, importances)), (lambda x=x: peer.encode(row, x, importances))
        ours, theirs = (error(row, run(), x, importances) for run in runs)
        ratios.append(ours / theirs)
        for _ in range(repeats):
            for run, samples in zip(runs, speeds, strict=True):
                start = time.perf_counter()
                run()
                samples.append(x.size / (time.perf_counter() - start))
    return ratios, *speeds


def main():
    """Command line of `python -m bench.encode`."""
    parser = harness.parser(__doc__)
    parser.add_argument("--library", help="libggml-base.so of llama.cpp; default: looked for")
    parser.set_defaults(formats=",".join(_LIMITS))
    options = parser.parse_args()
    path = options.library or find_library()
    peer = Ggml(path) if path else Gguf()
    backend.set_num_threads(1)
    host, (kinds, importances), rows, table = harness.machine(), weights(), [], []
    for name in options.formats.split(","):
        row, line = formats.get(name), [name]
        for label, w in (("plain", None), ("imatrix", importances)):
            if not peer.has(row, w):
                line += ["-", "-", "-"]
                continue
            ratios, ours, theirs = measure(peer, row, kinds, w, options.repeats)
            where = {"threads": 1, "format": name, "amount": SHAPE[0] * SHAPE[1]}
            rows.append(harness.row(host, f"encode error {label}", peer.name, peer.version, ratios, "ratio", **where))
            for who, version, samples in (("tensorlib", "checkout", ours), (peer.name, peer.version, theirs)):
                rows.append(harness.row(host, f"encode {label}", who, version, samples, "elements/s", **where))
            speed = statistics.median(ours)
            line += [f"{statistics.median(ratios):.3f} (worst {max(ratios):.3f})"]
            line += [f"{speed / 1e6:.0f}", f"{speed / statistics.median(theirs):.1f}x"]
        table.append(line)
    harness.write(rows, "encode", options)
    harness.headline(host)
    print(f"peer: {peer.version}; speeds in million elements a second, one thread\n")
    header = ["format", "error ratio", "speed", "of peer's", "imatrix: error ratio", "speed", "of peer's"]
    harness.show(header, table)


if __name__ == "__main__":
    main()
