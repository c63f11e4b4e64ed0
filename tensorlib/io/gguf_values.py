"""The values of GGUF metadata: their types, how a file's are read (long arrays only when asked for) and encoded.

Versions 2 and 3 store lengths and counts in 64 bits, version 1 in 32; version 3 comes in either byte order.

>>> encode("f32", 0.5).hex(), encode("u8", [1, 2]).hex()
('060000000000003f', '090000000000000002000000000000000102')
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from tensorlib.errors import DTypeError
from tensorlib.io.cursor import Cursor, check_unchanged

MAX_NAME = 65535  # the specification's limit for keys; tensor names are held to it too
LONG_ARRAY = 1024  # longer arrays are decoded anew each time they are asked for, so that they cost no memory in between
MANY, TOGETHER = 40_000, 128  # strings of an array from which on, and by how many, they are stepped over with `re`
MAX_DEPTH = 8  # of arrays inside arrays
MAX_NESTED = 1 << 16  # arrays inside arrays in one file: they are stepped over one by one when it is opened

STRING, ARRAY, BOOL = 8, 9, 7
SCALARS = {  # value type: name, struct code
    0: ("u8", "B"),
    1: ("i8", "b"),
    2: ("u16", "H"),
    3: ("i16", "h"),
    4: ("u32", "I"),
    5: ("i32", "i"),
    6: ("f32", "f"),
    7: ("bool", "B"),
    10: ("u64", "Q"),
    11: ("i64", "q"),
    12: ("f64", "d"),
}
TYPE_NAMES = {**{i: name for i, (name, _) in SCALARS.items()}, STRING: "string", ARRAY: "array"}
TYPES = {name: i for i, name in TYPE_NAMES.items()}
PACKED = {order: {i: struct.Struct(order + code) for i, (_, code) in SCALARS.items()} for order in "<>"}


class Encoded(bytes):
    """A value with its type, already encoded: what `Metadata.encoded` gives, so that it is copied as it is."""


class Typed(NamedTuple):
    """A value with its GGUF type: u8 to i64, f32, f64, bool, string. A list as `value` is an array of that type; an
    array of arrays is `Typed("array", [Typed(...), ...])`.
    """

    type: str
    value: object


# ---- reading ---------------------------------------------------------------------------------------------------------


class GGUFCursor(Cursor):
    """A Cursor that knows GGUF's strings and values; `code` is the struct code of lengths and counts."""

    __slots__ = ("code", "nested", "packed", "unpack_length")

    def __init__(self, path, data, at=0, order="<", code="Q"):
        super().__init__(path, data, at, order)
        self.code, self.packed, self.nested = code, PACKED[order], 0
        self.unpack_length = struct.Struct(order + code).unpack_from

    def fork(self, at):
        """Another cursor into the same file."""
        return GGUFCursor(self.path, self.data, at, self.order, self.code)

    @property
    def width(self):
        """Bytes of a length."""
        return 8 if self.code == "Q" else 4

    def length(self, what: str) -> int:
        return self.number(self.code, what)

    def string(self, what: str) -> str:
        return self.text(self.length(f"length of {what}"), what)

    def named(self, what: str) -> str:
        """A key or tensor name: not empty, not overlong, no NUL."""
        return self.name(self.length(f"length of {what}"), what, MAX_NAME)

    def bool(self, value: int, key: str):
        if value > 1:
            raise self.error(key, f"a bool of value {value}", "0 or 1")
        return value == 1

    def value(self, type: int, key: str):
        if type == STRING:
            return self.string(repr(key))
        if type == ARRAY:
            return self.array(key)
        packed = self.packed.get(type)
        if packed is None:
            raise self.error(key, f"value type {type}", "a value type of GGUF, 0 to 12")
        value = packed.unpack_from(self.data, self.take(packed.size, repr(key)))[0]
        return self.bool(value, key) if type == BOOL else value

    def array(self, key: str, depth: int = 1) -> LazyArray:
        """Step over an array, and say where it is."""
        type, count = self.number("I", f"element type of {key!r}"), self.length(f"count of {key!r}")
        at = self.at
        if type == STRING:
            self.skip_strings(count, key)
        elif type == ARRAY:
            self.skip_arrays(count, key, depth)
        elif type in self.packed:
            self.take(count * self.packed[type].size, f"{count} elements of {key!r}")
        else:
            raise self.error(key, f"element type {type}", "a value type of GGUF, 0 to 12")
        return LazyArray(type, count, at, depth)

    def skip_arrays(self, count: int, key: str, depth: int):
        self.nested += count
        if depth >= MAX_DEPTH:
            raise self.error(f"{key!r} at offset {self.at}", "arrays nested deeper", f"at most {MAX_DEPTH} levels")
        if self.nested > MAX_NESTED:
            raise self.error(f"{key!r} at offset {self.at}", f"{self.nested} nested arrays", f"at most {MAX_NESTED}")
        for _ in range(count):
            self.array(key, depth + 1)

    def skip_strings(self, count: int, key: str):
        """Step over strings. Vocabularies make this the whole cost of opening a file: 30 to 60 ns a string."""
        width = self.width
        if count > (self.end - self.at) // width:
            got = f"{count} strings in {self.end - self.at} bytes"
            raise self.error(f"{key!r} at offset {self.at}", got, f"at least {width} bytes a string")
        at, left = self.at, count
        match = _short_strings().match if count >= MANY and self.order == "<" and width == 8 else None
        try:
            while left:
                some = min(left, TOGETHER)
                found = match and some == TOGETHER and match(self.data, at)
                at = found.end() if found else self._past(at, some)
                left -= some
        except (struct.error, OverflowError):  # a length led past the end: report the string that has it
            at = self.end + 1
        if at > self.end:
            for index in range(count):
                self.string(f"string {index} of {key!r}")
        self.at = at

    def _past(self, at, count):
        length, data, width = self.unpack_length, self.data, self.width
        for _ in range(count):
            at += length(data, at)[0] + width
        return at


@cache
def _short_strings():
    """A pattern of TOGETHER strings of up to 40 bytes with their lengths, the frequent lengths first: `re` steps over
    them in half the time that a loop takes, and making the pattern takes 1 ms.
    """
    lengths = sorted(range(41), key=lambda n: abs(n - 7))
    each = b"|".join(re.escape(bytes([n])) + rb"\0" * 7 + b"." * n for n in lengths)
    return re.compile(b"(?s)(?:%b){%d}+" % (each, TOGETHER))


class LazyArray:
    """An array still in the file: element type, count, offset of its first element, how deep it is inside others."""

    __slots__ = ("at", "count", "depth", "type")

    def __init__(self, type, count, at, depth):
        self.type, self.count, self.at, self.depth = type, count, at, depth

    def decode(self, cursor: GGUFCursor, key: str) -> list:
        if self.type == STRING:
            return [cursor.decoded(text, f"{key!r}[{i}]") for i, text in enumerate(self.texts(cursor))]
        if self.type == ARRAY:
            return [inner.decode(cursor, key) for inner in self.inner(cursor, key)]
        values = list(struct.unpack_from(f"{cursor.order}{self.count}{SCALARS[self.type][1]}", cursor.data, self.at))
        return [cursor.bool(v, key) for v in values] if self.type == BOOL else values

    def inner(self, cursor: GGUFCursor, key: str) -> list[LazyArray]:
        """The arrays of an array."""
        at = cursor.fork(self.at)
        return [at.array(key, self.depth + 1) for _ in range(self.count)]

    def texts(self, cursor: GGUFCursor) -> list[bytes]:
        """The strings as bytes; that their lengths stay inside the file was checked when they were stepped over."""
        data, at, width, length, texts = cursor.data, self.at, cursor.width, cursor.unpack_length, []
        try:
            for _ in range(self.count):
                start = at + width
                at = start + length(data, at)[0]
                texts.append(data[start:at])
        except (struct.error, OverflowError):
            raise cursor.error(f"offset {at}", "strings that have changed", "a file that nobody writes to") from None
        return texts

    def typed(self, cursor: GGUFCursor, key: str) -> Typed:
        if self.type == ARRAY:
            return Typed("array", [inner.typed(cursor, key) for inner in self.inner(cursor, key)])
        return Typed(TYPE_NAMES[self.type], self.decode(cursor, key))


class Metadata(Mapping):
    """The key-value pairs, read-only. Arrays become lists when they are asked for; `kind(key)` tells without that."""

    def __init__(self, cursor: GGUFCursor, count: int):
        self._cursor, self._entries, self._decoded, self._spans = cursor, {}, {}, {}
        for _ in range(count):
            at = cursor.at
            key = cursor.named("a key")
            if key in self._entries:
                raise cursor.error(f"key {key!r} at offset {at}", "it a second time", "keys that differ")
            start = cursor.at
            self._entries[key] = cursor.value(cursor.number("I", f"type of {key!r}"), key)
            self._spans[key] = start, cursor.at

    def __getitem__(self, key):
        value = self._entries[key]
        if type(value) is not LazyArray:
            return value
        decoded = self._decoded.get(key)
        if decoded is None:
            decoded = value.decode(self._checked(), key)
            if value.count <= LONG_ARRAY:
                self._decoded[key] = decoded
        return decoded

    def _checked(self):
        check_unchanged(self._cursor.path, self._cursor.data)
        return self._cursor

    def __contains__(self, key):  # Mapping's own would decode
        return key in self._entries

    def __iter__(self):
        return iter(self._entries)

    def __len__(self):
        return len(self._entries)

    def strings(self, key: str) -> list[bytes] | None:
        """An array of strings undecoded, which takes half the time; None if there is no such array."""
        value = self._entries.get(key)
        return value.texts(self._checked()) if type(value) is LazyArray and value.type == STRING else None

    def kind(self, key: str) -> tuple[str, int | None]:
        """Type name of a value, and its count if it is an array: ("str", None), ("f32", 32000)."""
        value = self._entries[key]
        if type(value) is LazyArray:
            return TYPE_NAMES[value.type], value.count
        return type(value).__name__, None

    def typed(self, key: str) -> Typed:
        """The value with the type that the file gives it, as `gguf.write` takes it."""
        value, cursor = self._entries[key], self._checked()
        if type(value) is LazyArray:
            return value.typed(cursor, key)
        return Typed(TYPE_NAMES[cursor.fork(self._spans[key][0]).number("I", "type")], value)

    def span(self, key: str) -> tuple[int, int]:
        """Where the value lies in the file, its type first."""
        return self._spans[key]

    def encoded(self, key: str) -> Encoded:
        """The value with its type as in a file of version 3, little-endian: the file's own bytes where it is one."""
        cursor = self._checked()
        if cursor.order == "<" and cursor.code == "Q":
            start, end = self._spans[key]
            return Encoded(cursor.data[start:end])
        return Encoded(encode(*self.typed(key)))


# ---- encoding --------------------------------------------------------------------------------------------------------


def encode(type: str, value) -> bytes:
    """A value with its type, as it stands after its key. DTypeError for what does not fit the type."""
    if isinstance(value, (list, tuple)) and not isinstance(value, Typed):
        return struct.pack("<I", ARRAY) + _array(type, value)
    return struct.pack("<I", _id(type)) + _scalar(type, value)


def _id(type) -> int:
    if type not in TYPES:
        raise DTypeError("metadata", f"the type {type!r:.80}", f"one of {', '.join(TYPES)}")
    return TYPES[type]


def string(value: str) -> bytes:
    """A string with its length."""
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _scalar(type, value) -> bytes:
    try:
        if type == "string":
            return string(value)
        if type == "bool" and value is not True and value is not False:
            raise TypeError("no bool")
        return PACKED["<"][TYPES[type]].pack(value)
    except (struct.error, AttributeError, TypeError, OverflowError, UnicodeEncodeError, KeyError) as error:
        raise DTypeError("metadata", f"{value!r:.80} ({error})", f"a value of GGUF's {type}") from None


def _array(type, values) -> bytes:
    head = struct.pack("<IQ", _id(type), len(values))
    if type == "array":
        for inner in values:
            if not isinstance(inner, Typed) or not isinstance(inner.value, (list, tuple)):
                raise DTypeError("metadata", f"{inner!r:.80} in an array of arrays", "arrays: Typed(type, list)")
        return head + b"".join(_array(*inner) for inner in values)
    if type in ("string", "bool"):
        return head + b"".join([_scalar(type, value) for value in values])
    try:
        return head + struct.pack(f"<{len(values)}{SCALARS[TYPES[type]][1]}", *values)
    except (struct.error, TypeError, OverflowError):
        return head + b"".join([_scalar(type, value) for value in values])  # says which


def typed(value) -> Typed:
    """A Python value with the type that llama.cpp's own tools give it: int: u32, or i32, u64, i64 where it must be (in
    arrays i32 or i64); float: f32. DTypeError for anything else, and for an empty list.

    >>> typed(3), typed(-3), typed([1, 2.5]), typed(["a"])
    (Typed(type='u32', value=3), Typed(type='i32', value=-3), Typed(type='f32', value=[1, 2.5]), \
Typed(type='string', value=['a']))
    """
    if isinstance(value, Typed):
        return value
    if isinstance(value, (list, tuple)):
        return _typed_array(value)
    for python, name in ((bool, "bool"), (str, "string"), (float, "f32")):
        if isinstance(value, python):
            return Typed(name, value)
    if isinstance(value, int):
        for name, low, high in (("u32", 0, 2**32), ("i32", -(2**31), 0), ("u64", 0, 2**64), ("i64", -(2**63), 0)):
            if low <= value < high:
                return Typed(name, value)
    raise DTypeError("metadata", f"{value!r:.80}", "a bool, int, float, str or list of one kind", "use gguf.Typed")


def _typed_array(values) -> Typed:
    kinds = {type(value) for value in values}
    if kinds == {int}:
        fits = -(2**31) <= min(values) and max(values) < 2**31
        return Typed("i32" if fits else "i64" if max(values) < 2**63 else "u64", list(values))
    if kinds and kinds <= {list, tuple, Typed}:
        return Typed("array", [typed(value) for value in values])
    for allowed, name in (({bool}, "bool"), ({str}, "string"), ({int, float}, "f32")):
        if kinds and kinds <= allowed:
            return Typed(name, list(values))
    raise DTypeError("metadata", f"{values!r:.80}", "a list of one kind, not empty", "use gguf.Typed")
