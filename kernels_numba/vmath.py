"""exp and its relatives on f32 vectors of 16.

exp: Cody-Waite reduction by ln 2, Cephes' degree-6 polynomial; at most 2 ulp in [-87, 88.7], inf above, NaN kept.
"""

import numpy as np
from numba.extending import register_jitable

from .simd import I32x16, _const, _make, constant, fma, vmax, vmin, vround

_f, _i32x16 = np.float32, I32x16.ll
_CONSTANTS = {
    "log2e": 1.4426950408889634,
    "ln2_high": -0.693359375,
    "ln2_low": 2.12194440e-4,
    "p0": 5.0000001201e-1,
    "p1": 1.6666665459e-1,
    "p2": 4.1665795894e-2,
    "p3": 8.3334519073e-3,
    "p4": 1.3981999507e-3,
    "p5": 1.9875691500e-4,
    "one": 1.0,
    "low": -87.33654,
    "high": 89.0,  # from 88.73 on the result is inf, as it should be
    "zero": 0.0,
}
k_log2e, k_ln2_high, k_ln2_low, k_p0, k_p1, k_p2, k_p3, k_p4, k_p5, k_one, k_low, k_high, k_zero = (
    constant("f32", 16, float(_f(v))) for v in _CONSTANTS.values()
)


def _scale2(b, t, x, n):
    """x * 2**n for rounded n in [-126, 128], in two steps so that 2**128 does not overflow the exponent field"""
    i32 = b.fptosi(n, _i32x16)
    half = b.ashr(i32, _const(_i32x16, 1))
    for part in (half, b.sub(i32, half)):
        power = b.bitcast(b.shl(b.add(part, _const(_i32x16, 127)), _const(_i32x16, 23)), x.type)
        x = b.fmul(x, power)
    return x


def _keep_nan(b, t, x, y):
    """x where it is NaN (vmax and vmin may lose it), else y"""
    return b.select(b.fcmp_unordered("uno", x, x), x, y)


keep_nan = _make("keep_nan", lambda x, y: x, _keep_nan, 2)
scale2 = _make("scale2", lambda x, n: x, _scale2, 2)


@register_jitable
def vexp(x):
    """e**x for an f32 vector of 16; below -87.3 the smallest normal number, 1e-38: denormals are slow."""
    y = vmin(vmax(x, k_low()), k_high())
    n = vround(y * k_log2e())
    r = fma(n, k_ln2_low(), fma(n, k_ln2_high(), y))
    p = fma(k_p5(), r, k_p4())
    p = fma(p, r, k_p3())
    p = fma(p, r, k_p2())
    p = fma(p, r, k_p1())
    p = fma(p, r, k_p0())
    return keep_nan(x, scale2(fma(p, r * r, r) + k_one(), n))


@register_jitable
def vsigmoid(x):
    """1 / (1 + e**-x)"""
    return k_one() / (k_one() + vexp(k_zero() - x))


@register_jitable
def vsilu(x):
    """x / (1 + e**-x)"""
    return x / (k_one() + vexp(k_zero() - x))
