"""Legacy GGML files byte by byte: sound ones, and every kind of unsound one."""

import struct

from tensorlib.quant.formats import BY_ID

KINDS = {
    "ggml": (b"lmgg", None),
    "ggmf": (b"fmgg", 1),
    "ggjt 1": (b"tjgg", 1),
    "ggjt 2": (b"tjgg", 2),
    "ggjt": (b"tjgg", 3),
}
TOKENS = [(b"a", 0.5), (b"\xe4", -1.0), (b"", 0.0)]
HYPER = [3, 64, 256, 4, 2, 16, 2]


def tensor(name, dims, type=0, data=None, n_dims=None, length=None):
    """(header, data) of a tensor; dims innermost first."""
    raw = name if isinstance(name, bytes) else name.encode()
    head = struct.pack("<3I", len(dims) if n_dims is None else n_dims, len(raw) if length is None else length, type)
    head += struct.pack(f"<{len(dims)}I", *dims) + raw
    if data is None:
        count = 1
        for dim in dims:
            count *= dim
        format = BY_ID[type]
        data = bytes(i % 251 for i in range(count // format.elements * format.nbytes))
    return head, data


def file(kind="ggjt", tensors=(), tokens=TOKENS, hyper=HYPER, version=None, magic=None):
    """The bytes of a file."""
    own, number = KINDS[kind]
    version = number if version is None else version
    out = (magic or own) + (b"" if version is None else struct.pack("<I", version)) + struct.pack("<7I", *hyper)
    for text, score in tokens:
        out += struct.pack("<I", len(text)) + text + (b"" if kind == "ggml" else struct.pack("<f", score))
    for head, data in tensors:
        out += head
        out += (bytes(-len(out) % 32) if kind.startswith("ggjt") else b"") + data
    return out


def malformed():
    t = tensor("t", [4])
    many = [(b"x", 0.0)] * 3
    return {
        "empty": b"",
        "magic": file(magic=b"ggml"),
        "GGUF": b"GGUF" + bytes(40),
        "adapter": file(magic=b"algg"),
        "ggjt 0": file(version=0),
        "ggjt 4": file(version=4),
        "ggmf 2": file("ggmf", version=2),
        "cut in the hyperparameters": file()[:20],
        "n_vocab max": file(hyper=[2**32 - 1, *HYPER[1:]]),
        "n_vocab one more": file(hyper=[4, *HYPER[1:]]),
        "token past the end": file(tokens=many)[:-9] + struct.pack("<I", 2**31) + b"xxxx",
        "token of 70,000 bytes": file(tokens=[(b"x" * 70000, 0.0), *many[:2]]),
        "0 dims": file(tensors=[tensor("t", [], data=bytes(4))]),
        "5 dims": file(tensors=[tensor("t", [1] * 5)]),
        "n_dims max": file(tensors=[tensor("t", [4], n_dims=2**32 - 1)]),
        "name length max": file(tensors=[tensor("t", [4], length=2**32 - 1)]),
        "empty name": file(tensors=[tensor("", [4])]),
        "name no UTF-8": file(tensors=[tensor(b"\xff", [4])]),
        "NUL in a name": file(tensors=[tensor("a\0b", [4])]),
        "type 999": file(tensors=[(t[0][:8] + struct.pack("<I", 999) + t[0][12:], t[1])]),
        "q4_0 in ggjt 2": file("ggjt 2", [tensor("t", [32], 2)]),
        "q5_0 in ggjt 1": file("ggjt 1", [tensor("t", [32], 6)]),
        "q4_k in ggml": file("ggml", [tensor("t", [256], 12)]),
        "iq4_nl": file(tensors=[tensor("t", [32], 20)]),
        "row of 33 in q8_0": file(tensors=[tensor("t", [33], 8)]),
        "product wraps": file(tensors=[tensor("t", [2**31, 2**31, 4], data=b"")]),
        "bytes overflow": file(tensors=[tensor("t", [2**32 - 1] * 4, data=b"")]),
        "data one byte short": file(tensors=[t])[:-1],
        "twice": file(tensors=[t, t]),
        "zeros at the end": file(tensors=[t]) + bytes(64),
    }


TWO = [tensor("t", [4]), tensor("u", [8], 1)]


def ends(data):
    """Lengths to which a file of TWO may be cut: nothing says how many tensors there are, so it may end after any."""
    kind = next(kind for kind in KINDS if file(kind, TWO) == data)
    return {len(file(kind, TWO[:count])) for count in range(2)}
