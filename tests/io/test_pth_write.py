"""PyTorch's files written here, held to torch.load; tensors in parts; files read into memory."""

import json
import os
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib.errors import DTypeError, FormatError
from tensorlib.io import pth_write
from tensorlib.io import safetensors as ours
from tensorlib.io.stored import Raw
from tests.io.test_formats import EVERY, same


@pytest.fixture
def every(tmp_path):
    """Tensors of every dtype, and strided and tied ones."""
    safetensors.torch.save_file(EVERY, tmp_path / "every.safetensors")
    file = tensorlib.load(tmp_path / "every.safetensors")
    found = {name: file.tensor(name) for name in EVERY}
    return found | {"strided": tensorlib.arange(24).reshape(4, 6)[1:, ::2].T, "tied": found["f32"]}


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("name", ["x.pth", "x.pt"])
def test_torch_reads_ours(tmp_path, every, name, mapped):
    path = tmp_path / name
    tensorlib.save(path, every)
    theirs = torch.load(path, weights_only=True, mmap=mapped)
    assert list(theirs) == list(every)
    for key, x in every.items():
        same(x, theirs[key])
    assert theirs["tied"].data_ptr() == theirs["f32"].data_ptr()
    again = tensorlib.load(path)
    for key, info in again.tensors.items():
        same(again.tensor(key), theirs[key])
        assert info.offset % 64 == 0 and again.tensor(key).ptr == again.buffer.ptr + info.offset
    assert again.tensor("tied").ptr == again.tensor("f32").ptr and os.listdir(tmp_path).count(name) == 1
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(metadata=st.dictionaries(st.text(max_size=5).filter(lambda key: key != "w"), PLAIN, max_size=3))
def test_values_beside_tensors(tmp_path_factory, metadata):
    path = tmp_path_factory.getbasetemp() / "metadata.pt"
    tensorlib.save(path, {"w": tensorlib.arange(3)}, metadata)
    found = torch.load(path, weights_only=True)
    assert found.pop("w").tolist() == [0, 1, 2] and found == metadata
    assert [*map(type, found.values())] == [*map(type, metadata.values())]


def test_dtypes_without_arithmetic_go_from_file_to_file(tmp_path):
    x = torch.randn(3, 4, dtype=torch.complex64).T
    torch.save({"c": x, "none": x[:0], "one": x[1]}, tmp_path / "a.pt")
    file = tensorlib.load(tmp_path / "a.pt")
    pth_write.save(tmp_path / "b.pt", {name: file.stored(name) for name in file.tensors})
    found = torch.load(tmp_path / "b.pt")
    assert torch.equal(found["c"], x) and found["none"].shape == (0, 3) and torch.equal(found["one"], x[1])


def test_what_pytorch_has_not(tmp_path):
    x = tensorlib.ones(2)
    blocks = tensorlib.quantize(tensorlib.ones(1, 32), "q8_0")
    for tensors, metadata in (
        ({"w": x}, {"w": 1}),
        ({"w": x}, {"a": b"bytes"}),
        ({"w": x}, {"a": 1 << 3000}),
        ({"w": x}, {"a": object()}),
        ({"w": blocks}, None),
        ({"w": Raw("q8_0", (1, 32), bytes(34))}, None),
        ({"w": Raw("f32", (2,), bytes(4))}, None),
        ({"w\ud800": x}, None),
    ):
        with pytest.raises(DTypeError):
            tensorlib.save(tmp_path / "x.pth", tensors, metadata)
    assert os.listdir(tmp_path) == []


# ---- in parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.safetensors", "x.npz", "x.gguf", "x.pt"])
def test_a_tensor_in_parts(tmp_path, name):
    """Parts are asked for one after the other, and their sum must be the tensor's size."""
    x, asked = np.arange(12, dtype=np.float32).reshape(3, 4), []

    def parts():
        for row in x:
            asked.append(row)
            yield row.tobytes()

    tensorlib.save(tmp_path / name, {"w": Raw("f32", (3, 4), parts), "v": Raw("f32", (4,), x[1])})
    file = tensorlib.load(tmp_path / name)
    assert file.tensor("w").tolist() == x.tolist() and file.tensor("v").tolist() == x[1].tolist() and len(asked) == 3
    for bad in (lambda: iter([bytes(8)]), lambda: iter([bytes(16), bytes(40)]), bytes(49), x.T[::2]):
        with pytest.raises((DTypeError, FormatError), match=r"48|contiguous"):
            tensorlib.save(tmp_path / name, {"w": Raw("f32", (3, 4), bad)})
    assert tensorlib.load(tmp_path / name).tensor("v").tolist() == x[1].tolist() and os.listdir(tmp_path) == [name]


def test_shards(tmp_path, every):
    path = tmp_path / "model.safetensors"
    names = ours.save(path, every, {"format": "pt"}, shard_size=200)
    assert (
        names[-1] == f"{path}.index.json" and len(names) > 3 and sorted(names) == sorted(map(str, tmp_path.glob("m*")))
    )
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in every.values())
    sizes = dict.fromkeys(names[:-1], 0)
    for name, shard in index["weight_map"].items():
        same(every[name], safetensors.torch.load_file(tmp_path / shard)[name])
        sizes[str(tmp_path / shard)] += every[name].nbytes
    assert max(sizes.values()) <= 200 and list(index["weight_map"]) == list(every)
    with tensorlib.load(names[-1]) as file:
        assert file.metadata["format"] == "pt" and file.stored("f32").shape == (3, 4)
    assert ours.save(tmp_path / "one.safetensors", every, shard_size=10**6) == [f"{tmp_path}/one.safetensors"]
    assert len(ours.save(tmp_path / "each.safetensors", {"a": every["f32"], "b": every["u8"]}, shard_size=1)) == 3
    for bad in (0, -1, 1.5):
        with pytest.raises(DTypeError, match="shard_size"):
            ours.save(path, every, shard_size=bad)


# ---- in memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.safetensors", "x.npz", "x.gguf", "x.pt", "shards"])
def test_a_file_in_memory(tmp_path, monkeypatch, name):
    """All is read at once: what happens to the file later does not matter."""
    monkeypatch.setattr("tensorlib.io.memory.PART", 1000)
    x = tensorlib.arange(5000).to("f32")
    path = tmp_path / name
    if name == "shards":
        path = ours.save(tmp_path / "x.safetensors", {"a": x, "w": x}, shard_size=1)[-1]
    else:
        tensorlib.save(path, {"w": x})
    file = tensorlib.load(path, mapped=False)
    for each in tmp_path.iterdir():
        os.truncate(each, 100)
    assert file.tensor("w").tolist() == x.tolist()
    file.close()
    with pytest.raises(FormatError):
        tensorlib.load(path, mapped=False)


def test_a_file_cut_short_while_it_is_read(tmp_path, monkeypatch):
    from tensorlib.io import memory

    path, real = tmp_path / "x.safetensors", memory._fill
    tensorlib.save(path, {"w": tensorlib.zeros(10_000)})
    monkeypatch.setattr(memory, "_fill", lambda fd, view, at, end: (os.truncate(path, 5), real(fd, view, at, end)))
    with pytest.raises(FormatError, match="it ends at byte"):
        tensorlib.load(path, mapped=False)
