"""Powers, remainders and choices between two numbers.

Powers are within 2 ulp (0.51 in f32); remainders are exact. See `functions.py` for how this source is compiled.
"""

from .exponentials import exp, log, log_parts
from .marks import INF, NAN, both, f32, f64, poly
from .scalar import copysign, fabs, floor, product_error, select, to_f32, to_f64, trunc


@f64
def pow_ends(x, y, value):
    """Signs and special values of x**y, given |x|**y."""
    whole = trunc(y) == y
    half = y * 0.5
    odd = whole & (trunc(half) != half)
    signed = select(odd, -value, select(whole, value, select(fabs(x) == INF, value, select(x == 0.0, value, NAN))))
    value = select(copysign(1.0, x) < 0.0, signed, value)
    value = select(fabs(x) == 1.0, select(fabs(y) == INF, 1.0, value), value)
    return select(y == 0.0, 1.0, select(x == 1.0, 1.0, value))


@f64
def short_pow(x, y):
    """Enough for f32: |y log x| < 104 has an error of 2e-14"""
    return pow_ends(x, y, exp(y * log(fabs(x))))


@f64
def log_in_two(a):
    """log a as high + low with 64 bits: 2 s + 2 s^3 / 3 in two parts, the rest, 2**-11 of it, in one"""
    k, f = log_parts(a)
    d = 2.0 + f
    s = f / d
    p = s * d
    sl = ((f - p) - product_error(s, d, p) - s * (f - (d - 2.0))) / d
    z = s * s
    zl = product_error(s, s, z) + 2.0 * s * sl
    c = z * 0.6666666666666666
    cl = product_error(z, 0.6666666666666666, c) + zl * 0.6666666666666666 + z * 3.700743415417188e-17
    b = c * s
    bl = product_error(c, s, b) + c * sl + cl * s
    tail = s * z * z * poly(
        z, 0.39999999999999999802, 0.28571428571429423897, 0.22222222221620759069, 0.18181818343316126155,
        0.15384594120126369419, 0.13334850282547114303, 0.11705021567538628013, 0.11735818855512967477,
    )  # fmt: skip
    high = 2.0 * s + b
    low = (b - (high - 2.0 * s)) + (bl + 2.0 * sl + tail)
    kh = k * 6.93147180369123816490e-01
    total = kh + high
    low = (high - (total - kh)) + low + k * 1.90821492927058770002e-10
    high = total + low
    return high, low - (high - total)


@f64
def pow(x, y):
    a = fabs(x)
    high, low = log_in_two(a)
    high = select(a == 0.0, -INF, select(a < INF, high, a))
    p = y * high
    pl = product_error(y, high, p) + y * low
    return pow_ends(x, y, exp(p) * (1.0 + select(fabs(p) < 800.0, pl, 0.0)))


@both
def fmod_step(a, b):
    """a mod b for 0 <= a < 2**22 b: exact, as the product's error is put back"""
    q = trunc(a / b)
    p = q * b
    r = (a - p) - product_error(q, b, p)
    r = select(r < 0.0, r + b, r)
    return select(r >= b, r - b, r)


@both
def fmod(x, y):
    a, b = fabs(x), fabs(y)
    ok = (a < INF) & (b > 0.0)
    a, b = select(ok, a, 0.0), select(ok, b, 1.0)
    while a > b * 4194304.0:
        # take away the largest multiples first
        c = b
        while c * 4194304.0 < a:
            c = c * 2097152.0
        a = fmod_step(a, c)
    r = copysign(select(b == INF, a, fmod_step(a, b)), x)
    return select(ok, r, NAN)


@both
def remainder(x, y):
    """fmod with the sign of y, as Python's %"""
    r = fmod(x, y)
    return select((r != 0.0) & ((r < 0.0) != (y < 0.0)), r + y, r)


@f32
def floor_divide(x, y):
    """The quotient in f64 rounds to an integer only beyond 2^28, where f32 does not tell neighbours apart."""
    q = to_f32(floor(to_f64(x) / to_f64(y)))
    q = select((fabs(y) == INF) & (fabs(x) > 0.0) & ((x < 0.0) != (y < 0.0)), -1.0, q)
    return select((fabs(x) == INF) & (y != 0.0), NAN, q)


@f64
def floor_divide(x, y):  # noqa: F811
    r = fmod(x, y)
    q = (x - r) / y
    q = select((r != 0.0) & ((r < 0.0) != (y < 0.0)), q - 1.0, q)
    low = floor(q)
    whole = select(q - low > 0.5, low + 1.0, low)
    whole = select(q == 0.0, copysign(0.0, x / y), whole)
    return select(y == 0.0, x / y, whole)


# ---- choices ---------------------------------------------------------------------------------------------------------


@both
def maximum(x, y):
    """NaN if either is."""
    return select((x > y) | (x != x), x, y)


@both
def minimum(x, y):
    return select((x < y) | (x != x), x, y)


@both
def sign(x):
    return select(x > 0.0, 1.0, select(x < 0.0, -1.0, 0.0))


@both
def relu(x):
    return select((x > 0.0) | (x != x), x, 0.0)
