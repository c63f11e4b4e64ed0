"""Row kernels: RMSNorm, LayerNorm, the gated activations SwiGLU and GEGLU, and rows picked from a table.

Rows are f32, f16 or bf16 (computed in f32), adjacent in their last dim, any strides elsewhere. A row is one thread's,
or a piece of a row where elements are independent. The argument block of most ends with a table of the leading dims,
outermost first: their number, then per dim its size and one byte stride per operand (the output's last).
"""

from .lanes import MEMORY, all_sum, first, fma, inline, row_address
from .simd import _llvm, arg, argf, constant, ldi_i64, splat_f32x16, vadd, vdiv, vmul, vsub, zero_f32x16
from .vmath import vsigmoid, vsilu

_PIECE = 1024  # elements of a gated activation that a thread takes at a time

_one = constant("f32", 16, 1.0)
_sqrt = _llvm("vsqrt", 1, "sqrt")
_cube, _slope = constant("f32", 16, 0.044715), constant("f32", 16, 2.0 * 0.7978845608028654)  # 2 sqrt(2 / pi)


def _weights(dtype):
    """f(address, element, n): 16 elements of a weight of that dtype; of ones for "none"."""
    if dtype == "none":
        return inline(lambda a, j, n: _one())
    size, part = MEMORY[dtype].size, MEMORY[dtype].part
    return inline(lambda a, j, n: part(a + j * size, n))


def _reduce(size, ld, part, step):
    """f(row, width, c): the sum of step(total, 16 elements, c, n) over a row, in an order that only width decides."""

    def reduce(row, width, c):
        s0 = s1 = s2 = s3 = zero_f32x16()
        whole = width // 64 * 64
        for j in range(0, whole, 64):
            a = row + j * size
            s0 = step(s0, ld(a), c, 16)
            s1 = step(s1, ld(a + 16 * size), c, 16)
            s2 = step(s2, ld(a + 32 * size), c, 16)
            s3 = step(s3, ld(a + 48 * size), c, 16)
        for j in range(whole, width, 16):
            s0 = step(s0, part(row + j * size, width - j), c, width - j)
        return vdiv(all_sum(vadd(vadd(s0, s1), vadd(s2, s3))), splat_f32x16(width))

    return inline(reduce)


_plain = inline(lambda s, x, c, n: vadd(s, x))
_squares = inline(lambda s, x, c, n: fma(x, x, s))


@inline
def _deviations(s, x, c, n):
    d = vsub(x, c) if n >= 16 else first(vsub(x, c), n)
    return fma(d, d, s)


def _rms_norm(x_dtype, w_dtype, out_dtype):
    """out = x / sqrt(mean(x^2) + eps) * (weight + offset).

    args: x, weight, out, width, eps (f64), offset (f64), rows, dims, then (size, x stride, out stride) per dim
    """
    x, out, weights = MEMORY[x_dtype], MEMORY[out_dtype], _weights(w_dtype)
    size, part, out_size, put = x.size, x.part, out.size, out.put
    mean_square = _reduce(x.size, x.ld, x.part, _squares)

    @inline
    def emit(row, to, w, j, n, k, offset):
        put(to + j * out_size, vmul(vmul(part(row + j * size, n), k), vadd(weights(w, j, n), offset)), n)

    def rms_norm(a, tid, nth):
        w, width, rows, dims = arg(a, 1), arg(a, 3), arg(a, 6), arg(a, 7)
        eps, offset = splat_f32x16(argf(a, 4)), splat_f32x16(argf(a, 5))
        for r in range(rows * tid // nth, rows * (tid + 1) // nth):
            row, to = row_address(arg(a, 0), a + 64, dims, 2, 0, r), row_address(arg(a, 2), a + 64, dims, 2, 1, r)
            k = vdiv(_one(), _sqrt(vadd(mean_square(row, width, eps), eps)))
            for j in range(0, width - 15, 16):
                emit(row, to, w, j, 16, k, offset)
            if width & 15:
                emit(row, to, w, width & -16, width & 15, k, offset)

    return rms_norm


def _layer_norm(x_dtype, w_dtype, b_dtype, out_dtype):
    """out = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias.

    args: x, weight, out, width, eps (f64), bias, rows, dims, then (size, x stride, out stride) per dim
    """
    x, out, weights, biases = MEMORY[x_dtype], MEMORY[out_dtype], _weights(w_dtype), _weights(b_dtype)
    size, part, out_size, put = x.size, x.part, out.size, out.put
    mean, variance = _reduce(x.size, x.ld, x.part, _plain), _reduce(x.size, x.ld, x.part, _deviations)
    biased = b_dtype != "none"

    @inline
    def emit(row, to, w, bias, j, n, m, k):
        y = vmul(vmul(vsub(part(row + j * size, n), m), k), weights(w, j, n))
        if biased:
            y = vadd(y, biases(bias, j, n))
        put(to + j * out_size, y, n)

    def layer_norm(a, tid, nth):
        w, width, bias, rows, dims = arg(a, 1), arg(a, 3), arg(a, 5), arg(a, 6), arg(a, 7)
        eps = splat_f32x16(argf(a, 4))
        for r in range(rows * tid // nth, rows * (tid + 1) // nth):
            row, to = row_address(arg(a, 0), a + 64, dims, 2, 0, r), row_address(arg(a, 2), a + 64, dims, 2, 1, r)
            m = mean(row, width, eps)
            k = vdiv(_one(), _sqrt(vadd(variance(row, width, m), eps)))
            for j in range(0, width - 15, 16):
                emit(row, to, w, bias, j, 16, m, k)
            if width & 15:
                emit(row, to, w, bias, width & -16, width & 15, m, k)

    return layer_norm


@inline
def _gelu(x):
    """x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), written as x sigmoid(2 u): no cancellation"""
    return vmul(x, vsigmoid(vmul(_slope(), fma(vmul(x, x), vmul(_cube(), x), x))))


def _gated(dtype, activate):
    """out = activate(gate) * up.

    args: gate, up, out, width, rows, dims, then (size, gate stride, up stride, out stride) per dim
    """
    size, part, put = MEMORY[dtype].size, MEMORY[dtype].part, MEMORY[dtype].put

    @inline
    def emit(gate, up, to, j, n):
        put(to + j * size, vmul(activate(part(gate + j * size, n)), part(up + j * size, n)), n)

    def gated(a, tid, nth):
        width, rows, dims = arg(a, 3), arg(a, 4), arg(a, 5)
        pieces = (width + _PIECE - 1) // _PIECE
        n = rows * pieces
        for i in range(n * tid // nth, n * (tid + 1) // nth):
            r, begin = i // pieces, i % pieces * _PIECE
            end = min(begin + _PIECE, width)
            gate = row_address(arg(a, 0), a + 48, dims, 3, 0, r)
            up = row_address(arg(a, 1), a + 48, dims, 3, 1, r)
            to = row_address(arg(a, 2), a + 48, dims, 3, 2, r)
            for j in range(begin, end - 15, 16):
                emit(gate, up, to, j, 16)
            if (end - begin) & 15:
                emit(gate, up, to, end - ((end - begin) & 15), (end - begin) & 15)

    return gated


def _swiglu(dtype):
    """_gated by x / (1 + exp(-x))"""
    return _gated(dtype, vsilu)


def _geglu(dtype):
    """_gated by GELU's tanh form"""
    return _gated(dtype, _gelu)


def _embedding(dtype):
    """Rows of a table as f32; an id outside [0, rows) gives NaN, nothing is read.

    args: ids (i64), table, its stride of rows, rows, out (f32, contiguous), width, how many ids
    """
    size, part, put = MEMORY[dtype].size, MEMORY[dtype].part, MEMORY["f32"].put

    def embedding(a, tid, nth):
        width, n = arg(a, 5), arg(a, 6)
        for i in range(n * tid // nth, n * (tid + 1) // nth):
            row, to = ldi_i64(arg(a, 0), i), arg(a, 4) + 4 * width * i
            known = 0 <= row < arg(a, 3)
            x = arg(a, 1) + row * arg(a, 2)
            for j in range(0, width, 16):
                put(to + 4 * j, part(x + size * j, width - j) if known else splat_f32x16(float("nan")), width - j)

    return embedding


def build(name, *params, source=None):
    """rms_norm (x, weight or none, out), layer_norm (x, weight or none, bias or none, out); of one dtype: swiglu,
    geglu, embedding.
    """
    makers = {"rms_norm": _rms_norm, "layer_norm": _layer_norm, "swiglu": _swiglu, "geglu": _geglu}
    makers["embedding"] = _embedding
    weights = {"rms_norm": 1, "layer_norm": 2}.get(name, 0)
    if name not in makers or len(params) != (weights + 2 if weights else 1):
        return None
    known = (p in MEMORY or (p == "none" and 0 < i <= weights) for i, p in enumerate(params))
    return makers[name](*params) if all(known) else None
