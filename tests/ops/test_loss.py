"""Losses, distances and gates against PyTorch in float64: values, reductions, weights, gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.ops import gates, loss, loss_rows
from tests.ops.cases import few
from tests.ops.parity import agree, agree_gradients, draw

REDUCTION = st.sampled_from(["mean", "sum", "none"])
SHAPES = st.sampled_from([(6, 4), (2, 4, 3), (5, 4, 2, 3)])


@given(st.data())
@few(25)
def test_cross_entropy(data):
    shape = data.draw(st.sampled_from([(4,), (6, 4), (2, 4, 3), (3, 4, 2, 3)]))
    x = draw(data, shape, domain=(-9, 9))
    places = shape[:1] + shape[2:] if len(shape) > 1 else ()
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    target = rng.integers(0, 4, places)
    if places and data.draw(st.booleans()):
        target = np.where(rng.random(places) < 0.3, -100, target)
        target.flat[0] = 1  # the mean of nothing is NaN
    weight = rng.uniform(0.5, 2, 4).astype(np.float32) if data.draw(st.booleans()) else None
    options = {"reduction": data.draw(REDUCTION), "label_smoothing": data.draw(st.sampled_from([0.0, 0.2, 1.0]))}
    target = np.asarray(target)
    # terms of at most 20, times weights of 2, over classes and places
    agree(loss.cross_entropy, F.cross_entropy, x, target, weight, **options, roundings=12, scale=40 * x.size)
    ours, theirs = tensorlib.from_numpy(target), torch.from_numpy(target)
    agree_gradients(
        lambda v: loss.cross_entropy(v, ours, **options), lambda v: F.cross_entropy(v, theirs, **options), x
    )


@given(st.data())
@few(8)
def test_cross_entropy_of_probabilities(data):
    x, y = draw(data, data.draw(SHAPES)), draw(data, (1,), domain=(0.5, 2))
    y = np.random.default_rng(data.draw(st.integers(0, 99))).dirichlet(np.ones(4), x.shape[:1] + x.shape[2:])
    y = np.moveaxis(y, -1, 1).astype(np.float32)
    weight = np.array([0.5, 1.0, 2.0, 0.25], np.float32) if data.draw(st.booleans()) else None
    options = {"reduction": data.draw(REDUCTION), "label_smoothing": data.draw(st.sampled_from([0.0, 0.3]))}
    agree(loss.cross_entropy, F.cross_entropy, x, y, weight, **options, roundings=12, scale=16 * x.size)
    agree_gradients(
        lambda a, b: loss.cross_entropy(a, b, **options), lambda a, b: F.cross_entropy(a, b, **options), x, y
    )


@given(st.data())
@few(12)
def test_linear_cross_entropy(data):
    """In chunks of 16 rows, of which the last is short."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    n, classes = data.draw(st.sampled_from([1, 16, 35])), 4
    x, w, b = draw(data, (n, 6)), draw(data, (classes, 6)), draw(data, (classes,))
    target = np.where(rng.random(n) < 0.3, -100, rng.integers(0, classes, n))
    target.flat[0] = 1
    options = {"reduction": data.draw(REDUCTION), "label_smoothing": data.draw(st.sampled_from([0.0, 0.2]))}
    ours, theirs = tensorlib.from_numpy(target), torch.from_numpy(target)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_rows, "CHUNK", {"cpu": 16 * classes})
        agree_gradients(
            lambda x, w, b: loss.linear_cross_entropy(x, w, ours, b, **options),
            lambda x, w, b: F.cross_entropy(F.linear(x, w, b), theirs, **options),
            x,
            w,
            b,
        )


def test_linear_cross_entropy_refuses():
    x, w = tensorlib.zeros(3, 2), tensorlib.zeros(5, 2)
    with pytest.raises(ShapeError, match="classes"):
        tensorlib.linear_cross_entropy(x, w, tensorlib.tensor([0, 1, 5]))
    with pytest.raises(ShapeError, match="target"):
        tensorlib.linear_cross_entropy(x, w, tensorlib.tensor([0, 1]))
    with pytest.raises(ShapeError, match="linear_weight"):
        tensorlib.linear_cross_entropy(x, tensorlib.zeros(5, 3), tensorlib.tensor([0, 1, 2]))
    with pytest.raises(DTypeError):
        tensorlib.linear_cross_entropy(x, w, tensorlib.zeros(3))


@given(st.data())
@few(8)
def test_nll_loss(data):
    x = draw(data, data.draw(SHAPES))
    target = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 4, x.shape[:1] + x.shape[2:])
    target.flat[0] = 2
    weight = np.array([0.5, 1.0, 2.0, 0.25], np.float32)
    agree(
        loss.nll_loss, F.nll_loss, x, target, weight, ignore_index=3, reduction=data.draw(REDUCTION), scale=6 * x.size
    )


PAIRED = {
    "mse_loss": {}, "l1_loss": {}, "smooth_l1_loss": {"beta": 0.7}, "huber_loss": {"delta": 0.7}, "kl_div": {},
    "poisson_nll_loss": {"full": True}, "binary_cross_entropy": {}, "binary_cross_entropy_with_logits": {},
}  # fmt: skip


OF_PYTORCH = pytest.mark.filterwarnings("ignore:.*(reduction|size_average):UserWarning")


@OF_PYTORCH
@pytest.mark.parametrize("name", PAIRED)
@given(st.data())
@few(6)
def test_pairs(name, data):
    shape = data.draw(st.sampled_from([(), (5,), (3, 4), (2, 3, 4)]))
    inside = (0.05, 0.95) if name in ("binary_cross_entropy", "kl_div") else (-3, 3)
    x = draw(data, shape, domain=inside)
    y = draw(data, shape, domain=(0, 1) if inside[0] > 0 or "logits" in name else (0.1, 4))
    ours, theirs, options = getattr(loss, name), getattr(F, name), PAIRED[name]
    reduction = data.draw(REDUCTION)
    agree(ours, theirs, x, y, **options, reduction=reduction, roundings=12, scale=50 * max(1, x.size))
    agree_gradients(lambda a, b: ours(a, b, **options, reduction=reduction),
                    lambda a, b: theirs(a, b, **options, reduction=reduction), x, y)  # fmt: skip


@OF_PYTORCH
def test_options():
    rng = np.random.default_rng(4)
    x, y, w = (rng.uniform(0.1, 0.9, (3, 4)) for _ in range(3))
    agree(loss.smooth_l1_loss, F.smooth_l1_loss, x, y, beta=0.0)
    agree(loss.kl_div, F.kl_div, x, y, log_target=True, scale=9)
    agree(loss.kl_div, F.kl_div, x, np.where(y < 0.5, 0, y), reduction="batchmean", scale=9)
    agree(loss.binary_cross_entropy, F.binary_cross_entropy, x, y, w, scale=9)
    agree(
        loss.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits, x, y, w, pos_weight=w[0] * 3, scale=9
    )
    agree(loss.poisson_nll_loss, F.poisson_nll_loss, x, y * 9, log_input=False, full=True, roundings=12, scale=99)
    agree(loss.gaussian_nll_loss, F.gaussian_nll_loss, x, y, w, full=True, scale=9)
    agree_gradients(loss.gaussian_nll_loss, F.gaussian_nll_loss, x, y, w)
    agree(loss.gaussian_nll_loss, F.gaussian_nll_loss, x, y, w[..., 0], scale=9)  # one variance per row


def test_extreme_inputs():
    x = np.array([1e4, -1e4, 90.0, -90.0, 0.0], np.float32)
    t = np.array([1.0, 0.0, 0.0, 1.0, 0.5], np.float32)
    name = "binary_cross_entropy_with_logits"
    agree(getattr(loss, name), getattr(F, name), x, t, reduction="none", roundings=9)
    agree_gradients(getattr(loss, name), getattr(F, name), x, t)
    ends = np.array([0.0, 1.0, 0.0, 1.0], np.float32)
    target = np.array([0.0, 1.0, 1.0, 0.0], np.float32)
    found = loss.binary_cross_entropy(*map(tensorlib.from_numpy, (ends, target)), reduction="none")
    assert found.tolist() == [0, 0, 100, 100]
    p = tensorlib.from_numpy(ends).requires_grad_()
    loss.binary_cross_entropy(p, tensorlib.from_numpy(target)).backward()
    assert not p.grad.isnan().any()
    logits = np.array([[1e4, 0.0], [-1e4, 0.0]], np.float32)
    agree(loss.cross_entropy, F.cross_entropy, logits, np.array([1, 0]))
    agree(
        loss.cross_entropy,
        F.cross_entropy,
        np.array([[np.inf, 0.0], [1.0, 2.0]], np.float32),
        np.array([-100, 1]),
        scale=4,
    )


@given(st.data())
@few(6)
def test_distances(data):
    x, y, z = (draw(data, (4, 3)) for _ in range(3))
    sign = np.array([1.0, -1.0, -1.0, 1.0], np.float32)
    options = {"reduction": data.draw(REDUCTION)}
    agree(loss.cosine_similarity, F.cosine_similarity, x, y[:1], dim=1, roundings=12, scale=1)
    agree(loss.normalize, F.normalize, x, dim=0, roundings=9)
    agree(loss.normalize, F.normalize, x, p=1.0, roundings=9)
    agree(loss.pairwise_distance, F.pairwise_distance, x, y, roundings=12, scale=6)
    agree(loss.triplet_margin_loss, F.triplet_margin_loss, x, y, z, margin=0.5, **options, roundings=20, scale=40)
    agree(loss.margin_ranking_loss, F.margin_ranking_loss, x[:, 0], y[:, 0], sign, margin=0.1, **options, scale=24)
    agree(loss.hinge_embedding_loss, F.hinge_embedding_loss, x[:, 0], sign, margin=0.8, **options, scale=16)
    agree(loss.cosine_embedding_loss, F.cosine_embedding_loss, x, y, sign, margin=0.2, **options, roundings=16, scale=4)
    agree_gradients(loss.cosine_similarity, F.cosine_similarity, x, y)
    agree_gradients(loss.normalize, F.normalize, x)
    agree_gradients(loss.triplet_margin_loss, F.triplet_margin_loss, x, y, z)


def test_zero_vectors():
    zero = tensorlib.zeros(2, 3, requires_grad=True)
    out = loss.cosine_similarity(zero, tensorlib.ones(2, 3)) + loss.normalize(zero).sum()
    out.sum().backward()
    assert out.tolist() == [0, 0] and zero.grad.isfinite().all()


# ---- gates -----------------------------------------------------------------------------------------------------------


@given(st.data())
@few(6)
def test_softmin_and_glu(data):
    x = draw(data, (3, 4, 6))
    dim = data.draw(st.sampled_from([1, 2, -1]))
    agree(gates.softmin, F.softmin, x, dim, roundings=12)
    agree(gates.glu, F.glu, x, dim, roundings=9)
    agree_gradients(lambda v: gates.glu(v, dim), lambda v: F.glu(v, dim), x)
    with pytest.raises(ShapeError, match="glu: got shape"):
        gates.glu(tensorlib.zeros(3), 0)


def test_gumbel_softmax():
    tensorlib.manual_seed(3)
    logits = tensorlib.tensor([[0.0, 1.0, 2.0]]).repeat(20000, 1)
    hard = gates.gumbel_softmax(logits, tau=0.5, hard=True)
    assert ((hard - hard.round()).abs() < 1e-6).all() and ((hard.sum(1) - 1).abs() < 1e-6).all()
    want = np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum()
    # the share of each class: 5 standard deviations of a binomial distribution
    assert (np.abs(hard.mean(0).numpy() - want) < 5 * np.sqrt(want * (1 - want) / 20000)).all()
    soft = gates.gumbel_softmax(logits.to("f16"), tau=2.0)
    assert soft.dtype is tensorlib.f16 and ((soft.to("f32").sum(1) - 1).abs() < 2e-3).all()
    x = tensorlib.tensor([0.1, 0.2, 0.3], requires_grad=True)
    weights = tensorlib.tensor([1.0, 2.0, 3.0])
    grads = []
    for hard in (False, True):
        tensorlib.manual_seed(5)
        (gates.gumbel_softmax(x, hard=hard, dim=0) * weights).sum().backward()
        grads.append(x.grad.tolist())
        x.grad = None
    assert grads[0] == grads[1] and any(grads[0])
    with pytest.raises(ShapeError, match="gumbel_softmax: got tau 0"):
        gates.gumbel_softmax(logits, tau=0)


def test_errors():
    x, t = tensorlib.zeros(2, 3), tensorlib.tensor([0, 1])
    with pytest.raises(ShapeError, match="cross_entropy: got classes from 0 to 3"):
        loss.cross_entropy(x, tensorlib.tensor([0, 3]))
    with pytest.raises(ShapeError, match="nll_loss: got classes from -1 to 1"):
        loss.nll_loss(x, tensorlib.tensor([-1, 1]))
    with pytest.raises(ShapeError, match="cross_entropy: got input of shape"):
        loss.cross_entropy(x, tensorlib.tensor([0, 1, 2]))
    with pytest.raises(ShapeError, match="cross_entropy: got label_smoothing 2"):
        loss.cross_entropy(x, t, label_smoothing=2)
    with pytest.raises(ShapeError, match="cross_entropy: got weight of shape"):
        loss.cross_entropy(x, t, tensorlib.ones(2))
    with pytest.raises(ShapeError, match="mse_loss: got reduction 'avg'"):
        loss.mse_loss(x, x, "avg")
    with pytest.raises(ShapeError, match="l1_loss: got input of shape"):
        loss.l1_loss(x, tensorlib.zeros(3))
    with pytest.raises(DTypeError, match="mse_loss: got dtype i64"):
        loss.mse_loss(t, t)
    with pytest.raises(ShapeError, match="huber_loss: got delta 0"):
        loss.huber_loss(x, x, delta=0)


def test_narrow_floats():
    x = tensorlib.tensor([[1.0, 2.0], [3.0, 4.0]], dtype="bf16")
    found = loss.cross_entropy(x, tensorlib.tensor([0, 1]))
    assert found.dtype is tensorlib.bf16 and abs(found.item() - 0.8133) < 2 * 2.0**-8
