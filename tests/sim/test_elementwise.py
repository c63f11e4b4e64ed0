"""Elementwise kernels as they are compiled: layouts, conversions and fused chains, in the simulator."""

import numpy as np
import pytest

import tensorlib
from tensorlib.testing.rows import rows
from tests.ops.test_fuse import CHAINS, arrays
from tests.sim.host import install
from tests.sim.interpreted.test_elementwise import LAYOUTS, bits, everything
from tests.sim.simulated import Simulated

GPUS: dict = {}  # compiled programs are kept
ROWS = rows()


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


FLUSHED = "floor ceil trunc round exp exp2 expm1 log log1p sin cos tan asin atan sinh tanh asinh atanh sigmoid"
TINY = [1e-45, 1e-40, 1.17e-38, 2e-38, 1e-37, 1e-30, 1e-20, 0.5]  # the first three are subnormal


@pytest.mark.parametrize("name", FLUSHED.split())
def test_subnormal_numbers_are_kept(name, device):
    """Of what is given and of what comes out: within 4 units in the last place, which are 1.4e-45 at the least."""
    x = np.float32([*TINY, *(-v for v in TINY), *((-87.6, -90.5, -103.0) if name in ("exp", "sigmoid") else ())])
    x = x[np.abs(x) < 1] if name in ("asin", "atanh") else np.abs(x) if name == "log" else x
    x = np.float32([-126.5, -140.25, -148.5, -100.5]) if name == "exp2" else x
    found = getattr(tensorlib, name)(tensorlib.from_numpy(x).to("cuda:0")).cpu().numpy()
    want = ROWS[name].ref(np, x.astype(np.float64))
    assert (np.abs(found - want) <= 4 * np.spacing(np.abs(want).astype(np.float32))).all(), (x, found, want)


@pytest.mark.parametrize("name", ["fmod", "remainder"])
def test_remainders_of_subnormal_numbers(name, device):
    x, y = np.float32([1, -1, 779.5, 1.17e-38, -1e-45, 2.1e-38, 3e38]), np.float32([1e-40, -3e-39, 1.2e-38, 5.0])
    x, y = (v.copy() for v in np.broadcast_arrays(x[:, None], y))
    found = getattr(tensorlib, name)(*(tensorlib.from_numpy(v).to("cuda:0") for v in (x, y))).cpu().numpy()
    assert (found == getattr(np, name)(x, y)).all()
