"""Domains of ops that are made of others, by name: see `tensorlib.testing.domains`."""

from tensorlib.testing.domains import _array, _row, _with_dim, extreme_free, scatter_add

# ---- one operand -----------------------------------------------------------------------------------------------------

deg2rad = rad2deg = relu6 = hardtanh = hardshrink = softshrink = softsign = frac = isneginf = isposinf = _array
nan_to_num = _array


def elementwise(count, low=None, high=None):
    """Operands whose shapes broadcast, in [low, high]."""

    def domain(s, dtype):
        return tuple(s.array(shape, None, low, high) for shape in s.broadcastable(count)), {}

    return domain


entr = elementwise(1, 0, 4)
addcdiv, clamp_max, clamp_min = elementwise(3), elementwise(2), elementwise(2)
isclose, ldexp = elementwise(2), elementwise(2, -9, 9)
float_power = elementwise(2, 0.1, 4)
xlog1py = elementwise(2, 0.1, 9)


def threshold(s, dtype):
    return (s.array(s.shape()), s.integer(-5, 5), s.integer(-5, 5)), {}


def prelu(s, dtype):
    return (s.array(s.shape(2)), s.array((1,), None, -1, 1)), {}


# ---- matrices --------------------------------------------------------------------------------------------------------


def _matrices(s, *shapes, low=-9, high=9):
    sizes = {k: s.integer(1, 3 if s.smooth else 9) for k in "bmnk"}
    return tuple(s.array(tuple(sizes[k] for k in shape), None, low, high) for shape in shapes)


def _scaled(*shapes):
    def domain(s, dtype):
        return _matrices(s, *shapes), {"beta": s.pick([1, 0.5]), "alpha": s.pick([1, 2.0])}

    return domain


addmm, addmv, addr = _scaled("mn", "mk", "kn"), _scaled("m", "mk", "k"), _scaled("mn", "m", "n")
baddbmm, addbmm = _scaled("bmn", "bmk", "bkn"), _scaled("mn", "bmk", "bkn")


def bilinear(s, dtype):
    return _matrices(s, "bm", "bk", "nmk", "n"), {}


def _of(*shapes):
    return lambda s, dtype: (_matrices(s, *shapes), {})


outer, inner, vdot, trace = _of("m", "n"), _of("bk", "mk"), _of("k", "k"), _of("mn")
cdist = _of("bk", "mk")


def corrcoef(s, dtype):
    return (s.array((s.integer(2, 4), s.integer(3, 9)), None, -9, 9),), {}


cov = corrcoef


def vecdot(s, dtype):
    return tuple(s.array(shape, None, -9, 9) for shape in [s.shape(1, 3)] * 2), {}


def dist(s, dtype):
    shape = s.shape(1, 2, empty=False)
    return (*(s.array(shape, None, -9, 9) for _ in range(2)), s.pick([1, 2])), {}


def cross(s, dtype):
    shape = (*s.shape(0, 2), 3)
    return tuple(s.array(shape, None, -9, 9) for _ in range(2)), {"dim": -1}


def kron(s, dtype):
    shapes = [s.shape(2, 2, empty=False) for _ in range(2)]
    return tuple(s.array(tuple(min(n, 6) for n in shape), None, -9, 9) for shape in shapes), {}


def tensordot(s, dtype):
    return (*_matrices(s, "mk", "kn"), 1), {}


def einsum(s, dtype):
    text = s.pick(["mk,kn->mn", "bmk,bkn->bmn", "mn->nm", "mk,mk->", "bmk->bk"])
    return (text, *_matrices(s, *text.partition("->")[0].split(","))), {}


def diag(s, dtype):
    return (s.array(s.shape(2, 2)), s.integer(-2, 2)), {}


def diagflat(s, dtype):
    return (s.array((s.integer(1, 6),)), s.integer(-2, 2)), {}


diag_embed = diagflat


# ---- joins and pieces ------------------------------------------------------------------------------------------------


def _alike(s, dtype):
    shape = s.shape(2, 3)
    return tuple(s.array(shape) for _ in range(s.integer(1, 3))), {}


hstack = vstack = dstack = column_stack = _alike


def fliplr(s, dtype):
    return (s.array(s.shape(2)),), {}


flipud = _row


def rot90(s, dtype):
    return (s.array(s.shape(2)), s.integer(-3, 3)), {}


def tile(s, dtype):
    x = s.array(s.shape(1, 2))
    return (x, tuple(s.integer(0, 2) for _ in x.shape)), {}


def meshgrid(s, dtype):
    return tuple(s.array((s.integer(1, 6),)) for _ in range(2)), {"indexing": s.pick(["ij", "xy"])}


cartesian_prod = lambda s, dtype: (meshgrid(s, dtype)[0], {})  # noqa: E731


def block_diag(s, dtype):
    return tuple(s.array(s.shape(2, 2)) for _ in range(2)), {}


def pad(s, dtype):
    x = s.array(s.shape(1))
    return (x, tuple(s.integer(0, 3) for _ in range(2 * s.integer(1, min(x.ndim, 3))))), {}


def combinations(s, dtype):
    return (s.array((s.integer(0, 7),)), s.integer(1, 3)), {"with_replacement": s.boolean()}


def sliding_windows(s, dtype):
    x, dim = _with_dim(s, empty=False)
    return (x, dim, s.integer(1, x.shape[dim]), s.integer(1, 3)), {}


def as_strided(s, dtype):
    return (s.array((30,)).copy(), (s.integer(1, 3), 2), (s.integer(1, 5), s.integer(1, 3)), s.integer(0, 4)), {}


def pixel_shuffle(s, dtype):
    r = s.integer(1, 2)
    return (s.array((s.integer(1, 2), r * r * s.integer(1, 2), 2, s.integer(1, 3))), r), {}


def pixel_unshuffle(s, dtype):
    r = s.integer(1, 2)
    return (s.array((s.integer(1, 2), 2, 2 * r, r * s.integer(1, 3))), r), {}


def channel_shuffle(s, dtype):
    groups = s.integer(1, 3)
    return (s.array((2, groups * s.integer(1, 2), 3)), groups), {}


def glu(s, dtype):
    return (s.array((*s.shape(0, 2), 2 * s.integer(1, 4))),), {}


# ---- indices ---------------------------------------------------------------------------------------------------------

scatter_prod = scatter_amax = scatter_amin = scatter_add


def take(s, dtype):
    x = s.array(s.shape(1, empty=False))
    return (x, s.array(s.shape(0, 2), "i64", -x.size, x.size - 1)), {}


def take_along_dim(s, dtype):
    x, dim = _with_dim(s, empty=False)
    shape = (*x.shape[: dim % x.ndim], s.integer(0, 4), *x.shape[dim % x.ndim + 1 :])
    return (x, s.array(shape, "i64", -x.shape[dim], x.shape[dim] - 1), dim), {}


def one_hot(s, dtype):
    return (s.array(s.shape(), "i64", 0, 5), 6), {}


def isin(s, dtype):
    return (s.array(s.shape(), None, -3, 3), s.array((s.integer(0, 6),), None, -3, 3)), {}


def _picked(s, x, dim):
    """Different indices of a dim, and a source of that many slices."""
    count = s.integer(1, x.shape[dim])
    ids = s.array((count,), "i64", 0, 0) + s.order(range(x.shape[dim]))[:count]
    at = dim % x.ndim
    return ids, s.array((*x.shape[:at], count, *x.shape[at + 1 :]))


def index_copy(s, dtype):
    x, dim = _with_dim(s, empty=False)
    return (x, dim, *_picked(s, x, dim)), {}


def index_fill(s, dtype):
    x, dim = _with_dim(s, empty=False)
    return (x, dim, _picked(s, x, dim)[0], s.integer(0, 1)), {}


def put(s, dtype):
    x = s.array(s.shape(1, empty=False))
    count = s.integer(1, x.size)
    return (x, s.array((count,), "i64", 0, 0) + s.order(range(x.size))[:count], s.array((count,))), {}


def masked_scatter(s, dtype):
    shape = s.shape(1)
    mask = s.array(shape, "bool")
    return (s.array(shape), mask, s.array((mask.size,))), {}


def select_scatter(s, dtype):
    x, dim = _with_dim(s, empty=False)
    at = dim % x.ndim
    return (x, s.array(x.shape[:at] + x.shape[at + 1 :]), dim, s.integer(-x.shape[dim], x.shape[dim] - 1)), {}


def slice_scatter(s, dtype):
    x, dim = _with_dim(s)
    at, step = dim % x.ndim, s.integer(1, 3)
    start = s.integer(0, x.shape[at])
    size = len(range(start, x.shape[at], step))
    return (x, s.array((*x.shape[:at], size, *x.shape[at + 1 :])), dim, start, None, step), {}


def diagonal_scatter(s, dtype):
    x = s.array(s.shape(2, 2, empty=False))
    offset = s.integer(1 - x.shape[0], x.shape[1] - 1)
    size = min(x.shape[0] + min(offset, 0), x.shape[1] - max(offset, 0))
    return (x, s.array((size,)), offset), {}


def index_put(s, dtype):
    x = s.array(s.shape(1, empty=False))
    ids, _ = _picked(s, x, 0)
    return (x, (ids,), s.array((len(ids), *x.shape[1:]))), {}


def scatter_reduce(s, dtype):
    (x, dim, index, src), _ = scatter_add(s, dtype)
    return (x, dim, index, src, s.pick(["sum", "amax", "amin"])), {}


def index_reduce(s, dtype):
    x, dim = _with_dim(s, empty=False)
    return (x, dim, *_picked(s, x, dim), s.pick(["amax", "amin"])), {}


def embedding_bag(s, dtype):
    v = s.integer(1, 5)
    ids = s.array((s.integer(1, 4), s.integer(1, 3)), "i64", 0, v - 1)
    return (ids, s.array((v, s.integer(1, 4)))), {"mode": s.pick(["sum", "mean", "max"])}


def unfold(s, dtype):
    return (s.array((s.integer(1, 2), s.integer(1, 2), s.integer(3, 5), s.integer(3, 6))), s.integer(1, 3)), {}


# ---- transforms ------------------------------------------------------------------------------------------------------


def r2c(s, dtype):
    return (s.array((*s.shape(0, 2), s.integer(1, 3 if s.smooth else 30)), None, -9, 9), s.pick([1, 0.5])), {}


def c2r(s, dtype):
    n = s.integer(1, 3 if s.smooth else 30)
    return (s.array((*s.shape(0, 2), n // 2 + 1, 2), None, -9, 9), n, s.pick([1, 0.5])), {}


def c2c(s, dtype):
    x = s.array((*s.shape(1, 2, empty=False), 2), None, -9, 9)
    return (x, tuple(range(x.ndim - 1))[-s.integer(1, 2) :], s.boolean(), s.pick([1, 0.5])), {}


# ---- statistics ------------------------------------------------------------------------------------------------------


def diff(s, dtype):
    x, dim = _with_dim(s, empty=False)
    return (x, s.integer(1, 2), dim), {}


trapezoid = lambda s, dtype: ((s.array(s.shape(1, empty=False), None, -9, 9),), {})  # noqa: E731
nansum = nanmean = extreme_free


def median(s, dtype):
    return (s.array(s.shape(1, empty=False)),), {"dim": None}


nanmedian = median


def quantile(s, dtype):
    x, dim = s.array(s.shape(1, empty=False), None, -9, 9), None
    return (x, s.pick([0.0, 0.25, 0.5, 0.9, 1.0])), {"dim": dim, "keepdim": s.boolean()}


nanquantile = quantile


def softmin(s, dtype):
    x, dim = _with_dim(s, empty=False)
    return (x, dim), {}
