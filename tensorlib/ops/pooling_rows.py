"""What the rows of pools and interpolation say beside the kernel: NumPy references and samplers.

A reference applies the same lists of indices, one matrix per dim, that the kernel gets; what the lists should be is
tested against windows and PyTorch.
"""

from itertools import product
from math import prod


def reference(plan, dims):
    """The NumPy meaning of (kernel, axes, size, divisor) that `plan` gives for an op's name, dims, shape, arguments."""

    def ref(np, input, *args, **kwargs):
        short = {"align_corners": "align", "recompute_scale_factor": "recompute", "kernel_size": "kernel"}
        short |= {"count_include_pad": "include_pad", "divisor_override": "divisor"}
        kwargs = {short.get(k, k): v for k, v in kwargs.items()}
        kernel, axes, size, divisor = plan("", dims, input.shape, *args, **kwargs)
        lists = [list(make(*own)) for make, *own in axes]
        if kernel in ("largest", "indices"):
            values, indices = _maxima(np, input, lists, size)
            return (values, indices) if kernel == "indices" else values
        if kernel == "nearest":
            for d, rows in enumerate(lists, input.ndim - len(axes)):
                input = np.take(input, [row[1][0] for row in rows], d)
            return input
        out = _means(np, input, lists)
        return out / divisor if divisor else out

    return ref


def _means(np, x, lists):
    for d, rows in enumerate(lists, x.ndim - len(lists)):
        matrix = np.zeros((len(rows), x.shape[d]))
        for o, (divisor, indices, weights) in enumerate(rows):
            for i, w in zip(indices, weights or [1 / divisor] * len(indices)):
                matrix[o, i] += w
        x = np.moveaxis(np.tensordot(x, matrix, ((d,), (1,))), -1, d)
    return x


def _maxima(np, x, lists, size):
    """The largest element of each window, and its place: the first of equal ones, the last NaN."""
    lead, plane = x.shape[: x.ndim - len(size)], x.shape[x.ndim - len(size) :]
    if 0 in size:
        return x.reshape(-1)[:0].reshape(*lead, *size), np.zeros((*lead, *size), np.int64)
    numbers, values, where = np.arange(prod(plane)).reshape(plane), [], []
    for at in product(*([row[1] for row in rows] for rows in lists)):
        part, places = x[(..., *np.ix_(*at))].reshape(*lead, -1), numbers[np.ix_(*at)].reshape(-1)
        nan = np.isnan(part)
        last = part.shape[-1] - 1 - np.argmax(nan[..., ::-1], -1)
        values.append(np.max(part, -1))
        where.append(places[np.where(nan.any(-1), last, np.argmax(part, -1))])
    return tuple(np.stack(v, -1).reshape(*lead, *size) for v in (values, where))


# ---- samplers --------------------------------------------------------------------------------------------------------


def _lead(s):
    return (s.integer(1, 3),) if s.boolean() else (s.integer(1, 2), s.integer(1, 3))


def _window(s, dims, dilated):
    """(size, arguments) of a pool with a window."""
    kernel, stride = (tuple(s.integer(1, 3) for _ in range(dims)) for _ in range(2))
    dilation = tuple(s.integer(1, 2 if dilated else 1) for _ in range(dims))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    padding = tuple(s.integer(0, r // 2) for r in reach)
    # at least as large as the dilation: no window is empty
    size = [max(d, r - 2 * p) + s.integer(0, 3) for d, r, p in zip(dilation, reach, padding)]
    fields = {"stride": s.pick((None, stride)), "padding": padding, "ceil_mode": s.boolean()}
    return size, kernel, fields | ({"dilation": dilation} if dilated else {})


def max_domain(dims):
    """Calls of a max pool."""

    def domain(s, dtype):
        size, kernel, fields = _window(s, dims, True)
        return (s.array((*_lead(s), *size)), kernel), fields | {"return_indices": s.boolean()}

    return domain


def avg_domain(dims):
    """Calls of a mean pool."""

    def domain(s, dtype):
        size, kernel, fields = _window(s, dims, False)
        fields["count_include_pad"] = s.boolean()
        if dims > 1:
            fields["divisor_override"] = s.pick((None, None, 3))
        return (s.array((*_lead(s), *size), low=-100, high=100), kernel), fields

    return domain


def adaptive_domain(dims, largest=False):
    """Calls of an adaptive pool."""

    def domain(s, dtype):
        size = [s.integer(1, 5) for _ in range(dims)]
        out = tuple(s.pick((None, 1, 2, 3, 7)) for _ in range(dims))
        bounds = {} if largest else {"low": -100, "high": 100}
        x = s.array((*_lead(s), *size), **bounds)
        return (x, out), {"return_indices": s.boolean()} if largest else {}

    return domain


def interpolate_domain(s, dtype):
    """Calls of `interpolate`."""
    dims = s.integer(1, 3)
    linear = ("linear", "bilinear", "trilinear")[dims - 1]
    mode = s.pick(("nearest", "nearest-exact", "area", linear, linear, *(["bicubic"] * 2 if dims == 2 else [])))
    fields = {"mode": mode}
    if mode == linear or mode == "bicubic":
        fields["align_corners"] = s.boolean()
    if s.boolean():
        fields["size"] = tuple(s.integer(1, 6) for _ in range(dims))
    else:
        fields |= {"scale_factor": s.pick((0.5, 1.5, 2, 2.3)), "recompute_scale_factor": s.boolean()}
    size = [s.integer(2, 4) for _ in range(dims)]
    return (s.array((s.integer(1, 2), s.integer(1, 2), *size), low=-100, high=100),), fields
