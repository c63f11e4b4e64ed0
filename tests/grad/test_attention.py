"""Gradients of attention over caches, and of scaled_dot_product_attention."""

import numpy as np
import pytest
import torch

import tensorlib
from tensorlib.errors import GradError
from tensorlib.ops import attention_vjp, fused
from tensorlib.ops.attention import scaled_dot_product_attention
from tests.grad.cases import against_torch, check, randn, tensor

OPTIONS = [
    {},
    {"causal": False, "scale": 0.4},
    {"softcap": 1.5},
    {"window": 2, "start": 1},
    {"causal": False, "window": 2, "start": 1},
    {"causal": False, "length": 3},
    {"start": -1},
]


def drawn(t, heads, groups, width, rows):
    rng = np.random.default_rng(0)
    return [randn(rng, t, heads, width), randn(rng, groups, rows, width), randn(rng, groups, rows, width)]


def reference(q, k, v, start=None, scale=None, causal=True, window=0, softcap=0.0, length=None):
    t, rows = q.shape[0], k.shape[1]
    length = (rows if start is None else start + t) if length is None else length
    start = length - t if start is None else start
    at, keys = torch.arange(t)[:, None] + start, torch.arange(rows)
    seen = (keys < length) & ((keys <= at) if causal else (keys > -1))
    if window:
        seen = seen & (keys > at - window) & (keys < at + window)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[0], 0) for x in (k, v))
    scores = torch.einsum("thd,hrd->htr", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    weights = torch.where(seen, torch.softmax(torch.where(seen, scores, -1e30), -1), 0.0)
    return torch.einsum("htr,hrd->thd", weights, v)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_attention_against_differences(options):
    check(lambda *x: fused.attention(*x, **options), *drawn(3, 4, 2, 2, 5))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("shape", "cache"), [((3, 4, 2, 5, 20), "f16"), ((37, 3, 1, 20, 70), "f32")])
def test_attention_against_torch(shape, options, cache):
    against_torch(
        lambda *x: fused.attention(*x, **options),
        lambda *x: reference(*x, **options),
        drawn(*shape),
        ["f32", cache, cache],
        4e-3 if cache == "f16" else 2e-5,
    )


def test_blocks_of_queries(monkeypatch):
    monkeypatch.setattr(attention_vjp, "BLOCK", 5 * 4 * 40)
    against_torch(fused.attention, reference, drawn(33, 4, 2, 8, 40), tolerance=2e-5)


def test_positions_in_memory_and_what_lies_behind_them():
    """Rows that are not seen may hold anything; their gradient is 0."""
    arrays = drawn(3, 2, 1, 4, 9)
    for x in arrays[1:]:
        x[:, 6:] = np.nan
    start = tensorlib.tensor([3])
    q, k, v = (tensor(x, "f32").requires_grad_() for x in arrays)
    fused.attention(q, k, v, start).square().sum().backward()
    wanted = [torch.tensor(x[:, :6] if i else x, requires_grad=True) for i, x in enumerate(arrays)]
    reference(*wanted, 3).square().sum().backward()
    for got, want in zip((q, k, v), wanted, strict=True):
        rows = got.grad.numpy() if got is q else got.grad.numpy()[:, :6]
        np.testing.assert_allclose(rows, want.grad.numpy(), rtol=0, atol=2e-5 * (1 + want.grad.abs().max().item()))
    assert (k.grad.numpy()[:, 6:] == 0).all() and (v.grad.numpy()[:, 6:] == 0).all()
    out = fused.attention(q, k, v, start)
    start += 1
    with pytest.raises(GradError, match="start was changed"):
        out.sum().backward()


def test_queries_that_see_nothing_have_no_gradient():
    q, k, v = (tensor(x, "f32").requires_grad_() for x in drawn(2, 2, 1, 4, 6))
    fused.attention(q, k, v, -5).sum().backward()
    assert all((x.grad == 0).all() for x in (q, k, v))


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"enable_gqa": True}, {"attn_mask": True}])
def test_scaled_dot_product_attention(options):
    rng = np.random.default_rng(0)
    keys = 1 if options.get("enable_gqa") else 2
    arrays = [randn(rng, 2, 2, 3, 4), randn(rng, 2, keys, 5, 4), randn(rng, 2, keys, 5, 4)]
    theirs = dict(options)
    if options.get("attn_mask"):
        mask = rng.random((3, 5)) < 0.6
        mask[:, 0] = True
        options, theirs = {"attn_mask": tensorlib.from_numpy(mask)}, {"attn_mask": torch.tensor(mask)}
    ours = lambda *x: scaled_dot_product_attention(*x, **options)  # noqa: E731
    check(ours, *arrays, second=not options)
    against_torch(ours, lambda *x: torch.nn.functional.scaled_dot_product_attention(*x, **theirs), arrays)
