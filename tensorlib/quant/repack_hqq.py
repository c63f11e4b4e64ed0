"""HQQ checkpoints as transformers saves them to safetensors: `x.W_q`, `x.scale`, `x.zero` and small tensors of facts.

The weight, read row by row, is cut into groups (axis 1): R rows of `group_size` codes, each with a scale and a zero
that is no whole number. Codes are packed along the rows: with 4 bits a byte holds row r in its high nibble and row r +
R / 2 in the low one, with 2 bits four rows, with 1 bit eight, the first in the highest bits; with 3 bits an int32 holds
ten rows, R being filled up with zeros to a multiple of ten; with 8 bits (also for 5 and 6) a byte one. `view_as_float`:
the same bytes as floats. `offload_meta` files have zero and scale as one tensor, `zero_scale`.

Groups along axis 0 take a scale per element of a row, which blocks cannot hold: such files are refused, and so are
quantised scales and zeros: HQQ itself cannot save those to safetensors.

A weight is (q - zero) * scale in f32. HQQ computes it in its compute_dtype, f16 or bf16, rounding after each of both.
"""

import numpy as np

from tensorlib.quant.repack import BLOCK, FLOATS, NUMPY, affine

PACKINGS = {"8bit_u8": (8, 1, "U8"), "4bit_u8": (4, 2, "U8"), "3bit_32": (3, 10, "I32"), "2bit_u8": (2, 4, "U8"),
            "1bit_u8": (1, 8, "U8")}  # fmt: skip
INTEGERS = ("I32", "I64", "U8", "I8", "I16")
FACTS = (
    "W_q scale zero zero_scale nbits group_size shape axis packing unpack_view_dtype view_as_float quant_scale "
    "quant_zero compute_dtype offload_meta encoded_state_dict stores_quant_config channel_wise optimize round_zero"
).split()


class HQQ:
    """One linear; FormatError for parts that do not fit."""

    def __init__(self, parts):
        self.parts = parts
        for flag in (".quant_scale", ".quant_zero"):
            if flag in parts and self._integers(flag, 1)[0]:
                raise parts.error(flag, "quantised scales or zeros", "floats", "quantise again with a current HQQ")
        packing = bytes(self._integers(".packing", None, ("U8",))).decode("latin-1")
        if packing not in PACKINGS:
            raise parts.error(".packing", f"{packing!r:.80}", f"one of {', '.join(PACKINGS)}")
        self.bits, self.many, self.stored = PACKINGS[packing]
        if self._integers(".axis", 1)[0] != 1:
            raise parts.error(".axis", "groups along axis 0", "axis 1", "quantise the model again with axis=1")
        n, k = self._integers(".shape", 2)
        if not 0 < n < 1 << 40 or not 0 < k < 1 << 40:
            raise parts.error(".shape", f"{(n, k)}", "two sizes")
        self.shape = n, parts.whole_blocks(".shape", k, "columns")
        self.group = self._integers(".group_size", 1)[0] if ".group_size" in parts else k
        if self.group <= 0 or self.group % BLOCK or n * k % self.group:
            got, expected = f"groups of {self.group} for {n * k} weights", f"a multiple of {BLOCK} that divides these"
            raise parts.error(".group_size", got, expected)
        self.count = n * k // self.group
        self.height = -(-self.count // self.many)
        nbytes = self.height * self.group * np.dtype(NUMPY[self.stored]).itemsize
        info = parts.info(".W_q", ("U8", "I32", *FLOATS), 2)
        if info.nbytes != nbytes or (self.count % self.many and self.bits != 3):
            got = f"{info.format} {info.shape} in {info.nbytes} bytes"
            raise parts.error(".W_q", got, f"{nbytes} bytes for {self.count} groups of {self.group}, {packing}")

    def _integers(self, suffix, count, formats=INTEGERS):
        """A small tensor's numbers."""
        info = self.parts.info(suffix, formats)
        found = self.parts.array(suffix, formats, info.shape).ravel()
        if found.size > 64 or count not in (None, found.size):
            raise self.parts.error(suffix, f"{found.size} numbers", f"{64 if count is None else count}")
        return found.tolist()

    def _scales(self):
        """(scale, zero), f32 [groups]."""
        if ".zero_scale" in self.parts:
            zero, scale = self.parts.floats(".zero_scale", (2, self.count, 1))[..., 0]
            return scale, zero
        return tuple(self.parts.floats(part, (self.count, 1))[:, 0] for part in (".scale", ".zero"))

    def __call__(self):
        """The weight: a QTensor."""
        (n, k), bits, many = self.shape, self.bits, self.many
        words = self.parts.source.raw(self.parts.stem + ".W_q").numpy().view(NUMPY[self.stored])
        words, mask = words.reshape(self.height, self.group), (1 << bits) - 1
        codes = np.empty((many, self.height, self.group), np.uint8)
        for i in range(many):
            np.copyto(codes[i], words >> bits * (many - 1 - i) & mask, casting="unsafe")
        codes = codes.reshape(-1)[: n * k].reshape(n, k)
        at = np.arange(0, n * k, BLOCK) // self.group
        scale, zero = (values[at].reshape(n, -1) for values in self._scales())
        return affine(lambda start, stop: codes[start:stop], self.shape, bits, scale, zero)
