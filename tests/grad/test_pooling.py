"""Gradients of pools and interpolation: finite differences, PyTorch's, ties, and rows against their references."""

import numpy as np
import pytest
import torch

import tensorlib
from tensorlib.ops import pooling
from tests.grad.cases import against_torch, check, randn
from tests.grad.rows import calls, check_values

KINDS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
NAMES = [f"{kind}{d}d" for d in (1, 2, 3) for kind in KINDS]


def first(function):
    """The values of a pool that may give indices too."""

    def values(*args, **kwargs):
        found = function(*args, **kwargs)
        return found[0] if isinstance(found, tuple) else found

    return values


@pytest.mark.parametrize("name", [*NAMES, "interpolate"])
def test_row(name):
    function = first(getattr(pooling, name))
    for (x, *args), kwargs in calls(name, 6 if name in NAMES else 25, "f64"):
        check_values(name, [x, *args], kwargs)
        check(lambda x, args=args, kwargs=kwargs: function(x, *args, **kwargs), np.array(x), second=False)


def test_second_derivatives():
    x = randn(np.random.default_rng(0), 2, 2, 5, 6)
    check(lambda x: pooling.max_pool2d(x, 3, 2, 1) ** 2, x)
    check(lambda x: pooling.avg_pool2d(x, (2, 3), 1, ceil_mode=True, divisor_override=5) ** 2, x)
    check(lambda x: pooling.adaptive_avg_pool2d(x, (3, 4)) ** 2, x)
    for mode in ("bilinear", "bicubic"):
        check(lambda x, mode=mode: pooling.interpolate(x, (4, 9), mode=mode) ** 2, x)


CASES = [
    ("max_pool1d", (2, 3, 40), {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2}),
    ("max_pool2d", (2, 5, 17, 19), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    ("max_pool3d", (2, 3, 7, 8, 9), {"kernel_size": (2, 3, 2), "stride": (1, 2, 2)}),
    ("avg_pool1d", (2, 3, 40), {"kernel_size": 5, "stride": 2, "padding": 2, "count_include_pad": False}),
    ("avg_pool2d", (2, 5, 17, 19), {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
    ("avg_pool2d", (2, 5, 17, 19), {"kernel_size": (3, 4), "divisor_override": 7}),
    ("avg_pool3d", (2, 3, 7, 8, 9), {"kernel_size": 3, "stride": 1, "padding": 1}),
    ("adaptive_avg_pool2d", (2, 5, 17, 19), {"output_size": (5, 1)}),
    ("adaptive_avg_pool3d", (2, 5, 7, 8, 9), {"output_size": 4}),
    ("adaptive_max_pool2d", (2, 5, 17, 19), {"output_size": (5, 30)}),
    ("interpolate", (2, 3, 13), {"scale_factor": 2.3, "mode": "linear"}),
    ("interpolate", (2, 3, 13, 17), {"size": (30, 9), "mode": "nearest"}),
    ("interpolate", (2, 3, 13, 17), {"scale_factor": 1.7, "mode": "nearest-exact"}),
    ("interpolate", (2, 3, 13, 17), {"size": (30, 9), "mode": "bilinear", "align_corners": True}),
    ("interpolate", (2, 3, 13, 17), {"scale_factor": (0.6, 2.5), "mode": "bicubic", "align_corners": False}),
    ("interpolate", (2, 3, 13, 17), {"size": (5, 20), "mode": "area"}),
    ("interpolate", (1, 2, 5, 6, 7), {"size": (8, 3, 14), "mode": "trilinear"}),
]


@pytest.mark.parametrize(("name", "shape", "options"), CASES)
def test_torch(name, shape, options):
    ours, theirs = getattr(pooling, name), getattr(torch.nn.functional, name)
    x = randn(np.random.default_rng(1), *shape)
    against_torch(lambda x: ours(x, **options), lambda x: theirs(x, **options), [x])


def test_half_precision():
    x = randn(np.random.default_rng(2), 2, 5, 17, 19)
    against_torch(
        lambda x: pooling.avg_pool2d(x, 3, 2), lambda x: torch.nn.functional.avg_pool2d(x, 3, 2), [x], ["bf16"]
    )
    against_torch(lambda x: pooling.max_pool2d(x, 2), lambda x: torch.nn.functional.max_pool2d(x, 2), [x], ["bf16"])


def test_a_maximum_gets_the_whole_gradient():
    """Also where the windows do not cover the input: a mask of maxima scaled by the window's size would be off."""
    x = tensorlib.tensor([[[[1.0, 2, 9], [4, 3, 9], [9, 9, 9]]]], requires_grad=True)
    pooling.max_pool2d(x, 2).sum().backward()
    assert x.grad.tolist() == [[[[0, 0, 0], [1, 0, 0], [0, 0, 0]]]]


def test_the_first_of_equal_elements_gets_the_gradient():
    x = tensorlib.ones(1, 2, 2, requires_grad=True)
    twin = torch.ones(1, 2, 2, requires_grad=True)
    pooling.max_pool2d(x, 2).backward()
    torch.nn.functional.max_pool2d(twin, 2).backward()
    assert x.grad.tolist() == twin.grad.tolist() == [[[1, 0], [0, 0]]]


def test_windows_that_overlap_add_up():
    x = tensorlib.tensor([[1.0, 5, 2, 3]], requires_grad=True)
    pooling.max_pool1d(x, 2, 1).sum().backward()
    assert x.grad.tolist() == [[0, 2, 0, 1]]


def test_upsampling_adds_to_the_gradient_that_is_there():
    x = tensorlib.tensor([[[[1.0, 2.0]]]], requires_grad=True)
    (pooling.interpolate(x, scale_factor=2) * 3).sum().backward()
    (pooling.interpolate(x, scale_factor=2).sum() + (x * 10).sum()).backward()
    assert x.grad.tolist() == [[[[26, 26]]]]


def test_indices_come_with_a_gradient():
    x = tensorlib.tensor([[1.0, 5, 2, 3]], requires_grad=True)
    values, indices = pooling.max_pool1d(x, 2, return_indices=True)
    assert values.requires_grad and not indices.requires_grad
    (values * tensorlib.tensor([2.0, 3.0])).sum().backward()
    assert x.grad.tolist() == [[0, 2, 0, 3]]


def test_outputs_of_size_0_give_zeros():
    for function in (pooling.adaptive_avg_pool2d, pooling.adaptive_max_pool2d):
        x = tensorlib.ones(1, 3, 3, requires_grad=True)
        function(x, (0, 2)).sum().backward()
        assert x.grad.tolist() == [[[0.0] * 3] * 3]
