"""CIFAR-10 or CIFAR-100 by a ResNet-18.

    python -m zoo.train_cifar cifar-10-batches-bin       the folder of the binary version
    python -m zoo.train_cifar FOLDER --classes 100 --epochs 30 --checkpoints runs/cifar

Prints the accuracy on the test set.
"""

import argparse
import contextlib

import tensorlib
from tensorlib import autograd, data, nn, optim, train
from zoo.train_mnist import accuracy, one_cycle


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions plus what they were given, by a 1 x 1 one where shapes differ (arXiv:1512.03385)."""

    def __init__(self, c_in, c_out, stride):
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x_NCHW):
        y_NCHW = self.bn2(self.conv2(self.bn1(self.conv1(x_NCHW)).relu()))
        return (y_NCHW + (x_NCHW if self.downsample is None else self.downsample(x_NCHW))).relu()


class ResNet(nn.Module):
    """A residual network for small images: a 3 x 3 stem without a pool, then stages of blocks, each stage but the first
    at half the size and twice the channels. Names of weights are torchvision's.
    """

    def __init__(self, classes=10, width=64, blocks=(2, 2, 2, 2)):
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self._stages, c_in = len(blocks), width
        for i, count in enumerate(blocks):
            c_out = width << i
            strides = [1 if i == 0 else 2] + [1] * (count - 1)
            stage = [BasicBlock(c_out if j else c_in, c_out, stride) for j, stride in enumerate(strides)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
            c_in = c_out
        self.fc = nn.Linear(c_in, classes)
        self.apply(_begin)

    def forward(self, x_NCHW):
        x_NCHW = self.bn1(self.conv1(x_NCHW)).relu()
        for i in range(self._stages):
            x_NCHW = getattr(self, f"layer{i + 1}")(x_NCHW)
        return self.fc(x_NCHW.mean((2, 3)))


def _begin(module):
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def flipped_and_cropped(x_NCHW, most=4):
    """Each image mirrored or not, and moved by up to `most` pixels either way; what comes in from outside is 0."""
    n, _, height, width = x_NCHW.shape
    mirrored = tensorlib.rand(n, 1, 1, 1) < 0.5
    x_NCHW = nn.functional.pad(x_NCHW.flip(-1).where(mirrored, x_NCHW), (most,) * 4)
    dy, dx = tensorlib.randint(0, 2 * most + 1, (2, n, 1))
    rows, columns = dy + tensorlib.arange(height), dx + tensorlib.arange(width)
    images = tensorlib.arange(n)[:, None, None]
    return x_NCHW[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def fit(
    model, training, epochs=15, batch_size=128, lr=0.1, seed=0, checkpoints=None, show=None,
    augment=flipped_and_cropped,
):  # fmt: skip
    """Trains by SGD with momentum and one cycle; returns the losses. Goes on from the last checkpoint, if there is
    one.
    """
    optimizer = optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return one_cycle(model, training, optimizer, epochs, batch_size, seed, checkpoints, show, augment)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m zoo.train_cifar", description=__doc__.split("\n")[0])
    parser.add_argument("data", help="the folder of the binary version")
    parser.add_argument("--classes", type=int, choices=(10, 100), default=10)
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoints", metavar="FOLDER", help="save there after each epoch, and go on from there")
    parser.add_argument("--detect-anomaly", action="store_true", help="name the op that gives the first NaN; slow")
    args = parser.parse_args(arguments)
    dataset = data.CIFAR10 if args.classes == 10 else data.CIFAR100
    tensorlib.manual_seed(args.seed)
    model = ResNet(args.classes, args.width)
    checkpoints = train.Checkpoints(args.checkpoints) if args.checkpoints else None
    with autograd.detect_anomaly() if args.detect_anomaly else contextlib.nullcontext():
        fit(model, dataset(args.data), args.epochs, args.batch_size, args.lr, args.seed, checkpoints)
    testing = dataset(args.data, train=False)
    print(f"{accuracy(model, data.DataLoader(testing, 500)):.4f} of {len(testing)} test images right")


if __name__ == "__main__":
    main()
