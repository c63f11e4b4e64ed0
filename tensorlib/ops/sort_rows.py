"""What the rows of `tensorlib.ops.sort` say beside the kernels: NumPy references and samplers."""


# ---- in order along a dim --------------------------------------------------------------------------------------------


def _order(np, x, dim, descending):
    """Indices in stable order; descending: of equal elements the first comes first, too."""
    if not descending:
        return np.argsort(x, dim, kind="stable")
    return np.flip(x.shape[dim] - 1 - np.argsort(np.flip(x, dim), dim, kind="stable"), dim)


def argsort_ref(np, x, dim=-1, descending=False, stable=False):
    """`argsort` in NumPy."""
    return _order(np, x, dim, descending)


def sort_ref(np, x, dim=-1, descending=False, stable=False):
    """`sort` in NumPy."""
    order = _order(np, x, dim, descending)
    return np.take_along_axis(x, order, dim), order


def topk_ref(np, x, k, dim=-1, largest=True, sorted=True):
    """`topk` in NumPy."""
    order = np.take(_order(np, x, dim, largest), np.arange(k), dim)
    return np.take_along_axis(x, order, dim), order


def kthvalue_ref(np, x, k, dim=-1, keepdim=False):
    """`kthvalue` in NumPy."""
    order = np.take(_order(np, x, dim, False), np.array([k - 1]), dim)
    values = np.take_along_axis(x, order, dim)
    return (values, order) if keepdim else (np.squeeze(values, dim), np.squeeze(order, dim))


def _rows(s, least=0):
    """An array of at least one dim, and one of its dims, of at least so many elements."""
    x = s.array(s.shape(min_dims=1, empty=least == 0))
    return x, s.integer(-x.ndim, x.ndim - 1)


def sort_domain(s, dtype):
    """Calls of `sort` and `argsort`."""
    x, dim = _rows(s)
    return (x,), {"dim": dim, "descending": s.boolean()}


def topk_domain(s, dtype):
    """Calls of `topk`."""
    x, dim = _rows(s)
    return (x, s.integer(0, x.shape[dim])), {"dim": dim, "largest": s.boolean()}


def kthvalue_domain(s, dtype):
    """Calls of `kthvalue`."""
    x, dim = _rows(s, 1)
    return (x, s.integer(1, x.shape[dim])), {"dim": dim, "keepdim": s.boolean()}


# ---- distinct values -------------------------------------------------------------------------------------------------


def unique_ref(np, x, sorted=True, return_inverse=False, return_counts=False):
    """`unique` in NumPy."""
    found = np.unique(x, return_inverse=True, return_counts=True, equal_nan=False)
    chosen = (found[0], *found[1:][:return_inverse], *found[2:][:return_counts])
    return chosen if len(chosen) > 1 else chosen[0]


def consecutive_ref(np, x, return_inverse=False, return_counts=False):
    """`unique_consecutive` in NumPy."""
    row = x.reshape(-1)
    first = np.ones(len(row), bool)
    first[1:] = row[1:] != row[:-1]
    starts = np.flatnonzero(first)
    inverse, counts = (np.cumsum(first) - 1).reshape(x.shape), np.diff(np.append(starts, len(row)))
    chosen = (row[starts], *([inverse] if return_inverse else []), *([counts] if return_counts else []))
    return chosen if len(chosen) > 1 else chosen[0]


def unique_domain(s, dtype):
    """Calls of `unique`."""
    return (s.array(s.shape(), low=-9, high=9),), {"return_inverse": s.boolean(), "return_counts": s.boolean()}


def consecutive_domain(s, dtype):
    """Calls of `unique_consecutive`."""
    return unique_domain(s, dtype)


# ---- searching and counting ------------------------------------------------------------------------------------------


def searchsorted_ref(np, sorted_sequence, input, out_int32=False, right=False, side=None, sorter=None):
    """`searchsorted` in NumPy."""
    side, kind = ("right" if right or side == "right" else "left"), np.int32 if out_int32 else np.int64
    if sorter is not None:
        sorted_sequence = np.take_along_axis(sorted_sequence, sorter, -1)
    if sorted_sequence.ndim == 1:
        return np.searchsorted(sorted_sequence, input, side).astype(kind)
    out = np.zeros(input.shape, kind)
    for at in np.ndindex(input.shape[:-1]):
        out[at] = np.searchsorted(sorted_sequence[at], input[at], side)
    return out


def bucketize_ref(np, input, boundaries, out_int32=False, right=False):
    """`bucketize` in NumPy."""
    return searchsorted_ref(np, boundaries, input, out_int32, right)


def histc_ref(np, input, bins=100, min=0, max=0):
    """`histc` in NumPy."""
    x = input.reshape(-1)
    if min == max == 0 and x.size:
        min, max = x.min(), x.max()
    low, high = (min - 1, max + 1) if min == max else (min, max)
    return np.histogram(x[(x >= low) & (x <= high)], bins, (low, high))[0].astype(np.float64)


def searchsorted_domain(s, dtype):
    """Calls of `searchsorted`: one sorted row for all, or rows of their own."""
    import numpy as np

    x = s.array(s.shape(min_dims=1))
    sequence = s.array((*(x.shape[:-1] if s.boolean() else ()), s.integer(0, 9)))
    return (np.sort(sequence, -1), x), {"right": s.boolean(), "out_int32": s.boolean()}


def bucketize_domain(s, dtype):
    """Calls of `bucketize`."""
    edges = s.array((s.integer(0, 9),))
    edges = edges[edges.argsort(kind="stable")]
    return (s.array(s.shape()), edges), {"right": s.boolean(), "out_int32": s.boolean()}


def bincount_domain(s, dtype):
    """Calls of `bincount`."""
    n = s.integer(0, 20)
    x = s.array((n,), dtype if dtype in ("i64", "i32", "u8") else "i64", low=0, high=12)
    weights = s.array((n,), "f64", low=-2, high=2) if s.boolean() else None
    return (x, weights), {"minlength": s.integer(0, 16)}


def histc_domain(s, dtype):
    """Calls of `histc`; no element is on an edge by rounding: bins have halves for edges, numbers seldom have."""
    x = s.array(s.shape(), low=-8, high=8)
    return (x,), {"bins": s.pick((1, 4, 8)), "min": -4, "max": s.pick((4, 0, 12))}
