"""bitsandbytes checkpoints: nf4 and fp4 (QLoRA), and the int8 weights of LLM.int8.

4 bits: `x.weight` holds two codes per byte, the first in the high nibble, of the weight read row by row; an absmax per
`blocksize` of them. JSON in `x.weight.quant_state.bitsandbytes__nf4` gives shape and sizes. With double quantisation
`absmax` is bytes: an absmax is nested_quant_map[byte] * nested_absmax[i // nested_blocksize] + nested_offset, in f32
and in this order, as bitsandbytes computes it. A weight is the code's entry of the table times the absmax in f32:
bit for bit what bitsandbytes dequantises to float32, but where its CPU kernel (0.50) is wrong: for blocks that run over
the end of a row. (To a model's own f16 or bf16 it rounds once.)

8 bits: `x.weight` int8 [N, K] and `x.SCB`, the largest absolute value of every row, f32 [N]; plain row order alone.
"""

import json

import numpy as np

from tensorlib.quant.private import FP4, NF4
from tensorlib.quant.repack import BLOCK, scaled

TABLES = {"nf4": NF4, "fp4": FP4}
STATE = ".quant_state.bitsandbytes__"
SMALL = 1 << 16  # bytes of JSON
STORED = ("U8", "I8", "F16", "BF16", "F32", "I16", "I32")  # quant_storage: any dtype, for its bytes


class FourBit:
    """One linear of 4 bits; `parts.stem` is the weight's name. FormatError for parts that do not fit."""

    def __init__(self, parts):
        self.parts = parts
        self.kind = next(kind for kind in TABLES if STATE + kind in parts)
        self.state = self._json(STATE + self.kind)
        shape = self.state.get("shape")
        if type(shape) is not list or len(shape) != 2 or not all(type(n) is int and 0 < n < 1 << 40 for n in shape):
            raise parts.error(STATE + self.kind, f"shape {shape!r:.80}", "two sizes")
        self.shape = shape[0], parts.whole_blocks("", shape[1], "columns")
        info = parts.info("", STORED)
        if info.nbytes * 2 != shape[0] * shape[1]:
            raise parts.error("", f"{info.nbytes} bytes", f"{shape[0] * shape[1]} codes of 4 bits, for {shape}")
        self.size = self._positive("blocksize")
        self.blocks = -(-shape[0] * shape[1] // self.size)
        if self.size % BLOCK:
            raise parts.error(STATE + self.kind, f"blocksize {self.size}", f"a multiple of {BLOCK}")
        if self.state.get("quant_type") != self.kind:
            raise parts.error(STATE + self.kind, f"quant_type {self.state.get('quant_type')!r:.80}", repr(self.kind))

    def _json(self, suffix):
        info = self.parts.info(suffix, ("U8",), 1)
        if info.nbytes > SMALL:
            raise self.parts.error(suffix, f"{info.nbytes} bytes", f"JSON of at most {SMALL}")
        try:
            found = json.loads(self.parts.array(suffix, ("U8",), info.shape).tobytes().decode())
        except (ValueError, RecursionError) as error:
            raise self.parts.error(suffix, f"no JSON ({str(error)[:80]})", "a JSON object") from None
        if type(found) is not dict:
            raise self.parts.error(suffix, f"a {type(found).__name__}", "a JSON object")
        return found

    def _positive(self, key):
        found = self.state.get(key)
        if type(found) is not int or not 0 < found < 1 << 40:
            raise self.parts.error(STATE + self.kind, f"{key} {found!r:.80}", "a whole number above 0")
        return found

    def _absmax(self):
        if ".nested_absmax" not in self.parts:
            return self.parts.floats(".absmax", (self.blocks,))
        size, offset = self._positive("nested_blocksize"), self.state.get("nested_offset")
        if type(offset) not in (int, float):
            raise self.parts.error(STATE + self.kind, f"nested_offset {offset!r:.80}", "a number")
        codes = self.parts.array(".absmax", ("U8",), (self.blocks,))
        table = self.parts.floats(".nested_quant_map", (256,), ("F32",))
        outer = self.parts.floats(".nested_absmax", (-(-self.blocks // size),), ("F32",))
        return table[codes] * outer[np.arange(self.blocks) // size] + np.float32(offset)

    def __call__(self):
        """The weight: a QTensor."""
        parts, (n, k) = self.parts, self.shape
        table = parts.floats(".quant_map", (16,))
        if not np.allclose(table, np.array(TABLES[self.kind], np.float32), rtol=0, atol=1e-4):
            raise parts.error(".quant_map", "another table", f"that of {self.kind}, which bitsandbytes always uses")
        unit = next(unit for unit in (64, BLOCK) if k % unit == self.size % unit == 0)
        first = np.arange(0, n * k, unit) // self.size
        codes = parts.source.raw(parts.stem).numpy().reshape(n, k // 2)
        return scaled(codes, self.shape, self._absmax()[first].reshape(n, -1), f"{self.kind}_{unit}")


class EightBit:
    """One linear of LLM.int8; `parts.stem` is the module's name. FormatError for parts that do not fit."""

    def __init__(self, parts):
        self.parts = parts
        self.shape = parts.weight("I8")
        if ".weight_format" in parts:
            info = parts.info(".weight_format", ("U8",))
            found = parts.array(".weight_format", ("U8",), info.shape).ravel()[:8].tolist()
            if found != [0]:
                fix = "save it again with a current bitsandbytes"
                raise parts.error(".weight_format", f"{found}", "[0]: rows in plain order", fix)

    def __call__(self):
        """The weight: a QTensor."""
        scale = self.parts.floats(".SCB", self.shape[:1], ("F32",))
        return scaled(self.parts.array(".weight", ("I8",), self.shape), self.shape, scale[:, None], "bnb8")
