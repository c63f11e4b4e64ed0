"""Short-time Fourier transforms, and the windows they use.

Complex results have a last dim of 2, as in `tensorlib.fft`.

>>> import tensorlib
>>> x = tensorlib.arange(8, dtype="f32")
>>> window = hann_window(4)
>>> spectrum = stft(x, 4, 2, window=window)
>>> spectrum.shape, istft(spectrum, 4, 2, window=window)
((3, 5, 2), tensor([0., 1., 2., 3., 4., 5., 6., 7.]))
"""

from math import pi

from tensorlib.errors import ShapeError
from tensorlib.ops import create, movement, reduce
from tensorlib.ops.elementwise import abs, add, cast, cos, div, mul, square
from tensorlib.ops.exchange import item
from tensorlib.ops.fft import fft, ifft, irfft, rfft
from tensorlib.ops.index import index_add
from tensorlib.ops.pixels import pad
from tensorlib.ops.windows import sliding_windows
from tensorlib.registry import FLOAT_ONLY, define


def _cosines(n, coefficients, periodic, dtype, device):
    ramp = create.arange(create.made, n, dtype="f64", device=device)
    angle = mul(ramp, 2 * pi / max(1, n if periodic else n - 1))
    total = mul(ramp, 0)
    for i, c in enumerate(coefficients):
        total = add(total, mul(cos(mul(angle, i)), c))
    return cast(total if n != 1 else create.ones(create.made, 1, dtype="f64", device=device), dtype or "f32")


def hann_window(window_length, periodic=True, *, dtype=None, device=None):
    """(1 - cos(2 pi i / n)) / 2, one period of n or, not periodic, of n - 1 steps: f32 unless dtype says otherwise."""
    return _cosines(window_length, (0.5, -0.5), periodic, dtype, device)


def hamming_window(window_length, periodic=True, alpha=0.54, beta=0.46, *, dtype=None, device=None):
    """alpha - beta * cos(2 pi i / n)."""
    return _cosines(window_length, (alpha, -beta), periodic, dtype, device)


def blackman_window(window_length, periodic=True, *, dtype=None, device=None):
    """0.42 - 0.5 cos(2 pi i / n) + 0.08 cos(4 pi i / n)."""
    return _cosines(window_length, (0.42, -0.5, 0.08), periodic, dtype, device)


def _window(op, window, win_length, n_fft, x):
    """The window (ones for None), with zeros on both sides up to n_fft."""
    size = n_fft if win_length is None else win_length
    if window is None:
        window = create.ones(type(x), size, dtype=x.dtype, device=x.device)
    if window.shape != (size,) or not 0 < size <= n_fft:
        got = f"a window of shape {window.shape}, win_length {size}, n_fft {n_fft}"
        raise ShapeError(op, got, "a window of win_length elements, at most n_fft", "choose a longer transform")
    left = (n_fft - size) // 2
    return pad(window, (left, n_fft - size - left)) if size < n_fft else window


@define("composite", FLOAT_ONLY, None)
def stft(
    input,
    n_fft,
    hop_length=None,
    win_length=None,
    window=None,
    center=True,
    pad_mode="reflect",
    normalized=False,
    onesided=True,
):
    """Spectra of windows of n_fft samples, hop_length (n_fft // 4) apart: (B, T) or (T,) -> (B, bins, frames, 2).

    center: the signal is padded by n_fft // 2 at both ends, so that frame t is about sample t * hop_length.
    onesided: n_fft // 2 + 1 bins of frequency, else n_fft. normalized: divided by sqrt(n_fft). ShapeError, DTypeError.
    """
    hop = n_fft // 4 if hop_length is None else hop_length
    if input.ndim not in (1, 2) or hop < 1:
        raise ShapeError("stft", f"shape {input.shape}, hop_length {hop}", "(T,) or (B, T), at least 1", "reshape it")
    window = _window("stft", window, win_length, n_fft, input)
    x = pad(input, (n_fft // 2, n_fft // 2), pad_mode) if center else input
    if x.shape[-1] < n_fft:
        raise ShapeError("stft", f"{x.shape[-1]} samples", f"at least n_fft = {n_fft}", "use a shorter transform")
    frames = mul(sliding_windows(x, -1, n_fft, hop), window)
    norm = "ortho" if normalized else None
    if onesided:
        spectrum = rfft(frames, norm=norm)
    else:
        spectrum = fft(movement.stack([frames, mul(frames, 0)], -1), norm=norm)
    return movement.transpose(spectrum, -3, -2)


@define("composite", FLOAT_ONLY, None)
def istft(
    input,
    n_fft,
    hop_length=None,
    win_length=None,
    window=None,
    center=True,
    normalized=False,
    onesided=True,
    length=None,
):
    """The signal whose `stft` is nearest to `input` (least squares), of `length` samples if that is given.

    Frames are windowed again, added up and divided by the sum of squared windows. ShapeError where that is 0.
    """
    hop = n_fft // 4 if hop_length is None else hop_length
    bins = n_fft // 2 + 1 if onesided else n_fft
    if input.ndim not in (3, 4) or input.shape[-1] != 2 or input.shape[-3] != bins or hop < 1:
        got = f"shape {input.shape}, hop_length {hop}"
        raise ShapeError("istft", got, f"(..., {bins}, frames, 2), at least 1", "use the parameters that stft had")
    x = movement.transpose(input if input.ndim == 4 else movement.unsqueeze(input, 0), -3, -2)
    norm = "ortho" if normalized else None
    frames = irfft(x, n_fft, norm=norm) if onesided else movement.select(ifft(x, norm=norm), -1, 0)
    window = _window("istft", window, win_length, n_fft, frames)
    batch, count = frames.shape[:2]
    total = n_fft + hop * (count - 1)
    starts = mul(create.arange(type(x), count, device=x.device), hop)
    ids = add(movement.unsqueeze(starts, 1), create.arange(type(x), n_fft, device=x.device))
    ids = movement.reshape(ids, -1)
    blank = create.zeros(type(x), batch, total, dtype=x.dtype, device=x.device)
    signal = index_add(blank, 1, ids, movement.reshape(mul(frames, window), batch, count * n_fft))
    squares = movement.broadcast_to(square(window), (count, n_fft))
    weight = index_add(
        create.zeros(type(x), total, dtype=x.dtype, device=x.device), 0, ids, movement.reshape(squares, -1)
    )
    start = n_fft // 2 if center else 0
    end = total - start if length is None else min(total, start + length)
    signal, weight = movement.narrow(signal, 1, start, end - start), movement.narrow(weight, 0, start, end - start)
    if end > start and item(reduce.amin(abs(weight))) < 1e-11:
        fix = "use another window, or a smaller hop_length"
        raise ShapeError("istft", "windows that leave samples out", "a sum of squared windows above 0", fix)
    out = div(signal, weight)
    if length is not None and length > end - start:
        out = pad(out, (0, length - (end - start)))
    return out if input.ndim == 4 else movement.squeeze(out, 0)
