"""Fourier transforms in ops of ours, as GPUs take them: sizes that are one product, that split, and large primes."""

import numpy as np
import pytest

import tensorlib
from tensorlib.ops import fft

SIZES = (1, 2, 97, 130, 263)


def pairs(x):
    return x.view(x.real.dtype).reshape(*x.shape, 2)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype, unit", [(np.complex64, 2.0**-24), (np.complex128, 2.0**-53)])
def test_transforms(n, dtype, unit, device):
    """Off by at most some log2(n) roundings of the largest number (Higham 2002, theorem 24.2; products of 128 terms:
    sqrt(128) more); those of Bluestein's pass three transforms.
    """
    rng = np.random.default_rng(n)
    z = (rng.normal(size=(2, n)) + 1j * rng.normal(size=(2, n))).astype(dtype)
    x = tensorlib.from_numpy(pairs(z)).to("cuda:0")
    bound = 3 * unit * (np.log2(n) + 12)

    def close(got, want):
        got, want = got.cpu().numpy(), pairs(np.ascontiguousarray(want)) if np.iscomplexobj(want) else want
        assert np.abs(got - want).max() <= bound * np.abs(want).max()

    wide = z.astype(np.complex128)
    close(fft.fft(x), np.fft.fft(wide))
    close(fft.ifft(x), np.fft.ifft(wide))
    real = tensorlib.from_numpy(np.ascontiguousarray(z.real)).to("cuda:0")
    close(fft.rfft(real), np.fft.rfft(wide.real))
    close(fft.irfft(fft.rfft(real), n), wide.real)


def test_two_dims(device):
    z = np.random.default_rng(3).normal(size=(6, 10, 2))
    got = fft.fft2(tensorlib.from_numpy(z).to("cuda:0")).cpu().numpy()
    want = np.fft.fft2(z[..., 0] + 1j * z[..., 1])
    assert np.abs(got - pairs(want)).max() < 60 * 2.0**-50
