"""Datasets: what has a length and items by number. `batch(indices)`, where there is one, gives several at once."""

from bisect import bisect_right
from itertools import accumulate

from tensorlib import random
from tensorlib.errors import ShapeError
from tensorlib.tensor import Tensor, tensor


class Dataset:
    """Base: `__len__` and `__getitem__(i)`; anything with these two is a dataset too."""

    def __len__(self):
        raise NotImplementedError(f"{type(self).__name__}.__len__: not written")

    def __getitem__(self, i):
        raise NotImplementedError(f"{type(self).__name__}.__getitem__: not written")

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __add__(self, other):
        return ConcatDataset([self, other])


class TensorDataset(Dataset):
    """Rows of tensors that go together: item i is (x[i], y[i], ...). ShapeError where lengths differ.

    `transform(*batch)`, if given, is applied to whole batches, as to items.
    """

    def __init__(self, *tensors, transform=None):
        lengths = {len(x) for x in tensors}
        if len(lengths) != 1:
            raise ShapeError("TensorDataset", f"lengths {[len(x) for x in tensors]}", "equal ones", "cut the longer")
        self.tensors, self.transform = tensors, transform

    def __len__(self):
        return len(self.tensors[0])

    def __getitem__(self, i):
        return self._transformed(tuple(x[i] for x in self.tensors))

    def batch(self, indices):
        """The rows `indices` (a list of ints), stacked."""
        at = tensor(indices, dtype="i64", device=self.tensors[0].device)
        return self._transformed(tuple(x.index_select(0, at) for x in self.tensors))

    def _transformed(self, found):
        return found if self.transform is None else self.transform(*found)


class Subset(Dataset):
    """The items `indices` of a dataset, in that order."""

    def __init__(self, dataset, indices):
        self.dataset, self.indices = dataset, list(indices)
        if hasattr(dataset, "batch"):
            self.batch = lambda chosen: dataset.batch([self.indices[i] for i in chosen])

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, i):
        return self.dataset[self.indices[i]]


class ConcatDataset(Dataset):
    """Datasets one behind the other."""

    def __init__(self, datasets):
        self.datasets = list(datasets)
        self.ends = list(accumulate(map(len, self.datasets)))

    def __len__(self):
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, i):
        if not -len(self) <= i < len(self):
            raise IndexError(f"ConcatDataset: got item {i}; expected one of {len(self)}")
        i %= len(self)
        at = bisect_right(self.ends, i)
        return self.datasets[at][i - (self.ends[at - 1] if at else 0)]


def random_split(dataset, lengths, generator=None):
    """Subsets of the given lengths (or fractions that add up to 1), drawn without replacement. ShapeError if they do
    not add up.

    >>> a, b = random_split(range(10), [0.8, 0.2])
    >>> len(a), len(b), sorted([*a, *b]) == list(range(10))
    (8, 2, True)
    """
    n = len(dataset)
    if all(isinstance(length, float) for length in lengths) and abs(sum(lengths) - 1) < 1e-9:
        lengths = [int(n * length) for length in lengths]
        for i in range(n - sum(lengths)):  # what rounding left over, one each
            lengths[i % len(lengths)] += 1
    if sum(lengths) != n:
        raise ShapeError("random_split", f"lengths {list(lengths)}", f"a sum of {n}", "use fractions that add up to 1")
    order, ends = random.randperm(Tensor, n, generator=generator).tolist(), list(accumulate(lengths))
    return [Subset(dataset, order[end - length : end]) for length, end in zip(lengths, ends)]
