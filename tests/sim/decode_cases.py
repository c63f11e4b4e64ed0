"""What the kernels of a decode step on a GPU are held to, whatever runs them."""

from itertools import pairwise

import numpy as np

import tensorlib
from tensorlib import nn
from tensorlib.ops import decode
from tensorlib.quant import gpu
from tensorlib.registry import OPS
from tests.sim.quant_cases import U, activations, quantised, values, weight

F32 = U["f32"]


def layer(name, n, k, seed=0):
    """An nn.Linear of a quantised weight on the device."""
    made = nn.Linear(k, n, bias=False)
    made.weight = weight(name, n, k, seed).to("cuda:0")
    return made


def bits(x):
    """The elements of an Array on the device, as they lie in memory."""
    return np.frombuffer(x.buffer.read(x.ptr, x.numel() * x.dtype.itemsize), np.uint8)


def launches(function):
    """(its result, how many launches it took)."""
    device = tensorlib.zeros(1, device="cuda:0").device.gpu
    before = device.launches
    found = function()
    return found, device.launches - before


def same_groups(x):
    """The copy in 8 bits that came with x is the one that `quantize` makes of x, bit for bit."""
    made, count = launches(lambda: gpu.packed(x))
    assert count == 0, "nobody wrote it"
    rows, k = x.numel() // x.shape[-1], x.shape[-1]
    for got, want in zip(made, gpu._groups(x, rows, k), strict=True):
        np.testing.assert_array_equal(bits(got), bits(want))


def counters_are_zero():
    """Kernels leave them as they were."""
    for made, _ in decode._counters.values():
        assert not bits(made).any()


def magnitudes(linear, x):
    """Sums of |x| |w|, with x as the kernels round it, and how far a sum in f32 may be from the exact one."""
    dense = values(linear.weight.dequantize(cls=tensorlib.Tensor))
    total = np.abs(quantised(values(x))) @ np.abs(dense).T
    return (x.shape[-1] / 16 + 24) * F32 * 4 * total  # 4: terms that cancel, as in quant_cases.check_linear


def check_linears(names, sizes, k, m):
    """One launch per run of a format, and one for the activations; no bit differs from layer by layer."""
    layers = [layer(name, n, k, i) for i, (name, n) in enumerate(zip(names, sizes, strict=True))]
    _, x = activations(m, k)
    found, count = launches(lambda: nn.linears(x, *layers))
    runs = 1 + sum(a != b for a, b in pairwise(names))
    assert count == 1 + runs
    for got, one in zip(found, layers, strict=True):
        np.testing.assert_array_equal(bits(got), bits(one(x)))


def check_swiglu(name, n, k, m):
    """One launch beside that for the activations; sums in another order, then silu, whose slope is at most 1.1."""
    gate, up = layer(name, n, k), layer(name, n, k, 1)
    _, x = activations(m, k)
    got, count = launches(lambda: nn.swiglu_linear(x, gate, up))
    assert count == 2
    same_groups(got)
    want, g, u = (values(y) for y in (nn.swiglu(gate(x), up(x)), gate(x), up(x)))
    off_g, off_u = 2 * magnitudes(gate, x), 2 * magnitudes(up, x)
    bound = 1.1 * off_g * (np.abs(u) + off_u) + np.abs(g) * off_u + 16 * F32 * np.abs(want)
    assert (np.abs(values(got) - want) <= bound).all()


def check_add_norm(name, n, k, m):
    """One launch; the sum has the bits of a product with a residual, the norm those of f32 in any order."""
    linear, norm = layer(name, n, k), nn.RMSNorm(n, 1e-5)
    norm.weight = activations(1, n, seed=3)[1].reshape(n)
    (_, x), (_, y) = activations(m, k), activations(m, n, seed=2)
    gpu.packed(x)
    (total, normed), count = launches(lambda: nn.add_norm(y, linear, x, norm))
    assert count == 1
    np.testing.assert_array_equal(bits(total), bits(linear.weight.linear(x, y)))
    exact = values(total)
    want = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5) * values(norm.weight)
    assert (np.abs(values(normed) - want) <= (n / 2 + 8) * F32 * np.abs(want)).all()
    same_groups(normed)
    counters_are_zero()


def check_attend(heads, groups, width, cache, at, rows=40, interleaved=False):
    """One launch: the caches hold the new row, and the result is attention over what they hold.

    Scores are up to 8 in products of 17 bits, so weights are off by 2 * 8 * 2**-17 of themselves, and as much again for
    the weights' own two terms; the new row by one rounding of the cache's dtype.
    """
    rng = np.random.default_rng(heads + at)
    draw = lambda *shape: np.clip(rng.standard_normal(shape), -2, 2).astype(np.float32)  # noqa: E731
    there = lambda a: tensorlib.from_numpy(a).to("cuda:0")  # noqa: E731
    q, k, v = draw(1, heads, width), draw(1, groups, width), draw(1, groups, width)
    before = [tensorlib.from_numpy(draw(groups, rows, width)).to(cache) for _ in range(2)]
    keys, vals = (x.to("cuda:0") for x in before)
    rotary = nn.RotaryEmbedding(width, rows, interleaved=interleaved)
    cos, sin = rotary.tables("cuda:0")
    start = there(np.array([at], np.int64))
    given = [there(x) for x in (q, k, v)]
    out, count = launches(lambda: decode.attend(*given, keys, vals, cos, sin, start, interleaved))
    assert count == 1 and out.shape == (1, heads * width)
    angles = [bits(x).view(np.float32).reshape(x.shape).astype(np.float64) for x in (cos, sin)]
    turned = [OPS["rope"].ref(np, x.astype(np.float64), *angles, at, interleaved) for x in (q, k)]
    unit = {"f32": 2.0**-22, "f16": 2.0**-11, "bf16": 2.0**-8, "f8e4m3": 2.0**-4}[cache]
    for got, old, new in zip((keys, vals), before, (turned[1], v.astype(np.float64)), strict=True):
        got, want = values(got), values(old).copy()
        np.testing.assert_array_equal(np.delete(got, at, 1), np.delete(want, at, 1))
        assert (np.abs(got[:, at] - new[0]) <= unit * np.abs(new[0]) + 2.0**-9 * (cache == "f8e4m3") + 1e-6).all()
    want = OPS["attention"].ref(np, turned[0], values(keys), values(vals), at)
    assert np.abs(values(out) - want.reshape(1, -1)).max() <= 2 * 2 * 8 * 2.0**-17 * 2
    if width % 32 == 0:
        same_groups(out)
    counters_are_zero()
