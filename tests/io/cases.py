"""Every malformed file that there is a case for, and the sound ones, in one table: for tests and bench.malformed.

A case whose name begins with a letter and two digits stands under that number in the list of malformed files.
"""

import re
from typing import NamedTuple

from tests.io import (
    build,
    build_ggml,
    build_imatrix,
    build_npz,
    build_pth,
    build_safetensors,
    build_template,
)

EITHER = {"g23", "g34", "g45", "n20", "p06", "p27"}  # may be read as well as refused
LISTED = {  # the letter of each kind of file in the list, how many cases it has there, and how many sound files
    "safetensors": ("s", 40, 4),
    "index": ("i", 6, 0),
    "npy": ("n", 21, 1),
    "npz": ("z", 8, 1),
    "pth": ("p", 28, 2),
    "gguf": ("g", 48, 1),
    "template": ("t", 12, 0),
}
SUFFIX = {  # how a file of each kind is named
    "safetensors": "file.safetensors",
    "index": "model.safetensors.index.json",
    "npy": "file.npy",
    "npz": "file.npz",
    "pth": "file.pth",
    "gguf": "file.gguf",
    "ggml": "model.bin",
    "imatrix": "imatrix.dat",
    "template": "chat_template.jinja",
}


class Case(NamedTuple):
    """`verdict`: reject, accept or either; `data`: bytes, or for large ones a function; `beside`: other files."""

    kind: str
    number: str
    name: str
    verdict: str
    data: object
    beside: dict

    def __str__(self):
        return f"{self.kind}: {self.name}"


def _rows(kind, table, verdict, wrap=lambda data: data, beside=None):
    for name, data in table.items():
        number = name[:3] if re.match(rf"{LISTED.get(kind, '-')[0]}\d\d\b", name) else ""
        yield Case(kind, number, name, "either" if number in EITHER else verdict, _late(wrap, data), beside or {})


def _late(wrap, data):
    return (lambda: wrap(data())) if callable(data) else wrap(data)


def _within(form, table):
    return {f"{form}: {name}": data for name, data in table.items()}


def table() -> list[Case]:
    """All of them."""
    shard = {"a.safetensors": build_safetensors.SOUND["valid"]}
    return [
        *_rows("safetensors", build_safetensors.SOUND, "accept"),
        *_rows("safetensors", build_safetensors.MALFORMED, "reject"),
        *_rows("index", {"sound": build_safetensors.index({"t": "a.safetensors"})}, "accept", beside=shard),
        *_rows("index", build_safetensors.INDEX, "reject", beside=shard),
        *_rows("npy", build_npz.SOUND, "accept"),
        *_rows("npy", build_npz.MALFORMED, "reject"),
        *_rows("npz", build_npz.SOUND_ZIPS, "accept"),
        *_rows("npz", build_npz.MALFORMED_ZIPS, "reject"),
        *_rows(
            "npz", _within("member", build_npz.MALFORMED), "reject", lambda data: build_npz.archive(("a.npy", data))
        ),
        *_rows("pth", build_pth.SOUND, "accept"),
        *_rows("pth", build_pth.MALFORMED_PICKLES, "reject", build_pth.archive),
        *_rows("pth", _within("legacy", build_pth.MALFORMED_PICKLES), "reject", build_pth.legacy),
        *_rows("pth", _within("legacy", build_pth.BYPASSES), "reject", build_pth.legacy),
        *_rows("pth", build_pth.BYPASSES, "reject", build_pth.archive),
        *_rows("pth", build_pth.BYPASS_ZIPS, "reject"),
        *_rows("pth", build_pth.MALFORMED_ZIPS, "reject"),
        *_rows("pth", build_pth.MALFORMED_LEGACY, "reject"),
        *_rows("gguf", {"sound": build.sound()}, "accept"),
        *_rows("gguf", build.accepted(), "accept"),
        *_rows("gguf", build.malformed(), "reject"),
        *_rows("ggml", {"sound": build_ggml.file(tensors=[build_ggml.tensor("t", [4])])}, "accept"),
        *_rows("ggml", build_ggml.malformed(), "reject"),
        *_rows("imatrix", {"sound": build_imatrix.binary(build_imatrix.A)}, "accept"),
        *_rows("imatrix", build_imatrix.MALFORMED, "reject"),
        *_rows("template", {f"works {i}": s for i, s in enumerate(build_template.WORKS)}, "accept", str.encode),
        *_rows("template", build_template.NUMBERED, "reject", str.encode),
        *_rows("template", build_template.HUNGRY, "reject", str.encode),
        *_rows("template", {f"{i} {s[:40]!r}": s for i, s in enumerate(build_template.OTHERS)}, "reject", str.encode),
    ]
