"""From operands to a launch of the elementwise template:
dtypes, broadcasting, collapsed dims, the words of a kernel.
"""

import functools
import struct
from math import prod
from types import FunctionType

from tensorlib import backend
from tensorlib import dtype as _dtype
from tensorlib.device import Array
from tensorlib.errors import DeviceError, DTypeError, ShapeError
from tensorlib.layout import broadcast_shapes, collapse
from tensorlib.registry import SAME, define

_plans: dict = {}
SOURCES: dict = {}  # expressions of ops that users wrote (tensorlib/custom.py), by the name of their row
_RAW = {1: "u8", 2: "u16", 4: "u32", 8: "u64"}  # copies move bits: one kernel per width
SMALL = 1 << 12  # elements below which the order of a copy does not matter
tracers = 0  # how many threads trace a function (tensorlib/fusion.py): its operands say themselves what an op does
COSTLY = 8  # what a mathematical function counts in additions, to decide whether threads pay


class _Plan:
    """What the dtypes of an op's operands decide: the dtype computed in, the output's, the kernel's parameters."""

    __slots__ = ("common", "compute", "cost", "kernels", "op", "result")

    def __init__(self, op, operands):
        typed = operands[1:] if op.name == "where" else operands
        arrays = [x for x in typed if isinstance(x, Array)]
        scalars = [x for x in typed if not isinstance(x, Array)]
        promoted = _dtype.result_type(
            [x.dtype for x in arrays if x.shape], [x.dtype for x in arrays if not x.shape], scalars
        )
        self.op, (self.common, self.result) = op, op.rule.apply(op.name, promoted)
        self.compute, self.kernels = self.common.compute, {}
        self.cost = 1 if op.kind != "unary" or self.common.kind != "f" else COSTLY

    def kernel(self, operands, out, device):
        """The compiled kernel for operands and an output of these dtypes."""
        key = (out.dtype, device.type)
        found = self.kernels.get(key)
        if found is None:
            compute = self.compute.name
            names = [x.dtype.name if isinstance(x, Array) else compute for x in operands]
            source = SOURCES.get(self.op.name)
            name, digest = ("custom", self.op.name.rpartition(":")[2]) if source else (self.op.name, "")
            words = ("elementwise", name, compute, out.dtype.name, *names)
            found = backend.kernel(*words, device=device.type, source=source, source_key=digest)
            self.kernels[key] = found
        return found


@functools.cache
def _caller(arity):
    names, scope = ("x", "x, y", "x, y, z")[arity - 1], {}
    exec(f"def call({names}, out=None):\n    return apply(op, {names}, out=out)", scope)
    return scope["call"].__code__


def function_of(op, name, module):
    """The function x, (x, y) or (x, y, z), out=None -> `apply` of an elementwise row."""
    function = FunctionType(_caller(op.arity), {"apply": apply, "op": op}, name, (None,))
    function.__module__ = module
    return function


def apply(op, *operands, out=None):
    """Runs a row on operands (Arrays or numbers), into `out` or a new Array of the first Array's class."""
    if tracers:
        for x in operands:
            if hasattr(x, "traced"):
                return x.traced(op, operands, out)
    operands = [x if isinstance(x, Array) else number(op.name, x) for x in operands]
    plan = _plan(op, operands)
    arrays = [x for x in operands if isinstance(x, Array)]
    first = arrays[0]
    shape = first.shape if len(arrays) == 1 else broadcast_shapes(op.name, *(x.shape for x in arrays))
    for x in arrays:
        if x.device != first.device:
            fix = "move one with .to(device)"
            raise DeviceError(op.name, f"operands on {first.device} and {x.device}", "one device", fix)
    if out is None:
        out = type(first).empty(shape, plan.result, first.device)
    else:
        operands = _into(op.name, plan, out, shape, operands)
    if 0 not in out.shape:
        words = [x if isinstance(x, Array) else scalar_word(x, plan.compute) for x in operands]
        launch(plan.kernel(operands, out, first.device), out, words, plan.cost)
    return out


def _plan(op, operands):
    key = (op.name, *((x.dtype, not x.shape) if isinstance(x, Array) else type(x) for x in operands))
    plan = _plans.get(key)
    if plan is None:
        if not any(isinstance(x, Array) for x in operands):
            got = "numbers only"
            raise DTypeError(op.name, got, "at least one tensor", "make one with tensorlib.tensor(...)")
        plan = _plans[key] = _Plan(op, operands)
    for x in operands:
        if type(x) is int and plan.common.kind in "ui" and not _fits(x, plan.common):
            if op.rule.name != "BOOL":
                limits = "{} to {}".format(*_dtype.info(plan.common))
                raise DTypeError(
                    op.name, f"the number {x} with dtype {plan.common}", limits, "use a wider dtype: .to('i64')"
                )
            # a comparison with what the dtype cannot hold has an answer all the same
            wide = [y if isinstance(y, Array) else float(y) for y in operands]
            return _wide_comparison(op, wide)
    return plan


def _wide_comparison(op, operands):
    key = (op.name, "wide", *(x.dtype if isinstance(x, Array) else float for x in operands))
    if key not in _plans:
        plan = _plans[key] = _Plan(op, operands)
        plan.common = plan.compute = _dtype.f64
    return _plans[key]


def _fits(value, d):
    low, high = _dtype.info(d)
    # a negative number wraps in an unsigned dtype, as in PyTorch
    return -high - 1 <= value <= high if d.kind == "u" else low <= value <= high


def number(op, value):
    """A Python bool, int or float out of anything that is one (NumPy scalars too). DTypeError otherwise."""
    if type(value) in (bool, int, float):
        return value
    item = getattr(value, "item", None)
    found = item() if item is not None and getattr(value, "ndim", 0) == 0 else value
    if not isinstance(found, (bool, int, float)):
        raise DTypeError(
            op, f"a {type(value).__name__}", "a tensor or a number", "convert it with tensorlib.tensor(...)"
        )
    return found


def scalar_word(value, compute):
    """A number as the word that a kernel reads as one element of dtype `compute`."""
    if compute.kind == "f":
        if compute.itemsize == 8:
            return float(value)
        try:
            return int.from_bytes(struct.pack("<f", value), "little")
        except OverflowError:
            return 0x7F800000 if value > 0 else 0xFF800000
    value = int(value) if compute.kind != "b" else int(bool(value))
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _into(op, plan, out, shape, operands):
    """Checks that results of `shape` may be written to `out`; copies operands that overlap it without being it."""
    if shape != out.shape:
        raise ShapeError(
            op, f"a result of shape {shape} for a tensor of {out.shape}", "equal shapes", "in place cannot grow"
        )
    if _dtype.category(plan.result) > _dtype.category(out.dtype):
        fix = "use the op that returns a new tensor"
        raise DTypeError(op, f"a {plan.result} result for a tensor of {out.dtype}", "a dtype that holds it", fix)
    writable(op, out)
    return [separate(x, out) if isinstance(x, Array) else x for x in operands]


def writable(op, out):
    """Refuses tensors whose elements share memory, and read-only memory."""
    if out.layout.overlaps_itself():
        fix = "call .contiguous() or .clone() first"
        raise ShapeError(op, f"a view of strides {out.strides} whose elements share memory", "distinct elements", fix)
    if out.buffer.readonly:
        raise DeviceError(
            op, "read-only memory (a mapped file or array)", "memory that may be written", "call .clone() first"
        )


def separate(x, out):
    """x, or a copy of it if writing to `out` would change elements of x that are still to be read."""
    if x.buffer.device != out.buffer.device or (x.ptr == out.ptr and x.layout == out.layout and x.dtype is out.dtype):
        return x
    a, b = span(x), span(out)
    return x if a[1] <= b[0] or b[1] <= a[0] else cast(x, x.dtype, copy=True)


def span(x):
    """Addresses [first, last) that a view touches."""
    low, high = x.layout.extent()
    return x.buffer.ptr + low * x.dtype.itemsize, x.buffer.ptr + high * x.dtype.itemsize


def launch(kernel, out, operands, cost=1):
    """Launches the strided template: `operands` are Arrays, broadcast to out's shape, or words (numbers)."""
    shape = out.shape
    arrays = [x for x in operands if isinstance(x, Array)]
    if out.is_contiguous() and all(x.shape == shape and x.is_contiguous() for x in arrays):
        words = [out.numel(), 1, 1, 0, out.ptr, 1, out.dtype.itemsize, 0, 0]
        for x in operands:
            words += [x.ptr, 1, x.dtype.itemsize, 0, 0] if isinstance(x, Array) else [0, 0, 0, 0, x]
    else:
        sizes, strides = collapse(out.layout, *(x.layout.expand(shape) for x in arrays))
        turned = _turned if out.device.type == "cpu" else _apart
        if out.numel() >= SMALL and out.is_contiguous() and any(map(turned, strides[1:])):
            steps = iter(strides[1:])  # a transposing copy is several times faster than strided reads
            operands = [clone(x) if isinstance(x, Array) and turned(next(steps)) else x for x in operands]
            return launch(kernel, out, operands, cost)
        words = _strided_words(out, operands, sizes, strides)
    backend.launch(kernel, words, work=out.numel() * cost, reads=arrays, writes=(out,))


def _turned(steps):
    """Whether these strides are those of a transposed matrix, every element once."""
    return steps[-1] != 1 and 1 in steps and 0 not in steps


def _apart(steps):
    """The same, where tiles of the two innermost dims do not turn it either."""
    return _turned(steps) and steps[-2] != 1


def clone(x):
    """A contiguous copy that no gradient flows through."""
    return copy_into(type(x).empty(x.shape, x.dtype, x.device), x)


def _strided_words(out, operands, sizes, strides):
    """See kernels_numba/elementwise.py for what the words mean."""
    outer, remaining, steps = sizes[:-2], iter(strides), []
    words = [sizes[-1], sizes[-2] if len(sizes) > 1 else 1, prod(outer), len(outer)]
    for x in (out, *operands):
        if not isinstance(x, Array):
            words += [0, 0, 0, 0, x]
            steps.append((0,) * len(sizes))
            continue
        size, step = x.dtype.itemsize, next(remaining)
        words += [x.ptr, step[-1], step[-1] * size, step[-2] * size if len(step) > 1 else 0, 0]
        steps.append([s * size for s in step])
    for d in reversed(range(len(outer))):
        words += [sizes[d], *(step[d] for step in steps)]
    return words


def _cast_ref(np, x, dtype):
    dtype = _dtype.get(dtype)
    if dtype.kind in "ui" and x.dtype.kind == "f":
        low, high = (np.asarray(limit, dtype.numpy_dtype()) for limit in _dtype.info(dtype))
        found = np.where(np.isnan(x), 0, np.clip(x, -(2.0**62), 2.0**62)).astype(np.int64)
        return np.where(x >= high, high, np.where(x <= low, low, found.astype(dtype.numpy_dtype())))
    return x != 0 if dtype.kind == "b" else x.astype(dtype.numpy_dtype())


@define("movement", SAME, _cast_ref, vjp={"x": lambda g: g})
def cast(x, dtype, copy=False):
    """x in another dtype: x itself if it has it, unless `copy`. Always contiguous if new.

    Floats to integers truncate and saturate (NaN gives 0); to bool, what is not 0 is true; floats round to nearest
    even.
    """
    dtype = _dtype.get(dtype)
    if x.dtype is dtype and not copy:
        return x
    if tracers and hasattr(x, "traced"):
        return x.to(dtype)
    return copy_into(type(x).empty(x.shape, dtype, x.device), x)


def copy_into(out, x):
    """Writes x, broadcast and cast, to `out`; returns `out`. The two must not overlap unless they are the same view."""
    if 0 in out.shape:
        return out
    if x.dtype is out.dtype:
        compute = result = source = _RAW[x.dtype.itemsize]
        if out.numel() >= SMALL and x.ndim > 1 and _transpose(out, x, compute):
            return out
    else:
        compute, result, source = x.dtype.compute.name, out.dtype.name, x.dtype.name
    launch(backend.kernel("elementwise", "copy", compute, result, source, device=out.device.type), out, [x])
    return out


def _transpose(out, x, raw):
    """Copies tile by tile if out's innermost dim is adjacent there and another one is in x; False if that is not so."""
    sizes, (steps_out, steps_x) = collapse(out.layout, x.layout.expand(out.shape))
    if len(sizes) < 2 or steps_out[-1] != 1 or steps_x[-1] == 1 or 1 not in steps_x:
        return False
    i, rest = steps_x.index(1), len(sizes) - 1
    others = [d for d in range(rest) if d != i]
    words = [
        x.ptr,
        out.ptr,
        sizes[i],
        sizes[-1],
        steps_out[i],
        steps_x[-1],
        prod(sizes[d] for d in others),
        len(others),
    ]
    for d in reversed(others):
        words += [sizes[d], steps_x[d], steps_out[d]]
    kernel = backend.kernel("index", "transpose", raw, device=out.device.type)
    backend.launch(kernel, words, work=2 * out.numel(), reads=(x,), writes=(out,))
    return True


def fill(out, value):
    """Writes one number, as `out`'s dtype holds it, to every element; returns `out`."""
    if 0 not in out.shape:
        raw = _RAW[out.dtype.itemsize]
        bits = int.from_bytes(_dtype.pack([number("fill", value)], out.dtype), "little", signed=True)
        launch(backend.kernel("elementwise", "copy", raw, raw, raw, device=out.device.type), out, [bits])
    return out
