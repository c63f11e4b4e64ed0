"""Norms, gated activations and rows of a table, each one kernel, and their gradients.

Results do not depend on the number of threads. The last dim of every operand must be adjacent in memory; other strides
are free. Kernels compute f32, f16 and bf16 in f32; f64 is composed of other ops, as are gradients that are to be
differentiated again.
"""

import functools
from math import prod

from tensorlib import backend, tape
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.layout import Layout, collapse
from tensorlib.memo import memoised
from tensorlib.ops import create, elementwise, index, movement, reduce
from tensorlib.ops.elementwise import VJP, add, cast, mul, rsqrt, square, sub
from tensorlib.registry import FLOAT_ONLY, OPS, SAME, define

FLOATS = ("f32", "f16", "bf16")
GPU_DIMS = reduce.GPU_DIMS
BLOCKS, BLOCK = 64, 512  # rows of a norm's gradient are cut in so many blocks, of at most so many rows


# ---- operands of a kernel --------------------------------------------------------------------------------------------


def _name(op, x):
    if x.dtype.name not in FLOATS:
        raise DTypeError(op, x.dtype, "f32, f16 or bf16", "convert it with .to('f32')")
    return x.dtype.name


def _weight_name(op, weight, x):
    return "none" if weight is None else _name(op, weight)


def _check_norm(op, x, *weights):
    _adjacent(op, x)
    for weight in weights:
        if weight is not None and (weight.shape != x.shape[-1:] or not weight.is_contiguous()):
            got = f"a weight of shape {weight.shape} for x {x.shape}"
            raise ShapeError(op, got, f"a contiguous weight of shape {x.shape[-1:]}", "take the layer's own weight")


def _pointer(x):
    return 0 if x is None else x.ptr


def _width(x):
    if not x.shape:
        raise ShapeError("norm", "a 0-d tensor", "at least one dim", "add one with unsqueeze(0)")
    return x.shape[-1]


def _adjacent(op, *arrays):
    for x in arrays:
        if _width(x) > 1 and x.strides[-1] != 1 and x.numel():
            raise ShapeError(op, f"strides {x.strides}", "a last dim of stride 1", "call .contiguous() first")


def _leading(*arrays):
    """Number of rows and the table of the leading dims: how many, then per dim its size and a byte stride of each."""
    sizes, strides = collapse(*(Layout(a.shape[:-1], a.strides[:-1]) for a in arrays))
    sizes, strides = (sizes, strides) if arrays[0].ndim > 1 else ((1,), strides)
    table = [prod(sizes), len(sizes)]
    for d, size in enumerate(sizes):
        table += [size, *(s[d] * a.dtype.itemsize for s, a in zip(strides, arrays, strict=True))]
    return table


def _launch_rows(name, params, words, inputs, out, weights, cost):
    """Appends the number of rows and the table of the leading dims to `words` and launches; returns `out`."""
    if 0 in out.shape:
        return out
    kernel = backend.kernel("norm", name, *params, device=out.device.type)
    reads = (*inputs, *(w for w in weights if w is not None))
    backend.launch(kernel, [*words, *_leading(*inputs, out)], cost * out.numel(), reads, (out,))
    return out


def _readable(x):
    """x, or a copy whose last dim is adjacent."""
    return _few(x if x.shape[-1] < 2 or x.strides[-1] == 1 else movement.contiguous(x))


def _few(x):
    """x, or a copy of what has more dims than a GPU kernel's table (kernels_triton/tiles.py)."""
    return x if x.ndim <= GPU_DIMS + 1 or x.device.type == "cpu" else movement.contiguous(x)


def _wide(x):
    """In the dtype that norms compute in."""
    return x if x.dtype.name == "f64" else cast(x, "f32")


def _fused(*arrays):
    """Whether a gradient may come from a kernel: nobody wants to differentiate it again."""
    return not tape.mode.recording and 0 not in arrays[0].shape and all(x.dtype.name in FLOATS for x in arrays)


# ---- norms -----------------------------------------------------------------------------------------------------------


def _unit(x, eps, centred):
    """(x normalised, what it was divided by inverted), composed of other ops."""
    x = _wide(x)
    x = sub(x, reduce.mean(x, -1, keepdim=True)) if centred else x
    k = rsqrt(add(reduce.mean(square(x), -1, keepdim=True), eps))
    return mul(x, k), k


def _scale(weight, offset):
    return 1.0 + offset if weight is None else add(_wide(weight), offset)


def _norm_vjp(op, g, x, weight, eps, offset, needs):
    """Gradients of x, weight and bias."""
    if _fused(x, g):
        return _norm_kernel(op, _readable(g), x, weight, eps, offset, needs)
    unit, k = _unit(x, eps, op == "layer_norm")
    g = _wide(g)
    h = mul(g, _scale(weight, offset))
    rest = mul(unit, reduce.mean(mul(h, unit), -1, keepdim=True))
    rest = add(rest, reduce.mean(h, -1, keepdim=True)) if op == "layer_norm" else rest
    return mul(sub(h, rest), k), mul(g, unit), g


def _norm_kernel(op, g, x, weight, eps, offset, needs):
    rows, width = prod(x.shape[:-1]), x.shape[-1]
    x = _few(x)
    if x.device.type == "cpu":
        blocks = max(min(rows, BLOCKS), -(-rows // BLOCK))
    else:  # as many as run at a time
        blocks = min(rows, x.device.gpu.units * (4 if width <= 1024 else 2 if width <= 4096 else 1))
    dx = type(x).empty(x.shape, x.dtype, x.device)
    tables = [type(x).empty((blocks, width), "f32", x.device) if n in needs else None for n in ("weight", "bias")]
    words = [x.ptr, _pointer(weight), g.ptr, dx.ptr, width, float(eps), float(offset), *map(_pointer, tables), blocks]
    params = _name(op, x), _weight_name(op, weight, x), _name(op, g)
    kernel = backend.kernel("norm", f"{op}_vjp", *params, device=x.device.type)
    reads = [a for a in (x, g, weight) if a is not None]
    writes = [a for a in (dx, *tables) if a is not None]
    backend.launch(kernel, [*words, *_leading(x, g, dx)], 12 * x.numel(), reads, writes)
    return dx, *(None if t is None else reduce.sum(t, 0) for t in tables)


def _norm_domain(s, dtype):
    x = adjacent_array(s, (*s.shape(max_dims=3), s.integer(1, 5 if s.smooth else 70)), low=-100, high=100)
    return x, s.array(x.shape[-1:], low=-10, high=10).copy(), s.pick([1e-6, 1e-5, 0.1])


def adjacent_array(s, shape, **bounds):
    """An array that a sampler draws, copied unless its last dim is adjacent."""
    x = s.array(shape, **bounds)
    return x if x.shape[-1] < 2 or x.strides[-1] == x.itemsize else x.copy()


def _rms_norm_domain(s, dtype):
    x, weight, eps = _norm_domain(s, dtype)
    return (x, s.pick([weight, None]), eps), {"offset": s.pick([0.0, 1.0])}


def _rms_norm_ref(np, x, weight, eps=1e-5, out_dtype=None, offset=0.0):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * ((1.0 if weight is None else weight) + offset)


@define(
    "fused",
    FLOAT_ONLY,
    _rms_norm_ref,
    arity=2,
    domain=_rms_norm_domain,
    vjp={
        ("x", "weight"): lambda g, x, weight, eps, offset, needs: _norm_vjp(
            "rms_norm", g, x, weight, eps, offset, needs
        )
    },
    wrap=functools.partial(memoised, operands=2),
)
def rms_norm(x, weight, eps=1e-5, out_dtype=None, offset=0.0):
    """x / sqrt(mean(x^2) + eps) * (weight + offset), over the last dim, in f32 (Zhang and Sennrich, arXiv:1910.07467).

    x (..., D) and weight (D) or None are f32, f16 or bf16, or f64; the result has `out_dtype`, by default x's. Gemma's
    weights want offset=1.0. Raises ShapeError, DTypeError.

    >>> from tensorlib.device import Array
    >>> rms_norm(Array.empty((2, 3, 576)), Array.empty((576,)), 1e-5).shape
    (2, 3, 576)
    """
    _check_norm("rms_norm", x, weight)
    if x.dtype.name == "f64":
        return cast(mul(_unit(x, eps, False)[0], _scale(weight, offset)), out_dtype or x.dtype)
    out, x = type(x).empty(x.shape, out_dtype or x.dtype, x.device), _few(x)
    names = [_name("rms_norm", x), _weight_name("rms_norm", weight, x), _name("rms_norm", out)]
    words = [x.ptr, _pointer(weight), out.ptr, _width(x), float(eps), float(offset)]
    return _launch_rows("rms_norm", names, words, (x,), out, (weight,), 4)


def _layer_norm_domain(s, dtype):
    x, weight, eps = _norm_domain(s, dtype)
    return (x, *s.pick([(None, None), (weight, None), (weight, weight[::-1].copy())]), eps), {}


def _layer_norm_ref(np, x, weight=None, bias=None, eps=1e-5, out_dtype=None):
    unit = (x - np.mean(x, -1, keepdims=True)) / np.sqrt(np.var(x, -1, keepdims=True) + eps)
    return unit * (1.0 if weight is None else weight) + (0.0 if bias is None else bias)


@define(
    "fused",
    FLOAT_ONLY,
    _layer_norm_ref,
    arity=3,
    domain=_layer_norm_domain,
    vjp={
        ("x", "weight", "bias"): lambda g, x, weight, eps, needs: _norm_vjp("layer_norm", g, x, weight, eps, 0.0, needs)
    },
    wrap=functools.partial(memoised, operands=3),
)
def layer_norm(x, weight=None, bias=None, eps=1e-5, out_dtype=None):
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias, over the last dim, in f32 (Ba et al., arXiv:1607.06450).

    x (..., D), weight and bias (D) or None are f32, f16 or bf16, or f64. Raises ShapeError, DTypeError.

    >>> from tensorlib.device import Array
    >>> layer_norm(Array.empty((2, 768), "f16"), None, None).dtype
    f16
    """
    _check_norm("layer_norm", x, weight, bias)
    if x.dtype.name == "f64":
        out = mul(_unit(x, eps, True)[0], _scale(weight, 0.0))
        return cast(out if bias is None else add(out, _wide(bias)), out_dtype or x.dtype)
    out, x = type(x).empty(x.shape, out_dtype or x.dtype, x.device), _few(x)
    names = [_name("layer_norm", x), *(_weight_name("layer_norm", w, x) for w in (weight, bias))]
    words = [x.ptr, _pointer(weight), out.ptr, _width(x), float(eps), _pointer(bias)]
    return _launch_rows("layer_norm", [*names, _name("layer_norm", out)], words, (x,), out, (weight, bias), 6)


# ---- gated activations -----------------------------------------------------------------------------------------------

_ACTIVATIONS = {"swiglu": "silu", "geglu": "gelu_tanh"}


def _gated(op, gate, up):
    if gate.shape != up.shape:
        fix = "split one projection in two halves"
        raise ShapeError(op, f"shapes {gate.shape} and {up.shape}", "two equal shapes", fix)
    if gate.dtype is not up.dtype:
        raise DTypeError(op, f"{gate.dtype} and {up.dtype}", "one dtype", "convert one operand with .to(dtype)")
    _adjacent(op, gate, up)
    if gate.dtype.name == "f64":
        return mul(getattr(elementwise, _ACTIVATIONS[op])(gate), up)
    out, gate, up = type(gate).empty(gate.shape, gate.dtype, gate.device), _few(gate), _few(up)
    words = [gate.ptr, up.ptr, out.ptr, _width(gate)]
    return _launch_rows(op, [_name(op, gate)], words, (gate, up), out, (), 20)


def _gated_vjp(op, g, gate, up):
    if not _fused(gate, up, g):
        g, gate, up = _wide(g), _wide(gate), _wide(up)
        activation = _ACTIVATIONS[op]
        return VJP[activation](mul(g, up), gate), mul(g, getattr(elementwise, activation)(gate))
    g, gate, up = _readable(g), _few(gate), _few(up)
    found = [type(gate).empty(gate.shape, gate.dtype, gate.device) for _ in range(2)]
    words = [gate.ptr, up.ptr, g.ptr, found[0].ptr, found[1].ptr, gate.shape[-1], *_leading(gate, up, g, found[0])]
    kernel = backend.kernel("norm", f"{op}_vjp", _name(op, gate), device=gate.device.type)
    backend.launch(kernel, words, 30 * gate.numel(), (gate, up, g), found)
    return found


def _gated_domain(low, high):
    """Gates in bounds where the activation is not lost among denormals."""

    def domain(s, dtype):
        shape = s.shape(min_dims=1)
        return (adjacent_array(s, shape, low=low, high=high), adjacent_array(s, shape, low=-50, high=50)), {}

    return domain


@define(
    "fused",
    FLOAT_ONLY,
    lambda np, gate, up: OPS["silu"].ref(np, gate) * up,
    arity=2,
    domain=_gated_domain(-50, 50),
    vjp={("gate", "up"): lambda g, gate, up: _gated_vjp("swiglu", g, gate, up)},
)
def swiglu(gate, up):
    """silu(gate) * up, elementwise: both (..., D) of one dtype (Shazeer, arXiv:2002.05202). ShapeError, DTypeError."""
    return _gated("swiglu", gate, up)


@define(
    "fused",
    FLOAT_ONLY,
    lambda np, gate, up: OPS["gelu_tanh"].ref(np, gate) * up,
    arity=2,
    domain=_gated_domain(-8, 12),
    vjp={("gate", "up"): lambda g, gate, up: _gated_vjp("geglu", g, gate, up)},
)
def geglu(gate, up):
    """gelu(gate) * up with GELU's tanh form. ShapeError, DTypeError."""
    return _gated("geglu", gate, up)


# ---- rows of a table -------------------------------------------------------------------------------------------------


def _embedding_vjp(g, ids, weight_shape):
    """g added up in the rows of their ids; ids without a row have no gradient."""
    count, width = weight_shape
    if _fused(g) and g.dtype.name == "f32":
        out, g = type(g).empty(weight_shape, "f32", g.device), movement.contiguous(g)
        words = [ids.ptr, g.ptr, out.ptr, count, width, ids.numel()]
        kernel = backend.kernel("norm", "embedding_vjp", device=g.device.type)
        backend.launch(kernel, words, out.numel() + g.numel(), (ids, g), (out,))
        return out
    whole = create.zeros(type(g), weight_shape, dtype=g.dtype, device=g.device)
    if 0 in g.shape or not count:
        return whole
    ids, g = movement.reshape(ids, -1), movement.reshape(g, (-1, width))
    known = elementwise.logical_and(elementwise.ge(ids, 0), elementwise.lt(ids, count))
    g = elementwise.where(movement.unsqueeze(known, -1), g, 0.0)
    return index.index_add(whole, 0, elementwise.where(known, ids, 0), g)


def _embedding_domain(s, dtype):
    rows = s.integer(1, 9)
    return (s.array(s.shape(max_dims=2), "i64", 0, rows - 1).copy(), adjacent_array(s, (rows, s.integer(1, 5)))), {}


@define("fused", SAME, lambda np, ids, weight: weight[ids], 2, _embedding_domain, vjp={"weight": _embedding_vjp})
def embedding(ids, weight):
    """Rows of weight [V, D] (f32, f16, bf16, f64) by ids (i64, any shape): ids.shape + (D,), f32 (f64 if weight is);
    NaN for other ids.

    Raises ShapeError, DTypeError.
    """
    if hasattr(weight, "format"):
        return weight.embedding(ids)
    if ids.dtype.name != "i64":
        raise DTypeError("embedding", f"ids of {ids.dtype}", "i64", "convert them with .to('i64')")
    if weight.ndim != 2 or not ids.is_contiguous():
        got = f"weight {weight.shape}, ids of strides {ids.strides}"
        raise ShapeError("embedding", got, "weight [V, D], contiguous ids", "call ids.contiguous()")
    _adjacent("embedding", weight)
    # an element of f64 moves as two of f32: two NaNs of f32 are one of f64
    name, pieces = ("f32", 2) if weight.dtype.name == "f64" else (_name("embedding", weight), 1)
    out = type(ids).empty((*ids.shape, weight.shape[1]), "f64" if pieces == 2 else "f32", weight.device)
    kernel = backend.kernel("norm", "embedding", name, device=weight.device.type)
    step = weight.strides[0] * weight.dtype.itemsize
    words = [ids.ptr, weight.ptr, step, weight.shape[0], out.ptr, pieces * weight.shape[1], ids.numel()]
    backend.launch(kernel, words, 2 * out.numel(), (ids, weight), (out,))
    return out
