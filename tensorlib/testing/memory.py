"""Memory that shows what a kernel does outside its operands: canaries, pages that must not be touched, poison.

>>> import numpy as np
>>> import tensorlib
>>> with watched(0xA5) as seen:
...     out = tensorlib.zeros(3) + 1
>>> seen.count > 0  # every buffer's canaries are whole
True
>>> row = guarded(np.arange(3.0))  # one element further is a page that nobody may read
>>> row.sum()
np.float64(3.0)
"""

import contextlib
import ctypes
import mmap

import numpy as np

from tensorlib import backend
from tensorlib.device import CPU, Buffer

CANARY = 64  # bytes on either side of a buffer; kernels may expect its own 64 to be aligned
PATTERN = 0xC3
_NONE = 0


class Watch:
    """Buffers that were allocated while memory was watched: `count`, and `check()` of their canaries."""

    def __init__(self):
        self._made = []

    @property
    def count(self):
        return len(self._made)

    def add(self, raw, first, nbytes):
        """Remembers a buffer of nbytes at `first` inside `raw`."""
        self._made.append((raw, first, nbytes))

    def check(self):
        """AssertionError if something was written beside a buffer."""
        for raw, first, nbytes in self._made:
            outside = np.concatenate([raw[:first], raw[first + nbytes :]])
            if not np.all(outside == PATTERN):
                raise AssertionError(f"memory beside a buffer of {nbytes} bytes was written to")


@contextlib.contextmanager
def watched(poison):
    """Within it, fresh buffers are full of the byte `poison` and lie between canaries, which are checked at the end.

    Whoever runs an op with two poisons and gets the same bits knows that every element was written.
    """
    watch, before = Watch(), Buffer.__dict__["allocate"]

    def allocate(cls, nbytes, device=CPU):
        raw = np.full(nbytes + 3 * CANARY, PATTERN, np.uint8)
        first = CANARY + -(raw.ctypes.data + CANARY) % 64
        raw[first : first + nbytes] = poison
        watch.add(raw, first, nbytes)
        return cls.over(raw.ctypes.data + first, nbytes, raw, shared=False, readonly=False, device=device)

    Buffer.allocate = classmethod(allocate)
    try:
        yield watch
    finally:
        Buffer.allocate = before
    watch.check()


class _Pages:
    """Pages between two that must not be touched; given back with the last array over them."""

    def __init__(self, nbytes):
        page = mmap.PAGESIZE
        self.size = -(-max(nbytes, 1) // page) * page
        self._map = mmap.mmap(-1, self.size + 2 * page)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._protect = ctypes.CDLL(None, use_errno=True).mprotect
        self.first, self._ends = self._base + page, (self._base, self._base + page + self.size)
        for end in self._ends:
            self._set(end, _NONE)

    def _set(self, address, protection):
        if self._protect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), protection):
            raise OSError(ctypes.get_errno(), "mprotect")

    def __del__(self):
        for end in self._ends:
            self._set(end, mmap.PROT_READ | mmap.PROT_WRITE)


def guarded(row, at_start=False):
    """A copy of a 1-d array that ends (or starts) where an inaccessible page starts (ends): reading on is a crash."""
    pages = _Pages(row.nbytes)
    first = pages.first if at_start else pages.first + pages.size - row.nbytes
    memory = (ctypes.c_uint8 * max(row.nbytes, 1)).from_address(min(first, pages.first + pages.size - 1))
    memory.pages = pages  # whoever holds the array holds this, and through it the pages
    found = np.frombuffer(memory, np.uint8, row.nbytes).view(row.dtype)
    found[...] = row
    return found


def bits(results):
    """The bytes of results, for comparisons of everything that they are."""
    return [np.ascontiguousarray(r.numpy()).tobytes() if hasattr(r, "numpy") else repr(r) for r in results]


@contextlib.contextmanager
def threads(count):
    """Within it, every kernel is shared out over so many threads, however little there is to do."""
    before, limits = backend.threads(), (backend.PARALLEL_WORK, backend.SHORT_WORK)
    backend.set_num_threads(count)
    backend.PARALLEL_WORK = backend.SHORT_WORK = 0
    backend.recorders += 1  # launches that are repeated from memory (tensorlib/memo.py) stay in one thread
    try:
        yield
    finally:
        backend.recorders -= 1
        backend.PARALLEL_WORK, backend.SHORT_WORK = limits
        backend.set_num_threads(before)


__all__ = ["Watch", "bits", "guarded", "threads", "watched"]
