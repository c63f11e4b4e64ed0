"""Legacy GGML files, byte by byte: read, and refused where they are damaged or too old."""

import pytest

from tensorlib.errors import FormatError
from tensorlib.io import ggml
from tensorlib.quant.formats import BY_ID
from tests.io.build_ggml import HYPER, KINDS, TOKENS, file, tensor


@pytest.fixture
def write(tmp_path):
    def write(data):
        path = tmp_path / "model.bin"
        path.write_bytes(data)
        return str(path)

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_read(write, kind):
    block = 8 if kind == "ggjt" else 1
    tensors = [tensor("norm", [5]), tensor("w", [64, 3], block), tensor("h", [4, 2], 1)]
    found = ggml.open(write(file(kind, tensors)))
    assert found.kind == kind[:4] and found.version == (KINDS[kind][1] or 0)
    assert found.metadata == dict(zip(ggml.HYPERPARAMETERS, HYPER)) and found.require("n_embd", int) == 64
    assert found.vocabulary == [(text, 0.0 if kind == "ggml" else score) for text, score in TOKENS]
    assert {name: (i.shape, i.format.name) for name, i in found.tensors.items()} == {
        "norm": ((5,), "f32"), "w": ((3, 64), BY_ID[block].name), "h": ((2, 4), "f16")}  # fmt: skip
    for (_, data), name in zip(tensors, ("norm", "w", "h")):
        assert found.bytes(name) == data
        assert found.tensor(name).ptr == found.buffer.ptr + found.tensors[name].offset
    assert found.rows("w", 1, 2).shape == (1, 64)
    if kind.startswith("ggjt"):
        assert all(info.offset % 32 == 0 for info in found.tensors.values())


def test_adapter_is_named(write):
    with pytest.raises(FormatError, match="LoRA"):
        ggml.open(write(file(magic=b"algg")))


def test_cut_anywhere(write):
    """Between tensors too: their number is written nowhere, so there a cut file reads as one with fewer of them."""
    data = file(tensors=[tensor("t", [4]), tensor("u", [32], 8)])
    whole, ends = 0, []
    for length in range(len(data)):
        try:
            whole = len(ggml.open(write(data[:length])).tensors)
            ends.append((length, whole))
        except FormatError:
            pass
    first = len(file(tensors=[tensor("t", [4])]))
    assert ends == [(len(file()), 0), (first, 1)]
