"""Convolutions with weights, and padding: torch.nn's names, arguments and shapes of weights.

Weights begin uniform within 1 / sqrt(fan-in), biases within the same bound, as in PyTorch.

>>> import tensorlib
>>> from tensorlib import nn
>>> nn.Conv2d(3, 8, 3, stride=2, padding=1)(tensorlib.zeros(1, 3, 8, 8)).shape
(1, 8, 4, 4)
>>> nn.ConvTranspose1d(4, 2, kernel_size=4, stride=2, padding=1, bias=False)
ConvTranspose1d(4, 2, kernel_size=(4,), stride=(2,), padding=(1,), bias=False)
"""

from math import prod

from tensorlib.errors import ShapeError
from tensorlib.nn import init
from tensorlib.nn.module import Module, Parameter
from tensorlib.ops import conv, pixels

MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def _per_dim(value, dims):
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * dims


class _Convolution(Module):
    """What all have: channels, geometry, weight [out, in / groups, *kernel], or [in, out / groups, *kernel]."""

    dims, function, transposed = 0, None, False

    def _begin(self, in_channels, out_channels, kernel_size, bias, groups, dtype, **geometry):
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if groups < 1 or channels % groups:
                got = f"{name} {channels} in {groups} groups"
                raise ShapeError(type(self).__name__, got, "whole groups", "make groups a divisor of both")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = _per_dim(kernel_size, self.dims)
        for name, value in geometry.items():
            setattr(self, name, value if isinstance(value, str) else _per_dim(value, self.dims))
        first, second = (in_channels, out_channels) if self.transposed else (out_channels, in_channels)
        shape = (first, second // groups, *self.kernel_size)
        within = init.fan_uniform(prod(shape[1:]))
        self.weight = Parameter(*shape, init=within, dtype=dtype)
        self.bias = Parameter(out_channels, init=within, dtype=dtype) if bias else None

    def extra_repr(self):
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        zero, one = (0,) * self.dims, (1,) * self.dims
        usual = {"padding": zero, "output_padding": zero, "dilation": one, "groups": 1, "padding_mode": "zeros"}
        for name, value in usual.items():
            if vars(self).get(name, value) != value:
                text += f", {name}={vars(self)[name]!r}"
        return text + ("" if vars(self).get("bias", True) is not None else ", bias=False")


class _Conv(_Convolution):
    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True,
        padding_mode="zeros", dtype="f32",
    ):  # fmt: skip
        geometry = {"stride": stride, "padding": padding, "dilation": dilation}
        self._begin(in_channels, out_channels, kernel_size, bias, groups, dtype, **geometry)
        if padding_mode not in MODES:
            raise ValueError(f"{type(self).__name__}: got padding_mode {padding_mode!r}; expected one of {list(MODES)}")
        self.padding_mode = padding_mode

    def forward(self, x):
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = pixels.pad(x, self._around(), MODES[self.padding_mode]), 0
        return type(self).function(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def _around(self):
        """Padding before and after each dim, the last first."""
        if self.padding == "same":
            total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size)]
            pairs = [(t // 2, t - t // 2) for t in total]
        else:
            pairs = [(p, p) for p in ((0,) * self.dims if self.padding == "valid" else self.padding)]
        return [p for pair in reversed(pairs) for p in pair]


class _ConvTranspose(_Convolution):
    transposed = True

    def __init__(
        self, in_channels, out_channels, kernel_size, stride=1, padding=0, output_padding=0, groups=1, bias=True,
        dilation=1, dtype="f32",
    ):  # fmt: skip
        geometry = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
        self._begin(in_channels, out_channels, kernel_size, bias, groups, dtype, **geometry)

    def forward(self, x):
        geometry = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        return type(self).function(x, self.weight, self.bias, *geometry)


class Conv1d(_Conv):
    """x (N, C, L) or (C, L) -> (N, O, L'): see `tensorlib.conv1d`."""

    dims, function = 1, staticmethod(conv.conv1d)


class Conv2d(_Conv):
    """x (N, C, H, W) or (C, H, W) -> (N, O, H', W'): see `tensorlib.conv2d`."""

    dims, function = 2, staticmethod(conv.conv2d)


class Conv3d(_Conv):
    """x (N, C, D, H, W) or (C, D, H, W) -> (N, O, D', H', W'): see `tensorlib.conv3d`."""

    dims, function = 3, staticmethod(conv.conv3d)


class ConvTranspose1d(_ConvTranspose):
    """x (N, C, L) or (C, L) -> (N, O, L'): see `tensorlib.conv_transpose1d`."""

    dims, function = 1, staticmethod(conv.conv_transpose1d)


class ConvTranspose2d(_ConvTranspose):
    """x (N, C, H, W) or (C, H, W) -> (N, O, H', W'): see `tensorlib.conv_transpose2d`."""

    dims, function = 2, staticmethod(conv.conv_transpose2d)


class ConvTranspose3d(_ConvTranspose):
    """x (N, C, D, H, W) or (C, D, H, W) -> (N, O, D', H', W'): see `tensorlib.conv_transpose3d`."""

    dims, function = 3, staticmethod(conv.conv_transpose3d)


class _Pad(Module):
    dims, mode = 0, "constant"

    def __init__(self, padding, *value):
        if len(value) > (self.mode == "constant" and not type(self).__name__.startswith("Zero")):
            raise TypeError(f"{type(self).__name__}: got {len(value) + 1} arguments; expected the padding alone")
        self.padding = tuple(padding) if isinstance(padding, (tuple, list)) else (padding,) * (2 * self.dims)
        self.value = value[0] if value else None

    def forward(self, x):
        return pixels.pad(x, self.padding, self.mode, self.value)

    def extra_repr(self):
        return f"{self.padding}" + ("" if self.value is None else f", value={self.value}")


def _pads():
    """The classes: every mode in 1 to 3 dims."""
    kinds = {"Zero": "constant", "Constant": "constant", "Reflection": "reflect", "Replication": "replicate"}
    for kind, mode in (kinds | {"Circular": "circular"}).items():
        for dims in (1, 2, 3):
            name = f"{kind}Pad{dims}d"
            doc = f"`tensorlib.pad` of the last {dims} dims, mode {mode!r}: a number, or a pair per dim, last first."
            yield name, type(name, (_Pad,), {"dims": dims, "mode": mode, "__doc__": doc, "__module__": __name__})


globals().update(_pads())
