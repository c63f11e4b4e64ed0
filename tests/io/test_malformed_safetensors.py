"""safetensors: sound files that must be read, and every kind of damage, made here."""

import json
import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlib.errors import FormatError
from tensorlib.io import safetensors
from tests.io.hardened import bounded, flips, made, read_all, rejected, sound_or_rejected

DATA = bytes(range(32))
F4 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
U4 = {"dtype": "F32", "shape": [4], "data_offsets": [16, 32]}


def file(header, data=DATA, length=None):
    """A file of a header (an object, or bytes as they are) and data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def one(data=DATA[:16], **changes):
    """A file of one tensor, with these fields changed; None removes one."""
    entry = {key: value for key, value in {**F4, **changes}.items() if value is not None}
    return file({"t": entry}, data)


def dims(shape, end=16, data=DATA[:16], **more):
    return one(data, shape=shape, data_offsets=[0, end], **more)


SOUND = {
    "valid": file({"t": F4, "u": U4, "__metadata__": {"format": "pt"}}),
    "no tensors": file({}, b""),
    "zero size": file({"z": {"dtype": "F32", "shape": [0, 3], "data_offsets": [0, 0]}}, b""),
    "zero size between": file({"t": F4, "z": {"dtype": "F16", "shape": [0], "data_offsets": [16, 16]}, "u": U4}),
    "0-d": dims([], 4, DATA[:4]),
    "blanks around the header": file(b"  " + json.dumps({"t": F4}).encode() + b"   ", DATA[:16]),
    "names of any script": file({"größe/🙂": F4}, DATA[:16]),
    "four bits, whole bytes": dims([3, 2], 3, DATA[:3], dtype="F4"),
    "six bits, whole bytes": dims([4], 3, DATA[:3], dtype="F6_E2M3"),
    "misaligned": file({"b": {**F4, "dtype": "U8", "data_offsets": [0, 4]}, "t": {**F4, "data_offsets": [4, 20]},
                        "h": {"dtype": "F64", "shape": [1], "data_offsets": [20, 28]}}, DATA[:28]),
    "200,000 empty tensors": lambda: file({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
                                   for i in range(200_000)}, b""),
}  # fmt: skip

MALFORMED = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "length alone": struct.pack("<Q", 100),
    "length of 2^64-1": file({}, length=2**64 - 1),
    "length of 2^64-8": file({}, length=2**64 - 8),
    "length over the cap": file({}, length=100_000_001),
    "length of 0": file(b""),
    "JSON cut": file(b'{"t": {"dtype": "F32"'),
    "no UTF-8": file(b'{"\xff": 1}'),
    "an array": file([]),
    "a number": file(b"7", b""),
    "entry is null": file({"t": None}),
    "entry is a list": file({"t": [1]}),
    "unknown dtype": one(dtype="F33"),
    "dtype in lower case": one(dtype="f32"),
    "dtype is a number": one(dtype=7),
    "dtype is a list": one(dtype=["F32"]),
    "negative dim": dims([-4]),
    "two negative dims": dims([-2, -2]),
    "float dim": dims([4.0]),
    "float dim, exponent": file(b'{"t": {"dtype": "F32", "shape": [4e0], "data_offsets": [0, 16]}}', DATA[:16]),
    "shape is text": one(shape="4"),
    "shape is null": file({"t": {**F4, "shape": None}}, DATA[:16]),
    "boolean dim": dims([4, True]),
    "nested dim": dims([[4]]),
    "elements overflow": dims([2**32, 2**32, 2**32]),
    "bytes overflow": dims([2**62]),
    "bits overflow": dims([2**60]),
    "dim over 64 bits": dims([2**64 + 4]),
    "product wraps to 0": dims([2**32, 2**32], 0, b""),
    "product wraps to 16 bytes": dims([2**62 + 1, 4]),
    "huge and zero": dims([2**62, 2**62, 0], 0, b""),
    "negative offset": one(data_offsets=[-16, 0]),
    "end before begin": one(data_offsets=[16, 0]),
    "end past the data": one(data_offsets=[16, 32]),
    "end of 2^63": one(data_offsets=[0, 2**63]),
    "offsets against shape": dims([3]),
    "overlap": file({"t": F4, "u": {**U4, "data_offsets": [8, 24]}}, DATA[:24]),
    "same bytes twice": file({"t": F4, "u": F4}, DATA[:16]),
    "hole": file({"t": F4, "u": {**U4, "data_offsets": [17, 33]}}, bytes(33)),
    "bytes after the last": one(DATA[:17]),
    "data cut": one(DATA[:15]),
    "no data": one(b""),
    "first not at 0": file({"u": U4}),
    "three offsets": one(data_offsets=[0, 8, 16]),
    "one offset": one(data_offsets=[16]),
    "offsets are text": one(data_offsets="01"),
    "boolean offset": one(data_offsets=[False, 16]),
    "no data_offsets": one(data_offsets=None),
    "no dtype": one(dtype=None),
    "no shape": one(shape=None),
    "the same name twice": file(b'{"t": %b, "t": %b}' % (json.dumps(F4).encode(), json.dumps(U4).encode())),
    "the same field twice": file(b'{"t": {"dtype": "F32", "dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}',
                                 DATA[:16]),
    "metadata not text": file({"__metadata__": {"a": 1}}, b""),
    "metadata nested": file({"__metadata__": {"a": {"b": "c"}}}, b""),
    "metadata is a list": file({"__metadata__": []}, b""),
    "metadata is a tensor": file({"__metadata__": F4}, DATA[:16]),
    "four bits, half a byte": dims([3], 2, DATA[:2], dtype="F4"),
    "six bits, part of a byte": dims([3], 3, DATA[:3], dtype="F6_E3M2"),
    "100,000 deep": file(b"[" * 100_000 + b"]" * 100_000),
    "100,000 objects deep": file(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "900 deep in a shape": file(b'{"t": {"dtype": "F32", "data_offsets": [0, 16], "shape": ' + b"[" * 900 + b"]" * 900
                                + b"}}", DATA[:16]),
    "integer of 5,000 digits": file(b'{"t": {"dtype": "F32", "shape": [' + b"9" * 5000
                                    + b'], "data_offsets": [0, 16]}}'),
    "NaN": file(b'{"t": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 16]}}'),
    "Infinity": file(b'{"t": {"dtype": "F32", "shape": [4], "data_offsets": [0, Infinity]}}'),
    "text after the JSON": file(json.dumps({"t": F4}).encode() + b" x", DATA[:16]),
    "NUL after the JSON": file(json.dumps({"t": F4}).encode() + b"\0", DATA[:16]),
    "byte order mark": file(b"\xef\xbb\xbf{}", b""),
    "half a surrogate pair": file(b'{"\\ud800": %b}' % json.dumps(F4).encode(), DATA[:16]),
    "unknown field": one(extra=1),
    "30 MB of lists": lambda: file(b'{"t": [' + b"[]," * 10_000_000 + b"0]}"),
    "30 MB of zeros": lambda: file(b'{"t": [' + b"0," * 15_000_000 + b"0]}"),
    "name of a megabyte": file({"n" * 1_000_000: None}),
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def write(data, name="file.safetensors"):
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("name", SOUND)
def test_sound(write, name):
    data = made(SOUND[name])
    path = write(data)
    with bounded():
        file = safetensors.open(path)
    if len(file.tensors) < 1000:
        raw, _ = read_all(file)
        assert b"".join(raw.values()) == data[len(data) - sum(map(len, raw.values())) :]
    from safetensors import safe_open

    with safe_open(path, "np") as theirs:
        assert set(theirs.keys()) == set(file.tensors)


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(write, name):
    assert "file.safetensors" in rejected(safetensors.open, write(made(MALFORMED[name])))


def test_the_crate_rejects_the_same(write):
    """All but the one in which we are stricter."""
    from safetensors import SafetensorError, safe_open

    accepted = set()
    for name, data in MALFORMED.items():
        try:
            with safe_open(write(made(data)), "np"):
                accepted.add(name)
        except (SafetensorError, OSError):
            pass
    assert accepted <= {"unknown field", "half a surrogate pair", "huge and zero", "bits overflow"}
    assert "unknown field" in accepted


def test_cut_anywhere(write):
    data = SOUND["valid"]
    for length in range(len(data)):
        assert not sound_or_rejected(safetensors.open, write(data[:length]))
    assert not sound_or_rejected(safetensors.open, write(data + b"\0"))


FLIPPED = SOUND["valid"]


@settings(max_examples=300)
@given(data=flips(FLIPPED, stop=len(FLIPPED) - len(DATA)))
def test_flipped_bits_of_the_header(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / f"flipped-{os.getpid()}.safetensors"
    path.write_bytes(data)
    sound_or_rejected(safetensors.open, str(path))


def test_every_single_bit(write):
    data = one()
    for at in range(len(data) - 16):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            sound_or_rejected(safetensors.open, write(bytes(changed)))


_numbers = st.one_of(st.integers(-2, 5), st.sampled_from([16, 32, 2**31, 2**32, 2**63, 2**64, 2**64 - 16]), st.floats())
_junk = st.recursive(st.none() | st.booleans() | _numbers | st.text(max_size=3), st.lists, max_leaves=5)
_entries = st.fixed_dictionaries({
    "dtype": st.sampled_from(sorted(safetensors.BITS)) | _junk,
    "shape": st.lists(_numbers, max_size=3) | _junk,
    "data_offsets": st.lists(_numbers, min_size=2, max_size=2) | _junk,
})  # fmt: skip


@settings(max_examples=200)
@given(header=st.dictionaries(st.sampled_from(["t", "u", "__metadata__"]), _entries | _junk, max_size=3))
def test_any_structure(tmp_path_factory, header):
    path = tmp_path_factory.getbasetemp() / f"structure-{os.getpid()}.safetensors"
    path.write_bytes(file(header))
    sound_or_rejected(safetensors.open, str(path))


# ---- the index of shards ---------------------------------------------------------------------------------------------


def index(weights, **more):
    return json.dumps({"weight_map": weights, **more}).encode()


INDEX = {
    "path with ..": index({"t": "../a.safetensors"}),
    "absolute path": index({"t": "/a.safetensors"}),
    "drive letter": index({"t": "c:a.safetensors"}),
    "backslash": index({"t": "..\\a.safetensors"}),
    "NUL": index({"t": "a\0.safetensors"}),
    "no .safetensors": index({"t": "a.bin"}),
    "an index itself": index({"t": "model.safetensors.index.json"}),
    "shard missing": index({"t": "b.safetensors"}),
    "weight_map is a list": index(["a.safetensors"]),
    "weight_map empty": index({}),
    "no weight_map": b'{"metadata": {}}',
    "tensor not in its shard": index({"t": "a.safetensors", "x": "a.safetensors"}),
    "shard is a number": index({"t": 7}),
    "the same name twice": b'{"weight_map": {"t": "a.safetensors", "t": "a.safetensors"}}',
    "an array": b"[]",
    "no JSON": b"{",
    "deep": b"[" * 100_000,
    "empty": b"",
}  # fmt: skip


@pytest.mark.parametrize("name", INDEX)
def test_malformed_index(write, name):
    write(SOUND["valid"], "a.safetensors")
    rejected(safetensors.open, write(INDEX[name], "model.safetensors.index.json"))


def test_odd_paths(tmp_path):
    for path in (tmp_path, tmp_path / "missing.safetensors", "a\0b.safetensors", "x" * 5000):
        with pytest.raises(FormatError):
            safetensors.open(path)
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(FormatError):
        safetensors.open(tmp_path / "pipe.safetensors")
