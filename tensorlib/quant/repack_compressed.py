"""Checkpoints of compressed-tensors, as llm-compressor writes them: whole numbers, packed or as int8; else float8.

Packed ("pack-quantized"): `x.weight_packed` int32 holds the codes of each row of the weight as one string of bits,
lowest first, plus 2 ** (bits - 1); `x.weight_shape` its sizes [N, K]; `x.weight_scale` [N, groups], or one per row or
for it all; `x.weight_zero_point`, if there, int32 [N * bits / 32, groups], whose columns are packed alike. The shapes
tell the groups, and which of the description's bits (2, 3, 4, 8). `x.weight_g_idx` [K], in older files, is the group of
each column.

Int8 ("int-quantized"): `x.weight` [N, K] and its `x.weight_scale`, `x.weight_zero_point` of the same shape, if there.

A weight is (q - zero) * scale in f32; the library computes it in the scale's dtype. Quantised activations, which some
of these models have, stay as they are.
"""

import numpy as np

from tensorlib.quant.permuted import PermutedQTensor
from tensorlib.quant.repack import BLOCK, FLOATS, affine, unpacked
from tensorlib.quant.repack_fp8 import FP8, of
from tensorlib.quant.repack_gptq import BITS, GPTQ, WORDS, _words

SCALE, ZERO, PACKED, INDEX = ".weight_scale", ".weight_zero_point", ".weight_packed", ".weight_g_idx"


def linear(parts):
    """One linear, by the parts that there are; `parts.stem` is the module's name. FormatError."""
    if PACKED in parts:
        return Packed(parts)
    held = parts.source.tensors.get(f"{parts.stem}.weight")
    return Bytes(parts) if held is not None and held.format == "I8" else FP8(parts)


class Packed(GPTQ):
    """Codes packed into words; FormatError for parts that do not fit."""

    index = INDEX

    def __init__(self, parts):
        self.parts = parts
        shape = parts.array(".weight_shape", ("I64", "I32"), (2,)).tolist()
        if not all(0 < size < 1 << 40 for size in shape):
            raise parts.error(".weight_shape", f"{shape}", "two sizes")
        n, k = shape
        found = parts.info(PACKED, WORDS, 2).shape
        said = _said(parts.config)
        self.bits = next((bits for bits in said if found == (n, _words(k, bits))), None)
        if self.bits is None:
            bits = " or ".join(map(str, said)) or "2, 3, 4 or 8"
            raise parts.error(PACKED, f"shape {found}", f"codes of {bits} bits for {(n, k)}")
        self.shape = n, parts.whole_blocks(PACKED, k, "columns")
        self.scales = _scales(parts, n)
        self.groups = self.scales[-1] if len(self.scales) == 2 else 1
        self.group = k // max(self.groups, 1)
        if self.group * self.groups != k:
            raise parts.error(SCALE, f"{self.groups} groups", f"a divisor of {k} columns")

    def __call__(self):
        """The weight: a QTensor, or a PermutedQTensor."""
        (n, k), bits, parts = self.shape, self.bits, self.parts
        words = parts.array(PACKED, WORDS, (n, _words(k, bits)))
        scale = np.broadcast_to(parts.floats(SCALE, self.scales).reshape(-1, self.groups), (n, self.groups))
        zero = np.full((1, self.groups), 1 << bits - 1)
        if ZERO in parts:
            held = parts.array(ZERO, WORDS, (_words(n, bits), self.groups))
            zero = unpacked(np.ascontiguousarray(held.T), bits)[:, :n].T
        order, group = self._order()

        def rows(start, stop):
            codes = unpacked(words[start:stop], bits)[:, :k]
            return codes if order is None else codes[:, order]

        made = affine(rows, self.shape, bits, scale[:, group], zero[:, group])
        return made if order is None else PermutedQTensor.over(made, order)


class Bytes:
    """Codes of 8 bits as they are; FormatError for parts that do not fit."""

    def __init__(self, parts):
        self.parts = parts
        self.shape = n, k = parts.weight("I8")
        self.scales = _scales(parts, n)
        self.groups = self.scales[-1] if len(self.scales) == 2 else 1
        if self.groups == 0 or k % (BLOCK * self.groups):
            raise parts.error(SCALE, f"{self.groups} groups of {k} columns", f"groups of a multiple of {BLOCK}")

    def __call__(self):
        """The weight: a QTensor."""
        parts, (n, k) = self.parts, self.shape
        codes, scale = parts.array(".weight", ("I8",), self.shape), parts.floats(SCALE, self.scales)
        zero = np.zeros_like(scale)
        if ZERO in parts:
            zero = parts.array(ZERO, ("I8",), self.scales).astype(np.float32)
        each = (np.broadcast_to(x.reshape(-1, self.groups), (n, self.groups)) for x in (scale, zero + 128))
        each = (np.repeat(x, k // BLOCK // self.groups, 1) for x in each)
        return affine(lambda start, stop: codes[start:stop].view(np.uint8) ^ 128, self.shape, 8, *each)


def _said(config):
    """The bits that a description names, of those that there are here; all if it names none."""
    groups = config.get("config_groups")
    groups = groups.values() if type(groups) is dict else ()
    found = [of(of(group, "weights"), "num_bits") for group in groups]
    return [bits for bits in BITS if bits in found] if any(found) else BITS


def _scales(parts, n):
    """The shape of the scales: [N, groups], [N] or one."""
    found = parts.info(SCALE, FLOATS).shape
    if found not in ((), (1,), (1, 1), (n,)) and (len(found) != 2 or found[0] != n):
        raise parts.error(SCALE, f"shape {found}", f"{(n, 'groups')}, {(n,)} or (1,)")
    return found
