"""The CPU as a device: memory, threads, and the native calls that run command lists. Standard library only.

A kernel is `void k(int64 *args, int64 tid, int64 nthreads)`. A command is (kernel, args, flags); a list of them runs in
one native call with the GIL released, on this thread alone or on the whole team (`pool.py` is the native side).
"""

import contextlib
import ctypes
import os
import sys
import threading

from . import control
from .memory import Arena  # noqa: F401 (part of the device)

NAME = "cpu"
_libc = ctypes.CDLL(None)
_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
_SYSCALLS = {"x86_64": (202, 24), "aarch64": (98, 124)}  # futex, sched_yield

Command = ctypes.c_int64 * 3


# ---- memory -----------------------------------------------------------------------------------------------------


def address_of(buffer):
    """(address, owner) of any object with the buffer protocol, read-only ones too. The owner keeps it in place."""
    view = _View(buffer)
    return view.raw[0], view


class _View:
    __slots__ = ("raw",)

    def __init__(self, buffer):
        self.raw = (ctypes.c_void_p * 16)()  # a Py_buffer (80 bytes): buf, obj, len, ...
        ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(buffer), self.raw, 0)

    def __del__(self, release=ctypes.pythonapi.PyBuffer_Release):
        release(self.raw)


def copy(destination, source, nbytes):
    """memmove of host memory."""
    ctypes.memmove(destination, source, nbytes)


# ---- calls ----------------------------------------------------------------------------------------------------------

HEAD = 32  # bytes of a CPython `bytes` object before its payload
# Functions of (self, block), both `bytes`, that return block with one more reference. Without a self:
# kernel = [block + 32]; kernel(block + 40, 0, 1)
_X86_CALL = bytes.fromhex("56 48 8d 7e 28 48 8b 46 20 31 f6 ba 01 00 00 00 ff d0 58 48 ff 00 c3")
# with a template as self: kernel = [self + 32]; kernel(block + 32, self + 40, 1)
_X86_CALL_WITH = bytes.fromhex("56 48 8b 47 20 48 8d 57 28 48 8d 7e 20 48 89 d6 ba 01 00 00 00 ff d0 58 48 ff 00 c3")


class _MethodDef(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("code", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p)]


class DirectCalls:
    """Native calls that keep the GIL and take 30 ns, where ctypes takes 300.

    `call(block)` runs the kernel whose address and argument words `block` (bytes) holds; `bound(template)` gives a
    function of the bytes of some words, for a template that begins with its kernel's address.
    """

    def __init__(self, from_memory):
        """`from_memory(code, entry)` makes machine code executable."""
        self._methods = [(c := from_memory(text, 0), _MethodDef(b"call", c.entry, 8, None)) for text in _TEXTS]
        self._new = ctypes.pythonapi.PyCFunction_NewEx
        self._new.restype, self._new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        self.call = self._new(ctypes.addressof(self._methods[0][1]), None, None)

    def bound(self, template):
        """The function that runs the template's kernel on (words, template)."""
        return self._new(ctypes.addressof(self._methods[1][1]), id(template), None)


_TEXTS = (_X86_CALL, _X86_CALL_WITH)


def direct_calls(from_memory):
    """DirectCalls; None where objects are not laid out as in CPython's, not on x86-64, or where there is no GIL."""
    plain = sys.implementation.name == "cpython" and bytes.__basicsize__ == HEAD + 1
    if not plain or os.uname().machine != "x86_64" or "t" in sys.abiflags:
        return None
    return DirectCalls(from_memory)


# ---- threads ----------------------------------------------------------------------------------------------------


def cpu_count():
    """Cores that this process may use: affinity, cut by the cgroup's CPU quota (v1 and v2), at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(_quota() or cores)))


def _read(path):
    try:
        with open(path) as f:
            return f.read().split()
    except OSError:
        return []


def _quota():
    """CPUs' worth of time that the tightest cgroup above this process allows, or None."""
    limits = []
    for line in _read("/proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        root = "/sys/fs/cgroup" if not controllers else "/sys/fs/cgroup/cpu"
        if controllers and "cpu" not in controllers.split(","):
            continue
        while True:
            here = root + path.rstrip("/")
            quota = _read(f"{here}/cpu.max") or _read(f"{here}/cpu.cfs_quota_us") + _read(f"{here}/cpu.cfs_period_us")
            if len(quota) == 2 and quota[0].isdigit():
                limits.append(int(quota[0]) / int(quota[1]))
            if path in ("", "/"):
                break
            path = os.path.dirname(path)
    return min(limits, default=None)


class Pool:
    """A team of threads: the caller and `threads - 1` native workers, started when first needed, asleep when idle.

    Who calls while the team is taken runs alone in its own thread, so that several Python threads scale and cores are
    never oversubscribed by us. With a team as large as the machine the workers are pinned to a core each, and the
    caller can be (`pinned`): two spinning threads stacked on one core run 300 times slower.
    """

    SPIN = 4000  # iterations, some 50 us, before a waiting thread gives its core away

    def __init__(self, kernel, threads=None):
        """`kernel(name)` gives the address of one of the pool room's kernels."""
        # sleeping and waking use Linux's futex: elsewhere the caller works alone
        self.threads = (threads or cpu_count()) if sys.platform == "linux" else 1
        self._run_alone, self._kernel = _KERNEL(kernel("run_alone")), kernel
        self._lock, self._active, self._held = threading.Lock(), 0, False
        self._run = self._ctl = None
        cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._cpus = cpus if len(cpus) == self.threads > 1 else None

    def _start(self):
        """Once, under the lock."""
        if self._run is not None:
            return
        machine = os.uname().machine
        self._block = (ctypes.c_char * (control.BYTES + 64))()
        self._ctl = ctypes.addressof(self._block) + (-ctypes.addressof(self._block) % 64)
        futex, yield_ = _SYSCALLS[machine]
        self._spin = self.SPIN if self.threads <= cpu_count() else 1
        syscall = ctypes.cast(_libc.syscall, ctypes.c_void_p).value
        words = {"TEAM": self.threads, "SYSCALL": syscall, "FUTEX": futex, "YIELD": yield_, "SPIN": self._spin}
        for name, value in words.items():
            self._word(name).value = value
        self._worker, self._run = _KERNEL(self._kernel("worker")), _KERNEL(self._kernel("run"))
        for tid in range(1, self.threads):
            threading.Thread(target=self._live, args=(tid,), daemon=True, name=f"tensorlib-{tid}").start()

    def _word(self, name):
        return ctypes.c_int64.from_address(self._ctl + getattr(control, name))

    def _live(self, tid):
        if self._cpus:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, {self._cpus[tid]})
        self._worker(self._ctl, tid, 0)

    def play(self, commands, count, parallel=True):
        """Runs `count` commands from address `commands`; returns when all are done. The GIL is released meanwhile."""
        if not parallel or self.threads == 1:
            self._run_alone(0, commands, count)
            return
        with self._lock:
            self._active += 1
            alone = self._active > 1
            if not alone:
                self._start()
        try:
            if alone:
                self._run_alone(0, commands, count)
            else:
                self._run(self._ctl, commands, count)
        finally:
            with self._lock:
                self._active -= 1

    @contextlib.contextmanager
    def pinned(self):
        """While it lasts this thread stays on the team's first core, and waiting threads spin for half a millisecond.

        For a team as large as the machine; put it around many calls (it costs 5 us). Waking a thread takes 20 to 60 us,
        more than most ops. The thread's affinity is restored at the end.
        """
        with self._lock:
            mine = self._cpus is not None and not self._held
            if mine:
                self._held = True
                self._start()
        if not mine:  # a second caller must not sit on the first one's core
            yield
            return
        before = os.sched_getaffinity(0)
        try:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, {self._cpus[0]})
            self._word("SPIN").value = self._spin * 10
            yield
        finally:
            self._word("SPIN").value, self._held = self._spin, False
            os.sched_setaffinity(0, before)

    def close(self):
        """Ends the workers. The pool starts again when it is used again."""
        if self._run is not None:
            self._word("COUNT").value = -1
            self._word("GENERATION").value += 1
            _libc.syscall(
                ctypes.c_long(self._word("FUTEX").value),
                ctypes.c_void_p(self._ctl),
                ctypes.c_long(129),  # FUTEX_WAKE, private
                ctypes.c_long(1 << 20),
            )
            self._run = None


def on_fork(reset):
    """Calls `reset` in the child after every fork: the workers do not exist there."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=reset)
