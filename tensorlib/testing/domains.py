"""How calls to rows are drawn, where bounds of their operands are not enough: a row that says nothing itself
has the function of its name here as its domain.

Each takes a sampler `s` (`tensorlib.testing.Sampler`) and a dtype, and gives (args, kwargs) of NumPy arrays and plain
values. Nothing here runs but in tests, so that NumPy is never imported for it.
"""

from tensorlib import layout as _layout


def _with_dim(s, empty=True):
    """(array of at least one dim, one of its dims, counted from either end)"""
    x = s.array(s.shape(1, empty=empty))
    return x, s.integer(-x.ndim, x.ndim - 1)


def _contiguous(x):
    return x.copy(order="C")


# ---- movement --------------------------------------------------------------------------------------------------------


def _array(s, dtype):
    return (s.array(s.shape()),), {}


def _row(s, dtype):
    return (s.array(s.shape(1)),), {}


def cast(s, dtype):
    # every pair of dtypes is in tests/ops/test_elementwise.py
    return (s.array(s.shape()), "f64" if s.smooth else s.pick(["f32", "f64", "i32", "i64", "bool"])), {}


def reshape(s, dtype):
    x = s.array(s.shape())
    return (x, *s.pick([(x.size,), tuple(s.order(x.shape)), (1, *x.shape), (*x.shape, 1)])), {}


def view(s, dtype):
    (x, *shape), _ = reshape(s, dtype)
    return (_contiguous(x), *shape), {}


def transpose(s, dtype):
    x = s.array(s.shape(1))
    return (x, *(s.integer(-x.ndim, x.ndim - 1) for _ in range(2))), {}


def permute(s, dtype):
    x = s.array(s.shape())
    return (x, *s.order(range(x.ndim))), {}


def movedim(s, dtype):
    x = s.array(s.shape(1))
    count = s.integer(1, x.ndim)
    return (x, tuple(s.order(range(x.ndim))[:count]), tuple(s.order(range(x.ndim))[:count])), {}


def unsqueeze(s, dtype):
    x = s.array(s.shape(max_dims=3))
    return (x, s.integer(-x.ndim - 1, x.ndim)), {}


def squeeze(s, dtype):
    x = s.array(s.shape())
    return (x,), {"dim": s.pick([None, s.integer(-x.ndim, x.ndim - 1)] if x.ndim else [None])}


def _expandable(s):
    small, other = s.broadcastable(2)
    return s.array(small), _layout.broadcast_shapes("expand", small, other)


def expand(s, dtype):
    x, shape = _expandable(s)
    return (x, *shape), {}


def broadcast_to(s, dtype):
    return _expandable(s), {}


def narrow(s, dtype):
    x, dim = _with_dim(s)
    start = s.integer(0, x.shape[dim])
    return (x, dim, start, s.integer(0, x.shape[dim] - start)), {}


def select(s, dtype):
    x, dim = _with_dim(s, empty=False)
    return (x, dim, s.integer(-x.shape[dim], x.shape[dim] - 1)), {}


def flatten(s, dtype):
    x = s.array(s.shape(1))
    first = s.integer(0, x.ndim - 1)
    return (x, first, s.integer(first, x.ndim - 1)), {}


def flip(s, dtype):
    x = s.array(s.shape(1))
    return (x, *s.order(range(x.ndim))[: s.integer(1, x.ndim)]), {}


def diagonal(s, dtype):
    x = s.array(s.shape(2))
    a, b = s.order(range(x.ndim))[:2]
    return (x, s.integer(-4, 4), a, b - x.ndim * s.boolean()), {}


def copy_(s, dtype):
    x, shape = _expandable(s)
    return (s.array(shape), x), {}


def cat(s, dtype):
    shape = s.shape(1, 3)
    dim = s.integer(-len(shape), len(shape) - 1)
    at = dim % len(shape)
    sizes = [shape[at], *(s.pick([0, 1, 3]) for _ in range(s.integer(0, 2)))]
    return ([s.array((*shape[:at], n, *shape[at + 1 :])) for n in sizes],), {"dim": dim}


def repeat(s, dtype):
    x = s.array(s.shape(max_dims=3) if s.integer(0, 3) else (3, 2))
    most = 3 if x.size < 700 else 1
    return (x, *(s.integer(0, most) for _ in range(x.ndim + s.integer(0, 1)))), {}


def roll(s, dtype):
    x, dim = _with_dim(s)
    return (x, s.integer(-9, 9), dim), {}


# ---- elementwise -----------------------------------------------------------------------------------------------------


def where(s, dtype):
    shapes = s.broadcastable(3)
    return (s.array(shapes[0], "bool"), *(s.array(shape) for shape in shapes[1:])), {}


# ---- reductions and scans --------------------------------------------------------------------------------------------


def _extreme(s, dtype):
    """Of some elements at least."""
    x = s.array(s.shape(empty=False) if s.smooth or s.integer(0, 2) else s.long())
    return (x,), {"dim": s.dims(x.ndim), "keepdim": s.boolean()}


def _arg(s, dtype):
    x = s.array(s.shape(empty=False) if s.smooth or s.integer(0, 2) else s.long())
    return (x,), {"dim": s.dims(x.ndim, several=False), "keepdim": s.boolean()}


amax = amin = _extreme
argmax = argmin = _arg


def var(s, dtype):
    x = s.array(s.shape())
    return (x,), {"dim": s.dims(x.ndim), "correction": s.integer(0, 2), "keepdim": s.boolean()}


std = var


def prod(s, dtype):
    (x,), options = _extreme(s, dtype)
    return (s.array(x.shape, None, -2, 2) if s.boolean() else x,), options


def norm(s, dtype):
    (x,), options = _extreme(s, dtype)
    return (x, s.pick([2, 1, 3, float("inf"), -float("inf")])), options


# ---- indices ---------------------------------------------------------------------------------------------------------


def _indices(s, shape, size):
    """Integers that are indices of a dim of that size, negative ones too."""
    return s.array(shape, s.pick(["i64", "i64", "i32"]), -size, size - 1)


def index_select(s, dtype):
    x, dim = _with_dim(s, empty=False)
    return (x, dim, _indices(s, (s.pick([0, 1, 4, 9]),), x.shape[dim])), {}


def gather(s, dtype):
    x, dim = _with_dim(s, empty=False)
    shape = [s.integer(min(1, n), n) for n in x.shape]
    shape[dim] = s.integer(0, 2 * x.shape[dim])
    return (x, dim, _indices(s, tuple(shape), x.shape[dim])), {}


def scatter_add(s, dtype):
    (x, dim, index), _ = gather(s, dtype)
    return (x, dim, index, s.array(tuple(n + s.pick([0, 0, 1]) for n in index.shape))), {}


def scatter(s, dtype):
    args, _ = scatter_add(s, dtype)
    return (args if s.boolean() else (*args[:3], s.integer(0, 1))), {}


scatter_, scatter_add_ = scatter, scatter_add
nonzero = argwhere = _array


def masked_select(s, dtype):
    shapes = s.broadcastable(2)
    return (s.array(shapes[0]), s.array(shapes[1], "bool")), {}


def _slice(s, n):
    bounds = [s.pick([None, s.integer(-n - 2, n + 2)]) for _ in range(2)]
    return slice(*bounds, s.pick([None, 1, 2, 3, -1, -2]))


def _key(s, shape):
    """A key that NumPy reads as we do: integers, or at most one array or mask, beside slices, None and an ellipsis."""
    out, used, integers = [], False, s.boolean()
    for n in shape[: s.integer(0, len(shape))]:
        kind = s.pick(["slice", "slice", "integer" if integers else "array", "mask", "none"])
        if kind == "none":
            out.append(None)
        if kind == "integer" and n:
            out.append(s.integer(-n, n - 1))
        elif kind == "array" and n and not used:
            out.append(_indices(s, s.pick([(3,), (1, 4), (0,)]), n))
            used = True
        elif kind == "mask" and not used and not integers:
            out.append(s.array((n,), "bool"))
            used = True
        else:
            out.append(_slice(s, n))
    return (*out, Ellipsis) if s.boolean() else tuple(out)


def getitem(s, dtype):
    x = s.array(s.shape())
    return (x, _key(s, x.shape)), {}


def setitem(s, dtype):
    x = s.array(s.shape())
    where = _key(s, x.shape)
    shape = x[where].shape
    value = s.array(shape[s.integer(0, len(shape)) :]) if s.boolean() else s.integer(0, 1)
    return (x, where, value), {}


def extreme_free(s, dtype):
    """Of a reduction of any elements, by name."""
    x = s.array(s.shape(empty=False))
    return (x,), {"dim": s.dims(x.ndim), "keepdim": s.boolean()}
