"""Pools and interpolation against float64 loops over windows: shapes, strides, dtypes, ceil mode, indices, NaN.

Maxima and nearest values are exact. A mean of n numbers in f32, in any order, is within (n + 2) u mean |x| of the exact
one, u = 2**-24 (f64: 2**-53): n - 1 additions, the divisor's and the reference's rounding. A weighted sum of n numbers
has the weights' roundings too, two per dim: (n + 8) u sum |w||x|, where the reference places outputs in the same f64
arithmetic (a place that is off by one unit moves a weight by more than a unit). The dtype rounds once more, by 2**-11
(f16) or 2**-8 (bf16) relative, or by 2**-25 among f16's denormals.
"""

from itertools import product
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorlib
from tensorlib import backend
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.ops import pooling

UNIT = {"f32": 2.0**-24, "f16": 2.0**-24, "bf16": 2.0**-24, "f64": 2.0**-53}
ROUNDING = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8, "f64": 2.0**-53}
DTYPES = st.sampled_from(["f32", "f32", "f32", "bf16", "f16", "f64"])


def expect(found, exact, size, terms, name):
    """Holds a tensor to the exact values, where `size` is the terms' magnitude."""
    assert found.shape == exact.shape and found.dtype.name == name
    error = terms * UNIT[name] * size
    bound = error + ROUNDING[name] * (abs(exact) + error) + 2.0**-25 * (name == "f16")
    assert (abs(found.to("f64").numpy() - exact) <= bound).all()


def numbers(shape, name, kind, seed):
    """(tensor with the strides of `kind` in memory that is NaN elsewhere, its values in f64)."""
    number, steps = tensorlib.dtype.get(name).numpy_dtype(), {"stepped": 2, "backwards": -1}.get(kind, 1)
    memory = np.full([abs(steps) * n for n in shape], np.nan, number)
    view = memory[tuple(slice(None, None, steps) for _ in shape)]
    view[...] = np.random.default_rng(seed).standard_normal(shape)
    return tensorlib.from_numpy(view), view.astype(np.float64)


def windows(size, kernel, stride, padding, dilation, ceil_mode):
    """Per output index of one dim: (the window's start and its end as torch counts them, the indices inside)."""
    span = (size + 2 * padding - dilation * (kernel - 1) - 1) / stride
    count = (ceil if ceil_mode else floor)(span) + 1
    if ceil_mode and (count - 1) * stride >= size + padding:
        count -= 1
    for o in range(count):
        start = o * stride - padding
        taps = [start + t * dilation for t in range(kernel)]
        yield min(start + kernel, size + padding) - start, [i for i in taps if 0 <= i < size]


def pooled(x, per_dim, function):
    """function(values of a window (N, C, taps), its places in the plane, its padded size) for every output."""
    lists = [list(w) for w in per_dim]
    spatial = x.shape[2:]
    places = np.arange(int(np.prod(spatial))).reshape(spatial)
    out = [
        function(
            x[(..., *np.ix_(*(inside for _, inside in at)))].reshape(*x.shape[:2], -1),
            places[np.ix_(*(inside for _, inside in at))].reshape(-1),
            int(np.prod([full for full, _ in at])),
        )
        for at in product(*lists)
    ]
    return np.stack(out, -1).reshape(*x.shape[:2], *(len(w) for w in lists))


@st.composite
def cases(draw):
    dims = draw(st.sampled_from([1, 2, 2, 3]))
    kernel = [draw(st.integers(1, 4)) for _ in range(dims)]
    return {
        "shape": (draw(st.integers(1, 3)), draw(st.integers(1, 3)), *(draw(st.integers(9, 20)) for _ in range(dims))),
        "kernel": tuple(kernel),
        "stride": tuple(draw(st.integers(1, 3)) for _ in range(dims)),
        "padding": tuple(draw(st.integers(0, k // 2)) for k in kernel),
        "dilation": tuple(draw(st.sampled_from([1, 1, 2])) for _ in range(dims)),
        "ceil_mode": draw(st.booleans()),
        "flag": draw(st.booleans()),
        "dtype": draw(DTYPES),
        "kind": draw(st.sampled_from(["plain", "stepped", "backwards"])),
        "seed": draw(st.integers(0, 9)),
    }


@settings(max_examples=60)
@given(cases())
def test_max_pool(c):
    x, values = numbers(c["shape"], c["dtype"], c["kind"], c["seed"])
    call = getattr(pooling, f"max_pool{len(c['kernel'])}d")
    arguments = [c[k] for k in ("kernel", "stride", "padding", "dilation", "ceil_mode")]
    per_dim = [list(windows(*w, c["ceil_mode"])) for w in zip(c["shape"][2:], *arguments[:4])]
    exact = pooled(values, per_dim, lambda v, places, full: v.max(-1))
    found, where = call(x, *arguments, True)
    np.testing.assert_array_equal(found.to("f64").numpy(), exact)
    np.testing.assert_array_equal(call(x, *arguments).to("f64").numpy(), exact)
    flat = values.reshape(*values.shape[:2], -1)
    there = np.take_along_axis(flat, where.numpy().reshape(*values.shape[:2], -1), -1)
    np.testing.assert_array_equal(there.reshape(exact.shape), exact)
    assert where.dtype.name == "i64"


@settings(max_examples=60)
@given(cases())
def test_avg_pool(c):
    x, values = numbers(c["shape"], c["dtype"], c["kind"], c["seed"])
    dims = len(c["kernel"])
    call = getattr(pooling, f"avg_pool{dims}d")
    divisor = 7 if dims > 1 and c["seed"] > 6 else None
    arguments = [c["kernel"], c["stride"], c["padding"], c["ceil_mode"], c["flag"]]
    per_dim = [list(windows(n, k, s, p, 1, c["ceil_mode"])) for n, k, s, p in zip(c["shape"][2:], *arguments[:3])]
    mean = lambda v, places, full: v.sum(-1) / (divisor or (full if c["flag"] else v.shape[-1]))  # noqa: E731
    found = call(x, *arguments, *([divisor] if dims > 1 else []))
    terms = int(np.prod(c["kernel"])) + 2
    expect(found, pooled(values, per_dim, mean), pooled(abs(values), per_dim, mean), terms, c["dtype"])


@settings(max_examples=40)
@given(cases(), st.lists(st.sampled_from([None, 1, 2, 5, 9, 25]), min_size=3, max_size=3))
def test_adaptive_pools(c, sizes):
    x, values = numbers(c["shape"], c["dtype"], c["kind"], c["seed"])
    dims = len(c["kernel"])
    sizes = sizes[:dims]
    out = [n if w is None else w for n, w in zip(c["shape"][2:], sizes)]
    parts = [
        [(1, list(range(floor(i * n / o), ceil((i + 1) * n / o)))) for i in range(o)]
        for n, o in zip(c["shape"][2:], out)
    ]
    mean = lambda v, places, full: v.mean(-1)  # noqa: E731
    found = getattr(pooling, f"adaptive_avg_pool{dims}d")(x, sizes)
    terms = int(np.prod([max(len(p) for _, p in part) for part in parts])) + 2
    expect(found, pooled(values, parts, mean), pooled(abs(values), parts, mean), terms, c["dtype"])
    best, where = getattr(pooling, f"adaptive_max_pool{dims}d")(x, sizes, return_indices=True)
    np.testing.assert_array_equal(best.to("f64").numpy(), pooled(values, parts, lambda v, places, full: v.max(-1)))
    first = pooled(values, parts, lambda v, places, full: places[v.argmax(-1)])
    if c["dtype"] in ("f32", "f64"):  # the others have ties
        np.testing.assert_array_equal(where.numpy(), first)


def test_nan_wins_and_empty_windows_are_minus_infinity():
    x = tensorlib.tensor([[1.0, 2.0, float("nan"), 4.0, float("nan"), float("-inf"), float("-inf"), 5.0]])
    found, where = pooling.max_pool1d(x, 2, return_indices=True)
    np.testing.assert_array_equal(found.numpy(), [[2, np.nan, np.nan, 5]])
    np.testing.assert_array_equal(where.numpy(), [[1, 2, 4, 7]])
    np.testing.assert_array_equal(pooling.max_pool1d(x, 2).numpy(), found.numpy())
    alone = pooling.max_pool1d(tensorlib.ones(1, 2), 2, 1, padding=1, dilation=3)
    assert alone.tolist() == [[float("-inf")]]
    last = pooling.max_pool1d(tensorlib.full((1, 4), float("-inf")), 4, return_indices=True)[1]
    assert last.tolist() == [[0]]


def cubic(t):
    """Keys' kernel, a = -0.75."""
    t = abs(t)
    return np.where(t <= 1, 1.25 * t**3 - 2.25 * t**2 + 1, np.where(t < 2, -0.75 * (t**3 - 5 * t**2 + 8 * t - 4), 0))


def weights(size, out, mode, align_corners, scale):
    """The matrix (out, size) that one dim is multiplied with."""
    at = np.arange(out) * (size - 1) / max(out - 1, 1) if align_corners else scale * (np.arange(out) + 0.5) - 0.5
    matrix = np.zeros((out, size))
    for o, place in enumerate(at):
        place = place if mode == "bicubic" else max(place, 0.0)
        for i in range(floor(place) - 1, floor(place) + 3):
            w = cubic(np.float64(place - i)) if mode == "bicubic" else max(0.0, 1 - abs(place - i))
            matrix[o, min(max(i, 0), size - 1)] += w
    return matrix


@settings(max_examples=60)
@given(cases(), st.booleans(), st.sampled_from([0.4, 1.0, 1.7, 2.0]), st.sampled_from([None, (5, 30, 7), (1, 1, 1)]))
def test_interpolate_linear_and_cubic(c, bicubic, factor, size):
    x, values = numbers(c["shape"], c["dtype"], c["kind"], c["seed"])
    dims = len(c["kernel"])
    mode = "bicubic" if bicubic and dims == 2 else ("linear", "bilinear", "trilinear")[dims - 1]
    given = {"scale_factor": factor} if size is None else {"size": size[:dims]}
    found = pooling.interpolate(x, mode=mode, align_corners=c["flag"], **given)
    out = [floor(n * factor) for n in c["shape"][2:]] if size is None else size[:dims]
    scales = [1 / factor if size is None else n / o for n, o in zip(c["shape"][2:], out)]
    each = [weights(n, o, mode, c["flag"], s) for n, o, s in zip(c["shape"][2:], out, scales)]
    letters = "yzw"[:dims]
    equation = ",".join(f"{a.upper()}{a}" for a in letters) + f",nc{letters}->nc{letters.upper()}"
    exact = np.einsum(equation, *each, values)
    magnitude = np.einsum(equation, *map(abs, each), abs(values))
    # cubic weights are off by units of 1, not of themselves, and of either sign where indices are clipped
    clipped = 2.0**dims * abs(values).max() if mode == "bicubic" else 0
    expect(found, exact, magnitude + clipped, 4**dims + 8, c["dtype"])


@pytest.mark.parametrize("size, scale", [((10, 14), None), ((3, 50), None), (None, 2), (None, 1.5), (None, 0.3)])
def test_interpolate_nearest(size, scale):
    x = tensorlib.from_numpy(np.arange(2 * 3 * 7 * 9, dtype=np.float32).reshape(2, 3, 7, 9))
    out = size or tuple(floor(n * scale) for n in (7, 9))
    for mode, half in (("nearest", 0.0), ("nearest-exact", 0.5)):
        found = pooling.interpolate(x, size, scale, mode=mode)
        rows = [
            np.minimum(np.floor((np.arange(o) + half) * (n / o if scale is None else 1 / scale)).astype(int), n - 1)
            for n, o in zip((7, 9), out)
        ]
        np.testing.assert_array_equal(found.numpy(), x.numpy()[:, :, rows[0][:, None], rows[1]])
    area = pooling.interpolate(x, size, scale, mode="area").numpy()
    np.testing.assert_array_equal(area, pooling.adaptive_avg_pool2d(x, out).numpy())


def test_threads_do_not_matter():
    x, before = tensorlib.from_numpy(np.random.default_rng(0).standard_normal((2, 16, 60, 61)).astype(np.float32)), []
    threads = backend.threads()
    try:
        for n in (1, 3):
            backend.set_num_threads(n)
            before.append(
                [
                    pooling.max_pool2d(x, 3, 2, 1).numpy(),
                    *(a.numpy() for a in pooling.max_pool2d(x, 3, 2, 1, return_indices=True)),
                    pooling.avg_pool2d(x, 5, 1, 2).numpy(),
                    pooling.interpolate(x, scale_factor=2, mode="bilinear").numpy(),
                ]
            )
    finally:
        backend.set_num_threads(threads)
    for a, b in zip(*before):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: pooling.max_pool2d(x, 3, padding=2), "at most half"),
        (lambda x: pooling.max_pool2d(x, 9), "positive output size"),
        (lambda x: pooling.max_pool2d(x, 0), "kernel_size=0"),
        (lambda x: pooling.max_pool3d(x[0], 2), "max_pool3d: got shape"),
        (lambda x: pooling.avg_pool2d(x, 2, divisor_override=0), "divisor_override=0"),
        (lambda x: pooling.adaptive_avg_pool2d(x, (1, 2, 3)), "or 2 of them"),
        (lambda x: pooling.interpolate(x, mode="trilinear", size=3), "mode='trilinear'"),
        (lambda x: pooling.interpolate(x), "size=None, scale_factor=None"),
        (lambda x: pooling.interpolate(x, 3, align_corners=True), "leave align_corners out"),
        (lambda x: pooling.interpolate(x, scale_factor=(2, 2, 2)), "or 2 of them"),
    ],
)
def test_arguments_that_do_not_fit(call, message):
    with pytest.raises(ShapeError, match=message):
        call(tensorlib.ones(1, 2, 5, 5))


def test_integers_are_refused():
    with pytest.raises(DTypeError, match="max_pool2d: got i32"):
        pooling.max_pool2d(tensorlib.ones(1, 2, 5, 5).to("i32"), 2)
