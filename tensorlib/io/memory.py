"""A whole file in memory of this process: what `tensorlib.load(path, mapped=False)` reads it into.

Huge pages, where the system gives them, make this as fast as a read into memory that is there already: with small ones
the first touch of every page costs four times what copying it does.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading

from tensorlib.errors import FormatError
from tensorlib.io.cursor import FileMap

PART, READERS = 8 << 20, 4  # bytes that a thread reads at a time; most threads


class Memory(FileMap):
    """Zeroed memory of this process alone, that readers take for a mapped file."""

    def __new__(cls, size):
        if not hasattr(mmap, "MAP_ANONYMOUS"):
            return super().__new__(cls, -1, size)
        made = super().__new__(cls, -1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError, AttributeError):
            made.madvise(mmap.MADV_HUGEPAGE)
        return made

    def size(self):
        """As of a mapped file: that of the file behind it, which memory is itself. ValueError once it is closed."""
        return len(self)


def read_all(name: str, fd: int, size: int) -> Memory:
    """The first `size` bytes of a file, in parts that threads take one after the other. FormatError if it ends before
    them.
    """
    found, starts, wrong = Memory(size), iter(range(0, size, PART)), []
    taking = threading.Lock()

    def run():
        while not wrong:
            with taking:
                at = next(starts, None)
            if at is None:
                return
            try:
                _fill(fd, view, at, min(at + PART, size))
            except OSError as error:
                wrong.append(error.strerror or str(error))

    with memoryview(found) as view:
        threads = [threading.Thread(target=run) for _ in range(min(_cores(), READERS, -(-size // PART)) - 1)]
        for thread in threads:
            thread.start()
        run()
        for thread in threads:
            thread.join()
    if wrong:
        found.close()
        raise FormatError(name, "path", wrong[0], "a file that can be read")
    return found


def _cores():
    """How many threads may read one descriptor: one where reading moves its place."""
    if not hasattr(os, "preadv"):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fill(fd, view, at, end):
    """Bytes `at` to `end` of a file to the same place of a memoryview. OSError."""
    while at < end:
        with view[at:end] as part:
            if hasattr(os, "preadv"):
                count = os.preadv(fd, [part], at)
            else:
                os.lseek(fd, at, os.SEEK_SET)
                data = os.read(fd, end - at)
                count = len(data)
                part[:count] = data
        if not count:
            raise OSError(f"it ends at byte {at}, before where it ended when it was opened")
        at += count
