"""Devices "cuda:0" of host memory, behind the launch path that a real GPU has: the Triton interpreter, or the PTX that
Triton compiled, in the simulator. What they do not have is torch.
"""

import ctypes
import dataclasses
import weakref

import numpy as np
from triton.backends.compiler import GPUTarget

from kernels_triton.launch import SHARED, Workspaces
from tensorlib import backend
from tensorlib.device import _devices
from tests.sim import interpreter

POISON = 0xA5  # what fresh memory is filled with
GUARD = 256  # bytes around every allocation that no kernel may touch


class Owner:
    """Memory of an allocation, guarded on both sides; `check` finds writes outside of it."""

    def __init__(self, nbytes, forget):
        self.nbytes = nbytes
        self.raw = np.full(nbytes + 2 * GUARD + 512, POISON, np.uint8)
        self.ptr = (self.raw.ctypes.data + GUARD + 511) & -512
        self._forget = weakref.finalize(self, forget, self.ptr)

    def check(self):
        """AssertionError if something was written outside."""
        first = self.ptr - self.raw.ctypes.data
        assert (self.raw[:first] == POISON).all(), f"written before an allocation of {self.nbytes} bytes"
        assert (self.raw[first + self.nbytes :] == POISON).all(), f"written behind an allocation of {self.nbytes} bytes"


class HostGpu(Workspaces):
    """A GPU of host memory: what kernels_triton.driver.Gpu is, for tests. `execute` says how a kernel is run."""

    index, name, units, interpreted, trace = 0, "host memory", 4, False, None
    memory, tuned = 1 << 33, {}

    def __init__(self, arch=80):
        self.arch, self.target, self.shared = arch, GPUTarget("cuda", arch, 32), SHARED[arch]
        self.ready, self.live, self.launches = {}, weakref.WeakValueDictionary(), 0
        self.recording = None

    def count(self):
        """As a driver: one GPU."""
        return 1

    def gpu(self, index):
        """As a driver: itself."""
        return self

    def allocate(self, nbytes):
        """Poisoned memory."""
        owner = Owner(nbytes, self.forget)
        self.live[owner.ptr] = owner
        if self.recording is not None:
            self.recording.keep.append(owner)  # as a graph's own pool does
        return owner.ptr, owner

    def mapped(self, nbytes):
        """Zeroed memory, which the host sees at the same address."""
        ptr, owner = self.allocate(nbytes)
        ctypes.memset(ptr, 0, nbytes)
        return ptr, ptr, owner

    def forget(self, ptr):
        """Told when an allocation is gone."""

    def check(self):
        """AssertionError if a kernel wrote outside of the live allocations' memory."""
        for owner in list(self.live.values()):
            owner.check()

    def ranges(self):
        """[first, last) addresses of the live allocations."""
        return [(owner.ptr, owner.ptr + owner.nbytes) for owner in list(self.live.values())]

    def stream(self):
        """One stream."""
        return 0

    def synchronize(self):
        """All is done when a launch returns."""

    def upload(self, ptr, host, nbytes):
        """Host memory to host memory."""
        ctypes.memmove(ptr, host, nbytes)

    def download(self, host, ptr, nbytes):
        """Host memory to host memory."""
        ctypes.memmove(host, ptr, nbytes)

    def copy(self, ptr, source, nbytes):
        """Host memory to host memory."""
        ctypes.memmove(ptr, source, nbytes)

    def load(self, kernel, hints):
        """Something that runs `kernel` on a grid and arguments."""
        run = self.executable(kernel, hints)

        def launch(x, y, z, args):
            if self.recording is not None:
                self.recording.launches.append((launch, (x, y, z, args)))
                return
            self.launches += 1
            run(x, y, z, args)

        return launch

    def capture(self):
        """Records launches."""
        self.workspace()
        return Recording(self)


class Recording:
    """What a CUDA graph is on a real GPU: launches in a list."""

    def __init__(self, gpu):
        self._gpu, self.launches, self.keep = gpu, [], []

    def begin(self):
        """From now on launches are kept, and not run."""
        self._gpu.recording = self

    def end(self):
        """Ends it."""
        self._gpu.recording = None

    def __len__(self):
        return len(self.launches)

    def replay(self):
        """Runs them again."""
        for launch, arguments in self.launches:
            launch(*arguments)


class Pointer:
    """An address as the interpreter takes it: everything it asks of a tensor's storage is the identity."""

    def __init__(self, address, dtype):
        self.address, self.dtype = address, dtype

    def data_ptr(self):
        """The address."""
        return self.address

    def _itself(self, *_, **__):
        return self

    untyped_storage = cpu = copy_ = new_empty = set_ = _itself

    def storage_offset(self):
        """None."""
        return 0

    def size(self):
        """None."""
        return ()

    stride = size


class Interpreted(HostGpu):
    """Kernels in Triton's interpreter: TRITON_INTERPRET=1 must be set before any of them is decorated."""

    interpreted = True

    def argument(self, value, kind):
        """A raw argument as the interpreter takes it."""
        if kind[0] == "*":
            return Pointer(value, kind[1:])
        if kind.startswith("tensordesc"):
            return dataclasses.replace(value, base=Pointer(value.base.data_ptr(), value.base.dtype))
        return interpreter.number(value, kind) if kind in ("fp32", "fp64") else value

    def executable(self, kernel, hints):
        """A function of the grid and raw arguments."""
        types = list(kernel.types.values())

        def run(x, y, z, args):
            given = [self.argument(a, t) for a, t in zip(args, types, strict=True)]
            with np.errstate(all="ignore"):  # a GPU does not warn of overflow
                kernel.fn[(x, y, z)](*given, **kernel.consts)

        return run


def install(gpu):
    """Makes `gpu` (None: none) the device "cuda:0" of this process."""
    for key in [key for key in _devices if key[0] == "cuda"]:
        del _devices[key]
    backend.install("cuda", backend.GpuBackend(gpu) if gpu is not None else None)
