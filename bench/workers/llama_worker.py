"""llama.cpp's side, through llama-cpp-python's ctypes API, so that no Python sampling stands in the loop.

How it is timed. Context of 1,024 cells, `n_ubatch` 512 so that the prompt is one batch, `n_threads` and
`n_threads_batch` as asked, everything else (flash attention: automatic, f16 cache, repacking of weights) as llama.cpp
sets it. *prompt*: the cache is cleared, then one `llama_decode` of the whole prompt and the greedy choice of the first
token (`llama_sampler_sample`, in C). *generate*: N times one `llama_decode` of one token and the greedy choice, end of
text ignored. The Python between two of those calls was measured at about 10 us a token. *streams*: one
`llama_decode` of all prompts, as its server batches them, then one of a token of every sequence at a time; the least
seconds of a cache that all share (`kv_unified`) and of one each.
"""

import ctypes
import time

import common
import llama_cpp as L
import numpy

FTYPES = {"q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "f16": 1}
quiet = L.llama_log_callback(lambda level, text, data: None)


class Session:
    """A model, a context and a greedy sampler."""

    def __init__(self, job):
        L.llama_log_set(quiet, None)
        L.llama_backend_init()
        self.model = L.llama_model_load_from_file(job["model"].encode(), L.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {job['model']}")
        self.vocab = L.llama_model_get_vocab(self.model)
        params = L.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = job.get("context", 1024), 512, 512
        params.n_seq_max, params.kv_unified = job.get("sequences", 1), job.get("unified", False)
        params.n_threads = params.n_threads_batch = job["threads"]
        self.context = L.llama_init_from_model(self.model, params)
        self.sampler, self.made = L.llama_sampler_init_greedy(), {}

    def tokenize(self, text):
        """`text` -> ids, without special tokens."""
        data = text.encode()
        ids = (L.llama_token * (len(data) + 8))()
        count = L.llama_tokenize(self.vocab, data, len(data), ids, len(ids), False, False)
        return list(ids[:count])

    def clear(self):
        L.llama_memory_clear(L.llama_get_memory(self.context), True)

    def decode(self, ids):
        """Run `ids` and return the greedy next token."""
        tokens = (L.llama_token * len(ids))(*ids)
        if L.llama_decode(self.context, L.llama_batch_get_one(tokens, len(ids))):
            raise SystemExit("llama_decode failed")
        return L.llama_sampler_sample(self.sampler, self.context, -1)

    def run(self, ids, count):
        """-> (seconds for the prompt, seconds for `count` more tokens, the tokens)."""
        self.clear()
        start = time.perf_counter()
        out = [self.decode(ids)]
        first = time.perf_counter()
        for _ in range(count):
            out.append(self.decode(out[-1:]))
        return first - start, time.perf_counter() - first, out

    def batch(self, tokens, width):
        """One batch of (token, position, sequence, whether its logits are asked for), for up to `width`."""
        made = self.made.setdefault(width, L.llama_batch_init(width, 0, 1))
        made.n_tokens = len(tokens)
        for i, (token, at, sequence, asked) in enumerate(tokens):
            made.token[i], made.pos[i], made.n_seq_id[i], made.seq_id[i][0] = token, at, 1, sequence
            made.logits[i] = asked
        if L.llama_decode(self.context, made):
            raise SystemExit("llama_decode failed")
        rows = [i for i, token in enumerate(tokens) if token[3]]
        return [L.llama_sampler_sample(self.sampler, self.context, i) for i in rows]

    def together(self, prompts, count):
        """-> (seconds until every prompt has `count` tokens, the tokens)."""
        self.clear()
        start = time.perf_counter()
        rows = [(t, i, s, i == len(ids) - 1) for s, ids in enumerate(prompts) for i, t in enumerate(ids)]
        out = [[token] for token in self.batch(rows, 512)]
        for n in range(count - 1):
            rows = [(ids[-1], len(prompts[s]) + n, s, True) for s, ids in enumerate(out)]
            for ids, token in zip(out, self.batch(rows, 512), strict=True):
                ids.append(token)
        return time.perf_counter() - start, out


def generate(job):
    """Prompt and generation speed: one short warm-up, then `repeats` runs."""
    session = Session(job)
    ids = session.tokenize(job["text"])[: job["prompt"]]
    session.run(ids[:32], 4)
    runs = [session.run(ids, job["tokens"]) for _ in range(job["repeats"])]
    return {
        "ids": ids,
        "out": runs[-1][2],
        "prompt": [[len(ids), run[0]] for run in runs],
        "generate": [[job["tokens"], run[1]] for run in runs],
    }


def streams(job):
    """Seconds until the last of some sequences has `tokens` tokens, `repeats` times."""
    prompts, found, out = job["prompts"], [], []
    for unified in (False, True):
        session = Session(
            {**job, "context": job["context"] * len(prompts), "sequences": len(prompts), "unified": unified}
        )
        session.together(prompts, 4)
        runs = [session.together(prompts, job["tokens"]) for _ in range(job["repeats"])]
        found.append([seconds for seconds, _ in runs])
        out = runs[-1][1]
    return {"seconds": min(found, key=sum), "out": out}


def greedy(job):
    """Greedy continuations, `tokens` long, of the prompts (lists of ids)."""
    session = Session(job)
    return {"out": [session.run(ids, job["tokens"] - 1)[2] for ids in job["prompts"]]}


def nll(job):
    """Sum of negative log-likelihoods over the windows of `job["windows"]`; the first one's logits go to `save`."""
    session = Session(job)
    total, count, width = 0.0, 0, L.llama_vocab_n_tokens(session.vocab)
    for ids in job["windows"]:
        session.clear()
        batch = L.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, True
        L.llama_decode(session.context, batch)
        flat = numpy.ctypeslib.as_array(L.llama_get_logits(session.context), (len(ids), width)).astype(numpy.float64)
        if not count:
            numpy.save(job["save"], flat.astype(numpy.float32))
        flat -= flat.max(1, keepdims=True)
        flat -= numpy.log(numpy.exp(flat).sum(1, keepdims=True))
        total -= float(flat[numpy.arange(len(ids) - 1), ids[1:]].sum())
        count += len(ids) - 1
        L.llama_batch_free(batch)
    return {"nll": total, "count": count}


def tokenize(job):
    """Ids of the job's text, without special tokens."""
    return {"ids": Session(job).tokenize(job["text"])}


def quantize(job):
    """Write `job["model"]` as `job["format"]` to `job["target"]`: for speed and agreement, not for quality."""
    L.llama_log_set(quiet, None)
    params = L.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = FTYPES[job["format"]], True, job["threads"]
    code = L.llama_model_quantize(job["model"].encode(), job["target"].encode(), ctypes.byref(params))
    if code:
        raise SystemExit(f"llama_model_quantize to {job['format']} failed with {code}")
    return {"target": job["target"]}


if __name__ == "__main__":
    common.main(
        {
            "generate": generate,
            "greedy": greedy,
            "nll": nll,
            "tokenize": tokenize,
            "quantize": quantize,
            "streams": streams,
        }
    )
