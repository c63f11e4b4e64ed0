"""One library's side of `bench.train`: builds a model and trains it on one batch.

{"steps": n}   trains so many steps; answers {"times": [seconds, ...], "losses": [...], "peak": MiB, "grown": MiB}
"""

import contextlib
import json
import sys
import time

import common
import train_models

WARM = 2  # steps before the first that counts


def resident():
    """Resident memory of this process in MiB."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


class Training:
    """A model of `train_models`, its optimiser and its batch."""

    def __init__(self, peer, threads, case, autocast):
        import numpy

        if peer == "torch":
            import torch as T
            from torch import nn, optim

            T.set_num_threads(threads)
            low = lambda: T.autocast("cpu", dtype=T.bfloat16)  # noqa: E731
        else:
            import tensorlib as T
            from tensorlib import amp, backend, nn, optim

            self.pinned = backend.backend().pool.pinned()
            self.pinned.__enter__()
            low = lambda: amp.autocast(dtype="bf16")  # noqa: E731
        self.casting = low if autocast else contextlib.nullcontext
        functions = nn.functional
        make, data, batch = train_models.CASES[case]
        rng = numpy.random.default_rng(0)
        self.model = make(T, nn, functions)
        parameters = list(self.model.parameters())
        values = train_models.weights(self.model, rng)
        with T.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(T.from_numpy(numpy.ascontiguousarray(values[name], "f4")))
        self.x, self.y = (T.from_numpy(numpy.ascontiguousarray(a)).clone() for a in data(rng, batch))
        self.optimizer = optim.AdamW(parameters, lr=1e-4)
        self.loss_of, self.before = functions.cross_entropy, resident()

    def step(self):
        """One step; its loss."""
        with self.casting():
            loss = self.loss_of(self.model(self.x), self.y)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def turn(self, steps, warm):
        """Steps, of which the first `warm` are not timed."""
        times, losses = [], []
        for i in range(warm + steps):
            began = time.perf_counter()
            losses.append(self.step())
            if i >= warm:
                times.append(time.perf_counter() - began)
        peak = common.peak_kb() / 1024
        return {"times": times, "losses": losses, "peak": peak, "grown": peak - self.before}


def main():
    """Serve until standard input ends."""
    job, out = json.loads(sys.argv[1]), sys.stdout
    sys.stdout = sys.stderr  # what libraries print must not disturb the answers
    common.confine(job["threads"])
    training, warm = Training(job["peer"], job["threads"], job["case"], job["autocast"]), WARM
    print(json.dumps({"version": job["peer"]}), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(training.turn(json.loads(line)["steps"], warm)), file=out, flush=True)
        warm = 1


if __name__ == "__main__":
    main()
