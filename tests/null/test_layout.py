"""Layouts against NumPy's strides: NumPy's views of an index array say which element each position must reach."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorlib.errors import ShapeError
from tensorlib.layout import Layout, axes, broadcast_shapes, collapse, contiguous, infer_shape

SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


def offsets(layout: Layout) -> np.ndarray:
    """The element offset at every position, by the definition of a Layout."""
    out = np.full(layout.shape, layout.offset)
    for dim, (size, stride) in enumerate(zip(layout.shape, layout.strides, strict=True)):
        out = out + (np.arange(size) * stride).reshape([-1 if d == dim else 1 for d in range(layout.ndim)])
    return out


def index_array(shape) -> np.ndarray:
    return np.arange(int(np.prod(shape, dtype=int))).reshape(shape)


@st.composite
def views(draw, steps=4):
    """A Layout made by random view operations, with NumPy's view of the same."""
    shape = draw(SHAPES)
    layout, array = contiguous(shape), index_array(shape)
    for _ in range(draw(st.integers(0, steps))):
        kind = draw(st.sampled_from(["permute", "slice", "unsqueeze", "expand", "select", "narrow", "squeeze"]))
        dim = draw(st.integers(0, max(layout.ndim - 1, 0)))
        if kind == "permute":
            order = draw(st.permutations(range(layout.ndim)))
            layout, array = layout.permute(order), array.transpose(order)
        elif kind == "unsqueeze":
            layout, array = layout.unsqueeze(dim), np.expand_dims(array, dim)
        elif kind == "squeeze":
            layout, array = layout.squeeze(), array.squeeze()
        elif kind == "expand":
            target = (draw(st.integers(0, 3)), *(draw(st.integers(1, 3)) if n == 1 else n for n in layout.shape))
            layout, array = layout.expand(target), np.broadcast_to(array, target)
        elif not layout.ndim:
            continue
        elif kind == "slice":
            step = draw(st.sampled_from([1, 2, 3, -1, -2]))
            bound = st.none() | st.integers(-6, 6)
            s = slice(draw(bound), draw(bound), step)
            layout, array = layout.slice(dim, s), array[(slice(None),) * dim + (s,)]
        elif kind == "select" and layout.shape[dim]:
            i = draw(st.integers(-layout.shape[dim], layout.shape[dim] - 1))
            layout, array = layout.select(dim, i), array[(slice(None),) * dim + (i,)]
        elif kind == "narrow":
            start = draw(st.integers(0, layout.shape[dim]))
            length = draw(st.integers(0, layout.shape[dim] - start))
            layout, array = (
                layout.narrow(dim, start, length),
                array[(slice(None),) * dim + (slice(start, start + length),)],
            )
    return layout, array


@given(views())
@settings(deadline=None)
def test_views_reach_numpys_elements(pair):
    layout, array = pair
    assert layout.shape == array.shape
    assert (offsets(layout) == array).all()
    assert layout.numel() == array.size
    if array.size:
        assert layout.extent() == (array.min(), array.max() + 1)
        assert layout.is_contiguous() == (array.ravel() == array.min() + np.arange(array.size)).all()
    # exact for views of contiguous memory: x[:, ::3] of rows of 5 may be written to
    assert layout.overlaps_itself() == (len(np.unique(array)) < array.size)


@given(views(), st.data())
@settings(deadline=None)
def test_reshape(pair, data):
    layout, array = pair
    n = layout.numel()
    factors = [s for s in itertools.product(*[[1, 2, 3, 4, 5, 6, 8, 10, 12]] * 3) if np.prod(s) == n] or [(n,)]
    shape = data.draw(st.sampled_from(factors))
    found = layout.reshape(shape)
    if found is not None:
        assert (offsets(found) == array.reshape(shape)).all()
    else:  # NumPy must need a copy too
        with pytest.raises(ValueError):
            array.reshape(shape, copy=False)


@given(views(), st.data())
@settings(deadline=None)
def test_collapse_reaches_the_same_pairs(pair, data):
    layout, array = pair
    if not array.size:
        assert collapse(layout, layout)[0] == (0,)
        return
    out = contiguous(layout.shape).permute(range(layout.ndim))
    shape, (out_strides, in_strides) = collapse(out, layout)
    pairs = zip(
        offsets(Layout(shape, out_strides, 0)).ravel(),
        offsets(Layout(shape, in_strides, layout.offset)).ravel(),
        strict=True,
    )
    assert sorted(pairs) == sorted(zip(offsets(out).ravel(), array.ravel(), strict=True))
    assert len(shape) <= max(layout.ndim, 1)


@given(st.lists(SHAPES, min_size=1, max_size=3))
def test_broadcast_matches_numpy(shapes):
    try:
        want = np.broadcast_shapes(*shapes)
    except ValueError:
        with pytest.raises(ShapeError, match="shapes that broadcast"):
            broadcast_shapes("add", *shapes)
    else:
        assert broadcast_shapes("add", *shapes) == want


@given(st.integers(-4, 4), st.integers(0, 4), st.integers(0, 4))
def test_diagonal(offset, rows, cols):
    found = contiguous((rows, 2, cols)).diagonal(offset, 0, 2)
    assert (offsets(found) == np.diagonal(index_array((rows, 2, cols)), offset, 0, 2)).all()


def test_collapse_merges():
    x = contiguous((2, 3, 4))
    assert collapse(x, x) == ((24,), [(1,), (1,)])
    assert collapse(x, x.permute((0, 2, 1)).reshape((2, 4, 3)).permute((0, 2, 1)))[0] == (24,)
    assert collapse(x, contiguous((4,)).expand((2, 3, 4))) == ((6, 4), [(4, 1), (0, 1)])
    assert collapse(contiguous(()), contiguous(())) == ((1,), [(1,), (1,)])
    flipped = x.permute((2, 1, 0))
    assert collapse(flipped, flipped)[0] == (24,)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: contiguous((2, 3)).permute((0,)), "permute: got dims"),
        (lambda: contiguous((2, 3)).permute((0, 0)), "each dim once"),
        (lambda: contiguous((2, 3)).transpose(0, 2), r"dim 2 of a 2-d tensor"),
        (lambda: contiguous((2, 3)).select(1, 3), r"index 3 at dim 1 of size 3"),
        (lambda: contiguous(()).select(0, 0), "0-d"),
        (lambda: contiguous((2,)).slice(0, slice(None, None, 0)), "step 0"),
        (lambda: contiguous((2, 3)).narrow(1, 2, 2), "start 2, length 2"),
        (lambda: contiguous((2, 3)).expand((4, 3)), "only dims of size 1"),
        (lambda: contiguous((2, 3)).expand((3,)), "at least 2 dims"),
        (lambda: contiguous((2,)).expand((-1, 2)), "sizes of 0 or more"),
        (lambda: contiguous((2, 3)).reshape((4,)), "for 6 elements"),
        (lambda: contiguous((2, 3)).reshape((-1, -1)), "at most one -1"),
        (lambda: contiguous((0, 3)).reshape((-1, 0)), "cannot be inferred"),
        (lambda: infer_shape("view", 6, (-1, 4)), "view: got"),
        (lambda: axes("sum", (0, -2), 2), "repeated"),
    ],
)
def test_errors_say_what_and_how(call, words):
    with pytest.raises(ShapeError, match=words):
        call()


def test_zero_dim_accepts_dim_0():
    assert contiguous(()).transpose(0, -1).shape == ()
    assert contiguous(()).squeeze(0).shape == ()
    assert contiguous(()).unsqueeze(-1).shape == (1,)
