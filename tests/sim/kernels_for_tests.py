"""Small Triton kernels, one for each family of instructions that the compiler emits."""

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def binary(x_ptr, y_ptr, out_ptr, n, OP: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside)
    y = tl.load(y_ptr + at, mask=inside)
    if OP == "add":
        z = x + y
    elif OP == "sub":
        z = x - y
    elif OP == "mul":
        z = x * y
    elif OP == "div":
        z = x / y
    elif OP == "floordiv":
        z = x // y
    elif OP == "mod":
        z = x % y
    elif OP == "max":
        z = tl.maximum(x, y)
    elif OP == "max_nan":
        z = tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)
    elif OP == "min":
        z = tl.minimum(x, y)
    elif OP == "lt":
        z = x < y
    elif OP == "ne":
        z = x != y
    elif OP == "where":
        z = tl.where(x < y, x, y)
    elif OP == "and":
        z = x & y
    elif OP == "xor":
        z = x ^ y
    elif OP == "shl":
        z = x << y
    elif OP == "shr":
        z = x >> y
    elif OP == "fma":
        z = tl.fma(x, y, x)
    elif OP == "umulhi":
        z = tl.umulhi(x, y)
    elif OP == "div_rn":
        z = tl.div_rn(x, y)
    elif OP == "pow":
        z = libdevice.pow(x, y)
    elif OP == "fmod":
        z = libdevice.fmod(x, y)
    elif OP == "atan2":
        z = libdevice.atan2(x, y)
    else:
        tl.static_assert(False, "unknown op")
    tl.store(out_ptr + at, z.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def unary(x_ptr, out_ptr, n, OP: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=1.0)
    if OP == "cast":
        z = x
    elif OP == "rz":
        z = x.to(tl.float16, fp_downcast_rounding="rtz")
    elif OP == "bitcast":
        z = x.to(out_ptr.dtype.element_ty, bitcast=True)
    elif OP == "neg":
        z = -x
    elif OP == "not":
        z = ~x
    elif OP == "abs":
        z = tl.abs(x)
    elif OP == "exp":
        z = tl.exp(x)
    elif OP == "exp2":
        z = tl.exp2(x)
    elif OP == "log":
        z = tl.log(x)
    elif OP == "log2":
        z = tl.log2(x)
    elif OP == "sin":
        z = tl.sin(x)
    elif OP == "cos":
        z = tl.cos(x)
    elif OP == "sqrt":
        z = tl.sqrt(x)
    elif OP == "sqrt_rn":
        z = tl.sqrt_rn(x)
    elif OP == "rsqrt":
        z = tl.rsqrt(x)
    elif OP == "sigmoid":
        z = tl.sigmoid(x)
    elif OP == "erf":
        z = tl.erf(x)
    elif OP == "floor":
        z = tl.floor(x)
    elif OP == "ceil":
        z = tl.ceil(x)
    elif OP == "isnan":
        z = x != x
    elif OP == "clamp":
        z = tl.clamp(x, -1.0, 1.0)
    else:
        tl.static_assert(False, "unknown op")
    tl.store(out_ptr + at, z.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def library(x_ptr, out_ptr, n, OP: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=1.0)
    if OP == "tanh":
        z = libdevice.tanh(x)
    elif OP == "lib_sin":
        z = libdevice.sin(x)
    elif OP == "lib_exp":
        z = libdevice.exp(x)
    elif OP == "lib_log1p":
        z = libdevice.log1p(x)
    elif OP == "lib_expm1":
        z = libdevice.expm1(x)
    elif OP == "lib_lgamma":
        z = libdevice.lgamma(x)
    elif OP == "lib_erfinv":
        z = libdevice.erfinv(x)
    elif OP == "lib_rint":
        z = libdevice.rint(x)
    elif OP == "lib_round":
        z = libdevice.round(x)
    elif OP == "lib_trunc":
        z = libdevice.trunc(x)
    elif OP == "lib_popc":
        z = libdevice.popc(x)
    elif OP == "lib_clz":
        z = libdevice.clz(x)
    elif OP == "lib_brev":
        z = libdevice.brev(x)
    elif OP == "lib_ffs":
        z = libdevice.ffs(x)
    else:
        tl.static_assert(False, "unknown op")
    tl.store(out_ptr + at, z.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def assembly(x_ptr, out_ptr, n, OP: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = tl.load(x_ptr + at, mask=inside, other=1.0)
    if OP == "dp4a":
        z = tl.inline_asm_elementwise("dp4a.s32.s32 $0, $1, $1, $1;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1)
    elif OP == "block_asm":
        z = tl.inline_asm_elementwise(
            "{ .reg .b32 t<2>; lop3.b32 t0, $1, 0x0f0f0f0f, 0x11111111, 0x6a; prmt.b32 t1, t0, $1, 0x5140;"
            " add.u32 $0, t0, t1; }",
            "=r,r",
            [x],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
    else:
        tl.static_assert(False, "unknown op")
    tl.store(out_ptr + at, z.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def largest(a, b):
    return tl.maximum(a, b)


@triton.jit
def reduce(x_ptr, out_ptr, rows, columns, OP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (at < columns)[None, :]
    x = tl.load(x_ptr + row[:, None] * columns + at[None, :], mask=inside, other=0.0)
    if OP == "sum":
        z = tl.sum(x, 1)
    elif OP == "max":
        z = tl.max(x, 1)
    elif OP == "min":
        z = tl.min(x, 1)
    elif OP == "argmax":
        z = tl.argmax(x, 1)
    elif OP == "argmin":
        z = tl.argmin(x, 1)
    elif OP == "xor":
        z = tl.xor_sum(x, 1)
    elif OP == "custom":
        z = tl.reduce(x, 1, largest)
    else:
        tl.static_assert(False, "unknown op")
    tl.store(out_ptr + row, z.to(out_ptr.dtype.element_ty), mask=row < rows)


@triton.jit
def recurrence(a0, b0, a1, b1):
    return a0 * a1, b0 * a1 + b1


@triton.jit
def scan(x_ptr, out_ptr, OP: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at)
    if OP == "cumsum":
        z = tl.cumsum(x, 0)
    elif OP == "reverse":
        z = tl.cumsum(x, 0, reverse=True)
    elif OP == "cumprod":
        z = tl.cumprod(x, 0)
    elif OP == "cummax":
        z = tl.associative_scan(x, 0, largest)
    elif OP == "recurrence":
        _, z = tl.associative_scan((tl.full((BLOCK,), 0.5, tl.float32), x), 0, recurrence)
    elif OP == "sort":
        z = tl.sort(x)
    elif OP == "descending":
        z = tl.sort(x, descending=True)
    elif OP == "topk":
        z = tl.topk(x, BLOCK)
    elif OP == "flip":
        z = tl.flip(x)
    elif OP == "gather":
        z = tl.gather(x, BLOCK - 1 - at, 0)
    elif OP == "transpose":
        z = tl.reshape(tl.trans(tl.reshape(x, (BLOCK // 8, 8))), (BLOCK,))
    elif OP == "swap":
        a, b = tl.split(tl.reshape(x, (BLOCK // 2, 2)))
        z = tl.reshape(tl.join(b, a), (BLOCK,))
    elif OP == "histogram":
        z = tl.histogram(x, BLOCK)
    else:
        tl.static_assert(False, "unknown op")
    tl.store(out_ptr + at, z.to(out_ptr.dtype.element_ty))


@triton.jit
def softmax(x_ptr, out_ptr, stride, n, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride + at, mask=at < n, other=float("-inf")).to(tl.float32)
    e = tl.exp(x - tl.max(x, 0))
    tl.store(out_ptr + row * stride + at, e / tl.sum(e, 0), mask=at < n)


@triton.jit
def layer_norm(x_ptr, w_ptr, out_ptr, n, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.float32)
    square = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * n + at, mask=at < n, other=0.0).to(tl.float32)
        total += x
        square += x * x
    mean = tl.sum(total, 0) / n
    scale = 1 / tl.sqrt(tl.sum(square, 0) / n - mean * mean + eps)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * n + at, mask=at < n, other=0.0).to(tl.float32)
        w = tl.load(w_ptr + at, mask=at < n, other=0.0).to(tl.float32)
        tl.store(out_ptr + row * n + at, ((x - mean) * scale * w).to(out_ptr.dtype.element_ty), mask=at < n)


@triton.jit
def randoms(out_ptr, seed, OP: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if OP == "randint":
        z = tl.randint(seed, at)
    elif OP == "rand":
        z = tl.rand(seed, at)
    else:
        z = tl.randn(seed, at)
    tl.store(out_ptr + at, z.to(out_ptr.dtype.element_ty, bitcast=OP == "randint"))


@triton.jit
def atomic(out_ptr, x_ptr, old_ptr, OP: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at)
    if OP == "add":
        old = tl.atomic_add(out_ptr + at, x)
    elif OP == "add_relaxed":
        old = x
        tl.atomic_add(out_ptr + at, x, sem="relaxed")
    elif OP == "collide":
        old = tl.atomic_add(out_ptr + at % 2, x)
    elif OP == "max":
        old = tl.atomic_max(out_ptr + at, x)
    elif OP == "min":
        old = tl.atomic_min(out_ptr + at, x)
    elif OP == "or":
        old = tl.atomic_or(out_ptr + at, x)
    elif OP == "and":
        old = tl.atomic_and(out_ptr + at, x)
    elif OP == "xor":
        old = tl.atomic_xor(out_ptr + at, x)
    elif OP == "xchg":
        old = tl.atomic_xchg(out_ptr + at, x)
    elif OP == "cas":
        old = tl.atomic_cas(out_ptr + at, x - x, x)
    else:
        tl.static_assert(False, "unknown op")
    tl.store(old_ptr + tl.program_id(0) * BLOCK + at, old)


@triton.jit
def sum_with_atomics(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(out_ptr, tl.sum(tl.load(x_ptr + at, mask=at < n, other=0.0), 0))


@triton.jit
def sum_without_atomics(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.sum(tl.load(x_ptr + at, mask=at < n, other=0.0), 0)
    tl.store(out_ptr, tl.load(out_ptr) + total)


@triton.jit
def write_everywhere(out_ptr, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out_ptr + at, tl.full((BLOCK,), 1, tl.int32) * tl.program_id(0), mask=at < n)


@triton.jit
def one_of_two(a_ptr, b_ptr, out_ptr):
    """The compiler picks between the parameters' addresses, and loads the one that is picked"""
    here = tl.program_id(0)
    tl.store(out_ptr + here, tl.load(tl.where(here == 0, a_ptr, b_ptr)))


@triton.jit
def last_program_sums(x_ptr, partial_ptr, count_ptr, out_ptr, programs, BLOCK: tl.constexpr, PROGRAMS: tl.constexpr):
    here = tl.program_id(0)
    tl.store(partial_ptr + here, tl.sum(tl.load(x_ptr + here * BLOCK + tl.arange(0, BLOCK)), 0))
    tl.debug_barrier()
    if tl.atomic_add(count_ptr, 1) == programs - 1:
        tl.store(out_ptr, tl.sum(tl.load(partial_ptr + tl.arange(0, PROGRAMS)), 0))


@triton.jit
def last_program_errs(x_ptr, partial_ptr, count_ptr, out_ptr, programs, BLOCK: tl.constexpr, PROGRAMS: tl.constexpr,
                      EARLY: tl.constexpr):  # fmt: skip
    """What it sums is stored after the atomic that releases (EARLY), or released at a place that the last never asks"""
    here = tl.program_id(0)
    count = 0
    if EARLY:
        count = tl.atomic_add(count_ptr, 1)
    tl.store(partial_ptr + here, tl.sum(tl.load(x_ptr + here * BLOCK + tl.arange(0, BLOCK)), 0))
    tl.debug_barrier()
    if not EARLY:
        tl.atomic_add(count_ptr + 1 + here, 1)
        count = tl.atomic_add(count_ptr, 1, sem="relaxed")
    if count == programs - 1:
        tl.store(out_ptr, tl.sum(tl.load(partial_ptr + tl.arange(0, PROGRAMS)), 0))


@triton.jit
def steps_until_one(x_ptr, out_ptr, n):
    """Collatz: a scalar loop whose length differs from program to program."""
    here = tl.program_id(0)
    x = tl.load(x_ptr + here)
    steps = 0
    while x != 1:
        x = tl.where(x % 2 == 0, x // 2, 3 * x + 1)
        steps += 1
    if here < n:
        tl.store(out_ptr + here, steps)


@triton.jit
def asserting(x_ptr, out_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at)
    tl.device_assert(x > 0, "a positive number")
    tl.store(out_ptr + at, x)
