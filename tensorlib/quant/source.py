"""The text of a format's decode function with the helpers it calls: what kernel packages compile and hash."""

import sys
from functools import cache
from hashlib import sha256

from tensorlib.quant import formats


@cache
def _lines(name):
    module = sys.modules[name]
    # not get_source: it imports tokenize
    return module.__spec__.loader.get_data(module.__file__).decode().splitlines()


def _text(function):
    """A function's source without its decorators. (Importing `inspect` would cost more than all this.)"""
    lines = _lines(function.__module__)
    start = function.__code__.co_firstlineno - 1
    while not lines[start].startswith("def "):
        start += 1
    end = start + 1
    while end < len(lines) and (not lines[end] or lines[end][0] == " "):
        end += 1
    return "\n".join(lines[start:end]).rstrip()


def helpers(function):
    """The functions of its own module that `function` calls, each after those it calls itself."""
    found = {}
    for name in function.__code__.co_names:
        called = function.__globals__.get(name)
        if getattr(called, "__module__", None) == function.__module__:
            found |= dict.fromkeys([*helpers(called), called])
    return list(found)


def functions(row):
    return [_text(f) for f in (*helpers(row.decode), row.decode)]


@cache
def key(spec):
    """Hash that changes with what `source` would return, without making its table: the key of a cached kernel."""
    row = formats.get(spec)
    return sha256("\n".join([*functions(row), repr(row.table)]).encode()).hexdigest()[:16]


def source(spec):
    """Text that defines ELEMENTS and BYTES of a block, TABLE (int8), and `decode(b, j)` on the loaders of formats.py.

    >>> print(source("q8_0"))
    ELEMENTS, BYTES = 32, 34
    TABLE = bytes.fromhex("")
    def q8_0(b, j):
        \"""d: f16, qs: i8[32].\"""
        return f16(b, 0) * float32(i8(b, 2 + j))
    decode = q8_0
    """
    row = formats.get(spec)
    sizes = f"ELEMENTS, BYTES = {row.elements}, {row.nbytes}"
    table = f'TABLE = bytes.fromhex("{row.table_bytes().hex()}")'
    return "\n".join([sizes, table, *functions(row), f"decode = {row.decode.__name__}"])
