"""A quantised weight whose columns are stored in another order: GPTQ with desc_act, where a group's columns lie apart.

Sorted by group, a block of 32 columns has one scale. `order[i]` is the column that is stored as the i-th; products pick
the activations in that order first, which changes no bit of them.
"""

import numpy as np

from tensorlib import dtype as _dtype
from tensorlib.device import Array, Buffer
from tensorlib.errors import ShapeError
from tensorlib.layout import contiguous
from tensorlib.ops import index, transfer
from tensorlib.quant.tensor import QTensor


class PermutedQTensor(QTensor):
    """`stored`, a QTensor [N, K] on the same memory, has the columns `order` (i64 [K], where the blocks are)."""

    __slots__ = ("inverse", "order", "stored")

    def __init__(self, buffer, offset, shape, format, planes=None, order=None, inverse=None):
        if order is None:
            fix = "take whole rows, or dequantize() it first"
            raise ShapeError("shard", f"some columns of {shape} in another order (desc_act)", "whole rows", fix)
        super().__init__(buffer, offset, shape, format, planes)
        self.stored = QTensor(buffer, offset, shape, format, planes)
        self.order, self.inverse = order, inverse

    @classmethod
    def over(cls, stored, order, inverse=None):
        """The weight of a QTensor that has the columns `order`: an i64 Array there, or integers."""
        if inverse is None:
            order = np.ascontiguousarray(order, np.int64)
            back = np.empty_like(order)
            back[order] = np.arange(len(order))
            order, inverse = (Array(Buffer.of(x), contiguous(x.shape), _dtype.i64) for x in (order, back))
        order, inverse = (transfer.to(x, stored.device) for x in (order, inverse))
        return cls(stored.buffer, stored.offset, stored.shape, stored.format, stored.planes, order, inverse)

    def _of(self, stored):
        return self.over(stored, self.order, self.inverse)

    def to(self, device):
        """On another device; itself if it is there."""
        there = self.stored.to(device)
        return self if there is self.stored else self._of(there)

    def dequantize(self, dtype="f32", cls=None):
        """All weights as a dense Tensor, columns in the weight's own order."""
        return index.index_select(self.stored.dequantize(dtype, cls), -1, self.inverse)

    def embedding(self, ids, dtype="f32"):
        """See QTensor.embedding."""
        return index.index_select(self.stored.embedding(ids, dtype), -1, self.inverse)

    def rows(self, start, count):
        """Some of the rows, over the same memory."""
        return self._of(self.stored.rows(start, count))

    def _linear(self, x, residual):
        self._check("linear", x, 1)
        return self.stored._linear(index.index_select(x, -1, self.order), residual)
