"""float8 from and to its bits, in integer arithmetic: compilers for GPUs older than sm_89 refuse the type e4m3.

Memory is typed as bytes ("*u8"); EIGHT is 4 for e4m3, 5 for e5m2, 0 for any other dtype.
"""

import triton
import triton.language as tl

KINDS = {"f8e4m3": 4, "f8e5m2": 5}


@triton.jit
def widened(x, EIGHT: tl.constexpr):
    """float8 as f16, which holds all of its numbers; others as they are."""
    if EIGHT == 5:
        return (x.to(tl.uint16) << 8).to(tl.float16, bitcast=True)
    elif EIGHT == 4:
        bits = x.to(tl.uint16)
        # f16 with an exponent that is 8 too small, also where that makes it subnormal
        y = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True) * 256.0
        return tl.where((bits & 0x7F) == 0x7F, float("nan"), y.to(tl.float32)).to(tl.float16)
    else:
        return x


@triton.jit
def narrowed(x, EIGHT: tl.constexpr):
    """f32 as the bits of float8, rounded to nearest even; above the largest: NaN (e4m3), infinity."""
    MANTISSA: tl.constexpr = 3 if EIGHT == 4 else 2
    LEAST: tl.constexpr = 2.0**-6 if EIGHT == 4 else 2.0**-14  # the least normal number
    OVER: tl.constexpr = 0x7F if EIGHT == 4 else 0x7C
    DROP: tl.constexpr = 23 - MANTISSA
    BIAS: tl.constexpr = (127 - 7) << MANTISSA if EIGHT == 4 else (127 - 15) << MANTISSA
    u = x.to(tl.uint32, bitcast=True)
    v = u & 0x7FFFFFFF
    a = v.to(tl.float32, bitcast=True)
    normal = ((v + ((1 << (DROP - 1)) - 1) + ((v >> DROP) & 1)) >> DROP) - BIAS
    # a multiple of the least subnormal: adding 2^23 of them rounds
    UNIT: tl.constexpr = LEAST / 2**MANTISSA
    small = (a * (1 / UNIT) + 8388608.0).to(tl.uint32, bitcast=True) & 0xFF
    code = tl.where(a < LEAST, small, tl.minimum(normal, OVER))
    code = tl.where(x != x, 0x7F, code)
    return (code | ((u >> 24) & 0x80)).to(tl.uint8)
