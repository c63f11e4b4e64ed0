"""The simulator on kernels whose threads work together: reductions, scans, sorts, atomics, loops that diverge."""

import math
import re

import ml_dtypes
import numpy as np
import pytest

from tests.sim import kernels_for_tests as kernels
from tests.sim.compile_for_tests import launch

BF16 = np.dtype(ml_dtypes.bfloat16)
ARCHES = (80, 90, 120)
ROWS, COLUMNS, BLOCK = 8, 250, 256


def sum_bound(x, axis, eps):
    """Of a sum in any order: additions in a row times the rounding unit times the sum of magnitudes."""
    return x.shape[axis] * eps * np.abs(x.astype(np.float64)).sum(axis)


REDUCTIONS = {
    "sum": lambda x: x.sum(1, dtype=np.float64), "max": lambda x: x.max(1), "min": lambda x: x.min(1),
    "argmax": lambda x: x.argmax(1), "argmin": lambda x: x.argmin(1), "xor": lambda x: np.bitwise_xor.reduce(x, 1),
    "custom": lambda x: np.maximum(x.max(1), 0),
}  # fmt: skip
REDUCTION_CASES = [
    (80, op, dtype) for op in ("sum", "max", "argmax") for dtype in (np.float16, BF16, np.int8, np.int64)
]
REDUCTION_CASES += [(80, op, np.float32) for op in ("sum", "max", "min", "argmax", "argmin", "custom")]
REDUCTION_CASES += [(80, op, np.int32) for op in ("sum", "min", "xor")]
REDUCTION_CASES += [
    (arch, op, d) for arch in (90, 120) for op, d in (("sum", np.float32), ("argmax", BF16), ("max", np.int32))
]


@pytest.mark.parametrize(
    "arch, op, dtype", REDUCTION_CASES, ids=lambda v: v if isinstance(v, int | str) else np.dtype(v).name
)
def test_reductions(arch, op, dtype):
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((ROWS, COLUMNS)) * 20).astype(dtype)
    out = np.zeros(ROWS, np.int32 if "arg" in op or x.dtype == np.int8 else dtype)
    launch(kernels.reduce, arch, [x, out, ROWS, COLUMNS], {"OP": op, "ROWS": 4, "BLOCK": BLOCK}, grid=(2,))
    want, bound = REDUCTIONS[op](x), 0
    if op == "sum" and x.dtype.kind != "i":  # half floats are added in their own dtype or float32, then rounded
        eps = float(ml_dtypes.finfo(dtype).eps)
        bound = sum_bound(x, 1, eps)
    assert (np.abs(out.astype(np.float64) - want.astype(np.float64)) <= bound).all()


@pytest.mark.parametrize("warps", (1, 8))
def test_reduction_by_other_numbers_of_warps(warps):
    x = np.random.default_rng(2).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    out = np.zeros(ROWS, np.float32)
    consts = {"OP": "sum", "ROWS": 4, "BLOCK": BLOCK}
    launch(kernels.reduce, 80, [x, out, ROWS, COLUMNS], consts, grid=(2,), num_warps=warps)
    assert (np.abs(out - x.sum(1, dtype=np.float64)) <= sum_bound(x, 1, 2.0**-24)).all()


def recurrence(x):
    found = [x[0]]
    for value in x[1:]:
        found.append(found[-1] * 0.5 + value)
    return np.array(found)


SCANS = {
    "cumsum": np.cumsum, "reverse": lambda x: x[::-1].cumsum()[::-1], "cumprod": np.cumprod,
    "cummax": np.maximum.accumulate, "recurrence": recurrence, "sort": np.sort,
    "descending": lambda x: np.sort(x)[::-1],
    "topk": lambda x: np.sort(x)[::-1], "gather": lambda x: x[::-1],
    "transpose": lambda x: x.reshape(-1, 8).T.ravel(), "swap": lambda x: x.reshape(-1, 2)[:, ::-1].ravel(),
}  # fmt: skip
SCAN_CASES = [(80, op) for op in SCANS] + [(arch, op) for arch in (90, 120) for op in ("cumsum", "sort", "gather")]


@pytest.mark.parametrize("arch, op", SCAN_CASES)
def test_scans_and_permutations(arch, op):
    count = 256
    x = np.random.default_rng(3).standard_normal(count).astype(np.float32)
    if op == "cumprod":
        x = np.exp2(np.sign(x)).astype(np.float32)  # products of powers of two are exact
    out = np.zeros(count, np.float32)
    launch(kernels.scan, arch, [x, out], {"OP": op, "BLOCK": count})
    want = SCANS[op](x.astype(np.float64))
    sums = op in ("cumsum", "reverse", "recurrence")
    bound = count * 2.0**-24 * np.abs(x.astype(np.float64)).sum() if sums else 0
    assert (np.abs(out - want) <= bound).all()


def test_histogram():
    x = np.random.default_rng(4).integers(0, 256, 256).astype(np.int32)
    out = np.zeros(256, np.int32)
    launch(kernels.scan, 80, [x, out], {"OP": "histogram", "BLOCK": 256})
    assert (out == np.bincount(x, minlength=256)).all()


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("dtype", (np.float32, np.float16))
def test_softmax(arch, dtype):
    x = np.random.default_rng(5).standard_normal((70, 250)).astype(dtype)
    out = np.zeros_like(x)
    memory = launch(kernels.softmax, arch, [x, out, 250, 250], {"BLOCK": 256}, grid=(70,))
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    want = e / e.sum(1, keepdims=True)
    # 256 roundings of the sum, and ex2.approx of an argument that is off by a rounding: 8 more
    bound = want * (264 * 2.0**-24 + np.finfo(dtype).eps / 2) + float(np.finfo(dtype).smallest_subnormal)
    assert (np.abs(out - want) <= bound).all()
    assert len(memory.unwritten(out.ctypes.data, out.itemsize)) == 0


@pytest.mark.parametrize("arch", ARCHES)
def test_layer_norm_loops_over_its_row(arch):
    rng = np.random.default_rng(6)
    x, w = rng.standard_normal((5, 700)).astype(np.float16), rng.standard_normal(700).astype(np.float16)
    out = np.zeros_like(x)
    launch(kernels.layer_norm, arch, [x, w, out, 700, 1e-5], {"BLOCK": 256}, grid=(5,))
    y = x.astype(np.float64)
    want = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-5) * w.astype(np.float64)
    assert (np.abs(out - want) <= np.abs(want) * 2.0**-11 + 1e-4).all()  # the output's rounding; E[x²]-E[x]² in float32


def philox(seed, counter):
    """Philox4x32-10 of one counter; the first word."""
    mask = 0xFFFFFFFF
    c, k = [counter, 0, 0, 0], [seed & mask, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ k[0], b & mask, a >> 32 ^ c[3] ^ k[1], a & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return c[0]


@pytest.mark.parametrize("seed", (12345, (5 << 32) + 9))
def test_philox(seed):
    out = np.zeros(128, np.int32)
    launch(kernels.randoms, 80, [out, seed], {"OP": "randint", "BLOCK": 64}, grid=(2,))
    assert out.view(np.uint32).tolist() == [philox(seed, i) for i in range(128)]


def test_normal_numbers():
    out = np.zeros(1024, np.float32)
    launch(kernels.randoms, 80, [out, 7], {"OP": "randn", "BLOCK": 256}, grid=(4,))
    assert abs(out.mean()) < 5 / math.sqrt(1024) and abs(out.std() - 1) < 5 / math.sqrt(2 * 1024)  # 5 deviations


ATOMICS = {
    "add": (lambda old, x: old + x, (np.float32, np.float16, BF16, np.float64, np.int32, np.int64)),
    "add_relaxed": (lambda old, x: old + x, (np.float32, np.int32)),
    "max": (np.maximum, (np.float32, np.int32, np.int64)), "min": (np.minimum, (np.int32,)),
    "or": (np.bitwise_or, (np.int32,)),
    "and": (np.bitwise_and, (np.int64,)), "xor": (np.bitwise_xor, (np.int32,)),
    "xchg": (lambda old, x: x, (np.float32, np.int64)),
    "cas": (lambda old, x: np.where(old == 0, x, old), (np.int32, np.int64)),
}  # fmt: skip
ATOMIC_CASES = [(80, op, dtype) for op, (_, dtypes) in ATOMICS.items() for dtype in dtypes]
ATOMIC_CASES += [(90, "add", dtype) for dtype in (np.float32, np.float16, BF16)]


@pytest.mark.parametrize(
    "arch, op, dtype", ATOMIC_CASES, ids=lambda v: v if isinstance(v, int | str) else np.dtype(v).name
)
def test_atomics(arch, op, dtype):
    """Two programs, one after the other by the simulator's order: the old values are those of each step."""
    function, _ = ATOMICS[op]
    count, rng = 128, np.random.default_rng(8)
    x, out = (rng.integers(-9, 9, count).astype(dtype) for _ in range(2))
    start, old = out.copy(), np.zeros(2 * count, dtype)
    launch(kernels.atomic, arch, [out, x, old], {"OP": op, "BLOCK": count}, grid=(2,))
    first = function(start, x).astype(dtype)
    assert (out == function(first, x).astype(dtype)).all()
    if op != "add_relaxed":
        assert (old[:count] == start).all() and (old[count:] == first).all()


def test_atomics_that_collide():
    out, x, old = np.zeros(2, np.int32), np.ones(128, np.int32), np.zeros(128, np.int32)
    launch(kernels.atomic, 80, [out, x, old], {"OP": "collide", "BLOCK": 128})
    assert out.tolist() == [64, 64] and sorted(old.tolist()) == sorted([*range(64)] * 2)


def test_sum_over_programs_with_atomics():
    x, out = np.ones(1000, np.float32), np.zeros(1, np.float32)
    launch(kernels.sum_with_atomics, 80, [x, out, 1000], {"BLOCK": 256}, grid=(4,))
    assert out[0] == 1000


def test_a_pointer_may_be_one_of_two():
    a, b, out = (np.full(n, v, np.float32) for n, v in ((1, 3), (1, 5), (2, 0)))
    launch(kernels.one_of_two, 80, [a, b, out], {}, grid=(2,), edit=indirect)
    assert out.tolist() == [3, 5]


def indirect(ptx):
    """As it is, and it is what this is a test of."""
    assert re.search(r"ld\.param\.b64\s+%rd\d+, \[%rd\d+\]", ptx)
    return ptx


def test_the_last_program_may_read_what_others_released():
    """An atomic counter orders the programs: their partial sums may be read then."""
    x, partial = np.ones(4 * 128, np.float32), np.zeros(4, np.float32)
    count, out = np.zeros(1, np.int32), np.zeros(1, np.float32)
    consts = {"BLOCK": 128, "PROGRAMS": 4}
    launch(kernels.last_program_sums, 80, [x, partial, count, out, 4], consts, grid=(4,))
    assert out[0] == 512 and count[0] == 4


def collatz(x):
    steps = 0
    while x != 1:
        x, steps = (x // 2 if x % 2 == 0 else 3 * x + 1), steps + 1
    return steps


def test_programs_of_a_batch_may_part():
    """Programs in lock step whose loops end at different times, and the last of which do nothing."""
    x, out = np.arange(1, 41, dtype=np.int32), np.full(40, -1, np.int32)
    launch(kernels.steps_until_one, 80, [x, out, 37], {}, grid=(40,))
    assert out.tolist() == [collatz(int(v)) for v in x[:37]] + [-1] * 3


@pytest.mark.parametrize("batch", (1, 3, 40))
def test_the_size_of_a_batch_changes_nothing(batch):
    x = np.random.default_rng(9).standard_normal((40, 250)).astype(np.float32)
    out, again = np.zeros_like(x), np.zeros_like(x)
    launch(kernels.softmax, 80, [x, out, 250, 250], {"BLOCK": 256}, grid=(40,))
    launch(kernels.softmax, 80, [x, again, 250, 250], {"BLOCK": 256}, grid=(40,), batch=batch)
    assert (out == again).all()
