"""The simulator on compiled elementwise kernels: each value against NumPy's, to a number of units in the last place."""

import math

import ml_dtypes
import numpy as np
import pytest

from tests.sim import kernels_for_tests as kernels
from tests.sim.compile_for_tests import launch

BF16, E4M3, E5M2 = (np.dtype(t) for t in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2))
F16, F32, F64 = (np.dtype(t) for t in ("f2", "f4", "f8"))
ARCHES = (80, 90, 120)
SIZE, BLOCK = 300, 256  # two programs, the second one with a mask


def spacing(value, dtype):
    """Distance between neighbours of a dtype at a float64 value."""
    tiny = float(ml_dtypes.finfo(dtype).smallest_subnormal)
    return np.maximum(np.exp2(np.floor(np.log2(np.abs(value) + 1e-320)) - ml_dtypes.finfo(dtype).nmant), tiny)


def assert_near(got, want, ulps):
    """Equal, both NaN, or apart by at most `ulps` units in the last place of the result's dtype."""
    got64, want64 = got.astype(F64), np.asarray(want).astype(F64)
    exact = (got64 == want64) | (np.isnan(got64) & np.isnan(want64))
    if ulps:
        with np.errstate(all="ignore"):
            exact |= np.abs(got64 - want64) <= ulps * spacing(want64, got.dtype)
    wrong = np.flatnonzero(~exact)
    assert len(wrong) == 0, f"{len(wrong)} differ, the first at {wrong[0]}: {got64[wrong[0]]} for {want64[wrong[0]]}"


def uniform(rng, dtype, low=-3.0, high=3.0):
    if np.dtype(dtype).kind in "iu":
        return rng.integers(int(low), int(high), SIZE).astype(dtype)
    return (rng.random(SIZE) * (high - low) + low).astype(dtype)


def run_unary(arch, name, x, out):
    kernel = kernels.library if name.startswith("lib_") or name == "tanh" else kernels.unary
    kernel = kernels.assembly if name in ("dp4a", "block_asm") else kernel
    memory = launch(kernel, arch, [x, out, SIZE], {"OP": name, "BLOCK": BLOCK}, grid=(2,))
    assert len(memory.unwritten(out.ctypes.data, out.itemsize)) == 0
    return out


def run_binary(arch, name, x, y, out):
    launch(kernels.binary, arch, [x, y, out, SIZE], {"OP": name, "BLOCK": BLOCK}, grid=(2,))
    return out


# op: (reference on float64, ulps). Division of float32 is `div.full`, which may err by 2.
FLOAT_BINARY = {
    "add": (np.add, 0), "sub": (np.subtract, 0), "mul": (np.multiply, 0), "max": (np.maximum, 0),
    "min": (np.minimum, 0),
    "where": (np.minimum, 0), "div": (np.divide, 2), "lt": (np.less, 0), "ne": (np.not_equal, 0),
}  # fmt: skip
FLOATS = (BF16, F16, F32, F64)
# What differs between architectures are the half floats: packed, fused or by way of float32.
BINARY_CASES = [(80, op, dtype) for op in FLOAT_BINARY for dtype in FLOATS]
BINARY_CASES += [(arch, op, dtype) for arch in (90, 120) for op in ("add", "mul", "max", "lt") for dtype in (BF16, F16)]
BINARY_CASES += [(120, "add", F32)]  # packed f32x2


@pytest.mark.parametrize("arch, op, dtype", BINARY_CASES, ids=str)
def test_binary_of_floats(arch, op, dtype):
    rng = np.random.default_rng(1)
    x, y = uniform(rng, dtype), uniform(rng, dtype)
    y = np.where(np.arange(SIZE) % 7 == 0, x, y)
    y = np.where(y == 0, np.array(1, dtype), y)
    function, ulps = FLOAT_BINARY[op]
    want = function(x.astype(F64), y.astype(F64))
    out = np.zeros(SIZE, np.int8 if want.dtype == bool else dtype)
    got = run_binary(arch, op, x, y, out)
    assert_near(got, want.astype(out.dtype), ulps)


def truncated(a, b):
    return np.trunc(a / b)


INTEGER_BINARY = {
    "add": np.add, "mul": np.multiply, "floordiv": lambda a, b: (np.abs(a) // np.abs(b)) * np.sign(a) * np.sign(b),
    "mod": np.fmod, "max": np.maximum, "and": np.bitwise_and, "xor": np.bitwise_xor, "lt": np.less,
}  # fmt: skip


INTEGER_CASES = [(op, dtype) for op in INTEGER_BINARY for dtype in ("i4", "i8", "u8")]
INTEGER_CASES += [(op, dtype) for op in ("add", "mod", "max") for dtype in ("i1", "u1", "i2", "u4")]


@pytest.mark.parametrize("op, dtype", INTEGER_CASES)
def test_binary_of_integers(op, dtype):
    rng = np.random.default_rng(2)
    limits = np.iinfo(dtype)
    x, y = (rng.integers(limits.min, limits.max, SIZE, dtype=dtype, endpoint=True) for _ in range(2))
    y = np.where(y == 0, 1, y).astype(dtype)
    x = np.where((x == limits.min) & (y.astype(object) == -1), 5, x).astype(dtype)
    with np.errstate(over="ignore"):
        want = INTEGER_BINARY[op](x, y)
    got = run_binary(80, op, x, y, np.zeros(SIZE, "i1" if want.dtype == bool else dtype))
    assert (got == want).all()


@pytest.mark.parametrize("dtype", ("i4", "u8"))
@pytest.mark.parametrize("op, function", (("shl", np.left_shift), ("shr", np.right_shift)))
def test_shifts(op, function, dtype):
    rng = np.random.default_rng(3)
    x = rng.integers(-(2**31) if dtype == "i4" else 0, 2**31, SIZE).astype(dtype)
    y = rng.integers(0, 31, SIZE).astype(dtype)
    assert (run_binary(80, op, x, y, np.zeros(SIZE, dtype)) == function(x, y)).all()


def test_upper_half_of_a_product():
    rng = np.random.default_rng(4)
    for dtype, bits in (("u4", 32), ("u8", 64)):
        x, y = (rng.integers(0, 2**bits - 1, SIZE, dtype=dtype) for _ in range(2))
        want = [int(a) * int(b) >> bits for a, b in zip(x, y)]
        assert run_binary(80, "umulhi", x, y, np.zeros(SIZE, dtype)).tolist() == want


# Largest errors in ulp as CUDA's programming guide lists them, and half of one for NumPy's result rounded to float32.
LIBRARY_BINARY = {"fma": (lambda a, b: a * b + a, 0), "div_rn": (np.divide, 0), "fmod": (np.fmod, 0),
                  "pow": (np.power, 4.5), "atan2": (np.arctan2, 3.5)}  # fmt: skip


@pytest.mark.parametrize("op", LIBRARY_BINARY)
def test_library_functions_of_two(op):
    rng = np.random.default_rng(5)
    function, ulps = LIBRARY_BINARY[op]
    x, y = uniform(rng, F32, 0.01, 9.0), uniform(rng, F32)
    got = run_binary(80, op, x, y, np.zeros(SIZE, F32))
    assert_near(got, function(x.astype(F64), y.astype(F64)).astype(F32), ulps)


def test_nan_is_propagated_when_asked_for():
    rng = np.random.default_rng(6)
    x, y = uniform(rng, F32), uniform(rng, F32)
    x[::5] = np.nan
    assert_near(run_binary(80, "max_nan", x, y, np.zeros(SIZE, F32)), np.maximum(x, y), 0)
    assert_near(run_binary(80, "max", x, y, np.zeros(SIZE, F32)), np.fmax(x, y), 0)


erf, lgamma = np.vectorize(math.erf), np.vectorize(math.lgamma)

# op: (reference, ulps in float32, low, high). exp, log, sin, cos, rsqrt and division by `approx` instructions: their
# error is PTX's own bound, absolute for sin, cos and log2 near one, so the range keeps away from the zeros.
UNARY = {
    "neg": (np.negative, 0, -3, 3), "abs": (np.abs, 0, -3, 3), "floor": (np.floor, 0, -9, 9),
    "ceil": (np.ceil, 0, -9, 9),
    "sqrt_rn": (np.sqrt, 0, 0, 9), "sqrt": (np.sqrt, 1.5, 0.1, 9), "rsqrt": (lambda x: 1 / np.sqrt(x), 2, 0.1, 9),
    "exp": (np.exp, 6, -3, 3), "exp2": (np.exp2, 2, -3, 3), "log": (np.log, 4, 2, 9), "log2": (np.log2, 4, 2, 9),
    "sin": (np.sin, 4, 0.5, 2.5), "cos": (np.cos, 4, -1, 1),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 8, -3, 3), "erf": (erf, 2.5, -3, 3), "tanh": (np.tanh, 2.5, -3, 3),
    "lib_sin": (np.sin, 2.5, -1e6, 1e6), "lib_exp": (np.exp, 2.5, -80, 80), "lib_log1p": (np.log1p, 2.5, -0.9, 9),
    "lib_expm1": (np.expm1, 1.5, -3, 3), "lib_lgamma": (lgamma, 6.5, 3, 30), "lib_rint": (np.rint, 0, -9, 9),
    "lib_trunc": (np.trunc, 0, -9, 9), "isnan": (np.isnan, 0, -3, 3), "clamp": (lambda x: x.clip(-1, 1), 0, -3, 3),
}  # fmt: skip


@pytest.mark.parametrize("op", UNARY)
def test_unary_of_float32(op):
    function, ulps, low, high = UNARY[op]
    x = uniform(np.random.default_rng(7), F32, low, high)
    assert_near(run_unary(80, op, x, np.zeros(SIZE, F32)), function(x.astype(F64)).astype(F32), ulps)


# float64 of libdevice: errors in ulp of the programming guide, one more for NumPy and one for rare double roundings;
# CPython's lgamma errs by 10 itself.
DOUBLES = {"exp": (np.exp, 3), "log": (np.log, 3), "sin": (np.sin, 4), "tanh": (np.tanh, 4), "erf": (erf, 4),
           "sqrt": (np.sqrt, 0), "lib_lgamma": (lgamma, 16), "rsqrt": (lambda x: 1 / np.sqrt(x), 3)}  # fmt: skip


@pytest.mark.parametrize("op", DOUBLES)
def test_unary_of_float64(op):
    function, ulps = DOUBLES[op]
    x = uniform(np.random.default_rng(8), F64, 3, 9)
    if op == "sin":
        x[::3] *= 1e12  # the reduction of large arguments: a device function with memory of its own
    assert_near(run_unary(80, op, x, np.zeros(SIZE, F64)), function(x), ulps)


def popcount(x):
    return np.bitwise_count(x.view(np.uint32))


INTEGER_UNARY = {
    "not": lambda x: ~x, "abs": np.abs, "lib_popc": popcount, "lib_ffs": lambda x: popcount((x & -x) - 1) + 1,
    "lib_clz": lambda x: np.array([32 - int(v).bit_length() for v in x.view(np.uint32)]),
    "lib_brev": lambda x: np.array([int(f"{v:032b}"[::-1], 2) for v in x.view(np.uint32)], np.uint32).view(np.int32),
    "dp4a": lambda x: (x.view(np.int8).reshape(-1, 4).astype(np.int32) ** 2).sum(1) + x,
}  # fmt: skip


@pytest.mark.parametrize("op", INTEGER_UNARY)
def test_unary_of_integers(op):
    x = np.random.default_rng(9).integers(-(2**31) + 1, 2**31, SIZE).astype(np.int32)
    x[:3] = (1, -1, 1 << 20)
    with np.errstate(over="ignore"):
        want = INTEGER_UNARY[op](x).astype(np.int32)
    assert (run_unary(80, op, x, np.zeros(SIZE, np.int32)) == want).all()


def test_inline_assembly_with_registers_of_its_own():
    x = np.random.default_rng(10).integers(-(2**31), 2**31, SIZE).astype(np.int32)
    bits = x.view(np.uint32)
    a, b, c = bits, np.uint32(0x0F0F0F0F), np.uint32(0x11111111)
    first = (a & b) ^ c  # table 0x6a
    byte = lambda v, i: v >> np.uint32(8 * i) & np.uint32(255)  # noqa: E731
    second = byte(first, 0) | byte(bits, 0) << 8 | byte(first, 1) << 16 | byte(bits, 1) << 24  # selector 0x5140
    assert (run_unary(80, "block_asm", x, np.zeros(SIZE, np.int32)).view(np.uint32) == first + second).all()


CASTS = [
    (F32, BF16), (F32, F16), (F32, F64), (F16, BF16), (BF16, F16), (BF16, F32), (F16, F32), (F64, F32), (F64, BF16),
    (np.int32, BF16), (np.int32, F16), (np.int64, F32), (np.uint64, F64), (np.int8, F16), (np.uint8, BF16),
    (F32, np.int8), (F32, np.uint8), (F32, np.int32), (F32, np.int64), (BF16, np.int32), (F16, np.int16),
    (F64, np.int64),
    (np.int64, np.int8), (np.int8, np.int64), (F32, E5M2), (E5M2, F32), (E5M2, F16),
]  # fmt: skip
CAST_CASES = [(80, *pair) for pair in CASTS if E5M2 not in pair or pair[0] == E5M2]
CAST_CASES += [
    (arch, *pair) for arch in (90, 120) for pair in ((F32, BF16), (BF16, F32), (np.int32, BF16), (BF16, F16))
]
CAST_CASES += [(arch, *pair) for arch in (90, 120) for pair in ((F32, E4M3), (E4M3, F32), (E4M3, BF16), (E4M3, F16))]
CAST_CASES += [(90, F32, E5M2), (120, F16, E5M2)]


@pytest.mark.parametrize("arch, given, to", CAST_CASES, ids=lambda v: v if isinstance(v, int) else np.dtype(v).name)
def test_casts(arch, given, to):
    given, to = np.dtype(given), np.dtype(to)
    rng = np.random.default_rng(11)
    x = uniform(rng, given, 0 if to.kind == "u" or given.kind == "u" else -100, 100)
    if given in (F32, F64, F16) and to.kind not in "iu":
        x[:6] = np.array([0.0, -0.0, 1.0009765625, 1.001953125, 2.0**-12, 1 + 2.0**-8])  # ties
    with np.errstate(all="ignore"):
        want = x.astype(to) if to.itemsize > 1 or to.kind in "iu" else x.astype(F32).astype(to)
    got = run_unary(arch, "cast", x, np.zeros(SIZE, to))
    assert (got.view(f"u{to.itemsize}") == want.view(f"u{to.itemsize}")).all()


def test_rounding_toward_zero():
    x = uniform(np.random.default_rng(12), F32)
    got = run_unary(80, "rz", x, np.zeros(SIZE, F16))
    near = x.astype(F16)
    want = np.where(np.abs(near.astype(F32)) > np.abs(x), np.nextafter(near, np.float16(0)), near)
    assert (got == want).all()


@pytest.mark.parametrize("arch", ARCHES)
def test_views_that_are_not_aligned_take_narrow_loads(arch):
    """Pointers without known alignment: the same kernel in 4-byte accesses."""
    rng = np.random.default_rng(13)
    whole = rng.standard_normal(SIZE + 1).astype(F32)
    out = np.zeros(SIZE, F32)
    x = whole[1:]
    launch(kernels.unary, arch, [x, out, SIZE - 1], {"OP": "neg", "BLOCK": BLOCK}, grid=(2,), aligned=False)
    assert (out[:-1] == -x[:-1]).all() and out[-1] == 0
