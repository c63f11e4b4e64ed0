"""The dequantisation kernels against the NumPy reference, bit for bit, in whole and divided among threads."""

import ctypes
import functools
import platform

import ml_dtypes
import numpy as np
import pytest

from tensorlib import backend
from tensorlib.errors import NoKernel
from tensorlib.quant import formats
from tensorlib.quant.decode import dequantize
from tensorlib.quant.source import key, source

ROWS = list(formats.BY_ID.values())
OUT = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
GUARD = 16


def kernel(name, row, out="f32"):
    return backend.kernel("dequant", name, row.name, out, source=functools.partial(source, row), source_key=key(row))


def run(compiled, args, threads):
    """The kernel's share for each thread id in turn, last first."""
    function = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(compiled.entry)
    block = (ctypes.c_int64 * len(args))(*args)
    for tid in reversed(range(threads)):
        function(ctypes.addressof(block), tid, threads)


def output(n, out):
    """Memory for n elements filled with a pattern, and as much before and behind that must keep it."""
    memory = np.full((n + 2 * GUARD) * np.dtype(OUT[out]).itemsize, 0xA5, np.uint8).view(OUT[out])
    return memory, memory[GUARD : GUARD + n]


def assert_guarded(memory):
    for edge in (memory[:GUARD], memory[-GUARD:]):
        assert (edge.view(np.uint8) == 0xA5).all()


def rounded(values, out):
    with np.errstate(all="ignore"):
        return values.astype(OUT[out])


def check_dequantize(row, out, blocks, samples, assert_same):
    data, compiled = samples(row, blocks), kernel("dequantize", row, out)
    want = rounded(dequantize(data, row).ravel(), out)
    for threads in (1, 2, 3):
        memory, got = output(blocks * row.elements, out)
        run(compiled, (data.ctypes.data, got.ctypes.data, blocks), threads)
        assert_same(got, want)
        assert_guarded(memory)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_format(row, samples, assert_same):
    for blocks in (0, 1, 2, 7, 401):
        check_dequantize(row, "f32", blocks, samples, assert_same)


@pytest.mark.parametrize("out", ["f16", "bf16"])
@pytest.mark.parametrize("name", ["f32", "bf16", "q4_1", "q5_k", "q8_k", "mxfp4", "iq3_s"])
def test_half_outputs(name, out, samples, assert_same):
    check_dequantize(formats.get(name), out, 401, samples, assert_same)


@pytest.mark.parametrize("out", ["f32", "bf16"])
@pytest.mark.parametrize("name", ["bf16", "q4_1", "q8_0", "q6_k", "iq1_m"])
def test_rows(name, out, samples, assert_same):
    row, rows, per_row = formats.get(name), 11, 18
    data = samples(row, rows * per_row)
    table = rounded(dequantize(data, row), out).reshape(rows, -1)
    compiled = kernel("dequantize_rows", row, out)
    for picked in ([], [3], [0, 10, 10, 2, 7]):
        ids = np.array(picked, np.int64)
        for threads in (1, 2, 3):
            memory, got = output(len(ids) * table.shape[1], out)
            args = (data.ctypes.data, ids.ctypes.data, got.ctypes.data, len(ids), per_row, rows)
            run(compiled, args, threads)
            assert_same(got, table[ids].ravel())
            assert_guarded(memory)


@pytest.mark.parametrize("name", ["q4_1", "bf16"])
def test_rows_outside_are_nan(name, samples):
    row, rows, per_row = formats.get(name), 5, 3
    data = samples(row, rows * per_row) & 0x3F  # finite
    ids = np.array([4, -1, 5, 0, 2**62, -(2**63), 1], np.int64)
    for threads in (1, 2, 3):
        memory, got = output(len(ids) * per_row * row.elements, "f32")
        args = (data.ctypes.data, ids.ctypes.data, got.ctypes.data, len(ids), per_row, rows)
        run(kernel("dequantize_rows", row), args, threads)
        inside = (ids >= 0) & (ids < rows)
        assert np.isnan(got.reshape(len(ids), -1)).all(1).tolist() == (~inside).tolist()
        np.testing.assert_array_equal(
            got.reshape(len(ids), -1)[inside], dequantize(data, row).reshape(rows, -1)[ids[inside]]
        )
        assert_guarded(memory)


def test_launch(samples, assert_same):
    """Through the thread pool, as ops do it."""
    row = formats.get("q4_k")
    data = samples(row, 601)
    got = np.empty(601 * row.elements, np.float32)
    backend.launch(kernel("dequantize", row), (data.ctypes.data, got.ctypes.data, 601), work=got.size)
    assert_same(got, dequantize(data, row).ravel())


def test_no_such_kernel():
    for name, params in (("quantize", ("q4_1", "f32")), ("dequantize", ("q4_1", "i8")), ("dequantize", ("q4_1",))):
        with pytest.raises(NoKernel, match=r"kernels_numba/dequant\.py"):
            backend.kernel("dequant", name, *params, source=source("q4_1"), source_key="none")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the lower levels are x86's")
@pytest.mark.parametrize("level", ["avx2", "portable"])
def test_lower_levels(level, run_python):
    """Every format, and outputs of both halves. A process builds kernels for one level only."""
    from kernels_numba import levels

    if not levels.LEVELS[level].flags <= levels.cpu_flags():
        pytest.skip(f"this CPU has no {level}")
    script = """
        import pytest, sys
        sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", sys.argv[1], "-k", sys.argv[2]]))
    """
    chosen = "test_every_format or test_half_outputs and (q4_1 or f32)"
    run_python("\n".join(line.strip() for line in script.splitlines()), __file__, chosen, TENSORLIB_CPU_LEVEL=level)


def test_links_for_arm(run_python):
    """Compiled and linked only: nothing here runs it."""
    script = (
        "from kernels_numba import build; from tensorlib.quant.source import source\n"
        "for name in ('q5_k', 'iq4_nl'):\n"
        "    print(len(build.build_kernel('dequant', 'dequantize_rows', (name, 'f16'), 'neon', source(name))[0]))"
    )
    assert all(1000 < int(size) < 10000 for size in run_python(script).split())
