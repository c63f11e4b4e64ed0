"""Recurrent layers against torch.nn's with the same weights, in float64."""

import pytest

import tensorlib
from tensorlib import nn
from tensorlib.errors import ShapeError
from tests.nn.test_layers import both, close

torch = pytest.importorskip("torch")

OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"batch_first": True, "bias": False},
    {"num_layers": 3, "batch_first": True, "bidirectional": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_sequences(name, options):
    torch.manual_seed(0)
    ours, theirs = both(name, (3, 4), options | ({"nonlinearity": "relu"} if name == "RNN" else {}))
    states = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    for shape, with_state in (((5, 2, 3), False), ((5, 2, 3), True), ((5, 3), False), ((5, 3), True)):
        batch = [] if len(shape) == 2 else [5 if options.get("batch_first") else 2]
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        h = [torch.randn(states, *batch, 4, dtype=torch.float64) for _ in range(2 if name == "LSTM" else 1)]
        mine = tensorlib.from_torch(x.detach().clone()).requires_grad_()
        hs = tuple(tensorlib.from_torch(s) for s in h)
        h, hs = (tuple(h), hs) if name == "LSTM" else (h[0], hs[0])
        (y, end), (z, last) = (theirs(x, h), ours(mine, hs)) if with_state else (theirs(x), ours(mine))
        close(z, y)
        for a, b in zip(last, end) if name == "LSTM" else [(last, end)]:
            close(a, b)
        y.square().sum().backward()
        z.square().sum().backward()
        close(mine.grad, x.grad, 10)
    for (path, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters()):
        assert a.grad is not None, path
        close(a.grad, b.grad, 100)


@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
def test_cells(name):
    torch.manual_seed(0)
    ours, theirs = both(name, (3, 4), {})
    x = torch.randn(2, 3, dtype=torch.float64)
    y, z = theirs(x), ours(tensorlib.from_torch(x))
    for a, b in zip(z, y) if name == "LSTMCell" else [(z, y)]:
        close(a, b)
    y, z = theirs(x, y), ours(tensorlib.from_torch(x), z)
    for a, b in zip(z, y) if name == "LSTMCell" else [(z, y)]:
        close(a, b)


def test_dropout_between_layers_only_when_training():
    tensorlib.manual_seed(0)
    layer = nn.GRU(3, 4, num_layers=2, dropout=0.5)
    x = tensorlib.ones(5, 2, 3)
    assert not (layer(x)[0] == layer(x)[0]).all()
    layer.eval()
    assert (layer(x)[0] == layer(x)[0]).all()


def test_what_does_not_fit_is_told():
    layer = nn.LSTM(3, 4)
    with pytest.raises(ShapeError, match="in = 3"):
        layer(tensorlib.zeros(5, 2, 4))
    with pytest.raises(ShapeError, match=r"\(1, 2, 4\)"):
        layer(tensorlib.zeros(5, 2, 3), (tensorlib.zeros(1, 3, 4),) * 2)
    with pytest.raises(ValueError, match="tanh or relu"):
        nn.RNN(3, 4, nonlinearity="sigmoid")
