"""Clipping, mixed precision, loss scaling, averages, anomalies: against torch, or against what they promise."""

import numpy as np
import pytest

import tensorlib
from tensorlib import amp, nn, optim
from tensorlib.autograd import detect_anomaly
from tensorlib.errors import AnomalyError, DTypeError, ShapeError

torch = pytest.importorskip("torch")
inf = float("inf")


def gradients(scale=1.0):
    torch.manual_seed(0)
    theirs = [torch.ones(s, dtype=torch.float64, requires_grad=True) for s in ((3, 4), (5,), ())]
    for p in theirs:
        p.grad = torch.randn_like(p) * scale
    mine = [tensorlib.ones(tuple(p.shape), dtype="f64", requires_grad=True) for p in theirs]
    for p, q in zip(mine, theirs):
        p.grad = tensorlib.from_torch(q.grad.clone())
    return mine, theirs


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, inf])
@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_is_torchs(norm_type, max_norm):
    mine, theirs = gradients()
    total = nn.utils.clip_grad_norm_(mine, max_norm, norm_type)
    other = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    assert total == pytest.approx(other.item(), rel=1e-12)
    for p, q in zip(mine, theirs):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-12)
    nn.utils.clip_grad_value_(mine, 0.1)
    assert max(p.grad.abs().max().item() for p in mine) <= 0.1


def test_clipping_tells_of_what_is_no_number():
    mine, _ = gradients(inf)
    with pytest.raises(AnomalyError, match="norm"):
        nn.utils.clip_grad_norm_(mine, 1.0, error_if_nonfinite=True)


def test_vectors_of_parameters():
    mine, _ = gradients()
    vector = nn.utils.parameters_to_vector(mine)
    nn.utils.vector_to_parameters(vector.detach() * 2, mine)
    assert all((p == 2).all() for p in mine) and vector.shape == (18,)
    with pytest.raises(ShapeError, match=r"\(18,\)"):
        nn.utils.vector_to_parameters(vector[:-1], mine)


def test_autocast_casts_products_and_keeps_weights():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    x = tensorlib.randn(5, 8)
    with amp.autocast(dtype="bf16"):
        y = model(x)
        loss = tensorlib.cross_entropy(y, tensorlib.zeros(5, dtype="i64"))
    assert y.dtype is tensorlib.bf16 and loss.dtype is tensorlib.f32
    loss.backward()
    assert all(p.grad.dtype is tensorlib.f32 and p.dtype is tensorlib.f32 for p in model.parameters())
    assert model(x).dtype is tensorlib.f32
    with amp.autocast(enabled=False), tensorlib.no_grad():
        assert model(x).dtype is tensorlib.f32
    with amp.autocast(), tensorlib.no_grad():
        assert model(x).dtype is tensorlib.bf16 and model(x).softmax(-1).dtype is tensorlib.f32
    assert amp.autocast()(model)(x).dtype is tensorlib.bf16
    with pytest.raises(DTypeError, match="bf16 or f16"):
        amp.autocast(dtype="f64")


def test_autocast_is_torchs_within_bf16():
    torch.manual_seed(0)
    theirs = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 4))
    ours = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))
    ours.load_state_dict({k: tensorlib.from_torch(v.clone()) for k, v in theirs.state_dict().items()})
    ours.requires_grad_()
    x, t = torch.randn(6, 16), torch.tensor([0, 1, 2, 3, 0, 1])
    with torch.autocast("cpu", torch.bfloat16):
        torch.nn.functional.cross_entropy(theirs(x).float(), t).backward()
    with amp.autocast():
        tensorlib.cross_entropy(ours(tensorlib.from_torch(x)).float(), tensorlib.from_torch(t)).backward()
    for p, q in zip(ours.parameters(), theirs.parameters()):
        # three roundings to bf16 on every way of values below 1, either side
        assert np.abs(p.grad.numpy() - q.grad.numpy()).max() <= 2 * 3 * 2.0**-9 * max(1.0, q.grad.abs().max().item())


def test_autocast_with_attention_over_whole_sequences():
    """The CPU's kernel for it takes f32."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 5, 8).bfloat16() for _ in range(3))
    with amp.autocast():
        got = nn.FullAttention(4).attend(0, *map(tensorlib.from_torch, (q, k, v)), None)
    heads = [x.double().reshape(2, 5, 2, 4).transpose(1, 2) for x in (q, k, v)]
    want = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).reshape(2, 5, 8)
    assert got.dtype is tensorlib.f32 and np.abs(got.numpy() - want.numpy()).max() < 1e-5


def test_loss_scaling_keeps_small_gradients_and_leaves_out_infinite_ones():
    w = tensorlib.ones(4, requires_grad=True)
    scaler, optimizer = amp.GradScaler(init_scale=2.0**12, growth_interval=2), optim.SGD([w], lr=1.0)
    x = tensorlib.full((4,), 2.0**-20, dtype="f32")

    def once(factor):
        optimizer.zero_grad()
        scaler.scale((w.half() * x.half() * factor).float().sum()).backward()
        done = scaler.step(optimizer)
        scaler.update()
        return done

    assert once(2.0**-4)  # 2**-24 is f16's least; scaled it keeps all its digits
    assert (w == 1 - 2.0**-24).all()
    before = w.detach().clone()
    assert not once(2.0**25) and (w == before).all() and scaler.get_scale() == 2.0**11
    assert once(1.0) and once(1.0) and scaler.get_scale() == 2.0**12
    other = amp.GradScaler()
    other.load_state_dict(scaler.state_dict())
    assert other.get_scale() == 2.0**12
    scaler.scale(w.sum()).backward()
    scaler.unscale_(optimizer)
    assert nn.utils.clip_grad_norm_([w], 1.0) == pytest.approx(2.0, rel=0.1)


def test_averages_of_weights():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = optim.ExponentialMovingAverage(model, decay=0.75, warmup=False)
    first = model[0].weight.detach().clone()
    with tensorlib.no_grad():
        model[0].weight.add_(4.0)
    model(tensorlib.randn(3, 2))
    ema.update()
    with ema.applied():
        assert (model[0].weight - first - 1.0).abs().max().item() < 1e-6
        assert model[1].num_batches_tracked.item() == 1
    assert (model[0].weight - first - 4.0).abs().max().item() < 1e-6
    other = optim.ExponentialMovingAverage(model)
    other.load_state_dict(ema.state_dict())
    assert (other.averages["0.weight"] == ema.averages["0.weight"]).all()


def test_anomalies_are_named():
    x = tensorlib.tensor([4.0, 0.0], requires_grad=True)
    with detect_anomaly():
        (x * 2).sum().backward()
        with pytest.raises(AnomalyError, match=r"log: got 1 NaN of 2 elements, shape \(2,\)"):
            (x - 1).log()
        with pytest.raises(AnomalyError, match="sqrt, backward: got 1 NaN"):
            (x.sqrt() * x).sqrt().mul(0.0).sum().backward()
    (x - 1).log()
    with detect_anomaly(infinite=True), pytest.raises(AnomalyError, match="reciprocal: got 1 NaN or infinities"):
        x.reciprocal()
