"""Optimisers' steps: all parameters of a group in one launch, each element read and written once.

Words: number of parameters, the sum of their elements, nine numbers (f64), then per parameter its elements, its
address, its gradient's and those of its states. All are contiguous; parameter and gradient of the kernel's dtype,
states f32 (f64 for f64). What the numbers mean is said per row of `STEPS`; the first three are common to all: `scale`
multiplies the gradient (a sign, a loss scale's inverse, a clip), `l2` adds so much of the parameter to it, `decay`
multiplies the parameter (decoupled weight decay: 1 - lr * weight_decay).
"""

from typing import NamedTuple

from . import simd
from .lanes import F64, MEMORY, greater, inline
from .simd import _llvm, _make

NUMBERS = 9


class Step(NamedTuple):
    """A row: names of its states, names of its numbers after the common three, lines from g and p to the new p."""

    states: tuple
    numbers: tuple
    lines: tuple


_ADAM = ("m = fma(g - m, mix1, m)", "v = fma(g * mix2, g, beta2 * v)")
_NORMED = "p = p - rate * (m / fma(vsqrt({v}), unbias, eps))"

# mix is what of the new enters an average, keep what of the old stays; rate is the step size
STEPS = {
    "sgd": Step((), ("rate",), ("p = p - rate * g",)),
    "momentum": Step(("m",), ("rate", "keep", "mix"), ("m = fma(keep, m, mix * g)", "p = p - rate * m")),
    "nesterov": Step(("m",), ("rate", "keep", "mix"), ("m = fma(keep, m, mix * g)", "p = p - rate * fma(keep, m, g)")),
    "adam": Step(("m", "v"), ("rate", "mix1", "beta2", "mix2", "unbias", "eps"), (*_ADAM, _NORMED.format(v="v"))),
    "amsgrad": Step(
        ("m", "v", "top"),
        ("rate", "mix1", "beta2", "mix2", "unbias", "eps"),
        (*_ADAM, "top = greater(v, top)", _NORMED.format(v="top")),
    ),
    "adagrad": Step(("v",), ("rate", "eps"), ("v = fma(g, g, v)", "p = p - rate * (g / (vsqrt(v) + eps))")),
    "rmsprop": Step(
        ("v", "m"),
        ("rate", "beta2", "mix2", "eps", "keep"),
        ("v = fma(g * mix2, g, beta2 * v)", "m = fma(keep, m, g / (vsqrt(v) + eps))", "p = p - rate * m"),
    ),
    "rmsprop_centred": Step(
        ("v", "m", "mean"),
        ("rate", "beta2", "mix2", "eps", "keep"),
        (
            "v = fma(g * mix2, g, beta2 * v)",
            "mean = fma(g - mean, mix2, mean)",
            "m = fma(keep, m, g / (vsqrt(v - mean * mean) + eps))",
            "p = p - rate * m",
        ),
    ),
    "lion": Step(
        ("m",),
        ("rate", "mix1", "mix2"),
        ("p = p - rate * vsign(fma(g - m, mix1, m))", "m = fma(g - m, mix2, m)"),
    ),
}

vsqrt = _llvm("vsqrt", 1, "sqrt")


def _sign(b, t, x):
    """-1, 0 or 1; NaN stays"""
    zero, one = (simd._const(x.type, v) for v in (0.0, 1.0))
    signed = b.select(b.fcmp_ordered("<", x, zero), b.fneg(one), x)
    return b.select(b.fcmp_ordered(">", x, zero), one, signed)


vsign = _make("vsign", lambda x: x, _sign, 1)


def _source(step):
    states = step.states
    addresses = ", ".join(f"a_{name}" for name in states)
    given = ", ".join(("scale", "l2", "decay", *step.numbers))
    lines = [f"{name} = state_part(a_{name} + j * state_size, n)" for name in states]
    lines += ["p = part(a_p + j * size, n)", "g = fma(l2, p, scale * part(a_g + j * size, n))", "p = decay * p"]
    lines += [*step.lines, "put(a_p + j * size, p, n)"]
    lines += [f"state_put(a_{name} + j * state_size, {name}, n)" for name in states]
    body = "\n    ".join(lines)
    splats = "\n    ".join(f"{name} = splat(argf(a, {2 + i}))" for i, name in enumerate(given.split(", ")))
    reads = "\n        ".join(f"a_{name} = arg(w, {3 + i})" for i, name in enumerate(states))
    call = f"a_p, a_g, {addresses + ', ' if addresses else ''}{given}"
    return f"""
def update(j, n, {call}):
    {body}


def step(a, tid, nth):
    count, total = arg(a, 0), arg(a, 1)
    {splats}
    begin, end = total * tid // nth, total * (tid + 1) // nth
    w, at = a + 8 * {2 + NUMBERS}, 0
    for i in range(count):
        n, a_p, a_g = arg(w, 0), arg(w, 1), arg(w, 2)
        {reads or "pass"}
        low = max(begin - at, 0) // lanes * lanes
        high = n if end - at >= n else max(end - at, 0) // lanes * lanes
        for j in range(low, high - lanes + 1, lanes):
            update(j, lanes, {call})
        whole = low + max(high - low, 0) // lanes * lanes
        if whole < high:
            update(whole, high - whole, {call})
        at += n
        w += 8 * {3 + len(states)}
"""


def build(name, *params, source=None):
    """STEP dtype: the kernel of a row for f32, f64, f16 or bf16; None for others."""
    if name not in STEPS or len(params) != 1 or params[0] not in ("f64", *MEMORY):
        return None
    scope = {**vars(simd), "greater": greater, "vsqrt": vsqrt, "vsign": vsign}
    if params[0] == "f64":
        own, state, splat = F64, F64, simd.splat_f64x8
    else:
        own, state, splat = MEMORY[params[0]], MEMORY["f32"], simd.splat_f32x16
    scope |= {"part": own.part, "put": own.put, "state_part": state.part, "state_put": state.put}
    scope |= {"size": own.size, "state_size": state.size, "lanes": 64 // state.size, "splat": splat}
    exec(compile(_source(STEPS[name]), f"<optim {name}>", "exec"), scope)
    scope["update"] = inline(scope["update"])
    return scope["step"]
