"""Mathematical functions of blocks: the names that elementwise expressions call, in f32 and f64, and integers' own.

What the vendors' libraries of device functions have (`LIBRARY`) is taken from there, some by way of `library.py`; the
rest is here. Errors are those
of CUDA's and ROCm's: at most 4 ulp in f32, 2 in f64. Integers wrap, divide by zero to 0, and shift by any count.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from . import library

LIBRARY = frozenset("rint trunc exp log log2 log10 cos acos cosh acosh erfc atan2 pow hypot copysign".split())

IN_F64 = ("lgamma", "digamma", "sinc")  # that compute in f64, whatever they are given

# ---- floats ----------------------------------------------------------------------------------------------------------


@triton.jit
def div(x, y):
    """x / y, rounded once."""
    if x.dtype == tl.float32:
        return tl.div_rn(x, y)
    else:
        return x / y


@triton.jit
def sqrt(x):
    """Square root, rounded once."""
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def maximum(x, y):
    """NaN if either is."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(x, y):
    """NaN if either is."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def relu(x):
    """max(x, 0); NaN stays."""
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def sign(x):
    """-1, 0 or 1; 0 for NaN."""
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


@triton.jit
def sigmoid(x):
    """1 / (1 + e ** -x)."""
    e = libdevice.exp(-tl.abs(x))
    top, bottom = tl.where(x < 0, e, 1.0), 1.0 + e
    if x.dtype == tl.float32:
        return tl.where(x < -80.0, top, libdevice.fast_dividef(top, bottom))  # 2 ulp; subnormal tops are flushed
    else:
        return top / bottom


@triton.jit
def softplus(x):
    """log(1 + e ** x)."""
    return relu(x) + library.log1p(libdevice.exp(-tl.abs(x)))


@triton.jit
def gelu(x):
    """x P(X < x): erfc(z) / 2 in the tail, whose slope makes z squared of the rounding error of z, here put back."""
    a = tl.abs(x)
    a = tl.where(a > 39.0, 39.0, a)
    high: tl.constexpr = 0.70710678118654752 if x.dtype == tl.float64 else 0.707106769084930419921875
    low: tl.constexpr = -4.833646656726457e-17 if x.dtype == tl.float64 else 1.21016171224e-8
    z = a * high
    lost = tl.fma(a, tl.full((), high, x.dtype), -z) + a * low
    p = 0.5 * libdevice.erfc(z)
    p = p - p * ((2.0 * z + 1.0) * lost)
    return x * tl.where(x < 0, p, 1.0 - p)


@triton.jit
def silu_slope(x):
    """The derivative of x sigmoid(x)."""
    near = maximum(minimum(x, 800.0), -800.0)
    s = sigmoid(near)
    return s * (1.0 + near * (1.0 - s))


@triton.jit
def gelu_slope(x):
    """The derivative of gelu: P(X < x) + x times the density."""
    near = maximum(minimum(x, 40.0), -40.0)
    density = 0.3989422804014327 * libdevice.exp(-0.5 * near * near)
    return 0.5 * libdevice.erfc(-0.7071067811865476 * near) + near * density


@triton.jit
def gelu_tanh_slope(x):
    """The derivative of x sigmoid(a x + b x^3), GELU's tanh form."""
    near = maximum(minimum(x, 100.0), -100.0)
    square = near * near
    s = sigmoid(near * (1.5957691216057308 + 0.07135481627260025 * square))
    return s * (1.0 + near * (1.0 - s) * (1.5957691216057308 + 0.21406444881780075 * square))


@triton.jit
def remainder(x, y):
    """fmod with the sign of y, as Python's %."""
    r = library.fmod(x, y)
    return tl.where((r != 0) & ((r < 0) != (y < 0)), r + y, r)


@triton.jit
def floor_divide(x, y):
    """x / y rounded down, from the exact remainder."""
    r = library.fmod(x, y)
    q = div(x - r, y)
    q = tl.where((r != 0) & ((r < 0) != (y < 0)), q - 1.0, q)
    low = library.floor(q)
    whole = tl.where(q - low > 0.5, low + 1.0, low)
    quotient = div(x, y)
    whole = tl.where(q == 0, libdevice.copysign(quotient * 0.0, quotient), whole)
    return tl.where(y == 0, quotient, whole)


@triton.jit
def _quarter(f):
    """sin and cos of pi f / 2 for |f| <= 1/2, in f64."""
    r = f * 1.5707963267948966
    z = r * r
    s = 1.5915309183057952557e-10 * z - 2.5051092308431316672e-8
    s = (s * z + 2.7557315910939001563e-6) * z - 0.00019841269836385434484
    s = (s * z + 0.0083333333333306993363) * z - 0.16666666666666664365
    c = 2.0876121534608455566e-9 - 1.1380868171449913386e-11 * z
    c = (c * z - 2.7557317151864553e-7) * z + 0.000024801587298532259045
    c = (c * z - 0.0013888888888887241376) * z + 0.041666666666666665227
    return r + r * z * s, 1.0 - 0.5 * z + z * z * c


@triton.jit
def sinc(x):
    """sin(pi x) / (pi x) in f64, the argument reduced before it is multiplied by pi: by two half angles."""
    v = x.to(tl.float64)
    n = libdevice.rint(v)
    half = n * 0.5
    s, c = _quarter(v - n)
    wave = 2.0 * s * c
    value = tl.where(libdevice.trunc(half) == half, wave, -wave) / (v * 3.141592653589793)
    return tl.where(v == 0, 1.0, tl.where(tl.abs(v) == float("inf"), 0.0, value)).to(x.dtype)


@triton.jit
def logaddexp(x, y):
    """log(e ** x + e ** y)."""
    value = maximum(x, y) + library.log1p(libdevice.exp(-tl.abs(x - y)))
    return tl.where(x == y, x + 0.6931471805599453, value)


@triton.jit
def logaddexp2(x, y):
    """log2(2 ** x + 2 ** y)."""
    value = maximum(x, y) + library.log1p(library.exp2(-tl.abs(x - y))) * 1.4426950408889634
    return tl.where(x == y, x + 1.0, value)


@triton.jit
def nextafter(x, y):
    """The bits of a float, less its sign, count upwards from 0."""
    WORD: tl.constexpr = tl.int32 if x.dtype == tl.float32 else tl.int64
    bits = x.to(WORD, bitcast=True)
    away = (y > x) == (x > 0)
    moved = tl.where(away, bits + 1, bits - 1).to(x.dtype, bitcast=True)
    least = tl.full((), 1, WORD).to(x.dtype, bitcast=True)
    value = tl.where(x == 0, tl.where(y < 0, -least, least), moved)
    value = tl.where(x == y, y, value)
    return tl.where((x != x) | (y != y), x + y, value)


@triton.jit
def lgamma(x):
    """log |Gamma(x)|, computed in f64: near its roots below 0 f32 has no digit left."""
    return libdevice.lgamma(x.to(tl.float64)).to(x.dtype)


@triton.jit
def digamma(x):
    """d lgamma / dx in f64: up to 10 by psi(a) = psi(a + 1) - 1 / a, then the asymptotic series; below 0 reflected."""
    v = x.to(tl.float64)
    a = tl.where(v < 0, 1.0 - v, v)
    total = a * 0.0
    for _ in tl.static_range(10):
        step = (a < 10.0).to(tl.float64)
        total += step / a
        a += step
    inverse = 1.0 / a
    w = inverse * inverse
    tail = 0.083333333333333333333 * w - 0.021092796092796092796
    tail = tail * w + 0.0075757575757575757576
    tail = tail * w - 0.0041666666666666666667
    tail = tail * w + 0.003968253968253968254
    tail = tail * w - 0.0083333333333333333333
    tail = tail * w + 0.083333333333333333333
    value = (libdevice.log(a) - 0.5 * inverse - tail * w) - total
    fraction = v - libdevice.rint(v)
    s, c = _quarter(fraction)
    value = tl.where(v < 0, value - 3.141592653589793 * ((c - s) * (c + s)) / (2.0 * s * c), value)
    value = tl.where((fraction == 0) & (v < 0), float("nan"), value)
    # 1 / v has the infinity's sign at either zero
    return tl.where(v == 0, -1.0 / v, tl.where(v == float("inf"), v, value)).to(x.dtype)


@triton.jit
def _ratio(x, A0, A1, A2, A3, A4, A5, A6, A7, B0, B1, B2, B3, B4, B5, B6, B7):
    """Two polynomials of degree 7, divided."""
    p = ((((((A7 * x + A6) * x + A5) * x + A4) * x + A3) * x + A2) * x + A1) * x + A0
    q = ((((((B7 * x + B6) * x + B5) * x + B4) * x + B3) * x + B2) * x + B1) * x + B0
    return div(p, q)


@triton.jit
def erfinv(x):
    """Inverse error function: AS241 (Wichura, Applied Statistics 37, 1988) for p = (1 + x) / 2."""
    a = tl.abs(x)
    middle = 0.5 * a * _ratio(
        0.180625 - 0.25 * a * a,
        3.3871328727963665, 133.14166789178438, 1971.5909503065513, 13731.69376550946, 45921.95393154987,
        67265.7709270087, 33430.57558358813, 2509.0809287301227,
        1.0, 42.31333070160091, 687.1870074920579, 5394.196021424751, 21213.794301586597, 39307.89580009271,
        28729.085735721943, 5226.495278852854,
    )  # fmt: skip
    t = sqrt(-libdevice.log(0.5 * tl.where(a < 1.0, 1.0 - a, 1.0)))
    near = _ratio(
        t - 1.6,
        1.4234371107496835, 4.630337846156546, 5.769497221460691, 3.6478483247632045, 1.2704582524523684,
        0.2417807251774506, 0.022723844989269184, 0.0007745450142783414,
        1.0, 2.053191626637759, 1.6763848301838038, 0.6897673349851, 0.14810397642748008, 0.015198666563616457,
        0.0005475938084995345, 1.0507500716444169e-09,
    )  # fmt: skip
    far = _ratio(
        t - 5.0,
        6.657904643501103, 5.463784911164114, 1.7848265399172913, 0.29656057182850487, 0.026532189526576124,
        0.0012426609473880784, 2.7115555687434876e-05, 2.0103343992922881e-07,
        1.0, 0.599832206555888, 0.1369298809227358, 0.014875361290850615, 0.0007868691311456133,
        1.8463183175100548e-05, 1.421511758316446e-07, 2.0442631033899397e-15,
    )  # fmt: skip
    value = tl.where(a <= 0.85, middle, tl.where(t <= 5.0, near, far)) * 0.7071067811865475244
    value = tl.where(a < 1.0, value, tl.where(a == 1.0, float("inf"), float("nan")))
    return libdevice.copysign(value, x)


# ---- integers and bools ----------------------------------------------------------------------------------------------


@triton.jit
def inverted(x):
    """Every bit flipped; not x for bools."""
    if x.dtype == tl.int1:
        return x == 0
    else:
        return ~x


@triton.jit
def iabs(x):
    """|x|, which wraps."""
    if x.dtype.is_int_signed():
        return tl.where(x < 0, 0 - x, x)
    else:
        return x


@triton.jit
def _divisor(y):
    """y, or 1 where dividing by it is not defined for every number."""
    if y.dtype.is_int_signed():
        return tl.where((y == 0) | (y == -1), 1, y)
    else:
        return tl.where(y == 0, 1, y)


@triton.jit
def idiv(x, y):
    """x / y rounded down; 0 where y is."""
    d = _divisor(y)
    q = x // d
    if y.dtype.is_int_signed():
        r = x - q * d
        q = tl.where((r != 0) & ((r < 0) != (d < 0)), q - 1, q)
        q = tl.where(y == -1, 0 - x, q)
    return tl.where(y == 0, 0, q).to(x.dtype)


@triton.jit
def imod_trunc(x, y):
    """x - y * (x / y rounded towards 0); 0 where y is."""
    r = x % _divisor(y)
    if y.dtype.is_int_signed():
        r = tl.where(y == -1, 0, r)
    return tl.where(y == 0, 0, r).to(x.dtype)


@triton.jit
def imod(x, y):
    """The remainder that has the sign of y; 0 where y is."""
    r = imod_trunc(x, y)
    if y.dtype.is_int_signed():
        r = tl.where((r != 0) & ((r < 0) != (y < 0)), r + y, r)
    return r


@triton.jit
def _inside(n):
    """Whether a shift by n leaves bits."""
    inside = n < n.dtype.primitive_bitwidth
    if n.dtype.is_int_signed():
        inside = inside & (n >= 0)
    return inside


@triton.jit
def shl(x, n):
    """x * 2 ** n; 0 for counts of the width or more, or below 0."""
    inside = _inside(n)
    return tl.where(inside, x << tl.where(inside, n, 0), 0).to(x.dtype)


@triton.jit
def shr(x, n):
    """x / 2 ** n rounded down; what shifting bit by bit would give for any other count."""
    inside = _inside(n)
    value = x >> tl.where(inside, n, 0)
    if x.dtype.is_int_signed():
        return tl.where(inside, value, x >> (x.dtype.primitive_bitwidth - 1)).to(x.dtype)
    else:
        return tl.where(inside, value, 0).to(x.dtype)


@triton.jit
def ipow(x, n):
    """By squaring, wrapping. A negative power is 0, but for the bases 1 and -1."""
    odd = (n & 1) != 0
    base, power, result = x + (n - n), n + (x - x), x - x + 1
    result = result + (n - n)
    for _ in range(x.dtype.primitive_bitwidth):
        result = tl.where((power & 1) != 0, result * base, result)
        base = base * base
        power = power >> 1
    if n.dtype.is_int_signed():
        unit = tl.where(x == 1, 1, tl.where(x == -1, tl.where(odd, -1, 1), 0))
        result = tl.where(n < 0, unit, result).to(x.dtype)
    return result


@triton.jit
def igcd(x, y):
    """Euclid's, of the absolute values; gcd(0, y) = |y|."""
    a, b = iabs(x) + (y - y), iabs(y) + (x - x)
    STEPS: tl.constexpr = x.dtype.primitive_bitwidth * 3 // 2  # golden ratio: 1.44 steps for each bit
    for _ in range(STEPS):
        rest = tl.where(b == 0, a, imod_trunc(a, b))
        a = tl.where(b == 0, a, b)
        b = tl.where(b == 0, b, rest)
    return iabs(a)


@triton.jit
def ilcm(x, y):
    """The least multiple, which wraps; 0 if either is."""
    return iabs(idiv(x, igcd(x, y)) * y)
