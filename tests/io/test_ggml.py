"""Legacy GGML files, byte by byte: read, and refused where they are damaged or too old."""

import contextlib
import struct
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorlib.errors import FormatError
from tensorlib.io import ggml
from tensorlib.quant.formats import BY_ID

KINDS = {
    "ggml": (b"lmgg", None),
    "ggmf": (b"fmgg", 1),
    "ggjt 1": (b"tjgg", 1),
    "ggjt 2": (b"tjgg", 2),
    "ggjt": (b"tjgg", 3),
}
TOKENS = [(b"a", 0.5), (b"\xe4", -1.0), (b"", 0.0)]
HYPER = [3, 64, 256, 4, 2, 16, 2]


def tensor(name, dims, type=0, data=None, n_dims=None, length=None):
    """(header, data) of a tensor; dims innermost first."""
    raw = name if isinstance(name, bytes) else name.encode()
    head = struct.pack("<3I", len(dims) if n_dims is None else n_dims, len(raw) if length is None else length, type)
    head += struct.pack(f"<{len(dims)}I", *dims) + raw
    if data is None:
        count = 1
        for dim in dims:
            count *= dim
        format = BY_ID[type]
        data = bytes(i % 251 for i in range(count // format.elements * format.nbytes))
    return head, data


def file(kind="ggjt", tensors=(), tokens=TOKENS, hyper=HYPER, version=None, magic=None):
    """The bytes of a file."""
    own, number = KINDS[kind]
    version = number if version is None else version
    out = (magic or own) + (b"" if version is None else struct.pack("<I", version)) + struct.pack("<7I", *hyper)
    for text, score in tokens:
        out += struct.pack("<I", len(text)) + text + (b"" if kind == "ggml" else struct.pack("<f", score))
    for head, data in tensors:
        out += head
        out += (bytes(-len(out) % 32) if kind.startswith("ggjt") else b"") + data
    return out


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


def malformed():
    t = tensor("t", [4])
    many = [(b"x", 0.0)] * 3
    return {
        "empty": b"",
        "magic": file(magic=b"ggml"),
        "GGUF": b"GGUF" + bytes(40),
        "adapter": file(magic=b"algg"),
        "ggjt 0": file(version=0),
        "ggjt 4": file(version=4),
        "ggmf 2": file("ggmf", version=2),
        "cut in the hyperparameters": file()[:20],
        "n_vocab max": file(hyper=[2**32 - 1, *HYPER[1:]]),
        "n_vocab one more": file(hyper=[4, *HYPER[1:]]),
        "token past the end": file(tokens=many)[:-9] + struct.pack("<I", 2**31) + b"xxxx",
        "token of 70,000 bytes": file(tokens=[(b"x" * 70000, 0.0), *many[:2]]),
        "0 dims": file(tensors=[tensor("t", [], data=bytes(4))]),
        "5 dims": file(tensors=[tensor("t", [1] * 5)]),
        "n_dims max": file(tensors=[tensor("t", [4], n_dims=2**32 - 1)]),
        "name length max": file(tensors=[tensor("t", [4], length=2**32 - 1)]),
        "empty name": file(tensors=[tensor("", [4])]),
        "name no UTF-8": file(tensors=[tensor(b"\xff", [4])]),
        "NUL in a name": file(tensors=[tensor("a\0b", [4])]),
        "type 999": file(tensors=[(t[0][:8] + struct.pack("<I", 999) + t[0][12:], t[1])]),
        "q4_0 in ggjt 2": file("ggjt 2", [tensor("t", [32], 2)]),
        "q5_0 in ggjt 1": file("ggjt 1", [tensor("t", [32], 6)]),
        "q4_k in ggml": file("ggml", [tensor("t", [256], 12)]),
        "iq4_nl": file(tensors=[tensor("t", [32], 20)]),
        "row of 33 in q8_0": file(tensors=[tensor("t", [33], 8)]),
        "product wraps": file(tensors=[tensor("t", [2**31, 2**31, 4], data=b"")]),
        "bytes overflow": file(tensors=[tensor("t", [2**32 - 1] * 4, data=b"")]),
        "data one byte short": file(tensors=[t])[:-1],
        "twice": file(tensors=[t, t]),
        "zeros at the end": file(tensors=[t]) + bytes(64),
    }


@pytest.mark.parametrize("name", malformed())
def test_malformed(write, name):
    path = write(malformed()[name])
    start = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(FormatError) as caught:
            ggml.open(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6 and time.perf_counter() - start < 1.0
    finally:
        tracemalloc.stop()
    assert caught.value.file == path and len(str(caught.value)) < 1000


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


@given(st.data())
def test_any_bit_flipped(tmp_path_factory, data):
    raw = bytearray(file(tensors=[tensor("t", [4]), tensor("u", [32], 8)]))
    for _ in range(data.draw(st.integers(1, 3))):
        bit = data.draw(st.integers(0, 8 * len(raw) - 1))
        raw[bit // 8] ^= 1 << bit % 8
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.write_bytes(bytes(raw))
    with contextlib.suppress(FormatError):
        found = ggml.open(path)
        for name in found.tensors:
            found.tensor(name)
