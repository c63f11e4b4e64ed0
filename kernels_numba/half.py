"""f16 and bf16 as storage: LLVM lowering of their conversions from and to f32, for scalars and vectors of i16 bits."""

from llvmlite import ir

from . import levels

_I16, _I32, _F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()


def _const(ty, value):
    return ir.Constant(ty, [value] * ty.count if isinstance(ty, ir.VectorType) else value)


def f16_to_f32(b, bits):
    """i16 (vector) of IEEE half bits -> f32. Without F16C LLVM would call a library, so the portable level uses
    integers.
    """
    n = bits.type.count if isinstance(bits.type, ir.VectorType) else None
    f32 = ir.VectorType(_F32, n) if n else _F32
    if levels.TARGET != "portable":
        return b.fpext(b.bitcast(bits, ir.VectorType(ir.HalfType(), n) if n else ir.HalfType()), f32)
    i32 = ir.VectorType(_I32, n) if n else _I32
    wide = b.zext(bits, i32)
    sign = b.shl(b.and_(wide, _const(i32, 0x8000)), _const(i32, 16))
    rest = b.shl(b.and_(wide, _const(i32, 0x7FFF)), _const(i32, 13))
    # exponent re-biased by a multiplication (exact, denormals included); inf and NaN keep an all-ones exponent
    scaled = b.fmul(b.bitcast(rest, f32), _const(f32, 2.0**112))
    special = b.icmp_unsigned(">=", rest, _const(i32, 0x0F800000))
    bits32 = b.select(special, b.or_(rest, _const(i32, 0x7F800000)), b.bitcast(scaled, i32))
    return b.bitcast(b.or_(bits32, sign), f32)


def f32_to_f16(b, x):
    """f32 (vector) -> i16 of IEEE half bits, round to nearest even."""
    n = x.type.count if isinstance(x.type, ir.VectorType) else None
    i16 = ir.VectorType(_I16, n) if n else _I16
    if levels.TARGET != "portable":
        return b.bitcast(b.fptrunc(x, ir.VectorType(ir.HalfType(), n) if n else ir.HalfType()), i16)
    i32, f32 = (ir.VectorType(_I32, n), ir.VectorType(_F32, n)) if n else (_I32, _F32)
    k = lambda v: _const(i32, v)  # noqa: E731
    bits = b.bitcast(x, i32)
    sign, mag = b.and_(b.lshr(bits, k(16)), k(0x8000)), b.and_(bits, k(0x7FFFFFFF))
    # normal: add half an ulp (ties to even), re-bias; overflow becomes inf; NaN stays NaN
    odd = b.and_(b.lshr(mag, k(13)), k(1))
    normal = b.lshr(b.add(b.sub(mag, k(112 << 23)), b.add(k(0xFFF), odd)), k(13))
    # denormal: adding 0.5 aligns the mantissa so that the addition itself rounds
    denormal = b.sub(b.bitcast(b.fadd(b.bitcast(mag, f32), _const(f32, 0.5)), i32), k(0x3F000000))
    half = b.select(b.icmp_unsigned("<", mag, k(113 << 23)), denormal, normal)
    half = b.select(b.icmp_unsigned(">=", mag, k(0x47800000)), k(0x7C00), half)
    half = b.select(b.icmp_unsigned(">", mag, k(0x7F800000)), k(0x7E00), half)
    return b.trunc(b.or_(half, sign), i16)


def bf16_to_f32(b, bits):
    """i16 (vector) of bfloat16 bits -> f32."""
    n = bits.type.count if isinstance(bits.type, ir.VectorType) else None
    i32, f32 = (ir.VectorType(_I32, n), ir.VectorType(_F32, n)) if n else (_I32, _F32)
    return b.bitcast(b.shl(b.zext(bits, i32), _const(i32, 16)), f32)


def f32_to_bf16(b, x):
    """f32 (vector) -> i16 of bfloat16 bits, round to nearest even; NaN stays NaN."""
    n = x.type.count if isinstance(x.type, ir.VectorType) else None
    i32, i16 = (ir.VectorType(_I32, n), ir.VectorType(_I16, n)) if n else (_I32, _I16)
    bits = b.bitcast(x, i32)
    odd = b.and_(b.lshr(bits, _const(i32, 16)), _const(i32, 1))
    rounded = b.lshr(b.add(bits, b.add(_const(i32, 0x7FFF), odd)), _const(i32, 16))
    nan = b.or_(b.lshr(bits, _const(i32, 16)), _const(i32, 0x40))
    return b.trunc(b.select(b.fcmp_unordered("uno", x, x), nan, rounded), i16)
