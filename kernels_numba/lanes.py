"""What the norm, rope and attention rooms share: rows of any float dtype as f32 vectors of 16 and exp2.

Everything here keeps NaN: comparisons are written so that an unordered operand passes through.
"""

from typing import Any, NamedTuple

from llvmlite import ir
from numba import njit

from . import simd
from .simd import (
    _I32,
    F32x16,
    I16x16,
    _call,
    _const,
    _make,
    _shuffle,
    _splat,
    arg,
    constant,
    fma,
    h2f,
    ld_bf16x16,
    ld_f16x16,
    ld_f32x16,
    ld_f64x8,
    ldn_f32x16,
    ldn_f64x8,
    ldn_i16x16,
    shuffle,
    st_bf16x16,
    st_f16x16,
    st_f32x16,
    st_f64x8,
    stn_f32x16,
    stn_f64x8,
    stn_i16x16,
    vabs,
    vadd,
    vdiv,
    vec,
    vmul,
    vsub,
)
from .transpose import EVEN_ODD_FOURS, UNPACK_PAIRS, UNPACK_WORDS

_PLAIN = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
# what kernels call: always copied in, or as LLVM likes
inline, shared = njit(forceinline=True, **_PLAIN), njit(**_PLAIN)

_F32V, _I32V = F32x16.ll, ir.VectorType(_I32, 16)


# ---- memory ---------------------------------------------------------------------------------------------------------

_b2f = _make("b2f", lambda x: vec("f32", x.n), lambda b, t, x: simd.bf16_to_f32(b, x), 1)
_f2h = _make("f2h", lambda x: I16x16, lambda b, t, x: simd.f32_to_f16(b, x), 1)
_f2b = _make("f2b", lambda x: I16x16, lambda b, t, x: simd.f32_to_bf16(b, x), 1)


@inline
def _part_f32(a, n):
    return ld_f32x16(a) if n >= 16 else ldn_f32x16(a, n)


@inline
def _part_f16(a, n):
    return ld_f16x16(a) if n >= 16 else h2f(ldn_i16x16(a, n))


@inline
def _part_bf16(a, n):
    return ld_bf16x16(a) if n >= 16 else _b2f(ldn_i16x16(a, n))


@inline
def _put_f32(a, x, n):
    if n >= 16:
        st_f32x16(a, x)
    else:
        stn_f32x16(a, x, n)


@inline
def _put_f16(a, x, n):
    if n >= 16:
        st_f16x16(a, x)
    else:
        stn_i16x16(a, _f2h(x), n)


@inline
def _put_bf16(a, x, n):
    if n >= 16:
        st_bf16x16(a, x)
    else:
        stn_i16x16(a, _f2b(x), n)


@inline
def _part_f64(a, n):
    return ld_f64x8(a) if n >= 8 else ldn_f64x8(a, n)


@inline
def _put_f64(a, x, n):
    if n >= 8:
        st_f64x8(a, x)
    else:
        stn_f64x8(a, x, n)


class Memory(NamedTuple):
    """How 16 elements of a dtype are read as f32 and written: `ld(a)`, `part(a, n)`, `st(a, x)`, `put(a, x, n)`.

    `part` and `put` touch the first n (all 16 if n is more); what part does not read is zero.
    """

    size: int
    ld: Any
    part: Any
    st: Any
    put: Any


MEMORY = {
    "f32": Memory(4, ld_f32x16, _part_f32, st_f32x16, _put_f32),
    "f16": Memory(2, ld_f16x16, _part_f16, st_f16x16, _put_f16),
    "bf16": Memory(2, ld_bf16x16, _part_bf16, st_bf16x16, _put_bf16),
}
F64 = Memory(8, ld_f64x8, _part_f64, st_f64x8, _put_f64)  # 8 elements, as f64


@inline
def row_address(base, a, dims, operands, operand, row):
    """Address of row number `row` of an operand, from the dims table at address a: (size, one stride per operand)."""
    for d in range(dims - 1, -1, -1):
        at = d * (operands + 1)
        size = arg(a, at)
        base += (row % size) * arg(a, at + 1 + operand)
        row //= size
    return base


# ---- maxima, masks, sums over the lanes -----------------------------------------------------------------------------


def _pick(compare):
    def lower(b, t, x, y):
        return b.select(b.fcmp_ordered(compare, x, y), x, y)

    return _make("pick", lambda x, y: x, lower, 2)


greater, lesser = _pick(">"), _pick("<")  # of x and y, vectors or scalars; y if one is NaN


def _between(b, t, x, low, high):
    """lanes low <= i < high of x, the others -inf"""
    lanes = _const(_I32V, list(range(16)))
    above = b.icmp_signed(">=", lanes, _splat(b, b.trunc(low, _I32), 16))
    below = b.icmp_signed("<", lanes, _splat(b, b.trunc(high, _I32), 16))
    return b.select(b.and_(above, below), x, _const(x.type, float("-inf")))


def _first(b, t, x, n):
    """lanes i < n of x, the others 0"""
    lanes = _const(_I32V, list(range(16)))
    return b.select(b.icmp_signed("<", lanes, _splat(b, b.trunc(n, _I32), 16)), x, _const(x.type, 0.0))


between = _make("between", lambda x, low, high: x, _between, 3)
first = _make("first", lambda x, n: x, _first, 2)

swap8, swap4 = shuffle([*range(8, 16), *range(8)]), shuffle([4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11])
swap2, swap1 = shuffle([i ^ 2 for i in range(16)]), shuffle([i ^ 1 for i in range(16)])


@inline
def all_max(x):
    """The largest lane, in every lane."""
    x = greater(x, swap8(x, x))
    x = greater(x, swap4(x, x))
    x = greater(x, swap2(x, x))
    return greater(x, swap1(x, x))


@inline
def all_sum(x):
    """The sum of the lanes, in every lane."""
    x = vadd(x, swap8(x, x))
    x = vadd(x, swap4(x, x))
    x = vadd(x, swap2(x, x))
    return vadd(x, swap1(x, x))


def _fold(low, high):
    def lower(b, t, x, y):
        return b.fadd(_shuffle(b, x, y, low), _shuffle(b, x, y, high))

    return _make("fold", lambda x, y: x, lower, 2)


# fold1, fold2, fold4, fold8 in a tree take 16 vectors to the vector of their 16 sums, every step two cheap shuffles
fold1 = _fold(*UNPACK_WORDS)
fold2 = _fold(*UNPACK_PAIRS)
fold4 = fold8 = _fold(*EVEN_ODD_FOURS)


# ---- exponentials ---------------------------------------------------------------------------------------------------

# 2**r for |r| <= 1/2, minimax; 1.4 units of 2**-24 with its roundings
_EXP2 = (0.6931471824645996, 0.24022647738456726, 0.055503323674201965)
_EXP2 += (0.00961843691766262, 0.0013398873852565885, 0.00015353361959569156)
_c1, _c2, _c3, _c4, _c5, _c6 = (constant("f32", 16, c) for c in _EXP2)
_one, _two, _bottom, _top = (constant("f32", 16, c) for c in (1.0, 2.0, -126.0, 126.0))
_magic = constant("f32", 16, 12582912.0)  # 1.5 * 2**23: adding it rounds to an integer, left in the low bits


def _power_of_two(b, t, x):
    """2**n for x = magic + n"""
    bits = b.shl(b.bitcast(x, _I32V), _const(_I32V, 23))
    return b.bitcast(b.add(bits, _const(_I32V, 127 << 23)), _F32V)


_power = _make("power", lambda x: x, _power_of_two, 1)


@inline
def exp2(x):
    """2**x for x <= 126; what is below -126 gives 2**-126 (denormals would be slow), NaN stays. Relative error 1e-7."""
    x = greater(_bottom(), x)
    t = vadd(x, _magic())
    r = vsub(x, vsub(t, _magic()))
    p = fma(fma(fma(_c6(), r, _c5()), r, _c4()), r, _c3())
    p = fma(fma(fma(p, r, _c2()), r, _c1()), r, _one())
    return vmul(p, _power(t))


_tanh = (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1)
_t5, _t4, _t3, _t2, _t1 = (constant("f32", 16, c) for c in _tanh)
_twice_log2e = constant("f32", 16, 2.8853900817779268)


def _near_zero(b, t, x, small, large):
    near = b.fcmp_ordered("<", _call(b, "llvm.fabs.v16f32", _F32V, [x]), _const(_F32V, 0.625))
    return b.select(near, small, _call(b, "llvm.copysign.v16f32", _F32V, [large, x]))


_choose = _make("choose", lambda x, small, large: x, _near_zero, 3)


@inline
def tanh(x):
    """Hyperbolic tangent (Cephes' polynomial near 0), relative error 3e-7; NaN stays."""
    z = vmul(x, x)
    p = fma(fma(fma(fma(_t5(), z, _t4()), z, _t3()), z, _t2()), z, _t1())
    small = fma(vmul(p, z), x, x)
    e = exp2(lesser(_top(), vmul(vabs(x), _twice_log2e())))
    return _choose(x, small, vsub(_one(), vdiv(_two(), vadd(e, _one()))))
