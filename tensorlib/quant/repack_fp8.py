"""Checkpoints of weights in float8: DeepSeek-V3's and Qwen3's ("fp8"), vLLM's ("fp8", "compressed-tensors"), Llama's
("fbgemm_fp8"), NVIDIA's ("modelopt").

`x.weight` float8 e4m3 [N, K] and its scales, which it is multiplied by (`x.weight_scale_inv` as well, in spite of the
name): one for each tile of `weight_block_size` (128 x 128; those at the edges are cut), for each row [N, 1] or [N], or
for the whole weight. `x.input_scale`, for products of 8 bits both, is not used: activations stay as they are.

A weight is the f32 that the float8 times the scale gives: nothing is rounded but by that product.
"""

import numpy as np

from tensorlib.quant.repack import BLOCK, scaled

SCALES = ".weight_scale_inv", ".weight_scale"
SIDES = 128, 128


def of(value, key):
    """What an object of JSON has at a key, None for anything else."""
    return value.get(key) if type(value) is dict else None


class FP8:
    """One linear; `parts.stem` is the module's name. FormatError for parts that do not fit."""

    def __init__(self, parts):
        self.parts = parts
        self.shape = n, k = parts.weight("F8_E4M3")
        self.name = next(name for name in SCALES if name in parts)
        found, (rows, columns) = parts.info(self.name, ("F32", "BF16", "F16")).shape, self._sides()
        tiles = -(-n // rows), -(-k // columns)
        # scales' shape -> how many rows and columns of the weight each is of
        known = {(): self.shape, (1,): self.shape, (1, 1): self.shape, (n,): (1, k), (n, 1): (1, k)}
        known[tiles] = rows, columns
        if found not in known:
            raise parts.error(self.name, f"shape {found}", f"{tiles}, {(n, 1)} or (1,)", "see weight_block_size")
        self.stored, self.sides = found, known[found]
        if self.sides[1] % BLOCK:
            raise parts.error(self.name, f"tiles of {self.sides[1]} columns", f"a multiple of {BLOCK}")

    def _sides(self):
        """Rows and columns of a tile, as the description says."""
        config = self.parts.config
        groups = config.get("config_groups")
        groups = [of(group, "weights") for group in groups.values()] if type(groups) is dict else []
        inside = [of(weights, "block_structure") for weights in groups]
        sides = config.get("weight_block_size") or next(filter(None, inside), SIDES)
        if type(sides) not in (list, tuple) or len(sides) != 2 or not all(type(n) is int and n > 0 for n in sides):
            raise self.parts.error(self.name, f"weight_block_size {sides!r:.80}", "two sizes")
        return tuple(map(min, sides, self.shape))

    def __call__(self):
        """The weight: a QTensor."""
        (n, k), (rows, columns) = self.shape, self.sides
        scale = self.parts.floats(self.name, self.stored).reshape(-(-n // rows), -(-k // columns))
        unit = next(unit for unit in (128, BLOCK) if k % unit == columns % unit == 0)
        scale = np.repeat(np.repeat(scale, rows, 0)[:n], columns // unit, 1)[:, : k // unit]
        return scaled(self.parts.array(".weight", ("F8_E4M3",), self.shape), self.shape, scale, f"f8_{unit}")
