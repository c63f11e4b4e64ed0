"""Writing PyTorch's files (.pth, .pt): a zip archive of one pickle and a member for each storage.

What is written is a state dict, names to tensors, that `torch.load(path)` reads as it is (weights_only, also mapped);
every storage starts at a multiple of 64 bytes, so that `tensorlib.load` uses it where it lies. The opcodes are those of
pickle protocol 2, the names and arguments those of `torch/_utils.py`.

>>> import os, tempfile, tensorlib
>>> path = os.path.join(tempfile.mkdtemp(), "x.pth")
>>> save(path, {"w": tensorlib.arange(4)}, {"epoch": 3})
>>> with tensorlib.load(path) as file:
...     file.tensor("w"), file.metadata
(tensor([0, 1, 2, 3]), {'epoch': 3})
"""

from __future__ import annotations

import struct
import zipfile

from tensorlib import dtype as _dtype
from tensorlib.errors import DTypeError
from tensorlib.io.atomic import writing
from tensorlib.io.pth_table import ITEMSIZES, STORAGES
from tensorlib.io.source import elements, short
from tensorlib.io.stored import Raw, named, written
from tensorlib.layout import strides_of

FOLDER, ALIGNMENT = "archive", 64
LOCAL, ZIP64, EXTRA = 30, 20, 4  # bytes of a member's own header, of its sizes in 64 bits, of an extra field's header
CLASSES = {dtype: name for name, dtype in STORAGES.items()}  # dtypes with a class of storages; younger ones have none


def save(path, tensors, metadata=None, progress=None, replace=True):
    """Writes a .pth file: whole, or not at all. `tensors`: names to Tensors, Raws or NumPy arrays, or a Module.

    `metadata`: numbers, text, None and lists, tuples and dicts of them, which stand beside the tensors. Tensors that
    are the same memory are stored once, and stay tied. `progress` is called with numbers of bytes. DTypeError for a
    QTensor, a dtype that PyTorch has not and a name that is in both; WriteError as of `tensorlib.save`.
    """
    tensors, storages = named("pth.save", tensors), {}
    both = sorted(tensors.keys() & (metadata or {}).keys())
    if both:
        raise DTypeError("pth.save", f"metadata {short(both[0])}", "a key that no tensor has")
    entries = [_text(name) + _tensor(name, x, storages) for name, x in tensors.items()]
    entries += [_value(key) + _value(value) for key, value in (metadata or {}).items()]
    pickle = b"\x80\x02}(" + b"".join(entries) + b"u."
    with writing(path, replace) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (("data.pkl", pickle), ("byteorder", b"little")):
            with _member(archive, file, name) as member:
                member.write(data)
        for key, name, x, nbytes in storages.values():
            with _member(archive, file, f"data/{key}") as member:
                written(member, "pth.save", name, x, nbytes, progress)
        with _member(archive, file, "version") as member:
            member.write(b"3\n")


def _member(archive, file, name):
    """A stream to a new member, whose data is aligned by an extra field (FB, as PyTorch writes it)."""
    info = zipfile.ZipInfo(f"{FOLDER}/{name}")
    start = file.tell() + LOCAL + len(info.filename) + ZIP64 + EXTRA
    padding = -start % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    return archive.open(info, "w", force_zip64=True)


# ---- pickles ---------------------------------------------------------------------------------------------------------


def _tensor(name, x, storages):
    """The opcodes of a tensor, whose storage is noted."""
    dtype = getattr(x.dtype, "torch", x.dtype)
    if dtype not in ITEMSIZES or (isinstance(x, Raw) and x.dtype not in _dtype.ALL and x.dtype != dtype):
        fix = "call .dequantize(), or .to(dtype), first"
        raise DTypeError("pth.save", f"{x.dtype} as {short(name)}", "a dtype of PyTorch", fix)
    if not isinstance(x, Raw):
        x = x.detach().to("cpu").contiguous()
    count = elements(x.shape)
    nbytes = count * ITEMSIZES[dtype]
    same = (x.ptr, nbytes, dtype) if not isinstance(x, Raw) and nbytes else name
    key = str(storages.setdefault(same, (len(storages), name, x, nbytes))[0])
    typed = dtype in CLASSES
    kind = _global("torch", f"{CLASSES[dtype]}Storage") if typed else _global("torch.storage", "UntypedStorage")
    storage = b"(" + _text("storage") + kind + _text(key) + _text("cpu") + _number(count if typed else nbytes) + b"tQ"
    sizes = _value(tuple(x.shape)) + _value(tuple(strides_of(x.shape)))
    hooks = _global("collections", "OrderedDict") + b")R"
    last = b"" if typed else _global("torch", dtype)
    return (
        _global("torch._utils", f"_rebuild_tensor_v{2 if typed else 3}")
        + b"(" + storage + _number(0) + sizes + b"\x89" + hooks + last + b"tR"
    )  # fmt: skip


def _global(module, name):
    return f"c{module}\n{name}\n".encode()


def _text(value):
    try:
        raw = value.encode()
    except UnicodeEncodeError:
        raise DTypeError("pth.save", f"half a surrogate pair in {short(value)}", "text") from None
    return b"X" + struct.pack("<I", len(raw)) + raw


def _number(value):
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw if len(raw) < 256 else _refused(value)


def _refused(value):
    expected = "numbers, text, None, and lists, tuples and dicts of them"
    raise DTypeError("pth.save", f"metadata {short(value)}", expected, "leave it out")


def _value(value):
    """The opcodes of a plain value."""
    kind = type(value)
    if value is None or kind is bool:
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if kind in (str, int, float):
        return {str: _text, int: _number, float: lambda x: b"G" + struct.pack(">d", x)}[kind](value)
    if kind is tuple:
        return b"(" + b"".join(map(_value, value)) + b"t"
    if kind is list:
        return b"](" + b"".join(map(_value, value)) + b"e"
    if kind is dict:
        return b"}(" + b"".join(_value(key) + _value(each) for key, each in value.items()) + b"u"
    return _refused(value)
