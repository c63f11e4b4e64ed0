"""Host memory for buffers, kept for reuse: fresh pages cost a fault each, and clearing. Standard library only.

Large blocks are what ops on large tensors live on: written to memory that was used before they take a third of the
time. They are in huge pages where the system has them: the kernel clears 2 MiB at a time, and gathers over them do not
wait for the page table.
"""

import collections
import contextlib
import ctypes
import mmap
import os
import threading

_libc = ctypes.CDLL(None)
_libc.aligned_alloc.restype = ctypes.c_void_p
_libc.aligned_alloc.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
_libc.free.argtypes = [ctypes.c_void_p]

HUGE = 2 << 20  # bytes of a huge page
LARGE = 2 * HUGE  # blocks from this size on are mapped on their own


class Arena:
    """Blocks of host memory, those that are released kept for the next one of their size.

    Every capture has an arena of its own, so that what its commands write is never handed to anyone else.
    """

    KEEP = 64 << 20  # bytes of blocks below LARGE kept at most; more is given back to the system

    def __init__(self):
        self._free, self._kept, self._large = {}, 0, Large()

    def allocate(self, nbytes):
        """(address, owner) of at least nbytes, aligned to 64; not cleared. MemoryError if there is none."""
        step = max(64, 1 << max(0, nbytes.bit_length() - 3))
        size = -(-max(nbytes, 1) // step) * step
        if size >= LARGE:
            return self._large.allocate(size, nbytes)
        blocks = self._free.get(size)
        if blocks:
            self._kept -= size
            return (block := blocks.pop()), _Block(self, block, size)
        address = _libc.aligned_alloc(64, size)
        if not address:
            raise _none(nbytes)
        return address, _Block(self, address, size)

    def release(self, address, size, free=_libc.free):
        if self._kept + size > self.KEEP:
            free(address)
        else:
            self._free.setdefault(size, []).append(address)
            self._kept += size

    def __del__(self, free=_libc.free):
        for blocks in self._free.values():
            for address in blocks:
                free(address)


class _Block:
    __slots__ = ("address", "arena", "size")

    def __init__(self, arena, address, size):
        self.arena, self.address, self.size = arena, address, size

    def __del__(self):
        self.arena.release(self.address, self.size)


def _none(nbytes):
    return MemoryError(f"allocate: {nbytes} bytes of host memory are not to be had")


_lock = threading.Lock()


def _unlocked():
    """After a fork: the thread that holds the lock, if one does, is not in the child."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlocked)


class Large:
    """Mapped blocks. Those not in use, oldest first, go back to the system as soon as all together are more than was in
    use at once so far, or those not in use more than 1 / PART of the machine's memory: a process never needs more than
    with blocks of its own for everything, and one that did need much does not keep it all.
    """

    PART = 8

    def __init__(self):
        self._limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // self.PART
        self._returned, self._idle = collections.deque(), []
        self._kept = self._used = self._most = 0

    def allocate(self, size, nbytes=0):
        with _lock:
            self._collect()
            for i in reversed(range(len(self._idle))):
                if self._idle[i].size == size:
                    block = self._idle.pop(i)
                    self._kept -= size
                    break
            else:
                self._trim(max(self._most - self._used - size, 0))
                block = self._map(size, nbytes)
            self._used += size
            self._most = max(self._most, self._used)
            return block.address, _Lease(self, block)

    def _map(self, size, nbytes):
        try:
            return _Mapped(size, nbytes)
        except MemoryError:
            self._trim(0)
            return _Mapped(size, nbytes)

    def release(self, block):
        """May be called at any time, in the middle of `allocate` too (by the garbage collector)."""
        self._returned.append(block)
        lock = _lock
        if lock.acquire(blocking=False):
            try:
                self._collect()
            finally:
                lock.release()

    def _collect(self):
        while self._returned:
            block = self._returned.popleft()
            self._used -= block.size
            self._kept += block.size
            self._idle.append(block)
        self._trim(self._limit)

    def _trim(self, most):
        while self._idle and self._kept > most:
            self._kept -= self._idle.pop(0).size


class _Lease:
    """Owns a block until it is dropped."""

    __slots__ = ("block", "large")

    def __init__(self, large, block):
        self.large, self.block = large, block

    def __del__(self):
        self.large.release(self.block)


class _Mapped:
    """A mapping of at least `size` bytes, `address` on a huge page's border; unmapped when dropped.

    The pages that the first `nbytes` fill are huge.
    """

    __slots__ = ("_keep", "address", "size")

    def __init__(self, size, nbytes):
        try:
            mapping = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError, ValueError):
            raise _none(nbytes or size) from None
        first = ctypes.c_char.from_buffer(mapping)
        base = ctypes.addressof(first)
        self.size, self.address, self._keep = size, -(-base // HUGE) * HUGE, (first, mapping)
        whole = nbytes // HUGE * HUGE
        if whole and hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without them
                mapping.madvise(mmap.MADV_HUGEPAGE, self.address - base, whole)
