"""What kernels over tiles share: where rows begin, elements of any dtype, combining what lanes hold, launch shapes.

A table of dims says where row p begins: innermost first, its sizes and strides (in elements), at most MAX of them. They
are arguments; how many there are is a constant. Float8 is read and written as bytes, so that every architecture can.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from .float8 import KINDS, narrowed, widened
from .launch import pointer, power_of_2

MAX = 4  # dims of a table
FLOATS = ("f16", "bf16", "f32", "f64", "f8e4m3", "f8e5m2")
WIDE = {"f32": tl.float32, "f64": tl.float64, "i32": tl.int32, "u32": tl.uint32, "i64": tl.int64, "u64": tl.uint64}
# 2 ** t of t = x / log(2), then times 1 + c, where c = x - t log(2) is what rounding t took; within [0, 1]
DECAY = tl.constexpr("""{
.reg .f32 t, c, p;
mul.rn.f32 t, $1, 0f3FB8AA3B;
fma.rn.f32 c, t, 0fBF317218, $1;
ex2.approx.ftz.f32 p, t;
fma.rn.sat.f32 $0, p, c, p;
}""")
FAST = tl.constexpr("""{
.reg .f32 t;
mul.rn.f32 t, $1, 0f3FB8AA3B;
ex2.approx.ftz.f32 $0, t;
}""")
# two bf16 of a register as f32
PAIR = tl.constexpr("shl.b32 $0, $2, 16; and.b32 $1, $2, 0xFFFF0000;")


def cells(dtype):
    """The type of a pointer to elements of a dtype, float8 as bytes."""
    return "*u8" if dtype in KINDS else pointer(dtype)


def accumulated(compute):
    """The dtype in which elements computed as `compute` are combined: small integers and bool as i32."""
    return compute if compute in WIDE else "i32"


def table(words, at, count):
    """(sizes, strides) of `count` dims at words[at:], (size, stride) each, filled up to MAX."""
    if count > MAX:
        raise ValueError(f"a table of {count} dims; expected at most {MAX}: ops copy what has more")
    sizes, strides = list(words[at : at + 2 * count : 2]), list(words[at + 1 : at + 2 * count : 2])
    return sizes + [1] * (MAX - count), strides + [0] * (MAX - count)


def byte_table(words, at, itemsizes):
    """(rows, sizes, strides of each operand) of a table of leading dims at words[at:], as room norm has them: rows, how
    many dims, then outermost first each its size and a stride in bytes per operand.
    """
    rows, count, each = words[at], words[at + 1], len(itemsizes) + 1
    if count > MAX:
        raise ValueError(f"a table of {count} dims; expected at most {MAX}: ops copy what has more")
    dims = [words[at + 2 + each * d : at + 2 + each * (d + 1)] for d in reversed(range(count))]
    strides = [[d[k + 1] // size for d in dims] + [0] * (MAX - count) for k, size in enumerate(itemsizes)]
    return rows, [d[0] for d in dims], strides


def packed(sizes, strides):
    """The arguments of `begin`: n0, s0, n1, s1, n2, s2, s3."""
    return (sizes[0], strides[0], sizes[1], strides[1], sizes[2], strides[2], strides[3])


def strides_of(prefix):
    """Names of the strides of a table in a signature: what 16 should divide."""
    return tuple(f"{prefix}s{d}" for d in range(MAX))


def reach(sizes, strides):
    """The largest distance of elements in a table."""
    return sum((n - 1) * abs(s) for n, s in zip(sizes, strides, strict=True))


@triton.jit
def widen(x, GIVEN: tl.constexpr, ACC: tl.constexpr):
    """Elements of dtype GIVEN, as loaded, as numbers of ACC."""
    if GIVEN == "f8e4m3":
        x = widened(x, 4)
    elif GIVEN == "f8e5m2":
        x = widened(x, 5)
    return x.to(ACC)


@triton.jit
def real(x, ASM: tl.constexpr):
    """bf16 as f32, others as they are."""
    if x.dtype == tl.bfloat16 and ASM:
        x = tl.inline_asm_elementwise(PAIR, "=f,=f,r", [x], tl.float32, True, 2)
    elif x.dtype == tl.bfloat16:
        x = x.to(tl.float32)
    return x


@triton.jit
def exponential(x, ACCURATE: tl.constexpr):
    """e ** x: to an ulp or two, or what narrow floats need (the error grows with |x|, up to 2 ** -18)."""
    return libdevice.exp(x) if ACCURATE else tl.exp(x)


@triton.jit
def decay(x, ACCURATE: tl.constexpr, ASM: tl.constexpr):
    """e ** x for x up to 0: what `exponential` gives, in fewer instructions; 0 below 2 ** -126, and for NaN."""
    if x.dtype == tl.float32 and ASM:
        y = tl.inline_asm_elementwise(DECAY if ACCURATE else FAST, "=f,f", [x], tl.float32, True, 1)
    else:
        y = exponential(x, ACCURATE)
    return y


@triton.jit
def truth(x, GIVEN: tl.constexpr):
    """1 for elements that are not 0, as i32."""
    if GIVEN == "f8e4m3" or GIVEN == "f8e5m2":
        y = (x & 0x7F) != 0
    else:
        y = x != 0
    return y.to(tl.int32)


@triton.jit
def narrow(x, OUT: tl.constexpr, TO: tl.constexpr):
    """Numbers as elements of dtype OUT, whose memory holds TO: floats to nearest even, float8 without saturating."""
    if OUT == "f8e4m3":
        y = narrowed(x.to(tl.float32), 4)
    elif OUT == "f8e5m2":
        y = narrowed(x.to(tl.float32), 5)
    elif OUT == "bool":
        y = (x != 0).to(tl.uint8)
    else:
        y = x.to(TO)
    return y


# ---- combining -------------------------------------------------------------------------------------------------------


@triton.jit
def largest(a, b):
    """The larger one; NaN if one is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def smallest(a, b):
    """The smaller one; NaN if one is."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def product(a, b):
    """a b"""
    return a * b


@triton.jit
def step(acc, v, OP: tl.constexpr):
    """acc with v taken in."""
    if OP == "sum":
        acc = acc + v
    elif OP == "prod":
        acc = acc * v
    elif OP == "amax":
        acc = largest(acc, v)
    else:
        acc = smallest(acc, v)
    return acc


@triton.jit
def over(acc, AXIS: tl.constexpr, OP: tl.constexpr):
    """All along an axis, combined."""
    if OP == "sum":
        found = tl.sum(acc, AXIS)
    elif OP == "prod":
        found = tl.reduce(acc, AXIS, product)
    elif OP == "amax":
        found = tl.reduce(acc, AXIS, largest)
    else:
        found = tl.reduce(acc, AXIS, smallest)
    return found


@triton.jit
def divide(x, y):
    """x / y, rounded to nearest; y is a number or of x's type."""
    if x.dtype == tl.float32:
        z = tl.div_rn(x, tl.zeros(x.shape, tl.float32) + y)
    else:
        z = x / y
    return z


@triton.jit
def mean_of(total, n, share):
    """total / n, to the last bit or nearly so, where share = 1 / n: no slow path; NaN for infinities."""
    mean = total * share
    return mean + tl.fma(-mean, tl.zeros(mean.shape, tl.float32) + n, total) * share


# ---- shapes of launches ----------------------------------------------------------------------------------------------


def start_of(op, compute):
    """What combining begins with."""
    if op in ("sum", "prod"):
        return int(op == "prod")
    if compute in FLOATS:
        return float("-inf") if op == "amax" else float("inf")
    bits, signed = (1, 0) if compute == "bool" else (int(compute[1:]), compute[0] == "i")
    limits = (-(1 << bits - 1) if signed else 0), (1 << bits - signed) - 1
    return limits[op == "amin"]


def warps_for(elements, each=32):
    """Warps so that a thread holds `each` elements of a tile at most: 1 to 32."""
    return min(32, max(1, power_of_2(-(-elements // (32 * each)))))
