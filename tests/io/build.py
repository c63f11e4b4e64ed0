"""GGUF files byte by byte: sound ones, and every kind of unsound one."""

import struct

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}
MAX = 2**64 - 1


def text(value, length=None):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def scalar(type, value):
    return text(value) if type == STRING else struct.pack("<" + CODES[type], value)


def pair(key, type, value):
    """A key and a value; for arrays `value` is (element type, list)."""
    if type == ARRAY:
        element, items = value
        return text(key) + struct.pack("<IIQ", ARRAY, element, len(items)) + b"".join(scalar(element, v) for v in items)
    return text(key) + struct.pack("<I", type) + scalar(type, value)


def info(name, dims, type=0, offset=0, n_dims=None):
    """A tensor info; dims innermost first, as in the file."""
    dims_raw = b"".join(struct.pack("<Q", d % 2**64) for d in dims)
    return (
        text(name)
        + struct.pack("<I", len(dims) if n_dims is None else n_dims)
        + dims_raw
        + struct.pack("<IQ", type, offset)
    )


def file(pairs=(), infos=(), data=b"", align=32, version=3, n_pairs=None, n_infos=None, magic=b"GGUF"):
    """The bytes of a file of encoded pairs and infos."""
    counts = len(infos) if n_infos is None else n_infos, len(pairs) if n_pairs is None else n_pairs
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(infos)
    return head + (b"\0" * (-len(head) % align) + data if infos else b"")


ARCH = pair("general.architecture", STRING, "llama")
SMALL = info("t", [4])  # 16 bytes of f32
DATA = bytes(range(64))


def one(*infos, data=DATA, pairs=(ARCH,), **options):
    return file(pairs, infos, data, **options)


def raw_pair(key, type, payload):
    return text(key) + struct.pack("<I", type) + payload


def sound():
    """A file with every kind of value, and tensors of three formats."""
    values = {
        U8: 200,
        I8: -100,
        U16: 60000,
        I16: -30000,
        U32: 2**32 - 1,
        I32: -(2**31),
        F32: 0.5,
        BOOL: True,
        STRING: "größe\n",
        U64: MAX,
        I64: -(2**63),
        F64: 1e300,
    }
    pairs = [ARCH, *(pair(f"v.{t}", t, v) for t, v in values.items())]
    pairs += [pair(f"a.{t}", ARRAY, (t, [v, v, v])) for t, v in values.items()]
    pairs += [pair("a.none", ARRAY, (STRING, [])), pair("a.long", ARRAY, (STRING, [f"s{i}" for i in range(1500)]))]
    infos = [info("f", [4, 2], 0, 0), info("q", [32, 3], 8, 32), info("h", [], 1, 160), info("z", [0, 3], 0, 192)]
    return file(pairs, infos, bytes(range(192)))


def malformed():
    """name -> bytes: each has to be rejected with a FormatError."""
    return malformed_metadata() | malformed_tensors()


def malformed_metadata():
    """The header, keys and values."""
    deep = struct.pack("<IQ", ARRAY, 1) * 3000 + struct.pack("<IQ", U8, 0)
    huge = struct.pack("<IQ", U64, 2**62)
    return {
        "empty": b"",
        "magic": one(SMALL, magic=b"GGML"),
        "version 0": one(SMALL, version=0),
        "version 1": one(SMALL, version=1),
        "version 99": one(SMALL, version=99),
        "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        "header cut": one(SMALL)[:15],
        "n_tensors max": one(SMALL, n_infos=MAX),
        "n_pairs max": one(SMALL, n_pairs=MAX),
        "n_tensors 2^40": one(SMALL, n_infos=2**40),
        "n_pairs one more": file([ARCH], n_pairs=2),
        "key length max": file([text("key", MAX) + struct.pack("<IB", U8, 0)]),
        "key length past the end": file([text("key", 5000) + struct.pack("<IB", U8, 0)]),
        "empty key": file([pair("", U8, 0)]),
        "duplicate key": file([ARCH, pair("a", U8, 0), pair("a", U8, 1)]),
        "key no UTF-8": file([pair(b"\xff\xfe", U8, 0)]),
        "key of 65,536 bytes": file([pair("k" * 65536, U8, 0)]),
        "NUL in a key": file([pair("a\0b", U8, 0)]),
        "value type 13": file([raw_pair("a", 13, b"\0" * 16)]),
        "value type max": file([raw_pair("a", 2**32 - 1, b"\0" * 16)]),
        "string length 2^63": file([raw_pair("a", STRING, text("x", 2**63))]),
        "string no UTF-8": file([pair("a", STRING, b"\xc3")]),
        "array count 2^62": file([raw_pair("a", ARRAY, huge)]),
        "array of type 77": file([raw_pair("a", ARRAY, struct.pack("<IQ", 77, 1) + b"\0" * 8)]),
        "3,000 nested arrays": file([raw_pair("a", ARRAY, deep)]),
        "string length 2^64-8": file([raw_pair("a", ARRAY, struct.pack("<IQ", STRING, 1) + text("x", MAX - 7))]),
        "last string past the end": file(
            [raw_pair("a", ARRAY, struct.pack("<IQ", STRING, 2) + text("x") + text("y", 2))]
        ),
        "strings without end": file([raw_pair("a", ARRAY, struct.pack("<IQ", STRING, 10**9))]),
        "array of 10^9 bytes": file([raw_pair("a", ARRAY, struct.pack("<IQ", U8, 10**9))]),
        "bool of 2": file([raw_pair("a", BOOL, b"\2")]),
    }


def malformed_tensors():
    """The alignment, tensor infos and data."""
    two = [info("t", [4]), info("u", [4], 0, 32)]
    return {
        "alignment 0": one(SMALL, pairs=[pair("general.alignment", U32, 0)]),
        "alignment 13": one(SMALL, pairs=[pair("general.alignment", U32, 13)], align=13),
        "alignment text": one(SMALL, pairs=[pair("general.alignment", STRING, "32")]),
        "alignment -32": one(SMALL, pairs=[pair("general.alignment", I32, -32)]),
        "alignment 2^31": one(SMALL, pairs=[pair("general.alignment", U32, 2**31)]),
        "5 dims": one(info("t", [1] * 5)),
        "n_dims max": one(info("t", [4], n_dims=2**32 - 1)),
        "dim -1": one(info("t", [-1])),
        "product wraps to 0": one(info("t", [2**32, 2**32])),
        "product over 2^63": one(info("t", [2**31, 2**31, 2**31, 2**31])),
        "bytes overflow": one(info("t", [2**62])),
        "huge and zero": one(info("t", [2**63, 0])),
        "tensor type 999": one(info("t", [4], 999)),
        "tensor type 4, removed": one(info("t", [32], 4)),
        "row of 33 in q8_0": one(info("t", [33], 8)),
        "row of 128 in q6_k": one(info("t", [128], 14), data=bytes(1000)),
        "offset 2^64-32": one(info("t", [4], 0, MAX - 31)),
        "offset past the end": one(info("t", [4], 0, 1 << 20)),
        "offset not aligned": one(info("t", [4], 0, 4)),
        "overlap": one(info("t", [16]), info("u", [4], 0, 32)),
        "same place": one(info("t", [4]), info("u", [4])),
        "duplicate tensor": one(info("t", [4]), info("t", [4], 0, 32)),
        "data one byte short": one(*two, data=DATA[:47]),
        "no data": one(SMALL, data=b""),
        "name length max": one(text("t", MAX) + struct.pack("<IQIQ", 1, 4, 0, 0)),
        "empty name": one(info("", [4])),
        "name no UTF-8": one(info(b"\xff", [4])),
        "NUL in a name": one(info("a\0b", [4])),
        "infos cut": file([ARCH], [info("t", [4])[:-6]]),
        "sizes add up past 2^64": one(info("t", [2**60], 0, 0), info("u", [2**60], 0, 2**62)),
    }
