"""Fourier transforms against PyTorch's, whose complex results are compared as pairs; round trips; gradients."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.ops import fft, signal
from tests.ops.cases import few
from tests.ops.parity import agree, agree_gradients, draw

NORMS = st.sampled_from([None, "backward", "ortho", "forward"])
BOUND = {"roundings": 16, "scale": 3 * 60}  # log2 n steps for sums of at most 60 values up to 3


def paired(name, complex_in, complex_out):
    """PyTorch's function on pairs."""

    def function(x, *args, **kwargs):
        x = torch.view_as_complex(x.contiguous()) if complex_in else x
        out = getattr(torch.fft, name)(x, *args, **kwargs)
        return torch.view_as_real(out) if complex_out else out

    return function


KINDS = {"": (True, True), "r": (False, True), "ir": (True, False), "i": (True, True)}


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", ["fft", "ifft", "rfft", "irfft"])
@given(st.data())
@few(8)
def test_one_dim(name, dtype, data):
    pairs = KINDS[name[:-3]]
    shape = data.draw(st.sampled_from([(5,), (8,), (3, 6), (2, 7, 4)])) + ((2,) if pairs[0] else ())
    x, dims = draw(data, shape, dtype), len(shape) - pairs[0]
    n, dim = data.draw(st.sampled_from([None, 3, 4, 9])), data.draw(st.integers(-dims, dims - 1))
    norm, ours, theirs = data.draw(NORMS), getattr(fft, name), paired(name, *pairs)
    agree(ours, theirs, x, n, dim, norm, **BOUND)
    agree_gradients(lambda a: ours(a, n, dim, norm), lambda a: theirs(a, n, dim, norm), x)


@pytest.mark.parametrize("name", ["fft2", "ifft2", "rfft2", "irfft2", "fftn", "ifftn", "rfftn", "irfftn"])
@given(st.data())
@few(6)
def test_several_dims(name, data):
    pairs = KINDS[name[:-4]]
    x = draw(data, (2, 5, 4) + ((2,) if pairs[0] else ()))
    ours, theirs, norm = getattr(fft, name), paired(name, *pairs), data.draw(NORMS)
    s = data.draw(st.sampled_from([None, (3, 6)]))
    options = {"dim": data.draw(st.sampled_from([(-2, -1), (0, 2), (2, 0)]))} if name[-1] == "2" or s else {}
    agree(ours, theirs, x, s, norm=norm, **options, **BOUND)
    agree_gradients(lambda a: ours(a, s, norm=norm, **options), lambda a: theirs(a, s, norm=norm, **options), x)


def test_frequencies_shifts_and_pairs():
    for n in (1, 4, 5):
        agree(lambda n=n: fft.fftfreq(n, 0.5), lambda n=n: torch.fft.fftfreq(n, 0.5, dtype=torch.float64))
        agree(lambda n=n: fft.rfftfreq(n, 0.5), lambda n=n: torch.fft.rfftfreq(n, 0.5, dtype=torch.float64))
    x = np.arange(20.0).reshape(4, 5)
    for dim in (None, 0, (0, 1)):
        agree(fft.fftshift, torch.fft.fftshift, x, dim)
        agree(fft.ifftshift, torch.fft.ifftshift, x, dim)
    a, b = np.array([1.0, 2.0]), np.array([0.5, -3.0])
    agree(fft.complex, lambda r, i: torch.view_as_real(torch.complex(r, i)), a, b)
    agree(fft.polar, lambda r, i: torch.view_as_real(torch.polar(r, i)), a, b)
    assert tensorlib.fft.fftfreq(4).tolist() == [0, 0.25, -0.5, -0.25] and tensorlib.fft is fft
    assert isinstance(fft.fftfreq(2), tensorlib.Tensor)


# ---- short-time transforms -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hann_window", "hamming_window", "blackman_window"])
def test_window_functions(name):
    for n in (0, 1, 2, 7, 8):
        for periodic in (True, False):
            agree(lambda n=n, p=periodic: getattr(signal, name)(n, p),
                  lambda n=n, p=periodic: getattr(torch, name)(n, p, dtype=torch.float64), scale=1)  # fmt: skip


@given(st.data())
@few(12)
def test_stft_and_its_inverse(data):
    x = draw(data, data.draw(st.sampled_from([(50,), (3, 41)])))
    window = np.hanning(10)[1:-1].astype(np.float32)  # 8 samples, none of them 0
    options = {
        "hop_length": data.draw(st.sampled_from([2, 3])), "win_length": 8, "center": data.draw(st.booleans()),
        "normalized": data.draw(st.booleans()), "onesided": data.draw(st.booleans()),
    }  # fmt: skip
    n = data.draw(st.sampled_from([8, 11]))

    def theirs(v, w, **kw):
        return torch.view_as_real(torch.stft(v, n, window=w, return_complex=True, **kw))

    agree(lambda v, w, **kw: signal.stft(v, n, window=w, **kw), theirs, x, window, **options, **BOUND)
    agree_gradients(lambda v: signal.stft(v, n, window=tensorlib.from_numpy(window.astype(np.float64)), **options),
                    lambda v: theirs(v, torch.from_numpy(window).double(), **options), x)  # fmt: skip
    if n == 8 or options["center"]:
        spectrum = theirs(
            torch.from_numpy(np.array(x, np.float64)), torch.from_numpy(window).double(), **options
        ).numpy()
        length = data.draw(st.sampled_from([None, 30]))
        agree(lambda v, w: signal.istft(v, n, window=w, length=length, **options),
              lambda v, w: torch.istft(torch.view_as_complex(v), n, window=w, length=length, **options),
              spectrum, window.astype(np.float64), roundings=512, scale=9)  # fmt: skip


def test_a_signal_comes_back():
    x = tensorlib.tensor([0.5, -1.0, 2.0, 3.0, 0.25, -2.0, 1.0, 4.0, 0.0])
    window = signal.hann_window(4)
    back = signal.istft(signal.stft(x, 4, 1, window=window), 4, 1, window=window, length=9)
    assert (back - x).abs().max().item() < 32 * 2.0**-24 * 4


def test_errors():
    x = tensorlib.zeros(4, 3)
    with pytest.raises(ShapeError, match="fft: got shape"):
        fft.fft(x)
    with pytest.raises(DTypeError, match="rfft: got dtype f16"):
        fft.rfft(x.to("f16"))
    with pytest.raises(ShapeError, match="rfft: got norm 'half'"):
        fft.rfft(x, norm="half")
    with pytest.raises(ShapeError, match="rfft: got sizes"):
        fft.rfft(x, 0)
    with pytest.raises(ShapeError, match="rfft: got dim 2"):
        fft.rfft(x, dim=2)
    with pytest.raises(DTypeError, match="complex: got f32 and f64"):
        fft.complex(x, x.to("f64"))
    with pytest.raises(ShapeError, match="stft: got 3 samples"):
        signal.stft(tensorlib.zeros(3), 4, center=False)
    with pytest.raises(ShapeError, match="stft: got a window of shape"):
        signal.stft(tensorlib.zeros(9), 4, window=tensorlib.ones(5))
    with pytest.raises(ShapeError, match="istft: got shape"):
        signal.istft(tensorlib.zeros(4, 3, 2), 4)
    with pytest.raises(ShapeError, match="istft: got windows that leave samples out"):
        signal.istft(tensorlib.zeros(3, 3, 2), 4, window=tensorlib.zeros(4))
