"""Elementwise operations: one line each, put into one strided template.

An expression names its operands x, y, z (c is a condition). It is written for floats ("f"), integers ("i") or bools
("b"); f16, bf16 and float8 compute in f32. A plain string is for floats, and integers where they compute alike.

The kernel's arguments: inner size, rows, outer size, number of outer dims; per operand (the output first) address,
inner stride in elements, inner and row stride in bytes, value; per outer dim, innermost first, its size and each
operand's stride in bytes. An operand with address 0 is the number in its fifth word.
"""

import ast
import functools

from . import functions
from .scalar import caster, loader, storer
from .simd import arg

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
    """Statements of a fused function: `name = row.kind(arguments)` becomes `name = expression`; the last returns."""
    lines = []
    for step in ast.parse(source).body:
        call = step.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            row, kind = call.func.value.id, call.func.attr
            text = next(text for kinds, text in EXPRESSIONS[row].items() if kind in kinds)
            given = dict(zip(OPERANDS.get(row, "xyz"), call.args))
            step.value = _Given(given).visit(ast.parse(text, mode="eval").body)
        lines.append(ast.unparse(ast.fix_missing_locations(step)))
    return lines


class _Given(ast.NodeTransformer):
    def __init__(self, given):
        self.given = given

    def visit_Name(self, node):
        return self.given.get(node.id, node)


# ---- the strided template --------------------------------------------------------------------------------------------
# What does not depend on the op is in functions of their own, which Numba types once per number of operands.

WALK = """
def begin(a, tid, nth):
    total = arg(a, 0) * arg(a, 1) * arg(a, 2)
    chunk = (((total + nth - 1) // nth) + 63) & -64
    pos = tid * chunk
    return pos, min(pos + chunk, total)


def locate(a, pos):
    row = pos // arg(a, 0)
    j = pos - row * arg(a, 0)
    left = row // arg(a, 1)
    i = row - left * arg(a, 1)
    {starts}
    w = {outer}
    for d in range(arg(a, 3)):
        up = left // arg(a, w)
        at = left - up * arg(a, w)
        left = up
        {outers}
        w += {words}
    return i, j, {bases}


def next_row(a, j, {bases}):
    return {nexts}
"""


@functools.cache
def _walk(count):
    """begin, locate and next_row for `count` operands, the output included."""
    first = [4 + 5 * k for k in range(count)]
    address = "(arg(a, {0}) if arg(a, {0}) != 0 else a + 8 * {1})"
    text = WALK.format(
        starts="; ".join(
            f"b{k} = {address.format(w, w + 4)} + i * arg(a, {w + 3}) + j * arg(a, {w + 2})"
            for k, w in enumerate(first)
        ),
        outer=4 + 5 * count,
        words=count + 1,
        outers="; ".join(f"b{k} += at * arg(a, w + {k + 1})" for k in range(count)),
        bases=", ".join(f"b{k}" for k in range(count)),
        nexts=", ".join(f"b{k} + arg(a, {w + 3}) - j * arg(a, {w + 2})" for k, w in enumerate(first)),
    )
    scope = {"arg": arg}
    exec(compile(text, f"<walk {count}>", "exec"), scope)
    return {n: functions.jitted(scope[n]) for n in ("begin", "locate", "next_row")}


def _loop(classes, names):
    """The innermost loop, for operands whose inner stride is 1, 0 (loaded once) or s (whatever it is)."""
    lines = [f"        v{n} = cast_{n}(load_{n}(b{n}, 0))" for n, c in zip(names, classes) if c == "0"]
    values = [
        f"v{n}" if c == "0" else f"cast_{n}(load_{n}(b{n}, t{f' * s{n}' if c == 's' else ''}))"
        for n, c in zip(names, classes)
    ]
    lines.append("        for t in range(m):")
    lines.append(f"            store(bo, t{' * so' if 's' in classes else ''}, function({', '.join(values)}))")
    return lines


def template(names):
    """Source of the kernel for operands `names`: a loop each for all strides 1, one operand 0, and any strides."""
    everyone, n = "o" + names, len(names)
    variants = ["1" * n, *("".join("0" if i == j else "1" for i in range(n)) for j in reversed(range(n)))]
    pairs = ", ".join(f"b{k}, s{k}" for k in everyone)
    bases = ", ".join(f"b{k}" for k in everyone)
    lines = [f"def run(m, {pairs}):"]
    for word, classes in zip(["if"] + ["elif"] * n, variants):
        lines += [f"    {word} {' and '.join(f's{k} == {c}' for k, c in zip(everyone, '1' + classes))}:"]
        lines += _loop(classes, names)
    lines += ["    else:", *_loop("s" * n, names)]
    lines += [
        "def kernel(a, tid, nth):",
        "    pos, end = begin(a, tid, nth)",
        "    while pos < end:",
        f"        i, j, {bases} = locate(a, pos)",
        "        while i < arg(a, 1) and pos < end:",
        "            m = min(arg(a, 0) - j, end - pos)",
        f"            run(m, {', '.join(f'b{k}, arg(a, {5 + 5 * q})' for q, k in enumerate(everyone))})",
        f"            {bases} = next_row(a, j, {bases})",
        "            pos += m",
        "            j = 0",
        "            i += 1",
    ]
    return "\n".join(lines)


def build(name, compute, out, *operands, source=None):
    """Kernel `name` for operands of these dtypes, computing in `compute` and storing `out`;
    None if there is no such row. `source`: an expression of x, y, z in place of the row's.
    """
    text = source or expression(name, compute)
    if text is None:
        return None
    names = OPERANDS.get(name, LETTERS[: len(operands)])
    body = "\n    ".join(composed(text)) if name == "fused" else f"return {text}"
    function = functions.inline(f"def function({', '.join(names)}):\n    {body}", compute)
    scope = {"function": function, "arg": arg, "store": storer(out)} | _walk(len(names) + 1)
    for k, dtype in zip(names, operands):
        scope |= {f"load_{k}": loader(dtype), f"cast_{k}": caster("bool" if k == "c" else compute)}
    exec(compile(template(names), f"<elementwise {name}>", "exec"), scope)
    scope["run"] = functions.jitted(scope["run"])
    return scope["kernel"]
