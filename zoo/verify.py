"""Whether what is in a file of weights is sound: for `tensorlib verify`."""

import hashlib
import os

from tensorlib.errors import FormatError
from zoo.stream import is_quantized, numbers, rows


def finite(file, info):
    """FormatError if a float or a block's scale of a tensor is NaN or infinite, or if its bytes cannot be read."""
    bad = 0
    if hasattr(info.format, "nbytes"):  # a row of quant.formats
        from tensorlib.io.gguf_swap import not_finite

        step = (1 << 24) // info.format.nbytes * info.format.nbytes
        for start in range(0, info.nbytes, step):
            stop = min(start + step, info.nbytes)
            little = file.bytes(info.name, start, stop) if file.order == "<" else file.little(info, start, stop)
            bad += not_finite(little, info.format)
    elif is_quantized(info):  # of a checkpoint
        parts = (numbers(part) for _, part in rows(file, info.name))
        bad = sum(x.numel() - int(x.isfinite().sum().item()) for x in parts)
    elif info.dtype is None:
        file.raw(info.name)
    else:
        x = file.tensor(info.name)
        bad = 0 if info.dtype.kind != "f" else x.numel() - int(x.isfinite().sum().item())
    if bad:
        got = f"{bad} numbers (or scales of blocks) that are NaN or infinite"
        raise FormatError(file.path, f"tensor {info.name!r}", got, "finite numbers")


def sha256(path, count):
    """The hash of a file, in digits; FormatError if it is a blob of the Hugging Face cache with another name.

    `count` is told how many bytes were read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 22):
            digest.update(part)
            count(len(part))
    name = os.path.basename(os.path.realpath(path))
    found = digest.hexdigest()
    if len(name) == 64 and set(name) <= set("0123456789abcdef") and name != found:
        fix = "the file is damaged: fetch it again"
        raise FormatError(path, "sha256", found, f"{name}, which its blob is named by", fix)
    return found
