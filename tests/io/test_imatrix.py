"""Importance matrices in both forms."""

import contextlib

import numpy as np
import pytest

import tensorlib
from tensorlib.errors import FormatError
from tensorlib.io import gguf, imatrix
from tests.io.build_imatrix import TAIL, A, B, binary, entry


def read(tmp_path, data):
    path = tmp_path / "imatrix.dat"
    path.write_bytes(data)
    return imatrix.read(path)


@pytest.mark.parametrize("tail, chunks, datasets", [(b"", 0, []), (TAIL, 7, ["wiki"])])
def test_binary(tmp_path, tail, chunks, datasets):
    found = read(tmp_path, binary(A, B, tail=tail))
    assert {name: row.tolist() for name, row in found.importance.items()} == {
        "blk.0.ffn_down.weight": [2.0, 0.5, 0.0],
        "unused": [1.0, 1.0],
    }
    assert found.counts == {"blk.0.ffn_down.weight": [4.0], "unused": [0.0]}
    assert (found.chunks, found.datasets) == (chunks, datasets) and found.importance["unused"].dtype.name == "f32"


def test_never_counted(tmp_path):
    found = read(tmp_path, binary(entry("w", 0, [3e38])))
    assert found.importance["w"].tolist() == [1.0]


def write_gguf(path, tensors, kind="imatrix"):
    metadata = {"general.type": kind, "imatrix.datasets": ["a", "b"], "imatrix.chunk_count": 9}
    gguf.write(path, metadata, {k: tensorlib.from_numpy(np.array(v, np.float32)) for k, v in tensors.items()})


EXPERTS = {
    "w.in_sum2": [[8.0, 2.0]], "w.counts": [[4.0]],
    "e.in_sum2": [[2.0, 4.0, 6.0], [0.0, 0.0, 0.0]], "e.counts": [[2.0], [0.0]],
}  # fmt: skip


def test_gguf(tmp_path):
    path = tmp_path / "imatrix.gguf"
    write_gguf(path, EXPERTS)
    found = imatrix.read(path)
    assert found.importance["w"].tolist() == [2.0, 0.5] and found.counts == {"w": [4.0], "e": [2.0, 0.0]}
    assert found.importance["e"].tolist() == [[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]
    assert found.datasets == ["a", "b"] and found.chunks == 9


@pytest.mark.parametrize(
    "change, kind",
    [
        ({}, "model"),
        ({"other": [1.0]}, "imatrix"),
        ({"w.counts": [[1.0, 2.0]]}, "imatrix"),
        ({"w.counts": [[-1.0]]}, "imatrix"),
        ({"w.counts": [[1e-30]], "w.in_sum2": [[1e30, 0.0]]}, "imatrix"),  # a mean of 1e60
        ({"w.in_sum2": [[float("nan"), 0.0]]}, "imatrix"),
        ({"w.in_sum2": [[-1.0, 0.0]]}, "imatrix"),
        ({"w.in_sum2": [[[1.0, 0.0]]]}, "imatrix"),
        ({"w.in_sum2": np.zeros((1, 0))}, "imatrix"),
        ({"v.in_sum2": [[1.0, 0.0]], "u.counts": [[1.0]]}, "imatrix"),
    ],
)
def test_gguf_that_is_none(tmp_path, change, kind):
    path = tmp_path / "imatrix.gguf"
    write_gguf(path, EXPERTS | change, kind)
    with pytest.raises(FormatError):
        imatrix.read(path)


def test_cut_anywhere(tmp_path):
    data, whole = binary(A, B), []
    for length in range(len(data)):
        with contextlib.suppress(FormatError):
            read(tmp_path, data[:length])
            whole.append(length)
    assert whole == [len(data) - 12]  # files of before 2024 end there
