"""Compiles what the standard's functions need, for every dtype: `python -m tensorlib.array_api`, some minutes, once.

Otherwise a kernel compiles when it is first needed, in 0.2 to 1 s. Programs that must not be held up then (the public
conformance suite gives each example a deadline) call this first. What it compiles is what it ran.
"""

import inspect
from functools import partial
from itertools import product

from tensorlib import array_api as xp
from tensorlib import backend
from tensorlib.array_api._dtypes import DTYPES
from tensorlib.errors import DTypeError


def _whole(x):
    """Calls of the functions on whole arrays, x being a matrix of 3 x 4 ones."""
    places, mask = xp.zeros((3, 1), dtype=xp.int64), xp.astype(x, xp.bool)
    yield from (partial(getattr(xp, name), x) for name in "all any max min argmax argmin sum prod mean".split())
    yield from (partial(getattr(xp, name), x) for name in "var std unique_all nonzero count_nonzero".split())
    yield from (partial(getattr(xp, name), x, axis=0) for name in "max min sum prod mean sort argsort".split())
    yield lambda: (xp.cumulative_sum(x, axis=0), xp.cumulative_prod(x, axis=0, include_initial=True), xp.diff(x))
    yield lambda: (xp.where(mask, x, x), x[mask], x.__setitem__(mask, x[0, 0]), xp.asarray(x[0, 0]))
    yield lambda: (xp.take(x, places[0], axis=0), xp.take_along_axis(x, places, axis=1), xp.repeat(x, 2), xp.tril(x))
    yield lambda: (xp.searchsorted(x[0], x[1]), x[places, places], x.__setitem__((places, places), x[0, 0]))
    yield lambda: (x @ x.T, x @ x[0], x[0] @ x.T, x[:1] @ x.T, xp.tensordot(x, x), xp.vecdot(x, x))
    yield lambda: (xp.arange(3, dtype=x.dtype), xp.linspace(0, 1, 3, dtype=x.dtype), xp.eye(3, dtype=x.dtype))
    yield lambda: (xp.clip(x, 0, 1), xp.linalg.cross(x[:, 1:], x[:, 1:]), xp.linalg.trace(x))
    yield lambda: xp.linalg.matrix_power(xp.eye(3, dtype=x.dtype), 2)


def _calls(dtypes):
    """Calls that need, between them, every kernel."""
    arrays = [xp.ones((3, 4), dtype=xp.__dict__[name]) for name in dtypes]
    for x, y in product(arrays, arrays):
        yield partial(xp.astype, x, y.dtype)
    for x in arrays:
        for function in xp.FUNCTIONS.values():
            count = len(inspect.signature(function).parameters)
            yield partial(function, *(x,) * count)
        yield from _whole(x)


def prebuild(dtypes=tuple(DTYPES)):
    """Makes every call that dtypes (names of the standard) allow: (how many were made, how many were refused)."""
    made = refused = 0
    for call in _calls(dtypes):
        try:
            call()
            made += 1
        except DTypeError:
            refused += 1
    return made, refused


if __name__ == "__main__":
    prebuild()
    cpu = backend.backend()
    print(f"{len(cpu.files())} kernels in {cpu.folder}")
