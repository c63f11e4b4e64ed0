"""One call on both devices of an interpreted process."""

import numpy as np

from tensorlib.tensor import from_numpy


def results(function, *arrays):
    """(what it gives on the CPU, and on the GPU), lists of NumPy arrays."""
    found = []
    for device in ("cpu", "cuda:0"):
        out = function(*(from_numpy(a.copy("K")).to(device) if isinstance(a, np.ndarray) else a for a in arrays))
        found.append([v.to("cpu").numpy() for v in (out if isinstance(out, tuple) else (out,))])
    return found


def check(function, *arrays):
    """AssertionError if the two differ in a bit."""
    for cpu, gpu in zip(*results(function, *arrays), strict=True):
        assert cpu.shape == gpu.shape
        assert cpu.dtype == gpu.dtype
        np.testing.assert_array_equal(cpu.view(f"u{cpu.itemsize}"), gpu.view(f"u{gpu.itemsize}"))
