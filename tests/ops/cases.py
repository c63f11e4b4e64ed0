"""What the tests of ops draw: shapes, views, values of a dtype, and the bounds that results are held to."""

import numpy as np
from hypothesis import Phase, settings
from hypothesis import strategies as st

import tensorlib
from tensorlib import dtype as D

SPECIAL = [0.0, -0.0, 1.0, -1.0, float("inf"), -float("inf"), float("nan"), 1e-40, -1e-45, 3.0e38, 0.5, 2.0, 1e5]
SIZES = st.sampled_from([0, 1, 1, 2, 3, 5, 17, 40])
FLOAT_ROUNDING = {
    "f16": 2.0**-11,
    "bf16": 2.0**-8,
    "f32": 2.0**-24,
    "f64": 2.0**-53,
    "f8e4m3": 2.0**-4,
    "f8e5m2": 2.0**-3,
}
SMALLEST = {"f16": 2.0**-24, "bf16": 2.0**-133, "f32": 2.0**-149, "f64": 5e-324, "f8e4m3": 2.0**-9, "f8e5m2": 2.0**-16}


def few(examples):
    """Settings of so many examples. Values come from a drawn seed, so shrinking would take long and show nothing."""
    return settings(max_examples=examples, phases=[Phase.explicit, Phase.generate], deadline=None, derandomize=True)


def shapes(max_dims=4):
    """0-d, empty, odd and broadcastable shapes, of at most a few thousand elements."""
    return st.lists(SIZES, max_size=max_dims).map(tuple).filter(lambda s: np.prod(s, dtype=int) <= 5000)


def values(draw, dtype, n, domain=None, special=True):
    """n values of a dtype as a NumPy row: uniform over the domain, near 0, and special ones."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    d = D.get(dtype)
    if d.kind != "f":
        low, high = D.info(d) if domain is None else domain
        few = np.array([low, high, 0, 1, -1, 2, 7], object)
        few = few[(few >= low) & (few <= high)]
        wide = rng.integers(low, high, n, dtype=np.int64 if d.kind != "u" else np.uint64, endpoint=True).astype(object)
        near = rng.integers(max(low, -9), min(high, 9), n, endpoint=True).astype(object)
        out = np.where(rng.random(n) < 0.5, wide, near)
        if n:
            out[rng.random(n) < 0.2] = rng.choice(few)
        return out.astype(d.numpy_dtype())
    low, high = domain or (-1e3, 1e3)
    limit = min(D.info(d)[1], 1e300)
    out = rng.uniform(max(low, -limit), min(high, limit), n)
    tiny = rng.random(n) < 0.3
    out[tiny] = out[tiny] * np.exp(rng.uniform(-20, 0, tiny.sum()))
    if special and n:
        odd = rng.random(n) < 0.1
        out[odd] = rng.choice(SPECIAL, odd.sum())
    if not special:
        out = np.clip(out, low, high)
    with np.errstate(all="ignore"):
        return out.astype(d.numpy_dtype())


def strided(draw, row_of, shape):
    """An array of `shape` with drawn strides: contiguous, transposed, stepped, reversed, offset or expanded."""
    kind = draw(st.sampled_from(["plain", "plain", "transposed", "stepped", "reversed", "offset", "expanded"]))
    shape = tuple(shape)
    if kind == "transposed" and len(shape) > 1:
        order = draw(st.permutations(range(len(shape))))
        base = row_of(int(np.prod(shape))).reshape([shape[i] for i in order])
        return base.transpose(np.argsort(order))
    if kind == "stepped" and shape:
        step = draw(st.integers(2, 3))
        return row_of(int(np.prod(shape)) * step).reshape(*shape[:-1], shape[-1] * step)[..., ::step]
    if kind == "reversed" and shape:
        dim = draw(st.integers(0, len(shape) - 1))
        return np.flip(row_of(int(np.prod(shape))).reshape(shape), dim)
    if kind == "offset" and shape:
        base = row_of(int(np.prod(shape[1:])) * (shape[0] + 2)).reshape(shape[0] + 2, *shape[1:])
        return base[1:-1]
    if kind == "expanded" and shape:
        dim = draw(st.integers(0, len(shape) - 1))
        small = shape[:dim] + (1,) + shape[dim + 1 :]
        return np.broadcast_to(row_of(int(np.prod(small))).reshape(small), shape)
    return row_of(int(np.prod(shape))).reshape(shape)


@st.composite
def operands(draw, dtypes, domains=None, special=True, max_dims=4):
    """NumPy arrays of dtypes whose shapes broadcast, with drawn strides."""
    shape = draw(shapes(max_dims))
    out = []
    for i, dtype in enumerate(dtypes):
        own = shape
        if len(dtypes) > 1 and draw(st.booleans()):  # smaller: leading dims dropped, others 1
            own = tuple(1 if draw(st.booleans()) else n for n in shape[draw(st.integers(0, len(shape))) :])
        domain = domains[i] if domains and isinstance(domains[0], tuple) else domains
        out.append(strided(draw, lambda n, t=dtype, d=domain: values(draw, t, n, d, special), own))
    return out


def tensors(arrays):
    """Tensors over the same memory, with the same strides."""
    return [tensorlib.from_numpy(a) for a in arrays]


def wide(array):
    """In float64 (floats) or as it is."""
    return array.astype(np.float64) if array.dtype.kind not in "biu" else array


def assert_close(found, want, dtype, ulps, absolute=0.0):
    """|found - want| <= ulps units in the last place of `want` in `dtype`, + `absolute`; NaN and infinities equal.

    One rounding to a dtype of p bits is half a unit, 2^-p |x|; so `ulps` are compared as 2 ulps 2^-p |want|, plus as
    many of the smallest denormals where numbers are that small. A narrow dtype rounds an f32 result once: its error
    counts too.
    """
    found = found.numpy().astype(np.float64)
    want = np.asarray(want, np.float64)
    assert found.shape == want.shape
    rounding, compute = FLOAT_ROUNDING[dtype], FLOAT_ROUNDING["f64" if dtype == "f64" else "f32"]
    factor = 2 * ulps * compute + (rounding if dtype not in ("f32", "f64") else 0)
    tiny = max(1, ulps) * SMALLEST[dtype] + ulps * SMALLEST["f64" if dtype == "f64" else "f32"]
    with np.errstate(all="ignore"):
        bound = factor * np.abs(want) + tiny + absolute
        top = D.info(D.get(dtype))[1]
        # where the bound reaches beyond the largest number, the result may be infinite (NaN in f8e4m3), or the largest
        overflow = (np.abs(want) + bound >= top) & ((np.abs(found) == top) | ~np.isfinite(found))
        fine = (np.abs(found - want) <= bound) | (np.isnan(found) & np.isnan(want)) | (found == want) | overflow
    if not np.all(fine):
        i = np.unravel_index(np.argmin(fine), fine.shape)
        error = abs(found[i] - want[i]) / (2 * rounding * abs(want[i]) + SMALLEST[dtype])
        raise AssertionError(
            f"{(~fine).sum()} of {fine.size}: got {found[i]!r}, want {want[i]!r} at {i}: {error:.3g} ulp"
        )
