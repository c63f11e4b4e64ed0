"""Matrix products: `matmul` with PyTorch's semantics and `linear` with a float or a quantised weight.

Any strides are taken as they are: the kernels pack what they do not read in order. Sums are f32 for f32, f16 and bf16,
f64 for f64, and modulo 2**bits for integers; a float result is within K u sum |x||w| of the exact one, u = 2**-24 (f64:
2**-53), before it is rounded to its dtype. CPUs that have AVX512_BF16 multiply bf16 by bf16 without conversion, within
the same bound, but for sums below 2**-126, which become 0.
"""

import functools
from collections import namedtuple
from math import prod

from tensorlib import backend
from tensorlib import layout as _layout
from tensorlib.device import Array
from tensorlib.dtype import promote
from tensorlib.errors import DeviceError, DTypeError, ShapeError
from tensorlib.layout import Layout, broadcast_shapes
from tensorlib.memo import memoised
from tensorlib.ops import elementwise, movement, products
from tensorlib.registry import NUMBER, define

FEW, FEW_BF16 = 4, 32  # rows up to which W is read directly instead of being packed; kernels_numba/bf16_rows.py, MOST
DEPTH = 3072  # bytes of K per block at most: 14 rows and 32 columns of it stay in a core's L1 and L2
GROUP = 128  # columns that one thread packs at a time
PACKED_BYTES = 16 << 20  # packed A at most: a larger one is cut, so that it stays in the L3 and memory stays bounded
TINY = 1 << 10  # products up to which one plain loop is the quickest: packing takes several launches
_FLOATS = {"f16", "bf16", "f32", "f64"}
_SMALL_FLOATS = ("f32", "f16", "bf16")
_BIAS_CODES = {"f32": 1, "f16": 2, "bf16": 3, "f64": 4}


# ---- gradients -------------------------------------------------------------------------------------------------------


def _matrix(x):
    """A row for 1-d x, else x."""
    return movement.unsqueeze(x, 0) if x.ndim == 1 else x


def _whole(g, x_dims, y_dims):
    """The gradient of a product with the dims that 1-d operands took away."""
    g = movement.unsqueeze(g, -1) if y_dims == 1 else g
    return movement.unsqueeze(g, -2) if x_dims == 1 else g


def _rows(x):
    """All dims but the last as one."""
    return movement.reshape(x, (prod(x.shape[:-1]), x.shape[-1]))


def _matmul_vjp_x(g, x_shape, y):
    """g y^T; the engine sums over y's batch where x has none."""
    if hasattr(y, "product"):
        return y.T.product(g)
    return matmul(_whole(g, len(x_shape), y.ndim), _matrix(y) if y.ndim == 1 else movement.transpose(y, -2, -1))


def _matmul_vjp_y(g, x, y_shape):
    """x^T g. Where y is one matrix, this is one product over the rows of all batches."""
    g, x = _whole(g, x.ndim, len(y_shape)), _matrix(x)
    if len(y_shape) < 3:
        g, x = _rows(g), _rows(x)
    found = matmul(movement.transpose(x, -2, -1), g)
    return movement.squeeze(found, -1) if len(y_shape) == 1 else found


_LINEAR_VJP = {
    "x": lambda g, weight: matmul(g, weight),
    "weight": lambda g, x: matmul(movement.transpose(_rows(g), 0, 1), _rows(x)),
    "bias": lambda g: g,
}


# ---- rows ------------------------------------------------------------------------------------------------------------


def _matmul_domain(s, dtype):
    k, batch = s.integer(0, 5), s.shape(max_dims=2)
    shapes = [(s.integer(1, 5), k), (k, s.integer(1, 5))]
    kind = s.pick(["row", "column", "matrix", "left", "right", "both"])
    left = (k,) if kind == "row" else (*(batch if kind in ("left", "both") else ()), *shapes[0])
    right = (k,) if kind == "column" else (*(batch[-1:] if kind in ("right", "both") else ()), *shapes[1])
    return (s.array(left), s.array(right)), {}


def _linear_domain(s, dtype):
    n, k = s.integer(1, 5), s.integer(1, 5)
    bias = s.array((n,)) if s.boolean() else None
    return (s.array((*s.shape(max_dims=2), k)), s.array((n, k)), bias), {}


@define(
    "linalg",
    NUMBER,
    lambda np, x, y: np.matmul(x, y),
    arity=2,
    domain=_matmul_domain,
    vjp={"x": _matmul_vjp_x, "y": _matmul_vjp_y},
    wrap=functools.partial(memoised, operands=2),
)
def matmul(x, y):
    """Matrix product: (..., M, K) @ (..., K, N) -> (..., M, N); batch dims broadcast, a 1-d operand is a row or column.

    The dtype is the promoted one. Raises ShapeError, DTypeError (bool), DeviceError.

    >>> from tensorlib.device import Array
    >>> matmul(Array.empty((5, 2, 3)), Array.empty((3, 4), "f16")).shape
    (5, 2, 4)
    """
    if hasattr(y, "product"):  # a weight in blocks, or its transpose
        return y.product(x)
    _check("matmul", x, y)
    a, b = x.layout, y.layout
    if not a.shape or not b.shape:
        fix = "multiply by a number with *, or add dims with unsqueeze"
        raise ShapeError("matmul", f"shapes {a.shape} and {b.shape}", "operands of at least one dim", fix)
    a = a.unsqueeze(0) if x.ndim == 1 else a
    b = b.unsqueeze(1) if y.ndim == 1 else b
    if a.shape[-1] != b.shape[-2]:
        expected = f"the first's last size ({a.shape[-1]}) to equal the second's size at dim {-min(2, y.ndim)}"
        raise ShapeError("matmul", f"shapes {x.shape} and {y.shape}", expected, "transpose or reshape one of them")
    batch = broadcast_shapes("matmul", a.shape[:-2], b.shape[:-2])
    out = type(x).empty((*batch, a.shape[-2], b.shape[-1]), promote(x.dtype, y.dtype), x.device)
    _product(out, x.view(a), y.view(b))
    if x.ndim > 1 and y.ndim > 1:
        return out
    gone = [d for d, one in ((-2, x.ndim == 1), (-1, y.ndim == 1)) if one]
    return out.view(out.layout.squeeze(gone))


def linear(x, weight, bias=None):
    """x @ weight.T + bias: x (..., K), weight (N, K) or quantised, bias (N,) -> (..., N).

    The dtype is the promoted one of x and weight; bias may be any float. Raises ShapeError, DTypeError, DeviceError.

    >>> from tensorlib.device import Array
    >>> linear(Array.empty((2, 7, 3)), Array.empty((5, 3)), Array.empty((5,))).shape
    (2, 7, 5)
    """
    if hasattr(weight, "format"):
        out = weight.linear(x)
        return out if bias is None else elementwise.add(out, bias)
    return _linear(x, weight, bias)


@define(
    "linalg",
    NUMBER,
    lambda np, x, weight, bias=None: np.matmul(x, weight.T) + (0 if bias is None else bias),
    arity=3,
    domain=_linear_domain,
    vjp=_LINEAR_VJP,
    wrap=functools.partial(memoised, operands=3, gpu=True),
)
def _linear(x, weight, bias=None):
    """x @ weight.T + bias."""
    _check_linear(x, weight, bias)
    out = type(x).empty((*x.shape[:-1], weight.shape[0]), promote(x.dtype, weight.dtype), x.device)
    return _linear_into(out, x, weight, bias)


def _linear_into(out, x, weight, bias=None, accumulate=False):
    """`linear` written to `out` (..., N) of unit stride along N, or added to what it holds; returns `out`."""
    one = 1 if x.ndim == 1 else 0
    rows, result = (a.view(a.layout.unsqueeze(0)) if one else a for a in (x, out))
    _product(result, rows, weight.view(weight.layout.transpose(0, 1)), bias, accumulate)
    return out


def _check(op, x, y):
    if x.device != y.device:
        got = f"operands on {x.device} and {y.device}"
        raise DeviceError(op, got, "operands on one device", "move one of them with .to(device)")
    if x.dtype.kind == y.dtype.kind == "b":
        raise DTypeError(op, "bool and bool", "numbers", "convert one operand with .to(dtype)")


def _check_linear(x, weight, bias):
    _check("linear", x, weight)
    if weight.ndim != 2 or not x.shape or x.shape[-1] != weight.shape[1]:
        got, expected = f"shapes {x.shape} and {weight.shape}", "x (..., K) and weight (N, K)"
        raise ShapeError("linear", got, expected, "transpose the weight, or reshape x")
    if bias is not None and bias.shape != weight.shape[:1]:
        expected = f"a bias of shape {weight.shape[:1]}"
        raise ShapeError("linear", f"bias of shape {bias.shape}", expected, "one element per row of the weight")
    if bias is not None and (bias.dtype.name not in _BIAS_CODES or not promote(x.dtype, weight.dtype).is_float):
        got = f"{x.dtype}, {weight.dtype} and a bias of {bias.dtype}"
        raise DTypeError("linear", got, "floats", "convert the operands with .to(dtype)")


# ---- which kernel, and with which words -----------------------------------------------------------------------------


def _product(out, a, b, bias=None, accumulate=False):
    """out (+)= a @ b (+ bias): (..., M, N), (..., M, K), (..., K, N), batch dims of a and b broadcast to out's."""
    if 0 in out.shape:
        return
    (m, k), n = a.shape[-2:], b.shape[-1]
    if prod(b.shape[:-2]) == 1 and out.ndim > 2:
        rows = prod(out.shape[:-1])
        flat = out.layout.reshape((rows, n)), a.layout.reshape((rows, k))
        if None not in flat:
            m, out, a, b = rows, out.view(flat[0]), a.view(flat[1]), b.view(b.layout.squeeze(range(b.ndim - 2)))
    batch = out.shape[:-2]
    a, b = a.view(a.layout.expand((*batch, m, k))), b.view(b.layout.expand((*batch, k, n)))
    if out.device.type != "cpu":
        products.launch(out, a, b, bias, accumulate)
        return
    a_row, b_column = a.strides[-1] == 1 or k == 1, b.strides[-2] == 1 or k == 1
    small = {a.dtype.name, b.dtype.name, out.dtype.name} <= set(_SMALL_FLOATS)
    few = FEW_BF16 if _dots_bf16(a, b) else FEW
    tiny = out.numel() * k <= TINY and bias is None and not accumulate
    if not out.dtype.is_float or (tiny and {a.dtype.name, b.dtype.name} <= _FLOATS):
        _plain(out, a, b)
    elif small and a_row and b_column and m <= few:
        _matvec(out, a, b, bias, 0, accumulate)
    elif small and a_row and b_column and n <= few:
        swapped = (x.view(x.layout.transpose(-2, -1)) for x in (out, b, a))
        _matvec(*swapped, bias, 1, accumulate)
    elif small and m == 1 and k and b.strides[-1] == out.strides[-1] == 1 and bias is None and not accumulate:
        _vecmat(out, a, b)
    else:
        _gemm(out, a, b, bias, accumulate)


def _dots_bf16(a, b):
    """Whether the CPU multiplies these two as they are."""
    return a.dtype.name == b.dtype.name == "bf16" and backend.backend().dots_bf16


def _batch(out, *others):
    """Batch dims in the fewest dims, as words: how many; per dim its size, the strides of the others and of `out`."""
    sizes, (led, *strides) = _layout.collapse(*(Layout(x.shape[:-2], x.strides[:-2]) for x in (out, *others)))
    if prod(sizes) == 1:
        return [0]
    return [len(sizes), *(word for group in zip(sizes, *strides, led, strict=True) for word in group)]


def _bias_words(bias):
    if bias is None:
        return [0, 0, 0]
    return [_BIAS_CODES[bias.dtype.name], bias.ptr, bias.strides[0] * bias.dtype.itemsize]


def _names(*arrays):
    return [x.dtype.name for x in arrays]


def _reads(a, b, bias, out, accumulate):
    return [a, b, *([bias] if bias is not None else []), *([out] if accumulate else [])]


def _plain(out, a, b):
    kernel = backend.kernel("matmul", "plain", *_names(a, b, out), device=out.device.type)
    (m, n), k = out.shape[-2:], a.shape[-1]
    strides = [s for x in (a, b, out) for s in x.strides[-2:]]
    words = [a.ptr, b.ptr, out.ptr, m, n, k, *strides, *_batch(out, a, b)]
    backend.launch(kernel, words, out.numel() * k, (a, b), (out,))


def _matvec(out, x, w, bias, bias_dim, accumulate):
    """Few rows of x; w has unit stride along k. bias_dim: 0 if the bias runs along w's columns, 1 along x's rows."""
    room = ("bf16_rows", "matvec", out.dtype.name) if _dots_bf16(x, w) else ("matvec", "matvec", *_names(x, w, out))
    kernel = backend.kernel(*room, device=out.device.type)
    (m, n), k = out.shape[-2:], x.shape[-1]
    code, address, step = _bias_words(bias)
    words = [x.ptr, w.ptr, out.ptr, m, n, k, x.strides[-2], w.strides[-1], *out.strides[-2:]]
    words += [code, address, *((step, 0) if bias_dim else (0, step)), int(accumulate), *_batch(out, x, w)]
    backend.launch(kernel, words, out.numel() * k, _reads(x, w, bias, out, accumulate), (out,))


def _vecmat(out, x, w):
    kernel = backend.kernel("matvec", "vecmat", *_names(x, w, out), device=out.device.type)
    (n, k), strides = (out.shape[-1], x.shape[-1]), (x.strides[-1], w.strides[-2])
    sums = out if out.dtype.name == "f32" else Array.empty((out.numel(),), "f32", out.device)
    words = [x.ptr, w.ptr, out.ptr, n, k, *strides, sums.ptr, *_batch(out, x, w)]
    backend.launch(kernel, words, out.numel() * k, (x, w), (out, sums))


def _cut(out, a, b, dim):
    """The operands of a product in two halves along a batch dim, or along M (dim -2)."""
    middle, size = out.shape[dim] // 2, out.shape[dim]
    for part in ((0, middle), (middle, size - middle)):
        yield tuple(x.view(x.layout.narrow(dim, *part)) for x in ((out, a) if dim == -2 else (out, a, b)))


def _gemm(out, a, b, bias, accumulate):
    room, packs, gemms, size = "matmul", (a.dtype.name, "f32"), (b.dtype.name, out.dtype.name, "f32"), 4
    if out.dtype.name == "f64":
        packs, gemms, size = (a.dtype.name, "f64"), (b.dtype.name, "f64", "f64"), 8
    elif _dots_bf16(a, b):
        room, packs, gemms, size = "bf16", (), (out.dtype.name,), 2
    threads = backend.threads(out.device.type)
    plan = _plan(out.shape, out.strides, a.shape[-1], a.strides, b.strides, size, threads, PACKED_BYTES)
    if plan.cut is not None:
        for o, x, *w in _cut(out, a, b, plan.cut):
            _gemm(o, x, *(w or [b]), bias, accumulate)
        return
    scratch = Array.empty((plan.nbytes,), "u8", out.device)
    packed = scratch.ptr + plan.packed
    kernel = backend.kernel(room, "pack", *packs, device=a.device.type)
    backend.launch(kernel, [a.ptr, packed, *plan.pack], plan.elements, (a,), (scratch,))
    kernel = backend.kernel(room, "gemm", *gemms, device=out.device.type)
    words = [packed, b.ptr, out.ptr, *plan.sizes, *_bias_words(bias), int(accumulate), *plan.blocks, scratch.ptr]
    reads = _reads(scratch, b, bias, out, accumulate)
    backend.launch(kernel, [*words, *plan.rest], out.numel() * a.shape[-1] // 16, reads, (out, scratch))


# nbytes of scratch, from byte `packed` on A's tiles; how many `elements` A has; words of the kernels, in their order
_Plan = namedtuple("_Plan", "cut nbytes packed elements pack sizes blocks rest")


@functools.lru_cache(4096)  # Python's part of a product of 256 x 256 matrices would be half of its time
def _plan(shape, strides, k, a_strides, b_strides, size, threads, most):
    """What `_gemm` does that depends on shapes and strides alone; `cut` is the dim to cut along, or None."""
    (m, n), batch = shape[-2:], shape[:-2]
    own = tuple(count if stride else 1 for count, stride in zip(batch, a_strides[:-2], strict=False))
    # a's own matrices, not those it is broadcast to; tiles are 16 rows high at most, and padded by at most 8 per row
    nbytes = prod(own) * (m + 16) * (k + 8) * size
    if nbytes > most and (prod(own) > 1 or m > 64):
        cut = next((d for d, count in enumerate(own) if count > 1), -2)
        return _Plan(cut, *[None] * 7)
    narrow = min(4, size)
    blocks, unit = max(1, -(-k * narrow // DEPTH)), 64 // narrow
    depth, group = max(1, -(-k // (unit * blocks))) * unit, min(GROUP, -(-n // 32) * 32)
    per_thread = group * (size * depth + max(4, size) * (16 + (m if blocks > 1 else 0)))
    parts = min(-(-m // 64), max(1, 2 * threads // (-(-n // 32) * prod(batch))))
    pack = (m, k, *a_strides[-2:], len(own), *(w for pair in zip(own, a_strides[:-2], strict=False) for w in pair))
    sizes = (m, n, k, *b_strides[-2:], strides[-2])
    matrices = Layout((*own, 1, 1), (*_layout.strides_of(own), 1, 1)).expand((*batch, 1, 1))
    rest = (per_thread, threads, *_batch(Layout(shape, strides), matrices, Layout((*batch, k, n), b_strides)))
    packed = threads * per_thread
    return _Plan(None, packed + nbytes, packed, prod(own) * m * k, pack, sizes, (parts, group, depth), rest)
