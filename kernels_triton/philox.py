"""Philox 4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011), and what the words
become: the same arithmetic as in kernels_numba/random.py and distributions.py, so that the bits are the same.

Kernels that call this are compiled without contraction (`fuse=False`): where the CPU fuses, so does `tl.fma` here.
"""

import triton
import triton.language as tl


@triton.jit
def philox_block(low, high, key):
    """Four u32 for the 128-bit counters (low, high), i64 each, and the i64 key"""
    high, key = high.to(tl.int64), key.to(tl.int64)
    c0, c1 = low.to(tl.uint32), (low >> 32).to(tl.uint32)
    c2, c3 = high.to(tl.uint32) + 0 * c0, (high >> 32).to(tl.uint32) + 0 * c0
    k0, k1 = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    M0, M1 = tl.full([], 0xD2511F53, tl.uint32), tl.full([], 0xCD9E8D57, tl.uint32)
    W0, W1 = tl.full([], 0x9E3779B9, tl.uint32), tl.full([], 0xBB67AE85, tl.uint32)
    for _ in tl.static_range(10):
        a, b = c0, c2
        c0, c2 = tl.umulhi(M1 + 0 * b, b) ^ c1 ^ k0, tl.umulhi(M0 + 0 * a, a) ^ c3 ^ k1
        c1, c3 = b * M1, a * M0
        k0, k1 = k0 + W0, k1 + W1
    return c0, c1, c2, c3


@triton.jit
def interleaved(a, b, N: tl.constexpr):
    """a[0], b[0], a[1], b[1], ...: N elements"""
    return tl.reshape(tl.join(a, b), [N])


@triton.jit
def wide_words(low, high):
    """u64 of two u32"""
    return low.to(tl.uint64) | (high.to(tl.uint64) << 32)


@triton.jit
def real(x, HALF: tl.constexpr, BITS: tl.constexpr):
    """(x + HALF) * 2**-BITS of a signed integer, in the float type of its width"""
    if x.dtype.primitive_bitwidth == 32:
        return (x.to(tl.float32) + HALF) * (2.0**-BITS)
    else:
        return (x.to(tl.float64) + HALF) * (2.0**-BITS)


@triton.jit
def signed(w):
    """Words as signed integers of the same bits"""
    if w.dtype.primitive_bitwidth == 32:
        return w.to(tl.int32, bitcast=True)
    else:
        return w.to(tl.int64, bitcast=True)


@triton.jit
def unit(w, DIGITS: tl.constexpr):
    """The upper DIGITS bits of a word as a number in [0, 1)"""
    return real(signed(w >> (w.dtype.primitive_bitwidth - DIGITS)), 0.0, DIGITS)


@triton.jit
def constant(like, VALUE: tl.constexpr):
    """A number in the float type of `like`: by itself it would be an f32"""
    return tl.full(like.shape, VALUE, like.dtype)


@triton.jit
def step(p, z, VALUE: tl.constexpr):
    """p z + VALUE, rounded once"""
    return tl.fma(p, z, constant(z, VALUE))


@triton.jit
def log(x):
    """log of a positive normal number, as kernels_numba/exponentials.py computes it"""
    if x.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        e = (bits - 0x3F3504F3) >> 23
        f, k = (bits - (e << 23)).to(tl.float32, bitcast=True) - 1.0, e.to(tl.float32)
        s, h = tl.div_rn(f, 2.0 + f), 0.5 * f * f
        z = s * s
        p = step(constant(z, 0.233419433887), z, 0.285503969596)
        p = step(step(p, z, 0.400001255946), z, 0.666666665499)
        inner = tl.fma(s, h + z * p, k * 1.428606765330187e-06)
        return tl.fma(k, constant(k, 0.693145751953125), -((h - inner) - f))
    else:
        bits = x.to(tl.int64, bitcast=True)
        e = (bits - 0x3FE6A09E667F3BCD) >> 52
        f, k = (bits - (e << 52)).to(tl.float64, bitcast=True) - 1.0, e.to(tl.float64)
        s, h = f / (2.0 + f), 0.5 * f * f
        z = s * s
        p = step(constant(z, 0.14630031364122860468), z, 0.15330617306743304885)
        p = step(step(p, z, 0.18182922513515941633), z, 0.22222210674238515246)
        p = step(step(p, z, 0.28571428628810995598), z, 0.39999999999893221763)
        p = step(p, z, 0.6666666666666669907)
        inner = tl.fma(s, h + z * p, k * 1.90821492927058770002e-10)
        return tl.fma(k, constant(k, 6.93147180369123816490e-01), -((h - inner) - f))


@triton.jit
def exponential(w):
    """-log(1 - u), u = (w + 1/2) / 2**bits, from the nearer of u and 1 - u"""
    s = signed(w)
    upper = s < 0
    h = real(tl.where(upper, ~s, s), 0.5, w.dtype.primitive_bitwidth)
    y = tl.where(upper, h, 1.0 - h)
    rest = -h - (y - 1.0)
    lost = tl.where(upper, 0.0, tl.div_rn(rest, y) if y.dtype == tl.float32 else rest / y)
    return -(log(y) + lost)


@triton.jit
def sine(f):
    """sin of f quarter turns, |f| <= 1/2"""
    r = f * 1.5707963267948966
    z = r * r
    if f.dtype == tl.float32:
        p = step(constant(z, 2.724378140946122915e-6), z, -0.00019840038872556747687)
        p = step(step(p, z, 0.0083333317852176954016), z, -0.16666666663622831882)
        return tl.fma(r * z, p, r)
    else:
        p = step(constant(z, 1.5915309183057952557e-10), z, -2.5051092308431316672e-8)
        p = step(step(p, z, 2.7557315910939001563e-6), z, -0.00019841269836385434484)
        p = step(step(p, z, 0.0083333333333306993363), z, -0.16666666666666664365)
        return r + (r * z * p + 0.0 * (1.0 - 0.5 * z))


@triton.jit
def cosine(f):
    """cos of f quarter turns, |f| <= 1/2"""
    r = f * 1.5707963267948966
    z = r * r
    if f.dtype == tl.float32:
        p = step(constant(z, -2.729583082761461564e-7), z, 0.000024800560429914503467)
        p = step(step(p, z, -0.001388888759732781124), z, 0.041666666664127211898)
        return tl.fma(z * z, p, step(constant(z, -0.5), z, 1.0))
    else:
        p = step(constant(z, -1.1380868171449913386e-11), z, 2.0876121534608455566e-9)
        p = step(step(p, z, -2.7557317151864553e-7), z, 0.000024801587298532259045)
        p = step(step(p, z, -0.0013888888888887241376), z, 0.041666666666666665227)
        h = 0.5 * z
        w = 1.0 - h
        return w + (((1.0 - w) - h) + (z * z * p - r * 0.0))


@triton.jit
def normal_pair(w, v, mean, std):
    """Box and Muller: two normal numbers of a word for the radius and one for the angle"""
    BITS: tl.constexpr = w.dtype.primitive_bitwidth
    e = exponential(w) * 2.0
    r = (tl.sqrt_rn(e) if e.dtype == tl.float32 else tl.sqrt(e)) * std
    quarter = (v + (1 << BITS - 3)) >> (BITS - 2)
    f = real(signed(v << 2), 0.0, BITS)
    s, c = sine(f), cosine(f)
    odd = (quarter & 1) != 0
    x, y = tl.where(odd, s, c), tl.where(odd, c, s)
    x = tl.where(((quarter + 1) & 2) != 0, -x, x)
    y = tl.where((quarter & 2) != 0, -y, y)
    return mean + r * x, mean + r * y
