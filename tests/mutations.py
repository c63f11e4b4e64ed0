"""Faults planted on purpose: does the generated suite notice?

`python -m tests.mutations [PART OF A NAME ...] [N]` tries all of them, those of such names, every Nth.

Each fault is planted in a forked process: a text of a kernel, the source of a function or a gradient of a row changes,
kernels that hold it are compiled anew and never stored, and the checks of tests/ops/test_rows.py run on the rows named.
A signal counts as noticed: it is what a guard page or a wild address does. Without the fault the same checks must pass.
"""

import inspect
import os
import re
import sys
import textwrap
from collections import namedtuple
from unittest.mock import Mock

import numpy as np

from tensorlib import backend, layout, tape
from tensorlib.autograd import engine
from tensorlib.ops import _launch, elementwise, index, movement, reduce, scan
from tensorlib.registry import OPS
from tensorlib.testing import check_gradient, check_op, seeded
from tensorlib.testing.memory import bits, threads, watched
from tensorlib.testing.rows import call, draw, rows

SEEDS = 40
BROKEN = ("SyntaxError", "NameError", "TypingError", "LoweringError", "NoKernel")  # a fault that does not compile
Fault = namedtuple("Fault", "name plant check rows dtype", defaults=("f32",))


# ---- planting --------------------------------------------------------------------------------------------------------


def kernels(*prefixes):
    """Kernels whose file names start with one of these are compiled and kept in memory only."""
    device, real = backend.backend(), backend.backend()._cache

    class Cache:
        file_name, from_memory = staticmethod(real.file_name), staticmethod(real.from_memory)

        @staticmethod
        def load(path):
            return None if os.path.basename(path).startswith(prefixes) else real.load(path)

        @staticmethod
        def store(path, *built):
            if not os.path.basename(path).startswith(prefixes):
                real.store(path, *built)

    device._cache, device._kernels = Cache, {}
    backend.compiling = Mock()


def expression(name, kind, text):
    """Another expression for an elementwise op of the kinds of dtypes `kind`."""

    def plant():
        from kernels_numba import elementwise as room

        room.EXPRESSIONS[name][kind] = text
        kernels(f"elementwise.{name}.")

    return plant


def template(room, variable, old, new, *prefixes):
    """Another text in a template of a room of kernels_numba; `variable` may be NAME or NAME[key]."""

    def plant():
        module = __import__(f"kernels_numba.{room}", fromlist=["x"])
        name, _, key = variable.partition("[")
        if key:
            table = getattr(module, name)
            table[key[:-1]] = changed(table[key[:-1]], old, new)
        elif callable(getattr(module, name)):
            source(getattr(module, name), old, new)()
        else:
            setattr(module, name, changed(getattr(module, name), old, new))
        kernels(*(p if p.startswith("reduce.") else f"{room}.{p}" for p in prefixes))

    return plant


def changed(text, old, new):
    """`text` (or a tuple of texts) with `old` replaced; it must be there."""
    if isinstance(text, dict):
        return {k: changed(v, old, new) if old in str(v) else v for k, v in text.items()}
    if isinstance(text, tuple):
        return tuple(t.replace(old, new) for t in text)
    assert old in text, f"{old!r} is not in the text: the fault must be written anew"
    return text.replace(old, new)


def source(function, old, new):
    """Another line in a function of the library, in place."""

    def plant():
        inner = inspect.unwrap(function)
        text = changed(textwrap.dedent(inspect.getsource(inner)), old, new)
        scope = dict(inner.__globals__)
        exec(compile(text[re.search(r"^def ", text, re.M).start() :], "<fault>", "exec"), scope)
        inner.__code__ = scope[inner.__name__].__code__

    return plant


def gradient(name, key, function):
    """Another gradient of an operand."""
    return lambda: rows()[name].vjp.__setitem__(key, function)


# ---- checks: the bodies of tests/ops/test_rows.py and tests/grad/test_rows.py ----------------------------------------


def forward(name, dtype):
    for seed in range(SEEDS):
        check_op(name, "cpu", dtype, seeded(seed, dtype))


def slopes(name, dtype, order=1):
    for seed in range(SEEDS // (4 * order)):
        check_gradient(name, "cpu", seeded(seed, "f64", smooth=True), order)


def second(name, dtype):
    slopes(name, dtype, 2)


def memory(name, dtype):
    for seed in range(SEEDS):
        found = []
        for poison in (0xA5, 0x3C):
            with watched(poison):
                found.append(bits(call(OPS[name], *draw(OPS[name], seeded(seed, dtype)))))
        assert found[0] == found[1]


def threaded(name, dtype):
    for seed in range(SEEDS):
        found = []
        for count in (1, 2, 3):
            with threads(count):
                found.append(bits(call(OPS[name], *draw(OPS[name], seeded(seed, dtype)))))
        assert found[0] == found[1] == found[2]


def place(name, dtype):
    import tensorlib

    function = getattr(elementwise, name)
    for start in (0, 2):
        x = tensorlib.from_numpy(np.arange(40, dtype=np.float32))
        want = function(x.narrow(0, 1, 37), 2.0)
        function(x.narrow(0, 1, 37), 2.0, out=x.narrow(0, start, 37))
        assert np.array_equal(x.narrow(0, start, 37).numpy(), want.numpy())


# ---- the faults ------------------------------------------------------------------------------------------------------

E = expression
FAULTS = [
    Fault("maximum forgets NaN", E("maximum", "f", "select(x > y, x, y)"), forward, ["maximum"]),
    Fault("minimum forgets NaN", E("minimum", "f", "select(x < y, x, y)"), forward, ["minimum"]),
    Fault("relu of NaN is 0", E("relu", "f", "select(x > 0, x, 0)"), forward, ["relu"]),
    Fault("sub with operands swapped", E("sub", "f", "y - x"), forward, ["sub"]),
    Fault("div through the reciprocal", E("div", "f", "x * (1 / y)"), forward, ["div"]),
    Fault("floor_divide truncates", E("floor_divide", "f", "trunc(x / y)"), forward, ["floor_divide"]),
    Fault("remainder with the sign of x", E("remainder", "f", "fmod(x, y)"), forward, ["remainder"]),
    Fault("round takes halves up", E("round", "f", "floor(x + 0.5)"), forward, ["round"]),
    Fault("sign of 0 is -1", E("sign", "f", "select(x > 0, 1, -1)"), forward, ["sign"]),
    Fault("lt is le", E("lt", "fi", "x <= y"), forward, ["lt"]),
    Fault("leaky_relu adds its slope", E("leaky_relu", "f", "select(x > 0, x, x + y)"), forward, ["leaky_relu"]),
    Fault("elu by exp(x) - 1", E("elu", "f", "select(x > 0, x, y * (exp(x) - 1))"), forward, ["elu"]),
    Fault("logaddexp overflows", E("logaddexp", "f", "log(exp(x) + exp(y))"), forward, ["logaddexp"]),
    Fault("expm1 by exp(x) - 1", E("expm1", "f", "exp(x) - 1"), forward, ["expm1"]),
    Fault("gelu_tanh with a rounded constant", E("gelu_tanh", "f", "x * sigmoid(x * (1.5957691 + 0.0714 * (x * x)))"),
          forward, ["gelu_tanh"]),
    Fault("clamp: min wins", E("clamp", "f", "maximum(minimum(x, z), y)"), forward, ["clamp"]),
    Fault("lerp from the wrong end", E("lerp", "f", "fma(z, x - y, x)"), forward, ["lerp"]),
    Fault("addcmul adds y to x z", E("addcmul", "f", "fma(x, z, y)"), forward, ["addcmul"]),
    Fault("copysign with operands swapped", E("copysign", "f", "copysign(y, x)"), forward, ["copysign"]),
    Fault("where with branches swapped", E("where", "fib", "select(c, y, x)"), forward, ["where"]),
    Fault("logical_xor is or", E("logical_xor", "fi", "(x != 0) | (y != 0)"), forward, ["logical_xor"]),
    Fault("integers: remainder with C's sign", E("remainder", "i", "imod_trunc(x, y)"), forward, ["remainder"], "i64"),
    Fault("shift the other way", E("bitwise_right_shift", "i", "shl(x, y)"), forward, ["bitwise_right_shift"], "i64"),
    Fault("isinf of the largest number", E("isinf", "f", "fabs(x) > 3e38"), forward, ["isinf"]),
    Fault("integer abs forgets the sign bit", E("abs", "i", "x"), forward, ["abs"], "i64"),
    Fault("rows start at a stale offset",
          template("elementwise", "_walk", "+ arg(a, {w + 3}) - j * arg(a, {w + 2})", "+ arg(a, {w + 3})", "neg."),
          threaded, ["neg"]),
    Fault("the last element of odd sizes is missing",
          template("elementwise", "template", "            run(m,", "            run(m - m % 2,", "neg."), memory,
          ["neg"]),
    Fault("one element too many is written",
          template("elementwise", "template", "            run(m,", "            run(m + 1,", "neg."), memory, ["neg"]),
    Fault("the inner stride of a strided operand is taken as 1",
          template("elementwise", "_loop", "f' * s{n}' if c == 's' else ''", "''", "neg.", "add."), forward, ["add"]),
    Fault("a broadcast operand is read on",
          template("elementwise", "_loop", 'f"v{n}" if c == "0"',
                   'f"cast_{n}(load_{n}(b{n}, t))" if c == "0"', "add."), forward, ["add"]),
    Fault("an output's rows lie closer than they do",
          source(_launch._strided_words, "step[-2] * size if len(step) > 1 else 0", "step[-1] * size"),
          forward, ["neg"]),
    Fault("sum starts at 1", template("reduce", "STEPS[sum]", "0.0", "1.0", "sum."), forward, ["sum"]),
    Fault("sums of strided rows skip each 64th",
          template("reduce", "PART_OF", "min(b + 64, n)", "min(b + 63, n)", "sum."), forward, ["sum"]),
    Fault("amax starts at 0", template("reduce", "STEPS[amax]", "-INF", "0.0", "amax."), forward, ["amax"]),
    Fault("columns: the first row is left out",
          template("reduce", "COLUMNS", "range(rows & 7)", "range(1, rows & 7)", "sum_columns."),
          forward, ["sum"]),
    Fault("argmax: the last of equals",
          template("reduce", "FIND", "for t in range(n):", "for t in range(n - 1, -1, -1):", "argmax."), forward,
          ["argmax"], "f64"),
    Fault("argmax: the last of equals, in vectors",
          template("parts", "FIND", "range(0, n, 16)", "range((n - 1) & -16, -1, -16)", "reduce.argmax."), forward,
          ["argmax"]),
    Fault("softmax without the largest taken off",
          template("reduce", "SOFTMAX", "- top)", "- zero())", "softmax."), forward, ["softmax"]),
    Fault("var divides by n", template("reduce", "VAR", "max(n - correction, 0.0)", "n", "var."), forward, ["var"]),
    Fault("f16: sums are kept in f16",
          template("reduce", "SCAN", "store(out, p * n + t, total)",
                   "store(out, p * n + t, total)\n        total = widen(cast(load(out, p * n + t)))", "cumsum."),
          forward, ["cumsum"], "f16"),
    Fault("cummax: the first of equals",
          template("scan", "KERNELS[cummax]", "v >= best", "v > best", "cummax."), forward, ["cummax"]),
    Fault("logcumsumexp counts equals half",
          template("scan", "KERNELS[logcumsumexp]", "total += 1.0", "total += 0.5", "logcumsumexp."),
          forward, ["logcumsumexp"]),
    Fault("negative indices are one off",
          template("index", "CHECK", "at < 0, size,", "at < 0, size - 1,", "take.", "gather."), forward,
          ["gather", "index_select"]),
    Fault("take forgets the outer stride",
          template("index", "BY_INDEX[take]", "x + o * size *", "x + o *", "take."), forward, ["index_select"]),
    Fault("nonzero: blocks of 63",
          template("index", "NONZERO", "64 * b + trailing", "63 * b + trailing", "nonzero-"), forward, ["nonzero"]),
    Fault("wrong keepdim", source(reduce._reduce, "1 if d in dims else n", "n if d in dims else 1"), forward, ["sum"]),
    Fault("collapse merges dims of one operand only", source(layout.collapse, "if all(", "if any("), forward, ["add"]),
    Fault("expanded dims keep their stride",
          source(layout.Layout.expand, "stride if want == size else 0", "stride"), forward, ["add"]),
    Fault("narrow forgets its offset", source(layout.Layout.narrow, "begin * self.strides[dim] if length else 0", "0"),
          forward, ["narrow"]),
    Fault("flip is one short",
          source(layout.Layout.slice, "start * self.strides[dim] if size else 0", "0"), forward, ["flip"]),
    Fault("cat overlaps",
          source(movement.cat, "start += x.shape[dim]", "start += x.shape[dim] // 2"), forward, ["cat"]),
    Fault("roll the other way", source(movement.roll, "-shift % n", "shift % n"), forward, ["roll"]),
    Fault("views that overlap are not copied",
          source(_launch.separate, "x if a[1] <= b[0]", "x if True or a[1] <= b[0]"), place, ["add"]),
    Fault("gradient of tanh", gradient("tanh", "x", lambda g, out: g * (1 - out)), slopes, ["tanh"]),
    Fault("gradient of silu without its second term",
          gradient("silu", "x", lambda g, x: g * elementwise.sigmoid(x)), slopes, ["silu"]),
    Fault("gradient of softmax without the sum", gradient("softmax", "x", lambda g, out: g * out), slopes, ["softmax"]),
    Fault("gradient of div with its sign lost",
          gradient("div", "y", lambda g, y, out: g / y * out), slopes, ["div"]),
    Fault("gradient of pow by the exponent",
          gradient("pow", "y", lambda g, x, out: g * out * x), slopes, ["pow"]),
    Fault("gradient of var halved", source(reduce._var_vjp, "g * 2", "g * 1"), slopes, ["var"]),
    Fault("gradient of cumsum runs forwards", gradient("cumsum", "x", lambda g, dim: scan.cumsum(g, dim)), slopes,
          ["cumsum"]),
    Fault("gradient of gather: the last wins", source(index._gathered, "scatter_add(", "scatter("), slopes, ["gather"]),
    Fault("gradients of broadcast operands are not summed",
          source(engine._sum_to, "reduce.sum(g, tuple(dims), keepdim=True) if dims else g",
                 "reduce.mean(g, tuple(dims), keepdim=True) if dims else g"), slopes, ["mul"]),
    Fault("gradient of logsumexp without the softmax",
          gradient("logsumexp", "x", lambda g, x_shape, dim, keepdim: reduce.spread(g, x_shape, dim, keepdim)), slopes,
          ["logsumexp"]),
    Fault("second gradients through several results are lost",
          source(tape._attached, "if _differentiable(o):", "if False:"), second, ["qr"]),
    Fault("second gradients by the weights are lost",
          source(engine._root, "weight.node = tape.node_of(g)", "weight.node = None"), second, ["exp"]),
]  # fmt: skip


# ---- running ---------------------------------------------------------------------------------------------------------


def noticed(fault):
    """Runs the checks with a fault planted, in a process of its own: how it was noticed, or "" if it was not."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        text, planted = "", False
        try:
            fault.plant()
            planted = True
            for name in fault.rows:
                fault.check(name, fault.dtype)
        except BaseException as e:
            kind = type(e).__name__
            text = f"{kind}: {e}" if planted and kind not in BROKEN else f"NOT PLANTED, {kind}: {e}"
        os.write(write, text[:300].encode())
        os._exit(1 if text else 0)
    os.close(write)
    with os.fdopen(read, "rb") as f:
        text = f.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    if text.startswith("NOT PLANTED"):
        raise ValueError(f"{fault.name}: {text}")
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else text


def fine(fault):
    """The same checks with nothing planted: they must pass."""
    return noticed(fault._replace(plant=lambda: kernels())) == ""


def main(words=(), every=1):
    """Tries the faults whose names hold one of the words (every so many of them); how many went unnoticed."""
    chosen = [f for f in FAULTS if not words or any(w in f.name for w in words)][::every]
    missed = 0
    for fault in chosen:
        assert fine(fault), f"{fault.name}: the checks fail without it"
        how = noticed(fault)
        missed += not how
        print(f"{'noticed' if how else 'MISSED ':8s} {fault.name}: {how[:100]}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} noticed")
    return missed


if __name__ == "__main__":
    from kernels_numba import build  # noqa: F401  # imported once, before the forks

    rows()
    numbers = [int(a) for a in sys.argv[1:] if a.isdigit()]
    sys.exit(min(main([a for a in sys.argv[1:] if not a.isdigit()], *numbers), 1))
