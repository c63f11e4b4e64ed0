"""Fourier transforms by NumPy's FFT, with the names and meanings of `torch.fft`, and `stft` and `istft`.

There is no complex dtype: a complex tensor has a last dim of 2, real and imaginary part, as `torch.view_as_real` gives
it. Dims are counted without that pair: dim=-1 is the last one before it. fft, ifft and their relatives take and give
such tensors (make one with `complex(real, imag)`); rfft takes real ones, irfft gives them. f32 and f64 only, computed
in their own precision; NumPy is imported by the first call, and none of this may be captured. On GPUs `dft.py` does it.

>>> import tensorlib
>>> x = tensorlib.tensor([1.0, 2.0, 3.0, 4.0])
>>> rfft(x)
tensor([[10.,  0.],
        [-2.,  2.],
        [-2.,  0.]])
>>> irfft(rfft(x), 4)
tensor([1., 2., 3., 4.])
"""

from math import prod

from tensorlib.device import CPU
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.layout import axes
from tensorlib.ops import create, dft, elementwise, movement
from tensorlib.ops._numpy import array, back
from tensorlib.ops.elementwise import cos, div, mul, sin
from tensorlib.ops.pixels import pad
from tensorlib.registry import FLOAT_ONLY, define

# ---- the three transforms, which leave sizes as they are -------------------------------------------------------------


def _complex_array(op, x):
    import numpy as np

    pairs = np.ascontiguousarray(array(op, x))
    return pairs.view(np.complex64 if pairs.itemsize == 4 else np.complex128)[..., 0]


def _pairs(x, z):
    """A complex NumPy array as an Array with a last dim of 2."""
    import numpy as np

    z = np.ascontiguousarray(z)
    return back(x, z.view(x.dtype.numpy_dtype()).reshape(*z.shape, 2))


def _c2c_vjp(g, dims, inverse, scale):
    return c2c(g, dims, not inverse, scale)


@define("linalg", FLOAT_ONLY, None, vjp={"x": _c2c_vjp})
def c2c(x, dims, inverse, scale):
    """`scale` times the sum of x[j] * exp(-2 pi i j k / n) over dims (exp(+...) for inverse), complex to complex."""
    if x.device is not CPU:
        return dft.c2c(x, dims, inverse, scale)
    import numpy as np

    z = (np.fft.ifftn if inverse else np.fft.fftn)(
        _complex_array("fft", x), axes=dims, norm="forward" if inverse else "backward"
    )
    return _pairs(x, z if scale == 1 else z * z.real.dtype.type(scale))


def _r2c_vjp(g, x_shape, scale):
    """Of real inputs only the real part counts; what is not returned has no gradient."""
    whole = pad(g, (0, 0, 0, x_shape[-1] - g.shape[-2]))
    return movement.select(c2c(whole, (len(x_shape) - 1,), True, scale), -1, 0)


@define("linalg", FLOAT_ONLY, None, vjp={"x": _r2c_vjp})
def r2c(x, scale):
    """The first n // 2 + 1 numbers of the transform of the last dim, real to complex."""
    if x.device is not CPU:
        return dft.r2c(x, scale)
    import numpy as np

    z = np.fft.rfft(array("rfft", x))
    return _pairs(x, z if scale == 1 else z * z.real.dtype.type(scale))


def _c2r_vjp(g, n, scale):
    """All but the first (and, of an even n, the last) number stand for two."""
    half = n // 2 + 1
    twice = create.full(type(g), (half, 1), 2.0, dtype=g.dtype, device=g.device)
    for place in (0, half - 1) if n % 2 == 0 else (0,):
        movement.copy_(movement.narrow(twice, 0, place, 1), create.ones(type(g), 1, 1, dtype=g.dtype, device=g.device))
    return mul(r2c(g, scale), twice)


@define("linalg", FLOAT_ONLY, None, vjp={"x": _c2r_vjp})
def c2r(x, n, scale):
    """The inverse of `r2c` for n real numbers, complex to real; unnormalised, but for `scale`."""
    if x.device is not CPU:
        return dft.c2r(x, n, scale)
    import numpy as np

    z = np.fft.irfft(_complex_array("irfft", x), n, norm="forward")
    return back(x, z if scale == 1 else z * z.dtype.type(scale))


# ---- sizes, dims and norms -------------------------------------------------------------------------------------------


def _scale(op, norm, n, inverse):
    if norm not in (None, "backward", "forward", "ortho"):
        raise ShapeError(op, f"norm {norm!r}", "backward, forward or ortho", "use one of these")
    if norm == "ortho":
        return n**-0.5
    return 1 / n if (norm == "forward") != inverse else 1.0


def _need_pair(op, x):
    if x.ndim < 2 or x.shape[-1] != 2:
        fix = "make it with complex(real, imag), or use rfft"
        raise ShapeError(op, f"shape {x.shape}", "a last dim of 2: real and imaginary part", fix)


def _plan(op, x, s, dim, ndim):
    """(dims, sizes) of a transform over dims of a tensor of `ndim` dims."""
    if dim is None:
        dim = range(ndim) if s is None else range(ndim - len(s), ndim)
    dims = axes(op, dim if isinstance(dim, int) else tuple(dim), ndim)
    sizes = [x.shape[d] for d in dims] if s is None else list(s)
    sizes = [x.shape[d] if n in (None, -1) else n for n, d in zip(sizes, dims, strict=True)]
    if not dims or min(sizes) < 1:
        raise ShapeError(op, f"sizes {sizes}", "at least 1 in at least one dim", "give n or s")
    return dims, sizes


def _resized(x, dims, sizes):
    """Cut, or filled up with zeros, at the end of dims."""
    for d, n in zip(dims, sizes, strict=True):
        if n < x.shape[d]:
            x = movement.narrow(x, d, 0, n)
        elif n > x.shape[d]:
            x = pad(x, [0, 0] * (x.ndim - 1 - d) + [0, n - x.shape[d]])
    return x


def _both(op, x, s, dim, norm, inverse):
    _need_pair(op, x)
    dims, sizes = _plan(op, x, s, dim, x.ndim - 1)
    return c2c(_resized(x, dims, sizes), dims, inverse, _scale(op, norm, prod(sizes), inverse))


def _real(op, x, s, dim, norm):
    dims, sizes = _plan(op, x, s, dim, x.ndim)
    scale = _scale(op, norm, prod(sizes), False)
    last = dims[-1]
    out = movement.movedim(r2c(movement.movedim(_resized(x, dims, sizes), last, -1), scale), -2, last)
    return c2c(out, dims[:-1], False, 1.0) if dims[:-1] else out


def _from_half(op, x, s, dim, norm):
    _need_pair(op, x)
    dims, sizes = _plan(op, x, s, dim, x.ndim - 1)
    last = dims[-1]
    if s is None or s[-1] in (None, -1):
        sizes[-1] = 2 * (x.shape[last] - 1)
    n = sizes[-1]
    if n < 1:
        raise ShapeError(op, f"{n} real numbers", "at least 1", "give n or s")
    x = _resized(x, dims, [*sizes[:-1], n // 2 + 1])
    x = c2c(x, dims[:-1], True, 1.0) if dims[:-1] else x
    out = c2r(movement.movedim(x, last, -2), n, _scale(op, norm, prod(sizes), True))
    return movement.movedim(out, -1, last)


def _size(n):
    return None if n is None else (n,)


# ---- torch.fft -------------------------------------------------------------------------------------------------------


def fft(x, n=None, dim=-1, norm=None):
    """The discrete Fourier transform of a dim, complex to complex, cut or padded with zeros to n.

    norm: "backward" (None) leaves it as it is, "ortho" divides by sqrt(n), "forward" by n. ShapeError, DTypeError.
    """
    return _both("fft", x, _size(n), dim, norm, False)


def ifft(x, n=None, dim=-1, norm=None):
    """The inverse of `fft`, complex to complex; norm "backward" (None) divides by n, "forward" does not."""
    return _both("ifft", x, _size(n), dim, norm, True)


def fft2(x, s=None, dim=(-2, -1), norm=None):
    """`fft` of two dims, with sizes s."""
    return _both("fft2", x, s, dim, norm, False)


def ifft2(x, s=None, dim=(-2, -1), norm=None):
    """`ifft` of two dims."""
    return _both("ifft2", x, s, dim, norm, True)


def fftn(x, s=None, dim=None, norm=None):
    """`fft` of several dims, all by default, or the last ones that s has sizes for."""
    return _both("fftn", x, s, dim, norm, False)


def ifftn(x, s=None, dim=None, norm=None):
    """`ifft` of several dims."""
    return _both("ifftn", x, s, dim, norm, True)


def rfft(x, n=None, dim=-1, norm=None):
    """`fft` of real numbers: the first n // 2 + 1, which determine the others, as complex pairs."""
    return _real("rfft", x, _size(n), dim, norm)


def irfft(x, n=None, dim=-1, norm=None):
    """The inverse of `rfft`: n real numbers, by default 2 * (size - 1), out of n // 2 + 1 complex pairs."""
    return _from_half("irfft", x, _size(n), dim, norm)


def rfft2(x, s=None, dim=(-2, -1), norm=None):
    """`rfft` of the last of two dims, `fft` of the other."""
    return _real("rfft2", x, s, dim, norm)


def irfft2(x, s=None, dim=(-2, -1), norm=None):
    """The inverse of `rfft2`."""
    return _from_half("irfft2", x, s, dim, norm)


def rfftn(x, s=None, dim=None, norm=None):
    """`rfft` of the last of several dims, `fft` of the others."""
    return _real("rfftn", x, s, dim, norm)


def irfftn(x, s=None, dim=None, norm=None):
    """The inverse of `rfftn`."""
    return _from_half("irfftn", x, s, dim, norm)


def fftfreq(n, d=1.0, *, dtype=None, device=None):
    """The frequencies that `fft` of n samples, d apart, has: 0, 1, ..., -2, -1 over n * d."""
    ramp = create.arange(create.made, n, dtype=dtype or "f32", device=device)
    wrapped = elementwise.where(elementwise.ge(ramp, (n + 1) // 2), elementwise.sub(ramp, n), ramp)
    return div(wrapped, n * d)


def rfftfreq(n, d=1.0, *, dtype=None, device=None):
    """The frequencies that `rfft` of n samples, d apart, has: 0, 1, ..., n // 2 over n * d."""
    return div(create.arange(create.made, n // 2 + 1, dtype=dtype or "f32", device=device), n * d)


def fftshift(x, dim=None):
    """Dims (by default all, the pair of a complex tensor too) rolled so that frequency 0 is in the middle."""
    dims = axes("fftshift", dim, x.ndim)
    return movement.roll(x, [x.shape[d] // 2 for d in dims], dims)


def ifftshift(x, dim=None):
    """The inverse of `fftshift`."""
    dims = axes("ifftshift", dim, x.ndim)
    return movement.roll(x, [-(x.shape[d] // 2) for d in dims], dims)


# ---- complex numbers as pairs ----------------------------------------------------------------------------------------


def complex(real, imag):
    """A tensor with a last dim of 2 out of real and imaginary parts of one shape and dtype. ShapeError, DTypeError."""
    if real.dtype is not imag.dtype:
        raise DTypeError("complex", f"{real.dtype} and {imag.dtype}", "one dtype", "convert one with .to(dtype)")
    return movement.stack([real, imag], -1)


def polar(abs, angle):
    """`complex(abs * cos(angle), abs * sin(angle))`."""
    return complex(mul(abs, cos(angle)), mul(abs, sin(angle)))
