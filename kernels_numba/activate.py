"""What a product does with its finished sums, 16 at a time: activations that are written where the sums are at hand."""

from .lanes import exp2, fma, greater, inline, lesser
from .norm import _gelu
from .simd import constant, vabs, vmul, vsub, zero_f32x16
from .vmath import vsilu

# s(a) = log2 Phi(-a) + a^2 log2(e) / 2 for 0 <= a <= 6, weighted minimax: Phi within 2.3 units of 2**-24, and its
# relative error below 4e-6 in the tail
_S = (-0.99999970197676, -1.15111136436462, 0.26217186450958, -0.05255990847945, 0.00710695749149, -0.00012298853835)
_S += (-0.00022300073761, 6.05564382568e-5, -8.31058969197e-6, 6.16309421275e-7, -1.95340223996e-8)
_s = [constant("f32", 16, c) for c in _S]
_s0, _s1, _s2, _s3, _s4, _s5, _s6, _s7, _s8, _s9, _s10 = _s
_six, _far = constant("f32", 16, 6.0), constant("f32", 16, 39.0)
_half_log2e = constant("f32", 16, -0.7213475204444817)


@inline
def _gelu_erf(x):
    """x Phi(x) = max(x, 0) - |x| p, p = Phi(-|x|) = 2**(s - x^2 log2(e) / 2); beyond 6, s is that of 6"""
    a = lesser(_far(), vabs(x))
    t = lesser(_six(), a)
    s = fma(fma(fma(fma(fma(_s10(), t, _s9()), t, _s8()), t, _s7()), t, _s6()), t, _s5())
    s = fma(fma(fma(fma(fma(s, t, _s4()), t, _s3()), t, _s2()), t, _s1()), t, _s0())
    p = exp2(fma(vmul(a, a), _half_log2e(), s))
    return fma(vsub(zero_f32x16(), a), p, greater(x, zero_f32x16()))


@inline
def _relu(x):
    return greater(zero_f32x16(), x)


ACTIVATIONS = {
    "none": inline(lambda x: x),
    "relu": _relu,
    "gelu": _gelu_erf,
    "gelu_tanh": _gelu,
    "silu": inline(lambda x: vsilu(x)),
}
