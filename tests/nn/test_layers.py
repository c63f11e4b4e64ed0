"""Layers against torch.nn's with the same weights, in float64: results, gradients of inputs and weights, statistics."""

import numpy as np
import pytest

import tensorlib
from tensorlib import nn
from tensorlib.errors import ShapeError

torch = pytest.importorskip("torch")

# (layer, arguments, keywords, shapes of inputs); 30 terms at most, so that 1e-11 is 1e5 roundings of float64
LAYERS = [
    ("Linear", (5, 3), {}, [(2, 4, 5)]),
    ("Linear", (5, 3), {"bias": False}, [(5,)]),
    ("Bilinear", (3, 4, 2), {}, [(5, 3), (5, 4)]),
    ("Conv1d", (4, 6, 3), {"stride": 2, "padding": 1, "groups": 2}, [(2, 4, 9)]),
    ("Conv1d", (2, 3, 4), {"padding": "same", "padding_mode": "circular"}, [(2, 2, 9)]),
    ("Conv2d", (3, 4, (3, 2)), {"padding": (1, 2), "dilation": (2, 1)}, [(2, 3, 7, 6)]),
    ("Conv2d", (2, 4, 3), {"padding": 1, "padding_mode": "reflect", "bias": False}, [(2, 2, 5, 6)]),
    ("Conv2d", (4, 4, 3), {"padding": 2, "padding_mode": "replicate", "groups": 4}, [(4, 5, 6)]),
    ("Conv3d", (2, 3, 2), {}, [(1, 2, 4, 3, 4)]),
    ("ConvTranspose1d", (4, 6, 3), {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}, [(2, 4, 5)]),
    ("ConvTranspose2d", (3, 2, 3), {"stride": 2, "dilation": 2}, [(2, 3, 4, 4)]),
    ("ConvTranspose3d", (2, 2, 2), {}, [(1, 2, 3, 3, 3)]),
    ("BatchNorm1d", (4,), {}, [(6, 4)]),
    ("BatchNorm1d", (4,), {"momentum": None}, [(3, 4, 5)]),
    ("BatchNorm2d", (3,), {"eps": 1e-3, "momentum": 0.3}, [(2, 3, 4, 5)]),
    ("BatchNorm2d", (3,), {"affine": False, "track_running_stats": False}, [(2, 3, 4, 5)]),
    ("BatchNorm3d", (2,), {}, [(2, 2, 2, 3, 2)]),
    ("InstanceNorm1d", (3,), {"affine": True}, [(2, 3, 5)]),
    ("InstanceNorm1d", (3,), {}, [(3, 5)]),
    ("InstanceNorm2d", (3,), {"track_running_stats": True}, [(2, 3, 4, 5)]),
    ("InstanceNorm3d", (2,), {}, [(2, 2, 2, 3, 2)]),
    ("GroupNorm", (2, 6), {}, [(3, 6, 5)]),
    ("GroupNorm", (3, 6), {"affine": False}, [(3, 6, 2, 2)]),
    ("LayerNorm", (5,), {}, [(2, 3, 5)]),
    ("LayerNorm", ((3, 5),), {"bias": False}, [(2, 3, 5)]),
    ("LayerNorm", (5,), {"elementwise_affine": False}, [(2, 5)]),
    ("RMSNorm", (5,), {"eps": 1e-6}, [(2, 3, 5)]),
    ("PReLU", (), {}, [(2, 3)]),
    ("PReLU", (3,), {"init": 0.1}, [(2, 3, 4)]),
    ("ELU", (0.5,), {"inplace": False}, [(2, 3)]),
    ("Softmax", (), {"dim": 1}, [(2, 3, 4)]),
    ("GLU", (1,), {}, [(2, 4)]),
    ("MaxPool2d", (2,), {"stride": 1}, [(1, 2, 5, 5)]),
    ("AdaptiveAvgPool2d", ((2, 3),), {}, [(1, 2, 5, 5)]),
    ("Upsample", (), {"scale_factor": 2.0, "mode": "bilinear", "align_corners": False}, [(1, 2, 3, 3)]),
    ("PixelShuffle", (2,), {}, [(1, 8, 2, 3)]),
    ("Flatten", (), {}, [(2, 3, 4)]),
    ("Unflatten", (1, (2, 3)), {}, [(2, 6, 4)]),
    ("ZeroPad2d", ((1, 2, 0, 1),), {}, [(1, 2, 3, 3)]),
    ("ConstantPad1d", (2, 3.5), {}, [(1, 2, 3)]),
    ("ReflectionPad2d", (1,), {}, [(1, 2, 3, 3)]),
    ("ReplicationPad3d", (1,), {}, [(1, 2, 3, 3, 3)]),
    ("CircularPad1d", (1,), {}, [(1, 2, 3)]),
    ("LocalResponseNorm", (2,), {}, [(2, 5, 4)]),
    ("CosineSimilarity", (), {"dim": 1}, [(2, 5), (2, 5)]),
]


def both(name, args, kwargs):
    """(ours, theirs) with torch's weights, in float64."""
    theirs = getattr(torch.nn, name)(*args, **kwargs).double()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.3 * torch.randn_like(p))
    ours = getattr(nn, name)(*args, **kwargs).double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    missing, unexpected = ours.load_state_dict(
        {k: tensorlib.from_torch(v.clone()) for k, v in theirs.state_dict().items()}
    )
    assert not missing and not unexpected
    return ours.requires_grad_(), theirs


def close(x, y, scale=1.0):
    np.testing.assert_allclose(np.asarray(x.detach().numpy()), y.detach().numpy(), rtol=1e-11, atol=1e-11 * scale)


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "shapes"), LAYERS, ids=[f"{i}-{r[0]}" for i, r in enumerate(LAYERS)]
)
def test_results_gradients_statistics(name, args, kwargs, shapes):
    torch.manual_seed(0)
    ours, theirs = both(name, args, kwargs)
    for step in range(3):
        if step == 2:
            ours.eval(), theirs.eval()
        xs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
        mine = [tensorlib.from_torch(x.detach().clone()).requires_grad_() for x in xs]
        y, z = theirs(*xs), ours(*mine)
        assert tuple(z.shape) == tuple(y.shape)
        close(z, y)
        g = torch.randn_like(y)
        y.backward(g)
        z.backward(tensorlib.from_torch(g))
        for a, b in zip(mine, xs):
            close(a.grad, b.grad, 10)
        for (path, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters()):
            assert a.grad is not None, path
            close(a.grad, b.grad, 10)
    for (_, a), (_, b) in zip(ours.named_buffers(), theirs.named_buffers()):
        close(a, b)


@pytest.mark.parametrize("name", ["Linear", "Conv2d", "ConvTranspose1d", "Embedding", "Bilinear"])
def test_weights_begin_with_torchs_distribution(name):
    args = {
        "Linear": (40, 50),
        "Conv2d": (8, 16, 3),
        "ConvTranspose1d": (8, 16, 9),
        "Embedding": (60, 40),
        "Bilinear": (20, 9, 8),
    }
    tensorlib.manual_seed(5)
    ours, theirs = getattr(nn, name)(*args[name]), getattr(torch.nn, name)(*args[name])
    for (path, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters()):
        a = getattr(ours, path)
        # the standard deviation of n draws is off by 1 / sqrt(2 n) of itself, and five times that once in 2 million
        assert a.std().item() == pytest.approx(b.std().item(), rel=2 * 5 / (2 * a.numel()) ** 0.5)
        assert abs(a.mean().item()) < 5 * b.std().item() / a.numel() ** 0.5
        if name != "Embedding":
            assert a.abs().max().item() <= b.abs().max().item() * (1 + 30 / a.numel())


def test_dropout_keeps_means_and_whole_channels():
    tensorlib.manual_seed(1)
    x = tensorlib.ones(200, 50, 4)
    for layer in (nn.Dropout(0.3), nn.Dropout1d(0.3)):
        y = layer(x)
        values = set(np.unique(y.numpy()).tolist())
        assert values == {0.0, np.float32(1 / 0.7).item()}
        n = y.numel() if type(layer) is nn.Dropout else 200 * 50
        assert abs((y == 0).float().mean().item() - 0.3) < 5 * (0.21 / n) ** 0.5
    assert ((y == 0).all(dim=2) | (y != 0).all(dim=2)).all()
    assert nn.Dropout2d(0.5).eval()(x) is x
    z = nn.AlphaDropout(0.3)(tensorlib.randn(400, 400))
    assert abs(z.mean().item()) < 0.02 and abs(z.std().item() - 1) < 0.02


def test_embeddings():
    torch.manual_seed(0)
    ours, theirs = both("Embedding", (7, 3), {"padding_idx": -1})
    ids = torch.tensor([[1, 6, 2], [6, 6, 0]])
    y, z = theirs(ids), ours(tensorlib.from_torch(ids))
    close(z, y)
    y.square().sum().backward()
    z.square().sum().backward()
    close(ours.weight.grad, theirs.weight.grad)
    ours, theirs = both("EmbeddingBag", (7, 3), {"mode": "sum"})
    close(ours(tensorlib.from_torch(ids)), theirs(ids))


def test_what_does_not_fit_is_told():
    with pytest.raises(ShapeError, match="whole groups"):
        nn.Conv2d(3, 4, 3, groups=2)
    with pytest.raises(ShapeError, match="3 channels"):
        nn.BatchNorm2d(3)(tensorlib.zeros(2, 4, 3, 3))
    with pytest.raises(ShapeError, match="whole groups"):
        nn.GroupNorm(4, 6)
    with pytest.raises(ShapeError, match="0 <= p <= 1"):
        nn.Dropout(1.5)
    with pytest.raises(TypeError, match="ELU: got"):
        nn.ELU(0.5, 0.6)
    with pytest.raises(TypeError, match="kernel_size"):
        nn.MaxPool2d()
    with pytest.raises(AttributeError, match="no attribute 'Lineer'"):
        nn.Lineer(2, 2)
