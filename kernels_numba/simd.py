"""SIMD values for Numba: LLVM vectors as first-class types, and intrinsics on raw addresses.

Kernels are written once, for 512-bit vectors. Generic operations are legalised by LLVM to whatever the target has
(one zmm, two ymm, four NEON registers, or scalars). Only what LLVM cannot find by itself has a lowering per level:
the 8-bit dot products, and what an old CPU lacks. `levels.TARGET` says for which level this process compiles.

An address is an int64. Nothing here raises, allocates or touches the Python API, so that the machine code
has no relocations and no undefined symbols (`build.link_flat` refuses both).
"""

import operator

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from . import levels
from .half import bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16

FOREIGN, ALIAS = ("llvm.x86.", "llvm.aarch64."), "tensorlib."

_I1, _I8, _I16, _I32, _I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
_LL = {"i1": _I1, "i8": _I8, "i16": _I16, "i32": _I32, "i64": _I64, "f32": ir.FloatType(), "f64": ir.DoubleType()}
_NB = {
    **{f"i{n}": getattr(types, f"int{n}") for n in (8, 16, 32, 64)},
    **{f"u{n}": getattr(types, f"uint{n}") for n in (8, 16, 32, 64)},
    **{f"f{n}": getattr(types, f"float{n}") for n in (32, 64)},
}
_CONTRACT = ("contract",)


class Vec(types.Type):
    """A vector of `n` elements of type `e` ("i8", "f32", ...); its data model is the LLVM vector itself."""

    def __init__(self, e, n):
        self.e, self.n, self.ll = e, n, ir.VectorType(_LL[e], n)
        super().__init__(name=f"vec<{e}x{n}>")

    @property
    def is_float(self):
        return self.e[0] == "f"


@register_model(Vec)
class _VecModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, fe_type.ll)


_vecs = {}


def vec(e, n):
    """The one `Vec` type of that element type and length."""
    if (e, n) not in _vecs:
        _vecs[e, n] = Vec(e, n)
    return _vecs[e, n]


F32x16, F32x8, F32x4, I32x16 = vec("f32", 16), vec("f32", 8), vec("f32", 4), vec("i32", 16)
I8x64, I8x32, I8x16, I16x32, I16x16 = vec("i8", 64), vec("i8", 32), vec("i8", 16), vec("i16", 32), vec("i16", 16)
F64x8, I64x8 = vec("f64", 8), vec("i64", 8)
_NAMED = {f"{v.e}x{v.n}": v for v in (F32x16, F32x8, F32x4, I32x16, I8x64, I8x32, I8x16, I16x32, I16x16, F64x8, I64x8)}


def _const(ty, value):
    if isinstance(ty, ir.VectorType):
        return ir.Constant(ty, list(value) if isinstance(value, (list, tuple)) else [value] * ty.count)
    return ir.Constant(ty, value)


def _pointer(b, address, ty):
    return b.inttoptr(address, ty.as_pointer())


def _load(b, address, ty, align=1):
    value = b.load(_pointer(b, address, ty))
    value.align = align
    return value


def _call(b, name, result, args, flags=()):
    if name.startswith(FOREIGN):
        # Numba compiles for this host before build.py retargets: another CPU's intrinsic goes by a name of ours till
        # then
        name = ALIAS + name
        llvm.add_symbol(name, 8)
    fn = cgutils.get_or_insert_function(b.module, ir.FunctionType(result, [a.type for a in args]), name)
    return b.call(fn, args, fastmath=flags)


def _shuffle(b, x, y, index):
    return b.shuffle_vector(x, y, _const(ir.VectorType(_I32, len(index)), list(index)))


def _join_halves(b, parts):
    """Vectors one after the other as one (a power of two of them)."""
    while len(parts) > 1:
        n = parts[0].type.count
        parts = [_shuffle(b, parts[i], parts[i + 1], range(2 * n)) for i in range(0, len(parts), 2)]
    return parts[0]


def _splat(b, x, n):
    undef = ir.Constant(ir.VectorType(x.type, n), ir.Undefined)
    return _shuffle(b, b.insert_element(undef, x, _const(_I32, 0)), undef, [0] * n)


def _make(name, returns, lower, arity, doc=None):
    """An intrinsic of `arity` arguments: `returns(*types)` gives the result type, `lower(b, types, *values)` its IR."""

    def typer(*arg_types):
        result = returns(*arg_types)
        if result is None:
            return None

        def codegen(context, b, signature, values):
            out = lower(b, arg_types, *values)
            return context.get_dummy_value() if result is types.void else out

        return result(*arg_types), codegen

    args = ", ".join(f"a{i}" for i in range(arity))
    scope = {"typer": typer}
    exec(f"def {name}(typingctx{', ' if args else ''}{args}):\n    return typer({args})", scope)
    scope[name].__doc__ = doc or lower.__doc__
    return intrinsic(scope[name])


# ---- memory -----------------------------------------------------------------------------------------------------


def _lanes_below(b, n, count):
    """<count x i1>: lane index < n (an i64)."""
    lanes = _const(ir.VectorType(_I64, count), list(range(count)))
    return b.icmp_signed("<", lanes, _splat(b, n, count))


def _vector_memory(key, v):
    def store(b, t, address, value):
        b.store(value, _pointer(b, address, v.ll)).align = 1

    def load_n(b, t, address, n):
        """the first n lanes; the others are zero and not read"""
        args = [_pointer(b, address, v.ll), _lanes_below(b, n, v.n), _const(v.ll, 0)]
        return _masked(b, f"llvm.masked.load.v{v.n}{v.e}.p0", v.ll, args)

    def store_n(b, t, address, value, n):
        """the first n lanes; memory behind them is not touched"""
        _masked(
            b,
            f"llvm.masked.store.v{v.n}{v.e}.p0",
            ir.VoidType(),
            [value, _pointer(b, address, v.ll), _lanes_below(b, n, v.n)],
        )

    def _masked(b, name, result, args):
        at = next(i for i, a in enumerate(args) if isinstance(a.type, ir.PointerType)) + 1
        return _call(b, name, result, args[:at] + [_const(_I32, 1)] + args[at:])

    def splat(b, t, x):
        return _splat(b, _to(b, x, t[0], v.e), v.n)

    g = globals()
    g[f"ld_{key}"] = _make(f"ld_{key}", lambda a: v, lambda b, t, a: _load(b, a, v.ll), 1)
    g[f"st_{key}"] = _make(f"st_{key}", lambda a, x: types.void, store, 2)
    g[f"ldn_{key}"] = _make(f"ldn_{key}", lambda a, n: v, load_n, 2)
    g[f"stn_{key}"] = _make(f"stn_{key}", lambda a, x, n: types.void, store_n, 3)
    g[f"splat_{key}"] = _make(f"splat_{key}", lambda x: v, splat, 1)
    g[f"zero_{key}"] = _make(f"zero_{key}", lambda: v, lambda b, t: _const(v.ll, 0), 0)


def _to(b, x, nb, e):
    """Scalar `x` of Numba type `nb` as element type `e` (floats widen or narrow, ints extend or truncate)."""
    want = _LL.get(e) or _LL["i" + e[1:]]
    if x.type == want:
        return x
    if e[0] == "f":
        if isinstance(x.type, ir.IntType):
            return b.sitofp(x, want) if getattr(nb, "signed", True) else b.uitofp(x, want)
        return b.fptrunc(x, want) if want == _LL["f32"] else b.fpext(x, want)
    if not isinstance(x.type, ir.IntType):
        return b.fptosi(x, want)
    if x.type.width > want.width:
        return b.trunc(x, want)
    return b.sext(x, want) if getattr(nb, "signed", True) else b.zext(x, want)


def _scalar_memory(e):
    ll, nb, g = _LL.get(e) or _LL["i" + e[1:]], _NB[e], globals()

    def store(b, t, address, value):
        b.store(_to(b, value, t[1], e), _pointer(b, address, ll)).align = 1

    def load_at(b, t, base, i):
        """element i of the array at base, as GEP(base, i): the form that LLVM's vectoriser understands"""
        value = b.load(b.gep(_pointer(b, base, ll), [i]))
        value.align = 1
        return value

    def store_at(b, t, base, i, value):
        b.store(_to(b, value, t[2], e), b.gep(_pointer(b, base, ll), [i])).align = 1

    g[f"ld_{e}"] = _make(f"ld_{e}", lambda a: nb, lambda b, t, a: _load(b, a, ll), 1)
    g[f"st_{e}"] = _make(f"st_{e}", lambda a, x: types.void, store, 2)
    g[f"ldi_{e}"] = _make(f"ldi_{e}", lambda a, i: nb, load_at, 2)
    g[f"sti_{e}"] = _make(f"sti_{e}", lambda a, i, x: types.void, store_at, 3)


for _key, _v in _NAMED.items():
    _vector_memory(_key, _v)
for _e in _NB:
    _scalar_memory(_e)

arg = _make(
    "arg", lambda a, i: types.int64, lambda b, t, a, i: _load(b, b.add(a, b.mul(i, _const(_I64, 8))), _I64, 8), 2
)
argf = _make(
    "argf",
    lambda a, i: types.float64,
    lambda b, t, a, i: _load(b, b.add(a, b.mul(i, _const(_I64, 8))), _LL["f64"], 8),
    2,
    "word i of the argument block as a float64",
)


def _prefetch(b, t, address):
    """hint: read this cache line soon"""
    fixed = [_const(_I32, v) for v in (0, 3, 1)]
    return _call(b, "llvm.prefetch.p0", ir.VoidType(), [_pointer(b, address, _I8), *fixed])


prefetch = _make("prefetch", lambda a: types.void, _prefetch, 1)


# ---- half precision: storage only, computing is f32 ----------------------------------------------------------------


def _half_memory(e, widen, narrow):
    g, f32 = globals(), types.float32

    def store(b, t, address, value):
        b.store(narrow(b, _to(b, value, t[1], "f32")), _pointer(b, address, _I16)).align = 1

    def load_at(b, t, base, i):
        value = b.load(b.gep(_pointer(b, base, _I16), [i]))
        value.align = 1
        return widen(b, value)

    def store_at(b, t, base, i, value):
        b.store(narrow(b, _to(b, value, t[2], "f32")), b.gep(_pointer(b, base, _I16), [i])).align = 1

    def store_vec(b, t, address, value):
        b.store(narrow(b, value), _pointer(b, address, ir.VectorType(_I16, 16))).align = 1

    g[f"ld_{e}"] = _make(f"ld_{e}", lambda a: f32, lambda b, t, a: widen(b, _load(b, a, _I16)), 1)
    g[f"st_{e}"] = _make(f"st_{e}", lambda a, x: types.void, store, 2)
    g[f"ldi_{e}"] = _make(f"ldi_{e}", lambda a, i: f32, load_at, 2)
    g[f"sti_{e}"] = _make(f"sti_{e}", lambda a, i, x: types.void, store_at, 3)
    g[f"ld_{e}x16"] = _make(f"ld_{e}x16", lambda a: F32x16, lambda b, t, a: widen(b, _load(b, a, I16x16.ll)), 1)
    g[f"st_{e}x16"] = _make(f"st_{e}x16", lambda a, x: types.void, store_vec, 2)


_half_memory("f16", f16_to_f32, f32_to_f16)
_half_memory("bf16", bf16_to_f32, f32_to_bf16)
h2f = _make(
    "h2f", lambda a: vec("f32", a.n), lambda b, t, x: f16_to_f32(b, x), 1, "i16 vector of half bits -> f32 vector"
)


# ---- arithmetic ------------------------------------------------------------------------------------------------


def _binary(name, fop, iop):
    def same(a, c):
        return a if isinstance(a, Vec) and a is c else None

    def lower(b, t, x, y):
        return getattr(b, fop)(x, y, flags=_CONTRACT) if t[0].is_float else getattr(b, iop)(x, y)

    return _make(name, same, lower, 2)


vadd, vsub, vmul = _binary("vadd", "fadd", "add"), _binary("vsub", "fsub", "sub"), _binary("vmul", "fmul", "mul")
vdiv = _binary("vdiv", "fdiv", "sdiv")
vand, vor, vxor = _binary("vand", "", "and_"), _binary("vor", "", "or_"), _binary("vxor", "", "xor")
vshl, vlshr = _binary("vshl", "", "shl"), _binary("vlshr", "", "lshr")


def _operator(op, fn):
    @overload(op, inline="never")
    def _(a, c):
        if isinstance(a, Vec) and isinstance(c, Vec):
            return lambda a, c: fn(a, c)


for _op, _fn in (
    (operator.add, vadd),
    (operator.sub, vsub),
    (operator.mul, vmul),
    (operator.truediv, vdiv),
    (operator.and_, vand),
    (operator.or_, vor),
    (operator.xor, vxor),
):
    _operator(_op, _fn)


def _llvm(name, arity, intrinsic_name, flags=()):
    def lower(b, t, *values):
        return _call(b, f"llvm.{intrinsic_name}.v{t[0].n}{t[0].e}", t[0].ll, list(values), flags)

    return _make(name, lambda a, *rest: a, lower, arity)


def _fma(b, t, x, y, z):
    """x * y + z, rounded once where the CPU can; without FMA, LLVM would call libm for that"""
    if levels.TARGET == "portable":
        return b.fadd(b.fmul(x, y), z)
    return _call(b, f"llvm.fma.v{t[0].n}{t[0].e}", t[0].ll, [x, y, z])


fma = _make("fma", lambda x, y, z: x, _fma, 3)
vmax, vmin = _llvm("vmax", 2, "maxnum", ("nnan",)), _llvm("vmin", 2, "minnum", ("nnan",))
vround, vabs = _llvm("vround", 1, "roundeven"), _llvm("vabs", 1, "fabs")


def _reduction(name, float_name, int_name):
    def lower(b, t, x):
        kind, e = (float_name if t[0].is_float else int_name), _LL[t[0].e]
        start = [_const(e, -0.0)] if kind == "fadd" else []
        flags = ("reassoc",) if kind == "fadd" else ("nnan",)
        return _call(b, f"llvm.vector.reduce.{kind}.v{t[0].n}{t[0].e}", e, [*start, x], flags)

    def lower_int(b, t, x):
        return _call(b, f"llvm.vector.reduce.{int_name}.v{t[0].n}{t[0].e}", _LL[t[0].e], [x])

    return _make(name, lambda a: _NB[a.e], lambda b, t, x: (lower if t[0].is_float else lower_int)(b, t, x), 1)


hsum, hmax = _reduction("hsum", "fadd", "add"), _reduction("hmax", "fmax", "smax")


def constant(e, n, value):
    """Intrinsic without arguments that gives a constant vector; `value` is a number or a list of n."""
    v = vec(e, n)
    return _make("constant", lambda: v, lambda b, t: _const(v.ll, value), 0)


def shuffle(index):
    """Intrinsic f(x, y): elements `index` of x followed by y."""
    index = list(index)
    return _make("shuffle", lambda x, y: vec(x.e, len(index)), lambda b, t, x, y: _shuffle(b, x, y, index), 2)


def bitcast(e, n):
    """Intrinsic f(x): the same bits as a vector of n elements e."""
    v = vec(e, n)
    return _make("bitcast", lambda x: v, lambda b, t, x: b.bitcast(x, v.ll), 1)


def extract(i):
    """Intrinsic f(x): element i as a scalar."""
    return _make("extract", lambda x: _NB[x.e], lambda b, t, x: b.extract_element(x, _const(_I32, i)), 1)


as_i8x64, as_i16x32, as_i32x16, as_f32x16 = (
    bitcast("i8", 64),
    bitcast("i16", 32),
    bitcast("i32", 16),
    bitcast("f32", 16),
)
i2f = _make("i2f", lambda a: vec("f32", a.n), lambda b, t, x: b.sitofp(x, vec("f32", t[0].n).ll), 1, "signed -> f32")
u2f = _make("u2f", lambda a: vec("f32", a.n), lambda b, t, x: b.uitofp(x, vec("f32", t[0].n).ll), 1, "unsigned -> f32")
f2i = _make("f2i", lambda a: vec("i32", a.n), lambda b, t, x: b.fptosi(x, vec("i32", t[0].n).ll), 1, "f32 -> i32")
narrow_i8 = _make("narrow_i8", lambda a: vec("i8", a.n), lambda b, t, x: b.trunc(x, vec("i8", t[0].n).ll), 1, "-> i8")
sext_i32 = _make("sext_i32", lambda a: vec("i32", a.n), lambda b, t, x: b.sext(x, vec("i32", t[0].n).ll), 1, "-> i32")
zext_i32 = _make("zext_i32", lambda a: vec("i32", a.n), lambda b, t, x: b.zext(x, vec("i32", t[0].n).ll), 1, "-> i32")
