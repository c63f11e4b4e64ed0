"""Elementwise kernels of one's own: an expression, compiled into the strided template, with a gradient beside it.

>>> import tensorlib
>>> swish = tensorlib.custom.elementwise(
...     "x / (1 + exp(-y * x))",
...     vjp={"x": lambda g, x, y, out: g * (y * out + (x * y).sigmoid() * (1 - y * out))},
... )
>>> x = tensorlib.tensor([-1.0, 0.0, 2.0], requires_grad=True)
>>> y = swish(x, 1.5)
>>> y.sum().backward()
>>> y.detach(), x.grad
(tensor([-0.1824,  0.0000,  1.9051]), tensor([-0.0413,  0.5000,  1.0881]))

It broadcasts, takes any strides and dtypes, promotes, vectorises and uses all threads as the library's own ops do, and
writes in place with `out=`. For kernels of another shape, wrap them in a `tensorlib.autograd.Function`.
"""

import ast
import hashlib

from tensorlib.errors import DTypeError
from tensorlib.memo import memoised
from tensorlib.ops._launch import SOURCES, function_of
from tensorlib.registry import FLOAT, Op

_SIGNATURES = ("x", "x, y", "x, y, z")


def elementwise(expression, vjp=None, rule=FLOAT, name="custom"):
    """A function of x, (x, y) or (x, y, z), whichever the Python `expression` of numbers and operators names.

    The expression may call the names of kernels_numba's function tables: exp, log, sin, tanh, erf, sqrt, fabs, minimum,
    maximum, floor, pow, fma, select(condition, a, b), ... `vjp` maps operands to gradients as in `tensorlib.tape`
    (without one, asking for a gradient raises GradError); `rule` is a row's, as FLOAT is, for which integers compute
    in f32). DTypeError for what is no such expression; the call raises NoKernel if it does not compile.

    >>> import tensorlib
    >>> elementwise("select(x > y, x - y, 0)")(tensorlib.tensor([1.0, 5.0]), 2.0)
    tensor([0., 3.])
    """
    arity = _arity(expression)
    digest = hashlib.sha256(expression.encode()).hexdigest()[:12]
    op = Op(f"{name}:{digest}", ("unary", "binary", "ternary")[arity - 1], arity, rule, None, expression, None, vjp)
    SOURCES[op.name] = expression
    function = function_of(op, name, __name__)
    function.__doc__ = f"{expression}, elementwise; see `tensorlib.custom`."
    return memoised(op, function, arity)


def _arity(expression):
    """How many of x, y, z an expression names. DTypeError for what is no expression of them."""
    fix = "write one expression of x, y, z, such as 'x * exp(-y)'"
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, ValueError, TypeError) as e:
        raise DTypeError("custom.elementwise", f"{expression!r} ({e})", "a Python expression", fix) from e
    called = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} - called - {"INF", "NAN"}
    plain = not any(isinstance(n, (ast.Attribute, ast.Subscript, ast.Lambda, ast.Await)) for n in ast.walk(tree))
    for arity, expected in enumerate(_SIGNATURES, 1):
        if plain and names == set(expected.split(", ")):
            return arity
    got = f"{expression!r} of {sorted(names)}"
    raise DTypeError("custom.elementwise", got, "operands x, or x and y, or x, y and z", fix)
