"""Normalisation of channels over a batch and its gradient: a thread takes a channel at a time, whose elements, read
several times, stay in its caches.

x is contiguous, (N, C, L), f32, f16 or bf16; weights, biases and statistics are f32, C of each. Sums are in 64 lanes
per row of L elements, rows one after the other: results do not depend on the number of threads.
"""

from . import simd
from .lanes import MEMORY, all_sum, first, fma, inline, shared
from .simd import _llvm, arg, argf, constant, ld_f32, splat_f32x16, st_f32, vadd, vdiv, vmul, vsub, zero_f32x16

_sqrt, _lane0, _one = _llvm("vsqrt", 1, "sqrt"), simd.extract(0), constant("f32", 16, 1.0)


def _sums(dtype, step):
    """f(x, g, m, n, pitch, length): the sum of step(x, g, m, total, count) over a channel's n rows, `pitch` elements
    apart; step takes 16 elements, of which `count` exist (the others are 0), and adds to a total.
    """
    size, ld, part = MEMORY[dtype].size, MEMORY[dtype].ld, MEMORY[dtype].part

    @shared
    def sums(x, g, m, n, pitch, length):
        total, whole = zero_f32x16(), length // 64 * 64
        for _ in range(n):
            s0 = s1 = s2 = s3 = zero_f32x16()
            for j in range(0, whole, 64):
                a, b = x + size * j, g + size * j
                s0 = step(ld(a), ld(b), m, s0, 16)
                s1 = step(ld(a + 16 * size), ld(b + 16 * size), m, s1, 16)
                s2 = step(ld(a + 32 * size), ld(b + 32 * size), m, s2, 16)
                s3 = step(ld(a + 48 * size), ld(b + 48 * size), m, s3, 16)
            for j in range(whole, length, 16):
                s0 = step(part(x + size * j, length - j), part(g + size * j, length - j), m, s0, length - j)
            total = vadd(total, vadd(vadd(s0, s1), vadd(s2, s3)))
            x += size * pitch
            g += size * pitch
        return all_sum(total)

    return sums


_plain = inline(lambda x, g, m, s, n: vadd(s, x))
_other = inline(lambda x, g, m, s, n: vadd(s, g))
_products = inline(lambda x, g, m, s, n: fma(g, vsub(x, m), s))


@inline
def _squares(x, g, m, s, n):
    d = vsub(x, m) if n >= 16 else first(vsub(x, m), n)
    return fma(d, d, s)


def _each(dtype, take):
    """f(x, g, to, a, b, c, m, n, pitch, length): take(x, g, a, b, c, m) for all elements of a channel."""
    size, ld, part, st, put = MEMORY[dtype]

    @shared
    def each(x, g, to, a, b, c, m, n, pitch, length):
        whole = length // 16 * 16
        for _ in range(n):
            for j in range(0, whole, 16):
                st(to + size * j, take(ld(x + size * j), ld(g + size * j), a, b, c, m))
            if whole < length:
                left, at = length - whole, size * whole
                put(to + at, take(part(x + at, left), part(g + at, left), a, b, c, m), left)
            x += size * pitch
            g += size * pitch
            to += size * pitch

    return each


_scaled = inline(lambda x, g, a, b, c, m: fma(vsub(x, m), a, c))
_mixed = inline(lambda x, g, a, b, c, m: fma(g, a, fma(vsub(x, m), b, c)))


@inline
def _of(address, c, otherwise):
    return splat_f32x16(ld_f32(address + 4 * c)) if address != 0 else otherwise


def _forward(dtype):
    """(x - mean) / sqrt(var + eps) * weight + bias, and mean and var of every channel.

    args: x, out, weight or 0, bias or 0, mean, var, eps (f64), N, C, L
    """
    size = MEMORY[dtype].size
    plain, squares, each = _sums(dtype, _plain), _sums(dtype, _squares), _each(dtype, _scaled)

    def forward(a, tid, nth):
        n, channels, length = arg(a, 7), arg(a, 8), arg(a, 9)
        count, eps = splat_f32x16(n * length), splat_f32x16(argf(a, 6))
        for c in range(channels * tid // nth, channels * (tid + 1) // nth):
            x, pitch = arg(a, 0) + size * c * length, channels * length
            m = vdiv(plain(x, x, eps, n, pitch, length), count)
            v = vdiv(squares(x, x, m, n, pitch, length), count)
            st_f32(arg(a, 4) + 4 * c, _lane0(m))
            st_f32(arg(a, 5) + 4 * c, _lane0(v))
            k = vmul(vdiv(_one(), _sqrt(vadd(v, eps))), _of(arg(a, 2), c, _one()))
            bias = _of(arg(a, 3), c, zero_f32x16())
            each(x, x, arg(a, 1) + size * c * length, k, k, bias, m, n, pitch, length)

    return forward


def _vjp(dtype):
    """Gradients of x, weight and bias, of gradients of all three results. Statistics are computed again: keeping them
    would mean to keep the result they come with.

    args: x, g (x's dtype), dx, weight or 0, gradients of mean and var, dweight, dbias, eps (f64), N, C, L
    """
    size, plain, squares = MEMORY[dtype].size, _sums(dtype, _plain), _sums(dtype, _squares)
    others, products, each = _sums(dtype, _other), _sums(dtype, _products), _each(dtype, _mixed)

    def vjp(a, tid, nth):
        n, channels, length = arg(a, 9), arg(a, 10), arg(a, 11)
        count, eps = splat_f32x16(n * length), splat_f32x16(argf(a, 8))
        for c in range(channels * tid // nth, channels * (tid + 1) // nth):
            at, pitch = size * c * length, channels * length
            x, g = arg(a, 0) + at, arg(a, 1) + at
            m = vdiv(plain(x, x, eps, n, pitch, length), count)
            k = vdiv(_one(), _sqrt(vadd(vdiv(squares(x, x, m, n, pitch, length), count), eps)))
            total, product = others(x, g, m, n, pitch, length), products(x, g, m, n, pitch, length)
            st_f32(arg(a, 6) + 4 * c, _lane0(vmul(product, k)))
            st_f32(arg(a, 7) + 4 * c, _lane0(total))
            scale, of_var = vmul(k, _of(arg(a, 3), c, _one())), _of(arg(a, 5), c, eps)
            slope = vsub(vadd(of_var, of_var), vmul(vmul(scale, k), vmul(k, product)))
            shift = vsub(_of(arg(a, 4), c, eps), vmul(scale, total))
            each(x, g, arg(a, 2) + at, scale, vdiv(slope, count), vdiv(shift, count), m, n, pitch, length)

    return vjp


def build(name, *params, source=None):
    """forward, vjp: of x's dtype."""
    make = {"forward": _forward, "vjp": _vjp}.get(name)
    return make(*params) if make and len(params) == 1 and params[0] in MEMORY else None
