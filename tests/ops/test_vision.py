"""grid_sample, affine_grid and normalisation against PyTorch in float64: values and gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.ops import normalise, vision
from tests.ops.cases import few
from tests.ops.parity import agree, agree_gradients, draw

# ---- sampling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("padding", vision.PADDINGS)
@pytest.mark.parametrize("mode", vision.MODES)
@given(st.data())
@few(2)
def test_grid_sample(mode, padding, align, data):
    x = draw(data, data.draw(st.sampled_from([(2, 3, 4, 5), (1, 2, 1, 3)])))
    # places in f64: whether a rounded f32 is beyond a pixel's border would decide a whole pixel
    grid = np.random.default_rng(data.draw(st.integers(0, 99))).uniform(-1.6, 1.6, (x.shape[0], 3, 6, 2))
    wide = np.array(x, np.float64)
    options = {"mode": mode, "padding_mode": padding, "align_corners": align}
    agree(vision.grid_sample, F.grid_sample, wide, grid, **options, roundings=200, scale=9)
    agree_gradients(lambda a, g: vision.grid_sample(a, g, **options), lambda a, g: F.grid_sample(a, g, **options), wide,
                    grid)  # fmt: skip


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_grid_sample_of_volumes_and_f32(mode):
    rng = np.random.default_rng(2)
    x, grid = rng.normal(size=(2, 2, 3, 4, 5)), rng.uniform(-1.4, 1.4, (2, 2, 3, 4, 3))
    for padding in vision.PADDINGS:
        options = {"mode": mode, "padding_mode": padding, "align_corners": False}
        agree(vision.grid_sample, F.grid_sample, x, grid, **options, roundings=200, scale=9)
    image, places = (
        rng.normal(size=(1, 2, 4, 4)).astype(np.float32),
        rng.uniform(-1, 1, (1, 9, 9, 2)).astype(np.float32),
    )
    if mode == "bilinear":  # a place is off by 2 roundings of 4 pixels, which tell by up to 8
        agree(vision.grid_sample, F.grid_sample, image, places, align_corners=False, roundings=16, scale=64)


def test_grid_sample_at_odd_places():
    x = np.arange(6.0).reshape(1, 1, 2, 3)
    grid = np.array([np.nan, 0.0, np.inf, 0.0, -1.0, -1.0, 1.0, 1.0, 0.0, 0.0]).reshape(1, 1, 5, 2)
    for padding in ("zeros", "border"):
        found = vision.grid_sample(*map(tensorlib.from_numpy, (x, grid)), padding_mode=padding, align_corners=True)
        assert found[0, 0, 0].tolist() == [1.5, 0.0 if padding == "zeros" else 3.5, 0, 5, 2.5]


@pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid:UserWarning")  # PyTorch's
@given(st.data())
@few(8)
def test_affine_grid(data):
    align = data.draw(st.booleans())
    for theta, size in (((2, 2, 3), (2, 3, 4, 5)), ((1, 3, 4), (1, 2, 3, 1, 4)), ((1, 2, 3), (1, 1, 1, 2))):
        x = draw(data, theta)
        agree(vision.affine_grid, F.affine_grid, x, size, align_corners=align, roundings=8, scale=9)
        agree_gradients(
            lambda a, s=size: vision.affine_grid(a, s, align), lambda a, s=size: F.affine_grid(a, s, align), x
        )


def test_sampling_where_an_identity_map_looks_changes_nothing():
    x = tensorlib.arange(24, dtype="f64").reshape(1, 2, 3, 4)
    same = tensorlib.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]], dtype="f64")
    for align in (False, True):
        found = vision.grid_sample(x, vision.affine_grid(same, x.shape, align), align_corners=align)
        assert (found - x).abs().max().item() < 24 * 16 * 2.0**-53


# ---- normalisation ---------------------------------------------------------------------------------------------------

SHAPES = st.sampled_from([(4, 6), (3, 6, 5), (2, 6, 3, 4), (2, 6, 2, 2, 3)])


def parameters(data, n):
    weight, bias = draw(data, (n,)), draw(data, (n,))
    return data.draw(st.sampled_from([(None, None), (weight, bias), (weight, None)]))


@given(st.data())
@few(12)
def test_batch_norm(data):
    x = draw(data, data.draw(SHAPES))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    mean, var = rng.normal(size=6).astype(np.float32), rng.uniform(0.5, 2, 6).astype(np.float32)
    weight, bias = parameters(data, 6)
    # differences of values up to 6, over a standard deviation of at least 0.7, times 3
    agree(normalise.batch_norm, F.batch_norm, x, mean, var, weight, bias, roundings=12, scale=30)
    if x.std(axis=(0, *range(2, x.ndim))).min() > 0.3:
        running = [tensorlib.from_numpy(v.copy()) for v in (mean, var)]
        peers = [torch.from_numpy(v.astype(np.float64)) for v in (mean, var)]
        agree(lambda a, w, b: normalise.batch_norm(a, *running, w, b, training=True, momentum=0.3),
              lambda a, w, b: F.batch_norm(a, *peers, w, b, training=True, momentum=0.3), x, weight, bias,
              roundings=24, scale=60)  # fmt: skip
        for ours, theirs in zip(running, peers):
            assert np.abs(ours.numpy() - theirs.numpy()).max() < 32 * 2.0**-24 * 9
        agree_gradients(lambda a: normalise.batch_norm(a, training=True),
                        lambda a: F.batch_norm(a, None, None, training=True), x)  # fmt: skip


@given(st.data())
@few(12)
def test_group_and_instance_norm(data):
    x = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=data.draw(SHAPES)).astype(np.float32)
    weight, bias = parameters(data, 6)
    for dtype in (np.float32, np.float64):  # two ways: a fused kernel, and not
        y = x.astype(dtype)
        w, b = (v if v is None else v.astype(dtype) for v in (weight, bias))
        groups = data.draw(st.sampled_from([1, 2, 3]))
        agree(normalise.group_norm, F.group_norm, y, groups, w, b, roundings=32, scale=30)
        if x.ndim > 2:
            agree(normalise.instance_norm, F.instance_norm, y, weight=w, bias=b, roundings=64, scale=30)
    if x.ndim > 2:
        agree_gradients(normalise.instance_norm, F.instance_norm, x)
    agree_gradients(lambda a: normalise.group_norm(a, 2), lambda a: F.group_norm(a, 2), x)


def test_instance_norm_with_running_statistics():
    x = np.random.default_rng(1).normal(size=(3, 2, 4, 5)).astype(np.float32)
    running, peers = [tensorlib.zeros(2), tensorlib.ones(2)], [torch.zeros(2).double(), torch.ones(2).double()]
    agree(
        lambda a: normalise.instance_norm(a, *running), lambda a: F.instance_norm(a, *peers), x, roundings=64, scale=9
    )
    assert all(np.abs(o.numpy() - t.numpy()).max() < 2.0**-20 for o, t in zip(running, peers))
    agree(lambda a: normalise.instance_norm(a, *running, use_input_stats=False),
          lambda a: F.instance_norm(a, *peers, use_input_stats=False), x, roundings=32, scale=9)  # fmt: skip


@given(st.data())
@few(8)
def test_local_response_norm(data):
    x = draw(data, data.draw(st.sampled_from([(2, 6, 4), (1, 3, 2, 2)])))
    size = data.draw(st.integers(1, 5))
    agree(normalise.local_response_norm, F.local_response_norm, x, size, alpha=0.1, k=2.0, roundings=24)
    agree_gradients(lambda a: normalise.local_response_norm(a, size), lambda a: F.local_response_norm(a, size), x)


def test_errors():
    x = tensorlib.zeros(1, 2, 3, 3)
    calls = [
        (vision.grid_sample, (x, tensorlib.zeros(1, 2, 2, 3)), {}),
        (vision.grid_sample, (x, tensorlib.zeros(2, 2, 2, 2)), {}),
        (vision.grid_sample, (x, tensorlib.zeros(1, 2, 2, 2)), {"mode": "cubic"}),
        (vision.grid_sample, (x, tensorlib.zeros(1, 2, 2, 2)), {"padding_mode": "wrap"}),
        (vision.affine_grid, (tensorlib.zeros(1, 3, 3), (1, 1, 2, 2)), {}),
        (normalise.batch_norm, (x,), {}),
        (normalise.batch_norm, (tensorlib.zeros(1, 2),), {"training": True}),
        (normalise.batch_norm, (x, tensorlib.zeros(3), tensorlib.zeros(3)), {}),
        (normalise.group_norm, (x, 3), {}),
        (normalise.instance_norm, (tensorlib.zeros(2, 2, 1),), {}),
        (normalise.local_response_norm, (x, 0), {}),
    ]
    for function, arguments, options in calls:
        with pytest.raises(ShapeError, match=f"{function.__name__}: got"):
            function(*arguments, **options)
    with pytest.raises(DTypeError, match="grid_sample: got input of f32, grid of f64"):
        vision.grid_sample(x, tensorlib.zeros(1, 2, 2, 2, dtype="f64"))
    with pytest.raises(DTypeError, match="group_norm: got dtype i64"):
        normalise.group_norm(tensorlib.zeros(1, 2, dtype="i64"), 1)
