"""Quantised blocks to floats: whole tensors, and rows picked by index (embeddings), for any format's decode function.

`source` defines ELEMENTS and BYTES per block, TABLE (bytes of int8, may be empty) and `decode(b, j)` on the LOADERS.
A block is written out: one call of `decode` per element, its `j` a constant, so that LLVM folds the shifts and masks of
the formula and joins neighbours to vectors (as loops over 16 elements, q3_k to q6_k were 15 times slower). Loads are
marked invariant, so that a scale is read and converted once although every element's formula asks for it: the output
must not overlap the blocks. The table becomes a constant beside the code.

Arguments: dequantize (src, dst, blocks); dequantize_rows (src, ids i64, dst, ids' count, blocks per row, rows).
"""

import math

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.compiler import Flags
from numba.extending import intrinsic

from . import simd
from .simd import _make, _to, arg, ldi_i64

_I8, _I16, _I32, _I64 = (ir.IntType(n) for n in (8, 16, 32, 64))
_F32, _F64 = ir.FloatType(), ir.DoubleType()
_OUTPUTS = {"f32": (_F32, lambda b, x: x), "f16": (_I16, simd.f32_to_f16), "bf16": (_I16, simd.f32_to_bf16)}


def _read(b, block, offset, ty):
    """A value at a byte offset of `block`: (address of the tensor, byte offset of the block in it)."""
    base, start = b.extract_value(block, 0), b.extract_value(block, 1)
    byte = b.gep(b.inttoptr(base, _I8.as_pointer()), [b.add(start, offset)])
    value = b.load(b.bitcast(byte, ty.as_pointer()))
    value.align = 1
    value.set_metadata("invariant.load", b.module.add_metadata([]))
    return value


def _loader(name, ty, convert, result):
    def lower(b, t, block, offset):
        return convert(b, _read(b, block, _to(b, offset, t[1], "i64"), ty))

    return _make(name, lambda block, offset: result, lower, 2)


def _int(name, ty, extend):
    return _loader(name, ty, lambda b, x: getattr(b, extend)(x, _I64), types.int64)


def _as_f16(b, t, bits):
    return simd.f16_to_f32(b, b.trunc(bits, _I16))


def _as_f32(b, t, bits):
    return b.bitcast(b.trunc(bits, _I32), _F32)


def _float32(b, t, x):
    """Cutting an integer to 32 bits first lets LLVM compute the whole formula in 32-bit lanes."""
    return b.sitofp(b.trunc(x, _I32), _F32) if isinstance(x.type, ir.IntType) else _to(b, x, t[0], "f32")


def _where(b, t, condition, x, y):
    if condition.type.width > 1:
        condition = b.icmp_signed("!=", condition, ir.Constant(condition.type, 0))
    return b.select(condition, x, y)


LOADERS = {
    "u8": _int("u8", _I8, "zext"),
    "i8": _int("i8", _I8, "sext"),
    "u16": _int("u16", _I16, "zext"),
    "i16": _int("i16", _I16, "sext"),
    "i32": _int("i32", _I32, "sext"),
    "i64": _loader("i64", _I64, lambda b, x: b.sitofp(x, _F32), types.float32),
    "f16": _loader("f16", _I16, simd.f16_to_f32, types.float32),
    "f32": _loader("f32", _F32, lambda b, x: x, types.float32),
    "f64": _loader("f64", _F64, lambda b, x: b.fptrunc(x, _F32), types.float32),
    "as_f16": _make("as_f16", lambda x: types.float32, _as_f16, 1),
    "as_f32": _make("as_f32", lambda x: types.float32, _as_f32, 1),
    "float32": _make("float32", lambda x: types.float32, _float32, 1),
    "where": _make("where", lambda c, x, y: x, _where, 3),
}


def _table(content):
    def lower(b, t, block, i):
        array = ir.ArrayType(_I8, len(content))
        constant = ir.Constant(array, bytearray(content))
        address = b.bitcast(cgutils.global_constant(b, "table", constant), _I8.as_pointer())
        return b.sext(b.load(b.gep(address, [_to(b, i, t[1], "i64")])), _I64)

    return _make("table", lambda block, i: types.int64, lower, 2)


def _scope(source):
    """The names that `source` defines."""
    scope = dict(LOADERS)
    before = set(scope)
    exec(compile(source, "<decode>", "exec"), scope)
    scope["table"] = _table(scope["TABLE"])
    for name in set(scope) - before:
        if callable(scope[name]) and hasattr(scope[name], "__code__"):
            scope[name] = njit(error_model="numpy")(scope[name])
    return scope


def _block_decoder(scope, out):
    """Intrinsic (src, dst, k, to): block k at src becomes elements to, to + 1, ... at dst."""
    decode, element = scope["decode"].py_func, types.float32(types.UniTuple(types.int64, 2), types.int64)
    ty, narrow = _OUTPUTS[out]
    flags = Flags()
    flags.error_model = "numpy"

    def lower(context, b, signature, values):
        src, dst, k, to = values
        start = b.mul(k, ir.Constant(_I64, scope["BYTES"]))
        block = cgutils.pack_array(b, [src, start])
        first = b.gep(b.inttoptr(dst, ty.as_pointer()), [to])
        compiled = context.compile_subroutine(b, decode, element, flags=flags).fndesc
        for j in range(scope["ELEMENTS"]):
            j = ir.Constant(_I64, j)
            _, value = context.call_internal_no_propagate(b, compiled, element, [block, j])
            b.store(narrow(b, value), b.gep(first, [j])).align = 1
        return context.get_dummy_value()

    @intrinsic
    def block(typingctx, src, dst, k, to):
        return types.void(*[types.int64] * 4), lower

    return block


def _dequantize(scope, out):
    block, elements = _block_decoder(scope, out), scope["ELEMENTS"]

    def dequantize(a, tid, nth):
        src, dst, n = arg(a, 0), arg(a, 1), arg(a, 2)
        for k in range(n * tid // nth, n * (tid + 1) // nth):
            block(src, dst, k, k * elements)

    return dequantize


def _dequantize_rows(scope, out):
    """Row i of dst is row ids[i] of src, NaN where that is outside [0, rows)."""
    block, elements, store = _block_decoder(scope, out), scope["ELEMENTS"], getattr(simd, f"sti_{out}")

    def dequantize_rows(a, tid, nth):
        src, ids, dst, per_row, rows = arg(a, 0), arg(a, 1), arg(a, 2), arg(a, 4), arg(a, 5)
        n = arg(a, 3) * per_row
        if n == 0:
            return
        first, last = n * tid // nth, n * (tid + 1) // nth
        for i in range(first // per_row, (last + per_row - 1) // per_row):
            start, stop, row = max(first, i * per_row), min(last, (i + 1) * per_row), ldi_i64(ids, i)
            if 0 <= row < rows:
                for k in range(start, stop):
                    block(src, dst, k + (row - i) * per_row, k * elements)
            else:
                for k in range(start * elements, stop * elements):
                    store(dst, k, math.nan)

    return dequantize_rows


KERNELS = {"dequantize": _dequantize, "dequantize_rows": _dequantize_rows}


def build(name, *params, source=None):
    """Kernel `name` for params (format, out): out is "f32", "f16" or "bf16". None where there is no such kernel."""
    if name not in KERNELS or len(params) != 2 or params[1] not in _OUTPUTS or source is None:
        return None
    return KERNELS[name](_scope(source), params[1])
