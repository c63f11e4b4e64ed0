"""Exponentials, logarithms and the error function, from additions and multiplications.

NaN, infinities, signed zeros and denormals are treated as IEEE 754 says. Polynomials are Chebyshev interpolants of the
formulas given, fitted at 60 digits. Errors measured against 36 digits: at most 3 ulp in f32, 6 ulp in f64
(8 of the smallest denormal's for denormal results of gelu). See `functions.py` for how this source is compiled.
"""

from .marks import INF, NAN, both, f32, f64, poly
from .scalar import copysign, fabs, fma, frac, logb, pow2, product_error, rint, select

# ---- exponentials ---------------------------------------------------------------------------------------------------
# x = n ln 2 + r; ln 2 in two parts, the first with enough trailing zeros that n times it is exact


@f32
def exp_range(x, shift):
    return select(x > 89.0 + shift, 89.0 + shift, select(x < -104.0, -104.0, x))


@f64
def exp_range(x, shift):  # noqa: F811
    return select(x > 710.0 + shift, 710.0 + shift, select(x < -746.0, -746.0, x))


@f32
def exp_reduce(x):
    n = rint(x * 1.4426950408889634)
    return n, fma(n, -1.428606765330187e-06, fma(n, -0.693145751953125, x))


@f64
def exp_reduce(x):  # noqa: F811
    n = rint(x * 1.4426950408889634)
    return n, fma(n, -1.90821492927058770002e-10, fma(n, -6.93147180369123816490e-01, x))


@f32
def expm1_poly(r):
    p = poly(r, 0.500000001429, 0.166666666825, 0.0416664568097, 0.00833331002423, 0.00139345419283, 0.00019891981314)
    return fma(r * r, p, r)


@f64
def expm1_poly(r):  # noqa: F811
    p = poly(
        r, 0.5000000000000001128, 0.16666666666666667534, 0.041666666666620638584, 0.0083333333333297934996,
        0.0013888888918939167785, 0.00019841269864380513295, 0.000024801518641395993583, 2.7557266418612303703e-6,
        2.76213386691429238e-7, 2.5101346928350340198e-8,
    )  # fmt: skip
    return fma(r * r, p, r)


@both
def scaled_exp(x, shift):
    """exp(x) * 2**-shift; two factors, so that the largest and the denormal results are reached with one rounding."""
    n, r = exp_reduce(exp_range(x, shift))
    half = rint(n * 0.5)
    return ((1.0 + expm1_poly(r)) * pow2(half)) * pow2(n - half - shift)


@both
def exp(x):
    return scaled_exp(x, 0.0)


@f32
def exp2_range(x):
    return select(x > 129.0, 129.0, select(x < -151.0, -151.0, x))


@f64
def exp2_range(x):  # noqa: F811
    return select(x > 1025.0, 1025.0, select(x < -1076.0, -1076.0, x))


@both
def exp2(x):
    y = exp2_range(x)
    n = rint(y)
    half = rint(n * 0.5)
    return ((1.0 + expm1_poly((y - n) * 0.6931471805599453)) * pow2(half)) * pow2(n - half)


@both
def expm1(x):
    y = exp_range(select(x < -40.0, -40.0, x), 0.0)
    n, r = exp_reduce(y)
    s = pow2(n - 1.0)
    return copysign((fma(expm1_poly(r), s, s - 0.5)) * 2.0, x)


@both
def sigmoid(x):
    e = exp(-fabs(x))
    return select(x < 0.0, e, 1.0) / (1.0 + e)


@both
def silu_slope(x):
    """The derivative of x sigmoid(x)."""
    near = select(fabs(x) > 800.0, copysign(800.0, x), x)
    s = sigmoid(near)
    return s * (1.0 + near * (1.0 - s))


@both
def gelu_tanh_slope(x):
    """The derivative of x sigmoid(a x + b x^3), GELU's tanh form."""
    near = select(fabs(x) > 100.0, copysign(100.0, x), x)
    square = near * near
    s = sigmoid(near * (1.5957691216057308 + 0.07135481627260025 * square))
    return s * (1.0 + near * (1.0 - s) * (1.5957691216057308 + 0.21406444881780075 * square))


@both
def tanh(x):
    t = expm1(-2.0 * fabs(x))
    return copysign(-t / (t + 2.0), x)


@both
def sinh(x):
    a = fabs(x)
    e = expm1(select(a > 1.0, 1.0, a))
    w = scaled_exp(a, 1.0)
    return copysign(select(a > 1.0, w - 0.25 / w, 0.5 * (e + e / (e + 1.0))), x)


@both
def cosh(x):
    w = scaled_exp(fabs(x), 1.0)
    return w + 0.25 / w


# ---- logarithms: x = 2^k m, m = (1 + s) / (1 - s), log m = 2 s + s (2 s^2 / 3 + 2 s^4 / 5 + ...) ---------------------


@f32
def log_poly(z):
    return z * poly(z, 0.666666665499, 0.400001255946, 0.285503969596, 0.233419433887)


@f64
def log_poly(z):  # noqa: F811
    return z * poly(
        z, 0.6666666666666669907, 0.39999999999893221763, 0.28571428628810995598, 0.22222210674238515246,
        0.18182922513515941633, 0.15330617306743304885, 0.14630031364122860468,
    )  # fmt: skip


@f32
def log_parts(x):
    tiny = x < 1.17549435e-38
    y = select(tiny, x * 33554432.0, x)
    return logb(y) - select(tiny, 25.0, 0.0), frac(y) - 1.0


@f64
def log_parts(x):  # noqa: F811
    tiny = x < 2.2250738585072014e-308
    y = select(tiny, x * 18014398509481984.0, x)
    return logb(y) - select(tiny, 54.0, 0.0), frac(y) - 1.0


@both
def log_ends(x, value):
    value = select(x > 0.0, value, select(x == 0.0, -INF, NAN))
    return select(x == INF, x, value)


@both
def log_fraction(f):
    """log(1 + f)"""
    s, h = f / (2.0 + f), 0.5 * f * f
    return f - (h - s * (h + log_poly(s * s)))


@f32
def log(x):
    k, f = log_parts(x)
    s, h = f / (2.0 + f), 0.5 * f * f
    value = fma(k, 0.693145751953125, -((h - fma(s, h + log_poly(s * s), k * 1.428606765330187e-06)) - f))
    return log_ends(x, value)


@f64
def log(x):  # noqa: F811
    k, f = log_parts(x)
    s, h = f / (2.0 + f), 0.5 * f * f
    low = fma(s, h + log_poly(s * s), k * 1.90821492927058770002e-10)
    return log_ends(x, fma(k, 6.93147180369123816490e-01, -((h - low) - f)))


@both
def log2(x):
    k, f = log_parts(x)
    return log_ends(x, fma(log_fraction(f), 1.4426950408889634, k))


@f32
def log10(x):
    k, f = log_parts(x)
    value = fma(k, 3.0102920532e-01, fma(k, 7.9034151668e-07, log_fraction(f) * 0.4342944819032518))
    return log_ends(x, value)


@f64
def log10(x):  # noqa: F811
    k, f = log_parts(x)
    low = fma(k, 3.69423907715893078616e-13, log_fraction(f) * 0.4342944819032518)
    return log_ends(x, fma(k, 3.01029995663611771306e-01, low))


@both
def log1p(x):
    u = 1.0 + x
    lost = (x - (u - 1.0)) / u  # what rounding u dropped
    return copysign(log(u) + select(u > 0.0, select(u < INF, lost, 0.0), 0.0), x)


@both
def softplus(x):
    return select(x > 0.0, x, 0.0) + log1p(exp(-fabs(x)))


# ---- error function: erfc(z) = exp(-z^2) G(u) / (1 + 2 z), u = (z - K) / (z + K) -------------------------------------


@f32
def erfcx_poly(z):
    g = poly(
        (z - 3.0) / (z + 3.0), 1.25300805862, -0.135621155552, -0.047562372955, 0.129646857536, -0.119270944047,
        0.0682927481143, -0.0238000590087, 0.0025729044604, 0.0020097823268, -0.000775897422963, -0.000269006802244,
    )  # fmt: skip
    return g / (1.0 + 2.0 * z)


@f64
def erfcx_poly(z):  # noqa: F811
    g = poly(
        (z - 4.0) / (z + 4.0), 1.2329951186255525067, -0.13962111684056289354, 0.015379652102620741303,
        0.068097054254737323901, -0.10103906603635213169, 0.093732834996794115895, -0.066330365811529384089,
        0.037167515562492865974, -0.016197734059115007082, 0.0050319697558954261144, -0.0007577733414133300446,
        -0.00019925550755614952137, 0.0001506222439483029924, -0.000024403169244974074952, -0.000011224789135154700706,
        5.7178872846321852018e-6, 3.0135049944875394771e-7, -8.351619688696847075e-7, 6.2707271571983108779e-8,
        1.1534943745754157287e-7, -7.7154186144178301303e-9, -1.3670989863347382443e-8, -1.8206098680308683344e-9,
    )  # fmt: skip
    return g / (1.0 + 2.0 * z)


@f32
def erfc_range(z):
    return select(z > 11.0, 11.0, z)


@f64
def erfc_range(z):  # noqa: F811
    return select(z > 28.0, 28.0, z)


@both
def gauss(z, square_factor):
    """exp(-square_factor z^2), with the rounding error of z^2 put back: it would count z^2 times"""
    square = z * z
    return exp(-square_factor * square) * (1.0 - square_factor * product_error(z, z, square))


@both
def erfc(x):
    z = erfc_range(fabs(x))
    t = gauss(z, 1.0) * erfcx_poly(z)
    return select(x < 0.0, 2.0 - t, t)


@both
def gelu_slope(x):
    """The derivative of gelu: P(X < x) + x times the density."""
    near = select(fabs(x) > 40.0, copysign(40.0, x), x)
    return 0.5 * erfc(-0.7071067811865476 * near) + near * (0.3989422804014327 * gauss(near, 0.5))


@f32
def erf_poly(z):
    return poly(
        z, 0.128379165848, -0.376126266667, 0.112835947152, -0.0268542120106, 0.00518908742343, -0.000801686428717,
        7.87587506269e-5,
    )  # fmt: skip


@f64
def erf_poly(z):  # noqa: F811
    return poly(
        z, 0.12837916709551257377, -0.37612638903183748056, 0.11283791670954878666, -0.026866170645076793248,
        0.0052239776248180144673, -0.00085483269808337899052, 0.00012055331111642710923, -0.000014925595266831181565,
        1.6461000484121368033e-6, -1.6350312701054695011e-7, 1.4659775274047435814e-8, -1.137284885679167367e-9,
        5.9571761477489114044e-11,
    )  # fmt: skip


@both
def erf(x):
    z = fabs(x)
    small = fma(z, erf_poly(z * z), z)
    return copysign(select(z < 1.0, small, 1.0 - erfc(z)), x)


@both
def gelu(x):
    """x Phi(x), Phi(-a) = exp(-a^2 / 2) erfcx(a / sqrt 2) / 2: accurate in the tail too"""
    a = fabs(x)
    a = select(a > 39.0, 39.0, a)
    p = gauss(a, 0.5) * (0.5 * erfcx_poly(a * 0.7071067811865476))
    return x * select(x < 0.0, p, 1.0 - p)
