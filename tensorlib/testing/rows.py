"""Every op, from its row alone: calls drawn from its domain, results held to its reference, gradients to differences.

>>> from tensorlib.testing.sampler import seeded
>>> check_op("softplus", "cpu", "f32", seeded(1))
True
>>> len(cases(["f32"])) == len(rows())
True
"""

import importlib
import pkgutil

import numpy as np

from tensorlib import dtype as _dtype
from tensorlib import tape
from tensorlib.device import Array, Buffer, Device
from tensorlib.errors import DTypeError, GradError, NoKernel
from tensorlib.layout import Layout
from tensorlib.registry import FUNCTIONS, OPS
from tensorlib.tensor import from_numpy
from tensorlib.testing import compare, domains, domains_derived, domains_losses, gradients, noise, references, signs

ELEMENTWISE = ("unary", "binary", "ternary")
# dtypes beyond f32 and f64 are seen on a few rows of each kind: a kernel of each is what costs, 0.2 to 1 s
MORE = {
    "f16": "exp add mul lt clamp sum amax mean softmax cumsum cat gather scatter_add cummax sort matmul",
    "bf16": "exp add mul lt clamp sum amax softmax cumsum index_select argmax matmul",
    "i64": "abs neg add floor_divide remainder pow maximum bitwise_right_shift where sum prod amax argmax cumsum cummax"
    " gather scatter_add sort flip matmul any",
    "i32": "neg add floor_divide remainder maximum bitwise_left_shift lt sum amin index_select scatter_add",
    "u8": "add floor_divide minimum bitwise_and lt exp sum amax cat gather",
    "bool": "abs add mul logical_not eq maximum where sum any all prod cat",
}

# integers: powers of 0 or more that do not all wrap, shifts of less than the width
INTEGERS = {"pow": ((-9, 9), (0, 11)), "bitwise_left_shift": (None, (0, 7)), "bitwise_right_shift": (None, (0, 7))}
FLUSHED = 2.0**-126  # approximations on GPUs give 0 for what f32 holds as a denormal only
OWN = ("nextafter", "nan_to_num")  # rows whose meaning depends on the dtype: their reference gets it as it is


def rows():
    """{name: row} of every op there is: all files of `tensorlib.ops` are imported."""
    import tensorlib.ops as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"tensorlib.ops.{module.name}")
    return dict(sorted(OPS.items()))


def missing(op):
    """What a row lacks to be checked: some of "reference", "domain", "rule", "gradient"."""
    lacks = [] if ref_of(op) else ["reference"]
    lacks += [] if domain_of(op) else ["domain"]
    lacks += [] if op.rule else ["rule"]
    return lacks + (["gradient"] if op.kind != "composite" and op.vjp is None and "f" in results(op) else [])


def results(op):
    """Kinds ('b', 'u', 'i', 'f') of the dtypes that a row's first result may have."""
    return {op.rule.apply(op.name, d)[1].kind for d in _dtype.ALL if d.kind in op.rule.accepts}


def writes(name):
    """Whether an op changes its first operand in place."""
    return name.endswith("_") or name == "setitem"


def cases(dtypes=("f32", "f64", *MORE), devices=("cpu",)):
    """[(name, device, dtype)]: every row on every device in f32 and f64, a few of each kind in other dtypes.

    Rows that take no floats are checked in i64 instead.
    """
    found = []
    for name, op in rows().items():
        kinds = op.rule.accepts
        own = [d for d in dtypes if d in ("f32", "f64")] if "f" in kinds else ["i64" if "i" in kinds else "u8"]
        own += [d for d in dtypes if name in MORE.get(d, "").split() and _dtype.get(d).kind in kinds and d not in own]
        found += [(name, device, d) for device in devices for d in own]
    return found


# ---- drawing a call --------------------------------------------------------------------------------------------------


def domain_of(op):
    """The row's own way to draw a call, or that of its kind; None if there is none."""
    if callable(op.domain):
        return op.domain
    own = next((getattr(m, op.name) for m in (domains, domains_derived, domains_losses) if hasattr(m, op.name)), None)
    if op.domain is None and own is not None:
        return own
    if op.kind in ELEMENTWISE or (op.kind == "composite" and op.domain is not None):
        return lambda s, dtype: (_operands(op, s, dtype), {})
    if op.kind in ("reduce", "scan") and op.arity == 1:
        return lambda s, dtype: _along(op, s, dtype)
    return None


def ref_of(op):
    """The row's reference: its own, or that of its name in `tensorlib.testing.references`; None if there is none."""
    return op.ref or getattr(references, op.name, None)


def _operands(op, s, dtype):
    pairs = op.domain if op.domain and isinstance(op.domain[0], tuple) else [op.domain] * op.arity
    if _dtype.get(dtype).kind in "biu":
        pairs = INTEGERS.get(op.name, pairs)
    special = not s.smooth and s.boolean()
    return tuple(
        s.within(shape, dtype, pair or (None, None), special) for shape, pair in zip(s.broadcastable(op.arity), pairs)
    )


def _along(op, s, dtype):
    names, defaults, _ = tape.parameters(_wrapped(op.name))
    shape = s.shape(min_dims=0 if defaults.get("dim", 0) is None else 1, empty=s.integer(0, 5) == 0)
    shape = shape if s.smooth or s.integer(0, 2) else s.long()
    x = s.array(shape, dtype) if op.domain is None else s.within(shape, dtype, op.domain, not s.smooth and s.boolean())
    if defaults.get("dim", 0) is None:
        options = {"dim": s.dims(x.ndim)}
    else:
        options = {"dim": s.integer(-x.ndim, x.ndim - 1)}
    return (x,), options | ({"keepdim": s.boolean()} if "keepdim" in names else {})


def _wrapped(name):
    function = FUNCTIONS[name]
    return getattr(function, "__wrapped__", function)


def draw(op, s):
    """(args, kwargs) of a call to a row: NumPy arrays and plain values. An array that is written to has no overlaps."""
    args, kwargs = domain_of(op)(s, s.dtype)
    args = list(args) if isinstance(args, (tuple, list)) else [args]
    if writes(op.name):
        args[0] = np.array(args[0], order="K")
    return args, kwargs


# ---- the reference ---------------------------------------------------------------------------------------------------


def exact(op, x, dtype):
    """An argument as the reference gets it: floats in float64, integers as the op computes with them."""
    if isinstance(x, (list, tuple)):
        return type(x)(exact(op, v, dtype) for v in x)
    if not isinstance(x, np.ndarray):
        return x
    if x.dtype.kind not in "biu":
        return x.copy() if op.name in OWN else x.astype(np.float64)
    rule = op.rule
    if x.dtype == _dtype.get(dtype).numpy_dtype() and _dtype.get(dtype).kind in rule.accepts:
        result = rule.apply(op.name, _dtype.get(dtype))[1]
        if rule.name == "FLOAT":
            return x.astype(np.float64)
        if rule.name == "ACC":
            return x.astype(result.numpy_dtype())
    return x.copy()


def tensors(x, device="cpu"):
    """Tensors over the memory of NumPy arrays, also of those in lists, tuples and dicts; elsewhere copies, with the
    strides and the bytes between the elements.
    """
    if isinstance(x, (list, tuple)):
        return type(x)(tensors(v, device) for v in x)
    if isinstance(x, dict):
        return {k: tensors(v, device) for k, v in x.items()}
    if not isinstance(x, np.ndarray):
        return x
    made = from_numpy(x)
    return made if device == "cpu" else _placed(made, Device(device))


def _placed(x, device):
    low, high = x.layout.extent()
    size, first = x.dtype.itemsize, x.buffer.ptr + low * x.dtype.itemsize
    odd = first % 16 // size  # kernels see the same alignment
    buffer = Buffer.allocate((high - low + odd) * size, device)
    if high > low:
        buffer.write(buffer.ptr + odd * size, x.buffer.read(first, (high - low) * size))
    return type(x)(buffer, Layout(x.shape, x.strides, odd + x.offset - low), x.dtype)


def call(op, args, kwargs, function=None, device="cpu"):
    """Results of a row's function on NumPy arguments, as a list of Arrays and plain values."""
    given = tensors(args, device)
    out = (function or FUNCTIONS[op.name])(*given, **tensors(kwargs, device))
    return [given[0]] if writes(op.name) else noise.several(out)


def _bits(x):
    return np.ascontiguousarray(x).tobytes() if isinstance(x, np.ndarray) else x


def _flat(x):
    if isinstance(x, dict):
        x = list(x.values())
    return [v for part in x for v in _flat(part)] if isinstance(x, (list, tuple)) else [x]


def check_op(name, device, dtype, s, function=None, ulps=None):
    """Draws a call to a row with the Sampler `s`, and holds its results to the reference: AssertionError if one is off.

    Also: the result's dtype is the rule's, and operands are not changed. NoKernel and DTypeError pass where the row
    has no kernel of a dtype other than f32 (i64 if it takes no floats).
    """
    op = name if not isinstance(name, str) else OPS[name]
    args, kwargs = draw(op, s)
    return check_call(op, args, kwargs, dtype, function, ulps, device)


def check_call(op, args, kwargs, dtype, function=None, ulps=None, device="cpu"):
    """`check_op` of a call that is already there. False if the row has no kernel of this dtype."""
    text = f"{op.name}({', '.join(map(_text, args))}{''.join(f', {k}={_text(v)}' for k, v in kwargs.items())}): "
    inside, options = [exact(op, a, dtype) for a in args], {k: exact(op, v, dtype) for k, v in kwargs.items()}
    before = [_bits(x) for x in _flat([args[writes(op.name) :], kwargs])]
    try:
        found = call(op, args, kwargs, function, device)
    except (NoKernel, DTypeError):
        if dtype in ("f32", "i64"):
            raise
        return False
    assert before == [_bits(x) for x in _flat([args[writes(op.name) :], kwargs])], f"{text}an operand was changed"
    compute = compute_dtype(op, dtype)
    want = noise.several(noise.quietly(ref_of(op), np, *inside, **options))
    found = [x.cpu().numpy() if isinstance(x, Array) else np.asarray(x) for x in found]
    assert len(found) == len(want), f"{text}got {len(found)} results, want {len(want)}"
    found = found if device == "cpu" else signs.aligned(op.name, found, want)
    _check_dtype(op, found[0], dtype, text)
    spread = noise.spread(ref_of(op), inside, options, compute)
    ulps = compare.ulps_of(op.name, spread.operations, compute) if ulps is None else ulps
    for i, (f, w) in enumerate(zip(found, want)):
        absolute = spread.bounds[i] if spread.bounds[i] is not None else 0.0
        absolute = absolute + compare.NEAR_ZERO.get(op.name, 0) * noise.UNIT[compute]
        absolute = absolute + (FLUSHED if device != "cpu" and compute != "f64" else 0)
        own = None if compute == "f64" or compute == dtype else compute
        compare.assert_close(f, w, None, ulps, absolute, spread.decided[i], text, own)
    return True


def compute_dtype(op, dtype):
    """What a row rounds to at each step: narrow floats compute in f32, unless the op is composed of others."""
    d = _dtype.get(dtype)
    if d.kind != "f":
        return "f32"
    return d.name if op.kind in ("composite", "index") and d.itemsize > 1 else d.compute.name


def _check_dtype(op, found, dtype, text):
    if op.kind in (*ELEMENTWISE, "reduce", "scan"):
        want = op.rule.apply(op.name, _dtype.get(dtype))[1]
        assert _dtype.get(found.dtype) is want, f"{text}got dtype {_dtype.get(found.dtype)}, want {want}"


def _text(x):
    if isinstance(x, (list, tuple)):
        return f"[{', '.join(map(_text, x))}]"
    if not isinstance(x, np.ndarray):
        return repr(x)
    steps = tuple(s // x.itemsize for s in x.strides)
    return f"{_dtype.get(x.dtype)}{list(x.shape)} strides {steps}" + (f" {x.tolist()}" if x.size <= 8 else "")


# ---- gradients -------------------------------------------------------------------------------------------------------


def check_gradient(name, device, s, order=1):
    """Draws a call, away from special values, and checks its gradients; how many derivatives or tensors were compared,
    0 if the call has none.

    On the CPU: of a call in f64, against central differences; order 2: those of the gradients. On another device: of a
    call in the sampler's dtype, against those on the CPU.
    """
    op = name if not isinstance(name, str) else OPS[name]
    args, kwargs = draw(op, s)
    floats = ("float64",) if s.dtype == "f64" else ("float32", "float16")
    flat = [x for x in _flat([args, kwargs]) if isinstance(x, np.ndarray) and x.dtype.name in floats]
    leaves = [x for x in flat if differentiable(op, args, kwargs, x)]
    even = [_is_symmetric(x) for x in leaves]

    def function(*inputs, device="cpu"):
        values = ((x + x.mT) / 2 if e else x for x, e in zip(inputs, even))
        slots = {id(x): next(values) for x in leaves}
        given, options = _replace(args, slots, device), _replace(kwargs, slots, device)
        if writes(op.name):
            given[0] = given[0].clone()
        out = FUNCTIONS[op.name](*given, **options)
        out = signs.canonical(op.name, noise.several(given[0] if writes(op.name) else out))
        return tuple(o for o in out if isinstance(o, Array) and o.dtype.kind == "f")

    if not leaves:
        return 0
    if device != "cpu":
        text = f"{op.name}({', '.join(map(_text, args))}{''.join(f', {k}={_text(v)}' for k, v in kwargs.items())}): "
        return _check_equal_gradients(function, leaves, device, noise.UNIT[s.dtype], text)
    check = gradients.gradcheck if order == 1 else gradients.gradgradcheck
    return check(function, [np.array(x) for x in leaves])


def _check_equal_gradients(function, inputs, device, unit, text):
    """Gradients on a device and on the CPU. Calls to check gradients are small, and their terms about as large as the
    gradients or 1 (the slopes of the results): 64 roundings of that are allowed.
    """
    want, found = (
        gradients.of(lambda *xs, d=d: function(*xs, device=d), [tensors(x, d).requires_grad_() for x in inputs])
        for d in ("cpu", device)
    )
    pairs = [(k, w, f) for k, (w, f) in enumerate(zip(want, found, strict=True)) if w is not None or f is not None]
    for k, w, f in pairs:
        both = [(x.dtype, x.shape) if isinstance(x, Array) else x for x in (f, w)]
        assert both[0] == both[1], f"{text}gradient {k}: got {both[0]}, want {both[1]}"
        assert f.device == Device(device), f"{text}gradient {k} is on {f.device}"
    values = [[np.asarray(x.cpu().numpy(), np.float64) for x in (w, f)] for _, w, f in pairs]
    largest = max((np.max(np.abs(w), initial=1.0, where=np.isfinite(w)) for w, _ in values), default=1.0)
    for (k, *_), (w, f) in zip(pairs, values, strict=True):
        compare.assert_close(f, w, "f64", 0.5, 64 * unit * largest, what=f"{text}gradient {k}: ")
    return len(pairs)


def _is_symmetric(x):
    """Whether a matrix was drawn symmetric: it then stays so when an element is moved."""
    return x.ndim > 1 and x.shape[-1] > 1 and x.shape[-1] == x.shape[-2] and np.array_equal(x, np.swapaxes(x, -1, -2))


def _replace(x, slots, device):
    if isinstance(x, (list, tuple)):
        return type(x)(_replace(v, slots, device) for v in x)
    if isinstance(x, dict):
        return {k: _replace(v, slots, device) for k, v in x.items()}
    found = slots.get(id(x)) if isinstance(x, np.ndarray) else None
    return tensors(x, device) if found is None else found


def differentiable(op, args, kwargs, x):
    """Whether the row names a gradient for the operand that is (or holds) x; composites have one for every float."""
    if op.kind == "composite":
        return True
    names = {n for key in (op.vjp or {}) for n in (key if isinstance(key, tuple) else (key,))}
    bound = tape._bind(tape.parameters(_wrapped(op.name)), args, kwargs)
    return any(n in names for n, v in bound.items() if any(w is x for w in _flat([v])))


__all__ = ["GradError", "cases", "check_call", "check_gradient", "check_op", "missing", "rows"]
