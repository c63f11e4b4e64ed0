"""Calls held to PyTorch's: the same op on the same arrays there, in float64, and its gradients."""

import numpy as np
import torch

import tensorlib
from tensorlib.device import Array
from tests.ops.cases import FLOAT_ROUNDING, strided, values


def draw(data, shape, dtype="f32", domain=(-3.0, 3.0)):
    """An array of a shape with drawn strides and values of a dtype in the domain."""
    return strided(data.draw, lambda n: values(data.draw, dtype, n, domain, special=False), shape)


def ours_of(x):
    """NumPy arrays, also in lists, as Tensors over their memory."""
    if isinstance(x, (list, tuple)):
        return type(x)(ours_of(v) for v in x)
    return tensorlib.from_numpy(x) if isinstance(x, np.ndarray) else x


def theirs_of(x):
    """NumPy arrays, also in lists, as PyTorch's, floats in float64."""
    if isinstance(x, (list, tuple)):
        return type(x)(theirs_of(v) for v in x)
    if not isinstance(x, np.ndarray):
        return x
    return torch.from_numpy(np.array(x, np.float64 if x.dtype.kind not in "biu" else None, order="C"))


def flat(x):
    """Results as a list: of one, or of a tuple."""
    return [v for part in x for v in flat(part)] if isinstance(x, (list, tuple)) else [x]


def agree(ours, theirs, *args, roundings=4, scale=0.0, **kwargs):
    """Whether both give the same: integers and bools equal, floats within `roundings` half units in the last place of
    |result| + scale; scale is the size of what is added up inside, where that is more than the result.
    """
    options = {k: ours_of(v) for k, v in kwargs.items()}
    found = flat(ours(*ours_of(args), **options))
    want = flat(theirs(*theirs_of(args), **{k: theirs_of(v) for k, v in kwargs.items()}))
    assert len(found) == len(want)
    for f, w in zip(found, want):
        close(f, w, roundings, scale)


def close(found, want, roundings=4, scale=0.0):
    """See `agree`."""
    unit = FLOAT_ROUNDING.get(found.dtype.name, 0)
    f, w = found.numpy(), want.numpy() if isinstance(want, torch.Tensor) else np.asarray(want)
    assert f.shape == w.shape, (f.shape, w.shape)
    if not unit:
        assert np.array_equal(f, w), (f, w)
        return
    f = f.astype(np.float64)
    with np.errstate(invalid="ignore"):
        error, bound = np.abs(f - w), roundings * unit * (np.abs(w) + scale)
    fine = (error <= bound) | (f == w) | (np.isnan(f) & np.isnan(w))
    assert fine.all(), (
        f"{(~fine).sum()} of {fine.size}: got {f[~fine][:4]}, want {w[~fine][:4]}: {(error / bound).max()}"
    )


def agree_gradients(ours, theirs, *args, **kwargs):
    """Whether d(sum of w * results) / d(every float argument) is the same for both; w is drawn. In f64."""
    given = [np.array(a, np.float64) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in args]
    leaves = [_leaf(ours_of(a)) for a in given]
    peers = [_leaf(theirs_of(a)) for a in given]
    found, want = flat(ours(*leaves, **kwargs)), flat(theirs(*peers, **{k: theirs_of(v) for k, v in kwargs.items()}))
    rng, total, peer_total = np.random.default_rng(7), None, None
    for f, w in zip(found, want):
        if f.dtype.kind == "f":
            weights = rng.uniform(0.5, 1.5, f.shape)
            one, other = (f * tensorlib.from_numpy(weights)).sum(), (w * torch.from_numpy(weights)).sum()
            total, peer_total = (one, other) if total is None else (total + one, peer_total + other)
    total.backward()
    peer_total.backward()
    for leaf, peer in zip(leaves, peers):
        if isinstance(leaf, Array) and leaf.requires_grad:
            expected = np.zeros(leaf.shape) if peer.grad is None else peer.grad.numpy()
            error = np.abs((np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy()) - expected)
            # a few thousand roundings of f64 at most, relative to the largest derivative
            assert error.max(initial=0) <= 2.0**-40 * (1 + np.abs(expected).max(initial=0)), (leaf.grad, peer.grad)


def _leaf(x):
    is_float = (isinstance(x, Array) and x.dtype.kind == "f") or (isinstance(x, torch.Tensor) and x.is_floating_point())
    return x.requires_grad_() if is_float else x
