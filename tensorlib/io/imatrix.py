"""Importance matrices of llama.cpp: for every weight, how large its inputs were on some text (mean squares).

Both forms are read: the binary one (`imatrix.dat`), and GGUF (`general.type` = imatrix), which has sums and counts for
each expert of a mixture.

>>> from tensorlib.io import imatrix
>>> found = imatrix.read("imatrix.dat")  # doctest: +SKIP
>>> found.importance["blk.0.ffn_down.weight"].shape, found.counts["blk.0.ffn_down.weight"]  # doctest: +SKIP
((1536,), [100.0])
"""

from __future__ import annotations

from typing import NamedTuple

from tensorlib.errors import FormatError
from tensorlib.io import gguf
from tensorlib.io.cursor import Cursor
from tensorlib.io.source import Source, map_private, opened

MAX_NAME = 65535
SUMS, COUNTS = ".in_sum2", ".counts"
SMALLEST = 16  # bytes of an entry of the binary form


class Imatrix(NamedTuple):
    """`importance`: name of a weight to a f32 Tensor, one number per input, or a row of them per expert; `counts`: name
    to how many times it was used (per expert); `datasets`: names of the texts; `chunks`: how many pieces of them.
    """

    importance: dict
    counts: dict
    datasets: list
    chunks: int


def read(path) -> Imatrix:
    """Read an importance matrix in either form. FormatError for what is none, for negative or not finite numbers."""
    name, data = map_private(path, 4, "an importance matrix")
    magic = data[:4]
    if magic == gguf.MAGIC:
        data.close()
        return _from_gguf(name)
    with opened(Source, name, data) as file:
        return _from_binary(file, Cursor(name, data))


def _from_binary(file, cursor) -> Imatrix:
    import numpy as np

    count = cursor.number("i", "number of entries")
    if not 0 < count <= cursor.end // SMALLEST:
        got = f"{count} entries in {cursor.end} bytes"
        raise cursor.error("offset 0", got, f"1 or more of {SMALLEST} bytes", "is this an importance matrix?")
    importance, counts = {}, {}
    for index in range(count):
        name = cursor.name(cursor.number("I", f"name length of entry {index}"), f"name of entry {index}", MAX_NAME)
        if name in importance:
            raise cursor.error(name, "it a second time", "names that differ")
        calls, size = cursor.numbers("2i", f"counts of {name!r}")
        if calls < 0 or size < 1:
            raise cursor.error(name, f"{calls} calls and {size} numbers", "counts above 0")
        values = np.frombuffer(cursor.data, "<f4", size, cursor.take(4 * size, f"values of {name!r}"))
        importance[name] = _means(file, name, values[None], [calls])
        counts[name] = [float(calls)]
    chunks, datasets = 0, []
    if cursor.at < cursor.end:  # files of before 2024 end here
        chunks = cursor.number("i", "number of chunks")
        datasets = [cursor.text(cursor.number("I", "length of the dataset's name"), "the dataset's name")]
    if cursor.at < cursor.end or chunks < 0:
        raise cursor.error(f"offset {cursor.at}", f"{cursor.end - cursor.at} bytes more, {chunks} chunks", "the end")
    return Imatrix(importance, counts, datasets, chunks)


def _from_gguf(path) -> Imatrix:
    importance, counts = {}, {}
    with gguf.open(path) as file:
        if file.require("general.type", str, "model") != "imatrix":
            got, fix = file.require("general.type", str, "model"), "is this an importance matrix?"
            raise FormatError(path, "general.type", repr(got), "'imatrix'", fix)
        names = [name.removesuffix(SUMS) for name in file.tensors if name.endswith(SUMS)]
        if len(names) * 2 != len(file.tensors):
            got = f"{len(file.tensors)} tensors, {len(names)} of them {SUMS}"
            raise FormatError(path, "tensors", got, f"{SUMS} and {COUNTS} of every weight")
        for name in names:
            sums, used = file.info(name + SUMS), file.info(name + COUNTS)
            experts = sums.shape[0] if len(sums.shape) > 1 else 1
            shapes = len(sums.shape) in (1, 2) and used.shape in ((experts,), (experts, 1))
            if not shapes or 0 in sums.shape or {sums.format.name, used.format.name} != {"f32"}:
                got = f"{sums.format} {sums.shape} and {used.format} {used.shape}"
                raise FormatError(path, name, got, "sums [experts, inputs] and counts [experts, 1] in f32")
            counts[name] = file.tensor(name + COUNTS).flatten().tolist()
            rows = file.tensor(name + SUMS).numpy().reshape(experts, -1)
            importance[name] = _means(file, name, rows, counts[name])
        return Imatrix(
            importance,
            counts,
            file.require("imatrix.datasets", list, []),
            file.require("imatrix.chunk_count", int, 0),
        )


def _means(file, name, rows, counts):
    """Sums over counts in f32; where nothing was counted all inputs weigh the same: 1."""
    import numpy as np

    from tensorlib.tensor import as_tensor

    counts = np.array(counts, np.float32)[:, None]
    if not (np.isfinite(rows).all() and np.isfinite(counts).all() and (rows >= 0).all() and (counts >= 0).all()):
        raise file.error(name, "negative numbers, NaN or infinity", "sums of squares, and counts")
    with np.errstate(over="ignore"):
        means = np.where(counts > 0, rows / np.maximum(counts, np.float32(1e-30)), np.float32(1))
    if not np.isfinite(means).all():
        raise file.error(name, "means above the largest f32", "sums that fit their counts")
    return as_tensor(means[0] if len(means) == 1 else means)
