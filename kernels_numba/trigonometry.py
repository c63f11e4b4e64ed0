"""Sines and their inverses, from additions and multiplications; exact argument reduction for any finite number.

Errors measured against 60 digits: at most 0.51 ulp in f32 (computed in f64 and rounded), 3 ulp in f64.
See `functions.py` for how this source is compiled.
"""

from numba import uint64

from .exponentials import log, log1p
from .marks import I0, I1, I2, INF, f32, f64, plain, poly
from .scalar import (
    bits32,
    bits64,
    caster,
    copysign,
    fabs,
    fma,
    mulhi,
    product_error,
    quarters,
    rint,
    select,
    sqrt,
    table,
    to_f32,
    to_f64,
)  # fmt: skip

to_i64 = caster("i64")

# ---- trigonometry ----------------------------------------------------------------------------------------------------

_TWO_OVER_PI = int(
    "a2f9836e4e441529fc2757d1f534ddc0db6295993c439041fe5163abdebbc561b7246e3a424dd2e006492eea09d1921cfe1deb1cb129a73ee88235f52ebb"
    "4484e99c7026b45f7e413991d639835339f49c845f8bbdf9283b1ff897ffde05980fef2f118b5a0a6d1f6d367ecf27cb09b74f463f669e5fea2d7527bac7"
    "ebe5f17b3d0739f78a5292ea6bfb5fb11f8d5d0856033046fc7b6bab",
    16,
)  # 2 / pi * 2**1216


def _turns(exponent):
    """2**exponent * 2 / pi modulo 4 as two doubles;
    the first has 29 bits, so that its product with 24 bits is exact.
    """
    value = (_TWO_OVER_PI << (exponent + 200)) & ((4 << 1416) - 1)
    drop = max(value.bit_length() - 29, 0)
    high = value >> drop << drop
    return tuple(v / (1 << 1416) for v in (high, value - high))


_TURNS = [_turns(max(e, 1) - 150) for e in range(255)] + [(0.0, 0.0)]
turns_high, turns_low = (table(f"turns_{i}", [t[i] for t in _TURNS], "f64") for i in range(2))
# one word of zeros, then the bits of 2 / pi
pi_words = table("pi_words", [(_TWO_OVER_PI >> (1216 - 64 * i)) & ((1 << 64) - 1) for i in range(20)], "u64")


@plain
def quarter_turns_f32(x):
    """|x| = (n + f) pi / 2 for any finite f32, |f| <= 1/2. x = m 2**e; the tables hold 2**e 2 / pi modulo 4."""
    bits = bits32(fabs(x))
    e = bits >> 23
    m = to_f64((bits & 0x7FFFFF) | (min(e, 1) << 23))
    q = m * turns_high(e)
    shifted = q + 6755399441055744.0  # 1.5 * 2**52: leaves the nearest integer in the low bits
    return quarters(shifted), fma(m, turns_low(e), q - (shifted - 6755399441055744.0))


@plain
def window(word, shift):
    """64 bits of the table from bit 64 word + shift on"""
    high = pi_words(word) << shift
    return high | (pi_words(word + 1) >> (uint64(64) - shift)) if shift > uint64(0) else high


@plain
def large_turns(a):
    """|x| = n pi / 2 + r + s for large f64, after Payne and Hanek:
    a = m 2**e times the 192 bits of 2 / pi that matter.
    """
    raw = bits64(a)
    first = to_i64(raw >> uint64(52)) - 1075 + 62  # weights above 2 give multiples of 4 turns
    m = (raw & uint64(0xFFFFFFFFFFFFF)) | uint64(0x10000000000000)
    word, shift = first >> 6, uint64(first & 63)
    w0, w1, w2 = window(word, shift), window(word + 1, shift), window(word + 2, shift)
    part = m * w1
    mid = part + mulhi(m, w2)
    top = m * w0 + mulhi(m, w1) + (uint64(1) if mid < part else uint64(0))
    high = to_i64((top << uint64(2)) | (mid >> uint64(62)))  # signed: a fraction above 1/2 counts from the next turn
    low = (mid << uint64(2)) | (m * w2 >> uint64(62))
    n = to_i64(top >> uint64(62)) + (1 if high < 0 else 0)
    f = to_f64(high)
    g = (to_f64(high - to_i64(f)) + to_f64(low) * 5.421010862427522e-20) * 5.421010862427522e-20
    f = f * 5.421010862427522e-20
    r = f * 1.5707963267948966
    return n, r, product_error(f, 1.5707963267948966, r) + g * 1.5707963267948966 + f * 6.123233995736766e-17


@plain
def quarter_turns_f64(x):
    """|x| = n pi / 2 + r + s; pi / 2 in three parts (33 + 33 + 53 bits) for small n"""
    a = abs(x)
    if not a < 1e6:
        return large_turns(a)
    n = rint(a * 0.6366197723675814)
    r, p = a - n * 1.57079632673412561417, n * 6.07710050630396597660e-11
    high = r - p
    back = high - r
    return to_i64(n), high, (r - (high - back)) - (p + back) - n * 2.02226624879595063154e-21


@plain
def sine_part(r, s):
    z = r * r
    p = poly(
        z, -0.16666666666666664365, 0.0083333333333306993363, -0.00019841269836385434484, 2.7557315910939001563e-6,
        -2.5051092308431316672e-8, 1.5915309183057952557e-10,
    )  # fmt: skip
    return r + (r * z * p + s * (1.0 - 0.5 * z))


@plain
def cosine_part(r, s):
    z = r * r
    p = poly(
        z, 0.041666666666666665227, -0.0013888888888887241376, 0.000024801587298532259045, -2.7557317151864553e-7,
        2.0876121534608455566e-9, -1.1380868171449913386e-11,
    )  # fmt: skip
    h = 0.5 * z
    w = 1.0 - h
    return w + (((1.0 - w) - h) + (z * z * p - r * s))


@plain
def sine_short(r):
    z = r * r
    p = poly(z, -0.16666666663622831882, 0.0083333317852176954016, -0.00019840038872556747687, 2.724378140946122915e-6)
    return fma(r * z, p, r)


@plain
def cosine_short(r):
    z = r * r
    p = poly(z, 0.041666666664127211898, -0.001388888759732781124, 0.000024800560429914503467, -2.729583082761461564e-7)
    return fma(z * z, p, fma(z, -0.5, 1.0))


@plain
def both_short(x):
    """n, sin and cos of the angle left after n quarter turns, in f64 to 30 bits; NaN for what is not finite"""
    n, f = quarter_turns_f32(x)
    r = f * 1.5707963267948966 + to_f64(x - x)
    return n, sine_short(r), cosine_short(r)


@plain
def both_parts(x):
    n, r, s = quarter_turns_f64(x)
    s += x - x
    return n, sine_part(r, s), cosine_part(r, s)


@f32
def sin(x):
    n, s, c = both_short(x)
    v = to_f32(select((n & I1) != I0, c, s)) * copysign(1.0, x)
    return select((n & I2) != I0, -v, v)


@f64
def sin(x):  # noqa: F811
    n, s, c = both_parts(x)
    v = select((n & I1) != I0, c, s) * copysign(1.0, x)
    return select((n & I2) != I0, -v, v)


@f32
def cos(x):
    n, s, c = both_short(x)
    v = to_f32(select((n & I1) != I0, s, c))
    return select(((n + I1) & I2) != I0, -v, v)


@f64
def cos(x):  # noqa: F811
    n, s, c = both_parts(x)
    v = select((n & I1) != I0, s, c)
    return select(((n + I1) & I2) != I0, -v, v)


@f32
def tan(x):
    n, s, c = both_short(x)
    return to_f32(select((n & I1) != I0, -c / s, s / c)) * copysign(1.0, x)


@f64
def tan(x):  # noqa: F811
    n, s, c = both_parts(x)
    return select((n & I1) != I0, -c / s, s / c) * copysign(1.0, x)


# ---- inverse and hyperbolic: f64 only, f32 rounds them ---------------------------------------------------------------


@f64
def atan_unit(t):
    """arc tangent on [0, 1]: above 0.66, pi / 4 + atan((t - 1) / (t + 1)); rational function of Cephes' atan.c"""
    large = t > 0.66
    y = select(large, (t - 1.0) / (t + 1.0), t)
    z = y * y
    p = poly(
        z, -6.485021904942025371773e1, -1.228866684490136173410e2, -7.500855792314704667340e1,
        -1.615753718733365076637e1, -8.750608600031904122785e-1,
    )  # fmt: skip
    q = poly(
        z, 1.945506571482613964425e2, 4.853903996359136964868e2, 4.328810604912902668951e2, 1.650270098316988542046e2,
        2.485846490142306297962e1, 1.0,
    )  # fmt: skip
    value = y * (z * p / q) + y
    return select(large, 0.7853981633974483 + (value + 3.061616997868383e-17), value)


@f64
def atan2(y, x):
    ax, ay = fabs(x), fabs(y)
    swap = ay > ax
    num, den = select(swap, ax, ay), select(swap, ay, ax)
    t = select((num == INF) & (den == INF), 1.0, select(den == 0.0, num, num / den))
    a = atan_unit(t)
    a = select(swap, 1.5707963267948966 - (a - 6.123233995736766e-17), a)
    a = select(copysign(1.0, x) < 0.0, 3.141592653589793 - (a - 1.2246467991473532e-16), a)
    return copysign(a, y)


@f64
def atan(x):
    return atan2(x, 1.0)


@f64
def asin(x):
    return atan2(x, sqrt((1.0 - x) * (1.0 + x)))


@f64
def acos(x):
    return 2.0 * atan2(sqrt(1.0 - x), sqrt(1.0 + x))


@f64
def asinh(x):
    a = fabs(x)
    b = select(a > 268435456.0, 1.0, a)
    small = log1p(b + b * b / (1.0 + sqrt(b * b + 1.0)))
    return copysign(select(a > 268435456.0, log(a) + 0.6931471805599453, small), x)


@f64
def acosh(x):
    t = select(x > 268435456.0, 1.0, x) - 1.0
    return select(x > 268435456.0, log(x) + 0.6931471805599453, log1p(t + sqrt(t) * sqrt(t + 2.0)))


@f64
def atanh(x):
    a = fabs(x)
    return copysign(0.5 * log1p(2.0 * a / (1.0 - a)), x)
