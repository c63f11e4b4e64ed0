"""What leaves the tape, and what is drawn: NumPy and DLPack refuse, random fills cut, dropout repeats itself."""

import numpy as np
import pytest
import torch

import tensorlib
from tensorlib import random
from tensorlib.errors import GradError
from tests.grad.cases import check


def test_numpy_and_dlpack_refuse_what_requires_a_gradient():
    x = tensorlib.ones(2, requires_grad=True)
    for take in (lambda: x.numpy(), lambda: np.asarray(x), lambda: (x * 2).numpy(), lambda: (x[:1]).numpy()):
        with pytest.raises(GradError, match=r"numpy: .*call \.detach\(\)\.numpy\(\)"):
            take()
    with pytest.raises(GradError, match=r"dlpack: .*detach"):
        torch.from_dlpack(x)
    with pytest.raises(GradError, match=r"dlpack: .*detach"):
        x.to_torch()
    assert x.detach().numpy().tolist() == [1, 1] and x.tolist() == [1, 1] and x[0].item() == 1
    with tensorlib.no_grad():
        assert x.numpy().tolist() == [1, 1]


FILLS = [lambda x: x.uniform_(), lambda x: x.normal_(), lambda x: x.exponential_(), lambda x: x.bernoulli_()]


@pytest.mark.parametrize("fill", FILLS)
def test_what_was_there_before_a_fill_gets_no_gradient(fill):
    x = tensorlib.ones(2, 3, requires_grad=True)
    y = x * 2
    fill(y[0])
    (y * 3).sum().backward()
    assert x.grad.tolist() == [[0] * 3, [6] * 3]
    z = x * 2
    fill(z)
    x.grad = None
    (z + x).sum().backward()
    assert x.grad.tolist() == [[1] * 3] * 2


@pytest.mark.parametrize("fill", FILLS)
def test_a_leaf_is_not_filled_but_under_no_grad(fill):
    x = tensorlib.ones(2, requires_grad=True)
    with pytest.raises(GradError, match="a leaf that requires a gradient"):
        fill(x)
    assert x.tolist() == [1, 1]
    with tensorlib.no_grad():
        fill(x)
    assert x.requires_grad


def test_a_fill_changes_what_was_kept():
    x = tensorlib.ones(2, requires_grad=True)
    y = x * 2
    z = y * y
    y.normal_()
    with pytest.raises(GradError, match="changed in place"):
        z.sum().backward()


def test_dropout():
    x = np.random.default_rng(0).standard_normal((3, 50))
    check(lambda x: random.dropout(x.transpose(0, 1), 0.4, generator=random.Generator(1)) ** 2, x)
    leaf = tensorlib.tensor(x, dtype="f32", requires_grad=True)
    out = random.dropout(leaf, 0.4)
    out.sum().backward()
    assert ((leaf.grad != 0) == (out != 0)).all().item() and abs(leaf.grad.amax().item() - 1 / 0.6) < 1e-6
    assert random.dropout(leaf, 0.4, training=False) is leaf


def test_samples_have_no_gradient():
    p = tensorlib.tensor([0.2, 0.8], requires_grad=True)
    assert not random.multinomial(p, 1).requires_grad
    (random.bernoulli(p) * p).sum().backward()
    assert set(p.grad.tolist()) <= {0.0, 1.0}
