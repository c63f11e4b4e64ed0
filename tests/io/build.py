"""GGUF files byte by byte: sound ones, and every kind of unsound one."""

import contextlib
import struct

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}
MAX = 2**64 - 1


FORM = ["<", "Q"]  # byte order, and struct code of lengths, of what the functions below make


@contextlib.contextmanager
def form(order="<", code="Q"):
    """Inside, files are of this byte order; `code` is "I" for version 1."""
    before, FORM[:] = FORM[:], (order, code)
    try:
        yield
    finally:
        FORM[:] = before


def pack(codes, *values):
    """struct.pack in the order of the day; L is a length."""
    return struct.pack(FORM[0] + codes.replace("L", FORM[1]), *values)


def text(value, length=None):
    raw = value if isinstance(value, bytes) else value.encode()
    return pack("L", len(raw) if length is None else length) + raw


def scalar(type, value):
    return text(value) if type == STRING else pack(CODES[type], value)


def array(type, items):
    """An array as it stands after its value type; items of arrays are arrays."""
    return pack("IL", type, len(items)) + b"".join(
        array(*item) if type == ARRAY else scalar(type, item) for item in items
    )


def pair(key, type, value):
    """A key and a value; for arrays `value` is (element type, list)."""
    return text(key) + pack("I", type) + (array(*value) if type == ARRAY else scalar(type, value))


def info(name, dims, type=0, offset=0, n_dims=None):
    """A tensor info; dims innermost first, as in the file."""
    dims_raw = b"".join(pack("L", d % 2**64) for d in dims)
    return text(name) + pack("I", len(dims) if n_dims is None else n_dims) + dims_raw + pack("IQ", type, offset)


def file(pairs=(), infos=(), data=b"", align=32, version=3, n_pairs=None, n_infos=None, magic=b"GGUF"):
    """The bytes of a file of encoded pairs and infos."""
    counts = len(infos) if n_infos is None else n_infos, len(pairs) if n_pairs is None else n_pairs
    head = magic + pack("ILL", version, *counts) + b"".join(pairs) + b"".join(infos)
    return head + (b"\0" * (-len(head) % align) + data if infos else b"")


ARCH = pair("general.architecture", STRING, "llama")
SMALL = info("t", [4])  # 16 bytes of f32
DATA = bytes(range(64))


def one(*infos, data=DATA, pairs=(ARCH,), **options):
    return file(pairs, infos, data, **options)


def raw_pair(key, type, payload):
    return text(key) + pack("I", type) + payload


def sound(version=3):
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
    pairs = [pair("general.architecture", STRING, "llama"), *(pair(f"v.{t}", t, v) for t, v in values.items())]
    pairs += [pair(f"a.{t}", ARRAY, (t, [v, v, v])) for t, v in values.items()]
    pairs += [pair("a.deep", ARRAY, (ARRAY, [(ARRAY, [(U8, [1, 2]), (STRING, ["x"])]), (F32, [])]))]
    pairs += [pair("a.none", ARRAY, (STRING, [])), pair("a.long", ARRAY, (STRING, [f"s{i}" for i in range(1500)]))]
    infos = [info("f", [4, 2], 0, 0), info("q", [32, 3], 8, 32), info("h", [], 1, 160), info("z", [0, 3], 0, 192)]
    return file(pairs, infos, bytes(range(192)), version=version)


def malformed():
    """name -> bytes: each has to be rejected with a FormatError. g..: the number in the table of malformed files."""
    return malformed_metadata() | malformed_tensors()


def accepted():
    """name -> bytes: what only looks wrong, or is as well read as refused."""
    return {
        "g34 zero dim": one(info("t", [0, 4])),
        "g45 tensor name of 200 bytes": one(info("t" * 200, [4])),
        "no keys": one(SMALL, pairs=[]),
        "nothing": file(),
        "bytes after the data": one(SMALL) + b"more",
        "8 levels of arrays": file([raw_pair("a", ARRAY, pack("IL", ARRAY, 1) * 7 + pack("IL", U8, 0))]),
    }


def malformed_metadata():
    """The header, keys and values."""
    deep = struct.pack("<IQ", ARRAY, 1) * 3000 + struct.pack("<IQ", U8, 0)
    huge = struct.pack("<IQ", U64, 2**62)
    return {
        "g01 empty": b"",
        "g02 magic": one(SMALL, magic=b"GGML"),
        "g03 version 0": one(SMALL, version=0),
        "version 1 with lengths of 64 bits": one(SMALL, version=1),
        "g04 version 99": one(SMALL, version=99),
        "g05 big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        "big-endian version alone": b"GGUF" + struct.pack(">I", 3) + one(SMALL)[8:],
        "big-endian version 2": b"GGUF" + struct.pack(">IQQ", 2, 0, 0) + bytes(64),
        "g06 header cut": one(SMALL)[:15],
        "g07 n_tensors max": one(SMALL, n_infos=MAX),
        "g08 n_pairs max": one(SMALL, n_pairs=MAX),
        "g09 n_tensors 2^40": one(SMALL, n_infos=2**40),
        "g10 n_pairs one more": file([ARCH], n_pairs=2),
        "g11 key length max": file([text("key", MAX) + struct.pack("<IB", U8, 0)]),
        "g12 key length past the end": file([text("key", 5000) + struct.pack("<IB", U8, 0)]),
        "g13 empty key": file([pair("", U8, 0)]),
        "g14 duplicate key": file([ARCH, pair("a", U8, 0), pair("a", U8, 1)]),
        "g15 key no UTF-8": file([pair(b"\xff\xfe", U8, 0)]),
        "g16 key of 65,536 bytes": file([pair("k" * 65536, U8, 0)]),
        "NUL in a key": file([pair("a\0b", U8, 0)]),
        "g17 value type 13": file([raw_pair("a", 13, b"\0" * 16)]),
        "value type max": file([raw_pair("a", 2**32 - 1, b"\0" * 16)]),
        "g18 string length 2^63": file([raw_pair("a", STRING, text("x", 2**63))]),
        "string no UTF-8": file([pair("a", STRING, b"\xc3")]),
        "g19 array count 2^62": file([raw_pair("a", ARRAY, huge)]),
        "g20 array of type 77": file([raw_pair("a", ARRAY, struct.pack("<IQ", 77, 1) + b"\0" * 8)]),
        "g21 3,000 nested arrays": file([raw_pair("a", ARRAY, deep)]),
        "100,000 arrays in an array": file(
            [raw_pair("a", ARRAY, struct.pack("<IQ", ARRAY, 10**5) + bytes(12 * 10**5))]
        ),
        "array in an array past the end": file(
            [raw_pair("a", ARRAY, struct.pack("<IQIQ", ARRAY, 2, U32, 2) + bytes(8))]
        ),
        "g22 string length 2^64-8": file([raw_pair("a", ARRAY, struct.pack("<IQ", STRING, 1) + text("x", MAX - 7))]),
        "last string past the end": file(
            [raw_pair("a", ARRAY, struct.pack("<IQ", STRING, 2) + text("x") + text("y", 2))]
        ),
        "strings without end": file([raw_pair("a", ARRAY, struct.pack("<IQ", STRING, 10**9))]),
        "g24 array of 10^9 bytes": file([raw_pair("a", ARRAY, struct.pack("<IQ", U8, 10**9))]),
        "g23 bool of 2": file([raw_pair("a", BOOL, b"\2")]),
    }


def malformed_tensors():
    """The alignment, tensor infos and data."""
    two = [info("t", [4]), info("u", [4], 0, 32)]
    return {
        "g25 alignment 0": one(SMALL, pairs=[pair("general.alignment", U32, 0)]),
        "g26 alignment 13": one(SMALL, pairs=[pair("general.alignment", U32, 13)], align=13),
        "g27 alignment text": one(SMALL, pairs=[pair("general.alignment", STRING, "32")]),
        "alignment -32": one(SMALL, pairs=[pair("general.alignment", I32, -32)]),
        "g28 alignment 2^31": one(SMALL, pairs=[pair("general.alignment", U32, 2**31)]),
        "g29 5 dims": one(info("t", [1] * 5)),
        "g30 n_dims max": one(info("t", [4], n_dims=2**32 - 1)),
        "g31 dim -1": one(info("t", [-1])),
        "g32 product wraps to 0": one(info("t", [2**32, 2**32])),
        "product over 2^63": one(info("t", [2**31, 2**31, 2**31, 2**31])),
        "g33 bytes overflow": one(info("t", [2**62])),
        "huge and zero": one(info("t", [2**63, 0])),
        "2^61 and zero": one(info("t", [2**61, 0])),
        "a product of 2^60, and zero": one(info("t", [0, 2**30, 2**30])),
        "g35 tensor type 999": one(info("t", [4], 999)),
        "g36 tensor type 4, removed": one(info("t", [32], 4)),
        "g37 row of 33 in q8_0": one(info("t", [33], 8)),
        "row of 128 in q6_k": one(info("t", [128], 14), data=bytes(1000)),
        "g38 offset 2^64-32": one(info("t", [4], 0, MAX - 31)),
        "g39 offset past the end": one(info("t", [4], 0, 1 << 20)),
        "g40 offset not aligned": one(info("t", [4], 0, 4)),
        "g41 overlap": one(info("t", [16]), info("u", [4], 0, 32)),
        "same place": one(info("t", [4]), info("u", [4])),
        "g42 duplicate tensor": one(info("t", [4]), info("t", [4], 0, 32)),
        "g43 data one byte short": one(*two, data=DATA[:47]),
        "no data": one(SMALL, data=b""),
        "g44 name length max": one(text("t", MAX) + struct.pack("<IQIQ", 1, 4, 0, 0)),
        "empty name": one(info("", [4])),
        "name no UTF-8": one(info(b"\xff", [4])),
        "g47 NUL in a name": one(info("a\0b", [4])),
        "g46 infos cut": file([ARCH], [info("t", [4])[:-6]]),
        "g48 sizes add up past 2^64": one(info("t", [2**60], 0, 0), info("u", [2**60], 0, 2**62)),
    }
