"""Derived ops and ctc_loss against PyTorch in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.ops import ctc, derived
from tests.ops.cases import few
from tests.ops.parity import agree, agree_gradients, draw


@given(st.data())
@few(6)
def test_derived(data):
    x, y, z = (
        draw(data, (3, 4), domain=(0.1, 3)),
        draw(data, (4,), domain=(0.1, 3)),
        draw(data, (3, 4), domain=(0.5, 3)),
    )
    agree(derived.clamp_min, torch.clamp_min, x, 1.0)
    agree(derived.clamp_max, torch.clamp_max, x, 1.0)
    agree(derived.addcdiv, torch.addcdiv, x, y, z, value=0.5, scale=3)
    agree(derived.float_power, lambda a, b: torch.float_power(a, b), x.astype(np.float64), 2.5, roundings=9)
    agree(derived.ldexp, torch.ldexp, x, np.array([1, -2, 0, 5]))
    agree(derived.xlog1py, torch.special.xlog1py, np.where(x < 1, 0, x), y, roundings=8)
    agree(derived.entr, torch.special.entr, np.where(x < 1, 0, x), roundings=8)
    agree(lambda *v: derived.broadcast_tensors(*v), torch.broadcast_tensors, x, y)
    agree(derived.diagflat, torch.diagflat, x, 1)
    agree(derived.vdot, torch.vdot, y, z[0], scale=36)
    agree(derived.dist, torch.dist, x, z, 3, roundings=16, scale=9)
    for dim, places in ((1, z), (0, z), (1, y)):
        agree(lambda a, b, d=dim: derived.trapezoid(a, b, dim=d), lambda a, b, d=dim: torch.trapezoid(a, b, dim=d), x,
              places, scale=40)  # fmt: skip
    agree(derived.trapezoid, torch.trapezoid, x, dx=0.5, scale=40)
    agree_gradients(derived.addcdiv, torch.addcdiv, x, y, z)
    agree_gradients(derived.entr, torch.special.entr, x)


@given(st.data())
@few(5)
def test_cdist(data):
    x, y = draw(data, (2, 3, 4)), draw(data, (1, 5, 4))
    for p in (1.0, 2.0, float("inf")):
        agree(derived.cdist, torch.cdist, x, y, p, roundings=12, scale=6)
    agree_gradients(derived.cdist, torch.cdist, x, np.broadcast_to(y, (2, 5, 4)).copy())


def test_membership_and_infinities():
    x = np.array([[1, 5], [7, 1]])
    for test in (np.array([7, 1]), np.array([], np.int64), np.array([[9]])):
        agree(derived.isin, torch.isin, x, test)
        agree(derived.isin, torch.isin, x, test, invert=True)
    odd = np.array([np.inf, -np.inf, np.nan, 0.0])
    agree(derived.isposinf, torch.isposinf, odd)
    agree(derived.isneginf, torch.isneginf, odd)
    assert derived.isin(tensorlib.tensor([float("nan")]), tensorlib.tensor([float("nan")])).tolist() == [False]
    with pytest.raises(DTypeError, match="isin: got elements of i64 and f32"):
        derived.isin(tensorlib.tensor([1]), tensorlib.tensor([1.0]))
    with pytest.raises(ShapeError, match="cdist: got shapes"):
        derived.cdist(tensorlib.zeros(2, 3), tensorlib.zeros(2, 4))
    with pytest.raises(ShapeError, match="trapezoid: got shape"):
        derived.trapezoid(tensorlib.zeros(0))


@given(st.data())
@few(6)
def test_ctc_loss(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    t, n, c, s = 7, 3, 4, 3
    logs = torch.log_softmax(torch.from_numpy(rng.normal(size=(t, n, c)) * 2), 2).numpy()
    targets = rng.integers(1, c, (n, s))
    lengths, sizes = np.array([7, 6, 5]), np.array([3, data.draw(st.integers(0, 3)), 2])
    options = {"reduction": data.draw(st.sampled_from(["mean", "sum", "none"]))}
    agree(ctc.ctc_loss, F.ctc_loss, logs, targets, lengths, sizes, **options, roundings=512, scale=60)
    joined = np.concatenate([row[:k] for row, k in zip(targets, sizes)])
    agree(ctc.ctc_loss, F.ctc_loss, logs, joined, lengths, sizes, **options, roundings=512, scale=60)
    raw = rng.normal(size=(t, n, c))
    ours = [tensorlib.from_numpy(v) for v in (targets, lengths, sizes)]
    theirs = [torch.from_numpy(v) for v in (targets, lengths, sizes)]
    agree_gradients(lambda a: ctc.ctc_loss(a.log_softmax(2), *ours, **options),
                    lambda a: F.ctc_loss(a.log_softmax(2), *theirs, **options), raw)  # fmt: skip


def test_ctc_loss_of_one_sample_and_of_what_is_impossible():
    logs = torch.log_softmax(torch.arange(12.0, dtype=torch.float64).reshape(4, 3).sin(), 1).numpy()
    found = ctc.ctc_loss(tensorlib.from_numpy(logs), tensorlib.tensor([1, 2]), 4, 2)
    want = F.ctc_loss(torch.from_numpy(logs), torch.tensor([1, 2]), torch.tensor(4), torch.tensor(2))
    assert found.shape == () and abs(found.item() - want.item()) < 1e-12
    x = tensorlib.from_numpy(logs[:, None]).requires_grad_()
    impossible = tensorlib.tensor([[1, 1, 1]])  # repeated labels need blanks between them: 5 steps
    assert ctc.ctc_loss(x, impossible, [4], [3]).item() == float("inf")
    loss = ctc.ctc_loss(x, impossible, [4], [3], zero_infinity=True)
    loss.backward()
    assert loss.item() == 0 and not x.grad.any()
    with pytest.raises(ShapeError, match="ctc_loss: got input_lengths"):
        ctc.ctc_loss(x, impossible, [5], [3])
    with pytest.raises(ShapeError, match="ctc_loss: got log_probs of shape"):
        ctc.ctc_loss(x, impossible, [4], [3], blank=3)
    with pytest.raises(DTypeError, match="ctc_loss: got targets of f32"):
        ctc.ctc_loss(x, impossible.to("f32"), [4], [3])


def test_names_of_torch_linalg_and_where_with_one_argument():
    x = np.array([[0.0, 3.0, 1.0], [5.0, 0.0, 2.0]])
    agree(tensorlib.where, torch.where, x)
    agree(tensorlib.where, torch.where, x > 1)
    agree(lambda v: tensorlib.where(v[0, 1]), lambda v: torch.where(v[0, 1]), x)
    agree(tensorlib.linalg.cross, torch.linalg.cross, x, x[::-1].copy(), scale=30)
    agree(tensorlib.linalg.vecdot, torch.linalg.vecdot, x, x, scale=30)
    agree(tensorlib.linalg.diagonal, torch.linalg.diagonal, x[None], offset=1)
