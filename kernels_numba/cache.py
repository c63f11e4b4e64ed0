"""Machine code on disk: found by hash, verified, mapped executable; written atomically. Standard library only.

A file is `<room>.<kernel>.<params>-<hash>.krn`: a header line of JSON (entry offset, code size, SHA-256, compiler),
padding to a page, the code. The hash covers the source of the room and of every module of this package that it
imports, the decode source passed in, and the format version; the folder names the CPU level and the compiler's version.
Looked up in `prebuilt/<level>/` beside this file (wheels may carry it), then under the user's cache folder.
"""

import ctypes
import functools
import hashlib
import json
import mmap
import os
import re
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
_VERSION = "1"
_PAGE = 4096


@functools.lru_cache(None)
def _source(module):
    with open(os.path.join(_HERE, module + ".py"), "rb") as f:
        return f.read()


@functools.lru_cache(None)
def _closure(room):
    """Hash of the sources of a room and of the modules of this package that it imports, directly or not."""
    seen, todo = {}, [room, "build", "levels"]
    while todo:
        module = todo.pop()
        if module not in seen:
            seen[module] = text = _source(module)
            todo += [m.decode() for m in re.findall(rb"^from \.(\w+) import", text, re.M)]
            for names in re.findall(rb"^from \. import ([\w, ]+)$", text, re.M):
                todo += [m.strip().decode() for m in names.split(b",")]
    digest = hashlib.sha256(_VERSION.encode())
    for module in sorted(seen):
        digest.update(module.encode() + b"\0" + seen[module])
    return digest.hexdigest()


def file_name(room, name, params, source_key=""):
    """Name of the file that holds a kernel as its sources are now."""
    words = ".".join([room, name, *map(str, params)])
    digest = hashlib.sha256(f"{_closure(room)}|{words}|{source_key}".encode()).hexdigest()[:16]
    return f"{re.sub(r'[^A-Za-z0-9_.]', '_', words)[:120]}-{digest}.krn"


@functools.lru_cache(None)
def compiler():
    """ "numba-0.68.1-llvmlite-0.50.0", read from the names of their metadata folders: importing them takes 300 ms."""
    found = {}
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except OSError:
            continue
        for entry in names:
            match = re.fullmatch(r"(numba|llvmlite)-([\w.+]+)\.dist-info", entry)
            if match:
                found.setdefault(match[1], match[2])
    return "-".join(f"{k}-{found[k]}" for k in ("numba", "llvmlite") if k in found) or "none"


def folders(level, root):
    """Where kernels of a level are looked for, in order; the last one is where they are written."""
    return [os.path.join(_HERE, "prebuilt", level), os.path.join(root, "kernels", f"{level}-{compiler()}")]


class Code:
    """Executable memory; the kernel's address is `entry`. Keep it alive as long as the kernel may run."""

    __slots__ = ("_keep", "entry")

    def __init__(self, entry, keep):
        self.entry, self._keep = entry, keep


def _address(mapping):
    """Address of a mapping that ctypes cannot take (it is not writable)."""
    view = (ctypes.c_void_p * 16)()  # a Py_buffer: buf, obj, len, ...; larger than any
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(mapping), view, 0)
    return view[0], view


def load(path):
    """The kernel in a file as `Code`, or None if the file is missing, incomplete or does not match its checksum."""
    try:
        with open(path, "rb") as f:
            data = f.read()
            header = json.loads(data[: data.index(b"\n")])
            start, size = header["start"], header["size"]
            if hashlib.sha256(data[start : start + size]).hexdigest() != header["sha256"] or start % _PAGE:
                return None
            mapping = mmap.mmap(f.fileno(), len(data), mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    base, view = _address(mapping)
    return Code(base + start + header["entry"], (mapping, view))


def from_memory(code, entry):
    """The same for code that was just compiled and could not be stored (read-only or full disk)."""
    mapping = mmap.mmap(-1, len(code), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    mapping.write(code)
    base = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    return Code(base + entry, mapping)


def store(path, code, entry):
    """Writes a kernel's file: whole or not at all, under any number of processes. OSError where that is not
    possible.
    """
    import tempfile  # half a megabyte that only who compiles needs

    digest = hashlib.sha256(code).hexdigest()
    header = {"entry": entry, "size": len(code), "sha256": digest, "start": _PAGE, "compiler": compiler()}
    os.makedirs(os.path.dirname(path), exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".", suffix=".tmp")
    try:
        with os.fdopen(fd, "wb") as f:
            f.write((json.dumps(header).encode() + b"\n").ljust(_PAGE, b" "))
            f.write(code)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
