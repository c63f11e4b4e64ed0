"""Elementwise expressions, one line each, and their translation to Triton.

The tables are those of kernels_numba/elementwise.py, word for word (a test compares them): an expression names its
operands x, y, z (c is a condition), and is written for floats ("f"), integers ("i") or bools ("b"). `translated` turns
such an expression, or one that a user wrote, into Triton source: numbers in calls get the type that is computed in,
`/` is rounded once, and the functions are those of functions.py and of the vendor's library.
"""

import ast

from . import functions, library
from .convert import register

UNARY = {
    "copy": {"fib": "x"},
    "neg": {"f": "-x", "i": "ineg(x)"},
    "abs": {"f": "fabs(x)", "i": "iabs(x)", "b": "x"},
    "sign": {"f": "sign(x)", "i": "isign(x)", "b": "x"},
    "square": {"f": "x * x", "i": "imul(x, x)"},
    "relu": {"f": "relu(x)", "i": "imax(x, isub(x, x))"},
    "floor": {"f": "floor(x)", "i": "x"},
    "ceil": {"f": "ceil(x)", "i": "x"},
    "round": {"f": "rint(x)", "i": "x"},
    "trunc": {"f": "trunc(x)", "i": "x"},
    "sqrt": {"f": "sqrt(x)"},
    "rsqrt": {"f": "1 / sqrt(x)"},
    "reciprocal": {"f": "1 / x"},
    "exp": {"f": "exp(x)"},
    "exp2": {"f": "exp2(x)"},
    "expm1": {"f": "expm1(x)"},
    "log": {"f": "log(x)"},
    "log2": {"f": "log2(x)"},
    "log10": {"f": "log10(x)"},
    "log1p": {"f": "log1p(x)"},
    "sin": {"f": "sin(x)"},
    "cos": {"f": "cos(x)"},
    "tan": {"f": "tan(x)"},
    "asin": {"f": "asin(x)"},
    "acos": {"f": "acos(x)"},
    "atan": {"f": "atan(x)"},
    "sinh": {"f": "sinh(x)"},
    "cosh": {"f": "cosh(x)"},
    "tanh": {"f": "tanh(x)"},
    "asinh": {"f": "asinh(x)"},
    "acosh": {"f": "acosh(x)"},
    "atanh": {"f": "atanh(x)"},
    "erf": {"f": "erf(x)"},
    "erfc": {"f": "erfc(x)"},
    "sigmoid": {"f": "sigmoid(x)"},
    "logsigmoid": {"f": "-softplus(-x)"},
    "softplus": {"f": "softplus(x)"},
    "silu": {"f": "x * sigmoid(x)"},
    "gelu": {"f": "gelu(x)"},
    "gelu_tanh": {"f": "x * sigmoid(x * (1.5957691216057308 + 0.07135481627260025 * (x * x)))"},
    "mish": {"f": "x * tanh(softplus(x))"},
    "hardsigmoid": {"f": "minimum(maximum(x + 3, 0), 6) / 6"},
    "hardswish": {"f": "x * (minimum(maximum(x + 3, 0), 6) / 6)"},
    "isnan": {"f": "x != x", "i": "x != x", "b": "x != x"},
    "isinf": {"f": "fabs(x) == INF", "i": "x != x", "b": "x != x"},
    "isfinite": {"f": "fabs(x) < INF", "i": "x == x", "b": "x == x"},
    "signbit": {"f": "copysign(1, x) < 0", "i": "x < isub(x, x)", "b": "x != x"},
    "sinc": {"f": "sinc(x)"},
    "selu": {"f": "select(x > 0, 1.0507009873554805 * x, 1.7580993408473766 * expm1(x))"},
    "lgamma": {"f": "lgamma(x)"},
    "digamma": {"f": "digamma(x)"},
    "erfinv": {"f": "erfinv(x)"},
    "logical_not": {"f": "x == 0", "i": "x == 0", "b": "not x"},
    "bitwise_not": {"i": "inot(x)", "b": "not x"},
}
BINARY = {
    "add": {"f": "x + y", "i": "iadd(x, y)", "b": "x | y"},
    "sub": {"f": "x - y", "i": "isub(x, y)"},
    "mul": {"f": "x * y", "i": "imul(x, y)", "b": "x & y"},
    "div": {"f": "x / y"},
    "floor_divide": {"f": "floor_divide(x, y)", "i": "idiv(x, y)"},
    "remainder": {"f": "remainder(x, y)", "i": "imod(x, y)"},
    "fmod": {"f": "fmod(x, y)", "i": "imod_trunc(x, y)"},
    "pow": {"f": "pow(x, y)", "i": "ipow(x, y)"},
    "maximum": {"f": "maximum(x, y)", "i": "imax(x, y)", "b": "x | y"},
    "minimum": {"f": "minimum(x, y)", "i": "imin(x, y)", "b": "x & y"},
    "atan2": {"f": "atan2(x, y)"},
    "copysign": {"f": "copysign(x, y)"},
    "eq": {"fi": "x == y", "b": "x == y"},
    "ne": {"fi": "x != y", "b": "x != y"},
    "lt": {"fi": "x < y", "b": "y & (not x)"},
    "le": {"fi": "x <= y", "b": "y | (not x)"},
    "gt": {"fi": "x > y", "b": "x & (not y)"},
    "ge": {"fi": "x >= y", "b": "x | (not y)"},
    "logical_and": {"fi": "(x != 0) & (y != 0)", "b": "x & y"},
    "logical_or": {"fi": "(x != 0) | (y != 0)", "b": "x | y"},
    "logical_xor": {"fi": "(x != 0) != (y != 0)", "b": "x != y"},
    "bitwise_and": {"i": "iand(x, y)", "b": "x & y"},
    "bitwise_or": {"i": "ior(x, y)", "b": "x | y"},
    "bitwise_xor": {"i": "ixor(x, y)", "b": "x != y"},
    "bitwise_left_shift": {"i": "shl(x, y)"},
    "bitwise_right_shift": {"i": "shr(x, y)"},
    "leaky_relu": {"f": "select(x > 0, x, x * y)"},
    "elu": {"f": "select(x > 0, x, y * expm1(x))"},
    "celu": {"f": "select(x > 0, x, y * expm1(x / y))"},
    "relu_backward": {"f": "select(y <= 0, 0, x)"},
    "silu_backward": {"f": "x * silu_slope(y)"},
    "gelu_backward": {"f": "x * gelu_slope(y)"},
    "gelu_tanh_backward": {"f": "x * gelu_tanh_slope(y)"},
    "hypot": {"f": "hypot(x, y)"},
    "logaddexp": {"f": "logaddexp(x, y)"},
    "logaddexp2": {"f": "logaddexp2(x, y)"},
    "nextafter": {"f": "nextafter(x, y)"},
    "heaviside": {"fi": "select(x == 0, y, select(x > 0, 1, 0))"},
    "xlogy": {"f": "select((x == 0) & (y == y), 0, x * log(y))"},
    "fmax": {"f": "select((x > y) | (y != y), x, y)", "i": "imax(x, y)", "b": "x | y"},
    "fmin": {"f": "select((x < y) | (y != y), x, y)", "i": "imin(x, y)", "b": "x & y"},
    "gcd": {"i": "igcd(x, y)"},
    "lcm": {"i": "ilcm(x, y)"},
}
TERNARY = {
    "where": {"fib": "select(c, x, y)"},
    "clamp": {"f": "minimum(maximum(x, y), z)", "i": "imin(imax(x, y), z)"},
    "lerp": {"f": "fma(z, y - x, x)"},
    "addcmul": {"f": "fma(y, z, x)", "i": "iadd(x, imul(y, z))", "b": "x | (y & z)"},
}
EXPRESSIONS = {name: row for table in (UNARY, BINARY, TERNARY) for name, row in table.items()}
OPERANDS = {"where": "cxy"}
LETTERS = "xyzuvwpqrkl"  # names of the operands of other rows


def expression(name, compute):
    """Source of op `name` for operands of the computing dtype `compute`, or None."""
    kind = "f" if compute in ("f32", "f64") else "b" if compute == "bool" else "i"
    return next((text for kinds, text in EXPRESSIONS.get(name, {}).items() if kind in kinds), None)


def composed(source):
    """The steps of a fused function, `name = row.kind(arguments)`, as `name = expression`: (statements, the result)."""
    lines = []
    for step in ast.parse(source).body:
        call = step.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            row, kind = call.func.value.id, call.func.attr
            text = next(text for kinds, text in EXPRESSIONS[row].items() if kind in kinds)
            given = dict(zip(OPERANDS.get(row, "xyz"), call.args))
            step.value = _Given(given).visit(ast.parse(text, mode="eval").body)
        lines.append(ast.unparse(ast.fix_missing_locations(step)))
    return lines[:-1], lines[-1].removeprefix("return ")


class _Given(ast.NodeTransformer):
    def __init__(self, given):
        self.given = given

    def visit_Name(self, node):
        return self.given.get(node.id, node)


# ---- translation -----------------------------------------------------------------------------------------------------

_OPERATORS = {
    "iadd": ast.Add, "isub": ast.Sub, "imul": ast.Mult, "iand": ast.BitAnd, "ior": ast.BitOr, "ixor": ast.BitXor,
}  # fmt: skip
_CALLS = {"fabs": "tl.abs", "fma": "tl.fma", "select": "tl.where"}
_CALLS |= {name: f"libdevice.{name}" for name in functions.LIBRARY}
_CALLS |= {name: f"library.{name}" for name in library.NAMES}
_CALLS |= {
    name: name
    for name in "div sqrt maximum minimum relu sign sigmoid softplus gelu remainder floor_divide sinc logaddexp"
    " silu_slope gelu_slope gelu_tanh_slope"
    " logaddexp2 nextafter lgamma digamma erfinv iabs idiv imod imod_trunc shl shr ipow igcd ilcm".split()
}
_CALLS |= {"inot": "inverted", "isign": "sign", "imax": "tl.maximum", "imin": "tl.minimum"}
_INTEGERS = {ast.FloorDiv: "idiv", ast.Mod: "imod", ast.Pow: "ipow"}
_FLOATS = {ast.Div: "div", ast.FloorDiv: "floor_divide", ast.Mod: "remainder", ast.Pow: "pow"}


class _Translation(ast.NodeTransformer):
    """Python's operators and the tables' names as Triton's. KeyError: a name that is not there."""

    def __init__(self, compute):
        self.type = ast.parse(register(compute), mode="eval").body
        self.calls = _FLOATS if compute in ("f32", "f64") else _INTEGERS

    def _call(self, name, *args):
        function = ast.parse(_CALLS[name], mode="eval").body
        return ast.Call(function, [self._typed(a) for a in args], [])

    def _typed(self, node):
        """A number as one of the type that is computed in; in an operator it takes the other operand's by itself."""
        value = ast.literal_eval(node) if _is_number(node) else None
        value = float("nan") if ast.unparse(node) == "NAN" else value
        value = {"INF": float("inf"), "-INF": float("-inf")}.get(ast.unparse(node), value)
        if value is None:
            return node
        text = f"float('{value}')" if value in (float("inf"), float("-inf")) or value != value else repr(value)
        return ast.parse(f"tl.full((), {text}, {ast.unparse(self.type)})", mode="eval").body

    def visit_Call(self, node):
        self.generic_visit(node)
        name = node.func.id
        if name in _OPERATORS:
            return ast.BinOp(node.args[0], _OPERATORS[name](), node.args[1])
        return ast.BinOp(ast.Constant(0), ast.Sub(), node.args[0]) if name == "ineg" else self._call(name, *node.args)

    def visit_BinOp(self, node):
        self.generic_visit(node)
        name = self.calls.get(type(node.op))
        return self._call(name, node.left, node.right) if name else node

    def visit_UnaryOp(self, node):
        self.generic_visit(node)
        return self._call("inot", node.operand) if isinstance(node.op, ast.Not) else node

    def visit_BoolOp(self, node):
        self.generic_visit(node)
        value = node.values[0]
        for other in node.values[1:]:
            value = ast.BinOp(value, ast.BitAnd() if isinstance(node.op, ast.And) else ast.BitOr(), other)
        return value

    def visit_Compare(self, node):
        self.generic_visit(node)
        sides = [node.left, *node.comparators]
        sides = [self._typed(s) if isinstance(s, (ast.Name, ast.UnaryOp)) else s for s in sides]  # INF, -INF
        pairs = [ast.Compare(a, [op], [b]) for a, op, b in zip(sides, node.ops, sides[1:])]
        return self.visit_BoolOp(ast.BoolOp(ast.And(), pairs)) if len(pairs) > 1 else pairs[0]

    def visit_IfExp(self, node):
        self.generic_visit(node)
        return self._call("select", node.test, node.body, node.orelse)


def _is_number(node):
    inner = node.operand if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else node
    return isinstance(inner, ast.Constant) and type(inner.value) in (int, float)


def translated(text, compute):
    """Triton source of an expression computed in a dtype. KeyError for a name that there is no function of.

    >>> translated("select(x > 0, x, 1 / y)", "f32")
    'tl.where(x > 0, x, div(tl.full((), 1, tl.float32), y))'
    """
    tree = _Translation(compute).visit(ast.parse(text, mode="eval"))
    return ast.unparse(ast.fix_missing_locations(tree))
