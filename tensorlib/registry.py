"""Rows: what an op is called, what it takes and gives, and what it means.

A row says everything about an op but how a device computes it. Functions, methods and tests are made from the rows.

>>> from tensorlib.registry import OPS
>>> import tensorlib.ops.elementwise
>>> OPS["silu"].arity, OPS["silu"].rule, OPS["silu"].doc
(1, FLOAT, 'x * sigmoid(x)')
"""

from __future__ import annotations

from collections import namedtuple

from tensorlib import dtype as _dtype
from tensorlib import tape
from tensorlib.dtype import DType
from tensorlib.errors import DTypeError
from tensorlib.tape import FUNCTIONS

OPS: dict[str, Op] = {}


class Rule:
    """How result dtypes follow from operand dtypes.

    `accepts` are the kinds of operands ('b', 'u', 'i', 'f'); `common` maps the promoted operand dtype to the one that
    is computed in, `result` that to the output's.
    """

    __slots__ = ("accepts", "common", "name", "result", "text")

    def __init__(self, name, accepts, text, common=lambda d: d, result=lambda d: d):
        self.name, self.accepts, self.text, self.common, self.result = name, accepts, text, common, result

    def __repr__(self):
        return self.name

    def apply(self, op: str, promoted: DType) -> tuple[DType, DType]:
        """(computed in, output) for operands that promote to `promoted`. DTypeError if the op does not take it."""
        if promoted.kind not in self.accepts:
            kinds = {"b": "bool", "u": "unsigned integers", "i": "integers", "f": "floats"}
            expected = ", ".join(kinds[k] for k in self.accepts)
            raise DTypeError(op, f"dtype {promoted}", expected, "convert with .to(dtype) first")
        common = self.common(promoted)
        return common, self.result(common)


def _to_float(d):
    return d if d.kind == "f" else _dtype.f32


def _to_i64(d):
    return d if d.kind == "f" else _dtype.i64


SAME = Rule("SAME", "buif", "the operands' promoted dtype")
NUMBER = Rule("NUMBER", "uif", "the operands' promoted dtype; not bool")
INTEGER = Rule("INTEGER", "bui", "the operands' promoted dtype; bool and integers only")
SHIFT = Rule("SHIFT", "ui", "the operands' promoted dtype; integers only")
FLOAT = Rule("FLOAT", "buif", "the operands' promoted dtype; integers and bool give f32", common=_to_float)
FLOAT_ONLY = Rule("FLOAT_ONLY", "f", "the operands' dtype; floats only")
BOOL = Rule("BOOL", "buif", "bool", result=lambda d: _dtype.bool_)
ACC = Rule("ACC", "buif", "x's dtype; bool and integers give i64", result=_to_i64)
INDEX = Rule("INDEX", "uif", "i64", result=lambda d: _dtype.i64)


class Op(namedtuple("Op", "name kind arity rule ref doc domain vjp", defaults=(None, None))):
    """One row.

    kind: "unary", "binary", "ternary", "reduce", "scan", "movement", "index", "fused", "conv", "linalg" or
    "composite". `ref(np, *arrays)` is the meaning in NumPy; tests call it with float64 where the op computes in floats.
    `domain` bounds the operands that tests draw (None: any; (low, high); a pair for each operand), or draws the whole
    call: `domain(s, dtype)` gives the arguments, see `tensorlib.testing`. A row that leaves `ref` or `domain` out may
    have them under its name in `tensorlib.testing.references` and `tensorlib.testing.domains`. `vjp` maps the names of
    operands to their gradients (see `tensorlib.tape`); {} says that the result does not depend on them smoothly, None
    that nobody wrote one yet. A composite op has none: its gradient is that of the ops in its body.
    """

    __slots__ = ()
    __hash__ = object.__hash__


def register(op: Op) -> Op:
    """Adds a row to `OPS`; a name may be taken once."""
    if op.name in OPS:
        raise ValueError(f"register: got a second row {op.name!r}; expected a new name")
    OPS[op.name] = op
    return op


def define(kind, rule, ref, arity=1, domain=None, vjp=None, writes=False, wrap=None):
    """Decorator: registers a function as the op of its name; the row's doc is the first line of its docstring.

    `writes`: the function changes its first operand in place. `wrap(op, function)` gives what is called: the function
    as the tape records it, by default. See `Op` for the rest.
    """

    def decorate(function):
        name = function.__name__
        name = name if writes else name.strip("_")
        doc = function.__doc__.partition("\n")[0].rstrip(".")
        op = register(Op(name, kind, arity, rule, ref, doc, domain, vjp))
        if kind == "composite":
            found = function
        else:
            found = wrap(op, function) if wrap else tape.recorded(op, function, writes)
        FUNCTIONS[name] = found
        return found

    return decorate
