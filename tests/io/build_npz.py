""".npy and .npz files byte by byte: sound ones, and every kind of unsound one. n.., z..: the list's numbers."""

import io
import struct
import warnings
import zipfile
import zlib

import numpy as np

DATA = np.arange(6, dtype="<f4").tobytes()


def npy(header=None, data=DATA, version=(1, 0), length=None, magic=b"\x93NUMPY"):
    """A .npy file of a header's text and data."""
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }" if header is None else header
    raw = text.encode("latin-1") + b"\n"
    size = struct.pack("<H" if version[0] == 1 else "<I", len(raw) if length is None else length)
    return magic + bytes(version) + size + raw + data


def shaped(shape, descr="'<f4'", order="False", data=DATA):
    return npy(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}", data)


def saved(array, **kwargs):
    out = io.BytesIO()
    np.save(out, array, **kwargs)
    return out.getvalue()


SOUND = {
    "valid": npy(),
    "version 2": npy(version=(2, 0)),
    "version 3": npy(version=(3, 0)),
    "keys in another order": npy("{'shape': (2, 3), 'fortran_order': False, 'descr': '<f4'}"),
    "double quotes and blanks": npy('{ "descr" : "<f4" ,"fortran_order":False, "shape": ( 2,3 , ) }'),
    "longs of Python 2": shaped("(2L, 3L)"),
    "0-d": shaped("()", data=DATA[:4]),
    "one dim": shaped("(6,)"),
    "no elements": shaped("(0, 5)", data=b""),
    "Fortran order": saved(np.asfortranarray(np.arange(6.0).reshape(2, 3))),
    "n21 big-endian": saved(np.arange(6, dtype=">i4")),
    "big-endian f64, Fortran": saved(np.asfortranarray(np.arange(6, dtype=">f8").reshape(3, 2))),
    "bool": saved(np.array([True, False])),
    "f16": saved(np.arange(3, dtype="f2")),
    "u64": saved(np.array([2**64 - 1], "u8")),
}  # fmt: skip

MALFORMED = {
    "n01 empty": b"",
    "n02 magic": npy(magic=b"\x93NUMPX"),
    "n03 version 9": npy(version=(9, 0)),
    "version 1.7": npy(version=(1, 7)),
    "n04 header past the end": npy(length=60000),
    "n05 header of 4 GiB": npy(version=(2, 0), length=2**32 - 1),
    "header of 70,000 bytes": npy(version=(2, 0), header=" " * 70_000),
    "n06 code": npy("__import__('os').system('false')"),
    "code as a value": shaped("__import__('os').getpid()"),
    "n07 no shape": npy("{'descr': '<f4', 'fortran_order': False, }"),
    "n08 a key too many": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'x': 1}"),
    "a key twice": npy("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}"),
    "no dict": npy("('<f4', False, (2, 3))"),
    "an empty dict": npy("{}"),
    "text after the dict": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), } + 1"),
    "n09 negative dim": shaped("(-2, -3)"),
    "elements overflow": shaped("(4294967296, 4294967296)"),
    "n10 elements wrap": shaped("(4611686018427387905, 4)"),
    "dim over 64 bits": shaped("(18446744073709551622,)"),
    "dim of 5,000 digits": shaped("(" + "9" * 5000 + ",)"),
    "huge and zero": shaped("(9223372036854775808, 0)", data=b""),
    "2^61 and zero": shaped("(2305843009213693952, 0)", data=b""),
    "n11 4 TiB": shaped("(1099511627776,)"),
    "65 dims": shaped("(" + "1, " * 65 + ")", data=DATA[:4]),
    "n12 objects": shaped("(1,)", "'|O'", data=b"cos\nsystem\n(S'false'\ntR."),
    "objects, as NumPy writes them": saved(np.array([{}], object), allow_pickle=True),
    "n13 data cut": npy(data=DATA[:-1]),
    "no data": npy(data=b""),
    "n20 bytes after the data": npy(data=DATA + b"\0"),
    "n14 float dim": shaped("(6.0,)"),
    "n15 boolean dim": shaped("(True, 6)"),
    "shape no tuple": shaped("6"),
    "shape in parentheses": shaped("(6)"),
    "shape is a list": shaped("[6]"),
    "empty size": shaped("(2,, 3)"),
    "sizes without a comma": shaped("(2 3,)"),
    "n16 5,000 deep": npy("(" * 5000 + ")" * 5000),
    "5,000 deep in the shape": shaped("(" * 5000 + ")" * 5000),
    "n17 order no bool": shaped("(2, 3)", order="1"),
    "order is text": shaped("(2, 3)", order="'False'"),
    "n18 unknown dtype": shaped("(2, 3)", "'<q9'"),
    "dtype of no size": shaped("(2, 3)", "'<f'"),
    "f3": shaped("(2, 3)", "'<f3'"),
    "n19 sub-array": shaped("(1,)", "('<f4', (1000000, 1000000))"),
    "structure": saved(np.zeros(2, "i4,f4")),
    "dtype is a number": shaped("(2, 3)", "4"),
}  # fmt: skip


def archive(*members, method=zipfile.ZIP_STORED):
    """A zip file of (name, bytes)."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, data in members:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of a name that is there already
                file.writestr(zipfile.ZipInfo(name) if method == zipfile.ZIP_STORED else name, data)
    return out.getvalue()


TWO = archive(("a.npy", npy()), ("b.npy", npy()))
DEFLATED = archive(("a.npy", npy()), method=zipfile.ZIP_DEFLATED)


def patched(data, old, new, count=1):
    assert old in data and len(old) == len(new)
    return data.replace(old, new, count)


def bomb(size):
    """A deflated array of zeros."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file, file.open("a.npy", "w") as member:
        member.write(shaped(f"({size},)", "'|u1'", data=b""))
        for at in range(0, size, 1 << 20):
            member.write(bytes(min(1 << 20, size - at)))
    return out.getvalue()


def lying(size):
    """A deflated member that gives more than the directory says."""
    data = bytearray(archive(("a.npy", npy() + bytes(size)), method=zipfile.ZIP_DEFLATED))
    at = data.rfind(b"PK\1\2")
    data[at + 24 : at + 28] = struct.pack("<I", len(npy()))
    return bytes(data)


def crc_of(data):
    return struct.pack("<I", zlib.crc32(data))


SOUND_ZIPS = {
    "stored": TWO,
    "deflated": DEFLATED,
    "no members": archive(),
    "any names": archive(("größe/🙂:0.npy", npy())),
    "compresses well": lambda: bomb(10_000_000),
}

MALFORMED_ZIPS = {
    "z01 bomb of 400 MB": lambda: bomb(400_000_000),
    "deflated data longer than said": lambda: lying(5_000_000),
    "z02 not a zip": b"PK\3\4" + bytes(100),
    "z03 wrong CRC": patched(TWO, crc_of(npy()), b"\1\2\3\4", 4),
    "wrong CRC, deflated": patched(DEFLATED, crc_of(npy()), b"\1\2\3\4", 2),
    "damaged data": TWO.replace(DATA, DATA[::-1]),
    "z04 name with ..": archive(("../a.npy", npy())),
    "name with .. inside": archive(("a/../../b.npy", npy())),
    "absolute name": archive(("/a.npy", npy())),
    "backslash": archive(("..\\a.npy", npy())),
    "z05 the same name twice": archive(("a.npy", npy()), ("a.npy", npy())),
    "z06 cut": TWO[:-30],
    "cut in the data": TWO[:90],
    "bytes before": b"PK\3\4" + TWO,
    "bytes after": TWO + b"\0",
    "z07 not an array": archive(("a.npy", b"not an array at all")),
    "no .npy": archive(("a.txt", npy())),
    "a folder": archive(("a/", b"")),
    "z08 objects": archive(("a.npy", saved(np.array([{}], object), allow_pickle=True))),
    "array cut": archive(("a.npy", npy()[:-1])),
    "encrypted": patched(TWO, b"PK\1\2\x14\x03\x14\0\0\0", b"PK\1\2\x14\x03\x14\0\1\0"),
    "encrypted, in its own header": patched(TWO, b"PK\3\4\x14\0\0\0", b"PK\3\4\x14\0\1\0"),
    "another name in its own header": patched(TWO, b"a.npy\x93", b"c.npy\x93"),
    "another method in its own header": patched(TWO, b"PK\3\4\x14\0\0\0\0\0", b"PK\3\4\x14\0\0\0\x08\0"),
    "unknown method": archive(("a.npy", npy()), method=zipfile.ZIP_LZMA),
    "no deflated data": patched(DEFLATED, zlib.compress(npy())[2:10], b"\xff" * 8),
    "two members on the same data": None,
    "one member too few": None,
    "offset past the end": None,
    "size past the end": None,
}  # fmt: skip


def _edited(at_field, value, size=4, end=False):
    data = bytearray(TWO)
    at = data.rfind(b"PK\5\6" if end else b"PK\1\2")
    data[at + at_field : at + at_field + size] = value.to_bytes(size, "little")
    return bytes(data)


MALFORMED_ZIPS |= {
    "two members on the same data": patched(_edited(42, 0), b"PK\3\4", b"PK\3\4"),
    "one member too few": _edited(10, 3, 2, end=True),
    "offset past the end": _edited(42, 10**6),
    "size past the end": _edited(20, 10**6),
    "directory elsewhere": _edited(16, 7, end=True),
}
