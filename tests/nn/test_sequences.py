"""Attention over whole sequences, for training: equal to a cache's, and to torch's; gradients too."""

import numpy as np
import pytest

import tensorlib
from tensorlib import nn
from tensorlib.errors import ShapeError
from zoo.llama import TINY, LlamaForCausalLM

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(("window", "rotated"), [(0, False), (3, False), (0, True)])
def test_full_attention_is_torchs(window, rotated):
    B, T, H, K, D = 2, 7, 4, 2, 8
    torch.manual_seed(0)
    theirs = [torch.randn(B, T, n * D, dtype=torch.float64, requires_grad=True) for n in (H, K, K)]
    mine = [tensorlib.from_torch(x.detach().clone()).requires_grad_() for x in theirs]
    rotary = nn.RotaryEmbedding(D, 16) if rotated else None
    out = nn.FullAttention(D).attend(0, *mine, rotary, window=window)
    q, k, v = (x.reshape(B, T, -1, D).transpose(1, 2) for x in theirs)
    if rotated:
        angles = torch.arange(T, dtype=torch.float64)[:, None] * 10000.0 ** (-torch.arange(0, D, 2) / D)
        cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
        q, k = (x * cos + torch.cat([-x[..., D // 2 :], x[..., : D // 2]], -1) * sin for x in (q, k))
    ahead = torch.arange(T)[:, None] - torch.arange(T)[None]
    seen = (ahead >= 0) & ((ahead < window) if window else True)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    expected = expected.transpose(1, 2).reshape(B, T, H * D)
    g = torch.randn_like(expected)
    expected.backward(g)
    out.backward(tensorlib.from_torch(g))
    # tables of cos and sin are f32
    bound = {"rtol": 1e-5, "atol": 1e-6} if rotated else {"rtol": 1e-11, "atol": 1e-12}
    for a, b in zip((out, *(x.grad for x in mine)), (expected, *(x.grad for x in theirs))):
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), **bound)


def test_llama_trains_on_batches_that_agree_with_its_cache():
    tensorlib.manual_seed(0)
    model = LlamaForCausalLM(TINY)
    ids = tensorlib.randint(0, 256, (3, 12))
    with tensorlib.no_grad():
        batch = model(ids)
        for i in range(3):
            one = model(ids[i], model.new_cache(16, "f32"), last_only=False)
            assert (batch[i] - one).abs().max().item() <= 1e-5
            assert (model(ids[i]) - one).abs().max().item() <= 1e-5
    optimizer = tensorlib.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = tensorlib.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(np.log(256), rel=0.15) and losses[-1] < losses[0] / 2


def test_padding_takes_no_part_in_training():
    """Loss and gradients of a batch with padding, and with a gap, are those of its texts alone."""
    tensorlib.manual_seed(0)
    model = LlamaForCausalLM(TINY)
    ids, mask = tensorlib.randint(0, 256, (3, 9)), tensorlib.ones(3, 9, dtype="i64")
    mask[0, :4], mask[1, 6:], mask[2, 3:5] = 0, 0, 0
    texts = [row[keep] for row, keep in zip(ids, mask > 0)]
    found = model(ids, attention_mask=mask)
    loss = sum((row[keep] ** 2).sum() for row, keep in zip(found, mask > 0))
    loss.backward()
    got = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    alone = sum((model(text) ** 2).sum() for text in texts)
    alone.backward()
    assert loss.item() == pytest.approx(alone.item(), rel=1e-5)
    for a, p in zip(got, model.parameters()):
        assert (a - p.grad).abs().max().item() <= 1e-4 * p.grad.abs().max().item()
    row = model(ids[0], attention_mask=mask[0])
    assert row.shape == (9, 256) and (row - found[0]).abs().max().item() <= 1e-5 * found.abs().max().item()


def test_padding_refuses():
    model, ids = LlamaForCausalLM(TINY).requires_grad_(False), tensorlib.ones(2, 3, dtype="i64")
    with pytest.raises(ShapeError, match="for a mask of"):
        model(ids, attention_mask=ids[:, :2])
    with pytest.raises(ShapeError, match="and a cache"):
        model(ids, model.new_cache(4), attention_mask=ids)
    with pytest.raises(ShapeError, match="a mask of shape"):
        model(ids, attention_mask=ids[:, :0])
    assert model(ids, attention_mask=0 * ids).abs().max().item() == 0


@pytest.mark.parametrize("window", [0, 4])
def test_what_is_seen(window):
    """Of each sequence the first tokens only, with gradients; the window is of places, not of what is seen."""
    lengths, seen, heads = (5, 3), (2, 3), 2
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((sum(lengths), heads * 4)).astype(np.float32) for _ in range(3)]
    ours = [tensorlib.tensor(x, requires_grad=True) for x in arrays]
    theirs = [torch.tensor(x, requires_grad=True) for x in arrays]
    tokens = nn.Sequences([[0] * n for n in lengths], seen=seen)
    found, want, first = tokens.attend(*ours, heads, window=window), [], 0
    for n, most in zip(lengths, seen):
        q, k, v = (x[first : first + n].reshape(n, heads, 4).transpose(0, 1) for x in theirs)
        i, j = torch.arange(n)[:, None], torch.arange(n)[None]
        sees = (j < most) & ((i - j).abs() < window if window else j >= 0)
        want.append((q @ k.mT / 2).masked_fill(~sees, -torch.inf).softmax(-1) @ v)
        first += n
    want = torch.cat([x.transpose(0, 1).reshape(-1, heads * 4) for x in want])
    np.testing.assert_allclose(found.detach().numpy(), want.detach().numpy(), atol=1e-6)
    (found * found).sum().backward()
    (want * want).sum().backward()
    for x, y in zip(ours, theirs):
        np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), atol=1e-5)
