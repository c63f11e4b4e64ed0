"""Chains of elementwise ops in one kernel: a function is traced once per dtypes, and then runs as one launch.

>>> import tensorlib
>>> gate = tensorlib.fuse(lambda x, y: (x * y + 1).silu())
>>> gate(tensorlib.tensor([1.0, 2.0]), tensorlib.tensor([3.0, -2.0]))
tensor([ 3.9281, -0.1423])

On GPUs, where every launch costs some microseconds and every result a trip through memory, a chain of five ops takes a
fifth of the time; on CPUs the gain is that of memory alone.
"""

import functools
import hashlib
import math
import re
import sys
import threading

from tensorlib import backend, registry, tape
from tensorlib import dtype as _dtype
from tensorlib.device import Array
from tensorlib.errors import DeviceError, FuseError
from tensorlib.layout import broadcast_shapes
from tensorlib.ops import _launch
from tensorlib.tensor import Tensor

KINDS = ("unary", "binary", "ternary")
LETTERS = "xyzuvwpqrkl"  # names of operands, as the kernels have them
FIX = "fuse a chain of elementwise ops, and call the others outside"
_lock = threading.Lock()


def fuse(function):
    """`function` of tensors as one kernel. It may call elementwise ops alone, and gives one result.

    Its arguments are tensors of shapes that broadcast; floats (operands too: another value compiles nothing); and
    anything with a hash, for each value of which it is traced anew. The result has the dtype that the ops by themselves
    would give, but what is between them is not rounded to it: a kernel computes in f32, or in f64 if an op would.
    Integers are converted where floats meet them; arithmetic of integers alone is not fused.

    Where an argument requires a gradient, the ops run one by one and are recorded as ever. Raises FuseError, which
    names what cannot be fused: another op, a Python `if` on an element, a tensor that is no argument.

    >>> import tensorlib
    >>> @fuse
    ... def hinge(x, y, margin):
    ...     return tensorlib.where(y > 0, (margin - x).relu(), 0.0)
    >>> hinge(tensorlib.tensor([0.5, 2.0, 0.5]), tensorlib.tensor([1.0, 1.0, -1.0]), 1.0)
    tensor([0.5000, 0.0000, 0.0000])
    """
    plans = {}

    @functools.wraps(function)
    def fused(*args, **kwargs):
        given = (*args, *kwargs.values())
        within = _launch.tracers and any(isinstance(x, Symbol) for x in given)  # another one that is traced
        if within or (tape.used and tape.mode.recording and any(map(tape.live, given))):
            return function(*args, **kwargs)
        key = (len(args), *kwargs, *map(_key, given))
        try:
            plan = plans.get(key)
        except TypeError as e:
            raise FuseError(
                "fuse", f"an argument without a hash ({e})", "tensors, floats, values with a hash", FIX
            ) from e
        if plan is None:
            plan = plans[key] = Plan(function, args, kwargs)
        return plan.run(given)

    return fused


def _key(value):
    if isinstance(value, Array):
        return value.dtype, not value.shape
    return float if type(value) is float else (type(value), value)


class Plan:
    """What a function is for arguments of certain dtypes: the kernel's source, dtypes, and which arguments it reads."""

    def __init__(self, function, args, kwargs):
        trace = Trace()
        symbols = [Symbol.of(trace, i, value) for i, value in enumerate((*args, *kwargs.values()))]
        with _lock:
            _launch.tracers += 1
        mode = tape.mode.recording
        tape.mode.recording = False
        try:
            out = function(*symbols[: len(args)], **dict(zip(kwargs, symbols[len(args) :], strict=True)))
        finally:
            tape.mode.recording = mode
            with _lock:
                _launch.tracers -= 1
        if not isinstance(out, Symbol):
            raise FuseError(
                "fuse", f"a function that returns {type(out).__name__}", "one tensor computed from its own", FIX
            )
        self.source = "\n".join([*trace.lines, f"return {trace.text(out)}"])
        self.compute, self.result = trace.compute, out.dtype
        self.digest = hashlib.sha256(self.source.encode()).hexdigest()[:12]
        self.used = [place for place, _ in trace.operands]
        if all(dtype is None for _, dtype in trace.operands):
            raise FuseError("fuse", "a function that reads no tensor", "an argument that is one", FIX)
        self.cost = max(1, trace.cost)
        names = [(dtype or self.compute).name for _, dtype in trace.operands]
        self.params = ("elementwise", "fused", self.compute.name, self.result.name, *names)

    def run(self, given):
        """One launch."""
        operands = [given[i] for i in self.used]
        arrays = [x for x in operands if isinstance(x, Array)]
        first = arrays[0]
        for x in arrays:
            if x.device != first.device:
                got = f"operands on {first.device} and {x.device}"
                raise DeviceError("fuse", got, "one device", "move one with .to(device)")
        shape = broadcast_shapes("fuse", *(x.shape for x in arrays))
        out = type(first).empty(shape, self.result, first.device)
        if 0 not in shape:
            words = [x if isinstance(x, Array) else _launch.scalar_word(x, self.compute) for x in operands]
            kernel = backend.kernel(*self.params, device=first.device.type, source=self.source, source_key=self.digest)
            _launch.launch(kernel, out, words, self.cost)
        return out


class Trace:
    """The lines of a kernel as a function's ops are called: `name = row.kind(arguments)`, see kernels_numba."""

    def __init__(self):
        self.lines, self.known, self.operands, self.letters = [], {}, [], {}
        self.compute, self.cost = _dtype.f32, 0

    def step(self, text):
        """The name of a line that computes `text`."""
        name = self.known.get(text)
        if name is None:
            name = self.known[text] = f"step{len(self.lines)}"
            self.lines.append(f"{name} = {text}")
        return name

    def text(self, x):
        """A Symbol or a number, as text of the dtype that is computed in (bools stay bools)."""
        if not isinstance(x, Symbol):
            return _literal(float(x))
        if x.text is not None:
            return x.text
        letter = self.letters.get(x.place)
        if letter is None:
            if len(self.operands) == len(LETTERS):
                raise FuseError("fuse", "more operands", f"at most {len(LETTERS)}", "fuse it in two parts")
            letter = self.letters[x.place] = LETTERS[len(self.operands)]
            self.operands.append((x.place, x.dtype))
            if x.dtype is _dtype.f64:
                self.compute = _dtype.f64
        x.text = self.step(f"{letter} != 0") if x.dtype is _dtype.bool_ else letter
        return x.text

    def truth(self, x):
        """The same as a bool."""
        if not isinstance(x, Symbol):
            return str(bool(x))
        return self.text(x) if x.dtype is _dtype.bool_ else self.step(f"{self.text(x)} != 0")

    def number(self, x):
        """The same as a float."""
        is_bool = isinstance(x, Symbol) and x.dtype is _dtype.bool_
        return self.step(f"select({self.text(x)}, 1, 0)") if is_bool else self.text(x)


def _literal(value):
    if value != value:
        return "NAN"
    return repr(value) if math.isfinite(value) else "INF" if value > 0 else "-INF"


class Symbol:
    """What a traced function gets in place of a tensor or a float: it has a dtype, and the ops that are elementwise."""

    __slots__ = ("cast", "dtype", "place", "scalar", "text", "trace")
    __hash__ = None  # what remembers calls by their operands is not to remember these

    def __init__(self, trace, dtype, scalar, text=None, place=None, cast=False):
        self.trace, self.dtype, self.scalar, self.text, self.place, self.cast = trace, dtype, scalar, text, place, cast

    @classmethod
    def of(cls, trace, place, value):
        """A Symbol for an argument that is a tensor or a float; the others as they are."""
        if isinstance(value, Array):
            return cls(trace, value.dtype, not value.shape, place=place)
        return cls(trace, None, True, place=place) if type(value) is float else value

    def traced(self, op, operands, out=None):
        """The result of an elementwise row: called by `apply`."""
        if out is not None:
            raise FuseError(op.name, "a tensor to write to", "no out=, nothing in place", "use the op's result")
        if any(isinstance(x, Array) for x in operands):
            raise FuseError(op.name, "a tensor that is no argument of the function", "arguments", "pass it in as one")
        operands = [x if isinstance(x, Symbol) else _launch.number(op.name, x) for x in operands]
        if any(isinstance(x, Symbol) and x.cast for x in operands):
            raise FuseError(op.name, "what was converted to integers", "floats", "convert the fused result")
        typed = operands[1:] if op.name == "where" else operands
        tensors = [x for x in typed if isinstance(x, Symbol) and x.dtype is not None]
        numbers = [0.0 if isinstance(x, Symbol) else x for x in typed if getattr(x, "dtype", None) is None]
        if not tensors and not (op.name == "where" and operands[0].dtype):
            raise FuseError(op.name, "numbers only", "a tensor", "compute it before the call")
        promoted = _dtype.result_type(
            [x.dtype for x in tensors if not x.scalar],
            [x.dtype for x in tensors if x.scalar],
            numbers,
        )
        return self._applied(op, operands, typed, *op.rule.apply(op.name, promoted))

    def _applied(self, op, operands, typed, common, result):
        trace, kind = self.trace, common.kind
        if kind not in "bf":
            raise FuseError(op.name, f"arithmetic in {common}", "floats or bools", "convert with .to('f32') first")
        if common is _dtype.f64:
            trace.compute = _dtype.f64
        trace.cost += _launch.COSTLY if op.kind == "unary" and kind == "f" else 1
        given = [trace.number(x) if kind == "f" else trace.truth(x) for x in typed]
        given = [trace.truth(operands[0]), *given] if op.name == "where" else given
        source = _launch.SOURCES.get(op.name)
        if source:
            names = dict(zip("xyz", given))
            text = re.sub(r"\b[xyz]\b", lambda found: f"({names[found[0]]})", source)
        else:
            text = f"{op.name}.{kind}({', '.join(given)})"
        scalar = all(not isinstance(x, Symbol) or x.scalar for x in operands)
        return Symbol(trace, result, scalar, trace.step(text))

    def to(self, dtype):
        """In another dtype; to integers as the last step alone."""
        dtype, trace = _dtype.get(dtype), self.trace
        if dtype.kind == "b":
            return Symbol(trace, dtype, self.scalar, trace.truth(self))
        if dtype is _dtype.f64:
            trace.compute = dtype
        text = trace.number(self) if self.dtype is _dtype.bool_ else trace.text(self)
        return Symbol(trace, dtype, self.scalar, text, cast=dtype.kind != "f")

    def __getattr__(self, name):
        method = getattr(Tensor, name, None)
        row = registry.OPS.get(name)
        if callable(method) and name[-1] != "_" and (row is None or row.kind in (*KINDS, "composite")):
            return functools.partial(method, self)
        got = name if callable(method) else f"{_caller() or name}, which reads .{name}"
        raise FuseError("fuse", got, "elementwise ops of the function's arguments", FIX)

    def _refused(self, *args):
        raise FuseError("fuse", "Python's own use of an element, an `if` or an index", "ops", "use where(), or " + FIX)

    __bool__ = __iter__ = __len__ = __getitem__ = __setitem__ = __float__ = __int__ = __index__ = _refused
    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = __iand__ = __ior__ = _refused


def _caller():
    """The outermost op that is running."""
    frame, name = sys._getframe(2), None
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("tensorlib.ops."):
            name = frame.f_code.co_name.strip("_")
        frame = frame.f_back
    return name


def _operator(name):
    return lambda self, *other: getattr(Tensor, name)(self, *other)


for _name in (
    "add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow and rand or ror xor rxor"
    " neg abs invert eq ne lt le gt ge".split()
):
    setattr(Symbol, f"__{_name}__", _operator(f"__{_name}__"))
