"""Softmax with noise, softmin, and gated units.

>>> import tensorlib
>>> softmin(tensorlib.tensor([0.0, 0.0, 1000.0]), 0), glu(tensorlib.tensor([2.0, 0.0]))
(tensor([0.5000, 0.5000, 0.0000]), tensor([1.]))
"""

from tensorlib import dtype as _dtype
from tensorlib import random
from tensorlib.errors import ShapeError
from tensorlib.layout import axis
from tensorlib.ops import create, movement, reduce
from tensorlib.ops.elementwise import add, cast, div, log, mul, neg, sigmoid, sub
from tensorlib.ops.index import scatter
from tensorlib.ops.softmax import softmax
from tensorlib.registry import FLOAT, FLOAT_ONLY, define


@define("composite", FLOAT, None)
def softmin(x, dim=-1, dtype=None):
    """softmax(-x) along a dim."""
    return softmax(neg(x), dim, dtype)


@define("composite", FLOAT_ONLY, None)
def glu(x, dim=-1):
    """a * sigmoid(b) for the halves a and b of a dim. ShapeError for an odd size. (arXiv:1612.08083)"""
    dim = axis("glu", dim, x.ndim)
    if not x.ndim or x.shape[dim] % 2:
        raise ShapeError("glu", f"shape {x.shape} along dim {dim}", "an even size", "choose another dim")
    a, b = movement.split(x, x.shape[dim] // 2, dim) if x.shape[dim] else (x, x)
    return mul(a, sigmoid(b))


@define("composite", FLOAT_ONLY, None)
def gumbel_softmax(logits, tau=1.0, hard=False, dim=-1, *, generator=None):
    """softmax((logits + Gumbel noise) / tau): a sample of the distribution, the closer to one-hot the smaller tau.

    `hard` gives the one-hot sample itself, with the gradient of the soft one (arXiv:1611.01144). Noise is drawn in f32,
    for f64 in f64. ShapeError, DTypeError.
    """
    FLOAT_ONLY.apply("gumbel_softmax", logits.dtype)
    if tau <= 0:
        raise ShapeError("gumbel_softmax", f"tau {tau}", "more than 0", "use hard=True for one-hot samples")
    wide = _dtype.f64 if logits.dtype is _dtype.f64 else _dtype.f32
    noise = random.exponential(type(logits), 1.0, logits.shape, wide, logits.device, generator)
    soft = cast(softmax(div(sub(logits, log(noise)), tau), dim), logits.dtype)
    if not hard:
        return soft
    still = soft.handle()
    blank = create.zeros(type(soft), soft.shape, dtype=soft.dtype, device=soft.device)
    one_hot = scatter(blank, dim, reduce.argmax(still, dim, True), 1.0)
    return add(sub(one_hot, still), soft)
