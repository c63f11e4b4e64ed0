"""Where random numbers come from: a seed and a counter of draws; see `tensorlib.random` for what is made of them."""

import os
import threading

from tensorlib import backend
from tensorlib import dtype as _dtype
from tensorlib.device import CPU
from tensorlib.errors import DTypeError
from tensorlib.ops import movement

COST = 20  # elementary operations that one element is, about


class Generator:
    """A stream of draws: a seed (any integer, modulo 2**64; None: from the operating system) and `counter`, the number
    of the next draw. Threads may share one.

    >>> g = Generator(7)
    >>> g.get_state(), g.manual_seed(8).get_state(), g.initial_seed()
    ((7, 0), (8, 0), 8)
    """

    __slots__ = ("_lock", "_seed", "counter")

    def __init__(self, seed=None):
        self._lock = threading.Lock()
        self.manual_seed(_fresh() if seed is None else seed)

    def manual_seed(self, seed):
        """Starts over with this seed; returns itself. DTypeError if it is not an integer."""
        seed = integer("manual_seed", "a seed", seed)
        with self._lock:
            self._seed, self.counter = seed % (1 << 64), 0
        return self

    def seed(self):
        """Starts over with a seed from the operating system, which it returns."""
        return self.manual_seed(_fresh()).initial_seed()

    def initial_seed(self):
        """The seed."""
        return self._seed

    def get_state(self):
        """(seed, counter): all there is to resume from."""
        with self._lock:
            return self._seed, self.counter

    def set_state(self, state):
        """Goes on from what `get_state` gave; returns itself. DTypeError for anything but two integers."""
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise DTypeError("set_state", f"{state!r}", "(seed, counter)", "give what get_state() returned")
        seed, counter = (integer("set_state", "a state", v) for v in state)
        with self._lock:
            self._seed, self.counter = seed % (1 << 64), counter % (1 << 63)
        return self

    def take(self):
        """(seed, counter) of one draw, both as i64; the counter moves on."""
        with self._lock:
            seed, draw = self._seed, self.counter
            self.counter = (draw + 1) % (1 << 63)
        return signed(seed), draw

    def words(self, cls, n, device=CPU):
        """n random u32 as a row: the words of one draw."""
        (seed, draw), blocks = self.take(), -(-n // 4)
        out = cls.empty((4 * blocks,), _dtype.u32, device)
        if blocks:
            kernel = backend.kernel("random", "philox", device=device.type)
            backend.launch(kernel, [out.ptr, blocks, seed, 0, draw], work=4 * COST * blocks, writes=(out,))
        return movement.narrow(out, 0, 0, n)


def _fresh():
    return int.from_bytes(os.urandom(8), "little")


def signed(value):
    """A u64 as the i64 of the same bits."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def integer(op, what, value):
    """An int out of anything that is one; DTypeError."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise DTypeError(op, f"{what} of type {type(value).__name__}", "an integer", "convert it with int(...)")
    return value.__index__()


default = Generator()


def manual_seed(seed):
    """Seeds the generator that functions use if they are given none; returns nothing, so that prompts stay quiet."""
    default.manual_seed(seed)
