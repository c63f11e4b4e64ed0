"""What `tensorlib bench` measures: see `measure.py`."""

import os
import statistics
import subprocess
import sys
import time

PEAK = """
import sys
from zoo.speed import Alone, peak
from zoo.generate import load
model = load(sys.argv[1] or None, int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
Alone(model, int(sys.argv[5]), int(sys.argv[6])).run()
print("PEAK", peak())
"""


def rows(arguments):
    """Yields a row (a dict) for each measurement, those of start and memory last. TensorlibError."""
    import tensorlib
    from tensorlib import backend
    from tensorlib.errors import FormatError
    from zoo.generate import load

    prompt, tokens = arguments.prompt, arguments.tokens
    context = arguments.context or prompt + tokens + 1
    model = load(arguments.model, None, context, arguments.device)
    if not hasattr(model, "cache"):
        raise FormatError(str(arguments.model), "model", type(model.model).__name__, "a model that continues a text")
    threads = arguments.threads or [backend.backend().pool.threads]
    common = described(model) | {"device": str(model.device), "repeats": arguments.repeats}
    common["version"] = tensorlib.__version__
    for count in threads:
        backend.set_num_threads(count)
        for batch in arguments.batch:
            one = Alone(model, prompt, tokens) if batch == 1 else Together(model, prompt, tokens, batch)
            one.run()  # compiles, reads the file, records the step
            runs = [one.run() for _ in range(arguments.repeats)]
            here = common | {"threads": count, "batch": batch}
            yield here | _figures("prompt", prompt, [batch * prompt / first for first, _ in runs], "tokens/s")
            yield here | _figures("generate", tokens, [batch * tokens / rest for _, rest in runs], "tokens/s")
    if not arguments.no_start:
        common |= {"threads": threads[-1], "batch": 1}
        yield from _processes(arguments, common, context, threads[-1])


class Alone:
    """One text, as `generate` makes it. `run()`: (seconds until the first token behind a prompt, of the rest)."""

    def __init__(self, model, prompt, tokens):
        self._model, self._ids, self._tokens = model, ids(model, prompt), tokens

    def run(self):
        began = time.perf_counter()
        stream = self._model.generate(self._ids, self._tokens + 1)
        next(stream)
        first = time.perf_counter()
        for _ in stream:
            pass
        return first - began, time.perf_counter() - first


class Together:
    """The same of several texts, on one cache. DTypeError for models that keep something else than keys and values."""

    def __init__(self, model, prompt, tokens, count):
        from tensorlib import nn
        from zoo.batch import Batch

        length = prompt + tokens + 1
        self._batch = Batch(model, count, length, count * (length + 64))
        self._prompts, self._tokens = [ids(model, prompt, i) for i in range(count)], tokens
        self._samplers = [nn.Sampler(model.config.vocab_size, length, device=model.device) for _ in range(count)]

    def run(self):
        from zoo.generate import CHUNK

        batch, began, sequences, drawn = self._batch, time.perf_counter(), [], []
        for prompt, sampler in zip(self._prompts, self._samplers):
            sampler.reset(prompt)
            sequences.append(batch.cache.begin(prompt)[0])
            for i in range(0, len(prompt), CHUNK):
                logits = batch.prompt(sequences[-1], prompt[i : i + CHUNK])
            sampler(logits)
            drawn.append(sampler.token_id())
        first = time.perf_counter()
        for _ in range(self._tokens):
            rows = batch.step(sequences, drawn)
            drawn = [self._drawn(*pair) for pair in zip(self._samplers, rows)]
        last = time.perf_counter()
        for sequence in sequences:
            batch.cache.free(sequence)
        return first - began, last - first

    def _drawn(self, sampler, logits):
        sampler(logits)
        return sampler.token_id()


def ids(model, count, seed=0):
    """A prompt of `count` tokens, each other than the one before."""
    return [(7919 * i + 104729 * seed + 13) % model.config.vocab_size for i in range(count)]


# ---- in processes anew -----------------------------------------------------------------------------------------------


def _processes(arguments, common, context, threads):
    """Rows of start and memory."""
    words = [f"-t{threads}", f"-c{context}", "--device", arguments.device, "The capital of France is"]
    words = ["-m", arguments.model, *words] if arguments.model else words
    starts = [_start(words) for _ in range(arguments.repeats + 1)][1:]
    yield common | _figures("start", 1, starts, "ms")
    given = (arguments.model or "", threads, context, arguments.device, arguments.prompt, arguments.tokens)
    command = [sys.executable, "-c", PEAK, *map(str, given)]
    peaks = [float(_output(command).rpartition("PEAK ")[2]) / 1e6 for _ in range(arguments.repeats)]
    yield common | _figures("memory", arguments.tokens, peaks, "MB")


def _start(words):
    """Milliseconds of a process until its first byte on standard output."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "zoo.cli", "generate", "-n1", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as process:
        byte = process.stdout.read(1)
        taken = 1e3 * (time.perf_counter() - began)
        _, told = process.communicate()
    _check(process.returncode or not byte, told)
    return taken


def _output(command):
    done = subprocess.run(command, capture_output=True)
    _check(done.returncode, done.stderr)
    return done.stdout.decode()


def _check(failed, told):
    if failed:
        from tensorlib.errors import FormatError

        lines = told.decode("utf-8", "replace").strip().splitlines()
        raise FormatError("bench", "process", lines[-1] if lines else "no output", "a text", "see tensorlib generate")


def peak():
    """The most bytes that this process had in memory so far."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most << 10


# ---- what stands beside the figures ----------------------------------------------------------------------------------


def _figures(measure, tokens, samples, unit):
    p20, p50, p80 = quantiles(samples)
    return {"measure": measure, "tokens": tokens, "unit": unit, "p20": p20, "p50": p50, "p80": p80}


def quantiles(samples):
    """Those of 20, 50 and 80 %, with linear interpolation.

    >>> quantiles([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), quantiles([7.0])
    ((2.0, 3.5, 5.0), (7.0, 7.0, 7.0))
    """
    if len(samples) == 1:
        return (samples[0],) * 3
    cuts = statistics.quantiles(samples, n=10, method="inclusive")
    return cuts[1], cuts[4], cuts[7]


def described(model):
    """Name of the file or folder, and the format that most of its bytes have."""
    sizes = {}
    for info in model.file.tensors.values():
        sizes[str(info.format)] = sizes.get(str(info.format), 0) + info.nbytes
    name = os.path.basename(os.path.normpath(model.folder or model.file.path))
    return {"model": name, "format": max(sizes, key=sizes.get).lower(), "mb": round(sum(sizes.values()) / 1e6, 1)}
