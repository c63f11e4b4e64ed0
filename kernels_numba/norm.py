"""Row kernels: RMSNorm, LayerNorm, the gated activations SwiGLU and GEGLU, rows picked from a table; their gradients.

Rows are f32, f16 or bf16 (computed in f32), adjacent in their last dim, any strides elsewhere. A row is one thread's,
or a piece of a row where elements are independent. The argument block of most ends with a table of the leading dims,
outermost first: their number, then per dim its size and one byte stride per operand (the output's last).
"""

from .lanes import MEMORY, all_sum, first, fma, greater, inline, lesser, row_address
from .simd import _llvm, arg, argf, constant, ldi_i64, splat_f32x16, vadd, vdiv, vmul, vsub, zero_f32x16
from .vmath import vsigmoid, vsilu

_part, _put = MEMORY["f32"].part, MEMORY["f32"].put
_PIECE = 1024  # elements of a gated activation that a thread takes at a time

_one = constant("f32", 16, 1.0)
_sqrt = _llvm("vsqrt", 1, "sqrt")
_cube, _slope = constant("f32", 16, 0.044715), constant("f32", 16, 2.0 * 0.7978845608028654)  # 2 sqrt(2 / pi)
_cube3 = constant("f32", 16, 3 * 0.044715)
_far, _minus_far = constant("f32", 16, 100.0), constant("f32", 16, -100.0)  # beyond, slopes are 0 or 1 (to 1e-41)


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


def _vjp_sums(centred, x_dtype, w_dtype, g_dtype):
    """(at, means) for `_norm_vjp`."""
    weights = _weights(w_dtype)
    size, part, g_size, g_part = MEMORY[x_dtype].size, MEMORY[x_dtype].part, MEMORY[g_dtype].size, MEMORY[g_dtype].part

    @inline
    def at(row, grow, w, j, n, m, k, offset):
        """(g, h, u) of 16 elements."""
        g = g_part(grow + j * g_size, n)
        d = part(row + j * size, n)
        return g, vmul(g, vadd(weights(w, j, n), offset)), vmul(vsub(d, m) if centred else d, k)

    @inline
    def means(row, grow, w, width, m, k, offset):
        """(mean(h), mean(h u)): g is 0 behind the row's end."""
        p0 = p1 = q0 = q1 = zero_f32x16()
        whole = width // 32 * 32
        for j in range(0, whole, 32):
            _, h, u = at(row, grow, w, j, 16, m, k, offset)
            p0, q0 = vadd(p0, h), fma(h, u, q0)
            _, h, u = at(row, grow, w, j + 16, 16, m, k, offset)
            p1, q1 = vadd(p1, h), fma(h, u, q1)
        for j in range(whole, width, 16):
            _, h, u = at(row, grow, w, j, width - j, m, k, offset)
            p0, q0 = vadd(p0, h), fma(h, u, q0)
        n = splat_f32x16(width)
        return vdiv(all_sum(vadd(p0, p1)), n), vdiv(all_sum(vadd(q0, q1)), n)

    return at, means


def _norm_vjp(centred, x_dtype, w_dtype, g_dtype):
    """Gradients of a norm y = u * (weight + offset), where u = (x - mean) / root of the variance + eps, or x / root of
    the mean square + eps if not `centred`: with h = g * (weight + offset), dx = (h - mean(h) - u mean(h u)) / root
    (without mean(h) if not centred). Rows are cut in blocks; the sums of g * u (for weight) and of g (for bias) over a
    block are rows of two tables, which depend on the blocks but not on the number of threads.

    args: x, weight, g, dx (x's dtype), width, eps (f64), offset (f64), table of sums of g * u (f32, blocks
    by width) or 0, of g or 0, blocks, rows, dims, then (size, strides of x, g, dx) per dim
    """
    x = MEMORY[x_dtype]
    size, put = x.size, x.put
    at, means = _vjp_sums(centred, x_dtype, w_dtype, g_dtype)
    moment = _reduce(x.size, x.ld, x.part, _deviations if centred else _squares)
    mean = _reduce(x.size, x.ld, x.part, _plain)

    @inline
    def emit(row, grow, w, to, sums, plain, j, n, m, k, offset, p, q):
        g, h, u = at(row, grow, w, j, n, m, k, offset)
        h = fma(vsub(zero_f32x16(), u), q, vsub(h, p) if centred else h)
        put(to + j * size, vmul(h, k), n)
        if sums != 0:
            _put(sums + 4 * j, fma(g, u, _part(sums + 4 * j, n)), n)
        if plain != 0:
            _put(plain + 4 * j, vadd(_part(plain + 4 * j, n), g), n)

    def norm_vjp(a, tid, nth):
        w, width, blocks, rows, dims = arg(a, 1), arg(a, 4), arg(a, 9), arg(a, 10), arg(a, 11)
        eps, offset = splat_f32x16(argf(a, 5)), splat_f32x16(argf(a, 6))
        for b in range(blocks * tid // nth, blocks * (tid + 1) // nth):
            sums = arg(a, 7) + 4 * width * b if arg(a, 7) != 0 else 0
            plain = arg(a, 8) + 4 * width * b if arg(a, 8) != 0 else 0
            for j in range(0, width, 16):
                if sums != 0:
                    _put(sums + 4 * j, zero_f32x16(), width - j)
                if plain != 0:
                    _put(plain + 4 * j, zero_f32x16(), width - j)
            for r in range(rows * b // blocks, rows * (b + 1) // blocks):
                row, grow = row_address(arg(a, 0), a + 96, dims, 3, 0, r), row_address(arg(a, 2), a + 96, dims, 3, 1, r)
                to = row_address(arg(a, 3), a + 96, dims, 3, 2, r)
                m = mean(row, width, eps) if centred else eps
                k = vdiv(_one(), _sqrt(vadd(moment(row, width, m), eps)))
                p, q = means(row, grow, w, width, m, k, offset)
                for j in range(0, width - 15, 16):
                    emit(row, grow, w, to, sums, plain, j, 16, m, k, offset, p, q)
                if width & 15:
                    emit(row, grow, w, to, sums, plain, width & -16, width & 15, m, k, offset, p, q)

    return norm_vjp


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


def _gated_vjp(dtype, slope):
    """Gradients of activate(gate) * up; `slope(gate)` is (activate(gate), its derivative).

    args: gate, up, g, dgate, dup, width, rows, dims, then (size, strides of gate, up, g, both results) per dim
    """
    size, part, put = MEMORY[dtype].size, MEMORY[dtype].part, MEMORY[dtype].put

    @inline
    def emit(gate, up, grow, at, other, j, n):
        g = part(grow + j * size, n)
        y, d = slope(part(gate + j * size, n))
        put(at + j * size, vmul(vmul(g, part(up + j * size, n)), d), n)
        put(other + j * size, vmul(g, y), n)

    def gated_vjp(a, tid, nth):
        width, rows, dims = arg(a, 5), arg(a, 6), arg(a, 7)
        pieces = (width + _PIECE - 1) // _PIECE
        n = rows * pieces
        for i in range(n * tid // nth, n * (tid + 1) // nth):
            r, begin = i // pieces, i % pieces * _PIECE
            end = min(begin + _PIECE, width)
            gate = row_address(arg(a, 0), a + 64, dims, 4, 0, r)
            up = row_address(arg(a, 1), a + 64, dims, 4, 1, r)
            grow = row_address(arg(a, 2), a + 64, dims, 4, 2, r)
            at, other = row_address(arg(a, 3), a + 64, dims, 4, 3, r), row_address(arg(a, 4), a + 64, dims, 4, 3, r)
            for j in range(begin, end - 15, 16):
                emit(gate, up, grow, at, other, j, 16)
            if (end - begin) & 15:
                emit(gate, up, grow, at, other, end - ((end - begin) & 15), (end - begin) & 15)

    return gated_vjp


@inline
def _silu_slope(x):
    near = lesser(_far(), greater(_minus_far(), x))
    s = vsigmoid(near)
    return vsilu(x), vmul(s, fma(near, vsub(_one(), s), _one()))


@inline
def _gelu_slope(x):
    near = lesser(_far(), greater(_minus_far(), x))
    square = vmul(near, near)
    s = vsigmoid(vmul(_slope(), fma(square, vmul(_cube(), near), near)))
    return _gelu(x), vmul(s, fma(vmul(near, vsub(_one(), s)), vmul(_slope(), fma(_cube3(), square, _one())), _one()))


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
    size, part, put = MEMORY[dtype].size, MEMORY[dtype].part, _put

    def embedding(a, tid, nth):
        width, n = arg(a, 5), arg(a, 6)
        for i in range(n * tid // nth, n * (tid + 1) // nth):
            row, to = ldi_i64(arg(a, 0), i), arg(a, 4) + 4 * width * i
            known = 0 <= row < arg(a, 3)
            x = arg(a, 1) + row * arg(a, 2)
            for j in range(0, width, 16):
                put(to + 4 * j, part(x + size * j, width - j) if known else splat_f32x16(float("nan")), width - j)

    return embedding


def embedding_vjp(a, tid, nth):
    """A table's gradient: rows of g (f32) added to the rows of their ids, in the order of ids; other ids are skipped.

    args: ids (i64), g (contiguous), out (f32, contiguous), its rows, width, how many ids
    """
    ids, width, n = arg(a, 0), arg(a, 4), arg(a, 5)
    first_row, end = arg(a, 3) * tid // nth, arg(a, 3) * (tid + 1) // nth
    for j in range(first_row * width, end * width, 16):
        _put(arg(a, 2) + 4 * j, zero_f32x16(), end * width - j)
    for i in range(n):
        row = ldi_i64(ids, i)
        if first_row <= row < end:
            to, source = arg(a, 2) + 4 * width * row, arg(a, 1) + 4 * width * i
            for j in range(0, width, 16):
                _put(to + 4 * j, vadd(_part(to + 4 * j, width - j), _part(source + 4 * j, width - j)), width - j)


def build(name, *params, source=None):
    """rms_norm (x, weight or none, out), layer_norm (x, weight or none, bias or none, out), their vjp (x, weight or
    none, g); of one dtype: swiglu, geglu, their vjp, embedding; embedding_vjp (of f32).
    """
    if name == "embedding_vjp" and not params:
        return embedding_vjp
    norms = {
        "rms_norm": (_rms_norm, 1),
        "layer_norm": (_layer_norm, 2),
        "rms_norm_vjp": (lambda *dtypes: _norm_vjp(False, *dtypes), 1),
        "layer_norm_vjp": (lambda *dtypes: _norm_vjp(True, *dtypes), 1),
    }
    plain = {
        "swiglu": _swiglu,
        "geglu": _geglu,
        "swiglu_vjp": lambda dtype: _gated_vjp(dtype, _silu_slope),
        "geglu_vjp": lambda dtype: _gated_vjp(dtype, _gelu_slope),
        "embedding": _embedding,
    }
    make, weights = norms[name] if name in norms else (plain.get(name), 0)
    if make is None or len(params) != (weights + 2 if weights else 1):
        return None
    known = (p in MEMORY or (p == "none" and 0 < i <= weights) for i, p in enumerate(params))
    return make(*params) if all(known) else None
