"""Copies to another dtype or device."""

from tensorlib.device import Array, Device, transfer
from tensorlib.ops._launch import cast
from tensorlib.ops.movement import contiguous
from tensorlib.registry import SAME, define


def _moved(s, dtype):
    return (s.array(s.shape()), "cpu"), {}


@define("movement", SAME, lambda np, x, device: x, domain=_moved, vjp={"x": lambda g, x: to_device(g, x.device)})
def to_device(x, device):
    """x on another device, contiguous; itself if it is there already. DeviceError if there is no such device.

    >>> import tensorlib
    >>> to_device(tensorlib.tensor([1, 2]), "cpu")
    tensor([1, 2])
    """
    device = Device(device)
    if device is x.device:
        return x
    x = contiguous(x)
    out = type(x).empty(x.shape, x.dtype, device)
    if x.numel():
        transfer(out, x)
    return out


def to(x, *args, dtype=None, device=None, copy=False):
    """In another dtype and/or on another device: `x.to("f16")`, `x.to("cpu")`, `x.to(other)`; itself if nothing
    changes.

    Floats to integers truncate and saturate. Raises DTypeError, DeviceError.
    """
    for a in args:
        if isinstance(a, Array):
            dtype, device = a.dtype, a.device
        elif isinstance(a, Device) or (isinstance(a, str) and a.partition(":")[0] in ("cpu", "cuda", "metal")):
            device = a
        else:
            dtype = a
    if device is not None and Device(device) is not x.device:
        x, copy = to_device(x, device), False
    return cast(x, dtype or x.dtype, copy)


def type_as(x, other):
    """In the dtype of `other`."""
    return to(x, other.dtype)


def cpu(x):
    """On the CPU."""
    return to(x, "cpu")


def cuda(x, index=0):
    """On a GPU."""
    return to(x, f"cuda:{index}")
