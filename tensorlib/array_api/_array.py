"""The array object of the standard: a Tensor whose attributes, indexing and errors are the standard's.

Arithmetic operators are attached in `_elementwise`, which has the functions that they stand for.

>>> from tensorlib import array_api as xp
>>> x = xp.asarray([[1, 2, 3], [4, 5, 6]])
>>> x.size, x.T.shape, x[xp.asarray(True)].shape
(6, (3, 2), (1, 2, 3))
"""

import importlib

from tensorlib import device as _device
from tensorlib.device import Device
from tensorlib.errors import DeviceError, DTypeError, ShapeError
from tensorlib.ops import create, exchange, movement
from tensorlib.tensor import Tensor

VERSION = "2024.12"
VERSIONS = ("2021.12", "2022.12", "2023.12", VERSION)  # each standard only adds to the one before


class OutOfBounds(ShapeError, IndexError):
    """An index, a mask or an axis that does not fit the array: Python's IndexError, as the standard asks for."""


class NDArray(Tensor):
    """The standard's array over the memory of a Tensor. Make one with `array_api.asarray(...)`."""

    __slots__ = ()
    __hash__ = object.__hash__

    @property
    def size(self):
        """Number of elements."""
        return self.numel()

    @property
    def T(self):
        """The transpose of a matrix: a view. ShapeError unless there are two dims."""
        if self.ndim != 2:
            raise ShapeError("T", f"{self.ndim} dims", "2 dims", "use mT or permute_dims")
        return movement.transpose(self, 0, 1)

    @property
    def mT(self):
        """The last two dims swapped: a view. ShapeError for fewer dims."""
        if self.ndim < 2:
            raise ShapeError("mT", f"{self.ndim} dims", "at least 2 dims", "add dims with expand_dims")
        return movement.transpose(self, -2, -1)

    def to_device(self, device, /, *, stream=None):
        """On another device: itself, where there is one only. DeviceError for others and for a stream."""
        if stream is not None:
            raise DeviceError("to_device", f"stream {stream!r}", "None", "leave it out: nothing here has streams")
        return self.to(device=Device(device))

    def __array_namespace__(self, /, *, api_version=None):
        """`tensorlib.array_api`, for any version of the standard up to 2024.12. ValueError (ShapeError) for others."""
        if api_version is not None and api_version not in VERSIONS:
            raise ShapeError("array_namespace", f"version {api_version!r}", ", ".join(VERSIONS), "ask for one of these")
        return importlib.import_module("tensorlib.array_api")

    # ---- Python values -----------------------------------------------------------------------------------------------

    def _scalar(self, op):
        if self.ndim:
            fix = "index it first, or use all() or any()"
            raise DTypeError(op, f"an array of {self.ndim} dims", "a 0-d array", fix)
        return exchange.item(self)

    def __bool__(self, /):
        return bool(self._scalar("bool"))

    def __int__(self, /):
        return int(self._scalar("int"))

    def __float__(self, /):
        return float(self._scalar("float"))

    def __complex__(self, /):
        value = float(self._scalar("complex"))
        return complex(value, value) if value != value else complex(value)

    def __index__(self, /):
        if self.dtype.kind not in "ui":
            raise DTypeError("index", f"dtype {self.dtype}", "an integer dtype", "convert it with astype")
        return int(self._scalar("index"))

    # ---- indexing ----------------------------------------------------------------------------------------------------

    def __getitem__(self, key, /):
        """x[key]: integers, slices, None, `...`, one bool mask, integer arrays. OutOfBounds, DTypeError."""
        x, key = _masked(self, key)
        try:
            return Tensor.__getitem__(x, key)
        except ShapeError as e:
            raise OutOfBounds(*e.args) from e

    def __setitem__(self, key, value, /):
        """x[key] = value: a number or an array that broadcasts to x[key]; x's dtype stays. OutOfBounds, DTypeError."""
        x, key = _masked(self, key)
        try:
            Tensor.__setitem__(x, key, value)
        except ShapeError as e:
            raise OutOfBounds(*e.args) from e

    # ---- DLPack ------------------------------------------------------------------------------------------------------

    def __dlpack__(self, /, *, stream=None, max_version=None, dl_device=None, copy=None):
        """A DLPack capsule over the same memory, a copy's for copy=True. BufferError for devices other than the CPU,
        and for copy=False where only a copy may be handed out (read-only memory, to a consumer older than DLPack 1).
        """
        if stream is not None:
            raise BufferError(f"dlpack: got stream {stream!r}; expected None: the CPU has no streams")
        old = max_version is None or max_version[0] < 1
        if copy is False and old and self.buffer.readonly:
            raise BufferError("dlpack: got copy=False of read-only memory; expected max_version=(1, 0) or later")
        try:
            return exchange.dlpack(self, stream, max_version, dl_device, copy)
        except DeviceError as e:
            raise BufferError(str(e)) from e

    def __dlpack_device__(self, /):
        """(device type, device id) as DLPack numbers them."""
        return exchange.dlpack_device(self)


def _masked(x, key):
    """(x, key) as [] takes them. A 0-d mask adds a dim of size 1 and selects it or nothing; a mask may have size 0
    where x has not, and selects nothing then.
    """
    if isinstance(key, bool):
        key = create.full(NDArray, (), key)
    if not isinstance(key, _device.Array) or key.dtype.kind != "b":
        return x, key
    if not key.shape:
        return movement.unsqueeze(x, 0), movement.reshape(key, 1)
    shape = x.shape[: key.ndim]
    if 0 in key.shape and key.ndim <= x.ndim and all(m in (0, n) for m, n in zip(key.shape, shape, strict=True)):
        key = create.zeros(NDArray, shape, dtype="bool")
    return x, key


def wrap(x):
    """An Array or Tensor (or a tuple of them) as NDArrays over the same memory."""
    if isinstance(x, (tuple, list)):
        return type(x)(map(wrap, x))
    return x if type(x) is NDArray else NDArray(x.buffer, x.layout, x.dtype)


def array(op, x):
    """x, which must be an array of ours. DTypeError."""
    if not isinstance(x, _device.Array):
        raise DTypeError(op, f"a {type(x).__name__}", "an array", "convert it with asarray")
    return wrap(x)


def on(device):
    """The device that a `device` keyword names: the CPU for None. DeviceError."""
    return _device.CPU if device is None else Device(device)
