"""Encoders, judged by the decoder: errors against llama.cpp, gguf and exhaustive search; edges; public functions."""

import ctypes
import hashlib
import platform

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorlib
from tensorlib import backend
from tensorlib.errors import DTypeError, EncodeError, NoKernel, ShapeError
from tensorlib.quant import formats
from tensorlib.quant.decode import dequantize
from tensorlib.quant.encode import _LIMITS, encode, quantize

# Root of (weighted) squared error over (weighted) square of `bell()`, without and with its importances, as
# quantize_row_*_ref and ggml_quantize_chunk of libggml 0.13.1 (pywhispercpp 1.5.1) leave it, rounded to ROUNDING;
# 1.0: it refuses to encode without importances
ROUNDING = 5e-7
LLAMA_CPP = {
    "q4_0": (0.122788, 0.111610),
    "q4_1": (0.082040, 0.063804),
    "q5_0": (0.061314, 0.056713),
    "q5_1": (0.039816, 0.031235),
    "q8_0": (0.007692, 0.007693),
    "q8_1": (0.007692, 0.007693),
    "q2_k": (0.309978, 0.223786),
    "q3_k": (0.198278, 0.170512),
    "q4_k": (0.075768, 0.066957),
    "q5_k": (0.038796, 0.035929),
    "q6_k": (0.024619, 0.022205),
    "q8_k": (0.011346, 0.011443),
    "iq4_nl": (0.096580, 0.087384),
    "iq4_xs": (0.097318, 0.088431),
    "mxfp4": (0.136178, 0.135985),
    "nvfp4": (0.091874, 0.093648),
    "tq1_0": (0.777013, 0.781541),
    "tq2_0": (0.777013, 0.781541),
    "iq1_s": (1.0, 0.497111),
    "iq1_m": (1.0, 0.384424),
    "iq2_xxs": (1.0, 0.332662),
    "iq2_xs": (1.0, 0.284022),
    "iq2_s": (0.366239, 0.272238),
    "iq3_xxs": (0.269433, 0.156466),
    "iq3_s": (0.204737, 0.137368),
    "q1_0": (0.758163, 0.755737),
}
NAMES = sorted(_LIMITS)
GRIDS = {name for name in NAMES if isinstance(formats.get(name).table, str)}
each_format = pytest.mark.parametrize("name", NAMES)


def bell():
    """Bell-shaped rows with long tails [32, 1024], and importances of the columns, of which a few count."""
    u = np.random.Generator(np.random.PCG64(5)).random((32, 1024, 3))
    x = ((u.sum(-1) - 1.5) / (0.15 + u[..., 0]) * 0.05).astype(np.float32)
    return x, (0.01 + np.random.Generator(np.random.PCG64(6)).random(1024) ** 4 * 10).astype(np.float32)


def error(blocks, name, x, w=1.0):
    """Root of the sum of weighted squared errors over that of weighted squares."""
    e = dequantize(blocks, name).astype(np.float64) - x
    return np.sqrt((e * e * w).sum() / (np.square(x, dtype=np.float64) * w).sum())


@pytest.mark.parametrize("name", LLAMA_CPP)
def test_no_worse_than_llama_cpp(name):
    x, w = bell()
    plain, weighted = LLAMA_CPP[name]
    assert error(encode(name, x), name, x) <= plain + ROUNDING
    assert error(encode(name, x, w), name, x, w) <= weighted + ROUNDING


@each_format
def test_importances_count(name):
    x, w = bell()
    assert error(encode(name, x, w), name, x, w) < error(encode(name, x), name, x, w)


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "tq1_0", "tq2_0", "mxfp4"])
@pytest.mark.parametrize("kind", ["normal", "uniform", "positive", "outlier", "ternary"])
def test_no_worse_than_gguf(name, kind):
    rng = np.random.default_rng(3)
    x = {
        "normal": rng.standard_normal((16, 512)),
        "uniform": rng.uniform(-1, 1, (16, 512)),
        "positive": rng.uniform(0.5, 1, (16, 512)),
        "outlier": rng.standard_normal((16, 512)) * np.where(rng.random((16, 512)) < 0.02, 20, 1),
        "ternary": rng.integers(-1, 2, (16, 512)) * 0.25,
    }[kind].astype(np.float32)
    want = gguf.quantize(x, GGMLQuantizationType(formats.get(name).ggml_id))
    assert error(encode(name, x), name, x) <= error(want, name, x)


@pytest.mark.parametrize(("name", "levels"), [("q4_0", np.arange(-8, 8)), ("iq4_nl", np.array(formats.KVALUES))])
def test_near_the_best_scale_there_is(name, levels):
    """All 2 x 31744 finite halves as scales, for a few blocks: the search must come within 3 % of the best error."""
    x = bell()[0][:6, :32]
    found = dequantize(encode(name, x), name).astype(np.float64)
    scales = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    scales = np.concatenate([scales, -scales])[:, None, None]
    for row, got in zip(x.astype(np.float64), found, strict=True):
        top = np.abs(row).max()
        near = scales[
            (np.abs(scales[:, 0, 0]) * np.abs(levels).max() < 3 * top) & (np.abs(scales[:, 0, 0]) > top / 400)
        ]
        q = (row / near[:, 0]).astype(np.float32)
        at = np.abs(q[:, :, None] - levels).argmin(-1)
        best = np.square(levels[at] * near[:, 0] - row).sum(-1).min()
        assert np.square(got - row).sum() <= 1.03 * best


@pytest.mark.parametrize("name", sorted(set(NAMES) - GRIDS))
def test_what_a_format_holds_it_keeps(name):
    """Blocks of a few values that a format has exactly, but for the rounding of scales to half precision (2**-11)."""
    row = formats.get(name)
    values = {"iq4_nl": (-127, 1, 113), "iq4_xs": (-127, 1, 113)}.get(name, (-1, 0, 1))
    values = (-1, 1) if name in ("q1_0", "q4_1", "q5_1") else values
    x = np.random.default_rng(4).choice(values, (8, row.elements)).astype(np.float32)
    x[:, ::16], x[:, 1::16] = values[0], values[-1]  # every group has them, so that its scale is known
    for scale in (1.0, 8.0, 64.0):
        got = dequantize(encode(name, x * scale), name)
        np.testing.assert_allclose(got, x * scale, atol=np.abs(x).max() * scale * 2**-10)


@each_format
def test_zeros_and_denormals(name):
    row = formats.get(name)
    assert not dequantize(encode(name, np.zeros((3, row.elements), np.float32)), name).any()
    tiny = np.full((3, row.elements), 1e-41, np.float32)
    assert (np.abs(dequantize(encode(name, tiny), name)) <= 2e-41).all()


@pytest.mark.parametrize("name", sorted(set(NAMES) - GRIDS))
def test_constants(name):
    for value in (0.75, -0.75):
        x = np.full((2, formats.get(name).elements), value, np.float32)
        # (a scale of 3 mantissa bits, and q of 2 bits from 0 up, are off by 1 in 16 at most)
        np.testing.assert_allclose(dequantize(encode(name, x), name), x, rtol=1 / 16)


@each_format
def test_one_block_at_a_time(name):
    """Blocks are independent of their neighbours: lanes, tails and threads."""
    row = formats.get(name)
    x = np.random.default_rng(8).standard_normal((19, row.elements)).astype(np.float32)
    alone = np.concatenate([encode(name, x[i : i + 1]) for i in range(19)])
    for count in (1, 2, 15, 16, 17, 19):
        np.testing.assert_array_equal(encode(name, x[:count]), alone[:count])


@pytest.mark.parametrize("name", ["q4_0", "q4_k", "q6_k", "mxfp4"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_divided_among_threads(name, threads):
    row = formats.get(name)
    x = np.random.default_rng(9).standard_normal((37, row.elements)).astype(np.float32)
    w = np.linspace(0.5, 1.5, row.elements, dtype=np.float32)
    kernel = backend.kernel("encode", "encode", name, "weighted")
    memory, state = np.full(39 * row.nbytes, 0xA5, np.uint8), np.zeros(threads, np.float32)
    out = memory[row.nbytes : -row.nbytes]
    words = (x.ctypes.data, out.ctypes.data, 37, w.ctypes.data, row.elements, state.ctypes.data)
    function = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(kernel.entry)
    block = (ctypes.c_int64 * 6)(*words)
    for tid in reversed(range(threads)):
        function(ctypes.addressof(block), tid, threads)
    np.testing.assert_array_equal(out.reshape(37, -1), encode(name, x, w))
    assert (memory[: row.nbytes] == 0xA5).all() and (memory[-row.nbytes :] == 0xA5).all()
    assert state.max() == np.abs(x).max()


DIGESTS = """
import hashlib, numpy as np
from tensorlib.quant.encode import encode
x, w = np.load({x!r}), np.load({w!r})
for name in {names}:
    print(hashlib.sha256(encode(name, x, w)).hexdigest())
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the lower levels are x86's")
@pytest.mark.parametrize("level", ["avx2", "portable"])
def test_same_blocks_on_every_level(level, run_python, tmp_path):
    """A format of each family, and rows that make ties: what FMA would have rounded once shows in these."""
    from kernels_numba import levels

    if not levels.LEVELS[level].flags <= levels.cpu_flags():
        pytest.skip(f"this CPU has no {level}")
    x, w = bell()
    x[0], x[1], x[4] = 0, x[1] * 1e-38, 0.5
    x[2], x[3, ::32] = np.round(x[2] * 20), x[3, ::32] * 50
    names, files = ("q4_1", "q2_k", "q6_k", "nvfp4", "iq3_s", "iq1_m"), (tmp_path / "x.npy", tmp_path / "w.npy")
    for file, values in zip(files, (x, w), strict=True):
        np.save(file, values)
    script = DIGESTS.format(x=str(files[0]), w=str(files[1]), names=names)
    got = run_python(script, TENSORLIB_CPU_LEVEL=level).split()
    assert got == [hashlib.sha256(encode(name, x, w)).hexdigest() for name in names]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_finite_row(data):
    """Whatever the values: finite, of their size, and (without importances) never worse than zeros."""
    name = data.draw(st.sampled_from(NAMES))
    row = formats.get(name)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    powers = data.draw(st.sampled_from([0, 1, 3, 8]))
    x = rng.standard_normal((2, 2 * row.elements)) * 10.0 ** rng.uniform(-powers, 0, (2, 2 * row.elements))
    x = (x * 10.0 ** data.draw(st.integers(-1, 3))).astype(np.float32)
    w = rng.random(2 * row.elements) ** 4 if data.draw(st.booleans()) else None
    x = np.clip(x, -0.9 * _LIMITS[name], 0.9 * _LIMITS[name]) if name == "nvfp4" else x
    got = dequantize(encode(name, x, w), name)
    assert np.isfinite(got).all()
    top = np.abs(x.reshape(-1, row.elements)).max(1)
    if w is None and name not in GRIDS:  # a grid has no zero
        off = np.square((got - x).reshape(-1, row.elements).astype(np.float64)).sum(1)
        assert (off <= np.square(x.reshape(-1, row.elements).astype(np.float64)).sum(1) * (1 + 1e-6)).all()
    assert (np.abs(got).reshape(-1, row.elements).max(1) <= 4.0 * top + 1e-4).all()


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("name", ["q4_0", "q5_1", "q4_k", "nvfp4"])
def test_values_that_cannot_be_held(name, bad):
    x = np.ones((40, 256), np.float32)
    x[23, 77] = bad
    with pytest.raises(EncodeError, match=rf"encode {name}: got \S+ in row 23, column 77; expected finite"):
        encode(name, x)


@each_format
def test_the_limit(name):
    x = np.random.default_rng(11).uniform(-1, 1, (4, 256)).astype(np.float32)
    for scale in (0.5, 1.0):
        y = (x / np.abs(x).max() * np.float32(_LIMITS[name] * scale)).astype(np.float32)
        assert error(encode(name, y), name, y) <= 1.2 * error(encode(name, x), name, x) + 0.02


def test_other_refusals():
    x = np.ones((2, 3, 64), np.float32)
    with pytest.raises(ShapeError, match="a multiple of 256"):
        encode("q4_k", x)
    with pytest.raises(NoKernel, match="encode i32"):
        encode("i32", np.ones((2, 256), np.float32))
    with pytest.raises(DTypeError, match="rows of int32"):
        encode("q4_0", x.astype(np.int32))
    with pytest.raises(ShapeError, match=r"\[64\], or \[2, 64\]"):
        encode("q4_0", x, np.ones(32))
    with pytest.raises(ShapeError, match="importances"):
        encode("q4_0", x[0], np.ones((3, 64)))
    for bad in (-1.0, np.nan):
        with pytest.raises(EncodeError, match="importances that are negative or not finite"):
            encode("q4_0", x, np.full(64, bad))


# ---- the public functions --------------------------------------------------------------------------------------------


def test_importances_per_expert_and_of_any_size():
    x = bell()[0].reshape(2, 16, 1024)
    w = np.random.default_rng(1).random((2, 1024)) ** 4
    whole = encode("q4_k", x, w)
    for i in range(2):
        np.testing.assert_array_equal(whole[i], encode("q4_k", x[i], w[i]))
        np.testing.assert_array_equal(whole[i], encode("q4_k", x[i], w[i] * 2.0**40))
    np.testing.assert_array_equal(encode("q4_k", x, np.zeros(1024)), encode("q4_k", x))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_dtypes_and_strides(dtype):
    x = np.random.default_rng(2).standard_normal((64, 3, 64)).astype(dtype)
    turned = x.transpose(1, 2, 0)
    assert turned.shape[-1] == 64 and not turned.flags.c_contiguous
    np.testing.assert_array_equal(encode("q5_1", turned), encode("q5_1", turned.astype(np.float32).copy()))


@pytest.mark.parametrize("shape", [(0, 32), (3, 0), (2, 0, 64), (32,), (2, 2, 2, 32)])
def test_shapes(shape):
    x = np.ones(shape, np.float32)
    assert encode("q8_0", x).shape == (*shape[:-1], shape[-1] // 32 * 34)
    weight = quantize(tensorlib.from_numpy(x), "q8_0")
    assert weight.shape == shape and weight.dequantize().shape == shape


@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "f64"])
def test_plain_floats_are_rounded(name):
    x = np.random.default_rng(2).standard_normal((3, 5))
    want = x.astype({"bf16": ml_dtypes.bfloat16, "f16": "f2", "f32": "f4", "f64": "f8"}[name]).astype(np.float32)
    np.testing.assert_array_equal(dequantize(encode(name, x), name), want)


def test_quantize_tensors():
    x, w = bell()
    t = tensorlib.from_numpy(x).requires_grad_()
    weight = tensorlib.quantize(t, "q4_k", imatrix=tensorlib.from_numpy(w))
    assert weight.shape == (32, 1024) and weight.format.name == "q4_k" and str(weight.device) == "cpu"
    np.testing.assert_array_equal(
        weight.dequantize(cls=tensorlib.Tensor).numpy(), dequantize(encode("q4_k", x, w), "q4_k")
    )
    half = tensorlib.from_numpy(x).to("bf16").T
    np.testing.assert_array_equal(
        tensorlib.quantize(half, "q4_0").dequantize(cls=tensorlib.Tensor).numpy(),
        dequantize(encode("q4_0", x.astype(ml_dtypes.bfloat16).T), "q4_0"),
    )
