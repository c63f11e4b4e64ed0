"""Norms of channels: torch.nn's names and arguments. Weights begin as 1, biases as 0."""

from tensorlib.errors import ShapeError
from tensorlib.nn import init
from tensorlib.nn.module import Buffer, Module, Parameter
from tensorlib.ops import normalise


class _Statistics(Module):
    """What norms with running statistics have: per channel, one weight, bias, running mean and variance."""

    dims, _batched = (), True  # numbers of dims that x may have; whether the smallest has a batch

    def __init__(self, num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True, dtype="f32"):
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.weight = Parameter(num_features, init=init.ones_, dtype=dtype) if affine else None
        self.bias = Parameter(num_features, dtype=dtype) if affine else None
        self.running_mean = Buffer(num_features, dtype=dtype) if track_running_stats else None
        self.running_var = Buffer(num_features, init=init.ones_, dtype=dtype) if track_running_stats else None
        # a file may lack it: PyTorch's before 0.4.1 do
        self.num_batches_tracked = Buffer(dtype="i64", optional=True) if track_running_stats else None

    def reset_running_stats(self):
        """Mean 0, variance 1, no batches."""
        if self.track_running_stats:
            init.zeros_(self.running_mean)
            init.ones_(self.running_var)
            self.num_batches_tracked.fill_(0)

    def _check(self, x):
        batched = x.ndim == max(self.dims) or self._batched
        if x.ndim not in self.dims or x.shape[1 if batched else 0] != self.num_features:
            expected = f"{' or '.join(map(str, self.dims))} dims with {self.num_features} channels"
            raise ShapeError(type(self).__name__, f"shape {x.shape}", expected, "channels stand before the positions")

    def extra_repr(self):
        shown = f"{self.num_features}, eps={self.eps:g}, momentum={self.momentum}, affine={self.affine}"
        return f"{shown}, track_running_stats={self.track_running_stats}"


class _BatchNorm(_Statistics):
    def forward(self, x):
        self._check(x)
        training = self.training or not self.track_running_stats
        momentum = self.momentum
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
            if momentum is None:  # a plain average over all batches
                momentum = 1.0 / self.num_batches_tracked.item()
        return normalise.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training, momentum or 0.0, self.eps
        )


class BatchNorm1d(_BatchNorm):
    """x (N, C) or (N, C, L): mean 0, variance 1 per channel (arXiv:1502.03167), by the batch or running statistics.

    >>> import tensorlib
    >>> norm = BatchNorm1d(1)
    >>> norm(tensorlib.tensor([[1.0], [3.0]])).round().tolist(), norm.running_mean
    ([[-1.0], [1.0]], tensor([0.2000]))
    """

    dims = (2, 3)


class BatchNorm2d(_BatchNorm):
    """x (N, C, H, W): mean 0, variance 1 per channel (arXiv:1502.03167), by the batch or running statistics."""

    dims = (4,)


class BatchNorm3d(_BatchNorm):
    """x (N, C, D, H, W): mean 0, variance 1 per channel (arXiv:1502.03167), by the batch or running statistics."""

    dims = (5,)


class _InstanceNorm(_Statistics):
    _batched = False

    def __init__(self, num_features, eps=1e-5, momentum=0.1, affine=False, track_running_stats=False, dtype="f32"):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, dtype)

    def forward(self, x):
        self._check(x)
        alone = x.ndim == min(self.dims)
        x = x.unsqueeze(0) if alone else x
        own = self.training or not self.track_running_stats
        stats = (self.running_mean, self.running_var, self.weight, self.bias)
        out = normalise.instance_norm(x, *stats, own, self.momentum or 0.0, self.eps)
        return out.squeeze(0) if alone else out


class InstanceNorm1d(_InstanceNorm):
    """x (N, C, L) or (C, L): mean 0, variance 1 over the positions of a channel of a sample (arXiv:1607.08022)."""

    dims = (2, 3)


class InstanceNorm2d(_InstanceNorm):
    """x (N, C, H, W) or (C, H, W): mean 0, variance 1 over a channel of a sample (arXiv:1607.08022)."""

    dims = (3, 4)


class InstanceNorm3d(_InstanceNorm):
    """x (N, C, D, H, W) or (C, D, H, W): mean 0, variance 1 over a channel of a sample (arXiv:1607.08022)."""

    dims = (4, 5)


class GroupNorm(Module):
    """x (N, C, ...): mean 0, variance 1 over groups of channels and all positions (arXiv:1803.08494)."""

    def __init__(self, num_groups, num_channels, eps=1e-5, affine=True, dtype="f32"):
        if num_groups < 1 or num_channels % num_groups:
            got = f"{num_channels} channels in {num_groups} groups"
            raise ShapeError("GroupNorm", got, "whole groups", "make num_groups a divisor of num_channels")
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, eps
        self.weight = Parameter(num_channels, init=init.ones_, dtype=dtype) if affine else None
        self.bias = Parameter(num_channels, dtype=dtype) if affine else None

    def forward(self, x):
        return normalise.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self):
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps:g}"
