"""tensorlib's side, through `zoo.generate` as a user would call it.

How it is timed. *prompt*: from the call of `generate` with the prompt's ids to its first token. *generate*: the next N
tokens of the same iterator, greedy, no stop ids. The model is loaded once per process; its cache starts over with
every call of `generate`.
"""

import ctypes
import pathlib
import sys
import threading
import time

import common

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # the checkout, as `python -m bench...` sees it


def open_model(job):
    """The model of the job, with the job's number of threads."""
    from zoo.generate import load

    return load(job["model"], threads=job["threads"])


def start(model, ids, count):
    """Iterator over `count` greedy tokens after the prompt; nothing stops it early."""
    from zoo.generate import SamplerConfig

    return iter(model.generate(ids, count, SamplerConfig(temperature=0.0), frozenset()))


def run(model, ids, count):
    """-> (seconds for the prompt, seconds for `count` more tokens, the tokens)."""
    began = time.perf_counter()
    stream = start(model, ids, count + 1)
    out = [next(stream)]
    first = time.perf_counter()
    out.extend(stream)
    return first - began, time.perf_counter() - first, out


def prompt_ids(model, job):
    """The first `prompt` ids of the job's text."""
    return list(model.tokenizer.encode(job["text"], add_special=False))[: job["prompt"]]


def generate(job):
    """Prompt and generation speed: one short warm-up, then `repeats` runs."""
    model = open_model(job)
    ids = prompt_ids(model, job)
    run(model, ids[:32], 4)
    runs = [run(model, ids, job["tokens"]) for _ in range(job["repeats"])]
    return {
        "ids": ids,
        "out": runs[-1][2],
        "prompt": [[len(ids), r[0]] for r in runs],
        "generate": [[len(r[2]) - 1, r[1]] for r in runs],
    }


def tokenize(job):
    """Ids of the job's text, without special tokens."""
    return {"ids": list(open_model(job).tokenizer.encode(job["text"], add_special=False))}


def streams(job):
    """Seconds until the last of some streams has `tokens` tokens, `repeats` times; the prompts come at once."""
    from tensorlib import nn
    from zoo.engine import Engine

    model = open_model(job)
    nn.prepack(model.model)
    engine, seconds = Engine(model, len(job["prompts"]), job["context"]), []
    for count in [4] + [job["tokens"]] * job["repeats"]:
        began = time.perf_counter()
        handles = [engine.submit(ids, count) for ids in job["prompts"]]
        while engine.busy:
            engine.step()
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds[1:], "out": [handle.ids for handle in handles]}


def pair(job):
    """Seconds of one model decoding alone, and of two models decoding at once on two Python threads, alternately.

    Each model computes with one thread; the process may use two cores.
    """
    models = [open_model({**job, "threads": 1}) for _ in range(2)]
    ids = prompt_ids(models[0], job)
    for model in models:
        run(model, ids, 4)
    alone, together = [], []
    for _ in range(job["repeats"]):
        alone.append(run(models[0], ids, job["tokens"])[1])
        seconds, barrier = [0.0, 0.0], threading.Barrier(2)

        def work(i, seconds=seconds, barrier=barrier):
            barrier.wait()
            seconds[i] = run(models[i], ids, job["tokens"])[1]

        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        together.append(max(seconds))
    return {"alone": alone, "together": together}


class Clock:
    """Wraps every ctypes function of an object: `seconds` spent in them and `calls` made, since `reset`."""

    def __init__(self, target):
        self.reset()
        for name, value in vars(target).items():
            if isinstance(value, ctypes._CFuncPtr):
                setattr(target, name, self.timed(value))

    def reset(self):
        self.seconds, self.calls = 0.0, 0

    def timed(self, function):
        """The same function, clocked."""

        def call(*arguments, clock=time.perf_counter):
            start = clock()
            result = function(*arguments)
            self.seconds += clock() - start
            self.calls += 1
            return result

        return call


def share(job):
    """Per run of the decode: seconds in native code, seconds in all, native calls; `plain` is without the clock."""
    model = open_model(job)
    ids = prompt_ids(model, job)
    run(model, ids, 4)
    plain = [run(model, ids, job["tokens"])[1] for _ in range(job["repeats"])]
    from tensorlib import backend

    clock, runs = Clock(backend.backend().pool), []
    for _ in range(job["repeats"]):
        stream = start(model, ids, job["tokens"] + 1)
        next(stream)
        clock.reset()
        began = time.perf_counter()
        count = sum(1 for _ in stream)
        runs.append([clock.seconds, time.perf_counter() - began, clock.calls])
        if count != job["tokens"] or not clock.calls:
            raise SystemExit(f"share: {count} tokens, {clock.calls} native calls seen; the pool's entry points moved")
    return {"plain": plain, "runs": runs}


if __name__ == "__main__":
    common.main({"generate": generate, "pair": pair, "share": share, "streams": streams, "tokenize": tokenize})
