"""safetensors files and indices byte by byte: sound ones, every kind of unsound one. s.., i..: the list's numbers."""

import json
import struct

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
    "quotes and escapes in names": file({'a "name"\\': F4, "\t": U4, "__metadata__": {'"': '"\\"'}}),
    "tensors named like fields": file({"dtype": F4, "shape": U4, "data_offsets": {**U4, "data_offsets": [32, 32],
                                                                                "shape": [0]}}),
    "metadata named like fields": file({"__metadata__": {"dtype": "F32", "shape": "b", "data_offsets": "c"}}, b""),
    "four bits, whole bytes": dims([3, 2], 3, DATA[:3], dtype="F4"),
    "six bits, whole bytes": dims([4], 3, DATA[:3], dtype="F6_E2M3"),
    "misaligned": file({"b": {**F4, "dtype": "U8", "data_offsets": [0, 4]}, "t": {**F4, "data_offsets": [4, 20]},
                        "h": {"dtype": "F64", "shape": [1], "data_offsets": [20, 28]}}, DATA[:28]),
    "s39 200,000 empty tensors": lambda: file({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
                                   for i in range(200_000)}, b""),
}  # fmt: skip

MALFORMED = {
    "s01 empty": b"",
    "s02 seven bytes": b"\0" * 7,
    "s03 length alone": struct.pack("<Q", 100),
    "s04 length of 2^64-1": file({}, length=2**64 - 1),
    "length of 2^64-8": file({}, length=2**64 - 8),
    "s05 length over the cap": file({}, length=100_000_001),
    "s06 length of 0": file(b""),
    "s07 JSON cut": file(b'{"t": {"dtype": "F32"'),
    "s08 no UTF-8": file(b'{"\xff": 1}'),
    "s09 an array": file([]),
    "a number": file(b"7", b""),
    "s10 entry is null": file({"t": None}),
    "entry is a list": file({"t": [1]}),
    "s11 unknown dtype": one(dtype="F33"),
    "dtype in lower case": one(dtype="f32"),
    "dtype is a number": one(dtype=7),
    "dtype is a list": one(dtype=["F32"]),
    "s12 negative dim": dims([-4]),
    "two negative dims": dims([-2, -2]),
    "s13 float dim": dims([4.0]),
    "float dim, exponent": file(b'{"t": {"dtype": "F32", "shape": [4e0], "data_offsets": [0, 16]}}', DATA[:16]),
    "s14 shape is text": one(shape="4"),
    "shape is null": file({"t": {**F4, "shape": None}}, DATA[:16]),
    "s15 boolean dim": dims([4, True]),
    "nested dim": dims([[4]]),
    "s16 elements overflow": dims([2**32, 2**32, 2**32]),
    "s17 bytes overflow": dims([2**62]),
    "bits overflow": dims([2**60]),
    "s18 dim over 64 bits": dims([2**64 + 4]),
    "s19 product wraps to 0": dims([2**32, 2**32], 0, b""),
    "product wraps to 16 bytes": dims([2**62 + 1, 4]),
    "huge and zero": dims([2**62, 2**62, 0], 0, b""),
    "2^61 and zero": dims([2**61, 0], 0, b""),
    "s20 negative offset": one(data_offsets=[-16, 0]),
    "s21 end before begin": one(data_offsets=[16, 0]),
    "s22 end past the data": one(data_offsets=[16, 32]),
    "end of 2^63": one(data_offsets=[0, 2**63]),
    "s23 offsets against shape": dims([3]),
    "overlap": file({"t": F4, "u": {**U4, "data_offsets": [8, 24]}}, DATA[:24]),
    "s24 same bytes twice": file({"t": F4, "u": F4}, DATA[:16]),
    "s25 hole": file({"t": F4, "u": {**U4, "data_offsets": [17, 33]}}, bytes(33)),
    "s26 bytes after the last": one(DATA[:17]),
    "s27 data cut": one(DATA[:15]),
    "no data": one(b""),
    "s28 first not at 0": file({"u": U4}),
    "s29 three offsets": one(data_offsets=[0, 8, 16]),
    "one offset": one(data_offsets=[16]),
    "offsets are text": one(data_offsets="01"),
    "boolean offset": one(data_offsets=[False, 16]),
    "s30 no data_offsets": one(data_offsets=None),
    "no dtype": one(dtype=None),
    "no shape": one(shape=None),
    "s31 the same name twice": file(b'{"t": %b, "t": %b}' % (json.dumps(F4).encode(), json.dumps(U4).encode())),
    "the same field twice": file(b'{"t": {"dtype": "F32", "dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}',
                                 DATA[:16]),
    "the same field twice, once spelt with an escape": file(
        b'{"t": {"dtype": "F32", "d\\u0074ype": "F32", "shape": [4], "data_offsets": [0, 16]}}', DATA[:16]),
    "the same name twice, one quoted": file(b'{"\\"": %b, "\\u0022": %b}' % (
        json.dumps(F4).encode(), json.dumps(U4).encode())),
    "the same metadata twice": file(b'{"__metadata__": {"a": "b", "a": "b"}}', b""),
    "metadata twice": file(b'{"__metadata__": {"a": "b"}, "__metadata__": {"a": "b"}}', b""),
    "s32 metadata not text": file({"__metadata__": {"a": 1}}, b""),
    "metadata nested": file({"__metadata__": {"a": {"b": "c"}}}, b""),
    "s33 metadata is a list": file({"__metadata__": []}, b""),
    "metadata is a tensor": file({"__metadata__": F4}, DATA[:16]),
    "s34 four bits, half a byte": dims([3], 2, DATA[:2], dtype="F4"),
    "six bits, part of a byte": dims([3], 3, DATA[:3], dtype="F6_E3M2"),
    "s35 100,000 deep": file(b"[" * 100_000 + b"]" * 100_000),
    "100,000 objects deep": file(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "900 deep in a shape": file(b'{"t": {"dtype": "F32", "data_offsets": [0, 16], "shape": ' + b"[" * 900 + b"]" * 900
                                + b"}}", DATA[:16]),
    "s36 integer of 5,000 digits": file(b'{"t": {"dtype": "F32", "shape": [' + b"9" * 5000
                                    + b'], "data_offsets": [0, 16]}}'),
    "s37 NaN": file(b'{"t": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 16]}}'),
    "Infinity": file(b'{"t": {"dtype": "F32", "shape": [4], "data_offsets": [0, Infinity]}}'),
    "s38 text after the JSON": file(json.dumps({"t": F4}).encode() + b" x", DATA[:16]),
    "NUL after the JSON": file(json.dumps({"t": F4}).encode() + b"\0", DATA[:16]),
    "byte order mark": file(b"\xef\xbb\xbf{}", b""),
    "half a surrogate pair": file(b'{"\\ud800": %b}' % json.dumps(F4).encode(), DATA[:16]),
    "s40 unknown field": one(extra=1),
    "30 MB of lists": lambda: file(b'{"t": [' + b"[]," * 10_000_000 + b"0]}"),
    "30 MB of zeros": lambda: file(b'{"t": [' + b"0," * 15_000_000 + b"0]}"),
    "name of a megabyte": file({"n" * 1_000_000: None}),
}  # fmt: skip


# ---- the index of shards ---------------------------------------------------------------------------------------------


def index(weights, **more):
    return json.dumps({"weight_map": weights, **more}).encode()


INDEX = {
    "i01 path with ..": index({"t": "../a.safetensors"}),
    "i02 absolute path": index({"t": "/a.safetensors"}),
    "drive letter": index({"t": "c:a.safetensors"}),
    "backslash": index({"t": "..\\a.safetensors"}),
    "NUL": index({"t": "a\0.safetensors"}),
    "no .safetensors": index({"t": "a.bin"}),
    "an index itself": index({"t": "model.safetensors.index.json"}),
    "i03 shard missing": index({"t": "b.safetensors"}),
    "i04 weight_map is a list": index(["a.safetensors"]),
    "weight_map empty": index({}),
    "i05 no weight_map": b'{"metadata": {}}',
    "i06 tensor not in its shard": index({"t": "a.safetensors", "x": "a.safetensors"}),
    "shard is a number": index({"t": 7}),
    "the same name twice": b'{"weight_map": {"t": "a.safetensors", "t": "a.safetensors"}}',
    "an array": b"[]",
    "no JSON": b"{",
    "deep": b"[" * 100_000,
    "empty": b"",
}  # fmt: skip
