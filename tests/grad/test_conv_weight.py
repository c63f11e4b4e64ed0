"""Gradients of convolutions' weights by their own kernel, and small images that share panels: against float64."""

import numpy as np
import pytest

import tensorlib
from tensorlib import backend

# N, C and O per group, size, kernel, stride, padding, dilation, groups
CASES = [
    (3, 8, 5, (9, 7), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (2, 16, 16, (20, 33), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (3, 40, 30, (9, 11), (3, 2), (2, 2), (1, 0), (2, 1), 2),
    (5, 64, 64, (4, 4), (3, 3), (1, 1), (1, 1), (1, 1), 1),
    (2, 20, 33, (8, 8), (1, 1), (2, 2), (0, 0), (1, 1), 1),
    (2, 33, 17, (40,), (5,), (2,), (2,), (1,), 1),
    (2, 16, 16, (40, 24), (3, 3), (1, 1), (3, 3), (1, 1), 1),
    (4, 9, 10, (5, 6), (3, 3), (2, 2), (1, 1), (1, 1), 1),
]


def gradients(case, dtype, launched=None):
    """(result, gradients of input, weight and bias) as float64, of operands that f16 can hold."""
    n, c, o, size, kernel, stride, padding, dilation, groups = case
    rng = np.random.default_rng(n + c)
    shapes = (n, c * groups, *size), (o * groups, c, *kernel), (o * groups,)
    leaves = [
        tensorlib.from_numpy(rng.integers(-64, 65, s) / 64).to(dtype).requires_grad_() for s in shapes
    ]  # fmt: skip
    function = getattr(tensorlib, f"conv{len(size)}d")
    out = function(*leaves, stride, padding, dilation, groups)
    out.backward(tensorlib.from_numpy(rng.integers(-64, 65, out.shape) / 64).to(dtype))
    return [a.detach().to("f64").numpy() for a in (out, *(x.grad for x in leaves))]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_gradients(case, dtype):
    """Bound: sums of up to 2,000 products of at most 1, and one rounding to bf16; absolute where terms cancel."""
    n, c, o, size, kernel, *_ = case
    terms = max(n * int(np.prod(size)), max(c, o) * int(np.prod(kernel)))
    unit = {"f32": 2.0**-24, "bf16": 2.0**-8}[dtype]
    for got, want in zip(gradients(case, dtype), gradients(case, "f64")):
        assert got.shape == want.shape and abs(want).max() > 0.1
        assert (abs(got - want) <= unit * abs(want) + (terms + 1) * 2.0**-24 * terms**0.5 * 4).all()


def test_the_kernels_are_used(monkeypatch):
    launched, launch = [], backend.launch

    def listed(kernel, *args, **kwargs):
        launched.append(kernel.name)
        launch(kernel, *args, **kwargs)

    monkeypatch.setattr(backend, "launch", listed)
    gradients(CASES[3], "f32")
    assert "conv_weight.weight" in launched and launched.count("conv.conv") == 2


def test_threads_change_no_bit():
    found = []
    try:
        for threads in (1, 2, 3):
            backend.set_num_threads(threads)
            found.append([gradients(case, "f32") for case in CASES[2:4]])
    finally:
        backend.set_num_threads(None)
    for other in found[1:]:
        assert all(np.array_equal(a, b) for x, y in zip(found[0], other) for a, b in zip(x, y))


def test_it_can_be_differentiated_again():
    rng, found = np.random.default_rng(0), []
    values = [rng.standard_normal(s) for s in ((2, 8, 5, 5), (8, 8, 3, 3))]
    for dtype in ("f64", "f32"):
        leaves = [tensorlib.from_numpy(v).to(dtype).requires_grad_() for v in values]
        out = tensorlib.conv2d(*leaves, padding=1).square().sum()
        first = tensorlib.autograd.grad(out, leaves, create_graph=True)
        found.append(tensorlib.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for want, got in zip(*found):
        assert (got.to("f64") - want).abs().amax().item() <= 2.0**-18 * want.abs().amax().item()
