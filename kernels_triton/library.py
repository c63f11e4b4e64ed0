"""Functions of the vendors' libraries that flush subnormal numbers of f32 to zero, and here do not; f64 is theirs.

NVIDIA's library is linked so that its f32 functions flush what they are given and what they give. Those of which
f(x) = x to the last bit where x is small answer that; the others work on scaled numbers, or in f64.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

NAMES = "floor ceil fmod exp2 erf sin tan asin atan sinh tanh asinh atanh expm1 log1p".split()


@triton.jit
def floor(x):
    """The integer at or below x."""
    if x.dtype == tl.float32:
        whole = libdevice.trunc(x)
        return tl.where(whole > x, whole - 1.0, whole)
    else:
        return tl.floor(x)


@triton.jit
def ceil(x):
    """The integer at or above x."""
    if x.dtype == tl.float32:
        whole = libdevice.trunc(x)
        return tl.where(whole < x, whole + 1.0, whole)
    else:
        return tl.ceil(x)


@triton.jit
def fmod(x, y):
    """The remainder of x / y, with the sign of x: exact. Remainders of a small y may be subnormal."""
    if x.dtype == tl.float32:
        small = tl.abs(y) < 7.888609052210118e-31  # 2 ** -100
        wide = libdevice.fmod(tl.where(small, x, 0.0).to(tl.float64), tl.where(small, y, 1.0).to(tl.float64))
        r = tl.where(small, wide.to(tl.float32), libdevice.fmod(x, y))
        return tl.where(tl.abs(x) < tl.abs(y), x, r)
    else:
        return libdevice.fmod(x, y)


@triton.jit
def exp2(x):
    """2 ** x."""
    if x.dtype == tl.float32:
        low = x < -100.0
        return libdevice.exp2(tl.where(low, x + 64.0, x)) * tl.where(low, 5.421010862427522e-20, 1.0)
    else:
        return libdevice.exp2(x)


@triton.jit
def erf(x):
    """The error function: 2 x / sqrt(pi) near 0."""
    if x.dtype == tl.float32:
        return tl.where(tl.abs(x) < 1e-20, x * 1.1283791670955126, libdevice.erf(x))
    else:
        return libdevice.erf(x)


@triton.jit
def _near_zero(x, y):
    """y = f(x), or x where it is the same."""
    if x.dtype == tl.float32:
        return tl.where(tl.abs(x) < 1e-20, x, y)
    else:
        return y


@triton.jit
def sin(x):
    """Sine."""
    return _near_zero(x, libdevice.sin(x))


@triton.jit
def tan(x):
    """Tangent."""
    return _near_zero(x, libdevice.tan(x))


@triton.jit
def asin(x):
    """Arc sine."""
    return _near_zero(x, libdevice.asin(x))


@triton.jit
def atan(x):
    """Arc tangent."""
    return _near_zero(x, libdevice.atan(x))


@triton.jit
def sinh(x):
    """Hyperbolic sine."""
    return _near_zero(x, libdevice.sinh(x))


@triton.jit
def tanh(x):
    """Hyperbolic tangent."""
    return _near_zero(x, libdevice.tanh(x))


@triton.jit
def asinh(x):
    """Inverse hyperbolic sine."""
    return _near_zero(x, libdevice.asinh(x))


@triton.jit
def atanh(x):
    """Inverse hyperbolic tangent."""
    return _near_zero(x, libdevice.atanh(x))


@triton.jit
def expm1(x):
    """e ** x - 1."""
    return _near_zero(x, libdevice.expm1(x))


@triton.jit
def log1p(x):
    """log(1 + x)."""
    return _near_zero(x, libdevice.log1p(x))
