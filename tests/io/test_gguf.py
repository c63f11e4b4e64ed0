"""The GGUF reader: against gguf-py, and against every kind of damage."""

import gc
import itertools
import os
import struct
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlib.errors import FormatError
from tensorlib.io import gguf, gguf_swap, gguf_values
from tensorlib.quant.formats import FORMATS
from tests.io import build

MALFORMED = build.malformed()


@pytest.fixture
def write(tmp_path):
    """Function: a file of these bytes, its path as text."""

    def write(data, name="file.gguf"):
        path = tmp_path / name
        path.write_bytes(data)
        return str(path)

    return write


def everything(file):
    """Force all lazy decoding."""
    return [file.metadata[key] for key in file.metadata]


def test_every_value_type(write):
    file = gguf.open(write(build.sound()))
    expected = {0: 200, 1: -100, 2: 60000, 3: -30000, 4: 2**32 - 1, 5: -(2**31), 6: 0.5, 7: True, 8: "größe\n"}
    expected |= {10: build.MAX, 11: -(2**63), 12: 1e300}
    for kind, value in expected.items():
        assert file.metadata[f"v.{kind}"] == value
        assert file.metadata[f"a.{kind}"] == [value] * 3
        assert file.metadata.kind(f"a.{kind}")[1] == 3
    assert file.metadata["a.none"] == [] and file.metadata["a.long"][1499] == "s1499"
    assert file.metadata.kind("a.long") == ("string", 1500)
    assert type(file.metadata["v.7"]) is bool
    shapes = {name: (i.shape, i.format.name, i.nbytes) for name, i in file.tensors.items()}
    assert shapes == {
        "f": ((2, 4), "f32", 32),
        "q": ((3, 32), "q8_0", 102),
        "h": ((), "f16", 2),
        "z": ((3, 0), "f32", 0),
    }


def test_tensors_are_the_files_bytes(write):
    path, raw = write(build.sound()), bytes(range(192))
    file = gguf.open(path)
    f, h, z, q = (file.tensor(name) for name in "fhzq")
    np.testing.assert_array_equal(f.numpy().view(np.uint8).reshape(-1), np.frombuffer(raw[:32], np.uint8))
    assert h.shape == () and h.numpy().tobytes() == raw[160:162] and z.shape == (3, 0)
    assert q.shape == (3, 32) and q.format.name == "q8_0" and q.nbytes == 102
    assert f.ptr == file.buffer.ptr + file.tensors["f"].offset and q.ptr == file.buffer.ptr + file.tensors["q"].offset
    file.close()  # the tensors hold on to the mapping
    del file
    gc.collect()
    assert f.numpy().view(np.uint8).reshape(-1)[5] == 5
    f.fill_(1.0)  # this process's copy
    with open(path, "rb") as unchanged:
        assert unchanged.read() == build.sound()


@pytest.mark.parametrize("align", [1, 8, 32, 4096])
def test_alignment(write, align):
    head = build.pair("general.alignment", build.U32, align)
    path = write(build.file([head], [build.info("t", [4])], build.DATA, align=align))
    file = gguf.open(path)
    with open(path, "rb") as whole:
        assert whole.read()[file.tensors["t"].offset :][:16] == build.DATA[:16] and file.alignment == align


def test_same_as_gguf_py(tmp_path):
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quantize

    path, rng = str(tmp_path / "w.gguf"), np.random.default_rng(0)
    writer = GGUFWriter(path, "llama")
    writer.add_token_list([f"tok{i}é" for i in range(3000)])
    writer.add_token_scores([float(-i) for i in range(3000)])
    writer.add_chat_template("{{ messages }}")
    for i, fmt in enumerate(("F32", "F16", "Q4_1", "Q8_0", "Q5_1", "BF16")):
        w, kind = rng.standard_normal((i + 1, 512)).astype(np.float32), GGMLQuantizationType[fmt]
        writer.add_tensor(f"t{i}", w if fmt == "F32" else quantize(w, kind), raw_dtype=None if fmt == "F32" else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ours, theirs = gguf.open(path), GGUFReader(path)
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            assert ours.metadata[key] == field.contents(), key
    assert len(ours.metadata) == len(theirs.fields) - 3
    for tensor in theirs.tensors:
        found = ours.tensors[tensor.name]
        assert (found.offset, found.nbytes) == (tensor.data_offset, tensor.n_bytes)
        assert found.shape == tuple(reversed(tensor.shape.tolist())) and found.format.ggml_id == tensor.tensor_type
    assert len(ours.tensors) == len(theirs.tensors)


@pytest.mark.parametrize("version, order, code", [(1, "<", "I"), (2, "<", "Q"), (3, ">", "Q")])
def test_versions_and_byte_orders(write, version, order, code):
    three = gguf.open(write(build.sound(), "three.gguf"))
    with build.form(order, code):
        raw = build.sound(version)
    file = gguf.open(write(raw))
    assert (file.version, file.order) == (version, order)
    assert everything(file) == everything(three) and list(file.metadata) == list(three.metadata)
    assert [file.metadata.encoded(key) for key in file.metadata] == [three.metadata.encoded(k) for k in three.metadata]
    assert file.metadata.strings("a.long") == three.metadata.strings("a.long")
    assert file.metadata["a.deep"] == [[[1, 2], ["x"]], []] and file.metadata.kind("a.deep") == ("array", 2)
    for name, info in three.tensors.items():
        found = file.tensors[name]
        assert (found.shape, found.format, found.nbytes) == (info.shape, info.format, info.nbytes)
        assert file.bytes(name) == three.bytes(name)  # as they lie in the file


def test_big_endian_blocks_as_gguf_py_converts_them(tmp_path, monkeypatch, write):
    """The published converter swaps a file in place; tensors must then read as before."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quantize
    from gguf.scripts import gguf_convert_endian

    path, rng = str(tmp_path / "w.gguf"), np.random.default_rng(0)
    formats = ("F32", "F16", "BF16", "Q4_0", "Q8_0", "Q4_K", "Q6_K", "MXFP4")
    writer = GGUFWriter(path, "llama")
    writer.add_array("test.numbers", [1, 2, 70000])
    for name in formats:
        kind, w = GGMLQuantizationType[name], rng.standard_normal((2, 512)).astype(np.float32)
        raw = w if name == "F32" else quantize(w, kind) if name not in ("Q4_K", "Q6_K") else None
        if raw is None:
            raw = rng.integers(0, 256, (2, 2 * {"Q4_K": 144, "Q6_K": 210}[name]), np.uint8)
        writer.add_tensor(name, raw, raw_dtype=None if name == "F32" else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    little = gguf.open(path)
    before = {name: bytes(little.bytes(name)) for name in formats}
    with open(path, "rb") as file:
        copy = write(file.read())
    monkeypatch.setattr("builtins.input", lambda _: "YES")
    gguf_convert_endian.convert_byteorder(
        GGUFReader(copy, "r+"), type("Arguments", (), {"order": "big", "dry_run": False})
    )
    big = gguf.open(copy)
    assert big.order == ">" and big.metadata["test.numbers"] == [1, 2, 70000]
    for name in formats:
        found = big.tensor(name)
        size = before[name].__len__()
        assert found.buffer.read(found.ptr, size) == before[name], name
        one = big.rows(name, 1, 2)
        assert one.buffer.read(one.ptr, size // 2) == before[name][size // 2 :], name
        assert (bytes(big.bytes(name)) != before[name]) == (name != "MXFP4")


@pytest.mark.parametrize("format", FORMATS.values(), ids=str)
def test_every_format_can_be_swapped(format):
    raw = np.random.default_rng(0).integers(0, 256, 3 * format.nbytes, np.uint8)
    there = gguf_swap.swapped(raw, format)
    fields = gguf_swap.FIELDS[format.name]
    assert (gguf_swap.swapped(there, format) == raw).all() and (not fields or (there != raw).any())
    inside = sorted((offset, offset + struct.calcsize(f"<{count}{code}")) for offset, code, count in fields)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise([(0, 0), *inside, (format.nbytes, 0)]))
    if not format.quantized:
        assert (there.reshape(3, -1) == raw.reshape(3, -1)[:, ::-1]).all()


def test_rows_and_bytes(write):
    raw = bytes(range(192))
    file = gguf.open(write(build.sound()))
    q = file.rows("q", 1, 3)
    assert q.shape == (2, 32) and q.ptr == file.buffer.ptr + file.tensors["q"].offset + 34
    assert file.rows("f", 1, 2).shape == (1, 4) and file.rows("f", 2, 2).shape == (0, 4)
    assert file.bytes("q", 34, 68) == raw[32 + 34 : 32 + 68] and file.bytes("q").readonly
    assert file.raw("h").tolist() == list(raw[160:162])
    for name, start, stop in (("q", 2, 4), ("q", -1, 1), ("q", 2, 1), ("h", 0, 1), ("none", 0, 1)):
        with pytest.raises(FormatError, match=name):
            file.rows(name, start, stop)
    with pytest.raises(FormatError, match="102 bytes"):
        file.bytes("q", 0, 103)


def test_slices(write):
    file = gguf.open(write(build.sound()))
    assert file.slice("q", slice(1, None)).shape == (2, 32) and file.slice("q", slice(2, 1)).shape == (0, 32)
    assert file.slice("q", slice(-1, None)).ptr == file.rows("q", 2, 3).ptr
    assert file.slice("f", ..., slice(1, 3)).shape == (2, 2) and file.slice("f", 1).shape == (4,)
    for index in ((0,), (slice(None), slice(None)), (slice(None, None, 2),), (...,), ()):
        with pytest.raises(FormatError, match="rows"):
            file.slice("q", *index)


@given(st.data())
def test_long_vocabularies_are_stepped_over_as_short_ones_are(tmp_path_factory, data):
    """Many strings go through a pattern: with long ones, other orders and damage among them it must not matter."""
    count = gguf_values.MANY + 1500
    lengths = data.draw(st.lists(st.sampled_from([0, 1, 5, 40, 41, 300]), min_size=1, max_size=50))
    strings = [f"{i}"[: lengths[i % len(lengths)]].ljust(lengths[i % len(lengths)], "é"[:1]) for i in range(count)]
    at = data.draw(st.one_of(st.none(), st.integers(0, count - 1)))
    items = [build.text(text) for text in strings]
    if at is not None:
        items[at] = build.text("x", data.draw(st.sampled_from([2**64 - 1, 2**63, 2**32, 10**9])))
    raw = build.file([build.raw_pair("a", build.ARRAY, struct.pack("<IQ", build.STRING, count) + b"".join(items))])
    path = tmp_path_factory.getbasetemp() / "many.gguf"
    path.write_bytes(raw)
    if at is None:
        assert gguf.open(path).metadata["a"] == strings
        return
    with pytest.raises(FormatError, match=f"string {at} of"):
        gguf.open(path)


def test_a_file_that_changes_under_the_map(write):
    path = write(build.sound())
    file = gguf.open(path)
    os.truncate(path, 4096)
    for access in (lambda: file.tensor("f"), lambda: file.metadata["a.long"], lambda: file.bytes("q")):
        with pytest.raises(FormatError, match="4096 bytes now"):
            access()
    file.close()
    with pytest.raises(FormatError, match="closed"):
        file.tensor("f")
    path = write(build.sound())
    file = gguf.open(path)
    with open(path, "r+b") as same_size:
        same_size.write(b"\xff" * os.path.getsize(path))
    with pytest.raises(FormatError, match="changed"):
        file.metadata["a.long"]
    with pytest.raises(FormatError):
        file.metadata["a.deep"]


@pytest.mark.parametrize("name", build.accepted())
def test_accepted(write, name):
    file = gguf.open(write(build.accepted()[name]))
    everything(file)
    for tensor in file.tensors:
        file.tensor(tensor)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "missing.gguf", tmp_path, tmp_path / "fifo", "a\0b", "/proc/self/mem"):
        with pytest.raises(FormatError):
            gguf.open(path)


def test_require(write):
    file = gguf.open(write(build.sound()))
    assert file.require("v.4", int) == 2**32 - 1 and file.require("v.4", float) and file.require("none", int, 7) == 7
    for key, kind in (("v.8", int), ("v.7", int), ("v.4", str), ("none", int), ("v.6", int)):
        with pytest.raises(FormatError, match=key):
            file.require(key, kind)
    with pytest.raises(FormatError, match="no such tensor"):
        file.tensor("nothing")


def test_real_model(default_model):
    file = gguf.open(default_model)
    assert len(file.tensors) == 272 and len(file.metadata["tokenizer.ggml.tokens"]) == 49152
    assert file.tensors["token_embd.weight"].format.name == "q8_0"
    # 6.6 ms when nothing else runs (98,052 strings stepped over at 50 ns each); the rest is for a busy machine.
    best = min(_timed(lambda: gguf.open(default_model)) for _ in range(5))
    assert best < 0.05


def _timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def test_opening_imports_nothing_heavy(run_python, default_model):
    source = """
import sys
from tensorlib.io import gguf, hub
gguf.open(sys.argv[1])
print(*sorted({"numpy", "numba", "tokenizers", "jinja2", "gguf", "huggingface_hub", "tqdm"} & set(sys.modules)))
"""
    assert run_python(source, str(default_model)).split() == []
