"""Record what kernels are launched with which arguments, then replay the list in one native call.

>>> from tensorlib.capture import Capture
>>> with Capture() as step:
...     pass  # ops run as usual, and are recorded
>>> step.replay()  # the same kernels on the same memory, without Python in between

What varies from replay to replay (token, position) lives in memory that the recorded kernels read. Buffers allocated
while recording come from the capture's own arena and stay reserved for it, so a replay allocates nothing.
"""

import ctypes

from tensorlib import backend
from tensorlib.device import Device, set_arena

SYNC, SERIAL = 1, 2  # kernels_numba/control.py
REUSED = 1 << 18  # bytes from which a recorded op's result may lie where one that was dropped lay: caches are small


class Capture:
    """A recorded command list. Use as a context manager to record (in this thread), then `replay`.

    On a GPU it is a CUDA graph: what is recorded there runs at `replay` only.
    """

    def __init__(self, device="cpu"):
        gpu = Device(device).gpu
        self._commands, self._keep, self._list = [], [], None
        self._arena = backend.backend().driver.Arena()
        self._arena.KEEP = 1 << 62  # what was released while recording is written again by a replay
        self._graph = gpu.capture() if gpu is not None else None

    def __enter__(self):
        self._before = set_arena(self._arena), backend.set_recorder(self)
        if self._graph is not None:
            self._graph.begin()
        return self

    def __exit__(self, *error):
        set_arena(self._before[0])
        backend.set_recorder(self._before[1])
        if self._graph is not None:
            self._graph.end()
        elif error[0] is None:
            self._finish()

    def add(self, kernel, block, work, reads, writes):
        """Called by `backend.launch`."""
        if self._graph is not None:
            self._keep.append([a.buffer.owner for a in (*reads, *writes)])
            return
        alone = 0 if work >= backend.PARALLEL_WORK else SERIAL
        entry = [kernel.entry, backend.payload(block) + 8, alone]
        self._commands.append((entry, _ranges(reads), _ranges(writes)))
        owners = [a.buffer.owner for a in (*reads, *writes)]
        self._keep.append((kernel, block, [owner for owner in owners if not self._reused(owner)]))

    def _reused(self, owner):
        """Whether what is allocated later may take its place, once nobody holds it."""
        return getattr(owner, "arena", None) is self._arena and owner.size >= REUSED

    def _finish(self):
        """A barrier before a command only if it touches what another thread may still be writing, or writes what one
        reads.

        Commands that thread 0 runs alone are in order among themselves: only against those of the team they need one.
        """
        pending = {
            True: ([], []),
            False: ([], []),
        }  # by "runs alone": (ranges read, ranges written) since the last barrier
        for i, (entry, reads, writes) in enumerate(self._commands):
            alone = bool(entry[2] & SERIAL)
            against = [pending[False]] if alone else list(pending.values())
            if any(_overlap(reads + writes, w) or _overlap(writes, r) for r, w in against):
                self._commands[i - 1][0][2] |= SYNC
                pending = {True: ([], []), False: ([], [])}
            pending[alone][0].extend(reads)
            pending[alone][1].extend(writes)
        flat = [word for entry, _, _ in self._commands for word in entry]
        self._list = (ctypes.c_int64 * len(flat))(*flat)
        self._parallel = any(not entry[2] & SERIAL for entry, _, _ in self._commands)

    def __len__(self):
        return len(self._commands)

    @property
    def barriers(self):
        """How many times a team meets during one replay."""
        return sum(entry[2] & SYNC for entry, _, _ in self._commands)

    def replay(self):
        """Runs the list: one native call, the GIL released. Results are in the Arrays that the recording returned."""
        if self._graph is not None:
            self._graph.replay()
            return
        backend.backend().pool.play(ctypes.addressof(self._list), len(self._commands), self._parallel)


def _ranges(arrays):
    return [(a.buffer.ptr, a.buffer.ptr + a.buffer.nbytes) for a in arrays]


def _overlap(some, others):
    return any(a < d and c < b for a, b in some for c, d in others)
