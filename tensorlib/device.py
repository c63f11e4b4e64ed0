"""Devices, raw memory on them, and the handle that ops and kernels are given: an Array, a typed and strided view of a
Buffer.

>>> from tensorlib.device import Array, Device
>>> x = Array.empty((2, 3), "f32", Device("cpu"))
>>> x.shape, x.strides, x.device, x.buffer.nbytes
((2, 3), (3, 1), Device('cpu'), 24)
"""

import ctypes
import mmap
import os
import struct
import threading

from tensorlib import backend as _backend
from tensorlib import dtype as _dtype
from tensorlib import layout as _layout
from tensorlib import tape
from tensorlib.errors import DeviceError, FormatError, ShapeError

SMALL = 1 << 16  # bytes up to which a Buffer is a `bytes` object: clearing them takes 0.5 us, the arena's Python 2 us
_state = threading.local()


_devices = {}


class Device:
    """Where a tensor lives: "cpu"; "cuda:N" and "metal" when their kernel packages are there.

    Raises DeviceError for a name that no backend of this installation has. `gpu`: the driver's handle, or None.
    `buffers`: the class of a GPU's Buffers.
    """

    __slots__ = ("buffers", "faults", "gpu", "index", "type")

    def __new__(cls, name="cpu"):
        """One object per device, so that comparing and hashing cost nothing."""
        if isinstance(name, Device):
            return name
        kind, _, index = name.partition(":")
        if kind not in ("cpu", "cuda", "metal") or (index and not index.isdigit()):
            raise DeviceError("device", repr(name), "cpu, cuda, cuda:N or metal", "use one of these names")
        key = (kind, int(index or 0))
        if key not in _devices:
            gpu = None if kind == "cpu" else _backend.backend(kind).gpu(key[1])
            _devices[key] = made = super().__new__(cls)
            made.type, made.index = key
            made.buffers = None if gpu is None else type("GpuBuffer", (GpuBuffer,), {"device": made})
            made.gpu, made.faults = gpu, Faults(gpu) if gpu is not None else None
        return _devices[key]

    def __reduce__(self):
        return Device, (str(self),)

    def __str__(self):
        return self.type if self.type != "cuda" else f"{self.type}:{self.index}"

    def __repr__(self):
        return f"Device({str(self)!r})"


class Faults:
    """What kernels of a GPU found wrong of indices: by name of an op two words of host memory that they write to, an
    index outside its dim and 1 + that dim's size.

    No launch waits to learn whether its indices were right: whoever waits for values anyway looks, and the error is
    raised there. Until then a row or element outside is read as 0, and not written.
    """

    OPS = 256

    def __init__(self, gpu):
        self._gpu, self._words, self._memory = gpu, {}, None

    def words(self, op):
        """The address for kernels of `op`."""
        found = self._words.get(op)
        if found is None:
            if self._memory is None:
                self._memory = self._gpu.mapped(16 * self.OPS)
            place = min(len(self._words), self.OPS - 1)  # names beyond that share the last pair
            found = self._words[op] = self._memory[0] + 16 * place
        return found

    def within(self, address):
        """Whether an address is that of such words: it holds for good."""
        return self._memory is not None and self._memory[0] <= address < self._memory[0] + 16 * self.OPS

    def check(self):
        """ShapeError for an index outside of which no one was told, once what was launched before is done."""
        if self._memory is None:
            return
        _, host, _ = self._memory
        size = 16 * min(len(self._words), self.OPS)
        found = ctypes.string_at(host, size)
        if found.count(0) == size:
            return
        ctypes.memset(host, 0, size)
        words = struct.unpack(f"{size // 8}q", found)
        for place, op in enumerate(list(self._words)[: self.OPS]):
            value, size = words[2 * place], words[2 * place + 1] - 1
            if size >= 0:
                got, fix = f"index {value} in a dim of size {size}", "use indices inside the dim"
                raise ShapeError(op, got, f"indices in [{-size}, {size - 1}]", fix)


CPU = Device("cpu")


def arena():
    """Where new Buffers of this thread come from: the capture's own memory while one records, else the process's."""
    found = getattr(_state, "arena", None)
    return found if found is not None else _default_arena()


def _default_arena():
    if _default_arena.made is None:
        _default_arena.made = _backend.backend().driver.Arena()
    return _default_arena.made


_default_arena.made = None


def set_arena(new):
    """Makes Buffers of this thread come from `new` (None: the process's arena); returns the one before."""
    before = getattr(_state, "arena", None)
    _state.arena = new
    return before


class Buffer:
    """`nbytes` bytes of raw memory at address `ptr`, kept alive by `owner`.

    `version` counts the launches that wrote to it. `shared` memory may be written by others too (NumPy, DLPack);
    `readonly` memory may not be written at all (a mapped file, bytes).
    """

    # defaults in the class, and no slots: making one is a fifth of what a small op costs
    device, shared, readonly, version = CPU, False, False, 0

    def __init__(self, ptr, nbytes, owner):
        self.ptr, self.nbytes, self.owner = ptr, nbytes, owner

    @classmethod
    def allocate(cls, nbytes, device=CPU):
        """Uninitialised memory, aligned to 64 bytes. MemoryError if there is none."""
        if device is not CPU:
            return device.buffers.allocate(nbytes)
        if nbytes <= SMALL and not _backend.recorders:  # the interpreter's own allocator is the quickest there is
            owner = bytes(nbytes + 64)
            made = cls((_backend.payload(owner) + 63) & -64, nbytes, owner)
        else:
            ptr, owner = arena().allocate(nbytes)
            made = cls(ptr, nbytes, owner)
        return made

    @classmethod
    def over(cls, ptr, nbytes, owner, shared, readonly, device=CPU):
        """Memory that is somebody else's."""
        made = cls(ptr, nbytes, owner)
        made.shared, made.readonly, made.device = shared, readonly, device
        return made

    @classmethod
    def of(cls, exporter):
        """The memory of any object with the buffer protocol (bytes, mmap, memoryview, NumPy array); no copy."""
        with memoryview(exporter) as view:
            nbytes, readonly = view.nbytes, view.readonly
        ptr, owner = _backend.backend().driver.address_of(exporter)
        return cls.over(ptr, nbytes, owner, not readonly, readonly)

    def read(self, ptr, nbytes):
        """The bytes at an address inside."""
        return ctypes.string_at(ptr, nbytes)

    def write(self, ptr, data):
        """Writes `bytes` to an address inside."""
        ctypes.memmove(ptr, data, len(data))

    def __repr__(self):
        return f"{type(self).__name__}({self.nbytes} bytes at {self.ptr:#x}, {self.device})"


class GpuBuffer(Buffer):
    """Memory of a GPU: a class of its own for each, so that nothing learnt about calls elsewhere is taken for it."""

    @classmethod
    def allocate(cls, nbytes):
        """Uninitialised memory of the GPU. MemoryError if there is none."""
        ptr, owner = cls.device.gpu.allocate(max(nbytes, 1))
        return cls(ptr, nbytes, owner)

    def read(self, ptr, nbytes):
        """The bytes at an address inside, once all work on them is done."""
        host = ctypes.create_string_buffer(nbytes)
        self.device.gpu.download(ctypes.addressof(host), ptr, nbytes)
        self.device.faults.check()
        return host.raw

    def write(self, ptr, data):
        """Writes `bytes` to an address inside."""
        self.device.gpu.upload(ptr, _backend.payload(data), len(data))


def transfer(out, x):
    """Copies the bytes of a contiguous Array to a contiguous one of the same size on another device."""
    nbytes = x.numel() * x.dtype.itemsize
    source, destination = x.device.gpu, out.device.gpu
    if source is None:
        destination.upload(out.ptr, x.ptr, nbytes)
    elif destination is None:
        source.download(out.ptr, x.ptr, nbytes)
        x.device.faults.check()
    else:
        source.synchronize()
        x.device.faults.check()
        destination.copy(out.ptr, x.ptr, nbytes)
    out.buffer.version += 1


def map_file(path) -> Buffer:
    """A file's bytes as read-only memory, paged in when touched. FileNotFoundError, FormatError for an empty or odd
    file.
    """
    with open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        if size == 0:
            raise FormatError(path, "offset 0", "an empty file", "a file with content", "download it again")
        try:
            mapping = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as e:
            raise FormatError(path, "offset 0", f"a file that cannot be mapped ({e})", "a regular file") from e
    return Buffer.of(mapping)


class Array:
    """The handle: `buffer`, `layout` (shape, strides, offset in elements), `dtype`. Two integers from a kernel's
    argument.

    `derived` keeps what an op computes from the values alone (the packed copy that quantised matmuls share). `node` and
    `origin` belong to the tape: what made this value, and what it is a view of (both None unless somebody asks).
    """

    memo = node = origin = None  # in the class, and no slots, as in Buffer

    def __init__(self, buffer, layout, dtype):
        self.buffer, self.layout, self.dtype = buffer, layout, dtype

    @classmethod
    def empty(cls, shape, dtype="f32", device=CPU):
        """Uninitialised, contiguous."""
        dtype, layout = _dtype.get(dtype), _layout.contiguous(shape)
        return cls(Buffer.allocate(layout.numel() * dtype.itemsize, device), layout, dtype)

    def view(self, layout, dtype=None):
        """Another layout (and dtype of the same size) over the same memory."""
        if tape.used and tape.mode.recording:
            tape.guard("view", (self,))
        return type(self)(self.buffer, layout, dtype or self.dtype)

    def handle(self):
        """Another handle to the same elements, without a gradient."""
        return type(self)(self.buffer, self.layout, self.dtype)

    @property
    def shape(self):
        return self.layout.shape

    @property
    def strides(self):
        return self.layout.strides

    @property
    def offset(self):
        return self.layout.offset

    @property
    def ndim(self):
        return len(self.layout.shape)

    @property
    def device(self):
        return self.buffer.device

    @property
    def ptr(self):
        """Address of the element at index 0, 0, ..."""
        return self.buffer.ptr + self.layout.offset * self.dtype.itemsize

    def derived(self, key, compute):
        """`compute()`, kept in `memo` under `key` until the buffer is written to. Not kept for shared memory, nor
        between what is recorded and what is not: a replay must do all its own work.
        """
        if self.buffer.shared:
            return compute()
        state = (self.buffer.version, _backend.recorder())
        if self.memo is None or self.memo[0] != state:
            self.memo = (state, {})
        found = self.memo[1]
        if key not in found:
            found[key] = compute()
        return found[key]

    def keep(self, key, value):
        """Makes `value` what `derived` finds under `key`: its elements were written along with it."""
        if not self.buffer.shared:
            self.derived(key, lambda: value)

    def numel(self):
        return self.layout.numel()

    def is_contiguous(self):
        return self.layout.is_contiguous()


Array.usual = Array  # what users are given where no operand says which class: Tensor, once that is there
