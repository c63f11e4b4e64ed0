"""Normalisation of channels: what the row's own tests do not see."""

import numpy as np
import pytest

import tensorlib
from tensorlib import backend
from tensorlib.ops.channels import channel_norm


def operands(seed=0, shape=(3, 5, 7, 19)):
    rng = np.random.default_rng(seed)
    values = [rng.standard_normal(s).astype(np.float32) for s in (shape, shape[1:2], shape[1:2], shape)]
    values[0] += 3
    return [tensorlib.from_numpy(x) for x in values]


def gradients(x, weight, bias, g):
    leaves = [a.detach().requires_grad_() for a in (x, weight, bias)]
    out, mean, var = channel_norm(*leaves)
    out.backward(g)
    return [a.detach().to("f64").numpy() for a in (out, mean, var, *(leaf.grad for leaf in leaves))]


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_narrow_dtypes(dtype):
    """Computed in f32 and rounded once: half a unit of the dtype, and 64 of f32 for sums of 400 terms."""
    given = [a.to(dtype) for a in operands()]
    unit = {"f16": 2.0**-11, "bf16": 2.0**-8}[dtype]
    for got, want in zip(gradients(*given), gradients(*(a.to("f64") for a in given))):
        assert (abs(got - want) <= unit * abs(want) + 2.0**-18 * (abs(want).max() + 1)).all()


def test_threads_change_no_bit():
    given, found = operands(), []
    try:
        for threads in (1, 2, 3):
            backend.set_num_threads(threads)
            found.append(gradients(*given))
    finally:
        backend.set_num_threads(None)
    assert all(np.array_equal(a, b) for other in found[1:] for a, b in zip(found[0], other))


def test_a_batch_is_one_kernel_there_and_one_back(monkeypatch):
    launched, launch = [], backend.launch

    def listed(kernel, *args, **kwargs):
        launched.append(kernel.name)
        launch(kernel, *args, **kwargs)

    monkeypatch.setattr(backend, "launch", listed)
    gradients(*operands())
    assert [name for name in launched if name != "elementwise.copy"] == ["channels.forward", "channels.vjp"]


def test_statistics_have_gradients_of_their_own():
    x, weight, bias, _ = operands()
    found = []
    for dtype in ("f64", "f32"):
        leaf = x.to(dtype).detach().requires_grad_()
        _, mean, var = channel_norm(leaf, weight.to(dtype), bias.to(dtype))
        (mean * weight.to(dtype) + var.square()).sum().backward()
        found.append(leaf.grad.to("f64").numpy())
    assert (abs(found[1] - found[0]) <= 2.0**-18 * abs(found[0]).max()).all()
