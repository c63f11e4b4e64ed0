"""Values out of tensors, and memory shared with NumPy and, through DLPack, with PyTorch, JAX and others.

NumPy is imported only by who asks for an array. DLPack is written with ctypes, so that bf16 and float8 pass too.
"""

import ctypes
import sys

from tensorlib import dtype as _dtype
from tensorlib import tape
from tensorlib.device import Buffer
from tensorlib.errors import DeviceError, DTypeError, GradError, ShapeError
from tensorlib.layout import Layout, strides_of
from tensorlib.ops._launch import span
from tensorlib.ops.movement import clone, contiguous

# ---- Python values ---------------------------------------------------------------------------------------------------


def item(x):
    """The one element as a Python bool, int or float. ShapeError if there are more or none."""
    if x.numel() != 1:
        raise ShapeError("item", f"{x.numel()} elements", "one element", "index it first, or use .tolist()")
    return _dtype.unpack(x.buffer.read(x.ptr, x.dtype.itemsize), x.dtype)[0]


def flat_values(x):
    """All elements in row-major order as a list of Python numbers."""
    x = contiguous(x)
    return _dtype.unpack(x.buffer.read(x.ptr, x.numel() * x.dtype.itemsize), x.dtype) if x.numel() else []


def tolist(x):
    """Nested lists of Python numbers; the number itself for a 0-d tensor."""
    values = flat_values(x)
    if not x.shape:
        return values[0]
    if 0 in x.shape:
        return _empty_lists(x.shape)
    for size in reversed(x.shape[1:]):
        values = [values[i : i + size] for i in range(0, len(values), size)]
    return values


def _empty_lists(shape):
    return [_empty_lists(shape[1:]) for _ in range(shape[0])] if shape[0] else []


# ---- NumPy -----------------------------------------------------------------------------------------------------------


def numpy(x):
    """A NumPy array over the same memory, strides as they are; bf16 and float8 as ml_dtypes' types.

    CPU tensors only. GradError for one that requires a gradient: what NumPy computes is not recorded.
    """
    import numpy as np

    _refuse_gradient("numpy", x, ".detach().numpy()")
    if x.device.type != "cpu":
        raise DeviceError("numpy", f"a tensor on {x.device}", "a CPU tensor", "call .to('cpu') first")
    x.buffer.shared = True
    dtype = x.dtype.numpy_dtype()
    if not x.numel():
        return np.empty(x.shape, dtype)
    first, last = span(x)
    memory = (ctypes.c_char * (last - first)).from_address(first)
    memory.owner = x.buffer  # the array's base chain keeps the buffer alive through this
    strides = tuple(s * x.dtype.itemsize for s in x.strides)
    array = np.ndarray(x.shape, dtype, memory, x.ptr - first, strides)
    array.flags.writeable = not (x.buffer.readonly or x.layout.overlaps_itself())
    return array


def _refuse_gradient(op, x, call):
    if tape.mode.recording and tape.node_of(x) is not None:
        raise GradError(op, "a tensor that requires a gradient", "one that does not", f"call {call}")


def from_numpy(cls, array):
    """A tensor over the memory of a NumPy array; strides in whole elements and native byte order, else it is copied."""
    import numpy as np

    array = np.asarray(array)
    dtype = _dtype.get(array.dtype.newbyteorder("="))
    if not array.dtype.isnative or any(s % dtype.itemsize for s in array.strides):
        array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))
    interface = array.__array_interface__
    address, readonly = interface["data"]
    buffer = Buffer.over(address, array.nbytes, array, shared=True, readonly=readonly)
    return cls(buffer, Layout(array.shape, tuple(s // dtype.itemsize for s in array.strides), 0), dtype)


# ---- DLPack: https://dmlc.github.io/dlpack, dlpack.h of version 1.1 --------------------------------------------------

_CODES = {"i": 0, "u": 1, "f": 2, "bf16": 4, "b": 6, "f8e4m3": 10, "f8e5m2": 12}
_CPU = 1
_READ_ONLY, _COPIED = 1, 2


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _DLTensor), ("context", ctypes.c_void_p), ("deleter", _DELETER)]


class _Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", _DELETER),
        ("flags", ctypes.c_uint64),
        ("tensor", _DLTensor),
    ]


_NAMES = {False: (b"dltensor", b"used_dltensor"), True: (b"dltensor_versioned", b"used_dltensor_versioned")}
_exported: dict[int, tuple] = {}  # address of a managed tensor -> what it needs alive, until its deleter is called


def _python(name, result, *arguments):
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


# a capsule is passed as an address: in its destructor it has no references any more
_capsule_new = _python("PyCapsule_New", ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_capsule_valid = _python("PyCapsule_IsValid", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)
_capsule_pointer = _python("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
_capsule_rename = _python("PyCapsule_SetName", ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)


@_DELETER
def _release(address):
    _exported.pop(address, None)


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def _drop(capsule):
    """Destructor: a capsule that nobody consumed (a consumer renames it) lets go of its tensor."""
    for name, _ in _NAMES.values():
        if _capsule_valid(capsule, name):
            _exported.pop(_capsule_pointer(capsule, name), None)


def dlpack_device(x):
    """(device type, device id) as DLPack numbers them."""
    return (_CPU, 0)


def dlpack(x, stream=None, max_version=None, dl_device=None, copy=None):
    """x as a DLPack capsule over the same memory (`copy=True`: over a copy).
    See the Python array API's `__dlpack__`. GradError for one that requires a gradient.
    """
    _refuse_gradient("dlpack", x, "it on x.detach()")
    if x.device.type != "cpu" or (dl_device is not None and tuple(dl_device) != (_CPU, 0)):
        raise DeviceError("dlpack", f"{x.device} to {dl_device}", "the CPU", "call .to('cpu') first")
    versioned = max_version is not None and max_version[0] >= 1
    copied = bool(copy or (x.buffer.readonly and not versioned))
    if copied:
        x = clone(x)
    x.buffer.shared = True
    managed = (_Versioned if versioned else _Managed)()
    n, t = x.ndim, managed.tensor
    shape, strides = (ctypes.c_int64 * max(n, 1))(*x.shape), (ctypes.c_int64 * max(n, 1))(*x.strides)
    t.data, t.device_type, t.ndim, t.shape, t.strides = x.ptr, _CPU, n, shape, strides
    t.code, t.bits, t.lanes = _CODES.get(x.dtype.name, _CODES.get(x.dtype.kind)), x.dtype.bits, 1
    managed.deleter = _release
    if versioned:
        managed.major, managed.minor = 1, 1
        managed.flags = _READ_ONLY * x.buffer.readonly | _COPIED * copied
    address = ctypes.addressof(managed)
    _exported[address] = (managed, shape, strides, x.buffer)
    return _capsule_new(address, _NAMES[versioned][0], ctypes.cast(_drop, ctypes.c_void_p))


class _Imported:
    """Calls the producer's deleter when the last tensor over its memory is gone."""

    def __init__(self, managed):
        self.managed = managed

    def __del__(self):
        if self.managed.deleter:
            self.managed.deleter(ctypes.addressof(self.managed))


def _dtype_name(code, bits):
    kind = next((kind for kind, c in _CODES.items() if c == code), "unknown")
    if kind == "b":
        return "bool"
    return f"{kind}{bits}" if len(kind) == 1 else kind


def from_dlpack(cls, other):
    """A tensor over the memory of anything with `__dlpack__` (NumPy, PyTorch, JAX, CuPy ...) on the CPU; no copy."""
    device = tuple(other.__dlpack_device__()) if hasattr(other, "__dlpack_device__") else (_CPU, 0)
    if device[0] != _CPU:
        raise DeviceError("from_dlpack", f"memory of device {device}", f"({_CPU}, 0)", "move it to the CPU there first")
    try:
        capsule = other.__dlpack__(max_version=(1, 1))
    except TypeError:  # producers older than version 1.0
        capsule = other.__dlpack__()
    versioned = bool(_capsule_valid(id(capsule), _NAMES[True][0]))
    unused, used = _NAMES[versioned]
    managed = (_Versioned if versioned else _Managed).from_address(_capsule_pointer(id(capsule), unused))
    _capsule_rename(id(capsule), used)
    owner, t = _Imported(managed), managed.tensor
    name = _dtype_name(t.code, t.bits)
    if name not in _dtype.DTYPES or t.lanes != 1:
        got = f"type code {t.code}, {t.bits} bits, {t.lanes} lanes"
        raise DTypeError("from_dlpack", got, "a dtype known here", "convert it there first")
    dtype, shape = _dtype.get(name), tuple(t.shape[: t.ndim])
    strides = tuple(t.strides[: t.ndim]) if t.strides else strides_of(shape)
    low, high = Layout(shape, strides, 0).extent()
    base = (t.data or 0) + t.byte_offset
    readonly = bool(versioned and managed.flags & _READ_ONLY)
    first, size = base + low * dtype.itemsize, (high - low) * dtype.itemsize
    buffer = Buffer.over(first, size, owner, shared=True, readonly=readonly)
    return cls(buffer, Layout(shape, strides, -low), dtype)


def from_torch(cls, tensor):
    """A tensor over the memory of a PyTorch CPU tensor, which must not require gradients; no copy."""
    return from_dlpack(cls, tensor.detach() if getattr(tensor, "requires_grad", False) else tensor)


def to_torch(x):
    """A PyTorch tensor over the same memory.
    PyTorch must have been imported by the caller; it is never imported here.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        raise DeviceError("to_torch", "a process without torch", "torch already imported", "import torch first")
    if any(s < 0 for s in x.strides):
        x = contiguous(x)  # PyTorch has no negative strides
    return torch.from_dlpack(x)
