"""Attention over packed sequences: the row's own cases run in test_rows.py; here ALiBi, half precision, errors."""

import numpy as np
import pytest

import tensorlib
from tensorlib.errors import ShapeError
from tensorlib.ops import varlen


def packed(dtype="f32"):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal(s).astype(np.float32) for s in ((9, 4, 16), (12, 2, 16), (12, 2, 16)))
    return [tensorlib.from_numpy(a).to(dtype) for a in (q, k, v)]


@pytest.mark.parametrize("dtype, unit", [("f32", 2.0**-24), ("f16", 2.0**-11)])
@pytest.mark.parametrize("alibi", [None, [0.5, 0.25, 0.125, 1.0]])
def test_against_the_reference(dtype, unit, alibi):
    q, k, v = packed(dtype)
    slopes = None if alibi is None else tensorlib.tensor(alibi, dtype=dtype)
    found = tensorlib.varlen_attn(q, k, v, [0, 4, 9], [0, 7, 12], is_causal=True, window_size=(3, -1), alibi=slopes)
    exact = [x.to("f64").numpy() for x in (q, k, v)]
    want = varlen._ref(np, *exact, [0, 4, 9], [0, 7, 12], None, True, (3, -1), alibi)
    # scores of |q||k| 16 terms round at 16 u each in the exponent, weights and their sum add to 1, |v| < 4
    scores = 16 * np.abs(exact[0]).max() * np.abs(exact[1]).max()
    bound = 4 * (2 * scores * 2.0**-24 + 20 * 2.0**-24) + 4 * unit
    assert found.dtype.name == dtype and np.abs(found.to("f64").numpy() - want).max() <= bound


def test_gradients_flow_as_through_each_sequence_alone():
    q, k, v = (x.to("f64").requires_grad_() for x in packed())
    ends = tensorlib.tensor([0, 4, 9]), tensorlib.tensor([0, 7, 12])
    (tensorlib.varlen_attn(q, k, v, *ends) ** 2).sum().backward()
    grads = [x.grad.numpy().copy() for x in (q, k, v)]
    for x in (q, k, v):
        x.grad = None
    for a, b, c, d in ((0, 4, 0, 7), (4, 9, 7, 12)):
        parts = (x[s:e].transpose(0, 1) for x, s, e in ((q, a, b), (k, c, d), (v, c, d)))
        (tensorlib.scaled_dot_product_attention(*parts, enable_gqa=True) ** 2).sum().backward()
    assert all(np.allclose(x.grad.numpy(), g, rtol=1e-12, atol=1e-12) for x, g in zip((q, k, v), grads))


def test_starts_that_do_not_fit():
    q, k, v = packed()
    for starts in (([0, 4, 9], [0, 12]), ([0, 9], [0, 11]), ([0, 5, 4, 9], [0, 3, 6, 12]), ([1, 9], [0, 12])):
        with pytest.raises(ShapeError, match="varlen_attn"):
            tensorlib.varlen_attn(q, k, v, *starts)
