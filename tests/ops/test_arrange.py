"""Joining, cutting, padding, windows and grids against PyTorch; views are views, and gradients arrive."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib.errors import ShapeError
from tensorlib.ops import arrange, grids, pixels, windows
from tensorlib.registry import OPS
from tests.ops.cases import few
from tests.ops.parity import agree, agree_gradients, draw, ours_of

SHAPES = st.sampled_from([(), (3,), (2, 3), (4, 1, 3), (2, 3, 4, 2)])


@pytest.mark.parametrize("name", ["atleast_1d", "atleast_2d", "atleast_3d"])
@given(st.data())
@few(5)
def test_at_least(name, data):
    x, y = draw(data, data.draw(SHAPES)), draw(data, data.draw(SHAPES))
    agree(getattr(arrange, name), getattr(torch, name), x)
    agree(getattr(arrange, name), getattr(torch, name), x, y)
    agree(lambda a, b: getattr(arrange, name)([a, b]), getattr(torch, name), x, y)


@pytest.mark.parametrize("name", ["hstack", "vstack", "dstack", "column_stack"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4)])
@given(st.data())
@few(2)
def test_stacks(name, shape, data):
    x, y = draw(data, shape), draw(data, shape)
    agree(lambda *v: getattr(arrange, name)(v), lambda *v: getattr(torch, name)(v), x, y)
    agree(getattr(arrange, name), lambda *v: getattr(torch, name)(v), x, y)
    agree_gradients(lambda *v: getattr(arrange, name)(v), lambda *v: getattr(torch, name)(v), x, y)
    assert np.array_equal(OPS[name].ref(np, x, y), getattr(arrange, name)(*ours_of([x, y])).numpy())


@given(st.data())
@few(15)
def test_turns(data):
    x = draw(data, data.draw(st.sampled_from([(2, 3), (4, 1, 3), (2, 3, 4, 2)])))
    k, dims = data.draw(st.integers(-3, 5)), data.draw(st.permutations(range(x.ndim)))[:2]
    agree(arrange.rot90, torch.rot90, x, k, dims)
    agree(arrange.flipud, torch.flipud, x)
    agree(arrange.fliplr, torch.fliplr, x)
    agree(arrange.moveaxis, torch.moveaxis, x, 0, -1)
    agree(arrange.swapdims, torch.swapdims, x, 0, -1)
    agree(arrange.tile, torch.tile, x, (2,))
    agree(lambda a: arrange.tile(a, 2, 1, 1, 1, 2), lambda a: torch.tile(a, (2, 1, 1, 1, 2)), x)
    agree_gradients(lambda a: arrange.rot90(a, k, dims), lambda a: torch.rot90(a, k, dims), x)
    assert np.array_equal(OPS["rot90"].ref(np, x, k, dims), arrange.rot90(ours_of(x), k, dims).numpy())


@given(st.data())
@few(15)
def test_splits(data):
    x = draw(data, (4, 6, 2))
    dim = data.draw(st.integers(-3, 2))
    cut = data.draw(st.sampled_from([1, 3, 5, 7, (1, 3), (2, 1, 5), (-2,), (0, 9)]))
    if x.shape[dim] or isinstance(cut, int):
        agree(arrange.tensor_split, torch.tensor_split, x, cut, dim)
    for name in ("hsplit", "vsplit", "dsplit"):
        agree(getattr(arrange, name), getattr(torch, name), x, 2)
        agree(getattr(arrange, name), getattr(torch, name), x, [1])
    assert x[0, 0].shape == (2,)
    agree(arrange.hsplit, torch.hsplit, x[0, 0], 2)


@given(st.data())
@few(6)
def test_grids(data):
    vectors = [draw(data, (n,)) for n in data.draw(st.sampled_from([(3,), (2, 3), (2, 3, 4)]))]
    for indexing in ("ij", "xy"):
        ours, theirs = (lambda *v, f=f, i=indexing: f(*v, indexing=i) for f in (arrange.meshgrid, torch.meshgrid))
        agree(ours, theirs, *vectors)
        found = arrange.meshgrid(*ours_of(vectors), indexing=indexing)
        want = OPS["meshgrid"].ref(np, *vectors, indexing=indexing)
        assert all(np.array_equal(f, w) for f, w in zip(found, want))
    agree(arrange.cartesian_prod, torch.cartesian_prod, *vectors)
    agree_gradients(arrange.cartesian_prod, torch.cartesian_prod, *vectors)
    for r, replace in ((2, False), (2, True), (3, False), (5, False)):
        agree(arrange.combinations, torch.combinations, vectors[-1], r, replace)
    blocks = [draw(data, s) for s in ((2, 3), (1, 1), (4,), ())]
    agree(arrange.block_diag, torch.block_diag, *blocks)
    agree_gradients(arrange.block_diag, torch.block_diag, *blocks)


def test_made_from_nothing():
    for row, col, offset in ((3, 4, 0), (4, 2, 1), (2, 5, -2), (0, 3, 0), (3, 3, 9)):
        agree(grids.tril_indices, torch.tril_indices, row, col, offset)
        agree(grids.triu_indices, torch.triu_indices, row, col, offset)
    agree(
        lambda: grids.logspace(-2, 3, 7, 2.0), lambda: torch.logspace(-2, 3, 7, 2.0, dtype=torch.float64), roundings=2
    )
    assert isinstance(tensorlib.tril_indices(2, 2), tensorlib.Tensor) and grids.logspace(0, 1, 0).shape == (0,)


# ---- padding ---------------------------------------------------------------------------------------------------------

PADS = [
    ("constant", (1, 2)), ("constant", (0, 1, 2, 0)), ("constant", (-1, 2, 1, -2)), ("constant", (1, 1, 0, 0, 2, 1)),
    ("reflect", (2, 3)), ("reflect", (1, 0, 2, 1)), ("replicate", (2, 5)), ("replicate", (1, 3, 0, 2)),
    ("circular", (4, 3)), ("circular", (1, 2, 3, 0)),
]  # fmt: skip


@pytest.mark.parametrize("mode, amounts", PADS)
@given(st.data())
@few(3)
def test_pad(mode, amounts, data):
    x = draw(data, (2, 2, 3, 4) if len(amounts) > 2 else (2, 2, 4))
    agree(pixels.pad, F.pad, x, amounts, mode)
    agree_gradients(lambda a: pixels.pad(a, amounts, mode), lambda a: F.pad(a, amounts, mode), x)
    if mode == "constant":
        agree(pixels.pad, F.pad, x, amounts, value=2.5)
        if min(amounts) >= 0:
            assert np.array_equal(OPS["pad"].ref(np, x, amounts), pixels.pad(ours_of(x), amounts).numpy())


def test_pad_of_integers_and_empty():
    assert pixels.pad(tensorlib.tensor([1, 2]), (1, 0), value=7).tolist() == [7, 1, 2]
    assert pixels.pad(tensorlib.zeros(0), (1, 1), value=3).tolist() == [3, 3]
    x = tensorlib.ones(2)
    assert pixels.pad(x, (0, 0)) is x
    for amounts, mode in (((2, 0), "reflect"), ((3, 0), "circular"), ((-1, 0), "replicate"), ((-3, 0), "constant")):
        with pytest.raises(ShapeError, match="pad: got"):
            pixels.pad(x, amounts, mode)
    with pytest.raises(ShapeError, match="pad: got 3 amounts"):
        pixels.pad(x, (1, 1, 1))
    with pytest.raises(ShapeError, match="pad: got mode 'mirror'"):
        pixels.pad(x, (1, 1), "mirror")


# ---- windows ---------------------------------------------------------------------------------------------------------


@given(st.data())
@few(12)
def test_sliding_windows(data):
    x = draw(data, (3, 7, 2))
    dim, size, step = data.draw(st.integers(-2, -2)), data.draw(st.integers(0, 7)), data.draw(st.integers(1, 4))
    agree(windows.unfold, lambda a, *p: a.unfold(*p), x, dim, size, step)
    agree_gradients(lambda a: a.unfold(dim, size, step), lambda a: a.unfold(dim, size, step), x)
    if size:
        want = OPS["sliding_windows"].ref(np, x, dim, size, step)
        assert np.array_equal(want, windows.unfold(ours_of(x), dim, size, step).numpy())


def test_windows_are_views():
    x = tensorlib.arange(6, dtype="f32")
    w = x.unfold(0, 2, 2)
    w.mul_(10)
    assert x.tolist() == [0, 10, 20, 30, 40, 50] and tensorlib.tensor(3.0).unfold(0, 1, 1).tolist() == [3]
    with pytest.raises(ShapeError, match="share memory"):
        x.unfold(0, 3, 1).add_(1)
    with pytest.raises(ShapeError, match="unfold: got size 7, step 1"):
        x.unfold(0, 7, 1)


def test_as_strided():
    x = np.arange(12, dtype=np.float64).reshape(3, 4)
    for size, stride, offset in (
        ((2, 3), (4, 1), 1),
        ((3, 3), (1, 1), 0),
        ((2,), (5,), None),
        ((), (), 3),
        ((0, 2), (9, 9), 0),
    ):
        agree(windows.as_strided, torch.as_strided, x, size, stride, offset)
        agree_gradients(lambda a, p=(size, stride, offset): windows.as_strided(a, *p),
                        lambda a, p=(size, stride, offset): torch.as_strided(a, *p), x)  # fmt: skip
    y = tensorlib.from_numpy(x)
    assert y.as_strided((2, 2), (1, 4)).buffer is y.buffer
    for size, stride, offset in (((4, 4), (4, 1), 0), ((2,), (1,), 11), ((2,), (-1,), 0), ((2,), (1, 1), 0)):
        with pytest.raises(ShapeError, match="as_strided: got"):
            y.as_strided(size, stride, 0 if offset is None else offset)
    with pytest.raises(ShapeError, match="repeats elements"):
        tensorlib.zeros(1).expand(4).as_strided((2,), (0,))


@given(st.data())
@few(8)
def test_patches(data):
    x = draw(data, (2, 3, 7, 6))
    pick = lambda *v: data.draw(st.sampled_from(v))  # noqa: E731
    options = {"dilation": pick(1, (2, 1)), "padding": pick(0, (1, 2)), "stride": pick(1, (2, 3))}
    kernel = pick(2, (3, 2))
    agree(pixels.unfold, F.unfold, x, kernel, **options)
    agree(pixels.unfold, F.unfold, x[0], kernel, **options)
    columns = F.unfold(torch.from_numpy(np.array(x)), kernel, **options).numpy()
    agree(pixels.fold, F.fold, columns, (7, 6), kernel, **options, scale=18)
    agree(pixels.fold, F.fold, columns[0], (7, 6), kernel, **options, scale=18)
    agree_gradients(lambda a: pixels.unfold(a, kernel, **options), lambda a: F.unfold(a, kernel, **options), x)
    agree_gradients(lambda a: pixels.fold(a, (7, 6), kernel, **options), lambda a: F.fold(a, (7, 6), kernel, **options),
                    columns)  # fmt: skip


@given(st.data())
@few(4)
def test_channels_and_pixels(data):
    x, y = draw(data, (2, 8, 3, 2)), draw(data, (2, 2, 6, 4))
    agree(pixels.pixel_shuffle, F.pixel_shuffle, x, 2)
    agree(pixels.pixel_shuffle, F.pixel_shuffle, x[0], 2)
    agree(pixels.pixel_unshuffle, F.pixel_unshuffle, y, 2)
    agree(pixels.channel_shuffle, F.channel_shuffle, x, 4)
    agree_gradients(lambda a: pixels.pixel_shuffle(a, 2), lambda a: F.pixel_shuffle(a, 2), x)
    agree_gradients(lambda a: pixels.channel_shuffle(a, 2), lambda a: F.channel_shuffle(a, 2), x)


def test_errors():
    x = tensorlib.zeros(2, 3)
    calls = [
        (arrange.hstack, ([],)), (arrange.rot90, (x, 1, (0,))), (arrange.rot90, (x, 1, (0, 0))),
        (arrange.hsplit, (x, 2)),
        (arrange.vsplit, (x[0], 1)), (arrange.dsplit, (x, 1)), (arrange.tensor_split, (x, 0)), (arrange.meshgrid, (x,)),
        (arrange.block_diag, (tensorlib.zeros(1, 1, 1),)), (arrange.combinations, (x,)), (arrange.fliplr, (x[0],)),
        (pixels.unfold, (x, 2)), (pixels.unfold, (tensorlib.zeros(1, 2, 2), 3)), (pixels.fold, (x, (4, 4), 2)),
        (pixels.pixel_shuffle, (tensorlib.zeros(3, 2, 2), 2)), (pixels.pixel_unshuffle, (tensorlib.zeros(1, 3, 2), 2)),
        (pixels.channel_shuffle, (tensorlib.zeros(1, 3, 2), 2)), (grids.tril_indices, (-1, 2)),
    ]  # fmt: skip
    for function, arguments in calls:
        with pytest.raises(ShapeError):
            function(*arguments)
