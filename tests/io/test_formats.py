"""Readers and writers of safetensors, .npy, .npz and PyTorch's files, against the libraries of these formats."""

import json
import os
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib import dtype as dtypes
from tensorlib import nn
from tensorlib.errors import DTypeError, FormatError, TensorlibError
from tensorlib.io import npz, pth
from tensorlib.io import safetensors as ours
from tests.conftest import ROOT

BOTH = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def values(dtype, shape=(3, 4)):
    """A PyTorch tensor of any dtype, every byte of it pseudo-random."""
    count = int(np.prod(shape)) * dtype.itemsize
    raw = np.random.default_rng(0).integers(0, 2 if dtype == torch.bool else 256, max(count, 1), np.uint8)[:count]
    return torch.from_numpy(raw).view(dtype).reshape(shape) if count else torch.zeros(shape, dtype=dtype)


def raw(x):
    """The bytes of a tensor of either library, row-major."""
    if isinstance(x, tensorlib.Tensor):
        return x.contiguous().numpy().tobytes()
    x = x.detach().contiguous().reshape(-1)
    return x.view(torch.uint8).numpy().tobytes() if x.numel() else b""


def same(a, b):
    assert a.dtype.torch == str(b.dtype).removeprefix("torch.") and a.shape == tuple(b.shape) and raw(a) == raw(b)


EVERY = {d.name: values(getattr(torch, d.torch)) for d in dtypes.ALL} | {
    "0-d": torch.tensor(7.0), "empty": torch.zeros(0, 3), "größe/🙂": torch.arange(3),
}  # fmt: skip


# ---- safetensors -----------------------------------------------------------------------------------------------------


def test_safetensors_of_the_package(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(EVERY, path, {"format": "pt", "é": "ü"})
    with tensorlib.load(path) as file:
        assert file.metadata == {"format": "pt", "é": "ü"} and set(file.tensors) == set(EVERY)
        for name, x in EVERY.items():
            same(file.tensor(name), x)


def test_the_package_reads_ours(tmp_path):
    path, mapped = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    safetensors.torch.save_file(EVERY, mapped)
    source = tensorlib.load(mapped)
    tensors = {name: source.tensor(name) for name in EVERY}
    tensors["strided"] = tensorlib.arange(24).reshape(4, 6)[1:, ::2].T
    tensorlib.save(path, tensors, {"made": "here"})
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"made": "here"}
        for name, x in tensors.items():
            same(x, file.get_tensor(name))
    again = tensorlib.load(path)
    assert all(again.tensor(n).ptr == again.buffer.ptr + info.offset for n, info in again.tensors.items())  # mapped
    nothing = tmp_path / "none.safetensors"
    tensorlib.save(nothing, {})
    assert safetensors.torch.load_file(nothing) == {} and not tensorlib.load(nothing).tensors


ANY = (slice(1, 3), slice(-2, None), slice(None, None, 2), slice(3, 1), slice(9), 0, -1, 2, ...)


@pytest.mark.parametrize("name", ["x.safetensors", "x.npz", "x.npy", "fortran.npz", "big.npz", "small.npz", "x.pt"])
@given(shape=st.lists(st.integers(3, 5), min_size=1, max_size=3), data=st.data())
def test_slices(tmp_path_factory, name, shape, data):
    path = str(tmp_path_factory.getbasetemp() / f"{os.getpid()}-{name}")
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    index = tuple(data.draw(st.lists(st.sampled_from(ANY), max_size=len(shape))))
    if index.count(...) > 1:
        index = index[: index.index(...) + 1]
    key = "" if name == "x.npy" else "x"
    kept = {"fortran.npz": np.asfortranarray(x), "big.npz": x.astype(">f4")}.get(name, x)
    if name == "x.pt":
        torch.save({"x": torch.from_numpy(x)}, path)
    elif name in ("x.safetensors", "x.npz", "x.npy"):
        tensorlib.save(path, {"x": x})
    else:
        (np.savez_compressed if name == "small.npz" else np.savez)(path, x=kept)
    with tensorlib.load(path) as file:
        np.testing.assert_array_equal(file.slice(key, *index).numpy(), x[index])
        np.testing.assert_array_equal(file.rows(key, 1, 2).numpy(), x[1:2])
        for start, stop in ((-1, 1), (2, 1), (0, shape[0] + 1)):
            with pytest.raises(FormatError, match="rows"):
                file.rows(key, start, stop)


def test_a_slice_reads_its_own_pages(run_python, tmp_path):
    """And opening 500 MB takes under 20 ms and 10 MB."""
    path, rows, width = tmp_path / "sparse.safetensors", 5000, 25_000
    header = json.dumps({"w": {"dtype": "F32", "shape": [rows, width], "data_offsets": [0, rows * width * 4]}}).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + rows * width * 4)
    source = """
import sys, time
import tensorlib.io.safetensors as st
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 if sys.platform == "linux" else 0
tensorlib = __import__("tensorlib")
warm = tensorlib.ones(2, 2).narrow(0, 0, 1).sum()
taken = []
before = resident()
for _ in range(5):
    start = time.perf_counter()
    file = st.open(sys.argv[1])
    taken.append(time.perf_counter() - start)
opened = resident() - before
rows = file.slice("w", slice(100, 140))
assert rows.shape == (40, 25000) and float(rows.sum()) == 0
print(min(taken), opened, resident() - before)
"""
    seconds, opened, sliced = map(float, run_python(source, str(path)).split())
    assert seconds < 0.02 and opened < 10e6 and sliced < 30e6, (seconds, opened, sliced)


def test_shards(tmp_path):
    parts = {"a.safetensors": {"x": torch.ones(2, 3), "z": torch.zeros(1)}, "b.safetensors": {"y": torch.arange(4)}}
    for name, tensors in parts.items():
        safetensors.torch.save_file(tensors, tmp_path / name, {"format": "pt"})
    weights = {"x": "a.safetensors", "y": "b.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 56.5}, "weight_map": weights}))
    with tensorlib.load(index) as file:
        assert file.metadata == {"total_size": 56.5, "format": "pt"} and list(file.tensors) == ["x", "y"]
        same(file.tensor("x"), parts["a.safetensors"]["x"])
        same(file.slice("y", slice(1, 3)), parts["b.safetensors"]["y"][1:3])
        assert file.raw("y").shape == (32,) and nn.VarBuilder(file).get("x", (2, 3)).shape == (2, 3)


def test_dtypes_without_arithmetic(tmp_path):
    """Listed with shape and bytes; asked for, a clear error."""
    header = {"q": {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 4]}}
    header |= {"s": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [4, 7]}}
    header |= {"e": {"dtype": "F8_E8M0", "shape": [1], "data_offsets": [7, 8]}}
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(range(8)))
    file = tensorlib.load(path)
    assert file.tensors["q"].shape == (2, 4) and file.tensors["q"].dtype is None and file.tensors["q"].format == "F4"
    assert [file.raw(name).tolist() for name in "qse"] == [[0, 1, 2, 3], [4, 5, 6], [7]]
    for name in "qse":
        with pytest.raises(FormatError, match="cannot be computed with yet"):
            file.tensor(name)


# ---- writing: whole or not at all ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.safetensors", "x.npz", "x.npy"])
def test_a_file_may_be_replaced_while_it_is_open(tmp_path, name):
    path = tmp_path / name
    tensorlib.save(path, {"w": tensorlib.arange(1000)})
    file = tensorlib.load(path)
    (only,) = file.tensors
    x = file.tensor(only)
    x += 1  # this process's copy
    tensorlib.save(path, {"w": x})
    assert file.tensor(only)[0] == 1 and tensorlib.load(path).tensor(only).tolist() == list(range(1, 1001))
    assert os.listdir(tmp_path) == [name]


WRITER = """
import resource, sys, tensorlib
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    tensorlib.save(sys.argv[1], {"w": tensorlib.zeros(1_000_000)})
except tensorlib.errors.WriteError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["x.safetensors", "x.npz"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, run_python, name):
    path = tmp_path / name
    tensorlib.save(path, {"w": tensorlib.arange(4)})
    assert name in run_python("import tensorlib.errors\n" + WRITER, str(path))  # as on a full disk
    assert tensorlib.load(path).tensor("w").tolist() == [0, 1, 2, 3] and os.listdir(tmp_path) == [name]
    with pytest.raises(TensorlibError):
        tensorlib.save(tmp_path / "missing" / name, {"w": tensorlib.ones(1)})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_writer_that_is_interrupted(tmp_path, number):
    """Ctrl-C leaves nothing behind; a killed process only a hidden .tmp file."""
    path = tmp_path / "x.safetensors"
    tensorlib.save(path, {"w": tensorlib.arange(4)})
    source = """
import sys, tensorlib
from tensorlib.io import stored
real = stored.memory
def slow(x):
    print("writing", flush=True)
    sys.stdin.read()
    return real(x)
stored.memory = slow
tensorlib.save(sys.argv[1], {"w": tensorlib.zeros(1000)})
"""
    command = [sys.executable, "-c", source, str(path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=env, **pipes) as process:
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(number)
        assert process.wait(60) != 0
    assert tensorlib.load(path).tensor("w").tolist() == [0, 1, 2, 3]
    left = [name for name in os.listdir(tmp_path) if name != "x.safetensors"]
    assert all(name.startswith(".") and name.endswith(".tmp") for name in left)
    assert len(left) == (number == signal.SIGKILL)


def test_a_file_cut_short_while_it_is_open(tmp_path):
    for name in ("x.safetensors", "x.npz", "x.npy"):
        tensorlib.save(tmp_path / name, {"w": tensorlib.zeros(10_000)})
        file = tensorlib.load(tmp_path / name)
        os.truncate(tmp_path / name, 5000)
        with pytest.raises(FormatError, match="when it was opened"):
            file.tensor(next(iter(file.tensors)))
    file.close()
    with pytest.raises(FormatError, match="closed"):
        file.tensor()


def test_what_cannot_be_saved(tmp_path):
    x = tensorlib.ones(2)
    for name, tensors, metadata in (
        ("x.npz", {"w": x.to("bf16")}, None),
        ("x.npz", {"w": x}, {"a": "b"}),
        ("x.npz", {"../w": x}, None),
        ("x.npy", {"a": x, "b": x}, None),
        ("x.safetensors", {"w": x}, {"a": 1}),
        ("x.safetensors", {"__metadata__": x}, None),
        ("x.safetensors", {"w": [1, 2]}, None),
        ("x.safetensors", {1: x}, None),
        ("x.safetensors", [x], None),
    ):
        with pytest.raises(DTypeError):
            tensorlib.save(tmp_path / name, tensors, metadata)
    with pytest.raises(FormatError, match="safetensors"):
        tensorlib.save(tmp_path / "x.bin", {"w": x})
    assert os.listdir(tmp_path) == []


# ---- NumPy -----------------------------------------------------------------------------------------------------------

NUMPY = [d for d in dtypes.ALL if d in npz.CODES]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_of_numpy(tmp_path, save):
    arrays = {d.name: values(getattr(torch, d.torch)).numpy() for d in NUMPY}
    arrays |= {"fortran": np.asfortranarray(arrays["f64"]), "big": arrays["i32"].astype(">i4"), "0-d": np.array(1.5)}
    arrays |= {"empty": np.zeros((2, 0, 3)), "complex": np.ones(2, np.complex64), "text": np.array(["a", "bc"])}
    save(tmp_path / "x.npz", **arrays)
    with tensorlib.load(tmp_path / "x.npz") as file:
        assert set(file.tensors) == set(arrays)
        for name, array in arrays.items():
            assert file.tensors[name].shape == array.shape and file.raw(name).shape == (array.nbytes,)
            if name in ("complex", "text"):
                with pytest.raises(FormatError, match="cannot be computed with yet"):
                    file.tensor(name)
            else:
                assert raw(file.tensor(name)) == array.astype(array.dtype.newbyteorder("=")).tobytes()
        assert file.tensor("fortran").strides == (1, 3)
        assert file.slice("f32", slice(1, 2), ..., 0).numpy() == arrays["f32"][1:2, 0]


def test_numpy_reads_ours(tmp_path):
    tensors = {d.name: tensorlib.from_numpy(values(getattr(torch, d.torch)).numpy()) for d in NUMPY}
    tensors |= {"0-d": tensorlib.tensor(2.5), "empty": tensorlib.zeros(0, 2), "t": tensorlib.arange(6).reshape(2, 3).T}
    tensorlib.save(tmp_path / "x.npz", tensors)
    with np.load(tmp_path / "x.npz") as file:
        assert set(file.files) == set(tensors)
        for name, x in tensors.items():
            assert file[name].dtype == x.dtype.numpy_dtype() and file[name].shape == x.shape
            assert file[name].tobytes() == raw(x)
    mine = tensorlib.load(tmp_path / "x.npz")
    for name, info in mine.tensors.items():
        assert info.offset % 64 == 0 and mine.tensor(name).ptr == mine.buffer.ptr + info.offset
    tensorlib.save(tmp_path / "x.npy", tensors["t"])
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), np.arange(6).reshape(2, 3).T)
    np.load(tmp_path / "x.npy", mmap_mode="r")


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


def save(path, value, zipped, **more):
    torch.save(value, path, _use_new_zipfile_serialization=zipped, **more)


@BOTH
def test_every_dtype_of_torch(tmp_path, zipped):
    save(tmp_path / "x.pt", EVERY, zipped)
    with tensorlib.load(tmp_path / "x.pt") as file:
        assert list(file.tensors) == list(EVERY) and file.metadata == {}
        for name, x in EVERY.items():
            same(file.tensor(name), x)


@BOTH
@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_nested_objects_of_torch(tmp_path, zipped, protocol):
    x = torch.randn(4, 6)
    value = {
        "model": torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict(),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp": x}}, "groups": [{"lr": 0.5, "params": [0]}]},
        "views": [x, x.T, x[1:, ::2], x[2], x.reshape(-1)[5:7], torch.zeros(1).expand(5, 2), x[:0]],
        "parameter": torch.nn.Parameter(x), "epoch": 3, "big": 2**70, "negative": -(2**40), "none": None, "yes": True,
        "text": "größe", "bytes": b"\0\xff", "complex": 1j, "float": 1e300, "size": torch.Size([2, 3]),
        "dtype": torch.float16, "device": torch.device("cuda:1"), "set": {1, "a"}, "tuple": (1, (2, "b")),
    }  # fmt: skip
    save(tmp_path / "x.ckpt", value, zipped, pickle_protocol=protocol)
    file, expected = tensorlib.load(tmp_path / "x.ckpt"), torch.load(tmp_path / "x.ckpt", weights_only=False)
    compare(file.object(), expected)
    assert file.tensor("model.0.weight").shape == (2, 3) and file.metadata["epoch"] == 3
    assert file.metadata["optimizer.groups.0.lr"] == 0.5
    first, turned = file.tensor("views.0"), file.tensor("views.1")
    assert first.ptr == turned.ptr == file.tensor("parameter").ptr and turned.strides == (1, 6)
    first[0, 0] = 42
    assert turned[0, 0] == 42  # tied


def compare(mine, theirs):
    if isinstance(theirs, torch.Tensor):
        same(mine, theirs)
        assert mine.strides == tuple(theirs.stride())
    elif isinstance(theirs, dict):
        assert list(mine) == list(theirs)
        for key in theirs:
            compare(mine[key], theirs[key])
    elif isinstance(theirs, (list, tuple)):
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            compare(a, b)
    elif isinstance(theirs, torch.dtype):
        assert mine == dtypes.get(theirs)
    elif isinstance(theirs, torch.device):
        assert mine == str(theirs)
    else:
        assert mine == theirs and type(mine) is type(theirs)


@BOTH
def test_odd_tensors_of_torch(tmp_path, zipped):
    x = torch.randn(3)
    x.note = "an attribute"
    save(tmp_path / "x.bin", x, zipped)
    same(tensorlib.load(tmp_path / "x.bin").tensor(), x)
    save(tmp_path / "x.bin", {"c": torch.ones(2, dtype=torch.complex64)}, zipped)
    file = tensorlib.load(tmp_path / "x.bin")
    assert file.tensors["c"].format == "complex64" and file.tensors["c"].nbytes == 16
    with pytest.raises(FormatError, match="cannot be computed with yet"):
        file.tensor("c")
    for odd in (torch.ones(2).to_sparse(), torch.nn.ReLU()):
        save(tmp_path / "x.bin", {"q": odd}, zipped)
        with pytest.raises(FormatError, match="a reference to"):
            tensorlib.load(tmp_path / "x.bin")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_weights_of_torchscript(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
    torch.jit.save(torch.jit.script(model), tmp_path / "x.pt")
    file = tensorlib.load(tmp_path / "x.pt")
    assert list(file.tensors) == ["0.weight", "0.bias"] and file.metadata["training"] is True
    same(file.tensor("0.weight"), model[0].weight)


# ---- any of them -----------------------------------------------------------------------------------------------------


def test_load_tells_formats_by_their_first_bytes(tmp_path):
    x = {"w": np.arange(3, dtype=np.float32)}
    tensorlib.save(tmp_path / "a.safetensors", x)
    tensorlib.save(tmp_path / "b.npz", x)
    tensorlib.save(tmp_path / "c.gguf", {"w": tensorlib.arange(3, dtype="f32")})
    torch.save({"w": torch.arange(3.0)}, tmp_path / "d.pt")
    save(tmp_path / "e.pt", {"w": torch.arange(3.0)}, False)
    for path in sorted(tmp_path.iterdir()):
        path.rename(path.with_suffix(".weights"))
        with tensorlib.load(path.with_suffix(".weights")) as file:
            assert file.tensor("w").tolist() == [0, 1, 2], path
    for content in (b"", b"no format at all"):
        (tmp_path / "f.bin").write_bytes(content)
        with pytest.raises(FormatError):
            tensorlib.load(tmp_path / "f.bin")
    with pytest.raises(FormatError, match="readable"):
        tensorlib.load(tmp_path / "missing.bin")


def test_pth_is_what_the_module_says():
    assert pth.MAGIC == torch.serialization.MAGIC_NUMBER and pth.PROTOCOL == torch.serialization.PROTOCOL_VERSION
    assert set(ours.BITS) >= set(safetensors.torch._TYPES)
