"""One library's side of `bench.ops`: stays alive and answers one JSON line per line on standard input.

    {"prepare": case}   builds the inputs, runs the expression twice, chooses how many calls a burst has;
                        answers {"digest": ...} (what the harness compares), or {"error": text}
    {"turn": seconds}   answers {"times": [seconds per call of each burst]}
    {"end": true}       forgets the case

Calls run in a loop of the expression itself, without a function call around it. torch runs in inference mode.
"""

import contextlib
import gc
import glob
import json
import sys
import time

import common

BURST = 0.002  # seconds that a burst lasts at least: much more than the clock's resolution
MOST = 20  # bursts per turn
PATIENCE = 10
DISTURBED = 0.02  # part of a burst that its threads may have waited for a core
UNIQUE = 10**7  # elements beyond which random inputs repeat


def draw(numpy, name, kind, *shape):
    """An input as a NumPy array: the same numbers in every process."""
    count = 1
    for n in shape:
        count *= n
    rng, unique = numpy.random.default_rng(ord(name)), min(count, UNIQUE)
    if kind in ("normal", "bf16"):
        values = rng.standard_normal(unique, numpy.float32)
    elif kind == "bool":
        values = rng.random(unique, numpy.float32) < 0.5
    else:
        values = rng.integers(0, int(kind.split()[1]), unique)
    return numpy.resize(values, count).reshape(shape)


def kept_waiting():
    """Seconds that this process's threads were ready to run and did not, because others had their core (Linux)."""
    total = 0
    for task in glob.glob("/proc/self/task/*/schedstat"):
        with contextlib.suppress(OSError), open(task) as file:
            total += int(file.read().split()[1])
    return total / 1e9


class Library:
    """The peer's modules, its threads, and how its arrays come from NumPy (as memory of its own) and go back."""

    def __init__(self, peer, threads):
        import numpy

        self.numpy, self.context = numpy, contextlib.ExitStack()
        if peer == "numpy":
            self.names, self.take = {"t": numpy}, lambda x: x
        elif peer == "torch":
            import torch

            torch.set_num_threads(threads)
            self.context.enter_context(torch.inference_mode())
            self.names, self.take = {"t": torch, "F": torch.nn.functional}, lambda x: torch.from_numpy(x).clone()
            self.half = torch.bfloat16
        else:
            import tensorlib
            from tensorlib import backend

            self.context.enter_context(backend.backend().pool.pinned())
            self.names, self.take, self.half = {"t": tensorlib}, lambda x: tensorlib.from_numpy(x).clone(), "bf16"

    def input(self, name, kind, *shape):
        """An input, drawn as float32."""
        x = self.take(draw(self.numpy, name, kind, *shape))
        return x.to(self.half) if kind == "bf16" else x

    def digest(self, found):
        """Shape and the mean absolute value of (a sample of) a result."""
        found = found[0] if isinstance(found, tuple) else found
        found = found.float() if str(found.dtype) in ("bf16", "torch.bfloat16") else found
        values = self.numpy.asarray(found if isinstance(found, self.numpy.generic) else self._back(found))
        flat = values.reshape(-1)[:: max(1, values.size >> 20)]
        return [list(values.shape), float(self.numpy.abs(flat.astype("f8")).mean())]

    def _back(self, found):
        return found.numpy() if hasattr(found, "numpy") else found


class Run:
    """A prepared case."""

    def __init__(self, library, case, code):
        inputs = {name: library.input(name, *spec) for name, spec in case["inputs"].items()}
        scope = {**library.names, **inputs}
        self.digest = library.digest(eval(code, scope))
        names = ", ".join(scope.keys() - {"__builtins__"})
        exec(f"def loop(count, {names}):\n    for _ in range(count):\n        {code}", scope)
        self.loop, self.inputs = scope["loop"], {k: v for k, v in scope.items() if k in names.split(", ")}
        self.count = 1
        seconds = self.burst()
        while seconds * self.count < BURST:
            self.count = max(self.count + 1, min(10 * self.count, int(1.2 * BURST / seconds)))
            seconds = self.burst()

    def burst(self):
        """Seconds per call."""
        began = time.perf_counter()
        self.loop(self.count, **self.inputs)
        return (time.perf_counter() - began) / self.count

    def turn(self, seconds):
        """Bursts for that long, after one to warm up. Those disturbed by other processes are measured again, for as
        long as `PATIENCE` times that; if all are, all count.
        """
        began, quiet, every = time.perf_counter(), [], []
        self.burst()
        while len(quiet) < MOST:
            spent = (time.perf_counter() - began) / seconds
            if every and (spent > PATIENCE or (quiet and spent > 1)):
                break
            waited = kept_waiting()
            every.append(self.burst())
            if kept_waiting() - waited < DISTURBED * every[-1] * self.count:
                quiet.append(every[-1])
        return quiet or every


def answer(library, peer, message, state):
    """The reply to one message; `state` holds the prepared case."""
    if "turn" in message:
        return {"times": state["run"].turn(message["turn"])}
    state.clear()
    gc.collect()
    if "prepare" not in message:
        return {}
    try:
        state["run"] = Run(library, message["prepare"], message["prepare"][peer])
    except Exception as e:  # the harness reports it as a case that this library lacks
        return {"error": f"{type(e).__name__}: {e}"}
    return {"digest": state["run"].digest}


def main():
    """Serve until standard input ends."""
    job, out, state = json.loads(sys.argv[1]), sys.stdout, {}
    sys.stdout = sys.stderr  # what libraries print must not disturb the answers
    common.confine(job["threads"])
    library = Library(job["peer"], job["threads"])
    gc.disable()
    print(json.dumps({"version": job["peer"]}), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(library, job["peer"], json.loads(line), state)), file=out, flush=True)


if __name__ == "__main__":
    main()
