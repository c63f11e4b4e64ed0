"""What a weight in blocks has of a Tensor's manners beside its products: `w[...]`, `w.T`, and `@` with either."""

from math import prod

from tensorlib.errors import ShapeError
from tensorlib.ops import elementwise, movement


class Like:
    """Base of QTensor."""

    __slots__ = ()

    def __getitem__(self, index):
        """By a slice of step 1, or, where dims are more than two, an integer: the same memory, still in blocks. By a
        Tensor of integers: those rows of a matrix as floats, NaN for one out of range. Raises ShapeError.
        """
        first = self.shape[0]
        if type(index) is int and self.ndim > 2 and -first <= index < first:
            return self._part(index % first, 1, self.shape[1:])
        if type(index) is slice and self.ndim > 1:
            start, stop, step = index.indices(first)
            if step == 1:
                count = max(0, stop - start)
                return self._part(start, count, (count, *self.shape[1:]))
        if hasattr(index, "dtype") and self.ndim == 2 and index.dtype.kind in "ui":
            ids = elementwise.cast(index, "i64")
            ids = elementwise.where(elementwise.lt(ids, 0), elementwise.add(ids, first), ids)
            return self.embedding(movement.contiguous(ids))
        expected = "a Tensor of integers or a slice for rows, an integer for one of several matrices"
        raise ShapeError("index of a weight in blocks", repr(index), expected, "index .dequantize() instead")

    def _part(self, start, count, shape):
        """`count` of the first dim's elements, as `shape`."""
        inner = prod(self.shape[1:-1])
        flat = type(self)(self.buffer, self.offset, (self.shape[0] * inner, self.shape[-1]), self.format, self.planes)
        out = flat.rows(start * inner, count * inner)
        out.shape = shape
        return out

    @property
    def T(self):
        """This [N, K] weight as [K, N], for matmul."""
        return Transposed(self)

    def product(self, x):
        """x [..., N] times this [N, K] weight: [..., K]."""
        from tensorlib.quant.tensor import quantized_product

        return quantized_product(x, self)

    def __rmatmul__(self, x):
        return self.product(x)


class Transposed:
    """A weight in blocks, its dims exchanged: a right operand of matmul. `T` is the weight."""

    __slots__ = ("T",)

    def __init__(self, weight):
        if weight.ndim != 2:
            raise ShapeError("T", f"a weight of shape {weight.shape}", "2 dims", "index one of the matrices first")
        self.T = weight

    def __repr__(self):
        return f"{self.T!r}.T"

    @property
    def shape(self):
        return self.T.shape[::-1]

    def product(self, x):
        """x [..., K] times this [K, N]: [..., N]."""
        return self.T.linear(x)

    def __rmatmul__(self, x):
        return self.product(x)
