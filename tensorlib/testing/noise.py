"""How far rounding may take a result: its NumPy reference, run in arithmetic that rounds at random.

Every operation of the reference is followed by a relative error drawn from [-u, u], u the unit roundoff of the dtype
that the op computes in; a sum of n products gets one of gamma sum |a||b|. The spread over several runs is what a
backward stable computation may differ by: where terms cancel it is large, where nothing is rounded it is nothing. This
is Monte Carlo arithmetic (Parker, UCLA CSD-970002, 1997; Vignes, Math. Comput. Simul. 35, 1993), so bounds need no
constants per test, and a reference that only moves elements asks for equality.

>>> import numpy as np
>>> found = spread(lambda np, x, y: (x + y) - x, [np.array([1e6]), np.array([1.0])], {}, "f32")
>>> bool(0.01 < found.bounds[0][0] < 1), found.exact  # 1e6 * 2**-24 is 0.06
(True, False)
>>> spread(lambda np, x: np.flip(x), [np.arange(3.0)], {}, "f32").exact
True
"""

import warnings
from collections import namedtuple

import numpy as np

UNIT = {"f16": 2.0**-11, "bf16": 2.0**-8, "f32": 2.0**-24, "f64": 2.0**-53, "f8e4m3": 2.0**-4, "f8e5m2": 2.0**-3}
SMALLEST = {"f16": 2.0**-24, "bf16": 2.0**-133, "f32": 2.0**-149, "f64": 5e-324, "f8e4m3": 2.0**-9, "f8e5m2": 2.0**-16}
# intermediate results may be flushed to 0 where they are denormal
NORMAL = {"f16": 2.0**-14, "bf16": 2.0**-126, "f32": 2.0**-126, "f64": 2.0**-1022}
LARGEST = {"f16": 65504.0, "bf16": 3.3895e38, "f32": 3.4028235e38, "f64": np.inf}
RUNS = 12
FACTOR = 8  # an element whose error is below an eighth of what is possible in 12 runs out of 12: 8 ** -12
# kernels_numba/reduce.py sums blocks of 512 in 4 partial sums, then in f64: (512 / 4 + 8) u sum |x|; others add up
# at most so many terms one after the other before they change over to wider or separate sums
TERMS = 136

EXACT = set(
    "maximum minimum fmax fmin negative positive absolute fabs sign copysign floor ceil trunc rint clip signbit isnan"
    " isinf isfinite equal not_equal less less_equal greater greater_equal logical_and logical_or logical_xor"
    " logical_not bitwise_and bitwise_or bitwise_xor invert heaviside nextafter gcd lcm left_shift right_shift"
    " isposinf isneginf".split()
)
ROUNDED = {"add", "subtract", "multiply", "divide", "true_divide", "sqrt", "square", "reciprocal"}  # rounded once
PRODUCTS = {"dot", "einsum", "tensordot", "inner", "vdot", "convolve", "correlate", "matmul", "vecdot"}
STRUCTURAL = {"unique", "tile", "pad", "nonzero", "argwhere", "searchsorted", "argsort", "argmax", "argmin", "sort"}
STRUCTURAL |= {"take_along_axis", "diag", "tril", "triu", "rot90", "meshgrid"}

Spread = namedtuple("Spread", "exact operations bounds decided")
Spread.__doc__ = """exact: nothing was rounded. operations: names of what rounded. bounds: per result, how far it may be
off, or None where it is exact. decided: per result, where rounding does not change what it is (an integer, a NaN)."""


class _Run:
    """One run: its random numbers, what it rounds to, and what rounded."""

    def __init__(self, seed, unit, smallest, largest, scale):
        self.rng, self.unit, self.smallest, self.largest = np.random.default_rng(seed), unit, smallest, largest
        self.scale, self.operations = scale, []

    def noise(self, shape):
        return self.rng.uniform(-self.unit * self.scale, self.unit * self.scale, shape)

    def rounded(self, x, terms=None):
        """x with an error of the rounding, and one of many terms whose sizes add up to `terms`."""
        x = np.asarray(x)
        if x.dtype.kind != "f":
            return _wrap(x, self)
        tiny = self.rng.uniform(-1, 1, x.shape) * (self.smallest * self.scale)
        found = x + x * self.noise(x.shape) + tiny
        found = np.where(x == 0, x, found)
        if terms is not None:
            found = found + terms * self.noise(x.shape)
            found = np.where(np.asarray(terms) > self.largest, np.inf, found)
        return _wrap(np.where(np.abs(found) > self.largest, np.copysign(np.inf, found), found), self)


class Noisy(np.ndarray):
    """An array whose arithmetic rounds at random."""

    def __array_finalize__(self, other):
        self.run = getattr(other, "run", None)

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        run = next(x.run for x in (*inputs, *(out or ())) if isinstance(x, Noisy))
        plain = [_plain(x) for x in inputs]
        if out is not None:
            kwargs["out"] = tuple(_plain(x) for x in out)
        kwargs = {k: _plain(v) if k in ("where", "initial") else v for k, v in kwargs.items()}
        name = ufunc.__name__
        if method == "at" and plain[0].dtype.kind == "f":  # in place, the target first
            terms = np.abs(plain[0])
            ufunc.at(terms, plain[1], *(np.abs(x) for x in plain[2:]))
            ufunc.at(*plain)
            if name not in EXACT:
                run.operations.append(f"{name}.at")
                plain[0][...] = _plain(run.rounded(plain[0], TERMS * terms))
            return None
        result = getattr(ufunc, method)(*plain, **kwargs)
        if result is None:
            return None
        if name in EXACT or (name in ("multiply", "add") and all(np.asarray(x).dtype.kind != "f" for x in plain)):
            return _each(result, lambda r: _wrap(r, run))
        run.operations.append(name if method == "__call__" else f"{name}.{method}")
        noisy = _each(result, lambda r: run.rounded(r, _terms(ufunc, method, plain, kwargs, run.largest)))
        if out is not None:
            for target, value in zip(out, noisy if type(noisy) is tuple else (noisy,)):
                _plain(target)[...] = value
            return out if type(noisy) is tuple else out[0]
        return noisy

    def __array_function__(self, function, types, args, kwargs):
        name, module = function.__name__, getattr(function, "__module__", "") or ""
        if module.startswith(("numpy.linalg", "numpy.fft")) or name in PRODUCTS:
            return self._noisy_call(function, name, args, kwargs, products=name in PRODUCTS)
        result = super().__array_function__(function, types, args, kwargs)
        if name in STRUCTURAL or not _lost(result):
            return _each(result, lambda r: _wrap(r, self.run))
        return self._noisy_call(function, name, args, kwargs)

    def _noisy_call(self, function, name, args, kwargs, products=False):
        """A function that is not made of ufuncs: its operands carry the errors, or its products."""
        run = self.run
        run.operations.append(name)
        plain, options = _map(args, _plain), _map(kwargs, _plain)
        if products:
            sizes = function(*_map(plain, _size), **options)
            return run.rounded(function(*plain, **options), TERMS * np.abs(sizes))
        norm = (lambda x: np.max(np.abs(x), initial=0.0)) if function.__module__ != "numpy" else np.abs
        shaken = _map(plain, lambda x: x + TERMS / FACTOR * run.noise(x.shape) * norm(x) if _is_inexact(x) else x)
        return _each(function(*shaken, **options), run.rounded)


def _terms(ufunc, method, inputs, kwargs, largest):
    """The sum of the sizes of the terms of a sum, times how many of their roundings may add up."""
    if ufunc.__name__ in ("matmul", "vecdot") and method == "__call__":
        return TERMS * ufunc(*(np.abs(x) for x in inputs))
    x, options = np.asarray(inputs[0]), {k: v for k, v in kwargs.items() if k != "out"}
    if method in ("reduce", "accumulate", "reduceat"):
        run = lambda f, v: getattr(f, method)(v, *inputs[1:], **options)  # noqa: E731
        if ufunc.__name__ == "add":
            return TERMS * run(ufunc, np.abs(x))
        if ufunc.__name__ == "multiply":  # parts of the product may leave the range though the whole does not
            high, low = run(ufunc, np.fmax(np.abs(x), 1)), run(ufunc, np.where(x == 0, 1, np.fmin(np.abs(x), 1)))
            lost = (high > largest) | (low < 1 / largest)
            return np.where(lost, np.inf, np.abs(run(ufunc, x)) * min(TERMS, max(x.size, 1)))
        if ufunc.__name__ == "logaddexp":
            return run(np.maximum, np.where(np.isfinite(x), np.abs(x), 1)) * min(TERMS, max(x.size, 1))
    if ufunc.__name__ in ("logaddexp", "logaddexp2"):  # max(x, y) + log1p(...): the two may cancel
        sizes = (np.where(np.isfinite(v), np.abs(v), 1) for v in inputs)
        return 2 * np.maximum(*sizes)
    return None


def _is_float(x):
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def _is_inexact(x):
    return isinstance(x, np.ndarray) and x.dtype.kind in "fc"


def _size(x):
    return np.abs(x) if _is_float(x) else x


def _plain(x):
    return x.view(np.ndarray) if isinstance(x, Noisy) else x


def _wrap(x, run):
    if isinstance(x, (np.ndarray, np.generic)) and not isinstance(x, Noisy):
        x = np.asarray(x).view(Noisy)
    if isinstance(x, Noisy):
        x.run = run
    return x


def _each(result, function):
    if isinstance(result, (tuple, list)):
        made = [function(r) for r in result]
        return type(result)(*made) if hasattr(result, "_fields") else type(result)(made)
    return function(result)


def _map(x, function):
    if isinstance(x, (tuple, list)):
        return type(x)(_map(v, function) for v in x)
    if isinstance(x, dict):
        return {k: _map(v, function) for k, v in x.items()}
    return function(x)


def _lost(result):
    """Whether a float result came back without its noise."""
    some = result if isinstance(result, (tuple, list)) else (result,)
    return any(isinstance(r, (np.ndarray, np.floating)) and not isinstance(r, Noisy) and _float(r) for r in some)


def _float(x):
    return np.asarray(x).dtype.kind == "f"


def quietly(function, *args, **kwargs):
    """Calls without the warnings of NumPy: NaN and infinities are cases like others."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


def several(result):
    """The results of a call as a list."""
    return list(result) if isinstance(result, (tuple, list)) else [result]


def spread(ref, args, kwargs, dtype):
    """A `Spread` of ref(np, *args, **kwargs), computed in `dtype` ("f32", "f64", or a narrower one that every step
    rounds to).
    """
    # f64 has no wider dtype to be noisy in: its errors are those of f32, scaled, as far as they are linear
    scale = 2.0**29 if dtype == "f64" else 1.0
    exact = [np.array(_plain(np.asarray(r))) for r in several(quietly(ref, np, *args, **kwargs))]
    bounds = [np.zeros(r.shape) if r.dtype.kind == "f" else None for r in exact]
    decided = [np.ones(r.shape, bool) for r in exact]
    for seed in range(RUNS):
        run = _Run(seed, UNIT[dtype], NORMAL[dtype], LARGEST[dtype], scale)
        noisy = _map(list(args), lambda x, r=run: _wrap(x.copy(), r) if _is_float(x) else x)
        options = _map(kwargs, lambda x, r=run: _wrap(x.copy(), r) if _is_float(x) else x)
        found = several(quietly(ref, np, *noisy, **options))
        plain = lambda f: isinstance(f, (np.ndarray, np.generic)) and not isinstance(f, Noisy) and _float(f)  # noqa: E731
        lost = any(plain(f) for f in found) and not run.operations
        if lost:  # the reference left arithmetic that is seen here: a result rounded once
            run.operations.append("unseen")
        if not run.operations or (len(run.operations) == 1 and run.operations[0] in ROUNDED):
            return Spread(not run.operations, tuple(run.operations), bounds, decided)
        for i, (f, e) in enumerate(zip(found, exact)):
            _widen(i, np.asarray(_plain(f)), e, bounds, decided)
    bounds = [None if b is None else FACTOR * b / scale for b in bounds]
    return Spread(False, tuple(run.operations), bounds, decided)


def _widen(i, found, exact, bounds, decided):
    if found.shape != exact.shape:  # how many there are depends on rounding
        decided[i][...] = False
    elif bounds[i] is None:
        decided[i] &= found == exact
    else:
        decided[i] &= np.isfinite(found) == np.isfinite(exact)
        with np.errstate(all="ignore"):
            bounds[i] = np.fmax(bounds[i], np.where(found == exact, 0, np.abs(found - exact)))
