"""Elementwise kernels as they are compiled: layouts, conversions and fused chains, in the simulator."""

import numpy as np
import pytest

import tensorlib
from tests.ops.test_fuse import CHAINS, arrays
from tests.sim.host import install
from tests.sim.interpreted.test_elementwise import LAYOUTS, bits, everything
from tests.sim.simulated import Simulated

GPUS: dict = {}  # compiled programs are kept


@pytest.fixture(params=[80, 90])
def device(request):
    """A device "cuda:0" of the architecture."""
    gpu = GPUS.setdefault(request.param, Simulated(request.param))
    install(gpu)
    yield gpu
    gpu.check()
    install(None)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name, device):
    x = tensorlib.arange(41 * 385, dtype="i32").to("f16").reshape(41, 385)
    y = x * 0.5 + 1
    a, b = LAYOUTS[name](x, y)
    c, d = LAYOUTS[name](x.to("cuda:0"), y.to("cuda:0"))
    assert bits(c - d) == bits(a - b)


@pytest.mark.parametrize("dtype", ["bool", "i8", "u64", "f16", "bf16", "f8e4m3", "f8e5m2"])
def test_conversions(dtype, device):
    x = everything("f32")
    x = x.masked_fill(x.isnan(), 0.0)  # a NaN has many spellings
    there = x.to("cuda:0").to(dtype)
    assert bits(there) == bits(x.to(dtype))
    want, found = x.to(dtype).to("f64"), there.to("f64").cpu()
    assert bits(want.isnan()) == bits(found.isnan())
    assert bits(want.nan_to_num(nan=1.5)) == bits(found.nan_to_num(nan=1.5))


@pytest.mark.parametrize("dtype", ["f8e4m3", "f8e5m2"])
def test_float8_of_all_ties(dtype, device):
    """What lies between two neighbours, and just beside it, of either sign, and beyond the largest."""
    codes = tensorlib.arange(128, dtype="i32").to("u8").view(dtype).to("f32").numpy()
    codes = np.concatenate([codes[np.isfinite(codes)], np.float32([480 if dtype == "f8e4m3" else 65536])])
    ties = (codes[1:] + codes[:-1]) / 2
    x = np.concatenate(
        [codes, ties, *(np.nextafter(ties, np.float32(v)) for v in (0, np.inf)), np.float32([1e9, np.inf])]
    )
    x = tensorlib.tensor(np.concatenate([x, -x]))
    assert bits(x.to("cuda:0").to(dtype)) == bits(x.to(dtype))


def test_transposing_copies(device):
    x = tensorlib.arange(2 * 65 * 67, dtype="i32").reshape(2, 65, 67)
    for dtype in ("u8", "f16", "f32", "f64"):
        want = x.to(dtype).transpose(1, 2)
        assert bits(want.to("cuda:0").contiguous()) == bits(want)
        assert bits(x.to(dtype).to("cuda:0").permute(2, 0, 1).contiguous()) == bits(x.to(dtype).permute(2, 0, 1))


@pytest.mark.parametrize("name", ["affine", "masked", "filled"])
def test_fused_chains(name, device):
    count, chain = CHAINS[name]
    operands = arrays(np.random.default_rng(0), count)
    before = device.launches
    found = tensorlib.fuse(chain)(*(x.to("cuda:0") for x in operands))
    want = chain(*operands).numpy()
    # functions within 4 ulp of f32 each, of terms up to 16
    np.testing.assert_allclose(found.cpu().numpy(), want, rtol=2e-6, atol=16 * 4 * 2.0**-24)
    assert device.launches == before + 1
