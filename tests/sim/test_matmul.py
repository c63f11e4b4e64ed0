"""Matrix products as compiled for GPUs, in the simulator: tensor cores, asynchronous copies, TMA, edges, parts of K."""

import numpy as np
import pytest

import tensorlib
from kernels_triton import turned
from tensorlib.dtype import get
from tests.sim.host import install
from tests.sim.simulated import Simulated

U = {"f16": 2.0**-11, "bf16": 2.0**-8, "f32": 2.0**-24, "f64": 2.0**-53}
random = np.random.default_rng(7)


@pytest.fixture(scope="module", params=[80, 90, 120])
def device(request):
    """A device "cuda:0" of the architecture."""
    gpu = Simulated(request.param)
    install(gpu)
    yield gpu
    gpu.check()
    install(None)


def on_gpu(x):
    return tensorlib.from_numpy(x).to("cuda:0")


def check(dtype, m, n, k, turned="", unit=None):
    """A product on the GPU is within the bound of its sums and of one rounding; `unit`: of the products, 0 if exact."""
    kind = get(dtype).numpy_dtype()
    x, y = (random.standard_normal(shape).astype(kind) for shape in ((m, k), (k, n)))
    a = on_gpu(np.ascontiguousarray(x.T)).T if "a" in turned else on_gpu(x)
    b = on_gpu(np.ascontiguousarray(y.T)).T if "b" in turned else on_gpu(y)
    found = (a @ b).to("cpu").to("f64").numpy()
    x, y = x.astype(np.float64), y.astype(np.float64)
    sums = k * U["f64" if dtype == "f64" else "f32"] + (unit or 0)
    bound = (np.abs(x) @ np.abs(y)) * (sums + U[dtype]) + 2.0**-24
    assert (np.abs(found - x @ y) <= bound).all(), np.abs(found - x @ y).max()


@pytest.mark.parametrize("dtype, m, n, k, turned", [
    ("f16", 130, 264, 136, "b"), ("bf16", 72, 136, 64, "a"), ("f16", 67, 45, 37, ""), ("f16", 40, 72, 2048, "b"),
    ("f32", 130, 72, 40, ""), ("f32", 67, 33, 19, "ab"), ("f64", 33, 70, 24, "b"),
    ("f16", 1, 40, 1096, "b"), ("bf16", 3, 9, 2064, "b"), ("f32", 1, 270, 40, ""), ("f16", 12, 80, 256, ""),
])  # fmt: skip
def test_products(device, dtype, m, n, k, turned):
    check(dtype, m, n, k, turned)


@pytest.mark.parametrize("precision, unit", [("high", 2.0**-19), ("medium", 2.0**-9)])
def test_f32_on_tensor_cores(device, precision, unit):
    try:
        tensorlib.set_float32_matmul_precision(precision)
        check("f32", 72, 136, 64, "b", unit)
    finally:
        tensorlib.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("dtype", ["i8", "u8", "i32"])
def test_integers(device, dtype):
    x, y = (random.integers(0, 128, shape).astype(get(dtype).numpy_dtype()) for shape in ((70, 64), (64, 144)))
    found = (on_gpu(x) @ on_gpu(np.ascontiguousarray(y.T)).T).to("cpu").numpy()
    assert (found == np.matmul(x.astype(np.int64), y.astype(np.int64)).astype(found.dtype)).all()


def test_float8(device):
    x, y = (random.integers(-8, 9, shape).astype(get("f8e4m3").numpy_dtype()) for shape in ((70, 64), (64, 144)))
    found = (on_gpu(x) @ on_gpu(np.ascontiguousarray(y.T)).T).to("cpu").to("f32").numpy()
    exact = np.clip(x.astype(np.float32) @ y.astype(np.float32), -1e4, 1e4)
    inside = np.abs(exact) <= 448
    assert (found[inside] == exact.astype(x.dtype).astype(np.float32)[inside]).all()


@pytest.mark.parametrize("order", ["", "b", "ab"])
def test_persistent_programs(device, order):
    if device.arch == 90:
        check("f16", 264, 520, 136, order)
        assert any(kernel.fn.__name__ == "persistent" for kernel, _ in device.ready)
    else:
        check("f16", 264, 264, 136, order)
        assert not any(kernel.fn.__name__ == "persistent" for kernel, _ in device.ready)


@pytest.mark.parametrize("order", ["b", "a"])
def test_persistent_programs_of_tf32(device, monkeypatch, order):
    """Operands whose K is not in order in memory are turned first."""
    monkeypatch.setattr(turned, "LEAST", 1)
    monkeypatch.setattr(turned, "WORTH", 0)
    try:
        tensorlib.set_float32_matmul_precision("medium")
        check("f32", 264, 264 + 256 * (order == "b"), 72, order, 2.0**-9)
        ran = any(k.fn.__name__ == "persistent" and k.consts["PRECISION"] == "tf32" for k, _ in device.ready)
        assert ran == (device.arch == 90)
    finally:
        tensorlib.set_float32_matmul_precision("highest")
