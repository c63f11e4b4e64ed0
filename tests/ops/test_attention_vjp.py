"""Gradients of attention by the CPU's kernel, against the composition in float64."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import tensorlib
from kernels_numba import levels
from tensorlib import backend
from tensorlib.ops import fused

# T, heads, KV heads, rows, D, start, causal, window, dtype of k and v
CASES = [
    (70, 2, 1, 100, 64, 13, True, 0, "f32"),
    (70, 2, 2, 130, 64, 60, True, 20, "f16"),
    (40, 4, 2, 75, 40, 30, False, 9, "f32"),
    (33, 1, 1, 50, 128, 17, False, 0, "bf16"),
    (3, 4, 2, 40, 16, 10, True, 0, "f32"),
    (5, 1, 1, 9, 3, 0, True, 2, "f32"),
]


def operands(case):
    """q, k, v, g as tensors; what stands behind the last key is NaN."""
    t, heads, groups, rows, d, start, *_, dtype = case
    rng = np.random.default_rng(t)
    shapes = (t, heads, d), (groups, rows, d), (groups, rows, d), (t, heads, d)
    q, k, v, g = (tensorlib.from_numpy(rng.standard_normal(s).astype(np.float32)) for s in shapes)
    k[:, start + t :] = float("nan")
    v[:, start + t :] = float("nan")
    return q, k.to(dtype), v.to(dtype), g


def gradients(case, *given, to=None):
    """Gradients of q, k and v, in `to` or as they are."""
    *_, start, causal, window, _ = case
    *leaves, g = (x.to(to) if to else x for x in given)
    leaves = [x.detach().requires_grad_() for x in leaves]
    fused.attention(*leaves, start, None, causal, window).backward(g)
    return [x.grad.to("f64").numpy() for x in leaves]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients(case):
    """Bound: of sums of at most 130 terms in f32, rounded once to the operand's dtype."""
    given = operands(case)
    for got, want, x in zip(gradients(case, *given), gradients(case, *given, to="f64"), given):
        unit = {"f32": 0, "f16": 2.0**-11, "bf16": 2.0**-8}[x.dtype.name]
        bound = unit * abs(want) + 2.0**-20 * abs(want).max()
        assert (abs(got - want) <= bound).all(), (abs(got - want) - bound).max()
        assert abs(want).max() > 0.1


def test_it_is_one_kernel_and_keeps_no_weights(monkeypatch):
    launched, launch = [], backend.launch

    def listed(kernel, *args, **kwargs):
        launched.append(kernel.name)
        launch(kernel, *args, **kwargs)

    monkeypatch.setattr(backend, "launch", listed)
    gradients(CASES[0], *operands(CASES[0]))
    assert "attention_vjp.vjp" in launched and not any(name.startswith(("matmul", "softmax")) for name in launched)


def test_threads_change_no_bit():
    case = CASES[1]
    given, found = operands(case), []
    try:
        for threads in (1, 2):
            backend.set_num_threads(threads)
            found.append(gradients(case, *given))
    finally:
        backend.set_num_threads(None)
    assert all(np.array_equal(a, b) for a, b in zip(*found))


def test_queries_that_see_nothing_have_no_gradient():
    q, k, v, g = operands(CASES[0])
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    fused.attention(q, k, v, 0, None, True, 0, 0.0, 0).backward(g)
    assert not any(x.grad.abs().amax().item() for x in (q, k, v))


def test_it_can_be_differentiated_again():
    q, k, v, g = operands(CASES[5])
    leaves = [x.detach()[:, :5].requires_grad_() if x is not q else x.detach().requires_grad_() for x in (q, k, v)]
    wide = [x.detach().to("f64").requires_grad_() for x in leaves]
    second = []
    for those, weight in ((leaves, g), (wide, g.to("f64"))):
        first = tensorlib.autograd.grad(fused.attention(*those, 0), those, weight, create_graph=True)
        second.append(tensorlib.autograd.grad(sum(x.square().sum() for x in first), those))
    for got, want in zip(*second):
        assert (got.to("f64") - want).abs().amax().item() <= 2.0**-18 * want.abs().amax().item()


def test_scaled_dot_product_attention_takes_it(monkeypatch):
    rng = np.random.default_rng(1)
    values = [rng.standard_normal((2, h, n, 16)) for h, n in ((4, 20), (2, 20), (2, 20))]
    g, found = rng.standard_normal((2, 4, 20, 16)), []
    for dtype in (np.float64, np.float32):
        leaves = [tensorlib.from_numpy(x.astype(dtype)).requires_grad_() for x in values]
        out = tensorlib.scaled_dot_product_attention(*leaves, is_causal=True, enable_gqa=True)
        out.backward(tensorlib.from_numpy(g.astype(dtype)))
        found.append([x.grad.numpy() for x in leaves])
    for want, got in zip(*found):
        assert (abs(got - want) <= 2.0**-20 * abs(want).max()).all()


@pytest.mark.parametrize("level", ["avx2", "portable"])
def test_lower_levels(level):
    if os.uname().machine != "x86_64" or not levels.LEVELS[level].flags <= levels.cpu_flags():
        pytest.skip(f"this CPU does not run {level}")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-n0",
        f"{__file__}::test_gradients",
        "-k",
        "f32",
    ]
    env, root = {**os.environ, "TENSORLIB_CPU_LEVEL": level}, pathlib.Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:]
