"""The simulator on matrix products: mma.sync, wgmma, cp.async pipelines, TMA."""

import ml_dtypes
import numpy as np
import pytest

from tests.sim import kernels_of_matmul as kernels
from tests.sim.compile_for_tests import launch

BF16, E4M3, E5M2 = (np.dtype(t) for t in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2))
F16, F32, F64 = (np.dtype(t) for t in ("f2", "f4", "f8"))
ARCHES = (80, 90, 120)


def operands(dtype, m, n, k):
    rng = np.random.default_rng(1)
    if np.dtype(dtype).kind == "i":
        return rng.integers(-128, 128, (m, k)).astype(dtype), rng.integers(-128, 128, (k, n)).astype(dtype)
    return rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)


def assert_product(c, a, b, unit=2.0**-23):
    """|error| <= roundings in a row times their unit times |A| @ |B|, and the rounding of the output."""
    a, b = a.astype(F64), b.astype(F64)
    want = a @ b
    eps = 0 if c.dtype.kind == "i" else float(ml_dtypes.finfo(c.dtype).eps) / 2
    bound = (a.shape[1] + 2) * unit * (np.abs(a) @ np.abs(b)) + eps * np.abs(want)
    if c.dtype.kind == "i":
        bound = 0
    assert (np.abs(c.astype(F64) - want) <= bound).all()


def matmul(arch, a, b, out, block=(64, 64, 32), precision="ieee", transposed=False, **options):
    """Runs the kernel on a row-major `a`, and a `b` that is row-major or (`transposed`) column-major."""
    (m, k), n = a.shape, b.shape[1]
    c = np.zeros((m, n), out)
    given = np.ascontiguousarray(b.T) if transposed else b
    strides = {"b_row": 1} if transposed else {"b_column": 1}
    consts = {"a_column": 1, **strides, **dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), block)), "PRECISION": precision}
    stride = k if transposed else n
    grid = (-(-m // block[0]), -(-n // block[1]))
    memory = launch(kernels.matmul, arch, [a, given, c, m, n, k, k, stride], consts, grid=grid, **options)
    assert len(memory.unwritten(c.ctypes.data, c.itemsize)) == 0
    return c


# dtype of the operands, of the output, precision, rounding unit of a product's operands
DTYPES = {
    "f16": (F16, F16, "ieee", 2.0**-23), "bf16": (BF16, BF16, "ieee", 2.0**-23), "tf32": (F32, F32, "tf32", 2.0**-10),
    "f32": (F32, F32, "ieee", 2.0**-23), "f64": (F64, F64, "ieee", 2.0**-52), "i8": (np.int8, np.int32, "ieee", 0),
    "tf32x3": (F32, F32, "tf32x3", 2.0**-20), "e5m2": (E5M2, F32, "ieee", 2.0**-23),
    "e4m3": (E4M3, F32, "ieee", 2.0**-23),
}  # fmt: skip
CASES = [(arch, name) for arch in ARCHES for name in DTYPES if not (name == "e4m3" and arch == 80)]


@pytest.mark.parametrize("arch, name", CASES)
def test_dtypes(arch, name):
    dtype, out, precision, unit = DTYPES[name]
    block = (32, 32, 32) if name in ("f32", "tf32x3", "f64") and arch != 90 else (64, 64, 32)
    a, b = operands(dtype, 64, 64, 64)
    assert_product(matmul(arch, a, b, out, block, precision, num_stages=2), a, b, unit)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("shape", ((128, 128, 128), (97, 50, 77)))
@pytest.mark.parametrize("transposed", (False, True))
def test_pipelines_and_edges(arch, shape, transposed):
    a, b = operands(F16, *shape)
    assert_product(matmul(arch, a, b, F32, transposed=transposed, num_stages=3), a, b)


@pytest.mark.parametrize("arch", ARCHES)
def test_large_tiles(arch):
    """Eight warps; on Hopper two warp groups."""
    a, b = operands(F16, 128, 128, 128)
    assert_product(matmul(arch, a, b, F16, (128, 128, 64), num_warps=8, num_stages=3), a, b)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("shape", ((128, 128, 192), (80, 72, 104)))
def test_descriptors_made_on_the_device(arch, shape):
    """TMA with mbarriers from sm_90 on; the edges are filled with zeros."""
    m, n, k = shape
    a, b = operands(F16, m, n, k)
    c = np.zeros((m, n), F16)
    consts = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64}
    grid = (-(-m // 64), -(-n // 64))
    launch(kernels.matmul_descriptors, arch, [a, b, c, m, n, k], consts, grid=grid, num_stages=3)
    assert_product(c, a, b)


@pytest.mark.parametrize("arch", (90, 120))
def test_descriptors_made_on_the_host(arch):
    a, b = operands(F16, 64, 128, 128)
    c = np.zeros((64, 128), F16)
    blocks = {"a": (64, 64), "b": (64, 64), "c": (64, 64)}
    consts = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64}
    launch(kernels.matmul_host_descriptors, arch, [a, b, c, 128], consts, grid=(1, 2), descriptors=blocks)
    assert_product(c, a, b)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("causal", (False, True))
def test_attention(arch, causal):
    heads, length, d = 2, 160, 64
    rng = np.random.default_rng(2)
    q, k, v = rng.standard_normal((3, heads, length, d)).astype(F16)
    out = np.zeros_like(q)
    consts = {"D": d, "BLOCK_M": 64, "BLOCK_N": 64, "CAUSAL": causal}
    launch(kernels.attention, arch, [q, k, v, out, 0.125, length, length * d], consts, grid=(3, heads))
    s = q.astype(F64) @ k.astype(F64).swapaxes(1, 2) * 0.125
    s = np.where(np.tril(np.ones((length, length), bool)) | (not causal), s, -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    # p is rounded to float16 before the second product, the output after it; the float32 parts are far below
    bound = 2.0**-10 * (p @ np.abs(v.astype(F64))) + 2.0**-11 * np.abs(p @ v.astype(F64))
    assert (np.abs(out - p @ v.astype(F64)) <= bound).all()


@pytest.mark.parametrize("arch", (80, 90, 120))
@pytest.mark.parametrize("dtype", (BF16, F32))
def test_tiles_that_add_to_memory(arch, dtype):
    """Reductions through TMA from sm_90 on; element types by their code in the tensor map."""
    x = np.random.default_rng(3).integers(-9, 9, (20, 48)).astype(dtype)
    out = np.ones_like(x)
    consts = {"ROWS": 32, "COLUMNS": 64}
    launch(kernels.add_through_descriptors, arch, [x, out, 20, 48], consts, grid=(3,))
    assert (out.astype(F64) == 1 + 3 * x.astype(F64)).all()


@pytest.mark.parametrize("arch", ARCHES)
def test_block_scaled_products(arch):
    """sm_120 has instructions for it, the others multiply first."""
    rng = np.random.default_rng(4)
    size = 64
    a, b = (rng.standard_normal((size, size)).astype(E5M2) for _ in range(2))
    scales = [rng.integers(124, 131, (size, size // 32)).astype(np.uint8) for _ in range(2)]
    c = np.zeros((size, size), F32)
    sizes = {"M": size, "N": size, "K": size}
    launch(kernels.scaled_product, arch, [a, scales[0], b, scales[1], c], sizes)
    factors = [np.repeat(np.exp2(scale - 127.0), 32, axis=1) for scale in scales]
    assert_product(c, a.astype(F64) * factors[0], b.astype(F64) * factors[1].T)


@pytest.mark.parametrize("arch", ARCHES)
def test_half_accumulators(arch):
    a, b = operands(F16, 64, 64, 64)
    c = np.zeros((64, 64), F16)
    given = [np.ascontiguousarray(array.T) for array in (a, b)]
    launch(kernels.half_accumulator, arch, [*given, c], {"SIZE": 64})
    assert_product(c, a, b, 2.0**-11)


def test_ada_has_the_8_bit_floats_of_hopper_and_the_instructions_of_ampere():
    a, b = operands(E4M3, 64, 64, 64)
    assert_product(matmul(89, a, b, F32, num_stages=2), a, b)
