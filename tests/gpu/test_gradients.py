"""Gradients of the rows whose kernels are fused: drawn calls in f32, held to the CPU's gradients in f64.

The GPU may be four times as far off as the CPU's own f32 is (another order of sums, other polynomials), and 2^-18 of
the largest: a handful of roundings at 2^-24 in each of the some ten steps that either side need not share.
"""

import numpy as np
import pytest

from tensorlib.registry import FUNCTIONS, OPS
from tensorlib.testing import seeded
from tensorlib.testing.noise import several
from tensorlib.testing.rows import differentiable, draw, rows, tensors

NAMES = (
    "add mul exp gelu where sum mean amax var norm cumsum cumprod softmax log_softmax logsumexp rms_norm layer_norm"
    " swiglu geglu rope linear matmul attention cross_entropy cross_entropy_rows"
    " linear_cross_entropy embedding gather index_select scatter_add cat sort topk conv1d conv2d conv_transpose2d"
    " max_pool2d avg_pool2d getitem"
).split()
SEEDS = 8
FLOOR = 2.0**-18


def arrays(x):
    """The arrays in lists, tuples and dicts."""
    if isinstance(x, dict):
        x = list(x.values())
    if isinstance(x, (list, tuple)):
        return [a for part in x for a in arrays(part)]
    return [x] if isinstance(x, np.ndarray) else []


def placed(x, made):
    """`x` with tensors for the arrays: those of `made` where it has one."""
    if isinstance(x, dict):
        return {k: placed(v, made) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return type(x)(placed(v, made) for v in x)
    return made[id(x)] if isinstance(x, np.ndarray) else x


def slopes(op, args, kwargs, where, dtype):
    """Gradients of a row's results, each element of which counts differently, [array in f64 per operand]."""
    made, leaves = {}, []
    for a in arrays([args, kwargs]):
        value = tensors(a, where)
        if a.dtype.kind == "f":
            value = value.to(dtype)
            if differentiable(op, args, kwargs, a):
                value = value.detach().requires_grad_()
                leaves.append(value)
        made[id(a)] = value
    if not leaves:
        return []
    outs = several(FUNCTIONS[op.name](*placed(args, made), **placed(kwargs, made)))
    rng = np.random.default_rng(0)
    for out in outs:
        if getattr(out, "requires_grad", False) and out.numel():
            weights = rng.uniform(0.5, 1.5, out.shape).astype(np.float32)
            out.backward(tensors(weights, where).to(dtype), retain_graph=True)  # of several results, one graph
    return [np.zeros(x.shape) if x.grad is None else x.grad.cpu().to("f64").numpy().copy() for x in leaves]


@pytest.mark.parametrize("name", [n for n in NAMES if n in rows()])
def test_gradients_are_those_of_the_cpu(name, device):
    op, compared = OPS[name], 0
    for seed in range(SEEDS):
        args, kwargs = draw(op, seeded(seed, "f32", smooth=True))
        want = slopes(op, args, kwargs, "cpu", "f64")
        near = slopes(op, args, kwargs, "cpu", "f32")
        found = slopes(op, args, kwargs, "cuda:0", "f32")
        for exact, cpu, gpu in zip(want, near, found, strict=True):
            assert gpu.shape == exact.shape and (np.isfinite(gpu) == np.isfinite(exact)).all()
            if exact.size and np.isfinite(exact).all():
                error = np.abs(gpu - exact).max()
                allowed = 4 * np.abs(cpu - exact).max() + FLOOR * np.abs(exact).max()
                assert error <= allowed, f"{name}, seed {seed}: {error:.3g}, {allowed:.3g} are allowed"
                compared += exact.size
    assert compared, f"{name}: no gradient was compared"
    device.check()


def test_every_name_is_a_row():
    unknown = [n for n in NAMES if n not in rows()]
    assert not unknown, f"no rows {unknown}"
