"""Products with weights of IQ1, IQ2 and IQ3: entries of grids, signs and scales, on every CPU level."""

import pathlib
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensorlib
from kernels_numba import levels, quant_layout
from tensorlib import backend
from tensorlib.quant import decode, formats
from tensorlib.quant.tensor import MATVEC_ROWS, from_bytes
from tests.ops import test_neon
from tests.ops.test_neon import runner  # noqa: F401 - a fixture
from tests.quant.conftest import HALVES
from tests.quant.test_linear import EPS, array, rounded, values

# format: the greatest u + bias, or u + m / d, over the least weight / d
FORMATS = dict.fromkeys(("iq2_xxs", "iq2_xs", "iq2_s"), (43 + 64 + 64) / 8)
FORMATS |= {
    "iq3_xxs": (62 + 64 + 64) / 4,
    "iq3_s": 15 + 16 + 16,
    "iq1_s": (9 + 16 + 16) / 1,
    "iq1_m": (9 + 16 + 16) / 1,
}


def decoded(fmt, data, k):
    """The weights as float64; test_dequant.py holds this reference to the gguf package and to llama.cpp."""
    with np.errstate(all="ignore"):
        return decode.dequantize(data, formats.get(fmt)).reshape(-1, k).astype(np.float64)


def with_scales(fmt, data, d):
    """Blocks (count, bytes) whose d is the f16 in `d` (count)."""
    bits, out = np.broadcast_to(d, len(data)).astype(np.float16).view(np.uint16), data.copy()
    if fmt == "iq1_m":
        words = out[:, 48:56].copy().view(np.uint16)
        words = words & 0xFFF | (bits[:, None] >> np.arange(0, 16, 4, dtype=np.uint16) & 15) << 12
        out[:, 48:56] = words.astype(np.uint16).view(np.uint8)
    else:
        out[:, :2] = bits.view(np.uint8).reshape(-1, 2)
    return out


def blocks(fmt, n, k, rng):
    """Random blocks of an [n, k] weight, and their values."""
    row = formats.get(fmt)
    data = rng.integers(0, 256, (n * k // 256, row.nbytes), dtype=np.uint8)
    data = with_scales(fmt, data, rng.uniform(-0.01, 0.01, len(data))).reshape(n, -1)
    return data, decoded(fmt, data, k)


def magnitudes(fmt, w):
    """No less than |d| (u + bias) + |m| of each weight, the numbers that its product is summed from."""
    return FORMATS[fmt] * np.abs(w).reshape(len(w), -1, 16).max(2).repeat(16, 1)


def bounded(fmt, got, x, w):
    """Integer sums are exact; what rounds are the f32 scales (5 per block) and the sum over k / 32 terms per lane, then
    16 lanes.
    """
    k, exact = x.shape[1], rounded(x)
    bound = (k / 32 + 24) * EPS * (np.abs(exact) @ magnitudes(fmt, w).T) + 1e-38
    np.testing.assert_array_less(np.abs(got - exact @ w.T), bound)
    return bound


def check(fmt, n, k, m, seed):
    rng = np.random.default_rng(seed)
    data, w = blocks(fmt, n, k, rng)
    x = (rng.standard_normal((m, k)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
    got = values(from_bytes(data, (n, k), fmt).linear(array(x)))
    bound = bounded(fmt, got, x, w)
    # against unrounded activations: each is off by at most half a step of its block, amax / 254 (and f32's rounding)
    step = np.abs(x).reshape(m, -1, 32).max(2).repeat(32, 1) / 254 * (1 + 1e-5)
    np.testing.assert_array_less(np.abs(got - x.astype(np.float64) @ w.T), step @ np.abs(w).T + bound)


@pytest.mark.parametrize("fmt", FORMATS)
@given(st.data())
def test_linear(fmt, data):
    k = 256 * data.draw(st.integers(1, 6), label="blocks")
    n = data.draw(st.integers(1, 17) | st.just(40), label="n")
    m = data.draw(st.sampled_from([1, MATVEC_ROWS, MATVEC_ROWS + 1, 12, 13, 30]), label="m")
    check(fmt, n, k, m, data.draw(st.integers(0, 99), label="seed"))


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_weight_of_random_blocks(fmt):
    """Ones pick single weights: an entry, sign or scale taken for another is a number that differs by 1/64 or more. 64
    blocks of 32 or 64 entries: half the largest grids, all of the others nearly.
    """
    rng = np.random.default_rng(7)
    data = rng.integers(0, 256, (64, formats.get(fmt).nbytes), dtype=np.uint8)
    data = with_scales(fmt, data, 2.0 ** rng.integers(-3, 3, 64))
    got = values(from_bytes(data, (64, 256), fmt).linear(array(np.eye(256, dtype=np.float32))))
    w, tiny = decoded(fmt, data, 256), 4 * EPS * FORMATS[fmt]
    np.testing.assert_allclose(got.T, w, rtol=tiny)
    for k in (0, 31, 100, 255):  # matvec
        one = np.zeros((1, 256), np.float32)
        one[0, k] = 1
        got = values(from_bytes(data, (64, 256), fmt).linear(array(one)))
        np.testing.assert_allclose(got[0], w[:, k], rtol=tiny)


@pytest.mark.parametrize("m", [1, MATVEC_ROWS + 1])
@pytest.mark.parametrize("fmt", FORMATS)
def test_special_scales(fmt, m):
    """NaN, infinities, zeros, denormals, the largest: each in a row of its own, where all blocks have it."""
    k, n, rng = 512, len(HALVES), np.random.default_rng(6)
    data = with_scales(fmt, blocks(fmt, n, k, rng)[0].reshape(2 * n, -1), HALVES.view(np.float16).repeat(2))
    data = data.reshape(n, -1)
    x = rng.uniform(0.5e-6, 1e-6, (m, k)).astype(np.float32)
    got, w = values(from_bytes(data, (n, k), fmt).linear(array(x))), decoded(fmt, data, k)
    finite = np.isfinite(w).all(1)
    assert finite.sum() == 9 and not np.isfinite(got[:, ~finite]).any()
    bounded(fmt, got[:, finite], x, w[finite])


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("m", [1, MATVEC_ROWS + 1])
def test_same_bits_for_any_number_of_threads(fmt, m, monkeypatch):
    rng = np.random.default_rng(1)
    data, _ = blocks(fmt, 67, 512, rng)
    x, w, seen = rng.standard_normal((m, 512)).astype(np.float32), from_bytes(data, (67, 512), fmt), set()
    monkeypatch.setattr(backend, "PARALLEL_WORK", 0)
    try:
        for threads in (1, 2, 3):
            backend.set_num_threads(threads)
            seen.add(values(w.linear(array(x))).tobytes())
    finally:
        backend.set_num_threads(None)
    assert len(seen) == 1


@pytest.mark.parametrize("fmt", ["iq2_xs", "iq3_s"])
def test_longer_than_a_panel(fmt):
    check(fmt, 20, 4096 + 512, MATVEC_ROWS + 1, 0)


def test_nothing_is_dequantised(capsys):
    data, _ = blocks("iq2_xxs", 8, 256, np.random.default_rng(2))
    weight = from_bytes(data, (8, 256), "iq2_xxs")
    weight.linear(tensorlib.ones((2, 256)))
    assert weight._dense is None and "iq2" not in capsys.readouterr().err


LEVEL = """
import sys
sys.path.insert(0, {root!r})
from tests.quant import test_linear_grid as grid
from tensorlib import backend
assert backend.backend().level == {level!r}
for fmt in grid.FORMATS:
    grid.test_every_weight_of_random_blocks(fmt)
    grid.check(fmt, 5, 768, 2, 3)
"""


@pytest.mark.parametrize("level", ["avx2", "portable"])
def test_lower_levels_give_the_same(level, run_python):
    root = str(pathlib.Path(__file__).parents[2])
    run_python(LEVEL.format(root=root, level=level), TENSORLIB_CPU_LEVEL=level)


@pytest.mark.skipif(not all(map(shutil.which, test_neon.TOOLS)), reason=f"needs {' and '.join(test_neon.TOOLS)}")
@pytest.mark.parametrize("fmt", ["iq2_xs", "iq3_xxs", "iq1_m"])
def test_neon_gives_the_same(fmt, runner, run_python):  # noqa: F811 - pytest's way
    n, k, m, rng = 20, 512, 5, np.random.default_rng(0)
    tokens, plan, halves = levels.LEVELS["neon"].tokens, quant_layout, quant_layout.HALVES.get(fmt, 0)
    data, w = blocks(fmt, n, k, rng)
    x = rng.standard_normal((m, k)).astype(np.float32)
    groups, tiles = (
        np.zeros(m * plan.row_bytes(k), np.uint8),
        np.zeros(plan.tiles_bytes(m, k, tokens, halves), np.uint8),
    )
    arrays = [data, x, groups, np.zeros((m, n), np.float32), tiles, np.zeros((m, n), np.float32)]
    arrays.append(np.zeros(plan.SCRATCH, np.uint8))
    commands = [("quant", "quantize", (), ([1], 4 * k, k, m, [2]))]
    commands.append(("quant", "matvec", (fmt,), ([0], [2], [3], n, k, 0, m)))
    commands.append(("quant", "quantize_tiles", (tokens, halves), ([1], 4 * k, k, m, [4], plan.BIAS[fmt])))
    commands.append(("quant", "matmul", (fmt, tokens), ([0], [4], [5], n, k, 0, m, [6], plan.SCRATCH)))
    after = test_neon.run(runner, run_python, arrays, commands)
    for got in (after[3], after[5]):
        bounded(fmt, got, x, w)
