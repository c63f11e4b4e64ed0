"""Data to train on: datasets, a loader that shuffles reproducibly and goes on where it stopped, images, text.

>>> import tensorlib
>>> from tensorlib import data
>>> pairs = data.TensorDataset(tensorlib.arange(5), tensorlib.arange(5) * 10)
>>> [y.tolist() for x, y in data.DataLoader(pairs, batch_size=2)]
[[0, 10], [20, 30], [40]]
"""

from tensorlib.data.dataset import ConcatDataset, Dataset, Subset, TensorDataset, random_split
from tensorlib.data.files import fetch
from tensorlib.data.loader import DataLoader, default_collate
from tensorlib.data.tables import Parquet
from tensorlib.data.text import Characters, TextFile, Tokens
from tensorlib.data.vision import CIFAR10, CIFAR100, MNIST, FashionMNIST, digits

__all__ = [
    "CIFAR10", "CIFAR100", "MNIST", "Characters", "ConcatDataset", "DataLoader", "Dataset", "FashionMNIST", "Parquet",
    "Subset", "TensorDataset", "TextFile", "Tokens", "default_collate", "digits", "fetch", "random_split",
]  # fmt: skip
