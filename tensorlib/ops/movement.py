"""Ops that move elements or only look at them otherwise. Most are views: new layouts over the same memory.

>>> import tensorlib
>>> x = tensorlib.arange(6).reshape(2, 3)
>>> transpose(x, 0, 1), flip(x, -1), cat([x, x], dim=1).shape
(tensor([[0, 3],
        [1, 4],
        [2, 5]]), tensor([[2, 1, 0],
        [5, 4, 3]]), (2, 6))
"""

from tensorlib import dtype as _dtype
from tensorlib.device import Array
from tensorlib.errors import DTypeError, GradError, ShapeError
from tensorlib.layout import Layout, axes, axis, infer_shape
from tensorlib.layout import contiguous as row_major
from tensorlib.memo import view_memoised
from tensorlib.ops._launch import cast, copy_into, separate, writable
from tensorlib.registry import SAME, define


def sizes(args) -> tuple[int, ...]:
    """(2, 3) from f(2, 3), f((2, 3)) or f([2, 3])."""
    if len(args) == 1 and isinstance(args[0], (tuple, list)):
        args = args[0]
    for s in args:
        if isinstance(s, bool) or not hasattr(s, "__index__"):
            raise DTypeError("shape", f"{s!r}", "integers", "give sizes as integers")
    return tuple(s.__index__() for s in args)


def _movement(ref, vjp, **fields):
    return define("movement", SAME, ref, vjp=vjp if isinstance(vjp, dict) else {"x": vjp}, **fields)


def _view(ref, vjp):
    return _movement(ref, vjp, wrap=view_memoised)


def _composite(ref):
    return define("composite", SAME, ref)


def _reshaped(g, x_shape):
    return reshape(g, x_shape)


def _placed(g, shape, view):
    """Zeros of a shape, but g where `view` looks."""
    from tensorlib.ops.create import zeros

    whole = zeros(type(g), shape, dtype=g.dtype, device=g.device)
    copy_(view(whole), g)
    return whole


@_view(lambda np, x, *shape: np.reshape(x, shape), _reshaped)
def reshape(x, *shape):
    """The same elements in row-major order in another shape; one size may be -1. A view where possible, else a copy.

    >>> import tensorlib
    >>> reshape(tensorlib.arange(6), 2, -1).shape
    (2, 3)
    """
    shape = sizes(shape)
    layout = x.layout.reshape(shape)
    if layout is None:
        x = clone(x)
        layout = row_major(infer_shape("reshape", x.numel(), shape))
    return Array.view(x, layout)


@_view(lambda np, x, *shape: np.reshape(x, shape), lambda g, x_shape, shape: _viewed(g, x_shape, shape))
def view(x, *shape):
    """`reshape` that never copies: ShapeError where a copy is needed.
    `view(dtype)` reads the bits as another dtype of the size, `view(layout)` any elements of the memory (for ops).
    """
    if shape and isinstance(shape[0], Layout):
        return Array.view(x, *shape)
    if len(shape) == 1 and not isinstance(shape[0], (int, tuple, list)) and not hasattr(shape[0], "__index__"):
        dtype = _dtype.get(shape[0])
        if dtype.itemsize != x.dtype.itemsize:
            raise DTypeError(
                "view", f"{x.dtype} as {dtype}", "a dtype of the same size", "convert values with .to(dtype)"
            )
        return Array.view(x, x.layout, dtype)
    layout = x.layout.reshape(sizes(shape))
    if layout is None:
        fix = "call .reshape(...), which copies"
        raise ShapeError("view", f"shape {sizes(shape)} of strides {x.strides}", "dims that merge without a copy", fix)
    return Array.view(x, layout)


def _viewed(g, x_shape, shape):
    if len(shape) == 1 and not hasattr(shape[0], "__index__") and not isinstance(shape[0], (tuple, list)):
        fix = "convert values with .to(dtype)"
        raise GradError("view", f"a gradient through the bits as {shape[0]}", "a view of another shape", fix)
    return reshape(g, x_shape)


@_view(lambda np, x, a, b: np.swapaxes(x, a, b), lambda g, dim0, dim1: transpose(g, dim0, dim1))
def transpose(x, dim0, dim1):
    """Two dims swapped: a view."""
    return Array.view(x, x.layout.transpose(dim0, dim1))


def _unpermuted(g, dims):
    dims = axes("permute", sizes(dims), g.ndim)
    return permute(g, sorted(range(g.ndim), key=dims.__getitem__))


@_view(lambda np, x, *dims: np.transpose(x, dims), _unpermuted)
def permute(x, *dims):
    """Dims in another order: a view. ShapeError unless each dim is named once."""
    return Array.view(x, x.layout.permute(sizes(dims)))


def t(x):
    """Transpose of a tensor of at most 2 dims: a view."""
    if x.ndim > 2:
        raise ShapeError("t", f"{x.ndim} dims", "at most 2", "use transpose(dim0, dim1)")
    return x if x.ndim < 2 else transpose(x, 0, 1)


@_composite(lambda np, x, a, b: np.moveaxis(x, a, b))
def movedim(x, source, destination):
    """Dims moved to other places, the rest in order: a view."""
    source, destination = axes("movedim", source, x.ndim), axes("movedim", destination, x.ndim)
    if len(source) != len(destination):
        raise ShapeError(
            "movedim", f"{len(source)} and {len(destination)} dims", "as many places as dims", "pair them up"
        )
    order = [d for d in range(x.ndim) if d not in source]
    for place, dim in sorted(zip(destination, source, strict=True)):
        order.insert(place, dim)
    return permute(x, order)


def _squeeze_ref(np, x, dim=None):
    return np.squeeze(x, tuple(d for d in axes("squeeze", dim, x.ndim) if x.shape[d] == 1))


def _squeeze_ref(np, x, dim=None):
    return np.squeeze(x, tuple(d for d in axes("squeeze", dim, x.ndim) if x.shape[d] == 1))


@_view(lambda np, x, dim: np.expand_dims(x, dim), _reshaped)
def unsqueeze(x, dim):
    """A new dim of size 1 at `dim`: a view."""
    return Array.view(x, x.layout.unsqueeze(dim))


@_view(_squeeze_ref, _reshaped)
def squeeze(x, dim=None):
    """Without dims of size 1 (all, or those in `dim`): a view."""
    return Array.view(x, x.layout.squeeze(dim))


@_view(lambda np, x, *shape: np.broadcast_to(x, shape), lambda g: g)
def expand(x, *shape):
    """Dims of size 1 repeated without memory, new dims on the left; -1 keeps a size.
    A view that must not be written to.
    """
    return Array.view(x, x.layout.expand(sizes(shape)))


@_view(lambda np, x, shape: np.broadcast_to(x, shape), lambda g: g)
def broadcast_to(x, shape):
    """`expand` to a shape given as a tuple."""
    return Array.view(x, x.layout.expand(sizes((shape,)), "broadcast_to"))


def _narrowed(g, x_shape, dim, start, length):
    return _placed(g, x_shape, lambda z: narrow(z, dim, start, length))


@_view(lambda np, x, dim, start, length: np.take(x, np.arange(start, start + length), dim), _narrowed)
def narrow(x, dim, start, length):
    """Elements [start, start + length) of one dim: a view. ShapeError if they are not all there."""
    return Array.view(x, x.layout.narrow(dim, int(start), int(length)))


@_view(
    lambda np, x, dim, index: np.take(x, index, dim),
    lambda g, x_shape, dim, index: _placed(g, x_shape, lambda z: select(z, dim, index)),
)
def select(x, dim, index):
    """Element `index` of one dim, which goes: a view."""
    return Array.view(x, x.layout.select(dim, index))


@_composite(lambda np, x, a, b: np.reshape(x, (*x.shape[:a], _product(x.shape[a : b + 1]), *x.shape[b + 1 :])))
def flatten(x, start_dim=0, end_dim=-1):
    """Dims start_dim to end_dim merged into one."""
    first, last = axis("flatten", start_dim, x.ndim), axis("flatten", end_dim, x.ndim)
    if first > last:
        raise ShapeError("flatten", f"start_dim {start_dim} after end_dim {end_dim}", "start_dim first", "swap them")
    return reshape(
        x, x.shape[:first] + (-1 if x.numel() else _product(x.shape[first : last + 1]),) + x.shape[last + 1 :]
    )


def _product(values):
    out = 1
    for v in values:
        out *= v
    return out


def unflatten(x, dim, shape):
    """One dim cut into several; one size may be -1."""
    dim = axis("unflatten", dim, x.ndim)
    return reshape(x, x.shape[:dim] + infer_shape("unflatten", x.shape[dim], shape) + x.shape[dim + 1 :])


@_view(lambda np, x, *dims: np.flip(x, dims), lambda g, dims: flip(g, *dims))
def _flip(x, *dims):
    """Dims reversed: a view (negative strides)."""
    layout = x.layout
    for d in axes("flip", sizes(dims), x.ndim):
        layout = layout.slice(d, slice(None, None, -1))
    return Array.view(x, layout)


def flip(x, *args, dims=None):
    """Dims reversed, flip(x, 0, 1) or flip(x, dims=(0, 1)): a view (negative strides)."""
    return _flip(x, *sizes(args if dims is None else (dims,)))


@_view(
    lambda np, x, offset=0, dim1=0, dim2=1: np.diagonal(x, offset, dim1, dim2),
    lambda g, x_shape, offset, dim1, dim2: _placed(g, x_shape, lambda z: diagonal(z, offset, dim1, dim2)),
)
def diagonal(x, offset=0, dim1=0, dim2=1):
    """The diagonal of two dims as a new last dim: a view."""
    return Array.view(x, x.layout.diagonal(offset, dim1, dim2))


@_movement(
    lambda np, x, other: np.broadcast_to(other, x.shape), {"x": lambda g: None, "other": lambda g: g}, writes=True
)
def copy_(x, other):
    """Writes `other`, broadcast and cast, to x, in place. ShapeError; DeviceError for read-only memory."""
    writable("copy_", x)
    return copy_into(x, separate(broadcast_to(other, x.shape), x))


def contiguous(x):
    """x if it is row-major, else a copy that is."""
    return x if x.is_contiguous() else clone(x)


def clone(x):
    """A contiguous copy."""
    return cast(x, x.dtype, copy=True)


@_composite(lambda np, x, *reps: np.tile(x, reps))
def repeat(x, *repeats):
    """Copies along each dim, new dims on the left; `repeats` are at least as many as dims.

    >>> import tensorlib
    >>> repeat(tensorlib.tensor([1, 2]), 2, 2)
    tensor([[1, 2, 1, 2],
            [1, 2, 1, 2]])
    """
    repeats = sizes(repeats)
    new = len(repeats) - x.ndim
    if new < 0 or min(repeats, default=0) < 0:
        raise ShapeError("repeat", f"{repeats} for {x.ndim} dims", "a count of 0 or more for every dim", "add counts")
    shape = (1,) * new + x.shape
    cut = reshape(x, tuple(s for size in shape for s in (1, size)))
    wide = expand(cut, tuple(s for r, size in zip(repeats, shape, strict=True) for s in (r, size)))
    return reshape(wide, tuple(r * size for r, size in zip(repeats, shape, strict=True)))


def repeat_interleave(x, repeats, dim=None):
    """Each element of `dim` (of the flattened tensor, if None) `repeats` times: an int, or a tensor of them."""
    if isinstance(repeats, Array):
        from tensorlib.ops.lookup import repeated

        return repeated(x, repeats, dim)
    if dim is None:
        x, dim = flatten(x), 0
    dim = axis("repeat_interleave", dim, x.ndim)
    wide = expand(unsqueeze(x, dim + 1), x.shape[: dim + 1] + (int(repeats),) + x.shape[dim + 1 :])
    return reshape(wide, x.shape[:dim] + (x.shape[dim] * int(repeats),) + x.shape[dim + 1 :])


def _parts(g, tensors_shape, dim):
    return split(g, [shape[dim] for shape in tensors_shape], dim)


@_movement(lambda np, tensors, dim=0: np.concatenate(tensors, dim), {"tensors": _parts}, arity=2)
def cat(tensors, dim=0):
    """Tensors joined along a dim; the other sizes must agree, dtypes are promoted.

    >>> import tensorlib
    >>> cat([tensorlib.zeros(1, 2), tensorlib.ones(2, 2)]).shape
    (3, 2)
    """
    tensors = list(tensors)
    if not tensors:
        raise ShapeError("cat", "no tensors", "at least one", "pass a list of tensors")
    first = tensors[0]
    dim = axis("cat", dim, first.ndim)
    for x in tensors:
        if (
            x.ndim != first.ndim
            or x.ndim == 0
            or x.shape[:dim] + x.shape[dim + 1 :] != first.shape[:dim] + first.shape[dim + 1 :]
        ):
            got = f"shapes {first.shape} and {x.shape} along dim {dim}"
            raise ShapeError("cat", got, "shapes equal but for that dim, of at least 1 dim", "reshape one of them")
    shape = first.shape[:dim] + (sum(x.shape[dim] for x in tensors),) + first.shape[dim + 1 :]
    out, start = type(first).empty(shape, _dtype.result_type([x.dtype for x in tensors]), first.device), 0
    for x in tensors:
        copy_into(narrow(out, dim, start, x.shape[dim]), x)
        start += x.shape[dim]
    return out


def stack(tensors, dim=0):
    """Tensors of one shape joined along a new dim."""
    tensors = list(tensors)
    shapes = {x.shape for x in tensors}
    if len(shapes) != 1:
        raise ShapeError("stack", f"shapes {sorted(shapes)}", "one shape", "use cat, or reshape them")
    return cat([unsqueeze(x, dim) for x in tensors], axis("stack", dim, tensors[0].ndim + 1))


def split(x, size, dim=0):
    """Views of `size` elements of a dim each (the last may be shorter), or of the sizes in a list, which sum to the
    dim.
    """
    dim = axis("split", dim, x.ndim)
    total = x.shape[dim]
    if isinstance(size, int):
        if size <= 0:
            raise ShapeError("split", f"size {size}", "at least 1", "use a positive size")
        size = [min(size, total - i) for i in range(0, total, size)] or [0]
    if sum(size) != total:
        raise ShapeError(
            "split", f"sizes {list(size)} of a dim of {total}", f"sizes that sum to {total}", "change them"
        )
    starts = [sum(size[:i]) for i in range(len(size))]
    return tuple(narrow(x, dim, start, n) for start, n in zip(starts, size, strict=True))


def chunk(x, chunks, dim=0):
    """At most `chunks` views of equal size along a dim; the last may be shorter."""
    if chunks < 1:
        raise ShapeError("chunk", f"{chunks} chunks", "at least 1", "use a positive number")
    return split(x, max(1, -(-x.shape[axis("chunk", dim, x.ndim)] // chunks)), dim)


def unbind(x, dim=0):
    """The elements of a dim as a tuple of views without it."""
    if not x.ndim:
        raise ShapeError("unbind", "a 0-d tensor", "at least one dim", "use reshape(1) first")
    return tuple(select(x, dim, i) for i in range(x.shape[axis("unbind", dim, x.ndim)]))


@_composite(lambda np, x, shift, dim: np.roll(x, shift, dim))
def roll(x, shifts, dims=None):
    """Elements moved along dims, those that fall off coming in at the other end (flattened, if dims is None)."""
    if dims is None:
        return reshape(roll(flatten(x), shifts, 0), x.shape)
    shifts, dims = ((v,) if isinstance(v, int) else tuple(v) for v in (shifts, dims))
    dims = axes("roll", dims, x.ndim)
    if len(shifts) != len(dims):
        raise ShapeError("roll", f"{len(shifts)} shifts for {len(dims)} dims", "one per dim", "pair them up")
    for shift, dim in zip(shifts, dims):
        n = x.shape[dim]
        cut = -shift % n if n else 0
        x = cat([narrow(x, dim, cut, n - cut), narrow(x, dim, 0, cut)], dim)
    return x
