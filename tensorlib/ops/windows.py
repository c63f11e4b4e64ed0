"""Views by strides: sliding windows over a dim (`Tensor.unfold`), and any strides that stay inside the memory.

>>> import tensorlib
>>> tensorlib.arange(5).unfold(0, 3, 2)
tensor([[0, 1, 2],
        [2, 3, 4]])
"""

from tensorlib.device import Array
from tensorlib.errors import ShapeError
from tensorlib.layout import Layout, axis
from tensorlib.ops import create, movement
from tensorlib.ops.elementwise import add, mul
from tensorlib.ops.index import index_add, scatter_add
from tensorlib.registry import SAME, define


def _windows_vjp(g, x_shape, dimension, size, step):
    """Windows overlap, so what they gathered is added up."""
    x = create.zeros(type(g), x_shape or (1,), dtype=g.dtype, device=g.device)
    dim = axis("unfold", dimension, x.ndim)
    count = g.shape[dim]
    starts = mul(create.arange(type(g), count, device=g.device), step)
    ids = add(movement.unsqueeze(starts, 1), create.arange(type(g), size, device=g.device))
    rows = movement.movedim(g if x_shape else movement.unsqueeze(g, 0), -1, dim + 1)
    rows = movement.reshape(rows, (*x.shape[:dim], count * size, *x.shape[dim + 1 :]))
    return movement.reshape(index_add(x, dim, movement.reshape(ids, -1), rows), x_shape)


def _windows_ref(np, x, dim, size, step):
    windows = np.lib.stride_tricks.sliding_window_view(x, size, dim)
    return windows[(slice(None),) * (dim % x.ndim) + (slice(None, None, step),)]


@define("movement", SAME, _windows_ref, vjp={"x": _windows_vjp})
def sliding_windows(x, dimension, size, step):
    """All windows of `size` along a dim, `step` apart, as a new last dim: a view. (`Tensor.unfold` of PyTorch.)

    The dim has (n - size) // step + 1 windows. Windows may overlap: then the view must not be written to. ShapeError.
    """
    if not x.ndim:
        x = movement.reshape(x, 1)
        return movement.select(sliding_windows(x, 0, size, step), 0, 0)
    dim = axis("unfold", dimension, x.ndim)
    n = x.shape[dim]
    if not 0 <= size <= n or step < 1:
        got = f"size {size}, step {step} for a dim of {n}"
        raise ShapeError("unfold", got, f"a size in [0, {n}], a step of 1 or more", "pad x, or use smaller windows")
    shape = (*x.shape[:dim], (n - size) // step + 1, *x.shape[dim + 1 :], size)
    strides = (*x.strides[:dim], x.strides[dim] * step, *x.strides[dim + 1 :], x.strides[dim])
    return Array.view(x, Layout(shape, strides, x.offset))


unfold = sliding_windows


def _strided_vjp(g, x, size, stride, storage_offset):
    n = x.buffer.nbytes // x.dtype.itemsize
    offset = x.offset if storage_offset is None else storage_offset
    places = as_strided(create.arange(type(g), n, device=g.device), size, stride, offset)
    whole = create.zeros(type(g), n, dtype=g.dtype, device=g.device)
    whole = scatter_add(whole, 0, movement.reshape(places, -1), movement.reshape(g, -1))
    return as_strided(whole, x.shape, x.strides, x.offset)


@define("movement", SAME, None, vjp={"x": _strided_vjp})
def as_strided(x, size, stride, storage_offset=None):
    """Any shape and strides (in elements) over x's memory, from x's own first element or `storage_offset` on: a view.

    ShapeError if an element would be outside of the memory, or x repeats its own. Where elements are shared, the view
    must not be written to.

    >>> import tensorlib
    >>> as_strided(tensorlib.arange(6), (2, 2), (3, 1), 1)
    tensor([[1, 2],
            [4, 5]])
    """
    size, stride = movement.sizes((size,)), movement.sizes((stride,))
    if len(size) != len(stride) or any(n < 0 for n in size):
        got = f"sizes {size} and strides {stride}"
        raise ShapeError("as_strided", got, "sizes of 0 or more, a stride for each", "give as many strides as sizes")
    layout = Layout(size, stride, x.offset if storage_offset is None else int(storage_offset))
    low, high = layout.extent()
    room = x.buffer.nbytes // x.dtype.itemsize
    if low < 0 or high > room:
        got = f"elements {low} to {high - 1}"
        raise ShapeError("as_strided", got, f"elements inside [0, {room - 1}]", "use smaller sizes or strides")
    if x.layout.overlaps_itself():
        fix = "call .contiguous() first"
        raise ShapeError("as_strided", f"x of strides {x.strides}, which repeats elements", "distinct elements", fix)
    return Array.view(x, layout)
