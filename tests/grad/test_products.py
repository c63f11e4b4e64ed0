"""Gradients of matmul, linear and products with quantised weights."""

import numpy as np
import pytest
import torch

import tensorlib
from tensorlib.errors import GradError
from tensorlib.ops import linalg
from tests.grad.cases import against_torch, check, randn

SHAPES = [
    ((3,), (3,)), ((3,), (3, 2)), ((2, 3), (3,)), ((2, 3), (3, 4)), ((3,), (2, 3, 4)), ((2, 2, 3), (3,)),
    ((2, 2, 3), (3, 4)), ((2, 3), (2, 3, 4)), ((2, 1, 2, 3), (3, 3, 1)), ((1, 2, 3), (2, 3, 2)),
    ((2, 2, 0), (0, 3)), ((0, 3), (3, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_matmul(left, right):
    rng = np.random.default_rng(0)
    arrays = randn(rng, *left), randn(rng, *right)
    check(linalg.matmul, *arrays)
    against_torch(linalg.matmul, torch.matmul, arrays)


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
@pytest.mark.parametrize("biased", [True, False])
def test_linear(lead, biased):
    rng = np.random.default_rng(0)
    arrays = [randn(rng, *lead, 4), randn(rng, 3, 4)] + ([randn(rng, 3)] if biased else [])
    check(linalg.linear, *arrays)
    against_torch(linalg.linear, torch.nn.functional.linear, arrays)


@pytest.mark.parametrize("dtypes", [("f16", "f16"), ("bf16", "f32"), ("f32", "f16")])
def test_products_of_half_precision(dtypes):
    rng = np.random.default_rng(0)
    arrays = randn(rng, 2, 5, 300), randn(rng, 7, 300)
    against_torch(linalg.linear, torch.nn.functional.linear, arrays, dtypes)
    against_torch(lambda x, w: x @ w.mT, lambda x, w: x @ w.mT, arrays, dtypes)


def test_strides_and_views():
    rng = np.random.default_rng(0)
    arrays = randn(rng, 3, 4), randn(rng, 3, 5)
    check(lambda x, y: linalg.matmul(x.T, y.expand(2, 3, 5))[:, ::2], *arrays)


def test_integers_have_no_gradient_and_need_none():
    x = tensorlib.tensor([[1, 2], [3, 4]])
    w = tensorlib.ones(2, requires_grad=True)
    (x @ w).sum().backward()
    assert w.grad.tolist() == [4.0, 6.0] and not (x @ x).requires_grad


def test_a_frozen_operand_gets_none():
    x, w = tensorlib.ones(2, 3, requires_grad=True), tensorlib.ones(4, 3)
    linalg.linear(x, w).sum().backward()
    assert x.grad.tolist() == [[4.0] * 3] * 2 and w.grad is None
    with pytest.raises(GradError):
        tensorlib.autograd.grad(linalg.linear(x, w).sum(), w)
