"""GPUs: memory and streams from PyTorch, copies through the driver's own API, compiled kernels launched as they are.

The only file that imports torch, and no op of torch runs: it owns memory, streams and graphs.
"""

import ctypes
import functools

import torch
from triton.backends.compiler import GPUTarget

from .launch import SHARED, Workspaces, launcher, tuned

STAGING = 32 << 20  # bytes of pinned memory that uploads of ordinary memory pass through, twice
GRAIN, SMALL, KEPT = 512, 1 << 16, 8  # small blocks by multiples of GRAIN bytes: so many of each size are kept
_LIBRARIES = {  # library, names of its functions
    "cuda": (
        "libcuda.so.1",
        "cuMemcpyHtoDAsync_v2 cuMemcpyDtoHAsync_v2 cuMemcpyDtoDAsync_v2 cuMemcpyPeerAsync cuMemHostGetDevicePointer_v2",
    ),
    "hip": (
        "libamdhip64.so",
        "hipMemcpyHtoDAsync hipMemcpyDtoHAsync hipMemcpyDtoDAsync hipMemcpyPeerAsync hipHostGetDevicePointer",
    ),
}


def count():
    """How many GPUs this machine has."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


@functools.cache
def gpu(index):
    """The GPU of that number: one object each."""
    return Gpu(index)


@functools.cache
def _functions():
    name, symbols = _LIBRARIES["hip" if torch.version.hip else "cuda"]
    library = ctypes.CDLL(name)
    return [getattr(library, symbol) for symbol in symbols.split()]


def _check(status, what):
    if status:
        raise RuntimeError(f"{what}: the driver reports error {status}")


_GIVE_BACK = getattr(torch._C, "_cuda_cudaCachingAllocator_raw_delete", None)  # PyTorch for CPUs has none


class Block:
    """Memory of a GPU, given back when this is gone: to the list `free` while that is short, or to PyTorch."""

    __slots__ = ("free", "ptr")

    def __init__(self, ptr, free):
        self.ptr, self.free = ptr, free

    def __del__(self, give_back=_GIVE_BACK):  # a default: it is there until the interpreter ends
        if self.free is not None and len(self.free) < KEPT:
            self.free.append(self.ptr)
        else:
            give_back(self.ptr)


class Gpu(Workspaces):
    """One GPU: `target` and `arch` for the compiler, `shared` bytes per block at most, `units` multiprocessors.

    `ready` keeps what `load` gave, by kernel and alignment; `trace`, if it is a list, is told of every launch.
    `interpreted`: kernels may hold no inline assembly. `folder`: of the user's caches, if anybody names it. `stream()`
    is the stream that kernels and copies are put into: PyTorch's current one.
    """

    interpreted, trace, folder = False, None, None

    def __init__(self, index):
        properties = torch.cuda.get_device_properties(index)
        self.index, self.name, self.units = index, properties.name, properties.multi_processor_count
        if torch.version.hip:
            self.arch = properties.gcnArchName.partition(":")[0]
            self.target = GPUTarget("hip", self.arch, 64 if self.arch.startswith("gfx9") else 32)
        else:
            self.arch = 10 * properties.major + properties.minor
            self.target = GPUTarget("cuda", self.arch, 32)
        self.shared = getattr(properties, "shared_memory_per_block_optin", None) or SHARED.get(self.arch, 65536)
        self.memory = properties.total_memory
        self.ready = {}
        self._staging = None
        self._several = torch.cuda.device_count() > 1
        self._free = [[] for _ in range(SMALL // GRAIN)]
        self._take = self._take_elsewhere if self._several else torch._C._cuda_cudaCachingAllocator_raw_alloc
        self.stream = functools.partial(torch._C._cuda_getCurrentRawStream, index)
        torch.cuda.current_stream(index)  # makes the context, before any copy

    @functools.cached_property
    def tuned(self):
        """What `bench.tune` found for such GPUs, by room."""
        return tuned(self.folder, self.name) if self.folder else {}

    # ---- memory ------------------------------------------------------------------------------------------------------

    def allocate(self, nbytes):
        """(address, owner) of uninitialised memory, at a multiple of 512 bytes. MemoryError, with what is free.

        Small blocks of the default stream, into which nothing is ever captured, are kept for the next.
        """
        stream = self.stream()
        if stream or nbytes > SMALL:
            ptr = self._raw(nbytes, stream)
            return ptr, Block(ptr, None)
        free = self._free[(nbytes - 1) // GRAIN]
        try:
            ptr = free.pop()
        except IndexError:
            ptr = self._raw(-(-nbytes // GRAIN) * GRAIN, stream)
        return ptr, Block(ptr, free)

    def _raw(self, nbytes, stream):
        """The address of memory of PyTorch's allocator, for use in a stream."""
        try:
            return self._take(nbytes, stream)
        except torch.OutOfMemoryError:
            for free in self._free:
                while free:
                    torch._C._cuda_cudaCachingAllocator_raw_delete(free.pop())
        try:
            return self._take(nbytes, stream)
        except torch.OutOfMemoryError as e:
            free, total = torch.cuda.mem_get_info(self.index)
            kept = torch.cuda.memory_reserved(self.index) - torch.cuda.memory_allocated(self.index)
            raise MemoryError(
                f"cuda:{self.index}: got a request for {nbytes:,} bytes; expected at most {free + kept:,} "
                f"(of {total:,}); free tensors, or use a smaller batch, a shorter context or a quantised model"
            ) from e

    def _take_elsewhere(self, nbytes, stream):
        with torch.cuda.device(self.index):  # PyTorch takes the current one's
            return torch._C._cuda_cudaCachingAllocator_raw_alloc(nbytes, stream)

    def mapped(self, nbytes):
        """(address for kernels, the host's address, owner) of zeroed memory of the host, which kernels may write to."""
        storage, found = _pinned(nbytes), ctypes.c_uint64()
        ctypes.memset(storage.data_ptr(), 0, nbytes)
        with torch.cuda.device(self.index):
            host = ctypes.c_void_p(storage.data_ptr())
            _check(_functions()[4](ctypes.byref(found), host, ctypes.c_uint(0)), "mapping memory of the host")
        return found.value, storage.data_ptr(), storage

    def synchronize(self):
        """Waits until all that was launched is done."""
        torch.cuda.synchronize(self.index)

    def upload(self, ptr, host, nbytes):
        """Copies host memory to the GPU, through pinned memory, so that one half is filled while the other moves."""
        stream = self.stream()
        with torch.cuda.device(self.index):
            if self._staging is None:
                self._staging = [(_pinned(STAGING), torch.cuda.Event()) for _ in range(2)]
            for i, start in enumerate(range(0, nbytes, STAGING)):
                stage, moved = self._staging[i % 2]
                size = min(STAGING, nbytes - start)
                moved.synchronize()
                ctypes.memmove(stage.data_ptr(), host + start, size)
                status = _functions()[0](*_words(ptr + start, stage.data_ptr(), size, stream))
                _check(status, "copy to the GPU")
                moved.record()

    def download(self, host, ptr, nbytes):
        """Copies from the GPU to host memory, and waits for it."""
        with torch.cuda.device(self.index):
            _check(_functions()[1](*_words(host, ptr, nbytes, self.stream())), "copy from the GPU")
            torch.cuda.current_stream(self.index).synchronize()

    def copy(self, ptr, source, nbytes):
        """Copies within this GPU's memory, or from another GPU that it may read."""
        with torch.cuda.device(self.index):
            _check(_functions()[2](*_words(ptr, source, nbytes, self.stream())), "copy within the GPU")

    # ---- kernels -----------------------------------------------------------------------------------------------------

    def load(self, kernel, hints):
        """What launches `kernel`, compiled for this GPU: a function of grid x, y, z and the arguments."""
        compiled = kernel.compile(self.target, hints)
        if compiled.metadata.shared > self.shared:
            got = f"{compiled.metadata.shared} bytes of shared memory"
            raise RuntimeError(f"{compiled.name}: got {got}; expected at most {self.shared} on {self.name}")
        with torch.cuda.device(self.index):
            launch = launcher(compiled, len(kernel.consts), self.stream)

        def launch_elsewhere(x, y, z, args):
            with torch.cuda.device(self.index):
                launch(x, y, z, args)

        return launch_elsewhere if self._several else launch

    def capture(self):
        """Records launches from `begin` to `end` into a CUDA graph."""
        self.workspace()
        return Graph(self.index)


class Graph:
    """Launches recorded by the driver, replayed in one call. Memory allocated while recording belongs to it."""

    def __init__(self, index):
        self._index, self._graph = index, torch.cuda.CUDAGraph()
        self._stream = torch.cuda.Stream(index)

    def begin(self):
        """From now on launches are recorded, not run."""
        torch.cuda.synchronize(self._index)
        self._context = torch.cuda.stream(self._stream)
        self._context.__enter__()
        self._graph.capture_begin(capture_error_mode="relaxed")  # a kernel may be loaded while it records

    def end(self):
        """Ends the recording."""
        self._graph.capture_end()
        self._context.__exit__(None, None, None)

    def replay(self):
        """Runs what was recorded, in the current stream."""
        self._graph.replay()


def _pinned(nbytes):
    """Memory of the host that copies need not wait for; `pin_memory` of a storage runs ops of torch."""
    storage = torch.UntypedStorage(nbytes, device="cpu")
    _check(int(torch.cuda.cudart().cudaHostRegister(storage.data_ptr(), nbytes, 3)), "pinning memory")
    return storage


def _words(destination, source, nbytes, stream):
    return ctypes.c_void_p(destination), ctypes.c_void_p(source), ctypes.c_size_t(nbytes), ctypes.c_void_p(stream)
