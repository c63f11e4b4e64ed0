"""What the tests of gradients share: finite differences in float64, and PyTorch's gradients of the same function."""

import numpy as np
import torch

import tensorlib
from tensorlib.autograd import grad

STEP = 6e-6  # about the cube root of f64's rounding: truncation and rounding of a central difference are equal


def randn(rng, *shape):
    return rng.standard_normal(shape)


def tensor(array, dtype="f64"):
    """A copy of a NumPy array of f64, of any shape, in a dtype."""
    return tensorlib.from_numpy(np.array(array, np.float64)).to(dtype)


def leaves(arrays, dtype="f64"):
    return [tensor(a, dtype).requires_grad_() for a in arrays]


def projected(out, weights):
    """A number out of the op's result (a tensor, or a tuple of them): even a linear op's gradient has one by that."""
    outs = out if isinstance(out, tuple) else (out,)
    return sum((((o / 2 + w) * o).sum() for o, w in zip(outs, weights, strict=True)), 0.0)


def _weights(function, xs, seed):
    with tensorlib.no_grad():
        out = function(*xs)
    rng = np.random.default_rng(seed)
    outs = out if isinstance(out, tuple) else (out,)
    return [tensor(rng.standard_normal(o.shape)) for o in outs]


def differences(function, arrays):
    """Central differences of a function of f64 tensors to a 0-d tensor, by every element of every array."""
    found = []
    for i, array in enumerate(arrays):
        slope = np.zeros(array.shape)
        for place in np.ndindex(*array.shape):
            ends = []
            for step in (STEP, -STEP):
                moved = [a.copy() for a in arrays]
                moved[i][place] += step
                with tensorlib.no_grad():
                    ends.append(function(*(tensor(m) for m in moved)).item())
            slope[place] = (ends[0] - ends[1]) / (2 * STEP)
        found.append(slope)
    return found


def check(function, *arrays, second=True, seed=0):
    """First gradients of function(*tensors) against central differences, then (`second`) those of the gradients."""
    xs = leaves(arrays)
    weights = _weights(function, xs, seed)

    def loss(*tensors):
        return projected(function(*tensors), weights)

    close(grad(loss(*xs), xs), differences(loss, arrays))
    if not second:
        return
    inner = [tensor(np.random.default_rng(seed + 1).standard_normal(a.shape)) for a in arrays]

    def slope(*tensors):
        tensors = [t if t.requires_grad else t.detach().requires_grad_() for t in tensors]
        with tensorlib.enable_grad():
            return projected(grad(loss(*tensors), tensors, create_graph=True), inner)

    xs = leaves(arrays)
    found = grad(slope(*xs), xs, allow_unused=True)
    found = [tensorlib.zeros(x.shape, dtype="f64") if g is None else g for x, g in zip(xs, found, strict=True)]
    close(found, differences(slope, arrays))


def close(found, wanted):
    """Truncation is STEP^2 f'''/6, rounding u |f| / STEP: both near 4e-11 for the values near 1 drawn here."""
    for got, want in zip(found, wanted, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-6, atol=1e-6 * max(1.0, np.abs(want).max(initial=0)))


def against_torch(ours, theirs, arrays, dtypes=None, tolerance=None, seed=0):
    """Gradients of `ours` (tensorlib) and `theirs` (torch, in f64 from the same rounded operands) agree to `tolerance`
    of the largest element, or of 1, the size of the terms that cancel in a smaller one.
    """
    dtypes = dtypes or ["f32"] * len(arrays)
    xs = [tensor(a, d).requires_grad_() for a, d in zip(arrays, dtypes, strict=True)]
    twins = [torch.tensor(x.detach().to("f64").numpy(), requires_grad=True) for x in xs]
    out, want = ours(*xs), theirs(*twins)
    assert out.shape == tuple(want.shape)
    g = np.random.default_rng(seed).standard_normal(out.shape)
    g = tensor(g, out.dtype)
    out.backward(g)
    want.backward(torch.tensor(g.to("f64").numpy()))
    for x, twin in zip(xs, twins, strict=True):
        assert x.grad.dtype is x.dtype
        scale = twin.grad.abs().max().item() if twin.grad.numel() else 0.0
        bound = (tolerance or {"f32": 1e-5, "f16": 4e-3, "bf16": 3e-2}[x.dtype.name]) * (scale + 1)
        np.testing.assert_allclose(x.grad.to("f64").numpy(), twin.grad.numpy(), rtol=0, atol=bound)
