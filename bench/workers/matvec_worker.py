"""One side of `bench.matvec`: stays alive and answers one JSON line per line on standard input (see ops_worker.py).

    {"prepare": case}   makes weights and activations; answers {"values": a few results}, or {"error": text}
    {"turn": seconds}   answers {"times": [seconds per product of each burst]}
    {"end": true}       forgets the case

A case: format, ggml_id, elements, nbytes (of a block), scales (byte offsets of f16), n, k, m, copies. llama.cpp runs as
it does itself: a graph of one `ggml_mul_mat` on its CPU backend, on blocks as in the file, or ("repacked") in the
buffer type that interleaves rows at load.
"""

import contextlib
import ctypes
import json
import mmap
import os
import re
import sys
import time

import common
import numpy as np
import ops_worker

SHOWN = 64
POINTERS = (
    "ggml_init ggml_new_tensor_2d ggml_mul_mat ggml_new_graph ggml_backend_cpu_init ggml_backend_cpu_reg "
    "ggml_backend_cpu_buffer_type ggml_backend_alloc_ctx_tensors_from_buft ggml_backend_reg_dev_get "
    "ggml_backend_reg_get_proc_address ggml_get_type_traits_cpu"
)


def blocks(case):
    """Bytes of a matrix: random but for the scales, which are small."""
    rng, few = np.random.default_rng(case["ggml_id"] or 0), 61  # rows, then again: no divisor of what `Run` looks at
    count = case["k"] // case["elements"]
    data = rng.integers(0, 256, (few * count, case["nbytes"]), dtype=np.uint8)
    for at in case["scales"]:
        scale = rng.uniform(0.001, 0.01, (len(data), 1)).astype(np.float16)
        data[:, at : at + 2] = scale.view(np.uint8)
    if case["format"] == "mxfp4":
        data[:, 0] = rng.integers(118, 124, len(data))
    if case["format"].startswith("f8"):
        data &= 0xBF  # no NaN
    if case["format"] == "q8_k" or case["ggml_id"] is None:
        data[:, :4] = rng.uniform(0.001, 0.01, (len(data), 1)).astype(np.float32).view(np.uint8)
    if case["format"] == "iq1_m":  # its f16 lies in the high nibbles of four words: 0x2400
        data[:, 49::2] = data[:, 49::2] & 15 | np.array([0x00, 0x00, 0x40, 0x20], np.uint8)
    return np.resize(data, (case["n"], count * case["nbytes"]))


class Ours:
    """tensorlib: weights in plain memory, activations quantised anew in every product."""

    def __init__(self, job):
        from tensorlib import backend

        self.context = contextlib.ExitStack()
        self.context.enter_context(backend.backend().pool.pinned())

    def prepare(self, case, data, x):
        """(products, one per copy; function of the result)"""
        import tensorlib
        from tensorlib.quant.tensor import from_bytes

        shape, weights = (case["n"], case["k"]), []
        for _ in range(case["copies"]):
            memory = mmap.mmap(-1, data.nbytes)
            memory.write(data)
            weights.append(from_bytes(memory, shape, case["format"]))
        x = tensorlib.from_numpy(x).clone()

        def product(weight):
            x.memo = None
            return weight.linear(x)

        return [lambda w=w: product(w) for w in weights], lambda: product(weights[0]).numpy()


class Dense(Ours):
    """tensorlib: the same weights as floats."""

    def __init__(self, job):
        super().__init__(job)
        self.dtype = job["peer"].removeprefix("tensorlib ")

    def prepare(self, case, data, x):
        """(products, one per copy; function of the result). ValueError for formats that have another peer."""
        import tensorlib
        from tensorlib.quant.tensor import from_bytes

        if case["ggml_id"] is not None:
            raise ValueError("llama.cpp has it")
        made = from_bytes(data, (case["n"], case["k"]), case["format"]).dequantize(self.dtype, tensorlib.Tensor)
        nbytes = made.numel() * made.dtype.itemsize
        weights = [made, *(made.clone() for _ in range(1, -(-case["copies"] * data.nbytes // nbytes)))]
        x = tensorlib.from_numpy(x).clone()
        return [lambda w=w: tensorlib.linear(x, w) for w in weights], lambda: tensorlib.linear(x, weights[0]).numpy()


class Ggml:
    """llama.cpp's libraries through ctypes."""

    def __init__(self, job):
        folder = job["library"]
        for name in ("ggml-base", "ggml-cpu", "ggml"):  # wheels add a hash to the name
            like = re.compile(rf"lib{name}(-[0-9a-f]{{8}})?\.so[.0-9]*")
            path = min(filter(like.fullmatch, os.listdir(folder)), key=len)
            library = ctypes.CDLL(os.path.join(folder, path), mode=ctypes.RTLD_GLOBAL)
        self.lib, self.repacked = library, job["peer"].endswith("repacked")
        for name in POINTERS.split():
            getattr(library, name).restype = ctypes.c_void_p
        self.backend = self._call("ggml_backend_cpu_init")
        self._call("ggml_backend_cpu_set_n_threads", self.backend, ctypes.c_int(job["threads"]))
        self.kind = self._repack() if self.repacked else self._call("ggml_backend_cpu_buffer_type")

    def _call(self, name, *args):
        wrapped = [ctypes.c_void_p(a) if a is None or type(a) is int else a for a in args]
        return getattr(self.lib, name)(*wrapped)

    def _repack(self):
        """The first extra buffer type of the CPU's device."""
        reg = self._call("ggml_backend_cpu_reg")
        device = self._call("ggml_backend_reg_dev_get", reg, ctypes.c_size_t(0))
        get = self._call("ggml_backend_reg_get_proc_address", reg, b"ggml_backend_dev_get_extra_bufts")
        kinds = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(get)(device)
        return kinds[0]

    def _context(self):
        class Params(ctypes.Structure):
            _fields_ = [("size", ctypes.c_size_t), ("memory", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]

        return self.lib.ggml_init(Params(16 << 20, None, True))

    def _tensor(self, context, kind, n, m):
        return self._call("ggml_new_tensor_2d", context, ctypes.c_int(kind), ctypes.c_int64(n), ctypes.c_int64(m))

    def _set(self, tensor, data):
        size = ctypes.c_size_t(data.nbytes)
        self._call("ggml_backend_tensor_set", tensor, data.ctypes.data, ctypes.c_size_t(0), size)

    def prepare(self, case, data, x):
        """(products, one per copy; function of the result). ValueError for what llama.cpp cannot multiply."""
        if case["ggml_id"] is None:
            raise ValueError("not llama.cpp's")
        traits = self._call("ggml_get_type_traits_cpu", ctypes.c_int(case["ggml_id"]))
        if not ctypes.c_void_p.from_address(traits + 8).value:
            raise ValueError("no vec_dot")
        of_weights, context = self._context(), self._context()
        self.held = (of_weights, context)
        weights = [self._tensor(of_weights, case["ggml_id"], case["k"], case["n"]) for _ in range(case["copies"])]
        inputs = self._tensor(context, 0, case["k"], case["m"])
        results = [self._call("ggml_mul_mat", context, w, inputs) for w in weights]
        plain = self._call("ggml_backend_cpu_buffer_type")
        owners = (of_weights, self.kind), (context, plain)
        self.buffers = [self._call("ggml_backend_alloc_ctx_tensors_from_buft", *owner) for owner in owners]
        if not self._call("ggml_backend_supports_op", self.backend, results[0]) & 1:
            self.end()
            raise ValueError("not supported")
        for w in weights:
            self._set(w, data)
        self._set(inputs, x)
        graphs = [self._call("ggml_new_graph", context) for _ in results]
        for graph, result in zip(graphs, results, strict=True):
            self._call("ggml_build_forward_expand", graph, result)

        def product(graph):
            self.lib.ggml_backend_graph_compute(ctypes.c_void_p(self.backend), ctypes.c_void_p(graph))

        def last():
            product(graphs[0])
            out = np.empty((case["m"], case["n"]), np.float32)
            size = ctypes.c_size_t(out.nbytes)
            self._call("ggml_backend_tensor_get", results[0], out.ctypes.data, ctypes.c_size_t(0), size)
            return out

        return [lambda g=g: product(g) for g in graphs], last

    def end(self):
        """Frees what `prepare` made."""
        for buffer in self.buffers:
            self._call("ggml_backend_buffer_free", buffer)
        for context in self.held:
            self._call("ggml_free", context)


class Run(ops_worker.Run):
    """A prepared case."""

    def __init__(self, side, case):
        x = np.random.default_rng(1).standard_normal((case["m"], case["k"])).astype(np.float32)
        self.side = side
        self.products, last = side.prepare(case, blocks(case), x)
        found = last().reshape(-1)
        self.values = found[:: max(1, len(found) // SHOWN)][:SHOWN].tolist()
        self.count, self.next = 1, 0
        while self.burst() * self.count < 2 * ops_worker.BURST:
            self.count *= 2

    def burst(self):
        """Seconds per product, the copies taking turns."""
        products, at = self.products, self.next
        began = time.perf_counter()
        for i in range(at, at + self.count):
            products[i % len(products)]()
        self.next = at + self.count
        return (time.perf_counter() - began) / self.count


def serve(side, kind):
    """Answers messages until there are no more; `kind` is the class of a prepared case."""
    answer, run = sys.stdout, None
    sys.stdout = sys.stderr
    print("{}", file=answer, flush=True)
    for line in sys.stdin:
        message = json.loads(line)
        reply = {}
        if "prepare" in message:
            try:
                run = kind(side, message["prepare"])
                reply = {"values": run.values}
            except ValueError as e:
                reply = {"error": str(e)}
        elif "turn" in message:
            reply = {"times": run.turn(message["turn"])}
        else:
            run = None
            getattr(side, "end", lambda: None)()
        print(json.dumps(reply), file=answer, flush=True)


def main():
    """The worker: its command line is one JSON object."""
    job = json.loads(sys.argv[1])
    common.confine(job["threads"])
    os.environ.setdefault("TENSORLIB_THREADS", str(job["threads"]))
    side = Ours if job["peer"] == "tensorlib" else Dense if job["peer"].startswith("tensorlib") else Ggml
    serve(side(job), Run)


if __name__ == "__main__":
    main()
