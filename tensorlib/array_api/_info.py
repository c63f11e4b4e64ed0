"""What this implementation of the standard is able to do: `array_api.__array_namespace_info__()`."""

from tensorlib import device as _device
from tensorlib.array_api import _dtypes
from tensorlib.array_api._array import on
from tensorlib.errors import DTypeError


class Info:
    """Answers about the namespace: capabilities, devices, dtypes.

    >>> from tensorlib import array_api as xp
    >>> xp.__array_namespace_info__().default_dtypes()["real floating"]
    f32
    """

    __slots__ = ()

    def capabilities(self):
        """Whether boolean indexing and shapes that depend on values work; how many dims there may be (None: any)."""
        return {"boolean indexing": True, "data-dependent shapes": True, "max dimensions": None}

    def default_device(self):
        """Where arrays are made unless told otherwise."""
        return _device.CPU

    def default_dtypes(self, *, device=None):
        """The dtype of each kind that is taken where none is given. complex128 is a name only."""
        on(device)
        names = {"real floating": "float32", "integral": "int64", "indexing": "int64"}
        return {**{kind: _dtypes.DTYPES[name] for kind, name in names.items()}, "complex floating": _dtypes.complex128}

    def devices(self):
        """The devices that arrays may be on."""
        return [_device.CPU]

    def dtypes(self, *, device=None, kind=None):
        """Names and dtypes, all or those of a kind (or of several, in a tuple); none are complex. DTypeError."""
        on(device)
        kinds = kind if isinstance(kind, tuple) else ("bool", "numeric") if kind is None else (kind,)
        for k in kinds:
            if k not in _dtypes.KINDS:
                raise DTypeError("dtypes", f"kind {k!r}", f"one of {', '.join(_dtypes.KINDS)}", "use one of these")
        return {name: d for name, d in _dtypes.DTYPES.items() if any(name in _dtypes.KINDS[k] for k in kinds)}


def __array_namespace_info__():
    """What this namespace is able to do: an object that answers."""
    return Info()
