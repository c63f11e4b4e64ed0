"""What the repaired interpreter computes, against NumPy and ml_dtypes: the stock one fails every one of these."""

import ml_dtypes
import numpy as np
import pytest
import triton
import triton.language as tl
from triton.language.extra import libdevice

from kernels_triton.launch import Kernel

BF16, F8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn
RNG = np.random.default_rng(7)


@triton.jit
def combine(x_ptr, y_ptr, out_ptr, OP: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, N)
    x, y = tl.load(x_ptr + at), tl.load(y_ptr + at)
    if OP == "add":
        out = x + y
    elif OP == "less":
        out = (x < y).to(tl.float32)
    elif OP == "cast":
        out = x
    elif OP == "fma":
        out = tl.fma(x, y, x)
    elif OP == "max":
        out = tl.maximum(x, y) + 1.0
    elif OP == "sum":
        out = tl.zeros([N], tl.float32) + tl.sum(x.to(x_ptr.dtype.element_ty), 0).to(tl.float32)
    else:
        out = libdevice.tanh(x)
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty))


@triton.jit
def product(x_ptr, y_ptr, out_ptr, PRECISION: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(out_ptr + i, tl.dot(tl.load(x_ptr + i), tl.load(y_ptr + i), input_precision=PRECISION))


NAMES = {"float32": "*fp32", "bfloat16": "*bf16", "float8_e4m3fn": "*fp8e4nv", "int32": "*i32", "float16": "*fp16"}


def run(device, fn, out_dtype, *arrays, **consts):
    """`fn` on device copies of the arrays; what it wrote to an output like the first."""
    out, places = np.zeros(arrays[0].shape, out_dtype), []
    for array in (*arrays, out):
        ptr, owner = device.allocate(array.nbytes)
        device.upload(ptr, np.ascontiguousarray(array).ctypes.data, array.nbytes)
        places.append((ptr, owner))
    types = [NAMES[np.dtype(a.dtype).name] for a in (*arrays, out)]
    Kernel(fn, types, **consts)(device, (1, 1, 1), *(ptr for ptr, _ in places))
    device.download(out.ctypes.data, places[-1][0], out.nbytes)
    return out


def draw(dtype, n=256):
    return RNG.normal(0, 3, n).astype(np.float32).astype(dtype)


@pytest.mark.parametrize("dtype", [BF16, F8, np.float16])
def test_casts_round_to_nearest_even(device, dtype):
    x = np.concatenate([draw(np.float32, 250), [1e9, -1e9, 2**-9, 3 * 2**-10, 464.0, 448.0]]).astype(np.float32)
    limit = 448 if dtype is F8 else np.inf
    with np.errstate(over="ignore"):
        want = np.clip(x, -limit, limit).astype(dtype)
    assert run(device, combine, dtype, x, x, OP="cast", N=256).tobytes() == want.tobytes()


def test_floats_to_integers_saturate(device):
    x = np.array([1e10, -1e10, np.nan, 2.9, -2.9, 0, 1, 2] * 32, np.float32)
    want = np.array([2**31 - 1, -(2**31), 0, 2, -2, 0, 1, 2] * 32, np.int32)
    assert (run(device, combine, np.int32, x, x, OP="cast", N=256) == want).all()


@pytest.mark.parametrize("op", ["add", "less", "max"])
def test_bf16_arithmetic(device, op):
    x, y = draw(BF16), draw(BF16)
    wide = {"add": x + y, "less": (x < y).astype(np.float32), "max": (np.maximum(x, y) + BF16(1)).astype(BF16)}[op]
    out = np.float32 if op == "less" else BF16
    assert run(device, combine, out, x, y, OP=op, N=256).tobytes() == np.asarray(wide, out).tobytes()


def test_bf16_sums_are_rounded_once(device):
    x = np.full(256, 1.0078125, BF16)
    assert (run(device, combine, np.float32, x, x, OP="sum", N=256) == 258.0).all()


def test_fma_rounds_once(device):
    x, y = draw(np.float32), draw(np.float32)
    want = (x.astype(np.float64) * y + x).astype(np.float32)
    found = run(device, combine, np.float32, x, y, OP="fma", N=256)
    assert (found == want).all() and (want != x * y + x).any()


def test_libdevice(device):
    x = draw(np.float32)
    found = run(device, combine, np.float32, x, x, OP="tanh", N=256)
    assert np.abs(found - np.tanh(x)).max() < 2**-22


@pytest.mark.parametrize("precision, low, high", [("tf32", 2**-14, 2**-9), ("tf32x3", 0, 2**-19), ("ieee", 0, 2**-19)])
def test_precision_of_dots(device, precision, low, high):
    x, y = (RNG.uniform(-1, 1, (32, 32)).astype(np.float32) for _ in range(2))
    found = run(device, product, np.float32, x, y, PRECISION=precision, N=32)
    error = np.abs(found - x.astype(np.float64) @ y).max() / np.sqrt(32)
    assert low <= error <= high


def test_dots_of_narrow_floats(device):
    x, y = (RNG.normal(0, 1, (32, 32)).astype(np.float32).astype(BF16) for _ in range(2))
    want = x.astype(np.float64) @ y.astype(np.float64)
    assert np.abs(run(device, product, np.float32, x, y, PRECISION="ieee", N=32) - want).max() < 32 * 2**-20


def test_accesses_outside_of_memory_are_refused(device):
    x = draw(np.float32, 255)  # 256 elements are loaded
    with pytest.raises(Exception, match="load outside of memory: 1 of 256 lanes"):
        run(device, combine, np.float32, x, x, OP="add", N=256)
