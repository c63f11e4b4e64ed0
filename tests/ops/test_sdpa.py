"""scaled_dot_product_attention against float64: shapes, masks, groups, strides, dtypes; what cannot be seen gives 0."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorlib
from tensorlib.errors import DTypeError, ShapeError

U = 2.0**-24  # half an ulp of 1 in f32
sdpa = tensorlib.scaled_dot_product_attention


def reference(q, k, v, mask=None, causal=False, scale=None):
    """Result and error bound in float64; queries that see nothing give 0.

    Bound, with u = 2^-24 and A = max over visible keys of scale * sum |q||k| + |mask|: a score is off by at most
    (D + 12) u A, and as an exponent by 4 u of itself; weights are relative to that, twice (numerator and sum). Sums of
    n terms and a rescaling per 64 keys add (2 n + 8 n / 64 + 40) u. What is hidden weighs 2^-126 at most.
    """
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    (t, d), n = q.shape[-2:], k.shape[-2]
    scale = d**-0.5 if scale is None else scale
    s, most = q @ k.swapaxes(-2, -1) * scale, abs(q) @ abs(k).swapaxes(-2, -1) * abs(scale)
    if causal:
        mask = np.tril(np.ones((t, n), bool))
    if mask is not None:
        added = np.where(mask, 0, -np.inf) if mask.dtype == bool else mask.astype(np.float64)
        s = s + added
        most = np.where(np.isfinite(s), most + abs(added), 0)
    w = np.exp(s - np.maximum(s.max(-1, keepdims=True, initial=-np.inf), -1e300))
    w /= np.maximum(w.sum(-1, keepdims=True), 1e-300)
    relative = 2 * (d + 16) * most.max(-1, keepdims=True, initial=0.0) + 2 * n + n / 8 + 40
    return w @ v, relative * U * (w @ abs(v)) + 1e-30


def check(q, k, v, mask=None, **options):
    ours = [None if x is None else tensorlib.from_numpy(x) for x in (q, k, v, mask)]
    got = sdpa(*ours, **options)
    options.pop("enable_gqa", None)
    want, bound = reference(q, k, v, mask, options.get("is_causal", False), options.get("scale"))
    assert got.shape == want.shape and str(got.dtype) == str(ours[0].dtype)
    got = got.numpy()
    assert (abs(got - want) <= bound).all(), np.nanmax(abs(got - want) / bound)
    return got


def normal(rng, *shape):
    return rng.standard_normal(shape, np.float32)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_shapes_groups_and_masks(data):
    draw = lambda *values: data.draw(st.sampled_from(values))  # noqa: E731
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    lead, groups, share = draw((), (1,), (3,), (2, 2)), draw(1, 2), draw(1, 3)
    # below and above what decoding, a register tile and a block of keys take
    t, n, d = draw(1, 3, 7, 50), draw(1, 5, 16, 70, 130), draw(3, 16, 64, 80)
    q = normal(rng, *lead, groups * share, t, d)
    k, v = normal(rng, *lead, groups, n, d), normal(rng, *lead, groups, n, d)
    shape = [1 if draw(True, False) else size for size in (*lead, groups * share, t, n)][draw(0, -2) or 0 :]
    kind = draw("none", "bool", "float", "causal")
    mask = {"bool": rng.random(shape) < 0.7, "float": normal(rng, *shape)}.get(kind)
    check(q, k, v, mask, is_causal=kind == "causal", scale=draw(None, 0.3), enable_gqa=share > 1)


def test_heads_and_batches_broadcast():
    rng = np.random.default_rng(7)
    for q, k, v in (
        ((1, 9), (4, 9), (4, 9)),
        ((4, 9), (1, 9), (1, 9)),
        ((4, 9), (4, 9), (1, 9)),
        ((4, 3), (1, 9), (4, 9)),
    ):
        x = [normal(rng, *shape, 16) for shape in (q, k, v)]
        got = sdpa(*map(tensorlib.from_numpy, x)).numpy()
        wide = [np.broadcast_to(y, (4, *y.shape[1:])) for y in x]
        want, bound = reference(*wide)
        assert got.shape == want.shape and (abs(got - want) <= bound).all()
    # of 4 query heads, keys of 2 and values of 4
    x = [normal(rng, heads, 9, 16) for heads in (4, 2, 4)]
    want, bound = reference(x[0], np.repeat(x[1], 2, 0), x[2])
    assert (abs(sdpa(*map(tensorlib.from_numpy, x), enable_gqa=True).numpy() - want) <= bound).all()


def test_scale_zero_averages():
    rng = np.random.default_rng(8)
    check(*(normal(rng, 2, 9, 16) for _ in range(3)), scale=0.0)


@pytest.mark.parametrize("d", [40, 264])  # in the kernels, composed
@pytest.mark.parametrize("t", [2, 60])
def test_who_sees_nothing_gives_zero(d, t):
    rng = np.random.default_rng(1)
    q, k, v = normal(rng, 2, 2, t, d), normal(rng, 2, 2, 100, d), normal(rng, 2, 2, 100, d)
    mask = rng.random((2, 1, t, 100)) < 0.5
    mask[0, 0, 1] = False
    mask[1, 0, 0, :64] = False  # a block without keys, then some
    assert (check(q, k, v, mask)[0, :, 1] == 0).all()
    added = np.where(mask, np.float32(0), np.float32(-np.inf))
    assert (check(q, k, v, added)[0, :, 1] == 0).all()


def test_strides():
    rng = np.random.default_rng(2)
    q, k, v = (normal(rng, 2, n, 3, 2 * 24) for n in (33, 40, 40))
    views = [x.swapaxes(1, 2)[..., ::2] for x in (q, k, v)]  # heads and rows swapped, batches that do not fold, gaps
    check(*views)
    check(*(x.swapaxes(1, 2) for x in (q, k, v)), rng.random((40, 33)).T < 0.9)


@pytest.mark.parametrize("dtype, ulp", [("f16", 2.0**-11), ("bf16", 2.0**-8)])
@pytest.mark.parametrize("t", [1, 20])
def test_half_precision_is_computed_in_f32(dtype, ulp, t):
    rng = np.random.default_rng(3)
    q, k, v = (tensorlib.from_numpy(normal(rng, 2, 3, n, 32)).to(dtype) for n in (t, 30, 30))
    got = sdpa(q, k, v)
    assert str(got.dtype) == dtype
    want, bound = reference(*(x.to("f32").numpy() for x in (q, k, v)))
    # rounding to the dtype: half an ulp, of the exact value and of its error; nothing here is denormal but zero
    assert (abs(got.to("f32").numpy() - want) <= bound + ulp * (abs(want) + bound) + 2.0**-25).all()


def test_double_precision_and_other_widths_are_composed():
    rng = np.random.default_rng(4)
    q, k, v = normal(rng, 2, 4, 9, 8), normal(rng, 2, 2, 11, 8), normal(rng, 2, 2, 11, 5)
    check(q, k, v, enable_gqa=True)
    check(*(x.astype(np.float64) for x in (q, k, v)), is_causal=True, enable_gqa=True)
    check(*(normal(rng, 2, n, 300) for n in (5, 6, 6)), normal(rng, 5, 6))


def test_dropout_scales_what_is_left():
    tensorlib.manual_seed(5)
    q, k, v = tensorlib.zeros(1, 1, 400, 8), tensorlib.zeros(1, 1, 50, 8), tensorlib.ones(1, 1, 50, 8)
    got = sdpa(q, k, v, dropout_p=0.2).numpy()
    # every weight is 1/50 or 0: a sum of 50 Bernoulli(0.8) / 40; 20000 draws lie within 6 sigma of their mean
    counts = got[0, 0, :, 0] * 40
    assert abs(counts - counts.round()).max() < 1e-4 and abs(got.mean() - 1) < 6 * (0.2 / 0.8 / 20000) ** 0.5


def test_empty():
    for shapes in (((1, 2, 0, 8), (1, 2, 5, 8)), ((1, 2, 3, 8), (1, 2, 0, 8)), ((0, 2, 3, 8), (0, 2, 5, 8))):
        q, k = (tensorlib.ones(*shape) for shape in shapes)
        got = sdpa(q, k, k)
        assert got.shape == q.shape and (got.numpy() == 0).all()


def test_errors():
    q = tensorlib.ones(1, 4, 3, 8)
    with pytest.raises(ShapeError, match="one of them"):
        sdpa(q, q, q, tensorlib.ones(3, 3), is_causal=True)
    with pytest.raises(ShapeError, match="a mask of shape"):
        sdpa(q, q, q, tensorlib.ones(2, 4, 3, 3))
    with pytest.raises(ShapeError, match="broadcast"):
        sdpa(q, q, q, tensorlib.ones(4, 3))
    with pytest.raises(ShapeError, match="query"):
        sdpa(q, tensorlib.ones(1, 4, 3, 7), q)
    with pytest.raises(ShapeError, match="divide"):
        sdpa(q, tensorlib.ones(1, 3, 3, 8), tensorlib.ones(1, 3, 3, 8), enable_gqa=True)
    with pytest.raises(DTypeError, match="mask"):
        sdpa(q, q, q, tensorlib.ones(3, 3, dtype="i64"))
    with pytest.raises(DTypeError, match="float"):
        sdpa(q, q.to("f16"), q)
