"""Typed errors. Every message says which operation failed, what it got, what it expected, and how to fix it.

>>> from tensorlib.errors import ShapeError
>>> print(ShapeError("add", "shapes (2, 3) and (4, 3)", "shapes that broadcast", "reshape or expand one of them"))
add: got shapes (2, 3) and (4, 3); expected shapes that broadcast; reshape or expand one of them
"""

from __future__ import annotations


class TensorlibError(Exception):
    """Base of all errors raised here; attributes `op`, `got`, `expected`, `fix`."""

    def __init__(self, op: str, got: object, expected: object, fix: str = ""):
        self.op, self.got, self.expected, self.fix = op, got, expected, fix
        self.args = (op, got, expected, fix)

    def __str__(self) -> str:
        tail = f"; {self.fix}" if self.fix else ""
        return f"{self.op}: got {self.got}; expected {self.expected}{tail}"


class ShapeError(TensorlibError, ValueError):
    """Shapes, dims or indices that do not fit together."""


class DTypeError(TensorlibError, TypeError):
    """An operation was given a dtype (or Python type) that it does not take."""


class DeviceError(TensorlibError, RuntimeError):
    """A device that is missing, or operands that live on different devices."""


class FuseError(DTypeError, AttributeError):
    """Something in a fused function that is no elementwise op on its arguments."""


class EncodeError(TensorlibError, ValueError):
    """Values that a quantised format cannot hold: NaN, infinities, or larger ones than its largest scale allows."""


class NoKernel(TensorlibError, NotImplementedError):
    """No kernel for this operation and dtype on this device."""


class GradError(TensorlibError, RuntimeError):
    """A gradient that does not exist, or that what happened since the forward pass has made impossible."""


class AnomalyError(TensorlibError, FloatingPointError, RuntimeError):
    """NaN came out of an op, or out of its gradient, under `autograd.detect_anomaly()`."""


class LinAlgError(TensorlibError, RuntimeError, ValueError):
    """A matrix for which the result does not exist, or an iteration that did not converge."""


class ContextError(TensorlibError, ValueError):
    """A prompt (plus what is to be generated) that does not fit a model's context."""


class DownloadError(TensorlibError, OSError):
    """A file that could not be fetched, or whose hash is wrong."""


class WriteError(TensorlibError, OSError):
    """A file that could not be written: a full disk, a folder that is missing or closed to us."""


class FormatError(TensorlibError, ValueError):
    """A file that breaks its format. `file` is its name; `where` the key, tensor or byte offset at fault."""

    def __init__(self, file: object, where: object, got: object, expected: object, fix: str = ""):
        super().__init__(f"{file}: {where}", got, expected, fix)
        self.file, self.where = file, where
        self.args = (file, where, got, expected, fix)


class WeightsError(FormatError):
    """Weights that are not those of a module: `missing` and `unexpected` names, and `mismatched`: tuples of a name, its
    shape, and the module's. All of them are here, also where the message cuts them.
    """

    def __init__(self, file, where, got, expected, fix="", missing=(), unexpected=(), mismatched=()):
        super().__init__(file, where, got, expected, fix)
        self.missing, self.unexpected, self.mismatched = list(missing), list(unexpected), list(mismatched)
        self.args = (file, where, got, expected, fix, self.missing, self.unexpected, self.mismatched)
