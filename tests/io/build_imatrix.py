"""Importance matrices in the binary form, byte by byte."""

import struct


def entry(name, calls, values, size=None):
    raw = name.encode()
    head = struct.pack("<I", len(raw)) + raw + struct.pack("<2i", calls, len(values) if size is None else size)
    return head + struct.pack(f"<{len(values)}f", *values)


TAIL = struct.pack("<iI", 7, 4) + b"wiki"


def binary(*entries, count=None, tail=TAIL):
    return struct.pack("<i", len(entries) if count is None else count) + b"".join(entries) + tail


A, B = entry("blk.0.ffn_down.weight", 4, [8.0, 2.0, 0.0]), entry("unused", 0, [0.0, 0.0])

MALFORMED = {
    "empty": b"",
    "three bytes": b"abc",
    "zeros": bytes(64),
    "count of -1": binary(A, count=-1),
    "count max": binary(A, count=2**31 - 1),
    "one entry too few": binary(A, count=2),
    "the same name twice": binary(A, A),
    "empty name": binary(entry("", 1, [1.0])),
    "NUL in a name": binary(entry("a\0b", 1, [1.0])),
    "name of 70,000 bytes": binary(entry("x" * 70000, 1, [1.0])),
    "negative calls": binary(entry("x", -1, [1.0])),
    "no numbers": binary(entry("x", 1, [])),
    "size max": binary(entry("x", 1, [1.0], size=2**31 - 1)),
    "negative size": binary(entry("x", 1, [1.0], size=-5)),
    "infinity": binary(entry("x", 1, [float("inf")])),
    "negative sum": binary(entry("x", 1, [-1.0])),
    "bytes after": binary(A) + b"more",
    "negative chunks": binary(A, tail=struct.pack("<iI", -1, 0)),
    "dataset of 4 GiB": binary(A, tail=struct.pack("<iI", 1, 2**32 - 1)),
}
