"""Short ops made of one or two others, under the names that PyTorch has for them.

>>> import tensorlib
>>> x = tensorlib.tensor([1.0, 2.0, 4.0])
>>> clamp_min(x, 2), trapezoid(x), isin(x, tensorlib.tensor([4.0, 1.0]))
(tensor([2., 2., 4.]), tensor(4.5000), tensor([ True, False,  True]))
"""

from tensorlib import dtype as _dtype
from tensorlib.device import Array
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.layout import axis, broadcast_shapes
from tensorlib.ops import contract, create, elementwise, movement, reduce, sort
from tensorlib.ops.elementwise import add, cast, clamp, eq, log1p, mul, sub
from tensorlib.ops.index import gather
from tensorlib.ops.special import xlogy
from tensorlib.registry import BOOL, FLOAT, FLOAT_ONLY, NUMBER, SAME, define


def _composite(rule, ref, arity=1):
    return define("composite", rule, ref, arity)


@_composite(NUMBER, lambda np, x, min: np.maximum(x, min), 2)
def clamp_min(x, min):
    """x, at least `min`: a number or a tensor."""
    return clamp(x, min=min)


@_composite(NUMBER, lambda np, x, max: np.minimum(x, max), 2)
def clamp_max(x, max):
    """x, at most `max`: a number or a tensor."""
    return clamp(x, max=max)


@_composite(FLOAT, lambda np, x, y, z, value=1: x + value * (y / z), 3)
def addcdiv(x, tensor1, tensor2, *, value=1):
    """x + value * tensor1 / tensor2."""
    quotient = elementwise.div(tensor1, tensor2)
    return add(x, quotient if value == 1 else mul(quotient, value))


@_composite(FLOAT, lambda np, x, y: np.float_power(x, y), 2)
def float_power(x, exponent):
    """x ** exponent in f64, whatever the dtypes."""
    x, exponent = (cast(v, _dtype.f64) if isinstance(v, Array) else v for v in (x, exponent))
    return elementwise.pow(x, exponent)


@_composite(FLOAT, lambda np, x, y: x * np.exp2(y), 2)
def ldexp(x, other):
    """x * 2 ** other."""
    return mul(x, elementwise.exp2(other))


@_composite(FLOAT, None, 2)
def xlog1py(x, y):
    """x * log(1 + y); 0 for x = 0 unless y is NaN."""
    zero = elementwise.logical_and(eq(x, 0), elementwise.logical_not(elementwise.isnan(y)))
    return elementwise.where(zero, 0.0, mul(x, log1p(y)))


@_composite(FLOAT, None)
def entr(x):
    """-x * log(x); 0 at 0, -infinity below."""
    return elementwise.where(elementwise.lt(x, 0), float("-inf"), elementwise.neg(xlogy(x, x)))


@_composite(BOOL, lambda np, x: np.isposinf(x))
def isposinf(x):
    """Whether x is infinity."""
    return eq(x, float("inf"))


@_composite(BOOL, lambda np, x: np.isneginf(x))
def isneginf(x):
    """Whether x is -infinity."""
    return eq(x, float("-inf"))


@_composite(BOOL, lambda np, x, test: np.isin(x, test), 2)
def isin(elements, test_elements, *, invert=False):
    """Whether each element is among the test elements (NaN is not), by binary search. DTypeError for two dtypes."""
    if elements.dtype is not test_elements.dtype:
        got = f"elements of {elements.dtype} and {test_elements.dtype}"
        raise DTypeError("isin", got, "one dtype", "convert one with .to(dtype)")
    edges = sort.sort(movement.reshape(test_elements, -1)).values
    flat = movement.reshape(elements, -1)
    if edges.numel():
        places = clamp(sort.searchsorted(edges, flat), max=edges.numel() - 1)
        found = movement.reshape(eq(gather(edges, 0, places), flat), elements.shape)
    else:
        found = create.zeros(type(elements), elements.shape, dtype="bool", device=elements.device)
    return elementwise.logical_not(found) if invert else found


def broadcast_tensors(*tensors):
    """Views of tensors, all of the shape that they broadcast to. ShapeError."""
    shape = broadcast_shapes("broadcast_tensors", *(x.shape for x in tensors))
    return tuple(movement.broadcast_to(x, shape) for x in tensors)


@_composite(SAME, lambda np, x, offset=0: np.diagflat(x, offset))
def diagflat(x, offset=0):
    """A matrix with x, flattened, on a diagonal."""
    return contract.diag_embed(movement.reshape(x, -1), offset)


@_composite(NUMBER, lambda np, x, y: np.vdot(x, y), 2)
def vdot(x, y):
    """`dot` of two 1-d operands."""
    return contract.dot(x, y)


@_composite(FLOAT_ONLY, lambda np, x, y, p=2: np.linalg.norm(np.ravel(x - y), p), 2)
def dist(x, y, p=2):
    """The p-norm of x - y over all elements; the shapes broadcast."""
    return reduce.norm(sub(x, y), p)


@_composite(FLOAT_ONLY, None, 2)
def cdist(x1, x2, p=2.0):
    """p-norms of the differences of all pairs of rows: (..., P, M) and (..., R, M) -> (..., P, R). ShapeError.

    Differences are taken one by one: exact for near points too, in memory for P * R * M numbers.

    >>> import tensorlib
    >>> cdist(tensorlib.zeros(1, 2), tensorlib.tensor([[3.0, 4.0], [0.0, 1.0]]))
    tensor([[5., 1.]])
    """
    if x1.ndim < 2 or x2.ndim < 2 or x1.shape[-1] != x2.shape[-1]:
        got = f"shapes {x1.shape} and {x2.shape}"
        raise ShapeError("cdist", got, "(..., P, M) and (..., R, M)", "give rows of equal sizes")
    return reduce.norm(sub(movement.unsqueeze(x1, -2), movement.unsqueeze(x2, -3)), p, -1)


@_composite(FLOAT, lambda np, y, x=None, dx=1, dim=-1: np.trapezoid(y, x, dx, dim))
def trapezoid(y, x=None, *, dx=1, dim=-1):
    """The integral of y along a dim by the trapezoidal rule, at places x (of y's shape, or 1-d), or dx apart."""
    dim = axis("trapezoid", dim, y.ndim)
    n = y.shape[dim] if y.ndim else 0
    if n < 1:
        raise ShapeError("trapezoid", f"shape {y.shape} along dim {dim}", "at least one element", "give samples")
    pairs = mul(add(movement.narrow(y, dim, 1, n - 1), movement.narrow(y, dim, 0, n - 1)), 0.5)
    if x is None:
        return reduce.sum(mul(pairs, dx), dim)
    if x.ndim == 1:
        x = movement.reshape(x, (-1, *(1,) * (y.ndim - 1 - dim)))
        at = 0
    else:
        at = dim
    steps = sub(movement.narrow(x, at, 1, n - 1), movement.narrow(x, at, 0, n - 1))
    return reduce.sum(mul(pairs, steps), dim)
