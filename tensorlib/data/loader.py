"""Batches: in order or shuffled, made ahead by a thread, from where a run stopped.

The order of an epoch depends on (seed, epoch) alone, so any epoch can be had again, and a state is three numbers.
"""

import queue
import threading

from tensorlib import random
from tensorlib.device import Array
from tensorlib.errors import ShapeError
from tensorlib.ops import movement
from tensorlib.ops.generator import Generator, default
from tensorlib.tensor import Tensor, tensor

END = object()


def default_collate(items):
    """Items as a batch: tensors stacked, numbers a tensor, tuples and dicts by their parts, anything else a list.

    >>> default_collate([(1, "a"), (2, "b")])
    (tensor([1, 2]), ['a', 'b'])
    """
    first = items[0]
    if isinstance(first, Array):
        return movement.stack(items)
    if isinstance(first, (bool, int, float)):
        return tensor(items)
    if isinstance(first, tuple):
        return tuple(default_collate(list(part)) for part in zip(*items, strict=True))
    if isinstance(first, dict):
        return {name: default_collate([item[name] for item in items]) for name in first}
    if type(first).__module__ == "numpy":
        return tensor([item.tolist() for item in items], dtype=first.dtype.name)
    return list(items)


class DataLoader:
    """Iterates over batches of a dataset, one epoch at a time.

    `shuffle`: a new order each epoch, from `seed` (None: a draw of the default generator). `sampler`, an iterable of
    indices, replaces it. `collate_fn(items)` makes a batch of a list of items; a dataset's own `batch(indices)` goes
    first. `prefetch` batches are made ahead by a thread (0: none), which helps where items are read or decoded; it ends
    with the iteration. `drop_last` leaves a shorter last batch out.

    `state_dict()` within an epoch (or after it) says where it is; after `load_state_dict` the next iteration goes on
    there with the same order. Errors of the dataset come out of the loop.

    >>> loader = DataLoader(range(6), batch_size=2, shuffle=True, seed=1)
    >>> for batch in loader:
    ...     first, state = batch.tolist(), loader.state_dict()
    ...     break
    >>> again = DataLoader(range(6), batch_size=2, shuffle=True, seed=1)
    >>> again.load_state_dict(state)
    >>> sorted(first + [i for batch in again for i in batch.tolist()])
    [0, 1, 2, 3, 4, 5]
    """

    def __init__(
        self, dataset, batch_size=1, shuffle=False, sampler=None, collate_fn=None, drop_last=False, seed=None,
        prefetch=2, device=None,
    ):  # fmt: skip
        if batch_size < 1 or prefetch < 0:
            got = f"batch_size {batch_size}, prefetch {prefetch}"
            raise ShapeError("DataLoader", got, "batch_size >= 1, prefetch >= 0", "give counts")
        if shuffle and sampler is not None:
            raise ShapeError("DataLoader", "shuffle and a sampler", "one of them", "shuffle in the sampler")
        self.dataset, self.batch_size, self.shuffle, self.sampler = dataset, batch_size, shuffle, sampler
        self.collate_fn, self.drop_last, self.prefetch, self.device = collate_fn, drop_last, prefetch, device
        self.seed = default.take()[1] + (default.initial_seed() << 16) if seed is None and shuffle else seed or 0
        self.epoch = self.position = 0

    def __len__(self):
        n = len(self.dataset if self.sampler is None else self.sampler)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def state_dict(self):
        """{"seed", "epoch", "position": batches of the epoch that were given}."""
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state):
        """Goes on from what `state_dict` gave."""
        self.seed, self.epoch, self.position = (int(state[name]) for name in ("seed", "epoch", "position"))

    def order(self):
        """The indices of this epoch, in order."""
        if self.sampler is not None:
            return list(self.sampler)
        if not self.shuffle:
            return range(len(self.dataset))
        generator = Generator(self.seed)
        generator.set_state((self.seed, self.epoch))
        return random.randperm(Tensor, len(self.dataset), generator=generator).tolist()

    def __iter__(self):
        order, size = self.order(), self.batch_size
        last = len(order) // size * size if self.drop_last else len(order)
        starts = range(self.position * size, last, size)
        made = (self._batch(list(order[i : i + size])) for i in starts)
        for batch in _ahead(made, self.prefetch) if self.prefetch else made:
            self.position += 1
            yield batch if self.device is None else _moved(batch, self.device)
        self.epoch, self.position = self.epoch + 1, 0

    def _batch(self, indices):
        if self.collate_fn is None and hasattr(self.dataset, "batch"):
            return self.dataset.batch(indices)
        return (self.collate_fn or default_collate)([self.dataset[i] for i in indices])


def _ahead(batches, count):
    """The batches, made by a thread up to `count` ahead; its exception is raised here."""
    ready, stop = queue.Queue(count), threading.Event()

    def put(item):
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work():
        try:
            for batch in batches:
                put((batch, None))
                if stop.is_set():
                    return
            put((END, None))
        except BaseException as error:
            put((END, error))

    thread = threading.Thread(target=work, name="tensorlib data", daemon=True)
    thread.start()
    try:
        while True:
            batch, error = ready.get()
            if error is not None:
                raise error
            if batch is END:
                return
            yield batch
    finally:
        stop.set()
        thread.join()


def _moved(batch, device):
    if isinstance(batch, Array):
        return batch.to(device)
    if isinstance(batch, (tuple, list)):
        return type(batch)(_moved(x, device) for x in batch)
    return {k: _moved(x, device) for k, x in batch.items()} if isinstance(batch, dict) else batch
