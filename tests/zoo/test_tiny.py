"""The `TINY` config of every architecture: weights begin, whole sequences and steps on a cache agree, a loss falls."""

import importlib
import inspect

import numpy as np
import pytest

import tensorlib
from tensorlib import optim
from zoo import auto

IDS = [[3, 5, 7, 9, 11, 2], [4, 4, 8, 1, 0, 6]]


@pytest.fixture(params=sorted(auto.MODELS))
def model(request):
    module, model, config = auto.MODELS[request.param]
    module = importlib.import_module(f"zoo.{module}")
    tiny = [v for n, v in vars(module).items() if n.startswith("TINY") and type(v) is getattr(module, config)]
    assert tiny, f"no config of {config} in {module.__name__} whose name begins with TINY"
    tensorlib.manual_seed(0)
    return getattr(module, model)(tiny[0])


def run(model, ids):
    """Logits or hidden states of ids [..., T]."""
    again = (ids,) if "decoder_ids" in inspect.signature(model.forward).parameters else ()
    found = model(ids, *again)
    return found if isinstance(found, tensorlib.Tensor) else found[0]


def test_steps(model):
    ids = tensorlib.tensor(IDS, dtype="i64")
    with tensorlib.no_grad():
        whole = run(model, ids).numpy()
        assert whole.shape[0] == 2 and np.isfinite(whole).all()
        if "cache" not in inspect.signature(model.forward).parameters:
            return
        cache = model.new_cache(8, "f32")
        parts = [model(ids[0, :4], cache, last_only=False).numpy().copy()]
        parts += [model(ids[0, i : i + 1], cache).numpy().copy() for i in (4, 5)]
    assert np.abs(np.concatenate(parts) - whole[0]).max() <= 1e-4 * np.abs(whole).max()


def test_a_loss_falls(model):
    """Of a step against the gradient, small enough for its linear part to tell: the first loss less r |g|, +- half."""
    ids = tensorlib.tensor(IDS, dtype="i64")
    weight = tensorlib.randn(*run(model, ids).shape)

    def loss():
        return (run(model, ids) * weight).mean()

    first = loss()
    first.backward()
    parameters = [p for p in model.parameters() if p.grad is not None]
    square = sum((p.grad.double() ** 2).sum().item() for p in parameters)
    rate = 1e-3 * abs(first.item()) / square
    optim.SGD(parameters, lr=rate).step()
    fallen = (first - loss()).item()
    assert 0.5 < fallen / (rate * square) < 1.5
