"""`tensorlib diff`: how two files of tensors differ, whatever their formats: names, shapes, dtypes, metadata, values.

Blocks are compared as the numbers that they stand for. Exit status: 0 where nothing differs, 1 where anything does.
"""

import argparse
from math import prod

from zoo.commands import shown
from zoo.options import at_least
from zoo.stream import add_jobs, add_parser, is_quantized, numbers, opened, progress, rows, use_jobs

PIECE = 1 << 16  # numbers that are compared at a time, in float64: they stay in the cache


def add_commands(commands):
    """Add this command's parser to the command line's."""
    about = "compare two files of tensors; exit status 0: equal, 1: different"
    parser = add_parser(commands, "diff", about)
    parser.add_argument("a", help="a path or any other reference that --model takes")
    parser.add_argument("b", help="the other file, in any format")
    parser.add_argument("--values", action="store_true", help="names, shapes and values alone: no dtypes, no metadata")
    parser.add_argument("--rtol", type=_least, default=0.0, metavar="X", help="values are equal where |a - b| <= (0)")
    parser.add_argument("--atol", type=_least, default=0.0, metavar="X", help="atol + rtol * |a| (0)")
    parser.add_argument(
        "-n", "--worst", type=at_least(0), default=10, metavar="N", help="show the N tensors that differ most"
    )
    add_jobs(parser)
    parser.set_defaults(run=run_diff)


def _least(text):
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def run_diff(arguments):
    """Print how two files differ; 1 if they do."""
    use_jobs(arguments)
    (_, a), (_, b) = opened(arguments.a), opened(arguments.b)
    with a, b:
        lines = list(_structure(a, b, arguments.values))
        both = [name for name in a.tensors if name in b.tensors and a.info(name).shape == b.info(name).shape]
        found = []
        with progress(sum(a.info(name).nbytes for name in both), "diff") as count:
            for name in both:
                found.append(Values(a, b, name, arguments.atol, arguments.rtol))
                count(a.info(name).nbytes)
    differ = sorted((each for each in found if each.differ), key=lambda each: -each.relative)
    for line in lines:
        print(shown(line))
    print(f"{len(found) - len(differ)} of {len(found)} tensors in both have equal values")
    if differ and arguments.worst > 0:
        columns = "differ", "max abs", "max rel", "RMSE", "rel RMSE", "cosine"
        print(f"\n{'tensor':44} " + " ".join(f"{column:>10}" for column in columns))
        for each in differ[: arguments.worst]:
            print(f"{shown(each.name):44} {each}")
        if len(differ) > arguments.worst:
            print(f"... and {len(differ) - arguments.worst} more")
    return 1 if lines or differ else 0


def _structure(a, b, values):
    """Lines on names, shapes, dtypes and metadata that differ."""
    for here, there, mark in ((a, b, "-"), (b, a, "+")):
        for name, info in here.tensors.items():
            if name not in there.tensors:
                yield f"{mark} tensor {name}: {_dtype(info)} {info.shape}"
    for name, info in a.tensors.items():
        other = b.tensors.get(name, info)
        if other.shape != info.shape:
            yield f"! tensor {name}: shape {info.shape}, {other.shape}"
        if _dtype(other) != _dtype(info) and not values:
            yield f"! tensor {name}: {_dtype(info)}, {_dtype(other)}"
    if values:
        return
    for here, there, mark in ((a, b, "-"), (b, a, "+")):
        yield from (f"{mark} metadata {key}: {_short(here.metadata[key])}" for key in here.metadata
                    if key not in there.metadata)  # fmt: skip
    for key in a.metadata:
        if key in b.metadata and not _same(a.metadata[key], b.metadata[key]):
            yield f"! metadata {key}: {_short(a.metadata[key])}, {_short(b.metadata[key])}"


def _same(x, y):
    return type(x) is type(y) and (x == y or repr(x) == repr(y))  # NaN has a repr


def _dtype(info):
    """The name of a dtype that all formats share, or the file's own."""
    return str(info.format if is_quantized(info) or info.dtype is None else info.dtype)


def _short(value):
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}... ({len(text)} characters)"


class Values:
    """How the values of one tensor differ: `differ` of them do (beyond the tolerances), and measures of all of them."""

    def __init__(self, a, b, name, atol, rtol):
        self.name, self.differ, self.largest, self.ratio = name, 0, 0.0, 0.0
        self.sums = [0.0] * 4  # squares of a - b, of a, of b; products
        self.count = prod(a.info(name).shape)
        if any(file.info(name).dtype is None and not is_quantized(file.info(name)) for file in (a, b)):
            self._bytes(a, b, name)
            return
        for (_, x), (_, y) in zip(rows(a, name, most=PIECE), rows(b, name, most=PIECE), strict=True):
            self._add(_numpy(x), _numpy(y), atol, rtol)

    def _bytes(self, a, b, name):
        """Dtypes without arithmetic: equal or not."""
        from tensorlib.io.stored import memory

        self.differ = self.count if bytes(memory(a.raw(name))) != bytes(memory(b.raw(name))) else 0
        self.largest = self.ratio = float("nan") if self.differ else 0.0

    def _add(self, x, y, atol, rtol):
        import numpy as np

        equal = ((x == y) | ((x != x) & (y != y))).reshape(-1)
        with np.errstate(all="ignore"):
            x, y = x.astype(np.float64).reshape(-1), y.astype(np.float64).reshape(-1)
            if not np.isfinite(x).all():
                x[equal & ~np.isfinite(x)] = y[equal & ~np.isfinite(y)] = 0
            self.sums[1:] = [old + _dot(*pair) for old, pair in zip(self.sums[1:], ((x, x), (y, y), (x, y)))]
            if equal.all():
                return
            size, error = np.abs(x), np.abs(x - y)
            error[equal] = 0
            near = equal | (error <= atol + rtol * size) if atol or rtol else equal  # float64 has not all of i64
            self.differ += int(np.count_nonzero(~near))
            self.largest = max(self.largest, _most(error))
            self.sums[0] += _dot(error, error)
            error /= size
            error[equal] = 0
            self.ratio = max(self.ratio, _most(error))

    @property
    def relative(self):
        """RMSE over the root of the mean square of a."""
        worse = self.sums[0] != self.sums[0] or not self.sums[1]
        return float("inf") if worse else (self.sums[0] / self.sums[1]) ** 0.5

    def __str__(self):
        error, a, b, product = self.sums
        rmse = (error / max(self.count, 1)) ** 0.5
        cosine = product / (a * b) ** 0.5 if a and b else float("nan")
        measures = self.largest, self.ratio, rmse, self.relative
        return f"{self.differ:10} " + " ".join(f"{x:10.3g}" for x in measures) + f" {cosine:10.7f}"


def _dot(x, y):
    """Sum of products, in pairs and by this thread alone: a library's threads would wait for each other longer."""
    return float((x * y).sum())


def _most(x):
    """The largest, inf for NaN."""
    most = float(x.max()) if x.size else 0.0
    return most if most == most else float("inf")


def _numpy(part):
    """A part as a NumPy array of the dtype it has; narrow floats and blocks as float32."""
    if hasattr(part, "format") or (part.dtype.is_float and part.dtype.itemsize < 4):
        part = numbers(part)
    return part.numpy()
