"""What the hand-written tests of ops draw: the strategies, comparisons and settings of `tensorlib.testing`."""

import numpy as np
from hypothesis import strategies as st

import tensorlib
from tensorlib.testing import assert_close, drawn, few
from tensorlib.testing import sampler as _sampler
from tensorlib.testing.noise import UNIT as FLOAT_ROUNDING

__all__ = ["FLOAT_ROUNDING", "assert_close", "few", "operands", "strided", "tensors", "values", "wide"]


def values(draw, dtype, n, domain=None, special=True):
    """n values of a dtype as a NumPy row: in the domain, or small; special ones among them."""
    s = drawn(draw, dtype)
    return _sampler.values(s.generator(), s.pick(("wide", "near zero")), dtype, domain or (None, None), special, False)(
        n
    )


@st.composite
def operands(draw, dtypes, domains=None, special=True, max_dims=4):
    """NumPy arrays of dtypes whose shapes broadcast, with drawn strides."""
    s = drawn(draw)
    pairs = domains if domains and isinstance(domains[0], tuple) else [domains] * len(dtypes)
    rows = [lambda n, t=t, pair=pair: values(draw, t, n, pair, special) for t, pair in zip(dtypes, pairs)]
    return [strided(draw, row, shape) for row, shape in zip(rows, s.broadcastable(len(dtypes), max_dims))]


def strided(draw, row_of, shape):
    """An array of `shape` with drawn strides over a row of values: row_of(n) gives n of them."""
    s = drawn(draw)
    return s.strided(s.pick(_sampler.STRIDES), row_of, tuple(shape))


def tensors(arrays):
    """Tensors over the same memory, with the same strides."""
    return [tensorlib.from_numpy(a) for a in arrays]


def wide(array):
    """In float64 (floats) or as it is."""
    return array.astype(np.float64) if array.dtype.kind not in "biu" else array
