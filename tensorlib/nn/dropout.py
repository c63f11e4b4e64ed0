"""Dropout and its kin (arXiv:1207.0580): nothing happens in `eval()`.

>>> import tensorlib
>>> from tensorlib import nn
>>> x = tensorlib.ones(2, 3)
>>> nn.Dropout(0.9).eval()(x) is x, nn.Dropout(1.0)(x).sum()
(True, tensor(0.))
"""

from tensorlib import random
from tensorlib.errors import ShapeError
from tensorlib.nn.module import Module

ALPHA = -1.7580993408473766  # SELU's lower limit: -scale * alpha (arXiv:1706.02515)


class Dropout(Module):
    """Each element 0 with probability p, else divided by 1 - p."""

    def __init__(self, p=0.5, inplace=False):
        if not 0 <= p <= 1:
            raise ShapeError(type(self).__name__, f"p = {p}", "0 <= p <= 1", "give the probability to become 0")
        self.p = p

    def forward(self, x):
        return random.dropout(x, self.p, self.training)

    def extra_repr(self):
        return f"p={self.p}"


class _Channels(Dropout):
    dims = 0

    def forward(self, x):
        if not self.training or not self.p:
            return x
        if x.ndim not in (self.dims + 1, self.dims + 2):
            expected = f"(N, C) or (C) and {self.dims} more dims"
            raise ShapeError(type(self).__name__, f"shape {x.shape}", expected, "use Dropout for other shapes")
        kept = type(x).empty((*x.shape[: x.ndim - self.dims], *(1,) * self.dims), x.dtype, x.device).fill_(1.0)
        return x * random.dropout(kept, self.p)


class Dropout1d(_Channels):
    """Whole channels of x (N, C, L) or (C, L) 0 with probability p, the others divided by 1 - p (arXiv:1411.4280)."""

    dims = 1


class Dropout2d(_Channels):
    """Whole channels of x (N, C, H, W) or (C, H, W) 0 with probability p, the others divided by 1 - p."""

    dims = 2


class Dropout3d(_Channels):
    """Whole channels of x (N, C, D, H, W) or (C, D, H, W) 0 with probability p, the others divided by 1 - p."""

    dims = 3


class AlphaDropout(Dropout):
    """Elements become SELU's lower limit with probability p; all are scaled so that mean 0 and variance 1 stay."""

    def forward(self, x):
        if not self.training or not self.p:
            return x
        q = 1 - self.p
        if not q:
            return x * 0.0
        scale = (q + ALPHA**2 * q * self.p) ** -0.5
        kept = random.dropout(type(x).empty(x.shape, x.dtype, x.device).fill_(q), self.p)  # 1 or 0
        return (x * kept + (1 - kept) * ALPHA) * scale - scale * self.p * ALPHA
