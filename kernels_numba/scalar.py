"""Scalars that LLVM can vectorise: loads, stores and conversions of every dtype, bit tricks, and literals of one type.

Numba would compute `float32 * 2` in float64 and `uint64 + 1` in float64 too, so kernel sources are written with plain
literals and `typed` gives each of them the type that the kernel computes in. Everything here is branch-free.
"""

import ast

import numpy as np
from llvmlite import ir
from numba import types

from . import levels
from .simd import _LL, _call, _const, _make, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16

FLOATS = {"f16": "f32", "bf16": "f32", "f8e4m3": "f32", "f8e5m2": "f32", "f32": "f32", "f64": "f64"}
INTS = ("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64")
BITS = {"bool": 8, "f16": 16, "bf16": 16, "f8e4m3": 8, "f8e5m2": 8} | {d: int(d[1:]) for d in (*INTS, "f32", "f64")}
NUMBA = {d: getattr(types, ("uint" if d[0] == "u" else "int") + d[1:]) for d in INTS}
NUMBA |= {"bool": types.boolean, "f32": types.float32, "f64": types.float64}
_I1, _I8, _I16, _I32, _I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
_F32, _F64 = _LL["f32"], _LL["f64"]


# ---- small floats -----------------------------------------------------------------------------------------------


def _k(v):
    return ir.Constant(_I32, v & 0xFFFFFFFF)


def f8e4m3_to_f32(b, byte):
    """4 exponent bits of bias 7, 3 of mantissa, no infinity; NaN is 0x7F."""
    wide = b.zext(byte, _I32)
    rest = b.and_(wide, _k(0x7F))
    # the multiplication re-biases the exponent, exactly, denormals included
    value = b.fmul(b.bitcast(b.shl(rest, _k(20)), _F32), ir.Constant(_F32, 2.0**120))
    bits = b.select(b.icmp_unsigned("==", rest, _k(0x7F)), _k(0x7FC00000), b.bitcast(value, _I32))
    return b.bitcast(b.or_(bits, b.shl(b.and_(wide, _k(0x80)), _k(24))), _F32)


def f8e5m2_to_f32(b, byte):
    """The upper half of an f16."""
    return f16_to_f32(b, b.shl(b.zext(byte, _I16), ir.Constant(_I16, 8)))


def _f32_to_f8(b, x, mantissa, bias, top, overflow):
    """Round to nearest even; magnitudes above the code `top` become the code `overflow`, NaN 0x7F."""
    bits, drop = b.bitcast(x, _I32), 23 - mantissa
    mag = b.and_(bits, _k(0x7FFFFFFF))
    odd = b.and_(b.lshr(mag, _k(drop)), _k(1))
    normal = b.add(b.sub(mag, _k((127 - bias) << 23)), b.add(_k((1 << drop - 1) - 1), odd))
    normal = b.lshr(normal, _k(drop))
    # below the normals: the sum's unit in the last place is the smallest denormal, so the addition rounds
    magic = 2.0 ** (1 - bias - mantissa + 23)
    denormal = b.sub(b.bitcast(b.fadd(b.bitcast(mag, _F32), ir.Constant(_F32, magic)), _I32), _k(_f32_bits(magic)))
    code = b.select(b.icmp_unsigned("<", mag, _k((128 - bias) << 23)), denormal, normal)
    code = b.select(b.icmp_unsigned(">", code, _k(top)), _k(overflow), code)
    code = b.select(b.icmp_unsigned(">", mag, _k(0x7F800000)), _k(0x7F), code)
    return b.trunc(b.or_(code, b.and_(b.lshr(bits, _k(24)), _k(0x80))), _I8)


def _f32_bits(value):
    return int(np.float32(value).view(np.uint32))


_NARROW = {
    "f16": f32_to_f16,
    "bf16": f32_to_bf16,
    "f8e4m3": lambda b, x: _f32_to_f8(b, x, 3, 7, 0x7E, 0x7F),
    "f8e5m2": lambda b, x: _f32_to_f8(b, x, 2, 15, 0x7B, 0x7C),
}
_WIDEN = {"f16": f16_to_f32, "bf16": bf16_to_f32, "f8e4m3": f8e4m3_to_f32, "f8e5m2": f8e5m2_to_f32}


def _f64_to_odd_f32(b, x):
    """f64 -> f32 rounded to odd, so that a second rounding to fewer bits gives what one rounding would."""
    near = b.fptrunc(x, _F32)
    back, bits = b.fpext(near, _F64), b.bitcast(near, _I32)
    mag, wide = _fabs(b, x), _fabs(b, back)
    bits = b.sub(bits, b.zext(b.fcmp_ordered(">", wide, mag), _I32))
    return b.bitcast(b.or_(bits, b.zext(b.fcmp_ordered("!=", back, x), _I32)), _F32)


def _fabs(b, x):
    return _call(b, f"llvm.fabs.{_suffix(x.type)}", x.type, [x])


def _suffix(ty):
    return f"i{ty.width}" if isinstance(ty, ir.IntType) else ("f32" if ty == _F32 else "f64")


# ---- conversion ---------------------------------------------------------------------------------------------------


def convert(b, x, source, dtype):
    """LLVM scalar `x` of Numba type `source` as the stored form of `dtype`.

    Floats to integers truncate and saturate, NaN gives 0; integers wrap; to bool is `!= 0`; floats round to nearest
    even.
    """
    is_float = isinstance(source, types.Float)
    if dtype == "bool":
        zero = ir.Constant(x.type, 0)
        test = b.fcmp_unordered("!=", x, zero) if is_float else b.icmp_signed("!=", x, zero)
        return b.zext(test, _I8)
    signed = not is_float and source is not types.boolean and source.signed
    if dtype in INTS:
        want = ir.IntType(BITS[dtype])
        if is_float:
            return _saturated(b, x, want, dtype[0] == "i")
        if x.type.width >= want.width:
            return x if x.type == want else b.trunc(x, want)
        return b.sext(x, want) if signed else b.zext(x, want)
    if not is_float:
        # 24 bits fit an f32: wider integers go through f64 on their way to a small float
        target = _F64 if dtype == "f64" or (dtype in _NARROW and x.type.width > 16) else _F32
        x = b.sitofp(x, target) if signed else b.uitofp(x, target)
    if dtype == "f64":
        return x if x.type == _F64 else b.fpext(x, _F64)
    if dtype == "f32":
        return x if x.type == _F32 else b.fptrunc(x, _F32)
    return _NARROW[dtype](b, _f64_to_odd_f32(b, x) if x.type == _F64 else x)


def _saturated(b, x, want, signed):
    """A float truncated to an integer type: its limits for what is outside, 0 for NaN. LLVM's own is not vectorised."""
    numpy = np.float32 if x.type == _F32 else np.float64
    low, limit = -(1 << want.width - 1) if signed else 0, 1 << want.width - signed
    below = float(np.nextafter(numpy(limit), numpy(0)))
    floor, wide = ir.Constant(x.type, float(low)), max(want.width, 32)
    y = b.select(b.fcmp_ordered(">", x, floor), x, floor)
    y = b.select(b.fcmp_ordered("<", y, ir.Constant(x.type, below)), y, ir.Constant(x.type, below))
    # what fits 31 bits is converted as signed: no CPU but AVX-512 has the other conversion
    unsigned = not signed and want.width >= 32
    value = (b.fptoui if unsigned else b.fptosi)(y, ir.IntType(wide))
    if int(below) != limit - 1:
        above = b.fcmp_ordered(">=", x, ir.Constant(x.type, float(limit)))
        value = b.select(above, ir.Constant(value.type, limit - 1), value)
    if signed:
        value = b.select(b.fcmp_unordered("uno", x, x), ir.Constant(value.type, 0), value)
    return value if value.type == want else b.trunc(value, want)


def _scope(b):
    """Metadata: what this package's strided templates read and write does not alias. In place, element i is read before
    it is written and no other iteration touches it, so the promise holds where it matters: between iterations."""
    module = b.module
    return module.add_metadata([module.add_metadata(["operands", module.add_metadata(["tensorlib"])])])


def _pointer_at(b, base, i, ty):
    return b.gep(b.inttoptr(base, ty.as_pointer()), [i])


def loader(dtype, written=False):
    """Intrinsic f(base, i): element i of an array of `dtype` at an address, widened to what it computes in.

    `written`: other iterations may have written to it, so it must be read when its turn comes.
    """
    ll = ir.IntType(BITS[dtype]) if dtype not in ("f32", "f64") else _LL[dtype]

    def lower(b, t, base, i):
        value = b.load(_pointer_at(b, base, i, ll))
        value.align = 1
        if not written:
            value.set_metadata("alias.scope", _scope(b))
        if dtype == "bool":
            return b.icmp_unsigned("!=", value, ir.Constant(ll, 0))
        return _WIDEN[dtype](b, value) if dtype in _WIDEN else value

    result = NUMBA[FLOATS.get(dtype, dtype)]
    return _make(f"load_{dtype}", lambda base, i: result, lower, 2)


def storer(dtype):
    """Intrinsic f(base, i, x): converts x to `dtype` and stores it as element i of an array at an address."""

    def lower(b, t, base, i, x):
        value = convert(b, x, t[2], dtype)
        store = b.store(value, _pointer_at(b, base, i, value.type))
        store.align = 1
        store.set_metadata("noalias", _scope(b))

    return _make(f"store_{dtype}", lambda base, i, x: types.void, lower, 3)


def caster(dtype):
    """Intrinsic f(x): x converted to the computing dtype `dtype` (bool, an integer, f32 or f64)."""

    def lower(b, t, x):
        if dtype == "bool":
            return b.trunc(convert(b, x, t[0], dtype), _I1)
        return convert(b, x, t[0], dtype)

    return _make(f"cast_{dtype}", lambda x: NUMBA[dtype], lower, 1)


# ---- operations Numba lacks or promotes ------------------------------------------------------------------------------


def _same(*args):
    return args[0]


def _int_of(x):
    return _I32 if x.type == _F32 else _I64


def _mantissa_bits(x):
    return 23 if x.type == _F32 else 52


def _float_call(name, arity=1):
    return _make(name, _same, lambda b, t, *x: _call(b, f"llvm.{name}.{_suffix(x[0].type)}", x[0].type, list(x)), arity)


def _round_by_magic(b, x):
    """Nearest even integer without SSE4.1: adding 2**23 (2**52) leaves no fraction bits."""
    magic = ir.Constant(x.type, 2.0 ** _mantissa_bits(x))
    mag = _fabs(b, x)
    near = b.fsub(b.fadd(mag, magic), magic)
    near = _call(b, f"llvm.copysign.{_suffix(x.type)}", x.type, [near, x])
    return b.select(b.fcmp_ordered("<", mag, magic), near, x)


def _rounding(name):
    def lower(b, t, x):
        if levels.TARGET != "portable":
            return _call(b, f"llvm.{name}.{_suffix(x.type)}", x.type, [x])
        near, one = _round_by_magic(b, x), ir.Constant(x.type, 1.0)
        low = b.select(b.fcmp_ordered(">", near, x), b.fsub(near, one), near)
        high = b.select(b.fcmp_ordered("<", near, x), b.fadd(near, one), near)
        positive = b.fcmp_ordered(">", x, ir.Constant(x.type, 0.0))
        value = {"roundeven": near, "floor": low, "ceil": high, "trunc": b.select(positive, low, high)}[name]
        return _call(b, f"llvm.copysign.{_suffix(x.type)}", x.type, [value, x])

    return _make(name, _same, lower, 1)


rint, floor, ceil, trunc = (_rounding(n) for n in ("roundeven", "floor", "ceil", "trunc"))
sqrt, fabs, copysign = _float_call("sqrt"), _float_call("fabs"), _float_call("copysign", 2)
# sums, products and extremes that may be taken in any order, so that LLVM makes vectors of them
radd = _make("radd", _same, lambda b, t, x, y: b.fadd(x, y, flags=("reassoc", "nsz")), 2)
rmul = _make("rmul", _same, lambda b, t, x, y: b.fmul(x, y, flags=("reassoc", "nsz")), 2)
fmax, fmin = _float_call("maximum", 2), _float_call("minimum", 2)  # NaN if either is
# fused where the target has FMA, else two roundings: no library call either way
fma = _make("fma", _same, lambda b, t, *x: _call(b, f"llvm.fmuladd.{_suffix(x[0].type)}", x[0].type, list(x)), 3)
select = _make("select", lambda c, x, y: x, lambda b, t, c, x, y: b.select(c, x, y), 3)
to_f32 = _make("to_f32", lambda x: types.float32, lambda b, t, x: convert(b, x, t[0], "f32"), 1)
to_f64 = _make("to_f64", lambda x: types.float64, lambda b, t, x: convert(b, x, t[0], "f64"), 1)


def _pow2(b, t, n):
    """2**n for an integral float n in the exponent's range, without a conversion (NaN gives some finite number)"""
    bits = _mantissa_bits(n)
    shifted = b.fadd(n, ir.Constant(n.type, 1.5 * 2.0**bits + (127 if bits == 23 else 1023)))
    raw = b.bitcast(shifted, _int_of(n))
    return b.bitcast(b.shl(raw, ir.Constant(raw.type, bits)), n.type)


def _exponent(b, x):
    """k as an integer, for x = m * 2**k with m in [sqrt(1/2), sqrt(2)), x normal and positive."""
    bits = b.bitcast(x, _int_of(x))
    half = 0x3F3504F3 if x.type == _F32 else 0x3FE6A09E667F3BCD
    return bits, b.ashr(b.sub(bits, ir.Constant(bits.type, half)), ir.Constant(bits.type, _mantissa_bits(x)))


def _frac(b, t, x):
    """m of x = m * 2**k, in [sqrt(1/2), sqrt(2))"""
    bits, k = _exponent(b, x)
    return b.bitcast(b.sub(bits, b.shl(k, ir.Constant(k.type, _mantissa_bits(x)))), x.type)


def _logb(b, t, x):
    """k of x = m * 2**k, as a float"""
    _, k = _exponent(b, x)
    bits = _mantissa_bits(x)
    magic = 1.5 * 2.0**bits
    raw = b.bitcast(ir.Constant(x.type, magic), k.type)
    return b.fsub(b.bitcast(b.add(raw, k), x.type), ir.Constant(x.type, magic))


pow2, frac, logb = _make("pow2", _same, _pow2, 1), _make("frac", _same, _frac, 1), _make("logb", _same, _logb, 1)
bit = _make("bit", lambda x, i: types.boolean, lambda b, t, x, i: b.trunc(b.lshr(x, i), _I1), 2, "bit i of an integer")
quarters = _make("quarters", lambda x: types.int64, lambda b, t, x: b.bitcast(x, _I64), 1, "bits of an f64, signed")
bits64 = _make("bits64", lambda x: types.uint64, lambda b, t, x: b.bitcast(x, _I64), 1, "bits of an f64")
bits32 = _make("bits32", lambda x: types.int32, lambda b, t, x: b.bitcast(x, _I32), 1, "bits of an f32")


def table(name, values, dtype):
    """Intrinsic f(i): `values[i]` of a constant table of f64 or u64, for an int64 (or smaller) i inside it."""
    ll = _F64 if dtype == "f64" else _I64
    array = ir.ArrayType(ll, len(values))

    def lower(b, t, i):
        found = b.module.globals.get(name)
        if found is None:
            found = ir.GlobalVariable(b.module, array, name)
            found.global_constant, found.linkage = True, "internal"
            found.initializer = ir.Constant(array, list(values))
        i = b.sext(i, _I64) if i.type != _I64 else i
        value = b.load(b.gep(found, [_const(_I64, 0), i]))
        value.set_metadata("alias.scope", _scope(b))
        return value

    return _make(name, lambda i: NUMBA[dtype], lower, 1)


def _mulhi(b, t, x, y):
    """upper 64 bits of the product of two u64"""
    i128 = ir.IntType(128)
    product = b.mul(b.zext(x, i128), b.zext(y, i128))
    return b.trunc(b.lshr(product, ir.Constant(i128, 64)), _I64)


def _product_error(b, t, x, y, p):
    """x * y - p exactly, for p = x * y rounded: by FMA, or Dekker's splitting where there is none"""
    if levels.TARGET != "portable":
        return _call(b, f"llvm.fma.{_suffix(x.type)}", x.type, [x, y, b.fneg(p)])
    if x.type == _F32:
        exact = b.fmul(b.fpext(x, _F64), b.fpext(y, _F64))
        return b.fptrunc(b.fsub(exact, b.fpext(p, _F64)), _F32)
    half = ir.Constant(_F64, 134217729.0)  # NaN beyond 2**996

    def split(v):
        c = b.fmul(v, half)
        high = b.fsub(c, b.fsub(c, v))
        return high, b.fsub(v, high)

    (xh, xl), (yh, yl) = split(x), split(y)
    error = b.fsub(b.fmul(xh, yh), p)
    return b.fadd(b.fadd(b.fadd(error, b.fmul(xh, yl)), b.fmul(xl, yh)), b.fmul(xl, yl))


product_error = _make("product_error", _same, _product_error, 3)
mulhi = _make("mulhi", lambda x, y: types.uint64, _mulhi, 2)


# ---- literals of one type --------------------------------------------------------------------------------------------

_NUMPY = {"bool": np.bool_, "f32": np.float32, "f64": np.float64} | {d: getattr(np, NUMBA[d].name) for d in INTS}


class _Literals(ast.NodeTransformer):
    def __init__(self, dtype, scope):
        self.dtype, self.scope = dtype, scope

    def visit_Constant(self, node):
        if type(node.value) not in (int, float) or self.dtype is None:
            return node
        name = f"K{len(self.scope)}"
        self.scope[name] = _NUMPY[self.dtype](node.value)
        return ast.copy_location(ast.Name(name, ast.Load()), node)

    def visit_UnaryOp(self, node):
        if isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
            return self.visit_Constant(ast.Constant(-node.operand.value))
        return self.generic_visit(node)

    def visit_Call(self, node):
        """poly(x, c0, c1, c2) -> fma(fma(c2, x, c1), x, c0)"""
        self.generic_visit(node)
        if not (isinstance(node.func, ast.Name) and node.func.id == "poly"):
            return node
        x, *coefficients = node.args
        value = coefficients.pop()
        while coefficients:
            value = ast.Call(ast.Name("fma", ast.Load()), [value, x, coefficients.pop()], [])
        return value


def typed(tree, dtype, scope):
    """`tree` with every number replaced by a name in `scope` bound to that number in `dtype` (None: not);
    `poly` expanded.
    """
    return ast.fix_missing_locations(_Literals(dtype, scope).visit(tree))
