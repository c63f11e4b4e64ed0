"""Checks of kernels and ops that write themselves: drawn arguments, a NumPy reference, bounds that rounding dictates.

A kernel of your own, in five lines of a notebook:

>>> import tensorlib
>>> from tensorlib import testing
>>> def softplus2(x):
...     return (x.exp() + 1).log()
>>> testing.check(softplus2, lambda np, x: np.log(np.exp(x) + 1), domain=(-10, 10), gradient=True)

Silence says that shapes from 0-d to thousands of elements, strides of any kind, NaN, infinities and denormals in f32
and f64 all gave what the reference in float64 gives, as far as rounding may take it, and that the gradient is the
slope.
A mistake is shrunk to a small case and printed with the line that brings it back:

>>> testing.check(softplus2, lambda np, x: np.logaddexp(x, 0), domain=(-1000, 1000))
Traceback (most recent call last):
AssertionError: softplus2(f32[] strides () ...): 1 of 1 differ: got inf, want ... at (): inf ulp of f32, ... are allowed
Failing test case: run(
...
You can reproduce this test case by temporarily adding @reproduce_failure(...) as a decorator on your test function

What a call may be is drawn by a `Sampler`: `domain(s, dtype)` returns (args, kwargs). The rows of `tensorlib.registry`
are checked like this, all of them: `check_op`, `cases`. Needs the package hypothesis.
"""

import importlib

_FROM = {
    "sampler": ("Sampler", "drawn", "seeded"),
    "compare": ("assert_close",),
    "noise": ("spread",),
    "gradients": ("gradcheck", "gradgradcheck"),
    "memory": ("guarded", "watched"),
    "rows": ("cases", "check_gradient", "check_op", "missing"),
    "calls": ("check", "few"),
}
_WHERE = {name: module for module, names in _FROM.items() for name in names}
__all__ = list(_WHERE)


def __getattr__(name):
    """The functions of the modules here, when first used: importing this imports nothing."""
    if name not in _WHERE:
        raise AttributeError(f"module 'tensorlib.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tensorlib.testing.{_WHERE[name]}"), name)
