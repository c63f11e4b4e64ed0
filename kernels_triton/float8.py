"""float8 from and to its bits: compilers for GPUs older than sm_89 refuse the type e4m3, and what rounds beyond the
largest number shall be NaN or infinity, where GPUs saturate.

Memory is then typed as bytes ("*u8"). EIGHT says what is in it: 4 for e4m3, 5 for e5m2, 0 for no float8, and, for
reading, NATIVE for a type that the compiler knows, ASSEMBLY for e4m3 four bytes at a time.
"""

import triton
import triton.language as tl

KINDS = {"f8e4m3": 4, "f8e5m2": 5}
NATIVE, ASSEMBLY = tl.constexpr(1), tl.constexpr(2)
# four bytes to four f16: two a register, each in the upper half of 16 bits; the sign stays, the rest moves by one;
# times 256; where the rest was all ones, an exponent of ones (0x8000 - 0x0400)
WIDEN = tl.constexpr("""{
.reg .b32 x<2>, s<2>, r<2>, n<2>;
.reg .b32 factor;
mov.b32 factor, 0x5C005C00;
""" + "".join(f"""
prmt.b32 x{i}, $2, 0, {selector};
and.b32 r{i}, x{i}, 0x7F007F00;
add.u32 n{i}, r{i}, 0x01000100;
and.b32 n{i}, n{i}, 0x80008000;
shr.u32 s{i}, n{i}, 5;
sub.u32 n{i}, n{i}, s{i};
shr.u32 r{i}, r{i}, 1;
mul.f16x2 r{i}, r{i}, factor;
and.b32 x{i}, x{i}, 0x80008000;
or.b32 x{i}, x{i}, n{i};
or.b32 ${i}, x{i}, r{i};
""" for i, selector in enumerate(("0x1404", "0x3424"))) + "}")  # fmt: skip


# four f32 to four bytes of e4m3, and their signs: the highest bits of the highest bytes
SIGNS = """
prmt.b32 x0, $1, $2, 0x0073;
prmt.b32 x1, $3, $4, 0x0073;
prmt.b32 x0, x0, x1, 0x5410;
and.b32 x0, x0, 0x80808080;
or.b32 $0, c0, x0;
}"""
# what `narrowed` does, see there
NARROW = tl.constexpr("""{
.reg .b32 x<2>, c<4>, u;
.reg .f32 a, p, d;
""" + "".join(f"""
mov.b32 a, ${i + 1};
abs.f32 a, a;
min.f32 a, a, 0f43F00000;
max.f32 p, a, 0f3C800000;
mov.b32 u, p;
and.b32 u, u, 0x7F800000;
mov.b32 p, u;
fma.rn.f32 d, p, 0f49800038, a;
mov.b32 c{i}, d;
shr.u32 u, u, 20;
add.u32 c{i}, c{i}, u;
""" for i in range(4)) + """
prmt.b32 c0, c0, c1, 0x0040;
prmt.b32 c2, c2, c3, 0x0040;
prmt.b32 c0, c0, c2, 0x5410;
""" + SIGNS)  # fmt: skip
# by what GPUs have from sm_89 on: it saturates, where NaN is due, and drops NaN's sign
NARROW_89 = tl.constexpr("""{
.reg .b32 x<2>, c0;
.reg .b16 h<2>;
.reg .f32 a, y<4>;
.reg .pred p;
""" + "".join(f"""
mov.b32 y{i}, ${i + 1};
abs.f32 a, y{i};
setp.le.f32 p, a, 0f43E80000;
selp.f32 y{i}, y{i}, 0f7FFFFFFF, p;
""" for i in range(4)) + """
cvt.rn.satfinite.e4m3x2.f32 h0, y1, y0;
cvt.rn.satfinite.e4m3x2.f32 h1, y3, y2;
mov.b32 c0, {h0, h1};
""" + SIGNS)  # fmt: skip
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))  # which knows no assembly


def reading(dtype, arch, interpreted=False):
    """(EIGHT, dtype of the memory) for reading a dtype on an architecture."""
    if dtype not in KINDS:
        return 0, dtype
    if dtype == "f8e5m2" or (isinstance(arch, int) and arch >= 89):
        return NATIVE.value, dtype
    return KINDS[dtype] if interpreted or isinstance(arch, str) else ASSEMBLY.value, "u8"


@triton.jit
def widened(x, EIGHT: tl.constexpr):
    """float8 as f16, which holds all of its numbers; others as they are."""
    if EIGHT == NATIVE:
        return x.to(tl.float16)
    elif EIGHT == ASSEMBLY:
        return tl.inline_asm_elementwise(WIDEN, "=r,=r,r", [x], dtype=tl.float16, is_pure=True, pack=4)
    elif EIGHT == 4:
        bits = x.to(tl.uint16)
        # f16 with an exponent that is 8 too small, also where that makes it subnormal
        y = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True) * 256.0
        nan = (((bits & 0x7F) + 1) & 0x80) * 0xF8  # an exponent of ones for the code 0x7F
        return (y.to(tl.uint16, bitcast=True) | nan).to(tl.float16, bitcast=True)
    elif EIGHT == 5:
        return (x.to(tl.uint16) << 8).to(tl.float16, bitcast=True)
    else:
        return x


@triton.jit
def narrowed(x, EIGHT: tl.constexpr):
    """f32 as the bits of float8, rounded to nearest even; above the largest: NaN (e4m3), infinity. NATIVE and ASSEMBLY:
    e4m3, four at a time, in assembly for sm_89 on and for older ones.
    """
    if EIGHT == NATIVE and not INTERPRETED:
        code = tl.inline_asm_elementwise(NARROW_89, "=r,r,r,r,r", [x], dtype=tl.uint8, is_pure=True, pack=4)
    elif EIGHT == ASSEMBLY and not INTERPRETED:
        code = tl.inline_asm_elementwise(NARROW, "=r,r,r,r,r", [x], dtype=tl.uint8, is_pure=True, pack=4)
    else:
        u = x.to(tl.uint32, bitcast=True)
        MANTISSA: tl.constexpr = 2 if EIGHT == 5 else 3
        DROP: tl.constexpr = 23 - MANTISSA
        LEAST: tl.constexpr = 2.0**-14 if EIGHT == 5 else 2.0**-6  # the least normal number
        OVER: tl.constexpr = 65536.0 if EIGHT == 5 else 480.0  # its code is that of NaN, or of infinity
        LACK: tl.constexpr = 60 if EIGHT == 5 else 56  # to a multiple of 256, of f32's exponent for code 0
        FACTOR: tl.constexpr = 2.0**DROP + LACK * 2.0 ** (DROP - 23)
        a = tl.minimum(tl.abs(x), OVER)  # of NaN as well
        # x's power of 2, DROP places higher: adding x to it rounds, and leaves x's digits in the lowest bits
        power = tl.maximum(a, LEAST).to(tl.uint32, bitcast=True) & 0x7F800000
        digits = power.to(tl.float32, bitcast=True) * FACTOR + a
        code = digits.to(tl.uint32, bitcast=True) + (power >> DROP)
        if EIGHT == 5:
            code = tl.where(x != x, 0x7F, code)
        code = (code | ((u >> 24) & 0x80)).to(tl.uint8)
    return code


def writing(dtype, arch):
    """EIGHT for writing a dtype on an architecture."""
    if dtype != "f8e4m3" or isinstance(arch, str):
        return KINDS.get(dtype, 0)
    return NATIVE.value if arch >= 89 else ASSEMBLY.value
