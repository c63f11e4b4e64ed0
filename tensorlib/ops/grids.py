"""Tensors made from nothing: places of triangles, numbers on a logarithmic scale.

>>> tril_indices(2, 2), logspace(0, 2, 3)
(tensor([[0, 1, 1],
        [0, 0, 1]]), tensor([  1.,  10., 100.]))
"""

from tensorlib.errors import ShapeError
from tensorlib.ops import create, elementwise, movement
from tensorlib.ops.index import nonzero


def _triangle(op, row, col, offset, compare, dtype, device):
    if row < 0 or col < 0:
        raise ShapeError(op, f"{row} rows, {col} columns", "0 or more", "use sizes of a matrix")
    rows, columns = (create.arange(create.made, n, device=device) for n in (row, col))
    keep = compare(elementwise.add(movement.unsqueeze(rows, 1), offset), columns)
    return elementwise.cast(movement.contiguous(movement.transpose(nonzero(keep), 0, 1)), dtype or "i64")


def tril_indices(row, col, offset=0, *, dtype=None, device=None):
    """Row and column (2, count) of the elements on and below a diagonal of a row x col matrix, in order: i64."""
    return _triangle("tril_indices", row, col, offset, elementwise.ge, dtype, device)


def triu_indices(row, col, offset=0, *, dtype=None, device=None):
    """Row and column (2, count) of the elements on and above a diagonal of a row x col matrix, in order: i64."""
    return _triangle("triu_indices", row, col, offset, elementwise.le, dtype, device)


def logspace(start, end, steps, base=10.0, *, dtype=None, device=None):
    """base ** linspace(start, end, steps), computed in f64; f32 unless dtype says otherwise."""
    powers = create.linspace(create.made, start, end, steps, dtype="f64", device=device)
    wide = create.full(create.made, (), float(base), dtype="f64", device=device)
    return elementwise.cast(elementwise.pow(wide, powers), dtype or "f32")
