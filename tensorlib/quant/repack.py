"""Codes, scales and zeros of other libraries' quantised linears as blocks of a private row (`private.py`): a QTensor.

What a family's file says becomes `n` rows of codes in bytes, made some rows at a time, and a scale and a zero per 32
columns. `repack_gptq.py` (GPTQ, AWQ), `repack_bnb.py` (bitsandbytes), `repack_hqq.py` and `repack_fp8.py` know the
files. Nothing is rounded: a weight is exactly the f32 that (q - zero) * scale gives for the file's scale and zero.

>>> codes = np.arange(64, dtype=np.uint8).reshape(2, 32) % 16
>>> w = affine(lambda start, stop: codes[start:stop], (2, 32), 4, np.full((2, 1), 0.5), np.full((2, 1), 8))
>>> w, w.dequantize().shape
(QTensor(shape=(2, 32), format=a4_32, 40 bytes), (2, 32))
"""

import numpy as np

from tensorlib.errors import FormatError
from tensorlib.quant import formats
from tensorlib.quant.tensor import from_bytes

BLOCK = 32
STEP = 1 << 20  # codes unpacked at a time: they stay in a core's L2
NUMPY = {
    "I8": np.int8, "U8": np.uint8, "I16": np.int16, "I32": np.int32, "U32": np.uint32, "I64": np.int64,
    "F16": np.float16, "BF16": np.uint16, "F32": np.float32, "F8_E4M3": np.uint8,
}  # fmt: skip
FLOATS = ("F16", "BF16", "F32")


class Parts:
    """The tensors of one linear: `source` (io.source.Source) has them as `stem` + suffix; `config` is the checkpoint's
    own description. `name` is the weight's.
    """

    __slots__ = ("config", "name", "source", "stem")

    def __init__(self, source, name, stem, config):
        self.source, self.name, self.stem, self.config = source, name, stem, config

    def __contains__(self, suffix):
        return self.stem + suffix in self.source.tensors

    def error(self, suffix, got, expected, fix=""):
        return FormatError(self.source.path, f"tensor {self.stem}{suffix}", got, expected, fix)

    def info(self, suffix, formats, ndim=None):
        """The TensorInfo of a part, if it has one of the file's dtypes `formats` and `ndim` dims. FormatError."""
        info = self.source.tensors.get(self.stem + suffix)
        if info is None:
            raise self.error(suffix, "no such tensor", f"a part of {self.name}", "is the checkpoint whole?")
        if info.format not in formats or ndim not in (None, len(info.shape)):
            dims = "" if ndim is None else f" with {ndim} dims"
            raise self.error(suffix, f"{info.format} {info.shape}", f"{' or '.join(formats)}{dims}")
        return info

    def array(self, suffix, formats, shape):
        """A part as a NumPy array over the mapping, if it has that shape; bf16, float8 as bits. FormatError."""
        info = self.info(suffix, formats)
        if info.shape != tuple(shape):
            raise self.error(suffix, f"shape {info.shape}", f"{tuple(shape)}")
        return self.source.raw(info.name).numpy().view(NUMPY[info.format]).reshape(info.shape)

    def floats(self, suffix, shape, formats=FLOATS):
        """A part of floats as f32."""
        found = self.array(suffix, formats, shape)
        if found.dtype == np.uint16:
            return (found.astype(np.uint32) << 16).view(np.float32)
        return found.astype(np.float32)

    def weight(self, format):
        """The shape (N, K) of `.weight`, in that format; FormatError for none, or K that no blocks fill."""
        n, k = self.info(".weight", (format,), 2).shape
        if not n or not k:
            raise self.error(".weight", f"shape {(n, k)}", "at least one weight")
        return n, self.whole_blocks(".weight", k, "columns")

    def whole_blocks(self, suffix, size, what):
        """`size`, if blocks of 32 fill it."""
        if size % BLOCK:
            raise self.error(suffix, f"{what} of {size}", f"a multiple of {BLOCK}", "this checkpoint cannot be held")
        return size


def unpacked(words, bits):
    """Unsigned numbers of 1, 2, 3, 4 or 8 bits that follow each other in the bits of the last axis, lowest first."""
    data = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return data
    if bits == 3:
        found = np.unpackbits(data, axis=-1, bitorder="little")
        found = found[..., : found.shape[-1] // 3 * 3].reshape(*data.shape[:-1], -1, 3)
        return found[..., 0] | found[..., 1] << 1 | found[..., 2] << 2
    out = np.empty((*data.shape, 8 // bits), np.uint8)
    for i in range(8 // bits):
        np.bitwise_and(data >> i * bits, (1 << bits) - 1, out=out[..., i])
    return out.reshape(*data.shape[:-1], -1)


def packed(codes, bits):
    """Codes [..., 32] as a block has them (private.py's `code1` to `code4`)."""
    if bits == 8:
        return codes
    if bits == 4:
        return codes[..., :16] | codes[..., 16:] << 4
    if bits == 1:
        return np.packbits(codes, axis=-1, bitorder="little")
    low = codes & 3 if bits == 3 else codes
    low = low[..., :8] | low[..., 8:16] << 2 | low[..., 16:24] << 4 | low[..., 24:] << 6
    return low if bits == 2 else np.concatenate([low, packed(codes >> 2, 1)], -1)


def affine(rows, shape, bits, scale, zero):
    """A QTensor [N, K] of (q - zero) * scale. `rows(start, stop)`: codes of some rows, u8 [stop - start, K]; start and
    stop are multiples of 8, or N. `scale` and `zero`: [N, K / 32] or what broadcasts to it.
    """
    (n, k), parts = shape, (scale, zero)
    narrow = all(map(is_f16, parts))
    kind = np.dtype("<f2" if narrow else "<f4")
    out, head = np.empty((n, k // BLOCK, 2 * kind.itemsize + 4 * bits), np.uint8), 2 * kind.itemsize
    for i, values in enumerate(parts):
        at = i * kind.itemsize
        values = np.broadcast_to(values, (n, k // BLOCK)).astype(kind)
        out[..., at : at + kind.itemsize] = values[..., None].view(np.uint8)
    step = max(8, STEP // max(k, 1) // 8 * 8)
    for start in range(0, n, step):
        stop = min(start + step, n)
        out[start:stop, :, head:] = packed(rows(start, stop).reshape(stop - start, -1, BLOCK), bits)
    return from_bytes(out, shape, f"a{bits}_32" if narrow else f"a{bits}_32w")


def is_f16(values):
    """Whether f16 holds all of these numbers exactly."""
    values = np.asarray(values, np.float32)
    with np.errstate(over="ignore"):
        return np.array_equal(values.astype(np.float16).astype(np.float32), values)


def scaled(codes, shape, scale, format):
    """A QTensor [N, K] of blocks that are a scale in f32 and the file's own bytes: `codes` [N, bytes per row]; `scale`
    [N, blocks of a row] or what broadcasts to it.
    """
    (n, k), row, codes = shape, formats.get(format), codes.view(np.uint8)
    out = np.empty((n, k // row.elements, row.nbytes), np.uint8)
    out[..., :4] = np.broadcast_to(scale, out.shape[:2]).astype("<f4")[..., None].view(np.uint8)
    out[..., 4:] = codes.reshape(*out.shape[:2], -1)
    return from_bytes(out, shape, format)
