"""What ops that are made of others mean in NumPy, by name, where their rows do not say it: ref(np, *arguments)."""

import math
from itertools import combinations as _combinations
from itertools import combinations_with_replacement as _repeated

# ---- one and two operands --------------------------------------------------------------------------------------------


def _mapped(np, function, x):
    return np.vectorize(function, otypes=[np.float64])(x)


def digamma(np, x):
    """By its series of Bernoulli numbers, after the argument was raised above 20."""

    def one(v):
        if v != v or v == -math.inf or (v <= 0 and v == math.floor(v) and v):
            return math.nan
        if v == 0:
            return -math.copysign(math.inf, v)
        if v < 0.5:
            return one(1 - v) - math.pi / math.tan(math.pi * (v - round(v)))
        shift = 0.0
        if v > 1e20:
            return math.log(v)
        while v < 20:
            shift, v = shift - 1 / v, v + 1
        series = sum(b / v**k for k, b in ((2, 1 / 12), (4, -1 / 120), (6, 1 / 252), (8, -1 / 240), (10, 1 / 132)))
        return shift + math.log(v) - 0.5 / v - series

    return _mapped(np, one, x)


def erfinv(np, x):
    """By Newton's steps on erf, or on erfc near the ends, from Winitzki's approximation."""

    def one(v):
        a = abs(v)
        if not a < 1:
            return math.copysign(math.inf, v) if a == 1 else math.nan
        logs, k = -math.log1p(-a * a), 2 / (0.147 * math.pi)
        w = math.sqrt(max(math.sqrt((k - logs / 2) ** 2 + logs / 0.147) - (k - logs / 2), 0.0))
        for _ in range(60):
            rest = math.erf(w) - a if a < 0.5 else (1 - a) - math.erfc(w)
            step = rest * math.sqrt(math.pi) / 2 * math.exp(w * w)
            w -= step / (1 + w * step)
            if abs(step) <= 1e-16 * w:
                break
        return math.copysign(w, v)

    return _mapped(np, one, x)


def entr(np, x):
    return np.where(x > 0, -x * np.log(np.where(x > 0, x, 1)), np.where(x == 0, 0, np.where(np.isnan(x), x, -np.inf)))


def xlog1py(np, x, y):
    return np.where((x == 0) & ~np.isnan(y), 0, x * np.log1p(y))


def prelu(np, x, weight):
    return np.where(x > 0, x, x * weight)


def nan_to_num(np, x):
    top = np.finfo(x.dtype).max
    return np.where(np.isnan(x), 0, np.clip(x, -top, top))


# ---- matrices --------------------------------------------------------------------------------------------------------


def addmm(np, x, a, b, beta=1, alpha=1):
    return beta * x + alpha * np.matmul(a, b)


addmv = baddbmm = addmm


def addr(np, x, a, b, beta=1, alpha=1):
    return beta * x + alpha * (a[:, None] * b)


def addbmm(np, x, a, b, beta=1, alpha=1):
    return beta * x + alpha * np.sum(np.matmul(a, b), 0)


def bilinear(np, x, y, weight, bias=None):
    return np.einsum("bm,nmk,bk->bn", x, weight, y) + (0 if bias is None else bias)


def cdist(np, x, y, p=2.0):
    return np.sqrt(np.sum((x[..., :, None, :] - y[..., None, :, :]) ** 2, -1))


def diag_embed(np, x, offset=0):
    return np.diag(x, offset)


def block_diag(np, *xs):
    out = np.zeros([sum(n) for n in zip(*(x.shape for x in xs))], xs[0].dtype)
    at = [0, 0]
    for x in xs:
        out[at[0] : at[0] + x.shape[0], at[1] : at[1] + x.shape[1]] = x
        at = [a + n for a, n in zip(at, x.shape)]
    return out


# ---- pieces ----------------------------------------------------------------------------------------------------------


def cartesian_prod(np, *xs):
    return np.stack([g.reshape(-1) for g in np.meshgrid(*xs, indexing="ij")], -1)


def combinations(np, x, r=2, with_replacement=False):
    places = list((_repeated if with_replacement else _combinations)(range(len(x)), r))
    return x[np.array(places, np.int64).reshape(-1, r)]


def as_strided(np, x, size, stride, storage_offset=0):
    places = storage_offset + sum(np.indices(size)[d] * step for d, step in enumerate(stride))
    return x[places]


def pixel_shuffle(np, x, r):
    n, c, h, w = x.shape
    cut = x.reshape(n, c // (r * r), r, r, h, w)
    return np.transpose(cut, (0, 1, 4, 2, 5, 3)).reshape(n, c // (r * r), h * r, w * r)


def pixel_unshuffle(np, x, r):
    n, c, h, w = x.shape
    cut = x.reshape(n, c, h // r, r, w // r, r)
    return np.transpose(cut, (0, 1, 3, 5, 2, 4)).reshape(n, c * r * r, h // r, w // r)


def channel_shuffle(np, x, groups):
    n, c, *rest = x.shape
    return np.swapaxes(x.reshape(n, groups, c // groups, *rest), 1, 2).reshape(x.shape)


def var(np, x, dim=None, correction=1, keepdim=False):
    return np.var(x, dim, keepdims=keepdim, ddof=correction)


def std(np, x, dim=None, correction=1, keepdim=False):
    return np.std(x, dim, keepdims=keepdim, ddof=correction)


def norm(np, x, p=2, dim=None, keepdim=False):
    size = np.abs(x)
    if abs(p) == float("inf"):
        return (np.max if p > 0 else np.min)(size, dim, keepdims=keepdim)
    return np.sum(size**p, dim, keepdims=keepdim) ** (1 / p)


def glu(np, x, dim=-1):
    a, b = np.split(x, 2, dim)
    return a / (1 + np.exp(-b))


def softmin(np, x, dim=-1):
    e = np.exp(np.min(x, dim, keepdims=True) - x)
    return e / np.sum(e, dim, keepdims=True)


# ---- indices ---------------------------------------------------------------------------------------------------------


def take_along_dim(np, x, indices, dim=None):
    return np.take_along_axis(x, indices, dim)


def _written(np, x, key, value):
    out = x.copy()
    out[key] = value
    return out


def _at(x, dim, key):
    return (slice(None),) * (dim % x.ndim) + (key,)


def index_copy(np, x, dim, index, source):
    return _written(np, x, _at(x, dim, index), source)


index_fill = index_copy


def put(np, x, index, source):
    return _written(np, x.reshape(-1), index, source).reshape(x.shape)


def masked_scatter(np, x, mask, source):
    return _written(np, x, mask, source[: int(mask.sum())])


def select_scatter(np, x, src, dim, index):
    return _written(np, x, _at(x, dim, index), src)


def slice_scatter(np, x, src, dim=0, start=None, end=None, step=1):
    return _written(np, x, _at(x, dim, slice(start, end, step)), src)


def diagonal_scatter(np, x, src, offset=0):
    i = np.arange(len(src))
    return _written(np, x, (i - min(offset, 0), i + max(offset, 0)), src)


def index_put(np, x, indices, values):
    return _written(np, x, tuple(indices), values)


def scatter_reduce(np, x, dim, index, src, reduce):
    out, places = x.copy(), list(np.indices(index.shape))
    places[dim] = index
    combine = {"sum": np.add, "prod": np.multiply, "amax": np.maximum, "amin": np.minimum}[reduce]
    combine.at(out, tuple(places), src[tuple(slice(n) for n in index.shape)])
    return out


def index_reduce(np, x, dim, index, source, reduce):
    out = x.copy()
    combine = {"prod": np.multiply, "amax": np.maximum, "amin": np.minimum}[reduce]
    combine.at(out, _at(x, dim, index), source)
    return out


def embedding_bag(np, ids, weight, mode="mean"):
    return {"mean": np.mean, "sum": np.sum, "max": np.max}[mode](weight[ids], 1)


def unfold(np, x, kernel_size):
    windows = np.lib.stride_tricks.sliding_window_view(x, (kernel_size,) * 2, (2, 3))
    return np.transpose(windows, (0, 1, 4, 5, 2, 3)).reshape(x.shape[0], x.shape[1] * kernel_size**2, -1)


# ---- transforms: complex numbers are pairs in a last dim -------------------------------------------------------------


def _pairs(np, z):
    return np.stack([z.real, z.imag], -1)


def r2c(np, x, scale):
    return scale * _pairs(np, np.fft.rfft(x))


def c2r(np, x, n, scale):
    return scale * n * np.fft.irfft(x[..., 0] + 1j * x[..., 1], n)


def c2c(np, x, dims, inverse, scale):
    z = x[..., 0] + 1j * x[..., 1]
    sizes = math.prod(z.shape[d] for d in dims)
    return scale * _pairs(np, np.fft.ifftn(z, axes=dims) * sizes if inverse else np.fft.fftn(z, axes=dims))


# ---- losses ----------------------------------------------------------------------------------------------------------


def _reduced(np, loss, reduction):
    return {"mean": np.mean, "sum": np.sum, "none": lambda x: x}[reduction](loss)


def l1_loss(np, x, y, reduction="mean"):
    return _reduced(np, np.abs(x - y), reduction)


def smooth_l1_loss(np, x, y, reduction="mean", beta=1.0):
    d = np.abs(x - y)
    return _reduced(np, np.where(d < beta, 0.5 * d * d / beta, d - 0.5 * beta), reduction)


def huber_loss(np, x, y, reduction="mean", delta=1.0):
    d = np.abs(x - y)
    return _reduced(np, np.where(d <= delta, 0.5 * d * d, delta * (d - 0.5 * delta)), reduction)


def poisson_nll_loss(np, x, y, log_input=True, full=False, eps=1e-8, reduction="mean"):
    return _reduced(np, np.exp(x) - y * x, reduction)


def binary_cross_entropy(np, x, y, weight=None, reduction="mean"):
    return _reduced(np, -(y * np.log(x) + (1 - y) * np.log1p(-x)), reduction)


def binary_cross_entropy_with_logits(np, x, y, weight=None, reduction="mean", pos_weight=None):
    return _reduced(np, (1 - y) * x + np.logaddexp(0, -x), reduction)


def gaussian_nll_loss(np, x, y, var, full=False, eps=1e-6, reduction="mean"):
    return _reduced(np, 0.5 * (np.log(var) + (x - y) ** 2 / var), reduction)


def kl_div(np, x, y, reduction="mean", log_target=False):
    return _reduced(np, np.exp(y) * (y - x) if log_target else y * (np.log(y) - x), reduction)


def margin_ranking_loss(np, a, b, target, margin=0.0, reduction="mean"):
    return _reduced(np, np.maximum(0, -target * (a - b) + margin), reduction)


def hinge_embedding_loss(np, x, target, margin=1.0, reduction="mean"):
    return _reduced(np, np.where(target == 1, x, np.maximum(0, margin - x)), reduction)


def cosine_similarity(np, a, b, dim=1, eps=1e-8):
    sizes = np.sqrt(np.sum(a * a, dim)) * np.sqrt(np.sum(b * b, dim))
    return np.sum(a * b, dim) / sizes


def cosine_embedding_loss(np, a, b, target, margin=0.0, reduction="mean"):
    sizes = [np.sum(x * x, 1) + 1e-12 for x in (a, b)]
    c = np.sum(a * b, 1) / np.sqrt(sizes[0] * sizes[1])
    return _reduced(np, np.where(target == 1, 1 - c, np.maximum(0, c - margin)), reduction)


def pairwise_distance(np, a, b, p=2.0, eps=1e-6, keepdim=False):
    return np.sqrt(np.sum((a - b + eps) ** 2, -1, keepdims=keepdim))


def triplet_margin_loss(np, a, p, n, margin=1.0):
    return np.mean(np.maximum(0, pairwise_distance(np, a, p) - pairwise_distance(np, a, n) + margin))


def normalize(np, x, p=2.0, dim=1, eps=1e-12):
    return x / np.sqrt(np.sum(x * x, dim, keepdims=True))


def info_nce(np, q, k, negatives=None, temperature=0.1):
    q, k = (normalize(np, x, dim=-1) for x in (q, k))
    own = np.sum(q * k, -1)
    others = q @ k.T if negatives is None else (normalize(np, negatives, dim=-1) @ q[..., None])[..., 0]
    every = others if negatives is None else np.concatenate([own[:, None], others], 1)
    return np.mean(np.log(np.sum(np.exp(every / temperature), 1)) - own / temperature)


def nll_loss(np, x, target, reduction="mean"):
    return _reduced(np, -x[np.arange(len(target)), target], reduction)


def cross_entropy(np, x, target, reduction="mean", label_smoothing=0.0):
    top = np.max(x, 1, keepdims=True)
    logs = x - top - np.log(np.sum(np.exp(x - top), 1, keepdims=True))
    loss = -(1 - label_smoothing) * logs[np.arange(len(target)), target]
    return _reduced(np, loss - label_smoothing * np.mean(logs, 1), reduction)


# ---- norms -----------------------------------------------------------------------------------------------------------


def _standard(np, x, dims, eps):
    centred = x - np.mean(x, dims, keepdims=True)
    return centred / np.sqrt(np.mean(centred * centred, dims, keepdims=True) + eps)


def group_norm(np, x, groups, eps=1e-5):
    cut = x.reshape(x.shape[0], groups, -1)
    return _standard(np, cut, (2,), eps).reshape(x.shape)


def instance_norm(np, x, eps=1e-5):
    return _standard(np, x, tuple(range(2, x.ndim)), eps)


def batch_norm(np, x, training=True, eps=1e-5):
    return _standard(np, x, (0, *range(2, x.ndim)), eps)


def local_response_norm(np, x, size, alpha=1e-4, beta=0.75, k=1.0):
    c, squares = x.shape[1], x * x
    sums = [np.sum(squares[:, max(0, i - size // 2) : i + (size - 1) // 2 + 1], 1) for i in range(c)]
    return x / (k + alpha / size * np.stack(sums, 1)) ** beta
