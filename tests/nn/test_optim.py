"""Optimisers and schedules against torch.optim's, step by step."""

import io

import numpy as np
import pytest

import tensorlib
from tensorlib import nn, optim
from tensorlib.errors import GradError, ShapeError

torch = pytest.importorskip("torch")

OPTIMISERS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.05, "momentum": 0.8, "nesterov": True, "maximize": True}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.01, "initial_accumulator_value": 0.1}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.5, "weight_decay": 0.1}),
    ("RMSprop", {"lr": 0.01, "centered": True}),
    ("Adam", {"lr": 0.03, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.03, "amsgrad": True, "maximize": True}),
    ("AdamW", {"lr": 0.03, "betas": (0.8, 0.95), "weight_decay": 0.1}),
    ("AdamW", {"lr": 0.03, "amsgrad": True}),
    ("Adafactor", {"lr": 0.05, "weight_decay": 0.1}),
]
IDS = [f"{name}-{i}" for i, (name, _) in enumerate(OPTIMISERS)]
SHAPES = [(3, 5), (17,), (), (2, 3, 4), (40, 33), (1,)]


def pair(dtype="float64", shapes=SHAPES):
    """(our leaves, torch's) with the same values."""
    torch.manual_seed(0)
    theirs = [torch.randn(s, dtype=getattr(torch, dtype)).requires_grad_() for s in shapes]
    return [tensorlib.from_torch(p.detach().clone()).requires_grad_() for p in theirs], theirs


def feed(mine, theirs, step):
    """The same gradients to both; every third step one parameter gets none."""
    torch.manual_seed(100 + step)
    for i, (p, q) in enumerate(zip(mine, theirs)):
        q.grad = None if i == 1 and step % 3 == 2 else torch.randn_like(q) * (1 + i)
        p.grad = None if q.grad is None else tensorlib.from_torch(q.grad.clone())


def values(x):
    return x.detach().to(torch.float64).numpy() if isinstance(x, torch.Tensor) else x.detach().to("f64").numpy()


@pytest.mark.parametrize(("name", "options"), OPTIMISERS, ids=IDS)
def test_steps_are_torchs(name, options):
    mine, theirs = pair()
    ours, other = getattr(optim, name)(mine, **options), getattr(torch.optim, name)(theirs, **options)
    for step in range(12):
        feed(mine, theirs, step)
        ours.step(), other.step()
        for p, q in zip(mine, theirs):
            # 12 steps of some ten operations, each rounded once
            np.testing.assert_allclose(values(p), values(q), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("name", "options"), [OPTIMISERS[1], OPTIMISERS[8]], ids=["SGD", "AdamW"])
def test_low_precision(name, options, dtype):
    """Against float64 from the same gradients: a parameter is rounded once a step, states are f32."""
    mine, theirs = pair(dtype)
    exact = [q.detach().double().requires_grad_() for q in theirs]
    ours, other = getattr(optim, name)(mine, **options), getattr(torch.optim, name)(exact, **options)
    largest = [np.abs(values(q)).max() for q in exact]
    for step in range(8):
        feed(mine, theirs, step)
        for q, e in zip(theirs, exact):
            e.grad = None if q.grad is None else q.grad.double()
        ours.step(), other.step()
        largest = [max(most, np.abs(values(e)).max()) for most, e in zip(largest, exact)]
    u = torch.finfo(getattr(torch, dtype)).eps / 2
    for p, e, most in zip(mine, exact, largest):
        # 8 roundings of the parameter; what weight decay and g + l2 p carry on of them is less than as much again;
        # and 20 operations of f32 on the update
        bound = 8 * u * most * 2 + 20 * 2.0**-24 * most * 8
        assert np.abs(values(p) - values(e)).max() <= bound


def test_muon_is_torchs_within_bf16():
    mine, theirs = pair("float32", [(6, 9), (9, 6), (8, 8)])
    options = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.9}
    for adjust in (None, "match_rms_adamw"):
        ours = optim.Muon(mine, adjust_lr_fn=adjust, **options)
        other = torch.optim.Muon(theirs, adjust_lr_fn=adjust, **options)
        for step in range(3):
            feed(mine, theirs, 3 * step)
            ours.step(), other.step()
        for p, q in zip(mine, theirs):
            # entries of an orthogonalised matrix are below 1.3, and five iterations in bf16 leave some ten roundings
            assert np.abs(values(p) - values(q)).max() <= 2 * 3 * 0.1 * 1.3 * 10 * 2.0**-8
    with pytest.raises(ShapeError, match="matrices"):
        optim.Muon(pair(shapes=[(3,)])[0])


def test_lion_by_its_formula():
    mine, _ = pair(shapes=[(3, 5)])
    p, m = values(mine[0]).copy(), np.zeros((3, 5))
    lion = optim.Lion(mine, lr=0.1, betas=(0.9, 0.98), weight_decay=0.2)
    rng = np.random.default_rng(0)
    for _ in range(5):
        g = rng.standard_normal((3, 5))
        mine[0].grad = tensorlib.from_numpy(g)
        lion.step()
        p = p * (1 - 0.1 * 0.2) - 0.1 * np.sign(0.9 * m + 0.1 * g)
        m = 0.98 * m + 0.02 * g
        np.testing.assert_allclose(values(mine[0]), p, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("name", "options"), OPTIMISERS, ids=IDS)
def test_saving_and_going_on_is_exact(name, options):
    mine, theirs = pair()
    again = [p.detach().clone().requires_grad_() for p in mine]
    one, two = (getattr(optim, name)(ps, **options) for ps in (mine, again))
    for step in range(3):
        for ps in (mine, again):
            feed(ps, theirs, step)
        one.step(), two.step()
    fresh = getattr(optim, name)(again, lr=123.0)
    fresh.load_state_dict(two.state_dict())
    for step in range(3, 6):
        for ps in (mine, again):
            feed(ps, theirs, step)
        one.step(), fresh.step()
    for p, q in zip(mine, again):
        assert (values(p) == values(q)).all()


def test_goes_on_from_torchs_state():
    mine, theirs = pair()
    ours, other = optim.AdamW(mine, lr=0.1), torch.optim.AdamW(theirs, lr=0.1)
    for step in range(3):
        feed(mine, theirs, step)
        other.step()
    with tensorlib.no_grad():
        for p, q in zip(mine, theirs):
            p.copy_(tensorlib.from_torch(q.detach()))
    file = io.BytesIO()
    torch.save(other.state_dict(), file)
    state = other.state_dict()
    state["state"] = {
        i: {k: tensorlib.from_torch(v.clone()) for k, v in values.items()} for i, values in state["state"].items()
    }
    ours.load_state_dict(state)
    feed(mine, theirs, 4)
    ours.step(), other.step()
    for p, q in zip(mine, theirs):
        np.testing.assert_allclose(values(p), values(q), rtol=1e-13, atol=1e-13)


def test_states_that_a_kernel_could_not_read():
    """Of another shape: told, since the kernel would read beyond them. In another dtype, or without a step: taken."""
    small, large = (optim.AdamW([tensorlib.ones(n, requires_grad=True)]) for n in (3, 4000))
    for optimizer in (small, large):
        p = optimizer.param_groups[0]["params"][0]
        p.grad = tensorlib.ones(p.shape)
        optimizer.step()
    with pytest.raises(ShapeError, match=r"exp_avg of shape \(3,\)"):
        large.load_state_dict(small.state_dict())
    p = tensorlib.ones(4, requires_grad=True)
    ours = optim.SGD([p], lr=1.0, momentum=0.5, dampening=0.5)
    state = ours.state_dict()
    ours.load_state_dict(state | {"state": {0: {"momentum_buffer": tensorlib.ones(4, dtype="bf16")}}})
    p.grad = tensorlib.ones(4)
    ours.step()  # buf = 0.5 * 1 + (1 - 0.5) * 1
    assert p.tolist() == [0.0] * 4
    ours.load_state_dict(state | {"state": {0: {"momentum_buffer": None}}})
    ours.step()
    assert p.tolist() == [-1.0] * 4


def test_groups_have_options_of_their_own():
    mine, theirs = pair()
    groups = lambda ps: [{"params": ps[:2], "lr": 0.5, "weight_decay": 0.3}, {"params": ps[2:]}]  # noqa: E731
    ours, other = optim.AdamW(groups(mine), lr=0.1), torch.optim.AdamW(groups(theirs), lr=0.1)
    for step in range(3):
        feed(mine, theirs, step)
        ours.step(), other.step()
    for p, q in zip(mine, theirs):
        np.testing.assert_allclose(values(p), values(q), rtol=1e-13, atol=1e-13)
    assert "group 1: 4 tensors" in repr(ours)


def test_scale_and_strided_parameters_and_closures():
    base = tensorlib.randn(4, 6, dtype="f64")
    p = base.clone().T.requires_grad_()
    q = base.T.contiguous().requires_grad_()
    for x in (p, q):
        optimizer = optim.AdamW([x], lr=0.1)
        loss = optimizer.step(lambda x=x: ((x * x).sum().backward(), x.sum())[1], scale=0.5)
        assert loss.shape == ()
    assert (p == q).all() and not p.is_contiguous()
    before = base.T.contiguous() * 0.999 - 0.1 * base.T.sign()  # Adam's first step is lr * sign(g)
    assert (p - before).abs().max().item() < 1e-6


def test_what_cannot_be_trained_is_told():
    x = tensorlib.ones(2, requires_grad=True)
    with pytest.raises(ShapeError, match="no parameters"):
        optim.SGD([])
    with pytest.raises(GradError, match="leaf"):
        optim.SGD([x * 2])
    with pytest.raises(ShapeError, match="twice"):
        optim.SGD([x, x])
    with pytest.raises(ValueError, match="lr -1"):
        optim.Adam([x], lr=-1)
    with pytest.raises(TypeError, match="options moment"):
        optim.SGD([{"params": [x], "moment": 1}])
    with pytest.raises(ShapeError, match="groups"):
        optim.SGD([x]).load_state_dict(optim.SGD(nn.Linear(2, 2).parameters()).state_dict())


SCHEDULES = [
    ("StepLR", (3,), {"gamma": 0.5}),
    ("MultiStepLR", ([2, 5, 6],), {}),
    ("ConstantLR", (), {"factor": 0.5, "total_iters": 4}),
    ("LinearLR", (0.2,), {"total_iters": 6}),
    ("ExponentialLR", (0.9,), {}),
    ("PolynomialLR", (6,), {"power": 2.0}),
    ("CosineAnnealingLR", (7,), {"eta_min": 0.01}),
    ("CosineAnnealingWarmRestarts", (3,), {"T_mult": 2}),
    ("OneCycleLR", (2.0,), {"total_steps": 14, "cycle_momentum": False}),
    ("OneCycleLR", (2.0,), {"total_steps": 14, "anneal_strategy": "linear", "cycle_momentum": False}),
    ("LambdaLR", (lambda t: 1 / (1 + t),), {}),
]


@pytest.mark.parametrize(("name", "args", "kwargs"), SCHEDULES, ids=[s[0] for s in SCHEDULES])
def test_schedules_are_torchs(name, args, kwargs):
    ours = optim.SGD([tensorlib.ones(1, requires_grad=True)], lr=0.7)
    other = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.7)
    theirs = getattr(torch.optim.lr_scheduler, name)(other, *args, **kwargs)
    kwargs = {k: v for k, v in kwargs.items() if k != "cycle_momentum"}
    mine = getattr(optim.lr_scheduler, name)(ours, *args, **kwargs)
    for step in range(13):
        assert mine.get_last_lr()[0] == pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-12), step
        other.step()
        theirs.step(), mine.step()
        if step == 6:
            state = mine.state_dict()
            mine = getattr(optim.lr_scheduler, name)(ours, *args, **kwargs)
            mine.load_state_dict(state)


def test_sequence_and_plateau_are_torchs():
    ours = optim.SGD([tensorlib.ones(1, requires_grad=True)], lr=0.7)
    other = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.7)
    s, t = optim.lr_scheduler, torch.optim.lr_scheduler
    mine = s.SequentialLR(ours, [s.LinearLR(ours, 0.1, total_iters=4), s.ExponentialLR(ours, 0.5)], [4])
    theirs = t.SequentialLR(other, [t.LinearLR(other, 0.1, total_iters=4), t.ExponentialLR(other, 0.5)], [4])
    for _ in range(8):
        assert mine.get_last_lr()[0] == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        other.step()
        mine.step(), theirs.step()
    for options in ({}, {"mode": "max", "threshold_mode": "abs", "cooldown": 2, "min_lr": 0.01}):
        mine = s.ReduceLROnPlateau(ours, patience=1, **options)
        theirs = t.ReduceLROnPlateau(other, patience=1, **options)
        for metric in (1.0, 0.9, 0.9, 0.9, 1.2, 1.2, 1.2, 1.3, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5):
            mine.step(metric), theirs.step(metric)
            assert mine.get_last_lr()[0] == pytest.approx(other.param_groups[0]["lr"], rel=1e-9)
