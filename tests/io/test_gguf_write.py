"""GGUF files written here: equal to gguf-py's, read back, edited, and never half there."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib.errors import DTypeError, FormatError, TensorlibError, WriteError
from tensorlib.io import gguf
from tensorlib.io.gguf_values import Typed, encode, typed
from tensorlib.io.gguf_write import Raw
from tensorlib.quant.tensor import from_bytes
from tests.io import build

ARCH = {"general.architecture": "llama"}


def content(path):
    with open(path, "rb") as file:
        return file.read()


def reread(path, metadata=ARCH, tensors=None, **options):
    gguf.write(path, metadata, tensors or {}, **options)
    return gguf.open(path)


@pytest.mark.parametrize("align", [32, 64])
def test_bit_for_bit_what_gguf_py_writes(tmp_path, align):
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quantize

    ours, theirs, rng = tmp_path / "ours.gguf", tmp_path / "theirs.gguf", np.random.default_rng(0)
    w = {name: rng.standard_normal((3, 64)).astype(np.float32) for name in "abcd"}
    q = {kind: quantize(w["b"], GGMLQuantizationType[kind]) for kind in ("Q4_1", "Q8_0")}
    writer = GGUFWriter(theirs, "llama")
    if align != 32:
        writer.add_custom_alignment(align)
    writer.add_uint32("n", 7)
    writer.add_float32("eps", 1e-5)
    writer.add_bool("yes", True)
    writer.add_token_list(["a", "é", ""])
    writer.add_token_types([1, -2, 3])
    writer.add_token_scores([0.0, -1.5, 2.0])
    writer.add_tensor("f32", w["a"])
    writer.add_tensor("f16", w["c"].astype(np.float16))
    for kind in q:
        writer.add_tensor(kind, q[kind], raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = {"n": 7, "eps": 1e-5, "yes": True, "tokenizer.ggml.tokens": ["a", "é", ""]}
    metadata |= {"tokenizer.ggml.token_type": [1, -2, 3], "tokenizer.ggml.scores": [0.0, -1.5, 2.0]}
    alignment = {"general.alignment": align} if align != 32 else {}
    tensors = {"f32": tensorlib.from_numpy(w["a"]), "f16": tensorlib.from_numpy(w["c"]).to("f16")}
    tensors["Q4_1"] = from_bytes(q["Q4_1"], (3, 64), "q4_1")
    tensors["Q8_0"] = Raw("q8_0", (3, 64), q["Q8_0"].tobytes())
    gguf.write(ours, ARCH | alignment | metadata, tensors)
    assert content(ours) == content(theirs)
    assert len(GGUFReader(ours).tensors) == 4


def test_every_type_survives(tmp_path):
    original, copy = tmp_path / "a.gguf", tmp_path / "b.gguf"
    original.write_bytes(build.sound())
    first = gguf.open(original)
    stored = {name: first.stored(name) for name in first.tensors}
    seen = []
    gguf.write(copy, first.metadata, stored, progress=seen.append)
    assert sum(seen) == sum(info.nbytes for info in first.tensors.values())
    gguf.write(tmp_path / "c.gguf", {key: first.metadata.typed(key) for key in first.metadata}, stored)
    assert content(copy) == content(tmp_path / "c.gguf")
    second = gguf.open(copy)
    assert [second.metadata.encoded(k) for k in second.metadata] == [first.metadata.encoded(k) for k in first.metadata]
    for name in first.tensors:
        assert second.bytes(name) == first.bytes(name) and second.tensors[name].shape == first.tensors[name].shape


@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "f64", "i8", "i16", "i32", "i64"])
def test_tensors_of_every_dtype(tmp_path, name):
    x = tensorlib.from_numpy(np.arange(24, dtype=np.float64).reshape(2, 3, 4)).to(name)
    strided, grad = x.transpose(0, 2), x[:, 1:2]
    if name == "f32":
        grad.requires_grad_(True)
    file = reread(
        tmp_path / "t.gguf", tensors={"x": x, "strided": strided, "grad": grad, "none": x[:0], "0-d": x[0, 0, 0]}
    )
    for key, value in {"x": x, "strided": strided, "none": x[:0], "0-d": x[0, 0, 0]}.items():
        found = file.tensor(key)
        assert found.dtype == value.dtype and found.shape == value.shape and found.tolist() == value.tolist()
    assert file.tensor("grad").tolist() == x[:, 1:2].tolist()


VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(width=32, allow_nan=False),
    st.text(max_size=20),
    st.lists(st.booleans(), min_size=1, max_size=4),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4),
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=4),
    st.lists(st.text(max_size=5), min_size=1, max_size=4),
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), min_size=1, max_size=3),
)
KEYS = st.text(min_size=1, max_size=20).filter(lambda key: "\0" not in key and key != "general.alignment")


@given(metadata=st.dictionaries(KEYS, VALUES, max_size=5), alignment=st.sampled_from([1, 2, 32, 256]))
def test_metadata_round_trip(tmp_path_factory, metadata, alignment):
    path = tmp_path_factory.getbasetemp() / "metadata.gguf"
    file = reread(path, metadata, {"t": tensorlib.ones(3)}, alignment=alignment)
    assert file.alignment == alignment and file.tensor("t").tolist() == [1, 1, 1]
    assert {key: file.metadata[key] for key in file.metadata if key != "general.alignment"} == metadata


def test_arrays_and_modules(tmp_path):
    file = reread(tmp_path / "a.gguf", tensors={"x": np.arange(3, dtype=np.float16)})
    assert file.tensor("x").dtype.name == "f16" and file.tensor("x").tolist() == [0, 1, 2]
    file = reread(
        tmp_path / "b.gguf", tensors=type("M", (), {"named_parameters": lambda self: [("w", tensorlib.ones(2))]})()
    )
    assert file.tensor("w").tolist() == [1, 1]
    with pytest.raises(WriteError, match="of that name"):
        gguf.write(tmp_path / "a.gguf", {}, {}, replace=False)


def test_types_of_values():
    assert [
        typed(v).type for v in (1, -1, 2**32, -(2**40), 1.5, True, "x")
    ] == "u32 i32 u64 i64 f32 bool string".split()
    assert [typed([v]).type for v in (1, 2**31, 2**63, 0.5, False, "")] == "i32 i64 u64 f32 bool string".split()
    assert encode("u16", 3).hex() == "020000000300" and typed(Typed("u8", 3)) == ("u8", 3)
    for bad in (None, [], [1, "a"], b"x", 2**64, -(2**63) - 1, [[]], {"a": 1}, [None]):
        with pytest.raises(DTypeError):
            encode(*typed(bad))
    for type, bad in (("u8", 256), ("bool", 1), ("string", 3), ("i8", 1.5), ("f32", 1e300), ("string", "\ud800"),
                      ("u8", [1, -1]), ("string", ["a", 1]), ("array", [1]), ("u7", 1), ("u7", [1]),
                      ("array", [Typed("u8", 1)]), ("array", [Typed("u7", [1])])):  # fmt: skip
        with pytest.raises(DTypeError):
            encode(type, bad)


@pytest.mark.parametrize(
    "metadata, tensors, match",
    [
        ({"": 1}, {}, "key"),
        ({"k" * 65536: 1}, {}, "key"),
        ({"a\0b": 1}, {}, "key"),
        ({"general.alignment": 12}, {}, "power of two"),
        ({"general.alignment": "x"}, {}, "power of two"),
        ({"a": None}, {}, "'a'"),
        ({}, {"t" * 64: tensorlib.ones(1)}, "tensor name"),
        ({}, {"t": tensorlib.ones(1).to("bool")}, "bool"),
        ({}, {"t": 3}, "int"),
        ({}, {"t": tensorlib.ones(1, 1, 1, 1, 1)}, "at most 4"),
        ({}, {"t": Raw("q8_0", (33,), bytes(34))}, "multiple of 32"),
        ({}, {"t": Raw("q8_0", (32,), bytes(33))}, "33 bytes"),
        ({}, {"t": Raw("f32", (-1,), b"")}, "at most 4 sizes"),
    ],
)
def test_refused(tmp_path, metadata, tensors, match):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"before")
    with pytest.raises(TensorlibError, match=match):
        gguf.write(path, metadata, tensors)
    assert os.listdir(tmp_path) == ["a.gguf"] and content(path) == b"before"


# ---- whole or not at all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), ZeroDivisionError])
def test_an_interrupted_write_leaves_nothing(tmp_path, error):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"before")

    def fail():
        assert len(os.listdir(tmp_path)) == 2  # the first tensor is on its way
        raise error

    raised = WriteError if isinstance(error, OSError) else error
    with pytest.raises(raised) as caught:
        gguf.write(path, ARCH, {"t": tensorlib.ones(1000, 1000), "u": Raw("f32", (1,), fail)})
    assert os.listdir(tmp_path) == ["a.gguf"] and content(path) == b"before"
    if raised is WriteError:
        assert "No space left" in str(caught.value) and str(path) in str(caught.value)


def test_a_full_disk(tmp_path):
    """A limit on the size of files, as near to a full disk as a test comes without rights."""
    source = """
import resource, signal, sys, os
from tensorlib.errors import WriteError
from tensorlib.io import gguf
from tensorlib.io.gguf_write import Raw
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    gguf.write(sys.argv[1], {}, {"t": Raw("i8", (1 << 22,), bytes(1 << 22))})
except WriteError as error:
    print(error, os.listdir(os.path.dirname(sys.argv[1])))
"""
    done = subprocess.run([sys.executable, "-c", source, tmp_path / "a.gguf"], capture_output=True, text=True)
    assert "File too large" in done.stdout and done.stdout.endswith("[]\n"), done.stderr


def test_a_killed_write_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"before")
    source = """
import os, signal, sys
from tensorlib.io import gguf
from tensorlib.io.gguf_write import Raw
gguf.write(sys.argv[1], {}, {"t": Raw("i8", (1,), lambda: os.kill(os.getpid(), signal.SIGKILL))})
"""
    done = subprocess.run([sys.executable, "-c", source, path], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert content(path) == b"before" and all(n == "a.gguf" or n.endswith(".tmp") for n in os.listdir(tmp_path))


def test_paths_that_cannot_be_written(tmp_path):
    for path in (tmp_path, tmp_path / "none" / "a.gguf", str(tmp_path / "a\0b")):
        with pytest.raises(WriteError):
            gguf.write(path, {}, {})
    assert os.listdir(tmp_path) == []


# ---- edit ------------------------------------------------------------------------------------------------------------


def test_edit(tmp_path):
    path, out = tmp_path / "a.gguf", tmp_path / "b.gguf"
    path.write_bytes(build.sound())
    before = gguf.open(path)
    changes = {"v.2": 5, "v.6": 0.25, "new": "text", "v.8": "longer than before", "a.0": [1, 2], "v.0": 300}
    gguf.edit(path, changes, remove=["a.long", "v.12"], out=out)
    assert content(path) == build.sound()
    file = gguf.open(out)
    expected = {key: before.metadata[key] for key in before.metadata if key not in ("a.long", "v.12")} | changes
    assert dict(file.metadata) == expected and list(file.metadata) == list(expected)
    # types stay where the new value fits
    assert [file.metadata.typed(k).type for k in ("v.2", "v.6", "new", "a.0", "v.0")] == "u16 f32 string u8 u32".split()
    for name in before.tensors:
        assert file.bytes(name) == before.bytes(name)
    gguf.edit(path, {"v.2": 6})
    assert (
        gguf.open(path).metadata["v.2"] == 6 and before.metadata["a.long"][1499] == "s1499"
    )  # the old file, still open
    gguf.edit(path, {"general.alignment": 256})
    assert gguf.open(path).alignment == 256 and gguf.open(path).bytes("q") == before.bytes("q")
    with pytest.raises(FormatError, match="nothing"):
        gguf.edit(path, remove=["nothing"])


def test_edit_in_place(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(build.sound())
    inode = os.stat(path).st_ino
    gguf.edit(path, {"v.2": 5, "v.8": "Größe\n", "a.5": [1, 2, 3]}, in_place=True)
    file = gguf.open(path)
    assert os.stat(path).st_ino == inode and os.path.getsize(path) == len(build.sound())
    assert file.metadata["v.2"] == 5 and file.metadata["v.8"] == "Größe\n" and file.metadata["a.5"] == [1, 2, 3]
    assert sum(a != b for a, b in zip(content(path), build.sound())) <= 2 + 1 + 12
    after = content(path)
    for changes, remove in (({"v.2": 70000}, ()), ({"v.8": "other"}, ()), ({"new": 1}, ()), ({"v.2": 1}, ["v.4"])):
        with pytest.raises(FormatError, match="in_place"):
            gguf.edit(path, changes, remove, in_place=True)
    assert content(path) == after


def test_a_big_endian_file_becomes_little_endian(tmp_path):
    path, out = tmp_path / "a.gguf", tmp_path / "b.gguf"
    with build.form(">"):
        pairs = [build.pair("general.architecture", build.STRING, "llama")]
        infos = build.info("t", [4]), build.info("x", [256], 16, 32)
        path.write_bytes(build.one(*infos, data=bytes(range(98)), pairs=pairs))
    with pytest.raises(FormatError, match="iq2_xxs"):
        gguf.edit(path, out=out)
    with build.form(">"):
        infos = build.info("t", [4]), build.info("q", [32], 6, 32)
        path.write_bytes(build.one(*infos, data=bytes(range(54)), pairs=pairs))
    gguf.edit(path, out=out)
    file, raw = gguf.open(out), bytes(range(54))
    assert file.order == "<" and file.metadata["general.architecture"] == "llama"
    assert bytes(file.bytes("t")) == b"".join(raw[i : i + 4][::-1] for i in range(0, 16, 4))
    assert bytes(file.bytes("q")) == raw[32:34][::-1] + raw[34:38][::-1] + raw[38:54]
