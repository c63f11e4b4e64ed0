"""Gradients against central differences, in f64, with a tolerance that follows from the differences themselves.

Two steps h and h / 2 tell how far the difference is from the limit (truncation, of order h^2: 4/3 of what they differ
by), the size of the values how far rounding may move it (eps |f| / h). Where the function bends within the step, which
shows in the function alone, nothing is compared.

>>> import numpy as np
>>> gradcheck(lambda x, y: (x * y).exp(), [np.array([0.5, 1.0]), np.array([2.0, -1.0])])
4
"""

import numpy as np

from tensorlib import autograd
from tensorlib.device import Array
from tensorlib.tensor import from_numpy

STEP = 2.0**-17  # near eps ** (1/3): truncation and rounding cost about the same
EPS = 2.0**-52


def _tensor(x):
    return from_numpy(np.array(x, np.float64))


def _results(function, inputs):
    out = function(*inputs)
    out = out if isinstance(out, (tuple, list)) else (out,)
    return [o for o in out if isinstance(o, Array) and o.dtype.kind == "f"]


def _weights(results, seed):
    rng = np.random.default_rng(seed)
    return [rng.uniform(0.5, 1.5, o.shape) * rng.choice([-1.0, 1.0], o.shape) for o in results]


def _slopes(results, leaves, weights):
    """Gradients of sum(weights results); None: of what no result depends on."""
    live = [(o, w) for o, w in zip(results, weights) if o.requires_grad]
    if not live:
        return [None] * len(leaves)
    given = [from_numpy(w).to(o.dtype).to(o.device) for o, w in live]
    return autograd.grad([o for o, _ in live], leaves, given, allow_unused=True)


def of(function, leaves, seed=0):
    """Gradients of sum(w function(leaves)), w drawn: Tensors or None. The leaves are Tensors of any device."""
    results = _results(function, leaves)
    return _slopes(results, leaves, _weights(results, seed))


def gradcheck(function, inputs, seed=0, most=24):
    """Compares d(sum w f(inputs)) / d(inputs), w drawn, with central differences; how many derivatives were compared.

    function: of Tensors of dtype f64, gives one or several Tensors. inputs: f64 arrays (NumPy or Tensors), small: each
    element costs five calls, so that of an input at most `most` are looked at. AssertionError names the first
    derivative that is off.
    """
    inputs = [np.array(x.numpy() if isinstance(x, Array) else x, np.float64) for x in inputs]
    leaves = [_tensor(x).requires_grad_() for x in inputs]
    results = _results(function, leaves)
    weights = _weights(results, seed)
    found = _slopes(results, leaves, weights)

    def value(changed):
        with autograd.no_grad():
            out = [o.numpy().astype(np.float64) for o in _results(function, [_tensor(x) for x in changed])]
        terms = [w * o for w, o in zip(weights, out)]
        return sum(float(np.sum(t)) for t in terms), sum(float(np.sum(np.abs(t))) for t in terms)

    compared, rng = 0, np.random.default_rng(seed)
    for k, (x, g) in enumerate(zip(inputs, found)):
        slope = np.zeros(x.shape) if g is None else g.numpy()
        assert slope.shape == x.shape, f"gradient of input {k}: got shape {slope.shape}, want {x.shape}"
        places = list(np.ndindex(x.shape))
        if len(places) > most:
            places = [places[p] for p in rng.choice(len(places), most, replace=False)]
        for i in places:
            compared += _compare(value, inputs, k, i, float(slope[i]))
    return compared


def _compare(value, inputs, k, i, slope):
    """Whether a derivative could be compared: 1 or 0."""

    def at(distance):
        changed = [x.copy() if n == k else x for n, x in enumerate(inputs)]
        changed[k][i] += distance
        return value(changed)

    x = inputs[k][i]
    h = STEP * max(1.0, abs(x))
    h = (x + h) - x  # a step that the number really makes
    (up, size), (down, _), (half_up, _), (half_down, _), (here, _) = (at(d) for d in (h, -h, h / 2, -h / 2, 0.0))
    if not all(map(np.isfinite, (up, down, half_up, half_down, here))):
        return 0
    rounding = 64 * EPS * (size + abs(here) + max(np.max(np.abs(v), initial=0.0) for v in inputs)) / h
    coarse, fine = (up - down) / (2 * h), (half_up - half_down) / h
    bend, half_bend = (up - 2 * here + down) / h, 2 * (half_up - 2 * here + half_down) / h
    if abs(half_bend) > 0.6 * abs(bend) + 8 * rounding:  # h f'' halves with h; a kink or a jump does not
        return 0
    tolerance = 4 * abs(coarse - fine) + rounding + 64 * EPS * abs(slope) + STEP**2 * abs(fine)
    if tolerance > 1e-3 * max(1.0, abs(fine)):  # too rough to say anything
        return 0
    best = (4 * fine - coarse) / 3
    error = abs(slope - best)
    assert error <= tolerance, (
        f"gradient of input {k} at {tuple(int(n) for n in i)}, {x!r}: got {slope!r}, want {best!r}: off by {error:.3g},"
        f" {tolerance:.3g} are allowed"
    )
    return 1


def gradgradcheck(function, inputs, seed=0, most=8):
    """`gradcheck` of the gradient: of d(sum w f(inputs)) / d(inputs) with respect to the inputs and to w."""
    inputs = [np.array(x.numpy() if isinstance(x, Array) else x, np.float64) for x in inputs]
    with autograd.no_grad():
        shapes = [o.shape for o in _results(function, [_tensor(x) for x in inputs])]
    rng = np.random.default_rng(seed)
    weights = [rng.uniform(0.5, 1.5, shape) for shape in shapes]

    def gradient(*given):
        leaves, w = [x if x.requires_grad else x.requires_grad_() for x in given[: len(inputs)]], given[len(inputs) :]
        with autograd.enable_grad():
            results = _results(function, leaves)
            pairs = [(o, v) for o, v in zip(results, w) if o.requires_grad]
            found = autograd.grad(
                [o for o, _ in pairs], leaves, [v for _, v in pairs], create_graph=True, allow_unused=True
            )
        return tuple(g for g in found if g is not None)

    return gradcheck(gradient, [*inputs, *weights], seed, most)
