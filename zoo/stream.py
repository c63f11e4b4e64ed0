"""What the commands that write files of weights share: a file's tensors in parts, a bar, what an interruption says."""

import contextlib
import os
import signal
import sys
from math import prod

from zoo.options import MANY, at_least

PIECE = 1 << 22  # weights that are decoded at a time: 16 MiB of f32


class Stopped(KeyboardInterrupt):
    """A signal that ends the process, as Ctrl-C does: what is half written is removed. `args[0]`: its number."""


@contextlib.contextmanager
def progress(total, what):
    """A function that counts bytes, shown as a bar on a terminal."""
    from tensorlib.bar import Bar

    with Bar(what, total, unit="B", unit_scale=True) as bar:
        yield bar.add


@contextlib.contextmanager
def unless_interrupted(path):
    """While `path` is written: SIGTERM and SIGHUP end it as Ctrl-C does, and all of them say that it is not there."""

    def stop(number, frame):
        raise Stopped(number)

    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        with contextlib.suppress(AttributeError, ValueError):  # no such signal; not in the main thread
            before[name] = signal.signal(getattr(signal, name), stop)
    try:
        yield
    except KeyboardInterrupt:
        print(f"\rtensorlib: interrupted: {path} was not written", file=sys.stderr)
        raise
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def add_parser(commands, name, about, more=""):
    """A command's parser; `about` is what it does, in a line."""
    return commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.{more}")


def add_jobs(parser):
    """The option --jobs."""
    parser.add_argument("-j", "--jobs", type=at_least(1, MANY), metavar="N", help="threads (default: one per core)")


def use_jobs(arguments):
    """Sets the number of threads that was asked for."""
    if arguments.jobs is not None:
        from tensorlib import backend

        backend.set_num_threads(arguments.jobs)


def opened(ref):
    """(format, reader) of the file, or of the folder of a checkpoint, that `ref` names. FormatError."""
    from tensorlib.io import files, hub

    file = files.load(ref if os.path.isdir(ref) else hub.resolve(ref))
    kind = type(file).__module__.rpartition(".")[2].partition("_")[0]
    return "safetensors" if kind == "checkpoint" else kind, file


def is_quantized(info):
    """Whether a tensor is in blocks, of GGUF or of a checkpoint whose folder was opened."""
    from tensorlib.io.checkpoint import METHODS

    return getattr(info.format, "quantized", info.format in METHODS)


def rows(file, name, group=None, most=PIECE):
    """The tensor [..., K] in parts [n, K] of about `most` weights: (number of the first row, Tensor or QTensor).

    No part has rows of two groups of `group` rows. A tensor of less than two dims is one part.
    """
    x = file.tensor(name)
    width, count = (x.shape[-1] if x.shape else 1), prod(x.shape[:-1])
    if hasattr(x, "format"):
        from tensorlib.quant.tensor import QTensor

        part = (x if x.ndim == 2 else QTensor(x.buffer, x.offset, (count, width), x.format)).rows
    else:
        flat = x.reshape(count, width)

        def part(start, n):
            return flat.narrow(0, start, n)

    step, group = max(1, most // max(width, 1)), group or max(count, 1)
    for first in range(0, count, group):
        for start in range(first, min(first + group, count), step):
            yield start, part(start, min(step, first + group - start, count - start))


def numbers(part, dtype="f32"):
    """A part as a Tensor of `dtype`."""
    if not hasattr(part, "format"):
        return part.to(dtype)
    direct = dtype if str(dtype) in ("f32", "f16", "bf16") else "f32"
    return part.dequantize(direct).to(dtype)
