"""aarch64 code run for real, under QEMU's user emulation: skipped where `qemu-aarch64` and a cross compiler are
missing.
"""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from kernels_numba import levels, quant_layout
from tensorlib.quant import formats
from tensorlib.quant.decode import dequantize
from tests.quant.test_linear import FORMATS, blocks, rounded
from tests.quant.test_private import blocks as private_blocks

TOOLS = ("qemu-aarch64", "aarch64-linux-gnu-gcc")
pytestmark = pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"needs {' and '.join(TOOLS)}")

RUNNER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
/* run DATA, then for each command CODE ENTRY NWORDS WORD... ; a word "@n" is the address of byte n of the data */
static char *map(const char *path, long *n, int prot) {
    FILE *f = fopen(path, "rb"); struct stat s; fstat(fileno(f), &s); *n = s.st_size;
    char *p = mmap(0, s.st_size, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (fread(p, 1, s.st_size, f) != (size_t)s.st_size) exit(3);
    fclose(f); __builtin___clear_cache(p, p + s.st_size); return p;
}
int main(int argc, char **argv) {
    long n, m; char *data = map(argv[1], &n, 0);
    for (int i = 2; i < argc;) {
        char *code = map(argv[i], &m, 0); long entry = atol(argv[i + 1]), words = atol(argv[i + 2]); i += 3;
        long long args[32];
        for (int w = 0; w < words; w++, i++)
            args[w] = argv[i][0] == '@' ? (long long)(data + atol(argv[i] + 1)) : atoll(argv[i]);
        ((void (*)(long long, long long, long long))(code + entry))((long long)args, 0, 1);
    }
    FILE *f = fopen(argv[1], "wb"); fwrite(data, 1, n, f); fclose(f); return 0;
}
"""
BUILD = """
import sys
from kernels_numba import build
room, name, *params = sys.argv[2:]
params, source = tuple(int(p) if p.isdigit() else p for p in params), None
if room.startswith("quant") and name.startswith("mat"):  # as tensorlib/quant does
    from tensorlib.quant import source
    source = source.source(params[0])
code, entry = build.build_kernel(room, name, params, "neon", source)
open(sys.argv[1], "wb").write(code)
print(entry)
"""
BUILT = {}  # file of code -> its entry


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("neon")
    (folder / "run.c").write_text(RUNNER)
    subprocess.run(
        ["aarch64-linux-gnu-gcc", "-O1", "-static", "-o", folder / "run", folder / "run.c"], check=True, timeout=120
    )
    return folder


def run(folder, run_python, arrays, commands):
    """Lays the arrays out in one block, runs (room, name, params, words) on it; a word may be an array's index in a
    list.
    """
    offsets, data = [], bytearray()
    for a in arrays:
        data += bytes(-len(data) % 64)
        offsets.append(len(data))
        data += a.tobytes()
    (folder / "data").write_bytes(data)
    line = ["qemu-aarch64", str(folder / "run"), str(folder / "data")]
    for room, name, params, words in commands:
        code = folder / "-".join([name, *map(str, params)])
        entry = BUILT.get(code) or run_python(BUILD, str(code), room, name, *map(str, params)).strip()
        BUILT[code] = entry
        line += [str(code), entry, str(len(words))]
        line += [f"@{offsets[w[0]]}" if isinstance(w, list) else str(w) for w in words]
    subprocess.run(line, check=True, timeout=300, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    after = (folder / "data").read_bytes()
    return [np.frombuffer(after, a.dtype, a.size, o).reshape(a.shape) for a, o in zip(arrays, offsets, strict=True)]


@pytest.mark.parametrize("name,m", [("nf4_64", 3), ("nf4_64", 30), ("f8_128", 3)])
def test_products_of_floats(name, m, runner, run_python):
    n, k, rng, plan = 21, 256, np.random.default_rng(0), quant_layout
    held = private_blocks(name, n * k // formats.get(name).elements, rng)[0]
    w = dequantize(held, name).reshape(n, k).astype(np.float64)
    x, out = rng.standard_normal((m, k)).astype(np.float32), np.zeros((m, n), np.float32)
    packed, scratch = np.zeros(2 * (m + 16) * (k + 8) * 4, np.uint8), np.zeros(1 << 20, np.uint8)
    if m < 16:
        commands = [("quant_float", "arrange", (plan.STRIDES[name],), ([1], 4 * k, k, m, [2]))]
        commands.append(("quant_float", "matvec", (name,), ([0], [2], [3], n, k, 0, m)))
    else:
        commands = [("matmul", "pack", ("f32", "f32"), ([1], [2], m, k, k, 1, 0))]
        commands.append(("quant_float", "matmul", (name,), ([0], [2], [3], n, k, 0, m, 128, 128, [4], 1 << 20)))
    got = run(runner, run_python, [held, x, packed, out, scratch], commands)[3]
    np.testing.assert_allclose(got, x.astype(np.float64) @ w.T, atol=k * 2.0**-24 * (np.abs(x) @ np.abs(w).T).max())


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("m", [1, 5])
def test_products(fmt, m, runner, run_python):
    n, k, rng = 20, 512, np.random.default_rng(0)
    tokens, plan = levels.LEVELS["neon"].tokens, quant_layout
    data, w = blocks(fmt, n, k, rng)
    x, out = rng.standard_normal((m, k)).astype(np.float32), np.zeros((m, n), np.float32)
    halves = plan.HALVES.get(fmt, 0)
    if m == 1:
        runs = fmt in plan.RUNS
        packed = np.zeros(plan.row_bytes(k, runs), np.uint8)
        commands = [("quant", "quantize_runs" if runs else "quantize", (), ([1], 4 * k, k, m, [2]))]
        commands.append(("quant", "matvec", (fmt,), ([0], [2], [3], n, k, 0, m)))
    else:
        packed = np.zeros(plan.tiles_bytes(m, k, tokens, halves), np.uint8)
        commands = [("quant", "quantize_tiles", (tokens, halves), ([1], 4 * k, k, m, [2], plan.BIAS[fmt]))]
        words = ([0], [2], [3], n, k, 0, m, [4], plan.SCRATCH)
        commands.append(("quant", "matmul", (fmt, tokens), words))
    scratch = np.zeros(plan.SCRATCH, np.uint8)
    got = run(runner, run_python, [data, x, packed, out, scratch], commands)[3]
    want = rounded(x) @ w.T
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())
