"""Optimisers' steps on a GPU: those of the CPU, in every row and dtype."""

import numpy as np
import pytest

import tensorlib
from tensorlib import optim

ROWS = [
    ("SGD", {}), ("SGD", {"momentum": 0.9}), ("SGD", {"momentum": 0.9, "nesterov": True}), ("Adagrad", {}),
    ("RMSprop", {"momentum": 0.5}), ("RMSprop", {"centered": True}), ("Adam", {"weight_decay": 0.1}),
    ("AdamW", {"amsgrad": True}), ("Lion", {}),
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["f32", "f64", "bf16"])
@pytest.mark.parametrize(("name", "options"), ROWS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(ROWS)])
def test_steps_are_those_of_the_cpu(name, options, dtype):
    tensorlib.manual_seed(0)
    here = [tensorlib.randn(s).to(dtype).requires_grad_() for s in ((1100,), (3, 5), ())]
    there = [p.detach().to("cuda:0").requires_grad_() for p in here]
    optimizers = [getattr(optim, name)(ps, lr=0.1, **options) for ps in (here, there)]
    for _ in range(3):
        for p, q in zip(here, there):
            p.grad = tensorlib.randn(p.shape).to(dtype)
            q.grad = p.grad.to("cuda:0")
        for optimizer in optimizers:
            optimizer.step(scale=0.5)
    u = {"f32": 2.0**-24, "f64": 2.0**-53, "bf16": 2.0**-8}[dtype]
    for p, q in zip(here, there):
        p, q = (x.detach().cpu().to("f64").numpy() for x in (p, q))
        # 3 steps of some ten operations, fused or not, on numbers below 5; bf16: a step's one rounding either way
        assert np.abs(p - q).max() <= 3 * (2 if dtype == "bf16" else 20) * u * 5
