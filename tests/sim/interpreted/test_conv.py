"""Convolutions of halves on the interpreted GPU against the CPU's: both ways that their operands may lie."""

import numpy as np
import pytest

from kernels_triton import implicit
from tensorlib.ops.conv import conv1d, conv2d, conv3d, conv_transpose2d
from tests.sim.interpreted.devices import results

CASES = {
    "one tap, planes divide by 4": (conv2d, (2, 24, 6, 6), (17, 24, 1, 1), {}),
    "one tap, odd planes": (conv2d, (2, 24, 5, 5), (33, 24, 1, 1), {}),
    "one tap, few channels": (conv2d, (1, 5, 4, 4), (16, 5, 1, 1), {}),
    "one tap at a stride": (conv2d, (2, 16, 7, 6), (16, 16, 1, 1), {"stride": 2}),
    "one tap with padding": (conv2d, (1, 16, 3, 3), (16, 16, 1, 1), {"padding": (1, 0)}),
    "3x3": (conv2d, (2, 40, 6, 7), (20, 40, 3, 3), {"padding": 1}),
    "3x3 at a stride": (conv2d, (1, 8, 9, 8), (40, 8, 3, 3), {"padding": 1, "stride": 2}),
    "dilated": (conv2d, (1, 16, 9, 9), (16, 16, 3, 2), {"padding": (2, 1), "dilation": (1, 2)}),
    "groups": (conv2d, (1, 32, 5, 6), (32, 16, 3, 3), {"padding": "same", "groups": 2}),
    "groups of one tap": (conv2d, (2, 32, 2, 2), (32, 16, 1, 1), {"groups": 2}),
    "stem": (conv2d, (2, 3, 12, 11), (16, 3, 7, 7), {"padding": 3, "stride": 2}),
    "1-d": (conv1d, (2, 12, 20), (16, 12, 5), {"padding": 2}),
    "3-d": (conv3d, (1, 8, 3, 4, 5), (16, 8, 2, 3, 2), {"padding": 1, "stride": (2, 1, 1)}),
    "transposed": (conv_transpose2d, (1, 16, 4, 3), (16, 16, 3, 3), {"stride": 2, "padding": 1}),
    "transposed, groups": (conv_transpose2d, (1, 32, 3, 3), (32, 16, 4, 4), {"stride": 2, "groups": 2}),
}


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    """How often the kernels for halves were planned."""
    calls, steps = [], implicit.steps
    monkeypatch.setattr(implicit, "steps", lambda *args: calls.append(args) or steps(*args))
    return calls


def close(function, x, w, bias, options, channels_last=False):
    """AssertionError unless the two are the same but for the order of the sums."""
    if channels_last:
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    call = lambda x, w, *b: function(x, w, *(b or (None,)), **options)  # noqa: E731
    for cpu, gpu in zip(*results(call, x, w, *([] if bias is None else [bias])), strict=True):
        assert cpu.dtype == gpu.dtype
        assert cpu.shape == gpu.shape
        np.testing.assert_allclose(gpu.astype("f4"), cpu.astype("f4"), rtol=2**-9, atol=2**-9)


def drawn(x, w, bias=True):
    """Halves of those shapes, of which sums are about one."""
    rng = np.random.default_rng(len(x) * w[0])
    scale = 1 / np.sqrt(np.prod(w[1:]))
    outputs = rng.standard_normal(w[0]).astype("f2") if bias else None
    return rng.standard_normal(x).astype("f2"), (scale * rng.standard_normal(w)).astype("f2"), outputs


@pytest.mark.parametrize("case", CASES)
def test_against_cpu(case, counted):
    function, x, w, options = CASES[case]
    x, w, bias = drawn(x, w, "transposed" not in case)
    close(function, x, w, bias, options)
    assert counted


@pytest.mark.parametrize("case", ["3x3", "one tap at a stride", "one tap, odd planes"])
def test_channels_last(case):
    function, x, w, options = CASES[case]
    close(function, *drawn(x, w), options, channels_last=True)


def test_infinities_stay_where_they_are(counted):
    """A number beyond a window's run is not multiplied by a zero."""
    x, w, _ = drawn((1, 3, 9, 9), (16, 3, 3, 3))
    x[0, :, 4, 4] = np.inf
    close(conv2d, x, np.abs(w) + np.float16(0.01), None, {"padding": 1})
    assert counted
