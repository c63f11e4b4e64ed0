"""Gradients of attention on the GPU backend, interpreted: against the composition in float64 on the CPU."""

import numpy as np
import pytest

import tensorlib
from tensorlib.ops import fused

from .test_attention import array, read, rounded

# T, heads, KV heads, rows, D, start, causal, window, softcap, dtype
CASES = [
    (70, 2, 1, 100, 64, 13, True, 0, 0.0, "f32"),
    (70, 2, 2, 130, 64, 60, True, 20, 0.0, "f16"),
    (40, 4, 2, 75, 40, 30, False, 9, 3.0, "f32"),
    (33, 1, 1, 50, 128, 17, False, 0, 2.0, "bf16"),
    (3, 4, 2, 40, 16, 10, True, 0, 0.0, "f32"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("placed", [False, True])
def test_gradients(case, placed, device):
    """Bound: rounding of weights and scores' gradients to the operands' dtype, once each, of sums of as many terms."""
    t, heads, groups, rows, d, start, causal, window, softcap, dtype = case
    rng = np.random.default_rng(t)
    q, k, v = (rounded(rng.standard_normal(s), dtype) for s in ((t, heads, d), (groups, rows, d), (groups, rows, d)))
    k[:, start + t :] = v[:, start + t :] = np.nan
    g = rounded(rng.standard_normal(q.shape), dtype)
    wide = [tensorlib.from_numpy(x).requires_grad_() for x in (q, k, v)]
    fused.attention(*wide, start, None, causal, window, softcap).backward(tensorlib.from_numpy(g))
    leaves = [array(x, dtype).requires_grad_() for x in (q, k, v)]
    place = array(np.array([start])) if placed else start
    found = fused.attention(*leaves, place, None, causal, window, softcap)
    before = device.launches
    found.backward(array(g, dtype))
    assert device.launches - before < 12  # three kernels, and none per block of a composition
    unit = {"f32": 2.0**-20, "f16": 2.0**-9, "bf16": 2.0**-6}[dtype]
    for x, y in zip(leaves, wide):
        got, want = read(x.grad), read(y.grad)
        assert (abs(got - want) <= unit * (abs(want) + abs(want).max())).all(), abs(got - want).max() / abs(want).max()
    device.check()


def test_of_scaled_dot_product_attention(device):
    rng = np.random.default_rng(1)
    values = [rng.standard_normal((2, h, n, 16)) for h, n in ((4, 20), (2, 33), (2, 33))]
    g = rng.standard_normal((2, 4, 20, 16))
    grads = []
    for place in ("cpu", "cuda:0"):
        leaves = [tensorlib.from_numpy(x.astype(np.float32)).to(place).requires_grad_() for x in values]
        out = tensorlib.scaled_dot_product_attention(*leaves, is_causal=True, enable_gqa=True)
        out.backward(tensorlib.from_numpy(g.astype(np.float32)).to(place))
        grads.append([read(x.grad.contiguous()) for x in leaves])
    for a, b in zip(*grads):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4 * abs(a).max())
