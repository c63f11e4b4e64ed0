"""Gradients of what orders and of running extremes and log-sums: finite differences, PyTorch's, ties, rows."""

import numpy as np
import pytest
import torch

import tensorlib
from tensorlib.errors import GradError
from tensorlib.ops import scan, sort
from tests.grad.cases import against_torch, check, randn


def distinct(*shape):
    """Numbers further apart than a difference's step, in random order."""
    return np.random.default_rng(0).permutation(int(np.prod(shape))).reshape(shape) / 7.0


CASES = {
    "sort": (lambda x: sort.sort(x, 1).values, lambda x: torch.sort(x, 1).values),
    "descending": (lambda x: sort.sort(x, 0, True)[0], lambda x: torch.sort(x, 0, True).values),
    "msort": (lambda x: sort.msort(x), lambda x: torch.msort(x)),
    "topk": (lambda x: sort.topk(x, 2, 1).values, lambda x: torch.topk(x, 2, 1).values),
    "smallest": (lambda x: sort.topk(x, 2, 1, False)[0], lambda x: torch.topk(x, 2, 1, False).values),
    "kthvalue": (lambda x: sort.kthvalue(x, 2, 1).values, lambda x: torch.kthvalue(x, 2, 1).values),
    "keepdim": (lambda x: sort.kthvalue(x, 3, 0, True)[0], lambda x: torch.kthvalue(x, 3, 0, True).values),
    "cummax": (lambda x: scan.cummax(x, 1).values, lambda x: torch.cummax(x, 1).values),
    "cummin": (lambda x: scan.cummin(x, 0).values, lambda x: torch.cummin(x, 0).values),
    "logcumsumexp": (lambda x: scan.logcumsumexp(x, 1), lambda x: torch.logcumsumexp(x, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_differences_and_torch(name):
    ours, theirs = CASES[name]
    x = distinct(3, 4, 2)
    check(lambda x: ours(x) ** 2, x)
    against_torch(ours, theirs, [x])
    against_torch(lambda x: ours(x.transpose(0, 1)[::2]), lambda x: theirs(x.transpose(0, 1)[::2]), [distinct(3, 6, 2)])


TIES = {
    "sort": lambda x: torch.sort(x, dim=1, stable=True).values,
    "descending": lambda x: torch.sort(x, dim=0, descending=True, stable=True).values,
    "cummax": CASES["cummax"][1],
    "cummin": CASES["cummin"][1],
}


@pytest.mark.parametrize("name", TIES)
def test_ties_as_in_torch(name):
    x = np.random.default_rng(1).integers(0, 3, (4, 5, 2)).astype(float)
    against_torch(CASES[name][0], TIES[name], [x])


def test_kthvalue_of_equal_elements_takes_the_one_that_sort_names():
    x = tensorlib.tensor([[1.0, 1.0, 1.0]], requires_grad=True)
    sort.kthvalue(x, 2).values.sum().backward()
    assert x.grad.tolist() == [[0, 1, 0]]


def test_topk_of_equal_elements_takes_the_first():
    x = tensorlib.tensor([2.0, 5, 5, 5], requires_grad=True)
    (sort.topk(x, 2).values * tensorlib.tensor([10.0, 20.0])).sum().backward()
    assert x.grad.tolist() == [0, 10, 20, 0]


def test_single_elements():
    for function in (lambda x: sort.sort(x, 0)[0], lambda x: sort.topk(x, 1)[0], lambda x: sort.kthvalue(x, 1)[0],
                     lambda x: scan.cummax(x, 0)[0], lambda x: scan.logcumsumexp(x, 0)):  # fmt: skip
        x = tensorlib.tensor(3.0, requires_grad=True)
        (function(x) * 2).backward()
        assert x.grad.item() == 2


def test_logcumsumexp_does_not_overflow():
    x, g = np.array([[-2000.0, 0.0, 1000.0, 999.0], [1e4, -1e4, 1e4, 3.0]]), np.array([[1.0, -2.0, 0.0, 3.0]] * 2)
    leaf, twin = tensorlib.tensor(x, dtype="f64", requires_grad=True), torch.tensor(x, requires_grad=True)
    scan.logcumsumexp(leaf, 1).backward(tensorlib.tensor(g, dtype="f64"))
    torch.logcumsumexp(twin, 1).backward(torch.tensor(g))
    np.testing.assert_allclose(leaf.grad.numpy(), twin.grad.numpy(), rtol=1e-12, atol=1e-12)
    nothing = tensorlib.tensor([-float("inf"), -float("inf"), 1.0], requires_grad=True)
    scan.logcumsumexp(nothing, 0).sum().backward()
    assert nothing.grad.tolist() == [0, 0, 1]


def test_weights_of_bincount():
    x = tensorlib.tensor([1, 3, 1])
    w = tensorlib.tensor([1.0, 2.0, 3.0], requires_grad=True)
    (sort.bincount(x, w, 6) * tensorlib.arange(6)).sum().backward()
    assert w.grad.tolist() == [1, 3, 1]


def test_what_has_no_gradient():
    x = tensorlib.tensor([1.0, 3.0, 1.0], requires_grad=True)
    assert not sort.argsort(x).requires_grad
    assert not sort.searchsorted(tensorlib.tensor([0.0, 2.0]), x).requires_grad
    for function in (sort.unique, sort.unique_consecutive, lambda x: sort.histc(x, 4)):
        with pytest.raises(GradError, match="a gradient asked for with respect to"):
            function(x).sum().backward()


def test_half_precision():
    x = randn(np.random.default_rng(2), 4, 9)
    against_torch(lambda x: sort.sort(x, 1)[0] ** 2, lambda x: torch.sort(x, 1)[0] ** 2, [x], ["bf16"])
