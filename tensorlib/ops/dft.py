"""Fourier transforms in ops of ours, for devices that NumPy does not reach: products with tables of roots of unity.

A size is split n = a b (Cooley and Tukey 1965): transforms of size a, a twist by roots of unity, transforms of size b.
Factors up to DENSE are one product; larger primes go through a convolution of a power of two (Bluestein 1970). Complex
numbers are pairs in a last dim of 2, as in `fft.py`; tables are made in f64, and kept on the device.
"""

import functools

from tensorlib.device import Array
from tensorlib.ops import create, exchange, linalg, movement, transfer
from tensorlib.ops.elementwise import add, mul, sub

DENSE = 128  # sizes up to which one product is taken: its table has 4 n^2 numbers


@functools.lru_cache(64)
def _table(kind, n, m, sign, dtype, device):
    """Tables of roots of unity exp(2 pi i sign k / n) on a device.

    "roots": (2 n, 2 n) that turns n pairs into the n pairs of their transform; "twist": pairs (n / m, m) of j k;
    "chirp": pairs (n,) of j^2 / 2.
    """
    import numpy as np

    j = np.arange(n, dtype=np.int64)
    turns = {  # in n-ths of a turn, of a chirp in 2 n-ths
        "roots": lambda: (np.outer(j, j), n),
        "twist": lambda: (np.outer(np.arange(n // m), np.arange(m)), n),
        "chirp": lambda: (j * j, 2 * n),
    }
    k, whole = turns[kind]()
    c, s = (f(2 * np.pi * (k % whole) / whole) for f in (np.cos, np.sin))
    c, s = (np.where(4 * k % whole == 0, np.rint(v), v) for v in (c, sign * s))  # quarters of a turn are exact
    found = np.stack([c, s], -1)
    if kind == "roots":
        found = np.stack([found, np.stack([-s, c], -1)], 1).reshape(2 * n, 2 * n)
    made = exchange.from_numpy(Array, found.astype(dtype.numpy_dtype()))
    return transfer.to_device(movement.clone(made), device)


def _of(x, kind, n, m, sign):
    return _table(kind, n, m, sign, x.dtype, x.device)


def times(x, y):
    """Products of complex numbers in pairs."""
    a, b = movement.select(x, -1, 0), movement.select(x, -1, 1)
    c, d = movement.select(y, -1, 0), movement.select(y, -1, 1)
    return movement.stack([sub(mul(a, c), mul(b, d)), add(mul(a, d), mul(b, c))], -1)


def _split(n):
    """The largest factor of n that is one product, or 1."""
    return next((a for a in range(min(DENSE, n), 1, -1) if n % a == 0), 1)


def along(x, sign):
    """The transform, sign -1, or its unnormalised inverse, sign 1, of the last dim of pairs x (..., n, 2)."""
    *lead, n, _ = x.shape
    a = _split(n)
    if a == n or n == 1:
        flat = movement.reshape(x, (*lead, 2 * n))
        return movement.reshape(linalg.matmul(flat, _of(x, "roots", n, 0, sign)), x.shape) if n > 1 else x
    if a == 1:
        return _bluestein(x, sign)
    b = n // a
    x = movement.transpose(movement.reshape(x, (*lead, a, b, 2)), -3, -2)  # [j2, j1]
    x = times(along(x, sign), _of(x, "twist", n, a, sign))  # [j2, k1]
    x = along(movement.transpose(x, -3, -2), sign)  # [k1, k2]
    return movement.reshape(movement.transpose(x, -3, -2), (*lead, n, 2))


def _bluestein(x, sign):
    """j k = (j^2 + k^2 - (k - j)^2) / 2: a convolution with a chirp, of the next power of two."""
    *lead, n, _ = x.shape
    size, chirp = 1 << (2 * n - 1).bit_length(), _of(x, "chirp", n, 0, sign)
    back = _of(x, "chirp", n, 0, -sign)
    rest = create.zeros(type(x), (size - 2 * n + 1, 2), dtype=x.dtype, device=x.device)
    kernel = movement.cat([back, rest, movement.flip(movement.narrow(back, 0, 1, n - 1), 0)], 0)
    fill = create.zeros(type(x), (*lead, size - n, 2), dtype=x.dtype, device=x.device)
    spectrum = along(movement.cat([times(x, chirp), fill], -2), -1)
    folded = along(times(spectrum, along(kernel, -1)), 1)
    return times(mul(movement.narrow(folded, -2, 0, n), 1 / size), chirp)


def c2c(x, dims, inverse, scale):
    """`fft.c2c` of pairs x over dims."""
    for d in dims:
        moved = movement.movedim(x, d, -2)
        x = movement.movedim(along(moved, 1 if inverse else -1), -2, d)
    return x if scale == 1 else mul(x, scale)


def r2c(x, scale):
    """`fft.r2c` of real x."""
    zeros = create.zeros(type(x), x.shape, dtype=x.dtype, device=x.device)
    pairs = movement.stack([x, zeros], -1)
    return movement.narrow(c2c(pairs, (x.ndim - 1,), False, scale), -2, 0, x.shape[-1] // 2 + 1)


def c2r(x, n, scale):
    """`fft.c2r` of pairs x for n real numbers: what is left out are conjugates; the first has no imaginary part."""
    half = n // 2 + 1
    x = movement.narrow(x, -2, 0, half)
    more = movement.flip(movement.narrow(x, -2, 1, n - half), -2)
    whole = movement.cat([x, mul(more, create.tensor(type(x), [1.0, -1.0], x.dtype, x.device))], -2)
    kept = [[1.0, 0.0 if i == 0 or 2 * i == n else 1.0] for i in range(n)]
    whole = mul(whole, create.tensor(type(x), kept, x.dtype, x.device))
    return movement.select(c2c(whole, (x.ndim - 2,), True, scale), -1, 0)
