"""Where the elements of a tensor lie: shape, signed strides and offset, all in elements. Pure integers, no memory.

Views are new Layouts over the same memory; nothing here copies.

>>> from tensorlib.layout import contiguous
>>> x = contiguous((2, 3, 4))
>>> x.permute((2, 0, 1))
Layout(shape=(4, 2, 3), strides=(1, 12, 4), offset=0)
>>> x.slice(1, slice(None, None, -1))
Layout(shape=(2, 3, 4), strides=(12, -4, 1), offset=8)
"""

from __future__ import annotations

from collections import namedtuple  # typing.NamedTuple would double the time that importing this takes
from math import prod

from tensorlib.errors import ShapeError


def axis(op: str, dim: int, ndim: int) -> int:
    """`dim` as a non-negative number below `ndim` (a 0-d tensor counts as 1-d, as in PyTorch)."""
    bound = ndim or 1
    if not -bound <= dim < bound:
        fix = "count dims from 0, or backwards from -1"
        raise ShapeError(op, f"dim {dim} of a {ndim}-d tensor", f"a dim in [{-bound}, {bound - 1}]", fix)
    return dim % bound


def axes(op: str, dims, ndim: int) -> tuple[int, ...]:
    """Normalised, distinct dims: `None` means all, an int one; none of a 0-d tensor. ShapeError for repeated ones."""
    if dims is None:
        return tuple(range(ndim))
    if isinstance(dims, int):
        dims = (dims,)
    found = tuple(axis(op, d, ndim) for d in dims)
    if len(set(found)) != len(found):
        raise ShapeError(op, f"dims {tuple(dims)}", "each dim once", "remove the repeated dim")
    return found if ndim else ()


def strides_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides of `shape`; dims of size 0 count as 1."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size or 1
    return tuple(reversed(strides))


def infer_shape(op: str, numel: int, shape) -> tuple[int, ...]:
    """`shape` with its one -1 replaced so that it holds `numel` elements."""
    shape = tuple(shape)
    unknown = [i for i, s in enumerate(shape) if s == -1]
    known = prod(s for s in shape if s != -1)
    if any(s < -1 for s in shape) or len(unknown) > 1:
        raise ShapeError(op, f"shape {shape}", "sizes of 0 or more and at most one -1", "name every other size")
    if unknown and known and numel % known == 0:
        shape = shape[: unknown[0]] + (numel // known,) + shape[unknown[0] + 1 :]
    elif unknown or known != numel:
        fix = "use sizes whose product is the number of elements"
        if unknown and not known:
            fix = "-1 cannot be inferred beside a size of 0: name it"
        raise ShapeError(op, f"shape {shape} for {numel} elements", f"a shape that holds {numel}", fix)
    return shape


def broadcast_shapes(op: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that all `shapes` expand to: aligned at the right, sizes equal or 1. Raises ShapeError.

    >>> broadcast_shapes("add", (4, 1, 3), (2, 1), ())
    (4, 2, 3)
    """
    first = shapes[0]
    if all(s == first for s in shapes):
        return first
    out = [1] * max(len(s) for s in shapes)
    for shape in shapes:
        for i in range(1, len(shape) + 1):
            size = shape[-i]
            if size != 1 and out[-i] == 1:
                out[-i] = size
            elif size != 1 and size != out[-i]:
                got = "shapes " + " and ".join(str(s) for s in shapes)
                expected = f"shapes that broadcast: dim -{i} is {out[-i]} and {size}"
                raise ShapeError(op, got, expected, "make these sizes equal, or one of them 1")
    return tuple(out)


class Layout(namedtuple("Layout", ("shape", "strides", "offset"), defaults=(0,))):
    """Element (i, j, ...) lies `offset + i * strides[0] + j * strides[1] + ...` elements after the buffer's start."""

    __slots__ = ()

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def is_contiguous(self) -> bool:
        """True if the elements lie one after the other in row-major order."""
        if 0 in self.shape:
            return True
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1:
                if stride != step:
                    return False
                step *= size
        return True

    def extent(self) -> tuple[int, int]:
        """First and one-past-last element offset that the view touches; (offset, offset) if it is empty."""
        if 0 in self.shape:
            return self.offset, self.offset
        reach = [(n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)]
        return self.offset + sum(r for r in reach if r < 0), self.offset + sum(r for r in reach if r > 0) + 1

    def overlaps_itself(self) -> bool:
        """True unless it is certain that no two indices share an element (writing to such a view is refused)."""
        reach = 1
        if 0 in self.shape:
            return False
        for stride, size in sorted((abs(s), n) for n, s in zip(self.shape, self.strides, strict=True) if n > 1):
            if stride < reach:
                return True
            reach += stride * (size - 1)
        return False

    def permute(self, dims) -> Layout:
        """Dims in the order `dims`, which names each once."""
        order = axes("permute", tuple(dims), self.ndim)
        if len(order) != self.ndim:
            raise ShapeError("permute", f"dims {tuple(dims)}", f"all {self.ndim} dims", "name each dim once")
        return Layout(tuple(self.shape[d] for d in order), tuple(self.strides[d] for d in order), self.offset)

    def transpose(self, dim0: int, dim1: int) -> Layout:
        """Swaps two dims."""
        a, b = axis("transpose", dim0, self.ndim), axis("transpose", dim1, self.ndim)
        order = list(range(self.ndim))
        if order:
            order[a], order[b] = b, a
        return self.permute(order)

    def _replace_dim(self, dim: int, shape: tuple, strides: tuple, shift: int = 0) -> Layout:
        return Layout(
            self.shape[:dim] + shape + self.shape[dim + 1 :],
            self.strides[:dim] + strides + self.strides[dim + 1 :],
            self.offset + shift,
        )

    def select(self, dim: int, index: int) -> Layout:
        """Drops `dim`, keeping its element `index` (negative counts from the end)."""
        if not self.shape:
            raise ShapeError("select", "a 0-d tensor", "at least one dim to index", "remove the index")
        dim = axis("select", dim, self.ndim)
        size = self.shape[dim]
        if not -size <= index < size:
            fix = "use an index inside the dim"
            raise ShapeError(
                "index", f"index {index} at dim {dim} of size {size}", f"one in [{-size}, {size - 1}]", fix
            )
        return self._replace_dim(dim, (), (), index % size * self.strides[dim])

    def slice(self, dim: int, s: slice) -> Layout:
        """Python's slice of one dim: steps may be negative, bounds are clipped."""
        dim = axis("slice", dim, self.ndim)
        if s.step == 0:
            raise ShapeError("slice", "step 0", "a step other than 0", "leave the step out")
        start, stop, step = s.indices(self.shape[dim])
        size = len(range(start, stop, step))
        return self._replace_dim(dim, (size,), (self.strides[dim] * step,), start * self.strides[dim] if size else 0)

    def narrow(self, dim: int, start: int, length: int) -> Layout:
        """Elements [start, start + length) of one dim; must lie inside it."""
        dim = axis("narrow", dim, self.ndim)
        size = self.shape[dim] if self.shape else 0
        begin = start + size if start < 0 else start
        if length < 0 or begin < 0 or begin + length > size:
            got = f"start {start}, length {length} at dim {dim} of size {size}"
            raise ShapeError("narrow", got, f"start + length of at most {size}", "shorten the range")
        return self._replace_dim(dim, (length,), (self.strides[dim],), begin * self.strides[dim] if length else 0)

    def unsqueeze(self, dim: int) -> Layout:
        """A new dim of size 1 at `dim`."""
        dim = axis("unsqueeze", dim, self.ndim + 1)
        step = self.shape[dim] * self.strides[dim] if dim < self.ndim else 1
        return Layout(
            self.shape[:dim] + (1,) + self.shape[dim:], self.strides[:dim] + (step,) + self.strides[dim:], self.offset
        )

    def squeeze(self, dims=None) -> Layout:
        """Without those dims (all, if None) whose size is 1."""
        chosen = axes("squeeze", dims, self.ndim) if self.shape else ()
        keep = [i for i in range(self.ndim) if not (i in chosen and self.shape[i] == 1)]
        return Layout(tuple(self.shape[i] for i in keep), tuple(self.strides[i] for i in keep), self.offset)

    def expand(self, shape, op: str = "expand") -> Layout:
        """Broadcasts to `shape`: dims of size 1 repeat with stride 0, new dims go left, -1 keeps a size."""
        shape = tuple(shape)
        if shape == self.shape:
            return self
        new = len(shape) - self.ndim
        if new < 0:
            fix = "expand adds dims at the left only"
            raise ShapeError(op, f"shape {self.shape} to {shape}", f"at least {self.ndim} dims", fix)
        sizes, strides = list(shape[:new]), [0] * new
        for want, size, stride in zip(shape[new:], self.shape, self.strides, strict=True):
            want = size if want == -1 else want
            if want != size and size != 1:
                fix = "only dims of size 1 expand; reshape or repeat the others"
                raise ShapeError(op, f"shape {self.shape} to {shape}", f"{size} where {want} is asked", fix)
            sizes.append(want)
            strides.append(stride if want == size else 0)
        if any(s < 0 for s in sizes):
            raise ShapeError(op, f"shape {shape}", "sizes of 0 or more", "-1 keeps the size of a dim that exists")
        return Layout(tuple(sizes), tuple(strides), self.offset)

    def reshape(self, shape) -> Layout | None:
        """A view of this memory with another shape (one -1 is inferred), or None if only a copy can have it."""
        shape = infer_shape("reshape", self.numel(), shape)
        if shape == self.shape:
            return self
        if self.is_contiguous():
            return Layout(shape, strides_of(shape), self.offset)
        # Each group of old dims that is evenly strided may be cut anew; walk both shapes from the right.
        strides, j, left, right = [0] * len(shape), len(shape) - 1, 1, 1
        dims = [(n, s) for n, s in zip(self.shape, self.strides, strict=True) if n != 1]
        for i in range(len(dims) - 1, -1, -1):
            if left == right:
                base, left, right = dims[i][1], 1, 1
            left *= dims[i][0]
            if i and dims[i - 1][1] == left * base:
                continue
            while j >= 0 and (right < left or shape[j] == 1):
                strides[j] = right * base
                right *= shape[j]
                j -= 1
            if left != right:
                return None
        return Layout(shape, tuple(strides), self.offset)

    def diagonal(self, offset: int = 0, dim0: int = 0, dim1: int = 1) -> Layout:
        """The diagonal of two dims as a new last dim."""
        a, b = axes("diagonal", (dim0, dim1), self.ndim)
        rows, cols = self.shape[a], self.shape[b]
        size = max(0, min(rows, cols - offset) if offset >= 0 else min(rows + offset, cols))
        shift = (offset * self.strides[b] if offset >= 0 else -offset * self.strides[a]) if size else 0
        keep = [i for i in range(self.ndim) if i not in (a, b)]
        shape, strides = [self.shape[i] for i in keep] + [size], [self.strides[i] for i in keep]
        return Layout(tuple(shape), (*strides, self.strides[a] + self.strides[b]), self.offset + shift)


def contiguous(shape, offset: int = 0) -> Layout:
    """Row-major layout of `shape`."""
    shape = tuple(shape)
    return Layout(shape, strides_of(shape), offset)


def collapse(*layouts: Layout) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The same elements in the fewest dims: one shape, and one tuple of strides per layout.

    All layouts have one shape. Dims of size 1 go; dims are ordered by the first layout's strides, largest first (so
    pass the output first); neighbours that every layout walks evenly are merged. At least one dim remains.

    >>> collapse(contiguous((2, 3, 4)), contiguous((3, 1)).expand((2, 3, 4)))
    ((2, 3, 4), [(12, 4, 1), (0, 1, 0)])
    >>> collapse(contiguous((2, 3, 4)), contiguous((2, 3, 4)))
    ((24,), [(1,), (1,)])
    """
    shape = layouts[0].shape
    if 0 in shape:
        return (0,), [(1,)] * len(layouts)
    order = [i for i, n in enumerate(shape) if n != 1]
    if not order:
        return (1,), [(1,)] * len(layouts)
    lead = layouts[0].strides
    order.sort(key=lambda i: -abs(lead[i]))
    sizes = [shape[order[0]]]
    strides = [[x.strides[order[0]]] for x in layouts]
    for i in order[1:]:
        size = shape[i]
        if all(s[-1] == x.strides[i] * size for s, x in zip(strides, layouts, strict=True)):
            sizes[-1] *= size
            for s, x in zip(strides, layouts, strict=True):
                s[-1] = x.strides[i]
        else:
            sizes.append(size)
            for s, x in zip(strides, layouts, strict=True):
                s.append(x.strides[i])
    return tuple(sizes), [tuple(s) for s in strides]
