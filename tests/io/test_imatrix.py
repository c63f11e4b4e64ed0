"""Importance matrices in both forms."""

import contextlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib.errors import FormatError
from tensorlib.io import gguf, imatrix


def entry(name, calls, values, size=None):
    raw = name.encode()
    head = struct.pack("<I", len(raw)) + raw + struct.pack("<2i", calls, len(values) if size is None else size)
    return head + struct.pack(f"<{len(values)}f", *values)


TAIL = struct.pack("<iI", 7, 4) + b"wiki"


def binary(*entries, count=None, tail=TAIL):
    return struct.pack("<i", len(entries) if count is None else count) + b"".join(entries) + tail


A, B = entry("blk.0.ffn_down.weight", 4, [8.0, 2.0, 0.0]), entry("unused", 0, [0.0, 0.0])


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


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"abc",
        bytes(64),
        binary(A, count=-1),
        binary(A, count=2**31 - 1),
        binary(A, count=2),
        binary(A, A),
        binary(entry("", 1, [1.0])),
        binary(entry("a\0b", 1, [1.0])),
        binary(entry("x" * 70000, 1, [1.0])),
        binary(entry("x", -1, [1.0])),
        binary(entry("x", 1, [])),
        binary(entry("x", 1, [1.0], size=2**31 - 1)),
        binary(entry("x", 1, [1.0], size=-5)),
        binary(entry("x", 1, [float("inf")])),
        binary(entry("x", 1, [-1.0])),
        binary(A) + b"more",
        binary(A, tail=struct.pack("<iI", -1, 0)),
        binary(A, tail=struct.pack("<iI", 1, 2**32 - 1)),
    ],
)
def test_malformed(tmp_path, data):
    with pytest.raises(FormatError):
        read(tmp_path, data)


def test_cut_anywhere(tmp_path):
    data, whole = binary(A, B), []
    for length in range(len(data)):
        with contextlib.suppress(FormatError):
            read(tmp_path, data[:length])
            whole.append(length)
    assert whole == [len(data) - 12]  # files of before 2024 end there


@given(st.data())
def test_any_bit_flipped(tmp_path_factory, data):
    raw = bytearray(binary(A, B))
    for _ in range(data.draw(st.integers(1, 3))):
        bit = data.draw(st.integers(0, 8 * len(raw) - 1))
        raw[bit // 8] ^= 1 << bit % 8
    with contextlib.suppress(FormatError):
        read(tmp_path_factory.getbasetemp(), bytes(raw))
