"""Sentences per second of one encoder: one process, one peer, the shapes that the job asks for.

How it is timed: ids are given, vectors of length 1 are taken as a NumPy array; three calls to warm up, then as many as
fit in the job's seconds, each by the clock; the lower quartile of them. torch runs transformers' BertModel with a mean
and a norm, in inference mode; ONNX Runtime the graph of `encoder_onnx.py`, all optimizations on, its threads spinning.
"""

import time

import common
import numpy as np


def tensorlib_encoder(job):
    """tensorlib's, in the format of the job."""
    from zoo.embed import load

    model = load(job["model"], threads=job["threads"], quantize=job.get("quantize"))
    return lambda ids: model.embed(ids.tolist()).numpy()  # its last module makes them of length 1


def torch_encoder(job):
    """transformers' model and what sentence-transformers does after it."""
    import torch
    import transformers

    torch.set_num_threads(job["threads"])
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModel.from_pretrained(job["model"]).eval()

    def encode(ids):
        with torch.inference_mode():
            ids = torch.from_numpy(ids)
            x = model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state.mean(1)
            return torch.nn.functional.normalize(x).numpy()

    return encode


def onnx_encoder(job):
    """ONNX Runtime on the CPU."""
    import encoder_onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    graph = encoder_onnx.build(job["model"])
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda ids: session.run(None, {"ids": ids, "mask": np.ones_like(ids)})[0]


ENCODERS = {"tensorlib": tensorlib_encoder, "torch": torch_encoder, "onnxruntime": onnx_encoder}


def embed(job):
    """{shape: [seconds a call, first vector]}."""
    encode, found, clock = ENCODERS[job["peer"]](job), {}, getattr(time, job["clock"])
    for batch, length in job["shapes"]:
        ids = np.random.default_rng(length).integers(1000, 20000, (batch, length))
        ids[:, 0], ids[:, -1] = 101, 102
        for _ in range(3):
            vectors = encode(ids)
        times, end = [], time.perf_counter() + job["seconds"]
        while not times or time.perf_counter() < end:
            start = clock()
            encode(ids)
            times.append(clock() - start)
        found[f"{batch}x{length}"] = [sorted(times)[len(times) // 4], vectors[0].tolist()]
    return found


if __name__ == "__main__":
    common.main({"embed": embed})
