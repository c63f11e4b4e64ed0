"""What kernels_triton/driver.py uses of torch, over host memory, and NVIDIA's copies as memmove: the driver is run
where there is no GPU. Whatever else of torch it touched would be an AttributeError.
"""

import contextlib
import ctypes
import importlib.machinery
import sys
import types

LOG = []  # (what, arguments)
CAPACITY = 1 << 27  # bytes that an allocation may have
STREAM = [7]  # the current one


class OutOfMemoryError(RuntimeError):
    """torch.OutOfMemoryError."""


class UntypedStorage:
    """torch.UntypedStorage: raw memory."""

    def __init__(self, nbytes, device):
        if nbytes > CAPACITY:
            raise OutOfMemoryError("CUDA out of memory")
        self.memory, self.device = ctypes.create_string_buffer(nbytes + 512), device
        LOG.append(("allocate", nbytes, device))

    def data_ptr(self):
        """The address."""
        return (ctypes.addressof(self.memory) + 511) & -512


LIVE = {}  # memory by address


def _raw_alloc(nbytes, stream):
    if nbytes > CAPACITY:
        raise OutOfMemoryError("CUDA out of memory")
    memory = ctypes.create_string_buffer(nbytes + 512)
    address = (ctypes.addressof(memory) + 511) & -512
    LIVE[address] = memory
    LOG.append(("allocate", nbytes, stream))
    return address


def _raw_delete(address):
    del LIVE[address]
    LOG.append(("delete", address))


class Runtime:
    """torch.cuda.cudart()."""

    @staticmethod
    def cudaHostRegister(ptr, nbytes, flags):
        """Noted."""
        LOG.append(("pin", nbytes))
        return 0


class Event:
    """torch.cuda.Event."""

    def record(self):
        """Nothing to wait for."""
        LOG.append(("record",))

    synchronize = record


class Stream:
    """torch.cuda.Stream."""

    def __init__(self, device=None):
        self.device = device

    def synchronize(self):
        """Nothing to wait for."""
        LOG.append(("stream synchronize",))


class CUDAGraph:
    """torch.cuda.CUDAGraph."""

    def capture_begin(self, capture_error_mode):
        """Noted."""
        LOG.append(("capture_begin", capture_error_mode))

    def capture_end(self):
        """Noted."""
        LOG.append(("capture_end",))

    def replay(self):
        """Noted."""
        LOG.append(("replay",))


def _copy(destination, source, nbytes, stream):
    LOG.append(("copy", nbytes.value))
    ctypes.memmove(destination, source, nbytes.value)
    return 0


def install():
    """Makes `import torch` give this, before the driver is imported; then its copies are ours."""
    properties = types.SimpleNamespace(
        name="stand-in", multi_processor_count=132, major=9, minor=0, total_memory=1 << 36, gcnArchName=""
    )
    cuda = types.SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 2, get_device_properties=lambda i: properties, Event=Event,
        current_stream=lambda i: Stream(), synchronize=lambda i: LOG.append(("synchronize", i)), Stream=Stream,
        device=lambda i: contextlib.nullcontext(), stream=lambda s: contextlib.nullcontext(), CUDAGraph=CUDAGraph,
        cudart=Runtime, mem_get_info=lambda i: (CAPACITY, 1 << 36), memory_reserved=lambda i: 3000,
        memory_allocated=lambda i: 1000,
    )  # fmt: skip
    torch = types.ModuleType("torch")
    torch.__spec__ = importlib.machinery.ModuleSpec("torch", None)
    torch.cuda, torch.version = cuda, types.SimpleNamespace(hip=None, cuda="12.9")
    torch.UntypedStorage, torch.OutOfMemoryError = UntypedStorage, OutOfMemoryError
    torch._C = types.SimpleNamespace(
        _cuda_getCurrentRawStream=lambda i: STREAM[0], _cuda_cudaCachingAllocator_raw_alloc=_raw_alloc,
        _cuda_cudaCachingAllocator_raw_delete=_raw_delete,
    )  # fmt: skip
    sys.modules["torch"] = torch
    from kernels_triton import driver

    driver._functions = lambda: [_copy] * 3
    return driver
