"""Steps of training on a GPU: forward, backward, clipping and the optimiser's step give the CPU's losses.

The models are those of the examples, small.
"""

import numpy as np
import pytest

import tensorlib
from tensorlib import nn, optim
from zoo.train_cifar import ResNet
from zoo.train_gpt import GPT, groups, loss_of
from zoo.train_mnist import CNN, MLP
from zoo.train_tinystories import made

RNG = np.random.default_rng(0)


def images(n, channels, size):
    """A batch of images and labels."""
    return RNG.standard_normal((n, channels, size, size)).astype("f4"), RNG.integers(0, 10, n)


def text(n, t, vocabulary=23):
    """A batch of ids and of those that follow."""
    ids = RNG.integers(0, vocabulary, (n, t + 1))
    return ids[:, :-1].copy(), ids[:, 1:].copy()


def perceptron():
    """The MLP with fewer pixels."""
    model = MLP()
    model.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    return model


def convolutions():
    """The CNN's kinds of layers with fewer channels, without dropout, which draws other numbers on a GPU."""
    model = CNN(dropout=0.0)
    model.features = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.MaxPool2d(2),
    )  # fmt: skip
    model.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 16, 8), nn.ReLU(), nn.Linear(8, 10))
    return model


def adamw(model):
    """As the examples make it."""
    return optim.AdamW(groups(model, 0.1), lr=1e-2, betas=(0.9, 0.99))


def sgd(model):
    """As the CIFAR example makes it."""
    return optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)


CASES = {
    "mlp": (perceptron, images(4, 1, 8), adamw),
    "cnn": (convolutions, images(2, 1, 8), adamw),
    "resnet": (lambda: ResNet(10, 4, (1, 1)), images(2, 3, 8), sgd),
    "gpt": (lambda: GPT(23, 8, 1, 2, 32), text(2, 8), adamw),
    "llama": (lambda: made(23, 8, 1, 2, 1, 32), text(2, 8), adamw),
}


def losses(name, device, steps=2):
    """Losses of steps on one batch, then all weights."""
    make, batch, optimizer = CASES[name]
    tensorlib.manual_seed(3)
    model = make()
    model.parameters()  # now, so that both devices begin with the CPU's numbers
    model.to(device)
    optimizer, found = optimizer(model), []
    x, y = (tensorlib.from_numpy(part).to(device) for part in batch)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, x, y) if y.ndim > 1 else tensorlib.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found.append(loss.item())
    return found, [p.detach().cpu().numpy() for p in model.parameters()]


def check(name):
    """Sums of some 100 numbers in another order, 2^-24 each, behind one another some 10 times and in each step."""
    (cpu, weights), (gpu, others) = losses(name, "cpu"), losses(name, "cuda:0")
    assert np.abs(np.subtract(gpu, cpu)).max() < 2 * 10 * 100 * 2.0**-24 * cpu[0]
    assert cpu[-1] < cpu[0]
    return weights, others


@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_of_the_cpu(name, device):
    check(name)
    device.check()
