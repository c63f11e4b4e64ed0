"""Losses as layers, against torch.nn's with the same options, in float64."""

import pytest

import tensorlib
from tensorlib import nn
from tensorlib.errors import ShapeError
from tests.nn.test_layers import both, close

torch = pytest.importorskip("torch")


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64)


def logs(*shape):
    return normal(*shape).log_softmax(-1)


CLASSES = torch.tensor([2, -100, 0, 3, 1, 1])
# (layer, options, inputs by seed)
LOSSES = [
    ("CrossEntropyLoss", {"label_smoothing": 0.1, "weight": [0.5, 1.0, 2.0, 1.0]}, lambda: (normal(6, 4), CLASSES)),
    ("CrossEntropyLoss", {"ignore_index": 1, "reduction": "sum"}, lambda: (normal(6, 4), CLASSES.clamp(min=0))),
    ("NLLLoss", {}, lambda: (logs(6, 4), CLASSES)),
    ("BCEWithLogitsLoss", {"pos_weight": [1.0, 2.0, 3.0]}, lambda: (40 * normal(5, 3), (normal(5, 3) > 0).double())),
    ("KLDivLoss", {"reduction": "batchmean", "log_target": True}, lambda: (logs(5, 3), logs(5, 3))),
    ("TripletMarginLoss", {"margin": 0.5}, lambda: (normal(5, 3), normal(5, 3), normal(5, 3))),
    ("CTCLoss", {"zero_infinity": True},
     lambda: (logs(7, 2, 4), torch.tensor([[1, 2, 2], [3, 1, 0]]), torch.tensor([7, 6]), torch.tensor([3, 2]))),
    ("HuberLoss", {"delta": 0.5}, lambda: (normal(5, 3), normal(5, 3))),
    ("SmoothL1Loss", {"beta": 0.5}, lambda: (normal(5, 3), normal(5, 3))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "inputs"), LOSSES, ids=[f"{i}-{r[0]}" for i, r in enumerate(LOSSES)])
def test_losses(name, options, inputs):
    torch.manual_seed(0)
    xs = inputs()
    lists = {name: value for name, value in options.items() if isinstance(value, list)}
    theirs = options | {name: torch.tensor(value, dtype=torch.float64) for name, value in lists.items()}
    ours = options | {name: tensorlib.tensor(value, dtype="f64") for name, value in lists.items()}
    mine = [tensorlib.from_torch(x.detach().clone()) for x in xs]
    first, mine[0] = xs[0].detach().requires_grad_(), mine[0].requires_grad_()
    ctc = name == "CTCLoss"  # whose gradient in torch is right only behind a log_softmax
    y = getattr(torch.nn, name)(**theirs)(first.log_softmax(-1) if ctc else first, *xs[1:])
    z = getattr(nn, name)(**ours)(mine[0].log_softmax(-1) if ctc else mine[0], *mine[1:])
    close(z, y, 10)
    y.backward()
    z.backward()
    close(mine[0].grad, first.grad, 10)


@pytest.mark.parametrize("options", [{}, {"bias": True, "label_smoothing": 0.2}, {"reduction": "none"}])
def test_linear_cross_entropy(options):
    torch.manual_seed(0)
    ours, theirs = both("LinearCrossEntropyLoss", (5, 4), options)
    x = normal(6, 5).requires_grad_()
    mine = tensorlib.from_torch(x.detach().clone()).requires_grad_()
    plain = torch.nn.functional.cross_entropy(
        theirs.linear(x), CLASSES, **{k: v for k, v in options.items() if k != "bias"}
    )
    found = ours(mine, tensorlib.from_torch(CLASSES))
    close(found, plain)
    plain.sum().backward()
    found.sum().backward()
    close(mine.grad, x.grad)
    for a, b in zip(ours.parameters(), theirs.parameters()):
        close(a.grad, b.grad, 10)
    many = ours(mine.reshape(2, 3, 5), tensorlib.from_torch(CLASSES).reshape(2, 3))
    assert (many.reshape(-1) == found.reshape(-1)).all()


@pytest.mark.parametrize("negatives", [None, (7, 5), (6, 7, 5)])
def test_info_nce(negatives):
    torch.manual_seed(0)
    given = [normal(6, 5), normal(6, 5)] + ([] if negatives is None else [normal(*negatives)])
    xs = [x.requires_grad_() for x in given]
    mine = [tensorlib.from_torch(x.detach().clone()).requires_grad_() for x in xs]
    q, k, *rest = (x / x.norm(dim=-1, keepdim=True) for x in xs)
    scores = (
        q @ k.T if negatives is None else torch.einsum("nd,md->nm" if len(negatives) == 2 else "nd,nmd->nm", q, rest[0])
    )
    own = (q * k).sum(1)
    everything = scores if negatives is None else torch.cat([own[:, None], scores], 1)
    want = (everything / 0.2).exp().sum(1).log() - own / 0.2
    found = nn.functional.info_nce(*mine, temperature=0.2, reduction="none")
    close(found, want)
    want.mean().backward()
    mean = nn.InfoNCELoss(temperature=0.2)(*mine) if negatives is None else found.mean()
    close(mean, want.mean())
    mean.backward()
    for a, b in zip(mine, xs):
        close(a.grad, b.grad, 10)


def test_info_nce_refuses_what_does_not_fit():
    x = tensorlib.zeros(3, 2)
    for negatives in (tensorlib.zeros(4, 3), tensorlib.zeros(2, 4, 2), tensorlib.zeros(2)):
        with pytest.raises(ShapeError, match="info_nce"):
            nn.functional.info_nce(x, x, negatives)
    with pytest.raises(ShapeError, match="one shape"):
        nn.functional.info_nce(x, x[:2])
