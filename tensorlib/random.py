"""Random tensors from a counter (Philox 4x32-10): one seed gives the same bits on every backend and any number of
threads.

`cls` is the class to make (Tensor's own functions, `tensorlib.rand` and so on, pass it). A generator is a seed and a
counter; every call moves the counter on. What a capture recorded draws the same numbers at each replay.

>>> import tensorlib
>>> tensorlib.manual_seed(0)
>>> a, b = tensorlib.rand(3), tensorlib.rand(3)
>>> tensorlib.manual_seed(0)
>>> (tensorlib.rand(3) == a).all().item(), (a == b).any().item()
(True, False)
"""

import os
import threading
from math import pi, prod

from tensorlib import backend
from tensorlib import dtype as _dtype
from tensorlib.device import CPU, Array, Device
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.layout import contiguous
from tensorlib.ops import elementwise, movement
from tensorlib.ops.movement import sizes


class Generator:
    """A stream of random blocks: `seed` is its key, `counter` how many blocks of 128 bits were taken."""

    def __init__(self, seed=None):
        self._lock = threading.Lock()
        self.manual_seed(int.from_bytes(os.urandom(8), "little") if seed is None else seed)

    def manual_seed(self, seed):
        """Starts over with this seed (any integer, taken modulo 2**64); returns itself."""
        self.seed, self.counter = int(seed) % (1 << 64), 0
        return self

    def words(self, cls, n, device=CPU):
        """n fresh random u32, as a row."""
        blocks = -(-n // 4)
        with self._lock:
            start, self.counter = self.counter, self.counter + blocks
        out = cls.empty((4 * blocks,), _dtype.u32, device)
        if blocks:
            kernel = backend.kernel("random", "philox", device=device.type)
            key, low = (v - (1 << 64) if v >> 63 else v for v in (self.seed, start % (1 << 64)))
            backend.launch(kernel, [out.ptr, blocks, key, low, start >> 64], work=40 * blocks, writes=(out,))
        return movement.narrow(out, 0, 0, n)


default = Generator()


def manual_seed(seed):
    """Seeds the generator that functions use if they are given none."""
    default.manual_seed(seed)


def _prepare(op, shape, dtype, device):
    shape, dtype = sizes(shape), _dtype.get(dtype or _dtype.f32)
    if any(s < 0 for s in shape):
        raise ShapeError(op, f"shape {shape}", "sizes of 0 or more", "remove the negative size")
    if dtype.kind != "f":
        raise DTypeError(op, f"dtype {dtype}", "a float", "use randint, or convert with .to(dtype)")
    return shape, dtype, CPU if device is None else Device(device)


def _uniform(cls, n, wide, generator, device):
    """n numbers in [0, 1): multiples of 2**-24 in f32, of 2**-53 in f64."""
    if not wide:
        words = elementwise.bitwise_right_shift(generator.words(cls, n, device), 8)
        return elementwise.mul(elementwise.cast(words, "f32"), 2.0**-24)
    bits = elementwise.bitwise_right_shift(_pairs(generator, cls, n, device), 11)
    return elementwise.mul(elementwise.cast(bits, "f64"), 2.0**-53)


def _pairs(generator, cls, n, device):
    """n random u64."""
    return Array.view(generator.words(cls, 2 * n, device), contiguous((n,)), _dtype.u64)


def rand(cls, *shape, dtype=None, device=None, generator=None):
    """Uniform in [0, 1). dtype f32, f64, f16 or bf16 (the narrow ones round, so that 1 can occur).
    ShapeError, DTypeError.
    """
    shape, dtype, device = _prepare("rand", shape, dtype, device)
    out = _uniform(cls, prod(shape), dtype is _dtype.f64, generator or default, device)
    return movement.reshape(elementwise.cast(out, dtype), shape)


def randn(cls, *shape, dtype=None, device=None, generator=None):
    """Normal with mean 0 and variance 1, by Box and Muller's transform (1958). ShapeError, DTypeError."""
    shape, dtype, device = _prepare("randn", shape, dtype, device)
    n, wide = prod(shape), dtype is _dtype.f64
    half = -(-n // 2)
    u = _uniform(cls, 2 * half, wide, generator or default, device)
    # 1 - u lies in (0, 1]: its logarithm is finite
    radius = elementwise.sqrt(elementwise.mul(elementwise.log(elementwise.sub(1, movement.narrow(u, 0, 0, half))), -2))
    angle = elementwise.mul(movement.narrow(u, 0, half, half), 2 * pi)
    both = [elementwise.mul(radius, f(angle)) for f in (elementwise.cos, elementwise.sin)]
    out = movement.narrow(movement.cat(both), 0, 0, n)
    return movement.reshape(elementwise.cast(out, dtype), shape)


def randint(cls, low, high=None, size=(), dtype=None, device=None, generator=None):
    """Integers in [low, high), or in [0, low) if high is None; i64 unless dtype says otherwise.
    ShapeError, DTypeError.
    """
    low, high = (0, low) if high is None else (low, high)
    dtype, shape = _dtype.get(dtype or _dtype.i64), sizes((size,) if isinstance(size, int) else (tuple(size),))
    first, last = _dtype.info(dtype)
    if not first <= low < high <= last + 1:
        expected = f"low < high within {dtype}: {first} to {last}"
        raise ShapeError("randint", f"low {low}, high {high}", expected, "swap them or use a wider dtype")
    device = CPU if device is None else Device(device)
    n = prod(shape)
    pairs = _pairs(generator or default, cls, n, device)
    # the modulus of 64 random bits: a bias of (high - low) / 2**64 at most
    if high - low < 1 << 64:
        pairs = elementwise.remainder(pairs, high - low)
    out = elementwise.cast(pairs, _dtype.i64)
    return movement.reshape(elementwise.cast(elementwise.add(out, low) if low else out, dtype), shape)


def bernoulli(p, generator=None):
    """1 with the probability that each element of p (a float tensor) gives, else 0; p's shape and dtype."""
    u = rand(type(p), p.shape, dtype="f64" if p.dtype is _dtype.f64 else "f32", device=p.device, generator=generator)
    return elementwise.cast(elementwise.lt(u, p), p.dtype)
