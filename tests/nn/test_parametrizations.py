"""Weight norm and spectral norm against torch's, in float64: results, gradients, state, removal."""

import pytest

import tensorlib
from tensorlib import nn
from tensorlib.errors import ShapeError
from tests.nn.test_layers import close

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
LAYERS = [("Linear", (4, 3), (5, 4)), ("Conv2d", (2, 3, 3), (1, 2, 5, 5)), ("ConvTranspose1d", (2, 3, 3), (2, 2, 4))]
KINDS = [("weight_norm", {}), ("weight_norm", {"dim": 1}), ("weight_norm", {"dim": None}), ("spectral_norm", {}),
         ("spectral_norm", {"n_power_iterations": 3})]  # fmt: skip


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(("kind", "options"), KINDS, ids=range(len(KINDS)))
@pytest.mark.parametrize(("name", "args", "shape"), LAYERS, ids=[row[0] for row in LAYERS])
def test_results_and_gradients(name, args, shape, kind, options, old):
    torch.manual_seed(0)
    theirs, ours = getattr(torch.nn, name)(*args).double(), getattr(nn, name)(*args).double()
    theirs = getattr(torch.nn.utils if old else torch.nn.utils.parametrizations, kind)(theirs, **options)
    ours = getattr(nn.utils if old else nn.utils.parametrizations, kind)(ours.requires_grad_(), **options)
    assert [tuple(v.shape) for v in ours.state_dict().values()] == [
        tuple(v.shape) for v in theirs.state_dict().values()
    ]
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict({k: tensorlib.from_torch(v.clone()) for k, v in theirs.state_dict().items()})
    for step in range(3):
        if step == 2:
            ours.eval(), theirs.eval()
        x = torch.randn(shape, dtype=torch.float64)
        y, z = theirs(x), ours(tensorlib.from_torch(x))
        close(z, y, 10)
        y.square().sum().backward()
        z.square().sum().backward()
        for (path, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters()):
            assert a.grad is not None, path
            close(a.grad, b.grad, 1000)
    for (_, a), (_, b) in zip(ours.named_buffers(), theirs.named_buffers()):
        close(a, b, 10)
    close(ours.weight, theirs.weight, 10)


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
def test_removal_and_copies(kind):
    import copy

    layer = nn.Linear(4, 3)
    before, x = layer.weight.detach().clone(), tensorlib.randn(2, 4)
    getattr(nn.utils, kind)(layer)
    layer.eval()
    found, twin = layer(x).detach(), copy.deepcopy(layer)
    assert (twin(x) == found).all() and repr(layer).startswith("ParametrizedLinear(in_features=4")
    with pytest.raises(ShapeError, match="computed already"):
        nn.utils.weight_norm(layer)
    getattr(nn.utils, f"remove_{kind}")(layer)
    assert type(layer) is nn.Linear and sorted(layer.state_dict()) == ["bias", "weight"] and layer.weight.requires_grad
    assert (layer(x) == found).all()
    if kind == "weight_norm":
        assert (layer.weight - before).abs().max().item() < 1e-6
    with pytest.raises(ShapeError, match="not computed by that"):
        getattr(nn.utils, f"remove_{kind}")(layer)
    assert (twin(x) == found).all()
    with pytest.raises(ShapeError, match="at least 2 dims"):
        nn.utils.spectral_norm(nn.LayerNorm(3))
