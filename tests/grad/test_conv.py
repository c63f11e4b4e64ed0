"""Gradients of the convolutions: finite differences, PyTorch's, and rows against their references."""

import numpy as np
import pytest
import torch

import tensorlib
from tensorlib.ops import conv
from tensorlib.registry import OPS
from tests.grad.cases import against_torch, check, randn
from tests.grad.rows import calls, check_values

NAMES = [f"{name}{d}d" for d in (1, 2, 3) for name in ("conv", "conv_transpose")]


@pytest.mark.parametrize("name", NAMES)
def test_row(name):
    for args, kwargs in calls(name, 6, "f64"):
        check_values(name, args, kwargs)
        check(lambda *xs, name=name, kwargs=kwargs: getattr(conv, name)(*xs, **kwargs), *args, second=False)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives(name):
    dims = int(name[-2])
    rng = np.random.default_rng(1)
    x, w, b = randn(rng, 2, 4, *(3,) * dims), randn(rng, 4, 2, *(2,) * dims), randn(rng, 4)
    check(lambda *xs: getattr(conv, name)(*xs, stride=2, padding=1, groups=2) ** 2, x, w, b)


CASES = [
    ("conv1d", (2, 4, 30), (6, 4, 3), {"stride": 2, "padding": 1}),
    ("conv1d", (2, 6, 30), (6, 1, 4), {"padding": "same", "groups": 6}),
    ("conv2d", (3, 5, 17, 19), (40, 5, 3, 3), {"stride": (2, 1), "padding": 1}),
    ("conv2d", (2, 40, 9, 9), (24, 40, 1, 1), {}),
    ("conv2d", (2, 8, 13, 12), (16, 4, 3, 2), {"dilation": 2, "padding": "same", "groups": 2}),
    ("conv2d", (1, 16, 20, 20), (16, 1, 3, 3), {"padding": 1, "groups": 16, "stride": 2}),
    ("conv2d", (3, 20, 20), (7, 3, 7, 7), {"stride": 3, "padding": (3, 0)}),
    ("conv3d", (2, 4, 7, 8, 9), (6, 2, 3, 3, 2), {"stride": 2, "padding": 1, "groups": 2}),
    ("conv_transpose1d", (2, 4, 12), (4, 6, 4), {"stride": 2, "padding": 1}),
    ("conv_transpose2d", (2, 6, 9, 8), (6, 4, 3, 3), {"stride": 2, "output_padding": 1, "padding": 1, "groups": 3}),
    ("conv_transpose2d", (2, 6, 5, 6), (6, 4, 3, 3), {"dilation": 3, "output_padding": (2, 1)}),
    ("conv_transpose3d", (1, 4, 3, 4, 5), (4, 3, 2, 3, 2), {"stride": (1, 2, 3)}),
]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("name", "x", "w", "options"), CASES)
def test_torch(name, x, w, options):
    rng = np.random.default_rng(2)
    outputs = w[1] * options.get("groups", 1) if "transpose" in name else w[0]
    arrays = randn(rng, *x), randn(rng, *w), randn(rng, outputs)
    ours, theirs = getattr(conv, name), getattr(torch.nn.functional, name)
    against_torch(lambda *a: ours(*a, **options), lambda *a: theirs(*a, **options), arrays)


def test_half_precision():
    rng = np.random.default_rng(3)
    arrays = randn(rng, 2, 8, 9, 9), randn(rng, 16, 8, 3, 3)
    against_torch(conv.conv2d, torch.nn.functional.conv2d, arrays, ("bf16", "bf16"))


def test_views_and_shared_operands():
    rng = np.random.default_rng(4)
    check(lambda x: conv.conv2d(x[:, :, ::2].transpose(2, 3), x[:3, :, :2, :2]), randn(rng, 3, 3, 6, 4))


def test_an_empty_batch_gives_zeros():
    x, w = tensorlib.zeros(0, 3, 5, 5, requires_grad=True), tensorlib.ones(2, 3, 3, 3, requires_grad=True)
    conv.conv2d(x, w).sum().backward()
    assert x.grad.shape == x.shape and w.grad.tolist() == tensorlib.zeros(2, 3, 3, 3).tolist()


def test_every_convolution_is_a_row():
    assert all(OPS[name].vjp.keys() == {"input", "weight", "bias"} for name in NAMES)
