"""Triton's interpreter with its numbers repaired, so that it computes what the compiled kernel does.

Stock (3.7.1) it computes bf16 on raw bits, truncates f32 to bf16, drops the carry of float8, rounds fma twice, knows
no tf32 and no libdevice, and takes no bool argument. Import this after TRITON_INTERPRET=1 is set and before a launch.
`watch(ranges)` also refuses accesses outside of given addresses.
"""

import ctypes
import functools
import math

import ml_dtypes
import numpy as np
import triton.language as tl
from triton._C.libtriton import ir
from triton.language.extra import libdevice
from triton.runtime import interpreter

Builder, Handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
NARROW = {
    tl.bfloat16: np.dtype(ml_dtypes.bfloat16), tl.float8e4nv: np.dtype(ml_dtypes.float8_e4m3fn),
    tl.float8e5: np.dtype(ml_dtypes.float8_e5m2),
}  # fmt: skip
LARGEST = {tl.float8e4nv: 448.0, tl.float8e5: 57344.0}  # cvt.rn.satfinite
_watched = []


# ---- values ----------------------------------------------------------------------------------------------------------


def decode(handle):
    """The values of a handle as NumPy computes with them: narrow floats in f32."""
    narrow = NARROW.get(handle.dtype.scalar)
    if narrow is None or handle.data.dtype.itemsize != narrow.itemsize or handle.data.dtype.kind != "u":
        return handle.data
    return handle.data.view(narrow).astype(np.float32)


def encode(values, dtype):
    """Values in the storage of a Triton dtype: rounded to nearest even; float8 saturates."""
    dtype = dtype.scalar
    narrow = NARROW.get(dtype)
    if narrow is None:
        return np.asarray(values).astype(interpreter._get_np_dtype(dtype), copy=False)
    values = np.asarray(values, np.float32)
    if dtype in LARGEST:
        values = np.where(np.isnan(values), values, np.clip(values, -LARGEST[dtype], LARGEST[dtype]))
    stored = np.ascontiguousarray(values).astype(narrow)
    return stored.view(np.uint16 if narrow.itemsize == 2 else np.uint8)


def to_tf32(x):
    """f32 with 10 bits of mantissa, to nearest, ties away from zero (cvt.rna.tf32.f32)."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def _is_bf16(*handles):
    return any(h.dtype.scalar == tl.bfloat16 for h in handles)


def _stored(values, dtype):
    if values.dtype == bool:
        return Handle(values, tl.int1)
    return Handle(encode(values, dtype), dtype.scalar)


def _saturated(values, dtype):
    """Floats to integers as `cvt.rzi` does: NaN gives 0, what is too large the limit; narrow ones through i32."""
    wanted = interpreter._get_np_dtype(dtype)
    wide = wanted if wanted.itemsize >= 4 else np.dtype(np.int32)
    limits, exact = np.iinfo(wide), np.trunc(values.astype(np.float64))
    exact = np.where(np.isnan(exact), 0.0, exact)
    high, low = exact >= float(limits.max), exact <= float(limits.min)
    found = np.where(high | low, 0.0, exact).astype(wide)
    found = np.where(high, wide.type(limits.max), np.where(low, wide.type(limits.min), found))
    return found.astype(wanted)


# ---- repairs of the builder's methods --------------------------------------------------------------------------------

_stock = {name: getattr(Builder, name) for name in "binary_op ternary_op unary_op cast_impl create_atomic_rmw".split()}
_stock |= {name: getattr(Builder, name) for name in ("create_masked_load", "create_masked_store")}


def _binary_op(self, left, right, op):
    if _is_bf16(left, right):
        with np.errstate(all="ignore"):
            return _stored(np.asarray(op(decode(left), decode(right))), tl.bfloat16)
    return _stock["binary_op"](self, left, right, op)


def _ternary_op(self, a, b, c, op):
    if _is_bf16(c) and op is not np.where:
        return _stored(np.asarray(op(decode(a), decode(b), decode(c))), tl.bfloat16)
    return _stock["ternary_op"](self, a, b, c, op)


def _unary_op(self, x, op):
    if _is_bf16(x):
        return _stored(np.asarray(op(decode(x))), tl.bfloat16)
    return _stock["unary_op"](self, x, op)


def _cast_impl(self, source, dtype):
    before, after = source.dtype.scalar, dtype.scalar
    if before in NARROW and after.is_int() and not after.is_bool():
        return Handle(_saturated(decode(source), after), after)
    if before in NARROW or after in NARROW:
        return Handle(encode(decode(source), after), after)
    if before.is_floating() and after.is_int() and not after.is_bool():
        return Handle(_saturated(source.data, after), after)
    return _stock["cast_impl"](self, source, dtype)


def _fp_to_fp(self, source, dtype, rounding):
    if rounding in (None, ir.ROUNDING_MODE.RTNE):
        return Handle(encode(decode(source), dtype.scalar), dtype.scalar)
    data = interpreter._convert_float(source.data, source.dtype.scalar, dtype.scalar, rounding)
    return Handle(data.view(interpreter._get_np_dtype(dtype)), dtype.scalar)


def _split(x):
    """An f32 as three tf32 products see it: its high part and the rest, each rounded."""
    high = to_tf32(x)
    return high, to_tf32(x - high)


def _dot(self, a, b, d, precision, *_):
    x, y = decode(a), decode(b)
    if d.data.dtype.kind != "f":
        return Handle(np.matmul(x.astype(np.int32), y.astype(np.int32)) + d.data, d.dtype.scalar)
    wide = np.float64 if d.data.dtype == np.float64 else np.float32
    products = [(x, y)]
    if a.dtype.scalar == tl.float32 and precision == ir.INPUT_PRECISION.TF32:
        products = [(to_tf32(x), to_tf32(y))]
    elif a.dtype.scalar == tl.float32 and precision == ir.INPUT_PRECISION.TF32x3:
        (xh, xl), (yh, yl) = _split(x), _split(y)
        products = [(xl, yh), (xh, yl), (xh, yh)]
    with np.errstate(all="ignore"):
        total = sum(np.matmul(u.astype(wide), v.astype(wide)) for u, v in products) + decode(d).astype(wide)
    return Handle(encode(total, d.dtype), d.dtype.scalar)


def _fma(self, x, y, z):
    if z.data.dtype == np.float32 and not _is_bf16(z):
        with np.errstate(all="ignore"):
            return Handle((x.data.astype(np.float64) * y.data + z.data).astype(np.float32), z.dtype.scalar)
    return Handle(encode(decode(x) * decode(y) + decode(z), z.dtype), z.dtype.scalar)


def _rsqrt(self, x):
    with np.errstate(all="ignore"):
        return Handle(encode(1 / np.sqrt(decode(x)), x.dtype), x.dtype.scalar)


def _atomic_rmw(self, op, ptr, value, mask, *rest):
    if not _is_bf16(value) or op != ir.ATOMIC_OP.FADD:
        return _stock["create_atomic_rmw"](self, op, ptr, value, mask, *rest)
    found, on = np.zeros(value.data.shape, np.uint16), np.broadcast_to(mask.data, value.data.shape)
    for i in np.ndindex(value.data.shape):
        if on[i]:
            cell = np.ctypeslib.as_array((ctypes.c_uint16 * 1).from_address(int(ptr.data[i]))).view(ml_dtypes.bfloat16)
            found[i] = cell.view(np.uint16)[0]
            cell[0] = np.float32(cell[0]) + np.float32(np.array(value.data[i]).view(ml_dtypes.bfloat16))
    return Handle(found, value.dtype.scalar)


# ---- accesses outside of memory --------------------------------------------------------------------------------------


def watch(ranges):
    """From now on refuses loads and stores outside of `ranges`, [first, last) addresses; None: all are allowed.

    `ranges` may also be a function that gives them.
    """
    _watched[:] = [] if ranges is None else [ranges]


def _check(pointers, mask, what):
    if not _watched:
        return
    ranges = _watched[0]() if callable(_watched[0]) else _watched[0]
    at = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)].astype(np.uint64)
    size = np.uint64(max(1, pointers.get_element_ty().primitive_bitwidth // 8))
    if not at.size:
        return
    edges = np.array(sorted(ranges), np.uint64).reshape(-1, 2)
    place = np.searchsorted(edges[:, 0], at, side="right").astype(np.int64) - 1
    fine = (place >= 0) & (at + size <= edges[np.maximum(place, 0), 1]) if len(edges) else np.zeros(at.shape, bool)
    if not fine.all():
        bad = int(at[~fine][0])
        program = interpreter.interpreter_builder.grid_idx
        raise IndexError(
            f"{what} outside of memory: {int((~fine).sum())} of {fine.size} lanes, program {program}, {bad:#x}"
        )


def _masked_load(self, pointers, mask, *rest, **options):
    _check(pointers, mask, "load")
    return _stock["create_masked_load"](self, pointers, mask, *rest, **options)


def _masked_store(self, pointers, value, mask, *rest, **options):
    _check(pointers, mask, "store")
    return _stock["create_masked_store"](self, pointers, value, mask, *rest, **options)


# ---- reductions and scans of bf16: in f32, rounded once --------------------------------------------------------------


def _in_f32(cls):
    stock, cast = cls.apply, lambda x, to: interpreter.interpreter_semantic.cast(x, to)

    def apply(self, x):
        given = x if isinstance(x, tuple) else (x,)
        if not any(t.dtype == tl.bfloat16 for t in given):
            return stock(self, x)
        found = stock(self, tuple(cast(t, tl.float32) if t.dtype == tl.bfloat16 else t for t in given))
        found = found if isinstance(found, tuple) else (found,)
        narrow = [t.dtype == tl.bfloat16 for t in given]
        found = tuple(cast(t, tl.bfloat16) if n and t.dtype == tl.float32 else t for t, n in zip(found, narrow))
        return found if isinstance(x, tuple) else found[0]

    cls.apply = apply


# ---- reductions and scans by any function: a whole half at a time, not element by element --------------------------


def _combined(op, dtypes, left, right):
    """op.combine_fn of two tuples of arrays."""
    with np.errstate(all="ignore"):
        found = op.combine_fn.fn(*map(op.to_tensor, (*left, *right), dtypes * 2))
    return [f.handle.data for f in (found if isinstance(found, tuple) else (found,))]


def _generic_reduce(self, given):
    given, axis = self.unravel(given, self.axis)
    dtypes, parts = [x.dtype for x in given], [x.handle.data for x in given]
    while parts[0].shape[axis] > 1:
        halves = [np.split(p, 2, axis) for p in parts]
        parts = _combined(self, dtypes, *([h[i] for h in halves] for i in (0, 1)))
    if not self.keep_dims:
        parts = [p.squeeze(axis) if self.axis is not None else p.item() for p in parts]
    return list(map(self.to_tensor, parts, dtypes))


def _generic_scan(self, given):
    """Hillis and Steele: in step k all take in what stands 2 ** k before them."""
    axis, dtypes, parts = self.axis, [x.dtype for x in given], [x.handle.data for x in given]
    n, reach = parts[0].shape[axis], 1
    while reach < n:
        late = np.expand_dims(np.arange(n) >= reach, [d for d in range(parts[0].ndim) if d != axis])
        found = _combined(self, dtypes, [np.roll(p, reach, axis) for p in parts], parts)
        parts = [np.where(late, f, p) for p, f in zip(parts, found, strict=True)]
        reach *= 2
    return list(map(self.to_tensor, parts, dtypes))


# ---- the language: patched once for the process, where stock it is at every call of a function (half of the time) ----


class _Patched:
    """What `_patch_lang` gives: nothing is taken back."""

    def restore(self):
        """Nothing."""


@functools.cache
def _patch():
    scope, builder = interpreter._LangPatchScope(), interpreter.interpreter_builder
    for lang in (tl, tl.core):
        for place in (lang, lang.tensor, *([lang.math] if lang is tl else [])):
            interpreter._patch_builtin(place, builder, scope)
        interpreter._patch_lang_tensor(lang.tensor, scope)
        interpreter._patch_lang_core(lang, scope)
    interpreter._patch_builtin(tl.core.tensor_descriptor_base, builder, scope)
    return _Patched()


# ---- bool arguments, libdevice ---------------------------------------------------------------------------------------

_convert = interpreter._implicit_cvt


def number(value, kind):
    """An argument of type "fp32" or "fp64", as a compiled kernel gets it: stock it would be a Python float."""
    dtype = {"fp32": tl.float32, "fp64": tl.float64}[kind]
    return tl.tensor(Handle(encode(np.array([value]), dtype), dtype), dtype)


def _implicit_cvt(argument):
    if isinstance(argument, tl.tensor):
        return argument
    if isinstance(argument, bool):
        return tl.tensor(Handle(np.array([argument]), tl.int1), tl.int1)
    return _convert(argument)


def _each(function):
    return np.vectorize(function, otypes=[np.float64])


def _safe(function, pole=math.inf):
    def call(x):
        try:
            return function(x)
        except (ValueError, OverflowError):
            return pole if not math.isnan(x) else x

    return _each(call)


LIBDEVICE = {
    "abs": np.abs, "acos": np.arccos, "acosh": np.arccosh, "asin": np.arcsin, "asinh": np.arcsinh, "atan": np.arctan,
    "atan2": np.arctan2, "atanh": np.arctanh, "cbrt": np.cbrt, "ceil": np.ceil, "copysign": np.copysign, "cos": np.cos,
    "cosh": np.cosh, "div_rn": np.divide, "erf": _each(math.erf), "erfc": _each(math.erfc), "exp": np.exp,
    "exp2": np.exp2, "expm1": np.expm1, "fast_dividef": np.divide, "fast_expf": np.exp, "fast_logf": np.log,
    "floor": np.floor, "fmod": np.fmod, "hypot": np.hypot, "lgamma": _safe(math.lgamma), "log": np.log,
    "log10": np.log10, "log1p": np.log1p, "log2": np.log2, "nearbyint": np.rint, "nextafter": np.nextafter,
    "pow": np.power, "rint": np.rint, "round": lambda x: np.trunc(x + np.copysign(0.5, x)),
    "rsqrt": lambda x: 1 / np.sqrt(x), "sin": np.sin, "sinh": np.sinh, "sqrt": np.sqrt, "tan": np.tan, "tanh": np.tanh,
    "tgamma": _safe(math.gamma), "trunc": np.trunc,
}  # fmt: skip
TESTS = {
    "finitef": np.isfinite, "isfinited": np.isfinite, "isinf": np.isinf, "isnan": np.isnan, "signbit": np.signbit,
}  # fmt: skip
EXACT = ("nextafter",)  # in the dtype itself


def _library(name, function, test):
    def call(*args, **_):
        args = [interpreter.interpreter_semantic.to_tensor(a) for a in args]
        values = [decode(a.handle) for a in args]
        with np.errstate(all="ignore"):
            found = np.asarray(function(*(v if name in EXACT else v.astype(np.float64) for v in values)))
            dtype = tl.int32 if test else args[0].dtype
            handle = Handle(found.astype(np.int32) if test else encode(found, dtype), dtype)
        shape = [int(n) for n in args[0].shape]
        return tl.tensor(handle, tl.block_type(dtype, shape) if args[0].type.is_block() else dtype)

    return call


def repair():
    """Puts all of it in place, once."""
    Builder.binary_op, Builder.ternary_op, Builder.unary_op = _binary_op, _ternary_op, _unary_op
    Builder.cast_impl, Builder.create_fp_to_fp, Builder.create_dot = _cast_impl, _fp_to_fp, _dot
    Builder.create_fma, Builder.create_rsqrt, Builder.create_atomic_rmw = _fma, _rsqrt, _atomic_rmw
    Builder.get_bf16 = lambda self, value: Handle(encode(np.array([value]), tl.bfloat16), tl.bfloat16)
    Builder.create_precise_divf = lambda self, x, y: self.binary_op(x, y, np.divide)
    Builder.create_maxnumf = lambda self, x, y: self.binary_op(x, y, np.fmax)  # as a GPU does: NaN is no number
    Builder.create_minnumf = lambda self, x, y: self.binary_op(x, y, np.fmin)
    Builder.create_masked_load, Builder.create_masked_store = _masked_load, _masked_store
    # what Triton checks of integers in debug mode costs a third of the time
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    _in_f32(interpreter.ReduceOps)
    _in_f32(interpreter.ScanOps)
    interpreter.ReduceOps.generic_reduce, interpreter.ScanOps.generic_scan = _generic_reduce, _generic_scan
    interpreter._implicit_cvt, interpreter._patch_lang = _implicit_cvt, lambda function: _patch()
    for table, test in ((LIBDEVICE, False), (TESTS, True)):
        for name, function in table.items():
            setattr(libdevice, name, _library(name, function, test))
