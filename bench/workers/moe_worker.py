"""One side of `bench.moe`: stays alive and answers one JSON line per line on standard input (see matvec_worker.py).

A case: format ("f32" or one in blocks), ggml_id, experts, top_k, hidden, width, tokens. Who is chosen, and with which
shares, is given; the rest is as the library does it: transformers' own class of experts by torch's grouped product; the
graph that llama.cpp builds of `ggml_mul_mat_id`, with the weights as in the file or repacked at load.
"""

import contextlib
import ctypes
import json
import os
import sys

import common
import matvec_worker
import numpy as np

matvec_worker.POINTERS += (
    " ggml_new_tensor_3d ggml_mul_mat_id ggml_swiglu_split ggml_mul ggml_add ggml_view_2d ggml_backend_graph_compute"
)


def draw(case):
    """(x, ids, shares), then (gate and up joined, down) in f32: the same in every process."""
    rng, (e, d, i) = np.random.default_rng(0), (case[name] for name in ("experts", "hidden", "width"))
    scores = rng.random((case["tokens"], e), np.float32)
    ids = np.argsort(-scores, 1)[:, : case["top_k"]].astype(np.int64)
    shares = np.take_along_axis(scores, ids, 1)
    x = rng.standard_normal((case["tokens"], d), np.float32)
    weights = [rng.standard_normal(s, np.float32) * s[-1] ** -0.5 for s in ((e, 2 * i, d), (e, d, i))]
    return (x, ids, shares / shares.sum(1, keepdims=True)), weights


def apart(case):
    """gate, up and down, each as it lies in a file: arrays of f32, or of blocks."""
    joined, down = draw(case)[1]
    parts = [*(np.ascontiguousarray(part) for part in np.split(joined, 2, 1)), down]
    if case["format"] == "f32":
        return parts
    import tensorlib

    encoded = [tensorlib.quantize(tensorlib.from_numpy(part), case["format"]) for part in parts]
    return [np.frombuffer(ctypes.string_at(w.ptr, w.nbytes), np.uint8) for w in encoded]


class Ours:
    """tensorlib: floats joined, blocks apart, as files have them."""

    def __init__(self, job):
        from tensorlib import backend

        self.context = contextlib.ExitStack()
        self.context.enter_context(backend.backend().pool.pinned())

    def prepare(self, case):
        """(function of the result's array, function without one)"""
        import tensorlib
        from tensorlib.ops import moe
        from tensorlib.quant.tensor import from_bytes

        operands, weights = draw(case)
        x, ids, shares = map(tensorlib.from_numpy, operands)
        if case["format"] == "f32":
            ups, down = map(tensorlib.from_numpy, weights)
        else:
            shapes = [(case["experts"], case["width"], case["hidden"])] * 2 + [weights[1].shape]
            *ups, down = (from_bytes(w, s, case["format"]) for w, s in zip(apart(case), shapes, strict=True))
            ups = tuple(ups)

        def mixed():
            x.memo = None
            return moe.mix(x, shares, ids, ups, down)

        return lambda: mixed().numpy(), mixed


class Torch:
    """transformers' experts of Qwen3-MoE, in inference mode."""

    def __init__(self, job):
        import torch

        torch.set_num_threads(job["threads"])

    def prepare(self, case):
        """As Ours; ValueError for blocks, which torch has no product with."""
        if case["format"] != "f32":
            raise ValueError("no blocks")
        import torch
        from transformers import Qwen3MoeConfig
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

        sizes = {"num_experts": case["experts"], "moe_intermediate_size": case["width"], "hidden_size": case["hidden"]}
        config = Qwen3MoeConfig(**sizes)
        config._experts_implementation = "grouped_mm"
        experts = Qwen3MoeExperts(config).eval().requires_grad_(False)
        (x, ids, shares), weights = (list(map(torch.from_numpy, some)) for some in draw(case))
        experts.gate_up_proj.copy_(weights[0])
        experts.down_proj.copy_(weights[1])

        def mixed():
            with torch.inference_mode():
                return experts(x, ids, shares)

        return lambda: mixed().numpy(), mixed


class Ggml(matvec_worker.Ggml):
    """llama.cpp's libraries through ctypes."""

    def _cube(self, context, kind, *sizes):
        return self._call("ggml_new_tensor_3d", context, ctypes.c_int(kind), *map(ctypes.c_int64, sizes))

    def _summed(self, context, parts, case):
        """Sum over a token's choices of [hidden, top_k, tokens], as llama.cpp adds them."""
        step, total = 4 * case["hidden"], None
        for i in range(case["top_k"]):
            sizes = ctypes.c_int64(case["hidden"]), ctypes.c_int64(case["tokens"])
            places = ctypes.c_size_t(step * case["top_k"]), ctypes.c_size_t(step * i)
            one = self._call("ggml_view_2d", context, parts, *sizes, *places)
            total = one if total is None else self._call("ggml_add", context, total, one)
        return total

    def prepare(self, case):
        """As Ours; ValueError where the buffer type has no such product."""
        e, k, d, i, t = (case[name] for name in ("experts", "top_k", "hidden", "width", "tokens"))
        of_weights, context = self._context(), self._context()
        self.held, self.buffers = (of_weights, context), []
        gate, up, down = (self._cube(of_weights, case["ggml_id"], *s) for s in ((d, i, e), (d, i, e), (i, d, e)))
        x, shares, ids = (
            self._cube(context, 0, d, 1, t),
            self._cube(context, 0, 1, k, t),
            self._tensor(context, 26, k, t),
        )
        hidden = [self._call("ggml_mul_mat_id", context, w, x, ids) for w in (gate, up)]
        h = self._call("ggml_swiglu_split", context, *hidden)
        parts = self._call("ggml_mul_mat_id", context, down, h, ids)
        out = self._summed(context, self._call("ggml_mul", context, parts, shares), case)
        plain = self._call("ggml_backend_cpu_buffer_type")
        for owner in ((of_weights, self.kind), (context, plain)):
            self.buffers.append(self._call("ggml_backend_alloc_ctx_tensors_from_buft", *owner))
        if not all(self._call("ggml_backend_supports_op", self.backend, op) & 1 for op in (*hidden, parts)):
            self.end()
            raise ValueError("not supported")
        for tensor, data in zip((gate, up, down), apart(case), strict=True):
            self._set(tensor, data)
        operands = draw(case)[0]
        for tensor, data, kind in zip((x, ids, shares), operands, ("f4", "i4", "f4"), strict=True):
            self._set(tensor, np.ascontiguousarray(data.astype(kind)))
        graph = self._call("ggml_new_graph", context)
        self._call("ggml_build_forward_expand", graph, out)

        def mixed():
            self._call("ggml_backend_graph_compute", self.backend, graph)

        def found():
            mixed()
            y = np.empty((t, d), np.float32)
            self._call("ggml_backend_tensor_get", out, y.ctypes.data, ctypes.c_size_t(0), ctypes.c_size_t(y.nbytes))
            return y

        return found, mixed


class Run(matvec_worker.Run):
    """A prepared case."""

    def __init__(self, side, case):
        found, mixed = side.prepare(case)
        found = found().reshape(-1)
        self.values = found[:: max(1, len(found) // matvec_worker.SHOWN)][: matvec_worker.SHOWN].tolist()
        self.products, self.count, self.next = [mixed], 1, 0
        while self.burst() * self.count < 2 * matvec_worker.ops_worker.BURST:
            self.count *= 2


def main():
    """The worker: its command line is one JSON object."""
    job = json.loads(sys.argv[1])
    common.confine(job["threads"])
    os.environ.setdefault("TENSORLIB_THREADS", str(job["threads"]))
    matvec_worker.serve({"tensorlib": Ours, "torch": Torch}.get(job["peer"], Ggml)(job), Run)


if __name__ == "__main__":
    main()
