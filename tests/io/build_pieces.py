"""SentencePiece's files byte by byte, a map of characters, and lists of words, small enough to damage everywhere."""

import json
import struct


def varint(number):
    """A number in seven bits a byte."""
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def message(*fields):
    """A protocol buffer of (number, value): integers, floats, bytes."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        elif isinstance(value, float):
            out += varint(number << 3 | 5) + struct.pack("<f", value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def character_map():
    """Of "A" to "a": from the root to node 65, whose value lies at 65 ^ 1."""
    nodes = [0] * 256
    nodes[65], nodes[64] = 65 | 1 << 8 | 1 << 10, 1 << 31
    return struct.pack("<I256I", 4 * 256, *nodes) + b"a\0"


MAP = character_map()
UNKNOWN, CONTROL, USER, BYTE = 2, 3, 4, 6
PIECES = [("<pad>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), ("<unk>", 0.0, UNKNOWN)]
PIECES += [(p, -1.0 - i / 8, 1) for i, p in enumerate("▁the ▁ca ▁c a t ▁ s the ▁cat é ( t) ▁(".split())]
PIECES += [("<tool>", 0.0, USER)]
BYTES = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
BYTES += [(f"<0x{i:02X}>", 0.0, BYTE) for i in range(256)] + [
    (p, -float(i), 1) for i, p in enumerate("▁a at ▁ a t".split())
]


def model(pieces=PIECES, kind=1, charsmap=MAP, trainer=((40, 2), (41, 2**64 - 1), (42, 1), (43, 0)), normal=()):
    """A file; `trainer` and `normal`: more fields of these parts."""
    rows = [(1, message((1, piece.encode()), (2, score), (3, type))) for piece, score, type in pieces]
    return message(*rows, (2, message((3, kind), *trainer)), (3, message((2, charsmap), (3, 1), (4, 1), *normal)))


def byte_pairs(**changed):
    """Llama's kind of file: byte pairs, and bytes for the rest."""
    return model(**{"pieces": BYTES, "kind": 2, "charsmap": b"", "trainer": (), "normal": ((4, 0),), **changed})


WORDS = json.dumps({"</s>": 0, "<unk>": 1, "▁the": 2, "▁cat": 3, "s": 4, ">>fra<<": 5, "<pad>": 6}).encode()


HALF = "é".encode()[:1] + b"x"


def world(words=("the", " cat", HALF, "\n\n", "it's", '""', "\\x", "日本")):
    """RWKV's list of words: all bytes, then these."""
    rows = [bytes([i]) for i in range(256)] + list(words)
    rows = [f"{i + 1} {row!r} {len(row.encode() if isinstance(row, str) else row)}\n" for i, row in enumerate(rows)]
    return "".join(rows).encode()
