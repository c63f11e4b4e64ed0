"""Decode functions as Metal's text, compiled as C++ with a stand-in for Metal's types: NumPy's numbers, bit for bit."""

import ctypes
import shutil
import subprocess

import numpy as np
import pytest

from tensorlib.quant import formats
from tensorlib.quant.decode import dequantize
from tensorlib.quant.metal import PRELUDE, text

ROWS = list(formats.BY_ID.values())
COMPILER = shutil.which("g++") or shutil.which("clang++")
# halves are converted by hand: not every compiler has the type
SHIM = """
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#define device
#define constant static
typedef uint8_t uchar; typedef uint16_t ushort; typedef uint32_t uint; typedef uint64_t ulong;
using std::min;
struct half {
    ushort bits;
    operator float() const {
        uint e = bits >> 10 & 31, m = bits & 1023;
        float x = std::ldexp(float(e ? 1024 + m : m), e ? int(e) - 25 : -24);
        if (e == 31) x = m ? NAN : INFINITY;
        return bits >> 15 ? -x : x;
    }
};
template <class T, class S> T as_type(S s) {
    static_assert(sizeof(T) == sizeof(S));
    T t;
    memcpy(&t, &s, sizeof t);
    return t;
}
"""
LOOP = """
extern "C" void all_{name}(const uchar *b, float *out, long n) {{
    for (long i = 0; i < n; i++)
        for (int j = 0; j < ELEMENTS_{name}; j++) out[i * ELEMENTS_{name} + j] = decode_{name}(b + i * BYTES_{name}, j);
}}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("metal")
    every = [text(row) + LOOP.format(name=row.name) for row in ROWS]
    (folder / "all.cpp").write_text(SHIM + PRELUDE + "\n".join(every))
    command = [COMPILER, "-std=c++17", "-O1", "-w", "-ffp-contract=off", "-fPIC", "-shared", "all.cpp", "-o", "all.so"]
    subprocess.run(command, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "all.so"))


@pytest.mark.parametrize("row", ROWS, ids=repr)
def test_metals_text_decodes_as_numpy(row, library, samples, assert_same):
    data = samples(row, 400)
    if row.name in ("f64", "i64"):
        values = [0.0, -0.0, 1.0, 2.0**-150, 3 * 2.0**-150, 2.0**-149, -(2.0**-126), 2.0**128, 3.4028235677973366e38]
        values += [1 + 2.0**-24, 1 + 3 * 2.0**-24, np.inf, -np.inf, np.nan, 5e-324, 2.0**-127 * (1 + 2.0**-23)]
        data = np.concatenate([data, np.array(values).view(np.uint8).reshape(-1, 8)])
    want = dequantize(data.reshape(-1), row)
    got = np.empty_like(want)
    function = getattr(library, f"all_{row.name}")
    function(data.ctypes.data_as(ctypes.c_void_p), got.ctypes.data_as(ctypes.c_void_p), ctypes.c_long(len(data)))
    assert_same(got, want)


def test_what_is_not_in_the_subset_is_told(monkeypatch):
    def power(b, j):
        return float32(j**2)  # noqa: F821 - never run

    monkeypatch.setattr("tensorlib.quant.source.functions", lambda row: ["def power(b, j):\n    return float32(j**2)"])
    with pytest.raises(NotImplementedError, match=r"j \*\* 2"):
        text("q8_0")
